"""K-FAC's own factors: second moments of a layer's inputs and of its output gradients (paper: sec. 3 and 5).

    A_ij = (1/N) sum_n a_bar_i a_bar_j^T                      from the forward pass, the same in all expectations
    G_ij = (1/N) sum_n sum_k g_i^k g_j^k^T                    from the backward pass of K columns (see `expectations`)

The expectation is `exact` (the KFLR of Botev et al. 2017), ``sampled(targets)`` (the paper's), or ``empirical(y)``,
which does not approximate the Fisher.
"""

from __future__ import annotations

from ..checks import Array
from ..expectations import Expectation, columns, exact
from ..layers import CHUNK_BYTES, second_moment
from ..model import Point
from .base import Factors, Key, Moments, as_factors


def second_moments(at: Point, expectation: Expectation = exact, reach: float = 0) -> Moments:
    """Return A and G as moments ("A", i, j) and ("G", i, j), i <= j, for the pairs of layers within `reach`.

    Parameters
    ----------
    reach : int or inf
        The largest distance j - i of the two layers of a cross factor: 0 for none (enough for the block-diagonal
        structure), 1 for neighbours (block-tridiagonal), inf for all pairs (the dense F̃).
    """
    if not reach >= 0:
        raise ValueError(f"reach must be at least 0, got {reach!r}")
    stack = columns(at, expectation)
    N, L = len(at), len(at.a_bar)
    pairs = [(i, j) for i in range(L) for j in range(i, L) if j - i <= reach]
    # A stack is sent back a few columns at a time, so that the memory of the pass is bounded; the sums are added.
    chunk = max(1, CHUNK_BYTES // (N * max(at.model.network.sizes) * stack.itemsize))
    G: dict[tuple[int, int], Array] = {}
    for start in range(0, len(stack), chunk):
        g = at.backward(stack[start:start + chunk])
        for i, j in pairs:
            part = second_moment(g[i], g[j])
            G[i, j] = G[i, j] + part if start else part
    moments: dict[Key, Array] = {("A", i, j): second_moment(at.a_bar[i], at.a_bar[j]) / N for i, j in pairs}
    return Moments(moments | {("G", *pair): S / N for pair, S in G.items()}, N)


def kronecker_factors(at: Point, expectation: Expectation = exact, reach: float = 0) -> Factors:
    """Return the Kronecker factors of K-FAC; `reach` is that of `second_moments`."""
    return as_factors(second_moments(at, expectation, reach))
