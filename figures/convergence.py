"""Training error against iterations and seconds on three autoencoders (the paper's figures 10 and 11, sec. 13).

    python figures/convergence.py [--quick] [--pdf] [--out DIR]

MNIST, generated curves (a stand-in for CURVES) and digits: K-FAC block-diagonal, block-tridiagonal and without
momentum, SGD with Nesterov's momentum and Adam at m = 100 and 500. ``figures/convergence/*.json`` define the
comparisons: all methods of a problem have as many trials, on other seeds; one setting is chosen for all error levels,
and three seeds are reported. The JSON has the ratios twice: for the iterates, and for the better of the iterate and the
average of the iterates.

The picture is drawn from the committed ``results.json`` of each problem. With ``--out DIR`` a problem without
``DIR/NAME/results.json`` is run first, all of them in about two hours; the same command continues an interrupted run.
MNIST is read from the folder that the variable KFAC_REF_MNIST names, and left out if it is not set. Writes
``convergence.png`` and ``convergence.json``, and for each problem that it runs its results, a table and a figure.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kfac_ref import plotting, training
from kfac_ref.experiments import comparison, results, script, tables
from kfac_ref.experiments.comparison import Comparison, Method
from kfac_ref.experiments.settings import Settings

HERE = Path(__file__).parent / "convergence"
#: The problems, and the BLAS threads that suit their size: None is one per core.
PROBLEMS = {"mnist": None, "curves": None, "digits": "1"}
TITLES = {"mnist": "MNIST", "curves": "Generated curves", "digits": "Digits", "small": "Digits"}
SMALL = Comparison("Digits autoencoder 64-8-64", Settings(net="64-8-64"), {
    "K-FAC, m = 500": Method("kfac", "500", 6, {}, {"lambda_0": (0.1, 1)}),
    "SGD, m = 100": Method("sgd", "100", 20, {"period": 10}, {"learning_rate": (0.05, 0.1)})}, (5, 4, 3), (0, 1))


def run(name: str, out: Path) -> None:
    """Run a problem in its own process, since OpenBLAS reads its variables when NumPy is imported."""
    threads = {"OPENBLAS_NUM_THREADS": PROBLEMS[name] or str(os.cpu_count()), "OPENBLAS_THREAD_TIMEOUT": "4"}
    command = [sys.executable, "-m", "kfac_ref", "experiment", str(HERE / f"{name}.json"), "--out", str(out)]
    if subprocess.run(command, env=os.environ | threads, check=False).returncode:
        raise ValueError(f"{name} did not finish: the same command continues it")


def ratios(histories: dict[str, list[training.History]],
           levels: Sequence[float]) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare K-FAC with the best baseline at any batch size, in iterations and in seconds, for each level."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for level in levels:
        hits = {name: hit for name, runs in histories.items() if (hit := tables.medians(runs, level))}
        found[f"{level:g}"] = {}
        for i, what in enumerate(("iterations", "seconds")):
            best = {}
            for group, own in (("kfac", True), ("baseline", False)):
                values = {name: hit[i] for name, hit in hits.items() if name.startswith("K-FAC") == own}
                best[group] = min(values.items(), key=lambda item: item[1], default=(None, math.nan))
            (ours, a), (theirs, b) = best["kfac"], best["baseline"]
            found[f"{level:g}"][what] = {"kfac": ours, "kfac_value": a, "baseline": theirs, "baseline_value": b,
                                         "ratio": b / a if a else math.nan}
    return found


def better_iterate(history: training.History) -> training.History:
    """Return a run whose errors are those of the averaged iterate wherever that is better than the iterate."""
    return replace(history, evaluations=[replace(e, error=np.fmin(e.error, e.averaged_error))
                                         for e in history.evaluations])


def sentence(title: str, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Compare K-FAC with the best baseline in words, at the lowest level that both reach."""
    both = [level for level, row in found.items() if math.isfinite(row["iterations"]["ratio"])]
    if not both:
        return f"{title}: no level was reached by K-FAC and a baseline."
    a, b = (found[both[-1]][what] for what in ("iterations", "seconds"))
    return (f"{title}, to an error of {both[-1]}: {a['kfac']} takes {a['kfac_value']:.0f} iterations, {a['baseline']} "
            f"takes {a['baseline_value']:.0f} ({a['ratio']:.1f} times as many); {b['kfac']} takes "
            f"{b['kfac_value']:.1f} s, {b['baseline']} takes {b['baseline_value']:.1f} s ({b['ratio']:.2f} times as "
            "long).")


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run what has no results yet, and draw all; returns 0."""
    asked = {"small": SMALL} if quick else {name: comparison.read(HERE / f"{name}.json") for name in PROBLEMS}
    curves, numbers, averaged, environments, text = {}, {}, {}, {}, []
    for name, compared in asked.items():
        file = out / name / results.RESULTS
        if quick:
            results.run_all(compared, out / name, force=force)
        elif not file.exists() and (out == HERE or (name == "mnist" and not os.environ.get("KFAC_REF_MNIST"))):
            print(f"{name} is left out: " + ("it has no committed results" if out == HERE else
                                             "KFAC_REF_MNIST does not name the folder of its IDX files"))
            continue
        elif not file.exists():
            run(name, out / name)
        histories = results.read(file)
        if list(histories) != list(compared.methods):
            raise ValueError(f"{file} has other methods than {name}.json defines")
        curves[TITLES[name]] = tables.curves(histories)
        numbers[name] = ratios(histories, compared.levels)
        averaged[name] = ratios({method: [better_iterate(h) for h in runs] for method, runs in histories.items()},
                                compared.levels)
        environments[name] = json.loads(file.read_text())["environment"]
        text.append(sentence(TITLES[name], numbers[name]))
    if not curves:
        return 0
    seeds = {len(compared.seeds) for compared in asked.values()}
    line = f"Median and range of {' or '.join(map(str, sorted(seeds)))} seeds. {' '.join(text)}"
    label = "training error\n(mean over examples of the\nsum of squared differences)"
    figure = plotting.convergence_rows(curves, label, line)
    script.save(figure, {"environment": environments, "ratios": numbers,
                         "ratios_of_the_better_iterate": averaged}, out / "convergence", formats, force)
    print(line)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
