"""The exact Fisher with Tikhonov damping, F + damping I (sec. 6.1): the reference for all other structures."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..fisher import fisher_matrix, fisher_product
from ..params import add, scale
from .base import OfPoint, SolvedDense


@dataclass(frozen=True, eq=False, repr=False)
class Exact(SolvedDense, OfPoint):
    """``F + damping I``, with F the exact Fisher at a point or that of another expectation (sec. 2.2 and 6.1)."""

    name = "the exact Fisher"

    def product(self, V: Direction) -> list[Array]:
        """Return ``F v + damping v``, without forming F."""
        V = self._direction(V)
        return add(fisher_product(self.at, V, self.expectation), scale(self.damping, V))

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return ``F + damping I``, (P, P)."""
        return add_to_diagonal(fisher_matrix(self.at, self.expectation, max_bytes), self.damping)
