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
    """Lines over one axis.

    Attributes
    ----------
    title : str
        Stands above the panel.
    x_label, y_label : str
        What the axes show, with units.
    lines : mapping from name to (x, y)
        (T,) arrays; or y (S, T), a row for each repeat, drawn as their median with a band from the least to the
        largest. NaN leaves a gap.
    x_scale, y_scale : str
        Matplotlib's name of the scale: ``log``, ``linear``.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, tuple[Array, Array]]
    x_scale: str = "log"
    y_scale: str = "log"


def side_by_side(panels: Sequence[Panel], text: str) -> Figure:
    """Draw panels side by side, each with its legend below.

    Parameters
    ----------
    panels : sequence of Panel
        Of at most as many lines each as there are colours.
    text : str
        The caption.

    Returns
    -------
    Figure
        One row.

    Raises
    ------
    ValueError
        For a panel of more lines than there are colours.
    """
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
    """Draw two panels of the same lines, under them a third one of others, and beside that the legend of the two.

    Parameters
    ----------
    panels : sequence of two Panel
        They share the vertical axis. A name that occurs in both has the same colour, dash and marker in both.
    below : Panel
        Has a legend of its own.
    text : str
        The caption.

    Returns
    -------
    Figure
        Two rows; the lower one is half as high.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    with style():
        figure = Figure(figsize=(11, 7.6), layout="constrained", dpi=120)
        (left, right), (low, beside) = figure.subplots(2, 2, height_ratios=(2, 1))
        for axes, panel in ((left, panels[0]), (right, panels[1])):
            _draw(axes, panel, names)
        right.sharey(left)
        right.autoscale(axis="y")
        for axes in (left, right):
            if axes.get_yscale() == "log":                  # less than two decades: powers of ten are too few
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
    """Draw a panel's lines in the looks that belong to the places of their names."""
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
