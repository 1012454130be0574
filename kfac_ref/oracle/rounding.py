"""How far rounding moves each entry of a quantity.

An implementation rounds after every operation. `sensitivity` recomputes a quantity with inputs and intermediate values
that are each off by a random relative error, and measures how far every entry moves: badly conditioned solves and sums
that cancel move far, an exact 1 in the corner of A hardly. `without_digits` does the same where p rounds to 1, so that
p - y has no digit left.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import scipy.special

from ..checks import Array
from ..likelihoods import Bernoulli, Categorical
from .graph import FAILS, Reference

DOUBLE_UNIT, SINGLE_UNIT = 2.0**-53, 2.0**-24
#: A small entry may hardly move in so few draws: a value that is nearly right is compared with more of them.
DRAWS, MORE_DRAWS = 3, 12
#: What nodes hold that is not rounded.
_EXACT = ("y", "targets", "damping", "eta", "previous", "model_damping", "ceiling", "epsilon", "lambda_before", "k",
          "N")


class _Noisy(Reference):
    """A reference whose inputs and intermediate values are each off by a random relative error."""

    def __init__(self, reference: Reference, size: float, seed: int) -> None:
        self._rng, self._size = np.random.default_rng((seed, 7)), size
        problem = reference.problem
        changed = {"weights": tuple(map(self._noisy, problem.weights)), "x": self._noisy(problem.x)}
        super().__init__(problem.replace(**changed), reference.mistakes, reference.given)

    def having(self, *mistakes: Any) -> Reference:
        """Return a reference of the noisy problem with these mistakes."""
        return Reference(self.problem, mistakes, self.given)

    def taking(self, **given: Any) -> Reference:
        """Return a noisy reference with the values of some nodes replaced."""
        taken = Reference(self.problem, self.mistakes, {**self.given, **given})
        return _Noisy(taken, self._size, int(self._rng.integers(2**31)))

    def _value(self, name: str) -> Any:
        value = super()._value(name)
        if name in _EXACT or name in self.given or isinstance(value, ValueError):
            return value
        if name in ("dz", "dz_exact", "dz_sampled"):
            return self._without_digits(name, value)
        if name == "a_bar":                                 # such as log(1 + exp(s)) where it is small
            value = tuple(a + self._size * self._rng.standard_normal(a.shape) * (np.arange(a.shape[1]) < a.shape[1] - 1)
                          if i and self.problem.hidden[i - 1] not in ("relu", "identity") else a
                          for i, a in enumerate(value))
        if name in ("g", "g_exact", "g_sampled"):           # slopes such as 1 - tanh(s)^2
            value = tuple(g + self._size * self._rng.standard_normal(g.shape) * (after @ W[:, :g.shape[-1]])
                          for g, after, W in zip(value, value[1:], self.problem.weights[1:], strict=False)) + value[-1:]
        return self._noisy(value)

    def _without_digits(self, name: str, value: Array) -> Array:
        """Return p - y with the rounding of p, which leaves no digit where p rounds to y."""
        p = _probabilities(self)
        if p is None:
            return value * (1 + self._size * self._rng.standard_normal(value.shape))
        off = self._size * self._rng.standard_normal(value.shape) * p
        if name == "dz_exact" and isinstance(self.problem.model.likelihood, Categorical):
            return value + off * np.sqrt(p).T[:, :, None]
        return np.sqrt(np.maximum(value**2 + off * (value != 0), 0)) if name == "dz_exact" else value + off

    def _noisy(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._noisy, value))
        if isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            return value * (1 + self._size * self._rng.standard_normal(np.shape(value)))
        return value


class _Rounded(Reference):
    """A reference in which p - y and p (1 - p) are 0 where p rounds to 1, or where they are too small for a square."""

    def __init__(self, reference: Reference, unit: float) -> None:
        super().__init__(reference.problem, reference.mistakes, reference.given)
        self._unit = unit

    def taking(self, **given: Any) -> Reference:
        """Return a rounded reference with the values of some nodes replaced."""
        return _Rounded(super().taking(**given), self._unit)

    def _value(self, name: str) -> Any:
        value = super()._value(name)
        if name not in ("dz", "dz_exact", "dz_sampled") or isinstance(value, ValueError):
            return value
        p = _probabilities(self)
        if p is None:
            return value
        is_root = name == "dz_exact" and isinstance(self.problem.model.likelihood, Bernoulli)
        least = math.sqrt(self._unit) if is_root else self._unit
        lost = (p > 1 - self._unit) & (np.abs(value) <= least)
        tiny = np.finfo(np.float32 if self._unit == SINGLE_UNIT else np.float64).tiny
        return np.where(lost | (np.square(value) < tiny), 0, value)


def _probabilities(reference: Reference) -> Array | None:
    """Return the model's p, None if its likelihood has none."""
    likelihood, z = reference.problem.model.likelihood, reference["z"]
    if isinstance(likelihood, Categorical):
        return np.asarray(scipy.special.softmax(z, axis=1))
    return np.asarray(scipy.special.expit(z)) if isinstance(likelihood, Bernoulli) else None


# Copies of a reference serve all of its quantities.
_rounded = functools.lru_cache(maxsize=4)(_Rounded)
_copy = functools.lru_cache(maxsize=2 * MORE_DRAWS)(_Noisy)


def without_digits(reference: Reference, name: str, unit: float) -> Any:
    """Return how far each entry moves where p rounds to 1, in the form of the quantity; 0 if it does nowhere."""
    p, right = _probabilities(reference), reference.shown(name)
    if p is None or not np.any(p > 1 - unit):
        return 0.0
    rounded = []
    for u in {unit, DOUBLE_UNIT}:                           # few digits may be those of double precision
        with suppress(*FAILS):
            rounded.append(_rounded(reference, u).shown(name))
    if not rounded:
        return 0.0
    return each(lambda a, *others: np.max([np.abs(b - a) for b in others], axis=0), right, *rounded)


def sensitivity(reference: Reference, name: str, unit: float, draws: int = DRAWS) -> Any:
    """Return how far rounding moves each entry of a quantity, in the form of the quantity."""
    size = max(unit, 1e-14)                                 # smaller changes would drown in the rounding of our own
    right, moved = reference.shown(name), []
    for seed in range(draws):
        with suppress(*FAILS):
            moved.append(_copy(reference, size, seed).shown(name))
    if not moved:
        return each(lambda a: np.full(np.shape(a), np.inf), right)
    # A trajectory may take another turn at a threshold.
    middle = np.median if name.startswith("trajectory_") else np.max
    return each(lambda a, *others: _spread(np.asarray(a, dtype=float), others, middle) * unit / size, right, *moved)


def _spread(a: Array, moved: Any, middle: Callable[..., Any]) -> Array:
    """Return the movement of each entry, no less than that of its row and column lets one expect."""
    known = [np.abs(b - a) for b in moved if np.shape(b) == a.shape]
    if not known:
        return np.full(a.shape, np.inf)
    E = np.nan_to_num(middle(known, axis=0), nan=0.0)
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.allclose(a, a.T, 0, 1e-9 * np.max(np.abs(a))):
        diagonal = np.sqrt(np.diag(E))                      # an entry off the diagonal may be a sum that cancels
        return np.maximum(E, np.outer(diagonal, diagonal))
    if a.ndim >= 2 and E.any():                             # the matrix of a layer, or that of each step
        rows, columns = (np.sqrt(np.mean(E**2, axis=axis, keepdims=True)) for axis in (-1, -2))
        whole = np.sqrt(np.mean(E**2, axis=(-1, -2), keepdims=True))
        return np.maximum(E, rows * columns / np.maximum(whole, 1e-300))
    return E


def each(f: Any, value: Any, *others: Any) -> Any:
    """Apply a function to the arrays of a quantity, one by one."""
    if isinstance(value, tuple):
        others = tuple(o for o in others if isinstance(o, tuple) and len(o) == len(value))
        return tuple(f(*arrays) for arrays in zip(value, *others, strict=True))
    return f(value, *others)
