"""The picture of the decrease of h against the strength of the damping: what is drawn where, and nothing is cut off."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kfac_ref import plotting
from tests.test_plotting import LONG, clipped

STRENGTH = np.logspace(-5, 2, 29)
STEPS = ("no re-scaling", "re-scaling", "re-scaling and momentum")
USED = {"early": 0.06, "late": 0.003}


def panels(scale=1.0, bad=1e6):
    """Return curves that fall from a maximum, those without re-scaling to very large negative values."""
    rng = np.random.default_rng(0)
    bump = np.exp(-(np.log10(STRENGTH) + 1) ** 2)
    fall = {"no re-scaling": bump - bad * np.maximum(1e-3 / STRENGTH - 1e-3, 0), "re-scaling": 3 * bump,
            "re-scaling and momentum": 5 * bump}
    return {title: {f"{damping} damping": {step: factor * scale * (1 + 0.1 * rng.random()) * y
                                           for step, y in fall.items()} for damping in ("factored", "exact")}
            for title, factor in (("early", 1), ("late", 1e-3))}


def curves_of(axes):
    return [line for line in axes.lines if len(line.get_xdata()) == len(STRENGTH)]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "bad"), [(1.0, 1e6), (1e-6, 1.0), (1e3, 0.0), (1.0, 1e200)])
def test_no_text_is_cut_off_or_meets_another(scale, bad):
    figure = plotting.decreases(STRENGTH, panels(scale, bad), USED, LONG)
    for dpi in (72, plotting.STYLE["figure.dpi"]):
        assert clipped(figure, dpi) == []
        assert figure._supxlabel.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
        for axes in figure.axes:
            low, high = axes.get_ylim()
            boxes = [t.label1.get_window_extent() for t in axes.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
            assert len(boxes) >= 3
            assert all(a.y1 <= b.y0 for a, b in pairwise(boxes))


def test_every_value_is_drawn_and_lies_within_the_panel():
    shown = panels()
    figure = plotting.decreases(STRENGTH, shown, USED, "A caption.")
    assert [axes.get_title() for axes in figure.axes] == ["early", "late"]
    for axes, dampings in zip(figure.axes, shown.values(), strict=True):
        given = [y for steps in dampings.values() for y in steps.values()]
        for line, y in zip(curves_of(axes), given, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), STRENGTH)
            np.testing.assert_array_equal(line.get_ydata(), y)
        low, high = axes.get_ylim()
        assert low < np.min(given)
        assert high > np.max(given)


def test_the_axis_is_linear_above_zero_logarithmic_below_and_can_be_inverted():
    figure = plotting.decreases(STRENGTH, panels(), USED, "")
    for axes in figure.axes:
        to = axes.yaxis.get_transform()
        high = axes.get_ylim()[1]
        np.testing.assert_allclose(to.transform(high * np.array([0.25, 0.5, 1])),
                                   to.transform(np.array([high])) * [0.25, 0.5, 1], rtol=1e-12)
        deep = to.transform(-high * np.array([1e3, 1e4, 1e5]))
        np.testing.assert_allclose(deep[0] - deep[1], deep[1] - deep[2], rtol=2e-3)
        values = high * np.array([-1e4, -3.0, -1e-3, 0, 0.2, 1])
        np.testing.assert_allclose(to.inverted().transform(to.transform(values)), values, rtol=1e-9, atol=1e-15)
        bottom, zero, top = to.transform(np.array([axes.get_ylim()[0], 0, high]))
        assert bottom < zero == 0 < top
        assert top > -1.5 * bottom                                  # the upper part is the larger one


def test_a_damping_has_a_colour_and_a_kind_of_step_a_dash_pattern():
    figure = plotting.decreases(STRENGTH, panels(), USED, "")
    for axes in figure.axes:
        lines = curves_of(axes)
        assert [to_hex(line.get_color()).upper() for line in lines] == [c for c in plotting.COLOURS[:2]
                                                                        for _ in range(3)]
        dashes = [repr(line._dash_pattern) for line in lines]
        assert dashes[:3] == dashes[3:]
        assert len(set(dashes)) == 3
    entries = [t.get_text() for t in figure.legends[0].get_texts()]
    assert entries == [f"{damping} damping, {step}" for step in STEPS for damping in ("factored", "exact")]


def test_the_best_of_each_line_and_the_strength_of_the_run_are_marked():
    shown = panels()
    figure = plotting.decreases(STRENGTH, shown, USED, "")
    for axes, (title, dampings) in zip(figure.axes, shown.items(), strict=True):
        points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
        given = [y for steps in dampings.values() for y in steps.values()]
        assert points == [(STRENGTH[np.argmax(y)], y.max()) for y in given]
        assert [USED[title]] * 2 in [list(line.get_xdata()) for line in axes.lines]


@pytest.mark.slow
def test_steps_to_where_h_is_not_finite_leave_a_gap():
    shown = panels()
    shown["early"]["factored damping"]["no re-scaling"][:5] = np.nan
    shown["early"]["exact damping"]["no re-scaling"][:] = np.nan
    figure = plotting.decreases(STRENGTH, shown, USED, LONG)
    assert clipped(figure, 100) == []
    assert np.isfinite(figure.axes[0].get_ylim()).all()
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]) == 5


@pytest.mark.slow
def test_h_may_rise_or_fall_everywhere():
    for sign in (1, -1):
        shown = {"early": {"factored damping": {"re-scaling": sign * np.linspace(1, 2, len(STRENGTH))}}}
        figure = plotting.decreases(STRENGTH, shown, USED, LONG)
        assert clipped(figure, 100) == []
        low, high = figure.axes[0].get_ylim()
        assert low < -1 * (sign < 0) <= 2 * (sign > 0) < high
