"""The error budget: how what an optimizer multiplies by comes to differ from the exact damped Fisher, step by step.

    exact                    F + damping I
    layers apart             blockdiag(F_ii) + damping I                 cross-layer blocks dropped
    expectation factorized   blockdiag(A_i kron G_i) + damping I         E[Alpha kron Gamma] taken as a product
    sampled targets          the same with one draw of y for each case
    averaged and stale       the same with the factors in use, averaged over steps
    factored damping         (A + pi sqrt(damping) I) kron (G + ...)     what K-FAC solves with

For each: how far the matrix is from the exact one, and, more tellingly, what it does to the step: its angle to the
natural gradient, its length, and the decrease of the quadratic model that it gives when it is rescaled as K-FAC does.
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
    """One matrix against the exact damped Fisher.

    Attributes
    ----------
    name : str
        Which.
    error : float
        ``||C - (F + damping I)|| / ||F + damping I||`` in the Frobenius norm; NaN where it was not asked for.
    change : float
        The distance from the matrix before in the list, on the same scale; NaN for the first.
    angle : float
        Degrees between ``C^{-1} grad`` and the natural gradient.
    length : float
        The ratio of their lengths.
    decrease : float
        The decrease of M by the best multiple of the step, over that by the natural gradient, at most 1.
    """

    name: str
    error: float
    change: float
    angle: float
    length: float
    decrease: float


def judge(at: Point, y: Any, damping: float, matrices: Iterable[tuple[str, Curvature]],
          dense: bool = True) -> list[Judgement]:
    """Judge matrices by their distance from ``F + damping I`` and by the steps that they give.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    y : (N,) or (N, C) array
        The labels, of which the gradient is taken.
    damping : float
        lambda + eta in the exact matrix and in the quadratic model, above 0.
    matrices : iterable of (name, Curvature)
        What to judge; one at a time is held where they come from a generator.
    dense : bool
        Whether to form the matrices for their Frobenius norms.

    Returns
    -------
    list of Judgement
        One for each, in order.

    Raises
    ------
    ValueError
        For bad labels, a damping at which the exact Fisher is singular, or a matrix too large to form.
    """
    grad = at.gradient(y)
    if not any(D.any() for D in grad):
        raise ValueError("y must give a gradient that is not zero: there is no step to judge")
    exact = curvature.Exact(at, damping)
    F = exact.dense() if dense else None
    natural = exact.solve(grad)
    best = _decrease(at, grad, natural, damping)
    found: list[Judgement] = []
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
        found.append(Judgement(name, error, change, _angle(step, natural),
                               params.norm(step) / params.norm(natural), _decrease(at, grad, step, damping) / best))
    return found


def error_budget(at: Point, y: Any, damping: float, targets: Any, average: Factors | None = None,
                 gamma: float | None = None) -> list[Judgement]:
    """Return the error budget of K-FAC at a point.

    Parameters
    ----------
    at : Point
        Point of evaluation; the batch of the step.
    y : (N,) or (N, C) array
        Its labels.
    damping : float
        lambda + eta: of the exact matrix, of the quadratic model and of all steps but the last; above 0.
    targets : (N,) or (N, C) array
        One draw of targets, from ``at.sample``.
    average : Factors, optional
        The factors that an optimizer has in use, averaged and perhaps stale; those of `targets` unless told.
    gamma : float, optional
        The strength of the factored damping; sqrt(damping) unless told.

    Returns
    -------
    list of six Judgement
        In the order of this module's table, from exact to what K-FAC solves with.

    Raises
    ------
    ValueError
        For bad labels or targets, factors of another network, or matrices too large to form.
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
