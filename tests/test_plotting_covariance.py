"""The picture of the error as a covariance: one scale, marked groups, and no text cut off."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import AsinhNorm
from matplotlib.image import AxesImage

from kfac_ref import plotting
from tests.test_plotting import LONG, clipped

TITLES = ("R(F_ii) = E[vec Gamma vec Alphaᵀ]", "R(A ⊗ G) = E[vec Gamma] E[vec Alpha]ᵀ", "difference")
ROWS, COLUMNS = {"g²": 3, "g g′": 5}, {"a·1": 4, "a²": 3, "a a′": 6}
BARS = {"4th order:\nκ(a, a′, g, g′)": (0.5, -0.1), "3rd order:\nE[a] κ(a′, g, g′)": (0.7, 0.6),
        "3rd order:\nE[a′] κ(a, g, g′)": (0.7, 0.5)}


def matrices():
    rng = np.random.default_rng(0)
    return {title: 10.0**-k * rng.standard_normal((8, 13)) for k, title in enumerate(TITLES)}


@pytest.fixture(scope="module")
def figure():
    spectra = {name: (np.geomspace(1, 1e-5, 40), "the rest together\n0.294: error of the best product")
               for name in ("R(F_ii)", "Cov(vec Gamma, vec Alpha)")}
    return plotting.error_as_covariance(matrices(), ROWS, COLUMNS, spectra, BARS, LONG)


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title() in TITLES]


@pytest.mark.slow
def test_no_text_is_cut_off_and_the_caption_stands_below_the_axes(figure):
    for dpi in (72, 100):
        assert clipped(figure, dpi) == []
        assert figure._supxlabel.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert " ".join(figure.get_supxlabel().split("\n")) == LONG.strip()


def test_the_three_matrices_are_as_given_and_share_a_signed_scale(figure):
    top = max(np.abs(M).max() for M in matrices().values())
    for axes, (title, M) in zip(panels(figure), matrices().items(), strict=True):
        (image,) = axes.findobj(AxesImage)
        assert axes.get_title() == title
        np.testing.assert_array_equal(image.get_array(), M)
        assert isinstance(image.norm, AsinhNorm)
        assert (image.norm.vmin, image.norm.vmax) == (-top, top)
        assert image.norm(0.0) == pytest.approx(0.5)
        assert image.get_extent() == [0, 13, 8, 0]


def test_groups_are_marked_where_they_end_and_named_in_their_middle(figure):
    for axes in panels(figure):
        horizontal = [line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[1]]
        vertical = [line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1]]
        assert (horizontal, vertical) == ([3], [4, 7])
        np.testing.assert_array_equal(axes.get_xticks(), [2, 5.5, 10])
        np.testing.assert_array_equal(axes.get_yticks(), [1.5, 5.5])
        assert [t.get_text() for t in axes.get_xticklabels()] == list(COLUMNS)


def test_spectra_are_logarithmic_and_bars_bear_their_numbers(figure):
    left, right = (axes for axes in figure.axes if axes.get_legend())
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert [len(line.get_ydata()) for line in left.lines] == [40, 40]
    assert [t.get_text().split(":")[0] for t in left.get_legend().get_texts()] == ["R(F_ii)",
                                                                                  "Cov(vec Gamma, vec Alpha)"]
    assert [bar.get_width() for bar in right.patches] == [0.5, 0.7, 0.7, -0.1, 0.6, 0.5]
    assert {"0.50", "0.70", "-0.10", "0.60"} <= {t.get_text() for t in right.texts}
    assert right.yaxis_inverted()
