# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 4
#
# The questions stand at the end of [tutorial 4](../04_which_expectation.py). Try them first.

# %%
import itertools

import numpy as np

import kfac_ref as kr

rng = np.random.default_rng(0)
network = kr.MLP((2, 4, 3), "tanh")
weights = [rng.standard_normal(s) for s in network.shapes]
x = rng.standard_normal((40, 2))


def mean_squares(g):                                            # G of a stack: summed over K, a mean over the examples
    rows = g.reshape(-1, g.shape[-1])
    return rows.T @ rows / g.shape[1]


# %% [markdown]
# ## 1. G of bits, in two ways
#
# Enumerated: d bits have 2^d outcomes, each with the probability of its bits multiplied. What is sent back is p - y,
# and its square is weighted by that probability. (Multiply the gradient by the root of the probability, and the squares
# add up.)
#
# By the root: F_R is diag(p (1 - p)), as the first answer to tutorial 3 shows. The root of a diagonal matrix is that of
# its entries, so column k is sqrt(p_k (1 - p_k)) e_k. That is d columns: one backward pass for each bit, not one for
# each outcome. In the last layer, where g is what is sent, G is the mean of F_R: diagonal. In the layer below it is
# not, but both ways still agree: a backward pass is linear, so of what is sent back only the sum of squares matters.

# %%
at = kr.Model(network, kr.Bernoulli()).at(weights, x)
p = 1 / (1 + np.exp(-at.z))
outcomes = np.array(list(itertools.product((0, 1), repeat=3)))[:, None, :]      # (2^d, 1, d)
probabilities = np.prod(np.where(outcomes == 1, p, 1 - p), axis=-1)             # (2^d, N)
enumerated = at.backward(np.sqrt(probabilities)[..., None] * (p - outcomes))
by_root = at.backward(np.sqrt(p * (1 - p)) * np.eye(3)[:, None, :])
print(f"1. {len(enumerated[0])} backward passes or {len(by_root[0])}: the same G. That of the last layer:")
print(mean_squares(by_root[-1]).round(3))
for one, other, (_, G) in zip(enumerated, by_root, kr.kronecker_factors(at).layers, strict=True):
    assert np.allclose(mean_squares(one), G)
    assert np.allclose(mean_squares(other), G)
assert np.allclose(mean_squares(by_root[-1]), np.diag(np.mean(p * (1 - p), axis=0)))

# %% [markdown]
# ## 2. A Gaussian has no list of targets, but these 2C will do
#
# At y = z +- sqrt(C) e_c what is sent back is z - y = -+ sqrt(C) e_c, with the square C e_c e_c^T. Weighted and added:
#
# $$ \sum_{c} 2 \cdot \frac{1}{2C}\, C\, e_c e_c^T = I = F_R $$
#
# F contains the law of y through E[D z D z^T] alone, so any targets whose second moment about z is I give all of F
# exactly. The sign squares away: the C targets with a plus, each with probability 1/C, give the same F. What needs both
# is the mean. It is z for the pairs, so that the gradient is zero on the average, as it is over the model's own
# targets. With the plus alone it is not.

# %%
C = 3
at = kr.Model(network, kr.Gaussian()).at(weights, x)
F = kr.fisher_matrix(at)
plus = at.z + np.sqrt(C) * np.eye(C)[:, None, :]                # (C, N, C)
pairs = np.concatenate([plus, 2 * at.z - plus])
gradients = [np.mean([kr.params.flatten(at.gradient(y)) for y in targets], axis=0) for targets in (pairs, plus)]
for targets in (pairs, plus):                                   # M targets are averaged: each has probability 1/M
    assert np.allclose(kr.fisher_matrix(at, kr.sampled(targets)), F, rtol=1e-10, atol=1e-12)
print(f"2. {len(pairs)} or {len(plus)} targets enumerate F; their mean gradients have the norms",
      *(f"{np.linalg.norm(g):.2f}" for g in gradients))
assert np.allclose(gradients[0], 0, atol=1e-12)
assert np.linalg.norm(gradients[1]) > 0.1

# %% [markdown]
# ## 3. The trace at the likeliest target
#
# Let m be the likeliest class. The trace of one example at it is ||p - e_m||^2 = 1 - 2 p_m + ||p||^2. The exact one, 1
# -
# ||p||^2, is more than that by 2 (p_m - ||p||^2). Since no p_c is above p_m, ||p||^2 = sum_c p_c p_c <= sum_c p_m p_c =
# p_m, so the difference is not negative. It is zero where all classes that are possible at all are equally likely.
#
# A confident model has p_m = 1 - e with a small number e (e_m, with an index, is the one-hot vector). Let q be the sum
# of p_c^2 over the other classes, between 0 (many, all alike) and e^2 (one of them alone). The exact trace is
# 2e - e^2 - q, about 2e. That at the likeliest is e^2 + q. Their ratio is between e/2 and e / (1 - e): about a
# hundredth at most where p_m = 0.99, and it goes to zero as the model becomes sure: the exact trace is of the order e,
# that at the likeliest class of the order e^2.

# %%
def traces(p):
    return 1 - np.sum(p**2, axis=1), np.sum((p - np.eye(5)[p.argmax(axis=1)])**2, axis=1)


exact, likeliest = traces(rng.dirichlet(np.ones(5), 1000))
assert np.all(likeliest < exact)
assert np.allclose(*traces(np.array([[0.2] * 5, [0.5, 0.5, 0, 0, 0]])))
print("3.   1 - p_m   likeliest over exact, 1000 random p of 5 classes")
for e in (0.3, 0.1, 0.01, 0.001):
    exact, likeliest = traces(np.column_stack([np.full(1000, 1 - e), e * rng.dirichlet(np.ones(4), 1000)]))
    ratio = likeliest / exact
    print(f"{e:12} {ratio.min():10.4f} to {ratio.max():.4f}")
    assert e / 2 < ratio.min() < ratio.max() < 1.001 * e / (1 - e)

# %% [markdown]
# ## 4. Empirical and exact, as the loss goes to zero
#
# The empirical one. Once every label has a probability of 1 - e, the label *is* the likeliest class, and answer 3
# applies, with an e for each example. The exact trace of the last G is about 2 mean(e), the empirical one between
# mean(e^2) and 2 mean(e^2). The loss is the mean of -log(1 - e), about mean(e), so the exact trace falls in step with
# it. The empirical one falls like the square of e. So it does in the layers below: there g is a matrix times what is
# sent back, the same matrix for both.
#
# Which of the two is larger is another matter. At the start the empirical one is: labels that do not fit give larger
# gradients than the model expects. On the training examples it soon is the smaller one. On held-out digits it is the
# larger one at the end, too. On some of them the model is wrong with confidence, and p - onehot(y) does not become
# small, while the exact trace, which asks the model alone, does. The empirical one measures the misfit.

# %%
data = kr.datasets.digits()
opt = kr.optimizers.KFAC(kr.Model(kr.MLP((64, 12, 12, 10), "tanh"), kr.Categorical()))
start, run = opt.model.init(np.random.default_rng(0)), None


def both(weights, x, y):                                        # exact and empirical traces, (2, 3): of all layers
    at = opt.model.at(weights, x)
    return np.array([[np.trace(G) for _, G in kr.kronecker_factors(at, expectation).layers]
                     for expectation in (kr.exact, kr.empirical(y))])


print("4. steps     loss   traces of the last G: exact   empirical")
for steps in (0, 20, 50, 100):
    run = kr.training.train(opt, start, data.x, data.labels, steps, progress=False, resume=run)
    nll = kr.Categorical().nll(opt.model.at(run.state.weights, data.x).z, data.labels)
    e, loss = 1 - np.exp(-nll), nll.mean()
    exact, empirical = both(run.state.weights, data.x, data.labels)
    print(f"{steps:8} {loss:8.1g} {exact[-1]:29.1g} {empirical[-1]:11.1g}")
    assert 0.999 * np.mean(e**2) < empirical[-1] < 2.001 * np.mean(e**2)
    assert np.all(empirical > 1.3 * exact) if steps == 0 else np.all(empirical < 0.7 * exact)
assert loss < 0.01
assert np.isclose(exact[-1], 2 * loss, rtol=0.3)
assert np.all(empirical < 0.05 * exact)
exact, empirical = both(run.state.weights, data.x_test, data.labels_test)
print(f"   held out, at the end {exact[-1]:23.1g} {empirical[-1]:11.1g}")
assert empirical[-1] > 2 * exact[-1]
