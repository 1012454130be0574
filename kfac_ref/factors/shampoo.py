"""Shampoo's two matrices, from the gradients of single examples, and the Kronecker products made of them.

With D the gradient of one example (one column of it) with respect to a layer's weights::

    L = E[ D D^T ]   (m, m)            R = E[ D^T D ]   (n, n)            tr L = tr R = tr F_ii

    R ⊗ L / tr L        has the trace of the block; without shared weights it is TKFAC's
    R^1/2 ⊗ L^1/2       Shampoo's own, whose inverse square root it multiplies by; it scales as F does

Shampoo itself sums gradients of batches over time; here its structure is compared on the Fisher.

Source: Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization"; Morwani et al. 2024 for
its relation to the nearest Kronecker product.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array, Direction
from ..expectations import Expectation, exact, gradients
from ..kronecker import Eigen
from ..layers import side_moments
from ..model import Point
from .base import Factors, Key, Moments


def gradient_moments(at: Point, expectation: Expectation = exact) -> Moments:
    """Return R and L of each layer as moments ("R", i) and ("L", i)."""
    N = len(at)
    moments: dict[Key, Array] = {}
    for i, (g, a_bar) in enumerate(zip(gradients(at, expectation), at.a_bar, strict=True)):
        R, L = side_moments(g, a_bar)
        moments |= {("R", i): R / N, ("L", i): L / N}
    return Moments(moments, N)


def trace_preserving(moments: Moments, weights: Direction = ()) -> Factors:
    """Return ``A = R / sqrt(tr L)`` and ``G = L / sqrt(tr L)`` from `gradient_moments`; 0 for a dead layer."""
    pairs = [(R / root, L / root) for R, L in _sides(moments) for root in [R.dtype.type(np.sqrt(np.trace(L)) or 1.0)]]
    return Factors.of_layers([A for A, _ in pairs], [G for _, G in pairs], moments.n)


def square_roots(moments: Moments, weights: Direction = ()) -> Factors:
    """Return ``A = R^1/2`` and ``G = L^1/2`` of each layer, from `gradient_moments`."""
    pairs = [(Eigen.factor(R, f"R of layer {i}").root(), Eigen.factor(L, f"L of layer {i}").root())
             for i, (R, L) in enumerate(_sides(moments))]
    return Factors.of_layers([A for A, _ in pairs], [G for _, G in pairs], moments.n)


def shampoo_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return ``A = R / sqrt(tr L)`` and ``G = L / sqrt(tr L)`` of each layer."""
    return trace_preserving(gradient_moments(at, expectation))


def shampoo_root_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return ``A = R^1/2`` and ``G = L^1/2`` of each layer, as in the original."""
    return square_roots(gradient_moments(at, expectation))


def _sides(moments: Moments) -> list[tuple[Array, Array]]:
    return [(moments.arrays["R", i], moments.arrays["L", i]) for i in range(len(moments.arrays) // 2)]
