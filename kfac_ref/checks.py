"""Input validation, done before any computation; the messages for bad input are written here.

Each function returns its argument, converted where that is harmless, or raises a ``ValueError`` that names the
argument, what was expected, and what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Real numbers, float64 or float32.
Array: TypeAlias = NDArray[np.floating[Any]]
#: Whole numbers, such as labels.
Labels: TypeAlias = NDArray[np.integer[Any]]
#: A choice of examples: a slice, or their indices.
Rows: TypeAlias = slice | NDArray[np.integer[Any]]
#: A direction in parameter space: one array per layer, shaped like the weights.
Direction: TypeAlias = Sequence[Array]
Entry = TypeVar("Entry")

#: The default limit on the size of a dense matrix, in bytes.
DENSE_BYTES = 4 * 2**30


class NotFiniteError(ValueError):
    """Raised by `finite`; a run whose weights diverge also ends with it."""


def finite(name: str, a: Array) -> Array:
    """Return `a`; if it has NaN or infinite entries, report their number and the first position."""
    # The sum is finite only if every entry is; it costs one pass and no temporary array. (The sum of finite entries can
    # overflow, so the slow count decides.)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(a.sum()):
            return a
    bad = ~np.isfinite(a)
    if not bad.any():
        return a
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    raise NotFiniteError(f"{name} must be finite: {int(bad.sum())} of {a.size} entries are NaN or infinite, "
                         f"the first at {place}")


def array(name: str, a: Any) -> NDArray[Any]:
    """Return `a` as an array; nested lists must not be ragged."""
    try:
        return np.asarray(a)
    except ValueError:
        raise ValueError(f"{name} must be a rectangular array, got a ragged {type(a).__name__}") from None


def precision(name: str, dtype: DTypeLike) -> np.dtype[Any]:
    """Return `dtype` if it is float64 or float32."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} must be float64 or float32, got {dtype}")
    return dtype


def real_array(name: str, a: Any, shape: tuple[int | None, ...], dtype: DTypeLike) -> Array:
    """Return `a` as a finite array of `dtype` and `shape`; ``None`` in the shape allows any length except 0."""
    a = array(name, a)
    if a.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {a.dtype}")
    if a.ndim != len(shape) or any(d not in (None, n) for d, n in zip(shape, a.shape, strict=True)):
        wanted = "(" + ", ".join("any" if d is None else str(d) for d in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {wanted}, got {a.shape}")
    if 0 in a.shape:
        raise ValueError(f"{name} must not be empty, got shape {a.shape}")
    if a.dtype != dtype:
        with np.errstate(over="ignore"):                    # what overflows becomes infinite, and is rejected
            a = a.astype(dtype)
    return finite(name, a)


def direction(name: str, V: Direction, shapes: Sequence[tuple[int, int]], dtype: DTypeLike) -> tuple[Array, ...]:
    """Return `V` as a tuple of finite arrays of the given shapes, one per layer."""
    if isinstance(V, np.ndarray) or not isinstance(V, Sequence):
        raise ValueError(f"{name} must be a list of {len(shapes)} arrays, one per layer, got {type(V).__name__}")
    if len(V) != len(shapes):
        raise ValueError(f"{name} must hold one array per layer: expected {len(shapes)}, got {len(V)}")
    return tuple(real_array(f"{name}[{i}]", v, shape, dtype)
                 for i, (v, shape) in enumerate(zip(V, shapes, strict=True)))


def weights(name: str, W: Direction, shapes: Sequence[tuple[int, int]]) -> tuple[Array, ...]:
    """Return `W` as a direction in the dtype of its first array, float64 or float32."""
    fits = isinstance(W, Sequence) and len(W) > 0
    dtype = precision(name, array(f"{name}[0]", W[0]).dtype) if fits else np.dtype(float)
    return direction(name, W, shapes, dtype)


def labels(name: str, y: Any, classes: int, shape: tuple[int, ...]) -> Labels:
    """Return `y` as integers in 0..classes-1; its trailing dimensions must be `shape`."""
    y = array(name, y)
    if y.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integer labels 0..{classes - 1}, got dtype {y.dtype}")
    if y.shape[y.ndim - len(shape):] != shape or y.ndim > len(shape) + 1:
        raise ValueError(f"{name} must have shape {shape}, or a stack of those, got {y.shape}")
    if 0 in y.shape:
        raise ValueError(f"{name} must not be empty, got shape {y.shape}")
    if y.min() < 0 or y.max() >= classes:
        bad = (y < 0) | (y >= classes)
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} must hold labels 0..{classes - 1}: {int(bad.sum())} of {y.size} are out of range, "
                         f"the first is {int(y[place])} at {place}")
    return y


def targets(name: str, y: Any, shape: tuple[int, ...], dtype: DTypeLike,
            interval: tuple[float, float] | None = None) -> Array:
    """Return `y` as real targets with trailing dimensions `shape`, inside the closed `interval` if one is given."""
    y = array(name, y)
    if y.ndim not in (len(shape), len(shape) + 1) or y.shape[y.ndim - len(shape):] != shape:
        hint = f": use {name}[:, None]" if shape[-1] == 1 and y.shape == shape[:-1] else ""
        raise ValueError(f"{name} must have shape {shape}, or a stack of those, got {y.shape}{hint}")
    y = real_array(name, y, y.shape, dtype)
    if interval is not None and (y.min() < interval[0] or y.max() > interval[1]):
        bad = (y < interval[0]) | (y > interval[1])
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} must lie in [{interval[0]:g}, {interval[1]:g}]: {int(bad.sum())} of {y.size} "
                         f"entries do not, the first is {float(y[place]):g} at {place}")
    return y


def number(name: str, value: Any, low: float, high: float = np.inf, *, above: bool = False,
           below: bool = False) -> float:
    """Return `value` as a finite float in [low, high]; `above` excludes the lower end, `below` the upper one."""
    try:
        value = float(None if isinstance(value, str) else value)        # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    inside = (value > low if above else value >= low) and (value < high if below else value <= high)
    if not inside or not np.isfinite(value):
        upper = "" if high == np.inf else f" and {'below' if below else 'at most'} {high:g}"
        raise ValueError(f"{name} must be {'above' if above else 'at least'} {low:g}{upper}, got {value:g}")
    return value


def count(name: str, value: Any, low: int = 1) -> int:
    """Return `value` as an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    return int(value)


def layer(name: str, value: Any, layers: int) -> int:
    """Return `value` as the number of a layer, counted from 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < layers:
        raise ValueError(f"{name} must be a layer 0..{layers - 1}, got {value!r}")
    return int(value)


def known(name: str, key: Any, entries: Mapping[str, Entry]) -> Entry:
    """Return ``entries[key]``; the error lists the keys."""
    if not isinstance(key, str) or key not in entries:
        raise ValueError(f"{name} must be one of {', '.join(sorted(entries))}; got {key!r}")
    return entries[key]


def offers(name: str, value: Any, protocol: type) -> None:
    """Check that `value` is an instance, not a class, and has all methods and attributes of a protocol."""
    if isinstance(value, type):
        raise ValueError(f"{name} must be an instance, such as {value.__name__}(), got the class")
    missing = [member for member in vars(protocol) if not member.startswith("_") and not hasattr(value, member)]
    if missing:
        raise ValueError(f"{name} must offer {', '.join(missing)}, which {type(value).__name__} lacks "
                         f"(see {protocol.__module__}.{protocol.__name__})")


def dense_size(what: str, rows: int, columns: int, itemsize: int, max_bytes: int | None = None) -> None:
    """Check that a dense matrix takes at most `max_bytes` (default: `DENSE_BYTES`)."""
    limit = DENSE_BYTES if max_bytes is None else max_bytes
    size = rows * columns * itemsize
    if size > limit:
        raise ValueError(f"{what} is {rows} x {columns} and takes {size:,} bytes, more than max_bytes = {limit:,}; "
                         "use its products, or a smaller network")
