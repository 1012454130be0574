"""The loop against a plain one, its batches against permutations, its averages against their closed forms."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import training
from kfac_ref.optimizers import KFAC, SGD, Adam
from tests.problems import LIKELIHOODS, close, labels, problem

N = 24
OPTIMIZERS = {"KFAC": lambda model: KFAC(model, tau1=1 / 2, T2=4, T3=2, examples=N),
              "SGD": lambda model: SGD(model, 0.1),
              "Adam": lambda model: Adam(model, 0.01)}
EACH = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def data(likelihood="categorical", **more):
    """Return a problem of N cases and a held-out set."""
    p = problem(likelihood, N=N, weight_decay=1e-2, **more)
    x = np.random.default_rng(5).standard_normal((9, 4))
    return p, (x, labels(likelihood, np.zeros((9, 3)), np.random.default_rng(6)))


def plain(opt, p, iterations, schedule, seed=0):
    """Return the weights after 0, 1, ... steps and the records: the optimizer on the same batches, nothing else."""
    state, records = opt.init(p.at.weights, seed), []
    iterates = [state.weights]
    for rows in islice(training.batches(N, schedule, seed), iterations):
        state, record = opt.step(state, p.at.x[rows], p.y[rows])
        iterates.append(state.weights)
        records.append(record)
    return iterates, records


def train(opt, p, iterations, schedule=None, **more):
    return training.train(opt, p.at.weights, p.at.x, p.y, iterations, schedule, **more)


def bits(arrays):
    return [np.asarray(a).tobytes() for a in arrays]


def decisions(records):
    """Return the records as text, to the last bit, without what they measured in seconds; NaN is written as nan."""
    return [repr(replace(record, seconds={})) for record in records]


class Spy:
    """An optimizer that counts its steps, and raises an error at one of them."""

    def __init__(self, inner, error=None, at=0):
        self.inner, self.error, self.at, self.calls = inner, error, at, 0

    @property
    def model(self):
        return self.inner.model

    def init(self, weights, seed=0):
        return self.inner.init(weights, seed)

    def step(self, state, x, y):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.inner.step(state, x, y)


# Schedules


def test_a_fixed_schedule():
    assert [training.fixed(7)(k) for k in (1, 2, 1000)] == [7, 7, 7]


@pytest.mark.parametrize(("total", "first", "full_at"), [(60000, 1000, 500), (1500, 100, 40), (10, 1, 2), (997, 3, 50)])
def test_a_growing_schedule_is_the_formula(total, first, full_at):
    m = [training.growing(total, first, full_at)(k) for k in range(1, full_at + 20)]
    assert m[0] == first
    assert m[full_at - 1:] == [total] * 20
    assert m == sorted(m)
    # exp((k-1)/b) with m_full_at = N is a power of N / first; a batch is the nearest whole number.
    exact = first * (total / first) ** (np.arange(full_at) / (full_at - 1))
    assert np.abs(np.array(m[:full_at]) - exact).max() <= 0.5 + 1e-9
    assert all(isinstance(size, int) for size in m)


def test_a_growing_schedule_reaches_all_no_sooner_than_it_should():
    m = training.growing(60000)
    assert m(499) < m(500) == m(10**6) == 60000
    # Growth is exponential, not linear: equal steps multiply.
    assert abs(m(400) / m(300) - m(300) / m(200)) < 1e-3
    assert m(250) < (1000 + 60000) / 4


@pytest.mark.parametrize("first", [10, 11, 1000])
def test_a_first_batch_of_all_stays_so(first):
    assert [training.growing(10, first)(k) for k in (1, 2, 500, 501)] == [10] * 4


@pytest.mark.parametrize(("make", "word"), [
    (lambda: training.fixed(0), "m must be an integer of at least 1, got 0"),
    (lambda: training.fixed(2.0), "m must be an integer of at least 1, got 2.0"),
    (lambda: training.growing(0), "N must be an integer of at least 1, got 0"),
    (lambda: training.growing(10, 0), "first must be an integer of at least 1, got 0"),
    (lambda: training.growing(10, 1, 1), "full_at must be an integer of at least 2, got 1")])
def test_schedules_refuse(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# Batches


def rows_of(total, schedule, seed, count):
    return list(islice(training.batches(total, schedule, seed), count))


@given(st.integers(2, 30), st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 99))
def test_every_epoch_is_a_permutation_whatever_the_sizes(total, sizes, seed):
    sizes = [min(m, total - 1) for m in sizes]
    chosen = rows_of(total, lambda k: sizes[k % len(sizes)], seed, 40)
    assert [len(rows) for rows in chosen] == [sizes[k % len(sizes)] for k in range(1, 41)]
    walked = np.concatenate(chosen)
    for start in range(0, len(walked), total):
        epoch = walked[start:start + total]
        assert len(set(epoch.tolist())) == len(epoch)
        assert 0 <= epoch.min() <= epoch.max() < total


@pytest.mark.parametrize("m", [1, 3, 5, 12, 19])
def test_every_epoch_is_a_permutation_for_a_fixed_size(m):
    # 5 and 19 do not divide 24, so batches reach over the end of an epoch.
    walked = np.concatenate(rows_of(N, training.fixed(m), 0, 4 * N))[:4 * N].reshape(4, N)
    np.testing.assert_array_equal(np.sort(walked, axis=1), np.tile(np.arange(N), (4, 1)))
    assert len({tuple(epoch) for epoch in walked.tolist()}) == 4                    # each has an order of its own
    assert all((epoch != np.arange(N)).any() for epoch in walked)


def test_the_walk_does_not_depend_on_where_batches_are_cut():
    one, other = (np.concatenate(rows_of(N, training.fixed(m), 3, 40))[:100] for m in (3, 7))
    np.testing.assert_array_equal(one, other)


def test_a_batch_of_all_is_a_slice_and_takes_nothing_from_the_walk():
    sizes = {1: 5, 2: N, 3: 5, 4: N}
    chosen = rows_of(N, lambda k: sizes[k], 0, 4)
    assert chosen[1] == chosen[3] == slice(None)
    np.testing.assert_array_equal([chosen[0], chosen[2]], rows_of(N, training.fixed(5), 0, 2))
    assert rows_of(N, training.fixed(N), 0, 3) == [slice(None)] * 3


def test_batches_depend_on_the_seed_and_on_nothing_else():
    alone = rows_of(N, training.fixed(5), 4, 20)
    first, second = training.batches(N, training.fixed(5), 4), training.batches(N, training.fixed(5), 9)
    for k, rows in enumerate(alone):
        for _ in range(k % 3):
            next(second)
        np.random.default_rng(4).random(k)
        np.testing.assert_array_equal(next(first), rows)
    assert (np.concatenate(alone) != np.concatenate(rows_of(N, training.fixed(5), 5, 20))).any()


@given(st.integers(1, 30))
def test_batch_k_is_the_same_however_many_are_asked_for(k):
    rows = rows_of(N, training.fixed(5), 1, k)[-1]
    np.testing.assert_array_equal(rows_of(N, training.fixed(5), 1, 30)[k - 1], rows)


@given(st.integers(2, 20), st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 99), st.integers(0, 60))
def test_batches_after_a_step_are_the_rest_of_all(total, sizes, seed, after):
    # Sizes of the whole set are among them, which take nothing from the walk.
    sizes = [min(m, total) for m in sizes]
    schedule = lambda k: sizes[k % len(sizes)]                                          # noqa: E731
    rest = islice(training.batches(total, schedule, seed), after, after + 12)
    resumed = training.batches(total, schedule, seed, after)
    for expected, rows in zip(rest, resumed, strict=False):
        assert isinstance(rows, slice) == isinstance(expected, slice)
        np.testing.assert_array_equal(np.arange(total)[rows], np.arange(total)[expected])


@pytest.mark.parametrize("after", [1, 4, 5, 7, 8, 9, 30])
def test_batches_of_a_growing_schedule_after_a_step(after):
    schedule = training.growing(N, 4, 9)
    expected = rows_of(N, schedule, 2, after + 5)[after:]
    found = list(islice(training.batches(N, schedule, 2, after=after), 5))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.arange(N)[a], np.arange(N)[b])
    assert (after > 7) == (found[0] == slice(None) if isinstance(found[0], slice) else False)


@pytest.mark.parametrize("m", [0, -1, N + 1])
def test_batches_that_do_not_fit_are_refused(m):
    with pytest.raises(ValueError, match=rf"schedule must give batches of 1\.\.{N} examples, got {m} at step 2"):
        rows_of(N, lambda k: 1 if k == 1 else m, 0, 2)


# The loop


@EACH
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_is_the_plain_loop_to_the_last_bit(make, likelihood):
    p, _ = data(likelihood)
    opt, schedule = make(p.model), training.growing(N, 8, 9)
    history = train(opt, p, 11, schedule, seed=3)
    iterates, records = plain(opt, p, 11, schedule, seed=3)
    assert bits(history.state.weights) == bits(iterates[-1])
    assert decisions(history.records) == decisions(records)
    assert [record.k for record in history.records] == list(range(1, 12))
    assert [record.batch for record in history.records] == [schedule(k) for k in range(1, 12)]
    assert {8, N} < {record.batch for record in history.records}
    assert not history.interrupted


def test_all_examples_are_the_batch_unless_told():
    p, _ = data()
    history = train(SGD(p.model, 0.1), p, 5)
    iterates, _ = plain(SGD(p.model, 0.1), p, 5, training.fixed(N))
    assert bits(history.state.weights) == bits(iterates[-1])
    assert {record.batch for record in history.records} == {N}


@EACH
def test_the_same_seed_gives_the_same_bits_and_another_does_not(make):
    p, held_out = data()
    one, two, other = (train(make(p.model), p, 8, training.fixed(10), seed=seed, evaluate_at=(0, 8), test=held_out)
                       for seed in (1, 1, 2))
    assert bits(one.state.weights) == bits(two.state.weights)
    assert bits(one.averaged) == bits(two.averaged)
    assert decisions(one.records) == decisions(two.records)
    assert [replace(e, seconds=0.0) for e in one.evaluations] == [replace(e, seconds=0.0) for e in two.evaluations]
    assert bits(one.state.weights) != bits(other.state.weights)


@EACH
def test_what_is_passed_in_is_not_changed(make):
    p, held_out = data("bernoulli")
    passed = [*p.at.weights, p.at.x.copy(), p.y, *held_out]
    before = bits(passed)
    history = training.train(make(p.model), list(p.at.weights), passed[-4], p.y, 8, training.fixed(10),
                             evaluate_at=range(9), test=held_out)
    assert bits(passed) == before
    assert bits(history.state.weights) != before[:2]


@EACH
def test_no_iterations_leave_the_start(make):
    p, held_out = data()
    history = train(make(p.model), p, 0, evaluate_at=(0,), test=held_out)
    assert bits(history.state.weights) == bits(history.averaged) == bits(p.at.weights)
    assert (history.records, history.seconds, history.interrupted) == ([], 0.0, False)
    assert [e.k for e in history.evaluations] == [0]


@EACH
def test_single_precision_stays_so(make):
    p, _ = data(dtype=np.float32)
    history = train(make(p.model), p, 5, training.fixed(10))
    for a in (*history.state.weights, *history.averaged):
        assert a.dtype == np.float32


# Averages


@pytest.mark.parametrize("xi", [0.0, 0.5, 0.75, 0.99, 1.0])
def test_the_average_of_the_iterates(xi):
    p, _ = data()
    opt = SGD(p.model, 0.5)
    iterates = [kr.params.flatten(W) for W in plain(opt, p, 12, training.fixed(7))[0]]
    averaged = kr.params.flatten(train(opt, p, 12, training.fixed(7), xi=xi).averaged)
    # As long as 1 - 1/k < xi it is the mean of the iterates so far; from then on each is forgotten by xi a step.
    mean_until = 12 if xi == 1 else max(1, math.floor(1 / (1 - xi) + 1e-9))
    plain_mean = np.mean(iterates[1:mean_until + 1][:12], axis=0)
    later = range(mean_until + 1, 13)
    weights = [xi ** (12 - k) * (1 - xi) for k in later]
    expected = xi ** len(later) * plain_mean + sum(w * iterates[k] for w, k in zip(weights, later, strict=True))
    close(averaged, expected, rtol=1e-14)
    assert xi == 0 or np.abs(averaged - iterates[-1]).max() > 1e-3
    # The start has no part in it, or the first average would not be the first iterate.
    close(kr.params.flatten(train(opt, p, 1, training.fixed(7), xi=xi).averaged), iterates[1], rtol=1e-15)


def test_the_average_decays_by_the_papers_number_unless_told():
    p, _ = data()
    opt = SGD(p.model, 0.5)
    iterates = [kr.params.flatten(W) for W in plain(opt, p, 120, training.fixed(7))[0]]
    expected = 0.0
    for k in range(1, 121):
        xi = min(1 - 1 / k, 0.99)
        expected = xi * expected + (1 - xi) * iterates[k]
    averaged = kr.params.flatten(train(opt, p, 120, training.fixed(7)).averaged)
    close(averaged, expected, rtol=1e-13)
    assert np.abs(averaged - np.mean(iterates[1:], axis=0)).max() > 1e-4


# Evaluations


def test_evaluations_stand_where_they_were_asked_for_and_say_what_the_model_says():
    p, held_out = data("bernoulli")
    opt, asked = KFAC(p.model, tau1=1 / 2, examples=N), (0, 1, 4, 9)
    history = train(opt, p, 9, training.fixed(8), evaluate_at={*asked, 50}, test=held_out)
    iterates, _ = plain(opt, p, 9, training.fixed(8))
    assert tuple(e.k for e in history.evaluations) == asked
    for e in history.evaluations:
        averaged = train(opt, p, e.k, training.fixed(8)).averaged
        for (x, y), prefix in (((p.at.x, p.y), ""), (held_out, "test_")):
            now, mean = p.model.at(iterates[e.k], x), p.model.at(averaged, x)
            assert getattr(e, f"{prefix}loss") == now.loss(y)
            assert getattr(e, f"{prefix}error") == now.error(y)
            assert getattr(e, f"averaged_{prefix}error") == mean.error(y)
    last = history.evaluations[-1]
    assert len({last.error, last.averaged_error, last.test_error, last.averaged_test_error, last.loss}) == 5


def test_without_a_held_out_set_its_numbers_are_nan():
    p, _ = data()
    e = train(SGD(p.model, 0.1), p, 2, evaluate_at=(2,)).evaluations[0]
    assert math.isnan(e.test_loss)
    assert math.isnan(e.test_error)
    assert math.isnan(e.averaged_test_error)
    assert math.isfinite(e.loss)
    assert math.isfinite(e.averaged_error)


@pytest.mark.parametrize("asked", [[2, 5], {2, 5}, range(2, 6, 3), frozenset((5, 2))])
def test_evaluations_are_asked_for_by_any_collection(asked):
    p, _ = data()
    assert [e.k for e in train(SGD(p.model, 0.1), p, 6, evaluate_at=asked).evaluations] == [2, 5]


def test_evaluating_changes_nothing():
    p, held_out = data()
    opt = KFAC(p.model, tau1=1 / 2)
    often = train(opt, p, 8, training.fixed(10), evaluate_at=range(9), test=held_out)
    never = train(opt, p, 8, training.fixed(10))
    assert bits(often.state.weights) == bits(never.state.weights)
    assert bits(often.averaged) == bits(never.averaged)
    assert never.evaluations == []


def test_seconds_are_those_of_the_steps_alone(monkeypatch):
    # A clock that steps and evaluations push on: a step takes a second, an error 1000.
    p, held_out = data()
    clock = SimpleNamespace(now=0.0)
    inner, error = SGD(p.model, 0.1), kr.Point.error

    def step(self, state, x, y):
        clock.now += 1
        return inner.step(state, x, y)

    def slow_error(self, y=None):
        clock.now += 1000
        return error(self, y)

    monkeypatch.setattr(Spy, "step", step)
    monkeypatch.setattr(kr.Point, "error", slow_error)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    history = train(Spy(inner), p, 6, evaluate_at=(0, 2, 5), test=held_out)
    assert history.seconds == 6
    assert [e.seconds for e in history.evaluations] == [0, 2, 5]
    assert clock.now == 6 + 3 * 4 * 1000


def test_real_seconds_hold_those_that_the_steps_measured():
    p, _ = data()
    history = train(KFAC(p.model, tau1=1 / 2), p, 5)
    assert history.seconds >= sum(sum(record.seconds.values()) for record in history.records) > 0


@given(st.integers(0, 3000), st.floats(1.001, 3))
def test_evaluated_steps_do_not_depend_on_the_end(iterations, spacing):
    steps = training.evaluation_steps(iterations, spacing)
    assert (steps[0], steps[-1]) == (0, iterations)
    assert steps == sorted(set(steps))
    for a, b in pairwise(steps[:-1]):
        assert b == max(a + 1, math.ceil(a * spacing))
    assert set(steps[:-1]) <= set(training.evaluation_steps(iterations + 1000, spacing))


# Going on


@EACH
@pytest.mark.parametrize("k", [0, 1, 3, 6, 11])
def test_a_run_that_goes_on_is_one_long_run_to_the_last_bit(make, k):
    p, held_out = data()
    schedule, asked = training.growing(N, 5, 9), {"evaluate_at": range(0, 12, 2), "test": held_out, "seed": 3}
    whole = train(make(p.model), p, 11, schedule, **asked)
    first = train(make(p.model), p, k, schedule, **asked)
    kept = training.History(first.state, first.averaged)        # as from a checkpoint, without the records so far
    resumed = train(make(p.model), p, 11, schedule, **asked, resume=first)
    assert bits(train(make(p.model), p, 11, schedule, **asked, resume=kept).averaged) == bits(whole.averaged)
    assert resumed is first
    assert bits(resumed.state.weights) == bits(whole.state.weights)
    assert bits(resumed.averaged) == bits(whole.averaged)
    assert decisions(resumed.records) == decisions(whole.records)
    assert [replace(e, seconds=0.0) for e in resumed.evaluations] == [replace(e, seconds=0.0) for e in
                                                                     whole.evaluations]
    assert resumed.seconds >= sum(sum(record.seconds.values()) for record in resumed.records) > 0


def test_another_seed_of_the_batches_would_be_another_run():
    p, _ = data()
    opt = SGD(p.model, 0.1)                                     # which samples nothing itself
    whole = train(opt, p, 9, training.fixed(5), seed=3)
    resumed = train(opt, p, 9, training.fixed(5), seed=4, resume=train(opt, p, 4, training.fixed(5), seed=3))
    assert bits(resumed.state.weights) != bits(whole.state.weights)


def test_a_run_that_was_interrupted_and_goes_on_is_not_interrupted():
    p, _ = data()
    first = train(Spy(SGD(p.model, 0.1), KeyboardInterrupt(), at=4), p, 9)
    assert first.interrupted
    resumed = train(SGD(p.model, 0.1), p, 9, resume=first)
    assert not resumed.interrupted
    assert bits(resumed.state.weights) == bits(train(SGD(p.model, 0.1), p, 9).state.weights)


def test_an_evaluation_that_an_interruption_left_out_is_made_up_for(monkeypatch):
    p, _ = data()
    opt = SGD(p.model, 0.1)

    def interrupted(self, y=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kr.Point, "error", interrupted)
        first = train(opt, p, 6, evaluate_at=range(3, 7))
    assert (first.state.k, first.evaluations) == (3, [])
    resumed = train(opt, p, 6, evaluate_at=range(3, 7), resume=first)
    whole = train(opt, p, 6, evaluate_at=range(3, 7))
    assert [(e.k, e.loss, e.averaged_error) for e in resumed.evaluations] == \
        [(e.k, e.loss, e.averaged_error) for e in whole.evaluations]


def test_a_run_that_has_all_its_steps_takes_no_more():
    p, _ = data()
    spy = Spy(SGD(p.model, 0.1))
    done = train(spy, p, 5, evaluate_at=range(9))
    again = train(spy, p, 3, evaluate_at=range(9), resume=done)
    assert spy.calls == again.state.k == len(again.records) == 5
    assert [e.k for e in again.evaluations] == [0, 1, 2, 3, 4, 5]


class Ticking(Spy):
    """An optimizer whose every step takes a second of a clock of its own."""

    def __init__(self, inner, monkeypatch):
        super().__init__(inner)
        monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: self.calls))


@pytest.mark.parametrize(("limit", "steps"), [(0, 0), (0.5, 1), (3, 3), (3.5, 4), (1000, 9), (math.inf, 9)])
def test_a_run_ends_with_the_step_that_reaches_the_seconds(monkeypatch, limit, steps):
    p, _ = data()
    history = train(Ticking(SGD(p.model, 0.1), monkeypatch), p, 9, seconds=limit)
    assert history.state.k == history.seconds == len(history.records) == steps
    assert not history.interrupted
    assert bits(history.state.weights) == bits(train(SGD(p.model, 0.1), p, steps).state.weights)


def test_seconds_count_from_the_beginning_of_the_run(monkeypatch):
    p, _ = data()
    opt = Ticking(SGD(p.model, 0.1), monkeypatch)
    first = train(opt, p, 99, seconds=4)
    assert train(opt, p, 99, seconds=6, resume=first).state.k == 6
    assert train(opt, p, 99, seconds=6, resume=first).state.k == 6
    assert opt.calls == 6


def test_what_is_called_after_each_step_sees_the_step_and_its_evaluation():
    p, _ = data()
    seen = []

    def look(history):
        seen.append((history.state.k, len(history.records), history.records[-1].k, history.evaluations[-1].k))

    train(SGD(p.model, 0.1), p, 4, evaluate_at=(0, 2, 4), after_step=look)
    assert seen == [(1, 1, 1, 0), (2, 2, 2, 2), (3, 3, 3, 2), (4, 4, 4, 4)]
    train(SGD(p.model, 0.1), p, 0, after_step=look)
    assert len(seen) == 4


def test_what_is_called_after_each_step_can_end_the_run():
    p, _ = data()

    def stop(history):
        if history.state.k == 3:
            raise KeyboardInterrupt

    history = train(SGD(p.model, 0.1), p, 9, evaluate_at=range(9), after_step=stop)
    assert history.interrupted
    assert history.state.k == len(history.records) == history.evaluations[-1].k == 3
    assert bits(history.state.weights) == bits(train(SGD(p.model, 0.1), p, 3).state.weights)


# Interruptions and errors


@EACH
def test_ctrl_c_keeps_what_was_done(make):
    p, held_out = data()
    opt = Spy(make(p.model), KeyboardInterrupt(), at=7)
    history = train(opt, p, 20, training.fixed(10), evaluate_at=(0, 6, 7), test=held_out)
    until_then = train(make(p.model), p, 6, training.fixed(10))
    assert history.interrupted
    assert history.state.k == len(history.records) == 6
    assert bits(history.state.weights) == bits(until_then.state.weights)
    assert bits(history.averaged) == bits(until_then.averaged)
    assert decisions(history.records) == decisions(until_then.records)
    assert [e.k for e in history.evaluations] == [0, 6]
    assert history.seconds >= history.evaluations[-1].seconds > 0


@pytest.mark.parametrize("k", [0, 4])
def test_ctrl_c_in_an_evaluation_keeps_the_steps_before_it(monkeypatch, k):
    p, _ = data()
    until_then = train(SGD(p.model, 0.1), p, k)
    error, left = kr.Point.error, iter(range(0 if k == 0 else 2))

    def interrupted(self, y=None):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return error(self, y)

    monkeypatch.setattr(kr.Point, "error", interrupted)
    try:
        history = train(SGD(p.model, 0.1), p, 9, evaluate_at={0, 4} if k else {0})
    except KeyboardInterrupt:           # which would end the whole test run
        pytest.fail("Ctrl-C got through")
    assert history.interrupted
    assert bits(history.state.weights) == bits(until_then.state.weights)
    assert bits(history.averaged) == bits(until_then.averaged)
    assert len(history.records) == k
    assert [e.k for e in history.evaluations] == ([0] if k else [])


@pytest.mark.parametrize("error", [RuntimeError("broken"), ValueError("bad"), MemoryError()])
def test_other_errors_pass_through(error):
    p, _ = data()
    with pytest.raises(type(error)) as caught:
        train(Spy(SGD(p.model, 0.1), error, at=3), p, 5)
    assert caught.value is error


def with_one(a, value):
    a = np.array(a)
    a.flat[1] = value
    return a


BAD = {
    "x is not finite": (lambda p, t: {"x": with_one(p.at.x, np.nan)}, "x must be finite"),
    "x has another width": (lambda p, t: {"x": p.at.x[:, :3]}, r"x must have shape \(any, 4\), got \(24, 3\)"),
    "x is empty": (lambda p, t: {"x": p.at.x[:0], "y": p.y[:0]}, "x must not be empty"),
    "y is too short": (lambda p, t: {"y": p.y[:-1]}, r"must have shape \(24,\)"),
    "y is out of range": (lambda p, t: {"y": with_one(p.y, 3)}, r"must hold labels 0\.\.2"),
    "weights do not fit": (lambda p, t: {"weights": [W.T for W in p.at.weights]}, r"weights\[1\] must have shape"),
    "weights are not finite": (lambda p, t: {"weights": [with_one(W, np.inf) for W in p.at.weights]},
                               r"weights\[0\] must be finite"),
    "test x": (lambda p, t: {"test": (t[0][:, :3], t[1])}, r"x must have shape \(any, 4\), got \(9, 3\)"),
    "test y": (lambda p, t: {"test": (t[0], with_one(t[1], -1))}, r"must hold labels 0\.\.2"),
    "iterations are negative": (lambda p, t: {"iterations": -1}, "iterations must be an integer of at least 0, got -1"),
    "iterations are no integer": (lambda p, t: {"iterations": 2.5}, "iterations must be an integer of at least 0"),
    "xi is above 1": (lambda p, t: {"xi": 1.5}, "xi must be at least 0 and at most 1, got 1.5"),
    "batches are too large": (lambda p, t: {"schedule": training.fixed(N + 1)}, "schedule must give batches of 1"),
    "a later batch is too large": (lambda p, t: {"schedule": training.growing(2 * N, 2, 4)},
                                   "schedule must give batches of 1"),
    "seconds are negative": (lambda p, t: {"seconds": -1}, "seconds must be at least 0, got -1"),
    "seconds are not a number": (lambda p, t: {"seconds": math.nan}, "seconds must be at least 0, got nan"),
    "test is no pair": (lambda p, t: {"test": t[0]}, r"test must be a pair \(x, y\), got ndarray"),
    "evaluate_at is no collection": (lambda p, t: {"evaluate_at": 5}, "evaluate_at must be a collection of steps, got"),
    "schedule is a number": (lambda p, t: {"schedule": 7}, r"schedule must be a function .* such as fixed\(7\), got 7"),
    "the seed is negative": (lambda p, t: {"seed": -1}, "seed must be an integer of at least 0, got -1"),
}


@pytest.mark.parametrize(("bad", "word"), BAD.values(), ids=BAD)
def test_bad_data_and_settings_are_refused_before_the_first_step(bad, word):
    p, held_out = data()
    good = {"weights": list(p.at.weights), "x": p.at.x, "y": p.y, "iterations": 5, "test": held_out}
    spy = Spy(SGD(p.model, 0.1))
    with pytest.raises(ValueError, match=word):
        training.train(spy, **(good | bad(p, held_out)))
    assert spy.calls == 0
    training.train(spy, **good)
    assert spy.calls == 5


# The bar


def test_there_is_no_bar_where_there_is_no_terminal(capfd):
    p, _ = data()
    train(SGD(p.model, 0.1), p, 3, progress=True)
    assert capfd.readouterr() == ("", "")


RUN = """
import sys, time
import numpy as np
import kfac_ref as kr
class Slow(kr.optimizers.KFAC):
    def step(self, state, x, y):
        time.sleep(0.02)            # the bar is drawn ten times a second
        return super().step(state, x, y)
model = kr.Model(kr.MLP((3, 4, 2)), kr.Gaussian())
rng = np.random.default_rng(0)
x, y, weights = rng.random((16, 3)), rng.random((16, 2)), model.init(rng)
kr.training.train(Slow(model), weights, x, y, 5, progress=False)
print("silent so far", file=sys.stderr)
kr.training.train(Slow(model), weights, x, y, 30, name="a run")
"""


def terminal():
    """Open a terminal of 24 x 120 and return its two ends, ours and that of a process."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    return ours, theirs


def rest(ours):
    """Return all that is still written on a terminal."""
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:                     # Linux ends a terminal that nobody writes to any more with EIO
        pass
    os.close(ours)
    return written


def on_a_terminal(code):
    """Run Python code with a terminal as its standard error and return what was written on it."""
    ours, theirs = terminal()
    root = Path(kr.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.DEVNULL, cwd=root) as process:
        os.close(theirs)
        written = rest(ours)
    assert process.returncode == 0, written
    return written.decode()


def visible(line):
    """Return what a terminal shows of a line in which the carriage returns."""
    shown = ""
    for part in line.split("\r"):
        shown = part + shown[len(part):]
    return shown.rstrip()


@pytest.mark.slow
def test_on_a_terminal_the_bar_shows_loss_and_lambda_and_disappears():
    silent, _, bar = on_a_terminal(RUN).replace("\r\n", "\n").partition("\n")
    assert silent == "silent so far"
    assert "a run:   0%|" in bar
    assert "/30 [" in bar
    for name in ("loss=", "lambda=", "gamma="):
        assert name in bar
    assert visible(bar.split("loss=")[0])                       # the witness sees a bar that is there
    assert visible(bar) == ""


@pytest.mark.parametrize(("losses", "far"), [
    ([], False), ([3.0], False), ([3.0, 6.0], False), ([3.0, 6.1], True), ([3.0, 400.0, 1.0], False),
    ([3.0, 1.0, 6.1], True), ([3.0, math.nan], True), ([3.0, math.inf], True), ([math.inf, math.inf], True)])
def test_a_run_has_diverged_that_ends_above_twice_its_start(losses, far):
    evaluations = [training.Evaluation(k, 0.0, loss, *[0.0] * 5) for k, loss in enumerate(losses)]
    assert training.diverged(evaluations) is far
