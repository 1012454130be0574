"""The three expectations over targets: what is sent back through the network.

An expectation is a function of a `Point` that returns a stack of K columns, (K, N, C). With g^k the backward pass of
column k, every curvature matrix of this package is a mean over examples of a sum over columns of products of g^k::

    exact       the C columns of a root of F_R: y runs over the model's own predictive distribution, in closed form
    sampled     the gradients of -log p at M targets drawn from that distribution, over sqrt(M): their mean (sec. 5)
    empirical   the gradient of -log p at the labels; this is not the Fisher (Kunstner et al. 2019)

Each column is sent back on its own. Several columns added up in one pass would give cross terms.
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
    """Return the C columns of a root of F_R, (C, N, C): column k of example n is ``[k, n]``.

    Parameters
    ----------
    at : Point
        Point of evaluation.

    Raises
    ------
    ValueError
        For a stack of more than 4 GiB.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 2.2; as factors, the KFLR of Botev et al. 2017.
    """
    N, C = at.z.shape
    checks.dense_size("the stack of the columns of F_R's roots", N * C, C, at.z.itemsize)
    return np.ascontiguousarray(np.moveaxis(at.model.likelihood.fisher_root(at.z), 2, 0))


@dataclass(frozen=True, eq=False)
class Sampled:
    """Made by `sampled`."""

    targets: Any

    def __call__(self, at: Point) -> Array:
        """Return the gradients at the targets over sqrt(M), (M, N, C)."""
        dz = at.model.likelihood.gradient(at.z, _of_rows(at, self.targets))
        dz = dz[None] if dz.ndim == at.z.ndim else dz
        return dz / at.z.dtype.type(np.sqrt(len(dz)))


def sampled(targets: Any) -> Sampled:
    """Return the expectation over targets that were drawn from the model's prediction.

    Parameters
    ----------
    targets : (N,), (M, N), (N, C) or (M, N, C) array
        As drawn by ``at.sample``; M draws are averaged. For the parts of a data set, the targets of the whole data set.

    Returns
    -------
    Expectation
        Returns (M, N, C). It raises a ValueError for targets that do not fit.

    Notes
    -----
    Source: Martens & Grosse 2015, sec. 5.
    """
    return Sampled(targets)


@dataclass(frozen=True, eq=False)
class Empirical:
    """Made by `empirical`."""

    y: Any = None

    def __call__(self, at: Point) -> Array:
        """Return the gradient at the labels, (1, N, C)."""
        return at.output_gradient(None if self.y is None else _of_rows(at, self.y))[None]


def empirical(y: Any = None) -> Empirical:
    """Return the expectation at the labels, which does not give the Fisher.

    Parameters
    ----------
    y : (N,) or (N, C) array, optional
        The labels or targets; for the parts of a data set, those of the whole data set (default: those that the point
        carries).

    Returns
    -------
    Expectation
        Returns (1, N, C). It raises a ValueError for labels that do not fit, or a stack of draws.

    Notes
    -----
    Source: Kunstner et al. 2019.
    """
    return Empirical(y)


@dataclass(frozen=True)
class OneDraw:
    """One target per example, drawn from the model's prediction: the paper's choice (sec. 5).

    Parameters
    ----------
    seed, step : int
        The draw is a function of the two and of the first row of the point. `KFAC` draws its own at each step.
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
    """Return g of each layer for all columns of an expectation.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    expectation : function of a Point
        `exact`, ``sampled(targets)``, ``empirical(y)``, `one_draw` or your own.

    Returns
    -------
    list of (K, N, d_{i+1}) arrays
        One per layer.

    Raises
    ------
    ValueError
        For something that is not a point or an expectation, or a stack of a wrong shape.
    """
    stack = columns(at, expectation)
    return at.backward(stack)


def columns(at: Point, expectation: Expectation) -> Array:
    """Return the stack of an expectation at a point, checked.

    Parameters
    ----------
    at : Point
        Point of evaluation.
    expectation : function of a Point
        `exact`, ``sampled(targets)``, ``empirical(y)``, `one_draw` or your own.

    Returns
    -------
    (K, N, C) array
        The stack to send back.

    Raises
    ------
    ValueError
        For something that is not a point or an expectation, or a stack of a wrong shape.
    """
    at = as_point(at)
    if not callable(expectation):
        raise ValueError("expectation must be a function of a point, such as exact, sampled(targets) or empirical(y), "
                         f"got {type(expectation).__name__}")
    stack = np.asarray(expectation(at), dtype=at.z.dtype)
    if stack.ndim != at.z.ndim + 1 or stack.shape[1:] != at.z.shape or not len(stack):
        raise ValueError(f"expectation must return a stack (K, {', '.join(map(str, at.z.shape))}), got {stack.shape}")
    return stack


def _of_rows(at: Point, targets: Any) -> Any:
    """Return the targets of the examples of a point, from those of the whole data set."""
    if at.rows is None:
        return targets
    targets = checks.array("targets", targets)
    return targets[..., at.rows] if at.model.likelihood.labels else targets[..., at.rows, :]
