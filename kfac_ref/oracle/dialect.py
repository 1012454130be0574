"""What an implementation means by A, G, gradient and step, and how to read its numbers as ours and back.

    theirs = scale * rearrange(ours)            the scale depends on N, C, M and the likelihood, not on the data

Ours are the package's conventions: means over examples, the bias in the last column, vec stacks columns, unit variance.
The loss of the other side enters by its scale too: where MSELoss averages |z - y|^2 over the outputs, its gradient is
2/C of ours, and so is a Fisher that is built from it.

What is rearranged: A (whose bias row may be first, or missing), weights and all that is shaped like them (a pair of W
and b, or one array; outputs or inputs first), and the dense block of a layer (the order of its rows).

Damping belongs to the dialect as well: with A and G scaled by s_A and s_G, the same step needs the damping s_A s_G
times as large (pi takes care of the rest: A + pi sqrt(damping) I is then s_A times ours). `theirs` translates it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..checks import Array

LIKELIHOODS = ("categorical", "gaussian", "bernoulli")
#: Whether a quantity is made of A, of G, shaped like the weights, a dense block of a layer, or a number (one a layer).
KINDS = {
    "A": "input", "A_sampled": "input", "A_damped": "input", "A_average": "input",
    "G": "output", "G_sampled": "output", "G_empirical": "output", "G_damped": "output", "G_average": "output",
    "weights": "weights", "direction": "weights", "delta_0": "weights", "gradient": "weights", "step": "weights",
    "step_sampled": "weights", "step_empirical": "weights", "step_exact_damping": "weights",
    "kfac_block": "dense", "damping": "number", "pi": "number",
}
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
        The date on which the facts below were measured with the tests of this package; "" where that was done elsewhere.
    where : str
        Where A and G stand in a running program.
    fisher : str
        Over which targets G is an expectation.
    loss : mapping
        The loss that each likelihood stands for on their side.
    scale : mapping
        Quantity ("A", "G", "G_sampled", "G_empirical", "gradient") to likelihood to `Scale`. "A_sampled" only where the
        A beside sampled targets is another one.
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
    deviations: tuple[str, ...] = field(default=())

    def factor(self, quantity: str, *, N: int, C: int, likelihood: str, M: int = 1) -> float:
        """Return theirs over ours for one quantity.

        Parameters
        ----------
        quantity : str
            A key of `KINDS`.
        N, C, M : int
            Examples, outputs, samples for each example.
        likelihood : str
            "categorical", "gaussian" or "bernoulli".

        Returns
        -------
        float
            For "damping": by how much it must be multiplied to mean the same.
        """
        def s(name: str) -> float:
            found = self.scale.get(name, {}).get(likelihood)
            if found is None:
                raise ValueError(f"the dialect {self.name!r} has no measured {name} for the {likelihood} likelihood")
            return found.value(N, C, M)

        if quantity not in KINDS:
            raise ValueError(f"a dialect says nothing about {quantity!r}; it knows {', '.join(KINDS)}")
        stem, _, suffix = quantity.partition("_")
        G = f"G_{suffix}" if suffix in ("sampled", "empirical") else "G"
        A = "A_sampled" if suffix == "sampled" and "A_sampled" in self.scale else "A"
        match stem:
            case "A" | "G":
                return s(A if stem == "A" else G)
            case "gradient":
                return s("gradient")
            case "step":
                return s("gradient") / (s(A) * s(G))
            case "kfac" | "damping":
                return s("A") * s("G")
            case "pi":
                return math.sqrt(s("A") / s("G"))
        return 1.0                                          # weights, and what is given in their units

    def ours(self, quantities: Mapping[str, Any], *, N: int, C: int, likelihood: str, M: int = 1) -> dict[str, Any]:
        """Return their numbers in our conventions.

        Parameters
        ----------
        quantities : mapping
            Keys of `KINDS` to a number, an array, or a list with one array a layer; a pair (W, b) a layer for what is
            shaped like the weights, where the dialect has pairs. A step is what is added to the weights.
        N, C, M : int
            Examples, outputs, samples for each example.
        likelihood : str
            "categorical", "gaussian" or "bernoulli".

        Returns
        -------
        dict
            The same keys. Where their A has no row for the bias, neither has the result: compare with `visible`.
        """
        by = {"input": self._input_to_ours, "weights": self._weights_to_ours, "dense": self._dense_to_ours}
        return self._translate(quantities, by, lambda value, factor: value / factor, N, C, M, likelihood)

    def theirs(self, quantities: Mapping[str, Any], *, N: int, C: int, likelihood: str, M: int = 1) -> dict[str, Any]:
        """Return our numbers in their conventions: the inverse of `ours`.

        Parameters
        ----------
        quantities : mapping
            As we have them.
        N, C, M : int
            Examples, outputs, samples for each example.
        likelihood : str
            "categorical", "gaussian" or "bernoulli".

        Returns
        -------
        dict
            The same keys; pairs (W, b) where the dialect has pairs.
        """
        by = {"input": self._input_to_theirs, "weights": self._weights_to_theirs, "dense": self._dense_to_theirs}
        return self._translate(quantities, by, lambda value, factor: value * factor, N, C, M, likelihood)

    def visible(self, quantities: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of our numbers can be seen through this dialect: A without the bias where theirs has none.

        Parameters
        ----------
        quantities : mapping
            As we have them.

        Returns
        -------
        dict
            The same keys, less "kfac_block" and the steps where the bias is a block of its own: those are other
            approximations, not other conventions.
        """
        if self.bias != "separate":
            return dict(quantities)
        other = [name for name in quantities if name.startswith(("step", "kfac_block", "pi", "A_damped", "G_damped"))]
        return {name: [A[:-1, :-1] for A in value] if KINDS.get(name) == "input" else value
                for name, value in quantities.items() if name not in other}

    def _translate(self, quantities: Mapping[str, Any], by: Mapping[str, Callable[[Any, int], Any]],
                   scaled: Callable[[Any, float], Any], N: int, C: int, M: int, likelihood: str) -> dict[str, Any]:
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        outputs = _outputs(quantities)
        result: dict[str, Any] = {}
        for name, value in quantities.items():
            factor = self.factor(name, N=N, C=C, M=M, likelihood=likelihood)
            kind = KINDS[name]
            if kind == "number":
                result[name] = scaled(np.asarray(value, dtype=float), factor)
                continue
            move = by.get(kind, lambda G, rows: G)
            moved = [move(_arrays(v), outputs[i] if i < len(outputs) else 0) for i, v in enumerate(value)]
            result[name] = [tuple(scaled(a, factor) for a in v) if isinstance(v, tuple) else scaled(v, factor)
                            for v in moved]
        return result

    def _input_to_ours(self, A: Array, rows: int) -> Array:
        return np.roll(A, (-1, -1), (0, 1)) if self.bias == "joint-first" else A

    def _input_to_theirs(self, A: Array, rows: int) -> Array:
        if self.bias == "separate":
            return A[:-1, :-1]
        return np.roll(A, (1, 1), (0, 1)) if self.bias == "joint-first" else A

    def _weights_to_ours(self, V: Any, rows: int) -> Array:
        if isinstance(V, tuple):
            W, b = V
            return np.column_stack([W.T if self.layout == "in,out" else W, b])
        V = V.T if self.layout == "in,out" else V
        return np.roll(V, -1, axis=1) if self.bias == "joint-first" else V

    def _weights_to_theirs(self, V: Array, rows: int) -> Any:
        if self.pairs:
            return (V[:, :-1].T if self.layout == "in,out" else V[:, :-1]), V[:, -1]
        V = np.roll(V, 1, axis=1) if self.bias == "joint-first" else V
        return V.T if self.layout == "in,out" else V

    def _dense_to_ours(self, block: Array, rows: int) -> Array:
        back = np.argsort(self._places(len(block), rows))
        return block[np.ix_(back, back)]

    def _dense_to_theirs(self, block: Array, rows: int) -> Array:
        places = self._places(len(block), rows)
        return block[np.ix_(places, places)]

    def _places(self, size: int, rows: int) -> Any:
        """Return which of our parameters stands at each of their places; ours are the stacked columns of [W b]."""
        if not self.vec:
            raise ValueError(f"the dense order of the dialect {self.name!r} was not measured")
        if not rows or size % rows:
            raise ValueError("a dense block is translated beside a G of its layer, whose size tells outputs from inputs")
        return VEC[self.vec](np.arange(size).reshape(size // rows, rows).T)


def _arrays(value: Any) -> Any:
    """Return an array, or the pair of arrays that (W, b) is."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and np.ndim(value[0]) == 2 and np.ndim(value[1]) == 1:
        return np.asarray(value[0], dtype=float), np.asarray(value[1], dtype=float)
    return np.asarray(value, dtype=float)


def _outputs(quantities: Mapping[str, Any]) -> list[int]:
    """Return the number of outputs of each layer, from whichever G there is."""
    for name, value in quantities.items():
        if KINDS.get(name) == "output":
            return [len(G) for G in value]
    return []
