"""The natural gradient: K-FAC's algorithm with the exact Fisher in place of its approximation.

    C = F + gamma^2 I          F exact on the whole batch

Everything else (rescaling, momentum, lambda, gamma) is as in `kfac`, so a run shows the cost of the approximation. With
gamma^2 = lambda + eta and no momentum, alpha is 1: Delta already minimizes M.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..approximations import EXACT_SMALLER, Approximation
from ..expectations import Expectation, exact
from .kfac import KFAC


@dataclass(frozen=True, eq=False)
class NaturalGradient(KFAC):
    """Algorithm 2 with the exact damped Fisher, for small networks or small batches (sec. 2.2; Amari 1998).

    It uses the current batch without a running average, so `tau1` and `ceiling` have no effect. `EXACT_SMALLER` factors
    the smaller matrix: `Exact`, (P, P), or `ExactDual`, (NC, NC) for N examples and C outputs; the record names it.
    """

    approximation: Approximation = EXACT_SMALLER
    expectation: Expectation = exact
    T3: int = 1                                     #: The matrix is that of one batch, and each step has another.
