"""Pictures of matrices; those that are compared share a colour scale.

In all of them `sizes` are the numbers of parameters per layer, adding up to P; the blocks of the layers are marked, and
`layers` are their names (default: 0, 1, ...). Matrices with more than `cells` rows are drawn as means of ``|entry|``
over square cells. Colour scales are logarithmic, over 4 decades by default; smaller entries are the darkest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..checks import Array
from .style import caption, style

#: In 48 steps, a twelfth of a decade each on a scale of four: pictures of dense matrices take half the bytes.
VIRIDIS = mpl.colormaps["viridis"].resampled(48)


def fisher_rows(rows: Mapping[str, tuple[Array, Array]], sizes: Sequence[int], text: str, cells: int = 240) -> Figure:
    """Draw ``|F|``, ``|F̃|`` and ``|F - F̃|`` for each pair (F, F̃) of (P, P) matrices, with one colour scale per row."""
    with style():
        figure = Figure(figsize=(10.5, 3.05 * len(rows) + 1))
        # Beside colour bars the layout forgets half a line of the titles' height at the top.
        figure.set_layout_engine("compressed", rect=(0, 0, 1, 1 - 0.012 - 0.02 / len(rows)))
        grid = np.atleast_2d(figure.subplots(len(rows), 3))
        for axes_row, (name, (F, Ft)) in zip(grid, rows.items(), strict=True):
            shown = [pooled(np.abs(M), cells) for M in (F, Ft, F - Ft)]
            top = max(M.max() for M in shown)
            bottom = top * 1e-4                             # four decades
            for axes, M, title in zip(axes_row, shown, ("|F|, exact", "|F̃|, Kronecker-factored", "|F - F̃|"),
                                      strict=True):
                image = _show(axes, M, (bottom, top), sizes)
                if axes in grid[0]:
                    axes.set_title(title)
                if axes in grid[-1]:
                    axes.set_xlabel("layer")
            axes_row[0].set_ylabel(f"{name}\nlayer")
            figure.colorbar(image, ax=list(axes_row), shrink=0.9, pad=0.01, label="mean |entry| of a cell")
        caption(figure, text, 148)
        return figure


def matrix_rows(rows: Mapping[str, Mapping[str, Array]], sizes: Sequence[int], text: str,
                layers: Sequence[str] | None = None, cells: int = 168, decades: float = 4) -> Figure:
    """Draw ``|M|`` for several (P, P) matrices per row, with one colour scale per row."""
    columns = max(map(len, rows.values()))
    with style():
        panel = 3.2 if columns < 4 else 2.7                 # inches; a few panels can be larger
        figure = Figure(figsize=(panel * columns + 0.9, panel * len(rows) + 1.1), dpi=110)
        figure.set_layout_engine("compressed", h_pad=0.08, rect=(0, 0, 1, 1 - 0.012 - 0.02 / len(rows)))
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes_row, (name, matrices) in zip(grid, rows.items(), strict=True):
            shown = [pooled(np.abs(M), cells) for M in matrices.values()]
            top = max(M.max() for M in shown)
            for axes, title, M in zip(axes_row, matrices, shown, strict=True):
                image = _show(axes, M, (top * 10.0**-decades, top), sizes, layers)
                axes.set(title=title, xlabel="layer" if axes in grid[-1] else "")
            axes_row[0].set_ylabel(f"{name}\nlayer")
            figure.colorbar(image, ax=list(axes_row), shrink=0.9, pad=0.01, label="mean |entry| of a cell")
        caption(figure, text, round(14.4 * figure.get_figwidth()))
        return figure


def block_structure(rows: Mapping[str, tuple[Array, Array, Array]], sizes: Sequence[int], text: str,
                    layers: Sequence[str] | None = None, cells: int = 168) -> Figure:
    """Draw a matrix, its inverse, and how large the blocks of the inverse are, as in the paper's figure 3.

    `rows` has, per name, two (P, P) matrices and the (L, L) mean absolute entries of the inverse's blocks. M has one
    colour scale in all rows, the inverse one per row, and the means, relative to the largest of their row, one in all.
    """
    names = [str(i) for i in range(len(sizes))] if layers is None else list(layers)
    with style():
        figure = Figure(figsize=(11.5, 3.15 * len(rows) + 1.1), dpi=110)
        figure.set_layout_engine("constrained", h_pad=0.08, rect=(0, 0, 1, 1 - 0.012 - 0.02 / len(rows)))
        grid = figure.subplots(len(rows), 3, squeeze=False)
        top = max(pooled(np.abs(M), cells).max() for M, _, _ in rows.values())
        relative = {name: means / means.max() for name, (_, _, means) in rows.items()}
        least = min(r.min() for r in relative.values()) / 2         # so that the smallest is not black
        for axes, (name, (M, inverse, _)) in zip(grid, rows.items(), strict=True):
            small = pooled(np.abs(inverse), cells)
            scales = ((top * 1e-4, top), (small.max() * 1e-4, small.max()))
            for panel, whole, scale, title in zip(axes, (M, inverse), scales, ("|F̃|", "|inverse of F̃|"),
                                                  strict=False):
                image = _show(panel, pooled(np.abs(whole), cells), scale, sizes, names)
                panel.set_title(title)
                figure.colorbar(image, ax=panel, label="mean |entry| of a cell")
            r = relative[name]
            image = axes[2].imshow(r, norm=LogNorm(least, 1), cmap="viridis")
            for (i, j), value in np.ndenumerate(r):
                axes[2].text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=9,
                             color="black" if value > least**0.4 else "white")
            axes[2].set_xticks(range(len(r)), names)
            axes[2].set_yticks(range(len(r)), names)
            axes[2].tick_params(length=0)
            axes[2].grid(False)
            axes[2].set_title("blocks of the inverse: mean |entry|")
            figure.colorbar(image, ax=axes[2], label="relative to the largest")
            axes[0].set_ylabel(f"{name}\nlayer")
        for panel in grid[-1]:
            panel.set_xlabel("layer")
        caption(figure, text, 172)
        return figure


def pooled(M: Array, cells: int) -> Array:
    """Return the means of a square matrix over square cells, at most `cells` in a row; the last ones may be smaller."""
    k = -(-len(M) // cells)
    starts = np.arange(0, len(M), k)
    counts = np.diff(np.append(starts, len(M)))
    sums: Array = np.add.reduceat(np.add.reduceat(M, starts, axis=0), starts, axis=1)
    return sums / np.outer(counts, counts)


def _show(axes: Axes, cells: Array, scale: tuple[float, float], sizes: Sequence[int],
          layers: Sequence[str] | None = None) -> AxesImage:
    """Draw the cells of ``|M|`` on a logarithmic scale (bottom, top), with axes in parameters and the layers marked."""
    P = sum(sizes)
    image = axes.imshow(np.maximum(cells, scale[0]), norm=LogNorm(*scale), cmap=VIRIDIS, extent=(0, P, P, 0))
    _mark_layers(axes, sizes, layers)
    return image


def _mark_layers(axes: Axes, sizes: Sequence[int], layers: Sequence[str] | None = None) -> None:
    ends = np.cumsum([0, *sizes])
    for end in ends[1:-1]:
        axes.axhline(end, color="white", linewidth=0.7)
        axes.axvline(end, color="white", linewidth=0.7)
    middles = (ends[:-1] + ends[1:]) / 2
    names = [str(i) for i in range(len(sizes))] if layers is None else layers
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)
    axes.grid(False)
