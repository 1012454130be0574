"""The error that a right value may have: from the precision that its numbers show, and from what `rounding` does.

`Form` says in which precision an array was computed and written, as its digits show, and `Tolerance` which errors of
each entry that explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..checks import Array
from .checks import ProblemError
from .differences import arrays, error, shapes
from .graph import QUANTITIES, Reference
from .rounding import DOUBLE_UNIT, DRAWS, MORE_DRAWS, SINGLE_UNIT, each, sensitivity, without_digits

#: How often rounding may exceed the measured movement: implementations sum and factor in other orders.
SAFETY = 256
#: Numbers with fewer digits than this, or decimals, are taken as exact; with more than MOST as double precision.
FEWEST, MOST = 4, 12
#: So many entries of an array are looked at to find its precision.
_SAMPLE = 4000
#: A solve is wrong if it is off by more than this part of the largest entry, however bad its condition is.
_LOOSE = {DOUBLE_UNIT: 1e-2, SINGLE_UNIT: 1e-1}


@dataclass(frozen=True)
class Form:
    """The precision of an array: its name, the unit of its arithmetic, and how its numbers were rounded at the end."""

    name: str
    unit: float
    relative: float = 0.0
    absolute: float = 0.0


DOUBLE, SINGLE = Form("double precision", DOUBLE_UNIT), Form("single precision", SINGLE_UNIT)
HALF = Form("half precision", SINGLE_UNIT, 2.0**-11, 2.0**-25)


def digits_form(digits: int) -> Form:
    """Return the form of numbers written with so many digits."""
    return Form(f"{digits} digits", DOUBLE_UNIT if digits > 9 else SINGLE_UNIT, 0.5 * 10.0**(1 - digits) * (1 + 1e-9))


def named(name: str) -> Form:
    """Return the form with this name: double, single, half, or a number of digits."""
    forms = {"double": DOUBLE, "single": SINGLE, "half": HALF}
    if name in forms:
        return forms[name]
    if name.isdecimal() and 1 <= int(name) <= 17:
        return digits_form(int(name))
    raise ProblemError(f"precision must be double, single, half or a number of digits from 1 to 17, got {name!r:.60}")


def form_of(a: Array) -> Form:
    """Return the precision that the numbers of an array show."""
    flat = np.ravel(a)
    flat = flat[np.isfinite(flat) & (flat != 0)]
    some = flat[::max(1, len(flat) // _SAMPLE)]
    if not len(some):
        return DOUBLE
    with np.errstate(over="ignore"):
        is_half, is_single = ((some.astype(t) == some).all() for t in (np.float16, np.float32))
    counts = np.array([_digits_and_decimals(v) for v in some[:50].tolist()])
    if counts[:, 0].max() <= MOST or is_single:             # else the rest do not matter
        counts = np.array([_digits_and_decimals(v) for v in some.tolist()])
    digits, decimals = counts.max(axis=0).tolist()
    if digits > FEWEST and is_half:
        return HALF
    if digits > 9 and is_single:
        return SINGLE
    if digits < FEWEST and (FEWEST - digits) * len(some) < FEWEST:
        return replace(digits_form(FEWEST), name=DOUBLE.name)       # one or two numbers may end in zeros not written
    last = 0.5 * 10.0**-decimals * (1 + 1e-9)
    if digits > MOST and decimals >= FEWEST:                # large numbers with few decimals have many digits
        return replace(DOUBLE, absolute=last)
    if digits > MOST or (digits < FEWEST and not FEWEST <= decimals <= MOST):
        return DOUBLE
    form = digits_form(digits) if digits >= FEWEST else Form("", SINGLE_UNIT)
    fixed = len(some) > 2 and np.mean(counts[:, 1] == decimals) > np.mean(counts[:, 0] == digits)
    name = f"{decimals} decimals" if fixed or digits < FEWEST else form.name
    return Form(name, form.unit, form.relative, last)


def _digits_and_decimals(value: float) -> tuple[int, int]:
    mantissa, _, exponent = repr(value).lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    return len((whole + fraction).strip("0")), max(0, len(fraction) - int(exponent or 0))


def _as_others(a: Array, own: Form, others: Iterable[Form]) -> Form:
    """Return the coarsest form of other arrays that short numbers, such as 0.25, are in too, else their own.

    The errors that their own form allows are allowed too.
    """
    flat = np.ravel(a)
    fitting = [own, *(f for f in others if _is_in(flat[:50], f) and _is_in(flat, f))]
    coarsest = max(fitting, key=lambda f: (f.unit, f.relative, f.absolute))
    return replace(coarsest, absolute=max(f.absolute for f in fitting))


def _is_in(a: Array, form: Form) -> bool:
    """Return whether numbers may have been written in a form."""
    if form in (HALF, SINGLE):
        with np.errstate(over="ignore"):
            return np.array_equal(a, a.astype(np.float16 if form == HALF else np.float32))
    counts = [_digits_and_decimals(v) for v in a.tolist()]
    digits = round(1 - math.log10(2 * form.relative)) if form.relative else math.inf
    decimals = -math.log10(2 * form.absolute) + 1e-6 if form.name.endswith("decimals") else math.inf
    return all(d <= digits and k <= decimals for d, k in counts)


class Tolerance:
    """The largest errors that count as rounding, for the given values of some quantities.

    `rtol` is relative to the largest entry of an array and replaces the rest; `form` replaces the inferred precision.
    """

    def __init__(self, theirs: Any, dtype: str = "float64", rtol: float | None = None,
                 form: Form | None = None) -> None:
        self.rtol = rtol
        self._moved: dict[Any, Any] = {}
        parts = {name: arrays(value) for name, value in theirs.items()}
        own = {name: [form or form_of(np.asarray(a)) for a in value] for name, value in parts.items()}
        others = {f.name: f for name, forms in own.items() for a, f in zip(parts[name], forms, strict=True)
                  if (np.count_nonzero(a) > 2 or f == HALF) and f.name != DOUBLE.name}
        self.forms: dict[str, tuple[Form, ...]] = {}
        for name, value in parts.items():
            forms = [_as_others(np.asarray(a), f, others.values()) for a, f in zip(value, own[name], strict=True)]
            self.forms[name] = tuple(replace(f, unit=SINGLE_UNIT) if dtype == "float32" else f for f in forms)

    def coarse(self, name: str) -> float:
        """Return the relative error of an array beyond which a value is never right."""
        if self.rtol is not None:
            return self.rtol
        if QUANTITIES[name].kind == "basis":                # eigenvectors of equal eigenvalues are not unique
            return math.inf
        return max(max(_LOOSE[f.unit], 2 * f.relative) for f in self.forms[name])

    def allowed(self, reference: Reference, name: str, theirs: Any, key: Any = (), draws: int = DRAWS) -> Any:
        """Return the allowed error of each entry; `key` names the mistakes that the reference has."""
        value = reference.shown(name)
        if self.rtol is not None:
            rtol = self.rtol
            return each(lambda a: np.full(np.shape(a), rtol * max(float(np.max(np.abs(a), initial=0)), 1e-300)), value)
        for unit in {f.unit for f in self.forms[name]}:
            if (name, unit, key, draws) not in self._moved:
                self._moved[name, unit, key, draws] = (sensitivity(reference, name, unit, draws),
                                                       without_digits(reference, name, unit))
        return self._written(name, value, theirs, lambda f: self._moved[name, f.unit, key, draws])

    def _written(self, name: str, value: Any, theirs: Any, moved: Callable[[Form], Any]) -> Any:
        """Return the allowed error of each entry from how far rounding moves it, and lost digits of p."""
        found = []
        for i, (a, b, f) in enumerate(zip(arrays(value), arrays(theirs), self.forms[name], strict=True)):
            E, lost = (X[i] if isinstance(X, tuple) else X for X in moved(f))
            ours, size = (np.nan_to_num(np.abs(np.asarray(v, dtype=float))) for v in (a, b))
            least = max(f.unit**2, 1e-18) * float(np.max(ours, initial=0)) + f.absolute + 1e-300
            moved_by = SAFETY * E
            if name.endswith("mu"):                         # mu is a coefficient, and may be nothing but rounding
                least += 16 * f.unit
            elif QUANTITIES[name].kind in ("solve", "trajectory"):      # however bad the condition is
                moved_by = np.minimum(moved_by, _LOOSE[f.unit] * np.max(ours, initial=0))
            found.append(moved_by + 2 * lost + 16 * f.unit * ours + f.relative * size + least)
        return tuple(found) if isinstance(value, tuple) else found[0]

    def excess(self, reference: Reference, name: str, theirs: Any, key: Any = ()) -> float:
        """Return the largest error in units of what is allowed: at most 1 for a right value."""
        value = reference.shown(name)
        if shapes(value) != shapes(theirs):
            return math.inf
        if self.rtol is None:                               # most right values need no more than this
            least = max(arrays(each(_ratio, value, theirs, self._written(name, value, theirs, lambda f: (0.0, 0.0)))))
            if least <= 1:
                return least
        found = math.inf
        for draws in (DRAWS, MORE_DRAWS) if error(value, theirs) <= self.coarse(name) else (DRAWS,):
            if not found <= 1:
                found = max(arrays(each(_ratio, value, theirs, self.allowed(reference, name, theirs, key, draws))))
        return found

    def words(self) -> str:
        """Return what the precision was taken to be, "" if all of it is double."""
        by: dict[str, list[str]] = {}
        for name, forms in self.forms.items():
            for text in dict.fromkeys(f.name for f in forms):
                by.setdefault(text, []).append(name)
        by.pop(DOUBLE.name, None)
        return "" if self.rtol is not None else "; ".join(f"{', '.join(names)}: {text}" for text, names in by.items())


def _ratio(a: Any, b: Any, allowed: Any) -> float:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    with np.errstate(all="ignore"):
        ratio = np.where(np.isnan(a) | (a == b), 0.0, np.abs(a - b) / allowed)
    return float(np.max(np.nan_to_num(ratio, nan=np.inf), initial=0))

