"""The interface of every structure: a damped matrix C on parameter space that multiplies and solves.

    product(V)        C v                        dense()           C, (P, P)
    solve(V)          C^{-1} v                   inverse_dense()   C^{-1}, (P, P)

C includes its damping. V and the results are directions: lists of (d_{i+1}, d_i + 1) arrays. `solve` has no minus sign.
The first solve factors the matrix and keeps the factorization. `product` and `dense` factor nothing, so they also work
for an undamped matrix that is singular.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import scipy.linalg

from .. import checks, params
from ..checks import Array, Direction
from ..damping import Balance, factored_tikhonov, trace_pi
from ..expectations import Expectation, exact, gradients
from ..factors import Factors
from ..kronecker import Cholesky
from ..model import Point


class Curvature(abc.ABC):
    """A symmetric positive (semi-)definite matrix on parameter space.

    A subclass of your own defines `shapes`, `dtype`, `product` and `solve`; the dense forms follow from these.
    """

    @property
    @abc.abstractmethod
    def shapes(self) -> Sequence[tuple[int, int]]:
        """The shapes of the weights."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of the matrix."""

    @abc.abstractmethod
    def product(self, V: Direction) -> list[Array]:
        """Return ``C v``; raises ValueError for wrong shapes (naming the layer), NaN or infinity."""

    @abc.abstractmethod
    def solve(self, V: Direction) -> list[Array]:
        """Return ``C^{-1} v``; raises as `product`, and LinAlgError if C is singular to rounding."""

    def __repr__(self) -> str:
        damping = getattr(self, "damping", None)
        return (f"{type(self).__name__} of {len(self.shapes)} layers, {sum(m * n for m, n in self.shapes)} parameters"
                f"{'' if damping is None else f', damping {damping:.3g}'}")

    def kept(self) -> Curvature:
        """Return an equivalent matrix prepared for repeated solves (default: itself)."""
        return self

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return C, (P, P); refuses more than `max_bytes` (default: 4 GiB)."""
        return self._columns(self.product, max_bytes)

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return ``C^{-1}``, (P, P); refuses more than `max_bytes` (default: 4 GiB)."""
        return self._columns(self.solve, max_bytes)

    def _columns(self, apply: Callable[[Direction], list[Array]], max_bytes: int | None) -> Array:
        P = self._dense_size(max_bytes)
        basis = np.eye(P, dtype=self.dtype)
        return np.stack([params.flatten(apply(params.unflatten(e, self.shapes))) for e in basis], axis=1)

    def _dense_size(self, max_bytes: int | None) -> int:
        P = sum(m * n for m, n in self.shapes)
        checks.dense_size(f"the dense {type(self).__name__}", P, P, self.dtype.itemsize, max_bytes)
        return P

    def _direction(self, V: Direction) -> tuple[Array, ...]:
        return checks.direction("V", V, self.shapes, self.dtype)


def block_diagonal(blocks: Sequence[Array]) -> Array:
    """Return the (P, P) matrix with these (p_i, p_i) blocks on its diagonal and zeros elsewhere, in their dtype."""
    return scipy.linalg.block_diag(*blocks)


class SolvedDense(Curvature):
    """A structure that forms its matrix, (P, P), at the first solve, and factors it."""

    #: What the matrix is called in the error if it is singular.
    name: ClassVar[str]

    def solve(self, V: Direction) -> list[Array]:
        """Return ``C^{-1} v``."""
        return params.unflatten(self._cholesky.solve(params.flatten(self._direction(V))), self.shapes)

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return ``C^{-1}``, (P, P)."""
        return self._factor(self.dense(max_bytes)).inverse()

    @cached_property
    def _cholesky(self) -> Cholesky:
        return self._factor(self.dense())

    def _factor(self, C: Array) -> Cholesky:
        return Cholesky.factor(C, self.name, "give a larger damping")


@dataclass(frozen=True, eq=False, repr=False)
class OfFactors(Curvature):
    """A structure made from Kronecker factors."""

    factors: Factors      #: A and G of each layer, and the cross factors that the structure needs.
    damping: float = 0.0  #: At least 0: lambda + eta, or gamma^2 in its place (sec. 6.6).

    def __post_init__(self) -> None:
        if not isinstance(self.factors, Factors):
            raise ValueError(f"factors must be Factors, got {type(self.factors).__name__}: estimate them first, "
                             "for example with kronecker_factors(at)")
        object.__setattr__(self, "damping", checks.number("damping", self.damping, 0))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights."""
        return self.factors.shapes

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of the matrix."""
        return self.factors.A[0].dtype


@dataclass(frozen=True, eq=False, repr=False)
class OfDampedFactors(OfFactors):
    """A structure of factors with factored Tikhonov damping (sec. 6.3)."""

    pi: Balance = trace_pi  #: How A and G share the damping: `trace_pi`, `frobenius_pi` or your own function.

    @cached_property
    def pis(self) -> tuple[float, ...]:
        """The pi of each layer."""
        return tuple(self.pi(A, G) for A, G in self.factors.layers)

    @cached_property
    def damped(self) -> tuple[tuple[Array, Array], ...]:
        """The damped factors (A, G) of each layer."""
        return tuple(factored_tikhonov(A, G, self.damping, pi)
                     for (A, G), pi in zip(self.factors.layers, self.pis, strict=True))

    def _prepared_by(self, factor: Any, i: int) -> tuple[Any, Any]:
        """Return the damped factors of layer i as `Cholesky` or `Inverse`."""
        A, G = (factor.factor(X, f"factor {name} of layer {i}", "give a larger damping")
                for name, X in zip("AG", self.damped[i], strict=True))
        return A, G


@dataclass(frozen=True, eq=False, repr=False)
class OfPoint(Curvature):
    """A structure made from a point, for matrices that factors do not determine."""

    at: Point                         #: Point of evaluation.
    damping: float = 0.0              #: At least 0: lambda + eta, or gamma^2 in its place (sec. 6.6).
    expectation: Expectation = exact  #: `exact`, ``sampled(targets)``, ``empirical(y)`` or your own.

    def __post_init__(self) -> None:
        if not isinstance(self.at, Point):
            raise ValueError(f"at must be a Point, got {type(self.at).__name__}: {type(self).__name__} cannot be made "
                             "from factors")
        object.__setattr__(self, "damping", checks.number("damping", self.damping, 0))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights."""
        return self.at.model.network.shapes

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of the matrix."""
        return self.at.z.dtype

    @cached_property
    def _gradients(self) -> list[Array]:
        """The gradients g of all columns, (K, N, d_{i+1}) per layer."""
        return gradients(self.at, self.expectation)
