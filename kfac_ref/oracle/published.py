"""The published test vectors: problems with their expected values, which were computed without this package.

Their numbers never change under the same version; `SHA256SUMS` beside them is what a copy is checked with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import ProblemError, check_known
from .files import load
from .graph import Reference, coerced
from .problem import Problem

#: Where the files lie; any language reads them from there.
FOLDER = Path(__file__).resolve().parent.parent / "vectors" / "v1"


@dataclass(frozen=True, eq=False)
class Vector:
    """A problem with its expected values.

    Attributes
    ----------
    problem : Problem
        What defines them.
    expected : dict
        The quantities by name.
    tolerance : dict
        For each, the error that is allowed, and its kind: ``relative`` to the largest entry of an array, or
        ``absolute``.
    flags : tuple of str
        The mistakes of the catalogue that it detects.
    """

    problem: Problem
    expected: dict[str, Any]
    tolerance: dict[str, tuple[float, str]]
    flags: tuple[str, ...]


def names() -> list[str]:
    """Return the names of the published vectors."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def vector(name: str) -> Vector:
    """Read a published vector.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Vector
        Its problem and expected values.

    Raises
    ------
    ProblemError
        For an unknown name.

    Examples
    --------
    >>> from kfac_ref.oracle import check, vector
    >>> v = vector("categorical-tanh")
    >>> check(v.problem, v.expected).ok
    True
    """
    check_known("name", name, names())
    return of(load(FOLDER / f"{name}.json"), name)


def of(content: Any, name: str = "vector") -> Vector:
    """Make a vector from the content of its file.

    Parameters
    ----------
    content : dict
        A problem with ``expected``.
    name : str
        What errors call it.

    Raises
    ------
    ProblemError
        Naming the place, for anything malformed.
    """
    problem = Problem.of(content, name)
    if not isinstance(content.get("expected"), dict):
        raise ProblemError(f"{name}: expected is missing")
    entries = content["expected"]
    expected = coerced(Reference(problem), {q: entry["value"] for q, entry in entries.items()})
    return Vector(problem, expected, {q: (entry["tolerance"], entry["kind"]) for q, entry in entries.items()},
                  tuple(content.get("flags", ())))
