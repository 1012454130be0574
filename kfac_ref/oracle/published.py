"""The published test vectors: problems with expected values that were computed without this package.

Their numbers never change under the same version; check a copy with `SHA256SUMS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import check_known
from .files import load
from .forms import coerced
from .graph import Reference
from .problem import Problem

#: The folder of the files, which other languages read too.
FOLDER = Path(__file__).resolve().parent.parent / "vectors" / "v1"


@dataclass(frozen=True, eq=False)
class Vector:
    """A problem with its expected values."""

    problem: Problem
    expected: dict[str, Any]
    #: Per quantity, the allowed error and its kind: ``relative`` to the largest entry of an array, or ``absolute``.
    tolerance: dict[str, tuple[float, str]]
    flags: tuple[str, ...]      # the names of the mistakes that it detects


def names() -> list[str]:
    """Return the names of the published vectors."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def vector(name: str) -> Vector:
    """Read a published vector, one of `names`.

    Examples
    --------
    >>> from kfac_ref.oracle import check, vector
    >>> v = vector("categorical-tanh")
    >>> check(v.problem, v.expected).ok
    True
    """
    check_known("name", name, names())
    content = load(FOLDER / f"{name}.json")
    problem = Problem.of(content, name)
    entries = content["expected"].items()
    expected = coerced(Reference(problem), {q: entry["value"] for q, entry in entries})
    tolerance = {q: (entry["tolerance"], entry["kind"]) for q, entry in entries}
    return Vector(problem, expected, tolerance, tuple(content.get("flags", ())))
