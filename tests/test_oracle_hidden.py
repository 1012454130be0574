"""The diagnosis on networks that are none of the vectors': what was done is found, and what is right is not accused.

Networks, batches, settings and the quantities that are given are drawn; `composed` puts the mistakes of the catalogue
into the values. ``python -m tests.test_oracle_hidden 2000`` tries so many more cases.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kfac_ref.network import ACTIVATIONS
from kfac_ref.oracle import CATALOGUE, QUANTITIES, KLClip, Previous, Problem, Reference, Trajectory, check
from kfac_ref.oracle.differences import error
from kfac_ref.oracle.problem import Batch
from kfac_ref.oracle.search import Diagnosis
from tests import composed

pytestmark = pytest.mark.slow
#: Errors beyond this are no rounding in single precision, whatever the condition.
SINGLE = 2e-2


def targets_of(likelihood: str, shape: tuple[int, ...], C: int, rng: np.random.Generator) -> Any:
    if likelihood == "categorical":
        return rng.integers(0, C, shape)
    return rng.integers(0, 2, (*shape, C)) if likelihood == "bernoulli" else rng.standard_normal((*shape, C))


def some(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def drawn(seed: int) -> Problem:
    """Draw a problem: widths from 1, every nonlinearity and likelihood, one example, no damping, tiny and huge."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(n) for n in rng.integers(1, 5, rng.integers(2, 5)))
    likelihood = some(rng, "gaussian", "categorical", "bernoulli")
    if likelihood == "categorical" and sizes[-1] == 1:      # one class: nothing to learn, and rho is 0 / 0
        sizes = (*sizes[:-1], 2)
    N, M = int(some(rng, 1, 2, 3, 5, 8)), int(some(rng, 1, 2, 4))
    scale = some(rng, 1.0, 1.0, 1.0, 1e-3, 10.0)
    single = rng.random() < 0.2
    weights = [scale * rng.standard_normal((m, n + 1)) for n, m in itertools.pairwise(sizes)]
    x = some(rng, 1.0, 1.0, 30.0) * rng.standard_normal((N, sizes[0]))
    if single:
        weights, x = [W.astype(np.float32) for W in weights], x.astype(np.float32)
    def like() -> tuple[Any, ...]:
        return tuple(rng.standard_normal(W.shape) for W in weights)
    rest: dict[str, Any] = {}
    if rng.random() < 0.8:
        rest["targets"] = targets_of(likelihood, (M, N), sizes[-1], rng)
    if rng.random() < 0.5:
        rest |= {"direction": like(), "delta_0": like()}
    if rng.random() < 0.4:
        rest["previous"] = Previous(int(some(rng, 1, 3, 40)), [S @ S.T for S in map(np.atleast_2d, (
            rng.standard_normal((n + 1, 9)) for n in sizes[:-1]))], [S @ S.T for S in (
                rng.standard_normal((m, 9)) for m in sizes[1:])])
    if rng.random() < 0.4:
        rest["kl_clip"] = KLClip(1e-3, 0.1)
    if seed % 16 == 0 and N > 1:
        rest["trajectory"] = trajectory(likelihood, sizes, N, rng)
    return Problem(sizes, tuple(some(rng, *ACTIVATIONS) for _ in sizes[2:]), likelihood, weights, x,
                   targets_of(likelihood, (N,), sizes[-1], rng), float(some(rng, 0.3, 0.3, 0.01, 1e-6, 50.0)),
                   float(some(rng, 0.0, 0.02)), dtype="float32" if single else "float64", **rest)


def trajectory(likelihood: str, sizes: tuple[int, ...], N: int, rng: np.random.Generator) -> Trajectory:
    batches = []
    for _ in range(4):
        rows, rows1 = rng.permutation(N), np.arange(1 + N // 2)
        batches.append(Batch(rows, rows1, np.arange(N // 2, N),
                             targets_of(likelihood, (len(rows1),), sizes[-1], rng)))
    return Trajectory(lambda_0=1.0, T1=2, T2=2, T3=1, omega1=0.9, omega2=0.9, ceiling=0.95, gamma_min=1e-3,
                      gamma_max=10.0, lambda_floor=0.0, momentum=bool(rng.integers(2)), batches=tuple(batches),
                      structure="block-tridiagonal" if len(sizes) > 2 and rng.integers(2) else "block-diagonal")


def right_values(r: Reference) -> dict[str, Any]:
    """Return all that the problem defines and that has a value here."""
    return composed.values(r.problem, (), r.names())


def subset(values: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.3:
        return values
    names = rng.choice(list(values), min(len(values), int(rng.integers(1, 6))), replace=False)
    return {name: values[name] for name in values if name in names}


def each(value: Any, f: Any) -> Any:
    return tuple(f(X) for X in value) if isinstance(value, tuple) else f(np.asarray(value))


def as_given(name: str, value: Any, single: bool, rng: np.random.Generator) -> Any:
    """Return a value with the rounding of somebody else's arithmetic."""
    noise = 1e-7 if single else 1e-15

    def rounded(X: Any) -> Any:
        X = X * (1 + noise * rng.uniform(-1, 1, X.shape))
        return X.astype(np.float32) if single else X
    return each(value, rounded)


def put_in(problem: Problem, seed: int, mistakes: Sequence[Any]) -> list[str]:
    """Return the names of the mistakes that are visible in some of the quantities and not found in them."""
    rng = np.random.default_rng((seed, 1))
    r, lost = Reference(problem), []
    right = right_values(r)
    single = problem.dtype == "float32"
    for mistake in mistakes:
        given = subset(right, rng)
        wrong = composed.values(problem, (mistake,), given)
        wrong = {name: value for name, value in wrong.items() if finite(value, name == "trajectory_rho")}
        if max((error(right[name], value) for name, value in wrong.items()), default=0) <= (SINGLE if single else 1e-6):
            continue
        theirs = {name: each(as_given(name, value, single, rng), lambda X: X.astype(float))
                  for name, value in wrong.items()}
        if not Diagnosis(r, theirs, problem.dtype).fits((mistake,)):
            lost.append(mistake.name)
    return lost


def finite(value: Any, nan: bool = False) -> bool:
    """Return whether a program could write the value down, in single precision too."""
    parts = value if isinstance(value, tuple) else (value,)
    return all((nan or not np.isnan(v).any()) and not (np.abs(v) > 1e38).any() and
               not 0 < np.nanmax(np.abs(v), initial=0) < 1e-30 for v in parts)


def accused(problem: Problem, seed: int) -> list[str]:
    """Return which right quantities are accused, with noise, and with the examples in another order."""
    rng = np.random.default_rng((seed, 2))
    r, single = Reference(problem), problem.dtype == "float32"
    right = right_values(r)
    theirs = {name: as_given(name, value, single, rng) for name, value in right.items()
              if finite(value, name == "trajectory_rho")}
    report = check(problem, theirs)
    order = rng.permutation(len(problem.x))
    turned = problem.replace(x=problem.x[order], y=problem.y[order], trajectory=None,
                             targets=None if problem.targets is None else problem.targets[:, order])
    same = {name: value for name, value in right_values(Reference(turned)).items()
            if name not in ("z", "a_bar", "g") and finite(value)}
    again = check(problem, same)
    return [f"{row.quantity} {row.error:.1e}" for row in (*report.rows, *again.rows) if row.verdict == "differs"]


@pytest.mark.parametrize("seed", range(14))
def test_a_mistake_in_an_unseen_network_is_found(seed: int) -> None:
    rng = np.random.default_rng((seed, 3))
    every = list(CATALOGUE.values())
    chosen = rng.choice(len(every), 30, replace=False)
    assert put_in(drawn(seed), seed, [every[i] for i in chosen]) == []


@pytest.mark.parametrize("seed", range(14))
def test_right_values_of_an_unseen_network_are_not_accused(seed: int) -> None:
    assert accused(drawn(seed), seed) == []


def test_the_draws_cover_every_quantity_and_mistake() -> None:
    """Each quantity is asked for, and hypotheses cover problems without targets, of one example, of one layer."""
    problems = [drawn(seed) for seed in range(40)]
    assert {q for p in problems for q in Reference(p).names()} == set(QUANTITIES)
    assert {p.likelihood for p in problems} == {"gaussian", "categorical", "bernoulli"}
    assert {name for p in problems for name in p.hidden} == set(ACTIVATIONS)
    assert {p.dtype for p in problems} == {"float64", "float32"}
    assert {1} < {len(p.x) for p in problems}
    assert {True, False} == {p.targets is None for p in problems} == {p.weight_decay == 0 for p in problems}
    assert {2} < {len(p.sizes) for p in problems}


if __name__ == "__main__":
    first, count = (int(a) for a in (["1000", *sys.argv[1:]] if len(sys.argv) < 3 else sys.argv[1:]))
    for seed in range(first, first + count):
        problem = drawn(seed)
        try:
            found = put_in(problem, seed, list(CATALOGUE.values())), accused(problem, seed)
        except Exception as caught:
            found = [repr(caught)], []
        if found != ([], []):
            print(seed, problem.sizes, problem.hidden, problem.likelihood, len(problem.x), problem.dtype,
                  problem.damping, problem.weight_decay, problem.trajectory is not None, *found, flush=True)
