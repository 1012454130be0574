"""Scales of A, G, Fisher, loss and gradient; "mean" is that over the N examples."""

from __future__ import annotations

import math

from .entry import FACTORS_A, FACTORS_G, FISHERS, C_of, M_of, N_of, add, scaled

_PER_EXAMPLE = "G is made of gradients of one example's loss, so the 1/N of a mean loss must be taken out of them first"
for _name, _what, _why, _remedy, _factor in (
    ("G summed over the examples", "G was summed over the N examples, not averaged: it is N times too large",
     "A and G are both means over examples; only then does A kron G have the scale of the Fisher, a mean too",
     "divide G by N once", lambda r: N_of(r)),
    ("G of mean-loss gradients, summed", "the gradients of the MEAN loss were squared and summed: G is N times too "
     "small", _PER_EXAMPLE, "multiply the gradients by N and average, or multiply this G by N", lambda r: 1 / N_of(r)),
    ("G of mean-loss gradients, averaged", "the gradients of the MEAN loss were squared and averaged: G is N^2 times "
     "too small", _PER_EXAMPLE, "multiply the gradients by N before they are squared", lambda r: N_of(r)**-2),
    ("G of mean-loss gradients, averaged twice", "the gradients of the MEAN loss were squared, averaged, and divided "
     "by N once more: G is N^3 times too small", _PER_EXAMPLE,
     "multiply the gradients by N before they are squared, and divide by N once", lambda r: N_of(r)**-3),
    ("G of gradients times N", "the gradients were multiplied by N although the loss was a sum: G is N^2 times too "
     "large", "a summed loss gives the gradients of single examples as they are", "leave the factor N out, or use the "
     "mean loss", lambda r: N_of(r)**2),
    ("G of gradients times N, summed", "the gradients were multiplied by N although the loss was a sum, and G was "
     "summed: it is N^3 times too large", "a summed loss gives the gradients of single examples as they are, and G is "
     "a mean", "leave the factor N out and divide by N", lambda r: N_of(r)**3),
    ("G times root N", "G is sqrt(N) times too large: only one of its two gradients was rescaled by sqrt(N)",
     "G is quadratic in the gradients, so a factor of theirs occurs squared in it", "rescale gradients by N, not G by "
     "sqrt(N)", lambda r: N_of(r)**0.5),
    ("G over root N", "G was divided by sqrt(N) once too often", "G is quadratic in the gradients, so a factor of "
     "theirs occurs squared in it", "divide G by N, or the gradients by sqrt(N)", lambda r: N_of(r)**-0.5),
    ("G averaged over the outputs", "G was divided by the number C of outputs", "the Fisher of an example is a sum "
     "over outputs: the C columns of the root are added up", "sum over the columns", lambda r: 1 / C_of(r)),
    ("G times the outputs", "G was multiplied by the number C of outputs", "the Fisher of an example is a sum over "
     "outputs, each counted once", "leave the factor C out", lambda r: C_of(r)),
    ("G of a loss averaged over outputs", "the gradients were those of a loss averaged over the C outputs: G is C^2 "
     "times too small", "-log p of an example is a sum over its outputs; their mean is another model",
     "multiply the gradients by C (or use reduction 'sum' over outputs)", lambda r: C_of(r)**-2),
    ("G twice too large", "G is twice too large: the curvature of ||z - y||^2, without the 1/2",
     "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2", "halve the loss, or halve G", lambda r: 2.0),
    ("G half too small", "G is half of what it must be: a 1/2 was applied to the curvature too",
     "the 1/2 belongs to the loss and is gone after two derivatives", "leave the factor 1/2 out", lambda r: 0.5),
    ("G four times too large", "the gradients are those of ||z - y||^2, without the 1/2, and G has their factor "
     "squared", "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2", "halve the gradients", lambda r: 4.0),
):
    add("scale", _name, _what, _why, _remedy, scaled(FACTORS_G, _factor))

_SAMPLED = ("G_sampled", "G_cross_sampled")
for _name, _what, _why, _remedy, _factor in (
    ("G summed over the samples", "G was summed over the M sampled targets, not averaged: it is M times too large",
     "each sampled target is one look at the same expectation", "divide by M", lambda r: M_of(r)),
    ("G divided by the samples twice", "the loss was divided by M and the sum of squares too: G is M times too small",
     "the outer product squares the 1/M of the loss", "divide either the sum of outer products by M or the loss by "
     "sqrt(M)", lambda r: 1 / M_of(r)),
    ("G over root M", "G was divided by sqrt(M) in place of M: it is sqrt(M) times too large", "M outer products are "
     "averaged, not M gradients", "divide the sum of outer products by M", lambda r: M_of(r)**0.5),
):
    add("scale", _name, _what, _why, _remedy, scaled(_SAMPLED, _factor))

for _name, _what, _remedy, _factor in (
    ("A summed over the examples", "A was summed over the N examples, not averaged: it is N times too large",
     "divide A by N", lambda r: N_of(r)),
    ("A divided by N twice", "A was divided by N twice: it is N times too small", "divide A by N once",
     lambda r: 1 / N_of(r)),
    ("A divided by N three times", "A was divided by N three times: it is N^2 times too small", "divide A by N once",
     lambda r: N_of(r)**-2),
    ("A times root N", "A was divided by sqrt(N) in place of N: it is sqrt(N) times too large", "divide A by N",
     lambda r: N_of(r)**0.5),
    ("A over root N", "A was divided by sqrt(N) once too often", "divide A by N once", lambda r: N_of(r)**-0.5),
    ("A twice too large", "A is twice too large", "A has no constant of the loss in it: divide by 2", lambda r: 2.0),
    ("A half too small", "A is half of what it must be", "A has no constant of the loss in it: multiply by 2",
     lambda r: 0.5),
):
    add("scale", _name, _what, "A is the mean of a_bar a_bar^T over the examples", _remedy,
        scaled(FACTORS_A, _factor))

_MOMENT = "this is a second moment, not an estimate of a covariance with its mean taken out"
add("scale", "A divided by N - 1", "A was divided by N - 1 in place of N", _MOMENT, "divide by N",
    scaled(FACTORS_A, lambda r: N_of(r) / max(N_of(r) - 1, 1.0)))
add("scale", "G divided by N - 1", "G was divided by N - 1 in place of N", _MOMENT, "divide by N",
    scaled(FACTORS_G, lambda r: N_of(r) / max(N_of(r) - 1, 1.0)))
_UNEVEN = "the product is right, but pi and the damping of each factor see the split"
add("scale", "scale split by root C between A and G", "A is sqrt(C) times too large and G sqrt(C) times too small",
    _UNEVEN, "keep both factors means over the examples",
    scaled(FACTORS_A, lambda r: C_of(r)**0.5) | scaled(FACTORS_G, lambda r: C_of(r)**-0.5))
add("scale", "scale split by root N between A and G", "A is sqrt(N) times too large and G sqrt(N) times too small",
    _UNEVEN, "keep both factors means over the examples",
    scaled(FACTORS_A, lambda r: N_of(r)**0.5) | scaled(FACTORS_G, lambda r: N_of(r)**-0.5))
add("scale", "all of 1/N in G", "A was summed over the examples and G divided by N twice", _UNEVEN,
    "keep both factors means over the examples",
    scaled(FACTORS_A, lambda r: N_of(r)) | scaled(FACTORS_G, lambda r: 1 / N_of(r)))
add("scale", "Fisher summed over the examples", "the dense Fisher was summed over the N examples, not averaged",
    "the objective is a mean over examples, and its curvature with it", "divide by N",
    scaled(FISHERS, lambda r: N_of(r)))
add("scale", "Fisher of mean-loss gradients", "the dense Fisher was made of gradients of the MEAN loss: it is N^2 "
    "times too small", "the Fisher is the mean of squares, not the square of a mean's parts",
    "multiply the gradients by N", scaled(FISHERS, lambda r: N_of(r)**-2))
add("scale", "gradient summed over the examples", "the loss was summed over the examples, so its gradient is N times "
    "that of the mean (weight decay apart)", "curvature and weight decay are those of the mean loss",
    "divide by N", {"gradient": lambda r, right: tuple(N_of(r) * (D - d) + d for D, d in zip(right(), r["decay"],
                                                                                          strict=True))}, ("decay",))
add("scale", "loss averaged over the outputs", "the loss was averaged over the C outputs as well",
    "-log p of an example is a sum over its outputs", "sum over the outputs, average over the examples",
    {"loss": lambda r, right: right() / C_of(r), "dz": lambda r, right: right() / C_of(r),
     "dz_sampled": lambda r, right: right() / C_of(r), "dz_exact": lambda r, right: right() / math.sqrt(C_of(r))})
add("scale", "squared loss without its half", "the loss is ||z - y||^2, without the 1/2: its gradient is twice too "
    "large, its curvature too, and squares of gradients four times",
    "-log p of a Gaussian of unit variance is 1/2 ||z - y||^2", "halve the loss",
    {"loss": lambda r, right: 2 * right(), "dz": lambda r, right: 2 * right(),
     "dz_sampled": lambda r, right: 2 * right(), "dz_exact": lambda r, right: math.sqrt(2) * right()})
