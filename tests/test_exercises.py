"""The exercises: solutions pass, blanks do not, mistakes are named, accidents are reported, no solution is shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import CATALOGUE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tutorials" / "exercises"
sys.path.insert(0, str(FOLDER))
import asked  # noqa: E402
import check  # noqa: E402
import exercises  # noqa: E402
import grading  # noqa: E402
import handout  # noqa: E402
import new  # noqa: E402
import source  # noqa: E402

sys.path.remove(str(FOLDER))

EXERCISES = {e.name: e for e in source.read()}
each = pytest.mark.parametrize("name", EXERCISES)


def listed(value: Any) -> Any:
    """Return a result as the child process sends it: tuples become lists."""
    return [listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def shapes(value: Any) -> Any:
    return [shapes(v) for v in value] if isinstance(value, list) else np.shape(value)


def answers(name: str) -> list[Any]:
    return [listed(getattr(exercises, name)(*call)) for part in asked.PARTS[name] for call in part.asked()]


def graded(tmp_path: Path, text: str, *only: str) -> dict[str, check.Row]:
    rows, _ = check.grade(tmp_path / "answers.py", text, only)
    return {row.exercise.name: row for row in rows}


def program(*arguments: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=60, **more)


# The source.


def test_there_are_enough_of_them_in_the_order_of_the_course() -> None:
    tutorials = [e.tutorial for e in EXERCISES.values()]
    assert len(EXERCISES) >= 25
    assert tutorials == sorted(tutorials)
    assert all(tutorials.count(n) >= 2 for n in (*range(1, 10), 11))
    assert list(asked.PARTS) == list(EXERCISES)


@each
def test_each_has_a_question_with_shapes_points_hints_and_a_short_solution(name: str) -> None:
    e = EXERCISES[name]
    assert 1 <= e.points <= 3
    assert e.hints
    assert re.search(r"array|float", e.question)
    assert "eturn" in e.question
    assert "Hint" not in e.question
    assert 1 <= len(e.body.splitlines()) <= 10
    assert "kfac_ref" not in e.body


# Solutions, blanks, mistakes.


@each
def test_the_solution_is_right(name: str) -> None:
    assert grading.judge(asked.PARTS[name], answers(name)) == grading.Verdict(True)


def test_the_source_is_a_file_of_right_answers_and_the_blank_one_is_not_yet_done(tmp_path: Path) -> None:
    rows = graded(tmp_path, source.SOURCE.read_text())
    assert {row.verdict for row in rows.values()} == {"right"}
    assert sum(row.points for row in rows.values()) == sum(e.points for e in EXERCISES.values())
    rows = graded(tmp_path, source.blank_file("answers.py"))
    assert {row.verdict for row in rows.values()} == {"not yet done"}
    assert sum(row.points for row in rows.values()) == 0


def mistaken(part: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each mistake that shows in the answers to a part, with those answers."""
    right = part.right()
    catalogue = CATALOGUE.values() if isinstance(part, grading.ByOracle) else ()
    for mistake in (*part.slips, *catalogue):
        try:
            wrong = part.mistaken(mistake)
        except ValueError:                                  # such as a matrix that is singular with the mistake
            assert mistake not in part.slips
            continue
        same = len(right) == len(wrong) and all(map(grading._equal_one, right, wrong))
        assert not (same and mistake in part.slips), mistake.name
        if not same:
            yield mistake, listed(wrong)


@each
def test_every_mistake_that_shows_is_named(name: str) -> None:
    for i, part in enumerate(asked.PARTS[name]):
        others = [[listed(r) for r in p.right()] for p in asked.PARTS[name]]
        for mistake, wrong in mistaken(part):
            results = [r for j, of in enumerate(others) for r in (wrong if j == i else of)]
            verdict = grading.judge(asked.PARTS[name], results)
            assert not verdict.right
            names = [m.name for e in verdict.explanations for m in e.mistakes]
            # A mistake that changes the number of examples is reported as a wrong shape.
            of_another_shape = shapes(wrong) != shapes(others[i]) and "expected" in verdict.words
            assert mistake.name in names or of_another_shape, (mistake.name, verdict)
            if mistake in part.slips:
                assert not verdict.explanations[0].as_if


def test_most_of_the_catalogue_can_be_met_in_the_exercises() -> None:
    met = {m.name for parts in asked.PARTS.values() for part in parts for m, _ in mistaken(part)}
    unmet = {name for name, m in CATALOGUE.items() if name not in met}
    # What has no exercise: cross factors and Fishers of kinds that none returns, whole trajectories.
    assert len(met & set(CATALOGUE)) >= 100, unmet


@each
def test_what_no_mistake_gives_is_not_blamed_on_one(name: str) -> None:
    def odd(value: Any) -> Any:
        return [odd(v) for v in value] if isinstance(value, list) else np.asarray(value) * 1.2345 + 0.0678
    verdict = grading.judge(asked.PARTS[name], [odd(r) for r in answers(name)])
    assert not verdict.right
    assert not verdict.explanations
    assert verdict.words


@each
def test_rounding_is_no_mistake_and_half_the_digits_are_told(name: str) -> None:
    def off(value: Any, by: float) -> Any:
        return [off(v, by) for v in value] if isinstance(value, list) else np.asarray(value) * (1 + by)
    assert grading.judge(asked.PARTS[name], off(answers(name), 1e-12)).right
    verdict = grading.judge(asked.PARTS[name], off(answers(name), 1e-7))
    assert not verdict.right
    assert "7 digits only" in verdict.words


def test_two_mistakes_at_once_are_named_both() -> None:
    part, = asked.PARTS["gradient"]
    both = [CATALOGUE[n] for n in ("gradient summed over the examples", "bias not decayed")]
    wrong = [r for name in part.vectors for r in part.answer(grading.reference(name).having(*both))]
    verdict = grading.judge([part], listed(wrong))
    assert {m.name for e in verdict.explanations for m in e.mistakes} >= {m.name for m in both}


def test_a_mistake_that_is_in_one_of_two_problems_is_not_named() -> None:
    part, = asked.PARTS["trace_pi"]
    count = len(part.answer(grading.reference(part.vectors[0])))
    results = part.mistaken(CATALOGUE["pi left out"])[:count] + part.right()[count:]
    verdict = grading.judge([part], listed(results))
    assert not verdict.right
    assert not verdict.explanations


def test_a_factor_is_told_as_it_is_and_two_factors_at_once_are_no_explanation() -> None:
    part, = asked.PARTS["kfac_step"]
    assert grading.judge([part], [step / 7 for step in part.right()]).words == "0.1429 times the right value = N^-1"
    part, = asked.PARTS["exact_G"]
    verdict = grading.judge([part], [G * 7 / 3 for G in part.right()])              # 2 times 7/6
    assert verdict.words.startswith("2.333 times")
    assert not verdict.explanations


def test_a_number_that_nothing_explains_is_the_students_own() -> None:
    for name in ("kl_clip", "alpha_mu", "reduction_ratio", "model_change"):
        right = answers(name)
        for found in (np.ravel(r) for r in right):
            odd = [[r[0] * 1.1, r[1] * 1.3] if isinstance(r, list) else r * 1.1 + 0.01 for r in right]
            words = grading.judge(asked.PARTS[name], odd).words
            assert not any(f"{number:.6g}" in words for number in found), name


def test_a_mistake_in_the_arguments_is_told_as_such() -> None:
    part, = asked.PARTS["kfac_step"]
    verdict = grading.judge([part], listed(part.mistaken(CATALOGUE["G twice too large"])))
    assert verdict.explanations
    assert all(e.as_if for e in verdict.explanations)


@each
@pytest.mark.parametrize("wrong", [None, np.nan, np.zeros((2, 3, 4, 5)), [], [[1.0], [2.0, 3.0]], np.inf, 1e300, True,
                                   [None]], ids=repr)
def test_nonsense_is_told_in_words(name: str, wrong: Any) -> None:
    verdict = grading.judge(asked.PARTS[name], [wrong] * len(answers(name)))
    assert not verdict.right
    assert verdict.words or verdict.explanations


# Accidents.

ACCIDENTS = '''
import sys
import numpy as np

def vec(V):
    raise ValueError("no\\nidea")
def unvec(v, m, n):
    while True:
        pass
def kron_times(A, G, V):
    while True:
        print("again " * 100)
def output_gradient(z, y):
    print("bye"), sys.exit(0)
def backward(weights, a_bar, dz):
    import os
    os.kill(os.getpid(), 9)
def gradient(g, a_bar, W, eta):
    return np.ones((3, 17))
def tangent(weights, a_bar, V):
    return "dz"
def gauss_newton(J, F_R):
    print("so far", end="")
    while True:
        pass
def fisher_product(g, a_bar, V):
    pass; x = 1
def categorical_columns(z):
    return np.ones((2000, 2000))
def bernoulli_columns(z):
    z += 1
    return z
def enumerated_G(z):
    return enumerated_G(z)
def sampled_G(g):
    return g.tolist()[0]
def empirical_fisher(g, a_bar, more):
    return g
def natural_gradient(F, grad, damping):
    return [V.ravel() for V in grad]
def transformed_gradient(grad, Phi, Omega):
    return (Phi.T @ grad @ Omega.T).tolist()
def kl_clip(step, grad, learning_rate, kappa):
    step.reverse()
    return 1.0
def covariance_error(g, a_bar):
    return np.nan
def kfac_step(A, G, grad):
    return 1j * grad
def regression(S_cross, S_next):
    raise NotImplementedError
def tridiagonal_solve(V, Psi_A, Psi_G, Sigma):
    pass
def trace_pi(A, G):
    return np.array(["a"])
running_average = 3
def model_change(grad, delta, F, damping):
    return grad @ delta + delta @ F @ delta + damping * delta @ delta
def next_lambda(lambda_, rho, omega1):
    return 10**400
def gamma_candidates(gamma, omega2, low, high):
    return 2 * np.clip([gamma, omega2 * gamma, gamma / omega2], low, high)
foof_step = lambda A, grad, damping: -np.linalg.solve(A + damping * np.eye(len(A)), grad.T).T
'''
REPORTS = {
    "vec": ("failed", r"ValueError: no idea \(line 6\)"), "unvec": ("failed", r"not end within 1 s \(line [89]\)"),
    "kron_times": ("failed", r"RuntimeError: printed more than 100,000 characters \(line 12\)"),
    "output_gradient": ("failed", r"SystemExit: 0 \(line 14\)"), "backward": ("failed", r"ended the process \(SIGKILL"),
    "gradient": ("wrong", r"shape \(3, 17\); expected shape"), "tangent": ("wrong", "type str"),
    "gauss_newton": ("failed", "not end"), "fisher_product": ("wrong", "returns None: is a return missing"),
    "categorical_columns": ("wrong", r"shape \(2000, 2000\), which is too large"),
    "bernoulli_columns": ("wrong", "argument z: work on a copy"), "exact_G": ("missing", "no function exact_G"),
    "enumerated_G": ("failed", "RecursionError"), "sampled_G": ("wrong", "shape"),
    "empirical_fisher": ("failed", "TypeError: .*more"), "natural_gradient": ("wrong", "entry 0 of the list.*shape"),
    "transformed_gradient": ("right", ""), "kl_clip": ("wrong", "argument step"), "covariance_error": ("wrong", "NaN"),
    "kfac_step": ("wrong", "complex"), "regression": ("not yet done", ""), "tridiagonal_solve": ("not yet done", ""),
    "trace_pi": ("wrong", "dtype"), "running_average": ("missing", ""),
    "model_change": ("wrong", "M without its half"), "next_lambda": ("wrong", "dtype object"),
    "gamma_candidates": ("wrong", "2 times the right value"), "foof_step": ("right", ""),
}


@pytest.fixture(scope="module")
def accidents() -> SimpleNamespace:
    rows, printed = check.grade(Path("answers.py"), ACCIDENTS, seconds=1.0)
    return SimpleNamespace(rows={row.exercise.name: row for row in rows}, printed=printed)


@pytest.mark.parametrize("name", REPORTS)
def test_an_accident_in_one_function_is_reported_and_costs_only_that_function(name: str,
                                                                              accidents: SimpleNamespace) -> None:
    verdict, words = REPORTS[name]
    row = accidents.rows[name]
    assert row.verdict == verdict, row
    assert re.search(words, row.what), row


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process")
def test_too_much_memory_is_an_error(tmp_path: Path) -> None:
    row, = graded(tmp_path, "import numpy as np\ndef vec(V):\n    return np.empty((20000, 20000))\n", "vec").values()
    assert row.verdict == "failed"
    assert re.search(r"MemoryError: .*\(line 3\)", row.what)


def test_what_a_file_prints_is_shown_in_part(accidents: SimpleNamespace) -> None:
    assert accidents.printed.startswith("again again")
    assert "so far" in accidents.printed
    assert "Timeout" not in accidents.printed
    assert len(check.report(list(accidents.rows.values()), accidents.printed, 0)) < 20_000


@pytest.mark.parametrize(("text", "words"), [
    ("x = 1\ndef vec(V)\n    return V", r"SyntaxError: expected ':' \(line 2\)"),
    ("def vec(V):", r"IndentationError: .* \(line 1\)"), ("\0", "null bytes"),
    ("import no_such_module", r"ModuleNotFoundError: No module named 'no_such_module' \(line 1\)"),
    ("import exercises", "ModuleNotFoundError"), ("\n1 / 0", r"ZeroDivisionError: .* \(line 2\)"),
    ("exit(3)", "SystemExit: 3"), ("while True:\n    pass", r"does not end within 0.5 s \(line [12]\)"),
    ("import os\nos._exit(7)", r"ended the process \(status 7\)"), ("print('a' * 10**6)", "printed more")])
def test_a_file_that_cannot_be_imported_gives_one_line_with_the_reason(
        tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.py"
    path.write_text(text)
    assert check.main([str(path), "--only", "vec", "--seconds", "0.5"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"check.py: .*answers.py: cannot be imported: .*{words}.*\n", error)


# The commands.


def test_from_blank_to_graded_by_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    assert program(FOLDER / "new.py", path).returncode == 0
    again = program(FOLDER / "new.py", path)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "exists and is not replaced" in again.stderr
    text = path.read_text()
    grader = re.search(r"python (\S+)", text)[1]
    assert Path(grader).resolve() == FOLDER / "check.py"
    assert text == source.blank_file(path.as_posix(), grader)
    wrong = text.replace("def vec(V):", "def vec(V):\n    return V.ravel()\ndef _():")
    path.write_text(wrong)
    shown = program(FOLDER / "check.py", path, "--only", "vec", "unvec")
    assert shown.returncode == 1
    assert "row-major vec" in shown.stdout
    assert "0 of 2 points: 1 wrong, 1 not yet done" in shown.stdout
    assert EXERCISES["vec"].hints[0] in shown.stdout
    assert EXERCISES["vec"].hints[1] not in shown.stdout
    assert "remedy" not in shown.stdout
    hinted = program(FOLDER / "check.py", path, "--only", "vec", "--hint", "2")
    assert EXERCISES["vec"].hints[1] in hinted.stdout
    plain = json.loads(program(FOLDER / "check.py", path, "--only", "vec", "--json").stdout)
    assert plain["ok"] is False
    assert (plain["points"], plain["of"]) == (0, 1)
    vec, = plain["exercises"]
    assert (vec["name"], vec["verdict"], vec["tutorial"]) == ("vec", "wrong", 1)
    assert vec["explanations"][0]["mistakes"][0]["name"] == "row-major vec"


def test_no_solution_is_ever_printed(accidents: SimpleNamespace) -> None:
    report = check.report(list(accidents.rows.values()), "", 9)
    for e in EXERCISES.values():
        for line in secret(e):
            assert line not in report


def test_all_right_is_status_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "right.py"
    path.write_text("\ufeff" + source.SOURCE.read_text(), encoding="utf-8")     # as some editors save it
    assert check.main([str(path), "--only", "vec"]) == 0
    assert "1 of 1 points: 1 right" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no_such_file.py", ".", "bytes.py"])
def test_a_file_that_cannot_be_read_is_one_line_and_status_two(
        name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\xff")
    assert check.main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--only", "vek"), ("--seconds", "-1"), ("--seconds", "nan")])
def test_a_bad_option_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        check.main([str(source.SOURCE), option, value])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err


def test_new_says_why_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new.main([str(tmp_path / "no" / "folder.py")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# The handout.


def secret(e: source.Exercise) -> list[str]:
    """Return the lines of a solution that say something."""
    lines = (line.strip().removeprefix("return ") for line in e.body.splitlines())
    return [line for line in lines if len(line) > 15]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handout")
    assert handout.main([str(folder / "a.zip")]) == 0
    assert handout.main([str(folder / "b.zip")]) == 0
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()
    zipfile.ZipFile(folder / "a.zip").extractall(folder)
    return folder / handout.FOLDER


def test_the_handout_replaces_another_file_only_with_force(
        packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.zip"
    path.write_text("mine")
    assert handout.main([str(path)]) == 2
    assert path.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert handout.main([str(path), "--force"]) == 0
    assert path.read_bytes() == (packed.parent / "a.zip").read_bytes()


def test_the_handout_holds_no_solution(packed: Path) -> None:
    texts = {path.name: path.read_text() for path in packed.iterdir()}
    assert {"README.md", "LICENSE", "answers.py", "check.py", "exercises.py"} <= set(texts)
    lines = [line for e in EXERCISES.values() for line in secret(e)]
    assert len(lines) > 60
    for name, text in texts.items():
        for line in lines:
            assert line not in text, (name, line)
    stripped = source.read(packed / "exercises.py")
    assert {e.body.strip() for e in stripped} == {"..."}
    assert [(e.question, e.hints) for e in stripped] == [(e.question, e.hints) for e in EXERCISES.values()]


def test_the_handout_grades(packed: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "OPENBLAS_NUM_THREADS": "1"}
    shown = program("check.py", "answers.py", "--json", cwd=packed, env=env)
    assert shown.returncode == 1, shown.stderr
    assert {e["verdict"] for e in json.loads(shown.stdout)["exercises"]} == {"not yet done"}
    shown = program("check.py", source.SOURCE, cwd=packed, env=env)
    assert shown.returncode == 0, shown.stdout


def test_without_what_it_needs_it_says_so() -> None:
    shown = program("-S", FOLDER / "check.py", "answers.py")
    assert shown.returncode == 2
    assert shown.stderr == "numpy is not installed: see README.md\n"


# The teacher's note.


def test_the_teachers_note_names_every_exercise_once_and_files_that_are_there() -> None:
    text = (ROOT / "tutorials" / "TEACHING.md").read_text()
    named = [word for word in re.findall(r"`([a-zA-Z_]+)`", text) if word in EXERCISES]
    assert sorted(named) == sorted(EXERCISES)
    paths = re.findall(r"`((?:figures|docs|tutorials|kfac_ref)/[^`]+)`", text)
    assert len(paths) >= 10
    for path in paths:
        assert (ROOT / path).exists(), path
    for section in ("Goals", "Read before", "Shown", "Exercises", "MIT"):
        assert section in text


def test_the_readme_counts_right() -> None:
    assert f"{len(EXERCISES)} functions to fill in" in (FOLDER / "README.md").read_text()
