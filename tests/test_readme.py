"""The README's examples print what it says, and its files and targets are there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", README, re.DOTALL)


def test_the_examples_print_what_the_readme_says() -> None:
    assert len(EXAMPLES) == README.count("```python") == 3
    names: dict[str, object] = {}                           # each goes on where the one before ended
    for code, expected in EXAMPLES:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        assert out.getvalue() == expected


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+\.(?:py|md|cff))`", README))))
def test_the_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "kfac_ref" / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))))
def test_its_pictures_are_there(path: str) -> None:
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w+)  |`make (\w+)`", README))))
def test_its_targets_are_in_the_makefile(target: tuple[str, str]) -> None:
    assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
