"""The targets of the expectation, and what is squared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import params
from ...checks import Array
from ...likelihoods import Bernoulli, Categorical
from ..graph import NODES, Reference
from ..quantities import G_empirical
from .entry import Change, M_of, Right, add, rows_of


def _at_mode(r: Reference) -> tuple[Array, ...]:
    """Return g at the likeliest target of each example."""
    likelihood, z = r.problem.model.likelihood, r["z"]
    mode = z.argmax(axis=1) if isinstance(likelihood, Categorical) else \
        (z > 0).astype(z.dtype) if isinstance(likelihood, Bernoulli) else z
    return tuple(r["at"].backward(likelihood.gradient(z, mode)))

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
    dict.fromkeys(("G", "G_sampled"), lambda r, right: r["G_empirical"])
    | dict.fromkeys(("fisher", "fisher_sampled"), lambda r, right: r["fisher_empirical"]),
    ("G_empirical", "fisher_empirical"))
add("expectation", "likeliest label in place of a sample", "the model's likeliest target was used, not a random one",
    "E[g g^T] needs the spread of the prediction; its mode has none", "sample from the prediction",
    dict.fromkeys(("G", "G_sampled"), lambda r, right: G_empirical(_at_mode(r), r["N"])), ("at", "z", "N"))
add("expectation", "sampled in place of exact", "G was estimated at the sampled targets instead of the exact "
    "expectation", "the sampled G has an error of order 1/sqrt(N M)", "compare it with G_sampled, or use a root of F_R",
    {"G": lambda r, right: r["G_sampled"], "fisher": lambda r, right: r["fisher_sampled"]},
    ("G_sampled", "fisher_sampled"))
add("expectation", "only the first sample used", "only the first of the M sampled targets per example was used",
    "all M are averaged", "sum over the M targets and divide by M",
    {"g_sampled": lambda r, right: tuple(g[:1] * math.sqrt(M_of(r)) for g in right())})
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

def _square_of_mean(g: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(np.outer(m, m) for m in (gi.reshape(-1, gi.shape[-1]).mean(axis=0) for gi in g))

add("expectation", "square of the mean gradient", "the gradients were averaged over the examples before the outer "
    "product", "G is the mean of outer products; the outer product of the mean has rank one and vanishes as training "
    "ends", "take the outer product of each example (g.T @ g / N)",
    {"G_sampled": lambda r, right: _square_of_mean(r["g_sampled"]),
     **dict.fromkeys(("G", "G_empirical"), lambda r, right: _square_of_mean(r["g"])),
     "fisher_empirical": lambda r, right: np.outer(*[rows_of(r["g"], r["a_bar"]).mean(axis=0)] * 2)},
    ("g", "a_bar", "g_sampled"))

def _centred(rows: str) -> Change:
    return lambda r, right: tuple(S - m for S, m in zip(right(), _square_of_mean(r[rows]), strict=True))

add("expectation", "G centred", "the mean gradient was subtracted: this is the covariance of g",
    "G is an uncentred second moment; under the model the mean is zero anyway, at the labels it is not",
    "do not subtract the mean", {"G_empirical": _centred("g")}, ("g",))
add("expectation", "A centred", "the mean of a_bar was subtracted: this is the covariance of the activations",
    "A is an uncentred second moment; centred, the bias row is zero and A is singular", "do not subtract the mean",
    {"A": _centred("a_bar")}, ("a_bar",))
add("expectation", "G from the gradient of the weights", "G is D D^T with the mean gradient D of the weights and its "
    "weight decay, as in Shampoo", "G is made of the gradients of each example with respect to the pre-activations",
    "take the gradients at the layer's output", dict.fromkeys(
        ("G", "G_sampled", "G_empirical"), lambda r, right: tuple(D @ D.T for D in r["gradient"])), ("gradient",))

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
