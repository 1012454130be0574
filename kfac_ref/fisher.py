"""The exact comparator: the Fisher matrix itself, dense, block by block, and as products that never form it.

With J the Jacobian of z and F_R the Fisher of the likelihood (paper: sec. 2.2)::

    F = (1/N) sum_n J_n^T F_R,n J_n = (1/N) sum_n sum_k vec(D_n^k) vec(D_n^k)^T ,   D_n^k = g^k a_bar^T  (per layer)

where g^k is the backward pass of column k of a root of F_R. Other expectations send other columns back
(`expectations`); ``empirical(y)`` gives a matrix that is not the Fisher.

The block of layers i and j, rearranged (see `kronecker`), is one matrix product over the examples::

    R(F_ij) = (1/N) sum_n [ sum_k vec(g_i^k g_j^k^T) ] vec(a_bar_i a_bar_j^T)^T

The Kronecker approximation of `factors` replaces the mean of the product by the product of the two means. Weight decay
and damping are not part of a Fisher.

`dense`, `product`, `slopes` and `gram` take the gradients g, (K, N, m), and inputs a_bar, (N, n), of all layers;
`fisher_matrix`, `fisher_block`, `fisher_product` and `fisher_gram` take a `Point` (`at`). Directions are lists of
arrays shaped like the weights. Dense matrices are ordered as in `params`; one of more than `max_bytes` (default:
4 GiB) raises ValueError.
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
    """Return the Fisher matrix, dense, (P, P) (sec. 2.2)."""
    return dense(gradients(at, expectation), at.a_bar, max_bytes)


def dense(g: Sequence[Array], a_bar: Sequence[Array], max_bytes: int | None = None) -> Array:
    """Return the mean over examples of ``sum_k vec(D^k) vec(D^k)^T``, (P, P), with the D of all layers stacked."""
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
    """Return the block of the Fisher for layers i and j (from 0), (m_i n_i, m_j n_j), without computing the rest."""
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
    """Return ``F v`` without forming F: forward by the R-operator, through F_R, and back (sec. 6.4; Schraudolph 2002).

    For an expectation other than `exact`, the outer products of its columns take the place of F_R.
    """
    at = as_point(at)
    if expectation is exact:
        return at.adjoint(at.model.likelihood.fisher_product(at.z, at.tangent(V)) / len(at))
    root = columns(at, expectation)
    return at.adjoint(np.einsum("knc,kn->nc", root, np.einsum("knc,nc->kn", root, at.tangent(V))) / len(at))


def fisher_gram(at: Point, directions: Sequence[Direction]) -> Array:
    """Return the (K, K) float64 matrix ``v_k^T F v_l`` for K directions (sec. 6.4 and app. C).

    It needs one R-pass per direction and no backward pass: for two directions and large networks, half the cost of two
    Fisher products.
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
    """Return the mean over examples of ``sum_k <D^k, v> D^k``: the product of `dense` with v, without forming it."""
    c = slopes(g, a_bar, V)
    return [adjoint(np.einsum("kn,kn...->n...", c, gi), a) / len(a) for gi, a in zip(g, a_bar, strict=True)]


def slopes(g: Sequence[Array], a_bar: Sequence[Array], V: Direction) -> Array:
    """Return ``<D^k_n, v>``, the derivative of each column and example along v, (K, N)."""
    return np.sum([example_slopes(*layer) for layer in zip(g, a_bar, V, strict=True)], axis=0)


def gram(g: Sequence[Array], a_bar: Sequence[Array], directions: Sequence[Direction]) -> Array:
    """Return the matrix ``v_k^T F v_l`` for a few directions, with F as returned by `dense`."""
    along = np.stack([slopes(g, a_bar, V).ravel() for V in directions])
    return along @ along.T / len(a_bar[0])


def _fill_block(block: Array, g: Sequence[Array], a_bar: Sequence[Array], i: int, j: int) -> None:
    """Write F_ij into `block`, through a view that splits its rows and columns into the axes of a_bar and g."""
    R = rearranged(g[i], a_bar[i], g[j], a_bar[j])
    np.divide(R, len(a_bar[i]), out=block.reshape(R.shape))
