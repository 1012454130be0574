"""The command line: ``kfac-ref demo`` runs the main job; ``python -m kfac_ref`` is the same."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import __version__, datasets
from .environment import MEMORY, ONE_THREAD, restart_with


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 only if all was done and written.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process unless told.

    Returns
    -------
    int
        0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="kfac-ref", description="The reference implementation of K-FAC.")
    parser.add_argument("--version", action="version", version=f"kfac_ref {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train on digits with K-FAC and baselines, compare with the exact Fisher")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    demo.add_argument("--seed", type=int, default=0, help="the first of three seeds (default: 0)")
    demo.add_argument("--quick", action="store_true", help="a few seconds, short runs: shows that everything works")
    demo.add_argument("--pdf", action="store_true", help="write the figures as PDF too")
    demo.add_argument("--tune", action="store_true", help="run the grid of settings again instead; takes many minutes")
    arguments = parser.parse_args(argv)
    if argv is None:
        restart_with(ONE_THREAD | MEMORY, ["-m", "kfac_ref", *sys.argv[1:]])
    try:
        return _demo(arguments.out, arguments.seed, arguments.quick, arguments.tune, arguments.pdf)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"kfac-ref: {error}", file=sys.stderr)
        return 1


def _demo(out: Path, seed: int, quick: bool, tune: bool, pdf: bool = False) -> int:
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    _check_writable(out)
    from .experiments import autoencoder, classifier, report  # slow: with Matplotlib, and not twice at a restart

    data = datasets.digits()
    shorten = 100 if quick else 1
    if tune:
        chosen = autoencoder.tune(data, print, shorten)
        _write(out / "tune.json", json.dumps(chosen, indent=1))
        return 0
    start = time.perf_counter()
    histories = autoencoder.convergence(data, seed, shorten)
    levels = report.format_table(autoencoder.level_table(histories))
    print("Digits autoencoder: iterations and seconds until the training error (mean over cases of the sum of squared")
    last = seed + len(autoencoder.SEEDS) - 1
    print(f"differences) is at most ..., median (range) over the seeds {seed} to {last}\n")
    print(levels, end="\n\n")
    found = classifier.stages(data, seed, (3, 10) if quick else (10, 200), 200 if quick else None)
    print("Digits classifier: relative Frobenius error of the family; (best) is the least that any Kronecker product")
    print("could reach in that layer's block\n")
    print(report.format_table(classifier.fisher_table(found)), end="\n\n")
    budget = classifier.budget(data, seed, 6 if quick else 58, 200 if quick else None)
    print("Digits classifier: from the exact damped Fisher to what K-FAC solves with, and what that does to the step")
    print(f"(step {budget.step}, lambda + eta = {budget.damping:.3g}, gamma = {budget.gamma:.3g})\n")
    print(report.format_table(classifier.budget_table(budget)), end="\n\n")
    figures = {"convergence": autoencoder.convergence_figure(histories), "fisher": classifier.fisher_figure(found),
               "budget": classifier.budget_figure(budget)}
    for suffix in ("png", "pdf") if pdf else ("png",):
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.{suffix}")
    _write(out / "summary.json", json.dumps(report.summary(histories, found, budget, seed), indent=1))
    seconds = time.perf_counter() - start
    print(f"wrote convergence.png, fisher.png, budget.png and summary.json to {out}/ ({seconds:.0f} seconds)")
    return 0


def _check_writable(out: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".kfac_ref_probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
