"""Weight decay, damping, pi, and the running average."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from ... import damping, params
from ...checks import Array
from ..graph import Reference
from .entry import STEPS, Change, Right, add, again, inputs, times

_H, _ROOT = "h = loss + (eta/2) ||theta||^2, whose gradient has eta W", "the number under the root is lambda + eta"
add("damping", "weight decay left out of the gradient", "the gradient is only that of the loss", _H, "add eta W",
    {"decay": lambda r, right: times(0.0, right())})
add("damping", "weight decay twice in the gradient", "the gradient contains 2 eta W", _H, "add eta W once",
    {"decay": lambda r, right: times(2.0, right())})
add("damping", "weight decay left out of the objective", "h is only the loss", "h = loss + (eta/2) ||theta||^2",
    "add (eta/2) ||theta||^2", {"objective": lambda r, right: r["loss"]}, ("loss",))
add("damping", "weight decay added to the damping again", "eta was added to a damping that is already lambda + eta",
    _ROOT, "add eta once", {"damping": lambda r, right: right() + r["eta"]}, ("eta",))
add("damping", "weight decay left out of the damping", "the damping is only lambda", _ROOT, "add eta",
    {"damping": lambda r, right: max(right() - r["eta"], 0.0)}, ("eta",))


_AFTER = "Delta solves with grad h, which contains eta W; h and its model M are then minimized together"
_IN_STEP = dict.fromkeys(STEPS, lambda r, right: tuple(D - r["eta"] * W for D, W in zip(
    right(), r["weights"], strict=True)))
add("damping", "decoupled weight decay", "the solve was with the gradient of the loss alone, and -eta W was added to "
    "the step after preconditioning (as in AdamW)", _AFTER, "add eta W to the gradient before the solve",
    {"decay": lambda r, right: times(0.0, right()), **_IN_STEP}, ("eta", "weights"))
add("damping", "weight decay in the gradient and in the step", "the gradient contains eta W, and -eta W was also added "
    "to the step after preconditioning", _AFTER, "add eta W to the gradient alone", _IN_STEP, ("eta", "weights"))

def _damped(**added: Callable[[float, float], float]) -> dict[str, Change]:
    """Damp A and G with these functions of pi and the damping."""
    def of(name: str, c: Callable[[float, float], float]) -> Change:
        return lambda r, right: tuple(
            damping.add_to_diagonal(S, c(float(pi), r["damping"])) for S, pi in zip(r[name], r["pi"], strict=True))
    return {f"{factor}_damped": of(f"{factor}_solve", c) for factor, c in added.items()}

_FACTORED = "A + pi sqrt(lambda + eta) I and G + sqrt(lambda + eta)/pi I: the product then contains (lambda + eta) I"
for _name, _what, _remedy, _a, _g in (
    ("damping not under the root", "the damping was split as pi d and d/pi, without the square root",
     "take the square root of the damping", lambda pi, d: pi * d, lambda pi, d: d / pi),
    ("full damping on both factors", "each factor got the whole damping", "use the square root, split by pi",
     lambda pi, d: d, lambda pi, d: d),
    ("full damping on A alone", "A got the whole damping and G none", "split the square root by pi",
     lambda pi, d: d, lambda pi, d: 0.0),
    ("full damping on G alone", "G got the whole damping and A none", "split the square root by pi",
     lambda pi, d: 0.0, lambda pi, d: d),
    ("root damping on A alone", "A got its share of the damping and G none", "damp G too, with sqrt(damping)/pi",
     lambda pi, d: pi * math.sqrt(d), lambda pi, d: 0.0),
    ("root damping on G alone", "G got its share of the damping and A none", "damp A too, with pi sqrt(damping)",
     lambda pi, d: 0.0, lambda pi, d: math.sqrt(d) / pi),
    ("damping added twice", "the damping was added to factors that were already damped in place",
     "add it to a copy of the factors", lambda pi, d: 2 * pi * math.sqrt(d), lambda pi, d: 2 * math.sqrt(d) / pi),
):
    add("damping", _name, _what, _FACTORED, _remedy, _damped(A=_a, G=_g), ("A_solve", "G_solve", "pi", "damping"))

def _whole(f: Callable[[float], float]) -> dict[str, Change]:
    """Damp the matrices that are damped as a whole, with a function of the damping."""
    return {name: functools.partial(lambda name, r, right: again(name, r, damping=f(r["damping"])), name)
            for name in ("step_exact_damping", "natural_gradient", "ekfac_damped")}

def _pseudo(S: Array) -> Array:
    return scipy.linalg.pinvh(S, rtol=1e-12)

_WHOLE = inputs(*_whole(abs))
add("damping", "no damping", "the factors, or the whole matrix, were not damped", _FACTORED, "damp them",
    _damped(A=lambda pi, d: 0.0, G=lambda pi, d: 0.0) | _whole(lambda d: 0.0),
    ("A_solve", "G_solve", "pi", "damping", *_WHOLE))
add("damping", "root of the damping on the whole matrix", "sqrt(damping) was added to the whole matrix (F, A ⊗ G, or "
    "the EKFAC scales)", "the root belongs to one factor of two; the whole matrix is damped by lambda + eta",
    "add the damping", _whole(math.sqrt), _WHOLE)
add("damping", "pseudo-inverse in place of damping", "the undamped matrices were pseudo-inverted", "the damping bounds "
    "the step; the pseudo-inverse does not where an eigenvalue is small", "damp them", {
        "step": lambda r, right: tuple(-_pseudo(G) @ V @ _pseudo(A) for A, G, V in zip(
            r["A_solve"], r["G_solve"], r["gradient"], strict=True)),
        "natural_gradient": lambda r, right: tuple(params.unflatten(
            -_pseudo(r["fisher"]) @ params.flatten(r["gradient"]), [V.shape for V in r["gradient"]]))},
    ("A_solve", "G_solve", "gradient", "fisher"))

def _pi(f: Callable[[Array, Array], float]) -> Change:
    return lambda r, right: np.array([f(A, G) for A, G in zip(r["A_solve"], r["G_solve"], strict=True)])

def _joined(matrices: Sequence[Array]) -> Array:
    """Return a diagonal matrix with the diagonals of all of them."""
    return np.diag(np.concatenate([np.diag(S) for S in matrices]))

def _with_last(S: Array, value: float) -> Array:
    S = S.copy()
    S[-1, -1] = value
    return S

_PI = "pi^2 is the ratio of the mean eigenvalues of A and G, and balances the two cross terms of the damped product"
for _name, _what, _remedy, _change in (
    ("pi squared", "pi^2 was used instead of pi", "take the square root of the ratio", lambda r, right: right()**2),
    ("pi inverted", "pi is the ratio of G over A", "A comes first: A + pi sqrt(d) I", lambda r, right: 1 / right()),
    ("pi left out", "pi is 1: both factors got the same sqrt(damping)", "use sqrt((tr A/n)/(tr G/m))",
     lambda r, right: np.ones_like(right())),
    ("pi of traces without the dimensions", "pi is sqrt(tr A / tr G), without the dimensions", "divide each trace by "
     "its dimension", _pi(lambda A, G: math.sqrt(np.trace(A) / np.trace(G)) if np.trace(G) > 0 else 1.0)),
    ("pi of Frobenius norms without the dimensions", "pi is sqrt(||A|| / ||G||) in the Frobenius norm, without the "
     "dimensions", "use the traces, divided by the dimensions",
     _pi(lambda A, G: math.sqrt(np.linalg.norm(A) / np.linalg.norm(G)) if G.any() else 1.0)),
    ("pi of the largest eigenvalues", "pi uses the largest eigenvalues of A and G instead of the mean ones",
     "use the traces, divided by the dimensions",
     _pi(lambda A, G: math.sqrt(np.linalg.norm(A, 2) / np.linalg.norm(G, 2)) if G.any() else 1.0)),
    ("pi of Frobenius norms", "pi uses Frobenius norms (as in the author's code) instead of the trace norm",
     "use the traces", _pi(damping.frobenius_pi)),
):
    add("damping", _name, _what, _PI, _remedy, {"pi": _change}, ("A_solve", "G_solve"))
_OWN = "each layer has its own A and G, and its own ratio"
add("damping", "one pi for all layers", "all layers share one pi, from their summed traces and dimensions", _OWN,
    "compute pi per layer", {"pi": lambda r, right: np.full_like(
        right(), damping.trace_pi(*map(_joined, (r["A_solve"], r["G_solve"]))))}, ("A_solve", "G_solve"))
add("damping", "pi of the first layer for all", "all layers use the pi of the first", _OWN, "compute pi per layer",
    {"pi": lambda r, right: np.full_like(right(), right()[0])})
add("damping", "bias not damped", "the damping was not added to the last entry of A, that of the bias",
    "the damping acts on all parameters equally", "add it to the whole diagonal of A",
    {"A_damped": lambda r, right: tuple(_with_last(D, A[-1, -1]) for D, A in zip(right(), r["A_solve"], strict=True))},
    ("A_solve",), of_biases=True)
add("damping", "pi in place of 1/pi in G", "both factors were damped with pi sqrt(damping)", _FACTORED,
    "divide by pi in G", _damped(G=lambda pi, d: pi * math.sqrt(d)), ("G_solve", "pi", "damping"))

def _natural_gradient(r: Reference, right: Right) -> Any:
    if r.problem.model.network.parameters > 500:
        raise ValueError("the dense Fisher is too large to be tried as an explanation")
    return again("natural_gradient", r)

add("damping", "exact Fisher in place of the factors", "the step is the natural gradient with the exact F",
    "K-FAC solves with A ⊗ G; the two differ by the error of the approximation", "compare natural_gradient",
    {"step": _natural_gradient}, inputs("natural_gradient"))
add("damping", "exact damping in place of factored", "the step solves with A ⊗ G + damping I", "the paper damps the "
    "factors; both are valid, and their steps differ", "damp the factors, or compare with step_exact_damping",
    {"step": lambda r, right: again("step_exact_damping", r)}, inputs("step_exact_damping"))
add("damping", "factored damping in place of exact", "the step solves with damped factors instead of A ⊗ G + damping I",
    "the product of damped factors has two more terms", "solve in the eigenbasis, or compare with step",
    {"step_exact_damping": lambda r, right: again("step", r)}, inputs("step"))

def _average_of_damped(part: str) -> Change:
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        pis = [damping.trace_pi(A, G) for A, G in zip(r["new"]["A"], r["new"]["G"], strict=True)]
        root = math.sqrt(r["damping"])
        added = [pi * root if part == "A" else root / pi for pi in pis]
        return tuple(S + (1 - r["epsilon"]) * c * np.eye(len(S)) for S, c in zip(right(), added, strict=True))
    return change

add("average", "damping added before averaging", "the factors of the batch were damped before they were averaged",
    "the damping changes with lambda and gamma, so it belongs to the solve", "average first, then damp",
    {f"{part}_average": _average_of_damped(part) for part in ("A", "G")}, ("new", "epsilon", "damping"))
_BIASED = "eps = min(1 - 1/k, 0.95): the first batch has weight 1, so there is no bias to correct"
add("average", "average starts at the identity", "the running average starts at the identity with a constant decay "
    "(0.95)", _BIASED, "give the first batch weight 1",
    {"epsilon": lambda r, right: r["ceiling"], "old": lambda r, right: right() or {
        name: tuple(0 * X if name.endswith("cross") else np.eye(*X.shape) for X in new)
        for name, new in r["new"].items()}}, ("ceiling", "new"))
add("average", "average not corrected for its start", "the running average has a constant decay (0.95) and starts at "
    "zero", _BIASED, "let the decay grow as 1 - 1/k, or divide by 1 - decay^k",
    {"epsilon": lambda r, right: r["ceiling"]}, ("ceiling",))
add("average", "first batch whole, then a constant decay", "the first batch has weight 1, and from the second on the "
    "decay is constant", "the first 20 batches are averaged evenly: eps = min(1 - 1/k, 0.95)", "let the decay grow as "
    "1 - 1/k", {"epsilon": lambda r, right: r["ceiling"] if r["k"] else 0.0}, ("ceiling", "k"))
for _name, _what, _decay in (
    ("average not normalized", "0.95 old + 1 new: the new factors have weight 1 and the old ones a constant decay",
     "ceiling"),
    ("new factors added in full", "eps old + 1 new: the new factors have weight 1 instead of 1 - eps", "epsilon"),
):
    add("average", _name, f"the average is not normalized, {_what}", "the weights of old and new must add up to 1",
        "multiply the new factors by 1 - eps", {f"{part}_average": functools.partial(
            lambda part, decay, r, right: tuple(r[decay] * X + Y for X, Y in zip(
                r["old"].get(part) or times(0.0, r["new"][part]), r["new"][part], strict=True)), part, _decay)
            for part in ("A", "G", "A_cross", "G_cross")}, ("old", "new", _decay))

def _old(part: str) -> Change:
    def change(r: Reference, right: Right) -> Any:
        if part not in r["old"]:
            raise ValueError("there are no factors of a batch before")
        return r["old"][part]
    return change

_NOW = "these quantities are those of the factors of this batch; the average has quantities of its own"
for _name, _what, _remedy, _changes, _reads in (
    ("stale factors", "the solve used the factors before this batch (those of the last refresh)", "update the factors "
     "before the solve, or give a problem whose batch is theirs",
     {f"{part}_solve": _old(part) for part in ("A", "G")}, ("old",)),
    ("averaged factors in the solve", "the solve used the running average with this batch, not the factors of this "
     "batch", "solve with the factors of this batch, or compare A_average and G_average",
     {f"{part}_solve": functools.partial(lambda name, r, right: r[name], f"{part}_average") for part in ("A", "G")},
     ("A_average", "G_average", "previous")),
):
    add("average", _name, _what, _NOW, _remedy, _changes, _reads)
add("average", "decay on the new factors", "the decay multiplies the new factors and 1 - decay the old ones",
    "eps is the weight of the old factors", "exchange them", {"epsilon": lambda r, right: 1 - right()})
add("average", "no running average", "the factors are only those of this batch", "old batches have weight eps",
    "keep the running average", {"epsilon": lambda r, right: 0.0})
add("average", "debiased exponential average", "the average is sum d^j X_{k-j} / sum d^j, from the first batch on",
    "the paper weights the first batches equally; the two agree only at the first batch and in the limit",
    "use eps = min(1 - 1/k, 0.95)", {"epsilon": lambda r, right: (
        lambda d, k: d * (1 - d**k) / (1 - d**(k + 1)))(r["ceiling"], r["k"])}, ("ceiling", "k"))
