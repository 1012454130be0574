"""The network of the paper's figures 2, 3, 5 and 6, and its middle four layers: exact F, factors, block by block.

256-20-20-20-20-20-10, tanh, Categorical, on digits of 16 x 16 pixels, trained by a few steps of K-FAC on all
examples. Its four middle layers have 20 x 21 weights each, so their part of the Fisher is 1680 x 1680 and has 4 x 4
blocks of one size. Everything here is about these layers only: F is that part of the Fisher, the factors are those of
their pairs, and an inverse is the inverse of that part (not that part of the inverse of the whole).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .. import curvature, factors, fisher
from ..checks import Array
from ..datasets import Dataset, digits, mnist
from ..factors import Factors
from ..likelihoods import Categorical
from ..model import Model, Point
from ..network import MLP
from ..optimizers import KFAC
from .settings import PAPER_RULE

#: Pixels per side.
SIDE = 16
#: The environment variable that may hold the folder of MNIST's IDX files.
MNIST_FOLDER = "KFAC_REF_MNIST"


def untrained(width: int = 20) -> Model:
    """Return the classifier 256-20-20-20-20-20-10, or one with other hidden layers."""
    return Model(MLP((SIDE**2, *[width] * 5, 10), "tanh"), Categorical(), weight_decay=1e-5)


def images(examples: int | None = None) -> tuple[str, Dataset]:
    """Return the name of the data, and digits of 16 x 16 pixels: MNIST from the folder in `MNIST_FOLDER`, else ours.

    MNIST's 28 x 28 pixels are averaged down; of the package's 8 x 8 pixels, each is written as 2 x 2. `examples`
    limits the training part (default: all).
    """
    folder = os.environ.get(MNIST_FOLDER)
    if folder:
        name, data = "MNIST averaged to 16 x 16 pixels", mnist(folder, side=SIDE)
    else:
        small = digits()
        name = "8 x 8 digits, each pixel doubled to 2 x 2"
        data = replace(small, x=doubled(small.x), x_test=doubled(small.x_test))
    return name, replace(data, x=data.x[:examples], labels=data.labels[:examples])


def doubled(x: Array) -> Array:
    """Return square images, (N, s * s), with each pixel written as 2 x 2, (N, 4 s * s)."""
    side = round(x.shape[1] ** 0.5)
    return x.reshape(-1, side, side).repeat(2, axis=1).repeat(2, axis=2).reshape(len(x), -1)


def trained(model: Model, data: Dataset, scheme: str, steps: Sequence[int], seed: int = 0) -> dict[int, list[Array]]:
    """Train by K-FAC on all examples from a ``sparse`` or ``glorot`` start, and return the weights after some steps."""
    opt = KFAC(model, **PAPER_RULE)
    state = opt.init(model.init(np.random.default_rng(seed), scheme), seed)
    found = {0: list(state.weights)} if 0 in steps else {}
    for k in range(1, max(steps) + 1):
        state, _ = opt.step(state, data.x, data.labels)
        if k in steps:
            found[k] = list(state.weights)
    return found


def point(steps: int = 7, width: int = 20, examples: int | None = None, seed: int = 0) -> tuple[str, Point, Dataset]:
    """Return the name of the data, the point at which the figures are taken, and the data.

    The point is after a few steps of K-FAC from a sparse start, on all training examples, with the paper's rule.
    """
    name, data = images(examples)
    model = untrained(width)
    return name, model.at(trained(model, data, "sparse", (steps,), seed)[steps], data.x), data


def middle(model: Model) -> range:
    """Return the layers between the first and the last."""
    return range(1, len(model.network.shapes) - 1)


def sizes(model: Model) -> list[int]:
    """Return the number of weights of each middle layer."""
    shapes = [model.network.shapes[i] for i in middle(model)]
    return [m * n for m, n in shapes]


def middle_fisher(at: Point) -> Array:
    """Return the exact Fisher of the middle layers, dense, without the rest."""
    layers = middle(at.model)
    upper = {(i, j): fisher.fisher_block(at, i, j) for i in layers for j in layers if i <= j}
    return np.block([[upper[i, j] if i <= j else upper[j, i].T for j in layers] for i in layers])


def middle_factors(at: Point) -> Factors:
    """Return the exact factors of the middle layers and of all their pairs."""
    return restrict(factors.kronecker_factors(at, reach=math.inf), middle(at.model))


def restrict(fac: Factors, layers: range) -> Factors:
    """Return the factors of consecutive layers, as if there were no others; `fac` must have all their cross factors."""
    pairs = [(i, j) for j in range(len(layers)) for i in range(j + 1)]
    return Factors({(i, j): fac.A[layers[i], layers[j]] for i, j in pairs},
                   {(i, j): fac.G[layers[i], layers[j]] for i, j in pairs}, fac.n)


def damped(fac: Factors, gamma: float) -> Factors:
    """Return factors with factored Tikhonov damping on the diagonal ones; the cross factors stay (sec. 4.3, 6.3).

    `gamma` is used instead of sqrt(lambda + eta). ``Full`` of the result is the damped F̃ whose tridiagonal blocks F̂
    shares, and whose diagonal blocks are F̆. Source: Martens & Grosse 2015, sec. 6.3 and 6.6.
    """
    pairs = curvature.BlockDiagonal(fac, gamma**2).damped
    return replace(fac, A=fac.A | {(i, i): A for i, (A, _) in enumerate(pairs)},
                   G=fac.G | {(i, i): G for i, (_, G) in enumerate(pairs)})
