"""EK-FAC: the eigenvectors of K-FAC with second moments measured in their basis (George et al. 2018).

    A = U_A diag U_A^T,  G = U_G diag U_G^T
    S_i = (1/N) sum_n sum_k ( U_G^T D_n^k U_A )^2                     squared entry by entry, (m, n)
    C_ii = (U_A ⊗ U_G) diag(vec S_i) (U_A ⊗ U_G)^T + damping I

vec S_i is the diagonal of the exact block in this basis, and therefore the best diagonal that the basis allows. K-FAC
uses products of eigenvalues instead. Over a data set in parts this takes two passes: the factors first, then the
second moments in their basis. Averaging the S of different bases would be wrong.
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
    """Return the undamped second moments S of each layer in given bases of A and G, (m, n)."""
    return basis_moments(gradients(at, expectation), at.a_bar, bases)


def basis_moments(g: Sequence[Array], a_bar: Sequence[Array], bases: Sequence[tuple[Eigen, Eigen]]
                  ) -> tuple[Array, ...]:
    """Return S of each layer from the gradients of all columns, (K, N, m), and the inputs, (N, n)."""
    return tuple(rotated_squares(gi, a, G.Q, A.Q) / len(a) for gi, a, (A, G) in zip(g, a_bar, bases, strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class EKFAC(OfPoint, InEigenbasis):
    """The eigenbasis of the Kronecker factors with second moments of the same expectation (George et al. 2018)."""

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
    """Return EK-FAC over a data set in parts: the same matrix as `EKFAC` at a point with all examples.

    The parts (from `Model.parts`) are read twice; the expectation must return the same columns both times.
    """
    damping = checks.number("damping", damping, 0)
    parts = list(parts)
    bases = bases_of(mean_over(parts, functools.partial(kronecker_factors, expectation=expectation), map))
    S = mean_over(parts, functools.partial(eigenbasis_moments, bases=bases, expectation=expectation), map)
    return Eigenbasis(bases, tuple(s + damping for s in S))
