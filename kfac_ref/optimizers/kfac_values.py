"""What one step of K-FAC leaves: its state, its record, and every intermediate by name."""

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

    Attributes
    ----------
    gamma : float
        The strength of its damping.
    weights : tuple of arrays
        The weights at that step.
    moments : Moments or None
        The running average at that step; None for a row that is made from a point.
    x, y, targets : arrays or None
        The batch of that step, and what was sampled on it; None for a row that has moments.
    """

    gamma: float
    weights: tuple[Array, ...]
    moments: Moments | None
    x: Array | None = None
    y: Any = None
    targets: Any = None


@dataclass(frozen=True, eq=False)
class State:
    """All that K-FAC remembers between two steps: arrays and numbers.

    Attributes
    ----------
    weights : tuple of arrays
        The current iterate.
    seed, k : int
        Step k (from 1) draws from ``numpy.random.default_rng((seed, k))``; k steps have been taken.
    lambda_, gamma : float
        The strengths of the damping.
    average : RunningAverage or None
        Of the moments; None for a row that has none.
    delta_0 : tuple of arrays or None
        The last step; None before the first and after one that was undone.
    refresh : Refresh or None
        What the structure in use was made from; None before the first step.
    before : tuple of arrays or None
        The weights before the last step, if it is still to be judged.
    predicted : float
        ``M(delta) - M(0)`` of the last step.
    batch : int
        The number of examples that the last step was fitted to.
    sums : (float, float)
        Of the curvatures and of the slopes along the judged steps, older ones with less weight.
    """

    weights: tuple[Array, ...]
    seed: int
    k: int
    lambda_: float
    gamma: float
    average: RunningAverage | None
    delta_0: tuple[Array, ...] | None
    refresh: Refresh | None
    before: tuple[Array, ...] | None = None
    predicted: float = 0.0
    batch: int = 0
    sums: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Draws:
    """All that is random in a step.

    Attributes
    ----------
    rows1, rows2 : (n,) int arrays or slices
        The tau1 part (factors) and the tau2 part (exact F) of the batch.
    targets : array or None
        Sampled on the tau1 part; None where the expectation is not `one_draw`.
    """

    rows1: Rows
    rows2: Rows
    targets: Any


@dataclass(frozen=True, eq=False)
class Damped:
    """A structure with one gamma, and its direction.

    Attributes
    ----------
    refresh : Refresh
        What the structure was made from.
    curvature : Curvature
        The damped structure.
    Delta : list of arrays
        ``-C^{-1} grad``.
    """

    refresh: Refresh
    curvature: Curvature
    Delta: list[Array]


@dataclass(frozen=True, eq=False)
class Proposal:
    """What `KFAC.propose` returns.

    Attributes
    ----------
    at : Point
        The model at the weights before the step, on the batch.
    h : float
        The loss, weight decay included.
    grad : list of arrays
        grad h.
    draws : Draws
        The two parts of the batch, and the sampled targets.
    average : RunningAverage or None
        With this batch in it.
    damped : tuple of Damped
        One for each gamma.
    refreshed : bool
        Whether the structures are new.
    """

    at: Point
    h: float
    grad: list[Array]
    draws: Draws
    average: RunningAverage | None
    damped: tuple[Damped, ...]
    refreshed: bool


@dataclass(frozen=True, eq=False)
class Candidate(Damped):
    """One gamma with its best step.

    Attributes
    ----------
    gamma : float
        The strength of the damping.
    model : SmallModel
        M on the span of Delta and delta_0: the 2 x 2 system of sec. 7.
    alpha, mu : float
        Its solution.
    decrease : float
        ``M(delta) - M(0)``, not positive.
    """

    gamma: float
    model: SmallModel
    alpha: float
    mu: float
    decrease: float


@dataclass(frozen=True, eq=False)
class Choice:
    """What `KFAC.choose` returns.

    Attributes
    ----------
    candidates : tuple of Candidate
        One for each gamma.
    chosen : Candidate
        The one with the lowest M.
    delta : list of arrays
        ``alpha Delta + mu delta_0``.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    delta: list[Array]


@dataclass(frozen=True)
class Judgement:
    """What `KFAC.judge` returns besides the state.

    Attributes
    ----------
    actual, rho : float
        As in `Record`.
    safeguards : tuple of str
        ``lambda floor``, ``undone``, or none of them.
    """

    actual: float
    rho: float
    safeguards: tuple[str, ...]


#: Of a step after which no step was judged.
UNJUDGED = Judgement(math.nan, math.nan, ())


@dataclass(frozen=True)
class Record:
    """What a step decided.

    Attributes
    ----------
    k, batch : int
        The step, from 1, and its number of examples.
    loss : float
        h on the batch before the step, weight decay included.
    lambda_, gamma : float
        As used in this step (gamma: the chosen one).
    gammas : tuple of (gamma, M(delta) - M(0))
        All that were tried.
    alpha, mu : float
        The coefficients of Delta and delta_0.
    predicted : float
        ``M(delta) - M(0)``.
    actual, rho : float
        The change of h along the step that was judged, and the ratio that decided about lambda. If the same batch
        judges: ``h(theta + delta) - h(theta)`` of this step, and its ratio to `predicted`. If the next batch judges:
        slope plus curvature of the last step, and the ratio of their sums (see `KFAC`). NaN if no step was judged (only
        every T1 steps), and rho also if the change is of rounding size, as at the optimum: lambda then stays.
    gradient_norm, step_norm : float
        Euclidean norms of grad h and of delta.
    refreshed : bool
        Whether the structure is new.
    structure : str
        The name of its class.
    safeguards : tuple of str
        Which of the rules that the paper does not have took effect: ``gamma clipped``, ``lambda floor``, ``undone``
        (the step that was judged).
    seconds : dict
        Seconds by stage, as in the table of sec. 8: ``gradient`` (forward and backward), ``factors`` (sampled
        backward pass, products, average), ``inverses`` (making and factoring the structure, with the first solve),
        ``solve`` (with a kept one), ``exact F`` (R-passes), ``rho`` (judging), ``update``.
    """

    k: int
    batch: int
    loss: float
    lambda_: float
    gamma: float
    gammas: tuple[tuple[float, float], ...]
    alpha: float
    mu: float
    predicted: float
    actual: float
    rho: float
    gradient_norm: float
    step_norm: float
    refreshed: bool
    structure: str
    safeguards: tuple[str, ...]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Detail:
    """Every intermediate of one step, by name: what `KFAC.explain` returns.

    The attributes of `Proposal`, `Draws`, `Choice`, the chosen `Candidate`, `Judgement` and `Record` are attributes
    here too, such as ``detail.grad``, ``detail.Delta`` and ``detail.rho``.

    Attributes
    ----------
    proposal : Proposal
        Gradient, factors and directions.
    choice : Choice
        alpha, mu and the step.
    judgement : Judgement
        rho and the next lambda.
    state : State
        After the step.
    record : Record
        What was decided.
    """

    proposal: Proposal
    choice: Choice
    judgement: Judgement
    state: State
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
        """The matrix and the right-hand side of the 2 x 2 system of (alpha, mu); 1 x 1 where there is no last step."""
        return self.choice.chosen.model.B, -self.choice.chosen.model.slope

    @property
    def J_Delta(self) -> Array:
        """The change of the output along Delta on the tau2 part, (n, C)."""
        return self.proposal.at.take(self.proposal.draws.rows2).tangent(self.choice.chosen.Delta)
