"""What a comparison reports: iterations and seconds to each error level, as a table and as curves.

`histories` has the runs of each method, one per seed; the first method is the one that captions are about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .. import plotting, training


def reached(history: training.History, level: float) -> tuple[int, float] | None:
    """Return the first evaluated step whose training error is at most `level`, and the seconds until then."""
    return next(((e.k, e.seconds) for e in history.evaluations if e.error <= level), None)


def medians(runs: Sequence[training.History], level: float) -> tuple[float, float] | None:
    """Return the median iterations and seconds to a level; None if no more than half of the runs reach it."""
    hits = [hit for h in runs if (hit := reached(h, level))]
    if 2 * len(hits) <= len(runs):
        return None
    missing = [math.inf] * (len(runs) - len(hits))
    return tuple(float(np.median([h[i] for h in hits] + missing)) for i in (0, 1))      # type: ignore[return-value]


def level_table(histories: Mapping[str, Sequence[training.History]], levels: Sequence[float]) -> list[list[str]]:
    """Return the head of the convergence table and two rows per method: median and range over seeds."""
    rows = [["error at most", "", *(f"{level:g}" for level in levels), "last error", "of the averaged iterate"]]
    for name, runs in histories.items():
        hits = [[reached(h, level) for h in runs] for level in levels]
        last = sorted(h.evaluations[-1].error for h in runs)
        averaged = sorted(h.evaluations[-1].averaged_error for h in runs)
        rows.append([name, "iterations", *(spread([h and h[0] for h in hit], "{:.0f}") for hit in hits),
                     *(f"{np.median(e):.3f} ({e[0]:.3f}-{e[-1]:.3f})" for e in (last, averaged))])
        rows.append(["", "seconds", *(spread([h and h[1] for h in hit], "{:.2f}") for hit in hits), "", ""])
    return rows


def spread(values: Sequence[float | None], form: str) -> str:
    """Write the median and the range of what the seeds reached (None: not reached); "-" if no more than half did."""
    known = sorted(v for v in values if v is not None)
    if 2 * len(known) <= len(values):
        return "-"
    middle = float(np.median([math.inf if v is None else v for v in values]))
    spread = f"-{form.format(known[-1])}" if len(known) == len(values) else " up"
    return f"{form.format(middle)} ({form.format(known[0])}{spread})"


def curves(histories: Mapping[str, Sequence[training.History]]) -> dict[str, plotting.Curve]:
    """Return what is drawn of each method: error over iterations and seconds, after the start."""
    return {name: plotting.Curve(np.array([e.k for e in runs[0].evaluations[1:]]),
                                 np.array([[e.seconds for e in h.evaluations[1:]] for h in runs]),
                                 np.array([[e.error for e in h.evaluations[1:]] for h in runs]))
            for name, runs in histories.items()}


def figure(histories: Mapping[str, Sequence[training.History]], levels: Sequence[float], title: str,
           error: str) -> Figure:
    """Draw error against iterations and seconds, with the numbers of one level in the caption.

    The caption begins with `title`, `error` says what the error is.
    """
    # The lowest level that the first method and at least one other reach on most seeds says most.
    first = next(iter(histories))
    rows = {level: {name: medians(runs, level) for name, runs in histories.items()} for level in levels}
    both = [level for level, row in rows.items() if row[first] and sum(hit is not None for hit in row.values()) > 1]
    seeds = len(histories[first])
    text = f"{title}: median of { {1: 'one', 2: 'two', 3: 'three'}.get(seeds, seeds)} seed{'s' * (seeds > 1)}, bands " \
           "their range."
    if both:
        parts = (f"{name.replace(', ', ' with ')} takes {hit[0]:.0f} iterations and {hit[1]:.1f} s" if hit
                 else f"{name.replace(', ', ' with ')} does not get there" for name, hit in rows[both[-1]].items())
        text += f" To an error of {both[-1]:g} {'; '.join(parts)}."
    return plotting.convergence(curves(histories), f"training error\n({error})", text)
