"""Dialects: there and back, what the scales say in words and as functions, the table, refusals. No peer is needed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import QUANTITIES, Problem, ProblemError, Reference, check
from kfac_ref.oracle.dialect import JOINT_ONLY, KINDS, VEC, Dialect
from kfac_ref.oracle.dialects import DIALECTS, table
from kfac_ref.oracle.problem import LIKELIHOODS
from tests.problems import close, direction, problem

MEASURED = ("A", "G", "G_sampled", "G_empirical", "gradient")


def problem_of(likelihood: str = "categorical", sizes: tuple[int, ...] = (3, 7, 5), N: int = 11, M: int = 2) -> Problem:
    p = problem(likelihood, sizes, N=N)
    targets = np.stack([p.at.sample(np.random.default_rng(k)) for k in range(M)])
    return Problem(sizes, ("tanh",) * (len(sizes) - 2), likelihood, tuple(p.at.weights), p.at.x, p.y, 0.3, 0.02,
                   targets, direction=tuple(direction(p)))


def known(d: Dialect, case: Problem) -> list[str]:
    """Return the quantities that the dialect can translate for this problem."""
    found = []
    for name in KINDS:
        try:
            d.ours(d.theirs({name: Reference(case)[name]}, case), case)
        except (ProblemError, KeyError):
            continue
        found.append(name)
    return found


CASES = {name: problem_of(name) for name in LIKELIHOODS}
PAIRS = [(name, likelihood) for name, d in DIALECTS.items() for likelihood in LIKELIHOODS if likelihood in d.scale["A"]]
#: One for each form that a layout and a bias can have, whether or not somebody uses it.
FORMS = [replace(DIALECTS["curvlinops"], name="a form", layout=layout, bias=bias, pairs=pairs, vec=vec)
         for layout in ("out,in", "in,out") for bias in ("joint-last", "joint-first", "separate")
         for pairs in (True, False) for vec in VEC if pairs or bias != "separate"]


@pytest.mark.parametrize(("name", "likelihood"), PAIRS)
def test_there_and_back(name: str, likelihood: str) -> None:
    d, case = DIALECTS[name], CASES[likelihood]
    names = known(d, case)
    assert {"A", "G_empirical", "direction"} <= set(names) or {"A", "G", "gradient", "direction"} <= set(names)
    ours = {n: Reference(case)[n] for n in names}
    back = d.ours(d.theirs(ours, case), case)
    assert list(back) == names
    for n in names:
        for a, b in zip(np.atleast_1d(back[n]) if KINDS[n] == "number" else back[n],
                        np.atleast_1d(ours[n]) if KINDS[n] == "number" else ours[n], strict=True):
            close(a, b, 1e-14)


@pytest.mark.parametrize("d", FORMS, ids=lambda d: f"{d.layout} {d.bias} {d.pairs} {d.vec}")
def test_every_form_there_and_back(d: Dialect) -> None:
    case = CASES["gaussian"]
    names = known(d, case)
    assert ("kfac_block" in names) == (d.bias != "separate")
    ours = {n: Reference(case)[n] for n in names if KINDS[n] != "number"}
    theirs = d.theirs(ours, case)
    for n, value in d.ours(theirs, case).items():
        for a, b in zip(value, ours[n], strict=True):
            close(a, b, 1e-14)
    V, A = ours["direction"][0], ours["A"][0]
    W, b = V[:, :-1], V[:, -1]
    joint = np.column_stack([b, W]) if d.bias == "joint-first" else V
    turned = (lambda M: M.T) if d.layout == "in,out" else (lambda M: M)
    expected = (turned(W), b) if d.pairs else (turned(joint),)
    found = theirs["direction"][0] if d.pairs else (theirs["direction"][0],)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    order = {"joint-last": [0, 1, 2, 3], "joint-first": [3, 0, 1, 2], "separate": [0, 1, 2]}[d.bias]
    np.testing.assert_array_equal(theirs["A"][0], A[np.ix_(order, order)])


@pytest.mark.parametrize("vec", VEC)
def test_a_dense_block_is_that_of_their_vector(vec: str) -> None:
    case = CASES["categorical"]
    d = replace(DIALECTS["curvlinops"], vec=vec)
    r = Reference(case)
    block = d.theirs({"kfac_block": r["kfac_block"]}, case)["kfac_block"][0]
    V, A, G = r["direction"][0], r["A"][0], r["G"][0]
    vector: dict[str, Any] = {"columns of [W b]": lambda V: V.T.ravel(), "rows of [W b]": lambda V: V.ravel(),
                              "rows of W, then b": lambda V: np.concatenate([V[:, :-1].ravel(), V[:, -1]])}
    close(block @ vector[vec](V), vector[vec](G @ V @ A))


@pytest.mark.parametrize(("name", "likelihood"), PAIRS)
def test_a_scale_is_what_its_words_say(name: str, likelihood: str) -> None:
    d, case = DIALECTS[name], CASES[likelihood]
    N, C, M = 11, 5, 2
    for quantity in MEASURED:
        if likelihood not in d.scale.get(quantity, {}):
            continue
        text = d.scale[quantity][likelihood]
        assert re.fullmatch(r"[\d/^()NCMsqrt-]+", text)
        value = eval(text.replace("^", "**"), {"sqrt": math.sqrt, "N": N, "C": C, "M": M})
        found = d.factor(quantity, case, sampled=quantity == "G_sampled")
        assert found == pytest.approx(value, rel=1e-15)
        if quantity in ("A", "G"):
            close(d.theirs({quantity: Reference(case)[quantity]}, case)[quantity][0][0, 0],
                  value * Reference(case)[quantity][0][0, 0], 1e-15)


@pytest.mark.parametrize(("name", "likelihood"), [(n, k) for n, k in PAIRS if "step" in known(DIALECTS[n], CASES[k])])
def test_their_step_with_their_damping_is_our_step(name: str, likelihood: str) -> None:
    # The formula of the paper on their A, G and gradient, in the form [W b] of theirs.
    d, case = DIALECTS[name], CASES[likelihood]
    r = Reference(case)
    theirs = d.theirs({n: r[n] for n in ("A", "G", "gradient")}, case)
    damping = case.damping * d.factor("damping", case)
    steps = []
    for A, G, V in zip(theirs["A"], theirs["G"], theirs["gradient"], strict=True):
        V = np.column_stack([V[0].T if d.layout == "in,out" else V[0], V[1]])
        pi = math.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
        U = np.linalg.solve(G + math.sqrt(damping) / pi * np.eye(len(G)), V)
        step = -np.linalg.solve(A + math.sqrt(damping) * pi * np.eye(len(A)), U.T).T
        steps.append((step[:, :-1].T if d.layout == "in,out" else step[:, :-1], step[:, -1]))
    for a, b in zip(d.ours({"step": steps}, case)["step"], r["step"], strict=True):
        close(a, b, 1e-12)


def test_the_oracle_reads_a_dialect_and_wants_it_named() -> None:
    case = CASES["gaussian"]
    for name, d in DIALECTS.items():
        if "gaussian" not in d.scale.get("gradient", {}):
            continue
        theirs = d.theirs({n: Reference(case)[n] for n in ("A", "G", "gradient")}, case)
        assert check(case, theirs, dialect=name).ok
        assert not check(case, {"G": [2 * G for G in theirs["G"]]}, dialect=name).ok
    report = check(case, {"G": DIALECTS["curvlinops"].theirs({"G": Reference(case)["G"]}, case)["G"]})
    assert not report.ok


def test_the_row_of_the_bias_is_the_problems_where_theirs_has_none() -> None:
    case = CASES["categorical"]
    A = DIALECTS["asdl"].ours({"A": [np.eye(3), np.eye(7)]}, case)["A"]
    a_bar = case.at().a_bar
    close(A[0], np.block([[np.eye(3), a_bar[0].mean(0)[:-1, None]], [a_bar[0].mean(0)[None]]]))
    assert A[1].shape == (8, 8)


def test_A_beside_samples_has_their_scale() -> None:
    case, d = CASES["categorical"], DIALECTS["nngeometry"]
    given = {n: Reference(case)[n] for n in ("A", "G_sampled")}
    assert d.theirs(given, case)["A"][0][0, 0] == pytest.approx(2**0.5 * given["A"][0][0, 0])           # M = 2
    exact = {n: Reference(case)[n] for n in ("A", "G")}
    assert d.theirs(exact, case)["A"][0][0, 0] == pytest.approx(2 * given["A"][0][0, 0])                # C - 1 = 4


def test_lists_as_in_a_file_are_read() -> None:
    case, d = CASES["categorical"], DIALECTS["kfac-jax"]
    theirs = d.theirs({n: Reference(case)[n] for n in ("A", "gradient")}, case)
    plain = {"A": [A.tolist() for A in theirs["A"]],
             "gradient": [[W.tolist(), {"shape": [len(b)], "data": b.tolist()}] for W, b in theirs["gradient"]]}
    for n in ("A", "gradient"):
        for a, b in zip(d.ours(plain, case)[n], Reference(case)[n], strict=True):
            close(a, b, 1e-14)


@pytest.mark.parametrize(("name", "quantities", "words"), [
    ("curvlinops", {"hessian": 1.0}, "a dialect does not define 'hessian'"),
    ("nngeometry", {"G_empirical": [np.eye(7), np.eye(5)]}, "has no measured G_empirical for the categorical"),
    ("asdl", {"step": [np.eye(7, 4), np.eye(5, 8)]}, "another approximation"),
    ("curvlinops", {"A": [np.eye(4)]}, "for each of the 2 layers, got 1"),
    ("curvlinops", {"A": 1.0}, "for each of the 2 layers, got float"),
    ("curvlinops", {"A": [np.eye(3), np.eye(8)]}, r"A\[0\] must have shape \(4, 4\)"),
    ("asdl", {"A": [np.eye(4), np.eye(8)]}, r"A\[0\] must have shape \(3, 3\)"),
    ("curvlinops", {"gradient": [np.eye(4, 7), np.eye(8, 5)]}, r"gradient\[0\] must have shape \(7, 4\)"),
    ("kfac-jax", {"gradient": [(np.eye(7, 3), np.ones(7)), (np.eye(7, 5), np.ones(5))]}, r"gradient\[0\] must be a"),
])
def test_what_does_not_fit_is_refused(name: str, quantities: dict[str, Any], words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        DIALECTS[name].ours(quantities, CASES["categorical"])


def test_problems_that_nobody_measured_are_refused() -> None:
    p = problem_of("gaussian")
    A, without = Reference(p)["A"], [W[:, :-1] for W in p.weights]
    for other in (p.replace(noise_variance=2.0), p.replace(weights=without, bias=False, direction=None)):
        for convert in (DIALECTS["curvlinops"].ours, DIALECTS["curvlinops"].theirs):
            with pytest.raises(ProblemError, match="noise variance of 1 and biases in all layers"):
                convert({"A": A}, other)


def test_a_dense_order_that_nobody_measured_is_refused() -> None:
    d = replace(DIALECTS["curvlinops"], vec="")
    with pytest.raises(ProblemError, match="was not measured"):
        d.ours({"kfac_block": Reference(CASES["categorical"])["kfac_block"]}, CASES["categorical"])


def test_the_table_has_every_dialect_and_says_what_was_run() -> None:
    head, *lines = table()
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [row["name"] for row in rows] == list(DIALECTS)
    assert all(isinstance(v, str) and v for row in rows for v in row.values())
    assert {row["name"] for row in rows if row["ran"] != "-"} == {
        "curvlinops", "curvlinops-separate", "backpack", "nngeometry", "asdl", "kfac-jax"}
    for row in rows:
        assert (row["ran"] == "-") == (row["version"] == "measured elsewhere")
    asdl = next(row for row in rows if row["name"] == "asdl")
    assert asdl["G_sampled / ours"] == "1/M"
    assert asdl["G_empirical / ours"] == "1 (categorical), 4 (gaussian)"


def test_the_entries_are_well_formed() -> None:
    for name, d in DIALECTS.items():
        assert name == d.name
        assert set(d.loss) == set(d.scale["A"])
        assert d.layout in ("out,in", "in,out")
        assert d.bias in ("joint-last", "joint-first", "separate")
        assert d.vec in ("", *VEC)
        assert set(d.scale) <= {*MEASURED, "A_sampled"}
    assert set(JOINT_ONLY) <= set(KINDS)
    assert set(KINDS) <= {*QUANTITIES, "direction", "delta_0"}
