"""The picture of one training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import COLOURS, DASHES, caption, plain_ticks, style


def _log_with_zero(axes: Axes) -> None:
    """Make the y axis logarithmic, with a place for zero if it occurs: a classifier can make no errors."""
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines] or [np.zeros(0)]).astype(float)
    drawn = drawn[np.isfinite(drawn)]
    if not (drawn > 0).any():
        return
    if drawn.min() > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=drawn[drawn > 0].min())
        axes.set_ylim(bottom=min(0, drawn.min()))


def run(evaluations: Sequence[Any], steps: Sequence[Mapping[str, Any]], text: str) -> Figure:
    """Draw a run over its steps: errors, damping or learning rate, and time; `steps` are records as mappings."""
    with style():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        errors, strengths, times = figure.subplots(1, 3)
        shown = [e for e in evaluations if e.k > 0] or list(evaluations)
        for name, label, colour, dash in zip(("error", "averaged_error", "test_error"),
                                             ("training", "training, averaged iterate", "held out"), COLOURS, DASHES,
                                             strict=False):
            values = np.array([getattr(e, name) for e in shown])
            if np.isfinite(values).any():
                errors.plot([e.k for e in shown], values, color=colour, linestyle=dash, label=label)
        k = [step["k"] for step in steps]
        for name, colour, dash in zip(("lambda_", "gamma", "learning_rate"), COLOURS, DASHES, strict=False):
            if steps and name in steps[0]:
                strengths.plot(k, [step[name] for step in steps], color=colour, linestyle=dash,
                               label=name.rstrip("_").replace("_", " "))
        times.plot(k, [1e3 * sum(step["seconds"].values()) for step in steps], ".", color=COLOURS[1], markersize=3)
        for axes, title in ((errors, "error"), (strengths, "strength of damping, or learning rate"),
                            (times, "milliseconds per step")):
            axes.set(title=title, xlabel="steps", xscale="log" if shown[-1].k > 1 else "linear")
            _log_with_zero(axes)
            if axes is not strengths:
                plain_ticks(axes)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        caption(figure, text, 150)
        return figure
