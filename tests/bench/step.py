"""Time one K-FAC step, and the dense Fisher, against the bare BLAS and LAPACK calls that they are made of.

    python tests/bench/step.py [--quick]

The bare calls of a step, for each layer with n = d_i + 1 inputs and m = d_{i+1} outputs and a batch of N (all of it
used for the factors and for the exact F): forward, backward, gradient, the sampled backward pass, the two symmetric
products of the factors, two R-passes, and ``G^-1 V A^-1``. A step with a refresh has potrf and potri of both factors
too, and measures rho on its batch, which is one more forward pass. Bare calls and step are run in turns in one process,
and the tables give medians and their ratio; the second is that of the paper's sec. 8, a row for each stage that a
record keeps the seconds of. The last compares two ways to serve the three gammas of every T2-th step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

# Two OpenBLAS copies, NumPy's and SciPy's, spin against each other unless their threads give up soon.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import numpy as np
import scipy.linalg

import kfac_ref as kr
from kfac_ref.environment import environment
from kfac_ref.kronecker import Eigen, apply_in_eigenbasis

N = 512
SMALL = kr.Model(kr.MLP((64, 128, 64, 10), "tanh"), kr.Categorical(), weight_decay=1e-5)
LARGE = kr.Model(kr.MLP((784, 1000, 500, 250, 30, 250, 500, 1000, 784),
                        (*["logistic"] * 3, "identity", *["logistic"] * 3)), kr.Bernoulli(), weight_decay=1e-5)
FISHER = kr.Model(kr.MLP((64, 32, 16, 10), "tanh"), kr.Categorical())


class Call(NamedTuple):
    """A BLAS or LAPACK call on arrays that were allocated beforehand."""

    stage: str                                          # as in the seconds of a record
    name: str
    flops: float
    run: Callable[[], Any]


#: Seconds of the whole and of its parts.
Spent: TypeAlias = tuple[float, dict[str, float]]


def bare_calls(model: kr.Model, dtype: Any, refresh: bool) -> list[Call]:
    """Return the calls of one step."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    calls: list[Call] = []

    def gemm(stage: str, name: str, X: Any, Y: Any) -> None:
        out = np.empty((X.shape[0], Y.shape[1]), dtype)
        symmetric = X.base is Y or X.T is Y
        calls.append(Call(stage, name, 2 * X.shape[0] * X.shape[1] * Y.shape[1] / (2 if symmetric else 1),
                          lambda: np.matmul(X, Y, out=out)))

    for i, (m, n) in enumerate(model.network.shapes):
        a_bar, g, W, V = array(N, n), array(N, m), array(m, n), array(m, n)
        A_inv, G_inv = array(n, n), array(m, m)
        gemm("gradient", "forward", a_bar, W.T)
        gemm("gradient", "gradient", g.T, a_bar)
        gemm("factors", "A", a_bar.T, a_bar)
        gemm("factors", "G", g.T, g)
        for _ in range(2):
            gemm("exact F", "R-pass", a_bar, V.T)
        if i:
            gemm("gradient", "backward", g, W[:, :-1])
            gemm("factors", "sampled backward", g, W[:, :-1])
            for _ in range(2):
                gemm("exact F", "R-pass", a_bar[:, :-1], W[:, :-1].T)
        for X, Y in ((G_inv, V), (V, A_inv)):
            gemm("inverses" if refresh else "solve", "G^-1 V A^-1", X, Y)
        if refresh:
            gemm("rho", "forward again", a_bar, W.T)
            for d in (n, m):
                S = array(d, 2 * d)
                S = np.asfortranarray(S @ S.T + d * np.eye(d, dtype=dtype))
                potrf, potri = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (S,))
                calls.append(Call("inverses", "potrf, potri", d**3, lambda S=S, potrf=potrf, potri=potri: potri(
                    potrf(S, lower=1, clean=0, overwrite_a=0)[0], lower=1, overwrite_c=1)))
    return calls


def step(model: kr.Model, dtype: Any, refresh: bool) -> Callable[[], dict[str, float]]:
    """Return one step of K-FAC on a batch, from a state that has momentum and a kept inverse; it returns seconds."""
    rng = np.random.default_rng(0)
    x = rng.random((N, model.network.sizes[0])).astype(dtype)
    y: Any = x if isinstance(model.likelihood, kr.Bernoulli) else rng.integers(0, model.network.sizes[-1], N)
    # Step 6 makes new inverses and is judged, step 5 does neither; lambda and gamma stay.
    opt = kr.optimizers.KFAC(model, tau1=1, T1=6, T2=2 * 10**6, T3=2, omega1=1, omega2=1, judged_on="same batch")
    state = opt.init(model.init(rng, dtype=dtype))
    for _ in range(4):
        state, _ = opt.step(state, x, y)
    if refresh:
        state = replace(state, k=5)
    return lambda: opt.step(state, x, y)[1].seconds


def dense_fisher() -> tuple[list[Call], Callable[[], dict[str, float]]]:
    """Return the bare products of the dense Fisher of 64-32-16-10, and our function."""
    rng = np.random.default_rng(0)
    at = FISHER.at(FISHER.init(rng), rng.random((N, 64)))
    calls: list[Call] = []
    shapes = FISHER.network.shapes
    for i, (m_i, n_i) in enumerate(shapes):
        for m_j, n_j in shapes[:i + 1]:
            X, Y = rng.standard_normal((N, m_i * m_j)).T, rng.standard_normal((N, n_i * n_j))
            out = np.empty((m_i * m_j, n_i * n_j))
            calls.append(Call("", "R(F_ij)", 2 * N * out.size, lambda X=X, Y=Y, out=out: np.matmul(X, Y, out=out)))

    def ours() -> dict[str, float]:
        kr.fisher_matrix(at)
        return {}

    return calls, ours


def compare(calls: list[Call], ours: Callable[[], dict[str, float]], repeats: int) -> tuple[Spent, Spent]:
    """Run both in turns and return the median seconds of the bare calls, whole and by name, and ours, by stage."""
    spent: tuple[list[Spent], list[Spent]] = ([], [])
    for repeat in range(repeats + 1):
        by_name = dict.fromkeys((call.name for call in calls), 0.0)
        for call in calls:
            start = time.perf_counter()
            call.run()
            by_name[call.name] += time.perf_counter() - start
        start = time.perf_counter()
        by_stage = ours()
        whole = time.perf_counter() - start
        if repeat:                                      # the first is a warm-up
            spent[0].append((sum(by_name.values()), by_name))
            spent[1].append((whole, by_stage))
    bare, our = ((float(np.median([whole for whole, _ in runs])),
                  {name: float(np.median([parts[name] for _, parts in runs])) for name in runs[0][1]})
                 for runs in spent)
    return bare, our


def three_gammas(repeats: int) -> tuple[float, float]:
    """Return the seconds that three dampings of one set of factors take by Cholesky, and by one eigendecomposition."""
    rng = np.random.default_rng(0)
    at = LARGE.at(LARGE.init(rng), rng.random((N, 784)))
    grad, factors = at.gradient(at.x), kr.kronecker_factors(at, kr.sampled(at.sample(rng)))
    gammas = (0.5, 0.3, 0.8)

    def by_cholesky() -> list[Any]:
        return [kr.curvature.BlockDiagonal(factors, gamma**2).kept().solve(grad) for gamma in gammas]

    def by_eigen() -> list[Any]:
        bases = [(Eigen.factor(A), Eigen.factor(G), kr.damping.trace_pi(A, G)) for A, G in factors.layers]
        return [[apply_in_eigenbasis(A, G, 1 / np.outer(G.values + gamma / pi, A.values + gamma * pi), V)
                 for (A, G, pi), V in zip(bases, grad, strict=True)] for gamma in gammas]

    for first, second in zip(by_cholesky(), by_eigen(), strict=True):
        for U, V in zip(first, second, strict=True):
            np.testing.assert_allclose(U, V, rtol=0, atol=1e-8 * np.abs(U).max())
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, seconds in zip((by_cholesky, by_eigen), spent, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return float(np.median(spent[0])), float(np.median(spent[1]))


def row(name: str, flops: float, bare: float, whole: float) -> str:
    """Return a line of a table."""
    ratio = f"{whole / bare:6.2f}" if bare else "     -"
    return f"{name:60s} {flops / 1e9:8.3f} {1e3 * bare:9.2f} {1e3 * whole:9.2f} {ratio}"


def head(title: str) -> str:
    """Return the head of a table."""
    return f"{title:60s} {'GFLOP':>8s} {'bare ms':>9s} {'ours ms':>9s} {'ratio':>6s}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    quick = parser.parse_args().quick
    e = environment()
    print(f"{e['cores']} cores, {e['machine']}, Python {e['python']}, NumPy {e['numpy']}, SciPy {e['scipy']}, "
          f"{e['blas']}, batch {N}; BLAS threads: {e['threads']}\n")
    print(head("one step"))
    stages: list[str] = []
    for title, model, repeats in (("64-128-64-10", SMALL, 200), ("784-1000-500-250-30-...-784", LARGE, 15)):
        for dtype in (np.float32, np.float64):
            name = f"{title} {np.dtype(dtype).name}"
            stages += ["", head(f"{name}, by stage")]
            rows: dict[str, str] = {}
            for refresh in (False, True):
                calls = bare_calls(model, dtype, refresh)
                (bare, by_name), (whole, by_stage) = compare(calls, step(model, dtype, refresh),
                                                             3 if quick else repeats)
                print(row(f"{name}{', new inverses and rho' if refresh else ''}", sum(call.flops for call in calls),
                          bare, whole), flush=True)
                for stage, seconds in by_stage.items():
                    mine = [call for call in calls if call.stage == stage]
                    names = list(dict.fromkeys(call.name for call in mine))
                    rows[stage] = row(f"  {stage:10s}{' + '.join(names)}", sum(call.flops for call in mine),
                                      sum(by_name[n] for n in names), seconds)
            stages += rows.values()
    calls, ours = dense_fisher()
    (bare, _), (whole, _) = compare(calls, ours, 3 if quick else 30)
    print(row("dense Fisher of 64-32-16-10, float64", sum(call.flops for call in calls), bare, whole))
    print("\n".join(stages))
    cholesky, eigen = three_gammas(2 if quick else 7)
    print(f"\n{'three gammas on 784-1000-500-250-30-...-784, float64':70s} {'ms':>9s}")
    print(f"{'  inverses of the damped factors for each, by Cholesky':70s} {1e3 * cholesky:9.0f}")
    print(f"{'  one eigendecomposition of the factors for all':70s} {1e3 * eigen:9.0f} {eigen / cholesky:6.2f} times")


if __name__ == "__main__":
    main()
