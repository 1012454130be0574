"""Every quantity of K-FAC that a problem defines: functions whose arguments are named after their inputs.

The docstring of a quantity is its equation; the functions of the package compute it. Between the quantities are nodes
that users do not see (`graph.node`). A value is a number, an array, or a tuple with one array per layer (`Layers`).

Two arguments are not quantities: ``problem``, and ``reference``, for inputs that are needed only in some problems or
with other values. The decorator names what a function reads from ``reference``.

Examples
--------
>>> import numpy as np
>>> from kfac_ref.oracle import Problem, Reference
>>> problem = Problem((1, 1), (), "gaussian", [np.array([[2.0, 0.0]])], [[1.0], [3.0]], [[0.0], [0.0]])
>>> Reference(problem)["A"][0].tolist(), Reference(problem)["loss"]
([[5.0, 2.0], [2.0, 1.0]], 10.0)
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from .. import checks, expectations, kronecker, layers, params, quadratic_model
from .. import damping as rules
from .. import fisher as of_gradients
from .. import hessian as second_derivatives
from ..checks import Array
from ..curvature import BlockTridiagonal
from ..curvature.eigen_damped import bases_of
from ..curvature.eigenbasis import Eigenbasis
from ..curvature.ekfac import basis_moments
from ..factors import Factors, average
from ..kronecker import Cholesky, Eigen
from ..model import Model, Point
from .graph import Reference, node, quantity
from .problem import Problem

Layers: TypeAlias = tuple[Array, ...]
Bases: TypeAlias = tuple[tuple[Eigen, Eigen], ...]

# The network at this point.

for _name in ("model", "weights", "y", "targets", "damping", "direction", "previous"):
    node(_name)(functools.partial(lambda name, problem: getattr(problem, name), _name))
node("eta")(lambda problem: problem.weight_decay)
node("at")(lambda problem: problem.at())
node("N")(lambda at: len(at))
node("dz")(lambda model, z, y: model.likelihood.gradient(z, y))
node("dz_exact")(lambda at: expectations.exact(at))
node("dz_sampled")(lambda at, targets: expectations.sampled(targets)(at))
node("g_model")(lambda at, dz_exact: tuple(at.backward(dz_exact)))
node("g_exact")(lambda g_model: g_model)                # as factors and Fishers take it; M has its own
node("g_sampled")(lambda at, dz_sampled: tuple(at.backward(dz_sampled)))
node("decay")(lambda eta, weights: tuple(eta * W for W in weights))

@quantity("z", "(N, C)", "sec. 2.1")
def z(at: Point) -> Array:
    """output of the network"""
    return at.z

@quantity("L", "number", "sec. 2.1")
def loss(model: Model, z: Array, y: Any) -> float:
    """(1/N) sum_n -log p(y_n | z_n)"""
    return float(np.mean(model.likelihood.nll(z, y)))

@quantity("h", "number", "sec. 2.1")
def objective(loss: float, eta: float, weights: Layers) -> float:
    """loss + (eta/2) ||theta||^2"""
    return loss + eta / 2 * params.inner(weights, weights)

@quantity("a_bar_i", "(N, n) per layer", "sec. 2.1")
def a_bar(at: Point) -> Layers:
    """[a_i, 1], the input of layer i"""
    return at.a_bar

@quantity("g_i", "(N, m) per layer", "sec. 2.1")
def g(at: Point, dz: Array) -> Layers:
    """gradient of one example's -log p with respect to s_i"""
    return tuple(at.backward(dz))

@quantity("grad h", "(m, n) per layer", "sec. 2.1")
def gradient(g: Layers, a_bar: Layers, N: int, decay: Layers) -> Layers:
    """(1/N) g_i^T a_bar_i + eta W_i"""
    return tuple(layers.adjoint(g, a) / N + d for g, a, d in zip(g, a_bar, decay, strict=True))


# Factors.

@quantity("A_ii", "(n, n) per layer", "sec. 3")
def A(a_bar: Layers, N: int) -> Layers:
    """(1/N) sum_n a_bar a_bar^T"""
    return tuple(layers.second_moment(a, a) / N for a in a_bar)

@quantity("G_ii", "(m, m) per layer", "sec. 3")
def G(g_exact: Layers, N: int) -> Layers:
    """(1/N) sum_n E_{y ~ model}[g g^T], exactly"""
    return tuple(layers.second_moment(g, g) / N for g in g_exact)

@quantity("G_ii", "(m, m) per layer", "sec. 5", fields=("targets",))
def G_sampled(g_sampled: Layers, N: int) -> Layers:
    """mean of g g^T over examples and the sampled targets"""
    return tuple(layers.second_moment(g, g) / N for g in g_sampled)

@quantity("G_ii", "(m, m) per layer", "not in the paper")
def G_empirical(g: Layers, N: int) -> Layers:
    """mean of g g^T at the labels"""
    return tuple(layers.second_moment(g, g) / N for g in g)

@quantity("A_{i,i+1}", "(n_i, n_{i+1})", "sec. 4.3", fields=("two layers",))
def A_cross(a_bar: Layers, N: int) -> Layers:
    """(1/N) sum_n a_bar_i a_bar_{i+1}^T"""
    return tuple(layers.second_moment(a, b) / N for a, b in pairwise(a_bar))

@quantity("G_{i,i+1}", "(m_i, m_{i+1})", "sec. 4.3", fields=("two layers",))
def G_cross(g_exact: Layers, N: int) -> Layers:
    """(1/N) sum_n E_{y ~ model}[g_i g_{i+1}^T]"""
    return tuple(layers.second_moment(g, h) / N for g, h in pairwise(g_exact))

node("G_cross_sampled")(lambda g_sampled, N: G_cross(g_sampled, N))

# Matrices of all parameters.

@quantity("F", "(P, P)", "sec. 2.2")
def fisher(g_exact: Layers, a_bar: Layers) -> Array:
    """(1/N) sum_n E_{y ~ model}[D theta D theta^T], vec stacking columns"""
    return of_gradients.dense(g_exact, a_bar)

@quantity("F", "(P, P)", "sec. 5", fields=("targets",))
def fisher_sampled(g_sampled: Layers, a_bar: Layers) -> Array:
    """the same at the sampled targets"""
    return of_gradients.dense(g_sampled, a_bar)

@quantity("F", "(P, P)", "not in the paper")
def fisher_empirical(g: Layers, a_bar: Layers) -> Array:
    """the same at the labels"""
    return of_gradients.dense([g[None] for g in g], a_bar)

@quantity("H", "(P, P)", "sec. 2.2")
def hessian(at: Point, y: Any) -> Array:
    """second derivatives of loss (no weight decay)"""
    return second_derivatives.hessian(at, y)

@quantity("F V", "(m, n) per layer", "sec. 6.4", fields=("direction",))
def fisher_product(g_exact: Layers, a_bar: Layers, direction: Layers) -> Layers:
    """exact F times the direction, undamped"""
    return tuple(of_gradients.product(g_exact, a_bar, direction))

@quantity("G V A", "(m, n) per layer", "sec. 4.2", fields=("direction",))
def kfac_product(A: Layers, G: Layers, direction: Layers) -> Layers:
    """(A ⊗ G) vec(V), undamped"""
    return tuple(kronecker.product(A, G, V) for A, G, V in zip(A, G, direction, strict=True))

@quantity("A ⊗ G", "(mn, mn) per layer", "sec. 3")
def kfac_block(A: Layers, G: Layers) -> Layers:
    """kron(A_ii, G_ii), undamped"""
    size = max(len(A) * len(G) for A, G in zip(A, G, strict=True))
    checks.dense_size("the Kronecker product of a layer", size, size, 8)
    return tuple(map(np.kron, A, G))


# Damping and solves. The factors in a solve are those of the batch; in a trajectory, those of the running average.

node("A_solve")(lambda A: A)
node("G_solve")(lambda G: G)
node("A_cross_solve")(lambda A_cross: A_cross)
node("G_cross_solve")(lambda G_cross: G_cross)
node("bases")(lambda A_solve, G_solve, N: bases_of(Factors.of_layers(A_solve, G_solve, N)))
node("spectra")(lambda bases: tuple(kronecker.spectrum(A, G) for A, G in bases))
node("g_ekfac")(lambda g_exact: g_exact)
node("a_bar_ekfac")(lambda a_bar: a_bar)
node("ekfac_damped")(lambda ekfac_scales, damping: tuple(S + damping for S in ekfac_scales))
node("damped")(lambda A_solve, G_solve, damping, pi: tuple(
    rules.factored_tikhonov(A, G, damping, p) for A, G, p in zip(A_solve, G_solve, pi, strict=True)))

def _solved_in(bases: Bases, scales: Layers, gradient: Layers) -> Layers:
    return tuple(params.scale(-1, Eigenbasis(bases, scales).solve(gradient)))

@quantity("pi_i", "(L,)", "sec. 6.3")
def pi(A_solve: Layers, G_solve: Layers) -> Array:
    """sqrt((tr A / n) / (tr G / m))"""
    return np.array([rules.trace_pi(A, G) for A, G in zip(A_solve, G_solve, strict=True)])

@quantity("A_ii", "(n, n) per layer", "sec. 6.3")
def A_damped(damped: tuple[tuple[Array, Array], ...]) -> Layers:
    """A + pi sqrt(damping) I"""
    return tuple(A for A, _ in damped)

@quantity("G_ii", "(m, m) per layer", "sec. 6.3")
def G_damped(damped: tuple[tuple[Array, Array], ...]) -> Layers:
    """G + sqrt(damping)/pi I"""
    return tuple(G for _, G in damped)

@quantity("Delta", "(m, n) per layer", "sec. 4.2, 6.3", "solve")
def step(A_damped: Layers, G_damped: Layers, gradient: Layers) -> Layers:
    """-G_damped^-1 grad h A_damped^-1, with the exact G"""
    return tuple(-kronecker.solve(Cholesky.factor(A), Cholesky.factor(G), V)
                 for A, G, V in zip(A_damped, G_damped, gradient, strict=True))

@quantity("Delta", "(m, n) per layer", "sec. 5", "solve", fields=("targets",), reads=("step",))
def step_sampled(reference: Reference, G_sampled: Layers) -> Layers:
    """the same with G_sampled"""
    return reference.taking(G_solve=G_sampled)["step"]

@quantity("Delta", "(m, n) per layer", "not in the paper", "solve", reads=("step",))
def step_empirical(reference: Reference, G_empirical: Layers) -> Layers:
    """the same with G_empirical"""
    return reference.taking(G_solve=G_empirical)["step"]

@quantity("Delta", "(m, n) per layer", "sec. 4.3", "solve", fields=("two layers",))
def step_tridiagonal(A_damped: Layers, G_damped: Layers, A_cross_solve: Layers, G_cross_solve: Layers,
                     gradient: Layers, N: int) -> Layers:
    """-F̂^-1 grad h, with the diagonal factors damped"""
    C = BlockTridiagonal(Factors.of_layers(A_damped, G_damped, N, A_cross_solve, G_cross_solve))
    return tuple(params.scale(-1, C.solve(gradient)))

@quantity("Delta", "(m, n) per layer", "sec. 6.3, app. B", "solve")
def step_exact_damping(bases: Bases, spectra: Layers, damping: float, gradient: Layers) -> Layers:
    """-(A ⊗ G + damping I)^-1 grad h"""
    return _solved_in(bases, tuple(S + damping for S in spectra), gradient)

@quantity("Delta", "(m, n) per layer", "sec. 2.2", "solve")
def natural_gradient(fisher: Array, damping: float, gradient: Layers) -> Layers:
    """-(F + damping I)^-1 grad h, with the exact F"""
    S = Cholesky.factor(rules.add_to_diagonal(fisher, damping), "the damped Fisher")
    return tuple(params.unflatten(-S.solve(params.flatten(gradient)), [V.shape for V in gradient]))

def signed(Q: Array) -> Array:
    """Return eigenvectors with the signs that make their products with a fixed vector positive."""
    return Q * np.where(np.cos(np.arange(len(Q))) @ Q < 0, -1.0, 1.0)

@quantity("U_A", "(n, n) per layer", "George et al. 2018", "basis")
def A_basis(bases: Bases) -> Layers:
    """eigenvectors of A as columns, eigenvalues ascending; signs do not matter"""
    return tuple(signed(A.Q) for A, _ in bases)

@quantity("U_G", "(m, m) per layer", "George et al. 2018", "basis")
def G_basis(bases: Bases) -> Layers:
    """the same of G"""
    return tuple(signed(G.Q) for _, G in bases)

@quantity("S_i", "(m, n) per layer", "George et al. 2018")
def ekfac_scales(g_ekfac: Layers, a_bar_ekfac: Layers, bases: Bases) -> Layers:
    """(1/N) sum_n E[(U_G^T g a_bar^T U_A)^2], eigenvalues of both ascending, undamped"""
    return basis_moments(g_ekfac, a_bar_ekfac, bases)

@quantity("Delta", "(m, n) per layer", "George et al. 2018", "solve")
def ekfac_step(bases: Bases, ekfac_damped: Layers, gradient: Layers) -> Layers:
    """-U_G ((U_G^T grad h U_A) / (S + damping)) U_A^T, entry by entry"""
    return _solved_in(bases, ekfac_damped, gradient)


# The running average. Without targets, the new factors are those with the exact G.


node("k")(lambda previous: previous.k if previous else 0)
node("old")(lambda previous: {"A": previous.A, "G": previous.G} if previous else {})
node("new", "G", "G_sampled", "A_cross", "G_cross_sampled")(
    lambda reference, targets, A: {"A": A, "G": reference["G"]} if targets is None else
    {"A": A, "G": reference["G_sampled"], "A_cross": reference["A_cross"], "G_cross": reference["G_cross_sampled"]})
node("ceiling")(lambda: 0.95)
node("epsilon")(lambda k, ceiling: average.weight_of_old(k + 1, ceiling))
node("A_cross_average")(lambda old, new, epsilon: _averaged("A_cross", old, new, epsilon))
node("G_cross_average")(lambda old, new, epsilon: _averaged("G_cross", old, new, epsilon))

def _averaged(part: str, old: dict[str, Layers], new: dict[str, Layers], epsilon: float) -> Layers:
    before = old.get(part) or [np.zeros_like(X) for X in new[part]]        # epsilon is 0 for the first batch
    return tuple(average.mixed(epsilon, X, Y) for X, Y in zip(before, new[part], strict=True))

@quantity("A_ii", "(n, n) per layer", "sec. 5", fields=("previous",))
def A_average(old: dict[str, Layers], new: dict[str, Layers], epsilon: float) -> Layers:
    """eps old + (1 - eps) A, eps = min(1 - 1/(k+1), 0.95)"""
    return _averaged("A", old, new, epsilon)

@quantity("G_ii", "(m, m) per layer", "sec. 5", fields=("previous",))
def G_average(old: dict[str, Layers], new: dict[str, Layers], epsilon: float) -> Layers:
    """the same of G_sampled, or of the exact G without targets"""
    return _averaged("G", old, new, epsilon)


# Re-scaling, momentum, reduction ratio. The exact F may be of other rows than the rest.

node("model_damping")(lambda damping: damping)
node("g_F")(lambda g_model: g_model)
node("a_bar_F")(lambda a_bar: a_bar)
node("last_step")(lambda problem: problem.delta_0)
node("structure")(lambda: "block-diagonal")
node("Delta", "step", "step_tridiagonal")(
    lambda reference, structure: reference["step" if structure == "block-diagonal" else "step_tridiagonal"])
node("directions")(lambda Delta, last_step: [Delta] if last_step is None else [Delta, last_step])
node("system")(lambda directions, gradient, model_damping, g_F, a_bar_F: quadratic_model.SmallModel(
    of_gradients.gram(g_F, a_bar_F, directions), params.gram(directions),
    np.array([params.inner(gradient, V) for V in directions]), model_damping))
node("minimum")(lambda system: system.minimum())
node("delta")(lambda alpha, mu, Delta, last_step: tuple(
    params.scale(alpha, Delta) if last_step is None else
    params.add(params.scale(alpha, Delta), params.scale(mu, last_step))))
node("moved", "objective")(lambda reference, problem, delta: Reference(
    problem.changed(weights=tuple(params.add(problem.weights, delta))), reference.mistakes))
node("actual")(lambda moved, objective: moved["objective"] - objective)

@quantity("alpha", "number", "sec. 6.4, 7", "solve")
def alpha(minimum: Any) -> float:
    """with mu, the minimum of M(alpha Delta + mu delta_0), exact F, Delta = step"""
    return minimum[0][0]

@quantity("mu", "number", "sec. 7", "solve")
def mu(minimum: Any) -> float:
    """0 without a last step delta_0"""
    return (*minimum[0], 0.0)[1]

@quantity("M(delta) - M(0)", "number", "sec. 6.4", "solve")
def M(minimum: Any) -> float:
    """grad^T delta + 1/2 delta^T (F + damping I) delta"""
    return minimum[1]

@quantity("rho", "number", "sec. 6.5", "solve")
def rho(actual: float, M: float) -> float:
    """(h(theta + delta) - h(theta)) / (M(delta) - M(0))"""
    return quadratic_model.reduction_ratio(actual, M)

@quantity("nu", "number", "Ba et al. 2017", "solve", fields=("kl_clip",))
def kl_clip(problem: Problem, step: Layers, gradient: Layers) -> float:
    """min(1, sqrt(kappa / (lr^2 abs(step . grad h))))"""
    assert problem.kl_clip is not None
    return quadratic_model.kl_clip(step, gradient, problem.kl_clip.kappa, problem.kl_clip.learning_rate)
