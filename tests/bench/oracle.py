"""Time and memory of a check: ``python tests/bench/oracle.py``.

Each row is one process, ``kfac-ref check`` on one core, with its start and its imports. The problems have up to 100,000
weights; the values are right, wrong by one mistake, by two, or by none of the catalogue.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kfac_ref.oracle import CATALOGUE, Problem, Reference

NETS = {"5-6-4": 30, "30-30-10": 60, "100-80-10": 100, "320-200-120-60-10": 100}
GIVEN = ("A", "G", "gradient", "step")
WRONG = {"right": (), "one mistake": ("pi left out",),
         "two mistakes": ("A summed over the examples", "weight decay twice in the gradient")}
#: The limits: seconds of a verdict, an explanation, and none; megabytes.
LIMITS = {"right": 1.0, "one mistake": 5.0, "two mistakes": 5.0, "not explained": 10.0}
MEGABYTES = 500


def problem(net: str, N: int) -> Problem:
    rng = np.random.default_rng(0)
    sizes = tuple(map(int, net.split("-")))
    weights = [rng.standard_normal((m, n + 1)) / np.sqrt(n) for n, m in pairwise(sizes)]
    return Problem(sizes, ("tanh",) * (len(sizes) - 2), "categorical", weights, rng.standard_normal((N, sizes[0])),
                   rng.integers(0, sizes[-1], N), 0.1, 1e-3)


def values(p: Problem, case: str) -> dict[str, Any]:
    r = Reference(p).having(*(CATALOGUE[name] for name in WRONG.get(case, ())))
    found = {name: r.shown(name) for name in GIVEN}
    if case == "not explained":
        found["G"] = tuple(np.sqrt(np.abs(S)) for S in found["G"])
    return found


def measured(folder: Path, p: Problem, case: str) -> tuple[float, float, str]:
    """Return seconds, megabytes and the last word of a check in a process of its own."""
    p.write(folder / "p.npz", force=True)
    theirs = {f"{name}_{i}": X for name, value in values(p, case).items() for i, X in enumerate(value)}
    np.savez(folder / "t.npz", **theirs)
    code = ("import resource, sys; from kfac_ref import cli; status = cli.main(['check', 'p.npz', 't.npz']); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True,
                          env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    seconds = time.perf_counter() - start
    text = done.stdout
    verdict = "right" if "all right" in text else "explained" if "explained by:" in text or "fit equally" in text else \
        "not explained, not all tried" if "for lack of time" in text else "not explained"
    return seconds, float(done.stderr.split()[-1]), verdict


def main() -> None:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import kfac_ref.oracle"], check=True)
    print(f"of these seconds, {time.perf_counter() - start:.1f} are the start of Python and the imports")
    print(f"{'network':20}{'weights':>9}  {'values':15}{'seconds':>8}{'limit':>7}{'MB':>6}  verdict")
    with tempfile.TemporaryDirectory() as folder:
        for net, N in NETS.items():
            p = problem(net, N)
            for case, limit in LIMITS.items():
                seconds, megabytes, verdict = measured(Path(folder), p, case)
                over = "  <-- over" if seconds > limit or megabytes > MEGABYTES else ""
                print(f"{net:20}{p.model.network.parameters:9d}  {case:15}{seconds:8.1f}{limit:7.0f}{megabytes:6.0f}  "
                      f"{verdict}{over}", flush=True)


if __name__ == "__main__":
    main()
