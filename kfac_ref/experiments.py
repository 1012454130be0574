"""The comparisons: what is run against what, with which settings, and the tables that come of it.

**The autoencoder.** 64-32-16-8-16-32-64 on the digits, logistic units, a linear code layer, Bernoulli likelihood. K-FAC
against SGD with Nesterov's momentum and against Adam, both with large and with small batches. The settings come out of
`METHODS`, whose grids give every method the same number of trials; `tune` runs them again, on seeds other than those
reported.
Every method runs a fixed number of iterations, so chosen that all take about as long.

**The classifier.** 64-20-20-20-10 on the digits, tanh, Categorical: the exact Fisher against F~ (all blocks
Kronecker-factored) and F-breve (those off the diagonal dropped), as a whole and layer by layer, beside the best that
any Kronecker product could do.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
import scipy.linalg
from matplotlib.figure import Figure

from . import __version__, curvature, factors, kronecker, plotting, training
from .checks import Array, Direction, NotFiniteError
from .datasets import Dataset
from .fisher import exact_fisher
from .likelihoods import Bernoulli, Categorical
from .model import Model
from .network import MLP
from .optimizers import KFAC, SGD, Adam
from .optimizers.sgd import nesterov_schedule

#: The errors (mean over cases of the sum of squared differences) to which iterations and seconds are counted.
LEVELS = (3.0, 2.0, 1.5, 1.0, 0.8, 0.7, 0.6)
SEEDS = (0, 1, 2)
TUNING_SEEDS = (100, 101)
#: The smallest ratio between two evaluated iterations: what is said of iterations to a level is coarser by this.
SPACING = 1.1


def autoencoder() -> Model:
    """Return the digits autoencoder 64-32-16-8-16-32-64."""
    hidden = ("logistic", "logistic", "identity", "logistic", "logistic")
    return Model(MLP((64, 32, 16, 8, 16, 32, 64), hidden), Bernoulli(), weight_decay=1e-5)


def classifier() -> Model:
    """Return the digits classifier 64-20-20-20-10."""
    return Model(MLP((64, 20, 20, 20, 10), "tanh"), Categorical(), weight_decay=1e-5)


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


_KFAC_GRID = {"lambda_0": (0.01, 0.1, 1, 10), "tau1": (1 / 4, 1 / 2), "T3": (5, 20)}
_SGD_GRID = {"learning_rate": (0.03, 0.05, 0.08, 0.12), "mu_max": (0.99, 0.995), "period": (10, 25)}
_ADAM_GRID = {"learning_rate": (0.01, 0.02, 0.03, 0.05), "beta1": (0.9, 0.95), "beta2": (0.99, 0.999)}

METHODS: dict[str, Method] = {
    "K-FAC, m = 500": Method(_kfac, 500, 900, _KFAC_GRID, {"lambda_0": 1, "tau1": 1 / 4, "T3": 20}),
    "SGD, m = 500": Method(_sgd, 500, 2400, _SGD_GRID, {"learning_rate": 0.05, "mu_max": 0.99, "period": 10}),
    "SGD, m = 100": Method(_sgd, 100, 6600, _SGD_GRID, {"learning_rate": 0.05, "mu_max": 0.99, "period": 10}),
    "Adam, m = 500": Method(Adam, 500, 2300, _ADAM_GRID, {"learning_rate": 0.02, "beta1": 0.9, "beta2": 0.99}),
    "Adam, m = 100": Method(Adam, 100, 6400, _ADAM_GRID, {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99}),
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
    model = autoencoder()
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


@dataclass(frozen=True, eq=False)
class Stage:
    """The exact Fisher of the classifier and its approximations at one point of the training.

    Attributes
    ----------
    name : str
        When.
    F, F_tilde, F_breve : (P, P) arrays
        Exact; all blocks Kronecker-factored; only the diagonal ones.
    errors : dict
        ``whole``: relative Frobenius errors of F~ and F-breve. ``blocks``: for each layer, that of A kron G and the
        best that any Kronecker product could reach. ``train_error``: the rate of wrong labels.
    """

    name: str
    F: Array
    F_tilde: Array
    F_breve: Array
    errors: dict[str, Any]


def stage(name: str, model: Model, weights: Direction, data: Dataset, cases: int | None = None) -> Stage:
    """Compare the exact Fisher at some weights with F~ and F-breve, undamped, over the training cases.

    Parameters
    ----------
    name : str
        When.
    model : Model
        A classifier.
    weights : list of (d_{i+1}, d_i + 1) arrays
        Its parameters at that time.
    data : Dataset
        The digits.
    cases : int, optional
        How many training cases the Fisher is a mean over; all unless told.

    Returns
    -------
    Stage
        The three matrices and their errors.

    Raises
    ------
    ValueError
        For weights that do not fit, or a Fisher of more than 4 GiB.
    """
    at = model.at(weights, data.x[:cases])
    fac = factors.exact_factors(at)
    F = exact_fisher(at)
    F_tilde, F_breve = (structure(fac).dense() for structure in (curvature.Full, curvature.BlockDiagonal))
    blocks, start = [], 0
    for m, n in model.network.shapes:
        rows = slice(start, start := start + m * n)
        best = kronecker.rearrange(F[rows, rows], (n, n), (m, m))
        singular = scipy.linalg.svdvals(best)
        blocks.append({"kronecker_factored": relative_error(F_tilde[rows, rows], F[rows, rows]),
                       "best_kronecker": float(np.linalg.norm(singular[1:]) / np.linalg.norm(singular))})
    whole = {"F_tilde": relative_error(F_tilde, F), "F_breve": relative_error(F_breve, F)}
    errors = {"whole": whole, "blocks": blocks, "train_error": at.error(data.labels[:cases])}
    return Stage(name, F, F_tilde, F_breve, errors)


def relative_error(B: Array, F: Array) -> float:
    """Return ``||B - F|| / ||F||`` in the Frobenius norm.

    Parameters
    ----------
    B, F : (p, q) arrays
        The approximation and the exact matrix.
    """
    return float(np.linalg.norm(B - F) / np.linalg.norm(F))


def stages(data: Dataset, seed: int = 0, steps: tuple[int, int] = (10, 200), cases: int | None = None) -> list[Stage]:
    """Train the classifier with K-FAC on all examples and compare at the start, after a few steps, and trained.

    Parameters
    ----------
    data : Dataset
        The digits.
    seed : int
        Of the weights and the sampling.
    steps : (few, many)
        The number of steps of the second and the third stage.
    cases : int, optional
        How many training cases the Fisher is a mean over; all unless told.

    Returns
    -------
    list of three Stage
        In that order.
    """
    model = classifier()
    opt = KFAC(model)
    state = opt.init(model.init(np.random.default_rng(seed)), seed)
    found = [stage("at the start", model, state.weights, data, cases)]
    for k in range(1, steps[1] + 1):
        state, _ = opt.step(state, data.x, data.labels)
        if k in steps:
            found.append(stage(f"after {k} steps", model, state.weights, data, cases))
    return found


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
    rows = [["error at most", "", *(f"{level:g}" for level in LEVELS), "last error"]]
    for name, runs in histories.items():
        hits = [[reached(h, level) for h in runs] for level in LEVELS]
        last = sorted(h.evaluations[-1].error for h in runs)
        rows.append([name, "iterations", *(_spread([h and h[0] for h in hit], "{:.0f}") for hit in hits),
                     f"{np.median(last):.3f} ({last[0]:.3f}-{last[-1]:.3f})"])
        rows.append(["", "seconds", *(_spread([h and h[1] for h in hit], "{:.2f}") for hit in hits), ""])
    return rows


def _spread(values: Sequence[float | None], form: str) -> str:
    """Write the median and range of what the seeds reached; "-" where no more than half did."""
    known = sorted(v for v in values if v is not None)
    if 2 * len(known) <= len(values):
        return "-"
    middle = float(np.median([math.inf if v is None else v for v in values]))
    spread = f"-{form.format(known[-1])}" if len(known) == len(values) else " up"
    return f"{form.format(middle)} ({form.format(known[0])}{spread})"


def fisher_table(found: Sequence[Stage]) -> list[list[str]]:
    """Return the rows of the second table: relative Frobenius errors, whole and block by block.

    Parameters
    ----------
    found : sequence of Stage
        At least one.

    Returns
    -------
    list of list of str
        The head, then one row a stage.
    """
    layers = len(found[0].errors["blocks"])
    rows = [["relative error", "F~", "F-breve", *(f"layer {i}: A(x)G (best)" for i in range(layers)), "wrong labels"]]
    for s in found:
        blocks = [f"{b['kronecker_factored']:.3f} ({b['best_kronecker']:.3f})" for b in s.errors["blocks"]]
        rows.append([s.name, f"{s.errors['whole']['F_tilde']:.3f}", f"{s.errors['whole']['F_breve']:.3f}", *blocks,
                     f"{100 * s.errors['train_error']:.1f}%"])
    return rows


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns of a table, the first to the left, the others to the right, and rule off the head.

    Parameters
    ----------
    rows : sequence of sequences of str
        The head first; all of one length.

    Returns
    -------
    str
        Lines without a newline at the end.
    """
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
             .rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


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
        parts = (f"{name} {hit[0]:.0f} iterations and {hit[1]:.1f} s" if hit else f"{name} does not get there"
                 for name, hit in row.items())
        text += f" To error {told[-1]:g}: {'; '.join(parts)}."
    return plotting.convergence(curves, "training error\n(mean over cases of the sum of squared differences)", text)


def _medians(runs: Sequence[training.History], level: float) -> tuple[float, float] | None:
    hits = [hit for h in runs if (hit := reached(h, level))]
    if 2 * len(hits) <= len(runs):
        return None
    missing = [math.inf] * (len(runs) - len(hits))
    return tuple(float(np.median([h[i] for h in hits] + missing)) for i in (0, 1))      # type: ignore[return-value]


def fisher_figure(found: Sequence[Stage]) -> Figure:
    """Draw |F|, |F~| and their difference at each stage, with the errors in the caption.

    Parameters
    ----------
    found : sequence of Stage
        Of the network of `classifier`.

    Returns
    -------
    Figure
        One row a stage.
    """
    sizes = [m * n for m, n in classifier().network.shapes]
    parts = [f"{s.name} F~ is off by {100 * s.errors['whole']['F_tilde']:.0f}% and its diagonal blocks alone by "
             f"{100 * s.errors['whole']['F_breve']:.0f}%" for s in found]
    text = ("Digits classifier 64-20-20-20-10 (tanh): the exact Fisher and its Kronecker-factored approximation, layer "
            f"blocks marked, one colour scale a row. In relative Frobenius norm, {'; '.join(parts)}.")
    return plotting.fisher_rows({s.name: (s.F, s.F_tilde) for s in found}, sizes, text)


def summary(histories: Mapping[str, Sequence[training.History]], found: Sequence[Stage], seed: int) -> dict[str, Any]:
    """Return every number of the demo as plain data for JSON; keys that end in ``seconds`` differ from run to run.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed. The names are those of `METHODS`.
    found : sequence of Stage
        The classifier's.
    seed : int
        Of the demo.

    Returns
    -------
    dict
        ``seed``, ``environment``, ``autoencoder`` (by method) and ``classifier`` (by stage).
    """
    return {
        "seed": seed,
        "environment": environment(),
        "autoencoder": {
            name: {"batch": METHODS[name].batch, "settings": dict(METHODS[name].settings),
                   "runs": [{"evaluations": [asdict(e) for e in h.evaluations],
                             "levels": {f"{level:g}": _level(h, level) for level in LEVELS}} for h in runs]}
            for name, runs in histories.items()},
        "classifier": {s.name: s.errors for s in found},
    }


def _level(history: training.History, level: float) -> dict[str, float] | None:
    hit = reached(history, level)
    return None if hit is None else {"iterations": hit[0], "seconds": hit[1]}


def environment() -> dict[str, Any]:
    """Return the versions and settings on which the bits of a run depend."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"kfac_ref": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "scipy": scipy.__version__, "blas": f"{blas.get('name')} {blas.get('version')}", "machine": platform.machine(),
            "platform": sys.platform, "cores": os.cpu_count(),
            "threads": os.environ.get("OPENBLAS_NUM_THREADS", "not set")}
