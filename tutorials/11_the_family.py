# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 11. The family
#
# **What you will do.** Write K-FAC's relatives by hand, a few lines each, and measure them all against the same exact
# Fisher: how far the matrix is off, and what its step is worth.
#
# **What you will learn.** What EKFAC (eigenvalue-corrected K-FAC), FOOF (A alone), KFRA (a recursion for G), TKFAC
# (with the block's trace), Shampoo (from gradients alone) and the diagonal change; which of them must be nearer to
# the Fisher than A ⊗ G; that a small error of the matrix does not make a good step; and where K-FAC's own error
# comes from, part by part.
#
# **What you need.** Tutorials 1 (rearrangement), 4 (root of F_R), 5 (natural gradient), 6 (A ⊗ G), 7 and 8
# (damping).

# %%
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import kfac_ref as kr
from kfac_ref import kronecker, oracle, plotting
from kfac_ref.experiments import family

FIGURES = Path(kr.__file__).parents[1] / "figures"              # comes with the repository, not with the package


def read(path):
    return json.loads((FIGURES / path).read_text())


# %% [markdown]
# ## One point, one exact matrix
#
# A classifier of the digits, whose 8 x 8 pixels are averaged to 4 x 4 so that the exact Fisher is small: 16-8-8-10
# with relu, after 50 steps of K-FAC. All that follows happens at these weights. As in tutorial 4 the K columns of a
# root of F_R are sent back: `g` is (K, N, m), K gradients for each of N examples, here at layer 1; `a`, (N, n), are its
# inputs with their ones. `off` is the error of a matrix in the block of layer 1: the Frobenius norm (the root of the
# sum of all squared entries) of the difference, over that of the exact block.

# %%
data = kr.datasets.digits()
x, y = data.x[:300].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16), data.labels[:300]
model = kr.Model(kr.MLP((16, 8, 8, 10), "relu"), kr.Categorical(), weight_decay=1e-5)
opt = kr.optimizers.KFAC(model, judged_on="same batch", T1=5)
state = opt.init(model.init(np.random.default_rng(0), "glorot"), seed=0)
for _ in range(50):
    state, _ = opt.step(state, x, y)
at = model.at(state.weights, x)
a, g = at.a_bar[1], at.backward(kr.exact(at))[1]
N, m, n = len(x), g.shape[-1], a.shape[-1]
layer_1 = slice(state.weights[0].size, state.weights[0].size + m * n)
block = kr.fisher_matrix(at)[layer_1, layer_1]


def off(B):
    return np.linalg.norm(B - block) / np.linalg.norm(block)


flat = g.reshape(-1, m)                                         # (K N, m): all columns of all examples
A, G = a.T @ a / N, flat.T @ flat / N
found = {"A ⊗ G": np.kron(A, G)}
print(f"g {g.shape}, a {a.shape}, the block {block.shape}; A ⊗ G is off by {off(found['A ⊗ G']):.2f}")
assert np.allclose(found["A ⊗ G"], kr.approximations.FULL.at(at).dense()[layer_1, layer_1], atol=1e-12)

# %% [markdown]
# ## The relatives, by hand
#
# **Diagonal.** *Keep the diagonal of the Fisher and nothing else.* An entry of one example's gradient is g_j a_k, so
# the mean of its square is a product of squared arrays. Adam keeps something like it, with these differences: it
# averages over steps, squares the *mean* gradient of a batch, at the *labels*, and divides by the *root*.

# %%
squares = np.square(g).sum(axis=0).T @ np.square(a) / N         # (m, n), shaped like the weights
found["diagonal"] = np.diag(kronecker.vec(squares))
assert np.allclose(kronecker.vec(squares), np.diag(block), atol=1e-12)
assert np.allclose(squares, kr.curvature.Diagonal(at).scales[1], atol=1e-12)

# %% [markdown]
# **EKFAC.** *Keep the eigenvectors of A ⊗ G, and measure the eigenvalues again.* K-FAC's are products of one of A
# and one of G. EKFAC turns each gradient into the eigenbasis and takes the mean square of each coordinate there: the
# true diagonal of the block in that basis.

# %%
U_A, U_G = np.linalg.eigh(A)[1], np.linalg.eigh(G)[1]
S = np.square(g @ U_G).sum(axis=0).T @ np.square(a @ U_A) / N   # the second moments in the eigenbasis, (m, n)
Q = np.kron(U_A, U_G)
found["EKFAC"] = Q @ np.diag(kronecker.vec(S)) @ Q.T
assert np.allclose(kronecker.vec(S), np.diag(Q.T @ block @ Q), atol=1e-12)
assert np.allclose(S, kr.curvature.EKFAC(at).scales[1], atol=1e-12)

# %% [markdown]
# ### Confusion box: products of eigenvalues
#
# The wrong code takes EKFAC's scales to be the products of the eigenvalues. That is A ⊗ G again, whatever its
# name:

# %%
wrong = Q @ np.diag(np.kron(np.linalg.eigvalsh(A), np.linalg.eigvalsh(G))) @ Q.T
print(f"off by {off(wrong):.3f}, as A ⊗ G is: {off(found['A ⊗ G']):.3f}; EKFAC: {off(found['EKFAC']):.3f}")
print(oracle.CATALOGUE["EKFAC scales as products of eigenvalues"])
assert np.allclose(wrong, found["A ⊗ G"], atol=1e-12)

# %% [markdown]
# **FOOF.** *Put the identity in place of G.* No backward pass for the curvature at all. Its scale has nothing to do
# with the Fisher's: where the gradients are small, so is G, and the identity is not.
#
# **KFRA.** *Get G from the next layer's G, not from a backward pass of each column.* It treats that G and the slopes
# phi' as if they were independent. (The weights are taken without their bias column, as in tutorial 2.)

# %%
found["FOOF"] = np.kron(A, np.eye(m))
G_2 = model.likelihood.fisher(at.z).mean(axis=0)                # of the last layer: the mean of F_R itself
slopes, W_2 = (at.s[1] > 0).astype(float), state.weights[2][:, :-1]
G_kfra = (W_2.T @ G_2 @ W_2) * (slopes.T @ slopes / N)
found["KFRA"] = np.kron(A, G_kfra)
foof = kr.approximations.INPUT_ONLY.at(at).dense()[layer_1, layer_1]
assert np.allclose(found["FOOF"], foof, atol=1e-12)
assert np.allclose(G_kfra, kr.factors.kfra_factors(at).G[1], atol=1e-12)

# %% [markdown]
# **TKFAC.** *Weigh each example in A by the squared length of its gradient, and in G by that of its input.* An example
# whose gradient is zero adds nothing to the exact block; in K-FAC's A it counts like all others.
#
# **Shampoo.** *Take the mean of D^T D and of D D^T, D = g a^T being one example's gradient, and the square root of
# both.* (Shampoo itself sums over steps, and D is a batch's mean gradient; we compare the structure.) Where
# every D has rank one, as here, the product of the roots minus the block is positive semi-definite: a bound from
# above, too large and meant to be. Without the roots, and divided by the trace, it is TKFAC once more.
#
# **Nearest.** *The best Kronecker product there is*: the leading singular triple of the rearranged block
# (tutorial 1).

# %%
a_squared, g_squared = np.square(a).sum(axis=1), np.square(g).sum(axis=(0, 2))          # (N,): squared lengths
trace = a_squared @ g_squared / N
A_weighed = (a * g_squared[:, None]).T @ a / N / trace
G_weighed = np.einsum("n,knp,knq->pq", a_squared, g, g) / N / trace
found["TKFAC"] = trace * np.kron(A_weighed, G_weighed)
D = np.einsum("knp,nq->knpq", g, a)                             # (K, N, m, n)
right, left = np.einsum("knpq,knpr->qr", D, D) / N, np.einsum("knpq,knrq->pr", D, D) / N
found["Shampoo"] = np.kron(*((v * np.sqrt(np.maximum(w, 0))) @ v.T for w, v in map(np.linalg.eigh, (right, left))))
found["nearest"] = np.kron(*kronecker.nearest_product(block, (n, n), (m, m))[:2])
tkfac, shampoo = kr.factors.tkfac_factors(at), kr.factors.shampoo_root_factors(at)
assert np.allclose(found["TKFAC"], np.kron(tkfac.A[1], tkfac.G[1]), atol=1e-12)
assert np.allclose(found["TKFAC"], np.kron(right, left) / np.trace(left), atol=1e-12)
assert np.linalg.eigvalsh(found["Shampoo"] - block).min() > -1e-9
assert np.allclose(found["Shampoo"], np.kron(shampoo.A[1], shampoo.G[1]), atol=1e-9)

# %% [markdown]
# Two orders are theorems: no Kronecker product beats the nearest, and EKFAC is at least as near as A ⊗ G. And
# three of them have the trace of the exact block: the diagonal, EKFAC and TKFAC. All else could be otherwise
# elsewhere.

# %%
print("block of layer 1    off by   trace over the exact one")
for name, B in sorted(found.items(), key=lambda item: off(item[1])):
    print(f"{name:18} {off(B):7.3f} {np.trace(B) / np.trace(block):12.3f}")
assert off(found["EKFAC"]) <= off(found["A ⊗ G"])
assert all(off(found["nearest"]) <= off(found[name]) for name in ("A ⊗ G", "KFRA", "TKFAC", "FOOF", "Shampoo"))
assert all(np.isclose(np.trace(found[name]), np.trace(block)) for name in ("diagonal", "EKFAC", "TKFAC"))

# %% [markdown]
# ## The same for the whole matrix, and for the step
#
# Now all layers, with the structures of tutorial 7 beside them. Each matrix C gives a step -C^-1 grad h. It is judged
# by the quadratic model M with the exact F, where d is lambda + eta, here 0.001:
#
# $$ M(\delta) = h + \nabla h^T \delta + \tfrac12\, \delta^T (F + d\, I)\, \delta $$
#
# What counts is the decrease of M by the best multiple of the step (K-FAC's rescaling, tutorials 8 and 9), in
# per cent of what the natural gradient gives, and the angle to the latter. The angle is the Euclidean one; the
# decrease is the squared cosine of the same angle in the metric of F + d I, so that the two need not agree.
#
# "Off by" is said of matrices that are not damped (but for 1e-8, since F̂ does not exist without). For the step
# each chooses the damping that suits it best, out of fifteen from 1e-5 to 100; for F̂ and F̆ it is gamma^2.

# %%
entries = {e.name: e for e in family.compare(at, y, 1e-3, at.sample(np.random.default_rng(1)))}
print("matrix                        off by    damping   angle   decrease of M")
for e in entries.values():
    print(f"{e.name:28} {e.error:7.2f} {e.damping:10.0e} {e.judgement.angle:5.0f} deg "
          f"{100 * e.judgement.decrease:8.0f}%")
assert max(entries.values(), key=lambda e: e.judgement.decrease).name == "exact F"
assert np.allclose(family.DAMPINGS, np.logspace(-5, 2, 15))

# %% [markdown]
# ## A small error is no good step
#
# Most matrices that know nothing between the layers are off by 0.7 to 0.8, whatever they do inside the blocks. And
# look at FOOF and the diagonal: FOOF is off by many times the norm of F, and its step is worth twice as much. The
# Frobenius norm sees the large entries and the scale. A step sees the *inverse*, where the small eigenvalues rule,
# and its scale is mended by rescaling. The smallest example has F = diag(1, 0.01) and the gradient (1, 1):

# %%
F_2, grad = np.diag([1.0, 0.01]), np.ones(2)
for name, C in (("diag(1, 0.1)", np.diag([1, 0.1])), ("diag(3, 0.03)", np.diag([3, 0.03]))):
    step = np.linalg.solve(C, grad)
    decrease = (grad @ step)**2 / (step @ F_2 @ step) / (grad @ np.linalg.solve(F_2, grad))
    print(f"{name:14} off by {np.linalg.norm(C - F_2) / np.linalg.norm(F_2):.2f}   decrease {100 * decrease:.0f}%")
foof, diagonal = entries["FOOF (A alone)"], entries["diagonal"]
assert np.isclose(decrease, 1)                                  # three times F: the same direction
assert foof.error > 10 * diagonal.error
assert foof.judgement.decrease > 1.3 * diagonal.judgement.decrease

# %% tags=["hide-input"]
with plotting.style():
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ordered = sorted((e for e in entries.values() if e.name != "exact F"), key=lambda e: -e.error)
    left.plot([e.error for e in ordered], range(len(ordered)), "o", color=plotting.COLOURS[0])
    right.plot([100 * e.judgement.decrease for e in ordered], range(len(ordered)), "s", color=plotting.COLOURS[1])
    left.set(xscale="log", xlabel="relative Frobenius error of the matrix")
    left.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    left.set_yticks(range(len(ordered)), [e.name for e in ordered])
    right.set(xlim=(0, 100), xlabel="decrease of M (% of the natural gradient's)")
plotting.Picture(figure, "The approximations, the smallest error on top: error of the matrix (left), worth of its step "
                 f"(right). The right is not in the order of the left: FOOF is off by {foof.error:.0f} and its step "
                 f"gives {100 * foof.judgement.decrease:.0f}%, the diagonal is off by {diagonal.error:.2f} and gives "
                 f"{100 * diagonal.judgement.decrease:.0f}%.")

# %% [markdown]
# One network at one moment is no league table. Here are three networks at three stages, out of the numbers
# committed beside `figures/approximations.py`. The nearest Kronecker product, nearer by definition, gives no
# better step than A ⊗ G: it fits the large entries. (A few points, on nine cases, are no result by themselves.)

# %%
stages = [s for net in read("approximations/approximations.json")["networks"].values() for s in net.values()]
steps = [{e["name"]: e["judgement"]["decrease"] for e in stage} for stage in stages]
worse = sum(s["nearest A ⊗ G"] < s["A ⊗ G (exact damping)"] for s in steps)
print(f"the nearest gives less than A ⊗ G in {worse} of {len(steps)} cases; mean decrease in per cent:")
means = {name: 100 * np.mean([s[name] for s in steps]) for name in steps[0]}
print("\n".join(f"{name:28}{mean:4.0f}" for name, mean in means.items()))
assert means["nearest A ⊗ G"] < means["A ⊗ G (exact damping)"] + 1

# %% [markdown]
# ## The error budget of K-FAC
#
# Five changes lead from the exact damped Fisher to what the optimizer solves with: the blocks between layers are
# dropped; the expectation is factorized; targets are sampled; factors are averaged over earlier steps, and old; the
# damping goes into the factors. `kr.analysis.error_budget` judges the matrix after each, all six damped. Here for the
# next step of our run, at its own lambda and gamma:

# %% tags=["hide-input"]
detail = opt.explain(state, x, y)
d, gamma = detail.record.lambda_ + model.weight_decay, detail.chosen.gamma
budget = kr.analysis.error_budget(at, y, d, at.sample(np.random.default_rng(2)), detail.chosen.curvature.factors, gamma)
print(f"lambda + eta = {d:.2g}, gamma = {gamma:.2g}")
for j in budget:
    print(f"{j.name:24} off by {j.error:.2f} {j.angle:5.0f} deg   decrease {100 * j.decrease:.0f}%")
assert budget[0].error == 0
assert budget[5].error > 1.5 * budget[4].error
assert abs(budget[5].angle - budget[4].angle) < 3
assert budget[5].decrease < budget[4].decrease - 0.05
figure = plotting.error_budget([j.name for j in budget], [j.error for j in budget], [j.angle for j in budget],
                               [j.decrease for j in budget], "")
plotting.Picture(figure, "From the exact damped Fisher (top) to what K-FAC solves with (bottom), one change a row. "
                 "Relative error, angle of the step, decrease of M: "
                 + "; ".join(f"{j.name} {j.error:.2f}, {j.angle:.0f} degrees, {100 * j.decrease:.0f}%" for j in budget))

# %% [markdown]
# Once more the matrix does not tell, nor does the Euclidean angle: factored damping doubles the error and turns the
# step by a degree or two, and yet the decrease falls by more than five points.
#
# Averaging can win or lose: an average has seen more samples, and is of older weights. In the run of
# `figures/estimators.py` age weighs more at most steps, and most of all late, when G shrinks faster than an average
# forgets:

# %%
run = read("estimators/estimators.json")["along_training"]      # "off by" as above, root mean square over the layers
wins, last = sum(s["average"] < s["fresh_part"] for s in run), max(run, key=lambda s: s["average"])
print(f"the average of G is nearer to the exact one than a fresh sample at {wins} of {len(run)} steps; at step "
      f"{last['step']}\nit is off by {last['average']:.1f} times the exact one, a fresh sample by "
      f"{last['fresh_part']:.1f}, the average of A by {last['average_A']:.2f}")
assert wins < len(run) / 2
assert last["average"] > 5 * last["fresh_part"]

# %% [markdown]
# ## In practice
#
# `kr.approximations` is the table of the family. A row pairs an estimator of A and G with a structure that is made of
# them; rows such as EKFAC need the examples themselves and are made from a point. The optimizer takes any row, or one
# of your own, and an expectation (tutorial 4). `docs/which_approximation.md` has the whole comparison, and the costs.

# %%
ekfac = kr.optimizers.KFAC(model, approximation=kr.approximations.EKFAC, expectation=kr.exact)
_, record = ekfac.step(ekfac.init(state.weights, seed=0), x, y)
print(f"one step with {record.structure}: M falls by {-record.predicted:.1e}")
assert record.predicted < 0

# %% [markdown]
# ## Exercises
#
# 1. Show that EKFAC's S is the best diagonal in its basis. (The Frobenius norm does not change under rotations.)
# 2. Which of these matrices are exact for a single example (N = 1), in the block of a layer, and in the whole? Try it.
# 3. KFRA's G is the exact G of a linear network. Replace "relu" by "identity", and its slopes by ones, and check. Is
#    A ⊗ G then the block? For which likelihood?
# 4. Multiply FOOF's matrix by the number that makes its trace right. What becomes of its error, what of its step? And
#    with a number for each layer?
#
# [Answers](answers/11_the_family.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - George et al. (2018), EKFAC; Benzing (2022), FOOF; Botev et al. (2017), KFRA; Gao et al. (2021), TKFAC.
# - Gupta et al. (2018), Shampoo; Morwani et al. (2024), its relation to the nearest Kronecker product.
# - The code: `kfac_ref/curvature/`, `kfac_ref/factors/`, `kfac_ref/analysis/budget.py`.
