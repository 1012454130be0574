"""A (P, P) matrix layer by layer: norms, means and errors of its blocks, and whether they form a tridiagonal pattern.

`block_sizes` are the numbers of weights of the L layers, which add up to P.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checks import Array


def split(M: Array, block_sizes: Sequence[int]) -> list[list[Array]]:
    """Return the blocks of a matrix as views, row by row."""
    ends = np.cumsum(block_sizes)[:-1]
    return [np.split(rows, ends, axis=1) for rows in np.split(M, ends, axis=0)]


def norms(M: Array, block_sizes: Sequence[int]) -> Array:
    """Return the Frobenius norm of each block, (L, L)."""
    return np.array([[np.linalg.norm(B) for B in row] for row in split(M, block_sizes)])


def means(M: Array, block_sizes: Sequence[int]) -> Array:
    """Return the mean absolute entry of each block, (L, L), as on the right of the paper's figure 3."""
    return np.array([[np.abs(B).mean() for B in row] for row in split(M, block_sizes)])


def offsets(L: int) -> Array:
    """Return ``|i - j|`` for each pair of layers, (L, L)."""
    return np.abs(np.subtract.outer(np.arange(L), np.arange(L)))


def tridiagonal_ratio(M: Array, block_sizes: Sequence[int]) -> float:
    """Return the mean ``|entry|`` of the blocks with ``|i - j| = 1`` over that of the blocks with ``|i - j| > 1``.

    Blocks weigh the same whatever their size; there must be at least three.
    """
    mean, k = means(M, block_sizes), offsets(len(block_sizes))
    return float(mean[k == 1].mean() / mean[k > 1].mean())
