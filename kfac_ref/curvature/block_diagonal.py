"""The paper's F̆: one Kronecker product per layer, with damped factors (sec. 4.2 and 6.3).

    C_ii = (A_i + pi_i sqrt(damping) I) ⊗ (G_i + sqrt(damping)/pi_i I)
    solve:  U_i = G_i^{-1} V_i A_i^{-1}        with the damped factors
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .. import kronecker
from ..checks import Array, Direction
from ..kronecker import Cholesky, Inverse
from .base import OfDampedFactors, block_diagonal


@dataclass(frozen=True, eq=False, repr=False)
class BlockDiagonal(OfDampedFactors):
    """F̆ with factored Tikhonov damping (sec. 4.2 and 6.3); not ``A ⊗ G + damping I``, which is `EigenDamped`.

    `factor` prepares a factor for solves: `Cholesky`, or `Inverse` if it is applied many times.
    """

    factor: type[Cholesky] | type[Inverse] = Cholesky

    def kept(self) -> BlockDiagonal:
        """Return the same matrix with inverses instead of Cholesky factors."""
        return replace(self, factor=Inverse)

    def product(self, V: Direction) -> list[Array]:
        """Return ``G_i V_i A_i`` with the damped factors."""
        return [kronecker.product(A, G, v) for (A, G), v in zip(self.damped, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``G_i^{-1} V_i A_i^{-1}`` with the damped factors."""
        return [kronecker.solve(A, G, v) for (A, G), v in zip(self._prepared, self._direction(V), strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([np.kron(A, G) for A, G in self.damped])

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return its inverse, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([np.kron(A.inverse(), G.inverse()) for A, G in self._prepared])

    @cached_property
    def _prepared(self) -> tuple[tuple[Cholesky | Inverse, Cholesky | Inverse], ...]:
        return tuple(self._prepared_by(self.factor, i) for i in range(len(self.damped)))
