"""The equations that take given gradients or factors: the Fisher, moments in a basis, the average, the KL clip."""

from __future__ import annotations

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import curvature, fisher, params
from kfac_ref.curvature.eigen_damped import bases_of
from kfac_ref.curvature.ekfac import basis_moments
from kfac_ref.expectations import gradients
from kfac_ref.factors.average import mixed, weight_of_old
from kfac_ref.quadratic_model import kl_clip
from tests.problems import close, direction, problem

K, N, SHAPES = 3, 4, ((2, 3), (3, 2))


def drawn(positions: tuple[int, ...] = ()) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return g and a_bar of two layers, and the vectors of D of all columns and examples, one by one."""
    rng = np.random.default_rng(0)
    g = [rng.standard_normal((K, N, *positions, m)) for m, _ in SHAPES]
    a_bar = [rng.standard_normal((N, *positions, n)) for _, n in SHAPES]
    rows = [params.flatten([gi[k, n].reshape(-1, gi.shape[-1]).T @ a[n].reshape(-1, a.shape[-1])
                            for gi, a in zip(g, a_bar, strict=True)]) for k in range(K) for n in range(N)]
    return g, a_bar, rows


@pytest.mark.parametrize("positions", [(), (2,)])
def test_the_fisher_of_given_gradients_is_the_mean_of_outer_products(positions: tuple[int, ...]) -> None:
    g, a_bar, rows = drawn(positions)
    F = sum(np.outer(row, row) for row in rows) / N
    close(fisher.dense(g, a_bar), F)
    rng = np.random.default_rng(1)
    V, U = ([rng.standard_normal(shape) for shape in SHAPES] for _ in range(2))
    v, u = params.flatten(V), params.flatten(U)
    close(fisher.slopes(g, a_bar, V), np.reshape([row @ v for row in rows], (K, N)))
    close(params.flatten(fisher.product(g, a_bar, V)), F @ v)
    close(fisher.gram(g, a_bar, [V, U]), [[v @ F @ v, v @ F @ u], [u @ F @ v, u @ F @ u]])


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "bernoulli"])
def test_of_a_point_they_are_its_fisher(likelihood: str) -> None:
    p = problem(likelihood)
    g, V, U = gradients(p.at, kr.exact), direction(p), direction(p, 2)
    close(params.flatten(fisher.product(g, p.at.a_bar, V)), params.flatten(kr.fisher_product(p.at, V)))
    close(fisher.gram(g, p.at.a_bar, [V, U]), kr.fisher_gram(p.at, [V, U]))


def test_a_dense_fisher_beyond_the_limit_is_refused() -> None:
    g, a_bar, _ = drawn()
    with pytest.raises(ValueError, match="Fisher matrix"):
        fisher.dense(g, a_bar, max_bytes=100)


def test_moments_in_a_basis_are_the_diagonal_of_the_rotated_block() -> None:
    p = problem()
    bases = bases_of(kr.kronecker_factors(p.at))
    S = basis_moments(gradients(p.at, kr.exact), p.at.a_bar, bases)
    for i, (A, G) in enumerate(bases):
        Q = np.kron(A.Q, G.Q)
        close(S[i].ravel(order="F"), np.diag(Q.T @ kr.fisher_block(p.at, i, i) @ Q))


def test_factors_of_lists_with_cross_factors_are_those_of_pairs() -> None:
    f = kr.kronecker_factors(problem(sizes=(3, 4, 2, 3)).at, reach=1)
    A, G = zip(*f.layers, strict=True)
    cross = [[S[i, i + 1] for i in range(len(f) - 1)] for S in (f.A, f.G)]
    again = kr.Factors.of_layers(A, G, f.n, *cross)
    assert again.A.keys() == f.A.keys()
    assert all(again.A[key] is f.A[key] and again.G[key] is f.G[key] for key in f.A)
    curvature.BlockTridiagonal(again, 0.1)                  # which refuses factors without their cross factors


def test_the_first_batches_are_averaged_evenly_and_then_old_ones_fade() -> None:
    batches = np.random.default_rng(0).standard_normal((21, 3))
    average = np.full(3, np.nan)                            # of no batch
    for k, batch in enumerate(batches[:20], 1):
        average = mixed(weight_of_old(k), average if k > 1 else np.zeros(3), batch)
        close(average, batches[:k].mean(axis=0))
    assert weight_of_old(1) == 0
    assert [weight_of_old(k) for k in (20, 21, 1000)] == [0.95] * 3
    assert weight_of_old(4, 0.5) == 0.5


@pytest.mark.parametrize("kappa", [1e-4, 1e4])
def test_the_clip_bounds_the_change_along_a_natural_gradient(kappa: float) -> None:
    p = problem()
    grad = p.at.gradient(p.y)
    C = curvature.Exact(p.at, 0.1)
    step = params.scale(-1, C.solve(grad))
    nu, lr = kl_clip(step, grad, kappa, 0.3), 0.3
    change = (lr * nu)**2 * params.inner(step, C.product(step))
    assert change == pytest.approx(kappa, rel=1e-9) if nu < 1 else change < kappa
    assert (nu < 1) == (kappa < 1)


def test_a_step_of_zero_is_not_clipped() -> None:
    zero = [np.zeros((2, 2))]
    assert kl_clip(zero, zero, 1e-3, 0.1) == 1.0
