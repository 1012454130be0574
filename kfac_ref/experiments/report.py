"""What the demo reports: aligned tables, and every number as plain data beside the environment it was measured in."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import training
from ..environment import environment
from .autoencoder import LEVELS, METHODS
from .classifier import Budget, Stage
from .tables import reached


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return the lines of a table with aligned columns, the first to the left, and a rule under the head."""
    def pad(cell: str, c: int) -> str:
        """Return the spaces that fill column c, in which an accent of its own, as in F̃, takes no place."""
        return " " * (max(_columns(row[c]) for row in rows) - _columns(cell))

    lines = ["  ".join([row[0] + pad(row[0], 0), *(pad(cell, c) + cell for c, cell in enumerate(row[1:], 1))]).rstrip()
             for row in rows]
    return "\n".join([lines[0], "-" * max(map(_columns, lines)), *lines[1:]])


def _columns(text: str) -> int:
    return sum(not unicodedata.combining(character) for character in text)


def summary(histories: Mapping[str, Sequence[training.History]], found: Sequence[Stage],
            budget: Budget, seed: int) -> dict[str, Any]:
    """Return every number of the demo as plain data for JSON; keys that end in ``seconds`` differ from run to run."""
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
