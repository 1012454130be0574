"""A training run in a folder of its own, which can be stopped at any moment and continued.

::

    run.json          the settings, the hash of the data, and the machine
    history.jsonl     a line for each step and each evaluation, as they happen
    checkpoint.npz    the state at most `every` seconds ago
    history.png       the picture, at the end
    .lock             is locked while a process writes here

A folder is recognized as a run's by its run.json. If anything else has one of these names, it is not replaced.

Only states whose loss is finite and at most twice that of the start are saved. Instead of any other state, the one with
the lowest loss is saved, so that a run that diverges leaves its best weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoints, checks, datasets, files, plotting, training
from ..environment import environment
from . import history as lines_of
from . import script
from .recorder import Recorder, signals
from .settings import Settings, Task, from_object

SETTINGS, HISTORY, PICTURE = "run.json", lines_of.NAME, "history.png"
FILES = (SETTINGS, HISTORY, checkpoints.NAME, PICTURE)
#: The limit of a run that only seconds end.
_ENDLESS = 10**9


def start(settings: Settings, folder: Path, iterations: int | None, seconds: float | None, every: float = 60,
          report: Callable[[str], None] = print, force: bool = False) -> training.History:
    """Begin a run in a folder that holds no run.

    Parameters
    ----------
    settings : Settings
        What to run.
    folder : Path
        Is made.
    iterations, seconds : int or None, float or None
        The number of steps, or the seconds spent in steps, after which to stop; at least one is needed.
    every : float
        Seconds between checkpoints.
    report : function of str
        Is called with messages for the user.
    force : bool
        Whether to remove the run that the folder holds, or other files with the names of a run's.

    Raises
    ------
    ValueError
        For data that do not fit, a folder that cannot be used, and a run that diverged (see `training.diverged`), after
        its checkpoint with the lowest loss is written.
    OSError
        Names the file that cannot be written; the last checkpoint is then intact.
    """
    _check_limits(iterations, seconds, every)
    _refuse(folder, force)
    data = settings.dataset()
    task = settings.task(data)
    content = {"settings": settings.plain(), "data_sha256": digest_of(data), "environment": environment()}
    script.make_folder(folder)
    with script.locked(folder):
        _refuse(folder, force)                          # another process may have begun a run meanwhile
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        files.write(folder / SETTINGS, json.dumps(content, indent=1) + "\n")
        files.write(folder / HISTORY, "")
        return _train(task, content, folder, iterations, seconds, every, report, None)


def resume(folder: Path, iterations: int | None, seconds: float | None, every: float = 60,
           report: Callable[[str], None] = print) -> training.History:
    """Continue a run from its last checkpoint, to the same bits as one that was never stopped.

    The limits count from the beginning of the run. The ``records`` of the history are those since the checkpoint.
    Raises as `start`, and a ValueError for a folder without a run, a damaged file or other data.
    """
    content, settings = _read(folder)
    _check_limits(iterations, seconds, every)
    for name in FILES:
        files.refuse(folder / name, own=True)           # a symbolic link may lead to a file that is no run's
    with script.locked(folder):
        data = settings.dataset()
        task = settings.task(data)
        if digest_of(data) != content["data_sha256"]:
            raise ValueError(f"data {settings.data} are not those with which the run in {folder} began")
        history = _last(task, content, folder, report)
        if history and (history.state.k >= (iterations or math.inf) or history.seconds >= (seconds or math.inf)):
            report(f"nothing to do: the run already has {history.state.k} steps and {history.seconds:.2f} s; "
                   "--iterations and --seconds are totals for the whole run")
        return _train(task, content, folder, iterations, seconds, every, report, history)


def checkpoint(folder: str | os.PathLike[str]) -> tuple[Task, checkpoints.Checkpoint]:
    """Return the task of a run and its last checkpoint: ``state.weights`` is the current iterate."""
    content, settings = _read(Path(folder))
    task = settings.task()
    path = Path(folder) / checkpoints.NAME
    return task, checkpoints.read(path, task.optimizer, task.weights, _of_run(content))


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the steps that a run has recorded: the fields of the optimizer's records, with None for NaN."""
    _, settings = _read(folder)
    return lines_of.read(folder / HISTORY, settings.make_optimizer(settings.model())).steps


def summary(folder: Path, history: training.History) -> str:
    """Return a short summary of a run: steps, seconds, loss and errors, and the files."""
    _, settings = _read(folder)
    network = settings.model().network
    lines = [f"{settings.optimizer} on {settings.data}, {'-'.join(map(str, network.sizes))} ({network.parameters:,} "
             f"parameters), batch {settings.batch}, {settings.dtype}, seed {settings.seed}",
             f"{history.state.k} steps in {history.seconds:.2f} s (without evaluation), "
             f"{1e3 * history.seconds / max(history.state.k, 1):.3g} ms per step"]
    if history.evaluations:
        last = history.evaluations[-1]
        where = "" if last.k == history.state.k else ", the last that was evaluated"
        lines.append(f"at step {last.k}{where}: loss {last.loss:.5g}, training error {last.error:.5g} (of the averaged "
                     f"iterate {last.averaged_error:.5g}), held-out error {last.test_error:.5g}")
    names = [name for name in (HISTORY, PICTURE, checkpoints.NAME, SETTINGS) if (folder / name).exists()]
    lines.append(f"{folder}/ holds {', '.join(names)}")
    return "\n".join(lines)


def digest_of(data: datasets.Dataset) -> str:
    """Return the SHA-256 of the four arrays of a data set."""
    sha = hashlib.sha256()
    for array in (data.x, data.labels, data.x_test, data.labels_test):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], Settings]:
    """Return the content of run.json, and the settings in it."""
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no {SETTINGS} in it")
    try:
        content = files.read_json(path)
        if not isinstance(content.get("data_sha256"), str):
            raise ValueError("data_sha256 must be text")
        return content, from_object(Settings, content.get("settings"), "settings ")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _check_limits(iterations: int | None, seconds: float | None, every: float) -> None:
    if iterations is None and seconds is None:
        raise ValueError("give iterations or seconds: a run must know where to stop")
    if iterations is not None:
        checks.count("iterations", iterations)
    if seconds is not None:
        checks.number("seconds", seconds, 0, above=True)
    checks.number("checkpoint-every", every, 0)


def _refuse(folder: Path, force: bool) -> None:
    """Refuse a folder that holds a checkpoint or steps of a run, or files that are no run's."""
    own: tuple[str, ...] = ()
    with suppress(ValueError):
        _read(folder)
        own = (SETTINGS, HISTORY)
    if own and not force and ((folder / checkpoints.NAME).exists() or b'"step"' in _bytes(folder / HISTORY)):
        raise files.OverwriteError(f"{folder} holds a run already: continue it with --resume {folder}, choose another "
                                   "folder, or give --force to remove it")
    for name in FILES:
        files.refuse(folder / name, name in own, force)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _of_run(content: dict[str, Any]) -> dict[str, Any]:
    return {**content["settings"], "data_sha256": content["data_sha256"]}


def _last(task: Task, content: dict[str, Any], folder: Path, report: Callable[[str], None]) -> training.History | None:
    """Return the run at its last checkpoint (None before the first), and cut the lines after it from its history."""
    path = folder / checkpoints.NAME
    if not path.exists():
        report(f"{folder} holds no checkpoint yet: starting again from step 0")
        files.write(folder / HISTORY, "", own=True)
        return None
    again = f"restore it, or begin the run again with --out {folder} --force"
    try:
        last = checkpoints.read(path, task.optimizer, task.weights, _of_run(content))
        lines = lines_of.read(folder / HISTORY, task.optimizer, last.state.k)
    except checkpoints.RefusedError as error:
        raise ValueError(f"{error}; {again}") from error
    except ValueError as error:
        raise ValueError(f"the history of the run is damaged: {error}; {again}") from error
    files.write(folder / HISTORY, "".join(line + "\n" for line in lines.text), own=True)
    report(f"continuing from {path} at step {last.state.k}")
    for difference in checkpoints.differences(last.environment):
        report(f"results may not be bit-identical to an uninterrupted run: {difference}")
    return training.History(last.state, last.averaged, evaluations=lines.evaluations, seconds=last.seconds)


def _train(task: Task, content: dict[str, Any], folder: Path, iterations: int | None, seconds: float | None,
           every: float, report: Callable[[str], None], history: training.History | None) -> training.History:
    # But for the last step, when to evaluate does not depend on where a run stops.
    evaluate_at = frozenset([*training.evaluation_steps(_ENDLESS)[:-1], iterations or 0])
    settings = _of_run(content)
    saved = None if history is None else history.state.k
    if history is None:
        state = task.optimizer.init(task.weights, settings["seed"])
        history = training.History(state, state.weights)
    diverged = ""
    with signals() as asked, (folder / HISTORY).open("a", encoding="utf-8") as lines:
        recorder = Recorder(lines, task, settings, folder, every, asked, history, saved)
        with recorder.saying_what_is_intact():
            try:
                training.train(
                    task.optimizer, task.weights, task.x, task.y, _ENDLESS if iterations is None else iterations,
                    task.schedule, settings["seed"], evaluate_at, task.test, name=settings["optimizer"],
                    seconds=math.inf if seconds is None else seconds, after_step=recorder, resume=history)
            except training.DIVERGED as error:
                raise ValueError(recorder.diverged(str(error), math.nan)) from error
            recorder.finish(history)
            if training.diverged(history.evaluations) and not history.interrupted:
                first, last = history.evaluations[0].loss, history.evaluations[-1].loss
                diverged = recorder.diverged(
                    f"the loss over all training examples was {first:.3g} at the start and is {last:.3g}", last)
    if history.evaluations and len(asked) < 2:
        with recorder.saying_what_is_intact():
            save = functools.partial(_picture(folder, settings, history).savefig, format="png")
            files.write(folder / PICTURE, save, own=True)
    if diverged:
        raise ValueError(diverged)
    return history


def _picture(folder: Path, settings: dict[str, Any], history: training.History) -> Any:
    """Draw errors, lambda and gamma, and milliseconds of a run."""
    last = history.evaluations[-1]
    text = (f"{settings['optimizer']} on {settings['data'].partition(':')[0]}, batch {settings['batch']}, seed "
            f"{settings['seed']}, {settings['dtype']}: {history.state.k} steps in {history.seconds:.1f} s; training "
            f"error {last.error:.4g} ({last.averaged_error:.4g} of the averaged iterate), held-out error "
            f"{last.test_error:.4g} at step {last.k}.")
    return plotting.run(history.evaluations, records(folder), text)
