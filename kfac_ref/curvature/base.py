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
from typing import ClassVar

import numpy as np
import scipy.linalg

from .. import checks, params
from ..checks import Array, Direction
from ..factors import Factors
from ..model import Point


class Curvature(abc.ABC):
    """A symmetric positive (semi-)definite matrix on parameter space.

    A structure is made as ``Structure(factors, damping=...)``, or as ``Structure(at, damping=...)`` if it sets
    `takes_point`. A subclass of the user's own writes `shapes`, `dtype`, `product` and `solve`; the dense forms follow.

    Attributes
    ----------
    reach : int or inf
        Which cross factors it needs, as in `exact_factors`: 0 none, 1 neighbours, inf all.
    takes_point : bool
        Whether it is made from a `Point` in place of `Factors`.
    """

    reach: ClassVar[float] = 0
    takes_point: ClassVar[bool] = False

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

    def kept(self) -> Curvature:
        """Return the same matrix in the form that suits many solves; itself, where there is no better one."""
        return self

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return C, (P, P); refuses more than `max_bytes` (4 GiB unless told)."""
        return self._columns(self.product, max_bytes)

    def inverse_dense(self, max_bytes: int | None = None) -> Array:
        """Return ``C^{-1}``, (P, P); refuses more than `max_bytes` (4 GiB unless told)."""
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
        One a layer.

    Returns
    -------
    (P, P) array
        P is the sum of the p_i; zero outside the blocks.
    """
    return scipy.linalg.block_diag(*blocks)


@dataclass(frozen=True, eq=False)
class OfFactors(Curvature):
    """A structure made from factors; its subclasses say how.

    Parameters
    ----------
    factors : Factors
        A and G of each layer, and the cross factors that `reach` tells of.
    damping : float
        The number under the root, at least 0.
    """

    factors: Factors
    damping: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.factors, Factors):
            raise ValueError(f"factors must be Factors, got {type(self.factors).__name__}: estimate them first, "
                             "for example by exact_factors(at)")
        object.__setattr__(self, "damping", checks.number("damping", self.damping, 0))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights."""
        return tuple((len(G), len(A)) for A, G in zip(self.factors.A, self.factors.G, strict=True))

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of the matrix."""
        return self.factors.A[0].dtype


@dataclass(frozen=True, eq=False)
class OfPoint(Curvature):
    """A structure made from a point, since factors do not say enough; its subclasses say how.

    Parameters
    ----------
    at : Point
        Where.
    damping : float
        The number under the root, at least 0.
    """

    takes_point: ClassVar[bool] = True
    at: Point
    damping: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.at, Point):
            raise ValueError(f"at must be a Point, got {type(self.at).__name__}: {type(self).__name__} cannot be made "
                             "from factors (a function that makes it for an optimizer needs takes_point = True)")
        object.__setattr__(self, "damping", checks.number("damping", self.damping, 0))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights."""
        return self.at.model.network.shapes

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of the matrix."""
        return self.at.z.dtype
