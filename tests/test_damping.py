"""pi, factored Tikhonov damping, and the rules of lambda and gamma."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from kfac_ref.damping import (
    add_to_diagonal,
    factored_tikhonov,
    frobenius_pi,
    gamma_candidates,
    next_lambda,
    trace_pi,
)
from tests.problems import close, relative

sizes = st.integers(1, 5)
rngs = st.integers(0, 2**16).map(np.random.default_rng)
positive = st.floats(1e-6, 1e6)


def psd(rng, n):
    X = rng.standard_normal((n, n))
    return X @ X.T


def nuclear(S):
    """Return the trace norm, which is the trace of a positive semi-definite matrix."""
    return np.linalg.norm(S, "nuc")


# pi


@given(rngs, sizes, sizes)
@pytest.mark.parametrize(("pi", "norm"), [(trace_pi, nuclear), (frobenius_pi, np.linalg.norm)])
def test_pi_is_the_root_of_the_ratio_of_two_norms(pi, norm, rng, n, m):
    A, G = psd(rng, n), psd(rng, m)
    ratio = norm(np.kron(A, np.eye(m))) / norm(np.kron(np.eye(n), G))
    close(pi(A, G), np.sqrt(ratio), rtol=1e-12)


@given(rngs, sizes, sizes, positive)
@pytest.mark.parametrize("pi", [trace_pi, frobenius_pi])
def test_pi_scales_with_the_root_of_either_factor(pi, rng, n, m, c):
    A, G = psd(rng, n), psd(rng, m)
    close(pi(c * A, G), np.sqrt(c) * pi(A, G), rtol=1e-13)
    close(pi(A, c * G), pi(A, G) / np.sqrt(c), rtol=1e-13)
    close(pi(A, G) * pi(G, A), 1, rtol=1e-13)


def test_the_two_rules_agree_on_multiples_of_the_identity_and_differ_elsewhere():
    A, G = 7 * np.eye(3), 2 * np.eye(4)
    close(frobenius_pi(A, G), trace_pi(A, G), rtol=1e-14)
    assert relative(frobenius_pi(np.diag([7.0, 0, 0]), G), trace_pi(np.diag([7.0, 0, 0]), G)) > 0.1


@pytest.mark.parametrize("pi", [trace_pi, frobenius_pi])
def test_a_dead_layer_has_nothing_to_balance(pi):
    dead, alive = np.zeros((3, 3)), np.diag([4.0, 5.0])
    assert pi(dead, alive) == pi(alive, dead) == pi(dead, dead) == 1
    assert pi(np.eye(3), alive) != 1


@pytest.mark.parametrize("pi", [trace_pi, frobenius_pi])
def test_pi_is_a_python_float(pi):
    # A float64 scalar would turn a float32 matrix into a float64 one.
    assert type(pi(np.eye(2, dtype=np.float32), 2 * np.eye(3, dtype=np.float32))) is float


# Factored Tikhonov


@given(rngs, sizes, sizes, st.floats(0, 100), positive)
def test_factored_tikhonov_expands_to_four_terms(rng, n, m, damping, pi):
    A, G = psd(rng, n), psd(rng, m)
    In, Im, root = np.eye(n), np.eye(m), np.sqrt(damping)
    expected = (np.kron(A, G) + damping * np.eye(n * m) + pi * root * np.kron(In, G) + root / pi * np.kron(A, Im))
    close(np.kron(*factored_tikhonov(A, G, damping, pi)), expected, rtol=1e-13)


@given(rngs, sizes, sizes, positive)
def test_trace_pi_gives_the_two_unwanted_terms_the_same_trace(rng, n, m, damping):
    A, G = psd(rng, n), psd(rng, m)
    pi = trace_pi(A, G)
    close(pi * np.trace(np.kron(np.eye(n), G)), np.trace(np.kron(A, np.eye(m))) / pi, rtol=1e-12)


def test_factored_damping_is_not_tikhonov_damping():
    rng = np.random.default_rng(0)
    A, G = psd(rng, 3), psd(rng, 2)
    tikhonov = np.kron(A, G) + 0.1 * np.eye(6)
    assert relative(np.kron(*factored_tikhonov(A, G, 0.1, trace_pi(A, G))), tikhonov) > 1e-2


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_damping_makes_new_arrays_of_the_same_dtype(dtype):
    A, G = (psd(np.random.default_rng(0), n).astype(dtype) for n in (3, 2))
    before = A.copy(), G.copy()
    damped = factored_tikhonov(A, G, 4.0, 2.0)
    for S, old, new, c in zip((A, G), before, damped, (4, 1), strict=True):
        np.testing.assert_array_equal(S, old)
        assert new.dtype == dtype
        np.testing.assert_array_equal(new, old + c * np.eye(len(S), dtype=dtype))


@pytest.mark.parametrize("S", [np.arange(9.0).reshape(3, 3), np.arange(9.0).reshape(3, 3).T])
def test_adding_to_the_diagonal_in_either_memory_order(S):
    np.testing.assert_array_equal(add_to_diagonal(S, 0.5), S + 0.5 * np.eye(3))


# lambda


@pytest.mark.parametrize(("rho", "lambda_"), [
    (1.0, 6.0), (np.nextafter(0.75, 1), 6.0), (0.75, 12.0), (0.5, 12.0), (0.25, 12.0), (np.nextafter(0.25, 0), 24.0),
    (0.0, 24.0), (-1.0, 24.0), (-math.inf, 24.0), (math.inf, 6.0), (math.nan, 24.0)])
def test_next_lambda(rho, lambda_):
    assert next_lambda(12.0, rho, 0.5) == lambda_


@given(positive, st.floats(0.1, 0.99))
def test_a_good_and_a_bad_step_undo_each_other(lambda_, omega1):
    close(next_lambda(next_lambda(lambda_, 1.0, omega1), 0.0, omega1), lambda_, rtol=1e-14)


@pytest.mark.parametrize(("lambda_", "floor", "expected"), [
    (12.0, 0.0, 6.0), (12.0, 5.0, 6.0), (12.0, 7.0, 7.0), (12.0, 12.0, 12.0), (12.0, 20.0, 12.0)])
def test_the_floor_stops_a_decrease_and_raises_nothing(lambda_, floor, expected):
    assert next_lambda(lambda_, 1.0, 0.5, floor) == expected
    assert next_lambda(lambda_, 0.5, 0.5, floor) == lambda_
    assert next_lambda(lambda_, 0.0, 0.5, floor) == 2 * lambda_


# gamma


@given(positive, st.floats(0.1, 0.99))
def test_gamma_candidates_are_three_the_present_one_first(gamma, omega2):
    assert gamma_candidates(gamma, omega2) == (gamma, omega2 * gamma, gamma / omega2)


@pytest.mark.parametrize(("gamma", "low", "high", "expected"), [
    (1.0, 0.0, math.inf, (1.0, 0.5, 2.0)), (1.0, 0.0, 1.0, (1.0, 0.5)), (1.0, 1.0, math.inf, (1.0, 2.0)),
    (1.0, 0.75, 1.5, (1.0, 0.75, 1.5)), (1.0, 1.0, 1.0, (1.0,)), (8.0, 0.0, 1.0, (1.0,)), (0.0, 0.0, 1.0, (0.0,)),
    (8.0, 0.0, 5.0, (5.0, 4.0))])
def test_gamma_candidates_are_clipped_and_none_is_tried_twice(gamma, low, high, expected):
    assert gamma_candidates(gamma, 0.5, low, high) == expected
