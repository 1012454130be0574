"""Every figure's script runs in its quick form, and writes its picture and its numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "figures").glob("*.py"))


def test_there_are_figures() -> None:
    assert {"demo", "approximations", "invariance", "cost"} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_figure_is_drawn(path: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"figure_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.__doc__ or "").strip()
    assert module.main(tmp_path, True) == 0
    pictures, numbers = list(tmp_path.glob("*.png")), list(tmp_path.glob("*.json"))
    assert pictures
    assert numbers
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert all(json.loads(file.read_text())["environment"] for file in numbers)
