# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 8. Damping
#
# **What you will do.** Watch a step turn as its damping grows, damp `A ⊗ G` in two ways, measure what a step gains.
#
# **What you will learn.** What lambda does to a step; what the factored damping of K-FAC adds that nobody wanted, and
# what pi is; why rescaling by the exact F makes the strength matter less; and why gamma is not lambda.
#
# **What you need.** Tutorials 1 (solves with Kronecker products), 3 (the Fisher F) and 6 (A and G).

# %%
import numpy as np
from matplotlib.figure import Figure

import kfac_ref as kr
from kfac_ref import kronecker, oracle, plotting
from kfac_ref.params import add, flatten, inner, scale

# %% [markdown]
# ## Why damp at all
#
# A step is made from a **quadratic model** Q of the objective h around the weights. It is right nearby, but its minimum
# may be far away. **Tikhonov damping** adds lambda I to F, a price of lambda/2 on the squared length. That makes the
# damped model M, whose minimum is the step:
#
# $$ Q(\delta) = h + \nabla h^T \delta + \tfrac12\, \delta^T F \delta, \qquad
#    M(\delta) = Q(\delta) + \tfrac\lambda2 \|\delta\|^2, \qquad \delta(\lambda) = -(F + \lambda I)^{-1}\, \nabla h $$
#
# Let a model of two weights, slope and bias, fit five answers, yes (1) or no (0). Its h is the mean of -log p(answer)
# over the examples, in *nats*, the unit of natural logarithms. The last columns are what h and M change by along the
# step, and the quotient rho of the two, which the next section needs.

# %%
model = kr.Model(kr.MLP((1, 1)), kr.Bernoulli())
x, y = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]), np.array([[0.0], [0.0], [1.0], [0.0], [1.0]])
here = np.array([-1.0, -2.0])
at = model.at([here[None]], x)
F, grad, h = kr.fisher_matrix(at), flatten(at.gradient(y)), at.loss(y)


def look(lambda_):
    """Return the step, its length, its degrees from -grad, and by how much it changes h and M."""
    delta = -np.linalg.solve(damped := F + lambda_ * np.eye(2), grad)
    length = float(np.linalg.norm(delta))
    degrees = np.degrees(np.arccos(-delta @ grad / length / np.linalg.norm(grad)))
    change = model.at([(here + delta)[None]], x).loss(y) - h
    return delta, length, degrees, change, grad @ delta + delta @ damped @ delta / 2


looks = {v: look(v) for v in (0, 0.01, 0.03, 0.1, 0.3, 1, 10)}
print("lambda  length  degrees from -grad  change of h    of M    rho")
for v, (_, length, degrees, actual, predicted) in looks.items():
    print(f"{v:6} {length:7.2f} {degrees:19.1f} {actual:12.2f} {predicted:7.2f} {actual / predicted:6.2f}")
assert np.all(np.diff([(length, degrees) for _, length, degrees, *_ in looks.values()], axis=0) < 0)
assert looks[0][3] > 0.5 > -0.5 > looks[0.1][3]                 # undamped, h rises: so far away Q is wrong
assert np.allclose(1e6 * look(1e6)[0], -grad, rtol=1e-5)        # the other limit

# %% [markdown]
# lambda = 0 is the natural gradient; a large lambda is gradient descent with a rate of 1/lambda. In between the step
# turns: along an eigenvector of F it is -c / (f + lambda), c the gradient along it, f the eigenvalue. Directions with
# f above lambda are hardly touched, those below are held back; one that equals lambda is halved.
#
# ## A trust region
#
# Of all steps that are **not longer**, delta(lambda) has the lowest Q. So lambda says how far Q is trusted. Whether
# rightly, **rho** shows, the change of h over that of M. It is negative where h rises, and near 2 where the step is far
# too short: h is then a straight line, and M at its minimum falls by half of it. The paper (section 6.5) makes lambda
# smaller where rho > 3/4 and larger where rho < 1/4.

# %%
circle = np.array([f(np.linspace(0, 2 * np.pi, 721)) for f in (np.cos, np.sin)])
for delta, length, *_ in looks.values():
    ball = (circle[:, :, None] * np.linspace(0, length, 21)).reshape(2, -1)
    Q = grad @ ball + np.einsum("ik,ij,jk->k", ball, F, ball) / 2
    assert Q.min() > grad @ delta + delta @ F @ delta / 2 - 1e-12

# %% [markdown]
# Step through lambda: the arrow is the step, the radius of the circle. The dashed line is the level of Q at the arrow's
# tip: there it touches the circle, from outside (for lambda = 0 it is all but a point, the minimum of Q). Grey lines
# are levels of h, the cross is its minimum; the dotted line is where the steps of all lambda end. That of 10, with a
# length of 0.07, is too short to be drawn.

# %% tags=["hide-input"]
W, B = np.meshgrid(np.linspace(-5, 9, 81), np.linspace(-6, 8, 81))
H = np.vectorize(lambda w, b: model.at([np.array([[w, b]])], x).loss(y))(W, B)
Q = np.vectorize(lambda *w: (w - here) @ grad + (w - here) @ F @ (w - here) / 2)(W, B)
frames, captions, ends = [], [], [look(v)[0] for v in np.logspace(-4, 2)]
for v, (delta, length, degrees, actual, _) in list(looks.items())[:-1]:
    with plotting.style():
        frames.append(Figure(figsize=(5.6, 5.2), layout="constrained"))
        axes, (red, blue, _, green, *_) = frames[-1].subplots(), plotting.COLOURS
        axes.contour(W, B, H, levels=H.min() + np.geomspace(0.03, 10, 12), colors="0.7", linewidths=0.8)
        axes.contour(W, B, Q, [grad @ delta + delta @ F @ delta / 2 + 1e-3], colors=[blue], linestyles="--")
        axes.plot(*(here[:, None] + length * circle), color=green, linewidth=1)
        axes.plot(*(here + ends).T, ":k", W.flat[H.argmin()], B.flat[H.argmin()], "+k", markersize=10)
        axes.annotate("", here + delta, here, arrowprops={"arrowstyle": "->", "color": red, "lw": 2})
        axes.set(xlim=(-5, 9), ylim=(-6, 8), xlabel="slope", ylabel="bias", title=f"lambda = {v}")
    captions.append(f"lambda = {v}: length {length:.2f}, {degrees:.0f} degrees from -grad; h changes by {actual:+.2f}.")
assert round(looks[10][1], 2) == 0.07
plotting.Player(frames, captions, "A step that turns and shrinks as lambda grows")

# %% [markdown]
# ## A Kronecker product, damped exactly
#
# `A ⊗ G + damping I` is no Kronecker product. But from A = Q_A diag(a) Q_A^T and G = Q_G diag(g) Q_G^T it has the
# eigenvectors Q_A kron Q_G and the eigenvalues a_i g_j + damping. Let A and G be those of layer 1 of an autoencoder of
# the digits, after 20 steps of K-FAC. It has *weight decay*:
#
# $$ h(\theta) = \mathrm{loss}(\theta) + \tfrac\eta2 \|\theta\|^2 $$
#
# The second part has the Hessian eta I. F is that of the loss alone, so eta I is added: damping = lambda + eta.

# %%
data = kr.datasets.digits().x[:300]
net = kr.Model(kr.MLP((64, 20, 6, 20, 64), ("logistic", "identity", "logistic")), kr.Bernoulli(), weight_decay=1e-5)
opt = kr.optimizers.KFAC(net, lambda_0=0.01, T3=5, tau1=1, judged_on="same batch", T1=5)
state = kr.training.train(opt, net.init(np.random.default_rng(0)), data, data, 20, progress=False).state
at, damping = net.at(state.weights, data), state.lambda_ + net.weight_decay
factors = kr.factors.as_factors(state.average.moments)         # the running average of A and G: tutorial 9
V, A, G = at.gradient(data), factors.A[1], factors.G[1]         # V is grad h, V[1] the part of layer 1
(a, Q_A), (g, Q_G) = np.linalg.eigh(A), np.linalg.eigh(G)
exact = Q_G @ ((Q_G.T @ V[1] @ Q_A) / (np.outer(g, a) + damping)) @ Q_A.T
assert np.allclose(G @ exact @ A.T + damping * exact, V[1])
assert np.allclose(exact, kr.curvature.EigenDamped(factors, damping).solve(V)[1])

# %% [markdown]
# ## Damped in its factors
#
# The paper (section 6.3) damps the two factors instead, for which two Cholesky factorizations are enough. They share
# the root r = sqrt(damping), by a positive number pi:
#
# $$ (A + \pi r I) \otimes (G + (r/\pi) I) = A \otimes G + r^2 I + \pi r\, I \otimes G + (r/\pi)\, A \otimes I $$
#
# The last two terms nobody wanted, and they are not small: they come with r, not r^2. With an m x n weight matrix their
# trace is pi r n tr G + (r/pi) m tr A; it is least where pi^2 = (tr A / n) / (tr G / m), and that is the paper's pi.

# %% tags=["hide-input"]
r, (m, n) = np.sqrt(damping), V[1].shape
pi = np.sqrt((np.trace(A) / n) / (np.trace(G) / m))
unwanted = [(c * r * n * np.trace(G) + r / c * m * np.trace(A)) / (damping * m * n) for c in (pi / 2, pi, 2 * pi)]
print(f"pi = {pi:.2f}: unwanted trace {unwanted[1]:.0f} times that of damping I; with 2 pi or pi/2 {unwanted[0]:.0f}")
assert unwanted[1] < min(unwanted[0], unwanted[2])
A_damped, G_damped = A + pi * r * np.eye(n), G + r / pi * np.eye(m)
factored = kronecker.solve(kronecker.Cholesky.factor(A_damped), kronecker.Cholesky.factor(G_damped), V[1])
assert np.allclose(factored, kr.curvature.BlockDiagonal(factors, damping).solve(V)[1])
plain, by_factors = (np.outer(g, a) + damping).ravel(), np.outer(g + r / pi, a + pi * r).ravel()
with plotting.style():
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.loglog(plain, by_factors, ".", color=plotting.COLOURS[0])
    axes.loglog(np.sort(plain), np.sort(plain), color=plotting.COLOURS[1])
    axes.set(xlabel="eigenvalue of A ⊗ G + damping I (line)", ylabel="eigenvalue as damped in the factors (dots)")
plotting.Picture(figure, "Eigenvalues damped in the factors against those damped exactly: "
                 f"{(by_factors / plain).min():.1f} to {(by_factors / plain).max():.0f} times as large.")

# %% [markdown]
# ### Confusion box: the whole damping on both factors
#
# The wrong code adds damping I to A and to G. The product then holds damping^2 I in place of damping I:

# %%
v = oracle.vector("categorical-tanh")
A_wrong, G_wrong = ([S + v.problem.damping * np.eye(len(S)) for S in v.expected[name]] for name in "AG")
wrong = kr.Factors.of_layers(A_wrong, G_wrong, n=1)
step = kr.curvature.BlockDiagonal(wrong).solve(v.expected["gradient"])
report = oracle.check(v.problem, {"step": scale(-1, step)})
print(f"{v.problem.damping**2:.2f} I in place of {v.problem.damping:.2f} I\n{report}")
assert ("full damping on both factors",) in [e.names for e in report.explanations]

# %% [markdown]
# ## What a step gains
#
# Now all layers: Delta = -(damped curvature)^-1 grad. The paper (section 6.4) steps by alpha Delta, with the alpha at
# which M, of the **exact** F and damping lambda + eta, is least:
#
# $$ \alpha = \frac{-\nabla h^T \Delta}{\Delta^T F \Delta + (\lambda + \eta)\, \|\Delta\|^2} $$
#
# This M we keep; what we change is the strength of the damping inside Delta, r in the factors.

# %% tags=["hide-input"]
omega2 = np.sqrt(19 / 20)**20                                   # of the paper; its use is below
strengths, h, gain, of_M = r * omega2**np.arange(12, -11, -1), at.loss(data), {}, {}
for name, structure in (("factored damping", kr.curvature.BlockDiagonal), ("exact damping", kr.curvature.EigenDamped)):
    rows = []
    for r_ in strengths:
        Delta = scale(-1, structure(factors, damping=r_**2).solve(V))
        slope, square = inner(V, Delta), inner(Delta, kr.fisher_product(at, Delta)) + damping * inner(Delta, Delta)
        ends = (net.at(add(state.weights, scale(c, Delta)), data).loss(data) for c in (1, -slope / square))
        rows.append([*(h - end for end in ends), slope**2 / square / 2])
    plain, rescaled, of_M[name] = np.array(rows).T
    gain[name] = {"no re-scaling": plain, "re-scaling": rescaled}
    print(f"{name}: Delta lowers h by {plain.max():.3f} at best, alpha Delta by {rescaled.max():.3f}")
    assert plain[strengths < 0.5].max() < 0 < rescaled.min()
    assert rescaled.max() > 3 * plain.max()
assert rescaled[0] < 0.01 * rescaled.max()                      # with exact damping, at the least strength
best = [strengths[v["re-scaling"].argmax()] for v in gain.values()]
message = ("Decrease of h in one step against the strength of the damping. Without re-scaling h rises at each strength "
           f"below 0.5. With it h falls at each, most at {best[0]:.1g} (factored) and {best[1]:.1g} (exact).")
plotting.Picture(plotting.decreases(strengths, {"step 21": gain}, {"step 21": state.gamma}, ""), message)

# %% [markdown]
# Twice Delta has half the alpha: the same step. So the damping inside Delta chooses a **direction** only, its length is
# the business of the exact F, and M falls at each strength. (Not equally: at 1e-4 exact damping gains nearly nothing.)
#
# ## Why gamma is not lambda
#
# lambda says how far Q is trusted, in which F is exact. The strength inside Delta has to make up for A ⊗ G not
# being F. Without re-scaling that takes far more than sqrt(lambda + eta), see above. With re-scaling it takes less:
# alpha sees to the length, and what is left to choose, the direction, is better with a weaker damping; in the factors
# weaker still, since there it brings the unwanted terms. That is so *here*; in the runs of tutorials 9 and 11 it ends
# up stronger. So the paper (section 6.6) gives it a name of its own, **gamma**: it starts at sqrt(lambda + eta);
# every T2 steps gamma, omega2 gamma and gamma / omega2 are tried, the lowest M decides.

# %%
weaker = strengths[of_M["exact damping"].argmax()]
of_M, k = of_M["factored damping"], 12
assert np.allclose(kr.damping.gamma_candidates(r, omega2), strengths[[k, k - 1, k + 1]])
while (best := max((k, k - 1, k + 1), key=of_M.__getitem__)) != k:
    k = best
print(f"M falls by {of_M[12]:.3f} at sqrt(lambda + eta) = {r:.3f}, by {of_M[k]:.3f} at gamma = {strengths[k]:.4f}")
print(f"with exact damping it falls most at {weaker:.4f}")
assert 5 * strengths[k] < weaker < r / 5
assert of_M[k] > 1.5 * of_M[12]

# %% [markdown]
# ## In practice
#
# `kr.curvature.BlockDiagonal(factors, damping=gamma**2)` is damped in its factors; `EigenDamped` exactly, by
# eigenvectors. The paper finds plain Tikhonov damping not competitive. Here that is so without rescaling only:

# %%
ratio = [np.divide(*(v[kind].max() for v in gain.values())) for kind in ("no re-scaling", "re-scaling")]
print(f"best decrease, factored over exact damping: {ratio[0]:.2f}; with re-scaling: {ratio[1]:.2f}")
assert ratio[1] < 1 < ratio[0]

# %% [markdown]
# ## Exercises
#
# 1. Multiply A by 100 and divide G by 100. Does the factored damped product change: with pi, with pi = 1?
# 2. Find by bisection the lambda whose step has length 2. Which lambda lowers h most? What is rho there?
# 3. Draw the last picture after 100 steps, over `strengths = np.geomspace(1e-6, 100, 41)` (the asserts are about step
#    21). Where do the best strengths go, where does lambda?
#
# [Answers](answers/08_damping.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Martens and Grosse (2015), section 6. The code: `kfac_ref/damping.py`; with three seeds: `figures/damping.py`.
