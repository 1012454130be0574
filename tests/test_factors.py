"""The factors against loops over the examples, their merging and averaging, and their error as a covariance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import kronecker
from kfac_ref.expectations import gradients
from kfac_ref.factors import as_factors
from kfac_ref.factors import kronecker as kronecker_module
from tests.problems import close, expectations, problem, problems, relative

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
EXPECTATIONS = ("exact", "sampled", "empirical")
DEEP = (4, 3, 5, 2)


def pairs(L):
    return [(i, j) for i in range(L) for j in range(L)]


def targets(p, M=3, seed=0):
    return p.at.sample(np.random.default_rng(seed), M)


def factors(at, expectation=kr.exact, reach=math.inf):
    return kr.kronecker_factors(at, expectation, reach)


def by_loop(left, right):
    """Return the mean over examples n of the sum over columns k of left[k][n] right[k][n]^T."""
    total = 0
    for u, v in zip(left, right, strict=True):
        for n in range(len(u)):
            total = total + np.outer(u[n], v[n])
    return total / len(left[0])


def arrays(fac):
    """Return every array of factors or moments."""
    mappings = (fac.arrays,) if isinstance(fac, kr.Moments) else (fac.A, fac.G)
    return [X[key] for X in mappings for key in sorted(X)]


def assert_close(ours, theirs, rtol=1e-13):
    for a, b in zip(arrays(ours), arrays(theirs), strict=True):
        close(a, b, rtol)


# The definition


@given(problems())
def test_exact_factors_by_a_loop_over_examples_and_outcomes_of_the_root(p):
    fac = factors(p.at)
    a, g = p.at.a_bar, p.at.backward(np.moveaxis(p.at.model.likelihood.fisher_root(p.at.z), 2, 0))
    for i, j in pairs(len(p.shapes)):
        A, G = fac.A[i, j], fac.G[i, j]
        close(A, by_loop([a[i]], [a[j]]), rtol=1e-12)
        close(G, by_loop(g[i], g[j]), rtol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("expectation", ["sampled", "empirical"])
def test_sampled_and_empirical_factors_by_a_loop_over_examples(likelihood, expectation):
    p = problem(likelihood, DEEP)
    fac = factors(p.at, expectations(p)[expectation])
    ys = targets(p) if expectation == "sampled" else p.y[None]
    g = [p.at.backward(p.at.model.likelihood.gradient(p.at.z, y)) for y in ys]
    for i, j in pairs(3):
        A, G = fac.A[i, j], fac.G[i, j]
        close(A, by_loop([p.at.a_bar[i]], [p.at.a_bar[j]]), rtol=1e-13)
        close(G, by_loop([gm[i] for gm in g], [gm[j] for gm in g]) / len(ys), rtol=1e-13)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_exact_G_is_the_expectation_over_the_outcomes(likelihood):
    p = problem(likelihood, DEEP)
    ys, probabilities = p.at.model.likelihood.outcomes(p.at.z)
    g = p.at.backward(np.sqrt(probabilities)[..., None] * p.at.model.likelihood.gradient(p.at.z, ys))
    for i, j in pairs(3):
        close(factors(p.at).G[i, j], by_loop(g[i], g[j]), rtol=1e-13)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_pairs_are_one_matrix_and_its_transpose(expectation):
    p = problem(sizes=DEEP)
    fac = factors(p.at, expectations(p)[expectation])
    assert (len(fac), fac.n, fac.shapes) == (3, 7, p.shapes)
    for X in (fac.A, fac.G):
        assert sorted(X) == [(i, j) for i, j in pairs(3) if i <= j]
        for i, j in pairs(3):
            np.testing.assert_array_equal(X[i, j], X[j, i].T)
        for i in range(3):
            assert X[i] is X[i, i]
    assert [(A is fac.A[i], G is fac.G[i]) for i, (A, G) in enumerate(fac.layers)] == [(True, True)] * 3


def test_layers_and_pairs_that_are_not_there_are_refused():
    fac = kr.kronecker_factors(problem(sizes=DEEP).at)
    for key, words in (((0, 2), "layers 0 and 2"), (3, "3"), (-1, "-1"), ("A", "'A'")):
        with pytest.raises(ValueError, match=f"factors hold nothing for {words}: there are 3 layers"):
            fac.A[key]


def test_factors_and_moments_are_written_in_one_line():
    at = problem(sizes=(4, 5, 3)).at
    assert repr(factors(at)) == "Factors of 2 layers (A ⊗ G: 5 x 5, 6 x 3; 1 cross factors) from 7 examples"
    assert repr(kr.factors.second_moments(at)) == "Moments of 7 examples: A 0 0, A 1 1, G 0 0, G 1 1"


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_three_expectations_differ_in_G_alone(likelihood):
    p = problem(likelihood)
    exact, sampled, empirical = (factors(p.at, e) for e in expectations(p).values())
    for fac in (sampled, empirical):
        np.testing.assert_array_equal(fac.A[1], exact.A[1])
        assert relative(fac.G[0], exact.G[0]) > 1e-2
        assert relative(fac.G[1], exact.G[1]) > 1e-2


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_draw_is_the_empirical_factors_at_it_and_draws_are_averaged(likelihood):
    p = problem(likelihood, DEEP)
    ys = targets(p, 4)
    each = [factors(p.at, kr.empirical(y)) for y in ys]
    assert_close(factors(p.at, kr.sampled(ys[0])), each[0])
    for k, mean in enumerate(arrays(factors(p.at, kr.sampled(ys)))):
        close(mean, sum(arrays(fac)[k] for fac in each) / 4, rtol=1e-13)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_stack_of_labels_is_refused(likelihood):
    p = problem(likelihood)
    with pytest.raises(ValueError, match="y must hold one target for each example, got a stack of 2"):
        kr.kronecker_factors(p.at, kr.empirical(np.stack([p.y, p.y])))


# Reach


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("reach", [0, 1, 2, math.inf])
def test_reach_is_how_far_apart_the_pairs_are(expectation, reach):
    p = problem(sizes=(4, 3, 5, 2, 3))
    fac = factors(p.at, expectations(p)[expectation], reach)
    everything = factors(p.at, expectations(p)[expectation])
    for i, j in pairs(4):
        if abs(i - j) <= reach:
            close(fac.A[i, j], everything.A[i, j], rtol=1e-14)
            close(fac.G[i, j], everything.G[i, j], rtol=1e-14)
        else:
            with pytest.raises(ValueError, match=f"factors hold nothing for layers {i} and {j}: .* cross factors of "
                                                 r"layers i and j need an estimate with a reach of at least \|i - j\|"):
                fac.G[i, j]


def test_the_default_reach_is_that_of_the_block_diagonal_structure():
    fac = kr.kronecker_factors(problem(sizes=DEEP).at)
    assert sorted(fac.A) == sorted(fac.G) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("reach", [-1, math.nan])
def test_a_reach_that_is_none_is_refused(reach):
    with pytest.raises(ValueError, match="reach must be at least 0, got"):
        kr.kronecker_factors(problem().at, reach=reach)


# Memory and precision


@pytest.mark.parametrize("expectation", ["exact", "sampled"])
@pytest.mark.parametrize("per_chunk", [1, 2])
def test_columns_sent_back_a_few_at_a_time_change_nothing(monkeypatch, expectation, per_chunk):
    p = problem(sizes=(4, 3, 5, 5))
    before = factors(p.at, expectations(p)[expectation])
    monkeypatch.setattr(kronecker_module, "CHUNK_BYTES", per_chunk * 7 * 5 * 8)
    passes = []
    send_back = kr.Point.backward
    monkeypatch.setattr(kr.Point, "backward", lambda at, dz: passes.append(len(dz)) or send_back(at, dz))
    after = factors(p.at, expectations(p)[expectation])
    assert len(passes) == math.ceil(len(expectations(p)[expectation](p.at)) / per_chunk)
    assert_close(after, before, rtol=1e-14)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_float32_stays_float32(expectation):
    p, p32 = problem(sizes=DEEP), problem(sizes=DEEP, dtype=np.float32)
    fac, fac32 = (factors(q.at, expectations(q._replace(y=p.y))[expectation]) for q in (p, p32))
    moments = kr.factors.second_moments(p32.at, expectations(p32._replace(y=p.y))[expectation], math.inf)
    average = kr.RunningAverage().update(moments).update(moments)
    for kept in (fac32, fac32.merge(fac32), as_factors(moments.merge(moments)), as_factors(average.moments)):
        assert {a.dtype for a in arrays(kept)} == {np.dtype(np.float32)}
        if expectation != "sampled":
            assert_close(kept, fac, rtol=1e-5)                      # float32 has 7 digits, and a few roundings follow


# Merging


def parts(p, *counts):
    """Return the factors of consecutive parts of a batch."""
    ends = np.cumsum((0, *counts))
    return [factors(p.at.take(slice(a, b)), kr.empirical(p.y[a:b])) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_merged_parts_are_the_factors_of_the_whole(likelihood):
    p = problem(likelihood, DEEP, N=9)
    first, second, third = parts(p, 1, 2, 6)
    whole = factors(p.at, kr.empirical(p.y))
    for merged in (first.merge(second).merge(third), third.merge(first.merge(second))):
        assert_close(merged, whole)
        assert merged.n == 9


def test_a_plain_mean_of_parts_is_not_the_whole():
    p = problem(sizes=DEEP, N=9)
    first, second = parts(p, 2, 7)
    plain = first.combine(lambda a, b: (a + b) / 2, second)
    for ours, whole in zip(arrays(plain), arrays(factors(p.at, kr.empirical(p.y))), strict=True):
        assert relative(ours, whole) > 1e-2


def shapes_that_do_not_fit():
    p = problem(sizes=DEEP)
    return {"widths": factors(problem(sizes=(4, 3, 6, 2)).at), "layers": factors(problem().at),
            "neighbours": factors(p.at, reach=0), "far": factors(p.at, reach=1)}


@pytest.mark.parametrize("what", ["widths", "layers", "neighbours", "far"])
def test_factors_of_another_network_or_reach_are_refused(what):
    fac, other = factors(problem(sizes=DEEP).at), shapes_that_do_not_fit()[what]
    for one, another in ((fac, other), (other, fac)):
        with pytest.raises(ValueError, match="moments must have the same names and shapes: expected"):
            one.merge(another)


def test_moments_of_another_estimator_are_refused_by_the_average():
    at = problem(sizes=DEEP).at
    average = kr.RunningAverage().update(kr.factors.second_moments(at))
    for other in (kr.factors.second_moments(at, reach=1), kr.factors.gradient_moments(at)):
        with pytest.raises(ValueError, match="moments must have the same names and shapes: expected"):
            average.update(other)


# The running average


def batches(count):
    return [kr.factors.second_moments(problem(sizes=DEEP, N=2 + seed % 3, seed=seed).at, reach=math.inf)
            for seed in range(count)]


def test_the_running_average_by_an_explicit_loop():
    average, expected = kr.RunningAverage(), None
    for k, fac in enumerate(batches(30), start=1):
        average = average.update(fac)
        epsilon = min(1 - 1 / k, 0.95)
        new = arrays(fac)
        expected = new if k == 1 else [epsilon * o + (1 - epsilon) * a for o, a in zip(expected, new, strict=True)]
        assert average.k == k
        for ours, theirs in zip(arrays(average.moments), expected, strict=True):
            close(ours, theirs, rtol=1e-13)


def test_the_first_batch_is_taken_whole_the_first_twenty_evenly_and_then_old_ones_fade():
    average, seen = kr.RunningAverage(), batches(21)
    assert_close(average.update(seen[0]).moments, seen[0])
    for fac in seen[:20]:
        average = average.update(fac)
    means = [np.mean(each, axis=0) for each in zip(*(arrays(fac) for fac in seen[:20]), strict=True)]
    last = average.update(seen[20])
    everything = [np.mean(each, axis=0) for each in zip(*(arrays(fac) for fac in seen), strict=True)]
    for ours, mean, faded, even in zip(arrays(average.moments), means, arrays(last.moments), everything, strict=True):
        close(ours, mean, rtol=1e-13)
        assert relative(faded, even) > 1e-5
    assert last.moments.n == sum(fac.n for fac in seen)


def test_another_ceiling():
    first, second, third = batches(3)
    average = kr.RunningAverage(ceiling=0.25).update(first).update(second).update(third)
    one, two, three = (fac.arrays["A", 1, 1] for fac in (first, second, third))
    close(average.moments.arrays["A", 1, 1], 0.25 * (0.25 * one + 0.75 * two) + 0.75 * three, rtol=1e-13)


def test_an_update_leaves_the_old_average_as_it_was():
    first, second = batches(2)
    average = kr.RunningAverage().update(first)
    before = [a.copy() for a in arrays(average.moments)]
    average.update(second)
    assert average.k == 1
    for ours, old in zip(arrays(average.moments), before, strict=True):
        np.testing.assert_array_equal(ours, old)
    with pytest.raises(AttributeError):
        average.k = 2
    with pytest.raises(AttributeError):
        first.n = 2


def test_factors_are_refused_by_the_average():
    with pytest.raises(ValueError, match=r"moments must be Moments, such as second_moments\(at\), got Factors"):
        kr.RunningAverage().update(factors(problem(sizes=DEEP).at))


def test_an_empty_average_has_no_moments():
    with pytest.raises(ValueError, match="the running average is empty: call update first"):
        _ = kr.RunningAverage().moments


# Samples against the expectation


def z_scores(at, rng, draws=400, factor=1.0):
    """Return the z-scores of the sampled G, cross factors included, against `factor` times the exact ones."""
    exact = factors(at)
    samples = [factors(at, kr.sampled(y)) for y in at.sample(rng, draws)]
    scores = []
    for i, j in pairs(len(exact)):
        drawn = np.stack([fac.G[i, j] for fac in samples])
        error = drawn.std(axis=0, ddof=1) / np.sqrt(draws)
        scores.append(((drawn.mean(axis=0) - factor * exact.G[i, j]) / error).ravel())
    return np.concatenate(scores)


# The entries are strongly correlated, so the largest |z| follows no table. It was simulated: 1000 repetitions of this
# experiment with other seeds, of which these are the 99.9 % quantiles of the largest |z| (the medians are 1.8, 1.0
# and 1.7).
MAX_Z = {"gaussian": 4.5, "categorical": 3.4, "bernoulli": 3.5}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sampled_factors_are_unbiased(likelihood):
    at = problem(likelihood, (2, 3, 3, 2), N=4, seed=5).at
    assert np.abs(z_scores(at, np.random.default_rng(0))).max() < MAX_Z[likelihood]
    assert np.abs(z_scores(at, np.random.default_rng(0), factor=4 / 3)).max() > MAX_Z[likelihood]


# The error of the approximation


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_the_error_of_every_block_is_a_covariance(likelihood, expectation):
    p = problem(likelihood, DEEP)
    e = expectations(p)[expectation]
    fac, a, g = factors(p.at, e), p.at.a_bar, gradients(p.at, e)
    for i, j in pairs(3):
        Gamma = np.stack([kronecker.vec(by_loop(g[i][:, [n]], g[j][:, [n]])) for n in range(7)])
        Alpha = np.stack([kronecker.vec(np.outer(a[i][n], a[j][n])) for n in range(7)])
        covariance = Gamma.T @ (Alpha - Alpha.mean(axis=0)) / 7
        A, G = fac.A[i, j], fac.G[i, j]
        error = kr.fisher_block(p.at, i, j, e) - np.kron(A, G)
        R = kronecker.rearrange(error, A.shape, G.shape)
        assert np.abs(R - covariance).max() < 1e-13 * np.abs(Gamma).max() * np.abs(Alpha).max()
        if (likelihood, expectation, i, j) != ("gaussian", "exact", 2, 2):       # there Gamma is constant
            assert np.abs(R).max() > 1e-3 * np.abs(A).max() * np.abs(G).max()
