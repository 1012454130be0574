# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 3. Hessian, Gauss-Newton, Fisher
#
# **What you will do.** Build three curvature matrices of the same small network, entry by entry, and compare them.
#
# **What you will learn.** That the generalized Gauss-Newton matrix and the Fisher are the same matrix (for
# likelihoods in natural parameters), that the Hessian is not, when the three agree, and where the 1/2 of the squared
# loss goes.
#
# **What you need.** Tutorial 2; what a second derivative and a covariance are.

# %%
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

import kfac_ref as kr
from kfac_ref import plotting

rng = np.random.default_rng(0)

# %% [markdown]
# ## Three matrices
#
# theta is the vector of all P weights: vec of each layer's, one after the other. L(y, z) is the loss of one example
# with target y, -log p(y | z); z(theta) is the output for it, and J = dz/dtheta its Jacobian, (C, P). E is the mean
# over the N examples, and where targets are drawn the expectation over them too. Then
#
# - **Hessian** H = E[d^2 L / d theta^2], at the labels of the data;
# - **Gauss-Newton** GN = E[J^T H_L J], where H_L is the Hessian of L with respect to z alone: the network is
#   linearized;
# - **Fisher** F = E[(D theta)(D theta)^T], at targets **drawn from the model itself**. D v is short for dL/dv, the
#   gradient with respect to v of one example's loss.
#
# The package has the Hessian and the Fisher. Gauss-Newton we write ourselves, column by column of J: column p is
# J e_p, one R-pass (the `tangent` of tutorial 2) along the p-th axis of theta. `model.at(weights, x)` holds a
# forward pass.

# %%
def jacobian(at):
    """Return dz / dtheta of each example, (N, C, P): one R-pass for each parameter."""
    shapes = [W.shape for W in at.weights]
    P = sum(W.size for W in at.weights)
    return np.stack([at.tangent(kr.params.unflatten(e, shapes)) for e in np.eye(P)], axis=-1)


def gauss_newton(at):
    J, p = jacobian(at), np.exp(at.z) / np.exp(at.z).sum(axis=1, keepdims=True)
    H_L = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]    # of the cross-entropy: diag(p) - p p^T
    return np.einsum("nap,nab,nbq->pq", J, H_L, J) / len(at)    # sum over n of J^T H_L J


model = kr.Model(kr.MLP((2, 3, 3), "tanh"), kr.Categorical())
weights = [rng.standard_normal(s) for s in model.network.shapes]
x, y = rng.standard_normal((11, 2)), rng.integers(0, 3, 11)
at = model.at(weights, x)
F, GN, H = kr.fisher_matrix(at), gauss_newton(at), kr.hessian.hessian(at, y)
print("parameters:", len(F))
print(f"||F - GN|| / ||F|| = {np.linalg.norm(F - GN) / np.linalg.norm(F):.0e}")
print(f"||H - F|| / ||F|| = {np.linalg.norm(H - F) / np.linalg.norm(F):.2f}")
assert np.allclose(F, GN, rtol=1e-12, atol=1e-12 * np.abs(F).max())
assert np.linalg.norm(H - F) > 0.1 * np.linalg.norm(F)

# %% tags=["hide-input"]
sizes = [W.size for W in weights]
figure = plotting.matrix_rows({"21 weights": {"|Hessian|": H, "|Gauss-Newton|": GN, "|Fisher|": F, "|H - F|": H - F}},
                              sizes, "", decades=3)
last = slice(sizes[0], None)
assert np.allclose(H[last, last], F[last, last], rtol=1e-12, atol=1e-12)    # z is linear in its weights
apart = np.subtract.outer(range(9), range(9)) % 3 != 0          # weights of layer 0 that lead into different units
assert np.allclose((H - F)[:9, :9][apart], 0, atol=1e-12)
for text in figure.findobj(Text):
    text.set_fontsize(15)
figure.axes[-1].set_ylabel("|entry|")
plotting.Picture(figure, "Absolute entries of the Hessian, Gauss-Newton, the Fisher, and Hessian minus Fisher, the two "
                 "layers marked. The second and the third look the same. The first differs from them by "
                 f"{100 * np.linalg.norm(H - F) / np.linalg.norm(F):.0f}% of the Fisher in norm, in all blocks but "
                 "that of the last layer with itself. In that of layer 0 it is chequered: z is a sum over hidden "
                 "units, so weights that lead into different units have no mixed second derivative.")

# %% [markdown]
# ## Why F is Gauss-Newton
#
# By the chain rule D theta = J^T D z, so F = E[J^T E_y[D z D z^T] J]. The inner expectation, over y alone, is F_R,
# the Fisher of the likelihood by itself. **For every likelihood** it is the mean of H_L: the probabilities add up to 1
# at every z, so the second derivatives of p = exp(-L) add up to 0. They are p (D z D z^T - H_L), and therefore
#
# $$ E_y[H_L] = E_y[D z\, D z^T] = F_R $$
#
# For natural parameters (logits of a softmax, mean of a Gaussian) H_L does not contain y (tutorial 2): it is its own
# mean, so H_L = F_R at every target, and GN = F. Check it on one example by enumerating the classes:

# %%
z = at.z[:1]
p = np.exp(z[0]) / np.exp(z[0]).sum()
enumerated = sum(p[c] * np.outer(p - np.eye(3)[c], p - np.eye(3)[c]) for c in range(3))
hessian_of_nll = np.diag(p) - np.outer(p, p)
assert np.allclose(enumerated, hessian_of_nll)
assert np.allclose(model.likelihood.fisher(z)[0], hessian_of_nll)

# %% [markdown]
# ## What the Hessian has more
#
# $$ H = F + \frac1N \sum_n \sum_c \frac{\partial L_n}{\partial z_c}\, \nabla^2 z_c $$
#
# The second term is the curvature of the network, weighted by how wrong it is: dL/dz_c is the residual of output c.
# It has no sign: H can have negative eigenvalues. Along their eigenvectors d the loss to second order, L + grad^T d +
# 1/2 d^T H d, has no minimum to step to. F, a mean of squares, has none below zero: one divides by F, not by H.
#
# But F can be singular, and is here: one vector added to all rows of the last W moves the logits of an example alike,
# which leaves the softmax as it is. Along these 4 directions F, H and the loss are flat. A singular matrix has no
# inverse; in fact one divides by F + lambda I with a small lambda > 0, the *damping* (tutorials 5 and 8).

# %%
flat = np.vstack([np.zeros((9, 4)), np.kron(np.eye(4), np.ones((3, 1)))])       # a row for each weight
print("smallest eigenvalue of H:", np.linalg.eigvalsh(H)[0].round(3), "  of F:", np.linalg.eigvalsh(F)[0].round(12) + 0)
print("rank of F:", np.linalg.matrix_rank(F, 1e-12))
assert np.linalg.eigvalsh(H)[0] < -1e-3
assert np.linalg.eigvalsh(F)[0] > -1e-12
assert max(np.abs(F @ flat).max(), np.abs(H @ flat).max()) < 1e-12
assert np.linalg.matrix_rank(F, 1e-12) == 21 - 4

# %% tags=["hide-input"]
with plotting.style():
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, M, k, fill in (("Hessian", H, 0, "full"), ("Fisher", F, 1, "none")):
        axes.plot(range(1, len(M) + 1), np.linalg.eigvalsh(M)[::-1], plotting.MARKERS[k], color=plotting.COLOURS[k],
                  label=name, fillstyle=fill, markersize=(5, 9)[k])
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xlabel="eigenvalues, the largest first", ylabel="eigenvalue", xticks=[1, 5, 10, 15, 21])
    axes.legend()
below = int((np.linalg.eigvalsh(H) < -1e-12).sum())
plotting.Picture(figure, f"The eigenvalues of the Hessian and of the Fisher. {below} of the Hessian's {len(H)} are "
                 f"below zero, down to {np.linalg.eigvalsh(H)[0]:.2f}; none of the Fisher's is.")

# %% [markdown]
# ## When they agree
#
# 1. Where every dL/dz is zero: a Gaussian network that fits its targets, y = z. (A softmax never does: p has no zeros.)

# %%
squares = kr.Model(kr.MLP((2, 3, 2), "tanh"), kr.Gaussian())
W = [rng.standard_normal(s) for s in squares.network.shapes]
here = squares.at(W, x)
assert np.allclose(kr.hessian.hessian(here, here.z), kr.fisher_matrix(here), rtol=1e-10, atol=1e-12)

# %% [markdown]
# 2. With one layer: z is linear in theta, its second derivative is zero.

# %%
linear = kr.Model(kr.MLP((2, 3)), kr.Categorical())
here = linear.at([rng.standard_normal((3, 3))], x)
assert np.allclose(kr.hessian.hessian(here, y), kr.fisher_matrix(here), rtol=1e-10, atol=1e-12)

# %% [markdown]
# 3. On the average over targets of the model itself, for **every** network, since there the mean of dL/dz is zero:
#    sum_c p_c (p - e_c) = p - p, with e_c the one-hot vector of class c. (This is E_y[H_L] = F_R once more, in theta.)
#    Average the Hessians over all three classes with their probabilities, example by example:

# %%
mean_H = np.zeros_like(F)
for n in range(len(x)):
    point = model.at(weights, x[n:n + 1])
    p = np.exp(point.z[0]) / np.exp(point.z[0]).sum()
    mean_H += sum(p[c] * kr.hessian.hessian(point, np.array([c])) for c in range(3)) / len(x)
assert np.allclose(mean_H, F, rtol=1e-10, atol=1e-12)
print(f"E over the model's targets of H equals F to {np.abs(mean_H - F).max():.0e}")

# %% [markdown]
# 4. A network of relus is piecewise linear in the weights of any one layer, so the *diagonal* blocks (one layer with
#    itself) agree. The blocks between layers do not: z holds products of weights of two layers.

# %%
relu = kr.Model(kr.MLP((2, 4, 3), "relu"), kr.Categorical())
W = [rng.standard_normal(s) for s in relu.network.shapes]
here = relu.at(W, x)
H, F = kr.hessian.hessian(here, y), kr.fisher_matrix(here)
first = slice(0, W[0].size)
assert np.allclose(H[first, first], F[first, first], rtol=1e-10, atol=1e-12)
assert np.abs(H[first, W[0].size:] - F[first, W[0].size:]).max() > 1e-3

# %% [markdown]
# ## Likelihood and loss: the 1/2
#
# "Squared error" is -log p of a Gaussian only with its variance: with unit variance, -log p = 1/2 ||z - y||^2 +
# const. Leave the 1/2 out and the loss is that of variance 1/2: loss, gradient and curvature double, and F^-1 grad is
# what it was (with a damping lambda added to F, if lambda doubles too). That is not wrong. Wrong is to *mix* the two:
# to take the half in the gradient or in the damping's strength and not in F, or to draw targets with variance 1 and
# square the gradients of ||z - y||^2 there, which gives four times F, not two:

# %%
signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])           # targets about z: mean zero, variance 1
for variance, times in ((1 / 2, 2), (1, 4)):
    g = 2 * np.sqrt(variance) * signs                            # gradients of ||z - y||^2 at targets of this variance
    assert np.allclose(g.T @ g / 4, times * np.eye(2))           # the squares of 1/2 ||z - y||^2 have the mean I

# %% [markdown]
# ### Confusion box: the squared loss without its half
#
# The oracle's problem is that of the halved loss, gradient and damping included; G of ||z - y||^2 in it is such a
# mix. "Layer 1: only the diagonal", since its G is the identity. A "pair" is two mistakes made at once.

# %%
v = kr.oracle.vector("gaussian-tanh")
wrong = [2 * G for G in v.expected["G"]]                         # the curvature of ||z - y||^2
report = kr.oracle.check(v.problem, {"G": wrong})
print(report)
assert ("squared loss without its half",) in [e.names for e in report.explanations]

# %% [markdown]
# ## In practice
#
# Products with F need no matrix: `kr.fisher_product(at, V)` is one R-pass, a small multiplication by F_R, and one
# backward pass. K-FAC uses them to choose the length of its step (tutorial 9).

# %%
at = model.at(weights, x)
V = [rng.standard_normal(W.shape) for W in weights]
FV = kr.fisher_product(at, V)
assert np.allclose(kr.params.flatten(FV), kr.fisher_matrix(at) @ kr.params.flatten(V), rtol=1e-10, atol=1e-12)

# %% [markdown]
# ## Exercises
#
# 1. The Bernoulli likelihood has bits for targets, independent, each 1 with probability p = 1 / (1 + exp(-z)). Show
#    that its F_R is diag(p (1 - p)), by enumerating the bits of two outputs.
# 2. Why is the Hessian of `model` positive definite at no weights at all? That of `squares` is, at targets y = z. Move
#    them away, to z + t r with r random: up to which t > 0 does it stay positive definite? (H is linear in t. Look at
#    the lowest eigenvalue of F first: that t is small.)
# 3. Replace the Gaussian's variance by sigma^2. How do the gradient, F, and the natural gradient F^-1 grad change?
# 4. Write `gauss_newton` without the einsum, as a loop over the examples.
#
# [Answers](answers/03_hessian_gauss_newton_fisher.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Martens (2020), *New insights and perspectives on the natural gradient method*, sections 8 and 9.
# - Martens and Grosse (2015), section 2.2. The code: `kfac_ref/fisher.py`, `kfac_ref/hessian.py`.
