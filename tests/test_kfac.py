"""K-FAC against Algorithm 2 written out on dense matrices, against conjugate gradients, and rule by rule."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import textwrap
from typing import NamedTuple

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, cg

import kfac_ref as kr
from kfac_ref import approximations, params
from kfac_ref.approximations import EIGEN_DAMPED, Approximation
from kfac_ref.curvature import BlockDiagonal, Curvature, Exact
from kfac_ref.damping import frobenius_pi, trace_pi
from kfac_ref.factors import as_factors, second_moments
from kfac_ref.kronecker import Cholesky, Inverse
from kfac_ref.optimizers import KFAC, NaturalGradient
from kfac_ref.optimizers.kfac_values import Damped, Draws

from .problems import LIKELIHOODS, close, direction, labels, problem, relative

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
ETA = 0.01
#: The paper's algorithm alone: none of the safeguards that it does not have.
PAPER = {"gamma_min": 0.0, "gamma_max": math.inf, "lambda_floor": 0.0, "undo": None, "judged_on": "same batch"}
#: A step is judged on its own batch.
SAME = {"judged_on": "same batch"}


def batches(likelihood, p, steps, N=12, seed=4):
    """Return a batch a step."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps, N, p.at.x.shape[1]))
    return [(xk, labels(likelihood, np.zeros((N, p.at.z.shape[1])), rng)) for xk in x]


def run(opt, weights, data, seed=0):
    """Return the states and the records of a run, a state before the first step included."""
    states, records = [opt.init(weights, seed)], []
    for x, y in data:
        state, record = opt.step(states[-1], x, y)
        states.append(state)
        records.append(record)
    return states, records


def vector(V):
    return params.flatten(V)


# Algorithm 2, written out


class Step(NamedTuple):
    """What a step of the algorithm decided."""

    theta: np.ndarray
    lambda_: float
    gamma: float
    tried: list
    coefficients: np.ndarray
    predicted: float
    rho: float


def fraction_of(N, tau, rng):
    """Return the rows of a part of the batch; nothing is drawn where the part is the whole."""
    return rng.permutation(N)[:round(tau * N)] if tau < 1 else np.arange(N)


def factor_matrices(part, rng):
    """Return A and G of each layer, with targets drawn from the model, example by example."""
    targets = part.sample(rng)
    g = part.backward(part.model.likelihood.gradient(part.z, targets))
    return [[sum(np.outer(row, row) for row in rows) / len(rows) for rows in stack] for stack in (part.a_bar, g)]


def running_average(old, new, k):
    if old is None:
        return new
    epsilon = min(1 - 1 / k, 0.95)
    return [[epsilon * a + (1 - epsilon) * b for a, b in zip(*pair, strict=True)]
            for pair in zip(old, new, strict=True)]


def balanced(pi):
    """Return the approximation that balances its damping by another pi."""
    return Approximation(second_moments, functools.partial(BlockDiagonal, pi=pi))


def factored(pi):
    """Return the rule that makes the dense damped block-diagonal matrix from A and G."""
    def dense(at, factors, gamma):
        blocks = [np.kron(A + pi(A, G) * gamma * np.eye(len(A)), G + gamma / pi(A, G) * np.eye(len(G)))
                  for A, G in zip(*factors, strict=True)]
        return kr.curvature.base.block_diagonal(blocks)
    return dense


def trace_norm(A, G):
    return np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))


def frobenius_norm(A, G):
    return np.sqrt(np.linalg.norm(np.kron(A, np.eye(len(G)))) / np.linalg.norm(np.kron(np.eye(len(A)), G)))


def exact(at, factors, gamma):
    F = kr.fisher_matrix(at)
    return F + gamma**2 * np.eye(len(F))


def lowest_point(H, grad, directions):
    """Return the best coefficients and M - M(0), with the dense matrix H of the quadratic model."""
    V = np.stack(directions, axis=1)
    c = -np.linalg.solve(V.T @ H @ V, V.T @ grad)
    return c, grad @ V @ c + V @ c @ H @ V @ c / 2


def algorithm_2(p, data, seed, lambda_, T1, T2, T3, omega1, omega2, tau1, tau2, make, momentum=True):
    """Yield the steps of the paper's Algorithm 2 (sec. 9), on one vector theta."""
    eta = p.model.weight_decay
    theta, delta_0, factors, kept, gamma = vector(p.at.weights), None, None, None, math.sqrt(lambda_ + eta)
    for k, (x, y) in enumerate(data, 1):
        rng = np.random.default_rng((seed, k))
        at = p.model.at(params.unflatten(theta, p.shapes), x)
        h, grad = at.loss(y), vector(at.gradient(y))
        rows1, rows2 = fraction_of(len(x), tau1, rng), fraction_of(len(x), tau2, rng)
        factors = running_average(factors, factor_matrices(at.take(rows1), rng), k)
        H = kr.fisher_matrix(at.take(rows2)) + (lambda_ + eta) * np.eye(len(theta))
        tried = []
        for candidate in (gamma, omega2 * gamma, gamma / omega2) if k % T2 == 0 else (gamma,):
            C = make(at, factors, candidate) if k <= 3 or k % T3 == 0 else kept
            directions = [-np.linalg.solve(C, grad)] + ([] if delta_0 is None or not momentum else [delta_0])
            c, M = lowest_point(H, grad, directions)
            tried.append((M, candidate, C, c, np.stack(directions, axis=1) @ c))
        M, gamma, kept, c, delta_0 = min(tried, key=lambda t: t[0])
        theta = theta + delta_0
        used, rho = lambda_, math.nan
        if k % T1 == 0:
            rho = (p.model.at(params.unflatten(theta, p.shapes), x).loss(y) - h) / M
            lambda_ = lambda_ * omega1 if rho > 3 / 4 else lambda_ / omega1 if rho < 1 / 4 else lambda_
        yield Step(theta, used, gamma, [(t[1], t[0]) for t in tried], c, M, rho)


#: Short periods, and parts of the batch small enough that some steps turn out badly.
SHORT = {"T1": 2, "T2": 6, "T3": 3, "omega1": 0.8, "omega2": 0.4, "tau1": 0.5, "tau2": 0.5}


def assert_is_algorithm_2(states, records, steps, rtol):
    for state, record, step in zip(states[1:], records, steps, strict=True):
        close(vector(state.weights), step.theta, rtol)
        close(record.lambda_, step.lambda_, rtol)
        close(record.gamma, step.gamma, rtol)
        close(record.gammas, step.tried, rtol)
        close([record.alpha, record.mu][:len(step.coefficients)], step.coefficients, rtol)
        close(record.predicted, step.predicted, rtol)
        np.testing.assert_allclose(record.rho, step.rho, rtol=rtol, atol=0, equal_nan=True)


def assert_every_branch_was_taken(records):
    lambdas = np.diff([r.lambda_ for r in records])
    assert lambdas.min() < 0 < lambdas.max()
    assert {len(r.gammas) for r in records} == {1, 3}
    assert any(r.gamma != r.gammas[0][0] for r in records)
    assert {r.refreshed for r in records} == {True, False}
    assert not any(r.safeguards for r in records)


@EACH
@pytest.mark.parametrize(("pi", "norm"), [(trace_pi, trace_norm), (frobenius_pi, frobenius_norm)])
def test_the_step_is_algorithm_2(likelihood, pi, norm):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 25)
    opt = KFAC(p.model, balanced(pi), lambda_0=0.1, **SHORT, **PAPER)
    states, records = run(opt, p.at.weights, data, seed=7)
    steps = list(algorithm_2(p, data, 7, 0.1, **SHORT, make=factored(norm)))
    # Rounding grows to 1e-12 along the 25 steps.
    assert_is_algorithm_2(states, records, steps, 1e-10)
    assert_every_branch_was_taken(records)


def test_the_norm_behind_pi_matters():
    p = problem(weight_decay=ETA)
    data = batches("categorical", p, 6)
    last = [list(algorithm_2(p, data, 7, 0.1, **SHORT, make=factored(norm)))[-1].theta
            for norm in (trace_norm, frobenius_norm)]
    assert relative(*last) > 1e-3


@EACH
def test_the_step_on_the_whole_batch_is_algorithm_2(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 12)
    settings = SHORT | {"tau1": 1.0, "tau2": 1.0}
    states, records = run(KFAC(p.model, lambda_0=0.1, **settings, **PAPER), p.at.weights, data, seed=7)
    assert_is_algorithm_2(states, records, algorithm_2(p, data, 7, 0.1, **settings, make=factored(trace_norm)), 1e-10)


@EACH
def test_without_momentum_the_last_step_takes_no_part(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 12)
    states, records = run(KFAC(p.model, lambda_0=0.1, momentum=False, **SHORT, **PAPER), p.at.weights, data, seed=7)
    steps = algorithm_2(p, data, 7, 0.1, **SHORT, make=factored(trace_norm), momentum=False)
    assert_is_algorithm_2(states, records, steps, 1e-10)
    assert {r.mu for r in records} == {0.0}


@EACH
def test_the_natural_gradient_is_algorithm_2_with_the_exact_fisher(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 15)
    states, records = run(NaturalGradient(p.model, lambda_0=0.1, **SHORT, **PAPER), p.at.weights, data, seed=7)
    # It estimates no factors: no tau1 part is drawn, whatever tau1 says.
    assert_is_algorithm_2(states, records, algorithm_2(p, data, 7, 0.1, **SHORT | {"tau1": 1.0}, make=exact), 1e-10)


def omegas(opt, p):
    """Return the factors of lambda and gamma as they act: on a lambda of 1 after a good step, and on a gamma of 1/2."""
    state = dataclasses.replace(opt.init(p.at.weights), k=opt.T2 - 1, gamma=0.5)
    at = dataclasses.replace(p.at, y=p.y)
    lambda_ = {good: opt.judge(dataclasses.replace(state, predicted=-1.0), at, at.loss() + good)[0].lambda_
               for good in (1.0, 0.5)}
    close(lambda_[0.5], state.lambda_, 0)                       # rho = 1/2 changes nothing
    return lambda_[1.0] / state.lambda_, opt.gammas(state)[1] / 0.5


def test_the_default_settings_are_those_of_the_paper():
    p = problem(weight_decay=ETA)
    opt = KFAC(p.model)
    assert (opt.T1, opt.T2, opt.T3, opt.tau1, opt.ceiling) == (1, 20, 20, 1 / 8, 0.95)
    assert (opt.judged_on, opt.smoothing, opt.examples) == ("next batch", 0.5, None)
    opt = KFAC(p.model, T1=5, **SAME)
    close(omegas(opt, p), [(19 / 20)**5, math.sqrt(19 / 20)**20], 1e-14)
    assert (opt.approximation, opt.expectation) == (approximations.BLOCK_DIAGONAL, kr.one_draw)
    close(KFAC(opt.model, lambda_0=0.2).init(p.at.weights).gamma, math.sqrt(0.2 + ETA), 1e-14)


def test_settings_that_were_not_given_follow_the_others_in_a_changed_copy():
    p, decayed = problem(), problem(weight_decay=0.36)
    opt = dataclasses.replace(KFAC(p.model, **SAME), T1=10, T2=40)
    close(omegas(opt, p), [(19 / 20)**10, (19 / 20)**20], 1e-14)
    opt = dataclasses.replace(KFAC(p.model), model=decayed.model)
    assert opt.gammas(dataclasses.replace(opt.init(p.at.weights), k=19, gamma=0.7))[1] == 0.6


def test_a_period_may_be_so_long_that_lambda_never_adapts():
    assert KFAC(problem().model, T1=10**6).T1 == 10**6


# Conjugate gradients


def linear_regression():
    """Return the problem of section 7's claim, and a preconditioner that is poor on purpose and stays as it is."""
    p = problem("gaussian", (9, 5), N=20, weight_decay=0.1)
    few = p.at.take(slice(0, 6))
    poor = kr.kronecker_factors(few, kr.sampled(3 * np.random.default_rng(1).standard_normal((6, 5))))
    return p, BlockDiagonal(poor, damping=1.0)


def conjugate_gradients(p, preconditioner, steps):
    """Return SciPy's iterates on (F + eta I) theta = b."""
    theta = vector(p.at.weights)
    H = kr.fisher_matrix(p.at) + p.model.weight_decay * np.eye(len(theta))
    M = LinearOperator(H.shape, matvec=lambda v: vector(preconditioner.solve(params.unflatten(v, p.shapes))))
    iterates = []
    cg(H, H @ theta - vector(p.at.gradient(p.y)), x0=theta, rtol=0, atol=0, maxiter=steps, M=M,
       callback=lambda t: iterates.append(t.copy()))
    return iterates


def fixed(matrix):
    """Return the approximation that is always the same matrix."""
    return Approximation(second_moments, lambda factors, damping: matrix)


def kfac_steps(p, preconditioner, steps, lambda_):
    """Return the iterates of whole steps of K-FAC, whose structure is always the same matrix."""
    opt = KFAC(p.model, fixed(preconditioner), lambda_0=lambda_, tau2=1.0, T1=100)
    states, _ = run(opt, p.at.weights, [(p.at.x, p.y)] * steps)
    return [vector(state.weights) for state in states[1:]]


def test_momentum_makes_k_fac_on_a_quadratic_preconditioned_conjugate_gradients():
    p, preconditioner = linear_regression()
    expected = conjugate_gradients(p, preconditioner, 12)
    for ours, theirs in zip(kfac_steps(p, preconditioner, 12, 0.0), expected, strict=True):
        close(ours, theirs, 1e-12)


def test_the_methods_of_the_optimizer_are_the_lines_of_conjugate_gradients():
    p, preconditioner = linear_regression()
    opt = KFAC(p.model)
    state = opt.init(p.at.weights)
    for expected in conjugate_gradients(p, preconditioner, 12):
        at, _, grad = opt.gradient(state, p.at.x, p.y)
        source = opt.source(state, at, None, 1.0, opt.draw(state, at))
        damped = Damped(source, preconditioner, opt.direction(preconditioner, grad))
        candidate = opt.rescale(at, grad, damped, state.delta_0, 0.0)
        delta = opt.combine(candidate, state.delta_0)
        state = dataclasses.replace(state, weights=tuple(params.add(state.weights, delta)), delta_0=tuple(delta))
        close(vector(state.weights), expected, 1e-12)


def test_twelve_conjugate_gradients_are_neither_done_nor_idle():
    p, preconditioner = linear_regression()
    theta = vector(p.at.weights)
    H = kr.fisher_matrix(p.at) + 0.1 * np.eye(len(theta))
    best = theta - np.linalg.solve(H, vector(p.at.gradient(p.y)))
    distances = [np.linalg.norm(t - best) for t in (theta, *conjugate_gradients(p, preconditioner, 12))]
    assert 1e-3 * distances[0] < distances[-1] < 0.1 * distances[0]


@pytest.mark.parametrize(("lambda_", "least"), [(1e-4, 1e-5), (0.1, 1e-2)])
def test_with_lambda_in_the_model_it_is_not_conjugate_gradients(lambda_, least):
    p, preconditioner = linear_regression()
    expected = conjugate_gradients(p, preconditioner, 12)
    for ours, theirs in zip(kfac_steps(p, preconditioner, 12, lambda_), expected, strict=True):
        assert relative(ours, theirs) > least


def test_without_momentum_it_is_not_conjugate_gradients():
    p, preconditioner = linear_regression()
    opt = KFAC(p.model, fixed(preconditioner), lambda_0=0.0)
    state = opt.init(p.at.weights)
    for _ in range(2):
        state, _ = opt.step(dataclasses.replace(state, delta_0=None), p.at.x, p.y)
    assert relative(vector(state.weights), conjugate_gradients(p, preconditioner, 2)[1]) > 1e-3


# The same bits


def arrays(state):
    """Return every array of a state."""
    moments = [state.average and state.average.latest, state.refresh and state.refresh.moments]
    return [*state.weights, *(state.delta_0 or ()), *(state.refresh.weights if state.refresh else ()),
            *(a for m in moments if m for a in m.arrays.values())]


def copies(values):
    return [np.array(v, copy=True) for v in values]


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def decisions(record):
    """Return a record without its seconds, with NaN made comparable."""
    values = dataclasses.asdict(record) | {"seconds": None}
    return {name: str(value) for name, value in values.items()}


@EACH
@pytest.mark.parametrize("method", [KFAC, NaturalGradient, functools.partial(KFAC, approximation=EIGEN_DAMPED)])
def test_a_state_stepped_twice_gives_the_same_bits(method, likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 8)
    opt = method(p.model, **SHORT)
    states, records = run(opt, p.at.weights, data)
    again = states[0]
    for k, (x, y) in enumerate(data):
        # Each state was stepped before, and later ones too.
        from_kept, record = opt.step(states[k], x, y)
        again, _ = opt.step(again, x, y)
        assert_same_bits(arrays(from_kept), arrays(states[k + 1]))
        assert_same_bits(arrays(again), arrays(states[k + 1]))
        assert decisions(record) == decisions(records[k])
        assert (from_kept.lambda_, from_kept.gamma) == (states[k + 1].lambda_, states[k + 1].gamma)


@EACH
@pytest.mark.parametrize("method", [KFAC, NaturalGradient])
def test_a_step_changes_nothing_that_was_passed_in(method, likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 7)
    opt = method(p.model, **SHORT)
    weights = copies(p.at.weights)
    states, _ = run(opt, p.at.weights, data[:5])
    state, (x, y) = states[-1], data[5]
    before = copies([*arrays(state), x, y])
    inverse = opt.curvature(state.refresh).inverse_dense()
    after, _ = opt.step(state, x, y)
    opt.step(after, *data[6])
    assert_same_bits([*arrays(state), x, y], before)
    assert_same_bits(p.at.weights, weights)
    np.testing.assert_array_equal(opt.curvature(state.refresh).inverse_dense(), inverse)


def test_explain_and_step_are_the_same_step():
    p = problem(weight_decay=ETA)
    opt = KFAC(p.model, **SHORT)
    states, records = run(opt, p.at.weights, data := batches("categorical", p, 7))
    for state, after, record, (x, y) in zip(states, states[1:], records, data, strict=False):
        detail = opt.explain(state, x, y)
        assert_same_bits(arrays(detail.state), arrays(after))
        assert decisions(detail.record) == decisions(record)


def test_another_seed_or_another_step_draws_other_numbers():
    p = problem()
    opt = KFAC(p.model, tau1=0.5, tau2=0.5)
    x, y = batches("categorical", p, 1)[0]
    first = opt.init(p.at.weights, seed=0)
    details = [opt.explain(state, x, y) for state in (first, opt.init(p.at.weights, seed=1),
                                                      dataclasses.replace(first, k=1))]
    rows = {tuple(detail.rows1) for detail in details}
    assert len(rows) == 3
    assert len({tuple(detail.average.moments.arrays["A", 0, 0].ravel()) for detail in details}) == 3


# The parts of a batch


def draw(opt, N, seed=0):
    """Return what is drawn in the first step on a batch of N."""
    p = problem(N=N)
    return opt.draw(opt.init(p.at.weights, seed), p.at)


@pytest.mark.parametrize(("tau1", "tau2", "n1", "n2"), [(1 / 8, 1 / 4, 5, 10), (0.5, 0.99, 20, 39), (0.3, 0.7, 12, 28)])
def test_parts_have_their_size_and_no_row_twice(tau1, tau2, n1, n2):
    opt = KFAC(problem().model, tau1=tau1, tau2=tau2)
    draws = draw(opt, 40)
    rows1, rows2 = draws.rows1, draws.rows2
    for rows, n in ((rows1, n1), (rows2, n2)):
        assert len(rows) == len(set(rows)) == n
        assert 0 <= min(rows) <= max(rows) < 40
    assert set(rows1) != set(rows2[:n1])


def test_parts_are_drawn_evenly():
    opt = KFAC(problem().model, tau1=0.25)
    counts = np.bincount(np.concatenate([draw(opt, 8, seed).rows1 for seed in range(400)]))
    # 100 each are expected, with a standard deviation of sqrt(400 * 1/4 * 3/4) = 8.7.
    assert np.abs(counts - 100).max() < 40


def test_a_fraction_of_one_is_the_whole_batch():
    draws = draw(KFAC(problem().model, tau1=1.0), 40)
    assert (draws.rows1, draws.rows2) == (slice(None), slice(None))


@pytest.mark.parametrize("row", [approximations.EXACT, approximations.EKFAC])
def test_a_row_that_is_made_from_a_point_uses_the_whole_batch(row):
    assert draw(KFAC(problem().model, row, tau1=1 / 8), 40).rows1 == slice(None)


def test_targets_are_drawn_where_the_expectation_is_one_draw_and_only_there():
    p = problem(N=40)
    for expectation, drawn in ((kr.one_draw, True), (kr.exact, False), (kr.empirical(), False)):
        targets = draw(KFAC(p.model, expectation=expectation), 40).targets
        assert (targets is not None) == drawn
    rows1 = draw(KFAC(p.model), 40).rows1
    assert len(draw(KFAC(p.model), 40).targets) == len(rows1) == 5


@pytest.mark.parametrize(("tau", "N", "n"), [(0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7)])
def test_a_fraction_of_a_hundred_is_its_percentage(tau, N, n):
    assert len(draw(KFAC(problem().model, tau1=tau), N).rows1) == n


@pytest.mark.parametrize("name", ["tau1", "tau2"])
def test_a_batch_too_small_for_its_part_is_refused(name):
    p = problem(N=7)
    opt = KFAC(p.model, **({"tau1": 1.0, "tau2": 1.0} | {name: 1 / 8}))
    with pytest.raises(ValueError, match=f"x is a batch of 7, too small for {name} = 0.125: .*at least 8 examples"):
        opt.step(opt.init(p.at.weights), p.at.x, p.y)
    x, y = batches("categorical", p, 1, N=8)[0]
    detail = opt.explain(opt.init(p.at.weights), x, y)
    assert len(detail.rows1 if name == "tau1" else detail.rows2) == 1


def test_as_many_examples_as_the_refusal_asks_for_are_enough():
    for n in range(2, 200):
        opt = KFAC(problem().model, tau1=1 / n)
        with pytest.raises(ValueError, match=f"at least {n} examples"):
            draw(opt, n - 1)
        assert len(draw(opt, n).rows1) == 1


# What is refused


@pytest.mark.parametrize(("setting", "message"), [
    ({"lambda_0": -1.0}, "lambda_0 must be at least 0, got -1"),
    ({"lambda_0": math.inf}, "lambda_0 must be at least 0, got inf"),
    ({"T1": 0}, "T1 must be an integer of at least 1, got 0"),
    ({"T2": 2.5}, "T2 must be an integer of at least 1, got 2.5"),
    ({"T3": True}, "T3 must be an integer of at least 1, got True"),
    ({"T2": 10, "T3": 4}, "T2 must be a multiple of T3, got T2 = 10 and T3 = 4"),
    ({"T3": 40}, "T2 must be a multiple of T3, got T2 = 20 and T3 = 40"),
    ({"omega1": 0.0}, "omega1 must be above 0 and at most 1, got 0"),
    ({"omega1": 1.5}, "omega1 must be above 0 and at most 1, got 1.5"),
    ({"omega2": -0.5}, "omega2 must be above 0 and at most 1, got -0.5"),
    ({"tau1": 0.0}, "tau1 must be above 0 and at most 1, got 0"),
    ({"tau1": 1.1}, "tau1 must be above 0 and at most 1, got 1.1"),
    ({"tau2": math.nan}, "tau2 must be above 0 and at most 1, got nan"),
    ({"ceiling": -0.1}, "ceiling must be at least 0 and at most 1, got -0.1"),
    ({"gamma_min": -1.0}, "gamma_min must be at least 0, got -1"),
    ({"gamma_min": 0.5, "gamma_max": 0.4}, "gamma_max must be at least gamma_min = 0.5, got 0.4"),
    ({"gamma_max": math.nan}, "gamma_max must be at least 0, got nan"),
    ({"gamma_max": "large"}, "gamma_max must be .*, got 'large'"),
    ({"lambda_floor": -1e-4}, "lambda_floor must be at least 0, got -0.0001"),
    ({"undo": -1.0}, "undo must be at least 0, got -1"),
    ({"undo": False}, "undo must be a number or None, got False"),
    ({"momentum": 0.9}, "momentum must be True or False, got 0.9"),
])
@pytest.mark.parametrize("method", [KFAC, NaturalGradient])
def test_settings_out_of_range_are_refused(method, setting, message):
    with pytest.raises(ValueError, match=message):
        method(problem().model, **setting)


def test_weights_and_seeds_that_do_not_serve_are_refused():
    p = problem()
    opt = KFAC(p.model)
    with pytest.raises(ValueError, match=r"weights\[1\] must have shape \(3, 6\), got \(6, 3\)"):
        opt.init([p.at.weights[0], p.at.weights[1].T])
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
        opt.init(p.at.weights, seed=-1)


def test_bad_data_are_refused_before_any_work():
    p = problem()
    opt = KFAC(p.model, tau1=1.0)
    state = opt.init(p.at.weights)
    with pytest.raises(ValueError, match="x must be finite: 1 of 28 entries"):
        opt.step(state, np.where(np.arange(28).reshape(7, 4) == 5, np.nan, p.at.x), p.y)
    with pytest.raises(ValueError, match=r"y must have shape \(7,\)"):
        opt.step(state, p.at.x, p.y[:-1])


def test_a_structure_that_is_singular_undamped_is_named():
    p = problem(N=40)
    opt = KFAC(p.model, lambda_0=0.0, gamma_max=0.0, tau1=1.0)
    # The gradients p - onehot(y) of a categorical add up to 0 in each example.
    message = r"factor G of layer 1 \(3 x 3\) is singular to rounding.*larger damping"
    with pytest.raises(np.linalg.LinAlgError, match=message):
        opt.step(opt.init(p.at.weights), p.at.x, p.y)
    assert issubclass(np.linalg.LinAlgError, ValueError)
    damped = dataclasses.replace(opt, gamma_max=1e-3, gamma_min=1e-3)
    damped.step(damped.init(p.at.weights), p.at.x, p.y)


def test_factors_of_fewer_examples_than_inputs_are_singular_undamped():
    p = problem(N=4)
    opt = KFAC(p.model, lambda_0=0.0, gamma_max=0.0, tau1=1.0)
    with pytest.raises(np.linalg.LinAlgError, match=r"factor A of layer 0 \(5 x 5\) is singular"):
        opt.step(opt.init(p.at.weights), p.at.x, p.y)


# Every intermediate by name


def explained():
    """Return the state before the sixth step, which tries three gammas, its batch, and its detail."""
    p = problem(weight_decay=ETA)
    opt = KFAC(p.model, **SHORT, **PAPER)
    data = batches("categorical", p, 6)
    states, _ = run(opt, p.at.weights, data[:-1])
    return states[-1], data[-1], opt.explain(states[-1], *data[-1])


def test_explain_names_what_comes_before_the_candidates():
    state, (x, y), detail = explained()
    at = detail.at.model.at(state.weights, x)
    assert_same_bits(detail.grad, at.gradient(y))
    assert_same_bits(detail.at.a_bar, at.a_bar)
    part = at.take(detail.rows1)
    average = state.average.update(second_moments(part, kr.sampled(detail.targets)))
    assert list(detail.average.moments.arrays) == list(average.moments.arrays)
    assert_same_bits(detail.average.moments.arrays.values(), average.moments.arrays.values())
    close(detail.pi, [trace_norm(A, G) for A, G in as_factors(detail.average.moments).layers], 1e-14)
    assert detail.average.k == 6
    assert detail.state.average is detail.average
    assert len(detail.rows1) == len(detail.targets) == len(detail.rows2) == 6


def test_explain_names_the_candidates():
    state, _, detail = explained()
    assert len(detail.candidates) == 3
    grad = vector(detail.grad)
    H = kr.fisher_matrix(detail.at.take(detail.rows2)) + (state.lambda_ + ETA) * np.eye(len(grad))
    for candidate in detail.candidates:
        C = BlockDiagonal(as_factors(detail.average.moments), damping=candidate.gamma**2).dense()
        close(vector(candidate.Delta), -np.linalg.solve(C, grad), 1e-11)
        close(candidate.curvature.dense(), C, 1e-14)
        V = np.stack([vector(candidate.Delta), vector(state.delta_0)], axis=1)
        close(candidate.model.B, V.T @ H @ V, 1e-12)
        close(candidate.model.slope, V.T @ grad, 1e-12)
        c, decrease = lowest_point(H, grad, list(V.T))
        close((candidate.alpha, candidate.mu), c, 1e-11)
        close(candidate.decrease, decrease, 1e-12)


def test_explain_names_what_was_chosen():
    state, _, detail = explained()
    assert detail.chosen is min(detail.candidates, key=lambda c: c.decrease)
    assert detail.Delta is detail.chosen.Delta
    delta = detail.chosen.alpha * vector(detail.Delta) + detail.chosen.mu * vector(state.delta_0)
    close(vector(detail.delta), delta, 1e-14)
    close(vector(detail.state.weights), vector(state.weights) + delta, 1e-14)
    assert_same_bits(detail.state.delta_0, detail.delta)
    assert detail.state.refresh is detail.chosen.refresh


def test_explain_names_the_change_of_the_output_along_delta():
    state, (x, _), detail = explained()
    part = detail.at.take(detail.rows2)
    t = 1e-20

    def output(weights):
        a = x[detail.rows2]
        for W in weights[:-1]:
            a = np.tanh(a @ W[:, :-1].T + W[:, -1])
        return a @ weights[-1][:, :-1].T + weights[-1][:, -1]

    complex_step = output([W + 1j * t * D for W, D in zip(state.weights, detail.Delta, strict=True)]).imag / t
    close(detail.J_Delta, complex_step, 1e-13)
    assert detail.J_Delta.shape == part.z.shape


def test_a_row_that_is_made_from_a_point_has_no_average_and_no_pi():
    p = problem()
    opt = KFAC(p.model, approximations.EXACT, kr.exact)
    detail = opt.explain(opt.init(p.at.weights), p.at.x, p.y)
    assert detail.targets is None
    assert detail.average is None
    with pytest.raises(ValueError, match="Exact has no pi"):
        _ = detail.pi


def test_every_value_of_a_step_has_a_name_and_no_other_has():
    _, _, detail = explained()
    parts = (detail.record, detail.proposal, detail.draws, detail.choice, detail.chosen, detail.judgement)
    for part in parts:
        for field in dataclasses.fields(part):
            assert hasattr(detail, field.name)
    first = {field.name: part for part in reversed(parts) for field in dataclasses.fields(part)}
    for name, part in first.items():
        assert getattr(detail, name) is getattr(part, name)
    with pytest.raises(AttributeError, match="a step has no nothing"):
        _ = detail.nothing


def test_values_of_one_name_are_equal_in_all_parts_of_a_step():
    _, _, detail = explained()
    c, record, judgement = detail.chosen, detail.record, detail.judgement
    assert (record.gamma, record.alpha, record.mu, record.predicted) == (c.gamma, c.alpha, c.mu, c.decrease)
    assert (record.rho, record.actual) == (judgement.rho, judgement.actual)
    assert record.safeguards == judgement.safeguards
    assert record.refreshed == detail.proposal.refreshed
    assert detail.lambda_ == record.lambda_                     # of this step; that of the next one is in the state


# The record


@EACH
def test_the_record_says_what_was_decided(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 12)
    opt = KFAC(p.model, **SHORT, **SAME)
    states, records = run(opt, p.at.weights, data)
    for k, (before, after, record, (x, y)) in enumerate(zip(states, states[1:], records, data, strict=False), 1):
        detail = opt.explain(before, x, y)
        assert (record.k, after.k, record.batch) == (k, k, 12)
        close(record.loss, p.model.at(before.weights, x).loss(y), 1e-14)
        close(record.gradient_norm, np.linalg.norm(vector(detail.grad)), 1e-14)
        close(record.step_norm, np.linalg.norm(vector(detail.delta)), 1e-14)
        assert (record.lambda_, record.gamma) == (before.lambda_, after.gamma)
        assert (record.alpha, record.mu) == (detail.chosen.alpha, detail.chosen.mu)
        assert record.gammas == tuple((c.gamma, c.decrease) for c in detail.candidates)
        assert record.predicted == min(decrease for _, decrease in record.gammas) < 0


@EACH
def test_the_predicted_change_is_that_of_the_quadratic_model(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    opt = KFAC(p.model, **SHORT, **SAME)
    state = opt.init(p.at.weights)
    for x, y in batches(likelihood, p, 7):
        detail = opt.explain(state, x, y)
        delta, grad = vector(detail.delta), vector(detail.grad)
        H = kr.fisher_matrix(detail.at.take(detail.rows2)) + (state.lambda_ + ETA) * np.eye(len(delta))
        close(detail.record.predicted, grad @ delta + delta @ H @ delta / 2, 1e-12)
        close(detail.record.predicted, grad @ delta / 2, 1e-11)
        state = detail.state


def test_rho_is_measured_every_t1_steps_and_only_then():
    p = problem(weight_decay=ETA)
    data = batches("categorical", p, 7)
    states, records = run(KFAC(p.model, **(SHORT | {"T1": 3}), **SAME), p.at.weights, data)
    for k, (after, record, (x, y)) in enumerate(zip(states[1:], records, data, strict=True), 1):
        assert ("rho" in record.seconds) == (k % 3 == 0)
        if k % 3:
            assert math.isnan(record.rho)
            assert math.isnan(record.actual)
            assert after.lambda_ == record.lambda_
            continue
        # A difference of two losses near 2 has a digit less than they have.
        close(record.actual, p.model.at(after.weights, x).loss(y) - record.loss, 1e-13)
        close(record.rho, record.actual / record.predicted, 1e-14)


def test_inverses_are_made_anew_every_t3_steps_and_at_first():
    p = problem()
    opt = KFAC(p.model, T2=8, T3=4, tau1=0.5)
    states, records = run(opt, p.at.weights, batches("categorical", p, 12))
    assert [r.k for r in records if r.refreshed] == [1, 2, 3, 4, 8, 12]
    for before, after, record in zip(states, states[1:], records, strict=False):
        assert (after.refresh is before.refresh) != record.refreshed
    assert [r.k for r in records if len(r.gammas) > 1] == [8]


@pytest.mark.parametrize(("T3", "form"), [(1, Cholesky), (4, Inverse)])
def test_an_inverse_is_formed_only_where_it_is_kept(T3, form):
    p = problem()
    opt = KFAC(p.model, T2=4, T3=T3, tau1=1.0)
    state, _ = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    assert opt.curvature(state.refresh).factor is form


def test_the_seconds_are_those_of_the_paper_s_table():
    p = problem()
    _, records = run(KFAC(p.model, T1=5, tau1=0.5, **SAME), p.at.weights, batches("categorical", p, 5))
    always = {"gradient", "factors", "exact F", "update"}
    assert [set(r.seconds) - always for r in records] == [{"inverses"}] * 3 + [{"solve"}, {"solve", "rho"}]
    assert all(always <= set(r.seconds) and min(r.seconds.values()) >= 0 for r in records)


# Lambda, gamma, and the safeguards


def test_lambda_follows_rho():
    p = problem(weight_decay=ETA)
    opt = KFAC(p.model, lambda_0=0.1, **SHORT, **PAPER)
    states, records = run(opt, p.at.weights, batches("categorical", p, 25), seed=7)
    factors = {0.8: 0, 1.0: 0, 1.25: 0}
    for after, record in zip(states[1:], records, strict=True):
        if record.k % 2 == 0:
            factor = 0.8 if record.rho > 3 / 4 else 1.25 if record.rho < 1 / 4 else 1.0
            factors[factor] += 1
            close(after.lambda_, factor * record.lambda_, 1e-14)
    assert min(factors.values()) > 0


def well_predicted():
    """Return linear regression, where rho is 1 as lambda goes to 0."""
    return problem("gaussian", (4, 3), N=16, weight_decay=ETA)


def test_the_floor_of_lambda_is_recorded_where_it_holds():
    p = well_predicted()
    opt = KFAC(p.model, lambda_0=0.01, lambda_floor=0.007, omega1=0.8, T1=1, **SAME)
    states, records = run(opt, p.at.weights, [(p.at.x, p.y)] * 4)
    assert all(r.rho > 3 / 4 for r in records)
    close([s.lambda_ for s in states], [0.01, 0.008, 0.007, 0.007, 0.007], 1e-14)
    assert [r.safeguards for r in records] == [(), ("lambda floor",), ("lambda floor",), ("lambda floor",)]


def test_the_floor_raises_no_lambda():
    p = well_predicted()
    opt = KFAC(p.model, lambda_0=0.001, lambda_floor=0.5, omega1=0.8, T1=1, **SAME)
    states, _ = run(opt, p.at.weights, [(p.at.x, p.y)] * 3)
    assert [s.lambda_ for s in states] == [0.001] * 4


def test_without_a_floor_lambda_falls_as_in_the_paper():
    p = well_predicted()
    opt = KFAC(p.model, lambda_0=0.01, lambda_floor=0.0, omega1=0.8, T1=1, **SAME)
    states, records = run(opt, p.at.weights, [(p.at.x, p.y)] * 4)
    close([s.lambda_ for s in states], 0.01 * 0.8 ** np.arange(5), 1e-14)
    assert not any(r.safeguards for r in records)


def test_gamma_is_clipped_to_its_range_and_that_is_recorded():
    p = problem(weight_decay=0.25)
    opt = KFAC(p.model, lambda_0=0.5, omega2=0.5, T2=2, T3=1, tau1=0.5)
    _, records = run(opt, p.at.weights, batches("categorical", p, 4))
    assert [r.safeguards for r in records] == [(), ("gamma clipped",), (), ("gamma clipped",)]
    # sqrt(3)/4 is below sqrt(eta) = 1/2, and sqrt(3) above 1.
    close([g for g, _ in records[1].gammas], [math.sqrt(0.75), 0.5, 1.0], 1e-14)


def test_gamma_within_its_range_is_not_clipped():
    p = problem()
    opt = KFAC(p.model, lambda_0=0.25, omega2=0.5, T2=2, T3=1, tau1=0.5, gamma_min=0.25, gamma_max=1.0)
    _, records = run(opt, p.at.weights, batches("categorical", p, 2))
    assert records[1].gammas[0][0] == 0.5
    assert [g for g, _ in records[1].gammas] == [0.5, 0.25, 1.0]
    assert records[1].safeguards == ()


def test_a_range_of_one_point_leaves_nothing_to_try_and_that_is_recorded():
    p = problem()
    opt = KFAC(p.model, gamma_min=0.5, gamma_max=0.5, T2=2, T3=1, tau1=0.5)
    _, records = run(opt, p.at.weights, batches("categorical", p, 2))
    assert [len(r.gammas) for r in records] == [1, 1]
    assert records[1].safeguards == ("gamma clipped",)


@pytest.mark.parametrize(("lambda_0", "gamma"), [(150.0, 1.0), (0.04, 0.2), (0.0, 0.1)])
def test_the_first_gamma_is_in_its_range(lambda_0, gamma):
    p = problem()
    close(KFAC(p.model, lambda_0=lambda_0, gamma_min=0.1).init(p.at.weights).gamma, gamma, 1e-14)


class Overshooting(KFAC):
    """Goes a hundred times as far as the quadratic model says."""

    def rescale(self, *arguments):
        candidate = super().rescale(*arguments)
        return dataclasses.replace(candidate, alpha=100 * candidate.alpha)


class Promising(Overshooting):
    """And says that it would lower h by 1e5 times h."""

    def rescale(self, part, grad, *arguments):
        candidate = super().rescale(part, grad, *arguments)
        return dataclasses.replace(candidate, decrease=-1e5 * part.loss(self.y))


class Leaping(KFAC):
    """Adds the same number to every weight."""

    leap = math.inf

    def combine(self, chosen, delta_0):
        return [np.full_like(D, self.leap) for D in chosen.Delta]


class LeapingFar(Leaping):
    leap = 1e200                # h overflows, the weights do not


def assert_undone(state, detail, lambda_):
    assert "undone" in detail.record.safeguards
    assert_same_bits(detail.state.weights, state.weights)
    assert detail.state.delta_0 is None
    close(detail.state.lambda_, lambda_, 1e-14)
    assert (detail.state.k, detail.state.average.k) == (state.k + 1, state.average.k + 1)


def overshot(p, **settings):
    opt = Overshooting(p.model, T1=1, omega1=0.5, tau1=0.5, **SAME, **settings)
    state = opt.init(p.at.weights)
    return opt, state, opt.explain(state, p.at.x, p.y)


def test_a_step_that_raises_h_is_undone():
    p = well_predicted()
    opt, state, detail = overshot(p)
    assert detail.record.actual > 0
    assert detail.record.rho < -1
    assert_undone(state, detail, 2.0)
    assert detail.record.step_norm > 100
    after = opt.explain(detail.state, p.at.x, p.y)
    assert after.record.mu == 0
    assert len(after.chosen.model.slope) == 1


@pytest.mark.parametrize("undo", [None, 1e6])
def test_a_step_that_raises_h_is_taken_where_the_rule_does_not_hold(undo):
    p = well_predicted()
    _, state, detail = overshot(p, undo=undo)
    assert detail.record.rho < -1
    assert detail.record.safeguards == ()
    close(vector(detail.state.weights), vector(state.weights) + vector(detail.delta), 1e-14)
    assert_same_bits(detail.state.delta_0, detail.delta)
    assert detail.state.lambda_ == 2.0


def test_the_rule_holds_from_minus_undo_on():
    p = well_predicted()
    rho = overshot(p)[2].record.rho
    assert overshot(p, undo=-rho * (1 + 1e-9))[2].record.safeguards == ()
    assert overshot(p, undo=-rho * (1 - 1e-9))[2].record.safeguards == ("undone",)


def test_a_rise_is_also_measured_by_h_since_m_may_promise_what_cannot_be():
    p = well_predicted()
    Promising.y = p.y
    opt = Promising(p.model, T1=1, omega1=0.5, tau1=0.5, **SAME)
    state = opt.init(p.at.weights)
    detail = opt.explain(state, p.at.x, p.y)
    times = detail.record.actual / detail.record.loss
    assert times > 1
    assert -1 < detail.record.rho < 0                       # by what was promised it would be no great rise
    assert_undone(state, detail, 2.0)
    for undo, undone in ((times * (1 + 1e-9), False), (times * (1 - 1e-9), True), (0.0, True)):
        record = dataclasses.replace(opt, undo=undo).step(state, p.at.x, p.y)[1]
        assert ("undone" in record.safeguards) == undone


def test_a_step_is_undone_only_where_it_is_looked_back_at():
    p = well_predicted()
    opt = Overshooting(p.model, T1=2, tau1=0.5, **SAME)
    _, records = run(opt, p.at.weights, [(p.at.x, p.y)] * 2)
    assert [r.safeguards for r in records] == [(), ("undone",)]


@pytest.mark.parametrize("method", [Leaping, LeapingFar])
def test_a_step_to_an_h_that_is_not_finite_is_undone(method):
    p = well_predicted()
    opt = method(p.model, T1=1, omega1=0.5, tau1=0.5, **SAME)
    state = opt.init(p.at.weights)
    detail = opt.explain(state, p.at.x, p.y)
    assert math.isnan(detail.record.rho)
    assert detail.record.actual == math.inf
    assert_undone(state, detail, 2.0)


def test_a_step_to_weights_that_are_not_finite_is_taken_without_the_rule_and_the_next_one_is_refused():
    p = well_predicted()
    opt = Leaping(p.model, T1=1, tau1=0.5, undo=None, **SAME)
    state, record = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    assert record.safeguards == ()
    assert state.lambda_ > record.lambda_
    with pytest.raises(ValueError, match=r"weights\[0\] must be finite"):
        opt.step(state, p.at.x, p.y)


def test_an_undone_step_raises_lambda_from_zero_too():
    p = well_predicted()
    _, state, detail = overshot(p, lambda_0=0.0)
    assert "undone" in detail.record.safeguards
    assert detail.state.lambda_ > state.lambda_


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_at_the_optimum_undoes_nothing_and_raises_no_lambda(dtype):
    p = problem("gaussian", (4, 3), N=16, weight_decay=ETA, dtype=dtype)
    _, records = run(KFAC(p.model, tau1=0.5), p.at.weights, [(p.at.x, p.y)] * 80)
    # The last changes of h are below its rounding, and their ratio to the predicted ones is noise.
    assert abs(records[-1].predicted) < np.finfo(dtype).eps * records[-1].loss
    assert not any("undone" in r.safeguards for r in records)
    assert records[-1].lambda_ <= records[0].lambda_


# A step judged on the next batch


def next_batch(p, **settings):
    return KFAC(p.model, T1=1, tau1=0.5, **settings)


@EACH
def test_with_all_examples_in_each_batch_the_next_batch_judges_as_the_paper_does(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    data = [(p.at.x, p.y)] * 12
    ours, paper = (run(next_batch(p, **how), p.at.weights, data)[1]
                   for how in ({"smoothing": 0.0, "examples": len(p.y)}, SAME))
    # What is judged after step k by the paper is judged before step k + 1 here.
    close([r.rho for r in ours[1:]], [r.rho for r in paper[:-1]], 1e-9)
    close([r.actual for r in ours[1:]], [r.actual for r in paper[:-1]], 1e-9)
    close([r.lambda_ for r in ours], [r.lambda_ for r in paper], 1e-14)
    close([r.loss for r in ours], [r.loss for r in paper], 1e-10)
    assert math.isnan(ours[0].rho)


@EACH
@pytest.mark.parametrize("examples", [None, 36, 5])
def test_rho_compares_curvature_and_slope_on_the_next_batch(likelihood, examples):
    p = problem(likelihood, weight_decay=ETA)
    data = batches(likelihood, p, 6)
    opt = next_batch(p, examples=examples, undo=None, lambda_0=10.0)
    states, records = run(opt, p.at.weights, data)
    share = {None: 0.0, 36: 12 / 36, 5: 1.0}[examples]
    curvatures = slopes = 0.0
    for before, after, old, record, (x, y) in zip(states, states[1:], records, records[1:], data[1:], strict=False):
        at, moved = p.model.at(before.weights, x), p.model.at(after.weights, x)
        fresh = vector(at.gradient(y)) @ (vector(after.weights) - vector(before.weights))
        curvature = moved.loss(y) - at.loss(y) - fresh
        slope = share * 2 * old.predicted + (1 - share) * fresh
        curvatures, slopes = curvatures / 2 + curvature, slopes / 2 + slope         # smoothing = 1/2
        # A difference of losses near 2 has lost digits.
        close(record.actual, slope + curvature, 1e-9)
        close(record.rho, 2 * (1 - curvatures / abs(slopes)), 1e-9)
        factor = 0.95 if record.rho > 3 / 4 else 1 / 0.95 if record.rho < 1 / 4 else 1.0
        close(record.lambda_, factor * old.lambda_, 1e-14)


def test_the_next_batch_undoes_a_step_before_the_next_one_is_taken():
    p = well_predicted()
    opt = Overshooting(p.model, T1=1, tau1=0.5, lambda_0=1.0)
    states, _ = run(opt, p.at.weights, [(p.at.x, p.y)])
    assert relative(vector(states[1].weights), vector(states[0].weights)) > 1
    detail = opt.explain(states[1], p.at.x, p.y)
    assert detail.record.safeguards == ("undone",)
    assert_same_bits(detail.at.weights, states[0].weights)
    assert detail.record.mu == 0
    close(detail.record.lambda_, (19 / 20) ** -5, 1e-14)


@pytest.mark.parametrize("method", [Leaping, LeapingFar])
def test_the_next_batch_undoes_a_step_that_is_not_finite(method):
    p = well_predicted()
    opt = method(p.model, T1=1, tau1=0.5)
    state, _ = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    detail = opt.explain(state, p.at.x, p.y)
    assert detail.record.safeguards == ("undone",)
    assert_same_bits(detail.at.weights, p.at.weights)
    assert math.isnan(detail.record.rho)


def test_a_short_step_does_not_raise_lambda_however_noisy_its_slope():
    p = problem("categorical", N=20, weight_decay=ETA)
    opt = next_batch(p, lambda_0=1e6, smoothing=0.0)
    _, records = run(opt, p.at.weights, batches("categorical", p, 30))
    assert all(r.lambda_ <= 1e6 for r in records)
    assert records[-1].lambda_ < 0.5e6


# Structures


@EACH
def test_alpha_is_one_for_the_natural_gradient_with_the_same_damping(likelihood):
    p = problem(likelihood, weight_decay=0.04)
    opt = NaturalGradient(p.model, lambda_0=0.5, tau1=1.0)
    state, record = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    close(state.gamma**2, 0.54, 1e-14)
    close(record.alpha, 1.0, 1e-10)
    other, state = KFAC(p.model, lambda_0=0.5, tau1=1.0), opt.init(p.at.weights)
    assert abs(other.step(other.init(p.at.weights), p.at.x, p.y)[1].alpha - 1) > 1e-3
    assert abs(opt.step(dataclasses.replace(state, gamma=0.3), p.at.x, p.y)[1].alpha - 1) > 1e-3


@EACH
def test_momentum_adds_nothing_to_the_natural_gradient_with_the_same_damping(likelihood):
    p = problem(likelihood, weight_decay=0.04)
    opt = NaturalGradient(p.model, lambda_0=0.5, tau1=1.0, T1=100)
    _, records = run(opt, p.at.weights, [(p.at.x, p.y)] * 3)
    close([r.alpha for r in records], 1.0, 1e-10)
    np.testing.assert_allclose([r.mu for r in records], 0, rtol=0, atol=1e-10)


@EACH
def test_one_natural_gradient_step_solves_linear_regression_alone(likelihood):
    p = problem(likelihood, (4, 3), N=16, weight_decay=ETA)
    opt = NaturalGradient(p.model, lambda_0=0.0, tau1=1.0)
    state, _ = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    left = np.linalg.norm(vector(p.model.at(state.weights, p.at.x).gradient(p.y)))
    start = np.linalg.norm(vector(p.at.gradient(p.y)))
    assert left < 1e-12 * start if likelihood == "gaussian" else left > 1e-3 * start


@dataclasses.dataclass(frozen=True, eq=False)
class Identity(Curvature):
    """A structure of a user's own, with only what the interface asks for: (1 + damping) I."""

    factors: kr.Factors
    damping: float = 0.0

    @property
    def shapes(self):
        return self.factors.shapes

    @property
    def dtype(self):
        return self.factors.A[0].dtype

    def product(self, V):
        return params.scale(1 + self.damping, V)

    def solve(self, V):
        return params.scale(1 / (1 + self.damping), V)


@EACH
@pytest.mark.parametrize("build", [Identity, lambda factors, damping: Identity(factors, damping)])
def test_a_structure_of_a_user_s_own_serves(likelihood, build):
    p = problem(likelihood, weight_decay=ETA)
    opt = KFAC(p.model, Approximation(second_moments, build), lambda_0=0.3, tau1=1.0)
    detail = opt.explain(opt.init(p.at.weights), p.at.x, p.y)
    g = vector(p.at.gradient(p.y))
    H = kr.fisher_matrix(p.at) + (0.3 + ETA) * np.eye(len(g))
    close(vector(detail.Delta), -g / (1.3 + ETA), 1e-12)
    # Steepest descent with the step length of an exact line search on M.
    close(vector(detail.delta), -g * (g @ g) / (g @ H @ g), 1e-12)
    _, records = run(opt, p.at.weights, [(p.at.x, p.y)] * 21)
    assert records[-1].loss < records[0].loss
    with pytest.raises(ValueError, match="Identity has no pi"):
        _ = detail.pi


@EACH
def test_the_path_of_steepest_descent_does_not_depend_on_the_length_of_delta(likelihood):
    p = problem(likelihood, weight_decay=ETA)
    rows = [Approximation(second_moments, lambda factors, damping, c=c: Identity(factors, c)) for c in (0.0, 1e6)]
    short, long = (run(KFAC(p.model, row, lambda_0=0.3, tau1=1.0), p.at.weights, [(p.at.x, p.y)] * 8)[0][-1]
                   for row in rows)
    close(vector(short.weights), vector(long.weights), 1e-10)


def test_a_partial_structure_keeps_its_setting():
    p = problem(weight_decay=ETA)
    opt = KFAC(p.model, balanced(frobenius_pi), tau1=1.0)
    detail = opt.explain(opt.init(p.at.weights), p.at.x, p.y)
    layers = as_factors(detail.average.moments).layers
    close(detail.pi, [frobenius_norm(A, G) for A, G in layers], 1e-13)
    assert relative(detail.pi, [trace_norm(A, G) for A, G in layers]) > 1e-3


# Precision and progress


@EACH
@pytest.mark.parametrize("method", [KFAC, NaturalGradient])
def test_float32_stays_float32(method, likelihood):
    p = problem(likelihood, dtype=np.float32, weight_decay=ETA)
    states, records = run(method(p.model, **SHORT), p.at.weights, batches(likelihood, p, 12))
    assert {a.dtype for state in states for a in arrays(state)} == {np.dtype(np.float32)}
    assert all(math.isfinite(r.loss) for r in records)


@EACH
def test_a_step_in_float32_has_the_digits_of_float32(likelihood):
    first = []
    for dtype in (np.float32, np.float64):
        p = problem(likelihood, dtype=dtype, weight_decay=ETA)
        opt = NaturalGradient(p.model, lambda_0=0.5, tau1=1.0)
        state, _ = opt.step(opt.init(p.at.weights), p.at.x, p.y)
        first.append(vector(state.weights))
    # Seven digits, of which a solve of condition 10 takes one.
    close(*first, 1e-5)


@EACH
@pytest.mark.parametrize("method", [KFAC, NaturalGradient])
def test_the_loss_falls(method, likelihood):
    p = problem(likelihood, N=16, weight_decay=ETA)
    states, records = run(method(p.model), p.at.weights, [(p.at.x, p.y)] * 20)
    losses = [*(r.loss for r in records), p.model.at(states[-1].weights, p.at.x).loss(p.y)]
    assert max(np.diff(losses)) < 0
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("method", [KFAC, NaturalGradient])
def test_a_zero_gradient_gives_a_zero_step(method):
    p = problem("gaussian")
    opt = method(p.model, T1=1, tau1=1.0, **SAME)
    moving = dataclasses.replace(opt.init(p.at.weights), delta_0=tuple(direction(p)))
    for state in (opt.init(p.at.weights), moving):
        after, record = opt.step(state, p.at.x, p.at.z)
        assert (record.alpha, record.mu, record.predicted, record.step_norm) == (0, 0, 0, 0)
        assert record.actual == 0
        assert math.isnan(record.rho)                           # 0/0 is no evidence: lambda stays
        assert after.lambda_ == state.lambda_
        assert_same_bits(after.weights, state.weights)
        assert_same_bits(opt.step(after, p.at.x, p.at.z)[0].weights, state.weights)


@pytest.mark.parametrize(("N", "name"), [(4, "ExactDual"), (40, "Exact")])
def test_the_natural_gradient_factors_the_smaller_matrix_and_says_which(N, name):
    p = problem("categorical", N=N, weight_decay=ETA)                   # 43 parameters, 3 outputs
    opt = NaturalGradient(p.model, lambda_0=0.5)
    _, record = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    dense = opt.explain(opt.init(p.at.weights), p.at.x, p.y)
    assert record.structure == name
    Delta = Exact(p.at, record.gamma**2).solve(p.at.gradient(p.y))
    close(vector(dense.Delta), -vector(Delta))


def test_the_natural_gradient_is_that_of_the_batch_at_hand():
    p = problem("gaussian", N=40, weight_decay=ETA)
    opt = NaturalGradient(p.model, tau1=1.0)
    state = opt.init(p.at.weights)
    for k in range(6):
        rows = np.arange(40)[k::6]
        detail = opt.explain(state, p.at.x[rows], p.y[rows])
        assert detail.chosen.curvature.at is detail.at
        state = detail.state


def test_the_2_by_2_system_is_solved_by_alpha_and_mu():
    p = problem("categorical", N=16, weight_decay=ETA)
    opt = KFAC(p.model, tau1=1.0)
    state, _ = opt.step(opt.init(p.at.weights), p.at.x, p.y)
    detail = opt.explain(state, p.at.x, p.y)
    B, b = detail.system
    close(B @ [detail.chosen.alpha, detail.chosen.mu], b)


@pytest.mark.parametrize("wrong", ["block-diagonal", BlockDiagonal, kr.exact, None])
def test_what_is_no_approximation_is_refused(wrong):
    with pytest.raises(ValueError, match=r"approximation must be a row of kfac_ref\.approximations, or an "):
        KFAC(problem().model, wrong)


@pytest.mark.parametrize("wrong", ["exact", None, 3])
def test_what_is_no_expectation_is_refused(wrong):
    with pytest.raises(ValueError, match="expectation must be a function of a point, such as one_draw, got"):
        KFAC(problem().model, expectation=wrong)


@pytest.mark.parametrize("method", [KFAC, NaturalGradient])
def test_weights_in_place_of_a_state_are_refused(method):
    p = problem()
    with pytest.raises(ValueError, match=r"state must be a State, as init\(weights\) returns it, got list"):
        method(p.model).step(list(p.at.weights), p.at.x, p.y)


def test_the_state_of_another_kind_of_row_is_refused():
    p = problem()
    one, other = KFAC(p.model, tau1=1.0), NaturalGradient(p.model)
    for opt, state in ((one, other.init(p.at.weights)), (other, one.init(p.at.weights))):
        with pytest.raises(ValueError, match="state must be of this optimizer"):
            opt.step(state, p.at.x, p.y)


# What is random in a step


@EACH
@pytest.mark.parametrize("expectation", [kr.one_draw, kr.exact, kr.empirical()], ids=["one draw", "exact", "labels"])
def test_given_draws_reproduce_a_step(likelihood, expectation):
    p = problem(likelihood, weight_decay=ETA)
    opt = KFAC(p.model, expectation=expectation, **SHORT)
    states, _ = run(opt, p.at.weights, data := batches(likelihood, p, 6))
    for state, after, (x, y) in zip(states, states[1:], data, strict=False):
        draws = opt.explain(state, x, y).draws
        # Another seed would draw other numbers; given, they do not matter.
        again, _ = opt.step(dataclasses.replace(state, seed=99), x, y, draws)
        assert_same_bits(arrays(again), arrays(after))
        other, _ = opt.step(dataclasses.replace(state, seed=99), x, y)
        assert relative(vector(other.weights), vector(after.weights)) > 1e-6


def test_draws_of_one_s_own_are_used():
    p = problem(N=12)
    opt = KFAC(p.model, tau2=0.5)
    draws = Draws(np.array([3, 1, 4]), np.array([0, 5, 9, 2]), np.array([0, 2, 1]))
    detail = opt.explain(opt.init(p.at.weights), p.at.x, p.y, draws)
    assert detail.draws is draws
    fac = kr.kronecker_factors(p.at.take(draws.rows1), kr.sampled(draws.targets))
    close(detail.average.moments.arrays["G", 1, 1], fac.G[1], 1e-15)
    close(detail.J_Delta, p.at.take(draws.rows2).tangent(detail.Delta), 1e-14)


# How it reads


@pytest.mark.parametrize("name", ["propose", "choose", "judge"])
def test_the_three_parts_of_the_algorithm_are_short(name):
    function = getattr(KFAC, name)
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    lines = {inner.lineno for statement in node.body[1:] for inner in ast.walk(statement) if hasattr(inner, "lineno")}
    assert len(lines) < 15
