# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 3
#
# The questions stand at the end of [tutorial 3](../03_hessian_gauss_newton_fisher.py). Try them first.

# %%
import numpy as np

import kfac_ref as kr

rng = np.random.default_rng(0)
model = kr.Model(kr.MLP((2, 3, 3), "tanh"), kr.Categorical())
weights = [rng.standard_normal(s) for s in model.network.shapes]
x, y = rng.standard_normal((11, 2)), rng.integers(0, 3, 11)
at = model.at(weights, x)
squares = kr.Model(kr.MLP((2, 3, 2), "tanh"), kr.Gaussian())
here = squares.at([rng.standard_normal(s) for s in squares.network.shapes], x)
F = kr.fisher_matrix(here)

# %% [markdown]
# ## 1. F_R of independent bits
#
# For one bit -log p(y | z) = log(1 + exp(z)) - y z, with the derivative p - y. The bits are independent, so the loss is
# a sum over them and entry c of D z is p_c - y_c. Its mean over the model's own bits is zero, and F_R = E[(p - y)(p -
# y)^T] is the covariance matrix of the bits. Off the diagonal it is 0, since they are independent. On it is the
# variance of a bit, p (1 - p)^2 + (1 - p) p^2 = p (1 - p).
#
# The other way: H_L is the derivative of p - y with respect to z, diag(p (1 - p)) once more. It contains no y.

# %%
z = np.array([0.7, -1.5])
p = 1 / (1 + np.exp(-z))
F_R = np.zeros((2, 2))
for bits in ([0, 0], [0, 1], [1, 0], [1, 1]):
    probability = np.prod(np.where(bits, p, 1 - p))
    F_R += probability * np.outer(p - bits, p - bits)
print("1. F_R of two bits:", *F_R.round(4).tolist(), "  p (1 - p):", (p * (1 - p)).round(4))
assert np.allclose(F_R, np.diag(p * (1 - p)), rtol=1e-12, atol=1e-15)
assert np.allclose(F_R, kr.Bernoulli().fisher(z[None])[0])

# %% [markdown]
# ## 2. Where the Hessian is positive definite
#
# Of `model`: nowhere. One vector added to all rows of the last W moves the logits of an example alike, so the loss is
# the same all along that line, at any weights. A constant has the second derivative zero, so d^T H d = 0 for every d
# of this kind (they fill four dimensions). The best that H can be is semi-definite.
#
# Of `squares` at y = z: there H = F = J^T J / N, with all J stacked, 22 rows for the 17 weights. It is positive
# definite where the columns of J are independent, as here. With eight examples or fewer it cannot be: that is 16 rows.
#
# Away from there: dL/dz = z - y = -t r, so the second term of H is *linear* in t, and H(t) = F + t S with S = H(1) - F.
# H(t) becomes singular where F^-1 S has an eigenvalue -1/t. The smallest t > 0 for which it has one is -1 over its
# lowest eigenvalue, and up to there H is positive definite. There is always such a t. S is zero in the block of the
# last layer, in whose weights z is linear, but not beside it. So take u in the last layer and w in layer 0 with u^T S w
# not zero: (c u + w)^T S (c u + w) = 2 c u^T S w + w^T S w takes both signs as c varies. S has eigenvalues of both
# signs, then, and so has F^-1 S.
#
# How large it is depends on r, and even more on F. Only a lower bound is certain: the lowest eigenvalue of F over the
# largest absolute eigenvalue of S. The lowest of F is below 1e-6 here, and of ten random r none allows a t of 0.1.

# %%
flat = kr.params.unflatten(np.concatenate([np.zeros(9), np.kron(rng.standard_normal(4), np.ones(3))]),
                           model.network.shapes)
for scale in (0.1, 1, 3):
    point = model.at(kr.params.scale(scale, weights), x)
    moved = model.at(kr.params.add(point.weights, flat), x)
    assert np.isclose(moved.loss(y), point.loss(y))
    assert all(np.allclose(part, 0, atol=1e-12) for part in kr.hessian.hessian_product(point, y, flat))
lowest = np.linalg.eigvalsh(F)[0]
assert 1e-7 < lowest < 1e-6
assert np.linalg.matrix_rank(kr.fisher_matrix(here.take(slice(8))), 1e-12) <= 16
limits = []
for _ in range(10):
    r = rng.standard_normal(here.z.shape)
    S = kr.hessian.hessian(here, here.z + r) - F
    limits.append(-1 / np.linalg.eigvals(np.linalg.solve(F, S)).real.min())
    below, above = (np.linalg.eigvalsh(kr.hessian.hessian(here, here.z + t * limits[-1] * r))[0] for t in (0.5, 2))
    assert below > 0.1 * lowest
    assert above < -0.1 * lowest
    assert np.allclose(S[9:, 9:], 0, atol=1e-12)
    assert np.linalg.eigvalsh(S)[0] < -0.01 < 0.01 < np.linalg.eigvalsh(S)[-1]
    assert limits[-1] > 0.99 * lowest / np.linalg.norm(S, 2)
print(f"2. positive definite up to t between {min(limits):.0e} and {max(limits):.0e} for ten r; F from {lowest:.0e} up")
assert max(limits) < 0.1

# %% [markdown]
# ## 3. A Gaussian of variance sigma^2
#
# -log p = ||z - y||^2 / (2 sigma^2) + const. The gradient is divided by sigma^2. F_R = E[(z - y)(z - y)^T] / sigma^4
# with targets drawn at that variance: sigma^2 I / sigma^4 = I / sigma^2. So F is divided by sigma^2 too, and F^-1 grad
# stays as it is: the natural gradient does not know the unit in which the loss is measured.
#
# Damping does. (F / sigma^2 + lambda I)^-1 grad / sigma^2 = (F + sigma^2 lambda I)^-1 grad, so the same lambda damps
# sigma^2 times as much. For the same step lambda is divided by sigma^2, too.

# %%
sigma, lambda_ = 3.0, 0.1
targets = rng.standard_normal(here.z.shape)
grad = kr.params.flatten(here.gradient(targets))
grad_sigma = grad / sigma**2
signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])          # mean zero, covariance I: as good as all draws
drawn = here.z + sigma * signs[:, None, :]
F_sigma = kr.fisher_matrix(here, kr.sampled(drawn)) / sigma**4  # its gradients are z - y, not yet over sigma^2
assert np.allclose(F_sigma, F / sigma**2, rtol=1e-10, atol=1e-12)
assert np.allclose(np.linalg.solve(F_sigma, grad_sigma), np.linalg.solve(F, grad), rtol=1e-5)


def damped(F, grad, damping):
    return np.linalg.solve(F + damping * np.eye(len(F)), grad)


step = damped(F, grad, lambda_)
assert np.allclose(damped(F_sigma, grad_sigma, lambda_ / sigma**2), step, rtol=1e-8, atol=1e-10)
off = np.linalg.norm(damped(F_sigma, grad_sigma, lambda_) - step) / np.linalg.norm(step)
print(f"3. variance {sigma**2:.0f}: the same natural gradient; damped alike, the step is off by {off:.2f}")
assert off > 0.1

# %% [markdown]
# ## 4. Gauss-Newton as a loop
#
# The einsum adds up J_n^T H_L J_n over the examples. So does a loop, with the Jacobian of one example, (C, P), at a
# time: it never holds more than one of them, but runs N times through Python.

# %%
GN, directions = 0, [kr.params.unflatten(e, model.network.shapes) for e in np.eye(21)]
for n in range(len(x)):
    point = at.take(slice(n, n + 1))
    J = np.column_stack([point.tangent(V)[0] for V in directions])              # (C, P)
    p = np.exp(point.z[0]) / np.exp(point.z[0]).sum()
    GN = GN + J.T @ (np.diag(p) - np.outer(p, p)) @ J / len(x)
print("4. the sum over", len(x), "examples is the exact Fisher:", np.allclose(GN, kr.fisher_matrix(at)))
assert np.allclose(GN, kr.fisher_matrix(at), rtol=1e-10, atol=1e-12)
