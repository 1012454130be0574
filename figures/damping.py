"""The decrease of h by one update against its damping, with and without re-scaling (the paper's figure 7).

    python figures/damping.py [--quick] [--pdf] [--out DIR]

The digits autoencoder 64-32-16-8-16-32-64 is trained by K-FAC on the full training set. After 20 and after 300 steps
the next update is computed at every strength of the damping: with factored damping, A + pi gamma I and G + gamma / pi
I, and with exact damping, A ⊗ G + (lambda + eta) I, drawn at sqrt(lambda + eta). Each gives three steps: Delta
itself (no re-scaling), alpha Delta with the best alpha (sec. 6.4), and alpha Delta + mu delta_0 with the last step of
the run (sec. 7). The picture shows h(theta) - h(theta + delta), with h over all training examples.

The factors are the optimizer's running average at that step. M, which chooses alpha and mu, uses the exact F over all
examples and the run's own lambda. (The run keeps its inverses for T3 steps, so its factors are up to T3 - 1 steps
older, and ``decrease_of_the_run`` is slightly off the line.) The batch is the full set, as in the paper from iteration
500 on: a last step from a smaller batch would have fitted that batch, and mu would partly undo it.

The picture shows one seed; the caption and the numbers give the range over three. Writes ``damping.png`` and
``damping.json``. Takes about 20 seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting, training
from kfac_ref.experiments import autoencoder, script
from kfac_ref.optimizers.kfac_values import Damped

HERE = Path(__file__).parent / "damping"
DAMPINGS = {"factored": kr.curvature.BlockDiagonal, "exact": kr.curvature.EigenDamped}
STEPS = ("no re-scaling", "re-scaling", "re-scaling and momentum")


def decreases(optimizer: kr.optimizers.KFAC, state: Any, x: np.ndarray, strengths: np.ndarray) -> dict[str, Any]:
    """Return the decreases by damping, kind of step and strength, and the decrease of the run's own update."""
    detail = optimizer.explain(state, x, x)
    at, grad, h = detail.at, detail.grad, detail.loss
    factors = kr.factors.as_factors(detail.average.moments)

    def gain(delta: Sequence[np.ndarray]) -> float:
        after = optimizer.model.at(kr.params.add(state.weights, delta), x).loss(x)
        return h - after if np.isfinite(after) else np.nan

    found: dict[str, dict[str, list[float]]] = {name: {step: [] for step in STEPS} for name in DAMPINGS}
    for name, structure in DAMPINGS.items():
        for strength in strengths:
            C = structure(factors, damping=strength**2)
            source = optimizer.source(state, at, detail.average, strength, detail.draws)
            damped = Damped(source, C, optimizer.direction(C, grad))
            alone, both = (optimizer.rescale(at, grad, damped, delta_0, state.lambda_)
                           for delta_0 in (None, state.delta_0))
            deltas = (damped.Delta, optimizer.combine(alone, None), optimizer.combine(both, state.delta_0))
            for step, delta in zip(STEPS, deltas, strict=True):
                found[name][step].append(gain(delta))
    return {"h": h, "error": at.error(x), "lambda": state.lambda_, "gamma": detail.record.gamma,
            "alpha": detail.alpha, "mu": detail.mu, "decrease_of_the_run": gain(detail.delta), "decrease": found}


def summarize(strengths: np.ndarray, stage: dict[str, Any]) -> dict[str, float]:
    """Return the best decrease of each line with its damping, and the ratios that the paper discusses."""
    best, where = {}, {}
    numbers = {}
    for name, steps in stage["decrease"].items():
        for step, values in steps.items():
            if not np.isfinite(values).any():
                raise ValueError(f"h is not finite at any strength with {name} damping and {step}")
            k = int(np.nanargmax(values))
            best[name, step], where[name, step] = values[k], float(strengths[k])
            key = f"{name}_{step}".replace(" ", "_").replace("-", "_")
            numbers[f"{key}_best_decrease"], numbers[f"{key}_best_damping"] = best[name, step], where[name, step]
    plain, rescaled, momentum = STEPS
    for name in DAMPINGS:
        numbers[f"{name}_gain_from_re_scaling"] = ratio(best[name, rescaled], best[name, plain])
        numbers[f"{name}_damping_without_over_with_re_scaling"] = where[name, plain] / where[name, rescaled]
        numbers[f"{name}_gain_from_momentum"] = ratio(best[name, momentum], best[name, rescaled])
        helps = [s for s, v in zip(strengths, stage["decrease"][name][plain], strict=True) if v > 0]
        numbers[f"{name}_without_re_scaling_h_falls_nowhere_below"] = float(min(helps, default=np.inf))
    for step in STEPS:
        key = f"factored_over_exact_{step}".replace(" ", "_").replace("-", "_")
        numbers[key] = ratio(best["factored", step], best["exact", step])
    numbers["run_over_best_factored"] = ratio(stage["decrease_of_the_run"], best["factored", momentum])
    return numbers


def ratio(a: float, b: float) -> float:
    """Return a / b; infinite if b is not a decrease."""
    return a / b if b > 0 else np.inf


def spread(summaries: Sequence[dict[str, float]], key: str, form: str = "{:.2g}") -> str:
    """Format the smallest and the largest value over the seeds."""
    values = [s[key] for s in summaries]
    low, high = (form.format(v) for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def describe(stages: dict[int, list[dict[str, float]]]) -> str:
    """Return the caption, with the ranges over the seeds."""
    text = ("What one update of K-FAC gains on the digits autoencoder, against the strength of its damping: the "
            "decrease of h over all training cases, by the factored and by the exact damping of A ⊗ G, for Delta "
            "itself (no re-scaling), alpha Delta (re-scaling) and alpha Delta + mu delta_0 (and momentum). Lines: one "
            "seed, the best of each marked; numbers: range over seeds.")
    for k, s in stages.items():
        text += (f" After {k} steps: without re-scaling, factored damping lowers h nowhere below a strength of "
                 f"{spread(s, 'factored_without_re_scaling_h_falls_nowhere_below')} and is best at "
                 f"{spread(s, 'factored_no_re_scaling_best_damping')}; re-scaled it is best at "
                 f"{spread(s, 'factored_re_scaling_best_damping')}, where h falls "
                 f"{spread(s, 'factored_gain_from_re_scaling')} times as much, and momentum multiplies that by "
                 f"{spread(s, 'factored_gain_from_momentum')}. The best decrease by factored over that by exact "
                 f"damping is {spread(s, 'factored_over_exact_no_re_scaling')} without re-scaling, "
                 f"{spread(s, 'factored_over_exact_re_scaling')} with it, "
                 f"{spread(s, 'factored_over_exact_re_scaling_and_momentum')} with momentum too.")
    return text


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Train, make the update at every damping, write picture and numbers to `out`; return 0."""
    data = kr.datasets.digits()
    x = data.x[:100] if quick else data.x
    after = (3, 6) if quick else (20, 300)
    strengths = np.logspace(-5, 2, 8 if quick else 57)
    model = autoencoder.untrained()
    method = autoencoder.METHODS["K-FAC, m = 500"]
    optimizer = method.make(model, method.settings)
    runs: dict[int, list[dict[str, Any]]] = {k: [] for k in after}
    for seed in autoencoder.SEEDS[:1 if quick else None]:
        for k in after:
            history = training.train(optimizer, model.init(np.random.default_rng(seed)), x, x, k, seed=seed,
                                     name=f"seed {seed}, {k} steps")
            runs[k].append(decreases(optimizer, history.state, x, strengths))
    summaries = {k: [summarize(strengths, stage) for stage in stages] for k, stages in runs.items()}
    text = describe(summaries)
    title = {k: f"after {k} steps (error {runs[k][0]['error']:.2f}, h = {runs[k][0]['h']:.2f})" for k in after}
    figure = plotting.decreases(
        strengths, {title[k]: {f"{name} damping": {step: np.array(values) for step, values in steps.items()}
                               for name, steps in runs[k][0]["decrease"].items()} for k in after},
        {title[k]: runs[k][0]["gamma"] for k in after}, text)
    numbers = {f"after_{k}_steps": {
        "summary": {key: dict(zip(("least", "median", "largest"), np.quantile([s[key] for s in summaries[k]],
                                                                              (0, 0.5, 1), method="nearest"),
                                  strict=True)) for key in summaries[k][0]},
        "seeds": [run | summary for run, summary in zip(runs[k], summaries[k], strict=True)]} for k in after}
    script.save(figure, {"cases": len(x), "settings": dict(method.settings), "strengths": strengths, **numbers},
                out / "damping", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
