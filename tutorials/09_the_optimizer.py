# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 9. The optimizer, one line of Algorithm 2 at a time
#
# **What you will do.** Take one step of K-FAC by hand, line by line, and compare each with `opt.explain`. Then put the
# lines together: a K-FAC of forty lines that takes the same steps as the package.
#
# **What you will learn.** What alpha, mu, rho, lambda and gamma are for; that momentum here is the method of conjugate
# gradients; and what a few products with the exact F guard a crude approximation of it against, and what not.
#
# **What you need.** Tutorials 2 (a network by hand), 3 (products with F), 4 (sampled targets), 6 (A and G) and 8
# (damping).

# %%
import numpy as np
from matplotlib.figure import Figure
from scipy.sparse.linalg import cg

import kfac_ref as kr
from kfac_ref import oracle, params, plotting, training

data, eta = kr.datasets.digits(), 1e-5                          # eta: the weight decay
model = kr.Model(kr.MLP((64, 20, 10), "tanh"), kr.Categorical(), weight_decay=eta)
start = model.init(np.random.default_rng(0))
rows = training.batches(1500, training.fixed(300), seed=0)
batches = [(data.x[r], data.labels[r]) for _, r in zip(range(40), rows, strict=False)]       # forty, of 300 examples
opt = kr.optimizers.KFAC(model, lambda_0=0.001, judged_on="same batch", T1=5)              # the paper's rule of lambda

# %% [markdown]
# ## The lines of a step
#
# Algorithm 2 of the paper minimizes h, the loss (in nats: tutorial 8) with weight decay:
#
# $$ h(\theta) = \frac1N \sum_n -\log p(y_n \,|\, x_n, \theta) + \frac\eta2 \|\theta\|^2 $$
#
# ```text
# for k = 1, 2, ..., each with a batch; delta_0 is the step before:
#    grad  = gradient of h
#    A, G  = epsilon (A, G before) + (1 - epsilon) (A, G of a part of the batch)        line 1
#    for each gamma that is tried (three if T2 divides k, else the one in use):
#       Delta      = -(damped A ⊗ G)^-1 grad, with A, G renewed every T3 steps       line 2
#       alpha, mu  = where M(alpha Delta + mu delta_0) is lowest                        line 3
#    keep the gamma with the lowest M, and its alpha, mu, Delta
#    delta = alpha Delta + mu delta_0;   theta = theta + delta
#    if T1 divides k: rho = actual / predicted change of h says where lambda goes       line 4
# ```
#
# Step 20 has them all. The package takes 19 steps, and then one of which it tells every intermediate:

# %%
state = opt.init(start, seed=0)
for x, y in batches[:19]:
    state, _ = opt.step(state, x, y)
x, y = batches[19]
right = opt.explain(state, x, y)                                # what we compare with
at = model.at(state.weights, x)                                 # a forward pass, tutorial 2
grad = at.gradient(y)

# %% [markdown]
# ## Line 1: running averages
#
# An eighth of the batch (tau1 = 1/8) is enough. All randomness of step k comes from a generator seeded with (seed, k),
# so that anybody can draw the same. The new average is epsilon times the old one plus 1 - epsilon times what the batch
# gives, with epsilon = min(1 - 1/k, 0.95): the first 20 batches count alike, later on the old ones fade. That serves A.
# G shrinks as the network learns, and its average remembers larger ones: late in training it is stale, and too large.

# %%
def close(ours, theirs):
    return np.allclose(params.flatten(ours), params.flatten(theirs), rtol=1e-9, atol=1e-11)


def probabilities(at):
    return np.exp(at.z) / np.exp(at.z).sum(axis=1, keepdims=True)


def factors(at, rng):                                           # of one batch: [A of each layer, G of each layer]
    part = at.take(rng.permutation(len(at))[:len(at) // 8])
    p = probabilities(part)
    targets = (rng.random((len(part), 1)) < p.cumsum(axis=1)).argmax(axis=1)
    return [u.T @ u / len(part) for u in (*part.a_bar, *part.backward(p - np.eye(10)[targets]))]


def average(old, new, k):
    epsilon = min(1 - 1 / k, 0.95)
    return [epsilon * o + (1 - epsilon) * n for o, n in zip(old or new, new, strict=True)]


before, after = (list(kept.moments.arrays.values()) for kept in (state.average, right.average))
AG = average(before, factors(at, np.random.default_rng((0, 20))), 20)
assert all(close([ours], [theirs]) for ours, theirs in zip(AG, after, strict=True))
exact = kr.factors.second_moments(at).arrays.values()           # A and G of this batch
times = [np.trace(M) / np.trace(E) for M, E in zip(AG, exact, strict=True)]
print("traces, in times the exact ones: {:.2f}, {:.2f} (averages of A), {:.2f}, {:.2f} (of G)".format(*times))
assert np.allclose(times[:2], 1, atol=0.3)
assert min(times[2:]) > 1.5

# %% [markdown]
# ## Line 2: Delta for each gamma
#
# gamma is the strength of the damping in the factors (tutorial 8). For layer i, with its part of the gradient:
#
# $$ \Delta_i = -\left(G_i + (\gamma / \pi_i)\, I\right)^{-1} \nabla h_i \left(A_i + \pi_i \gamma I\right)^{-1} $$
#
# gamma starts at sqrt(lambda + eta). No formula says what it should be later, so every T2 = 20 steps three are tried:
# the present one, one smaller and one larger by the factor omega2 = 0.95^(T2/2) = 0.60.

# %%
def direction(AG, gamma, grad):
    Delta = []
    for A, G, V in zip(AG[:2], AG[2:], grad, strict=True):
        pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
        A, G = A + pi * gamma * np.eye(len(A)), G + gamma / pi * np.eye(len(G))
        Delta.append(-np.linalg.solve(G, np.linalg.solve(A, V.T).T))
    return Delta


gammas = [state.gamma, state.gamma * 0.95**10, state.gamma / 0.95**10]
Deltas = [direction(AG, gamma, grad) for gamma in gammas]
assert all(close(Delta, c.Delta) for Delta, c in zip(Deltas, right.candidates, strict=True))

# %% [markdown]
# ## Line 3: how far, and how much of the last step?
#
# Delta comes from an approximation. Its direction is useful, its length is not to be trusted. The length is chosen by a
# quadratic model of h that has the *exact* F of the batch. A larger lambda trusts it less and makes steps shorter:
#
# $$ M(\delta) = h + \nabla h^T \delta + \tfrac12 \delta^T (F + (\lambda + \eta) I)\, \delta $$
#
# Put delta = alpha Delta + mu delta_0 into it: with V = [Delta, delta_0] and c = (alpha, mu),
#
# $$ M = h + b^T c + \tfrac12\, c^T B c, \quad b = V^T \nabla h, \quad B = V^T (F + (\lambda + \eta) I)\, V,
#    \quad c = -B^{-1} b, \quad M - h = \tfrac12\, b^T c $$
#
# the last two at the minimum. The 2 x 2 matrix B needs only numbers such as
#
# $$ \Delta^T F \Delta = \frac1N \sum_n (J_n \Delta)^T (\mathrm{diag}(p_n) - p_n p_n^T)\, (J_n \Delta) $$
#
# in which J_n Delta is one tangent (tutorial 2). The paper sums over a part of the batch, tau2 = 1/4; the package over
# all of it by default.

# %%
def minimize(at, grad, V, damping):                             # V holds one direction or two
    p, J = probabilities(at), [at.tangent(v) for v in V]
    F = [[((p * s * t).sum(axis=1) - (p * s).sum(axis=1) * (p * t).sum(axis=1)).mean() for t in J] for s in J]
    B, b = F + damping * params.gram(V), np.array([params.inner(grad, v) for v in V])
    c = -np.linalg.solve(B, b)
    return c, b @ c / 2                                         # (alpha, mu) and M - h


found = [minimize(at, grad, [Delta, state.delta_0], state.lambda_ + eta) for Delta in Deltas]
for gamma, (c, M), theirs in zip(gammas, found, right.candidates, strict=True):
    print(f"gamma {gamma:.4f}: alpha {c[0]:.3f}, mu {c[1]:6.3f}, M - h {M:.5f}")
    assert np.allclose([*c, M], [theirs.alpha, theirs.mu, theirs.decrease], rtol=1e-7)
best = min(range(3), key=lambda i: found[i][1])                 # the gamma with the lowest M
delta = params.add(params.scale(found[best][0][0], Deltas[best]), params.scale(found[best][0][1], state.delta_0))
assert close(delta, right.delta)

# %% [markdown]
# ### Confusion box: no re-scaling
#
# The wrong code takes Delta as it is, alpha = 1 and mu = 0. What that does to h depends on gamma, and can do harm:

# %%
changes = [model.at(params.add(state.weights, step), x).loss(y) - at.loss(y) for step in (delta, *Deltas)]
print("change of h by delta: {:+.3f}; by Delta as it is, for each gamma: {:+.3f}, {:+.3f}, {:+.3f}".format(*changes))
print(oracle.CATALOGUE["no re-scaling"])
assert changes[0] < 0.7 * min(changes[1:]) < 0 < max(changes)

# %% [markdown]
# ### Momentum is conjugate gradients
#
# In linear regression h is quadratic, theta^T H theta / 2 - b^T theta. If the damped A ⊗ G stays as it is (a
# *preconditioner* P) and lambda = 0, steps with the best (alpha, mu) are those of preconditioned conjugate gradients,
# which arrive after as many steps as there are weights. Steps with alpha alone are not, nor are those that keep
# alpha Delta in place of delta for the next step:

# %%
regression, rng = kr.Model(kr.MLP((4, 1)), kr.Gaussian(), weight_decay=0.1), np.random.default_rng(1)
X, Y, zero = rng.standard_normal((20, 4)), rng.standard_normal((20, 1)), [np.zeros((1, 5))]
P = kr.approximations.BLOCK_DIAGONAL.at(regression.at(zero, X[:6]), damping=1.0).dense()       # of six examples: poor
H, b = kr.fisher_matrix(regression.at(zero, X)) + 0.1 * np.eye(5), -params.flatten(regression.at(zero, X).gradient(Y))


def steps(keep):
    theta, kept = np.zeros(5), []
    for _ in range(5):
        V = np.column_stack([-np.linalg.solve(P, H @ theta - b), *kept])
        c = -np.linalg.solve(V.T @ H @ V, V.T @ (H @ theta - b))
        kept = {"delta": [V @ c], "alpha Delta": [c[0] * V[:, 0]], "nothing": []}[keep]
        yield (theta := theta + V @ c)


textbook = []
cg(H, b, rtol=0, atol=0, maxiter=5, M=np.linalg.inv(P), callback=lambda theta: textbook.append(theta.copy()))
away = {keep: [np.abs(ours - theirs).max() for ours, theirs in zip(steps(keep), textbook, strict=True)]
        for keep in ("delta", "alpha Delta", "nothing")}
for keep, values in away.items():
    print(f"{keep:11} kept: off SciPy's conjugate gradients by", *(f"{value:.0e}" for value in values))
print(oracle.CATALOGUE["momentum kept without its own part"])
assert max(away["delta"]) < 1e-12 < 1e-4 < min(away["alpha Delta"][-1], away["nothing"][-1])
assert np.allclose(textbook[-1], np.linalg.solve(H, b))

# %% [markdown]
# ## Line 4, and the whole
#
# The quotient of the actual and the predicted change of h,
#
# $$ \rho = \frac{h(\theta + \delta) - h(\theta)}{M(\delta) - h(\theta)}, $$
#
# is looked at every T1 = 5 steps. Above 3/4 the model is trusted more: lambda is multiplied by omega1 = 0.95^T1. Below
# 1/4 it is divided by it. This is the rule of Levenberg and Marquardt. To save time, the factors that are solved with
# are renewed every T3 = 20 steps and at k <= 3 only. That is all of Algorithm 2. (For its results, section 13, the
# paper also averages the weights of all steps, as `kr.training` does. No step is changed by that.)

# %%
def kfac(W, batches, lambda_, T1=5, T2=20, T3=20, seed=0):
    gamma, AG, last = np.sqrt(lambda_ + eta), None, []
    for k, (x, y) in enumerate(batches, 1):
        at = model.at(W, x)
        grad = at.gradient(y)
        AG = average(AG, factors(at, np.random.default_rng((seed, k))), k)
        tried = [gamma, gamma * 0.95**(T2 / 2), gamma / 0.95**(T2 / 2)] if k % T2 == 0 else [gamma]
        if k <= 3 or k % T3 == 0:
            used = AG
        results = [(*minimize(at, grad, [Delta, *last], lambda_ + eta), gamma, Delta)
                   for gamma, Delta in [(gamma, direction(used, gamma, grad)) for gamma in tried]]
        c, M, gamma, Delta = min(results, key=lambda result: result[1])
        delta = params.scale(c[0], Delta)
        delta = params.add(delta, params.scale(c[1], last[0])) if last else delta
        W, last = params.add(W, delta), [delta]
        actual = model.at(W, x).loss(y) - at.loss(y)
        yield W, {"h": at.loss(y), "lambda": lambda_, "gamma": gamma, "alpha": c[0], "mu": c[1] if len(c) > 1 else 0.0,
                  "predicted": -M, "actual": -actual}
        if k % T1 == 0:
            lambda_ *= 0.95**T1 if actual / M > 3 / 4 else 1 if actual / M >= 1 / 4 else 0.95**-T1


# %%
state, run, off = opt.init(start, seed=0), [], 0.0
for (x, y), (W, line) in zip(batches, kfac(start, batches, 0.001), strict=True):
    state, record = opt.step(state, x, y)
    off = max(off, np.abs(params.flatten(W) - params.flatten(state.weights)).max() / np.abs(params.flatten(W)).max())
    run.append(line)
    assert np.allclose([record.lambda_, record.gamma, record.mu], [line["lambda"], line["gamma"], line["mu"]])
    assert not record.safeguards                                # the rules that the package adds did nothing here
print(f"forty steps: h from {run[0]['h']:.2f} to {run[-1]['h']:.3f}, weights off by {off:.0e} at most")
assert off < 1e-10

# %% [markdown]
# ## The run, step by step
#
# Each step has a batch of its own, of which h and both falls are. lambda_0 = 0.001 is too bold for the start: at step 1
# M predicts that h falls below zero, and h rises. At step 2 mu = -1.67: the first step was much too long, and the model
# of the second takes back all of it and more; h rises once more, as Delta is too long, too. The rule of lambda looks at
# every fifth step only: at step 5 it raises lambda, later it lowers it. At steps 20 and 40 another gamma is chosen.

# %% tags=["hide-input"]
def frame(k):
    panels = [("h before the step (nats per example)", ["h"], "log", {}), ("damping", ["lambda", "gamma"], "log", {}),
              ("coefficients of the step", ["alpha", "mu"], "linear", {}),
              ("fall of h (nats per example; linear below 0.01)", ["predicted", "actual"], "symlog",
               {"linthresh": 0.01})]
    with plotting.style():
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        for axes, (title, names, scale, more) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for name, colour, dash in zip(names, plotting.COLOURS, plotting.DASHES, strict=False):
                values = [line[name] for line in run]
                axes.plot(range(1, 41), values, color=colour, linestyle=dash, alpha=0.2)       # what is to come
                axes.plot(range(1, k + 1), values[:k], colour, ls=dash, marker="o", markevery=[k - 1], label=name)
            axes.set(title=title, xlabel="step")
            axes.set_yscale(scale, **more)
            axes.legend(loc={"mu": "lower right", "gamma": "center right"}.get(names[-1], "best"))
        return figure


words = ("Step {k}, on its batch: h = {h:.3g}; lambda {lambda:.2g}, gamma {gamma:.2g}; alpha {alpha:.2f}, mu {mu:.2f}. "
         "Fall of h: predicted {predicted:.3g}, actual {actual:.3g}; rho = {rho:.2f}.")
shown = (1, 2, 3, 5, 6, 20, 21, 40)
captions = [words.format(k=k, rho=run[k - 1]["actual"] / run[k - 1]["predicted"], **run[k - 1]) for k in shown]
assert run[0]["predicted"] > run[0]["h"] > run[0]["h"] + run[0]["actual"]
assert round(run[1]["mu"], 2) == -1.67
assert run[1]["actual"] < 0
assert run[5]["lambda"] > run[0]["lambda"] > run[-1]["lambda"]
plotting.Player([frame(k) for k in shown], captions, "Forty steps of K-FAC on the digits")

# %% [markdown]
# ## Whose batch is the judge?
#
# The paper measures rho on the batch that the step was fitted to. If it is small, nearly every step looks good there,
# whatever it does to other examples: lambda falls to its floor, and steps grow without bound in directions that the
# batch does not determine. So by default (`KFAC(model)`) the package judges a step on the batch of the *next* one. M
# predicts badly there, since part of its promise was noise of the first batch. But the end of a step shows there:
#
# $$ h(\theta + \delta) - h(\theta) = \mathrm{slope} + \mathrm{curvature}, \quad \mathrm{slope} = \nabla h^T \delta,
#    \qquad \rho = 2\, (1 - \mathrm{curvature} / |\mathrm{slope}|) $$
#
# On its own batch this is the rho above: M at its minimum falls by half of the slope. The slope counts both batches, by
# their shares of all examples, and both are summed over recent steps. A smaller network, with batches of 50:

# %% tags=["hide-input"]
small, every = kr.Model(kr.MLP((64, 8, 10), "tanh"), kr.Categorical(), weight_decay=eta), range(0, 401, 50)
rules, loss, good = {"same batch": {"judged_on": "same batch", "T1": 5}, "next batch": {}}, {}, {}
for name, settings in rules.items():
    history = training.train(kr.optimizers.KFAC(small, **settings), small.init(np.random.default_rng(0)), data.x,
                             data.labels, 400, training.fixed(50), evaluate_at=every, progress=False)
    loss[name] = [e.loss for e in history.evaluations]
    good[name] = np.mean([record.rho > 3 / 4 for record in history.records[:250] if np.isfinite(record.rho)])
assert max(loss["same batch"][5:]) > 3 * loss["same batch"][4]  # by how much is rounding
assert max(loss["next batch"][5:]) < loss["next batch"][4]
assert good["next batch"] < 0.7 < 0.9 < good["same batch"]
with plotting.style():
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, dash in zip(loss.items(), plotting.COLOURS, plotting.DASHES, strict=False):
        axes.semilogy(every, values, color=colour, linestyle=dash, marker="o", label=f"judged on the {name}")
    axes.set(xlabel="step", ylabel="loss on all examples (nats per example)")
    axes.legend()
message = ("Loss on all examples by the rule of lambda, batches of 50. In the first 250 steps rho is above 3/4 in "
           "{:.0f}% of the judgements on the same batch, and then the fit is lost; in {:.0f}% on the next one, which "
           "keeps it.")
plotting.Picture(figure, message.format(*(100 * good[name] for name in rules)))

# %% [markdown]
# ## In practice
#
# `opt.step(state, x, y)` returns a record with these numbers, `opt.explain` every intermediate. The package adds
# safeguards (`help(kr.optimizers.kfac_settings)`): gamma and lambda stay in ranges, and a step that is judged and
# raises h too much is undone. They are no substitute for a sound lambda_0, which is the one setting to tune. If h
# rises at the first steps, start again with ten times as much (exercise 4 has a tenth of the lambda_0 above).

# %% [markdown]
# ## Exercises
#
# 1. Let F be zero in M, Delta = -grad h, and no momentum. What is alpha? Which known method has such steps?
# 2. Put lambda = 0.1 into M in the regression: is it still the method of conjugate gradients? Why?
# 3. Let gamma be sqrt(lambda + eta) at every step of `kfac`. At which step do the runs part? Is one clearly ahead?
# 4. With lambda_0 = 0.0001, at which step does h rise, and why does the rule that undoes such steps (`undo`, on by
#    default, asked where rho is measured) not prevent it? Try T1 = 1. What does it cost? And with omega1 = 0.5?
#
# [Answers](answers/09_the_optimizer.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Martens and Grosse (2015), sections 5 to 9. The code: `kfac_ref/optimizers/kfac.py`, `kfac_ref/quadratic_model.py`.
# - Martens (2010), *Deep learning via Hessian-free optimization*: where the rule of lambda comes from.
