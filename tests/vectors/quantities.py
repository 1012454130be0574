"""What is expected of a problem: every quantity that it defines, and how far rounding may carry each.

`quantities(problem)` returns for each name the value and its *amplification*: by how much the errors of rounding are
multiplied on the way (a condition number, or the size of what cancels). `make` turns that into a tolerance.
"""

from __future__ import annotations

import itertools
from typing import Any

from mpmath import mp, mpf

from . import definitions as d

DENSE = 25                      # parameters: the largest problem that gets matrices of all of them
SEPARATED = mpf("0.01")         # eigenvalues, of the largest one: nearer ones have no eigenvectors to speak of


def exactly(value: Any) -> Any:
    """Turn every float into the number that it is exactly; integers and None stay."""
    if isinstance(value, (list, tuple)):
        return type(value)(exactly(entry) for entry in value)
    if isinstance(value, dict):
        return {key: exactly(entry) for key, entry in value.items()}
    return mpf(value) if isinstance(value, float) else value


def quantities(problem: dict) -> dict[str, tuple[Any, Any]]:
    """Return the value and the amplification of every quantity, by name."""
    p = exactly(problem)
    point = d.Point(p["likelihood"], p["network"]["hidden"], p["weights"], p["x"], p["weight_decay"])
    d.check_gradient(point, p["y"])
    found: dict[str, tuple[Any, Any]] = {}
    kinds = {"": point.exact(), "_empirical": point.drawn([p["y"]])}
    if "targets" in p:
        kinds["_sampled"] = point.drawn(p["targets"])
    for family in (of_the_pass(p, point), of_the_factors(point, kinds), of_the_steps(p, point, kinds),
                   of_the_matrices(p, point, kinds), of_the_eigenvectors(point, kinds),
                   of_the_average(p, point, kinds), of_the_model(p, point, kinds)):
        found |= family
    if "trajectory" in p:
        found |= of_the_trajectory(p, point)
    return found


def plain(values: dict) -> dict:
    """Sums and products amplify nothing."""
    return {name: (value, mpf(1)) for name, value in values.items()}


def of_the_pass(p: dict, point: d.Point) -> dict:
    N, L = len(p["x"]), len(p["weights"])
    g = [point.g(n, p["y"][n]) for n in range(N)]
    return plain({
        "z": point.z,
        "loss": point.loss(p["y"]),
        "objective": point.objective(p["y"]),
        "a_bar": tuple([point.passes[n][0][i] for n in range(N)] for i in range(L)),
        "g": tuple([g[n][i] for n in range(N)] for i in range(L)),
        "gradient": point.gradient(p["y"]),
    })


def of_the_factors(point: d.Point, kinds: dict) -> dict:
    found = {"A": d.input_factors(point)}
    found |= {f"G{kind}": d.output_factors(terms) for kind, terms in kinds.items()}
    if len(found["A"]) > 1:
        found |= {"A_cross": d.input_factors(point, 1), "G_cross": d.output_factors(kinds[""], 1)}
    return plain(found)


def of_the_steps(p: dict, point: d.Point, kinds: dict) -> dict:
    gradient, damping = point.gradient(p["y"]), p["damping"]
    A, G = d.input_factors(point), d.output_factors(kinds[""])
    A_damped, G_damped = d.damped(A, G, damping)
    found = plain({"pi": [d.trace_norm_pi(*pair) for pair in zip(A, G, strict=True)],
                   "A_damped": A_damped, "G_damped": G_damped})
    for kind, terms in kinds.items():
        found[f"step{kind}"] = d.step(A, d.output_factors(terms), damping, gradient)
    if len(A) > 1:
        cross = d.input_factors(point, 1), d.output_factors(kinds[""], 1)
        found["step_tridiagonal"] = d.step_tridiagonal(A, G, *cross, damping, gradient)
    blocks = [d.shifted(d.kron(*pair), damping) for pair in zip(A, G, strict=True)]
    found["step_exact_damping"] = d.blockwise_step(blocks, gradient)
    if "kl_clip" in p:
        limit = p["kl_clip"]
        v = [-entry for entry in d.flatten(found["step"][0])]
        slope = abs(d.dot(v, d.flatten(gradient)))
        clip = min(mpf(1), mp.sqrt(limit["kappa"] / (limit["learning_rate"]**2 * slope)))
        found["kl_clip"] = (clip, found["step"][1] * mp.norm(v) * mp.norm(d.flatten(gradient)) / slope)
    return found


def of_the_matrices(p: dict, point: d.Point, kinds: dict) -> dict:
    exact = kinds[""]
    A, G = d.input_factors(point), d.output_factors(exact)
    found = {}
    if "direction" in p:
        V = p["direction"]
        found |= plain({
            "fisher_product": d.unflatten(d.fisher_product(exact, d.flatten(V)), V),
            "kfac_product": tuple(d.matmul(of_g, block, of_a) for of_g, block, of_a in zip(G, V, A, strict=True)),
        })
    if len(d.flatten(p["weights"])) > DENSE:
        return found
    found |= plain({f"fisher{kind}": d.fisher(terms) for kind, terms in kinds.items()})
    found["hessian"] = (d.hessian(point, p["y"]), mpf(10**4))       # a sum of two terms that may cancel
    found |= plain({"kfac_block": tuple(d.kron(*pair) for pair in zip(A, G, strict=True))})
    gradient = point.gradient(p["y"])
    v, number = d.solve(d.shifted(found["fisher"][0], p["damping"]), d.flatten(gradient))
    found["natural_gradient"] = d.unflatten([-entry for entry in v], gradient), number
    return found


def of_the_eigenvectors(point: d.Point, kinds: dict) -> dict:
    scales, least = d.ekfac_scales(kinds[""], d.input_factors(point), d.output_factors(kinds[""]))
    return {"ekfac_scales": (scales, 1 / least)} if least > SEPARATED else {}


def of_the_average(p: dict, point: d.Point, kinds: dict) -> dict:
    if "previous" not in p:
        return {}
    old = p["previous"]
    eps = min(1 - mpf(1) / (old["k"] + 1), exactly(0.95))
    new = {"A": d.input_factors(point), "G": d.output_factors(kinds.get("_sampled", kinds[""]))}
    return plain({f"{name}_average": mixed(eps, old[name], new[name]) for name in new})


def mixed(eps: Any, old: tuple, new: tuple) -> tuple:
    return tuple(d.combine(eps, a, 1 - eps, b) for a, b in zip(old, new, strict=True))


def of_the_model(p: dict, point: d.Point, kinds: dict) -> dict:
    gradient, exact = point.gradient(p["y"]), kinds[""]
    Delta, number = d.step(d.input_factors(point), d.output_factors(exact), p["damping"], gradient)
    delta_0 = d.flatten(p["delta_0"]) if "delta_0" in p else None
    best = d.minimise(exact, d.flatten(gradient), p["damping"], d.flatten(Delta), delta_0)
    before, after = point.objective(p["y"]), point.at(d.moved(p["weights"], best.delta)).objective(p["y"])
    amplified = number * best.condition
    return {"alpha": (best.alpha, amplified), "mu": (best.mu, amplified), "M": (best.M, amplified),
            "rho": ((after - before) / best.M, amplified * max(1, abs(before / (after - before))))}


# Algorithm 2


def of_the_trajectory(p: dict, point: d.Point) -> dict:
    """Every step's numbers; errors of one step are carried into all that follow."""
    steps = trajectory(p, point)
    check_margins(steps)
    names = ("lambda", "gamma", "alpha", "mu", "M", "rho")
    found = {f"trajectory_{name}": ([step[name] for step in steps], mpf("1e7")) for name in names}
    found["trajectory_weights"] = (tuple([step["weights"][i] for step in steps] for i in range(len(p["weights"]))),
                                   mpf("1e7"))
    return found


def trajectory(p: dict, point: d.Point) -> list[dict]:
    """Run Algorithm 2 (Martens & Grosse 2015, sec. 9) on the batches of the problem, one dictionary a step."""
    t = p["trajectory"]
    lambda_, eta, weights = t["lambda_0"], p["weight_decay"], p["weights"]
    gamma = clipped(mp.sqrt(lambda_ + eta), t)
    average, factors, delta_0, steps = None, None, None, []
    for k, batch in enumerate(t["batches"], 1):
        here = point.take(batch["rows"]).at(weights)
        y = [p["y"][n] for n in batch["rows"]]
        gradient = here.gradient(y)
        average = updated(average, here.take(batch["rows1"]), batch["targets"], k, t["ceiling"])
        retune = k % t["T2"] == 0
        if k <= 3 or k % t["T3"] == 0 or retune:
            factors = average
        gammas = [gamma, t["omega2"] * gamma, gamma / t["omega2"]] if retune else [gamma]
        terms = here.take(batch["rows2"]).exact()
        tried = []
        for candidate in dict.fromkeys(clipped(value, t) for value in gammas):
            Delta = d.flatten(structured(t["structure"], factors, candidate**2, gradient))
            tried.append((candidate, d.minimise(terms, d.flatten(gradient), lambda_ + eta, Delta, delta_0)))
        gamma, best = min(tried, key=lambda pair: pair[1].M)          # min returns the first of a tie
        new = d.moved(weights, best.delta)
        measured = k % t["T1"] == 0
        rho = (here.at(new).objective(y) - here.objective(y)) / best.M if measured else None
        steps.append({"k": k, "lambda": lambda_, "gamma": gamma, "alpha": best.alpha, "mu": best.mu, "M": best.M,
                      "rho": rho, "weights": new, "tried": [(value, choice.M) for value, choice in tried]})
        if measured and rho > mpf(3) / 4:
            lambda_ = max(t["omega1"] * lambda_, min(lambda_, t["lambda_floor"]))
        if measured and rho < mpf(1) / 4:
            lambda_ = lambda_ / t["omega1"]
        weights, delta_0 = new, best.delta if t["momentum"] else None
    return steps


def check_margins(steps: list[dict]) -> None:
    """Assert that rounding turns no decision, and that every kind of decision is taken."""
    rhos = [step["rho"] for step in steps if step["rho"] is not None]
    assert all(abs(rho - bound) > 0.02 for rho in rhos for bound in (mpf(1) / 4, mpf(3) / 4)), rhos
    for step in steps:
        reached = sorted(M for _, M in step["tried"])
        assert all(b - a > mpf("1e-4") * abs(a) for a, b in itertools.pairwise(reached[:2])), step["k"]
    lambdas = [step["lambda"] for step in steps]
    assert any(b > a for a, b in itertools.pairwise(lambdas))
    assert any(b < a for a, b in itertools.pairwise(lambdas))
    assert len({step["gamma"] for step in steps}) > 1


def clipped(gamma: Any, t: dict) -> Any:
    return min(max(gamma, t["gamma_min"]), t["gamma_max"])


def updated(average: dict | None, part: d.Point, targets: list, k: int, ceiling: Any) -> dict:
    """The running average after its k-th update, of every factor."""
    terms = part.drawn([targets])
    new = {"A": d.input_factors(part), "G": d.output_factors(terms),
           "A_cross": d.input_factors(part, 1), "G_cross": d.output_factors(terms, 1)}
    if average is None:
        return new
    eps = min(1 - mpf(1) / k, ceiling)
    return {key: mixed(eps, average[key], value) for key, value in new.items()}


def structured(structure: str, factors: dict, damping: Any, gradient: tuple) -> tuple:
    if structure == "block-tridiagonal":
        names = ("A", "G", "A_cross", "G_cross")
        return d.step_tridiagonal(*(factors[name] for name in names), damping, gradient)[0]
    return d.step(factors["A"], factors["G"], damping, gradient)[0]
