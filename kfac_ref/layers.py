"""Every contraction of a layer's output gradients g with its inputs a_bar, each written once.

One example's gradient with respect to the weights of a layer is the outer product of g and a_bar. Where a layer shares
its weights over positions t, it is their sum::

    D = sum_t g_t a_bar_t^T                              (m, n)

Everything exact is a function of D; with K columns k of a root (see `expectations`)::

    example_gradients    D^k_n                                               (K, N, m, n)
    example_slopes       <D^k_n, V>                                          (K, N)
    adjoint              sum_kn D^k_n                                        (m, n)
    side_moments         sum_kn D^T D  and  sum_kn D D^T                     (n, n), (m, m)
    rotated_squares      sum_kn (Q_G^T D^k_n Q_A)^2, entry by entry          (m, n)
    example_gram         <D^k_n, D^l_o>                                      (K N, K N)
    rearranged           sum_kn vec(D_i) vec(D_j)^T, the block of F          (m_i n_i, m_j n_j)

`second_moment` is what the Kronecker factors are made from: it contracts g with g, or a_bar with a_bar. All of these
are sums; the caller divides by the number of examples.

Shapes: g is ``(K, N, m)``, or ``(K, N, *T, m)`` with one or more axes of positions T; a_bar is ``(N, n)`` or
``(N, *T, n)``. Without positions no D is formed. With positions D is formed for a few examples at a time.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

import numpy as np

from .checks import Array

#: Largest temporary array of a contraction, in bytes.
CHUNK_BYTES = 128 * 2**20


def second_moment(u: Array, v: Array) -> Array:
    """Return ``sum u v^T`` over all leading axes (columns, examples, positions): (..., p) and (..., q) to (p, q).

    Examples
    --------
    >>> import numpy as np
    >>> second_moment(np.array([[1.0, 2.0]]), np.array([[3.0]])).tolist()
    [[3.0], [6.0]]
    """
    return flat_rows(u).T @ flat_rows(v)


def example_gradients(g: Array, a_bar: Array) -> Array:
    """Return D, the gradient of each column and example with respect to the weights of the layer, (K, N, m, n)."""
    if not has_positions(a_bar):
        return g[..., :, None] * a_bar[..., None, :]
    K, N, m, n = len(g), len(a_bar), g.shape[-1], a_bar.shape[-1]
    return g.reshape(K, N, -1, m).transpose(0, 1, 3, 2) @ a_bar.reshape(N, -1, n)


def example_slopes(g: Array, a_bar: Array, V: Array) -> Array:
    """Return ``<D, V>``, the derivative of each column and example along V, (K, N), without forming D."""
    return np.einsum("kntm,ntm->kn", _with_positions(g, 2), _with_positions(a_bar, 1) @ V.T)


def adjoint(g: Array, a_bar: Array) -> Array:
    """Return ``sum_n D_n``, (m, n), for one column: g is ``(N, *T, m)``."""
    return second_moment(g, a_bar)


def side_moments(g: Array, a_bar: Array) -> tuple[Array, Array]:
    """Return the sums R of ``D^T D``, (n, n), and L of ``D D^T``, (m, m), over columns and examples.

    Without positions, ``D^T D = (g . g) a_bar a_bar^T`` and ``D D^T = (a_bar . a_bar) g g^T``.
    """
    if not has_positions(a_bar):
        g_squared, a_squared = np.square(g).sum(axis=(0, 2)), np.square(a_bar).sum(axis=1)
        return second_moment(a_bar * g_squared[:, None], a_bar), second_moment(g * a_squared[:, None], g)
    m, n = g.shape[-1], a_bar.shape[-1]
    R, L = np.zeros((n, n), g.dtype), np.zeros((m, m), g.dtype)
    for D in _gradients_in_chunks(g, a_bar):
        R += second_moment(D, D)
        L += second_moment(D.swapaxes(-1, -2), D.swapaxes(-1, -2))
    return R, L


def rotated_squares(g: Array, a_bar: Array, Q_G: Array | None = None, Q_A: Array | None = None) -> Array:
    """Return the sum over columns and examples of the squared entries of ``Q_G^T D Q_A``, (m, n).

    Divided by N, it is the diagonal of the layer's block of F in the basis ``Q_A ⊗ Q_G``. The bases Q_G, (m, m), and
    Q_A, (n, n), default to the identity.
    """
    g = g if Q_G is None else g @ Q_G
    a_bar = a_bar if Q_A is None else a_bar @ Q_A
    if not has_positions(a_bar):
        return np.square(g).sum(axis=0).T @ np.square(a_bar)
    total = np.zeros((g.shape[-1], a_bar.shape[-1]), g.dtype)
    for D in _gradients_in_chunks(g, a_bar):
        total += np.square(D).sum(axis=(0, 1))
    return total


def example_gram(g: Array, a_bar: Array) -> Array:
    """Return the inner products ``<D^k_n, D^l_o>`` of all columns and examples, (K N, K N), rows in the order (k, n).

    Without positions an entry is ``(g . g)(a_bar . a_bar)``.
    """
    K, N = g.shape[:2]
    if has_positions(a_bar):
        D = example_gradients(g, a_bar).reshape(K * N, -1)
        return D @ D.T
    flat = flat_rows(g)
    return ((flat @ flat.T).reshape(K, N, K, N) * (a_bar @ a_bar.T)[:, None, :]).reshape(K * N, K * N)


def rearranged(g_i: Array, a_i: Array, g_j: Array, a_j: Array) -> Array:
    """Return ``sum_kn vec(D_i) vec(D_j)^T``, N times the block of F for layers i and j, (n_i, m_i, n_j, m_j).

    The first two axes are the rows of the block, the last two its columns; vec stacks columns, so the index of g
    varies fastest. Without positions it is one matrix product over the examples, of outer products of a_bar with sums
    over columns of outer products of g: the rearranged block (see `kronecker.rearrange`), its axes in another order.
    """
    m_i, m_j, n_i, n_j = g_i.shape[-1], g_j.shape[-1], a_i.shape[-1], a_j.shape[-1]
    if has_positions(a_i) or has_positions(a_j):
        total = np.zeros((n_i * m_i, n_j * m_j), g_i.dtype)
        for D_i, D_j in zip(_gradients_in_chunks(g_i, a_i, m_j * n_j), _gradients_in_chunks(g_j, a_j, m_i * n_i),
                            strict=True):
            total += second_moment(_vec_rows(D_i), _vec_rows(D_j))
        return total.reshape(n_i, m_i, n_j, m_j)

    def of_rows(rows: slice) -> Array:
        """Return the sum over some examples."""
        Alpha = a_i[rows, :, None] * a_j[rows, None, :]
        Gamma = g_i[:, rows].transpose(1, 2, 0) @ g_j[:, rows].transpose(1, 0, 2)           # summed over columns
        return Alpha.reshape(-1, n_i * n_j).T @ Gamma.reshape(-1, m_i * m_j)

    R = functools.reduce(operator.iadd, map(of_rows, _chunks(len(a_i), (n_i * n_j + m_i * m_j) * a_i.itemsize)))
    return R.reshape(n_i, n_j, m_i, m_j).transpose(0, 2, 1, 3)


def has_positions(a_bar: Array) -> bool:
    """Return whether the inputs of a layer, ``(N, *T, n)``, have axes of positions between examples and features."""
    return a_bar.ndim > 2


def flat_rows(u: Array) -> Array:
    """Return an array as a matrix whose rows are its last axis: (..., p) to (rows, p)."""
    return u.reshape(-1, u.shape[-1])


def _with_positions(u: Array, leading: int) -> Array:
    """Merge all position axes after the leading axes into one; add one of length 1 where there is none."""
    return u.reshape(*u.shape[:leading], -1, u.shape[-1])


def _vec_rows(D: Array) -> Array:
    """Return vec(D) of each column and example as a row."""
    return D.swapaxes(-1, -2).reshape(*D.shape[:2], -1)


def _chunks(N: int, bytes_per_example: int) -> Iterator[slice]:
    """Yield slices of the examples whose temporary arrays fit in `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // max(1, bytes_per_example))
    for start in range(0, N, size):
        yield slice(start, start + size)


def _gradients_in_chunks(g: Array, a_bar: Array, other: int = 0) -> Iterator[Array]:
    """Yield D for a few examples at a time; `other` counts further temporary entries per column and example."""
    entries = len(g) * (g.shape[-1] * a_bar.shape[-1] + other)
    for rows in _chunks(len(a_bar), entries * a_bar.itemsize):
        yield example_gradients(g[:, rows], a_bar[rows])
