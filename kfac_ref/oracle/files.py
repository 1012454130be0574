"""The files of the oracle: plain content from JSON or npz and back; `checks` refuses what is wrong in it.

An array is ``{"shape": [7, 3], "data": [flat, row-major]}``; nested lists are taken too. An npz holds the same content
with its arrays apart, and is read without pickles, its sizes first.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checks import MAX_BYTES, ProblemError, check_known, read_array


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
        with path.open("rb") as file:                       # a pipe or device does not say how long it is
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > MAX_BYTES:
        raise ProblemError(f"{path}: has more than the {MAX_BYTES:,} bytes that are read")
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
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except ProblemError:
        raise
    except (ValueError, RecursionError) as error:           # a bad encoding or syntax, an endless nesting or integer
        raise ProblemError(f"is no JSON: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, or refuse a name that occurs twice in it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ProblemError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
    return found


def _refuse(name: str) -> Any:
    """Refuse NaN and infinity, which JSON does not have."""
    raise ProblemError(f"{name} is no number of JSON; write null for what was not measured")


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
