"""The graph of the quantities, and how mistakes propagate through it.

The arguments of each function (in `quantities`) are named after the nodes that it is computed from. A mistake (in
`mistakes`) changes one or a few nodes; whatever is computed from those is then wrong in the way that a program with
that mistake is. Values are cached together with the mistakes that affect them, so mistakes and pairs of them share all
other values.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .checks import near
from .problem import Problem

if TYPE_CHECKING:
    from .mistakes import Mistake

Function = TypeVar("Function", bound=Callable[..., Any])


class Node:
    """A function whose arguments are named after the nodes that it is computed from, or ``problem`` or ``reference``.

    `reads` names the nodes that it reads from its argument ``reference``.
    """

    def __init__(self, function: Callable[..., Any], reads: tuple[str, ...] = ()) -> None:
        self.function, self.reads = function, reads
        self.arguments = tuple(inspect.signature(function).parameters)
        self.needs = *(name for name in self.arguments if name not in ("problem", "reference")), *reads

    def compute(self, reference: Reference) -> Any:
        """Return the value of the node."""
        return self.function(*(reference if name == "reference" else reference.problem if name == "problem" else
                               reference[name] for name in self.arguments))


@dataclass(frozen=True)
class Quantity:
    """A node that users see.

    `kind` describes the accuracy: "sum", "solve" (loses the condition number of its system), "basis" (eigenvectors,
    which are not unique where eigenvalues are equal) or "trajectory". `fields` names the optional fields of a problem
    that it needs.
    """

    name: str
    equation: str
    symbol: str
    shape: str
    source: str
    kind: str = "sum"
    fields: tuple[str, ...] = ()


#: The wrong values that references share, one per mistake and per pair, take at most so many bytes.
ROOM = 2**27
_ABSENT = object()
#: What an equation with wrong inputs may raise.
FAILS = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)
NODES: dict[str, Node] = {}
#: Everything that can be compared, by name; `kfac-ref quantities` prints them.
QUANTITIES: dict[str, Quantity] = {}


class Cache(dict[Any, Any]):
    """Values of nodes by name and mistakes, shared between references.

    `room` is how many bytes may still be added: a list with one number, which several caches may share. Right values
    are always kept, if not `bounded`.
    """

    def __init__(self, room: list[float] | None = None, bounded: bool = False) -> None:
        super().__init__()
        self.room, self.bounded = [float(ROOM)] if room is None else room, bounded

    def has_room_for(self, value: Any, mistakes: tuple[str, ...]) -> bool:
        """Return whether a value may be added, and count its bytes."""
        if not mistakes and not self.bounded:
            return True
        if (size := _bytes(value)) > self.room[0]:
            return False
        self.room[0] -= size
        return True


class Reference:
    """The quantities of a problem, with `mistakes` applied in this order.

    `given` has values of nodes that replace the computed ones, and `kept` is the cache of another reference of the same
    problem.
    """

    def __init__(self, problem: Problem, mistakes: Sequence[Mistake] = (), given: Mapping[str, Any] | None = None,
                 kept: Cache | None = None) -> None:
        self.problem, self.mistakes, self.given = problem, tuple(mistakes), dict(given or {})
        self._kept = Cache() if kept is None else kept
        self._own = dict[Any, Any]()                        # what the shared cache has no room for

    def having(self, *mistakes: Mistake) -> Reference:
        """Return a reference with these mistakes that shares all values they do not affect."""
        return Reference(self.problem, mistakes, self.given, self._kept)

    def taking(self, **given: Any) -> Reference:
        """Return a reference with the values of some nodes replaced."""
        return Reference(self.problem, self.mistakes, {**self.given, **given})

    def __getitem__(self, name: str) -> Any:
        """Return a quantity by name.

        Raises KeyError for an unknown name, and ValueError if the problem lacks what it needs or a matrix is singular.
        """
        if name not in NODES:
            raise KeyError(f"{name!r:.60} is not a quantity (kfac-ref quantities lists them){near(name, QUANTITIES)}")
        key = name, self._part_of(name)
        if (value := self._kept.get(key, _ABSENT)) is _ABSENT and (value := self._own.get(key, _ABSENT)) is _ABSENT:
            value = self._value(name)
            cache = self._kept if self._kept.has_room_for(value, key[1]) else self._own
            cache[key] = value
        if isinstance(value, ValueError):
            raise ValueError(*value.args)
        return value

    def shown(self, name: str) -> Any:
        """Return a quantity as a program with these mistakes would show it."""
        shows = [mistake.shows[name] for mistake in self.mistakes if name in mistake.shows]
        return functools.reduce(lambda value, show: show(self, value), shows, self[name])

    def names(self) -> list[str]:
        """Return the names of the quantities that the problem defines."""
        return [name for name, q in QUANTITIES.items() if missing(q, self.problem) is None]

    def _value(self, name: str) -> Any:
        make: Callable[[], Any] = functools.partial(
            self.given.get, name) if name in self.given else functools.partial(NODES[name].compute, self)
        for mistake in self.mistakes:
            if name in mistake.changes:
                make = functools.partial(mistake.changes[name], self, make)
        try:
            with np.errstate(all="ignore"):                 # a wrong value may be infinite
                return make()
        except FAILS as error:
            return ValueError(f"{name}: {error}")

    def part_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the mistakes that affect a quantity as it is shown."""
        found = set(self._part_of(name))
        for mistake in self.mistakes:
            if name in mistake.shows:
                found |= {mistake.name, *(part for read in mistake.reads for part in self._part_of(read))}
        return tuple(m.name for m in self.mistakes if m.name in found)

    def _part_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the mistakes that affect a node, in their order."""
        if not self.mistakes:
            return ()
        reached, found = [self.below(name)], [False] * len(self.mistakes)
        grown = True
        while grown:                                        # a mistake may read what another changes
            grown = False
            for i, mistake in enumerate(self.mistakes):
                if not found[i] and any(not nodes.isdisjoint(mistake.changes) for nodes in reached):
                    found[i] = grown = True
                    # A given node has no inputs, but a change of it may read them.
                    reached += [self.below(read) for read in mistake.reads]
        return tuple(m.name for m, is_part in zip(self.mistakes, found, strict=True) if is_part)

    def below(self, name: str) -> frozenset[str]:
        """Return the names of a node and of all nodes that it is computed from."""
        key = "below", name
        if key not in self._kept:
            needs = () if name in self.given else NODES[name].needs
            self._kept[key] = frozenset({name}).union(*map(self.below, needs))
        nodes: frozenset[str] = self._kept[key]
        return nodes


def _bytes(value: Any) -> float:
    """Return the size of numbers and arrays; that of other objects is not known."""
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    return value.nbytes if isinstance(value, (np.ndarray, np.generic)) else 8 if isinstance(value, (int, float)) else \
        math.inf


def missing(quantity: Quantity, problem: Problem) -> str | None:
    """Return what a problem lacks for a quantity, or None."""
    for name in quantity.fields:
        if name == "two layers" and len(problem.sizes) < 3:
            return "a second layer"
        if name != "two layers" and getattr(problem, name) is None:
            return name
    return None


def node(name: str, *reads: str) -> Callable[[Function], Function]:
    """Return a decorator that adds a function to the graph, as in `Node`."""
    def _add(function: Function) -> Function:
        NODES[name] = Node(function, reads)
        return function
    return _add


def quantity(symbol: str, shape: str, source: str, kind: str = "sum", *, fields: tuple[str, ...] = (),
             reads: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Return a decorator that adds a quantity to the graph; its docstring is the equation."""
    def _add(function: Function) -> Function:
        name = function.__name__
        QUANTITIES[name] = Quantity(name, function.__doc__ or "", symbol, shape, source, kind, fields)
        return node(name, *reads)(function)
    return _add
