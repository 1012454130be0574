"""The picture of one run: what is drawn where, that a zero has a place, and that no text is cut off."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest

from kfac_ref import plotting, training

from .test_plotting import LONG, clipped

pytestmark = pytest.mark.slow

STEPS = range(1, 31)


def evaluations(error=lambda k: 9 / (k + 1), test=True):
    return [training.Evaluation(k, 0.1 * k, 1.0, error(k), 2 * error(k), 1.0, 3 * error(k) if test else math.nan, 1.0)
            for k in training.evaluation_steps(len(STEPS))]


def records(**fields):
    return [{"k": k, "loss": 1.0, "seconds": {"gradient": 1e-3 * k, "update": 1e-3},
             **{name: value(k) for name, value in fields.items()}} for k in STEPS]


def drawn(axes):
    return {line.get_label(): (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
            for line in axes.lines}


def test_lines_are_the_data():
    steps = records(lambda_=lambda k: 1 / k, gamma=lambda k: 2.0)
    errors, strengths, times = plotting.run(evaluations(), steps, "text").axes
    k = training.evaluation_steps(30)[1:]
    found = drawn(errors)
    assert list(found) == ["training", "training, averaged iterate", "held out"]
    for (x, y), factor in zip(found.values(), (1, 2, 3), strict=True):
        np.testing.assert_array_equal(x, k)
        np.testing.assert_allclose(y, [factor * 9 / (i + 1) for i in k], rtol=1e-14)
    found = drawn(strengths)
    assert list(found) == ["lambda", "gamma"]
    np.testing.assert_allclose(found["lambda"], [STEPS, [1 / i for i in STEPS]], rtol=1e-14)
    np.testing.assert_array_equal(found["gamma"], [STEPS, [2.0] * 30])
    (x, y), = drawn(times).values()
    np.testing.assert_array_equal(x, STEPS)
    np.testing.assert_allclose(y, [i + 1 for i in STEPS], rtol=1e-12)       # milliseconds, all stages together
    assert {axes.get_xscale() for axes in (errors, strengths, times)} == {"log"}
    assert {axes.get_yscale() for axes in (errors, strengths, times)} == {"log"}
    assert [axes.get_title() for axes in (errors, strengths, times)] == \
        ["error", "strength of damping, or learning rate", "milliseconds per step"]


def test_lines_can_be_told_apart_without_colour():
    errors = plotting.run(evaluations(), records(learning_rate=lambda k: 0.1), "text").axes[0]
    assert len({line.get_linestyle() + str(line._unscaled_dash_pattern) for line in errors.lines}) == 3


def test_a_baseline_shows_its_learning_rate():
    strengths = plotting.run(evaluations(), records(learning_rate=lambda k: 0.1), "text").axes[1]
    assert list(drawn(strengths)) == ["learning rate"]
    assert [text.get_text() for text in strengths.get_legend().get_texts()] == ["learning rate"]


def test_without_a_held_out_set_it_is_not_drawn():
    errors = plotting.run(evaluations(test=False), records(gamma=lambda k: 1.0), "text").axes[0]
    assert list(drawn(errors)) == ["training", "training, averaged iterate"]


def test_an_error_of_zero_has_a_place():
    # A classifier that makes no errors any more: a logarithmic axis would leave that out.
    figure = plotting.run(evaluations(lambda k: 0.5**k if k < 8 else 0.0), records(gamma=lambda k: 1.0), "text")
    errors = figure.axes[0]
    figure.savefig(BytesIO())
    assert errors.get_yscale() == "symlog"
    assert errors.get_ylim()[0] <= 0
    low, high = errors.transData.transform([(9, 0.0), (7, 0.5**7)])[:, 1]
    assert errors.bbox.y0 - 1 <= low < high
    assert figure.axes[2].get_yscale() == "log"


@pytest.mark.parametrize(("shown", "steps"), [
    (evaluations()[:1], []), (evaluations(), []), (evaluations()[:1], records(gamma=lambda k: 1.0)[:1]),
    (evaluations()[:2], records(gamma=lambda k: 1.0)[:1]), (evaluations(lambda k: 0.0), records(gamma=lambda k: 0.0)),
    (evaluations(), records(gamma=lambda k: None if k % 2 else 1.0)), (evaluations(lambda k: math.nan), records())])
def test_short_and_odd_runs_are_drawn_without_a_warning(shown, steps):
    figure = plotting.run(shown, steps, "text")
    figure.savefig(BytesIO())
    assert [axes.get_xlabel() for axes in figure.axes] == ["steps"] * 3
    assert (figure.axes[1].get_legend() is None) == (not steps or "gamma" not in steps[0])


@pytest.mark.slow
def test_no_text_is_cut_off_and_the_caption_stands_below_the_axes():
    figure = plotting.run(evaluations(), records(lambda_=lambda k: 1 / k, gamma=lambda k: 1 + k), LONG)
    for dpi in (72, plotting.STYLE["figure.dpi"]):
        assert clipped(figure, dpi) == []
        bottom = min(axes.get_tightbbox().y0 for axes in figure.axes)
        assert figure._supxlabel.get_window_extent().y1 <= bottom
    assert " ".join(figure.get_supxlabel().split()) == LONG.strip()
