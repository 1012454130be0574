"""What the bits of a run depend on besides its settings: versions, the machine, and the threads of BLAS."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_info, threadpool_limits


def environment() -> dict[str, Any]:
    """Return the versions and settings on which the bits of a run depend."""
    from . import __version__  # defined after the imports of the package

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]          # NumPy's and SciPy's
    return {"kfac_ref": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "scipy": scipy.__version__, "blas": f"{blas.get('name')} {blas.get('version')}",
            "machine": platform.machine(), "cpu": models[0] if models else platform.processor(),
            "kernel": ", ".join(sorted({str(pool.get("architecture")) for pool in pools})), "platform": sys.platform,
            "cores": os.cpu_count(), "threads": ", ".join(str(pool["num_threads"]) for pool in pools)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS use one thread, unless the user has set OPENBLAS_NUM_THREADS or OMP_NUM_THREADS.

    One thread multiplies small matrices faster; and NumPy and SciPy bring a pool of threads each, which disturb each
    other.
    """
    if {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
