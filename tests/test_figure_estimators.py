"""What ``figures/estimators.py`` computes: distances, their expectation in closed form, and slopes."""

from __future__ import annotations

import numpy as np
import pytest

import kfac_ref as kr
from tests.figure_scripts import load
from tests.problems import problem

script = load("estimators")


@pytest.fixture(scope="module")
def at():
    return problem("categorical", (3, 4, 3), N=6).at


def test_a_distance_is_the_rms_over_layers(at):
    exact, other = kr.kronecker_factors(at), kr.kronecker_factors(at, kr.sampled(at.sample(np.random.default_rng(0))))
    by_hand = [np.linalg.norm(S - T) / np.linalg.norm(T) for (_, S), (_, T) in
               zip(other.layers, exact.layers, strict=True)]
    assert script.distance(other, exact) == pytest.approx(np.sqrt(np.mean(np.square(by_hand))), rel=1e-13)
    assert script.distance(exact, exact) == 0
    assert script.distance(other, exact, "A") == 0              # targets alone are sampled


def test_the_distance_of_a_product_is_that_of_the_kronecker_products(at):
    exact = kr.kronecker_factors(at)
    part = at.take([0, 0, 3])
    other = kr.kronecker_factors(part, kr.sampled(part.sample(np.random.default_rng(0))))
    pairs = [(np.kron(*mine), np.kron(*right)) for mine, right in zip(other.layers, exact.layers, strict=True)]
    expected = np.sqrt(np.mean([np.sum((S - T) ** 2) / np.sum(T**2) for S, T in pairs]))
    assert script.product_distance(other, exact) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1


def test_with_the_targets_alone_sampled_the_product_is_as_far_off_as_G(at):
    exact, other = kr.kronecker_factors(at), kr.kronecker_factors(at, kr.sampled(at.sample(np.random.default_rng(0))))
    assert script.product_distance(other, exact) == pytest.approx(script.distance(other, exact), rel=1e-12)


def test_the_expected_distance_of_two_cases_is_the_mean_over_all_draws(at):
    # Two cases have 3 * 3 pairs of labels: every estimate there is, each with its probability.
    two = at.take([1, 4])
    exact = kr.kronecker_factors(two)
    p = np.exp(two.z - two.z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    both, single = 0.0, 0.0
    for i in range(3):
        for j in range(3):
            drawn = kr.kronecker_factors(two, kr.sampled(np.array([i, j])))
            both += p[0, i] * p[1, j] * script.distance(drawn, exact) ** 2
    for case in range(2):
        for label in range(3):
            one = kr.kronecker_factors(two.take([case]), kr.sampled(np.array([label])))
            single += p[case, label] / 2 * script.distance(one, exact) ** 2
    np.testing.assert_allclose(script.expected_distances(two), np.sqrt([both, single]), rtol=1e-12)
    assert both != pytest.approx(single, rel=1e-2)


def test_a_slope_is_exact_on_a_power_law_and_its_error_is_honest_on_noise():
    x = np.array([1.0, 2, 4, 8])
    repeats = np.outer([1, 2, 5], x**-0.5)
    assert script.slope(x, repeats) == pytest.approx((-0.5, 0), abs=1e-12)
    rng = np.random.default_rng(0)
    found = [script.slope(x, np.abs(rng.standard_normal((40, 4))) * x**-0.5) for _ in range(200)]
    slopes, errors = np.transpose(found)
    assert slopes.mean() == pytest.approx(-0.5, abs=4 * slopes.std() / np.sqrt(200))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(slopes.std(), rel=0.15)


def test_the_traces_of_the_last_layer_are_those_of_the_probabilities():
    # The exact G of the last layer has the trace 1 - sum p^2, the empirical one sum (p - e_y)^2: of first and of
    # second order in e = 1 - p of the label, so that their ratio vanishes as e does where the model fits.
    x, bias = np.ones((1, 1)), np.array([[0.0], [-1.0], [-2.0]])
    model = kr.Model(kr.MLP((1, 3)), kr.Categorical())
    for scale in (1, 10):
        at = model.at([np.hstack([np.zeros((3, 1)), scale * bias])], x)
        p = np.exp(at.z[0]) / np.exp(at.z[0]).sum()
        row = script.empirical_row(at, np.array([0]), kr.kronecker_factors(at))
        ratio = np.sum((p - [1, 0, 0]) ** 2) / (1 - np.sum(p**2))
        assert row["empirical_trace_ratio"] == pytest.approx(ratio, rel=1e-9)
        assert 0 < row["empirical_cosine"] <= 1 + 1e-12
    e = p[1] + p[2]
    assert ratio == pytest.approx(e, rel=1e-3)
    assert e < 1e-4
