"""SGD and Adam against plain re-implementations on one vector, and against closed forms."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.optimizers import SGD, Adam
from kfac_ref.optimizers.sgd import nesterov_schedule

from .problems import LIKELIHOODS, close, labels, problem, relative

EACH = pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
BOTH = pytest.mark.parametrize("method", [SGD, Adam])


def batches(p, steps, N=6, seed=3):
    """Return a batch a step, so that nothing depends on the data staying the same."""
    rng = np.random.default_rng(seed)
    z = np.zeros((N, p.at.z.shape[1]))
    name = next(name for name, likelihood in LIKELIHOODS.items() if likelihood == p.model.likelihood)
    return [(rng.standard_normal((N, p.at.x.shape[1])), labels(name, z, rng)) for _ in range(steps)]


def run(opt, p, data):
    """Return the vectors theta and the records of a run."""
    state, thetas, records = opt.init(p.at.weights), [], []
    for x, y in data:
        state, record = opt.step(state, x, y)
        thetas.append(params.flatten(state.weights))
        records.append(record)
    return thetas, records


def slope(p, theta, x, y):
    return params.flatten(p.model.at(params.unflatten(theta, p.shapes), x).gradient(y))


def nesterov(p, data, rate, momentum):
    """Return theta of each step: a look ahead along the velocity, its gradient, the new velocity."""
    theta, v, thetas = params.flatten(p.at.weights), 0.0, []
    for t, (x, y) in enumerate(data):
        ahead = theta + momentum(t) * v
        v = momentum(t) * v - rate * slope(p, ahead, x, y)
        theta = theta + v
        thetas.append(theta)
    return thetas


def two_sequences(p, data, rate, mu):
    """Return theta of each step by the two-sequence form of Nesterov (1983), for a constant momentum."""
    theta = ahead = params.flatten(p.at.weights)
    thetas = []
    for x, y in data:
        after = ahead - rate * slope(p, ahead, x, y)
        ahead = after + mu * (after - theta)
        theta = after
        thetas.append(theta)
    return thetas


def heavy_ball(p, data, rate, mu):
    """Return theta of each step with the gradient taken where theta is: Polyak's momentum, not Nesterov's."""
    theta, v, thetas = params.flatten(p.at.weights), 0.0, []
    for x, y in data:
        v = mu * v - rate * slope(p, theta, x, y)
        theta = theta + v
        thetas.append(theta)
    return thetas


# SGD


@EACH
@pytest.mark.parametrize("momentum", [0.0, 0.9, nesterov_schedule(0.8, period=3)])
def test_sgd_is_nesterov_s_form_on_a_vector(likelihood, momentum):
    p = problem(likelihood, weight_decay=0.1)
    data = batches(p, 12)
    thetas, _ = run(SGD(p.model, 0.2, momentum), p, data)
    schedule = momentum if callable(momentum) else lambda t: momentum
    close(thetas, nesterov(p, data, 0.2, schedule), 1e-12)


@EACH
def test_sgd_is_the_two_sequence_form_and_not_the_heavy_ball(likelihood):
    p = problem(likelihood)
    data = batches(p, 12)
    thetas, _ = run(SGD(p.model, 0.2, 0.9), p, data)
    close(thetas, two_sequences(p, data, 0.2, 0.9), 1e-12)
    assert relative(thetas[1], heavy_ball(p, data, 0.2, 0.9)[1]) > 1e-4


@EACH
def test_sgd_without_momentum_is_gradient_descent(likelihood):
    p = problem(likelihood, weight_decay=0.1)
    (theta,), _ = run(SGD(p.model, 0.3, 0.0), p, [(p.at.x, p.y)])
    close(theta, params.flatten(p.at.weights) - 0.3 * params.flatten(p.at.gradient(p.y)), 1e-14)


def test_the_first_step_of_sgd_does_not_depend_on_the_momentum():
    p = problem()
    (one,), _ = run(SGD(p.model, 0.3, 0.0), p, [(p.at.x, p.y)])
    (other,), _ = run(SGD(p.model, 0.3, 0.9), p, [(p.at.x, p.y)])
    np.testing.assert_array_equal(one, other)


def companion(H, rate, mu):
    """Return the matrix that takes (theta_t - theta*, v_t) to the next, for the Hessian H."""
    change = -rate * H
    stay = np.eye(len(H)) + change
    return np.block([[stay, mu * stay], [change, mu * stay]])


def quadratic():
    """Return linear regression with weight decay: h is quadratic, with the Hessian F + eta I."""
    p = problem("gaussian", (4, 3), N=9, weight_decay=0.1)
    H = kr.fisher_matrix(p.at) + 0.1 * np.eye(15)
    theta = params.flatten(p.at.weights)
    return p, H, theta, theta - np.linalg.solve(H, params.flatten(p.at.gradient(p.y)))


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.95])
def test_sgd_on_a_quadratic_is_a_matrix_power(mu):
    p, H, theta, best = quadratic()
    thetas, _ = run(SGD(p.model, 0.2, mu), p, [(p.at.x, p.y)] * 30)
    start = np.concatenate([theta - best, np.zeros(15)])
    expected = [best + (np.linalg.matrix_power(companion(H, 0.2, mu), t) @ start)[:15] for t in range(1, 31)]
    close(thetas, expected, 1e-12)


def test_sgd_on_a_quadratic_converges_below_2_over_the_largest_eigenvalue_and_not_above():
    p, H, theta, best = quadratic()
    edge = 2 / np.linalg.eigvalsh(H)[-1]
    data = [(p.at.x, p.y)] * 200
    below, above = (run(SGD(p.model, c * edge, 0.0), p, data)[0][-1] for c in (0.95, 1.05))
    assert np.linalg.norm(below - best) < 0.1 * np.linalg.norm(theta - best)
    assert np.linalg.norm(above - best) > 10 * np.linalg.norm(theta - best)


def test_the_record_of_sgd():
    p = problem(weight_decay=0.1)
    data = batches(p, 5)
    schedule = nesterov_schedule(0.8, period=2)
    thetas, records = run(SGD(p.model, 0.2, schedule), p, data)
    thetas = [params.flatten(p.at.weights), *thetas]
    for t, ((x, y), record) in enumerate(zip(data, records, strict=True)):
        v = thetas[t] - thetas[t - 1] if t else 0 * thetas[0]
        ahead = p.model.at(params.unflatten(thetas[t] + schedule(t) * v, p.shapes), x)
        close(record.loss, ahead.loss(y), 1e-12)
        close(record.gradient_norm, params.norm(ahead.gradient(y)), 1e-12)
        close(record.step_norm, np.linalg.norm(thetas[t + 1] - thetas[t]), 1e-12)
        assert (record.k, record.batch, record.learning_rate, record.momentum) == (t + 1, 6, 0.2, schedule(t))
        assert set(record.seconds) == {"gradient", "update"}
        assert min(record.seconds.values()) >= 0


# The schedule


@pytest.mark.parametrize("period", [1, 7, 250])
def test_the_schedule_is_one_minus_half_the_reciprocal_of_the_period_s_number(period):
    schedule = nesterov_schedule(1 - 1e-9, period)
    for t in range(12 * period):
        number = t // period + 1
        assert abs(schedule(t) - float(1 - Fraction(1, 2 * number))) < 1e-15


def test_the_schedule_of_the_paper():
    schedule = nesterov_schedule(0.99)
    assert [schedule(t) for t in (0, 249, 250, 499, 750)] == [0.5, 0.5, 0.75, 0.75, 0.875]


@pytest.mark.parametrize("mu_max", [0.999, 0.995, 0.99, 0.9, 0.3, 0.0])
def test_the_schedule_rises_to_its_ceiling_and_stays_there(mu_max):
    values = np.array([nesterov_schedule(mu_max, 1)(t) for t in range(1000)])
    assert (np.diff(values) >= 0).all()
    assert values.max() == values[-1] == mu_max
    assert values[0] == min(0.5, mu_max)


def test_a_ceiling_changes_nothing_below_it():
    low, high = (nesterov_schedule(mu_max, 1) for mu_max in (0.9, 0.999))
    assert [low(t) for t in range(4)] == [high(t) for t in range(4)]
    assert low(400) < high(400)


# Adam


def adam(p, data, rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Return theta of each step; the moments as explicit sums over all gradients, not as recursions."""
    theta, g, thetas = params.flatten(p.at.weights), [], []
    for t, (x, y) in enumerate(data, 1):
        g.append(slope(p, theta, x, y))
        m = sum(beta1 ** (t - s) * g[s - 1] for s in range(1, t + 1)) / sum(beta1 ** (t - s) for s in range(1, t + 1))
        v = sum(beta2 ** (t - s) * g[s - 1]**2 for s in range(1, t + 1)) / sum(beta2 ** (t - s)
                                                                              for s in range(1, t + 1))
        theta = theta - rate * m / (np.sqrt(v) + epsilon)
        thetas.append(theta)
    return thetas


@EACH
@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "beta2": 0.7, "epsilon": 0.1}, {"beta1": 0.0, "beta2": 0.0}])
def test_adam_divides_the_mean_of_gradients_by_the_root_of_the_mean_square(likelihood, settings):
    p = problem(likelihood, weight_decay=0.1)
    data = batches(p, 10)
    thetas, _ = run(Adam(p.model, 0.05, **settings), p, data)
    # 1 - beta2^t cancels to three digits less than it has at t = 1 and beta2 = .999, and the root halves what is lost.
    close(thetas, adam(p, data, 0.05, **settings), 1e-12)


def test_no_setting_of_adam_is_without_effect():
    p = problem()
    data = batches(p, 10)
    base = adam(p, data, 0.05)[-1]
    for settings in ({"beta1": 0.5}, {"beta2": 0.7}, {"epsilon": 0.1}):
        assert relative(adam(p, data, 0.05, **settings)[-1], base) > 1e-3


@EACH
def test_the_first_step_of_adam_is_the_sign_of_the_gradient(likelihood):
    p = problem(likelihood)
    g = params.flatten(p.at.gradient(p.y))
    (theta,), _ = run(Adam(p.model, 0.01, epsilon=1e-15), p, [(p.at.x, p.y)])
    step = theta - params.flatten(p.at.weights)
    assert np.abs(g).min() > 1e-6
    # epsilon is at most 1e-9 of any entry, and theta + step rounds to 1e-16 of theta.
    np.testing.assert_allclose(step, -0.01 * np.sign(g), rtol=1e-8, atol=0)


def test_a_large_epsilon_makes_the_first_step_of_adam_the_gradient():
    p = problem()
    g = params.flatten(p.at.gradient(p.y))
    (theta,), _ = run(Adam(p.model, 0.01 * 1e9, epsilon=1e9), p, [(p.at.x, p.y)])
    # |g| is below 10, so 1e9 + |g| is 1e9 to 1e-8.
    close(theta - params.flatten(p.at.weights), -0.01 * g, 1e-8)


def test_the_record_of_adam():
    p = problem(weight_decay=0.1)
    data = batches(p, 4)
    thetas, records = run(Adam(p.model, 0.02), p, data)
    thetas = [params.flatten(p.at.weights), *thetas]
    for t, ((x, y), record) in enumerate(zip(data, records, strict=True)):
        at = p.model.at(params.unflatten(thetas[t], p.shapes), x)
        close(record.loss, at.loss(y), 1e-12)
        close(record.gradient_norm, params.norm(at.gradient(y)), 1e-12)
        close(record.step_norm, np.linalg.norm(thetas[t + 1] - thetas[t]), 1e-12)
        assert (record.k, record.batch, record.learning_rate) == (t + 1, 6, 0.02)
        assert set(record.seconds) == {"gradient", "update"}


# Both


def moments(state):
    """Return every array of a state."""
    return [a for value in vars(state).values() if isinstance(value, tuple) for a in value]


@BOTH
@EACH
def test_a_state_stepped_twice_gives_the_same_bits_and_does_not_change(method, likelihood):
    p = problem(likelihood)
    data = batches(p, 6)
    opt = method(p.model, 0.1)
    state = opt.init(p.at.weights, seed=1)
    for x, y in data[:3]:
        state, _ = opt.step(state, x, y)
    before = [a.copy() for a in (*moments(state), *data[3])]
    once, _ = opt.step(state, *data[3])
    later = once
    for x, y in data[4:]:
        later, _ = opt.step(later, x, y)
    twice, _ = opt.step(state, *data[3])
    for a, b in zip(moments(once), moments(twice), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, (*moments(state), *data[3]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert relative(params.flatten(later.weights), params.flatten(once.weights)) > 1e-3


@BOTH
def test_the_weights_passed_in_do_not_change(method):
    p = problem()
    before = params.flatten(p.at.weights)
    run(method(p.model, 0.1), p, batches(p, 5))
    np.testing.assert_array_equal(params.flatten(p.at.weights), before)


@BOTH
@EACH
def test_float32_stays_float32(method, likelihood):
    p, p32 = problem(likelihood), problem(likelihood, dtype=np.float32)
    data = batches(p, 5)
    opt = method(p.model, 0.01)
    state = opt.init(p32.at.weights)
    for x, y in data:
        state, _ = opt.step(state, x, y)
    assert {a.dtype for a in moments(state)} == {np.dtype(np.float32)}
    # Five steps of float32's 7 digits.
    close(params.flatten(state.weights), run(opt, p, data)[0][-1], 1e-5)


@BOTH
@EACH
def test_the_loss_falls(method, likelihood):
    p = problem(likelihood)
    thetas, records = run(method(p.model, 0.05), p, [(p.at.x, p.y)] * 30)
    assert p.model.at(params.unflatten(thetas[-1], p.shapes), p.at.x).loss(p.y) < records[0].loss - 0.05


@BOTH
def test_a_zero_gradient_gives_a_zero_step(method):
    p = problem("gaussian")
    thetas, _ = run(method(p.model, 0.1), p, [(p.at.x, p.at.z)] * 3)
    for theta in thetas:
        np.testing.assert_array_equal(theta, params.flatten(p.at.weights))


@BOTH
def test_weights_of_another_network_are_refused(method):
    p = problem()
    with pytest.raises(ValueError, match=r"weights\[1\] must have shape \(3, 6\), got \(6, 3\)"):
        method(p.model, 0.1).init([p.at.weights[0], p.at.weights[1].T])


@pytest.mark.parametrize(("method", "setting", "message"), [
    (SGD, {"learning_rate": 0.0}, "learning_rate must be above 0, got 0"),
    (SGD, {"learning_rate": np.nan}, "learning_rate must be above 0, got nan"),
    (SGD, {"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
    (SGD, {"learning_rate": 0.1, "momentum": -0.1}, "momentum must be at least 0 and (at most|below) 1, got -0.1"),
    (SGD, {"learning_rate": 0.1, "momentum": 1.5}, "momentum must be at least 0 and (at most|below) 1, got 1.5"),
    (Adam, {"learning_rate": -1.0}, "learning_rate must be above 0, got -1"),
    (Adam, {"beta1": -0.1}, "beta1 must be at least 0 and (at most|below) 1, got -0.1"),
    (Adam, {"beta2": 1.1}, "beta2 must be at least 0 and (at most|below) 1, got 1.1"),
    (Adam, {"epsilon": 0.0}, "epsilon must be above 0, got 0"),
    (Adam, {"epsilon": np.inf}, "epsilon must be above 0, got inf"),
])
def test_settings_out_of_range_are_refused(method, setting, message):
    with pytest.raises(ValueError, match=message):
        method(problem().model, **setting)


@pytest.mark.parametrize(("arguments", "message"), [
    ((-0.1,), "mu_max must be at least 0 and (at most|below) 1, got -0.1"),
    ((1.1,), "mu_max must be at least 0 and (at most|below) 1, got 1.1"),
    ((0.9, 0), "period must be an integer of at least 1, got 0"),
    ((0.9, 2.5), "period must be an integer of at least 1, got 2.5"),
])
def test_schedules_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nesterov_schedule(*arguments)


# These ranges are half-open, [0, 1): at 1 a velocity never fades, and a moment never moves.
@pytest.mark.parametrize(("make", "name"), [
    (lambda model: SGD(model, 0.1, momentum=1.0), "momentum"),
    (lambda model: Adam(model, beta1=1.0), "beta1"),
    (lambda model: Adam(model, beta2=1.0), "beta2"),
])
def test_one_is_refused_by_a_message_that_one_does_not_satisfy(make, name):
    with pytest.raises(ValueError, match=f"^{name} must .*below 1, got 1"):
        make(problem().model)


@pytest.mark.parametrize("method", [lambda model: SGD(model, 0.1), Adam, kr.optimizers.KFAC,
                                    kr.optimizers.NaturalGradient])
def test_a_caller_who_changes_the_weights_later_does_not_change_the_run(method):
    p = problem()
    opt = method(p.model)
    for order in "CF":
        weights = [np.array(w, order=order) for w in p.at.weights]
        before = [w.tobytes() for w in weights]
        state = opt.init(weights)
        assert [w.tobytes() for w in state.weights] == before
        history = kr.training.train(opt, weights, p.at.x, p.y, 0)
        for w in weights:
            w[:] = 7.0
        for kept in (state.weights, history.state.weights, history.averaged):
            assert [w.tobytes() for w in kept] == before
