"""The Hessian against differentiated gradients, and against the Fisher: its blocks, special cases, its mean over y."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.hessian import hessian, hessian_product
from tests.problems import close, direction, problem, problems, relative

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
EACH = pytest.mark.parametrize("likelihood", LIKELIHOODS)
SIZES = (3, 4, 3, 2)


def certain(p):
    """Return targets at which all dL/dz vanish: the model's own means."""
    return p.at.z if isinstance(p.model.likelihood, kr.Gaussian) else 1 / (1 + np.exp(-p.at.z))


def layers(p):
    """Return the slice of each layer's parameters."""
    ends = np.cumsum([0, *(m * n for m, n in p.shapes)])
    return list(itertools.starmap(slice, itertools.pairwise(ends)))


def gap(p, y, i, j):
    """Return how far block (i, j) of H is from that of F, in units of the latter."""
    rows, columns = layers(p)[i], layers(p)[j]
    return relative(hessian(p.at, y)[rows, columns], kr.fisher_matrix(p.at)[rows, columns])


# Against derivatives of the gradient


# Functions that take complex numbers, so that the derivative of the gradient is an imaginary part, and no difference.
COMPLEX = {
    "identity": (lambda s: s, lambda s: 1 + 0 * s),
    "tanh": (np.tanh, lambda s: 1 - np.tanh(s) ** 2),
    "logistic": (lambda s: 1 / (1 + np.exp(-s)), lambda s: np.exp(-s) / (1 + np.exp(-s)) ** 2),
    "relu": (lambda s: s * (s.real > 0), lambda s: 1.0 * (s.real > 0)),
    "softplus": (lambda s: np.log(1 + np.exp(s)), lambda s: 1 / (1 + np.exp(-s))),
}


def complex_residual(likelihood, z, y):
    if isinstance(likelihood, kr.Gaussian):
        return z - y
    if isinstance(likelihood, kr.Bernoulli):
        return 1 / (1 + np.exp(-z)) - y
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(z.shape[1])[y]


def complex_gradient(p, weights):
    """Return the gradient of the mean loss at complex weights, as a vector."""
    a, s = [p.at.x], []
    for W, name in zip(weights, (*p.model.network.hidden, "identity"), strict=True):
        s.append(a[-1] @ W[:, :-1].T + W[:, -1])
        a.append(COMPLEX[name][0](s[-1]))
    g, grad = complex_residual(p.model.likelihood, s[-1], p.y) / len(p.at), []
    for i in reversed(range(len(weights))):
        grad.append(np.column_stack([g.T @ a[i], g.sum(axis=0)]))
        if i:
            g = (g @ weights[i][:, :-1]) * COMPLEX[p.model.network.hidden[i - 1]][1](s[i - 1])
    return np.concatenate([D.ravel(order="F") for D in reversed(grad)])


@given(problems())
def test_products_are_the_complex_step_of_a_gradient(p):
    V, h = direction(p), 1e-30
    moved = [W + 1j * h * v for W, v in zip(p.at.weights, V, strict=True)]
    assert np.abs(complex_gradient(p, p.at.weights) - params.flatten(p.at.gradient(p.y))).max() < 1e-13
    expected = complex_gradient(p, moved).imag / h
    difference = params.flatten(hessian_product(p.at, p.y, V)) - expected
    # Of a single class both are 0, up to the rounding of numbers of size 1.
    assert np.abs(difference).max() <= 1e-12 * np.abs(expected).max() + 1e-14


@EACH
@pytest.mark.parametrize("hidden", ["tanh", "logistic", "softplus", "identity", ("tanh", "softplus")])
def test_products_are_central_differences_of_the_packages_gradient(likelihood, hidden):
    p = problem(likelihood, SIZES, hidden)
    V, h = direction(p), 1e-3

    def grad(t):
        return params.flatten(p.model.at(params.add(p.at.weights, params.scale(t, V)), p.at.x).gradient(p.y))

    # Four points: h^4 of the fifth derivative, about 1e-12 times some tens, and eps / h = 2e-13 of rounding.
    slope = (8 * (grad(h) - grad(-h)) - (grad(2 * h) - grad(-2 * h))) / (12 * h)
    close(params.flatten(hessian_product(p.at, p.y, V)), slope, rtol=1e-8)


# The matrix


@given(problems())
def test_the_dense_matrix_is_symmetric_and_agrees_with_products(p):
    H, V = hessian(p.at, p.y), direction(p)
    close(H, H.T, rtol=1e-12)
    close(H @ params.flatten(V), params.flatten(hessian_product(p.at, p.y, V)), rtol=1e-12)


@EACH
def test_column_k_is_the_product_with_basis_vector_k(likelihood):
    p = problem(likelihood)
    H = hessian(p.at, p.y)
    for k, e in enumerate(np.eye(len(H))):
        column = hessian_product(p.at, p.y, params.unflatten(e, p.shapes))
        np.testing.assert_array_equal(H[:, k], params.flatten(column))


def test_directions_are_left_as_they_were():
    p = problem(sizes=SIZES)
    V = direction(p)
    hessian_product(p.at, p.y, V)
    for v, before in zip(V, direction(p), strict=True):
        np.testing.assert_array_equal(v, before)


# Where it is the Fisher


@EACH
def test_of_one_layer_it_is_the_fisher(likelihood):
    p = problem(likelihood, (4, 3))
    close(hessian(p.at, p.y), kr.fisher_matrix(p.at), rtol=1e-13)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("hidden", ["tanh", "logistic", "relu", "softplus", "identity"])
def test_where_every_target_is_the_mean_it_is_the_fisher(likelihood, hidden):
    p = problem(likelihood, SIZES, hidden)
    F = kr.fisher_matrix(p.at)
    close(hessian(p.at, certain(p)), F, rtol=1e-12)
    assert relative(hessian(p.at, p.y), F) > 1e-3


@EACH
@pytest.mark.parametrize("hidden", ["relu", "identity", ("relu", "identity")])
def test_of_piecewise_linear_nets_the_diagonal_blocks_are_the_fishers_and_the_others_are_not(likelihood, hidden):
    p = problem(likelihood, SIZES, hidden)
    for i in range(3):
        assert gap(p, p.y, i, i) < 1e-12
        for j in set(range(3)) - {i}:
            assert gap(p, p.y, i, j) > 1e-3


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("hidden", ["tanh", "logistic", "softplus"])
def test_of_smooth_nets_all_blocks_but_the_last_differ(likelihood, hidden):
    p = problem(likelihood, SIZES, hidden)
    for i in range(3):
        for j in range(3):
            if (i, j) == (2, 2):                                    # z is linear in the last weights
                assert gap(p, p.y, i, j) < 1e-12
            else:
                assert gap(p, p.y, i, j) > 1e-3


# The mean over targets drawn from the model


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("hidden", ["tanh", "softplus", "relu"])
def test_the_mean_over_all_outcomes_is_the_fisher(likelihood, hidden):
    p = problem(likelihood, (3, 3, 3), hidden, N=3)
    F, mean, furthest = kr.fisher_matrix(p.at), 0, 0
    for n in range(len(p.at)):
        one = p.at.take([n])
        for y, probability in zip(*p.model.likelihood.outcomes(one.z), strict=True):
            H = hessian(one, y)
            mean = mean + probability[0] / len(p.at) * H
            furthest = max(furthest, relative(H, kr.fisher_matrix(one)))
    close(mean, F, rtol=1e-12)
    assert furthest > 1e-1                                          # each outcome has a Hessian of its own


@pytest.mark.parametrize("hidden", ["tanh", "softplus", "relu"])
def test_the_mean_over_a_gaussian_is_the_fisher(hidden):
    p = problem("gaussian", SIZES, hidden)
    C = p.at.z.shape[1]
    # H is affine in y, so two points of the right mean serve for the integral; these have the right covariance, too.
    around = [hessian(p.at, p.at.z + sign * np.sqrt(C) * e) for e in np.eye(C) for sign in (1, -1)]
    F = kr.fisher_matrix(p.at)
    close(sum(around) / (2 * C), F, rtol=1e-12)
    assert min(relative(H, F) for H in around) > 1e-2


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_it_is_affine_in_the_targets(likelihood):
    p = problem(likelihood, SIZES)
    one, another, t = p.y, p.y[::-1], 0.3
    H = [hessian(p.at, y) for y in (one, another, t * one + (1 - t) * another)]
    close(H[2], t * H[0] + (1 - t) * H[1], rtol=1e-13)
    assert relative(H[0], H[1]) > 1e-3


# What is not part of it, and precision


@EACH
def test_weight_decay_is_no_part_of_it(likelihood):
    p, decayed = problem(likelihood), problem(likelihood, weight_decay=0.3)
    np.testing.assert_array_equal(hessian(decayed.at, p.y), hessian(p.at, p.y))
    assert relative(params.flatten(decayed.at.gradient(p.y)), params.flatten(p.at.gradient(p.y))) > 1e-3


@EACH
@pytest.mark.parametrize("hidden", ["tanh", "relu", "softplus"])
def test_float32_stays_float32(likelihood, hidden):
    p, p32 = (problem(likelihood, SIZES, hidden, dtype=dtype) for dtype in (np.float64, np.float32))
    HV = hessian_product(p32.at, p.y, direction(p))
    assert {D.dtype for D in HV} == {hessian(p32.at, p.y).dtype} == {np.dtype(np.float32)}
    # float32 has 7 digits, and a dozen roundings follow.
    close(hessian(p32.at, p.y), hessian(p.at, p.y), rtol=1e-5)


# Refusals


@EACH
def test_a_stack_of_targets_is_refused(likelihood):
    p = problem(likelihood)
    with pytest.raises(ValueError, match="y must hold one target for each example, got a stack of 2"):
        hessian_product(p.at, np.stack([p.y, p.y]), direction(p))


def test_labels_of_another_batch_are_refused():
    p = problem()
    with pytest.raises(ValueError, match=r"y must have shape \(7,\), or a stack of those, got \(6,\)"):
        hessian(p.at, p.y[:-1])


@pytest.mark.parametrize(("bad", "message"), [
    (lambda V: [V[0], V[1].T], "V[1] must have shape (3, 6), got (6, 3)"),
    (lambda V: V[:1], "V must hold one array per layer: expected 2, got 1"),
    (lambda V: [V[0] * np.nan, V[1]], "V[0] must be finite: 25 of 25 entries"),
])
def test_directions_that_do_not_fit_are_refused(bad, message):
    p = problem()
    with pytest.raises(ValueError, match=re.escape(message)):
        hessian_product(p.at, p.y, bad(direction(p)))


def test_a_matrix_that_takes_too_much_memory_is_refused_by_its_bytes():
    p = problem()
    size = 43 * 43 * 8
    with pytest.raises(ValueError, match=f"the Hessian is 43 x 43 and takes {size:,} bytes, more than max_bytes = "
                                         f"{size - 1:,}"):
        hessian(p.at, p.y, size - 1)
    assert hessian(p.at, p.y, size).shape == (43, 43)
