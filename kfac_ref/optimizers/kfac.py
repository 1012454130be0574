"""K-FAC: Algorithm 2 of the paper (sec. 9), one method per line.

At step k, on a batch (x, y)::

    propose
        h, grad        loss and gradient, weight decay included                           sec. 2.2     gradient
        A, G           sampled targets on the tau1 part; running average                  sec. 5       update_average
        gammas         gamma, or three candidates every T2 steps                          sec. 6.6     gammas
        for each gamma:
            C          the damped structure; new every T3 steps, at k <= 3 and every T2   sec. 4, 6    curvature
            Delta      -C^{-1} grad                                                       sec. 6.4     direction
    choose
        for each gamma:
            alpha, mu  minimize M(alpha Delta + mu delta_0), exact F on the tau2 part     sec. 6.4, 7  rescale
        delta          of the candidate with the lowest M(delta)                          sec. 6.6     best, combine
    judge
        theta         += delta
        rho, lambda    every T1 steps                                                     sec. 6.5     look_back
                       a step that raises h too much is undone                            -            is_bad

The arguments are named alike in all methods: `state` before the step; `at`, the batch; `grad`, grad h; `delta_0`, the
last step or None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import checks, params
from ..checks import Array, Direction, Rows
from ..curvature import Curvature
from ..damping import gamma_candidates, next_lambda
from ..expectations import Expectation, OneDraw, sampled
from ..factors import RunningAverage
from ..fisher import fisher_gram
from ..model import Point
from ..quadratic_model import SmallModel, reduction_ratio
from .clock import Clock
from .kfac_settings import Settings
from .kfac_values import Candidate, Choice, Damped, Detail, Draws, Judgement, Proposal, Record, Refresh, State


@dataclass(frozen=True, eq=False)
class KFAC(Settings):
    """Kronecker-factored approximate curvature, with every part of Algorithm 2.

    The parameters are those of `Settings`, which has a table of the paper's values and the defaults.

    Notes
    -----
    Source: Martens & Grosse 2015, Algorithm 2 (sec. 9).
    """

    # The structure in use, with what it has factored; it can be made again from the state.
    _cache: dict[Refresh, Curvature] = field(default_factory=dict, init=False, repr=False)

    def init(self, weights: Direction, seed: int = 0) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        weights : list of (d_{i+1}, d_i + 1) arrays
            Where to start; copied.
        seed : int
            What all sampling of this run is drawn from.

        Returns
        -------
        State
            With ``gamma = sqrt(lambda_0 + eta)``, clipped to its range.

        Raises
        ------
        ValueError
            For wrong shapes (naming the layer), NaN or infinity, or a negative seed.
        """
        checks.count("seed", seed, 0)
        weights = params.copy(checks.weights("weights", weights, self.model.network.shapes))
        gamma = min(max(math.sqrt(self.lambda_0 + self.model.weight_decay), self.gamma_low), self.gamma_max)
        average = RunningAverage(self.ceiling) if self.approximation.averages else None
        return State(weights, seed, 0, self.lambda_0, gamma, average, None, None)

    def step(self, state: State, x: Any, y: Any, draws: Draws | None = None) -> tuple[State, Record]:
        """Take one step.

        Parameters
        ----------
        state : State
            From `init` or the last step; not changed, and stepping it twice gives the same bits.
        x : (N, d_0) array
            The batch.
        y : (N,) or (N, C) array
            Its labels or targets.
        draws : Draws, optional
            What is random in the step (default: drawn from the seed and the number of the step).

        Returns
        -------
        state : State
            After the step.
        record : Record
            What was decided.

        Raises
        ------
        ValueError
            For bad data, a batch too small for tau1 or tau2, or a curvature that is singular at this damping.
        """
        detail = self.explain(state, x, y, draws)
        return detail.state, detail.record

    def explain(self, state: State, x: Any, y: Any, draws: Draws | None = None) -> Detail:
        """Take one step and return every intermediate by name.

        Parameters
        ----------
        state : State
            From `init` or the last step; not changed.
        x : (N, d_0) array
            The batch.
        y : (N,) or (N, C) array
            Its labels or targets.
        draws : Draws, optional
            As in `step`.

        Returns
        -------
        Detail
            Its ``state`` and ``record`` are what `step` returns.

        Raises
        ------
        ValueError
            As in `step`.

        Notes
        -----
        Source: Martens & Grosse 2015, Algorithm 2 (sec. 9).
        """
        if not isinstance(state, State):
            raise ValueError(f"state must be a State, as init(weights) returns it, got {type(state).__name__}")
        if (state.average is not None) != self.approximation.averages:
            raise ValueError("state must be of this optimizer: its approximation is another kind of row")
        clock = Clock()
        proposal = self.propose(state, x, y, draws, clock)
        choice = self.choose(state, proposal, clock)
        judgement = self.judge(state, proposal, choice, clock)
        c = choice.chosen
        self._cache.clear()
        self._cache[c.refresh] = c.curvature
        delta_0 = None if judgement.undone or not self.momentum else tuple(choice.delta)
        after = State(judgement.weights, state.seed, state.k + 1, judgement.lambda_, c.gamma, proposal.average, delta_0,
                      c.refresh)
        record = Record(after.k, len(proposal.at), proposal.h, state.lambda_, c.gamma,
                        tuple((each.gamma, each.decrease) for each in choice.candidates), c.alpha, c.mu, c.decrease,
                        judgement.actual, judgement.rho, params.norm(proposal.grad),
                        c.model.length((c.alpha, c.mu)[:len(c.model.slope)]), proposal.refreshed,
                        type(c.curvature).__name__, judgement.safeguards, clock.seconds)
        return Detail(proposal, choice, judgement, after, record)

    # Algorithm 2 in three parts.

    def propose(self, state: State, x: Any, y: Any, draws: Draws | None, clock: Clock) -> Proposal:
        """Return the gradient, and for each gamma the damped structure and its direction Delta."""
        with clock.stage("gradient"):
            at, h, grad = self.gradient(state, x, y)
        draws = self.draw(state, at) if draws is None else draws
        with clock.stage("factors"):
            average = self.update_average(state, at, draws)
        refreshed = self.refresh_is_due(state.k + 1)
        damped = []
        for gamma in self.gammas(state):
            with clock.stage("inverses" if refreshed else "solve"):
                kept = None if refreshed else state.refresh
                source = kept or self.source(state, at, average, gamma, draws)
                C = self.curvature(source, at if refreshed else None)
                damped.append(Damped(source, C, self.direction(C, grad)))
        return Proposal(at, h, grad, draws, average, tuple(damped), refreshed)

    def choose(self, state: State, proposal: Proposal, clock: Clock) -> Choice:
        """Return the best step of each gamma, and the best of all."""
        with clock.stage("exact F"):
            part2 = proposal.at.take(proposal.draws.rows2)
            candidates = tuple(self.rescale(part2, proposal.grad, damped, state.delta_0, state.lambda_)
                               for damped in proposal.damped)
        chosen = self.best(candidates)
        with clock.stage("update"):
            return Choice(candidates, chosen, self.combine(chosen, state.delta_0))

    def judge(self, state: State, proposal: Proposal, choice: Choice, clock: Clock) -> Judgement:
        """Return the new weights and lambda; every T1 steps, after a look at what the step did to h."""
        k, h, predicted = state.k + 1, proposal.h, choice.chosen.decrease
        with clock.stage("update"):
            moved = tuple(params.add(state.weights, choice.delta))
        safeguards = ["gamma clipped"] if k % self.T2 == 0 and self.clips(state.gamma) else []
        if k % self.T1:
            return Judgement(moved, math.nan, math.nan, state.lambda_, False, tuple(safeguards))
        with clock.stage("rho"):
            actual, rho, lambda_ = self.look_back(moved, proposal.at, h, predicted, state.lambda_)
        if rho > 3 / 4 and lambda_ > self.factor1 * state.lambda_:
            safeguards.append("lambda floor")
        if not self.is_bad(actual, rho, predicted, h):
            return Judgement(moved, actual, rho, lambda_, False, tuple(safeguards))
        # A lambda of 0 would lead to the same step again.
        return Judgement(state.weights, actual, rho, max(lambda_, self.lambda_floor), True, (*safeguards, "undone"))

    # The lines of the algorithm.

    def gradient(self, state: State, x: Any, y: Any) -> tuple[Point, float, list[Array]]:
        """Return the point with its targets, h and grad h (sec. 2.2)."""
        at = dataclasses.replace(self.model.at(state.weights, x), y=np.asarray(y))
        return at, at.loss(), at.gradient()

    def draw(self, state: State, at: Point) -> Draws:
        """Return the tau1 and the tau2 part, without replacement, and targets sampled on the first (sec. 5 and 8)."""
        rng = np.random.default_rng((state.seed, state.k + 1))
        # A row that is made from a point has no factors to estimate on a part.
        rows1 = _part("tau1", self.tau1 if self.approximation.averages else 1.0, len(at), rng)
        rows2 = _part("tau2", self.tau2, len(at), rng)
        samples = isinstance(self.expectation, OneDraw)
        return Draws(rows1, rows2, at.take(rows1).sample(rng) if samples else None)

    def update_average(self, state: State, at: Point, draws: Draws) -> RunningAverage | None:
        """Add the moments of the tau1 part to the running average (sec. 5)."""
        if state.average is None:
            return None
        return state.average.update(self.approximation.moments(at.take(draws.rows1), self._expectation(draws.targets)))

    def gammas(self, state: State) -> tuple[float, ...]:
        """Return the gammas to try: three every T2 steps, otherwise the present one (sec. 6.6)."""
        if (state.k + 1) % self.T2:
            return (state.gamma,)
        return gamma_candidates(state.gamma, self.factor2, self.gamma_low, self.gamma_max)

    def refresh_is_due(self, k: int) -> bool:
        """Return whether step k makes new inverses: every T3 steps, and at k <= 3 (sec. 8)."""
        return k <= 3 or k % self.T3 == 0

    def source(self, state: State, at: Point, average: RunningAverage | None, gamma: float, draws: Draws) -> Refresh:
        """Return what a new structure is made from: the averaged moments, or the batch."""
        if average is None:
            return Refresh(gamma, state.weights, None, at.x, at.y, draws.targets)
        return Refresh(gamma, state.weights, average.moments)

    def curvature(self, source: Refresh, at: Point | None = None) -> Curvature:
        """Return the structure, damped with gamma, prepared for T3 solves (sec. 4 and 6)."""
        if source in self._cache:
            return self._cache[source]
        row = self.approximation
        if source.moments is not None:
            C = row.build(row.finish(source.moments, source.weights), damping=source.gamma**2)
        else:
            at = at or dataclasses.replace(self.model.at(source.weights, source.x), y=source.y)
            C = row.build(at, damping=source.gamma**2, expectation=self._expectation(source.targets))
        return C.kept() if self.T3 > 1 else C

    def direction(self, curvature: Curvature, grad: Direction) -> list[Array]:
        """Return ``Delta = -C^{-1} grad`` (sec. 6.4)."""
        return params.scale(-1.0, curvature.solve(grad))

    def rescale(self, part2: Point, grad: Direction, damped: Damped, delta_0: Direction | None,
                lambda_: float) -> Candidate:
        """Minimize M, with the exact F on the tau2 part, over Delta and the last step (sec. 6.4 and 7)."""
        directions: list[Direction] = [damped.Delta] if delta_0 is None else [damped.Delta, delta_0]
        model = SmallModel(fisher_gram(part2, directions), params.gram(directions),
                           np.array([params.inner(grad, V) for V in directions]),
                           lambda_ + self.model.weight_decay, float(np.finfo(part2.z.dtype).eps))
        (alpha, *mu), decrease = model.minimum()
        return Candidate(damped.refresh, damped.curvature, damped.Delta, damped.refresh.gamma, model, alpha,
                         mu[0] if mu else 0.0, decrease)

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return the candidate with the lowest M(delta), the first of equals (sec. 6.6)."""
        return min(candidates, key=lambda c: c.decrease if math.isfinite(c.decrease) else math.inf)

    def combine(self, chosen: Candidate, delta_0: Direction | None) -> list[Array]:
        """Return ``delta = alpha Delta + mu delta_0`` (sec. 7)."""
        delta = params.scale(chosen.alpha, chosen.Delta)
        return delta if delta_0 is None else params.add(delta, params.scale(chosen.mu, delta_0))

    def look_back(self, moved: Direction, at: Point, h: float, predicted: float,
                  lambda_: float) -> tuple[float, float, float]:
        """Return the actual change of h on the batch (inf if not finite), rho, and the next lambda (sec. 6.5)."""
        finite = all(np.isfinite(W).all() for W in moved)
        with np.errstate(over="ignore", invalid="ignore"):
            actual = self.model.at(moved, at.x).loss(at.y) - h if finite else math.inf
        if abs(actual) + abs(predicted) <= 16 * np.finfo(moved[0].dtype).eps * abs(h):
            return actual, math.nan, lambda_                    # at the optimum their ratio is rounding
        rho = reduction_ratio(actual, predicted)
        return actual, rho, next_lambda(lambda_, rho, self.factor1, self.lambda_floor)

    def is_bad(self, actual: float, rho: float, predicted: float, h: float) -> bool:
        """Return whether to undo the step: ``actual > undo min(-predicted, |h|)``, or not finite (not in the paper).

        If M predicts a negative h, the prediction is not a sensible scale, so |h| is used too.
        """
        if self.undo is None:
            return False
        return not math.isfinite(actual) or (not math.isnan(rho) and actual > self.undo * min(-predicted, abs(h)))

    def _expectation(self, targets: Any) -> Expectation:
        return self.expectation if targets is None else sampled(targets)


def _part(name: str, fraction: float, N: int, rng: np.random.Generator) -> Rows:
    n = math.floor(fraction * N + 1e-9)                     # 0.29 of 100 is 29, whatever 0.29 rounds to
    if n < 1:
        raise ValueError(f"x is a batch of {N}, too small for {name} = {fraction:g}: it needs at least "
                         f"{math.ceil(1 / fraction - 1e-9)} examples")
    return slice(None) if n == N else rng.permutation(N)[:n]
