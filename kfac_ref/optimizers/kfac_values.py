"""What one step of K-FAC produces: its state, its record, and every intermediate by name.

A direction is a list or tuple of arrays shaped like the weights. A row of the table of approximations either has
moments or is made from a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..checks import Array, Rows
from ..curvature import Curvature
from ..factors import Moments, RunningAverage
from ..model import Point
from ..quadratic_model import SmallModel


@dataclass(frozen=True, eq=False)
class Refresh:
    """What the structure in use was made from: arrays and numbers, from which it can be made again to the same bits.

    A row with moments keeps their running average; a row made from a point keeps the batch and what was sampled on it.
    """

    gamma: float                #: The strength of the structure's damping.
    weights: tuple[Array, ...]  #: The weights at that step.
    moments: Moments | None     #: None for a row made from a point.
    x: Array | None = None      #: The batch; x, y and targets are None for a row with moments.
    y: Any = None
    targets: Any = None


@dataclass(frozen=True, eq=False)
class State:
    """All that K-FAC remembers between two steps: arrays and numbers."""

    weights: tuple[Array, ...]               #: The current iterate.
    seed: int                                #: Step k draws from ``numpy.random.default_rng((seed, k))``.
    k: int                                   #: The number of steps taken.
    lambda_: float
    gamma: float
    average: RunningAverage | None           #: Of the moments; None for a row made from a point.
    delta_0: tuple[Array, ...] | None        #: The last step; None before the first and after an undone one.
    refresh: Refresh | None                  #: None before the first step.
    before: tuple[Array, ...] | None = None  #: The weights before the last step, if it is still to be judged.
    predicted: float = 0.0                   #: ``M(delta) - M(0)`` of the last step.
    batch: int = 0                           #: The number of examples that the last step was fitted to.
    sums: tuple[float, float] = (0.0, 0.0)   #: Of curvatures and of slopes along judged steps; older ones weigh less.


@dataclass(frozen=True, eq=False)
class Draws:
    """All that is random in a step."""

    rows1: Rows   #: The tau1 part of the batch, for the factors.
    rows2: Rows   #: The tau2 part, for the exact F.
    targets: Any  #: Sampled on the tau1 part; None if the expectation is not `one_draw`.


@dataclass(frozen=True, eq=False)
class Damped:
    """A structure with one gamma, and its direction."""

    refresh: Refresh      #: What the structure was made from.
    curvature: Curvature  #: The damped structure C.
    Delta: list[Array]    #: ``-C^{-1} grad``.


@dataclass(frozen=True, eq=False)
class Proposal:
    """What `KFAC.propose` returns."""

    at: Point                       #: The model at the weights before the step, on the batch with its targets.
    h: float                        #: The loss, weight decay included.
    grad: list[Array]
    draws: Draws
    average: RunningAverage | None  #: With this batch included.
    damped: tuple[Damped, ...]      #: One per gamma.
    refreshed: bool                 #: Whether the structures are new.


@dataclass(frozen=True, eq=False)
class Candidate(Damped):
    """One gamma with its best step ``alpha Delta + mu delta_0``."""

    gamma: float
    model: SmallModel  #: M on the span of Delta and delta_0: the 2 x 2 system of sec. 7.
    alpha: float
    mu: float
    decrease: float    #: ``M(delta) - M(0)``, not positive.


@dataclass(frozen=True, eq=False)
class Choice:
    """What `KFAC.choose` returns: one candidate per gamma, the one with the lowest M, and its step delta."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    delta: list[Array]


@dataclass(frozen=True)
class Judgement:
    """What `KFAC.judge` returns besides the state; `actual`, `rho` and `safeguards` are those of `Record`."""

    actual: float
    rho: float
    safeguards: tuple[str, ...]


#: If no step was judged.
UNJUDGED = Judgement(math.nan, math.nan, ())


@dataclass(frozen=True)
class Record:
    """What a step decided."""

    k: int                                   #: The number of the step, from 1.
    batch: int                               #: The number of examples in its batch.
    loss: float                              #: h on the batch before the step, weight decay included.
    lambda_: float                           #: As used in this step.
    gamma: float                             #: That of the chosen candidate.
    gammas: tuple[tuple[float, float], ...]  #: Pairs of gamma and ``M(delta) - M(0)``, one per candidate.
    alpha: float                             #: The coefficient of Delta.
    mu: float                                #: The coefficient of delta_0.
    predicted: float                         #: ``M(delta) - M(0)``.
    #: The change of h along the judged step; NaN if none was judged (only every T1 steps one is). If the same batch
    #: judges: ``h(theta + delta) - h(theta)`` of this step. If the next batch judges: slope plus curvature of the last
    #: step (see `kfac_settings.Settings`).
    actual: float
    #: The ratio that decided about lambda: of `actual` to `predicted`, or, if the next batch judges, of the sums in
    #: `State`. NaN if no step was judged, or if the change is of rounding size, as at the optimum: lambda then stays.
    rho: float
    gradient_norm: float                     #: The Euclidean norm of grad h.
    step_norm: float                         #: The Euclidean norm of delta.
    refreshed: bool                          #: Whether the structure is new.
    structure: str                           #: The name of its class.
    #: Which rules took effect that are not in the paper: ``gamma clipped``, ``lambda floor``, ``undone`` (judged step).
    safeguards: tuple[str, ...]
    #: Seconds per stage, as in the table of sec. 8: ``gradient`` (forward and backward), ``factors`` (sampled backward
    #: pass, products, average), ``inverses`` (making and factoring the structure, with the first solve), ``solve``
    #: (with an earlier one), ``exact F`` (R-passes), ``rho`` (judging), ``update``.
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Detail:
    """Every intermediate of one step, by name: what `KFAC.explain` returns.

    The attributes of `Proposal`, `Draws`, `Choice`, the chosen `Candidate`, `Judgement` and `Record` are attributes
    here too, such as ``detail.grad``, ``detail.Delta`` and ``detail.rho``.
    """

    proposal: Proposal
    choice: Choice
    judgement: Judgement
    state: State  #: The state after the step.
    record: Record

    def __getattr__(self, name: str) -> Any:
        """Look in the parts of the step."""
        if not name.startswith("_"):
            for part in (self.record, self.proposal, self.proposal.draws, self.choice, self.choice.chosen,
                         self.judgement):
                if name in part.__dataclass_fields__:
                    return getattr(part, name)
        raise AttributeError(f"a step has no {name}")

    @property
    def pi(self) -> tuple[float, ...]:
        """The balance of each layer's damping, for a structure that is damped in its factors."""
        pis: tuple[float, ...] | None = getattr(self.choice.chosen.curvature, "pis", None)
        if pis is None:
            raise ValueError(f"{type(self.choice.chosen.curvature).__name__} has no pi")
        return pis

    @property
    def system(self) -> tuple[Array, Array]:
        """The matrix and the right-hand side of the 2 x 2 system of (alpha, mu); 1 x 1 if there is no last step."""
        return self.choice.chosen.model.B, -self.choice.chosen.model.slope

    @property
    def J_Delta(self) -> Array:
        """The change of the output along Delta on the tau2 part, (n, C)."""
        return self.proposal.at.take(self.proposal.draws.rows2).tangent(self.choice.chosen.Delta)
