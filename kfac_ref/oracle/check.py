"""Comparing numbers with the right ones: a verdict for each quantity, and what was done where they differ."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from .checks import ProblemError, check_counted, check_known, checked
from .diagnose import SCALABLE, Diagnosis, Explanation, Scale, place, scale
from .files import load
from .graph import QUANTITIES, Reference, coerced, missing
from .mistakes import CATALOGUE, VISIBLE
from .problem import Problem
from .sampling import Judgement, judge

#: More digits than this no number in double precision has.
MOST_DIGITS = 15.95
#: So many explanations are written out; `Report.plain` has all.
SHOWN = 6
#: Numbers written with so many digits are held to those; with fewer, to none.
FEWEST, MOST = 4, 12


@dataclass(frozen=True)
class Row:
    """The verdict on one quantity.

    Attributes
    ----------
    quantity : str
        Its name.
    verdict : str
        ``right``, ``differs``, ``as sampled`` or ``not as sampled``.
    error : float
        The largest relative error of any of its arrays.
    digits : float
        ``-log10`` of it: the right digits.
    where : str
        The place of the error.
    """

    quantity: str
    verdict: str
    error: float
    digits: float
    where: str = ""


@dataclass(frozen=True)
class Report:
    """What `check` returns; printed, it is the table and the explanations.

    Attributes
    ----------
    rows : tuple of Row
        One a quantity.
    explanations : tuple of Explanation
        Every one under which all quantities come out as they were given.
    one_by_one : dict
        Where there is none: for each quantity that differs, what explains it with those before it as they are.
    scales : dict
        For each quantity that differs by one factor, that factor.
    tells_apart : str or None
        A quantity that was not given and would tell explanations apart.
    first_step : (int, str, float) or None
        Where a trajectory first differs: the step, the quantity, its relative error.
    judgement : Judgement or None
        Of a G whose targets are not in the problem.
    dialect : str or None
        Whose conventions the numbers were in.
    turned : bool
        Whether the numbers are those of the transposed weights.
    """

    rows: tuple[Row, ...]
    explanations: tuple[Explanation, ...] = ()
    one_by_one: Mapping[str, Sequence[Explanation]] | None = None
    scales: Mapping[str, Scale] | None = None
    tells_apart: str | None = None
    first_step: tuple[int, str, float] | None = None
    judgement: Judgement | None = None
    dialect: str | None = None
    turned: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return all(row.verdict in ("right", "as sampled") for row in self.rows)

    def __str__(self) -> str:
        """Return the table, then what explains it."""
        return "\n".join([*_table(self), *_words(self)])

    def plain(self) -> dict[str, Any]:
        """Return the same for machines.

        Returns
        -------
        dict
            Of what JSON knows.
        """
        def entries(explanations: Sequence[Explanation]) -> list[Any]:
            """Return the texts of explanations.

            Parameters
            ----------
            explanations : sequence of Explanation
                Any.
            """
            return [[{"mistake": m.name, "what": m.what, "why": m.why, "remedy": m.remedy} for m in e.mistakes]
                    for e in explanations]
        return {
            "ok": self.ok,
            "rows": [{"quantity": r.quantity, "verdict": r.verdict, "digits": round(r.digits, 2),
                      "error": r.error if math.isfinite(r.error) else None, "where": r.where} for r in self.rows],
            "explanations": entries(self.explanations),
            "one_by_one": {name: entries(e) for name, e in (self.one_by_one or {}).items()},
            "scales": {name: {"factor": s.value, "as": s.text} for name, s in (self.scales or {}).items()},
            "tells_apart": self.tells_apart, "dialect": self.dialect, "transposed_weights": self.turned,
            "first_step": self.first_step and {"step": self.first_step[0], "quantity": self.first_step[1],
                                               "error": self.first_step[2] if math.isfinite(self.first_step[2])
                                               else None},
            "samples": self.judgement and self.judgement.samples,
            "power": self.judgement and self.judgement.power,
            "sampled_as": entries([Explanation((m,)) for m in self.judgement.explanations]) if self.judgement else [],
        }


@np.errstate(over="ignore", invalid="ignore", divide="ignore")      # wrong numbers may be of any size
def check(problem: Problem, theirs: Mapping[str, Any], dialect: str | None = None, rtol: float | None = None,
          samples: int | None = None) -> Report:
    """Compare numbers with those that a problem defines, and explain what differs.

    Parameters
    ----------
    problem : Problem
        What defines the right values.
    theirs : mapping
        Any of the quantities (`QUANTITIES`) by name: a number, an array, or a list with one array a layer.
    dialect : str, optional
        The implementation in whose conventions the numbers are: one of `dialects.DIALECTS`.
    rtol : float, optional
        The largest relative error that counts as rounding; unless told it follows from the precision and, for a solve,
        from the condition of its system.
    samples : int, optional
        The number of targets for each example behind a ``G_sampled`` whose targets are not in the problem.

    Returns
    -------
    Report
        ``report.ok`` says whether all is right; ``str(report)`` is the table and the diagnosis.

    Raises
    ------
    ProblemError
        Naming the place, for quantities that are unknown, malformed, or that the problem does not define.

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
        checked("rtol", checks.number, rtol, 0, 1)
    if samples is not None:
        check_counted("samples", samples)
    if dialect is not None:
        theirs = _in_our_words(problem, theirs, dialect)
    reference = _reference_of(problem)
    single = problem.dtype == "float32" or _is_single(theirs)
    rows = [Row(name, "cannot be computed", math.inf, 0.0, why) for name, why in _lost(reference, theirs).items()]
    lost = {row.quantity for row in rows}
    given = coerced(reference, {name: value for name, value in theirs.items() if name not in lost}) if lost else \
        coerced(reference, theirs)
    judgement = None
    if problem.targets is None and "G_sampled" in given:
        judgement, row = _judged(problem, reference, given.pop("G_sampled"), samples)
        rows.append(row)
    diagnosis = Diagnosis(reference, given, "float32" if single else "float64", rtol if rtol is not None else
                          _rounded(theirs))
    differing = set(diagnosis.differing())
    for name in diagnosis.names:
        off = diagnosis.errors[name]
        where = place(reference[name], given[name], max(diagnosis.tolerance(name), 1e-300)) if name in differing else ""
        rows.append(Row(name, "differs" if name in differing else "right", off, _digits(off), where))
    if not differing:
        return Report(tuple(rows), judgement=judgement, dialect=dialect)
    explanations = diagnosis.explanations()
    if "G_sampled" in differing and not explanations:       # perhaps of draws of their own
        judgement, _ = _judged(problem, reference, given["G_sampled"], samples)
    turned = _of_turned_weights(problem, diagnosis)
    counts = {"N": len(problem.x), "C": problem.sizes[-1]} | (
        {"M": len(problem.targets)} if problem.targets is not None else {})
    scales = {name: s for name in diagnosis.names if name in differing
              if (s := scale(reference[name], given[name], counts, diagnosis.tolerance(name)))}
    return Report(tuple(rows), tuple(explanations), None if explanations or turned else diagnosis.one_by_one(), scales,
                  diagnosis.tells_apart(explanations) if len(explanations) > 1 else None,
                  diagnosis.first_difference() if any(n.startswith("trajectory_") for n in differing) else None,
                  judgement, dialect, turned)


def _of_turned_weights(problem: Problem, diagnosis: Diagnosis) -> bool:
    """Return whether the numbers are those of a network with square weights read the wrong way round."""
    for columns in (slice(0, -1), slice(None)):
        if all(len(W) == W[:, columns].shape[1] for W in problem.weights):
            weights = [W.copy() for W in problem.weights]
            for V, W in zip(weights, problem.weights, strict=True):
                V[:, columns] = W[:, columns].T
            part = Diagnosis(Reference(problem.replace(weights=weights)), diagnosis.theirs, diagnosis.dtype,
                             diagnosis.rtol)
            if part.fits(()) or part.fits((CATALOGUE["transposed weights"],)):
                return True
    return False


def read_quantities(path: Any) -> dict[str, Any]:
    """Read quantities from a JSON file (nested lists, or arrays with shape and data) or an npz.

    Parameters
    ----------
    path : Path or str
        The file: an object with the quantities by name, or a test vector, of which the expected values are taken.

    Raises
    ------
    ProblemError
        Naming the file, for anything else.
    """
    content = load(path)
    if not isinstance(content, Mapping):
        raise ProblemError(f"{path}: must hold an object with quantities by name, got {type(content).__name__}")
    if isinstance(content.get("quantities"), Mapping):
        content = content["quantities"]
    if isinstance(content.get("expected"), Mapping):
        content = {name: entry.get("value") if isinstance(entry, Mapping) else entry
                   for name, entry in content["expected"].items()}
    return dict(content)


@functools.lru_cache(maxsize=8)
def _reference_of(problem: Problem) -> Reference:
    """Return the reference of a problem, with all that earlier checks of the same one have computed."""
    return Reference(problem)


def _is_single(theirs: Mapping[str, Any]) -> bool:
    """Return whether anything came in single precision: what is made from that has no more digits."""
    numbers = _numbers(theirs)
    if numbers is not None and len(numbers) and max(map(_significant, numbers)) > 10:
        with np.errstate(over="ignore"):                    # single precision, printed as doubles
            return bool((np.array(numbers, dtype=np.float32) == np.array(numbers)).all())
    kinds = {str(getattr(a, "dtype", "")) for value in theirs.values()
             for a in (value if isinstance(value, (list, tuple)) else [value])}
    return not kinds.isdisjoint({"float32", "torch.float32"})


def _rounded(theirs: Mapping[str, Any]) -> float | None:
    """Return the error that numbers carry which were written with few digits, None where they were not."""
    numbers = _numbers(theirs)
    digits = max(map(_significant, numbers), default=0) if numbers is not None else 0
    return max(10.0**(1 - digits), 1e-10) if FEWEST <= digits < MOST else None


def _numbers(theirs: Mapping[str, Any]) -> list[float] | None:
    """Return all numbers that came as text does, in lists; None where there are arrays, which have all their digits."""
    found: list[float] = []
    todo: list[Any] = list(theirs.values())
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, (list, tuple)):
            todo += value
        elif isinstance(value, float):
            found.append(value)
        elif not isinstance(value, (int, str)) and value is not None:
            return None
    return found


def _significant(value: float) -> int:
    """Return the number of digits that a number is written with."""
    return len(repr(value).lower().split("e")[0].replace(".", "").replace("-", "").strip("0"))


def _digits(error: float) -> float:
    if not math.isfinite(error):
        return 0.0
    return min(max(0.0, -math.log10(error)), MOST_DIGITS) if error > 0 else MOST_DIGITS


def _lost(reference: Reference, theirs: Mapping[str, Any]) -> dict[str, str]:
    """Return why given quantities have no right value here, such as a step whose factors are singular undamped."""
    found = {}
    for name in theirs if isinstance(theirs, Mapping) else ():
        if name in QUANTITIES and missing(QUANTITIES[name], reference.problem) is None:
            try:
                reference[name]
            except ValueError as error:
                found[name] = str(error)
    return found


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
    # Whatever is far from the exact G looks like one sample: that is no evidence of anything.
    verdict = "as sampled" if judgement.right else "not as sampled"
    if judgement.right and judgement.samples == 1 and samples is None:
        verdict = "cannot tell"
    return judgement, Row("G_sampled", verdict, off, _digits(off),
                          f"as of {_samples(judgement.samples)}" if judgement.right else "")


def _samples(M: int) -> str:
    return f"{M:,} sample{'s' * (M != 1)}"


def _in_our_words(problem: Problem, theirs: Mapping[str, Any], dialect: str) -> dict[str, Any]:
    from .dialects import DIALECTS

    found: dict[str, Any] = check_known("dialect", dialect, DIALECTS).ours(theirs, problem)
    return found


def _table(report: Report) -> list[str]:
    rows = [("quantity", "verdict", "largest relative error", "right digits", "where")]
    for r in report.rows:
        rows.append((r.quantity, r.verdict, f"{r.error:.1e}" if math.isfinite(r.error) else "another shape",
                     f"{r.digits:.1f}", r.where or "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
            for row in rows]


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
        lines += ["these are the numbers of the transposed weights: was the problem made with the right --layout, and "
                  "are the weights the right way round?"]
    if report.explanations:
        simple = _simplest(report.explanations)
        lines.append("explained by:" if len(simple) == 1 else
                     f"{len(simple)} explanations fit equally well, and these numbers cannot tell them apart:")
        for e in simple[:SHOWN]:
            lines += _entry(e)
        if len(simple) > SHOWN:
            lines.append(f"  ... and {len(simple) - SHOWN} more (--json lists all)")
        more = len(report.explanations) - len(simple)
        if more:
            lines.append(f"({more} pair{'s' * (more > 1)} of mistakes would come to the same numbers)")
        if report.tells_apart:
            lines.append(f"give {report.tells_apart} too: it would tell some of them apart")
    elif not report.turned:
        lines.append("no one or two mistakes of the catalogue explain all of these numbers at once; one by one:")
        for name, found in (report.one_by_one or {}).items():
            if found and not found[0].mistakes:
                lines.append(f"  {name}: right, given your values of what it is made from")
            elif found:
                lines.append(f"  {name}, with the given quantities before it taken as they are:")
                for e in _simplest(found)[:SHOWN]:
                    lines += ["  " + line for line in _entry(e)]
            else:
                where = next(row.where for row in report.rows if row.quantity == name)
                lines.append(f"  {name}: not explained; the error sits in {where}")
    for name, s in (report.scales or {}).items():
        as_powers = f" = {s.text}" if s.text else ", which is no product of small powers of N, C, 2 and M"
        if s.text == f"{s.value:g}":                        # a power of 2 alone says nothing new
            as_powers = ""
        elif s.text and name in SCALABLE:
            as_powers += ", or a constant such as a learning rate"
        elif name in SCALABLE:
            as_powers += ": a constant such as a learning rate?"
        lines.append(f"{name} is {s.value:.6g} times the right value{as_powers}")
    return lines


def _entry(e: Explanation) -> list[str]:
    lines = []
    for i, m in enumerate(e.mistakes):
        lines += [f"  {'* ' if i == 0 else '+ '}{m.name}: {m.what}", f"    why it is wrong: {m.why}",
                  f"    remedy: {m.remedy}"]
    return lines


def _judgement_words(j: Judgement) -> list[str]:
    source = "as stated" if j.stated else "inferred from the spread"
    lines = [f"G_sampled, by simulation: {'such as' if j.right else 'NOT such as'} "
             f"{_samples(j.samples)} for each example give ({source}; statistic {j.statistic:.2f}, largest of the "
             f"simulated {j.limit:.2f})"]
    if not j.stated and j.samples == 1:
        lines.append("  anything far from the exact G looks like one sample: say how many there were (--samples M)")
    for m in j.explanations:
        lines += _entry(Explanation((m,)))
    if not j.right and not j.explanations:
        lines.append("  no scale of the catalogue and no wrong distribution explains it")
    noticed = ", ".join(f"{name} in {100 * p:.0f}%" for name, p in j.power.items())
    lines.append(f"  a right value is accused in less than 1 of 1000 cases; of mistakes would be noticed: {noticed}")
    return lines


def dumps(report: Report) -> str:
    """Return a report as JSON.

    Parameters
    ----------
    report : Report
        From `check`.
    """
    return json.dumps(report.plain(), indent=1)
