# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 5
#
# The questions stand at the end of [tutorial 5](../05_natural_gradient.py). Try them first.

# %%
import numpy as np
import scipy.special

import kfac_ref as kr

y = np.array([0.3, 0.7, 1.0, 1.3, 1.7])
theta, minimum = np.array([-0.5, 0.9]), np.array([y.mean(), np.log(y.std())])       # (m, u) with u = log s


def grad(m, u):
    return np.array([(m - y.mean()) / np.exp(2 * u), 1 - ((m - y.mean())**2 + y.var()) / np.exp(2 * u)])


def F(m, u):
    return np.diag([np.exp(-2 * u), 2.0])


def path(start, epsilon, steps, F, variance):
    """Return the (m, u) of natural steps of size epsilon, made in (m, v = s^2) where `variance` is true."""
    points = [np.asarray(start)]
    for _ in range(steps):
        m, u = points[-1]
        J = np.diag([1.0, 1 / (2 * np.exp(2 * u)) if variance else 1.0])
        d = -epsilon * np.linalg.solve(J.T @ F(m, u) @ J, J.T @ grad(m, u))
        points.append(np.array([m + d[0], np.log(np.exp(2 * u) + d[1]) / 2 if variance else u + d[1]]))
    return np.array(points)


# %% [markdown]
# ## 1. KL and the Fisher of a softmax network
#
# On a network KL is the mean over the inputs of the KL of the predictions. For one input it has its minimum, zero, at d
# = 0: no constant, no linear term. Its second derivatives there are the mean of the Hessian of -log p over targets of
# the model, which is that input's Fisher; the argument of the tutorial nowhere asks what p is. So the error is of third
# order, and halving d divides it by about eight, once d is so short that the next order is small beside it.

# %%
rng = np.random.default_rng(0)
model = kr.Model(kr.MLP((3, 4, 3), "tanh"), kr.Categorical())
weights, x = model.init(rng), rng.standard_normal((5, 3))
at, flat = model.at(weights, x), kr.params.flatten(weights)
F_net, d = kr.fisher_matrix(at), rng.standard_normal(len(flat))
errors = []
for length in 0.2 / 2.0**np.arange(4):
    step = length * d / np.linalg.norm(d)
    there = model.at(kr.params.unflatten(flat + step, model.network.shapes), x)
    log_p, log_q = (scipy.special.log_softmax(point.z, axis=1) for point in (at, there))
    errors.append(np.sum(np.exp(log_p) * (log_p - log_q), axis=1).mean() - step @ F_net @ step / 2)
orders = np.log2(np.divide(errors[:-1], errors[1:]))
print("the error goes with this power of the length:", orders.round(2))
assert abs(orders[-1] - 3) < 0.1

# %% [markdown]
# ## 2. Two natural steps, or one
#
# In (m, v) the Fisher is diag(1/v, 1/(2 v^2)) and the gradient ((m - mean y) / v, (v - c) / (2 v^2)). Here c stands for
# var(y) + (m - mean y)^2. So F^-1 grad h = (m - mean y, v - c), and a step of size 1 sets m to the mean of y, and v to
# c with the *old* m: the variance that fits the data best around that m. The second step starts from the right m, where
# c is var(y).
#
# In eta = (E[y], E[y^2]) one step is enough. Let phi = (m/v, -1/(2v)), the natural parameters (not the nonlinearity of
# tutorial 2). Then -log p(y) = psi(phi) - phi_1 y - phi_2 y^2, where psi is the log of the integral that makes p add up
# to 1. Differentiate that integral: the gradient of psi is eta. So h = psi(phi) - phi^T t, with t the means of y and
# y^2 in the data, has the gradient eta - t. The second derivative of -log p is that of psi, whatever y is, so the
# Fisher is F_phi = d eta / d phi. With J = d phi / d eta = F_phi^-1,
#
# $$ F' = J^T F_\phi J = F_\phi^{-1}, \qquad \nabla h' = J^T(\eta - t), \qquad F'^{-1} \nabla h' = \eta - t $$
#
# Minus that, added to eta, is t. The direction in theta is the same in all parameters; where a long step ends is not.

# %%
t = np.array([y.mean(), np.mean(y**2)])
for m, u in [theta, *rng.normal(size=(5, 2)) * [3, 1]]:
    one, two = path((m, u), 1.0, 2, F, variance=True)[1:]
    assert np.allclose(one, [y.mean(), np.log(y.var() + (m - y.mean())**2) / 2])
    assert np.allclose(two, minimum)
    v = np.exp(2 * u)
    J = np.array([[1, 0], [-m / v, 1 / (2 * v)]])                # u = log(E[y^2] - E[y]^2) / 2
    natural = np.linalg.solve(J.T @ F(m, u) @ J, J.T @ grad(m, u))
    assert np.allclose(natural, [m, v + m**2] - t)
away = np.linalg.norm(path(theta, 1.0, 1, F, variance=False)[-1] - minimum)
print(f"two steps in (m, s^2), one in (E[y], E[y^2]): at the minimum; one in (m, log s): {away:.2f} away")
assert away > 0.5

# %% [markdown]
# ## 3. The empirical Fisher in `path`
#
# Yes, they stay together. Each of the five gradients becomes J^T times itself, so the mean of their outer products,
# F_emp, becomes J^T F_emp J, as the Fisher does. Invariance is no sign of the right matrix. Both paths go to the
# minimum: F_emp is positive definite, so small steps lower h wherever the mean gradient is not zero, and it is zero
# there alone. From theta they go nearly along the curve of the true Fisher, at another speed; from other starts the
# directions are tens of degrees apart. F_emp - grad grad^T is a covariance C, and with q = grad^T C^-1 grad this gives
# grad^T F_emp^-1 grad = q / (1 + q) < 1: a small step of size epsilon lowers h by less than epsilon, to first order,
# however far away the start is.

# %%
def empirical(m, u):
    each = np.array([(m - y) / np.exp(2 * u), 1 - (m - y)**2 / np.exp(2 * u)])      # one column for each number y
    return each @ each.T / len(y)


apart = []
for epsilon in (0.05, 0.025, 0.0125):
    p, q = (path(theta, epsilon, round(5 / epsilon), empirical, variance) for variance in (False, True))
    apart.append(np.linalg.norm(p - q, axis=1).max())
    assert np.linalg.norm(p[-1] - minimum) < 0.01
print("largest distance of the two paths:", np.round(apart, 4))
assert np.allclose(np.log2(np.divide(apart[:-1], apart[1:])), 1, atol=0.2)          # of order epsilon, as before
for start, low, high in ((theta, 4, 12), (np.array([0.1, -0.15]), 25, 60), (np.array([-50, 0.9]), 60, 90)):
    g = grad(*start)
    a, b = (np.linalg.solve(C(*start), g) for C in (F, empirical))
    degrees = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    print(f"at {start}: {degrees:2.0f} degrees apart; h falls at a rate of {g @ a:.2f}, with the empirical {g @ b:.2f}")
    assert low < degrees < high
    assert g @ b < 1
assert g @ a > 1000                                              # far away the natural gradient is not held back

# %% [markdown]
# ## 4. What is the same in all parameters
#
# grad' = J^T grad, F' = J^T F J, F'^-1 = J^-1 F^-1 J^-T and d' = J^-1 d. A number is the same where every J cancels: in
# **grad^T F^-1 grad** and in **d^T F d**, but not in ||grad||^2 (J J^T is left) or in the trace of F (J J^T again).
# For d^T F d take d as a small step. The difference of two given models does not become J^-1 d exactly where J changes
# along the way: then d^T F d is the same up to a cubic error only. KL is the same at every distance.

# %%
J, g, d = np.array([[1.0, 2.0], [-0.5, 3.0]]), grad(*theta), np.array([0.8, 0.6])
g_, F_, d_ = J.T @ g, J.T @ F(*theta) @ J, np.linalg.solve(J, d)
for name, one, two, same in (
        ("||grad||^2", g @ g, g_ @ g_, False), ("trace F", np.trace(F(*theta)), np.trace(F_), False),
        ("grad^T F^-1 grad", g @ np.linalg.solve(F(*theta), g), g_ @ np.linalg.solve(F_, g_), True),
        ("d^T F d", d @ F(*theta) @ d, d_ @ F_ @ d_, True)):
    print(f"{name:17} {one:6.3f} {two:6.3f}")
    assert np.isclose(one, two) == same
m, u = theta
gap = []
for e in (0.01 * d, 0.005 * d):                                  # the same change of the model in (m, u) and in (m, v)
    dv = np.exp(2 * (u + e[1])) - np.exp(2 * u)
    gap.append(e @ F(m, u) @ e - (e[0]**2 / np.exp(2 * u) + dv**2 / (2 * np.exp(4 * u))))   # F' = diag(1/v, 1/(2 v^2))
print(f"d^T F d in (m, log s) and in (m, s^2): the difference is of order {np.log2(gap[0] / gap[1]):.2f}")
assert abs(np.log2(gap[0] / gap[1]) - 3) < 0.1
