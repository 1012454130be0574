"""The diagonal of the Fisher, without the rest of it.

    diag(F)_{W_i} = (1/N) sum_n [ sum_k (g_i^k)^2 ] (a_bar_i^2)^T            squares taken entry by entry
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..checks import Array, Direction
from ..fisher import columns_of, exact_columns
from ..kronecker import vec
from ..model import Point
from .base import OfPoint


@dataclass(frozen=True, eq=False)
class Diagonal(OfPoint):
    """``diag(F) + damping I``.

    Parameters
    ----------
    at : Point
        Where.
    damping : float
        lambda + eta, at least 0.
    columns : function of at
        The expectation: `exact_columns`, or ``lambda at: sampled_columns(at, targets)``, or the empirical ones.
    """

    columns: Callable[[Point], Array] = exact_columns

    def product(self, V: Direction) -> list[Array]:
        """Multiply entry by entry."""
        return [D * v for D, v in zip(self.scales, self._direction(V), strict=True)]

    def solve(self, V: Direction) -> list[Array]:
        """Divide entry by entry."""
        V = self._direction(V)
        for i, D in enumerate(self.scales):
            if D.min() <= np.finfo(D.dtype).eps * D.max():
                raise np.linalg.LinAlgError(f"the diagonal of layer {i} is singular to rounding: its smallest "
                                            f"eigenvalue is {D.min():.3g}; give a larger damping")
        return [v / D for D, v in zip(self.scales, V, strict=True)]

    def dense(self, max_bytes: int | None = None) -> Array:
        """Return the diagonal matrix, (P, P)."""
        self._dense_size(max_bytes)
        return np.diag(np.concatenate([vec(D) for D in self.scales]))

    @cached_property
    def scales(self) -> tuple[Array, ...]:
        """The damped diagonal, as an array a layer, shaped like the weights."""
        g = self.at.backward(columns_of(self.at, self.columns(self.at)))
        return tuple(np.square(gi).sum(axis=0).T @ np.square(a_bar) / len(self.at) + self.damping
                     for gi, a_bar in zip(g, self.at.a_bar, strict=True))
