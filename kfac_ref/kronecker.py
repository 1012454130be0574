"""The algebra of Kronecker products, as K-FAC uses it: products and solves that never form one.

vec stacks the COLUMNS of a matrix. For A (n, n), G (m, m) and V (m, n)::

    (A ⊗ G) vec(V) = vec(G V A^T)                                (A ⊗ G)^{-1} = A^{-1} ⊗ G^{-1}

so a solve with a matrix of (m n)^2 entries takes two small solves (paper: sec. 4.2). If vec stacked rows, the same
matrix would be G ⊗ A: the order belongs to the vec.

The *rearrangement* of Van Loan and Pitsianis, here with Gamma first, writes every m x m block of a matrix as a row
vector, and so turns Kronecker products into matrices of rank one::

    R(A ⊗ G) = vec(G) vec(A)^T                                   (m^2, n^2)

Hence the nearest Kronecker product of any matrix is the leading singular triple of its rearrangement, and R of a
Fisher block is the expectation of vec(g g^T) vec(a_bar a_bar^T)^T, one matrix product over the examples.

Appendix B of the paper solves (A ⊗ B +- C ⊗ D) x = v by two symmetric eigenproblems.

All matrices that are factored must be symmetric. If a factorization fails, it raises `numpy.linalg.LinAlgError`, a
``ValueError``, whose message calls the matrix `name`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import DTypeLike

from . import checks
from .checks import Array


def vec(V: Array) -> Array:
    """Stack the columns of a matrix: (m, n) to (m n,)."""
    return V.ravel(order="F")


def unvec(v: Array, m: int, n: int) -> Array:
    """Return the (m, n) matrix whose stacked columns are the (m n,) vector `v`."""
    return v.reshape((m, n), order="F")


def product(A: Array, G: Array, V: Array) -> Array:
    """Return ``G V A^T``, (q, p), which is ``(A ⊗ G) vec(V)`` as a matrix; A is (p, n), G is (q, m), V is (m, n).

    This takes 2 q m n + 2 q n p flops; with the Kronecker product formed it would be 2 (q p) (m n).
    """
    return G @ V @ A.T


@dataclass(frozen=True)
class Cholesky:
    """The Cholesky factor of a symmetric positive definite matrix. Made by `Cholesky.factor`."""

    lower: Array        #: Lower triangular; ``lower @ lower.T`` is the matrix.
    rcond: float        #: LAPACK's estimate of the reciprocal condition number in the 1-norm.

    @classmethod
    def factor(cls, S: Array, name: str = "the matrix", remedy: str = "add damping") -> Cholesky:
        """Factor the symmetric (n, n) matrix `S`.

        A matrix that is not positive definite, or is singular to rounding, raises `numpy.linalg.LinAlgError`, whose
        message gives the smallest eigenvalue and the suggested fix, `remedy`.
        """
        # Cholesky of an exactly singular matrix often succeeds, with a last pivot of rounding size or, behind an
        # ill-conditioned block, a larger one. LAPACK's estimate of the condition number detects both: for random
        # singular matrices that passed Cholesky, rcond was at most 2 eps. (NaN is treated as singular, too.)
        potrf, pocon = scipy.linalg.get_lapack_funcs(("potrf", "pocon"), (S,))
        lower, info = potrf(S, lower=1, clean=1)
        rcond = 0.0 if info else float(pocon(lower, np.abs(S).sum(axis=0).max(), uplo="L")[0])
        if not rcond >= 8 * np.finfo(S.dtype).eps:
            smallest = float(scipy.linalg.eigvalsh(checks.finite(name, S))[0])
            raise np.linalg.LinAlgError(f"{name} ({len(S)} x {len(S)}) is singular to rounding: its smallest "
                                        f"eigenvalue is {smallest:.3g}; {remedy}")
        return cls(lower, rcond)

    def solve(self, B: Array) -> Array:
        """Return ``S^{-1} B`` by two triangular solves."""
        return scipy.linalg.cho_solve((self.lower, True), B, check_finite=False)

    def solve_right(self, B: Array) -> Array:
        """Return ``B S^{-1}``."""
        return self.solve(B.T).T                # S is symmetric: B S^{-1} = (S^{-1} B^T)^T

    def inverse(self) -> Array:
        """Return ``S^{-1}`` (LAPACK's potri), for a matrix that is applied many times before it changes."""
        potri = scipy.linalg.get_lapack_funcs("potri", (self.lower,))
        half, info = potri(self.lower, lower=1)             # the lower triangle; above it are the zeros of `lower`
        if info:
            raise np.linalg.LinAlgError(f"potri failed with info = {info}")
        np.einsum("ii->i", half)[:] /= 2                    # the diagonal is in both terms of the sum
        return half + half.T


@dataclass(frozen=True)
class Inverse:
    """An explicit inverse: in exact arithmetic the same as `Cholesky`, but cheaper from the second solve on."""

    matrix: Array

    @classmethod
    def factor(cls, S: Array, name: str = "the matrix", remedy: str = "add damping") -> Inverse:
        """Invert `S` by way of its Cholesky factor; arguments and errors are those of `Cholesky.factor`."""
        return cls(Cholesky.factor(S, name, remedy).inverse())

    def solve(self, B: Array) -> Array:
        """Return ``S^{-1} B`` as one matrix product."""
        return self.matrix @ B

    def solve_right(self, B: Array) -> Array:
        """Return ``B S^{-1}`` as one matrix product."""
        return B @ self.matrix

    def inverse(self) -> Array:
        """Return ``S^{-1}``."""
        return self.matrix


def solve(A: Cholesky | Inverse, G: Cholesky | Inverse, V: Array) -> Array:
    """Solve ``(A ⊗ G) vec(X) = vec(V)`` for X, (m, n), without forming the Kronecker product (sec. 4.2).

    ``X = G^{-1} V A^{-1}`` takes 2 m n (m + n) flops; the dense solve would take (m n)^3 / 3.
    """
    return A.solve_right(G.solve(V))


@dataclass(frozen=True)
class Eigen:
    """The eigendecomposition ``S = Q diag(values) Q^T`` of a symmetric matrix, with ascending values."""

    values: Array
    Q: Array

    @classmethod
    def factor(cls, S: Array, name: str = "the matrix") -> Eigen:
        """Decompose the symmetric (n, n) matrix `S`."""
        return cls(*scipy.linalg.eigh(checks.finite(name, S), check_finite=False))

    def root(self) -> Array:
        """Return the symmetric square root of a positive semi-definite matrix.

        Eigenvalues of rounding size count as 0: otherwise the root of 1e-18 would add 1e-9.
        """
        rounding = len(self.Q) * np.finfo(self.Q.dtype).eps * self.values[-1]
        return (self.Q * np.sqrt(np.where(self.values > rounding, self.values, 0))) @ self.Q.T


def spectrum(A: Eigen, G: Eigen) -> Array:
    """Return the eigenvalues of A ⊗ G as an (m, n) matrix: entry (j, i) is ``values_G[j] values_A[i]``."""
    return np.outer(G.values, A.values)


def apply_in_eigenbasis(A: Eigen, G: Eigen, scales: Array, V: Array) -> Array:
    """Return ``(Q_A ⊗ Q_G) diag(vec(scales)) (Q_A ⊗ Q_G)^T vec(V)`` as an (m, n) matrix; so are V and the scales."""
    return G.Q @ (scales * (G.Q.T @ V @ A.Q)) @ A.Q.T


def rearrange(B: Array, A_shape: tuple[int, int], G_shape: tuple[int, int]) -> Array:
    """Rearrange a matrix so that Kronecker products become matrices of rank one: ``R(A ⊗ G) = vec(G) vec(A)^T``.

    For A of shape (n_1, n_2) and G of shape (m_1, m_2), B is (n_1 m_1, n_2 m_2) and the result (m_1 m_2, n_1 n_2).

    Source: Van Loan & Pitsianis 1993, transposed (Gamma first).
    """
    (n1, n2), (m1, m2) = A_shape, G_shape
    return B.reshape(n1, m1, n2, m2).transpose(3, 1, 2, 0).reshape(m1 * m2, n1 * n2)


def nearest_product(B: Array, A_shape: tuple[int, int], G_shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Return A and G with A ⊗ G nearest to a matrix B in Frobenius norm, and the singular values of ``R(B)``.

    A and G have the same norm, and the trace of A is not negative; if B is symmetric positive semi-definite, so are
    they. The min(m_1 m_2, n_1 n_2) singular values descend: the squared error of A ⊗ G is the sum of squares of all but
    the first.

    Source: Van Loan & Pitsianis 1993.
    """
    U, singular, Vt = scipy.linalg.svd(rearrange(B, A_shape, G_shape), full_matrices=False)
    root = np.sqrt(singular[0])
    A, G = unvec(root * Vt[0], *A_shape), unvec(root * U[:, 0], *G_shape)
    sign = -1 if np.trace(A) < 0 else 1
    return sign * A, sign * G, singular


@dataclass(frozen=True)
class KroneckerSum:
    """``A ⊗ B ± C ⊗ D``, prepared for solves by two symmetric eigenproblems (app. B). Made by `KroneckerSum.factor`.

    With the generalized eigenvectors ``K_1^T A K_1 = I, K_1^T C K_1 = diag(s_1)``, and likewise K_2 for (B, D), it is
    ``(K_1 ⊗ K_2)^{-T} diag(1 ± s_1 s_2) (K_1 ⊗ K_2)^{-1}``.
    """

    K1: Array
    K2: Array
    scales: Array

    @classmethod
    def factor(cls, A: Array, B: Array, C: Array, D: Array, sign: int = 1, name: str = "the matrix") -> KroneckerSum:
        """Prepare ``A ⊗ B + sign C ⊗ D`` for solves.

        A zero 1 - s_1 s_2 is an error, because the difference is then singular; the author's code replaces it by 1.

        Parameters
        ----------
        A, B : (n, n) and (m, m) arrays
            The factors of the first product, symmetric positive definite.
        C, D : (n, n) and (m, m) arrays
            The factors of the second product, symmetric positive semi-definite.
        sign : {1, -1}
            Plus or minus between the two products.
        """
        if sign not in (1, -1):
            raise ValueError(f"sign must be 1 or -1, got {sign!r}")
        s1, K1, rcond1 = _relative_eigen(C, A, f"the first factor of {name}")
        s2, K2, rcond2 = _relative_eigen(D, B, f"the second factor of {name}")
        scales = 1 + sign * np.outer(s2, s1)
        # Where the two terms of 1 - s1 s2 cancel they are of size 1, and s1 and s2 are accurate to eps times the
        # condition numbers of A and B. For random singular differences the smallest scale was at most 5 such units.
        if np.abs(scales).min() <= 8 * np.finfo(scales.dtype).eps * (1 / rcond1 + 1 / rcond2):
            raise np.linalg.LinAlgError(f"{name} is singular to rounding: the smallest |1 {'+' if sign > 0 else '-'} "
                                        f"s1 s2| is {np.abs(scales).min():.3g}; add damping to its first product")
        return cls(K1, K2, scales)

    def solve(self, V: Array) -> Array:
        """Return X with ``(A ⊗ B ± C ⊗ D) vec(X) = vec(V)``; V is (m, n)."""
        return self.K2 @ ((self.K2.T @ V @ self.K1) / self.scales) @ self.K1.T

    def astype(self, dtype: DTypeLike) -> KroneckerSum:
        """Return the sum rounded to another precision, which is more accurate than preparing it in float32."""
        return KroneckerSum(self.K1.astype(dtype), self.K2.astype(dtype), self.scales.astype(dtype))


def solve_sum(A: Array, B: Array, C: Array, D: Array, V: Array, sign: int = 1, name: str = "the matrix") -> Array:
    """Solve ``(A ⊗ B ± C ⊗ D) vec(X) = vec(V)`` once (app. B); arguments are as in `KroneckerSum.factor`."""
    return KroneckerSum.factor(A, B, C, D, sign, name).solve(V)


def _relative_eigen(S: Array, M: Array, name: str) -> tuple[Array, Array, float]:
    """Return s and K with ``K^T M K = I`` and ``K^T S K = diag(s)``, and the reciprocal condition number of M."""
    factor = Cholesky.factor(M, name)
    L = factor.lower
    half = scipy.linalg.solve_triangular(L, S, lower=True, check_finite=False)
    s, E = scipy.linalg.eigh(scipy.linalg.solve_triangular(L, half.T, lower=True, check_finite=False))
    return s, scipy.linalg.solve_triangular(L, E, lower=True, trans="T", check_finite=False), factor.rcond
