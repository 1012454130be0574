"""The files of the oracle: plain content from JSON or npz and back, and checks that name the place of what is wrong.

An array is ``{"shape": [7, 3], "data": [flat, row-major]}``; nested lists are taken too. An npz holds the same content
with its arrays apart, and is read without pickles, its sizes first.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..checks import Array
from ..likelihoods import Bernoulli, Categorical, Likelihood

#: Files and arrays beyond these sizes are refused before anything is allocated.
MAX_BYTES = 2**28


class ProblemError(ValueError):
    """What is raised for a file or an array that is malformed; the message begins with the place."""


def plain(value: Any) -> Any:
    """Return the same content in what JSON knows, arrays as shape and data.

    Parameters
    ----------
    value : Any
        Numbers, strings, arrays, and lists and mappings of them; NaN becomes null.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        return {"shape": list(value.shape), "data": [plain(item) for item in value.ravel().tolist()]}
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.item())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(content: Mapping[str, Any]) -> str:
    """Return the JSON of a problem or a vector, one field a line.

    Parameters
    ----------
    content : dict
        Plain data.
    """
    lines = []
    for name, value in content.items():
        if isinstance(value, dict) and name in ("expected", "trajectory"):
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(path: Path | str) -> Any:
    """Return the content of a JSON or npz file as plain data; arrays of an npz stay arrays.

    Parameters
    ----------
    path : Path or str
        The file.

    Raises
    ------
    ProblemError
        Where it is not there, too large, or no such file; what is malformed inside is for the caller to see.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ProblemError(f"{path}: {size:,} bytes are more than the {MAX_BYTES:,} that are read")
        data = path.read_bytes()
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not data.strip():
        raise ProblemError(f"{path}: is empty")
    try:
        return _of_npz(data) if data[:2] == b"PK" else parse(data)
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def parse(text: bytes | str) -> Any:
    """Return the content of a JSON text in which no name occurs twice and every number is finite.

    Parameters
    ----------
    text : bytes or str
        UTF-8.

    Raises
    ------
    ProblemError
        For anything else.
    """
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object, or refuse a name that occurs twice in it.

        Parameters
        ----------
        pairs : list of (str, Any)
            As they stand in the text.
        """
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ProblemError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
        return found

    def refuse(name: str) -> Any:
        """Refuse NaN and infinity, which JSON does not have.

        Parameters
        ----------
        name : str
            What stands in the text.
        """
        raise ProblemError(f"{name} is no number of JSON; write null for what was not measured")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except ProblemError:
        raise
    except (ValueError, RecursionError) as error:           # a bad encoding or syntax, an endless nesting or integer
        raise ProblemError(f"is no JSON: {str(error)[:200]}") from None


def read_array(place: str, value: Any) -> np.ndarray[Any, Any]:
    """Return an array from ``{"shape", "data"}``, nested lists, or an array; null stands for NaN.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file.

    Raises
    ------
    ProblemError
        For anything else.
    """
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
    if isinstance(value, list):
        shape = []
        row: Any = value
        while isinstance(row, list) and len(shape) < 8:
            shape.append(len(row))
            row = row[0] if row else None
        return _numbers(place, _flat(place, value, shape)).reshape(shape)
    if hasattr(value, "__array__"):                         # another library's array
        return read_array(place, np.asarray(value))
    raise ProblemError(f"{place} must be an array, got {type(value).__name__}")


def _flat(place: str, value: Any, shape: list[int]) -> list[Any]:
    if not shape:
        if isinstance(value, list):
            raise ProblemError(f"{place} must be a rectangular array, got lists of different depths")
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        raise ProblemError(f"{place} must be a rectangular array, got lists of different lengths")
    return [item for row in value for item in _flat(place, row, shape[1:])]


def _numbers(place: str, data: list[Any]) -> np.ndarray[Any, Any]:
    if all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**53 for v in data) and data:
        return np.array(data, dtype=np.int64)
    for i, v in enumerate(data):
        if v is not None and (isinstance(v, bool) or not isinstance(v, (int, float, np.integer, np.floating))):
            raise ProblemError(f"{place}[{i}] must be a number, got {json.dumps(v, default=repr)[:40]}")
    try:
        return np.array([math.nan if v is None else float(v) for v in data])
    except OverflowError:
        raise ProblemError(f"{place} holds an integer beyond the range of float64") from None


def _of_npz(data: bytes) -> Any:
    """Read an npz without pickles, its sizes first."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = 0
            for info in archive.infolist():
                total += info.file_size
                if total > MAX_BYTES:
                    raise ProblemError(f"its arrays take more than the {MAX_BYTES:,} bytes that are read")
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    head = np.lib.format.read_array_header_1_0(member) if version == (1, 0) else \
                        np.lib.format.read_array_header_2_0(member)
                if math.prod(head[0]) * head[2].itemsize > info.file_size:
                    raise ProblemError(f"{info.filename} declares shape {head[0]}, more than it holds")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ProblemError:
        raise
    except Exception as error:              # zipfile, zlib and numpy raise many kinds for damaged files
        raise ProblemError(f"is no npz file that can be read: {type(error).__name__}: {str(error)[:200]}") from None
    if "problem" not in arrays:
        return _listed_arrays(arrays)
    if arrays["problem"].dtype.kind != "U" or arrays["problem"].ndim:
        raise ProblemError("problem must be the JSON text of the rest, in which arrays are named")
    return put_arrays(parse(str(arrays.pop("problem"))), arrays)


def _listed_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gather ``A_0, A_1, ...`` into lists; numbers and other arrays stay as they are."""
    found: dict[str, Any] = {}
    for name in sorted(arrays, key=lambda n: (len(n), n)):
        stem, _, number = name.rpartition("_")
        if not stem or not number.isdecimal():
            found[name] = arrays[name] if arrays[name].ndim else arrays[name].item()
        elif int(number) == len(found.setdefault(stem, [])):
            found[stem].append(arrays[name])
        else:
            raise ProblemError(f"{name} must follow {stem}_{len(found[stem]) - 1}: layers are counted from 0")
    return found


def take_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    """Return content with a name in place of each array, which goes into `arrays`.

    Parameters
    ----------
    value : Any
        From a file or a caller.
    arrays : dict
        By name.
    """
    if isinstance(value, dict) and set(value) == {"shape", "data"}:
        name = f"a{len(arrays)}"
        arrays[name] = read_array(name, value)
        return {"array": name}
    if isinstance(value, dict):
        return {key: take_arrays(item, arrays) for key, item in value.items()}
    return [take_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def put_arrays(value: Any, arrays: Mapping[str, Any]) -> Any:
    """Return content with its arrays in place of their names.

    Parameters
    ----------
    value : Any
        From a file or a caller.
    arrays : dict
        By name.
    """
    if isinstance(value, dict) and set(value) == {"array"}:
        return check_known("array", value["array"], arrays)
    if isinstance(value, dict):
        return {key: put_arrays(item, arrays) for key, item in value.items()}
    return [put_arrays(item, arrays) for item in value] if isinstance(value, list) else value


# Small checks, each of which names the place.


def near(name: Any, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" where one of the names looks like the given one, else nothing.

    Parameters
    ----------
    name : Any
        That is none of them.
    names : iterable of str
        Those that there are.
    """
    import difflib  # an error alone needs it

    names = list(names)
    for form in (str, str.lower):
        known = {form(n): n for n in names}
        if isinstance(name, str) and (found := difflib.get_close_matches(form(name[:60]), known, 1)):
            return f"; did you mean {known[found[0]]}?"
    return ""


def check_keys(place: str, value: Any, required: Sequence[str], optional: Sequence[str]) -> None:
    """Refuse what is no object, lacks a required name, or has an unknown one.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    required, optional : sequences of str
        Names.
    """
    if not isinstance(value, Mapping):
        raise ProblemError(f"{place} must be an object with {', '.join(required)}, got {type(value).__name__}")
    for name in required:
        if name not in value:
            raise ProblemError(f"{place}: {name} is missing")
    for name in value:
        if name not in required and name not in optional:
            raise ProblemError(f"{place}: {name!r:.60} is not known (there are {', '.join((*required, *optional))})"
                               f"{near(name, (*required, *optional))}")


def check_listed(place: str, value: Any) -> list[Any]:
    """Return a list of the entries, or refuse what is no list.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise ProblemError(f"{place} must be a list, got {type(value).__name__}")
    return list(value)


def check_arrays(place: str, value: Any) -> tuple[Any, ...]:
    """Return a list of arrays as a tuple.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    """
    return tuple(read_array(f"{place}[{i}]", item) for i, item in enumerate(check_listed(place, value)))


def check_known(place: str, value: Any, entries: Any) -> Any:
    """Return the entry of that name, or say which there are.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    entries : mapping or sequence
        By name.
    """
    if not isinstance(value, str) or value not in entries:
        raise ProblemError(f"{place} must be one of {', '.join(entries)}; got {value!r:.60}{near(value, entries)}")
    return entries[value] if isinstance(entries, Mapping) else value


def checked(place: str, check: Any, value: Any, *bounds: float) -> Any:
    """Return what a function of `checks` makes of a number, its error with the place.

    Parameters
    ----------
    place : str
        What errors call it.
    check : function
        Raises a ValueError.
    value : Any
        From a file or a caller.
    *bounds : float
        Its further arguments.
    """
    if isinstance(value, (bool, str)):
        raise ProblemError(f"{place} must be a number, got {value!r:.60}")
    try:
        return check(place, value, *bounds)
    except (ValueError, OverflowError) as error:
        raise ProblemError(str(error)) from None


def check_counted(place: str, value: Any, low: int = 1) -> int:
    """Return an integer of at least `low` that something of this size can be made for.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    low : int
        The least.
    """
    count: int = checked(place, lambda n, v: checks.count(n, v, low), value)
    if count > MAX_BYTES:
        raise ProblemError(f"{place} must be at most {MAX_BYTES:,}, got {count:.3g}" if count < 1e300 else
                           f"{place} must be at most {MAX_BYTES:,}")
    return count


def check_real(place: str, value: Any, shape: tuple[int | None, ...]) -> Array:
    """Return a finite array of float64 and of this shape, in which None is any length but 0.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    shape : tuple
        None is any length but 0.
    """
    found: Array = check_array(place, lambda: checks.real_array(place, read_array(place, value), shape, np.float64))
    return found


def check_direction(place: str, value: Any, shapes: Sequence[tuple[int, int]]) -> tuple[Array, ...]:
    """Return one array a layer, of these shapes.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    shapes : sequence of (int, int)
        One a layer.
    """
    arrays = check_listed(place, value)
    if len(arrays) != len(shapes):
        raise ProblemError(f"{place} must hold one array a layer: expected {len(shapes)}, got {len(arrays)}")
    return tuple(check_real(f"{place}[{i}]", a, shape) for i, (a, shape) in enumerate(zip(arrays, shapes, strict=True)))


def check_targets(place: str, value: Any, likelihood: Likelihood, lead: tuple[int | None, ...], C: int) -> Any:
    """Return labels or targets that fit the likelihood, with these leading dimensions.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    likelihood : Likelihood
        Says what targets are.
    lead : tuple
        The leading dimensions; None is any length.
    C : int
        Outputs.
    """
    y = read_array(place, value)
    if isinstance(likelihood, Categorical):
        if y.ndim != len(lead) or any(d not in (None, n) for d, n in zip(lead, y.shape, strict=True)):
            raise ProblemError(f"{place} must have shape {_text(lead)}, got {y.shape}")
        shape = y.shape[len(lead) - 1:]
        return check_array(place, lambda: checks.labels(place, y, C, shape))
    y = check_real(place, y, (*lead, C))
    interval = (0, 1) if isinstance(likelihood, Bernoulli) else None
    return check_array(place, lambda: checks.targets(place, y, y.shape, np.float64, interval))


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"


def check_rows(place: str, value: Any, count: int) -> Any:
    """Return row numbers below `count`.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file or a caller.
    count : int
        The number of rows.
    """
    rows = read_array(place, value)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise ProblemError(f"{place} must be a list of row numbers")
    if rows.min() < 0 or rows.max() >= count:
        raise ProblemError(f"{place} must lie in 0..{count - 1}, got {rows.min()}..{rows.max()}")
    return rows.astype(np.intp)


def check_array(place: str, check: Any) -> Any:
    """Return what a function makes, its error with the place.

    Parameters
    ----------
    place : str
        What errors call it.
    check : function
        Raises a ValueError.
    """
    try:
        return check()
    except ValueError as error:
        raise ProblemError(str(error)) from None
