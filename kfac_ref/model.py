"""A model is a network, a likelihood and a weight decay; a point is a model at given weights and inputs.

The objective (paper: sec. 2.2) is the mean over the batch, plus the weight decay on weights and biases alike::

    h(theta)      = (1/N) sum_n -log p(y_n | z_n) + (eta/2) ||theta||^2
    grad h, W_i   = (1/N) g_i^T a_bar_i + eta W_i

One forward pass serves all that is asked at a point: loss, gradient, samples, and everything in `fisher` and
`factors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import checks
from .checks import Array, Direction, Rows
from .likelihoods import Likelihood
from .network import MLP, Pass
from .params import inner


@dataclass(frozen=True)
class Model:
    """A network with a likelihood on its output and a weight decay.

    Parameters
    ----------
    network : MLP
        What maps x to z.
    likelihood : Likelihood
        `Gaussian`, `Categorical`, `Bernoulli`, or a class of the user's with the same methods.
    weight_decay : float
        The paper's eta, at least 0.

    Raises
    ------
    ValueError
        For a negative weight decay.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 2.
    """

    network: MLP
    likelihood: Likelihood
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        checks.number("weight_decay", self.weight_decay, 0)

    def init(self, rng: np.random.Generator, scheme: str = "sparse", dtype: DTypeLike = np.float64) -> list[Array]:
        """Draw initial weights: see `MLP.init`."""
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
        dtype = np.asarray(weights[0]).dtype if len(weights) else np.dtype(float)
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"weights must be float64 or float32, got {dtype}")
        W = checks.direction("weights", weights, self.network.shapes, dtype)
        x = checks.real_array("x", x, (None, self.network.sizes[0]), dtype)
        return Point(self, W, self.network.forward(W, x))


@dataclass(frozen=True)
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
    """

    model: Model
    weights: tuple[Array, ...]
    forward: Pass

    @property
    def x(self) -> Array:
        """The inputs, (N, d_0)."""
        return self.a_bar[0][:, :-1]

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
        return self.s[-1]

    def __len__(self) -> int:
        """Return the number N of examples."""
        return len(self.z)

    def take(self, rows: Rows) -> Point:
        """Return this point for some of its examples, without another forward pass."""
        if isinstance(rows, slice) and rows == slice(None):
            return self                                 # with the slopes that it may have computed already
        part = Point(self.model, self.weights, self.forward.take(rows))
        if not len(part):
            raise ValueError("rows must choose at least one example")
        return part

    def backward(self, dz: Array) -> list[Array]:
        """Send `dz`, (N, C) or a stack (K, N, C), back: ``g[i]`` with respect to ``s[i]``, never divided by N."""
        dz = np.asarray(dz, dtype=self.z.dtype)
        if dz.ndim not in (2, 3) or dz.shape[-2:] != self.z.shape:
            raise ValueError(f"dz must have shape {self.z.shape}, or a stack of those, got {dz.shape}")
        return self.model.network.backward(self.weights, self.forward, dz)

    def tangent(self, V: Direction) -> Array:
        """Return J V: the derivative of z in the direction V of the weights, (N, C)."""
        V = checks.direction("V", V, self.model.network.shapes, self.z.dtype)
        return self.model.network.tangent(self.weights, self.forward, V)

    def adjoint(self, dz: Array) -> list[Array]:
        """Return J^T dz: the direction ``sum over n of g_i^T a_bar_i``, from dz of shape (N, C)."""
        if np.ndim(dz) != 2:
            raise ValueError(f"dz must have shape {self.z.shape}, got {np.shape(dz)}")
        return [g.T @ a_bar for g, a_bar in zip(self.backward(dz), self.a_bar, strict=True)]

    def loss(self, y: Any) -> float:
        """Return h: the mean nll over the batch plus (eta/2) ||theta||^2."""
        # Summed in double precision whatever the dtype: rho is made from differences of losses.
        nll = self.model.likelihood.nll(self.z, y).sum(dtype=np.float64) / len(self)
        return float(nll + self.model.weight_decay / 2 * inner(self.weights, self.weights))

    def gradient(self, y: Any) -> list[Array]:
        """Return grad h, a direction: the mean over the batch, weight decay included."""
        dz = self.model.likelihood.gradient(self.z, y) / len(self)
        eta = self.model.weight_decay
        return [D + eta * W if eta else D for D, W in zip(self.adjoint(dz), self.weights, strict=True)]

    def sample(self, rng: np.random.Generator, draws: int | None = None) -> Any:
        """Draw targets from the model's own prediction: one for each example, or a stack of `draws`."""
        if draws is not None:
            checks.count("draws", draws)
        return self.model.likelihood.sample(self.z, rng, draws)

    def error(self, y: Any) -> float:
        """Return the reported error: mean of sum (y - t)^2 for autoencoders, the rate of wrong labels for classes."""
        return float(self.model.likelihood.error(self.z, y).sum(dtype=np.float64) / len(self))
