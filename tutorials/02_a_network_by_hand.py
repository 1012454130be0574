# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 2. A network by hand
#
# **What you will do.** Write the forward and the backward pass of a two-layer network in eight lines, check them in
# two ways, and differentiate the output in a direction of the weights.
#
# **What you will learn.** That the gradient of one example is an outer product `g a^T`, which is where K-FAC's A and
# G come from; what `g` is, exactly; and that multiplying with the Jacobian of the network, from either side, costs no
# more than a pass or two through it.
#
# **What you need.** The chain rule, tutorial 1.

# %%
import numpy as np

import kfac_ref as kr
from kfac_ref import oracle, plotting

rng = np.random.default_rng(0)

# %% [markdown]
# ## Forward
#
# Examples are **rows**: x is (N, 2), N examples of two inputs. Each layer appends a one to its input `a`, so that the
# bias is the last column of its weights W; phi is the nonlinearity, here tanh, and `s` the *pre-activation*, what
# goes into it:
#
# $$ \bar a_i = [a_i, 1], \qquad s_i = \bar a_i W_i^T, \qquad a_{i+1} = \phi(s_i) $$
#
# The last layer has no nonlinearity. Its output z holds the *natural parameters* of a likelihood: in log p(y | z) the
# terms that contain both z and y are linear in z. For the logits of the five classes here, log p = z_y - log sum_c
# exp(z_c); for the mean of a Gaussian of variance 1, log p = z.y - z.z/2 - y.y/2 + const. So the second derivative of
# log p with respect to z does not contain y. Tutorial 3 needs this.

# %%
N, sizes = 7, (2, 3, 5)
x = rng.standard_normal((N, 2))
y = rng.integers(0, 5, N)
W = [rng.standard_normal((3, 3)), rng.standard_normal((5, 4))]


def ones(a):
    return np.column_stack([a, np.ones(len(a))])


def forward(W, x):
    a_bar_0 = ones(x)
    s_0 = a_bar_0 @ W[0].T
    a_bar_1 = ones(np.tanh(s_0))
    z = a_bar_1 @ W[1].T
    return a_bar_0, s_0, a_bar_1, z


a_bar_0, s_0, a_bar_1, z = forward(W, x)
print("z:", z.shape)

# %% [markdown]
# ## Backward
#
# For one example, let `g_i` be the gradient of its own loss with respect to the pre-activation `s_i`. It comes from
# the layer above, and the bias column carries nothing backwards:
#
# $$ g_1 = \partial L / \partial z, \qquad g_0 = (g_1 W_1[:, :-1]) \odot \phi'(s_0) $$
#
# (The circled dot multiplies entry by entry; `[:, :-1]` leaves the bias column out.) For the softmax with
# cross-entropy, the gradient with respect to z is `p - onehot(y)`: the predicted probabilities, less 1 at the label.

# %%
def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def backward(W, s_0, dz):
    g_1 = dz
    g_0 = (g_1 @ W[1][:, :-1]) * (1 - np.tanh(s_0)**2)
    return g_0, g_1


dz = softmax(z)
dz[np.arange(N), y] -= 1
g_0, g_1 = backward(W, s_0, dz)

# %% [markdown]
# ## The gradient of one example is an outer product
#
# $$ \partial L_n / \partial W_i = g_i^{(n)}\, \bar a_i^{(n)\,T} $$
#
# The mean over the examples is therefore one matrix product. Remember this line: the Fisher matrix is made of squares
# of these outer products, and K-FAC's A and G are the two halves of them, A of a_bar and G of g.

# %%
one = np.outer(g_0[2], a_bar_0[2])                              # of example 2, in layer 0
grad = [g_0.T @ a_bar_0 / N, g_1.T @ a_bar_1 / N]               # the mean over all
assert np.allclose(grad[0], np.mean([np.outer(g_0[n], a_bar_0[n]) for n in range(N)], axis=0))

# %% [markdown]
# ## Check 1: differences
#
# Move the weights a little along a direction V and compare the slope. *Central differences* take the difference of
# the loss on both sides over 2h, h being the step. They are good to about ten digits, not to sixteen: the error is
# about h^2 from the cubic term, and about 1e-16 / h from rounding, so that h between 1e-5 and 1e-6 is best.

# %%
def loss(W):
    z = forward(W, x)[-1]
    return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(N), y])


V = [rng.standard_normal(w.shape) for w in W]
slope = sum(np.vdot(g, v) for g, v in zip(grad, V, strict=True))
steps, errors = 10.0 ** np.arange(-1, -13, -1), []
for h in steps:
    difference = (loss([w + h * v for w, v in zip(W, V, strict=True)]) -
                  loss([w - h * v for w, v in zip(W, V, strict=True)])) / (2 * h)
    errors.append(abs(difference - slope) / abs(slope))
best = steps[np.argmin(errors)]
print(f"best step {best:.0e}: relative error {min(errors):.0e}")
assert min(errors) < 1e-8
assert 1e-7 < best < 1e-3
assert np.isclose(errors[0] / errors[2], 1e4, rtol=0.2)         # a step 100 times smaller: h^2 says 10^4

# %%
figure = plotting.lines(steps, {"central difference": errors, "a multiple of h^2": errors[1] * (steps / steps[1])**2,
                                "1e-16 / h": 1e-16 / steps}, "step h", "relative error of the slope", "")
figure.axes[0].set(ylim=(1e-13, 1))
plotting.Picture(figure, "Error of the central difference against its step, both logarithmic: it falls like h^2 to "
                 f"{min(errors):.0e} at h = {best:.0e}, then rises like 1e-16 / h to {errors[-1]:.0e} at h = 1e-12.")

# %% [markdown]
# ## The R-operator: differentiating forwards
#
# Let J be the Jacobian of the network, the derivative of the outputs z with respect to all weights. It is never
# formed: the change of the output when the weights move along V, `J V`, is another forward pass, with the product
# rule in each line (Pearlmutter calls it the R-operator). It costs as much as two forward passes, and needs no
# backward pass at all:

# %%
def tangent(W, V, a_bar_0, s_0, a_bar_1):
    R_s_0 = a_bar_0 @ V[0].T
    R_a_1 = (1 - np.tanh(s_0)**2) * R_s_0
    return R_a_1 @ W[1][:, :-1].T + a_bar_1 @ V[1].T


Jv = tangent(W, V, a_bar_0, s_0, a_bar_1)
h = 1e-5
numeric = (forward([w + h * v for w, v in zip(W, V, strict=True)], x)[-1] -
           forward([w - h * v for w, v in zip(W, V, strict=True)], x)[-1]) / (2 * h)
assert np.allclose(Jv, numeric, rtol=1e-7, atol=1e-7)

# %% [markdown]
# ## Check 2: adjoints
#
# The backward pass multiplies with the other side, `J^T u`: the gradient when u is sent back from the output. J V and
# J^T u are made of different lines of code, and must satisfy
#
# $$ \langle u, J V \rangle = \langle J^T u, V \rangle $$
#
# for every u and V, to **all** digits. (Two maps with this property are called adjoint.) With no step size to choose it
# is the sharpest test of a backward pass, given a right tangent, which the cell above compared with differences. It
# does not see a mistake made in both, such as no phi' (the last lines show it), nor one in `dz`. Check 1 sees these.

# %%
u = rng.standard_normal(z.shape)
b_0, b_1 = backward(W, s_0, u)
left, right = np.vdot(u, Jv), np.vdot(b_0.T @ a_bar_0, V[0]) + np.vdot(b_1.T @ a_bar_1, V[1])
print(f"adjoint test: {left:.12f} and {right:.12f}")
assert abs(left - right) < 1e-12 * abs(left)
b_0, b_1 = backward(W, 0 * s_0, u)                              # phi'(0) = 1: without the slope, here and there
left = np.vdot(u, tangent(W, V, a_bar_0, 0 * s_0, a_bar_1))
right = np.vdot(b_0.T @ a_bar_0, V[0]) + np.vdot(b_1.T @ a_bar_1, V[1])
print(f"without the slope in both: {left:.12f} and {right:.12f}")
assert abs(left - right) < 1e-12 * abs(left)

# %% [markdown]
# ### Confusion box: the gradient after the nonlinearity
#
# `g` belongs to the pre-activation s. Frameworks let you read the gradient of any tensor (by a "hook"); read at the
# *output* of the nonlinearity, the slope phi'(s) is not yet multiplied in. The wrong code leaves it out; what comes
# out is too large everywhere but at s = 0, and the more so the flatter tanh is there:

# %%
after = g_1 @ W[1][:, :-1]                                      # no slope
wrong = np.linalg.norm(after) / np.linalg.norm(g_0)
print(f"{wrong:.1f} times too large in this layer")
print(oracle.CATALOGUE["g after the nonlinearity"])
assert wrong > 1
assert np.all(np.abs(after) > np.abs(g_0))

# %% [markdown]
# ### Confusion box: the gradient of the mean
#
# Frameworks differentiate the MEAN loss: each example's gradient then carries a factor 1/N. As long as they are only
# added up that is right. When they are squared, as in K-FAC's G, the mean of g g^T over the examples, the factor is
# squared too, and G is N^2 times too small. (For short, this cell takes g at the labels of the data. K-FAC's own G does
# not: tutorial 4.)

# %%
G = g_1.T @ g_1 / N
wrong_G = (g_1 / N).T @ (g_1 / N) / N
print(f"right over wrong: {np.trace(G) / np.trace(wrong_G):.0f} = N^2 with N = {N}")
print(oracle.CATALOGUE["G of mean-loss gradients, averaged"])
assert np.isclose(np.trace(G) / np.trace(wrong_G), N**2)

# %% [markdown]
# ## In practice
#
# The same with the package, which does it for any depth, nonlinearity and likelihood:

# %%
model = kr.Model(kr.MLP(sizes, "tanh"), kr.Categorical())
at = model.at(W, x)
g = at.backward(model.likelihood.gradient(at.z, y))
assert np.allclose(at.z, z)
assert all(np.allclose(mine, theirs) for mine, theirs in zip((g_0, g_1), g, strict=True))
assert all(np.allclose(mine, theirs) for mine, theirs in zip(grad, at.gradient(y), strict=True))
assert np.allclose(at.tangent(V), Jv)
assert np.isclose(at.loss(y), loss(W))
print("the package agrees")

# %% [markdown]
# ## Exercises
#
# 1. Replace tanh by relu: which single expression changes in `forward`, which in `backward` and in `tangent`?
#    Some assertions of this page then fail. Which, and why?
# 2. Write the backward pass of the Gaussian likelihood, -log p = 1/2 ||z - y||^2, and run both checks on it. Which of
#    the two tests the line that is new?
# 3. Send K vectors back at once: let `dz` have shape (K, N, C). Which lines of this page need to change?
# 4. Break the backward pass on purpose: leave the slope out, put 1 - tanh(s) in its place, take the slope of s_1 for
#    that of s_0 in a network of two hidden layers of one width. Which of the two checks notices, and how clearly?
#    And where `tangent` has the same mistake?
#
# [Answers](answers/02_a_network_by_hand.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Martens and Grosse (2015), section 2.1 and appendix C; the code: `kfac_ref/network.py`.
# - Pearlmutter (1994), *Fast exact multiplication by the Hessian*: the R-operator.
