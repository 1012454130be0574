"""Whether KFAC trains with its defaults: small tasks, small batches, seeds: ``python -m tests.defaults [--before]``.

Each task is trained with batches of 20, 50, 100 and 500 examples (all of them, if it has fewer), and the loss over all
its examples is measured every 20 steps. A run **rises** if it ends above its start. The **fit lost** is the last loss
minus the lowest, divided by what is allowed: the lowest itself (a factor of two) or .02 of the first loss, whichever is
larger. The table has one row per task and batch, with the worst of the seeds in each column. ``--before`` runs the
paper's rule (``judged_on="same batch"``, T1 = 5) instead; a run is stopped if its loss is 100 times the first. Rows are
printed as they are finished; with ``--out FILE`` they are appended to the file, and rows that it has are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kfac_ref as kr
from kfac_ref import datasets, training
from kfac_ref.optimizers import KFAC

BATCHES, SEEDS, STEPS, EVERY = (20, 50, 100, 500), range(5), 2000, 20
BEFORE = {"judged_on": "same batch", "T1": 5}


class Task(NamedTuple):
    """What is trained: a model, its data, and how the weights begin."""

    model: kr.Model
    x: Any
    y: Any
    init: str = "sparse"
    dtype: Any = np.float64

    def weights(self, seed: int) -> list[Any]:
        """Return the first weights."""
        return self.model.init(np.random.default_rng(seed), self.init, self.dtype)


def _classifier(sizes: tuple[int, ...], hidden: str, N: int = 1500, wrong: float = 0.0, **how: Any) -> Task:
    """Return the digits with a part of their labels drawn again."""
    data, rng = datasets.digits(how.get("dtype", np.float64)), np.random.default_rng(5)
    drawn = np.where(rng.random(1500) < wrong, rng.integers(0, 10, 1500), data.labels)
    return Task(kr.Model(kr.MLP(sizes, hidden), kr.Categorical(), 1e-5), data.x[:N], drawn[:N], **how)


def _autoencoder(sizes: tuple[int, ...], hidden: Any, likelihood: Any, x: Any = None, **how: Any) -> Task:
    """Return an autoencoder, of the digits where no other images are given."""
    x = datasets.digits(how.get("dtype", np.float64)).x if x is None else x
    return Task(kr.Model(kr.MLP(sizes, hidden), likelihood, 1e-5), x, x, **how)


def _small_curves() -> Any:
    """Return generated curves, 14 x 14."""
    return datasets.curves(1000, seed=3).reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)


def _regression(sizes: tuple[int, ...], scales: Any, noise: float, size: float, N: int, **how: Any) -> Task:
    """Return what a network of the same widths says of Gaussian inputs of these scales, `size` times, and noise."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((N, sizes[0])) * scales
    model = kr.Model(kr.MLP(sizes, "tanh"), kr.Gaussian(), 1e-5)
    z = model.at([2 * W for W in model.init(rng, "glorot")], x).z
    return Task(model, x, size * (z + noise * rng.standard_normal(z.shape)), **how)


CODE = ("logistic", "logistic", "identity", "logistic", "logistic")
TASKS: dict[str, Callable[[], Task]] = {
    "digits 64-8-10 tanh": lambda: _classifier((64, 8, 10), "tanh"),
    "digits 64-20-20-20-10 tanh, glorot": lambda: _classifier((64, 20, 20, 20, 10), "tanh", init="glorot"),
    "digits 64-60-10 relu, float32": lambda: _classifier((64, 60, 10), "relu", init="glorot", dtype=np.float32),
    "digits 64-16-10 softplus, 20% wrong labels": lambda: _classifier((64, 16, 10), "softplus", wrong=0.2),
    "digits 64-12-12-10 logistic, float32": lambda: _classifier((64, 12, 12, 10), "logistic", dtype=np.float32),
    "digits 64-10, 20% wrong labels": lambda: _classifier((64, 10), "tanh", wrong=0.2),
    "60 digits 64-10-10 tanh": lambda: _classifier((64, 10, 10), "tanh", N=60),
    "autoencoder 64-32-16-8-16-32-64": lambda: _autoencoder((64, 32, 16, 8, 16, 32, 64), CODE, kr.Bernoulli()),
    "autoencoder 64-20-6-20-64 tanh, Gaussian":
        lambda: _autoencoder((64, 20, 6, 20, 64), "tanh", kr.Gaussian(), init="glorot"),
    "curves 196-30-6-30-196 logistic":
        lambda: _autoencoder((196, 30, 6, 30, 196), ("logistic", "identity", "logistic"), kr.Bernoulli(),
                             _small_curves()),
    "regression 10-20-20-3 tanh, targets of 10":
        lambda: _regression((10, 20, 20, 3), 1.0, 0.1, 10.0, 1000, init="glorot"),
    "linear regression 20-5, inputs of 1/30 to 1":
        lambda: _regression((20, 5), np.geomspace(1 / 30, 1, 20), 0.5, 1.0, 500),
}


def losses(task: Task, m: int, seed: int, steps: int = STEPS, **settings: Any) -> list[float]:
    """Train once and return the loss of all examples at the start and every `EVERY` steps; inf where it broke off."""
    opt, weights = KFAC(task.model, **settings), task.weights(seed)
    h = [task.model.at(weights, task.x).loss(task.y)]

    def look(history: training.History) -> None:
        if history.state.k % EVERY == 0:
            h.append(task.model.at(history.state.weights, task.x).loss(task.y))
            if not h[-1] <= 100 * h[0]:
                raise KeyboardInterrupt

    try:
        training.train(opt, weights, task.x, task.y, steps, training.fixed(min(m, len(task.x))), seed,
                       progress=False, after_step=look)
    except training.DIVERGED:
        h.append(math.inf)
    return h


def lost(h: list[float]) -> tuple[float, float]:
    """Return how much of the fit is lost at the end, and at the worst moment, as a part of what is allowed."""
    values = np.array(h)
    lowest = np.minimum.accumulate(values)
    lost = (values - lowest) / np.maximum(lowest, 0.02 * values[0])
    return float(lost[-1]), float(lost.max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", action="store_true", help="run the paper's rule")
    parser.add_argument("--out", type=Path, help="a file of rows, to go on from")
    parser.add_argument("--only", default="", help="the tasks whose name has this in it")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    done = [json.loads(line) for line in options.out.read_text().splitlines()] \
        if options.out and options.out.exists() else []
    print("| task | batch | start | lowest | end | fit lost at the end | at the worst moment | runs that rose |\n"
          "|---|---|---|---|---|---|---|---|")
    for name, make in TASKS.items():
        if options.only not in name:
            continue
        task = make()
        for m in options.batches:
            row = next((r for r in done if (r["task"], r["batch"]) == (name, m)), None)
            if row is None:
                runs = [losses(task, m, seed, options.steps, **(BEFORE if options.before else {}))
                        for seed in range(options.seeds)]
                parts = np.array([lost(h) for h in runs])
                row = {"task": name, "batch": m, "start": max(h[0] for h in runs), "lowest": max(map(min, runs)),
                       "end": max(h[-1] for h in runs), "lost": parts[:, 0].max(), "worst": parts[:, 1].max(),
                       "rose": sum(h[-1] > h[0] for h in runs)}
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            print(f"| {name} | {m} | {row['start']:.2g} | {row['lowest']:.2g} | {row['end']:.2g} | {row['lost']:.2g} | "
                  f"{row['worst']:.2g} | {row['rose']} |", flush=True)


if __name__ == "__main__":
    main()
