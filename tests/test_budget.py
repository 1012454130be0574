"""The error budget against dense linear algebra, and the steps of it that change nothing where K-FAC is exact."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import checks, params
from kfac_ref.analysis import error_budget, judge
from kfac_ref.curvature import BlockDiagonal, BlockTridiagonal, Curvature, EigenDamped, Exact, ExactBlockDiagonal
from kfac_ref.factors import as_factors
from tests.problems import close, problem, relative

EACH = pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "bernoulli"])
DEEP = (3, 4, 3, 2)
DAMPING = 0.1
NAMES = ["exact", "layers apart", "expectation factorized", "sampled targets", "averaged and stale", "factored damping"]
#: An angle of 0 is the arc cosine of 1 - eps, which is sqrt(2 eps) radians.
ANGLE = 2e-6


def draw(p, seed=0):
    return p.at.sample(np.random.default_rng(seed))


def budget(p, average=None, damping=DAMPING):
    return error_budget(p.at, p.y, damping, draw(p), average)


def numbers(judgement):
    """Return all but the name, and the change, which is that from another matrix."""
    return judgement.error, judgement.angle, judgement.length, judgement.decrease


@dataclasses.dataclass(frozen=True, eq=False)
class Multiple(Curvature):
    """A multiple of another matrix."""

    c: float
    other: Curvature
    shapes = property(lambda self: self.other.shapes)
    dtype = property(lambda self: self.other.dtype)

    def product(self, V):
        return params.scale(self.c, self.other.product(V))

    def solve(self, V):
        return params.scale(1 / self.c, self.other.solve(V))


# One matrix


@EACH
def test_the_exact_matrix_is_without_fault(likelihood):
    p = problem(likelihood, DEEP)
    (found,) = judge(p.at, p.y, DAMPING, [("itself", Exact(p.at, DAMPING))])
    assert (found.name, found.error) == ("itself", 0)
    assert math.isnan(found.change)
    assert found.angle < ANGLE
    np.testing.assert_allclose([found.length, found.decrease], 1, rtol=1e-14, atol=0)


def by_dense_algebra(p, C):
    """Return error, angle, length and decrease with every matrix formed."""
    F, grad = kr.fisher_matrix(p.at), params.flatten(p.at.gradient(p.y))
    H = F + DAMPING * np.eye(len(F))
    step, natural = np.linalg.solve(C, grad), np.linalg.solve(H, grad)
    cosine = step @ natural / np.linalg.norm(step) / np.linalg.norm(natural)
    # The best multiple of a step s lowers M by (grad^T s)^2 / (2 s^T H s).
    decrease, best = ((grad @ s) ** 2 / (s @ H @ s) / 2 for s in (step, natural))
    return (relative(C, H), np.degrees(np.arccos(cosine)), np.linalg.norm(step) / np.linalg.norm(natural),
            decrease / best)


def structures(p):
    fac = kr.kronecker_factors(p.at, reach=1)
    return {"BlockDiagonal": BlockDiagonal(fac, DAMPING), "BlockTridiagonal": BlockTridiagonal(fac, DAMPING),
            "EigenDamped": EigenDamped(fac, DAMPING), "ExactBlockDiagonal": ExactBlockDiagonal(p.at, DAMPING)}


@EACH
@pytest.mark.parametrize("name", structures(problem(sizes=DEEP)))
def test_another_matrix_by_dense_algebra(likelihood, name):
    p = problem(likelihood, DEEP, weight_decay=0.03)
    C = structures(p)[name]
    (found,) = judge(p.at, p.y, DAMPING, [(name, C)])
    # Solves at this damping lose two or three digits; the angle is of some degrees, so its cosine loses two.
    np.testing.assert_allclose(numbers(found), by_dense_algebra(p, C.dense()), rtol=1e-10, atol=0)
    assert found.error > 1e-2
    assert found.angle > 1
    assert abs(found.length - 1) > 1e-3
    assert found.decrease < 1 - 1e-3


@EACH
def test_no_matrix_does_better_than_the_exact_one(likelihood):
    for seed in range(5):
        p = problem(likelihood, DEEP, seed=seed)
        for found in judge(p.at, p.y, DAMPING, list(structures(p).items())):
            assert 0 < found.decrease < 1


@pytest.mark.parametrize("c", [0.25, 3.0, -2.0])
def test_a_multiple_of_the_natural_gradient_decreases_M_as_much(c):
    p = problem("categorical", DEEP)
    (found,) = judge(p.at, p.y, DAMPING, [("", Multiple(c, Exact(p.at, DAMPING)))])
    np.testing.assert_allclose([found.error, found.length, found.decrease], [abs(c - 1), 1 / abs(c), 1], rtol=1e-12,
                               atol=0)
    assert abs(found.angle - (0 if c > 0 else 180)) < ANGLE


def test_the_angle_of_a_parallel_direction_is_zero_to_all_its_digits():
    for seed in range(5):
        p = problem("categorical", DEEP, seed=seed)
        (found,) = judge(p.at, p.y, DAMPING, [("", Multiple(3.0, Exact(p.at, DAMPING)))])
        assert found.angle < 1e-12                                  # the arc cosine of 1 - eps would be 1e-6


def test_changes_are_distances_from_one_matrix_to_the_next():
    p = problem("bernoulli", DEEP)
    named = list(structures(p).items())
    found = judge(p.at, p.y, DAMPING, named)
    scale = np.linalg.norm(Exact(p.at, DAMPING).dense())
    assert math.isnan(found[0].change)
    for (_, before), (_, after), judgement in zip(named[:-1], named[1:], found[1:], strict=True):
        expected = np.linalg.norm(after.dense() - before.dense()) / scale
        np.testing.assert_allclose(judgement.change, expected, rtol=1e-13, atol=0)
        assert expected > 1e-2


def test_without_dense_matrices_none_is_formed_and_the_steps_are_judged_alike():
    class Unseen(EigenDamped):
        def dense(self, max_bytes=None):
            raise AssertionError("formed")

    p = problem("categorical", DEEP)
    fac = kr.kronecker_factors(p.at)
    with_errors = judge(p.at, p.y, DAMPING, [("one", EigenDamped(fac, DAMPING)), ("two", BlockDiagonal(fac, DAMPING))])
    without = judge(p.at, p.y, DAMPING, [("one", Unseen(fac, DAMPING)), ("two", BlockDiagonal(fac, DAMPING))],
                    dense=False)
    for one, another in zip(with_errors, without, strict=True):
        assert math.isnan(another.error)
        assert math.isnan(another.change)
        assert (one.name, *numbers(one)[1:]) == (another.name, *numbers(another)[1:])
    with pytest.raises(AssertionError, match="formed"):
        judge(p.at, p.y, DAMPING, [("", Unseen(fac, DAMPING))])


# The budget


def by_hand(p, average):
    exact, sampled = kr.kronecker_factors(p.at), kr.kronecker_factors(p.at, kr.sampled(draw(p)))
    matrices = [Exact(p.at, DAMPING), ExactBlockDiagonal(p.at, DAMPING), EigenDamped(exact, DAMPING),
                EigenDamped(sampled, DAMPING), EigenDamped(average, DAMPING), BlockDiagonal(average, DAMPING)]
    return judge(p.at, p.y, DAMPING, list(zip(NAMES, matrices, strict=True)))


def averaged(p):
    """Return factors in use: those of three draws at other weights, averaged."""
    average, rng = kr.RunningAverage(), np.random.default_rng(5)
    for _ in range(3):
        elsewhere = p.model.at([W + 0.3 * rng.standard_normal(W.shape) for W in p.at.weights], p.at.x)
        average = average.update(kr.factors.second_moments(elsewhere, kr.sampled(elsewhere.sample(rng))))
    return as_factors(average.moments)


@EACH
def test_six_rows_in_order_equal_the_structures_judged_directly(likelihood):
    p = problem(likelihood, DEEP)
    rows = budget(p, averaged(p))
    assert [row.name for row in rows] == NAMES
    for row, expected in zip(rows, by_hand(p, averaged(p)), strict=True):
        np.testing.assert_allclose(dataclasses.astuple(row)[1:], dataclasses.astuple(expected)[1:], rtol=1e-12, atol=0)


@EACH
def test_every_step_of_a_general_net_costs_something(likelihood):
    p = problem(likelihood, DEEP)
    rows = budget(p, averaged(p))
    assert min(row.change for row in rows[1:]) > 1e-2
    for one, another in itertools.pairwise(rows):
        assert abs(one.angle - another.angle) > 1e-2


@EACH
def test_errors_and_changes_obey_the_triangle_inequality(likelihood):
    p = problem(likelihood, DEEP)
    for before, after in itertools.pairwise(budget(p, averaged(p))):
        assert abs(after.error - before.error) <= after.change * (1 + 1e-12)
        assert after.change <= (before.error + after.error) * (1 + 1e-12)


@EACH
def test_leaving_out_the_cross_blocks_costs_what_they_hold(likelihood):
    p = problem(likelihood, DEEP)
    F, blocks = kr.fisher_matrix(p.at), ExactBlockDiagonal(p.at).dense()
    squares = np.linalg.norm(F) ** 2 - np.linalg.norm(blocks) ** 2      # orthogonal: they share no entry
    expected = np.sqrt(squares) / np.linalg.norm(F + DAMPING * np.eye(len(F)))
    np.testing.assert_allclose(budget(p)[1].error, expected, rtol=1e-12, atol=0)


def assert_nothing_changes(before, after):
    assert after.change < 1e-14
    # Solves by another road, at this damping.
    np.testing.assert_allclose(numbers(after)[2:], numbers(before)[2:], rtol=1e-11, atol=0)
    assert abs(after.angle - before.angle) < max(ANGLE, 1e-10 * before.angle)


@EACH
def test_for_one_example_the_factorization_costs_nothing(likelihood):
    p = problem(likelihood, DEEP, N=1)
    rows = budget(p)
    assert_nothing_changes(rows[1], rows[2])
    assert min(row.change for row in (rows[1], rows[3], rows[5])) > 1e-3


@EACH
def test_for_one_layer_taking_layers_apart_costs_nothing(likelihood):
    p = problem(likelihood, (4, 3), N=9)
    rows = budget(p)
    assert_nothing_changes(rows[0], rows[1])
    if likelihood == "gaussian":                                    # the last layer: exact as well
        assert_nothing_changes(rows[1], rows[2])
    else:
        assert rows[2].change > 1e-3


def test_for_a_linear_net_with_square_loss_the_factorization_costs_nothing():
    p = problem("gaussian", DEEP, "identity", N=9)
    rows = budget(p)
    assert_nothing_changes(rows[1], rows[2])
    assert min(row.change for row in (rows[1], rows[3], rows[5])) > 1e-3


@EACH
def test_without_an_average_the_draw_itself_is_in_use(likelihood):
    p = problem(likelihood, DEEP)
    rows = budget(p)
    assert rows[4].change == 0
    assert numbers(rows[4]) == numbers(rows[3])
    in_use = kr.kronecker_factors(p.at, kr.sampled(draw(p)))
    (expected,) = judge(p.at, p.y, DAMPING, [("", BlockDiagonal(in_use, DAMPING))])
    np.testing.assert_allclose(numbers(rows[5]), numbers(expected), rtol=1e-12, atol=0)


def test_an_average_is_seen_in_the_last_two_rows_alone():
    p = problem(sizes=DEEP)
    with_average, without = budget(p, averaged(p)), budget(p)
    for one, another in zip(with_average[:4], without[:4], strict=True):
        assert numbers(one) == numbers(another)
    for one, another in zip(with_average[4:], without[4:], strict=True):
        assert abs(one.error - another.error) > 1e-3


def test_with_much_damping_every_step_is_the_gradient():
    p = problem(sizes=DEEP)
    for row in budget(p, averaged(p), damping=1e6)[:5]:
        assert row.error < 1e-5
        assert row.angle < 1e-3
        close([row.length, row.decrease], [1, 1], rtol=1e-5)


def test_float32_is_judged_to_its_digits():
    single, double = (problem("gaussian", DEEP, dtype=dtype) for dtype in (np.float32, np.float64))
    rows = error_budget(single.at, double.y, DAMPING, draw(double))
    assert rows[0].error == 0
    for ours, expected in zip(rows[1:], budget(double)[1:], strict=True):
        # float32 has 7 digits, and solves at this damping lose two or three.
        np.testing.assert_allclose(numbers(ours), numbers(expected), rtol=1e-3, atol=0)


# Refusals


def test_a_damping_at_which_the_exact_matrix_is_singular_is_refused():
    p = problem(N=1)
    with pytest.raises(ValueError, match=r"the exact Fisher \(43 x 43\) is singular to rounding"):
        judge(p.at, p.y, 0.0, [])
    with pytest.raises(ValueError, match=r"the exact Fisher .* give a larger damping"):
        budget(p, damping=0.0)


def test_negative_damping_is_refused():
    with pytest.raises(ValueError, match="damping must be at least 0, got -1"):
        budget(problem(), damping=-1.0)


def test_bad_labels_and_targets_are_refused():
    p = problem()
    with pytest.raises(ValueError, match=r"y must have shape \(7,\)"):
        error_budget(p.at, p.y[:-1], DAMPING, draw(p))
    with pytest.raises(ValueError, match="y must hold one target for each example, got a stack of 2"):
        judge(p.at, np.stack([p.y, p.y]), DAMPING, [])
    with pytest.raises(ValueError, match=r"must have shape \(7,\)"):
        error_budget(p.at, p.y, DAMPING, draw(p)[:-1])


def test_factors_of_another_network_are_refused():
    other = kr.kronecker_factors(problem(sizes=(4, 6, 3)).at)
    with pytest.raises(ValueError, match="average"):
        budget(problem(), other)


def test_matrices_that_take_too_much_memory_are_refused(monkeypatch):
    p = problem()
    monkeypatch.setattr(checks, "DENSE_BYTES", 43 * 43 * 8 - 1)
    with pytest.raises(ValueError, match="is 43 x 43 and takes 14,792 bytes"):
        budget(p)


def test_a_gradient_of_zero_is_refused():
    p = problem("gaussian")
    with pytest.raises(ValueError, match="gradient"):
        judge(p.at, p.at.z, DAMPING, [("exact", Exact(p.at, DAMPING))])


def test_the_last_row_is_damped_by_gamma_and_the_others_by_lambda_and_eta():
    p = problem("categorical", DEEP)
    with_gamma = error_budget(p.at, p.y, DAMPING, draw(p), gamma=0.7)
    plain = error_budget(p.at, p.y, DAMPING, draw(p))
    # NaN is not equal to itself: the first row's change is left out.
    assert [numbers(j)[2:] for j in with_gamma[:-1]] == [numbers(j)[2:] for j in plain[:-1]]
    K = kr.curvature.BlockDiagonal(kr.kronecker_factors(p.at, kr.sampled(draw(p)), reach=0), 0.49)
    assert with_gamma[-1].angle == judge(p.at, p.y, DAMPING, [("", K)])[0].angle
    assert abs(with_gamma[-1].error - plain[-1].error) > 1e-3
