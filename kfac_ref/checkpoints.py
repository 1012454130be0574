"""Checkpoints: everything that a training run needs to continue to the same bits, in one npz file.

The file holds arrays ``a0, a1, ...`` and a ``header`` (JSON): the format, versions and machine, the settings of the
run, a description of the state in which each array is named, and the SHA-256 of all this. Nothing is pickled. A state
holds arrays and numbers only; whatever was factored is made again from them, to the same bits.

A new checkpoint is written to a temporary file, forced to the disk and renamed, so the file is whole at any moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import files
from .checks import Array, Direction
from .environment import environment
from .factors import Moments, RunningAverage
from .optimizers.kfac_values import Refresh

FORMAT = 2
NAME = "checkpoint.npz"
_VALUES = {kind.__name__: kind for kind in (Moments, Refresh, RunningAverage)}


class RefusedError(ValueError):
    """A checkpoint that cannot be resumed; the message names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run was after a step."""

    state: Any                          # of the optimizer
    averaged: tuple[Array, ...]         # the averaged iterate
    seconds: float                      # spent in steps
    environment: Mapping[str, Any]      # versions, machine and BLAS threads of the process that wrote it


def digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data, whatever the order of the names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write(folder: Path, checkpoint: Checkpoint, optimizer: Any, settings: Mapping[str, Any]) -> None:
    """Replace the checkpoint in a folder; if that fails, the old one stays as it was.

    `settings` describe the run in plain data: `read` refuses a file that was written with others.
    """
    arrays: list[Array] = []
    state = {f.name: getattr(checkpoint.state, f.name) for f in fields(checkpoint.state)}
    header = {"format": FORMAT, "environment": dict(checkpoint.environment), "optimizer": type(optimizer).__name__,
              "shapes": [list(shape) for shape in optimizer.model.network.shapes], "settings": dict(settings),
              "seconds": checkpoint.seconds,
              "content": _pack({"state": state, "averaged": checkpoint.averaged}, arrays)}
    header["sha256"] = _sum(header, arrays)

    def save(file: BinaryIO) -> None:
        """Write header and arrays."""
        named: dict[str, Any] = {f"a{i}": a for i, a in enumerate(arrays)}
        np.savez(file, header=np.array(json.dumps(header)), **named)

    files.write(folder / NAME, save, own=True)


def read(path: Path, optimizer: Any, weights: Direction, settings: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint of the run with these settings; its state steps to the same bits as the one that was written.

    Of `weights`, the start of the run, only the shapes matter. Raises RefusedError for a file that is missing or
    damaged, or that is of another format, version, network, optimizer or run.
    """
    header, arrays = _load(path)
    _same(path, "format", header.get("format"), FORMAT)
    if header.pop("sha256", None) != _sum(header, list(arrays.values())):
        raise RefusedError(f"{path} is damaged: its content is not what was written")
    _same(path, "version of kfac_ref", header["environment"]["kfac_ref"], environment()["kfac_ref"])
    _same(path, "optimizer", header["optimizer"], type(optimizer).__name__)
    _same(path, "network (shapes of its weights)", header["shapes"],
          [list(shape) for shape in optimizer.model.network.shapes])
    for name in sorted({*header["settings"], *settings}):
        _same(path, f"setting {name}", header["settings"].get(name), settings.get(name))
    content = _unpack(header["content"], arrays)
    state = type(optimizer.init(weights))(**content["state"])
    return Checkpoint(state, content["averaged"], header["seconds"], header["environment"])


def differences(then: Mapping[str, Any]) -> list[str]:
    """Return what differs from a checkpoint's ``environment`` and may change bits: "numpy 2.4.6, was 2.3.0"."""
    now = environment()
    return [f"{name} {now.get(name)}, was {then.get(name)}" for name in sorted({*now, *then})
            if now.get(name) != then.get(name)]


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return header and arrays, the arrays in the order of their numbers."""
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            header = files.parse_json(str(file["header"]), "its header")
            arrays = {name: file[name] for name in (f"a{i}" for i in range(len(file.files) - 1))}
    except FileNotFoundError:
        raise RefusedError(f"{path} is missing") from None
    except Exception as error:              # a damaged file makes zipfile and NumPy raise almost anything
        raise RefusedError(f"{path} is damaged: {error}") from error
    return header, arrays


def _sum(header: Mapping[str, Any], arrays: list[Array]) -> str:
    """Return the SHA-256 of a header and of its arrays with their types and shapes."""
    sha = hashlib.sha256(digest(header).encode())
    for a in arrays:
        sha.update(f"{a.dtype.str} {a.shape}".encode())
        sha.update(a.tobytes())
    return sha.hexdigest()


def _same(path: Path, what: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise RefusedError(f"{path} is of another {what}: {theirs!r}, this run has {ours!r}")


def _pack(value: Any, arrays: list[Array]) -> Any:
    """Describe a value in plain data; arrays are added to `arrays`, each one once, and named by their place there."""
    if isinstance(value, np.ndarray):
        known = next((i for i, a in enumerate(arrays) if a is value), len(arrays))
        if known == len(arrays):
            arrays.append(value)
        return {"array": f"a{known}"}
    if isinstance(value, (tuple, list)):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(item, arrays) for key, item in value.items()}}
    if isinstance(value, dict) and all(isinstance(key, tuple) for key in value):        # of moments: ("A", 0, 1)
        return {"pairs": [[list(key), _pack(item, arrays)] for key, item in value.items()]}
    if type(value).__name__ in _VALUES:
        return {type(value).__name__: {f.name: _pack(getattr(value, f.name), arrays) for f in fields(value)}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"the state holds {type(value).__name__}, which a checkpoint cannot store: {value!r}")


def _unpack(described: Any, arrays: Mapping[str, Array]) -> Any:
    """Return the value that `_pack` described; sequences come back as tuples."""
    if isinstance(described, list):
        return tuple(_unpack(item, arrays) for item in described)
    if not isinstance(described, dict):
        return described
    (kind, content), = described.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in content.items()}
    if kind == "pairs":
        return {tuple(key): _unpack(item, arrays) for key, item in content}
    return _VALUES[kind](**{name: _unpack(item, arrays) for name, item in content.items()})
