"""Pictures of lines: error along a run, something against something, cost against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checks import Array
from .style import COLOURS, DASHES, MARKERS, caption, style


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


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic y axis with plain numbers, also between powers of ten."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if high / low < 100 and f"{value:.0e}"[0] in "2357" else "")


def _log_with_zero(axes: Axes) -> None:
    """Make the y axis logarithmic, with a place for a zero where there is one: a classifier can make no errors."""
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
    """Draw one training run: its errors, what damps it, and what its steps cost.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Errors over whole sets.
    steps : sequence of mapping
        The optimizer's records, with ``k``, ``loss``, ``seconds`` by stage, and where it has them ``lambda_`` and
        ``gamma``.
    text : str
        The caption.

    Returns
    -------
    Figure
        Three panels over the steps.
    """
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
                            (times, "milliseconds a step")):
            axes.set(title=title, xlabel="steps", xscale="log" if shown[-1].k > 1 else "linear")
            _log_with_zero(axes)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        caption(figure, text, 150)
        return figure
