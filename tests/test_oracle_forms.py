"""The forms that other programs write their values in: each is taken as ours or refused in one line that says how."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfac_ref import oracle
from kfac_ref.oracle import KLClip, Problem, ProblemError, Reference, check, files, forms, read_quantities, vector
from kfac_ref.oracle.files import plain
from tests.test_oracle_cli import EXPECTED, NAME, run, save

PROBLEM = vector(NAME).problem
A, G, GRADIENT = (vector(NAME).expected[name] for name in ("A", "G", "gradient"))
TORCH = {f"{2 * i}.{name}": V[:, part] for i, V in enumerate(GRADIENT)
         for name, part in (("weight", slice(-1)), ("bias", -1))}


def nested(value: Any) -> Any:
    """Return nested lists, as `json.dumps` of somebody's arrays has them."""
    if isinstance(value, dict):
        return {str(key): nested(item) for key, item in value.items()}
    return [nested(item) for item in value] if isinstance(value, (list, tuple)) else np.asarray(value).tolist()


def same(found: Any, right: Any) -> bool:
    return len(found) == len(right) and all(map(np.array_equal, found, right))


def refused(theirs: Any, problem: Problem = PROBLEM) -> str:
    with pytest.raises(ProblemError) as caught:
        check(problem, theirs)
    return str(caught.value)


@pytest.mark.parametrize("theirs", [
    {"A_0": A[0], "A_1": A[1]}, {"A1": A[1], "A0": A[0]}, {"A.0": A[0], "A.1": A[1]}, {"A": {"1": A[1], "0": A[0]}},
    {"A": {0: A[0], 1: A[1]}}])
def test_layers_by_number_become_a_list(theirs: dict[str, Any], tmp_path: Path) -> None:
    reference = Reference(PROBLEM)
    assert same(forms.coerced(reference, theirs)["A"], A)
    assert same(read_quantities(save(tmp_path / "a.json", nested(theirs)))["A"], nested(A))
    if "A" not in theirs:
        np.savez(tmp_path / "a.npz", **theirs)
        assert same(read_quantities(tmp_path / "a.npz")["A"], A)


@pytest.mark.parametrize(("theirs", "words"), [
    ({"A_0": A[0], "A_2": A[1]}, "must have layers that are counted from 0"),
    ({"A_1": A[0], "A_2": A[1]}, "must have layers that are counted from 0"),
    ({"A": A, "A_0": A[0]}, "A_0 and A are both given"),
    ({"A": {"fc1": A[0], "fc2": A[1]}}, "A must be a list in the order of the layers"),
    ({"A": A[0]}, "A is one matrix: a list with one matrix for each of the 2 layers"),
    ({"A": A[:1]}, "A must hold one array per layer: expected 2, got 1"),
    ({"A": [X.diagonal() for X in A]}, "A[0] is only the diagonal (4 numbers): the whole matrix is wanted, 4 x 4"),
    ({"fisher": np.ones(23)}, "fisher is only the diagonal (23 numbers): the whole matrix is wanted, 23 x 23"),
    ({"gradient": list(TORCH.values())}, "gradient has weights and biases apart, as torch has them: give --layout"),
    ({"gradient": list(zip(*[iter(TORCH.values())] * 2, strict=True))}, "gradient has weights and biases apart"),
    ({"gradient": TORCH}, 'an object with the names "0", "1"'),
    ({"loss": [[1.0]]}, "loss must be a number, got list"), ({"A": [[[None]], [[1]]]}, "are null, NaN or infinite"),
])
def test_what_the_shapes_do_not_decide_is_refused_with_the_form_that_is_wanted(theirs: Any, words: str) -> None:
    for form in (theirs, {name: nested(value) for name, value in theirs.items()}):
        message = refused(form)
        assert words in message
        assert "\n" not in message


def test_one_layer_needs_no_list_and_equal_layers_may_be_stacked() -> None:
    one = Problem((2, 2), (), "gaussian", [np.ones((2, 3))], [[1.0, 2.0]], [[0.0, 1.0]])
    for X in (Reference(one)["A"][0], Reference(one)["A"][0].tolist(), plain(Reference(one)["A"][0])):
        assert check(one, {"A": X}).ok
    weights = np.random.default_rng(0).standard_normal((3, 2, 3))
    equal = Problem((2, 2, 2, 2), ("tanh", "tanh"), "gaussian", list(weights), [[1.0, 2.0]], [[0.0, 1.0]])
    right = np.stack(Reference(equal)["A"])
    for stacked in (right, right.tolist(), plain(right)):
        assert check(equal, {"A": stacked}).ok
    assert not check(equal, {"A": right[::-1]}).ok


def test_a_trajectory_may_be_a_list_of_steps_or_shorter() -> None:
    v = vector("trajectory-categorical")
    right = v.expected["trajectory_weights"]
    steps = [[W[t] for W in right] for t in range(len(right[0]))]
    for theirs in (steps, nested(steps), plain(steps), plain(right)):
        assert same(forms.coerced(Reference(v.problem), {"trajectory_weights": theirs})["trajectory_weights"], right)
    short = forms.coerced(Reference(v.problem), {"trajectory_weights": nested(steps[:5]), "trajectory_M": [1.0] * 5})
    assert same(short["trajectory_weights"], [W[:5] for W in right])
    assert short["trajectory_M"].shape == (5,)
    turned = [[W.T for W in step] for step in steps]
    assert "trajectory_weights must hold one array per layer: expected 2, got 10" in refused(
        {"trajectory_weights": turned}, v.problem)


@pytest.mark.parametrize("gradient", [
    TORCH, list(TORCH.values()), [list(TORCH.values())[:2], list(TORCH.values())[2:]]])
def test_torch_s_weights_and_biases_are_joined(gradient: Any, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    theirs = save(tmp_path / "t.json", {"gradient": nested(gradient), "A": nested(A)})
    assert same(read_quantities(theirs, "torch")["gradient"], nested(GRADIENT))
    status, out, err = run(capsys, "check", NAME, theirs, "--layout", "torch")
    assert (status, err) == (0, ""), err
    assert "all right" in out
    assert "--layout" in run(capsys, "check", NAME, theirs, "--layout", "torch", "--dialect", "backpack")[2]
    assert "--layout must be one of torch" in run(capsys, "check", NAME, theirs, "--layout", "jax")[2]


def test_torch_s_names_in_an_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state dict is stored beside x and y, gradients under their names; the bias of the first layer is left out."""
    weights = [PROBLEM.weights[0][:, :-1], PROBLEM.weights[1]]
    np.savez(tmp_path / "arrays.npz", **{"0.weight": weights[0].astype(np.float32),
        "2.weight": weights[1][:, :-1].astype(np.float32), "2.bias": weights[1][:, -1].astype(np.float32)},
        x=PROBLEM.x, y=PROBLEM.y, previous_k=3, previous_A_0=np.eye(3), previous_A_1=np.eye(3), previous_G_0=np.eye(2),
        previous_G_1=np.eye(5), **{"direction.0.weight": weights[0], "direction.2.weight": weights[1][:, :-1],
                                  "direction.2.bias": weights[1][:, -1]}, delta_0_0=weights[0], delta_0_1=weights[1])
    status, _, err = run(capsys, "problem", "new", tmp_path / "arrays.npz", "--layout", "torch", "--hidden", "tanh",
                         "--out", tmp_path / "p.json", "--kl-clip", "0.001,0.1", "--damping", "0.1")
    assert (status, err) == (0, ""), err
    made = Problem.read(tmp_path / "p.json")
    assert (made.bias, made.dtype, made.kl_clip) == ((False, True), "float32", KLClip(0.001, 0.1))
    assert same(made.weights, [W.astype(np.float32) for W in weights])
    assert made.direction is not None
    assert same(made.direction, weights)
    assert made.delta_0 is not None
    assert same(made.delta_0, weights)
    assert made.previous is not None
    assert made.previous.k == 3
    assert same(made.previous.A, [np.eye(3), np.eye(3)])
    step, (A0, A1) = Reference(made)["step"], Reference(made)["A"]
    np.savez(tmp_path / "t.npz", **{"step.0.weight": step[0], "step.2.weight": step[1][:, :-1],
                                    "step.2.bias": step[1][:, -1]}, A0=A0, A1=A1)
    assert run(capsys, "check", tmp_path / "p.json", tmp_path / "t.npz", "--layout", "torch")[0] == 0


@pytest.mark.parametrize(("content", "words"), [
    (lambda file: np.save(file, np.eye(2)), "is a .npy file, one array without a name: write np.savez("),
    (lambda file: np.savez(file, A=np.array([None], dtype=object)), "is not a readable npz file: ValueError: Object"),
    (lambda file: file.write(b"\x80\x04\x95pickle"), "is not UTF-8 text"),
    (lambda file: file.write(b'{"A": NaN}'), "all values must be finite; leave out a quantity"),
    (lambda file: zipfile.ZipFile(file, "w").writestr("archive/data.pkl", b"x"), "is a file of torch.save, a pickle"),
])
def test_files_of_another_kind_are_refused_in_words(content: Any, words: str, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    path, file = tmp_path / "a", io.BytesIO()
    content(file)
    path.write_bytes(file.getvalue())
    status, out, err = run(capsys, "check", NAME, path)
    assert (status, out) == (2, "")
    assert words in err
    assert "codec" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("field", "name", "words"), [
    ("hidden", "nn.Sigmoid", "it is called logistic here"), ("hidden", "Linear", "is called identity here"),
    *(("hidden", name, "out of scope, because") for name in (
        "elu", "nn.GELU", "silu", "leaky_relu", "LeakyReLU", "relu6", "BatchNorm1d", "layer_norm", "Dropout", "conv2d",
        "MultiheadAttention")),
    ("hidden", "ReLU", "did you mean relu?"), ("hidden", "tahn", "did you mean tanh?"),
    ("likelihood", "mse_loss", "it is called gaussian here"), ("likelihood", "MSELoss", "--noise-variance C/2"),
    ("likelihood", "nn.CrossEntropyLoss", "it is called categorical here"),
    ("likelihood", "nll_loss", "it is called categorical here"), ("likelihood", "bce", "it is called bernoulli here"),
    ("likelihood", "BCEWithLogitsLoss", "it is called bernoulli here"), ("likelihood", "L1Loss", "out of scope"),
    ("likelihood", "gausian", "did you mean gaussian?"),
])
def test_the_names_of_other_libraries(field: str, name: str, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        PROBLEM.replace(**{field: [name] if field == "hidden" else name})
    assert words in str(caught.value)
    assert ("did you mean" in str(caught.value)) == ("did you mean" in words)


# Layers without bias, and a noise variance.


def twins(bias: Any, v: float = 1.0) -> tuple[Problem, Problem, list[Any]]:
    """Return a problem without some biases, the one whose biases are 0 with unit variance, and the kept columns."""
    rng = np.random.default_rng(0)
    widths = [3 + bias[0], 4 + bias[1], 2 + bias[2]]
    W = [rng.standard_normal(shape) for shape in zip((4, 2, 2), widths, strict=True)]
    kept = [slice(None) if b else slice(-1) for b in bias]
    full = [V if b else np.column_stack([V, np.zeros(len(V))]) for V, b in zip(W, bias, strict=True)]
    rest: dict[str, Any] = {"sizes": (3, 4, 2, 2), "hidden": ("tanh", "softplus"), "likelihood": "gaussian",
                            "x": rng.standard_normal((6, 3)), "y": rng.standard_normal((6, 2)), "damping": 0.3}
    return Problem(weights=W, bias=list(bias), noise_variance=v, **rest), Problem(weights=full, **rest), kept


@pytest.mark.parametrize("bias", [(False, False, False), (True, False, True), (False, True, False)])
def test_a_problem_without_biases_has_the_values_of_the_one_whose_biases_are_0(bias: Any) -> None:
    p, twin, kept = twins(bias)
    r, s = Reference(p), Reference(twin)
    for name in ("z", "loss"):
        assert np.allclose(r[name], s[name], rtol=1e-13, atol=0)
    for i, part in enumerate(kept):
        assert np.allclose(r["A"][i], s["A"][i][part, part], rtol=0, atol=1e-13)
        assert np.allclose(r["G"][i], s["G"][i], rtol=0, atol=1e-13)
        assert np.allclose(r["gradient"][i], s["gradient"][i][:, part], rtol=0, atol=1e-13)
    flat = np.concatenate([np.arange(V.size).reshape(V.shape[::-1]).T[:, part].T.ravel() + offset for V, part, offset in
                           zip(twin.weights, kept, np.cumsum([0, *(V.size for V in twin.weights)]), strict=False)])
    assert np.allclose(r["fisher"], s["fisher"][np.ix_(flat, flat)], rtol=0, atol=1e-13)
    assert check(p, {name: r[name] for name in r.names()}).ok


def test_the_noise_variance_divides_the_loss_and_the_fisher() -> None:
    p, twin, _ = twins((True, True, True), 0.3)
    r, s = Reference(p), Reference(twin)
    for name in ("loss", "fisher"):
        assert np.allclose(r[name], s[name] / 0.3, rtol=1e-13, atol=1e-14)
    for name, power in (("gradient", 1), ("G", 1), ("G_empirical", 2), ("A", 0)):
        for X, Y in zip(r[name], s[name], strict=True):
            assert np.allclose(X, Y / 0.3**power, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize(("bias", "stored"), [((True, False, True), [True, False, True]), ((False,) * 3, False)])
def test_version_2_comes_back_from_its_file(bias: Any, stored: Any, suffix: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(files.__file__).parent / "problem.schema.json").read_text())
    p = twins(bias, 0.3)[0]
    p.write(tmp_path / f"p.{suffix}")
    content = Problem.read(tmp_path / f"p.{suffix}").plain()
    assert content == p.plain()
    assert (content["version"], content["network"]["bias"], content["noise_variance"]) == (2, stored, 0.3)
    jsonschema.validate(content, schema)
    content["version"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
    with pytest.raises(ProblemError, match="bias needs version 2"):
        Problem.of(content)
    del content["network"]["bias"]
    with pytest.raises(ProblemError, match="noise_variance needs version 2"):
        Problem.of(content)


@pytest.mark.parametrize("name", oracle.published.names())
def test_a_problem_that_needs_nothing_new_is_written_as_version_1(name: str) -> None:
    """The published files were written by a script that knows no version 2."""
    content = files.load(oracle.published.FOLDER / f"{name}.json")
    written = vector(name).problem.plain()
    assert written["version"] == content["version"] == 1
    assert written["network"] == content["network"]
    assert set(written) == set(content) - {"expected", "flags"}


@pytest.mark.parametrize(("changes", "words"), [
    ({"bias": [True]}, "network.bias must be true, false, or a list of these for the 2 layers"),
    ({"bias": [1, 0]}, "network.bias must be true, false"), ({"bias": False}, "weights[0] must have shape (2, 3)"),
    ({"noise_variance": 0.3}, "noise_variance belongs to the gaussian likelihood, not to categorical"),
    ({"noise_variance": 0}, "noise_variance must be above 0"), ({"noise_variance": "1"}, "must be a number"),
])
def test_a_malformed_bias_or_variance_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        PROBLEM.replace(**changes)
    assert words in str(caught.value)


def test_arrays_without_biases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = [W[:, :-1] for W in PROBLEM.weights]
    arrays = save(tmp_path / "a.json", {"weights": nested(apart), "x": nested(PROBLEM.x), "y": nested(PROBLEM.y)})
    new = ("problem", "new", arrays, "--hidden", "tanh", "--out", tmp_path / "p.json")
    status, _, err = run(capsys, *new)
    assert status == 2
    assert "; --bias none would fit" in err
    assert run(capsys, *new, "--bias", "none")[0] == 0
    assert Problem.read(tmp_path / "p.json").bias == (False, False)
    biases = [None, PROBLEM.weights[1][:, -1]]
    with_one = Problem.from_arrays(apart, PROBLEM.x, PROBLEM.y, biases=biases, hidden=["tanh"])
    assert with_one.bias == (False, True)
    with pytest.raises(ProblemError, match="must not be given with the layout 'torch'"):
        Problem.from_arrays(apart, PROBLEM.x, PROBLEM.y, bias="none", layout="torch")


@pytest.mark.parametrize(("content", "options", "words"), [
    ({"weights": [[[1, 2], [3]]]}, [], "weights[0] must be a rectangular array"),
    ({"weights": [{"shape": [1], "data": [2]}]}, [], "weights[0] must have shape"),
    ({"weights": [[[1, 2]]], "biases": [[1], [2]]}, [], "biases must hold one vector per layer: expected 1, got 2"),
    ({"weights": [[[1]], [1, 2]]}, ["--layout", "torch"], "biases[0] must have shape (1,), got (2,)"),
    ({"weights": [[1, 2]]}, ["--layout", "torch"], "weights[0] must be a matrix of weights, or the vector"),
    ({"weights": [[[1]], [1], [2]]}, ["--layout", "torch"], "weights[2] must be a matrix of weights, or the vector"),
    ({"weights": [[[1, 2]]]}, ["--kl-clip", "1"], "--kl-clip must be two numbers, such as"),
    ({"weights": [[[1, 2]]]}, ["--kl-clip", "1,0"], "kl_clip.learning_rate must be above 0"),
    ({"weights": [[[1, 2]]]}, ["--noise-variance", "-1"], "noise_variance must be above 0"),
    ({"weights": [[[1, 2]]], "previous": 3}, [], "previous must be an object with k, A, G"),
    ({"weights": [[[1, 2]]], "previous_A": []}, [], "previous: k is missing"),
    ({"weights": [[[1, 2]]], "direction": 3}, [], "direction must be a list"),
    ({"weights": {"fc": [[1, 2]]}}, [], "weights must be a list in the order of the layers"),
])
def test_arrays_that_make_no_problem_end_with_2(content: Any, options: list[str], words: str, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    arrays = save(tmp_path / "a.json", {"x": [[1]], "y": [[0]]} | content)
    options = ["--likelihood", "gaussian", "--out", str(tmp_path / "p.json"), *options]
    status, _, err = run(capsys, "problem", "new", arrays, *options)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


# Hostile files: everything is bounded before it is converted.


@pytest.mark.slow
@pytest.mark.parametrize(("text", "words"), [
    (b"[" + b"[]," * 1_000_001 + b"0]", "lists, more than the limit of 1,000,000"),
    (b"[" + b"0," * 4_000_001 + b"0]", "4,000,001 values, more than the limit of 4,000,000 for JSON; write np.savez"),
    (b"[" + b"{}," * 100_001 + b"0]", "objects, more than the limit of 100,000"),
    (b'{"a":0' + b',"a":0' * 100_001 + b"}", "names, more than the limit of 100,000"),
    (b"{" + b",".join(b'"%d":0' % i for i in range(50_000)) + b',"1":0}', "'1' occurs twice in one object"),
    (b'{"a":' * 900 + b"0" + b"}" * 900, "is nested deeper than the limit of 32 levels"),
    (b'["]",' * 900 + b"0" + b"]" * 900, "is nested deeper than the limit of 32 levels"),   # brackets in strings
    (rb'["\"]",' * 900 + b"0" + b"]" * 900, "is nested deeper than the limit of 32 levels"),
    (b"[" * 900 + b'"' + b"]" * 900, "is nested deeper"), (b'"' + b'\\"' * 10**6, "is not JSON"),
    (b'"' + b"\\" * (10**6 + 1), "is not JSON"), (b" " * 2**26 + b"0", "is larger than the limit of 67,108,864 bytes"),
    (b" " * 2**24 + '"\u2200"'.encode(), "is larger than the limit of 16,777,216 bytes"),
    (b'{"A": [' + b"[[0]]," * 25_000 + b"0]}", "A must hold one array per layer: expected 2, got 25001"),
])
def test_a_large_text_is_refused_before_it_is_read(text: bytes, words: str) -> None:
    reference, start = Reference(PROBLEM), time.process_time()
    reference["A"]
    tracemalloc.start()
    with pytest.raises(ProblemError) as caught:
        forms.coerced(reference, files.parse(text))
    assert words in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 2 * len(text) + 3e7
    tracemalloc.stop()
    assert time.process_time() - start < 5


@settings(deadline=None, max_examples=50)
@given(st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text("[]{}\\\",: a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("[]{}\\\" a"), inner, max_size=3)))
def test_every_text_of_the_standard_library_is_read(value: Any) -> None:
    for ascii_only in (True, False):
        assert files.parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize("problem", ["[" * 900 + "]" * 900, '{"array":' * 900 + '"a0"' + "}" * 900])
def test_an_npz_whose_problem_is_nested_deep_is_refused(problem: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", problem=np.array(problem), a0=np.eye(2))
    with pytest.raises(ProblemError, match="is nested deeper than the limit of 32 levels"):
        Problem.read(tmp_path / "p.npz")


def test_an_npz_of_many_arrays_is_refused_before_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ARRAYS", 20)
    np.savez(tmp_path / "a.npz", **{f"A_{i}": np.eye(2) for i in range(20)})
    assert len(read_quantities(tmp_path / "a.npz")["A"]) == 20
    np.savez(tmp_path / "a.npz", **{f"A_{i}": np.eye(2) for i in range(21)})
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", None)
        with pytest.raises(ProblemError, match="holds 21 arrays, more than the limit of 20"):
            read_quantities(tmp_path / "a.npz")


def test_a_network_of_very_many_layers_is_refused_before_its_weights_are_read() -> None:
    content = PROBLEM.plain()
    content["network"] = {"sizes": [1] * 100_001, "hidden": ["tanh"] * 99_999}
    content["weights"] = None.__class__      # would not be read
    with pytest.raises(ProblemError, match="at most those of 1000 layers, got 100001"):
        Problem.of(content)
    trajectory = vector("trajectory-gaussian").problem.plain()
    trajectory["trajectory"]["batches"] = [0] * 1001
    with pytest.raises(ProblemError, match=r"trajectory\.batches must hold at most 1000, got 1001"):
        Problem.of(trajectory)


def test_the_values_of_a_vector_are_taken_whole() -> None:
    assert same(forms.coerced(Reference(PROBLEM), {"G": EXPECTED["G"]})["G"], G)
