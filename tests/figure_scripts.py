"""The scripts of ``figures/`` as modules, so that what they compute can be tested."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def load(name: str) -> ModuleType:
    """Return the script of that name."""
    path = Path(__file__).parents[1] / "figures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"figure_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
