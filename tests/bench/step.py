"""Time one K-FAC step, and the dense Fisher, against the bare BLAS and LAPACK calls that they are made of.

    python tests/bench/step.py [--quick]

The bare calls of a step, for each layer with n = d_i + 1 inputs and m = d_{i+1} outputs and a batch of N (all of it
used for the factors and for the exact F): forward, backward, gradient, the sampled backward pass, the two symmetric
products of the factors, two R-passes, and ``G^-1 V A^-1``; with a refresh also potrf and potri of both factors. Both
are run in turns in one process, and the table gives medians and their ratio. A step as timed here does not look back
at rho.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kfac_ref.environment import MEMORY, restart_with

if __name__ == "__main__":
    # Two OpenBLAS copies, NumPy's and SciPy's, spin against each other unless their threads give up soon.
    restart_with({"OPENBLAS_THREAD_TIMEOUT": "4", **MEMORY}, [str(Path(__file__).resolve()), *sys.argv[1:]])

import numpy as np
import scipy.linalg

import kfac_ref as kr
from kfac_ref.environment import environment

N = 512
SMALL = kr.Model(kr.MLP((64, 128, 64, 10), "tanh"), kr.Categorical(), weight_decay=1e-5)
LARGE = kr.Model(kr.MLP((784, 1000, 500, 250, 30, 250, 500, 1000, 784),
                        (*["logistic"] * 3, "identity", *["logistic"] * 3)), kr.Bernoulli(), weight_decay=1e-5)
FISHER = kr.Model(kr.MLP((64, 32, 16, 10), "tanh"), kr.Categorical())


class Call(NamedTuple):
    """A BLAS or LAPACK call on arrays that were allocated beforehand."""

    name: str
    flops: float
    run: Callable[[], Any]


def bare_calls(model: kr.Model, dtype: Any, refresh: bool) -> list[Call]:
    """Return the calls of one step."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    calls: list[Call] = []

    def gemm(name: str, X: Any, Y: Any) -> None:
        out = np.empty((X.shape[0], Y.shape[1]), dtype)
        symmetric = X.base is Y or X.T is Y
        calls.append(Call(name, 2 * X.shape[0] * X.shape[1] * Y.shape[1] / (2 if symmetric else 1),
                          lambda: np.matmul(X, Y, out=out)))

    for i, (m, n) in enumerate(model.network.shapes):
        a_bar, g, W, V = array(N, n), array(N, m), array(m, n), array(m, n)
        A_inv, G_inv = array(n, n), array(m, m)
        gemm("forward", a_bar, W.T)
        gemm("gradient", g.T, a_bar)
        gemm("A", a_bar.T, a_bar)
        gemm("G", g.T, g)
        for _ in range(2):
            gemm("R-pass", a_bar, V.T)
        if i:
            for name in ("backward", "sampled backward"):
                gemm(name, g, W[:, :-1])
            for _ in range(2):
                gemm("R-pass", a_bar[:, :-1], W[:, :-1].T)
        gemm("G^-1 V A^-1", G_inv, V)
        gemm("G^-1 V A^-1", V, A_inv)
        if refresh:
            for d in (n, m):
                S = array(d, 2 * d)
                S = np.asfortranarray(S @ S.T + d * np.eye(d, dtype=dtype))
                potrf, potri = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (S,))
                calls.append(Call("inverses", d**3, lambda S=S, potrf=potrf, potri=potri: potri(
                    potrf(S, lower=1, clean=0, overwrite_a=0)[0], lower=1, overwrite_c=1)))
    return calls


def step(model: kr.Model, dtype: Any, refresh: bool) -> Callable[[], Any]:
    """Return one step of K-FAC on a batch, from a state that has momentum and a kept inverse."""
    rng = np.random.default_rng(0)
    x = rng.random((N, model.network.sizes[0])).astype(dtype)
    y: Any = x if isinstance(model.likelihood, kr.Bernoulli) else rng.integers(0, model.network.sizes[-1], N)
    # An even step makes its inverses anew; lambda and gamma stay.
    opt = kr.optimizers.KFAC(model, tau1=1, T1=10**6, T2=2 * 10**6, T3=2, omega1=1, omega2=1)
    state = opt.init(model.init(rng, dtype=dtype))
    for _ in range(4):
        state, _ = opt.step(state, x, y)
    if refresh:
        state = replace(state, k=5)
    return lambda: opt.step(state, x, y)


def dense_fisher() -> tuple[list[Call], Callable[[], Any]]:
    """Return the bare products of the dense Fisher of 64-32-16-10, and our function."""
    rng = np.random.default_rng(0)
    at = FISHER.at(FISHER.init(rng), rng.random((N, 64)))
    calls: list[Call] = []
    shapes = FISHER.network.shapes
    for i, (m_i, n_i) in enumerate(shapes):
        for m_j, n_j in shapes[:i + 1]:
            X, Y = rng.standard_normal((N, m_i * m_j)).T, rng.standard_normal((N, n_i * n_j))
            out = np.empty((m_i * m_j, n_i * n_j))
            calls.append(Call("R(F_ij)", 2 * N * out.size, lambda X=X, Y=Y, out=out: np.matmul(X, Y, out=out)))
    return calls, lambda: kr.exact_fisher(at)


def compare(calls: list[Call], ours: Callable[[], Any], repeats: int) -> tuple[float, float, dict[str, float]]:
    """Run both in turns and return the median seconds of each, and of the bare calls by name."""
    bare, whole = [], []
    by_name: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        spent = dict.fromkeys((call.name for call in calls), 0.0)
        for call in calls:
            start = time.perf_counter()
            call.run()
            spent[call.name] += time.perf_counter() - start
        start = time.perf_counter()
        ours()
        if repeat:                                      # the first is a warm-up
            whole.append(time.perf_counter() - start)
            bare.append(sum(spent.values()))
            for name, seconds in spent.items():
                by_name.setdefault(name, []).append(seconds)
    return float(np.median(bare)), float(np.median(whole)), {n: float(np.median(s)) for n, s in by_name.items()}


def row(name: str, flops: float, bare: float, whole: float) -> str:
    """Return a line of the table."""
    return f"{name:40s} {flops / 1e9:8.3f} {1e3 * bare:9.2f} {1e3 * whole:9.2f} {whole / bare:6.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    quick = parser.parse_args().quick
    e = environment()
    print(f"{e['cores']} cores, {e['machine']}, Python {e['python']}, NumPy {e['numpy']}, SciPy {e['scipy']}, "
          f"{e['blas']}, batch {N}; BLAS threads: {e['threads']}\n")
    print(f"{'one step':40s} {'GFLOP':>8s} {'bare ms':>9s} {'step ms':>9s} {'ratio':>6s}")
    lists = {}
    for title, model, repeats in (("64-128-64-10", SMALL, 200), ("784-1000-500-250-30-...-784", LARGE, 15)):
        for dtype in (np.float32, np.float64):
            for refresh in (False, True):
                calls = bare_calls(model, dtype, refresh)
                flops = sum(call.flops for call in calls)
                bare, whole, by_name = compare(calls, step(model, dtype, refresh), 3 if quick else repeats)
                name = f"{title} {np.dtype(dtype).name}{', refresh' if refresh else ''}"
                print(row(name, flops, bare, whole), flush=True)
                lists[name] = (calls, by_name)
    calls, ours = dense_fisher()
    bare, whole, by_name = compare(calls, ours, 3 if quick else 30)
    name = "dense Fisher of 64-32-16-10, float64"
    print(row(name, sum(call.flops for call in calls), bare, whole))
    name, (calls, by_name) = list(lists.items())[-1]
    print(f"\nthe bare calls of {name}:\n{'call':20s} {'GFLOP':>8s} {'ms':>9s} {'GFLOP/s':>9s}")
    for kind, seconds in by_name.items():
        flops = sum(call.flops for call in calls if call.name == kind)
        print(f"{kind:20s} {flops / 1e9:8.3f} {1e3 * seconds:9.2f} {flops / 1e9 / seconds:9.1f}")


if __name__ == "__main__":
    main()
