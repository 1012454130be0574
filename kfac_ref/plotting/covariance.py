"""The picture of the error as a covariance: three rearranged matrices, their spectra, and the cumulants."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure, SubFigure

from ..checks import Array
from .style import COLOURS, MARKERS, caption, style


def error_as_covariance(matrices: Mapping[str, Array], rows: Mapping[str, int], columns: Mapping[str, int],
                        spectra: Mapping[str, tuple[Array, str]], bars: Mapping[str, tuple[float, float]],
                        text: str) -> Figure:
    """Draw rearranged blocks (p, q) on one signed colour scale, singular values, and the terms of the error as bars.

    `rows` and `columns` are the sizes of the groups, adding up to p and to q. `spectra` are singular values, descending
    and relative to the norm of the block, each with a note for the legend. `bars` are the norm and the share of each
    term, both relative to the norm of the error; the shares add up to 1.
    """
    with style():
        figure = Figure(figsize=(11, 8), layout="constrained", dpi=100)
        grid = figure.add_gridspec(2, 1, height_ratios=(1.2, 1))
        upper, lower = (figure.add_subfigure(grid[k]) for k in (0, 1))
        _draw_matrices(upper, matrices, rows, columns)
        left, right = lower.subplots(1, 2, width_ratios=(1.25, 1))
        for (name, (values, note)), colour, marker in zip(spectra.items(), COLOURS, MARKERS, strict=False):
            left.plot(np.arange(1, len(values) + 1), values, color=colour, marker=marker, markersize=3, linewidth=1,
                      label=f"{name}: {note}")
        left.set(xscale="log", yscale="log", xlabel="index of the singular value",
                 ylabel="singular value / ||F_ii||", title="singular values of the rearranged block and of its error")
        left.legend(loc="lower left")
        for k, label in enumerate(("norm of the term / norm of the error", "share of the error")):
            drawn = right.barh(np.arange(len(bars)) + 0.4 * (k - 0.5), [pair[k] for pair in bars.values()], height=0.36,
                               color=COLOURS[k + 3], label=label)
            right.bar_label(drawn, [f"{pair[k]:.2f}" for pair in bars.values()], padding=3, fontsize=9)
        right.set_yticks(range(len(bars)), list(bars))
        right.invert_yaxis()
        right.axvline(0, color="black", linewidth=0.8)
        low, high = right.get_xlim()
        right.set(xlim=(low, high + 0.12 * (high - low)), xlabel="relative to the error",
                  title="the error by joint cumulants")
        right.grid(False, axis="y")
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        caption(figure, text, 160)
        return figure


def _draw_matrices(figure: SubFigure, matrices: Mapping[str, Array], rows: Mapping[str, int],
                   columns: Mapping[str, int]) -> None:
    top = max(float(np.abs(M).max()) for M in matrices.values())
    norm = AsinhNorm(top / 100, -top, top)                  # linear up to a hundredth of the top, logarithmic above
    colours = mpl.colormaps["RdBu_r"].resampled(21)         # so few that a noisy matrix makes a small file
    panels = figure.subplots(1, len(matrices), sharey=True)
    for axes, (title, M) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(M, norm=norm, cmap=colours, aspect="auto", extent=(0, M.shape[1], M.shape[0], 0))
        axes.set(title=title, xlabel="vec(Alpha), Alpha = a aᵀ")
        axes.grid(False)
        axes.tick_params(length=0)
        _mark(axes, rows, columns)
    panels[0].set_ylabel("vec(Gamma), Gamma = g gᵀ")
    figure.colorbar(image, ax=list(panels), pad=0.01, label="entry",
                    ticks=[0, *(s * top * f for s in (-1, 1) for f in (0.01, 0.1, 1))], format="{x:.1g}")


def _mark(axes: Axes, rows: Mapping[str, int], columns: Mapping[str, int]) -> None:
    """Draw lines between the groups, and name each in its middle."""
    for sizes, line, ticks in ((rows, axes.axhline, axes.set_yticks), (columns, axes.axvline, axes.set_xticks)):
        ends = np.cumsum([0, *sizes.values()])
        for end in ends[1:-1]:
            line(end, color="black", linewidth=0.7)
        ticks((ends[:-1] + ends[1:]) / 2, list(sizes))
