# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 7. Inverting
#
# **What you will do.** Invert F̃, the matrix of all blocks A ⊗ G, in two ways that never form it: block by block,
# and as a chain of layers in three sweeps.
#
# **What you will learn.** What the entries of an inverse covariance say; why the inverse of F̃ is nearly
# block-tridiagonal although F̃ is not, and how nearly; what Psi, Sigma and Xi are; and which layers need damping.
#
# **What you need.** Tutorials 1, 4 and 6; what a covariance and a linear regression are.

# %%
import numpy as np
import scipy.linalg

import kfac_ref as kr
from kfac_ref import oracle, plotting
from kfac_ref.experiments import blocks, middle_layers

# %% [markdown]
# ## The matrix
#
# A classifier of digits, 64-8-8-8-8-8-10 with tanh, after seven steps of training. We look at its four middle layers,
# 8 x 9 weights each, and call them 0 to 3: F̃ is 288 x 288, with the blocks A_ij kron G_ij (tutorial 6). Their factors
# have full rank. Those of the outer layers have not: G of the softmax layer has rank 9 of 10 (the gradients of an
# example add up to zero), A of the pixels rank 62 of 65 (three are always black). So inverting a whole network needs
# **damping**, and we damp these four as one damps all, with a small gamma and a number pi_i > 0 for each layer:
#
# $$ A_{ii} + \pi_i \gamma I, \qquad G_{ii} + (\gamma / \pi_i)\, I $$
#
# In this tutorial it only matters that both are positive definite then. Tutorial 8 says why in this form.

# %%
data, model = kr.datasets.digits(), kr.Model(kr.MLP((64, 8, 8, 8, 8, 8, 10), "tanh"), kr.Categorical())
at = model.at(middle_layers.trained(model, data, "sparse", steps=(7,))[7], data.x)
undamped = middle_layers.middle_factors(at)
whole = kr.kronecker_factors(at)
assert [np.linalg.matrix_rank(M) for M in (whole.G[5], whole.A[0])] == [9, 62]
assert [(np.linalg.matrix_rank(A), np.linalg.matrix_rank(G)) for A, G in undamped.layers] == [(9, 8)] * 4        # full
gamma, sizes, L = 0.01, [72] * 4, 4
f = middle_layers.damped(undamped, gamma)                        # f.A[i, j] and f.G[i, j]; A_ii, the short A[i], damped
F = np.block([[np.kron(f.A[i, j], f.G[i, j]) for j in range(L)] for i in range(L)])
assert np.allclose(F, kr.curvature.Full(f).dense())

# %% [markdown]
# ## Block by block: F̆
#
# Leave out all blocks off the diagonal; the paper calls what is left F̆. It is inverted layer by layer, with the
# formula of tutorial 1 for the part V_i of layer i. The package takes gamma^2 and damps by itself.
#
# $$ U_i = G_{ii}^{-1}\, V_i\, A_{ii}^{-1} $$

# %%
grad = at.gradient(data.labels)[1:-1]
U = [np.linalg.solve(G, np.linalg.solve(A, V.T).T) for (A, G), V in zip(f.layers, grad, strict=True)]
F_breve = scipy.linalg.block_diag(*(np.kron(A, G) for A, G in f.layers))
assert np.allclose(F_breve @ kr.params.flatten(U), kr.params.flatten(grad))
assert np.allclose(U, kr.curvature.BlockDiagonal(undamped, gamma**2).solve(grad))

# %% [markdown]
# ## What an inverse covariance says
#
# Three random numbers in a chain: x3 is noise, x2 is made of x3, x1 of x2. All are correlated, but who knows x2 gains
# nothing from x3 in predicting x1. The covariance S does not show that; its inverse P does, whose corner is zero: the
# regression of x_i on **all others** is
#
# $$ x_i = -\sum_{j \ne i} \frac{P_{ij}}{P_{ii}}\, x_j + e_i, \qquad \mathrm{Var}(e_i) = 1 / P_{ii} $$

# %%
mix = np.array([[1, 0.9, 0.72], [0, 1, 0.8], [0, 0, 1]])         # x3 = e3, x2 = 0.8 x3 + e2, x1 = 0.9 x2 + e1
S = mix @ mix.T                                                  # the e are independent, of variance 1
P = np.linalg.inv(S)
print(f"covariance\n{S.round(2)}\nits inverse\n{P.round(2) + 0.0}")
others = np.linalg.solve(S[1:, 1:], S[1:, 0])                    # regression of x1 on x2 and x3
assert np.allclose(others, -P[0, 1:] / P[0, 0])
assert np.allclose(others, [0.9, 0])                             # nothing from x3
assert np.isclose(1 / P[0, 0], S[0, 0] - S[0, 1:] @ others)

# %% [markdown]
# ## The same of a network
#
# F is a covariance too, that of D theta (its mean under the model is zero: tutorial 3). Let D_i = vec(g_i a_i^T) be
# the part of layer i. The forward pass makes a_(i+1) from a_i, the backward pass g_i from g_(i+1): so a chain is a
# fair guess, and a chain reads alike in both directions. The guess is of F, but we use it of F̃, as if F̃ were the
# covariance; how well F itself obeys it, we see below. What share of the variance of D_i does a regression on other
# layers leave?

# %%
def left(i, *others):
    on, of = (np.concatenate([np.arange(72 * j, 72 * j + 72) for j in layers]) for layers in (others, (i,)))
    explained = F[np.ix_(of, on)] @ np.linalg.solve(F[np.ix_(on, on)], F[np.ix_(on, of)])
    return 1 - np.trace(explained) / np.trace(F[np.ix_(of, of)])


for i in (0, 1):
    far, next_, all_later = left(i, i + 2), left(i, i + 1), left(i, *range(i + 1, L))
    print(f"layer {i} given layer {i + 2}: {far:.2f}, given {i + 1}: {next_:.2f}, given {i + 1} to 3: {all_later:.2f}")
    assert far < 0.6                                             # the layer after the next says much by itself ...
    assert next_ - all_later < 0.05                              # ... but little that the next one does not say

# %% [markdown]
# So the inverse should be small in block (i, j) with |i - j| > 1. The picture has F̃, its inverse, and the mean |entry|
# of the blocks of the inverse, at two dampings; a *cell*, one square dot of it, is 2 x 2 entries. Damping acts like
# noise of its own in each layer: the more of it, the less a layer tells of the next, and the less it hides what is
# behind it.

# %% tags=["hide-input"]
rows, ratio = {}, {}
exact_minus_F_tilde = middle_layers.middle_fisher(at) - kr.curvature.Full(undamped).dense()
for level in (1.0, 0.01):
    M = kr.curvature.Full(middle_layers.damped(undamped, level)).dense()
    rows[f"gamma = {level}"] = (M, np.linalg.inv(M), blocks.means(np.linalg.inv(M), sizes))
    inverse_of_exact = np.linalg.inv(exact_minus_F_tilde + M)    # with the same damping
    ratio[level] = [blocks.tridiagonal_ratio(X, sizes) for X in (M, np.linalg.inv(M), inverse_of_exact)]
text = "F̃, its inverse, and block means. Mean |entry| beside the diagonal blocks over that further off: " + "; ".join(
    f"{r[0]:.1f} in F̃, {r[1]:.1f} in its inverse, {r[2]:.1f} in that of the exact F, damped alike, at gamma = {level}"
    for level, r in ratio.items()) + "."
assert 2 * ratio[0.01][0] > ratio[0.01][1] > 1.5 * ratio[0.01][0]
assert ratio[0.01][0] < ratio[0.01][2] < 0.8 * ratio[0.01][1]    # the exact F is less of a chain
assert max(ratio[1.0]) < 1.1 * min(ratio[1.0])                   # no sign of a chain
plotting.Picture(plotting.block_structure(rows, sizes, ""), text)

# %% [markdown]
# ## The chain: F̂
#
# At small damping the far blocks of the inverse are small beside the neighbouring ones, though not zero; at gamma = 1
# they are not. In the inverse of the exact F the pattern is weaker. Now *assume* the chain for F̃: each D_i is
# explained by the next layer alone, up to noises that are independent of each other:
#
# $$ D_i = \Psi_i D_{i+1} + \mathrm{noise}_i, \qquad \Psi_i = \tilde F_{i,i+1} \tilde F_{i+1,i+1}^{-1}
#    = \Psi^A_i \otimes \Psi^G_i, \qquad \Psi^A_i = A_{i,i+1} A_{i+1,i+1}^{-1} $$
#
# and Psi^G alike, since all blocks of F̃ are Kronecker products. Sigma_i, the covariance of noise_i (in the paper it
# has the index i|i+1), is then a **difference of two Kronecker products**; the second is what layer i + 1 explains:
#
# $$ \Sigma_i = \tilde F_{ii} - \Psi_i \tilde F_{i+1,i+1} \Psi_i^T = A_{ii} \otimes G_{ii} - E^A_i \otimes E^G_i,
#    \qquad E^A_i = \Psi^A_i A_{i+1,i+1} (\Psi^A_i)^T $$
#
# and E^G alike. In the last layer nothing is subtracted.

# %%
PsiA = [f.A[i, i + 1] @ np.linalg.inv(f.A[i + 1]) for i in range(L - 1)]
PsiG = [f.G[i, i + 1] @ np.linalg.inv(f.G[i + 1]) for i in range(L - 1)]
EA, EG = ([Psi[i] @ X[i + 1] @ Psi[i].T for i in range(L - 1)] for Psi, X in ((PsiA, f.A), (PsiG, f.G)))
Sigma = [np.kron(f.A[i], f.G[i]) - np.kron(EA[i], EG[i]) for i in range(L - 1)] + [np.kron(f.A[3], f.G[3])]
Psi_0 = F[:72, 72:144] @ np.linalg.inv(F[72:144, 72:144])
assert np.allclose(np.kron(PsiA[0], PsiG[0]), Psi_0, atol=1e-8)
assert np.allclose(Sigma[0], F[:72, :72] - Psi_0 @ F[72:144, :72], atol=1e-8)

# %% [markdown]
# All layers at once: Xi D theta = noise, where Xi is I with -Psi_i on the block superdiagonal. The covariance of the
# noise is block diagonal, of the Sigma_i; call its inverse Lambda. F̂ is the covariance that D theta then has:
#
# $$ \Xi \hat F\, \Xi^T = \Lambda^{-1}, \qquad \mathrm{so} \qquad \hat F^{-1} = \Xi^T \Lambda\, \Xi $$

# %% tags=["hide-input"]
Xi = np.block([[np.eye(72) if j == i else -np.kron(PsiA[i], PsiG[i]) if j == i + 1 else np.zeros((72, 72))
                for j in range(L)] for i in range(L)])
hat_inverse = Xi.T @ scipy.linalg.block_diag(*map(np.linalg.inv, Sigma)) @ Xi
F_hat = np.linalg.inv(hat_inverse)
far = np.kron(blocks.offsets(L) > 1, np.ones((72, 72))) == 1     # more than one layer apart
assert np.all(hat_inverse[far] == 0)                             # exactly block-tridiagonal
assert np.allclose(F_hat[~far], F[~far], atol=1e-8)              # and F̂ has these blocks of F̃ unchanged
matrices = {"F̃": F, "F̂": F_hat, "F̆": F_breve}
inverses = {name: hat_inverse if name == "F̂" else np.linalg.inv(M) for name, M in matrices.items()}
text = (f"gamma = {gamma}. Between layers that are no neighbours F̂ is off by "
        f"{np.linalg.norm((F_hat - F)[far]) / np.linalg.norm(F[far]):.0%}, and its inverse is zero.")
plotting.Picture(plotting.matrix_rows({"matrix": matrices, "inverse": inverses}, sizes, ""),
                 f"Three matrices, their inverses. {text} F̆ and its inverse have the diagonal blocks alone.")

# %% [markdown]
# ## How good are they?
#
# Solve M d = grad with each matrix M. *Angle*: between d and F̃^-1 grad. *Decrease*: by how much the best multiple of d
# lowers the quadratic model -grad^T d + 1/2 d^T C d, as a share of the most that any d can do. C is the **exact** F of
# these layers, with what damping adds to F̃ added to it.

# %%
g, shares = kr.params.flatten(grad), {}
C_exact = exact_minus_F_tilde + F
print("          matrix off by   inverse off by   angle   decrease")
for name in matrices:
    d, ideal = inverses[name] @ g, inverses["F̃"] @ g
    off = [np.linalg.norm(X[name] - X["F̃"]) / np.linalg.norm(X["F̃"]) for X in (matrices, inverses)]
    angle = np.degrees(np.arccos(min(d @ ideal / np.linalg.norm(d) / np.linalg.norm(ideal), 1)))
    shares[name] = (g @ d)**2 / (d @ C_exact @ d) / (g @ np.linalg.solve(C_exact, g))
    print(f"{name:8} {off[0]:14.0%} {off[1]:16.0%} {angle:7.0f} {shares[name]:10.0%}")
assert 0 < shares["F̃"] - shares["F̂"] < (shares["F̃"] - shares["F̆"]) / 3

# %% [markdown]
# F̂ gives nearly all that F̃ gives, F̆ less. What F̃ lacks to 100% is its own error (tutorial 6).
#
# ## The solve in three sweeps
#
# Read Xi^T Lambda Xi v from the right. The first sweep subtracts from each V_i what the next layer explains, the second
# solves with each Sigma_i, and the third is the transpose of the first (not one more regression): it subtracts
# Psi_(i-1)^T times what the second has found for layer i - 1. For Sigma (appendix B of the paper) take generalized
# eigenvectors K_1 of E^A and A, and K_2 of E^G and G. They make both matrices diagonal at once:
#
# $$ K_1^T A K_1 = I, \quad K_1^T E^A K_1 = S_1, \quad K_2^T G K_2 = I, \quad K_2^T E^G K_2 = S_2 $$
#
# So A = K_1^-T K_1^-1 and E^A = K_1^-T S_1 K_1^-1; with G and E^G alike, Sigma is diagonal between two products:
#
# $$ \Sigma = (K_1 \otimes K_2)^{-T} (I - S_1 \otimes S_2)\, (K_1 \otimes K_2)^{-1}, \qquad
#    \Sigma^{-1} = (K_1 \otimes K_2)\, (I - S_1 \otimes S_2)^{-1} (K_1 \otimes K_2)^T $$
#
# By the rule of tutorial 1 Sigma^-1 vec(V) is vec(U), with s_1 and s_2 the diagonals and a division entry by entry:
#
# $$ U = K_2 \left[ \frac{K_2^T V K_1}{1 - s_2 s_1^T} \right] K_1^T $$

# %%
def solve_difference(A, G, EA, EG, V):
    (s1, K1), (s2, K2) = scipy.linalg.eigh(EA, A), scipy.linalg.eigh(EG, G)
    return K2 @ ((K2.T @ V @ K1) / (1 - np.outer(s2, s1))) @ K1.T


def three_sweeps(V):
    U = [V[i] - PsiG[i] @ V[i + 1] @ PsiA[i].T for i in range(L - 1)]                                   # Xi
    U = [solve_difference(f.A[i], f.G[i], EA[i], EG[i], U[i]) for i in range(L - 1)]                    # Lambda
    U.append(np.linalg.solve(f.G[3], np.linalg.solve(f.A[3], V[3].T).T))
    return [U[0]] + [U[i] - PsiG[i - 1].T @ U[i - 1] @ PsiA[i - 1] for i in range(1, L)]                # Xi^T


U = three_sweeps(grad)
assert np.allclose(kr.params.flatten(U), hat_inverse @ g, rtol=1e-7, atol=1e-9)
assert np.allclose(U, kr.curvature.BlockTridiagonal(undamped, gamma**2).solve(grad), rtol=1e-7, atol=1e-9)

# %% [markdown]
# ### Confusion box: cross factors ignored
#
# With cross factors of zero (never made, or not averaged) every Psi is zero, and F̂ is F̆. That goes unnoticed,
# since F̆ works too, only less well (see the table). The block-diagonal step, given for the tridiagonal one:

# %%
stored = oracle.vector("three-layers-bernoulli")
print(report := oracle.check(stored.problem, {"step_tridiagonal": stored.expected["step"]}))
assert ("cross factors ignored",) in [found.names for found in report.explanations]

# %% [markdown]
# ## In practice
#
# `BlockDiagonal(factors, damping)` and `BlockTridiagonal(factors, damping)` have one interface. The chain needs A_i,i+1
# and G_i,i+1 too, and two eigenproblems per layer. A row of the table `kr.approximations` pairs a structure with the
# estimator of the factors that it needs; the optimizer takes any row. What the chain gains: tutorial 10.

# %%
opt = kr.optimizers.KFAC(model, approximation=kr.approximations.BLOCK_TRIDIAGONAL)
state, record = opt.step(opt.init(at.weights), data.x, data.labels)
assert model.at(state.weights, data.x).loss(data.labels) < record.loss

# %% [markdown]
# ## Exercises
#
# 1. Show that with two layers F̂ = F̃, whatever the factors. Why is there nothing to approximate?
# 2. Write the first and the third sweep in place. In which order must i run in each? How wrong is the other order?
# 3. Print the largest s1 and the largest s2 of a layer for several gammas, and undamped. Why is that s1 then exactly 1?
#    (Which entry of a is the same in all layers?) Were there no tanh, g_i would be a matrix times g_(i+1): what would
#    s2 be, undamped, and what would become of Sigma? (To try it, start from "glorot" weights.)
# 4. Turn the chain around (layer i + 1 predicted from layer i). Is F̂ another matrix?
#
# [Answers](answers/07_inverting.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Martens and Grosse (2015), sections 4.1 to 4.4 and appendix B; figures 3, 5 and 6 are drawn with the same code by
#   `figures/inverse_structure.py` and `figures/tridiagonal.py`. The solve: `kfac_ref/curvature/block_tridiagonal.py`.
