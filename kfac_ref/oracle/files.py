"""The files of the oracle: plain content from JSON or npz and back.

An array is ``{"shape": [7, 3], "data": [flat, row-major]}``; nested lists are read too. An npz holds the same content
with its arrays stored separately; it is read without pickles. The size of a file is bounded before any of it is
converted (`MAX_TEXT`, `MOST`, `MAX_BYTES`, `MAX_ARRAYS`), so that no file takes more than a few seconds and 500 MB.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checks import MAX_BYTES, ProblemError, check_known, check_listed, check_real, read_array

#: The limits of a JSON text: its bytes, its values as counted by their marks, and its nesting.
MAX_TEXT, MAX_DEPTH = 2**26, 32
MOST = {b",": (4_000_000, "values"), b"[": (1_000_000, "lists"), b"{": (100_000, "objects"), b":": (100_000, "names")}
_STRING = re.compile(rb'"(?:[^"\\]++|\\(?:.|\Z))*+(?:"|\Z)', re.DOTALL)
#: How many arrays an npz may hold.
MAX_ARRAYS = 10_000
_OPENS = np.zeros(256, dtype=np.int8)                       # by byte: +1 opens a level, -1 closes it
_OPENS[list(b"[{")], _OPENS[list(b"]}")] = 1, -1
AS_NPZ = "np.savez(FILE, A_0=..., A_1=...)"


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
        if data.startswith(b"\x93NUMPY"):
            raise ProblemError(f"is a .npy file, one array without a name: write {AS_NPZ}, or JSON")
        return _of_npz(data) if data.startswith(b"PK") else parse(data)
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def parse(text: bytes) -> Any:
    """Return the content of a UTF-8 JSON text with unique names and finite numbers; else raise a ProblemError."""
    _bounded(text)
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse)
    except ProblemError:
        raise
    except UnicodeDecodeError:
        raise ProblemError(f"is not JSON, since it is not UTF-8 text, nor npz; write {AS_NPZ}, or JSON") from None
    except ValueError as error:
        raise ProblemError(f"is not JSON: {str(error)[:200]}") from None


def _bounded(text: bytes) -> None:
    """Raise if a JSON text is larger or nested deeper than the limits."""
    limit = MAX_TEXT if text.isascii() else MAX_TEXT // 4   # with others, a character takes four bytes
    if len(text) > limit:
        raise ProblemError(f"is larger than the limit of {limit:,} bytes for JSON; write {AS_NPZ}")
    marks = _STRING.sub(b'""', text)
    for mark, (most, what) in MOST.items():
        if (found := marks.count(mark)) > most:
            raise ProblemError(f"holds {found:,} {what}, more than the limit of {most:,} for JSON; write {AS_NPZ}")
    depth = 0
    for start in range(0, len(marks), 2**20):
        levels = depth + np.cumsum(_OPENS[np.frombuffer(marks[start:start + 2**20], np.uint8)], dtype=np.int32)
        if levels.max() > MAX_DEPTH:
            raise ProblemError(f"is nested deeper than the limit of {MAX_DEPTH} levels")
        depth = levels[-1]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ProblemError(f"{twice!r:.60} occurs twice in one object")
    return found


def _refuse(name: str) -> Any:
    raise ProblemError(f"{name} is not a JSON number: all values must be finite; leave out a quantity that has none "
                       "(in trajectory_rho, null is a step without a value)")


def _of_npz(data: bytes) -> Any:
    if (count := data.count(b"PK\1\2")) > MAX_ARRAYS:
        raise ProblemError(f"holds {count:,} arrays, more than the limit of {MAX_ARRAYS:,}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = 0
            for info in archive.infolist():
                if info.filename.endswith(".pkl"):
                    raise ProblemError(f"is a file of torch.save, a pickle, which is never read; write {AS_NPZ}")
                total += info.file_size
                if total > MAX_BYTES:
                    raise ProblemError(f"its arrays are larger than the limit of {MAX_BYTES:,} bytes")
                if info.filename == "problem.npy" and info.file_size > MAX_TEXT:
                    raise ProblemError(f"problem is larger than the limit of {MAX_TEXT:,} bytes for JSON")
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
        return {name: a if a.ndim else a.item() for name, a in arrays.items()}
    if arrays["problem"].dtype.kind != "U" or arrays["problem"].ndim:
        raise ProblemError("problem must be JSON text that names the arrays")
    return put_arrays(parse(str(arrays.pop("problem")).encode("utf-8", "replace")), arrays)


def dimensions(value: Any) -> int:
    """Return the number of dimensions of an array or number, or of nested lists as their first entries have it."""
    if isinstance(value, Mapping):
        return len(value["shape"]) if isinstance(value.get("shape"), list) else 0
    if isinstance(value, (list, tuple)):
        return 1 + (dimensions(value[0]) if value else 0)
    return getattr(value, "ndim", 0)


def gathered(content: Mapping[str, Any], known: Collection[str], by_name: bool = False) -> dict[str, Any]:
    """Return content with a list of layers in place of ``A_0, A_1`` (or ``A0, A1``) and of an object by layer.

    `known` names the entries that may be lists of layers. With `by_name`, the layers may have names in place of
    numbers, as ``{"fc1": ..., "fc2": ...}`` or ``A.fc1``, in the order of the network.
    """
    found: dict[str, Any] = {}
    for name, value in content.items():
        match = None if name in known else re.fullmatch(r"(\w+?)[_.]?(\d{1,6})|(\w+?)\.(.+)", name)
        stem, layer = (g for g in match.groups() if g is not None) if match else (name, None)
        if stem in known and layer is not None:
            if stem in content:
                raise ProblemError(f"{name} and {stem} are both given: one of them must hold all layers")
            found.setdefault(stem, {})[layer] = value
        else:
            found[name] = value
    return {name: _in_order(name, value, by_name) if name in known and isinstance(value, Mapping)
            and set(value) != {"shape", "data"} else value for name, value in found.items()}


def _in_order(name: str, layers: Mapping[str, Any], by_name: bool) -> list[Any]:
    """Return the values of an object by layer, as a list."""
    if not all(re.fullmatch(r"\d{1,6}", str(layer)) for layer in layers):
        if by_name:
            return list(layers.values())
        raise ProblemError(f"{name} must be a list in the order of the layers, or an object with the names \"0\", "
                           f"\"1\", ...; got the names {', '.join(map(str, layers))!r:.60}")
    numbers = sorted(int(layer) for layer in layers)
    if numbers != list(range(len(layers))):
        raise ProblemError(f"{name} must have layers that are counted from 0, such as {name}_0, {name}_1; got the "
                           f"numbers {', '.join(map(str, numbers)):.60}")
    return [layers[layer] for layer in sorted(layers, key=int)]


def pairs(place: str, value: Any) -> list[tuple[Any, Any]]:
    """Return (W, b) per layer from torch's ``[W0, b0, W1, b1]`` or ``[(W0, b0), ...]``; b is None if there is none."""
    parts = list(value.values()) if isinstance(value, Mapping) else check_listed(place, value)
    found: list[tuple[Any, Any]] = []
    for i, part in enumerate(part for item in parts for part in (item if _is_pair(item) else [item])):
        if dimensions(part) == 1 and found and found[-1][1] is None:
            found[-1] = found[-1][0], part
        elif dimensions(part) == 2:
            found.append((part, None))
        else:
            raise ProblemError(f"{place}[{i}] must be a matrix of weights, or the vector of biases that follows it; "
                               f"it has {dimensions(part)} dimensions")
    return found


def _is_pair(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and list(map(dimensions, item[:3])) == [2, 1]


def joined(name: str, value: Any) -> list[Any]:
    """Return one matrix [W b] per layer from torch's weights and biases; lists remain lists, with their digits."""
    found = []
    for i, (W, b) in enumerate(pairs(name, value)):
        V = read_array(f"{name}[{i}]", W)
        if b is not None:
            b = check_real(f"the biases of {name}[{i}]", b, (len(V),)).astype(V.dtype)
            V = np.column_stack([V, b])
        found.append(V if isinstance(W, np.ndarray) else V.tolist())
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
