"""The examples and their labels."""

from __future__ import annotations

import numpy as np

from ...model import Point
from .entry import add


def _all_but_last(at: Point) -> Point:
    if len(at) == 1:
        raise ValueError("no example is left")
    return at.take(slice(0, -1))

_ROWS = "row n of y is the label of row n of x"
add("data", "labels of the row after", "each example had the label of the next one (the last that of the first)", _ROWS,
    "shuffle x and y with one permutation", {"y": lambda r, right: np.roll(right(), -1, axis=0)})
add("data", "labels of the row before", "each example had the label of the one before (the first that of the last)",
    _ROWS, "shuffle x and y with one permutation", {"y": lambda r, right: np.roll(right(), 1, axis=0)})
add("data", "last example skipped", "the last example was left out everywhere: the means are over the other N - 1",
    "the mean is over all N examples", "look for an off-by-one end, or a batch that drops the remainder",
    {"at": lambda r, right: _all_but_last(right()), "y": lambda r, right: right()[:-1],
     "targets": lambda r, right: None if right() is None else right()[:, :-1]})
