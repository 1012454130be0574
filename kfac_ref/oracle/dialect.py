"""What an implementation means by A, G, gradient and step, and how to read its numbers as ours and back.

    theirs = scale * rearrange(ours)            the scale depends on N, C, M and the likelihood, not on the data

Ours are the package's conventions: means over examples, the bias in the last column, vec stacks columns, unit variance.
The loss of the other side enters by its scale too: where MSELoss averages |z - y|^2 over the outputs, its gradient is
2/C of ours, and so is a Fisher that is built from it.

What is rearranged: A (whose row of the bias may be first, or missing), what is shaped like the weights (a pair of W and
b, or one array; outputs or inputs first), and the dense block of a layer (the order of its rows).

Damping belongs to the dialect as well: with A and G scaled by s_A and s_G, the same step needs s_A s_G times the
damping. (A + pi sqrt(damping) I is then s_A times ours, since pi is scaled by the root of s_A / s_G.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import Array
from .checks import ProblemError, near, read_array
from .problem import Problem

#: What a quantity is made of: A, G, the weights (by shape), a dense block; else a number for a layer or for all.
KINDS = {
    "A": "input", "A_damped": "input", "A_average": "input",
    "G": "output", "G_sampled": "output", "G_empirical": "output", "G_damped": "output", "G_average": "output",
    "direction": "weights", "delta_0": "weights", "gradient": "weights", "step": "weights", "step_sampled": "weights",
    "step_empirical": "weights", "step_exact_damping": "weights",
    "kfac_block": "dense", "pi": "number", "loss": "number",
}
#: What is another number, and not the same in another form, where the bias is a block of its own.
JOINT_ONLY = ("A_damped", "G_damped", "step", "step_sampled", "step_empirical", "step_exact_damping", "kfac_block",
              "pi")
#: Where the entries of [W b], given their indices in an array (out, in + 1), stand in a vector of a layer's parameters.
VEC: dict[str, Callable[[Any], Any]] = {
    "columns of [W b]": lambda i: i.T.ravel(),
    "rows of [W b]": lambda i: i.ravel(),
    "rows of W, then b": lambda i: np.concatenate([i[:, :-1].ravel(), i[:, -1]]),
}


@dataclass(frozen=True)
class Scale:
    """How many times larger theirs is than ours.

    Parameters
    ----------
    text : str
        For people: "1/N".
    value : callable
        The same as a function of N, C and M.
    """

    text: str
    value: Callable[[int, int, int], float]


ONE = Scale("1", lambda N, C, M: 1.0)


def scales(categorical: Scale | None = None, gaussian: Scale | None = None,
           bernoulli: Scale | None = None) -> dict[str, Scale]:
    """Return the scale of one quantity by likelihood; what is left out was not run.

    Parameters
    ----------
    categorical, gaussian, bernoulli : Scale, optional
        Theirs over ours.

    Returns
    -------
    dict
        Likelihood to scale.
    """
    given = {"categorical": categorical, "gaussian": gaussian, "bernoulli": bernoulli}
    return {name: scale for name, scale in given.items() if scale is not None}


@dataclass(frozen=True)
class Dialect:
    """The conventions of one implementation.

    Parameters
    ----------
    name : str
        By which it is asked for.
    version : str
        The version that was run.
    ran : str
        The date on which the facts below were measured with the tests of this package; "" where that was elsewhere.
    where : str
        Where A and G stand in a running program.
    fisher : str
        Over which targets G is an expectation.
    loss : mapping
        The loss that each likelihood stands for on their side.
    scale : mapping
        Quantity ("A", "G", "G_sampled", "G_empirical", "gradient") to likelihood to `Scale`. "A_sampled" too where the
        A beside a G of samples is another one.
    layout : {"out,in", "in,out"}
        Of a weight matrix.
    bias : {"joint-last", "joint-first", "separate"}
        Whether A has a row for the bias, and where; "separate": A has none, and the bias is a block of its own, G.
    pairs : bool
        Whether what is shaped like the weights comes as pairs (W, b); else as one array with the bias as in A.
    vec : str
        The order of a layer's parameters in a dense block: a key of `VEC`, or "" where it was not measured.
    average : str
        The running average; "" where it was not measured, as in the texts below.
    damping : str
        How it is damped, pi included.
    deviations : tuple of str
        What a user of it should know.
    """

    name: str
    version: str
    ran: str
    where: str
    fisher: str
    loss: Mapping[str, str]
    scale: Mapping[str, Mapping[str, Scale]]
    layout: str = "out,in"
    bias: str = "joint-last"
    pairs: bool = True
    vec: str = ""
    average: str = ""
    damping: str = ""
    deviations: tuple[str, ...] = ()

    def factor(self, quantity: str, problem: Problem, sampled: bool = False) -> float:
        """Return theirs over ours for one quantity.

        Parameters
        ----------
        quantity : str
            A key of `KINDS`, or "damping": by how much it must be multiplied for the same step.
        problem : Problem
            Whose N, C, M and likelihood count.
        sampled : bool
            Whether an A is the one beside a G of samples; only where the dialect tells them apart.

        Returns
        -------
        float
            1 where both agree.

        Raises
        ------
        ProblemError
            Where it was not measured.
        """
        if quantity not in (*KINDS, "damping"):
            raise ProblemError(f"a dialect says nothing about {quantity!r}; it knows {', '.join(KINDS)}"
                               f"{near(quantity, KINDS)}")
        stem, _, suffix = quantity.partition("_")
        A = "A_sampled" if (sampled or suffix == "sampled") and "A_sampled" in self.scale else "A"
        G = f"G_{suffix}" if suffix in ("sampled", "empirical") else "G"
        match stem:
            case "A" | "G":
                return self._scale(A if stem == "A" else G, problem)
            case "gradient" | "loss":
                return self._scale("gradient", problem)
            case "step":
                return self._scale("gradient", problem) / (self._scale(A, problem) * self._scale(G, problem))
            case "kfac" | "damping":
                return self._scale(A, problem) * self._scale(G, problem)
            case "pi":
                return math.sqrt(self._scale(A, problem) / self._scale(G, problem))
        return 1.0                                          # in the units of the weights

    def _scale(self, name: str, problem: Problem) -> float:
        found = self.scale.get(name, {}).get(problem.likelihood)
        if found is None:
            raise ProblemError(f"the dialect {self.name!r} has no measured {name} for the {problem.likelihood} "
                               f"likelihood")
        M = 1 if problem.targets is None else len(problem.targets)
        return found.value(len(problem.x), problem.sizes[-1], M)

    def ours(self, quantities: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """Return their numbers in our conventions.

        Parameters
        ----------
        quantities : mapping
            Keys of `KINDS` to a number, an array, or a list with one array a layer; what is shaped like the weights may
            be a pair (W, b) a layer. A step is what is added to the weights: minus the preconditioned gradient. Beside
            a ``G_sampled`` without a ``G``, A is taken to be the one of the samples.
        problem : Problem
            What the numbers are of.

        Returns
        -------
        dict
            The same keys. Where their A has no row for the bias, that row (the mean input and 1) is the problem's.

        Raises
        ------
        ProblemError
            For what the dialect does not know, what has another form, and steps and blocks of two blocks a layer.
        """
        a_bar = problem.at().a_bar
        result: dict[str, Any] = {}
        for name, factor in self._factors(quantities, problem).items():
            value, kind = quantities[name], KINDS[name]
            result[name] = _number(name, value, 1 / factor) if kind == "number" else [
                self._to_ours(kind, f"{name}[{i}]", _times(1 / factor, _read(f"{name}[{i}]", v)), W.shape, a_bar[i])
                for i, (v, W) in enumerate(zip(value, problem.weights, strict=True))]
        return result

    def theirs(self, quantities: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """Return our numbers in their conventions: the inverse of `ours`.

        Parameters
        ----------
        quantities : mapping
            As we have them.
        problem : Problem
            What the numbers are of.

        Returns
        -------
        dict
            The same keys; pairs (W, b) where the dialect has pairs.

        Raises
        ------
        ProblemError
            As `ours`.
        """
        result: dict[str, Any] = {}
        for name, factor in self._factors(quantities, problem).items():
            value, kind = quantities[name], KINDS[name]
            result[name] = _number(name, value, factor) if kind == "number" else [
                _times(factor, self._to_theirs(kind, _read(f"{name}[{i}]", v), W.shape))
                for i, (v, W) in enumerate(zip(value, problem.weights, strict=True))]
        return result

    def _factors(self, quantities: Mapping[str, Any], problem: Problem) -> dict[str, float]:
        """Return theirs over ours for each quantity, or refuse what cannot be translated."""
        found = {}
        for name, value in quantities.items():
            found[name] = self.factor(name, problem, sampled="G_sampled" in quantities and "G" not in quantities)
            if self.bias == "separate" and name in JOINT_ONLY:
                raise ProblemError(f"{name}: in the dialect {self.name!r} W and b of a layer are two blocks, so this "
                                   f"is another approximation, not another form of ours; leave it out")
            if KINDS[name] == "dense" and not self.vec:
                raise ProblemError(f"{name}: the dense order of the dialect {self.name!r} was not measured")
            if KINDS[name] == "number":
                continue
            layers = len(value) if isinstance(value, (list, tuple, np.ndarray)) else 0
            if layers != len(problem.weights):
                raise ProblemError(f"{name} must be a list with one array for each of the {len(problem.weights)} "
                                   f"layers, got {layers or type(value).__name__}")
        return found

    def _to_ours(self, kind: str, place: str, value: Any, shape: tuple[int, int], a_bar: Array) -> Any:
        rows, columns = shape
        if kind == "weights":
            return self._weights_to_ours(place, value, shape)
        size = {"input": columns - (self.bias == "separate"), "output": rows, "dense": rows * columns}[kind]
        if np.shape(value) != (size, size):
            raise ProblemError(f"{place} must have shape ({size}, {size}) in the dialect {self.name!r}, got "
                               f"{np.shape(value)}")
        if kind == "input" and self.bias == "separate":
            mean = a_bar.mean(axis=0)
            return np.block([[value, mean[:-1, None]], [mean[None]]])
        if kind == "input" and self.bias == "joint-first":
            return np.roll(value, (-1, -1), (0, 1))
        if kind == "dense":
            back = np.argsort(self._places(shape))
            return value[np.ix_(back, back)]
        return value

    def _to_theirs(self, kind: str, value: Any, shape: tuple[int, int]) -> Any:
        if kind == "weights":
            return self._weights_to_theirs(value)
        if kind == "input" and self.bias == "separate":
            return value[:-1, :-1]
        if kind == "input" and self.bias == "joint-first":
            return np.roll(value, (1, 1), (0, 1))
        if kind == "dense":
            places = self._places(shape)
            return value[np.ix_(places, places)]
        return value

    def _weights_to_ours(self, place: str, V: Any, shape: tuple[int, int]) -> Array:
        turned = self.layout == "in,out"
        if isinstance(V, tuple):
            W, b = V
            if (W.T if turned else W).shape != (shape[0], shape[1] - 1) or b.shape != shape[:1]:
                raise ProblemError(f"{place} must be a pair (W, b) of a layer with weights ({self.layout}) in the "
                                   f"dialect {self.name!r}, got shapes {W.shape} and {b.shape}")
            return np.column_stack([W.T if turned else W, b])
        V = V.T if turned else V
        if V.shape != shape:
            raise ProblemError(f"{place} must have shape {shape[::-1] if turned else shape} in the dialect "
                               f"{self.name!r}, or be a pair (W, b); got {V.T.shape if turned else V.shape}")
        return np.roll(V, -1, axis=1) if self.bias == "joint-first" else V

    def _weights_to_theirs(self, V: Array) -> Any:
        turned = self.layout == "in,out"
        if self.pairs:
            return (V[:, :-1].T if turned else V[:, :-1]), V[:, -1]
        V = np.roll(V, 1, axis=1) if self.bias == "joint-first" else V
        return V.T if turned else V

    def _places(self, shape: tuple[int, int]) -> Any:
        """Return which of our parameters stands at each of their places; ours are the stacked columns of [W b]."""
        return VEC[self.vec](np.arange(shape[0] * shape[1]).reshape(shape[::-1]).T)


def _read(place: str, value: Any) -> Any:
    """Return an array, or the two of a pair (W, b)."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and not np.isscalar(value[0]):
        W, b = (read_array(f"{place}[{k}]", part) for k, part in enumerate(value))
        if (W.ndim, b.ndim) == (2, 1):
            return W.astype(float), b.astype(float)
    return read_array(place, value).astype(float)


def _times(factor: float, value: Any) -> Any:
    return tuple(factor * v for v in value) if isinstance(value, tuple) else factor * value


def _number(name: str, value: Any, factor: float) -> Any:
    if np.ndim(value) == 0 and not isinstance(value, Mapping):
        return factor * value
    return factor * read_array(name, value).astype(float)
