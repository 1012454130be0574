"""What a program with some mistakes computes: the package's equations, put together here.

`Program` evaluates the equations one after another and puts each mistake in place of, or around, the equation that it
changes. It does not use the resolver of the oracle (which shares values between mistakes and knows what each of them
affects) nor its search, so that tests can compare these with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from unittest import mock

import numpy as np

from kfac_ref.oracle import Mistake, Problem, quantities, trajectory
from kfac_ref.oracle.graph import NODES

FAILS = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)


class Program:
    """The values of a problem with mistakes, in their order; the arguments are those of `Reference`."""

    def __init__(self, problem: Problem, mistakes: Sequence[Mistake] = (), given: Mapping[str, Any] | None = None,
                 kept: Any = None) -> None:
        self.problem, self.mistakes, self.given = problem, tuple(mistakes), dict(given or {})
        self.values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            self.values[name] = self._value(name, len(self.mistakes))
        return self.values[name]

    def _value(self, name: str, count: int) -> Any:
        """Return a value with the first `count` mistakes in its own equation."""
        for i in range(count - 1, -1, -1):
            if name in self.mistakes[i].changes:
                return self.mistakes[i].changes[name](self, functools.partial(self._value, name, i))
        return self.given[name] if name in self.given else NODES[name].compute(self)

    def taking(self, **given: Any) -> Program:
        return Program(self.problem, self.mistakes, {**self.given, **given})

    def part_of(self, name: str) -> tuple[str, ...]:
        return ()

    def shown(self, name: str) -> Any:
        value = self[name]
        for mistake in self.mistakes:
            if name in mistake.shows:
                value = mistake.shows[name](self, value)
        return value


def values(problem: Problem, mistakes: Sequence[Mistake], names: Iterable[str]) -> dict[str, Any]:
    """Return what a program with these mistakes would give, as far as it gives finite values."""
    found = {}
    with mock.patch.object(quantities, "Reference", Program), mock.patch.object(trajectory, "Reference", Program), \
            np.errstate(all="ignore"):
        program: Any = Program(problem, mistakes)
        for name in names:
            with suppress(*FAILS):
                value = program.shown(name)
                if finite(value, name == "trajectory_rho"):
                    found[name] = value
    return found


def finite(value: Any, nan: bool = False) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all((nan or not np.isnan(v).any()) and not np.isinf(v).any() for v in map(np.asarray, parts))


def is_wrapper(mistake: Mistake, problem: Problem) -> bool:
    """Return whether a mistake uses the right value of what it changes, in place of computing another one."""
    used = []
    program: Any = Program(problem)
    for name, change in mistake.changes.items():
        with suppress(*FAILS, AttributeError), np.errstate(all="ignore"):       # such as lambda without a trajectory
            change(program, lambda name=name: (used.append(name), program[name])[1])
    return bool(used) or bool(mistake.shows)


def same(a: Mapping[str, Any], b: Mapping[str, Any], rtol: float = 1e-9) -> bool:
    """Return whether two programs give the same values of the same quantities."""
    return a.keys() == b.keys() and all(close(a[name], b[name], rtol) for name in a)


def close(a: Any, b: Any, rtol: float) -> bool:
    if isinstance(a, tuple) or isinstance(b, tuple):
        return isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and all(
            close(x, y, rtol) for x, y in zip(a, b, strict=True))
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        return False
    size = max(float(np.nanmax(np.abs(a), initial=0)), float(np.nanmax(np.abs(b), initial=0)), math.ulp(0))
    return bool(np.allclose(a, b, rtol=0, atol=rtol * size, equal_nan=True))
