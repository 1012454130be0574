"""The diagonal of the Fisher, computed without the other entries.

    diag(F)_{W_i} = (1/N) sum_n sum_k (D_n^k)^2 = (1/N) sum_n [ sum_k (g_i^k)^2 ] (a_bar_i^2)^T
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..checks import Array, Direction
from ..kronecker import vec
from ..layers import rotated_squares
from .base import OfPoint


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(OfPoint):
    """``diag(F) + damping I``."""

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
        """The damped diagonal of each layer, shaped like the weights."""
        return tuple(rotated_squares(g, a_bar) / len(self.at) + self.damping
                     for g, a_bar in zip(self._gradients, self.at.a_bar, strict=True))
