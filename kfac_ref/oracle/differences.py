"""Compare two values of a quantity: the relative error, a constant factor, and where they differ."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import Array

#: A test vector flags a mistake that changes a quantity by more than this relative error.
VISIBLE = 1e-6


def arrays(value: Any) -> tuple[Any, ...]:
    """Return the arrays of a quantity, which is a number, an array, or a tuple with one array per layer."""
    return value if isinstance(value, tuple) else (value,)


def shapes(value: Any) -> Any:
    """Return what tells the forms of two quantities apart: the shapes, and whether there is one per layer."""
    return isinstance(value, tuple), *map(np.shape, arrays(value))


def differ(right: Any, wrong: Any, tolerance: float = VISIBLE) -> bool:
    """Return whether two values differ in shape or by a larger relative error; None is unknown and counts as equal."""
    return right is not None and wrong is not None and not error(right, wrong) <= tolerance


def error(right: Any, theirs: Any) -> float:
    """Return the largest relative error over the arrays of a quantity; infinite if shapes, or places of NaN, differ."""
    if isinstance(right, tuple) != isinstance(theirs, tuple):
        return math.inf
    if isinstance(right, tuple):
        pairs = zip(right, theirs, strict=True)
        return max((error(a, b) for a, b in pairs), default=0.0) if len(right) == len(theirs) else math.inf
    a, b = np.asarray(right, dtype=float), np.asarray(theirs, dtype=float)
    nan = np.isnan(a)
    if a.shape != b.shape or not np.array_equal(nan, np.isnan(b)):
        return math.inf
    if nan.any():
        a, b = np.where(nan, 0, a), np.where(nan, 0, b)
    with np.errstate(over="ignore", invalid="ignore"):
        off = float(np.max(np.abs(a - b), initial=0))
        size = float(np.max(np.abs(a), initial=0))
    return off / size if size > 0 else (math.inf if off > 0 else 0.0)


@dataclass(frozen=True)
class Scale:
    """A constant factor, theirs over ours, and its text."""

    value: float
    text: str   # a product of powers of N, C, 2 and M, or "" if there is none with small exponents


def scale(right: Any, theirs: Any, counts: Mapping[str, int], tolerance: float) -> Scale | None:
    """Return the constant factor between two values of a quantity; `counts` has the values of N, C and M."""
    if not math.isfinite(error(right, theirs)):
        return None
    a, b = (np.concatenate([np.ravel(X) for X in arrays(value)]) for value in (right, theirs))
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known].astype(float), b[known].astype(float)
    c = float(a @ b / (a @ a)) if a.any() and b.any() else math.nan
    if not math.isfinite(c) or error(c * a, b) > tolerance or abs(c - 1) <= max(tolerance, 1e-3):
        return None
    return Scale(c, as_powers(c, counts, max(tolerance, 1e-12))[1])


def as_powers(c: float, counts: Mapping[str, int], tolerance: float) -> tuple[float, str]:
    """Return the simplest N^i C^j M^k 2^l near a factor, and its text; (c, "") if there is none."""
    values, texts = _powers(tuple((name, n) for name, n in counts.items() if n > 1))
    hits = np.flatnonzero(np.abs(values - abs(c)) <= 10 * tolerance * abs(c))
    if not len(hits):
        return c, ""
    return math.copysign(values[hits[0]], c), ("-" if c < 0 else "") + texts[hits[0]]


@functools.lru_cache(maxsize=8)
def _powers(counts: tuple[tuple[str, int], ...]) -> tuple[Array, list[str]]:
    """Return products of up to three powers of the counts and 2, the simplest first, and their texts."""
    names, bases = (*(name for name, _ in counts), "2"), (*(n for _, n in counts), 2)
    halves = [h / 2 for h in range(-6, 7)]
    found = [p for p in itertools.product(halves, repeat=len(bases)) if np.count_nonzero(p) <= 3]
    found.sort(key=lambda powers: sum(abs(p) + 2 * (p % 1 > 0) + 0.5 * (p != 0) for p in powers))
    texts = [" ".join(f"{name}^{p:g}" if p != 1 else name for name, p in zip(names, powers, strict=True) if p) or "1"
             for powers in found]
    return np.prod(np.array(bases, dtype=float)**np.array(found), axis=1), texts


def place(right: Any, theirs: Any, allowed: Any) -> str:
    """Describe where two values of a quantity differ.

    `allowed` has the largest error of each entry that counts as rounding, or is one number, relative to the largest
    entry of an array; None if the shapes differ.
    """
    if not isinstance(right, tuple):
        return _place(right, theirs, allowed)
    if not isinstance(theirs, tuple) or len(right) != len(theirs):
        return f"{len(theirs) if isinstance(theirs, tuple) else 1} arrays, expected {len(right)}"
    limits = allowed if isinstance(allowed, tuple) else [allowed] * len(right)
    found = [_place(a, b, t) for a, b, t in zip(right, theirs, limits, strict=True)]
    wrong = [f"layer {i}: {text}" for i, text in enumerate(found) if text]
    well = [str(i) for i, text in enumerate(found) if not text]
    return "; ".join(wrong) + (f" (right in layer {', '.join(well)})" if well and allowed is not None else "")


def _place(right: Any, theirs: Any, allowed: Any) -> str:
    a, b = np.asarray(right, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        turned = ", its transpose" if a.ndim == 2 and a.shape == b.shape[::-1] else ""
        return f"shape {b.shape}{turned}, expected {a.shape}"
    size = max(float(np.max(np.abs(a), initial=0)), 1e-300)
    if allowed is None or np.ndim(allowed) == 0:
        allowed = (allowed or 0.0) * size
    tolerance = max(float(np.max(allowed, initial=0)) / size, 1e-15)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(a - b) <= allowed)
    wrong &= ~(np.isnan(a) & np.isnan(b))
    if not wrong.any():
        return ""
    if a.ndim == 0:
        return "the number"
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.abs(a - a.T).max() <= tolerance * size:
        if np.ptp(b, axis=0).max() == 0 and len(b) > 1:
            return "all rows are the same"
        if np.abs(b - b.T).max() > 100 * tolerance * max(float(np.abs(b).max()), 1e-300):
            half = "zero above the diagonal" if not np.triu(b, 1).any() else \
                "zero below the diagonal" if not np.tril(b, -1).any() else "not symmetric"
            return f"{half}, {int(wrong.sum())} of {wrong.size} entries wrong"
    if wrong.all():
        return "all entries"
    if a.ndim == 1:
        return f"entries {_listed(np.flatnonzero(wrong))}"
    if a.ndim == 2:
        square = a.shape[0] == a.shape[1]
        if square and not wrong[~np.eye(len(a), dtype=bool)].any():
            return "only the diagonal"
        if square and not wrong[np.eye(len(a), dtype=bool)].any():
            return "all but the diagonal" if wrong.sum() == a.size - len(a) else "entries off the diagonal"
        columns, rows = np.flatnonzero(wrong.any(axis=0)), np.flatnonzero(wrong.any(axis=1))
        last = a.shape[1] - 1
        if square and not wrong[:-1, :-1].any():
            return "only the last row and column (the bias, if this is A)"
        if columns.tolist() == [last]:
            return "only the last column (the bias)"
        if last not in columns and len(columns) == last and len(rows) == a.shape[0]:
            return "all columns but the last (the bias is right)"
        if len(columns) <= a.shape[1] // 2:
            return f"columns {_listed(columns)}"
        if len(rows) <= a.shape[0] // 2:
            return f"rows {_listed(rows)}"
    return f"{int(wrong.sum())} of {wrong.size} entries"


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
