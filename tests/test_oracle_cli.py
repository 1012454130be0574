"""The oracle on the command line, by everybody's files: good, wrong, and damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kfac_ref import cli, oracle
from kfac_ref.oracle import published
from kfac_ref.oracle.files import load, plain

NAME = "categorical-tanh"
CONTENT = load(published.FOLDER / f"{NAME}.json")
EXPECTED = {q: entry["value"] for q, entry in CONTENT["expected"].items()}


def run(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_right_wrong_and_bad_numbers_end_with_0_1_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = save(tmp_path / "right.json", {"A": EXPECTED["A"], "step": EXPECTED["step"]})
    wrong = save(tmp_path / "wrong.json", {"G": EXPECTED["G_empirical"]})
    bad = save(tmp_path / "bad.json", {"H": 1})
    status, out, err = run(capsys, "check", NAME, right)
    assert (status, err) == (0, "")
    assert "all right" in out
    status, out, err = run(capsys, "check", NAME, wrong)
    assert (status, err) == (1, "")
    assert "labels in place of the model's targets" in out
    status, out, err = run(capsys, "check", NAME, bad)
    assert (status, out) == (2, "")
    assert err == f"kfac-ref: {bad}: 'H' is not a quantity (kfac-ref quantities lists them)\n"


def test_the_report_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = save(tmp_path / "wrong.json", {"G": EXPECTED["G_empirical"]})
    status, out, _ = run(capsys, "check", NAME, wrong, "--json")
    report = json.loads(out)
    assert status == 1
    assert not report["ok"]
    assert next(e[0]["mistake"] for e in report["explanations"]) == "labels in place of the model's targets"
    assert report["rows"][0]["quantity"] == "G"


def test_reference_writes_what_check_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "expected.json"
    assert run(capsys, "reference", NAME, "--out", out)[0] == 0
    assert set(json.loads(out.read_text())) == set(oracle.Reference(oracle.vector(NAME).problem).names())
    assert run(capsys, "check", NAME, out)[0] == 0
    status, text, _ = run(capsys, "reference", NAME, "--only", "A,G,step")
    assert status == 0
    assert list(json.loads(text)) == ["A", "G", "step"]
    assert "'B' is not a quantity" in run(capsys, "reference", NAME, "--only", "B")[2]
    assert "has no trajectory" in run(capsys, "reference", NAME, "--only", "trajectory_M")[2]


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_a_problem_is_made_from_arrays(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = oracle.vector(NAME).problem
    weights, biases = [W[:, :-1].T for W in problem.weights], [W[:, -1] for W in problem.weights]
    arrays = tmp_path / f"arrays.{kind}"
    if kind == "json":
        save(arrays, {
            "weights": [W.tolist() for W in weights], "biases": [b.tolist() for b in biases],
            "x": problem.x.tolist(), "y": problem.y.tolist(), "targets": problem.targets.tolist()})
    else:
        np.savez(arrays, x=problem.x, y=problem.y, targets=problem.targets,
                 **{f"weights_{i}": W for i, W in enumerate(weights)},
                 **{f"biases_{i}": b for i, b in enumerate(biases)})
    out = tmp_path / "problem.json"
    status, text, err = run(capsys, "problem", "new", arrays, "--out", out, "--layout", "in,out", "--hidden", "tanh",
                            "--damping", problem.damping, "--weight-decay", problem.weight_decay)
    assert (status, err) == (0, ""), err
    assert text == f"wrote {out}: 3-2-5, categorical, 7 examples\n"
    numbers = save(tmp_path / "numbers.json", {q: EXPECTED[q] for q in ("A", "G", "G_sampled", "step")})
    assert run(capsys, "check", out, numbers)[0] == 0


@pytest.mark.parametrize(("content", "options", "message"), [
    ({"x": [], "y": []}, [], "weights is missing"),
    ({"weights": 3, "x": [[1]], "y": [0]}, [], "weights must be a list"),
    ({"weights": [[[1, 2]]], "x": [[1]], "y": [0], "z": 1}, [], "'z' is unknown"),
    ({"weights": [[[1, 2]]], "x": [[1]], "y": [0]}, ["--layout", "x"], "layout must be one of"),
    ({"weights": [[[1, 2]]], "x": [[1]], "y": [0]}, ["--bias", "separate"], "biases must be given if and only if"),
    ({"weights": [], "x": [[1]], "y": [0]}, [], "weights must hold at least one matrix"),
    ({"weights": [[[1, 2]]], "x": [[1]], "y": [0]}, ["--hidden", "tanh"], "network.hidden must name"),
    ([], [], "must be an object"),
])
def test_arrays_that_make_no_problem(content: Any, options: list[str], message: str, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    arrays = save(tmp_path / "a.json", content)
    status, _, err = run(capsys, "problem", "new", arrays, "--out", tmp_path / "p.json", *options)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(("command", "text"), [
    (["quantities"], "trajectory_weights"), (["mistakes"], f"{len(oracle.CATALOGUE)} mistakes"),
    (["vectors"], "categorical-tanh"), (["dialects"], "curvlinops"), (["dialects", "--json"], "curvlinops"),
])
def test_the_lists(command: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *command)
    assert status == 0
    assert text in out


def test_the_vectors_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "vectors", "--copy", tmp_path / "v")[0] == 0
    assert {p.name for p in (tmp_path / "v").iterdir()} == {p.name for p in published.FOLDER.iterdir()}


def test_reference_replaces_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    path, command = tmp_path / "a.json", ["reference", NAME, "--only", "A", "--out"]
    assert run(capsys, *command, path)[0] == run(capsys, *command, path)[0] == 0        # the same once more
    assert run(capsys, "reference", NAME, "--only", "G", "--out", path)[0] == 2
    path.write_text("mine")
    link = tmp_path / "link.json"
    link.symlink_to(path)
    for place, words in ((path, "exists and is not replaced"), (link, "is a symbolic link to")):
        status, out, err = run(capsys, *command, place)
        assert (status, out) == (2, "")
        assert err.startswith(f"kfac-ref: {place} {words}")
        assert err.count("\n") == 1
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert run(capsys, *command, path, "--force") == (
            1, "", f"kfac-ref: cannot write {path} (No space left on device)\n")
    assert path.read_text() == "mine"
    assert run(capsys, *command, link, "--force")[0] == 0
    assert path.read_text() == "mine"
    assert run(capsys, *command, path, "--force")[0] == 0
    assert path.read_bytes() == link.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "link.json"]


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_problem_does_not_replace_the_arrays_that_it_is_made_from(suffix: str, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    content = {"weights": [[[1.0, 2.0]]], "x": [[1.0]], "y": [[0.5]]}
    arrays, command = tmp_path / f"a.{suffix}", ["problem", "new", tmp_path / f"a.{suffix}", "--likelihood", "gaussian"]
    if suffix == "json":
        save(arrays, content)
    else:
        np.savez(arrays, weights_0=content["weights"][0], x=content["x"], y=content["y"])
    before = arrays.read_bytes()
    status, out, err = run(capsys, *command, "--out", arrays)
    assert (status, out) == (2, "")
    assert err.startswith(f"kfac-ref: {arrays} exists and is not replaced")
    assert arrays.read_bytes() == before
    for _ in range(2):
        assert run(capsys, *command, "--out", tmp_path / f"p.{suffix}")[0] == 0
    assert run(capsys, *command, "--out", arrays, "--force")[0] == 0
    oracle.Problem.read(arrays)


def test_copied_vectors_replace_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run(capsys, "vectors", "--copy", tmp_path / "v")[0] == 0
    (tmp_path / "v" / f"{NAME}.json").write_text("mine")
    (tmp_path / "v" / "SHA256SUMS").unlink()
    status, out, err = run(capsys, "vectors", "--copy", tmp_path / "v")
    assert (status, out) == (2, "")
    assert f"{NAME}.json exists and is not replaced" in err
    assert (tmp_path / "v" / f"{NAME}.json").read_text() == "mine"
    assert not (tmp_path / "v" / "SHA256SUMS").exists()                   # all or nothing
    assert run(capsys, "vectors", "--copy", tmp_path / "v", "--force")[0] == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "v").iterdir()} == {
        p.name: p.read_bytes() for p in published.FOLDER.iterdir()}


@pytest.mark.parametrize("options", [["--rtol", "2"], ["--samples", "0"], ["--dialect", "nobody"]])
def test_bad_options(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = save(tmp_path / "n.json", {"A": EXPECTED["A"]})
    status, _, err = run(capsys, "check", NAME, numbers, *options)
    assert status == 2
    assert "must be" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_check_takes_little_longer_than_importing_the_package(tmp_path: Path) -> None:
    numbers = save(tmp_path / "n.json", {"A": EXPECTED["A"], "G": EXPECTED["G_empirical"]})

    def seconds(*arguments: Any, status: int) -> float:
        """Return the time of the processor, which other tests beside this one do not take."""
        before = os.times().children_user
        found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert found.returncode == status, found.stderr
        return os.times().children_user - before

    assert seconds("-m", "kfac_ref", "check", NAME, numbers, status=1) < 4 * seconds("-c", "import kfac_ref", status=0)


def test_the_expected_values_of_a_vector_s_own_file_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    path = published.FOLDER / f"{NAME}.json"
    assert run(capsys, "check", path, path)[0] == 0


def test_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    endless = Path("/dev/zero")
    if not endless.exists():
        pytest.skip("there is no /dev/zero here")
    monkeypatch.setattr("kfac_ref.oracle.files.MAX_BYTES", 10**7)
    status, _, err = run(capsys, "check", NAME, endless)
    assert (status, err) == (2, "kfac-ref: /dev/zero: is larger than the limit of 10,000,000 bytes\n")


@pytest.mark.parametrize(("argv", "near"), [
    (["check", NAME, "FILE"], "'G_smapled' is not a quantity (kfac-ref quantities lists them); did you mean G_sampled"),
    (["check", "categorical-than", "FILE"], "; did you mean categorical-tanh?"),
    (["check", NAME, "FILE", "--dialect", "BackPACK"], "; did you mean backpack?"),
    (["reference", NAME, "--only", "g_empirical"], "; did you mean G_empirical?"),
    (["reference", NAME, "--only", "xyzzy"], "'xyzzy' is not a quantity (kfac-ref quantities lists them)\n"),
    (["check", "nowhere.json", "FILE"], "nowhere.json: there is no such file or vector (kfac-ref "
                                        "vectors lists them)\n"),
])
def test_what_is_misspelt_is_told_its_nearest_name(argv: list[str], near: str, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    numbers = save(tmp_path / "n.json", {"G_smapled": EXPECTED["G_sampled"]})
    status, _, err = run(capsys, *[numbers if a == "FILE" else a for a in argv])
    assert status == 2
    assert near in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["reference categorical-tanh", "mistakes", "--help", "--version"])
def test_a_reader_that_leaves_ends_it_silently(command: str) -> None:
    # sleep: the reader is gone before the first byte comes, however short the output.
    line = f"set -o pipefail; (sleep 0.1; exec {sys.executable} -m kfac_ref {command}) | true"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert found.stderr == ""
    # argparse minds nothing where its help cannot be written, unless there is a buffer.
    assert found.returncode == 141 or (command.startswith("--") and found.returncode == 0)


@pytest.mark.slow
def test_an_output_that_is_full_is_told_in_one_line() -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("there is no /dev/full here")
    with device.open("w") as full:
        found = subprocess.run([sys.executable, "-m", "kfac_ref", "mistakes"], stdout=full, stderr=subprocess.PIPE,
                               text=True)
    assert (found.returncode, found.stderr) == (1, "kfac-ref: No space left on device\n")


# Fuzz: whatever a file holds, there is an answer or one line.

JUNK = st.one_of(st.none(), st.booleans(), st.integers(-10**20, 10**20), st.floats(allow_nan=True), st.text(max_size=5),
                 st.lists(st.integers(-3, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2))


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    if isinstance(value, dict):
        found += [w for key, item in value.items() for w in places(item, (*way, key))]
    elif isinstance(value, list):
        found += [w for i, item in enumerate(value[:3]) for w in places(item, (*way, i))]
    return found


def put(content: Any, way: tuple[Any, ...], junk: Any) -> Any:
    content = json.loads(json.dumps(content))
    part = content
    for key in way[:-1]:
        part = part[key]
    part[way[-1]] = junk
    return content


PROBLEM = {key: value for key, value in CONTENT.items() if key not in ("expected", "flags")}
NUMBERS = {q: EXPECTED[q] for q in ("A", "G", "loss", "pi", "step")}


def answered(capsys: pytest.CaptureFixture[str], problem: Any, theirs: Any) -> None:
    status, out, err = run(capsys, "check", problem, theirs)
    assert status in (0, 1, 2)
    if status == 2:
        assert out == ""
        assert err.startswith("kfac-ref: "), err
        assert err.count("\n") == 1, err
        assert len(err) < 700, err
    else:
        assert err == ""


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(way=st.sampled_from(places(PROBLEM)), junk=JUNK)
def test_a_problem_with_junk_in_it(way: Any, junk: Any, tmp_path_factory: pytest.TempPathFactory,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    answered(capsys, save(folder / "p.json", put(PROBLEM, way, junk)), save(folder / "t.json", {"loss": 1.0}))


@pytest.mark.slow
@settings(FUZZ, max_examples=20)                            # each may search for explanations
@given(way=st.sampled_from(places(NUMBERS)), junk=JUNK)
def test_numbers_with_junk_in_them(way: Any, junk: Any, tmp_path_factory: pytest.TempPathFactory,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    answered(capsys, NAME, save(folder / "t.json", put({"loss": NUMBERS["loss"]} | NUMBERS if way[0] == "loss" else
                                                       {way[0]: NUMBERS[way[0]]}, way, junk)))


@pytest.mark.slow
@FUZZ
@given(cut=st.integers(0, 4000), flip=st.integers(0, 255), npz=st.booleans())
def test_torn_and_flipped_files(cut: int, flip: int, npz: bool, tmp_path_factory: pytest.TempPathFactory,
                                capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / ("p.npz" if npz else "p.json")
    oracle.vector(NAME).problem.write(path)
    data = bytearray(path.read_bytes())
    place = cut % len(data)
    if flip:
        data[place] ^= flip
    else:
        del data[place:]
    path.write_bytes(data)
    answered(capsys, path, save(folder / "t.json", plain({"loss": EXPECTED["loss"]})))
