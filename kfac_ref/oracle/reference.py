"""Every quantity of K-FAC that a problem defines, by name, computed when it is asked for.

The quantities form a graph: each names those that it is made from, and is computed from their values. A mistake
(`mistakes`) is a change of one or a few of them; what is made from those then comes out wrong in the way that it would
in a program with that mistake. Values are kept together with the mistakes that had a part in them, so that a catalogue
of mistakes, in pairs too, shares all that they leave alone.

A quantity is a number, an array, or a tuple with one array a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.linalg

from .. import checks, damping, hessian, kronecker, params
from ..checks import Array
from ..curvature import BlockTridiagonal, EigenDamped
from ..factors import Factors
from ..fisher import exact_columns, sampled_columns
from ..kronecker import Cholesky, Eigen
from ..quadratic_model import SmallModel, reduction_ratio
from .problem import Batch, Problem

#: eps of the running average grows up to this (paper: sec. 5).
CEILING = 0.95


@dataclass(frozen=True)
class _Failed:
    """Why a value could not be computed."""

    why: str


class Mistake(Protocol):
    """What the reference needs of a mistake."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def changes(self) -> Mapping[str, Callable[[Reference, Callable[[], Any]], Any]]:
        """For each node that it changes, the function that makes the wrong value; it may ask for the right one."""

    @property
    def reads(self) -> Sequence[str]:
        """The nodes that those functions read."""

    @property
    def shows(self) -> Mapping[str, Callable[[Reference, Any], Any]]:
        """For each quantity that comes out in another form, the function of the right one."""


@dataclass(frozen=True)
class Node:
    """One value of the graph: what it is made from, and how.

    Attributes
    ----------
    compute : function of Reference
        Returns the value.
    needs : tuple of str
        The nodes that it reads.
    """

    compute: Callable[[Reference], Any]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Quantity:
    """A node that users see.

    Attributes
    ----------
    name, symbol, shape, equation, source : str
        For people; N examples, C outputs, m x n the shape of a layer's weights with the bias in the last column.
    kind : {"sum", "solve", "trajectory"}
        How much of the arithmetic's accuracy is left: a solve loses the condition of its system.
    fields : tuple of str
        The optional fields of a problem that it needs.
    """

    name: str
    symbol: str
    shape: str
    equation: str
    source: str
    kind: str = "sum"
    fields: tuple[str, ...] = ()


NODES: dict[str, Node] = {}
QUANTITIES: dict[str, Quantity] = {}


class Reference:
    """The quantities of a problem.

    Parameters
    ----------
    problem : Problem
        What defines them.
    mistakes : sequence of Mistake
        None for the right values.
    given : mapping, optional
        Values of nodes that are taken in place of those computed.

    Examples
    --------
    >>> import numpy as np
    >>> problem = Problem((1, 1), (), "gaussian", [np.array([[2.0, 0.0]])], [[1.0], [3.0]], [[0.0], [0.0]])
    >>> Reference(problem)["A"][0].tolist(), Reference(problem)["loss"]
    ([[5.0, 2.0], [2.0, 1.0]], 10.0)
    """

    def __init__(self, problem: Problem, mistakes: Sequence[Mistake] = (), given: Mapping[str, Any] | None = None,
                 kept: dict[Any, Any] | None = None) -> None:
        self.problem, self.mistakes, self.given = problem, tuple(mistakes), dict(given or {})
        self._kept: dict[Any, Any] = {} if kept is None else kept

    def having(self, *mistakes: Mistake) -> Reference:
        """Return the same with mistakes; what they leave alone is shared.

        Parameters
        ----------
        *mistakes : Mistake
            In the order in which they are applied.
        """
        return Reference(self.problem, mistakes, self.given, self._kept)

    def taking(self, **given: Any) -> Reference:
        """Return the same with the values of some nodes replaced.

        Parameters
        ----------
        **given : Any
            By name.
        """
        return Reference(self.problem, self.mistakes, {**self.given, **given})

    def __getitem__(self, name: str) -> Any:
        """Return a quantity by name; an error that computing it raised is raised again.

        Parameters
        ----------
        name : str
            One of `names()`.

        Raises
        ------
        KeyError
            For an unknown name.
        ValueError
            Where the problem lacks what it needs, or a matrix is singular.
        """
        key = name, self._part_of(name)
        if key not in self._kept:
            self._kept[key] = self._value(name)
        value = self._kept[key]
        if isinstance(value, _Failed):
            raise ValueError(value.why)
        return value

    def shown(self, name: str) -> Any:
        """Return a quantity as a program with these mistakes would show it.

        Parameters
        ----------
        name : str
            As for the index.
        """
        value = self[name]
        for mistake in self.mistakes:
            if name in mistake.shows:
                value = mistake.shows[name](self, value)
        return value

    def names(self) -> list[str]:
        """Return the names of the quantities that the problem has all it takes for."""
        return [name for name, q in QUANTITIES.items() if missing(q, self.problem) is None]

    def _value(self, name: str) -> Any:
        node = NODES[name]

        def right() -> Any:
            return self.given[name] if name in self.given else node.compute(self)

        make = right
        for mistake in self.mistakes:
            if name in mistake.changes:
                make = _changed(mistake.changes[name], self, make)
        try:
            return make()
        except (ValueError, np.linalg.LinAlgError, ArithmeticError, IndexError) as error:
            return _Failed(f"{name}: {error}")      # with a mistake in it: then it is no explanation of anything

    def part_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the mistakes that have a part in a quantity as it is shown.

        Parameters
        ----------
        name : str
            A quantity.
        """
        found = set(self._part_of(name))
        for mistake in self.mistakes:
            if name in mistake.shows:
                found |= {mistake.name, *(part for node in mistake.reads for part in self._part_of(node))}
        return tuple(m.name for m in self.mistakes if m.name in found)

    def _part_of(self, name: str) -> tuple[str, ...]:
        if not self.mistakes:
            return ()
        key = "parts", name, tuple(m.name for m in self.mistakes)
        if key in self._kept:
            part: tuple[str, ...] = self._kept[key]
            return part
        seen, todo, found = set(), [name], set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node not in self.given:
                todo += NODES[node].needs
            for mistake in self.mistakes:
                if node in mistake.changes:
                    found.add(mistake.name)
                    todo += [*mistake.reads, *NODES[node].needs]
        part = tuple(m.name for m in self.mistakes if m.name in found)
        self._kept[key] = part
        return part


def _changed(change: Callable[..., Any], reference: Reference, right: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: change(reference, right)


def missing(quantity: Quantity, problem: Problem) -> str | None:
    """Return what a problem lacks for a quantity, None where it lacks nothing.

    Parameters
    ----------
    quantity : Quantity
        Which.
    problem : Problem
        Of which.
    """
    for name in quantity.fields:
        if name == "two layers":
            if len(problem.sizes) < 3:
                return "a second layer"
        elif getattr(problem, name) is None:
            return name
    return None


def _node(name: str, *needs: str) -> Callable[[Callable[[Reference], Any]], Callable[[Reference], Any]]:
    def add(compute: Callable[[Reference], Any]) -> Callable[[Reference], Any]:
        NODES[name] = Node(compute, needs)
        return compute
    return add


def _quantity(name: str, symbol: str, shape: str, equation: str, source: str, kind: str = "sum",
              fields: tuple[str, ...] = ()) -> None:
    QUANTITIES[name] = Quantity(name, symbol, shape, equation, source, kind, fields)


# The network at this point.

_node("at")(lambda r: r.problem.at())
_node("N", "at")(lambda r: len(r["at"]))
_node("eta")(lambda r: r.problem.weight_decay)
_node("damping")(lambda r: r.problem.damping)
_node("decay", "eta")(lambda r: tuple(r["eta"] * W for W in r.problem.weights))
_node("z", "at")(lambda r: r["at"].z)
_node("a_bar", "at")(lambda r: r["at"].a_bar)
_node("dz", "at")(lambda r: r.problem.model.likelihood.gradient(r["at"].z, r.problem.y))
_node("dz_exact", "at")(lambda r: exact_columns(r["at"]))
_node("dz_sampled", "at")(lambda r: sampled_columns(r["at"], r.problem.targets))
_node("g", "at", "dz")(lambda r: tuple(r["at"].backward(r["dz"])))
_node("g_exact", "at", "dz_exact")(lambda r: tuple(r["at"].backward(r["dz_exact"])))
_node("g_sampled", "at", "dz_sampled")(lambda r: tuple(r["at"].backward(r["dz_sampled"])))
_node("loss", "at")(lambda r: float(np.mean(r.problem.model.likelihood.nll(r["at"].z, r.problem.y))))


@_node("objective", "loss", "eta")
def _objective(r: Reference) -> float:
    value: float = r["loss"] + r["eta"] / 2 * sum(float(np.vdot(W, W)) for W in r.problem.weights)
    return value


@_node("gradient", "g", "a_bar", "N", "decay")
def _gradient(r: Reference) -> tuple[Array, ...]:
    return tuple(g.T @ a_bar / r["N"] + d for g, a_bar, d in zip(r["g"], r["a_bar"], r["decay"], strict=True))


_quantity("z", "z", "(N, C)", "output of the network", "sec. 2.1")
_quantity("loss", "L", "number", "(1/N) sum_n -log p(y_n | z_n)", "sec. 2.1")
_quantity("objective", "h", "number", "loss + (eta/2) ||theta||^2", "sec. 2.1")
_quantity("a_bar", "a_bar_i", "(N, n) a layer", "[a_i, 1], the input of layer i", "sec. 2.1")
_quantity("g", "g_i", "(N, m) a layer", "gradient of one example's -log p with respect to s_i", "sec. 2.1")
_quantity("gradient", "grad h", "(m, n) a layer", "(1/N) g_i^T a_bar_i + eta W_i", "sec. 2.1")

# Factors.


def second_moment(g: Sequence[Array], h: Sequence[Array], N: float) -> tuple[Array, ...]:
    """Return ``(1/N) sum g h^T`` for each pair of stacks of rows.

    Parameters
    ----------
    g, h : sequences of (N, d) or (K, N, d) arrays
        Rows.
    N : float
        The divisor.
    """
    return tuple(a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1]) / N for a, b in zip(g, h, strict=True))


_node("A", "a_bar", "N")(lambda r: second_moment(r["a_bar"], r["a_bar"], r["N"]))
_node("G", "g_exact", "N")(lambda r: second_moment(r["g_exact"], r["g_exact"], r["N"]))
_node("G_sampled", "g_sampled", "N")(lambda r: second_moment(r["g_sampled"], r["g_sampled"], r["N"]))
_node("G_empirical", "g", "N")(lambda r: second_moment(r["g"], r["g"], r["N"]))
_node("A_cross", "a_bar", "N")(lambda r: second_moment(r["a_bar"][:-1], r["a_bar"][1:], r["N"]))
_node("G_cross", "g_exact", "N")(lambda r: second_moment(r["g_exact"][:-1], r["g_exact"][1:], r["N"]))
_node("G_cross_sampled", "g_sampled", "N")(
    lambda r: second_moment(r["g_sampled"][:-1], r["g_sampled"][1:], r["N"]))

_quantity("A", "A_ii", "(n, n) a layer", "(1/N) sum_n a_bar a_bar^T", "sec. 3")
_quantity("G", "G_ii", "(m, m) a layer", "(1/N) sum_n E_{y ~ model}[g g^T], exactly", "sec. 3")
_quantity("G_sampled", "G_ii", "(m, m) a layer", "mean of g g^T over examples and the sampled targets", "sec. 5",
          fields=("targets",))
_quantity("G_empirical", "G_ii", "(m, m) a layer", "mean of g g^T at the labels", "not in the paper")
_quantity("A_cross", "A_{i,i+1}", "(n_i, n_{i+1})", "(1/N) sum_n a_bar_i a_bar_{i+1}^T", "sec. 4.3",
          fields=("two layers",))
_quantity("G_cross", "G_{i,i+1}", "(m_i, m_{i+1})", "(1/N) sum_n E_{y ~ model}[g_i g_{i+1}^T]", "sec. 4.3",
          fields=("two layers",))

# Exact matrices.


def rows_of(g: Sequence[Array], a_bar: Sequence[Array]) -> Array:
    """Return the per-example gradients as rows: ``vec(g a_bar^T)`` of all layers, for each row of a stack.

    Parameters
    ----------
    g : sequence of (N, m) or (K, N, m) arrays
        Gradients.
    a_bar : sequence of (N, n) arrays
        Inputs.
    """
    def layer(g: Array, a: Array) -> Array:
        g = g.reshape(-1, *g.shape[-2:])
        outer = a[None, :, :, None] * g[:, :, None, :]                      # vec stacks columns: a is the slow index
        return outer.reshape(g.shape[0] * g.shape[1], -1)
    return np.concatenate([layer(*pair) for pair in zip(g, a_bar, strict=True)], axis=1)


def _fisher(name: str) -> Callable[[Reference], Array]:
    def compute(r: Reference) -> Array:
        P = sum(W.size for W in r.problem.weights)
        checks.dense_size("the dense Fisher", P, P, 8)
        U = rows_of(r[name], r["a_bar"])
        return U.T @ U / r["N"]
    return compute


_node("fisher", "g_exact", "a_bar", "N")(_fisher("g_exact"))
_node("fisher_sampled", "g_sampled", "a_bar", "N")(_fisher("g_sampled"))
_node("fisher_empirical", "g", "a_bar", "N")(_fisher("g"))
_node("hessian", "at")(lambda r: hessian.hessian(r["at"], r.problem.y) - r.problem.weight_decay * np.eye(
    sum(W.size for W in r.problem.weights)))
_node("direction")(lambda r: r.problem.direction)


@_node("fisher_product", "direction", "g_exact", "a_bar", "N")
def _fisher_product(r: Reference) -> tuple[Array, ...]:
    slopes = _slopes(r["direction"], r["g_exact"], r["a_bar"])
    return tuple((slopes[..., None] * g).reshape(-1, g.shape[-1]).T @ np.tile(a, (len(slopes), 1)) / r["N"]
                 for g, a in zip(r["g_exact"], r["a_bar"], strict=True))


def _slopes(V: Sequence[Array], g: Sequence[Array], a_bar: Sequence[Array]) -> Array:
    """Return the inner products of the per-example gradients with a direction, (K, N)."""
    parts = [np.einsum("knm,nm->kn", gi, a @ v.T) for gi, v, a in zip(g, V, a_bar, strict=True)]
    return np.sum(parts, axis=0)


_node("kfac_product", "direction", "A", "G")(
    lambda r: tuple(kronecker.product(A, G, V) for A, G, V in zip(r["A"], r["G"], r["direction"], strict=True)))
_node("kfac_block", "A", "G")(lambda r: tuple(map(_kron, r["A"], r["G"])))


def _kron(A: Array, G: Array) -> Array:
    checks.dense_size("the Kronecker product of a layer", len(A) * len(G), len(A) * len(G), 8)
    return np.kron(A, G)


_quantity("fisher", "F", "(P, P)", "(1/N) sum_n E_{y ~ model}[D theta D theta^T], vec stacking columns", "sec. 2.2")
_quantity("fisher_sampled", "F", "(P, P)", "the same at the sampled targets", "sec. 5", fields=("targets",))
_quantity("fisher_empirical", "F", "(P, P)", "the same at the labels", "not in the paper")
_quantity("hessian", "H", "(P, P)", "second derivatives of loss (no weight decay)", "sec. 2.2")
_quantity("fisher_product", "F V", "(m, n) a layer", "exact F times the direction, undamped", "sec. 6.4",
          fields=("direction",))
_quantity("kfac_product", "G V A", "(m, n) a layer", "(A kron G) vec(V), undamped", "sec. 4.2", fields=("direction",))
_quantity("kfac_block", "A kron G", "(mn, mn) a layer", "kron(A_ii, G_ii), undamped", "sec. 3")

# Damping and solves. A_solve and G_solve are the factors that are damped: of the batch, unless told.

_node("A_solve", "A")(lambda r: r["A"])
_node("G_solve", "G")(lambda r: r["G"])
_node("A_cross_solve", "A_cross")(lambda r: r["A_cross"])
_node("G_cross_solve", "G_cross")(lambda r: r["G_cross"])
_node("pi", "A_solve", "G_solve")(
    lambda r: np.array([damping.trace_pi(A, G) for A, G in zip(r["A_solve"], r["G_solve"], strict=True)]))
_node("A_damped", "A_solve", "pi", "damping")(
    lambda r: tuple(damping.add_to_diagonal(A, pi * math.sqrt(r["damping"]))
                    for A, pi in zip(r["A_solve"], r["pi"], strict=True)))
_node("G_damped", "G_solve", "pi", "damping")(
    lambda r: tuple(damping.add_to_diagonal(G, math.sqrt(r["damping"]) / pi)
                    for G, pi in zip(r["G_solve"], r["pi"], strict=True)))


@_node("step", "A_damped", "G_damped", "gradient")
def _step(r: Reference) -> tuple[Array, ...]:
    return tuple(-kronecker.solve(Cholesky.factor(A), Cholesky.factor(G), V)
                 for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"], strict=True))


_STEP = ("gradient", "A_solve", "pi", "A_damped", "G_damped", "step", "damping")
_node("step_sampled", "G_sampled", *_STEP)(lambda r: r.taking(G_solve=r["G_sampled"])["step"])
_node("step_empirical", "G_empirical", *_STEP)(lambda r: r.taking(G_solve=r["G_empirical"])["step"])


@_node("step_tridiagonal", "A_damped", "G_damped", "A_cross_solve", "G_cross_solve", "gradient")
def _step_tridiagonal(r: Reference) -> tuple[Array, ...]:
    damped = Factors(r["A_damped"], r["G_damped"], r["A_cross_solve"], r["G_cross_solve"], r["N"])
    return tuple(-D for D in BlockTridiagonal(damped).solve(r["gradient"]))


@_node("step_exact_damping", "A_solve", "G_solve", "damping", "gradient")
def _step_exact_damping(r: Reference) -> tuple[Array, ...]:
    factors = Factors(r["A_solve"], r["G_solve"], (), (), r["N"])
    return tuple(-D for D in EigenDamped(factors, r["damping"]).solve(r["gradient"]))


@_node("natural_gradient", "fisher", "damping", "gradient")
def _natural_gradient(r: Reference) -> tuple[Array, ...]:
    S = damping.add_to_diagonal(r["fisher"], r["damping"])
    solution = -Cholesky.factor(S, "the damped Fisher").solve(params.flatten(r["gradient"]))
    return tuple(params.unflatten(solution, [V.shape for V in r["gradient"]]))


@_node("ekfac_scales", "g_exact", "a_bar", "A", "G", "N")
def _ekfac_scales(r: Reference) -> tuple[Array, ...]:
    found = []
    for g, a_bar, A, G in zip(r["g_exact"], r["a_bar"], r["A"], r["G"], strict=True):
        U, V = Eigen.factor(A).Q, Eigen.factor(G).Q
        found.append(np.square(g @ V).sum(axis=0).T @ np.square(a_bar @ U) / r["N"])
    return tuple(found)


_quantity("pi", "pi_i", "(L,)", "sqrt((tr A / n) / (tr G / m))", "sec. 6.3")
_quantity("A_damped", "A_ii", "(n, n) a layer", "A + pi sqrt(damping) I", "sec. 6.3")
_quantity("G_damped", "G_ii", "(m, m) a layer", "G + sqrt(damping)/pi I", "sec. 6.3")
_quantity("step", "Delta", "(m, n) a layer", "-G_damped^-1 grad h A_damped^-1, with the exact G", "sec. 4.2, 6.3",
          "solve")
_quantity("step_sampled", "Delta", "(m, n) a layer", "the same with G_sampled", "sec. 5", "solve", ("targets",))
_quantity("step_empirical", "Delta", "(m, n) a layer", "the same with G_empirical", "not in the paper", "solve")
_quantity("step_tridiagonal", "Delta", "(m, n) a layer", "-F-hat^-1 grad h, with the diagonal factors damped",
          "sec. 4.3", "solve", ("two layers",))
_quantity("step_exact_damping", "Delta", "(m, n) a layer", "-(A kron G + damping I)^-1 grad h", "sec. 6.3, app. B",
          "solve")
_quantity("natural_gradient", "Delta", "(m, n) a layer", "-(F + damping I)^-1 grad h, with the exact F", "sec. 2.2",
          "solve")
_quantity("ekfac_scales", "S_i", "(m, n) a layer",
          "(1/N) sum_n E[(U_G^T g a_bar^T U_A)^2], eigenvalues of both ascending, undamped", "George et al. 2018")

# The running average.

_node("k")(lambda r: r.problem.previous.k if r.problem.previous else 0)
_node("ceiling")(lambda r: CEILING)
_node("epsilon", "k", "ceiling")(lambda r: min(1 - 1 / (r["k"] + 1), r["ceiling"]))
_node("old")(lambda r: {"A": r.problem.previous.A, "G": r.problem.previous.G} if r.problem.previous else {})
_node("new", "A", "G", "G_sampled", "A_cross", "G_cross", "G_cross_sampled")(
    lambda r: {"A": r["A"], "G": r["G"]} if r.problem.targets is None else
    {"A": r["A"], "G": r["G_sampled"], "A_cross": r["A_cross"], "G_cross": r["G_cross_sampled"]})


def _average(part: str) -> Callable[[Reference], tuple[Array, ...]]:
    def compute(r: Reference) -> tuple[Array, ...]:
        new, old, epsilon = r["new"][part], r["old"].get(part) or None, r["epsilon"]
        if old is None:
            return tuple((1 - epsilon) * X for X in new)                # epsilon is 0 for the first batch
        return tuple(epsilon * X + (1 - epsilon) * Y for X, Y in zip(old, new, strict=True))
    return compute


for _part in ("A", "G", "A_cross", "G_cross"):
    _node(f"{_part}_average", "new", "old", "epsilon")(_average(_part))
_quantity("A_average", "A_ii", "(n, n) a layer", "eps old + (1 - eps) A, eps = min(1 - 1/(k+1), 0.95)", "sec. 5",
          fields=("previous",))
_quantity("G_average", "G_ii", "(m, m) a layer", "the same of G_sampled, or of the exact G without targets", "sec. 5",
          fields=("previous",))

# Re-scaling, momentum, reduction ratio. The exact F may be of other rows than the rest.

_node("model_damping", "damping")(lambda r: r["damping"])
_node("g_F", "g_exact")(lambda r: r["g_exact"])
_node("a_bar_F", "a_bar")(lambda r: r["a_bar"])
_node("structure")(lambda r: "block-diagonal")
_node("last_step")(lambda r: r.problem.delta_0)


@_node("Delta", "structure", "step", "step_tridiagonal")
def _delta_of(r: Reference) -> tuple[Array, ...]:
    Delta: tuple[Array, ...] = r["step" if r["structure"] == "block-diagonal" else "step_tridiagonal"]
    return Delta


@_node("system", "Delta", "last_step", "gradient", "model_damping", "g_F", "a_bar_F")
def _system(r: Reference) -> SmallModel:
    directions = [V for V in (r["Delta"], r["last_step"]) if V is not None]
    slopes = np.stack([_slopes(V, r["g_F"], r["a_bar_F"]).ravel() for V in directions])
    return SmallModel(slopes @ slopes.T / len(r["a_bar_F"][0]), params.gram(directions),
                      np.array([params.inner(r["gradient"], V) for V in directions]), r["model_damping"])


_node("minimum", "system")(lambda r: r["system"].minimum())
_node("alpha", "minimum")(lambda r: r["minimum"][0][0])
_node("mu", "minimum")(lambda r: (*r["minimum"][0], 0.0)[1])
_node("M", "minimum")(lambda r: r["minimum"][1])


@_node("delta", "alpha", "mu", "Delta", "last_step")
def _delta(r: Reference) -> tuple[Array, ...]:
    delta = params.scale(r["alpha"], r["Delta"])
    return tuple(delta if r["last_step"] is None else params.add(delta, params.scale(r["mu"], r["last_step"])))


@_node("moved", "delta", "loss", "objective", "eta")
def _moved(r: Reference) -> Reference:
    return Reference(r.problem.replace(weights=tuple(params.add(r.problem.weights, r["delta"]))), r.mistakes)


_node("actual", "moved", "objective")(lambda r: r["moved"]["objective"] - r["objective"])
_node("rho", "actual", "M")(lambda r: reduction_ratio(r["actual"], r["M"]))


@_node("kl_clip", "step", "gradient")
def _kl_clip(r: Reference) -> float:
    clip = r.problem.kl_clip
    assert clip is not None
    return min(1.0, math.sqrt(clip.kappa / (clip.learning_rate**2 * abs(params.inner(r["step"], r["gradient"])))))


_quantity("alpha", "alpha", "number", "with mu, the minimum of M(alpha Delta + mu delta_0), exact F, Delta = step",
          "sec. 6.4, 7", "solve")
_quantity("mu", "mu", "number", "0 without a last step delta_0", "sec. 7", "solve")
_quantity("M", "M(delta) - M(0)", "number", "grad^T delta + 1/2 delta^T (F + damping I) delta", "sec. 6.4", "solve")
_quantity("rho", "rho", "number", "(h(theta + delta) - h(theta)) / (M(delta) - M(0))", "sec. 6.5", "solve")
_quantity("kl_clip", "nu", "number", "min(1, sqrt(kappa / (lr^2 |step . grad h|)))", "Ba et al. 2017", "solve",
          ("kl_clip",))

# Trajectories: Algorithm 2, step by step on stored batches.

SCALARS = ("lambda", "gamma", "alpha", "mu", "M", "rho")


def steps(problem: Problem, mistakes: Sequence[Mistake] = (), shared: dict[Any, Any] | None = None
          ) -> Iterator[dict[str, Any]]:
    """Take the steps of a trajectory one after the other.

    Parameters
    ----------
    problem : Problem
        With a trajectory.
    mistakes : sequence of Mistake
        None for the right values.
    shared : dict, optional
        Where the values of the first step are kept, for the next catalogue entry.

    Yields
    ------
    dict
        ``lambda, gamma, alpha, mu, M, rho`` of a step, rho NaN where it is not measured, and the ``weights`` after it.
    """
    t = problem.trajectory
    assert t is not None
    lambda_ = t.lambda_0
    gamma = min(max(math.sqrt(t.lambda_0 + problem.weight_decay), t.gamma_min), t.gamma_max)
    last: Sequence[Array] | None = None
    old: dict[str, Any] = {}
    used: dict[str, Any] = {}
    used_gamma = gamma
    for k, batch in enumerate(t.batches, 1):
        keep: Callable[[str], dict[Any, Any]] = \
            (lambda name: shared.setdefault(name, {})) if shared is not None and k == 1 else (lambda name: {})
        part = Reference(_on_rows1(problem, batch), mistakes, {"k": k - 1, "ceiling": t.ceiling, "old": old},
                         keep("part"))
        names = ("A", "G", "A_cross", "G_cross") if t.structure == "block-tridiagonal" else ("A", "G")
        old = {name: part[f"{name}_average"] for name in names}
        refresh = k <= 3 or k % t.T3 == 0
        gammas = damping.gamma_candidates(gamma, t.omega2, t.gamma_min, t.gamma_max) if k % t.T2 == 0 else (gamma,)
        if refresh:
            used = old
        whole = problem.replace(x=problem.x[batch.rows], y=problem.y[batch.rows], targets=None, delta_0=last)
        two = Reference(whole.replace(x=whole.x[batch.rows2], y=whole.y[batch.rows2], delta_0=None), mistakes,
                        kept=keep("two"))
        given = {f"{name}_solve": value for name, value in used.items()} | {
            "structure": t.structure, "model_damping": lambda_ + problem.weight_decay, "g_F": two["g_exact"],
            "a_bar_F": two["a_bar"]}
        tried = []
        for candidate in gammas:
            root = candidate if refresh else used_gamma
            # The factors were made with the mistakes in them, and are given; what they had a part in is not shared.
            tried.append(Reference(whole.replace(damping=root**2), mistakes, given))
        best = min(range(len(gammas)), key=lambda i: tried[i]["M"])
        r, gamma = tried[best], gammas[best]
        used_gamma = gamma if refresh else used_gamma
        step = {"lambda": lambda_, "gamma": gamma, "alpha": r["alpha"], "mu": r["mu"], "M": r["M"], "rho": math.nan}
        if k % t.T1 == 0:
            step["rho"] = r["rho"]
            lambda_ = r.taking(rho=step["rho"], lambda_before=lambda_)["lambda_after"]
        weights = tuple(params.add(problem.weights, r["delta"]))
        last = r["kept_step"] if t.momentum else None
        problem = problem.replace(weights=weights)
        yield {**step, "weights": weights}


def _on_rows1(problem: Problem, batch: Batch) -> Problem:
    rows = batch.rows[batch.rows1]
    return problem.replace(x=problem.x[rows], y=problem.y[rows], targets=batch.targets[None])


_node("kept_step", "delta")(lambda r: r["delta"])
_node("lambda_before")(lambda r: r.problem.trajectory.lambda_0 if r.problem.trajectory else math.nan)


@_node("lambda_after", "rho", "lambda_before")
def _lambda_after(r: Reference) -> float:
    t = r.problem.trajectory
    assert t is not None
    return damping.next_lambda(r["lambda_before"], r["rho"], t.omega1, t.lambda_floor)


_node("trajectory", *[name for name in NODES])(lambda r: list(steps(r.problem, r.mistakes)))
for _name in SCALARS:
    _node(f"trajectory_{_name}", "trajectory")(lambda r, n=_name: np.array([s[n] for s in r["trajectory"]]))
    _quantity(f"trajectory_{_name}", _name, "(T,)", "of each step" + (
        ", null where not measured" if _name == "rho" else ", as used in it" if _name in ("lambda", "gamma") else ""),
        "sec. 9 (Algorithm 2)", "trajectory", ("trajectory",))
_node("trajectory_weights", "trajectory")(
    lambda r: tuple(np.stack(W) for W in zip(*(s["weights"] for s in r["trajectory"]), strict=True)))
_quantity("trajectory_weights", "theta", "(T, m, n) a layer", "after each step", "sec. 9 (Algorithm 2)", "trajectory",
          ("trajectory",))


def condition(r: Reference, name: str) -> float:
    """Return the condition number that a solve loses its accuracy to, 1 for a sum.

    Parameters
    ----------
    r : Reference
        Of the problem.
    name : str
        A quantity.
    """
    kind = QUANTITIES[name].kind
    if kind == "sum":
        return 1.0
    if kind == "trajectory":
        return 1e4                                      # what some steps amplify rounding to, on well-posed problems
    if name == "natural_gradient":
        return _condition(damping.add_to_diagonal(r["fisher"], r["damping"]))
    if name == "step_exact_damping":
        return max(1 + np.linalg.norm(A, 2) * np.linalg.norm(G, 2) / max(r["damping"], 1e-300)
                   for A, G in zip(r["A"], r["G"], strict=True))
    G_solve = {"step_sampled": "G_sampled", "step_empirical": "G_empirical"}.get(name)
    r = r.taking(G_solve=r[G_solve]) if G_solve else r
    worst = max(_condition(A) * _condition(G) for A, G in zip(r["A_damped"], r["G_damped"], strict=True))
    return worst if name != "step_tridiagonal" else worst**2        # Sigma is a difference


def _condition(S: Array) -> float:
    values = scipy.linalg.eigvalsh(S)
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf
