"""Rows of matrices, and a matrix beside its inverse: scales, marks, and that no text is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage

from kfac_ref import plotting

from .test_plotting import LONG, clipped

pytestmark = pytest.mark.slow

SIZES = (8, 6, 4)
LAYERS = ("1", "2", "3")


def matrices(count, scale=1.0, P=18):
    rng = np.random.default_rng(count)
    return {f"|matrix {i}|": scale * rng.standard_normal((P, P)) for i in range(count)}


def structure(P=18):
    rng = np.random.default_rng(0)
    return {f"gamma = {10.0**-i:g}": (10.0**-i * rng.standard_normal((P, P)), 10.0**i * rng.standard_normal((P, P)),
                                      10.0**i * (rng.random((3, 3)) + 0.1)) for i in (1, 2)}


def panels(figure):
    """Return the axes with a picture of a matrix, row by row, without those of the colour bars."""
    return [axes for axes in figure.axes if axes.findobj(AxesImage) and axes.get_xticks().size and not axes.get_label()]


@pytest.fixture(scope="module", params=["one row", "two rows of five", "structure"])
def figure(request):
    if request.param == "structure":
        return plotting.block_structure(structure(), SIZES, LONG, LAYERS)
    rows = {"one row": {"after 7 steps": matrices(3)},
            "two rows of five": {"matrix": matrices(5), "inverse": matrices(5, 1e3)}}[request.param]
    return plotting.matrix_rows(rows, SIZES, LONG, LAYERS)


@pytest.mark.slow
def test_no_text_is_cut_off_and_the_caption_stands_below_the_axes(figure):
    for dpi in (72, figure.get_dpi()):
        assert clipped(figure, dpi) == []
        bottom = min(axes.get_tightbbox().y0 for axes in figure.axes)
        assert figure._supxlabel.get_window_extent().y1 <= bottom
    assert " ".join(figure._supxlabel.get_text().split()) == LONG.strip()


def test_the_labels_of_neighbouring_panels_do_not_meet(figure):
    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0


def test_a_row_has_one_scale_whose_top_is_its_largest_cell():
    rows = {"a": matrices(2), "b": matrices(2, 1e3)}
    shown = np.reshape(panels(plotting.matrix_rows(rows, SIZES, "", decades=3)), (2, 2))
    for axes_row, row in zip(shown, rows.values(), strict=True):
        top = max(np.abs(M).max() for M in row.values())
        for axes, M in zip(axes_row, row.values(), strict=True):
            image = axes.images[0]
            assert isinstance(image.norm, LogNorm)
            assert image.norm.vmax == top
            assert image.norm.vmin == pytest.approx(top * 1e-3, rel=1e-14)
            np.testing.assert_allclose(image.get_array(), np.maximum(np.abs(M), top * 1e-3), rtol=1e-14)


def test_titles_rows_and_layers_have_their_names():
    rows = {"a": matrices(2), "b": matrices(2)}
    for layers, names in ((None, ["0", "1", "2"]), (LAYERS, list(LAYERS))):
        shown = np.reshape(panels(plotting.matrix_rows(rows, SIZES, "", layers)), (2, 2))
        assert [axes.get_title() for axes in shown.ravel()] == list(rows["a"]) * 2
        assert [axes.get_ylabel() for axes in shown[:, 0]] == ["a\nlayer", "b\nlayer"]
        for axes in shown.ravel():
            assert [t.get_text() for t in axes.get_xticklabels()] == names == [
                t.get_text() for t in axes.get_yticklabels()]
            assert {line.get_xdata()[0] for line in axes.lines} >= {8, 14}


def test_large_matrices_are_drawn_as_means_of_the_absolute_entries():
    row = matrices(2)
    for axes, M in zip(panels(plotting.matrix_rows({"a": row}, SIZES, "", cells=6)), row.values(), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), np.abs(M).reshape(6, 3, 6, 3).mean(axis=(1, 3)),
                                   rtol=1e-14)
        assert axes.images[0].get_extent() == [0, 18, 18, 0]


def test_a_matrix_shares_its_scale_with_the_other_rows_and_an_inverse_does_not():
    rows = structure()
    shown = np.reshape(panels(plotting.block_structure(rows, SIZES, "", LAYERS)), (2, 3))
    top = max(np.abs(M).max() for M, _, _ in rows.values())
    for axes, (_, inverse, means) in zip(shown, rows.values(), strict=True):
        assert axes[0].images[0].norm.vmax == top
        assert axes[1].images[0].norm.vmax == np.abs(inverse).max()
        np.testing.assert_allclose(axes[2].images[0].get_array(), means / means.max(), rtol=1e-14)
        assert axes[2].images[0].norm.vmax == 1
        # In each cell stands its number, at its place.
        for text in axes[2].texts:
            j, i = text.get_position()
            assert text.get_text() == f"{means[i, j] / means.max():.3f}"
        assert len(axes[2].texts) == 9
        assert [t.get_text() for t in axes[2].get_xticklabels()] == list(LAYERS)
    assert shown[0, 2].images[0].norm.vmin == shown[1, 2].images[0].norm.vmin


def test_numbers_in_cells_stand_out_from_their_colour():
    for axes in panels(plotting.block_structure(structure(), SIZES, ""))[2::3]:
        image = axes.images[0]
        for text in axes.texts:
            j, i = text.get_position()
            red, green, blue, _ = image.cmap(image.norm(image.get_array()[i, j]))
            luminance = 0.299 * red + 0.587 * green + 0.114 * blue
            assert abs(luminance - (text.get_color() == "white")) > 0.35


def test_the_steps_of_the_colour_scale_are_small():
    image = panels(plotting.matrix_rows({"a": matrices(1)}, SIZES, ""))[0].images[0]
    assert image.cmap.N == 48
