"""Each recipe of docs/recipes runs as it stands and finds all right; so does the command line on what it leaves."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import require

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.py"))
MODULES = {path: path.stem.removeprefix("check_") for path in RECIPES}
if not any(importlib.util.find_spec(module) for module in MODULES.values()):
    require.missing("peers", "none of the peers is installed (make peers installs them)")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_finds_all_right(path: Path, tmp_path: Path) -> None:
    require.peer(MODULES[path], MODULES[path])
    text = path.read_text()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.rstrip().endswith("all right"), run.stdout
    words = re.search(r"kfac-ref (check .*)", text)
    assert words is not None
    shell = subprocess.run([sys.executable, "-m", "kfac_ref", *words[1].split()], cwd=tmp_path, env=environment,
                           capture_output=True, text=True)
    assert shell.returncode == 0, shell.stderr
    assert "all right" in shell.stdout
