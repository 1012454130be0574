"""What a run is: data, network, optimizer, batches, precision and seed, as a file or a command line gives them.

The networks by name are the paper's three autoencoders (sec. 13), its classifier of 16 x 16 digits (sec. 3), and those
of the embedded digits.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import approximations, checks, datasets, likelihoods, training
from ..checks import Array
from ..expectations import Expectation, empirical, exact, one_draw
from ..model import Model
from ..network import MLP
from ..optimizers import KFAC, SGD, Adam, NaturalGradient
from ..optimizers.sgd import nesterov_schedule


class Net(NamedTuple):
    """A network by name: widths, nonlinearities of the hidden layers, likelihood."""

    sizes: tuple[int, ...]
    hidden: str | tuple[str, ...]
    likelihood: str


def _autoencoder(*half: int, likelihood: str = "bernoulli") -> Net:
    """Return the widths down to the code and up again; logistic units, and a linear code layer."""
    units = ("logistic",) * (len(half) - 2)
    return Net((*half, *half[-2::-1]), (*units, "identity", *units), likelihood)


NETS: dict[str, Net] = {
    "mnist": _autoencoder(784, 1000, 500, 250, 30),
    "curves": _autoencoder(784, 400, 200, 100, 50, 25, 6),
    "faces": _autoencoder(625, 2000, 1000, 500, 30, likelihood="gaussian"),
    "digits": _autoencoder(64, 32, 16, 8),
    "digits-classifier": Net((64, 20, 20, 20, 10), "tanh", "categorical"),
    "tanh-classifier": Net((256, 20, 20, 20, 20, 20, 10), "tanh", "categorical"),
}
LIKELIHOODS: dict[str, Callable[[], Any]] = {"gaussian": likelihoods.Gaussian, "categorical": likelihoods.Categorical,
                                             "bernoulli": likelihoods.Bernoulli}
#: How the paper judges a step of K-FAC, and how our published figures do.
PAPER_RULE: Mapping[str, Any] = {"judged_on": "same batch", "T1": 5}
EXPECTATIONS: dict[str, Expectation] = {"one-draw": one_draw, "exact": exact, "empirical": empirical()}
#: The number of generated curves to train on, and held out.
CURVES = (10_000, 2_000)


def _sgd(model: Model, learning_rate: float = 0.05, mu_max: float = 0.99, period: int = 250) -> SGD:
    return SGD(model, learning_rate, nesterov_schedule(mu_max, period))


def _kfac(model: Model, approximation: str = "block-diagonal", expectation: str = "one-draw", **settings: Any) -> KFAC:
    return KFAC(model, checks.known("approximation", approximation, approximations.TABLE),
                checks.known("expectation", expectation, EXPECTATIONS), **settings)


#: Each takes the model and its settings by name.
OPTIMIZERS: dict[str, Callable[..., training.Optimizer]] = {
    "kfac": _kfac,
    "natural-gradient": NaturalGradient,
    "sgd": _sgd,
    "adam": Adam,
}


def from_object(kind: type[Any], content: Any, where: str = "", **given: Any) -> Any:
    """Return a dataclass made from an object of a file, or say which of its fields are missing, unknown or wrong.

    Messages begin with `where`; `given` are fields that are not in the object itself.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}must be an object, got {content!r:.80}")
    asked = [f for f in fields(kind) if f.name not in given]
    missing = [f.name for f in asked if f.default is f.default_factory is MISSING and f.name not in content]
    known = [f.name for f in asked]
    unknown = [name for name in content if name not in known]
    if missing or unknown:
        raise ValueError(where + "; ".join([f"{name} is missing" for name in missing] + [
            f"{name} is not known (there are {', '.join(known)})" for name in unknown]))
    try:
        return kind(**content, **given)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def optimizer_settings(optimizer: str) -> dict[str, Any]:
    """Return the settings of an optimizer and their defaults; an approximation and an expectation are given by name."""
    make = checks.known("optimizer", optimizer, OPTIMIZERS)
    makes: list[Callable[..., Any]] = [KFAC, make] if make is _kfac else [make]
    defaults = {name: p.default for each in makes for name, p in inspect.signature(each).parameters.items()}
    # The natural gradient is K-FAC with one approximation.
    left_out = {"model", "settings"} | ({"approximation", "expectation"} if make is NaturalGradient else set())
    return {name: value for name, value in defaults.items() if name not in left_out}


class Task(NamedTuple):
    """All that training takes: inputs and targets, held-out ones, model, start, optimizer, batch schedule."""

    x: Array
    y: Any
    test: tuple[Array, Any]
    model: Model
    weights: list[Array]
    optimizer: training.Optimizer
    schedule: training.Schedule


@dataclass(frozen=True)
class Settings:
    """What defines the bits of a run: the options of ``kfac-ref train``.

    Parameters
    ----------
    data : str
        ``digits``, ``curves`` (a generated stand-in), or ``mnist:FOLDER`` with the folder of the IDX files
        (``mnist:$NAME`` takes it from the environment).
    net : str, optional
        One of `NETS`, or widths such as ``64-32-16-10`` (default: the autoencoder of the data).
    hidden : str, optional
        Nonlinearities of the hidden layers, one for all or one each, such as ``tanh`` or ``tanh,relu`` (default: those
        of the net by name, else ``tanh``).
    likelihood : str, optional
        ``gaussian``, ``categorical`` or ``bernoulli`` (default: that of the net by name, else ``categorical`` for ten
        outputs and ``bernoulli`` otherwise). Categorical is trained on the labels, the others on the inputs.
    optimizer : str
        One of `OPTIMIZERS`.
    settings : mapping
        Its settings, by the names of its arguments.
    batch : str
        A number, ``full``, or ``growing`` (the paper's schedule, from 1000 to all at step 500);
        ``growing:FIRST:STEP`` has other numbers.
    weight_decay : float
        eta.
    init, dtype : str
        ``sparse`` or ``glorot``; ``float64`` or ``float32``.
    seed : int
        Of weights, batches and sampling; the curves are always the same.
    side : int
        Pixels per side of the MNIST digits; fewer than 28 are area averages.
    """

    data: str = "digits"
    net: str | None = None
    hidden: str | None = None
    likelihood: str | None = None
    optimizer: str = "kfac"
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: str = "full"
    weight_decay: float = 1e-5
    init: str = "sparse"
    dtype: str = "float64"
    seed: int = 0
    side: int = 28

    def __post_init__(self) -> None:
        for name in ("data", "net", "hidden", "likelihood", "optimizer", "batch", "init", "dtype"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in ("net", "hidden", "likelihood")):
                raise ValueError(f"{name} must be text, got {value!r}")
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must be names and values, got {self.settings!r}")
        kind, _, folder = self.data.partition(":")
        if self.data not in ("digits", "curves") and not (kind == "mnist" and folder):
            raise ValueError(f"data must be digits, curves or mnist:FOLDER, got {self.data!r}")
        checks.count("side", self.side)
        if self.side != 28 and kind != "mnist":
            raise ValueError(f"side is a setting of mnist:FOLDER, not of {kind}")
        checks.known("dtype", self.dtype, dict.fromkeys(("float32", "float64")))
        checks.known("init", self.init, dict.fromkeys(("sparse", "glorot")))
        checks.count("seed", self.seed, 0)
        known = optimizer_settings(self.optimizer)
        for name in self.settings:
            checks.known(f"a setting of {self.optimizer}", name, known)
        self.make_optimizer(self.model())
        self._schedule(10**9)

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON."""
        return asdict(self) | {"settings": dict(self.settings)}

    def model(self) -> Model:
        """Return the model that the settings describe."""
        name = self.net or self.data.partition(":")[0]
        if name in NETS:
            sizes, hidden, likelihood = NETS[name]
        else:
            sizes, hidden = _widths(name), "tanh"
            likelihood = "categorical" if sizes[-1] == 10 else "bernoulli"
        if self.hidden:
            units = tuple(self.hidden.split(","))
            hidden = units[0] if len(units) == 1 else units
        make = checks.known("likelihood", self.likelihood or likelihood, LIKELIHOODS)
        return Model(MLP(sizes, hidden), make(), weight_decay=self.weight_decay)

    def make_optimizer(self, model: Model) -> training.Optimizer:
        """Return the optimizer that the settings describe."""
        return OPTIMIZERS[self.optimizer](model, **self.settings)

    def task(self, data: datasets.Dataset | None = None) -> Task:
        """Return everything that training takes, in the precision of the settings (default: of `dataset`).

        Raises a ValueError if data and network do not fit each other, or if the data cannot be read.
        """
        model = self.model()
        data = self.dataset() if data is None else data
        width = model.network.sizes[0]
        if data.x.shape[1] != width:
            side = f" at side {self.side}" if self.data.startswith("mnist") else ""
            raise ValueError(f"net must have {data.x.shape[1]} inputs, as {self.data} has{side}; it has {width}")
        labelled = isinstance(model.likelihood, likelihoods.Categorical)
        if labelled and not len(data.labels):
            raise ValueError(f"likelihood categorical needs labels, and {self.data} has none")
        y, y_test = (data.labels, data.labels_test) if labelled else (data.x, data.x_test)
        wanted = int(data.labels.max()) + 1 if labelled else width
        if model.network.sizes[-1] != wanted:
            raise ValueError(f"net must have {wanted} outputs for the {'labels' if labelled else 'inputs'} of "
                             f"{self.data}, since its likelihood is {type(model.likelihood).__name__.lower()}; it has "
                             f"{model.network.sizes[-1]}")
        weights = model.init(np.random.default_rng(self.seed), self.init, self.dtype)
        return Task(data.x, y, (data.x_test, y_test), model, weights, self.make_optimizer(model),
                    self._schedule(len(data.x)))

    def dataset(self) -> datasets.Dataset:
        """Read the data, in the precision of the settings; the curves have no labels."""
        if self.data == "digits":
            return datasets.digits(self.dtype)
        if self.data == "curves":
            none = np.zeros(0, np.int64)
            x = datasets.curves(sum(CURVES), 0, self.dtype)
            return datasets.Dataset(x[:CURVES[0]], none, x[CURVES[0]:], none)
        folder = os.path.expandvars(self.data.partition(":")[2])
        if folder.startswith("$"):
            raise ValueError(f"data {self.data} needs the variable {folder[1:]} in the environment: the folder of the "
                             "IDX files of MNIST")
        return datasets.mnist(Path(folder).expanduser(), self.dtype, self.side)

    def _schedule(self, N: int) -> training.Schedule:
        kind, _, numbers = self.batch.partition(":")
        try:
            if kind == "growing":
                first, full_at = map(int, numbers.split(":")) if numbers else (1000, 500)
                return training.growing(N, first, full_at)
            m = N if self.batch == "full" else int(self.batch)
        except ValueError:
            raise ValueError("batch must be a number, full, growing or growing:FIRST:STEP, got "
                             f"{self.batch!r}") from None
        if m < 1:
            raise ValueError(f"batch must be at least 1 example, got {m}")
        if m > N:
            raise ValueError(f"batch must be at most the {N} examples of {self.data}, got {m}")
        return training.fixed(m)


def _widths(text: str) -> tuple[int, ...]:
    parts = text.split("-")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"net must be one of {', '.join(NETS)}, or widths such as 64-32-10; got {text!r}")
    return tuple(map(int, parts))
