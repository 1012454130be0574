"""Comparisons of optimizers: the same network and data, several methods over several seeds, one table and one figure.

Every method may bring a grid of settings; `tune` runs each combination on seeds of its own and chooses one setting for
all error levels. In a file (JSON)::

    {"title": "...", "data": "digits", "net": "digits", "dtype": "float64",
     "seeds": [0, 1, 2], "tuning_seeds": [100], "levels": [3, 2, 1],
     "methods": {"K-FAC, m = 500": {"optimizer": "kfac", "batch": "500", "iterations": 400,
                                    "settings": {"T3": 5}, "grid": {"lambda_0": [0.1, 1]}}, ...}}

`settings` hold for all trials, `grid` is what is chosen from. Runs follow one another, so that seconds mean something,
and each is kept when it is done: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .. import checkpoints, checks, files, plotting, training
from ..checks import NotFiniteError
from ..datasets import Dataset
from ..environment import environment
from ..model import Model
from .run import digest_of, evaluation
from .script import locked, plain, refuse, save
from .settings import OPTIMIZERS, Settings, optimizer_settings

#: An error of 0 has no logarithm.
_LEAST = 1e-6


@dataclass(frozen=True)
class Method:
    """An optimizer as it takes part in a comparison.

    Attributes
    ----------
    optimizer : str
        One of `settings.OPTIMIZERS`.
    batch : str
        As in `Settings`; an integer is taken as well.
    iterations : int
        Steps of a run.
    settings : dict
        Of the optimizer.
    grid : dict
        For each setting to choose, the values to choose from.
    """

    optimizer: str
    batch: str
    iterations: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.batch, int) and not isinstance(self.batch, bool):
            object.__setattr__(self, "batch", str(self.batch))
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must be names and values, got {self.settings!r}")
        if not isinstance(self.grid, Mapping):
            raise ValueError(f"grid must be names, each with a list of values, got {self.grid!r}")
        for name, values in self.grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"grid must give a list of values for {name}, got {values!r}")

    def make(self, model: Model, settings: Mapping[str, Any]) -> training.Optimizer:
        """Return the optimizer.

        Parameters
        ----------
        model : Model
            What it trains.
        settings : mapping
            Such as one of `trials`.
        """
        return OPTIMIZERS[self.optimizer](model, **settings)

    def trials(self) -> list[dict[str, Any]]:
        """Return the settings of every combination of the grid."""
        return [{**self.settings, **dict(zip(self.grid, values, strict=True))}
                for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Comparison:
    """What is compared with what.

    Attributes
    ----------
    title : str
        What the caption begins with.
    base : Settings
        Data, network, precision and so on; optimizer, batch and seed are the methods' own.
    methods : dict
        By name; the first is the one that the caption looks at.
    levels : tuple of float
        Errors to which iterations and seconds are counted, descending.
    seeds, tuning_seeds : tuples of int
        Reported, and tuned on; no seed is in both.
    tuning_part : float
        The length of a trial, as a part of a method's iterations.
    error : str
        What the error is.
    """

    title: str
    base: Settings
    methods: Mapping[str, Method]
    levels: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: tuple[int, ...] = (100,)
    tuning_part: float = 1.0
    error: str = "mean over cases of the sum of squared differences"

    def __post_init__(self) -> None:
        for name in ("seeds", "tuning_seeds", "levels"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} must be a list of numbers, got {getattr(self, name)!r}")
        for name in ("title", "error"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")
        if not self.methods or not self.seeds or not self.levels:
            raise ValueError("methods, seeds and levels must not be empty")
        for level in self.levels:
            checks.number("levels", level, 0)
        if list(self.levels) != sorted(self.levels, reverse=True):
            raise ValueError(f"levels must descend, got {list(self.levels)}")
        both = set(self.seeds) & set(self.tuning_seeds)
        if both:
            raise ValueError(f"tuning_seeds must not be among the seeds that are reported, got {sorted(both)} in both")
        checks.number("tuning_part", self.tuning_part, 0, 1, above=True)
        if len(self.methods) > len(plotting.LOOKS):
            raise ValueError(f"methods must be at most {len(plotting.LOOKS)}, as many as there are lines that "
                             f"everybody can tell apart; got {len(self.methods)}")
        for seed in (*self.seeds, *self.tuning_seeds):
            checks.count("seeds and tuning_seeds", seed, 0)
        for name, method in self.methods.items():
            try:
                checks.count("iterations", method.iterations)
                for settings in method.trials():
                    self.settings(method, settings, self.seeds[0])
                if len(method.trials()) > 1 and not self.tuning_seeds:
                    raise ValueError("its grid needs tuning_seeds, got none")
            except ValueError as error:
                raise ValueError(f"method {name!r}: {error}") from error

    def settings(self, method: Method, settings: Mapping[str, Any], seed: int) -> Settings:
        """Return the settings of one run.

        Parameters
        ----------
        method : Method
            One of the methods.
        settings : mapping
            Of its optimizer.
        seed : int
            Of the run.
        """
        return replace(self.base, optimizer=method.optimizer, settings=settings, batch=method.batch, seed=seed)


def run(comparison: Comparison, method: Method, settings: Mapping[str, Any], seed: int, data: Dataset | None = None,
        iterations: int | None = None, name: str = "training", evaluate_at: Container[int] | None = None,
        ) -> training.History:
    """Train once, as one method of a comparison.

    Parameters
    ----------
    comparison : Comparison
        Gives data and network.
    method : Method
        What to train with.
    settings : mapping
        Of its optimizer.
    seed : int
        Of the weights, the batches and the sampling.
    data : Dataset, optional
        Read already; else it is read.
    iterations : int, optional
        The method's own number, unless told.
    name : str
        What the progress bar is called.
    evaluate_at : container of int, optional
        The steps after which it is evaluated; `training.evaluation_steps` unless told.

    Returns
    -------
    History
        With its evaluations.

    Raises
    ------
    KeyboardInterrupt
        Where the run was interrupted: a part of it is of no use in a comparison.
    """
    task = comparison.settings(method, settings, seed).task(data)
    iterations = method.iterations if iterations is None else iterations
    evaluate_at = frozenset(training.evaluation_steps(iterations)) if evaluate_at is None else evaluate_at
    history = training.train(task.optimizer, task.weights, task.x, task.y, iterations, task.schedule, seed,
                             evaluate_at, task.test, name=name)
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
        An error.

    Returns
    -------
    (int, float) or None
        None where the run does not get there.
    """
    return next(((e.k, e.seconds) for e in history.evaluations if e.error <= level), None)


def score(history: training.History) -> float:
    """Return the mean log error over the logarithmically spaced evaluations in the last nine tenths of a run.

    An error below 1e-6 counts as that: a classifier can make none at all.

    Parameters
    ----------
    history : History
        A whole run.

    Returns
    -------
    float
        Speaks of all levels, not of the last alone; the lower, the better.
    """
    last = history.evaluations[-1].k
    return float(np.mean([math.log(max(e.error, _LEAST)) for e in history.evaluations if e.k >= last / 10]))


def tune(comparison: Comparison, report: Callable[[str], None], train: Callable[..., training.History] = run,
         data: Dataset | None = None, shorten: int = 1) -> dict[str, dict[str, Any]]:
    """Run the grid of every method on the tuning seeds and choose one setting each.

    Parameters
    ----------
    comparison : Comparison
        Whose methods.
    report : function of str
        Is told of each trial.
    train : function
        As `run`.
    data : Dataset, optional
        Read already.
    shorten : int
        Divide all iterations by this.

    Returns
    -------
    dict
        For each method, the chosen ``settings`` and the ``trials`` with their scores (`score`); the mean over seeds
        decides. A method without a choice is not run.
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


def level_table(histories: Mapping[str, Sequence[training.History]], levels: Sequence[float]) -> list[list[str]]:
    """Return the rows of the convergence table: iterations and seconds to each level, median and range over seeds.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed.
    levels : sequence of float
        Errors.

    Returns
    -------
    list of list of str
        The head, then two rows a method.
    """
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
    """Write the median and range of what the seeds reached; "-" where no more than half did.

    Parameters
    ----------
    values : sequence of float or None
        One a seed; None where it did not get there.
    form : str
        How a number is written, such as ``{:.0f}``.
    """
    known = sorted(v for v in values if v is not None)
    if 2 * len(known) <= len(values):
        return "-"
    middle = float(np.median([math.inf if v is None else v for v in values]))
    spread = f"-{form.format(known[-1])}" if len(known) == len(values) else " up"
    return f"{form.format(middle)} ({form.format(known[0])}{spread})"


def medians(runs: Sequence[training.History], level: float) -> tuple[float, float] | None:
    """Return the median iterations and seconds to a level; None where no more than half of the runs get there.

    Parameters
    ----------
    runs : sequence of History
        One a seed.
    level : float
        An error.
    """
    hits = [hit for h in runs if (hit := reached(h, level))]
    if 2 * len(hits) <= len(runs):
        return None
    missing = [math.inf] * (len(runs) - len(hits))
    return tuple(float(np.median([h[i] for h in hits] + missing)) for i in (0, 1))      # type: ignore[return-value]


def curves(histories: Mapping[str, Sequence[training.History]]) -> dict[str, plotting.Curve]:
    """Return what is drawn of each method: error over iterations and seconds, after the start.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed.
    """
    return {name: plotting.Curve(np.array([e.k for e in runs[0].evaluations[1:]]),
                                 np.array([[e.seconds for e in h.evaluations[1:]] for h in runs]),
                                 np.array([[e.error for e in h.evaluations[1:]] for h in runs]))
            for name, runs in histories.items()}


def figure(histories: Mapping[str, Sequence[training.History]], levels: Sequence[float], title: str,
           error: str) -> Figure:
    """Draw error against iterations and seconds, with the numbers of one level in the caption.

    Parameters
    ----------
    histories : mapping from name to sequence of History
        Runs of each method, one a seed; the first is the one that is looked at.
    levels : sequence of float
        Errors, descending.
    title : str
        What the caption begins with.
    error : str
        What the error is.

    Returns
    -------
    Figure
        Two panels.
    """
    # The lowest level that the first method and at least one other reached on most seeds says most.
    first = next(iter(histories))
    rows = {level: {name: medians(runs, level) for name, runs in histories.items()} for level in levels}
    told = [level for level, row in rows.items() if row[first] and sum(hit is not None for hit in row.values()) > 1]
    text = f"{title}: median of {_number(len(histories[first]))}, bands their range."
    if told:
        row = rows[told[-1]]
        parts = (f"{name.replace(', ', ' with ')} takes {hit[0]:.0f} iterations and {hit[1]:.1f} s" if hit
                 else f"{name.replace(', ', ' with ')} does not get there" for name, hit in row.items())
        text += f" To an error of {told[-1]:g} {'; '.join(parts)}."
    return plotting.convergence(curves(histories), f"training error\n({error})", text)


def _number(seeds: int) -> str:
    return f"{ {1: 'one', 2: 'two', 3: 'three'}.get(seeds, seeds)} seed{'s' * (seeds > 1)}"


# A comparison in a file, and its results in a folder.


def read(path: Path) -> Comparison:
    """Read a comparison from a JSON file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Comparison
        A relative folder in ``mnist:FOLDER`` is taken from the file's own.

    Raises
    ------
    ValueError
        For a file that is not there or no JSON, for unknown names, and for settings out of range.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
        raise ValueError(f'{path} must hold an object with "methods"')
    base = {name: content.pop(name) for name in _common(Settings) if name in content}
    methods = content.pop("methods")
    if isinstance(base.get("data"), str) and ":" in base["data"]:
        kind, _, folder = base["data"].partition(":")
        if not folder.startswith("$"):                      # a variable is read where the data are
            base["data"] = f"{kind}:{(path.parent / Path(folder).expanduser()).resolve()}"
    rest: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    try:
        made = {name: _made(Method, method, f"method {name!r}: ") for name, method in methods.items()}
        return _made(Comparison, {"methods": made, **rest}, base=Settings(**base))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _common(settings: Any) -> list[str]:
    """Return the names of the settings that all methods of a comparison have in common."""
    return [f.name for f in fields(settings) if f.name not in ("optimizer", "settings", "batch", "seed")]


def _made(kind: type[Any], content: Any, where: str = "", **given: Any) -> Any:
    """Return a value of that kind, or say which of its fields are missing, unknown or out of range."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}must be an object, got {content!r}")
    asked = [f for f in fields(kind) if f.name not in given]
    missing = [f.name for f in asked if f.default is f.default_factory is MISSING and f.name not in content]
    known = [f.name for f in asked] + [name for value in given.values() for name in _common(value)]
    unknown = [name for name in content if name not in known]
    if missing or unknown:
        raise ValueError(where + "; ".join([f"{name} is missing" for name in missing] + [
            f"{name} is not known (there are {', '.join(known)})" for name in unknown]))
    try:
        return kind(**content, **given)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def run_all(comparison: Comparison, out: Path, report: Callable[[str], None] = print,
            train: Callable[..., training.History] | None = None,
            force: bool = False) -> dict[str, list[training.History]]:
    """Tune and run a comparison, going on from what is done, and write its table and its figure.

    Parameters
    ----------
    comparison : Comparison
        Such as `read` returns.
    out : Path
        ``results/`` in it holds a JSON file for each run; ``comparison.md`` is the table, ``comparison.png`` the
        figure, ``comparison.json`` all numbers.
    report : function of str
        Is told of each run.
    train : function, optional
        Does a run that is not done yet; `run` unless told.
    force : bool
        Whether to replace files that an earlier call did not write.

    Returns
    -------
    dict
        The histories of each method, one a seed; they hold evaluations alone.

    Raises
    ------
    ValueError
        Where the data cannot be read, or another process writes to the folder; or for a method that blew up with its
        chosen settings.
    OverwriteError
        For a file in the place of the table, the figure or the numbers that an earlier call did not write.
    """
    refuse(out / "comparison.json", [out / "comparison.md", out / "comparison.png"], force)
    if (out / "results").is_symlink():
        raise files.OverwriteError(f"{out / 'results'} is a symbolic link, which is not followed")
    (out / "results").mkdir(parents=True, exist_ok=True)
    train = train or run
    environments: list[dict[str, Any]] = []
    digests: set[str] = set()

    def same_data(digest: str, file: Path) -> None:
        """Refuse to put runs on different data into one table.

        Parameters
        ----------
        digest : str
            Of the data of a run.
        file : Path
            Of its result.
        """
        digests.add(digest)
        if len(digests) > 1:
            raise ValueError(f"{file} is of other data than the results before it: choose another folder")

    @functools.cache
    def checked() -> Dataset:
        """Read the data, for the first run that is not done yet, and see that every method fits them."""
        data = comparison.base.dataset()
        for name, method in comparison.methods.items():
            try:
                comparison.settings(method, method.trials()[0], comparison.seeds[0]).task(data)
            except ValueError as error:
                raise ValueError(f"method {name!r}: {error}") from None
        return data

    def kept(comparison: Comparison, method: Method, settings: Mapping[str, Any], seed: int, data: Dataset | None,
             iterations: int, name: str, evaluate_at: Collection[int] | None = None) -> training.History:
        """Return a run's evaluations from its file, or run it and write the file.

        Parameters
        ----------
        comparison, method, settings, seed, data, iterations, name, evaluate_at : Any
            As in `run`.
        """
        asked = comparison.settings(method, settings, seed).plain() | {"iterations": iterations}
        asked["data"] = asked["data"].partition(":")[0]         # where a folder lies on this machine is of no import
        asked["settings"] = optimizer_settings(method.optimizer) | asked["settings"]
        asked["evaluate_at"] = sorted(evaluate_at or training.evaluation_steps(iterations))
        digest = checkpoints.digest(asked)
        file = out / "results" / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}-{digest[:8]}.json"
        if file.exists():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                found = content["evaluations"] and [evaluation(line) for line in content["evaluations"]]
                same_data(content["data_sha256"], file)
            except (ValueError, KeyError, TypeError) as damage:
                raise ValueError(f"{file} is damaged: {damage!r}; delete it, and the run is done again") from damage
            if found is None:
                raise NotFiniteError(f"{name} with {dict(settings)} and seed {seed} blew up")
            environments.append(content["environment"])
            return training.History(None, (), evaluations=found)
        history, error = None, None
        try:
            history = train(comparison, method, settings, seed, checked(), iterations, f"{name}, seed {seed}",
                            evaluate_at)
        except training.DIVERGED as raised:
            error = raised
        evaluations = history and plain([asdict(e) for e in history.evaluations])
        content = {"method": name, **asked, "data_sha256": digest_of(checked()), "environment": environment(),
                   "evaluations": evaluations}
        same_data(content["data_sha256"], file)
        environments.append(content["environment"])
        files.write(file, json.dumps(content) + "\n")
        if history is None:
            raise NotFiniteError(f"{name} with {dict(settings)} and seed {seed} blew up: {error}")
        last = history.evaluations[-1]
        report(f"{name}, seed {seed}, {dict(settings)}: {last.k} steps in {last.seconds:.1f} s, error {last.error:.4g}")
        return training.History(None, (), evaluations=history.evaluations)

    with locked(out):
        chosen = tune(comparison, report, kept)
        histories = {name: [kept(comparison, method, chosen[name]["settings"], seed, None, method.iterations, name)
                            for seed in comparison.seeds] for name, method in comparison.methods.items()}
        unique = [e for i, e in enumerate(environments) if e not in environments[:i]]
        write(comparison, histories, chosen, unique, out, report, force)
    return histories


def write(comparison: Comparison, histories: Mapping[str, Sequence[training.History]],
          chosen: Mapping[str, Mapping[str, Any]], environments: Sequence[Mapping[str, Any]], out: Path,
          report: Callable[[str], None] = print, force: bool = False) -> None:
    """Write the table, the figure and the numbers of a comparison.

    Parameters
    ----------
    comparison : Comparison
        What was compared.
    histories : mapping from name to sequence of History
        Runs of each method, one a seed.
    chosen : mapping
        As `tune` returns it.
    environments : sequence of mapping
        In which the runs were made, each once.
    out : Path
        A folder.
    report : function of str
        Is told the table.
    force : bool
        Whether to replace files that an earlier call did not write.
    """
    table = level_table(histories, comparison.levels)
    lines = ["| " + " | ".join(row) + " |" for row in table]
    text = "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
    numbers = {name: {"settings": chosen[name]["settings"], "trials": chosen[name]["trials"],
                      "batch": comparison.methods[name].batch,
                      "runs": [{"levels": {f"{level:g}": reached(h, level) for level in comparison.levels},
                                "last": asdict(h.evaluations[-1])} for h in runs]}
               for name, runs in histories.items()}
    picture = figure(histories, comparison.levels, comparison.title, comparison.error)
    save(picture, {"environment": environments, "title": comparison.title, "methods": numbers}, out / "comparison",
         force=force, texts={"md": f"{comparison.title}\n\n{text}\n"})
    report(text)
