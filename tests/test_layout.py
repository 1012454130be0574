"""What holds for the package as a whole: the order of its modules, what importing it costs, what it forbids itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kfac_ref

PACKAGE = Path(kfac_ref.__file__).parent
# The order in which data flows; a module imports only what is above it. The command line comes last.
ORDER = ["checks", "environment", "files", "params", "layers", "network", "gather", "shared", "likelihoods", "parts",
         "model", "expectations", "kronecker", "fisher", "hessian", "factors", "damping", "curvature", "approximations",
         "quadratic_model", "optimizers", "analysis", "datasets", "plotting", "training", "checkpoints", "experiments",
         "parallel", "oracle", "vectors", "testing", "cli", "__main__"]
MODULES = sorted(PACKAGE.rglob("*.py"))
#: A module is read in one sitting.
LINES = 320
#: So is a function, whose docstring is not counted.
CODE = 40


def imported_modules(path: Path) -> set[str]:
    """Return the top-level modules of the package that a file imports, other than for its annotations."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    tree, found = ast.parse(path.read_text()), set()
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    left_out = {inner for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[:len(parts) - node.level]
            inside = [*base, *node.module.split(".")] if node.module else list(base)
            found |= {inside[0]} if inside else {alias.name for alias in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "kfac_ref" for name in names), "the package imports itself relatively"
    return found - {parts[0]} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_above_it(path: Path) -> None:
    name = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if name == "__init__":
        return
    above = set(ORDER[:ORDER.index(name)])
    assert imported_modules(path) <= above


def test_the_order_is_seen_at_all() -> None:
    assert imported_modules(PACKAGE / "factors" / "kronecker.py") == {"checks", "expectations", "layers", "model"}
    assert imported_modules(PACKAGE / "expectations.py") == {"checks", "model"}


@pytest.mark.parametrize("path", [path for path in MODULES if "oracle" not in path.relative_to(PACKAGE).parts],
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES


def lines_of_code(function: ast.FunctionDef, source: list[str]) -> int:
    """Return the number of lines of a function without its signature, docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = {i for statement in body for i in range(statement.lineno, (statement.end_lineno or 0) + 1)}
    return sum(bool(source[i - 1].strip()) and not source[i - 1].strip().startswith("#") for i in lines)


@pytest.mark.parametrize("path", [path for path in MODULES if "oracle" not in path.relative_to(PACKAGE).parts],
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_function_is_long(path: Path) -> None:
    source = path.read_text().splitlines()
    for function in ast.walk(ast.parse("\n".join(source))):
        if isinstance(function, ast.FunctionDef):
            assert lines_of_code(function, source) <= CODE, function.name


def test_lines_of_code_are_counted_without_what_explains_them() -> None:
    source = ["def f(", "    a):", '    """Words.', '    """', "    # why", "", "    b = (a,", "         1)",
              "    return b"]
    (function,) = ast.parse("\n".join(source)).body
    assert isinstance(function, ast.FunctionDef)
    assert lines_of_code(function, source) == 3


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_inverse_is_formed_by_inv_or_pinv_and_no_global_randomness_is_used(path: Path) -> None:
    forbidden = {"inv", "pinv", "seed", "rand", "randn"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in forbidden:
            owner = ast.unparse(node.value)
            assert owner not in {"np.linalg", "scipy.linalg", "np.random"}, f"{owner}.{node.attr} at line {node.lineno}"


def test_nothing_differentiates_for_us() -> None:
    allowed = {"numpy", "scipy", "matplotlib", "tqdm", "threadpoolctl", *sys.stdlib_module_names}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= allowed, path


@pytest.mark.slow
def test_importing_takes_no_matplotlib_and_less_time_than_numpy_and_scipy() -> None:
    code = ("import sys, time; t = time.process_time(); import numpy, scipy.linalg, scipy.special, tqdm; "
            "u = time.process_time(); import kfac_ref; "
            "print((time.process_time() - u) / (u - t), 'matplotlib' in sys.modules)")
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
