"""Read the exercises from `exercises.py`, and write files without what a student must not see.

Needs only the standard library.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "exercises.py"

HEAD = '''"""Exercises on K-FAC. Replace each `...` by an answer, in any order, and grade the file:

    python {check} {name}

A blank answer counts as not yet done. `--hint 1` shows the first hint of each exercise, `--only NAME` grades one.
Conventions: examples are rows; the bias is the last column of the weights; vec stacks columns. Use NumPy.
"""

import numpy as np
'''


@dataclass(frozen=True)
class Exercise:
    """One exercise: its question, hints and solution, as in the source."""

    name: str
    tutorial: int
    section: str
    points: int
    signature: str
    question: str
    hints: tuple[str, ...]
    body: str

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments."""
        return self.signature.partition("(")[2].partition(")")[0].split(", ")


def read(path: Path = SOURCE) -> list[Exercise]:
    """Return the exercises of a source, in their order."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    sections = [(n, line[4:].strip()) for n, line in enumerate(lines, 1) if line.startswith("# %%")]
    exercises = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            section = [title for n, title in sections if n < node.lineno][-1]
            question, hints = _parts(ast.get_docstring(node) or "")
            points = re.search(r"\((\d+) points?\)", question)
            assert points, node.name
            body = "\n".join(lines[node.body[0].end_lineno:node.end_lineno])
            exercises.append(Exercise(node.name, int(section.split(".")[0]), section, int(points[1]),
                                      lines[node.lineno - 1], question, hints, body))
    return exercises


def _parts(docstring: str) -> tuple[str, tuple[str, ...]]:
    question, _, hints = docstring.partition("\n\nHints:\n")
    each = re.split(r"^\d+\. ", hints, flags=re.MULTILINE)[1:]
    return question, tuple(" ".join(hint.split()) for hint in each)


def blank_file(name: str, check: str = "check.py") -> str:
    """Return the text of a student's file: every question, no hint, no solution."""
    parts, section = [HEAD.format(name=name, check=check)], None
    for e in read():
        if e.section != section:
            section = e.section
            parts.append(f"\n# {'-' * 10} Tutorial {section} {'-' * 10}\n")
        parts.append(f"\n{e.signature}\n{_docstring(e.question)}\n    ...\n")
    return "\n".join(parts)


def without_solutions() -> str:
    """Return the text of the source with `...` in place of each solution; questions and hints stay."""
    parts, section = ['"""The questions and hints of the exercises."""\n'], None
    for e in read():
        if e.section != section:
            section = e.section
            parts.append(f"\n# %% {section}\n")
        hints = "".join(f"\n{i}. {hint}" for i, hint in enumerate(e.hints, 1))
        whole = _docstring(f"{e.question}\n\nHints:{hints}")
        parts.append(f"\n{e.signature}\n{whole}\n    ...\n")
    return "\n".join(parts)


def _docstring(text: str) -> str:
    lines = text.splitlines()
    return "\n".join([f'    """{lines[0]}', *(f"    {line}" if line else "" for line in lines[1:]), '    """'])
