"""The report of a check: the verdicts as a table, what explains them in words, and all of it as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .differences import Scale
from .sampling import Judgement
from .search import Explanation

#: How many explanations are printed; `Report.plain` has all.
SHOWN = 6


@dataclass(frozen=True)
class Row:
    """The verdict on one quantity."""

    quantity: str
    verdict: str    # right, differs, as sampled, not as sampled, cannot tell, or cannot be computed
    error: float    # the largest relative error over its arrays
    digits: float   # -log10(error): the number of right digits
    where: str = ""     # the place of the error


@dataclass(frozen=True)
class Report:
    """The result of `check`; printed, it is the table and the diagnosis."""

    rows: tuple[Row, ...]
    explanations: tuple[Explanation, ...] = ()              # every one that reproduces all given quantities
    #: If there is none: the explanations of each differing quantity, given the values of its inputs.
    one_by_one: Mapping[str, Sequence[Explanation]] | None = None
    scales: Mapping[str, Scale] | None = None               # of each quantity that differs by a constant factor
    tells_apart: str | None = None                          # a quantity to give, which would distinguish explanations
    first_step: tuple[int, str, float] | None = None        # where a trajectory first differs: step, quantity, error
    judgement: Judgement | None = None                      # the test of a G whose targets are not in the problem
    dialect: str | None = None                              # the implementation whose conventions the values are in
    turned: bool = False                                    # whether the values are those of the transposed weights
    precision: str = ""                                     # what the numbers were taken to be, "" if double precision
    by_chance: tuple[Explanation, ...] = ()                 # these fit, but so few digits would fit by chance
    is_another: Mapping[str, str] | None = None             # differing quantities that are another quantity of ours
    begins: tuple[str, Sequence[str]] | None = None         # where the error begins, and what to give to narrow it down
    untried: str = ""
    given_steps: tuple[int, int] | None = None              # of a trajectory: how many were given, of how many

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return all(row.verdict in ("right", "as sampled") for row in self.rows)

    def __str__(self) -> str:
        """Return the table and the diagnosis."""
        return "\n".join([*_table(self), *_words(self)])

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        j, first = self.judgement, self.first_step
        return {
            "ok": self.ok,
            "rows": [{"quantity": r.quantity, "verdict": r.verdict, "digits": round(r.digits, 2),
                      "error": _finite(r.error), "where": r.where} for r in self.rows],
            "explanations": _texts(self.explanations),
            "one_by_one": {name: _texts(e) for name, e in (self.one_by_one or {}).items()},
            "scales": {name: {"factor": s.value, "as": s.text} for name, s in (self.scales or {}).items()},
            "tells_apart": self.tells_apart, "dialect": self.dialect, "transposed_weights": self.turned,
            "first_step": first and {"step": first[0], "quantity": first[1], "error": _finite(first[2])},
            "precision": self.precision, "by_chance": _texts(self.by_chance), "is_another": dict(self.is_another or {}),
            "begins": self.begins and {"quantity": self.begins[0], "give": list(self.begins[1])},
            "untried": self.untried, "given_steps": self.given_steps,
            "samples": j and j.samples, "samples_instead": j and j.instead, "power": j and j.power,
            "sampled_as": _texts([Explanation((m,)) for m in j.explanations]) if j else [],
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _texts(explanations: Sequence[Explanation]) -> list[Any]:
    return [[{"mistake": m.name, "what": m.what, "why": m.why, "remedy": m.remedy} for m in e.mistakes]
            for e in explanations]


def of_samples(M: int) -> str:
    """Return a number of samples with its noun."""
    return f"{M:,} sample{'s' * (M != 1)}"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows]


def _table(report: Report) -> list[str]:
    return aligned([("quantity", "verdict", "largest relative error", "right digits", "where"), *(
        (r.quantity, r.verdict, f"{r.error:.1e}" if math.isfinite(r.error) else "wrong shape", f"{r.digits:.1f}",
         r.where or "-") for r in report.rows)])


def _words(report: Report) -> list[str]:
    lines = [""]
    if report.precision:
        lines.append(f"the numbers look like this, and were compared so: {report.precision}")
    if report.given_steps:
        lines.append("the first {} steps of {} were given".format(*report.given_steps))
    if report.ok and not report.judgement:
        return [*lines, "all right"]
    if report.judgement:
        lines += _judgement_words(report.judgement)
    if report.first_step:
        step, name, off = report.first_step
        lines.append(f"the trajectory first differs at step {step}, in {name} (relative error {off:.1e})")
    if any(row.verdict == "differs" for row in report.rows):
        lines += _explained(report)
    return lines


def _explained(report: Report) -> list[str]:
    lines = []
    if report.turned:
        lines.append("these values belong to the transposed weights: check --layout and the orientation of the weights")
    elif report.explanations:
        simple = report.explanations
        lines.append("explained by:" if len(simple) == 1 else
                     f"{len(simple)} explanations fit equally well; these values cannot tell them apart:")
        lines += [line for e in simple[:SHOWN] for line in _entry(e)]
        if len(simple) > SHOWN:
            lines.append(f"  ... and {len(simple) - SHOWN} more (--json lists all)")
        if report.tells_apart:
            lines.append(f"also give {report.tells_apart}: it would tell some of them apart")
    else:
        lines += _unexplained(report)
    for name, s in (report.scales or {}).items():
        as_powers = f" = {s.text}" if s.text and s.text != f"{s.value:g}" else ""
        lines.append(f"{name} is {s.value:.6g} times the right value{as_powers}")
    return lines + ([report.untried] if report.untried else [])


def _unexplained(report: Report) -> list[str]:
    lines = []
    if report.by_chance:
        names = " + ".join(report.by_chance[0].names)
        more = f" (and {len(report.by_chance) - 1} others)" if len(report.by_chance) > 1 else ""
        lines.append(f"not explained: {names}{more} fits, but so few digits would fit by chance; give more digits or "
                     "more quantities")
    else:
        lines.append("not explained by any mistake, wrong number or pair of mistakes")
    lines += [f"your {name} is our {other}" for name, other in (report.is_another or {}).items()]
    places = {row.quantity: row.where for row in report.rows}
    for name, found in (report.one_by_one or {}).items():
        if name in (report.is_another or {}):
            continue
        if found and not found[0].mistakes:
            lines.append(f"  {name}: correct, given your values for its inputs")
        elif found:
            lines.append(f"  {name}, given your values for its inputs:")
            lines += [f"  {line}" for e in found[:SHOWN] for line in _entry(e)]
        else:
            lines.append(f"  {name}: not explained; the error is in {places[name]}")
    if report.begins:
        lines.append(_begins(report.begins[0], places[report.begins[0]], report.begins[1]))
    return lines


def _begins(name: str, where: str, give: Sequence[str]) -> str:
    """Say where the error begins and what would show more."""
    text = f"the error begins in {name}"
    if name in ("A", "a_bar"):
        text += (": that of layer 0 is made of the inputs x alone, so the inputs differ (other examples, or normalized "
                 "ones?)" if where.startswith("layer 0") else ": it is right before, so the forward pass differs there")
    return text + (f"; also give {' or '.join(give[:3])}" if give else "")


def _entry(e: Explanation) -> list[str]:
    return [line for i, m in enumerate(e.mistakes) for line in (
        f"  {'+' if i else '*'} {m.name}: {m.what}", f"    why it is wrong: {m.why}", f"    remedy: {m.remedy}")]


def _judgement_words(j: Judgement) -> list[str]:
    source = "as stated" if j.stated else "inferred from the spread"
    lines = [f"G_sampled, by simulation: {'' if j.right else 'not '}consistent with {of_samples(j.samples)} per "
             f"example ({source}; {j.statistic:.2f} of the limit)"]
    if j.instead:
        lines.append(f"  consistent with about {of_samples(j.instead)} per example, not "
                     f"{j.samples:,}: check the number of samples (--samples M)")
    if not j.stated:
        lines.append("  an inferred number of samples proves nothing: give it (--samples M)")
    lines += [line for m in j.explanations for line in _entry(Explanation((m,)))]
    if not j.right and not j.explanations and not j.instead:
        lines.append("  no scale or wrong distribution of the catalogue explains it")
    noticed = ", ".join(f"{name} in {100 * p:.0f}%" for name, p in j.power.items())
    lines.append(f"  fewer than 1 in 1000 correct values are rejected; mistakes would be detected: {noticed}")
    return lines
