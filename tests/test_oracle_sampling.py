"""A sampled G whose targets nobody stored: right ones are not accused, wrong ones are, and by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import oracle
from kfac_ref.checks import Array
from kfac_ref.oracle import Problem, check, sampling
from kfac_ref.oracle.sampling import RATE, Simulation, judge

NAMES = ["categorical-tanh", "gaussian-tanh", "bernoulli-tanh"]


@cache
def problem(name: str) -> Problem:
    return oracle.vector(name).problem.replace(targets=None)


@cache
def simulation(name: str) -> Simulation:
    return Simulation(problem(name))


def sampled_G(p: Problem, targets: Any) -> list[Array]:
    """Return G of each layer from these targets."""
    return [G for _, G in kr.kronecker_factors(p.at(), kr.sampled(targets)).layers]


@pytest.mark.parametrize("name", NAMES)
def test_right_values_are_accused_at_no_more_than_the_rate(name: str) -> None:
    s = simulation(name)
    features = s.features_of_draws(lambda rng, n: s.at.sample(rng, n), 10_000, 77)
    assert np.mean(s.statistic(features, 1) > s.limit(1)) <= RATE
    three = features[:9999].reshape(3333, 3, -1).mean(axis=1)
    assert np.mean(s.statistic(three, 3) > s.limit(3)) <= 2 * RATE          # of 3333 draws, 3 are the rate


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("M", [5, 40])
def test_a_right_value_is_as_sampled_and_its_samples_are_inferred(name: str, M: int) -> None:
    p = problem(name)
    inferred = []
    for seed in range(8):
        at = p.at()
        G = sampled_G(p, at.sample(np.random.default_rng(seed), M))
        report = check(p, {"G_sampled": G}, samples=M)
        assert report.ok
        assert report.rows[0].verdict == "as sampled"
        inferred.append(judge(p, G).samples)
    assert M / 3 < np.median(inferred) < 3 * M


@pytest.mark.parametrize(("mistake", "factor"), [("G summed over the examples", "N"), ("G twice too large", 2.0),
                                                 ("G of mean-loss gradients, averaged", "N^-2"),
                                                 ("G divided by the samples twice", "1/M")])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_scale_is_named(name: str, mistake: str, factor: str | float) -> None:
    p, M = problem(name), 60
    at = p.at()
    c = {"N": len(p.x), "N^-2": len(p.x)**-2, "1/M": 1 / M}.get(str(factor), factor)
    G = [float(c) * S for S in sampled_G(p, at.sample(np.random.default_rng(3), M))]
    report = check(p, {"G_sampled": G}, samples=M)
    assert not report.ok
    assert report.judgement is not None
    assert mistake in [m.name for m in report.judgement.explanations]
    assert report.judgement.power["G summed over the examples"] == 1
    assert mistake in str(report)


@pytest.mark.parametrize("name", NAMES)
def test_targets_from_a_uniform_distribution_are_named(name: str) -> None:
    p, M = problem(name), 60
    rng = np.random.default_rng(4)
    shape = (M, *np.shape(p.y))
    targets = {"categorical": lambda: rng.integers(0, p.sizes[-1], shape),
               "gaussian": lambda: rng.standard_normal(shape),
               "bernoulli": lambda: rng.integers(0, 2, shape).astype(float)}[p.likelihood]()
    judgement = judge(p, sampled_G(p, targets), M)
    assert not judgement.right
    assert "targets from a uniform distribution" in [m.name for m in judgement.explanations]


@pytest.mark.parametrize("samples", [None, 1, 20])
@pytest.mark.parametrize("name", ["categorical-tanh", "bernoulli-tanh", "gaussian-tanh"])
def test_targets_that_were_not_drawn_are_named(name: str, samples: int | None) -> None:
    p = problem(name)
    for mistake in ("likeliest label in place of a sample", "labels in place of the model's targets"):
        G = oracle.Reference(p).having(oracle.CATALOGUE[mistake])["G"]
        report = check(p, {"G_sampled": G}, samples=samples)
        assert report.judgement is not None
        if report.judgement.right and samples:               # may well be draws
            continue
        assert not report.ok
        assert [m.name for m in report.judgement.explanations] == [mistake]
        assert mistake in str(report)
    assert samples == 1 or not report.ok


def test_a_larger_network_is_judged_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((40, 65)) / 8, rng.standard_normal((10, 41)) / 6]
    x, y = rng.standard_normal((100, 64)), rng.integers(0, 10, 100)
    p = Problem((64, 40, 10), ("tanh",), "categorical", weights, x, y)
    G = sampled_G(p, p.at().sample(rng))
    report = check(p, {"G_sampled": G}, samples=1)
    assert report.ok
    assert not check(p, {"G_sampled": [1.5 * S for S in G]}, samples=1).ok


def test_a_scale_is_named_whatever_the_number_of_samples() -> None:
    p = problem("categorical-tanh")
    G = [2 * S for S in oracle.Reference(p)["G"]]
    report = check(p, {"G_sampled": G}, samples=10**6)
    assert report.judgement is not None
    assert [m.name for m in report.judgement.explanations] == ["G twice too large"]
    assert report.plain()["sampled_as"][0][0]["mistake"] == "G twice too large"


@pytest.mark.parametrize("c", [1e-300, 1e150, 1e300])
def test_numbers_of_any_size_are_judged(c: float) -> None:
    p = problem("gaussian-tanh")
    G = oracle.Reference(p)["G"]
    for samples in (None, 40):
        assert not check(p, {"G_sampled": [c * S for S in G]}, samples=samples).ok


def test_a_network_that_takes_hours_is_refused_and_a_dear_one_gets_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem("categorical-tanh").replace(x=np.ones((2000, 3)), y=np.zeros(2000, dtype=int))
    drawn = []
    monkeypatch.setattr(sampling, "Simulation", lambda problem, draws: drawn.append(draws) or 1 / 0)
    for copies in (1, 500):
        large = p.replace(x=np.tile(p.x, (copies, 1)), y=np.tile(p.y, copies))
        with pytest.raises(ZeroDivisionError):
            judge(large, oracle.Reference(large)["G"])
    assert drawn == [9999, 999]
    x = np.zeros((1500, 2000))
    huge = Problem((2000, 2000), (), "gaussian", [np.zeros((2000, 2001))], x, x)
    with pytest.raises(oracle.ProblemError, match="too many to simulate"):
        judge(huge, [])


def test_what_is_far_from_the_exact_g_is_not_taken_for_one_sample() -> None:
    p = problem("categorical-tanh")
    rng = np.random.default_rng(4)
    G = sampled_G(p, rng.integers(0, p.sizes[-1], (20, len(p.x))))             # drawn without the model
    report = check(p, {"G_sampled": G})
    assert not report.ok
    assert report.rows[0].verdict in ("cannot tell", "not as sampled")
    assert not check(p, {"G_sampled": G}, samples=20).ok


def test_draws_of_one_s_own_are_recognized_beside_stored_targets() -> None:
    p = oracle.vector("categorical-tanh").problem
    own = sampled_G(p, p.at().sample(np.random.default_rng(9), 30))
    report = check(p, {"G_sampled": own}, samples=30)
    assert not report.ok                                        # these are not the means over the stored targets
    assert report.judgement is not None
    assert report.judgement.right


def test_what_is_no_such_g_is_refused() -> None:
    p = problem("categorical-tanh")
    with pytest.raises(oracle.ProblemError, match="must hold matrices of the shapes"):
        check(p, {"G_sampled": [np.eye(2)]})
    G = [S.copy() for S in oracle.Reference(p)["G"]]
    G[0][0, 1] += 1
    with pytest.raises(oracle.ProblemError, match="must be symmetric"):
        check(p, {"G_sampled": G})
