"""Small problems that the tests share: a model, a point, labels, draws; and a hypothesis strategy of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np

import kfac_ref as kr
from kfac_ref.checks import Array
from kfac_ref.expectations import Expectation
from kfac_ref.network import ACTIVATIONS

LIKELIHOODS = {"gaussian": kr.Gaussian(), "categorical": kr.Categorical(), "bernoulli": kr.Bernoulli()}


class Problem(NamedTuple):
    model: kr.Model
    at: kr.Point
    y: Any

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return self.model.network.shapes


def problem(likelihood: str = "categorical", sizes: tuple[int, ...] = (4, 5, 3), hidden: Any = "tanh", N: int = 7,
            seed: int = 0, weight_decay: float = 0.0, dtype: Any = np.float64, bias: Any = True) -> Problem:
    """Return a problem with dense weights of unit scale, so that no layer is nearly linear."""
    rng = np.random.default_rng(seed)
    model = kr.Model(kr.MLP(sizes, hidden, bias), LIKELIHOODS[likelihood], weight_decay)
    weights = [(rng.standard_normal(shape) / np.sqrt(shape[1] / 2)).astype(dtype) for shape in model.network.shapes]
    at = model.at(weights, rng.standard_normal((N, sizes[0])))
    return Problem(model, at, labels(likelihood, at.z, rng))


def labels(likelihood: str, z: Array, rng: np.random.Generator) -> Any:
    """Return labels that are not the model's samples."""
    if likelihood == "categorical":
        return rng.integers(0, z.shape[1], len(z))
    return rng.random(z.shape) if likelihood == "bernoulli" else rng.standard_normal(z.shape)


def direction(p: Problem, seed: int = 1) -> list[Array]:
    """Return a random direction."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(p.at.z.dtype) for shape in p.shapes]


def expectations(p: Problem, draws: int = 3, seed: int = 0) -> dict[str, Expectation]:
    """Return the three expectations by name."""
    targets = p.at.sample(np.random.default_rng(seed), draws)
    return {"exact": kr.exact, "sampled": kr.sampled(targets), "empirical": kr.empirical(p.y)}


@st.composite
def problems(draw: st.DrawFn, likelihoods: tuple[str, ...] = tuple(LIKELIHOODS), max_width: int = 4,
             max_layers: int = 3, max_N: int = 5, smooth: bool = False) -> Problem:
    """Draw networks (widths of 1 included), batches and likelihoods; `smooth` leaves relu out."""
    sizes = tuple(draw(st.lists(st.integers(1, max_width), min_size=2, max_size=max_layers + 1)))
    names = [name for name in sorted(ACTIVATIONS) if not (smooth and name == "relu")]
    hidden = tuple(draw(st.sampled_from(names)) for _ in sizes[2:])
    return problem(draw(st.sampled_from(likelihoods)), sizes, hidden, draw(st.integers(1, max_N)),
                   draw(st.integers(0, 2**16)))


def close(actual: Any, expected: Any, rtol: float = 1e-10) -> None:
    """Assert equality to `rtol` of the largest entry of `expected`."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * float(np.abs(expected).max(initial=0)))


def relative(actual: Any, expected: Any) -> float:
    """Return the relative Frobenius error, for assertions that two things differ."""
    return float(np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected))
