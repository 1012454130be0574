# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 6
#
# The questions stand at the end of [tutorial 6](../06_from_fisher_to_kronecker.py). Try them first.
#
# The network and its six cases are the tutorial's. Here `a` and `g` are lists with one array for each layer.

# %%
import numpy as np

import kfac_ref as kr
from kfac_ref import kronecker

np.set_printoptions(precision=3, suppress=True)
norm = np.linalg.norm
model = kr.Model(kr.MLP((2, 2, 2), "tanh"), kr.Categorical())
weights = [np.array([[1.0, -1.0, 0.5], [0.5, 1.0, 0.0]]), np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]])]
at = model.at(weights, [[1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
w = (np.exp(at.z) / np.exp(at.z).sum(axis=1, keepdims=True)).ravel() / 3
a = [np.repeat(v, 2, axis=0) for v in at.a_bar]                 # (6 cases, 3 inputs)
dz = model.likelihood.gradient(at.z, np.array([[0, 0, 0], [1, 1, 1]]))
g = [v.transpose(1, 0, 2).reshape(6, 2) for v in at.backward(dz)]               # (6 cases, 2 outputs)


def mean(w, *operands):
    """Return the mean over cases of a product of vectors: a tensor with an axis for each of them."""
    letters = "abcd"[:len(operands)]
    return np.einsum("k," + ",".join("k" + v for v in letters) + "->" + letters, w, *operands)


def block(w, a, b, g, h):
    """Return E[(a b^T) kron (g h^T)] and its approximation E[a b^T] kron E[g h^T]."""
    exact = mean(w, a, g, b, h).reshape(a.shape[1] * g.shape[1], -1)
    return exact, np.kron(mean(w, a, b), mean(w, g, h))


F, product = block(w, a[0], a[0], g[0], g[0])
assert np.allclose(F, kr.fisher_block(at, 0, 0))

# %% [markdown]
# ## 1. Between two biases
#
# The input of a bias is 1 in every case. So the products of the inputs of two biases do not vary, and what does not
# vary has no covariance with anything. The mean of 1 * g g' is the mean of g g': these entries of the Fisher are G
# itself. vec stacks columns and the bias is the last column: in F_00 they are the last 2 x 2 square. Between a bias and
# another weight the product of the inputs is a, which varies: there an error is left. The argument asks neither which
# layers the biases are in nor which expectation is taken.

# %%
print(f"error of A ⊗ G\n{(F - product).round(3) + 0.0}")
assert np.allclose(F[4:, 4:], mean(w, g[0], g[0]))
assert np.allclose((F - product)[4:, 4:], 0, rtol=0, atol=1e-14)
assert norm((F - product)[:4, 4:]) > 0.01
F_01, product_01 = block(w, a[0], a[1], g[0], g[1])
assert np.allclose((F_01 - product_01)[4:, 4:], 0, rtol=0, atol=1e-14)

# %% [markdown]
# ## 2. The block between two layers
#
# Nothing changes but the names. With Alpha = a_0 a_1^T and Gamma = g_0 g_1^T (no longer symmetric) R(F_01) is the mean
# of vec(Gamma) vec(Alpha)^T, and the error is their covariance. With deviations b_0, b_1 of the inputs, a_0 a_1 = b_0
# b_1 + E[a_0] b_1 + b_0 E[a_1] + a constant gives the three terms. The first is still a fourth cumulant: g has mean
# zero at every input, and a_1, as a_0, depends on the input alone, so that E[b_1 g_0] = 0 too. Of the pairs only
# E[b_0 b_1] E[g_0 g_1] is left. In F_00 the two terms of third order (before the rearrangement) were each other's
# transpose; here they are not, since the inputs of two layers are different variables.

# %%
def three_terms(w, a, a_next, Gamma):
    """Return Cov(vec Gamma, .) of b b', of E[a] b' and of b E[a'], each rearranged."""
    (m, b), (m_next, b_next) = ((np.tile(w @ v, (len(w), 1)), v - w @ v) for v in (a, a_next))
    return [(Gamma - w @ Gamma).T * w @ np.einsum("ki,kj->kji", u, v).reshape(len(w), -1)
            for u, v in ((b, b_next), (m, b_next), (b, m_next))]


Gamma, Alpha = (np.einsum("ki,kj->kji", u, v).reshape(6, -1) for u, v in (g, a))      # vec of each, a row for each case
covariance = (Gamma - w @ Gamma).T * w @ (Alpha - w @ Alpha)
assert np.allclose(F_01, kr.fisher_block(at, 0, 1))
assert np.allclose(kronecker.rearrange(F_01 - product_01, (3, 3), (2, 2)), covariance, rtol=0, atol=1e-14)
terms = three_terms(w, *a, Gamma)
assert np.allclose(sum(terms), covariance, rtol=0, atol=1e-14)
b = [v - w @ v for v in a]
kappa = mean(w, b[0], g[0], b[1], g[1])                         # by its definition: less each way to make two pairs
for letters, (p, q), (r, s) in (("ac,bd", b, g), ("ab,cd", (b[0], g[0]), (b[1], g[1])),
                                ("ad,bc", (b[0], g[1]), (g[0], b[1]))):
    kappa = kappa - np.einsum(letters + "->abcd", mean(w, p, q), mean(w, r, s))
assert np.allclose(kronecker.rearrange(kappa.reshape(6, 6), (3, 3), (2, 2)), terms[0], rtol=0, atol=1e-14)
print("relative error of A_01 kron G_01:", (norm(covariance) / norm(F_01)).round(2))
print("shares of the terms:", np.tensordot(terms, covariance) / norm(covariance)**2)

# %% [markdown]
# ## 3. Labels
#
# The error is still a covariance: a mean of products less the product of the means is one, whatever the expectation.
# And the three terms still add up to it, since only a a' was split. But they are no longer cumulants. A cumulant is
# made of the deviations of g, not of g, and the fourth subtracts all three ways to make two pairs. At the model's own
# targets that changes nothing, as E[g] and E[b g] are zero. At labels they are not, and the cumulants of the paper's
# formula do not add up to the error. Every part that is missing has a factor E[g] or E[a g]. Now E[g a^T] is the
# gradient of the loss, and E[g] its last column: where the gradient is zero nothing is missing, and the formula holds
# for labels too.

# %%
labels, w, a = np.array([0, 1, 0]), np.full(3, 1 / 3), at.a_bar[0]
at_labels = kr.empirical(labels)
g = at.backward(at_labels(at))[0][0]
F, product = block(w, a, a, g, g)
error = kronecker.rearrange(F - product, (3, 3), (2, 2))
assert np.allclose(error[:, -1], 0, rtol=0, atol=1e-14)         # question 1, with another expectation
assert np.allclose(error, kr.analysis.covariance_error(at, 0, at_labels), rtol=0, atol=1e-14)
Gamma = np.einsum("ki,kj->kji", g, g).reshape(3, -1)
assert np.allclose(sum(three_terms(w, a, a, Gamma)), error, rtol=0, atol=1e-14)
cumulants = sum(kr.analysis.cumulant_terms(at, 0, labels))
print(f"the cumulants miss the error by {norm(cumulants - (F - product)) / norm(F - product):.2f} of its norm")
assert norm(cumulants - (F - product)) > 0.3 * norm(F - product)
E_a, E_g, E_ag = w @ a, w @ g, mean(w, a, g)
assert np.allclose(E_ag.T, at.gradient(labels)[0])
assert np.allclose(E_ag[-1], E_g)
K = mean(w, a - E_a, a - E_a, g - E_g)                          # kappa(a, a', g)
lacking = [np.einsum(letters + "->acbd", *v) for letters, *v in (
    ("c,abd", E_g, K), ("d,abc", E_g, K), ("ac,bd", E_ag, E_ag), ("ad,bc", E_ag, E_ag),
    ("a,b,c,d", E_a, E_a, -2 * E_g, E_g))]
assert np.allclose(cumulants + sum(lacking).reshape(6, 6), F - product, rtol=0, atol=1e-14)
