"""What is written while a run goes on: lines of its history, and checkpoints; and how signals end it."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from .. import checkpoints, files, training
from ..environment import environment
from .history import NAME, line
from .settings import Task


class Recorder:
    """Called after each step: appends its lines to the history, and writes a checkpoint when one is due."""

    def __init__(self, lines: TextIO, task: Task, settings: dict[str, Any], folder: Path, every: float,
                 asked: list[int], history: training.History, saved: int | None) -> None:
        self.lines, self.task, self.settings, self.folder, self.every = lines, task, settings, folder, every
        self.asked, self.due, self.saved, self.k = asked, time.monotonic() + every, saved, history.state.k
        self.evaluated = len(history.evaluations)
        self.best = _copy(history)
        self.lowest = history.evaluations[-1].loss if history.evaluations else math.inf

    def __call__(self, history: training.History) -> None:
        """Take in the last step."""
        with files.naming(self.folder / NAME):
            self._evaluations(history, self.k)          # of the start
            self.k = history.state.k
            self._line("step", asdict(history.records[-1]))
            self._evaluations(history, self.k)
            self.lines.flush()
        if time.monotonic() >= self.due:
            self._checkpoint(history)
            self.due = time.monotonic() + self.every
        if self.asked:
            raise KeyboardInterrupt

    def finish(self, history: training.History) -> None:
        """Write what is left; a run that was stopped between two steps is whole."""
        with files.naming(self.folder / NAME):
            self._evaluations(history, self.k)
            self.lines.flush()
        if len(self.asked) < 2:
            self._checkpoint(history)

    def diverged(self, what: str, loss: float) -> str:
        """Save the state with the lowest loss, note the divergence in the history, and return the error's message."""
        self._save(self.best)
        with files.naming(self.folder / NAME):
            self._line("diverged", {"k": self.k, "loss": loss, "what": what, "checkpoint": self.saved})
            self.lines.flush()
        return (f"training diverged after step {self.k}: {what}; {self.folder / checkpoints.NAME} is of step "
                f"{self.saved}, where the loss was lowest ({self.lowest:.3g}); begin a new run with a smaller learning "
                "rate, or for kfac a larger lambda_0 or batch")

    @contextmanager
    def saying_what_is_intact(self) -> Iterator[None]:
        """Let an OSError say which checkpoint is there."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.lines.close()                      # tries to write the rest once more
            intact = "there is no checkpoint yet" if self.saved is None else \
                f"the checkpoint of step {self.saved} is intact"
            raise OSError(error.errno, f"{error.strerror}; {intact}") from error

    def _evaluations(self, history: training.History, k: int) -> None:
        for evaluation in history.evaluations[self.evaluated:]:
            if evaluation.k > k:
                return
            self._line("evaluation", asdict(evaluation))
            self.evaluated += 1
            if evaluation.k == history.state.k and evaluation.loss < self.lowest:
                self.best, self.lowest = _copy(history), evaluation.loss
            elif evaluation.k == self.best.state.k:     # the start
                self.lowest = min(self.lowest, evaluation.loss)

    def _line(self, kind: str, content: dict[str, Any]) -> None:
        self.lines.write(line(kind, content))

    def _checkpoint(self, history: training.History) -> None:
        self._save(self.best if training.diverged(history.evaluations) else history)

    def _save(self, history: training.History) -> None:
        if history.state.k == self.saved:
            return
        with files.naming(self.folder / NAME):
            os.fsync(self.lines.fileno())
        now = checkpoints.Checkpoint(history.state, history.averaged, history.seconds, environment())
        checkpoints.write(self.folder, now, self.task.optimizer, self.settings)
        self.saved = history.state.k


def _copy(history: training.History) -> training.History:
    """Return the present state of a history that goes on; steps make new states and leave the old."""
    return training.History(history.state, history.averaged, seconds=history.seconds)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that the step is finished first; a second one interrupts at once."""
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        """Remember a signal."""
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    # Windows has no SIGHUP; nohup sets it to be ignored, and it stays ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
