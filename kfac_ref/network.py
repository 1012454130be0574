"""A multilayer perceptron with its derivatives written by hand: forward pass, backward pass, R-operator.

Layer i (counted from 0) maps the activations of the examples, one per ROW, to those of the next layer (paper:
sec. 2.1)::

    a_bar_i = [a_i, 1]                     a_0 = x                                  (N, d_i + 1)
    s_i     = a_bar_i W_i^T                W_i is (d_{i+1}, d_i + 1), bias last      (N, d_{i+1})
    a_{i+1} = phi_i(s_i)                   the last phi is the identity: z = s_{L-1}

For a loss of one example with gradient dz with respect to z, ``g_i`` is the gradient with respect to s_i::

    g_{L-1} = dz
    g_{i-1} = (g_i W_i[:, :d_i]) * phi'_{i-1}(s_{i-1})           the bias column carries no signal backwards

and the gradient of that example with respect to W_i is ``g_i a_bar_i^T``. The R-operator (sec. 6.4 and app. C)
differentiates the forward pass in the direction V of the weights::

    R s_i     = a_bar_i V_i^T + R a_i W_i[:, :d_i]^T            R a_0 = 0
    R a_{i+1} = phi'_i(s_i) * R s_i

so ``tangent`` is J V, ``backward`` followed by ``g_i^T a_bar_i`` is J^T dz, and the two are adjoint to each other.
Applied to the backward pass, R gives the products with the Hessian (`hessian`)::

    R g_{L-1} = R dz
    R da_i    = R g_i W_i[:, :d_i] + g_i V_i[:, :d_i]                     da_i = g_i W_i[:, :d_i]
    R g_{i-1} = R da_i * phi'_{i-1}(s_{i-1}) + da_i * phi''_{i-1}(s_{i-1}) * R s_{i-1}

A layer without bias has ``a_bar_i = a_i`` and W_i of shape (d_{i+1}, d_i).

In the methods below, `weights` are the parameters, one array per layer, and `forward` is the `Pass` computed at them;
`V` is a direction, a list of arrays shaped like the weights. Nothing is checked here: `Point` checks its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from . import checks
from .checks import Array, Direction, Rows


@dataclass(frozen=True)
class Activation:
    """A nonlinearity phi and its first two derivatives, elementwise.

    The derivatives take ``(s, a)`` with ``a = phi(s)``, which the forward pass has already computed.
    """

    phi: Callable[[Array], Array]
    dphi: Callable[[Array, Array], Array]
    ddphi: Callable[[Array, Array], Array]

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle an entry of `ACTIVATIONS` by its name, because its functions cannot be pickled."""
        for name, f in ACTIVATIONS.items():
            if f is self:
                return _activation, ("hidden", name)
        return super().__reduce__()


def _logistic(s: Array) -> Array:
    return (1 + np.tanh(s / 2)) / 2         # several times faster than expit; for accurate tails see `likelihoods`


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda s: s, lambda s, a: np.ones_like(s), lambda s, a: np.zeros_like(s)),
    "tanh": Activation(np.tanh, lambda s, a: 1 - a * a, lambda s, a: -2 * a * (1 - a * a)),
    "logistic": Activation(_logistic, lambda s, a: a * (1 - a), lambda s, a: a * (1 - a) * (1 - 2 * a)),
    # The derivative of relu at 0 is taken to be 0.
    "relu": Activation(lambda s: np.maximum(s, 0), lambda s, a: (s > 0).astype(s.dtype), lambda s, a: np.zeros_like(s)),
    # exp(-softplus(s)) = 1 - logistic(s), so both derivatives come from a, and keep their digits for s << 0.
    "softplus": Activation(lambda s: np.maximum(s, 0) + np.log1p(np.exp(-np.abs(s))),
                           lambda s, a: -np.expm1(-a), lambda s, a: -np.expm1(-a) * np.exp(-a)),
}


@dataclass(frozen=True)
class Pass:
    """The intermediate results of one forward pass, one array per layer i = 0..L-1."""

    activations: tuple[Activation, ...]     #: The nonlinearity after each layer; the last is the identity.
    a: tuple[Array, ...]                    #: The input of layer i, (N, d_i); a view of its `a_bar`.
    a_bar: tuple[Array, ...]                #: The same with a column of ones, (N, d_i + 1), if the layer has a bias.
    s: tuple[Array, ...]                    #: The output of layer i before its nonlinearity, (N, d_{i+1}).

    @cached_property
    def slopes(self) -> tuple[Array, ...]:
        """The arrays ``phi'_i(s_i)`` of the hidden layers, i = 0..L-2, each (N, d_{i+1})."""
        return tuple(f.dphi(s, a) for f, s, a in zip(self.activations[:-1], self.s[:-1], self.a[1:], strict=True))

    @property
    def x(self) -> Array:
        """The inputs, (N, d_0)."""
        return self.a[0]

    @property
    def z(self) -> Array:
        """The output of the network, (N, C)."""
        return self.s[-1]

    def take(self, rows: Rows) -> Pass:
        """Return the pass for some of the examples, in the order of `rows`, without computing it again."""
        a_bar = tuple(a_bar[rows] for a_bar in self.a_bar)
        a = tuple(taken[:, :a.shape[1]] for taken, a in zip(a_bar, self.a, strict=True))
        return Pass(self.activations, a, a_bar, tuple(s[rows] for s in self.s))


class Network(Protocol):
    """The interface that a `Model` needs of its network; `MLP` implements it."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths d_0, ..., d_L."""

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shape of each layer's weights."""

    @property
    def parameters(self) -> int:
        """The number P of weights and biases."""

    def init(self, rng: np.random.Generator, scheme: str = "sparse", dtype: DTypeLike = np.float64) -> list[Array]:
        """Draw initial weights."""

    def forward(self, weights: Direction, x: Array) -> Pass:
        """Run the network and return every intermediate result."""

    def backward(self, weights: Direction, forward: Any, dz: Array) -> list[Array]:
        """Propagate gradients with respect to the output back to the outputs of all layers."""

    def tangent(self, weights: Direction, forward: Any, V: Direction) -> Array:
        """Return J V, the derivative of the output in the direction V of the weights."""


@dataclass(frozen=True)
class MLP:
    """A fully connected network with linear output (sec. 2.1).

    Parameters
    ----------
    sizes : tuple of int
        Widths d_0, ..., d_L: inputs, hidden layers, outputs.
    hidden : str or sequence of L-1 str
        The nonlinearity of the hidden layers, one for all or one per layer: ``tanh``, ``logistic``, ``relu``,
        ``softplus``, ``identity``, or an `Activation` of your own.
    bias : bool or sequence of L bool
        Whether the layers have a bias, one value for all or one per layer.

    Examples
    --------
    >>> MLP((64, 32, 10), "tanh").shapes
    ((32, 65), (10, 33))
    """

    sizes: tuple[int, ...]
    hidden: Any = "tanh"
    bias: Any = True

    def __post_init__(self) -> None:
        if isinstance(self.sizes, (int, str)) or len(self.sizes) < 2:
            raise ValueError(f"sizes must hold at least the number of inputs and of outputs, got {self.sizes!r}")
        sizes = tuple(checks.count(f"sizes[{i}]", d) for i, d in enumerate(self.sizes))
        one = isinstance(self.hidden, (str, Activation))
        hidden = (self.hidden,) * (len(sizes) - 2) if one else tuple(self.hidden)
        if one:
            _activation("hidden", self.hidden)
        if len(hidden) != len(sizes) - 2:
            raise ValueError(f"hidden must name one nonlinearity for each of the {len(sizes) - 2} hidden layers, "
                             f"got {len(hidden)}")
        for i, name in enumerate(hidden):
            _activation(f"hidden[{i}]", name)
        bias = (self.bias,) * (len(sizes) - 1) if isinstance(self.bias, bool) else tuple(self.bias)
        if len(bias) != len(sizes) - 1 or not all(isinstance(b, bool) for b in bias):
            raise ValueError(f"bias must be True, False, or one of them for each of the {len(sizes) - 1} layers, "
                             f"got {self.bias!r}")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "hidden", hidden)
        object.__setattr__(self, "bias", bias)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shape (d_{i+1}, d_i + 1) of each layer's weights; (d_{i+1}, d_i) without bias."""
        return tuple((m, n + b) for n, m, b in zip(self.sizes[:-1], self.sizes[1:], self.bias, strict=True))

    @property
    def parameters(self) -> int:
        """The number P of weights and biases."""
        return sum(m * n for m, n in self.shapes)

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The nonlinearity after each layer; the last one is the identity."""
        return (*(_activation("hidden", f) for f in self.hidden), ACTIVATIONS["identity"])

    def init(self, rng: np.random.Generator, scheme: str = "sparse", dtype: DTypeLike = np.float64) -> list[Array]:
        """Draw initial weights, one (d_{i+1}, d_i + 1) array per layer, with the bias in the last column.

        Parameters
        ----------
        scheme : {"sparse", "glorot"}
            ``sparse`` is the paper's (sec. 13): each unit has 15 incoming weights from N(0, 1), or all of them if it
            has fewer inputs, and bias 0. The units of a tanh layer have half those weights and the bias 1/2, as in the
            author's code. ``glorot`` draws all weights from U(-r, r), r = sqrt(6 / (fan in + fan out)), with biases 0.
        dtype : {numpy.float64, numpy.float32}
            The precision of everything that is computed from these weights.
        """
        dtype = checks.precision("dtype", dtype)
        draw = checks.known("scheme", scheme, {"sparse": _sparse, "glorot": _glorot})
        names = (*self.hidden, "identity")
        return [draw(rng, m, n, name)[:, :n + b].astype(dtype)
                for n, m, name, b in zip(self.sizes[:-1], self.sizes[1:], names, self.bias, strict=True)]

    def forward(self, weights: Direction, x: Array) -> Pass:
        """Run the network on x, (N, d_0), and return every intermediate result."""
        a, a_bar, s = [], [], []
        now = x
        for W, f, b in zip(weights, self.activations, self.bias, strict=True):
            a_bar.append(_with_ones(now) if b else now)
            a.append(a_bar[-1][:, :now.shape[1]])
            s.append(a_bar[-1] @ W.T)
            now = f.phi(s[-1])
        return Pass(self.activations, tuple(a), tuple(a_bar), tuple(s))

    def backward(self, weights: Direction, forward: Pass, dz: Array) -> list[Array]:
        """Propagate dz, (N, d_L) or a stack (K, N, d_L), back through the network.

        Returns g: ``g[i]``, (N, d_{i+1}) or (K, N, d_{i+1}), is the gradient with respect to ``s[i]``, example by
        example.
        """
        g = [dz]
        for W, slope in zip(reversed(weights[1:]), reversed(forward.slopes), strict=True):
            d = slope.shape[1]
            # A stack is one tall matrix product; the slopes are shared by its K members.
            da = (g[-1].reshape(-1, W.shape[0]) @ W[:, :d]).reshape(*dz.shape[:-1], d)
            da *= slope
            g.append(da)
        return g[::-1]

    def tangent(self, weights: Direction, forward: Pass, V: Direction) -> Array:
        """Return J V, the derivative of z in the direction V of the weights (the R-operator), (N, d_L)."""
        ds = forward.a_bar[0] @ V[0].T
        for W, v, a_bar, slope in zip(weights[1:], V[1:], forward.a_bar[1:], forward.slopes, strict=True):
            ds *= slope                                                 # now R a
            ds = ds @ W[:, :ds.shape[1]].T + a_bar @ v.T
        return ds

    def tangent_backward(self, weights: Direction, forward: Pass, V: Direction, g: Direction,
                         Rdz: Callable[[Array], Array]) -> tuple[list[Array], list[Array]]:
        """Differentiate the backward pass in the direction V of the weights.

        Parameters
        ----------
        g : list of (N, d_{i+1}) arrays
            The result of `backward`.
        Rdz : function of an (N, d_L) array
            Returns the derivative of dz, given that of z.

        Returns
        -------
        Rg, Ra_bar : lists of (N, d_{i+1}) and (N, d_i + 1) arrays
            The derivatives of g and a_bar along V.
        """
        Ra_bar, Rs = [np.zeros_like(forward.a_bar[0])], [forward.a_bar[0] @ V[0].T]
        for W, v, a_bar, slope in zip(weights[1:], V[1:], forward.a_bar[1:], forward.slopes, strict=True):
            Ra_bar.append(np.zeros_like(a_bar))
            Ra_bar[-1][:, :slope.shape[1]] = slope * Rs[-1]
            Rs.append(a_bar @ v.T + Ra_bar[-1] @ W.T)
        Rg = [Rdz(Rs[-1])]
        for i in range(len(weights) - 1, 0, -1):
            s, a, slope = forward.s[i - 1], forward.a[i], forward.slopes[i - 1]
            d = slope.shape[1]
            da, Rda = g[i] @ weights[i][:, :d], Rg[-1] @ weights[i][:, :d] + g[i] @ V[i][:, :d]
            Rg.append(Rda * slope + da * forward.activations[i - 1].ddphi(s, a) * Rs[i - 1])
        return Rg[::-1], Ra_bar


def _activation(name: str, f: str | Activation) -> Activation:
    return f if isinstance(f, Activation) else checks.known(name, f, ACTIVATIONS)


def _with_ones(a: Array) -> Array:
    a_bar = np.empty((a.shape[0], a.shape[1] + 1), dtype=a.dtype)
    a_bar[:, :-1] = a
    a_bar[:, -1] = 1
    return a_bar


def _sparse(rng: np.random.Generator, units: int, inputs: int, name: str) -> Array:
    W = np.zeros((units, inputs + 1))
    for row in W:
        chosen = rng.permutation(inputs)[:15]
        row[chosen] = rng.standard_normal(len(chosen))
    if name == "tanh":
        W[:, :-1] *= 0.5
        W[:, -1] = 0.5
    return W


def _glorot(rng: np.random.Generator, units: int, inputs: int, name: str) -> Array:
    r = np.sqrt(6 / (units + inputs))
    W = np.zeros((units, inputs + 1))
    W[:, :-1] = rng.uniform(-r, r, (units, inputs))
    return W
