"""Test a G whose sampled targets are unknown, by simulation from the problem.

A G of M samples is ``(1/(N M)) sum g g^T`` with targets drawn from the model, so its distribution can be simulated. The
features per layer are the trace and the squares ``u^T G u`` along a few fixed directions of signs, in units of their
simulated spread; the statistic is the largest of their deviations and of their root mean square, over all layers. A
value is rejected if its statistic exceeds that of every simulated draw, so a right one is rejected at a rate below
`RATE`, whatever the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..checks import Array
from ..likelihoods import Bernoulli, Categorical
from .checks import ProblemError
from .graph import Reference
from .mistakes import CATALOGUE, FACTORS_G, Mistake, error
from .problem import Problem

#: The family-wise rate at which right values may be rejected: one statistic against the largest of 1 / RATE - 1 others
#: would have this rate; DRAWS is larger.
RATE = 1e-3
DRAWS = 9999
_DIRECTIONS = 32
_CHUNK = 2**22
#: Averages of more draws than this are assumed to shrink as the root of their number.
_MOST = 50


@dataclass(frozen=True)
class Judgement:
    """The result of the test of a sampled G."""

    right: bool             # whether the values are consistent with M samples
    samples: int            # M
    stated: bool            # whether M was given; else it is inferred from the spread
    statistic: float
    limit: float            # the largest simulated statistic
    explanations: tuple[Mistake, ...]       # scales and distributions that would make the values consistent
    power: dict[str, float]                 # the share of simulated draws in which a mistake would be detected


class Simulation:
    """Features of `draws` simulated G, each of one sample of the model's own prediction per example."""

    def __init__(self, problem: Problem, draws: int = DRAWS) -> None:
        self.problem, self.draws = problem, draws
        reference = Reference(problem)
        self.exact = reference["G"]
        rng = np.random.default_rng(0)
        self.signs = [rng.choice([-1.0, 1.0], (_DIRECTIONS, len(G))) for G in self.exact]
        self.at = reference["at"]
        self.pool = self.features_of_draws(lambda rng, n: self.at.sample(rng, n), draws, 1)
        self.mean = self.features(self.exact)
        # Some features do not vary: g of the last layer of a categorical sums to 0.
        self.floor = 1e-9 * np.repeat([np.trace(G) for G in self.exact], 1 + _DIRECTIONS) + 1e-300
        self._null: dict[int, tuple[Array, float]] = {}

    def features(self, G: Sequence[Array]) -> Array:
        """Return the trace and the squares along the directions, layer by layer."""
        return np.concatenate([[np.trace(S), *((u @ S) * u).sum(axis=1)] for S, u in zip(G, self.signs, strict=True)])

    def features_of_draws(self, sample: Callable[[np.random.Generator, int], Any], draws: int, seed: int) -> Array:
        """Return the features of draws of one sample each, in bounded memory; `sample` draws n targets per example."""
        rng = np.random.default_rng(seed)
        N = len(self.at)
        chunk = max(1, _CHUNK // (N * max(self.problem.sizes)))
        found = []
        for start in range(0, draws, chunk):
            targets = sample(rng, min(chunk, draws - start))
            g = self.at.backward(self.problem.model.likelihood.gradient(self.at.z, targets))
            found.append(np.concatenate([part for gi, u in zip(g, self.signs, strict=True) for part in (
                np.square(gi).sum(axis=2, keepdims=True).mean(axis=1), np.square(gi @ u.T).mean(axis=1))], axis=1))
        return np.concatenate(found)

    def of(self, M: int, pool: Array | None = None) -> Array:
        """Return the features of draws of M samples, averages of single draws (default: those of the model)."""
        pool = self.pool if pool is None else pool
        if M == 1:
            return pool
        rng = np.random.default_rng((2, M))
        some = min(M, _MOST)
        found = sum(pool[rng.permutation(len(pool))] for _ in range(some)) / some
        middle = pool.mean(axis=0)
        return middle + (found - middle) * math.sqrt(some / M)

    def statistic(self, features: Array, M: int) -> Array:
        """Return the statistic of features (F,) or (R, F) if they come from M samples."""
        return self._of(features, self._nulls(M)[0])

    def _of(self, features: Array, spread: Array) -> Array:
        off = (features - self.mean) / spread
        parts = off.reshape(*off.shape[:-1], len(self.exact), 1 + _DIRECTIONS)
        whole = np.sqrt(np.mean(parts**2, axis=-1))
        return np.maximum(np.abs(parts[..., 0]).max(axis=-1), 2 * whole.max(axis=-1))

    def limit(self, M: int) -> float:
        """Return the largest statistic of the simulated draws of M samples."""
        return self._nulls(M)[1]

    def _nulls(self, M: int) -> tuple[Array, float]:
        if M not in self._null:
            draws = self.of(M)
            spread = np.maximum(draws.std(axis=0), self.floor)
            self._null[M] = spread, float(self._of(draws, spread).max()) * (1 + 1e-9)
        return self._null[M]

    def infer(self, features: Array) -> int:
        """Return the number of samples whose spread matches the distance of the features from the exact ones."""
        spread = self.pool.std(axis=0)
        free = spread > self.floor
        square = float(np.mean(((features - self.mean) / np.where(free, spread, 1))[free]**2)) if free.any() else 0.0
        return max(1, round(1 / max(square, 1e-6)))


def judge(problem: Problem, G: Sequence[Array], samples: int | None = None) -> Judgement:
    """Test whether G of M = `samples` targets per example (default: inferred) fits the model's own prediction.

    The targets of the problem are ignored. Raises a ProblemError if the simulation would take hours.
    """
    # A large network gets only as many draws as the rate needs.
    work = 2 * len(problem.x) * sum(W.size for W in problem.weights)
    draws = DRAWS if DRAWS * work < 1e11 else round(1 / RATE) - 1
    if draws * work > 1e13:
        raise ProblemError(f"G_sampled: {len(problem.x):,} examples are too many to simulate this network on; give the "
                           "targets that were sampled, or fewer examples")
    simulation = Simulation(problem, draws)
    features = simulation.features(G)
    if not np.isfinite(features).all():
        return Judgement(False, samples or 1, samples is not None, math.inf, simulation.limit(samples or 1), (), {})
    M = samples or simulation.infer(features)
    value, limit = float(simulation.statistic(features, M)), simulation.limit(M)
    right = value <= limit
    explanations: Sequence[Mistake] = ()
    if not right or (M == 1 and samples is None):           # such a result says little
        explanations = _same(problem, G) or (() if right else _explained(simulation, features, samples))
    return Judgement(right, M, samples is not None, value, limit, tuple(explanations), _power(simulation, M))


def _same(problem: Problem, G: Sequence[Array]) -> list[Mistake]:
    """Return the deterministic mistakes that give this G."""
    reference = Reference(problem)
    mistakes = [CATALOGUE[name] for name in (
        "likeliest label in place of a sample", "labels in place of the model's targets",
        "G from the gradient of the weights")]
    return [m for m in mistakes if error(reference.having(m)["G"], tuple(G)) <= 1e-5]


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


def _explained(simulation: Simulation, features: Array, samples: int | None) -> list[Mistake]:
    found = []
    problem = simulation.problem
    for name, c in _factors(problem, samples or 1).items():
        M = samples or simulation.infer(features / c)
        if abs(c - 1) > 1e-9 and simulation.statistic(features / c, M) <= simulation.limit(M):
            found.append(CATALOGUE[name])
    uniform = simulation.features_of_draws(_uniform(problem, simulation.at.z), 999, 3)
    M = samples or max(1, round(float(np.mean(uniform.var(axis=0) / np.maximum(
        (features - uniform.mean(axis=0))**2, 1e-300)))))
    draws = simulation.of(min(M, 999), uniform)
    spread = np.maximum(draws.std(axis=0), simulation.floor)
    off = np.abs((np.concatenate([draws, features[None]]) - draws.mean(axis=0)) / spread).max(axis=1)
    if off[-1] <= off[:-1].max():
        found.append(CATALOGUE["targets from a uniform distribution"])
    return found


def _uniform(problem: Problem, z: Array) -> Callable[[np.random.Generator, int], Any]:
    N, C = z.shape
    likelihood = problem.model.likelihood
    if isinstance(likelihood, Categorical):
        return lambda rng, n: rng.integers(0, C, (n, N))
    if isinstance(likelihood, Bernoulli):
        return lambda rng, n: rng.integers(0, 2, (n, N, C)).astype(float)
    return lambda rng, n: rng.standard_normal((n, N, C))


def _power(simulation: Simulation, M: int) -> dict[str, float]:
    """Return how often some mistakes would be detected in G of M samples."""
    draws, limit = simulation.of(M)[:999], simulation.limit(M)
    asked = {"G twice too large": 2.0, "G half too small": 0.5, "G summed over the examples": float(len(simulation.at)),
             "G averaged over the outputs": 1 / simulation.problem.sizes[-1]}
    found = {name: float(np.mean(simulation.statistic(c * draws, M) > limit)) for name, c in asked.items() if c != 1}
    labels = simulation.features(Reference(simulation.problem)["G_empirical"])
    found["labels in place of the model's targets"] = float(simulation.statistic(labels, M) > limit)
    return found
