# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 12. Check your own K-FAC
#
# **What you will do.** Write K-FAC once more, in plain Python with lists and loops, break it in five ways that occur
# in real code, and let the oracle name what you did.
#
# **What you will learn.** That A, G and Delta are about a hundred short lines (the loop around them, with alpha, mu,
# lambda and gamma, is that of tutorial 9); which quantities a mistake shows in; how numbers of another language or
# framework are checked; what a dialect is; and what to do when nothing explains yours.
#
# **What you need.** Tutorials 2 (g and a_bar), 4 (which expectation), 6 (A and G) and 8 (damping, pi).

# %%
import contextlib
import json
import math
import pathlib
import tempfile

import numpy as np
from matplotlib.figure import Figure

from kfac_ref import cli, oracle, plotting
from kfac_ref.oracle.dialects import DIALECTS
from kfac_ref.testing import assert_kfac_factors

# %% [markdown]
# ## A problem of five examples
#
# Two inputs, two tanh units, three classes. The bias is the last number of each row of the weights. N = 5 and C = 3
# are chosen with care: with N = 4 a factor N and two factors of 2 could not be told apart. `damping` is the whole
# lambda + eta, so the factors get pi sqrt(damping) and sqrt(damping) / pi; eta by itself is in the gradient alone.

# %%
W = [[[0.5, -0.3, 0.1], [0.2, 0.8, -0.4]], [[1.0, -0.5, 0.2], [-0.6, 0.9, 0.0], [0.3, 0.4, -0.1]]]
X = [[1.0, 0.5], [-0.5, 2.0], [0.3, -1.2], [2.0, 0.1], [-1.1, -0.7]]
Y = [0, 2, 1, 0, 2]
N, C, damping, eta = len(X), 3, 0.1, 0.01
problem = oracle.Problem((2, 2, 3), ("tanh",), "categorical", W, X, Y, damping=damping, weight_decay=eta)

# %% [markdown]
# ## K-FAC in lists and loops
#
# First the network, for one example. `forward` returns a_bar and s of each layer, `backward` takes dz, the
# gradient at the output, and returns g of each layer. Where `mistake` occurs the code is broken later.

# %%
def forward(x):
    a_bar, s = [], []
    for layer in W:
        a_bar.append([*x, 1.0])
        s.append([sum(w * a for w, a in zip(row, a_bar[-1], strict=True)) for row in layer])
        x = [math.tanh(v) for v in s[-1]]
    return a_bar, s


def slope(v, mistake):
    if mistake == "no slope":
        return 1.0
    return 1 - math.tanh(v) if mistake == "a slip in the slope" else 1 - math.tanh(v)**2


def backward(s, dz, mistake):
    g = [dz]
    for i in range(len(W) - 1, 0, -1):                          # a row of W[i] belongs to an output
        back = [sum(u * row[k] for u, row in zip(g[0], W[i], strict=True)) for k in range(len(s[i - 1]))]
        g.insert(0, [b * slope(v, mistake) for b, v in zip(back, s[i - 1], strict=True)])
    return g


def probabilities(s):
    e = [math.exp(v) for v in s[-1]]
    return [v / sum(e) for v in e]


def error_at(s, target):                                        # the gradient at the output: p - onehot(target)
    return [p - (c == target) for c, p in enumerate(probabilities(s))]


# %% [markdown]
# Then sums of outer products, and a solve by elimination. Nothing here knows about K-FAC.

# %%
def zeros(m, n):
    return [[0.0] * n for _ in range(m)]


def add_outer(M, u, v, factor):
    for row, p in zip(M, u, strict=True):
        for k, q in enumerate(v):
            row[k] += factor * p * q


def shifted(M, c):
    return [[v + c * (j == k) for k, v in enumerate(row)] for j, row in enumerate(M)]


def solve(M, B):                                                # M^-1 B, for a positive definite M
    rows = [[*m, *b] for m, b in zip(M, B, strict=True)]
    for i, pivot in enumerate(rows):
        rows[i] = pivot = [v / pivot[i] for v in pivot]
        for j, row in enumerate(rows):
            if j != i:
                rows[j] = [v - row[i] * p for v, p in zip(row, pivot, strict=True)]
    return [row[len(M):] for row in rows]


# %% [markdown]
# And K-FAC itself, still without NumPy. G is an expectation over the model's own prediction, so that each class c is
# sent back once, with its probability p_c as its weight. The step is -G^-1 V A^-1 with the damped factors and the
# gradient V: the oracle's `step` is what tutorial 9 calls Delta, before alpha and mu.

# %%
def kfac(mistake=""):
    shapes = [(len(layer), len(layer[0])) for layer in W]
    A, G = [zeros(n, n) for _, n in shapes], [zeros(m, m) for m, _ in shapes]
    V = [[[eta * w for w in row] for row in layer] for layer in W]              # the weight decay's gradient
    for x, y in zip(X, Y, strict=True):
        a_bar, s = forward(x)
        at_label, p = error_at(s, y), probabilities(s)
        for i, g in enumerate(backward(s, at_label, mistake)):
            add_outer(A[i], a_bar[i], a_bar[i], 1 / N)
            add_outer(V[i], g, a_bar[i], 1 / N)
        for c in range(C):
            dz = at_label if mistake == "labels" else error_at(s, c)
            for i, g in enumerate(backward(s, dz, mistake)):
                add_outer(G[i], g, g, p[c] / (N**3 if mistake == "mean loss" else N))
    pi, A_damped, G_damped, step = [], [], [], []
    for i, (m, n) in enumerate(shapes):
        tr_A, tr_G = sum(A[i][k][k] for k in range(n)), sum(G[i][k][k] for k in range(m))
        pi.append(math.sqrt(tr_A / tr_G if mistake == "bare traces" else (tr_A / n) / (tr_G / m)))
        strength = damping if mistake == "no root" else math.sqrt(damping)
        A_damped.append(shifted(A[i], pi[i] * strength))
        G_damped.append(shifted(G[i], strength / pi[i]))
        half = zip(*solve(G_damped[i], V[i]), strict=True)                      # (G^-1 V)^T, then A^-1 times that
        step.append([[-v for v in row] for row in zip(*solve(A_damped[i], half), strict=True)])
    return {"A": A, "G": G, "gradient": V, "pi": pi, "A_damped": A_damped, "G_damped": G_damped, "step": step}


report = oracle.check(problem, kfac())
print(report)
assert min(row.digits for row in report.rows) > 13

# %% [markdown]
# ## Five mistakes
#
# All are easily made, and the first two are in libraries that people use (`kfac-ref dialects`). For each one the
# oracle gets the same seven quantities:
#
# | mistake | what the code does |
# |---|---|
# | mean loss | the framework differentiated the mean loss: each gradient in G carries 1/N, and G 1/N^2 |
# | labels | g is taken at the labels of the data, since those gradients are there anyway |
# | no slope | phi'(s) is missing in the backward pass |
# | no root | the damping is added to the factors as it is, not its root |
# | bare traces | pi is the root of tr A / tr G, without the dimensions n and m |

# %%
expected = {"mean loss": "G of mean-loss gradients, averaged", "labels": "labels in place of the model's targets",
            "no slope": "slope left out of the backward pass", "no root": "damping not under the root",
            "bare traces": "pi of traces without the dimensions"}
reports = {"(none)": report}
for mistake, name in expected.items():
    reports[mistake] = oracle.check(problem, kfac(mistake))
    found = reports[mistake].explanations
    singles = [e.names[0] for e in found if len(e.names) == 1]
    print(f"{mistake:12} -> {'; '.join(singles)}")
    assert singles == [name]

# %% [markdown]
# One single mistake for each, and it is the right one. A pair whose factors come to the same (N times 1/N^3) can never
# be told from it; it is less likely, so pairs are tried only where no single mistake fits. A mistake shows first where
# it was made, and then in all that is made from that. The picture is its fingerprint: right digits (16 is all that a
# double has) of each quantity.

# %% tags=["hide-input"]
quantities = list(kfac())
digits = np.array([[next(r.digits for r in rep.rows if r.quantity == q) for q in quantities]
                   for rep in reports.values()])
with plotting.style():
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(digits, cmap="cividis", vmin=0, vmax=16, aspect="auto")
    for (i, j), value in np.ndenumerate(digits):
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="black" if value > 8 else "white")
    axes.set_xticks(range(len(quantities)), quantities)
    axes.set_yticks(range(len(reports)), list(reports))
    axes.grid(False)
    axes.set(xlabel="quantity", ylabel="mistake")
    figure.colorbar(image, ax=axes, label="right digits")
wrong = {name: ", ".join(q for q, d in zip(quantities, row, strict=True) if d < 8)
         for name, row in zip(reports, digits, strict=True) if name != "(none)"}
assert wrong["bare traces"] == "pi, A_damped, G_damped, step"
assert wrong["no root"] == "A_damped, G_damped, step"
plotting.Picture(figure, "Right digits of seven quantities for each mistake; all are right without one. Wrong are, by "
                 "mistake: " + "; ".join(f"{name}: {where}" for name, where in wrong.items()) + ".")

# %% [markdown]
# ### Confusion box: only one number was compared
#
# The wrong way is to give G alone. Several mistakes may come to the same numbers, and all that do are reported. Give
# what goes with it, too: A, G, gradient and step together say most.

# %%
few = oracle.check(problem, {"G": kfac("no slope")["G"]})
for given, found in (("G alone", few), ("all seven", reports["no slope"])):
    print(f"explanations from {given}:", *(" and ".join(e.names) for e in found.explanations), sep="\n  ")
print(f"the report says: also give {few.tells_apart}")
print(oracle.CATALOGUE["slope left out of the backward pass"])
assert len(few.explanations) > len(reports["no slope"].explanations)

# %% [markdown]
# ## When it says: not explained
#
# The catalogue has more than a hundred mistakes, and yours may be none of them. Here the slope is 1 - tanh, a slip:

# %%
report = oracle.check(problem, kfac("a slip in the slope"))
print(report)
assert not report.explanations

# %% [markdown]
# No name is made up. Three things help. **Read where**: G of layer 1 is right, of layer 0 wrong, and A is right: so
# it is the backward pass between them. **Bisect**: give the intermediate quantities too; the first that differs has
# the mistake. **Shrink**: one example, one unit, one layer less (`problem.replace`), until it is right.

# %%
passes = [forward(x) for x in X]
intermediate = {"a_bar": [[a_bar[i] for a_bar, _ in passes] for i in range(2)], "z": [s[-1] for _, s in passes],
                "g": [[backward(s, error_at(s, y), "a slip in the slope")[i]
                       for (_, s), y in zip(passes, Y, strict=True)] for i in range(2)]}
report = oracle.check(problem, intermediate)
for row in report.rows:
    print(f"{row.quantity:6} {row.verdict:8} {row.where}")
assert [row.verdict for row in report.rows] == ["right", "right", "differs"]
assert "layer 0" in row.where

# %% [markdown]
# ## From a framework's tensors
#
# JAX and TensorFlow hold a kernel as (in, out), with the bias apart. Say so, and the problem is the same:

# %%
kernels, biases = [np.array(layer)[:, :-1].T for layer in W], [np.array(layer)[:, -1] for layer in W]
same = oracle.Problem.from_arrays(kernels, X, Y, biases=biases, hidden=["tanh"], layout="in,out", bias="separate",
                                  damping=damping, weight_decay=eta)
assert all(np.array_equal(ours, theirs) for ours, theirs in zip(problem.weights, same.weights, strict=True))
try:
    oracle.Problem.from_arrays(kernels, X, Y, biases=biases, hidden=["tanh"], layout="out,in", bias="separate")
except oracle.ProblemError as error:
    print("with the wrong layout:", message := str(error))
assert "shape" in message

# %% [markdown]
# Square layers are read without a word (`check` tells by the numbers): give `z` too. Sums in the place of means, as
# where a framework adds up the batch, are named like any mistake:

# %%
right = kfac()
summed = oracle.check(same, {"A": [N * np.array(A) for A in right["A"]], "gradient": right["gradient"]})
print(summed.explanations[0].names)
assert summed.explanations[0].names == ("A summed over the examples",)

# %% [markdown]
# ## Dialects
#
# Libraries differ in such scales without being wrong. `kfac-ref dialects` is the table of what was measured. For
# nngeometry A is sqrt(C - 1) times larger than here and G as much smaller. Compared in its own words, all is right:

# %%
theirs = DIALECTS["nngeometry"].theirs({"A": right["A"], "G": right["G"]}, problem)
for dialect in (None, "nngeometry"):
    report = oracle.check(problem, theirs, dialect=dialect)
    print(f"dialect {dialect}:", [(row.quantity, row.verdict) for row in report.rows])
    assert report.ok == (dialect == "nngeometry")

# %% [markdown]
# ## In practice
#
# Without Python: two JSON files written by hand, and a command. `cli.main` is what `kfac-ref` runs; its exit status is
# 1 for a difference. These are the files of `docs/check_your_own.md`; its example forgot to divide A by N = 3.

# %%
arrays = {"weights": [[[1, -1]]], "biases": [[0.5]], "x": [[1, 0], [0, 2], [2, 1]], "y": [[1], [0], [2]]}
with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    pathlib.Path("arrays.json").write_text(json.dumps(arrays))
    pathlib.Path("theirs.json").write_text('{"A": [[[5, 2, 3], [2, 5, 3], [3, 3, 3]]], "G": [[[1]]]}')
    made = cli.main(["problem", "new", "arrays.json", "--likelihood", "gaussian", "--out", "problem.json"])
    status = cli.main(["check", "problem.json", "theirs.json"])
assert (made, status) == (0, 1)

# %% [markdown]
# In a test suite one line does it; where the numbers differ, the message of the failure is the diagnosis. Let it run
# on a published vector of another network too (`kfac-ref vectors`): a mistake may be invisible where, say, C = 1.

# %%
assert_kfac_factors(problem, right["A"], right["G"])
try:
    assert_kfac_factors(problem, right["A"], kfac("labels")["G"])
except AssertionError as error:
    print(message := str(error))
assert "labels in place of the model's targets" in message

# %% [markdown]
# ## Exercises
#
# 1. Take your own implementation, in any language, and check A, G, gradient and step of these five examples.
# 2. Put two mistakes into `kfac` at once (`in` for its `==`). Does the oracle name the pair? Can one hide the other?
# 3. Why can the oracle not tell "labels" from right numbers if every p is exactly 1 at its label? And nearly 1?
# 4. Sample the targets instead of summing over the classes, and give `G_sampled` with `samples`: what is reported?
#
# [Answers](answers/12_check_your_own.py).
#
# ## Further reading
#
# - `docs/check_your_own.md`: the same in five minutes; `docs/oracle_report.md`: how often which mistake is found.
# - `docs/recipes/`: scripts that take A and G out of five libraries. The code: `kfac_ref/oracle/`.
