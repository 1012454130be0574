"""Every tutorial runs, says what it must, and has the parts that a student expects."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))
ANSWERS = [path.parent / "answers" / path.name for path in TUTORIALS]
PARTS = ["**What you will do.**", "**What you will learn.**", "**What you need.**", "## In practice", "## Exercises",
         "## Further reading"]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_it_runs(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(path), run_name="__main__")
    assert out.getvalue().count("\n") >= 5


@pytest.mark.slow
@pytest.mark.parametrize("path", ANSWERS, ids=lambda p: f"answers_{p.stem}")
def test_every_question_has_an_answer_that_runs(path: Path) -> None:
    questions = (path.parents[1] / path.name).read_text().split("## Exercises")[1].split("[Answers]")
    assert questions[1].startswith(f"(answers/{path.name})")
    text = path.read_text()
    assert re.findall(r"^# ## (\d)\. ", text, re.MULTILINE) == re.findall(r"^# (\d)\. ", questions[0], re.MULTILINE)
    assert f"](../{path.name})" in text
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", TUTORIALS + ANSWERS, ids=lambda p: f"{p.parent.name}_{p.stem}")
def test_no_line_inside_a_paragraph_begins_a_list(path: Path) -> None:
    assert re.findall(r"^# \w.*\n# [-+*] .*", re.sub(r"^# \d\. ", "# - ", path.read_text(), flags=re.M), re.M) == []


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_it_has_the_parts_of_every_tutorial_in_their_order(path: Path) -> None:
    text = path.read_text()
    assert [text.index(part) for part in PARTS] == sorted(text.index(part) for part in PARTS)
    assert re.search(rf"^# # {int(path.stem[:2])}\. ", text, re.MULTILINE)
    cells = re.split(r"^(?=# %%)", text, flags=re.MULTILINE)[1:]
    shown = "".join(cell for cell in cells if "hide-input" not in cell[:80])        # not the folded code of pictures
    said = [line for line in shown.splitlines() if not re.fullmatch(r"(# ?(%%.*)?)?", line)]
    assert 100 <= len(said) <= 200                          # one sitting; without blank lines and cell marks
    assert text.count("# %%") >= 10
    assert text.count("assert ") >= 5                       # what it claims, it checks
