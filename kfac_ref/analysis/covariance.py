"""The error of the Kronecker approximation as a covariance, and as cumulants (the central picture of this package).

With Alpha = a_bar a_bar^T and Gamma = g g^T of one layer, random over the data and over y ~ model, and R the
rearrangement::

    R(F_ii)          = E[ vec(Gamma) vec(Alpha)^T ]
    R(A kron G)      = E[ vec Gamma ] E[ vec Alpha ]^T
    the difference   = Cov( vec Gamma, vec Alpha )

Entry by entry it is (paper: sec. 3, eq. (3)), with kappa the joint cumulants::

    kappa(a1, a2, g1, g2) + E[a1] kappa(a2, g1, g2) + E[a2] kappa(a1, g1, g2)

The covariance holds for every expectation. The cumulants need E[g | x] = 0, which y ~ model gives and labels do not.
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
    """Return ``Cov(vec Gamma, vec Alpha)`` of layer i: the rearranged error of its Kronecker factorization.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    i : int
        The layer.
    expectation : function of a Point
        `exact`, ``sampled(targets)`` or ``empirical(y)``.

    Returns
    -------
    (m^2, n^2) array
        ``R(F_ii) - R(A kron G)``, computed from deviations from the means, so that its digits are its own.

    Raises
    ------
    ValueError
        For a layer that is not there, or rows of more than 4 GiB.
    """
    checks.layer("i", i, len(at.a_bar))
    m, n = at.model.network.shapes[i]
    checks.dense_size("the covariance", m * m, n * n, at.z.itemsize)
    Alpha, Gamma = _outer_products(at, i, expectation)
    return (Gamma - Gamma.mean(axis=0)).T @ (Alpha - Alpha.mean(axis=0)) / len(at)


def error_spectrum(at: Point, i: int, expectation: Expectation = exact) -> Array:
    """Return the singular values of `covariance_error`, descending; their squares add up to the squared error.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    i : int
        The layer.
    expectation : function of a Point
        As in `covariance_error`, whose errors are raised here too.

    Returns
    -------
    (min(m^2, n^2),) array
        The spectrum.
    """
    return scipy.linalg.svdvals(covariance_error(at, i, expectation))


class Cumulants(NamedTuple):
    """The three terms of the paper's eq. (3), each as a matrix of the shape of the block, (n m, n m).

    Attributes
    ----------
    fourth : array
        ``kappa(a1, a2, g1, g2)``.
    first_mean : array
        ``E[a1] kappa(a2, g1, g2)``.
    second_mean : array
        ``E[a2] kappa(a1, g1, g2)``.
    """

    fourth: Array
    first_mean: Array
    second_mean: Array


def cumulant_terms(at: Point, i: int, y: Any = None, max_bytes: int | None = None) -> Cumulants:
    """Return the joint-cumulant terms of the error of layer i, entry by entry.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    i : int
        The layer.
    y : (N,) or (N, C) array, optional
        Labels: the cumulants of the empirical distribution in place of the model's own. Their sum is then NOT the
        error.
    max_bytes : int, optional
        Larger matrices are refused; 4 GiB unless told.

    Returns
    -------
    Cumulants
        In the order of the block: row (a1, g1), column (a2, g2), g running fastest. With y ~ model in closed form they
        add up to ``F_ii - A kron G``.

    Raises
    ------
    ValueError
        For a layer that is not there, or matrices of more than `max_bytes`.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 3, eq. (3).
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
        """Return a product over the entries (a1, g1; a2, g2) as a matrix of the shape of the block.

        Parameters
        ----------
        terms : str
            The left side of an einsum, in which the axes of a1, a2, g1, g2 are a, b, p, q.
        *operands : arrays
            Its operands.
        """
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
