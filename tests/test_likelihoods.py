"""The likelihoods: definitions, derivatives, F_R and its root, samples, outcomes, and their digits far out."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kfac_ref as kr
from kfac_ref.checks import Array
from kfac_ref.likelihoods import MAX_BINARY_OUTPUTS

from .problems import LIKELIHOODS, close, labels, relative

VARIANCE = 0.3
EACH = LIKELIHOODS | {"noisy gaussian": kr.Gaussian(VARIANCE)}
EVERY = pytest.mark.parametrize("name", sorted(EACH))
DISCRETE = pytest.mark.parametrize("name", ["bernoulli", "categorical"])
SEEDS = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**16))
H = 1e-30


def case(name: str, N: int = 4, C: int = 3, seed: int = 0) -> tuple[Any, Array, Any]:
    """Return a likelihood, an output z, and targets."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((N, C))
    return EACH[name], z, labels(name, z, rng)


def definition(name: str, z: Array, y: Any) -> Array:
    """Return -log p(y | z) as it is written in a book; z may be complex."""
    if name.endswith("gaussian"):
        return ((z - y) ** 2).sum(axis=1) / (2 if name == "gaussian" else 2 * VARIANCE)
    if name == "categorical":
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y]
    return (np.log(1 + np.exp(z)) - y * z).sum(axis=1)


def units(z: Array) -> Array:
    """Return the C directions of z, each shaped (1, C)."""
    return np.eye(z.shape[1])[:, None]


def enumerated(name: str, lik: Any, z: Array) -> tuple[Any, Array]:
    """Return targets (M, ...) and weights (M, N) whose gradients have the moments of the likelihood.

    The errors z - y of a Gaussian have mean 0 and covariance v I, as +- sqrt(v C) e_c with equal weights have.
    """
    if not name.endswith("gaussian"):
        return lik.outcomes(z)
    N, C = z.shape
    steps = np.sqrt(C if name == "gaussian" else VARIANCE * C) * np.concatenate([units(z), -units(z)])
    return z + steps, np.full((2 * C, N), 1 / (2 * C))


# Definitions and derivatives


@EVERY
@given(SEEDS)
def test_nll_is_its_definition(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, y = case(name, *seeds)
    np.testing.assert_allclose(lik.nll(z, y), definition(name, z, y), rtol=1e-13, atol=1e-14)


@EVERY
@given(SEEDS)
def test_gradient_is_the_complex_step_of_the_definition(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, y = case(name, *seeds)
    expected = np.stack([definition(name, z + 1j * H * e, y).imag / H for e in units(z)], axis=1)
    np.testing.assert_allclose(lik.gradient(z, y), expected, rtol=1e-13, atol=1e-14)


@EVERY
@given(SEEDS)
def test_gradient_is_the_central_difference_of_nll(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, y = case(name, *seeds)
    h = 1e-3                                # the five-point rule: h^4 / 30 and eps / h are both near 1e-13
    difference = [(8 * (lik.nll(z + h * e, y) - lik.nll(z - h * e, y))
                   - (lik.nll(z + 2 * h * e, y) - lik.nll(z - 2 * h * e, y))) / (12 * h) for e in units(z)]
    np.testing.assert_allclose(lik.gradient(z, y), np.stack(difference, axis=1), rtol=1e-9, atol=1e-11)


@EVERY
@given(SEEDS)
def test_fisher_is_the_hessian_of_nll(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, y = case(name, *seeds)
    h = 1e-3                                # as above
    difference = [(8 * (lik.gradient(z + h * e, y) - lik.gradient(z - h * e, y))
                   - (lik.gradient(z + 2 * h * e, y) - lik.gradient(z - 2 * h * e, y))) / (12 * h) for e in units(z)]
    np.testing.assert_allclose(lik.fisher(z), np.stack(difference, axis=2), rtol=1e-9, atol=1e-11)


@EVERY
@given(SEEDS)
def test_fisher_is_the_expected_outer_product_of_gradients(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, _ = case(name, *seeds)
    y, weights = enumerated(name, lik, z)
    g = lik.gradient(z, y)
    np.testing.assert_allclose(lik.fisher(z), np.einsum("mn,mnc,mnd->ncd", weights, g, g), rtol=1e-12, atol=1e-14)


@EVERY
def test_the_expectation_depends_on_the_weights_of_the_outcomes(name: str) -> None:
    lik, z, _ = case(name)
    y, weights = enumerated(name, lik, z)
    g, wrong = lik.gradient(z, y), weights * np.linspace(0.5, 1.5, len(weights))[:, None]
    assert relative(np.einsum("mn,mnc,mnd->ncd", wrong, g, g), lik.fisher(z)) > 1e-2


@EVERY
@given(SEEDS)
def test_the_expected_gradient_is_zero(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, _ = case(name, *seeds)
    y, weights = enumerated(name, lik, z)
    mean = np.einsum("mn,mnc->nc", weights, lik.gradient(z, y))
    np.testing.assert_allclose(mean, np.zeros_like(z), rtol=0, atol=1e-14)


@EVERY
@given(SEEDS)
def test_fisher_is_its_root_times_the_roots_transpose(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, _ = case(name, *seeds)
    B = lik.fisher_root(z)
    np.testing.assert_allclose(B @ B.transpose(0, 2, 1), lik.fisher(z), rtol=1e-12, atol=1e-15)


def test_the_root_of_a_categorical_is_not_symmetric() -> None:
    lik, z, _ = case("categorical")
    B = lik.fisher_root(z)
    assert relative(B.transpose(0, 2, 1) @ B, lik.fisher(z)) > 0.1


@EVERY
@given(SEEDS)
def test_fisher_product_is_the_matrix_times_the_vector(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, _ = case(name, *seeds)
    v = np.random.default_rng(1).standard_normal((3, *z.shape))
    expected = np.einsum("ncd,knd->knc", lik.fisher(z), v)
    np.testing.assert_allclose(lik.fisher_product(z, v[0]), expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lik.fisher_product(z, v), expected, rtol=1e-12, atol=1e-14)


@EVERY
def test_a_stack_of_targets_is_as_many_single_ones(name: str) -> None:
    lik, z, _ = case(name)
    stack = np.stack([labels(name, z, np.random.default_rng(seed)) for seed in range(3)])
    for quantity in (lik.nll, lik.gradient, lik.error):
        close(quantity(z, stack), [quantity(z, y) for y in stack], 1e-14)


@EVERY
def test_lists_serve_as_targets(name: str) -> None:
    lik, z, y = case(name)
    np.testing.assert_array_equal(lik.gradient(z, y.tolist()), lik.gradient(z, y))


def test_the_reported_errors_are_their_definitions() -> None:
    z = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    assert kr.Categorical().error(z, [0, 1]).tolist() == [0, 1]
    y = np.array([[0.0, 1.0, 0.25], [1.0, 1.0, 0.0]])
    close(kr.Gaussian().error(z, y), [4 + 0.0625, 1 + 9], 1e-15)
    p = 1 / (1 + np.exp(-z))
    close(kr.Bernoulli().error(z, y), [sum((p[n, c] - y[n, c]) ** 2 for c in range(3)) for n in range(2)], 1e-14)


def test_a_gaussian_has_half_its_error_as_nll_and_no_constant() -> None:
    lik, z, y = case("gaussian")
    np.testing.assert_array_equal(lik.nll(z, y), lik.error(z, y) / 2)
    np.testing.assert_array_equal(lik.nll(z, z), np.zeros(len(z)))


def test_a_bernoulli_is_a_sum_of_its_outputs() -> None:
    lik, z, y = case("bernoulli")
    close(lik.nll(z, y), sum(lik.nll(z[:, [c]], y[:, [c]]) for c in range(z.shape[1])), 1e-14)


def test_two_classes_are_a_bernoulli_of_their_difference() -> None:
    _, z, _ = case("categorical", C=2)
    y, d = np.array([0, 1, 1, 0]), z[:, [1]] - z[:, [0]]
    close(kr.Categorical().nll(z, y), kr.Bernoulli().nll(d, y[:, None]), 1e-14)
    close(kr.Categorical().gradient(z, y)[:, 1:], kr.Bernoulli().gradient(d, y[:, None]), 1e-14)


def test_a_categorical_does_not_see_a_shift() -> None:
    _, z, y = case("categorical")
    z = np.round(z * 8) / 8                 # sums of eighths are exact, so that the results must agree bit by bit
    lik, shift, v = kr.Categorical(), np.array([[1e4], [-3.0], [0.5], [-1e4]]), z[::-1]
    for f in (lambda z: lik.nll(z, y), lambda z: lik.gradient(z, y), lik.fisher, lik.fisher_root,
              lambda z: lik.fisher_product(z, v)):
        np.testing.assert_array_equal(f(z + shift), f(z))
    close(lik.fisher_product(z, v + 3), lik.fisher_product(z, v), 1e-13)
    np.testing.assert_allclose(lik.fisher(z).sum(axis=1), np.zeros_like(z), rtol=0, atol=1e-15)


# Samples and outcomes


@DISCRETE
@given(SEEDS)
def test_probabilities_of_the_outcomes_sum_to_one(name: str, seeds: tuple[int, int, int]) -> None:
    lik, z, _ = case(name, *seeds)
    y, p = lik.outcomes(z)
    assert len(y) == len(p) == (z.shape[1] if name == "categorical" else 2 ** z.shape[1])
    assert len(np.unique(y[:, 0], axis=0)) == len(y)
    np.testing.assert_allclose(p.sum(axis=0), np.ones(len(z)), rtol=1e-14, atol=0)
    np.testing.assert_allclose(p, np.exp(-lik.nll(z, y)), rtol=1e-12, atol=0)


@DISCRETE
def test_samples_come_as_often_as_the_outcomes_are_probable(name: str) -> None:
    M = 20_000
    lik, z, _ = case(name, N=2)
    y, p = lik.outcomes(z)
    equal = lik.sample(z, np.random.default_rng(0), M)[:, None] == y
    frequency = (equal.all(axis=-1) if equal.ndim == 4 else equal).mean(axis=0)
    errors = np.sqrt(p * (1 - p) / M)
    assert np.abs((frequency - p) / errors).max() < 4                               # at most 16 z-scores
    assert np.abs((frequency - lik.outcomes(z + np.array([0.2, 0, 0]))[1]) / errors).max() > 6


def test_gaussian_samples_have_the_moments_of_unit_noise() -> None:
    M = 20_000
    lik, z, _ = case("gaussian", N=2)
    noise = (lik.sample(z, np.random.default_rng(0), M) - z).reshape(M, -1)
    n = noise.shape[1]
    assert np.abs(noise.mean(axis=0)).max() * np.sqrt(M) < 4
    assert np.abs((noise.T @ noise / M - np.eye(n)) / np.sqrt(1 + np.eye(n))).max() * np.sqrt(M) < 4
    assert np.abs((noise**4).mean(axis=0) - 3).max() * np.sqrt(M / 96) < 4          # var e^4 = 105 - 9


@DISCRETE
def test_samples_of_equal_examples_are_independent(name: str) -> None:
    M = 20_000
    lik, z, _ = case(name, N=1)
    y = lik.sample(np.repeat(z, 2, axis=0), np.random.default_rng(0), M)
    same = y[:, 0] == y[:, 1]
    agree = np.sum(lik.outcomes(z)[1] ** 2)
    frequency = (same if name == "categorical" else same.all(axis=-1)).mean()
    assert abs(frequency - agree) / np.sqrt(agree * (1 - agree) / M) < 4
    assert agree < 0.95                     # were one number drawn for both, they would always agree


@EVERY
def test_samples_have_the_shape_of_targets_or_of_a_stack(name: str) -> None:
    lik, z, _ = case(name, N=5, C=3)
    shape = (5,) if name == "categorical" else (5, 3)
    for draws, expected in ((None, shape), (1, (1, *shape)), (4, (4, *shape))):
        y = lik.sample(z, np.random.default_rng(0), draws)
        assert y.shape == expected
        np.testing.assert_array_equal(lik.check(z, y), y)


@EVERY
def test_a_seed_fixes_the_samples(name: str) -> None:
    lik, z, _ = case(name, N=20)
    first, again, other = (lik.sample(z, np.random.default_rng(seed), 3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_noise_of_another_variance_is_the_unit_noise_at_another_scale() -> None:
    z = np.zeros((50, 2))
    unit, noisy = (kr.Gaussian(v).sample(z, np.random.default_rng(0)) for v in (1.0, 0.25))
    close(noisy, unit / 2, 1e-15)


@pytest.mark.parametrize("variance", [0.0, -1.0, np.nan, np.inf, "small"])
def test_a_variance_that_is_not_positive_is_refused(variance: Any) -> None:
    with pytest.raises(ValueError, match="variance must be"):
        kr.Gaussian(variance)


def test_outcomes_of_a_gaussian_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outcomes: a Gaussian has infinitely many targets; use fisher_root or samp"):
        kr.Gaussian().outcomes(np.zeros((1, 2)))


def test_outcomes_of_too_many_bits_are_refused() -> None:
    C = MAX_BINARY_OUTPUTS
    assert kr.Bernoulli().outcomes(np.zeros((1, C)))[0].shape == (2**C, 1, C)
    with pytest.raises(ValueError, match=rf"outcomes: {C + 1} binary outputs have 2\^{C + 1} targets; at most {C} out"):
        kr.Bernoulli().outcomes(np.zeros((1, C + 1)))


# Far out

QUANTITIES = pytest.mark.parametrize("quantity", ["nll", "gradient", "fisher", "root_root", "product"])
# Eighths, which float32 holds exactly.
FAR = np.array([[40.0, 0.0, -3.0, 1.5], [0.0, -40.0, 40.0, 39.0], [-40.0, -40.25, -41.0, 0.5],
                [0.25, -0.125, 0.5, 0.375], [30.0, 30.0, -10.0, 0.0]])
# No entry is near the mean p^T v of any row, where the exact product p (v - p^T v) would be a small difference itself.
VECTOR = np.array([[1.75, -1.25, 2.125, 0.375]])


def floats(rows: Any) -> Array:
    return np.array([[float(d) for d in row] for row in rows])


def exact_categorical(z: Array, y: int) -> dict[str, Array]:
    """Return every quantity for one output z and label y, computed with 100 digits."""
    with localcontext(prec=100):
        e = [Decimal(s).exp() for s in z.tolist()]
        p = [a / sum(e) for a in e]
        C, vs = range(len(p)), [Decimal(s) for s in VECTOR[0].tolist()]
        F = [[(p[c] if c == d else 0) - p[c] * p[d] for d in C] for c in C]
        return {"nll": np.array([float(-p[y].ln())]), "gradient": floats([[p[c] - (c == y) for c in C]]),
                "fisher": floats(F), "root_root": floats(F),
                "product": floats([[sum(F[c][d] * vs[d] for d in C) for c in C]])}


def exact_bernoulli(z: Array, y: Array) -> dict[str, Array]:
    """Return every quantity for one output z and targets y, computed with 100 digits."""
    with localcontext(prec=100):
        zs, ys, vs = ([Decimal(s) for s in a.tolist()] for a in (z, y, VECTOR[0]))
        p = [1 / (1 + (-s).exp()) for s in zs]
        C = range(len(p))
        F = [[p[c] * (1 - p[c]) if c == d else Decimal(0) for d in C] for c in C]
        nll = sum((1 + s.exp()).ln() - t * s for s, t in zip(zs, ys, strict=True))
        return {"nll": np.array([float(nll)]), "gradient": floats([[a - t for a, t in zip(p, ys, strict=True)]]),
                "fisher": floats(F), "root_root": floats(F), "product": floats([[F[c][c] * vs[c] for c in C]])}


def computed(lik: Any, z: Array, y: Any, quantity: str) -> Array:
    """Return one of the quantities for one example."""
    if quantity == "root_root":
        B = lik.fisher_root(z)[0]
        return B @ B.T
    if quantity == "product":
        return lik.fisher_product(z, VECTOR.astype(z.dtype))
    return {"nll": lambda: lik.nll(z, y), "gradient": lambda: lik.gradient(z, y), "fisher": lambda: lik.fisher(z)[0]
            }[quantity]()


def subtracted(name: str, z: Array, y: Any, quantity: str) -> Array:
    """Return one of the quantities as it must not be computed: with 1 - p by subtraction."""
    p = np.exp(z[0]) / np.exp(z[0]).sum() if name == "categorical" else 1 / (1 + np.exp(-z[0]))
    F = np.diag(p) - np.outer(p, p) if name == "categorical" else np.diag(p * (1 - p))
    target = np.eye(z.shape[1])[y[0]] if name == "categorical" else y[0]
    nll = definition(name, z, y)
    return {"nll": nll, "gradient": p - target, "fisher": F, "root_root": F, "product": F @ VECTOR[0]}[quantity]


def pairs(name: str) -> list[tuple[Array, Any, dict[str, Array]]]:
    """Return outputs, each as a batch of one, with targets and the exact quantities."""
    if name == "categorical":
        return [(z[None], np.array([y]), exact_categorical(z, y)) for z in FAR for y in range(FAR.shape[1])]
    targets = [np.array(t) for t in ([0.0, 0, 0, 0], [1.0, 1, 1, 1], [0.0, 1, 0, 1])]
    # No probability is near 1/4, where the exact p - y would be a small difference itself.
    return [(z[None], y[None], exact_bernoulli(z, y)) for z in FAR for y in (*targets, np.array([0.25, 0.25, 0, 1]))]


@DISCRETE
@QUANTITIES
def test_every_quantity_keeps_its_relative_accuracy_at_40(name: str, quantity: str) -> None:
    for z, y, exact in pairs(name):
        np.testing.assert_allclose(np.squeeze(computed(LIKELIHOODS[name], z, y, quantity)),
                                   np.squeeze(exact[quantity]), rtol=1e-14, atol=0)


@DISCRETE
@QUANTITIES
def test_subtraction_from_one_has_no_digit_left_at_40(name: str, quantity: str) -> None:
    z = FAR[:1] if name == "categorical" else np.full((1, 4), 40.0)
    y = np.array([0]) if name == "categorical" else np.ones((1, 4))
    exact = exact_categorical(z[0], 0) if name == "categorical" else exact_bernoulli(z[0], y[0])
    actual, expected = (np.ravel(a) for a in (subtracted(name, z, y, quantity), exact[quantity]))
    there = expected != 0
    assert np.abs(actual[there] / expected[there] - 1).max() > 0.5


@DISCRETE
@QUANTITIES
def test_float32_has_six_digits_at_40(name: str, quantity: str) -> None:
    tiny = float(np.finfo(np.float32).tiny)                 # below it, as exp(-120) is, float32 has 0 or few digits
    for z, y, exact in pairs(name):
        actual = computed(LIKELIHOODS[name], z.astype(np.float32), y, quantity)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(np.squeeze(actual), np.squeeze(exact[quantity]), rtol=2e-6, atol=tiny)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saturated_categorical_has_finite_losses_and_exact_zeros(dtype: Any) -> None:
    lik, z = kr.Categorical(), np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, -1e4]], dtype)
    right, wrong = np.array([0, 1]), np.array([1, 0])
    assert lik.nll(z, right).tolist() == [0, 0]
    assert lik.nll(z, wrong).tolist() == [2e4, 2e4]
    assert lik.gradient(z, right).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert lik.gradient(z, wrong).tolist() == [[1, -1, 0], [-1, 1, 0]]
    for F in (lik.fisher(z), lik.fisher_root(z), lik.fisher_product(z, np.ones_like(z))):
        assert (F == 0).all()
    assert (lik.sample(z, np.random.default_rng(0), 50) == right).all()
    assert lik.outcomes(z)[1].T.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saturated_bernoulli_has_finite_losses_and_exact_zeros(dtype: Any) -> None:
    lik, z = kr.Bernoulli(), np.array([[1e4, -1e4]], dtype)
    right, wrong = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert lik.nll(z, right).tolist() == [0]
    assert lik.nll(z, wrong).tolist() == [2e4]
    assert lik.gradient(z, right).tolist() == [[0, 0]]
    assert lik.gradient(z, wrong).tolist() == [[1, -1]]
    for F in (lik.fisher(z), lik.fisher_root(z), lik.fisher_product(z, np.ones_like(z))):
        assert (F == 0).all()
    assert (lik.sample(z, np.random.default_rng(0), 50) == right).all()


def test_a_single_class_is_certain() -> None:
    lik, z, y = kr.Categorical(), np.array([[3.0], [-1.0]]), np.zeros(2, int)
    y_sampled = lik.sample(z, np.random.default_rng(0))
    for quantity in (lik.nll(z, y), lik.gradient(z, y), lik.fisher(z), lik.fisher_root(z), y_sampled, lik.error(z, y)):
        assert (quantity == 0).all()


@EVERY
def test_float32_is_kept_throughout(name: str) -> None:
    lik, z, y = case(name)
    single = z.astype(np.float32)
    draws = lik.sample(single, np.random.default_rng(0), 2)
    quantities = [lik.nll(single, y), lik.gradient(single, y), lik.gradient(single, draws), lik.fisher(single),
                  lik.fisher_root(single), lik.fisher_product(single, single), lik.error(single, y)]
    if not name.endswith("gaussian"):
        quantities.append(lik.outcomes(single)[1])
    if name != "categorical":
        quantities.append(draws)
    assert {q.dtype for q in quantities} == {np.dtype(np.float32)}


@EVERY
def test_nothing_passed_in_has_changed(name: str) -> None:
    lik, z, y = case(name)
    before = z.copy(), y.copy()
    lik.nll(z, y), lik.gradient(z, y), lik.fisher(z), lik.fisher_root(z), lik.fisher_product(z, z), lik.error(z, y)
    lik.sample(z, np.random.default_rng(0), 2)
    np.testing.assert_array_equal(z, before[0])
    np.testing.assert_array_equal(y, before[1])
