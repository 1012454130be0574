"""Shampoo's two matrices, from the gradients of single examples, and the two Kronecker products made of them.

With D = g a_bar^T the gradient of one example (one column of it) with respect to a layer's weights (Gupta et al.
2018)::

    L = E[ D D^T ]   (m, m)            R = E[ D^T D ]   (n, n)            tr L = tr R = tr F_ii

    R kron L / tr L        keeps the trace of the block; it is TKFAC's
    R^1/2 kron L^1/2       Shampoo's own, whose square root inverse it multiplies by; it scales as F does

Shampoo itself sums gradients of batches over time; what is compared here is the structure, on the Fisher.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array
from ..fisher import CHUNK_BYTES, columns_of
from ..kronecker import Eigen
from ..model import Point
from .base import Factors


def shampoo_factors(at: Point, columns: Array | None = None) -> Factors:
    """Return ``A = R / sqrt(tr L)`` and ``G = L / sqrt(tr L)``.

    Parameters
    ----------
    at : Point
        Where.
    columns : (K, N, C) array, optional
        Another expectation than the exact one: `sampled_columns` or `empirical_columns`.

    Returns
    -------
    Factors
        A and G of each layer; no cross factors.

    Notes
    -----
    Source: Gupta, Koren & Singer 2018; Morwani et al. 2024 for its relation to the nearest Kronecker product.
    """
    pairs = [(R / root, L / root) for R, L in _moments(at, columns)
             for root in [R.dtype.type(np.sqrt(np.trace(L)) or 1.0)]]
    return Factors(tuple(A for A, _ in pairs), tuple(G for _, G in pairs), (), (), len(at))


def shampoo_root_factors(at: Point, columns: Array | None = None) -> Factors:
    """Return ``A = R^1/2`` and ``G = L^1/2``, as the original has them.

    Parameters
    ----------
    at : Point
        Where.
    columns : (K, N, C) array, optional
        As in `shampoo_factors`.

    Returns
    -------
    Factors
        A and G of each layer; no cross factors.

    Notes
    -----
    Source: Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization".
    """
    pairs = [(_root(R), _root(L)) for R, L in _moments(at, columns)]
    return Factors(tuple(A for A, _ in pairs), tuple(G for _, G in pairs), (), (), len(at))


def _moments(at: Point, columns: Array | None) -> list[tuple[Array, Array]]:
    """Return R and L of each layer, in chunks of examples of bounded memory."""
    N = len(at)
    g = at.backward(columns_of(at, columns))
    moments: list[tuple[Array, Array]] = []
    for a, gi in zip(at.a_bar, g, strict=True):
        K, m, n = len(gi), gi.shape[2], a.shape[1]
        chunk = max(1, CHUNK_BYTES // (K * m * n * a.itemsize))
        R, L = np.zeros((n, n), a.dtype), np.zeros((m, m), a.dtype)
        for start in range(0, N, chunk):
            rows = slice(start, start + chunk)
            D = gi[:, rows, :, None] * a[rows, None, :]                 # (K, chunk, m, n)
            R += D.reshape(-1, n).T @ D.reshape(-1, n)
            across = D.transpose(2, 0, 1, 3).reshape(m, -1)
            L += across @ across.T
        moments.append((R / N, L / N))
    return moments


def _root(S: Array) -> Array:
    """Return the symmetric square root of a positive semi-definite matrix."""
    E = Eigen.factor(S)
    return (E.Q * np.sqrt(np.maximum(E.values, 0))) @ E.Q.T
