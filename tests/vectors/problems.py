"""The list of problems: small ones, each of a case that an implementation may get wrong.

Widths, the number of examples and the number of draws are different primes (or 1), so that no axis passes for another
and no divisor for another. Every number is drawn with `random.Random`, rounded to a few decimals and then stored: the
files define the problems, and this module only says where they come from. Uniform numbers and sums of them are used
alone, since those are the same on every machine.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from mpmath import mp

from .definitions import forward, probabilities

CONVENTIONS = {
    "examples": "rows", "bias": "last column", "vec": "columns", "reduction": "mean", "squared_loss": 0.5,
    "expectation": "named", "damping": "factored",
    "words": "Examples are rows; the bias is the last column of a weight matrix and belongs to a trailing one in the "
             "layer's input; vec stacks columns, so that a layer's block is kron(A, G). The loss of an example is the "
             "sum over its outputs of -log p (for the Gaussian half the squared error), losses, gradients, factors and "
             "Fishers are means over the examples, g belongs to one example and is never divided by their number. A, "
             "G and Fisher alone are expectations over the model's own predictions; sampled and empirical ones say "
             "so. The damping is the number under the root, lambda + eta; A gets pi sqrt(damping), G gets "
             "sqrt(damping) / pi.",
}


# Draws


def draws(rng: random.Random, shape: tuple[int, ...], scale: float = 1.0, digits: int = 3) -> Any:
    """Return nested lists of uniform numbers in (-scale, scale)."""
    if not shape:
        return round(scale * (2 * rng.random() - 1), digits)
    return [draws(rng, shape[1:], scale, digits) for _ in range(shape[0])]


def below(rng: random.Random, n: int) -> int:
    return int(n * rng.random())


def nearly_normal(rng: random.Random) -> float:
    return sum(rng.random() for _ in range(12)) - 6


def shapes(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(out, into + 1) for into, out in itertools.pairwise(sizes)]


def shaped_like_the_weights(rng: random.Random, sizes: tuple[int, ...], scale: float) -> tuple:
    return tuple(draws(rng, shape, scale) for shape in shapes(sizes))


def positive_definite(rng: random.Random, n: int) -> list[list[float]]:
    B = draws(rng, (n, n), 1.5, 2)
    return [[round(sum(p * q for p, q in zip(r, s, strict=True)) + 0.1 * (i == j), 4) for j, s in enumerate(B)]
            for i, r in enumerate(B)]


def predictions(weights: tuple, hidden: list[str], x: list) -> tuple[list, list]:
    """Return z of every example, and the pre-activations of every layer with relu."""
    with mp.workdps(30):
        passes = [forward(weights, hidden, row)[1] for row in x]
    kinks = [s for pre in passes for name, layer in zip(hidden, pre, strict=False) if name == "relu" for s in layer]
    return [pre[-1] for pre in passes], kinks


def sampled(rng: random.Random, likelihood: str, z: list) -> Any:
    """Return a target drawn from the model's own prediction."""
    with mp.workdps(30):
        if likelihood == "gaussian":
            return [round(float(t) + nearly_normal(rng), 3) for t in z]
        p = [float(q) for q in probabilities(likelihood, z)]
    if likelihood == "bernoulli":
        return [int(rng.random() < q) for q in p]
    u, c = rng.random(), 0
    while c < len(p) - 1 and u >= p[c]:
        u, c = u - p[c], c + 1
    return c


def unlikely(likelihood: str, z: list) -> Any:
    """Return a label that the model does not expect."""
    if likelihood == "gaussian":
        return [round(float(t) + 10, 2) for t in z]
    if likelihood == "bernoulli":
        return [int(t < 0) for t in z]
    return min(range(len(z)), key=lambda c: z[c])


def arbitrary(rng: random.Random, likelihood: str, C: int) -> Any:
    """Return a label that has nothing to do with the prediction."""
    if likelihood == "categorical":
        return below(rng, C)
    if likelihood == "gaussian":
        return draws(rng, (C,), 2.0)
    return [below(rng, 2) for _ in range(C)]


def single(value: Any) -> Any:
    """Return the float32 nearest to every float."""
    if isinstance(value, (list, tuple)):
        return type(value)(single(entry) for entry in value)
    if isinstance(value, dict):
        return {key: single(entry) for key, entry in value.items()}
    return struct.unpack("f", struct.pack("f", value))[0] if isinstance(value, float) else value


# One problem


def build(name: str, description: str, likelihood: str, sizes: tuple[int, ...], hidden: tuple[str, ...] = (), *,
          N: int = 7, M: int | None = 11, seed: int = 0, eta: float = 0.0, damping: float = 0.3, scale: float = 1.2,
          labels: str = "arbitrary", dtype: str = "float64", x: Callable | None = None,
          biases: dict[int, list[float]] | None = None, direction: bool = False, delta_0: str | None = None,
          previous: int | None = None, kl_clip: tuple[float, float] | None = None) -> dict:
    """Return a problem; `biases` replaces the biases of some layers, `x` draws the inputs in another way."""
    rng = random.Random(f"{name} {seed}")
    weights = shaped_like_the_weights(rng, sizes, scale)
    for i, values in (biases or {}).items():
        for row, value in zip(weights[i], values, strict=True):
            row[-1] = value
    inputs = x(rng, N, sizes[0]) if x else draws(rng, (N, sizes[0]), 2.0)
    keep = single if dtype == "float32" else (lambda value: value)
    weights, inputs = keep(weights), keep(inputs)
    z, kinks = predictions(weights, list(hidden), inputs)
    assert all(abs(s) > 1e-3 for s in kinks), f"{name}: a unit stands at the kink of relu"
    choose = {"unlikely": lambda row: unlikely(likelihood, row), "drawn": lambda row: sampled(rng, likelihood, row),
              "arbitrary": lambda row: arbitrary(rng, likelihood, len(row)),
              "fractions": lambda row: [round(rng.random(), 3) for _ in row]}[labels]
    y = [choose(row) for row in z]
    problem: dict[str, Any] = {
        "name": name, "description": description, "network": {"sizes": list(sizes), "hidden": list(hidden)},
        "likelihood": likelihood, "dtype": dtype, "weight_decay": eta, "damping": damping,
        "weights": weights, "x": inputs, "y": y,
    }
    if M:
        problem["targets"] = [[sampled(rng, likelihood, row) for row in z] for _ in range(M)]
    if direction:
        problem["direction"] = shaped_like_the_weights(rng, sizes, 1.0)
    if delta_0:
        problem["delta_0"] = shaped_like_the_weights(rng, sizes, 0.0 if delta_0 == "zero" else 0.5)
    if previous:
        problem["previous"] = {"k": previous, "A": tuple(positive_definite(rng, n + 1) for n in sizes[:-1]),
                               "G": tuple(positive_definite(rng, n) for n in sizes[1:])}
    if kl_clip:
        problem["kl_clip"] = dict(zip(("kappa", "learning_rate"), kl_clip, strict=True))
    return keep(problem)


def parameters(problem: dict) -> int:
    return sum(rows * columns for rows, columns in shapes(problem["network"]["sizes"]))


# Inputs of other kinds


def all_alike(rng: random.Random, N: int, width: int) -> list:
    return [draws(rng, (width,), 2.0)] * N


def of_unequal_scales(rng: random.Random, N: int, width: int) -> list:
    scales = (300.0, 1.0, 0.01)
    return [[draws(rng, (), scales[j % 3], 5) for j in range(width)] for _ in range(N)]


def far_from_zero(rng: random.Random, N: int, width: int) -> list:
    return [[round(3 + value, 3) for value in row] for row in draws(rng, (N, width), 1.0)]


# Trajectories


def train(name: str, description: str, likelihood: str, sizes: tuple[int, ...], hidden: tuple[str, ...], *, seed: int,
          structure: str, momentum: bool, lambda_0: float, eta: float, periods: tuple[int, int, int],
          examples: tuple[int, int, int, int], omegas: tuple[float, float] = (0.7, 0.6), ceiling: float = 0.95,
          steps: int = 10, scale: float = 1.2, limits: tuple[float, float, float] = (0.01, 10.0, 0.0)) -> dict:
    """Return a problem with a trajectory; the targets are drawn from the predictions at the first weights."""
    N, n, n1, n2 = examples
    problem = build(name, description, likelihood, sizes, hidden, N=N, M=None, seed=seed, eta=eta, scale=scale)
    rng = random.Random(f"{name} batches {seed}")
    z, _ = predictions(problem["weights"], list(hidden), problem["x"])

    def some(count: int, among: int) -> list[int]:
        return sorted(sorted(range(among), key=lambda _: rng.random())[:count])

    batches = []
    for _ in range(steps):
        rows, rows1, rows2 = some(n, N), some(n1, n), some(n2, n)
        batches.append({"rows": rows, "rows1": rows1, "rows2": rows2,
                        "targets": [sampled(rng, likelihood, z[rows[r]]) for r in rows1]})
    T1, T2, T3 = periods
    problem["trajectory"] = {
        "lambda_0": lambda_0, "T1": T1, "T2": T2, "T3": T3, "omega1": omegas[0], "omega2": omegas[1],
        "ceiling": ceiling, "gamma_min": limits[0], "gamma_max": limits[1], "lambda_floor": limits[2],
        "structure": structure, "momentum": momentum, "batches": batches}
    return problem


# The list: name, sentence, likelihood, sizes, hidden layers; then what is special

BUILT: list[tuple[tuple, dict[str, Any]]] = [
    # One layer
    (("linear-regression", "Linear regression: one layer, Gaussian.", "gaussian", (5, 3)),
     {"direction": True, "delta_0": "given"}),
    (("softmax-regression", "Softmax regression: one layer, categorical, with weight decay.", "categorical", (3, 5)),
     {"eta": 0.01, "direction": True, "previous": 3}),
    (("logistic-regression", "Logistic regression: one layer, Bernoulli, with two outputs.", "bernoulli", (5, 2)),
     {"direction": True, "kl_clip": (1e-3, 0.1)}),
    # Two layers, every likelihood with every activation
    (("gaussian-tanh", "Two layers with tanh, Gaussian; K-FAC is exact in the last one and not in the first.",
      "gaussian", (3, 2, 5), ("tanh",)), {"eta": 0.02, "direction": True, "delta_0": "given", "previous": 3}),
    (("categorical-tanh", "Two layers with tanh, categorical; everything that can be given is given.", "categorical",
      (3, 2, 5), ("tanh",)),
     {"eta": 0.05, "direction": True, "delta_0": "given", "previous": 4, "kl_clip": (1e-3, 0.3)}),
    (("bernoulli-tanh", "Two layers with tanh, Bernoulli, no weight decay.", "bernoulli", (5, 2, 3), ("tanh",)),
     {"direction": True, "delta_0": "given"}),
    (("gaussian-logistic", "Two layers with logistic units, Gaussian; the hidden layer is wider than the input.",
      "gaussian", (2, 3, 5), ("logistic",)), {"previous": 30, "kl_clip": (1.0, 0.1)}),
    (("categorical-logistic", "Two layers with logistic units, categorical, strongly damped.", "categorical",
      (5, 2, 3), ("logistic",)), {"eta": 0.03, "damping": 20.0, "direction": True}),
    (("bernoulli-logistic", "Two layers with logistic units, Bernoulli with fractions for labels.", "bernoulli",
      (3, 2, 5), ("logistic",)), {"eta": 0.02, "labels": "fractions", "previous": 1, "direction": True}),
    (("gaussian-relu", "Two layers with relu, Gaussian.", "gaussian", (5, 2, 3), ("relu",)),
     {"direction": True, "kl_clip": (1e-3, 0.1)}),
    (("categorical-relu", "Two layers with relu, categorical.", "categorical", (2, 3, 5), ("relu",)),
     {"eta": 0.01, "delta_0": "given"}),
    (("bernoulli-relu", "Two layers with relu, Bernoulli, with a zero last step.", "bernoulli", (5, 3, 2), ("relu",)),
     {"eta": 0.04, "delta_0": "zero"}),
    # Deep linear networks
    (("gaussian-linear", "A deep linear network with squared loss: K-FAC is exact, the empirical Fisher is not.",
      "gaussian", (5, 2, 3), ("identity",)), {"direction": True}),
    (("categorical-linear", "A deep linear network, categorical: K-FAC is exact with squared loss alone.",
      "categorical", (3, 2, 5), ("identity",)), {"eta": 0.02, "previous": 2}),
    (("bernoulli-linear", "A deep linear network, Bernoulli, weakly damped.", "bernoulli", (5, 2, 3), ("identity",)),
     {"damping": 0.001, "direction": True}),
    # Three layers
    (("three-layers-gaussian", "Three layers with tanh and logistic units and one output, Gaussian.", "gaussian",
      (5, 2, 3, 1), ("tanh", "logistic")), {"eta": 0.03, "direction": True, "delta_0": "given", "previous": 3}),
    (("three-layers-categorical", "Three layers with relu and tanh on one input, categorical.", "categorical",
      (1, 3, 2, 5), ("relu", "tanh")), {"direction": True, "delta_0": "given"}),
    (("three-layers-bernoulli", "Three layers with logistic units and relu and one output, Bernoulli.", "bernoulli",
      (3, 2, 5, 1), ("logistic", "relu")), {"eta": 0.01, "previous": 5, "kl_clip": (1e-3, 0.5)}),
    (("bottleneck", "A hidden layer of one unit, categorical.", "categorical", (3, 1, 5), ("tanh",)),
     {"direction": True, "delta_0": "given"}),
    # Where K-FAC is exact for every expectation
    (("one-example-gaussian", "One example: K-FAC is exact for every expectation; Gaussian.", "gaussian", (3, 2, 5),
      ("tanh",)), {"N": 1, "eta": 0.02, "direction": True}),
    (("one-example-categorical", "One example: K-FAC is exact for every expectation; categorical.", "categorical",
      (5, 2, 3), ("tanh",)), {"N": 1, "direction": True, "kl_clip": (1e-3, 0.3)}),
    (("identical-inputs", "Seven times the same input with different labels: K-FAC is exact; Bernoulli.", "bernoulli",
      (3, 2, 5), ("tanh",)), {"x": all_alike, "eta": 0.05}),
    # Edges
    (("saturated-categorical", "Logits about 40 and -40, categorical: 1 - p must keep its digits.", "categorical",
      (5, 2, 3), ("tanh",)), {"biases": {1: [40.0, -40.0, 5.0]}, "direction": True}),
    (("saturated-bernoulli", "Logits about 40 and -40, Bernoulli: p (1 - p) must keep its digits.", "bernoulli",
      (3, 2, 5), ("logistic",)), {"biases": {1: [40.0, -40.0, 0.5, -0.5, 38.0]}, "eta": 0.01}),
    (("fewer-examples-than-inputs", "Five examples of seven inputs: A has no inverse until it is damped.",
      "categorical", (7, 2, 3), ("tanh",)), {"N": 5, "damping": 0.05, "eta": 0.01, "direction": True}),
    (("dead-unit", "A hidden unit with relu that never fires: G has a row of zeros.", "bernoulli", (5, 3, 2),
      ("relu",)), {"biases": {0: [0.7, -20.0, -0.4]}, "delta_0": "given"}),
    (("dead-layer", "A hidden layer with relu that never fires: the first G is zero and its pi is 1.", "gaussian",
      (3, 2, 5), ("relu",)), {"biases": {0: [-15.0, -12.0]}, "eta": 0.02, "direction": True}),
    (("far-from-centred", "Inputs about 3 and large biases: A is far from a covariance.", "bernoulli", (5, 2, 3),
      ("logistic",)), {"x": far_from_zero, "biases": {0: [2.5, -3.0], 1: [2.0, -1.5, 1.0]}, "scale": 0.4,
                       "eta": 0.03, "direction": True}),
    (("ill-conditioned", "Inputs of very different scales, with little damping: A is ill conditioned.", "gaussian",
      (3, 2, 5), ("relu",)), {"x": of_unequal_scales, "labels": "drawn", "damping": 1e-5, "direction": True}),
    (("unlikely-labels-gaussian", "Labels ten away from the predictions, Gaussian: the empirical G is a hundredfold.",
      "gaussian", (5, 2, 3), ("logistic",)), {"labels": "unlikely", "eta": 0.01, "kl_clip": (1e-3, 0.1)}),
    (("unlikely-labels-categorical", "The label is always the least likely one, categorical.", "categorical",
      (3, 2, 5), ("relu",)), {"labels": "unlikely", "damping": 1.5, "delta_0": "given"}),
    (("float32-categorical", "Every number given is a float32; categorical with tanh.", "categorical", (2, 3, 5),
      ("tanh",)), {"dtype": "float32", "eta": 0.0625, "damping": 0.25, "delta_0": "given", "direction": True}),
    (("float32-gaussian", "Every number given is a float32; Gaussian with relu.", "gaussian", (5, 3, 2), ("relu",)),
     {"dtype": "float32", "damping": 0.5, "previous": 3}),
]

# The seeds and the first lambdas are such that no decision is a near thing; `quantities` asserts it.
TRAINED: list[tuple[tuple, dict[str, Any]]] = [
    (("trajectory-categorical", "Ten steps of Algorithm 2, block-diagonal, on batches; categorical with tanh.",
      "categorical", (3, 2, 5), ("tanh",)),
     {"seed": 2, "structure": "block-diagonal", "momentum": True, "lambda_0": 0.02, "eta": 0.01,
      "periods": (2, 4, 2), "examples": (23, 13, 7, 5), "omegas": (0.7, 0.6)}),
    (("trajectory-gaussian", "Ten steps of Algorithm 2, block-tridiagonal, on batches; Gaussian with tanh.",
      "gaussian", (2, 3, 5), ("tanh",)),
     {"seed": 0, "structure": "block-tridiagonal", "momentum": True, "lambda_0": 0.02, "eta": 0.02,
      "periods": (2, 4, 2), "examples": (19, 11, 7, 5), "omegas": (0.8, 0.7)}),
    (("trajectory-bernoulli", "Ten steps of Algorithm 2 without momentum, block-diagonal; Bernoulli with logistic "
      "units.", "bernoulli", (5, 3, 2), ("logistic",)),
     {"seed": 6, "structure": "block-diagonal", "momentum": False, "lambda_0": 0.01, "eta": 0.005,
      "periods": (2, 3, 3), "examples": (29, 17, 11, 5), "omegas": (0.75, 0.5)}),
]

PROBLEMS: dict[str, Callable[[], dict]] = {
    args[0]: partial(make, *args, **kwargs) for make, specs in ((build, BUILT), (train, TRAINED))
    for args, kwargs in specs}
