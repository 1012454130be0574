"""kfac-jax: fisher_exact, fisher_empirical, fisher_gradients (its own samples); the preconditioned gradient; a step."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import Problem
from kfac_ref.oracle.dialects import DIALECTS
from tests import require
from tests.peers import cases
from tests.peers.cases import TOLERANCE

require.peer("kfac_jax", "kfac-jax")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
DIALECT = "kfac-jax"
DIALECTS_HERE = (DIALECT,)


@functools.cache
def jax() -> Any:
    """Return JAX in 64 bits on the CPU."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    return jax


def loss_function(case: Problem, half: str = "") -> Any:
    """Return the registered loss of the problem; `half` says how the squared error is given the factor 1/2."""
    import kfac_jax

    jnp, nn = jax().numpy, jax().nn
    phi = {"tanh": jnp.tanh, "logistic": nn.sigmoid, "identity": lambda s: s}

    def h(parameters: Any, batch: Any) -> Any:
        z, y = batch
        for (w, b), name in zip(parameters, (*case.hidden, "identity"), strict=True):
            z = phi[name](z @ w + b)
        if case.likelihood == "categorical":
            kfac_jax.register_softmax_cross_entropy_loss(z, y)
            return -jnp.take_along_axis(nn.log_softmax(z), y[:, None], axis=1).mean()
        if case.likelihood == "bernoulli":
            kfac_jax.register_multi_bernoulli_predictive_distribution(z, y)
            return (nn.softplus(z) - y * z).sum(axis=1).mean()
        if half == "variance":
            kfac_jax.register_normal_predictive_distribution(z, y, variance=1.0)
        else:
            kfac_jax.register_squared_error_loss(z, y, weight=0.5 if half else 1.0)
        return (0.5 if half else 1.0) * ((z - y)**2).sum(axis=1).mean()

    return h


def arguments(case: Problem) -> tuple[Any, Any]:
    """Return the parameters, in pairs (w, b) with w (inputs, outputs), and the batch."""
    asarray = jax().numpy.asarray
    return ([(asarray(W[:, :-1].T), asarray(W[:, -1])) for W in case.weights],
            (asarray(case.x), asarray(case.y)))


def state_after(case: Problem, mode: str, half: str = "", M: int = 1) -> tuple[Any, Any]:
    """Return their estimator and its state after one update with the whole weight on the new batch."""
    import kfac_jax

    estimator = kfac_jax.BlockDiagonalCurvature(loss_function(case, half), num_samples=M)
    key, given = jax().random.PRNGKey(0), arguments(case)
    state = estimator.init(key, given, exact_powers_to_cache=None, approx_powers_to_cache=None)
    update = functools.partial(estimator.update_curvature_matrix_estimate, ema_old=0.0, ema_new=1.0,
                               identity_weight=0.0, batch_size=len(case.x), rng=key, estimation_mode=mode)
    return estimator, jax().jit(lambda state, given: update(state, func_args=given))(state, given)


def factors(state: Any) -> tuple[list[Any], list[Any]]:
    """Return A and G, layer by layer."""
    return ([np.asarray(block.factors[0].value) for block in state.blocks_states],
            [np.asarray(block.factors[1].value) for block in state.blocks_states])


def gradient_of(case: Problem, half: str = "") -> Any:
    """Return the gradient of the loss, with the weight decay in the units of that loss."""
    parameters, batch = arguments(case)
    decay = case.weight_decay * (1.0 if half else DIALECTS[DIALECT].factor("gradient", case))
    gradient = jax().grad(loss_function(case, half))(parameters, batch)
    return jax().tree_util.tree_map(lambda g, p: g + decay * p, gradient, parameters)


def numpy(pytree: Any, sign: float = 1.0) -> list[tuple[Any, Any]]:
    """Return pairs (w, b) in NumPy."""
    return [(sign * np.asarray(w), sign * np.asarray(b)) for w, b in pytree]


def quantities(case: Problem, dialect: str = DIALECT) -> dict[str, Any]:
    """Return what they compute, as they do."""
    estimator, state = state_after(case, "fisher_exact")
    found: dict[str, Any] = {}
    found["A"], found["G"] = factors(state)
    found["G_empirical"] = factors(state_after(case, "fisher_empirical")[1])[1]
    gradient = gradient_of(case)
    found["gradient"] = numpy(gradient)
    damping = case.damping * DIALECTS[dialect].factor("damping", case)
    for name, exact in (("step", False), ("step_exact_damping", True)):
        solve = functools.partial(estimator.multiply_matpower, identity_weight=damping, power=-1, exact_power=exact,
                                  use_cached=False, pmap_axis_name=None)
        found[name] = numpy(jax().jit(solve)(state, gradient), -1.0)
    found["kfac_block"] = [np.asarray(block) for block in estimator.to_diagonal_block_dense_matrix(state)]
    return found


def supports(case: Problem) -> bool:
    """Return whether they can be run on it."""
    return True


def known(case: Problem, quantity: str) -> str | None:
    """Return why they differ, where they are known to."""
    return "a factor of size 1 is not damped" if quantity == "step" and 1 in case.sizes[1:] else None


@pytest.mark.parametrize("case", cases.those(supports), ids=lambda c: c.name)
def test_they_agree_through_the_dialect(case: Problem) -> None:
    assert cases.disagreements(DIALECT, quantities(case), case, known) == {}


@pytest.mark.parametrize("half", ["weight", "variance"])
def test_a_squared_error_with_the_half_has_our_scales(half: str) -> None:
    case = cases.case("gaussian")
    for name, mode, scale in (("G", "fisher_exact", 1.0), ("G_empirical", "fisher_empirical", 1 / len(case.x))):
        for theirs, ours in zip(factors(state_after(case, mode, half)[1])[1], cases.reference(case)[name], strict=True):
            assert cases.distance(theirs, scale * ours) < TOLERANCE
    gradient = DIALECTS[DIALECT].ours({"direction": numpy(gradient_of(case, half))}, case)["direction"]
    for theirs, ours in zip(gradient, cases.reference(case)["gradient"], strict=True):
        assert cases.distance(theirs, ours) < TOLERANCE


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_their_samples_give_our_sampled_G(likelihood: str) -> None:
    import kfac_jax

    case, M = cases.case(likelihood), 3
    z = jax().numpy.asarray(case.at().z)
    made = {"categorical": kfac_jax.CategoricalLogitsNegativeLogProbLoss,
            "gaussian": kfac_jax.NormalMeanNegativeLogProbLoss}[likelihood](z)
    targets = np.stack([np.asarray(made.sample(key)) for key in jax().random.split(jax().random.PRNGKey(0), M)])
    if likelihood == "gaussian":                            # of variance 1/2
        targets = z + 2**0.5 * (targets - z)
    G = factors(state_after(case, "fisher_gradients", M=M)[1])[1]
    given = case.replace(targets=np.asarray(targets))
    assert cases.differences(DIALECT, {"G_sampled": G}, given)["G_sampled"] < TOLERANCE


def test_the_damped_factors_are_ours_over_pi_and_times_pi() -> None:
    import kfac_jax

    case = cases.case("categorical")
    A, G = cases.reference(case)["A"][0], cases.reference(case)["G"][0]
    pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
    theirs = kfac_jax.utils.pi_adjusted_kronecker_factors(jax().numpy.asarray(A), jax().numpy.asarray(G),
                                                          damping=case.damping)
    root = np.sqrt(case.damping)
    assert cases.distance(theirs[0], (A + pi * root * np.eye(len(A))) / pi) < TOLERANCE
    assert cases.distance(theirs[1], (G + root / pi * np.eye(len(G))) * pi) < TOLERANCE
    # A factor of size 1 is left alone.
    one = jax().numpy.asarray([[2.0]])
    theirs = kfac_jax.utils.pi_adjusted_kronecker_factors(jax().numpy.asarray(A), one, damping=case.damping)
    assert cases.distance(np.kron(*theirs), 2.0 * A + case.damping * np.eye(len(A))) < TOLERANCE


def test_a_dictionary_puts_the_bias_first() -> None:
    import kfac_jax

    case = cases.case("gaussian")
    h, given = loss_function(case), arguments(case)
    estimator = kfac_jax.BlockDiagonalCurvature(lambda p, batch: h([(layer["w"], layer["b"]) for layer in p], batch))
    given = ([{"w": w, "b": b} for w, b in given[0]], given[1])
    key = jax().random.PRNGKey(0)
    state = estimator.init(key, given, exact_powers_to_cache=None, approx_powers_to_cache=None)
    state = estimator.update_curvature_matrix_estimate(
        state, ema_old=0.0, ema_new=1.0, identity_weight=0.0, batch_size=len(case.x), rng=key, func_args=given,
        estimation_mode="fisher_exact")
    A, G = cases.reference(case)["A"][0], cases.reference(case)["G"][0]
    first = np.roll(A, (1, 1), (0, 1))
    assert cases.distance(estimator.to_diagonal_block_dense_matrix(state)[0], np.kron(first, 2 * G)) < TOLERANCE
    assert cases.distance(factors(state)[0][0], A) < TOLERANCE                       # A itself has it last


def test_a_step_of_the_optimizer_and_its_average() -> None:
    import kfac_jax

    case = cases.case("categorical")
    eta = case.weight_decay
    h = loss_function(case)

    def objective(parameters: Any, batch: Any) -> Any:
        leaves = jax().tree_util.tree_leaves(parameters)
        return h(parameters, batch) + eta / 2 * sum((leaf**2).sum() for leaf in leaves)

    optimizer = kfac_jax.Optimizer(
        jax().value_and_grad(objective), l2_reg=eta, learning_rate_schedule=lambda _: 1.0,
        momentum_schedule=lambda _: 0.0, damping_schedule=lambda _: case.damping - eta, num_burnin_steps=0,
        estimation_mode="fisher_exact", curvature_ema=0.95, inverse_update_period=1)
    parameters, batch = arguments(case)
    state = optimizer.init(parameters, jax().random.PRNGKey(0), batch)
    parameters, state, _ = optimizer.step(parameters, state, jax().random.PRNGKey(0), batch=batch)
    moved = DIALECTS[DIALECT].ours({"direction": numpy(parameters)}, case)["direction"]
    for new, W, step in zip(moved, case.weights, cases.reference(case)["step"], strict=True):
        assert cases.distance(new - W, step) < TOLERANCE
    A, G = factors(state.estimator_state)
    assert max(map(cases.distance, A, cases.reference(case)["A"])) < TOLERANCE
    assert max(map(cases.distance, G, cases.reference(case)["G"])) < TOLERANCE
    # The second batch is the first one at other weights: their average is (0.95 old + new) / 1.95.
    there = cases.reference(case.replace(weights=tuple(moved)))
    _, state, _ = optimizer.step(parameters, state, jax().random.PRNGKey(1), batch=batch)
    for theirs, old, new in zip(factors(state.estimator_state)[1], cases.reference(case)["G"], there["G"], strict=True):
        assert cases.distance(theirs, (0.95 * old + new) / 1.95) < TOLERANCE
    assert cases.distance(state.estimator_state.blocks_states[0].factors[0].weight, 1.95) < TOLERANCE


def test_the_default_is_that_of_the_table() -> None:
    import kfac_jax

    estimator = kfac_jax.BlockDiagonalCurvature(loss_function(cases.case("gaussian")))
    assert estimator.default_estimation_mode == "ggn_curvature_prop"
