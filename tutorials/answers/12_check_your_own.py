# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 12
#
# The questions stand at the end of [tutorial 12](../12_check_your_own.py). Try them first.

# %%
import itertools

import numpy as np

import kfac_ref as kr
from kfac_ref import oracle

W = [np.array([[0.5, -0.3, 0.1], [0.2, 0.8, -0.4]]), np.array([[1.0, -0.5, 0.2], [-0.6, 0.9, 0.0], [0.3, 0.4, -0.1]])]
X = np.array([[1.0, 0.5], [-0.5, 2.0], [0.3, -1.2], [2.0, 0.1], [-1.1, -0.7]])
Y = np.array([0, 2, 1, 0, 2])
N, C, damping, eta = 5, 3, 0.1, 0.01
problem = oracle.Problem((2, 2, 3), ("tanh",), "categorical", W, X, Y, damping=damping, weight_decay=eta)


def solved(A, G, V, mistakes=()):                               # pi, damped factors and step of one layer
    root = damping if "no root" in mistakes else np.sqrt(damping)
    pi = np.sqrt(np.trace(A) / np.trace(G) * (1 if "bare traces" in mistakes else len(G) / len(A)))
    A, G = A + pi * root * np.eye(len(A)), G + root / pi * np.eye(len(G))
    return pi, A, G, -np.linalg.solve(G, np.linalg.solve(A, V.T).T)


def kfac(*mistakes):                                            # the tutorial's, in arrays; any number of its mistakes
    one = np.ones((N, 1))
    a = [np.hstack([X, one]), np.hstack([hidden := np.tanh(np.hstack([X, one]) @ W[0].T), one])]
    p = np.exp(a[1] @ W[1].T)
    p /= p.sum(axis=1, keepdims=True)
    slope = 1 if "no slope" in mistakes else 1 - hidden**2
    label, *classes = [[dz @ W[1][:, :-1] * slope, dz] for dz in (p - np.eye(C)[t] for t in (Y, *range(C)))]
    A, V = [b.T @ b / N for b in a], [g.T @ b / N + eta * w for g, b, w in zip(label, a, W, strict=True)]
    sent = [label] * C if "labels" in mistakes else classes
    G = [sum((p[:, [c]] * sent[c][i]).T @ sent[c][i] for c in range(C)) / N for i in range(2)]
    G = [M / N**2 for M in G] if "mean loss" in mistakes else G
    rest = zip(*(solved(*layer, mistakes) for layer in zip(A, G, V, strict=True)), strict=True)
    return {"A": A, "G": G, "gradient": V} | dict(zip(("pi", "A_damped", "G_damped", "step"), rest, strict=True))


# %% [markdown]
# ## 1. Your own implementation
#
# Write the problem to a file (`problem.write("five.json")`), read weights, inputs and labels from it in your language,
# write your numbers with all their digits as JSON, and let `kfac-ref check` compare. Go in the order in which things
# are made: A needs the forward pass alone, then the gradient, then G, last pi, the damped factors and the step. Give
# all at once in the end: they tell the most together. If your code can only sample, put the targets that it drew into
# the problem and give `G_sampled`, or see answer 4. If it holds the biases apart, append their column first.
# For a first look, here are the traces of the right factors, from an implementation that is not the oracle's:

# %%
right = kfac()
for i in range(2):
    traces = [np.trace(right[name][i]) for name in ("A", "G")]
    print("layer {}: tr A {:.6f}, tr G {:.6f}, pi {:.6f}".format(i, *traces, right["pi"][i]))
assert min(row.digits for row in oracle.check(problem, right).rows) > 12

# %% [markdown]
# ## 2. Two mistakes at once
#
# All ten pairs of the five are named, each by that pair alone. (`slope` and `kfac` compare by `==`: write `"labels" in
# mistake` and so on, and pass one text with both names, "labels, no root".) The oracle tries all pairs of its
# catalogue; three at once are not searched.
# Then it checks each quantity separately, given your values for its inputs, and still finds each mistake.
#
# One can hide another where their factors cancel. A summed over the examples is N times too large. With a G that is N
# times too small the product A ⊗ G is right, and the damping does not help either: pi grows N-fold, so that the
# damped A is N times too large and the damped G N times too small. The step is right to the last digit, both factors
# are wrong. So give A and G, not the step alone. And a mistake hides where it has nothing to do: "bare traces" in a
# square layer, "no root" at a damping of 1.

# %%
names = {"mean loss": "G of mean-loss gradients, averaged", "labels": "labels in place of the model's targets",
         "no slope": "slope left out of the backward pass", "no root": "damping not under the root",
         "bare traces": "pi of traces without the dimensions"}
for pair in itertools.combinations(names, 2):
    found = oracle.check(problem, kfac(*pair)).explanations
    assert [set(e.names) for e in found] == [{names[mistake] for mistake in pair}]
three = oracle.check(problem, kfac("labels", "mean loss", "no root"))
for quantity, found in three.one_by_one.items():
    print(f"three at once, {quantity}: {' and '.join(found[0].names) or 'correct, given its inputs'}")
assert not three.explanations
assert np.isclose(kfac("bare traces")["pi"][1], right["pi"][1])         # layer 1 is square
A, G = [N * M for M in right["A"]], [M / N for M in right["G"]]
step = [solved(*layer)[-1] for layer in zip(A, G, right["gradient"], strict=True)]
for given in ({"step": step}, {"A": A, "G": G, "step": step}):
    report = oracle.check(problem, given)
    print(*(f"{row.quantity}: {row.verdict};" for row in report.rows))
    assert report.ok == (len(given) == 1)

# %% [markdown]
# ## 3. Labels that are certain
#
# If p is 1 at the label, the model's expectation is over that one target: both ways take the same g, which is 0, and
# both G are 0. There is nothing to compare. But that is so for p = 1 *exactly*. Let 1 - p be a small e. The labels give
# a G of the order e^2. In the exact one the other classes have the probability e and gradients of the order 1: it is of
# the order e. So the relative difference goes to 1, and the oracle, which looks at relative errors, tells the two apart
# the better the nearer p is to 1, until p is rounded to 1 and both G are 0. To stay clear of that, check with weights
# that leave p well inside (0, 1), as untrained ones do.

# %%
for scale in (1, 10, 30, 1e4):
    sure = problem.replace(weights=[W[0], scale * W[1]])
    sure = sure.replace(y=sure.at().z.argmax(axis=1))           # the likeliest class as the label
    exact, labels = (sum(map(np.trace, oracle.Reference(sure)[name])) for name in ("G", "G_empirical"))
    report = oracle.check(sure, {"G": oracle.Reference(sure)["G_empirical"]})
    print(f"logits times {scale:g}: traces {exact:.0e}, at the labels {labels:.0e}; {report.rows[0].verdict}")
    assert report.ok == (scale == 1e4)
    assert labels < {1: 1, 10: 0.1, 30: 1e-3, 1e4: 1}[scale] * exact or exact == labels == 0

# %% [markdown]
# ## 4. Sampled targets
#
# It says "as sampled", and how much that is worth. Without the targets the oracle cannot compare digits. It simulates
# what M draws per example give, and rejects a G that is further off than all of these. With M = 1 and five examples
# much is possible: the report itself says that G at the labels would be detected in 0% of the cases. With M = 1000 it
# would be in all. State M (`samples`): else it is inferred from the spread, and five examples say little about
# it. Give the targets in the problem, and all digits are compared. And do not give a sampled G as `G`: that is the
# exact one.

# %%
at = problem.at()
for M in (1, 1000):
    targets = at.sample(np.random.default_rng(0), M)            # (M, N)
    G = [np.einsum("mnp,mnq->pq", g, g) / (M * N) for g in at.backward(kr.Categorical().gradient(at.z, targets))]
    report = oracle.check(problem, {"G_sampled": G}, samples=M)
    power = report.judgement.power["labels in place of the model's targets"]
    print(f"M = {M}: {report.rows[0].verdict}; labels would be detected in {100 * power:.0f}%")
    assert report.ok
    assert power < 0.1 if M == 1 else power > 0.9
    assert oracle.check(problem.replace(targets=targets), {"G_sampled": G}).rows[0].digits > 12
    assert not oracle.check(problem, {"G": G}).ok
at_labels = oracle.check(problem, {"G_sampled": kfac("labels")["G"]}, samples=1000)
print("G at the labels, given as of 1000 samples:", at_labels.rows[0].verdict)
assert not at_labels.ok
