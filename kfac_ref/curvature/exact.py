"""The exact Fisher with Tikhonov damping, F + damping I (sec. 6.1): the reference for all other structures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..fisher import fisher_matrix, fisher_product
from ..kronecker import Cholesky
from ..params import add, flatten, scale, unflatten
from .base import OfPoint


@dataclass(frozen=True, eq=False, repr=False)
class Exact(OfPoint):
    """``F + damping I``, with F the exact Fisher at a point, or that of another expectation.

    `product` needs no dense matrix; the first `solve` forms F, (P, P), and factors it.
    Source: Martens & Grosse 2015, sec. 2.2 and 6.1.
    """

    def product(self, V: Direction) -> list[Array]:
        """Return ``F v + damping v``."""
        V = self._direction(V)
        return add(fisher_product(self.at, V, self.expectation), scale(self.damping, V))

    def solve(self, V: Direction) -> list[Array]:
        """Return ``(F + damping I)^{-1} v``."""
        return unflatten(self._cholesky.solve(flatten(self._direction(V))), self.shapes)

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return ``F + damping I``, (P, P)."""
        return add_to_diagonal(fisher_matrix(self.at, self.expectation, max_bytes), self.damping)

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return ``(F + damping I)^{-1}``, (P, P)."""
        return self._factor(self.dense(max_bytes)).inverse()

    @cached_property
    def _cholesky(self) -> Cholesky:
        return self._factor(self.dense())

    @staticmethod
    def _factor(F: Array) -> Cholesky:
        return Cholesky.factor(F, "the exact Fisher", "give a larger damping")
