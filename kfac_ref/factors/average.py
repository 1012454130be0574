"""The running average of the factors over the steps of an optimizer (paper: sec. 5).

    new = epsilon old + (1 - epsilon) batch,      epsilon = min(1 - 1/k, 0.95),  k = 1, 2, ...

so the first batch is taken whole (there is no identity to start from), the first 20 are averaged evenly, and then old
ones fade.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import checks
from .base import Factors


@dataclass(frozen=True)
class RunningAverage:
    """An exponentially decayed average of `Factors`, with its own count.

    Parameters
    ----------
    ceiling : float
        The largest epsilon; the paper's 0.95.
    k : int
        How many batches are in it.
    latest : Factors or None
        The average; None before the first batch.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 5.
    """

    ceiling: float = 0.95
    k: int = 0
    latest: Factors | None = None

    def __post_init__(self) -> None:
        checks.number("ceiling", self.ceiling, 0, 1)

    @property
    def factors(self) -> Factors:
        """The averaged factors.

        Raises
        ------
        ValueError
            Before the first batch.
        """
        if self.latest is None:
            raise ValueError("the running average holds no factors yet: call update first")
        return self.latest

    def update(self, factors: Factors) -> RunningAverage:
        """Return the average with one more batch in it; its ``n`` counts all examples seen.

        Parameters
        ----------
        factors : Factors
            Of the new batch.

        Returns
        -------
        RunningAverage
            A new one, with k + 1 batches.

        Raises
        ------
        ValueError
            Where `factors` are not of the network and reach of those before.
        """
        k = self.k + 1
        epsilon = min(1 - 1 / k, self.ceiling)
        if self.latest is None:
            return RunningAverage(self.ceiling, k, factors)
        mixed = self.latest.combine(factors, lambda old, new: epsilon * old + (1 - epsilon) * new,
                                    self.latest.n + factors.n)
        return RunningAverage(self.ceiling, k, mixed)
