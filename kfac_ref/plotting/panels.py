"""Several panels of lines, each with axes and a legend of its own, or with one legend for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..checks import Array
from .style import COLOURS, DASHES, MARKERS, caption, style


@dataclass(frozen=True, eq=False)
class Panel:
    """Lines over one axis, drawn in the looks of their places."""

    title: str
    x_label: str
    y_label: str
    #: Pairs (x, y) by name: x (T,), y (T,) or (S, T); NaN leaves a gap. S repeats are drawn as median and range.
    lines: Mapping[str, tuple[Array, Array]]
    x_scale: str = "log"                      #: ``log`` or ``linear``.
    y_scale: str = "log"


def side_by_side(panels: Sequence[Panel], text: str) -> Figure:
    """Draw panels in one row, each with its legend below; raises ValueError for more lines than colours."""
    for panel in panels:
        if len(panel.lines) > len(COLOURS):
            raise ValueError(f"a panel must have at most {len(COLOURS)} lines, got {len(panel.lines)} in "
                             f"{panel.title!r}")
    with style():
        figure = Figure(figsize=(4.5 * len(panels), 6.4), dpi=120)
        figure.set_layout_engine("constrained", wspace=0.06)
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            _draw(axes, panel)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
        caption(figure, text, 68 * len(panels))
        return figure


def with_one_legend(panels: Sequence[Panel], below: Panel, text: str) -> Figure:
    """Draw two panels that share names and the vertical axis, and below them a third panel beside their legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    with style():
        figure = Figure(figsize=(11, 7.6), layout="constrained", dpi=120)
        (left, right), (low, beside) = figure.subplots(2, 2, height_ratios=(2, 1))
        for axes, panel in ((left, panels[0]), (right, panels[1])):
            _draw(axes, panel, names)
        right.sharey(left)
        right.autoscale(axis="y")
        for axes in (left, right):
            if axes.get_yscale() == "log":                  # powers of ten are too few for less than two decades
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
        _draw(low, below)
        low.legend(loc="best")
        beside.set_axis_off()
        handles = {label: handle for axes in (left, right)
                   for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        beside.legend([handles[name] for name in names], names, loc="center", ncols=2, borderaxespad=0)
        caption(figure, text, 160)
        return figure


def _draw(axes: Axes, panel: Panel, names: Sequence[str] | None = None) -> None:
    """Draw a panel's lines, each in the look that belongs to the place of its name in `names`."""
    names = list(panel.lines) if names is None else names
    for name, (x, y) in panel.lines.items():
        k = names.index(name)
        y = np.atleast_2d(y)
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(x, np.median(y, axis=0), color=colour, linestyle=DASHES[(k + k // len(COLOURS)) % len(DASHES)],
                  marker=MARKERS[k % len(MARKERS)], markersize=5, linewidth=1.5, markevery=max(1, len(x) // 8),
                  label=name)
        if len(y) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, xscale=panel.x_scale, yscale=panel.y_scale)
