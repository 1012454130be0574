"""Damping: how the factors are regularized, and how lambda and gamma adapt (paper: sec. 6).

Tikhonov damping adds ``(lambda + eta) I`` to the curvature. A Kronecker product plus a multiple of the identity is not
a Kronecker product, so the paper damps the two factors instead, each with a *square root* of the damping (sec. 6.3)::

    (A + pi sqrt(damping) I) ⊗ (G + sqrt(damping)/pi I)
        = A ⊗ G + damping I + pi sqrt(damping) I ⊗ G + sqrt(damping)/pi A ⊗ I

The first two terms are the exactly damped matrix; the other two are an error, and pi balances
them. With the trace norm::

    pi^2 = (tr A / dim A) / (tr G / dim G)

In the optimizer gamma takes the place of sqrt(lambda + eta) here (sec. 6.6), so ``damping = gamma^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .checks import Array

#: A rule for pi: a function of the two factors of a layer.
Balance: TypeAlias = Callable[[Array, Array], float]


def trace_pi(A: Array, G: Array) -> float:
    """Return ``sqrt((tr A / n) / (tr G / m))``, pi in the trace norm (sec. 6.3); 1 where that is not a positive number.

    Examples
    --------
    >>> import numpy as np
    >>> trace_pi(np.diag([8.0, 8.0]), np.diag([2.0]))
    2.0
    """
    return _ratio(np.trace(A) / len(A), np.trace(G) / len(G))


def frobenius_pi(A: Array, G: Array) -> float:
    """Return ``sqrt(||A ⊗ I|| / ||I ⊗ G||)`` in the Frobenius norm; 1 where that is not a positive number.

    The author's released code uses this norm; ``||A ⊗ I_m|| = sqrt(m) ||A||``. The general form is in sec. 6.3.
    """
    return _ratio(np.sqrt(len(G)) * np.linalg.norm(A), np.sqrt(len(A)) * np.linalg.norm(G))


def _ratio(a: float, g: float) -> float:
    # A layer that is dead on the whole batch has G = 0: then there is nothing to balance.
    return math.sqrt(float(a) / float(g)) if a > 0 and g > 0 else 1.0


def factored_tikhonov(A: Array, G: Array, damping: float, pi: float) -> tuple[Array, Array]:
    """Return ``A + pi sqrt(damping) I`` and ``G + sqrt(damping)/pi I`` as new arrays (sec. 6.3).

    `damping` is the number under the root: lambda + eta, or gamma^2.
    """
    root = math.sqrt(damping)
    return add_to_diagonal(A, pi * root), add_to_diagonal(G, root / pi)


def add_to_diagonal(S: Array, c: float) -> Array:
    """Return ``S + c I`` as a new array."""
    S = S.copy()
    np.einsum("ii->i", S)[:] += c
    return S


def next_lambda(lambda_: float, rho: float, omega1: float, floor: float = 0.0) -> float:
    """Return lambda after measuring rho: ``omega1 lambda`` for rho > 3/4, ``lambda / omega1`` for rho < 1/4 (sec. 6.5).

    Parameters
    ----------
    rho : float
        The reduction ratio: the actual decrease of h over the one predicted by the quadratic model. NaN, which means
        that h is not finite, counts as bad.
    omega1 : float
        The factor, below 1; the paper's is (19/20)^T1, every T1 steps.
    floor : float
        Lambda is not decreased below this, nor increased to it; the paper has no floor.

    Examples
    --------
    >>> next_lambda(1.0, 0.9, 0.5), next_lambda(1.0, 0.5, 0.5), next_lambda(1.0, -3.0, 0.5)
    (0.5, 1.0, 2.0)
    """
    if rho > 3 / 4:
        return max(omega1 * lambda_, min(lambda_, floor))
    if rho >= 1 / 4:
        return lambda_
    return lambda_ / omega1


def gamma_candidates(gamma: float, omega2: float, low: float = 0.0, high: float = math.inf) -> tuple[float, ...]:
    """Return the gammas to try: gamma, ``omega2 gamma`` and ``gamma / omega2``, clipped to [low, high] (sec. 6.6).

    The current gamma comes first, and equal values occur once. The paper's omega2 is sqrt(19/20)^T2, every T2 steps; it
    has no limits `low` and `high`; in the author's code they are [sqrt(eta), 1].

    Examples
    --------
    >>> gamma_candidates(0.8, 0.5, high=1.0)
    (0.8, 0.4, 1.0)
    """
    clipped = (min(max(g, low), high) for g in (gamma, omega2 * gamma, gamma / omega2))
    return tuple(dict.fromkeys(clipped))
