"""A model is a network, a likelihood and a weight decay; a point is a model at given weights and inputs.

The objective (paper: sec. 2.2) is the mean over the batch, plus weight decay on weights and biases alike::

    h(theta)      = (1/N) sum_n -log p(y_n | z_n) + (eta/2) ||theta||^2
    grad h, W_i   = (1/N) g_i^T a_bar_i + eta W_i

One forward pass serves everything that is computed at a point: loss, gradient, samples, and all of `fisher` and
`factors`. These are means over the examples, so a data set can be processed in `parts`.

Conventions: examples are rows, x is (N, d_0). `weights` and directions `V` are lists of (d_{i+1}, d_i + 1) arrays, one
per layer, with the bias in the last column. y is (N,) labels for a categorical, otherwise (N, C) targets; if a method
of `Point` is called without y, it uses the one that the point carries. Wrong shapes, NaN, infinity and labels out of
range raise a ValueError that names the argument and the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import checks, layers
from .checks import Array, Direction, Rows
from .likelihoods import Likelihood
from .network import Network, Pass
from .parts import Part


@dataclass(frozen=True)
class Model:
    """A network with a likelihood on its output and a weight decay eta >= 0 (sec. 2)."""

    network: Network
    likelihood: Likelihood
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, value, protocol in (("network", self.network, Network), ("likelihood", self.likelihood, Likelihood)):
            checks.offers(name, value, protocol)
        object.__setattr__(self, "weight_decay", checks.number("weight_decay", self.weight_decay, 0))

    def init(self, rng: np.random.Generator, scheme: str = "sparse", dtype: DTypeLike = np.float64) -> list[Array]:
        """Draw initial weights; see `MLP.init` for the schemes and the dtype."""
        return self.network.init(rng, scheme, dtype)

    def at(self, weights: Direction, x: Any) -> Point:
        """Run the network on x at the given weights and return the `Point`.

        The weights are float64 or float32; the dtype of the first array is that of everything computed at the point.
        """
        W = checks.weights("weights", weights, self.network.shapes)
        x = checks.real_array("x", x, (None, self.network.sizes[0]), W[0].dtype)
        return Point(self, W, self.network.forward(W, x))

    def parts(self, weights: Direction, x: Any, y: Any = None, size: int = 2000) -> list[Part]:
        """Cut a data set into parts of at most `size` examples, in order, to be evaluated one at a time by `mean_over`.

        A part holds a view of its rows, and only these are pickled with it.
        """
        checks.count("size", size)
        weights = checks.weights("weights", weights, self.network.shapes)
        x = checks.array("x", x)
        y = None if y is None else checks.array("y", y)
        N = len(x) if x.ndim else 0
        if not N:
            raise ValueError("x must hold at least one example")
        if y is not None and (not y.ndim or len(y) != N):
            raise ValueError(f"y must hold one target for each of the {N} examples of x, got shape {y.shape}")
        cuts = [slice(start, min(start + size, N)) for start in range(0, N, size)]
        return [Part(self, weights, x[rows], None if y is None else y[rows], rows) for rows in cuts]


@dataclass(frozen=True, eq=False)
class Point:
    """A model at one point: weights, inputs, and every intermediate of the forward pass. Made by `Model.at`.

    The intermediates have short names here: ``x``, ``a_bar``, ``s``, ``z``.
    """

    model: Model
    weights: tuple[Array, ...]
    forward: Pass
    y: Any = None                       #: Labels or targets, if the point carries them.
    rows: Rows | None = None            #: Which rows of a larger data set these are; None if there is none.

    def __repr__(self) -> str:
        return (f"Point of {len(self)} examples, {'-'.join(map(str, self.model.network.sizes))}, "
                f"{type(self.model.likelihood).__name__}, {self.z.dtype}")

    @property
    def x(self) -> Array:
        """The inputs, (N, d_0)."""
        return self.forward.x

    @property
    def a_bar(self) -> tuple[Array, ...]:
        """The inputs of the layers with their ones, (N, d_i + 1) each."""
        return self.forward.a_bar

    @property
    def s(self) -> tuple[Array, ...]:
        """The outputs of the layers before their nonlinearity, (N, d_{i+1}) each."""
        return self.forward.s

    @property
    def z(self) -> Array:
        """The output of the network, (N, C)."""
        return self.forward.z

    def __len__(self) -> int:
        """Return the number N of examples."""
        return len(self.z)

    def take(self, rows: Rows) -> Point:
        """Return the point for some of its examples, in the order of `rows`, without another forward pass.

        `rows` is a slice, a list of row numbers or a mask, and must choose at least one example.
        """
        if isinstance(rows, slice) and rows == slice(None):
            return self                                 # keeps the slopes that are already computed
        if not isinstance(rows, slice):
            mask = np.asarray(rows)
            if mask.dtype == bool and mask.shape == (len(self),):
                rows = np.flatnonzero(mask)
            if np.ndim(rows) != 1 or (len(rows) and np.asarray(rows).dtype.kind not in "iu"):
                raise ValueError(f"rows must be a slice, a list of row numbers or a mask, got {rows!r}")
            rows = np.asarray(rows, dtype=np.intp)
            if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
                raise ValueError(f"rows must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        kept = None if self.rows is None else _rows_of(self.rows, rows)
        part = Point(self.model, self.weights, self.forward.take(rows), None if self.y is None else self.y[rows], kept)
        if not len(part):
            raise ValueError("rows must choose at least one example")
        return part

    def backward(self, dz: Array) -> list[Array]:
        """Propagate dz, (N, C) or a stack (K, N, C), back through the network.

        Returns g: ``g[i]``, (N, d_{i+1}) or (K, N, d_{i+1}), is the gradient of each example with respect to ``s[i]``.
        It is never divided by N.
        """
        dz = np.asarray(dz, dtype=self.z.dtype)
        if dz.ndim not in (2, 3) or dz.shape[-2:] != self.z.shape:
            raise ValueError(f"dz must have shape {self.z.shape}, or a stack of those, got {dz.shape}")
        return self.model.network.backward(self.weights, self.forward, dz)

    def tangent(self, V: Direction) -> Array:
        """Return J V, the derivative of z in the direction V, (N, C), by the R-operator (sec. 6.4 and app. C)."""
        V = checks.direction("V", V, self.model.network.shapes, self.z.dtype)
        return self.model.network.tangent(self.weights, self.forward, V)

    def adjoint(self, dz: Array) -> list[Array]:
        """Return the direction ``J^T dz`` for dz of shape (N, C): a sum over the examples."""
        if np.ndim(dz) != 2:
            raise ValueError(f"dz must have shape {self.z.shape}, got {np.shape(dz)}")
        return [layers.adjoint(g, a_bar) for g, a_bar in zip(self.backward(dz), self.a_bar, strict=True)]

    def output_gradient(self, y: Any = None) -> Array:
        """Return the gradient of -log p(y | z) with respect to z for each example, (N, C)."""
        dz = self.model.likelihood.gradient(self.z, self._targets(y))
        if dz.ndim != self.z.ndim:
            raise ValueError(f"y must hold one target for each example, got a stack of {len(dz)}")
        return dz

    def loss(self, y: Any = None) -> float:
        """Return h, the mean nll in nats per example plus ``(eta/2) ||theta||^2`` (sec. 2.2)."""
        # Summed in double precision for every dtype: rho is computed from differences of losses.
        squares = sum(float(np.einsum("mn,mn->", W, W, dtype=np.float64)) for W in self.weights)
        return self._mean(self.model.likelihood.nll(self.z, self._targets(y))) + self.model.weight_decay / 2 * squares

    def gradient(self, y: Any = None) -> list[Array]:
        """Return grad h, a direction: the mean over the batch, including weight decay (sec. 2.2)."""
        dz = self.output_gradient(y) / len(self)
        eta = self.model.weight_decay
        return [D + eta * W if eta else D for D, W in zip(self.adjoint(dz), self.weights, strict=True)]

    def sample(self, rng: np.random.Generator, draws: int | None = None) -> Any:
        """Draw targets from the model's own prediction: (N,) labels or (N, C) numbers, or a stack of `draws`."""
        if draws is not None:
            checks.count("draws", draws)
        return self.model.likelihood.sample(self.z, rng, draws)

    def error(self, y: Any = None) -> float:
        """Return the mean of the likelihood's `error`: a squared distance, or the rate of wrong labels for classes."""
        return self._mean(self.model.likelihood.error(self.z, self._targets(y)))

    def _targets(self, y: Any) -> Any:
        if y is None and self.y is None:
            raise ValueError("y is missing: give labels or targets, or a point that carries them")
        return self.y if y is None else y

    def _mean(self, values: Array) -> float:
        if values.ndim != 1:
            raise ValueError(f"y must hold one target for each example, got a stack of {len(values)}")
        return float(values.sum(dtype=np.float64) / len(self))


def as_point(at: Any) -> Point:
    """Return `at` if it is a `Point`; raise ValueError otherwise."""
    if not isinstance(at, Point):
        raise ValueError(f"at must be a Point, as model.at(weights, x) returns it, got {type(at).__name__}")
    return at


def _rows_of(outer: Rows, inner: Rows) -> Rows:
    """Return ``outer[inner]`` as rows of the whole data set."""
    return np.arange(outer.stop)[outer][inner] if isinstance(outer, slice) else outer[inner]
