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
        theta         += delta                                                            sec. 9       move
    judge
        rho, lambda    every T1 steps, on this batch (the paper) or on the next one       sec. 6.5     judge
                       a step that raises h too much is undone                            -            is_bad, undone

`kfac_judging` has the last part.
In all methods, `state` is the state before the step, `at` the model on the batch, `grad` is grad h, and `delta_0` the
last step or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import checks, params
from ..checks import Array, Direction, Rows
from ..curvature import Curvature
from ..damping import gamma_candidates
from ..expectations import Expectation, OneDraw, sampled
from ..factors import RunningAverage
from ..fisher import fisher_gram
from ..model import Point
from ..quadratic_model import SmallModel
from .clock import Clock
from .kfac_judging import Judging
from .kfac_settings import NEXT, SAME
from .kfac_values import (
    UNJUDGED,
    Candidate,
    Choice,
    Damped,
    Detail,
    Draws,
    Proposal,
    Record,
    Refresh,
    State,
)


@dataclass(frozen=True, eq=False)
class KFAC(Judging):
    """K-FAC with every part of Algorithm 2 (Martens & Grosse 2015, sec. 9).

    `kfac_settings.Settings` describes the parameters, the paper's values, and why some defaults differ from them.
    """

    # The structure in use, with what it has factored; it can be made again from the state.
    _cache: dict[Refresh, Curvature] = field(default_factory=dict, init=False, repr=False)

    def init(self, weights: Direction, seed: int = 0) -> State:
        """Return the state before the first step, with ``gamma = sqrt(lambda_0 + eta)`` clipped to its range.

        The weights are copied. All that is random in a run is drawn from `seed`.
        """
        checks.count("seed", seed, 0)
        weights = params.copy(checks.weights("weights", weights, self.model.network.shapes))
        gamma = min(max(math.sqrt(self.lambda_0 + self.model.weight_decay), self.gamma_low), self.gamma_max)
        average = RunningAverage(self.ceiling) if self.approximation.averages else None
        return State(weights, seed, 0, self.lambda_0, gamma, average, None, None)

    def step(self, state: State, x: Any, y: Any, draws: Draws | None = None) -> tuple[State, Record]:
        """Take one step on a batch x, (N, d_0), with labels or targets y; return the new state and the record.

        The given state is not changed; stepping it twice gives the same bits. `draws` sets what is random in the step
        (default: drawn from the seed and the number of the step). Raises ValueError for bad data, a batch too small for
        tau1 or tau2, or a curvature that is singular at this damping.
        """
        detail = self.explain(state, x, y, draws)
        return detail.state, detail.record

    def explain(self, state: State, x: Any, y: Any, draws: Draws | None = None) -> Detail:
        """Take one step and return every intermediate by name; arguments and errors are those of `step`."""
        if not isinstance(state, State):
            raise ValueError(f"state must be a State, as init(weights) returns it, got {type(state).__name__}")
        if (state.average is not None) != self.approximation.averages:
            raise ValueError("state must be of this optimizer: its approximation is another kind of row")
        clock, judgement = Clock(), UNJUDGED
        if self.judged_on == NEXT and state.before is not None:
            with clock.stage("rho"):
                before = self.point(state.before, x, y)
                state, judgement = self.judge(state, before, before.loss())
        proposal = self.propose(state, x, y, draws, clock)
        choice = self.choose(state, proposal, clock)
        with clock.stage("update"):
            after = self.move(state, proposal, choice)
        if self.judged_on == SAME and after.before is not None:
            with clock.stage("rho"):
                after, judgement = self.judge(after, proposal.at, proposal.h)
        c = choice.chosen
        self._cache.clear()
        self._cache[c.refresh] = c.curvature
        clipped = ("gamma clipped",) if after.k % self.T2 == 0 and self.clips(state.gamma) else ()
        record = Record(after.k, len(proposal.at), proposal.h, state.lambda_, c.gamma,
                        tuple((each.gamma, each.decrease) for each in choice.candidates), c.alpha, c.mu, c.decrease,
                        judgement.actual, judgement.rho, params.norm(proposal.grad),
                        c.model.length((c.alpha, c.mu)[:len(c.model.slope)]), proposal.refreshed,
                        type(c.curvature).__name__, clipped + judgement.safeguards, clock.seconds)
        return Detail(proposal, choice, judgement, after, record)

    # Algorithm 2 in three parts.

    def propose(self, state: State, x: Any, y: Any, draws: Draws | None, clock: Clock) -> Proposal:
        """Return the gradient and, per gamma, the damped structure and its direction Delta."""
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

    # The lines of the algorithm.

    def gradient(self, state: State, x: Any, y: Any) -> tuple[Point, float, list[Array]]:
        """Return the point with its targets, h and grad h (sec. 2.2)."""
        at = self.point(state.weights, x, y)
        return at, at.loss(), at.gradient()

    def point(self, weights: Direction, x: Any, y: Any) -> Point:
        """Return the model at given weights on a batch, with its targets."""
        return replace(self.model.at(weights, x), y=np.asarray(y))

    def draw(self, state: State, at: Point) -> Draws:
        """Return the tau1 and the tau2 part, without replacement, and targets sampled on the first (sec. 5 and 8)."""
        rng = np.random.default_rng((state.seed, state.k + 1))
        # A row made from a point has no factors to estimate on a part: it uses the whole batch.
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
        """Return the gammas to try: three every T2 steps, otherwise only the current one (sec. 6.6)."""
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
        """Return the structure, damped with gamma and prepared for the solves of T3 steps (sec. 4 and 6)."""
        if source in self._cache:
            return self._cache[source]
        row = self.approximation
        if source.moments is not None:
            C = row.build(row.finish(source.moments, source.weights), damping=source.gamma**2)
        else:
            at = at or self.point(source.weights, source.x, source.y)
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
        """Return the candidate with the lowest M(delta), the first if several are equal (sec. 6.6)."""
        return min(candidates, key=lambda c: c.decrease if math.isfinite(c.decrease) else math.inf)

    def combine(self, chosen: Candidate, delta_0: Direction | None) -> list[Array]:
        """Return ``delta = alpha Delta + mu delta_0`` (sec. 7)."""
        delta = params.scale(chosen.alpha, chosen.Delta)
        return delta if delta_0 is None else params.add(delta, params.scale(chosen.mu, delta_0))

    def move(self, state: State, proposal: Proposal, choice: Choice) -> State:
        """Return the state after ``theta += delta``; every T1 steps it keeps the old weights, to judge the step."""
        k, c = state.k + 1, choice.chosen
        moved = tuple(params.add(state.weights, choice.delta))
        return State(moved, state.seed, k, state.lambda_, c.gamma, proposal.average,
                     tuple(choice.delta) if self.momentum else None, c.refresh,
                     None if k % self.T1 else state.weights, c.decrease, len(proposal.at), state.sums)

    def _expectation(self, targets: Any) -> Expectation:
        return self.expectation if targets is None else sampled(targets)


def _part(name: str, fraction: float, N: int, rng: np.random.Generator) -> Rows:
    n = math.floor(fraction * N + 1e-9)                     # 0.29 of 100 is 29, whatever 0.29 rounds to
    if n < 1:
        raise ValueError(f"x is a batch of {N}, too small for {name} = {fraction:g}: it needs at least "
                         f"{math.ceil(1 / fraction - 1e-9)} examples")
    return slice(None) if n == N else rng.permutation(N)[:n]
