"""The paper's F̃ with all its blocks, dense: the block of layers i and j is a Kronecker product (sec. 3).

    C_ij = A_ij ⊗ G_ij,  plus damping I on the diagonal

F̃ is a Khatri-Rao product of two positive semi-definite block matrices, and therefore positive semi-definite itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..kronecker import product
from .base import OfFactors, SolvedDense


@dataclass(frozen=True, eq=False, repr=False)
class Full(SolvedDense, OfFactors):
    """``F̃ + damping I`` (sec. 3); needs the cross factors of all pairs of layers (``reach=math.inf``)."""

    name = "the Kronecker-factored Fisher"

    def __post_init__(self) -> None:
        super().__post_init__()
        for j in range(len(self.factors)):
            _ = self.factors.A[0, j]                    # refuses factors without their cross factors

    def product(self, V: Direction) -> list[Array]:
        """Return ``U_i = sum_j G_ij V_j A_ij^T + damping V_i``."""
        V = self._direction(V)
        U = [self.damping * v for v in V]
        for i, u in enumerate(U):
            for j, v in enumerate(V):
                u += product(self.factors.A[i, j], self.factors.G[i, j], v)
        return U

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return ``F̃ + damping I``, (P, P)."""
        self._dense_size(max_bytes)
        layers = range(len(self.factors))
        return add_to_diagonal(np.block([[np.kron(self.factors.A[i, j], self.factors.G[i, j]) for j in layers]
                                         for i in layers]), self.damping)
