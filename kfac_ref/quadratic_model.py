"""The quadratic model that chooses the length of a step and judges the step (paper: sec. 6.4, 6.5 and 7).

    M(delta) = h + grad^T delta + 1/2 delta^T (F + damping I) delta,       damping = lambda + eta,  F exact

On the span of a few directions v_k, delta = sum_k c_k v_k, it is a small quadratic in c::

    M(delta) - M(0) = b^T c + 1/2 c^T B c,      b_k = grad^T v_k,      B_kl = v_k^T F v_l + damping v_k^T v_l

With the one direction Delta its minimum is the paper's alpha* (sec. 6.4); with Delta and the previous step delta_0 it
is the paper's (alpha, mu) (sec. 7). At the minimum ``M(delta) - M(0) = 1/2 grad^T delta``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checks import Array, Direction
from .params import inner


@dataclass(frozen=True, eq=False)
class SmallModel:
    """M - M(0) on the span of K directions v_k."""

    Q: Array            #: ``v_k^T F v_l``, (K, K), as returned by `fisher_gram`.
    inner: Array        #: ``v_k^T v_l``, (K, K).
    slope: Array        #: ``grad^T v_k``, (K,).
    damping: float      #: lambda + eta.
    #: The relative accuracy of these numbers: eps of the weights' dtype.
    rounding: float = float(np.finfo(np.float64).eps)

    @property
    def B(self) -> Array:
        """The matrix ``Q + damping inner``, (K, K)."""
        return self.Q + self.damping * self.inner

    def value(self, c: Sequence[float] | Array) -> float:
        """Return ``M(sum_k c_k v_k) - M(0)`` for K coefficients."""
        c = np.asarray(c)
        return float(self.slope @ c + c @ self.B @ c / 2)

    def length(self, c: Sequence[float]) -> float:
        """Return the Euclidean norm of ``sum_k c_k v_k`` for K coefficients."""
        used = np.array(c)
        return math.sqrt(max(float(used @ self.inner @ used), 0.0))

    def minimum(self) -> tuple[tuple[float, ...], float]:
        """Return the best coefficients and the change of M that they give, ``M - M(0) <= 0`` (sec. 6.4 and 7).

        A direction that is zero, or that lies in the span of the previous ones up to rounding, is dropped: its
        coefficient is 0.
        """
        # Scaled to a unit diagonal: the lengths of the two directions of a step can differ by orders of magnitude.
        B = self.B
        length = np.sqrt(np.maximum(np.diag(B), 0))
        divisor = np.where(length > 0, length, 1)
        unit = B / np.outer(divisor, divisor)
        chosen = _independent(unit.tolist(), (length > 0).tolist(), 100 * self.rounding)
        c = np.zeros(len(B))
        if chosen:
            slope = self.slope / divisor
            c[chosen] = -np.linalg.solve(unit[np.ix_(chosen, chosen)], slope[chosen]) / length[chosen]
        return tuple(float(ck) for ck in c), self.value(c)


def _independent(unit: list[list[float]], nonzero: list[bool], tolerance: float) -> list[int]:
    """Return the independent rows of a matrix with unit diagonal: Cholesky, row by row, skipping zero pivots."""
    chosen: list[int] = []
    rows: list[list[float]] = []
    for k, entries in enumerate(unit):
        row: list[float] = []
        for j, other in zip(chosen, rows, strict=True):
            row.append((entries[j] - sum(a * b for a, b in zip(row, other, strict=False))) / other[-1])
        pivot = 1 - sum(a * a for a in row)
        if nonzero[k] and pivot > tolerance:
            chosen.append(k)
            rows.append([*row, math.sqrt(pivot)])
    return chosen


def kl_clip(step: Direction, gradient: Direction, kappa: float, learning_rate: float) -> float:
    """Return nu, which scales a step to a bounded change of the prediction: ``min(1, sqrt(kappa / (lr^2 |s|)))``.

    Here ``s = step . gradient`` and lr is the learning rate. For ``step = -F^{-1} gradient``, ``lr^2 |s|`` is twice the
    KL divergence caused by ``lr step``, to second order. A step of zero has nu = 1.

    Source: Ba, Grosse & Martens 2017.

    Examples
    --------
    >>> import numpy as np
    >>> kl_clip([np.array([[-2.0]])], [np.array([[8.0]])], kappa=4.0, learning_rate=1.0)
    0.5
    """
    divergence = learning_rate**2 * abs(inner(step, gradient))
    return 1.0 if divergence == 0 else min(1.0, math.sqrt(kappa / divergence))


def reduction_ratio(actual: float, predicted: float) -> float:
    """Return rho, the actual change of h over the predicted change of M (sec. 6.5); 1 where both are zero.

    `actual` is ``h(theta + delta) - h(theta)`` on the batch, and `predicted` is ``M(delta) - M(0)``. rho is NaN where
    the actual change is not finite, or where the predicted change is zero and the actual one is not.

    Examples
    --------
    >>> reduction_ratio(-0.25, -0.5)
    0.5
    """
    if not math.isfinite(actual):
        return math.nan
    if predicted == 0:
        return 1.0 if actual == 0 else math.nan
    return actual / predicted


def ratio_to_slope(curvature: float, slope: float) -> float:
    """Return ``2 (1 - curvature / |slope|)``: rho, computed from the two parts of a change of h.

    It equals `reduction_ratio` of the two changes if the model predicts half of a negative slope. It is 1 if the
    curvature is half of the slope, as at the end of a step of the right length; 2 without curvature, 0 if h ends where
    it began, NaN for a slope of 0.

    Parameters
    ----------
    curvature : float
        ``h(theta + delta) - h(theta) - grad h^T delta``, or a sum of such numbers.
    slope : float
        ``grad h^T delta``, or the sum of these. Where noise makes it positive, its size is still the scale against
        which the curvature is judged.

    Examples
    --------
    >>> ratio_to_slope(0.75, -1.0), reduction_ratio(-0.25, -0.5)
    (0.5, 0.5)
    """
    return 2 * (1 - curvature / abs(slope)) if slope else math.nan
