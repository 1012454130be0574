# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 11
#
# The questions stand at the end of [tutorial 11](../11_the_family.py). Try them first.

# %%
import numpy as np

import kfac_ref as kr
from kfac_ref import params
from kfac_ref.experiments import family

data = kr.datasets.digits()
x, y = data.x[:300].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16), data.labels[:300]


def trained(hidden, likelihood, y, steps=50):                   # the model on all examples after some steps of K-FAC
    model = kr.Model(kr.MLP((16, 8, 8, 10), hidden), likelihood, weight_decay=1e-5)
    opt = kr.optimizers.KFAC(model, judged_on="same batch", T1=5)
    state = opt.init(model.init(np.random.default_rng(0), "glorot"), seed=0)
    for _ in range(steps):
        state, _ = opt.step(state, x, y)
    return model.at(state.weights, x)


def distance(B, exact):                                         # the tutorial's "off by"
    return np.linalg.norm(B - exact) / np.linalg.norm(exact)


at = trained("relu", kr.Categorical(), y)                       # where the tutorial is
factors, F = kr.kronecker_factors(at), kr.fisher_matrix(at)
ends = np.cumsum([0, *(W.size for W in at.weights)])
layers = [slice(ends[i], ends[i + 1]) for i in range(3)]
block = F[layers[1], layers[1]]

# %% [markdown]
# ## 1. The best diagonal in a basis
#
# Let Q be the eigenbasis of A ⊗ G and s any diagonal. The norm does not change when both matrices are rotated:
#
# $$ \|Q\, \mathrm{diag}(s)\, Q^T - F\|^2 = \|\mathrm{diag}(s) - Q^T F Q\|^2
#    = \sum_i \left(s_i - (Q^T F Q)_{ii}\right)^2 + \sum_{i \ne j} (Q^T F Q)_{ij}^2 $$
#
# The second sum does not depend on s. (F stands for the block of the layer.) The first is zero at s_i = (Q^T F Q)_ii,
# and that is the mean square of coordinate i of the gradients: EKFAC's S. For any other s, such as the products of
# eigenvalues that A ⊗ G has, the squared error is larger by exactly ||s - S||^2.

# %%
Q = np.kron(*(np.linalg.eigh(M)[1] for M in (factors.A[1], factors.G[1])))
S = np.diag(Q.T @ block @ Q)
assert np.allclose(S, kr.kronecker.vec(kr.curvature.EKFAC(at).scales[1]), atol=1e-12)
products = np.kron(*(np.linalg.eigvalsh(M) for M in (factors.A[1], factors.G[1])))
for name, s in (("products", products), ("ones", np.ones(len(S))), ("half of S", S / 2)):
    squares = [np.linalg.norm(Q @ np.diag(t) @ Q.T - block)**2 for t in (s, S)]
    print(f"{name}: squared error {squares[0]:.3f}, of S {squares[1]:.3f}, distance {np.sum((s - S)**2):.3f}")
    assert np.isclose(squares[0], squares[1] + np.sum((s - S)**2))

# %% [markdown]
# ## 2. A single example
#
# For one example a is fixed, so the expectation of a product over the examples is the product:
#
# $$ F_{11} = \mathrm{E}[a a^T \otimes g g^T] = a a^T \otimes \mathrm{E}[g g^T] $$
#
# where the expectation that is left is over the targets. So in the block of a layer A ⊗ G is exact, and so are all
# that are exact wherever the block is a Kronecker product: EKFAC, TKFAC, the nearest. So is KFRA: its slopes do not
# vary. Between layers the same holds, so F̃ is the whole F. F̂ is, too: with a fixed and the slopes fixed, g_i is a
# constant matrix times g_(i+1), so the next layer explains a layer completely, as the chain assumes. (It is off by a
# little, since it needs a damping: of 1e-8 the factors get the root, 1e-4.) Not exact are: the diagonal; FOOF, which
# does not know G; one sampled target, as E[g g^T] takes all of them; and Shampoo, whose roots give
#
# $$ (\mathrm{tr}\, G)^{1/2}\; a a^T \otimes G^{1/2}, $$
#
# which is the block only where G has rank one. All that drop the blocks between layers are off in the whole matrix.

# %%
one = at.model.at(at.weights, x[1:2])
F_1, targets, in_block = kr.fisher_matrix(one), one.sample(np.random.default_rng(1)), {}
whole = family.frobenius_errors(one, targets, F_1)
for name, make in family.FAMILY.items():
    made = make(one, 1e-8, targets).dense()[layers[1], layers[1]]
    in_block[name] = distance(made, F_1[layers[1], layers[1]])
    print(f"{name:28} off by {in_block[name]:.0e} in the block of layer 1, {whole[name]:.0e} in all")
not_exact = {"A ⊗ G, sampled", "Shampoo (roots)", "FOOF (A alone)", "diagonal"}
assert all((error > 0.1) if name in not_exact else (error < 0.01) for name, error in in_block.items())
exact = {"exact F", "F̃ (all blocks A ⊗ G)", "F̂ (tridiagonal inverse)"}
assert all((error < 0.01) if name in exact else (error > 0.1) for name, error in whole.items())
a, (w, U) = one.a_bar[1], np.linalg.eigh(kr.kronecker_factors(one).G[1])
shampoo = np.sqrt(w.sum()) * np.kron(a.T @ a, U * np.sqrt(np.maximum(w, 0)) @ U.T)
found = family.FAMILY["Shampoo (roots)"](one, 0.0, targets).dense()[layers[1], layers[1]]
assert distance(shampoo, found) < 1e-6

# %% [markdown]
# ## 3. A linear network
#
# With slopes of one, g of layer 1 is W^T (p - y) with W fixed: G is W^T E[F_R] W, and nothing had to be taken as
# independent. A ⊗ G is another question. The block is E[a a^T kron W^T F_R W], and F_R = diag(p) - p p^T depends on
# the example, as a does: so A ⊗ G is not the block of a classifier. At the start, where p is nearly the same
# everywhere, it is near; after 50 steps it is not. With the Gaussian likelihood F_R is the identity for all examples,
# and A ⊗ G of a linear network is exact.

# %%
for name, likelihood, labels in (("Categorical", kr.Categorical(), y), ("Gaussian", kr.Gaussian(), np.eye(10)[y])):
    off = {}
    for steps in (0, 50):
        linear = trained("identity", likelihood, labels, steps)
        W, both = linear.weights[2][:, :-1], kr.kronecker_factors(linear)
        kfra = W.T @ likelihood.fisher(linear.z).mean(axis=0) @ W
        off[steps] = distance(np.kron(both.A[1], both.G[1]), kr.fisher_matrix(linear)[layers[1], layers[1]])
        print(f"{name}, {steps} steps: KFRA's G off by {distance(kfra, both.G[1]):.3f}, A ⊗ G by {off[steps]:.3f}")
        assert np.allclose(kfra, both.G[1], rtol=1e-9, atol=1e-12)
    assert max(off.values()) < 1e-9 if name == "Gaussian" else off[50] > 3 * off[0] > 0.03

# %% [markdown]
# ## 4. FOOF with the right trace
#
# The number makes the error fall from above 20 to just below 1, which is the error of the zero matrix. FOOF had the
# wrong size; what remains is the wrong shape. The step does not change at all: a factor c of the matrix is a factor 1/c
# of the step, and alpha takes it out again. The damping has to be multiplied by c, too; where each matrix chooses its
# own damping, the choice sees to that.
#
# A number for *each layer* does change the direction of the whole step, and here the step improves: G, as K-FAC has it,
# is needed at least for its size in each layer.

# %%
foof = kr.curvature.InputOnly(factors).dense()
grad, damped = params.flatten(at.gradient(y)), F + 1e-3 * np.eye(len(F))


def worth(C):                                                   # decrease of M by the best multiple, of the natural one
    step = np.linalg.solve(C, grad)
    return (grad @ step)**2 / (step @ damped @ step) / (grad @ np.linalg.solve(damped, grad))


c = np.trace(F) / np.trace(foof)
each = np.concatenate([np.full(i.stop - i.start, np.trace(F[i, i]) / np.trace(foof[i, i])) for i in layers])
matrices = {"FOOF": foof, "right trace": c * foof, "right trace in each layer": each[:, None] * foof}
best = {name: max(worth(C + d * np.eye(len(F))) for d in np.logspace(-7, 2, 28)) for name, C in matrices.items()}
for name, C in matrices.items():
    print(f"{name}: off by {distance(C, F):.3f}, decrease of M {100 * best[name]:.0f}%")
assert distance(foof, F) > 20
assert 0.9 < distance(c * foof, F) < 1
assert np.isclose(worth(foof + 0.01 * np.eye(len(F))), worth(c * foof + 0.01 * c * np.eye(len(F))))
assert abs(best["right trace"] - best["FOOF"]) < 0.01
assert best["right trace in each layer"] > best["FOOF"] + 0.02
