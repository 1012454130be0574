"""From numbers that differ to what was done: the search through the catalogue of mistakes.

An explanation is a set of mistakes (one, or two at once) under which every quantity that was given comes out as it was
given, to rounding. All that fit are reported: what cannot be told apart by the given numbers is not guessed, and the
quantity that would tell is named.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from .. import params
from ..checks import Array
from ..damping import add_to_diagonal
from . import mistakes as catalogue
from .graph import NODES, QUANTITIES, Reference
from .mistakes import CATALOGUE, STEPS, Mistake, error, times
from .trajectory import SCALARS, steps

#: Relative errors up to this are rounding, in float64 and float32; a solve loses its condition number besides.
ROUNDING = {"float64": 1e-10, "float32": 1e-5}
_EPS = {"float64": 1e-14, "float32": 1e-6}
#: No error beyond this is rounding: in float64 it is that of a solve with a condition of 1e10.
WORST = {"float64": 1e-4, "float32": 1e-2}
_FAILS = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)

#: What takes dense matrices of all weights is not computed for every explanation of a larger network than this.
_DENSE_UP_TO = 500
_DENSE = ("fisher", "fisher_sampled", "fisher_empirical", "hessian", "kfac_block", "natural_gradient")

_COARSE = {"trajectory_lambda", "trajectory_gamma"}

#: From the name of a quantity to its numbers.
Quantities = Mapping[str, Any]


@dataclass(frozen=True)
class Explanation:
    """Mistakes that together turn the right values into the given ones.

    Attributes
    ----------
    mistakes : tuple of Mistake
        One or two.
    """

    mistakes: tuple[Mistake, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the mistakes."""
        return tuple(m.name for m in self.mistakes)


class Diagnosis:
    """The search for one set of given quantities.

    Parameters
    ----------
    reference : Reference
        The right values.
    theirs : mapping
        The given ones, of the right form.
    dtype : str
        The precision that they were computed in.
    rtol : float, optional
        The largest relative error that counts as rounding, in place of what the precision allows.
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
        """Return the relative error of a quantity that is rounding.

        Parameters
        ----------
        name : str
            A quantity.
        reference : Reference, optional
            With the mistakes that are tried: a system may be worse conditioned with them.
        """
        if self.rtol is not None:
            return self.rtol
        try:
            worst = condition(reference or self.reference, name)
        except _FAILS:
            worst = 1.0
        return min(max(ROUNDING[self.dtype], _EPS[self.dtype] * worst), WORST[self.dtype])

    def differing(self) -> list[str]:
        """Return the names of the given quantities that differ by more than rounding."""
        return [name for name in self.names if not self.errors[name] <= self._limits[name]]

    def explanations(self) -> list[Explanation]:
        """Return every explanation: single mistakes first, then pairs in which both have a part.

        A constant factor of a step or gradient, such as a learning rate, is a mistake too; it is measured, so it is
        named only where no mistake of the catalogue does, and with one of those only where no two of them do.
        """
        singles = [Explanation((m,)) for m in CATALOGUE.values() if self.fits((m,))]
        singles = singles or [Explanation((m,)) for m in self._constants(()) if self.fits((m,))]
        alone = {e.mistakes[0].name for e in singles}
        # lambda and gamma take few values each: by them alone, pairs of mistakes would be guessed.
        others = [m for m in CATALOGUE.values() if m.name not in alone] if not _COARSE.issuperset(self.names) else []
        pairs = [Explanation(pair) for pair in itertools.combinations(others, 2)
                 if self._may_fit(pair) and self._both_act(pair) and self.fits(pair)]
        if singles or pairs:
            return singles + pairs
        return [Explanation((m, constant)) for m in CATALOGUE.values() for constant in self._constants((m,))
                if self._both_act((m, constant)) and self.fits((m, constant))]

    def _constants(self, mistakes: tuple[Mistake, ...]) -> list[Mistake]:
        """Return the constant factors of gradient and step that the given ones have, those with mistakes apart."""
        found = []
        for name, changed in SCALABLE.items():
            if name in self.theirs and self.errors[name] > self._limits[name]:
                try:
                    value = self.reference.having(*mistakes).shown(name)
                except _FAILS:
                    continue
                size = sum(map(np.size, value))
                if size < _FEWEST or (c := scale(value, self.theirs[name], {}, self._limits[name])) is None:
                    continue
                found.append(_constant(changed, _rounded(c.value, self._limits[name])))
        return list({m.name: m for m in found}.values())

    def _may_fit(self, pair: tuple[Mistake, ...]) -> bool:
        """Return whether a pair can explain the differing quantity in which fewest mistakes have a part."""
        if self._rarest is None:
            return True
        acting = self._acting(self._rarest, pair)
        return len(acting) == len(pair) or (bool(acting) and self._is(
            tuple(m for m in pair if m.name in acting), self._rarest))

    def _acting(self, name: str, mistakes: tuple[Mistake, ...]) -> tuple[str, ...]:
        """Return the names of those of the mistakes that have a part in a quantity: `Reference.part_of`, by table."""
        if any(m.name not in CATALOGUE for m in mistakes):
            return self.reference.having(*mistakes).part_of(name)
        alone, brings = self.reference.kept(("alone", name), _alone), self.reference.kept(("brings",), _brings)
        found = {m.name for m in mistakes if m.name in alone}
        if 0 < len(found) < len(mistakes):                      # what one reads may bring in the other
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
        """Return whether all quantities with these mistakes are the given ones, to rounding.

        Parameters
        ----------
        mistakes : tuple of Mistake
            In the catalogue's order; none for the right values.
        """
        plain = [name for name in self._order if not name.startswith("trajectory_")]
        return all(self._is(mistakes, name) for name in plain) and (
            len(plain) == len(self.names) or self._follows(mistakes))

    def _is(self, mistakes: tuple[Mistake, ...], name: str) -> bool:
        """Return whether a quantity with these mistakes is the given one, to rounding."""
        key = name, self._acting(name, mistakes)
        if key not in self._same:
            r = self.reference.having(*mistakes)
            try:
                off = _error(r, name, r.shown(name), self.theirs[name])
            except _FAILS:
                off = math.inf
            # The condition is dear, and matters for what is near alone.
            self._same[key] = off <= self._limits[name] or (
                self.rtol is None and off <= WORST[self.dtype] and off <= self.tolerance(name, r))
        return self._same[key]

    def _follows(self, mistakes: tuple[Mistake, ...]) -> bool:
        t = self.reference.problem.trajectory
        given = [X for name in self.names if name.startswith("trajectory_")
                 for X in (self.theirs[name] if name == "trajectory_weights" else [self.theirs[name]])]
        if t is None or any(np.shape(X)[:1] != (len(t.batches),) for X in given):
            return False                                    # of another number of steps, whatever was done in them
        try:
            return all(off <= self.tolerance("trajectory_weights") for _, _, off in self.along(mistakes))
        except _FAILS:
            return False

    def along(self, mistakes: tuple[Mistake, ...] = ()) -> Iterator[tuple[int, str, float]]:
        """Compare a trajectory step by step.

        Parameters
        ----------
        mistakes : tuple of Mistake
            With which it is taken.

        Yields
        ------
        (int, str, float)
            The step from 1, the quantity, and its relative error.
        """
        turned = [m for m in mistakes if "trajectory_weights" in m.shows]
        for k, step in enumerate(steps(self.reference.problem, mistakes, self._first_step)):
            for name in SCALARS:
                if f"trajectory_{name}" in self.theirs:
                    theirs = self.theirs[f"trajectory_{name}"]
                    yield k + 1, name, _off(step, name, theirs, k)
            if "trajectory_weights" in self.theirs:
                weights = tuple(step["weights"])
                for m in turned:
                    weights = m.shows["trajectory_weights"](self.reference, weights)
                theirs = self.theirs["trajectory_weights"]
                yield k + 1, "weights", error(weights, tuple(W[k] for W in theirs)) if all(
                    np.ndim(W) and k < len(W) for W in theirs) else math.inf

    def first_difference(self) -> tuple[int, str, float] | None:
        """Return the first step, the first quantity of it, and the error, where a trajectory leaves the right one."""
        limit = self.tolerance("trajectory_weights")
        return next((found for found in self.along() if not found[2] <= limit), None)

    # Where no explanation holds for all quantities at once.

    def one_by_one(self) -> dict[str, list[Explanation]]:
        """Explain each differing quantity given those before it as they are; an empty one says that it follows.

        Returns
        -------
        dict
            For each differing quantity, the explanations; none where there is none.
        """
        found: dict[str, list[Explanation]] = {}
        for name in self.differing():
            before = {other: self.theirs[other] for other in self.names if other in _ancestors(name)
                      and QUANTITIES[other].kind != "trajectory"}
            r = self.reference.taking(**before)
            part = Diagnosis(self.reference, {name: self.theirs[name]}, self.dtype, self.rtol)
            part.reference = r
            if before and part.fits(()):
                found[name] = [Explanation(())]
            elif self.names == [name]:                      # nothing explained all of it
                found[name] = []
            else:
                found[name] = part.explanations()
        return found

    def tells_apart(self, explanations: Sequence[Explanation]) -> str | None:
        """Return a quantity that was not given, of which the explanations predict the most different values.

        Parameters
        ----------
        explanations : sequence of Explanation
            At least two.

        Returns
        -------
        str or None
            None where no quantity of this problem tells any two apart.
        """
        best, most = None, 1
        large = self.reference.problem.model.network.parameters > _DENSE_UP_TO
        for name in self.reference.names():
            if name in self.theirs or (name in _DENSE and large):
                continue
            values: list[Any] = []
            for e in explanations[:20]:
                try:
                    value = self.reference.having(*e.mistakes).shown(name)
                except _FAILS:
                    continue
                if all(error(v, value) > catalogue.VISIBLE for v in values):
                    values.append(value)
            if len(values) > most:
                best, most = name, len(values)
        return best


def _off(step: Mapping[str, Any], name: str, theirs: Any, k: int) -> float:
    """Return the relative error of a step's number."""
    if np.ndim(theirs) != 1 or k >= len(theirs):
        return math.inf
    if name == "mu":
        return _error_of_mu(step["mu"], theirs[k], abs(step["alpha"]))
    return error(step[name], theirs[k])


def _error_of_mu(right: float, theirs: float, other: float) -> float:
    """Return the relative error of mu, which is nothing but rounding where it is this much smaller than the other."""
    return error(np.array([right, 1e-6 * other]), np.array([theirs, 1e-6 * other]))


def _error(r: Reference, name: str, value: Any, theirs: Any) -> float:
    """Return the relative error of a quantity."""
    if name == "mu" and r.problem.delta_0 is not None:
        # In units of delta_0, that is how far alpha Delta goes.
        Delta, last = params.norm(r["Delta"]), params.norm(r.problem.delta_0)
        return _error_of_mu(value, theirs, abs(r["alpha"]) * Delta / last if last > 0 else 0.0)
    return error(value, theirs)


def condition(r: Reference, name: str) -> float:
    """Return the condition number that a solve loses its accuracy to, 1 for a sum.

    Parameters
    ----------
    r : Reference
        Of the problem.
    name : str
        A quantity.
    """
    kind = QUANTITIES[name].kind
    if kind == "sum":
        return 1.0
    if kind == "trajectory":
        return 1e4                                      # what some steps amplify rounding to, on well-posed problems
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
    """Return the names of the mistakes that have a part in a quantity."""
    return {m.name for m in CATALOGUE.values() if reference.having(m).part_of(name)}


def _brings(reference: Reference) -> dict[str, set[str]]:
    """Return for each mistake the names of those that change what it reads."""
    return {a.name: {b.name for b in CATALOGUE.values() if any(
        not reference.below(read).isdisjoint(b.changes) for read in a.reads)} for a in CATALOGUE.values()}


def _ancestors(name: str) -> set[str]:
    seen: set[str] = set()
    todo = list(NODES[name].needs)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += NODES[node].needs
    return seen


# A factor that no entry of the catalogue has.

#: What somebody may have multiplied by a constant, and where that happened.
SCALABLE = {"gradient": ("gradient",), **dict.fromkeys((*STEPS, "step_sampled", "step_empirical"), STEPS)}
#: In fewer entries a constant factor is no evidence of anything.
_FEWEST = 4


def _constant(changed: Sequence[str], c: float) -> Mistake:
    """Return the mistake of a factor that no count gives."""
    what = "gradient" if changed == ("gradient",) else "step"
    turned = " and of the other sign" if c < 0 else ""
    return Mistake(
        f"{what} times {c:.12g}", f"the {what} is {abs(c):.6g} times what it must be{turned} (a learning rate?)",
        "Delta is what alpha, or a learning rate, multiplies afterwards" if what == "step" else
        "grad h is the gradient of the mean loss with its weight decay, not of a multiple",
        f"give the {what} before it is multiplied", {name: lambda r, right: times(c, right()) for name in changed})


def _rounded(c: float, tolerance: float) -> float:
    """Return the number of fewest digits that a measured one is, to rounding."""
    return next((v for digits in range(1, 13) if abs((v := float(f"{c:.{digits}g}")) - c) <= tolerance * abs(c)), c)


@dataclass(frozen=True)
class Scale:
    """One number by which a quantity is off, and what it may be made of.

    Attributes
    ----------
    value : float
        Theirs over ours.
    text : str
        As a product of powers of N, C, 2 and M, empty where it is none of small exponents.
    """

    value: float
    text: str


def scale(right: Any, theirs: Any, counts: Mapping[str, int], tolerance: float) -> Scale | None:
    """Return the one factor between two values of a quantity, None where there is none.

    Parameters
    ----------
    right, theirs : number, array or tuple of arrays
        Of the same form.
    counts : mapping
        N, C and M, where there are such.
    tolerance : float
        Of the relative error that is left.
    """
    if not math.isfinite(error(right, theirs)):
        return None
    a, b = (np.concatenate([np.ravel(X) for X in value]) if isinstance(value, tuple) else np.ravel(value)
            for value in (right, theirs))
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known].astype(float), b[known].astype(float)
    if not a.any() or not b.any():
        return None
    c = float(a @ b / (a @ a))
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


# Where an error sits.


def place(right: Any, theirs: Any, tolerance: float) -> str:
    """Say where two values of a quantity differ: layers, rows, columns, bias, diagonal.

    Parameters
    ----------
    right, theirs : number, array or tuple of arrays
        Ours and theirs.
    tolerance : float
        Relative to the largest entry of an array.
    """
    if not isinstance(right, tuple):
        return _place(np.asarray(right, dtype=float), np.asarray(theirs, dtype=float), tolerance)
    if not isinstance(theirs, tuple) or len(right) != len(theirs):
        return f"{len(theirs) if isinstance(theirs, tuple) else 1} arrays, expected {len(right)}"
    found = [(i, _place(np.asarray(a, dtype=float), np.asarray(b, dtype=float), tolerance))
             for i, (a, b) in enumerate(zip(right, theirs, strict=True))]
    wrong = [f"layer {i}: {text}" for i, text in found if text]
    well = [str(i) for i, text in found if not text]
    return "; ".join(wrong) + (f" (right in layer {', '.join(well)})" if well else "")


def _place(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], tolerance: float) -> str:
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
            return f"{half}, in {int(wrong.sum())} of {wrong.size} entries wrong"
    if wrong.all():
        return "all entries"
    if a.ndim == 1:
        return f"entries {_listed(np.flatnonzero(wrong))}"
    if a.ndim == 2:
        square = a.shape[0] == a.shape[1]
        if square and not wrong[~np.eye(len(a), dtype=bool)].any():
            return "the diagonal alone"
        if square and not wrong[np.eye(len(a), dtype=bool)].any():
            return "all but the diagonal" if wrong.sum() == a.size - len(a) else "entries off the diagonal"
        columns, rows = np.flatnonzero(wrong.any(axis=0)), np.flatnonzero(wrong.any(axis=1))
        last = a.shape[1] - 1
        if square and not wrong[:-1, :-1].any():
            return "the last row and column alone (the bias, if this is A)"
        if columns.tolist() == [last]:
            return "the last column alone (the bias)"
        if last not in columns and len(columns) == last and len(rows) == a.shape[0]:
            return "all columns but the last (the bias is right)"
        if len(columns) <= a.shape[1] // 2:
            return f"columns {_listed(columns)}"
        if len(rows) <= a.shape[0] // 2:
            return f"rows {_listed(rows)}"
    return f"{int(wrong.sum())} of {wrong.size} entries"


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
