"""Trajectories: Algorithm 2 (paper: sec. 9) step by step on stored batches, as quantities of a problem.

Each step is a problem whose factors are the running average at the last refresh, so a mistake in any quantity changes
the trajectory as it would in a program.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import damping, params
from ..checks import Array
from . import quantities  # noqa: F401  (the steps use them)
from .graph import NODES, ROOM, Cache, Reference, node, quantity
from .problem import Problem

if TYPE_CHECKING:
    from .mistakes import Mistake

SCALARS = ("lambda", "gamma", "alpha", "mu", "M", "rho")


def steps(problem: Problem, mistakes: Sequence[Mistake] = (), shared: dict[Any, Any] | None = None
          ) -> Iterator[dict[str, Any]]:
    """Yield ``lambda, gamma, alpha, mu, M, rho`` (NaN if not measured) of each step and the ``weights`` after it.

    `shared` caches the values of the first step across mistakes.
    """
    t = problem.trajectory
    assert t is not None
    lambda_ = t.lambda_0
    gamma = min(max(math.sqrt(t.lambda_0 + problem.weight_decay), t.gamma_min), t.gamma_max)
    last: Sequence[Array] | None = None
    old: dict[str, Any] = {}
    used, used_gamma = old, gamma
    for k, batch in enumerate(t.batches, 1):
        once = _once(shared if k == 1 else None)
        cache = functools.partial(Cache, once("room", lambda: [float(ROOM)]))
        part = once("part", functools.partial(_on, problem, batch.rows[batch.rows1], targets=batch.targets[None]))
        part = Reference(part, mistakes, {"k": k - 1, "ceiling": t.ceiling, "old": old}, once("of part", cache))
        names = ("A", "G", "A_cross", "G_cross") if t.structure == "block-tridiagonal" else ("A", "G")
        old = {name: part[f"{name}_average"] for name in names}
        refresh = k <= 3 or k % t.T3 == 0
        gammas = damping.gamma_candidates(gamma, t.omega2, t.gamma_min, t.gamma_max) if k % t.T2 == 0 else (gamma,)
        used = old if refresh else used
        whole = once("whole", functools.partial(_on, problem, batch.rows, targets=None, delta_0=last, previous=None))
        two = once("two", functools.partial(_on, whole, batch.rows2, delta_0=None))
        two = Reference(two, mistakes, kept=once("of two", cache))
        given = {f"{name}_solve": value for name, value in used.items()} | {"hyper": t, "structure": t.structure,
            "model_damping": lambda_ + problem.weight_decay, "g_F": two["g_model"], "a_bar_F": two["a_bar"]}
        # The given values contain mistakes: share only between references in which the same mistakes acted.
        acting = *(part.part_of(f"{name}_average") for name in names), two.part_of("g_model"), two.part_of("a_bar")
        tried = []
        for candidate in gammas:
            root = candidate if refresh else used_gamma
            damped = once(("damped", root), functools.partial(whole.changed, damping=root**2))
            tried.append(Reference(damped, mistakes, given,
                                   once(("of damped", root, acting), functools.partial(cache, bounded=any(acting)))))
        best = min(range(len(gammas)), key=lambda i: tried[i]["M"])
        r, gamma = tried[best], gammas[best]
        used_gamma = gamma if refresh else used_gamma
        step = {"lambda": lambda_, "gamma": gamma, "alpha": r["alpha"], "mu": r["mu"], "M": r["M"], "rho": math.nan}
        if k % t.T1 == 0:
            step["rho"] = r["rho"]
            lambda_ = r.taking(rho=step["rho"], lambda_before=lambda_)["lambda_after"]
        weights = tuple(params.add(problem.weights, r["delta"]))
        last = r["kept_step"] if t.momentum else None
        yield {**step, "weights": r["recorded"]}
        problem = problem.changed(weights=weights, trajectory=None)


def _once(shared: dict[Any, Any] | None) -> Callable[[Any, Callable[[], Any]], Any]:
    """Return a function that makes a value once per key, if there is a cache."""
    def once(key: Any, make: Callable[[], Any]) -> Any:
        """Return the value that is cached under a key, or make it."""
        if shared is None:
            return make()
        if key not in shared:
            shared[key] = make()
        return shared[key]
    return once


def _on(problem: Problem, rows: Any, **changes: Any) -> Problem:
    """Return the problem of one step on some rows."""
    return problem.changed(x=problem.x[rows], y=problem.y[rows], trajectory=None, **changes)


node("kept_step")(lambda delta: delta)
node("recorded")(lambda weights, delta: tuple(params.add(weights, delta)))
node("hyper")(lambda problem: problem.trajectory)
node("lambda_before")(lambda hyper: hyper.lambda_0)
node("lambda_after")(lambda rho, lambda_before, hyper:
                     damping.next_lambda(lambda_before, rho, hyper.omega1, hyper.lambda_floor))
node("trajectory", *NODES)(lambda reference: list(steps(reference.problem, reference.mistakes)))


def _show_along(name: str, note: str) -> None:
    """Add one number per step as a quantity."""
    def along(trajectory: list[dict[str, Any]]) -> Array:
        return np.array([step[name] for step in trajectory])
    along.__name__, along.__doc__ = f"trajectory_{name}", "of each step" + note
    quantity(name, "(T,)", "sec. 9 (Algorithm 2)", "trajectory", fields=("trajectory",))(along)


_NOTES = {"lambda": ", as used in it", "gamma": ", as used in it", "rho": ", null where not measured"}
for _name in SCALARS:
    _show_along(_name, _NOTES.get(_name, ""))


@quantity("theta", "(T, m, n) per layer", "sec. 9 (Algorithm 2)", "trajectory", fields=("trajectory",))
def trajectory_weights(trajectory: list[dict[str, Any]]) -> tuple[Array, ...]:
    """after each step"""
    return tuple(np.stack(W) for W in zip(*(step["weights"] for step in trajectory), strict=True))
