"""What ``figures/safeguards.py`` and ``figures/plateau.py`` compute, on numbers that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kfac_ref.experiments.settings import Settings
from tests.figure_scripts import load

safeguards, plateau = load("safeguards"), load("plateau")


def run(error, factor=1.0, undone=0, lambda_=(1.0,), gamma=(0.5,)):
    return safeguards.Run(error, math.inf, factor - 1, factor, undone, (1.0, 0.1, 0.9), list(lambda_), list(gamma))


def test_errors_are_compared_with_the_full_algorithm_seed_by_seed():
    found = safeguards.summary({safeguards.FULL: [run(1.0), run(2.0)], "other": [run(1.5), run(3.0, 2.5, 4)],
                                "lost": [run(4.0), run(math.inf)]})
    other, lost = found["other"], found["lost"]
    assert other["error_median"] == 2.25
    assert other["ratio_to_full_median"] == 1.5
    assert (other["seeds_better_than_full"], other["seeds_worse_than_full"]) == (0, 2)
    assert other["ranges_overlap"]
    assert not lost["ranges_overlap"]
    assert (other["undone"], other["runs_where_h_doubled"], lost["broke_off"]) == ([0, 4], 1, 1)


def test_what_is_beyond_the_spread_is_told_from_what_is_within():
    said = safeguards.spread(safeguards.summary({
        safeguards.FULL: [run(1.0), run(2.0)], "far": [run(2.1), run(3.0)], "near": [run(1.1), run(2.2)],
        "good": [run(0.8), run(0.9)], "mixed": [run(1.1), run(1.9)]}))
    assert said.split("; ") == [
        "full algorithm 1.50 (1.00 to 2.00)", "worse beyond the spread: [far] 2.55", "better beyond it: [good] 0.85",
        "within it, but worse on each of the 2 seeds: [near] 1.65", "within it, now better and now worse: [mixed]"]


def test_where_nothing_is_undone_the_rule_changes_no_bit():
    data = Settings(dtype="float32").dataset()
    with_rule, without = (safeguards.run({"tau2": 0.5, **undo}, 60, 10, 0, data) for undo in ({}, {"undo": None}))
    assert with_rule.undone == 0
    assert with_rule == without


def test_h_rises_where_steps_are_long_and_any_rise_is_taken_back_when_told_so():
    data = Settings(dtype="float32").dataset()
    change = {"tau2": 1 / 30, "T1": 1, "lambda_0": 1e-6, "lambda_floor": 0.0}
    wild, tame = (safeguards.run({**change, "undo": undo}, 60, 15, 0, data) for undo in (None, 0.0))
    assert wild.kept[0] > 1
    assert tame.undone > 0
    assert tame.kept[0] <= 1


def test_a_run_has_left_the_plateau_when_it_does_not_come_back():
    k = [1, 2, 3, 4, 5]
    assert plateau.left_at(k, [20, 17, 19, 17, 16], 18) == 4
    assert plateau.left_at(k, [17, 17, 17, 17, 17], 18) == 1
    assert plateau.left_at(k, [20, 17, 16, 15, math.nan], 18) == math.inf
    assert plateau.left_at(k, [20, 20, 20, 20, 18], 18) == math.inf


def test_when_runs_left_is_put_in_words():
    assert plateau.in_words([3, 7], 9) == "after 3 to 7 iterations (2 seeds)"
    assert plateau.in_words([5], 9) == "after 5 iterations (1 seed)"
    assert plateau.in_words([5, math.inf], 9) == "after 5 iterations in 1 of 2 seeds, not within 9 in the other"
    assert plateau.in_words([math.inf], 9) == "not within 9 iterations (1 seed)"


def test_the_error_of_the_mean_image_is_the_variance_of_the_images():
    x = np.random.default_rng(0).random((40, 7))
    assert plateau.mean_image_error(x, 40) == pytest.approx(x.var(axis=0).sum(), rel=1e-12)
    assert plateau.mean_image_error(x, 10) == pytest.approx(
        x[:10].var(axis=0).sum() + np.sum((x[:10].mean(axis=0) - x.mean(axis=0)) ** 2), rel=1e-12)
