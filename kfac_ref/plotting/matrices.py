"""Pictures of matrices, on colour scales that are shared where they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..checks import Array
from .style import caption, style


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
