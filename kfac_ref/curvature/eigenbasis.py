"""Matrices that are diagonal, layer by layer, in a Kronecker product of two bases.

    C_ii = (Q_A ⊗ Q_G) diag(vec S_i) (Q_A ⊗ Q_G)^T             solve:  U_i = Q_G [(Q_G^T V_i Q_A) / S_i] Q_A^T
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import kronecker
from ..checks import Array, Direction
from ..kronecker import Eigen
from .base import Curvature, block_diagonal


class InEigenbasis(Curvature):
    """What `EigenDamped` and `EKFAC` share; they differ in how the bases and the scales are made."""

    bases: tuple[tuple[Eigen, Eigen], ...]  #: The eigenvectors of A and G of each layer.
    scales: tuple[Array, ...]               #: The damped eigenvalues S of each layer, (m, n).

    def product(self, V: Direction) -> list[Array]:
        """Return ``Q_G [S_i * (Q_G^T V_i Q_A)] Q_A^T``."""
        return [kronecker.apply_in_eigenbasis(A, G, S, v)
                for (A, G), S, v in zip(self.bases, self.scales, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``Q_G [(Q_G^T V_i Q_A) / S_i] Q_A^T``."""
        return [kronecker.apply_in_eigenbasis(A, G, 1 / S, v)
                for (A, G), S, v in zip(self.bases, self._regular, self._direction(V), strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        return self._blocks(self.scales, max_bytes)

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return its inverse, (P, P)."""
        return self._blocks([1 / S for S in self._regular], max_bytes)

    @cached_property
    def _regular(self) -> tuple[Array, ...]:
        """The scales; raises an error if one of them is 0 to rounding."""
        for i, ((A, G), S) in enumerate(zip(self.bases, self.scales, strict=True)):
            if S.min() <= max(S.shape) * np.finfo(S.dtype).eps * S.max():
                name, worst = min((("A", A), ("G", G)), key=lambda e: e[1].values[0] / (e[1].values[-1] or 1))
                raise np.linalg.LinAlgError(f"layer {i} is singular to rounding: its smallest eigenvalue is "
                                            f"{S.min():.3g}, and that of factor {name} {worst.values[0]:.3g}; give a "
                                            "larger damping")
        return self.scales

    def _blocks(self, scales: tuple[Array, ...] | list[Array], max_bytes: int | None) -> Array:
        self._dense_size(max_bytes)
        blocks = []
        for (A, G), S in zip(self.bases, scales, strict=True):
            Q = np.kron(A.Q, G.Q)
            blocks.append((Q * kronecker.vec(S)) @ Q.T)
        return block_diagonal(blocks)


@dataclass(frozen=True, eq=False, repr=False)
class Eigenbasis(InEigenbasis):
    """A matrix with given bases and damped eigenvalues, such as EK-FAC over a data set in parts."""

    bases: tuple[tuple[Eigen, Eigen], ...]
    scales: tuple[Array, ...]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights."""
        return tuple((len(S), S.shape[1]) for S in self.scales)

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of the matrix."""
        return self.scales[0].dtype
