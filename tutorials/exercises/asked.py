"""The tests of each exercise: the arguments of its calls, the right results, and the known mistakes.

Nothing here computes an answer: arguments and right results come from `kfac_ref`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from grading import ByFunction, ByOracle, Part, Slip, at_once, by_layer, known, reference, sent_back

import kfac_ref as kr
from kfac_ref import damping as rules
from kfac_ref import kronecker, params
from kfac_ref.curvature.base import block_diagonal
from kfac_ref.factors import Factors
from kfac_ref.kronecker import Cholesky, unvec, vec
from kfac_ref.oracle import CATALOGUE, Reference
from kfac_ref.oracle.mistakes.entry import rows_of
from kfac_ref.quadratic_model import SmallModel
from kfac_ref.quadratic_model import reduction_ratio as ratio


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def _positive(seed: int, n: int) -> Any:
    X = np.random.default_rng(seed).standard_normal((2 * n, n))
    return X.T @ X / (2 * n)


def _zip(*names: str, more: Callable[[Reference], tuple[Any, ...]] = lambda r: ()) -> Callable[[Reference], Any]:
    """Return one call per layer, all with the same last arguments."""
    return lambda r: [(*layer, *more(r)) for layer in zip(*(r[name] for name in names), strict=True)]


def _all(*names: str, more: Callable[[Reference], tuple[Any, ...]] = lambda r: ()) -> Callable[[Reference], Any]:
    """Return one call with lists of all layers."""
    return lambda r: [(*(list(v) if isinstance(v := r[name], tuple) else v for name in names), *more(r))]


TANH = ("categorical-tanh", "gaussian-tanh", "deep-tanh")
ROWS = "rows were stacked, not columns"
SYMMETRIC = Slip("right only for symmetric A", "A is used where its transpose is needed",
                "(A ⊗ G) vec(V) = vec(G V A^T); A and A^T are the same only where A is symmetric",
                "transpose A", lambda A, G, V: kronecker.product(A.T, G, V))


def _kron_cases() -> list[tuple[Any, ...]]:
    return [_draw(3, (3, 3), (4, 4), (4, 3)), _draw(4, (3, 3), (3, 3), (3, 3)), _draw(5, (300, 300), (200, 200),
                                                                                     (200, 300))]


def _order_swapped(A: Any, G: Any, V: Any) -> Any:
    m, n = V.shape
    # kron(G, A) vec(V), without forming it: vec(V) read as the stacked columns of an (n, m) matrix.
    return unvec(vec(kronecker.product(G, A, unvec(vec(V), n, m))), m, n)


def _logits() -> list[tuple[Any, ...]]:
    z, = _draw(6, (4, 3))
    z[0] = [1000.0, 0.0, -1000.0]
    return [(z, np.array([0, 1, 2, 0]))]


def _tangent_cases() -> list[tuple[Any, ...]]:
    return [(list(r.problem.weights), list(r["a_bar"]), list(r["direction"])) for r in
            (reference("categorical-tanh"), reference("deep-tanh"))]


def _point(weights: Any) -> Any:
    return next(r for r in map(reference, ("categorical-tanh", "deep-tanh")) if len(weights) == len(r.problem.weights))


def _tangent(weights: Any, a_bar: Any, V: Any) -> Any:
    return _point(weights)["at"].tangent(V)


def _tangent_of(change: Callable[[int, int, Any], Any]) -> Callable[..., Any]:
    return lambda weights, a_bar, V: _tangent(weights, a_bar, [change(i, len(V), v) for i, v in enumerate(V)])


def _unit_columns(r: Reference) -> Any:
    N, C = r["z"].shape
    return np.repeat(np.eye(C)[:, None, :], N, axis=1)


def _tangent_without_slope(weights: Any, a_bar: Any, V: Any) -> Any:
    r = _point(weights)
    g = r.taking(dz_exact=_unit_columns(r)).having(CATALOGUE["slope left out of the backward pass"])["g_exact"]
    return sum(np.einsum("cnm,mj,nj->nc", gi, v, a) for gi, v, a in zip(g, V, a_bar, strict=True))


def _jacobian(r: Reference) -> Any:
    N, C = r["z"].shape
    return rows_of(r["at"].backward(_unit_columns(r)), r["a_bar"]).reshape(C, N, -1).transpose(1, 0, 2)


def _root_left_out(r: Reference) -> list[Any]:
    p = r.problem.model.likelihood.outcomes(r["z"])[1]          # (C, N)
    return [np.sqrt(p)[:, :, None] * r["dz_exact"]]


def _each_layer_alone(r: Reference) -> list[Any]:
    V = r["direction"]
    alone = [[v if i == j else 0 * v for j, v in enumerate(V)] for i in range(len(V))]
    return [tuple(kr.fisher_product(r["at"], one)[i] for i, one in enumerate(alone))]


def _covariance_cases() -> list[tuple[Any, ...]]:
    r = reference("categorical-tanh")
    return list(zip(r["g_exact"], r["a_bar"], strict=True))


def _covariance_layer(g: Any) -> int:
    return next(i for i, gi in enumerate(reference("categorical-tanh")["g_exact"]) if gi.shape == g.shape)


def _covariance(g: Any, a_bar: Any) -> Any:
    return kr.analysis.covariance_error(reference("categorical-tanh")["at"], _covariance_layer(g))


def _uncentred(g: Any, a_bar: Any) -> Any:
    at, i = reference("categorical-tanh")["at"], _covariance_layer(g)
    n, m = a_bar.shape[1], g.shape[-1]
    return kronecker.rearrange(kr.fisher_block(at, i, i), (n, n), (m, m))


def _by_rows(r: Reference) -> list[Any]:
    shapes = [V.T.shape for V in r["gradient"]]
    S = rules.add_to_diagonal(r["fisher"], r["damping"])
    found = Cholesky.factor(S).solve(-params.flatten([V.T for V in r["gradient"]]))
    return [tuple(V.T for V in params.unflatten(found, shapes))]


def _transform_cases() -> list[tuple[Any, ...]]:
    return [_draw(8, (3, 4), (3, 3), (4, 4)), _draw(9, (3, 3), (3, 3), (3, 3))]


def _input_only(A: Any, grad: Any, damping: float) -> kr.curvature.InputOnly:
    return kr.curvature.InputOnly(Factors.of_layers([A], [np.eye(len(grad))], 1), damping)


def _foof(A: Any, grad: Any, damping: float) -> Any:
    return -_input_only(A, grad, damping).solve([grad])[0]


def _foof_cases() -> list[tuple[Any, ...]]:
    return [(_positive(10, 4), *_draw(11, (3, 4)), 0.3), (_positive(12, 3), *_draw(13, (3, 3)), 0.02)]


def _sum_cases() -> list[tuple[Any, ...]]:
    return [(_positive(s, n), _positive(s + 1, m), _positive(s + 2, n), _positive(s + 3, m), *_draw(s, (m, n)))
            for s, n, m in ((20, 3, 4), (30, 3, 3))]


def _solve(A: Any, G: Any, V: Any) -> Any:
    return kronecker.solve(Cholesky.factor(A), Cholesky.factor(G), V)


def _tridiagonal_call(r: Reference) -> list[tuple[Any, ...]]:
    A, G, V = r["A_damped"], r["G_damped"], [-D for D in r["gradient"]]
    Psi_A = [Cholesky.factor(S).solve_right(X) for X, S in zip(r["A_cross"], A[1:], strict=True)]
    Psi_G = [Cholesky.factor(S).solve_right(X) for X, S in zip(r["G_cross"], G[1:], strict=True)]
    Sigma = [np.kron(*pair) for pair in zip(A, G, strict=True)]
    for i, (PA, PG) in enumerate(zip(Psi_A, Psi_G, strict=True)):
        Sigma[i] = Sigma[i] - np.kron(PA @ A[i + 1] @ PA.T, PG @ G[i + 1] @ PG.T)
    return [(V, Psi_A, Psi_G, Sigma)]


def _sweeps_missing(*missing: str) -> Callable[[Reference], list[Any]]:
    """Return the tridiagonal step without its first sweep, its third, or both: by the dense Xi."""
    def wrong(r: Reference) -> list[Any]:
        (V, Psi_A, Psi_G, Sigma), = _tridiagonal_call(r)
        ends = np.cumsum([0, *(v.size for v in V)])
        Xi = np.eye(ends[-1])
        for i, pair in enumerate(zip(Psi_A, Psi_G, strict=True)):
            Xi[ends[i]:ends[i + 1], ends[i + 1]:ends[i + 2]] = -np.kron(*pair)
        x = params.flatten(V) if "first" in missing else Xi @ params.flatten(V)
        x = Cholesky.factor(block_diagonal(Sigma)).solve(x)
        return [tuple(params.unflatten(x if "third" in missing else Xi.T @ x, [v.shape for v in V]))]
    return wrong


def _flat(V: Any) -> Any:
    return params.flatten(V)


def _system_call(r: Reference) -> list[tuple[Any, ...]]:
    return [(_flat(r["Delta"]), _flat(r["last_step"]), _flat(r["gradient"]), r["fisher"], r["damping"])]


def _model_cases() -> list[tuple[Any, ...]]:
    cases = []
    for name in ("categorical-tanh", "gaussian-tanh"):
        r = reference(name)
        cases.append((_flat(r["gradient"]), 0.7 * _flat(r["step"]), r["fisher"], r["damping"]))
    return cases


def _small(grad: Any, delta: Any, F: Any, damping: float, quadratic: float = 1.0) -> float:
    model = SmallModel(np.array([[delta @ F @ delta]]), np.array([[delta @ delta]]), np.array([grad @ delta]), damping)
    return quadratic * model.value([1.0]) + (1 - quadratic) * float(model.slope[0])


def _lambda_cases() -> list[tuple[Any, ...]]:
    return [(3.0, rho, 0.774) for rho in (0.9, 0.5, 0.1, -3.0, 0.76, 0.74, 0.26, 0.24)]


def _gamma_cases() -> list[tuple[Any, ...]]:
    return [(0.8, 0.6, 0.001, 1.0), (0.1, 0.6, 0.001, 1.0), (0.0012, 0.6, 0.001, 1.0)]


def _gammas(gamma: float, omega2: float, low: float, high: float) -> tuple[float, ...]:
    found = rules.gamma_candidates(gamma, omega2, low, high)
    return (*found, *[found[-1]] * (3 - len(found)))


def _nearest_cases() -> list[tuple[Any, ...]]:
    A, C, B, D, E = (_positive(40, 3), _positive(41, 3), *_draw(42, (4, 4), (4, 4), (12, 12)))
    return [(np.kron(A, B) + np.kron(C, D), 3, 4), (E, 4, 3)]


def _nearest(B: Any, n: int, m: int) -> Any:
    return kronecker.nearest_product(B, (n, n), (m, m))[:2]


def _nearest_rescaled(power: float) -> Callable[..., Any]:
    def wrong(B: Any, n: int, m: int) -> Any:
        A, G, singular = kronecker.nearest_product(B, (n, n), (m, m))
        return A * singular[0]**power, G
    return wrong


def _average_calls(r: Reference) -> list[tuple[Any, ...]]:
    return [(old, new, r["k"] + 1) for part in ("A", "G") for old, new in
            zip(r["old"][part], r["new"][part], strict=True)]


def _average_answer(r: Reference) -> list[Any]:
    return [*r["A_average"], *r["G_average"]]


def _average_collect(r: Reference, results: list[Any]) -> dict[str, Any]:
    L = len(r["A"])
    return {"A_average": tuple(results[:L]), "G_average": tuple(results[L:])}


def _first_batch() -> list[tuple[Any, ...]]:
    return [(None, _positive(50, 3), 1)]


def _first_average(old: None, new: Any, k: int) -> Any:
    return kr.RunningAverage(0.95).update(kr.Moments({("S",): new}, 1)).moments.arrays["S",]


PARTS: dict[str, tuple[Part, ...]] = {
    "vec": (ByFunction(
        lambda: [_draw(0, (3, 4)), _draw(1, (2, 2))], vec,
        (known("row-major vec", lambda V: V.ravel(), what=ROWS),)),),
    "unvec": (ByFunction(
        lambda: [(*_draw(2, (12,)), 3, 4), (*_draw(3, (4,)), 2, 2)], unvec,
        (known("row-major vec", lambda v, m, n: v.reshape(m, n),
               what="the rows of the matrix were filled, not its columns"),
         Slip("transposed", "the matrix is the transpose of the right one", "its shape is (m, n): m rows, and n "
              "columns of m entries", "transpose it", lambda v, m, n: unvec(v, m, n).T))),),
    "kron_times": (
        ByFunction(_kron_cases, kronecker.product, (
            SYMMETRIC,
            known("Kronecker factors in the wrong order", _order_swapped))),
        ByOracle(("categorical-tanh",), _zip("A", "G", "direction"), **by_layer("kfac_product"))),
    "output_gradient": (
        ByOracle(("categorical-tanh", "categorical-relu"), lambda r: [(r["z"], r.problem.y)], **sent_back("g", "dz")),
        ByFunction(_logits, lambda z, y: kr.Categorical().gradient(z, y), note="logits as large as 1000")),
    "backward": (ByOracle(TANH, lambda r: [(list(r.problem.weights), list(r["a_bar"]), r["dz"])], **at_once("g")),),
    "gradient": (ByOracle(TANH, lambda r: [(*c, r["eta"]) for c in zip(r["g"], r["a_bar"], r.problem.weights,
                                                                      strict=True)], **by_layer("gradient")),),
    "tangent": (ByFunction(_tangent_cases, _tangent, (
        known("slope left out of the backward pass", _tangent_without_slope),
        Slip("only the last layer", "only the last layer's weights move", "the output depends on all weights: earlier "
             "layers change the input of later ones", "carry the derivative of the activations along",
             _tangent_of(lambda i, L, v: v if i == L - 1 else 0 * v)),
        Slip("bias held still", "the biases do not move", "the direction has a column for the bias: a_bar V^T holds it",
             "use a_bar, not a, with V", _tangent_of(lambda i, L, v: np.column_stack([v[:, :-1], 0 * v[:, -1]]))))),),
    "gauss_newton": (ByOracle(("categorical-tanh", "bernoulli-tanh"), lambda r: [
        (_jacobian(r), r.problem.model.likelihood.fisher(r["z"]))], **at_once("fisher")),),
    "fisher_product": (ByOracle(("categorical-tanh", "bernoulli-tanh", "deep-tanh"), _all(
        "g_exact", "a_bar", "direction"), slips=(
            Slip("each layer by itself", "each layer was multiplied only by its own diagonal block",
                 "F has blocks between layers: the slope along the direction is a sum over all layers",
                 "add up the inner products of all layers first", _each_layer_alone),), **at_once("fisher_product")),),
    "categorical_columns": (ByOracle(("categorical-tanh", "categorical-relu"), lambda r: [(r["z"],)], slips=(
        Slip("probability in place of its root", "the columns hold p_k, not sqrt(p_k)", "their squares must add up to "
             "F_R", "take the root of p_k", _root_left_out),), **sent_back("G", "dz_exact")),),
    "bernoulli_columns": (ByOracle(("bernoulli-tanh", "bernoulli-relu"), lambda r: [(r["z"],)], slips=(
        Slip("variance in place of its root", "the columns hold p (1 - p), not its root", "their squares must add up "
             "to F_R", "take the root", lambda r: [r["dz_exact"]**2]),), **sent_back("G", "dz_exact")),),
    "exact_G": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _zip("g_exact"), **by_layer("G")),),
    "enumerated_G": (ByOracle(("softmax-regression",), lambda r: [(r["z"],)], **by_layer("G")),),
    "sampled_G": (ByOracle(("categorical-tanh", "gaussian-tanh"), lambda r: [
        (math.sqrt(len(r.problem.targets)) * g,) for g in r["g_sampled"]], **by_layer("G_sampled")),),
    "empirical_fisher": (ByOracle(("categorical-tanh", "gaussian-tanh"), _all("g", "a_bar"),
                                  **at_once("fisher_empirical")),),
    "natural_gradient": (ByOracle(("categorical-tanh", "gaussian-tanh"), _all(
        "fisher", "gradient", more=lambda r: (r["damping"],)), slips=(
            known("row-major vec", _by_rows, what="rows were stacked, not columns, while F is for stacked columns"),),
        **at_once("natural_gradient")),),
    "transformed_gradient": (ByFunction(
        _transform_cases, lambda grad, Phi, Omega: kronecker.product(Omega, Phi.T, grad), (
            Slip("transformed like the weights", "the gradient was taken through the map of the weights itself, or not "
                 "transposed", "a gradient goes the other way: by the transposes of Phi and Omega",
                 "transpose both", lambda grad, Phi, Omega: kronecker.product(Omega.T, Phi, grad)),
            Slip("transformed with the inverses", "Phi^-1 and Omega^-1 were used, as W' = Phi^-1 W Omega^-1",
                 "a gradient is not a displacement of the weights: displacements are mapped by the inverses, "
                 "gradients by the transposes", "use the transposes", lambda grad, Phi, Omega: np.linalg.solve(
                     Phi, np.linalg.solve(Omega.T, grad.T).T)),
            Slip("only Phi", "Omega was left out", "the inputs change too", "multiply by Omega^T from the right",
                 lambda grad, Phi, Omega: kronecker.product(np.eye(len(Omega)), Phi.T, grad)))),),
    "kl_clip": (ByOracle(("categorical-tanh", "gaussian-relu", "logistic-regression"), _all("step", "gradient", more=(
        lambda r: (r.problem.kl_clip.learning_rate, r.problem.kl_clip.kappa))), **at_once("kl_clip")),),
    "factor_A": (ByOracle(("categorical-tanh", "gaussian-relu"), lambda r: [(a[:, :-1],) for a in r["a_bar"]],
                          **by_layer("A")),),
    "covariance_error": (ByFunction(_covariance_cases, _covariance, (
        Slip("not centred", "the means were not subtracted: this is the rearranged Fisher block itself",
             "the block is E[vec Gamma vec Alpha^T]; minus the product of the means it is a covariance",
             "subtract the means", _uncentred),
        known("A divided by N - 1", lambda g, a: len(a) / (len(a) - 1) * _covariance(g, a)))),),
    "kfac_step": (ByOracle(("categorical-tanh", "gaussian-tanh"), _zip("A_damped", "G_damped", "gradient"),
                           **by_layer("step")),),
    "kron_sum_solve": (ByFunction(_sum_cases, kronecker.solve_sum, (
        Slip("sum of the inverses", "the two products were inverted one by one and the results added",
             "the inverse of a sum is not the sum of the inverses", "diagonalize both products at once",
             lambda A, B, C, D, V: _solve(A, B, V) + _solve(C, D, V)),
        Slip("second product left out", "only A ⊗ B was inverted", "C ⊗ D is part of the matrix",
             "use both", lambda A, B, C, D, V: _solve(A, B, V)),
        Slip("sums inside the product", "(A + C) ⊗ (B + D) was inverted", "that product has two more terms",
             "diagonalize both products at once", lambda A, B, C, D, V: _solve(A + C, B + D, V)),
        Slip("minus in place of plus", "the difference of the two products was inverted", "the exercise has a sum",
             "divide by 1 + s2 s1", lambda A, B, C, D, V: unvec(np.linalg.solve(np.kron(A, B) - np.kron(C, D), vec(V)),
                                                      *V.shape)))),),
    "regression": (ByFunction(
        lambda: [(*_draw(14, (3, 4)), _positive(15, 4)), (*_draw(16, (3, 3)), _positive(17, 3))],
        lambda X, S: Cholesky.factor(S).solve_right(X), (
            known("multiplied in place of solved", lambda X, S: kronecker.product(S, np.eye(len(X)), X),
                  what="S_cross was multiplied by S_next, not divided by it", why="a regression divides by the second "
                  "moment of what it predicts from", remedy="solve with S_next"),
            Slip("inverse on the wrong side", "the inverse was applied from the left", "Psi S_next = S_cross: the "
                 "division is from the right", "transpose, solve, transpose",
                 lambda X, S: Cholesky.factor(S).solve(X) if len(X) == len(S) else Cholesky.factor(S).solve_right(X)),
            Slip("transposed", "the transpose of Psi was returned", "Psi maps the next layer to this one: (d_i, "
                 "d_{i+1})", "transpose it", lambda X, S: Cholesky.factor(S).solve_right(X).T))),),
    "tridiagonal_solve": (ByOracle(("categorical-tanh", "three-layers-gaussian"), _tridiagonal_call, slips=(
        Slip("first sweep left out", "V was not multiplied by Xi before the solves", "F̂^-1 = Xi^T Lambda Xi",
             "start with V_i - Psi_G V_{i+1} Psi_A^T", _sweeps_missing("first")),
        Slip("third sweep left out", "the result was not multiplied by Xi^T", "F̂^-1 = Xi^T Lambda Xi",
             "end with the third sweep", _sweeps_missing("third")),
        Slip("first and third sweep left out", "each layer was solved with Sigma by itself", "F̂^-1 = Xi^T Lambda "
             "Xi", "add the sweeps before and after the solves", _sweeps_missing("first", "third"))),
        **at_once("step_tridiagonal")),),
    "trace_pi": (ByOracle(("categorical-tanh", "gaussian-relu"), _zip("A", "G"), slips=(
        Slip("ratio of the traces", "the root and the division by the dimensions are missing", "pi^2 is the ratio of "
             "the MEAN eigenvalues of A and G", "divide each trace by its dimension, and take the root",
             lambda r: [np.trace(A) / np.trace(G) for A, G in zip(r["A"], r["G"], strict=True)]),),
        **by_layer("pi")),),
    "damped_factors": (ByOracle(("categorical-tanh", "gaussian-relu"), lambda r: [
        (A, G, r["damping"], float(pi)) for A, G, pi in zip(r["A"], r["G"], r["pi"], strict=True)],
        slips=(Slip("shares exchanged", "A got sqrt(damping)/pi and G got pi sqrt(damping)", "pi is large where A is "
                    "large compared with G, so that each gets damping of its own size", "exchange them",
                    lambda r: [rules.factored_tikhonov(A, G, r["damping"], 1 / float(pi)) for A, G, pi in
                               zip(r["A"], r["G"], r["pi"], strict=True)]),), **by_layer("A_damped", "G_damped")),),
    "eigen_damped_step": (ByOracle(("categorical-tanh", "gaussian-tanh"), lambda r: [
        (A, G, r["damping"], V) for A, G, V in zip(r["A"], r["G"], r["gradient"], strict=True)],
        **by_layer("step_exact_damping")),),
    "running_average": (
        ByOracle(("categorical-tanh", "gaussian-logistic", "softmax-regression"), _average_calls, _average_answer,
                 _average_collect),
        ByFunction(_first_batch, _first_average, (
            known("average starts at the identity", lambda old, new, k: 0.95 * np.eye(len(new)) + 0.05 * new),
            known("average not corrected for its start", lambda old, new, k: 0.05 * new)))),
    "model_change": (ByFunction(_model_cases, _small, (
        known("M without its half", lambda *case: _small(*case, quadratic=2.0)),
        known("M without damping", lambda grad, delta, F, damping: _small(grad, delta, F, 0.0)),
        Slip("sign of the linear term", "the linear term has the other sign", "M(delta) - M(0) = grad^T delta + ...; "
             "for a descent step this is already negative", "use grad^T delta without a minus",
             lambda grad, delta, F, damping: _small(-grad, delta, F, damping)),
        Slip("linear term left out", "the linear term is missing", "M(delta) - M(0) = grad^T delta + 1/2 delta^T (F + "
             "damping I) delta", "add grad^T delta",
             lambda grad, delta, F, damping: _small(0 * grad, delta, F, damping)))),),
    "alpha_mu": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _system_call, slips=(
        Slip("sign turned", "alpha and mu have the other sign", "at the minimum B (alpha, mu) + b = 0",
             "add the minus sign", lambda r: [(-r["alpha"], -r["mu"])]),), **at_once("alpha", "mu")),),
    "reduction_ratio": (
        ByOracle(("categorical-tanh", "gaussian-tanh"), lambda r: [(r["objective"], r["moved"]["objective"], r["M"])],
                 slips=(Slip("sign turned", "rho has the other sign", "M is the change of h too: both are negative "
                             "where h falls, and rho is positive", "h_after - h_before", lambda r: [-r["rho"]]),),
                 **at_once("rho")),
        ByFunction(lambda: [(2.0, 1.5, -1.0), (1.0, 1.25, -1.0)], lambda h, new, M: ratio(new - h, M), (
            Slip("magnitude only", "the sign was dropped", "a negative rho means that h rose: lambda must rise",
                 "do not take the absolute value", lambda h, new, M: abs(ratio(new - h, M))),))),
    "next_lambda": (ByFunction(_lambda_cases, rules.next_lambda, (
        known("lambda moves the wrong way", lambda lambda_, rho, w: lambda_**2 / rules.next_lambda(lambda_, rho, w)),
        known("lambda not adapted", lambda lambda_, rho, w: lambda_))),
        ByFunction(lambda: [(3.0, math.nan, 0.774)], rules.next_lambda, (
            Slip("NaN ignored", "lambda does not change if rho is NaN", "h is then not finite: the step was very bad",
                 "treat every rho that is not at least 1/4 as bad", lambda lambda_, rho, w: lambda_),
            Slip("NaN trusted", "lambda falls if rho is NaN", "h is then not finite: the step was very bad",
                 "treat every rho that is not at least 1/4 as bad", lambda lambda_, rho, w: w * lambda_)))),
    "gamma_candidates": (ByFunction(_gamma_cases, _gammas, (
        Slip("not clipped", "some candidates are outside [low, high]", "without the limits gamma can diverge: they "
             "are in the author's code, not in the paper", "keep each within the range",
             lambda gamma, omega2, low, high: rules.gamma_candidates(gamma, omega2)),),
        view=lambda gammas: np.sort(np.asarray(gammas, dtype=float))),),
    "kfac_update": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _all(
        "a_bar", "g_exact", "gradient", "last_step", "fisher", more=lambda r: (r["damping"],)),
        **at_once("step", "alpha", "mu")),),
    "ekfac_scales": (ByOracle(("categorical-tanh", "bernoulli-tanh"), _zip("g_exact", "a_bar", "A", "G"),
                              **by_layer("ekfac_scales")),),
    "foof_step": (ByFunction(_foof_cases, _foof, (
        known("ascent in place of descent", lambda A, V, d: -_foof(A, V, d)),
        known("no damping", lambda A, V, d: _foof(A, V, 0.0)),
        known("multiplied in place of solved", lambda A, V, d: -_input_only(A, V, d).product([V])[0]),
        Slip("root of the damping", "the square root of the damping was added to A", "with G = I only A is "
             "damped, by the whole damping: the root is for two damped factors", "add the damping itself",
             lambda A, V, d: _foof(A, V, math.sqrt(d))))),),
    "nearest_product": (ByFunction(_nearest_cases, _nearest, (
        Slip("singular value left out", "A and G are unit vectors: their product has the norm 1",
             "the nearest matrix of rank one is s u v^T", "multiply by the leading singular value",
             _nearest_rescaled(-1.0)),
        Slip("singular value twice", "both A and G contain the whole singular value", "the nearest matrix of rank one "
             "is s u v^T, with one s", "give it to one of them, or its root to both", _nearest_rescaled(1.0)),
        Slip("singular value under the root", "only one of A and G contains the root of the singular value",
             "the nearest matrix of rank one is s u v^T", "give the root to both, or the whole to one",
             _nearest_rescaled(-0.5))),
        view=lambda pair: np.kron(*pair)),),
}
