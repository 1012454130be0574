"""The files of the oracle: plain content from JSON or npz and back.

An array is ``{"shape": [7, 3], "data": [flat, row-major]}``; nested lists are read too. An npz holds the same content
with its arrays stored separately; it is read without pickles, and its sizes are checked first.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checks import MAX_BYTES, ProblemError, check_known, read_array


def plain(value: Any) -> Any:
    """Return content as JSON types: arrays as shape and data, NaN and infinity as null."""
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
    """Return the JSON text of a problem or vector, one field per line."""
    lines = []
    for name, value in content.items():
        if isinstance(value, dict) and name in ("expected", "trajectory"):
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(path: Path | str) -> Any:
    """Return the content of a JSON or npz file, with arrays for those of an npz; raise a ProblemError for others."""
    path = Path(path)
    try:
        with path.open("rb") as file:                       # the size of a pipe or device is unknown
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) > MAX_BYTES:
        raise ProblemError(f"{path}: is larger than the limit of {MAX_BYTES:,} bytes")
    if not data.strip():
        raise ProblemError(f"{path}: is empty")
    try:
        return _of_npz(data) if data[:2] == b"PK" else parse(data)
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def parse(text: bytes | str) -> Any:
    """Return the content of a UTF-8 JSON text with unique names and finite numbers; else raise a ProblemError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except ProblemError:
        raise
    except (ValueError, RecursionError) as error:           # encoding, syntax, or nesting too deep
        raise ProblemError(f"is not JSON: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ProblemError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
    return dict(pairs)


def _refuse(name: str) -> Any:
    raise ProblemError(f"{name} is not a JSON number; write null for a missing value")


def _of_npz(data: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = 0
            for info in archive.infolist():
                total += info.file_size
                if total > MAX_BYTES:
                    raise ProblemError(f"its arrays are larger than the limit of {MAX_BYTES:,} bytes")
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
    except Exception as error:              # zipfile, zlib and numpy raise many types
        raise ProblemError(f"is not a readable npz file: {type(error).__name__}: {str(error)[:200]}") from None
    if "problem" not in arrays:
        return _listed_arrays(arrays)
    if arrays["problem"].dtype.kind != "U" or arrays["problem"].ndim:
        raise ProblemError("problem must be JSON text that names the arrays")
    return put_arrays(parse(str(arrays.pop("problem"))), arrays)


def _listed_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gather ``A_0, A_1, ...`` into lists."""
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
    """Return content with a name in place of each array, and put the arrays into `arrays`."""
    if isinstance(value, dict) and set(value) == {"shape", "data"}:
        name = f"a{len(arrays)}"
        arrays[name] = read_array(name, value)
        return {"array": name}
    return _mapped(take_arrays, value, arrays)


def put_arrays(value: Any, arrays: Mapping[str, Any]) -> Any:
    """Return content with arrays in place of their names: the inverse of `take_arrays`."""
    if isinstance(value, dict) and set(value) == {"array"}:
        return check_known("array", value["array"], arrays)
    return _mapped(put_arrays, value, arrays)


def _mapped(f: Callable[[Any, Any], Any], value: Any, arrays: Any) -> Any:
    if isinstance(value, dict):
        return {key: f(item, arrays) for key, item in value.items()}
    return [f(item, arrays) for item in value] if isinstance(value, list) else value
