"""The results of a comparison, in a folder.

::

    runs/             one file for each finished run: the same command goes on where it was interrupted
    results.json      all numbers: settings, trials, and the evaluations of the reported runs
    comparison.md     the table
    comparison.png    the figure

Runs follow one another, so that their seconds can be compared. ``runs/`` is only needed to go on.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import checkpoints, files, training
from ..checks import NotFiniteError
from ..datasets import Dataset
from ..environment import environment
from . import comparison, tables
from .comparison import Comparison, Method
from .history import evaluations_of, from_columns
from .run import digest_of
from .script import drawn, locked, plain, refuse, write
from .settings import optimizer_settings

RESULTS, TABLE, PICTURE, RUNS = "results.json", "comparison.md", "comparison.png", "runs"


def run_all(compared: Comparison, out: Path, report: Callable[[str], None] = print,
            train: Callable[..., training.History] | None = None,
            force: bool = False) -> dict[str, list[training.History]]:
    """Tune and run a comparison, going on from the runs that are done, and write its results, table and figure.

    Parameters
    ----------
    compared : Comparison
        Such as `comparison.read` returns.
    out : Path
        The folder.
    report : function of str
        Is called with a line for each run.
    train : function, optional
        Makes a run (default: `comparison.run`).
    force : bool
        Whether to replace files that an earlier call did not write.

    Returns
    -------
    dict
        The histories of each method, one per seed, which hold evaluations only.

    Raises
    ------
    ValueError
        If the data cannot be read, another process writes to the folder, a file of a run is damaged, or a method
        diverges with its chosen settings.
    """
    refuse(out / RESULTS, [out / TABLE, out / PICTURE], force)
    if (out / RUNS).is_symlink():
        raise files.OverwriteError(f"{out / RUNS} is a symbolic link, which is not followed")
    (out / RUNS).mkdir(parents=True, exist_ok=True)
    runs = _Runs(compared, out / RUNS, report, train or comparison.run)
    with locked(out):
        chosen = comparison.tune(compared, report, runs)
        histories = {name: [runs(compared, method, chosen[name]["settings"], seed, None, method.iterations, name)
                            for seed in compared.seeds] for name, method in compared.methods.items()}
        _write(compared, histories, chosen, runs.environments, out, report, force)
    return histories


def read(path: Path) -> dict[str, list[training.History]]:
    """Return the histories of each method, one per seed, from a results.json."""
    content = files.read_json(path)
    try:
        return {name: [from_columns(run["evaluations"]) for run in method["runs"]]
                for name, method in content["methods"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the results of a comparison: {error!r}") from None


@dataclass
class _Runs:
    """Makes a run as `comparison.run` does, or reads it from its file, if it is done."""

    compared: Comparison
    folder: Path
    report: Callable[[str], None]
    train: Callable[..., training.History]
    environments: list[Mapping[str, Any]] = field(default_factory=list)         # in which runs were made, each once
    digest: str | None = None                                                   # of the data

    def __call__(self, compared: Comparison, method: Method, settings: Mapping[str, Any], seed: int,
                 data: Dataset | None, iterations: int, name: str,
                 evaluate_at: Collection[int] | None = None) -> training.History:
        """Return the evaluations of a run; raise NotFiniteError if it diverged."""
        asked = compared.settings(method, settings, seed).plain() | {"iterations": iterations}
        asked["data"] = asked["data"].partition(":")[0]         # the folder differs between machines
        asked["settings"] = optimizer_settings(method.optimizer) | asked["settings"]
        asked["evaluate_at"] = sorted(evaluate_at or training.evaluation_steps(iterations))
        slug = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
        file = self.folder / f"{slug}-{seed}-{checkpoints.digest(asked)[:8]}.json"
        if not file.exists():
            self._make(file, asked, compared, method, settings, seed, iterations, name, evaluate_at)
        try:
            content = files.read_json(file)
            history = None if content["evaluations"] is None else from_columns(content["evaluations"])
            if not isinstance(content["data_sha256"], str) or not isinstance(content["environment"], dict):
                raise TypeError("data_sha256 must be text and environment an object")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: {error!r}; delete it, and the run is made again") from error
        if self.digest not in (None, content["data_sha256"]):
            raise ValueError(f"{file} is of other data than the runs before it: choose another folder")
        self.digest = content["data_sha256"]
        if content["environment"] not in self.environments:
            self.environments.append(content["environment"])
        if history is None:
            raise NotFiniteError(f"{name} with {dict(settings)} and seed {seed} diverged")
        return history

    def _make(self, file: Path, asked: dict[str, Any], compared: Comparison, method: Method,
              settings: Mapping[str, Any], seed: int, iterations: int, name: str,
              evaluate_at: Collection[int] | None) -> None:
        """Make a run and write its file."""
        evaluations = None
        try:
            history = self.train(compared, method, settings, seed, self._data, iterations, f"{name}, seed {seed}",
                                 evaluate_at)
        except training.DIVERGED as error:
            self.report(f"{name}, seed {seed}, {dict(settings)}: diverged: {error}")
        else:
            evaluations, last = evaluations_of(history), history.evaluations[-1]
            self.report(f"{name}, seed {seed}, {dict(settings)}: {last.k} steps in {last.seconds:.1f} s, error "
                        f"{last.error:.4g}")
        content = {"method": name, **asked, "data_sha256": digest_of(self._data), "environment": environment(),
                   "evaluations": evaluations}
        files.write(file, json.dumps(plain(content)) + "\n")

    @functools.cached_property
    def _data(self) -> Dataset:
        """The data, read for the first run that is not done yet, after a check that every method fits them."""
        data = self.compared.base.dataset()
        for name, method in self.compared.methods.items():
            try:
                self.compared.settings(method, method.trials()[0], self.compared.seeds[0]).task(data)
            except ValueError as error:
                raise ValueError(f"method {name!r}: {error}") from None
        return data


def _write(compared: Comparison, histories: Mapping[str, Sequence[training.History]],
           chosen: Mapping[str, Mapping[str, Any]], environments: Sequence[Mapping[str, Any]], out: Path,
           report: Callable[[str], None], force: bool) -> None:
    """Write the numbers, the table and the figure of a comparison, and report the table."""
    table = tables.level_table(histories, compared.levels)
    lines = ["| " + " | ".join(row) + " |" for row in table]
    text = "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
    methods = {name: {**chosen[name], "batch": compared.methods[name].batch, "runs": [
        {"seed": seed, "levels": {f"{level:g}": tables.reached(h, level) for level in compared.levels},
         "evaluations": evaluations_of(h)} for seed, h in zip(compared.seeds, runs, strict=True)]}
               for name, runs in histories.items()}
    picture = tables.figure(histories, compared.levels, compared.title, compared.error)
    write(out / RESULTS, {"environment": environments, "caption": " ".join(picture.get_supxlabel().split()),
                          "title": compared.title, "methods": methods},
          {out / PICTURE: drawn(picture), out / TABLE: f"{compared.title}\n\n{text}\n".encode()}, force)
    report(text)
