"""What the figure about damping computes: against the optimizer's own step, brute force, and limits."""

from __future__ import annotations

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import params, training

from .figure_scripts import load


@pytest.fixture(scope="module")
def damping():
    return load("damping")


@pytest.fixture(scope="module")
def problem():
    x = np.random.default_rng(0).random((40, 6))
    model = kr.Model(kr.MLP((6, 4, 3, 6), "tanh"), kr.Bernoulli(), weight_decay=1e-3)
    optimizer = kr.optimizers.KFAC(model, lambda_0=0.1, tau1=1 / 2, T3=1, judged_on="same batch", T1=5)
    history = training.train(optimizer, model.init(np.random.default_rng(1), "glorot"), x, x, 6, seed=2)
    return optimizer, history.state, x


def test_at_the_gamma_of_the_run_the_update_is_that_of_the_run(damping, problem):
    optimizer, state, x = problem
    after, record = optimizer.step(state, x, x)
    found = damping.decreases(optimizer, state, x, np.array([record.gamma]))
    actual = optimizer.model.at(state.weights, x).loss(x) - optimizer.model.at(after.weights, x).loss(x)
    np.testing.assert_allclose(found["decrease_of_the_run"], actual, rtol=1e-10)
    np.testing.assert_allclose(found["decrease"]["factored"]["re-scaling and momentum"], [actual], rtol=1e-9)
    assert abs(found["decrease"]["factored"]["re-scaling"][0] / actual - 1) > 1e-3


def test_the_steps_are_those_of_dense_matrices(damping, problem):
    optimizer, state, x = problem
    strength = 0.3
    found = damping.decreases(optimizer, state, x, np.array([strength]))["decrease"]
    detail = optimizer.explain(state, x, x)
    model, eta = optimizer.model, optimizer.model.weight_decay
    grad = params.flatten(detail.grad)
    F, factors = kr.fisher_matrix(detail.at), kr.factors.as_factors(detail.average.moments)
    last = params.flatten(state.delta_0)
    shapes = model.network.shapes

    def gain(delta):
        moved = params.add(state.weights, params.unflatten(delta, shapes))
        return model.at(state.weights, x).loss(x) - model.at(moved, x).loss(x)

    for name, blocks in {
            "exact": [np.kron(A, G) + strength**2 * np.eye(len(A) * len(G)) for A, G in factors.layers],
            "factored": [np.kron(A + pi * strength * np.eye(len(A)), G + strength / pi * np.eye(len(G)))
                         for A, G, pi in ((A, G, np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G))))
                                          for A, G in factors.layers)]}.items():
        cuts = np.cumsum([len(B) for B in blocks])[:-1]
        Delta = -np.concatenate([np.linalg.solve(B, g) for B, g in zip(blocks, np.split(grad, cuts), strict=True)])
        np.testing.assert_allclose(found[name]["no re-scaling"], [gain(Delta)], rtol=1e-8)
        for step, V in (("re-scaling", Delta[:, None]), ("re-scaling and momentum", np.stack([Delta, last], 1))):
            M = V.T @ (F + (state.lambda_ + eta) * np.eye(len(F))) @ V
            np.testing.assert_allclose(found[name][step], [gain(-V @ np.linalg.solve(M, V.T @ grad))], rtol=1e-7)


def test_very_strong_damping_is_a_small_step_of_gradient_descent(damping, problem):
    optimizer, state, x = problem
    squared = sum(float((g**2).sum()) for g in optimizer.model.at(state.weights, x).gradient(x))
    strength = 3e3
    exact = damping.decreases(optimizer, state, x, np.array([strength]))["decrease"]["exact"]["no re-scaling"]
    np.testing.assert_allclose(exact, [squared / strength**2], rtol=1e-4)


def test_the_summary_speaks_of_the_maxima(damping):
    strengths = np.array([0.01, 0.1, 1.0])
    decrease = {"factored": {"no re-scaling": [-9.0, -1.0, 0.5], "re-scaling": [2.0, 1.0, 0.5],
                             "re-scaling and momentum": [3.0, 4.0, 1.0]},
                "exact": {"no re-scaling": [np.nan, -2.0, -0.1], "re-scaling": [0.1, 2.5, 1.0],
                          "re-scaling and momentum": [0.1, 5.0, 2.0]}}
    found = damping.summarize(strengths, {"decrease": decrease, "decrease_of_the_run": 3.0})
    assert found["factored_no_re_scaling_best_damping"] == 1.0
    assert found["factored_re_scaling_best_decrease"] == 2.0
    assert found["factored_gain_from_re_scaling"] == 4.0
    assert found["factored_gain_from_momentum"] == 2.0
    assert found["factored_damping_without_over_with_re_scaling"] == 100.0
    assert found["factored_without_re_scaling_h_falls_nowhere_below"] == 1.0
    assert found["exact_without_re_scaling_h_falls_nowhere_below"] == found["exact_gain_from_re_scaling"] == np.inf
    assert found["factored_over_exact_re_scaling"] == 0.8
    assert found["run_over_best_factored"] == 0.75
    decrease["exact"]["no re-scaling"] = [np.nan] * 3
    with pytest.raises(ValueError, match="not finite at any strength with exact damping and no re-scaling"):
        damping.summarize(strengths, {"decrease": decrease, "decrease_of_the_run": 3.0})
