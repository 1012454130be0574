"""The natural gradient: K-FAC's algorithm with the exact Fisher in place of its approximation.

    C = F + gamma^2 I          F exact on the whole batch

Everything else (rescaling, momentum, lambda, gamma) is as in `kfac`, so a run shows what the approximation costs. With
gamma^2 = lambda + eta and no momentum, alpha is 1: Delta already minimizes M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..curvature import Curvature, Exact, ExactDual
from ..factors import RunningAverage
from ..model import Point
from .kfac import KFAC
from .kfac_values import State


@dataclass(frozen=True, eq=False)
class NaturalGradient(KFAC):
    """Algorithm 2 with the exact damped Fisher; parameters as in `KFAC`.

    Parameters
    ----------
    structure : class or function
        ``structure(at, damping=gamma**2)``. With the default `Exact`, whichever factors the smaller matrix is used:
        `Exact`, (P, P), or `ExactDual`, (NC, NC) for N cases and C outputs. The record says which.
    T3 : int
        1, since the matrix is that of one batch: kept longer, it is another batch's.

    Notes
    -----
    For small networks or small batches. It uses the batch at hand, without a running average, so tau1 and ceiling have
    no effect. Source: Martens & Grosse 2015, sec. 2.2; Amari 1998.
    """

    structure: Callable[..., Curvature] = Exact
    T3: int = 1

    def curvature(self, state: State, at: Point, average: RunningAverage, gamma: float) -> Curvature:
        """Return the exact Fisher of the batch, damped with gamma, in the form that factors the smaller matrix.

        Parameters
        ----------
        state : State
            Before the step.
        at : Point
            The whole batch.
        average : RunningAverage
            Not used.
        gamma : float
            The damping is its square.

        Returns
        -------
        Curvature
            `Exact` or `ExactDual`, or the user's own structure.
        """
        if self.structure is Exact and gamma > 0 and at.z.size < self.model.network.parameters:
            return ExactDual(at, gamma**2)
        return super().curvature(state, at, average, gamma)
