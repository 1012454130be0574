"""The examples and their labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...model import Point
from ..graph import Reference
from .entry import Change, Right, add


def _only(rows: Callable[[int], slice]) -> dict[str, Change]:
    """Leave out all examples but these, a function of N."""
    def at(r: Reference, right: Right) -> Point:
        kept = rows(len(r.problem.x))
        if not len(r.problem.x[kept]):
            raise ValueError("no example is left")
        return right().take(kept)

    def of_rows(r: Reference, right: Right) -> object:
        return right()[rows(len(r.problem.x))]
    return {"at": at, "y": of_rows, "targets": lambda r, right: None if right() is None else
            right()[:, rows(len(r.problem.x))]}

_ROWS, _ALL = "row n of y is the label of row n of x", "the mean is over all N examples"
add("data", "labels of the row after", "each example had the label of the next one (the last that of the first)", _ROWS,
    "shuffle x and y with one permutation", {"y": lambda r, right: np.roll(right(), -1, axis=0)})
add("data", "labels of the row before", "each example had the label of the one before (the first that of the last)",
    _ROWS, "shuffle x and y with one permutation", {"y": lambda r, right: np.roll(right(), 1, axis=0)})
add("data", "last example skipped", "the last example was left out everywhere: the means are over the other N - 1",
    _ALL, "look for an off-by-one end, or a batch that drops the remainder", _only(lambda N: slice(0, N - 1)))
add("data", "only the first half of the examples", "only the first N // 2 examples were used: the means are over part "
    "of the batch", _ALL, "look for a part of the batch (a worker's, a validation split) that replaced it",
    _only(lambda N: slice(0, N // 2)))
add("data", "only the second half of the examples", "the first N // 2 examples were not used: the means are over part "
    "of the batch", _ALL, "look for a loop over parts that keeps only the last", _only(lambda N: slice(N // 2, N)))
add("data", "every second example", "only the first, third, fifth, ... example was used", _ALL,
    "look for a stride of 2, or the rows of one of two workers", _only(lambda N: slice(0, N, 2)))
