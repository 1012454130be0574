"""Checkpoints: everything that a training run needs to go on to the same bits, in one npz file.

A file holds arrays ``a0, a1, ...`` and a ``header`` (JSON): the format, who wrote it, on what, the run's settings and
their hash, and a description of the state in which each array is named. Nothing is pickled. A state holds arrays and
numbers only: what has been factored is made again from them, to the same bits.

It is written beside the last one, forced to the disk and only then renamed, so that at any moment the last or the one
before it is whole::

    temporary file  ->  checkpoint.npz  ->  previous.npz
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
LAST, PREVIOUS = "checkpoint.npz", "previous.npz"
_VALUES = {kind.__name__: kind for kind in (Moments, Refresh, RunningAverage)}


class RefusedError(ValueError):
    """What `read` raises for a file that cannot be gone on from; it names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run stood after a step.

    Attributes
    ----------
    state : Any
        The optimizer's.
    averaged : tuple of arrays
        The averaged iterate.
    seconds : float
        Spent in steps.
    environment : dict
        Versions, machine and BLAS threads of the process that wrote it.
    """

    state: Any
    averaged: tuple[Array, ...]
    seconds: float
    environment: Mapping[str, Any]


def digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings, whatever the order of their names.

    Parameters
    ----------
    settings : mapping
        Plain data.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write(folder: Path, checkpoint: Checkpoint, optimizer: Any, settings: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one before it is kept.

    Parameters
    ----------
    folder : Path
        Of the run; it must exist.
    checkpoint : Checkpoint
        After a step.
    optimizer : Optimizer
        Whose state it is.
    settings : mapping
        What the run was asked for, as plain data; a run of other settings will refuse the file.

    Raises
    ------
    OSError
        Naming the file, where it cannot be written: the last one is then as it was.
    ValueError
        For a state that holds more than arrays and numbers.
    """
    arrays: list[Array] = []
    state = checkpoint.state
    described = {f.name: getattr(state, f.name) for f in fields(state)}
    content = {"state": described, "averaged": checkpoint.averaged}
    header = {"format": FORMAT, "environment": checkpoint.environment, "optimizer": type(optimizer).__name__,
              "shapes": [list(shape) for shape in optimizer.model.network.shapes], "settings": dict(settings),
              "digest": digest(settings), "seconds": checkpoint.seconds, "content": _pack(content, arrays)}

    def save(file: BinaryIO) -> None:
        """Write header and arrays.

        Parameters
        ----------
        file : binary file
            Open for writing.
        """
        np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)),
                 **{f"a{i}": a for i, a in enumerate(arrays)})

    last = folder / LAST
    with files.staged(last, save) as part, files.naming(last):
        if last.exists():
            last.replace(folder / PREVIOUS)
        part.replace(last)
        files.sync(folder)


def read(path: Path, optimizer: Any, weights: Direction, settings: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint of the same run.

    Parameters
    ----------
    path : Path
        The file.
    optimizer : Optimizer
        As it was made for the run.
    weights : list of arrays
        Where the run started; only their shapes matter.
    settings : mapping
        Of the run.

    Returns
    -------
    Checkpoint
        Its state steps to the same bits as the one that was written.

    Raises
    ------
    RefusedError
        For a file that is not there, cut or damaged, or of another format, version, network, optimizer or settings.
    """
    header, arrays = _load(path)
    environment_now = environment()
    _same(path, "format", header.get("format"), FORMAT)
    try:
        _same(path, "version of kfac_ref", header["environment"]["kfac_ref"], environment_now["kfac_ref"])
        _same(path, "optimizer", header["optimizer"], type(optimizer).__name__)
        _same(path, "network (shapes of its weights)", header["shapes"],
              [list(shape) for shape in optimizer.model.network.shapes])
        for name in sorted({*header["settings"], *settings}):
            _same(path, f"setting {name}", header["settings"].get(name), settings.get(name))
        _same(path, "hash of its settings", header["digest"], digest(settings))
        content = _unpack(header["content"], arrays)
        state = type(optimizer.init(weights))(**content["state"])
        return Checkpoint(state, content["averaged"], header["seconds"], header["environment"])
    except RefusedError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RefusedError(f"{path} is damaged: its header does not describe a state ({error!r})") from error


def differences(then: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was when a checkpoint was written, so that the bits may differ from there on.

    Parameters
    ----------
    then : mapping
        The ``environment`` of a checkpoint.

    Returns
    -------
    list of str
        One sentence each, such as ``numpy is 2.4.6, was 2.3.0``.
    """
    now = environment()
    return [f"{name} is {now.get(name)}, was {then.get(name)}" for name in sorted({*now, *then})
            if now.get(name) != then.get(name)]


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return header and arrays; whatever is wrong with the file is told as a refusal."""
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            header = json.loads(file["header"].item())
            # Reading an entry to its end checks its CRC.
            arrays = {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise RefusedError(f"{path} is not there") from None
    except Exception as error:              # a damaged head makes zipfile and NumPy raise almost anything
        raise RefusedError(f"{path} is cut or damaged: {error}") from error
    if not isinstance(header, dict):
        raise RefusedError(f"{path} is damaged: its header is no object")
    return header, arrays


def _same(path: Path, what: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise RefusedError(f"{path} is of another {what}: {theirs!r}, where this run has {ours!r}")


def _pack(value: Any, arrays: list[Array]) -> Any:
    """Describe a value in plain data; each array is named by its place in `arrays`, to which it is added once."""
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
    raise ValueError(f"a state cannot be stored in a checkpoint that holds {type(value).__name__}: {value!r}")


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
