"""The exact damped Fisher, solved in the space of the examples: for few cases and many parameters.

With U the P x NC matrix of columns ``J_n^T root_n`` (root root^T = F_R), F = U U^T / N, and (Woodbury)::

    (F + damping I)^{-1} v = (1/damping) ( v - U (damping N I + K)^{-1} U^T v ),          K = U^T U

K is NC x NC and needs no U: the inner product of two columns is a sum over layers of products of small ones::

    K_{(n,k),(m,l)} = sum_i (a_bar_i,n . a_bar_i,m) (g_i,n^k . g_i,m^l)

U^T v is one R-pass, U w one backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import checks
from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..fisher import exact_columns, fisher_product
from ..kronecker import Cholesky
from ..params import add, scale
from .base import OfPoint


@dataclass(frozen=True, eq=False)
class ExactDual(OfPoint):
    """``F + damping I``, with F the exact Fisher at a point, solved through the Gram matrix of the Jacobian's rows.

    Parameters
    ----------
    at : Point
        Where.
    damping : float
        lambda + eta, above 0 for `solve`.

    Notes
    -----
    Worth it where NC, examples times outputs, is below P: `solve` forms and factors an (NC, NC) matrix once, and no
    array of NC x P. Source: the Woodbury identity; Ren & Goldfarb 2019.
    """

    def product(self, V: Direction) -> list[Array]:
        """Return ``F v + damping v``."""
        V = self._direction(V)
        return add(fisher_product(self.at, V), scale(self.damping, V))

    def solve(self, V: Direction) -> list[Array]:
        """Return ``(F + damping I)^{-1} v``."""
        V = self._direction(V)
        if self.damping == 0:
            raise np.linalg.LinAlgError("the exact Fisher cannot be solved in the space of the examples without "
                                        "damping: its smallest eigenvalue may be 0; give a larger damping")
        w = np.einsum("knc,nc->kn", self._columns_of_root, self.at.tangent(V))                         # U^T v
        w = self._cholesky.solve(w.reshape(-1)).reshape(w.shape).astype(self.dtype, copy=False)
        Uw = self.at.adjoint(np.einsum("knc,kn->nc", self._columns_of_root, w))
        return scale(1 / self.damping, add(V, scale(-1.0, Uw)))

    @cached_property
    def _columns_of_root(self) -> Array:
        return exact_columns(self.at)

    @cached_property
    def _cholesky(self) -> Cholesky:
        """Of ``damping N I + K``, (NC, NC); rows in the order of the columns' stack, (k, n)."""
        columns = self._columns_of_root
        C, N = columns.shape[:2]
        checks.dense_size("the Gram matrix of the examples", N * C, N * C, self.dtype.itemsize)
        K = np.zeros((C, N, C, N), dtype=self.dtype)
        for a_bar, g in zip(self.at.a_bar, self.at.backward(columns), strict=True):
            flat = g.reshape(C * N, -1)
            K += (flat @ flat.T).reshape(C, N, C, N) * (a_bar @ a_bar.T)[:, None, :]
        damped = add_to_diagonal(K.reshape(C * N, C * N), self.damping * N)
        return Cholesky.factor(damped, "the Gram matrix of the examples", "give a larger damping")
