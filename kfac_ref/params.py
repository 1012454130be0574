"""Directions: lists of arrays shaped like the weights, and the vector-space operations on them.

The parameter vector is ``theta = [vec(W_0); vec(W_1); ...]``, where vec stacks the COLUMNS of a matrix and
``W_i`` is (d_{i+1}, d_i + 1) with the bias as its last column (paper: sec. 2.1, whose W_i is our ``weights[i-1]``).
A gradient, a step or a velocity is a *direction*: a list of arrays of these shapes. It represents the same vector, but
layer by layer, in the form in which products with it are computed.

Below, `U` and `V` are directions; two directions in one call must have the same shapes (ValueError otherwise).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .checks import Array, Direction


def flatten(V: Direction) -> Array:
    """Return the vector ``[vec(V_0); vec(V_1); ...]`` of a direction, (P,).

    Examples
    --------
    >>> import numpy as np
    >>> flatten([np.array([[1, 3, 5], [2, 4, 6]]), np.array([[7, 8]])]).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    return np.concatenate([v.ravel(order="F") for v in V])


def unflatten(theta: Array, shapes: Sequence[tuple[int, int]]) -> list[Array]:
    """Return the direction of a (P,) vector, as copies: the inverse of `flatten`."""
    theta = np.asarray(theta)
    sizes = [m * n for m, n in shapes]
    if theta.shape != (sum(sizes),):
        raise ValueError(f"theta must have shape ({sum(sizes)},), got {theta.shape}")
    parts = np.split(theta, np.cumsum(sizes)[:-1])
    return [part.reshape(shape, order="F").copy() for part, shape in zip(parts, shapes, strict=True)]


def inner(U: Direction, V: Direction) -> float:
    """Return the Euclidean inner product ``u^T v``."""
    _check_fit(U, V)
    return float(sum(np.vdot(u, v) for u, v in zip(U, V, strict=True)))


def gram(directions: Sequence[Direction]) -> Array:
    """Return all inner products ``v_k^T v_l`` of K directions, a symmetric (K, K) float64 array."""
    products = np.empty((len(directions), len(directions)))
    for k, U in enumerate(directions):
        for m, V in enumerate(directions[:k + 1]):
            products[k, m] = products[m, k] = inner(U, V)
    return products


def norm(V: Direction) -> float:
    """Return the Euclidean norm of a direction."""
    return float(np.sqrt(inner(V, V)))


def scale(c: float, V: Direction) -> list[Array]:
    """Return ``c v`` in the dtype of `V`."""
    return [v.dtype.type(c) * v for v in V]


def add(U: Direction, V: Direction) -> list[Array]:
    """Return ``u + v``."""
    _check_fit(U, V)
    return [u + v for u, v in zip(U, V, strict=True)]


def copy(V: Direction) -> tuple[Array, ...]:
    """Return a copy of a direction that shares no memory with it."""
    return tuple(v.copy(order="K") for v in V)


def zeros_like(V: Direction) -> list[Array]:
    """Return the zero direction with the shapes and dtype of `V`."""
    return [np.zeros_like(v) for v in V]


def _check_fit(U: Direction, V: Direction) -> None:
    if [u.shape for u in U] != [v.shape for v in V]:
        raise ValueError(f"V must have the shapes of U, {[u.shape for u in U]}, got {[v.shape for v in V]}")
