"""The quadratic model against the dense one, against least squares, and against h itself where h is quadratic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.quadratic_model import SmallModel, reduction_ratio

from .problems import LIKELIHOODS, close, direction, problem, problems, relative

DAMPING = 0.3
EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))


def small(p, directions, damping=DAMPING, grad=None):
    """Return the model of section 7 on the span of `directions`."""
    grad = p.at.gradient(p.y) if grad is None else grad
    return SmallModel(kr.fisher_gram(p.at, directions),
                      np.array([[params.inner(U, V) for V in directions] for U in directions]),
                      np.array([params.inner(grad, V) for V in directions]), damping, float(np.finfo(p.at.z.dtype).eps))


def dense(p, damping=DAMPING):
    """Return F + damping I and grad h, as a matrix and a vector."""
    F = kr.fisher_matrix(p.at)
    return F + damping * np.eye(len(F)), params.flatten(p.at.gradient(p.y))


def columns(directions):
    return np.stack([params.flatten(V) for V in directions], axis=1)


def several(p, K):
    return [direction(p, seed) for seed in range(1, K + 1)]


def least_squares(p, directions, damping=DAMPING):
    """Return the coefficients that minimize ||L^T V c + L^{-1} grad||, with L L^T = F + damping I, and M - M(0)."""
    H, g = dense(p, damping)
    L = np.linalg.cholesky(H)
    target = -np.linalg.solve(L, g)
    root = L.T @ columns(directions)
    c = np.linalg.lstsq(root, target, rcond=1e-7)[0]
    return c, -np.sum((root @ c) ** 2) / 2


# Its value


@EACH
@pytest.mark.parametrize("K", [1, 2, 3])
def test_value_is_the_dense_quadratic(likelihood, K):
    p = problem(likelihood, weight_decay=0.1)
    H, g = dense(p)
    directions = several(p, K)
    for c in np.random.default_rng(0).standard_normal((5, K)):
        delta = columns(directions) @ c
        close(small(p, directions).value(c), g @ delta + delta @ H @ delta / 2, 1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_value_is_the_change_of_h_where_h_is_quadratic(eta):
    p = problem("gaussian", (4, 3), N=9, weight_decay=eta)
    V = direction(p)
    for c in (0.7, -2.0):
        moved = p.model.at(params.add(p.at.weights, params.scale(c, V)), p.at.x)
        close(small(p, [V], eta).value([c]), moved.loss(p.y) - p.at.loss(p.y), 1e-12)


def test_value_is_not_the_change_of_h_where_h_is_not_quadratic():
    p = problem("gaussian")
    V = direction(p)
    moved = p.model.at(params.add(p.at.weights, V), p.at.x)
    assert relative(small(p, [V], 0.0).value([1.0]), moved.loss(p.y) - p.at.loss(p.y)) > 1e-2


def test_value_does_not_leave_the_damping_out():
    p = problem()
    V = direction(p)
    close(small(p, [V], 2.0).value([1.0]) - small(p, [V], 0.0).value([1.0]), params.inner(V, V), 1e-12)


# Its minimum


@EACH
@pytest.mark.parametrize("K", [1, 2, 3])
def test_half_the_slope_is_the_decrease_at_the_minimum(likelihood, K):
    p = problem(likelihood, weight_decay=0.1)
    directions = several(p, K)
    model = small(p, directions)
    c, decrease = model.minimum()
    _, g = dense(p)
    close(decrease, g @ columns(directions) @ c / 2, 1e-12)
    assert decrease < 0
    assert relative(model.value(np.array(c) / 2), model.slope @ c / 4) > 1e-3       # elsewhere it is not


@EACH
def test_the_gradient_of_the_model_vanishes_on_the_span_and_only_there(likelihood):
    p = problem(likelihood)
    directions = several(p, 2)
    H, g = dense(p)
    c, _ = small(p, directions).minimum()
    V = columns(directions)
    residual = g + H @ V @ c
    np.testing.assert_allclose(V.T @ residual, 0, rtol=0, atol=1e-12 * np.abs(V.T @ g).max())
    assert np.linalg.norm(residual) > 1e-2 * np.linalg.norm(g)


@given(problems(), st.integers(1, 3))
def test_the_minimum_is_that_of_least_squares(p, K):
    directions = several(p, min(K, p.model.network.parameters))
    c, decrease = small(p, directions).minimum()
    expected, lowest = least_squares(p, directions)
    # Random directions may be nearly parallel, or nearly orthogonal to the gradient, and lose some digits of 1e-14.
    close(decrease, lowest, 1e-10)
    V = columns(directions)
    close(V @ c, V @ expected, 1e-9)


def test_the_coefficients_are_those_of_least_squares():
    p = problem()
    directions = several(p, 4)
    c, decrease = small(p, directions).minimum()
    expected, lowest = least_squares(p, directions)
    close(c, expected, 1e-12)
    close(decrease, lowest, 1e-12)


@EACH
def test_no_other_coefficients_do_better(likelihood):
    p = problem(likelihood)
    model = small(p, several(p, 3))
    c, decrease = model.minimum()
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-1, 10):
        for r in scale * rng.standard_normal((30, 3)):
            assert model.value(c + r) > decrease
            assert model.value(r) > decrease


@EACH
def test_one_direction_has_the_alpha_of_section_6_4(likelihood):
    p = problem(likelihood, weight_decay=0.1)
    H, g = dense(p)
    V = direction(p)
    v = params.flatten(V)
    (alpha,), decrease = small(p, [V]).minimum()
    close(alpha, -(g @ v) / (v @ H @ v), 1e-12)
    close(decrease, -((g @ v) ** 2) / (v @ H @ v) / 2, 1e-12)


@EACH
def test_two_directions_have_the_alpha_and_mu_of_section_7(likelihood):
    p = problem(likelihood, weight_decay=0.1)
    H, g = dense(p)
    u, v = (params.flatten(V) for V in several(p, 2))
    a, b, d = u @ H @ u, u @ H @ v, v @ H @ v
    alpha_mu, _ = small(p, several(p, 2)).minimum()
    # Cramer's rule, on a 2 x 2 system of condition below 100.
    close(alpha_mu, np.array([b * (g @ v) - d * (g @ u), b * (g @ u) - a * (g @ v)]) / (a * d - b * b), 1e-12)


@EACH
def test_alpha_is_one_for_the_exact_fisher_with_the_same_damping(likelihood):
    p = problem(likelihood, weight_decay=0.1)
    H, g = dense(p)
    Delta = params.unflatten(-np.linalg.solve(H, g), p.shapes)
    (alpha,), decrease = small(p, [Delta]).minimum()
    close(alpha, 1.0, 1e-12)
    close(decrease, -(g @ np.linalg.solve(H, g)) / 2, 1e-12)
    assert abs(small(p, [Delta], DAMPING / 2).minimum()[0][0] - 1) > 1e-2


@EACH
def test_momentum_has_nothing_to_add_to_the_exact_minimum(likelihood):
    p = problem(likelihood)
    H, g = dense(p)
    Delta = params.unflatten(-np.linalg.solve(H, g), p.shapes)
    (alpha, mu), _ = small(p, [Delta, direction(p)]).minimum()
    close(alpha, 1.0, 1e-12)
    assert abs(mu) < 1e-12


# Directions that are dropped


@pytest.mark.parametrize("zero_first", [True, False])
def test_a_zero_direction_is_dropped(zero_first):
    p = problem()
    V = direction(p)
    (alone,), decrease = small(p, [V]).minimum()
    order = [params.zeros_like(V), V] if zero_first else [V, params.zeros_like(V)]
    c, same = small(p, order).minimum()
    assert c[not zero_first] == 0
    close(c[zero_first], alone, 1e-14)
    close(same, decrease, 1e-14)


def test_a_zero_gradient_gives_a_zero_step():
    p = problem()
    zero = params.zeros_like(direction(p))
    assert small(p, several(p, 2), grad=zero).minimum() == ((0.0, 0.0), 0.0)
    assert small(p, [zero, direction(p)], grad=zero).minimum() == ((0.0, 0.0), 0.0)


def test_nothing_but_zero_directions():
    p = problem()
    zero = params.zeros_like(direction(p))
    assert small(p, [zero, zero]).minimum() == ((0.0, 0.0), 0.0)
    assert small(p, [zero]).minimum() == ((0.0,), 0.0)


# 3.7 is not a power of two, so scaling by it rounds every entry.
@pytest.mark.parametrize("factor", [1.0, -1.0, 2.0**30, 3.7, -3.7e-5, 1e8])
@pytest.mark.parametrize("seed", range(5))
def test_a_parallel_direction_is_dropped(factor, seed):
    p = problem(seed=seed)
    V = direction(p)
    (alone,), decrease = small(p, [V]).minimum()
    c, same = small(p, [V, params.scale(factor, V)]).minimum()
    assert c[1] == 0
    close(c[0], alone, 1e-14)
    close(same, decrease, 1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_a_direction_that_is_parallel_up_to_noise_of_rounding_size_is_dropped(seed):
    p = problem(seed=seed)
    V, noise = several(p, 2)
    (alone,), decrease = small(p, [V]).minimum()
    c, same = small(p, [V, params.add(V, params.scale(1e-15, noise))]).minimum()
    assert c[1] == 0
    close(c[0], alone, 1e-14)
    close(same, decrease, 1e-14)


def test_a_direction_in_the_span_of_two_is_dropped():
    p = problem()
    U, V = several(p, 2)
    two, decrease = small(p, [U, V]).minimum()
    c, same = small(p, [U, V, params.add(U, params.scale(-3.7, V))]).minimum()
    assert c[2] == 0
    close(c[:2], two, 1e-14)
    close(same, decrease, 1e-14)


@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-5])
def test_a_direction_that_is_nearly_parallel_is_kept(angle):
    p = problem()
    U, V = several(p, 2)
    tilted = params.add(U, params.scale(angle, V))
    _, decrease = small(p, [U, V]).minimum()
    c, same = small(p, [U, tilted]).minimum()
    assert c[1] != 0
    # The second pivot is angle^2 of the first, and loses as many digits; M is flat at its minimum.
    close(same, decrease, max(1e-12, 1e-14 / angle**2))
    assert same < 1.01 * small(p, [U]).minimum()[1]


def test_in_float32_parallel_means_to_seven_digits():
    p = problem(dtype=np.float32)
    V, noise = several(p, 2)
    shaken = [v + np.float32(1e-7) * n for v, n in zip(V, noise, strict=True)]
    assert small(p, [V, shaken]).minimum()[0][1] == 0


@given(problems(), st.floats(-16, 0), st.integers(0, 100))
def test_the_decrease_is_never_positive_and_one_more_direction_never_hurts(p, exponent, seed):
    U, V = direction(p, seed), direction(p, seed + 1000)
    nearly = params.add(U, params.scale(10**exponent, V))
    (alone,), decrease = small(p, [U]).minimum()
    _, both = small(p, [U, nearly]).minimum()
    assert both <= 0
    # When the second direction is all but parallel its pivot has a few digits, whose error M feels in the square.
    assert both <= decrease + 1e-12 * abs(params.inner(p.at.gradient(p.y), U) * alone)


# Directions of very different lengths


@pytest.mark.parametrize("lengths", [(1e-8, 1e8), (1e8, 1e-8), (1e-8, 1e-8), (1e8, 1e8), (1e-100, 1e50)])
def test_the_length_of_a_direction_changes_its_coefficient_alone(lengths):
    p = problem()
    directions = several(p, 2)
    c, decrease = small(p, directions).minimum()
    assert min(map(abs, c)) > 1e-3
    scaled, same = small(p, [params.scale(s, V) for s, V in zip(lengths, directions, strict=True)]).minimum()
    close(np.multiply(scaled, lengths), c, 1e-12)
    close(same, decrease, 1e-12)


# The reduction ratio


def test_the_reduction_ratio_is_the_quotient_of_the_two_changes():
    assert reduction_ratio(-0.25, -0.5) == 0.5
    assert reduction_ratio(0.75, -0.5) == -1.5
    assert reduction_ratio(0.0, -0.5) == 0


def test_the_reduction_ratio_is_one_where_h_is_the_model():
    p = problem("gaussian", (4, 3), N=9, weight_decay=0.2)
    V = direction(p)
    (alpha,), predicted = small(p, [V], 0.2).minimum()
    moved = p.model.at(params.add(p.at.weights, params.scale(alpha, V)), p.at.x)
    close(reduction_ratio(moved.loss(p.y) - p.at.loss(p.y), predicted), 1.0, 1e-12)
    assert reduction_ratio(moved.loss(p.y) - p.at.loss(p.y), small(p, [V], 0.5).value([alpha])) > 1.01


@pytest.mark.parametrize("actual", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("predicted", [-0.5, 0.0])
def test_a_change_that_is_not_finite_has_no_ratio(actual, predicted):
    assert math.isnan(reduction_ratio(actual, predicted))


def test_nothing_predicted():
    assert reduction_ratio(0.0, 0.0) == 1
    assert math.isnan(reduction_ratio(0.5, 0.0))
    assert math.isnan(reduction_ratio(-0.5, 0.0))
