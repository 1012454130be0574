"""What implementations compute under the name K-FAC: the entries of dialects.json.

A scale is theirs over ours, for a loss that is a mean over examples (see `loss`). tests/peers measured the facts on the
date given, in float64; "measured elsewhere" means by hand, without a test here. Facts that were only read in source
code are left out.
"""

from __future__ import annotations

from pathlib import Path

from .dialect import Dialect
from .files import load
from .problem import LIKELIHOODS

#: All of them, by name.
DIALECTS = {entry["name"]: Dialect(**entry | {"deviations": tuple(entry["deviations"])})
            for entry in load(Path(__file__).with_name("dialects.json"))["dialects"]}


def table() -> list[tuple[str, ...]]:
    """Return the headings and the dialects as rows of text; a cell may be "not measured" or, if there is none, "-"."""
    rows = [_row(dialect) for dialect in DIALECTS.values()]
    return [tuple(rows[0]), *(tuple(row.values()) for row in rows)]


def _row(d: Dialect) -> dict[str, str]:
    blank = "not measured"
    scale = {f"{name} / ours": _by_likelihood(d, name) for name in ("A", "G", "G_sampled", "G_empirical", "gradient")}
    return {"name": d.name, "version": d.version, "ran": d.ran or "-", **scale, "layout": d.layout, "bias": d.bias,
            "dense order": d.vec or blank, "A and G in": d.where or blank, "targets": d.fisher,
            "average": d.average or blank, "damping": d.damping or blank,
            "loss": "; ".join(f"{name}: {d.loss[name]}" for name in LIKELIHOODS if name in d.loss),
            "know": "; ".join(d.deviations) or "-"}


def _by_likelihood(d: Dialect, quantity: str) -> str:
    """Return one expression if all likelihoods share it, else one per likelihood."""
    found = d.scale.get(quantity, {})
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{text} ({name})" for name, text in found.items()) or "-"
