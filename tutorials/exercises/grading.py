"""Judge an answer: with the oracle, or by comparison with a function of kfac_ref.

A wrong answer is compared with the result of each known mistake. A mistake is named if it gives exactly the student's
numbers in all cases. `asked` defines the cases of each exercise.
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
from kfac_ref.oracle.differences import error, place, scale
from kfac_ref.oracle.search import Diagnosis

#: Relative errors up to this are rounding: every formula in double precision is that accurate.
RTOL = 1e-8
#: Relative errors up to this look like single precision.
SINGLE = 1e-5


@dataclass(frozen=True)
class Slip:
    """A mistake that an answer may contain: an entry of the catalogue, or one of this exercise.

    Attributes
    ----------
    name, what, why, remedy : str
        As in the catalogue.
    wrong : function
        Returns the wrong results; its arguments depend on the kind of part.
    """

    name: str
    what: str
    why: str
    remedy: str
    wrong: Callable[..., Any] = field(repr=False)


def known(name: str, wrong: Callable[..., Any], **words: str) -> Slip:
    """Return an entry of the catalogue as a slip, for an exercise that returns no quantity of the oracle.

    `words` replaces what, why or remedy if the words of the catalogue do not fit.
    """
    m = CATALOGUE[name]
    return Slip(**{"name": name, "what": m.what, "why": m.why, "remedy": m.remedy, **words}, wrong=wrong)


@dataclass(frozen=True)
class Explanation:
    """One mistake, or two together, that give exactly the numbers of an answer.

    Attributes
    ----------
    mistakes : tuple of Mistake or Slip
        One or two.
    as_if : bool
        Whether the mistake changes the arguments, although the student got the right ones.
    """

    mistakes: tuple[Any, ...]
    as_if: bool = False

    @property
    def name(self) -> str:
        """The names of the mistakes."""
        return " and ".join(m.name for m in self.mistakes)


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, a message, and the mistakes that give exactly its numbers, the likeliest first."""

    right: bool
    words: str = ""
    explanations: tuple[Explanation, ...] = ()


class Misfit(Exception):
    """A result has the wrong form; the message says what was returned and what was expected."""


def fit(value: Any, right: Any) -> Any:
    """Return a result in the form of the right one: a float, an array, or a tuple of these; else raise a Misfit."""
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
    """Describe where the shapes of a fitted result differ from the right ones; empty if they agree."""
    if isinstance(right, (tuple, list)):
        found = [(i, _shape_words(v, r)) for i, (v, r) in enumerate(zip(value, right, strict=True))]
        return next((f"in entry {i} of the list: {words}" for i, words in found if words), "")
    if np.shape(value) == np.shape(right):
        return ""
    turned = " (its transpose?)" if np.ndim(right) == 2 and np.shape(value) == np.shape(right)[::-1] else ""
    return f"returns {_form(value)}{turned}; expected shape {np.shape(right)}"


def _number_words(right: Any, value: Any, counts: Mapping[str, int]) -> str:
    """Describe how the numbers differ: by one factor, or in which places."""
    off = error(right, value)
    if off < SINGLE:
        return f"right to {-math.log10(off):.0f} digits only: single precision, or an unstable formula?"
    s = scale(right, value, counts, RTOL)
    if s:
        as_powers = f" = {s.text}" if s.text and s.text != f"{s.value:g}" else ""
        return f"{s.value:.4g} times the right value{as_powers}"
    if not isinstance(right, tuple) and np.ndim(right) == 0:
        return f"the number is {value:.6g}; no known mistake gives it"
    where = place(right, value, RTOL)
    return "all entries are wrong" if set(re.findall(r"layer \d+: ([^;]*)", where)) <= {"all entries"} and \
        "(right" not in where and where.endswith("all entries") else f"wrong in {where}"


# With the oracle: the exercise returns quantities of a problem.


@functools.cache
def problem(name: str) -> Problem:
    """Return the problem of a published vector, or the one of this file."""
    return deep() if name == "deep-tanh" else vector(name).problem


@functools.cache
def reference(name: str) -> Reference:
    """Return the right values of a problem; they are computed once."""
    return Reference(problem(name))


def deep() -> Problem:
    """Return a problem with three tanh layers, which no published vector has."""
    rng = np.random.default_rng(0)
    sizes = (3, 4, 2, 5)
    weights = [rng.standard_normal((m, n + 1)) for n, m in itertools.pairwise(sizes)]
    return Problem(sizes, ("tanh", "tanh"), "categorical", weights, rng.standard_normal((7, 3)),
                   rng.integers(0, 5, 7), damping=0.3, weight_decay=0.02, targets=rng.integers(0, 5, (11, 7)),
                   direction=[rng.standard_normal(W.shape) for W in weights])


@dataclass(frozen=True)
class ByOracle:
    """A part of an exercise that is judged with the oracle.

    Attributes
    ----------
    vectors : tuple of str
        The problems. A mistake is named only if it gives the student's numbers in all of them.
    calls : function of Reference
        The arguments of each call.
    answer : function of Reference
        The results of the calls in the reference, right or with mistakes.
    collect : function of (Reference, results)
        The quantities of the oracle in the results.
    slips : tuple of Slip
        Further mistakes: functions of Reference that return the wrong results.
    made : str
        Prefix of the message about wrong numbers, if they are not those that the exercise returns.
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
        """Return the results of all calls with a mistake of the catalogue or a slip."""
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
        wrong = [d for d in diagnoses if d.differing]
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
        name = wrong[0].differing[0]
        words = _number_words(wrong[0].reference[name], wrong[0].theirs[name], counts)
        return Verdict(False, f"{self.made}{words}")

    def _explanations(self, diagnoses: Sequence[Diagnosis]) -> list[Explanation]:
        """Return the entries of the catalogue that give all numbers; if there are none, pairs that do."""
        near = [m for m in CATALOGUE.values() if any(not {*m.changes, *m.shows}.isdisjoint(d.names) for d in diagnoses)]
        found = [m for m in CATALOGUE.values() if all(d.fits((m,)) for d in diagnoses)]
        if found:
            each = [Explanation((m,), self._changes_arguments(m)) for m in found]
            return sorted(each, key=lambda e: (e.as_if, e.mistakes[0] not in near))
        own = [m for m in CATALOGUE.values() if not self._changes_arguments(m)]
        shown = [m for m in own if self._shows(m)]
        pairs = (pair for pair in itertools.combinations(own, 2) if pair[0] in shown or pair[1] in shown)
        # Two wrong factors together can give almost any number: a match is no evidence.
        return [Explanation(pair) for pair in pairs if {m.group for m in pair} != {"scale"}
                and all(d.fits(pair) for d in diagnoses)]

    def _shows(self, mistake: Any) -> bool:
        """Return whether a mistake changes the answer."""
        try:
            return not _equal(self.right(), self.mistaken(mistake))
        except ValueError:
            return False

    def _changes_arguments(self, mistake: Any) -> bool:
        """Return whether a mistake changes the arguments: then it was not made in this exercise."""
        for name in self.vectors:
            try:
                if not _same(self.calls(reference(name)), self.calls(reference(name).having(mistake))):
                    return True
            except (ValueError, TypeError):                 # the arguments cannot be computed
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
    """Return `answer` and `collect` for an exercise that is called once per layer and returns quantities of it."""
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
    """Return `answer` and `collect` for an exercise whose result is the input of `quantity`: output gradients."""
    def collect(r: Reference, results: list[Any]) -> dict[str, Any]:
        dz, (N, C) = np.asarray(results[0]), r["z"].shape
        if dz.ndim != np.ndim(r[columns]) or dz.shape[-2:] != (N, C):
            raise Misfit(f"returns {_form(dz)}; expected shape ({'K, ' * (np.ndim(r[columns]) - 2)}{N}, {C})")
        return {quantity: r.taking(**{columns: dz})[quantity]}
    return {"answer": lambda r: [r[columns]], "collect": collect, "made": f"{quantity}, computed from your result: "}


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
        Mistakes: functions of the arguments that return the wrong result.
    view : function of a result
        The part of it that is compared.
    note : str
        A description of these cases, added to the message on a wrong answer.
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
        # A slip may agree with the right answer in some cases; it must give the student's numbers in all.
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
    """Judge the results of all calls of an exercise, in order; the first part with a wrong result decides."""
    start = 0
    for part in parts:
        right = part.right()
        theirs = results[start:start + len(right)]
        start += len(right)
        note = f" ({part.note})" if isinstance(part, ByFunction) and part.note else ""
        try:
            fitted = [fit(value, r) for value, r in zip(theirs, right, strict=True)]
            with np.errstate(all="ignore"):                 # an answer may contain numbers of any size
                verdict = part.judge(fitted)
        except Misfit as misfit:
            return Verdict(False, f"{misfit}{note}")
        if not verdict.right:
            return replace(verdict, words=verdict.words and f"{verdict.words}{note}")
    return Verdict(True)
