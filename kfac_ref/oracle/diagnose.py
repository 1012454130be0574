"""Find the mistakes that explain differing values: the search through the catalogue.

An explanation is one mistake, one wrong number, or two or three mistakes at once, that reproduces every given quantity
as closely as rounding allows. The simplest that fit are reported, if chance would hardly give so many right digits;
where the given values cannot distinguish them, the report names a quantity that would.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import NODES, QUANTITIES, Reference
from .mistakes import CATALOGUE, VISIBLE, Mistake, error
from .mistakes.numbers import FAMILIES, Family, solved
from .precision import Form, Tolerance
from .trajectory import SCALARS, steps

_FAILS = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)
#: Quantities that need a dense matrix of all weights are not computed per explanation for networks with more weights.
_DENSE_UP_TO = 500
_DENSE = ("fisher", "fisher_sampled", "fisher_empirical", "hessian", "kfac_block", "natural_gradient")
_COARSE = {"trajectory_lambda", "trajectory_gamma"}
#: An explanation is reported if chance would give it less often than this.
CHANCE = 1e-3

#: Values by the names of their quantities.
Quantities = Mapping[str, Any]


@dataclass(frozen=True)
class Explanation:
    """Mistakes that together, in this order, turn the right values into the given ones."""

    mistakes: tuple[Mistake, ...]
    chance: float = 0.0     # how often a search of this size would find one that fits by chance

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the mistakes."""
        return tuple(m.name for m in self.mistakes)


class Diagnosis:
    """The search for one set of given quantities, in the form of `forms.coerced`.

    `dtype`, `rtol` and `form` are as in `Tolerance`. `banned` names nodes that no mistake may change, and `seconds`
    limits the search; `untried` says what was left out.
    """

    def __init__(self, reference: Reference, theirs: Quantities, dtype: str = "float64", rtol: float | None = None,
                 form: Form | None = None, banned: Iterable[str] = (), seconds: float = math.inf) -> None:
        self.reference, self.theirs = reference, theirs
        self.tolerance = Tolerance(theirs, dtype, rtol, form)
        self.options: dict[str, Any] = {"dtype": dtype, "rtol": rtol, "form": form}
        self.names = sorted(theirs, key=list(QUANTITIES).index)
        self.errors = {name: error(reference[name], theirs[name]) for name in self.names}
        self.excess = {name: self.tolerance.excess(reference, name, theirs[name]) for name in self.names}
        self._order = sorted(self.names, key=lambda name: self.excess[name] <= 1)
        self.candidates = [m for m in CATALOGUE.values() if set(banned).isdisjoint({*m.changes, *m.shows})]
        self._same: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._first_step: dict[Any, Any] = {}
        self._end = time.process_time() + seconds
        self.untried, self.by_chance, self.tried = "", list[Explanation](), 1
        self._near: list[tuple[tuple[Mistake, ...], str]] = []      # pairs that fit all quantities but this one

    def differing(self) -> list[str]:
        """Return the names of the given quantities that differ by more than rounding."""
        return [name for name in self.names if not self.excess[name] <= 1]

    def same_shape(self, name: str) -> bool:
        """Return whether the given arrays of a quantity have the right shapes."""
        return bool(_shapes(self.reference[name]) == _shapes(self.theirs[name]))

    def explanations(self) -> list[Explanation]:
        """Return the simplest explanations: single mistakes, else numbers, else pairs, else one of each, else three.

        Those that chance may have given are in `by_chance` instead.
        """
        for hypotheses in (self._singles, self._numbers, self._pairs_or_number, self._triples):
            if found := list(hypotheses()):
                return self._beyond_chance(found)
            if self._late():
                self.untried = self.untried or "some combinations of mistakes were not tried, for lack of time"
                break
        return []

    def _pairs_or_number(self) -> list[tuple[Mistake, ...]]:
        """Return pairs that fit, else a mistake and a number, which is the faster search."""
        with_number = list(self._number_and_mistake())
        return list(self._pairs()) or with_number

    def _singles(self) -> Iterator[tuple[Mistake, ...]]:
        self.tried = len(self.candidates)
        for m in self.candidates:
            if self.fits((m,)):
                yield (m,)
            if self._late():
                return

    def _numbers(self, with_: tuple[Mistake, ...] = ()) -> Iterator[tuple[Mistake, ...]]:
        """Yield the wrong number that fits (after other mistakes), as the simplest number that does."""
        base, differing = self.reference.having(*with_), self.differing()
        for family in FAMILIES:
            name = next((n for n in family.shown_by if n in differing), None)
            if name is None or (with_ and family.alone) or self._late() or not family.defined(base) or sum(
                    map(np.size, _arrays(self.theirs[name]))) < 2:
                continue
            some = family.at(2.0 * np.ones(len(base["weights"])) if family.per_layer else 2.0)
            if not all(self._acting(n, (some,)) or self._is(with_, n) for n in self.names):
                continue                                    # it does not explain what the others leave
            with suppress(*_FAILS):
                for c in solved(family, base, name, self.theirs[name], quick=bool(with_)):
                    found = next((m for m in _simplest(family, base, c) if self.fits((*with_, m))), None)
                    if found is not None:
                        yield (*with_, found)
                        return

    def _pairs(self) -> Iterator[tuple[Mistake, ...]]:
        if _COARSE.issuperset(self.names):                  # lambda and gamma take few values
            return
        effective = [m for m in self.candidates if self._matters(m)]
        self.tried = len(effective)**2
        for pair in itertools.permutations(effective, 2):
            if self._late():
                return
            if not _in_order(pair) and not _touch(*pair):   # the order does not matter
                continue
            wrong = self._refuted(pair)
            if len(wrong) > (len(self.names) > 2) or not self._all_act(pair):
                continue
            if self.fits(pair, except_=wrong):
                if wrong:
                    self._near.append((pair, wrong[0]))
                else:
                    yield pair

    def _matters(self, m: Mistake) -> bool:
        """Return whether a mistake changes any given quantity here; weight decay of 0, for example, cannot be wrong."""
        for name in self.names:
            if self._acting(name, (m,)):
                if name.startswith("trajectory_"):
                    return True
                with suppress(*_FAILS):
                    if error(self.reference[name], self.reference.having(m).shown(name)) > 0:
                        return True
        return False

    def _refuted(self, mistakes: tuple[Mistake, ...]) -> list[str]:
        """Return the given quantities that only some of these mistakes affect, and that these do not explain."""
        found = []
        for name in self.names:
            acting = self._acting(name, mistakes)
            if len(acting) < len(mistakes) and not self._is(tuple(m for m in mistakes if m.name in acting), name):
                found.append(name)
        return found

    def _number_and_mistake(self) -> Iterator[tuple[Mistake, ...]]:
        for m in self.candidates:
            if self._late():
                return
            if self._matters(m):
                yield from self._numbers((m,))

    def _triples(self) -> Iterator[tuple[Mistake, ...]]:
        """Yield triples of mistakes of which a pair fits all quantities but one."""
        for pair, name in self._near:
            for m in self.candidates:
                if self._late():
                    return
                if m not in pair and self._acting(name, (m,)) and self.fits((*pair, m)):
                    yield (*pair, m)

    def _late(self) -> bool:
        return time.process_time() > self._end

    def _beyond_chance(self, found: Sequence[tuple[Mistake, ...]]) -> list[Explanation]:
        digits, result = self._evidence(), list[Explanation]()
        for mistakes in found:
            numbers = [m for m in mistakes if m.group == "number"]
            known = digits - math.log10(max(self.tried, 2)) - sum(_digits_of(m) for m in numbers)
            e = Explanation(mistakes, min(1.0, 10.0**-known))
            (result if e.chance < CHANCE else self.by_chance).append(e)
        return result

    def _evidence(self) -> float:
        """Return the number of digits in which the given values differ from the right ones, and an explanation not."""
        total = 0.0
        for name in self.differing():
            right, theirs = _arrays(self.reference.shown(name)), _arrays(self.theirs[name])
            if len(right) != len(theirs) or any(np.shape(a) != np.shape(b) for a, b in zip(right, theirs, strict=True)):
                return math.inf                             # another shape is no chance
            allowed = _arrays(self.tolerance.allowed(self.reference, name, self.theirs[name]))
            for a, b, t in zip(right, theirs, allowed, strict=True):
                a, b, t = (np.asarray(v, dtype=float) for v in (a, b, t))
                size = np.nan_to_num(np.abs(b)).max(initial=0)
                off = np.abs(a - b) > t
                digits = np.clip(np.log10(np.maximum(size / np.maximum(t[off], 1e-300), 1)), 0, 15)
                total += float(np.sum(digits)) / (2 if a.ndim == 2 and a.shape[0] == a.shape[1] and len(a) > 1 else 1)
        return total

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

    def _all_act(self, mistakes: tuple[Mistake, ...]) -> bool:
        return len({n for name in self.names for n in self._acting(name, mistakes)}) == len(mistakes)

    def fits(self, mistakes: tuple[Mistake, ...], except_: Sequence[str] = ()) -> bool:
        """Return whether these mistakes, in this order, reproduce all given quantities, to rounding."""
        plain = [name for name in self._order if not name.startswith("trajectory_")]
        return all(name in except_ or self._is(mistakes, name) for name in plain) and (
            len(plain) == len(self.names) or self._follows(mistakes))

    def _is(self, mistakes: tuple[Mistake, ...], name: str) -> bool:
        """Return whether these mistakes reproduce one given quantity, to rounding."""
        if name.startswith("trajectory_") and mistakes:     # expensive: `_follows` looks at all of them at once
            return True
        key = name, self._acting(name, mistakes)
        if key not in self._same:
            r, theirs = self.reference.having(*mistakes), self.theirs[name]
            self._same[key] = False
            with suppress(*_FAILS):
                self._same[key] = error(r.shown(name), theirs) <= self.tolerance.coarse(name) and \
                    self.tolerance.excess(r, name, theirs, key[1]) <= 1
        return self._same[key]

    def _follows(self, mistakes: tuple[Mistake, ...]) -> bool:
        t = self.reference.problem.trajectory
        names = [name for name in self.names if name.startswith("trajectory_")]
        given = [X for name in names for X in _arrays(self.theirs[name])]
        if t is None or any(np.shape(X)[:1] != (len(t.batches),) for X in given):
            return False                                    # another number of steps
        with suppress(*_FAILS):
            if all(off <= self.tolerance.coarse(names[0]) for _, _, off in self.along(mistakes)):
                r, key = self.reference.having(*mistakes), tuple(m.name for m in mistakes)
                return all(self.tolerance.excess(r, name, self.theirs[name], key) <= 1 for name in names)
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
                if turned:                                  # the catalogue shows all steps at once
                    continue
                yield k + 1, "weights", error(tuple(step["weights"]), tuple(W[k] for W in theirs)) if all(
                    np.ndim(W) and k < len(W) for W in theirs) else math.inf

    def first_difference(self) -> tuple[int, str, float] | None:
        """Return the step, quantity and relative error where a trajectory first differs from the right one."""
        limits = {name: self.tolerance.allowed(self.reference, name, self.theirs[name])
                  for name in self.differing() if name.startswith("trajectory_")}
        right = {name: self.reference[name] for name in limits}
        for k, name, off in self.along():
            full = f"trajectory_{name}"
            if full not in limits:
                continue
            with suppress(IndexError):
                wrong = any((np.abs(np.asarray(a)[k - 1] - np.asarray(b)[k - 1]) > np.asarray(t)[k - 1]).any()
                            or (np.isnan(np.asarray(a)[k - 1]) != np.isnan(np.asarray(b)[k - 1])).any()
                            for a, b, t in zip(_arrays(right[full]), _arrays(self.theirs[full]), _arrays(limits[full]),
                                               strict=True))
                if not wrong:
                    continue
            return k, name, off
        return None

    def one_by_one(self, seconds: float = math.inf) -> dict[str, list[Explanation]]:
        """Explain each differing quantity given the values of its inputs, if nothing explains all at once.

        One without mistakes says that the quantity is correct given its inputs; an empty list says that nothing fits.
        A mistake in an input that is given is no explanation.
        """
        found: dict[str, list[Explanation]] = {}
        end = time.process_time() + seconds
        for name in self.differing():
            inputs = self.reference.below(name) - {name}
            before = {other: self.theirs[other] for other in self.names if other in inputs
                      and QUANTITIES[other].kind != "trajectory"}
            part = Diagnosis(self.reference.taking(**before), {name: self.theirs[name]}, **self.options, banned=before,
                             seconds=max(0.0, end - time.process_time()))
            if before and part.fits(()):
                found[name] = [Explanation(())]
            else:                                           # one quantity was already tried
                found[name] = part.explanations() if before or self.names != [name] else []
                self.untried = self.untried or part.untried
        return found

    def is_another(self) -> dict[str, str]:
        """Return, for each differing quantity, another quantity that has the given values."""
        found = {}
        dense = self.reference.problem.model.network.parameters > _DENSE_UP_TO
        for name in self.differing():
            shape = _shapes(self.reference[name])
            for other in self.reference.names():
                if other == name or (dense and other in _DENSE) or other.startswith("trajectory_"):
                    continue
                with suppress(*_FAILS):
                    value = self.reference[other]
                    if _shapes(value) == shape and math.prod(map(np.size, _arrays(value))) > 1 and \
                            error(value, self.theirs[name]) <= self.tolerance.coarse(name) and \
                            self._equals(other, name):
                        found[name] = other
                        break
        return found

    def _equals(self, other: str, name: str) -> bool:
        """Return whether the given values of a quantity are those of another one."""
        part = Tolerance({other: self.theirs[name]}, **self.options)
        return part.excess(self.reference, other, self.theirs[name]) <= 1

    def begins(self) -> tuple[str, list[str]] | None:
        """Return the quantity at which the error begins, and what to give next to find the place."""
        differing = self.differing()
        if not differing:
            return None
        first = min(differing, key=lambda n: len(self.reference.below(n)))
        return first, [n for n in _inputs(first) if n not in self.theirs and n in self.reference.names()]

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


def _in_order(pair: tuple[Mistake, ...]) -> bool:
    order = _places()
    return order[pair[0].name] < order[pair[1].name]


@functools.cache
def _places() -> dict[str, int]:
    return {name: i for i, name in enumerate(CATALOGUE)}


def _touch(a: Mistake, b: Mistake) -> bool:
    """Return whether two mistakes change the same node, so that their order matters."""
    return not a.changes.keys().isdisjoint(b.changes) or not a.shows.keys().isdisjoint(b.shows)


def _arrays(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shapes(value: Any) -> Any:
    return tuple(map(np.shape, _arrays(value))), isinstance(value, tuple)


def _inputs(name: str) -> list[str]:
    """Return the quantities that one is computed from, without those that only they are computed from."""
    found: list[str] = []
    for need in NODES[name].needs:
        found += [need] if need in QUANTITIES else _inputs(need)
    return list(dict.fromkeys(found))


def _off(step: Mapping[str, Any], name: str, theirs: Any, k: int) -> float:
    """Return the relative error of a step's number; of mu, relative to 1e-6 alpha where it is smaller than that."""
    if np.ndim(theirs) != 1 or k >= len(theirs):
        return math.inf
    least = 1e-6 * abs(step["alpha"]) if name == "mu" else 0.0
    return error(np.array([step[name], least]), np.array([theirs[k], least]))


def _alone(reference: Reference, name: str) -> set[str]:
    """Return the names of the mistakes that affect a quantity."""
    return {m.name for m in CATALOGUE.values() if reference.having(m).part_of(name)}


def _brings(reference: Reference) -> dict[str, set[str]]:
    """Return the names of the mistakes that change what each mistake reads."""
    return {a.name: {b.name for b in CATALOGUE.values() if any(
        not reference.below(read).isdisjoint(b.changes) for read in a.reads)} for a in CATALOGUE.values()}


# Wrong numbers.


def _simplest(family: Family, r: Reference, c: Any) -> Iterator[Mistake]:
    """Yield the mistake with numbers near c: a known multiple of the right one, then with ever more digits."""
    if family.per_layer:
        yield family.at(c, ", ".join(f"{v:.6g}" for v in c))
        return
    c, right = float(c), family.right(r)
    counts = {"N": len(r.problem.x), "C": r.problem.sizes[-1],
              "M": 1 if r.problem.targets is None else len(r.problem.targets)}
    if right and family.positive and (text := _as_powers(c / right, counts, 1e-6)):
        near = right * float(_value_of(text, counts))
        if abs(near / c - 1) < 1e-5 and text != "1":
            plain = f"{near:.6g}"
            yield family.at(near, plain if right == 1 and text == plain else
                            f"{plain} = {text}" if right == 1 else f"{plain} ({text} times the right {right:.6g})")
    for digits in range(1, 13):
        rounded = float(f"{c:.{digits}g}")
        if abs(rounded - c) <= 1e-3 * abs(c):
            yield family.at(rounded, f"{rounded:.12g}")
        if c and family.positive and right == 1:
            inverse = float(f"{1 / c:.{digits}g}")
            if digits < 6 and abs(inverse * c - 1) < 1e-6:
                yield family.at(1 / inverse, f"{1 / inverse:.6g} = 1/{inverse:g}")
    yield family.at(c, f"{c:.12g}")


def _value_of(text: str, counts: Mapping[str, int]) -> float:
    """Return the value of a product of powers, as `_as_powers` writes it."""
    result = -1.0 if text.startswith("-") else 1.0
    for part in text.lstrip("-").split():
        base, _, power = part.partition("^")
        result *= (counts[base] if base in counts else float(base)) ** float(power or 1)
    return result


def _digits_of(m: Mistake) -> float:
    """Return the digits of evidence that the number of a mistake uses up."""
    text = m.name.split(" = ")[0].split(" (")[0]
    return sum(character.isdigit() for character in text.split("e")[0]) if " = " not in m.name and " (" not in m.name \
        else 2.0


# Constant factors.


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


def place(right: Any, theirs: Any, allowed: Any) -> str:
    """Describe where two values of a quantity differ.

    `allowed` has the largest error of each entry that counts as rounding, or is one number, relative to the largest
    entry of an array; None if the shapes differ.
    """
    if not isinstance(right, tuple):
        return _place(right, theirs, allowed)
    if not isinstance(theirs, tuple) or len(right) != len(theirs):
        return f"{len(theirs) if isinstance(theirs, tuple) else 1} arrays, expected {len(right)}"
    limits = allowed if isinstance(allowed, tuple) else [allowed] * len(right)
    found = [_place(a, b, t) for a, b, t in zip(right, theirs, limits, strict=True)]
    wrong = [f"layer {i}: {text}" for i, text in enumerate(found) if text]
    well = [str(i) for i, text in enumerate(found) if not text]
    return "; ".join(wrong) + (f" (right in layer {', '.join(well)})" if well and allowed is not None else "")


def _place(right: Any, theirs: Any, allowed: Any) -> str:
    a, b = np.asarray(right, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        turned = ", its transpose" if a.ndim == 2 and a.shape == b.shape[::-1] else ""
        return f"shape {b.shape}{turned}, expected {a.shape}"
    size = max(float(np.max(np.abs(a), initial=0)), 1e-300)
    if allowed is None or np.ndim(allowed) == 0:
        allowed = (allowed or 0.0) * size
    tolerance = max(float(np.max(allowed, initial=0)) / size, 1e-15)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(a - b) <= allowed)
    wrong &= ~(np.isnan(a) & np.isnan(b))
    if not wrong.any():
        return ""
    if a.ndim == 0:
        return "the number"
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.abs(a - a.T).max() <= tolerance * size:
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
