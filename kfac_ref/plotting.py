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


def fisher_rows(rows: Mapping[str, tuple[Array, Array]], sizes: Sequence[int], text: str, cells: int = 470) -> Figure:
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
