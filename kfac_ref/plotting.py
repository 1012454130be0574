"""The pictures: functions that take arrays and return a Matplotlib `Figure`, all in one style.

Colours are those of Okabe and Ito, which the colour-blind tell apart, and every line has a dash pattern or marker of
its own as well. Matrices that are compared share one colour scale, and layer blocks are marked on it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .checks import Array

STYLE: dict[str, Any] = {
    "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.6, "lines.linewidth": 1.8, "figure.dpi": 150,
    "image.interpolation": "nearest",
}
COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", (0, (1, 1)), "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (4, 1)), ":")
MARKERS = ("o", "s", "^", "v", "D", "x", "+", "*", "p", "h", "<", ">")


@dataclass(frozen=True, eq=False)
class Curve:
    """One method's error over a run, for several seeds.

    Attributes
    ----------
    iterations : (T,) array
        Where the error was measured.
    seconds : (S, T) array
        Time until then, a row a seed.
    error : (S, T) array
        The error, a row a seed.
    """

    iterations: Array
    seconds: Array
    error: Array


def style() -> AbstractContextManager[None]:
    """Return a context in which figures have the package's style."""
    return mpl.rc_context(STYLE)        # type: ignore[arg-type]


def caption(figure: Figure, text: str, width: int) -> None:
    """Write a caption under a figure.

    Parameters
    ----------
    figure : Figure
        Is changed.
    text : str
        The caption.
    width : int
        Its lines are broken at so many characters.
    """
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), x=0.01, ha="left", fontsize=9)


def convergence(curves: Mapping[str, Curve], error_label: str, text: str) -> Figure:
    """Draw error against iterations and against seconds, on logarithmic scales.

    Parameters
    ----------
    curves : mapping from name to Curve
        In the order of the legend; the line is the median over seeds, the band their range.
    error_label : str
        What the error is, with its unit.
    text : str
        The caption.

    Returns
    -------
    Figure
        Two panels that share the error axis.
    """
    with style():
        figure = Figure(figsize=(10, 4.9), layout="constrained")
        if len(curves) > len(COLOURS):
            raise ValueError(f"curves must be at most {len(COLOURS)}, got {len(curves)}: there are no more colours "
                             "that everybody can tell apart")
        left, right = figure.subplots(1, 2, sharey=True)
        for (name, curve), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
            low, middle, high = curve.error.min(0), np.median(curve.error, 0), curve.error.max(0)
            for axes, x in ((left, curve.iterations), (right, np.median(curve.seconds, 0))):
                axes.plot(x, middle, color=colour, linestyle=dash, label=name)
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        left.set(xlabel="iterations", ylabel=error_label, title="by iterations")
        right.set(xlabel="seconds (evaluation left out)", title="by seconds")
        for axes in (left, right):
            axes.set(xscale="log", yscale="log")
            axes.grid(True, which="minor", alpha=0.12)
        _plain_ticks(left)
        right.legend()
        caption(figure, text, 138)
        return figure


def fisher_rows(rows: Mapping[str, tuple[Array, Array]], sizes: Sequence[int], text: str, cells: int = 240) -> Figure:
    """Draw |F|, |F~| and |F - F~|, one row for each pair, on one colour scale a row.

    Parameters
    ----------
    rows : mapping from a stage's name to (F, F~)
        Two (P, P) matrices each.
    sizes : sequence of int
        Parameters of each layer, adding up to P; their blocks are marked.
    text : str
        The caption.
    cells : int
        Matrices larger than this are drawn as means of |entry| over square cells.

    Returns
    -------
    Figure
        Three columns.
    """
    with style():
        figure = Figure(figsize=(10.5, 3.05 * len(rows) + 1))
        # Beside colour bars the layout forgets half a line of the titles' height at the top.
        figure.set_layout_engine("compressed", rect=(0, 0, 1, 1 - 0.012 - 0.02 / len(rows)))
        grid = np.atleast_2d(figure.subplots(len(rows), 3))
        for axes_row, (name, (F, Ft)) in zip(grid, rows.items(), strict=True):
            shown = [pooled(np.abs(M), cells) for M in (F, Ft, F - Ft)]
            top = max(M.max() for M in shown)
            bottom = top * 1e-4                             # four decades: what is smaller is drawn as the darkest
            for axes, M, title in zip(axes_row, shown, ("|F|, exact", "|F~|, Kronecker-factored", "|F - F~|"),
                                      strict=True):
                image = axes.imshow(np.maximum(M, bottom), norm=LogNorm(bottom, top), cmap="viridis",
                                    extent=(0, len(F), len(F), 0))
                _mark_layers(axes, sizes)
                if axes in grid[0]:
                    axes.set_title(title)
                if axes in grid[-1]:
                    axes.set_xlabel("layer")
            axes_row[0].set_ylabel(f"{name}\nlayer")
            figure.colorbar(image, ax=list(axes_row), shrink=0.9, pad=0.01, label="mean |entry| of a cell")
        caption(figure, text, 148)
        return figure


def error_budget(names: Sequence[str], errors: Sequence[float], angles: Sequence[float],
                 decreases: Sequence[float], text: str) -> Figure:
    """Draw what each step away from the exact matrix does, as bars from top to bottom.

    Parameters
    ----------
    names : sequence of str
        The steps.
    errors : sequence of float
        Relative Frobenius errors against the exact matrix.
    angles : sequence of float
        Degrees between the step and the natural gradient.
    decreases : sequence of float
        The decrease of the quadratic model over that of the natural gradient, 0..1.
    text : str
        The caption.

    Returns
    -------
    Figure
        Three panels that share the names.
    """
    with style():
        figure = Figure(figsize=(10, 0.45 * len(names) + 1.8), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, values, label, colour, form in zip(
                panels, (errors, angles, [100 * d for d in decreases]),
                ("matrix: relative error", "step: degrees from natural gradient", "step: decrease of M (% of best)"),
                COLOURS, ("{:.2f}", "{:.0f}", "{:.0f}"), strict=False):
            bars = axes.barh(range(len(names)), values, color=colour, height=0.65)
            axes.bar_label(bars, [form.format(v) for v in values], padding=3, fontsize=9)
            axes.set(xlabel=label, xlim=(0, max(*values, 1e-9) * 1.18))
            axes.grid(False, axis="y")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        caption(figure, text, 138)
        return figure


def lines(x: Array, values: Mapping[str, Sequence[float]], x_label: str, y_label: str, text: str,
          log_x: bool = True) -> Figure:
    """Draw a few lines over one axis, the values on a logarithmic scale.

    Parameters
    ----------
    x : (T,) array
        Where the values stand.
    values : mapping from name to (T,) sequence
        In the order of the legend; at most as many as there are colours.
    x_label, y_label : str
        What the axes show, with units.
    text : str
        The caption.
    log_x : bool
        Whether x is logarithmic too.

    Returns
    -------
    Figure
        One panel, the legend beside it.
    """
    with style():
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        for (name, y), colour, dash, marker in zip(values.items(), COLOURS, DASHES, MARKERS, strict=False):
            axes.plot(x, y, color=colour, linestyle=dash, marker=marker, markevery=max(1, len(x) // 8), label=name)
        axes.set(xlabel=x_label, ylabel=y_label, yscale="log", xscale="log" if log_x else "linear")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        caption(figure, text, 122)
        return figure


def grouped_bars(values: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str], label: str,
                 text: str) -> Figure:
    """Draw bars by name, a group of bars each, one panel a network.

    Parameters
    ----------
    values : mapping from panel to mapping from group member to sequence
        One number for each of `names`.
    names : sequence of str
        What stands on the vertical axis.
    label : str
        What the numbers are, with their unit.
    text : str
        The caption.

    Returns
    -------
    Figure
        Panels that share both axes.
    """
    with style():
        figure = Figure(figsize=(11, 0.42 * len(names) + 2.0), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(values), sharey=True, sharex=True))
        for axes, (title, members) in zip(panels, values.items(), strict=True):
            height = 0.8 / len(members)
            for k, ((member, numbers), colour) in enumerate(zip(members.items(), COLOURS, strict=False)):
                axes.barh(np.arange(len(names)) + (k - (len(members) - 1) / 2) * height, numbers, height=height * 0.9,
                          color=colour, label=member)
            axes.set(title=title, xlabel=label if axes is panels[len(panels) // 2] else "")
            axes.grid(False, axis="y")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        caption(figure, text, 150)
        return figure


def cost(rows: Mapping[str, Array], text: str) -> Figure:
    """Draw seconds and memory against width, on logarithmic scales.

    Parameters
    ----------
    rows : mapping from name to (T, 3) array
        Width, seconds, MiB.
    text : str
        The caption.

    Returns
    -------
    Figure
        Two panels.
    """
    with style():
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        panels = figure.subplots(1, 2)
        for k, (name, row) in enumerate(rows.items()):
            for axes, column in zip(panels, (1, 2), strict=True):
                axes.plot(row[:, 0], row[:, column], color=COLOURS[k % len(COLOURS)], marker=MARKERS[k], label=name,
                          linestyle=DASHES[(k + k // len(COLOURS)) % len(DASHES)])
        for axes, label in zip(panels, ("seconds to make and solve once", "peak of memory (MiB)"), strict=True):
            axes.set(xscale="log", yscale="log", xlabel="width d", ylabel=label)
            widths = sorted({float(w) for row in rows.values() for w in row[:, 0]})
            axes.set_xticks(widths, [f"{w:g}" for w in widths])
            axes.minorticks_off()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
        caption(figure, text, 150)
        return figure


def pooled(M: Array, cells: int) -> Array:
    """Return the means of a square matrix over square cells.

    Parameters
    ----------
    M : (P, P) array
        A matrix.
    cells : int
        No more than so many cells stand in a row.

    Returns
    -------
    (c, c) array
        c is at most `cells`; the cells of the last row and column may be smaller than the others.
    """
    k = -(-len(M) // cells)
    starts = np.arange(0, len(M), k)
    counts = np.diff(np.append(starts, len(M)))
    sums: Array = np.add.reduceat(np.add.reduceat(M, starts, axis=0), starts, axis=1)
    return sums / np.outer(counts, counts)


def _mark_layers(axes: Axes, sizes: Sequence[int]) -> None:
    ends = np.cumsum([0, *sizes])
    for end in ends[1:-1]:
        axes.axhline(end, color="white", linewidth=0.7)
        axes.axvline(end, color="white", linewidth=0.7)
    middles = (ends[:-1] + ends[1:]) / 2
    axes.set_xticks(middles, [str(i) for i in range(len(sizes))])
    axes.set_yticks(middles, [str(i) for i in range(len(sizes))])
    axes.tick_params(length=0)
    axes.grid(False)


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic y axis with plain numbers, also between powers of ten."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if high / low < 100 and f"{value:.0e}"[0] in "2357" else "")
