"""The published test vectors: where they come from, what they contain, and that their numbers fit together.

They are made by `tests.vectors`, which shares nothing with the package; here the package takes no part either. What is
asserted of the numbers are identities between the quantities of one file, in plain NumPy.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vectors import make, problems

FOLDER = make.FOLDER
#: Of all numbers of version 1, which never change. (The flags may grow with the catalogue.)
NUMBERS = "432a49b7250c4a6147e1ae1d6adf998b573dbe3391a199c75229f1edbe73024f"
NAMES = sorted(problems.PROBLEMS)


def decode(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"shape", "data"}:
        return np.array(value["data"], dtype=float).reshape(value["shape"])
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return [decode(entry) for entry in value]
    return value


class Vector:
    """A file, its arrays decoded; ``v["A"]`` is what is expected of A."""

    def __init__(self, name: str) -> None:
        self.file = make.read(FOLDER / f"{name}.json")
        self.input = {key: decode(value) for key, value in self.file.items()}
        self.sizes, self.hidden = (self.file["network"][key] for key in ("sizes", "hidden"))
        self.damping, self.eta = self.file["damping"], self.file["weight_decay"]

    def __contains__(self, name: str) -> bool:
        return name in self.file["expected"]

    def __getitem__(self, name: str) -> Any:
        return decode(self.file["expected"][name]["value"])


@cache
def vector(name: str) -> Vector:
    return Vector(name)


@pytest.fixture(params=NAMES)
def v(request: pytest.FixtureRequest) -> Vector:
    return vector(request.param)


def flat(V: list) -> Any:
    return np.concatenate([block.ravel(order="F") for block in V])


def block_diagonal(blocks: list) -> Any:
    size = sum(len(block) for block in blocks)
    out, start = np.zeros((size, size)), 0
    for block in blocks:
        out[start:start + len(block), start:start + len(block)] = block
        start += len(block)
    return out


def diagonal_blocks(v: Vector, F: Any) -> list:
    ends = np.cumsum([A.shape[0] * G.shape[0] for A, G in zip(v["A"], v["G"], strict=True)])
    return [F[end - size:end, end - size:end] for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]


def relative(got: Any, wanted: Any) -> float:
    return float(np.abs(np.asarray(got) - wanted).max() / max(np.abs(wanted).max(), 1e-300))


def solves(matrix: Any, step: list, gradient: list) -> bool:
    """Whether matrix @ step = -gradient, to what rounding the entries of step permits."""
    residual = matrix @ flat(step) + flat(gradient)
    return bool((np.abs(residual) <= 1e-12 * (np.abs(matrix) @ np.abs(flat(step)) + np.abs(flat(gradient)))).all())


# Where they come from


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Return the packages and the neighbouring modules that a file imports."""
    packages, neighbours = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{path.name} imports from outside its folder at line {node.lineno}"
            neighbours |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Name):
            assert node.id not in {"__import__", "eval", "exec"}, path
    return packages, neighbours


def test_the_numbers_of_version_1_never_change() -> None:
    found = hashlib.sha256()
    for name in NAMES:
        contents = {key: value for key, value in make.read(FOLDER / f"{name}.json").items() if key != "flags"}
        found.update(json.dumps(contents, sort_keys=True).encode())
    assert found.hexdigest() == NUMBERS


def test_the_maker_shares_nothing_with_the_package_nor_with_numpy() -> None:
    folder = Path(__file__).parent / "vectors"
    seen, ahead, packages = set(), {"make"}, set()
    while ahead:
        module = ahead.pop()
        seen.add(module)
        found, neighbours = imports(folder / f"{module}.py")
        packages |= found
        ahead |= neighbours - seen
    assert seen == {"algebra", "definitions", "make", "problems", "quantities"}
    assert packages <= {"mpmath", *sys.stdlib_module_names} - {"importlib"}
    assert "mpmath" in packages


def test_there_is_a_file_for_every_problem_and_no_other() -> None:
    assert {path.stem for path in FOLDER.glob("*.json") if "schema" not in path.name} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic-regression", "bottleneck", "float32-gaussian"])
def test_making_a_vector_again_gives_the_same_bytes(name: str) -> None:
    kept = make.read(FOLDER / f"{name}.json")
    kept.pop("flags", None)
    assert make.text(make.vector(problems.PROBLEMS[name]())) == make.text(kept)


def test_a_hundred_digits_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "softmax-regression"
    kept = make.read(FOLDER / f"{name}.json")["expected"]
    monkeypatch.setattr(make, "DIGITS", 130)
    assert make.vector(problems.PROBLEMS[name]())["expected"] == kept


def test_the_files_are_written_in_one_way(v: Vector) -> None:
    path = FOLDER / f"{v.file['name']}.json"
    assert path.read_text(encoding="utf-8") == make.text(v.file)


def test_the_sums_are_those_of_the_files(tmp_path: Path) -> None:
    lines = dict(reversed(line.split("  ")) for line in (FOLDER / make.SUMS).read_text().splitlines())
    there = {path.name for path in FOLDER.iterdir() if path.is_file() and path.name != make.SUMS}
    assert set(lines) == there
    for name, digest in lines.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_flags_stay_when_a_vector_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "logistic-regression"
    path = tmp_path / f"{name}.json"
    make.save(make.read(FOLDER / path.name) | {"flags": ["one"]}, path)
    make.write_all(tmp_path, [name])
    assert make.read(path)["flags"] == ["one"]
    assert name in capsys.readouterr().out
    make.write_sums(tmp_path)
    assert (tmp_path / make.SUMS).read_text().endswith(f"  {name}.json\n")


# What they contain


def test_the_numbers_of_things_identify_them(v: Vector) -> None:
    counts = [*v.sizes, len(v.input["x"])]
    if "targets" in v.input:
        counts.append(len(v.input["targets"]))
    for batch in v.file.get("trajectory", {"batches": []})["batches"][:1]:
        counts += [len(batch["rows"]), len(batch["rows1"])]
    assert len(set(counts)) == len(counts)
    assert all(n == 1 or all(n % k for k in range(2, n)) for n in counts)


def test_they_are_small_and_cover_what_they_must() -> None:
    files = [vector(name).file for name in NAMES]
    assert 20 <= len(files) <= 40
    assert max(problems.parameters(file) for file in files) <= 40
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6
    cases = {(file["likelihood"], tuple(file["network"]["hidden"])) for file in files}
    for likelihood, hidden in itertools.product(("gaussian", "categorical", "bernoulli"),
                                                ((), ("tanh",), ("logistic",), ("relu",), ("identity",))):
        assert (likelihood, hidden) in cases
    assert {len(file["network"]["hidden"]) for file in files} == {0, 1, 2}
    assert 1 / 3 < np.mean([file["weight_decay"] > 0 for file in files]) < 2 / 3
    for given in ("targets", "direction", "delta_0", "previous", "kl_clip", "trajectory"):
        assert sum(given in file for file in files) >= 3, given
    clips = [file["expected"]["kl_clip"]["value"] for file in files if "kl_clip" in file]
    assert 1.0 in clips
    assert min(clips) < 1
    assert {file["trajectory"]["structure"] for file in files if "trajectory" in file} == \
        {"block-diagonal", "block-tridiagonal"}


def test_relu_stands_nowhere_near_its_kink(v: Vector) -> None:
    for name, a_bar, W in zip(v.hidden, v["a_bar"], v.input["weights"], strict=False):
        if name == "relu":
            assert np.abs(a_bar @ W.T).min() > 1e-3


def test_float32_problems_hold_float32_numbers() -> None:
    found = [v for v in map(vector, NAMES) if v.file["dtype"] == "float32"]
    assert len(found) >= 2
    for v in found:
        for value in (*v.input["weights"], v.input["x"], v.damping, v.eta):
            assert (np.float32(value) == value).all()
        assert (np.round(v.input["x"], 6) != v.input["x"]).any()


def test_every_array_has_the_shape_that_its_name_says(v: Vector) -> None:
    N, L = len(v.input["x"]), len(v.sizes) - 1
    for i in range(L):
        rows, columns = v.sizes[i + 1], v.sizes[i] + 1
        assert v["a_bar"][i].shape == (N, columns)
        assert v["g"][i].shape == (N, rows)
        assert v["A"][i].shape == (columns, columns)
        assert v["G"][i].shape == (rows, rows)
        for name in ("gradient", "step"):
            assert v[name][i].shape == (rows, columns)
    assert ("A_cross" in v) == (L > 1)


def test_tolerances_are_small_and_absolute_only_where_something_is_zero(v: Vector) -> None:
    for name, entry in v.file["expected"].items():
        arrays = entry["value"] if isinstance(entry["value"], list) else [entry["value"]]
        some_zero = any(not any(a["data"] if isinstance(a, dict) else [a]) for a in arrays)
        assert entry["kind"] == ("absolute" if some_zero else "relative"), name
        assert 0 < entry["tolerance"] < 1e-3, name


# That the numbers fit together


def test_the_first_factor_is_rounded_once(v: Vector) -> None:
    """In fractions: the float64 nearest to the exact mean of the products."""
    rows = [[*map(Fraction, row), Fraction(1)] for row in v.input["x"].tolist()]
    wanted = [[float(sum(row[i] * row[j] for row in rows) / len(rows)) for j in range(len(rows[0]))]
              for i in range(len(rows[0]))]
    assert v["A"][0].tolist() == wanted


def test_factors_are_moments_and_the_gradient_is_one(v: Vector) -> None:
    N = len(v.input["x"])
    for a_bar, g, A, G, grad, W in zip(v["a_bar"], v["g"], v["A"], v["G_empirical"], v["gradient"],
                                       v.input["weights"], strict=True):
        assert relative(a_bar.T @ a_bar / N, A) < 1e-13
        assert relative(g.T @ g / N, G) < 1e-13
        assert relative(g.T @ a_bar / N + v.eta * W, grad) < 1e-12


def test_the_objective_is_the_loss_and_the_weight_decay(v: Vector) -> None:
    theta = flat(v.input["weights"])
    assert v["objective"] == pytest.approx(v["loss"] + v.eta / 2 * theta @ theta, rel=1e-14)


def test_the_output_factor_follows_from_the_predictions(v: Vector) -> None:
    z, G = v["z"], v["G"][-1]
    if v.file["likelihood"] == "gaussian":
        wanted = np.eye(z.shape[1])
    elif v.file["likelihood"] == "bernoulli":
        # Off the diagonal the outputs are independent; on it stands the mean of p (1 - p).
        wanted = np.diag(np.mean(1 / (2 + 2 * np.cosh(z)), axis=0))
    else:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        off = -(p.T @ p) / len(p)
        np.fill_diagonal(off, 0)
        wanted = off - np.diag(off.sum(axis=1))               # its rows add up to zero
    assert relative(G, wanted) < 1e-12


def test_the_damped_factors_are_damped_by_pi(v: Vector) -> None:
    root = np.sqrt(v.damping)
    for A, G, A_damped, G_damped, pi in zip(*(v[name] for name in ("A", "G", "A_damped", "G_damped", "pi")),
                                            strict=True):
        assert relative(A_damped - A, pi * root * np.eye(len(A))) < 1e-10
        assert relative(G_damped - G, root / pi * np.eye(len(G))) < 1e-10
        # Trace norm: the two dampings are the same part of their factors.
        if np.trace(G):
            parts = [np.trace(damped - factor) / np.trace(factor) for damped, factor in ((A_damped, A), (G_damped, G))]
            assert parts[0] == pytest.approx(parts[1], rel=1e-9)
        else:
            assert pi == 1


def test_the_steps_solve_their_dense_systems(v: Vector) -> None:
    gradient = v["gradient"]
    pairs = list(zip(v["A"], v["G"], strict=True))
    damped = [np.kron(*pair) for pair in zip(v["A_damped"], v["G_damped"], strict=True)]
    assert solves(block_diagonal(damped), v["step"], gradient)
    exact = [np.kron(*pair) + v.damping * np.eye(len(pair[0]) * len(pair[1])) for pair in pairs]
    assert solves(block_diagonal(exact), v["step_exact_damping"], gradient)
    if "natural_gradient" in v:
        F = v["fisher"]
        assert solves(F + v.damping * np.eye(len(F)), v["natural_gradient"], gradient)


@pytest.mark.parametrize("kind", ["sampled", "empirical"])
def test_the_other_steps_solve_theirs(v: Vector, kind: str) -> None:
    if f"step_{kind}" not in v:
        assert kind == "sampled"
        assert "targets" not in v.file
        return
    root, blocks = np.sqrt(v.damping), []
    for A, G in zip(v["A"], v[f"G_{kind}"], strict=True):
        pi = np.sqrt(np.mean(np.diag(A)) / np.mean(np.diag(G))) if np.trace(G) else 1.0
        blocks.append(np.kron(A + pi * root * np.eye(len(A)), G + root / pi * np.eye(len(G))))
    assert solves(block_diagonal(blocks), v[f"step_{kind}"], v["gradient"])


def test_the_tridiagonal_step_solves_the_matrix_that_it_is_the_inverse_of(v: Vector) -> None:
    """F̂ itself, not its inverse: its tridiagonal blocks are Kronecker products, the others follow (sec. 4.3)."""
    if "step_tridiagonal" not in v:
        assert len(v.sizes) == 2
        return
    A, G, L = v["A_damped"], v["G_damped"], len(v["A_damped"])
    blocks = {(i, i): np.kron(A[i], G[i]) for i in range(L)}
    for i in range(L - 1):
        blocks[i, i + 1] = np.kron(v["A_cross"][i], v["G_cross"][i])
    for apart in range(2, L):
        for i in range(L - apart):
            # Given the layer between them, two layers are independent.
            blocks[i, i + apart] = blocks[i, i + 1] @ np.linalg.solve(blocks[i + 1, i + 1], blocks[i + 1, i + apart])
    F_hat = np.block([[blocks[i, j] if i <= j else blocks[j, i].T for j in range(L)] for i in range(L)])
    assert solves(F_hat, v["step_tridiagonal"], v["gradient"])
    # The neighbour matters, unless its cross factors are zero or nearly.
    if v.file["name"] not in {"dead-layer", "saturated-categorical", "ill-conditioned"}:
        assert relative(flat(v["step_tridiagonal"]), flat(v["step"])) > 1e-6


def test_products_are_those_of_the_dense_matrices(v: Vector) -> None:
    if not ("fisher" in v and "fisher_product" in v):
        return
    V = flat(v.input["direction"])
    assert relative(flat(v["fisher_product"]), v["fisher"] @ V) < 1e-12
    assert relative(flat(v["kfac_product"]), block_diagonal(v["kfac_block"]) @ V) < 1e-12


def test_fishers_have_the_traces_and_signs_that_they_must(v: Vector) -> None:
    if "fisher" not in v:
        return
    for name in ("fisher", "fisher_sampled", "fisher_empirical"):
        if name in v:
            values = np.linalg.eigvalsh(v[name])
            assert (v[name] == v[name].T).all()
            assert values.min() > -1e-13 * values.max()
    lengths = [(a**2).sum(axis=1) @ (g**2).sum(axis=1) / len(a) for a, g in zip(v["a_bar"], v["g"], strict=True)]
    assert np.trace(v["fisher_empirical"]) == pytest.approx(sum(lengths), rel=1e-12)
    assert relative(v["hessian"], v["hessian"].T) < 1e-15
    if len(v.sizes) == 2:
        assert relative(v["hessian"], v["fisher"]) < 1e-12
    # The outputs are linear in the last layer; in others too where no unit bends.
    same = slice(None) if set(v.hidden) <= {"identity", "relu"} else slice(-1, None)
    for H, F in list(zip(*(diagonal_blocks(v, v[name]) for name in ("hessian", "fisher")), strict=True))[same]:
        assert relative(H, F) < 1e-12


def test_ekfac_scales_are_the_diagonal_of_the_fisher_in_the_eigenbasis(v: Vector) -> None:
    if not ("ekfac_scales" in v and "fisher" in v):
        return
    for A, G, scales, block in zip(v["A"], v["G"], v["ekfac_scales"], diagonal_blocks(v, v["fisher"]), strict=True):
        Q = np.kron(np.linalg.eigh(A)[1], np.linalg.eigh(G)[1])
        assert relative(scales.ravel(order="F"), np.diag(Q.T @ block @ Q)) < 1e-10


ALWAYS = ("", "_sampled", "_empirical")
EXACT = {"one-example-gaussian": ALWAYS, "one-example-categorical": ALWAYS, "identical-inputs": ALWAYS,
         "dead-layer": ALWAYS,                                   # nothing but the biases of one layer is left
         "gaussian-linear": ("",), "linear-regression": ("",)}


def test_kfac_is_exact_where_it_must_be_and_not_elsewhere(v: Vector) -> None:
    if "fisher" not in v:
        return
    for kind in ALWAYS:
        if f"fisher{kind}" not in v:
            continue
        errors = [relative(np.kron(A, G), block) for A, G, block
                  in zip(v["A"], v[f"G{kind}"], diagonal_blocks(v, v[f"fisher{kind}"]), strict=True) if block.any()]
        if kind in EXACT.get(v.file["name"], ()):
            assert max(errors) < 1e-13
        else:
            assert max(errors) > 1e-3
        if kind == "" and v.file["likelihood"] == "gaussian":
            assert errors[-1] < 1e-13                          # squared loss: the last layer always is


def test_the_quadratic_model_is_at_its_minimum(v: Vector) -> None:
    if "fisher" not in v:
        return
    F, gradient, directions = v["fisher"], flat(v["gradient"]), [flat(v["step"])]
    coefficients = [v["alpha"]]
    if "delta_0" in v.input:
        directions.append(flat(v.input["delta_0"]))
        coefficients.append(v["mu"])
    else:
        assert v["mu"] == 0
    delta = sum(c * d for c, d in zip(coefficients, directions, strict=True))
    slope = F @ delta + v.damping * delta + gradient
    for d in directions:
        assert abs(d @ slope) <= 1e-9 * (np.abs(d) @ np.abs(gradient))
    assert v["M"] == pytest.approx(gradient @ delta / 2, rel=1e-8)


def test_averages_lie_between_the_old_and_the_new() -> None:
    counts = set()
    for v in map(vector, NAMES):
        if "previous" not in v.input:
            continue
        k = v.file["previous"]["k"]
        counts.add(k)
        new = v["G_sampled"] if "G_sampled" in v else v["G"]
        for name, mean in (("A", v["A"]), ("G", new)):
            for old, fresh, got in zip(map(decode, v.file["previous"][name]), mean, v[f"{name}_average"], strict=True):
                # k + 1 batches of the same weight, until the old ones have 19 parts in 20.
                wanted = (k * old + fresh) / (k + 1) if k < 19 else (19 * old + fresh) / 20
                assert relative(got, wanted) < 1e-13
    assert max(counts) > 19 > min(counts)


def test_a_zero_last_step_takes_no_part() -> None:
    v = vector("bernoulli-relu")
    assert not flat(v.input["delta_0"]).any()
    assert v["mu"] == 0


def test_rho_compares_what_happened_with_the_model() -> None:
    v = vector("linear-regression")
    delta = flat(v["step"]) * v["alpha"] + flat(v.input["delta_0"]) * v["mu"]
    # For linear regression h is quadratic, and M differs from it by the damping alone (no weight decay here).
    actual = v["M"] - v.damping / 2 * delta @ delta
    assert v["rho"] == pytest.approx(actual / v["M"], rel=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("trajectory")])
def test_a_trajectory_follows_its_own_rules(name: str) -> None:
    v = vector(name)
    t = v.file["trajectory"]
    lambdas, gammas, rhos = (v.file["expected"][f"trajectory_{key}"]["value"]["data"]
                             for key in ("lambda", "gamma", "rho"))
    assert lambdas[0] == t["lambda_0"]
    for k, (lambda_, after, rho) in enumerate(zip(lambdas, lambdas[1:], rhos, strict=False), 1):
        assert (rho is not None) == (k % t["T1"] == 0)
        factor = 1 if rho is None or 1 / 4 <= rho <= 3 / 4 else t["omega1"] if rho > 3 / 4 else 1 / t["omega1"]
        assert after == pytest.approx(lambda_ * factor, rel=1e-14)
    moves = [b / a for a, b in zip([np.sqrt(lambdas[0] + v.eta), *gammas], gammas, strict=False)]
    for k, move in enumerate(moves, 1):
        allowed = [1, t["omega2"], 1 / t["omega2"]] if k % t["T2"] == 0 else [1]
        assert min(abs(move - factor) for factor in allowed) < 1e-13
    assert any(abs(move - 1) > 0.1 for move in moves)
    ratios = np.array(lambdas[1:]) / lambdas[:-1]
    assert ratios.min() < 1 < ratios.max()
    assert any(v["trajectory_mu"]) == t["momentum"]


# Readers in other languages


def tool(name: str) -> str:
    path = shutil.which(name)
    if path:
        return path
    words = f"{name} is not installed: a reader of the test vectors is not run"
    if name in os.environ.get("KFAC_REF_REQUIRE", "").split(","):
        pytest.fail(words)
    pytest.skip(words)


def reader(language: str, folder: Path) -> list[str]:
    """Return the command that reads vectors."""
    if language == "js":
        return [tool("node"), str(FOLDER / "read.js")]
    program = folder / "read"
    subprocess.run([tool("gcc"), "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-o", str(program),
                    str(FOLDER / "read.c"), "-lm"], check=True)
    return [str(program)]


@pytest.mark.parametrize("language", ["c", "js"])
def test_a_short_reader_finds_the_input_factor_of_every_vector(language: str, tmp_path: Path) -> None:
    command = reader(language, tmp_path)
    done = subprocess.run([*command, *(str(FOLDER / f"{name}.json") for name in NAMES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("differs by") == len(NAMES)
    # And it says so where a number is wrong.
    wrong = json.loads((FOLDER / "bottleneck.json").read_text())
    wrong["expected"]["A"]["value"][0]["data"][-2] += 1e-9
    make.save(wrong, tmp_path / "wrong.json")
    done = subprocess.run([*command, str(tmp_path / "wrong.json")], capture_output=True, text=True)
    assert done.returncode == 1
    assert subprocess.run(command, capture_output=True).returncode == 1
