"""FOOF: the half of K-FAC that depends only on the inputs, A_i + damping I, with I in place of G (Benzing 2022).

    C_ii = (A_i + damping I) ⊗ I            solve:  U_i = V_i (A_i + damping I)^{-1}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..kronecker import Cholesky
from .base import OfFactors, block_diagonal


@dataclass(frozen=True, eq=False, repr=False)
class InputOnly(OfFactors):
    """``blockdiag(A_i ⊗ I) + damping I``: exactly damped K-FAC with G = I (Benzing 2022)."""

    def product(self, V: Direction) -> list[Array]:
        """Return ``V_i (A_i + damping I)``."""
        return [v @ A for A, v in zip(self._damped, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``V_i (A_i + damping I)^{-1}``."""
        return [A.solve_right(v) for A, v in zip(self._choleskys, self._direction(V), strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([np.kron(A, np.eye(m, dtype=self.dtype))
                               for A, (m, _) in zip(self._damped, self.shapes, strict=True)])

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return its inverse, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([np.kron(A.inverse(), np.eye(m, dtype=self.dtype))
                               for A, (m, _) in zip(self._choleskys, self.shapes, strict=True)])

    @cached_property
    def _damped(self) -> tuple[Array, ...]:
        return tuple(add_to_diagonal(A, self.damping) for A, _ in self.factors.layers)

    @cached_property
    def _choleskys(self) -> tuple[Cholesky, ...]:
        return tuple(Cholesky.factor(A, f"factor A of layer {i}", "give a larger damping")
                     for i, A in enumerate(self._damped))
