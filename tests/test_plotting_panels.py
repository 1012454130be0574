"""Panels of lines: what is drawn, that lines can be told apart, and that no text is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kfac_ref import plotting
from kfac_ref.plotting import Panel
from tests.test_plotting import LONG, clipped

X = np.array([1.0, 3, 10, 40, 100])


def panel(title, count, **settings):
    rng = np.random.default_rng(count)
    return Panel(title, "step", "relative distance to the exact factor",
                 {f"a line of {title}, of some length {i}": (X, 0.1 + rng.random(5)) for i in range(count)}, **settings)


@pytest.fixture(scope="module")
def row():
    repeats = 0.1 + np.random.default_rng(0).random((4, 5))
    first = Panel("first", "cases", "distance", {"repeated": (X, repeats), "once": (X, repeats[0])})
    return plotting.side_by_side([first, panel("second", 4, y_scale="linear"), panel("third", 7)], LONG)


@pytest.fixture(scope="module")
def grid():
    names = [f"approximation {i} (of a long name)" for i in range(12)]
    values = 0.1 + np.random.default_rng(0).random((12, 5))
    whole = Panel("whole", "step", "error", {n: (X, v) for n, v in zip(names, values, strict=True)})
    part = Panel("blocks", "step", "error", {n: (X, v) for n, v in zip(names[3:], values[3:], strict=True)})
    return plotting.with_one_legend([whole, part], panel("training", 2, x_scale="symlog"), LONG)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["row", "grid"])
def test_no_text_is_cut_off_and_the_caption_stands_below_the_axes(name, request):
    figure = request.getfixturevalue(name)
    for dpi in (72, 120):
        assert clipped(figure, dpi) == []
        assert figure._supxlabel.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes) + 1e-6
    assert " ".join(figure.get_supxlabel().split("\n")) == LONG.strip()


def test_repeats_are_drawn_as_their_median_with_their_range(row):
    axes = row.axes[0]
    repeats = 0.1 + np.random.default_rng(0).random((4, 5))
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), np.median(repeats, axis=0))
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), repeats[0])
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    np.testing.assert_array_equal(np.unique(corners[:, 1]), np.unique([repeats.min(0), repeats.max(0)]))


def test_each_panel_has_its_scales_labels_and_legend(row):
    assert [axes.get_title() for axes in row.axes] == ["first", "second", "third"]
    assert [(axes.get_xscale(), axes.get_yscale()) for axes in row.axes] == [("log", "log"), ("log", "linear"),
                                                                             ("log", "log")]
    for axes in row.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert [t.get_text() for t in axes.get_legend().get_texts()] == [line.get_label() for line in axes.lines]


def test_too_many_lines_are_refused():
    with pytest.raises(ValueError, match="a panel must have at most 7 lines, got 8 in 'many'"):
        plotting.side_by_side([panel("many", 8)], "")


def look(line):
    return line.get_color(), line.get_marker(), repr(line._dash_pattern)


def test_twelve_lines_are_told_apart_and_look_the_same_in_both_panels(grid):
    left, right, low, beside = grid.axes
    looks = {line.get_label(): look(line) for line in left.lines}
    assert len(set(looks.values())) == len({marker for _, marker, _ in looks.values()}) == 12
    assert {line.get_label(): look(line) for line in right.lines} == dict(list(looks.items())[3:])
    assert [t.get_text() for t in beside.get_legend().get_texts()] == list(looks)
    assert len(low.get_legend().get_texts()) == 2
    # Lines of one colour do not share a dash.
    assert len({(colour, dash) for colour, _, dash in looks.values()}) == 12


@pytest.mark.slow
def test_the_two_panels_share_an_axis_of_plain_numbers(grid):
    left, right = grid.axes[:2]
    FigureCanvasAgg(grid).draw()
    assert left.get_ylim() == right.get_ylim()
    shown = np.concatenate([line.get_ydata() for axes in (left, right) for line in axes.lines])
    assert left.get_ylim()[0] <= shown.min() < shown.max() <= left.get_ylim()[1]
    labels = [t.get_text() for t in left.get_yticklabels() if t.get_text()]
    assert {"0.2", "0.5", "1"} <= set(labels)
    assert not any("$" in text for text in labels)
