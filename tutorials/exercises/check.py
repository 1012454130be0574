"""Grade a file of answers: ``python check.py FILE``.

Prints a table, and for each wrong answer which known mistake gives exactly its numbers, why that is wrong, and a hint.
Exit status: 0 all right, 1 something wrong or not yet done, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
try:
    import asked
except ModuleNotFoundError:
    sys.path.insert(1, str(HERE.parents[1]))                # in a clone the package lies beside
    try:
        import asked
    except ModuleNotFoundError as missing:
        sys.exit(print(f"{missing.name} is not installed: see README.md", file=sys.stderr) or 2)

import grading  # noqa: E402
import runner  # noqa: E402
import source  # noqa: E402

RIGHT, WRONG, FAILED, BLANK, MISSING = "right", "wrong", "failed", "not yet done", "not there"
#: A larger file is no file of answers.
LARGEST = 1_000_000
#: So many mistakes that fit equally well are written out.
SHOWN = 3
#: So much of what is wrong stands in the table; the rest stands below it.
WIDTH = 76


class BadInput(Exception):
    """What the user gave is no file of answers, or no sense."""


@dataclass(frozen=True)
class Row:
    """What is said of one exercise."""

    exercise: source.Exercise
    verdict: str
    what: str = ""
    explanations: tuple[grading.Explanation, ...] = ()

    @property
    def points(self) -> int:
        """The points earned: all or none."""
        return self.exercise.points if self.verdict == RIGHT else 0


def grade(path: Path, text: str, only: Sequence[str] = (), seconds: float = 5.0) -> tuple[list[Row], runner.Outcome]:
    """Grade a file.

    Parameters
    ----------
    path : Path
        The file, for messages.
    text : str
        Its content.
    only : sequence of str
        Names of exercises; all where empty.
    seconds : float
        What each function may take.

    Returns
    -------
    rows : list of Row
        One an exercise, in the order of the course.
    outcome : runner.Outcome
        What came of running the file.
    """
    exercises = [e for e in source.read() if not only or e.name in only]
    calls = {e.name: [call for part in asked.PARTS[e.name] for call in part.asked()] for e in exercises}
    outcome = runner.run(path, text, calls, seconds)
    return [_row(e, outcome.reports.get(e.name, {"missing": True}), len(calls[e.name])) for e in exercises], outcome


def _row(e: source.Exercise, report: dict[str, Any], calls: int) -> Row:
    if "blank" in report:
        return Row(e, BLANK)
    if "missing" in report:
        return Row(e, MISSING, f"there is no function {e.name}")
    if "raised" in report:
        return Row(e, FAILED, report["raised"])
    if "unfit" in report:
        return Row(e, WRONG, f"returns {report['unfit']}")
    if "mutated" in report:
        names = e.signature.partition("(")[2].partition(")")[0].split(", ")
        return Row(e, WRONG, f"changes its argument {names[report['mutated'][0]]}: work on a copy")
    try:
        results = [runner.decode(result) for result in report["results"]]
        assert len(results) == calls
    except Exception:                                       # not written by our child
        return Row(e, FAILED, "wrote into the grader's channel")
    try:
        verdict = grading.judge(asked.PARTS[e.name], results)
    except Exception as error:                              # the other exercises must be graded all the same
        return Row(e, WRONG, f"cannot be compared ({type(error).__name__}: {error})")
    if verdict.right:
        return Row(e, RIGHT)
    found = likely(verdict.explanations)
    return Row(e, WRONG, verdict.words or " / or: ".join(x.name for x in found[:2]) + " / ..." * (len(found) > 2),
               verdict.explanations)


def likely(explanations: Sequence[grading.Explanation]) -> Sequence[grading.Explanation]:
    """Return those that lie in the exercise itself; where there is none, all."""
    return [e for e in explanations if not e.as_if] or explanations


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table and of the sum."""
    lines, section = [f"{'exercise':<22}{'verdict':<14}{'points':<8}what is wrong"], ""
    for row in rows:
        if row.exercise.section != section:
            section = row.exercise.section
            lines.append(f"-- {section}")
        points = f"{row.points}/{row.exercise.points}"
        lines.append(f"{row.exercise.name:<22}{row.verdict:<14}{points:<8}{_cut(row.what)}".rstrip())
    counts = [(v, sum(r.verdict == v for r in rows)) for v in (RIGHT, WRONG, FAILED, BLANK, MISSING)]
    total = f"{sum(r.points for r in rows)} of {sum(r.exercise.points for r in rows)} points: "
    return [*lines, "", total + ", ".join(f"{n} {verdict}" for verdict, n in counts if n)]


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[:WIDTH - 3] + "..."


def hints_of(row: Row, hints: int) -> tuple[str, ...]:
    """Return the hints that are shown: as many as were asked for, and one where an answer is wrong."""
    return row.exercise.hints[:max(hints, 1 if row.verdict == WRONG else 0)]


def details(row: Row, hints: int) -> list[str]:
    """Return what is said below the table of an exercise that is not right."""
    lines, found = [], likely(row.explanations)
    if len(found) > 1:
        lines.append("  These numbers cannot tell the following apart; which of them was it?")
    for explanation in found[:SHOWN]:
        for m in explanation.mistakes:
            lines += _wrapped(f"{m.name}: {m.what}.", "  "), _wrapped(f"why it is wrong: {m.why}.", "    ")
            lines += [_wrapped(f"remedy: {m.remedy}.", "    ")] if hints > 1 else []
    if found and found[0].as_if:
        lines.append("  (The arguments that you get are right: it is what you made of them that has this mistake.)")
    given = hints_of(row, hints)
    lines += [_wrapped(f"hint {i}: {hint}", "  ") for i, hint in enumerate(given, 1)]
    more = len(row.exercise.hints) - len(given)
    if given and more:
        lines.append(f"  ({more} more: --hint {len(given) + 1} --only {row.exercise.name})")
    said = f": {row.what}" if row.what and not row.explanations else ""
    return [_wrapped(f"{row.exercise.name}, {row.verdict}{said}", ""), *lines] if lines or _cut(said) != said else []


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=f"{indent}  ")


def plain(path: Path, rows: Sequence[Row], outcome: runner.Outcome, hints: int) -> dict[str, Any]:
    """Return the same for machines."""
    return {"file": str(path), "ok": all(r.verdict == RIGHT for r in rows), "points": sum(r.points for r in rows),
            "of": sum(r.exercise.points for r in rows), "notes": outcome.notes, "printed": outcome.printed,
            "exercises": [{
                "name": r.exercise.name, "tutorial": r.exercise.tutorial, "verdict": r.verdict, "points": r.points,
                "of": r.exercise.points, "what": r.what,
                "hints": [] if r.verdict == RIGHT else list(hints_of(r, hints)),
                "explanations": [{"as_if": x.as_if, "mistakes": [
                    {"name": m.name, "what": m.what, "why": m.why} for m in x.mistakes]}
                    for x in r.explanations]} for r in rows]}


def main(argv: Sequence[str] | None = None) -> int:
    """Grade the file that is named, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="check.py", description="Grade a file of answers to the exercises.")
    parser.add_argument("file", type=Path, help="written by new.py and filled in")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="grade these exercises alone")
    parser.add_argument("--hint", type=int, default=0, metavar="N", help="show the first N hints to what is not right")
    parser.add_argument("--json", action="store_true", help="print JSON, for a gradebook")
    parser.add_argument("--seconds", type=float, default=5.0, help="what one exercise may take (default 5)")
    args = parser.parse_args(argv)
    try:
        text = _read(args.file, args.only)
        if not 0 < args.seconds < 1e6:
            raise BadInput(f"--seconds must be a positive number, got {args.seconds:g}")
        rows, outcome = grade(args.file.resolve(), text, args.only, args.seconds)
    except (OSError, BadInput, runner.CannotRun) as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    report = json.dumps(plain(args.file, rows, outcome, args.hint), indent=1) if args.json else "\n".join(
        _report(rows, outcome, args.hint))
    try:
        print(report, flush=True)
    except BrokenPipeError:                                 # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if all(row.verdict == RIGHT for row in rows) else 1


def _report(rows: Sequence[Row], outcome: runner.Outcome, hints: int) -> list[str]:
    lines = table(rows)
    for note in outcome.notes[:10]:
        lines.append(f"outside of the functions: {note}")
    for row in rows:
        more = details(row, hints) if row.verdict != RIGHT else []
        lines += ["", *more] if more else []
    if outcome.printed.strip():
        lines += ["", "the file printed (cut):", *("  " + line[:118] for line in outcome.printed.splitlines()[:10])]
    return lines


def _read(path: Path, only: Sequence[str]) -> str:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; new.py writes one")
    if path.stat().st_size > LARGEST:
        raise BadInput(f"{path}: too large for a file of answers ({path.stat().st_size:,} bytes)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: is not text in UTF-8") from None
    known = [e.name for e in source.read()]
    for name in only:
        if name not in known:
            raise BadInput(f"--only {name}: there is no such exercise; they are {', '.join(known)}")
    return text


if __name__ == "__main__":
    sys.exit(main())
