"""The error budget: how K-FAC's curvature departs from the exact damped Fisher, one approximation after the other.

    exact                    F + damping I
    layers apart             blockdiag(F_ii) + damping I                 cross-layer blocks dropped
    expectation factorized   blockdiag(A_i ⊗ G_i) + damping I            E[Alpha ⊗ Gamma] replaced by a product of means
    sampled targets          the same with one draw of y per example
    averaged and stale       the same with the factors in use, averaged over steps
    factored damping         (A + pi sqrt(damping) I) ⊗ (G + ...)        what K-FAC solves with

Each matrix is judged by its distance from the exact one and, more tellingly, by its step: the angle to the natural
gradient, the length, and the decrease of the quadratic model if the step is rescaled as K-FAC does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import curvature, params
from ..checks import Array
from ..curvature import Curvature
from ..expectations import sampled
from ..factors import Factors, kronecker_factors
from ..fisher import fisher_gram
from ..model import Point
from ..quadratic_model import SmallModel


@dataclass(frozen=True)
class Judgement:
    """One matrix against the exact damped Fisher."""

    name: str
    error: float     #: ``||C - (F + damping I)|| / ||F + damping I||`` in the Frobenius norm; NaN if not ``dense``.
    change: float    #: The distance from the previous matrix in the list, on the same scale; NaN for the first.
    angle: float     #: Degrees between ``C^{-1} grad`` and the natural gradient.
    length: float    #: The ratio of their lengths.
    #: The decrease of M by the best multiple of the step, over that by the natural gradient, at most 1.
    decrease: float


def judge(at: Point, y: Any, damping: float, matrices: Iterable[tuple[str, Curvature]],
          dense: bool = True) -> list[Judgement]:
    """Judge named matrices by their distance from ``F + damping I`` and by their steps for the labels y.

    `damping`, above 0, is lambda + eta, also in the quadratic model. If `matrices` is a generator, only one structure
    at a time is in memory. `dense` forms the matrices, (P, P), for `error` and `change`.
    """
    grad = at.gradient(y)
    if not any(D.any() for D in grad):
        raise ValueError("y must give a gradient that is not zero: there is no step to judge")
    exact = curvature.Exact(at, damping)
    F = exact.dense() if dense else None
    natural = exact.solve(grad)
    best = _decrease(at, grad, natural, damping)
    judged: list[Judgement] = []
    before: Array | None = None
    for name, C in matrices:
        step = C.solve(grad)
        error = change = math.nan
        if F is not None:
            now = C.dense()
            scale = float(np.linalg.norm(F))
            error = float(np.linalg.norm(now - F)) / scale
            if before is not None:
                change = float(np.linalg.norm(now - before)) / scale
            before = now
        judged.append(Judgement(name, error, change, _angle(step, natural),
                               params.norm(step) / params.norm(natural), _decrease(at, grad, step, damping) / best))
    return judged


def error_budget(at: Point, y: Any, damping: float, targets: Any, average: Factors | None = None,
                 gamma: float | None = None) -> list[Judgement]:
    """Return the error budget of K-FAC at a point: six judgements in the order of this module's table.

    `damping`, above 0, is lambda + eta; `targets` are one draw from ``at.sample``; `average` are the factors that an
    optimizer uses, averaged and perhaps stale (default: those of `targets`); `gamma` is the strength of the factored
    damping in the last row (default: sqrt(damping)).
    """
    exact, drawn = kronecker_factors(at), kronecker_factors(at, sampled(targets))
    in_use = drawn if average is None else average
    if in_use.shapes != exact.shapes:
        raise ValueError(f"average must hold factors of the shapes {exact.shapes}, got {in_use.shapes}")
    return judge(at, y, damping, [
        ("exact", curvature.Exact(at, damping)),
        ("layers apart", curvature.ExactBlockDiagonal(at, damping)),
        ("expectation factorized", curvature.EigenDamped(exact, damping)),
        ("sampled targets", curvature.EigenDamped(drawn, damping)),
        ("averaged and stale", curvature.EigenDamped(in_use, damping)),
        ("factored damping", curvature.BlockDiagonal(in_use, damping if gamma is None else gamma**2)),
    ])


def _angle(U: Sequence[Array], V: Sequence[Array]) -> float:
    """Return the degrees between two directions; half-angles keep the digits that an arc cosine loses near 0."""
    u, v = params.scale(1 / params.norm(U), U), params.scale(1 / params.norm(V), V)
    apart, together = params.norm(params.add(u, params.scale(-1.0, v))), params.norm(params.add(u, v))
    return math.degrees(2 * math.atan2(apart, together))


def _decrease(at: Point, grad: Sequence[Array], step: Sequence[Array], damping: float) -> float:
    """Return the decrease M(0) - M(alpha step) at the best alpha."""
    model = SmallModel(fisher_gram(at, [step]), params.gram([step]), np.array([params.inner(grad, step)]), damping,
                       float(np.finfo(at.z.dtype).eps))
    return -model.minimum()[1]
