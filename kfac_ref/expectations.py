"""The three expectations over targets: which gradients are sent back through the network.

An expectation is a function of a `Point` that returns a stack of K columns, (K, N, C). With g^k the backward pass of
column k, every curvature matrix of this package is a mean over examples of a sum over columns of products of g^k::

    exact       the C columns of a root of F_R: y runs over the model's own predictive distribution, in closed form
    sampled     the gradients of -log p at M targets drawn from that distribution, over sqrt(M): their mean (sec. 5)
    empirical   the gradient of -log p at the labels; this is not the Fisher (Kunstner et al. 2019)

Each column is sent back on its own: several columns added up in one pass would give cross terms.

Targets and labels may be those of a whole data set; a point that is part of it selects its own rows. All functions
raise ValueError for targets that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from . import checks
from .checks import Array
from .model import Point, as_point

#: A function of a point that returns the stack to send back, (K, N, C).
Expectation: TypeAlias = Callable[[Point], Array]


def exact(at: Point) -> Array:
    """Return the C columns of a root of F_R, (C, N, C): column k of example n is ``[k, n]`` (sec. 2.2).

    As Kronecker factors, this is the KFLR of Botev et al. 2017. A stack of more than 4 GiB raises ValueError.
    """
    N, C = at.z.shape
    checks.dense_size("the stack of the columns of F_R's roots", N * C, C, at.z.itemsize)
    return np.ascontiguousarray(np.moveaxis(at.model.likelihood.fisher_root(at.z), 2, 0))


@dataclass(frozen=True, eq=False)
class Sampled:
    """The expectation made by `sampled`."""

    targets: Any

    def __call__(self, at: Point) -> Array:
        """Return the gradients at the targets over sqrt(M), (M, N, C)."""
        dz = at.model.likelihood.gradient(at.z, _of_rows(at, self.targets))
        dz = dz[None] if dz.ndim == at.z.ndim else dz
        return dz / at.z.dtype.type(np.sqrt(len(dz)))


def sampled(targets: Any) -> Sampled:
    """Return the expectation over targets drawn from the model's prediction by ``at.sample`` (sec. 5).

    `targets` holds one draw, (N,) or (N, C), or a stack of M draws, (M, N) or (M, N, C), which are averaged.
    """
    return Sampled(targets)


@dataclass(frozen=True, eq=False)
class Empirical:
    """The expectation made by `empirical`."""

    y: Any = None

    def __call__(self, at: Point) -> Array:
        """Return the gradient at the labels, (1, N, C)."""
        return at.output_gradient(None if self.y is None else _of_rows(at, self.y))[None]


def empirical(y: Any = None) -> Empirical:
    """Return the expectation at the labels, which does not give the Fisher (Kunstner et al. 2019).

    `y` defaults to the labels or targets that the point carries.
    """
    return Empirical(y)


@dataclass(frozen=True)
class OneDraw:
    """One target per example, drawn from the model's prediction: the paper's choice (sec. 5).

    The draw is a function of `seed`, `step` and the first row of the point. `KFAC` draws with its own generator
    instead.
    """

    seed: int = 0
    step: int = 0

    def __call__(self, at: Point) -> Array:
        """Return the gradient at one sampled target per example, (1, N, C)."""
        first = 0 if at.rows is None else at.rows.start if isinstance(at.rows, slice) else int(at.rows[0])
        dz = at.model.likelihood.gradient(at.z, at.sample(np.random.default_rng((self.seed, self.step, first))))
        return dz[None]


#: One sampled target per example.
one_draw = OneDraw()


def gradients(at: Point, expectation: Expectation) -> list[Array]:
    """Return g of each layer for all columns of an expectation: L arrays (K, N, d_{i+1})."""
    stack = columns(at, expectation)
    return at.backward(stack)


def columns(at: Point, expectation: Expectation) -> Array:
    """Return the stack of an expectation at a point, (K, N, C), after checking it."""
    at = as_point(at)
    if not callable(expectation):
        raise ValueError("expectation must be a function of a point, such as exact, sampled(targets) or empirical(y), "
                         f"got {type(expectation).__name__}")
    stack = np.asarray(expectation(at), dtype=at.z.dtype)
    if stack.ndim != at.z.ndim + 1 or stack.shape[1:] != at.z.shape or not len(stack):
        raise ValueError(f"expectation must return a stack (K, {', '.join(map(str, at.z.shape))}), got {stack.shape}")
    return stack


def _of_rows(at: Point, targets: Any) -> Any:
    """Return the targets of a point's examples, from those of the whole data set."""
    if at.rows is None:
        return targets
    targets = checks.array("targets", targets)
    return targets[..., at.rows] if at.model.likelihood.labels else targets[..., at.rows, :]
