"""The family: every row of the table of approximations against the exact damped Fisher.

`compare` judges them at one point: the distance from the exact Fisher, the angle to the natural gradient, and the
decrease of the quadratic model by the rescaled step, at the damping that suits each approximation best.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..analysis import Judgement, judge
from ..approximations import EIGEN_DAMPED, EXACT_SMALLER, TABLE, Approximation
from ..checks import Array
from ..curvature import Curvature
from ..expectations import sampled
from ..fisher import fisher_matrix
from ..model import Point

#: Makes the matrix of a point, damped, from one draw of targets.
Make = Callable[[Point, float, Any], Curvature]


def _exact(row: Approximation) -> Make:
    return lambda at, damping, targets: row.at(at, damping)


def _sampled(row: Approximation) -> Make:
    return lambda at, damping, targets: row.at(at, damping, sampled(targets))


#: Every row of the table by its label, and the factors once more with sampled targets.
FAMILY: dict[str, Make] = {row.label: _exact(row) for row in TABLE.values() if row is not EXACT_SMALLER}
FAMILY["A ⊗ G, sampled"] = _sampled(EIGEN_DAMPED)
#: The dampings that each approximation may choose from.
DAMPINGS = tuple(float(d) for d in 10.0 ** np.arange(-5, 2.5, 0.5))


@dataclass(frozen=True)
class Entry:
    """How good one approximation is at one point."""

    name: str
    error: float                # relative Frobenius error, nearly undamped; NaN if the matrix was not formed
    damping: float              # the best of `DAMPINGS`
    judgement: Judgement        # of the step at that damping, without ``error``
    seconds: float              # to make the matrix and solve once
    mebibytes: float            # the peak of memory for that


def _makers(rows: Sequence[str | Approximation]) -> dict[str, Make]:
    """Return what makes the matrices, by name: entries of `FAMILY`, or rows of the user's own by their labels."""
    makers = {}
    for row in rows:
        if not isinstance(row, Approximation):
            makers[row] = checks.known("rows", row, FAMILY)
        elif not row.label:
            raise ValueError("rows must have labels, and an Approximation of your own has none")
        else:
            makers[row.label] = _exact(row)
    return makers


def frobenius_errors(at: Point, targets: Any, F: Array, rows: Sequence[str | Approximation] = tuple(FAMILY),
                     damping: float = 1e-8) -> dict[str, float]:
    """Return the relative Frobenius error of each approximation against the exact Fisher F, by name.

    `targets` are one draw from ``at.sample``; `rows` name entries of `FAMILY`, or are approximations of your own with
    labels. The damping is too small to matter; F̂ does not exist without.
    """
    scale = float(np.linalg.norm(F))
    return {name: float(np.linalg.norm(make(at, damping, targets).dense() - F)) / scale
            for name, make in _makers(rows).items()}


def compare(at: Point, y: Any, damping: float, targets: Any, rows: Sequence[str | Approximation] = tuple(FAMILY),
            dense: bool = True) -> list[Entry]:
    """Judge approximations at a point, each at its own best damping, in the order of `rows`.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    y : (N,) or (N, C) array
        The labels, for the gradient.
    damping : float
        Of the quadratic model and of the natural gradient with which all are compared; above 0.
    targets : (N,) or (N, C) array
        One draw, from ``at.sample``.
    rows : sequence of str or Approximation
        Entries of `FAMILY`, or approximations of your own, which need labels.
    dense : bool
        Whether to form the matrices for their Frobenius errors.
    """
    makers = _makers(rows)
    errors = frobenius_errors(at, targets, fisher_matrix(at), rows) if dense else dict.fromkeys(makers, float("nan"))
    # The exact matrix is solved with at the damping of the model only: there it is the best by definition.
    trials = [(name, d) for name in makers for d in ((damping,) if name == "exact F" else DAMPINGS)]
    judged = judge(at, y, damping, ((name, makers[name](at, d, targets)) for name, d in trials), dense=False)
    grad = at.gradient(y)
    entries = []
    for name, make in makers.items():
        best = max((k for k, trial in enumerate(trials) if trial[0] == name), key=lambda k: judged[k].decrease)
        d = trials[best][1]
        start = time.perf_counter()
        make(at, d, targets).solve(grad)
        seconds = time.perf_counter() - start
        tracemalloc.start()
        make(at, d, targets).solve(grad)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        entries.append(Entry(name, errors[name], d, judged[best], seconds, peak))
    return entries
