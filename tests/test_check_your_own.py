"""The page "Check your own K-FAC in five minutes": its files, commands and answers, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kfac_ref import cli

PAGE = (Path(__file__).parents[1] / "docs" / "check_your_own.md").read_text()


def test_the_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"`(\w+\.json)`:\n\n```json\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in files] == ["arrays.json", "theirs.json"]
    for name, text in files:
        Path(name).write_text(text)
    commands = re.findall(r"```console\n\$ kfac-ref (.*?)\n(.*?)```", PAGE, re.DOTALL)
    assert len(commands) == 2
    for command, expected in commands:
        assert cli.main(shlex.split(command)) == ("differs" in expected)
        assert capsys.readouterr().out == expected
    code, = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:docs|kfac_ref)/[\w/.]+)`|\]\(([\w.]+)\)", PAGE))))
def test_the_files_that_it_names_are_there(path: tuple[str, str]) -> None:
    root = Path(__file__).parents[1]
    assert (root / path[0]).exists() if path[0] else (root / "docs" / path[1]).exists()
