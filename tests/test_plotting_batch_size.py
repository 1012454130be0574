"""The picture of error by batch size: what is drawn where, and nothing is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kfac_ref import plotting
from tests.test_plotting import LONG, clipped

SIZES = (100, 250, 500, 1500)


def curves(methods=("K-FAC", "SGD"), seeds=3):
    rng = np.random.default_rng(0)
    iterations = np.array([1, 3, 10, 40, 100])
    return {method: {m: (iterations[:4 if m == 1500 else 5],
                         (20 * (1 + rng.random((seeds, 5))) / np.sqrt(iterations))[:, :4 if m == 1500 else 5])
                     for m in SIZES} for method in methods}


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("K-FAC", "SGD"), ("K-FAC",)])
def test_no_text_is_cut_off(methods):
    figure = plotting.batch_sizes(curves(methods), "training error\n(mean over cases of something)", LONG)
    for dpi in (72, plotting.STYLE["figure.dpi"]):
        assert clipped(figure, dpi) == []
        top = figure._supxlabel.get_window_extent().y1
        assert top <= min(axes.get_tightbbox().y0 for axes in figure.axes)
        assert top <= figure._supylabel.get_window_extent().y0


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_row_is_a_method_and_the_columns_are_iterations_and_cases(seeds):
    given = curves(seeds=seeds)
    figure = plotting.batch_sizes(given, "error", "A caption.")
    grid = np.reshape(figure.axes, (2, 2))
    assert [axes.get_title() for axes in grid[:, 0]] == list(given)
    assert [axes.get_xlabel() for axes in grid[-1]] == ["iterations", "examples processed (iterations times m)"]
    assert figure.get_supylabel() == "error"
    for row, sizes in zip(grid, given.values(), strict=True):
        for k, (m, (iterations, errors)) in enumerate(sizes.items()):
            for axes, factor in zip(row, (1, m), strict=True):
                np.testing.assert_array_equal(axes.lines[k].get_xdata(), factor * iterations)
                np.testing.assert_allclose(axes.lines[k].get_ydata(), np.sort(errors, 0)[seeds // 2], rtol=1e-14)
                band = axes.collections[k].get_paths()[0].vertices
                np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [errors.min(), errors.max()])


def test_the_axes_are_shared_and_logarithmic():
    grid = np.reshape(plotting.batch_sizes(curves(), "error", "").axes, (2, 2))
    assert len({axes.get_ylim() for axes in grid.ravel()}) == 1
    for column in grid.T:
        assert len({axes.get_xlim() for axes in column}) == 1
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in grid.ravel()} == {("log", "log")}


def test_a_batch_size_has_the_same_colour_and_dashes_everywhere():
    figure = plotting.batch_sizes(curves(), "error", "")
    for axes in figure.axes:
        assert [to_hex(line.get_color()).upper() for line in axes.lines] == list(plotting.COLOURS[:4])
        assert len({repr(line._dash_pattern) for line in axes.lines}) == 4
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [f"m = {m}" for m in SIZES]
