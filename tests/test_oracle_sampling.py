"""A sampled G whose targets nobody stored: right ones are not accused, wrong ones are, and by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import oracle
from kfac_ref.checks import Array
from kfac_ref.oracle import Problem, check
from kfac_ref.oracle.sampling import judge

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import power

NAMES = ["categorical-tanh", "gaussian-tanh", "bernoulli-tanh"]


@cache
def problem(name: str) -> Problem:
    return oracle.vector(name).problem.replace(targets=None)


def sampled_G(p: Problem, targets: Any) -> list[Array]:
    """Return G of each layer from these targets."""
    return [G for _, G in kr.kronecker_factors(p.at(), kr.sampled(targets)).layers]


def right(p: Problem, M: int, draws: int, seed: int) -> Iterator[list[Array]]:
    """Yield values of G of M samples."""
    at, rng = p.at(), np.random.default_rng(seed)
    return (sampled_G(p, at.sample(rng, M)) for _ in range(draws))


@pytest.mark.slow
@pytest.mark.parametrize("M", [1, 9, 300])
@pytest.mark.parametrize("name", NAMES)
def test_right_values_are_not_accused(name: str, M: int) -> None:
    p = problem(name)
    accused = sum(not judge(p, G, M).right for G in right(p, M, 400, 77))
    assert accused <= 3             # 0.2 are expected


def test_right_values_of_confident_networks_are_not_accused() -> None:
    cells = [accused for *_, accused in power.false_alarms(400, (1e-2, 3e-5), (100, 10_000))]
    assert len(cells) == 4
    assert sum(cells) <= 5          # of 1600; 0.8 are expected


@pytest.mark.parametrize("M", [1, 10, 100])
def test_wrong_values_are_noticed(M: int) -> None:
    made = power.net((6, 10, 10), 60, 1)
    noticed, named = {}, {}
    for mistake, cause, values in power.mistakes(made, M, 5):
        judged = [judge(made.problem, G, M) for G in values]
        noticed[mistake] = np.mean([not j.right for j in judged])
        named[mistake] = {m.name for j in judged for m in j.explanations}
        near = {"targets from a uniform distribution"} if mistake == "any temperature" else set()     # a high one
        assert named[mistake] <= {cause} | near, mistake
    assert noticed["right"] == 0
    assert min(noticed[name] for name in ("twice", "half", "times N", "labels", "ten times M")) == 1
    if M >= 10:
        assert noticed["a tenth of M"] == noticed["uniform targets"] == 1
        assert named["twice"] == {"G twice too large"}
    if M == 100:
        assert noticed["temperature 2"] == 1


@pytest.mark.parametrize("write", [np.float16, np.float32, lambda S: np.vectorize(lambda v: float(f"{v:.4g}"))(S),
                                   lambda S: np.round(S, 5)], ids=["half", "single", "4 digits", "5 decimals"])
@pytest.mark.parametrize("q", [None, 1e-3])
def test_right_values_of_any_precision_are_not_accused(write: Any, q: float | None) -> None:
    made = power.net((3, 4, 3), 15, 1, q)
    for M in (1, 10_000):
        counts = power.label_counts(np.random.default_rng(6), made.p, M, 50)
        accused = sum(not judge(made.problem, [write(S).astype(float) for S in G], M).right for G in made.G(counts, M))
        assert accused <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("M", [5, 40])
def test_a_right_value_is_as_sampled_and_an_inferred_number_of_samples_proves_nothing(name: str, M: int) -> None:
    p = problem(name)
    inferred = []
    for G in right(p, M, 8, 0):
        stated, unstated = check(p, {"G_sampled": G}, samples=M), check(p, {"G_sampled": G})
        assert stated.ok
        assert stated.rows[0].verdict == "as sampled"
        assert not unstated.ok
        assert unstated.rows[0].verdict == "cannot tell"
        assert unstated.judgement is not None
        inferred.append(unstated.judgement.samples)
    assert M / 3 < np.median(inferred) < 3 * M


@pytest.mark.parametrize("factor", [0.1, 10])
def test_a_wrong_number_of_samples_is_noticed_and_the_right_one_is_told(factor: float) -> None:
    made = power.net((6, 10, 10), 60, 1)
    for G in made.G(power.label_counts(np.random.default_rng(5), made.p, 100, 5), 100):
        M = round(100 * factor)
        report = check(made.problem, {"G_sampled": G}, samples=M)
        assert report.rows[0].verdict == "not as sampled"
        assert report.judgement is not None
        assert report.judgement.instead is not None
        assert 50 < report.judgement.instead < 200
        assert not report.judgement.explanations
        assert f"consistent with about {report.judgement.instead} samples per example, not {M:,}" in str(report)


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


def test_too_many_samples_to_simulate_are_refused() -> None:
    x, y = np.zeros((50, 2)), np.zeros((50, 20))
    p = Problem((2, 20), (), "bernoulli", [np.zeros((20, 3))], x, y)
    with pytest.raises(oracle.ProblemError, match="too many to simulate"):
        judge(p, oracle.Reference(p)["G"], 10**5)


def test_the_number_of_samples_is_that_of_the_targets() -> None:
    p = oracle.vector("categorical-tanh").problem
    judgement = judge(p, sampled_G(p, p.targets))
    assert judgement.stated
    assert judgement.samples == len(p.targets)
    assert judgement.right


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
    with pytest.raises(oracle.ProblemError, match=r"must hold matrices of the shapes|one array per layer"):
        check(p, {"G_sampled": [np.eye(2)]})
    G = [S.copy() for S in oracle.Reference(p)["G"]]
    G[0][0, 1] += 1
    with pytest.raises(oracle.ProblemError, match="must be symmetric"):
        check(p, {"G_sampled": G})
