"""The two small matrices of each layer, and those of pairs of layers, as one frozen value.

With A_ij = E[a_bar_i a_bar_j^T] and G_ij = E[g_i g_j^T], means over examples (paper: sec. 3)::

    F_ij  is approximated by  F~_ij = A_ij kron G_ij

``A[i]`` is of the INPUT of layer i and ``G[i]`` of its output: the two factors of ``weights[i]``. (The paper counts
layers from 1 and activations from 0, so these are its A_{i,i} and G_{i+1,i+1}.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from ..checks import Array


@dataclass(frozen=True)
class Factors:
    """Kronecker factors of all layers, and of pairs of layers.

    Attributes
    ----------
    A : tuple of (d_i + 1, d_i + 1) arrays
        E[a_bar_i a_bar_i^T].
    G : tuple of (d_{i+1}, d_{i+1}) arrays
        E[g_i g_i^T].
    A_cross, G_cross : tuples of L-1 arrays, or empty
        E[a_bar_i a_bar_{i+1}^T] and E[g_i g_{i+1}^T]: neighbouring layers.
    n : int
        The number of examples behind the means.
    A_far, G_far : dicts
        The same for the pairs (i, j) with j > i + 1, as far as they were asked for.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 3.
    """

    A: tuple[Array, ...]
    G: tuple[Array, ...]
    A_cross: tuple[Array, ...]
    G_cross: tuple[Array, ...]
    n: int
    A_far: dict[tuple[int, int], Array] = field(default_factory=dict)
    G_far: dict[tuple[int, int], Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.A) != len(self.G) or not self.A:
            raise ValueError(f"A and G must hold one matrix for each layer, got {len(self.A)} and {len(self.G)}")
        for name, matrices in (("A", self.A), ("G", self.G)):
            for i, S in enumerate(matrices):
                if np.ndim(S) != 2 or S.shape[0] != S.shape[1]:
                    raise ValueError(f"{name}[{i}] must be square, got shape {np.shape(S)}")

    def __len__(self) -> int:
        """Return the number L of layers."""
        return len(self.A)

    def pair(self, i: int, j: int) -> tuple[Array, Array]:
        """Return A_ij and G_ij for any two layers.

        Parameters
        ----------
        i, j : int
            Layers, 0..L-1.

        Returns
        -------
        A : (d_i + 1, d_j + 1) array
            E[a_bar_i a_bar_j^T].
        G : (d_{i+1}, d_{j+1}) array
            E[g_i g_j^T].

        Raises
        ------
        ValueError
            Where the cross factors of this pair were not estimated.
        """
        if i == j:
            return self.A[i], self.G[i]
        if i > j:
            A, G = self.pair(j, i)
            return A.T, G.T
        if j == i + 1 and self.A_cross:
            return self.A_cross[i], self.G_cross[i]
        if (i, j) in self.A_far:
            return self.A_far[i, j], self.G_far[i, j]
        raise ValueError(f"factors hold no cross factors of layers {i} and {j}: estimate them with reach={j - i} or "
                         "more (a structure asks an optimizer for them by its class attribute reach)")

    def merge(self, other: Factors) -> Factors:
        """Return the factors of both sets of examples together: means weighted by their counts.

        Parameters
        ----------
        other : Factors
            Of the other set.

        Returns
        -------
        Factors
            Its ``n`` is the sum of the two.

        Raises
        ------
        ValueError
            Where the two are not of the same network and reach.
        """
        n = self.n + other.n
        return self.combine(other, lambda a, b: (self.n * a + other.n * b) / n, n)

    def combine(self, other: Factors, mix: Callable[[Array, Array], Array], n: int) -> Factors:
        """Return the factors ``mix(ours, theirs)``, array by array.

        Parameters
        ----------
        other : Factors
            Theirs.
        mix : function of two arrays
            Makes an array of the same shape.
        n : int
            The number of examples behind the result.

        Returns
        -------
        Factors
            A new value.

        Raises
        ------
        ValueError
            Where the two are not of the same network and reach.
        """
        ours, theirs = self._shapes(), other._shapes()
        if ours != theirs:
            raise ValueError(f"other must hold factors of the same shapes and pairs: expected {ours}, got {theirs}")

        def mixed(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
            """Mix two tuples of arrays, one pair at a time.

            Parameters
            ----------
            a, b : tuples of arrays
                Ours and theirs.
            """
            return tuple(mix(x, y) for x, y in zip(a, b, strict=True))

        return Factors(mixed(self.A, other.A), mixed(self.G, other.G), mixed(self.A_cross, other.A_cross),
                       mixed(self.G_cross, other.G_cross), n,
                       {key: mix(a, other.A_far[key]) for key, a in self.A_far.items()},
                       {key: mix(g, other.G_far[key]) for key, g in self.G_far.items()})

    def astype(self, dtype: DTypeLike) -> Factors:
        """Return the factors in another precision.

        Parameters
        ----------
        dtype : {numpy.float64, numpy.float32}
            Of all matrices.
        """
        return self.combine(self, lambda a, _: a.astype(dtype), self.n)

    def _shapes(self) -> tuple[object, ...]:
        return ([a.shape for a in self.A], [g.shape for g in self.G], len(self.A_cross), sorted(self.A_far))
