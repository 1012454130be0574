"""The command line: ``kfac-ref demo`` runs the main job, ``train`` one run, ``experiment`` a comparison.

``python -m kfac_ref`` is the same as ``kfac-ref``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import __version__, approximations, datasets, files
from .environment import one_thread
from .oracle import commands as oracle


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: of the process) and return its exit status.

    0 means that all was done and written, 1 a failure, 2 wrong usage, 130 an interruption, 141 that the reader of the
    output has left.
    """
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()                          # an error of writing is reported here, not at exit
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:                                 # as after ``| head``
        _forget_output()
        return 141
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"kfac-ref: {name}{error.strerror or error}", file=sys.stderr)
        _forget_output()
        return 1
    except ValueError as error:
        print(f"kfac-ref: {error}", file=sys.stderr)
        return 1


def _forget_output() -> None:
    """Send what cannot be written nowhere: at exit Python would try once more, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="kfac-ref", description="The reference implementation of K-FAC.")
    parser.add_argument("--version", action="version", version=f"kfac_ref {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_train, _add_experiment, oracle.add):
        add(commands)
    arguments = parser.parse_args(argv)
    with one_thread():
        return int(arguments.run(arguments))


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="train on digits with K-FAC and baselines, compare with the exact Fisher")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    demo.add_argument("--seed", type=int, default=0, help="the first of three seeds (default: 0)")
    demo.add_argument("--quick", action="store_true", help="a few seconds, short runs: shows that everything works")
    demo.add_argument("--pdf", action="store_true", help="write the figures as PDF too")
    demo.add_argument("--tune", action="store_true", help="run the grid of settings again instead; takes many minutes")
    demo.add_argument("--force", action="store_true",
                      help="replace files that no earlier demo wrote; those that one wrote are known by the hashes in "
                           "its summary.json, and replaced without this")
    demo.set_defaults(run=lambda a: _demo(a.out, a.seed, a.quick, a.tune, a.pdf, a.force))


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train", help="one training run, with checkpoints", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train one network with one optimizer, in a folder of its own: history, checkpoints, a picture.",
        epilog=f"""approximation: {', '.join(list(approximations.TABLE)[:7])},
               {', '.join(list(approximations.TABLE)[7:])}
expectation: one-draw, exact or empirical

examples:
  kfac-ref train --iterations 300 --out runs/digits
  kfac-ref train --data mnist:FOLDER --dtype float32 --batch 1000 --set lambda_0=0.01 --seconds 120 --out runs/mnist
  kfac-ref train --set approximation=ekfac --set expectation=exact --iterations 300 --out runs/ekfac
  kfac-ref train --net 64-32-16-10 --optimizer sgd --set learning_rate=0.1 --batch 100 --iterations 2000 --out runs/sgd
  kfac-ref train --resume runs/mnist --seconds 240""")
    _add_settings(train.add_argument_group("what to run"))
    how = train.add_argument_group("how far, and where")
    how.add_argument("--iterations", type=int, metavar="N", help="stop after N steps")
    how.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds spent in steps")
    how.add_argument("--checkpoint-every", type=float, default=60, metavar="S",
                     help="seconds between checkpoints (default: 60)")
    where = how.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="the folder of a new run")
    how.add_argument("--force", action="store_true",
                     help="remove the run that --out holds, or other files with the names of a run's (default: refuse)")
    where.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR, with its own settings")
    train.set_defaults(run=_train)


def _add_settings(what: Any) -> None:
    what.add_argument("--data", metavar="DATA", help="digits, curves (a generated stand-in) or mnist:FOLDER "
                                                     "(default: digits)")
    what.add_argument("--side", type=int, metavar="N", help="area-average MNIST to N x N pixels (default: 28)")
    what.add_argument("--net", metavar="NET", help="mnist, curves, faces (the paper's three autoencoders), digits, "
                      "digits-classifier, tanh-classifier, or widths such as 64-32-16-10 (default: that of the data)")
    what.add_argument("--hidden", metavar="NAMES", help="nonlinearity of the hidden layers, one for all or one each, "
                                                        "such as tanh or tanh,relu")
    what.add_argument("--likelihood", metavar="NAME", help="gaussian, categorical (on labels) or bernoulli")
    what.add_argument("--optimizer", metavar="NAME", help="kfac, natural-gradient, sgd or adam (default: kfac)")
    what.add_argument("--set", action="append", metavar="NAME=VALUE", default=[], dest="settings",
                      help="a setting of the optimizer; may be repeated (kfac: approximation and expectation (below), "
                           "lambda_0, T1, T2, T3, tau1, tau2, momentum, ...; sgd: learning_rate, mu_max, period; "
                           "adam: learning_rate, beta1, ...)")
    what.add_argument("--batch", metavar="N", help="a number, full, growing (from 1000 to all at step "
                                                   "500) or growing:FIRST:STEP (default: full)")
    what.add_argument("--weight-decay", type=float, metavar="ETA", help="eta (default: 1e-5)")
    what.add_argument("--init", metavar="NAME", help="sparse or glorot (default: sparse)")
    what.add_argument("--dtype", metavar="NAME", help="float64 or float32 (default: float64)")
    what.add_argument("--seed", type=int, metavar="N", help="of weights, batches and sampling (default: 0)")


def _add_experiment(commands: Any) -> None:
    experiment = commands.add_parser(
        "experiment", help="compare several optimizers over seeds, resumable",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tune and run several methods on the same data and network, into one table and one figure.",
        epilog="""FILE.json holds an object with
  title         of table and figure
  data, net, hidden, likelihood, weight_decay, init, dtype, side
                as the options of kfac-ref train; the same for all methods
  methods       by name, each an object with optimizer, batch and iterations, and with settings (those that are fixed)
                and grid (for each setting to choose, a list of values)
  levels        errors, descending: iterations and seconds are counted until the training error is at most each
  seeds         those that are reported (default: 0, 1, 2)
  tuning_seeds  those that the grids are tried on (default: 100)
  tuning_part   how long a trial is, as a part of the iterations (default: 1)
  error         what the figure calls the error (default: mean over examples of the sum of squared differences)
Of each grid the setting with the lowest score is chosen: the mean log error over the last nine tenths of a trial,
evaluated at steps that are spaced logarithmically, and over the tuning seeds. figures/convergence/digits.json is an
example.""")
    experiment.add_argument("file", type=Path, metavar="FILE.json", help="what is compared with what")
    experiment.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: FILE without .json)")
    experiment.add_argument("--force", action="store_true",
                            help="replace a results.json, .md and .png that no earlier comparison wrote; those that "
                                 "one wrote are known by the hashes in results.json, and replaced without this")
    experiment.set_defaults(run=_experiment)


def _train(arguments: argparse.Namespace) -> int:
    from .experiments import run
    from .experiments.settings import Settings

    given = {f.name: value for f in fields(Settings) if (value := getattr(arguments, f.name)) not in (None, [])}
    limits = arguments.iterations, arguments.seconds, arguments.checkpoint_every
    if arguments.resume:
        if arguments.force:
            raise ValueError("--force cannot be given with --resume")
        if given:
            option = min(given).replace("settings", "set").replace("_", "-")
            raise ValueError(f"--{option} cannot be given with --resume: a run keeps its settings")
        folder = arguments.resume
        history = run.resume(folder, *limits)
    else:
        if "settings" in given:
            given["settings"] = dict(map(_setting, given["settings"]))
        folder = arguments.out
        history = run.start(Settings(**given), folder, *limits, force=arguments.force)
    print(run.summary(folder, history))
    if history.interrupted:
        until = f"--seconds {arguments.seconds:g}" if arguments.iterations is None else \
            f"--iterations {arguments.iterations}"
        print(f"interrupted after step {history.state.k}; continue with: kfac-ref train --resume "
              f"{shlex.quote(str(folder))} {until}", file=sys.stderr)
        return 130
    return 0


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; the value is a number, true, false, null or a name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set must be NAME=VALUE, got {text!r}")
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        read = value
    if isinstance(read, (list, dict)) or not value:
        raise ValueError(f"--set {name} must be a number, true, false, null or a name, got {value!r}")
    return name, read


def _experiment(arguments: argparse.Namespace) -> int:
    from .experiments import comparison, results, script

    asked = comparison.read(arguments.file)         # a bad file is reported before a folder is made
    out = arguments.out or arguments.file.with_suffix("")
    script.make_folder(out)
    try:
        results.run_all(asked, out, functools.partial(print, flush=True), force=arguments.force)
    except ValueError as error:
        raise ValueError(f"{arguments.file}: {error}") from error
    return 0


def _demo(out: Path, seed: int, quick: bool, tune: bool, pdf: bool, force: bool) -> int:
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    from .experiments import autoencoder, classifier, comparison, report, script, tables  # slow: Matplotlib

    script.make_folder(out)
    names = [f"{name}.{suffix}" for name in ("convergence", "fisher", "budget")
             for suffix in (("png", "pdf") if pdf else ("png",))]
    if tune:
        files.refuse(out / "tune.json", force=force)
    else:
        script.refuse(out / "summary.json", [out / name for name in names], force)
    data = datasets.digits()
    shorten = 100 if quick else 1
    if tune:
        chosen = comparison.tune(autoencoder.compared(), print, data=data, shorten=shorten)
        files.write(out / "tune.json", json.dumps(chosen, indent=1) + "\n", force=force)
        return 0
    start, of = time.perf_counter(), autoencoder.compared(seed)
    histories = autoencoder.convergence(data, seed, shorten)
    levels = report.format_table(tables.level_table(histories, of.levels))
    print("Digits autoencoder: iterations and seconds until the training error (mean over examples of the sum of")
    print(f"squared differences) is at most ..., median (range) over the seeds {seed} to {of.seeds[-1]}\n")
    print(levels, end="\n\n")
    found = classifier.stages(data, seed, (3, 10) if quick else (10, 200), 200 if quick else None)
    print("Digits classifier: relative Frobenius error of the family; (best) is the least that any Kronecker product")
    print("could reach in that layer's block\n")
    print(report.format_table(classifier.fisher_table(found)), end="\n\n")
    budget = classifier.budget(data, seed, 6 if quick else 58, 200 if quick else None)
    print("Digits classifier: from the exact damped Fisher to what K-FAC solves with, and what that does to the step")
    print(f"(step {budget.step}, lambda + eta = {budget.damping:.3g}, gamma = {budget.gamma:.3g})\n")
    print(report.format_table(classifier.budget_table(budget)), end="\n\n")
    figures = {"convergence": tables.figure(histories, of.levels, of.title, of.error),
               "fisher": classifier.fisher_figure(found), "budget": classifier.budget_figure(budget)}
    pictures = {out / name: script.drawn(figures[Path(name).stem], Path(name).suffix[1:]) for name in names}
    script.write(out / "summary.json", report.summary(histories, found, budget, seed), pictures, force)
    seconds = time.perf_counter() - start
    print(f"wrote convergence.png, fisher.png, budget.png and summary.json to {out}/ ({seconds:.0f} seconds)")
    return 0
