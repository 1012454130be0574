"""A model is a network, a likelihood and a weight decay; a point is a model at given weights and inputs.

The objective (paper: sec. 2.2) is the mean over the batch, plus the weight decay on weights and biases alike::

    h(theta)      = (1/N) sum_n -log p(y_n | z_n) + (eta/2) ||theta||^2
    grad h, W_i   = (1/N) g_i^T a_bar_i + eta W_i

One forward pass serves all that is computed at a point: loss, gradient, samples, and everything in `fisher` and
`factors`. All of these are means over the examples, so a data set can be processed in `parts`.
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
    """A network with a likelihood on its output and a weight decay.

    Parameters
    ----------
    network : Network
        What maps x to z: an `MLP`.
    likelihood : Likelihood
        `Gaussian`, `Categorical`, `Bernoulli`, or a class of the user's with the same methods.
    weight_decay : float
        The paper's eta, at least 0.

    Raises
    ------
    ValueError
        For a negative weight decay, or a likelihood that is a class.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 2.
    """

    network: Network
    likelihood: Likelihood
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, value, protocol in (("network", self.network, Network), ("likelihood", self.likelihood, Likelihood)):
            checks.offers(name, value, protocol)
        object.__setattr__(self, "weight_decay", checks.number("weight_decay", self.weight_decay, 0))

    def init(self, rng: np.random.Generator, scheme: str = "sparse", dtype: DTypeLike = np.float64) -> list[Array]:
        """Draw initial weights.

        Parameters
        ----------
        rng : numpy.random.Generator
            Where randomness comes from.
        scheme : {"sparse", "glorot"}
            As in `MLP.init`.
        dtype : {numpy.float64, numpy.float32}
            The precision of everything that is computed from these weights.

        Returns
        -------
        weights : list of (d_{i+1}, d_i + 1) arrays
            One a layer, the bias in the last column.

        Raises
        ------
        ValueError
            For an unknown scheme.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 13, for ``sparse``.
        """
        return self.network.init(rng, scheme, dtype)

    def at(self, weights: Direction, x: Any) -> Point:
        """Run the network at `weights` on `x` and keep everything.

        Parameters
        ----------
        weights : list of (d_{i+1}, d_i + 1) arrays
            float64 or float32; the dtype of the first is that of everything computed here.
        x : (N, d_0) array
            One example a row.

        Returns
        -------
        Point
            The model at this point.

        Raises
        ------
        ValueError
            For wrong shapes (naming the layer), NaN or infinity, an empty batch.
        """
        W = checks.weights("weights", weights, self.network.shapes)
        x = checks.real_array("x", x, (None, self.network.sizes[0]), W[0].dtype)
        return Point(self, W, self.network.forward(W, x))

    def parts(self, weights: Direction, x: Any, y: Any = None, size: int = 2000) -> list[Part]:
        """Cut a data set into parts, to be evaluated one at a time by `mean_over`.

        Parameters
        ----------
        weights : list of (d_{i+1}, d_i + 1) arrays
            The parameters.
        x : (N, d_0) array
            One example per row.
        y : (N,) or (N, C) array, optional
            Labels or targets.
        size : int
            The largest number of examples in a part.

        Returns
        -------
        list of Part
            In the order of the examples. A part holds a view of its rows and is small when pickled.

        Raises
        ------
        ValueError
            For no examples, or x and y of different lengths.
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

    Attributes
    ----------
    model : Model
        The model.
    weights : tuple of (d_{i+1}, d_i + 1) arrays
        The parameters.
    forward : Pass
        The forward pass, whose parts have names of their own here: ``x``, ``a_bar``, ``s``, ``z``.
    y : (N,) or (N, C) array or None
        Labels or targets, if the point carries them.
    rows : slice, array of int or None
        Which examples of a whole data set these are; None if they are all that there is.
    """

    model: Model
    weights: tuple[Array, ...]
    forward: Pass
    y: Any = None
    rows: Rows | None = None

    def __repr__(self) -> str:
        """Return one line."""
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
        """Return this point for some of its examples, without another forward pass.

        Parameters
        ----------
        rows : slice or (n,) int array
            Which examples.

        Returns
        -------
        Point
            Of n examples, in the order of `rows`.

        Raises
        ------
        ValueError
            Where no example is chosen, or `rows` is of another form.
        """
        if isinstance(rows, slice) and rows == slice(None):
            return self                                 # with the slopes that it may have computed already
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
        """Send gradients with respect to z back through the network.

        Parameters
        ----------
        dz : (N, C) or (K, N, C) array
            One vector for each example, or a stack of K.

        Returns
        -------
        g : list of (N, d_{i+1}) or (K, N, d_{i+1}) arrays
            ``g[i]`` is the gradient with respect to ``s[i]``, example by example, never divided by N.

        Raises
        ------
        ValueError
            For a wrong shape.
        """
        dz = np.asarray(dz, dtype=self.z.dtype)
        if dz.ndim not in (2, 3) or dz.shape[-2:] != self.z.shape:
            raise ValueError(f"dz must have shape {self.z.shape}, or a stack of those, got {dz.shape}")
        return self.model.network.backward(self.weights, self.forward, dz)

    def tangent(self, V: Direction) -> Array:
        """Return J V: the derivative of z in the direction V of the weights, (N, C).

        Parameters
        ----------
        V : list of (d_{i+1}, d_i + 1) arrays
            A direction.

        Raises
        ------
        ValueError
            For wrong shapes (naming the layer), NaN or infinity.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 6.4 and app. C (the R-operator).
        """
        V = checks.direction("V", V, self.model.network.shapes, self.z.dtype)
        return self.model.network.tangent(self.weights, self.forward, V)

    def adjoint(self, dz: Array) -> list[Array]:
        """Return the direction ``J^T dz``, a sum over the examples.

        Parameters
        ----------
        dz : (N, C) array
            One vector for each example.

        Returns
        -------
        list of (d_{i+1}, d_i + 1) arrays
            ``g_i^T a_bar_i``.

        Raises
        ------
        ValueError
            For a wrong shape.
        """
        if np.ndim(dz) != 2:
            raise ValueError(f"dz must have shape {self.z.shape}, got {np.shape(dz)}")
        return [layers.adjoint(g, a_bar) for g, a_bar in zip(self.backward(dz), self.a_bar, strict=True)]

    def output_gradient(self, y: Any = None) -> Array:
        """Return the gradient of -log p(y | z) with respect to z of each example, (N, C).

        Parameters
        ----------
        y : (N,) or (N, C) array, optional
            The labels or targets (default: those that the point carries).

        Raises
        ------
        ValueError
            For labels that do not fit, or a stack of draws.
        """
        dz = self.model.likelihood.gradient(self.z, self._targets(y))
        if dz.ndim != self.z.ndim:
            raise ValueError(f"y must hold one target for each example, got a stack of {len(dz)}")
        return dz

    def loss(self, y: Any = None) -> float:
        """Return h: the mean nll over the batch, in nats, plus ``(eta/2) ||theta||^2``.

        Parameters
        ----------
        y : (N,) or (N, C) array, optional
            The labels or targets (default: those that the point carries).

        Raises
        ------
        ValueError
            For labels that do not fit, or a stack of draws.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 2.2.
        """
        # Summed in double precision whatever the dtype: rho is made from differences of losses.
        squares = sum(float(np.einsum("mn,mn->", W, W, dtype=np.float64)) for W in self.weights)
        return self._mean(self.model.likelihood.nll(self.z, self._targets(y))) + self.model.weight_decay / 2 * squares

    def gradient(self, y: Any = None) -> list[Array]:
        """Return grad h: the mean over the batch, weight decay included.

        Parameters
        ----------
        y : (N,) or (N, C) array, optional
            The labels or targets (default: those that the point carries).

        Returns
        -------
        grad : list of (d_{i+1}, d_i + 1) arrays
            A direction.

        Raises
        ------
        ValueError
            For labels that do not fit, or a stack of draws.

        Notes
        -----
        Source: Martens & Grosse 2015, sec. 2.2.
        """
        dz = self.output_gradient(y) / len(self)
        eta = self.model.weight_decay
        return [D + eta * W if eta else D for D, W in zip(self.adjoint(dz), self.weights, strict=True)]

    def sample(self, rng: np.random.Generator, draws: int | None = None) -> Any:
        """Draw targets from the model's own prediction.

        Parameters
        ----------
        rng : numpy.random.Generator
            Where randomness comes from.
        draws : int, optional
            The number M of targets for each example; one, without the leading axis, by default.

        Returns
        -------
        (N,), (M, N), (N, C) or (M, N, C) array
            Labels for a categorical, else numbers.

        Raises
        ------
        ValueError
            For fewer than one draw.
        """
        if draws is not None:
            checks.count("draws", draws)
        return self.model.likelihood.sample(self.z, rng, draws)

    def error(self, y: Any = None) -> float:
        """Return the reported error: mean of sum (y - t)^2 for autoencoders, the rate of wrong labels for classes.

        Parameters
        ----------
        y : (N,) or (N, C) array, optional
            The labels or targets (default: those that the point carries).

        Raises
        ------
        ValueError
            For labels that do not fit, or a stack of draws.
        """
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
    """Return `at`, or refuse what is not a Point.

    Parameters
    ----------
    at : Point
        Point of evaluation.

    Raises
    ------
    ValueError
        For anything else, such as a model.
    """
    if not isinstance(at, Point):
        raise ValueError(f"at must be a Point, as model.at(weights, x) returns it, got {type(at).__name__}")
    return at


def _rows_of(outer: Rows, inner: Rows) -> Rows:
    """Return which rows of the whole are meant by rows of a part."""
    return np.arange(outer.stop)[outer][inner] if isinstance(outer, slice) else outer[inner]
