"""An entry of the catalogue, and helpers for its changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import layers
from ...checks import Array
from ..graph import NODES, Reference

Right = Callable[[], Any]                       # makes the right value
Change = Callable[[Reference, Right], Any]      # makes the wrong value

FACTORS_A = ("A", "A_cross")
FACTORS_G = ("G", "G_sampled", "G_empirical", "G_cross", "G_cross_sampled")
FISHERS = ("fisher", "fisher_sampled", "fisher_empirical")
STEPS = ("step", "step_tridiagonal", "step_exact_damping", "natural_gradient", "ekfac_step")


@dataclass(frozen=True, eq=False)
class Mistake:
    """One entry of the catalogue; `what` was done, `why` it is wrong and the `remedy` are a sentence each."""

    name: str
    what: str
    why: str
    remedy: str
    #: Node to the function that makes its wrong value.
    changes: Mapping[str, Change] = field(repr=False)
    reads: tuple[str, ...] = ()     # the nodes that those functions read, except the inputs of the changed node
    group: str = ""
    #: Quantity to a function of reference and value, for values that are shown in another form but used correctly.
    shows: Mapping[str, Callable[[Reference, Any], Any]] = field(default_factory=dict, repr=False)
    of_biases: bool = False         # whether it needs layers with biases

    def __str__(self) -> str:
        """Return the texts of the mistake."""
        return f"{self.name}: {self.what}\n  why it is wrong: {self.why}\n  remedy: {self.remedy}"


#: All known mistakes, by name; `kfac-ref mistakes` prints them.
CATALOGUE: dict[str, Mistake] = {}


def add(group: str, name: str, what: str, why: str, remedy: str, changes: Mapping[str, Change],
        reads: tuple[str, ...] = (), shows: Mapping[str, Callable[[Reference, Any], Any]] | None = None,
        of_biases: bool = False) -> None:
    """Add an entry to the catalogue; the arguments are those of `Mistake`."""
    assert name not in CATALOGUE, name
    CATALOGUE[name] = Mistake(name, what, why, remedy, dict(changes), reads, group, dict(shows or {}),
                              of_biases or group == "bias")


def again(name: str, r: Reference, **given: Any) -> Any:
    """Return what the equation of a node gives with some of its inputs replaced."""
    node = NODES[name]
    return node.function(*(given[needed] if needed in given else r.problem if needed == "problem" else r[needed]
                           for needed in node.arguments))


def inputs(*names: str) -> tuple[str, ...]:
    """Return all that the equations of some nodes read."""
    return tuple(dict.fromkeys(needed for name in names for needed in NODES[name].needs))


def times(c: float, value: Any) -> Any:
    """Return c times a number, an array, or each array of a tuple."""
    return tuple(c * X for X in value) if isinstance(value, tuple) else c * value


def scaled(nodes: Sequence[str], factor: Callable[[Reference], float]) -> dict[str, Change]:
    """Return the changes that multiply nodes by a factor."""
    return dict.fromkeys(nodes, lambda r, right: times(factor(r), right()))


def mapped(nodes: Sequence[str], f: Callable[[Array], Array]) -> dict[str, Change]:
    """Return the changes that map the array of each layer."""
    return dict.fromkeys(nodes, lambda r, right: tuple(f(X) for X in right()))


def rows_of(g: Sequence[Array], a_bar: Sequence[Array]) -> Array:
    """Return ``vec(g a_bar^T)`` of all layers for each example and column, as rows."""
    D = [layers.example_gradients(g.reshape(-1, *g.shape[-2:]), a) for g, a in zip(g, a_bar, strict=True)]
    return np.concatenate([d.swapaxes(-1, -2).reshape(len(d) * d.shape[1], -1) for d in D], axis=1)


def N_of(r: Reference) -> float:
    """Return the number of examples."""
    return float(r["N"])


def C_of(r: Reference) -> float:
    """Return the number of outputs."""
    return float(r.problem.sizes[-1])


def M_of(r: Reference) -> float:
    """Return the number of sampled targets per example, 1 if there are none."""
    return float(len(r.problem.targets)) if r.problem.targets is not None else 1.0
