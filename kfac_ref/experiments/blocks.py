"""A matrix layer by layer: norms, means and errors of its blocks, and whether they form a tridiagonal pattern."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checks import Array


def split(M: Array, block_sizes: Sequence[int]) -> list[list[Array]]:
    """Return the blocks of a matrix as views, row by row.

    Parameters
    ----------
    M : (P, P) array
        A matrix.
    block_sizes : sequence of int
        Adding up to P.
    """
    ends = np.cumsum(block_sizes)[:-1]
    return [np.split(rows, ends, axis=1) for rows in np.split(M, ends, axis=0)]


def norms(M: Array, block_sizes: Sequence[int]) -> Array:
    """Return the Frobenius norm of each block.

    Parameters
    ----------
    M : (P, P) array
        A matrix.
    block_sizes : sequence of int
        Adding up to P.

    Returns
    -------
    (L, L) array
        The norm of the whole is the root of the sum of their squares.
    """
    return np.array([[np.linalg.norm(B) for B in row] for row in split(M, block_sizes)])


def means(M: Array, block_sizes: Sequence[int]) -> Array:
    """Return the mean absolute entry of each block.

    Parameters
    ----------
    M : (P, P) array
        A matrix.
    block_sizes : sequence of int
        Adding up to P.

    Returns
    -------
    (L, L) array
        As on the right of the paper's figure 3.
    """
    return np.array([[np.abs(B).mean() for B in row] for row in split(M, block_sizes)])


def offsets(L: int) -> Array:
    """Return ``|i - j|`` for each pair of layers.

    Parameters
    ----------
    L : int
        The number of layers.

    Returns
    -------
    (L, L) int array
        0 on the diagonal, 1 beside it.
    """
    return np.abs(np.subtract.outer(np.arange(L), np.arange(L)))


def errors_by_offset(B: Array, M: Array, block_sizes: Sequence[int]) -> list[float]:
    """Return the relative error of a matrix, separately for the blocks at each distance from the diagonal.

    Parameters
    ----------
    B, M : (P, P) arrays
        The approximation and what it stands for.
    block_sizes : sequence of int
        Adding up to P.

    Returns
    -------
    list of L floats
        At ``|i - j| = k``: the norm of the difference over that of M, both over these blocks alone.
    """
    wrong, right, k = norms(B - M, block_sizes), norms(M, block_sizes), offsets(len(block_sizes))
    return [float(np.linalg.norm(wrong[k == d]) / np.linalg.norm(right[k == d])) for d in range(len(block_sizes))]


def tridiagonal_ratio(M: Array, block_sizes: Sequence[int]) -> float:
    """Return how much larger the entries of blocks beside the diagonal are than those of blocks further off.

    Parameters
    ----------
    M : (P, P) array
        A matrix.
    block_sizes : sequence of int
        Three at least; blocks weigh the same whatever their size.

    Returns
    -------
    float
        Mean ``|entry|`` of the blocks with ``|i - j| = 1`` over that of the blocks with ``|i - j| > 1``.
    """
    mean, k = means(M, block_sizes), offsets(len(block_sizes))
    return float(mean[k == 1].mean() / mean[k > 1].mean())
