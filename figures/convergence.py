"""Training error against iterations and seconds on three autoencoders (the paper's figures 10 and 11, sec. 13).

    python figures/convergence.py [--quick] [--pdf] [--out DIR]

MNIST, generated curves (a stand-in for CURVES) and digits: K-FAC block-diagonal, block-tridiagonal and without
momentum, SGD with Nesterov's momentum and Adam at m = 100 and 500. ``figures/convergence/*.json`` define the runs: all
methods of a problem have the same number of trials, on other seeds; one setting is chosen for all error levels, and
three seeds are reported. The JSON has the ratios twice: for the iterates, and for the better of iterate and average.
The runs take about two hours. Each finished run is stored in ``results/``, and the picture is drawn from these files.
The script draws the committed runs at once; with another folder as ``--out`` it runs everything again, and resumes if
interrupted. MNIST is read from the folder that the variable KFAC_REF_MNIST names; without it, MNIST is skipped. Writes
``convergence.png`` and ``convergence.json``, and a table and a figure per problem.
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
from kfac_ref.experiments import comparison, script
from kfac_ref.experiments.comparison import Comparison, Method
from kfac_ref.experiments.settings import Settings

HERE = Path(__file__).parent / "convergence"
#: The problems, and the number of BLAS threads that suits their size; None is one per core.
PROBLEMS = {"mnist": None, "curves": None, "digits": "1"}
TITLES = {"mnist": "MNIST", "curves": "Generated curves", "digits": "Digits", "small": "Digits"}
SMALL = Comparison("Digits autoencoder 64-8-64", Settings(net="64-8-64"), {
    "K-FAC, m = 500": Method("kfac", "500", 6, {}, {"lambda_0": (0.1, 1)}),
    "SGD, m = 100": Method("sgd", "100", 20, {"period": 10}, {"learning_rate": (0.05, 0.1)})}, (5, 4, 3), (0, 1))


def run(name: str, out: Path) -> None:
    """Run a problem in a separate process, because NumPy reads the number of threads when it is imported."""
    threads = {"OPENBLAS_NUM_THREADS": PROBLEMS[name] or str(os.cpu_count()), "OPENBLAS_THREAD_TIMEOUT": "4"}
    command = [sys.executable, "-m", "kfac_ref", "experiment", str(HERE / f"{name}.json"), "--out", str(out)]
    if subprocess.run(command, env=os.environ | threads, check=False).returncode:
        raise ValueError(f"{name} did not finish; run the same command again to resume")


def refuse(comparison: Comparison, method: Method, settings: object, seed: int, *_: object) -> training.History:
    """Raise an error: this replaces training when only stored runs may be drawn."""
    raise ValueError(f"the stored runs lack {method} with {settings} and seed {seed}; their definition differs")


def ratios(histories: dict[str, list[training.History]],
           levels: Sequence[float]) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare K-FAC with the best baseline at any batch size, for each level, in iterations and in seconds."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for level in levels:
        hits = {name: hit for name, runs in histories.items() if (hit := comparison.medians(runs, level))}
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
    """Return a run with the error of the iterate or of the averaged iterate, whichever is lower."""
    return replace(history, evaluations=[replace(e, error=np.fmin(e.error, e.averaged_error))
                                         for e in history.evaluations])


def sentence(title: str, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return a sentence that compares K-FAC with the best baseline at the lowest level that both reach."""
    both = [level for level, row in found.items() if math.isfinite(row["iterations"]["ratio"])]
    if not both:
        return f"{title}: no level was reached by K-FAC and a baseline."
    a, b = (found[both[-1]][what] for what in ("iterations", "seconds"))
    return (f"{title}, to an error of {both[-1]}: {a['kfac']} takes {a['kfac_value']:.0f} iterations, {a['baseline']} "
            f"takes {a['baseline_value']:.0f} ({a['ratio']:.1f} times as many); {b['kfac']} takes "
            f"{b['kfac_value']:.1f} s, {b['baseline']} takes {b['baseline_value']:.1f} s ({b['ratio']:.2f} times as "
            "long).")


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run what is missing, and draw everything; return 0."""
    asked = {"small": SMALL} if quick else {name: comparison.read(HERE / f"{name}.json") for name in PROBLEMS}
    curves, numbers, averaged, text = {}, {}, {}, []
    for name, compared in asked.items():
        done = (out / name / "comparison.json").exists()
        if not done and (out == HERE or (name == "mnist" and not os.environ.get("KFAC_REF_MNIST"))):
            print(f"{name} is skipped: " + ("it is not among the committed runs" if out == HERE else
                                           "KFAC_REF_MNIST does not name the folder of its IDX files"))
            continue
        if not quick and not done:
            run(name, out / name)
        histories = comparison.run_all(compared, out / name, print, None if quick else refuse, force)
        curves[TITLES[name]] = comparison.curves(histories)
        numbers[name] = ratios(histories, compared.levels)
        averaged[name] = ratios({method: [better_iterate(h) for h in runs] for method, runs in histories.items()},
                                compared.levels)
        text.append(sentence(TITLES[name], numbers[name]))
    if not curves:
        return 0
    seeds = {len(compared.seeds) for compared in asked.values()}
    line = f"Median and range of {' or '.join(map(str, sorted(seeds)))} seeds. {' '.join(text)}"
    figure = plotting.convergence_rows(curves, "training error\n(mean over cases of the sum of squared differences)",
                                       line)
    environments = {name: json.loads((out / name / "comparison.json").read_text())["environment"] for name in numbers}
    script.save(figure, {"environment": environments, "ratios": numbers,
                         "ratios_of_the_better_iterate": averaged}, out / "convergence", formats, force)
    print(line)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
