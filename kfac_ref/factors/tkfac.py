"""TKFAC: a Kronecker product that has the trace of each block.

    F_ii is approximated by  delta Phi ⊗ Psi,        tr Phi = tr Psi = 1
    delta = E[ (a_bar . a_bar) (g . g) ]                = tr F_ii
    Phi   = E[ (g . g) a_bar a_bar^T ] / delta          Psi = E[ (a_bar . a_bar) g g^T ] / delta

While A = E[a_bar a_bar^T] weights all examples equally, here each is weighted by the squared norm of its g (in Psi, of
its a_bar), so that its share of the trace is its squared gradient norm. One step of the power iteration for the nearest
Kronecker product, started from the identity on either side, gives these two matrices.

With D = g a_bar^T, ``delta Phi = E[D^T D]`` and ``delta Psi = E[D D^T]``: these are the moments of `shampoo`, and
`trace_preserving` finishes them into ``A = sqrt(delta) Phi`` and ``G = sqrt(delta) Psi``.

Source: Gao et al. 2021, "A trace-restricted Kronecker-factored approximation to natural gradient".
"""

from __future__ import annotations

from ..expectations import Expectation, exact
from ..model import Point
from .base import Factors
from .shampoo import gradient_moments, trace_preserving


def tkfac_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return TKFAC's ``A = sqrt(delta) Phi`` and ``G = sqrt(delta) Psi`` of each layer, without cross factors."""
    return trace_preserving(gradient_moments(at, expectation))
