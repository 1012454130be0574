"""The error of the Kronecker approximation as a covariance, and as cumulants: the central picture of this package.

With Alpha = a_bar a_bar^T and Gamma = g g^T of one layer, random over the data and over y ~ model, and R the
rearrangement::

    R(F_ii)          = E[ vec(Gamma) vec(Alpha)^T ]
    R(A ⊗ G)         = E[ vec Gamma ] E[ vec Alpha ]^T
    the difference   = Cov( vec Gamma, vec Alpha )

So the Kronecker product is exact where Gamma and Alpha are uncorrelated. Entry by entry the error is, with the joint
cumulants kappa (sec. 3)::

    kappa(a1, a2, g1, g2) + E[a1] kappa(a2, g1, g2) + E[a2] kappa(a1, g1, g2)

The covariance holds for every expectation. The cumulants need E[g | x] = 0, which is true for y ~ model but not for
labels. In all functions, i is the layer, with n inputs (bias included) and m outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from .. import checks
from ..checks import Array
from ..expectations import Expectation, empirical, exact, gradients
from ..model import Point


def covariance_error(at: Point, i: int, expectation: Expectation = exact) -> Array:
    """Return ``Cov(vec Gamma, vec Alpha)`` of layer i, (m^2, n^2): the rearranged error of its Kronecker product.

    It is computed from deviations from the means: the difference of the two rearrangements would cancel digits.
    """
    checks.layer("i", i, len(at.a_bar))
    m, n = at.model.network.shapes[i]
    checks.dense_size("the covariance", m * m, n * n, at.z.itemsize)
    Alpha, Gamma = _outer_products(at, i, expectation)
    return (Gamma - Gamma.mean(axis=0)).T @ (Alpha - Alpha.mean(axis=0)) / len(at)


def error_spectrum(at: Point, i: int, expectation: Expectation = exact) -> Array:
    """Return the singular values of `covariance_error`, descending; their squares add up to the squared error."""
    return scipy.linalg.svdvals(covariance_error(at, i, expectation))


class Cumulants(NamedTuple):
    """The three terms of the error, each as a matrix of the shape of the block, (n m, n m)."""

    fourth: Array       #: ``kappa(a1, a2, g1, g2)``.
    first_mean: Array   #: ``E[a1] kappa(a2, g1, g2)``.
    second_mean: Array  #: ``E[a2] kappa(a1, g1, g2)``.


def cumulant_terms(at: Point, i: int, y: Any = None, max_bytes: int | None = None) -> Cumulants:
    """Return the joint-cumulant terms of the error of layer i: row (a1, g1), column (a2, g2), g running fastest.

    Under y ~ model, in closed form, they add up to ``F_ii - A ⊗ G``. With labels y they are the cumulants of the
    empirical distribution, and their sum is NOT the error. More than `max_bytes` are refused (default: 4 GiB).
    Source: Martens & Grosse 2015, sec. 3.
    """
    checks.layer("i", i, len(at.a_bar))
    m, n = at.model.network.shapes[i]
    N = len(at)
    checks.dense_size("a term of the cumulants", m * n, m * n, at.z.itemsize, max_bytes)
    checks.dense_size("the outer products of the examples", N, n * n + m * m, at.z.itemsize, max_bytes)
    if y is None:
        g = gradients(at, exact)[i]
        first = np.zeros((N, m), dtype=at.z.dtype)                          # E[g | x] = 0 under the model
    else:
        g = gradients(at, empirical(y))[i]
        first = g[0]
    second = np.einsum("knp,knq->npq", g, g)                                # E[g g^T | x]
    a, mean_a = at.a_bar[i] - at.a_bar[i].mean(axis=0), at.a_bar[i].mean(axis=0)
    mean_g = first.mean(axis=0)
    centred = second - first[:, :, None] * mean_g - mean_g[:, None] * first[:, None, :] + np.outer(mean_g, mean_g)
    Caa, Cgg, Cag = a.T @ a / N, centred.mean(axis=0), a.T @ (first - mean_g) / N

    def block(terms: str, *operands: Array) -> Array:
        """Return an einsum over the axes a, b, p, q of a1, a2, g1, g2 as a matrix of the shape of the block."""
        return np.einsum(f"{terms}->apbq", *operands, optimize=True).reshape(n * m, n * m)

    kappa3 = np.einsum("nb,npq->bpq", a, centred) / N                       # kappa(a2, g1, g2)
    kappa4 = (block("na,nb,npq", a, a, centred) / N - block("ab,pq", Caa, Cgg)
              - block("ap,bq", Cag, Cag) - block("aq,bp", Cag, Cag))
    return Cumulants(kappa4, block("a,bpq", mean_a, kappa3), block("b,apq", mean_a, kappa3))


def _outer_products(at: Point, i: int, expectation: Expectation) -> tuple[Array, Array]:
    """Return vec(Alpha) and vec(Gamma) of each example, (N, n^2) and (N, m^2)."""
    checks.layer("i", i, len(at.a_bar))
    m, n = at.model.network.shapes[i]
    checks.dense_size("the outer products of the examples", len(at), n * n + m * m, at.z.itemsize)
    g = gradients(at, expectation)[i]
    a = at.a_bar[i]
    Alpha = (a[:, :, None] * a[:, None, :]).reshape(len(at), -1)            # symmetric: rows or columns, all the same
    Gamma = np.einsum("knp,knq->npq", g, g).reshape(len(at), -1)
    return Alpha, Gamma
