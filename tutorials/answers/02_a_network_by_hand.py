# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 2
#
# The questions stand at the end of [tutorial 2](../02_a_network_by_hand.py). Try them first.
#
# The three passes here are the tutorial's, for any depth. `slopes` is the list of phi'(s_i) of the hidden layers: as an
# argument it is easy to change, and to break.

# %%
import numpy as np

import kfac_ref as kr

rng = np.random.default_rng(0)
N, sizes = 7, (2, 3, 3, 5)
shapes = kr.MLP(sizes).shapes
x, y = rng.standard_normal((N, 2)), rng.integers(0, 5, N)
W, V = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))


def forward(W, x, phi):
    a, a_bar, s = x, [], []
    for w in W:
        a_bar.append(np.column_stack([a, np.ones(len(a))]))
        s.append(a_bar[-1] @ w.T)
        a = phi(s[-1])
    return a_bar, s                                             # the last s is z


def backward(W, slopes, dz):
    g = [dz]
    for w, slope in zip(W[:0:-1], slopes[::-1], strict=True):
        g.insert(0, (g[0] @ w[:, :-1]) * slope)
    return g


def tangent(W, V, a_bar, slopes):
    R_s = a_bar[0] @ V[0].T
    for w, v, a, slope in zip(W[1:], V[1:], a_bar[1:], slopes, strict=True):
        R_s = (slope * R_s) @ w[:, :-1].T + a @ v.T
    return R_s


def differences(nll, phi, g, a_bar, h=1e-5):                     # Check 1: relative error of the slope along V
    up, down = (np.mean(nll(forward([w + t * v for w, v in zip(W, V, strict=True)], x, phi)[1][-1])) for t in (h, -h))
    slope = sum(np.vdot(gi.T @ a / N, v) for gi, a, v in zip(g, a_bar, V, strict=True))
    return abs((up - down) / (2 * h) / slope - 1)


def adjoints(a_bar, back, tang, u):                             # Check 2, with the slopes of backward and of tangent
    left = np.vdot(u, tangent(W, V, a_bar, tang))
    right = sum(np.vdot(g.T @ a, v) for g, a, v in zip(backward(W, back, u), a_bar, V, strict=True))
    return abs(left - right) / abs(left)


def cross_entropy(z):
    return kr.Categorical().nll(z, y)


u = rng.standard_normal((N, 5))

# %% [markdown]
# ## 1. relu in place of tanh
#
# In `forward`, `np.tanh(s_0)` becomes `np.maximum(s_0, 0)`. In `backward` and in `tangent` it is one and the same
# expression, the slope: `1 - np.tanh(s_0)**2` becomes `s_0 > 0`, which is 1 or 0. Nothing else knows of phi.
#
# Three assertions of the tutorial then fail. The ratio of 10^4: a step h so large that some s changes its sign crosses
# a kink, and the error of the difference is no multiple of h^2 any more. "Too large everywhere" in the first confusion
# box: it becomes "never too small", since a slope is 1 or 0. And the last cell, until its model, too, is given "relu".
# One assertion still passes and has lost its sense: phi'(0) is 0 now, so `0 * s_0` sets the slope to 0, in `backward`
# and in `tangent`, and no longer leaves it out.

# %%
def relu(s):
    return np.maximum(s, 0)


a_bar, s = forward(W, x, relu)
slopes = [si > 0 for si in s[:-1]]
g = backward(W, slopes, kr.Categorical().gradient(s[-1], y))
at = kr.Model(kr.MLP(sizes, "relu"), kr.Categorical()).at(W, x)
assert all(np.allclose(gi.T @ a / N, theirs) for gi, a, theirs in zip(g, a_bar, at.gradient(y), strict=True))
assert np.allclose(tangent(W, V, a_bar, slopes), at.tangent(V))
assert adjoints(a_bar, slopes, slopes, u) < 1e-12
errors = [differences(cross_entropy, relu, g, a_bar, h) for h in (1e-1, 1e-3)]
print("1. relu: differences are off by {:.1g} at h = 0.1, {:.1g} at 0.001: not 10^4 times".format(*errors))
assert errors[0] > 1e6 * errors[1]

# %% [markdown]
# ## 2. A Gaussian's backward pass
#
# The derivative of 1/2 ||z - y||^2 is dz = z - y: the 1/2 cancels the 2 of the square. That line is all that changes,
# since `backward` does not know where its dz comes from. Check 1 covers the new line. Check 2 does not: it sends any u
# back, so it tests the network alone. Forget the half and write dz = 2 (z - y): the adjoint test passes even with this
# dz for its u. Check 1 finds the slope of the loss at half of what the gradient says.

# %%
targets = rng.standard_normal((N, 5))
a_bar, s = forward(W, x, np.tanh)
slopes = [1 - np.tanh(si)**2 for si in s[:-1]]
for name, dz in (("z - y", s[-1] - targets), ("2 (z - y)", 2 * (s[-1] - targets))):
    first = differences(lambda z: kr.Gaussian().nll(z, targets), np.tanh, backward(W, slopes, dz), a_bar)
    second = adjoints(a_bar, slopes, slopes, dz)
    print(f"2. dz = {name:9}  check 1 is off by {first:.2f}, check 2 by {second:.2f}")
    assert first < 1e-6 if name == "z - y" else np.isclose(first, 0.5)
    assert second < 1e-12

# %% [markdown]
# ## 3. K vectors at once
#
# In `backward`, none. `@` multiplies the last two axes for each of the K, and the slope, (N, d), is broadcast over K:
# phi'(s) is the same for all vectors sent back. What must change is every line with `g.T @ a_bar`, since of three axes
# `.T` reverses all. Swap the last two (`g.swapaxes(-1, -2) @ a_bar`) for K separate gradients. (Where K = N the old
# line runs, and is wrong.) Lines that pick an example must change, too, since axis 0 is now that of K: `g_0[2]` becomes
# `g_0[:, 2]`. And for K-FAC's G, of which `g_1.T @ g_1 / N` is one, lay the stack out as K N rows: the squares are
# summed over K and averaged over the examples.

# %%
K = 4
stack = rng.standard_normal((K, N, 5))
g = backward(W, slopes, stack)
each = [backward(W, slopes, dz) for dz in stack]
assert all(np.allclose(g[i][k], each[k][i]) for i in range(3) for k in range(K))
gradients = g[0].swapaxes(-1, -2) @ a_bar[0]
print("3. shapes of g:", *(gi.shape for gi in g), "  of the K gradients of layer 0:", gradients.shape)
assert np.allclose(gradients, [one[0].T @ a_bar[0] for one in each])
rows = g[0].reshape(-1, 3)
assert np.allclose(rows.T @ rows, sum(one[0].T @ one[0] for one in each))
assert (np.ones((N, N, 3)).T @ a_bar[0]).shape != (N, 3, 3)     # K = N: it runs

# %% [markdown]
# ## 4. A broken backward pass
#
# With a right `tangent`, both checks notice all three mistakes, and clearly: the two sides differ by some per cent to
# half of their size, while a right pass leaves less than 1e-7 (Check 1) or 1e-13 (Check 2). Make the same mistake in
# `tangent` too, as happens where both call one function for the slope, and Check 2 is silent: the two are adjoint, but
# of another Jacobian than the network's. Check 1 still notices, since the loss has no slope in it.
#
# They differ in sharpness. A slope that is wrong by one part in 10^11 is lost in Check 1, which is good to about ten
# digits. Check 2 sees it, far above its rounding.

# %%
dz = kr.Categorical().gradient(s[-1], y)
for name, wrong in {"right": slopes, "left out": [np.ones_like(slope) for slope in slopes],
                    "1 - tanh": [1 - np.tanh(si) for si in s[:-1]], "s_1 for s_0": [slopes[1], slopes[1]]}.items():
    first = differences(cross_entropy, np.tanh, backward(W, wrong, dz), a_bar)
    second, both = adjoints(a_bar, wrong, slopes, u), adjoints(a_bar, wrong, wrong, u)
    print(f"4. {name:11}  check 1 is off by {first:.2f}, check 2 by {second:.2f}, with tangent broken too {both:.2f}")
    assert (first < 1e-7 and second < 1e-13) if name == "right" else min(first, second) > 0.01
    assert both < 1e-12
slightly = [slope * (1 + 1e-11) for slope in slopes]
assert differences(cross_entropy, np.tanh, backward(W, slightly, dz), a_bar) < 1e-7         # as of a right pass
assert adjoints(a_bar, slightly, slopes, u) > 1e-12
