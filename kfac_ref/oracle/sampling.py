"""Test whether a G whose sampled targets are unknown can come from M samples per example.

G of M samples is ``(1/(N M)) sum g g^T`` with targets drawn from the model. The features of a G are the squares
``u^T G u`` along fixed directions u of each layer. Their distribution is drawn, not approximated: all that matters is
how often each target occurs, so M samples cost little more than one, and a label that has one chance in a million
occurs as often as it should.

* The first draws, `WARM_UP` of them, give the covariance of the features. With it, the deviations from the exact G are
  turned into scores: the deviation in scale, the deviation of each layer's mean, and the sum of squares of all
  independent deviations.
* The remaining draws give the limits. G is rejected if one of its scores is higher than all of theirs, if one is lower,
  or if its sum of squares is smaller: its samples are too good, those of more than M.

A right G is one more such draw. So each of the three happens with probability 1/(draws + 1), whatever the distribution.

A number of samples that was inferred from the same values proves nothing: any G far from the exact one looks like one
sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..checks import Array
from ..likelihoods import MAX_BINARY_OUTPUTS, Bernoulli, Categorical, Gaussian
from .checks import ProblemError
from .graph import Reference
from .mistakes import CATALOGUE, FACTORS_G, Mistake, error
from .problem import Problem

WARM_UP, DRAWS = 1000, 5999
#: How often right values are rejected, at most: 3 / (draws + 1). Large problems get half of the draws.
RATE = 1e-3
_LARGE = 5 * 10**7
#: Relative errors of G (values printed with four digits) and errors of the gradients at the output (single precision)
#: that are no evidence.
PRINTED, COMPUTED = 5e-4, 1e-6
#: A scale explains a G only if the G is so many times further off without it than any draw, and if a scale so many
#: times larger or smaller does not fit.
CLEAR, SHARP = 1.5, 1.4
#: An inferred number of samples is at most this.
MOST_SAMPLES = 10**6
_UNIFORM = "targets from a uniform distribution"
_CHUNK = 2**22
#: More random numbers than this take minutes.
_MOST_NUMBERS = 2 * 10**9
#: Many draws are taken as normal if no possible target moves the features by more than this standard deviation.
SINGLE = 0.05
#: The targets of so many bits are always enumerated.
_FEW_BITS = 6

Draw = Callable[[np.random.Generator, int], Array]


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


class Features:
    """The features of a G, ``u^T G u`` along fixed directions of each layer, and how an output gradient makes them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.reference = Reference(problem)
        self.at = self.reference["at"]
        sizes = problem.sizes[1:]
        rng = np.random.default_rng(1)
        each = max(4, min(32, 96 // len(sizes)))
        self.directions = [rng.standard_normal((min(each, m * (m + 1) // 2), m)) for m in sizes]
        self.layer = np.repeat(np.arange(len(sizes)), [len(u) for u in self.directions])
        N, C = self.at.z.shape
        step = max(1, _CHUNK // (N * max(sizes)))
        # u^T g = b^T dz, where g is the gradient of a layer that belongs to dz
        self.b = np.concatenate([np.concatenate([g @ u.T for g, u in zip(self.at.backward(np.repeat(
            np.eye(C)[i:i + step, None], N, axis=1)), self.directions, strict=True)], axis=2)
            for i in range(0, C, step)]).swapaxes(0, 1)                                                 # (N, C, K)
        self._nulls: dict[tuple[int, bool], Null] = {}
        self._power: dict[int, dict[str, float]] = {}

    def of(self, G: Sequence[Array]) -> Array:
        """Return the features (K,) of G."""
        squares = [((u @ S) * u).sum(axis=1) for S, u in zip(G, self.directions, strict=True)]
        return np.clip(np.concatenate(squares), -1e100, 1e100)

    def null(self, M: int, uniform: bool = False) -> Null:
        """Return what M samples can give, of the model's own prediction or of one that ignores it."""
        if (M, uniform) not in self._nulls:
            reference = self.reference.having(CATALOGUE[_UNIFORM]) if uniform else self.reference
            G = reference["G"]
            printed = np.concatenate([(np.abs(u) @ np.abs(S) * np.abs(u)).sum(axis=1)
                                      for S, u in zip(G, self.directions, strict=True)])
            mean, size = self.of(G), np.square(np.abs(self.b).sum(axis=1)).mean(axis=0)
            noise = PRINTED * printed + 2 * COMPUTED * np.sqrt(mean * size) + COMPUTED**2 * size + 1e-300
            self._nulls[M, uniform] = Null(mean, noise, self.layer, *self._draws(M, uniform, noise))
        return self._nulls[M, uniform]

    def power(self, M: int) -> dict[str, float]:
        """Return how often some mistakes would be detected in G of M samples."""
        if M not in self._power:
            null = self.null(M)
            draws = null.draws[:999]
            asked = {name: c * draws for name, c in {
                "G twice too large": 2.0, "G half too small": 0.5, "G summed over the examples": float(len(self.at)),
                "G averaged over the outputs": 1 / self.problem.sizes[-1]}.items() if c != 1}
            asked["labels in place of the model's targets"] = self.of(self.reference["G_empirical"])
            asked["ten times fewer samples"] = null.spread(draws, 10)
            asked["ten times more samples"] = null.spread(draws, 0.1)
            self._power[M] = {name: float(np.mean(null.off(values) > 1)) for name, values in asked.items()}
        return self._power[M]

    def _draws(self, M: int, uniform: bool, noise: Array) -> tuple[Array, Array]:
        draw, numbers = self._drawing(M, uniform, noise)
        draws = DRAWS if DRAWS * numbers <= _LARGE else DRAWS // 2
        if draws * numbers > _MOST_NUMBERS:
            raise ProblemError(f"G_sampled: {M:,} samples for each of {len(self.at):,} examples are too many to "
                               "simulate; give the targets that were sampled, or fewer examples")
        rng = np.random.default_rng((2, M))
        step = max(1, _CHUNK // numbers)
        warm_up, rest = (np.concatenate([draw(rng, min(step, n - i)) for i in range(0, n, step)])
                         for n in (WARM_UP, draws))
        return warm_up, rest

    def _drawing(self, M: int, uniform: bool, noise: Array) -> tuple[Draw, int]:
        """Return a function that draws features of M samples, and how many numbers it needs for each draw."""
        likelihood, z, b = self.problem.model.likelihood, self.at.z, self.b
        N, C = z.shape
        if isinstance(likelihood, Categorical) or (isinstance(likelihood, Bernoulli) and (
                C <= _FEW_BITS or (C <= MAX_BINARY_OUTPUTS and M > 2**C / C and N * 2**C * b.shape[2] <= 2 * _CHUNK))):
            targets, p = likelihood.outcomes(z)
            squares = np.square(likelihood.gradient(z, targets).swapaxes(0, 1) @ b)             # (N, O, K)
            return _counting(M, np.full((N, len(p)), 1 / len(p)) if uniform else p.T, squares / (N * M), noise)
        vectors: Draw
        if isinstance(likelihood, Gaussian):
            v = likelihood.variance
            mean, deviation = (z / v, 1 / v) if uniform else (0 * z, 1 / math.sqrt(v))
            sizes = np.square(b).sum(axis=1)
            if np.max((sizes**3).sum(axis=0) / (sizes**2).sum(axis=0)**1.5) <= 0.01 * math.sqrt(M):
                return _limit(*_moments(M, mean, deviation, b)), 1
            columns = min(M, C + 1)
            vectors = lambda rng, r: _normal(rng, r, M, mean, deviation)  # noqa: E731
        else:
            at, columns = 0 * z if uniform else z, M
            vectors = lambda rng, r: likelihood.gradient(z, likelihood.sample(at, rng, r * M)).swapaxes(0, 1)  # noqa: E731

        def draw(rng: np.random.Generator, r: int) -> Array:
            x = np.ascontiguousarray(vectors(rng, r)) @ b                   # (N, r columns, K)
            return np.einsum("nrk,nrk->rk", x, x).reshape(r, columns, -1).sum(axis=1) / (N * M)
        return draw, N * columns * max(C, b.shape[2])


def _counting(M: int, p: Array, squares: Array, noise: Array) -> tuple[Draw, int]:
    """Return a function that draws how often each target occurs, and how many numbers it needs for each draw.

    p is (N, O); squares are (N, O, K), what one occurrence adds to the features.
    """
    mean = np.einsum("no,nok->nk", p, squares)
    off = (squares - mean[:, None]).reshape(p.size, -1)
    cov = (M * p.reshape(-1, 1) * off).T @ off
    if M > 8 and _largest(off, cov + np.diag(noise**2)) <= SINGLE:
        return _limit(M * mean.sum(axis=0), cov), 1
    order = np.argsort(p, axis=1)           # the likeliest last: then no small probability is a difference
    p = np.take_along_axis(p, order, axis=1)
    squares = np.take_along_axis(squares, order[..., None], axis=1).reshape(p.size, -1)
    edges = np.cumsum(p, axis=1)
    edges[:, -1] = 1

    def counts(rng: np.random.Generator, r: int) -> Any:
        if M > 8:
            return rng.multinomial(M, p, (r, len(p)))
        below = sum((rng.random((r, len(p), 1)) < edges).astype(float) for _ in range(M))
        return np.diff(below, axis=2, prepend=0)
    return lambda rng, r: counts(rng, r).reshape(r, -1) @ squares, p.size


def _normal(rng: np.random.Generator, r: int, M: int, mean: Array, deviation: float) -> Array:
    """Return vectors with the second moments of M normal ones, (N, r columns, C), by Bartlett's decomposition."""
    N, C = mean.shape
    if M <= C:
        return mean[:, None] + deviation * rng.standard_normal((N, r * M, C))
    L = np.zeros((N, r, C + 1, C))
    L[:, :, 1:] = np.triu(rng.standard_normal((N, r, C, C)), 1)
    np.einsum("nrcc->nrc", L[:, :, 1:])[:] = np.sqrt(rng.chisquare(M - 1 - np.arange(C), (N, r, C)))
    L[:, :, 0] = math.sqrt(M) / deviation * mean[:, None] + rng.standard_normal((N, r, C))
    return deviation * L.reshape(N, r * (C + 1), C)


def _moments(M: int, mean: Array, deviation: float, b: Array) -> tuple[Array, Array]:
    """Return the mean and the covariance of the features of M normal vectors."""
    middle = np.einsum("nc,nck->nk", mean, b)
    cov = np.zeros((b.shape[2],) * 2)
    for x, at in zip(b, middle, strict=True):
        inner = deviation**2 * x.T @ x
        cov += 2 * inner**2 + 4 * np.outer(at, at) * inner
    return np.mean(middle**2 + deviation**2 * np.square(b).sum(axis=1), axis=0), cov / (len(b)**2 * M)


def _limit(mean: Array, cov: Array) -> Draw:
    """Return a function that draws from the normal distribution, the limit of many draws none of which matters."""
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0))
    return lambda rng, r: mean + rng.standard_normal((r, len(root))) @ root.T


def _largest(off: Array, S: Array) -> float:
    """Return the largest size of single contributions (R, K) in the metric of S."""
    spread = np.sqrt(np.diag(S))
    off = off / spread
    return float(np.sqrt(np.max(np.sum(off * np.linalg.solve(S / np.outer(spread, spread), off.T).T, axis=1))))


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
        self.limits = [max(1.01 * float(side[-1]), least) for side, least in zip(self._sides, (1, 1, 0), strict=True)]

    def square(self, features: Array) -> Array:
        """Return the sum of squared independent deviations; its mean is `freedom`."""
        return np.sum(((features - self.mean) @ self.whiten)**2, axis=-1)

    def scores(self, features: Array) -> Array:
        """Return the deviations in scale, of the layers' means, and of the sum of squares, (..., 2 + L)."""
        square = np.sqrt(2 * self.square(features)) - math.sqrt(2 * self.freedom)
        return np.concatenate([(features - self.mean) @ self.parts, square[..., None]], axis=-1)

    def sides(self, features: Array) -> tuple[Array, Array, Array]:
        """Return the highest and minus the lowest score, in units of what is common, and how close to the mean."""
        scores = self.scores(features)
        close = self.freedom / np.maximum(self.square(features), 1e-12 * self.freedom + 1e-300)
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


#: Features are kept with their draws, for several checks of one problem.
_features_of = functools.lru_cache(maxsize=2)(Features)


def judge(problem: Problem, G: Sequence[Array], samples: int | None = None) -> Judgement:
    """Test whether G of M = `samples` targets per example fits the model's own prediction.

    `samples` is by default the number of the problem's targets, which are ignored otherwise; without any, M is inferred
    from the spread. Raises a ProblemError if the simulation would take minutes.
    """
    if samples is None and problem.targets is not None:
        samples = len(problem.targets)
    features = _features_of(problem)
    theirs = features.of(G)
    M = samples or (features.null(1).samples(theirs, 1) if np.isfinite(theirs).all() else 1)
    null = features.null(M)
    if not np.isfinite(theirs).all():
        return Judgement(False, M, samples is not None, math.inf, (), {})
    off = float(null.off(theirs))
    right = off <= 1
    explanations, instead = [], None
    if not right or samples is None:                        # an inferred M says little
        explanations = _same(features, G)
    if not right and samples is not None and not explanations:
        explanations = _explained(features, null, theirs, samples)
        other = int(float(f"{null.samples(theirs, M):.2g}"))
        instead = other if other != M and null.fits(null.spread(theirs, other / M)) else None
    return Judgement(right, M, samples is not None, off, tuple(explanations), features.power(M), instead)


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


def _explained(features: Features, null: Null, theirs: Array, M: int) -> list[Mistake]:
    """Return the scales and distributions with which these features fit well, if they are far off without."""
    if max(side / limit for side, limit in zip(null.sides(theirs)[:2], null.limits[:2], strict=True)) < CLEAR:
        return []
    found = [CATALOGUE[name] for name, c in _factors(features.problem, M).items() if c != 1 and null.is_of(theirs / c)]
    return found + [CATALOGUE[_UNIFORM]] * features.null(M, uniform=True).is_of(theirs)
