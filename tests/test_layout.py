"""What holds for the package as a whole: the order of its modules, what importing it costs, what it forbids itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kfac_ref

PACKAGE = Path(kfac_ref.__file__).parent
# The order in which data flows; a module imports only what stands above it. (checks holds the words of every refusal.)
ORDER = ["environment", "checks", "files", "params", "network", "likelihoods", "model", "kronecker", "fisher",
         "hessian", "factors", "damping", "curvature", "quadratic_model", "analysis", "optimizers", "checkpoints",
         "datasets", "plotting", "training", "experiments", "oracle", "testing"]
FREE = {"__init__", "cli", "__main__"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Return the top-level modules of the package that a file imports."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[:len(parts) - node.level]
            inside = [*base, *node.module.split(".")] if node.module else list(base)
            found |= {inside[0]} if inside else {alias.name for alias in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "kfac_ref" for name in names), "the package imports itself relatively"
    return found - {parts[0]} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    name = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if name in FREE:
        return
    above = set(ORDER[:ORDER.index(name)])
    assert imported_modules(path) <= above


def test_the_order_is_seen_at_all() -> None:
    assert {"checks", "fisher", "model"} <= imported_modules(PACKAGE / "factors" / "expectations.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_inverse_is_formed_by_inv_or_pinv_and_no_global_randomness_is_used(path: Path) -> None:
    forbidden = {"inv", "pinv", "seed", "rand", "randn"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in forbidden:
            owner = ast.unparse(node.value)
            assert owner not in {"np.linalg", "scipy.linalg", "np.random"}, f"{owner}.{node.attr} at line {node.lineno}"


def test_nothing_differentiates_for_us() -> None:
    allowed = {"numpy", "scipy", "matplotlib", "tqdm", *sys.stdlib_module_names}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_importing_takes_no_matplotlib_and_less_time_than_numpy_and_scipy() -> None:
    code = ("import sys, time; t = time.process_time(); import numpy, scipy.linalg, tqdm; u = time.process_time(); "
            "import kfac_ref; print((time.process_time() - u) / (u - t), 'matplotlib' in sys.modules)")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)]
    assert {run[1] for run in runs} == {"False"}
    assert min(float(run[0]) for run in runs) < 1


@pytest.mark.parametrize("name", kfac_ref.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert (getattr(kfac_ref, name).__doc__ or "").strip()


def test_the_public_names_are_all() -> None:
    public = {name for name in vars(kfac_ref) if not name.startswith("_")}
    # Imported by others only: Matplotlib comes with them.
    assert public - {"plotting", "experiments", "cli", "testing"} == set(kfac_ref.__all__)
