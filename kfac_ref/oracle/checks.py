"""Validate the content of files and arrays. Each error message begins with `place`, the name of the value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..checks import Array
from ..likelihoods import Bernoulli, Categorical, Likelihood

#: Larger files and arrays are rejected before anything is allocated.
MAX_BYTES = 2**27


class ProblemError(ValueError):
    """A file or array is malformed; the message begins with the place."""


def read_array(place: str, value: Any) -> np.ndarray[Any, Any]:
    """Return an array from ``{"shape", "data"}``, nested lists, or an array; null is NaN."""
    if isinstance(value, Mapping):
        check_keys(place, value, ("shape", "data"), ())
        shape = [check_counted(f"{place}.shape", n, 0) for n in check_listed(f"{place}.shape", value["shape"])]
        data = value["data"]
        if not isinstance(data, list):
            raise ProblemError(f"{place}.data must be a flat list of numbers, got {type(data).__name__}")
        if math.prod(shape) != len(data):
            raise ProblemError(f"{place}.data must hold {math.prod(shape)} numbers for the shape {shape}, got "
                               f"{len(data)}")
        return _numbers(f"{place}.data", data).reshape(shape)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise ProblemError(f"{place} must hold real numbers, got dtype {value.dtype}")
        return value
    if isinstance(value, (list, tuple)):
        shape = []
        row: Any = value
        while isinstance(row, (list, tuple)) and len(shape) < 8:
            shape.append(len(row))
            row = row[0] if row else None
        return _numbers(place, _flat(place, value, shape)).reshape(shape)
    if hasattr(value, "__array__"):                         # an array of another library
        try:
            return read_array(place, np.asarray(value))
        except (TypeError, RuntimeError) as error:          # on another device, or of another type
            raise ProblemError(f"{place} cannot be turned into an array: {str(error)[:200]}") from None
    raise ProblemError(f"{place} must be an array, got {type(value).__name__}")


def _flat(place: str, value: Any, shape: list[int]) -> list[Any]:
    """Return the entries of nested lists of this shape."""
    if not isinstance(value, (list, tuple)) or len(value) != shape[0]:
        raise ProblemError(f"{place} must be a rectangular array, got lists of different lengths")
    if len(shape) > 1:
        return [item for row in value for item in _flat(place, row, shape[1:])]
    if not {list, tuple}.isdisjoint(map(type, value)):
        raise ProblemError(f"{place} must be a rectangular array, got lists of different depths")
    return list(value)


def _numbers(place: str, data: list[Any]) -> np.ndarray[Any, Any]:
    kinds = set(map(type, data))
    if not kinds <= {int, float, type(None)}:
        for i, v in enumerate(data):
            if v is not None and (isinstance(v, bool) or not isinstance(v, (int, float, np.integer, np.floating))):
                raise ProblemError(f"{place}[{i}] must be a number, got {json.dumps(v, default=repr)[:40]}")
    try:
        if kinds == {int} and max(map(abs, data)) < 2**53:
            return np.array(data, dtype=np.int64)
        return np.array(data, dtype=np.float64)             # None becomes NaN
    except OverflowError:
        raise ProblemError(f"{place} holds an integer beyond the range of float64") from None


def near(name: Any, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" if one of the names is similar to the given one, else ""."""
    import difflib  # needed only for an error

    names = list(names)
    for form in (str, str.lower):
        known = {form(n): n for n in names}
        if isinstance(name, str) and (found := difflib.get_close_matches(form(name[:60]), known, 1)):
            return f"; did you mean {known[found[0]]}?"
    return ""


def check_keys(place: str, value: Any, required: Sequence[str], optional: Sequence[str]) -> None:
    """Raise if a value is not an object, lacks a required name, or has an unknown one."""
    if not isinstance(value, Mapping):
        raise ProblemError(f"{place} must be an object with {', '.join(required)}, got {type(value).__name__}")
    for name in required:
        if name not in value:
            raise ProblemError(f"{place}: {name} is missing")
    known = (*required, *optional)
    for name in value:
        if name not in known:
            raise ProblemError(f"{place}: {name!r:.60} is unknown (known: {', '.join(known)}){near(name, known)}")


def check_listed(place: str, value: Any) -> list[Any]:
    """Return a list of the entries of a sequence or array."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise ProblemError(f"{place} must be a list, got {type(value).__name__}")
    return list(value)


def check_known(place: str, value: Any, entries: Any, elsewhere: Mapping[str, str] | None = None) -> Any:
    """Return the entry with this name; the error lists the known names.

    `elsewhere` has words about the names of other libraries, by their beginning: "batchnorm" is that of nn.BatchNorm1d.
    """
    if not isinstance(value, str) or value not in entries:
        bare = re.sub(r"[^a-z0-9]", "", str(value)[:60].lower().split(".")[-1])
        about = [words for name, words in (elsewhere or {}).items() if bare.startswith(name)]
        hint = f": {about[0]}" if about else near(value, entries)
        raise ProblemError(f"{place} must be one of {', '.join(entries)}; got {value!r:.60}{hint}")
    return entries[value] if isinstance(entries, Mapping) else value


def check_number(place: str, value: Any, *bounds: float, check: Any = checks.number, **options: bool) -> Any:
    """Return the result of a function of `kfac_ref.checks` for a number."""
    if isinstance(value, (bool, str)):
        raise ProblemError(f"{place} must be a number, got {value!r:.60}")
    return _checked(check, place, value, *bounds, **options)


def check_counted(place: str, value: Any, low: int = 1) -> int:
    """Return an integer from `low` to MAX_BYTES."""
    count: int = check_number(place, value, low, check=checks.count)
    if count > MAX_BYTES:
        raise ProblemError(f"{place} must be at most {MAX_BYTES:,}" + (f", got {count:.3g}" if count < 1e300 else ""))
    return count


def check_real(place: str, value: Any, shape: tuple[int | None, ...]) -> Array:
    """Return a finite float64 array of this shape, in which None is any length except 0."""
    found: Array = _checked(checks.real_array, place, read_array(place, value), shape, np.float64)
    return found


def check_direction(place: str, value: Any, shapes: Sequence[tuple[int, int]]) -> tuple[Array, ...]:
    """Return one array per layer, of these shapes."""
    arrays = check_listed(place, value)
    if len(arrays) != len(shapes):
        raise ProblemError(f"{place} must hold one array per layer: expected {len(shapes)}, got {len(arrays)}")
    return tuple(check_real(f"{place}[{i}]", a, shape) for i, (a, shape) in enumerate(zip(arrays, shapes, strict=True)))


def check_targets(place: str, value: Any, likelihood: Likelihood, lead: tuple[int | None, ...], C: int) -> Any:
    """Return labels or targets that fit the likelihood, with these leading dimensions."""
    y = read_array(place, value)
    if isinstance(likelihood, Categorical):
        if y.ndim != len(lead) or any(d not in (None, n) for d, n in zip(lead, y.shape, strict=True)):
            text = ", ".join("any" if n is None else str(n) for n in lead)
            raise ProblemError(f"{place} must have shape ({text}), got {y.shape}")
        shape = y.shape[len(lead) - 1:]
        return _checked(checks.labels, place, y, C, shape)
    y = check_real(place, y, (*lead, C))
    interval = (0, 1) if isinstance(likelihood, Bernoulli) else None
    return _checked(checks.targets, place, y, y.shape, np.float64, interval)


def check_rows(place: str, value: Any, count: int) -> Any:
    """Return row numbers below `count`."""
    rows = read_array(place, value)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise ProblemError(f"{place} must be a list of row numbers")
    if rows.min() < 0 or rows.max() >= count:
        raise ProblemError(f"{place} must lie in 0..{count - 1}, got {rows.min()}..{rows.max()}")
    return rows.astype(np.intp)


def _checked(check: Any, *values: Any, **options: bool) -> Any:
    """Return the result of a function of `kfac_ref.checks`; its ValueError becomes a ProblemError."""
    try:
        return check(*values, **options)
    except (ValueError, OverflowError) as error:
        raise ProblemError(str(error)) from None
