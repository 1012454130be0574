"""TKFAC: a Kronecker product that keeps the trace of each block (Gao et al. 2021).

    F_ii is approximated by  delta Phi kron Psi,        tr Phi = tr Psi = 1
    delta = E[ (a_bar . a_bar) (g . g) ]                = tr F_ii
    Phi   = E[ (g . g) a_bar a_bar^T ] / delta          Psi = E[ (a_bar . a_bar) g g^T ] / delta

Where A = E[a_bar a_bar^T] weighs all examples alike, here each one counts as much as its gradient is long. One step of
the power iteration towards the nearest Kronecker product, from the identity on either side, gives these two matrices.

With D = g a_bar^T, ``delta Phi = E[D^T D]`` and ``delta Psi = E[D D^T]``: these are the moments of `shampoo`, and
finished by `trace_preserving` they give ``A = sqrt(delta) Phi`` and ``G = sqrt(delta) Psi``.
"""

from __future__ import annotations

from ..expectations import Expectation, exact
from ..model import Point
from .base import Factors
from .shampoo import gradient_moments, trace_preserving


def tkfac_factors(at: Point, expectation: Expectation = exact) -> Factors:
    """Return the factors of the trace-preserving Kronecker product.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    expectation : function of a Point
        `exact`, ``sampled(targets)`` or ``empirical(y)``.

    Returns
    -------
    Factors
        ``A = sqrt(delta) Phi`` and ``G = sqrt(delta) Psi`` of each layer; no cross factors.

    Notes
    -----
    Source: Gao et al. 2021, "A trace-restricted Kronecker-factored approximation to natural gradient".
    """
    return trace_preserving(gradient_moments(at, expectation))
