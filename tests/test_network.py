"""The network: activations, forward pass, backward pass, R-operator, initial weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref.checks import Array
from kfac_ref.network import ACTIVATIONS, Activation

from .problems import Problem, close, direction, problem, problems, relative

H = 1e-30                                   # a complex step has no subtraction, so it may be as small as one likes
ANALYTIC = ("identity", "tanh", "logistic")
OTHERS = tuple(sorted(set(ACTIVATIONS) - set(ANALYTIC)))
ALL_KINDS = ("tanh", "logistic", "relu", "softplus", "identity")
DEEP = (3, 4, 2, 3, 5, 4, 2)
PHI: dict[str, Callable[[float], float]] = {
    "identity": lambda s: s, "tanh": math.tanh, "logistic": lambda s: 1 / (1 + math.exp(-s)),
    "relu": lambda s: s if s > 0 else 0.0, "softplus": lambda s: math.log1p(math.exp(s))}


def grid() -> Array:
    """Return points on both sides of 0, which is not among them."""
    return np.linspace(-4.1, 4.3, 57)


def central(f: Callable[[float], Any], h: float = 1e-3) -> Any:
    """Return f'(0) by the five-point rule: at h = 1e-3 both h^4 / 30, its error, and eps / h, rounding, are 1e-13."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def moved(p: Problem, V: list[Array], t: complex) -> Array:
    """Return the output z at weights + t V."""
    weights = [W + t * v for W, v in zip(p.at.weights, V, strict=True)]
    return p.model.network.forward(weights, p.at.x).s[-1]


def slope_of_output(p: Problem, V: list[Array]) -> Array:
    """Return the derivative of z along V, by complex step where that is possible."""
    if set(p.model.network.hidden) <= set(ANALYTIC):
        return moved(p, V, 1j * H).imag / H
    return central(lambda t: moved(p, V, t), h=1e-4)       # short, so that no relu unit changes sides


def unit(p: Problem, layer: int, row: int, column: int) -> list[Array]:
    """Return the direction of a single weight."""
    E = kr.params.zeros_like(p.at.weights)
    E[layer][row, column] = 1
    return E


# Activations


def test_every_activation_has_a_scalar_witness() -> None:
    assert set(PHI) == set(ACTIVATIONS) == set(ALL_KINDS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_phi_is_the_textbook_function(name: str) -> None:
    np.testing.assert_allclose(ACTIVATIONS[name].phi(grid()), [PHI[name](s) for s in grid()], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ANALYTIC)
def test_derivatives_of_analytic_activations_are_their_complex_steps(name: str) -> None:
    f, s = ACTIVATIONS[name], grid() + 1j * H
    a = f.phi(s)
    close(f.dphi(s.real, a.real), a.imag / H, 1e-13)
    close(f.ddphi(s.real, a.real), f.dphi(s, a).imag / H, 1e-13)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_derivatives_of_all_activations_are_central_differences(name: str) -> None:
    f, s = ACTIVATIONS[name], grid()
    a = f.phi(s)
    close(f.dphi(s, a), central(lambda t: f.phi(s + t)), 1e-10)                     # see `central`
    close(f.ddphi(s, a), central(lambda t: f.dphi(s + t, f.phi(s + t))), 1e-10)


@pytest.mark.parametrize("name", ["tanh", "logistic", "softplus"])
def test_curved_activations_have_slopes_that_vary(name: str) -> None:
    f, s = ACTIVATIONS[name], grid()
    assert np.ptp(f.dphi(s, f.phi(s))) > 0.2
    assert np.abs(f.ddphi(s, f.phi(s))).max() > 0.05


def test_the_slope_of_relu_at_zero_is_zero() -> None:
    f, zero = ACTIVATIONS["relu"], np.zeros(1)
    assert f.phi(zero) == f.dphi(zero, zero) == f.ddphi(zero, zero) == 0


def softplus_derivatives(s: float) -> tuple[float, float]:
    """Return logistic(s) and logistic(s) logistic(-s), computed with 60 digits."""
    with localcontext(prec=60):
        p = 1 / (1 + Decimal(-s).exp())
        q = 1 / (1 + Decimal(s).exp())
        return float(p), float(p * q)


@pytest.mark.parametrize("s", [-700.0, -300.5, -40.0, -36.7, -1.0, 0.0, 1.0, 36.7, 40.0, 300.5, 700.0])
def test_softplus_derivatives_keep_their_relative_accuracy_in_the_tails(s: float) -> None:
    f, at = ACTIVATIONS["softplus"], np.array([s])
    first, second = softplus_derivatives(s)
    a = f.phi(at)
    # 1e-12, not 1e-14: exp(-a) turns the rounding of a, 700 eps / 2, into a relative error.
    np.testing.assert_allclose(f.dphi(at, a), first, rtol=1e-14, atol=0)
    np.testing.assert_allclose(f.ddphi(at, a), second, rtol=1e-12 if s > 40 else 1e-14, atol=0)


def test_subtraction_from_one_loses_the_tail_of_softplus() -> None:
    a = ACTIVATIONS["softplus"].phi(np.array([-40.0]))
    assert relative(1 - np.exp(-a), softplus_derivatives(-40.0)[0]) > 0.5


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("s", [-1e4, 1e4])
def test_far_out_every_activation_is_finite_without_a_warning(name: str, s: float) -> None:
    f, at = ACTIVATIONS[name], np.array([s])
    a = f.phi(at)
    assert np.isfinite([a, f.dphi(at, a), f.ddphi(at, a)]).all()


# Forward


def loop(weights: tuple[Array, ...], hidden: tuple[str, ...], x: Array) -> list[list[float]]:
    """Return the s of every layer for one example, one unit after another."""
    a, layers = [float(v) for v in x], []
    for W, name in zip(weights, (*hidden, "identity"), strict=True):
        layers.append([sum(w * v for w, v in zip(row[:-1], a, strict=True)) + row[-1] for row in W.tolist()])
        a = [PHI[name](s) for s in layers[-1]]
    return layers


def test_forward_is_a_loop_over_examples_and_units() -> None:
    p = problem(sizes=DEEP, hidden=ALL_KINDS)
    examples = [loop(p.at.weights, ALL_KINDS, x) for x in p.at.x]
    for i, s in enumerate(p.at.s):
        close(s, [layers[i] for layers in examples], 1e-13)


def test_the_input_of_a_layer_is_the_last_activation_and_a_one() -> None:
    p = problem(sizes=DEEP, hidden=ALL_KINDS)
    assert [a.shape[1] for a in p.at.a_bar] == [n + 1 for n in DEEP[:-1]]
    assert all((a[:, -1] == 1).all() for a in p.at.a_bar)
    for a_bar, s, name in zip(p.at.a_bar[1:], p.at.s, ALL_KINDS, strict=False):
        close(a_bar[:, :-1], np.vectorize(PHI[name])(s), 1e-13)


def test_the_output_is_linear_and_so_is_a_network_without_hidden_layers() -> None:
    p = problem(sizes=(4, 3))
    W = p.at.weights[0]
    close(p.at.z, p.at.x @ W[:, :-1].T + W[:, -1], 1e-14)
    assert p.model.network.activations == (ACTIVATIONS["identity"],)


@given(problems())
def test_shapes_and_parameters_are_those_of_the_weights(p: Problem) -> None:
    sizes = p.model.network.sizes
    assert p.shapes == tuple((sizes[i + 1], sizes[i] + 1) for i in range(len(sizes) - 1))
    assert p.model.network.parameters == sum(W.size for W in p.at.weights)


def test_one_name_stands_for_all_hidden_layers_and_lists_serve_as_tuples() -> None:
    assert kr.MLP((2, 3, 4, 5), "relu") == kr.MLP((2, 3, 4, 5), ("relu", "relu"))
    assert kr.MLP([2, 3, 1], ["tanh"]) == kr.MLP((2, 3, 1), "tanh")    # type: ignore[arg-type]


def test_a_pass_of_some_rows_is_their_own_pass() -> None:
    p = problem(sizes=DEEP, hidden=ALL_KINDS)
    rows = np.array([5, 0, 5])
    part, own = p.at.forward.take(rows), p.model.network.forward(p.at.weights, p.at.x[rows])
    for a, b in zip((*part.a_bar, *part.s, *part.slopes), (*own.a_bar, *own.s, *own.slopes), strict=True):
        close(a, b, 1e-14)


# Backward


def u_like(p: Problem, *stack: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal((*stack, *p.at.z.shape)).astype(p.at.z.dtype)


def slopes_by_biases(p: Problem, u: Array, layer: int) -> Array:
    """Return d(u_n . z_n) / ds for each example: a bias moves the s of every example alike, and no other."""
    m, n = p.shapes[layer]
    return np.stack([np.sum(u * slope_of_output(p, unit(p, layer, c, n - 1)), axis=1) for c in range(m)], axis=1)


@pytest.mark.parametrize("hidden", ANALYTIC)
def test_backward_is_the_complex_step_in_every_s(hidden: str) -> None:
    p = problem(sizes=(3, 4, 5, 2), hidden=hidden)
    u = u_like(p)
    for layer, g in enumerate(p.at.backward(u)):
        close(g, slopes_by_biases(p, u, layer), 1e-12)


@pytest.mark.parametrize("hidden", OTHERS)
def test_backward_is_the_central_difference_in_every_s(hidden: str) -> None:
    p = problem(sizes=(3, 4, 5, 2), hidden=hidden)
    u = u_like(p)
    for layer, g in enumerate(p.at.backward(u)):
        close(g, slopes_by_biases(p, u, layer), 1e-9)      # eps / h = 2e-12 at the step of 1e-4


@pytest.mark.parametrize("hidden", ANALYTIC)
def test_g_times_a_bar_is_the_complex_step_in_every_weight(hidden: str) -> None:
    p = problem(sizes=(3, 4, 2), hidden=hidden)
    u = u_like(p)
    for i, (g, a_bar) in enumerate(zip(p.at.backward(u), p.at.a_bar, strict=True)):
        m, n = p.shapes[i]
        slopes = [[np.sum(u * slope_of_output(p, unit(p, i, r, c))) for c in range(n)] for r in range(m)]
        close(g.T @ a_bar, slopes, 1e-12)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "bernoulli"])
def test_backward_of_a_loss_is_the_central_difference_of_each_example(likelihood: str) -> None:
    p = problem(likelihood, sizes=(3, 4, 3, 2), hidden=("softplus", "logistic"))
    nll = p.model.likelihood.nll
    g = p.at.backward(p.model.likelihood.gradient(p.at.z, p.y))
    for layer, (m, n) in enumerate(p.shapes):
        for c in range(m):
            E = unit(p, layer, c, n - 1)
            close(g[layer][:, c], central(lambda t, E=E: nll(moved(p, E, t), p.y)), 1e-9)       # see `central`


@given(problems())
def test_a_stack_of_backward_passes_is_as_many_single_passes(p: Problem) -> None:
    dz = u_like(p, 3)
    stacked = p.at.backward(dz)
    singles = [p.at.backward(u) for u in dz]
    for i, g in enumerate(stacked):
        close(g, np.stack([single[i] for single in singles]), 1e-13)


def test_the_bias_column_carries_no_signal_backwards() -> None:
    p = problem(sizes=(3, 4, 5, 2), hidden="identity")
    shifted = [W + np.eye(1, W.shape[1], W.shape[1] - 1) for W in p.at.weights]
    other = p.model.at(shifted, p.at.x)
    for g, h in zip(p.at.backward(u_like(p)), other.backward(u_like(p)), strict=True):
        close(g, h, 1e-14)
    assert relative(other.z, p.at.z) > 0.1


# The R-operator


@pytest.mark.parametrize("hidden", ANALYTIC)
def test_tangent_is_the_complex_step_along_a_direction(hidden: str) -> None:
    p = problem(sizes=(3, 4, 5, 2), hidden=hidden)
    close(p.at.tangent(direction(p)), slope_of_output(p, direction(p)), 1e-12)


@given(problems(smooth=True))
def test_tangent_is_the_central_difference_along_a_direction(p: Problem) -> None:
    V = direction(p)
    expected = central(lambda t: moved(p, V, t), h=2e-4)
    scale = np.abs(p.at.z).max() + 1                       # z itself is what rounds: eps / h = 1e-12 of it
    np.testing.assert_allclose(p.at.tangent(V), expected, rtol=1e-9, atol=1e-9 * scale)


def test_tangent_of_relu_is_the_central_difference_away_from_its_kinks() -> None:
    p = problem(sizes=(3, 4, 5, 2), hidden="relu")
    slopes = np.concatenate([s.ravel() for s in p.at.forward.slopes])
    assert 0 < slopes.mean() < 1
    close(p.at.tangent(direction(p)), slope_of_output(p, direction(p)), 1e-9)       # eps / h = 2e-12


@given(problems())
def test_tangent_and_backward_are_adjoints(p: Problem) -> None:
    V, u = direction(p), u_like(p)
    dz, D = p.at.tangent(V), p.at.adjoint(u)
    terms = np.abs(dz * u).sum() + sum(np.abs(v * d).sum() for v, d in zip(V, D, strict=True))
    assert abs(np.sum(dz * u) - kr.params.inner(V, D)) <= 1e-12 * terms


def test_backward_without_slopes_differs() -> None:
    p = problem(sizes=(3, 4, 2))
    linear = dataclasses.replace(p.at.forward, activations=(ACTIVATIONS["identity"],) * 2)
    g, wrong = p.at.backward(u_like(p)), p.model.network.backward(p.at.weights, linear, u_like(p))
    assert relative(wrong[0], g[0]) > 0.1
    assert relative(wrong[1], g[1]) == 0


# Initial weights


def z_scores(sample: Array, variance: float) -> Array:
    """Return how many standard errors the mean and the variance of a normal sample are off 0 and `variance`."""
    n, unit_sample = sample.size, sample / np.sqrt(variance)
    return np.array([unit_sample.mean() * np.sqrt(n), (np.mean(unit_sample**2) - 1) * np.sqrt(n / 2)])


@pytest.mark.parametrize("hidden", ["tanh", "logistic", "relu"])
def test_sparse_units_have_15_inputs_or_all_that_there_are(hidden: str) -> None:
    for n, W in zip((40, 10, 15), kr.MLP((40, 10, 15, 6), hidden).init(np.random.default_rng(0)), strict=True):
        assert (np.count_nonzero(W[:, :-1], axis=1) == min(15, n)).all()


def test_sparse_inputs_are_chosen_evenly() -> None:
    W = kr.MLP((60, 4000), ()).init(np.random.default_rng(0))[0][:, :-1]
    counts = np.count_nonzero(W, axis=0)
    z = (counts - 1000) / np.sqrt(4000 * 0.25 * 0.75)      # 15 of 60: each input is chosen with probability 1/4
    assert np.abs(z).max() < 4
    assert np.ptp(z) > 1


def test_sparse_weights_are_standard_normal_and_biases_zero() -> None:
    W = kr.MLP((40, 3000, 2), "logistic").init(np.random.default_rng(0))[0]
    values = W[:, :-1][W[:, :-1] != 0]
    assert np.abs(z_scores(values, 1.0)).max() < 4
    assert np.abs(z_scores(values, 1.1)).max() > 10
    assert (W[:, -1] == 0).all()


def test_sparse_tanh_layers_have_half_the_weights_and_biases_of_one_half() -> None:
    W, last = kr.MLP((40, 3000, 200), "tanh").init(np.random.default_rng(0))
    values = W[:, :-1][W[:, :-1] != 0]
    assert np.abs(z_scores(values, 0.25)).max() < 4
    assert (W[:, -1] == 0.5).all()
    assert np.abs(z_scores(last[:, :-1][last[:, :-1] != 0], 1.0)).max() < 4         # the output layer is linear
    assert (last[:, -1] == 0).all()


def test_glorot_weights_fill_their_interval_and_biases_are_zero() -> None:
    for (m, n), W in zip([(80, 100), (60, 80)],
                         kr.MLP((100, 80, 60), "tanh").init(np.random.default_rng(0), "glorot"), strict=True):
        r = math.sqrt(6 / (m + n))
        values = W[:, :-1].ravel() / r
        assert 0.99 < np.abs(values).max() <= 1
        assert abs(values.mean()) * math.sqrt(3 * values.size) < 4                  # U(-1, 1) has variance 1/3 ...
        assert abs(np.mean(values**2) - 1 / 3) * math.sqrt(values.size * 45 / 4) < 4        # ... and x^2 has 4/45
        assert (W[:, -1] == 0).all()


@pytest.mark.parametrize("scheme", ["sparse", "glorot"])
def test_a_seed_fixes_the_initial_weights(scheme: str) -> None:
    network = kr.MLP((20, 5, 3))
    first, again, other = (network.init(np.random.default_rng(seed), scheme) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert all(relative(a[:, :-1], b[:, :-1]) > 0.1 for a, b in zip(first, other, strict=True))
    assert tuple(W.shape for W in first) == network.shapes


# float32


@pytest.mark.parametrize("scheme", ["sparse", "glorot"])
def test_float32_initial_weights_are_those_of_float64_rounded(scheme: str) -> None:
    network = kr.MLP((20, 5, 3))
    single, double = (network.init(np.random.default_rng(0), scheme, dtype) for dtype in (np.float32, np.float64))
    for a, b in zip(single, double, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b.astype(np.float32))


def everything(p: Problem) -> list[Array]:
    """Return what the network computes at a point: forward, slopes, backward, stacked backward, tangent, adjoint."""
    u, f = u_like(p), p.at.forward
    return [*f.a_bar, *f.s, *f.slopes, *p.at.backward(u), *p.at.backward(u_like(p, 2)), p.at.tangent(direction(p)),
            *p.at.adjoint(u), *p.at.gradient(p.y)]


@pytest.mark.parametrize("hidden", sorted(ACTIVATIONS))
def test_float32_is_kept_throughout_and_has_five_digits(hidden: str) -> None:
    single = problem(sizes=(4, 5, 6, 3), hidden=hidden, dtype=np.float32, weight_decay=0.1)
    double = problem(sizes=(4, 5, 6, 3), hidden=hidden, weight_decay=0.1)
    # The same float32 numbers enter both, so that only the arithmetic differs.
    at = double.model.at([W.astype(np.float64) for W in single.at.weights], single.at.x.astype(np.float64))
    errors = []
    for a, b in zip(everything(single), everything(double._replace(at=at, y=single.y)), strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float64)
        errors.append(relative(a, b))
    assert 1e-9 < max(errors) < 1e-5


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_keep_float32(name: str) -> None:
    f: Activation = ACTIVATIONS[name]
    s = grid().astype(np.float32)
    a = f.phi(s)
    assert a.dtype == f.dphi(s, a).dtype == f.ddphi(s, a).dtype == np.float32
