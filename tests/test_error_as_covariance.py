"""What ``figures/error_as_covariance.py`` computes: the two forms of the error, and the order of the pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import kfac_ref as kr
from tests.figure_scripts import load
from tests.problems import problem

script = load("error_as_covariance")


@pytest.fixture(scope="module", params=["categorical", "bernoulli"])
def taken(request):
    p = problem(request.param, (3, 4, 3, 2), N=9)
    return p, script.take_apart(p.at, 1)


def test_the_three_matrices_are_the_block_the_product_and_their_difference(taken):
    p, t = taken
    A, G = kr.kronecker_factors(p.at).layers[1]
    np.testing.assert_allclose(t.R_product, np.outer(kr.kronecker.vec(G), kr.kronecker.vec(A)), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(t.R_F - t.R_product, t.covariance, rtol=0, atol=1e-14 * np.abs(t.R_F).max())
    assert np.linalg.matrix_rank(t.R_product) == 1
    assert t.numbers["residual_of_the_covariance"] < 1e-14
    assert t.numbers["residual_of_the_cumulants"] < 1e-13
    assert t.numbers["error_of_A_kron_G"] > 1e-2


def test_the_spectra_hold_the_whole_norms_and_the_best_product_is_the_nearest_one(taken):
    p, t = taken
    m, n = p.shapes[1]
    assert len(t.singular) == len(t.singular_error) == min(m * (m + 1), n * (n + 1)) // 2
    assert np.linalg.norm(t.singular) == pytest.approx(1, rel=1e-12)
    assert np.linalg.norm(t.singular_error) == pytest.approx(t.numbers["error_of_A_kron_G"], rel=1e-12)
    F, best = kr.fisher_block(p.at, 1, 1), np.kron(*kr.factors.nearest_kronecker_factors(p.at).layers[1])
    expected = np.linalg.norm(F - best) / np.linalg.norm(F)
    assert t.numbers["error_of_the_best_product"] == pytest.approx(expected, rel=1e-8)
    assert expected < t.numbers["error_of_A_kron_G"]


def test_the_shares_add_up_to_the_error_and_the_norms_do_not(taken):
    _, t = taken
    terms = ("fourth", "first_mean", "second_mean")
    assert sum(t.numbers[f"share_of_{name}"] for name in terms) == pytest.approx(1, rel=1e-12)
    # The two third-order terms are transposes of each other.
    assert t.numbers["norm_of_first_mean"] == pytest.approx(t.numbers["norm_of_second_mean"], rel=1e-10)
    assert sum(t.numbers[f"norm_of_{name}"] for name in terms) > 1.01


def test_the_columns_of_the_bias_are_those_that_hold_a_one(taken):
    p, t = taken
    m, n = p.shapes[1]
    total = np.sum(t.covariance**2)
    error = kr.fisher_block(p.at, 1, 1) - np.kron(*kr.kronecker_factors(p.at).layers[1])
    by_entry = error.reshape(n, m, n, m)
    bias = np.sum(by_entry[-1] ** 2) + np.sum(by_entry[:-1, :, -1] ** 2)
    assert t.numbers["share_of_bias_columns"] == pytest.approx(bias / total, rel=1e-10)
    assert np.abs(by_entry[-1, :, -1]).max() < 1e-14 * np.abs(t.R_F).max()      # 1 * 1 is no random variable


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_each_pair_is_drawn_once_in_ascending_order(bias, n):
    S = np.random.default_rng(n).standard_normal((n, n))
    S = S + S.T
    found = script.groups(S, "a", bias)
    positions = np.concatenate(list(found.values()))
    pairs = [tuple(sorted((v % n, v // n))) for v in positions]
    assert sorted(pairs) == list(itertools.combinations_with_replacement(range(n), 2))
    vec = kr.kronecker.vec(S)
    for group in found.values():
        assert np.all(np.diff(vec[group]) >= 0)
    squares = {(v % n, v // n) for v in found["a²"]}
    assert squares == {(p, p) for p in range(n - 1 if bias else n)}
    if bias:
        assert all(n - 1 in (v % n, v // n) for v in found["a·1"])
        assert len(found["a·1"]) == n
