"""What goes wrong in implementations of K-FAC: one catalogue, by name.

An entry says in a sentence what was done, why it is wrong and how to mend it, and holds the transformation of the right
values into the wrong ones: a change of one or a few nodes of the `reference`, from which the rest follows. The
diagnosis takes the entries for hypotheses, the test suite for mutants, and the exercises for feedback.

A function of a change takes the reference and the function that makes the right value; it need not call that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import damping, kronecker, params
from ..checks import Array
from ..kronecker import Cholesky
from ..likelihoods import Bernoulli, Categorical
from ..quadratic_model import SmallModel
from .graph import NODES, Reference
from .problem import Problem
from .reference import rows_of, second_moment

Right = Callable[[], Any]
Change = Callable[[Reference, Right], Any]

#: A mistake is flagged where it changes a quantity by more than this, relatively.
VISIBLE = 1e-6

FACTORS_A = ("A", "A_cross")
FACTORS_G = ("G", "G_sampled", "G_empirical", "G_cross", "G_cross_sampled")
FISHERS = ("fisher", "fisher_sampled", "fisher_empirical")
STEPS = ("step", "step_tridiagonal", "step_exact_damping", "natural_gradient")


@dataclass(frozen=True, eq=False)
class Mistake:
    """One entry of the catalogue.

    Attributes
    ----------
    name : str
        Short, in words.
    what, why, remedy : str
        A sentence each.
    changes : mapping
        For each node, the function that makes its wrong value.
    reads : tuple of str
        The nodes that those functions read beyond what the node is made from.
    group : str
        Its family, such as ``scale``.
    shows : mapping
        For each quantity that comes out in another form, while what is made from it stays as it was, the function of
        the reference and the value.
    """

    name: str
    what: str
    why: str
    remedy: str
    changes: Mapping[str, Change] = field(repr=False)
    reads: tuple[str, ...] = ()
    group: str = ""
    shows: Mapping[str, Callable[[Reference, Any], Any]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Return what was done, why it is wrong, and the remedy, a line each."""
        return f"{self.name}: {self.what}\n  why it is wrong: {self.why}\n  remedy: {self.remedy}"


CATALOGUE: dict[str, Mistake] = {}


def _add(group: str, name: str, what: str, why: str, remedy: str, changes: Mapping[str, Change],
         reads: tuple[str, ...] = (), shows: Mapping[str, Callable[[Reference, Any], Any]] | None = None) -> None:
    assert name not in CATALOGUE, name
    CATALOGUE[name] = Mistake(name, what, why, remedy, dict(changes), reads, group, dict(shows or {}))


def times(c: float, value: Any) -> Any:
    """Return c times a number, an array, or each array of a tuple.

    Parameters
    ----------
    c : float
        The multiplier.
    value : number, array or tuple of arrays
        A quantity.
    """
    return tuple(c * X for X in value) if isinstance(value, tuple) else c * value


def _scaled(nodes: Sequence[str], factor: Callable[[Reference], float]) -> dict[str, Change]:
    return dict.fromkeys(nodes, lambda r, right: times(factor(r), right()))


def _replaced(nodes: Sequence[str], compute: Callable[[Reference], Any]) -> dict[str, Change]:
    return dict.fromkeys(nodes, lambda r, right: compute(r))


def _map(nodes: Sequence[str], f: Callable[[Array], Array]) -> dict[str, Change]:
    return dict.fromkeys(nodes, lambda r, right: tuple(f(X) for X in right()))


def _N(r: Reference) -> float:
    return float(len(r.problem.x))


def _C(r: Reference) -> float:
    return float(r.problem.sizes[-1])


def _M(r: Reference) -> float:
    return float(len(r.problem.targets)) if r.problem.targets is not None else 1.0


# Scales. "mean" below is that over the N examples.

_PER_EXAMPLE = "G is made of gradients of one example's loss, so the 1/N of a mean loss must be taken out of them first"
for _name, _what, _why, _remedy, _factor in (
    ("G summed over the examples", "G was summed over the N examples, not averaged: it is N times too large",
     "A and G are both means over examples; only then does A kron G have the scale of the Fisher, a mean too",
     "divide G by N once", lambda r: _N(r)),
    ("G of mean-loss gradients, summed", "the gradients of the MEAN loss were squared and summed: G is N times too "
     "small", _PER_EXAMPLE, "multiply the gradients by N and average, or multiply this G by N", lambda r: 1 / _N(r)),
    ("G of mean-loss gradients, averaged", "the gradients of the MEAN loss were squared and averaged: G is N^2 times "
     "too small", _PER_EXAMPLE, "multiply the gradients by N before they are squared", lambda r: _N(r)**-2),
    ("G of mean-loss gradients, averaged twice", "the gradients of the MEAN loss were squared, averaged, and divided "
     "by N once more: G is N^3 times too small", _PER_EXAMPLE,
     "multiply the gradients by N before they are squared, and divide by N once", lambda r: _N(r)**-3),
    ("G of gradients times N", "the gradients were multiplied by N although the loss was a sum: G is N^2 times too "
     "large", "a summed loss gives the gradients of single examples as they are", "leave the factor N out, or use the "
     "mean loss", lambda r: _N(r)**2),
    ("G of gradients times N, summed", "the gradients were multiplied by N although the loss was a sum, and G was "
     "summed: it is N^3 times too large", "a summed loss gives the gradients of single examples as they are, and G is "
     "a mean", "leave the factor N out and divide by N", lambda r: _N(r)**3),
    ("G times root N", "G is sqrt(N) times too large: only one of its two gradients was rescaled by sqrt(N)",
     "G is quadratic in the gradients, so a factor of theirs occurs squared in it", "rescale gradients by N, not G by "
     "sqrt(N)", lambda r: _N(r)**0.5),
    ("G over root N", "G was divided by sqrt(N) once too often", "G is quadratic in the gradients, so a factor of "
     "theirs occurs squared in it", "divide G by N, or the gradients by sqrt(N)", lambda r: _N(r)**-0.5),
    ("G averaged over the outputs", "G was divided by the number C of outputs", "the Fisher of an example is a sum "
     "over outputs: the C columns of the root are added up", "sum over the columns", lambda r: 1 / _C(r)),
    ("G times the outputs", "G was multiplied by the number C of outputs", "the Fisher of an example is a sum over "
     "outputs, each counted once", "leave the factor C out", lambda r: _C(r)),
    ("G of a loss averaged over outputs", "the gradients were those of a loss averaged over the C outputs: G is C^2 "
     "times too small", "-log p of an example is a sum over its outputs; their mean is another model",
     "multiply the gradients by C (or use reduction 'sum' over outputs)", lambda r: _C(r)**-2),
    ("G twice too large", "G is twice too large: the curvature of ||z - y||^2, without the 1/2",
     "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2", "halve the loss, or halve G", lambda r: 2.0),
    ("G half too small", "G is half of what it must be: a 1/2 was applied to the curvature too",
     "the 1/2 belongs to the loss and is gone after two derivatives", "leave the factor 1/2 out", lambda r: 0.5),
    ("G four times too large", "the gradients are those of ||z - y||^2, without the 1/2, and G has their factor "
     "squared", "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2", "halve the gradients", lambda r: 4.0),
):
    _add("scale", _name, _what, _why, _remedy, _scaled(FACTORS_G, _factor))

_SAMPLED = ("G_sampled", "G_cross_sampled")
for _name, _what, _why, _remedy, _factor in (
    ("G summed over the samples", "G was summed over the M sampled targets, not averaged: it is M times too large",
     "each sampled target is one look at the same expectation", "divide by M", lambda r: _M(r)),
    ("G divided by the samples twice", "the loss was divided by M and the sum of squares too: G is M times too small",
     "the outer product squares the 1/M of the loss", "divide either the sum of outer products by M or the loss by "
     "sqrt(M)", lambda r: 1 / _M(r)),
    ("G over root M", "G was divided by sqrt(M) in place of M: it is sqrt(M) times too large", "M outer products are "
     "averaged, not M gradients", "divide the sum of outer products by M", lambda r: _M(r)**0.5),
):
    _add("scale", _name, _what, _why, _remedy, _scaled(_SAMPLED, _factor))

for _name, _what, _remedy, _factor in (
    ("A summed over the examples", "A was summed over the N examples, not averaged: it is N times too large",
     "divide A by N", lambda r: _N(r)),
    ("A divided by N twice", "A was divided by N twice: it is N times too small", "divide A by N once",
     lambda r: 1 / _N(r)),
    ("A divided by N three times", "A was divided by N three times: it is N^2 times too small", "divide A by N once",
     lambda r: _N(r)**-2),
    ("A times root N", "A was divided by sqrt(N) in place of N: it is sqrt(N) times too large", "divide A by N",
     lambda r: _N(r)**0.5),
    ("A over root N", "A was divided by sqrt(N) once too often", "divide A by N once", lambda r: _N(r)**-0.5),
    ("A twice too large", "A is twice too large", "A has no constant of the loss in it: divide by 2", lambda r: 2.0),
    ("A half too small", "A is half of what it must be", "A has no constant of the loss in it: multiply by 2",
     lambda r: 0.5),
):
    _add("scale", _name, _what, "A is the mean of a_bar a_bar^T over the examples", _remedy,
         _scaled(FACTORS_A, _factor))

_MOMENT = "this is a second moment, not an estimate of a covariance with its mean taken out"
_add("scale", "A divided by N - 1", "A was divided by N - 1 in place of N", _MOMENT, "divide by N",
     _scaled(FACTORS_A, lambda r: _N(r) / max(_N(r) - 1, 1.0)))
_add("scale", "G divided by N - 1", "G was divided by N - 1 in place of N", _MOMENT, "divide by N",
     _scaled(FACTORS_G, lambda r: _N(r) / max(_N(r) - 1, 1.0)))
_UNEVEN = "the product is right, but pi and the damping of each factor see the split"
_add("scale", "scale split by root C between A and G", "A is sqrt(C) times too large and G sqrt(C) times too small",
     _UNEVEN, "keep both factors means over the examples",
     _scaled(FACTORS_A, lambda r: _C(r)**0.5) | _scaled(FACTORS_G, lambda r: _C(r)**-0.5))
_add("scale", "scale split by root N between A and G", "A is sqrt(N) times too large and G sqrt(N) times too small",
     _UNEVEN, "keep both factors means over the examples",
     _scaled(FACTORS_A, lambda r: _N(r)**0.5) | _scaled(FACTORS_G, lambda r: _N(r)**-0.5))
_add("scale", "all of 1/N in G", "A was summed over the examples and G divided by N twice", _UNEVEN,
     "keep both factors means over the examples",
     _scaled(FACTORS_A, lambda r: _N(r)) | _scaled(FACTORS_G, lambda r: 1 / _N(r)))
_add("scale", "Fisher summed over the examples", "the dense Fisher was summed over the N examples, not averaged",
     "the objective is a mean over examples, and its curvature with it", "divide by N",
     _scaled(FISHERS, lambda r: _N(r)))
_add("scale", "Fisher of mean-loss gradients", "the dense Fisher was made of gradients of the MEAN loss: it is N^2 "
     "times too small", "the Fisher is the mean of squares, not the square of a mean's parts",
     "multiply the gradients by N", _scaled(FISHERS, lambda r: _N(r)**-2))
_add("scale", "gradient summed over the examples", "the loss was summed over the examples, so its gradient is N times "
     "that of the mean (weight decay apart)", "curvature and weight decay are those of the mean loss",
     "divide by N", {"gradient": lambda r, right: tuple(_N(r) * (D - d) + d for D, d in zip(right(), r["decay"],
                                                                                           strict=True))}, ("decay",))
_add("scale", "loss averaged over the outputs", "the loss was averaged over the C outputs as well",
     "-log p of an example is a sum over its outputs", "sum over the outputs, average over the examples",
     {"loss": lambda r, right: right() / _C(r), "dz": lambda r, right: right() / _C(r),
      "dz_sampled": lambda r, right: right() / _C(r), "dz_exact": lambda r, right: right() / math.sqrt(_C(r))})
_add("scale", "squared loss without its half", "the loss is ||z - y||^2, without the 1/2: its gradient is twice too "
     "large, its curvature too, and squares of gradients four times",
     "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2", "halve the loss",
     {"loss": lambda r, right: 2 * right(), "dz": lambda r, right: 2 * right(),
      "dz_sampled": lambda r, right: 2 * right(), "dz_exact": lambda r, right: math.sqrt(2) * right()})

# Expectations.



def _mode(problem: Problem, z: Array) -> Any:
    """Return the likeliest target of each example."""
    if isinstance(problem.model.likelihood, Categorical):
        return z.argmax(axis=1)
    return (z > 0).astype(z.dtype) if isinstance(problem.model.likelihood, Bernoulli) else z


def _at_mode(r: Reference) -> tuple[Array, ...]:
    dz = r.problem.model.likelihood.gradient(r["z"], _mode(r.problem, r["z"]))
    return tuple(r["at"].backward(dz))


def _uniform_columns(r: Reference) -> Array:
    """Return columns whose squares add up to E[dz dz^T] over targets that the model has no part in."""
    z, likelihood = r["z"], r.problem.model.likelihood
    if isinstance(likelihood, Categorical):
        C = z.shape[1]
        labels = np.repeat(np.arange(C)[:, None], len(z), axis=1)
        return likelihood.gradient(z, labels) / math.sqrt(C)
    if isinstance(likelihood, Bernoulli):                       # independent fair bits: mean p - 1/2, variance 1/4
        p = 1 / (1 + np.exp(-z))
        spread = np.zeros((z.shape[1], *z.shape))
        for c in range(z.shape[1]):
            spread[c, :, c] = 0.5
        return np.concatenate([(p - 0.5)[None], spread])
    C = z.shape[1]                                              # standard normal targets, whatever z
    return np.concatenate([z[None], np.repeat(np.eye(C)[:, None, :], len(z), axis=1)])


def _other_columns(columns: Callable[[Reference], Array]) -> dict[str, Change]:
    return {"dz_exact": lambda r, right: columns(r)}


_EXPECTATION = "the Fisher is an expectation over the model's own prediction, not over the data's labels"
_add("expectation", "labels in place of the model's targets", "the training labels were used: this is the empirical "
     "Fisher", _EXPECTATION, "draw the targets from the model's prediction, or use a root of F_R",
     {"G": lambda r, right: r["G_empirical"], "G_sampled": lambda r, right: r["G_empirical"],
      "fisher": lambda r, right: r["fisher_empirical"], "fisher_sampled": lambda r, right: r["fisher_empirical"]},
     ("G_empirical", "fisher_empirical"))
_add("expectation", "likeliest label in place of a sample", "the likeliest target of the model was used for each "
     "example, not a random one", "E[g g^T] needs the spread of the prediction; its mode has none",
     "sample from the prediction",
     {"G": lambda r, right: (lambda g: second_moment(g, g, r["N"]))(_at_mode(r)),
      "G_sampled": lambda r, right: (lambda g: second_moment(g, g, r["N"]))(_at_mode(r))}, ("at", "z", "N"))
_add("expectation", "sampled in place of exact", "G was estimated at the sampled targets, where the exact expectation "
     "was asked for", "the sampled G has an error of order 1/sqrt(N M)", "compare it with G_sampled, or use a root of "
     "F_R", {"G": lambda r, right: r["G_sampled"], "fisher": lambda r, right: r["fisher_sampled"]},
     ("G_sampled", "fisher_sampled"))
_add("expectation", "only the first sample used", "of the M sampled targets of each example, only the first was used",
     "all M are averaged", "sum over the M targets and divide by M",
     {"g_sampled": lambda r, right: tuple(g[:1] * math.sqrt(_M(r)) for g in right())})
_add("expectation", "targets from a uniform distribution", "the targets were drawn without regard to the prediction "
     "(uniform classes, fair bits, standard normal)", _EXPECTATION, "sample from p(y | z), with z of this example",
     _other_columns(_uniform_columns), ("at", "z"))
_add("expectation", "output curvature left out", "the columns sent back were those of the identity, not of a root of "
     "F_R", "F = E[J^T F_R J]; F_R is the identity for the Gaussian alone", "send back the columns of a root of F_R",
     _other_columns(lambda r: np.repeat(np.eye(r["z"].shape[1])[:, None, :], len(r["z"]), axis=1)), ("at", "z"))
_add("expectation", "curvature of the softmax without its outer product", "F_R was taken to be diag(p), without p p^T",
     "the classes share one probability: F_R = diag(p) - p p^T", "subtract p p^T", _other_columns(
         lambda r: np.sqrt(_probabilities(r)).T[:, :, None] * np.eye(r["z"].shape[1])[:, None, :]
         if _is_softmax(r) else NODES["dz_exact"].compute(r)), ("at", "z"))
_add("expectation", "curvature of the softmax by its diagonal", "F_R was taken to be diag(p (1 - p)), that of "
     "independent bits", "the classes share one probability: F_R = diag(p) - p p^T has more than a diagonal",
     "use all of F_R",
     _other_columns(lambda r: np.sqrt(_probabilities(r) * (1 - _probabilities(r))).T[:, :, None]
                    * np.eye(r["z"].shape[1])[:, None, :]
                    if _is_softmax(r) else NODES["dz_exact"].compute(r)),
     ("at", "z"))
_add("expectation", "root applied from the wrong side", "root^T root was used in place of root root^T",
     "with columns b_k of the root, F_R = sum_k b_k b_k^T = root root^T", "send back the columns of the root, not its "
     "rows", _other_columns(lambda r: r.problem.model.likelihood.fisher_root(r["z"]).transpose(1, 0, 2)), ("at", "z"))


def _square_of_mean(g: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(np.outer(m, m) for m in (gi.reshape(-1, gi.shape[-1]).mean(axis=0) for gi in g))


_add("expectation", "square of the mean gradient", "the gradients were averaged over the examples before the outer "
     "product", "G is the mean of outer products; the outer product of the mean has rank one and is small at the end "
     "of training", "take the outer product example by example (g.T @ g / N)",
     {"G": lambda r, right: _square_of_mean(r["g"]), "G_sampled": lambda r, right: _square_of_mean(r["g_sampled"]),
      "G_empirical": lambda r, right: _square_of_mean(r["g"]),
      "fisher_empirical": lambda r, right: np.outer(*[rows_of(r["g"], r["a_bar"]).mean(axis=0)] * 2)},
     ("g", "a_bar", "g_sampled"))


def _centred_G(r: Reference, right: Right) -> tuple[Array, ...]:
    return tuple(G - m for G, m in zip(right(), _square_of_mean(r["g"]), strict=True))


_add("expectation", "G centred", "the mean gradient was subtracted: this is the covariance of g",
     "G is an uncentred second moment; under the model the mean is zero anyway, at the labels it is not",
     "leave the mean in", {"G_empirical": _centred_G}, ("g",))
_add("expectation", "A centred", "the mean of a_bar was subtracted: this is the covariance of the activations",
     "A is an uncentred second moment; centred, the row of the bias is zero and A is singular", "leave the mean in",
     {"A": lambda r, right: tuple(A - m for A, m in zip(right(), _square_of_mean(r["a_bar"]), strict=True))},
     ("a_bar",))


def _weight_gradient_square(side: str) -> Change:
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        return tuple(D @ D.T if side == "G" else D.T @ D for D in r["gradient"])
    return change


_add("expectation", "G from the gradient of the weights", "G was made of the weights' mean gradient, weight decay and "
     "all: D D^T, as in Shampoo", "G is of the gradients with respect to the pre-activations, example by example",
     "take the gradients at the layer's output", dict.fromkeys(("G", "G_sampled", "G_empirical"),
                                                               _weight_gradient_square("G")), ("gradient",))


def _decayed_rows(r: Reference) -> Array:
    return rows_of(r["g"], r["a_bar"]) + params.flatten(r["decay"])


_add("expectation", "Fisher of weight-decayed gradients", "the weight decay was in the per-example gradients that were "
     "squared", "the Fisher is of -log p alone; weight decay enters as eta I, exactly",
     "take the gradients of the loss without weight decay",
     {"fisher_empirical": lambda r, right: _decayed_rows(r).T @ _decayed_rows(r) / r["N"]}, ("g", "a_bar", "decay"))


def _is_softmax(r: Reference) -> bool:
    return isinstance(r.problem.model.likelihood, Categorical)


def _through_softmax(r: Reference) -> Callable[[Array], Array]:
    """Return what maps gradients with respect to the probabilities to gradients with respect to z."""
    z = r["z"]
    if isinstance(r.problem.model.likelihood, Categorical):
        p = _probabilities(r)
        return lambda v: p * (v - np.sum(p * v, axis=-1, keepdims=True))
    p = 1 / (1 + np.exp(-z))
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
            return float(np.mean(likelihood.nll(p, r.problem.y)))
        back = _through_softmax(r)
        if what == "dz":
            return back(likelihood.gradient(p, r.problem.y))
        if what == "dz_sampled":
            return back(likelihood.gradient(p, r.problem.targets)) / math.sqrt(_M(r))
        return back(likelihood.fisher_root(p).transpose(2, 0, 1))
    return change


_add("expectation", "probabilities used as logits", "the network's probabilities were given to a loss that takes "
     "logits: the softmax (or logistic) is applied twice", "the cross-entropy of most libraries takes logits",
     "give it z, without a softmax in the network",
     {name: _double(name) for name in ("loss", "dz", "dz_sampled", "dz_exact")}, ("z", "at"))

# The layers.


def _moments(rows: Callable[[Reference], Sequence[Array]]) -> Change:
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        found = rows(r)
        return second_moment(found, found, r["N"])
    return change


def _ones(a: Array) -> Array:
    return np.column_stack([a, np.ones(len(a))])


_add("layer", "A of the layer's output", "A was made of the layer's outputs after the nonlinearity, not of its inputs",
     "the gradient of W_i is g_i a_bar^T with the layer's INPUT", "take the activations that enter the layer",
     {"A": _moments(lambda r: [*r["a_bar"][1:], _ones(r["z"])])}, ("a_bar", "z", "N"))
_add("layer", "A before the nonlinearity", "A was made of the pre-activations s, before the nonlinearity",
     "the next layer sees phi(s)", "take the activations after the nonlinearity",
     {"A": _moments(lambda r: [r["a_bar"][0], *map(_ones, r["at"].s[:-1])])}, ("at", "a_bar", "N"))


def _after_nonlinearity(name: str, r: Reference) -> tuple[Array, ...]:
    """Return the gradients with respect to the outputs of the hidden nonlinearities, and to z."""
    W, g = r.problem.weights, r[name]
    return (*(h @ V[:, :-1] for h, V in zip(g[1:], W[1:], strict=True)), g[-1])


_add("layer", "g after the nonlinearity", "the gradients were those with respect to the layer's activations, after the "
     "nonlinearity", "g is the gradient with respect to the pre-activations s: the slope phi'(s) is part of it",
     "multiply by phi'(s), or hook the linear layer's output",
     {G: _moments(functools.partial(_after_nonlinearity, g)) for G, g in (
         ("G", "g_exact"), ("G_sampled", "g_sampled"), ("G_empirical", "g"))},
     ("g", "g_exact", "g_sampled", "N"))
def _without_slope(columns: str) -> Change:
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        g = [r[columns]]
        for W in r.problem.weights[:0:-1]:
            g.append(g[-1] @ W[:, :-1])
        return tuple(g[::-1])
    return change


_add("layer", "slope left out of the backward pass", "the backward pass does not multiply by phi'(s)",
     "the chain rule goes through the nonlinearity", "multiply by phi'(s) at every hidden layer",
     {g: _without_slope(dz) for g, dz in (("g", "dz"), ("g_exact", "dz_exact"), ("g_sampled", "dz_sampled"))},
     ("dz", "dz_exact", "dz_sampled"))
_add("layer", "layers in the order of the backward pass", "the matrices G were listed from the last layer to the first",
     "hooks of the backward pass fire in that order", "reverse the list", {},
     shows={name: lambda r, G: G[::-1] for name in ("G", "G_sampled", "G_empirical")})
_add("layer", "A of the layer before", "the matrix A of each layer was that of the layer before",
     "layer i has the factors A_{i-1,i-1} and G_{i,i} of the paper, whose activations are counted from 0",
     "use the input of the same layer", {"A": lambda r, right: (right()[0], *right()[:-1])})
_add("layer", "A and G exchanged", "A and G were exchanged", "A is of the inputs (its last row belongs to the bias), G "
     "of the outputs", "exchange them", {}, ("A", "G"), shows={"A": lambda r, A: r["G"], "G": lambda r, G: r["A"],
                                                   "G_sampled": lambda r, G: r["A"],
                                                   "G_empirical": lambda r, G: r["A"]})

# The bias, layout and order.

_NO_BIAS = "the bias is a weight whose input is 1; [W b] is one matrix with one block"


def _without_bias(right: Right) -> tuple[Array, ...]:
    return tuple(A[:-1, :-1] for A in right())


def _bias_apart(solve_bias: Callable[[Array, Array], Array]) -> Change:
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        found = []
        for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"], strict=True):
            factor = Cholesky.factor(G)
            W = -kronecker.solve(Cholesky.factor(A), factor, V[:, :-1])
            found.append(np.column_stack([W, solve_bias(G, V[:, -1])]))
        return tuple(found)
    return change


_BIAS_READS = ("A_damped", "G_damped", "gradient")
_add("bias", "bias left out of A", "A has no row for the bias, and the bias follows its plain gradient", _NO_BIAS,
     "append a 1 to the inputs",
     {"A": lambda r, right: _without_bias(right),
      "A_cross": lambda r, right: tuple(A[:-1, :-1] for A in right()),
      "step": _bias_apart(lambda G, b: -b)}, _BIAS_READS)
_add("bias", "bias preconditioned apart", "A has no row for the bias, and the bias was solved for with G alone",
     _NO_BIAS, "append a 1 to the inputs; the bias then shares the solve with A",
     {"A": lambda r, right: _without_bias(right),
      "A_cross": lambda r, right: tuple(A[:-1, :-1] for A in right()),
      "step": _bias_apart(lambda G, b: -Cholesky.factor(G).solve(b[:, None])[:, 0])}, _BIAS_READS)


def _last_to_first(V: Array) -> Array:
    return np.roll(V, 1, axis=-1)


_add("bias", "bias first", "the bias comes first, not last", "our matrices are [W b], with the 1 at the end of a_bar",
     "move the first column (and row) to the end",
     _map(("a_bar", "decay"), _last_to_first) | {"direction": lambda r, right: right() and tuple(
         map(_last_to_first, right())), "last_step": lambda r, right: right() and tuple(map(_last_to_first, right()))})
_add("bias", "bias not decayed", "the weight decay was not applied to the biases", "the paper's eta acts on all "
     "parameters alike", "add eta b to the gradient of the bias",
     _map(("decay",), lambda D: np.column_stack([D[:, :-1], np.zeros(len(D))])))


def _permuted(parts: Callable[[Any], list[Any]]) -> Callable[[Reference, Array], Array]:
    """Permute a dense matrix: `parts` says in which order the places of a layer's weights are read."""
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


def _turned(r: Reference, value: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(np.swapaxes(V, -1, -2) for V in value)


_add("order", "row-major vec", "the dense matrices are of row-major vec (the biases interleaved with the weights)",
     "vec stacks columns here, and kron(A, G) belongs to that; of row-major vec the block is kron(G, A)",
     "flatten the weights in column order (order='F'), or permute rows and columns", {}, ("A", "G"),
     shows=dict.fromkeys(_DENSE, _permuted(lambda p: [p])) | {"kfac_block": _swapped_block})
_add("order", "row-major vec with the biases apart", "the dense matrices are of row-major vec of each W, with its "
     "biases behind it", "vec stacks the columns of [W b] here", "flatten [W b] in column order", {},
     shows=dict.fromkeys(_DENSE, _permuted(lambda p: [p[:, :-1], p[:, -1]])))
_add("order", "Kronecker factors in the wrong order", "the block is kron(G, A), while vec stacks columns",
     "(A kron G) vec(V) = vec(G V A^T) for columns; kron(G, A) belongs to rows", "write kron(A, G)", {},
     ("A", "G"), shows={"kfac_block": _swapped_block})
_add("order", "transposed weights", "gradients, steps and weights are laid out (in, out)",
     "weights are (out, in + 1) here", "transpose them", {},
     shows=dict.fromkeys(("gradient", "fisher_product", "kfac_product", "step_sampled", "step_empirical",
                          "trajectory_weights", "ekfac_scales", *STEPS), _turned))
_add("order", "ascent in place of descent", "the step has the sign of the gradient", "Delta = -C^-1 grad h: the minus "
     "sign is part of the step", "put in the minus sign", {name: lambda r, right: times(-1.0, right())
                                                           for name in STEPS})
_add("order", "gradient with its sign turned", "the gradient of the loss has the other sign (y - p in place of p - y)",
     "h falls along minus its gradient", "turn the sign of what is sent back (the weight decay has its own)",
     {"dz": lambda r, right: -right()})
_add("order", "multiplied in place of solved", "the gradient was multiplied by the damped factors, not by their "
     "inverses", "the natural gradient is F^-1 grad", "solve with A and G",
     {"step": lambda r, right: tuple(-G @ V @ A for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"],
                                                                   strict=True))}, _BIAS_READS)
_add("order", "only G inverted", "the solve with A was left out", "(A kron G)^-1 = A^-1 kron G^-1 needs both",
     "multiply by A^-1 from the right", {"step": lambda r, right: tuple(
         -Cholesky.factor(G).solve(V) for G, V in zip(r["G_damped"], r["gradient"], strict=True))}, _BIAS_READS)
_add("order", "only A inverted", "the solve with G was left out (this is FOOF)", "(A kron G)^-1 = A^-1 kron G^-1 needs "
     "both", "multiply by G^-1 from the left", {"step": lambda r, right: tuple(
         -Cholesky.factor(A).solve_right(V) for A, V in zip(r["A_damped"], r["gradient"], strict=True))}, _BIAS_READS)
_add("order", "cross factors ignored", "the tridiagonal step is the block-diagonal one", "F-hat^-1 regresses each "
     "layer on the next through A_{i,i+1} and G_{i,i+1}", "use the cross factors",
     {"step_tridiagonal": lambda r, right: r["step"]}, ("step",))

# Weight decay, damping and pi.

_add("damping", "weight decay left out of the gradient", "the gradient is that of the loss alone",
     "h = loss + (eta/2) ||theta||^2, so its gradient has eta W", "add eta W", {"decay": lambda r, right: times(
         0.0, right())})
_add("damping", "weight decay twice in the gradient", "the gradient has 2 eta W",
     "the derivative of (eta/2) ||theta||^2 is eta W", "add eta W once",
     {"decay": lambda r, right: times(2.0, right())})
_add("damping", "weight decay left out of the objective", "h is the loss alone", "h = loss + (eta/2) ||theta||^2",
     "add (eta/2) ||theta||^2", {"objective": lambda r, right: r["loss"]}, ("loss",))
_add("damping", "weight decay added to the damping again", "eta was added to a damping that is lambda + eta already",
     "the number under the root is lambda + eta", "add eta once", {"damping": lambda r, right: right() + r["eta"]},
     ("eta",))
_add("damping", "weight decay left out of the damping", "the damping is lambda alone", "the number under the root is "
     "lambda + eta", "add eta", {"damping": lambda r, right: max(right() - r["eta"], 0.0)}, ("eta",))


def _damped(a: Callable[[float, float], float], g: Callable[[float, float], float]) -> dict[str, Change]:
    """Damp with ``a(pi, damping)`` and ``g(pi, damping)``."""
    def of(name: str, c: Callable[[float, float], float]) -> Change:
        return lambda r, right: tuple(damping.add_to_diagonal(S, c(float(pi), r["damping"]))
                                      for S, pi in zip(r[name], r["pi"], strict=True))
    return {"A_damped": of("A_solve", a), "G_damped": of("G_solve", g)}


_FACTORED = "A + pi sqrt(lambda + eta) I and G + sqrt(lambda + eta)/pi I: the product then holds (lambda + eta) I"
for _name, _what, _remedy, _a, _g in (
    ("damping not under the root", "the damping was shared as pi d and d/pi, without the square root",
     "take the square root of the damping", lambda pi, d: pi * d, lambda pi, d: d / pi),
    ("full damping on both factors", "each factor got the whole damping", "use the square root, shared by pi",
     lambda pi, d: d, lambda pi, d: d),
    ("full damping on A alone", "A got the whole damping and G none", "share the square root by pi",
     lambda pi, d: d, lambda pi, d: 0.0),
    ("full damping on G alone", "G got the whole damping and A none", "share the square root by pi",
     lambda pi, d: 0.0, lambda pi, d: d),
    ("root damping on A alone", "A got its share of the damping and G none", "damp G too, with sqrt(damping)/pi",
     lambda pi, d: pi * math.sqrt(d), lambda pi, d: 0.0),
    ("root damping on G alone", "G got its share of the damping and A none", "damp A too, with pi sqrt(damping)",
     lambda pi, d: 0.0, lambda pi, d: math.sqrt(d) / pi),
    ("damping added twice", "the damping was added to factors that had been damped in place already",
     "add it to a copy of the factors", lambda pi, d: 2 * pi * math.sqrt(d), lambda pi, d: 2 * math.sqrt(d) / pi),
    ("no damping", "the factors were not damped", "damp them", lambda pi, d: 0.0, lambda pi, d: 0.0),
):
    _add("damping", _name, _what, _FACTORED, _remedy, _damped(_a, _g), ("A_solve", "G_solve", "pi", "damping"))


def _pi(f: Callable[[Array, Array], float]) -> Change:
    return lambda r, right: np.array([f(A, G) for A, G in zip(r["A_solve"], r["G_solve"], strict=True)])


def _trace_ratio(A: Array, G: Array) -> float:
    return math.sqrt(np.trace(A) / np.trace(G)) if np.trace(G) > 0 else 1.0


_PI = "pi^2 is the ratio of the mean eigenvalues of A and G, and balances the two cross terms of the damped product"
for _name, _what, _remedy, _change in (
    ("pi squared", "pi^2 was used in place of pi", "take the square root of the ratio",
     lambda r, right: right()**2),
    ("pi inverted", "pi was taken of G over A", "A comes first: A + pi sqrt(d) I", lambda r, right: 1 / right()),
    ("pi left out", "pi is 1: both factors got the same sqrt(damping)", "use sqrt((tr A/n)/(tr G/m))",
     lambda r, right: np.ones_like(right())),
    ("pi of traces without the dimensions", "pi is sqrt(tr A / tr G), without the dimensions",
     "divide each trace by its dimension", _pi(_trace_ratio)),
    ("pi of Frobenius norms", "pi is made of Frobenius norms (as in the author's code), where the trace norm was asked "
     "for", "use the traces", _pi(damping.frobenius_pi)),
):
    _add("damping", _name, _what, _PI, _remedy, {"pi": _change}, ("A_solve", "G_solve"))
_add("damping", "pi in place of 1/pi in G", "both factors were damped with pi sqrt(damping)", _FACTORED,
     "divide by pi in G", {"G_damped": lambda r, right: tuple(
         damping.add_to_diagonal(G, float(pi) * math.sqrt(r["damping"]))
         for G, pi in zip(r["G_solve"], r["pi"], strict=True))}, ("G_solve", "pi", "damping"))
_add("damping", "exact Fisher in place of the factors", "the step is the natural gradient with the exact F",
     "K-FAC solves with A kron G; the two differ by the error of the approximation", "compare natural_gradient",
     {"step": lambda r, right: NODES["natural_gradient"].compute(r)}, NODES["natural_gradient"].needs)
_add("damping", "exact damping in place of factored", "the step solves with A kron G + damping I",
     "the paper damps the factors; both are sound, and their steps differ", "damp the factors, or compare with "
     "step_exact_damping", {"step": lambda r, right: NODES["step_exact_damping"].compute(r)},
     NODES["step_exact_damping"].needs)
_add("damping", "factored damping in place of exact", "the step solves with damped factors, where A kron G + damping I "
     "was asked for", "the product of damped factors has two terms more", "solve in the eigenbasis, or compare with "
     "step", {"step_exact_damping": lambda r, right: NODES["step"].compute(r)}, NODES["step"].needs)


def _average_of_damped(part: str) -> Change:
    def change(r: Reference, right: Right) -> tuple[Array, ...]:
        new = r["new"]
        pis = [damping.trace_pi(A, G) for A, G in zip(new["A"], new["G"], strict=True)]
        root = math.sqrt(r["damping"])
        added = [pi * root if part == "A" else root / pi for pi in pis]
        return tuple(S + (1 - r["epsilon"]) * c * np.eye(len(S)) for S, c in zip(right(), added, strict=True))
    return change


_add("average", "damping added before averaging", "the batch's factors were damped before they went into the running "
     "average", "the average is of the factors; damping changes with lambda and gamma, and belongs to the "
     "solve", "average first, damp after", {f"{part}_average": _average_of_damped(part) for part in ("A", "G")},
     ("new", "epsilon", "damping"))
_BIASED = "eps = min(1 - 1/k, 0.95): the first batch is taken whole, so there is nothing to correct"
_add("average", "average starts at the identity", "the running average starts at the identity with a constant decay",
     _BIASED, "take the first batch whole",
     {"epsilon": lambda r, right: r["ceiling"],
      "old": lambda r, right: right() or {name: tuple(np.eye(*X.shape) if not name.endswith("cross") else 0 * X
                                                     for X in r["new"][name]) for name in r["new"]}},
     ("ceiling", "new"))
_add("average", "average not corrected for its start", "the running average has a constant decay and starts at zero",
     _BIASED, "let the decay grow as 1 - 1/k, or divide by 1 - decay^k", {"epsilon": lambda r, right: r["ceiling"]},
     ("ceiling",))
_add("average", "decay on the new factors", "the decay multiplies the new factors and 1 - decay the old ones",
     "eps weighs the old", "exchange them", {"epsilon": lambda r, right: 1 - right()})
_add("average", "no running average", "the factors are those of this batch alone", "old batches count with weight eps",
     "keep the running average", {"epsilon": lambda r, right: 0.0})
_add("average", "debiased exponential average", "the average is sum d^j X_{k-j} / sum d^j, from the first batch on",
     "the paper averages the first batches evenly; the two agree only in the first and in the long run",
     "use eps = min(1 - 1/k, 0.95)",
     {"epsilon": lambda r, right: (lambda d, k: d * (1 - d**k) / (1 - d**(k + 1)))(r["ceiling"], r["k"])},
     ("ceiling", "k"))

# Re-scaling, momentum, rho, lambda, clipping.


def _resystem(change: Callable[[SmallModel, Reference], SmallModel]) -> Change:
    return lambda r, right: change(right(), r)


_add("rescaling", "M without damping", "the quadratic model has no (lambda + eta) I",
     "M(delta) = grad^T delta + 1/2 delta^T (F + (lambda + eta) I) delta", "add the damping to the exact F",
     {"model_damping": lambda r, right: 0.0})
_add("rescaling", "weight decay left out of the system", "the quadratic model has lambda I in place of (lambda + eta) "
     "I", "h has the weight decay, so its quadratic model has eta I", "add eta",
     {"model_damping": lambda r, right: max(right() - r["eta"], 0.0)}, ("eta",))
_add("rescaling", "F of the labels in M", "the quadratic model uses the empirical Fisher",
     "M uses the exact F: J^T F_R J", "use products with F_R", {"g_F": lambda r, right: tuple(g[None] for g in r["g"])},
     ("g",))
_add("rescaling", "M without its half", "the quadratic term lacks its 1/2", "M = grad^T delta + 1/2 delta^T C delta",
     "put in the 1/2", {"system": _resystem(lambda s, r: SmallModel(2 * s.Q, 2 * s.inner, s.slope, s.damping))})
_add("rescaling", "no re-scaling", "alpha is 1", "Delta of damped factors has the wrong length; the exact F mends it",
     "minimize M(alpha Delta + mu delta_0)",
     {"alpha": lambda r, right: 1.0, "M": lambda r, right: r["system"].value(
         [1.0, r["mu"]][:len(r["system"].slope)])}, ("system", "mu"))
_add("rescaling", "last step never kept", "the last step is zero, so there is no momentum", "delta_0 is the step of "
     "before, and mu its coefficient", "store delta after each step", {"last_step": lambda r, right: None})
_add("rescaling", "momentum kept without its own part", "the step that is kept is alpha Delta, without mu delta_0",
     "delta_0 is the whole last step", "store delta, not alpha Delta",
     {"kept_step": lambda r, right: tuple(params.scale(r["alpha"], r["Delta"]))}, ("alpha", "Delta"))
_add("rescaling", "rho without the weight decay", "rho compares the change of the loss alone with M",
     "M is the model of h, which has the weight decay", "use h in both",
     {"actual": lambda r, right: r["moved"]["loss"] - r["loss"]}, ("moved", "loss"))
_add("rescaling", "rho upside down", "rho is predicted over actual", "rho = actual / predicted", "invert it",
     {"rho": lambda r, right: 1 / right()})
_add("rescaling", "lambda moves the wrong way", "lambda rises where rho > 3/4 and falls where rho < 1/4",
     "a model that predicts well is trusted more: less damping", "exchange the two",
     {"lambda_after": lambda r, right: (lambda b, a: b * b / a)(r["lambda_before"], right())}, ("lambda_before",))
_add("rescaling", "lambda not adapted", "lambda stays", "rho above 3/4 or below 1/4 changes lambda", "adapt it every "
     "T1 steps", {"lambda_after": lambda r, right: r["lambda_before"]}, ("lambda_before",))


def _clip(form: Callable[[float, float, float], float], other: str = "gradient") -> Change:
    def change(r: Reference, right: Right) -> float:
        clip = r.problem.kl_clip
        assert clip is not None
        return min(1.0, form(clip.kappa, clip.learning_rate, abs(params.inner(r["step"], r[other]))))
    return change


_CLIP = "lr^2 v^T F v is twice the KL divergence of the step, and v^T F v = v^T grad for v = F^-1 grad; nu scales v"
for _name, _what, _remedy, _form in (
    ("KL clip without the root", "nu is kappa / (lr^2 v^T grad), without the square root", "take the square root",
     lambda kappa, lr, s: kappa / (lr**2 * s)),
    ("KL clip with lr in place of its square", "the learning rate is not squared", "square it",
     lambda kappa, lr, s: math.sqrt(kappa / (lr * s))),
    ("KL clip without the learning rate", "the learning rate is left out", "multiply by lr^2",
     lambda kappa, lr, s: math.sqrt(kappa / s)),
):
    _add("rescaling", _name, _what, _CLIP, _remedy, {"kl_clip": _clip(_form)}, ("step", "gradient"))
_add("rescaling", "KL clip with the norm of the step", "v^T v is used in place of v^T grad", _CLIP, "use v^T grad",
     {"kl_clip": _clip(lambda kappa, lr, s: math.sqrt(kappa / (lr**2 * s)), "step")}, ("step",))

# EKFAC.

_add("ekfac", "EKFAC scales as products of eigenvalues", "the scales are the products of the eigenvalues: K-FAC's own",
     "EKFAC measures the second moments in the eigenbasis", "project the per-example gradients and square them",
     {"ekfac_scales": lambda r, right: tuple(
         np.outer(np.linalg.eigvalsh(G), np.linalg.eigvalsh(A)) for A, G in zip(r["A"], r["G"], strict=True))},
     ("A", "G"))


def of(*names: str) -> tuple[Mistake, ...]:
    """Return entries of the catalogue by name, in the catalogue's order, in which they are applied.

    Parameters
    ----------
    *names : str
        Names.

    Raises
    ------
    KeyError
        For an unknown one.
    """
    for name in names:
        if name not in CATALOGUE:
            raise KeyError(name)
    return tuple(m for name, m in CATALOGUE.items() if name in names)


def flags(problem: Problem) -> list[str]:
    """Return the names of the mistakes that change a quantity of a problem by more than `VISIBLE`, relatively.

    Parameters
    ----------
    problem : Problem
        Which.
    """
    right = Reference(problem)
    names = right.names()
    return [name for name, mistake in CATALOGUE.items()
            if any(differ(_value(right, q), _value(right.having(mistake), q)) for q in names)]


def _value(r: Reference, name: str) -> Any:
    try:
        return r.shown(name)
    except (ValueError, np.linalg.LinAlgError, ArithmeticError, IndexError):
        return None


def differ(right: Any, wrong: Any, tolerance: float = VISIBLE) -> bool:
    """Return whether two values of a quantity differ, in shape or by more than the tolerance relatively.

    Parameters
    ----------
    right, wrong : number, array, tuple of arrays or None
        None cannot be computed: there is no difference to see.
    tolerance : float
        Of the largest entry of an array.
    """
    if right is None or wrong is None:
        return False
    return not error(right, wrong) <= tolerance


def error(right: Any, theirs: Any) -> float:
    """Return the largest relative error over the arrays of a quantity; infinite where the shapes differ.

    Parameters
    ----------
    right, theirs : number, array or tuple of arrays
        NaN in the same places counts as equal.
    """
    if isinstance(right, tuple) != isinstance(theirs, tuple):
        return math.inf
    if isinstance(right, tuple):
        if len(right) != len(theirs):
            return math.inf
        return max((error(a, b) for a, b in zip(right, theirs, strict=True)), default=0.0)
    a, b = np.asarray(right, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        return math.inf
    nan = np.isnan(a)
    if nan.any() or np.isnan(b).any():
        if not np.array_equal(nan, np.isnan(b)):
            return math.inf
        a, b = np.where(nan, 0, a), np.where(nan, 0, b)
    with np.errstate(over="ignore", invalid="ignore"):
        off = float(np.max(np.abs(a - b), initial=0))
        size = float(np.max(np.abs(a), initial=0))
    return off / size if size > 0 else (math.inf if off > 0 else 0.0)
