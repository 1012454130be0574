"""The running average of moments over the steps of an optimizer (paper: sec. 5).

    new = epsilon old + (1 - epsilon) batch,      epsilon = min(1 - 1/k, 0.95),  k = 1, 2, ...

so the first batch is taken whole (there is no identity to start from), the first 20 are averaged evenly, and then old
ones fade. Factors are finished from the averaged moments.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .. import checks
from ..checks import Array
from .base import Moments


def weight_of_old(k: int, ceiling: float = 0.95) -> float:
    """Return epsilon for batch k, ``min(1 - 1/k, ceiling)``: 0 for the first one.

    Parameters
    ----------
    k : int
        1, 2, ...
    ceiling : float
        The largest epsilon.
    """
    return min(1 - 1 / k, ceiling)


def mixed(epsilon: float, old: Array, new: Array) -> Array:
    """Return ``epsilon old + (1 - epsilon) new``.

    Parameters
    ----------
    epsilon : float
        The weight of the old.
    old, new : arrays of one shape
        The average so far, and the new batch.
    """
    return epsilon * old + (1 - epsilon) * new


@dataclass(frozen=True)
class RunningAverage:
    """An exponentially decayed average of `Moments`, with its own count.

    Parameters
    ----------
    ceiling : float
        The largest epsilon; the paper's 0.95.
    k : int
        How many batches are in it.
    latest : Moments or None
        The average; None before the first batch.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 5.
    """

    ceiling: float = 0.95
    k: int = 0
    latest: Moments | None = None

    def __post_init__(self) -> None:
        checks.number("ceiling", self.ceiling, 0, 1)

    @property
    def moments(self) -> Moments:
        """The averaged moments.

        Raises
        ------
        ValueError
            Before the first batch.
        """
        if self.latest is None:
            raise ValueError("the running average is empty: call update first")
        return self.latest

    def update(self, moments: Moments) -> RunningAverage:
        """Return the average with one more batch in it; its ``n`` counts all examples seen.

        Parameters
        ----------
        moments : Moments
            Of the new batch.

        Returns
        -------
        RunningAverage
            A new one, with k + 1 batches.

        Raises
        ------
        ValueError
            Where `moments` are factors, or not of the network and estimator of those before.
        """
        if not isinstance(moments, Moments):
            raise ValueError(f"moments must be Moments, such as second_moments(at), got {type(moments).__name__}; "
                             "average moments, and finish the average into factors")
        k = self.k + 1
        if self.latest is None:
            return RunningAverage(self.ceiling, k, moments)
        epsilon = weight_of_old(k, self.ceiling)
        return RunningAverage(self.ceiling, k, self.latest.combine(functools.partial(mixed, epsilon), moments))
