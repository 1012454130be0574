"""KFRA: G by a recursion over the layers in place of a backward pass for each column (Botev et al. 2017).

    G_{L-1} = E[F_R]
    G_{i-1} = (W_i^T G_i W_i) * E[ phi'_{i-1} phi'_{i-1}^T ]           W_i without its bias column, * entry by entry

It takes the expectation of a product of G_i and the slopes as if the two were independent, at every layer.
"""

from __future__ import annotations

from ..model import Point
from .base import Factors


def kfra_factors(at: Point) -> Factors:
    """Return A as it is and G by KFRA's recursion.

    Parameters
    ----------
    at : Point
        Where.

    Returns
    -------
    Factors
        A and G of each layer; no cross factors.

    Notes
    -----
    The same as `exact_factors` for linear networks, for one example, in the last layer, and with a Gaussian in the last
    but one. Source: Botev, Ritter & Barber 2017, "Practical Gauss-Newton optimisation for deep learning".
    """
    N = len(at)
    G = [at.model.likelihood.fisher(at.z).mean(axis=0)]
    for W, slope in zip(reversed(at.weights[1:]), reversed(at.forward.slopes), strict=True):
        G.append((W[:, :-1].T @ G[-1] @ W[:, :-1]) * (slope.T @ slope / N))
    return Factors(tuple(a.T @ a / N for a in at.a_bar), tuple(G[::-1]), (), (), N)
