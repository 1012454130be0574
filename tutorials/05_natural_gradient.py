# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 5. Natural gradient
#
# **What you will do.** Find the direction of steepest descent when the length of a step is measured by how much it
# changes the model's *predictions*, and walk along it in two sets of parameters.
#
# **What you will learn.** Where F^-1 grad h comes from; that 1/2 d^T F d is the KL divergence of a step, up to a cubic
# error; what stays the same under a change of parameters, exactly and in finite steps, and what damping does to it.
#
# **What you need.** Tutorials 3 and 4; what a Lagrange multiplier is.

# %%
import numpy as np
from matplotlib.figure import Figure

import kfac_ref as kr
from kfac_ref import oracle, plotting

# %% [markdown]
# ## A model that can be drawn
#
# No network yet: five numbers y, described by a Gaussian with mean m and standard deviation s. The parameters are
# theta = (m, u) with u = log s. The objective h is the mean of -log p(y), without its constant 1/2 log(2 pi). The
# Fisher: a target drawn from the model is m + s e with e standard normal, and the gradient of -log p there is D theta =
# (-e/s, 1 - e^2). With E[e^2] = 1, E[e^3] = 0 and E[e^4] = 3, F = E[D theta D theta^T] is diag(1/s^2, 2).

# %%
y = np.array([0.3, 0.7, 1.0, 1.3, 1.7])


def h(m, u):
    return u + ((y.mean() - m)**2 + y.var()) / (2 * np.exp(2 * u))


def grad(m, u):
    return np.array([(m - y.mean()) / np.exp(2 * u), 1 - ((m - y.mean())**2 + y.var()) / np.exp(2 * u)])


def F(m, u):
    return np.diag([np.exp(-2 * u), 2.0])


theta = np.array([-0.5, 0.9])
print("h:", h(*theta).round(3), "  grad h:", grad(*theta).round(3))
assert np.allclose(grad(y.mean(), np.log(y.std())), 0)          # the minimum: mean and deviation of the data
e, weight = np.polynomial.hermite_e.hermegauss(3)               # a mean that is exact for e, e^2, ..., e^5
D_theta = np.stack([-e / np.exp(theta[1]), 1 - e**2])
assert np.allclose((weight / weight.sum() * D_theta) @ D_theta.T, F(*theta))

# %% [markdown]
# ## How far apart are two models?
#
# The **Kullback-Leibler divergence** KL(p || q), the mean of log p(y) - log q(y) over y drawn from p, compares
# predictions and knows nothing of parameters. It is zero at p = q and positive elsewhere, so for a small step d of
# theta it has no constant and no linear term. Its quadratic term is the Fisher:
#
# $$ \mathrm{KL}(\theta \,\|\, \theta + d) = \tfrac12\, d^T F d + O(\|d\|^3) $$
#
# Why? The second derivatives of KL at d = 0 are the mean of the Hessian of -log p over targets *of the model itself*.
# That Hessian is D theta D theta^T - (Hessian of p) / p. The first has the mean F, the second zero: it is the Hessian
# of the integral of p, which is 1 at every theta. As the error is cubic, halving d divides it by about eight:

# %%
def KL(p, q):
    """Return the KL of two Gaussians, each given by its (m, u), in closed form."""
    return q[1] - p[1] + (np.exp(2 * p[1]) + (p[0] - q[0])**2) / (2 * np.exp(2 * q[1])) - 0.5


ds = np.outer([0.2, 0.1, 0.05, 0.025], [0.8, 0.6])
true, quadratic = np.array([(KL(theta, theta + d), d @ F(*theta) @ d / 2) for d in ds]).T
print("KL:         ", true.round(5), "\n1/2 d^T F d:", quadratic.round(5))
orders = np.log2((true - quadratic)[:-1] / (true - quadratic)[1:])
print("the error goes with this power of the length:", orders.round(2))
assert abs(orders[-1] - 3) < 0.05

# %% [markdown]
# ## Steepest descent, measured in KL
#
# "The steepest direction" means nothing until one says which steps are equally long. Take all d with 1/2 d^T F d = c
# and minimize the linear model of h, grad^T d. With a multiplier 1/t: grad + F d / t = 0, hence
#
# $$ d = -t\, F^{-1} \nabla h, \qquad t = \sqrt{2c \,/\, \nabla h^T F^{-1} \nabla h} $$
#
# This is the **natural gradient**. If length is ||d||, F is replaced by I, and d is gradient descent. The picture
# has, at five places, all steps of one KL c, and both directions of descent, scaled to 1/2 d^T F d = c, so that they
# end near that curve; the natural one is turned towards its long axis. The cell also tries brute force: in which of
# 3600 directions does the true h fall most for each unit of sqrt(2 KL)?

# %% tags=["hide-input"]
M, U = np.meshgrid(np.linspace(-2.2, 3.4, 150), np.linspace(-1, 1.4, 150))
names, c, angle = ("gradient descent", "natural gradient"), 0.04, np.radians(np.arange(0, 360, 0.1))


def on_contours(axes, title):
    axes.contour(M, U, h(M, U), np.arange(-0.2, 2.5, 0.2), colors="0.8", linestyles="solid", linewidths=0.8)
    axes.plot(y.mean(), np.log(y.std()), "k*", markersize=10)
    axes.set(title=title, xlabel="m", ylabel="u = log s")


falls, off = [], []
with plotting.style():
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    on_contours(axes, f"all steps of KL = {c}, and the two descents")
    axes.set_aspect("equal")
    for p in np.array([(-0.5, 0.9), (1.7, 1.1), (-1.4, 0.3), (0.1, -0.15), (2.4, 0.35)]):
        axes.contour(M, U, KL(p, (M, U)), [c], colors="black", linewidths=1)
        for C, name, colour in zip((np.eye(2), F(*p)), names, plotting.COLOURS, strict=False):
            d = -np.linalg.solve(C, grad(*p))
            d *= np.sqrt(2 * c / (d @ F(*p) @ d))               # 1/2 d^T F d = c
            falls.append(grad(*p) @ d)
            axes.quiver(*p, *d, color=colour, angles="xy", scale_units="xy", scale=1, width=0.006,
                        label=name if len(falls) < 3 else None)
        ring = p[:, None] + 0.01 * np.stack([np.cos(angle), np.sin(angle)])
        best = angle[np.argmin((h(*ring) - h(*p)) / np.sqrt(2 * KL(p, ring)))]
        off.append(np.degrees(abs((best - np.arctan2(d[1], d[0]) + np.pi) % (2 * np.pi) - np.pi)))
    axes.legend(loc="lower left")
share = np.divide(falls[::2], falls[1::2])
print(f"the best directions by brute force are {min(off):.1f} to {max(off):.1f} degrees off the natural gradient")
assert max(off) < 1
plotting.Picture(figure, "Level lines of h over m and u = log s, and at five places the curve of all steps of KL = "
                 f"{c}: wide where s is large, narrow where it is small. Along the gradient the linear model falls by "
                 f"{min(share):.0%} to {max(share):.0%} of what it falls by with the natural gradient of the same "
                 "1/2 d^T F d.")

# %% [markdown]
# ## The same model in other parameters
#
# Take other parameters theta', with d theta = J d theta' for small changes, J invertible. The chain rule gives grad' =
# J^T grad and F' = J^T F J, so J (F'^-1 grad') = J J^-1 F^-1 J^-T J^T grad = F^-1 grad: the same change of the model.
# Gradient descent's is J grad' = J J^T grad: another one, unless J J^T = I (a rotation or reflection). Where J is a
# constant matrix (a *linear* change of parameters), this holds for steps of any size. **Damping**, F + lambda I in
# place of F (needed where F is singular, as in tutorial 3; see tutorial 8), breaks it, but for such a rotation: I is I
# in all parameters, where J^T J would be needed.

# %%
J = np.array([[1.0, 2.0], [-0.5, 3.0]])
print("                 in theta           in theta', mapped back")
for name, C, C_there in (("gradient descent", np.eye(2), np.eye(2)), ("natural", F(*theta), J.T @ F(*theta) @ J),
                         ("damped by 0.1", F(*theta) + 0.1 * np.eye(2), J.T @ F(*theta) @ J + 0.1 * np.eye(2))):
    one, two = -np.linalg.solve(C, grad(*theta)), -J @ np.linalg.solve(C_there, J.T @ grad(*theta))
    print(f"{name:16} {one.round(3)!s:18} {two.round(3)}")
    assert (np.linalg.norm(one - two) < 1e-12) == (name == "natural")

# %% [markdown]
# With the variance v = s^2 in place of u, J = diag(1, du/dv) changes along a step. The natural gradients start in one
# direction and come apart by O(epsilon^2) in a step of size epsilon, by O(epsilon) over 2/epsilon steps. The paths of
# gradient descent differ however small the steps are. As the distance of two models take sqrt(2 KL), about the length
# sqrt(d^T F d) of the step between them: it has no parameters in it.

# %%
def path(epsilon, steps, natural, variance):
    """Return the (m, u) of a path from theta that is walked in (m, v) where `variance` is true, else in (m, u)."""
    points = [theta]
    for _ in range(steps):
        m, u = points[-1]
        J = np.diag([1.0, 1 / (2 * np.exp(2 * u)) if variance else 1.0])            # du/dv = 1/(2v)
        g = J.T @ grad(m, u)
        d = -epsilon * (np.linalg.solve(J.T @ F(m, u) @ J, g) if natural else g)
        points.append(np.array([m + d[0], np.log(np.exp(2 * u) + d[1]) / 2 if variance else u + d[1]]))
    return np.array(points)


print("            one step           all steps\nepsilon  natural  gradient  natural  gradient")
rows = []
for epsilon in (0.2, 0.1, 0.05, 0.025):
    ends = [[path(epsilon, k, n, v)[-1] for v in (False, True)] for k in (1, round(2 / epsilon)) for n in (True, False)]
    rows.append(np.array([np.sqrt(2 * KL(*pair)) for pair in ends]))
    print("{:7} {:8.5f} {:9.4f} {:8.4f} {:9.3f}".format(epsilon, *rows[-1]))
print("powers of epsilon: {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*np.abs(np.log2(rows[-2] / rows[-1]))))
assert np.allclose(np.log2(rows[-2] / rows[-1]), [2, 1, 1, 0], atol=0.1)

# %% tags=["hide-input"]
shown, frames, captions = (0, 1, 2, 4, 8, 16), [], []
paths = [[path(0.2, shown[-1], natural, v) for v in (False, True)] for natural in (False, True)]
for k in shown:
    with plotting.style():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, name, (p, q) in zip(figure.subplots(1, 2, sharey=True), names, paths, strict=True):
            on_contours(axes, f"{name}, step {k}")
            axes.plot(*p[:k + 1].T, "-o", color=plotting.COLOURS[0], markersize=7, label="in (m, log s)")
            axes.plot(*q[:k + 1].T, "--s", color=plotting.COLOURS[1], markersize=4, label="in (m, s^2)")
            axes.legend(loc="lower left")
    frames.append(figure)
    apart = [np.sqrt(2 * KL(p[k], q[k])) for p, q in paths]
    captions.append(f"Step {k}: the two descriptions are sqrt(2 KL) = {apart[0]:.3f} apart by gradient descent, "
                    f"{apart[1]:.3f} by the natural gradient.")
assert apart[1] < apart[0] / 5
plotting.Player(frames, captions, "Two methods, each in two sets of parameters, drawn over m and log s")

# %% [markdown]
# ### Confusion box: a summed F with a mean gradient
#
# grad h is a mean over the N examples, so F must be one too. With a sum, a step without damping is N times too short;
# a damped one, as here, is too short by less:

# %%
stored = oracle.vector("categorical-tanh")
there, lambda_, shapes = stored.problem.at(), stored.problem.damping, stored.problem.model.network.shapes
F_net, g = kr.fisher_matrix(there), kr.params.flatten(stored.expected["gradient"])
right, short = (-np.linalg.solve(n * F_net + lambda_ * np.eye(len(g)), g) for n in (1, len(there)))
report = oracle.check(stored.problem, {"natural_gradient": kr.params.unflatten(short, shapes)})
ratio = np.linalg.norm(right) / np.linalg.norm(short)
print(f"N = {len(there)}, lambda = {lambda_:g}: {ratio:.1f} times too short\n\n{report}")
assert 1 < ratio < len(there)
assert ("Fisher summed over the examples",) in [found.names for found in report.explanations]

# %% [markdown]
# ## In practice
#
# On a network, KL is the mean over the inputs x of the KL of the predictions, and F is `kr.fisher_matrix`. The
# optimizer `NaturalGradient` solves with F + gamma^2 I (gamma^2 is its damping) and multiplies by a number alpha
# (tutorial 9): below, its first step by hand. But with P weights F has P^2 entries and a solve takes about P^3 / 3
# additions and multiplications: for a million weights there is no such matrix. Tutorial 6 puts Kronecker products in
# its place, tutorial 7 inverts them.

# %%
opt = kr.optimizers.NaturalGradient(stored.problem.model)
state, record = opt.step(opt.init(there.weights), there.x, stored.problem.y)
mine = kr.params.flatten(there.weights) - record.alpha * np.linalg.solve(F_net + record.gamma**2 * np.eye(len(g)), g)
assert np.allclose(kr.params.flatten(state.weights), mine, rtol=1e-8, atol=1e-10)

# %% [markdown]
# ## Exercises
#
# 1. Check that a softmax network has KL = 1/2 d^T F d up to a cubic error. (KL of probabilities: sum of p log(p/q).)
# 2. Show that two natural steps of size 1 in (m, s^2) land on the minimum from anywhere. In the parameters (E[y],
#    E[y^2]) one is enough: compute F'^-1 grad' there and compare it with the means of y and y^2 in the data.
# 3. Put the empirical Fisher of the five numbers in `path`. Do its two paths stay together? Where do they go?
#    Try other starts, too.
# 4. Which of these are the same in all parameters: ||grad||^2, grad^T F^-1 grad, the trace of F, d^T F d of a
#    small step d?
#
# [Answers](answers/05_natural_gradient.py). Graded exercises of this chapter: `tutorials/exercises/`.
#
# ## Further reading
#
# - Amari (1998), *Natural gradient works efficiently in learning*.
# - Martens (2020), *New insights and perspectives on the natural gradient method*.
# - Martens and Grosse (2015), sections 2.2 and 10; a network in other weights: `kfac_ref/analysis/invariance.py`.
