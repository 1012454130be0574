"""What each approximation costs as the network grows: seconds and bytes against width, and the slopes.

    python figures/cost.py [--quick] [--pdf] [--out DIR]

Networks d-d-d-10 (tanh, Categorical) with N = 128 examples. For each width d and each approximation: the seconds to
build the damped matrix and solve with it once (median of three), and the peak memory. The log-log slopes between the
last two widths are printed beside the exponents of the flop counts, which are in the paper's sec. 8. Writes
``cost.png`` and ``cost.json``. Takes about two minutes.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.experiments import family, script

HERE = Path(__file__).parent / "cost"
N = 128
#: The exponent of the flop count in the width d at fixed N, and the largest width to try (dense ones grow fast).
EXPONENTS = {"exact F": (6, 32), "exact blocks": (6, 32), "F̂ (tridiagonal inverse)": (3, 512),
             "F̆ (factored damping)": (3, 512), "A ⊗ G (exact damping)": (3, 512), "EKFAC": (3, 512),
             "nearest A ⊗ G": (3, 128), "FOOF (A alone)": (3, 512), "diagonal": (2, 512)}
DUAL = "exact F, dual"


def measure(names: list[str], widths: list[int], repeats: int) -> dict[str, list[tuple[int, float, float]]]:
    """Return (width, seconds, MiB) for each approximation."""
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    rng = np.random.default_rng(0)
    for d in widths:
        model = kr.Model(kr.MLP((d, d, d, 10), "tanh"), kr.Categorical())
        x, y = rng.standard_normal((N, d)), rng.integers(0, 10, N)
        at = model.at(model.init(rng, "glorot"), x)
        grad, targets = at.gradient(y), at.sample(rng)
        for name in names:
            if d > (512 if name == DUAL else EXPONENTS[name][1]):
                continue
            make = (lambda at, c, t: kr.curvature.ExactDual(at, c)) if name == DUAL else family.FAMILY[name]
            spent = []
            for _ in range(repeats + 1):                                # the first is a warm-up
                start = time.perf_counter()
                make(at, 1e-2, targets).solve(grad)
                spent.append(time.perf_counter() - start)
            tracemalloc.start()
            make(at, 1e-2, targets).solve(grad)
            peak = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            found[name].append((d, float(np.median(spent[1:])), peak))
    return found


def slope(rows: list[tuple[int, float, float]], column: int) -> float:
    """Return the log-log slope between the last two widths."""
    (d1, *a), (d2, *b) = rows[-2], rows[-1]
    return float(np.log(b[column - 1] / a[column - 1]) / np.log(d2 / d1))


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Measure, write picture and numbers to `out`, and print the slopes; return 0."""
    names = [*EXPONENTS, DUAL]
    found = measure(names, [4, 8] if quick else [8, 16, 32, 64, 128, 256, 512], 1 if quick else 3)
    print(f"{'approximation':30s} {'widths':>9s} {'seconds: slope':>15s} {'(flops)':>8s} {'bytes: slope':>13s}")
    slopes = {}
    for name, rows in found.items():
        exponent = EXPONENTS[name][0] if name in EXPONENTS else 2
        slopes[name] = {"seconds": slope(rows, 1), "bytes": slope(rows, 2), "flops": exponent}
        widths = f"{rows[-2][0]} - {rows[-1][0]}"
        print(f"{name:30s} {widths:>9s} {slope(rows, 1):15.1f} {exponent:8d} {slope(rows, 2):13.1f}")
    both = sorted({row[0] for row in found["exact F"]} & {row[0] for row in found[DUAL]})
    times = {name: {row[0]: row[1] for row in found[name]} for name in ("exact F", DUAL)}
    wins = [d for d in both if times[DUAL][d] < times["exact F"][d]]
    where = f"from width {wins[0]} on" if wins else "nowhere among these widths"
    steepest = slopes["exact F"]["seconds"]
    kfac = slopes["F̆ (factored damping)"]["seconds"]
    text = (f"Networks d-d-d-10 with {N} cases: seconds to make the damped matrix and solve once, and the peak of "
            f"memory. At its largest widths the dense Fisher grows with the power {steepest:.1f} of the width (flops: "
            f"6 in the end), K-FAC's F̆ with {kfac:.1f} (flops: 3 in the end); the dual form of the exact Fisher "
            f"is faster than the dense one {where}.")
    figure = plotting.cost({name: np.array(rows) for name, rows in found.items()}, text)
    script.save(figure, {"cases": N, "rows": found, "slopes": slopes}, out / "cost", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
