"""Scales of A, G, Fisher, loss and gradient; "mean" is over the N examples."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..graph import Reference
from .entry import FACTORS_A, FACTORS_G, FISHERS, C_of, Change, M_of, N_of, add, scaled

_MEAN = "A and G are means over the examples, so that A ⊗ G has the scale of the Fisher, a mean too"
_PER_EXAMPLE = "G is made of gradients of one example's loss: the 1/N of a mean loss must be removed from them first"
_SUMMED = "a summed loss already gives the gradients of single examples"
_QUADRATIC = "G is quadratic in the gradients, so their factor is squared in it"
_OUTPUTS = "-log p of an example is a sum over its outputs"
_GAUSSIAN = "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2"
for _name, _what, _why, _remedy, _factor in (
    ("G summed over the examples", "G was summed over the N examples, not averaged: it is N times too large", _MEAN,
     "divide G by N once", N_of),
    ("G of mean-loss gradients, summed", "gradients of the MEAN loss were squared and summed: G is N times too small",
     _PER_EXAMPLE, "multiply the gradients by N and average, or multiply this G by N", lambda r: 1 / N_of(r)),
    ("G of mean-loss gradients, averaged", "gradients of the MEAN loss were squared and averaged: G is N^2 times too "
     "small", _PER_EXAMPLE, "multiply the gradients by N before squaring them", lambda r: N_of(r)**-2),
    ("G of mean-loss gradients, averaged twice", "gradients of the MEAN loss were squared, averaged, and divided by N "
     "again: G is N^3 times too small", _PER_EXAMPLE, "multiply the gradients by N before squaring them, and divide by "
     "N once", lambda r: N_of(r)**-3),
    ("G of gradients times N", "gradients of a summed loss were multiplied by N: G is N^2 times too large", _SUMMED,
     "omit the factor N, or use the mean loss", lambda r: N_of(r)**2),
    ("G of gradients times N, summed", "gradients of a summed loss were multiplied by N, and G was summed: it is N^3 "
     "times too large", _SUMMED + ", and G is a mean", "omit the factor N and divide by N", lambda r: N_of(r)**3),
    ("G times root N", "G is sqrt(N) times too large: only one of its two gradients was rescaled by sqrt(N)",
     _QUADRATIC, "rescale the gradients by N, not G by sqrt(N)", lambda r: N_of(r)**0.5),
    ("G over root N", "G was divided by sqrt(N) once too often", _QUADRATIC,
     "divide G by N, or the gradients by sqrt(N)", lambda r: N_of(r)**-0.5),
    ("G averaged over the outputs", "G was divided by the number C of outputs", "the Fisher of an example is a sum "
     "over outputs: the C columns of the root are added", "sum over the columns", lambda r: 1 / C_of(r)),
    ("G times the outputs", "G was multiplied by the number C of outputs", "the Fisher of an example is a sum over "
     "outputs, each counted once", "omit the factor C", C_of),
    ("G of a loss averaged over outputs", "the loss was averaged over the C outputs: G is C^2 times too small",
     _OUTPUTS + "; their mean is another model", "multiply the gradients by C (or use reduction 'sum' over outputs)",
     lambda r: C_of(r)**-2),
    ("G twice too large", "G is twice too large: the curvature of ||z - y||^2, without the 1/2", _GAUSSIAN,
     "halve the loss, or halve G", lambda r: 2.0),
    ("G half too small", "G is half of what it should be: the 1/2 was applied to the curvature too",
     "the 1/2 belongs to the loss and cancels after two derivatives", "omit the factor 1/2", lambda r: 0.5),
    ("G four times too large", "the gradients are those of ||z - y||^2, without the 1/2, and G has their factor "
     "squared", _GAUSSIAN, "halve the gradients", lambda r: 4.0),
):
    add("scale", _name, _what, _why, _remedy, scaled(FACTORS_G, _factor))

for _name, _what, _why, _remedy, _factor in (
    ("G summed over the samples", "G was summed over the M sampled targets, not averaged: it is M times too large",
     "each sampled target estimates the same expectation", "divide by M", M_of),
    ("G divided by the samples twice", "both the loss and the sum of squares were divided by M: G is M times too small",
     "the outer product squares the 1/M of the loss", "divide either the sum of outer products by M or the loss by "
     "sqrt(M)", lambda r: 1 / M_of(r)),
    ("G over root M", "G was divided by sqrt(M) instead of M: it is sqrt(M) times too large", "M outer products are "
     "averaged, not M gradients", "divide the sum of outer products by M", lambda r: M_of(r)**0.5),
):
    add("scale", _name, _what, _why, _remedy, scaled(("G_sampled", "G_cross_sampled"), _factor))

_CONSTANT = "A contains no constant of the loss: "
for _name, _what, _remedy, _factor in (
    ("A summed over the examples", "A was summed over the N examples, not averaged: it is N times too large",
     "divide A by N", N_of),
    ("A divided by N twice", "A was divided by N twice: it is N times too small", "divide A by N once",
     lambda r: 1 / N_of(r)),
    ("A divided by N three times", "A was divided by N three times: it is N^2 times too small", "divide A by N once",
     lambda r: N_of(r)**-2),
    ("A times root N", "A was divided by sqrt(N) instead of N: it is sqrt(N) times too large", "divide A by N",
     lambda r: N_of(r)**0.5),
    ("A over root N", "A was divided by sqrt(N) once too often", "divide A by N once", lambda r: N_of(r)**-0.5),
    ("A twice too large", "A is twice too large", _CONSTANT + "divide by 2", lambda r: 2.0),
    ("A half too small", "A is half of what it should be", _CONSTANT + "multiply by 2", lambda r: 0.5),
):
    add("scale", _name, _what, "A is the mean of a_bar a_bar^T over the examples", _remedy, scaled(FACTORS_A, _factor))

_UNCENTRED = "this is a second moment, not a covariance estimated around its mean"

def _bessel(r: Reference) -> float:
    return N_of(r) / max(N_of(r) - 1, 1.0)

for _name, _nodes in (("A", FACTORS_A), ("G", FACTORS_G)):
    add("scale", f"{_name} divided by N - 1", f"{_name} was divided by N - 1 instead of N", _UNCENTRED, "divide by N",
        scaled(_nodes, _bessel))
for _name, _what, _of_A, _of_G in (
    ("scale split by root C between A and G", "A is sqrt(C) times too large and G sqrt(C) times too small",
     lambda r: C_of(r)**0.5, lambda r: C_of(r)**-0.5),
    ("scale split by root N between A and G", "A is sqrt(N) times too large and G sqrt(N) times too small",
     lambda r: N_of(r)**0.5, lambda r: N_of(r)**-0.5),
    ("all of 1/N in G", "A was summed over the examples and G divided by N twice", N_of, lambda r: 1 / N_of(r)),
):
    add("scale", _name, _what, "the product is right, but pi and the damping of each factor depend on the split",
        "let both factors be means over the examples", scaled(FACTORS_A, _of_A) | scaled(FACTORS_G, _of_G))
_SQUARES = "it is a mean of squares; each gradient of the mean loss contains a 1/N"
for _group, _name, _thing, _scaled in (
    ("scale", "Fisher", "the dense Fisher was", (*FISHERS, "fisher_product")),
    ("ekfac", "EKFAC scales", "the EKFAC scales were", ("ekfac_scales",)),
):
    for _form, _words, _reason, _cure, _times in (
        ("summed over the examples", "summed over the N examples, not averaged: N times too large", "the objective is "
         "a mean over examples, so its curvature is too", "divide by N", N_of),
        ("of mean-loss gradients", "made of gradients of the MEAN loss: N^2 times too small", _SQUARES,
         "multiply the gradients by N", lambda r: N_of(r)**-2),
        ("of mean-loss gradients, summed", "summed over squares of gradients of the MEAN loss: N times too small",
         _SQUARES, "multiply the gradients by N and average", lambda r: 1 / N_of(r)),
        ("divided by N - 1", "divided by N - 1 instead of N", _UNCENTRED, "divide by N", _bessel),
    ):
        add(_group, f"{_name} {_form}", f"{_thing} {_words}", _reason, _cure, scaled(_scaled, _times))

def _gradient_times(factor: Callable[[Reference], float]) -> dict[str, Change]:
    """Multiply the gradient of the loss, without the weight decay."""
    return {"gradient": lambda r, right: tuple(
        factor(r) * (D - d) + d for D, d in zip(right(), r["decay"], strict=True))}

add("scale", "gradient summed over the examples", "the loss was summed over the examples, so its gradient (without the "
    "weight decay) is N times too large", "curvature and weight decay are those of the mean loss", "divide by N",
    _gradient_times(N_of), ("decay",))
add("scale", "gradient divided by N twice", "the gradient of the mean loss was divided by N again (the weight decay "
    "was not)", "the mean loss already contains 1/N", "divide by N once", _gradient_times(lambda r: 1 / N_of(r)),
    ("decay",))
add("scale", "loss averaged over the outputs", "the loss was averaged over the C outputs too", _OUTPUTS,
    "sum over the outputs, average over the examples",
    dict.fromkeys(("loss", "dz", "dz_sampled"), lambda r, right: right() / C_of(r))
    | {"dz_exact": lambda r, right: right() / math.sqrt(C_of(r))})
add("scale", "squared loss without its half", "the loss is ||z - y||^2, without the 1/2: gradient and curvature are "
    "twice too large, squares of gradients four times", _GAUSSIAN, "halve the loss",
    scaled(("loss", "dz", "dz_sampled"), lambda r: 2) | scaled(("dz_exact",), lambda r: math.sqrt(2)))
