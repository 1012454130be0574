"""When the Kronecker factors give the Fisher itself, and when not; and what the error is made of."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref.curvature import BlockDiagonal, Exact, ExactBlockDiagonal, Full
from tests.problems import close, expectations, problem, relative

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
SIZES = (3, 4, 3, 2)


def factors(at, expectation=kr.exact):
    """Return the factors of all pairs of layers."""
    return kr.kronecker_factors(at, expectation, reach=math.inf)


def errors(at, expectation=kr.exact):
    """Return the relative errors of all blocks of F̃ against the Fisher of the same expectation, (L, L)."""
    fac = factors(at, expectation)
    layers = range(len(fac))
    return np.array([[relative(np.kron(fac.A[i, j], fac.G[i, j]), kr.fisher_block(at, i, j, expectation))
                      for j in layers] for i in layers])


# One example, or the same one many times


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("hidden", ["tanh", "softplus", "identity"])
def test_with_one_example_every_expectation_is_exact(likelihood, hidden):
    p = problem(likelihood, SIZES, hidden, N=1)
    for expectation in expectations(p).values():
        assert errors(p.at, expectation).max() < 1e-13


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_one_example_the_expectations_still_differ(likelihood):
    p = problem(likelihood, SIZES, N=1)
    exact, sampled, empirical = (Full(factors(p.at, e)).dense() for e in expectations(p).values())
    for one, another in itertools.combinations((exact, sampled, empirical), 2):
        assert relative(one, another) > 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_one_example_the_structures_agree(likelihood):
    p = problem(likelihood, SIZES, N=1)
    fac = factors(p.at)
    close(Full(fac, 0.1).dense(), Exact(p.at, 0.1).dense(), rtol=1e-13)
    close(BlockDiagonal(fac).dense(), ExactBlockDiagonal(p.at).dense(), rtol=1e-13)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_several_examples_no_expectation_is_exact(likelihood):
    p = problem(likelihood, SIZES)
    for name, expectation in expectations(p).items():
        apart = errors(p.at, expectation)
        if (likelihood, name) == ("gaussian", "exact"):
            apart[-1, -1] = 1                                       # exact: see the last layer below
        assert apart.min() > 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_with_identical_inputs_it_is_exact(likelihood):
    p = problem(likelihood, SIZES, N=5)
    same = p._replace(at=p.model.at(p.at.weights, np.repeat(p.at.x[:1], 5, axis=0)))
    for expectation in expectations(same).values():                 # the inputs are the same, not the labels
        assert errors(same.at, expectation).max() < 1e-13
    one = factors(same.at.take([0]), kr.empirical(same.y[:1]))
    assert relative(factors(same.at, expectation).G[0], one.G[0]) > 1e-3


# Deep linear networks with the square loss


@pytest.mark.parametrize("N", [1, 2, 9, 40])
def test_a_deep_linear_net_with_square_loss_is_exact_in_all_blocks(N):
    p = problem("gaussian", SIZES, "identity", N)
    assert errors(p.at).max() < 1e-13
    close(Full(factors(p.at)).dense(), kr.fisher_matrix(p.at), rtol=1e-13)


def test_a_deep_linear_net_is_not_exact_with_labels_with_samples_or_with_another_loss():
    p = problem("gaussian", SIZES, "identity")
    for name in ("sampled", "empirical"):
        assert errors(p.at, expectations(p)[name]).min() > 1e-3
    for likelihood in ("categorical", "bernoulli"):
        assert errors(problem(likelihood, SIZES, "identity").at).min() > 1e-3


# The last layer with the square loss


@pytest.mark.parametrize("hidden", ["tanh", "logistic", "relu", "softplus", "identity"])
def test_the_last_layer_is_exact_with_square_loss(hidden):
    p = problem("gaussian", SIZES, hidden, N=9)
    assert errors(p.at)[2, 2] < 1e-13
    np.testing.assert_array_equal(factors(p.at).G[2], np.eye(2))
    if hidden != "identity":
        assert errors(p.at).ravel()[:-1].min() > 1e-3          # the layers below, and the blocks beside


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_the_last_layer_is_not_exact_with_the_other_losses(likelihood):
    p = problem(likelihood, SIZES, N=9)
    assert errors(p.at)[2, 2] > 1e-3


# Type 1 enumerated is type 2


def enumerated(p):
    """Return F and F̃ from gradients at every outcome, example by example, weighted by its probability."""
    F, A, G, N = 0, [], [], len(p.at)
    L = len(p.shapes)
    for n in range(N):
        one = p.at.take([n])
        for y, probability in zip(*one.model.likelihood.outcomes(one.z), strict=True):
            F = F + probability[0] / N * kr.fisher_matrix(one, kr.empirical(y))
            fac = factors(one, kr.empirical(y))
            A.append([[probability[0] / N * fac.A[i, j] for j in range(L)] for i in range(L)])
            G.append([[probability[0] / N * fac.G[i, j] for j in range(L)] for i in range(L)])

    def total(X, i, j):
        return sum(x[i][j] for x in X)

    return F, np.block([[np.kron(total(A, i, j), total(G, i, j)) for j in range(L)] for i in range(L)])


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_enumerating_the_outcomes_is_the_closed_form_full_and_factored(likelihood):
    p = problem(likelihood, SIZES)
    F, F_tilde = enumerated(p)
    close(kr.fisher_matrix(p.at), F, rtol=1e-13)
    close(Full(factors(p.at)).dense(), F_tilde, rtol=1e-13)
    assert relative(F_tilde, F) > 1e-1                              # neither of the two comparisons is idle
    assert relative(kr.fisher_matrix(p.at, kr.empirical(p.y)), F) > 1e-1


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
    F, fac = kr.fisher_block(p.at, i, j), factors(p.at)
    F_tilde = np.kron(fac.A[i, j], fac.G[i, j])
    by_cumulants = cumulant_error(p, i, j, *p.at.model.likelihood.outcomes(p.at.z))
    assert np.abs(F - F_tilde - by_cumulants).max() < 1e-13 * np.abs(F).max()
    assert np.abs(by_cumulants).max() > 1e-2 * np.abs(F).max()


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_the_error_in_cumulants_needs_the_models_own_expectation(likelihood):
    p = problem(likelihood, SMALL, N=5)
    F, fac = kr.fisher_block(p.at, 0, 0, kr.empirical(p.y)), factors(p.at, kr.empirical(p.y))
    F_tilde = np.kron(fac.A[0], fac.G[0])
    by_cumulants = cumulant_error(p, 0, 0, p.y[None], np.ones((1, 5)))
    assert np.abs(F - F_tilde - by_cumulants).max() > 1e-3 * np.abs(F).max()
