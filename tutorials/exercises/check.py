"""Grade a file of answers: ``python check.py FILE``.

Prints a table, and for each wrong answer the known mistakes that give exactly its numbers, the reasons, and a hint.
Exit status: 0 if everything is right, 1 if something is wrong or not yet done, 2 for a file that cannot be graded.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))           # the package, in a clone where it is not installed
try:
    import asked
    import grading
    import runner
    import source
except ModuleNotFoundError as error:
    print(f"{error.name} is not installed: see README.md", file=sys.stderr)
    sys.exit(2)

RIGHT, WRONG, FAILED, BLANK, MISSING = "right", "wrong", "failed", "not yet done", "missing"
#: How many mistakes that fit equally well are explained.
SHOWN = 3
#: How many characters of a message fit into the table; the whole message is then below it.
WIDTH = 76


@dataclass(frozen=True)
class Row:
    """The verdict on one exercise."""

    exercise: source.Exercise
    verdict: str
    what: str = ""
    explanations: tuple[grading.Explanation, ...] = ()

    @property
    def points(self) -> int:
        """The points earned: all or none."""
        return self.exercise.points if self.verdict == RIGHT else 0

    def hints(self, number: int) -> tuple[str, ...]:
        """Return the hints to show: none for a right answer, at least one for a wrong one."""
        return () if self.verdict == RIGHT else self.exercise.hints[:max(number, self.verdict == WRONG)]


def grade(path: Path, text: str, only: Sequence[str] = (), seconds: float = 5.0) -> tuple[list[Row], str]:
    """Grade the content of a file; return a row per exercise (of `only`, if not empty), and what the file printed."""
    exercises = [e for e in source.read() if not only or e.name in only]
    calls = {e.name: [call for part in asked.PARTS[e.name] for call in part.asked()] for e in exercises}
    reports, printed = runner.run(path, text, calls, seconds)
    return [_row(e, **reports[e.name]) for e in exercises], printed


def _row(e: source.Exercise, results: Sequence[Any] = (), blank: bool = False, missing: bool = False,
         raised: str = "", unfit: str = "", changed: int | None = None) -> Row:
    if blank:
        return Row(e, BLANK)
    if missing:
        return Row(e, MISSING, f"there is no function {e.name}")
    if raised:
        return Row(e, FAILED, raised)
    if unfit:
        return Row(e, WRONG, f"returns {unfit}")
    if changed is not None:
        return Row(e, WRONG, f"changes its argument {e.arguments[changed]}: work on a copy")
    verdict = grading.judge(asked.PARTS[e.name], results)
    if verdict.right:
        return Row(e, RIGHT)
    names = [x.name for x in likely(verdict.explanations)]
    words = verdict.words or " / or: ".join(names[:2]) + " / ..." * (len(names) > 2)
    return Row(e, WRONG, words, verdict.explanations)


def likely(explanations: Sequence[grading.Explanation]) -> Sequence[grading.Explanation]:
    """Return the mistakes that are made in the exercise itself; if there are none, all."""
    return [e for e in explanations if not e.as_if] or explanations


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table, and a line with the sum."""
    lines, section = [f"{'exercise':<22}{'verdict':<14}{'points':<8}what is wrong"], ""
    for row in rows:
        if row.exercise.section != section:
            section = row.exercise.section
            lines.append(f"-- {section}")
        points = f"{row.points}/{row.exercise.points}"
        what = row.what if len(row.what) <= WIDTH else row.what[:WIDTH - 3] + "..."
        lines.append(f"{row.exercise.name:<22}{row.verdict:<14}{points:<8}{what}".rstrip())
    counts = [(v, sum(r.verdict == v for r in rows)) for v in (RIGHT, WRONG, FAILED, BLANK, MISSING)]
    total = f"{sum(r.points for r in rows)} of {sum(r.exercise.points for r in rows)} points: "
    return [*lines, "", total + ", ".join(f"{n} {verdict}" for verdict, n in counts if n)]


def details(row: Row, number: int) -> list[str]:
    """Return the lines below the table on one exercise, with that many hints."""
    lines, mistakes = [], likely(row.explanations)
    if len(mistakes) > 1:
        lines.append("  Each of these gives your numbers; which one was it?")
    for m in (m for explanation in mistakes[:SHOWN] for m in explanation.mistakes):
        lines += [_wrapped(f"{m.name}: {m.what}.", "  "), _wrapped(f"why it is wrong: {m.why}.", "    ")]
        lines += [_wrapped(f"remedy: {m.remedy}.", "    ")] if number > 1 else []
    if mistakes and mistakes[0].as_if:
        lines.append("  (Your arguments are right: the mistake is in what you compute from them.)")
    hints = row.hints(number)
    lines += [_wrapped(f"hint {i}: {hint}", "  ") for i, hint in enumerate(hints, 1)]
    more = len(row.exercise.hints) - len(hints)
    if hints and more:
        lines.append(f"  ({more} more: --hint {len(hints) + 1} --only {row.exercise.name})")
    what = f": {row.what}" if row.what and not row.explanations else ""
    head = _wrapped(f"{row.exercise.name}, {row.verdict}{what}", "")
    return ["", head, *lines] if lines or len(row.what) > WIDTH else []


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=f"{indent}  ")


def report(rows: Sequence[Row], printed: str, number: int) -> str:
    """Return the report as text, with that many hints per exercise."""
    lines = table(rows) + [line for row in rows for line in details(row, number)]
    if printed.strip():
        lines += ["", "the file printed (cut):", *(f"  {line[:118]}" for line in printed.splitlines()[:10])]
    return "\n".join(lines)


def plain(path: Path, rows: Sequence[Row], printed: str, number: int) -> dict[str, Any]:
    """Return the report as JSON."""
    return {"file": str(path), "ok": all(r.verdict == RIGHT for r in rows), "points": sum(r.points for r in rows),
            "of": sum(r.exercise.points for r in rows), "printed": printed[:2000], "exercises": [{
                "name": r.exercise.name, "tutorial": r.exercise.tutorial, "verdict": r.verdict, "points": r.points,
                "of": r.exercise.points, "what": r.what, "hints": r.hints(number),
                "explanations": [{"as_if": x.as_if, "mistakes": [
                    {"name": m.name, "what": m.what, "why": m.why} for m in x.mistakes]}
                    for x in r.explanations]} for r in rows]}


def main(argv: Sequence[str] | None = None) -> int:
    """Grade the file on the command line, print the report, and return the exit status."""
    parser = argparse.ArgumentParser(prog="check.py", description="Grade a file of answers to the exercises.")
    parser.add_argument("file", type=Path, help="written by new.py and filled in")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="grade only these exercises",
                        choices=[e.name for e in source.read()])
    parser.add_argument("--hint", type=int, default=0, metavar="N", help="show the first N hints to what is not right")
    parser.add_argument("--json", action="store_true", help="print JSON, for a gradebook")
    parser.add_argument("--seconds", type=float, default=5.0, help="time limit per exercise (default: 5)")
    args = parser.parse_args(argv)
    if not 0 < args.seconds < 1e6:
        parser.error("--seconds must be positive and below a million")
    try:
        rows, printed = grade(args.file, args.file.read_text(encoding="utf-8-sig"), args.only, args.seconds)
    except (OSError, UnicodeDecodeError, runner.ImportFailure) as error:
        print(f"check.py: {args.file}: {getattr(error, 'strerror', error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(plain(args.file, rows, printed, args.hint), indent=1) if args.json else
          report(rows, printed, args.hint))
    return 0 if all(row.verdict == RIGHT for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
