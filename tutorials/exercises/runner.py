"""Running a student's functions in a child process, which may crash, hang, print without end or eat memory."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from child import decode, encode  # noqa: F401  (decode: of the results)

CHILD = Path(__file__).resolve().parent / "child.py"
#: A child may take so long to import NumPy.
START = 60.0
#: Memory of a child, in bytes, where the system can limit it.
MEMORY = 2 * 2**30
#: Of so many statements outside of functions it is put up with that they hang or end the process.
STATEMENTS = 10
#: So much of what a file prints is kept.
PRINTED = 2000


class CannotRun(Exception):
    """The child process does not even start."""


@dataclass
class Outcome:
    """What came of a file: for each function its report, notes on what stands outside of functions, what it printed."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    printed: str = ""


def run(path: Path, text: str, asked: dict[str, Sequence[Any]], seconds: float) -> Outcome:
    """Call a file's functions.

    Parameters
    ----------
    path : Path
        The file, for messages.
    text : str
        Its content.
    asked : dict
        For each function, the arguments of its calls.
    seconds : float
        What each function may take for all its calls.
    """
    outcome, skip = Outcome(), set()
    calls = {name: [encode(list(call)) for call in each] for name, each in asked.items()}
    while left := [name for name in asked if name not in outcome.reports]:
        order = {"path": str(path), "text": text, "skip": sorted(skip), "bytes": MEMORY,
                 "run": [(name, calls[name]) for name in left]}
        child = _Child(order)
        try:
            at, why = _follow(child, outcome, seconds, len(left))
        finally:
            child.kill()
        outcome.printed = (outcome.printed + child.printed.decode("utf-8", "replace"))[:PRINTED]
        if at is None:
            break
        kind, what = at
        if kind == "start":
            outcome.reports[what] = {"raised": why}
        elif kind == "loading" and what not in skip and len(skip) < STATEMENTS:
            skip.add(what)
            outcome.notes.append(f"line {what} {why}")
        else:
            words = child.printed.decode("utf-8", "replace").split()
            raise CannotRun(f"{path.name} cannot be run: it {why}. {' '.join(words)[-300:]}".strip())
    return outcome


def _follow(child: _Child, outcome: Outcome, seconds: float, count: int) -> tuple[tuple[str, Any] | None, str]:
    """Listen to a child until all is done; return where it was when it ended or was too slow, and why it stopped."""
    at: tuple[str, Any] = "nothing", None
    deadline = time.monotonic() + START
    while True:
        try:
            line = child.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return at, f"does not end within {seconds:g} s"
        if line is None:
            return at, child.ending()
        try:
            said = json.loads(line)
            kind = next(iter(said))
        except (ValueError, StopIteration, TypeError):
            continue                                        # not of ours: the student wrote into the channel
        if kind in ("start", "loading"):
            at = kind, said[kind]
        elif kind == "outside":
            if said["outside"] not in outcome.notes:
                outcome.notes.append(said["outside"])
        elif kind == "name":
            outcome.reports.setdefault(said.pop("name"), said)
            count -= 1
            if not count:
                return None, ""
        deadline = time.monotonic() + seconds


class _Child:
    """A child process with two threads that listen to it, so that it never waits for us."""

    def __init__(self, order: dict[str, Any]) -> None:
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **one, "PYTHONIOENCODING": "utf-8:replace"}, start_new_session=os.name == "posix")
        self.lines: queue.Queue[bytes | None] = queue.Queue(maxsize=16)
        self.printed = b""
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._drain)]
        for thread in self.threads:
            thread.start()
        with contextlib.suppress(OSError):                  # it ended before it had read: `lines` says so
            self.process.stdin.write(json.dumps(order).encode())
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def _listen(self) -> None:
        for line in iter(lambda: self.process.stdout.readline(2**26), b""):
            self.lines.put(line)
        self.lines.put(None)

    def _drain(self) -> None:
        for block in iter(lambda: self.process.stderr.read1(2**16), b""):
            self.printed += block[:PRINTED - len(self.printed)] if len(self.printed) < PRINTED else b""

    def ending(self) -> str:
        """Say how the process ended by itself."""
        try:
            status = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed the grader's pipe"
        if status < 0:
            return f"was killed by the system ({signal.Signals(-status).name})"
        return f"ended the whole process (status {status})"

    def kill(self) -> None:
        """End the process and what it started."""
        try:
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        deadline = time.monotonic() + 1
        while any(thread.is_alive() for thread in self.threads) and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self.lines.get(timeout=0.01)
        for thread, pipe in zip(self.threads, (self.process.stdout, self.process.stderr), strict=True):
            if not thread.is_alive():                       # what left the process group may still hold the other end
                pipe.close()
