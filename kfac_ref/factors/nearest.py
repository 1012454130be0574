"""The best that a Kronecker product can do: for each layer, the one nearest to the exact block in Frobenius norm.

The rearranged block is R = Gam^T Alp / N, where row n of Gam is vec(sum_k g^k g^k^T)^T and row n of Alp is
vec(a_bar a_bar^T)^T (see `kronecker` and `fisher`). The nearest Kronecker product is the leading singular triple of R.
It is computed from products with R, which need neither R nor the rows::

    R vec(X)   = vec( (1/N) sum_n w_n sum_k g^k g^k^T ),      w_n = a_bar_n^T X a_bar_n
    R^T vec(Y) = vec( (1/N) sum_n w_n a_bar_n a_bar_n^T ),    w_n = sum_k g_n^k^T Y g_n^k

The remaining error is the rest of the spectrum of R: no estimator of A and G can do better.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse.linalg

from ..checks import Array
from ..expectations import Expectation, exact, gradients
from ..kronecker import unvec, vec
from ..model import Point
from .base import Factors


def nearest_kronecker_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return the factors of the Kronecker product nearest to each diagonal block of the Fisher, without cross factors.

    A and G of a layer have equal norm and are symmetric positive semi-definite.

    Source: Van Loan & Pitsianis 1993; the power iteration of Koroko et al. 2022 gives the same.
    """
    pairs = [_nearest(a_bar, g) for a_bar, g in zip(at.a_bar, gradients(at, expectation), strict=True)]
    return Factors.of_layers([A for A, _ in pairs], [G for _, G in pairs], len(at))


def _nearest(a: Array, g: Array) -> tuple[Array, Array]:
    """Return A and G for inputs a (N, n) and gradients g (K, N, m)."""
    K, N, m = g.shape
    n = a.shape[1]
    flat = g.reshape(K * N, m)

    def times(x: Array) -> Array:
        """Return R vec(X)."""
        w = np.einsum("nj,nj->n", a @ unvec(x, n, n), a)
        return vec((flat * np.tile(w, K)[:, None]).T @ flat) / N

    def transposed(y: Array) -> Array:
        """Return R^T vec(Y)."""
        w = np.einsum("kj,kj->k", flat @ unvec(y, m, m), flat).reshape(K, N).sum(axis=0)
        return vec((a * w[:, None]).T @ a) / N

    if not times(vec(np.eye(n, dtype=a.dtype))).any():      # a dead layer
        return np.zeros((n, n), a.dtype), np.zeros((m, m), a.dtype)
    if m == 1:                                              # R is one row: it is its own leading triple
        u, A = np.ones(1, dtype=a.dtype), unvec(transposed(np.ones(1, dtype=a.dtype)), n, n)
        s = float(np.linalg.norm(A))
        A = A / s if s else A
    else:
        R = scipy.sparse.linalg.LinearOperator((m * m, n * n), matvec=times, rmatvec=transposed, dtype=a.dtype)
        # Start: the identity, which is not random and never orthogonal to the (positive semi-definite) leading vector.
        U, values, Vt = scipy.sparse.linalg.svds(R, k=1, v0=vec(np.eye(min(m, n), dtype=a.dtype)), tol=0)
        u, s, A = U[:, 0], float(values[0]), unvec(Vt[0], n, n)
    sign = -1 if np.trace(A) < 0 else 1
    A, G = sign * np.sqrt(s) * A, sign * np.sqrt(s) * unvec(u, m, m)
    return ((A + A.T) / 2).astype(a.dtype, copy=False), ((G + G.T) / 2).astype(a.dtype, copy=False)
