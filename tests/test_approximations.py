"""The table of approximations: what a row pairs, and training with every row and every expectation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import approximations, checkpoints, curvature, params
from kfac_ref.analysis import judge
from kfac_ref.approximations import TABLE, Approximation
from kfac_ref.checks import Array
from kfac_ref.environment import environment
from kfac_ref.expectations import OneDraw
from kfac_ref.experiments import family
from kfac_ref.factors import Moments, second_moments
from kfac_ref.optimizers import KFAC
from kfac_ref.optimizers.kfac_values import State
from tests.problems import LIKELIHOODS, Problem, close, direction, expectations, labels, problem, relative

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
ROWS = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
EXPECTATIONS = {"one draw": kr.one_draw, "exact": kr.exact, "empirical": kr.empirical()}
EVERY = pytest.mark.parametrize("expectation", EXPECTATIONS.values(), ids=EXPECTATIONS)
PERIODS = {"T1": 2, "T2": 4, "T3": 2, "lambda_0": 0.1, "tau1": 1 / 2, "tau2": 1 / 2}
N, STEPS = 16, 7


class Shrunk(curvature.Curvature):
    """``(c + damping) I`` with c the mean of tr A, without the factors themselves: a structure of a user's own."""

    shapes: Any = None
    dtype: Any = None

    def __init__(self, factors: kr.Factors, damping: float = 0.0) -> None:
        self.shapes, self.dtype = factors.shapes, factors.A[0].dtype
        self.c = float(np.mean([np.trace(A) for A, _ in factors.layers])) + damping

    def product(self, V: Any) -> list[Array]:
        return params.scale(self.c, V)

    def solve(self, V: Any) -> list[Array]:
        return params.scale(1 / self.c, V)


def halved(at: kr.Point, expectation: Any = kr.exact) -> Moments:
    """Return half of K-FAC's moments: an estimator of a user's own."""
    return second_moments(at, expectation).combine(lambda S: S / 2)


MINE = Approximation(halved, Shrunk, label="mine")


class Run(NamedTuple):
    """What happened in some steps."""

    opt: KFAC
    data: list[tuple[Array, Any]]
    states: list[State]
    details: list[Any]


def run(row: Approximation, expectation: Any, likelihood: str = "categorical", steps: int = STEPS,
        dtype: Any = np.float64) -> tuple[Problem, Run]:
    p = problem(likelihood, (4, 5, 4, 3), N=N, weight_decay=1e-2, dtype=dtype)
    rng = np.random.default_rng(4)
    data = [(rng.standard_normal((N, 4)), labels(likelihood, p.at.z, rng)) for _ in range(steps)]
    opt = KFAC(p.model, row, expectation, **PERIODS)
    states, details = [opt.init(p.at.weights, seed=3)], []
    for x, y in data:
        details.append(opt.explain(states[-1], x, y))
        states.append(details[-1].state)
    return p, Run(opt, data, states, details)


def used(expectation: Any, targets: Any) -> Any:
    """Return the expectation of a step: what was drawn in it takes the place of one draw."""
    return kr.sampled(targets) if isinstance(expectation, OneDraw) else expectation


def bits(values: Any) -> list[bytes]:
    return [np.asarray(v).tobytes() for v in values]


# What a row is


def test_the_names_of_the_rows_are_those_of_the_module() -> None:
    assert len(TABLE) >= 14
    for name, row in TABLE.items():
        assert getattr(approximations, name.upper().replace("-", "_")) is row
        assert row.label
    assert len({row.label for row in TABLE.values()}) == len(TABLE)


@ROWS
@EACH
def test_a_row_at_a_point_is_its_parts_put_together(row: Approximation, likelihood: str) -> None:
    p = problem(likelihood, (3, 4, 3, 2), N=9)
    V = direction(p)
    for e in expectations(p).values():
        C = row.at(p.at, 0.1, e)
        if row.averages:
            by_hand = row.build(row.finish(row.estimate(p.at, e), p.at.weights), damping=0.1)
        else:
            by_hand = row.build(p.at, damping=0.1, expectation=e)
        for method in ("product", "solve"):
            np.testing.assert_array_equal(params.flatten(getattr(C, method)(V)),
                                          params.flatten(getattr(by_hand, method)(V)))
    close(params.flatten(row.at(p.at, 0.1).product(V)), params.flatten(row.at(p.at, 0.1, kr.exact).product(V)), 1e-15)


def test_rows_differ_from_one_another() -> None:
    p = problem("categorical", (3, 4, 3, 2), N=9)
    V, e = direction(p), kr.exact
    steps = {name: params.flatten(row.at(p.at, 0.1, e).solve(V)) for name, row in TABLE.items()}
    close(steps.pop("exact-smaller"), steps["exact"], 1e-11)
    for one, other in itertools.combinations(steps.values(), 2):
        assert relative(one, other) > 1e-3


@ROWS
def test_another_expectation_is_another_matrix(row: Approximation) -> None:
    if row is approximations.INPUT_ONLY:                    # A alone is the same in all
        return
    p = problem("categorical", (3, 4, 3, 2), N=9)
    V = direction(p)
    steps = [params.flatten(row.at(p.at, 0.1, e).solve(V)) for e in expectations(p).values()]
    for one, other in itertools.combinations(steps, 2):
        assert relative(one, other) > 1e-3


def test_the_smaller_exact_row_factors_the_smaller_matrix() -> None:
    for count, kind in ((2, curvature.ExactDual), (40, curvature.Exact)):
        assert type(approximations.EXACT_SMALLER.at(problem(N=count).at, 0.1)) is kind


@pytest.mark.parametrize(("parts", "name"), [((None, "x"), "build"), (("x", Shrunk), "estimate"),
                                             ((halved, Shrunk, None), "finish"), ((None, None), "build")])
def test_what_is_no_function_is_refused(parts: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a function, got (str|NoneType)"):
        Approximation(*parts)


# Training with every row and every expectation


@ROWS
@EVERY
def test_the_average_is_that_of_moments_averaged_by_hand(row: Approximation, expectation: Any) -> None:
    _, r = run(row, expectation)
    if not row.averages:
        assert all(state.average is None for state in r.states)
        return
    expected: dict[Any, Array] = {}
    for k, detail in enumerate(r.details, 1):
        part = detail.at.take(detail.rows1)
        assert len(part) == N // 2
        new = row.estimate(part, used(expectation, detail.targets)).arrays
        epsilon = min(1 - 1 / k, 0.95)
        expected = {key: S if k == 1 else epsilon * expected[key] + (1 - epsilon) * S for key, S in new.items()}
        assert set(detail.average.moments.arrays) == set(expected)
        for key, S in expected.items():
            close(detail.average.moments.arrays[key], S, 1e-13)


@ROWS
@EVERY
def test_the_step_is_made_of_the_row_and_solved_by_hand(row: Approximation, expectation: Any) -> None:
    p, r = run(row, expectation)
    made: dict[float, Any] = {}
    for k, (state, detail, (x, y)) in enumerate(zip(r.states, r.details, r.data, strict=False), 1):
        # An undone step is taken back before the next one is made.
        undone, weights = "undone" in detail.safeguards, detail.at.weights
        at = dataclasses.replace(p.model.at(weights, x), y=y)
        refreshed = k <= 3 or k % 2 == 0
        assert detail.refreshed == refreshed
        for candidate in detail.candidates:
            gamma = candidate.gamma
            if refreshed and row.averages:
                moments = detail.average.moments
                made[gamma] = row.build(row.finish(moments, weights), damping=gamma**2)
            elif refreshed:
                made[gamma] = row.at(at, gamma**2, used(expectation, detail.targets))
            grad = at.gradient()
            close(params.flatten(candidate.Delta), -params.flatten(made[gamma].solve(grad)), 1e-10)
        moved = params.flatten(weights) + detail.alpha * params.flatten(detail.Delta)
        if state.delta_0 is not None and not undone:
            moved = moved + detail.mu * params.flatten(state.delta_0)
        close(params.flatten(detail.state.weights), moved, 1e-12)
        assert detail.record.structure == type(detail.chosen.curvature).__name__
    assert {len(detail.candidates) for detail in r.details} == {1, 3}


@pytest.mark.slow
@ROWS
@EVERY
def test_a_checkpoint_goes_on_to_the_same_bits(row: Approximation, expectation: Any, tmp_path: Path) -> None:
    p, r = run(row, expectation)
    for k in (1, 3, 4):                                     # k = 4 keeps what it was made from, for step 5
        state = r.states[k]
        checkpoints.write(tmp_path, checkpoints.Checkpoint(state, state.weights, 0.0, environment()), r.opt, {})
        opt = KFAC(p.model, row, expectation, **PERIODS)
        again = checkpoints.read(tmp_path / checkpoints.NAME, opt, p.at.weights, {}).state
        for (x, y), expected in zip(r.data[k:], r.states[k + 1:], strict=True):
            again, _ = opt.step(again, x, y)
            assert bits(again.weights) == bits(expected.weights)
            assert (again.lambda_, again.gamma) == (expected.lambda_, expected.gamma)


@ROWS
@EVERY
def test_the_loss_falls(row: Approximation, expectation: Any) -> None:
    q = problem("categorical", (4, 5, 4, 3), N=30, weight_decay=1e-3)
    y = q.at.x[:, :3].argmax(axis=1)
    opt = KFAC(q.model, row, expectation, tau1=1.0)
    state, losses = opt.init(q.at.weights), []
    for _ in range(15):
        state, record = opt.step(state, q.at.x, y)
        losses.append(record.loss)
    assert losses[-1] < 0.3 * losses[0]


@ROWS
def test_float32_stays_float32(row: Approximation) -> None:
    _, r = run(row, kr.one_draw, steps=3, dtype=np.float32)
    state = r.states[-1]
    moments = [] if state.average is None else list(state.average.moments.arrays.values())
    assert {a.dtype for a in (*state.weights, *(state.delta_0 or ()), *moments)} == {np.dtype(np.float32)}


def test_a_row_that_is_made_from_a_point_is_that_of_the_batch_of_the_last_refresh() -> None:
    _, r = run(approximations.EKFAC, kr.exact)
    for state, detail, (x, y) in zip(r.states, r.details, r.data, strict=False):
        refresh = detail.state.refresh
        if detail.refreshed:
            assert bits([refresh.x, refresh.y]) == bits([x, y])
            assert bits(refresh.weights) == bits(state.weights)
        else:
            assert refresh is state.refresh


# A user's own row


@EVERY
@EACH
def test_a_row_of_a_user_s_own_trains(likelihood: str, expectation: Any) -> None:
    p, r = run(MINE, expectation, likelihood)
    detail, state = r.details[0], r.states[0]
    part = detail.at.take(detail.rows1)
    c = np.mean([np.sum(a**2) / len(part) / 2 for a in part.a_bar]) + state.gamma**2
    close(params.flatten(detail.Delta), -params.flatten(detail.grad) / c, 1e-12)
    opt = KFAC(p.model, MINE, expectation, tau1=1.0)
    state, first = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    for _ in range(20):
        state, record = opt.step(state, p.at.x, p.y)
    assert record.loss < first.loss


def test_a_row_of_a_user_s_own_is_judged_and_compared_with_the_family() -> None:
    p = problem("categorical", (4, 5, 3), N=30)
    targets = p.at.sample(np.random.default_rng(0))
    (judged,) = judge(p.at, p.y, 0.1, [("mine", MINE.at(p.at, 0.1))])
    (plain,) = judge(p.at, p.y, 0.1, [("plain", TABLE["block-diagonal"].at(p.at, 0.1))])
    F = kr.fisher_matrix(p.at) + 0.1 * np.eye(43)
    close(judged.error, relative(MINE.at(p.at, 0.1).dense(), F), 1e-13)
    assert judged.angle > plain.angle
    ours, theirs = family.compare(p.at, p.y, 0.1, targets, [MINE, "F̆ (factored damping)"])
    assert (ours.name, theirs.name) == ("mine", "F̆ (factored damping)")
    close(ours.error, relative(MINE.at(p.at, 1e-8).dense(), kr.fisher_matrix(p.at)), 1e-6)
    best = max(judge(p.at, p.y, 0.1, [("", MINE.at(p.at, d)) for d in family.DAMPINGS], dense=False),
               key=lambda j: j.decrease)
    close(ours.judgement.decrease, best.decrease, 1e-12)
    with pytest.raises(ValueError, match="rows must have labels, and an Approximation of your own has none"):
        family.compare(p.at, p.y, 0.1, targets, [dataclasses.replace(MINE, label="")])
    with pytest.raises(ValueError, match=r"rows must be one of .*; got 'mine'"):
        family.compare(p.at, p.y, 0.1, targets, ["mine"])


# One line of the module is all that a new row takes


PROBE = """
import json
import numpy as np
import kfac_ref as kr
from kfac_ref import approximations
from kfac_ref.experiments import family
from kfac_ref.experiments.settings import Settings

model = kr.Model(kr.MLP((4, 5, 3)), kr.Categorical())
rng = np.random.default_rng(0)
weights, x, y = model.init(rng), rng.standard_normal((30, 4)), rng.integers(0, 3, 30)
row = approximations.TABLE["added-row"]
opt = kr.optimizers.KFAC(model, row)
state, record = opt.step(opt.init(weights), x, y)
chosen = Settings(settings={"approximation": "added-row"})
at = model.at(weights, x)
(entry,) = family.compare(at, y, 0.1, at.sample(rng), ["added"])
print(json.dumps([record.structure, chosen.make_optimizer(chosen.model()).approximation is row, entry.name,
                  entry.judgement.decrease]))
"""


@pytest.mark.slow
def test_a_line_in_the_table_is_found_by_the_optimizer_the_command_line_and_the_family(tmp_path: Path) -> None:
    package = Path(kr.__file__).parent
    shutil.copytree(package, tmp_path / "kfac_ref", ignore=shutil.ignore_patterns("__pycache__", "data", "vectors"))
    path = tmp_path / "kfac_ref" / "approximations.py"
    line = ("ADDED_ROW = Approximation(factors.gradient_moments, curvature.BlockDiagonal, factors.trace_preserving, "
            'label="added")')
    marker = "\n#: All rows by name"
    text = path.read_text()
    assert text.count(marker) == 1
    path.write_text(text.replace(marker, f"{line}\n{marker}"))
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(tmp_path), "OPENBLAS_NUM_THREADS": "1", "PATH": ""})
    assert done.returncode == 0, done.stderr
    structure, found, name, decrease = json.loads(done.stdout)
    assert (structure, found, name) == ("BlockDiagonal", True, "added")
    assert 0 < decrease < 1
    refusal = subprocess.run([sys.executable, "-m", "kfac_ref", "train", "--out", "run", "--iterations", "1", "--set",
                              "approximation=none"], cwd=tmp_path, capture_output=True, text=True, check=False,
                             env={"PYTHONPATH": str(tmp_path), "OPENBLAS_NUM_THREADS": "1", "PATH": ""})
    assert refusal.returncode != 0
    assert re.search("approximation must be one of added-row, block-diagonal, .*got 'none'", refusal.stderr)


def test_a_partial_estimator_is_an_estimator() -> None:
    row = Approximation(functools.partial(second_moments, reach=1), curvature.BlockTridiagonal)
    p = problem(sizes=(3, 4, 3, 2), N=9)
    close(row.at(p.at, 0.1).dense(), TABLE["block-tridiagonal"].at(p.at, 0.1).dense(), 1e-15)
