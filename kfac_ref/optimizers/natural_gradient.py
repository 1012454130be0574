"""The natural gradient: K-FAC's algorithm with the exact Fisher in place of its approximation.

    C = F + gamma^2 I          F exact on the whole batch, dense

Everything else (rescaling, momentum, lambda, gamma) is as in `kfac`, so a run shows what the approximation costs. With
gamma^2 = lambda + eta and no momentum, alpha is 1: Delta already minimizes M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..curvature import Curvature, Exact
from .kfac import KFAC


@dataclass(frozen=True, eq=False)
class NaturalGradient(KFAC):
    """Algorithm 2 with the exact damped Fisher; parameters as in `KFAC`.

    Parameters
    ----------
    structure : class or function
        ``structure(at, damping=gamma**2)``: `Exact`.

    Notes
    -----
    For small networks: each refresh forms a (P, P) matrix and factors it. It uses the batch at hand, without a running
    average, so tau1 and ceiling have no effect. Source: Martens & Grosse 2015, sec. 2.2; Amari 1998.
    """

    structure: Callable[..., Curvature] = Exact
