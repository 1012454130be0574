# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 1. vec and Kronecker
#
# **What you will do.** Write a linear map on matrices as one big matrix, see that it is a Kronecker product, and
# solve with it without ever forming it.
#
# **What you will learn.** The two vec conventions and how one mixes them up; why `G^-1 V A^-1` is the whole trick of
# K-FAC; what it costs; and how to find the Kronecker product nearest to any matrix.
#
# **What you need.** Matrix products, inverses, the singular value decomposition. No calculus.
#
# K-FAC divides a gradient by a large matrix, that is, multiplies it with the inverse. The matrix is the Fisher matrix,
# which tutorial 3 defines. For now it is any large matrix that has one row for each weight of a layer. K-FAC takes a
# Kronecker product of two small matrices, A and G, for it.

# %%
import time

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import kfac_ref as kr
from kfac_ref import kronecker, oracle, plotting

rng = np.random.default_rng(0)

# %% [markdown]
# ## A Kronecker product by hand
#
# `A ⊗ G` is a block matrix: block (i, j) is the number A[i, j] times the whole of G.

# %%
A = np.array([[1.0, 2.0], [3.0, 4.0]])
G = np.array([[0.0, 1.0], [1.0, 0.0]])
K = np.block([[A[0, 0] * G, A[0, 1] * G], [A[1, 0] * G, A[1, 1] * G]])
print(K)
assert np.array_equal(K, np.kron(A, G))

# %% [markdown]
# ## vec: a matrix as a vector
#
# A matrix of weights has to become a vector before a matrix with a row for each weight can act on it. There are two
# ways: stack its columns, or stack its rows. This package stacks **columns**, as the paper does, and calls it vec;
# NumPy's `ravel()` stacks rows by default.

# %%
V = np.array([[1, 3, 5], [2, 4, 6]])
print("columns:", kronecker.vec(V), "   rows:", V.ravel())
assert kronecker.vec(V).tolist() == [1, 2, 3, 4, 5, 6]
assert V.ravel().tolist() == [1, 3, 5, 2, 4, 6]

# %% [markdown]
# ## The identity on which everything rests
#
# $$ (A \otimes G)\, \mathrm{vec}(V) = \mathrm{vec}(G\, V A^T) $$
#
# The left side multiplies with a matrix of (mn)^2 entries, the right side with two small ones. Here A belongs to the
# columns of V (the *inputs* of a layer) and G to its rows (the *outputs*).

# %%
n, m = 3, 4
A, G, V = rng.standard_normal((n, n)), rng.standard_normal((m, m)), rng.standard_normal((m, n))
left = np.kron(A, G) @ kronecker.vec(V)
right = kronecker.vec(G @ V @ A.T)
print("largest difference:", np.abs(left - right).max())
assert np.allclose(left, right, rtol=1e-12, atol=1e-12)

# %% [markdown]
# With rows stacked, the same map is the *other* Kronecker product: `(G kron A) ravel(V) = ravel(G V A^T)`. The order
# of the factors belongs to the vec.

# %%
assert np.allclose(np.kron(G, A) @ V.ravel(), (G @ V @ A.T).ravel(), rtol=1e-12, atol=1e-12)

# %% [markdown]
# ### Confusion box: the factors in the wrong order
#
# The wrong code forms `kron(G, A)` and multiplies it with a vector of stacked columns. It runs, since the sizes fit.
# The number it gives, and the entry for it in the catalogue of mistakes that the package keeps:

# %%
wrong = np.kron(G, A) @ kronecker.vec(V)
print(f"off by {np.linalg.norm(wrong - right) / np.linalg.norm(right):.2f} of the norm of the right answer")
print(oracle.CATALOGUE["Kronecker factors in the wrong order"])
assert np.linalg.norm(wrong - right) > 0.5 * np.linalg.norm(right)

# %% [markdown]
# ## Inverting: two small matrices in place of a large one
#
# `(A ⊗ G)^-1 = A^-1 kron G^-1`, and so
#
# $$ (A \otimes G)^{-1}\, \mathrm{vec}(V) = \mathrm{vec}(G^{-1} V A^{-T}) $$
#
# For symmetric positive definite A and G, two Cholesky factorizations do it. No Kronecker product is formed.

# %%
def positive(d: int) -> np.ndarray:
    """Return a random symmetric positive definite matrix."""
    X = rng.standard_normal((2 * d, d))
    return X.T @ X / (2 * d)


A, G = positive(n), positive(m)
X = kronecker.solve(kronecker.Cholesky.factor(A), kronecker.Cholesky.factor(G), V)
assert np.allclose(np.kron(A, G) @ kronecker.vec(X), kronecker.vec(V), rtol=1e-10, atol=1e-10)
assert np.allclose(X, np.linalg.solve(A, np.linalg.solve(G, V).T).T, rtol=1e-10, atol=1e-10)

# %% [markdown]
# ### What it costs
#
# A layer with n inputs and m outputs has mn weights. The dense solve, by Cholesky, takes about (mn)^3 / 3 operations
# (additions and multiplications, half of each) and (mn)^2 numbers of memory. The factored one takes n^3/3 + m^3/3 for
# the two factorizations and 2mn(m + n) for the solves with them, and n^2 + m^2 numbers.

# %%
print("   n    m     operations: dense   factored   times fewer   dense MB")
for n, m in ((10, 10), (65, 32), (785, 1000)):
    dense = (m * n)**3 / 3
    factored = n**3 / 3 + m**3 / 3 + 2 * m * n * (m + n)
    print(f"{n:4} {m:4} {dense:21.1e} {factored:10.1e} {dense / factored:13.0e} {8 * (m * n)**2 / 1e6:10.1f}")
assert dense / factored > 1e7

# %% [markdown]
# The last line is the first layer of the paper's MNIST autoencoder: five terabytes, or two small matrices. On a
# layer that still fits, both ways give the same numbers, and the factored one is faster. (The cell asserts it, and
# prints no seconds, since they differ from run to run.)

# %%
n, m = 40, 30
A, G, V = positive(n), positive(m), rng.standard_normal((m, n))
start = time.perf_counter()
x = np.linalg.solve(np.kron(A, G), kronecker.vec(V))
dense_seconds = time.perf_counter() - start
start = time.perf_counter()
X = kronecker.solve(kronecker.Cholesky.factor(A), kronecker.Cholesky.factor(G), V)
factored_seconds = time.perf_counter() - start
assert np.allclose(x, kronecker.vec(X), rtol=1e-6, atol=1e-6 * np.abs(x).max())
assert factored_seconds < dense_seconds
print(f"one {m * n} x {m * n} solve or a {n} x {n} and a {m} x {m} one: the same numbers, the second way faster")

# %% [markdown]
# ## The rearrangement
#
# How far is a matrix from being a Kronecker product? Move its entries about: take its m x m blocks one after the
# other, down the first column of blocks, then down the second, and stack the columns of each into one column of a new
# matrix. This is the rearrangement R. In a Kronecker product every block is a multiple of G, so all columns of R are
# multiples of vec(G), and R is a matrix of **rank one**:
#
# $$ R(A \otimes G) = \mathrm{vec}(G)\, \mathrm{vec}(A)^T $$

# %%
n, m = 3, 4
A, G = rng.standard_normal((n, n)), rng.standard_normal((m, m))
R = kronecker.rearrange(np.kron(A, G), (n, n), (m, m))
print("shape of R:", R.shape, "  rank:", np.linalg.matrix_rank(R))
assert np.allclose(R, np.outer(kronecker.vec(G), kronecker.vec(A)))
assert np.linalg.matrix_rank(R) == 1

# %% [markdown]
# Step through it, block by block. Both matrices hold the same numbers, on one scale of colours:

# %% tags=["hide-input"]
K = np.kron(A, G)
top = np.abs(K).max()
frames, captions = [], []
for k in range(n * n):
    i, j = k % n, k // n                                        # down the columns of blocks
    shown = np.where(np.arange(n * n) <= k, R, np.nan)          # the columns of R filled so far
    assert np.array_equal(shown[:, k], kronecker.vec(K[i * m:(i + 1) * m, j * m:(j + 1) * m]))
    with plotting.style():
        figure = Figure(figsize=(7.6, 4.4), layout="constrained", dpi=80)
        left, right = figure.subplots(1, 2, width_ratios=(4, 3))
        for axes, M in ((left, K), (right, shown)):
            image = axes.imshow(M, cmap="RdBu_r", vmin=-top, vmax=top)
            axes.grid(False)
        left.set(title="A ⊗ G, 12 x 12", xticks=np.arange(-0.5, 12, m), yticks=np.arange(-0.5, 12, m))
        left.tick_params(labelbottom=False, labelleft=False, length=0)
        left.grid(True, color="black", alpha=1)
        left.add_patch(Rectangle((j * m - 0.5, i * m - 0.5), m, m, fill=False, linewidth=4))
        right.set(title="R, 16 x 9", xlabel="column", xticks=range(n * n), yticks=[])
        right.add_patch(Rectangle((k - 0.5, -0.5), 1, m * m, fill=False, linewidth=4))
        figure.colorbar(image, ax=right, label="entry")
    frames.append(figure)
    captions.append(f"Block ({i}, {j}) of A ⊗ G is {A[i, j]:.2f} G. Its columns, stacked, are column {k} of R.")
plotting.Player(frames, captions, "The rearrangement of a Kronecker product, block by block")

# %% [markdown]
# So the Kronecker product nearest to *any* matrix B (in the sum of squared differences, the Frobenius norm) comes from
# the nearest matrix of rank one to R(B). That is s u w^T, the largest singular value with its two singular vectors.
# Share s between them and put their numbers back into matrices: vec(G) = sqrt(s) u, vec(A) = sqrt(s) w. The root of the
# sum of squares of the other singular values is the error that no Kronecker product can remove. This returns in
# tutorial 6, where B is a block of the Fisher and the error is a covariance.

# %%
B = sum(np.kron(positive(n), positive(m)) for _ in range(3))                    # a sum of three: rank three
best_A, best_G, singular = kronecker.nearest_product(B, (n, n), (m, m))
error = np.linalg.norm(B - np.kron(best_A, best_G))
print("singular values of R(B):", np.round(singular[:4], 4))
print(f"error of the best product {error:.4f} = root of {singular[1]:.4f}^2 + {singular[2]:.4f}^2")
assert np.isclose(error, np.sqrt(np.sum(singular[1:]**2)))
assert singular[3] < 1e-12 * singular[0]
u, s, wt = np.linalg.svd(kronecker.rearrange(B, (n, n), (m, m)))
assert np.allclose(np.outer(kronecker.vec(best_G), kronecker.vec(best_A)), s[0] * np.outer(u[:, 0], wt[0]))

# %% [markdown]
# ## In practice
#
# `kr.curvature.BlockDiagonal(factors, damping).solve(gradient)` does this for every layer of a network; what factors
# and damping are, tutorials 6 and 8 say. Where your own K-FAC multiplies out a Kronecker product at all, `kfac-ref
# check` compares it: the quantity is called `kfac_block`. Here on `v`, a published test vector: a small network, its
# data, and all right values for it. Two explanations come back, which these numbers cannot tell apart: the factors are
# swapped by mistake, or rows were stacked on purpose, for which kron(G, A) is right. In the last line `step` is the way
# that the weights go: downhill, so minus the solution.

# %%
v = oracle.vector("categorical-tanh")
swapped = [np.kron(G, A) for A, G in zip(v.expected["A"], v.expected["G"], strict=True)]
report = oracle.check(v.problem, {"kfac_block": swapped})
print([e.names for e in report.explanations])
assert not report.ok
assert {e.names for e in report.explanations} == {("Kronecker factors in the wrong order",), ("row-major vec",)}
factors = kr.kronecker_factors(v.problem.at())
step = kr.curvature.BlockDiagonal(factors, v.problem.damping).solve(v.expected["gradient"])
assert all(np.allclose(-s, d) for s, d in zip(step, v.expected["step"], strict=True))

# %% [markdown]
# ## Exercises
#
# 1. Show that `(A ⊗ G)(C kron D) = AC kron GD`: by their blocks, and with random matrices.
# 2. Write `vec` and its inverse without `order="F"`.
# 3. The trace of `A ⊗ G` is the product of the traces. What is its determinant? Check your guess.
# 4. The eigenvalues of `A ⊗ G` are all products of an eigenvalue of A and one of G. Use this to solve with `A kron
#    G + damping I` exactly, for symmetric A and G, from two small eigendecompositions. (Tutorial 8 needs it.)
#
# [Answers](answers/01_vec_and_kronecker.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Van Loan, *The ubiquitous Kronecker product* (2000).
# - Van Loan and Pitsianis, *Approximation with Kronecker products* (1993): the rearrangement.
# - Martens and Grosse (2015), sections 3 and 4.2. The code: `kfac_ref/kronecker.py`.
