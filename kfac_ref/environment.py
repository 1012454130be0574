"""What a run depends on besides its settings: versions, the machine, and variables that are read at start only."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

#: Arrays of a megabyte are taken from memory that the process keeps, where glibc would else ask the system for fresh
#: pages at every temporary array; read when a process starts.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "67108864"}
#: Small matrices are multiplied faster by one thread; and NumPy and SciPy bring a pool of threads each, which get in
#: each other's way. Read when NumPy is imported.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def environment() -> dict[str, Any]:
    """Return the versions and settings on which the bits of a run depend."""
    from . import __version__  # stands below the imports of the package

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    return {"kfac_ref": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "scipy": scipy.__version__, "blas": f"{blas.get('name')} {blas.get('version')}",
            "machine": platform.machine(), "cpu": models[0] if models else platform.processor(),
            "kernel": os.environ.get("OPENBLAS_CORETYPE", "chosen by the library"), "platform": sys.platform,
            "cores": os.cpu_count(), "threads": os.environ.get("OPENBLAS_NUM_THREADS", "not set")}


def restart_with(variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Start this process again with environment variables that are read at start only; what the user has set stays.

    Parameters
    ----------
    variables : mapping
        Names and values.
    arguments : sequence of str
        What Python is called with.
    """
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if missing and os.name == "posix":
        os.execve(sys.executable, [sys.executable, *arguments], os.environ | missing)
