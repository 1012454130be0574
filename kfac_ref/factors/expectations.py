"""A and G in the three expectations: exact, sampled, empirical. One backward pass, three stacks to send through it.

    A_ij = (1/N) sum_n a_bar_i a_bar_j^T                      from the forward pass, the same in all three
    G_ij = (1/N) sum_n sum_k g_i^k g_j^k^T                    from the backward pass of K columns

The columns are those of `fisher`: of a root of F_R (exact, the paper's expectation in closed form), gradients at
sampled targets (the paper's algorithm, sec. 5: one sample for each case is enough), or gradients at the labels.
"""

from __future__ import annotations

import math
from typing import Any

from ..checks import Array
from ..fisher import CHUNK_BYTES, empirical_columns, exact_columns, sampled_columns
from ..model import Point
from .base import Factors


def exact_factors(at: Point, reach: float = math.inf) -> Factors:
    """Return the factors with the expectation over targets in closed form.

    Parameters
    ----------
    at : Point
        Where.
    reach : int or inf
        How far apart the two layers of a cross factor may be: 0 for none (all that the block-diagonal structure
        needs), 1 for neighbours (block-tridiagonal), inf for all pairs (the dense F~).

    Returns
    -------
    Factors
        Means over the examples.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 3; the closed form is the KFLR of Botev et al. 2017.
    """
    return _factors(at, exact_columns(at), reach)


def sampled_factors(at: Point, targets: Any, reach: float = math.inf) -> Factors:
    """Return the factors with targets that were drawn from the model's prediction.

    Parameters
    ----------
    at : Point
        Where.
    targets : (N,), (M, N), (N, C) or (M, N, C) array
        As drawn by ``at.sample``; M draws are averaged.
    reach : int or inf
        As in `exact_factors`.

    Returns
    -------
    Factors
        Means over the examples.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 5.
    """
    return _factors(at, sampled_columns(at, targets), reach)


def empirical_factors(at: Point, y: Any, reach: float = math.inf) -> Factors:
    """Return the factors at the labels: not an approximation of the Fisher (Kunstner et al. 2019).

    Parameters
    ----------
    at : Point
        Where.
    y : (N,) or (N, C) array
        The labels.
    reach : int or inf
        As in `exact_factors`.

    Returns
    -------
    Factors
        Means over the examples.
    """
    return _factors(at, empirical_columns(at, y), reach)


def _factors(at: Point, columns: Array, reach: float) -> Factors:
    if not reach >= 0:
        raise ValueError(f"reach must be at least 0, got {reach!r}")
    L = len(at.a_bar)
    pairs = [(i, j) for i in range(L) for j in range(i, L) if j - i <= reach]
    # A stack is sent back a few columns at a time, so that the memory of the pass is bounded; the sums add up.
    width = max(at.model.network.sizes)
    chunk = max(1, CHUNK_BYTES // (len(at) * width * columns.itemsize))
    G: dict[tuple[int, int], Array] = {}
    for start in range(0, len(columns), chunk):
        g = [gi.reshape(-1, gi.shape[-1]) for gi in at.backward(columns[start:start + chunk])]
        for i, j in pairs:
            part = g[i].T @ g[j]
            G[i, j] = G[i, j] + part if start else part
    n = len(at)
    A: dict[tuple[int, int], Array] = {(i, j): at.a_bar[i].T @ at.a_bar[j] / n for i, j in pairs}
    G = {key: part / n for key, part in G.items()}

    # What goes into the fields A_cross and G_cross, and what into A_far and G_far.
    def neighbours(X: dict[tuple[int, int], Array]) -> tuple[Array, ...]:
        return tuple(X[i, i + 1] for i in range(L - 1)) if reach >= 1 else ()

    def far(X: dict[tuple[int, int], Array]) -> dict[tuple[int, int], Array]:
        return {(i, j): x for (i, j), x in X.items() if j > i + 1}

    return Factors(tuple(A[i, i] for i in range(L)), tuple(G[i, i] for i in range(L)),
                   neighbours(A), neighbours(G), n, far(A), far(G))
