"""The exact damped Fisher, solved in the space of the examples: for few examples and many parameters.

With U the P x NC matrix of columns ``J_n^T root_n`` (root root^T = F_R), F = U U^T / N, and (Woodbury)::

    (F + damping I)^{-1} v = (1/damping) ( v - U (damping N I + K)^{-1} U^T v ),          K = U^T U

K is NC x NC and is computed without U: the inner product of two columns is a sum over layers of products of two small
inner products::

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
from ..expectations import Expectation, columns, exact
from ..fisher import fisher_product
from ..kronecker import Cholesky
from ..layers import example_gram
from ..model import Point
from ..params import add, scale
from .base import OfPoint
from .exact import Exact


@dataclass(frozen=True, eq=False, repr=False)
class ExactDual(OfPoint):
    """``F + damping I``, with F the exact Fisher at a point, solved through the Gram matrix of the Jacobian's rows.

    `solve` needs damping above 0. It forms and factors an (NC, NC) matrix once, and no array of NC x P; it pays if NC,
    examples times outputs, is below P. Source: the Woodbury identity; Ren & Goldfarb 2019.
    """

    def product(self, V: Direction) -> list[Array]:
        """Return ``F v + damping v``."""
        V = self._direction(V)
        return add(fisher_product(self.at, V, self.expectation), scale(self.damping, V))

    def solve(self, V: Direction) -> list[Array]:
        """Return ``(F + damping I)^{-1} v``."""
        V = self._direction(V)
        if self.damping == 0:
            raise np.linalg.LinAlgError("the exact Fisher cannot be solved in the space of the examples without "
                                        "damping: its smallest eigenvalue may be 0; give a larger damping")
        w = np.einsum("knc,nc->kn", self._root, self.at.tangent(V))                         # U^T v
        w = self._cholesky.solve(w.reshape(-1)).reshape(w.shape).astype(self.dtype, copy=False)
        Uw = self.at.adjoint(np.einsum("knc,kn->nc", self._root, w))
        return scale(1 / self.damping, add(V, scale(-1.0, Uw)))

    @cached_property
    def _root(self) -> Array:
        return columns(self.at, self.expectation)

    @cached_property
    def _cholesky(self) -> Cholesky:
        """Of ``damping N I + K``, (NK, NK) for K columns; rows in the order of the columns' stack, (k, n)."""
        K, N = self._root.shape[:2]
        checks.dense_size("the Gram matrix of the examples", N * K, N * K, self.dtype.itemsize)
        gram = np.zeros((N * K, N * K), self.dtype)
        for g, a_bar in zip(self.at.backward(self._root), self.at.a_bar, strict=True):
            gram += example_gram(g, a_bar)
        return Cholesky.factor(add_to_diagonal(gram, self.damping * N), "the Gram matrix of the examples",
                               "give a larger damping")


def smaller_exact(at: Point, damping: float = 0.0, expectation: Expectation = exact) -> Exact | ExactDual:
    """Return ``F + damping I`` in the form that factors the smaller matrix; `Exact` if there is no damping."""
    dual = damping > 0 and at.z.size < at.model.network.parameters
    return (ExactDual if dual else Exact)(at, damping, expectation)
