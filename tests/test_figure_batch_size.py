"""What the figure about batch sizes counts: against runs whose error is a power law."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kfac_ref import training

from .figure_scripts import load


@pytest.fixture(scope="module")
def batch_size():
    return load("batch_size")


def evaluations(c, q=0.5, end=1000):
    """Return a run with the error (c / k)^q, and twice that for the averaged iterate."""
    steps = [k for k in training.evaluation_steps(end) if k]
    return [training.Evaluation(k, 0.0, 0.0, (c / k)**q, 2 * (c / k)**q, 0.0, 0.0, 0.0) for k in steps]


@pytest.mark.parametrize("level", [0.9, 0.5, 0.31])
def test_a_power_law_is_crossed_where_it_is(batch_size, level):
    c, q = 90.0, 0.5
    np.testing.assert_allclose(batch_size.crossing(evaluations(c, q), level), c * level ** (-1 / q), rtol=1e-12)
    averaged = batch_size.crossing(evaluations(c, q), 2 * level, averaged=True)
    np.testing.assert_allclose(averaged, c * level ** (-1 / q), rtol=1e-12)


def test_a_level_that_holds_at_once_or_never(batch_size):
    assert batch_size.crossing(evaluations(90.0), 100.0) == 1
    assert batch_size.crossing(evaluations(90.0), 0.1) == math.inf


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.7])
def test_the_exponent_of_runs_that_follow_a_power_law_is_found(batch_size, p):
    # The seeds differ by a factor, the same for all batch sizes: exponents do not see it.
    runs = {m: [evaluations(400 * f * (100 / m)**p, 1.0) for f in (0.8, 1.0, 1.1)] for m in (100, 250, 500)}
    found = batch_size.count(runs, 0.9)
    np.testing.assert_allclose([found["iterations"][m] for m in runs],
                               [400 * (100 / m)**p / 0.9 for m in runs], rtol=1e-10)
    assert list(found["exponent"]) == ["100-250", "250-500", "100-500"]
    np.testing.assert_allclose(list(found["exponent"].values()), [p] * 3, atol=1e-10)
    np.testing.assert_allclose(list(found["exponent_range"].values()), [[p, p]] * 3, atol=1e-10)
    assert found["cases"] == {m: m * k for m, k in found["iterations"].items()}
    for m in runs:
        np.testing.assert_allclose(found["iterations_range"][m],
                                   [f * 400 * (100 / m)**p / 0.9 for f in (0.8, 1.1)], rtol=1e-10)


def test_what_is_not_reached_is_said(batch_size):
    runs = {m: [evaluations(c, 1.0, 50)] * 3 for m, c in ((100, 400), (250, 20), (500, 20))}
    counts = {"K-FAC": {level: batch_size.count(runs, 0.9) for level in batch_size.TOLD}}
    assert math.isnan(counts["K-FAC"]["1"]["exponent"]["100-250"])
    assert np.isnan(counts["K-FAC"]["1"]["exponent_range"]["100-250"]).all()
    text = batch_size.describe(counts, 3)
    assert "K-FAC takes -, 22, 22 iterations (p = -, 0.00; from first to last -)" in text
    assert counts["K-FAC"]["1"]["exponent_at_least"].keys() == {"100-250", "100-500"}
    np.testing.assert_allclose(counts["K-FAC"]["1"]["exponent_at_least"]["100-250"],
                               np.log(50 / (20 / 0.9)) / np.log(2.5), rtol=1e-12)
    assert "in 0 of 2 steps" in text


def test_the_caption_counts_the_exponents_above_one(batch_size):
    runs = {m: [evaluations(400 * (100 / m)**p, 1.0)] for m, p in ((100, 1), (250, 1.2), (500, 0.8))}
    text = batch_size.describe({"K-FAC": {level: batch_size.count(runs, 0.9) for level in batch_size.TOLD}}, 1)
    assert "To an error of 1, K-FAC takes 444, 148, 123 iterations (p = 1.20, 0.27; from first to last 0.80)" in text
    assert ("K-FAC: p is above 1 in 2 of 4 steps (levels 1, 0.7): m = 100-250 at 1 (1.20), m = 100-250 at 0.7 (1.20)."
            in text)


def test_a_run_that_does_not_get_there_bounds_the_exponent(batch_size):
    runs = {m: [evaluations(c, 1.0, 100)] * 3 for m, c in ((100, 400), (250, 20), (500, 20))}
    text = batch_size.describe({"K-FAC": {level: batch_size.count(runs, 0.9) for level in batch_size.TOLD}}, 3)
    bound = np.log(100 / (20 / 0.9)) / np.log(2.5)
    assert f"in 2 of 4 steps (levels 1, 0.7): m = 100-250 at 1 ({bound:.2f} or more)" in text


def test_the_settings_are_those_that_were_tuned_and_cover_the_runs(batch_size):
    tuned = json.loads((batch_size.HERE / "tune.json").read_text())
    assert {method: {int(m): s for m, s in sizes.items()} for method, sizes in tuned["chosen"].items()} == \
        batch_size.SETTINGS
    assert not {*tuned["seeds"]} & {*batch_size.SEEDS}
    counts = {(method, m): 0 for method, sizes in batch_size.ITERATIONS.items() for m in sizes}
    for trial in tuned["trials"]:
        counts[trial["method"], trial["batch"]] += 1
    assert len(set(counts.values())) == 1                       # every method the same number of trials
    for method, sizes in batch_size.ITERATIONS.items():
        for m in sizes:
            trials = [t for t in tuned["trials"] if (t["method"], t["batch"]) == (method, m)]
            best = min(trials, key=lambda t: math.inf if t["score"] is None else t["score"])
            assert best["settings"] == batch_size.SETTINGS[method][m]


def test_tuning_runs_and_writes_all_trials(batch_size, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "TUNING_ITERATIONS", {"K-FAC": {100: 3}, "SGD": {100: 3}})
    chosen = batch_size.tune(tmp_path)
    content = json.loads((tmp_path / "tune.json").read_text())
    assert len(content["trials"]) == 2 * 4
    assert content["chosen"] == {method: {"100": settings[100]} for method, settings in chosen.items()}
    assert content["environment"]
