"""Every figure's script runs in its quick form, and writes its picture and its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .figure_scripts import load

SCRIPTS = sorted((Path(__file__).parents[1] / "figures").glob("*.py"))


def test_there_are_figures() -> None:
    assert {"fisher_approximation", "inverse_structure", "tridiagonal", "damping", "batch_size", "convergence",
            "error_as_covariance", "estimators", "error_over_training", "invariance", "approximations", "cost",
            "demo"} <= {path.stem for path in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.stem != "demo"], ids=lambda p: p.stem)   # test_demo
def test_a_figure_is_drawn(path: Path, tmp_path: Path) -> None:
    module = load(path.stem)
    assert (module.__doc__ or "").strip()
    assert module.main(tmp_path, True) == 0
    pictures, numbers = list(tmp_path.glob("*.png")), list(tmp_path.glob("*.json"))
    assert pictures
    assert numbers
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert all(json.loads(file.read_text())["environment"] for file in numbers)
