"""A problem: everything that defines the numbers of K-FAC, and the files that hold it.

Nothing is drawn when a problem is read: sampled targets are stored as arrays, so that any language gets the same
numbers. A file is JSON, in which an array is ``{"shape": [7, 3], "data": [flat, row-major]}``, or npz with the same
content. `problem.schema.json` beside this module is the published schema of the JSON form. What is checked here goes
beyond it: shapes that must fit each other, labels in range, finite numbers.

The conventions are those of the whole package, and every file repeats them (`CONVENTIONS`): examples are rows, the bias
is the last column, vec stacks columns, losses and gradients are means over examples, the squared loss is
1/2 ||z - y||^2, and each quantity says which expectation it is of.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..checks import Array
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..model import Model, Point
from ..network import ACTIVATIONS, MLP

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
STRUCTURES = ("block-diagonal", "block-tridiagonal")
#: Files and arrays beyond these sizes are refused before anything is allocated.
MAX_BYTES = 2**28


class ProblemError(ValueError):
    """What is raised for a file or an array that is malformed; the message begins with the place."""


@dataclass(frozen=True, eq=False)
class Previous:
    """A running average before the batch: its factors, and the number k of batches in it."""

    k: int
    A: tuple[Array, ...]
    G: tuple[Array, ...]


@dataclass(frozen=True)
class KLClip:
    """What the KL clip of a step takes: its bound kappa and the learning rate."""

    kappa: float
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of a trajectory: rows of the problem, the parts for factors and exact F, and sampled targets."""

    rows: Any
    rows1: Any
    rows2: Any
    targets: Any


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The hyper-parameters of Algorithm 2, with the names of `kfac_ref.optimizers.KFAC`, and its batches."""

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
    """Everything that defines the numbers.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the layers, the input first.
    hidden : sequence of str
        The nonlinearity of each hidden layer; the output layer has none.
    likelihood : str
        ``gaussian``, ``categorical`` or ``bernoulli``.
    weights : list of (d_{i+1}, d_i + 1) arrays
        The bias in the last column.
    x : (N, d_0) array
        One example a row.
    y : (N,) or (N, C) array
        Labels or targets.
    damping : float
        The number under the root, lambda + eta.
    weight_decay : float
        eta.
    targets : (M, N) or (M, N, C) array, optional
        Sampled targets, M for each example.
    direction, delta_0 : lists of arrays shaped like the weights, optional
        What Fishers are multiplied with, and the last step.
    previous : Previous, optional
        The running average before this batch.
    kl_clip : KLClip, optional
        Bound and learning rate.
    trajectory : Trajectory, optional
        Hyper-parameters and batches of Algorithm 2.
    dtype : str
        ``float32`` where the inputs are in single precision; what is checked is then held to fewer digits.
    name, description : str
        For people.

    Raises
    ------
    ProblemError
        Naming the place, for anything that does not fit.
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
        _set(self, "sizes", tuple(_counted("network.sizes", n) for n in _listed("network.sizes", self.sizes)))
        _set(self, "hidden", tuple(_listed("network.hidden", self.hidden)))
        if len(self.sizes) < 2:
            raise ProblemError(f"network.sizes must hold at least two widths, got {list(self.sizes)}")
        if len(self.hidden) != len(self.sizes) - 2:
            raise ProblemError(f"network.hidden must name the nonlinearity of each of the {len(self.sizes) - 2} hidden "
                               f"layers, got {len(self.hidden)} names")
        for i, name in enumerate(self.hidden):
            _known(f"network.hidden[{i}]", name, ACTIVATIONS)
        likelihood: Likelihood = _known("likelihood", self.likelihood, LIKELIHOODS)()
        _known("dtype", self.dtype, ("float64", "float32"))
        for name in ("damping", "weight_decay"):
            _set(self, name, _checked(name, checks.number, getattr(self, name), 0))
        _set(self, "model", Model(MLP(self.sizes, self.hidden or "tanh"), likelihood, self.weight_decay))
        shapes = self.model.network.shapes
        for name in ("weights", "direction", "delta_0"):
            if name == "weights" or getattr(self, name) is not None:
                _set(self, name, _direction(name, getattr(self, name), shapes))
        _set(self, "x", _real("x", self.x, (None, self.sizes[0])))
        N, C = len(self.x), self.sizes[-1]
        _set(self, "y", _targets("y", self.y, likelihood, (N,), C))
        if self.targets is not None:
            _set(self, "targets", _targets("targets", self.targets, likelihood, (None, N), C))
        if self.previous is not None:
            _set(self, "previous", self._previous(self.previous))
        if self.kl_clip is not None:
            _checked("kl_clip.kappa", checks.number, self.kl_clip.kappa, 0)
            _checked("kl_clip.learning_rate", lambda n, v: checks.number(n, v, 0, above=True),
                     self.kl_clip.learning_rate)
        if self.trajectory is not None:
            _set(self, "trajectory", self._trajectory(self.trajectory, likelihood))

    @classmethod
    def from_arrays(cls, weights: Sequence[Any], x: Any, y: Any, *, hidden: Sequence[str] = (),
                    likelihood: str = "categorical", biases: Sequence[Any] | None = None, layout: str = "out,in",
                    bias: str = "joint-last", **rest: Any) -> Problem:
        """Make a problem from arrays as another framework holds them.

        Parameters
        ----------
        weights : sequence of matrices
            One a layer.
        x, y : arrays
            Inputs, one example a row, and labels or targets.
        hidden : sequence of str
            The nonlinearity of each hidden layer.
        likelihood : str
            ``gaussian`` (squared error), ``categorical`` (cross-entropy on labels) or ``bernoulli``.
        biases : sequence of (d_{i+1},) vectors, optional
            Where they are held apart.
        layout : {"out,in", "in,out"}
            Whether a row of a weight matrix belongs to an output (PyTorch) or to an input (JAX, TensorFlow).
        bias : {"joint-last", "joint-first", "separate"}
            Whether the matrices hold the biases beside the last or before the first input, or `biases` does.
        **rest : Any
            ``damping``, ``weight_decay``, ``targets`` and so on, as in `Problem`; ``direction`` and ``delta_0`` in our
            own layout.

        Returns
        -------
        Problem
            In our own layout; its ``dtype`` is that of the first weights.

        Raises
        ------
        ProblemError
            Naming the argument that does not fit.
        """
        _known("layout", layout, ("out,in", "in,out"))
        _known("bias", bias, ("joint-last", "joint-first", "separate"))
        if (bias == "separate") != (biases is not None):
            raise ProblemError(f"biases must be given if and only if bias is 'separate', got bias = {bias!r}")
        ours = []
        single = all(np.asarray(W).dtype == np.float32 for W in weights)
        for i, W in enumerate(weights):
            W = _real(f"weights[{i}]", W, (None, None))
            W = W if layout == "out,in" else W.T
            if biases is not None:
                if len(biases) != len(weights):
                    raise ProblemError(f"biases must hold one vector a layer: expected {len(weights)}, got "
                                       f"{len(biases)}")
                W = np.column_stack([W, _real(f"biases[{i}]", biases[i], (len(W),))])
            elif bias == "joint-first":
                W = np.column_stack([W[:, 1:], W[:, 0]])
            ours.append(np.ascontiguousarray(W))
        if not ours:
            raise ProblemError("weights must hold at least one matrix, got none")
        rest.setdefault("dtype", "float32" if single else "float64")
        sizes = (ours[0].shape[1] - 1, *(len(W) for W in ours))
        return cls(sizes, tuple(hidden), likelihood, tuple(ours), x, y, **rest)

    def at(self, rows: Any = None) -> Point:
        """Return the model at the weights on the examples, or on some of them.

        Parameters
        ----------
        rows : (n,) int array, optional
            Which examples.
        """
        return self.model.at(self.weights, self.x if rows is None else self.x[rows])

    def replace(self, **changes: Any) -> Problem:
        """Return the problem with some of its fields changed.

        Parameters
        ----------
        **changes : Any
            By name.
        """
        return replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """Return the content of the problem's file."""
        content: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "name": self.name, "description": self.description,
            "conventions": CONVENTIONS, "network": {"sizes": list(self.sizes), "hidden": list(self.hidden)},
            "likelihood": self.likelihood, "dtype": self.dtype, "weight_decay": self.weight_decay,
            "damping": self.damping, "weights": list(self.weights), "x": self.x, "y": self.y}
        for name in ("targets", "direction", "delta_0"):
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        for name in ("previous", "kl_clip", "trajectory"):
            if getattr(self, name) is not None:
                content[name] = _fields_of(getattr(self, name))
        if self.trajectory is not None:
            content["trajectory"]["batches"] = [
                {"rows": b.rows.tolist(), "rows1": b.rows1.tolist(), "rows2": b.rows2.tolist(), "targets": b.targets}
                for b in self.trajectory.batches]
        found: dict[str, Any] = plain(content)
        return found

    def write(self, path: Path | str) -> None:
        """Write the problem as JSON, or as npz where the name ends in that.

        Parameters
        ----------
        path : Path or str
            The file.

        Raises
        ------
        OSError
            Where it cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            path.write_text(dumps(self.plain()), encoding="utf-8")
            return
        arrays: dict[str, Any] = {}
        content = _take_arrays(self.plain(), arrays)
        np.savez(path, problem=np.array(json.dumps(content)), **arrays)

    @classmethod
    def read(cls, path: Path | str) -> Problem:
        """Read a problem, or the problem of a test vector, from JSON or npz.

        Parameters
        ----------
        path : Path or str
            The file.

        Raises
        ------
        ProblemError
            Naming the file and the place in it, for anything malformed.
        """
        return cls.of(load(path), str(path))

    @classmethod
    def of(cls, content: Any, name: str = "problem") -> Problem:
        """Make a problem from the content of its file.

        Parameters
        ----------
        content : dict
            As `plain` returns it.
        name : str
            What errors call the file.

        Raises
        ------
        ProblemError
            Naming the place, for anything malformed.
        """
        try:
            return _problem(content)
        except ProblemError as error:
            raise ProblemError(f"{name}: {error}") from None

    def _previous(self, given: Previous) -> Previous:
        k = _counted("previous.k", given.k, 0)
        A, G = given.A, given.G
        if k == 0 and not len(A) and not len(G):
            return Previous(0, (), ())
        return Previous(k, _direction("previous.A", A, [(n + 1, n + 1) for n in self.sizes[:-1]]),
                        _direction("previous.G", G, [(n, n) for n in self.sizes[1:]]))

    def _trajectory(self, t: Trajectory, likelihood: Likelihood) -> Trajectory:
        where = "trajectory."
        for name in ("T1", "T2", "T3"):
            _counted(where + name, getattr(t, name))
        if t.T2 % t.T3:
            raise ProblemError(f"trajectory.T2 must be a multiple of T3, got T2 = {t.T2} and T3 = {t.T3}")
        for name in ("lambda_0", "gamma_min", "gamma_max", "lambda_floor"):
            _checked(where + name, checks.number, getattr(t, name), 0)
        for name in ("omega1", "omega2", "ceiling"):
            _checked(where + name, checks.number, getattr(t, name), 0, 1)
        if min(t.omega1, t.omega2) == 0:
            raise ProblemError("trajectory.omega1 and omega2 must be above 0")
        if t.gamma_max < t.gamma_min:
            raise ProblemError(f"trajectory.gamma_max must be at least gamma_min = {t.gamma_min:g}, got "
                               f"{t.gamma_max:g}")
        _known(where + "structure", t.structure, STRUCTURES)
        if not isinstance(t.momentum, bool):
            raise ProblemError(f"trajectory.momentum must be true or false, got {t.momentum!r}")
        batches = []
        for i, b in enumerate(t.batches):
            place = f"trajectory.batches[{i}]."
            rows = _rows(place + "rows", b.rows, len(self.x))
            rows1, rows2 = (_rows(place + name, getattr(b, name), len(rows)) for name in ("rows1", "rows2"))
            targets = _targets(place + "targets", b.targets, likelihood, (len(rows1),), self.sizes[-1])
            batches.append(Batch(rows, rows1, rows2, targets))
        if not batches:
            raise ProblemError("trajectory.batches must hold at least one batch")
        return replace(t, batches=tuple(batches))


# Reading and writing plain content.


def plain(value: Any) -> Any:
    """Return the same content in what JSON knows, arrays as shape and data.

    Parameters
    ----------
    value : Any
        Numbers, strings, arrays, and lists and mappings of them; NaN becomes null.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        return {"shape": list(value.shape), "data": [plain(item) for item in value.ravel().tolist()]}
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.item())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(content: Mapping[str, Any]) -> str:
    """Return the JSON of a problem or a vector, one field a line.

    Parameters
    ----------
    content : dict
        Plain data.
    """
    lines = []
    for name, value in content.items():
        if isinstance(value, dict) and name in ("expected", "trajectory"):
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(path: Path | str) -> Any:
    """Return the content of a JSON or npz file as plain data; arrays of an npz stay arrays.

    Parameters
    ----------
    path : Path or str
        The file.

    Raises
    ------
    ProblemError
        Where it is not there, too large, or no such file; what is malformed inside is for the caller to see.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ProblemError(f"{path}: {size:,} bytes are more than the {MAX_BYTES:,} that are read")
        data = path.read_bytes()
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return _of_npz(data) if data[:2] == b"PK" else parse(data)
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def parse(text: bytes | str) -> Any:
    """Return the content of a JSON text in which no name occurs twice and every number is finite.

    Parameters
    ----------
    text : bytes or str
        UTF-8.

    Raises
    ------
    ProblemError
        For anything else.
    """
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object, or refuse a name that occurs twice in it.

        Parameters
        ----------
        pairs : list of (str, Any)
            As they stand in the text.
        """
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ProblemError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
        return found

    def refuse(name: str) -> Any:
        """Refuse NaN and infinity, which JSON does not have.

        Parameters
        ----------
        name : str
            What stands in the text.
        """
        raise ProblemError(f"{name} is no number of JSON; write null for what was not measured")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except ProblemError:
        raise
    except (ValueError, RecursionError) as error:           # a bad encoding or syntax, an endless nesting or integer
        raise ProblemError(f"is no JSON: {str(error)[:200]}") from None


def read_array(place: str, value: Any) -> np.ndarray[Any, Any]:
    """Return an array from ``{"shape", "data"}``, nested lists, or an array; null stands for NaN.

    Parameters
    ----------
    place : str
        What errors call it.
    value : Any
        From a file.

    Raises
    ------
    ProblemError
        For anything else.
    """
    if isinstance(value, Mapping):
        _keys(place, value, ("shape", "data"), ())
        shape = [_counted(f"{place}.shape", n, 0) for n in _listed(f"{place}.shape", value["shape"])]
        data = value["data"]
        if not isinstance(data, list):
            raise ProblemError(f"{place}.data must be a flat list of numbers, got {type(data).__name__}")
        if math.prod(shape) != len(data):
            raise ProblemError(f"{place}.data must hold {math.prod(shape)} numbers for the shape {shape}, got "
                               f"{len(data)}")
        return _numbers(f"{place}.data", data).reshape(shape)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise ProblemError(f"{place} must hold real numbers, got dtype {value.dtype}")
        return value
    if isinstance(value, list):
        shape = []
        row: Any = value
        while isinstance(row, list) and len(shape) < 8:
            shape.append(len(row))
            row = row[0] if row else None
        return _numbers(place, _flat(place, value, shape)).reshape(shape)
    if hasattr(value, "__array__"):                         # another library's array
        return read_array(place, np.asarray(value))
    raise ProblemError(f"{place} must be an array, got {type(value).__name__}")


def _flat(place: str, value: Any, shape: list[int]) -> list[Any]:
    if not shape:
        if isinstance(value, list):
            raise ProblemError(f"{place} must be a rectangular array, got lists of different depths")
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        raise ProblemError(f"{place} must be a rectangular array, got lists of different lengths")
    return [item for row in value for item in _flat(place, row, shape[1:])]


def _numbers(place: str, data: list[Any]) -> np.ndarray[Any, Any]:
    if all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**53 for v in data) and data:
        return np.array(data, dtype=np.int64)
    for i, v in enumerate(data):
        if v is not None and (isinstance(v, bool) or not isinstance(v, (int, float))):
            raise ProblemError(f"{place}[{i}] must be a number, got {json.dumps(v)[:40]}")
    try:
        return np.array([math.nan if v is None else float(v) for v in data])
    except OverflowError:
        raise ProblemError(f"{place} holds an integer beyond the range of float64") from None


def _of_npz(data: bytes) -> Any:
    """Read an npz without pickles, its sizes first."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = 0
            for info in archive.infolist():
                total += info.file_size
                if total > MAX_BYTES:
                    raise ProblemError(f"its arrays take more than the {MAX_BYTES:,} bytes that are read")
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    head = np.lib.format.read_array_header_1_0(member) if version == (1, 0) else \
                        np.lib.format.read_array_header_2_0(member)
                if math.prod(head[0]) * head[2].itemsize > info.file_size:
                    raise ProblemError(f"{info.filename} declares shape {head[0]}, more than it holds")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ProblemError:
        raise
    except Exception as error:              # zipfile, zlib and numpy raise many kinds for damaged files
        raise ProblemError(f"is no npz file that can be read: {type(error).__name__}: {str(error)[:200]}") from None
    if "problem" not in arrays:
        return _listed_arrays(arrays)
    if arrays["problem"].dtype.kind != "U" or arrays["problem"].ndim:
        raise ProblemError("problem must be the JSON text of the rest, in which arrays are named")
    return _put_arrays(parse(str(arrays.pop("problem"))), arrays)


def _listed_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gather ``A_0, A_1, ...`` into lists; numbers and other arrays stay as they are."""
    found: dict[str, Any] = {}
    for name in sorted(arrays, key=lambda n: (len(n), n)):
        stem, _, number = name.rpartition("_")
        if not stem or not number.isdecimal():
            found[name] = arrays[name] if arrays[name].ndim else arrays[name].item()
        elif int(number) == len(found.setdefault(stem, [])):
            found[stem].append(arrays[name])
        else:
            raise ProblemError(f"{name} must follow {stem}_{len(found[stem]) - 1}: layers are counted from 0")
    return found


def _take_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, dict) and set(value) == {"shape", "data"}:
        name = f"a{len(arrays)}"
        arrays[name] = read_array(name, value)
        return {"array": name}
    if isinstance(value, dict):
        return {key: _take_arrays(item, arrays) for key, item in value.items()}
    return [_take_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _put_arrays(value: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(value, dict) and set(value) == {"array"}:
        return _known("array", value["array"], arrays)
    if isinstance(value, dict):
        return {key: _put_arrays(item, arrays) for key, item in value.items()}
    return [_put_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _problem(content: Any) -> Problem:
    optional = ("targets", "direction", "delta_0", "previous", "kl_clip", "trajectory")
    required = ("format", "version", "conventions", "network", "likelihood", "weights", "x", "y", "damping")
    _keys("the file", content, required,
          (*optional, "name", "description", "dtype", "weight_decay", "expected", "flags"))
    if content["format"] != FORMAT:
        raise ProblemError(f"format must be {FORMAT!r}, got {json.dumps(content['format'])[:60]}")
    if content["version"] != VERSION or isinstance(content["version"], bool):
        raise ProblemError(f"version must be {VERSION}, got {json.dumps(content['version'])[:60]}")
    _conventions(content["conventions"])
    _keys("network", content["network"], ("sizes", "hidden"), ())
    given: dict[str, Any] = {name: content[name] for name in ("likelihood", "dtype", "damping", "weight_decay", "name",
                                                              "description") if name in content}
    for name in ("name", "description"):
        if not isinstance(given.get(name, ""), str):
            raise ProblemError(f"{name} must be text, got {json.dumps(given[name])[:40]}")
    for name in ("x", "y", "targets"):
        if content.get(name) is not None:
            given[name] = read_array(name, content[name])
    for name in ("weights", "direction", "delta_0"):
        if content.get(name) is not None:
            given[name] = _arrays(name, content[name])
    if content.get("previous") is not None:
        p = content["previous"]
        _keys("previous", p, ("k", "A", "G"), ())
        given["previous"] = Previous(p["k"], _arrays("previous.A", p["A"]), _arrays("previous.G", p["G"]))
    if content.get("kl_clip") is not None:
        _keys("kl_clip", content["kl_clip"], ("kappa", "learning_rate"), ())
        given["kl_clip"] = KLClip(**{name: _checked(f"kl_clip.{name}", checks.number, v, 0)
                                     for name, v in content["kl_clip"].items()})
    if content.get("trajectory") is not None:
        t = content["trajectory"]
        _keys("trajectory", t, tuple(f.name for f in fields(Trajectory)), ())
        batches = []
        for i, b in enumerate(_listed("trajectory.batches", t["batches"])):
            place = f"trajectory.batches[{i}]"
            _keys(place, b, tuple(f.name for f in fields(Batch)), ())
            batches.append(Batch(**{name: read_array(f"{place}.{name}", b[name]) for name in b}))
        given["trajectory"] = Trajectory(**{**t, "batches": tuple(batches)})
    return Problem(sizes=content["network"]["sizes"], hidden=content["network"]["hidden"], **given)


def _conventions(given: Any) -> None:
    """Refuse a file that was written under other conventions, naming the first."""
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


# Small checks, each of which names the place.


def _set(problem: Problem, name: str, value: Any) -> None:
    object.__setattr__(problem, name, value)


def _fields_of(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _keys(place: str, value: Any, required: Sequence[str], optional: Sequence[str]) -> None:
    if not isinstance(value, Mapping):
        raise ProblemError(f"{place} must be an object with {', '.join(required)}, got {type(value).__name__}")
    for name in required:
        if name not in value:
            raise ProblemError(f"{place}: {name} is missing")
    for name in value:
        if name not in required and name not in optional:
            raise ProblemError(f"{place}: {name!r} is not known (there are {', '.join((*required, *optional))})")


def _listed(place: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise ProblemError(f"{place} must be a list, got {type(value).__name__}")
    return list(value)


def _arrays(place: str, value: Any) -> tuple[Any, ...]:
    return tuple(read_array(f"{place}[{i}]", item) for i, item in enumerate(_listed(place, value)))


def _known(place: str, value: Any, entries: Any) -> Any:
    if not isinstance(value, str) or value not in entries:
        raise ProblemError(f"{place} must be one of {', '.join(entries)}; got {value!r:.60}")
    return entries[value] if isinstance(entries, Mapping) else value


def _checked(place: str, check: Any, value: Any, *bounds: float) -> Any:
    if isinstance(value, (bool, str)):
        raise ProblemError(f"{place} must be a number, got {value!r:.60}")
    try:
        return check(place, value, *bounds)
    except (ValueError, OverflowError) as error:
        raise ProblemError(str(error)) from None


def _counted(place: str, value: Any, low: int = 1) -> int:
    count: int = _checked(place, lambda n, v: checks.count(n, v, low), value)
    if count > MAX_BYTES:
        raise ProblemError(f"{place} must be at most {MAX_BYTES:,}, got {count:.3g}" if count < 1e300 else
                           f"{place} must be at most {MAX_BYTES:,}")
    return count


def _real(place: str, value: Any, shape: tuple[int | None, ...]) -> Array:
    found: Array = _checked_array(place, lambda: checks.real_array(place, read_array(place, value), shape, np.float64))
    return found


def _direction(place: str, value: Any, shapes: Sequence[tuple[int, int]]) -> tuple[Array, ...]:
    arrays = _listed(place, value)
    if len(arrays) != len(shapes):
        raise ProblemError(f"{place} must hold one array a layer: expected {len(shapes)}, got {len(arrays)}")
    return tuple(_real(f"{place}[{i}]", a, shape) for i, (a, shape) in enumerate(zip(arrays, shapes, strict=True)))


def _targets(place: str, value: Any, likelihood: Likelihood, lead: tuple[int | None, ...], C: int) -> Any:
    y = read_array(place, value)
    if isinstance(likelihood, Categorical):
        if y.ndim != len(lead) or any(d not in (None, n) for d, n in zip(lead, y.shape, strict=True)):
            raise ProblemError(f"{place} must have shape {_text(lead)}, got {y.shape}")
        shape = y.shape[len(lead) - 1:]
        return _checked_array(place, lambda: checks.labels(place, y, C, shape))
    y = _real(place, y, (*lead, C))
    interval = (0, 1) if isinstance(likelihood, Bernoulli) else None
    return _checked_array(place, lambda: checks.targets(place, y, y.shape, np.float64, interval))


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"


def _rows(place: str, value: Any, count: int) -> Any:
    rows = read_array(place, value)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise ProblemError(f"{place} must be a list of row numbers")
    if rows.min() < 0 or rows.max() >= count:
        raise ProblemError(f"{place} must lie in 0..{count - 1}, got {rows.min()}..{rows.max()}")
    return rows.astype(np.intp)


def _checked_array(place: str, check: Any) -> Any:
    try:
        return check()
    except ValueError as error:
        raise ProblemError(str(error)) from None
