"""The model at a point: loss, gradient, parts of a batch, samples, and every bad input that is refused."""

from __future__ import annotations

import ast
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import checks
from kfac_ref.checks import Array
from kfac_ref.model import as_point

from .problems import LIKELIHOODS, Problem, close, direction, labels, problem, problems, relative

EVERY = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
ETA = 0.3
H = 1e-30


def scalar_nll(likelihood: str, z: list[float], y: Any) -> float:
    """Return -log p(y | z) of one example, one output after another."""
    if likelihood == "gaussian":
        return sum((a - b) ** 2 for a, b in zip(z, y, strict=True)) / 2
    if likelihood == "categorical":
        return math.log(sum(math.exp(a) for a in z)) - z[y]
    return sum(math.log(1 + math.exp(a)) - b * a for a, b in zip(z, y, strict=True))


def complex_nll(likelihood: str, z: Array, y: Any) -> Any:
    """Return the sum of -log p over the examples, for complex z."""
    if likelihood == "gaussian":
        return np.sum((z - y) ** 2) / 2
    if likelihood == "categorical":
        return np.sum(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y])
    return np.sum(np.log(1 + np.exp(z)) - y * z)


def each_parameter(p: Problem, f: Callable[[list[Array]], Any]) -> list[Array]:
    """Return f of the direction of every single weight and bias, arranged like the weights."""
    values = kr.params.zeros_like(p.at.weights)
    for i, value in enumerate(values):
        for place in np.ndindex(value.shape):
            E = kr.params.zeros_like(p.at.weights)
            E[i][place] = 1
            value[place] = f(E)
    return values


def close_directions(actual: list[Array], expected: list[Array], rtol: float) -> None:
    close(kr.params.flatten(actual), kr.params.flatten(expected), rtol)


def stack_of_targets(p: Problem, draws: int = 2) -> Array:
    return p.at.sample(np.random.default_rng(0), draws)


def dz_like(p: Problem, *stack: int) -> Array:
    return np.random.default_rng(3).standard_normal((*stack, *p.at.z.shape)).astype(p.at.z.dtype)


# Loss and gradient


@EVERY
def test_loss_is_the_mean_over_the_batch_plus_half_eta_times_the_squared_parameters(likelihood: str) -> None:
    p = problem(likelihood, weight_decay=ETA)
    total = sum(scalar_nll(likelihood, z.tolist(), y) for z, y in zip(p.at.z, p.y, strict=True))
    squares = sum(w * w for W in p.at.weights for w in W.ravel().tolist())
    close(p.at.loss(p.y), total / 7 + ETA / 2 * squares, 1e-14)
    assert isinstance(p.at.loss(p.y), float)


@EVERY
@pytest.mark.parametrize("hidden", ["tanh", "logistic", "identity"])
def test_gradient_is_the_complex_step_of_the_loss_in_every_parameter(likelihood: str, hidden: str) -> None:
    p = problem(likelihood, sizes=(3, 4, 3, 2), hidden=hidden, weight_decay=ETA)

    def slope(E: list[Array]) -> float:
        weights = [W + 1j * H * e for W, e in zip(p.at.weights, E, strict=True)]
        z = p.model.network.forward(weights, p.at.x).s[-1]
        h = complex_nll(likelihood, z, p.y) / len(z) + ETA / 2 * sum(np.sum(W * W) for W in weights)
        return float(h.imag / H)

    close_directions(p.at.gradient(p.y), each_parameter(p, slope), 1e-12)


@EVERY
@pytest.mark.parametrize("hidden", ["relu", "softplus", "tanh"])
def test_gradient_is_the_central_difference_of_the_loss_in_every_parameter(likelihood: str, hidden: str) -> None:
    p = problem(likelihood, sizes=(3, 4, 3, 2), hidden=hidden, weight_decay=ETA)

    def loss(E: list[Array], t: float) -> float:
        return p.model.at([W + t * e for W, e in zip(p.at.weights, E, strict=True)], p.at.x).loss(p.y)

    # The five-point rule: eps / h = 2e-12 rounding; 1e-4 is short enough that no relu unit changes sides.
    h = 1e-4
    difference = each_parameter(p, lambda E: (8 * (loss(E, h) - loss(E, -h)) - (loss(E, 2 * h) - loss(E, -2 * h)))
                                / (12 * h))
    close_directions(p.at.gradient(p.y), difference, 1e-9)


@EVERY
def test_gradient_is_the_mean_of_the_gradients_of_single_examples(likelihood: str) -> None:
    p = problem(likelihood)
    singles = [p.at.take([n]).gradient(p.y[[n]]) for n in range(7)]
    close_directions(p.at.gradient(p.y), [np.mean(layer, axis=0) for layer in zip(*singles, strict=True)], 1e-13)


@EVERY
def test_weight_decay_acts_on_weights_and_biases_alike(likelihood: str) -> None:
    plain, decayed = problem(likelihood), problem(likelihood, weight_decay=ETA)
    pull = [a - b for a, b in zip(decayed.at.gradient(plain.y), plain.at.gradient(plain.y), strict=True)]
    close_directions(pull, [ETA * W for W in plain.at.weights], 1e-13)
    assert all(np.abs(D[:, -1]).max() > 1e-2 for D in pull)
    close(decayed.at.loss(plain.y) - plain.at.loss(plain.y), ETA / 2 * kr.params.norm(plain.at.weights) ** 2, 1e-13)


@EVERY
def test_a_batch_twice_over_has_the_same_loss_gradient_and_error(likelihood: str) -> None:
    p = problem(likelihood, weight_decay=ETA)
    twice = np.tile(np.arange(7), 2)
    both = p.at.take(twice)
    close(both.loss(p.y[twice]), p.at.loss(p.y), 1e-14)
    close(both.error(p.y[twice]), p.at.error(p.y), 1e-14)
    close_directions(both.gradient(p.y[twice]), p.at.gradient(p.y), 1e-13)


@EVERY
def test_error_is_the_mean_of_the_likelihoods_error_without_weight_decay(likelihood: str) -> None:
    p = problem(likelihood, weight_decay=ETA)
    prediction = {"gaussian": p.at.z, "bernoulli": 1 / (1 + np.exp(-p.at.z))}.get(likelihood)
    wrong = (np.argmax(p.at.z, axis=1) != p.y if prediction is None else
             ((prediction - p.y) ** 2).sum(axis=1))
    close(p.at.error(p.y), np.mean(wrong), 1e-13)
    assert isinstance(p.at.error(p.y), float)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_the_expected_gradient_over_the_models_own_outcomes_is_weight_decay_alone(likelihood: str) -> None:
    p = problem(likelihood, N=1, weight_decay=ETA)
    y, probabilities = p.model.likelihood.outcomes(p.at.z)
    mean = sum(w * kr.params.flatten(p.at.gradient(t)) for t, w in zip(y, probabilities[:, 0], strict=True))
    close(mean, ETA * kr.params.flatten(p.at.weights), 1e-13)


# A point


def test_a_point_names_the_parts_of_its_forward_pass() -> None:
    p = problem()
    x = np.random.default_rng(5).standard_normal((6, 4))
    at = p.model.at(p.at.weights, x)
    np.testing.assert_array_equal(at.x, x)
    assert at.z is at.s[-1] is at.forward.s[-1]
    assert at.a_bar is at.forward.a_bar
    assert (len(at), at.z.shape) == (6, (6, 3))


def test_lists_and_whole_numbers_serve_as_inputs() -> None:
    p = problem()
    x = [[1, 0, -2, 3], [0, 1, 1, 0]]
    at = p.model.at([W.tolist() for W in p.at.weights], x)
    np.testing.assert_array_equal(at.z, p.model.at(p.at.weights, np.array(x, float)).z)


def test_init_is_that_of_the_network() -> None:
    p = problem()
    for scheme in ("sparse", "glorot"):
        own = p.model.init(np.random.default_rng(0), scheme, np.float32)
        its = p.model.network.init(np.random.default_rng(0), scheme, np.float32)
        assert all((a == b).all() and a.dtype == np.float32 for a, b in zip(own, its, strict=True))


@pytest.mark.parametrize("rows", [slice(2, 5), slice(None, None, 3), [4, 0, 4], np.array([6, 1]),
                                  np.arange(7) % 2 == 0, [3]], ids=str)
def test_part_of_a_point_is_a_forward_pass_of_those_rows(rows: Any) -> None:
    p = problem("gaussian", sizes=(4, 5, 4, 3), hidden=("tanh", "softplus"), weight_decay=ETA)
    part, own, dz = p.at.take(rows), p.model.at(p.at.weights, p.at.x[rows]), dz_like(p)[rows]
    assert len(part) == len(own)
    for a, b in zip((*part.a_bar, *part.s), (*own.a_bar, *own.s), strict=True):
        close(a, b, 1e-13)
    close(part.loss(p.y[rows]), own.loss(p.y[rows]), 1e-13)
    close_directions(part.gradient(p.y[rows]), own.gradient(p.y[rows]), 1e-13)
    close(part.tangent(direction(p)), own.tangent(direction(p)), 1e-13)
    close_directions(part.adjoint(dz), own.adjoint(dz), 1e-13)


def test_slopes_already_computed_do_not_leak_into_a_part() -> None:
    p = problem()
    p.at.backward(dz_like(p))
    rows = [5, 2]
    for a, b in zip(p.at.take(rows).backward(dz_like(p)[rows]), p.at.backward(dz_like(p)), strict=True):
        close(a, b[rows], 1e-13)


@pytest.mark.parametrize("rows", [[], slice(3, 3), slice(7, 9), np.zeros(7, bool)], ids=str)
def test_an_empty_part_is_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows must choose at least one example"):
        problem().at.take(rows)


@given(problems())
def test_backward_is_example_by_example_and_never_divided_by_the_batch(p: Problem) -> None:
    dz = p.model.likelihood.gradient(p.at.z, p.y)
    g = p.at.backward(dz)
    np.testing.assert_array_equal(g[-1], dz)
    for n in range(len(p.at)):
        for layer, single in zip(g, p.at.take([n]).backward(dz[[n]]), strict=True):
            close(layer[[n]], single, 1e-13)


@given(problems())
def test_adjoint_is_the_sum_of_the_outer_products_over_the_examples(p: Problem) -> None:
    dz = dz_like(p)
    g, D = p.at.backward(dz), p.at.adjoint(dz)
    for i, d in enumerate(D):
        close(d, sum(np.outer(g[i][n], p.at.a_bar[i][n]) for n in range(len(p.at))), 1e-12)


def test_dividing_the_adjoint_by_the_batch_would_differ() -> None:
    p = problem()
    D = p.at.adjoint(p.model.likelihood.gradient(p.at.z, p.y))
    close_directions([d / 7 for d in D], p.at.gradient(p.y), 1e-13)
    assert relative(D[0], p.at.gradient(p.y)[0]) > 1


# Samples


@EVERY
def test_a_seed_fixes_the_samples_of_a_point(likelihood: str) -> None:
    p = problem(likelihood, N=20)
    for draws in (None, 3):
        first, again, other = (p.at.sample(np.random.default_rng(seed), draws) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


@EVERY
def test_samples_are_the_likelihoods_and_draws_stack_them(likelihood: str) -> None:
    p = problem(likelihood)
    shape = (7,) if likelihood == "categorical" else (7, 3)
    assert p.at.sample(np.random.default_rng(0)).shape == shape
    assert p.at.sample(np.random.default_rng(0), 4).shape == (4, *shape)
    np.testing.assert_array_equal(p.at.sample(np.random.default_rng(0), 4),
                                  p.model.likelihood.sample(p.at.z, np.random.default_rng(0), 4))
    assert np.isfinite(p.at.loss(p.at.sample(np.random.default_rng(0))))


def test_the_generator_advances_between_samples() -> None:
    p, rng = problem("gaussian"), np.random.default_rng(0)
    assert (p.at.sample(rng) != p.at.sample(rng)).all()


# Dtype and purity


@EVERY
def test_float32_is_kept_and_has_five_digits(likelihood: str) -> None:
    single = problem(likelihood, dtype=np.float32, weight_decay=ETA)
    at = single.model.at([W.astype(np.float64) for W in single.at.weights], single.at.x.astype(np.float64))
    y = single.y
    gradient = single.at.gradient(y)
    assert {D.dtype for D in gradient} == {np.dtype(np.float32)}
    error = relative(kr.params.flatten(gradient), kr.params.flatten(at.gradient(y)))
    assert 1e-9 < error < 1e-5
    close(single.at.loss(y), at.loss(y), 1e-5)
    assert isinstance(single.at.loss(y), float)
    if likelihood != "categorical":
        assert single.at.sample(np.random.default_rng(0)).dtype == np.float32


def test_the_first_weights_decide_the_dtype() -> None:
    p = problem(sizes=(4, 5, 3))
    mixed = [p.at.weights[0].astype(np.float32), p.at.weights[1]]
    at = p.model.at(mixed, p.at.x)
    assert {a.dtype for a in (*at.weights, *at.a_bar, *at.s)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("eta", [0.5, np.float64(0.5), np.float32(0.5), 1, np.array(0.5)], ids=repr)
def test_no_kind_of_weight_decay_changes_the_dtype(eta: Any) -> None:
    p = problem(dtype=np.float32, weight_decay=eta)
    assert {D.dtype for D in p.at.gradient(p.y)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_is_summed_in_float64_weight_decay_included(dtype: Any) -> None:
    p = problem(sizes=(20, 30, 10), N=50, dtype=dtype, weight_decay=ETA)
    nll = p.model.likelihood.nll(p.at.z, p.y)
    squares = math.fsum(w * w for W in p.at.weights for w in W.ravel().tolist())
    close(p.at.loss(p.y), math.fsum(nll.tolist()) / 50 + ETA / 2 * squares, 1e-13)


@EVERY
def test_nothing_passed_in_and_nothing_kept_has_changed(likelihood: str) -> None:
    rng = np.random.default_rng(0)
    model = kr.Model(kr.MLP((4, 5, 6, 3), ("tanh", "relu")), LIKELIHOODS[likelihood], ETA)
    weights, x = model.init(rng, "glorot"), rng.standard_normal((7, 4))
    at = model.at(weights, x)
    y, V, dz = labels(likelihood, at.z, rng), model.init(rng, "glorot"), rng.standard_normal((2, *at.z.shape))
    held = [*weights, x, y, *V, dz, *at.weights, *at.a_bar, *at.s, *at.forward.slopes]
    before = [a.tobytes() for a in held]
    at.loss(y), at.gradient(y), at.error(y), at.backward(dz), at.adjoint(dz[0]), at.tangent(V)
    at.sample(rng), at.sample(rng, 2), at.take([0, 2]).gradient(y[[0, 2]])
    assert [a.tobytes() for a in held] == before


def test_a_users_own_likelihood_serves_as_well() -> None:
    class Scaled(kr.Gaussian):
        """A Gaussian of variance 1/4."""

        def nll(self, z: Array, y: Any) -> Array:
            return 4 * super().nll(z, y)

        def gradient(self, z: Array, y: Any) -> Array:
            return 4 * super().gradient(z, y)

    p = problem("gaussian")
    at = kr.Model(p.model.network, Scaled()).at(p.at.weights, p.at.x)
    close(at.loss(p.y), 4 * p.at.loss(p.y), 1e-14)
    close_directions(at.gradient(p.y), [4 * D for D in p.at.gradient(p.y)], 1e-14)


# Refusals. Each row: what is done, and the whole message.

class Unfinished:
    """A likelihood of a user's own that lacks some methods."""

    labels = True
    check = nll = gradient = fisher = fisher_root = None


P = problem("categorical")                          # sizes (4, 5, 3), seven examples
ONE = problem("gaussian", (4, 5, 1))
G = problem("gaussian")
B = problem("bernoulli")
W = list(P.at.weights)
X = P.at.x
NAMES = "identity, logistic, relu, softplus, tanh"


def but(a: Any, *changes: tuple[Any, float]) -> Array:
    """Return a copy of `a` with some entries changed."""
    a = np.array(a)
    for place, value in changes:
        a[place] = value
    return a


def at(weights: Any = W, x: Any = X) -> Callable[[], object]:
    return lambda: P.model.at(weights, x)


def network(*arguments: Any) -> Callable[[], object]:
    return lambda: kr.MLP(*arguments)


def model(weight_decay: Any) -> Callable[[], object]:
    return lambda: kr.Model(P.model.network, kr.Categorical(), weight_decay)


REFUSALS: list[tuple[Callable[[], object], str]] = [
    # Networks
    (network(5), "sizes must hold at least the number of inputs and of outputs, got 5"),
    (network("45"), "sizes must hold at least the number of inputs and of outputs, got '45'"),
    (network((5,)), "sizes must hold at least the number of inputs and of outputs, got (5,)"),
    (network((4, 0, 3)), "sizes[1] must be an integer of at least 1, got 0"),
    (network((4, 5, 3.0)), "sizes[2] must be an integer of at least 1, got 3.0"),
    (network((True, 3)), "sizes[0] must be an integer of at least 1, got True"),
    (network((4, 5, 3), "gelu"), f"hidden must be one of {NAMES}; got 'gelu'"),
    (network((4, 3), "gelu"), f"hidden must be one of {NAMES}; got 'gelu'"),
    (network((4, 5, 5, 3), ("tanh", "Relu")), f"hidden[1] must be one of {NAMES}; got 'Relu'"),
    (network((4, 5, 5, 3), ("tanh",)), "hidden must name one nonlinearity for each of the 2 hidden layers, got 1"),
    (network((4, 3), ("tanh",)), "hidden must name one nonlinearity for each of the 0 hidden layers, got 1"),
    (network((4, 5, 3), "tanh", (True,)),
     "bias must be True, False, or one of them for each of the 2 layers, got (True,)"),
    (network((4, 5, 3), "tanh", (1, 0)),
     "bias must be True, False, or one of them for each of the 2 layers, got (1, 0)"),
    (lambda: P.model.init(np.random.default_rng(0), "xavier"), "scheme must be one of glorot, sparse; got 'xavier'"),
    # Models
    (model(-0.1), "weight_decay must be at least 0, got -0.1"),
    (model(np.nan), "weight_decay must be at least 0, got nan"),
    (model(np.inf), "weight_decay must be at least 0, got inf"),
    (model("much"), "weight_decay must be a number, got 'much'"),
    (model(None), "weight_decay must be a number, got None"),
    # Weights
    (at(weights=W[:1]), "weights must hold one array per layer: expected 2, got 1"),
    (at(weights=[*W, W[1]]), "weights must hold one array per layer: expected 2, got 3"),
    (at(weights=[]), "weights must hold one array per layer: expected 2, got 0"),
    (at(weights=np.zeros((2, 5, 5))), "weights must be a list of 2 arrays, one per layer, got ndarray"),
    (at(weights=[W[0][:, :-1], W[1]]), "weights[0] must have shape (5, 5), got (5, 4)"),
    (at(weights=[W[0], W[1].T]), "weights[1] must have shape (3, 6), got (6, 3)"),
    (at(weights=[W[0], W[1].ravel()]), "weights[1] must have shape (3, 6), got (18,)"),
    (at(weights=[w.astype(np.float16) for w in W]), "weights must be float64 or float32, got float16"),
    (at(weights=[w.astype(int) for w in W]), "weights must be float64 or float32, got int64"),
    (at(weights=[w.astype(complex) for w in W]), "weights must be float64 or float32, got complex128"),
    (at(weights=[W[0], W[1].astype(complex)]), "weights[1] must hold real numbers, got dtype complex128"),
    (at(weights=[W[0], but(W[1], ((2, 0), np.nan), ((1, 5), np.inf))]),
     "weights[1] must be finite: 2 of 18 entries are NaN or infinite, the first at (1, 5)"),
    # Inputs
    (at(x=X[:, :3]), "x must have shape (any, 4), got (7, 3)"),
    (at(x=X[0]), "x must have shape (any, 4), got (4,)"),
    (at(x=X[None]), "x must have shape (any, 4), got (1, 7, 4)"),
    (at(x=X[:0]), "x must not be empty, got shape (0, 4)"),
    (at(x=but(X, ((3, 1), np.nan))), "x must be finite: 1 of 28 entries are NaN or infinite, the first at (3, 1)"),
    (at(x=but(X, ((6, 0), -np.inf), ((2, 3), np.inf))),
     "x must be finite: 2 of 28 entries are NaN or infinite, the first at (2, 3)"),
    (at(x=X.astype(str)), f"x must hold real numbers, got dtype {X.astype(str).dtype}"),
    (at(x=X.astype(object)), "x must hold real numbers, got dtype object"),
    (at(x=X.astype(complex)), "x must hold real numbers, got dtype complex128"),
    # Ragged lists
    (at(x=[[1.0, 2.0, 3.0, 4.0], [5.0]]), "x must be a rectangular array, got a ragged list"),
    (at(weights=[[[1.0, 2.0], [3.0]], W[1]]), "weights[0] must be a rectangular array, got a ragged list"),
    (at(weights=[W[0], [[1.0, 2.0], [3.0]]]), "weights[1] must be a rectangular array, got a ragged list"),
    (lambda: P.at.loss([[0, 1], [2]]), "y must be a rectangular array, got a ragged list"),
    (lambda: G.at.loss([[0.0, 1.0], [2.0]]), "y must be a rectangular array, got a ragged list"),
    # Labels
    (lambda: P.at.loss(but(P.y, (2, 3), (5, -1))),
     "y must hold labels 0..2: 2 of 7 are out of range, the first is 3 at (2,)"),
    (lambda: P.at.gradient(but(P.y, (6, -1))),
     "y must hold labels 0..2: 1 of 7 are out of range, the first is -1 at (6,)"),
    (lambda: P.at.loss(P.y.astype(float)), "y must hold integer labels 0..2, got dtype float64"),
    (lambda: P.at.error(P.y.astype(bool)), "y must hold integer labels 0..2, got dtype bool"),
    (lambda: P.at.loss(P.y[:6]), "y must have shape (7,), or a stack of those, got (6,)"),
    (lambda: P.at.loss(P.y[:, None]), "y must have shape (7,), or a stack of those, got (7, 1)"),
    (lambda: P.at.loss(1), "y must have shape (7,), or a stack of those, got ()"),
    (lambda: P.at.loss(P.y[None, None]), "y must have shape (7,), or a stack of those, got (1, 1, 7)"),
    # Real targets
    (lambda: G.at.loss(G.y[:6]), "y must have shape (7, 3), or a stack of those, got (6, 3)"),
    (lambda: G.at.gradient(G.y[:, :2]), "y must have shape (7, 3), or a stack of those, got (7, 2)"),
    (lambda: G.at.error(G.y[:, 0]), "y must have shape (7, 3), or a stack of those, got (7,)"),
    (lambda: G.at.loss(G.y[None, None]), "y must have shape (7, 3), or a stack of those, got (1, 1, 7, 3)"),
    (lambda: G.at.loss(but(G.y, ((1, 2), np.nan))),
     "y must be finite: 1 of 21 entries are NaN or infinite, the first at (1, 2)"),
    (lambda: G.at.loss(G.y.astype(complex)), "y must hold real numbers, got dtype complex128"),
    (lambda: B.at.loss(but(B.y, ((1, 2), 1.5), ((4, 0), -0.5))),
     "y must lie in [0, 1]: 2 of 21 entries do not, the first is 1.5 at (1, 2)"),
    (lambda: B.at.gradient(but(B.y, ((6, 2), -1e-3))),
     "y must lie in [0, 1]: 1 of 21 entries do not, the first is -0.001 at (6, 2)"),
    (lambda: B.at.error(B.y[:, :2]), "y must have shape (7, 3), or a stack of those, got (7, 2)"),
    (lambda: B.at.loss(but(B.y, ((0, 0), np.inf))),
     "y must be finite: 1 of 21 entries are NaN or infinite, the first at (0, 0)"),
    # A stack of targets where one number or one direction is asked for
    *((lambda p=p, method=method: getattr(p.at, method)(stack_of_targets(p)),
       "y must hold one target for each example, got a stack of 2")
      for p in (P, G, B) for method in ("loss", "error", "gradient")),
    # Directions and gradients
    (lambda: P.at.tangent(W[:1]), "V must hold one array per layer: expected 2, got 1"),
    (lambda: P.at.tangent(W[0]), "V must be a list of 2 arrays, one per layer, got ndarray"),
    (lambda: P.at.tangent([W[0], W[1].T]), "V[1] must have shape (3, 6), got (6, 3)"),
    (lambda: P.at.tangent([but(W[0], ((0, 0), np.nan)), W[1]]),
     "V[0] must be finite: 1 of 25 entries are NaN or infinite, the first at (0, 0)"),
    (lambda: P.at.backward(np.ones((6, 3))), "dz must have shape (7, 3), or a stack of those, got (6, 3)"),
    (lambda: P.at.backward(np.ones(3)), "dz must have shape (7, 3), or a stack of those, got (3,)"),
    (lambda: P.at.backward(np.ones((1, 1, 7, 3))), "dz must have shape (7, 3), or a stack of those, got (1, 1, 7, 3)"),
    (lambda: P.at.adjoint(np.ones((2, 7, 3))), "dz must have shape (7, 3), got (2, 7, 3)"),
    (lambda: P.at.take([]), "rows must choose at least one example"),
    (lambda: P.at.take(3), "rows must be a slice, a list of row numbers or a mask, got 3"),
    (lambda: kr.Model(P.model.network, kr.Categorical),
     "likelihood must be an instance, such as Categorical(), got the class"),
    (lambda: kr.Model(P.model.network, Unfinished()),                # type: ignore[arg-type]
     "likelihood must offer fisher_product, sample, outcomes, error, which Unfinished lacks (see "
     "kfac_ref.likelihoods.Likelihood)"),
    (lambda: kr.Model(kr.Categorical(), kr.Categorical()),           # type: ignore[arg-type]
     "network must offer sizes, shapes, parameters, init, forward, backward, tangent, which Categorical lacks (see "
     "kfac_ref.network.Network)"),
    (lambda: as_point(P.model), "at must be a Point, as model.at(weights, x) returns it, got Model"),
    (lambda: P.at.loss(), "y is missing: give labels or targets, or a point that carries them"),
    (lambda: ONE.at.loss(ONE.y[:, 0]), "y must have shape (7, 1), or a stack of those, got (7,): use y[:, None]"),
    # Parts of a data set
    (lambda: P.model.parts(W, X[:0]), "x must hold at least one example"),
    (lambda: P.model.parts(W, X, P.y[:6]),
     "y must hold one target for each of the 7 examples of x, got shape (6,)"),
    (lambda: P.model.parts(W, X, size=0), "size must be an integer of at least 1, got 0"),
    (lambda: kr.mean_over([], kr.Point.loss), "parts must hold at least one part"),
    (lambda: kr.mean_over(P.model.parts(W, X, P.y), lambda at: "a word"),
     "f must return means over the examples (numbers, arrays, directions, moments or plain factors), got str"),
    (lambda: P.at.take([0, 99]), "rows must lie in 0..6, got 0..99"),
    (lambda: kr.kronecker_factors(P.at, kr.sampled(np.empty((0, 7), int))), "y must not be empty, got shape (0, 7)"),
    (lambda: P.at.sample(np.random.default_rng(0), 0), "draws must be an integer of at least 1, got 0"),
    (lambda: P.at.sample(np.random.default_rng(0), 2.0), "draws must be an integer of at least 1, got 2.0"),
    # The checks that other modules use
    (lambda: checks.layer("i", 2, 2), "i must be a layer 0..1, got 2"),
    (lambda: checks.number("lambda_", 0, 0, above=True), "lambda_ must be above 0, got 0"),
    (lambda: checks.number("omega1", 1.5, 0, 1), "omega1 must be at least 0 and at most 1, got 1.5"),
    (lambda: checks.count("k", 1, low=2), "k must be an integer of at least 2, got 1"),
    (lambda: checks.real_array("a", [[1.0]], (3,), float), "a must have shape (3,), got (1, 1)"),
    (lambda: checks.dense_size("the Fisher", 1000, 2000, 8, 100),
     "the Fisher is 1000 x 2000 and takes 16,000,000 bytes, more than max_bytes = 100; use its products, or a "
     "smaller network"),
    (lambda: checks.dense_size("the Fisher", 2**15, 2**15, 8),
     "the Fisher is 32768 x 32768 and takes 8,589,934,592 bytes, more than max_bytes = 4,294,967,296; use its "
     "products, or a smaller network"),
]


@pytest.mark.parametrize(("act", "message"), REFUSALS, ids=[message[:50] for _, message in REFUSALS])
def test_bad_input_is_refused_naming_the_argument_what_was_expected_and_what_came(
        act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        act()


def where_raised(act: Callable[[], object]) -> tuple[str, int]:
    """Return the file and the line of the statement that refuses."""
    with pytest.raises(ValueError) as caught:               # noqa: PT011, since the messages are asserted above
        act()
    last = caught.traceback[-1]
    return Path(str(last.path)).name, last.lineno + 1


def refusals_in(module: Any) -> set[tuple[str, int]]:
    """Return the file and the first line of every ``raise`` of a module."""
    path = Path(module.__file__)
    return {(path.name, node.lineno) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)}


def test_every_refusal_of_checks_network_and_model_is_raised_here() -> None:
    written = refusals_in(checks) | refusals_in(kr.network) | refusals_in(sys.modules[kr.Model.__module__])
    raised = {where_raised(act) for act, _ in REFUSALS}
    assert written - raised == set()
    assert len(written) > 15


def test_bad_input_is_refused_before_the_likelihood_or_the_network_sees_it() -> None:
    class Untouched(kr.MLP):
        def forward(self, weights: Any, x: Array) -> Any:
            raise AssertionError("the network ran")

    untouched = kr.Model(Untouched((4, 5, 3)), kr.Categorical())
    with pytest.raises(AssertionError, match="the network ran"):
        untouched.at(W, X)
    with pytest.raises(ValueError, match="x must be finite"):
        untouched.at(W, but(X, ((0, 0), np.nan)))


def test_large_finite_numbers_are_not_taken_for_infinite() -> None:
    big = np.full(4, 1e308)                                 # their sum overflows
    assert checks.finite("x", big) is big


def test_harmless_values_pass_the_checks() -> None:
    assert checks.number("mu", np.float32(0.5), 0) == 0.5
    assert checks.number("mu", 1, 0, 1) == 1.0
    assert checks.count("k", np.int64(3)) == 3
    assert checks.dense_size("the Fisher", 10, 10, 8, 800) is None
    assert checks.targets("y", [0, 1], (2,), np.float64, (0, 1)).tolist() == [0, 1]


def test_a_number_too_large_for_float32_is_refused_as_infinite() -> None:
    p = problem(dtype=np.float32)
    with pytest.raises(ValueError, match="x must be finite: 1 of 28 entries"):
        p.model.at(p.at.weights, but(X, ((0, 0), 1e300)))


def test_a_weight_decay_that_is_accepted_is_a_number_from_then_on() -> None:
    assert type(kr.Model(P.model.network, kr.Categorical(), np.float64(0.1)).weight_decay) is float
    with pytest.raises(ValueError, match=r"weight_decay must be a number, got '0.1'"):
        kr.Model(P.model.network, kr.Categorical(), "0.1")          # type: ignore[arg-type]
