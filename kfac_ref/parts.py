"""A data set in parts, and means over all examples that are computed part by part.

    mean over all examples = sum over parts of (n / N) (mean over the part)

Loss, gradient, factors, dense Fishers and products with them are such means, so the forward pass of a whole data set
never has to fit in memory. A part holds what is needed to make its point, not the point itself; `Model.parts` makes
the parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .checks import Array

if TYPE_CHECKING:
    from .model import Model, Point

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Part:
    """Some examples of a data set and the weights to evaluate them at; `point` runs the forward pass."""

    model: Model
    weights: tuple[Array, ...]
    x: Any          #: Inputs (n, d_0), or a function without arguments that loads them: it returns ``(x, y)``.
    y: Any          #: Labels (n,) or targets (n, C), or None.
    rows: slice     #: The position of these examples in the whole data set.

    def point(self) -> Point:
        """Run the network on the examples of this part."""
        x, y = self.x() if callable(self.x) else (self.x, self.y)
        at = self.model.at(self.weights, x)
        return replace(at, y=y, rows=self.rows)


def mean_over(parts: Iterable[Part], f: Callable[[Point], Value],
              map: Callable[..., Iterable[tuple[int, Value]]] = map) -> Value:
    """Return the mean of `f` over all examples, ``sum (n / N) f(part)``, added up in the order of the parts.

    Parameters
    ----------
    f : function of a Point
        Its result is a mean over the examples of that point: a number, an array, a sequence or mapping of these (such
        as a direction), `Moments`, or the `Factors` of an estimator whose factors are means. Raises ValueError for any
        other result.
    map : function
        ``map(function, parts)``, such as that of an executor (default: the built-in one). It must keep the order. `f`
        is evaluated inside it, so no more forward passes are in memory than are evaluated at once.

    Examples
    --------
    >>> import numpy as np, kfac_ref as kr
    >>> model = kr.Model(kr.MLP((1, 1)), kr.Gaussian())
    >>> parts = model.parts([np.array([[1.0, 0.0]])], [[1.0], [2.0], [6.0]], size=2)
    >>> kr.mean_over(parts, lambda at: float(at.z.mean()))
    3.0
    """
    total, N = None, 0
    for n, value in map(functools.partial(_evaluate, f), parts):
        weighted = _combine(lambda a, n=n: n * a, value)
        total = weighted if total is None else _combine(lambda a, b: a + b, total, weighted)
        N += n
    if not N:
        raise ValueError("parts must hold at least one part")
    result: Value = _combine(lambda a: a / N, total)
    return result


def _evaluate(f: Callable[[Point], Value], part: Part) -> tuple[int, Value]:
    at = part.point()
    return len(at), f(at)


def _combine(mix: Callable[..., Any], *values: Any) -> Any:
    """Apply `mix` to the numbers and arrays at the same place in values of the same structure."""
    first = values[0]
    if hasattr(first, "combine"):
        return first.combine(mix, *values[1:])
    if isinstance(first, Mapping):
        return {key: _combine(mix, *(value[key] for value in values)) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_combine(mix, *items) for items in zip(*values, strict=True))
    if isinstance(first, (float, int, np.ndarray, np.generic)):
        return mix(*values)
    raise ValueError(f"f must return means over the examples (numbers, arrays, directions, moments or plain factors), "
                     f"got {type(first).__name__}")
