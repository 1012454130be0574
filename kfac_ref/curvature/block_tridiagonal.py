"""The paper's F̂: its inverse is block-tridiagonal, and its own tridiagonal blocks are those of F̃ (sec. 4.3).

Read F̃ as the covariance of D theta, and let the layers form a Markov chain: given layer i + 1, layer i does not depend
on later layers. With the damped diagonal factors A_i, G_i and the cross factors A_{i,i+1}, G_{i,i+1}, i = 0..L-2::

    PsiA_i = A_{i,i+1} A_{i+1}^{-1}        PsiG_i = G_{i,i+1} G_{i+1}^{-1}        Psi_i = PsiA_i ⊗ PsiG_i
    Sigma_i = A_i ⊗ G_i - (PsiA_i A_{i+1} PsiA_i^T) ⊗ (PsiG_i G_{i+1} PsiG_i^T)        Sigma_{L-1} = A ⊗ G

Psi_i is the regression of layer i on layer i + 1, and Sigma_i is the covariance of what it does not explain. With
Xi = I and -Psi_i on the block superdiagonal::

    F̂^{-1} = Xi^T blockdiag(Sigma^{-1}) Xi          F̂ = Xi^{-1} blockdiag(Sigma) Xi^{-T}

So a solve is three sweeps over the layers, the middle one by Appendix B. No matrix of the size of F̂ is formed.

Sigma is a difference, which loses the digits of float32: Psi and Sigma are computed in float64 and rounded at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .. import kronecker
from ..checks import Array, Direction
from ..kronecker import Cholesky, KroneckerSum
from .base import OfDampedFactors


@dataclass(frozen=True, eq=False, repr=False)
class BlockTridiagonal(OfDampedFactors):
    """F̂ with factored Tikhonov damping (sec. 4.3, app. B); needs the cross factors of neighbours (``reach=1`` or more).

    Only the diagonal factors are damped. Without damping F̂ need not exist: behind a linear hidden layer, Sigma is
    singular.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for i in range(len(self.factors) - 1):
            _ = self.factors.A[i, i + 1]               # refuses factors without their cross factors

    def product(self, V: Direction) -> list[Array]:
        """Return ``Xi^{-1} blockdiag(Sigma) Xi^{-T} v`` in three sweeps: up, across, and down again."""
        U = list(self._direction(V))
        for i, (PsiA, PsiG) in enumerate(self._regressions):
            U[i + 1] = U[i + 1] + PsiG.T @ U[i] @ PsiA                      # w_{i+1} = v_{i+1} + Psi_i^T w_i
        U = [self._apply_sigma(i, u) for i, u in enumerate(U)]
        for i, (PsiA, PsiG) in reversed(list(enumerate(self._regressions))):
            U[i] = U[i] + PsiG @ U[i + 1] @ PsiA.T                          # y_i = u_i + Psi_i y_{i+1}
        return U

    def solve(self, V: Direction) -> list[Array]:
        """Return ``Xi^T blockdiag(Sigma^{-1}) Xi v`` in three sweeps."""
        V = self._direction(V)
        U = list(V)
        for i, (PsiA, PsiG) in enumerate(self._regressions):
            U[i] = V[i] - PsiG @ V[i + 1] @ PsiA.T
        U = self._solve_sigma(U)
        W = list(U)
        for i, (PsiA, PsiG) in enumerate(self._regressions):
            W[i + 1] = U[i + 1] - PsiG.T @ U[i] @ PsiA
        return W

    @cached_property
    def _double(self) -> BlockTridiagonal:
        """The same matrix in float64; itself if it is float64 already."""
        return self if self.dtype == np.float64 else replace(self, factors=self.factors.astype(np.float64))

    @cached_property
    def _first(self) -> tuple[Cholesky, Cholesky]:
        return self._prepared_by(Cholesky, 0)

    @cached_property
    def _later(self) -> tuple[tuple[Cholesky, Cholesky], ...]:
        return tuple(self._prepared_by(Cholesky, i) for i in range(1, len(self.damped)))

    @cached_property
    def _regressions(self) -> tuple[tuple[Array, Array], ...]:
        """PsiA_i and PsiG_i, i = 0..L-2."""
        if self._double is not self:
            return _rounded(self._double._regressions, self.dtype)
        pairs = ((self.factors.A[i, i + 1], self.factors.G[i, i + 1]) for i in range(len(self.factors) - 1))
        return tuple((A.solve_right(A_cross), G.solve_right(G_cross))
                     for (A_cross, G_cross), (A, G) in zip(pairs, self._later, strict=True))

    @cached_property
    def _explained(self) -> tuple[tuple[Array, Array], ...]:
        """PsiA_i A_{i+1} PsiA_i^T and PsiG_i G_{i+1} PsiG_i^T, i = 0..L-2: what Sigma_i subtracts."""
        if self._double is not self:
            return _rounded(self._double._explained, self.dtype)
        return tuple((PsiA @ A @ PsiA.T, PsiG @ G @ PsiG.T)
                     for (PsiA, PsiG), (A, G) in zip(self._regressions, self.damped[1:], strict=True))

    def _apply_sigma(self, i: int, u: Array) -> Array:
        Su = kronecker.product(*self.damped[i], u)
        return Su if i == len(self.damped) - 1 else Su - kronecker.product(*self._explained[i], u)

    @cached_property
    def _sigmas(self) -> tuple[KroneckerSum, ...]:
        """Sigma_i, i = 0..L-2; the last one is a plain product."""
        if self._double is not self:
            return tuple(S.astype(self.dtype) for S in self._double._sigmas)
        _ = self._first                             # refuses a singular factor by its name
        return tuple(KroneckerSum.factor(A, G, C, D, -1, f"Sigma of layer {i} (factors A and G given layer {i + 1})")
                     for i, ((A, G), (C, D)) in enumerate(zip(self.damped[:-1], self._explained, strict=True)))

    def _solve_sigma(self, U: list[Array]) -> list[Array]:
        return [*(S.solve(u) for S, u in zip(self._sigmas, U[:-1], strict=True)),
                kronecker.solve(*(self._first, *self._later)[-1], U[-1])]


def _rounded(pairs: tuple[tuple[Array, Array], ...], dtype: np.dtype[np.floating]) -> tuple[tuple[Array, Array], ...]:
    return tuple((A.astype(dtype), G.astype(dtype)) for A, G in pairs)
