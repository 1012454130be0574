"""The layer, the side, the place of the bias, the order and the sign."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ... import kronecker, params
from ...checks import Array
from ...kronecker import Cholesky, Eigen
from .. import quantities
from ..graph import Reference
from .entry import FISHERS, STEPS, Change, Right, add, again, inputs, mapped, times


def _moments(rows: Callable[[Reference], Sequence[Array]]) -> Change:
    return lambda r, right: quantities.A(tuple(rows(r)), r["N"])

def _with_ones(r: Reference, activations: Sequence[Array]) -> list[Array]:
    """Append a 1 where the layer has a bias."""
    return [np.column_stack([a, np.ones(len(a))]) if has_bias else a
            for a, has_bias in zip(activations, r.problem.bias, strict=True)]

add("layer", "A of the layer's output", "A was made of the layer's outputs after the nonlinearity, not of its inputs",
    "the gradient of W_i is g_i a_bar^T with the layer's INPUT", "take the activations that enter the layer",
    {"A": _moments(lambda r: _with_ones(r, [*(a[:, :n] for a, n in zip(
        r["a_bar"][1:], r.problem.sizes[1:-1], strict=True)), r["z"]]))}, ("a_bar", "z", "N"))
add("layer", "A before the nonlinearity", "A was made of the pre-activations s, before the nonlinearity",
    "the next layer sees phi(s)", "take the activations after the nonlinearity",
    {"A": _moments(lambda r: _with_ones(r, [r["a_bar"][0][:, :r.problem.sizes[0]], *r["at"].s[:-1]]))},
    ("at", "a_bar", "N"))

def _after_nonlinearity(name: str, r: Reference) -> tuple[Array, ...]:
    """Return the gradients with respect to the outputs of the hidden nonlinearities, and to z."""
    W, g = r.problem.weights, r[name]
    return (*(h @ V[:, :k.shape[-1]] for k, h, V in zip(g, g[1:], W[1:], strict=False)), g[-1])

add("layer", "g after the nonlinearity", "the gradients are with respect to the layer's activations, after the "
    "nonlinearity", "g is the gradient with respect to the pre-activations s: the slope phi'(s) is part of it",
    "multiply by phi'(s), or hook the linear layer's output",
    {G: _moments(functools.partial(_after_nonlinearity, g)) for G, g in (
        ("G", "g_exact"), ("G_sampled", "g_sampled"), ("G_empirical", "g"))}, ("g", "g_exact", "g_sampled", "N"))

def _without_slope(columns: str) -> Change:
    return lambda r, right: tuple(itertools.accumulate(
        zip(r.problem.weights[:0:-1], r.problem.sizes[-2:0:-1], strict=True),
        lambda g, layer: g @ layer[0][:, :layer[1]], initial=r[columns]))[::-1]

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

def _for_bias(r: Reference, name: str) -> dict[str, Any]:
    """Return the inputs of an equation with A = 1, for the biases alone."""
    ones = tuple(np.ones((1, 1)) for _ in r["G_solve"])
    if name in ("step", "kfac_product"):
        return {"A": ones, "A_damped": ones}
    bases = tuple((Eigen.factor(one), G) for one, (_, G) in zip(ones, r["bases"], strict=True))
    moments = again("ekfac_scales", r, a_bar_ekfac=tuple(a[:, -1:] for a in r["a_bar"]), bases=bases)
    return {"bases": bases, "spectra": again("spectra", r, bases=bases),
            "ekfac_damped": again("ekfac_damped", r, ekfac_scales=moments)}

def _bias_apart(solved: bool) -> dict[str, Change]:
    """Leave the bias out of A, and solve for it with G only, or not at all."""
    def change(name: str, vector: str) -> Change:
        def apart(r: Reference, right: Right) -> tuple[Array, ...]:
            """Return [W b] of which W and b were solved for, or multiplied, apart."""
            weights, biases = (tuple(V[:, part] for V in r[vector]) for part in (slice(0, -1), slice(-1, None)))
            alone = name.replace("_tridiagonal", "")
            b = again(alone, r, **_for_bias(r, alone), **{vector: biases}) if solved else times(-1.0, biases)
            return tuple(map(np.hstack, zip(again(name, r, **{vector: weights}), b, strict=True)))
        return apart
    return mapped(("A", "A_cross"), lambda A: A[:-1, :-1]) | mapped(("a_bar_ekfac",), lambda a: a[:, :-1]) | {
        name: change(name, "gradient") for name in STEPS if name != "natural_gradient"} | (
        {"kfac_product": change("kfac_product", "direction")} if solved else {})

_BIAS_READS = (*inputs("step", "step_tridiagonal", "step_exact_damping", "ekfac_step", "kfac_product"), "G_solve",
               "a_bar", "ekfac_scales", "g_ekfac", "damping")
add("bias", "bias left out of A", "A has no row for the bias, and the bias uses its plain gradient", _NO_BIAS,
    "append a 1 to the inputs", _bias_apart(False), _BIAS_READS)
add("bias", "bias preconditioned apart", "A has no row for the bias, and the bias was solved with G only",
    _NO_BIAS, "append a 1 to the inputs; the bias then shares the solve with A", _bias_apart(True), _BIAS_READS)

add("bias", "bias first", "the bias comes first, not last", "our matrices are [W b], with the 1 at the end of a_bar",
    "move the first column (and row) to the end",
    dict.fromkeys(("a_bar", "decay", "direction", "last_step"), lambda r, right: right() and tuple(
        np.roll(V, 1, axis=-1) for V in right())))
add("bias", "bias not decayed", "the weight decay was not applied to the biases", "the paper's eta acts on all "
    "parameters equally", "add eta b to the gradient of the bias",
    mapped(("decay",), lambda D: np.column_stack([D[:, :-1], np.zeros(len(D))])))

def _permuted(parts: Callable[[list[Array]], list[Array]]) -> Callable[[Reference, Array], Array]:
    """Permute a dense matrix: `parts` maps the places of all layers' weights to the order in which they are read."""
    def show(r: Reference, F: Array) -> Array:
        shapes = [W.shape for W in r.problem.weights]
        places = params.unflatten(np.arange(float(len(F))), shapes)
        chosen = np.concatenate([part.ravel() for part in parts(places)]).astype(int)
        return F[np.ix_(chosen, chosen)]
    return show

_DENSE = (*FISHERS, "hessian")

_STACKED = "vec stacks the columns of [W b] here, layer after layer"

def _swapped_block(r: Reference, blocks: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(np.kron, r["G"], r["A"]))

add("order", "row-major vec", "the dense matrices use row-major vec (the biases interleaved with the weights)",
    "vec stacks columns here, so the block is kron(A, G); with row-major vec it is kron(G, A)",
    "flatten the weights in column order (order='F'), or permute rows and columns", {}, ("A", "G"),
    shows=dict.fromkeys(_DENSE, _permuted(lambda places: places)) | {"kfac_block": _swapped_block})
add("order", "row-major vec with the biases apart", "the dense matrices use row-major vec of each W, followed by "
    "its biases", _STACKED, "flatten [W b] in column order", {},
    shows=dict.fromkeys(_DENSE, _permuted(lambda places: [part for p in places for part in (p[:, :-1], p[:, -1])])),
    of_biases=True)
for _name, _words, _turn in (("", "row-major", lambda p: p), (" in column order", "column-major", np.transpose)):
    add("order", f"all weights, then all biases{_name}", f"the dense matrices have the weights of all layers first "
        f"({_words} vec of each W), then the biases of all layers", _STACKED, "flatten [W b] of each layer, layer "
        "after layer", {}, shows=dict.fromkeys(_DENSE, _permuted(functools.partial(
            lambda turn, places: [turn(p[:, :-1]) for p in places] + [p[:, -1] for p in places], _turn))),
        of_biases=True)
add("bias", "bias left out of the dense matrices", "the dense matrices have no rows and columns for the biases",
    "the biases are parameters too", "append a 1 to the inputs", {}, shows=dict.fromkeys(_DENSE, _permuted(
        lambda places: [p[:, :-1].T for p in places])))
add("bias", "bias left out of the row-major dense matrices", "the dense matrices have no rows and columns for the "
    "biases, and use row-major vec of each W", "the biases are parameters too; " + _STACKED,
    "append a 1 to the inputs, and flatten in column order", {},
    shows=dict.fromkeys(_DENSE, _permuted(lambda places: [p[:, :-1] for p in places])))
add("order", "Kronecker factors in the wrong order", "the block is kron(G, A), although vec stacks columns",
    "(A ⊗ G) vec(V) = vec(G V A^T) for columns; kron(G, A) belongs to rows", "write kron(A, G)", {},
    ("A", "G"), shows={"kfac_block": _swapped_block})
_SHAPED = ("gradient", "fisher_product", "kfac_product", "step_sampled", "step_empirical", *STEPS)
add("order", "transposed weights", "gradients, steps and weights are laid out (in, out)",
    "weights are (out, in + 1) here", "transpose them", {},
    shows=dict.fromkeys((*_SHAPED, "trajectory_weights", "ekfac_scales"),
                        lambda r, value: tuple(np.swapaxes(V, -1, -2) for V in value)))
add("order", "ascent in place of descent", "the step has the sign of the gradient", "Delta = -C^-1 grad h: the minus "
    "sign is part of the step", "insert the minus sign", dict.fromkeys(STEPS, lambda r, right: times(-1.0, right())))
add("order", "gradient with its sign turned", "the gradient of the loss has the opposite sign (y - p instead of p - y)",
    "h decreases along minus its gradient", "change the sign of what is sent back (not of the weight decay)",
    {"dz": lambda r, right: -right()})

def _multiplied(product: Callable[[Reference, Any], Sequence[Array]]) -> Change:
    """Multiply by a matrix with exact damping."""
    return lambda r, right: tuple(-(P + r["damping"] * V) for P, V in zip(
        product(r, r["gradient"]), r["gradient"], strict=True))

_BOTH = "(A ⊗ G)^-1 = A^-1 kron G^-1 needs both"
for _name, _what, _why, _remedy, _f in (
    ("multiplied in place of solved", "the gradient was multiplied by the damped factors (or the damped matrix), not "
     "by their inverses", "the natural gradient is F^-1 grad", "solve with A and G", kronecker.product),
    ("only G inverted", "the solve with A was left out", _BOTH, "multiply by A^-1 from the right",
     lambda A, G, V: Cholesky.factor(G).solve(V)),
    ("only A inverted", "the solve with G was left out (this is FOOF)", _BOTH, "multiply by G^-1 from the left",
     lambda A, G, V: Cholesky.factor(A).solve_right(V)),
):
    _changes: dict[str, Change] = {"step": functools.partial(lambda f, r, right: tuple(
        -f(A, G, V) for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"], strict=True)), _f)}
    if _name.startswith("multiplied"):
        _changes |= {"step_exact_damping": _multiplied(lambda r, V: again("kfac_product", r, direction=V)),
                     "natural_gradient": _multiplied(lambda r, V: params.unflatten(
                         r["fisher"] @ params.flatten(V), [v.shape for v in V]))}
    add("order", _name, _what, _why, _remedy, _changes, inputs("step", "kfac_product", "natural_gradient"))
add("order", "cross factors ignored", "the tridiagonal step is the block-diagonal one", "F̂^-1 regresses each "
    "layer on the next through A_{i,i+1} and G_{i,i+1}", "use the cross factors",
    {"step_tridiagonal": lambda r, right: r["step"]}, ("step",))

# The order of the vec in a solve or product: what goes in and what comes out are turned, the matrix is not.

def _by_rows(V: Array) -> Array:
    """Read the row-major vec of a matrix as if its columns had been stacked."""
    return V.ravel().reshape(V.shape, order="F")

def _as_rows(V: Array) -> Array:
    return V.ravel(order="F").reshape(V.shape)

def _biases_behind(V: Array) -> Array:
    """Read [vec of W, b], rows stacked, as if it were the row-major vec of [W b]."""
    return np.concatenate([V[:, :-1].ravel(), V[:, -1]]).reshape(V.shape)

def _biases_back(V: Array) -> Array:
    flat, m = V.ravel(), len(V)
    return np.column_stack([flat[:-m].reshape(m, -1), flat[-m:]])

Turn: TypeAlias = Callable[[Array], Array]
_KRON = {"step": "gradient", "step_exact_damping": "gradient", "kfac_product": "direction"}
_DENSE_SOLVES = {"natural_gradient": "gradient", "fisher_product": "direction"}

def _turned(names: Mapping[str, str], into: Turn, back: Turn) -> dict[str, Change]:
    return {name: functools.partial(lambda name, vector, r, right: tuple(map(back, again(
        name, r, **{vector: tuple(map(into, r[vector]))}))), name, vector) for name, vector in names.items()}

for _name, _what, _why, _remedy, _names, _into, _back in (
    ("row-major vec with kron(A, G)", "the solve is with kron(A, G), but the gradient was flattened by rows (and so "
     "was the result unflattened)", "with row-major vec the block is kron(G, A)", "flatten in column order, or use "
     "kron(G, A)", _KRON, _by_rows, _as_rows),
    ("row-major vec with a column-major Fisher", "the dense F is of vec by columns, but the gradient (or direction) "
     "was flattened by rows, and so was the result unflattened", "a matrix and its vector need one order",
     "flatten in column order (order='F')", _DENSE_SOLVES, _by_rows, _as_rows),
    ("weight and bias flattened apart and reshaped together", "the gradient was flattened as [vec of W, b] (rows "
     "stacked), and reshaped to one matrix as if it were [W b]", "the last column of [W b] is b: it is not the end of "
     "its row-major vec", "join W and b as columns before flattening", _KRON | {"ekfac_step": "gradient"},
     _biases_behind, _biases_back),
):
    add("order", _name, _what, _why, _remedy, _turned(_names, _into, _back), inputs(*_names),
        of_biases="bias" in _name)
add("order", "biases behind the weights in [W b]", "matrices [W b] were shown as the reshaped [vec of W, b], rows "
    "stacked: weight and bias flattened apart and reshaped together", "b is the last column of [W b]",
    "join W and b as columns", {}, shows=dict.fromkeys(_SHAPED, lambda r, value: tuple(map(_biases_behind, value))),
    of_biases=True)
add("order", "damped factors as A and G", "A and G are the damped factors: A_damped and G_damped", "the damping "
    "belongs to the solve; it changes with lambda and gamma", "copy the factors before the damping is added", {},
    ("A_damped", "G_damped", "A", "damping"), shows={"A": lambda r, A: r["A_damped"], **dict.fromkeys(
        ("G", "G_sampled", "G_empirical"), lambda r, G: r.taking(G_solve=G)["G_damped"])})
