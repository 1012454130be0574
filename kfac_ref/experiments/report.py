"""What a comparison says: aligned tables, and every number as plain data beside the environment it was measured in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import training
from ..environment import environment
from .autoencoder import LEVELS, METHODS
from .classifier import Budget, Stage
from .comparison import reached


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns of a table, the first to the left, the others to the right, and rule off the head.

    Parameters
    ----------
    rows : sequence of sequences of str
        The head first; all of one length.

    Returns
    -------
    str
        Lines without a newline at the end.
    """
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
             .rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def summary(histories: Mapping[str, Sequence[training.History]], found: Sequence[Stage],
            budget: Budget, seed: int) -> dict[str, Any]:
    """Return every number of the demo as plain data for JSON; keys that end in ``seconds`` differ from run to run.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed. The names are those of `METHODS`.
    found : sequence of Stage
        The classifier's.
    budget : Budget
        Of one step.
    seed : int
        Of the demo.

    Returns
    -------
    dict
        ``seed``, ``environment``, ``autoencoder`` (by method), ``classifier`` (by stage) and ``budget``.
    """
    return {
        "seed": seed,
        "environment": environment(),
        "autoencoder": {
            name: {"batch": METHODS[name].batch, "settings": dict(METHODS[name].settings),
                   "runs": [{"evaluations": [asdict(e) for e in h.evaluations],
                             "levels": {f"{level:g}": _level(h, level) for level in LEVELS}} for h in runs]}
            for name, runs in histories.items()},
        "classifier": {s.name: s.errors for s in found},
        "budget": budget._asdict() | {"judgements": [
            asdict(j) | {"change": None if math.isnan(j.change) else j.change} for j in budget.judgements]},
    }


def _level(history: training.History, level: float) -> dict[str, float] | None:
    hit = reached(history, level)
    return None if hit is None else {"iterations": hit[0], "seconds": hit[1]}
