"""Batch size: error against iterations and against examples processed, K-FAC and SGD (the paper's figure 9).

    python figures/batch_size.py [--quick] [--pdf] [--out DIR]

The digits autoencoder 64-32-16-8-16-32-64 is trained with batches of 100, 250, 500 and all 1500 examples, by K-FAC and
by SGD with Nesterov's momentum, over three seeds and in float32. For each batch size K-FAC uses the best of four
lambda_0 and SGD the best of four learning rates, tried on three other seeds (`tune`). One seed is not enough: its best
rate may diverge on the next seed. From one batch size to the next, the iterations to an error level scale as m^-p. With
p = 1, doubling the batch halves the iterations (the number of examples is the same); with p > 1 an example contributes
more in a larger batch, as the paper observes for K-FAC; with p = 0 a larger batch brings nothing.

Writes ``batch_size.png`` and ``batch_size.json``; ``tune()`` writes ``tune.json``, the source of `SETTINGS`::

    python -c "import sys; sys.path.insert(0, 'figures'); import batch_size; batch_size.tune()"

Takes about 50 seconds; tuning takes three minutes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting, training
from kfac_ref.environment import environment
from kfac_ref.experiments import autoencoder, script
from kfac_ref.experiments.settings import PAPER_RULE

HERE = Path(__file__).parent / "batch_size"
SEEDS = (0, 1, 2)
TUNING_SEEDS = (100, 101, 102)
#: Iterations are counted to these errors, from early in training to the lowest that most runs reach.
LEVELS = (2.0, 1.0, 0.7, 0.6)
#: The levels in the caption.
TOLD = ("1", "0.7")
METHODS = {"K-FAC": "K-FAC, m = 500", "SGD": "SGD, m = 500"}
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "K-FAC": {"lambda_0": (0.0001, 0.001, 0.01, 0.1), "tau1": (1 / 4,), "T3": (5,),
              **{name: (value,) for name, value in PAPER_RULE.items()}},
    "SGD": {"learning_rate": (0.03, 0.05, 0.08, 0.12), "mu_max": (0.995,), "period": (10,)}}
#: Number of steps by method and batch size, in the reported runs and in tuning.
ITERATIONS = {"K-FAC": {100: 1000, 250: 900, 500: 900, 1500: 300}, "SGD": {100: 2000, 250: 1900, 500: 1800, 1500: 1600}}
TUNING_ITERATIONS = {"K-FAC": {100: 800, 250: 700, 500: 500, 1500: 300},
                     "SGD": {100: 2500, 250: 2200, 500: 1800, 1500: 1600}}
#: The settings that `tune` chose.
SETTINGS: dict[str, dict[int, dict[str, Any]]] = {
    "K-FAC": {100: {"lambda_0": 0.001, "tau1": 1 / 4, "T3": 5, **PAPER_RULE},
              250: {"lambda_0": 0.01, "tau1": 1 / 4, "T3": 5, **PAPER_RULE},
              500: {"lambda_0": 0.001, "tau1": 1 / 4, "T3": 5, **PAPER_RULE},
              1500: {"lambda_0": 0.001, "tau1": 1 / 4, "T3": 5, **PAPER_RULE}},
    "SGD": {100: {"learning_rate": 0.05, "mu_max": 0.995, "period": 10},
            250: {"learning_rate": 0.08, "mu_max": 0.995, "period": 10},
            500: {"learning_rate": 0.05, "mu_max": 0.995, "period": 10},
            1500: {"learning_rate": 0.08, "mu_max": 0.995, "period": 10}}}


def run(method: str, m: int, settings: dict[str, Any], data: kr.datasets.Dataset, seed: int,
        iterations: int) -> list[training.Evaluation]:
    """Train once and return the evaluations, without the one at the start."""
    model = autoencoder.untrained()
    optimizer = autoencoder.METHODS[METHODS[method]].make(model, settings)
    steps = frozenset(training.evaluation_steps(iterations)) - {0}
    weights = model.init(np.random.default_rng(seed), dtype=data.x.dtype)
    history = training.train(optimizer, weights, data.x, data.x, iterations, training.fixed(m), seed, steps,
                             name=f"{method}, m = {m}, seed {seed}")
    if history.interrupted:
        raise KeyboardInterrupt
    return history.evaluations


def tune(out: Path = HERE) -> dict[str, dict[int, dict[str, Any]]]:
    """Try the grid for each method and batch size on the tuning seeds; write all trials, return the best settings.

    The score is the demo's: the mean log error over the seeds and over the evaluations in the last nine tenths of a
    run. A setting that diverges on any seed is excluded.
    """
    data = kr.datasets.digits(np.float32)
    chosen: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in TUNING_ITERATIONS}
    trials = []
    for method, m, iterations in ((name, m, k) for name, sizes in TUNING_ITERATIONS.items() for m, k in sizes.items()):
        scored = []
        for values in itertools.product(*GRIDS[method].values()):
            settings = dict(zip(GRIDS[method], values, strict=True))
            try:
                runs = [run(method, m, settings, data, seed, iterations) for seed in TUNING_SEEDS]
                each = [float(np.mean([math.log(e.error) for e in found if e.k >= iterations / 10])) for found in runs]
            except training.DIVERGED:
                each = [math.inf]
            scored.append((float(np.mean(each)), settings))
            trials.append({"method": method, "batch": m, "settings": settings, "score": scored[-1][0], "seeds": each})
            print(trials[-1])
        chosen[method][m] = min(scored, key=lambda s: s[0])[1]
        print(f"{method}, m = {m}: {chosen[method][m]}")
    content = {"environment": environment(), "seeds": TUNING_SEEDS, "iterations": TUNING_ITERATIONS, "chosen": chosen,
               "trials": [t if math.isfinite(t["score"]) else t | {"score": None, "seeds": None} for t in trials]}
    out.mkdir(parents=True, exist_ok=True)
    script.write(out / "tune.json", content, {})
    return chosen


def crossing(evaluations: Sequence[training.Evaluation], level: float, averaged: bool = False) -> float:
    """Return the iterations until the error first reaches `level`, or inf if it never does.

    Between two evaluations the error is interpolated by a power law. `averaged` selects the error of the averaged
    iterate.
    """
    errors = [e.averaged_error if averaged else e.error for e in evaluations]
    i = next((i for i, error in enumerate(errors) if error <= level), None)
    if i is None:
        return math.inf
    if i == 0:
        return evaluations[0].k
    share = math.log(errors[i - 1] / level) / math.log(errors[i - 1] / errors[i])
    return evaluations[i - 1].k * (evaluations[i].k / evaluations[i - 1].k) ** share


def exponent(m: tuple[int, int], iterations: tuple[float, float]) -> float:
    """Return p in iterations ~ m^-p from two batch sizes; NaN if a level was not reached."""
    if not all(map(math.isfinite, iterations)):
        return math.nan
    return math.log(iterations[0] / iterations[1]) / math.log(m[1] / m[0])


def count(runs: dict[int, list[list[training.Evaluation]]], level: float, averaged: bool = False) -> dict[str, Any]:
    """Return iterations and examples to a level by batch size (medians over seeds, and range), and the exponents.

    If only the larger of two batch sizes reaches the level, ``exponent_at_least`` is the p that would result if the
    smaller one reached it at the end of its run.
    """
    sizes = sorted(runs)
    each = {m: [crossing(found, level, averaged) for found in runs[m]] for m in sizes}
    median = {m: float(np.quantile(each[m], 0.5, method="nearest")) for m in sizes}
    pairs = [*itertools.pairwise(sizes), (sizes[0], sizes[-1])]
    of_seeds = {(a, b): [p for both in zip(each[a], each[b], strict=True) if math.isfinite(p := exponent((a, b), both))]
                for a, b in pairs}
    at_least = {f"{a}-{b}": exponent((a, b), (runs[a][0][-1].k, median[b])) for a, b in pairs if median[a] == math.inf}
    return {"iterations": median, "iterations_range": {m: [min(each[m]), max(each[m])] for m in sizes},
            "cases": {m: m * median[m] for m in sizes},
            "exponent": {f"{a}-{b}": exponent((a, b), (median[a], median[b])) for a, b in pairs},
            "exponent_at_least": {pair: p for pair, p in at_least.items() if math.isfinite(p)},
            "exponent_range": {f"{a}-{b}": [min(ps, default=math.nan), max(ps, default=math.nan)]
                               for (a, b), ps in of_seeds.items()}}


def describe(counts: dict[str, dict[str, dict[str, Any]]], seeds: int) -> str:
    """Return the caption."""
    sizes = list(counts["K-FAC"][TOLD[0]]["iterations"])
    text = ("Training error by K-FAC (above) and SGD (below) with batches of m cases, against iterations (left) and "
            f"against cases processed (right). Digits autoencoder, median over seeds ({seeds}), bands their range. "
            "Iterations to an error level go like m^-p from one batch size to the next; p = 1 is a progress per "
            f"iteration in proportion to m. Listed are m = {', '.join(map(str, sizes))}, and - "
            "where a level is not reached.")
    for level in TOLD:
        parts = []
        for method, by_level in counts.items():
            c = by_level[level]
            takes = ", ".join(f"{k:.0f}" if math.isfinite(k) else "-" for k in c["iterations"].values())
            *p, overall = (f"{p:.2f}" if math.isfinite(p) else "-" for p in c["exponent"].values())
            parts.append(f"{method} takes {takes} iterations (p = {', '.join(p)}; from first to last {overall})")
        text += f" To an error of {level}, {'; '.join(parts)}."
    for method, by_level in counts.items():
        known, above = 0, []
        for level, c in by_level.items():
            for pair, p in list(c["exponent"].items())[:-1]:
                bound = c["exponent_at_least"].get(pair, math.nan)
                known += math.isfinite(p) or bound > 1                  # a bound below 1 is not informative
                if p > 1 or bound > 1:
                    above.append(f"m = {pair} at {level} ({f'{p:.2f}' if p > 1 else f'{bound:.2f} or more'})")
        text += (f" {method}: p is above 1 in {len(above)} of {known} steps (levels {', '.join(by_level)})"
                 f"{': ' if above else ''}{', '.join(above)}.")
    return text


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Train with every batch size, write picture and numbers to `out`; return 0."""
    data = kr.datasets.digits(np.float32)
    seeds = SEEDS[:1] if quick else SEEDS
    runs = {method: {m: [run(method, m, SETTINGS[method][m], data, seed, iterations // 100 if quick else iterations)
                         for seed in seeds] for m, iterations in sizes.items()}
            for method, sizes in ITERATIONS.items()}
    counts, averaged = ({method: {f"{level:g}": count(sizes, level, a) for level in LEVELS}
                         for method, sizes in runs.items()} for a in (False, True))
    text = describe(counts, len(seeds))
    curves = {method: {m: (np.array([e.k for e in found[0]]), np.array([[e.error for e in r] for r in found]))
                       for m, found in sizes.items()} for method, sizes in runs.items()}
    figure = plotting.batch_sizes(curves, "training error\n(mean over cases of the sum of squared differences)", text)
    script.save(figure, {
        "seeds": list(seeds), "settings": SETTINGS,
        "trials_for_each_setting": {method: math.prod(map(len, grid.values())) for method, grid in GRIDS.items()},
        "levels": counts,
        "levels_of_the_averaged_iterate": averaged,
        "curves": {method: {m: {"iterations": k, "error": errors, "averaged_error":
                                [[e.averaged_error for e in r] for r in runs[method][m]]}
                            for m, (k, errors) in sizes.items()} for method, sizes in curves.items()}},
        out / "batch_size", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
