"""Draw what G of M sampled targets per example can be.

G of M samples is ``(1/(N M)) sum g g^T`` with targets drawn from the model. Its features are the squares ``u^T G u``
along fixed directions u of each layer. With ``u^T g = b^T dz``, where dz is the gradient at the output, they are means
of ``(b^T dz)^2``, and are drawn exactly:

* Labels, and a few bits: only how often each target occurs matters, and those counts are drawn. So M samples cost
  little more than one, and a label that has one chance in a million occurs as often as it should.
* Gaussian: only the second moment of the M vectors dz matters. Bartlett's decomposition draws it from C + 1 vectors.
* Many bits: M vectors are drawn.

Where no single target matters (`SINGLE`), the features are drawn from the normal distribution with their covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..checks import Array
from ..likelihoods import MAX_BINARY_OUTPUTS, Bernoulli, Categorical, Gaussian
from .checks import ProblemError
from .graph import Reference
from .mistakes import CATALOGUE
from .problem import Problem

#: The numbers of draws; large problems get half of the second.
WARM_UP, DRAWS = 1000, 5999
#: Twice the relative errors of G that are no evidence, of values printed with few digits or in half precision and of
#: others, and the errors of dz (single precision).
PRINTED, PRECISE, COMPUTED = 1e-3, 1e-5, 1e-6
#: Sums are drawn as normal if no target, however unlikely, moves them by more standard deviations than this; for a
#: Gaussian, if their skewness is at most sqrt(8) times `SKEW`.
SINGLE, SKEW = 0.1, 0.03
#: The name of the distribution of targets that ignores the model.
UNIFORM = "targets from a uniform distribution"
_CHUNK = 2**22
#: Draws of more random numbers than this are halved, or take minutes and are refused.
_LARGE, _MOST = 10**7, 10**9
#: The targets of so many bits are always enumerated.
_FEW_BITS = 6

#: Twice the relative and the absolute error of the values of G.
Errors = tuple[float, float]
Draw = Callable[[np.random.Generator, int], Array]


class Features:
    """The features of G of a problem, and their draws; `layer` holds the layer of each."""

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

    def of(self, G: Sequence[Array]) -> Array:
        """Return the features (K,) of G."""
        squares = [((u @ S) * u).sum(axis=1) for S, u in zip(G, self.directions, strict=True)]
        return np.clip(np.concatenate(squares), -1e100, 1e100)

    def center(self, errors: Errors, uniform: bool = False) -> tuple[Array, Array]:
        """Return the features of the exact expectation, and the errors of features that are no evidence.

        `errors` are those of the values of G. The targets are those of the model or, if `uniform`, those of the mistake
        `UNIFORM`.
        """
        G = (self.reference.having(CATALOGUE[UNIFORM]) if uniform else self.reference)["G"]
        mean, size = self.of(G), np.square(np.abs(self.b).sum(axis=1)).mean(axis=0)
        relative, absolute = errors
        printed = np.concatenate([((np.abs(u) @ (relative * np.abs(S) + absolute)) * np.abs(u)).sum(axis=1)
                                  for S, u in zip(G, self.directions, strict=True)])
        return mean, printed + 2 * COMPUTED * np.sqrt(mean * size) + COMPUTED**2 * size + 1e-300

    def draws(self, M: int, errors: Errors, uniform: bool = False) -> tuple[Array, Array]:
        """Return `WARM_UP` and `DRAWS` independent features of G of M samples."""
        draw, numbers = self._drawing(M, errors, uniform)
        draws = DRAWS if DRAWS * numbers <= _LARGE else DRAWS // 2
        if draws * numbers > _MOST:
            raise ProblemError(f"G_sampled: {M:,} samples for each of {len(self.at):,} examples are too many to "
                               "simulate; give the targets that were sampled, or fewer examples")
        rng = np.random.default_rng((2, M))
        step = max(1, _CHUNK // numbers)
        warm_up, rest = (np.concatenate([draw(rng, min(step, n - i)) for i in range(0, n, step)])
                         for n in (WARM_UP, draws))
        return warm_up, rest

    def _drawing(self, M: int, errors: Errors, uniform: bool) -> tuple[Draw, int]:
        """Return a function that draws features of M samples, and how many numbers it needs for each draw."""
        likelihood, z, b = self.problem.model.likelihood, self.at.z, self.b
        N, C = z.shape
        if isinstance(likelihood, Categorical) or (isinstance(likelihood, Bernoulli) and (
                C <= _FEW_BITS or (C <= MAX_BINARY_OUTPUTS and M > 2**C / C and N * 2**C * b.shape[2] <= 2 * _CHUNK))):
            targets, p = likelihood.outcomes(z)
            squares = np.square(likelihood.gradient(z, targets).swapaxes(0, 1) @ b)             # (N, O, K)
            p = np.full((N, len(p)), 1 / len(p)) if uniform else p.T
            return _counting(M, p.astype(float), squares / (N * M), self.center(errors, uniform)[1])
        vectors: Draw
        if isinstance(likelihood, Gaussian):
            v = likelihood.variance
            mean, deviation = (z / v, 1 / v) if uniform else (0 * z, 1 / math.sqrt(v))
            sizes = np.square(b).sum(axis=1)
            if np.max((sizes**3).sum(axis=0) / (sizes**2).sum(axis=0)**1.5) <= SKEW * math.sqrt(M):
                return _limit(*_moments(M, mean, deviation, b)), 1
            columns = min(M, C + 1)
            vectors = lambda rng, r: _normal(rng, r, M, mean, deviation)  # noqa: E731
        else:
            at, columns = 0 * z if uniform else z, M
            vectors = lambda rng, r: likelihood.gradient(z, likelihood.sample(at, rng, r * M)).swapaxes(0, 1)  # noqa: E731

        def draw(rng: np.random.Generator, r: int) -> Array:
            """Draw the features of r matrices G."""
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
        """Draw how often each target occurs among M, r times."""
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


def errors_of(G: Sequence[Array]) -> Errors:
    """Return twice the errors that the values of G may have, from their digits."""
    values = np.concatenate([np.ravel(S)[:1000] for S in G]).astype(float)
    if np.array_equal(values.astype(np.float16), values):
        return PRINTED, 2.0**-24
    if not all(float(f"{v:.8g}") == v for v in values):
        return PRECISE, 0.0
    decimals = next((d for d in range(16) if np.array_equal(np.round(values, d), values)), None)
    return PRINTED, 0.0 if decimals is None else 10.0**-decimals
