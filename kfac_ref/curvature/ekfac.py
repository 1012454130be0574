"""EKFAC: K-FAC's eigenvectors with second moments that are measured in them (George et al. 2018).

    A = U_A diag U_A^T,  G = U_G diag U_G^T
    S_i = (1/N) sum_n sum_k ( U_G^T D_n^k U_A )^2                     squared entry by entry, (m, n)
    C_ii = (U_A kron U_G) diag(vec S_i) (U_A kron U_G)^T + damping I

vec S_i is the diagonal of the exact block in that basis, hence the best diagonal that the basis allows; K-FAC takes the
products of eigenvalues in its place. Over a data set in parts it takes two passes: the factors, and then the second
moments in their basis. Averaging the S of different bases is not the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import checks
from ..checks import Array
from ..expectations import Expectation, exact, gradients
from ..factors import Factors, kronecker_factors
from ..kronecker import Eigen
from ..layers import rotated_squares, second_moment
from ..model import Point
from ..parts import Part, mean_over
from .base import OfPoint
from .eigen_damped import bases_of
from .eigenbasis import Eigenbasis, InEigenbasis


def eigenbasis_moments(at: Point, bases: tuple[tuple[Eigen, Eigen], ...], expectation: Expectation = exact
                       ) -> tuple[Array, ...]:
    """Return the second moments S of each layer in given bases.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    bases : tuple of pairs of Eigen
        Of A and G of each layer.
    expectation : function of a Point
        `exact`, ``sampled(targets)`` or ``empirical(y)``.

    Returns
    -------
    tuple of (m, n) arrays
        Means over the examples, undamped.
    """
    return basis_moments(gradients(at, expectation), at.a_bar, bases)


def basis_moments(g: Sequence[Array], a_bar: Sequence[Array], bases: Sequence[tuple[Eigen, Eigen]]
                  ) -> tuple[Array, ...]:
    """Return the second moments S of given gradients in given bases, layer by layer.

    Parameters
    ----------
    g : sequence of (K, N, m) arrays
        The gradients of all columns.
    a_bar : sequence of (N, n) arrays
        The inputs of the layers.
    bases : sequence of pairs of Eigen
        Of A and G of each layer.
    """
    return tuple(rotated_squares(gi, a, G.Q, A.Q) / len(a) for gi, a, (A, G) in zip(g, a_bar, bases, strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class EKFAC(OfPoint, InEigenbasis):
    """The eigenbasis of the Kronecker factors with re-estimated second moments, damped exactly.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    damping : float
        lambda + eta, at least 0.
    expectation : function of a Point
        `exact`, ``sampled(targets)`` or ``empirical(y)``; of the factors and of the second moments.

    Notes
    -----
    Source: George et al. 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis".
    """

    @cached_property
    def bases(self) -> tuple[tuple[Eigen, Eigen], ...]:     # type: ignore[override]
        """The eigenvectors of A and G of each layer."""
        N = len(self.at)
        A = [second_moment(a_bar, a_bar) / N for a_bar in self.at.a_bar]
        return bases_of(Factors.of_layers(A, [second_moment(g, g) / N for g in self._gradients], N))

    @cached_property
    def scales(self) -> tuple[Array, ...]:                  # type: ignore[override]
        """The damped second moments S of each layer, (m, n)."""
        return tuple(S + self.damping for S in basis_moments(self._gradients, self.at.a_bar, self.bases))


def ekfac_over(parts: Iterable[Part], damping: float = 0.0, expectation: Expectation = exact,
               map: Callable[..., Iterable[Any]] = map) -> Eigenbasis:
    """Return EK-FAC over a data set in parts, in two passes.

    Parameters
    ----------
    parts : iterable of Part
        From `Model.parts`; read twice.
    damping : float
        lambda + eta, at least 0.
    expectation : function of a Point
        As in `EKFAC`; it must return the same columns in both passes.
    map : function
        As in `mean_over`.

    Returns
    -------
    Eigenbasis
        The same matrix as `EKFAC` at a point that holds the whole data set.

    Raises
    ------
    ValueError
        For no parts, or a negative damping.
    """
    damping = checks.number("damping", damping, 0)
    parts = list(parts)
    bases = bases_of(mean_over(parts, functools.partial(kronecker_factors, expectation=expectation), map))
    S = mean_over(parts, functools.partial(eigenbasis_moments, bases=bases, expectation=expectation), map)
    return Eigenbasis(bases, tuple(s + damping for s in S))
