"""Layers without a bias: everything is that of the network whose biases are 0, without the columns of those biases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.approximations import TABLE
from kfac_ref.checks import Array
from kfac_ref.hessian import hessian, hessian_product
from kfac_ref.kronecker import vec
from tests.problems import LIKELIHOODS, Problem, close, direction, expectations, problem, relative

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
SIZES = (3, 4, 3, 2)
BIASES = {"none": False, "not in the middle": (True, False, True), "in the middle": (False, True, False),
          "in all": True}
HIDDEN = ("tanh", "softplus")


@pytest.fixture(params=[bias for bias in BIASES.values() if bias is not True],
                ids=[name for name, bias in BIASES.items() if bias is not True])
def bias(request: pytest.FixtureRequest) -> Any:
    return request.param


def flags(bias: Any) -> tuple[bool, ...]:
    return (bias,) * 3 if isinstance(bias, bool) else bias


def without(likelihood: str, bias: Any) -> Problem:
    return problem(likelihood, SIZES, HIDDEN, N=9, bias=bias)


def with_zeros(p: Problem, V: Any = None) -> Any:
    """Return weights (or a direction) of the network with all biases: a column of zeros where there is none."""
    return [v if b else np.column_stack([v, np.zeros(len(v))])
            for v, b in zip(p.at.weights if V is None else V, p.model.network.bias, strict=True)]


def twin(p: Problem) -> kr.Point:
    """Return the point of the network that has all biases, some of which are 0."""
    model = kr.Model(kr.MLP(SIZES, HIDDEN), p.model.likelihood)
    return model.at(with_zeros(p), p.at.x)


def without_columns(V: Any, p: Problem) -> list[Array]:
    """Return a direction of the twin without the columns of the biases that are not there."""
    return [v if b else v[:, :-1] for v, b in zip(V, p.model.network.bias, strict=True)]


def kept(p: Problem) -> Array:
    """Return which parameters of the twin are parameters of the network."""
    marks = []
    for i, (m, _) in enumerate(p.shapes):
        mark = np.ones((m, SIZES[i] + 1), dtype=bool)
        mark[:, -1] = p.model.network.bias[i]
        marks.append(vec(mark))
    return np.flatnonzero(np.concatenate(marks))


def test_shapes_and_parameters(bias: Any) -> None:
    network = kr.MLP(SIZES, HIDDEN, bias)
    assert network.shapes == tuple((m, n + b) for n, m, b in zip(SIZES[:-1], SIZES[1:], flags(bias), strict=True))
    assert network.parameters == sum(m * n for m, n in network.shapes)
    assert network.bias == flags(bias)


@pytest.mark.parametrize("scheme", ["sparse", "glorot"])
def test_initial_weights_are_those_of_the_twin_without_its_biases(bias: Any, scheme: str) -> None:
    network = kr.MLP(SIZES, HIDDEN, bias)
    ours, theirs = (net.init(np.random.default_rng(0), scheme) for net in (network, kr.MLP(SIZES, HIDDEN)))
    for W, V, b in zip(ours, theirs, flags(bias), strict=True):
        np.testing.assert_array_equal(W, V if b else V[:, :-1])


@EACH
def test_forward_backward_and_tangent(likelihood: str, bias: Any) -> None:
    p = without(likelihood, bias)
    q = twin(p)
    close(p.at.z, q.z, 1e-14)
    for a, b, ours in zip(q.a_bar, flags(bias), p.at.a_bar, strict=True):
        close(ours, a if b else a[:, :-1], 1e-14)           # products of other shapes round in another way
    dz = np.random.default_rng(0).standard_normal((3, *p.at.z.shape))
    for ours, theirs in zip(p.at.backward(dz), q.backward(dz), strict=True):
        close(ours, theirs, 1e-14)
    close(p.at.tangent(direction(p)), q.tangent(with_zeros(p, direction(p))), 1e-14)
    for ours, theirs in zip(p.at.adjoint(dz[0]), without_columns(q.adjoint(dz[0]), p), strict=True):
        close(ours, theirs, 1e-14)


@EACH
def test_some_rows_of_a_pass_are_their_own_pass(likelihood: str, bias: Any) -> None:
    p, rows = without(likelihood, bias), [5, 0, 5]
    part, own = p.at.take(rows), p.model.at(p.at.weights, p.at.x[rows])
    for ours, theirs in zip((*part.a_bar, *part.s, *part.forward.slopes), (*own.a_bar, *own.s, *own.forward.slopes),
                            strict=True):
        close(ours, theirs, 1e-14)
    assert part.x.shape == own.x.shape == (3, 3)


@EACH
def test_gradient_and_hessian(likelihood: str, bias: Any) -> None:
    p = without(likelihood, bias)
    q, V = twin(p), direction(p)
    for ours, theirs in zip(p.at.gradient(p.y), without_columns(q.gradient(p.y), p), strict=True):
        close(ours, theirs, 1e-13)
    HV = without_columns(hessian_product(q, p.y, with_zeros(p, V)), p)
    close(params.flatten(hessian_product(p.at, p.y, V)), params.flatten(HV), 1e-12)
    close(hessian(p.at, p.y), hessian(q, p.y)[np.ix_(kept(p), kept(p))], 1e-12)


@EACH
def test_fishers_of_every_expectation(likelihood: str, bias: Any) -> None:
    p = without(likelihood, bias)
    q, V, rows = twin(p), direction(p), kept(p)
    for e in expectations(p).values():
        F = kr.fisher_matrix(p.at, e)
        close(F, kr.fisher_matrix(q, e)[np.ix_(rows, rows)], 1e-13)
        close(params.flatten(kr.fisher_product(p.at, V, e)), F @ params.flatten(V), 1e-12)
        for i in range(3):
            assert kr.fisher_block(p.at, i, 0, e).shape == (p.shapes[i][0] * p.shapes[i][1], 4 * p.shapes[0][1])
    close(kr.fisher_gram(p.at, [V]), kr.fisher_gram(q, [with_zeros(p, V)]), 1e-13)


@EACH
def test_factors_of_every_expectation(likelihood: str, bias: Any) -> None:
    p = without(likelihood, bias)
    b = flags(bias)
    for e in expectations(p).values():
        fac, theirs = (kr.kronecker_factors(at, e, reach=math.inf) for at in (p.at, twin(p)))
        assert fac.shapes == p.shapes
        for i, j in fac.A:
            close(fac.G[i, j], theirs.G[i, j], 1e-13)
            close(fac.A[i, j], theirs.A[i, j][:SIZES[i] + b[i], :SIZES[j] + b[j]], 1e-13)


def test_of_a_network_without_any_bias_nothing_is_constant() -> None:
    p = without("gaussian", False)
    for a_bar, x in zip(p.at.a_bar, (p.at.x, np.tanh(p.at.s[0]), np.logaddexp(0, p.at.s[1])), strict=True):
        close(a_bar, x, 1e-13)
    assert not np.array_equal(p.at.a_bar[0][:, -1], np.ones(9))


# All rows of the table


class NoBias(kr.MLP):
    """The same as `bias=False`, from the network with biases: all columns of the biases are left out."""

    shapes = property(lambda self: tuple((m, n - 1) for m, n in super().shapes))    # type: ignore[assignment]

    @property
    def parameters(self) -> int:
        return sum(m * n for m, n in self.shapes)

    def init(self, *arguments: Any, **more: Any) -> list[Array]:
        return [W[:, :-1] for W in super().init(*arguments, **more)]

    @staticmethod
    def padded(V: Any) -> list[Array]:
        return [np.column_stack([v, np.zeros(len(v))]) for v in V]

    def forward(self, weights: Any, x: Array) -> kr.network.Pass:
        forward = super().forward(self.padded(weights), x)
        return kr.network.Pass(forward.activations, forward.a, tuple(a[:, :-1] for a in forward.a_bar), forward.s)

    def _whole(self, forward: kr.network.Pass) -> kr.network.Pass:
        a_bar = tuple(np.column_stack([a, np.ones(len(a))]) for a in forward.a_bar)
        return kr.network.Pass(forward.activations, forward.a, a_bar, forward.s)

    def backward(self, weights: Any, forward: Any, dz: Array) -> list[Array]:
        return super().backward(self.padded(weights), self._whole(forward), dz)

    def tangent(self, weights: Any, forward: Any, V: Any) -> Array:
        return super().tangent(self.padded(weights), self._whole(forward), self.padded(V))


@EACH
@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table(name: str, likelihood: str) -> None:
    p = without(likelihood, False)
    other = kr.Model(NoBias(SIZES, HIDDEN), p.model.likelihood).at(p.at.weights, p.at.x)
    V = direction(p)
    for e in expectations(p).values():
        ours, theirs = (TABLE[name].at(at, 0.1, e) for at in (p.at, other))
        assert ours.shapes == p.shapes
        close(ours.dense(), theirs.dense(), 1e-12)
        close(params.flatten(ours.solve(V)), params.flatten(theirs.solve(V)), 1e-10)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table_trains(name: str, likelihood: str, bias: Any) -> None:
    p = without(likelihood, bias)
    opt = kr.optimizers.KFAC(p.model, TABLE[name], tau1=1.0)
    state, losses = opt.init(p.at.weights), []
    for _ in range(5):
        state, record = opt.step(state, p.at.x, p.y)
        losses.append(record.loss)
    assert losses[-1] < losses[0]
    assert [W.shape for W in state.weights] == list(p.shapes)


def test_a_bias_makes_a_difference() -> None:
    p = without("gaussian", (True, False, True))
    shifted = [W.copy() for W in p.at.weights]
    shifted[0][:, -1] += 1
    assert relative(p.model.at(shifted, p.at.x).z, p.at.z) > 0.1


def test_the_re_parameterized_network_needs_all_biases() -> None:
    p = without("gaussian", (True, False, True))
    Omega, Phi = [np.eye(n) for _, n in p.shapes], [np.eye(m) for m, _ in p.shapes]
    with pytest.raises(ValueError, match="network must have a bias in every layer"):
        kr.analysis.TransformedMLP(p.model.network, Omega, Phi)
