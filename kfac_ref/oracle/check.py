"""Compare values with the reference: a verdict per quantity, and a diagnosis of mismatches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import ProblemError, check_counted, check_known, check_number
from .diagnose import SCALABLE, Diagnosis, Explanation, Scale, place, scale
from .files import load
from .graph import QUANTITIES, Reference, coerced, missing
from .mistakes import CATALOGUE, VISIBLE
from .problem import Problem
from .sampling import Judgement, judge

#: A number in double precision has no more digits than this.
MOST_DIGITS = 15.95
#: How many explanations are printed; `Report.plain` has all.
SHOWN = 6
#: Numbers written with fewer than MOST digits are compared to those digits; fewer than FEWEST are taken as exact.
FEWEST, MOST = 4, 12


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
            "samples": j and j.samples, "power": j and j.power,
            "sampled_as": _texts([Explanation((m,)) for m in j.explanations]) if j else [],
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _texts(explanations: Sequence[Explanation]) -> list[Any]:
    return [[{"mistake": m.name, "what": m.what, "why": m.why, "remedy": m.remedy} for m in e.mistakes]
            for e in explanations]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")      # wrong values may have any size
def check(problem: Problem, theirs: Mapping[str, Any], dialect: str | None = None, rtol: float | None = None,
          samples: int | None = None) -> Report:
    """Compare values with those that a problem defines, and diagnose mismatches.

    `theirs` holds any of `QUANTITIES` by name: a number, an array, or a list with one array per layer; a ProblemError
    names the place if one is unknown, malformed, or not defined by the problem. `dialect` names the implementation
    whose conventions they are in: one of `dialects.DIALECTS`. `rtol` is the largest relative error that counts as
    rounding (default: from the precision and the conditioning), and `samples` the number of targets per example behind
    a ``G_sampled`` whose targets are not in the problem.

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
    if dialect is not None:
        from .dialects import DIALECTS  # only if needed

        theirs = check_known("dialect", dialect, DIALECTS).ours(theirs, problem)
    reference = _reference_of(problem)
    single = problem.dtype == "float32" or _is_single(theirs)
    rows = _lost(reference, theirs)
    lost = {row.quantity for row in rows}
    given = coerced(reference, {n: v for n, v in theirs.items() if n not in lost} if lost else theirs)
    judgement = None
    if problem.targets is None and "G_sampled" in given:
        judgement, row = _judged(problem, reference, given.pop("G_sampled"), samples)
        rows.append(row)
    rtol = _rounded(theirs) if rtol is None else rtol
    diagnosis = Diagnosis(reference, given, "float32" if single else "float64", rtol)
    differing = set(diagnosis.differing())
    for name in diagnosis.names:
        off = diagnosis.errors[name]
        where = place(reference[name], given[name], max(diagnosis.tolerance(name), 1e-300)) if name in differing else ""
        rows.append(Row(name, "differs" if name in differing else "right", off, _digits(off), where))
    if not differing:
        return Report(tuple(rows), judgement=judgement, dialect=dialect)
    explanations = diagnosis.explanations()
    if "G_sampled" in differing and not explanations:       # perhaps other draws
        judgement, _ = _judged(problem, reference, given["G_sampled"], samples)
    turned = _of_turned_weights(problem, diagnosis)
    counts = {"N": len(problem.x), "C": problem.sizes[-1], "M": 1 if problem.targets is None else len(problem.targets)}
    scales = {name: s for name in diagnosis.names if name in differing
              if (s := scale(reference[name], given[name], counts, diagnosis.tolerance(name)))}
    return Report(tuple(rows), tuple(explanations), None if explanations or turned else diagnosis.one_by_one(), scales,
                  diagnosis.tells_apart(explanations) if len(explanations) > 1 else None,
                  diagnosis.first_difference() if any(n.startswith("trajectory_") for n in differing) else None,
                  judgement, dialect, turned)


def _of_turned_weights(problem: Problem, diagnosis: Diagnosis) -> bool:
    """Return whether the values are those of a network whose square weights were transposed."""
    for columns in (slice(0, -1), slice(None)):
        if all(len(W) == W[:, columns].shape[1] for W in problem.weights):
            weights = [W.copy() for W in problem.weights]
            for V, W in zip(weights, problem.weights, strict=True):
                V[:, columns] = W[:, columns].T
            reference = Reference(problem.replace(weights=weights))
            part = Diagnosis(reference, diagnosis.theirs, diagnosis.dtype, diagnosis.rtol)
            if part.fits(()) or part.fits((CATALOGUE["transposed weights"],)):
                return True
    return False


def read_quantities(path: Any) -> dict[str, Any]:
    """Read quantities by name from a JSON or npz file, or the expected values of a test vector."""
    content = load(path)
    if not isinstance(content, Mapping):
        raise ProblemError(f"{path}: must hold an object with quantities by name, got {type(content).__name__}")
    if isinstance(content.get("quantities"), Mapping):
        content = content["quantities"]
    if isinstance(content.get("expected"), Mapping):
        content = {name: entry.get("value") if isinstance(entry, Mapping) else entry
                   for name, entry in content["expected"].items()}
    return dict(content)


#: The reference of a problem, shared by all checks of that problem.
_reference_of = functools.lru_cache(maxsize=8)(Reference)


def _is_single(theirs: Mapping[str, Any]) -> bool:
    """Return whether any value is in single precision."""
    numbers = _numbers(theirs)
    if numbers is not None and len(numbers) and max(map(_significant, numbers)) > 10:
        with np.errstate(over="ignore"):                    # single precision printed as double
            return bool((np.array(numbers, dtype=np.float32) == np.array(numbers)).all())
    kinds = {str(getattr(a, "dtype", "")) for value in theirs.values()
             for a in (value if isinstance(value, (list, tuple)) else [value])}
    return not kinds.isdisjoint({"float32", "torch.float32"})


def _rounded(theirs: Mapping[str, Any]) -> float | None:
    """Return the rounding error of numbers written with few digits, None if they have all their digits."""
    numbers = _numbers(theirs)
    digits = max(map(_significant, numbers), default=0) if numbers is not None else 0
    return max(10.0**(1 - digits), 1e-10) if FEWEST <= digits < MOST else None


def _numbers(theirs: Mapping[str, Any]) -> list[float] | None:
    """Return all floats in nested lists, None if there are arrays (which have all their digits)."""
    found: list[float] = []
    todo: list[Any] = list(theirs.values())
    while todo:
        value = todo.pop()
        if isinstance(value, float):
            found.append(value)
        elif isinstance(value, (Mapping, list, tuple)):
            todo += value.values() if isinstance(value, Mapping) else value
        elif not isinstance(value, (int, str)) and value is not None:
            return None
    return found


def _significant(value: float) -> int:
    """Return the number of digits of a number."""
    return len(repr(value).lower().split("e")[0].replace(".", "").replace("-", "").strip("0"))


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
    if report.ok and not report.judgement:
        return ["", "all right"]
    lines = [""]
    if report.judgement:
        lines += _judgement_words(report.judgement)
    if report.first_step:
        step, name, off = report.first_step
        lines.append(f"the trajectory first differs at step {step}, in {name} (relative error {off:.1e})")
    if any(row.verdict == "differs" for row in report.rows):
        lines += _explained(report)
    return lines


def _simplest(explanations: Sequence[Explanation]) -> list[Explanation]:
    fewest = min(len(e.mistakes) for e in explanations)
    return [e for e in explanations if len(e.mistakes) == fewest]


def _explained(report: Report) -> list[str]:
    lines = []
    if report.turned:
        lines.append("these values belong to the transposed weights: check --layout and the orientation of the weights")
    if report.explanations:
        simple = _simplest(report.explanations)
        lines.append("explained by:" if len(simple) == 1 else
                     f"{len(simple)} explanations fit equally well; these values cannot tell them apart:")
        lines += [line for e in simple[:SHOWN] for line in _entry(e)]
        if len(simple) > SHOWN:
            lines.append(f"  ... and {len(simple) - SHOWN} more (--json lists all)")
        if more := len(report.explanations) - len(simple):
            lines.append(f"({more} pair{'s' * (more > 1)} of mistakes would also give these values)")
        if report.tells_apart:
            lines.append(f"also give {report.tells_apart}: it would tell some of them apart")
    elif not report.turned:
        lines.append("no single mistake or pair explains all values; checking each quantity separately:")
        for name, found in (report.one_by_one or {}).items():
            if found and not found[0].mistakes:
                lines.append(f"  {name}: correct, given your values for its inputs")
            elif found:
                lines.append(f"  {name}, given your values for its inputs:")
                lines += [f"  {line}" for e in _simplest(found)[:SHOWN] for line in _entry(e)]
            else:
                where = next(row.where for row in report.rows if row.quantity == name)
                lines.append(f"  {name}: not explained; the error is in {where}")
    for name, s in (report.scales or {}).items():
        as_powers = f" = {s.text}" if s.text else ", which is not a product of small powers of N, C, 2 and M"
        if s.text == f"{s.value:g}":                        # only a power of 2: nothing new
            as_powers = ""
        elif s.text and name in SCALABLE:
            as_powers += ", or a constant such as a learning rate"
        elif name in SCALABLE:
            as_powers += ": a constant such as a learning rate?"
        lines.append(f"{name} is {s.value:.6g} times the right value{as_powers}")
    return lines


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
