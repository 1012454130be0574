"""Rows of medians and ranges: what is drawn, what stands for a run that broke off, and that no text is cut off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kfac_ref import plotting
from kfac_ref.plotting import Panel, Rows
from tests.test_plotting import LONG, clipped

FULL = np.array([0.8, 0.7, 0.9, 0.75, 0.85])
WIDE = np.array([2.0, math.inf, 15.0, 3.0, math.inf])


@pytest.fixture(scope="module")
def figure():
    x = np.arange(1, 8)
    first = Rows("m = 500", "error", {"full": FULL, "a setting with quite a long name of its own": 1.5 * FULL})
    second = Rows("m = 60", "error", {"full": FULL, "wide": WIDE, "lost": np.full(5, math.inf)})
    panels = [Panel(name, "iterations", name, {line: (x, 0.1 * x + np.ones((3, 1))) for line in ("full", "no floor")})
              for name in ("lambda", "gamma")]
    return plotting.ranges([first, second], panels, LONG)


def row(axes, y):
    """Return the bar, the ticks and the dot of a row."""
    return [line for line in axes.lines if np.all(np.asarray(line.get_ydata()) == y)]


@pytest.mark.slow
def test_no_text_is_cut_off_and_the_caption_stands_below_the_axes(figure):
    for dpi in (72, 120):
        assert clipped(figure, dpi) == []
        assert figure._supxlabel.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes) + 1e-6
    assert " ".join(figure.get_supxlabel().split("\n")) == LONG.strip()


def test_a_row_shows_its_values_their_range_and_their_median(figure):
    bar, ticks, dot = row(figure.axes[0], 1)
    np.testing.assert_allclose(bar.get_xdata(), [1.05, 1.35])
    np.testing.assert_allclose(np.sort(ticks.get_xdata()), 1.5 * np.sort(FULL))
    np.testing.assert_allclose(dot.get_xdata(), [1.2])
    assert figure.axes[0].get_xscale() == "log"


def test_a_run_that_broke_off_counts_in_the_median_and_has_an_arrow(figure):
    low = figure.axes[2]
    bar, _, dot, arrow = row(low, 1)
    np.testing.assert_allclose(dot.get_xdata(), [15])               # of 2, 3, 15, inf, inf
    assert arrow.get_marker() == ">"
    assert bar.get_xdata()[1] == arrow.get_xdata()[0] > 15
    assert len(row(low, 0)) == 3


@pytest.mark.slow
def test_names_stand_on_the_left_and_numbers_on_the_right(figure):
    FigureCanvasAgg(figure).draw()
    low = figure.axes[2]
    assert [t.get_text() for t in low.get_yticklabels()] == ["full", "wide", "lost"]
    (numbers,) = low.child_axes
    assert [t.get_text() for t in numbers.get_yticklabels()] == ["0.8 (0.7 - 0.9)", "15 (2 - inf)", "inf (inf - inf)"]
    assert low.get_ylim()[0] > low.get_ylim()[1]                    # the first one on top
    assert low.get_title() == "m = 60"


def test_one_legend_is_for_both_panels(figure):
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["full", "no floor"]
    upper, lower = figure.axes[1], figure.axes[3]
    assert [line.get_color() for line in upper.lines] == [line.get_color() for line in lower.lines]


def test_the_range_of_the_first_row_is_shaded(figure):
    for axes in (figure.axes[0], figure.axes[2]):
        (band,) = axes.patches
        assert band.get_x() == pytest.approx(0.7)
        assert band.get_width() == pytest.approx(0.2)
