"""TKFAC: a Kronecker product that keeps the trace of each block (Gao et al. 2021).

    F_ii is approximated by  delta Phi kron Psi,        tr Phi = tr Psi = 1
    delta = E[ (a_bar . a_bar) (g . g) ]                = tr F_ii
    Phi   = E[ (g . g) a_bar a_bar^T ] / delta          Psi = E[ (a_bar . a_bar) g g^T ] / delta

Where A = E[a_bar a_bar^T] weighs all examples alike, here each one counts as much as its gradient is long. One step of
the power iteration towards the nearest Kronecker product, from the identity on either side, gives these two matrices.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array
from ..fisher import columns_of
from ..model import Point
from .base import Factors


def tkfac_factors(at: Point, columns: Array | None = None) -> Factors:
    """Return the factors of the trace-preserving Kronecker product.

    Parameters
    ----------
    at : Point
        Where.
    columns : (K, N, C) array, optional
        Another expectation than the exact one: `sampled_columns` or `empirical_columns`.

    Returns
    -------
    Factors
        ``A = sqrt(delta) Phi`` and ``G = sqrt(delta) Psi`` of each layer; no cross factors.

    Notes
    -----
    Source: Gao et al. 2021, "A trace-restricted Kronecker-factored approximation to natural gradient".
    """
    g = at.backward(columns_of(at, columns))
    N = len(at)
    As, Gs = [], []
    for a, gi in zip(at.a_bar, g, strict=True):
        a_length, g_length = np.square(a).sum(axis=1), np.square(gi).sum(axis=(0, 2))     # (N,); summed over columns
        delta = float(a_length @ g_length) / N
        root = np.sqrt(delta) or 1.0                        # a dead layer has delta = 0 and factors that are 0
        As.append((a * g_length[:, None]).T @ a / N / a.dtype.type(root))
        weighted = gi * a_length[:, None]
        Gs.append(weighted.reshape(-1, gi.shape[2]).T @ gi.reshape(-1, gi.shape[2]) / N / a.dtype.type(root))
    return Factors(tuple(As), tuple(Gs), (), (), N)
