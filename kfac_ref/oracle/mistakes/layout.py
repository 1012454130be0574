"""The layer, the side, the place of the bias, the order and the sign."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import kronecker
from ...checks import Array
from ...kronecker import Cholesky
from .. import quantities
from ..graph import Reference
from .entry import FISHERS, STEPS, Change, Right, add, mapped, times


def _moments(rows: Callable[[Reference], Sequence[Array]]) -> Change:
    return lambda r, right: quantities.A(tuple(rows(r)), r["N"])

def _ones(a: Array) -> Array:
    return np.column_stack([a, np.ones(len(a))])

add("layer", "A of the layer's output", "A was made of the layer's outputs after the nonlinearity, not of its inputs",
    "the gradient of W_i is g_i a_bar^T with the layer's INPUT", "take the activations that enter the layer",
    {"A": _moments(lambda r: [*r["a_bar"][1:], _ones(r["z"])])}, ("a_bar", "z", "N"))
add("layer", "A before the nonlinearity", "A was made of the pre-activations s, before the nonlinearity",
    "the next layer sees phi(s)", "take the activations after the nonlinearity",
    {"A": _moments(lambda r: [r["a_bar"][0], *map(_ones, r["at"].s[:-1])])}, ("at", "a_bar", "N"))

def _after_nonlinearity(name: str, r: Reference) -> tuple[Array, ...]:
    """Return the gradients with respect to the outputs of the hidden nonlinearities, and to z."""
    W, g = r.problem.weights, r[name]
    return (*(h @ V[:, :-1] for h, V in zip(g[1:], W[1:], strict=True)), g[-1])

add("layer", "g after the nonlinearity", "the gradients are with respect to the layer's activations, after the "
    "nonlinearity", "g is the gradient with respect to the pre-activations s: the slope phi'(s) is part of it",
    "multiply by phi'(s), or hook the linear layer's output",
    {G: _moments(functools.partial(_after_nonlinearity, g)) for G, g in (
        ("G", "g_exact"), ("G_sampled", "g_sampled"), ("G_empirical", "g"))}, ("g", "g_exact", "g_sampled", "N"))

def _without_slope(columns: str) -> Change:
    return lambda r, right: tuple(itertools.accumulate(
        r.problem.weights[:0:-1], lambda g, W: g @ W[:, :-1], initial=r[columns]))[::-1]

add("layer", "slope left out of the backward pass", "the backward pass does not multiply by phi'(s)",
    "the chain rule goes through the nonlinearity", "multiply by phi'(s) at every hidden layer",
    {g: _without_slope(dz) for g, dz in (("g", "dz"), ("g_exact", "dz_exact"), ("g_sampled", "dz_sampled"))},
    ("dz", "dz_exact", "dz_sampled"))
add("layer", "layers in the order of the backward pass", "the matrices G are listed from the last layer to the first",
    "hooks of the backward pass fire in that order", "reverse the list", {},
    shows={name: lambda r, G: G[::-1] for name in ("G", "G_sampled", "G_empirical")})
add("layer", "A of the layer before", "the matrix A of each layer is that of the layer before",
    "layer i has the factors A_{i-1,i-1} and G_{i,i} of the paper, whose activations are counted from 0",
    "use the input of the same layer", {"A": lambda r, right: (right()[0], *right()[:-1])})
add("layer", "A and G exchanged", "A and G were exchanged", "A belongs to the inputs (its last row to the bias), G "
    "to the outputs", "exchange them", {}, ("A", "G"), shows={
        "A": lambda r, A: r["G"], **dict.fromkeys(("G", "G_sampled", "G_empirical"), lambda r, G: r["A"])})

# The bias, layout and order.

_NO_BIAS = "the bias is a weight whose input is 1; [W b] is one matrix with one block"

def _bias_apart(solve_bias: Callable[[Array, Array], Array]) -> dict[str, Change]:
    """Leave the bias out of A, and solve for it with ``solve_bias(G, gradient of the bias)``."""
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        return tuple(np.column_stack([-kronecker.solve(Cholesky.factor(A), Cholesky.factor(G), V[:, :-1]),
                                      solve_bias(G, V[:, -1])])
                     for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"], strict=True))
    return mapped(("A", "A_cross"), lambda A: A[:-1, :-1]) | {"step": change}

_BIAS_READS = ("A_damped", "G_damped", "gradient")
add("bias", "bias left out of A", "A has no row for the bias, and the bias uses its plain gradient", _NO_BIAS,
    "append a 1 to the inputs", _bias_apart(lambda G, b: -b), _BIAS_READS)
add("bias", "bias preconditioned apart", "A has no row for the bias, and the bias was solved with G only",
    _NO_BIAS, "append a 1 to the inputs; the bias then shares the solve with A",
    _bias_apart(lambda G, b: -Cholesky.factor(G).solve(b[:, None])[:, 0]), _BIAS_READS)

add("bias", "bias first", "the bias comes first, not last", "our matrices are [W b], with the 1 at the end of a_bar",
    "move the first column (and row) to the end",
    dict.fromkeys(("a_bar", "decay", "direction", "last_step"), lambda r, right: right() and tuple(
        np.roll(V, 1, axis=-1) for V in right())))
add("bias", "bias not decayed", "the weight decay was not applied to the biases", "the paper's eta acts on all "
    "parameters equally", "add eta b to the gradient of the bias",
    mapped(("decay",), lambda D: np.column_stack([D[:, :-1], np.zeros(len(D))])))

def _permuted(parts: Callable[[Any], list[Any]]) -> Callable[[Reference, Array], Array]:
    """Permute a dense matrix: `parts` maps the places of a layer's weights to the order in which they are read."""
    def show(r: Reference, F: Array) -> Array:
        order, start = [], 0
        for W in r.problem.weights:
            places = start + np.arange(W.size).reshape(W.shape, order="F")
            order += [part.ravel() for part in parts(places)]
            start += W.size
        chosen = np.concatenate(order)
        return F[np.ix_(chosen, chosen)]
    return show

_DENSE = (*FISHERS, "hessian")

def _swapped_block(r: Reference, blocks: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(np.kron, r["G"], r["A"]))

add("order", "row-major vec", "the dense matrices use row-major vec (the biases interleaved with the weights)",
    "vec stacks columns here, so the block is kron(A, G); with row-major vec it is kron(G, A)",
    "flatten the weights in column order (order='F'), or permute rows and columns", {}, ("A", "G"),
    shows=dict.fromkeys(_DENSE, _permuted(lambda p: [p])) | {"kfac_block": _swapped_block})
add("order", "row-major vec with the biases apart", "the dense matrices use row-major vec of each W, followed by "
    "its biases", "vec stacks the columns of [W b] here", "flatten [W b] in column order", {},
    shows=dict.fromkeys(_DENSE, _permuted(lambda p: [p[:, :-1], p[:, -1]])))
add("order", "Kronecker factors in the wrong order", "the block is kron(G, A), although vec stacks columns",
    "(A ⊗ G) vec(V) = vec(G V A^T) for columns; kron(G, A) belongs to rows", "write kron(A, G)", {},
    ("A", "G"), shows={"kfac_block": _swapped_block})
add("order", "transposed weights", "gradients, steps and weights are laid out (in, out)",
    "weights are (out, in + 1) here", "transpose them", {},
    shows=dict.fromkeys(("gradient", "fisher_product", "kfac_product", "step_sampled", "step_empirical",
                         "trajectory_weights", "ekfac_scales", *STEPS),
                        lambda r, value: tuple(np.swapaxes(V, -1, -2) for V in value)))
add("order", "ascent in place of descent", "the step has the sign of the gradient", "Delta = -C^-1 grad h: the minus "
    "sign is part of the step", "insert the minus sign", dict.fromkeys(STEPS, lambda r, right: times(-1.0, right())))
add("order", "gradient with its sign turned", "the gradient of the loss has the opposite sign (y - p instead of p - y)",
    "h decreases along minus its gradient", "change the sign of what is sent back (not of the weight decay)",
    {"dz": lambda r, right: -right()})
add("order", "multiplied in place of solved", "the gradient was multiplied by the damped factors, not by their "
    "inverses", "the natural gradient is F^-1 grad", "solve with A and G", {"step": lambda r, right: tuple(
        -G @ V @ A for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"], strict=True))}, _BIAS_READS)
add("order", "only G inverted", "the solve with A was left out", "(A ⊗ G)^-1 = A^-1 kron G^-1 needs both",
    "multiply by A^-1 from the right", {"step": lambda r, right: tuple(
        -Cholesky.factor(G).solve(V) for G, V in zip(r["G_damped"], r["gradient"], strict=True))}, _BIAS_READS)
add("order", "only A inverted", "the solve with G was left out (this is FOOF)", "(A ⊗ G)^-1 = A^-1 kron G^-1 needs "
    "both", "multiply by G^-1 from the left", {"step": lambda r, right: tuple(
        -Cholesky.factor(A).solve_right(V) for A, V in zip(r["A_damped"], r["gradient"], strict=True))}, _BIAS_READS)
add("order", "cross factors ignored", "the tridiagonal step is the block-diagonal one", "F̂^-1 regresses each "
    "layer on the next through A_{i,i+1} and G_{i,i+1}", "use the cross factors",
    {"step_tridiagonal": lambda r, right: r["step"]}, ("step",))
