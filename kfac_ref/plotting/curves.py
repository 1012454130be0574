"""Pictures of lines: error along a run, one quantity against another, cost against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..checks import Array
from .style import COLOURS, DASHES, LOOKS, MARKERS, caption, plain_ticks, style


@dataclass(frozen=True, eq=False)
class Curve:
    """One method's error over a run, for S seeds."""

    iterations: Array  #: Where the error was measured, (T,).
    seconds: Array     #: The time until then, (S, T).
    error: Array       #: (S, T).


def convergence(curves: Mapping[str, Curve], error_label: str, text: str) -> Figure:
    """Draw error against iterations and against seconds, on logarithmic scales.

    The line is the median over seeds, the band their range. Raises ValueError for more curves than `LOOKS`.
    """
    return convergence_rows({"": curves}, error_label, text)


def convergence_rows(problems: Mapping[str, Mapping[str, Curve]], error_label: str, text: str) -> Figure:
    """Draw `convergence` for several problems, one row per title; a name looks the same in all rows."""
    names = list(dict.fromkeys(name for curves in problems.values() for name in curves))
    if len(names) > len(LOOKS):
        raise ValueError(f"curves must be at most {len(LOOKS)}, got {len(names)}: there are no more colours and dashes "
                         "that everybody can tell apart")
    with style():
        figure = Figure(figsize=(10, 3.9 * len(problems) + 1.6), layout="constrained")
        grid = figure.subplots(len(problems), 2, sharey="row", squeeze=False)
        for (left, right), (title, curves) in zip(grid, problems.items(), strict=True):
            for name, curve in curves.items():
                colour, dash = LOOKS[names.index(name)]
                low, middle, high = curve.error.min(0), np.median(curve.error, 0), curve.error.max(0)
                for axes, x in ((left, curve.iterations), (right, np.median(curve.seconds, 0))):
                    axes.plot(x, middle, color=colour, linestyle=dash, label=name)
                    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            above = f"{title}: " if title else ""
            left.set(xlabel="iterations", ylabel=error_label, title=f"{above}by iterations")
            right.set(xlabel="seconds (evaluation left out)", title=f"{above}by seconds")
            for axes in (left, right):
                axes.set(xscale="log", yscale="log")
                axes.grid(True, which="minor", alpha=0.12)
            plain_ticks(left)
        handles = {label: handle for axes in grid[:, 0] for handle, label in
                   zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
        caption(figure, text, 138)
        return figure


def lines(x: Array, values: Mapping[str, Sequence[float]], x_label: str, y_label: str, text: str,
          log_x: bool = True) -> Figure:
    """Draw a few lines over one axis, with the values on a logarithmic scale; at most as many as there are colours."""
    with style():
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        for (name, y), colour, dash, marker in zip(values.items(), COLOURS, DASHES, MARKERS, strict=False):
            axes.plot(x, y, color=colour, linestyle=dash, marker=marker, markevery=max(1, len(x) // 8), label=name)
        axes.set(xlabel=x_label, ylabel=y_label, yscale="log", xscale="log" if log_x else "linear")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        caption(figure, text, 122)
        return figure


def decreases(strength: Array, panels: Mapping[str, Mapping[str, Mapping[str, Array]]], used: Mapping[str, float],
              text: str) -> Figure:
    """Draw the decrease of h in one update against the strength of the damping, one panel per point of the training.

    Each vertical axis is linear where h falls, and logarithmic where it rises, since there the numbers span many
    decades. The maximum of each line is marked.
    ``panels[title][damping][kind of step]`` are decreases, (T,): negative where h rises, NaN where it is not finite. A
    vertical line is drawn at ``used[title]``, the strength that the optimizer itself used.
    """
    with style():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        for axes, (title, dampings) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
            for (damping, steps), colour, marker in zip(dampings.items(), COLOURS, MARKERS, strict=False):
                for (step, y), dash in zip(steps.items(), DASHES, strict=False):
                    axes.plot(strength, y, color=colour, linestyle=dash, label=f"{damping}, {step}")
                    if np.isfinite(y).any():
                        best = int(np.nanargmax(y))
                        axes.plot(strength[best], y[best], color=colour, marker=marker, markersize=7)
            axes.axvline(used[title], color="0.4", linewidth=1)
            axes.annotate(" gamma of\n the run", (used[title], 0.02), xycoords=("data", "axes fraction"), fontsize=9)
            axes.set(title=title, xscale="log", xlabel="strength of the damping: gamma, or sqrt(lambda + eta) if exact")
            _fall_and_rise(axes, np.array([y for steps in dampings.values() for y in steps.values()]))
        figure.axes[0].set_ylabel("decrease of h in one update (nats per example);\nlogarithmic where h rises")
        handles = [line for line in figure.axes[0].lines if "," in str(line.get_label())]
        by_step = [handles[i::len(steps)] for i in range(len(steps))]               # one column per kind of step
        figure.legend(handles=[h for column in by_step for h in column], loc="outside upper center", ncols=len(steps))
        caption(figure, text, 150)
        return figure


def batch_sizes(curves: Mapping[str, Mapping[int, tuple[Array, Array]]], error_label: str, text: str) -> Figure:
    """Draw errors, (S, T), against iterations, (T,), and against examples processed, one row per method."""
    with style():
        figure = Figure(figsize=(10, 2.7 * len(curves) + 1.6), layout="constrained")
        grid = figure.subplots(len(curves), 2, sharey=True, sharex="col", squeeze=False)
        for row, (method, sizes) in zip(grid, curves.items(), strict=True):
            for (m, (iterations, errors)), colour, dash in zip(sizes.items(), COLOURS, DASHES, strict=False):
                low, middle, high = errors.min(0), np.median(errors, 0), errors.max(0)
                for axes, x in zip(row, (iterations, m * iterations), strict=True):
                    axes.plot(x, middle, color=colour, linestyle=dash, label=f"m = {m}")
                    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
                    axes.set(xscale="log", yscale="log", title=method)
                    axes.grid(True, which="minor", alpha=0.12)
        for axes, label in zip(grid[-1], ("iterations", "examples processed (iterations times m)"), strict=True):
            axes.set_xlabel(label)
        plain_ticks(grid[0, 0])
        figure.supylabel(error_label, fontsize=10, multialignment="center")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS))
        caption(figure, text, 138)
        return figure


def cost(rows: Mapping[str, Array], text: str) -> Figure:
    """Draw seconds and memory against width, on logarithmic scales; each array, (T, 3), has width, seconds and MiB."""
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


def _fall_and_rise(axes: Axes, values: Array) -> None:
    """Scale a y axis linearly above zero, in its upper two thirds, and logarithmically below, which is shaded."""
    known = values[np.isfinite(values)]
    top = max(float(known.max(initial=0)), 1e-300)
    bottom = -max(float(-known.min(initial=0)), top)
    depth = 0.5 / np.log10(1 - bottom / top)
    axes.set_yscale("function", functions=(
        lambda y: np.where(y < 0, -depth * np.log10(1 + np.maximum(-y, 0) / top), y / top),
        lambda u: np.where(u < 0, top * (1 - 10 ** (np.maximum(-u, 0) / depth)), u * top)))
    axes.set_ylim(2 * bottom, 1.08 * top)
    # Ticks at no more than three powers of ten, none so near to zero that its label would overlap that of zero.
    powers = [p for p in range(int(np.ceil(np.log10(top))), int(np.floor(np.log10(-bottom))) + 1)
              if depth * np.log10(1 + 10.0**p / top) > 0.1][::-1]
    powers = powers[::max(1, -(-len(powers) // 3))]
    falls = [t for t in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, top) if 0 <= t <= 1.08 * top]
    axes.set_yticks([*(-10.0**p for p in powers), *falls],
                    [*(f"$-10^{{{p}}}$" for p in powers), *(f"{t:g}" for t in falls)])
    axes.axhspan(2 * bottom, 0, color="black", alpha=0.06, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
