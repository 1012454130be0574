"""What one step of K-FAC leaves: its state, its record, and every intermediate by name."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import Array, Rows
from ..curvature import BlockDiagonal, BlockTridiagonal, Curvature
from ..factors import RunningAverage
from ..model import Point
from ..quadratic_model import SmallModel


@dataclass(frozen=True, eq=False)
class State:
    """All that K-FAC remembers between two steps.

    Attributes
    ----------
    weights : tuple of arrays
        The current iterate.
    seed, k : int
        Step k (from 1) draws from ``numpy.random.default_rng((seed, k))``; k steps have been taken.
    lambda_, gamma : float
        The strengths of the damping.
    average : RunningAverage
        Of the factors.
    delta_0 : tuple of arrays or None
        The last step; None before the first and after one that was undone.
    curvature : Curvature or None
        The structure in use, with whatever it has factored.
    """

    weights: tuple[Array, ...]
    seed: int
    k: int
    lambda_: float
    gamma: float
    average: RunningAverage
    delta_0: tuple[Array, ...] | None
    curvature: Curvature | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """One gamma that was tried.

    Attributes
    ----------
    gamma : float
        The strength of the factored damping.
    curvature : Curvature
        The structure with that damping.
    Delta : list of arrays
        ``-C^{-1} grad``.
    model : SmallModel
        M on the span of Delta and delta_0: the 2 x 2 system of sec. 7.
    alpha, mu : float
        Its solution.
    decrease : float
        ``M(delta) - M(0)``, not positive.
    """

    gamma: float
    curvature: Curvature
    Delta: list[Array]
    model: SmallModel
    alpha: float
    mu: float
    decrease: float


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
        ``h(theta + delta) - h(theta)`` and its ratio to `predicted`; NaN where not measured (only every T1 steps), and
        rho also where both are of rounding size, as at the optimum: lambda then stays.
    gradient_norm, step_norm : float
        Euclidean norms of grad h and of delta.
    refreshed : bool
        Whether the structure was made anew.
    structure : str
        The name of its class.
    safeguards : tuple of str
        Which of the rules that the paper does not have took effect: ``gamma clipped``, ``lambda floor``, ``undone``.
    seconds : dict
        Seconds by stage, as in the table of sec. 8: ``gradient`` (forward and backward), ``factors`` (sampled
        backward pass, products, average), ``inverses`` (making and factoring the structure, with the first solve),
        ``solve`` (with a kept one), ``exact F`` (R-passes), ``rho`` (forward pass at the new weights), ``update``.
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

    Attributes
    ----------
    at : Point
        The model at the weights before the step, on the batch.
    grad : list of arrays
        grad h.
    rows1, rows2 : (n,) int arrays or slices
        The tau1 part (factors) and the tau2 part (exact F) of the batch.
    targets : array or None
        What was sampled on the tau1 part; None for a structure that is made from a point.
    average : RunningAverage
        With this batch in it.
    candidates : tuple of Candidate
        One for each gamma.
    chosen : Candidate
        The one with the lowest M.
    delta : list of arrays
        ``alpha Delta + mu delta_0``, whether it was taken or undone.
    state : State
        After the step.
    record : Record
        What was decided.
    """

    at: Point
    grad: list[Array]
    rows1: Rows
    rows2: Rows
    targets: Array | None
    average: RunningAverage
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    delta: list[Array]
    state: State
    record: Record

    @property
    def A(self) -> tuple[Array, ...]:
        """The averaged input factors, with this batch; Delta and pi come from those of ``chosen.curvature.factors``.

        The two are the same where ``record.refreshed``, else the curvature's are older.
        """
        return self.average.factors.A

    @property
    def G(self) -> tuple[Array, ...]:
        """The averaged output factors, with this batch; as for A, those that are solved with may be older."""
        return self.average.factors.G

    @property
    def pi(self) -> tuple[float, ...]:
        """The balance of each layer's damping, for a structure that is damped in its factors."""
        if not isinstance(self.chosen.curvature, (BlockDiagonal, BlockTridiagonal)):
            raise AttributeError(f"{type(self.chosen.curvature).__name__} has no pi")
        return self.chosen.curvature.pis

    @property
    def alpha(self) -> float:
        """The coefficient of Delta."""
        return self.record.alpha

    @property
    def mu(self) -> float:
        """The coefficient of the last step."""
        return self.record.mu

    @property
    def rho(self) -> float:
        """The reduction ratio; NaN where the step is not looked back at (every T1)."""
        return self.record.rho

    @property
    def system(self) -> tuple[Array, Array]:
        """The matrix and the right-hand side of the 2 x 2 system of (alpha, mu); 1 x 1 where there is no last step."""
        return self.chosen.model.B, -self.chosen.model.slope

    @property
    def Delta(self) -> list[Array]:
        """``-C^{-1} grad`` of the chosen candidate."""
        return self.chosen.Delta

    @property
    def J_Delta(self) -> Array:
        """The change of the output along Delta on the tau2 part, (n, C)."""
        return self.at.take(self.rows2).tangent(self.chosen.Delta)
