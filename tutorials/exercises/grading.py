"""What is asked of each exercise, and how an answer is judged: by the oracle, or against a function of kfac_ref.

Nothing here computes an answer: the right values are those of `kfac_ref`, and so are the arguments. A wrong answer is
compared with what each known mistake would have given; what is named gives exactly the student's numbers, in all cases.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import damping as rules
from kfac_ref import kronecker, params
from kfac_ref.factors import Factors
from kfac_ref.kronecker import Cholesky, Eigen, unvec, vec
from kfac_ref.oracle import CATALOGUE, Problem, Reference, vector
from kfac_ref.oracle.diagnose import Diagnosis, place, scale
from kfac_ref.oracle.mistakes import error
from kfac_ref.quadratic_model import SmallModel
from kfac_ref.quadratic_model import reduction_ratio as ratio

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


def known(name: str, wrong: Callable[..., Any]) -> Slip:
    """Return an entry of the catalogue as a slip, where the exercise returns no quantity of the oracle."""
    m = CATALOGUE[name]
    return Slip(name, m.what, m.why, m.remedy, wrong)


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer: whether it is right, in words, and the mistakes that give exactly these numbers."""

    right: bool
    words: str = ""
    mistakes: tuple[Any, ...] = ()


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


def _number_words(value: Any, right: Any, counts: Mapping[str, int]) -> str:
    """Say in what way the numbers differ: by one factor, or where."""
    off = error(right, value)
    if off < SINGLE:
        return f"right to {-math.log10(off):.0f} digits only: single precision, or an unstable formula?"
    s = scale(right, value, counts, RTOL)
    if s:
        as_powers = f" = {s.text}" if s.text and s.text != f"{s.value:g}" else ""
        return f"{s.value:.4g} times the right value{as_powers}"
    if np.ndim(right) == 0 and not isinstance(right, tuple):
        return f"the number is {value:.6g}: no mistake on the list gives it"
    return f"wrong in {place(right, value, RTOL)}"


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
    weights = [rng.standard_normal((m, n + 1)) for n, m in zip(sizes, sizes[1:], strict=False)]
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
    """

    vectors: tuple[str, ...]
    calls: Callable[[Reference], list[tuple[Any, ...]]]
    answer: Callable[[Reference], list[Any]]
    collect: Callable[[Reference, list[Any]], dict[str, Any]]
    slips: tuple[Slip, ...] = ()

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
        slips = [s for s in self.slips if _equal(self.mistaken(s), results)]
        found = slips + _explanations(diagnoses)
        if found:
            return Verdict(False, mistakes=tuple(found))
        shape = _shape_words(results, self.right())
        if shape:
            return Verdict(False, shape.partition(": ")[2])
        p = wrong[0].reference.problem
        counts = {"N": len(p.x), "C": p.sizes[-1]} | ({"M": len(p.targets)} if p.targets is not None else {})
        name = wrong[0].differing()[0]
        return Verdict(False, _number_words(wrong[0].reference[name], wrong[0].theirs[name], counts))


def _explanations(diagnoses: Sequence[Diagnosis]) -> list[Any]:
    """Return the mistakes that alone give all numbers, the nearest to what is returned first; else a pair of these."""
    found = [m for m in CATALOGUE.values() if all(d.fits((m,)) for d in diagnoses)]
    near = [m for m in CATALOGUE.values() if any(not {*m.changes, *m.shows}.isdisjoint(d.names) for d in diagnoses)]
    if found:
        return sorted(found, key=lambda m: m not in near)
    for i, first in enumerate(near):
        for second in near[i + 1:]:
            if all(d.fits((first, second)) for d in diagnoses):
                return [(first, second)]
    return []


def _equal(a: Any, b: Any) -> bool:
    return bool(error(tuple(a), tuple(b)) <= RTOL) if not _nested(a) else all(map(_equal_one, a, b))


def _nested(values: Any) -> bool:
    return any(isinstance(v, (tuple, list)) for v in values)


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
        dz = np.asarray(results[0])
        if dz.ndim != np.ndim(r[columns]) or dz.shape[-2:] != r["z"].shape:
            raise Misfit(f"returns {_form(dz)}; expected {'(K, N, C)' if dz.ndim else ''} with (N, C) = "
                         f"{r['z'].shape}" if np.ndim(r[columns]) == 3 else
                         f"returns {_form(dz)}; expected shape {r['z'].shape}")
        return {quantity: r.taking(**{columns: dz})[quantity]}
    return {"answer": lambda r: [r[columns]], "collect": collect}


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
    """

    cases: Callable[[], list[tuple[Any, ...]]]
    function: Callable[..., Any]
    slips: tuple[Slip, ...] = ()
    view: Callable[[Any], Any] = lambda result: result

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
        found = [s for s in self.slips if all(_equal_one(v, t) for v, t in zip(self._views(s), theirs, strict=True))]
        if found:
            return Verdict(False, mistakes=tuple(found))
        if words:
            return Verdict(False, words)
        i = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not _equal_one(a, b))
        a, b = ours[i], theirs[i]
        if isinstance(a, (tuple, list)):
            return Verdict(False, f"wrong in {place(tuple(a), tuple(b), RTOL)}".replace("layer", "entry"))
        return Verdict(False, _number_words(a, b, {}))

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
        try:
            fitted = [fit(value, r) for value, r in zip(theirs, right, strict=True)]
            verdict = part.judge(fitted)
        except Misfit as misfit:
            return Verdict(False, str(misfit))
        if not verdict.right:
            return verdict
    return Verdict(True)


# The exercises.


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def _positive(seed: int, n: int) -> Any:
    X = np.random.default_rng(seed).standard_normal((2 * n, n))
    return X.T @ X / (2 * n)


def _zip(*names: str, more: Callable[[Reference], tuple[Any, ...]] = lambda r: ()) -> Callable[[Reference], Any]:
    """Return the calls of one layer after the other, with the same last arguments."""
    return lambda r: [(*layer, *more(r)) for layer in zip(*(r[name] for name in names), strict=True)]


def _all(*names: str, more: Callable[[Reference], tuple[Any, ...]] = lambda r: ()) -> Callable[[Reference], Any]:
    """Return one call with lists of all layers."""
    return lambda r: [(*(list(v) if isinstance(v := r[name], tuple) else v for name in names), *more(r))]


TANH = ("categorical-tanh", "gaussian-tanh", "deep-tanh")
LAYOUT = known("row-major vec", lambda *_: None)
BIG_KRON = Slip("right only for symmetric A", "A stands where its transpose belongs",
                "(A kron G) vec(V) = vec(G V A^T); A and A^T are the same only where A is symmetric",
                "transpose A", lambda A, G, V: kronecker.product(A.T, G, V))


def _kron_cases() -> list[tuple[Any, ...]]:
    return [_draw(3, (3, 3), (4, 4), (4, 3)), _draw(4, (3, 3), (3, 3), (3, 3)), _draw(5, (300, 300), (200, 200),
                                                                                     (200, 300))]


def _order_swapped(A: Any, G: Any, V: Any) -> Any:
    m, n = V.shape
    # kron(G, A) vec(V), without forming it: vec(V) read as the stacked columns of an (n, m) matrix.
    return unvec(vec(kronecker.product(G, A, unvec(vec(V), n, m))), m, n)


def _logits() -> list[tuple[Any, ...]]:
    z, = _draw(6, (4, 3))
    z[0] = [1000.0, 0.0, -1000.0]
    return [(z, np.array([0, 1, 2, 0]))]


def _tangent_cases() -> list[tuple[Any, ...]]:
    return [(list(r.problem.weights), list(r["a_bar"]), list(r["direction"])) for r in
            (reference("categorical-tanh"), reference("deep-tanh"))]


def _point(weights: Any) -> Any:
    return next(r for r in map(reference, ("categorical-tanh", "deep-tanh")) if len(weights) == len(r.problem.weights))


def _tangent(weights: Any, a_bar: Any, V: Any) -> Any:
    return _point(weights)["at"].tangent(V)


def _tangent_of(change: Callable[[int, int, Any], Any]) -> Callable[..., Any]:
    return lambda weights, a_bar, V: _tangent(weights, a_bar, [change(i, len(V), v) for i, v in enumerate(V)])


def _unit_columns(r: Reference) -> Any:
    N, C = r["z"].shape
    return np.repeat(np.eye(C)[:, None, :], N, axis=1)


def _tangent_without_slope(weights: Any, a_bar: Any, V: Any) -> Any:
    r = _point(weights)
    g = r.taking(dz_exact=_unit_columns(r)).having(CATALOGUE["slope left out of the backward pass"])["g_exact"]
    return sum(np.einsum("cnm,mj,nj->nc", gi, v, a) for gi, v, a in zip(g, V, a_bar, strict=True))


def _jacobian(r: Reference) -> Any:
    g = r["at"].backward(_unit_columns(r))
    rows = [(a[None, :, :, None] * gi[:, :, None, :]).reshape(*gi.shape[:2], -1)
            for gi, a in zip(g, r["a_bar"], strict=True)]
    return np.concatenate(rows, axis=2).transpose(1, 0, 2)


def _each_layer_alone(r: Reference) -> list[Any]:
    V = r["direction"]
    alone = [[v if i == j else 0 * v for j, v in enumerate(V)] for i in range(len(V))]
    return [tuple(kr.fisher_product(r["at"], one)[i] for i, one in enumerate(alone))]


def _covariance_cases() -> list[tuple[Any, ...]]:
    r = reference("categorical-tanh")
    return list(zip(r["g_exact"], r["a_bar"], strict=True))


def _covariance_layer(g: Any) -> int:
    return next(i for i, gi in enumerate(reference("categorical-tanh")["g_exact"]) if gi.shape == g.shape)


def _covariance(g: Any, a_bar: Any) -> Any:
    return kr.analysis.covariance_error(reference("categorical-tanh")["at"], _covariance_layer(g))


def _uncentred(g: Any, a_bar: Any) -> Any:
    at, i = reference("categorical-tanh")["at"], _covariance_layer(g)
    n, m = a_bar.shape[1], g.shape[-1]
    return kronecker.rearrange(kr.fisher_block(at, i, i), (n, n), (m, m))


def _transform_cases() -> list[tuple[Any, ...]]:
    return [_draw(8, (3, 4), (3, 3), (4, 4)), _draw(9, (3, 3), (3, 3), (3, 3))]


def _factors(A: Any, G: Any) -> Factors:
    return Factors((A,), (G,), (), (), 1)


def _foof(A: Any, grad: Any, damping: float) -> Any:
    return -kr.curvature.InputOnly(_factors(A, np.eye(len(grad))), damping).solve([grad])[0]


def _foof_cases() -> list[tuple[Any, ...]]:
    return [(_positive(10, 4), *_draw(11, (3, 4)), 0.3), (_positive(12, 3), *_draw(13, (3, 3)), 0.02)]


def _sum_cases() -> list[tuple[Any, ...]]:
    return [(_positive(s, n), _positive(s + 1, m), _positive(s + 2, n), _positive(s + 3, m), *_draw(s, (m, n)))
            for s, n, m in ((20, 3, 4), (30, 3, 3))]


def _solve(A: Any, G: Any, V: Any) -> Any:
    return kronecker.solve(Cholesky.factor(A), Cholesky.factor(G), V)


def _tridiagonal_call(r: Reference) -> list[tuple[Any, ...]]:
    A, G, V = r["A_damped"], r["G_damped"], [-D for D in r["gradient"]]
    Psi_A = [Cholesky.factor(S).solve_right(X) for X, S in zip(r["A_cross"], A[1:], strict=True)]
    Psi_G = [Cholesky.factor(S).solve_right(X) for X, S in zip(r["G_cross"], G[1:], strict=True)]
    Sigma = [np.kron(*pair) for pair in zip(A, G, strict=True)]
    for i, (PA, PG) in enumerate(zip(Psi_A, Psi_G, strict=True)):
        Sigma[i] = Sigma[i] - np.kron(PA @ A[i + 1] @ PA.T, PG @ G[i + 1] @ PG.T)
    return [(V, Psi_A, Psi_G, Sigma)]


def _one_sweep_missing(which: str) -> Callable[[Reference], list[Any]]:
    """Return the tridiagonal step without its first or its third sweep: V is changed before, or the result after."""
    def wrong(r: Reference) -> list[Any]:
        (V, Psi_A, Psi_G, Sigma), = _tridiagonal_call(r)
        step = [params.unflatten(Cholesky.factor(S).solve(vec(v)), [v.shape])[0] for S, v in zip(Sigma, V, strict=True)]
        if which == "first":                                # then the third sweep of the block-wise solve is left
            down = [step[i] - kronecker.product(Psi_A[i - 1].T, Psi_G[i - 1].T, step[i - 1]) for i in range(1, len(V))]
            return [(step[0], *down)]
        first = [V[i] - kronecker.product(Psi_A[i], Psi_G[i], V[i + 1]) for i in range(len(V) - 1)]
        return [(*(unvec(Cholesky.factor(S).solve(vec(v)), *v.shape) for S, v in zip(Sigma, first, strict=False)),
                 step[-1])]
    return wrong


def _flat(V: Any) -> Any:
    return params.flatten(V)


def _system_call(r: Reference) -> list[tuple[Any, ...]]:
    return [(_flat(r["Delta"]), _flat(r["last_step"]), _flat(r["gradient"]), r["fisher"], r["damping"])]


def _model_cases() -> list[tuple[Any, ...]]:
    cases = []
    for name in ("categorical-tanh", "gaussian-tanh"):
        r = reference(name)
        cases.append((_flat(r["gradient"]), 0.7 * _flat(r["step"]), r["fisher"], r["damping"]))
    return cases


def _small(grad: Any, delta: Any, F: Any, damping: float, quadratic: float = 1.0) -> float:
    model = SmallModel(np.array([[delta @ F @ delta]]), np.array([[delta @ delta]]), np.array([grad @ delta]), damping)
    return quadratic * model.value([1.0]) + (1 - quadratic) * float(model.slope[0])


def _lambda_cases() -> list[tuple[Any, ...]]:
    return [(3.0, rho, 0.774) for rho in (0.9, 0.5, 0.1, -3.0, 0.76, 0.74, 0.26, 0.24, math.nan)]


def _gamma_cases() -> list[tuple[Any, ...]]:
    return [(0.8, 0.6, 0.001, 1.0), (0.1, 0.6, 0.001, 1.0), (0.0012, 0.6, 0.001, 1.0)]


def _gammas(gamma: float, omega2: float, low: float, high: float) -> tuple[float, ...]:
    found = rules.gamma_candidates(gamma, omega2, low, high)
    return (*found, *[found[-1]] * (3 - len(found)))


def _nearest_cases() -> list[tuple[Any, ...]]:
    A, C, B, D, E = (_positive(40, 3), _positive(41, 3), *_draw(42, (4, 4), (4, 4), (12, 12)))
    return [(np.kron(A, B) + np.kron(C, D), 3, 4), (E, 4, 3)]


def _nearest(B: Any, n: int, m: int) -> Any:
    return kronecker.nearest_product(B, (n, n), (m, m))[:2]


def _nearest_rescaled(power: float) -> Callable[..., Any]:
    def wrong(B: Any, n: int, m: int) -> Any:
        A, G, singular = kronecker.nearest_product(B, (n, n), (m, m))
        return A * singular[0]**power, G
    return wrong


def _average_calls(r: Reference) -> list[tuple[Any, ...]]:
    return [(old, new, r["k"] + 1) for part in ("A", "G") for old, new in
            zip(r["old"][part], r["new"][part], strict=True)]


def _average_answer(r: Reference) -> list[Any]:
    return [*r["A_average"], *r["G_average"]]


def _average_collect(r: Reference, results: list[Any]) -> dict[str, Any]:
    L = len(r["A"])
    return {"A_average": tuple(results[:L]), "G_average": tuple(results[L:])}


def _first_batch() -> list[tuple[Any, ...]]:
    return [(None, _positive(50, 3), 1)]


def _times(c: float) -> Callable[..., Any]:
    return lambda right: c * right


_MINUS = "ascent in place of descent"
PARTS: dict[str, tuple[Part, ...]] = {
    "vec": (ByFunction(
        lambda: [_draw(0, (3, 4)), _draw(1, (2, 2))], vec,
        (known("row-major vec", lambda V: V.ravel()),)),),
    "unvec": (ByFunction(
        lambda: [(*_draw(2, (12,)), 3, 4), (*_draw(3, (4,)), 2, 2)], unvec,
        (known("row-major vec", lambda v, m, n: v.reshape(m, n)),
         Slip("transposed", "the matrix is the transpose of the one asked for", "its shape is (m, n): m rows, and n "
              "columns of m entries", "transpose it", lambda v, m, n: unvec(v, m, n).T))),),
    "kron_times": (
        ByFunction(_kron_cases, kronecker.product, (
            BIG_KRON,
            known("Kronecker factors in the wrong order", _order_swapped))),
        ByOracle(("categorical-tanh",), _zip("A", "G", "direction"), **by_layer("kfac_product"))),
    "output_gradient": (
        ByOracle(("categorical-tanh", "categorical-relu"), lambda r: [(r["z"], r.problem.y)], **sent_back("g", "dz")),
        ByFunction(_logits, lambda z, y: kr.Categorical().gradient(z, y))),
    "backward": (ByOracle(TANH, lambda r: [(list(r.problem.weights), list(r["a_bar"]), r["dz"])], **at_once("g")),),
    "gradient": (ByOracle(TANH, lambda r: [(*c, r["eta"]) for c in zip(r["g"], r["a_bar"], r.problem.weights,
                                                                      strict=True)], **by_layer("gradient")),),
    "tangent": (ByFunction(_tangent_cases, _tangent, (
        known("slope left out of the backward pass", _tangent_without_slope),
        Slip("only the last layer", "only the last layer's weights move", "the output depends on all weights: earlier "
             "layers change the input of later ones", "carry the derivative of the activations along",
             _tangent_of(lambda i, L, v: v if i == L - 1 else 0 * v)),
        Slip("bias held still", "the biases do not move", "the direction has a column for the bias: a_bar V^T holds it",
             "use a_bar, not a, with V", _tangent_of(lambda i, L, v: np.column_stack([v[:, :-1], 0 * v[:, -1]]))))),),
    "gauss_newton": (ByOracle(("categorical-tanh", "bernoulli-tanh"), lambda r: [
        (_jacobian(r), r.problem.model.likelihood.fisher(r["z"]))], **at_once("fisher")),),
    "fisher_product": (ByOracle(("categorical-tanh", "bernoulli-tanh", "deep-tanh"), _all(
        "g_exact", "a_bar", "direction"), slips=(
            Slip("each layer by itself", "each layer was multiplied by its own diagonal block alone",
                 "F has blocks between layers: the slope along the direction is a sum over all layers",
                 "add up the inner products of all layers first", _each_layer_alone),), **at_once("fisher_product")),),
    "categorical_columns": (ByOracle(("categorical-tanh", "categorical-relu"), lambda r: [(r["z"],)],
                                     **sent_back("G", "dz_exact")),),
    "bernoulli_columns": (ByOracle(("bernoulli-tanh", "bernoulli-relu"), lambda r: [(r["z"],)],
                                   **sent_back("G", "dz_exact")),),
    "exact_G": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _zip("g_exact"), **by_layer("G")),),
    "enumerated_G": (ByOracle(("softmax-regression",), lambda r: [(r["z"],)], **by_layer("G")),),
    "sampled_G": (ByOracle(("categorical-tanh", "gaussian-tanh"), lambda r: [
        (math.sqrt(len(r.problem.targets)) * g,) for g in r["g_sampled"]], **by_layer("G_sampled")),),
    "empirical_fisher": (ByOracle(("categorical-tanh", "gaussian-tanh"), _all("g", "a_bar"),
                                  **at_once("fisher_empirical")),),
    "natural_gradient": (ByOracle(("categorical-tanh", "gaussian-tanh"), _all(
        "fisher", "gradient", more=lambda r: (r["damping"],)), **at_once("natural_gradient")),),
    "transformed_gradient": (ByFunction(
        _transform_cases, lambda grad, Phi, Omega: kronecker.product(Omega, Phi.T, grad), (
            Slip("transformed like the weights", "the gradient was taken through the map of the weights itself, or not "
                 "transposed", "a gradient goes the other way: by the transposes of Phi and Omega",
                 "transpose both", lambda grad, Phi, Omega: kronecker.product(Omega.T, Phi, grad)),
            Slip("transformed with the inverses", "Phi^-1 and Omega^-1 were used, as W' = Phi^-1 W Omega^-1",
                 "a gradient is no displacement of the weights; displacements take the inverses, gradients the "
                 "transposes", "use the transposes", lambda grad, Phi, Omega: np.linalg.solve(
                     Phi, np.linalg.solve(Omega.T, grad.T).T)),
            Slip("only Phi", "Omega was left out", "the inputs change too", "multiply by Omega^T from the right",
                 lambda grad, Phi, Omega: kronecker.product(np.eye(len(Omega)), Phi.T, grad)))),),
    "kl_clip": (ByOracle(("categorical-tanh", "gaussian-relu", "logistic-regression"), _all("step", "gradient", more=(
        lambda r: (r.problem.kl_clip.learning_rate, r.problem.kl_clip.kappa))), **at_once("kl_clip")),),
    "factor_A": (ByOracle(("categorical-tanh", "gaussian-relu"), lambda r: [(a[:, :-1],) for a in r["a_bar"]],
                          **by_layer("A")),),
    "covariance_error": (ByFunction(_covariance_cases, _covariance, (
        Slip("not centred", "the means were not taken out: this is the rearranged Fisher block itself",
             "the block is E[vec Gamma vec Alpha^T]; without the product of the means a covariance is left",
             "subtract the means", _uncentred),
        known("A divided by N - 1", lambda g, a: len(a) / (len(a) - 1) * _covariance(g, a)))),),
    "kfac_step": (ByOracle(("categorical-tanh", "gaussian-tanh"), _zip("A_damped", "G_damped", "gradient"),
                           **by_layer("step")),),
    "kron_sum_solve": (ByFunction(_sum_cases, kronecker.solve_sum, (
        Slip("sum of the inverses", "the two products were inverted one by one and the results added",
             "the inverse of a sum is not the sum of the inverses", "diagonalize both products at once",
             lambda A, B, C, D, V: _solve(A, B, V) + _solve(C, D, V)),
        Slip("second product left out", "(A kron B) was solved with alone", "C kron D belongs to the matrix",
             "use both", lambda A, B, C, D, V: _solve(A, B, V)),
        Slip("sums inside the product", "(A + C) kron (B + D) was solved with", "that product has two cross terms more",
             "diagonalize both products at once", lambda A, B, C, D, V: _solve(A + C, B + D, V)),
        Slip("minus in place of plus", "the difference of the two products was solved with", "a sum was asked for",
             "1 + s2 s1", lambda A, B, C, D, V: unvec(np.linalg.solve(np.kron(A, B) - np.kron(C, D), vec(V)),
                                                      *V.shape)))),),
    "regression": (ByFunction(
        lambda: [(*_draw(14, (3, 4)), _positive(15, 4)), (*_draw(16, (3, 3)), _positive(17, 3))],
        lambda X, S: Cholesky.factor(S).solve_right(X), (
            known("multiplied in place of solved", lambda X, S: kronecker.product(S, np.eye(len(X)), X)),
            Slip("inverse on the wrong side", "the inverse was applied from the left", "Psi S_next = S_cross: the "
                 "division is from the right", "transpose, solve, transpose",
                 lambda X, S: Cholesky.factor(S).solve(X) if len(X) == len(S) else Cholesky.factor(S).solve_right(X)),
            Slip("transposed", "the transpose of Psi was returned", "Psi maps the next layer to this one: (d_i, "
                 "d_{i+1})", "transpose it", lambda X, S: Cholesky.factor(S).solve_right(X).T))),),
    "tridiagonal_solve": (ByOracle(("categorical-tanh", "three-layers-gaussian"), _tridiagonal_call, slips=(
        Slip("first sweep left out", "V was not multiplied by Xi before the solves", "F-hat^-1 = Xi^T Lambda Xi",
             "start with V_i - Psi_G V_{i+1} Psi_A^T", _one_sweep_missing("first")),
        Slip("third sweep left out", "the result was not multiplied by Xi^T", "F-hat^-1 = Xi^T Lambda Xi",
             "end with the third sweep", _one_sweep_missing("third")),), **at_once("step_tridiagonal")),),
    "trace_pi": (ByOracle(("categorical-tanh", "gaussian-relu"), _zip("A", "G"), **by_layer("pi")),),
    "damped_factors": (ByOracle(("categorical-tanh", "gaussian-relu"), lambda r: [
        (A, G, r["damping"], float(pi)) for A, G, pi in zip(r["A"], r["G"], r["pi"], strict=True)],
        **by_layer("A_damped", "G_damped")),),
    "eigen_damped_step": (ByOracle(("categorical-tanh", "gaussian-tanh"), lambda r: [
        (A, G, r["damping"], V) for A, G, V in zip(r["A"], r["G"], r["gradient"], strict=True)],
        **by_layer("step_exact_damping")),),
    "running_average": (
        ByOracle(("categorical-tanh", "gaussian-logistic", "softmax-regression"), _average_calls, _average_answer,
                 _average_collect),
        ByFunction(_first_batch, lambda old, new, k: kr.RunningAverage(0.95).update(_factors(new, new)).factors.A[0], (
            known("average starts at the identity", lambda old, new, k: 0.95 * np.eye(len(new)) + 0.05 * new),
            known("average not corrected for its start", lambda old, new, k: 0.05 * new)))),
    "model_change": (ByFunction(_model_cases, _small, (
        known("M without its half", lambda *case: _small(*case, quadratic=2.0)),
        known("M without damping", lambda grad, delta, F, damping: _small(grad, delta, F, 0.0)),
        Slip("linear term turned", "the linear term has the other sign", "M(delta) - M(0) = grad^T delta + ...; for a "
             "step downhill it is negative already", "leave the sign out",
             lambda grad, delta, F, damping: _small(-grad, delta, F, damping)),
        Slip("linear term left out", "the linear term is missing", "M(delta) - M(0) = grad^T delta + 1/2 delta^T (F + "
             "damping I) delta", "add grad^T delta",
             lambda grad, delta, F, damping: _small(0 * grad, delta, F, damping)))),),
    "alpha_mu": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _system_call, slips=(
        Slip("sign turned", "alpha and mu have the other sign", "at the minimum B (alpha, mu) + b = 0",
             "put in the minus sign", lambda r: [(-r["alpha"], -r["mu"])]),), **at_once("alpha", "mu")),),
    "reduction_ratio": (
        ByOracle(("categorical-tanh", "gaussian-tanh"), lambda r: [(r["objective"], r["moved"]["objective"], r["M"])],
                 **at_once("rho")),
        ByFunction(lambda: [(2.0, 1.5, -1.0), (1.0, 1.25, -1.0)], lambda h, new, M: ratio(new - h, M), (
            Slip("magnitude only", "the sign was dropped", "a negative rho says that h rose: it must raise lambda",
                 "leave the absolute value out", lambda h, new, M: abs(ratio(new - h, M))),))),
    "next_lambda": (ByFunction(_lambda_cases, rules.next_lambda, (
        known("lambda moves the wrong way", lambda l, rho, w: l**2 / rules.next_lambda(l, rho, w)),
        known("lambda not adapted", lambda l, rho, w: l),
        Slip("NaN left alone", "lambda stays where rho is NaN", "h is not finite there: the step was as bad as can be",
             "let what is neither good nor middling be bad",
             lambda l, rho, w: l if math.isnan(rho) else rules.next_lambda(l, rho, w)),
        Slip("NaN trusted", "lambda falls where rho is NaN", "h is not finite there: the step was as bad as can be",
             "let what is neither good nor middling be bad",
             lambda l, rho, w: w * l if math.isnan(rho) else rules.next_lambda(l, rho, w)))),),
    "gamma_candidates": (ByFunction(_gamma_cases, _gammas, (
        Slip("not clipped", "candidates lie outside [low, high]", "without the range gamma runs off: the author's code "
             "has it, the paper has not", "keep each within the range",
             lambda gamma, omega2, low, high: rules.gamma_candidates(gamma, omega2)),),
        view=lambda gammas: np.sort(np.asarray(gammas, dtype=float))),),
    "ekfac_scales": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _zip("g_exact", "a_bar", "A", "G"),
                              **by_layer("ekfac_scales")),),
    "foof_step": (ByFunction(_foof_cases, _foof, (
        known(_MINUS, lambda A, V, d: -_foof(A, V, d)),
        known("no damping", lambda A, V, d: _foof(A, V, 0.0)),
        known("multiplied in place of solved", lambda A, V, d: -kr.curvature.InputOnly(
            _factors(A, np.eye(len(V))), d).product([V])[0]),
        Slip("root of the damping", "the square root of the damping was added to A", "with G = I the damping belongs to "
             "A alone, as it is: the root is for two factors that are damped", "add the damping itself",
             lambda A, V, d: _foof(A, V, math.sqrt(d))))),),
    "nearest_product": (ByFunction(_nearest_cases, _nearest, (
        Slip("singular value left out", "A and G are unit vectors: their product has the norm 1",
             "the nearest matrix of rank one is s u v^T", "multiply by the leading singular value",
             _nearest_rescaled(-1.0)),
        Slip("singular value twice", "both A and G hold the whole singular value", "the nearest matrix of rank one is "
             "s u v^T, with one s", "give it to one of them, or its root to both", _nearest_rescaled(1.0)),
        Slip("singular value under the root", "only one of A and G holds the root of the singular value",
             "the nearest matrix of rank one is s u v^T", "give the root to both, or the whole to one",
             _nearest_rescaled(-0.5))),
        view=lambda pair: np.kron(*pair)),),
}
