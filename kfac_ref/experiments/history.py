"""The history of a run: ``history.jsonl``, a line for each step and each evaluation, in the order of the steps.

A step's line has ``"kind": "step"`` and the fields of the optimizer's record, an evaluation's ``"kind": "evaluation"``
and those of `training.Evaluation`; NaN and infinity are null. ``"kind": "diverged"`` says why a run ended.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import files, training
from ..optimizers import KFAC, SGD, Adam, adam, kfac_values, sgd
from .script import plain

NAME = "history.jsonl"
_KINDS = ("step", "evaluation", "diverged")
_RECORDS = {KFAC: kfac_values.Record, SGD: sgd.Record, Adam: adam.Record}


@dataclass(frozen=True)
class Lines:
    """The lines of a history, checked."""

    text: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[training.Evaluation] = field(default_factory=list)


def line(kind: str, content: dict[str, Any]) -> str:
    """Return a line, with its end."""
    return json.dumps(plain({"kind": kind, **content})) + "\n"


def read(path: Path, optimizer: training.Optimizer, until: float = math.inf) -> Lines:
    """Read the lines up to step `until`, whatever follows; a last line that was not written to its end is left out.

    Raises a ValueError that names the line if one is damaged, of another optimizer, missing, doubled or out of order.
    """
    record = next(record for kind, record in _RECORDS.items() if isinstance(optimizer, kind))
    try:
        text = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    lines = Lines()
    for number, raw in enumerate(text, 1):
        where, k = f"{path}, line {number}", len(lines.steps)
        try:
            entry = _entry(raw.decode(errors="replace"), record, where)
            if k >= until and entry["kind"] != "evaluation":
                break
            if entry["kind"] == "step" and entry["k"] != k + 1:
                raise ValueError(f"{where}: step {entry['k']} follows step {k}")
            if entry["kind"] == "evaluation" and (entry["k"] != k or any(e.k == k for e in lines.evaluations[-1:])):
                raise ValueError(f"{where}: an evaluation of step {entry['k']} follows step {k}")
        except ValueError:
            if k >= until:
                break
            raise
        if entry["kind"] == "step":
            lines.steps.append(entry)
        elif entry["kind"] == "evaluation":
            lines.evaluations.append(evaluation(entry))
        lines.text.append(raw.decode(errors="replace"))
    if math.inf > until > len(lines.steps):
        raise ValueError(f"{path} ends with step {len(lines.steps)}, before the checkpoint of step {until}")
    return lines


def _entry(text: str, record: Any, where: str) -> dict[str, Any]:
    """Return the object in a line, whose kind and fields are checked."""
    entry = files.parse_json(text, where)
    if entry.get("kind") not in _KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(_KINDS)}; got {entry.get('kind')!r:.80}")
    if entry["kind"] != "diverged":
        _check(record if entry["kind"] == "step" else training.Evaluation, entry, where)
    return entry


def evaluation(entry: dict[str, Any]) -> training.Evaluation:
    """Return an evaluation from its line, with NaN for null."""
    values: list[Any] = [math.nan if entry[f.name] is None else entry[f.name] for f in fields(training.Evaluation)]
    return training.Evaluation(*values)


def evaluations_of(history: training.History) -> dict[str, list[Any]]:
    """Return the evaluations of a history as columns, by name."""
    return {f.name: [getattr(e, f.name) for e in history.evaluations] for f in fields(training.Evaluation)}


def from_columns(columns: dict[str, list[Any]]) -> training.History:
    """Return a history that holds only evaluations, from their columns; NaN is null there."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not rows:
        raise ValueError("there are no evaluations")
    for number, row in enumerate(rows, 1):
        _check(training.Evaluation, row, f"evaluation {number}")
    return training.History(None, (), evaluations=[evaluation(row) for row in rows])


def _check(kind: Any, entry: dict[str, Any], where: str) -> None:
    """Refuse an entry that lacks a field of a dataclass, or has it with another type."""
    for f in fields(kind):
        if f.name not in entry:
            raise ValueError(f"{where}: {f.name} is missing")
        if not _fits(entry[f.name], str(f.type)):
            raise ValueError(f"{where}: {f.name} must be {f.type}, got {entry[f.name]!r:.80}")


def _fits(value: Any, annotation: str) -> bool:
    """Return whether a JSON value can come from a field with that annotation."""
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if annotation == "float":
        return value is None or isinstance(value, float) or _fits(value, "int")
    if annotation.startswith("dict"):
        return isinstance(value, dict) and all(v is not None and _fits(v, "float") for v in value.values())
    return isinstance(value, {"bool": bool, "str": str}.get(annotation, list))
