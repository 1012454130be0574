"""How long a run stays on the plateau of the mean image, over seeds: K-FAC and SGD on curves (not in the paper).

    python figures/plateau.py [--quick] [--pdf] [--out DIR]

The paper's deep autoencoder 784-400-200-100-50-25-6-...-784 on the generated stand-in for its CURVES, in float32. Every
method soon learns the mean image: the output hardly depends on the input, and the error is that of the best constant.
The run stays there until the code layer carries information. How long depends on the method, its initial damping, the
initialization and the seed. K-FAC (m = 1000) is run from the paper's sparse start with lambda_0 = 0.001, 10 and 150
(the paper's), and from the dense Glorot start with lambda_0 = 10; SGD with Nesterov's momentum (m = 500, learning rate
0.02, not tuned) is the baseline. A run has left the plateau when its error stays below 90% of the error of the mean
image. Both are measured on the first 2000 training examples, at steps that are 7% apart, which limits the accuracy of
the iteration counts. Left: the error, median and range over seeds. Right: the variance of the output over the examples,
as a fraction of the variance of the images.

Writes ``plateau.png`` and ``plateau.json``. It takes about seven minutes, so `make figures-paper` draws it and `make
figures` does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kfac_ref import datasets, plotting, training
from kfac_ref.experiments import script
from kfac_ref.experiments.settings import PAPER_RULE, Settings

HERE = Path(__file__).parent / "plateau"
LEFT = 0.9                              # fraction of the error of the mean image
CASES = 2000                            # on which the error is measured
SPACING = 1.07                          # between evaluated steps


class Plan(NamedTuple):
    """One plan: settings, iterations, seeds."""

    settings: Settings
    iterations: int
    seeds: int


def _kfac(lambda_0: float, init: str = "sparse") -> Settings:
    return Settings("curves", settings={"lambda_0": lambda_0, **PAPER_RULE}, batch="1000", init=init, dtype="float32")


_SGD = Settings("curves", optimizer="sgd", settings={"learning_rate": 0.02}, batch="500", dtype="float32")
PLANS = {"K-FAC, lambda_0 = 0.001": Plan(_kfac(0.001), 220, 5), "K-FAC, lambda_0 = 10": Plan(_kfac(10), 220, 5),
         "K-FAC, lambda_0 = 150": Plan(_kfac(150), 180, 5),
         "K-FAC, lambda_0 = 10, Glorot start": Plan(_kfac(10, "glorot"), 220, 2), "SGD": Plan(_SGD, 600, 1)}


def quick_plans() -> dict[str, Plan]:
    """Return the same plans with a small network, two steps and at most two seeds."""
    return {name: Plan(replace(plan.settings, net="784-20-6-20-784", hidden="logistic", batch="50"), 2,
                       min(plan.seeds, 2)) for name, plan in PLANS.items()}


def mean_image_error(x: np.ndarray, cases: int = CASES) -> float:
    """Return the error of a network that outputs the mean of all images for every input."""
    return float(np.sum((x[:cases] - x.mean(axis=0)) ** 2, axis=1).mean())


def run(plan: Plan, seed: int, data: datasets.Dataset) -> dict[str, list[float]]:
    """Train once; return steps, errors, variances of the output, and lambda and gamma if the method has them."""
    task = replace(plan.settings, seed=seed).task(data)
    x = task.x[:CASES]
    spread = x.var(axis=0, dtype=np.float64).sum()
    steps = frozenset(training.evaluation_steps(plan.iterations, SPACING)[1:])
    found: dict[str, list[float]] = {"k": [], "error": [], "variance": [], "lambda_": [], "gamma": []}

    def look(history: training.History) -> None:
        if history.state.k in steps:
            at = task.model.at(history.state.weights, x)
            # The means of the Bernoulli outputs, in float64 because rounding in `var` would hide a variance of 1e-10.
            images = (1 + np.tanh(at.z.astype(np.float64) / 2)) / 2
            found["k"].append(history.state.k)
            found["error"].append(at.error(x))
            found["variance"].append(float(images.var(axis=0).sum() / spread))
            for name in ("lambda_", "gamma"):
                found[name].append(getattr(history.records[-1], name, math.nan))

    training.train(task.optimizer, task.weights, task.x, task.y, plan.iterations, task.schedule, seed,
                   after_step=look, name=f"seed {seed}")
    return found


def left_at(k: Sequence[float], error: Sequence[float], level: float) -> float:
    """Return the first evaluated step after which the error stays below the level; infinite if there is none."""
    above = [i for i, e in enumerate(error) if not e < level]
    first = above[-1] + 1 if above else 0
    return k[first] if first < len(k) else math.inf


def in_words(left: Sequence[float], iterations: int) -> str:
    """Return a phrase that says when the runs of one plan left the plateau."""
    there = sorted(k for k in left if math.isfinite(k))
    if not there:
        return f"not within {iterations} iterations ({len(left)} seed{'s' * (len(left) > 1)})"
    spread = f"{there[0]:g}" if there[0] == there[-1] else f"{there[0]:g} to {there[-1]:g}"
    if len(there) < len(left):
        return (f"after {spread} iterations in {len(there)} of {len(left)} seeds, not within {iterations} in the other"
                + "s" * (len(left) - len(there) > 1))
    return f"after {spread} iterations ({len(left)} seed{'s' * (len(left) > 1)})"


def report(runs: Mapping[str, Sequence[Mapping[str, list[float]]]], plans: Mapping[str, Plan],
           mean_error: float) -> tuple[list[plotting.Panel], dict[str, Any], str]:
    """Return the panels, the numbers and the caption."""
    level = LEFT * mean_error
    left = {name: [left_at(r["k"], r["error"], level) for r in rows] for name, rows in runs.items()}
    flat = [min(v for v, e in zip(r["variance"], r["error"], strict=True) if e < 1.02 * mean_error)
            for rows in runs.values() for r in rows if min(r["error"]) < 1.02 * mean_error]
    constant = (f" While they sit there, the variance of the output over cases falls to {min(flat):.0e} to "
                f"{max(flat):.0e} of that of the images." if flat else "")
    rounding = float(np.finfo(np.float32).eps) ** 2
    lost = [f"{name} ({count} of {len(runs[name])} runs)" for name in runs
            if (count := sum(min(r["variance"]) < rounding for r in runs[name]))]
    if lost:
        constant += f" It falls to the size of rounding (below {rounding:.0e}) with " + ", ".join(lost) + "."
    text = ("How long a run stays on the plateau where the output is the mean image whatever the input: the error "
            "(left) and the variance of the output over cases (right). Generated curves; that image has an error of "
            f"{mean_error:.2f}. The error is below {100 * LEFT:.0f}% of that for good: "
            + "; ".join(f"{name}: {in_words(left[name], plans[name].iterations)}" for name in runs) + "."
            + constant + " Lines: median over seeds, bands: their range.")
    middle = {name: {"k": np.array(rows[0]["k"]), "error": np.array([r["error"] for r in rows]),
                     "variance": np.array([r["variance"] for r in rows])} for name, rows in runs.items()}
    ends = (1, max(plan.iterations for plan in plans.values()))
    level_line = {f"{100 * LEFT:.0f}% of the mean image's, {level:.1f}": (np.array(ends), np.full(2, level))}
    panels = [plotting.Panel("error", "iterations", "mean over cases of the sum of squared differences",
                             {name: (m["k"], m["error"]) for name, m in middle.items()} | level_line),
              plotting.Panel("does the output depend on the input?", "iterations",
                             "variance of the output over cases / of the images",
                             {name: (m["k"], m["variance"]) for name, m in middle.items()})]
    numbers = {"mean_image_error": mean_error, "level": level, "spacing": SPACING, "cases": CASES,
               "left_plateau_at": left, "iterations": {name: plan.iterations for name, plan in plans.items()},
               "settings": {name: plan.settings.plain() for name, plan in plans.items()}, "runs": runs}
    return panels, numbers, text


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run all plans over their seeds and write picture and numbers to `out`; return 0."""
    plans = quick_plans() if quick else PLANS
    if quick:
        x = datasets.curves(100, 0, "float32")
        data = datasets.Dataset(x, np.zeros(0, np.int64), x[:10], np.zeros(0, np.int64))
    else:
        data = PLANS["SGD"].settings.dataset()
    runs = {name: [run(plan, seed, data) for seed in range(plan.seeds)] for name, plan in plans.items()}
    panels, numbers, text = report(runs, plans, mean_image_error(data.x))
    script.save(plotting.side_by_side(panels, text), numbers, out / "plateau", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
