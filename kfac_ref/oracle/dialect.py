"""The conventions of an implementation for A, G, gradient and step, and the conversion to ours and back.

    theirs = scale * rearrange(ours)            the scale depends on N, C, M and the likelihood, not on the data

Ours are the conventions of the package: means over examples, the bias in the last column, vec stacks columns, unit
variance. Their loss enters through the scale: if MSELoss averages |z - y|^2 over the outputs, its gradient and a Fisher
built from it are 2/C of ours.

Rearranged are A (whose bias row may be first or missing), arrays shaped like the weights (a pair of W and b, or one
array; outputs or inputs first), and the dense block of a layer (the order of its rows).

The damping belongs to the dialect too: if A and G are scaled by s_A and s_G, the same step needs s_A s_G times the
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

#: The form of a quantity: like A, like G, like the weights, a dense block, or one number per layer or in total.
KINDS = {
    **dict.fromkeys(("A", "A_damped", "A_average"), "input"),
    **dict.fromkeys(("G", "G_sampled", "G_empirical", "G_damped", "G_average"), "output"),
    **dict.fromkeys(("direction", "delta_0", "gradient", "step", "step_sampled", "step_empirical",
                     "step_exact_damping"), "weights"),
    "kfac_block": "dense", "pi": "number", "loss": "number"}
#: Quantities that have no equivalent if the bias is a separate block.
JOINT_ONLY = ("A_damped", "G_damped", "step", "step_sampled", "step_empirical", "step_exact_damping", "kfac_block",
              "pi")
#: The order of a layer's parameters in a vector: maps the indices of [W b], an array (out, in + 1), to that order.
VEC: dict[str, Callable[[Any], Any]] = {
    "columns of [W b]": lambda i: i.T.ravel(), "rows of [W b]": lambda i: i.ravel(),
    "rows of W, then b": lambda i: np.concatenate([i[:, :-1].ravel(), i[:, -1]])}


#: The factors of theirs over ours, as functions of N, C and M.
SCALES: dict[str, Callable[[int, int, int], float]] = {
    "1": lambda N, C, M: 1.0, "2": lambda N, C, M: 2.0, "4": lambda N, C, M: 4.0, "4/N": lambda N, C, M: 4 / N,
    "1/N": lambda N, C, M: 1 / N, "1/N^2": lambda N, C, M: N**-2, "1/C": lambda N, C, M: 1 / C,
    "2/C": lambda N, C, M: 2 / C, "4/C": lambda N, C, M: 4 / C, "1/M": lambda N, C, M: 1 / M,
    "sqrt(C)": lambda N, C, M: C**0.5, "sqrt(C-1)": lambda N, C, M: (C - 1)**0.5, "sqrt(M)": lambda N, C, M: M**0.5,
    "1/sqrt(C)": lambda N, C, M: C**-0.5, "1/sqrt(C-1)": lambda N, C, M: (C - 1)**-0.5,
    "1/sqrt(M)": lambda N, C, M: M**-0.5}


@dataclass(frozen=True)
class Dialect:
    """The conventions of one implementation."""

    name: str
    version: str                # the version that was run
    ran: str                    # the date on which tests of this package measured the facts; "" if measured elsewhere
    where: str                  # how to read A and G in a running program
    fisher: str                 # the targets over which G is an expectation
    loss: Mapping[str, str]     # their loss for each likelihood
    #: Quantity ("A", "G", "G_sampled", "G_empirical", "gradient") to likelihood to a key of `SCALES`; also "A_sampled"
    #: if the A that belongs to a G of samples differs.
    scale: Mapping[str, Mapping[str, str]]
    layout: str = "out,in"      # of a weight matrix; or "in,out"
    bias: str = "joint-last"    # of A: also "joint-first", or "separate" (A has no bias row; the bias has the block G)
    pairs: bool = True          # arrays shaped like the weights are (W, b); else one array with the bias as in A
    vec: str = ""               # the order of a dense block, a key of `VEC`; "" if not measured, as in the next two
    average: str = ""
    damping: str = ""
    deviations: tuple[str, ...] = ()    # what its users should know

    def factor(self, quantity: str, problem: Problem, sampled: bool = False) -> float:
        """Return theirs over ours for a key of `KINDS`, or for "damping": the factor that gives the same step.

        `sampled` says whether an A belongs to a G of samples, for dialects that distinguish them. Raises a ProblemError
        if the factor was not measured.
        """
        if quantity not in (*KINDS, "damping"):
            raise ProblemError(f"a dialect does not define {quantity!r}; it defines {', '.join(KINDS)}"
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
                               "likelihood")
        M = 1 if problem.targets is None else len(problem.targets)
        return SCALES[found](len(problem.x), problem.sizes[-1], M)

    def ours(self, quantities: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """Return their values (keys of `KINDS` to a number, or a list with one array per layer) in our conventions.

        Arrays shaped like the weights may be pairs (W, b). A step is what is added to the weights: minus the
        preconditioned gradient. If there is a ``G_sampled`` but no ``G``, A belongs to the samples. A missing bias row
        of A (the mean input and 1) is taken from the problem. Raises a ProblemError for values that the dialect does
        not define, and for steps and blocks if W and b are separate blocks.
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
        """Return our values in their conventions: the inverse of `ours`."""
        result: dict[str, Any] = {}
        for name, factor in self._factors(quantities, problem).items():
            value, kind = quantities[name], KINDS[name]
            result[name] = _number(name, value, factor) if kind == "number" else [
                _times(factor, self._to_theirs(kind, _read(f"{name}[{i}]", v), W.shape))
                for i, (v, W) in enumerate(zip(value, problem.weights, strict=True))]
        return result

    def _factors(self, quantities: Mapping[str, Any], problem: Problem) -> dict[str, float]:
        """Return theirs over ours for each quantity, or raise if one cannot be converted."""
        if problem.noise_variance != 1 or not all(problem.bias):
            raise ProblemError(f"the dialect {self.name!r} was measured with a noise variance of 1 and biases in all "
                               "layers; convert the values yourself, and check them without a dialect")
        found = {}
        for name, value in quantities.items():
            found[name] = self.factor(name, problem, sampled="G_sampled" in quantities and "G" not in quantities)
            if self.bias == "separate" and name in JOINT_ONLY:
                raise ProblemError(f"{name}: the dialect {self.name!r} has separate blocks for W and b of a layer, "
                                   f"which is another approximation; leave this quantity out")
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
        if kind == "weights":
            return self._weights_to_ours(place, value, shape)
        rows, columns = shape
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
            return value[np.ix_(*[np.argsort(self._places(shape))] * 2)]
        return value

    def _to_theirs(self, kind: str, value: Any, shape: tuple[int, int]) -> Any:
        if kind == "weights":
            return self._weights_to_theirs(value)
        if kind == "input" and self.bias == "separate":
            return value[:-1, :-1]
        if kind == "input" and self.bias == "joint-first":
            return np.roll(value, (1, 1), (0, 1))
        if kind == "dense":
            return value[np.ix_(*[self._places(shape)] * 2)]
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
        """Return the index of our parameter (stacked columns of [W b]) at each of their places."""
        return VEC[self.vec](np.arange(shape[0] * shape[1]).reshape(shape[::-1]).T)


def _read(place: str, value: Any) -> Any:
    """Return an array, or a pair (W, b)."""
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
