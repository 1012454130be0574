"""The factors against loops over the examples, their merging and averaging, and their error as a covariance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import fisher, kronecker
from kfac_ref.factors import expectations
from tests.problems import close, problem, problems, relative

LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
EXPECTATIONS = ("exact", "sampled", "empirical")
DEEP = (4, 3, 5, 2)


def pairs(L):
    return [(i, j) for i in range(L) for j in range(L)]


def targets(p, M=3, seed=0):
    return p.at.sample(np.random.default_rng(seed), M)


def estimate(expectation, p, reach=math.inf):
    """Return the factors and the stack of columns that they come from."""
    if expectation == "exact":
        return kr.kronecker_factors(p.at, reach=reach), kr.exact(p.at)
    if expectation == "sampled":
        return kr.kronecker_factors(p.at, kr.sampled(targets(p)), reach=reach), kr.sampled(targets(p))(p.at)
    return kr.kronecker_factors(p.at, kr.empirical(p.y), reach=reach), kr.empirical(p.y)(p.at)


def by_loop(left, right):
    """Return the mean over examples n of the sum over columns k of left[k][n] right[k][n]^T."""
    total = 0
    for u, v in zip(left, right, strict=True):
        for n in range(len(u)):
            total = total + np.outer(u[n], v[n])
    return total / len(left[0])


def arrays(factors):
    """Return every array of the factors."""
    far = [X[key] for X in (factors.A_far, factors.G_far) for key in sorted(X)]
    return [*factors.A, *factors.G, *factors.A_cross, *factors.G_cross, *far]


def assert_close(ours, theirs, rtol=1e-13):
    for a, b in zip(arrays(ours), arrays(theirs), strict=True):
        close(a, b, rtol)


# The definition


@given(problems())
def test_exact_factors_by_a_loop_over_examples_and_outcomes_of_the_root(p):
    fac = kr.kronecker_factors(p.at)
    a, g = p.at.a_bar, p.at.backward(np.moveaxis(p.at.model.likelihood.fisher_root(p.at.z), 2, 0))
    for i, j in pairs(len(p.shapes)):
        A, G = fac.A[i, j], fac.G[i, j]
        close(A, by_loop([a[i]], [a[j]]), rtol=1e-12)
        close(G, by_loop(g[i], g[j]), rtol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("expectation", ["sampled", "empirical"])
def test_sampled_and_empirical_factors_by_a_loop_over_examples(likelihood, expectation):
    p = problem(likelihood, DEEP)
    fac = kr.kronecker_factors(p.at, kr.sampled(targets(p))) if expectation == "sampled" else kr.kronecker_factors(p.at, kr.empirical(p.y))
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
        close(kr.kronecker_factors(p.at).pair(i, j)[1], by_loop(g[i], g[j]), rtol=1e-13)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_pairs_are_one_matrix_and_its_transpose(expectation):
    fac, _ = estimate(expectation, problem(sizes=DEEP))
    assert len(fac) == 3
    assert fac.n == 7
    for i, j in pairs(3):
        for ours, theirs in zip(fac.A[i, j], fac.G[i, j], fac.A[j, i], fac.G[j, i], strict=True):
            np.testing.assert_array_equal(ours, theirs.T)
    assert fac.A[1, 1], fac.G[1, 1] == (fac.A[1], fac.G[1])
    assert fac.A[1, 2], fac.G[1, 2] == (fac.A_cross[1], fac.G_cross[1])
    assert fac.A[0, 2], fac.G[0, 2] == (fac.A_far[0, 2], fac.G_far[0, 2])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_three_expectations_differ_in_G_alone(likelihood):
    p = problem(likelihood)
    exact, sampled, empirical = (estimate(e, p)[0] for e in EXPECTATIONS)
    for fac in (sampled, empirical):
        np.testing.assert_array_equal(fac.A[1], exact.A[1])
        assert relative(fac.G[0], exact.G[0]) > 1e-2
        assert relative(fac.G[1], exact.G[1]) > 1e-2


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_draw_is_the_empirical_factors_at_it_and_draws_are_averaged(likelihood):
    p = problem(likelihood, DEEP)
    ys = targets(p, 4)
    each = [kr.kronecker_factors(p.at, kr.empirical(y)) for y in ys]
    assert_close(kr.kronecker_factors(p.at, kr.sampled(ys[0])), each[0])
    for k, mean in enumerate(arrays(kr.kronecker_factors(p.at, kr.sampled(ys)))):
        close(mean, sum(arrays(fac)[k] for fac in each) / 4, rtol=1e-13)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_stack_of_labels_is_refused(likelihood):
    p = problem(likelihood)
    with pytest.raises(ValueError, match="y must be one target for each of the 7 examples, got a stack of 2"):
        kr.kronecker_factors(p.at, kr.empirical(np.stack([p.y, p.y])))


# Reach


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("reach", [0, 1, 2, math.inf])
def test_reach_is_how_far_apart_the_pairs_are(expectation, reach):
    p = problem(sizes=(4, 3, 5, 2, 3))
    fac, _ = estimate(expectation, p, reach)
    everything, _ = estimate(expectation, p)
    for i, j in pairs(4):
        if abs(i - j) <= reach:
            for ours, theirs in zip(fac.A[i, j], fac.G[i, j], everything.A[i, j], everything.G[i, j], strict=True):
                close(ours, theirs, rtol=1e-14)
        else:
            with pytest.raises(ValueError, match=f"no cross factors of layers {min(i, j)} and {max(i, j)}: estimate "
                                                 f"them with reach={abs(i - j)} or more"):
                fac.A[i, j], fac.G[i, j]


@pytest.mark.parametrize("reach", [-1, math.nan])
def test_a_reach_that_is_none_is_refused(reach):
    with pytest.raises(ValueError, match="reach must be at least 0, got"):
        kr.kronecker_factors(problem().at, reach=reach)


# Memory and precision


@pytest.mark.parametrize("expectation", ["exact", "sampled"])
@pytest.mark.parametrize("per_chunk", [1, 2])
def test_columns_sent_back_a_few_at_a_time_change_nothing(monkeypatch, expectation, per_chunk):
    p = problem(sizes=(4, 3, 5, 5))
    before, _ = estimate(expectation, p)
    monkeypatch.setattr(expectations, "CHUNK_BYTES", per_chunk * 7 * 5 * 8)
    passes = []
    send_back = kr.Point.backward
    monkeypatch.setattr(kr.Point, "backward", lambda at, dz: passes.append(len(dz)) or send_back(at, dz))
    after, columns = estimate(expectation, p)
    assert len(passes) == math.ceil(len(columns) / per_chunk)
    assert_close(after, before, rtol=1e-14)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_float32_stays_float32(expectation):
    p, p32 = problem(sizes=DEEP), problem(sizes=DEEP, dtype=np.float32)
    fac, fac32 = estimate(expectation, p)[0], estimate(expectation, p32._replace(y=p.y))[0]
    for kept in (fac32, fac32.merge(fac32), kr.RunningAverage().update(fac32).update(fac32).factors):
        assert {a.dtype for a in arrays(kept)} == {np.dtype(np.float32)}
        if expectation != "sampled":
            assert_close(kept, fac, rtol=1e-5)                      # float32 has 7 digits, and a few roundings follow


# Merging


def parts(p, *counts):
    """Return the factors of consecutive parts of a batch."""
    ends = np.cumsum((0, *counts))
    return [kr.kronecker_factors(p.at.take(slice(a, b)), kr.empirical(p.y[a:b])) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_merged_parts_are_the_factors_of_the_whole(likelihood):
    p = problem(likelihood, DEEP, N=9)
    first, second, third = parts(p, 1, 2, 6)
    whole = kr.kronecker_factors(p.at, kr.empirical(p.y))
    for merged in (first.merge(second).merge(third), third.merge(first.merge(second))):
        assert_close(merged, whole)
        assert merged.n == 9


def test_a_plain_mean_of_parts_is_not_the_whole():
    p = problem(sizes=DEEP, N=9)
    first, second = parts(p, 2, 7)
    plain = first.combine(second, lambda a, b: (a + b) / 2, 9)
    for ours, whole in zip(arrays(plain), arrays(kr.kronecker_factors(p.at, kr.empirical(p.y))), strict=True):
        assert relative(ours, whole) > 1e-2


def shapes_that_do_not_fit():
    p = problem(sizes=DEEP)
    return {"widths": kr.kronecker_factors(problem(sizes=(4, 3, 6, 2)).at), "layers": kr.kronecker_factors(problem().at),
            "neighbours": kr.kronecker_factors(p.at, reach=0), "far": kr.kronecker_factors(p.at, reach=1)}


@pytest.mark.parametrize("what", ["widths", "layers", "neighbours", "far"])
def test_factors_of_another_network_or_reach_are_refused(what):
    fac, other = kr.kronecker_factors(problem(sizes=DEEP).at), shapes_that_do_not_fit()[what]
    for one, another in ((fac, other), (other, fac)):
        with pytest.raises(ValueError, match="other must hold factors of the same shapes and pairs: expected"):
            one.merge(another)
    with pytest.raises(ValueError, match="other must hold factors of the same shapes and pairs: expected"):
        kr.RunningAverage().update(fac).update(other)


# The running average


def batches(count):
    return [kr.kronecker_factors(problem(sizes=DEEP, N=2 + seed % 3, seed=seed).at) for seed in range(count)]


def test_the_running_average_by_an_explicit_loop():
    average, expected = kr.RunningAverage(), None
    for k, fac in enumerate(batches(30), start=1):
        average = average.update(fac)
        epsilon = min(1 - 1 / k, 0.95)
        new = arrays(fac)
        expected = new if k == 1 else [epsilon * o + (1 - epsilon) * a for o, a in zip(expected, new, strict=True)]
        assert average.k == k
        for ours, theirs in zip(arrays(average.factors), expected, strict=True):
            close(ours, theirs, rtol=1e-13)


def test_the_first_batch_is_taken_whole_the_first_twenty_evenly_and_then_old_ones_fade():
    average, seen = kr.RunningAverage(), batches(21)
    assert_close(average.update(seen[0]).factors, seen[0])
    for fac in seen[:20]:
        average = average.update(fac)
    means = [np.mean(each, axis=0) for each in zip(*(arrays(fac) for fac in seen[:20]), strict=True)]
    last = average.update(seen[20])
    everything = [np.mean(each, axis=0) for each in zip(*(arrays(fac) for fac in seen), strict=True)]
    for ours, mean, faded, even in zip(arrays(average.factors), means, arrays(last.factors), everything, strict=True):
        close(ours, mean, rtol=1e-13)
        assert relative(faded, even) > 1e-5
    assert last.factors.n == sum(fac.n for fac in seen)


def test_another_ceiling():
    first, second, third = batches(3)
    average = kr.RunningAverage(ceiling=0.25).update(first).update(second).update(third)
    close(average.factors.A[1], 0.25 * (0.25 * first.A[1] + 0.75 * second.A[1]) + 0.75 * third.A[1], rtol=1e-13)


def test_an_update_leaves_the_old_average_as_it_was():
    first, second = batches(2)
    average = kr.RunningAverage().update(first)
    before = [a.copy() for a in arrays(average.factors)]
    average.update(second)
    assert average.k == 1
    for ours, old in zip(arrays(average.factors), before, strict=True):
        np.testing.assert_array_equal(ours, old)
    with pytest.raises(AttributeError):
        average.k = 2
    with pytest.raises(AttributeError):
        first.n = 2


def test_an_empty_average_has_no_factors():
    with pytest.raises(ValueError, match="the running average holds no factors yet: call update first"):
        _ = kr.RunningAverage().factors


# Samples against the expectation


def z_scores(at, rng, draws=400, factor=1.0):
    """Return the z-scores of the sampled G, cross factors included, against `factor` times the exact ones."""
    exact = kr.kronecker_factors(at)
    samples = [kr.kronecker_factors(at, kr.sampled(y)) for y in at.sample(rng, draws)]
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
    fac, columns = estimate(expectation, p)
    a, g = p.at.a_bar, p.at.backward(columns)
    for i, j in pairs(3):
        Gamma = np.stack([kronecker.vec(by_loop(g[i][:, [n]], g[j][:, [n]])) for n in range(7)])
        Alpha = np.stack([kronecker.vec(np.outer(a[i][n], a[j][n])) for n in range(7)])
        covariance = Gamma.T @ (Alpha - Alpha.mean(axis=0)) / 7
        A, G = fac.A[i, j], fac.G[i, j]
        error = kr.fisher_block(p.at, i, j, columns) - np.kron(A, G)
        R = kronecker.rearrange(error, A.shape, G.shape)
        assert np.abs(R - covariance).max() < 1e-13 * np.abs(Gamma).max() * np.abs(Alpha).max()
        if (likelihood, expectation, i, j) != ("gaussian", "exact", 2, 2):       # there Gamma is constant
            assert np.abs(R).max() > 1e-3 * np.abs(A).max() * np.abs(G).max()
