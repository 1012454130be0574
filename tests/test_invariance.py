"""The re-parameterized network and its derivatives, and what does not depend on the parameters: K-FAC's path."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.analysis import TransformedMLP, centred_whitening, transform, whitening
from kfac_ref.approximations import BLOCK_DIAGONAL, BLOCK_TRIDIAGONAL
from kfac_ref.curvature import BlockDiagonal, BlockTridiagonal
from kfac_ref.hessian import hessian_product
from kfac_ref.optimizers import KFAC
from tests.problems import Problem, close, direction, problem, problems, relative

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
EACH = pytest.mark.parametrize("likelihood", LIKELIHOODS)
#: Undamped factors must be invertible; a categorical's last one never is (G 1 = 0).
INVERTIBLE = pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
STRUCTURES = pytest.mark.parametrize("structure", [BlockDiagonal, BlockTridiagonal])
SIZES = (3, 4, 3, 2)
EPS = np.finfo(float).eps


def random_map(shapes, seed=3):
    """Return Omega and Phi, without any symmetry, of condition 3."""
    rng = np.random.default_rng(seed)

    def invertible(n):
        (U, _), (V, _) = (np.linalg.qr(rng.standard_normal((n, n))) for _ in range(2))
        return U * np.linspace(0.6, 1.8, n) @ V

    return [invertible(n) for _, n in shapes], [invertible(m) for m, _ in shapes]


def transformed(p, Omega, Phi):
    """Return the same problem in the new parameters."""
    model = kr.Model(TransformedMLP(p.model.network, Omega, Phi), p.model.likelihood)
    return Problem(model, model.at(transform(p.at.weights, Omega, Phi), p.at.x), p.y)


def pair(likelihood="gaussian", hidden=("tanh", "softplus"), N=100):
    """Return a problem with factors of modest condition, and its twin in other parameters."""
    p = problem(likelihood, SIZES, hidden, N, seed=3)
    return p, transformed(p, *random_map(p.shapes))


def vector(V):
    return params.flatten(V)


def T_matrix(network):
    """Return T of theta = T theta', from vec(Phi W' Omega) = (Omega^T kron Phi) vec(W')."""
    return scipy.linalg.block_diag(*(np.kron(Om.T, Ph) for Om, Ph in zip(network.Omega, network.Phi, strict=True)))


def lost(structure, *factors):
    """Return the relative error that undamped solves may have: eps times the condition of their matrix."""
    return EPS * max(np.linalg.cond(structure(fac).dense()) for fac in factors)


# The same function


@given(problems())
def test_it_computes_the_same_function_and_weights_come_back(p):
    q = transformed(p, *random_map(p.shapes))
    close(q.at.z, p.at.z, rtol=1e-11)
    for W, back in zip(p.at.weights, q.model.network.to_original(q.at.weights), strict=True):
        close(back, W, rtol=1e-11)


def test_the_weights_are_others():
    p, q = pair()
    for W, W_new in zip(p.at.weights, q.at.weights, strict=True):
        assert relative(W_new, W) > 0.1


def test_the_forward_pass_is_the_definition_example_by_example():
    p, q = pair(N=5)
    network = q.model.network
    for n, x in enumerate(p.at.x):
        a = network.Omega[0] @ np.append(x, 1)
        for i, f in enumerate(network.activations):
            s = q.at.weights[i] @ a
            close(q.at.a_bar[i][n], a, rtol=1e-13)
            close(q.at.s[i][n], s, rtol=1e-13)
            if i < 2:
                a = network.Omega[i + 1] @ np.append(f.phi(network.Phi[i] @ s), 1)
        close(q.at.z[n], network.Phi[-1] @ s, rtol=1e-13)


def test_it_answers_for_the_shapes_of_the_original():
    p, q = pair()
    ours, theirs = q.model.network, p.model.network
    assert (ours.sizes, ours.shapes, ours.parameters) == (theirs.sizes, theirs.shapes, theirs.parameters)
    assert ours.activations == theirs.activations


@pytest.mark.parametrize("rows", [slice(1, 4), np.array([5, 0])])
def test_parts_are_the_pass_of_those_examples(rows):
    p, q = pair(N=7)
    part, again = q.at.take(rows), q.model.at(q.at.weights, p.at.x[rows])
    V, y = direction(p), p.y[rows]
    close(part.z, again.z, rtol=1e-14)
    close(part.tangent(V), again.tangent(V), rtol=1e-14)
    close(vector(part.gradient(y)), vector(again.gradient(y)), rtol=1e-13)
    close(kr.kronecker_factors(part).G[0], kr.kronecker_factors(again).G[0], rtol=1e-13)


def test_x_is_the_input():
    p, q = pair(N=7)
    close(q.at.x, p.at.x, rtol=1e-15)


# Its derivatives


@given(problems())
def test_backward_and_tangent_are_adjoint(p):
    q = transformed(p, *random_map(p.shapes))
    V, dz = direction(p), np.random.default_rng(2).standard_normal(p.at.z.shape)
    left, right = np.vdot(dz, q.at.tangent(V)), params.inner(q.at.adjoint(dz), V)
    scale = np.linalg.norm(dz) * np.linalg.norm(q.at.tangent(V))
    assert abs(left - right) <= 1e-12 * max(scale, abs(left))


def test_a_stack_is_sent_back_as_each_of_its_members():
    _, q = pair(N=5)
    dz = np.random.default_rng(2).standard_normal((3, *q.at.z.shape))
    for i, stack in enumerate(q.at.backward(dz)):
        for member, one in zip(stack, dz, strict=True):
            close(member, q.at.backward(one)[i], rtol=1e-14)


@EACH
@pytest.mark.parametrize("hidden", ["tanh", "logistic", "softplus", "identity"])
def test_the_gradient_is_a_central_difference_of_the_loss(likelihood, hidden):
    p, q = pair(likelihood, hidden=hidden, N=5)
    h, grad = 1e-3, vector(q.at.gradient(q.y))

    def loss(e, t):
        return q.model.at(params.add(q.at.weights, params.unflatten(t * e, p.shapes)), p.at.x).loss(q.y)

    # Four points: h^4 of the fifth derivative, and eps / h of rounding, each about 1e-12.
    slopes = [(8 * (loss(e, h) - loss(e, -h)) - (loss(e, 2 * h) - loss(e, -2 * h))) / (12 * h)
              for e in np.eye(len(grad))]
    close(grad, slopes, rtol=1e-9)


@EACH
def test_the_tangent_is_a_central_difference_of_the_output(likelihood):
    p, q = pair(likelihood, N=5)
    V, h = direction(p), 1e-3

    def z(t):
        return q.model.at(params.add(q.at.weights, params.scale(t, V)), p.at.x).z

    # As above.
    close(q.at.tangent(V), (8 * (z(h) - z(-h)) - (z(2 * h) - z(-2 * h))) / (12 * h), rtol=1e-9)


# How gradients, factors and Fishers change


@given(problems())
def test_gradients_and_tangents_change_by_the_map(p):
    q = transformed(p, *random_map(p.shapes))
    Omega, Phi = q.model.network.Omega, q.model.network.Phi
    grad = p.at.gradient(p.y)
    expected = [Ph.T @ D @ Om.T for D, Om, Ph in zip(grad, Omega, Phi, strict=True)]
    close(vector(q.at.gradient(p.y)), vector(expected), rtol=1e-10)
    close(q.at.tangent(direction(p)), p.at.tangent(q.model.network.to_original(direction(p))), rtol=1e-10)


@EACH
def test_factors_of_every_pair_of_layers_change_by_the_map(likelihood):
    p, q = pair(likelihood)
    Omega, Phi = q.model.network.Omega, q.model.network.Phi
    for expectation in (kr.exact, kr.empirical(p.y)):
        fac, fac_new = (kr.kronecker_factors(at, expectation, reach=math.inf) for at in (p.at, q.at))
        for i, j in np.ndindex(3, 3):
            A, G, A_new, G_new = fac.A[i, j], fac.G[i, j], fac_new.A[i, j], fac_new.G[i, j]
            close(A_new, Omega[i] @ A @ Omega[j].T, rtol=1e-13)
            close(G_new, Phi[i].T @ G @ Phi[j], rtol=1e-12)
            assert relative(A_new, A) > 0.1
            assert relative(G_new, G) > 0.1


@EACH
def test_the_fisher_changes_by_the_map(likelihood):
    p, q = pair(likelihood)
    T = T_matrix(q.model.network)
    F, F_new = kr.fisher_matrix(p.at), kr.fisher_matrix(q.at)
    close(F_new, T.T @ F @ T, rtol=1e-12)
    close(vector(kr.fisher_product(q.at, direction(p))), F_new @ vector(direction(p)), rtol=1e-12)
    close(T @ vector(q.at.weights), vector(p.at.weights), rtol=1e-12)
    assert relative(F_new, F) > 0.1


@pytest.mark.parametrize("compute", [lambda q: hessian_product(q.at, q.y, direction(q)),
                                     lambda q: kr.factors.kfra_factors(q.at)], ids=["hessian", "kfra"])
def test_what_reads_the_weights_of_a_plain_network_is_refused(compute):
    with pytest.raises(ValueError, match="MLP"):
        compute(pair()[1])


# Theorem 1


@INVERTIBLE
@STRUCTURES
def test_the_undamped_steps_correspond(likelihood, structure):
    p, q = pair(likelihood)
    fac, fac_new = (kr.kronecker_factors(at, reach=1) for at in (p.at, q.at))
    step = structure(fac).solve(p.at.gradient(p.y))
    step_new = q.model.network.to_original(structure(fac_new).solve(q.at.gradient(p.y)))
    close(vector(step_new), vector(step), rtol=lost(structure, fac, fac_new))
    assert lost(structure, fac, fac_new) < 1e-9


@STRUCTURES
def test_the_damped_steps_do_not_correspond(structure):
    p, q = pair()
    step, step_new = (kfac(structure, 0.1)(at, p.y) for at in (p.at, q.at))
    assert relative(vector(q.model.network.to_original(step_new)), vector(step)) > 1e-3


# The corollary: paths in function space


def path(p, update, rate=0.03, steps=5):
    """Return the outputs after each of some steps of fixed multiples of an update, (steps, N, C)."""
    at, outputs = p.at, []
    for _ in range(steps):
        at = at.model.at(params.add(at.weights, params.scale(-rate, update(at, p.y))), inputs(p))
        outputs.append(at.z)
    return np.array(outputs)


def inputs(p):
    """Return x, which the transformed pass keeps only in other coordinates."""
    forward = p.at.forward
    return (forward.inner if isinstance(p.model.network, TransformedMLP) else forward).a_bar[0][:, :-1]


def gradient_descent(at, y):
    return at.gradient(y)


def kfac(structure, damping=0.0):
    return lambda at, y: structure(kr.kronecker_factors(at, reach=1), damping).solve(at.gradient(y))


def assert_same_path(p, q, structure, rate):
    """Assert that undamped K-FAC takes both problems along the same outputs, to what its solves may lose."""
    losses = []

    def update(at, y):
        losses.append(lost(structure, kr.kronecker_factors(at, reach=1)))
        return kfac(structure)(at, y)

    one, another = path(p, update, rate), path(q, update, rate)
    close(another, one, rtol=10 * max(losses))                      # a step carries on what those before it lost
    assert max(losses) < 1e-9
    assert relative(one[-1], p.at.z) > 0.1                          # it has gone somewhere


@INVERTIBLE
@STRUCTURES
def test_undamped_kfac_takes_the_same_path(likelihood, structure):
    assert_same_path(*pair(likelihood), structure, rate=0.03)


@INVERTIBLE
def test_gradient_descent_does_not(likelihood):
    p, q = pair(likelihood)
    assert relative(path(q, gradient_descent, 0.1), path(p, gradient_descent, 0.1)) > 1e-2


@INVERTIBLE
@STRUCTURES
def test_with_damping_it_differs_by_what_shrinks_with_the_damping(likelihood, structure):
    p, q = pair(likelihood)
    apart = [relative(path(q, kfac(structure, d)), path(p, kfac(structure, d))) for d in (1e-2, 1e-10, 1e-12, 1e-14)]
    assert apart[0] > 1e-2
    # Factors are moved by the root of the damping, once that is small beside their smallest eigenvalues.
    assert apart[0] > apart[1] > 5 * apart[2] > 25 * apart[3] > 0


@STRUCTURES
def test_the_optimizer_takes_the_same_path_without_damping(structure):
    p, q = pair("gaussian")
    row = BLOCK_DIAGONAL if structure is BlockDiagonal else BLOCK_TRIDIAGONAL
    bare = {"approximation": row, "lambda_0": 0.0, "tau1": 1.0, "gamma_min": 0.0, "lambda_floor": 0.0, "undo": None}
    runs = []
    for r in (p, q):
        opt = KFAC(r.model, **bare)
        state, outputs = opt.init(r.at.weights, seed=1), []
        for _ in range(4):
            state, record = opt.step(state, p.at.x, p.y)
            outputs.append((*r.model.at(state.weights, p.at.x).z.ravel(), record.alpha, record.mu, record.predicted))
        runs.append(np.array(outputs))
    # Momentum included: alpha and mu come from the exact F. A step loses the condition of the factors, some 1e4, and
    # the 2 x 2 system of alpha and mu another two digits.
    close(runs[1], runs[0], rtol=1e-9)
    assert (runs[0][1:, -2] != 0).all()


def test_the_optimizer_runs_on_it_as_on_any_network():
    _, q = pair("categorical", N=7)
    opt = KFAC(q.model, tau1=1.0)
    state, losses = opt.init(q.model.init(np.random.default_rng(0))), [q.at.loss(q.y)]
    for _ in range(10):
        state, _ = opt.step(state, inputs(q), q.y)
        losses.append(q.model.at(state.weights, inputs(q)).loss(q.y))
    assert losses[-1] < 0.9 * losses[0]


# Corollary 3: gradient descent in white coordinates


WHITENING = pytest.mark.parametrize("white", [whitening, centred_whitening])


@INVERTIBLE
@WHITENING
def test_in_white_coordinates_both_factors_are_the_identity(likelihood, white):
    p = problem(likelihood, SIZES, N=100, seed=3)
    fac = kr.kronecker_factors(p.at)
    q = transformed(p, *white(fac))
    for A, G in kr.kronecker_factors(q.at).layers:
        # A root of S^{-1} is known to eps times the condition of S.
        np.testing.assert_allclose(A, np.eye(len(A)), rtol=0, atol=lost(BlockDiagonal, fac))
        np.testing.assert_allclose(G, np.eye(len(G)), rtol=0, atol=lost(BlockDiagonal, fac))
    assert max(relative(A, np.eye(len(A))) for A, _ in fac.layers) > 0.1


@INVERTIBLE
@WHITENING
def test_there_the_block_diagonal_update_is_gradient_descent(likelihood, white):
    p = problem(likelihood, SIZES, N=100, seed=3)
    fac = kr.kronecker_factors(p.at)
    q = transformed(p, *white(fac))
    grad, step = q.at.gradient(p.y), BlockDiagonal(fac).solve(p.at.gradient(p.y))
    close(vector(q.model.network.to_original(grad)), vector(step), rtol=lost(BlockDiagonal, fac))
    close(vector(BlockDiagonal(kr.kronecker_factors(q.at)).solve(grad)), vector(grad), rtol=lost(BlockDiagonal, fac))
    assert relative(vector(p.at.gradient(p.y)), vector(step)) > 0.1


def test_the_centred_root_leaves_no_mean_and_the_symmetric_one_does():
    p = problem("gaussian", SIZES, N=100, seed=3)
    fac = kr.kronecker_factors(p.at)
    for a in transformed(p, *centred_whitening(fac)).at.a_bar:
        np.testing.assert_allclose(a[:, -1], 1, rtol=1e-15, atol=0)
        np.testing.assert_allclose(a[:, :-1].mean(axis=0), 0, rtol=0, atol=lost(BlockDiagonal, fac))
        np.testing.assert_allclose(np.cov(a[:, :-1].T, bias=True), np.eye(a.shape[1] - 1), rtol=0,
                                   atol=lost(BlockDiagonal, fac))
    for a in transformed(p, *whitening(fac)).at.a_bar:
        assert np.linalg.norm(a.mean(axis=0)[:-1]) > 1e-2


def test_the_symmetric_roots_are_symmetric_and_roots():
    fac = kr.kronecker_factors(problem("gaussian", SIZES, N=100, seed=3).at)
    for roots, matrices in zip(whitening(fac), zip(*fac.layers, strict=True), strict=True):
        for R, S in zip(roots, matrices, strict=True):
            np.testing.assert_allclose(R, R.T, rtol=0, atol=1e-14 * np.linalg.norm(R))
            np.testing.assert_allclose(R @ R @ S, np.eye(len(S)), rtol=0, atol=100 * EPS * np.linalg.cond(S))
    # Of one matrix, all roots of the inverse have the same product.
    for R, C in zip(whitening(fac)[0], centred_whitening(fac)[0], strict=True):
        np.testing.assert_allclose(C.T @ C, R @ R, rtol=0, atol=1e-11 * np.linalg.norm(R @ R))
        assert relative(C, R) > 1e-2


# Particular maps: other units, other inputs


def logistic_as_tanh(sizes):
    """Return the map by which units (1 + tanh(s / 2)) / 2 are tanh units."""
    L = len(sizes) - 1
    halves = [np.block([[np.eye(n) / 2, np.full((n, 1), 0.5)], [np.zeros((1, n)), np.ones((1, 1))]])
              for n in sizes[1:-1]]
    return [np.eye(sizes[0] + 1), *halves], [np.eye(m) / (2 if i < L - 1 else 1) for i, m in enumerate(sizes[1:])]


def logistic_and_tanh(likelihood):
    """Return a logistic net, the tanh net of the same function, and the map of weights from the first to the second."""
    p = problem(likelihood, SIZES, "logistic", N=100)
    # With weights of unit scale, logistic units are nearly linear, and their factors nearly singular.
    p = p._replace(at=p.model.at([3 * W for W in p.at.weights], p.at.x))
    network = TransformedMLP(kr.MLP(SIZES, "tanh"), *logistic_as_tanh(SIZES))
    model = kr.Model(network.network, p.model.likelihood)
    return p, Problem(model, model.at(network.to_original(p.at.weights), p.at.x), p.y), network


@EACH
def test_a_logistic_net_is_a_tanh_net_in_other_parameters(likelihood):
    p, q, network = logistic_and_tanh(likelihood)
    view = kr.Model(network, p.model.likelihood).at(p.at.weights, p.at.x)
    close(q.at.z, p.at.z, rtol=1e-14)
    for ours, theirs in ((view.a_bar, p.at.a_bar), (view.s, p.at.s), (view.gradient(p.y), p.at.gradient(p.y))):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, rtol=1e-13)
    assert relative(vector(q.at.weights), vector(p.at.weights)) > 0.1


@INVERTIBLE
@STRUCTURES
def test_logistic_or_tanh_is_all_the_same_to_undamped_kfac_and_not_to_gradient_descent(likelihood, structure):
    p, q, network = logistic_and_tanh(likelihood)
    fac, fac_new = (kr.kronecker_factors(at, reach=1) for at in (p.at, q.at))
    step, step_new = structure(fac).solve(p.at.gradient(p.y)), structure(fac_new).solve(q.at.gradient(p.y))
    close(vector(step_new), vector(network.to_original(step)), rtol=lost(structure, fac, fac_new))
    assert relative(vector(q.at.gradient(p.y)), vector(network.to_original(p.at.gradient(p.y)))) > 1e-2
    assert_same_path(p, q, structure, rate=0.01)
    assert relative(path(q, gradient_descent, 0.1), path(p, gradient_descent, 0.1)) > 1e-2


@INVERTIBLE
@STRUCTURES
def test_an_affine_map_of_the_inputs_does_not_matter_to_undamped_kfac(likelihood, structure):
    p, rng = problem(likelihood, SIZES, N=100, seed=3), np.random.default_rng(7)
    M, c = np.eye(3) + 0.4 * rng.standard_normal((3, 3)), rng.standard_normal(3)
    Omega = np.block([[M, c[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    first = np.linalg.solve(Omega.T, p.at.weights[0].T).T
    q = p._replace(at=p.model.at([first, *p.at.weights[1:]], p.at.x @ M.T + c))
    close(q.at.z, p.at.z, rtol=1e-13)
    assert_same_path(p, q, structure, rate=0.03)
    assert relative(path(q, gradient_descent, 0.1), path(p, gradient_descent, 0.1)) > 1e-3


# Precision


@WHITENING
def test_float32_stays_float32_in_the_roots(white):
    p = problem("gaussian", SIZES, N=100, seed=3, dtype=np.float32)
    for roots in white(kr.kronecker_factors(p.at)):
        assert {R.dtype for R in roots} == {np.dtype(np.float32)}


def test_float32_stays_float32_in_the_passes():
    p = problem("gaussian", SIZES, N=100, seed=3, dtype=np.float32)
    q = transformed(p, *random_map(p.shapes))
    at = q.model.at([W.astype(np.float32) for W in q.at.weights], p.at.x)
    assert {at.z.dtype, at.gradient(p.y)[0].dtype, kr.kronecker_factors(at).A[0].dtype} == {np.dtype(np.float32)}


# Refusals


@pytest.mark.parametrize(("bad", "message"), [
    (lambda Om, Ph: (Om[:1], Ph), "Omega must hold one array per layer: expected 3, got 1"),
    (lambda Om, Ph: (Om, [*Ph, Ph[0]]), "Phi must hold one array per layer: expected 3, got 4"),
    (lambda Om, Ph: ([Om[0], Om[0][:2], Om[2]], Ph), "Omega[1] must have shape (5, 5), got (2, 4)"),
    (lambda Om, Ph: (Om, [Ph[0], Ph[1], Ph[1]]), "Phi[2] must have shape (2, 2), got (3, 3)"),
    (lambda Om, Ph: ([Om[0], Om[1] * np.nan, Om[2]], Ph), "Omega[1] must be finite: 25 of 25 entries"),
])
def test_maps_that_do_not_fit_are_refused(bad, message):
    network = kr.MLP(SIZES)
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformedMLP(network, *bad(*random_map(network.shapes)))


def test_singular_maps_are_refused():
    p = problem("gaussian", (1, 2), N=3)
    with pytest.raises(np.linalg.LinAlgError):
        transform(p.at.weights, [np.ones((2, 2))], [np.eye(2)])


def dead_input():
    """Return factors of a net with an input that is always 0."""
    p = problem("gaussian", SIZES, N=100, seed=3)
    x = p.at.x.copy()
    x[:, 1] = 0
    return kr.kronecker_factors(p.model.at(p.at.weights, x))


@WHITENING
@pytest.mark.parametrize(("factors", "size"), [(dead_input, "[34] x [34]"),
                                               (lambda: kr.kronecker_factors(problem(sizes=SIZES, N=40).at), "2 x 2")])
def test_factors_without_a_root_are_refused(white, factors, size):
    message = rf"factor [AG] of layer \d \({size}\) is singular to rounding: its smallest eigenvalue is .*; choose"
    with pytest.raises(np.linalg.LinAlgError, match=message):
        white(factors())
