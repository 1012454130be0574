"""The oracle's quantities: each is a function of what its arguments name, made of the package's own functions."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kfac_ref import oracle
from kfac_ref.oracle import Reference, graph, quantities, vector
from kfac_ref.oracle.graph import NODES, QUANTITIES

#: The modules that compute quantities: without the mistakes, and without the statistics of samples and of rounding.
ORACLE = sorted(path for path in Path(oracle.__file__).parent.glob("*.py")
                if path.stem not in ("draws", "rounding", "sampling"))


@cache
def problem(name: str) -> oracle.Problem:
    return vector(name).problem


class Recording(Reference):
    """A reference that remembers what a function asks of it; what that takes in turn is asked of another one."""

    def __init__(self, problem: oracle.Problem) -> None:
        super().__init__(problem)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return Reference(self.problem)[name]


@pytest.mark.parametrize("name", list(NODES))
def test_a_node_is_made_from_what_its_signature_names(name: str) -> None:
    node = NODES[name]
    arguments = {*node.arguments} - {"problem", "reference"}
    assert {*node.needs} == arguments | {*node.reads}
    assert {*node.needs} <= {*NODES}
    assert bool(node.reads) == ("reference" in node.arguments)
    along = "trajectory" in name or name in ("hyper", "lambda_before", "lambda_after")
    recording = Recording(problem("trajectory-categorical" if along else "categorical-tanh"))
    node.compute(recording)
    assert arguments <= recording.asked <= {*node.needs}


def test_only_what_a_signature_cannot_say_takes_the_reference() -> None:
    assert {name for name, node in NODES.items() if "reference" in node.arguments} == {
        "step_sampled", "step_empirical", "new", "Delta", "moved", "trajectory"}


@pytest.mark.parametrize("name", [name for name in QUANTITIES if not name.startswith("trajectory")])
def test_a_quantity_is_a_plain_function_whose_docstring_is_its_equation(name: str) -> None:
    function = getattr(quantities, name)
    assert function is NODES[name].function
    assert function.__doc__ == QUANTITIES[name].equation != ""


def test_a_quantity_can_be_computed_from_plain_arrays() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(quantities.A((a,), 2)[0], [[5.0, 7.0], [7.0, 10.0]])


def test_a_mistake_reaches_what_is_made_from_the_changed_node_and_nothing_else() -> None:
    reference = Reference(vector("categorical-tanh").problem)
    wrong = reference.having(oracle.CATALOGUE["A twice too large"])
    assert wrong["G"] is reference["G"]
    assert wrong["gradient"] is reference["gradient"]
    np.testing.assert_array_equal(wrong["A"][0], 2 * reference["A"][0])
    assert not np.allclose(wrong["step_sampled"][0], reference["step_sampled"][0])


@pytest.mark.parametrize(("name", "meant"), [("Gs", "G"), ("gradients", "gradient"), ("stepp", "step")])
def test_an_unknown_name_is_refused_with_the_one_that_may_be_meant(name: str, meant: str) -> None:
    with pytest.raises(KeyError, match=f"not a quantity.*did you mean {meant}\\?"):
        Reference(vector("categorical-tanh").problem)[name]


def contractions(source: str) -> list[str]:
    """Return the contractions over examples that are written by hand: ``x.T @ y``, einsum and the like."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and ast.unparse(node.left).endswith(".T"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Attribute) and node.attr in ("einsum", "tensordot", "outer", "matmul"):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", ORACLE, ids=lambda path: path.stem)
def test_no_module_of_the_oracle_forms_a_contraction_by_hand(path: Path) -> None:
    assert contractions(path.read_text(encoding="utf-8")) == []


def test_contractions_are_seen() -> None:
    assert contractions("G = g.T @ g / N; F = np.einsum('ni,nj->ij', g, a)") == ["g.T @ g", "np.einsum"]
    assert graph.__name__.rsplit(".", 1)[1] in {path.stem for path in ORACLE}
