"""A training run in a folder of its own, which can be stopped at any moment and continued.

::

    run.json          the settings, and the hash of the data
    history.jsonl     a line for each step and each evaluation, as they happen
    checkpoint.npz    where the run stood at most `every` seconds ago; previous.npz, the one before
    history.png       the picture, at the end
    .lock             is locked while a process writes here

A folder is known as a run's by its run.json. Where anything else has one of these names, it is not replaced.

Only states whose loss is finite and at most twice that of the start are saved. In place of another one the checkpoint
gets the state with the lowest loss, so that a run that diverges leaves its best weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .. import checkpoints, checks, datasets, files, plotting, training
from ..environment import environment
from . import script
from .settings import Settings, Task

SETTINGS, HISTORY, PICTURE = "run.json", "history.jsonl", "history.png"
#: A last checkpoint that could not be used, while the one before it could; a history that was cut.
REFUSED, DAMAGED = "refused.npz", "damaged.jsonl"
FILES = (SETTINGS, HISTORY, checkpoints.LAST, checkpoints.PREVIOUS, PICTURE, REFUSED, DAMAGED)
#: Where seconds end a run, it may take so many steps.
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
    iterations : int or None
        The number of steps; as many as the seconds allow, if None.
    seconds : float or None
        To spend in steps; as many as the iterations take, if None.
    every : float
        Seconds between checkpoints.
    report : function of str
        Is told what the user should know.
    force : bool
        Whether to remove the run that the folder holds, or other files with the names of a run's.

    Returns
    -------
    History
        Of the run, as far as it went; ``interrupted`` tells whether it was stopped.

    Raises
    ------
    ValueError
        For data that do not fit, a folder that holds a run or other files of these names, is in use or cannot be made,
        neither iterations nor seconds; and for a run that diverged (see `training.diverged`), after the checkpoint of
        the step with the lowest loss is written.
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
        _refuse(folder, force)                          # another may have begun one meanwhile
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        files.write(folder / SETTINGS, json.dumps(content, indent=1) + "\n")
        files.write(folder / HISTORY, "")
        return _train(task, content, folder, iterations, seconds, every, report, None)


def resume(folder: Path, iterations: int | None, seconds: float | None, every: float = 60,
           report: Callable[[str], None] = print) -> training.History:
    """Continue a run from its last checkpoint, to the same bits as one that was never stopped.

    Parameters
    ----------
    folder : Path
        Of the run.
    iterations, seconds : int or None, float or None
        Where to stop, counted from the beginning of the run; as in `start`.
    every : float
        Seconds between checkpoints.
    report : function of str
        Is told which checkpoint is used, which are refused and why, and what differs from the machine that wrote it.

    Returns
    -------
    History
        Its ``records`` are those of the steps since the checkpoint.

    Raises
    ------
    ValueError
        Where the folder holds no run or is in use, no checkpoint of it can be used, or other data are there now; and
        for a run that diverged, as in `start`.
    OSError
        Names the file that cannot be written; the last checkpoint is then intact.
    """
    content, settings = _read(folder)
    _check_limits(iterations, seconds, every)
    for name in FILES:
        files.refuse(folder / name, own=True)           # a symbolic link may lead to a file that is no run's
    with script.locked(folder):
        data = settings.dataset()
        task = settings.task(data)
        if digest_of(data) != content.get("data_sha256"):
            raise ValueError(f"data {settings.data} are not those that the run in {folder} began with")
        history = _last_checkpoint(task, content, folder, report)
        done = 0 if history is None else history.state.k
        evaluations = _cut_history(folder / HISTORY, done, report)
        if history is not None:
            history.evaluations = evaluations
            if done >= (iterations or math.inf) or history.seconds >= (seconds or math.inf):
                report(f"nothing to do: the run has taken {done} steps and {history.seconds:.2f} s already; limits "
                       "count from its beginning")
        return _train(task, content, folder, iterations, seconds, every, report, history)


def checkpoint(folder: str | os.PathLike[str]) -> tuple[Task, checkpoints.Checkpoint]:
    """Read the last checkpoint of a run, to look at it.

    Parameters
    ----------
    folder : path
        Of the run.

    Returns
    -------
    (Task, Checkpoint)
        Model and data; ``state.weights`` of the other is the current iterate, its ``averaged`` the averaged one.

    Raises
    ------
    ValueError
        Where the folder holds no run, or no checkpoint of it that can be read.
    """
    content, settings = _read(Path(folder))
    task = settings.task()
    path = Path(folder) / checkpoints.LAST
    return task, checkpoints.read(path, task.optimizer, task.weights, _of_run(content))


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the steps that a run has recorded, one dict each.

    Parameters
    ----------
    folder : Path
        Of the run.

    Returns
    -------
    list of dict
        The fields of the optimizer's record; NaN and infinity came back as None.
    """
    return [line for line in _lines(folder / HISTORY) if line["kind"] == "step"]


def summary(folder: Path, history: training.History) -> str:
    """Say in a few lines what a run came to.

    Parameters
    ----------
    folder : Path
        Of the run.
    history : History
        As `start` or `resume` returned it.

    Returns
    -------
    str
        Steps, seconds, loss and errors at the last evaluation, and what was written.
    """
    settings = Settings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"])
    network = settings.model().network
    lines = [f"{settings.optimizer} on {settings.data}, {'-'.join(map(str, network.sizes))} ({network.parameters:,} "
             f"parameters), batch {settings.batch}, {settings.dtype}, seed {settings.seed}",
             f"{history.state.k} steps in {history.seconds:.2f} s (evaluation left out), "
             f"{1e3 * history.seconds / max(history.state.k, 1):.3g} ms a step"]
    if history.evaluations:
        last = history.evaluations[-1]
        where = "" if last.k == history.state.k else ", the last that was evaluated"
        lines.append(f"at step {last.k}{where}: loss {last.loss:.5g}, training error {last.error:.5g} (of the averaged "
                     f"iterate {last.averaged_error:.5g}), held-out error {last.test_error:.5g}")
    there = [name for name in (HISTORY, PICTURE, checkpoints.LAST, SETTINGS) if (folder / name).exists()]
    lines.append(f"{folder}/ holds {', '.join(there)}")
    return "\n".join(lines)


def _read(folder: Path) -> tuple[dict[str, Any], Settings]:
    """Return what a run was begun with."""
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return content, Settings(**content["settings"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} holds no run: there is no {SETTINGS} in it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS} is damaged: {error}") from error


def _check_limits(iterations: int | None, seconds: float | None, every: float) -> None:
    if iterations is None and seconds is None:
        raise ValueError("give iterations or seconds: a run must know where to stop")
    if iterations is not None:
        checks.count("iterations", iterations)
    if seconds is not None:
        checks.number("seconds", seconds, 0, above=True)
    checks.number("checkpoint-every", every, 0)


def _train(task: Task, content: dict[str, Any], folder: Path, iterations: int | None, seconds: float | None,
           every: float, report: Callable[[str], None], history: training.History | None) -> training.History:
    # But for the last step, when to evaluate does not depend on where a run stops.
    evaluate_at = frozenset([*training.evaluation_steps(_ENDLESS)[:-1], iterations or 0])
    settings = _of_run(content)
    saved = None if history is None else history.state.k
    if history is None:
        state = task.optimizer.init(task.weights, settings["seed"])
        history = training.History(state, state.weights)
    with _asked_to_stop() as asked, (folder / HISTORY).open("a", encoding="utf-8") as lines:
        recorder = _Recorder(lines, task, settings, folder, every, asked, history, saved)
        try:
            try:
                found = training.train(
                    task.optimizer, task.weights, task.x, task.y, _ENDLESS if iterations is None else iterations,
                    task.schedule, settings["seed"], evaluate_at, task.test, name=settings["optimizer"],
                    seconds=math.inf if seconds is None else seconds, after_step=recorder, resume=history)
            except training.DIVERGED as error:
                raise ValueError(recorder.diverged(str(error), math.nan)) from error
            recorder.finish(found)
            diverged = ""
            if training.diverged(found.evaluations) and not found.interrupted:
                first, last = found.evaluations[0].loss, found.evaluations[-1].loss
                diverged = recorder.diverged(
                    f"the loss over all training cases was {first:.3g} at the start and is {last:.3g}", last)
        except OSError as error:
            with suppress(OSError):
                lines.close()                           # tries to write the rest once more
            raise OSError(error.errno, f"{error.strerror}; {recorder.intact()}") from error
    if found.evaluations and len(asked) < 2:
        try:
            save = functools.partial(_picture(folder, content, found).savefig, format="png")
            files.write(folder / PICTURE, save, own=True)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; {recorder.intact()}") from error
    if diverged:
        raise ValueError(diverged)
    return found


class _Recorder:
    """Called after each step: appends what happened, and writes a checkpoint when one is due."""

    def __init__(self, lines: TextIO, task: Task, settings: dict[str, Any], folder: Path, every: float,
                 asked: list[int], history: training.History, saved: int | None) -> None:
        self.lines, self.task, self.settings, self.folder, self.every = lines, task, settings, folder, every
        self.asked, self.due, self.saved, self.k = asked, time.monotonic() + every, saved, history.state.k
        self.evaluated = len(history.evaluations)
        self.best = _copy(history)
        self.lowest = history.evaluations[-1].loss if history.evaluations else math.inf

    def __call__(self, history: training.History) -> None:
        self.k = history.state.k
        with files.naming(self.folder / HISTORY):
            self._evaluations(history)
            self._line("step", asdict(history.records[-1]))
            self.lines.flush()
        if time.monotonic() >= self.due:
            self._checkpoint(history)
            self.due = time.monotonic() + self.every
        if self.asked:
            raise KeyboardInterrupt

    def finish(self, history: training.History) -> None:
        """Write what is left; a run that was stopped between two steps is whole."""
        with files.naming(self.folder / HISTORY):
            self._evaluations(history)
            self.lines.flush()
        if len(self.asked) < 2:
            self._checkpoint(history)

    def diverged(self, what: str, loss: float) -> str:
        """Save the state with the lowest loss, note the divergence in the history, and return the error's message."""
        self._save(self.best)
        with files.naming(self.folder / HISTORY):
            self._line("diverged", {"k": self.k, "loss": loss, "what": what, "checkpoint": self.saved})
            self.lines.flush()
        return (f"training diverged after step {self.k}: {what}; {self.folder / checkpoints.LAST} is of step "
                f"{self.saved}, where the loss was lowest ({self.lowest:.3g}); begin a new run with a smaller learning "
                "rate, or for kfac a larger lambda_0 or batch")

    def intact(self) -> str:
        """Say which checkpoint is there."""
        return "there is no checkpoint yet" if self.saved is None else f"the checkpoint of step {self.saved} is intact"

    def _evaluations(self, history: training.History) -> None:
        for evaluation in history.evaluations[self.evaluated:]:
            self._line("evaluation", asdict(evaluation))
            if evaluation.k == history.state.k and evaluation.loss < self.lowest:
                self.best, self.lowest = _copy(history), evaluation.loss
            elif evaluation.k == self.best.state.k:     # the start
                self.lowest = min(self.lowest, evaluation.loss)
        self.evaluated = len(history.evaluations)

    def _line(self, kind: str, content: dict[str, Any]) -> None:
        self.lines.write(json.dumps(script.plain({"kind": kind, **content})) + "\n")

    def _checkpoint(self, history: training.History) -> None:
        self._save(self.best if training.diverged(history.evaluations) else history)

    def _save(self, history: training.History) -> None:
        if history.state.k == self.saved:
            return
        with files.naming(self.folder / HISTORY):
            os.fsync(self.lines.fileno())
        now = checkpoints.Checkpoint(history.state, history.averaged, history.seconds, environment())
        checkpoints.write(self.folder, now, self.task.optimizer, self.settings)
        self.saved = history.state.k


def _copy(history: training.History) -> training.History:
    """Return the present state of a history that goes on; steps make new states and leave the old."""
    return training.History(history.state, history.averaged, seconds=history.seconds)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that the step is finished first; a second one interrupts at once."""
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        """Remember a signal.

        Parameters
        ----------
        number : int
            Which one.
        """
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    # Windows has no SIGHUP; nohup sets it to be ignored, and so it stays.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(folder: Path, force: bool) -> None:
    """Refuse a folder that holds what must not be lost: checkpoints or steps of a run, or files that are no run's."""
    try:
        _read(folder)
    except ValueError:
        own: tuple[str, ...] = ()
    else:
        own = (SETTINGS, HISTORY)
        steps = (folder / HISTORY).is_file() and records(folder)
        if not force and (steps or any((folder / name).exists() for name in (checkpoints.LAST, checkpoints.PREVIOUS))):
            raise files.OverwriteError(f"{folder} holds a run already: continue it with --resume {folder}, choose "
                                       "another folder, or give --force to remove it")
    for name in FILES:
        files.refuse(folder / name, name in own, force)


def _last_checkpoint(task: Task, content: dict[str, Any], folder: Path,
                     report: Callable[[str], None]) -> training.History | None:
    """Return where the run stood; None where it was stopped before its first checkpoint."""
    refused = []
    for name in (checkpoints.LAST, checkpoints.PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = checkpoints.read(path, task.optimizer, task.weights, _of_run(content))
        except checkpoints.RefusedError as error:
            refused.append(str(error))
            report(f"not used: {error}")
            continue
        if refused:
            # Else the next checkpoint would make the refused file the previous one, in place of this.
            (folder / checkpoints.LAST).replace(folder / REFUSED)
            report(f"kept the file that is not used as {folder / REFUSED}")
        report(f"continuing from {path} at step {found.state.k}")
        for difference in checkpoints.differences(found.environment):
            report(f"the bits may differ from those of one long run: {difference}")
        return training.History(found.state, found.averaged, seconds=found.seconds)
    if refused:
        raise ValueError(f"{folder} holds no checkpoint that can be used: {'; '.join(refused)}")
    report(f"{folder} holds no checkpoint yet: beginning anew")
    return None


def _of_run(content: dict[str, Any]) -> dict[str, Any]:
    return {**content["settings"], "data_sha256": content["data_sha256"]}


def digest_of(data: datasets.Dataset) -> str:
    """Return the SHA-256 of data, so that a run does not go on with others.

    Parameters
    ----------
    data : Dataset
        All four arrays count.
    """
    sha = hashlib.sha256()
    for array in (data.x, data.labels, data.x_test, data.labels_test):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _cut_history(path: Path, k: int, report: Callable[[str], None]) -> list[training.Evaluation]:
    """Drop the lines of steps after k, and a torn last line; return the evaluations that stay."""
    kept = [line for line in (_lines(path) if path.exists() else []) if k and line["k"] <= k]
    last = max((line["k"] for line in kept if line["kind"] == "step"), default=0)
    if last < k:
        aside = path.with_name(DAMAGED)
        report(f"{path} is damaged from step {last + 1} on, before the checkpoint of step {k}: what is left of it is "
               f"kept as {aside}")
        if path.exists():
            path.replace(aside)
    files.write(path, "".join(json.dumps(line) + "\n" for line in kept), own=True)
    return [evaluation(line) for line in kept if line["kind"] == "evaluation"]


def evaluation(line: dict[str, Any]) -> training.Evaluation:
    """Return an evaluation from its line in a history, where NaN stands as null.

    Parameters
    ----------
    line : dict
        Its fields; others are passed over.
    """
    values: list[Any] = [math.nan if line[f.name] is None else line[f.name] for f in fields(training.Evaluation)]
    return training.Evaluation(*values)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a history up to the first that is torn."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            _ = entry["k"], entry["kind"]
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        found.append(entry)
    return found


def _picture(folder: Path, content: dict[str, Any], history: training.History) -> Any:
    """Draw errors, lambda and gamma, and milliseconds of a run."""
    steps = records(folder)
    settings = content["settings"]
    last = history.evaluations[-1]
    text = (f"{settings['optimizer']} on {settings['data'].partition(':')[0]}, batch {settings['batch']}, seed "
            f"{settings['seed']}, {settings['dtype']}: {history.state.k} steps in {history.seconds:.1f} s; training "
            f"error {last.error:.4g} ({last.averaged_error:.4g} of the averaged iterate), held-out error "
            f"{last.test_error:.4g} at step {last.k}.")
    return plotting.run(history.evaluations, steps, text)
