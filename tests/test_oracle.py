"""The oracle: its values are right, it reads what it should, and its diagnosis is identified, not guessed.

The values are compared with the published vectors, which were computed at a hundred digits without the package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import oracle
from kfac_ref.approximations import TABLE
from kfac_ref.curvature import EKFAC, BlockDiagonal, BlockTridiagonal, EigenDamped, Exact
from kfac_ref.factors import Moments, RunningAverage, as_factors, second_moments
from kfac_ref.optimizers import KFAC
from kfac_ref.optimizers.kfac_values import Draws
from kfac_ref.oracle import CATALOGUE, Problem, Reference, check, files, graph, published, trajectory
from kfac_ref.oracle.differences import differ, error, place
from kfac_ref.oracle.graph import Cache
from kfac_ref.oracle.mistakes.numbers import FAMILIES
from kfac_ref.oracle.problem import Batch, Trajectory
from kfac_ref.oracle.search import Diagnosis
from kfac_ref.testing import assert_kfac, assert_kfac_factors
from tests import composed, oracle_report

NAMES = published.names()


def slow_but(values: Any, *quick: Any) -> list[Any]:
    """Return parameters of which only a few are tried in the quick suite."""
    return [pytest.param(v, marks=() if v in quick else pytest.mark.slow) for v in values]


SOME = slow_but(NAMES, *NAMES[::4])
SCHEMA = json.loads((Path(files.__file__).parent / "problem.schema.json").read_text())


@cache
def vector(name: str) -> oracle.Vector:
    return oracle.vector(name)


@cache
def reference(name: str) -> Reference:
    return Reference(vector(name).problem)


@pytest.fixture
def no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search end, however slow the machine is."""
    monkeypatch.setattr(sys.modules["kfac_ref.oracle.check"], "SECONDS", math.inf)


# The values.


@pytest.mark.parametrize("name", SOME)
def test_every_quantity_is_that_of_the_independent_computation(name: str) -> None:
    v = vector(name)
    for quantity, expected in v.expected.items():
        tolerance, kind = v.tolerance[quantity]
        ours = reference(name)[quantity]
        if kind == "absolute":
            pairs = zip(ours, expected, strict=True) if isinstance(ours, tuple) else [(ours, expected)]
            assert max(np.max(np.abs(np.subtract(a, b))) for a, b in pairs) <= tolerance, quantity
        else:
            assert error(expected, ours) <= tolerance, quantity


#: Quantities that are not in version 1 of the vectors, which never changes.
LATER = {"A_basis", "G_basis", "ekfac_step"}


def test_the_vectors_hold_every_quantity_of_their_version() -> None:
    assert {q for name in NAMES for q in vector(name).expected} == set(oracle.QUANTITIES) - LATER


@pytest.mark.parametrize("name", ["categorical-tanh", "bernoulli-logistic", "three-layers-gaussian"])
def test_the_package_s_own_functions_give_the_same(name: str) -> None:
    """The reference is a graph of its own, so that mistakes can travel through it; users call these."""
    v = vector(name)
    p, at, e = v.problem, v.problem.at(), v.expected
    exact, sampled, labels = (kr.kronecker_factors(at, expectation, reach=1)
                              for expectation in (kr.exact, kr.sampled(p.targets), kr.empirical(p.y)))
    (A, G), (_, G_sampled), (_, G_empirical) = (zip(*f.layers, strict=True) for f in (exact, sampled, labels))
    neighbours = [(i, i + 1) for i in range(len(exact) - 1)]
    grad = at.gradient(p.y)
    ours = {"A": A, "G": G, "G_sampled": G_sampled, "G_empirical": G_empirical,
            "A_cross": [exact.A[pair] for pair in neighbours], "G_cross": [exact.G[pair] for pair in neighbours],
            "gradient": grad, "objective": at.loss(p.y),
            "fisher": kr.fisher_matrix(at), "fisher_empirical": kr.fisher_matrix(at, kr.empirical(p.y)),
            "fisher_sampled": kr.fisher_matrix(at, kr.sampled(p.targets)), "hessian": kr.hessian.hessian(at, p.y)}
    structures = {"step": BlockDiagonal(exact, p.damping), "step_sampled": BlockDiagonal(sampled, p.damping),
                  "step_empirical": BlockDiagonal(labels, p.damping),
                  "step_tridiagonal": BlockTridiagonal(exact, p.damping),
                  "step_exact_damping": EigenDamped(exact, p.damping), "natural_gradient": Exact(at, p.damping)}
    for quantity, structure in structures.items():
        ours[quantity] = kr.params.scale(-1.0, structure.solve(grad))
    if "ekfac_scales" in e:
        ours["ekfac_scales"] = EKFAC(at).scales
    if p.direction is not None:
        ours["fisher_product"] = kr.fisher_product(at, p.direction)
    if p.previous is not None:
        old = Moments({(X, i, i): S for X in "AG" for i, S in enumerate(getattr(p.previous, X))}, 1)
        average = RunningAverage(k=p.previous.k, latest=old).update(second_moments(at, kr.sampled(p.targets)))
        ours["A_average"], ours["G_average"] = zip(*as_factors(average.moments).layers, strict=True)
    for quantity in set(ours) & set(e):
        value = ours[quantity]
        value = tuple(value) if isinstance(value, list) else value
        assert error(e[quantity], value) <= 10 * v.tolerance[quantity][0], quantity


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("trajectory")])
def test_the_optimizer_takes_the_steps_of_the_vectors(name: str) -> None:
    v = vector(name)
    p, t = v.problem, v.problem.trajectory
    assert t is not None
    optimizer = KFAC(p.model, TABLE[t.structure], lambda_0=t.lambda_0, T1=t.T1, T2=t.T2, T3=t.T3, omega1=t.omega1,
                     omega2=t.omega2, ceiling=t.ceiling, gamma_min=t.gamma_min, gamma_max=t.gamma_max,
                     lambda_floor=t.lambda_floor, judged_on="same batch", undo=None, momentum=t.momentum)
    state = optimizer.init(p.weights)
    found: dict[str, list[Any]] = {name: [] for name in ("lambda", "gamma", "alpha", "mu", "M", "rho")}
    weights = []
    for batch in t.batches:
        draws = Draws(batch.rows1, batch.rows2, batch.targets)
        state, record = optimizer.step(state, p.x[batch.rows], p.y[batch.rows], draws)
        for name, value in zip(found, (record.lambda_, record.gamma, record.alpha, record.mu, record.predicted,
                                       record.rho), strict=True):
            found[name].append(value)
        weights.append(state.weights)
    for name, values in found.items():
        assert error(v.expected[f"trajectory_{name}"], np.array(values)) <= 1e-8, name
    assert error(v.expected["trajectory_weights"], tuple(map(np.stack, zip(*weights, strict=True)))) <= 1e-8


# Files.


@pytest.mark.parametrize("name", SOME)
def test_the_schema_and_the_reader_take_every_vector(name: str) -> None:
    content = files.load(published.FOLDER / f"{name}.json")
    jsonschema.validate(content, SCHEMA)
    assert content["flags"]


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("name", ["categorical-tanh", "trajectory-gaussian", "saturated-bernoulli"])
def test_a_problem_comes_back_from_its_file_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    problem = vector(name).problem
    problem.write(tmp_path / f"p.{suffix}")
    assert Problem.read(tmp_path / f"p.{suffix}").plain() == problem.plain()
    if suffix == "json":
        jsonschema.validate(files.load(tmp_path / "p.json"), SCHEMA)


def test_arrays_in_other_layouts_make_the_same_problem() -> None:
    p = vector("categorical-tanh").problem
    rest: dict[str, Any] = {"hidden": p.hidden, "likelihood": p.likelihood}
    apart, biases = [W[:, :-1] for W in p.weights], [W[:, -1] for W in p.weights]
    first = [np.roll(W, 1, axis=1) for W in p.weights]
    for weights, extra in ((p.weights, {}), (apart, {"biases": biases, "bias": "separate"}),
                           (apart, {"biases": biases}),
                           (first, {"bias": "joint-first"}), ([W.T for W in p.weights], {"layout": "in,out"}),
                           ([W.T for W in apart], {"layout": "in,out", "biases": biases, "bias": "separate"}),
                           ([W.T for W in first], {"layout": "in,out", "bias": "joint-first"})):
        made = Problem.from_arrays(weights, p.x, p.y, **rest, **extra)
        assert all(map(np.array_equal, made.weights, p.weights))
    single = Problem.from_arrays([W.astype(np.float32) for W in p.weights], p.x, p.y, **rest)
    assert single.dtype == "float32"
    with pytest.raises(oracle.ProblemError, match="biases must be given if and only if bias is 'separate'"):
        Problem.from_arrays(apart, p.x, p.y, biases=biases, bias="joint-last", **rest)


def test_the_layout_that_would_fit_is_told() -> None:
    p = vector("categorical-tanh").problem
    assert len({*p.sizes}) == len(p.sizes)
    apart, biases = [W[:, :-1] for W in p.weights], [W[:, -1] for W in p.weights]
    rest: dict[str, Any] = {"hidden": p.hidden, "likelihood": p.likelihood}
    for weights, extra in ((p.weights, {}), (apart, {"biases": biases, "bias": "separate"})):
        for layout, other in (("out,in", "in,out"), ("in,out", "out,in")):
            given = [W.T for W in weights] if layout == "out,in" else weights
            with pytest.raises(oracle.ProblemError, match=f"; --layout {other} would fit"):
                Problem.from_arrays(given, p.x, p.y, layout=layout, **rest, **extra)
    with pytest.raises(oracle.ProblemError) as caught:
        Problem.from_arrays(p.weights, p.x[:, 1:], p.y, **rest)
    assert "would fit" not in str(caught.value)


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(content))
    *way, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    part: Any = content
    for key in way:
        part = part[key]
    if value is Ellipsis:
        del part[last]
    else:
        part[last] = value
    return content


@pytest.mark.parametrize(("path", "value", "message"), [
    ("format", "x", "format must be 'kfac_ref problem'"), ("version", 3, "version must be 1 or 2"),
    ("version", True, "version must be 1 or 2"), ("network", ..., "network is missing"),
    ("weights", ..., "weights is missing"),
    ("conventions", ..., "conventions is missing"), ("conventions.vec", "rows", 'conventions.vec must be "columns"'),
    ("conventions.bias", ..., "conventions.bias is missing"), ("extra", 1, "'extra' is unknown"),
    ("network.sizes", [2], "network.sizes must hold at least two"), ("network.sizes.0", 0, "network.sizes must be"),
    ("network.sizes.0", 10**30, "network.sizes must be at most"),
    ("network.hidden", ["sin"], "network.hidden[0] must be"),
    ("network.hidden", [], "network.hidden must name"), ("likelihood", 3, "likelihood must be one of"),
    ("dtype", "float16", "dtype must be one of"), ("damping", -1, "damping must be at least 0"),
    ("damping", "1", "damping must be a number"), ("weight_decay", None, "weight_decay must be a number"),
    ("weights.1", 5, "weights[1] must be an array"), ("weights.0.shape", [3, 3], "weights[0].data must hold 9 numbers"),
    ("weights.0.shape", [10**18, 10**18], "weights[0].shape must be at most"),
    ("weights.0.data.2", "a", 'weights[0].data[2] must be a number, got "a"'),
    ("weights.0.data.2", None, "weights[0] must be finite"),
    ("weights.0.data.2", 10**400, "beyond the range of float64"),
    ("weights.0", ..., "weights must hold one array per layer: expected 2, got 1"),
    ("x", [[1, 2], [3]], "x must be a rectangular array"), ("x", [1, [2]], "x must be a rectangular array"),
    ("x", [], "x must"), ("y", [0, 1], "y must have shape"), ("y.data.0", 77, "y must hold labels 0.."),
    ("y.data.0", 0.5, "y must hold integer labels"), ("targets.shape", [7, 11], "targets must have shape"),
    ("previous.k", -1, "previous.k must be an integer of at least 0"), ("previous.A", [], "previous.A must hold one"),
    ("kl_clip.learning_rate", 0, "kl_clip.learning_rate must be above 0"), ("kl_clip", 3, "kl_clip must be an object"),
    ("name", 3, "name must be text"), ("direction.0.data", 3, "direction[0].data must be a flat list"),
])
def test_what_is_malformed_is_refused_with_its_place(path: str, value: Any, message: str) -> None:
    content = files.load(published.FOLDER / "categorical-tanh.json")
    with pytest.raises(oracle.ProblemError) as caught:
        Problem.of(changed(content, path, value), "file.json")
    assert message in str(caught.value), str(caught.value)
    assert str(caught.value).startswith("file.json: ")


@pytest.mark.parametrize(("path", "value", "message"), [
    ("trajectory.T2", 5, "trajectory.T2 must be a multiple of T3"),
    ("trajectory.T1", 1.5, "trajectory.T1 must be an integer"), ("trajectory.omega1", 2, "trajectory.omega1 must be"),
    ("trajectory.omega2", 0, "trajectory.omega1 and omega2 must"),
    ("trajectory.structure", "full", "trajectory.structure must be one of"),
    ("trajectory.momentum", 1, "trajectory.momentum must be true or false"),
    ("trajectory.batches", [], "trajectory.batches must hold at least one"),
    ("trajectory.batches.0.rows", [999], "trajectory.batches[0].rows must lie in"),
    ("trajectory.batches.0.rows1", [0.5], "trajectory.batches[0].rows1 must be a list of row numbers"),
    ("trajectory.batches.1.targets", [[0]], "trajectory.batches[1].targets must have shape"),
    ("trajectory.gamma_max", 0, "trajectory.gamma_max must be at least gamma_min"),
    ("trajectory.batches.0.rows2", ..., "trajectory.batches[0]: rows2 is missing"),
])
def test_a_malformed_trajectory_is_refused_with_its_place(path: str, value: Any, message: str) -> None:
    content = files.load(published.FOLDER / "trajectory-categorical.json")
    with pytest.raises(oracle.ProblemError) as caught:
        Problem.of(changed(content, path, value))
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    (b"", "is empty"), (b'{"a": NaN}', "NaN is not a JSON number"), (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    (b"[" * 10**5, "is nested deeper than the limit of 32"), (b"\xff\xfe", "is not UTF-8 text"),
    (b"3", "the file must be an object"),
    (b"PK\x03\x04 torn", "is not a readable npz file"), (b'{"format": 1', "is not JSON"),
])
def test_what_is_no_problem_file_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(text)
    with pytest.raises(oracle.ProblemError) as caught:
        Problem.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_npz_with_pickles_or_a_bomb_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", problem=np.array({"a": 1}, dtype=object))
    with pytest.raises(oracle.ProblemError, match="not a readable npz file"):
        Problem.read(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(2**25 + 1))
    assert (tmp_path / "b.npz").stat().st_size < 2**20
    with pytest.raises(oracle.ProblemError, match="larger than the limit of 134,217,728 bytes"):
        Problem.read(tmp_path / "b.npz")


# The diagnosis.


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 7))
def test_what_was_done_is_found(part: int) -> None:
    """A part of the report: wrong values that the tests compose, for single mistakes, numbers and pairs."""
    bad = [case for case in oracle_report.judged(oracle_report.part_of_them(part, 480))
           if case[1] in ("missed", "wrong")]
    assert bad == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_flags_say_what_the_values_say(name: str) -> None:
    """The flags of a version are those of its catalogue: they stay true, and later mistakes are not in them."""
    r = reference(name)

    def shows(mistake: oracle.Mistake) -> bool:
        for quantity in vector(name).expected:
            with contextlib.suppress(ValueError):           # it stops with an error
                if differ(r[quantity], r.having(mistake).shown(quantity)):
                    return True
        return False
    assert [flag for flag in vector(name).flags if not shows(CATALOGUE[flag])] == []


def test_every_mistake_changes_some_vector_and_says_what_to_do() -> None:
    later = set(CATALOGUE) - {flag for name in NAMES for flag in vector(name).flags}
    for name in sorted(NAMES, key=lambda name: name.startswith("trajectory")):
        right = {q: reference(name)[q] for q in LATER if q in reference(name).names()} | vector(name).expected
        later -= {m for m in sorted(later) if oracle_report.visible(right, composed.values(
            vector(name).problem, (CATALOGUE[m],), right))}
    assert not later
    assert len(CATALOGUE) >= 40
    for mistake in CATALOGUE.values():
        assert all((mistake.what, mistake.why, mistake.remedy, mistake.group))
    assert len({(m.what, m.remedy) for m in CATALOGUE.values()}) == len(CATALOGUE)


def bent(kind: int, value: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Return wrong values that no entry of the catalogue gives."""
    arrays = [np.array(X) for X in value]
    X = arrays[-1]
    if kind == 0:
        arrays = [0.37 * Y for Y in arrays]
    elif kind == 1:
        X[0, 0] += 0.1 * np.abs(X).max()
    elif kind == 2:
        X[:, -1] *= 1.7
    elif kind == 3:
        X[0] *= -3
    elif kind == 4:
        arrays[0] = arrays[0] + 0.3 * np.abs(arrays[0]).max()
    elif kind == 5:
        arrays = [np.sign(Y) * np.abs(Y)**1.3 for Y in arrays]
    elif kind == 6:
        X[np.diag_indices(min(X.shape))] *= 1.2
    elif kind == 7:
        arrays = [Y + 0.02 * np.random.default_rng(1).standard_normal(Y.shape) * np.abs(Y).max() for Y in arrays]
    elif kind == 8:
        arrays = [Y[::-1] * 1.1 for Y in arrays]
    else:
        arrays[-1] = 2.5 * X
    return tuple(arrays)


@pytest.mark.parametrize(("name", "quantity", "kind"), [
    *(("gaussian-tanh", "A", kind) for kind in (0, 1, 5)),
    *(pytest.param("gaussian-tanh", "A", kind, marks=pytest.mark.slow) for kind in (2, 3, 4, 6, 7, 8, 9)),
    *(pytest.param("bernoulli-tanh", "step", kind, marks=pytest.mark.slow) for kind in (0, 3, 7))])
def test_what_is_not_in_the_catalogue_is_not_explained(name: str, quantity: str, kind: int) -> None:
    right = reference(name)
    theirs = {q: right[q] for q in ("A", "G", "step")} | {quantity: bent(kind, right[quantity])}
    report = check(vector(name).problem, theirs)
    assert not report.ok
    if kind == 0 and quantity == "step":
        assert [e.names for e in report.explanations] == [("step times 0.37",)]
        return
    assert not report.explanations
    row = next(row for row in report.rows if row.quantity == quantity)
    assert row.where
    if kind > 0 or quantity != "G":                         # of G alone, it is a loss times 0.37
        assert "not explained; the error is in" in str(report)
    if kind in (1, 2, 3, 6, 9):
        assert "right in layer 0" in row.where
    if kind == 0:
        assert report.scales is not None
        assert report.scales[quantity].value == pytest.approx(0.37)


@pytest.mark.parametrize("name", SOME)
def test_right_values_are_not_accused(name: str) -> None:
    rng = np.random.default_rng(0)

    def noisy(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(noisy(X) for X in value)
        return value * (1 + 1e-15 * rng.uniform(-1, 1, np.shape(value)))
    v = vector(name)
    assert check(v.problem, v.expected).ok
    assert check(v.problem, {q: noisy(value) for q, value in v.expected.items()}).ok


def test_a_factor_is_written_in_the_counts_of_the_problem() -> None:
    p = vector("categorical-tanh").problem
    N, C, M = len(p.x), p.sizes[-1], len(p.targets)
    G = reference("categorical-tanh")["G"]
    for factor, text in ((N**2, "N^2"), (1 / N, "N^-1"), (C / N, "N^-1 C"), (2 * N**0.5, "N^0.5 2"), (M, "M"),
                         (-1, "-1")):
        report = check(p, {"G": [factor * X for X in G]})
        assert report.scales is not None
        assert report.scales["G"].text == text


@pytest.mark.parametrize("c", slow_but((0.1, -0.01, 0.123, 1.7), -0.01))
def test_a_learning_rate_is_told_and_what_follows_from_it(c: float, no_time_limit: None) -> None:
    name = "categorical-tanh"
    p, r = vector(name).problem, reference(name)
    scaled = tuple(c * V for V in r["step"])
    report = check(p, {"A": r["A"], "gradient": r["gradient"], "step": scaled})
    assert [e.names for e in report.explanations if len(e.names) == 1] == [(f"step times {c:.12g}",)]
    assert f"the step is {c:.12g} times what it should be" in str(report)
    assert "(a learning rate?)" in str(report)
    # The gradient, and the step from it; a clip that sees the step; another mistake beside it.
    moved = r.taking(gradient=tuple(c * V for V in r["gradient"]))
    both = {"gradient": moved["gradient"], "step": moved["step"], "kl_clip": moved["kl_clip"]}
    assert (f"gradient times {c:.12g}",) in [e.names for e in check(p, both).explanations]
    other = r.having(CATALOGUE["full damping on both factors"])
    report = check(p, {"A": r["A"], "G": r["G"], "step": tuple(c * V for V in other["step"])})
    assert [e.names for e in report.explanations] == [("full damping on both factors", f"step times {c:.12g}")]


def test_a_factor_that_the_catalogue_has_is_no_learning_rate() -> None:
    p = vector("categorical-tanh").problem.replace(weight_decay=0.0)
    r = Reference(p)
    for mistake in ("gradient summed over the examples", "ascent in place of descent"):
        wrong = r.having(CATALOGUE[mistake])
        report = check(p, {"gradient": wrong["gradient"], "step": wrong["step"]})
        assert mistake in [e.names[0] for e in report.explanations]
        assert not [e for e in report.explanations if "times 0" in e.names[-1]]
        assert "(a learning rate?)" not in str(report)


@pytest.mark.parametrize("sizes", slow_but(((3, 3, 3), (3, 3), (2, 3, 4)), (3, 3)))
def test_the_numbers_of_the_transposed_weights_are_told(sizes: tuple[int, ...]) -> None:
    """Square matrices fit both ways: W of equal widths with the biases apart, or [W b] where each width is one more."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((m, n + 1)) for n, m in itertools.pairwise(sizes)]
    p = Problem(sizes, ("tanh",) * (len(sizes) - 2), "gaussian", weights, rng.standard_normal((5, sizes[0])),
                rng.standard_normal((5, sizes[-1])), 0.1)
    r = Reference(p)
    one_more = sizes[1] != sizes[0]
    turned = p.replace(weights=[W.T if one_more else np.column_stack([W[:, :-1].T, W[:, -1]]) for W in weights])
    theirs = {q: r[q] for q in ("G", "gradient", "step")}
    for given in (theirs, theirs | {q: r.having(CATALOGUE["transposed weights"]).shown(q) for q in ("gradient", "step")
                                    if one_more}):
        report = check(turned, given)
        assert report.turned
        assert "these values belong to the transposed weights" in str(report)
        assert not check(p, theirs).turned
    bent = {"gradient": tuple(1.1 * V**2 for V in r["gradient"])}
    assert not check(turned, bent).turned


def test_what_follows_from_wrong_factors_is_not_accused_again() -> None:
    p = vector("categorical-tanh").problem
    r = reference("categorical-tanh")
    A = tuple(1.234 * X for X in r["A"])
    report = check(p, {"A": A, "G": r["G"], "step": r.taking(A=A)["step"]})
    assert "step: correct, given your values for its inputs" in str(report)


def test_a_trajectory_is_followed_to_its_first_difference() -> None:
    name = "trajectory-categorical"
    p, r = vector(name).problem, reference(name)
    assert p.trajectory is not None
    mistake = CATALOGUE["rho without the weight decay"]
    wrong = r.having(mistake)
    given = ("trajectory_lambda", "trajectory_rho", "trajectory_alpha")
    diagnosis = Diagnosis(r, {quantity: wrong[quantity] for quantity in given})
    assert diagnosis.first_difference()[:2] == (p.trajectory.T1, "rho")         # type: ignore[index]
    assert diagnosis.fits((mistake,))
    assert not diagnosis.fits(())
    report = check(p, {"trajectory_lambda": r["trajectory_lambda"][:3]})
    assert report.ok
    assert report.given_steps == (3, 10)
    assert not check(p, {"trajectory_lambda": 2 * r["trajectory_lambda"][:3]}).ok
    late = {"trajectory_weights": tuple(np.concatenate([W[:7], 1.01 * W[7:]]) for W in r["trajectory_weights"])}
    assert Diagnosis(r, late).first_difference()[:2] == (8, "weights")          # type: ignore[index]


def test_numbers_written_with_few_digits_are_right_to_those() -> None:
    p, G = vector("categorical-tanh").problem, reference("categorical-tanh")["G"]
    assert check(p, {"G": [[[float(f"{x:.8g}") for x in row] for row in X] for X in G]}).ok
    assert check(p, {"G": [X.astype(np.float32) for X in G]}).ok
    assert not check(p, {"G": [(1 + 1e-3) * X.astype(np.float32) for X in G]}).ok


def test_lists_of_numpy_numbers_and_mixed_precisions_are_read() -> None:
    p, r = vector("categorical-tanh").problem, reference("categorical-tanh")
    assert check(p, {"loss": np.float64(r["loss"]), "pi": list(r["pi"])}).ok
    assert check(p, {"loss": np.array(r["loss"]), "A": tuple(tuple(map(tuple, X.tolist())) for X in r["A"])}).ok
    # What came in single precision, and what is made from that, has no more digits, whatever else is given.
    assert check(p, {"G": [X.astype(np.float32) for X in r["G"]], "A": r["A"], "loss": float(np.float32(r["loss"]))}).ok

    class Elsewhere:
        def __array__(self, *arguments: Any, **rest: Any) -> Any:
            raise TypeError("can't convert a cuda tensor to numpy")
    with pytest.raises(oracle.ProblemError, match=r"G\[0\] cannot be turned into an array: can't convert"):
        check(p, {"G": [Elsewhere(), Elsewhere()]})


@pytest.mark.parametrize(("option", "value"), [("rtol", -1.0), ("rtol", np.nan), ("samples", 0), ("samples", 2.5)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    p, r = vector("categorical-tanh").problem, reference("categorical-tanh")
    with pytest.raises(oracle.ProblemError, match=f"{option} must be"):
        check(p, {"G": r["G"]}, **{option: value})


def test_a_mu_that_is_nothing_but_rounding_is_not_compared_with_itself() -> None:
    """Where the first step has no last one, mu is 0; and where Delta alone is the minimum, it is 1e-16."""
    r = reference("trajectory-categorical")
    mu = r["trajectory_mu"].copy()
    assert mu[0] == 0
    mu[0] = 1e-17
    assert Diagnosis(r, {"trajectory_mu": mu}).fits(())
    assert Diagnosis(r, {"trajectory_mu": mu}).first_difference() is None
    mu[0] = 1e-3
    assert Diagnosis(r, {"trajectory_mu": mu}).first_difference()[:2] == (1, "mu")      # type: ignore[index]


def test_wrong_values_are_shared_while_there_is_room() -> None:
    right, wrong = np.zeros(3), np.ones(3)
    cache = Cache(room=[30.0])
    assert cache.has_room_for(wrong, ("a mistake",))
    assert not cache.has_room_for(wrong, ("a mistake",))
    assert cache.has_room_for(right, ())
    assert not Cache(room=[20.0], bounded=True).has_room_for(right, ())
    assert not cache.has_room_for({"A": wrong}, ("a mistake",)), "the size of a dict is not known"


@pytest.mark.parametrize(("name", "given"), [("categorical-tanh", "step"), ("trajectory-categorical",
                                                                             "trajectory_weights")])
def test_without_room_the_search_finds_the_same(name: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = vector(name).problem
    theirs = {given: Reference(p).having(CATALOGUE["pi left out"]).shown(given)}
    found = Diagnosis(Reference(p), theirs).explanations()
    assert found
    for module in (graph, trajectory):
        monkeypatch.setattr(module, "ROOM", 0)
    r = Reference(p)
    assert [e.names for e in Diagnosis(r, theirs).explanations()] == [e.names for e in found]
    assert not [key for key in r._kept if key[0] != "below" and key[1]], "wrong values are shared"


@pytest.mark.slow
def test_a_right_trajectory_of_many_weights_is_not_accused() -> None:
    """The order of the examples in a batch changes the rounding of each of 345,400 numbers."""
    rng, sizes = np.random.default_rng(0), (784, 110, 50, 10)
    weights = [rng.standard_normal((m, n + 1)) / np.sqrt(n) for n, m in itertools.pairwise(sizes)]
    rows, half = np.arange(200), np.arange(100)
    drawn = [rng.integers(0, 10, 100) for _ in range(4)]
    along = Trajectory(1.0, 2, 2, 1, 0.9, 0.9, 0.95, 1e-3, 10.0, 0.0, "block-diagonal", True,
                       tuple(Batch(rows, half, half + 100, y) for y in drawn))
    p = Problem(sizes, ("tanh", "tanh"), "categorical", weights, rng.standard_normal((200, 784)),
                rng.integers(0, 10, 200), 0.1, 1e-3, trajectory=along)
    turned = dataclasses.replace(along, batches=tuple(Batch(rows[::-1], half + 100, half, y[::-1]) for y in drawn))
    theirs = Reference(p.replace(trajectory=turned))["trajectory_weights"]
    assert any(np.any(a != b) for a, b in zip(theirs, Reference(p)["trajectory_weights"], strict=True))
    assert check(p, {"trajectory_weights": theirs}, diagnose=False).ok


def test_a_number_is_found_where_G_has_lost_its_digits() -> None:
    """With saturated outputs, G is nearly 0 at most temperatures; the gradient is not."""
    p = vector("saturated-categorical").problem
    hot = Reference(p).having(next(f for f in FAMILIES if f.name.startswith("temperature")).at(0.575))
    report = check(p, {name: hot.shown(name) for name in ("G", "gradient", "loss")})
    assert [e.names for e in report.explanations] == [("temperature 0.575",)]


def test_what_is_not_explained_together_is_explained_one_by_one() -> None:
    """A factor of 2 in G, and another factor in A that is of no program."""
    rng = np.random.default_rng(0)
    p = Problem((30, 20), (), "gaussian", [rng.standard_normal((20, 31))], rng.standard_normal((4, 30)),
                rng.standard_normal((4, 20)), 0.1)
    r = Reference(p)
    report = check(p, {"G": [2 * np.eye(20)], "A": [1.5 * X for X in r["A"]]})
    assert not report.explanations
    assert report.one_by_one is not None
    assert ("G twice too large",) in [e.names for e in report.one_by_one["G"]]
    assert report.one_by_one["A"] == []


def test_a_quantity_of_another_name_is_refused_with_the_nearest_one() -> None:
    for wrong, right in (("Gs", "G"), ("setp", "step"), ("Fisher", "fisher")):
        with pytest.raises(KeyError, match=rf"'{wrong}' is not a quantity .*; did you mean {right}\?"):
            _ = reference("categorical-tanh")[wrong]
    with pytest.raises(KeyError, match="'xyzzy' is not a quantity"):
        _ = reference("categorical-tanh")["xyzzy"]


def test_what_the_problem_cannot_give_leaves_the_rest_judged() -> None:
    p = vector("categorical-tanh").problem.replace(damping=0.0)
    r = Reference(p)
    report = check(p, {"A": r["A"], "step": r["A"]})
    assert [row.verdict for row in report.rows] == ["cannot be computed", "right"]
    assert not report.ok
    assert "singular" in str(report)


def test_single_precision_printed_as_double_is_held_to_what_it_has() -> None:
    p, G = vector("categorical-tanh").problem, reference("categorical-tanh")["G"]
    single = [X.astype(np.float32).astype(float).tolist() for X in G]
    assert check(p, {"G": single}).ok
    assert not check(p, {"G": [(X * (1 + 1e-6)).tolist() for X in G]}).ok


def test_a_matrix_that_lost_its_symmetry_is_told_so() -> None:
    p, A = vector("categorical-tanh").problem, reference("categorical-tanh")["A"]
    for bend, text in ((np.tril, "zero above the diagonal"), (np.triu, "zero below the diagonal"),
                       (lambda X: np.tile(X[:1], (len(X), 1)), "all rows are the same")):
        report = check(p, {"A": [bend(X) for X in A]})
        assert text in report.rows[0].where


@pytest.mark.parametrize(("theirs", "message"), [
    ({}, "must hold quantities by name"), ({"B": 1}, "'B' is not a quantity"),
    ({"G": 3}, "G must be a list with one array"),
    ({"G": [[[1, 2]], "x"]}, "G[1] must be an array"), ({"loss": "3"}, "loss must be a number"),
    ({"loss": [1, 2]}, "loss must be a number"), ({"A": [[[np.nan]], [[1]]]}, "A[0] must be finite"),
    ({"trajectory_M": [1]}, "it has no trajectory"), ({"G": {"a": 1}}, "G must be a list"),
])
def test_malformed_quantities_are_refused_by_name(theirs: dict[str, Any], message: str) -> None:
    with pytest.raises(oracle.ProblemError) as caught:
        check(vector("categorical-tanh").problem, theirs)
    assert message in str(caught.value), str(caught.value)


def test_the_place_of_an_error_is_said() -> None:
    S = np.arange(1.0, 17).reshape(4, 4)
    for change, text in (((slice(None), 3), "only the last column (the bias)"),
                         ((slice(0, 1), slice(None)), "rows 0"), ((slice(None), slice(0, 1)), "columns 0"),
                         ((slice(None), slice(0, 3)), "all columns but the last")):
        T = S[:3].copy()
        T[change] += 1 if change != (slice(0, 1), slice(None)) else np.array([1, 1, 1, 1])
        assert text in place(S[:3], T, 1e-9)
    assert place(S, S + np.eye(4), 1e-9) == "only the diagonal"
    assert place(S, S + 1 - np.eye(4), 1e-9) == "all but the diagonal"
    assert "expected (4, 4)" in place(S, S[:3], 1e-9)
    assert "its transpose" in place(S[:3], S[:3].T, 1e-9)
    last = S.copy()
    last[-1] += 1
    last[:, -1] += 1
    assert "the bias, if this is A" in place(S, last, 1e-9)


# For test suites.


def test_the_assertion_s_message_is_the_diagnosis() -> None:
    v = vector("categorical-tanh")
    assert_kfac_factors(v.problem, v.expected["A"], v.expected["G"])
    assert_kfac_factors(v.problem, v.expected["A"], v.expected["G_empirical"], "empirical")
    assert_kfac(v.problem, {"step": v.expected["step"]})
    with pytest.raises(AssertionError, match="the training labels were used"):
        assert_kfac_factors(v.problem, v.expected["A"], v.expected["G_empirical"])
    with pytest.raises(ValueError, match="expectation must be one of"):
        assert_kfac_factors(v.problem, v.expected["A"], v.expected["G"], "mc")


def test_differ_sees_shapes_numbers_and_nothing_else() -> None:
    assert differ((np.eye(2),), (np.eye(3),))
    assert differ(1.0, 1.1)
    assert not differ(1.0, 1.0 + 1e-9)
    assert not differ(1.0, None)


@pytest.mark.slow
def test_lambda_alone_wrong_in_the_last_step_is_not_searched_for_pairs(monkeypatch):
    v = oracle.vector("trajectory-categorical")
    theirs, tried = np.array(v.expected["trajectory_lambda"]), []
    theirs[-1] *= 1.1
    fits = Diagnosis.fits
    monkeypatch.setattr(Diagnosis, "fits", lambda self, mistakes: tried.append(mistakes) or fits(self, mistakes))
    report = oracle.check(v.problem, {"trajectory_lambda": theirs})
    assert not report.explanations
    assert report.first_step[:2] == (10, "lambda")
    assert {len(mistakes) for mistakes in tried} <= {0, 1}
    swapped = oracle.check(v.problem, {"trajectory_lambda": Reference(v.problem).having(
        oracle.CATALOGUE["M without damping"])["trajectory_lambda"]})
    assert swapped.ok or ("M without damping",) in [e.names for e in swapped.explanations]
