"""Correct values are never accused: random problems, computed here by plain NumPy in double and single precision.

The values share no code with the package. They are given in every form in which a program may write them.
``python -m tests.test_oracle_correct 500`` tries so many problems and prints a table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.special

from kfac_ref.oracle import Problem, Reference, check, precision, rounding

Arrays = dict[str, Any]


def printed(form: str) -> Callable[[Any], Any]:
    """Return a function that writes numbers in a form, and reads them again as JSON would."""
    return np.vectorize(lambda v: float(form % v), otypes=[float])


#: From the values in double and in single precision to what is given.
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "double": lambda d, s: d, "single": lambda d, s: s, "single as double": lambda d, s: s.astype(float),
    "%.9g of single": lambda d, s: printed("%.9g")(s),
    "shortest of single": lambda d, s: np.vectorize(lambda v: float(str(np.float32(v))), otypes=[float])(s),
    "12 digits": lambda d, s: printed("%.12g")(d), "8 digits": lambda d, s: printed("%.8g")(d),
    "8 digits of single": lambda d, s: printed("%.8g")(s),
    "6 digits": lambda d, s: printed("%.6g")(d), "4 digits": lambda d, s: printed("%.4g")(d),
    "6 decimals": lambda d, s: np.round(d, 6),
    "half": lambda d, s: d.astype(np.float16).astype(float)}

SLOPES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tanh": (np.tanh, lambda s: 1 - np.tanh(s)**2),
    "logistic": (scipy.special.expit, lambda s: scipy.special.expit(s) * (1 - scipy.special.expit(s))),
    "relu": (lambda s: np.maximum(s, 0), lambda s: (s > 0).astype(s.dtype)),
    "softplus": (lambda s: np.logaddexp(s.dtype.type(0), s), scipy.special.expit),
    "identity": (lambda s: s, np.ones_like)}


def drawn(seed: int) -> Problem:
    """Draw a problem: widths 1 to 12, depths 1 to 5, scaled inputs, dead units, saturated outputs."""
    rng = np.random.default_rng(seed)
    depth, N = int(rng.integers(1, 6)), int(rng.integers(1, 61))
    sizes = tuple(rng.integers(1, 13, depth + 1).tolist())
    likelihood = str(rng.choice(["gaussian", "categorical", "bernoulli"]))
    if likelihood == "categorical":
        sizes = (*sizes[:-1], max(2, sizes[-1]))
    hidden = tuple(str(name) for name in rng.choice(list(SLOPES), depth - 1))
    weights = [rng.standard_normal((m, n + 1)) / np.sqrt(n + 1) for n, m in pairwise(sizes)]
    x = rng.standard_normal((N, sizes[0])) * rng.choice([1e-3, 1.0, 1.0, 100.0])
    if rng.random() < 0.2 and depth > 1:
        weights[0][0] = 0                                   # a dead unit, or a constant one
    if rng.random() < 0.2:
        weights[-1] *= 30                                   # saturated outputs
    if rng.random() < 0.5:                                  # as another program in single precision has them
        weights, x = [W.astype(np.float32).astype(float) for W in weights], x.astype(np.float32).astype(float)
    C = sizes[-1]
    y = rng.integers(0, C, N) if likelihood == "categorical" else rng.integers(0, 2, (N, C)).astype(float) if \
        likelihood == "bernoulli" else np.round(rng.standard_normal((N, C)), 3)
    return Problem(sizes, hidden, likelihood, tuple(weights), x, y, float(rng.choice([1e-3, 0.1, 3.0])), 0.0)


def values(p: Problem, dtype: Any) -> Arrays:
    """Return the quantities of a problem by plain NumPy in a precision, from their definitions."""
    f = np.dtype(dtype).type
    weights, N = [W.astype(f) for W in p.weights], f(len(p.x))
    a, a_bar, s_all = p.x.astype(f), [], []
    for i, W in enumerate(weights):
        a_bar.append(np.hstack([a, np.ones((len(a), 1), f)]))
        s = a_bar[-1] @ W.T
        s_all.append(s)
        a = s if i == len(weights) - 1 else SLOPES[p.hidden[i]][0](s).astype(f)
    z = a
    one_hot = np.eye(z.shape[1], dtype=f)[p.y] if p.likelihood == "categorical" else p.y.astype(f)
    if p.likelihood == "categorical":
        e = np.exp(z - z.max(axis=1, keepdims=True))
        q = e / e.sum(axis=1, keepdims=True)
        columns = [np.sqrt(q[:, c:c + 1]) * (np.eye(z.shape[1], dtype=f)[c] - q) for c in range(z.shape[1])]
        loss = np.mean(np.log(e.sum(axis=1)) - (z - z.max(axis=1, keepdims=True))[np.arange(len(z)), p.y])
    elif p.likelihood == "bernoulli":
        q = (1 / (1 + np.exp(-z))).astype(f)
        columns = [np.sqrt(q * (1 - q)) * np.eye(z.shape[1], dtype=f)[c] for c in range(z.shape[1])]
        loss = np.mean(np.sum(np.logaddexp(f(0), z) - one_hot * z, axis=1))
    else:
        q = z
        columns = [np.ones_like(z) * np.eye(z.shape[1], dtype=f)[c] for c in range(z.shape[1])]
        loss = np.mean(np.sum((z - one_hot)**2, axis=1)) / 2

    def backward(dz: Any) -> list[Any]:
        g = [dz.astype(f)]
        for i in range(len(weights) - 1, 0, -1):
            g.insert(0, (g[0] @ weights[i][:, :-1] * SLOPES[p.hidden[i - 1]][1](s_all[i - 1])).astype(f))
        return g

    g, exact = backward(q - one_hot), [backward(c) for c in columns]
    A = [a.T @ a / N for a in a_bar]
    G = [sum(columns[i].T @ columns[i] for columns in exact) / N for i in range(len(weights))]
    gradient = [gi.T @ a / N for gi, a in zip(g, a_bar, strict=True)]
    pi = [np.sqrt(np.trace(S) / len(S) / (np.trace(T) / len(T))) if np.trace(T) > 0 else f(1)
          for S, T in zip(A, G, strict=True)]
    root = f(np.sqrt(p.damping))
    A_damped = [S + v * root * np.eye(len(S), dtype=f) for S, v in zip(A, pi, strict=True)]
    G_damped = [T + root / v * np.eye(len(T), dtype=f) for T, v in zip(G, pi, strict=True)]
    try:
        step = [-np.linalg.solve(T, np.linalg.solve(S, V.T).T)
                for S, T, V in zip(A_damped, G_damped, gradient, strict=True)]
    except np.linalg.LinAlgError:                           # single precision cannot solve it
        step = [np.full_like(V, np.nan) for V in gradient]
    return {"z": z, "loss": f(loss), "a_bar": a_bar, "gradient": gradient, "A": A, "G": G,
            "G_empirical": [gi.T @ gi / N for gi in g], "A_damped": A_damped, "G_damped": G_damped, "step": step}


def given(form: str, double: Any, single: Any) -> Any:
    """Return the values of a quantity in a form."""
    if isinstance(double, list):
        return [given(form, d, s) for d, s in zip(double, single, strict=True)]
    value = FORMS[form](np.asarray(double), np.asarray(single))
    return value if np.ndim(value) else float(value)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def accused(seed: int) -> list[tuple[str, str, float]]:
    """Return the forms and quantities of a problem whose correct values are accused."""
    p = drawn(seed)
    with np.errstate(all="ignore"):
        double, single = values(p, np.float64), values(p, np.float32)
    found = []
    for form in FORMS:
        largest = {name: np.max([np.max(np.abs(v)) for part in (double, single) for v in listed(part[name])])
                   for name in double}
        theirs = {name: given(form, double[name], single[name]) for name in double
                  if np.isfinite(largest[name]) and (form != "half" or largest[name] < 6e4)}
        if not np.isfinite(largest["A_damped"]):            # pi was infinite in single precision
            theirs = {name: value for name, value in theirs.items() if name not in ("G_damped", "step")}
        report = check(p, theirs, diagnose=False)
        found += [(form, row.quantity, row.error) for row in report.rows if row.verdict == "differs"]
    return found


#: What was accused once: few decimals beside many digits, short numbers, G where p rounds to 1, bad conditions.
ONCE = (42, 70, 73, 79, 80, 85, 89, 105, 116, 126, 156, 240, 337)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow)
                                               for seed in (*range(5, 20), *ONCE))])
def test_correct_values_are_not_accused_in_any_form(seed: int) -> None:
    assert accused(seed) == []


def test_a_badly_conditioned_step_is_not_right_whatever_it_is() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 1)) * np.ones(3) + 1e-8 * rng.standard_normal((20, 3))
    p = Problem((3, 2), (), "gaussian", (rng.standard_normal((2, 4)),), x, rng.standard_normal((20, 2)), 1e-20)
    step = Reference(p)["step"]
    assert check(p, {"step": step}, precision="single", diagnose=False).ok
    bent = [np.column_stack([3 * V[:, :-1], V[:, -1]]) for V in step]       # the bias is well conditioned
    assert not check(p, {"step": bent}, precision="single", diagnose=False).ok


def main(count: int) -> int:
    """Print how many quantities are accused in each form."""
    counts = dict.fromkeys(FORMS, 0)
    for seed in range(count):
        for form, name, off in accused(seed):
            counts[form] += 1
            print(f"seed {seed}: {name} as {form}, error {off:.1e}", flush=True)
    print(f"{count} problems, 10 quantities each")
    print("\n".join(f"{form:20s} accused {n}" for form, n in counts.items()))
    return int(any(counts.values()))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))


def test_the_movement_of_a_trajectory_is_that_of_each_step() -> None:
    rng = np.random.default_rng(0)
    right = rng.standard_normal((5, 3, 4))
    moved = [right + 1e-9 * rng.standard_normal(right.shape) * (rng.random(right.shape) < 0.7) for _ in range(3)]
    together = rounding._spread(right, moved, np.median)
    for k, W in enumerate(right):
        np.testing.assert_array_equal(together[k], rounding._spread(W, [other[k] for other in moved], np.median))
    assert (together > 0).all(), "an entry that did not move in these draws may move as its row and column do"


@pytest.mark.parametrize(("off", "right"), [(1e-9, True), (0.1, False)])
def test_only_what_is_nearly_right_is_drawn_more_often(off: float, right: bool,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    p, asked = drawn(3), []

    def sensitivity(reference: Any, name: str, unit: float, draws: int) -> Any:
        asked.append(draws)
        return tuple(np.full_like(S, 1.0 if draws == precision.MORE_DRAWS else 0.0) for S in reference[name])

    monkeypatch.setattr(precision, "sensitivity", sensitivity)
    theirs = {"A": tuple((1 + off * math.pi) * S for S in Reference(p)["A"])}
    excess = precision.Tolerance(theirs).excess(Reference(p), "A", theirs["A"])
    assert (excess <= 1) == right
    assert asked == ([precision.DRAWS, precision.MORE_DRAWS] if right else [precision.DRAWS])
