"""How an answer is judged: by the oracle, or against a function of kfac_ref.

A wrong answer is compared with what each known mistake would have given; what is named gives exactly the student's
numbers, in all cases. `asked` says what is asked of each exercise.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kfac_ref.oracle import CATALOGUE, Problem, Reference, vector
from kfac_ref.oracle.diagnose import Diagnosis, place, scale
from kfac_ref.oracle.mistakes import error

#: The largest relative error that is rounding: any way of computing in double precision keeps these digits.
RTOL = 1e-8
#: Up to this, an answer looks like single precision.
SINGLE = 1e-5


@dataclass(frozen=True)
class Slip:
    """A mistake that an answer may hold: an entry of the catalogue, or one of this exercise alone.

    Attributes
    ----------
    name, what, why, remedy : str
        As in the catalogue.
    wrong : function
        Makes the wrong results from what the exercise's part gives it.
    """

    name: str
    what: str
    why: str
    remedy: str
    wrong: Callable[..., Any] = field(repr=False)


def known(name: str, wrong: Callable[..., Any], **words: str) -> Slip:
    """Return an entry of the catalogue as a slip, where the exercise returns no quantity of the oracle.

    `words` are what, why or remedy, where those of the catalogue speak of something else.
    """
    m = CATALOGUE[name]
    return Slip(**{"name": name, "what": m.what, "why": m.why, "remedy": m.remedy, **words}, wrong=wrong)


@dataclass(frozen=True)
class Explanation:
    """One mistake, or two at once, that give exactly the numbers of an answer.

    Attributes
    ----------
    mistakes : tuple of Mistake or Slip
        One or two.
    as_if : bool
        Whether the mistake lies in how the arguments are made, which the student got as they must be.
    """

    mistakes: tuple[Any, ...]
    as_if: bool = False

    @property
    def name(self) -> str:
        """The names of the mistakes."""
        return " and ".join(m.name for m in self.mistakes)


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer: whether it is right, words, and what gives exactly these numbers, likeliest first."""

    right: bool
    words: str = ""
    explanations: tuple[Explanation, ...] = ()


class Misfit(Exception):
    """A result of the wrong form; its text says what was returned and what was expected."""


def fit(value: Any, right: Any) -> Any:
    """Return a result in the form of the right one: a float, an array, a tuple of those; refuse what is none."""
    if value is None:
        raise Misfit("returns None: is a return missing?")
    if isinstance(right, (tuple, list)):
        if isinstance(value, np.ndarray) and value.ndim and len(value) == len(right):
            value = list(value)
        if not isinstance(value, list) or len(value) != len(right):
            raise Misfit(f"returns {_form(value)}; expected a list of {len(right)}")
        return tuple(fit(v, r) for v, r in zip(value, right, strict=True))
    if isinstance(value, list):
        try:
            value = np.array(value, dtype=float)
        except (ValueError, TypeError):
            raise Misfit(f"returns {_form(value)}; expected {_form(right)}") from None
    a = np.asarray(value, dtype=float)
    bad = ~np.isfinite(a)
    if bad.any():
        kind = "NaN" if np.isnan(a).any() else "infinite"
        raise Misfit(f"returns {kind}" if a.ndim == 0 else f"{int(bad.sum())} of {a.size} entries are {kind}")
    if np.ndim(right) == 0 and a.ndim:
        raise Misfit(f"returns {_form(a)}; expected a number")
    return a if np.ndim(right) else float(a)


def _form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    shape = np.shape(value)
    return f"an array of shape {shape}" if shape else "a number"


def _shape_words(value: Any, right: Any) -> str:
    """Say where the shapes of a fitted result differ from the right ones, empty where they do not."""
    if isinstance(right, (tuple, list)):
        found = [(i, _shape_words(v, r)) for i, (v, r) in enumerate(zip(value, right, strict=True))]
        return next((f"in entry {i} of the list: {words}" for i, words in found if words), "")
    if np.shape(value) == np.shape(right):
        return ""
    turned = " (its transpose?)" if np.ndim(right) == 2 and np.shape(value) == np.shape(right)[::-1] else ""
    return f"returns {_form(value)}{turned}; expected shape {np.shape(right)}"


def _number_words(right: Any, value: Any, counts: Mapping[str, int]) -> str:
    """Say in what way the numbers differ: by one factor, or where."""
    off = error(right, value)
    if off < SINGLE:
        return f"right to {-math.log10(off):.0f} digits only: single precision, or an unstable formula?"
    s = scale(right, value, counts, RTOL)
    if s:
        as_powers = f" = {s.text}" if s.text and s.text != f"{s.value:g}" else ""
        return f"{s.value:.4g} times the right value{as_powers}"
    if not isinstance(right, tuple) and np.ndim(right) == 0:
        return f"the number is {value:.6g}: no mistake on the list gives it"
    where = place(right, value, RTOL)
    return "all entries are wrong" if set(re.findall(r"layer \d+: ([^;]*)", where)) <= {"all entries"} and \
        "(right" not in where and where.endswith("all entries") else f"wrong in {where}"


# By the oracle: the exercise returns quantities of a problem.


@functools.cache
def problem(name: str) -> Problem:
    """Return the problem of a published vector, or one of this file."""
    return deep() if name == "deep-tanh" else vector(name).problem


@functools.cache
def reference(name: str) -> Reference:
    """Return the right values of a problem, and what has been computed of them."""
    return Reference(problem(name))


def deep() -> Problem:
    """Return a problem with three layers of tanh, which no published vector has."""
    rng = np.random.default_rng(0)
    sizes = (3, 4, 2, 5)
    weights = [rng.standard_normal((m, n + 1)) for n, m in itertools.pairwise(sizes)]
    return Problem(sizes, ("tanh", "tanh"), "categorical", weights, rng.standard_normal((7, 3)),
                   rng.integers(0, 5, 7), damping=0.3, weight_decay=0.02, targets=rng.integers(0, 5, (11, 7)),
                   direction=[rng.standard_normal(W.shape) for W in weights])


@dataclass(frozen=True)
class ByOracle:
    """A part of an exercise that is judged by the oracle.

    Attributes
    ----------
    vectors : tuple of str
        The problems; a mistake is named only if it gives the student's numbers in all of them.
    calls : function of Reference
        The arguments of each call.
    answer : function of Reference
        What the calls return in the reference, right or with mistakes.
    collect : function of (Reference, results)
        The quantities that the results stand for.
    slips : tuple of Slip
        Further mistakes, functions of Reference that return the wrong results.
    made : str
        What the numbers are of that a wrong place is told of, where it is not what is returned.
    """

    vectors: tuple[str, ...]
    calls: Callable[[Reference], list[tuple[Any, ...]]]
    answer: Callable[[Reference], list[Any]]
    collect: Callable[[Reference, list[Any]], dict[str, Any]]
    slips: tuple[Slip, ...] = ()
    made: str = ""

    def asked(self) -> list[tuple[Any, ...]]:
        """Return the arguments of all calls."""
        return [call for name in self.vectors for call in self.calls(reference(name))]

    def right(self) -> list[Any]:
        """Return the right results of all calls."""
        return [result for name in self.vectors for result in self.answer(reference(name))]

    def mistaken(self, mistake: Any) -> list[Any]:
        """Return the results of all calls with a mistake of the catalogue, or a slip, in them."""
        if isinstance(mistake, Slip):
            return [result for name in self.vectors for result in mistake.wrong(reference(name))]
        return [result for name in self.vectors for result in self.answer(reference(name).having(mistake))]

    def judge(self, results: list[Any]) -> Verdict:
        """Judge the results of all calls, in the form of the right ones."""
        diagnoses, start = [], 0
        for name in self.vectors:
            r = reference(name)
            count = len(self.answer(r))
            quantities = self.collect(r, results[start:start + count])
            diagnoses.append(Diagnosis(r, quantities, rtol=RTOL))
            start += count
        wrong = [d for d in diagnoses if d.differing()]
        if not wrong:
            return Verdict(True)
        slips = [Explanation((s,)) for s in self.slips if _equal(self.mistaken(s), results)]
        found = slips + self._explanations(diagnoses)
        if found:
            return Verdict(False, explanations=tuple(found))
        shape = _shape_words(results, self.right())
        if shape:
            return Verdict(False, shape.partition(": ")[2])
        p = wrong[0].reference.problem
        counts = {"N": len(p.x), "C": p.sizes[-1]} | ({"M": len(p.targets)} if p.targets is not None else {})
        name = wrong[0].differing()[0]
        words = _number_words(wrong[0].reference[name], wrong[0].theirs[name], counts)
        return Verdict(False, f"{self.made}{words}")

    def _explanations(self, diagnoses: Sequence[Diagnosis]) -> list[Explanation]:
        """Return the entries of the catalogue that give all numbers; where none does, pairs of the exercise's own."""
        near = [m for m in CATALOGUE.values() if any(not {*m.changes, *m.shows}.isdisjoint(d.names) for d in diagnoses)]
        found = [m for m in CATALOGUE.values() if all(d.fits((m,)) for d in diagnoses)]
        if found:
            each = [Explanation((m,), self._changes_arguments(m)) for m in found]
            return sorted(each, key=lambda e: (e.as_if, e.mistakes[0] not in near))
        own = [m for m in CATALOGUE.values() if not self._changes_arguments(m)]
        shown = [m for m in own if self._shows(m)]
        pairs = (pair for pair in itertools.combinations(own, 2) if pair[0] in shown or pair[1] in shown)
        # Two factors at once make almost any number: that is no evidence.
        return [Explanation(pair) for pair in pairs if {m.group for m in pair} != {"scale"}
                and all(d.fits(pair) for d in diagnoses)]

    def _shows(self, mistake: Any) -> bool:
        """Return whether a mistake changes the answer."""
        try:
            return not _equal(self.right(), self.mistaken(mistake))
        except ValueError:
            return False

    def _changes_arguments(self, mistake: Any) -> bool:
        """Return whether a mistake shows in the arguments already: then it is not one of this exercise."""
        for name in self.vectors:
            try:
                if not _same(self.calls(reference(name)), self.calls(reference(name).having(mistake))):
                    return True
            except (ValueError, TypeError):                 # arguments that cannot even be made
                return True
        return False


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return np.shape(a) == np.shape(b) and np.array_equal(a, b)


def _equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(_equal_one, a, b))


def _equal_one(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
        return isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b) and all(
            map(_equal_one, a, b))
    return bool(error(a, b) <= RTOL)


def by_layer(*names: str) -> dict[str, Any]:
    """Return `answer` and `collect` for an exercise that is called once a layer and returns quantities of it."""
    def answer(r: Reference) -> list[Any]:
        values = [r.shown(name) for name in names]
        return list(values[0]) if len(names) == 1 else list(zip(*values, strict=True))

    def collect(r: Reference, results: list[Any]) -> dict[str, Any]:
        parts = [results] if len(names) == 1 else list(zip(*results, strict=True))
        return {name: tuple(map(np.asarray, part)) if isinstance(r[name], tuple) else np.array(part, dtype=float)
                for name, part in zip(names, parts, strict=True)}
    return {"answer": answer, "collect": collect}


def at_once(*names: str) -> dict[str, Any]:
    """Return `answer` and `collect` for an exercise that is called once and returns quantities of all layers."""
    def answer(r: Reference) -> list[Any]:
        values = tuple(r.shown(name) for name in names)
        return [values[0] if len(names) == 1 else values]

    def collect(r: Reference, results: list[Any]) -> dict[str, Any]:
        return dict(zip(names, results if len(names) == 1 else results[0], strict=True))
    return {"answer": answer, "collect": collect}


def sent_back(quantity: str, columns: str) -> dict[str, Any]:
    """Return `answer` and `collect` for an exercise that returns what is sent back: `quantity` is made from it."""
    def collect(r: Reference, results: list[Any]) -> dict[str, Any]:
        dz, (N, C) = np.asarray(results[0]), r["z"].shape
        if dz.ndim != np.ndim(r[columns]) or dz.shape[-2:] != (N, C):
            raise Misfit(f"returns {_form(dz)}; expected shape ({'K, ' * (np.ndim(r[columns]) - 2)}{N}, {C})")
        return {quantity: r.taking(**{columns: dz})[quantity]}
    return {"answer": lambda r: [r[columns]], "collect": collect, "made": f"{quantity}, which is made from it: "}


# Against a function.


@dataclass(frozen=True)
class ByFunction:
    """A part of an exercise that is judged against a function of kfac_ref.

    Attributes
    ----------
    cases : function
        Returns the arguments of each call.
    function : function of the arguments
        Returns the right result.
    slips : tuple of Slip
        Mistakes, functions of the arguments that return the wrong result.
    view : function of a result
        What of it is compared.
    note : str
        What a student is told of these cases where an answer is wrong in them.
    """

    cases: Callable[[], list[tuple[Any, ...]]]
    function: Callable[..., Any]
    slips: tuple[Slip, ...] = ()
    view: Callable[[Any], Any] = lambda result: result
    note: str = ""

    def asked(self) -> list[tuple[Any, ...]]:
        """Return the arguments of all calls."""
        return self.cases()

    def right(self) -> list[Any]:
        """Return the right results of all calls."""
        return [self.function(*case) for case in self.cases()]

    def mistaken(self, mistake: Slip) -> list[Any]:
        """Return the results of all calls with a slip in them."""
        return [mistake.wrong(*case) for case in self.cases()]

    def judge(self, results: list[Any]) -> Verdict:
        """Judge the results of all calls, in the form of the right ones."""
        right = self.right()
        shape = [_shape_words(x, y) for x, y in zip(results, right, strict=True)]
        words = next((w for w in shape if w), "")
        theirs, ours = ([x if shape[i] else self.view(x) for i, x in enumerate(values)] for values in (results, right))
        if not words and all(map(_equal_one, ours, theirs)):
            return Verdict(True)
        # A slip that cannot be told from the right answer in some case must still give the student's in all.
        found = [Explanation((s,)) for s in self.slips if all(map(_equal_one, self._views(s), theirs))]
        if found:
            return Verdict(False, explanations=tuple(found))
        if words:
            return Verdict(False, words)
        i = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not _equal_one(a, b))
        case = self.cases()[i]
        plain = all(isinstance(argument, (int, float)) for argument in case)
        of = f" in the case ({', '.join(f'{argument:g}' for argument in case)})" if plain else ""
        return Verdict(False, _number_words(ours[i], theirs[i], {}) + of)

    def _views(self, slip: Slip) -> list[Any]:
        views = []
        for result in self.mistaken(slip):
            try:
                views.append(self.view(result))
            except (ValueError, IndexError):
                views.append(result)
        return views


Part = ByOracle | ByFunction


def judge(parts: Sequence[Part], results: list[Any]) -> Verdict:
    """Judge an exercise: the first of its parts that is wrong decides; results are those of all calls, in order."""
    start = 0
    for part in parts:
        right = part.right()
        theirs = results[start:start + len(right)]
        start += len(right)
        note = f" ({part.note})" if isinstance(part, ByFunction) and part.note else ""
        try:
            fitted = [fit(value, r) for value, r in zip(theirs, right, strict=True)]
            with np.errstate(all="ignore"):                 # an answer may hold numbers of any size
                verdict = part.judge(fitted)
        except Misfit as misfit:
            return Verdict(False, f"{misfit}{note}")
        if not verdict.right:
            return replace(verdict, words=verdict.words and f"{verdict.words}{note}")
    return Verdict(True)
