# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 6. From the Fisher to A ⊗ G
#
# **What you will do.** Make the approximation that gives K-FAC its name, by hand and small, and take its error apart.
#
# **What you will learn.** Where A and G come from; that the error is a covariance; how much of it no choice of A and G
# can remove; when there is none; and what the paper's cumulants are.
#
# **What you need.** Tutorials 1 (vec, Kronecker products, the rearrangement R), 2 (`g`, `a_bar`), 3 and 4 (the Fisher).

# %%
import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

import kfac_ref as kr
from kfac_ref import kronecker, oracle, plotting

np.set_printoptions(precision=3, suppress=True)
norm = np.linalg.norm
model = kr.Model(kr.MLP((2, 2, 2), "tanh"), kr.Categorical())
weights = [np.array([[1.0, -1.0, 0.5], [0.5, 1.0, 0.0]]), np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]])]
at = model.at(weights, [[1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])

# %% [markdown]
# ## Six cases
#
# The Fisher is an expectation over inputs from the data and targets from the model. Three inputs and two classes make
# six **cases** (input, target), with weights w = p(target | input) / 3 that add up to 1. Of each case we need, in layer
# 0, its input with the one appended, `a` (a_bar in tutorial 2), and its gradient `g` at the pre-activations.

# %%
w = (np.exp(at.z) / np.exp(at.z).sum(axis=1, keepdims=True)).ravel() / 3
a = np.repeat(at.a_bar[0], 2, axis=0)                           # (6 cases, 3 inputs of the layer)
dz = model.likelihood.gradient(at.z, np.array([[0, 0, 0], [1, 1, 1]]))      # a row of labels a class: two passes
g = at.backward(dz)[0].transpose(1, 0, 2).reshape(6, 2)         # (6 cases, 2 outputs of the layer)
for k in range(6):
    print(f"case {k + 1}: w = {w[k]:.3f}   a = {a[k]}   g = {g[k]}")
assert np.isclose(w.sum(), 1)

# %% [markdown]
# ## One case: squares come apart
#
# The gradient of one case is `g a^T`, a 2 x 3 matrix (tutorial 2). As a vector of stacked columns it is a Kronecker
# product of two vectors. So its outer product with itself, which the Fisher is the mean of, is a Kronecker product of
# two matrices: Alpha = a a^T and Gamma = g g^T. (They are not the numbers alpha and gamma of the optimizer.)
#
# $$ \mathrm{vec}(g a^T) = a \otimes g, \qquad (a \otimes g)(a \otimes g)^T = (a a^T) \otimes (g g^T) $$

# %%
v = kronecker.vec(np.outer(g[0], a[0]))
print(f"g a^T =\n{np.outer(g[0], a[0])}\nits vec = {v}")
assert np.allclose(v, np.kron(a[0], g[0]))
assert np.allclose(np.outer(v, v), np.kron(np.outer(a[0], a[0]), np.outer(g[0], g[0])))

# %% [markdown]
# ## The mean of products, and the product of means
#
# The block F_00 of the Fisher, the one of layer 0 with itself, is the mean of these 6 x 6 matrices over the cases. So
# far nothing is approximated. K-FAC takes the mean of each half apart, in every block. (That it then leaves out most of
# the blocks *between* layers, or of their inverse, is another approximation: tutorial 7.)
#
# $$ F_{00} = E[\,a a^T \otimes g g^T\,] \quad\approx\quad E[a a^T] \otimes E[g g^T] = A \otimes G $$
#
# A mean of products is the product of the means where the two do not vary together; else the difference is their
# **covariance**. The cell ends with one entry, number by number: the diagonal one of the weight from input 0 to unit 0.

# %%
def factored(k):
    """Return F_00, A and G as means over the first k cases (weights made to add up to 1), and the error of A ⊗ G."""
    both = np.array([np.kron(*pair) for pair in zip(a, g, strict=True)])
    F, A, G = ((v[:k].T * w[:k] / w[:k].sum()) @ v[:k] for v in (both, a, g))
    return F, A, G, norm(F - np.kron(A, G)) / norm(F)


F, A, G, off = factored(6)
print(f"A =\n{A.round(3) + 0.0}\nG =\n{G}\nA ⊗ G is off by {off:.2f} of the norm of F_00")
assert np.allclose(F, kr.fisher_block(at, 0, 0))
assert all(map(np.allclose, (A, G), kr.kronecker_factors(at).layers[0]))
aa, gg = a[:, 0]**2, g[:, 0]**2
print(f"weights {w}\na[0]^2  {aa}\ng[0]^2  {gg}")
print(f"mean of products {w @ (aa * gg):.3f}, product of means {(w @ aa) * (w @ gg):.3f}")
assert np.isclose(F[0, 0] - A[0, 0] * G[0, 0], w @ ((aa - w @ aa) * (gg - w @ gg)))

# %% [markdown]
# ## Case by case
#
# Upper row: the case that comes in, and the error. Lower row: the means so far. Red is positive, blue negative.

# %% tags=["hide-input"]
def draw(axes, M, title):
    axes.imshow(M, cmap="RdBu_r", norm=AsinhNorm(0.2, -3, 3))
    axes.set(title=title, xticks=[], yticks=[])
    for i, j in np.ndindex(M.shape):
        axes.text(j, i, f"{M[i, j].round(2) + 0.0:.2f}", ha="center", va="center", fontsize=9,
                  color="white" if abs(M[i, j]) > 0.9 else "black")


frames, captions = [], []
for k, (a_k, g_k) in enumerate(zip(a, g, strict=True), 1):
    (F_k, A_k, G_k, error), Alpha, Gamma = factored(k), np.outer(a_k, a_k), np.outer(g_k, g_k)
    assert (error < 1e-14) if k <= 2 else (error > 0.1)
    shown = {f"case {k}: Alpha": Alpha, "Gamma": Gamma, "Alpha ⊗ Gamma": np.kron(Alpha, Gamma),
             f"error {error:.2f}: F - A ⊗ G": F_k - np.kron(A_k, G_k), f"mean of {k}: A": A_k, "G": G_k,
             "F, mean of Alpha ⊗ Gamma": F_k, "A ⊗ G": np.kron(A_k, G_k)}
    with plotting.style():
        frames.append(Figure(figsize=(11, 6), layout="constrained"))
        panels = frames[-1].subplots(2, 4, width_ratios=(3, 2, 6, 6)).flat          # more room for the large ones
        for axes, (title, M) in zip(panels, shown.items(), strict=True):
            draw(axes, M, title)
    captions.append(f"Case {k} of 6: input {(k + 1) // 2}, target {2 - k % 2}. Relative error of A ⊗ G: {error:.2f}.")
plotting.Player(frames, captions, "Means over cases: F, A and G form")

# %% [markdown]
# With the first input alone Alpha is constant: no error. With the second there is something that can vary together.
#
# ## The error is a covariance
#
# The rearrangement R turns `A ⊗ G` into `vec(G) vec(A)^T`. It only moves entries, so R of a mean is the mean of the
# R. Apply it to both sides of the approximation:
#
# $$ R(F_{00}) = E[\mathrm{vec}(\mathrm{Gamma})\, \mathrm{vec}(\mathrm{Alpha})^T] $$
#
# $$ R(A \otimes G) = E[\mathrm{vec}(\mathrm{Gamma})]\; E[\mathrm{vec}(\mathrm{Alpha})]^T $$
#
# Their difference is Cov(vec Gamma, vec Alpha): each row a pair of gradients, each column a pair of inputs, each entry
# the covariance of the two products. **A ⊗ G is exact where products of inputs and of gradients are uncorrelated,
# and only there.** And since `A ⊗ G` has become a matrix of rank one, the best that *any* A and G can do is the
# leading singular triple of R(F_00); the norm of the other singular values is an error that stays.

# %% tags=["hide-input"]
Gammas, Alphas = (np.einsum("ki,kj->kji", v, v).reshape(6, -1) for v in (g, a))       # vec of each, a row for each case
covariance = (Gammas - w @ Gammas).T * w @ (Alphas - w @ Alphas)
R, R_product = (kronecker.rearrange(M, (3, 3), (2, 2)) for M in (F, np.kron(A, G)))
assert np.allclose(R - R_product, covariance, rtol=0, atol=1e-14)
assert np.allclose(kr.analysis.covariance_error(at, 0), covariance, rtol=0, atol=1e-14)
best = norm(np.linalg.svd(R, compute_uv=False)[1:]) / norm(F)
print(f"relative error of A ⊗ G: {off:.2f}, of the nearest Kronecker product: {best:.2f}")
assert best < off / 2
pairs = [[f"{s}{i} {s}{j}" for j in range(n) for i in range(n)] for s, n in (("a", 3), ("g", 2))]      # as in vec
with plotting.style():
    figure = Figure(figsize=(6, 7), layout="constrained")
    titles = "R(F)", "R(A ⊗ G) = vec(G) vec(A)ᵀ", "the difference, Cov(vec Gamma, vec Alpha)"
    for axes, M, title in zip(figure.subplots(3, 1), (R, R_product, covariance), titles, strict=True):
        draw(axes, M, title)
        axes.set(xticks=range(9), xticklabels=pairs[0], yticks=range(4), yticklabels=pairs[1])
        axes.grid(False)
plotting.Picture(figure, "Three tables, a row for each pair of gradients, a column for each pair of inputs (a2 is the "
                 f"one appended): R(F), R(A ⊗ G), their difference. Relative error of A ⊗ G {off:.2f}, of the nearest "
                 f"product {best:.2f}. The last column of the difference, bias with bias, is zero.")

# %% [markdown]
# ## Cumulants
#
# The paper (section 3) writes the error of an entry with joint **cumulants** kappa: of three variables the mean of
# the product of their deviations from their means; of four the same, minus E[..] E[..] for each way to make two pairs
# of deviations. All of these are zero for jointly Gaussian variables; and they can be zero for others, as the table
# below shows.
#
# Let b and b' be the deviations of two inputs, so that a a' = b b' + E[a] b' + E[a'] b + a constant. The covariance of
# this with g g' is a sum of three, the terms of the paper:
#
# - Cov(b b', g g') = **kappa(a, a', g, g')**: of the pairs only E[b b'] E[g g'] is left, since g has mean zero at every
#   input (see the next box), so that E[b g] = 0, and so on;
# - E[a] Cov(b', g g') = **E[a] kappa(a', g, g')**; and the same with a and a' exchanged.
#
# The cell projects each term onto the error: shares add up to 1, and one below zero works against the others. Here
# nearly all is of third order, which is there only because inputs have means (the appended one always has).

# %%
mean = np.tile(w @ a, (6, 1))
terms = [(Gammas - w @ Gammas).T * w @ np.einsum("ki,kj->kji", u, v).reshape(6, 9)
         for u, v in ((a - mean, a - mean), (mean, a - mean), (a - mean, mean))]
assert np.allclose(sum(terms), covariance, rtol=0, atol=1e-14)
paper = [kronecker.rearrange(M, (3, 3), (2, 2)) for M in kr.analysis.cumulant_terms(at, 0)]
assert np.allclose(terms, paper, rtol=0, atol=1e-14)
shares = np.tensordot(terms, covariance) / np.vdot(covariance, covariance)
print("shares of the error, 4th order, 3rd, 3rd:", shares)
assert shares[1:].sum() > 0.9

# %% [markdown]
# ### Confusion box: the square of the mean
#
# G is the mean of squares. The square of the mean is easier to get from a framework, and zero here: under the model's
# own targets the mean of g is zero at every input. (At labels it is not; the square is then of rank one.)

# %%
print("mean of g:", (w @ g).round(9) + 0.0)
print(oracle.CATALOGUE["square of the mean gradient"])
assert np.allclose((w[:, None] * g).reshape(3, 2, 2).sum(axis=1), 0)

# %% [markdown]
# ## When it is exact
#
# Alpha depends on the input alone, so the covariance is zero if Alpha is the same for all inputs, or if the mean of
# Gamma given the input is. The second is so where nothing between layer and loss depends on the input: no nonlinearity
# above, and a likelihood whose own Fisher F_R (tutorial 3) is constant, as the Gaussian's is: the identity. Rows with
# `model` have the mean over all targets; those with `one` have one target an input, drawn once, as labels would be.

# %%
rng = np.random.default_rng(0)
x6, start = rng.standard_normal((6, 3)), [rng.standard_normal((3, 4)), rng.standard_normal((2, 4))]
for layer, N, hidden, likelihood, targets, exact in (
        (0, 1, "tanh", "Categorical", "model", True), (0, 1, "tanh", "Categorical", "one", True),
        (0, 6, "tanh", "Categorical", "model", False), (0, 6, "identity", "Categorical", "model", False),
        (0, 6, "identity", "Gaussian", "model", True), (0, 6, "identity", "Gaussian", "one", False),
        (1, 6, "tanh", "Gaussian", "model", True), (1, 6, "tanh", "Categorical", "model", False)):
    here = kr.Model(kr.MLP((3, 3, 2), hidden), getattr(kr, likelihood)()).at(start, x6[:N])
    expectation = kr.exact if targets == "model" else kr.sampled(here.sample(rng))
    error = kr.analysis.covariance_error(here, layer, expectation)
    e = norm(error) / norm(kr.fisher_block(here, layer, layer, expectation))
    print(f"layer {layer}, N = {N}, {hidden:8} {likelihood:11} {targets:6} ", "exact" if e < 1e-13 else f"{e:.3f}")
    assert (e < 1e-13) if exact else (e > 1e-3)

# %% [markdown]
# ## In practice
#
# `kr.kronecker_factors(at)` has A and G of all layers, `kr.analysis.covariance_error(at, i)` the error. In a real
# network the error need not be small. One hidden layer of a small classifier of the digits, early and later in one
# training:

# %%
data = kr.datasets.digits()
opt = kr.optimizers.KFAC(kr.Model(kr.MLP((64, 12, 12, 10), "tanh"), kr.Categorical()))
for steps in (1, 50):
    run = kr.training.train(opt, opt.model.init(np.random.default_rng(0)), data.x, data.labels, steps, progress=False)
    here = opt.model.at(run.state.weights, data.x)
    values = kronecker.nearest_product(kr.fisher_block(here, 1, 1), (13, 13), (12, 12))[2]
    ours, best = (norm(M) / norm(values) for M in (kr.analysis.covariance_error(here, 1), values[1:]))
    print(f"after {steps:2} steps: A ⊗ G off by {ours:.2f}, the nearest product by {best:.2f}")
    assert ours / 2 < best < ours
    assert (ours > 0.4) == (steps == 50)

# %% [markdown]
# More than half of this error is out of reach of any Kronecker product. What makes a good step of such a matrix all the
# same are its damping (tutorial 8) and the choice of the step's length (tutorial 9).
#
# ## Exercises
#
# 1. Between two biases `A ⊗ G` is always exact. Why? Find these entries in F_00.
# 2. Make the covariance and its three terms for the block between layers 0 and 1 (`at.a_bar[1]`, `g[1]`), with `A_01
#    = E[a_0 a_1^T]` and `G_01 = E[g_0 g_1^T]`.
# 3. Take labels in place of the model's targets. Is the error still a covariance? Are the three terms still cumulants?
#
# [Answers](answers/06_from_fisher_to_kronecker.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Martens and Grosse (2015), section 3. The code: `kfac_ref/analysis/covariance.py`; `tests/test_exactness.py`.
