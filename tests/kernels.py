"""Run the numeric tests with every OpenBLAS kernel that this processor can run:
``python -m tests.kernels [--threads N] [NAME ...]``.

OpenBLAS chooses a kernel for the processor, and each kernel rounds in its own way. ``OPENBLAS_CORETYPE`` chooses
another one, so that a test that depends on rounding fails here and not on somebody else's machine. Each kernel
runs with one BLAS thread and with two, or only with N.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The kernels, and the flags in /proc/cpuinfo that a processor must have to run them.
KERNELS = {"Prescott": "pni", "Nehalem": "sse4_2", "Sandybridge": "avx", "Haswell": "avx2 fma", "Zen": "avx2 fma",
           "SkylakeX": "avx512f avx512cd avx512bw avx512dq avx512vl"}
#: What a numeric test module imports: the small problems that tests share, or the oracle's right values.
NUMERIC = re.compile(r"^from (\S*\.problems import|kfac_ref\.oracle import .*\bReference\b)", re.MULTILINE)
#: Prints the kernels that NumPy's and SciPy's OpenBLAS use.
USED = ("import numpy, scipy.linalg, threadpoolctl; "
        "print(*sorted({pool.get('architecture', '?') for pool in threadpoolctl.threadpool_info()}))")


def modules() -> list[str]:
    """Return the files of the numeric tests."""
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path) for path in paths if NUMERIC.search(path.read_text(encoding="utf-8"))]


def python(kernel: str, threads: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with this kernel ("" leaves the choice to OpenBLAS) and so many BLAS threads."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {"OPENBLAS_NUM_THREADS": str(threads)} | ({"OPENBLAS_CORETYPE": kernel} if kernel else {})
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=False)


def main() -> int:
    """Print a table of the kernels and of what pytest says about each; return 1 if a test fails."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        print(f"skipped: the kernels are those of x86-64 under Linux, and this is {platform.machine()} under "
              f"{platform.system()}")
        return 0
    flags = set(re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)[1].split())    # type: ignore[index]
    parser = argparse.ArgumentParser(description="Run the numeric tests with OpenBLAS kernels.")
    parser.add_argument("kernels", nargs="*", metavar="NAME", help=f"of {', '.join(KERNELS)} (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="BLAS threads (default: one, then two)")
    chosen = parser.parse_args()
    if unknown := set(chosen.kernels) - set(KERNELS):
        parser.error(f"unknown kernels: {', '.join(sorted(unknown))}")
    failed, tests, seen = [], modules(), {}
    print(f"{len(tests)} test modules\n{'OPENBLAS_CORETYPE':18s}{'in use':13s}threads  result", flush=True)
    for kernel in chosen.kernels or ["", *KERNELS]:
        name = kernel or "(not set)"
        if missing := set(KERNELS[kernel].split()) - flags if kernel else set():
            print(f"{name:18s}{'-':13s}-        skipped: the processor lacks {' '.join(sorted(missing))}", flush=True)
            continue
        used = python(kernel, 1, "-c", USED).stdout.strip()         # another word for Prescott is Katmai
        if used in seen:
            print(f"{name:18s}{used:13s}-        the same kernel as {seen[used]}", flush=True)
            continue
        seen[used] = name
        for threads in [chosen.threads] if chosen.threads else [1, 2]:
            workers = max(1, (os.cpu_count() or 1) // threads)      # more threads than cores would wait for each other
            options = "-m", "pytest", "-q", "-n", str(workers), "-m", "not slow", "--tb=short"
            done = python(kernel, threads, *options, *tests)
            print(f"{name:18s}{used:13s}{threads:<9d}{done.stdout.splitlines()[-1]}", flush=True)
            failed += [done.stdout + done.stderr] if done.returncode else []
    print("\n".join(failed), end="")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
