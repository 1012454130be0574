"""The digits autoencoder: K-FAC against tuned baselines, in iterations and in seconds.

64-32-16-8-16-32-64, logistic units, a linear code layer, Bernoulli likelihood. K-FAC against SGD with Nesterov's
momentum and against Adam, both with large and with small batches. The settings come out of `METHODS`, whose grids give
every method the same number of trials; `tune` runs them again, on seeds other than those reported. Every method runs a
fixed number of iterations, so chosen that all take about as long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .. import plotting, training
from ..checks import NotFiniteError
from ..datasets import Dataset
from ..likelihoods import Bernoulli
from ..model import Model
from ..network import MLP
from ..optimizers import KFAC, SGD, Adam
from ..optimizers.sgd import nesterov_schedule

#: The errors (mean over cases of the sum of squared differences) to which iterations and seconds are counted.
LEVELS = (3.0, 2.0, 1.5, 1.0, 0.8, 0.7, 0.6)
SEEDS = (0, 1, 2)
TUNING_SEEDS = (100, 101)
#: The smallest ratio between two evaluated iterations: what is said of iterations to a level is coarser by this.
SPACING = 1.1


def untrained() -> Model:
    """Return the digits autoencoder 64-32-16-8-16-32-64."""
    hidden = ("logistic", "logistic", "identity", "logistic", "logistic")
    return Model(MLP((64, 32, 16, 8, 16, 32, 64), hidden), Bernoulli(), weight_decay=1e-5)


@dataclass(frozen=True)
class Method:
    """An optimizer as it takes part in the comparison.

    Attributes
    ----------
    make : function of (model, settings)
        Makes the optimizer.
    batch : int
        Examples a step.
    iterations : int
        Steps of a run; so chosen that all methods take about as long.
    grid : dict
        Settings to choose from, the same number of trials for every method.
    settings : dict
        What `tune` chose out of the grid.
    """

    make: Callable[..., training.Optimizer]
    batch: int
    iterations: int
    grid: Mapping[str, Sequence[float]]
    settings: Mapping[str, float]

    def trials(self) -> list[dict[str, float]]:
        """Return every combination of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


def _kfac(model: Model, lambda_0: float, tau1: float, T3: int) -> KFAC:
    return KFAC(model, lambda_0=lambda_0, tau1=tau1, T3=T3)


def _sgd(model: Model, learning_rate: float, mu_max: float, period: int) -> SGD:
    return SGD(model, learning_rate, nesterov_schedule(mu_max, period))


_KFAC_GRID = {"lambda_0": (0.001, 0.01, 0.1, 1), "tau1": (1 / 8, 1 / 4), "T3": (5, 20)}
_SGD_GRID = {"learning_rate": (0.03, 0.05, 0.08, 0.12), "mu_max": (0.995, 0.999), "period": (5, 10)}
_ADAM_GRID = {"learning_rate": (0.01, 0.02, 0.03, 0.05), "beta1": (0.8, 0.9), "beta2": (0.98, 0.99)}

METHODS: dict[str, Method] = {
    "K-FAC, m = 500": Method(_kfac, 500, 900, _KFAC_GRID, {"lambda_0": 0.01, "tau1": 1 / 4, "T3": 5}),
    "SGD, m = 500": Method(_sgd, 500, 2400, _SGD_GRID, {"learning_rate": 0.08, "mu_max": 0.995, "period": 10}),
    "SGD, m = 100": Method(_sgd, 100, 6600, _SGD_GRID, {"learning_rate": 0.05, "mu_max": 0.995, "period": 10}),
    "Adam, m = 500": Method(Adam, 500, 2300, _ADAM_GRID, {"learning_rate": 0.03, "beta1": 0.9, "beta2": 0.98}),
    "Adam, m = 100": Method(Adam, 100, 6400, _ADAM_GRID, {"learning_rate": 0.03, "beta1": 0.8, "beta2": 0.98}),
}


def evaluation_steps(iterations: int) -> list[int]:
    """Return the steps at which a run is evaluated: 0, then each `SPACING` times the last, and the end.

    Parameters
    ----------
    iterations : int
        Steps of the run.

    Returns
    -------
    list of int
        Ascending, without repetitions.
    """
    steps = [0]
    while steps[-1] < iterations:
        steps.append(min(max(steps[-1] + 1, math.ceil(steps[-1] * SPACING)), iterations))
    return steps


def run(method: Method, settings: Mapping[str, float], data: Dataset, seed: int, iterations: int | None = None,
        name: str = "training") -> training.History:
    """Train the autoencoder once.

    Parameters
    ----------
    method : Method
        What to train with.
    settings : mapping
        Its settings.
    data : Dataset
        The digits.
    seed : int
        Of the weights, the batches and the sampling.
    iterations : int, optional
        The method's own number, unless told.
    name : str
        What the progress bar is called.

    Returns
    -------
    History
        With its evaluations at `evaluation_steps`.

    Raises
    ------
    KeyboardInterrupt
        Where the run was interrupted: a part of it is of no use in a comparison.
    """
    model = untrained()
    iterations = method.iterations if iterations is None else iterations
    history = training.train(method.make(model, **settings), model.init(np.random.default_rng(seed)), data.x, data.x,
                             iterations, training.fixed(method.batch), seed, frozenset(evaluation_steps(iterations)),
                             test=(data.x_test, data.x_test), name=name)
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def reached(history: training.History, level: float) -> tuple[int, float] | None:
    """Return the first evaluated step whose training error is at most `level`, and the seconds until then.

    Parameters
    ----------
    history : History
        A run.
    level : float
        An error: mean over cases of the sum of squared differences.

    Returns
    -------
    (int, float) or None
        None where the run does not get there.
    """
    return next(((e.k, e.seconds) for e in history.evaluations if e.error <= level), None)


def tune(data: Dataset, report: Callable[[str], None], shorten: int = 1) -> dict[str, dict[str, Any]]:
    """Run the grid of every method on the tuning seeds and choose one setting each.

    Parameters
    ----------
    data : Dataset
        The digits.
    report : function of str
        Is told of each trial.
    shorten : int
        Divide all iterations by this.

    Returns
    -------
    dict
        For each method, the chosen ``settings`` and the ``trials`` with their scores. The score is the mean log error
        over the logarithmically spaced evaluations in the last nine tenths of a run, so that it speaks of all levels;
        the mean over seeds decides.
    """
    chosen = {}
    for name, method in METHODS.items():
        iterations = max(1, method.iterations // shorten)
        trials: list[dict[str, Any]] = []
        for settings in method.trials():
            try:
                histories = [run(method, settings, data, seed, iterations, name) for seed in TUNING_SEEDS]
            except NotFiniteError:                          # it blew up
                trials.append({"settings": settings, "score": math.inf, "final_error": math.inf})
            else:
                scores = [np.mean([math.log(e.error) for e in h.evaluations if e.k >= iterations / 10])
                          for h in histories]
                trials.append({"settings": settings, "score": float(np.mean(scores)),
                               "final_error": float(np.mean([h.evaluations[-1].error for h in histories]))})
            report(f"{name}  {settings}  score {trials[-1]['score']:.4f}  final {trials[-1]['final_error']:.4f}")
        best = min(trials, key=lambda t: t["score"] if math.isfinite(t["score"]) else math.inf)
        chosen[name] = {"settings": best["settings"], "trials": trials}
        report(f"{name}: chosen {best['settings']}")
    return chosen


def convergence(data: Dataset, seed: int = 0, shorten: int = 1) -> dict[str, list[training.History]]:
    """Train the autoencoder with every method over three seeds.

    Parameters
    ----------
    data : Dataset
        The digits.
    seed : int
        The first of three consecutive ones.
    shorten : int
        Divide all iterations by this.

    Returns
    -------
    dict
        Three histories for each method.
    """
    histories: dict[str, list[training.History]] = {}
    for name, method in METHODS.items():
        histories[name] = []
        for s in (seed + s for s in SEEDS):
            histories[name].append(
                run(method, method.settings, data, s, max(1, method.iterations // shorten), f"{name}, seed {s}"))
    return histories


def level_table(histories: Mapping[str, Sequence[training.History]]) -> list[list[str]]:
    """Return the rows of the convergence table: iterations and seconds to each level, median and range over seeds.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed.

    Returns
    -------
    list of list of str
        The head, then two rows a method.
    """
    rows = [["error at most", "", *(f"{level:g}" for level in LEVELS), "last error", "of the averaged iterate"]]
    for name, runs in histories.items():
        hits = [[reached(h, level) for h in runs] for level in LEVELS]
        last = sorted(h.evaluations[-1].error for h in runs)
        averaged = sorted(h.evaluations[-1].averaged_error for h in runs)
        rows.append([name, "iterations", *(_spread([h and h[0] for h in hit], "{:.0f}") for hit in hits),
                     *(f"{np.median(e):.3f} ({e[0]:.3f}-{e[-1]:.3f})" for e in (last, averaged))])
        rows.append(["", "seconds", *(_spread([h and h[1] for h in hit], "{:.2f}") for hit in hits), "", ""])
    return rows


def _spread(values: Sequence[float | None], form: str) -> str:
    """Write the median and range of what the seeds reached; "-" where no more than half did."""
    known = sorted(v for v in values if v is not None)
    if 2 * len(known) <= len(values):
        return "-"
    middle = float(np.median([math.inf if v is None else v for v in values]))
    spread = f"-{form.format(known[-1])}" if len(known) == len(values) else " up"
    return f"{form.format(middle)} ({form.format(known[0])}{spread})"


def convergence_figure(histories: Mapping[str, Sequence[training.History]]) -> Figure:
    """Draw the autoencoder's error against iterations and seconds, with the numbers of one level in the caption.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed. ``K-FAC, m = 500`` must be among them.

    Returns
    -------
    Figure
        Two panels.
    """
    curves = {name: plotting.Curve(np.array([e.k for e in runs[0].evaluations[1:]]),
                                   np.array([[e.seconds for e in h.evaluations[1:]] for h in runs]),
                                   np.array([[e.error for e in h.evaluations[1:]] for h in runs]))
              for name, runs in histories.items()}
    # The lowest level that K-FAC and at least one baseline reached on most seeds says most.
    rows = {level: {name: _medians(runs, level) for name, runs in histories.items()} for level in LEVELS}
    told = [level for level, row in rows.items()
            if row["K-FAC, m = 500"] and sum(hit is not None for hit in row.values()) > 1]
    text = "Digits autoencoder 64-32-16-8-16-32-64: median of three seeds, bands their range."
    if told:
        row = rows[told[-1]]
        parts = (f"{name.replace(', ', ' with ')} takes {hit[0]:.0f} iterations and {hit[1]:.1f} s" if hit
                 else f"{name.replace(', ', ' with ')} does not get there" for name, hit in row.items())
        text += f" To an error of {told[-1]:g} {'; '.join(parts)}."
    return plotting.convergence(curves, "training error\n(mean over cases of the sum of squared differences)", text)


def _medians(runs: Sequence[training.History], level: float) -> tuple[float, float] | None:
    hits = [hit for h in runs if (hit := reached(h, level))]
    if 2 * len(hits) <= len(runs):
        return None
    missing = [math.inf] * (len(runs) - len(hits))
    return tuple(float(np.median([h[i] for h in hits] + missing)) for i in (0, 1))      # type: ignore[return-value]
