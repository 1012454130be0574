"""Their values in our forms, which are numbers, arrays, and lists with one array per layer.

`files.gathered` makes such lists of names (``A_0``, ``A_1``) and of objects by layer, and `files.joined` of torch's
weights and biases; `coerced` makes the arrays. What the shapes do not decide is refused with the form that is wanted.
Lists are counted before they are converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .checks import ProblemError, near, read_array
from .files import dimensions, gathered, joined, load, pairs
from .graph import QUANTITIES, Reference, missing
from .quantities import signed

#: The shape of the quantities that are shaped like the weights.
LIKE_WEIGHTS = "(m, n) per layer"


def read_quantities(path: Any, layout: str | None = None) -> dict[str, Any]:
    """Read quantities by name from a JSON or npz file, or the expected values of a test vector.

    With the layout "torch", quantities shaped like the weights are lists, or objects in the order of the network, of
    weights and biases.
    """
    content = load(path)
    if not isinstance(content, Mapping):
        raise ProblemError(f"{path}: must hold an object with quantities by name, got {type(content).__name__}")
    if isinstance(content.get("quantities"), Mapping):
        content = content["quantities"]
    if isinstance(content.get("expected"), Mapping):
        content = {name: entry.get("value") if isinstance(entry, Mapping) else entry
                   for name, entry in content["expected"].items()}
    torch = layout == "torch"
    try:
        found = gathered(content, QUANTITIES, by_name=torch)
        return {name: joined(name, value) if torch and name in QUANTITIES and QUANTITIES[name].shape == LIKE_WEIGHTS
                else value for name, value in found.items()}
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def coerced(reference: Reference, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return given quantities in the form of ours: a number, an array, or a tuple with one array per layer.

    A ProblemError names a quantity that is unknown, malformed, not finite, or not defined by the problem. The shapes of
    arrays may differ from ours; a trajectory may be shorter.
    """
    if not isinstance(theirs, Mapping) or not theirs:
        raise ProblemError("theirs must hold quantities by name, such as {\"A\": [...], \"G\": [...]}")
    found: dict[str, Any] = {}
    for name, value in gathered(theirs, QUANTITIES).items():
        if name not in QUANTITIES:
            raise ProblemError(f"{name!r:.60} is not a quantity (kfac-ref quantities lists them)"
                               f"{near(name, QUANTITIES)}")
        lacks = missing(QUANTITIES[name], reference.problem)
        if lacks and not (name == "G_sampled" and lacks == "targets"):
            raise ProblemError(f"{name}: the problem does not define it: it has no {lacks}")
        right = reference["G" if lacks else name]
        if isinstance(right, tuple):
            found[name] = tuple(_array(f"{name}[{i}]", item, X) for i, (item, X) in enumerate(
                zip(_per_layer(name, value, right), right, strict=True)))
            if QUANTITIES[name].kind == "basis" and all(Q.ndim == 2 for Q in found[name]):
                found[name] = tuple(map(signed, found[name]))
        elif isinstance(right, np.ndarray):
            found[name] = _array(name, value, right, name == "trajectory_rho")
        elif isinstance(value, (bool, str, Mapping)) or dimensions(value):
            raise ProblemError(f"{name} must be a number, got {type(value).__name__}")
        else:
            found[name] = float(_array(name, value if hasattr(value, "__array__") else [value], right).ravel()[0])
    return found


def _per_layer(name: str, value: Any, right: Sequence[Any]) -> Any:
    """Return a list with as many arrays as `right` has, none of them converted yet."""
    L, ndim = len(right), right[0].ndim
    if isinstance(value, Mapping) or hasattr(value, "__array__"):
        value = read_array(name, value)
    if not isinstance(value, (list, tuple)) and not dimensions(value):
        raise ProblemError(f"{name} must be a list with one array per layer, got {type(value).__name__}")
    if dimensions(value) == ndim and not (len(value) == L and _are_diagonals(value, right)):
        if L == 1:
            return [value]
        raise ProblemError(f"{name} is one matrix: a list with one matrix for each of the {L} layers is wanted, "
                           f"\"{name}\": [[[...]], [[...]]]")
    if QUANTITIES[name].shape == LIKE_WEIGHTS and any(b is not None for _, b in pairs(name, value)):
        raise ProblemError(f"{name} has weights and biases apart, as torch has them: give --layout torch, or one "
                           "matrix [W b] per layer")
    if name == "trajectory_weights" and not _fit(value, [W[0] for W in right], 1) and all(
            isinstance(step, (list, tuple)) and _fit(step, [W[0] for W in right]) for step in value):
        value = [[step[i] for step in value] for i in range(L)]         # was a list of steps
    if len(value) != L:
        raise ProblemError(f"{name} must hold one array per layer: expected {L}, got {len(value)}")
    return value


def _are_diagonals(value: Any, right: Sequence[Any]) -> bool:
    """Return whether lists are as long as the square matrices are wide, and together are none of them."""
    return all(X.ndim == 2 and len(d) == len(X) == X.shape[1] > 1 for d, X in zip(value, right, strict=True)) and (
        right[0].shape != (len(value), len(value[0])))


def _fit(arrays: Any, right: Sequence[Any], extra: int = 0) -> bool:
    """Return whether arrays have the shapes of ours, behind `extra` leading dimensions."""
    return len(arrays) == len(right) and all(_shape(a)[extra:] == X.shape for a, X in zip(arrays, right, strict=True))


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of an array, or of nested lists as their first entries have it."""
    if isinstance(value, (list, tuple)):
        return len(value), *(_shape(value[0]) if value else ())
    if isinstance(value, Mapping):
        return tuple(value["shape"]) if dimensions(value) else ()
    return tuple(getattr(value, "shape", ()))


def _array(name: str, value: Any, right: Any, nan: bool = False) -> Any:
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (list, tuple, int, float, type(None))):
        value = [read_array(f"{name}[{i}]", a).tolist() for i, a in enumerate(value)]
    a = read_array(name, value).astype(float, copy=False)
    if a.ndim == 1 < len(a) and np.shape(right) == (len(a), len(a)):
        raise ProblemError(f"{name} is only the diagonal ({len(a)} numbers): the whole matrix is wanted, "
                           f"{len(a)} x {len(a)}")
    bad = ~np.isfinite(a) if not nan else np.isinf(a)
    if bad.any():
        raise ProblemError(f"{name} must be finite: {int(bad.sum())} of {a.size} entries are null, NaN or infinite")
    return a
