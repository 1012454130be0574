"""Every quantity of K-FAC that a problem defines, by name; `graph` computes them when they are asked for.

Examples
--------
>>> import numpy as np
>>> from kfac_ref.oracle import Problem, Reference
>>> problem = Problem((1, 1), (), "gaussian", [np.array([[2.0, 0.0]])], [[1.0], [3.0]], [[0.0], [0.0]])
>>> Reference(problem)["A"][0].tolist(), Reference(problem)["loss"]
([[5.0, 2.0], [2.0, 1.0]], 10.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from .. import checks, damping, hessian, kronecker, params
from ..checks import Array
from ..curvature import BlockTridiagonal, EigenDamped
from ..expectations import exact, sampled
from ..factors import Factors
from ..kronecker import Cholesky, Eigen
from ..quadratic_model import SmallModel, reduction_ratio
from .graph import QUANTITIES, Reference, node, quantity

#: eps of the running average grows up to this (paper: sec. 5).
CEILING = 0.95

# The network at this point.

node("at")(lambda r: r.problem.at())
node("N", "at")(lambda r: len(r["at"]))
node("eta")(lambda r: r.problem.weight_decay)
node("damping")(lambda r: r.problem.damping)
node("decay", "eta")(lambda r: tuple(r["eta"] * W for W in r.problem.weights))
node("z", "at")(lambda r: r["at"].z)
node("a_bar", "at")(lambda r: r["at"].a_bar)
node("y")(lambda r: r.problem.y)
node("targets")(lambda r: r.problem.targets)
node("dz", "at", "y")(lambda r: r.problem.model.likelihood.gradient(r["at"].z, r["y"]))
node("dz_exact", "at")(lambda r: exact(r["at"]))
node("dz_sampled", "at", "targets")(lambda r: sampled(r["targets"])(r["at"]))
node("g", "at", "dz")(lambda r: tuple(r["at"].backward(r["dz"])))
node("g_exact", "at", "dz_exact")(lambda r: tuple(r["at"].backward(r["dz_exact"])))
node("g_sampled", "at", "dz_sampled")(lambda r: tuple(r["at"].backward(r["dz_sampled"])))
node("loss", "at", "y")(lambda r: float(np.mean(r.problem.model.likelihood.nll(r["at"].z, r["y"]))))


@node("objective", "loss", "eta")
def _objective(r: Reference) -> float:
    value: float = r["loss"] + r["eta"] / 2 * sum(float(np.vdot(W, W)) for W in r.problem.weights)
    return value


@node("gradient", "g", "a_bar", "N", "decay")
def _gradient(r: Reference) -> tuple[Array, ...]:
    return tuple(g.T @ a_bar / r["N"] + d for g, a_bar, d in zip(r["g"], r["a_bar"], r["decay"], strict=True))


quantity("z", "z", "(N, C)", "output of the network", "sec. 2.1")
quantity("loss", "L", "number", "(1/N) sum_n -log p(y_n | z_n)", "sec. 2.1")
quantity("objective", "h", "number", "loss + (eta/2) ||theta||^2", "sec. 2.1")
quantity("a_bar", "a_bar_i", "(N, n) a layer", "[a_i, 1], the input of layer i", "sec. 2.1")
quantity("g", "g_i", "(N, m) a layer", "gradient of one example's -log p with respect to s_i", "sec. 2.1")
quantity("gradient", "grad h", "(m, n) a layer", "(1/N) g_i^T a_bar_i + eta W_i", "sec. 2.1")

# Factors.


def second_moment(g: Sequence[Array], h: Sequence[Array], N: float) -> tuple[Array, ...]:
    """Return ``(1/N) sum g h^T`` for each pair of stacks of rows.

    Parameters
    ----------
    g, h : sequences of (N, d) or (K, N, d) arrays
        Rows.
    N : float
        The divisor.
    """
    return tuple(a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1]) / N for a, b in zip(g, h, strict=True))


node("A", "a_bar", "N")(lambda r: second_moment(r["a_bar"], r["a_bar"], r["N"]))
node("G", "g_exact", "N")(lambda r: second_moment(r["g_exact"], r["g_exact"], r["N"]))
node("G_sampled", "g_sampled", "N")(lambda r: second_moment(r["g_sampled"], r["g_sampled"], r["N"]))
node("G_empirical", "g", "N")(lambda r: second_moment(r["g"], r["g"], r["N"]))
node("A_cross", "a_bar", "N")(lambda r: second_moment(r["a_bar"][:-1], r["a_bar"][1:], r["N"]))
node("G_cross", "g_exact", "N")(lambda r: second_moment(r["g_exact"][:-1], r["g_exact"][1:], r["N"]))
node("G_cross_sampled", "g_sampled", "N")(
    lambda r: second_moment(r["g_sampled"][:-1], r["g_sampled"][1:], r["N"]))

quantity("A", "A_ii", "(n, n) a layer", "(1/N) sum_n a_bar a_bar^T", "sec. 3")
quantity("G", "G_ii", "(m, m) a layer", "(1/N) sum_n E_{y ~ model}[g g^T], exactly", "sec. 3")
quantity("G_sampled", "G_ii", "(m, m) a layer", "mean of g g^T over examples and the sampled targets", "sec. 5",
          fields=("targets",))
quantity("G_empirical", "G_ii", "(m, m) a layer", "mean of g g^T at the labels", "not in the paper")
quantity("A_cross", "A_{i,i+1}", "(n_i, n_{i+1})", "(1/N) sum_n a_bar_i a_bar_{i+1}^T", "sec. 4.3",
          fields=("two layers",))
quantity("G_cross", "G_{i,i+1}", "(m_i, m_{i+1})", "(1/N) sum_n E_{y ~ model}[g_i g_{i+1}^T]", "sec. 4.3",
          fields=("two layers",))

# Exact matrices.


def rows_of(g: Sequence[Array], a_bar: Sequence[Array]) -> Array:
    """Return the per-example gradients as rows: ``vec(g a_bar^T)`` of all layers, for each row of a stack.

    Parameters
    ----------
    g : sequence of (N, m) or (K, N, m) arrays
        Gradients.
    a_bar : sequence of (N, n) arrays
        Inputs.
    """
    def layer(g: Array, a: Array) -> Array:
        """Return the rows of one layer.

        Parameters
        ----------
        g, a : (K, N, m) or (N, m) array, (N, n) array
            Gradients and inputs.
        """
        g = g.reshape(-1, *g.shape[-2:])
        outer = a[None, :, :, None] * g[:, :, None, :]                      # vec stacks columns: a is the slow index
        return outer.reshape(g.shape[0] * g.shape[1], -1)
    return np.concatenate([layer(*pair) for pair in zip(g, a_bar, strict=True)], axis=1)


def _fisher(name: str) -> Callable[[Reference], Array]:
    def compute(r: Reference) -> Array:
        P = sum(W.size for W in r.problem.weights)
        checks.dense_size("the dense Fisher", P, P, 8)
        U = rows_of(r[name], r["a_bar"])
        return U.T @ U / r["N"]
    return compute


node("fisher", "g_exact", "a_bar", "N")(_fisher("g_exact"))
node("fisher_sampled", "g_sampled", "a_bar", "N")(_fisher("g_sampled"))
node("fisher_empirical", "g", "a_bar", "N")(_fisher("g"))
node("hessian", "at", "y")(lambda r: hessian.hessian(r["at"], r["y"]))
node("direction")(lambda r: r.problem.direction)


@node("fisher_product", "direction", "g_exact", "a_bar", "N")
def _fisher_product(r: Reference) -> tuple[Array, ...]:
    slopes = _slopes(r["direction"], r["g_exact"], r["a_bar"])
    return tuple((slopes[..., None] * g).reshape(-1, g.shape[-1]).T @ np.tile(a, (len(slopes), 1)) / r["N"]
                 for g, a in zip(r["g_exact"], r["a_bar"], strict=True))


def _slopes(V: Sequence[Array], g: Sequence[Array], a_bar: Sequence[Array]) -> Array:
    """Return the inner products of the per-example gradients with a direction, (K, N)."""
    parts = [np.einsum("knm,nm->kn", gi, a @ v.T) for gi, v, a in zip(g, V, a_bar, strict=True)]
    return np.sum(parts, axis=0)


node("kfac_product", "direction", "A", "G")(
    lambda r: tuple(kronecker.product(A, G, V) for A, G, V in zip(r["A"], r["G"], r["direction"], strict=True)))
node("kfac_block", "A", "G")(lambda r: tuple(map(_kron, r["A"], r["G"])))


def _kron(A: Array, G: Array) -> Array:
    checks.dense_size("the Kronecker product of a layer", len(A) * len(G), len(A) * len(G), 8)
    return np.kron(A, G)


quantity("fisher", "F", "(P, P)", "(1/N) sum_n E_{y ~ model}[D theta D theta^T], vec stacking columns", "sec. 2.2")
quantity("fisher_sampled", "F", "(P, P)", "the same at the sampled targets", "sec. 5", fields=("targets",))
quantity("fisher_empirical", "F", "(P, P)", "the same at the labels", "not in the paper")
quantity("hessian", "H", "(P, P)", "second derivatives of loss (no weight decay)", "sec. 2.2")
quantity("fisher_product", "F V", "(m, n) a layer", "exact F times the direction, undamped", "sec. 6.4",
          fields=("direction",))
quantity("kfac_product", "G V A", "(m, n) a layer", "(A kron G) vec(V), undamped", "sec. 4.2", fields=("direction",))
quantity("kfac_block", "A kron G", "(mn, mn) a layer", "kron(A_ii, G_ii), undamped", "sec. 3")

# Damping and solves. A_solve and G_solve are the factors that are damped: of the batch, unless told.

node("A_solve", "A")(lambda r: r["A"])
node("G_solve", "G")(lambda r: r["G"])
node("A_cross_solve", "A_cross")(lambda r: r["A_cross"])
node("G_cross_solve", "G_cross")(lambda r: r["G_cross"])
node("pi", "A_solve", "G_solve")(
    lambda r: np.array([damping.trace_pi(A, G) for A, G in zip(r["A_solve"], r["G_solve"], strict=True)]))
node("A_damped", "A_solve", "pi", "damping")(
    lambda r: tuple(damping.add_to_diagonal(A, pi * math.sqrt(r["damping"]))
                    for A, pi in zip(r["A_solve"], r["pi"], strict=True)))
node("G_damped", "G_solve", "pi", "damping")(
    lambda r: tuple(damping.add_to_diagonal(G, math.sqrt(r["damping"]) / pi)
                    for G, pi in zip(r["G_solve"], r["pi"], strict=True)))


@node("step", "A_damped", "G_damped", "gradient")
def _step(r: Reference) -> tuple[Array, ...]:
    return tuple(-kronecker.solve(Cholesky.factor(A), Cholesky.factor(G), V)
                 for A, G, V in zip(r["A_damped"], r["G_damped"], r["gradient"], strict=True))


_STEP = ("gradient", "A_solve", "pi", "A_damped", "G_damped", "step", "damping")
node("step_sampled", "G_sampled", *_STEP)(lambda r: r.taking(G_solve=r["G_sampled"])["step"])
node("step_empirical", "G_empirical", *_STEP)(lambda r: r.taking(G_solve=r["G_empirical"])["step"])


def _factors(A: Sequence[Array], G: Sequence[Array], A_cross: Sequence[Array], G_cross: Sequence[Array],
             n: int) -> Factors:
    """Return factors with those of neighbouring layers."""
    layers, neighbours = ({(i, i): i for i in range(len(A))}, {(i, i + 1): i for i in range(len(A_cross))})
    return Factors({key: A[i] for key, i in layers.items()} | {key: A_cross[i] for key, i in neighbours.items()},
                   {key: G[i] for key, i in layers.items()} | {key: G_cross[i] for key, i in neighbours.items()}, n)


@node("step_tridiagonal", "A_damped", "G_damped", "A_cross_solve", "G_cross_solve", "gradient")
def _step_tridiagonal(r: Reference) -> tuple[Array, ...]:
    damped = _factors(r["A_damped"], r["G_damped"], r["A_cross_solve"], r["G_cross_solve"], r["N"])
    return tuple(-D for D in BlockTridiagonal(damped).solve(r["gradient"]))


@node("step_exact_damping", "A_solve", "G_solve", "damping", "gradient")
def _step_exact_damping(r: Reference) -> tuple[Array, ...]:
    factors = Factors.of_layers(r["A_solve"], r["G_solve"], r["N"])
    return tuple(-D for D in EigenDamped(factors, r["damping"]).solve(r["gradient"]))


@node("natural_gradient", "fisher", "damping", "gradient")
def _natural_gradient(r: Reference) -> tuple[Array, ...]:
    S = damping.add_to_diagonal(r["fisher"], r["damping"])
    solution = -Cholesky.factor(S, "the damped Fisher").solve(params.flatten(r["gradient"]))
    return tuple(params.unflatten(solution, [V.shape for V in r["gradient"]]))


@node("ekfac_scales", "g_exact", "a_bar", "A", "G", "N")
def _ekfac_scales(r: Reference) -> tuple[Array, ...]:
    found = []
    for g, a_bar, A, G in zip(r["g_exact"], r["a_bar"], r["A"], r["G"], strict=True):
        U, V = Eigen.factor(A).Q, Eigen.factor(G).Q
        found.append(np.square(g @ V).sum(axis=0).T @ np.square(a_bar @ U) / r["N"])
    return tuple(found)


quantity("pi", "pi_i", "(L,)", "sqrt((tr A / n) / (tr G / m))", "sec. 6.3")
quantity("A_damped", "A_ii", "(n, n) a layer", "A + pi sqrt(damping) I", "sec. 6.3")
quantity("G_damped", "G_ii", "(m, m) a layer", "G + sqrt(damping)/pi I", "sec. 6.3")
quantity("step", "Delta", "(m, n) a layer", "-G_damped^-1 grad h A_damped^-1, with the exact G", "sec. 4.2, 6.3",
          "solve")
quantity("step_sampled", "Delta", "(m, n) a layer", "the same with G_sampled", "sec. 5", "solve", ("targets",))
quantity("step_empirical", "Delta", "(m, n) a layer", "the same with G_empirical", "not in the paper", "solve")
quantity("step_tridiagonal", "Delta", "(m, n) a layer", "-F-hat^-1 grad h, with the diagonal factors damped",
          "sec. 4.3", "solve", ("two layers",))
quantity("step_exact_damping", "Delta", "(m, n) a layer", "-(A kron G + damping I)^-1 grad h", "sec. 6.3, app. B",
          "solve")
quantity("natural_gradient", "Delta", "(m, n) a layer", "-(F + damping I)^-1 grad h, with the exact F", "sec. 2.2",
          "solve")
quantity("ekfac_scales", "S_i", "(m, n) a layer",
          "(1/N) sum_n E[(U_G^T g a_bar^T U_A)^2], eigenvalues of both ascending, undamped", "George et al. 2018")

# The running average.

node("k")(lambda r: r.problem.previous.k if r.problem.previous else 0)
node("ceiling")(lambda r: CEILING)
node("epsilon", "k", "ceiling")(lambda r: min(1 - 1 / (r["k"] + 1), r["ceiling"]))
node("old")(lambda r: {"A": r.problem.previous.A, "G": r.problem.previous.G} if r.problem.previous else {})
node("new", "A", "G", "G_sampled", "A_cross", "G_cross", "G_cross_sampled")(
    lambda r: {"A": r["A"], "G": r["G"]} if r.problem.targets is None else
    {"A": r["A"], "G": r["G_sampled"], "A_cross": r["A_cross"], "G_cross": r["G_cross_sampled"]})


def _average(part: str) -> Callable[[Reference], tuple[Array, ...]]:
    def compute(r: Reference) -> tuple[Array, ...]:
        new, old, epsilon = r["new"][part], r["old"].get(part) or None, r["epsilon"]
        if old is None:
            return tuple((1 - epsilon) * X for X in new)                # epsilon is 0 for the first batch
        return tuple(epsilon * X + (1 - epsilon) * Y for X, Y in zip(old, new, strict=True))
    return compute


for _part in ("A", "G", "A_cross", "G_cross"):
    node(f"{_part}_average", "new", "old", "epsilon")(_average(_part))
quantity("A_average", "A_ii", "(n, n) a layer", "eps old + (1 - eps) A, eps = min(1 - 1/(k+1), 0.95)", "sec. 5",
          fields=("previous",))
quantity("G_average", "G_ii", "(m, m) a layer", "the same of G_sampled, or of the exact G without targets", "sec. 5",
          fields=("previous",))

# Re-scaling, momentum, reduction ratio. The exact F may be of other rows than the rest.

node("model_damping", "damping")(lambda r: r["damping"])
node("g_F", "g_exact")(lambda r: r["g_exact"])
node("a_bar_F", "a_bar")(lambda r: r["a_bar"])
node("structure")(lambda r: "block-diagonal")
node("last_step")(lambda r: r.problem.delta_0)


@node("Delta", "structure", "step", "step_tridiagonal")
def _delta_of(r: Reference) -> tuple[Array, ...]:
    Delta: tuple[Array, ...] = r["step" if r["structure"] == "block-diagonal" else "step_tridiagonal"]
    return Delta


@node("system", "Delta", "last_step", "gradient", "model_damping", "g_F", "a_bar_F")
def _system(r: Reference) -> SmallModel:
    directions = [V for V in (r["Delta"], r["last_step"]) if V is not None]
    slopes = np.stack([_slopes(V, r["g_F"], r["a_bar_F"]).ravel() for V in directions])
    return SmallModel(slopes @ slopes.T / len(r["a_bar_F"][0]), params.gram(directions),
                      np.array([params.inner(r["gradient"], V) for V in directions]), r["model_damping"])


node("minimum", "system")(lambda r: r["system"].minimum())
node("alpha", "minimum")(lambda r: r["minimum"][0][0])
node("mu", "minimum")(lambda r: (*r["minimum"][0], 0.0)[1])
node("M", "minimum")(lambda r: r["minimum"][1])


@node("delta", "alpha", "mu", "Delta", "last_step")
def _delta(r: Reference) -> tuple[Array, ...]:
    delta = params.scale(r["alpha"], r["Delta"])
    return tuple(delta if r["last_step"] is None else params.add(delta, params.scale(r["mu"], r["last_step"])))


@node("moved", "delta", "loss", "objective", "eta")
def _moved(r: Reference) -> Reference:
    return Reference(r.problem.replace(weights=tuple(params.add(r.problem.weights, r["delta"]))), r.mistakes)


node("actual", "moved", "objective")(lambda r: r["moved"]["objective"] - r["objective"])
node("rho", "actual", "M")(lambda r: reduction_ratio(r["actual"], r["M"]))


@node("kl_clip", "step", "gradient")
def _kl_clip(r: Reference) -> float:
    clip = r.problem.kl_clip
    assert clip is not None
    return min(1.0, math.sqrt(clip.kappa / (clip.learning_rate**2 * abs(params.inner(r["step"], r["gradient"])))))


quantity("alpha", "alpha", "number", "with mu, the minimum of M(alpha Delta + mu delta_0), exact F, Delta = step",
          "sec. 6.4, 7", "solve")
quantity("mu", "mu", "number", "0 without a last step delta_0", "sec. 7", "solve")
quantity("M", "M(delta) - M(0)", "number", "grad^T delta + 1/2 delta^T (F + damping I) delta", "sec. 6.4", "solve")
quantity("rho", "rho", "number", "(h(theta + delta) - h(theta)) / (M(delta) - M(0))", "sec. 6.5", "solve")
quantity("kl_clip", "nu", "number", "min(1, sqrt(kappa / (lr^2 |step . grad h|)))", "Ba et al. 2017", "solve",
          ("kl_clip",))


def condition(r: Reference, name: str) -> float:
    """Return the condition number that a solve loses its accuracy to, 1 for a sum.

    Parameters
    ----------
    r : Reference
        Of the problem.
    name : str
        A quantity.
    """
    kind = QUANTITIES[name].kind
    if kind == "sum":
        return 1.0
    if kind == "trajectory":
        return 1e4                                      # what some steps amplify rounding to, on well-posed problems
    if name == "natural_gradient":
        return _condition(damping.add_to_diagonal(r["fisher"], r["damping"]))
    if name == "step_exact_damping":
        return max(1 + np.linalg.norm(A, 2) * np.linalg.norm(G, 2) / max(r["damping"], 1e-300)
                   for A, G in zip(r["A"], r["G"], strict=True))
    G_solve = {"step_sampled": "G_sampled", "step_empirical": "G_empirical"}.get(name)
    r = r.taking(G_solve=r[G_solve]) if G_solve else r
    worst = max(_condition(A) * _condition(G) for A, G in zip(r["A_damped"], r["G_damped"], strict=True))
    if name == "rho":                                       # a difference of two values of h
        return max(worst, abs(r["objective"]) / max(abs(r["actual"]), 1e-300))
    return worst if name != "step_tridiagonal" else worst**2        # Sigma is a difference


def _condition(S: Array) -> float:
    values = scipy.linalg.eigvalsh(S)
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf
