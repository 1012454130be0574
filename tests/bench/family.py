"""Time the members of the family against each other, as ratios in one run.

    python tests/bench/family.py [--quick]

* the block-tridiagonal solve against the block-diagonal one, with everything factored, on two networks;
* EKFAC's bases and second moments against one backward pass of the same columns;
* the natural gradient by the dual form against the dense one, as the width grows: where does it win?
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import kfac_ref as kr
from kfac_ref.environment import environment


def turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Run both in turns and return the median seconds of each."""
    spent: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for call, seconds in zip((first, second), spent, strict=True):
            start = time.perf_counter()
            call()
            if repeat:                                  # the first is a warm-up
                seconds.append(time.perf_counter() - start)
    return float(np.median(spent[0])), float(np.median(spent[1]))


def point(sizes: tuple[int, ...], N: int) -> tuple[kr.Point, Any]:
    """Return a classifier at its start on random inputs, and labels."""
    rng = np.random.default_rng(0)
    model = kr.Model(kr.MLP(sizes, "tanh"), kr.Categorical(), weight_decay=1e-5)
    return model.at(model.init(rng, "glorot"), rng.standard_normal((N, sizes[0]))), rng.integers(0, sizes[-1], N)


def main() -> None:
    """Print the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, small networks")
    quick = parser.parse_args().quick
    repeats = 2 if quick else 15
    e = environment()
    print(f"{e['cores']} cores, {e['machine']}, NumPy {e['numpy']}, SciPy {e['scipy']}; BLAS threads: {e['threads']}\n")

    def row(name: str, first: Callable[[], Any], second: Callable[[], Any], times: int = repeats) -> None:
        a, b = turns(first, second, times)
        print(f"{name:58s} {1e3 * a:9.2f} {1e3 * b:9.2f} {a / b:7.2f}", flush=True)

    for sizes in ((64, 20, 20, 20, 10), (64, 128, 64, 10) if quick else (784, 500, 250, 100, 10)):
        name = "-".join(map(str, sizes))
        if sizes == (64, 20, 20, 20, 10):
            print(f"{'ms, ms, ratio':58s} {'first':>9s} {'second':>9s} {'ratio':>7s}")
        at, y = point(sizes, 256)
        factors, grad = kr.kronecker_factors(at, reach=1), at.gradient(y)
        F_hat, F_breve = kr.curvature.BlockTridiagonal(factors, 1e-2), kr.curvature.BlockDiagonal(factors, 1e-2)
        row(f"tridiagonal solve / block-diagonal solve, {name}", lambda s=F_hat, g=grad: s.solve(g),
            lambda s=F_breve, g=grad: s.solve(g))
        row(f"the same with making and factoring, {name}",
            lambda f=factors, g=grad: kr.curvature.BlockTridiagonal(f, 1e-2).solve(g),
            lambda f=factors, g=grad: kr.curvature.BlockDiagonal(f, 1e-2).solve(g))
        columns = kr.exact(at)
        row(f"EKFAC's bases and moments / one backward pass, {name}",
            lambda p=at: kr.curvature.EKFAC(p, 1e-2).scales, lambda p=at, c=columns: p.backward(c))
    for d in (4, 8) if quick else (8, 12, 16, 24, 32):
        at, y = point((d, d, d, 10), 128)
        grad = at.gradient(y)
        P = at.model.network.parameters
        row(f"natural gradient, dual (NC = 1280) / dense (P = {P}), width {d}",
            lambda p=at, g=grad: kr.curvature.ExactDual(p, 1e-2).solve(g),
            lambda p=at, g=grad: kr.curvature.Exact(p, 1e-2).solve(g), 2 if quick else 5)


if __name__ == "__main__":
    main()
