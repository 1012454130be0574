"""Time and memory of a check: ``python tests/bench/oracle.py``.

Each row is one process, ``kfac-ref check`` on one core, with its start and its imports. The problems have up to 100,000
weights; the values are right, wrong by one mistake, by two, or by none of the catalogue. Few values are harder to
explain than many: "step" is given alone, and so are the weights of a trajectory.
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
from kfac_ref.oracle.problem import Batch, Trajectory

NETS = {"5-6-4": 30, "30-30-10": 60, "100-80-10": 100, "784-110-50-10": 200, "320-200-120-60-10": 100}
GIVEN = (("A", "G", "gradient", "step"), ("step",), ("trajectory_weights",))
WRONG = {"right": (), "one mistake": ("pi left out",),
         "two mistakes": ("A summed over the examples", "weight decay twice in the gradient")}
#: The limits: seconds of a verdict, an explanation, and none; megabytes.
LIMITS = {"right": 1.0, "one mistake": 5.0, "two mistakes": 5.0, "not explained": 10.0}
NOT_EXPLAINED, MEGABYTES = 10.0, 500


def problem(net: str, N: int) -> Problem:
    rng = np.random.default_rng(0)
    sizes = tuple(map(int, net.split("-")))
    weights = [rng.standard_normal((m, n + 1)) / np.sqrt(n) for n, m in pairwise(sizes)]
    batches = tuple(Batch(np.arange(N), np.arange(N // 2), np.arange(N // 2, N), rng.integers(0, sizes[-1], N // 2))
                    for _ in range(4))
    along = Trajectory(lambda_0=1.0, T1=2, T2=2, T3=1, omega1=0.9, omega2=0.9, ceiling=0.95, gamma_min=1e-3,
                       gamma_max=10.0, lambda_floor=0.0, momentum=True, batches=batches, structure="block-diagonal")
    return Problem(sizes, ("tanh",) * (len(sizes) - 2), "categorical", weights, rng.standard_normal((N, sizes[0])),
                   rng.integers(0, sizes[-1], N), 0.1, 1e-3, trajectory=along)


def values(p: Problem, case: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Return what a program with the mistakes of a case would give."""
    r = Reference(p).having(*(CATALOGUE[name] for name in WRONG.get(case, ())))
    found = {name: r.shown(name) for name in given}
    if case == "not explained":
        wrong = "G" if "G" in given else given[0]
        found[wrong] = tuple(np.sign(S) * np.sqrt(np.abs(S)) for S in found[wrong])
    return found


def measured(folder: Path, p: Problem, case: str, given: tuple[str, ...]) -> tuple[float, float, str]:
    """Return seconds, megabytes and the last word of a check in a process of its own."""
    p.write(folder / "p.npz", force=True)
    theirs = {f"{name}_{i}": X for name, value in values(p, case, given).items() for i, X in enumerate(value)}
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
    print(f"{'network':19}{'weights':>7}  {'given':20}{'values':14}{'seconds':>7}{'limit':>6}{'MB':>5}  verdict")
    with tempfile.TemporaryDirectory() as folder:
        for net, N in NETS.items():
            p = problem(net, N)
            for given in GIVEN:
                for case, limit in LIMITS.items():
                    seconds, megabytes, verdict = measured(Path(folder), p, case, given)
                    if "not explained" in verdict:
                        limit = NOT_EXPLAINED
                    over = "  <-- over" if seconds > limit or megabytes > MEGABYTES else ""
                    print(f"{net:19}{p.model.network.parameters:7d}  {', '.join(given)[:18]:20}{case:14}{seconds:7.1f}"
                          f"{limit:6.0f}{megabytes:5.0f}  {verdict}{over}", flush=True)


if __name__ == "__main__":
    main()
