# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 1
#
# The questions stand at the end of [tutorial 1](../01_vec_and_kronecker.py). Try them first.

# %%
import numpy as np

from kfac_ref import kronecker

rng = np.random.default_rng(0)
n, m = 3, 4

# %% [markdown]
# ## 1. The product of two Kronecker products
#
# Random matrices show that it holds; the blocks show why. Block (i, k) of `A ⊗ G` is A[i, k] G and block (k, j) of
# `C kron D` is C[k, j] D. Blocks multiply like entries, so block (i, j) of the product is
#
# $$ \sum_k A_{ik} G\, C_{kj} D = \Big(\sum_k A_{ik} C_{kj}\Big)\, G D = (AC)_{ij}\, GD $$
#
# and that is block (i, j) of `AC kron GD`. Nothing has to be square: AC and GD must exist, no more. With C = A^-1 and
# D = G^-1 the right side is I kron I = I, which is the rule for the inverse.

# %%
A, C = rng.standard_normal((2, n)), rng.standard_normal((n, 5))
G, D = rng.standard_normal((3, m)), rng.standard_normal((m, 2))
difference = np.kron(A, G) @ np.kron(C, D) - np.kron(A @ C, G @ D)
assert np.allclose(difference, 0, atol=1e-12)
print("1. a", np.kron(A, G).shape, "matrix times a", np.kron(C, D).shape, "one: the two sides agree")
A, G = rng.standard_normal((n, n)), rng.standard_normal((m, m))
inverse = np.kron(np.linalg.solve(A, np.eye(n)), np.linalg.solve(G, np.eye(m)))
assert np.allclose(np.kron(A, G) @ inverse, np.eye(m * n), atol=1e-9)

# %% [markdown]
# ## 2. vec in row order
#
# The columns of V are the rows of its transpose, and NumPy's own order stacks rows. So vec(V) is `V.T.ravel()`. The
# way back takes the steps in reverse: read v as n rows of m numbers, which is the transpose, and transpose that. The
# slip to avoid is `v.reshape(m, n)`. It has the right shape and puts the numbers in the wrong places.

# %%
def vec(V):
    return V.T.ravel()


def unvec(v, m, n):
    return v.reshape(n, m).T


V = rng.standard_normal((m, n))
assert np.array_equal(vec(V), kronecker.vec(V))
assert np.array_equal(unvec(vec(V), m, n), V)
slip = vec(V).reshape(m, n)
print(f"2. the way back is exact; reshape(m, n) alone puts {np.sum(slip != V)} of {m * n} numbers in wrong places")
assert slip.shape == V.shape
assert np.sum(slip != V) > m * n / 2

# %% [markdown]
# ## 3. The determinant
#
# With A (n, n) and G (m, m), det(A ⊗ G) = det(A)^m det(G)^n: each is raised to the size of the *other* matrix. The
# reason: by answer 1, `A ⊗ G` is `(A kron I)(I kron G)`. The second is block diagonal with n copies of G, so its
# determinant is det(G)^n. The first is `I kron A`, m copies of A, after rows and columns are put into another order,
# the same for both, which changes no determinant. The trace has no powers, since the diagonal of
# `A ⊗ G` holds each product A[i, i] G[j, j] once.
#
# The guess det(A) det(G) fails already for A = I: there `A ⊗ G` is n copies of G.

# %%
K = np.kron(A, G)
dets = np.linalg.det(A), np.linalg.det(G)
print(f"3. det {np.linalg.det(K):.4f}, det(A)^m det(G)^n {dets[0]**m * dets[1]**n:.4f}, "
      f"det(A) det(G) {dets[0] * dets[1]:.4f}")
assert np.isclose(np.linalg.det(K), dets[0]**m * dets[1]**n, rtol=1e-9)
assert not np.isclose(np.linalg.det(K), dets[0] * dets[1], rtol=0.5)
assert np.isclose(np.trace(K), np.trace(A) * np.trace(G), rtol=1e-10)

# %% [markdown]
# ## 4. Damping added to the product, exactly
#
# A and G are symmetric: A = Q_A diag(a) Q_A^T and G = Q_G diag(g) Q_G^T, with orthogonal Q. By answer 1,
# `A ⊗ G = (Q_A kron Q_G)(diag(a) kron diag(g))(Q_A kron Q_G)^T`. The matrix in the middle is diagonal and holds all
# products a_i g_j. `damping I` is the same in every orthogonal basis, so the sum is diagonal in this one, with the
# entries a_i g_j + damping. Turn V into that basis, divide entry by entry, and turn back:
#
# $$ X = Q_G \left[ \frac{Q_G^T V Q_A}{g a^T + \mathrm{damping}} \right] Q_A^T $$
#
# Two Cholesky factorizations cannot do it. Unless A or G is a multiple of I, the sum is no Kronecker product: its
# rearrangement, vec(G) vec(A)^T + damping vec(I) vec(I)^T, has rank two. For damped factors, `(A + r I) kron (G + r
# I)` with r^2 = damping, they would do, but that is another matrix: it exceeds this one by r (A kron I + I kron G).

# %%
A, G = A @ A.T / n, G @ G.T / m
damping = 0.1
a, Q_A = np.linalg.eigh(A)
g, Q_G = np.linalg.eigh(G)
X = Q_G @ ((Q_G.T @ V @ Q_A) / (np.outer(g, a) + damping)) @ Q_A.T
damped = np.kron(A, G) + damping * np.eye(m * n)
assert np.allclose(damped @ vec(X), vec(V), rtol=1e-10, atol=1e-10)
assert np.linalg.matrix_rank(kronecker.rearrange(damped, (n, n), (m, m))) == 2
r = np.sqrt(damping)
factored = np.kron(A + r * np.eye(n), G + r * np.eye(m))
assert np.allclose(factored - damped, r * (np.kron(A, np.eye(m)) + np.kron(np.eye(n), G)), atol=1e-12)
other = np.linalg.solve(factored, vec(V))
off = np.linalg.norm(other - vec(X)) / np.linalg.norm(X)
print(f"4. exact to rounding; the solution with damped factors is off by {off:.2f}")
assert off > 0.1
