"""How K-FAC judges its last step: rho and lambda (paper: sec. 6.5), and which steps it undoes.

::

    rho = (h(theta + delta) - h(theta)) / (M(delta) - M(0))      on the batch of the step, as in the paper
    rho = 2 (1 - curvature / |slope|)                            on the next batch
    lambda falls by omega1 if rho > 3/4, and rises by it if rho < 1/4
    the step is undone if h rises by more than undo min(M(0) - M(delta), |h|)

`kfac_settings.Settings` says why the next batch judges. In all methods, `state` is the state after the step that is
judged, `before` the model at the weights before it, and h the loss there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .. import params
from ..checks import Direction
from ..damping import next_lambda
from ..model import Point
from ..quadratic_model import ratio_to_slope, reduction_ratio
from .kfac_settings import NEXT, SAME, UNDONE, Settings
from .kfac_values import Judgement, State


@dataclass(frozen=True, eq=False)
class Judging(Settings):
    """The part of `KFAC` that judges a step."""

    def judge(self, state: State, before: Point, h: float) -> tuple[State, Judgement]:
        """Judge the last step on a batch, at the weights before it: adapt lambda, or undo the step (sec. 6.5)."""
        actual, sums = self.change(state.weights, before, h), state.sums
        if self.judged_on == NEXT:
            actual, sums = self.against_slope(state, before, actual)
        if abs(actual) + abs(state.predicted) <= 16 * np.finfo(before.z.dtype).eps * abs(h):
            return replace(state, before=None), Judgement(actual, math.nan, ())   # at the optimum rho is rounding error
        rho = reduction_ratio(actual, state.predicted) if self.judged_on == SAME else ratio_to_slope(*sums)
        if self.is_bad(actual, state.predicted, h):
            return self.undone(state, sums), Judgement(actual, rho, ("undone",))
        lambda_ = next_lambda(state.lambda_, rho, self.factor1, self.lambda_floor)
        floor = ("lambda floor",) if rho > 3 / 4 and lambda_ > self.factor1 * state.lambda_ else ()
        return replace(state, lambda_=lambda_, before=None, sums=sums), Judgement(actual, rho, floor)

    def change(self, moved: Direction, before: Point, h: float) -> float:
        """Return ``h(theta + delta) - h(theta)`` on the examples of `before`; inf if not finite."""
        if not all(np.isfinite(W).all() for W in moved):
            return math.inf
        with np.errstate(over="ignore", invalid="ignore"):
            return self.model.at(moved, before.x).loss(before.y) - h

    def against_slope(self, state: State, before: Point, actual: float) -> tuple[float, tuple[float, float]]:
        """Return slope + curvature of the last step over all examples, and the sums of both (not in the paper)."""
        with np.errstate(over="ignore", invalid="ignore"):
            slope = params.inner(before.gradient(), params.add(state.weights, params.scale(-1.0, before.weights)))
        if not math.isfinite(actual - slope):
            return math.inf, (math.nan, math.nan)               # the ratio is NaN and the sums start again
        curvature = actual - slope
        share = min(state.batch / self.examples, 1.0) if self.examples else 0.0
        slope = share * 2 * state.predicted + (1 - share) * slope
        old = state.sums if math.isfinite(state.sums[0]) else (0.0, 0.0)
        return slope + curvature, (self.smoothing * old[0] + curvature, self.smoothing * old[1] + slope)

    def is_bad(self, actual: float, predicted: float, h: float) -> bool:
        """Return whether to undo the step: ``actual > undo min(-predicted, |h|)``, or not finite (not in the paper)."""
        # If M predicts a negative h, the prediction is not a sensible scale, so |h| is used too.
        return self.undo is not None and not actual <= self.undo * min(-predicted, abs(h))

    def undone(self, state: State, sums: tuple[float, float]) -> State:
        """Return the state with the weights before the step, a larger lambda and no momentum (not in the paper)."""
        assert state.before is not None
        # A lambda of 0 would lead to the same step again.
        lambda_ = max(state.lambda_ / min(self.factor1, UNDONE), self.lambda_floor)
        return replace(state, weights=state.before, delta_0=None, lambda_=lambda_, before=None, sums=sums)
