"""Find the mistakes that explain differing values: the search through the catalogue.

An explanation is one mistake, or two at once, that reproduces every given quantity to rounding. All that fit are
reported: where the given values cannot distinguish them, the report names a quantity that would.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from .. import params
from ..checks import Array
from ..damping import add_to_diagonal
from .graph import QUANTITIES, Reference
from .mistakes import CATALOGUE, STEPS, VISIBLE, Mistake, error, times
from .trajectory import SCALARS, steps

#: Relative errors up to this are rounding; a solve may lose its condition number in addition.
ROUNDING = {"float64": 1e-10, "float32": 1e-5}
_EPS = {"float64": 1e-14, "float32": 1e-6}
#: No larger error is rounding: in float64 this is a solve with condition number 1e10.
WORST = {"float64": 1e-4, "float32": 1e-2}
_FAILS = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)

#: Quantities that need a dense matrix of all weights are not computed per explanation for networks with more weights.
_DENSE_UP_TO = 500
_DENSE = ("fisher", "fisher_sampled", "fisher_empirical", "hessian", "kfac_block", "natural_gradient")

_COARSE = {"trajectory_lambda", "trajectory_gamma"}

#: Values by the names of their quantities.
Quantities = Mapping[str, Any]


@dataclass(frozen=True)
class Explanation:
    """One mistake, or two that together turn the right values into the given ones."""

    mistakes: tuple[Mistake, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the mistakes."""
        return tuple(m.name for m in self.mistakes)


class Diagnosis:
    """The search for one set of given quantities, in the form of `graph.coerced`.

    `dtype` is the precision in which they were computed, and `rtol` the largest relative error that counts as rounding
    (default: from `dtype` and the conditioning).
    """

    def __init__(self, reference: Reference, theirs: Quantities, dtype: str = "float64",
                 rtol: float | None = None) -> None:
        self.reference, self.theirs, self.dtype, self.rtol = reference, theirs, dtype, rtol
        self.names = sorted(theirs, key=list(QUANTITIES).index)
        self.errors = {name: _error(reference, name, reference[name], theirs[name]) for name in self.names}
        self._limits = {name: self.tolerance(name) for name in self.names}
        self._order = sorted(self.names, key=lambda name: self.errors[name] <= ROUNDING["float32"])
        plain = [name for name in self.differing() if not name.startswith("trajectory_")]
        self._rarest = min(plain, key=lambda n: len(self.reference.kept(("alone", n), _alone)), default=None)
        self._same: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._first_step: dict[Any, Any] = {}

    def tolerance(self, name: str, reference: Reference | None = None) -> float:
        """Return the largest relative error of a quantity that counts as rounding.

        `reference` may hold mistakes, with which a system may be worse conditioned.
        """
        if self.rtol is not None:
            return self.rtol
        worst = 1.0
        with suppress(*_FAILS):
            worst = condition(reference or self.reference, name)
        return min(max(ROUNDING[self.dtype], _EPS[self.dtype] * worst), WORST[self.dtype])

    def differing(self) -> list[str]:
        """Return the names of the given quantities that differ by more than rounding."""
        return [name for name in self.names if not self.errors[name] <= self._limits[name]]

    def explanations(self) -> list[Explanation]:
        """Return every explanation: single mistakes, then pairs in which both have an effect.

        A constant factor of a step or gradient, such as a learning rate, also counts as a mistake. Since it is fitted,
        it is used only if no catalogue entry fits, and beside an entry only if no pair of entries fits.
        """
        singles = [Explanation((m,)) for m in CATALOGUE.values() if self.fits((m,))]
        singles = singles or [Explanation((m,)) for m in self._constants(()) if self.fits((m,))]
        alone = {e.mistakes[0].name for e in singles}
        # lambda and gamma take few values: they are not enough to identify a pair.
        others = [m for m in CATALOGUE.values() if m.name not in alone] if not _COARSE.issuperset(self.names) else []
        pairs = [Explanation(pair) for pair in itertools.combinations(others, 2)
                 if self._may_fit(pair) and self._both_act(pair) and self.fits(pair)]
        if singles or pairs:
            return singles + pairs
        return [Explanation((m, constant)) for m in CATALOGUE.values() for constant in self._constants((m,))
                if self._both_act((m, constant)) and self.fits((m, constant))]

    def _constants(self, mistakes: tuple[Mistake, ...]) -> list[Mistake]:
        """Return the constant factors between the given gradient and step and those with these mistakes."""
        found = []
        for name, changed in SCALABLE.items():
            if name in self.theirs and self.errors[name] > self._limits[name]:
                try:
                    value = self.reference.having(*mistakes).shown(name)
                except _FAILS:
                    continue
                limit, enough = self._limits[name], sum(map(np.size, value)) >= _FEWEST
                if enough and (c := scale(value, self.theirs[name], {}, limit)) is not None:
                    found.append(_constant(changed, _rounded(c.value, limit)))
        return list({m.name: m for m in found}.values())

    def _may_fit(self, pair: tuple[Mistake, ...]) -> bool:
        """Return whether a pair can explain the differing quantity that the fewest mistakes affect."""
        if self._rarest is None:
            return True
        acting = tuple(m for m in pair if m.name in self._acting(self._rarest, pair))
        return len(acting) == len(pair) or (bool(acting) and self._is(acting, self._rarest))

    def _acting(self, name: str, mistakes: tuple[Mistake, ...]) -> tuple[str, ...]:
        """Return the names of the mistakes that affect a quantity: `Reference.part_of`, from a table."""
        if any(m.name not in CATALOGUE for m in mistakes):
            return self.reference.having(*mistakes).part_of(name)
        alone, brings = self.reference.kept(("alone", name), _alone), self.reference.kept(("brings",), _brings)
        found = {m.name for m in mistakes if m.name in alone}
        if 0 < len(found) < len(mistakes):                      # one may read what the other changes
            found |= {m.name for m in mistakes for other in mistakes if other.name in found
                      and m.name in brings[other.name]}
        return tuple(m.name for m in mistakes if m.name in found)

    def _both_act(self, pair: tuple[Mistake, ...]) -> bool:
        seen: set[str] = set()
        for name in self.names:
            seen.update(self._acting(name, pair))
            if len(seen) == 2:
                return True
        return False

    def fits(self, mistakes: tuple[Mistake, ...]) -> bool:
        """Return whether these mistakes (in the catalogue's order) reproduce all given quantities, to rounding."""
        plain = [name for name in self._order if not name.startswith("trajectory_")]
        return all(self._is(mistakes, name) for name in plain) and (
            len(plain) == len(self.names) or self._follows(mistakes))

    def _is(self, mistakes: tuple[Mistake, ...], name: str) -> bool:
        """Return whether these mistakes reproduce one given quantity, to rounding."""
        key = name, self._acting(name, mistakes)
        if key not in self._same:
            r = self.reference.having(*mistakes)
            try:
                off = _error(r, name, r.shown(name), self.theirs[name])
            except _FAILS:
                off = math.inf
            # The condition number is expensive, and matters only for values that are close.
            self._same[key] = off <= self._limits[name] or (
                self.rtol is None and off <= WORST[self.dtype] and off <= self.tolerance(name, r))
        return self._same[key]

    def _follows(self, mistakes: tuple[Mistake, ...]) -> bool:
        t = self.reference.problem.trajectory
        given = [X for name in self.names if name.startswith("trajectory_")
                 for X in (self.theirs[name] if name == "trajectory_weights" else [self.theirs[name]])]
        if t is None or any(np.shape(X)[:1] != (len(t.batches),) for X in given):
            return False                                    # another number of steps
        try:
            return all(off <= self.tolerance("trajectory_weights") for _, _, off in self.along(mistakes))
        except _FAILS:
            return False

    def along(self, mistakes: tuple[Mistake, ...] = ()) -> Iterator[tuple[int, str, float]]:
        """Yield the step (from 1), quantity and relative error of each number of a trajectory with these mistakes."""
        turned = [m.shows["trajectory_weights"] for m in mistakes if "trajectory_weights" in m.shows]
        given = {name: self.theirs[f"trajectory_{name}"] for name in (*SCALARS, "weights")
                 if f"trajectory_{name}" in self.theirs}
        for k, step in enumerate(steps(self.reference.problem, mistakes, self._first_step)):
            for name, theirs in given.items():
                if name != "weights":
                    yield k + 1, name, _off(step, name, theirs, k)
                    continue
                weights = functools.reduce(lambda W, show: show(self.reference, W), turned, tuple(step["weights"]))
                yield k + 1, "weights", error(weights, tuple(W[k] for W in theirs)) if all(
                    np.ndim(W) and k < len(W) for W in theirs) else math.inf

    def first_difference(self) -> tuple[int, str, float] | None:
        """Return the step, quantity and relative error where a trajectory first differs from the right one."""
        limit = self.tolerance("trajectory_weights")
        return next((found for found in self.along() if not found[2] <= limit), None)

    def one_by_one(self) -> dict[str, list[Explanation]]:
        """Explain each differing quantity given the values of its inputs, if nothing explains all at once.

        One without mistakes says that the quantity is correct given its inputs; an empty list says that nothing fits.
        """
        found: dict[str, list[Explanation]] = {}
        for name in self.differing():
            inputs = self.reference.below(name) - {name}
            before = {other: self.theirs[other] for other in self.names if other in inputs
                      and QUANTITIES[other].kind != "trajectory"}
            part = Diagnosis(self.reference, {name: self.theirs[name]}, self.dtype, self.rtol)
            part.reference = self.reference.taking(**before)
            if before and part.fits(()):
                found[name] = [Explanation(())]
            else:                                           # one quantity was already tried
                found[name] = part.explanations() if self.names != [name] else []
        return found

    def tells_apart(self, explanations: Sequence[Explanation]) -> str | None:
        """Return a quantity that was not given and best distinguishes the explanations, None if none does."""
        best, most = None, 1
        large = self.reference.problem.model.network.parameters > _DENSE_UP_TO
        for name in self.reference.names():
            if name in self.theirs or (name in _DENSE and large):
                continue
            values: list[Any] = []
            for e in explanations[:20]:
                with suppress(*_FAILS):
                    value = self.reference.having(*e.mistakes).shown(name)
                    if all(error(v, value) > VISIBLE for v in values):
                        values.append(value)
            if len(values) > most:
                best, most = name, len(values)
        return best


def _off(step: Mapping[str, Any], name: str, theirs: Any, k: int) -> float:
    """Return the relative error of a step's number."""
    if np.ndim(theirs) != 1 or k >= len(theirs):
        return math.inf
    return _error_of_mu(step["mu"], theirs[k], abs(step["alpha"])) if name == "mu" else error(step[name], theirs[k])


def _error_of_mu(right: float, theirs: float, other: float) -> float:
    """Return the relative error of mu; relative to 1e-6 `other` where mu is smaller, since it is then only rounding."""
    return error(np.array([right, 1e-6 * other]), np.array([theirs, 1e-6 * other]))


def _error(r: Reference, name: str, value: Any, theirs: Any) -> float:
    if name == "mu" and r.problem.delta_0 is not None:
        # The length of alpha Delta in units of delta_0.
        Delta, last = params.norm(r["Delta"]), params.norm(r.problem.delta_0)
        return _error_of_mu(value, theirs, abs(r["alpha"]) * Delta / last if last > 0 else 0.0)
    return error(value, theirs)


def condition(r: Reference, name: str) -> float:
    """Return the condition number of the system behind a quantity, 1 for a sum."""
    kind = QUANTITIES[name].kind
    if kind == "sum":
        return 1.0
    if kind == "trajectory":
        return 1e4                                      # several steps amplify rounding, on well-posed problems
    if name == "natural_gradient":
        return _condition(add_to_diagonal(r["fisher"], r["damping"]))
    if name == "step_exact_damping":
        return max(1 + np.linalg.norm(A, 2) * np.linalg.norm(G, 2) / max(r["damping"], 1e-300)
                   for A, G in zip(r["A"], r["G"], strict=True))
    G_solve = {"step_sampled": "G_sampled", "step_empirical": "G_empirical"}.get(name)
    r = r.taking(G_solve=r[G_solve]) if G_solve else r
    worst = max(_condition(A) * _condition(G) for A, G in zip(r["A_damped"], r["G_damped"], strict=True))
    if name == "rho":                                       # a difference of two values of h
        return max(worst, abs(r["objective"]) / max(abs(r["actual"]), 1e-300))
    return worst if name != "step_tridiagonal" else worst**2        # Sigma is a difference


def _condition(S: Array) -> float:
    values = scipy.linalg.eigvalsh(S)
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf


def _alone(reference: Reference, name: str) -> set[str]:
    """Return the names of the mistakes that affect a quantity."""
    return {m.name for m in CATALOGUE.values() if reference.having(m).part_of(name)}


def _brings(reference: Reference) -> dict[str, set[str]]:
    """Return the names of the mistakes that change what each mistake reads."""
    return {a.name: {b.name for b in CATALOGUE.values() if any(
        not reference.below(read).isdisjoint(b.changes) for read in a.reads)} for a in CATALOGUE.values()}


# Constant factors that are not in the catalogue.

#: The quantities that a constant factor may be in, and the nodes that it multiplies.
SCALABLE = {"gradient": ("gradient",), **dict.fromkeys((*STEPS, "step_sampled", "step_empirical"), STEPS)}
#: A constant factor between fewer entries than this is no evidence.
_FEWEST = 4


def _constant(changed: Sequence[str], c: float) -> Mistake:
    """Return a mistake that multiplies nodes by c."""
    what = "gradient" if changed == ("gradient",) else "step"
    sign = ", with the opposite sign" if c < 0 else ""
    return Mistake(
        f"{what} times {c:.12g}", f"the {what} is {abs(c):.6g} times what it should be{sign} (a learning rate?)",
        "Delta is the step before alpha or a learning rate multiplies it" if what == "step" else
        "grad h is the gradient of the mean loss plus weight decay, without a factor",
        f"give the {what} before it is multiplied", {name: lambda r, right: times(c, right()) for name in changed})


def _rounded(c: float, tolerance: float) -> float:
    """Return the number with the fewest digits that equals c to within the tolerance."""
    return next((v for digits in range(1, 13) if abs((v := float(f"{c:.{digits}g}")) - c) <= tolerance * abs(c)), c)


@dataclass(frozen=True)
class Scale:
    """A constant factor, theirs over ours, and its text."""

    value: float
    text: str   # a product of powers of N, C, 2 and M, or "" if there is none with small exponents


def scale(right: Any, theirs: Any, counts: Mapping[str, int], tolerance: float) -> Scale | None:
    """Return the constant factor between two values of a quantity; `counts` has the values of N, C and M."""
    if not math.isfinite(error(right, theirs)):
        return None
    a, b = (np.concatenate([np.ravel(X) for X in value]) if isinstance(value, tuple) else np.ravel(value)
            for value in (right, theirs))
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known].astype(float), b[known].astype(float)
    c = float(a @ b / (a @ a)) if a.any() and b.any() else math.nan
    if not math.isfinite(c) or error(c * a, b) > tolerance or abs(c - 1) <= max(tolerance, 1e-3):
        return None
    return Scale(c, _as_powers(c, counts, max(tolerance, 1e-12)))


def _as_powers(c: float, counts: Mapping[str, int], tolerance: float) -> str:
    """Write a positive factor as N^i C^j 2^k M^l, the simplest that fits."""
    bases = {**{name: n for name, n in counts.items() if n > 1}, "2": 2}
    halves = [h / 2 for h in range(-6, 7)]
    best: tuple[float, str] | None = None
    for powers in itertools.product(halves, repeat=len(bases)):
        cost = sum(abs(p) + 2 * (p % 1 > 0) + 0.5 * (p != 0) for p in powers)
        if (best is not None and cost >= best[0]) or sum(p != 0 for p in powers) > 3:
            continue
        value = math.prod(n**p for n, p in zip(bases.values(), powers, strict=True))
        if abs(value / abs(c) - 1) <= 10 * tolerance:
            words = " ".join(f"{name}^{p:g}" if p != 1 else name for name, p in zip(bases, powers, strict=True) if p)
            best = cost, ("-" if c < 0 else "") + (words or "1")
    return best[1] if best else ""


# The place of an error.


def place(right: Any, theirs: Any, tolerance: float) -> str:
    """Describe where two values of a quantity differ; `tolerance` is relative to the largest entry of an array."""
    if not isinstance(right, tuple):
        return _place(right, theirs, tolerance)
    if not isinstance(theirs, tuple) or len(right) != len(theirs):
        return f"{len(theirs) if isinstance(theirs, tuple) else 1} arrays, expected {len(right)}"
    found = [_place(a, b, tolerance) for a, b in zip(right, theirs, strict=True)]
    wrong = [f"layer {i}: {text}" for i, text in enumerate(found) if text]
    well = [str(i) for i, text in enumerate(found) if not text]
    return "; ".join(wrong) + (f" (right in layer {', '.join(well)})" if well else "")


def _place(right: Any, theirs: Any, tolerance: float) -> str:
    a, b = np.asarray(right, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        turned = ", its transpose" if a.ndim == 2 and a.shape == b.shape[::-1] else ""
        return f"shape {b.shape}{turned}, expected {a.shape}"
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(a - b) <= tolerance * max(float(np.max(np.abs(a), initial=0)), 1e-300))
    wrong &= ~(np.isnan(a) & np.isnan(b))
    if not wrong.any():
        return ""
    if a.ndim == 0:
        return "the number"
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.abs(a - a.T).max() <= tolerance * np.abs(a).max():
        if np.ptp(b, axis=0).max() == 0 and len(b) > 1:
            return "all rows are the same"
        if np.abs(b - b.T).max() > 100 * tolerance * max(float(np.abs(b).max()), 1e-300):
            half = "zero above the diagonal" if not np.triu(b, 1).any() else \
                "zero below the diagonal" if not np.tril(b, -1).any() else "not symmetric"
            return f"{half}, {int(wrong.sum())} of {wrong.size} entries wrong"
    if wrong.all():
        return "all entries"
    if a.ndim == 1:
        return f"entries {_listed(np.flatnonzero(wrong))}"
    if a.ndim == 2:
        square = a.shape[0] == a.shape[1]
        if square and not wrong[~np.eye(len(a), dtype=bool)].any():
            return "only the diagonal"
        if square and not wrong[np.eye(len(a), dtype=bool)].any():
            return "all but the diagonal" if wrong.sum() == a.size - len(a) else "entries off the diagonal"
        columns, rows = np.flatnonzero(wrong.any(axis=0)), np.flatnonzero(wrong.any(axis=1))
        last = a.shape[1] - 1
        if square and not wrong[:-1, :-1].any():
            return "only the last row and column (the bias, if this is A)"
        if columns.tolist() == [last]:
            return "only the last column (the bias)"
        if last not in columns and len(columns) == last and len(rows) == a.shape[0]:
            return "all columns but the last (the bias is right)"
        if len(columns) <= a.shape[1] // 2:
            return f"columns {_listed(columns)}"
        if len(rows) <= a.shape[0] // 2:
            return f"rows {_listed(rows)}"
    return f"{int(wrong.sum())} of {wrong.size} entries"


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
