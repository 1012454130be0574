# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 4. Which expectation?
#
# **What you will do.** Send four different targets through one backward pass, and compare the matrices G (and
# Fishers) that come out.
#
# **What you will learn.** Exact, sampled, empirical, likeliest label: four things that are all called "Fisher"
# somewhere. Why labels must be *sampled from the model*, how fast the sampling error falls, and what the empirical
# Fisher does to a step near the optimum.
#
# **What you need.** Tutorials 2 and 3.

# %%
import numpy as np

import kfac_ref as kr
from kfac_ref import oracle

rng = np.random.default_rng(0)
model = kr.Model(kr.MLP((2, 4, 3), "tanh"), kr.Categorical())
weights = [rng.standard_normal(s) for s in model.network.shapes]
x, y = rng.standard_normal((40, 2)), rng.integers(0, 3, 40)
at = model.at(weights, x)
p = np.exp(at.z) / np.exp(at.z).sum(axis=1, keepdims=True)

# %% [markdown]
# ## One backward pass, four targets
#
# The Fisher is an expectation over the model's own prediction, F = E_x E_{y ~ p(.|x)}[D theta D theta^T]. The
# backward pass is the same for all targets; only what is sent back differs:
#
# | name | what is sent back |
# |---|---|
# | exact | the columns of a root of F_R: their squares add up to the expectation |
# | sampled | gradients at targets drawn from p |
# | empirical | gradients at the labels of the data |
# | likeliest | gradients at the likeliest target of the model |

# %%
def last_G(dz):
    """Return G of the last layer from what is sent back: there, g is dz itself."""
    g = dz.reshape(-1, 3)
    return g.T @ g / len(x)


def gradients(labels):
    return p - np.eye(3)[labels]


exact = sum(p[:, c, None, None] * np.einsum("na,nb->nab", gradients(np.full(40, c)), gradients(np.full(40, c)))
            for c in range(3)).mean(axis=0)
empirical = last_G(gradients(y))
likeliest = last_G(gradients(p.argmax(axis=1)))
sampled = last_G(gradients(at.sample(rng)))
for name, G in (("exact", exact), ("sampled, 1 target", sampled), ("empirical", empirical), ("likeliest", likeliest)):
    print(f"{name:18} trace {np.trace(G):.3f}   off by {np.linalg.norm(G - exact) / np.linalg.norm(exact):.2f}")
assert np.allclose(exact, kr.exact_factors(at).G[-1])
assert np.allclose(empirical, kr.empirical_factors(at, y).G[-1])

# %% [markdown]
# ## The exact one without enumeration
#
# Enumerating the classes costs C backward passes, and is impossible for a Gaussian. A root of F_R does it in closed
# form: with columns b_k such that sum_k b_k b_k^T = F_R, send the b_k back. For the softmax, the root is diag(sqrt
# p) - p sqrt(p)^T.

# %%
root = np.einsum("nc,cd->ncd", np.sqrt(p), np.eye(3)) - p[:, :, None] * np.sqrt(p)[:, None, :]
assert np.allclose(np.einsum("nak,nbk->nab", root, root), model.likelihood.fisher(at.z))
columns = root.transpose(2, 0, 1)                                # (K, N, C): a stack of K = C backward passes
assert np.allclose(last_G(columns), exact)

# %% [markdown]
# ### Confusion box: the root from the wrong side
#
# root^T root has the same trace and the same eigenvalues, so it looks right. It is another matrix:

# %%
wrong = last_G(root.transpose(1, 0, 2))
assert np.isclose(np.trace(wrong), np.trace(exact))
print(f"same trace, and off by {np.linalg.norm(wrong - exact) / np.linalg.norm(exact):.2f}")
print(oracle.CATALOGUE["root applied from the wrong side"])
assert np.linalg.norm(wrong - exact) > 0.01 * np.linalg.norm(exact)

# %% [markdown]
# ## Sampling: how many targets?
#
# The error falls with the root of the number of samples. One target for each case is what the paper uses: there are
# many cases, and the running average sees many batches.

# %%
print("samples   error of G (mean of 40 tries)")
errors = []
for M in (1, 4, 16, 64):
    tries = [kr.sampled_factors(at, at.sample(rng, M)).G[-1] for _ in range(40)]
    errors.append(np.mean([np.linalg.norm(G - exact) for G in tries]) / np.linalg.norm(exact))
    print(f"{M:7} {errors[-1]:10.3f}")
slope = np.polyfit(np.log([1, 4, 16, 64]), np.log(errors), 1)[0]
print(f"slope {slope:.2f}; the law says -1/2")
assert -0.6 < slope < -0.4

# %% [markdown]
# ## Why not the labels?
#
# The gradients at the labels are small where the model fits and large where it does not. Their squares measure the
# *noise of the gradient*, not the curvature. On linear regression everything can be seen: F = mean of x x^T, whatever
# the labels; the empirical matrix is the mean of r^2 x x^T, with the residuals r.

# %%
regression = kr.Model(kr.MLP((2, 1)), kr.Gaussian())
X = rng.standard_normal((200, 2)) * [1.0, 0.2]
truth = [np.array([[1.0, -2.0, 0.5]])]
Y = regression.at(truth, X).z + 0.1 * rng.standard_normal((200, 1))
print("distance from the minimum   |step of F|/|ideal|   |step of empirical F|/|ideal|")
for distance in (3.0, 1.0, 0.3):
    W = [truth[0] + distance * np.array([[0.5, 0.5, 0.5]])]
    here = regression.at(W, X)
    gradient = kr.params.flatten(here.gradient(Y))
    best = np.linalg.lstsq(here.a_bar[0], Y, rcond=None)[0].ravel() - kr.params.flatten(W)
    F, E = kr.exact_fisher(here), kr.empirical_fisher(here, Y)
    ratios = [np.linalg.norm(np.linalg.solve(C, gradient)) / np.linalg.norm(best) for C in (F, E)]
    print(f"{distance:24} {ratios[0]:22.2f} {ratios[1]:26.2f}")
    assert np.isclose(ratios[0], 1)                              # Newton's step: there in one
assert ratios[1] > 3                                             # far too long, the nearer the longer

# %% [markdown]
# The natural gradient arrives in one step from anywhere. The empirical one is too short far away, where the
# residuals are large, and too long nearby, where they are small. Multiply the residuals by c and it changes by
# 1/c^2; F does not change.

# %%
here = regression.at([truth[0] + 1.0], X)
targets = here.z + 3 * (Y - here.z)                              # residuals three times as large
assert np.allclose(kr.empirical_fisher(here, targets), 9 * kr.empirical_fisher(here, Y))

# %% [markdown]
# ### Confusion box: labels in place of the model's targets

# %%
v = oracle.vector("categorical-tanh")
report = oracle.check(v.problem, {"G": v.expected["G_empirical"]})
print(report)
assert ("labels in place of the model's targets",) in [e.names for e in report.explanations]

# %% [markdown]
# ## In practice
#
# `kr.exact_factors(at)`, `kr.sampled_factors(at, at.sample(rng))`, `kr.empirical_factors(at, y)`: the name says
# which. The optimizer samples, as the paper does. If your own code samples and does not keep its targets, the oracle
# judges the result by simulation:

# %%
problem = v.problem.replace(targets=None)
mine = kr.sampled_factors(problem.at(), problem.at().sample(rng, 20)).G
report = oracle.check(problem, {"G_sampled": mine})
print(report)
assert report.ok

# %% [markdown]
# ## Exercises
#
# 1. Write the exact G of a Bernoulli output by enumerating bits, and by the root diag(sqrt(p (1 - p))).
# 2. For a Gaussian, show that y = z + sqrt(C) e_c and y = z - sqrt(C) e_c, each with probability 1/(2C),
#    enumerate F exactly.
# 3. Why is the sampled G of the likeliest target always too small for a confident model?
# 4. Train a classifier to zero error. What happens to the trace of the empirical G, and what to that
#    of the exact one?
#
# ## Further reading
#
# - Kunstner, Balles and Hennig (2019), *Limitations of the empirical Fisher approximation for natural
#   gradient descent*.
# - Martens and Grosse (2015), section 5. The code: `kfac_ref/factors/expectations.py`.
