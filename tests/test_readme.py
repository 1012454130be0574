"""README.md and the pages that it links to: the examples print what is written, the commands run, the files exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from kfac_ref import cli
from tests.test_datasets_generated import write as write_mnist

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/training.md", "figures/README.md")}
README, TRAINING, FIGURES = PAGES.values()
#: The commands: indented lines, without the comments beside them.
COMMANDS = re.findall(r"^    (\S.*?)(?:  +#.*)?$", re.sub(r"```.*?```", "", README + TRAINING, flags=re.DOTALL),
                      re.MULTILINE)


@pytest.mark.parametrize(("page", "number"), [("README.md", 3), ("docs/training.md", 1)])
def test_the_examples_print_what_the_page_says(page: str, number: int) -> None:
    examples = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", PAGES[page], re.DOTALL)
    assert len(examples) == PAGES[page].count("```python") == number
    names: dict[str, object] = {}                           # each example continues the one before
    for code, expected in examples:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        assert out.getvalue() == expected


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_the_training_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few steps, and a small network on small files in the format of MNIST."""
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    for part, n in (("train", 1000), ("t10k", 20)):
        write_mnist(Path("FOLDER"), part, n)
    commands = re.findall(r"^    \.venv/bin/kfac-ref (train .*)$", PAGES[page], re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        fewer = "--iterations 4" if "--resume" in command else "--iterations 2"
        smaller = "--side 7 --net 49-3-49" if "--data mnist" in command else ""
        assert cli.main(shlex.split(f"{command} {fewer} {smaller}")) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_names_something_that_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == ".venv/bin/kfac-ref":
        with pytest.raises(SystemExit) as done:
            cli.main([words[0], "--help"])
        assert done.value.code == 0
        if words[0] == "check":                             # tests/test_check_your_own.py runs it
            assert f"$ kfac-ref {' '.join(words)}\n" in (ROOT / "docs" / "check_your_own.md").read_text()
    elif words[0] == "-m":
        assert words[1:] in (["venv", ".venv"], ["pip", "install", "-e", ".[test]"])
    else:
        assert program == ".venv/bin/python"
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+\.(?:py|md|cff|json))`", README + TRAINING))
                                        - {"run.json"}))
def test_the_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "kfac_ref" / path).exists()


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page: str) -> None:
    links = re.findall(r"\]\((?!https:)([^)]+)\)|(?:src|href)=\"([^\"]+)\"", PAGES[page])
    assert links or page == "docs/training.md"
    for link in map("".join, links):
        path = (ROOT / page).parent / link
        assert path.exists(), link
        assert path.suffix != ".png" or path.read_bytes().startswith(b"\x89PNG"), link


def test_its_table_is_that_of_the_committed_run() -> None:
    runs = json.loads((ROOT / "figures/demo/summary.json").read_text())["autoencoder"]
    levels = [level.strip() for level in README.split("to an error of |")[1].split("\n")[0].split("|")[:-1]]
    rows = re.findall(r"^\| (K-FAC|SGD|Adam)[^|]*, m = (\d+)[^|]*\|(.*)\|$", README, re.MULTILINE)
    assert len(rows) == len(runs)
    for method, batch, cells in rows:
        for level, cell in zip(levels, cells.split("|"), strict=True):
            hits = [run["levels"][level] for run in runs[f"{method}, m = {batch}"]["runs"]]
            middle = [np.median([hit[key] if hit else np.inf for hit in hits]) for key in ("iterations", "seconds")]
            expected = f"{middle[0]:.0f} / {middle[1]:.2f}" if np.isfinite(middle[0]) else "-"
            assert cell.strip() == expected


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([\w-]+)`", "".join(PAGES.values())))))
def test_its_targets_are_in_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_figure_is_in_the_gallery_with_its_command() -> None:
    for script in sorted((ROOT / "figures").glob("*.py")):
        assert f"`python figures/{script.name}`" in FIGURES
