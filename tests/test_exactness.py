"""When the Kronecker factors give the Fisher itself, and when not; and what the error is made of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import fisher
from kfac_ref.curvature import BlockDiagonal, Exact, ExactBlockDiagonal, Full
from tests.problems import close, problem, relative

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
SIZES = (3, 4, 3, 2)


def error(at, fac, i, j, columns=None):
    """Return the relative error of block (i, j) of F~ against the Fisher of the same expectation."""
    return relative(np.kron(*fac.pair(i, j)), kr.fisher_block(at, i, j, columns))


def errors(at, fac, columns=None):
    """Return the relative errors of all blocks, (L, L)."""
    layers = range(len(fac))
    return np.array([[error(at, fac, i, j, columns) for j in layers] for i in layers])


def three_expectations(p, draws=3):
    """Yield the factors of each expectation, with the columns of the Fisher of that same expectation."""
    targets = p.at.sample(np.random.default_rng(0), draws)
    yield kr.exact_factors(p.at), fisher.exact_columns(p.at)
    yield kr.sampled_factors(p.at, targets), fisher.sampled_columns(p.at, targets)
    yield kr.empirical_factors(p.at, p.y), fisher.empirical_columns(p.at, p.y)


# One example, or the same one many times


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("hidden", ["tanh", "softplus", "identity"])
def test_with_one_example_every_expectation_is_exact(likelihood, hidden):
    p = problem(likelihood, SIZES, hidden, N=1)
    for fac, columns in three_expectations(p):
        assert errors(p.at, fac, columns).max() < 1e-13


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_one_example_the_expectations_still_differ(likelihood):
    p = problem(likelihood, SIZES, N=1)
    exact, sampled, empirical = (Full(fac).dense() for fac, _ in three_expectations(p))
    for one, another in itertools.combinations((exact, sampled, empirical), 2):
        assert relative(one, another) > 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_one_example_the_structures_agree(likelihood):
    p = problem(likelihood, SIZES, N=1)
    fac = kr.exact_factors(p.at)
    close(Full(fac, 0.1).dense(), Exact(p.at, 0.1).dense(), rtol=1e-13)
    close(BlockDiagonal(fac).dense(), ExactBlockDiagonal(p.at).dense(), rtol=1e-13)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_several_examples_no_expectation_is_exact(likelihood):
    p = problem(likelihood, SIZES)
    for k, (fac, columns) in enumerate(three_expectations(p)):
        apart = errors(p.at, fac, columns)
        if likelihood == "gaussian" and k == 0:
            apart[-1, -1] = 1                                       # exact: see the last layer below
        assert apart.min() > 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_identical_inputs_it_is_exact(likelihood):
    p = problem(likelihood, SIZES, N=5)
    same = p._replace(at=p.model.at(p.at.weights, np.repeat(p.at.x[:1], 5, axis=0)))
    for fac, columns in three_expectations(same):                   # the inputs are the same, not the labels
        assert errors(same.at, fac, columns).max() < 1e-13
    assert relative(fac.G[0], kr.empirical_factors(same.at.take([0]), same.y[:1]).G[0]) > 1e-3


# Deep linear networks with the square loss


@pytest.mark.parametrize("N", [1, 2, 9, 40])
def test_a_deep_linear_net_with_square_loss_is_exact_in_all_blocks(N):
    p = problem("gaussian", SIZES, "identity", N)
    fac = kr.exact_factors(p.at)
    assert errors(p.at, fac).max() < 1e-13
    close(Full(fac).dense(), kr.exact_fisher(p.at), rtol=1e-13)


def test_a_deep_linear_net_is_not_exact_with_labels_with_samples_or_with_another_loss():
    p = problem("gaussian", SIZES, "identity")
    _, sampled, empirical = three_expectations(p)
    for fac, columns in (sampled, empirical):
        assert errors(p.at, fac, columns).min() > 1e-3
    for likelihood in ("categorical", "bernoulli"):
        q = problem(likelihood, SIZES, "identity")
        assert errors(q.at, kr.exact_factors(q.at)).min() > 1e-3


# The last layer with the square loss


@pytest.mark.parametrize("hidden", ["tanh", "logistic", "relu", "softplus", "identity"])
def test_the_last_layer_is_exact_with_square_loss(hidden):
    p = problem("gaussian", SIZES, hidden, N=9)
    fac = kr.exact_factors(p.at)
    assert error(p.at, fac, 2, 2) < 1e-13
    np.testing.assert_array_equal(fac.G[2], np.eye(2))
    if hidden != "identity":
        assert errors(p.at, fac).ravel()[:-1].min() > 1e-3          # the layers below, and the blocks beside


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_the_last_layer_is_not_exact_with_the_other_losses(likelihood):
    p = problem(likelihood, SIZES, N=9)
    assert error(p.at, kr.exact_factors(p.at), 2, 2) > 1e-3


# Type 1 enumerated is type 2


def enumerated(p):
    """Return F and F~ from gradients at every outcome, example by example, weighted by its probability."""
    F, A, G, N = 0, [], [], len(p.at)
    L = len(p.shapes)
    for n in range(N):
        one = p.at.take([n])
        for y, probability in zip(*one.model.likelihood.outcomes(one.z), strict=True):
            F = F + probability[0] / N * kr.empirical_fisher(one, y)
            fac = kr.empirical_factors(one, y)
            A.append([[probability[0] / N * fac.pair(i, j)[0] for j in range(L)] for i in range(L)])
            G.append([[probability[0] / N * fac.pair(i, j)[1] for j in range(L)] for i in range(L)])

    def total(X, i, j):
        return sum(x[i][j] for x in X)

    return F, np.block([[np.kron(total(A, i, j), total(G, i, j)) for j in range(L)] for i in range(L)])


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_enumerating_the_outcomes_is_the_closed_form_full_and_factored(likelihood):
    p = problem(likelihood, SIZES)
    F, F_tilde = enumerated(p)
    close(kr.exact_fisher(p.at), F, rtol=1e-13)
    close(Full(kr.exact_factors(p.at)).dense(), F_tilde, rtol=1e-13)
    assert relative(F_tilde, F) > 1e-1                              # neither of the two comparisons is idle
    assert relative(kr.empirical_fisher(p.at, p.y), F) > 1e-1


# The error of each entry in joint cumulants


def partitions(items):
    """Yield all partitions of a list."""
    if not items:
        yield []
        return
    first, *rest = items
    for partition in partitions(rest):
        yield [[first], *partition]
        for k, block in enumerate(partition):
            yield [*partition[:k], [first, *block], *partition[k + 1:]]


def cumulant(probabilities, *variables):
    """Return the joint cumulant of random variables, given by their values at each outcome."""
    total = 0.0
    for partition in partitions(list(range(len(variables)))):
        b = len(partition)
        means = [np.sum(probabilities * np.prod([variables[k] for k in block], axis=0)) for block in partition]
        total += (-1) ** (b - 1) * [1, 1, 2, 6][b - 1] * np.prod(means)
    return total


def joint(p, i, j, ys, weights):
    """Return a_bar and g of two layers over all (outcome, example) pairs, and the probability of each pair."""
    g = p.at.backward(p.at.model.likelihood.gradient(p.at.z, ys))
    a = [np.broadcast_to(a_bar, (len(ys), *a_bar.shape)) for a_bar in p.at.a_bar]
    flat = [v.reshape(-1, v.shape[-1]).T for v in (a[i], a[j], g[i], g[j])]
    return *flat, weights.ravel() / len(p.at)


def cumulant_error(p, i, j, ys, weights):
    """Return the block whose entries are kappa(a1,a2,g1,g2) + E[a1] kappa(a2,g1,g2) + E[a2] kappa(a1,g1,g2)."""
    a_i, a_j, g_i, g_j, w = joint(p, i, j, ys, weights)
    rows, columns = (list(itertools.product(a, g)) for a, g in ((a_i, g_i), (a_j, g_j)))
    return np.array([[cumulant(w, a1, a2, g1, g2) + w @ a1 * cumulant(w, a2, g1, g2) + w @ a2 * cumulant(w, a1, g1, g2)
                      for a2, g2 in columns] for a1, g1 in rows])


SMALL = (2, 2, 2)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize(("i", "j"), [(0, 0), (0, 1), (1, 1)])
def test_the_error_in_cumulants(likelihood, i, j):
    p = problem(likelihood, SMALL, N=5)
    F, F_tilde = kr.fisher_block(p.at, i, j), np.kron(*kr.exact_factors(p.at).pair(i, j))
    by_cumulants = cumulant_error(p, i, j, *p.at.model.likelihood.outcomes(p.at.z))
    assert np.abs(F - F_tilde - by_cumulants).max() < 1e-13 * np.abs(F).max()
    assert np.abs(by_cumulants).max() > 1e-2 * np.abs(F).max()


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_the_error_in_cumulants_needs_the_models_own_expectation(likelihood):
    p = problem(likelihood, SMALL, N=5)
    F = kr.fisher_block(p.at, 0, 0, fisher.empirical_columns(p.at, p.y))
    F_tilde = np.kron(*kr.empirical_factors(p.at, p.y).pair(0, 0))
    by_cumulants = cumulant_error(p, 0, 0, p.y[None], np.ones((1, 5)))
    assert np.abs(F - F_tilde - by_cumulants).max() > 1e-3 * np.abs(F).max()
