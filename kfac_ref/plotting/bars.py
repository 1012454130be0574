"""Pictures of bars: the error budget of a step, and numbers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import COLOURS, caption, style


def error_budget(names: Sequence[str], errors: Sequence[float], angles: Sequence[float],
                 decreases: Sequence[float], text: str) -> Figure:
    """Draw the numbers of `analysis.error_budget` as bars, one row per matrix, in three panels."""
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


def grouped_bars(values: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str], label: str,
                 text: str) -> Figure:
    """Draw numbers as bars, one panel per network: ``values[panel][member]`` has one number for each of `names`."""
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
