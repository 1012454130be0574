"""The targets of the expectation, and what is squared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ... import params
from ...checks import Array
from ...layers import second_moment
from ...likelihoods import Bernoulli, Categorical
from ..graph import NODES, Reference
from .entry import Change, M_of, Right, add, rows_of


def _at_mode(r: Reference) -> tuple[Array, ...]:
    """Return g at the likeliest target of each example."""
    likelihood, z = r.problem.model.likelihood, r["z"]
    mode = z.argmax(axis=1) if isinstance(likelihood, Categorical) else \
        (z > 0).astype(z.dtype) if isinstance(likelihood, Bernoulli) else z
    return tuple(r["at"].backward(likelihood.gradient(z, mode)[None]))

def _unit_columns(z: Array) -> Array:
    """Return the columns of the identity for each example, (C, N, C)."""
    return np.repeat(np.eye(z.shape[1])[:, None, :], len(z), axis=1)

def _uniform_columns(r: Reference) -> Array:
    """Return columns whose squares sum to E[dz dz^T] over targets that do not depend on the model."""
    z, likelihood = r["z"], r.problem.model.likelihood
    if isinstance(likelihood, Categorical):
        labels = np.repeat(np.arange(z.shape[1])[:, None], len(z), axis=1)
        return likelihood.gradient(z, labels) / math.sqrt(z.shape[1])
    if isinstance(likelihood, Bernoulli):                       # independent fair bits: mean p - 1/2, variance 1/4
        return np.concatenate([(1 / (1 + np.exp(-z)) - 0.5)[None], 0.5 * _unit_columns(z)])
    return np.concatenate([z[None], _unit_columns(z)])          # standard normal targets

def _other_columns(columns: Callable[[Reference], Array]) -> dict[str, Change]:
    return {"dz_exact": lambda r, right: columns(r)}

def _softmax_columns(variance: Callable[[Array], Array]) -> dict[str, Change]:
    """Take F_R of a softmax to be diagonal, with this function of the probabilities."""
    return _other_columns(lambda r: np.sqrt(variance(_probabilities(r))).T[:, :, None]
                          * np.eye(r["z"].shape[1])[:, None, :]
                          if isinstance(r.problem.model.likelihood, Categorical) else NODES["dz_exact"].compute(r))

_EXPECTATION = "the Fisher is an expectation over the model's own prediction, not over the data's labels"
add("expectation", "labels in place of the model's targets", "the training labels were used: this is the empirical "
    "Fisher", _EXPECTATION, "draw the targets from the model's prediction, or use a root of F_R",
    dict.fromkeys(("g_exact", "g_sampled"), lambda r, right: tuple(g[None] for g in r["g"])), ("g",))
add("expectation", "likeliest label in place of a sample", "the model's likeliest target was used, not a random one",
    "E[g g^T] needs the spread of the prediction; its mode has none", "sample from the prediction",
    dict.fromkeys(("g_exact", "g_sampled"), lambda r, right: _at_mode(r)), ("at", "z"))
add("expectation", "sampled in place of exact", "G was estimated at the sampled targets instead of the exact "
    "expectation", "the sampled G has an error of order 1/sqrt(N M)", "compare it with G_sampled, or use a root of F_R",
    {"g_exact": lambda r, right: r["g_sampled"]}, ("g_sampled",))
add("expectation", "only the first sample used", "only the first of the M sampled targets per example was used",
    "all M are averaged", "sum over the M targets and divide by M",
    {"g_sampled": lambda r, right: tuple(g[:1] * math.sqrt(M_of(r)) for g in right())})
_CROSS = "the outer product of a sum has cross terms; each class, output or sample is sent back on its own"
add("expectation", "all columns in one backward pass", "the columns of the root of F_R (one for each class or output) "
    "were added and sent back in one backward pass", _CROSS, "send back one column at a time and add the outer "
    "products",
    {"dz_exact": lambda r, right: right().sum(axis=0, keepdims=True)})
add("expectation", "sum of the outputs sent back", "the gradients are those of the sum of all outputs z (ones were "
    "sent back): one backward pass for all classes or outputs", _CROSS, "send back the columns of a root of F_R, one "
    "at a time", {"dz_exact": lambda r, right: np.ones_like(right()[:1])})
add("expectation", "samples averaged before the square", "the gradients were averaged over the M samples before the "
    "outer product", _CROSS, "take the outer product of each sample, and average those",
    {"dz_sampled": lambda r, right: right().sum(axis=0, keepdims=True) / math.sqrt(M_of(r))})
add("expectation", "samples summed before the square", "the gradients were summed over the M samples before the outer "
    "product", _CROSS, "take the outer product of each sample, and average those",
    {"dz_sampled": lambda r, right: right().sum(axis=0, keepdims=True) * math.sqrt(M_of(r))})

def _class_numbers(targets: str) -> Change:
    def change(r: Reference, right: Right) -> Any:
        value = right()                                     # raises an error without targets
        if not isinstance(r.problem.model.likelihood, Categorical):
            return value
        M = M_of(r) if targets == "targets" else 1.0
        return (_probabilities(r) - np.asarray(r[targets])[..., None]) / math.sqrt(M)
    return change

add("expectation", "class number in place of one-hot", "the number of the class was subtracted from every probability, "
    "in place of its one-hot row", "the gradient is p - e_y: 1 is subtracted from the probability of class y alone",
    "encode the labels as one-hot rows", {"dz": _class_numbers("y"), "dz_sampled": _class_numbers("targets")},
    ("z", "y", "targets"))
add("expectation", "targets from a uniform distribution", "the targets were drawn independently of the prediction "
    "(uniform classes, fair bits, standard normal)", _EXPECTATION, "sample from p(y | z), with z of this example",
    _other_columns(_uniform_columns), ("at", "z"))
add("expectation", "output curvature left out", "the columns sent back are those of the identity, not of a root of F_R",
    "F = E[J^T F_R J]; F_R is the identity only for the Gaussian", "send back the columns of a root of F_R",
    _other_columns(lambda r: _unit_columns(r["z"])), ("at", "z"))
_SOFTMAX = "the classes share one probability: F_R = diag(p) - p p^T"
add("expectation", "curvature of the softmax without its outer product", "F_R was taken as diag(p), without p p^T",
    _SOFTMAX, "subtract p p^T", _softmax_columns(lambda p: p), ("at", "z"))
add("expectation", "curvature of the softmax by its diagonal", "F_R was taken as diag(p (1 - p)), that of independent "
    "bits", _SOFTMAX + " is not diagonal", "use all of F_R", _softmax_columns(lambda p: p * (1 - p)), ("at", "z"))
add("expectation", "root applied from the wrong side", "root^T root was used instead of root root^T",
    "with columns b_k of the root, F_R = sum_k b_k b_k^T = root root^T", "send back the columns of the root, not its "
    "rows", _other_columns(lambda r: r.problem.model.likelihood.fisher_root(r["z"]).transpose(1, 0, 2)), ("at", "z"))

def _rows(r: Reference, name: str) -> list[Array]:
    """Return the rows of which a quantity is the second moment, (M, N, width), with M = 1 if nothing is sampled."""
    if name == "A":
        return [a[None] for a in r["a_bar"]]
    g = [math.sqrt(M_of(r)) * g for g in r["g_sampled"]] if name.endswith("sampled") else [g[None] for g in r["g"]]
    return g if name[0] == "G" else [rows_of(g, r["a_bar"]).reshape(*g[0].shape[:2], -1)]

def _like(name: str, matrices: Iterable[Array]) -> Any:
    """Return a matrix per layer or, for a Fisher, the only one."""
    return next(iter(matrices)) if name[0] == "f" else tuple(matrices)

def _of_means(parts: int, factor: Callable[[Reference], float] = lambda r: 1.0) -> dict[str, Change]:
    """Square the mean gradients of parts of the batch, those at the labels for the exact G."""
    def change(name: str) -> Change:
        def squares(r: Reference, right: Right) -> Any:
            """Return the mean of the squares of the parts' mean gradients."""
            if r["N"] < parts:
                raise ValueError("there are fewer examples than parts")
            means = (np.array([part.mean(axis=(0, 1)) for part in np.array_split(rows, parts, axis=1)])
                     for rows in _rows(r, name))
            return _like(name, (factor(r) / parts * second_moment(m, m) for m in means))
        return squares
    return {name: change(name) for name in ("G", "G_sampled", "G_empirical", "fisher_sampled", "fisher_empirical")}

_RANK = "the outer product of a mean is not the mean of outer products: it has rank one and vanishes as training ends"
_BEFORE = "take the outer product of each example (g.T @ g / N)"
for _name, _what, _changes in (
    ("square of the mean gradient", "the gradients were averaged over the examples before the outer product",
     _of_means(1)),
    ("square of the summed gradient", "the gradients were summed over the examples before the outer product: N^2 times "
     "the square of the mean gradient", _of_means(1, lambda r: float(r["N"])**2)),
    ("squares of the mean gradients of two halves", "each half of the batch gave the outer product of its mean "
     "gradient, and the two were averaged (mini-batch gradients)", _of_means(2)),
    ("squares of the mean gradients of four parts", "each quarter of the batch gave the outer product of its mean "
     "gradient, and the four were averaged (mini-batch gradients)", _of_means(4)),
):
    add("expectation", _name, _what, _RANK, _BEFORE, _changes, ("g", "a_bar", "g_sampled", "N"))

def _centred(name: str, unbiased: bool) -> Change:
    def change(r: Reference, right: Right) -> Any:
        rows, S = _rows(r, name), right()
        n = rows[0].shape[0] * rows[0].shape[1]
        c = n / max(n - 1, 1) if unbiased else 1.0
        means = (u.mean(axis=(0, 1)) for u in rows)
        return _like(name, (c * (T - np.outer(m, m)) for T, m in zip(S if isinstance(S, tuple) else (S,), means,
                                                                     strict=True)))
    return change

_SINGULAR = "A is an uncentred second moment; centred, the bias row is zero and A is singular"
for _thing, _of, _why, _names, _reads in (
    ("G", "g", "G is an uncentred second moment; under the model the mean is zero anyway, at the labels it is not",
     ("G_empirical", "G_sampled"), ("g", "g_sampled")),
    ("A", "the activations", _SINGULAR, ("A",), ("a_bar",)),
    ("Fisher", "the gradients", "the Fisher is an uncentred second moment; at the labels the mean gradient is not zero",
     ("fisher_empirical", "fisher_sampled"), ("g", "g_sampled", "a_bar")),
):
    add("expectation", f"{_thing} centred", f"the mean was subtracted: this is the covariance of {_of}", _why,
        "do not subtract the mean", {name: _centred(name, False) for name in _names}, _reads)
    add("expectation", f"np.cov for {_thing}", f"this is np.cov of {_of}: the mean was subtracted, and the sum divided "
        "by N - 1", _why, "use rows.T @ rows / N", {name: _centred(name, True) for name in _names}, _reads)
add("expectation", "G from the gradient of the weights", "G is D D^T with the mean gradient D of the weights and its "
    "weight decay, as in Shampoo", "G is made of the gradients of each example with respect to the pre-activations",
    "take the gradients at the layer's output", dict.fromkeys(
        ("G", "G_sampled", "G_empirical"), lambda r, right: tuple(D @ D.T for D in r["gradient"])), ("gradient",))

add("expectation", "A from the gradient of the weights", "A is D^T D with the mean gradient D of the weights and its "
    "weight decay, as in Shampoo", "A is made of the inputs of the layer, example by example", "take a_bar of each "
    "example", {"A": lambda r, right: tuple(D.T @ D for D in r["gradient"])}, ("gradient",))

def _decayed_rows(r: Reference) -> Array:
    return rows_of(r["g"], r["a_bar"]) + params.flatten(r["decay"])

add("expectation", "Fisher of weight-decayed gradients", "the squared per-example gradients contained the weight "
    "decay", "the Fisher is that of -log p; the weight decay enters as eta I, exactly",
    "take the gradients of the loss without weight decay",
    {"fisher_empirical": lambda r, right: _decayed_rows(r).T @ _decayed_rows(r) / r["N"]}, ("g", "a_bar", "decay"))

def _through_softmax(r: Reference) -> Callable[[Array], Array]:
    """Return the map from gradients with respect to the probabilities to gradients with respect to z."""
    p = _probabilities(r)
    if isinstance(r.problem.model.likelihood, Categorical):
        return lambda v: p * (v - np.sum(p * v, axis=-1, keepdims=True))
    return lambda v: p * (1 - p) * v

def _probabilities(r: Reference) -> Array:
    z = r["z"]
    if isinstance(r.problem.model.likelihood, Categorical):
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    return 1 / (1 + np.exp(-z)) if isinstance(r.problem.model.likelihood, Bernoulli) else z

def _double(what: str) -> Change:
    def change(r: Reference, right: Right) -> Any:
        likelihood, p = r.problem.model.likelihood, _probabilities(r)
        if not isinstance(likelihood, (Categorical, Bernoulli)):
            return right()
        if what == "loss":
            return float(np.mean(likelihood.nll(p, r["y"])))
        back = _through_softmax(r)
        if what == "dz":
            return back(likelihood.gradient(p, r["y"]))
        if what == "dz_sampled":
            return back(likelihood.gradient(p, r["targets"])) / math.sqrt(M_of(r))
        return back(likelihood.fisher_root(p).transpose(2, 0, 1))
    return change

add("expectation", "probabilities used as logits", "probabilities were given to a loss that expects logits: the "
    "softmax (or logistic) is applied twice", "the cross-entropy of most libraries expects logits",
    "give it z, without a softmax in the network",
    {name: _double(name) for name in ("loss", "dz", "dz_sampled", "dz_exact")}, ("z", "at", "y", "targets"))
