"""The exact comparator: the Fisher matrix itself, dense, block by block, and as products that never form it.

With J the Jacobian of z and F_R the Fisher of the likelihood (paper: sec. 2.2)::

    F = (1/N) sum_n J_n^T F_R,n J_n = (1/N) sum_n sum_k D_k theta D_k theta^T ,   D_k W_i = g_i^k a_bar_i^T

where g^k is the backward pass of column k of a root of F_R. Three expectations differ in these columns alone:

* exact: the C columns of the root, summed: y runs over the model's own predictive distribution, in closed form;
* sampled: gradients of -log p at targets drawn from that distribution, M draws, averaged;
* empirical: the gradient at the labels. This is not the Fisher.

The block of layers i and j, rearranged (see `kronecker`), is one matrix product over the examples::

    R(F_ij) = (1/N) sum_n [ sum_k vec(g_i^k g_j^k^T) ] vec(a_bar_i a_bar_j^T)^T

The Kronecker approximation of `factors` takes the mean of either side on its own. Weight decay and damping are not
part of a Fisher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from . import checks
from .checks import Array, Direction
from .model import Point

#: Memory that the outer products of one chunk of examples may take, in bytes.
CHUNK_BYTES = 128 * 2**20


def exact_columns(at: Point) -> Array:
    """Return the columns of a root of F_R as a stack to send back, (C, N, C): column k of each example is [k, n].

    Parameters
    ----------
    at : Point
        Where.
    """
    N, C = at.z.shape
    checks.dense_size("the stack of the columns of F_R's roots", N * C, C, at.z.itemsize)
    return np.ascontiguousarray(np.moveaxis(at.model.likelihood.fisher_root(at.z), 2, 0))


def sampled_columns(at: Point, targets: Any) -> Array:
    """Return the gradients at M sampled targets, divided by sqrt(M) so that summing their squares averages: (M, N, C).

    Parameters
    ----------
    at : Point
        Where.
    targets : (N,), (M, N), (N, C) or (M, N, C) array
        As drawn by ``at.sample``: labels for a categorical, else numbers.

    Returns
    -------
    (M, N, C) array
        The stack to send back.

    Raises
    ------
    ValueError
        For targets that do not fit: wrong shape, a label out of range.
    """
    dz = at.model.likelihood.gradient(at.z, targets)
    dz = dz[None] if dz.ndim == 2 else dz
    return dz / at.z.dtype.type(np.sqrt(len(dz)))


def empirical_columns(at: Point, y: Any) -> Array:
    """Return the gradients at the labels as a stack of one, (1, N, C).

    Parameters
    ----------
    at : Point
        Where.
    y : (N,) or (N, C) array
        The labels or targets.

    Raises
    ------
    ValueError
        For labels that do not fit, or a stack of draws.
    """
    dz = at.model.likelihood.gradient(at.z, y)
    if dz.ndim != 2:
        raise ValueError(f"y must be one target for each of the {len(at)} examples, got a stack of {len(dz)}")
    return dz[None]


def columns_of(at: Point, columns: Any = None) -> Array:
    """Return a stack to send back: `columns` where it was given, checked, else the exact one.

    Parameters
    ----------
    at : Point
        Where.
    columns : (K, N, C) array, optional
        Of `sampled_columns` or `empirical_columns`.

    Returns
    -------
    (K, N, C) array
        The stack.

    Raises
    ------
    ValueError
        For a stack of another shape, NaN or infinity.
    """
    return exact_columns(at) if columns is None else checks.stack("columns", columns, at.z.shape, at.z.dtype)


def exact_fisher(at: Point, max_bytes: int | None = None) -> Array:
    """Return the Fisher matrix, dense.

    Parameters
    ----------
    at : Point
        Where.
    max_bytes : int, optional
        A larger matrix is refused; 4 GiB unless told.

    Returns
    -------
    F : (P, P) array
        Mean over the examples of ``J^T F_R J``; theta is ordered as in `params`.

    Raises
    ------
    ValueError
        For a matrix of more than `max_bytes`.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 2.2.
    """
    return _dense(at, exact_columns, max_bytes)


def sampled_fisher(at: Point, targets: Any, max_bytes: int | None = None) -> Array:
    """Return the Fisher matrix with targets that were drawn, in place of the expectation over them.

    Parameters
    ----------
    at : Point
        Where.
    targets : (N,), (M, N), (N, C) or (M, N, C) array
        As drawn by ``at.sample``; M draws are averaged.
    max_bytes : int, optional
        A larger matrix is refused; 4 GiB unless told.

    Returns
    -------
    F : (P, P) array
        Mean over the examples and draws of the outer products of the gradients at the targets.

    Raises
    ------
    ValueError
        For targets that do not fit, or a matrix of more than `max_bytes`.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 2.2.
    """
    return _dense(at, lambda at: sampled_columns(at, targets), max_bytes)


def empirical_fisher(at: Point, y: Any, max_bytes: int | None = None) -> Array:
    """Return the mean of the outer products of the gradients at the labels; this is not the Fisher.

    Parameters
    ----------
    at : Point
        Where.
    y : (N,) or (N, C) array
        The labels or targets.
    max_bytes : int, optional
        A larger matrix is refused; 4 GiB unless told.

    Returns
    -------
    (P, P) array
        Mean over the examples.

    Raises
    ------
    ValueError
        For labels that do not fit, or a matrix of more than `max_bytes`.

    Notes
    -----
    Source: Kunstner et al. 2019.
    """
    return _dense(at, lambda at: empirical_columns(at, y), max_bytes)


def fisher_block(at: Point, i: int, j: int, columns: Array | None = None, max_bytes: int | None = None) -> Array:
    """Return the block of the Fisher for layers i and j, without the rest.

    Parameters
    ----------
    at : Point
        Where.
    i, j : int
        Layers, 0..L-1.
    columns : (K, N, C) array, optional
        Another stack than that of the exact Fisher: `sampled_columns` or `empirical_columns`.
    max_bytes : int, optional
        A larger matrix is refused; 4 GiB unless told.

    Returns
    -------
    (d_{i+1} (d_i + 1), d_{j+1} (d_j + 1)) array
        The block; its rearrangement is one product over the examples.

    Raises
    ------
    ValueError
        For a layer that is not there, or a matrix of more than `max_bytes`.
    """
    shapes = at.model.network.shapes
    for name, layer in (("i", i), ("j", j)):
        if not 0 <= layer < len(shapes):
            raise ValueError(f"{name} must be a layer 0..{len(shapes) - 1}, got {layer}")
    sizes = [m * n for m, n in shapes]
    checks.dense_size(f"the block of layers {i} and {j}", sizes[i], sizes[j], at.z.itemsize, max_bytes)
    g = at.backward(columns_of(at, columns))
    block = np.empty((sizes[i], sizes[j]), dtype=at.z.dtype)
    _fill_block(block, at.a_bar[i], at.a_bar[j], g[i], g[j])
    return block


def fisher_product(at: Point, V: Direction) -> list[Array]:
    """Return ``F v`` without forming F: forwards by the R-operator, through F_R, and back.

    Parameters
    ----------
    at : Point
        Where.
    V : list of (d_{i+1}, d_i + 1) arrays
        A direction.

    Returns
    -------
    list of (d_{i+1}, d_i + 1) arrays
        ``(1/N) J^T F_R J v``.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 6.4; Schraudolph 2002.
    """
    return at.adjoint(at.model.likelihood.fisher_product(at.z, at.tangent(V)) / len(at))


def fisher_gram(at: Point, directions: Sequence[Direction]) -> Array:
    """Return the matrix ``v_k^T F v_l`` for a few directions, by one R-pass for each and no backward pass.

    Parameters
    ----------
    at : Point
        Where.
    directions : sequence of K directions
        Lists of (d_{i+1}, d_i + 1) arrays.

    Returns
    -------
    Q : (K, K) float64 array
        ``(1/N) sum_n (J v_k)^T F_R (J v_l)``, symmetric. For two directions of the large nets this is half the cost
        of two Fisher products.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 6.4 and app. C.
    """
    if not len(directions):
        raise ValueError("directions must hold at least one direction")
    Jv = np.stack([at.tangent(V) for V in directions])
    FJv = at.model.likelihood.fisher_product(at.z, Jv)
    Q = np.empty((len(Jv), len(Jv)))
    for k, u in enumerate(Jv):
        for m, Fv in enumerate(FJv[:k + 1]):
            Q[k, m] = Q[m, k] = np.vdot(u, Fv) / len(at)
    return Q


def _dense(at: Point, columns: Callable[[Point], Array], max_bytes: int | None) -> Array:
    P = at.model.network.parameters
    checks.dense_size("the Fisher matrix", P, P, at.z.itemsize, max_bytes)
    g = at.backward(columns(at))
    ends = np.cumsum([0] + [m * n for m, n in at.model.network.shapes])
    layers = [slice(start, end) for start, end in pairwise(ends)]
    F = np.empty((P, P), dtype=at.z.dtype)
    for i in range(len(g)):
        for j in range(i + 1):
            _fill_block(F[layers[i], layers[j]], at.a_bar[i], at.a_bar[j], g[i], g[j])
            if j < i:
                F[layers[j], layers[i]] = F[layers[i], layers[j]].T
    return F


def _fill_block(block: Array, a_i: Array, a_j: Array, g_i: Array, g_j: Array) -> None:
    """Write F_ij, from inputs (N, n) and stacks of gradients (K, N, m), in chunks of examples of bounded memory."""
    N, n_i, n_j, m_i, m_j = len(a_i), a_i.shape[1], a_j.shape[1], g_i.shape[2], g_j.shape[2]
    chunk = max(1, CHUNK_BYTES // ((n_i * n_j + m_i * m_j) * a_i.itemsize))
    # This is R(F_ij) with its rows and columns in another order: entry [a, b, p, q] is the mean of
    # (a_bar_i)_a (a_bar_j)_b (g_i)_p (g_j)_q, so that whole runs of memory find their place in the block below.
    R: Array | None = None
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        Alpha = a_i[rows, :, None] * a_j[rows, None, :]
        Gamma = g_i[:, rows].transpose(1, 2, 0) @ g_j[:, rows].transpose(1, 0, 2) / N           # summed over columns
        part = Alpha.reshape(-1, n_i * n_j).T @ Gamma.reshape(-1, m_i * m_j)
        R = part if R is None else R + part
    assert R is not None
    # Splitting the axes of a slice makes a view of it, so this writes into `block`.
    block.reshape(n_i, m_i, n_j, m_j)[:] = R.reshape(n_i, n_j, m_i, m_j).transpose(0, 2, 1, 3)
