"""Run a student's functions in a child process, with limits on time, memory and output."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHILD = Path(__file__).resolve().parent / "child.py"
#: Memory limit of a child, in bytes.
MEMORY = 2 * 2**30
SETTINGS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
            "PYTHONIOENCODING": "utf-8:replace"}


class ImportFailure(Exception):
    """The file cannot be imported, so that none of its functions can run."""


def run(path: Path, text: str, calls: Mapping[str, Sequence[Any]], seconds: float) -> tuple[dict[str, Any], str]:
    """Call functions of a file; return a report for each, as `child` makes it, and what the file printed.

    `calls` holds the arguments of each call by function. `seconds` limits the time of all calls of one function, and
    that of the import. If a function exceeds it or ends the process, a new child runs the functions after it.
    """
    reports, printed, left = {}, "", dict(calls)
    while left:
        order = {"path": str(path), "text": text, "seconds": seconds, "bytes": MEMORY, "calls": left}
        # -P: a student's import must not find the modules of this folder.
        child = subprocess.run([sys.executable, "-P", str(CHILD)], input=pickle.dumps(order), capture_output=True,
                               env={**os.environ, **SETTINGS}, check=False)
        output, timeout, trace = child.stderr.decode("utf-8", "replace").partition("Timeout (")
        printed += output
        stopped = {"raised": _timeout(path, seconds, trace) if timeout else _ending(child.returncode)}
        new = _received(child.stdout)
        error = new.pop("", stopped).get("raised")
        if error:
            raise ImportFailure(f"cannot be imported: {error}")
        missing = [name for name in left if name not in new]
        reports |= new | {name: stopped for name in missing[:1]}
        left = {name: left[name] for name in missing[1:]}
    return reports, printed


def _received(stream: bytes) -> dict[str, Any]:
    """Return the reports that a child wrote."""
    file, reports = io.BytesIO(stream), {}
    with contextlib.suppress(EOFError, pickle.UnpicklingError):         # the end, or a report that was cut off
        while True:
            name, report = pickle.load(file)
            reports[name] = report
    return reports


def _timeout(path: Path, seconds: float, trace: str) -> str:
    line = re.search(rf'File "{re.escape(str(path))}", line (\d+)', trace)
    return f"does not end within {seconds:g} s" + (f" (line {line[1]})" if line else "")


def _ending(status: int) -> str:
    return f"ended the process ({signal.Signals(-status).name if status < 0 else f'status {status}'})"
