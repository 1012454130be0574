"""A problem: everything that defines the values of K-FAC, and its files.

Nothing is random: sampled targets are stored as arrays, so that every language gets the same values. A file is JSON, in
which an array is ``{"shape": [7, 3], "data": [flat, row-major]}``, or an npz with the same content.
`problem.schema.json` is the published schema of the JSON form; the checks here go beyond it (shapes that must fit each
other, labels in range, finite numbers).

The conventions are those of the whole package, and every file repeats them (`CONVENTIONS`). Version 2 of the format
adds layers without bias (``network.bias``) and ``noise_variance``; a problem without these is written as version 1.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import Array
from ..files import write
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..model import Model, Point
from ..network import ACTIVATIONS, MLP
from . import checks
from .checks import ProblemError, read_array
from .files import dumps, joined, load, pairs, plain, take_arrays

FORMAT, VERSIONS = "kfac_ref problem", (1, 2)
CONVENTIONS: dict[str, Any] = {
    "examples": "rows", "bias": "last column", "vec": "columns", "reduction": "mean", "squared_loss": 0.5,
    "expectation": "named", "damping": "factored",
    "words": "Examples are rows, weights are (out, in + 1) with the bias in the last column, and vec stacks columns: "
             "the block of a layer is kron(A, G). Losses and gradients are means over the examples, the loss of "
             "one example is the sum over its outputs, and the squared loss is 1/2 ||z - y||^2. G without a suffix is "
             "the exact expectation over the model's own prediction; the damping is the number under the root, "
             "lambda + eta."}
LIKELIHOODS: dict[str, type[Any]] = {"gaussian": Gaussian, "categorical": Categorical, "bernoulli": Bernoulli}
OPTIONAL = ("targets", "direction", "delta_0", "previous", "kl_clip", "trajectory")
LAYOUTS = ("out,in", "in,out", "torch")
BIASES = ("joint-last", "joint-first", "separate", "none")
STRUCTURES = ("block-diagonal", "block-tridiagonal")
#: The largest number of layers, and of steps of a trajectory.
MAX_LENGTH = 1000

#: What is said of other libraries' names for `ACTIVATIONS`, by the beginning of the name in lower case.
OTHER_HIDDEN = {
    "sigmoid": "it is called logistic here",
    "linear": "the layers are in the weights; a layer without a nonlinearity is called identity here",
    **dict.fromkeys(("batchnorm", "groupnorm", "instancenorm"),
                    "out of scope, because its outputs depend on other examples or units; in evaluation, fold its "
                    "scale and shift into the layer beside it"),
    "dropout": "out of scope, because it is random, and a problem defines its values: compare without it",
    **dict.fromkeys(("conv", "attention", "multihead", "embedding", "maxpool", "avgpool", "layernorm", "rnn", "lstm",
                     "gru", "transformer", "softmax"),
                    "out of scope, because the network here has fully connected layers with a function of each entry"),
    **dict.fromkeys(("elu", "gelu", "selu", "celu", "glu", "silu", "swish", "mish", "prelu", "rrelu", "relu6",
                     "leakyrelu", "hardtanh", "hardsigmoid", "hardswish", "softsign", "logsigmoid", "sin"),
                    f"out of scope, because only {', '.join(ACTIVATIONS)} have their derivatives here")}
#: The same for `LIKELIHOODS`.
OTHER_LIKELIHOODS = {
    **dict.fromkeys(("mse", "l2", "squared", "meansquared"),
                    "it is called gaussian here, with 1/2 ||z - y||^2 of each example; for MSELoss, which averages "
                    "over the C outputs too, add --noise-variance C/2"),
    **dict.fromkeys(("crossentropy", "softmax", "nll"), "it is called categorical here"),
    **dict.fromkeys(("bce", "binarycross", "sigmoid", "logistic"),
                    "it is called bernoulli here, a sum over the outputs of each example"),
    **dict.fromkeys(("l1", "huber", "smoothl1", "poisson", "hinge", "kldiv", "ctc"),
                    "out of scope, because F_R is written here for these three only")}


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
    """Everything that defines the values. A ProblemError names the field that does not fit."""

    sizes: tuple[int, ...]      # widths of the layers, the input first
    hidden: tuple[str, ...]     # the nonlinearity of each hidden layer
    likelihood: str
    weights: tuple[Array, ...]  # (d_{i+1}, d_i + 1) each, the bias in the last column
    x: Array
    y: Any                      # labels or targets, (N,) or (N, C)
    damping: float = 0.0        # the number under the root, lambda + eta
    weight_decay: float = 0.0   # the eta of the paper
    targets: Any = None         # sampled targets, (M, N) or (M, N, C): M per example
    direction: tuple[Array, ...] | None = None      # for Fisher products; shaped like the weights
    delta_0: tuple[Array, ...] | None = None        # the last step
    previous: Previous | None = None                # the running average before this batch
    kl_clip: KLClip | None = None
    trajectory: Trajectory | None = None
    dtype: str = "float64"      # float32 if the inputs are in single precision; values are compared to fewer digits
    name: str = ""
    description: str = ""
    bias: Any = True            # whether the layers have biases: one bool, or one per layer
    noise_variance: float = 1.0     # of the gaussian likelihood
    model: Model = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = checks.check_listed("network.sizes", self.sizes)
        if not 2 <= len(sizes) <= MAX_LENGTH + 1:
            raise ProblemError(f"network.sizes must hold at least two widths and at most those of {MAX_LENGTH} layers, "
                               f"got {len(sizes)}")
        _set(self, "sizes", tuple(checks.check_counted("network.sizes", n) for n in sizes))
        _set(self, "hidden", tuple(checks.check_listed("network.hidden", self.hidden)))
        if len(self.hidden) != len(self.sizes) - 2:
            raise ProblemError(f"network.hidden must name the nonlinearity of each of the {len(self.sizes) - 2} hidden "
                               f"layers, got {len(self.hidden)} names")
        for i, name in enumerate(self.hidden):
            checks.check_known(f"network.hidden[{i}]", name, ACTIVATIONS, OTHER_HIDDEN)
        bias = self.bias if isinstance(self.bias, bool) else tuple(checks.check_listed("network.bias", self.bias))
        bias = (bias,) * (len(self.sizes) - 1) if isinstance(bias, bool) else bias
        if len(bias) != len(self.sizes) - 1 or not all(isinstance(b, bool) for b in bias):
            raise ProblemError(f"network.bias must be true, false, or a list of these for the {len(self.sizes) - 1} "
                               f"layers, got {len(bias)} entries")
        _set(self, "bias", bias)
        form = checks.check_known("likelihood", self.likelihood, LIKELIHOODS, OTHER_LIKELIHOODS)
        _set(self, "noise_variance", checks.check_number("noise_variance", self.noise_variance, 0, above=True))
        if form is not Gaussian and self.noise_variance != 1:
            raise ProblemError(f"noise_variance belongs to the gaussian likelihood, not to {self.likelihood}")
        likelihood: Likelihood = Gaussian(self.noise_variance) if form is Gaussian else form()
        checks.check_known("dtype", self.dtype, ("float64", "float32"))
        for name in ("damping", "weight_decay"):
            _set(self, name, checks.check_number(name, getattr(self, name), 0))
        _set(self, "model", Model(MLP(self.sizes, self.hidden, bias), likelihood, self.weight_decay))
        shapes = self.model.network.shapes
        for name in ("weights", "direction", "delta_0"):
            if name == "weights" or getattr(self, name) is not None:
                _set(self, name, checks.check_direction(name, getattr(self, name), shapes))
        _set(self, "x", checks.check_real("x", self.x, (None, self.sizes[0])))
        N, C = len(self.x), self.sizes[-1]
        _set(self, "y", checks.check_targets("y", self.y, likelihood, (N,), C))
        if self.targets is not None:
            _set(self, "targets", checks.check_targets("targets", self.targets, likelihood, (None, N), C))
        if self.previous is not None:
            _set(self, "previous", self._previous(self.previous))
        if self.kl_clip is not None:
            kappa, rate = self.kl_clip.kappa, self.kl_clip.learning_rate
            _set(self, "kl_clip", KLClip(checks.check_number("kl_clip.kappa", kappa, 0),
                                         checks.check_number("kl_clip.learning_rate", rate, 0, above=True)))
        if self.trajectory is not None:
            _set(self, "trajectory", self._trajectory(self.trajectory, likelihood))

    @classmethod
    def from_arrays(cls, weights: Sequence[Any], x: Any, y: Any, *, hidden: Sequence[str] = (),
                    likelihood: str = "categorical", biases: Sequence[Any] | None = None, layout: str = "out,in",
                    bias: str | None = None, **rest: Any) -> Problem:
        """Make a problem from arrays as another framework holds them; its ``dtype`` is float32 if all weights are.

        Parameters
        ----------
        layout : {"out,in", "in,out", "torch"}
            Whether a row of a weight matrix belongs to an output (PyTorch) or to an input (JAX, TensorFlow). With
            "torch", `weights` is a state dict, or its values in order: W0, b0, W1, b1, ...
        bias : {"joint-last", "joint-first", "separate", "none"}, optional
            Whether the weights hold the biases as the last or the first input, or `biases` has a vector per layer (None
            for a layer without), or no layer has biases (default: separate if `biases` are given, else joint-last).
        **rest : Any
            Other fields of `Problem`; ``direction`` and ``delta_0`` in our own layout, or in torch's with "torch".
        """
        checks.check_known("layout", layout, LAYOUTS)
        if layout == "torch":
            if biases is not None or bias is not None:
                raise ProblemError("biases and bias must not be given with the layout 'torch', whose weights hold both")
            parts = pairs("weights", weights)
            weights, biases = [W for W, _ in parts], [b for _, b in parts]
            rest |= {name: joined(name, rest[name]) for name in ("direction", "delta_0") if rest.get(name) is not None}
        bias = bias or ("joint-last" if biases is None else "separate")
        checks.check_known("bias", bias, BIASES)
        if (bias == "separate") != (biases is not None):
            raise ProblemError(f"biases must be given if and only if bias is 'separate', got bias = {bias!r}")
        if not len(weights):
            raise ProblemError("weights must hold at least one matrix, got none")
        if biases is not None and len(biases) != len(weights):
            raise ProblemError(f"biases must hold one vector per layer: expected {len(weights)}, got {len(biases)}")
        arrays = [read_array(f"weights[{i}]", W) for i, W in enumerate(weights)]
        rest.setdefault("dtype", "float32" if all(W.dtype == np.float32 for W in arrays) else "float64")
        arrays = [checks.check_real(f"weights[{i}]", W, (None, None)) for i, W in enumerate(arrays)]
        has = [b is not None for b in biases] if biases is not None else [bias != "none"] * len(arrays)
        try:
            ours = _joint(arrays, biases, layout, bias)
            sizes = (ours[0].shape[1] - has[0], *(len(W) for W in ours))
            return cls(sizes, tuple(hidden), likelihood, ours, x, y, bias=has, **rest)
        except ProblemError as error:
            joint = biases is None and bias != "none"
            if not _chained(arrays, biases, joint, x, layout):
                other = "in,out" if layout != "in,out" else "out,in"
                for option, fits in ((f"--layout {other}", _chained(arrays, biases, joint, x, other)),
                                     ("--bias none", joint and _chained(arrays, None, False, x, layout))):
                    if fits:
                        raise ProblemError(f"{error}; {option} would fit") from None
            raise

    def at(self, rows: Any = None) -> Point:
        """Return the model at the weights on the examples (default: all)."""
        return self.model.at(self.weights, self.x if rows is None else self.x[rows])

    def replace(self, **changes: Any) -> Problem:
        """Return the problem with some of its fields changed."""
        return replace(self, **changes)

    def changed(self, **values: Any) -> Problem:
        """Return a copy with some fields changed, without checks; the network must remain the same."""
        other = copy.copy(self)
        for name, value in values.items():
            _set(other, name, value)
        return other

    def plain(self) -> dict[str, Any]:
        """Return the content of the problem's file."""
        network: dict[str, Any] = {"sizes": list(self.sizes), "hidden": list(self.hidden)}
        if not all(self.bias):
            network["bias"] = list(self.bias) if any(self.bias) else False
        new = {} if self.noise_variance == 1 else {"noise_variance": self.noise_variance}
        content: dict[str, Any] = {
            "format": FORMAT, "version": 2 if new or "bias" in network else 1, "name": self.name,
            "description": self.description, "conventions": CONVENTIONS, "network": network,
            "likelihood": self.likelihood, **new, "dtype": self.dtype, "weight_decay": self.weight_decay,
            "damping": self.damping, "weights": list(self.weights), "x": self.x, "y": self.y}
        for name in OPTIONAL:
            if (value := getattr(self, name)) is not None:
                content[name] = _fields(value) if is_dataclass(value) else value
        if self.trajectory is not None:
            content["trajectory"]["batches"] = [_fields(b) | {
                n: getattr(b, n).tolist() for n in ("rows", "rows1", "rows2")} for b in self.trajectory.batches]
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
        k = checks.check_counted("previous.k", given.k, 0)
        A, G = checks.check_listed("previous.A", given.A), checks.check_listed("previous.G", given.G)
        if k == 0 and not len(A) and not len(G):
            return Previous(0, (), ())
        shapes = self.model.network.shapes
        return Previous(k, checks.check_direction("previous.A", A, [(n, n) for _, n in shapes]),
                        checks.check_direction("previous.G", G, [(m, m) for m, _ in shapes]))

    def _trajectory(self, t: Trajectory, likelihood: Likelihood) -> Trajectory:
        for name in ("T1", "T2", "T3"):
            checks.check_counted(f"trajectory.{name}", getattr(t, name))
        if t.T2 % t.T3:
            raise ProblemError(f"trajectory.T2 must be a multiple of T3, got T2 = {t.T2} and T3 = {t.T3}")
        for name in ("lambda_0", "gamma_min", "gamma_max", "lambda_floor"):
            checks.check_number(f"trajectory.{name}", getattr(t, name), 0)
        for name in ("omega1", "omega2", "ceiling"):
            checks.check_number(f"trajectory.{name}", getattr(t, name), 0, 1)
        if min(t.omega1, t.omega2) == 0:
            raise ProblemError("trajectory.omega1 and omega2 must be above 0")
        if t.gamma_max < t.gamma_min:
            raise ProblemError(f"trajectory.gamma_max must be at least gamma_min = {t.gamma_min:g}, got "
                               f"{t.gamma_max:g}")
        checks.check_known("trajectory.structure", t.structure, STRUCTURES)
        if not isinstance(t.momentum, bool):
            raise ProblemError(f"trajectory.momentum must be true or false, got {t.momentum!r}")
        batches = []
        for i, b in enumerate(t.batches):
            place = f"trajectory.batches[{i}]."
            rows = checks.check_rows(place + "rows", b.rows, len(self.x))
            rows1, rows2 = (checks.check_rows(place + name, getattr(b, name), len(rows)) for name in ("rows1", "rows2"))
            targets = checks.check_targets(place + "targets", b.targets, likelihood, (len(rows1),), self.sizes[-1])
            batches.append(Batch(rows, rows1, rows2, targets))
        if not batches:
            raise ProblemError("trajectory.batches must hold at least one batch")
        return replace(t, batches=tuple(batches))


def _joint(weights: Sequence[Array], biases: Sequence[Any] | None, layout: str, bias: str) -> tuple[Array, ...]:
    """Return the matrices (out, in + 1) with the biases in the last column."""
    ours = []
    for i, W in enumerate(weights):
        W = W.T if layout == "in,out" else W
        if biases is not None and biases[i] is not None:
            W = np.column_stack([W, checks.check_real(f"biases[{i}]", biases[i], (len(W),))])
        elif bias == "joint-first":
            W = np.column_stack([W[:, 1:], W[:, 0]])
        ours.append(np.ascontiguousarray(W))
    return tuple(ours)


def _chained(weights: Sequence[Array], biases: Sequence[Any] | None, joint: bool, x: Any, layout: str) -> bool:
    """Return whether x, the weights and the biases fit each other in a layout; `joint` if a bias is in the weights."""
    shapes = [W.shape[::-1] if layout == "in,out" else W.shape for W in weights]
    widths = [np.shape(read_array("x", x))[-1:], *((m,) for m, _ in shapes)]
    return all(widths[i] == (n - joint,) for i, (_, n) in enumerate(shapes)) and (biases is None or all(
        b is None or np.shape(read_array("biases", b)) == width for b, width in zip(biases, widths[1:], strict=True)))


def _problem(content: Any) -> Problem:
    required = ("format", "version", "conventions", "network", "likelihood", "weights", "x", "y", "damping")
    checks.check_keys("the file", content, required,
                      (*OPTIONAL, "name", "description", "dtype", "weight_decay", "noise_variance", "expected",
                       "flags"))
    if content["format"] != FORMAT:
        raise ProblemError(f"format must be {FORMAT!r}, got {json.dumps(content['format'])[:60]}")
    if content["version"] not in VERSIONS or isinstance(content["version"], bool):
        raise ProblemError(f"version must be {' or '.join(map(str, VERSIONS))}, got "
                           f"{json.dumps(content['version'])[:60]}")
    _conventions(content["conventions"])
    for name in required:
        if content[name] is None:
            raise ProblemError(f"{name} must not be null")
    checks.check_keys("network", content["network"], ("sizes", "hidden"), ("bias",))
    if content["version"] == 1:
        for name, place in (("bias", content["network"]), ("noise_variance", content)):
            if name in place:
                raise ProblemError(f"{name} needs version 2 of the format, got version 1")
    apart = ("format", "version", "conventions", "network", "expected", "flags")
    given = {name: value for name, value in content.items()
             if name not in apart and (value is not None or name not in OPTIONAL)}
    for name in ("name", "description"):
        if not isinstance(given.get(name, ""), str):
            raise ProblemError(f"{name} must be text, got {json.dumps(given[name])[:40]}")
    for name, form in (("previous", Previous), ("kl_clip", KLClip), ("trajectory", Trajectory)):
        if name in given:
            given[name] = _filled(form, name, given[name])
    if "trajectory" in given:
        batches = checks.check_listed("trajectory.batches", given["trajectory"].batches)
        if len(batches) > MAX_LENGTH:
            raise ProblemError(f"trajectory.batches must hold at most {MAX_LENGTH}, got {len(batches)}")
        given["trajectory"] = replace(given["trajectory"], batches=tuple(
            _filled(Batch, f"trajectory.batches[{i}]", b) for i, b in enumerate(batches)))
    return Problem(**content["network"], **given)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _filled(form: Any, place: str, content: Any) -> Any:
    """Return a dataclass with the content of an object that has exactly its fields."""
    checks.check_keys(place, content, tuple(f.name for f in fields(form)), ())
    return form(**content)


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
