"""Test whether a G whose sampled targets are unknown can come from M samples per example.

The features of G (see `draws`) are compared with those of exact draws of M samples:

* Some draws give the covariance of the features. With it, deviations from the exact G are turned into scores: the
  deviation in scale, that of each layer's mean, and the sum of squares of all independent deviations.
* The others give the limits. G is rejected if one of its scores is higher than all of theirs, if one is lower, or if
  its sum of squares is smaller: its samples are too good, those of more than M.

A right G is one more such draw. So each of the three happens with probability 1/(draws + 1), whatever the distribution.

"Not rejected" is not "right". A number of samples that was inferred from the same values proves nothing, because any G
far from the exact one looks like one sample. And a scale explains a G only if G is clearly off without it, if G fits
well with it, and if other scales near it do not fit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..checks import Array
from .differences import error
from .draws import UNIFORM, Errors, Features, errors_of
from .mistakes import CATALOGUE, FACTORS_G, Mistake
from .problem import Problem

#: Right values are rejected at most this often: 3 / (draws + 1), with the fewest draws that a problem gets.
RATE = 1e-3
#: A scale explains a G only if, without it, the G is so many times further off than any draw, and if a scale so many
#: times larger or smaller does not fit.
CLEAR, SHARP = 1.5, 1.4
#: An inferred number of samples is at most this.
MOST_SAMPLES = 10**6


@dataclass(frozen=True)
class Judgement:
    """The result of the test of a sampled G."""

    right: bool             # whether the values are consistent with M samples
    samples: int            # M
    stated: bool            # whether M was given; else it is inferred from the spread
    statistic: float        # the side of the draws that the values are furthest off on, in units of its limit
    explanations: tuple[Mistake, ...]       # scales and distributions that would make the values consistent
    power: dict[str, float]                 # the share of simulated draws in which a mistake would be detected
    instead: int | None = None              # another number of samples, with which the values are consistent


class Null:
    """The distribution of the features of M samples; features are (K,) or (R, K)."""

    def __init__(self, mean: Array, noise: Array, layer: Any, warm_up: Array, draws: Array) -> None:
        self.mean, self.draws = mean, draws
        off = warm_up - mean
        spread = np.sqrt(np.mean(off**2, axis=0) + noise**2)
        values, vectors = np.linalg.eigh((off / spread).T @ (off / spread) / len(off) + np.diag((noise / spread)**2))
        self.whiten = vectors / np.sqrt(np.maximum(values, 1e-15)) / spread[:, None]
        self.parts = np.column_stack([self.whiten @ (mean @ self.whiten),
                                      *((layer == i) / spread for i in range(layer[-1] + 1))])
        self.parts /= np.sqrt(np.mean((off @ self.parts)**2, axis=0) + noise**2 @ self.parts**2)
        self.freedom = float(np.mean(self.square(warm_up)))
        scores = self.scores(warm_up)
        self.up, self.down = (np.maximum(np.quantile(side, 0.99, axis=0), 0.7) for side in (scores, -scores))
        self._sides = [np.sort(side) for side in self.sides(draws)]
        # Draws without a rare label are equal: rounding must not take one of these for closer than the others.
        least = 1, 1, 2 * self._sides[2][-len(draws) // 20]
        self.limits = [max(1.01 * float(side[-1]), bound) for side, bound in zip(self._sides, least, strict=True)]

    def square(self, features: Array) -> Array:
        """Return the sum of squared independent deviations; its mean is `freedom`."""
        return np.sum(((features - self.mean) @ self.whiten)**2, axis=-1)

    def scores(self, features: Array) -> Array:
        """Return the deviations in scale, of the layers' means, and of the sum of squares, (..., 2 + L)."""
        square = np.sqrt(2 * self.square(features)) - math.sqrt(2 * self.freedom + len(self.mean) / 8)     # of rounding
        return np.concatenate([(features - self.mean) @ self.parts, square[..., None]], axis=-1)

    def sides(self, features: Array) -> tuple[Array, Array, Array]:
        """Return the highest and minus the lowest score, in units of what is common, and how close to the mean."""
        scores = self.scores(features)
        close = self.freedom / np.maximum(self.square(features), len(self.mean) / 64)
        return (scores / self.up).max(axis=-1), (-scores / self.down)[..., :-1].max(axis=-1), close

    def off(self, features: Array) -> Array:
        """Return the side that is furthest off, in units of its limit."""
        return np.max([side / limit for side, limit in zip(self.sides(features), self.limits, strict=True)], axis=0)

    def fits(self, features: Array) -> bool:
        """Return whether the features are as most draws are: no further off, on both sides, than 95% of them."""
        return all(side <= max(common[-len(common) // 20], 0.7) for side, common in zip(
            self.sides(features)[:2], self._sides, strict=False))

    def is_of(self, features: Array) -> bool:
        """Return whether the features fit, and would not if they were `SHARP` times larger or smaller."""
        return self.fits(features) and not self.fits(SHARP * features) and not self.fits(features / SHARP)

    def spread(self, features: Array, factor: float) -> Array:
        """Return the features with the variance multiplied by a factor."""
        return self.mean + math.sqrt(factor) * (features - self.mean)

    def samples(self, features: Array, M: int) -> int:
        """Return the number of samples that the sum of squares belongs to, if this is the distribution of M."""
        ratio = self.freedom / max(float(self.square(features)), 1e-300)
        return min(max(1, round(M * min(ratio, MOST_SAMPLES))), MOST_SAMPLES)


# Features and their distributions are kept, for several checks of one problem.
_features = functools.lru_cache(maxsize=2)(Features)


@functools.lru_cache(maxsize=4)
def _null(features: Features, M: int, errors: Errors, uniform: bool = False) -> Null:
    """Return what M samples can give, of the model's own prediction or of one that ignores it."""
    return Null(*features.center(errors, uniform), features.layer, *features.draws(M, errors, uniform))


@functools.lru_cache(maxsize=4)
def _power(features: Features, M: int, errors: Errors) -> dict[str, float]:
    """Return how often some mistakes would be detected in G of M samples."""
    null = _null(features, M, errors)
    draws = null.draws[:999]
    asked = {name: c * draws for name, c in {
        "G twice too large": 2.0, "G half too small": 0.5, "G summed over the examples": float(len(features.at)),
        "G averaged over the outputs": 1 / features.problem.sizes[-1]}.items() if c != 1}
    asked["labels in place of the model's targets"] = features.of(features.reference["G_empirical"])
    asked["ten times fewer samples"] = null.spread(draws, 10)
    asked["ten times more samples"] = null.spread(draws, 0.1)
    return {name: float(np.mean(null.off(values) > 1)) for name, values in asked.items()}


@np.errstate(over="ignore", invalid="ignore")               # wrong values may have any size
def judge(problem: Problem, G: Sequence[Array], samples: int | None = None) -> Judgement:
    """Test whether G of M = `samples` targets per example fits the model's own prediction.

    `samples` is by default the number of the problem's targets, which are ignored otherwise; without any, M is inferred
    from the spread. Raises a ProblemError if the simulation would take minutes.
    """
    if samples is None and problem.targets is not None:
        samples = len(problem.targets)
    features = _features(problem)
    theirs, errors = features.of(G), errors_of(G)
    M = samples or (_null(features, 1, errors).samples(theirs, 1) if np.isfinite(theirs).all() else 1)
    null = _null(features, M, errors)
    if not np.isfinite(theirs).all():
        return Judgement(False, M, samples is not None, math.inf, (), {})
    off = float(null.off(theirs))
    right = off <= 1
    explanations, instead = [], None
    if not right or samples is None:                        # an inferred M says little
        explanations = _same(features, G)
    if not right and samples is not None and not explanations:
        explanations = _explained(features, null, theirs, samples, errors)
        other = int(float(f"{null.samples(theirs, M):.2g}"))
        instead = other if other != M and null.fits(null.spread(theirs, other / M)) else None
    return Judgement(right, M, samples is not None, off, tuple(explanations), _power(features, M, errors), instead)


def _same(features: Features, G: Sequence[Array]) -> list[Mistake]:
    """Return the deterministic mistakes that give this G."""
    mistakes = [CATALOGUE[name] for name in (
        "likeliest label in place of a sample", "labels in place of the model's targets",
        "G from the gradient of the weights")]
    return [m for m in mistakes if error(features.reference.having(m)["G"], tuple(G)) <= 1e-5]


class _Counts(dict[str, Any]):
    """What scale factors read from a reference: N, C and M, without targets."""

    def __init__(self, problem: Problem, M: int) -> None:
        super().__init__(N=len(problem.x))
        self.problem = SimpleNamespace(sizes=problem.sizes, targets=range(M))


def _factors(problem: Problem, M: int) -> dict[str, float]:
    """Return the factor of each mistake of the catalogue that only scales a sampled G."""
    counts: Any = _Counts(problem, M)
    return {name: float(mistake.changes["G_sampled"](counts, lambda: 1.0)) for name, mistake in CATALOGUE.items()
            if mistake.group == "scale" and set(mistake.changes) <= set(FACTORS_G) and "G_sampled" in mistake.changes}


def _explained(features: Features, null: Null, theirs: Array, M: int, errors: Errors) -> list[Mistake]:
    """Return the scales and distributions with which these features fit well, if they are far off without."""
    if max(side / limit for side, limit in zip(null.sides(theirs)[:2], null.limits[:2], strict=True)) < CLEAR:
        return []
    found = [CATALOGUE[name] for name, c in _factors(features.problem, M).items() if c != 1 and null.is_of(theirs / c)]
    return found + [CATALOGUE[UNIFORM]] * _null(features, M, errors, uniform=True).is_of(theirs)
