"""One Kronecker product per layer, damped exactly by means of eigenvectors: A_i ⊗ G_i + damping I.

    A = Q_A diag(a) Q_A^T,  G = Q_G diag(g) Q_G^T
    A ⊗ G + damping I = (Q_A ⊗ Q_G) diag(a_i g_j + damping) (Q_A ⊗ Q_G)^T
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import kronecker
from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..factors import Factors
from ..kronecker import Eigen
from .base import OfFactors, block_diagonal
from .eigenbasis import InEigenbasis


@dataclass(frozen=True, eq=False, repr=False)
class EigenDamped(OfFactors, InEigenbasis):
    """``blockdiag(A_i ⊗ G_i) + damping I``: the exact Tikhonov damping that `BlockDiagonal` approximates (sec. 6.3).

    The eigenproblems cost about ten times as much as the Cholesky factors there.
    """

    def product(self, V: Direction) -> list[Array]:
        """Return ``G_i V_i A_i + damping V_i``."""
        return [kronecker.product(A, G, v) + self.damping * v
                for (A, G), v in zip(self.factors.layers, self._direction(V), strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([add_to_diagonal(np.kron(A, G), self.damping) for A, G in self.factors.layers])

    @cached_property
    def bases(self) -> tuple[tuple[Eigen, Eigen], ...]:     # type: ignore[override]
        """The eigenvectors of A and G of each layer."""
        return bases_of(self.factors)

    @cached_property
    def scales(self) -> tuple[Array, ...]:                  # type: ignore[override]
        """The damped eigenvalues of each layer, (m, n)."""
        return tuple(kronecker.spectrum(A, G) + self.damping for A, G in self.bases)


def bases_of(factors: Factors) -> tuple[tuple[Eigen, Eigen], ...]:
    """Return the eigendecompositions of A and G of each layer; the factors must be symmetric."""
    return tuple((Eigen.factor(A, f"factor A of layer {i}"), Eigen.factor(G, f"factor G of layer {i}"))
                 for i, (A, G) in enumerate(factors.layers))
