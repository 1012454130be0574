"""The running average of moments over the steps of an optimizer (paper: sec. 5).

    new = epsilon old + (1 - epsilon) batch,      epsilon = min(1 - 1/k, 0.95),  k = 1, 2, ...

The first batch gets all the weight (the average does not start from an identity), the first 20 batches are averaged
evenly, and after that the weight of old batches decays. Factors are finished from the averaged moments.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .. import checks
from ..checks import Array
from .base import Moments


def weight_of_old(k: int, ceiling: float = 0.95) -> float:
    """Return epsilon for batch k = 1, 2, ...: ``min(1 - 1/k, ceiling)``."""
    return min(1 - 1 / k, ceiling)


def mixed(epsilon: float, old: Array, new: Array) -> Array:
    """Return ``epsilon old + (1 - epsilon) new``."""
    return epsilon * old + (1 - epsilon) * new


@dataclass(frozen=True)
class RunningAverage:
    """An exponentially decayed average of `Moments`, with its own count of batches (sec. 5)."""

    ceiling: float = 0.95               #: The largest epsilon.
    k: int = 0                          #: The number of batches in the average.
    latest: Moments | None = None       #: The average; None before the first batch.

    def __post_init__(self) -> None:
        checks.number("ceiling", self.ceiling, 0, 1)

    @property
    def moments(self) -> Moments:
        """The averaged moments; ValueError before the first batch."""
        if self.latest is None:
            raise ValueError("the running average is empty: call update first")
        return self.latest

    def update(self, moments: Moments) -> RunningAverage:
        """Return a new average that includes one more batch; the ``n`` of its moments counts all examples seen."""
        if not isinstance(moments, Moments):
            raise ValueError(f"moments must be Moments, such as second_moments(at), got {type(moments).__name__}; "
                             "average moments, and finish the average into factors")
        k = self.k + 1
        if self.latest is None:
            return RunningAverage(self.ceiling, k, moments)
        epsilon = weight_of_old(k, self.ceiling)
        return RunningAverage(self.ceiling, k, self.latest.combine(functools.partial(mixed, epsilon), moments))
