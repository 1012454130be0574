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
# Fisher does to a step far from the optimum and near it.
#
# **What you need.** Tutorials 2 and 3.

# %%
import numpy as np
from matplotlib.figure import Figure

import kfac_ref as kr
from kfac_ref import oracle, plotting

rng = np.random.default_rng(0)
model = kr.Model(kr.MLP((2, 4, 3), "tanh"), kr.Categorical())
weights = [rng.standard_normal(s) for s in model.network.shapes]
x, y = rng.standard_normal((40, 2)), rng.integers(0, 3, 40)
at = model.at(weights, x)
p = np.exp(at.z) / np.exp(at.z).sum(axis=1, keepdims=True)

# %% [markdown]
# ## One backward pass, four targets
#
# The Fisher is an expectation over the model's own prediction p, F = E_x E_{y ~ p(.|x)}[D theta D theta^T]: the mean
# over the inputs of the data, and for each of them over targets y that the model itself finds likely. G is the same
# expectation of g g^T alone. The backward pass is the same for all targets; only what is sent back differs:
#
# | name | what is sent back |
# |---|---|
# | exact | gradients at every target, their squares weighted by p; or the columns of a root (next section) |
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
assert np.allclose(exact, kr.kronecker_factors(at, kr.exact).G[1])
assert np.allclose(empirical, kr.kronecker_factors(at, kr.empirical(y)).G[1])

# %% [markdown]
# ## The exact one without enumeration
#
# Enumerating the classes costs C backward passes, and is impossible for a Gaussian, which has a continuum of targets.
# A root of F_R does it in closed form, also for a Gaussian, and for d bits with d columns in place of 2^d outcomes:
# find columns b_k with sum_k b_k b_k^T = F_R, the Fisher of the likelihood of tutorial 3, and send the b_k back one
# by one. For the softmax, column k of such a root is sqrt(p_k) (e_k - p), e_k being the one-hot vector of class k.
# Written as a matrix:
#
# $$ \mathrm{diag}(\sqrt p) - p \sqrt p^{\,T} $$

# %%
root = np.einsum("nc,cd->ncd", np.sqrt(p), np.eye(3)) - p[:, :, None] * np.sqrt(p)[:, None, :]
assert np.allclose(np.einsum("nak,nbk->nab", root, root), model.likelihood.fisher(at.z))
columns = root.transpose(2, 0, 1)                                # (K, N, C): a stack of K = C backward passes
assert np.allclose(last_G(columns), exact)
assert np.allclose(columns, kr.exact(at))

# %% [markdown]
# ### Confusion box: the root from the wrong side
#
# For one example root^T root has the same trace and eigenvalues as root root^T, so it looks right. It is another
# matrix, and in the mean over the examples the trace alone is the same:

# %%
wrong = last_G(root.transpose(1, 0, 2))
assert np.isclose(np.trace(wrong), np.trace(exact))
print(f"same trace, and off by {np.linalg.norm(wrong - exact) / np.linalg.norm(exact):.2f}")
print("eigenvalues:", *(np.linalg.eigvalsh(G).round(3) + 0.0 for G in (exact, wrong)))
print(oracle.CATALOGUE["root applied from the wrong side"])
assert np.linalg.norm(wrong - exact) > 0.01 * np.linalg.norm(exact)

# %% [markdown]
# ## Sampling: how many targets?
#
# The error falls like one over the root of the number of samples. One target for each example is what the paper uses:
# there are many examples, and a running average over the steps of the training (tutorial 9) sees many batches. Late in
# a training G falls fast, and a long average is of an older, larger one: then neither many steps nor few serve well
# (tutorials 9 and 11).

# %%
counts = np.array([1, 4, 16, 64])
def off(M):
    """Return the relative error of the last G with M targets drawn for each example."""
    G = kr.kronecker_factors(at, kr.sampled(at.sample(rng, M))).G[1]
    return np.linalg.norm(G - exact) / np.linalg.norm(exact)


tries = np.array([[off(M) for _ in range(40)] for M in counts])
errors = np.median(tries, axis=1)
for M, error in zip(counts, errors, strict=True):
    print(f"{M:3} samples: G is off by {error:.3f} (median of 40 tries)")
slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
print(f"slope {slope:.2f}; the law says -1/2")
assert -0.6 < slope < -0.4

# %% tags=["hide-input"]
figure = plotting.side_by_side([plotting.Panel(
    "40 tries: median and range", "targets drawn for each example", "relative error of the last G",
    {"sampled": (counts, tries.T), "slope -1/2": (counts, errors[0] / np.sqrt(counts))})], "")
figure.axes[0].set_xticks(counts, counts)
figure.axes[0].minorticks_off()
plotting.Picture(figure, "Error of the sampled G of the last layer against the number of targets for each example, "
                 f"both logarithmic: the median falls from {errors[0]:.3f} with one target to {errors[-1]:.3f} with 64 "
                 f"along a line of slope {slope:.2f}.")

# %% [markdown]
# ## Why not the labels?
#
# The gradients at the labels are small where the model fits and large where it does not. Their squares measure *how
# far the labels are from the model*: misfit far from the optimum, noise near it. Only if that noise is what the model
# says it is (here a standard deviation of 1), and there, is it the curvature. On linear regression everything can be
# seen: F = mean of x x^T (x with the bias's 1), whatever the labels; the empirical matrix is the mean of r^2 x x^T,
# with the residuals r = z - y. Fit a line to points whose noise has the standard deviation 0.2; the two parameters
# are its slope and its bias:

# %%
regression = kr.Model(kr.MLP((1, 1)), kr.Gaussian())
X = 1 + rng.standard_normal((200, 1))
Y = 2 * X - 1 + 0.2 * rng.standard_normal((200, 1))
optimum = np.linalg.lstsq(np.column_stack([X, np.ones(200)]), Y, rcond=None)[0].ravel()


def steps(theta):
    """Return the gradient's step and those of F and of the empirical Fisher, and the way to the optimum."""
    here = regression.at([theta[None]], X)
    gradient = kr.params.flatten(here.gradient(Y))
    natural, empirical = (-np.linalg.solve(kr.fisher_matrix(here, expectation), gradient)
                          for expectation in (kr.exact, kr.empirical(Y)))
    return -gradient, natural, empirical, optimum - theta


print("distance   |natural step| / |ideal|   |empirical step| / |ideal|   its angle to the ideal")
for distance in (3.0, 1.0, 0.3, 0.1, 0.01):
    _, natural, empirical, ideal = steps(optimum + distance * np.array([0.6, 0.8]))
    ratios = [np.linalg.norm(step) / np.linalg.norm(ideal) for step in (natural, empirical)]
    angle = np.degrees(np.arccos(empirical @ ideal / np.linalg.norm(empirical) / np.linalg.norm(ideal)))
    print(f"{distance:8} {ratios[0]:26.2f} {ratios[1]:28.2f} {angle:25.0f}")
    assert np.allclose(natural, ideal)                           # Newton's step: there in one
    assert distance < 3 or (ratios[1] < 0.5 and angle > 30)      # too short, and turned
assert ratios[1] > 20                                            # far too long, the nearer the longer,
assert angle < 15                                                # but nearly in the right direction

# %% [markdown]
# Where do the steps point, away from the optimum? Here from 48 points around it, none nearer than 0.5, over the
# contours of the loss, all arrows of one length:

# %% tags=["hide-input"]
axis = np.linspace(-1.5, 1.5, 7)
grid = np.array([optimum + np.array((u, v)) for u in axis for v in axis if (u, v) != (0, 0)])
ways = np.array([steps(theta) for theta in grid])                # (48, 4, 2)
ways /= np.linalg.norm(ways, axis=2, keepdims=True)
degrees = np.degrees(np.arccos(np.clip(np.einsum("pkd,pd->kp", ways[:, :3], ways[:, 3]), -1, 1))).mean(axis=1)
fine = np.linspace(-1.9, 1.9, 60)
U = np.column_stack([X, np.ones(200)])
H = U.T @ U / 200                                                # F, for any labels
height = [[np.array([u, v]) @ H @ np.array([u, v]) / 2 for u in fine] for v in fine]
titles = ("gradient", "natural gradient", "by the empirical Fisher")
with plotting.style():
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=110)
    for k, axes in enumerate(figure.subplots(1, 3, sharey=True)):
        axes.contour(optimum[0] + fine, optimum[1] + fine, height, levels=8, colors="gray", linewidths=0.6)
        axes.quiver(*grid.T, *ways[:, k].T, color=plotting.COLOURS[k], scale=14, width=0.008)
        axes.plot(*optimum, "k*", markersize=11)
        axes.set(title=f"{titles[k]}: {degrees[k]:.0f} degrees off", xlabel="slope", aspect="equal")
        axes.grid(False)
    figure.axes[0].set_ylabel("bias")
assert degrees[1] < 1e-3
assert degrees[2] > degrees[0]
plotting.Picture(figure, "Directions of three steps from 48 points around the optimum of a line fit, over the loss's "
                 f"contours. Mean angle to the straight way there: gradient {degrees[0]:.0f} degrees, natural gradient "
                 f"{degrees[1]:.0f}, empirical Fisher {degrees[2]:.0f}.")

# %% [markdown]
# The natural gradient arrives in one step from anywhere. The empirical one has two faults, which pass into one
# another. *Far away* the residuals are misfit, large and different from point to point: its step is too short and
# turned; on this grid, in between, turned further off the way than the plain gradient. *Near the optimum* they are
# noise of one size, the empirical matrix is about 0.2^2 F, and the step points about right but is about 1/0.2^2 = 25
# times too long. Multiply the residuals by c and the empirical matrix is c^2 times as large, so that its step (whose
# gradient has c in it) changes by 1/c; F does not change at all.

# %%
here = regression.at([optimum[None] + 1.0], X)
targets = here.z + 3 * (Y - here.z)                              # residuals three times as large
assert np.allclose(kr.fisher_matrix(here, kr.empirical(targets)), 9 * kr.fisher_matrix(here, kr.empirical(Y)))

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
# In the package an *expectation* is a function of a point: it returns what is sent back, (K, N, C). `kr.exact` is one;
# `kr.sampled(targets)` and `kr.empirical(y)` make one. `kr.kronecker_factors` and `kr.fisher_matrix` take any of them
# (default: exact), or a function of your own. Here is the fourth row of the table:

# %%
def likeliest_target(at):
    return gradients(at.z.argmax(axis=1))[None]                  # one column: (1, N, C)


assert np.allclose(kr.kronecker_factors(at, likeliest_target).G[1], likeliest)

# %% [markdown]
# The optimizer samples one target for each example, as the paper does (`kr.one_draw`). If your own code samples and
# does not keep its targets, the oracle judges the result by simulation: it draws thousands of right G. Say how many
# targets were drawn for each example (here 20). Its *statistic* is how far a G is from the exact one, as a part of what
# is allowed:

# %%
problem = v.problem.replace(targets=None)
mine = kr.kronecker_factors(problem.at(), kr.sampled(problem.at().sample(rng, 20)))
report = oracle.check(problem, {"G_sampled": [G for _, G in mine.layers]}, samples=20)
print(report)
assert report.ok

# %% [markdown]
# ## Exercises
#
# 1. Write the exact G of a Bernoulli output by enumerating bits, and by the root diag(sqrt(p (1 - p))).
# 2. For a Gaussian, show that y = z + sqrt(C) e_c and y = z - sqrt(C) e_c, each with probability 1/(2C), enumerate
#    F exactly.
# 3. Why is the trace of the last G at the likeliest target never above the exact one's? (The exact one is the mean of
#    1 - ||p||^2.) For a confident model it is far below: how far?
# 4. Train a classifier (tutorial 6 ends with how) until its loss is nearly zero. Which trace of G falls faster, the
#    empirical one's or the exact one's? And which is the larger on examples that were held out?
#
# [Answers](answers/04_which_expectation.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Kunstner, Balles and Hennig (2019), *Limitations of the empirical Fisher approximation for natural
#   gradient descent*.
# - Martens and Grosse (2015), section 5. The code: `kfac_ref/expectations.py`.
