"""The table of approximations: which estimator of the factors goes with which structure.

A row pairs two functions (three if the factors are not themselves means)::

    estimate(at, expectation) -> Moments                means over examples: they merge, and have a running average
    finish(moments, weights)  -> Factors
    build(factors, damping=)  -> Curvature

A row without `estimate` is made from a point, ``build(at, damping=, expectation=)``, because the moments that it would
need are too large. An optimizer then uses its latest batch.

Everything reads this table: `KFAC`, the command line, the comparison of the family. To add a row, write one line here::

    KFRA = Approximation(slope_moments, EigenDamped, recursion, label="KFRA")

or make an `Approximation` of your own and pass it to `KFAC`.

In the methods, `at` is a `Point`, `damping` is at least 0, and the expectation is `exact`, ``sampled(targets)`` or
``empirical(y)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import curvature, factors
from .checks import Direction
from .curvature import Curvature
from .expectations import Expectation, exact
from .factors import Factors, Moments, as_factors
from .model import Point
from .parts import Part, mean_over


@dataclass(frozen=True, eq=False)
class Approximation:
    """An estimator of the factors with a structure made from them.

    Parameters
    ----------
    estimate : function of (at, expectation), or None
        Returns `Moments`. None for a structure that is made from a point.
    build : function
        ``build(factors, damping=...)``, or ``build(at, damping=..., expectation=...)`` if `estimate` is None; such as a
        subclass of `Curvature`.
    finish : function of (moments, weights)
        Returns `Factors` (default: the moments are the factors).
    label : str
        Name for tables and figures.

    Examples
    --------
    >>> import kfac_ref as kr
    >>> mine = Approximation(kr.factors.second_moments, kr.curvature.EigenDamped, label="mine")
    >>> mine.averages
    True
    """

    estimate: Callable[..., Moments] | None
    build: Callable[..., Curvature]
    finish: Callable[[Moments, Direction], Factors] = as_factors
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("estimate", "build", "finish"):
            part = getattr(self, name)
            if not callable(part) and not (name == "estimate" and part is None):
                raise ValueError(f"{name} must be a function, got {type(part).__name__}")

    @property
    def averages(self) -> bool:
        """Whether the row has moments, which can be merged and averaged over steps."""
        return self.estimate is not None

    def moments(self, at: Point, expectation: Expectation = exact) -> Moments:
        """Return the moments at a point; ValueError for a row that is made from a point."""
        if self.estimate is None:
            raise ValueError(f"{self.label or 'this approximation'} is made from a point: it has no moments that could "
                             "be averaged or merged over parts of the data (for EK-FAC, see curvature.ekfac_over)")
        return self.estimate(at, expectation)

    def at(self, at: Point, damping: float = 0.0, expectation: Expectation = exact) -> Curvature:
        """Return the damped matrix at a point."""
        if self.estimate is None:
            return self.build(at, damping=damping, expectation=expectation)
        return self.build(self.finish(self.estimate(at, expectation), at.weights), damping=damping)

    def over(self, parts: Iterable[Part], damping: float = 0.0, expectation: Expectation = exact,
             map: Callable[..., Iterable[Any]] = map) -> Curvature:
        """Return the damped matrix of a data set in parts, the same as at one point that holds all of its examples.

        Sampled targets or labels are those of the whole data set; `map` is as in `mean_over`. A row that is made from a
        point raises ValueError.
        """
        parts = list(parts)
        moments = mean_over(parts, functools.partial(self.moments, expectation=expectation), map)
        return self.build(self.finish(moments, parts[0].weights), damping=damping)


def nearest(at: Point, damping: float = 0.0, expectation: Expectation = exact) -> Curvature:
    """Return the nearest Kronecker product to each block, damped exactly."""
    return curvature.EigenDamped(factors.nearest_kronecker_factors(at, expectation), damping)


_A_AND_G = factors.second_moments
EXACT = Approximation(None, curvature.Exact, label="exact F")
EXACT_SMALLER = Approximation(None, curvature.smaller_exact, label="exact F, smaller system")
EXACT_BLOCK_DIAGONAL = Approximation(None, curvature.ExactBlockDiagonal, label="exact blocks")
FULL = Approximation(functools.partial(_A_AND_G, reach=math.inf), curvature.Full, label="F̃ (all blocks A ⊗ G)")
BLOCK_TRIDIAGONAL = Approximation(functools.partial(_A_AND_G, reach=1), curvature.BlockTridiagonal,
                                  label="F̂ (tridiagonal inverse)")
BLOCK_DIAGONAL = Approximation(_A_AND_G, curvature.BlockDiagonal, label="F̆ (factored damping)")
EIGEN_DAMPED = Approximation(_A_AND_G, curvature.EigenDamped, label="A ⊗ G (exact damping)")
EKFAC = Approximation(None, curvature.EKFAC, label="EKFAC")
NEAREST = Approximation(None, nearest, label="nearest A ⊗ G")
KFRA = Approximation(factors.slope_moments, curvature.EigenDamped, factors.recursion, label="KFRA")
TKFAC = Approximation(factors.gradient_moments, curvature.EigenDamped, factors.trace_preserving, label="TKFAC")
SHAMPOO = Approximation(factors.gradient_moments, curvature.EigenDamped, factors.square_roots, label="Shampoo (roots)")
INPUT_ONLY = Approximation(_A_AND_G, curvature.InputOnly, label="FOOF (A alone)")
DIAGONAL = Approximation(None, curvature.Diagonal, label="diagonal")

#: All rows by name, such as "block-diagonal".
TABLE: Mapping[str, Approximation] = {name.lower().replace("_", "-"): row for name, row in list(globals().items())
                                      if isinstance(row, Approximation)}
