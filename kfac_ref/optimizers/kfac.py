"""K-FAC: Algorithm 2 of the paper (sec. 9), one method a line of it.

At step k, on a batch (x, y)::

    h, grad        loss and gradient, weight decay included                                 sec. 2.2   gradient
    A, G           sampled targets on the tau1 part; running average                        sec. 5     update_average
    gammas         gamma, or three candidates every T2 steps                                sec. 6.6   gammas
    for each gamma:
        C          the damped structure; made anew every T3 steps, at k <= 3 and every T2   sec. 4, 6  curvature
        Delta      -C^{-1} grad                                                             sec. 6.4   direction
        alpha, mu  minimize M(alpha Delta + mu delta_0), exact F on the tau2 part           sec. 6.4, 7  rescale
    delta          of the candidate with the lowest M(delta)                                sec. 6.6   best
    rho, lambda    every T1 steps                                                           sec. 6.5   look_back
                   a step that raises h too much is undone                                  -          is_bad
    theta         += delta
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, params
from ..checks import Array, Direction, Rows
from ..curvature import BlockDiagonal, Curvature
from ..damping import gamma_candidates, next_lambda
from ..factors import RunningAverage, sampled_factors
from ..fisher import fisher_gram
from ..model import Model, Point
from ..quadratic_model import SmallModel, reduction_ratio
from .clock import Clock
from .kfac_values import Candidate, Detail, Record, State


@dataclass(frozen=True, eq=False)
class KFAC:
    """Kronecker-factored approximate curvature, with every part of Algorithm 2.

    Parameters
    ----------
    model : Model
        Network, likelihood and weight decay (eta).
    structure : class or function
        Makes the damped curvature: ``structure(factors, damping=gamma**2)``; `BlockDiagonal` is the paper's F-breve.
        Any subclass of `Curvature` serves, a user's own included (a plain function must carry the attributes ``reach``
        and ``takes_point``; `functools.partial` of a class needs none). One that is made from a point knows its own
        batch alone, and is that of an earlier batch between two refreshes.
    lambda_0 : float
        The first lambda.
    T1, T2, T3 : int
        Periods: of lambda, of gamma, of the inverses. T2 must be a multiple of T3.
    omega1, omega2 : float, optional
        Factors of lambda and gamma; ``(19/20)**T1`` and ``(19/20)**(T2/2)`` unless told.
    tau1, tau2 : float
        The parts of the batch for the factors and for the exact F.
    ceiling : float
        The largest epsilon of the running average.
    gamma_min, gamma_max : float
        The range of gamma; gamma_min None stands for sqrt(eta).
    lambda_floor : float
        Lambda does not fall below this.
    undo : float or None
        A step that is looked back at (every T1) is undone where h rises by more than undo times the fall that M
        promised (rho < -undo) or than undo times h itself, or is not finite: the weights stay, lambda rises, momentum
        starts afresh. None never undoes.
    momentum : bool
        Whether the last step takes part in the next (sec. 7); False leaves ``delta = alpha Delta``.

    Raises
    ------
    ValueError
        For settings out of range.

    Notes
    -----
    ================  ==================  =================  ==========================================================
    argument          paper               default            why it differs
    ================  ==================  =================  ==========================================================
    structure         both                block-diagonal
    lambda_0          150                 1                  suits classifiers; autoencoders chose 1e-4 to 1e-2
    omega1, T1        (19/20)^T1, 5       the same
    omega2, T2        (19/20)^(T2/2), 20  the same
    T3                20, and k <= 3      the same
    tau1              1/8                 the same
    tau2              1/4                 1                  with a part of the batch, steps can grow without bound
    ceiling           0.95                the same
    gamma_min         none (0)            sqrt(eta)          as in the author's code: below, gamma drifts
    gamma_max         none (inf)          1                  as in the author's code: above, gamma drifts
    lambda_floor      none (0)            1e-4               lambda else decays for ever
    undo              none (None)         1                  one bad step would be carried on by momentum
    momentum          both                True
    ================  ==================  =================  ==========================================================

    Source: Martens & Grosse 2015, Algorithm 2 (sec. 9).
    """

    model: Model
    structure: Callable[..., Curvature] = BlockDiagonal
    lambda_0: float = 1.0
    T1: int = 5
    T2: int = 20
    T3: int = 20
    omega1: float | None = None
    omega2: float | None = None
    tau1: float = 1 / 8
    tau2: float = 1.0
    ceiling: float = 0.95
    gamma_min: float | None = None
    gamma_max: float = 1.0
    lambda_floor: float = 1e-4
    undo: float | None = 1.0
    momentum: bool = True

    def __post_init__(self) -> None:
        if not callable(self.structure):
            made = f"an instance of {type(self.structure).__name__}" if isinstance(self.structure, Curvature) else \
                repr(self.structure)
            raise ValueError(f"structure must be a subclass of Curvature or a function, got {made}")
        checks.number("lambda_0", self.lambda_0, 0)
        for name in ("T1", "T2", "T3"):
            checks.count(name, getattr(self, name))
        if self.T2 % self.T3:
            raise ValueError(f"T2 must be a multiple of T3, got T2 = {self.T2} and T3 = {self.T3}: the candidates of "
                             "gamma need inverses of their own")
        for name in ("omega1", "omega2"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), 0, 1, above=True)
        for name in ("tau1", "tau2"):
            checks.number(name, getattr(self, name), 0, 1, above=True)
        checks.number("ceiling", self.ceiling, 0, 1)
        if self.gamma_min is not None:
            checks.number("gamma_min", self.gamma_min, 0)
        if self.gamma_max != math.inf:
            checks.number("gamma_max", self.gamma_max, 0)
        if not self.gamma_max >= self._gamma_min:
            raise ValueError(f"gamma_max must be at least gamma_min = {self._gamma_min:g}, got {self.gamma_max!r}")
        checks.number("lambda_floor", self.lambda_floor, 0)
        if isinstance(self.undo, bool):
            raise ValueError(f"undo must be a number or None, got {self.undo}")
        if self.undo is not None:
            checks.number("undo", self.undo, 0)
        if not isinstance(self.momentum, bool):
            raise ValueError(f"momentum must be True or False, got {self.momentum!r}: mu is chosen by the algorithm")

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
        gamma = min(max(math.sqrt(self.lambda_0 + self.model.weight_decay), self._gamma_min), self.gamma_max)
        return State(weights, seed, 0, self.lambda_0, gamma, RunningAverage(self.ceiling), None, None)

    def step(self, state: State, x: Any, y: Any) -> tuple[State, Record]:
        """Take one step.

        Parameters
        ----------
        state : State
            From `init` or the last step of this optimizer (it carries the structure in use); not changed, and stepping
            it twice gives the same bits.
        x : (N, d_0) array
            The batch.
        y : (N,) or (N, C) array
            Its labels or targets.

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
        detail = self.explain(state, x, y)
        return detail.state, detail.record

    def explain(self, state: State, x: Any, y: Any) -> Detail:
        """Take one step and return every intermediate by name.

        Parameters
        ----------
        state : State
            From `init` or the last step; not changed.
        x : (N, d_0) array
            The batch.
        y : (N,) or (N, C) array
            Its labels or targets.

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
        clock = Clock()
        k = state.k + 1
        rng = np.random.default_rng((state.seed, k))
        with clock.stage("gradient"):
            at, h, grad = self.gradient(state, x, y)
        rows1, rows2 = self.parts(len(at), rng)
        with clock.stage("factors"):
            average, targets = self.update_average(state, at.take(rows1), rng)
        part2 = at.take(rows2)
        candidates = []
        refresh = self.refresh_is_due(k)                        # always, where there are several gammas
        for gamma in self.gammas(state):
            with clock.stage("inverses" if refresh else "solve"):
                C = self.curvature(state, at, average, gamma) if refresh else state.curvature
                assert C is not None
                Delta = self.direction(C, grad)
            with clock.stage("exact F"):
                candidates.append(self.rescale(part2, grad, gamma, C, Delta, state.delta_0, state.lambda_))
        chosen = self.best(candidates)
        with clock.stage("update"):
            delta = self.combine(chosen, state.delta_0)
            moved = tuple(params.add(state.weights, delta))
        actual = rho = math.nan
        lambda_ = state.lambda_
        safeguards = ["gamma clipped"] if k % self.T2 == 0 and self._clips(state.gamma) else []
        undone = False
        if k % self.T1 == 0:
            with clock.stage("rho"):
                actual, rho, lambda_ = self.look_back(moved, x, y, h, chosen.decrease, state.lambda_)
            undone = self.is_bad(actual, rho, chosen.decrease, h)
            if rho > 3 / 4 and lambda_ > self._omega1 * state.lambda_:
                safeguards.append("lambda floor")
            if undone:
                safeguards.append("undone")
                lambda_ = max(lambda_, self.lambda_floor)       # a lambda of 0 would lead to the same step again
        after = State(state.weights if undone else moved, state.seed, k, lambda_, chosen.gamma, average,
                      None if undone or not self.momentum else tuple(delta), chosen.curvature)
        used = (chosen.alpha, chosen.mu)[:len(chosen.model.slope)]
        record = Record(k, len(at), h, state.lambda_, chosen.gamma, tuple((c.gamma, c.decrease) for c in candidates),
                        chosen.alpha, chosen.mu, chosen.decrease, actual, rho, params.norm(grad),
                        chosen.model.length(used), refresh, type(chosen.curvature).__name__, tuple(safeguards),
                        clock.seconds)
        return Detail(at, grad, rows1, rows2, targets, average, tuple(candidates), chosen, delta, after, record)

    # The lines of the algorithm.

    def gradient(self, state: State, x: Any, y: Any) -> tuple[Point, float, list[Array]]:
        """Run the network forward and backward on the batch.

        Parameters
        ----------
        state : State
            Before the step.
        x : (N, d_0) array
            The batch.
        y : (N,) or (N, C) array
            Its labels or targets.

        Returns
        -------
        at : Point
            The model at these weights.
        h : float
            The loss, weight decay included.
        grad : list of (d_{i+1}, d_i + 1) arrays
            grad h.

        Raises
        ------
        ValueError
            For bad data.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 2.2.
        """
        at = self.model.at(state.weights, x)
        return at, at.loss(y), at.gradient(y)

    def parts(self, N: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Choose the tau1 part and the tau2 part of a batch, each without replacement.

        Parameters
        ----------
        N : int
            The number of examples.
        rng : numpy.random.Generator
            That of the step.

        Returns
        -------
        rows1, rows2 : (n,) int arrays or slices
            ``n = floor(tau N)`` rows each; a slice where that is the whole.

        Raises
        ------
        ValueError
            For a batch too small for tau1 or tau2.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 8.
        """
        tau1 = 1.0 if self._attribute("takes_point") else self.tau1       # such a structure has no factors to estimate
        return _part("tau1", tau1, N, rng), _part("tau2", self.tau2, N, rng)

    def update_average(self, state: State, part: Point, rng: np.random.Generator) -> tuple[RunningAverage, Any]:
        """Sample targets on the tau1 part and add its factors to the running average.

        Parameters
        ----------
        state : State
            Before the step.
        part : Point
            The tau1 part.
        rng : numpy.random.Generator
            That of the step.

        Returns
        -------
        average : RunningAverage
            With this part in it; as it was for a structure that is made from a point.
        targets : (n,) or (n, C) array or None
            What was sampled; None for a structure that is made from a point.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 5.
        """
        if self._attribute("takes_point"):
            return state.average, None
        targets = part.sample(rng)
        return state.average.update(sampled_factors(part, targets, self._attribute("reach"))), targets

    def gammas(self, state: State) -> tuple[float, ...]:
        """Return the gammas to try at the next step: three every T2 steps, else the present one.

        Parameters
        ----------
        state : State
            Before the step.

        Returns
        -------
        tuple of float
            As in `gamma_candidates`.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 6.6.
        """
        if (state.k + 1) % self.T2:
            return (state.gamma,)
        return gamma_candidates(state.gamma, self._omega2, self._gamma_min, self.gamma_max)

    def refresh_is_due(self, k: int) -> bool:
        """Return whether step k makes its inverses anew: every T3 steps, and at k <= 3.

        Parameters
        ----------
        k : int
            The step, from 1.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 8.
        """
        return k <= 3 or k % self.T3 == 0

    def curvature(self, state: State, at: Point, average: RunningAverage, gamma: float) -> Curvature:
        """Return the structure, damped with gamma, in the form that suits T3 solves.

        Parameters
        ----------
        state : State
            Before the step.
        at : Point
            The whole batch; read by a structure that is made from a point.
        average : RunningAverage
            Its factors are read by all others.
        gamma : float
            The strength of the factored damping, which is ``gamma^2`` under the root.

        Returns
        -------
        Curvature
            Of the batch or the average, damped.

        Raises
        ------
        ValueError
            Where the structure refuses its factors, or is singular to rounding.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 4 and 6.
        """
        source = at if self._attribute("takes_point") else average.factors
        C = self.structure(source, damping=gamma**2)
        return C.kept() if self.T3 > 1 else C

    def direction(self, curvature: Curvature, grad: Direction) -> list[Array]:
        """Return Delta, minus the damped inverse times the gradient.

        Parameters
        ----------
        curvature : Curvature
            Damped.
        grad : list of (d_{i+1}, d_i + 1) arrays
            grad h.

        Returns
        -------
        Delta : list of (d_{i+1}, d_i + 1) arrays
            ``-C^{-1} grad``.

        Raises
        ------
        ValueError
            Where the curvature is singular to rounding.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 6.4.
        """
        return params.scale(-1.0, curvature.solve(grad))

    def rescale(self, part: Point, grad: Direction, gamma: float, curvature: Curvature, Delta: list[Array],
                delta_0: Direction | None, lambda_: float) -> Candidate:
        """Minimize the quadratic model, with the exact F on the tau2 part, over Delta and the last step.

        Parameters
        ----------
        part : Point
            The tau2 part.
        grad : list of (d_{i+1}, d_i + 1) arrays
            grad h on the whole batch.
        gamma : float
            The strength of the factored damping; kept in the result.
        curvature : Curvature
            The structure with that damping; kept in the result.
        Delta : list of (d_{i+1}, d_i + 1) arrays
            ``-C^{-1} grad``.
        delta_0 : list of (d_{i+1}, d_i + 1) arrays or None
            The last step; None leaves it out, with mu = 0.
        lambda_ : float
            The strength of the damping of M, to which eta is added.

        Returns
        -------
        Candidate
            With alpha, mu and ``M(delta) - M(0)``.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 6.4 and 7.
        """
        directions: list[Direction] = [Delta] if delta_0 is None else [Delta, delta_0]
        model = SmallModel(fisher_gram(part, directions), params.gram(directions),
                           np.array([params.inner(grad, V) for V in directions]),
                           lambda_ + self.model.weight_decay, float(np.finfo(part.z.dtype).eps))
        (alpha, *mu), decrease = model.minimum()
        return Candidate(gamma, curvature, Delta, model, alpha, mu[0] if mu else 0.0, decrease)

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return the candidate with the lowest M(delta), the first of equals.

        Parameters
        ----------
        candidates : sequence of Candidate
            One for each gamma, at least one.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 6.6.
        """
        return min(candidates, key=lambda c: c.decrease if math.isfinite(c.decrease) else math.inf)

    def combine(self, chosen: Candidate, delta_0: Direction | None) -> list[Array]:
        """Return ``delta = alpha Delta + mu delta_0``.

        Parameters
        ----------
        chosen : Candidate
            Gives alpha, mu and Delta.
        delta_0 : list of (d_{i+1}, d_i + 1) arrays or None
            The last step; None leaves it out.

        Returns
        -------
        delta : list of (d_{i+1}, d_i + 1) arrays
            The step.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 7.
        """
        delta = params.scale(chosen.alpha, chosen.Delta)
        return delta if delta_0 is None else params.add(delta, params.scale(chosen.mu, delta_0))

    def look_back(self, moved: Direction, x: Any, y: Any, h: float, predicted: float,
                  lambda_: float) -> tuple[float, float, float]:
        """Compare the actual change of h with the predicted one, and adapt lambda.

        Parameters
        ----------
        moved : list of (d_{i+1}, d_i + 1) arrays
            The new weights.
        x : (N, d_0) array
            The batch.
        y : (N,) or (N, C) array
            Its labels or targets.
        h : float
            The loss before the step, weight decay included.
        predicted : float
            ``M(delta) - M(0)``, not positive.
        lambda_ : float
            Its value in this step.

        Returns
        -------
        actual : float
            ``h(theta + delta) - h(theta)``; inf where the new weights are not finite.
        rho : float
            As in `reduction_ratio`.
        lambda_ : float
            Of the next step.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 6.5.
        """
        finite = all(np.isfinite(W).all() for W in moved)
        with np.errstate(over="ignore", invalid="ignore"):
            actual = self.model.at(moved, x).loss(y) - h if finite else math.inf
        if abs(actual) + abs(predicted) <= 16 * np.finfo(moved[0].dtype).eps * abs(h):
            return actual, math.nan, lambda_                    # at the optimum: their ratio is rounding, no evidence
        rho = reduction_ratio(actual, predicted)
        return actual, rho, next_lambda(lambda_, rho, self._omega1, self.lambda_floor)

    def is_bad(self, actual: float, rho: float, predicted: float, h: float) -> bool:
        """Return whether a step is to be undone: ``actual > undo min(-predicted, |h|)``, or not finite.

        Where M promises that h falls below 0, its promise is no measure of a rise; so h itself is the other.

        Parameters
        ----------
        actual, rho : float
            From `look_back`; with a rho of NaN both changes are rounding.
        predicted : float
            ``M(delta) - M(0)``.
        h : float
            The loss before the step.

        Notes
        -----
        The paper has no such rule.
        """
        if self.undo is None:
            return False
        return not math.isfinite(actual) or (not math.isnan(rho) and actual > self.undo * min(-predicted, abs(h)))

    # The optional settings: where nothing was said, they follow from others.

    @property
    def _omega1(self) -> float:
        return (19 / 20) ** self.T1 if self.omega1 is None else float(self.omega1)

    @property
    def _omega2(self) -> float:
        return (19 / 20) ** (self.T2 / 2) if self.omega2 is None else float(self.omega2)

    @property
    def _gamma_min(self) -> float:
        return math.sqrt(self.model.weight_decay) if self.gamma_min is None else float(self.gamma_min)

    def _clips(self, gamma: float) -> bool:
        return gamma * self._omega2 < self._gamma_min or gamma / self._omega2 > self.gamma_max

    def _attribute(self, name: str) -> Any:
        """Return a class attribute of the structure, also of one behind `functools.partial`."""
        structure = self.structure.func if isinstance(self.structure, functools.partial) else self.structure
        return getattr(structure, name, getattr(Curvature, name))


def _part(name: str, fraction: float, N: int, rng: np.random.Generator) -> Rows:
    n = math.floor(fraction * N + 1e-9)                     # 0.29 of 100 is 29, whatever 0.29 rounds to
    if n < 1:
        raise ValueError(f"x is a batch of {N}, too small for {name} = {fraction:g}: it needs at least "
                         f"{math.ceil(1 / fraction - 1e-9)} examples")
    return slice(None) if n == N else rng.permutation(N)[:n]
