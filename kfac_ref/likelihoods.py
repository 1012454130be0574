"""The probability of a target y given the output z of the network: ``p(y | z)``, in its natural parameters.

For each likelihood, of ONE example (paper: sec. 2.2)::

    nll      = -log p(y | z)
    gradient = d nll / dz
    fisher   = F_R = E_{y ~ p(.|z)}[ gradient gradient^T ]         also the Hessian of nll, since z is natural
    root     : root root^T = F_R, in closed form

=============  ====================  ==================  ==============================  ===========================
               nll                   gradient            F_R                             root
=============  ====================  ==================  ==============================  ===========================
Gaussian       1/(2v) ||z - y||^2    (z - y)/v           I/v                             I/sqrt(v)
Categorical    logsumexp(z) - z_y    p - onehot(y)       diag(p) - p p^T                 diag(sqrt p) - p sqrt(p)^T
Bernoulli      sum softplus(z) - yz  p - y               diag(p (1 - p))                 diag(sqrt(p (1 - p)))
=============  ====================  ==================  ==============================  ===========================

The Gaussian has variance v (default: 1); its constant C/2 log(2 pi v) is left out. Wherever 1 - p occurs, it is
computed from the small probabilities that make it up, never by subtraction from 1: at z = 40 that difference has no
correct digit left.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from . import checks
from .checks import Array, Labels

#: The largest C for which `Bernoulli.outcomes` enumerates its 2^C targets.
MAX_BINARY_OUTPUTS = 12


class Likelihood(Protocol):
    """The interface of a likelihood; your own class with these methods can be used in a `Model`.

    z is (N, C) throughout; y is (N,) labels for a categorical, otherwise (N, C) numbers. Wherever one y is accepted, so
    is a stack of draws, (M, N) or (M, N, C); wherever one v is accepted, so is a stack (K, N, C).
    """

    @property
    def labels(self) -> bool:
        """Whether targets are labels (N,) rather than numbers (N, C)."""

    def check(self, z: Array, y: Any) -> Any:
        """Return `y` in the form that the other methods use; raise ValueError if it does not fit z."""

    def nll(self, z: Array, y: Any) -> Array:
        """Return -log p(y | z) of each example in nats, (N,)."""

    def gradient(self, z: Array, y: Any) -> Array:
        """Return the gradient of `nll` with respect to z, (N, C), or (M, N, C) for a stack of M draws."""

    def fisher(self, z: Array) -> Array:
        """Return F_R of each example, (N, C, C)."""

    def fisher_root(self, z: Array) -> Array:
        """Return root with ``root @ root^T = F_R``, (N, C, C)."""

    def fisher_product(self, z: Array, v: Array) -> Array:
        """Return ``F_R v`` of each example; v is (N, C), or a stack (K, N, C) of those."""

    def sample(self, z: Array, rng: np.random.Generator, draws: int | None = None) -> Any:
        """Draw targets from p(. | z): one per example, or a stack of `draws`."""

    def outcomes(self, z: Array) -> tuple[Any, Array]:
        """Return all possible targets, (M, N) or (M, N, C), and their probabilities, (M, N)."""

    def error(self, z: Array, y: Any) -> Array:
        """Return the error that is reported to users, (N,): a squared distance, or 1 for a wrong label."""


@dataclass(frozen=True)
class Gaussian:
    """``y ~ N(z, v I)`` with variance v > 0: nll ``||z - y||^2 / (2 v)``, without its constant.

    Examples
    --------
    >>> import numpy as np
    >>> Gaussian().nll(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]])).tolist()
    [2.5]
    """

    labels: ClassVar[bool] = False
    variance: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "variance", checks.number("variance", self.variance, 0, above=True))

    def check(self, z: Array, y: Any) -> Array:
        """Return `y` as real numbers with the shape of z, or a stack of these."""
        return checks.targets("y", y, z.shape, z.dtype)

    def nll(self, z: Array, y: Any) -> Array:
        """Return ``||z - y||^2 / (2 v)``."""
        return self.error(z, y) / (2 * self.variance)

    def gradient(self, z: Array, y: Any) -> Array:
        """Return ``(z - y) / v``."""
        return (z - self.check(z, y)) / self.variance

    def fisher(self, z: Array) -> Array:
        """Return ``I / v``."""
        return self._identity(z, 1 / self.variance)

    def fisher_root(self, z: Array) -> Array:
        """Return ``I / sqrt(v)``."""
        return self._identity(z, 1 / math.sqrt(self.variance))

    def fisher_product(self, z: Array, v: Array) -> Array:
        """Return ``v`` (the argument) divided by the variance."""
        return v / self.variance

    def sample(self, z: Array, rng: np.random.Generator, draws: int | None = None) -> Array:
        """Draw ``z + sqrt(v) noise``."""
        shape = z.shape if draws is None else (draws, *z.shape)
        return z + math.sqrt(self.variance) * rng.standard_normal(shape, dtype=z.dtype.type)

    def outcomes(self, z: Array) -> tuple[Array, Array]:
        """Raise ValueError: a Gaussian has infinitely many targets."""
        raise ValueError("outcomes: a Gaussian has infinitely many targets; use fisher_root or sample")

    def error(self, z: Array, y: Any) -> Array:
        """Return ``||z - y||^2``."""
        return np.sum(np.square(z - self.check(z, y)), axis=-1)

    def _identity(self, z: Array, scale: float) -> Array:
        return np.broadcast_to(scale * np.eye(z.shape[1], dtype=z.dtype), (*z.shape, z.shape[1]))


@dataclass(frozen=True)
class Categorical:
    """One of C classes with probabilities softmax(z); y holds integer labels 0..C-1.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.array([[0.0, np.log(3.0)]])
    >>> np.round(np.exp(-Categorical().nll(z, [1])), 4).tolist()
    [0.75]
    """

    labels: ClassVar[bool] = True

    def check(self, z: Array, y: Any) -> Labels:
        """Return `y` as integer labels (N,), or a stack (M, N)."""
        return checks.labels("y", y, z.shape[1], z.shape[:1])

    def nll(self, z: Array, y: Any) -> Array:
        """Return ``logsumexp(z) - z_y``; accurate also where it is tiny because z_y is by far the largest."""
        y, leader = self.check(z, y), _leader(z)
        top = z[leader]
        e = np.exp(z - top[:, None])
        e[leader] = 0
        tail = np.log1p(e.sum(axis=1))                     # logsumexp(z) - max(z); log1p's 1 is the leader's own term
        return tail + (top - z[leader[0], y])

    def gradient(self, z: Array, y: Any) -> Array:
        """Return ``p - onehot(y)``; its entry ``p_y - 1`` is computed as minus the sum of the others."""
        y = self.check(z, y)
        draws = y.reshape(-1, len(z))
        target = np.arange(len(draws))[:, None], np.arange(len(z)), draws
        g = np.repeat(_softmax(z)[None], len(draws), axis=0)
        g[target] = 0
        g[target] = -g.sum(axis=-1)
        return g.reshape(*y.shape, z.shape[1])

    def fisher(self, z: Array) -> Array:
        """Return ``diag(p) - p p^T``, its diagonal as p (1 - p)."""
        p = _softmax(z)
        F = -p[:, :, None] * p[:, None, :]
        np.einsum("ncc->nc", F)[:] = p * _others(p)
        return F

    def fisher_root(self, z: Array) -> Array:
        """Return ``diag(sqrt p) - p sqrt(p)^T``, its diagonal as sqrt(p) (1 - p)."""
        p = _softmax(z)
        q = np.sqrt(p)
        B = -p[:, :, None] * q[:, None, :]
        np.einsum("ncc->nc", B)[:] = q * _others(p)
        return B

    def fisher_product(self, z: Array, v: Array) -> Array:
        """Return ``p (v - p^T v)``.

        F_R maps constants to 0, so v is first shifted to be 0 at the most probable class: the rest of ``p^T v`` then
        contains only small probabilities, and nothing cancels.
        """
        p = _softmax(z)
        w = v - v[..., *_leader(z)][..., None]
        return p * (w - np.sum(p * w, axis=-1, keepdims=True))

    def sample(self, z: Array, rng: np.random.Generator, draws: int | None = None) -> Labels:
        """Draw labels."""
        p = _softmax(z)
        edges = np.cumsum(p, axis=1)
        u = rng.random((draws or 1, len(z), 1)) * edges[:, -1:]      # the last edge is 1 up to rounding
        edges[:, -1] = np.inf
        y: Labels = np.argmax(u < edges, axis=-1)           # the first edge above u
        return y[0] if draws is None else y

    def outcomes(self, z: Array) -> tuple[Labels, Array]:
        """Return the C labels, (C, N), and their probabilities, (C, N)."""
        p = _softmax(z)
        y: Labels = np.repeat(np.arange(z.shape[1])[:, None], len(z), axis=1)
        return y, p.T

    def error(self, z: Array, y: Any) -> Array:
        """Return 1 where the most probable class is not `y`, else 0."""
        return (z.argmax(axis=1) != self.check(z, y)).astype(z.dtype)


@dataclass(frozen=True)
class Bernoulli:
    """C independent bits with probabilities logistic(z) (sec. 13: MNIST and CURVES); any y in [0, 1] has an nll.

    Examples
    --------
    >>> import numpy as np
    >>> np.round(Bernoulli().nll(np.array([[0.0, 1e4]]), np.array([[1.0, 1.0]])), 6).tolist()
    [0.693147]
    """

    labels: ClassVar[bool] = False

    def check(self, z: Array, y: Any) -> Array:
        """Return `y` as numbers in [0, 1] with the shape of z, or a stack of these."""
        return checks.targets("y", y, z.shape, z.dtype, interval=(0, 1))

    def nll(self, z: Array, y: Any) -> Array:
        """Return the sum over outputs of ``softplus(z) - y z``."""
        y = self.check(z, y)
        # softplus(z) - y z = log1p(exp(-|z|)) + (1 - y) max(z, 0) + y max(-z, 0): three non-negative terms
        hinge = np.where(z > 0, 1 - y, y) * np.abs(z)
        return np.sum(np.log1p(np.exp(-np.abs(z))) + hinge, axis=-1)

    def gradient(self, z: Array, y: Any) -> Array:
        """Return ``p - y``, as ``p (1 - y) - (1 - p) y``."""
        y = self.check(z, y)
        p, q = _logistic_pair(z)
        return p * (1 - y) - q * y

    def fisher(self, z: Array) -> Array:
        """Return ``diag(p (1 - p))``."""
        p, q = _logistic_pair(z)
        return _diagonal(p * q)

    def fisher_root(self, z: Array) -> Array:
        """Return ``diag(sqrt(p (1 - p)))``."""
        p, q = _logistic_pair(z)
        return _diagonal(np.sqrt(p * q))

    def fisher_product(self, z: Array, v: Array) -> Array:
        """Return ``p (1 - p) v``."""
        p, q = _logistic_pair(z)
        return p * q * v

    def sample(self, z: Array, rng: np.random.Generator, draws: int | None = None) -> Array:
        """Draw bits, as numbers 0 and 1 in the dtype of z."""
        p = _logistic(z)
        shape = z.shape if draws is None else (draws, *z.shape)
        return (rng.random(shape, dtype=z.dtype.type) < p).astype(z.dtype)

    def outcomes(self, z: Array) -> tuple[Array, Array]:
        """Return the 2^C targets, (2^C, N, C), and their probabilities, (2^C, N), for at most 12 outputs."""
        N, C = z.shape
        if C > MAX_BINARY_OUTPUTS:
            raise ValueError(f"outcomes: {C} binary outputs have 2^{C} targets; at most {MAX_BINARY_OUTPUTS} outputs "
                             "are enumerated")
        bits = np.array(list(itertools.product((0, 1), repeat=C)), dtype=z.dtype)
        y = np.repeat(bits[:, None, :], N, axis=1)
        p, q = _logistic_pair(z)
        return y, np.prod(np.where(y == 1, p, q), axis=-1)

    def error(self, z: Array, y: Any) -> Array:
        """Return the reconstruction error ``||p - y||^2``."""
        return np.sum(np.square(self.gradient(z, y)), axis=-1)


def _softmax(z: Array) -> Array:
    """Return the probabilities p of the classes, each with full relative accuracy."""
    p = np.exp(z - z[_leader(z)][:, None])
    p /= p.sum(axis=1, keepdims=True)
    return p


def _leader(z: Array) -> tuple[Labels, Labels]:
    """Return the indices of the largest entry of each row; indexing with them is faster than ``z.max(axis=1)``."""
    return np.arange(len(z)), z.argmax(axis=1)


def _others(p: Array) -> Array:
    """Return 1 - p with full relative accuracy; each row of p sums to 1."""
    leader = _leader(p)
    rest = p.copy()
    rest[leader] = 0
    others = 1 - p                                          # accurate where p <= 1/2 ...
    others[leader] = rest.sum(axis=1)                       # ... and for the leader, the sum of the small ones
    return others


def _logistic_pair(z: Array) -> tuple[Array, Array]:
    """Return p = logistic(z) and 1 - p = logistic(-z), each with full relative accuracy."""
    return _logistic(z), _logistic(-z)


def _logistic(z: Array) -> Array:
    with np.errstate(over="ignore"):                        # an infinite exponential gives exactly 0
        return 1 / (1 + np.exp(-z))


def _diagonal(d: Array) -> Array:
    D = np.zeros((*d.shape, d.shape[1]), dtype=d.dtype)
    np.einsum("ncc->nc", D)[:] = d
    return D
