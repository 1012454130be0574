"""KFRA: G by a recursion over the layers instead of one backward pass per column.

    G_{L-1} = E[F_R]
    G_{i-1} = (W_i^T G_i W_i) * E[ phi'_{i-1} phi'_{i-1}^T ]           W_i without its bias column, * entry by entry

At every layer the recursion takes the expectation of a product of G_i and the slopes phi' as if the two were
independent. The result equals `kronecker_factors` for linear networks, for one example, in the last layer, and for a
Gaussian in the last but one.

Source: Botev, Ritter & Barber 2017, "Practical Gauss-Newton optimisation for deep learning".
"""

from __future__ import annotations

from ..checks import Array, Direction
from ..expectations import Expectation, columns, exact
from ..layers import second_moment
from ..model import Point
from .base import Factors, Key, Moments


def slope_moments(at: Point, expectation: Expectation = exact) -> Moments:
    """Return A, the mean of F_R and the second moments of the slopes, as ("A", i), ("F_R",) and ("slopes", i).

    F_R is made from the columns of the expectation; for `exact` it is in closed form.
    """
    N = len(at)
    if expectation is exact:
        F_R = at.model.likelihood.fisher(at.z).mean(axis=0)
    else:
        stack = columns(at, expectation)
        F_R = second_moment(stack, stack) / N
    moments: dict[Key, Array] = {("A", i): second_moment(a, a) / N for i, a in enumerate(at.a_bar)}
    moments |= {("slopes", i): second_moment(s, s) / N for i, s in enumerate(at.forward.slopes)}
    return Moments(moments | {("F_R",): F_R}, N)


def recursion(moments: Moments, weights: Direction) -> Factors:
    """Return A unchanged and G by KFRA's recursion, from the moments of `slope_moments`."""
    arrays, L = moments.arrays, len(weights)
    G = [arrays["F_R",]]
    for i in range(L - 1, 0, -1):
        slopes = arrays["slopes", i - 1]
        W = weights[i][:, :len(slopes)]
        G.append((W.T @ G[-1] @ W) * slopes)
    return Factors.of_layers([arrays["A", i] for i in range(L)], G[::-1], moments.n)


def kfra_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return KFRA's A and G of each layer, without cross factors."""
    return recursion(slope_moments(at, expectation), at.weights)
