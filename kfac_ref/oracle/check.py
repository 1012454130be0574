"""Compare values with the reference: a verdict per quantity, and a diagnosis of mismatches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .checks import ProblemError, check_counted, check_known, check_number
from .differences import VISIBLE, Scale, place, scale, shapes
from .files import gathered
from .forms import coerced
from .graph import QUANTITIES, Reference, missing
from .mistakes import CATALOGUE
from .precision import named
from .problem import Problem
from .sampling import Judgement, judge
from .search import Diagnosis, Explanation

#: A number in double precision has no more digits than this.
MOST_DIGITS = 15.95
#: How many explanations are printed; `Report.plain` has all.
SHOWN = 6
#: How much processor time the search for explanations may take, and then that for each quantity alone.
SECONDS, SECONDS_EACH = 6.0, 1.5


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


@np.errstate(over="ignore", invalid="ignore", divide="ignore")      # wrong values may have any size
def check(problem: Problem, theirs: Mapping[str, Any], dialect: str | None = None, rtol: float | None = None,
          samples: int | None = None, precision: str | None = None, diagnose: bool = True) -> Report:
    """Compare values with those that a problem defines, and diagnose mismatches.

    `theirs` holds any of `QUANTITIES` by name: a number, an array, or a list with one array per layer; a ProblemError
    names the place if one is unknown, malformed, or not defined by the problem. `dialect` names the implementation
    whose conventions they are in: one of `dialects.DIALECTS`. `samples` is the number of targets per example behind a
    ``G_sampled`` whose targets are not in the problem.

    An entry is right if rounding can explain its error: in the precision that the numbers of its array show, or in
    `precision` ("double", "single", "half" or a number of digits), through the condition of what was computed. `rtol`
    replaces this by an error relative to the largest entry of an array. Without `diagnose` there are only verdicts.

    Examples
    --------
    >>> from kfac_ref.oracle import Problem
    >>> problem = Problem((1, 1), (), "gaussian", [[[2.0, 0.0]]], [[1.0], [3.0]], [[0.0], [1.0]])
    >>> check(problem, {"A": [[[5, 2], [2, 1]]]}).ok
    True
    >>> check(problem, {"A": [[[10, 4], [4, 2]]]}).explanations[0].names
    ('A summed over the examples',)
    """
    if rtol is not None:
        check_number("rtol", rtol, 0, 1)
    if samples is not None:
        check_counted("samples", samples)
    form = None if precision is None else named(precision)
    if dialect is not None:
        from .dialects import DIALECTS  # only if needed

        theirs = check_known("dialect", dialect, DIALECTS).ours(theirs, problem)
    reference = _reference_of(problem)
    theirs = gathered(theirs, QUANTITIES) if isinstance(theirs, Mapping) else theirs
    rows = _lost(reference, theirs)
    lost = {row.quantity for row in rows}
    rest = {n: v for n, v in theirs.items() if n not in lost} if lost else theirs
    given = coerced(reference, rest) if rest or not lost else {}
    judgement = None
    if problem.targets is None and "G_sampled" in given:
        judgement, row = _judged(problem, reference, given.pop("G_sampled"), samples)
        rows.append(row)
    reference, given_steps = _of_given_steps(reference, given)
    diagnosis = Diagnosis(reference, given, problem.dtype, rtol, form, seconds=SECONDS)
    differing = diagnosis.differing
    for name in diagnosis.names:
        off, where = diagnosis.errors[name], ""
        if name in differing:
            where = place(reference[name], given[name], diagnosis.tolerance.allowed(reference, name, given[name])
                          if shapes(reference[name]) == shapes(given[name]) else None)
        rows.append(Row(name, "differs" if name in differing else "right", off, _digits(off), where))
    found = Report(tuple(rows), judgement=judgement, dialect=dialect, precision=diagnosis.tolerance.words(),
                   given_steps=given_steps)
    return replace(found, **_diagnosed(problem, diagnosis, samples)) if differing and diagnose else found


def _diagnosed(problem: Problem, diagnosis: Diagnosis, samples: int | None) -> dict[str, Any]:
    """Return the fields of the report that explain what differs."""
    reference, given, differing = diagnosis.reference, diagnosis.theirs, diagnosis.differing
    explanations, found = diagnosis.explanations(), dict[str, Any]()
    if "G_sampled" in differing and not explanations:       # perhaps other draws
        found["judgement"], _ = _judged(problem, reference, given["G_sampled"], samples)
    turned = not explanations and _of_turned_weights(problem, diagnosis)
    if not explanations and not turned:
        found |= {"one_by_one": diagnosis.one_by_one(SECONDS_EACH), "is_another": diagnosis.is_another(),
                  "begins": diagnosis.begins()}
    counts = {"N": len(problem.x), "C": problem.sizes[-1], "M": 1 if problem.targets is None else len(problem.targets)}
    found["scales"] = {name: s for name in differing
                       if (s := scale(reference[name], given[name], counts, diagnosis.tolerance.coarse(name) / 1000))}
    if any(name.startswith("trajectory_") for name in differing):
        found["first_step"] = diagnosis.first_difference()
    return found | {"explanations": tuple(explanations), "turned": turned, "by_chance": tuple(diagnosis.by_chance),
                    "tells_apart": diagnosis.tells_apart(explanations) if len(explanations) > 1 else None,
                    "untried": diagnosis.untried}


def _of_given_steps(reference: Reference, given: Mapping[str, Any]) -> tuple[Reference, tuple[int, int] | None]:
    """Return the reference of as many steps of a trajectory as were given, and their number if it is not all."""
    t = reference.problem.trajectory
    counts = {len(a) for name, value in given.items() if name.startswith("trajectory_")
              for a in (value if isinstance(value, tuple) else (value,)) if np.ndim(a)}
    if t is None or len(counts) != 1 or not 0 < (count := counts.pop()) < len(t.batches):
        return reference, None
    shorter = reference.problem.replace(trajectory=replace(t, batches=t.batches[:count]))
    return Reference(shorter), (count, len(t.batches))


def _of_turned_weights(problem: Problem, diagnosis: Diagnosis) -> bool:
    """Return whether the values are those of a network whose square weights were transposed."""
    for columns in (slice(0, -1), slice(None)):
        if all(len(W) == W[:, columns].shape[1] for W in problem.weights):
            weights = [W.copy() for W in problem.weights]
            for V, W in zip(weights, problem.weights, strict=True):
                V[:, columns] = W[:, columns].T
            reference = Reference(problem.replace(weights=weights))
            part = Diagnosis(reference, diagnosis.theirs, **diagnosis.options)
            if part.fits(()) or part.fits((CATALOGUE["transposed weights"],)):
                return True
    return False


#: The reference of a problem, shared by all checks of that problem.
_reference_of = functools.lru_cache(maxsize=8)(Reference)


def _digits(error: float) -> float:
    return min(max(0.0, -math.log10(max(error, 1e-300))), MOST_DIGITS)


def _lost(reference: Reference, theirs: Mapping[str, Any]) -> list[Row]:
    """Return rows for quantities that cannot be computed here, for example a step with singular undamped factors."""
    rows = []
    for name in theirs if isinstance(theirs, Mapping) else ():
        if name in QUANTITIES and missing(QUANTITIES[name], reference.problem) is None:
            try:
                reference[name]
            except ValueError as error:
                rows.append(Row(name, "cannot be computed", math.inf, 0.0, str(error)))
    return rows


def _judged(problem: Problem, reference: Reference, G: Any, samples: int | None) -> tuple[Judgement, Row]:
    right = reference["G"]
    if len(G) != len(right) or any(a.shape != b.shape for a, b in zip(G, right, strict=True)):
        raise ProblemError(f"G_sampled must hold matrices of the shapes {[a.shape for a in right]}, got "
                           f"{[a.shape for a in G]}")
    for i, S in enumerate(G):
        if np.abs(S - S.T).max() > VISIBLE * np.abs(S).max():
            raise ProblemError(f"G_sampled[{i}] must be symmetric")
    judgement = judge(problem, G, samples)
    off = max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)) for a, b in zip(G, right, strict=True))
    if not judgement.right:
        return judgement, Row("G_sampled", "not as sampled", off, _digits(off))
    verdict = "as sampled" if judgement.stated else "cannot tell"      # an inferred number of samples proves nothing
    return judgement, Row("G_sampled", verdict, off, _digits(off), f"consistent with {_samples(judgement.samples)}")


def _samples(M: int) -> str:
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
    lines = [f"G_sampled, by simulation: {'' if j.right else 'not '}consistent with {_samples(j.samples)} per example "
             f"({source}; {j.statistic:.2f} of the limit)"]
    if j.instead:
        lines.append(f"  consistent with about {_samples(j.instead)} per example, not "
                     f"{j.samples:,}: check the number of samples (--samples M)")
    if not j.stated:
        lines.append("  an inferred number of samples proves nothing: give it (--samples M)")
    lines += [line for m in j.explanations for line in _entry(Explanation((m,)))]
    if not j.right and not j.explanations and not j.instead:
        lines.append("  no scale or wrong distribution of the catalogue explains it")
    noticed = ", ".join(f"{name} in {100 * p:.0f}%" for name, p in j.power.items())
    lines.append(f"  fewer than 1 in 1000 correct values are rejected; mistakes would be detected: {noticed}")
    return lines
