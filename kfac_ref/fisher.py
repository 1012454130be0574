"""The exact comparator: the Fisher matrix itself, dense, block by block, and as products that never form it.

With J the Jacobian of z and F_R the Fisher of the likelihood (paper: sec. 2.2)::

    F = (1/N) sum_n J_n^T F_R,n J_n = (1/N) sum_n sum_k vec(D_n^k) vec(D_n^k)^T ,   D_n^k = g^k a_bar^T  (per layer)

where g^k is the backward pass of column k of a root of F_R. Other expectations send other columns back
(`expectations`); ``empirical(y)`` gives a matrix that is not the Fisher.

The block of layers i and j, rearranged (see `kronecker`), is one matrix product over the examples::

    R(F_ij) = (1/N) sum_n [ sum_k vec(g_i^k g_j^k^T) ] vec(a_bar_i a_bar_j^T)^T

The Kronecker approximation of `factors` takes the mean of either side on its own. Weight decay and damping are not
part of a Fisher.

`dense`, `product`, `slopes` and `gram` take given gradients g and inputs a_bar, one of each per layer; `fisher_matrix`,
`fisher_block`, `fisher_product` and `fisher_gram` take a `Point`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from . import checks
from .checks import Array, Direction
from .expectations import Expectation, columns, exact, gradients
from .layers import adjoint, example_slopes, rearranged
from .model import Point, as_point


def fisher_matrix(at: Point, expectation: Expectation = exact, max_bytes: int | None = None) -> Array:
    """Return the Fisher matrix, dense.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    expectation : function of a Point
        `exact`, ``sampled(targets)`` or ``empirical(y)``.
    max_bytes : int, optional
        A larger matrix is refused (default: 4 GiB).

    Returns
    -------
    F : (P, P) array
        Mean over the examples of ``J^T F_R J``; theta is ordered as in `params`.

    Raises
    ------
    ValueError
        For targets that do not fit, or a matrix of more than `max_bytes`.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 2.2.
    """
    return dense(gradients(at, expectation), at.a_bar, max_bytes)


def dense(g: Sequence[Array], a_bar: Sequence[Array], max_bytes: int | None = None) -> Array:
    """Return the mean over examples of ``sum_k vec(D^k) vec(D^k)^T``, D of all layers stacked.

    Parameters
    ----------
    g : sequence of (K, N, m) arrays
        The gradients of all columns, layer by layer.
    a_bar : sequence of (N, n) arrays
        The inputs of the layers.
    max_bytes : int, optional
        A larger matrix is refused (default: 4 GiB).

    Returns
    -------
    (P, P) array
        The order is that of `params`.

    Raises
    ------
    ValueError
        For a matrix of more than `max_bytes`.
    """
    ends = np.cumsum([0] + [gi.shape[-1] * a.shape[-1] for gi, a in zip(g, a_bar, strict=True)])
    P = int(ends[-1])
    checks.dense_size("the Fisher matrix", P, P, g[0].itemsize, max_bytes)
    layers = [slice(start, end) for start, end in pairwise(ends)]
    F = np.empty((P, P), dtype=g[0].dtype)
    for i in range(len(g)):
        for j in range(i + 1):
            _fill_block(F[layers[i], layers[j]], g, a_bar, i, j)
            if j < i:
                F[layers[j], layers[i]] = F[layers[i], layers[j]].T
    return F


def fisher_block(at: Point, i: int, j: int, expectation: Expectation = exact, max_bytes: int | None = None) -> Array:
    """Return the block of the Fisher for layers i and j, without the rest.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    i, j : int
        Layers, 0..L-1.
    expectation : function of a Point
        As in `fisher_matrix`.
    max_bytes : int, optional
        A larger matrix is refused (default: 4 GiB).

    Returns
    -------
    (d_{i+1} (d_i + 1), d_{j+1} (d_j + 1)) array
        The block; its rearrangement is one product over the examples.

    Raises
    ------
    ValueError
        For a layer that is not there, targets that do not fit, or a matrix of more than `max_bytes`.
    """
    g = gradients(at, expectation)
    shapes = at.model.network.shapes
    for name, layer in (("i", i), ("j", j)):
        checks.layer(name, layer, len(shapes))
    sizes = [m * n for m, n in shapes]
    checks.dense_size(f"the block of layers {i} and {j}", sizes[i], sizes[j], at.z.itemsize, max_bytes)
    block = np.empty((sizes[i], sizes[j]), dtype=at.z.dtype)
    _fill_block(block, g, at.a_bar, i, j)
    return block


def fisher_product(at: Point, V: Direction, expectation: Expectation = exact) -> list[Array]:
    """Return ``F v`` without forming F: forwards by the R-operator, through F_R, and back.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    V : list of (d_{i+1}, d_i + 1) arrays
        A direction.
    expectation : function of a Point
        As in `fisher_matrix`; another than `exact` puts the outer products of its columns in the place of F_R.

    Returns
    -------
    list of (d_{i+1}, d_i + 1) arrays
        ``(1/N) J^T F_R J v``.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 6.4; Schraudolph 2002.
    """
    at = as_point(at)
    if expectation is exact:
        return at.adjoint(at.model.likelihood.fisher_product(at.z, at.tangent(V)) / len(at))
    root = columns(at, expectation)
    return at.adjoint(np.einsum("knc,kn->nc", root, np.einsum("knc,nc->kn", root, at.tangent(V))) / len(at))


def fisher_gram(at: Point, directions: Sequence[Direction]) -> Array:
    """Return the matrix ``v_k^T F v_l`` for a few directions, by one R-pass for each and no backward pass.

    Parameters
    ----------
    at : Point
        Point of evaluation.
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
    at = as_point(at)
    if not len(directions):
        raise ValueError("directions must hold at least one direction")
    Jv = np.stack([at.tangent(V) for V in directions])
    FJv = at.model.likelihood.fisher_product(at.z, Jv)
    Q = np.empty((len(Jv), len(Jv)))
    for k, u in enumerate(Jv):
        for m, Fv in enumerate(FJv[:k + 1]):
            Q[k, m] = Q[m, k] = np.vdot(u, Fv) / len(at)
    return Q


def product(g: Sequence[Array], a_bar: Sequence[Array], V: Direction) -> list[Array]:
    """Return the mean over examples of ``sum_k <D^k, v> D^k``: the product of `dense` with v, without forming it.

    Parameters
    ----------
    g : sequence of (K, N, m) arrays
        The gradients of all columns, layer by layer.
    a_bar : sequence of (N, n) arrays
        The inputs of the layers.
    V : list of (m, n) arrays
        A direction.
    """
    c = slopes(g, a_bar, V)
    return [adjoint(np.einsum("kn,kn...->n...", c, gi), a) / len(a) for gi, a in zip(g, a_bar, strict=True)]


def slopes(g: Sequence[Array], a_bar: Sequence[Array], V: Direction) -> Array:
    """Return ``<D^k_n, v>``, the derivative of each column and example along v, (K, N).

    Parameters
    ----------
    g : sequence of (K, N, m) arrays
        The gradients of all columns, layer by layer.
    a_bar : sequence of (N, n) arrays
        The inputs of the layers.
    V : list of (m, n) arrays
        A direction.
    """
    return np.sum([example_slopes(*layer) for layer in zip(g, a_bar, V, strict=True)], axis=0)


def gram(g: Sequence[Array], a_bar: Sequence[Array], directions: Sequence[Direction]) -> Array:
    """Return ``v_k^T F v_l`` for a few directions, with F as `dense` returns it.

    Parameters
    ----------
    g : sequence of (K, N, m) arrays
        The gradients of all columns, layer by layer.
    a_bar : sequence of (N, n) arrays
        The inputs of the layers.
    directions : sequence of directions
        Lists of (m, n) arrays.
    """
    along = np.stack([slopes(g, a_bar, V).ravel() for V in directions])
    return along @ along.T / len(a_bar[0])


def _fill_block(block: Array, g: Sequence[Array], a_bar: Sequence[Array], i: int, j: int) -> None:
    """Write F_ij into `block`, a view of it where rows and columns are split over the axes of g and a_bar."""
    R = rearranged(g[i], a_bar[i], g[j], a_bar[j])
    np.divide(R, len(a_bar[i]), out=block.reshape(R.shape))
