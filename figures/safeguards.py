"""The effect of each setting that differs from the paper, changed one at a time, over seeds (not in the paper).

    python figures/safeguards.py [--quick] [--pdf] [--out DIR]

`kfac_ref/optimizers/kfac_settings.py` has a table of the paper's settings and this package's. Here the digits
autoencoder is trained with the demo's settings ("K-FAC, m = 500"; lambda_0, tau1 and T3 are tuned for the full
algorithm, which favours it), and with one setting changed at a time, in float32, which halves the time. For each of the
five seeds, all settings share the initial weights, batches and samples. All runs judge a step on its own batch, as in
the paper; tutorial 9 shows the effect of judging on the next batch. A second group has batches of 60 examples. A
fraction tau2 of such a batch is so small that the exact F on it differs from that of the batch, and a step can explode.
By default `undo` checks only every fifth step (T1), and rejects it if h rises by more than the decrease that M
predicted, or by more than h itself. So it is also tried with a check of every step, and with every rise rejected
(undo = 0).

Left: the error after a fixed number of iterations, median and range over seeds, for each setting. Right: lambda and
gamma during the run. h is measured after each step on the same 200 training examples; the JSON has its largest single
rise. A change is called within the spread if its range of errors overlaps that of the full algorithm.

Writes ``safeguards.png`` and ``safeguards.json``. Takes about fifty seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kfac_ref import plotting, training
from kfac_ref.approximations import BLOCK_DIAGONAL
from kfac_ref.curvature import BlockDiagonal
from kfac_ref.damping import frobenius_pi
from kfac_ref.datasets import Dataset
from kfac_ref.experiments import autoencoder, script
from kfac_ref.experiments.settings import Settings
from kfac_ref.optimizers import KFAC

HERE = Path(__file__).parent / "safeguards"
Changes = Mapping[str, Mapping[str, Any]]

FULL = "full algorithm"
BASE = autoencoder.METHODS["K-FAC, m = 500"].settings
UNCLIPPED = {"gamma_min": 0.0, "gamma_max": math.inf}
#: All settings of the paper.
PAPER = {"lambda_0": 150.0, "tau1": 1 / 8, "tau2": 1 / 4, "T3": 20, "lambda_floor": 0.0, "undo": None, **UNCLIPPED}
LARGE: Changes = {
    FULL: {},
    "tau2 = 1/4 (paper)": {"tau2": 1 / 4},
    "tau1 = 1/8 (paper)": {"tau1": 1 / 8},
    "tau1 = 1": {"tau1": 1.0},
    "T3 = 20 (paper)": {"T3": 20},
    "T3 = 1": {"T3": 1},
    "lambda_floor = 0 (paper)": {"lambda_floor": 0.0},
    "gamma unclipped (paper)": UNCLIPPED,
    "lambda_0 = 150 (paper)": {"lambda_0": 150.0},
    "lambda_0 = 150, gamma unclipped": {"lambda_0": 150.0, **UNCLIPPED},
    "pi by the Frobenius norm": {
        "approximation": replace(BLOCK_DIAGONAL, build=partial(BlockDiagonal, pi=frobenius_pi))},
    "ceiling = 0: no running average": {"ceiling": 0.0},
    "no momentum": {"momentum": False},
    "all as in the paper": PAPER,
}
#: If no step is undone, a run without the rule has the same bits, so it is tried only where steps explode.
SMALL: Changes = {
    FULL: {},
    "tau2 = 1/2": {"tau2": 1 / 2},
    "tau2 = 1/4 (paper)": {"tau2": 1 / 4},
    "tau2 = 1/8": {"tau2": 1 / 8},
    "tau2 = 1/8, undo = None": {"tau2": 1 / 8, "undo": None},
    "tau2 = 1/8, T1 = 1": {"tau2": 1 / 8, "T1": 1},
    "tau2 = 1/8, T1 = 1, undo = 0": {"tau2": 1 / 8, "T1": 1, "undo": 0.0},
}
#: The settings whose lambda and gamma are drawn.
DRAWN = (FULL, "lambda_floor = 0 (paper)", "gamma unclipped (paper)", "lambda_0 = 150 (paper)",
         "lambda_0 = 150, gamma unclipped")
LEVEL = 1.0                             # an error; the iterations to reach it are counted
LOOKED_AT = 200                         # training examples on which h is measured after each step


class Run(NamedTuple):
    """The result of one run.

    Attributes
    ----------
    error : float
        After the last iteration, on all training examples; infinite if the run broke off.
    reached : float
        Iterations to `LEVEL`, in steps of five; infinite if it was not reached.
    rise, factor : float
        The largest rise of h in a step, and the largest ratio of h after a step to h before it.
    undone : int
        Number of rejected steps.
    kept : (float, float, float)
        Of the steps that were checked and kept, the one that raised h on its batch most: h after it and the decrease
        that M predicted, both as fractions of h before it, and rho.
    lambda_, gamma : list of float
        One value per step.
    """

    error: float
    reached: float
    rise: float
    factor: float
    undone: int
    kept: tuple[float, float, float]
    lambda_: list[float]
    gamma: list[float]


def run(change: Mapping[str, Any], batch: int, iterations: int, seed: int, data: Dataset) -> Run:
    """Train the digits autoencoder with the demo's settings and one change."""
    task = Settings(batch=str(batch), dtype="float32", seed=seed).task(data)
    x, y = task.x[:LOOKED_AT], task.y[:LOOKED_AT]
    h = [task.model.at(task.weights, x).loss(y)]
    reached, records = math.inf, []

    def look(history: training.History) -> None:
        nonlocal reached
        k, weights = history.state.k, history.state.weights
        records.append(history.records[-1])
        h.append(task.model.at(weights, x).loss(y))
        if reached == math.inf and k % 5 == 0 and task.model.at(weights, task.x).error(task.y) <= LEVEL:
            reached = float(k)

    try:
        history = training.train(KFAC(task.model, **{**BASE, **change}), task.weights, task.x, task.y, iterations,
                                 task.schedule, seed, after_step=look, progress=False)
        error = task.model.at(history.state.weights, task.x).error(task.y)
    except training.DIVERGED:
        error = math.inf
    steps = np.array(h)
    kept = [(1 + r.actual / r.loss, -r.predicted / r.loss, r.rho) for r in records
            if math.isfinite(r.rho) and "undone" not in r.safeguards]
    return Run(error, reached, float(np.diff(steps).max()), float((steps[1:] / steps[:-1]).max()),
               sum("undone" in r.safeguards for r in records), max(kept, default=(math.nan,) * 3),
               [r.lambda_ for r in records], [r.gamma for r in records])


def summary(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Return the numbers of each setting over its seeds, and its error relative to the full algorithm by seed."""
    found = {}
    full = np.array([r.error for r in runs[FULL]])
    for name, rows in runs.items():
        error = np.array([r.error for r in rows])
        found[name] = {
            "error_median": float(np.median(error)), "error_least": float(error.min()),
            "error_largest": float(error.max()), "ratio_to_full_median": float(np.median(error / full)),
            "seeds_better_than_full": int((error < full).sum()), "seeds_worse_than_full": int((error > full).sum()),
            "ranges_overlap": bool(error.min() <= full.max() and error.max() >= full.min()),
            "iterations_to_level": [r.reached for r in rows], "undone": [r.undone for r in rows],
            "largest_rise_of_h": max(r.rise for r in rows), "largest_factor_of_h": max(r.factor for r in rows),
            "runs_where_h_doubled": sum(r.factor > 2 for r in rows), "broke_off": int(np.isinf(error).sum()),
            "worst_kept_step": max(r.kept for r in rows),
            "smallest_lambda": min(min(r.lambda_) for r in rows), "largest_lambda": max(max(r.lambda_) for r in rows),
            "smallest_gamma": min(min(r.gamma) for r in rows), "largest_gamma": max(max(r.gamma) for r in rows),
            "errors": error}
    return found


def spread(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """List the settings that are worse or better than the full algorithm beyond its spread, and those within it."""
    full = numbers[FULL]
    others = {name: n for name, n in numbers.items() if name != FULL}
    worse = [f"[{name}] {n['error_median']:.2f}" for name, n in others.items()
             if n["error_least"] > full["error_largest"]]
    better = [f"[{name}] {n['error_median']:.2f}" for name, n in others.items()
              if n["error_largest"] < full["error_least"]]
    within = [(name, n) for name, n in others.items() if n["ranges_overlap"]]
    parts = [f"full algorithm {full['error_median']:.2f} ({full['error_least']:.2f} to {full['error_largest']:.2f})"]
    for word, names in (("worse beyond the spread", worse), ("better beyond it", better)):
        if names:
            parts.append(f"{word}: " + ", ".join(names))
    S = len(full["errors"])
    for word, key in (("worse", "seeds_worse_than_full"), ("better", "seeds_better_than_full")):
        names = [f"[{name}] {n['error_median']:.2f}" for name, n in within if n[key] == S]
        if names and S > 1:
            parts.append(f"within it, but {word} on each of the {S} seeds: " + ", ".join(names))
    rest = [f"[{name}]" for name, n in within
            if S == 1 or S not in (n["seeds_worse_than_full"], n["seeds_better_than_full"])]
    if rest:
        parts.append("within it, now better and now worse: " + ", ".join(rest))
    return "; ".join(parts)


def ran(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence with the ranges of lambda and gamma."""
    floor, free = numbers["lambda_floor = 0 (paper)"], numbers["gamma unclipped (paper)"]
    clipped, runaway = numbers["lambda_0 = 150 (paper)"], numbers["lambda_0 = 150, gamma unclipped"]
    return (f"Without the floor lambda falls to {floor['smallest_lambda']:.1g}; unclipped, gamma falls to "
            f"{free['smallest_gamma']:.2g} (clipped: {numbers[FULL]['smallest_gamma']:.2g}), and from lambda_0 = 150 "
            f"it reaches {runaway['largest_gamma']:.0f} (clipped: {clipped['largest_gamma']:.2g}).")


def exploded(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence with the runs in which a step more than doubled h, and the effect of `undo`."""
    parts, others = [], []
    for name, n in numbers.items():
        if not (n["runs_where_h_doubled"] or sum(n["undone"])):
            others.append(n["largest_factor_of_h"])
            continue
        parts.append(f"[{name}] {n['runs_where_h_doubled']} of {len(n['errors'])} (at worst "
                     f"{n['largest_factor_of_h']:.3g} times; steps undone: {sum(n['undone'])}, runs broken off: "
                     f"{n['broke_off']})")
    rest = f"none in the others (at worst {max(others):.2g} times)" if others else ""
    after, _, rho = numbers["tau2 = 1/8, T1 = 1"]["worst_kept_step"]
    return ("Runs in which a step more than doubled h: " + "; ".join([*parts, rest]) + ". With T1 = 1, the "
            f"worst step that the rule kept made h {after:.2g} times as large (rho = {rho:.2g}).")


def panels(runs: Mapping[str, Sequence[Run]]) -> list[plotting.Panel]:
    """Return the panels of lambda and gamma during the runs of `DRAWN`."""
    found = []
    for title, name in (("lambda along the run", "lambda_"), ("gamma along the run", "gamma")):
        lines = {}
        for label in DRAWN:
            values = np.array([getattr(r, name) for r in runs[label]])
            lines[label] = (np.arange(1, values.shape[1] + 1), values)
        found.append(plotting.Panel(f"{title} (m = 500)", "iterations", name.rstrip("_"), lines, x_scale="linear"))
    return found


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run all settings over their seeds and write picture and numbers to `out`; return 0."""
    seeds, large, small = (1, 6, 6) if quick else (5, 150, 300)
    data = Settings(dtype="float32").dataset()
    groups = {"large": (LARGE, 500, large), "small": (SMALL, 60, small)}
    runs = {key: {name: [run(change, m, iterations, seed, data) for seed in range(seeds)]
                  for name, change in changes.items()} for key, (changes, m, iterations) in groups.items()}
    numbers = {key: summary(found) for key, found in runs.items()}
    rows = [plotting.Rows(f"m = {m}, after {iterations} iterations", "error (mean over cases of the sum of squared "
                          "differences)", {name: n["errors"] for name, n in numbers[key].items()})
            for key, (_, m, iterations) in groups.items()]
    text = ("What each setting does: the error when it alone is changed (left), lambda and gamma along some of these "
            f"runs (right). Digits autoencoder, median and range over seeds ({seeds}; inf: broke off). m = 500: "
            f"{spread(numbers['large'])}. {ran(numbers['large'])} m = 60: {spread(numbers['small'])}. "
            f"{exploded(numbers['small'])}")
    content = {"seeds": seeds, "level": LEVEL, "iterations": {"large": large, "small": small},
               "batch": {"large": 500, "small": 60}, "base": dict(BASE), "settings": numbers}
    script.save(plotting.ranges(rows, panels(runs["large"]), text), content, out / "safeguards", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
