"""A data set in parts: every mean over the examples is that of the whole, whatever evaluates the parts."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.approximations import TABLE
from kfac_ref.checks import Array
from kfac_ref.expectations import OneDraw
from kfac_ref.factors import as_factors
from kfac_ref.network import ACTIVATIONS, Activation
from kfac_ref.parts import Part
from tests.problems import LIKELIHOODS, Problem, close, direction, expectations, problem, relative

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
DEEP = (3, 4, 3, 2)
N = 23


def parts(p: Problem, *sizes: int) -> list[Part]:
    """Return parts of the given sizes, which `Model.parts` makes only of equal ones."""
    ends = np.cumsum([0, *(sizes or (7, 2, 1, N - 10))])
    assert ends[-1] == len(p.at)
    return [Part(p.model, p.at.weights, p.at.x[a:b], p.y[a:b], slice(int(a), int(b)))
            for a, b in itertools.pairwise(ends)]


def sine(s: Array) -> Array:
    return np.sin(s)


def sine_slope(s: Array, a: Array) -> Array:
    return np.cos(s)


def sine_curve(s: Array, a: Array) -> Array:
    return -a


SINE = Activation(sine, sine_slope, sine_curve)


def flat(value: Any) -> Array:
    """Return all numbers of a value of `mean_over` as a vector."""
    if isinstance(value, kr.Moments):
        value = [value.arrays[key] for key in sorted(value.arrays)]
    if isinstance(value, kr.Factors):
        value = [X[key] for X in (value.A, value.G) for key in sorted(X)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return np.concatenate([flat(item) for item in value])
    return np.ravel(value)


def values(p: Problem) -> dict[str, Callable[[kr.Point], Any]]:
    """Return functions whose value is a mean over the examples."""
    V, U = direction(p, 1), direction(p, 2)
    found: dict[str, Callable[[kr.Point], Any]] = {
        "loss": kr.Point.loss,
        "error": kr.Point.error,
        "gradient": kr.Point.gradient,
        "both": lambda at: (at.loss(), at.gradient()),
        "by name": lambda at: {"loss": at.loss(), "gradient": at.gradient()},
        "Gram": functools.partial(kr.fisher_gram, directions=[V, U]),
        "Hessian": lambda at: kr.hessian.hessian_product(at, None, V),
    }
    for name, e in expectations(p).items():
        found |= {f"factors, {name}": functools.partial(kr.kronecker_factors, expectation=e, reach=1),
                  f"F v, {name}": functools.partial(kr.fisher_product, V=V, expectation=e),
                  f"dense F, {name}": functools.partial(kr.fisher_matrix, expectation=e)}
    return found


NAMES = list(values(problem("categorical", DEEP, N=2)))


def whole(p: Problem) -> kr.Point:
    return kr.Point(p.model, p.at.weights, p.at.forward, p.y)


@EACH
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_parts_is_that_of_the_whole(likelihood: str, name: str) -> None:
    p = problem(likelihood, DEEP, N=N, weight_decay=0.1)
    f = values(p)[name]
    expected = flat(f(whole(p)))
    for cut in (parts(p), p.model.parts(p.at.weights, p.at.x, p.y, size=5), parts(p, N)):
        mean = flat(kr.mean_over(cut, f))
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-14 * max(1, np.abs(expected).max()))
    plain = np.mean([flat(f(part.point())) for part in parts(p)], axis=0)
    assert relative(plain, expected) > 1e-3                 # the parts are not of equal size


def test_the_type_of_a_mean_is_that_of_the_value() -> None:
    p = problem("gaussian", DEEP, N=N)
    cut = parts(p)
    assert isinstance(kr.mean_over(cut, kr.Point.loss), float)
    assert [D.shape for D in kr.mean_over(cut, kr.Point.gradient)] == list(p.shapes)
    factors = kr.mean_over(cut, kr.kronecker_factors)
    assert isinstance(factors, kr.Factors)
    assert factors.n == N
    moments = kr.mean_over(cut, kr.factors.second_moments)
    assert isinstance(moments, kr.Moments)
    assert moments.n == N


def test_float32_stays_float32() -> None:
    p = problem("gaussian", DEEP, N=N, dtype=np.float32)
    assert {D.dtype for D in kr.mean_over(parts(p), kr.Point.gradient)} == {np.dtype(np.float32)}
    assert {A.dtype for A, _ in kr.mean_over(parts(p), kr.kronecker_factors).layers} == {np.dtype(np.float32)}


# The parts


def test_parts_cover_the_data_in_order() -> None:
    p = problem(N=N)
    cut = p.model.parts(p.at.weights, p.at.x, p.y, size=5)
    assert [part.rows for part in cut] == [slice(0, 5), slice(5, 10), slice(10, 15), slice(15, 20), slice(20, 23)]
    np.testing.assert_array_equal(np.concatenate([part.x for part in cut]), p.at.x)
    np.testing.assert_array_equal(np.concatenate([part.y for part in cut]), p.y)
    for part in cut:
        at = part.point()
        np.testing.assert_array_equal(at.y, p.y[part.rows])
        assert at.rows == part.rows
        assert np.shares_memory(part.x, p.at.x)
    assert p.model.parts(p.at.weights, p.at.x)[0].y is None
    assert len(p.model.parts(p.at.weights, p.at.x)) == 1


def test_lists_serve_as_data() -> None:
    p = problem("gaussian", N=3)
    lists = p.model.parts(list(p.at.weights), p.at.x.tolist(), p.y.tolist(), size=2)
    close(kr.mean_over(lists, kr.Point.loss), p.at.loss(p.y), 1e-14)


def test_a_part_may_be_loaded_where_it_is_needed() -> None:
    p = problem("categorical", DEEP, N=N)
    loaded = []

    def loader(rows: slice) -> Callable[[], tuple[Array, Array]]:
        def load() -> tuple[Array, Array]:
            loaded.append(rows)
            return p.at.x[rows], p.y[rows]
        return load

    cut = [Part(p.model, p.at.weights, loader(part.rows), None, part.rows) for part in parts(p)]
    assert loaded == []
    close(kr.mean_over(cut, kr.Point.loss), p.at.loss(p.y), 1e-14)
    assert loaded == [part.rows for part in parts(p)]


def test_parts_are_evaluated_one_at_a_time_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    p, events = problem(N=N), []
    point = Part.point

    def noted(part: Part) -> kr.Point:
        events.append(("point", part.rows.start))
        return point(part)

    monkeypatch.setattr(Part, "point", noted)

    def f(at: kr.Point) -> float:
        assert isinstance(at.rows, slice)
        events.append(("f", at.rows.start))
        return at.loss()

    kr.mean_over(parts(p), f)
    assert events == [(what, start) for start in (0, 7, 9, 10) for what in ("point", "f")]


# Whatever the map


def backwards(f: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Evaluate the last first, and return in order, as a pool may."""
    items = list(items)
    done = {id(item): f(item) for item in reversed(items)}
    return iter([done[id(item)] for item in items])


def test_backwards_evaluates_the_last_first() -> None:
    seen: list[int] = []
    assert list(backwards(lambda i: seen.append(i) or i, [1, 2, 3])) == [1, 2, 3]
    assert seen == [3, 2, 1]


@pytest.mark.parametrize("name", ["factors, exact", "gradient"])
def test_whatever_the_map_the_bits_are_the_same(name: str) -> None:
    p = problem("categorical", DEEP, N=N)
    f = values(p)[name]
    expected = flat(kr.mean_over(parts(p), f))
    np.testing.assert_array_equal(flat(kr.mean_over(parts(p), f, backwards)), expected)
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(flat(kr.mean_over(parts(p), f, pool.map)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["tanh", SINE], ids=["by name", "of one's own"])
def test_a_pool_of_processes_gives_the_same(hidden: Any) -> None:
    p = problem("categorical", DEEP, hidden, N=N)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for f in (kr.Point.gradient, functools.partial(kr.kronecker_factors, expectation=kr.empirical(p.y))):
            np.testing.assert_array_equal(flat(kr.mean_over(parts(p), f, pool.map)), flat(kr.mean_over(parts(p), f)))
        row = TABLE["kfra"]
        V = direction(p)
        over = row.over(parts(p), 0.1, map=pool.map)
        close(flat(over.product(V)), flat(row.at(p.at, 0.1).product(V)), 1e-12)


@pytest.mark.parametrize("hidden", [*sorted(ACTIVATIONS), SINE], ids=[*sorted(ACTIVATIONS), "of one's own"])
def test_parts_points_and_activations_are_pickled(hidden: Any) -> None:
    p = problem("bernoulli", DEEP, hidden, N=N)
    part = pickle.loads(pickle.dumps(parts(p)[1]))
    at = pickle.loads(pickle.dumps(part.point()))
    assert at.rows == slice(7, 9)
    np.testing.assert_array_equal(at.z, parts(p)[1].point().z)
    np.testing.assert_array_equal(flat(at.gradient()), flat(parts(p)[1].point().gradient()))
    assert at.model.network == p.model.network
    f = p.model.network.activations[0]
    assert pickle.loads(pickle.dumps(f)) == f
    if isinstance(hidden, str):
        assert pickle.loads(pickle.dumps(f)) is f


def test_a_part_is_small_when_it_is_pickled() -> None:
    p = problem("gaussian", (40, 3), N=1000)
    part = p.model.parts(p.at.weights, p.at.x, p.y, size=10)[5]
    assert len(pickle.dumps(part)) < 10 * 43 * 8 + 3 * 41 * 8 + 2000        # its rows and the weights


# Every estimator that has moments


WITH_MOMENTS = {name: row for name, row in TABLE.items() if row.averages}
WITHOUT = {name: row for name, row in TABLE.items() if not row.averages}


@EACH
@pytest.mark.parametrize("expectation", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_moments_of_unequal_parts_merge_to_those_of_the_whole(name: str, expectation: str, likelihood: str) -> None:
    p = problem(likelihood, DEEP, N=N)
    row, e = WITH_MOMENTS[name], expectations(p)[expectation]
    all_at_once = row.moments(whole(p), e)
    each = [row.moments(part.point(), e) for part in parts(p)]
    first, second, third, fourth = each
    for merged in (kr.mean_over(parts(p), functools.partial(row.moments, expectation=e)),
                   first.merge(second).merge(third).merge(fourth), fourth.merge(third.merge(first.merge(second)))):
        assert merged.n == all_at_once.n == N
        assert set(merged.arrays) == set(all_at_once.arrays)
        for key, S in all_at_once.arrays.items():
            close(merged.arrays[key], S, 1e-13)
        # A square root leaves half the digits in what is singular.
        ours, expected = (flat(row.finish(m, p.at.weights)) for m in (merged, all_at_once))
        close(ours, expected, 1e-7 if name == "shampoo" else 1e-13)
    V = direction(p)
    close(flat(row.over(parts(p), 0.1, e).product(V)), flat(row.at(whole(p), 0.1, e).product(V)),
          1e-7 if name == "shampoo" else 1e-12)


@EACH
@pytest.mark.parametrize("name", ["kfra", "tkfac", "shampoo"])
def test_their_factors_do_not_merge_by_a_mean(name: str, likelihood: str) -> None:
    p = problem(likelihood, DEEP, N=N)
    row = WITH_MOMENTS[name]
    each = [row.finish(row.moments(part.point()), p.at.weights) for part in parts(p)]
    mean, expected = sum(f.n / N * f.G[0] for f in each), row.finish(row.moments(p.at), p.at.weights).G[0]
    assert relative(mean, expected) > 1e-4
    with pytest.raises(ValueError, match="these factors are not means over examples and cannot be merged or averaged"):
        each[0].merge(each[1])
    with pytest.raises(ValueError, match="combine the moments of their estimator and finish those"):
        kr.mean_over(parts(p), lambda at: row.finish(row.moments(at), at.weights))


def test_a_factor_that_is_a_mean_says_so_and_one_that_was_changed_does_not() -> None:
    p = problem(N=N)
    fac = kr.kronecker_factors(p.at)
    assert fac.means
    assert fac.merge(fac).means
    assert fac.astype(np.float32).means
    assert not kr.Factors(fac.A, fac.G, fac.n).means
    with pytest.raises(ValueError, match="not means over examples"):
        fac.merge(kr.Factors(fac.A, fac.G, fac.n))


def test_one_draw_over_parts_is_its_targets_over_the_whole() -> None:
    p = problem("categorical", DEEP, N=N)
    e = OneDraw(3, 1)
    targets = np.concatenate([part.point().sample(np.random.default_rng((3, 1, part.rows.start))) for part in parts(p)])
    ours = kr.mean_over(parts(p), functools.partial(kr.kronecker_factors, expectation=e))
    close(flat(ours), flat(kr.kronecker_factors(p.at, kr.sampled(targets))), 1e-13)


# Rows that are made from a point


@pytest.mark.parametrize("name", WITHOUT)
def test_rows_that_are_made_from_a_point_have_no_moments_and_say_so(name: str) -> None:
    p, row = problem(N=N), WITHOUT[name]
    words = "is made from a point: it has no moments that could be averaged or merged over parts of the data"
    with pytest.raises(ValueError, match=words):
        row.moments(p.at)
    with pytest.raises(ValueError, match=words):
        row.over(parts(p), 0.1)


def test_nearest_factors_do_not_merge() -> None:
    p = problem(N=N)
    with pytest.raises(ValueError, match="these factors are not means over examples and cannot be merged or averaged"):
        kr.mean_over(parts(p), kr.factors.nearest_kronecker_factors)


def test_a_structure_does_not_merge() -> None:
    p = problem(N=N)
    with pytest.raises(ValueError, match=r"f must return means over the examples .*, got EKFAC"):
        kr.mean_over(parts(p), kr.curvature.EKFAC)


@EACH
@pytest.mark.parametrize("expectation", ["exact", "sampled", "empirical"])
def test_ekfac_over_parts_in_two_passes_is_ekfac_of_the_whole(likelihood: str, expectation: str) -> None:
    p = problem(likelihood, DEEP, N=N)
    e, V = expectations(p)[expectation], direction(p)
    points = []

    def counting(f: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            points.append(item.rows.start)
            yield f(item)

    ours, expected = kr.curvature.ekfac_over(parts(p), 0.1, e, counting), kr.curvature.EKFAC(p.at, 0.1, e)
    assert points == [0, 7, 9, 10] * 2
    close(ours.dense(), expected.dense(), 1e-12)
    close(flat(ours.solve(V)), flat(expected.solve(V)), 1e-11)
    # Second moments in the parts' own bases are others.
    own = [kr.curvature.EKFAC(part.point(), 0.1, e).scales[0] for part in parts(p)]
    assert relative(sum(len(range(N)[part.rows]) / N * S for part, S in zip(parts(p), own, strict=True)),
                    expected.scales[0]) > 1e-3


def test_moments_finish_with_the_weights_that_they_are_given() -> None:
    p, row = problem("categorical", DEEP, N=N), TABLE["kfra"]
    moments = row.moments(p.at)
    moved = params.add(p.at.weights, params.scale(0.1, direction(p)))
    assert relative(row.finish(moments, moved).G[0], row.finish(moments, p.at.weights).G[0]) > 1e-3
    close(flat(as_factors(TABLE["block-diagonal"].moments(p.at), moved)), flat(kr.kronecker_factors(p.at)), 1e-15)
