"""EKFAC: K-FAC's eigenvectors with second moments that are measured in them (George et al. 2018).

    A = U_A diag U_A^T,  G = U_G diag U_G^T
    S_i = (1/N) sum_n sum_k ( U_G^T g_i^k a_bar_i^T U_A )^2           squared entry by entry, (m, n)
    C_ii = (U_A kron U_G) diag(vec S_i) (U_A kron U_G)^T + damping I

vec S_i is the diagonal of the exact block in that basis, hence the best diagonal that the basis allows; K-FAC takes the
products of eigenvalues in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import kronecker
from ..checks import Array, Direction
from ..fisher import columns_of, exact_columns
from ..kronecker import Eigen
from ..model import Point
from .base import OfPoint, block_diagonal


@dataclass(frozen=True, eq=False)
class EKFAC(OfPoint):
    """The eigenbasis of the Kronecker factors with re-estimated second moments, damped exactly.

    Parameters
    ----------
    at : Point
        Where.
    damping : float
        lambda + eta, at least 0.
    columns : function of at
        The expectation, of the factors and of the moments: `exact_columns`, or
        ``lambda at: sampled_columns(at, targets)``, or the empirical ones.

    Notes
    -----
    Source: George et al. 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis".
    """

    columns: Callable[[Point], Array] = exact_columns

    def product(self, V: Direction) -> list[Array]:
        """Return ``U_G [S_i * (U_G^T V_i U_A)] U_A^T``, with the damped S."""
        return [kronecker.apply_in_eigenbasis(A, G, S, v)
                for (A, G), S, v in zip(self.bases, self.scales, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``U_G [(U_G^T V_i U_A) / S_i] U_A^T``, with the damped S."""
        V = self._direction(V)
        for i, S in enumerate(self.scales):
            if S.min() <= max(S.shape) * np.finfo(S.dtype).eps * S.max():
                raise np.linalg.LinAlgError(f"layer {i} is singular to rounding: the smallest eigenvalue in the basis "
                                            f"of its factors A and G is {S.min():.3g}; give a larger damping")
        return [kronecker.apply_in_eigenbasis(A, G, 1 / S, v)
                for (A, G), S, v in zip(self.bases, self.scales, V, strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the block-diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        blocks = []
        for (A, G), S in zip(self.bases, self.scales, strict=True):
            Q = np.kron(A.Q, G.Q)
            blocks.append((Q * kronecker.vec(S)) @ Q.T)
        return block_diagonal(blocks)

    @cached_property
    def _rows(self) -> tuple[tuple[Array, Array], ...]:
        """a_bar (N, n) and the gradients of all columns (K, N, m) of each layer."""
        return tuple(zip(self.at.a_bar, self.at.backward(columns_of(self.at, self.columns(self.at))), strict=True))

    @cached_property
    def bases(self) -> tuple[tuple[Eigen, Eigen], ...]:
        """The eigenvectors of A and G of each layer."""
        N = len(self.at)
        flat = ((a_bar, g.reshape(-1, g.shape[-1])) for a_bar, g in self._rows)
        return tuple((Eigen.factor(a_bar.T @ a_bar / N, f"factor A of layer {i}"),
                      Eigen.factor(g.T @ g / N, f"factor G of layer {i}")) for i, (a_bar, g) in enumerate(flat))

    @cached_property
    def scales(self) -> tuple[Array, ...]:
        """The damped second moments S of each layer, (m, n)."""
        return tuple(np.square(g @ G.Q).sum(axis=0).T @ np.square(a_bar @ A.Q) / len(self.at) + self.damping
                     for (a_bar, g), (A, G) in zip(self._rows, self.bases, strict=True))
