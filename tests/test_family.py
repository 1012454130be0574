"""The family of structures: each against its dense definition, and what sets it apart from its relatives."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given

import kfac_ref as kr
from kfac_ref import approximations, kronecker, params
from kfac_ref.approximations import Approximation
from kfac_ref.curvature import (
    EKFAC,
    BlockDiagonal,
    BlockTridiagonal,
    Curvature,
    Diagonal,
    EigenDamped,
    Exact,
    ExactBlockDiagonal,
    ExactDual,
    Full,
    InputOnly,
)
from kfac_ref.damping import frobenius_pi, trace_pi
from kfac_ref.kronecker import KroneckerSum, vec
from kfac_ref.optimizers import KFAC
from tests.problems import LIKELIHOODS, Problem, close, direction, expectations, problem, problems, relative
from tests.test_structures import DAMPING, PROBLEMS, ROWS, blocks, build, only_diagonal_blocks, structures

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
DEEP = (3, 4, 3, 2)
dampings = st.floats(1e-3, 10)


@pytest.fixture(params=PROBLEMS)
def p(request):
    return PROBLEMS[request.param]


def three_expectations(q: Problem):
    """Yield each expectation with its factors and its Fisher."""
    for e in expectations(q).values():
        yield e, kr.kronecker_factors(q.at, e, reach=math.inf), kr.fisher_matrix(q.at, e)


def identical_inputs(q: Problem) -> Problem:
    return q._replace(at=q.model.at(q.at.weights, np.repeat(q.at.x[:1], len(q.at), axis=0)))


def norm(S):
    return np.linalg.norm(S)


# Block-tridiagonal: the construction of sec. 4.3, written out on dense matrices


def written_out(fac, damping, pi=trace_pi):
    """Return F̂ and its inverse, from Psi, Sigma, Xi and Lambda."""
    root, layers = np.sqrt(damping), range(len(fac))
    A = [S + pi(S, T) * root * np.eye(len(S)) for S, T in fac.layers]
    G = [T + root / pi(S, T) * np.eye(len(T)) for S, T in fac.layers]
    Psi = [np.kron(fac.A[i, i + 1] @ np.linalg.inv(A[i + 1]), fac.G[i, i + 1] @ np.linalg.inv(G[i + 1]))
           for i in layers[:-1]]
    Sigma = [np.kron(A[i], G[i]) - Psi[i] @ np.kron(A[i + 1], G[i + 1]) @ Psi[i].T for i in layers[:-1]]
    Sigma.append(np.kron(A[-1], G[-1]))
    Xi = np.block([[np.eye(len(Sigma[i])) if i == j else -Psi[i] if j == i + 1
                    else np.zeros((len(Sigma[i]), len(Sigma[j]))) for j in layers] for i in layers])
    Lambda = scipy.linalg.block_diag(*map(np.linalg.inv, Sigma))
    back = np.linalg.inv(Xi)
    return back @ scipy.linalg.block_diag(*Sigma) @ back.T, Xi.T @ Lambda @ Xi


@pytest.mark.parametrize("pi", [trace_pi, frobenius_pi, lambda A, G: 2.0], ids=["trace", "frobenius", "2"])
def test_block_tridiagonal_is_the_dense_construction(p, pi):
    fac = kr.kronecker_factors(p.at, reach=1)
    F_hat, inverse = written_out(fac, DAMPING, pi)
    C, V = BlockTridiagonal(fac, DAMPING, pi), direction(p)
    close(C.dense(), F_hat, rtol=1e-13)
    close(C.inverse_dense(), inverse, rtol=1e-12)
    close(params.flatten(C.product(V)), F_hat @ params.flatten(V), rtol=1e-13)
    close(params.flatten(C.solve(V)), inverse @ params.flatten(V), rtol=1e-12)


@pytest.mark.parametrize("expectation", [0, 1, 2], ids=["exact", "sampled", "empirical"])
def test_block_tridiagonal_of_every_expectation_is_the_dense_construction(expectation):
    _, fac, _ = list(three_expectations(problem("bernoulli", DEEP, N=9)))[expectation]
    F_hat, inverse = written_out(fac, DAMPING)
    close(BlockTridiagonal(fac, DAMPING).dense(), F_hat, rtol=1e-13)
    close(BlockTridiagonal(fac, DAMPING).inverse_dense(), inverse, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(2, 3, 2), (3, 2, 3, 2)])
@pytest.mark.parametrize("hidden", ["tanh", "softplus"])
def test_undamped_block_tridiagonal_is_the_dense_construction(sizes, hidden):
    fac = kr.kronecker_factors(problem("gaussian", sizes, hidden, N=60).at, reach=1)
    F_hat, inverse = written_out(fac, 0.0)
    condition = np.linalg.cond(F_hat)
    assert 10 < condition < 1e7
    # Rounding of the factors, of size eps, is amplified by the condition number.
    close(BlockTridiagonal(fac).dense(), F_hat, rtol=1e-14 * condition)
    close(BlockTridiagonal(fac).inverse_dense(), inverse, rtol=1e-14 * condition)


@given(problems(), dampings)
def test_block_tridiagonal_is_the_construction_and_positive_definite_on_any_network(q, damping):
    C = BlockTridiagonal(kr.kronecker_factors(q.at, reach=1), damping)
    F_hat, inverse = written_out(C.factors, damping)
    condition = np.linalg.cond(F_hat)
    close(C.dense(), F_hat, rtol=1e-12)
    close(C.inverse_dense(), inverse, rtol=max(1e-12, 1e-14 * condition))      # 1e7 at the smallest damping
    assert np.linalg.eigvalsh(C.dense())[0] > 0
    assert np.linalg.eigvalsh(C.inverse_dense())[0] > 0


def test_its_tridiagonal_blocks_are_those_of_F_tilde_with_damped_factors_on_the_diagonal(p):
    fac, layers = kr.kronecker_factors(p.at, reach=math.inf), blocks(p.at)
    S = BlockTridiagonal(fac, DAMPING).dense()
    for i, rows in enumerate(layers):
        close(S[rows, rows], np.kron(*BlockDiagonal(fac, DAMPING).damped[i]), rtol=1e-13)
    for i, (rows, columns) in enumerate(itertools.pairwise(layers)):
        block = np.kron(fac.A[i, i + 1], fac.G[i, i + 1])                            # undamped
        np.testing.assert_allclose(S[rows, columns], block, rtol=1e-13, atol=1e-13 * np.abs(S).max())


FOUR = problem("gaussian", (2, 3, 2, 3, 2), "tanh", N=20)


def test_its_inverse_is_zero_off_the_tridiagonal_and_it_is_not():
    fac, layers = kr.kronecker_factors(FOUR.at, reach=math.inf), blocks(FOUR.at)
    C, F_tilde = BlockTridiagonal(fac, DAMPING), Full(fac).dense()
    S, inverse = C.dense(), C.inverse_dense()
    for i, j in ((0, 2), (0, 3), (1, 3)):
        for rows, columns in ((layers[i], layers[j]), (layers[j], layers[i])):
            np.testing.assert_array_equal(inverse[rows, columns], 0)
            assert norm(S[rows, columns]) > 1e-3 * norm(S[rows, rows])
            assert relative(S[rows, columns], F_tilde[rows, columns]) > 1e-3
    for i in range(3):
        assert norm(inverse[layers[i], layers[i + 1]]) > 1e-3 * norm(inverse[layers[i], layers[i]])


def test_its_far_blocks_go_through_the_layer_between():
    fac, layers = kr.kronecker_factors(FOUR.at, reach=math.inf), blocks(FOUR.at)
    S = BlockTridiagonal(fac, DAMPING).dense()
    for i in (0, 1):
        first, between, last = layers[i:i + 3]
        through = S[first, between] @ np.linalg.solve(S[between, between], S[between, last])
        np.testing.assert_allclose(S[first, last], through, rtol=1e-12, atol=1e-13 * np.abs(S).max())


def test_undamped_its_tridiagonal_blocks_are_F_tilde_s():
    q = problem("gaussian", (2, 3, 2, 3), N=60)
    fac, (first, second, third) = kr.kronecker_factors(q.at, reach=math.inf), blocks(q.at)
    S, F_tilde = BlockTridiagonal(fac).dense(), Full(fac).dense()
    for rows, columns in ((first, first), (first, second), (second, second), (second, third), (third, third)):
        close(S[rows, columns], F_tilde[rows, columns], rtol=1e-11)
    assert relative(S[first, third], F_tilde[first, third]) > 1e-3


def test_block_tridiagonal_damps_the_diagonal_factors_alone():
    fac, root = kr.kronecker_factors(FOUR.at, reach=1), np.sqrt(DAMPING)
    S = BlockTridiagonal(fac, DAMPING).dense()
    everything = kr.Factors(*({(i, j): S + (i != j) * root * np.eye(*S.shape) for (i, j), S in X.items()}
                              for X in (fac.A, fac.G)), fac.n)
    assert relative(written_out(everything, DAMPING)[0], S) > 1e-3
    assert relative(written_out(fac, 0.0)[0] + DAMPING * np.eye(len(S)), S) > 1e-3


@EACH
def test_with_one_layer_block_tridiagonal_is_block_diagonal(likelihood):
    q = problem(likelihood, (4, 3))
    fac, V = kr.kronecker_factors(q.at), direction(q)
    one, other = BlockTridiagonal(fac, DAMPING), BlockDiagonal(fac, DAMPING)
    close(one.dense(), other.dense(), rtol=1e-15)
    close(one.inverse_dense(), other.inverse_dense(), rtol=1e-14)
    close(one.solve(V)[0], other.solve(V)[0], rtol=1e-15)


@EACH
@pytest.mark.parametrize("sizes", [(3, 4, 2), DEEP, (1, 1, 1, 2)])
def test_with_more_layers_it_is_not(likelihood, sizes):
    q = problem(likelihood, sizes)
    one, other = (S(kr.kronecker_factors(q.at, reach=1), DAMPING) for S in (BlockTridiagonal, BlockDiagonal))
    assert relative(one.dense(), other.dense()) > 1e-3
    assert relative(one.inverse_dense(), other.inverse_dense()) > 1e-3
    assert relative(params.flatten(one.solve(direction(q))), params.flatten(other.solve(direction(q)))) > 1e-3


def test_without_correlations_between_layers_block_tridiagonal_is_block_diagonal():
    fac = kr.kronecker_factors(FOUR.at, reach=math.inf)
    apart = kr.Factors(fac.A, {(i, j): (i == j) * G for (i, j), G in fac.G.items()}, fac.n)
    close(BlockTridiagonal(apart, DAMPING).dense(), BlockDiagonal(apart, DAMPING).dense(), rtol=1e-14)
    close(BlockTridiagonal(apart, DAMPING).inverse_dense(), BlockDiagonal(apart, DAMPING).inverse_dense(), rtol=1e-13)


def test_block_tridiagonal_needs_the_cross_factors_of_neighbours_and_no_others():
    with pytest.raises(ValueError, match=r"factors hold nothing for layers 0 and 1: .* need an estimate with a reach"):
        BlockTridiagonal(kr.kronecker_factors(FOUR.at), DAMPING)
    near, all_ = (BlockTridiagonal(kr.kronecker_factors(FOUR.at, reach=reach), DAMPING).dense()
                  for reach in (1, np.inf))
    close(near, all_, rtol=1e-14)


# Appendix B, prepared once


def definite(rng, n):
    X = rng.standard_normal((n, n))
    return X @ X.T / n + np.eye(n)


def semi_definite(rng, n, largest):
    """Return a matrix that lacks one rank (unless it is 1 x 1), with this largest eigenvalue."""
    X = rng.standard_normal((n, max(1, n - 1)))
    return largest * X @ X.T / np.linalg.norm(X, 2)**2


@given(st.integers(0, 2**16).map(np.random.default_rng), st.integers(1, 4), st.integers(1, 4),
       st.sampled_from([1, -1]))
def test_a_prepared_sum_serves_several_right_hand_sides(rng, m, n, sign):
    A, B, C, D = definite(rng, n), definite(rng, m), semi_definite(rng, n, 0.9), semi_definite(rng, m, 0.9)
    prepared, dense = KroneckerSum.factor(A, B, C, D, sign), np.kron(A, B) + sign * np.kron(C, D)
    for V in rng.standard_normal((3, m, n)):
        X = prepared.solve(V)
        close(vec(X), np.linalg.solve(dense, vec(V)), rtol=1e-12)
        np.testing.assert_array_equal(X, kronecker.solve_sum(A, B, C, D, V, sign))
    # V may lie close to the null space of C kron D, where the sign does not matter.
    assert relative(KroneckerSum.factor(A, B, C, D, -sign).solve(V), X) > 1e-6


# EKFAC


def eigenbasis(C):
    """Return the basis of each layer as one orthogonal matrix."""
    return [np.kron(A.Q, G.Q) for A, G in C.bases]


def ekfac_cases(q):
    """Yield EKFAC undamped, the factors, and the exact blocks, of each expectation."""
    for e, fac, F in three_expectations(q):
        yield EKFAC(q.at, expectation=e), fac, [F[rows, rows] for rows in blocks(q.at)]


def test_ekfac_s_scales_are_the_diagonal_of_the_block_in_the_eigenbasis(p):
    for C, fac, F in ekfac_cases(p):
        for i, (Q, S) in enumerate(zip(eigenbasis(C), C.scales, strict=True)):
            close(Q.T @ Q, np.eye(len(Q)), rtol=1e-13)
            A, G = C.bases[i]
            close(A.Q * A.values @ A.Q.T, fac.A[i], rtol=1e-13)
            close(G.Q * G.values @ G.Q.T, fac.G[i], rtol=1e-13)
            np.testing.assert_allclose(vec(S), np.diag(Q.T @ F[i] @ Q), rtol=1e-13, atol=1e-13 * np.abs(F[i]).max())


def test_ekfac_is_damped_exactly_and_keeps_the_trace(p):
    for C, _, F in ekfac_cases(p):
        damped = EKFAC(p.at, DAMPING, C.expectation)
        close(damped.dense(), C.dense() + DAMPING * np.eye(len(C.dense())), rtol=1e-14)
        close([np.trace(C.dense()[rows, rows]) for rows in blocks(p.at)], [np.trace(B) for B in F], rtol=1e-14)


def ekfac_errors(q):
    """Return the errors of EKFAC and of K-FAC, block by block and for each expectation, over the norm of the block."""
    return np.array([[(relative(C.dense()[rows, rows], B), relative(np.kron(A, G), B))
                      for rows, B, (A, G) in zip(blocks(q.at), F, fac.layers, strict=True)]
                     for C, fac, F in ekfac_cases(q)])


@given(problems(smooth=True))
def test_ekfac_is_never_farther_from_a_block_than_kfac(q):
    for C, fac, F in ekfac_cases(q):
        for rows, B, (A, G) in zip(blocks(q.at), F, fac.layers, strict=True):
            ours, kfac = norm(C.dense()[rows, rows] - B), norm(np.kron(A, G) - B)
            assert ours <= kfac + 1e-13 * norm(B)                       # both may be exact


@EACH
def test_ekfac_is_nearer_where_kfac_is_not_exact(likelihood):
    errors = ekfac_errors(problem(likelihood, DEEP, N=9))
    ours, kfac = errors[:, :2, 0], errors[:, :2, 1]                     # the last layer of a Gaussian is exact
    assert (ours > 1e-3).all()
    assert (ours < kfac - 1e-3).all()


@EACH
@pytest.mark.parametrize("hidden", ["tanh", "softplus"])
def test_ekfac_is_exact_for_one_example_and_for_identical_inputs(likelihood, hidden):
    assert ekfac_errors(problem(likelihood, DEEP, hidden, N=1)).max() < 1e-13
    assert ekfac_errors(identical_inputs(problem(likelihood, DEEP, hidden, N=5))).max() < 1e-13


def test_ekfac_is_exact_for_a_linear_net_and_a_last_layer_with_square_loss():
    exact, *others = ekfac_errors(problem("gaussian", DEEP, "identity", N=9))
    assert exact.max() < 1e-13
    assert min(e.min() for e in others) > 1e-3
    assert ekfac_errors(problem("gaussian", DEEP, N=9))[0, -1].max() < 1e-13
    assert ekfac_errors(problem("bernoulli", DEEP, N=9))[0, -1].min() > 1e-3


# FOOF


def with_identity(fac):
    return kr.Factors.of_layers([A for A, _ in fac.layers], [np.eye(len(G)) for _, G in fac.layers], fac.n)


@given(problems(), dampings)
def test_input_only_is_exactly_damped_kfac_with_G_the_identity(q, damping):
    fac = kr.kronecker_factors(q.at)
    ours, theirs = InputOnly(fac, damping), EigenDamped(with_identity(fac), damping)
    close(ours.dense(), theirs.dense(), rtol=1e-14)
    U, W = (params.flatten(C.solve(direction(q))) for C in (ours, theirs))
    close(U, W, rtol=1e-14 * max(10, np.linalg.cond(ours.dense())))     # 1e4 at the smallest damping


def test_input_only_is_factored_kfac_with_G_the_identity_at_no_damping_alone():
    q = problem("gaussian", (3, 4, 2), N=60)
    fac = kr.kronecker_factors(q.at)
    ours, theirs = (params.flatten(C.solve(direction(q))) for C in (InputOnly(fac), BlockDiagonal(with_identity(fac))))
    close(ours, theirs, rtol=1e-13)
    ours, theirs = InputOnly(fac, DAMPING), BlockDiagonal(with_identity(fac), DAMPING)
    assert relative(ours.dense(), theirs.dense()) > 1e-3
    assert relative(params.flatten(ours.solve(direction(q))), params.flatten(theirs.solve(direction(q)))) > 1e-3


def test_input_only_does_not_see_G(p):
    dense = [InputOnly(fac, DAMPING).dense() for _, fac, _ in three_expectations(p)]
    expected = scipy.linalg.block_diag(*(np.kron(A + DAMPING * np.eye(len(A)), np.eye(len(G)))
                                         for A, G in kr.kronecker_factors(p.at).layers))
    for S in dense:
        close(S, expected, rtol=1e-15)


def test_input_only_is_not_kfac():
    fac = kr.kronecker_factors(PROBLEMS["categorical"].at)
    assert relative(InputOnly(fac, DAMPING).dense(), EigenDamped(fac, DAMPING).dense()) > 1e-3


# The diagonal


def test_diagonal_is_the_diagonal_of_the_fisher_of_every_expectation(p):
    for e, _, F in three_expectations(p):
        C = Diagonal(p.at, DAMPING, e)
        close(C.dense(), np.diag(np.diag(F)) + DAMPING * np.eye(len(F)), rtol=1e-13)
        close([S.sum() for S in Diagonal(p.at, 0.0, e).scales],
              [np.trace(F[rows, rows]) for rows in blocks(p.at)], rtol=1e-13)


@EACH
def test_the_expectations_of_a_diagonal_differ_and_it_is_not_the_fisher(likelihood):
    q = problem(likelihood, DEEP)
    exact, sampled, empirical = (Diagonal(q.at, 0.0, e).dense() for e in expectations(q).values())
    for one, other in ((exact, sampled), (exact, empirical), (sampled, empirical), (exact, kr.fisher_matrix(q.at))):
        assert relative(one, other) > 1e-3


# The exact Fisher in the space of the examples


@EACH
@pytest.mark.parametrize(("sizes", "N"), [((4, 5, 3), 4), ((2, 2, 3), 20), ((3, 4, 4, 3), 1)])
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_exact_dual_is_the_dense_solve(likelihood, sizes, N, damping):
    q = problem(likelihood, sizes, N=N)
    P, NC = q.at.model.network.parameters, 3 * N
    assert (NC < P) == (N < 10)
    C, V = ExactDual(q.at, damping), direction(q)
    S = kr.fisher_matrix(q.at) + damping * np.eye(P)
    x = params.flatten(C.solve(V))
    # The two terms of the identity cancel in the directions of the largest eigenvalues.
    close(x, np.linalg.solve(S, params.flatten(V)), rtol=1e-14 * max(10, np.linalg.cond(S)))
    close(C.dense(), S, rtol=1e-13)
    close(params.flatten(Exact(q.at, damping).solve(V)), x, rtol=1e-14 * max(10, np.linalg.cond(S)))
    assert relative(x, params.flatten(V) / damping) > 1e-3


@given(problems(), st.floats(1e-2, 10))
def test_exact_dual_is_the_dense_solve_on_any_network(q, damping):
    S = kr.fisher_matrix(q.at) + damping * np.eye(q.at.model.network.parameters)
    x = params.flatten(ExactDual(q.at, damping).solve(direction(q)))
    close(S @ x, params.flatten(direction(q)), rtol=1e-13 * max(10, np.linalg.cond(S)))


@EACH
def test_exact_dual_in_float32(likelihood):
    q, q64 = (problem(likelihood, (6, 8, 3), N=4, dtype=dtype) for dtype in (np.float32, np.float64))
    single, double = (ExactDual(r.at, DAMPING).solve(direction(r)) for r in (q, q64))
    assert {s.dtype for s in single} == {np.dtype(np.float32)}
    close(params.flatten(single), params.flatten(double), rtol=1e-4)    # 7 digits, less 2 or 3 of the condition


def test_exact_dual_allocates_no_array_of_examples_times_parameters():
    q = problem("categorical", (60, 300, 3), N=20)
    C, V = ExactDual(q.at, DAMPING), direction(q)
    tracemalloc.start()
    C.solve(V)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    NC, P = 20 * 3, q.at.model.network.parameters
    assert peak < NC * P * 8 / 5
    assert NC * NC * 8 < NC * P * 8 / 100


def test_exact_dual_is_exact_and_the_other_structures_of_a_point_are_not():
    q = PROBLEMS["gaussian"]
    V = direction(q)
    exact = params.flatten(Exact(q.at, DAMPING).solve(V))
    close(params.flatten(ExactDual(q.at, DAMPING).solve(V)), exact, rtol=1e-12)
    for structure in (ExactBlockDiagonal, EKFAC, Diagonal):
        assert relative(params.flatten(structure(q.at, DAMPING).solve(V)), exact) > 1e-3


# Dense forms that are made of products say nothing about those products: here is what they must be


CONSTRUCTIONS = {
    BlockTridiagonal: lambda at: written_out(kr.kronecker_factors(at, reach=1), DAMPING)[0],
    ExactDual: lambda at: kr.fisher_matrix(at) + DAMPING * np.eye(at.model.network.parameters),
}


@pytest.mark.parametrize("structure", [s for s in structures() if s.dense is Curvature.dense])
def test_a_dense_form_made_of_products_is_an_independent_construction(structure, p):
    close(build(structure, p.at, DAMPING).dense(), CONSTRUCTIONS[structure](p.at), rtol=1e-13)


@pytest.mark.parametrize("structure", [EKFAC, Diagonal, InputOnly, ExactBlockDiagonal])
def test_structures_of_one_layer_at_a_time_have_nothing_between_layers(structure, p):
    S = build(structure, p.at, DAMPING).dense()
    np.testing.assert_array_equal(S, only_diagonal_blocks(S, p.at))


# In the optimizer


def losses(row, q, steps=15):
    opt = KFAC(q.model, row, tau1=1.0)
    state, found = opt.init(q.at.weights), []
    for _ in range(steps):
        state, record = opt.step(state, q.at.x, q.y)
        found.append(record.loss)
    return found


def test_runs_of_the_optimizer_differ_except_with_the_same_matrix():
    q = problem("gaussian", (3, 4, 2), N=12, weight_decay=1e-3)
    dual = Approximation(None, ExactDual)
    close(losses(dual, q), losses(approximations.EXACT, q), rtol=1e-10)         # rounding, amplified by the steps
    runs = [losses(ROWS[s], q)[-1] for s in (BlockTridiagonal, BlockDiagonal, InputOnly, EKFAC, Diagonal)]
    assert np.diff(np.sort(runs)).min() > 1e-6 * max(runs)
