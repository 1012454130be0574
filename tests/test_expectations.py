"""What is sent back: the columns of the three expectations, of one draw, and of functions of a user's own."""

from __future__ import annotations

import itertools
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import checks
from kfac_ref.checks import Array
from kfac_ref.expectations import OneDraw, columns, gradients
from tests.problems import LIKELIHOODS, Problem, close, expectations, problem, problems, relative

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))


def second_moment(stack: Array) -> Array:
    """Return the sum over columns of the outer products, example by example, (N, C, C)."""
    return np.einsum("knc,knd->ncd", stack, stack)


@given(problems())
def test_the_columns_of_the_exact_expectation_are_a_root_of_F_R(p: Problem) -> None:
    stack = kr.exact(p.at)
    assert stack.shape == (p.at.z.shape[1], *p.at.z.shape)
    close(second_moment(stack), p.model.likelihood.fisher(p.at.z), 1e-13)


@EACH
def test_the_columns_of_a_sample_are_gradients_over_the_root_of_their_number(likelihood: str) -> None:
    p = problem(likelihood)
    targets = p.at.sample(np.random.default_rng(0), 4)
    stack = kr.sampled(targets)(p.at)
    for k in range(4):
        close(2 * stack[k], p.model.likelihood.gradient(p.at.z, targets[k]), 1e-15)
    close(kr.sampled(targets[0])(p.at), 2 * stack[:1], 1e-15)               # one draw, without the leading axis


@EACH
def test_the_column_of_labels_is_their_gradient(likelihood: str) -> None:
    p = problem(likelihood)
    close(kr.empirical(p.y)(p.at), p.model.likelihood.gradient(p.at.z, p.y)[None], 1e-15)
    carrying = kr.Point(p.model, p.at.weights, p.at.forward, p.y)
    np.testing.assert_array_equal(kr.empirical()(carrying), kr.empirical(p.y)(p.at))


@EACH
def test_no_two_expectations_are_the_same(likelihood: str) -> None:
    p = problem(likelihood)
    moments = [second_moment(e(p.at)) for e in (*expectations(p).values(), kr.one_draw)]
    for one, other in itertools.combinations(moments, 2):
        assert relative(one, other) > 1e-2


# One draw


@EACH
def test_one_draw_is_a_sample_of_the_model_and_a_function_of_seed_and_step(likelihood: str) -> None:
    p = problem(likelihood, N=30)
    for seed, step in ((0, 0), (5, 0), (0, 2)):
        e = OneDraw(seed, step)
        targets = p.at.sample(np.random.default_rng((seed, step, 0)))
        np.testing.assert_array_equal(e(p.at), kr.empirical(targets)(p.at))
        np.testing.assert_array_equal(e(p.at), e(p.at))
    assert kr.one_draw == OneDraw(0, 0)
    for one, other in itertools.combinations([OneDraw(0, 0), OneDraw(5, 0), OneDraw(0, 2)], 2):
        assert relative(one(p.at), other(p.at)) > 1e-2


@EACH
def test_the_mean_of_many_single_draws_is_exact(likelihood: str) -> None:
    at = problem(likelihood, N=1, seed=5).at
    moments = np.stack([second_moment(OneDraw(seed)(at))[0] for seed in range(2000)])
    mean, error = moments.mean(axis=0), moments.std(axis=0, ddof=1) / np.sqrt(len(moments))
    apart = np.abs(mean - at.model.likelihood.fisher(at.z)[0])
    varies = error > 1e-12
    # Of nine entries, strongly correlated, no |z| of 4.5 is to be expected.
    assert (apart[varies] < 4.5 * error[varies]).all()
    assert (apart[~varies] < 1e-12).all()


def test_parts_of_a_data_set_draw_their_own_numbers() -> None:
    p = problem("gaussian", N=8)
    same = np.repeat(p.at.x[:1], 8, axis=0)
    first, second = (part.point() for part in p.model.parts(p.at.weights, same, size=4))
    assert relative(kr.one_draw(first), kr.one_draw(second)) > 0.1
    again = p.model.parts(p.at.weights, same, size=4)[1].point()
    np.testing.assert_array_equal(kr.one_draw(again), kr.one_draw(second))


# The rows of a data set


@EACH
@pytest.mark.parametrize("draws", [None, 3])
def test_targets_of_the_whole_data_are_cut_by_the_rows_of_a_part(likelihood: str, draws: int | None) -> None:
    p = problem(likelihood, N=9)
    targets = p.at.sample(np.random.default_rng(0), draws)
    for whole in (kr.sampled(targets), kr.empirical(p.y)):
        cut = [whole(part.point()) for part in p.model.parts(p.at.weights, p.at.x, p.y, size=4)]
        close(np.concatenate(cut, axis=1), whole(p.at), 1e-14)


@EACH
@pytest.mark.parametrize("rows", [[2, 0], slice(1, 3), np.array([True, False, True, False])])
def test_some_rows_of_a_part_know_where_they_lie_in_the_data(likelihood: str, rows: Any) -> None:
    p = problem(likelihood, N=9)
    part = p.model.parts(p.at.weights, p.at.x, p.y, size=4)[1].point()      # examples 4 to 7
    some = part.take(rows)
    place = np.arange(4, 8)[rows]
    for e in (kr.sampled(p.at.sample(np.random.default_rng(0), 3)), kr.empirical(p.y)):
        close(e(some), e(p.at)[:, place], 1e-14)
    close(kr.empirical()(some), kr.empirical(p.y)(p.at)[:, place], 1e-14)
    close(kr.empirical(p.y)(some.take([1])), kr.empirical(p.y)(p.at)[:, place[[1]]], 1e-14)


# Functions of one's own, and what is refused


def test_gradients_are_the_columns_sent_back_each_on_its_own() -> None:
    p = problem("categorical", (4, 5, 3))
    for e in expectations(p).values():
        singly = zip(*(p.at.backward(column) for column in e(p.at)), strict=True)
        for ours, theirs in zip(gradients(p.at, e), singly, strict=True):
            close(ours, np.stack(theirs), 1e-14)


def test_a_function_of_one_s_own_serves_everywhere() -> None:
    p = problem("categorical", (4, 5, 3))

    def doubled(at: kr.Point) -> Array:
        return np.sqrt(2) * kr.exact(at)

    close(kr.fisher_matrix(p.at, doubled), 2 * kr.fisher_matrix(p.at), 1e-14)
    close(kr.kronecker_factors(p.at, doubled).G[0], 2 * kr.kronecker_factors(p.at).G[0], 1e-14)


def test_columns_are_in_the_precision_of_the_weights() -> None:
    p = problem(dtype=np.float32)
    for e in (*expectations(p).values(), kr.one_draw, lambda at: [at.z.astype(float)]):
        assert columns(p.at, e).dtype == np.float32


@pytest.mark.parametrize(("stack", "shape"), [(np.ones((7, 3)), (7, 3)), (np.ones((2, 7, 2)), (2, 7, 2)),
                                              (np.ones((2, 6, 3)), (2, 6, 3)), (np.ones((0, 7, 3)), (0, 7, 3)),
                                              (1.0, ())])
def test_a_stack_of_another_shape_is_refused(stack: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"expectation must return a stack (K, 7, 3), got {shape}")):
        columns(problem().at, lambda at: stack)


@pytest.mark.parametrize("wrong", [None, "exact", np.ones((1, 7, 3))])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expectation must be a function of a point, such as exact"):
        columns(problem().at, wrong)


def test_labels_that_a_point_does_not_carry_are_refused() -> None:
    with pytest.raises(ValueError, match="y is missing: give labels or targets, or a point that carries them"):
        kr.empirical()(problem().at)


def test_a_stack_of_roots_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DENSE_BYTES", 7 * 3 * 3 * 8 - 1)
    with pytest.raises(ValueError, match="the stack of the columns of F_R's roots is 21 x 3 and takes 504 bytes"):
        kr.exact(problem().at)


def test_expectations_are_pickled() -> None:
    p = problem()
    for e in (*expectations(p).values(), OneDraw(3, 4)):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(e))(p.at), e(p.at))
    assert pickle.loads(pickle.dumps(kr.exact)) is kr.exact                 # `is` decides where F_R has a closed form
