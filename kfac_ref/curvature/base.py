"""The interface of every structure: a damped matrix on parameter space that multiplies, solves, and can be seen.

    product(V)        C v                        dense()           C
    solve(V)          C^{-1} v                   inverse_dense()   C^{-1}

C includes its damping. Directions go in and come out; `solve` has no minus sign. Factorizations happen at the first
solve and are kept, so that an undamped singular matrix can still be multiplied by and looked at.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from .. import checks, params
from ..checks import Array, Direction
from ..expectations import Expectation, exact, gradients
from ..factors import Factors
from ..model import Point


class Curvature(abc.ABC):
    """A symmetric positive (semi-)definite matrix on parameter space.

    A structure is made as ``Structure(factors, damping=...)``, or as ``Structure(at, damping=..., expectation=...)``. A
    subclass of your own defines `shapes`, `dtype`, `product` and `solve`; the dense forms follow.
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
        """Return ``C v``.

        Parameters
        ----------
        V : list of (d_{i+1}, d_i + 1) arrays
            A direction.

        Returns
        -------
        list of (d_{i+1}, d_i + 1) arrays
            A direction.

        Raises
        ------
        ValueError
            For wrong shapes (naming the layer), NaN or infinity.
        """

    @abc.abstractmethod
    def solve(self, V: Direction) -> list[Array]:
        """Return ``C^{-1} v``.

        Parameters
        ----------
        V : list of (d_{i+1}, d_i + 1) arrays
            A direction.

        Returns
        -------
        list of (d_{i+1}, d_i + 1) arrays
            A direction; there is no minus sign in it.

        Raises
        ------
        ValueError
            For wrong shapes (naming the layer), NaN or infinity, or where C is singular to rounding.
        """

    def __repr__(self) -> str:
        """Return one line."""
        damping = getattr(self, "damping", None)
        return (f"{type(self).__name__} of {len(self.shapes)} layers, {sum(m * n for m, n in self.shapes)} parameters"
                f"{'' if damping is None else f', damping {damping:.3g}'}")

    def kept(self) -> Curvature:
        """Return the same matrix in the form that suits many solves; itself, where there is no better one."""
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
    """Return the matrix with these blocks on its diagonal, in their dtype.

    Parameters
    ----------
    blocks : sequence of (p_i, p_i) arrays
        One per layer.

    Returns
    -------
    (P, P) array
        P is the sum of the p_i; zero outside the blocks.
    """
    return scipy.linalg.block_diag(*blocks)


@dataclass(frozen=True, eq=False, repr=False)
class OfFactors(Curvature):
    """A structure made from factors.

    Parameters
    ----------
    factors : Factors
        A and G of each layer, and the cross factors that the structure needs.
    damping : float
        The number under the root, at least 0.
    """

    factors: Factors
    damping: float = 0.0

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
class OfPoint(Curvature):
    """A structure made from a point, for matrices that factors do not determine.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    damping : float
        The number under the root, at least 0.
    expectation : function of a Point
        `exact`, ``sampled(targets)`` or ``empirical(y)``.
    """

    at: Point
    damping: float = 0.0
    expectation: Expectation = exact

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
        """The gradients g of all columns, (K, N, d_{i+1}) for each layer."""
        return gradients(self.at, self.expectation)
