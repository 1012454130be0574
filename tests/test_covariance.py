"""The error of a layer's factorization as a covariance, its spectrum, and its cumulants one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import checks, kronecker
from kfac_ref.analysis import covariance_error, cumulant_terms, error_spectrum
from tests.problems import close, expectations, problem, problems, relative
from tests.test_exactness import cumulant, joint

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
EXPECTATIONS = ("exact", "sampled", "empirical")
EACH = pytest.mark.parametrize("likelihood", LIKELIHOODS)
DEEP = (3, 4, 3, 2)
SMALL = (2, 2, 2)


def block_and_product(p, i, expectation=kr.exact):
    """Return F_ii and A ⊗ G."""
    fac = kr.kronecker_factors(p.at, expectation)
    return kr.fisher_block(p.at, i, i, expectation), np.kron(fac.A[i], fac.G[i])


# The covariance


def assert_it_is_the_error(p, expectation):
    for i, (m, n) in enumerate(p.shapes):
        F, product = block_and_product(p, i, expectation)
        R = kronecker.rearrange(F - product, (n, n), (m, m))
        covariance = covariance_error(p.at, i, expectation)
        assert covariance.shape == (m * m, n * n)
        # F and the product are rounded, and what they share cancels.
        assert np.abs(covariance - R).max() <= 1e-13 * np.abs(F).max()


@given(problems())
def test_it_is_the_rearranged_error_in_every_expectation(p):
    for expectation in expectations(p).values():
        assert_it_is_the_error(p, expectation)


@EACH
@pytest.mark.parametrize("name", EXPECTATIONS)
def test_it_is_the_rearranged_error_where_there_is_one(likelihood, name):
    p = problem(likelihood, DEEP, N=9)
    expectation = expectations(p)[name]
    assert_it_is_the_error(p, expectation)
    for i in range(3):
        if (likelihood, name, i) != ("gaussian", "exact", 2):        # exact: see the last layer below
            block, _ = block_and_product(p, i)
            assert np.abs(covariance_error(p.at, i, expectation)).max() > 1e-3 * np.abs(block).max()


@EACH
def test_the_expectations_differ(likelihood):
    p = problem(likelihood, DEEP)
    errors = [covariance_error(p.at, 0, expectation) for expectation in expectations(p).values()]
    for one, another in itertools.combinations(errors, 2):
        assert relative(one, another) > 1e-2


@EACH
def test_it_is_the_covariance_by_a_loop_over_examples(likelihood):
    p = problem(likelihood, DEEP)
    g, N = p.at.backward(kr.exact(p.at))[1], len(p.at)
    Alpha = [kronecker.vec(np.outer(a, a)) for a in p.at.a_bar[1]]
    Gamma = [kronecker.vec(sum(np.outer(column[n], column[n]) for column in g)) for n in range(N)]
    expected = sum(np.outer(G, A) for G, A in zip(Gamma, Alpha, strict=True)) / N
    expected = expected - np.outer(sum(Gamma), sum(Alpha)) / N**2
    close(covariance_error(p.at, 1), expected, rtol=1e-12)


def nearly_equal_examples(distance):
    """Return a point whose examples differ by very little, so that its error is of size distance^2."""
    p = problem("categorical", DEEP, N=6)
    return p._replace(at=p.model.at(p.at.weights, p.at.x[:1] + distance * p.at.x))


def in_long_double(p, i):
    g = p.at.backward(kr.exact(p.at))[i].astype(np.longdouble)
    a = p.at.a_bar[i].astype(np.longdouble)
    Alpha = np.einsum("na,nb->nab", a, a).reshape(len(a), -1)
    Gamma = np.einsum("knp,knq->npq", g, g).reshape(len(a), -1)
    return (Gamma - Gamma.mean(axis=0)).T @ (Alpha - Alpha.mean(axis=0)) / len(a)


def test_a_small_error_keeps_digits_that_the_difference_has_lost():
    p = nearly_equal_examples(1e-5)
    F, product = block_and_product(p, 1)
    expected = in_long_double(p, 1).astype(float)
    assert np.abs(expected).max() < 1e-9 * np.abs(F).max()
    # Deviations of 1e-5 of numbers with 16 digits have 11.
    assert relative(covariance_error(p.at, 1), expected) < 1e-9
    m, n = p.shapes[1]
    assert relative(kronecker.rearrange(F - product, (n, n), (m, m)), expected) > 1e-7


# Its spectrum


@given(problems())
def test_the_spectrum_adds_up_to_the_squared_error(p):
    for expectation, (i, (m, n)) in itertools.product(expectations(p).values(), enumerate(p.shapes)):
        F, product = block_and_product(p, i, expectation)
        spectrum = error_spectrum(p.at, i, expectation)
        assert spectrum.shape == (min(m * m, n * n),)
        assert (np.diff(spectrum) <= 0).all()
        assert abs(np.sqrt(spectrum @ spectrum) - np.linalg.norm(F - product)) <= 1e-13 * np.linalg.norm(F)


@EACH
def test_the_spectrum_interlaces_with_that_of_the_block(likelihood):
    p = problem(likelihood, DEEP, N=9)
    for i, (m, n) in enumerate(p.shapes):
        *_, singular = kronecker.nearest_product(block_and_product(p, i)[0], (n, n), (m, m))
        error, rounding = error_spectrum(p.at, i), 1e-14 * singular[0]
        # The two matrices differ by one of rank one (Weyl).
        assert (singular[1:] <= error[:-1] + rounding).all()
        assert (error[1:] <= singular[:-1] + rounding).all()


@EACH
def test_the_nearest_product_is_nearer_than_the_factors(likelihood):
    p = problem(likelihood, DEEP, N=9)
    for i, (m, n) in enumerate(p.shapes):
        F, _ = block_and_product(p, i)
        A, G, singular = kronecker.nearest_product(F, (n, n), (m, m))
        nearest, ours = np.linalg.norm(F - np.kron(A, G)), np.linalg.norm(error_spectrum(p.at, i))
        assert abs(nearest - np.linalg.norm(singular[1:])) < 1e-13 * singular[0]
        if (likelihood, i) == ("gaussian", 2):
            assert max(nearest, ours) < 1e-13 * singular[0]
        else:
            assert nearest < (1 - 1e-3) * ours
        if i < 2:                                                   # of two classes, Gamma has one pattern in the last
            assert nearest > 1e-3 * ours


# Where there is no error


@EACH
@pytest.mark.parametrize("name", EXPECTATIONS)
def test_it_is_zero_for_one_example(likelihood, name):
    p = problem(likelihood, DEEP, N=1)
    for i in range(3):
        assert not covariance_error(p.at, i, expectations(p)[name]).any()
        for term in cumulant_terms(p.at, i):
            assert not term.any()


def test_it_is_zero_in_the_last_layer_with_square_loss():
    p = problem("gaussian", DEEP, N=9)
    assert not covariance_error(p.at, 2).any()                      # G is the identity, example by example
    assert not error_spectrum(p.at, 2).any()
    for i in range(2):
        assert relative(*block_and_product(p, i)) > 1e-3


def test_it_is_zero_in_a_linear_net_with_square_loss():
    p = problem("gaussian", DEEP, "identity", N=9)
    for i in range(3):
        # g does not vary from one example to the next; its mean is rounded.
        assert np.abs(covariance_error(p.at, i)).max() < 1e-15 * np.abs(block_and_product(p, i)[0]).max()
    assert np.abs(covariance_error(p.at, 0, kr.empirical(p.y))).max() > 1e-3


# The cumulants


def outcomes(p):
    """Return targets that have the moments of the model's own up to the second order, and their probabilities.

    No cumulant here holds more than two g. Those of a Gaussian are z +- sqrt(C) e_c.
    """
    if not isinstance(p.model.likelihood, kr.Gaussian):
        return p.model.likelihood.outcomes(p.at.z)
    N, C = p.at.z.shape
    ys = np.stack([p.at.z + sign * np.sqrt(C) * e for e in np.eye(C) for sign in (1, -1)])
    return ys, np.full((2 * C, N), 1 / (2 * C))


def brute_force(p, i, ys, weights):
    """Return the three terms by sums over all partitions, entry by entry."""
    a, _, g, _, w = joint(p, i, i, ys, weights)
    pairs = list(itertools.product(a, g))
    entries = [[(cumulant(w, a1, a2, g1, g2), w @ a1 * cumulant(w, a2, g1, g2), w @ a2 * cumulant(w, a1, g1, g2))
                for a2, g2 in pairs] for a1, g1 in pairs]
    return np.moveaxis(np.array(entries), 2, 0)


def assert_terms(terms, expected, scale):
    for ours, theirs in zip(terms, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-13 * scale
        assert np.abs(theirs).max() > 1e-4 * scale


@EACH
@pytest.mark.parametrize("i", [0, 1])
def test_each_term_by_sums_over_partitions(likelihood, i):
    p = problem(likelihood, SMALL, N=5)
    terms, expected = cumulant_terms(p.at, i), brute_force(p, i, *outcomes(p))
    if (likelihood, i) == ("gaussian", 1):
        assert max(np.abs(t).max() for t in (*terms, *expected)) < 1e-14        # exact: there is no error
    else:
        assert_terms(terms, expected, np.abs(kr.fisher_block(p.at, i, i)).max())


@EACH
@pytest.mark.parametrize("i", [0, 1])
def test_each_term_at_labels_by_sums_over_partitions(likelihood, i):
    p = problem(likelihood, SMALL, N=5)
    expected = brute_force(p, i, p.y[None], np.ones((1, 5)))
    assert_terms(cumulant_terms(p.at, i, p.y), expected, np.abs(expected).max())


@given(problems())
def test_the_terms_add_up_to_the_error(p):
    for i in range(len(p.shapes)):
        F, product = block_and_product(p, i)
        assert np.abs(sum(cumulant_terms(p.at, i)) - (F - product)).max() <= 1e-13 * np.abs(F).max()


@EACH
def test_the_terms_add_up_to_the_error_where_there_is_one(likelihood):
    p = problem(likelihood, DEEP, N=9)
    for i in range(3):
        F, product = block_and_product(p, i)
        total = sum(cumulant_terms(p.at, i))
        assert np.abs(total - (F - product)).max() < 1e-13 * np.abs(F).max()
        if (likelihood, i) != ("gaussian", 2):
            assert np.abs(total).max() > 1e-3 * np.abs(F).max()


@EACH
@pytest.mark.parametrize("i", [0, 1])
def test_at_labels_the_terms_do_not_add_up_while_the_covariance_holds(likelihood, i):
    p = problem(likelihood, DEEP, N=9)
    F, product = block_and_product(p, i, kr.empirical(p.y))
    (m, n), error = p.shapes[i], F - product
    assert relative(sum(cumulant_terms(p.at, i, p.y)), error) > 1e-3
    assert relative(covariance_error(p.at, i, kr.empirical(p.y)),
                    kronecker.rearrange(error, (n, n), (m, m))) < 1e-12


@EACH
def test_nothing_varies_together_with_the_one_of_the_bias(likelihood):
    p = problem(likelihood, DEEP, N=9)
    for i, (m, n) in enumerate(p.shapes[:2]):
        fourth, first, second = (term.reshape(n, m, n, m) for term in cumulant_terms(p.at, i))
        # A cumulant with a constant among its variables is 0: of a1 = 1 only E[a1] kappa(a2, g1, g2) is left.
        assert not fourth[-1].any()
        assert not fourth[:, :, -1].any()
        assert not second[-1].any()
        assert not first[:, :, -1].any()
        assert min(np.abs(first[-1, :, :-1]).max(), np.abs(second[:-1, :, -1]).max()) > 1e-3
        close(first[-1].transpose(1, 0, 2), second[:, :, -1], rtol=1e-14)


def test_float32_stays_float32():
    p, p32 = (problem("categorical", DEEP, dtype=dtype) for dtype in (np.float64, np.float32))
    for compute in (covariance_error, error_spectrum, lambda at, i: sum(cumulant_terms(at, i))):
        assert compute(p32.at, 1).dtype == np.float32
        close(compute(p32.at, 1), compute(p.at, 1), rtol=1e-5)      # float32 has 7 digits, and a few roundings follow


# Refusals


@pytest.mark.parametrize("compute", [covariance_error, error_spectrum, cumulant_terms])
@pytest.mark.parametrize("i", [-1, 2])
def test_layers_that_are_not_there_are_refused(compute, i):
    with pytest.raises(ValueError, match=rf"i must be a layer 0\.\.1, got {i}"):
        compute(problem().at, i)


def test_cumulants_that_take_too_much_memory_are_refused_by_their_bytes():
    p = problem()
    size = 25 * 25 * 8
    with pytest.raises(ValueError, match=f"a term of the cumulants is 25 x 25 and takes {size:,} bytes, more than "
                                         f"max_bytes = {size - 1:,}"):
        cumulant_terms(p.at, 0, max_bytes=size - 1)
    assert cumulant_terms(p.at, 0, max_bytes=size).fourth.shape == (25, 25)


@pytest.mark.parametrize("compute", [covariance_error, error_spectrum])
def test_outer_products_that_take_too_much_memory_are_refused_by_their_bytes(monkeypatch, compute):
    p = problem(sizes=(1, 2), N=9)
    size = 9 * (4 + 4) * 8
    monkeypatch.setattr(checks, "DENSE_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"the outer products of the examples is 9 x 8 and takes {size:,} bytes"):
        compute(p.at, 0)
    monkeypatch.setattr(checks, "DENSE_BYTES", size)
    assert compute(p.at, 0).size


@pytest.mark.parametrize("compute", [covariance_error, error_spectrum])
def test_a_covariance_that_takes_too_much_memory_is_refused(monkeypatch, compute):
    p = problem(N=1)
    monkeypatch.setattr(checks, "DENSE_BYTES", 25 * 25 * 8 - 1)      # of (m n)^2 entries, however few the examples
    with pytest.raises(ValueError, match="more than max_bytes = 4,999"):
        compute(p.at, 0)


@EACH
def test_a_stack_of_labels_is_refused(likelihood):
    p = problem(likelihood)
    with pytest.raises(ValueError, match=r"y must .* got a stack of 2"):
        cumulant_terms(p.at, 0, np.stack([p.y, p.y]))
