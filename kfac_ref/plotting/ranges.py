"""Pictures of a number under many settings, over repeats: one row per setting, a dot with its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..checks import Array
from .panels import Panel, _draw
from .style import COLOURS, caption, style


@dataclass(frozen=True, eq=False)
class Rows:
    """A number under several settings, over S repeats."""

    title: str
    x_label: str                 #: The number is drawn on a logarithmic scale.
    #: (S,) by name, from top to bottom; the others are compared with the first. Infinity (a run that
    #: diverged) counts in the median, and is drawn as an arrow.
    values: Mapping[str, Array]


def ranges(groups: Sequence[Rows], panels: Sequence[Panel], text: str) -> Figure:
    """Draw groups of rows, and beside each group its panel of lines; the range of a group's first row is shaded."""
    counts = [len(group.values) + 2 for group in groups]
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    with style():
        figure = Figure(figsize=(11.5, 0.24 * sum(counts) + 2.6), dpi=120)
        figure.set_layout_engine("constrained", wspace=0.04)
        grid = figure.subplots(len(groups), 2, height_ratios=counts, width_ratios=(1.15, 1), squeeze=False)
        for (left, right), group, panel in zip(grid, groups, panels, strict=True):
            _rows(left, group)
            _draw(right, panel, names)
        handles = {label: handle for _, right in grid
                   for handle, label in zip(*right.get_legend_handles_labels(), strict=True)}
        figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=5)
        caption(figure, text, 170)
        return figure


def _rows(axes: Axes, group: Rows) -> None:
    """Draw a group of rows: a dot at the median, a line over the range, and both as numbers on the right."""
    right = []
    largest = max(float(v) for values in group.values.values() for v in values if np.isfinite(v))
    for y, values in enumerate(group.values.values()):
        low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
        colour = COLOURS[0] if y == 0 else COLOURS[1]
        end = high if np.isfinite(high) else 1.4 * largest
        axes.plot([low, end], [y, y], color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
        axes.plot(values, np.full(len(values), y), "|", color=colour, markersize=7)
        axes.plot(middle, y, "o", color=colour, markersize=5)
        if end != high:
            axes.plot(end, y, ">", color=colour, markersize=6)
        if y == 0:
            axes.axvspan(low, end, color=colour, alpha=0.12, linewidth=0)
        right.append(f"{middle:.3g} ({low:.3g} - {high:.3g})")
    axes.set(title=group.title, xlabel=group.x_label, xscale="log", ylim=(len(right) - 0.5, -0.5))
    axes.set_yticks(range(len(right)), list(group.values))
    axes.grid(False, axis="y")
    span = axes.get_xlim()[1] / axes.get_xlim()[0]
    if span < 100:                                       # powers of ten are too few
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span > 10 else (1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(right)), right, fontsize=8)
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
