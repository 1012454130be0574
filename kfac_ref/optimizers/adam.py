"""Adam (Kingma & Ba 2015), the usual baseline today: diagonal and empirical, with a square root.

    m = beta1 m + (1 - beta1) grad                 m_hat = m / (1 - beta1^t)
    v = beta2 v + (1 - beta2) grad^2               v_hat = v / (1 - beta2^t)
    theta = theta - lr m_hat / (sqrt(v_hat) + epsilon)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, params
from ..checks import Array, Direction
from ..model import Model
from .clock import Clock


@dataclass(frozen=True, eq=False)
class State:
    """Weights, the number k of steps taken, and the two running moments."""

    weights: tuple[Array, ...]
    k: int
    m: tuple[Array, ...]
    v: tuple[Array, ...]


@dataclass(frozen=True)
class Record:
    """What a step did; the loss is that before the step."""

    k: int
    batch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    step_norm: float
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Adam:
    """Adaptive moment estimation (Kingma & Ba 2015, Algorithm 1); weight decay enters through the gradient."""

    model: Model
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        checks.number("learning_rate", self.learning_rate, 0, above=True)
        checks.number("beta1", self.beta1, 0, 1, below=True)
        checks.number("beta2", self.beta2, 0, 1, below=True)
        checks.number("epsilon", self.epsilon, 0, above=True)

    def init(self, weights: Direction, seed: int = 0) -> State:
        """Return the state before the first step; `seed` has no effect, since nothing is sampled."""
        weights = params.copy(checks.weights("weights", weights, self.model.network.shapes))
        zero = tuple(params.zeros_like(weights))
        return State(weights, 0, zero, zero)

    def step(self, state: State, x: Any, y: Any) -> tuple[State, Record]:
        """Take one step on a batch; return the new state and the record."""
        clock = Clock()
        t = state.k + 1
        with clock.stage("gradient"):
            at = self.model.at(state.weights, x)
            h, grad = at.loss(y), at.gradient(y)
        with clock.stage("update"):
            m = tuple(self.beta1 * a + (1 - self.beta1) * g for a, g in zip(state.m, grad, strict=True))
            v = tuple(self.beta2 * a + (1 - self.beta2) * g * g for a, g in zip(state.v, grad, strict=True))
            rate, root = self.learning_rate / (1 - self.beta1**t), (1 - self.beta2**t) ** 0.5
            delta = [-rate * a / (np.sqrt(b) / root + self.epsilon) for a, b in zip(m, v, strict=True)]
            after = State(tuple(params.add(state.weights, delta)), t, m, v)
        return after, Record(t, len(at), h, self.learning_rate, params.norm(grad), params.norm(delta), clock.seconds)
