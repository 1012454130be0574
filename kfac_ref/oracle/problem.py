"""A problem: everything that defines the values of K-FAC, and its files.

Nothing is random: sampled targets are stored as arrays, so that every language gets the same values. A file is JSON, in
which an array is ``{"shape": [7, 3], "data": [flat, row-major]}``, or an npz with the same content.
`problem.schema.json` is the published schema of the JSON form; the checks here go beyond it (shapes that must fit each
other, labels in range, finite numbers).

The conventions are those of the whole package, and every file repeats them (`CONVENTIONS`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..checks import Array
from ..files import write
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..model import Model, Point
from ..network import ACTIVATIONS, MLP
from .checks import (
    ProblemError,
    check_arrays,
    check_counted,
    check_direction,
    check_keys,
    check_known,
    check_listed,
    check_real,
    check_rows,
    check_targets,
    checked,
    read_array,
)
from .files import dumps, load, plain, take_arrays

FORMAT, VERSION = "kfac_ref problem", 1
CONVENTIONS: dict[str, Any] = {
    "examples": "rows", "bias": "last column", "vec": "columns", "reduction": "mean", "squared_loss": 0.5,
    "expectation": "named", "damping": "factored",
    "words": "Examples are rows, weights are (out, in + 1) with the bias in the last column, and vec stacks columns: "
             "the block of a layer is kron(A, G). Losses and gradients are means over the examples, the loss of "
             "one example is the sum over its outputs, and the squared loss is 1/2 ||z - y||^2. G without a suffix is "
             "the exact expectation over the model's own prediction; the damping is the number under the root, "
             "lambda + eta."}
LIKELIHOODS: dict[str, type[Any]] = {"gaussian": Gaussian, "categorical": Categorical, "bernoulli": Bernoulli}
LAYOUTS = ("out,in", "in,out")
STRUCTURES = ("block-diagonal", "block-tridiagonal")


@dataclass(frozen=True, eq=False)
class Previous:
    """A running average before the batch: its factors and its number k of batches."""

    k: int
    A: tuple[Array, ...]
    G: tuple[Array, ...]


@dataclass(frozen=True)
class KLClip:
    """The KL clip of a step: its bound kappa and the learning rate."""

    kappa: float
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of a trajectory: rows of the problem, the parts for the factors and the exact F, sampled targets."""

    rows: Any
    rows1: Any
    rows2: Any
    targets: Any


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The hyper-parameters of Algorithm 2, named as in `kfac_ref.optimizers.KFAC`, and its batches."""

    lambda_0: float
    T1: int
    T2: int
    T3: int
    omega1: float
    omega2: float
    ceiling: float
    gamma_min: float
    gamma_max: float
    lambda_floor: float
    structure: str
    momentum: bool
    batches: tuple[Batch, ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that defines the values. A ProblemError names the field that does not fit.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the layers, the input first.
    hidden : sequence of str
        The nonlinearity of each hidden layer.
    weights : list of (d_{i+1}, d_i + 1) arrays
        The bias in the last column.
    y : (N,) or (N, C) array
        Labels or targets.
    damping : float
        The number under the root, lambda + eta.
    weight_decay : float
        The eta of the paper.
    targets : (M, N) or (M, N, C) array, optional
        Sampled targets, M per example.
    direction, delta_0 : lists of arrays shaped like the weights, optional
        The direction for Fisher products, and the last step.
    previous : Previous, optional
        The running average before this batch.
    dtype : str
        ``float32`` if the inputs are in single precision; values are then compared to fewer digits.
    name, description : str
        For people.
    """

    sizes: tuple[int, ...]
    hidden: tuple[str, ...]
    likelihood: str
    weights: tuple[Array, ...]
    x: Array
    y: Any
    damping: float = 0.0
    weight_decay: float = 0.0
    targets: Any = None
    direction: tuple[Array, ...] | None = None
    delta_0: tuple[Array, ...] | None = None
    previous: Previous | None = None
    kl_clip: KLClip | None = None
    trajectory: Trajectory | None = None
    dtype: str = "float64"
    name: str = ""
    description: str = ""
    model: Model = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set(self, "sizes", tuple(check_counted("network.sizes", n) for n in check_listed("network.sizes", self.sizes)))
        _set(self, "hidden", tuple(check_listed("network.hidden", self.hidden)))
        if len(self.sizes) < 2:
            raise ProblemError(f"network.sizes must hold at least two widths, got {list(self.sizes)}")
        if len(self.hidden) != len(self.sizes) - 2:
            raise ProblemError(f"network.hidden must name the nonlinearity of each of the {len(self.sizes) - 2} hidden "
                               f"layers, got {len(self.hidden)} names")
        for i, name in enumerate(self.hidden):
            check_known(f"network.hidden[{i}]", name, ACTIVATIONS)
        likelihood: Likelihood = check_known("likelihood", self.likelihood, LIKELIHOODS)()
        check_known("dtype", self.dtype, ("float64", "float32"))
        for name in ("damping", "weight_decay"):
            _set(self, name, checked(name, checks.number, getattr(self, name), 0))
        _set(self, "model", Model(MLP(self.sizes, self.hidden or "tanh"), likelihood, self.weight_decay))
        shapes = self.model.network.shapes
        for name in ("weights", "direction", "delta_0"):
            if name == "weights" or getattr(self, name) is not None:
                _set(self, name, check_direction(name, getattr(self, name), shapes))
        _set(self, "x", check_real("x", self.x, (None, self.sizes[0])))
        N, C = len(self.x), self.sizes[-1]
        _set(self, "y", check_targets("y", self.y, likelihood, (N,), C))
        if self.targets is not None:
            _set(self, "targets", check_targets("targets", self.targets, likelihood, (None, N), C))
        if self.previous is not None:
            _set(self, "previous", self._previous(self.previous))
        if self.kl_clip is not None:
            checked("kl_clip.kappa", checks.number, self.kl_clip.kappa, 0)
            checked("kl_clip.learning_rate", lambda n, v: checks.number(n, v, 0, above=True),
                     self.kl_clip.learning_rate)
        if self.trajectory is not None:
            _set(self, "trajectory", self._trajectory(self.trajectory, likelihood))

    @classmethod
    def from_arrays(cls, weights: Sequence[Any], x: Any, y: Any, *, hidden: Sequence[str] = (),
                    likelihood: str = "categorical", biases: Sequence[Any] | None = None, layout: str = "out,in",
                    bias: str | None = None, **rest: Any) -> Problem:
        """Make a problem from arrays as another framework holds them.

        Its ``dtype`` is float32 if all weights are.

        Parameters
        ----------
        biases : sequence of (d_{i+1},) vectors, optional
            If they are separate from the weights.
        layout : {"out,in", "in,out"}
            Whether a row of a weight matrix belongs to an output (PyTorch) or to an input (JAX, TensorFlow).
        bias : {"joint-last", "joint-first", "separate"}, optional
            Whether the weights hold the biases as the last or the first input, or `biases` does (default: separate if
            `biases` are given, else joint-last).
        **rest : Any
            ``damping``, ``weight_decay``, ``targets`` and so on, as in `Problem`; ``direction`` and ``delta_0`` in our
            own layout.
        """
        check_known("layout", layout, LAYOUTS)
        bias = bias or ("joint-last" if biases is None else "separate")
        check_known("bias", bias, ("joint-last", "joint-first", "separate"))
        if (bias == "separate") != (biases is not None):
            raise ProblemError(f"biases must be given if and only if bias is 'separate', got bias = {bias!r}")
        if not len(weights):
            raise ProblemError("weights must hold at least one matrix, got none")
        single = all(np.asarray(W).dtype == np.float32 for W in weights)
        rest.setdefault("dtype", "float32" if single else "float64")
        arrays = [check_real(f"weights[{i}]", W, (None, None)) for i, W in enumerate(weights)]
        try:
            ours = _joint(arrays, biases, layout, bias)
            sizes = (ours[0].shape[1] - 1, *(len(W) for W in ours))
            return cls(sizes, tuple(hidden), likelihood, ours, x, y, **rest)
        except ProblemError as error:
            other = LAYOUTS[1 - LAYOUTS.index(layout)]
            if _chained(arrays, biases, x, other) and not _chained(arrays, biases, x, layout):
                raise ProblemError(f"{error}; --layout {other} would fit") from None
            raise

    def at(self, rows: Any = None) -> Point:
        """Return the model at the weights on the examples (default: all)."""
        return self.model.at(self.weights, self.x if rows is None else self.x[rows])

    def replace(self, **changes: Any) -> Problem:
        """Return the problem with some of its fields changed."""
        return replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """Return the content of the problem's file."""
        content: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "name": self.name, "description": self.description,
            "conventions": CONVENTIONS, "network": {"sizes": list(self.sizes), "hidden": list(self.hidden)},
            "likelihood": self.likelihood, "dtype": self.dtype, "weight_decay": self.weight_decay,
            "damping": self.damping, "weights": list(self.weights), "x": self.x, "y": self.y}
        for name in ("targets", "direction", "delta_0", "previous", "kl_clip", "trajectory"):
            if (value := getattr(self, name)) is not None:
                content[name] = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) \
                    else value
        if self.trajectory is not None:
            content["trajectory"]["batches"] = [
                {"rows": b.rows.tolist(), "rows1": b.rows1.tolist(), "rows2": b.rows2.tolist(), "targets": b.targets}
                for b in self.trajectory.batches]
        found: dict[str, Any] = plain(content)
        return found

    def write(self, path: Path | str, force: bool = False) -> None:
        """Write the problem as JSON or, if the name ends in .npz, as npz.

        Raises an OverwriteError if a file exists and holds something else, except with `force`.
        """
        path = Path(path)
        if path.suffix != ".npz":
            write(path, dumps(self.plain()), force=force)
            return
        arrays: dict[str, Any] = {}
        content = take_arrays(self.plain(), arrays)
        write(path, lambda file: np.savez(file, problem=np.array(json.dumps(content)), **arrays), force=force)

    @classmethod
    def read(cls, path: Path | str) -> Problem:
        """Read a problem, or the problem of a test vector; a ProblemError names the file and the place in it."""
        return cls.of(load(path), str(path))

    @classmethod
    def of(cls, content: Any, name: str = "problem") -> Problem:
        """Make a problem from the content of its file, as `plain` returns it; errors begin with `name`."""
        try:
            return _problem(content)
        except ProblemError as error:
            raise ProblemError(f"{name}: {error}") from None

    def _previous(self, given: Previous) -> Previous:
        k = check_counted("previous.k", given.k, 0)
        A, G = given.A, given.G
        if k == 0 and not len(A) and not len(G):
            return Previous(0, (), ())
        return Previous(k, check_direction("previous.A", A, [(n + 1, n + 1) for n in self.sizes[:-1]]),
                        check_direction("previous.G", G, [(n, n) for n in self.sizes[1:]]))

    def _trajectory(self, t: Trajectory, likelihood: Likelihood) -> Trajectory:
        where = "trajectory."
        for name in ("T1", "T2", "T3"):
            check_counted(where + name, getattr(t, name))
        if t.T2 % t.T3:
            raise ProblemError(f"trajectory.T2 must be a multiple of T3, got T2 = {t.T2} and T3 = {t.T3}")
        for name in ("lambda_0", "gamma_min", "gamma_max", "lambda_floor"):
            checked(where + name, checks.number, getattr(t, name), 0)
        for name in ("omega1", "omega2", "ceiling"):
            checked(where + name, checks.number, getattr(t, name), 0, 1)
        if min(t.omega1, t.omega2) == 0:
            raise ProblemError("trajectory.omega1 and omega2 must be above 0")
        if t.gamma_max < t.gamma_min:
            raise ProblemError(f"trajectory.gamma_max must be at least gamma_min = {t.gamma_min:g}, got "
                               f"{t.gamma_max:g}")
        check_known(where + "structure", t.structure, STRUCTURES)
        if not isinstance(t.momentum, bool):
            raise ProblemError(f"trajectory.momentum must be true or false, got {t.momentum!r}")
        batches = []
        for i, b in enumerate(t.batches):
            place = f"trajectory.batches[{i}]."
            rows = check_rows(place + "rows", b.rows, len(self.x))
            rows1, rows2 = (check_rows(place + name, getattr(b, name), len(rows)) for name in ("rows1", "rows2"))
            targets = check_targets(place + "targets", b.targets, likelihood, (len(rows1),), self.sizes[-1])
            batches.append(Batch(rows, rows1, rows2, targets))
        if not batches:
            raise ProblemError("trajectory.batches must hold at least one batch")
        return replace(t, batches=tuple(batches))


def _joint(weights: Sequence[Array], biases: Sequence[Any] | None, layout: str, bias: str) -> tuple[Array, ...]:
    """Return the matrices (out, in + 1) with the biases in the last column."""
    ours = []
    for i, W in enumerate(weights):
        W = W if layout == "out,in" else W.T
        if biases is not None:
            if len(biases) != len(weights):
                raise ProblemError(f"biases must hold one vector per layer: expected {len(weights)}, got {len(biases)}")
            W = np.column_stack([W, check_real(f"biases[{i}]", biases[i], (len(W),))])
        elif bias == "joint-first":
            W = np.column_stack([W[:, 1:], W[:, 0]])
        ours.append(np.ascontiguousarray(W))
    return tuple(ours)


def _chained(weights: Sequence[Array], biases: Sequence[Any] | None, x: Any, layout: str) -> bool:
    """Return whether x, the weights and the biases fit each other in a layout."""
    shapes = [W.shape if layout == "out,in" else W.shape[::-1] for W in weights]
    given = [np.shape(read_array("x", x))[-1:], *((m,) for m, _ in shapes)]
    return all(given[i] == (n - (biases is None),) for i, (_, n) in enumerate(shapes)) and (
        biases is None or [np.shape(read_array("biases", b)) for b in biases] == given[1:])


def _problem(content: Any) -> Problem:
    optional = ("targets", "direction", "delta_0", "previous", "kl_clip", "trajectory")
    required = ("format", "version", "conventions", "network", "likelihood", "weights", "x", "y", "damping")
    check_keys("the file", content, required,
          (*optional, "name", "description", "dtype", "weight_decay", "expected", "flags"))
    if content["format"] != FORMAT:
        raise ProblemError(f"format must be {FORMAT!r}, got {json.dumps(content['format'])[:60]}")
    if content["version"] != VERSION or isinstance(content["version"], bool):
        raise ProblemError(f"version must be {VERSION}, got {json.dumps(content['version'])[:60]}")
    _conventions(content["conventions"])
    for name in required:
        if content[name] is None:
            raise ProblemError(f"{name} must not be null")
    check_keys("network", content["network"], ("sizes", "hidden"), ())
    given: dict[str, Any] = {name: content[name] for name in ("likelihood", "dtype", "damping", "weight_decay", "name",
                                                              "description") if name in content}
    for name in ("name", "description"):
        if not isinstance(given.get(name, ""), str):
            raise ProblemError(f"{name} must be text, got {json.dumps(given[name])[:40]}")
    for names, read in ((("x", "y", "targets"), read_array), (("weights", "direction", "delta_0"), check_arrays)):
        given |= {name: read(name, content[name]) for name in names if content.get(name) is not None}
    if content.get("previous") is not None:
        p = content["previous"]
        check_keys("previous", p, ("k", "A", "G"), ())
        given["previous"] = Previous(p["k"], check_arrays("previous.A", p["A"]), check_arrays("previous.G", p["G"]))
    if content.get("kl_clip") is not None:
        check_keys("kl_clip", content["kl_clip"], ("kappa", "learning_rate"), ())
        given["kl_clip"] = KLClip(**{name: checked(f"kl_clip.{name}", checks.number, v, 0)
                                     for name, v in content["kl_clip"].items()})
    if content.get("trajectory") is not None:
        t = content["trajectory"]
        check_keys("trajectory", t, tuple(f.name for f in fields(Trajectory)), ())
        batches = []
        for i, b in enumerate(check_listed("trajectory.batches", t["batches"])):
            place = f"trajectory.batches[{i}]"
            check_keys(place, b, tuple(f.name for f in fields(Batch)), ())
            batches.append(Batch(**{name: read_array(f"{place}.{name}", b[name]) for name in b}))
        given["trajectory"] = Trajectory(**{**t, "batches": tuple(batches)})
    return Problem(sizes=content["network"]["sizes"], hidden=content["network"]["hidden"], **given)


def _conventions(given: Any) -> None:
    """Raise if a file has other conventions."""
    if not isinstance(given, Mapping):
        raise ProblemError(f"conventions must be an object, got {type(given).__name__}")
    for name, value in CONVENTIONS.items():
        if name == "words":
            if not isinstance(given.get("words", ""), str):
                raise ProblemError("conventions.words must be text")
        elif name not in given:
            raise ProblemError(f"conventions.{name} is missing; it must be {json.dumps(value)}")
        elif given[name] != value or isinstance(given[name], bool):
            raise ProblemError(f"conventions.{name} must be {json.dumps(value)} in this format, got "
                               f"{json.dumps(given[name], default=str)[:60]}; Problem.from_arrays takes other layouts")


def _set(problem: Problem, name: str, value: Any) -> None:
    object.__setattr__(problem, name, value)
