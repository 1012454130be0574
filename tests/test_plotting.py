"""The pictures: what is drawn where, that nothing is cut off, and that no setting of the user's is touched."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text

import kfac_ref
from kfac_ref import datasets, plotting, training
from kfac_ref.experiments import autoencoder, classifier, tables

pytestmark = pytest.mark.slow

NAMES = ("K-FAC, m = 500", "SGD, m = 500", "SGD, m = 100", "Adam, m = 500", "Adam, m = 100")
LONG = "A caption of many words that would not fit on a single line of any figure in this package. " * 4


def curves(names=NAMES):
    rng = np.random.default_rng(0)
    iterations = np.array([1, 3, 10, 40, 100])
    return {name: plotting.Curve(iterations, np.outer(1 + rng.random(3), iterations / 100),
                                 10 * (1 + rng.random((3, 5))) / np.sqrt(iterations)) for name in names}


def pairs(P=18, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return {f"stage {i}": (rng.standard_normal((P, P)), 10.0**i * rng.standard_normal((P, P))) for i in range(count)}


SIZES = (8, 6, 4)


def small_classifier():
    """Return the demo's classifier with fewer units: 325 + 30 + 30 + 60 parameters."""
    return kfac_ref.Model(kfac_ref.MLP((64, 5, 5, 5, 10), "tanh"), kfac_ref.Categorical(), weight_decay=1e-5)


def convergence_figure(histories):
    of = autoencoder.compared()
    return tables.figure(histories, of.levels, of.title, of.error)


@pytest.fixture(scope="module")
def convergence_of_a_tiny_run():
    return convergence_figure(autoencoder.convergence(datasets.digits(), shorten=10**6))


@pytest.fixture(scope="module")
def fisher_of_a_tiny_run():
    data = datasets.digits()
    few = datasets.Dataset(data.x[:100], data.labels[:100], data.x_test, data.labels_test)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "untrained", small_classifier)
        return classifier.fisher_figure(classifier.stages(few, steps=(10, 200)))


@pytest.fixture(scope="module")
def convergence_of_late_runs():
    """Draw runs that take long to reach every level, one method apart: the caption is as long as it can be."""
    def history(name):
        errors = np.geomspace(20, 5 if name == NAMES[-1] else 0.5, 40)
        steps = np.round(np.geomspace(1, 98765, 40)).astype(int)
        return training.History(None, (), [], [training.Evaluation(int(k), k / 800, e, e, e, e, e, e)
                                               for k, e in zip(steps, errors, strict=True)])
    return convergence_figure({name: [history(name)] * 3 for name in NAMES})


@pytest.fixture(scope="module", params=["fisher", "convergence of late runs", "convergence of a tiny run",
                                        "fisher of a tiny run"])
def figure(request):
    if request.param == "fisher":
        return plotting.fisher_rows(pairs(), SIZES, LONG)
    fixtures = {"convergence of late runs": "convergence_of_late_runs", "fisher of a tiny run": "fisher_of_a_tiny_run",
                "convergence of a tiny run": "convergence_of_a_tiny_run"}
    return request.getfixturevalue(fixtures[request.param])


# Pooling


@pytest.mark.parametrize(("P", "cells"), [(1, 1), (5, 5), (6, 3), (7, 3), (10, 4), (23, 5), (23, 100), (4, 1)])
def test_pooled_is_a_loop_over_cells(P, cells):
    M = np.random.default_rng(0).standard_normal((P, P))
    small = plotting.pooled(M, cells)
    k = -(-P // cells)
    starts = range(0, P, k)
    by_loop = [[M[i:i + k, j:j + k].mean() for j in starts] for i in starts]
    np.testing.assert_allclose(small, by_loop, rtol=1e-13, atol=1e-14)
    assert small.shape == (len(starts), len(starts))
    assert len(small) <= cells


@pytest.mark.parametrize(("P", "cells"), [(12, 4), (13, 4), (23, 5)])
def test_pooling_preserves_means(P, cells):
    M = np.random.default_rng(0).standard_normal((P, P))
    small = plotting.pooled(M, cells)
    lengths = np.diff([*range(0, P, -(-P // cells)), P])
    np.testing.assert_allclose(lengths @ small @ lengths, M.sum(), rtol=1e-12)
    np.testing.assert_allclose(plotting.pooled(np.full((P, P), 3.5), cells), 3.5, rtol=1e-15)
    np.testing.assert_allclose(plotting.pooled(M, 1), [[M.mean()]], rtol=1e-12)
    np.testing.assert_array_equal(plotting.pooled(M, P), M)
    if P % cells:
        assert abs(small.mean() - M.mean()) > 1e-3          # the last cells are smaller, and weigh less


# Text is where it can be read


def hidden_labels(figure):
    """Return the labels of ticks outside of the axes, which Matplotlib keeps but does not draw."""
    hidden = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        outside = [t for t in axis.get_major_ticks() + axis.get_minor_ticks()
                   if not low * (1 - 1e-9) <= t.get_loc() <= high * (1 + 1e-9)]
        hidden += [label for t in outside for label in (t.label1, t.label2)]
    return hidden


def clipped(figure, dpi):
    """Render as a PNG of that resolution and return every text that is not wholly inside the figure."""
    canvas = FigureCanvasAgg(figure)
    figure.dpi = dpi
    png = BytesIO()
    figure.savefig(png, dpi=dpi)
    assert png.getvalue().startswith(b"\x89PNG\r\n\x1a\n")
    renderer, box, hidden = canvas.get_renderer(), figure.bbox, set(hidden_labels(figure))
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    assert len(texts) > 10
    extents = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    return [text for text, e in extents
            if e.x0 < box.x0 or e.y0 < box.y0 or e.x1 > box.x1 or e.y1 > box.y1]


@pytest.mark.slow
def test_no_text_is_cut_off_and_the_caption_stands_below_the_axes(figure):
    for dpi in (72, plotting.STYLE["figure.dpi"]):
        assert clipped(figure, dpi) == []
        bottom = min(axes.get_tightbbox().y0 for axes in figure.axes)
        assert figure._supxlabel.get_window_extent().y1 <= bottom
        assert len(figure._supxlabel.get_text()) > 70


def test_a_text_that_is_cut_off_is_seen():
    figure = plotting.convergence(curves(), "error", "")
    figure.text(0.99, 0.5, "over the edge")
    plotting.caption(figure, LONG, 400)
    words = [text[:13] for text in clipped(figure, 110)]
    assert sorted(words) == ["A caption of ", "over the edge"]


def test_a_caption_keeps_its_words():
    for figure in (plotting.convergence(curves(), "error", LONG), plotting.fisher_rows(pairs(), SIZES, LONG)):
        lines = figure._supxlabel.get_text().split("\n")
        assert " ".join(lines) == LONG.strip()
        assert 2 < len(lines) < 5


def test_the_long_caption_is_long(convergence_of_late_runs):
    text = " ".join(convergence_of_late_runs._supxlabel.get_text().split("\n"))
    assert "To an error of 0.6 K-FAC with m = 500 takes " in text
    assert "Adam with m = 100 does not get there." in text


# Convergence


@pytest.fixture(scope="module")
def convergence():
    return plotting.convergence(curves(), "error\n(mean over cases)", "A caption.")


def test_the_axes_are_logarithmic_and_say_what_they_show(convergence):
    assert isinstance(convergence, Figure)
    left, right = convergence.axes
    for axes in (left, right):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (left.get_xlabel(), left.get_ylabel()) == ("iterations", "error\n(mean over cases)")
    assert right.get_xlabel() == "seconds (evaluation left out)"
    assert (left.get_title(), right.get_title()) == ("by iterations", "by seconds")
    assert left.get_ylim() == right.get_ylim()


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], NAMES[2:4]])
def test_the_legend_has_the_names_in_the_order_given(names):
    figure = plotting.convergence(curves(names), "error", "")
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == list(names)
    # It covers no curve.
    assert not any(axes.get_legend() or axes.bbox.overlaps(legend.get_window_extent()) for axes in figure.axes)


def test_lines_are_medians_and_bands_are_ranges(convergence):
    for axes, seconds in zip(convergence.axes, (False, True), strict=True):
        for line, band, curve in zip(axes.lines, axes.collections, curves().values(), strict=True):
            x = np.sort(curve.seconds, axis=0)[1] if seconds else curve.iterations
            np.testing.assert_array_equal(line.get_xdata(), x)
            np.testing.assert_array_equal(line.get_ydata(), np.sort(curve.error, axis=0)[1])
            corners = band.get_paths()[0].vertices
            np.testing.assert_array_equal(np.unique(corners[:, 1]), np.unique([curve.error.min(0), curve.error.max(0)]))
            np.testing.assert_array_equal(np.unique(corners[:, 0]), np.unique(x))


def test_the_error_axis_has_plain_numbers(convergence):
    FigureCanvasAgg(convergence).draw()
    labels = [t.get_text() for t in convergence.axes[0].get_yticklabels() if t.get_text()]
    assert "10" in labels
    assert not any("$" in text or "e" in text for text in labels)


def test_colours_and_dashes_are_distinct():
    assert len(plotting.COLOURS) == len(plotting.DASHES) >= len(autoencoder.METHODS)
    rgb = np.array([to_rgb(colour) for colour in plotting.COLOURS])
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=-1)[np.triu_indices(len(rgb), 1)]
    assert apart.min() > 0.25
    patterns = [Line2D([], [], linestyle=dash)._dash_pattern for dash in plotting.DASHES]
    assert len({repr(pattern) for pattern in patterns}) == len(patterns)


def test_each_line_has_a_colour_and_a_dash_of_its_own(convergence):
    for axes in convergence.axes:
        assert len({line.get_color() for line in axes.lines}) == len(NAMES)
        assert len({repr(line._dash_pattern) for line in axes.lines}) == len(NAMES)
        for line, band in zip(axes.lines, axes.collections, strict=True):
            np.testing.assert_allclose(band.get_facecolor()[0, :3], to_rgb(line.get_color()), atol=1e-12)


def test_as_many_curves_as_can_be_told_apart_are_drawn_and_no_more_is_dropped_in_silence():
    most = 2 * len(plotting.COLOURS)
    names = [f"method {i}" for i in range(most + 1)]
    lines = plotting.convergence(curves(names[:-1]), "error", "").axes[0].lines
    assert len({(line.get_color(), repr(line._dash_pattern)) for line in lines}) == most
    with pytest.raises(ValueError, match=f"curves must be at most {most}, got {len(names)}"):
        plotting.convergence(curves(names), "error", "")


def test_rows_give_a_method_the_same_look_and_share_one_legend():
    one, two = curves(["a", "b"]), curves(["b", "c"])
    figure = plotting.convergence_rows({"one": one, "two": two}, "error", "")
    looks = {}
    for axes in figure.axes:
        for line in axes.lines:
            looks.setdefault(line.get_label(), set()).add((line.get_color(), repr(line._dash_pattern)))
    assert {name: len(found) for name, found in looks.items()} == {"a": 1, "b": 1, "c": 1}
    assert len(set.union(*looks.values())) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert [axes.get_title() for axes in figure.axes] == ["one: by iterations", "one: by seconds",
                                                          "two: by iterations", "two: by seconds"]


# Fisher matrices


def panels(figure):
    """Return the axes with an image of a matrix, row by row."""
    return [axes for axes in figure.axes if axes.findobj(AxesImage) and axes.get_xticks().size and not axes.get_label()]


def test_each_row_shows_both_matrices_and_their_difference_on_one_scale():
    rows = pairs()
    figure = plotting.fisher_rows(rows, SIZES, "A caption.")
    shown = np.reshape(panels(figure), (2, 3))
    tops = []
    for axes_row, (F, Ft) in zip(shown, rows.values(), strict=True):
        images = [axes.images[0] for axes in axes_row]
        top = max(np.abs(M).max() for M in (F, Ft, F - Ft))
        for image, M in zip(images, (F, Ft, F - Ft), strict=True):
            assert isinstance(image.norm, LogNorm)
            assert (image.norm.vmin, image.norm.vmax) == (top * 1e-4, top)
            np.testing.assert_array_equal(image.get_array(), np.maximum(np.abs(M), top * 1e-4))
            assert image.get_extent() == [0, 18, 18, 0]
        tops.append(top)
    assert tops[1] > 5 * tops[0]                                # a scale for all rows would not be the same


def test_the_largest_of_the_three_sets_the_scale():
    F = np.random.default_rng(0).standard_normal((18, 18))
    for Ft, index in ((-F, 2), (F / 2, 0), (2 * F, 1)):
        image = panels(plotting.fisher_rows({"a": (F, Ft)}, SIZES, ""))[0].images[0]
        assert image.norm.vmax == np.abs((F, Ft, F - Ft)[index]).max()


def test_large_matrices_are_drawn_as_means_of_the_absolute_entries():
    (F, Ft), = pairs(P=18, count=1).values()
    for axes, M in zip(panels(plotting.fisher_rows({"a": (F, Ft)}, SIZES, "", cells=6)), (F, Ft, F - Ft), strict=True):
        means = np.abs(M).reshape(6, 3, 6, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(axes.images[0].get_array(), means, rtol=1e-14)
        assert axes.images[0].get_extent() == [0, 18, 18, 0]    # ticks and marks count parameters, not cells


@pytest.mark.parametrize("sizes", [(8, 6, 4), (18,), (1, 17), (2, 3, 5, 8)])
def test_layers_are_marked_where_they_end(sizes):
    ends = np.cumsum(sizes)
    for axes in panels(plotting.fisher_rows(pairs(count=1), sizes, "")):
        horizontal = [line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[1]
                      and line.get_xdata()[0] != line.get_xdata()[1]]
        vertical = [line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1]
                    and line.get_ydata()[0] != line.get_ydata()[1]]
        assert horizontal == vertical == ends[:-1].tolist()
        middles = [(a + b) / 2 for a, b in pairwise([0, *ends])]
        for ticks, labels in ((axes.get_xticks(), axes.get_xticklabels()), (axes.get_yticks(), axes.get_yticklabels())):
            np.testing.assert_array_equal(ticks, middles)
            assert [t.get_text() for t in labels] == [str(i) for i in range(len(sizes))]


def test_the_panels_say_what_they_show():
    figure = plotting.fisher_rows(pairs(), SIZES, "")
    shown = np.reshape(panels(figure), (2, 3))
    assert [axes.get_title() for axes in shown[0]] == ["|F|, exact", "|F̃|, Kronecker-factored", "|F - F̃|"]
    assert [axes.get_xlabel() for axes in shown[-1]] == ["layer"] * 3
    assert [axes.get_ylabel() for axes in shown[:, 0]] == ["stage 0\nlayer", "stage 1\nlayer"]
    bars = [axes for axes in figure.axes if axes not in shown.ravel().tolist()]
    assert [axes.get_ylabel() for axes in bars] == ["mean |entry| of a cell"] * 2


def test_one_row_is_drawn_as_well():
    assert len(panels(plotting.fisher_rows(pairs(count=1), SIZES, ""))) == 3


def test_the_demo_marks_the_layers_of_its_classifier(fisher_of_a_tiny_run):
    for axes in panels(fisher_of_a_tiny_run):
        assert {line.get_xdata()[0] for line in axes.lines} >= {325, 355, 385}
    assert [m * n for m, n in classifier.untrained().network.shapes] == [65 * 20, 21 * 20, 21 * 20, 21 * 10]


# The style


def test_the_style_ends_with_its_context():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # some settings warn when they are read
        before = dict(mpl.rcParams)
        plotting.convergence(curves(), "error", LONG)
        plotting.fisher_rows(pairs(), SIZES, LONG)
        with plotting.style():
            inside = dict(mpl.rcParams)
        after = dict(mpl.rcParams)
    assert after == before
    assert inside != before
    assert {key: inside[key] for key in plotting.STYLE} == plotting.STYLE


def test_grid_lines_have_the_style_although_they_are_drawn_outside_of_its_context(convergence):
    FigureCanvasAgg(convergence).draw()
    for tick in convergence.axes[0].xaxis.get_major_ticks():
        assert tick.gridline.get_alpha() == plotting.STYLE["grid.alpha"] != mpl.rcParams["grid.alpha"]
        assert tick.gridline.get_linewidth() == plotting.STYLE["grid.linewidth"] != mpl.rcParams["grid.linewidth"]


def test_a_figure_is_saved_in_the_resolution_of_the_style(convergence):
    png = BytesIO()
    convergence.savefig(png)
    width = int.from_bytes(png.getvalue()[16:20], "big")
    assert width == 10 * plotting.STYLE["figure.dpi"]          # the figure is 10 inches wide


def test_pyplot_is_never_imported():
    code = ("import sys; from kfac_ref import plotting; import kfac_ref.experiments; import numpy as np; "
            "plotting.fisher_rows({'a': (np.eye(4), np.ones((4, 4)))}, (2, 2), 'text'); "
            "sys.exit('matplotlib.pyplot' in sys.modules)")
    root = Path(kfac_ref.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
