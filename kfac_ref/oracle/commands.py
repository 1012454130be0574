"""The oracle on the command line: ``check``, ``reference``, ``quantities``, ``mistakes``, ``problem new``, ...

Exit status: 0 if everything is right (or done), 1 if something differs or cannot be written, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import OverwriteError, write, write_all
from . import published
from .check import check
from .checks import ProblemError, check_keys, check_known, near
from .files import gathered, load, plain
from .forms import read_quantities
from .graph import QUANTITIES, Reference, missing
from .mistakes import CATALOGUE
from .problem import KLClip, Previous, Problem
from .report import aligned


def add(commands: Any) -> None:
    """Add the commands to the subparsers of the program."""
    parser = commands.add_parser(
        "check", help="compare your values with the reference and diagnose mismatches",
        description="Compare quantities with those that a problem defines. Exit status: 0 all right, 1 something "
        "differs, 2 bad input.", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='PROBLEM is a problem file or the name of a published vector (kfac-ref vectors). THEIRS is a JSON\n'
        'object with any of the quantities (kfac-ref quantities): {"A": [[[..], ..], ..], "G": [..], "step": [..]}; a\n'
        'per-layer quantity is a list with one matrix per layer, in an npz the arrays A_0, A_1, ...')
    parser.add_argument("problem", metavar="PROBLEM", help="problem.json or .npz, or a published vector's name")
    parser.add_argument("theirs", metavar="THEIRS", help="your values, JSON or npz")
    parser.add_argument("--dialect", metavar="NAME", help="compare in the conventions of an implementation (kfac-ref "
                                                          "dialects)")
    parser.add_argument("--rtol", type=float, metavar="R", help="the largest error that counts as rounding, relative "
                                                                "to the largest entry of an array")
    parser.add_argument("--precision", metavar="P", help="of your numbers: double, single, half or a number of digits "
                                                         "(default: inferred for each array)")
    parser.add_argument("--samples", type=int, metavar="M", help="targets per example behind a G_sampled whose targets "
                                                                 "are not in the problem (default: inferred)")
    parser.add_argument("--layout", metavar="torch", help="gradient, step and what else is shaped like the weights are "
                                                          "PyTorch's W0, b0, W1, b1, ... or objects with its names")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_guarded(_check))

    parser = commands.add_parser("reference", help="compute the right values of a problem's quantities")
    parser.add_argument("problem", metavar="PROBLEM", help="problem.json or .npz, or a published vector's name")
    parser.add_argument("--out", type=Path, metavar="FILE", help="output file (default: standard output)")
    _add_force(parser)
    parser.add_argument("--only", metavar="NAMES", help="which quantities, such as A,G,step (default: all)")
    parser.set_defaults(run=_guarded(_reference))

    for name, run, text in (("quantities", _quantities, "list every quantity with its shape, equation and source"),
                            ("mistakes", _mistakes, "list the mistakes that the diagnosis knows")):
        commands.add_parser(name, help=text).set_defaults(run=_guarded(run))
    parser = commands.add_parser("vectors", help="list the published test vectors, or copy them")
    parser.add_argument("--copy", type=Path, metavar="DIR", help="copy the files to this folder")
    _add_force(parser)
    parser.set_defaults(run=_guarded(_vectors))
    parser = commands.add_parser("dialects", help="list what known implementations compute under the name K-FAC")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.set_defaults(run=_guarded(_dialects))

    problem = commands.add_parser("problem", help="make a problem file from arrays").add_subparsers(
        dest="action", required=True, metavar="ACTION")
    new = problem.add_parser(
        "new", help="make a problem from weights and data", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make a problem file from arrays as another framework holds them.",
        epilog='ARRAYS is JSON {"weights": [..], "biases": [..], "x": .., "y": .., "targets": ..} or an npz with\n'
        'weights_0, weights_1, ..., biases_0, ..., x, y, targets. Optional are biases, targets, direction and delta_0\n'
        '(shaped like [W b]), and previous: {"k": .., "A": [..], "G": [..]}; in an npz previous_k, previous_A_0, ...')
    new.add_argument("arrays", metavar="ARRAYS", help="JSON or npz")
    new.add_argument("--out", type=Path, required=True, metavar="FILE", help="problem.json or problem.npz")
    _add_force(new)
    new.add_argument("--hidden", default="", metavar="NAMES", help="nonlinearities of the hidden layers: tanh,tanh")
    new.add_argument("--likelihood", default="categorical", metavar="NAME", help="gaussian, categorical or bernoulli")
    new.add_argument("--noise-variance", type=float, default=1.0, metavar="V", help="of the gaussian likelihood, whose "
                                                                                    "loss is 1/(2V) ||z - y||^2")
    new.add_argument("--layout", default="out,in", metavar="L", help="out,in; in,out (JAX, TensorFlow); or torch: the "
                     "names of a state dict, or weights that are W0, b0, W1, b1, ...")
    new.add_argument("--bias", metavar="B", help="joint-last, joint-first, separate or none (default: separate if "
                                                 "there are biases, else joint-last)")
    new.add_argument("--kl-clip", metavar="KAPPA,LR", help="define kl_clip, with this bound and learning rate")
    new.add_argument("--damping", type=float, default=0.0, metavar="D", help="lambda + eta, under the root")
    new.add_argument("--weight-decay", type=float, default=0.0, metavar="ETA", help="eta")
    new.set_defaults(run=_guarded(_new))


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace existing files (default: refuse, except if they "
                                                             "hold the same bytes already)")


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Report bad input in one line, with exit status 2."""
    def guarded(arguments: argparse.Namespace) -> int:
        """Run the command, and turn its errors into a line and a status."""
        try:
            return run(arguments)
        except (ProblemError, OverwriteError, OSError) as error:
            if isinstance(error, OSError) and error.filename is None:       # not bad input
                raise
            print(f"kfac-ref: {error}", file=sys.stderr)
            return 2
    return guarded


def _problem(name: str) -> Problem:
    if name in published.names():
        return published.vector(name).problem
    if not Path(name).exists():
        raise ProblemError(f"{name}: there is no such file or vector (kfac-ref vectors lists them)"
                           f"{near(name, published.names())}")
    return Problem.read(name)


def _check(arguments: argparse.Namespace) -> int:
    if arguments.rtol is not None and not 0 < arguments.rtol < 1:
        raise ProblemError(f"--rtol must be above 0 and below 1, got {arguments.rtol:g}")
    if arguments.samples is not None and not 1 <= arguments.samples <= 10**6:
        raise ProblemError(f"--samples must be 1..1000000, got {arguments.samples}")
    if arguments.layout is not None:
        check_known("--layout", arguments.layout, ("torch",))
        if arguments.dialect is not None:
            raise ProblemError("--layout must not be given with --dialect, which has a layout of its own")
    problem, theirs = _problem(arguments.problem), read_quantities(arguments.theirs, arguments.layout)
    try:
        report = check(problem, theirs, arguments.dialect, arguments.rtol, arguments.samples,
                       arguments.precision)
    except ProblemError as error:
        raise ProblemError(f"{arguments.theirs}: {error}") from None
    print(json.dumps(report.plain(), indent=1) if arguments.json else report)
    return 0 if report.ok else 1


def _reference(arguments: argparse.Namespace) -> int:
    problem = _problem(arguments.problem)
    reference = Reference(problem)
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else reference.names()
    found, left_out = {}, []
    for name in names:
        if name not in QUANTITIES:
            raise ProblemError(f"--only: {name!r} is not a quantity (kfac-ref quantities lists them)"
                               f"{near(name, QUANTITIES)}")
        if lacks := missing(QUANTITIES[name], problem):
            raise ProblemError(f"--only {name}: the problem has no {lacks}")
        try:
            found[name] = plain(reference[name])
        except ValueError as error:
            if arguments.only:
                raise ProblemError(f"{name} cannot be computed: {error}") from None
            left_out.append(f"{name} left out: {error}")
    text = "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()) + "\n}\n"
    if arguments.out:
        write(arguments.out, text, force=arguments.force)
        print(f"wrote {len(found)} quantities to {arguments.out}")
    else:
        print(text, end="")
    for line in left_out:
        print(line, file=sys.stderr)
    return 0


def _quantities(arguments: argparse.Namespace) -> int:
    rows = [(q.name, q.symbol, q.shape, q.equation, q.source) for q in QUANTITIES.values()]
    print("\n".join(aligned([("name", "symbol", "shape", "equation", "source"), *rows])))
    print("\nN examples, C outputs, L layers, m x n weights per layer (bias last), P weights in total, T steps")
    return 0


def _mistakes(arguments: argparse.Namespace) -> int:
    for group in dict.fromkeys(m.group for m in CATALOGUE.values()):
        print(f"{group}\n{'-' * len(group)}")
        for m in CATALOGUE.values():
            if m.group == group:
                print(textwrap.fill(f"{m.name}: {m.what}. Why it is wrong: {m.why}. Remedy: {m.remedy}.", 118,
                                    subsequent_indent="    "))
        print()
    print(f"{len(CATALOGUE)} mistakes")
    return 0


def _vectors(arguments: argparse.Namespace) -> int:
    if arguments.copy:
        arguments.copy.mkdir(parents=True, exist_ok=True)
        write_all({arguments.copy / path.name: path.read_bytes() for path in published.FOLDER.iterdir()},
                  force=arguments.force)
        print(f"copied the vectors to {arguments.copy}")
        return 0
    rows = []
    for name in published.names():
        content = load(published.FOLDER / f"{name}.json")
        rows.append((name, "-".join(map(str, content["network"]["sizes"])), content["likelihood"],
                     str(len(content.get("flags", ()))), content["description"]))
    print("\n".join(aligned([("name", "net", "likelihood", "mistakes it detects", "description"), *rows])))
    print(f"\n{len(rows)} vectors in {published.FOLDER}")
    return 0


def _dialects(arguments: argparse.Namespace) -> int:
    from .dialects import table

    rows = table()
    if arguments.json:
        print(json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]], indent=1))
        return 0
    for row in rows[1:]:
        print(row[0])
        for head, cell in zip(rows[0][1:], row[1:], strict=True):
            print(textwrap.fill(f"{head}: {cell}", 118, initial_indent="    ", subsequent_indent="        "))
    return 0


def _new(arguments: argparse.Namespace) -> int:
    content, torch = load(arguments.arrays), arguments.layout == "torch"
    try:
        given = _arrays(content, torch)
        if arguments.kl_clip is not None:
            given["kl_clip"] = KLClip(*_two_numbers("--kl-clip", arguments.kl_clip))
        hidden = [name.strip() for name in arguments.hidden.split(",") if name.strip()]
        problem = Problem.from_arrays(**given, hidden=hidden, name=arguments.out.stem, **{
            name: getattr(arguments, name)
            for name in ("likelihood", "layout", "bias", "damping", "weight_decay", "noise_variance")})
    except ProblemError as error:
        raise ProblemError(f"{arguments.arrays}: {error}") from None
    problem.write(arguments.out, arguments.force)
    widths = "-".join(map(str, problem.sizes))
    print(f"wrote {arguments.out}: {widths}, {problem.likelihood}, {len(problem.x)} examples")
    return 0


def _arrays(content: Any, torch: bool) -> dict[str, Any]:
    """Return the fields of a problem that a file of arrays holds."""
    layered = ("weights", "biases", "direction", "delta_0", "previous_A", "previous_G")
    if isinstance(content, Mapping):
        if torch:                                           # the names of a state dict, beside x and y
            content = {f"weights.{name}" if name.endswith((".weight", ".bias")) and not name.startswith(layered)
                       else name: value for name, value in content.items()}
        content = gathered(content, layered, by_name=torch)
        if before := [name for name in content if name.startswith("previous_")]:
            content["previous"] = {name.removeprefix("previous_"): content.pop(name) for name in before}
    check_keys("the file", content, ("weights", "x", "y"), ("biases", "targets", "direction", "delta_0", "previous"))
    for name in ("weights", "biases"):
        if name in content and not isinstance(content[name], list):
            raise ProblemError(f"{name} must be a list with one array per layer")
    if "previous" in content:
        check_keys("previous", content["previous"], ("k", "A", "G"), ())
        content["previous"] = Previous(**content["previous"])
    return content


def _two_numbers(name: str, text: str) -> tuple[float, float]:
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise ProblemError(f"{name} must be two numbers, such as 0.001,0.1; got {text!r:.60}") from None
    return first, second
