"""KFRA: G by a recursion over the layers in place of a backward pass for each column (Botev et al. 2017).

    G_{L-1} = E[F_R]
    G_{i-1} = (W_i^T G_i W_i) * E[ phi'_{i-1} phi'_{i-1}^T ]           W_i without its bias column, * entry by entry

It takes the expectation of a product of G_i and the slopes as if the two were independent, at every layer.
"""

from __future__ import annotations

from ..checks import Array, Direction
from ..expectations import Expectation, columns, exact
from ..layers import second_moment
from ..model import Point
from .base import Factors, Key, Moments


def slope_moments(at: Point, expectation: Expectation = exact) -> Moments:
    """Return A, the mean of F_R, and the second moments of the slopes.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    expectation : function of a Point
        Its columns make F_R; with `exact` it is in closed form.

    Returns
    -------
    Moments
        With keys ("A", i), ("F_R",) and ("slopes", i).
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
    """Return A as it is and G by KFRA's recursion.

    Parameters
    ----------
    moments : Moments
        From `slope_moments`.
    weights : list of (d_{i+1}, d_i + 1) arrays
        The parameters.
    """
    arrays, L = moments.arrays, len(weights)
    G = [arrays["F_R",]]
    for i in range(L - 1, 0, -1):
        slopes = arrays["slopes", i - 1]
        W = weights[i][:, :len(slopes)]
        G.append((W.T @ G[-1] @ W) * slopes)
    return Factors.of_layers([arrays["A", i] for i in range(L)], G[::-1], moments.n)


def kfra_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return the factors of KFRA.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    expectation : function of a Point
        As in `slope_moments`.

    Returns
    -------
    Factors
        A and G of each layer; no cross factors.

    Notes
    -----
    The same as `kronecker_factors` for linear networks, for one example, in the last layer, and with a Gaussian in the
    last but one. Source: Botev, Ritter & Barber 2017, "Practical Gauss-Newton optimisation for deep learning".
    """
    return recursion(slope_moments(at, expectation), at.weights)
