"""Compare values with the reference: a verdict per quantity, and a diagnosis of mismatches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .checks import ProblemError, check_counted, check_known, check_number
from .differences import VISIBLE, place, scale, shapes
from .files import gathered
from .forms import coerced
from .graph import QUANTITIES, Reference, missing
from .mistakes import CATALOGUE
from .precision import named
from .problem import Problem
from .report import Report, Row, of_samples
from .sampling import Judgement, judge
from .search import Diagnosis

#: A number in double precision has no more digits than this.
MOST_DIGITS = 15.95
#: How much processor time the search for explanations may take, and then that for each quantity alone.
SECONDS, SECONDS_EACH = 6.0, 1.5


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
    return judgement, Row("G_sampled", verdict, off, _digits(off), f"consistent with {of_samples(judgement.samples)}")
