"""The page "Check your own K-FAC in five minutes": its files, commands and answers, as they stand there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from kfac_ref import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "check_your_own.md").read_text()


def test_the_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"`(\w+\.json)`:\n\n```json\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in files] == ["arrays.json", "theirs.json", "more.json"]
    for name, text in files:
        Path(name).write_text(text)
    commands = re.findall(r"```console\n\$ kfac-ref (.*?)\n(.*?)```", PAGE, re.DOTALL)
    assert len(commands) == 4
    for command, expected in commands:
        assert cli.main(shlex.split(command)) == ("differs" in expected)
        assert capsys.readouterr().out == expected
    torch, code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    recipe = (ROOT / "docs" / "recipes" / "check_torch.py").read_text()
    assert torch == recipe[recipe.index("import numpy"):recipe.index("\ncli.main")].replace(
        "from kfac_ref import cli\n\n", "")
    commands = re.findall(r"^kfac-ref (.*)", re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1], re.MULTILINE)
    assert [shlex.split(command) for command in commands] == [
        ast.literal_eval(call) for call in re.findall(r"^cli\.main\((.*)\)", recipe, re.MULTILINE)]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:docs|kfac_ref)/[\w/.]+)`|\]\(([\w.]+)\)", PAGE))))
def test_the_files_that_it_names_are_there(path: tuple[str, str]) -> None:
    assert (ROOT / path[0]).exists() if path[0] else (ROOT / "docs" / path[1]).exists()
