# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 8
#
# The questions stand at the end of [tutorial 8](../08_damping.py). Try them first.

# %%
import numpy as np

import kfac_ref as kr
from kfac_ref.params import add, flatten, inner, scale

# %% [markdown]
# ## 1. What pi makes up for
#
# `A ⊗ G` does not change, so the damped product should not. With pi it does not: pi is the root of a quotient of
# traces and grows a hundredfold, so that A + pi r I is multiplied by 100 and G + (r/pi) I divided by 100, as A and G
# are. With pi = 1 it does: the same r is added to both, nearly nothing beside 100 A and far too much beside G / 100.
# All that has changed is how one scale is shared: a is ten times as large and g a tenth, so that the gradient g a^T is
# what it was. No step should depend on that.

# %%
rng = np.random.default_rng(0)
A, G = (X @ X.T / 10 for X in (rng.standard_normal((4, 10)), rng.standard_normal((3, 10))))


def damped(A, G, r, pi):
    return np.kron(A + pi * r * np.eye(len(A)), G + r / pi * np.eye(len(G)))


def trace_pi(A, G):
    return np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))


for name, pi in (("pi", trace_pi), ("pi = 1", lambda A, G: 1.0)):
    before, after = (damped(a, g, 0.3, pi(a, g)) for a, g in ((A, G), (100 * A, G / 100)))
    change = np.linalg.norm(after - before) / np.linalg.norm(before)
    print(f"with {name} the damped product changes by {change:.2f} of its norm")
    assert (change < 1e-12) if name == "pi" else (change > 1)

# %% [markdown]
# ## 2. A step of length 2, and the best step
#
# The length falls as lambda grows, so there is one such lambda, and a bisection finds it. (It halves in log lambda,
# since lambda goes over decades.) The lambda that lowers h most is somewhat smaller; its step comes within a hundredth
# of a nat of the minimum of h. There rho is about 1.2: h falls by less than Q says, but by more than M says, which
# charges for the length. As that is above 3/4, the rule would make lambda smaller still, until rho is below 3/4, and
# there h falls less. rho asks whether M can be believed, not which step is best.

# %%
model = kr.Model(kr.MLP((1, 1)), kr.Bernoulli())
x, y = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]), np.array([[0.0], [0.0], [1.0], [0.0], [1.0]])
here = np.array([-1.0, -2.0])
at = model.at([here[None]], x)
F, grad, h = kr.fisher_matrix(at), flatten(at.gradient(y)), at.loss(y)


def look(lambda_):
    """Return the length of the step, by how much it changes h, and rho."""
    delta = -np.linalg.solve(damped := F + lambda_ * np.eye(2), grad)
    change = model.at([(here + delta)[None]], x).loss(y) - h
    return float(np.linalg.norm(delta)), change, change / (grad @ delta + delta @ damped @ delta / 2)


def bisect(too_small, low, high):
    """Return the lambda up to which `too_small` is true."""
    for _ in range(50):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return low


length_2 = bisect(lambda v: look(v)[0] > 2, 0.01, 1)
best = min(np.geomspace(1e-3, 10, 2000), key=lambda v: look(v)[1])
rule = bisect(lambda v: look(v)[2] < 3 / 4, 0.01, 1)
for name, v in (("length 2", length_2), ("h falls most", best), ("rho = 3/4", rule)):
    print("{:13} lambda = {:.3f}: length {:.2f}, change of h {:.3f}, rho {:.2f}".format(name, v, *look(v)))
assert np.isclose(look(length_2)[0], 2)
assert rule < 0.7 * best < best < 0.9 * length_2
length, change, rho = look(best)
assert change / rho - best / 2 * length**2 < 1.1 * change < change < change / rho               # Q, h, M
assert look(rule)[1] > 0.95 * change
W, B = np.meshgrid(np.linspace(0.5, 1.5, 21), np.linspace(-1, 0, 21))
lowest = min(model.at([np.array([[w, b]])], x).loss(y) for w, b in zip(W.flat, B.flat, strict=True))
print(f"h after the best step: {h + change:.3f}; the lowest h near the minimum, on a grid: {lowest:.3f}")
assert h + change - lowest < 0.01

# %% [markdown]
# ## 3. After 100 steps
#
# The grid of that picture is made of r, which has fallen with lambda; now the best strengths are outside. Take a wider
# one. lambda is at its floor, 1e-4: rho was above 3/4 at each test, so it only went down. **With re-scaling** the best
# strengths go down too: M charges less for length, so directions of small curvature, which a strong damping holds back,
# come to count. The factored one goes further, as its unwanted terms come with r and not r^2. gamma went down at each
# of its tests and is still far above: it can fall by one factor omega2 in T2 steps. **Without re-scaling** the best
# strengths stay between 0.6 and 20, as damping alone has to see to the length. How much that takes, alpha shows. With P
# for the damped factors grad = -P Delta, so alpha is Delta^T P Delta over Delta^T (F + damping I) Delta. At the best
# strength of the re-scaled step it is below 0.2: along Delta the exact M has more than five times the curvature of P,
# after 100 steps as after 20.

# %%
data = kr.datasets.digits().x[:300]
net = kr.Model(kr.MLP((64, 20, 6, 20, 64), ("logistic", "identity", "logistic")), kr.Bernoulli(), weight_decay=1e-5)
opt = kr.optimizers.KFAC(net, lambda_0=0.01, T3=5, tau1=1, judged_on="same batch", T1=5)
strengths, best = np.geomspace(1e-6, 100, 41), {}
for steps in (20, 100):
    run = kr.training.train(opt, net.init(np.random.default_rng(0)), data, data, steps, progress=False)
    state, factors = run.state, kr.factors.as_factors(run.state.average.moments)
    at, damping = net.at(state.weights, data), state.lambda_ + net.weight_decay
    V, h = at.gradient(data), at.loss(data)
    print(f"after {steps} steps: lambda {state.lambda_:.1g}, gamma {state.gamma:.1g}, best strengths:")
    for name, structure in (("factored", kr.curvature.BlockDiagonal), ("exact", kr.curvature.EigenDamped)):
        rows = []
        for r in strengths:
            Delta = scale(-1, structure(factors, damping=r**2).solve(V))
            alpha = -inner(V, Delta) / (inner(Delta, kr.fisher_product(at, Delta)) + damping * inner(Delta, Delta))
            ends = (net.at(add(state.weights, scale(c, Delta)), data).loss(data) for c in (1, alpha))
            rows.append([*(h - end for end in ends), alpha])
        plain, rescaled, alphas = np.array(rows).T
        plain, rescaled, alpha = strengths[plain.argmax()], strengths[rescaled.argmax()], alphas[rescaled.argmax()]
        print(f"  {name:8} without re-scaling {plain:.1g}, with it {rescaled:.1g}, alpha {alpha:.2f}")
        best[name, steps] = rescaled
        assert 0.6 < plain < 20
        assert 0.02 < alpha < 0.2
assert state.lambda_ == opt.lambda_floor
assert np.nanmin([record.rho for record in run.records]) > 3 / 4
assert np.isclose(state.gamma, np.sqrt(0.01 + 1e-5) * np.sqrt(19 / 20)**(20 * 5))               # five tests, all down
assert best["exact", 100] < best["exact", 20] / 2
assert best["factored", 100] < best["factored", 20] / 5
assert 10 * best["factored", 100] < state.gamma
