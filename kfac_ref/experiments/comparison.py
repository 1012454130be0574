"""Comparisons of optimizers: the same network and data, several methods over several seeds.

Every method may bring a grid of settings; `tune` runs each combination on seeds of its own and chooses one setting for
all error levels. In a file (JSON)::

    {"title": "...", "data": "digits", "net": "digits", "dtype": "float64",
     "seeds": [0, 1, 2], "tuning_seeds": [100], "levels": [3, 2, 1],
     "methods": {"K-FAC, m = 500": {"optimizer": "kfac", "batch": "500", "iterations": 400,
                                    "settings": {"T3": 5}, "grid": {"lambda_0": [0.1, 1]}}, ...}}

`settings` hold for all trials, `grid` is what is chosen from. `results` runs a file, `tables` reports.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks, files, plotting, training
from ..datasets import Dataset
from ..model import Model
from .settings import OPTIMIZERS, Settings, from_object

#: An error of 0 has no logarithm.
_LEAST = 1e-6
#: Settings that all methods of a comparison share.
COMMON = tuple(f.name for f in fields(Settings) if f.name not in ("optimizer", "settings", "batch", "seed"))


@dataclass(frozen=True)
class Method:
    """An optimizer as it takes part in a comparison."""

    optimizer: str                                                      # one of `settings.OPTIMIZERS`
    batch: str                                                          # as in `Settings`, or an integer
    iterations: int
    settings: Mapping[str, Any] = field(default_factory=dict)           # of the optimizer
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)     # values to choose from, by setting

    def __post_init__(self) -> None:
        if isinstance(self.batch, int) and not isinstance(self.batch, bool):
            object.__setattr__(self, "batch", str(self.batch))
        checks.count("iterations", self.iterations)
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must be names and values, got {self.settings!r}")
        if not isinstance(self.grid, Mapping):
            raise ValueError(f"grid must be names, each with a list of values, got {self.grid!r}")
        for name, values in self.grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"grid must give a list of values for {name}, got {values!r}")

    def make(self, model: Model, settings: Mapping[str, Any]) -> training.Optimizer:
        """Return the optimizer with some settings, such as one of `trials`."""
        return OPTIMIZERS[self.optimizer](model, **settings)

    def trials(self) -> list[dict[str, Any]]:
        """Return the settings of every combination of the grid."""
        return [{**self.settings, **dict(zip(self.grid, values, strict=True))}
                for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Comparison:
    """What is compared with what."""

    title: str                                  # how the caption begins
    base: Settings                              # data, network, precision: `COMMON`
    methods: Mapping[str, Method]               # the caption is about the first one
    levels: tuple[float, ...]                   # errors to which iterations and seconds are counted, descending
    seeds: tuple[int, ...] = (0, 1, 2)          # reported
    tuning_seeds: tuple[int, ...] = (100,)      # tuned on
    tuning_part: float = 1.0                    # the length of a trial, as a part of a method's iterations
    error: str = "mean over examples of the sum of squared differences"

    def __post_init__(self) -> None:
        for name in ("title", "error"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")
        for name in ("seeds", "tuning_seeds", "levels"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} must be a list of numbers, got {getattr(self, name)!r}")
        if not self.methods or not self.seeds or not self.levels:
            raise ValueError("methods, seeds and levels must not be empty")
        for level in self.levels:
            checks.number("levels", level, 0)
        if any(a <= b for a, b in itertools.pairwise(self.levels)):
            raise ValueError(f"levels must descend, got {list(self.levels)}")
        every = (*self.seeds, *self.tuning_seeds)
        for seed in every:
            checks.count("seeds and tuning_seeds", seed, 0)
        if twice := sorted({seed for seed in every if every.count(seed) > 1}):
            raise ValueError("seeds and tuning_seeds must all differ, since no seed is tuned on and reported; got "
                             f"{twice} more than once")
        checks.number("tuning_part", self.tuning_part, 0, 1, above=True)
        if len(self.methods) > len(plotting.LOOKS):
            raise ValueError(f"methods must be at most {len(plotting.LOOKS)}, as many as there are lines that can be "
                             f"told apart; got {len(self.methods)}")
        for name, method in self.methods.items():
            try:
                for settings in method.trials():
                    self.settings(method, settings, self.seeds[0])
                if len(method.trials()) > 1 and not self.tuning_seeds:
                    raise ValueError("its grid needs tuning_seeds, got none")
            except ValueError as error:
                raise ValueError(f"method {name!r}: {error}") from error

    def settings(self, method: Method, settings: Mapping[str, Any], seed: int) -> Settings:
        """Return the settings of one run, from those of its optimizer."""
        return replace(self.base, optimizer=method.optimizer, settings=settings, batch=method.batch, seed=seed)


def read(path: Path) -> Comparison:
    """Read a comparison from a JSON file; raise a ValueError that names the file and the field.

    A relative folder in ``mnist:FOLDER`` is relative to the file.
    """
    content = files.read_json(path)
    if not isinstance(content.get("methods"), dict):
        raise ValueError(f'{path} must hold an object with "methods"')
    base = {name: content.pop(name) for name in COMMON if name in content}
    methods = content.pop("methods")
    if isinstance(base.get("data"), str) and ":" in base["data"]:
        kind, _, folder = base["data"].partition(":")
        if not folder.startswith("$"):                      # a variable is read with the data
            base["data"] = f"{kind}:{(path.parent / Path(folder).expanduser()).resolve()}"
    rest = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    try:
        made = {name: from_object(Method, method, f"method {name!r}: ") for name, method in methods.items()}
        known = {f.name for f in fields(Comparison)} - {"base"}
        if unknown := [name for name in rest if name not in known]:
            raise ValueError(f"{unknown[0]} is not known (there are {', '.join([*sorted(known), *COMMON])})")
        comparison: Comparison = from_object(Comparison, {"methods": made, **rest},
                                             base=from_object(Settings, base))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return comparison


def run(comparison: Comparison, method: Method, settings: Mapping[str, Any], seed: int, data: Dataset | None = None,
        iterations: int | None = None, name: str = "training", evaluate_at: Container[int] | None = None,
        ) -> training.History:
    """Train once, as one method of a comparison.

    Defaults: the data of the comparison, the iterations of the method, `training.evaluation_steps`. An interrupted run
    raises KeyboardInterrupt, since a part of a run cannot be compared.
    """
    task = comparison.settings(method, settings, seed).task(data)
    iterations = method.iterations if iterations is None else iterations
    evaluate_at = frozenset(training.evaluation_steps(iterations)) if evaluate_at is None else evaluate_at
    history = training.train(task.optimizer, task.weights, task.x, task.y, iterations, task.schedule, seed,
                             evaluate_at, task.test, name=name)
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def score(history: training.History) -> float:
    """Return the mean log error over the logarithmically spaced evaluations in the last nine tenths of a run.

    It reflects all levels, not only the last one; lower is better. An error below 1e-6 counts as 1e-6, since a
    classifier can make no error.
    """
    last = history.evaluations[-1].k
    return float(np.mean([math.log(max(e.error, _LEAST)) for e in history.evaluations if e.k >= last / 10]))


def tune(comparison: Comparison, report: Callable[[str], None], train: Callable[..., training.History] = run,
         data: Dataset | None = None, shorten: int = 1) -> dict[str, dict[str, Any]]:
    """Run the grid of every method on the tuning seeds and choose the settings with the lowest mean `score`.

    Returns the chosen ``settings`` and the ``trials`` of each method; one without a choice is not run. All iterations
    are divided by `shorten`.
    """
    chosen = {}
    for name, method in comparison.methods.items():
        iterations = max(1, math.floor(method.iterations * comparison.tuning_part) // shorten)
        scored = frozenset(k for k in training.evaluation_steps(iterations) if k >= iterations / 10)
        trials: list[dict[str, Any]] = []
        if len(method.trials()) == 1:                           # nothing to choose
            chosen[name] = {"settings": method.trials()[0], "trials": trials}
            continue
        for settings in method.trials():
            try:
                runs = [train(comparison, method, settings, seed, data, iterations, name, scored)
                        for seed in comparison.tuning_seeds]
            except training.DIVERGED:
                trials.append({"settings": settings, "score": math.inf, "final_error": math.inf})
            else:
                trials.append({"settings": settings, "score": float(np.mean([score(h) for h in runs])),
                               "final_error": float(np.mean([h.evaluations[-1].error for h in runs]))})
            report(f"{name}  {settings}  score {trials[-1]['score']:.4f}  final {trials[-1]['final_error']:.4f}")
        best = min(trials, key=lambda t: t["score"] if math.isfinite(t["score"]) else math.inf)
        chosen[name] = {"settings": best["settings"], "trials": trials}
        report(f"{name}: chosen {best['settings']}")
    return chosen
