"""Other estimators of A and G: nearest Kronecker product, KFRA, TKFAC, Shampoo, each against what defines it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given

import kfac_ref as kr
from kfac_ref import kronecker
from kfac_ref.factors import (
    kfra_factors,
    nearest_kronecker_factors,
    shampoo_factors,
    shampoo_root_factors,
    tkfac_factors,
)
from kfac_ref.kronecker import unvec, vec
from tests.problems import LIKELIHOODS, Problem, close, expectations, problem, problems, relative
from tests.test_structures import PROBLEMS as STRUCTURES
from tests.test_structures import dead_relu

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
DEEP = (3, 4, 3, 2)
#: Functions of the gradients g; `kfra` puts the columns into F_R alone.
ESTIMATORS = {"nearest": nearest_kronecker_factors, "tkfac": tkfac_factors, "shampoo": shampoo_factors,
              "shampoo_root": shampoo_root_factors, "kfra": kfra_factors}
OF_COLUMNS = {name: estimator for name, estimator in ESTIMATORS.items() if name != "kfra"}


#: A dead layer has no direction of its own, and a test of its own.
PROBLEMS = {name: q for name, q in STRUCTURES.items() if name != "dead layer"}


@pytest.fixture(params=PROBLEMS)
def p(request):
    return PROBLEMS[request.param]


def products(fac):
    """Return A ⊗ G of each layer: factors alone are defined up to a number."""
    return [np.kron(A, G) for A, G in fac.layers]


def blocks(q: Problem, expectation=kr.exact):
    """Return the diagonal blocks of the Fisher."""
    return [kr.fisher_block(q.at, i, i, expectation) for i in range(len(q.shapes))]


def rearranged(q: Problem, expectation=kr.exact):
    """Return the rearranged diagonal blocks of the Fisher."""
    return [kronecker.rearrange(B, (n, n), (m, m)) for B, (m, n) in zip(blocks(q, expectation), q.shapes, strict=True)]


def matrices(fac):
    """Return A and G of every layer in one list."""
    return [S for pair in fac.layers for S in pair]


def close_products(ours, theirs, rtol):
    for one, other in zip(products(ours), products(theirs), strict=True):
        close(one, other, rtol)


def apart(ours, theirs):
    """Return the relative distances of the products of two estimators, layer by layer."""
    return np.array([relative(one, other) for one, other in zip(products(ours), products(theirs), strict=True)])


def norm(S):
    return np.linalg.norm(S)


# All of them


@pytest.mark.parametrize("name", ESTIMATORS)
class TestEveryEstimator:
    def test_factors_are_symmetric_positive_semi_definite_and_of_the_layers_shapes(self, name, p):
        fac = ESTIMATORS[name](p.at)
        assert (fac.shapes, fac.n) == (p.shapes, len(p.at))
        assert set(fac.A) == set(fac.G) == {(i, i) for i in range(len(p.shapes))}       # no cross factors
        for S in matrices(fac):
            close(S, S.T, rtol=1e-14)
            assert np.linalg.eigvalsh(S)[0] > -1e-13 * np.abs(S).max()

    def test_the_same_bits_twice(self, name, p):
        one, other = (ESTIMATORS[name](p.at) for _ in range(2))
        for S, T in zip(matrices(one), matrices(other), strict=True):
            np.testing.assert_array_equal(S, T)

    def test_float32_stays_float32(self, name):
        # No moment is singular: of its small eigenvalues a square root would leave half the digits.
        q, q64 = (problem("gaussian", DEEP, N=30, dtype=dtype) for dtype in (np.float32, np.float64))
        fac = ESTIMATORS[name](q.at)
        assert {S.dtype for S in matrices(fac)} == {np.dtype(np.float32)}
        close_products(fac, ESTIMATORS[name](q64.at), rtol=1e-5)            # float32 has 7 digits

    @EACH
    def test_a_dead_layer_has_a_product_that_is_zero(self, name, likelihood):
        first, last = products(ESTIMATORS[name](dead_relu(likelihood).at))
        np.testing.assert_array_equal(first, 0)
        assert np.isfinite(last).all()
        assert last.any()

    def test_with_one_example_and_one_output_it_is_exact(self, name):
        q = problem("gaussian", (3, 4, 3, 1), N=1)
        for S, B in zip(products(ESTIMATORS[name](q.at)), blocks(q), strict=True):
            # The roots are taken of matrices of rank one, whose other eigenvalues are of size eps: 1e-8 is lost.
            close(S, B, rtol=1e-6 if name == "shampoo_root" else 1e-13)

    def test_another_expectation(self, name):
        q = PROBLEMS["gaussian"]
        facs = [ESTIMATORS[name](q.at, expectation) for expectation in expectations(q).values()]
        close_products(facs[0], ESTIMATORS[name](q.at), rtol=1e-15)
        for one, other in itertools.combinations(facs, 2):
            assert apart(one, other).min() > 1e-3


@EACH
def test_the_estimators_differ(likelihood):
    q = problem(likelihood, DEEP, N=9)
    named = {name: estimator(q.at) for name, estimator in ESTIMATORS.items()} | {"kfac": kr.kronecker_factors(q.at)}
    for one, other in itertools.combinations(named, 2):
        if {one, other} != {"tkfac", "shampoo"}:
            assert apart(named[one], named[other])[0] > 1e-3, (one, other)


# The nearest Kronecker product


def test_nearest_is_the_leading_singular_triple_of_the_dense_block(p):
    for expectation in expectations(p).values():
        fac = nearest_kronecker_factors(p.at, expectation)
        for (A, G), B in zip(fac.layers, blocks(p, expectation), strict=True):
            A0, G0, singular = kronecker.nearest_product(B, A.shape, G.shape)
            close(np.kron(A, G), np.kron(A0, G0), rtol=1e-13)
            close(norm(A), norm(G), rtol=1e-14)
            error = np.sqrt(np.sum(singular[1:]**2))
            assert abs(norm(B - np.kron(A, G)) - error) < 1e-14 * singular[0]
            np.testing.assert_array_equal(A, A.T)
            np.testing.assert_array_equal(G, G.T)


@given(problems())
def test_no_estimator_comes_nearer_to_a_block(q):
    nearest = nearest_kronecker_factors(q.at)
    rivals = [kr.kronecker_factors(q.at), *(estimator(q.at) for estimator in ESTIMATORS.values())]
    for B, best, *others in zip(blocks(q), products(nearest), *map(products, rivals), strict=True):
        assert norm(B - best) <= min(norm(B - S) for S in others) + 1e-13 * norm(B)


@EACH
def test_nearest_is_strictly_nearer_than_every_other(likelihood):
    q = problem(likelihood, DEEP, N=9)
    B, best = blocks(q)[0], products(nearest_kronecker_factors(q.at))[0]
    assert relative(best, B) > 1e-3
    for rival in (kr.kronecker_factors, kfra_factors, tkfac_factors, shampoo_factors, shampoo_root_factors):
        assert relative(best, B) < relative(products(rival(q.at))[0], B) - 1e-3


def test_where_kfac_is_exact_nearest_is_kfac():
    linear = problem("gaussian", DEEP, "identity", N=9)
    close_products(nearest_kronecker_factors(linear.at), kr.kronecker_factors(linear.at, reach=0), rtol=1e-13)
    for likelihood in LIKELIHOODS:
        one = problem(likelihood, DEEP, N=1)
        close_products(nearest_kronecker_factors(one.at), kr.kronecker_factors(one.at, reach=0), rtol=1e-13)
    last = problem("gaussian", DEEP, N=9)
    far = apart(nearest_kronecker_factors(last.at), kr.kronecker_factors(last.at, reach=0))
    assert far[-1] < 1e-13
    assert far[:-1].min() > 1e-3


# KFRA


def G_errors(q):
    """Return the relative errors of KFRA's G against the exact ones, layer by layer."""
    kfra, exact = kfra_factors(q.at), kr.kronecker_factors(q.at)
    return np.array([relative(kfra.G[i], exact.G[i]) for i in range(len(exact))])


@given(problems())
def test_kfra_is_its_recursion_written_out(q):
    fac, N = kfra_factors(q.at), len(q.at)
    G = sum(q.model.likelihood.fisher(q.at.z)) / N
    for i in reversed(range(len(q.shapes))):
        close(fac.G[i], G, rtol=1e-13)
        if i:
            f = q.model.network.activations[i - 1]
            slope = f.dphi(q.at.s[i - 1], q.at.a_bar[i][:, :-1])
            W = q.at.weights[i][:, :-1]
            G = sum(np.outer(d, d) for d in slope) / N * (W.T @ G @ W)


def test_kfra_s_A_are_kfac_s(p):
    for (A, _), (B, _) in zip(kfra_factors(p.at).layers, kr.kronecker_factors(p.at).layers, strict=True):
        np.testing.assert_array_equal(A, B)


@EACH
def test_kfra_starts_from_the_second_moment_of_any_columns(likelihood):
    q = problem(likelihood, DEEP, N=9)
    for expectation in expectations(q).values():
        close(kfra_factors(q.at, expectation).G[2], kr.kronecker_factors(q.at, expectation).G[2], rtol=1e-13)
    assert relative(kfra_factors(q.at, kr.empirical(q.y)).G[0], kfra_factors(q.at).G[0]) > 1e-2


@EACH
def test_kfra_s_G_are_exact_for_linear_nets_for_one_example_and_for_identical_inputs(likelihood):
    assert G_errors(problem(likelihood, DEEP, "identity", N=9)).max() < 1e-13
    for hidden in ("tanh", "softplus"):
        assert G_errors(problem(likelihood, DEEP, hidden, N=1)).max() < 1e-13
    q = problem(likelihood, DEEP, N=1)
    assert G_errors(q._replace(at=q.model.at(q.at.weights, np.repeat(q.at.x, 4, axis=0)))).max() < 1e-13


@EACH
@pytest.mark.parametrize("hidden", ["tanh", "softplus", "logistic"])
def test_kfra_s_G_are_exact_in_the_last_layer_and_with_a_gaussian_in_the_last_but_one(likelihood, hidden):
    below, last_but_one, last = G_errors(problem(likelihood, DEEP, hidden, N=9))
    assert last < 1e-14
    assert below > (1e-3 if hidden == "tanh" else 1e-6)                 # the slopes of the others hardly vary
    if likelihood == "gaussian":
        assert last_but_one < 1e-14
    else:
        assert last_but_one > (1e-3 if hidden == "tanh" else 1e-6)


# TKFAC and Shampoo


def moments(q, expectation=kr.exact):
    """Return R = E[D^T D] and L = E[D D^T] of each layer, example by example and column by column."""
    found = []
    for a, gi in zip(q.at.a_bar, q.at.backward(expectation(q.at)), strict=True):
        D = [np.outer(gk[n], a[n]) for gk in gi for n in range(len(a))]
        found.append((sum(d.T @ d for d in D) / len(a), sum(d @ d.T for d in D) / len(a)))
    return found


def test_tkfac_keeps_the_trace_of_every_block(p):
    for expectation in expectations(p).values():
        for S, B in zip(products(tkfac_factors(p.at, expectation)), blocks(p, expectation), strict=True):
            close(np.trace(S), np.trace(B), rtol=1e-13)


@EACH
def test_kfac_nearest_and_the_roots_do_not_keep_the_trace(likelihood):
    q = problem(likelihood, DEEP, N=9)
    for estimator in (kr.kronecker_factors, nearest_kronecker_factors, shampoo_root_factors):
        assert abs(np.trace(products(estimator(q.at))[0]) / np.trace(blocks(q)[0]) - 1) > 1e-3


def test_tkfac_is_shampoo_with_the_trace_kept(p):
    for expectation in expectations(p).values():
        ours, theirs = tkfac_factors(p.at, expectation), shampoo_factors(p.at, expectation)
        for S, (R, L) in zip(products(ours), moments(p, expectation), strict=True):
            close(S, np.kron(R, L) / np.trace(L), rtol=1e-13)
        close_products(theirs, ours, rtol=1e-13)


def test_tkfac_is_one_step_of_the_power_iteration_from_the_identity(p):
    for expectation in expectations(p).values():
        fac = tkfac_factors(p.at, expectation)
        for S, R, (m, n) in zip(products(fac), rearranged(p, expectation), p.shapes, strict=True):
            left, right = R @ vec(np.eye(n)), R.T @ vec(np.eye(m))
            trace = vec(np.eye(m)) @ left
            close(S, np.kron(unvec(right, n, n), unvec(left, m, m)) / trace, rtol=1e-13)


def test_the_power_iteration_goes_on_to_the_nearest_product():
    q = problem("categorical", (3, 4, 3), N=9)
    nearest, first = products(nearest_kronecker_factors(q.at))[0], products(tkfac_factors(q.at))[0]
    (m, n), R = q.shapes[0], rearranged(q)[0]
    y = vec(np.eye(m))
    for _ in range(200):
        x = R.T @ y / norm(R.T @ y)
        y = R @ x
    close(np.kron(unvec(x, n, n), unvec(y, m, m)), nearest, rtol=1e-13)
    assert relative(first, nearest) > 1e-3


@pytest.mark.parametrize("name", OF_COLUMNS)
def test_gaussian_residuals_times_c_give_c_squared_and_leave_the_exact_ones(name):
    q, c = problem("gaussian", DEEP, N=9), 3.0
    y = q.at.z + c * (q.y - q.at.z)
    ours, theirs = (products(OF_COLUMNS[name](q.at, kr.empirical(labels))) for labels in (y, q.y))
    for S, T in zip(ours, theirs, strict=True):
        close(S, c**2 * T, rtol=1e-12)
    for S, T in zip(products(OF_COLUMNS[name](q.at)), theirs, strict=True):
        assert relative(S, T) > 1e-3


@EACH
def test_the_moments_of_a_stack_of_draws_are_the_means_of_those_of_each_and_the_factors_are_not(likelihood):
    q = problem(likelihood, DEEP, N=5)
    targets = q.at.sample(np.random.default_rng(1), 4)
    stack, *each = (kr.factors.gradient_moments(q.at, kr.sampled(y)) for y in (targets, *targets))
    for key, S in stack.arrays.items():
        close(S, sum(m.arrays[key] for m in each) / 4, rtol=1e-13)
    whole, *parts = (products(tkfac_factors(q.at, kr.sampled(y)))[0] for y in (targets, *targets))
    assert relative(whole, sum(parts) / 4) > 1e-3


def test_shampoo_s_roots_are_the_roots_of_its_moments(p):
    for expectation in expectations(p).values():
        fac = shampoo_root_factors(p.at, expectation)
        for (A, G), (R, L) in zip(fac.layers, moments(p, expectation), strict=True):
            close(A @ A, R, rtol=1e-13)
            close(G @ G, L, rtol=1e-13)


@EACH
def test_the_roots_are_those_of_scipy_where_nothing_is_singular(likelihood):
    q = problem(likelihood, (2, 3, 2), N=30)
    fac = shampoo_root_factors(q.at)
    (R, L), *_ = moments(q)
    assert max(np.linalg.cond(R), np.linalg.cond(L)) < 1e12
    rtol = 1e-14 * max(10, np.sqrt(max(np.linalg.cond(R), np.linalg.cond(L))))
    close(fac.A[0], scipy.linalg.sqrtm(R), rtol)
    close(fac.G[0], scipy.linalg.sqrtm(L), rtol)


def test_every_estimator_of_the_package_is_here_or_k_fac_s_own():
    public = {name for name in kr.factors.__all__ if name.endswith("_factors")}
    here = {estimator.__name__ for estimator in ESTIMATORS.values()}
    assert public == here | {"kronecker_factors", "as_factors"}
