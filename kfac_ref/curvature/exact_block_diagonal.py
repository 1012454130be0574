"""The diagonal blocks of the exact Fisher, one per layer: F_ii + damping I (sec. 4.2 before the factorization)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .. import checks
from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..fisher import fisher_block
from ..kronecker import Cholesky, unvec, vec
from .base import OfPoint, block_diagonal


@dataclass(frozen=True, eq=False, repr=False)
class ExactBlockDiagonal(OfPoint):
    """``blockdiag(F_ii) + damping I``: the Fisher without its blocks between different layers."""

    def product(self, V: Direction) -> list[Array]:
        """Return ``(F_ii + damping I) v_i``, layer by layer."""
        return [unvec(B @ vec(v), *v.shape) for B, v in zip(self._blocks, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``(F_ii + damping I)^{-1} v_i``, layer by layer."""
        return [unvec(C.solve(vec(v)), *v.shape) for C, v in zip(self._choleskys, self._direction(V), strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal(self._blocks)

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return its inverse, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([C.inverse() for C in self._choleskys])

    @cached_property
    def _blocks(self) -> tuple[Array, ...]:
        sizes = [m * n for m, n in self.shapes]
        checks.dense_size("the largest Fisher block", max(sizes), max(sizes), self.dtype.itemsize)
        return tuple(add_to_diagonal(fisher_block(self.at, i, i, self.expectation), self.damping)
                     for i in range(len(sizes)))

    @cached_property
    def _choleskys(self) -> tuple[Cholesky, ...]:
        return tuple(Cholesky.factor(B, f"the Fisher block of layer {i}", "give a larger damping")
                     for i, B in enumerate(self._blocks))
