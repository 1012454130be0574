"""One Kronecker product a layer, damped exactly: A_i kron G_i + damping I, through eigenvectors.

    A = Q_A diag(a) Q_A^T,  G = Q_G diag(g) Q_G^T
    A kron G + damping I = (Q_A kron Q_G) diag(a_i g_j + damping) (Q_A kron Q_G)^T
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import kronecker
from ..checks import Array, Direction
from ..damping import add_to_diagonal
from ..kronecker import Eigen
from .base import OfFactors, block_diagonal


@dataclass(frozen=True, eq=False)
class EigenDamped(OfFactors):
    """``blockdiag(A_i kron G_i) + damping I``.

    Parameters
    ----------
    factors : Factors
        A and G of each layer; cross factors are not used.
    damping : float
        lambda + eta, at least 0.

    Notes
    -----
    The eigenproblems cost about ten times the Cholesky factors of `BlockDiagonal`.
    Source: the exact Tikhonov damping that Martens & Grosse 2015, sec. 6.3, approximate.
    """

    def product(self, V: Direction) -> list[Array]:
        """Return ``G_i V_i A_i + damping V_i``."""
        return [kronecker.product(A, G, v) + self.damping * v
                for A, G, v in zip(self.factors.A, self.factors.G, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``(A_i kron G_i + damping I)^{-1} v_i``, layer by layer."""
        return [kronecker.apply_in_eigenbasis(A, G, 1 / scales, v)
                for (A, G, scales), v in zip(self._eigen, self._direction(V), strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        return block_diagonal([add_to_diagonal(np.kron(A, G), self.damping)
                               for A, G in zip(self.factors.A, self.factors.G, strict=True)])

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return its inverse, (P, P)."""
        self._dense_size(max_bytes)
        blocks = []
        for A, G, scales in self._eigen:
            Q = np.kron(A.Q, G.Q)
            blocks.append((Q / kronecker.vec(scales)) @ Q.T)
        return block_diagonal(blocks)

    @cached_property
    def _eigen(self) -> tuple[tuple[Eigen, Eigen, Array], ...]:
        """The eigenvectors of each layer's factors, and the damped eigenvalues of the product."""
        layers = []
        for i, pair in enumerate(zip(self.factors.A, self.factors.G, strict=True)):
            A, G = (Eigen.factor(S, f"factor {name} of layer {i}") for S, name in zip(pair, "AG", strict=True))
            scales = kronecker.spectrum(A, G) + self.damping
            if scales.min() <= max(scales.shape) * np.finfo(self.dtype).eps * scales.max():
                name, worst = min((("A", A), ("G", G)), key=lambda e: e[1].values[0] / (e[1].values[-1] or 1))
                raise np.linalg.LinAlgError(f"layer {i} is singular to rounding: factor {name} has the smallest "
                                            f"eigenvalue {worst.values[0]:.3g}; give a larger damping")
            layers.append((A, G, scales))
        return tuple(layers)
