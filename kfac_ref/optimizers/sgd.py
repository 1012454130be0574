"""Stochastic gradient descent with Nesterov's momentum, the paper's baseline (sec. 13).

    v     = mu_t v - lr grad h(theta + mu_t v)
    theta = theta + v
    mu_t  = min(1 - 2^(-1 - log2(floor(t/period) + 1)), mu_max),        t = 0, 1, ...

The schedule (Sutskever et al. 2013) rises from 1/2 towards mu_max; the paper's period is 250.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import checks, params
from ..checks import Array, Direction
from ..model import Model
from .clock import Clock


def nesterov_schedule(mu_max: float, period: int = 250) -> Callable[[int], float]:
    """Return the momentum as a function of the step t = 0, 1, ...: it rises from 1/2 to mu_max, which is in [0, 1).

    `period` is the number of steps at 1/2; short runs need a shorter one.

    Examples
    --------
    >>> [nesterov_schedule(0.99, period=10)(t) for t in (0, 9, 10, 30)]
    [0.5, 0.5, 0.75, 0.875]
    """
    checks.number("mu_max", mu_max, 0, 1, below=True)
    checks.count("period", period)
    return lambda t: min(1 - 2 ** (-1 - math.log2(t // period + 1)), mu_max)


@dataclass(frozen=True, eq=False)
class State:
    """Weights, the number k of steps taken, and the velocity."""

    weights: tuple[Array, ...]
    k: int
    velocity: tuple[Array, ...]


@dataclass(frozen=True)
class Record:
    """What a step did; the loss is that at the point ahead, where the gradient is taken."""

    k: int
    batch: int
    loss: float
    learning_rate: float
    momentum: float
    gradient_norm: float
    step_norm: float
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class SGD:
    """Gradient descent with Nesterov's momentum (sec. 13); weight decay enters through the gradient."""

    model: Model
    learning_rate: float
    momentum: float | Callable[[int], float] = 0.9  #: In [0, 1), or a schedule such as `nesterov_schedule`.

    def __post_init__(self) -> None:
        checks.number("learning_rate", self.learning_rate, 0, above=True)
        if not callable(self.momentum):
            checks.number("momentum", self.momentum, 0, 1, below=True)

    def init(self, weights: Direction, seed: int = 0) -> State:
        """Return the state before the first step; `seed` has no effect, since nothing is sampled."""
        weights = params.copy(checks.weights("weights", weights, self.model.network.shapes))
        return State(weights, 0, tuple(params.zeros_like(weights)))

    def step(self, state: State, x: Any, y: Any) -> tuple[State, Record]:
        """Take one step on a batch; return the new state and the record."""
        clock = Clock()
        mu = self.momentum(state.k) if callable(self.momentum) else self.momentum
        with clock.stage("gradient"):
            drift = params.scale(mu, state.velocity)
            ahead = self.model.at(params.add(state.weights, drift), x)
            h, grad = ahead.loss(y), ahead.gradient(y)
        with clock.stage("update"):
            velocity = params.add(drift, params.scale(-self.learning_rate, grad))
            after = State(tuple(params.add(state.weights, velocity)), state.k + 1, tuple(velocity))
        return after, Record(after.k, len(ahead), h, self.learning_rate, mu, params.norm(grad), params.norm(velocity),
                             clock.seconds)
