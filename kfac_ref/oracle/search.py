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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .differences import VISIBLE, arrays, error, shapes
from .graph import FAILS, NODES, QUANTITIES, Reference
from .mistakes import CATALOGUE, Mistake
from .mistakes.numbers import FAMILIES, Family, digits_of, simplest, solved
from .precision import Form, Tolerance
from .trajectory import SCALARS, steps

#: Quantities that need a dense matrix of all weights are not computed per explanation for networks with more weights.
_DENSE_UP_TO = 500
_DENSE = ("fisher", "fisher_sampled", "fisher_empirical", "hessian", "kfac_block", "natural_gradient")
#: Quantities of the last kinds take longer, so they are compared last.
_COSTS = ("sum", "basis", "solve", "trajectory")
#: These take few values, so that many pairs of mistakes give them.
_COARSE = {"trajectory_lambda", "trajectory_gamma"}
#: An explanation is reported if chance would give it less often than this.
CHANCE = 1e-3

#: Values by the names of their quantities.
Quantities = Mapping[str, Any]
Mistakes = tuple[Mistake, ...]


@dataclass(frozen=True)
class Explanation:
    """Mistakes that together, in this order, turn the right values into the given ones."""

    mistakes: Mistakes
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
        self.differing = [name for name in self.names if not self.tolerance.excess(reference, name, theirs[name]) <= 1]
        self.candidates = [m for m in CATALOGUE.values() if set(banned).isdisjoint({*m.changes, *m.shows})
                           and (all(reference.problem.bias) or not m.of_biases)]
        self._order = sorted(self.names, key=lambda name: (_COSTS.index(QUANTITIES[name].kind), name in _DENSE,
                                                           name not in self.differing))
        self._same: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._acts, self._alone = dict[str, frozenset[str]](), dict[tuple[str, str], bool]()
        self._first_step: dict[Any, Any] = {}
        self._with = functools.lru_cache(maxsize=4)(reference.having)       # the last references with mistakes
        self._start = time.process_time()
        self._end = self._start + seconds
        self.untried, self.by_chance, self.tried = "", list[Explanation](), 1
        self._near: list[tuple[Mistakes, str]] = []         # pairs that fit all quantities but this one

    def explanations(self) -> list[Explanation]:
        """Return the simplest explanations: single mistakes, else numbers, else pairs, else one of each, else three.

        Those that chance may have given are in `by_chance` instead.
        """
        searches = {"single mistakes": self._singles, "wrong numbers": self._numbers,
                    "pairs of mistakes": self._pairs_or_number, "three mistakes": self._triples}
        half = (self._start + self._end) / 2
        for i, search in enumerate(searches.values()):
            found = list[Mistakes]()
            for mistakes in search():
                found.append(mistakes)                      # once one is found, others get less time
                self._end = half
            if self._late():
                left = list(searches)[i:i + 1] if found else list(searches)[i:]
                self.untried = f"not tried, or not all, for lack of time: {', '.join(left)}"
            if found or self.untried:
                return self._beyond_chance(found)
        return []

    def _singles(self) -> Iterator[Mistakes]:
        self.tried = len(self.candidates)
        for m in self.candidates:
            if self.fits((m,)):
                yield (m,)
            if self._late():
                return

    def _numbers(self, with_: Mistakes = ()) -> Iterator[Mistakes]:
        """Yield the wrong number that fits (after another mistake), as the simplest number that does."""
        base = self.reference.having(*with_)
        for family in FAMILIES:
            # A quantity that has lost its digits, such as the G of a saturated network, may lead to another number.
            names = [n for n in family.shown_by
                     if n in self.differing and sum(map(np.size, arrays(self.theirs[n]))) > 1]
            if not names or (with_ and family.alone) or self._late() or not family.defined(base):
                continue
            affected = self._acting(*with_, _some(family, base))[-1]
            if not all(n in affected or self._is(with_, n) for n in self.names):
                continue                                    # it does not explain what the others leave
            for name in names[:1 if with_ else 2]:
                if found := self._number(family, base, name, with_):
                    yield (*with_, found)
                    return

    def _number(self, family: Family, base: Reference, name: str, with_: Mistakes) -> Mistake | None:
        """Return the wrong number that fits, solved for from one quantity."""
        with suppress(*FAILS):
            c = solved(family, base, name, self.theirs[name], bool(with_), self._late)
            return next((m for m in simplest(family, base, c) if self.fits((*with_, m))), None)
        return None

    def _pairs_or_number(self) -> Iterator[Mistakes]:
        """Yield pairs that fit, else a mistake and a number, which is the faster search."""
        with_number, pair = list(self._number_and_mistake()), None
        for pair in self._pairs():
            yield pair
        if pair is None:
            yield from with_number

    def _pairs(self) -> Iterator[Mistakes]:
        """Yield pairs that fit, in both orders where the order matters; pairs that nearly fit are kept for triples."""
        if _COARSE.issuperset(self.names):
            return
        self.tried = len(self._effective)**2
        order = {name: i for i, name in enumerate(CATALOGUE)}
        for a, b in itertools.permutations(self._effective, 2):
            if self._late():
                return
            if order[a.name] > order[b.name] and not _touch(a, b):      # the order does not matter
                continue
            wrong = list(itertools.islice(self._refuted(a, b), 2))
            if len(wrong) <= (len(self.names) > 2) and self.fits((a, b), except_=wrong):
                if wrong:
                    self._near.append(((a, b), wrong[0]))
                else:
                    yield a, b

    def _number_and_mistake(self) -> Iterator[Mistakes]:
        for m in self._effective:
            if self._late():
                return
            yield from self._numbers((m,))

    def _triples(self) -> Iterator[Mistakes]:
        """Yield triples of mistakes of which a pair fits all quantities but one."""
        for pair, name in self._near:
            for m in self.candidates:
                if self._late():
                    return
                if m not in pair and name in self._acting(m)[0] and self.fits((*pair, m)):
                    yield (*pair, m)

    def _late(self) -> bool:
        return time.process_time() > self._end

    @functools.cached_property
    def _effective(self) -> list[Mistake]:
        return [m for m in self.candidates if not self._late() and self._matters(m)]

    def _matters(self, m: Mistake) -> bool:
        """Return whether a mistake changes any given quantity here; weight decay of 0, for example, cannot be wrong."""
        r = self._with(m)
        acting = self._acting(m)[0]
        for name in self._order:
            if name not in acting:
                continue
            if name.startswith("trajectory_"):
                return True
            with suppress(*FAILS):
                if error(self.reference[name], r.shown(name)) > 0:
                    return True
        return False

    def _acting(self, *mistakes: Mistake) -> list[frozenset[str]]:
        """Return the given quantities that each of one or two mistakes affects: what `Reference.part_of` says."""
        for m in mistakes:
            if m.name not in self._acts:
                r = self.reference.having(m)
                self._acts[m.name] = frozenset(name for name in self.names if r.part_of(name))
        found = [self._acts[m.name] for m in mistakes]
        if len(mistakes) == 2:                              # one may read what the other changes
            (a, b), (A, B) = mistakes, found
            found = [A | B if self._reads(b, a) else A, A | B if self._reads(a, b) else B]
        return found

    def _reads(self, a: Mistake, b: Mistake) -> bool:
        """Return whether a mistake reads what another one changes."""
        return any(not self.reference.below(read).isdisjoint(b.changes) for read in a.reads)

    def _refuted(self, a: Mistake, b: Mistake) -> Iterator[str]:
        """Yield the given quantities that refute a pair: at most one mistake affects them, and not as it should."""
        A, B = self._acting(a, b)
        if not (A and B):
            yield from self.names                           # one of them has nothing to explain
        for name in self.names:
            if (name in A) != (name in B):
                if not self._explains(a if name in A else b, name):
                    yield name
            elif name not in A and name in self.differing:
                yield name

    def _explains(self, m: Mistake, name: str) -> bool:
        """Return whether a mistake alone reproduces a quantity."""
        if (m.name, name) not in self._alone:
            self._alone[m.name, name] = self._is((m,), name)
        return self._alone[m.name, name]

    def fits(self, mistakes: Mistakes, except_: Collection[str] = ()) -> bool:
        """Return whether these mistakes, in this order, reproduce all given quantities, to rounding."""
        plain = [name for name in self._order if not name.startswith("trajectory_")]
        return all(name in except_ or self._is(mistakes, name) for name in plain) and (
            len(plain) == len(self.names) or self._follows(mistakes))

    def _is(self, mistakes: Mistakes, name: str) -> bool:
        """Return whether these mistakes reproduce one given quantity, to rounding."""
        if name.startswith("trajectory_") and mistakes:     # expensive: `_follows` looks at all of them at once
            return True
        r = self._with(*mistakes) if mistakes else self.reference
        key = name, r.part_of(name)
        if key not in self._same:
            self._same[key] = False
            with suppress(*FAILS):
                self._same[key] = error(r.shown(name), self.theirs[name]) <= self.tolerance.coarse(name) and \
                    self.tolerance.excess(r, name, self.theirs[name], key[1]) <= 1
        return self._same[key]

    def _follows(self, mistakes: Mistakes) -> bool:
        """Return whether these mistakes give the given trajectory, up to the first step that they do not."""
        t = self.reference.problem.trajectory
        names = [name for name in self.names if name.startswith("trajectory_")]
        if t is None or any(np.shape(X)[:1] != (len(t.batches),) for name in names for X in arrays(self.theirs[name])):
            return False                                    # another number of steps
        shown_later = any("trajectory_weights" in m.shows for m in mistakes)
        with suppress(*FAILS):
            for k, step in enumerate(steps(self.reference.problem, mistakes, self._first_step)):
                for name in names:
                    if not (shown_later and name == "trajectory_weights") and not _off(
                            step, name, self.theirs[name], k) <= self.tolerance.coarse(name):
                        return False
            r, key = self.reference.having(*mistakes), tuple(m.name for m in mistakes)
            return all(self.tolerance.excess(r, name, self.theirs[name], key) <= 1 for name in names)
        return False

    def _beyond_chance(self, found: Sequence[Mistakes]) -> list[Explanation]:
        digits, result = self._evidence(), list[Explanation]()
        for mistakes in found:
            known = digits - math.log10(max(self.tried, 2)) - sum(digits_of(m) for m in mistakes if m.group == "number")
            e = Explanation(mistakes, min(1.0, 10.0**-known))
            (result if e.chance < CHANCE else self.by_chance).append(e)
        return result

    def _evidence(self) -> float:
        """Return the number of digits in which the given values differ from the right ones, and an explanation not."""
        total = 0.0
        for name in self.differing:
            right, theirs = self.reference.shown(name), self.theirs[name]
            if shapes(right) != shapes(theirs):
                return math.inf                             # another shape is no chance
            allowed = self.tolerance.allowed(self.reference, name, theirs)
            for a, b, t in zip(*map(arrays, (right, theirs, allowed)), strict=True):
                a, b, t = (np.asarray(v, dtype=float) for v in (a, b, t))
                size = np.nan_to_num(np.abs(b)).max(initial=0)
                off = np.abs(a - b) > t
                digits = np.clip(np.log10(np.maximum(size / np.maximum(t[off], 1e-300), 1)), 0, 15)
                total += float(np.sum(digits)) / (2 if a.ndim == 2 and a.shape[0] == a.shape[1] and len(a) > 1 else 1)
        return total

    # What the report says besides.

    def first_difference(self) -> tuple[int, str, float] | None:
        """Return the step (from 1), quantity and relative error where a trajectory first differs from the right one."""
        found, order = [], (*SCALARS, "weights")
        for name in self.differing:
            right, theirs = self.reference[name], self.theirs[name]
            if name.startswith("trajectory_") and shapes(right) == shapes(theirs):
                allowed = self.tolerance.allowed(self.reference, name, theirs)
                wrong = [_beyond(*values) for values in zip(*map(arrays, (right, theirs, allowed)), strict=True)]
                k = int(np.argmax(np.any(wrong, axis=0)))
                of_step = (tuple(np.asarray(X[k]) for X in arrays(value)) for value in (right, theirs))
                found.append((k + 1, order.index(name.removeprefix("trajectory_")), error(*of_step)))
        if not found:
            return None
        step, i, off = min(found)
        return step, order[i], off

    def one_by_one(self, seconds: float = math.inf) -> dict[str, list[Explanation]]:
        """Explain each differing quantity given the values of its inputs, if nothing explains all at once.

        One without mistakes says that the quantity is correct given its inputs; an empty list says that nothing fits.
        A mistake in an input that is given is no explanation.
        """
        found: dict[str, list[Explanation]] = {}
        end = time.process_time() + seconds
        for name in self.differing:
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
        for name in self.differing:
            theirs = self.theirs[name]
            for other in self._affordable():
                with suppress(*FAILS):
                    if other == name or other.startswith("trajectory_") or sum(map(np.size, arrays(theirs))) < 2 or \
                            not error(self.reference[other], theirs) <= self.tolerance.coarse(name):
                        continue
                    if Tolerance({other: theirs}, **self.options).excess(self.reference, other, theirs) <= 1:
                        found[name] = other
                        break
        return found

    def begins(self) -> tuple[str, list[str]]:
        """Return the quantity at which the error begins, and what to give next to find the place."""
        first = min(self.differing, key=lambda n: len(self.reference.below(n)))
        return first, [n for n in _inputs(first) if n not in self.theirs and n in self.reference.names()]

    def tells_apart(self, explanations: Sequence[Explanation]) -> str | None:
        """Return a quantity that was not given and best distinguishes the explanations, None if none does."""
        best, most = None, 1
        for name in self._affordable():
            if name in self.theirs:
                continue
            values: list[Any] = []
            for e in explanations[:20]:
                with suppress(*FAILS):
                    value = self.reference.having(*e.mistakes).shown(name)
                    if all(error(v, value) > VISIBLE for v in values):
                        values.append(value)
            if len(values) > most:
                best, most = name, len(values)
        return best

    def _affordable(self) -> list[str]:
        """Return the names of quantities that need no dense matrix of many weights."""
        large = self.reference.problem.model.network.parameters > _DENSE_UP_TO
        return [name for name in self.reference.names() if not (large and name in _DENSE)]


def _some(family: Family, r: Reference) -> Mistake:
    """Return a mistake with some number, which shows what the number affects."""
    return family.at(2.0 * np.ones(len(r["weights"])) if family.per_layer else 2.0)


def _touch(a: Mistake, b: Mistake) -> bool:
    """Return whether two mistakes change the same node, so that their order matters."""
    return not a.changes.keys().isdisjoint(b.changes) or not a.shows.keys().isdisjoint(b.shows)


def _inputs(name: str) -> list[str]:
    """Return the quantities that one is computed from, without those that only they are computed from."""
    found: list[str] = []
    for need in NODES[name].needs:
        found += [need] if need in QUANTITIES else _inputs(need)
    return list(dict.fromkeys(found))


def _off(step: Mapping[str, Any], name: str, theirs: Any, k: int) -> float:
    """Return the relative error of a step; of mu, relative to 1e-6 alpha where it is smaller than that."""
    right = step[name.removeprefix("trajectory_")]
    if name == "trajectory_weights":
        return error(tuple(right), tuple(W[k] for W in theirs))
    least = 1e-6 * abs(step["alpha"]) if name == "trajectory_mu" else 0.0
    return error(np.array([right, least]), np.array([theirs[k], least]))


def _beyond(a: Any, b: Any, allowed: Any) -> Any:
    """Return whether each step of a trajectory differs by more than is allowed."""
    with np.errstate(invalid="ignore"):
        wrong = (np.abs(a - b) > allowed) | (np.isnan(a) != np.isnan(b))
    return wrong.reshape(len(wrong), -1).any(axis=1)
