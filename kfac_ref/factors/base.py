"""Moments and factors: the means over examples that an estimator needs, and the Kronecker factors made from them.

An estimator is two functions::

    estimate(at, expectation) -> Moments        means over examples: they merge and average exactly
    finish(moments, weights)  -> Factors        A and G of each layer (or pair of layers)

With A_ij = E[a_bar_i a_bar_j^T] and G_ij = E[g_i g_j^T], means over examples (paper: sec. 3)::

    F_ij  is approximated by  F̃_ij = A_ij ⊗ G_ij

``A[i]`` comes from the INPUT of layer i and ``G[i]`` from its output: they are the two factors of ``weights[i]``. (The
paper counts layers from 1 and activations from 0, so these are its A_{i,i} and G_{i+1,i+1}.)

Moments or factors can be combined if they come from the same network and estimator; otherwise the methods below raise
ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from ..checks import Array, Direction

#: The name of a moment and its layers, such as ("A", 0, 1).
Key: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over n examples, by name."""

    arrays: Mapping[Key, Array]
    n: int

    def combine(self, mix: Callable[..., Any], *others: Moments) -> Moments:
        """Return the moments ``mix(ours, theirs, ...)``, array by array, with the sum of all n."""
        ours = {key: a.shape for key, a in self.arrays.items()}
        for other in others:
            theirs = {key: a.shape for key, a in other.arrays.items()}
            if ours != theirs:
                raise ValueError(f"moments must have the same names and shapes: expected {ours}, got {theirs}")
        return Moments({key: mix(a, *(other.arrays[key] for other in others)) for key, a in self.arrays.items()},
                       self.n + sum(other.n for other in others))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of examples together: means weighted by the numbers of examples."""
        n = self.n + other.n
        return self.combine(lambda a, b: (self.n * a + other.n * b) / n, other)

    def __repr__(self) -> str:
        return f"Moments of {self.n} examples: {', '.join(' '.join(map(str, key)) for key in self.arrays)}"


class ByLayers(dict[Any, Array]):
    """Matrices by pairs of layers: ``A[i, j]``; ``A[i]`` is short for ``A[i, i]``, and ``A[j, i]`` is ``A[i, j].T``."""

    def __missing__(self, key: Any) -> Array:
        """Return a matrix by one layer, or by a pair in the other order."""
        if isinstance(key, (int, np.integer)) and (key, key) in self:
            return self[key, key]
        if isinstance(key, tuple) and key[::-1] in self:
            return self[key[::-1]].T
        pairs = f"layers {key[0]} and {key[1]}" if isinstance(key, tuple) and len(key) == 2 else repr(key)
        raise ValueError(f"factors hold nothing for {pairs}: there are {len({i for i, _ in self})} layers, and cross "
                         "factors of layers i and j need an estimate with a reach of at least |i - j|")


@dataclass(frozen=True, eq=False, repr=False)
class Factors:
    """Kronecker factors of the layers, and of pairs of layers (sec. 3)."""

    A: dict[Any, Array]     #: E[a_bar_i a_bar_j^T] for i <= j, (d_i + 1, d_j + 1); ``A[i]`` is short for ``A[i, i]``.
    G: dict[Any, Array]     #: E[g_i g_j^T], (d_{i+1}, d_{j+1}).
    n: int                  #: The number of examples behind the means.
    means: bool = False     #: Whether A and G are themselves means over the examples, so that factors can be merged.

    def __post_init__(self) -> None:
        if set(self.A) != set(self.G) or not self.A:
            raise ValueError(f"A and G must be mappings with the same pairs of layers, got {sorted(self.A)} and "
                             f"{sorted(self.G)}")
        for name, matrices in (("A", self.A), ("G", self.G)):
            for (i, j), S in matrices.items():
                if np.ndim(S) != 2 or (i == j and S.shape[0] != S.shape[1]):
                    raise ValueError(f"{name}[{i}, {j}] must be {'square' if i == j else 'a matrix'}, got shape "
                                     f"{np.shape(S)}")
            object.__setattr__(self, name, ByLayers(matrices))

    @classmethod
    def of_layers(cls, A: Sequence[Array], G: Sequence[Array], n: int, A_cross: Sequence[Array] = (),
                  G_cross: Sequence[Array] = ()) -> Factors:
        """Return factors from lists of one matrix per layer, and optionally cross factors of layers i and i + 1."""
        if len(A) != len(G):
            raise ValueError(f"A and G must hold one matrix for each layer, got {len(A)} and {len(G)}")
        def _by_layers(own: Sequence[Array], cross: Sequence[Array]) -> dict[Any, Array]:
            return {(i, i): S for i, S in enumerate(own)} | {(i, i + 1): S for i, S in enumerate(cross)}

        return cls(_by_layers(A, A_cross), _by_layers(G, G_cross), n)

    def __len__(self) -> int:
        """Return the number L of layers."""
        return len({i for i, _ in self.A})

    def __repr__(self) -> str:
        shapes = ", ".join(f"{len(A)} x {len(G)}" for A, G in self.layers)
        cross = len(self.A) - len(self)
        return f"Factors of {len(self)} layers (A ⊗ G: {shapes}; {cross} cross factors) from {self.n} examples"

    @property
    def layers(self) -> list[tuple[Array, Array]]:
        """The pair (A, G) of each layer."""
        return [(self.A[i, i], self.G[i, i]) for i in range(len(self))]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights."""
        return tuple((len(G), len(A)) for A, G in self.layers)

    def combine(self, mix: Callable[..., Any], *others: Factors) -> Factors:
        """Return the factors ``mix(ours, theirs, ...)``, array by array, with the sum of all n; all must be means."""
        return as_factors(self._moments().combine(mix, *(other._moments() for other in others)))

    def merge(self, other: Factors) -> Factors:
        """Return the factors of both sets of examples together: means weighted by the numbers of examples."""
        return as_factors(self._moments().merge(other._moments()))

    def _moments(self) -> Moments:
        if not self.means:
            raise ValueError("these factors are not means over examples and cannot be merged or averaged: combine the "
                             "moments of their estimator and finish those (see approximations)")
        return Moments({(name, *key): S for name in "AG" for key, S in getattr(self, name).items()}, self.n)

    def astype(self, dtype: DTypeLike) -> Factors:
        """Return the factors in another precision, float64 or float32."""
        return Factors({key: S.astype(dtype) for key, S in self.A.items()},
                       {key: S.astype(dtype) for key, S in self.G.items()}, self.n, self.means)


def as_factors(moments: Moments, weights: Direction = ()) -> Factors:
    """Return the moments ("A", i, j) and ("G", i, j) as factors: the finish of an estimator whose factors are means."""
    A, G = ({key[1:]: S for key, S in moments.arrays.items() if key[0] == name} for name in "AG")
    return Factors(A, G, moments.n, means=True)
