"""The exercises: solutions pass, blanks do not, mistakes are named, hostile files are survived, nothing leaks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
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
import runner  # noqa: E402
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


def graded(tmp_path: Path, text: str, *only: str, seconds: float = 5.0) -> dict[str, check.Row]:
    rows, _ = check.grade(tmp_path / "answers.py", text, only, seconds)
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
            # An example less is told by the shape, where no mistake is.
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


# Hostile files.

HOSTILE = '''
import numpy as np
import os, sys, time

def vec(V):
    raise ValueError("no\\nidea" * 1000)
def unvec(v, m, n):
    while True:
        pass
def kron_times(A, G, V):
    while True:
        print("again " * 1000)
def output_gradient(z, y):
    sys.exit(0)
def backward(weights, a_bar, dz):
    os._exit(0)
def gradient(g, a_bar, W, eta):
    return np.ones((3, 17))
def tangent(weights, a_bar, V):
    return "dz"
def gauss_newton(J, F_R):
    return np.full((23, 23), np.nan)
def fisher_product(g, a_bar, V):
    pass; x = 1
def categorical_columns(z):
    return np.ones((40000, 40000))
def bernoulli_columns(z):
    z += 1
    return z
def exact_G(g)
    return g
def enumerated_G(z):
    return enumerated_G(z)
def sampled_G(g):
    os.close(1); os.close(2); os.kill(os.getpid(), 11)
def empirical_fisher(g, a_bar, more):
    return g
def natural_gradient(F, grad, damping):
    try:
        while True: time.sleep(1)
    finally:
        return grad
def transformed_gradient(grad, Phi, Omega):
    return Phi.T @ grad @ Omega.T
def kl_clip(step, grad, learning_rate, kappa):
    class Loud(Exception):
        def __str__(self): raise KeyboardInterrupt
    raise Loud
def factor_A(a):
    return lambda: a
def covariance_error(g, a_bar):
    return [[[[[[1.0]]]]]]
def kfac_step(A, G, grad):
    return 1j * grad
def kron_sum_solve(A, B, C, D, V):
    for fd in range(3, 20):
        try: os.write(fd, b'{"name": "vec", "results": []}\\n\\xff\\xfe[1]\\n{}\\n')
        except OSError: pass
    return V
def regression(S_cross, S_next):
    raise NotImplementedError
def tridiagonal_solve(V, Psi_A, Psi_G, Sigma):
    ...
def trace_pi(A, G):
    return np.array(["a"])
def eigen_damped_step(A, G, damping, grad):
    return np.array([None, 1], dtype=object)
running_average = 3
def next_lambda(lambda_, rho, omega1):
    return 10**400
1 / 0
while True:
    pass
os._exit(7)
def gamma_candidates(gamma, omega2, low, high):
    return [min(max(g, low), high) for g in (gamma, omega2 * gamma, gamma / omega2)]
'''
SAYS = {
    "vec": ("failed", r"ValueError: no idea"), "unvec": ("failed", "does not end"),
    "kron_times": ("failed", "does not end"), "output_gradient": ("failed", "SystemExit: 0"),
    "backward": ("failed", r"ended the whole process \(status 0"), "gradient": ("wrong", r"shape \(3, 17\)"),
    "tangent": ("wrong", "type str"), "gauss_newton": ("wrong", "NaN"), "fisher_product": ("wrong", "returns None"),
    "categorical_columns": ("(failed|wrong)", "MemoryError|too large"), "bernoulli_columns": ("wrong", "argument z"),
    "exact_G": ("failed", "SyntaxError"), "enumerated_G": ("failed", "RecursionError"),
    "sampled_G": ("failed", "SIGSEGV|ended the whole|closed"), "empirical_fisher": ("failed", "TypeError"),
    "natural_gradient": ("failed", "does not end"), "transformed_gradient": ("right", ""),
    "kl_clip": ("failed", "Loud"), "factor_A": ("wrong", "type function"), "covariance_error": ("wrong", "list"),
    "kfac_step": ("wrong", "complex"), "kron_sum_solve": ("wrong", "."), "regression": ("not yet done", ""),
    "tridiagonal_solve": ("not yet done", ""), "trace_pi": ("wrong", "dtype"), "damped_factors": ("not there", ""),
    "eigen_damped_step": ("wrong", "dtype"), "running_average": ("not there", ""), "next_lambda": ("wrong", "."),
    "gamma_candidates": ("right", ""),
}


@pytest.fixture(scope="module")
def hostile() -> SimpleNamespace:
    rows, outcome = check.grade(Path("answers.py"), HOSTILE, (), 1.0)
    return SimpleNamespace(rows={row.exercise.name: row for row in rows}, outcome=outcome)


@pytest.mark.parametrize("name", SAYS)
def test_a_hostile_function_costs_its_own_exercise_alone(name: str, hostile: SimpleNamespace) -> None:
    verdict, words = SAYS[name]
    row = hostile.rows[name]
    assert re.fullmatch(verdict, row.verdict), row
    assert re.search(words, row.what), row
    assert len(row.what) < 500


def test_of_a_hostile_file_all_is_told_and_its_output_is_cut(hostile: SimpleNamespace) -> None:
    assert hostile.outcome.printed.startswith("again again")
    assert len(hostile.outcome.printed) <= runner.PRINTED
    report = "\n".join(check._report(list(hostile.rows.values()), hostile.outcome, 0))
    assert "cannot be compared" not in report
    assert len(report) < 20_000


def test_endless_output_is_not_kept() -> None:
    text = "while True:\n    print('again' * 1000)\n"
    child = runner._Child({"path": "a.py", "text": text, "skip": [], "bytes": runner.MEMORY, "run": []})
    assert child.lines.get(timeout=60)
    time.sleep(0.3)
    child.kill()
    assert 0 < len(child.printed) <= runner.PRINTED


def test_what_stands_outside_of_functions_costs_nothing_but_itself(tmp_path: Path) -> None:
    text = ("import no_such_module\nimport os\n1 / 0\nwhile True:\n    pass\nos._exit(7)\nimport numpy as np\n"
            "def vec(V):\n    return V.T.ravel()\n")
    rows, outcome = check.grade(tmp_path / "a.py", text, ("vec",), 0.5)
    assert rows[0].verdict == "right"
    notes = " ".join(outcome.notes)
    for words in ("no_such_module", "ZeroDivisionError", "line 4 does not end", "line 6 ended the whole process"):
        assert words in notes


def test_a_file_that_ends_the_process_again_and_again_is_given_up(tmp_path: Path) -> None:
    text = "import os\n" + "os._exit(0)\n" * (runner.STATEMENTS + 1)
    with pytest.raises(runner.CannotRun, match="ended the whole process"):
        graded(tmp_path, text, "vec")


@pytest.mark.parametrize("text", ["", "def vec(V):", "\x00", "def vec(V:\n  pass\n(", "'''", "return 3", "\tx\n y"])
def test_any_text_is_graded(tmp_path: Path, text: str) -> None:
    rows = graded(tmp_path, text, "vec")
    assert rows["vec"].verdict in ("not there", "failed")


def test_several_things_that_are_no_functions(tmp_path: Path) -> None:
    text = ("class A: pass\nfrom functools import partial\nimport numpy as np\nvec = lambda V: V.T.ravel()\n"
            "unvec = partial(lambda v, m, n: v.reshape(n, m).T)\n@staticmethod\ndef trace_pi(A, G):\n    return 1.0\n")
    rows = graded(tmp_path, text, "vec", "unvec", "trace_pi")
    assert [row.verdict for row in rows.values()] == ["right", "right", "wrong"]


# The commands.


def test_from_blank_to_graded_by_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    assert program(FOLDER / "new.py", path).returncode == 0
    again = program(FOLDER / "new.py", path)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "is there already" in again.stderr
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


def test_no_solution_is_ever_printed(hostile: SimpleNamespace) -> None:
    report = "\n".join(check._report(list(hostile.rows.values()), hostile.outcome, 9))
    for e in EXERCISES.values():
        for line in secret(e):
            assert line not in report


def test_all_right_is_status_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "right.py"
    path.write_text("\ufeff" + source.SOURCE.read_text(), encoding="utf-8")     # as some editors save it
    assert check.main([str(path), "--only", "vec"]) == 0
    assert "1 of 1 points: 1 right" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["no_such_file.py"], "no such file"), (["."], "no such file"), ([str(source.SOURCE), "--only", "vek"], "vek"),
    ([str(source.SOURCE), "--seconds", "-1"], "seconds"), ([str(source.SOURCE), "--seconds", "nan"], "seconds")])
def test_bad_input_is_one_line_and_status_two(arguments: list[str], words: str,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_what_is_no_text_and_what_is_too_large_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"\xff\xfe\xff")
    assert check.main([str(path)]) == 2
    path.write_bytes(b"#" * (check.LARGEST + 1))
    assert check.main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


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
