"""How A and G are estimated: variance of sampled targets, the empirical Fisher, and stale averages (not in the paper).

    python figures/estimators.py [--quick] [--pdf] [--out DIR]

The digits classifier 64-20-20-20-10, trained by K-FAC on all training examples. Distances are relative Frobenius
distances to the exact factors at the same weights and examples, root mean square over the layers. Three panels:

* after 10 steps, G from M sampled targets per example, and G and A ⊗ G from n examples (drawn with replacement) with
  one target each. The errors fall with the square root of M and n. If only the targets are sampled, A is exact, and the
  error of A ⊗ G is that of G. The expected error is known in closed form, from the fourth moments of g over all ten
  outcomes; it is drawn too;
* empirical against exact G during training. If the model gives the label the probability 1 - e, the exact G is of first
  order in e and the empirical G of second order: when the model fits, the empirical G does not estimate the exact one;
* the estimates in the optimizer. The running average of sampled G (the paper's sec. 5) is compared with a fresh
  estimate from one batch (only variance) and with the same running average of exact G (only staleness); the G that the
  optimizer solves with is kept for up to T3 = 20 steps. Late in the run a wrong class is sampled so rarely that a fresh
  sample is usually almost zero (distance 1) and otherwise far too large, so the median and the rms differ.

One run with one seed. Writes ``estimators.png`` and ``estimators.json``. Takes about ten seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.experiments import classifier, script
from kfac_ref.experiments.settings import PAPER_RULE
from kfac_ref.factors import as_factors, second_moments

HERE = Path(__file__).parent / "estimators"
AFTER = 10                              # steps of training before the first panel


def distance(estimate: kr.Factors, exact: kr.Factors, factor: str = "G") -> float:
    """Return the root mean square over layers of the relative Frobenius distance of G, or of A."""
    squares = [np.sum((S - T) ** 2) / np.sum(T**2) for S, T in _pairs(estimate, exact, factor)]
    return float(np.sqrt(np.mean(squares)))


def _pairs(estimate: kr.Factors, exact: kr.Factors, factor: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(getattr(estimate, factor)[i], getattr(exact, factor)[i]) for i in range(len(exact))]


def product_distance(estimate: kr.Factors, exact: kr.Factors) -> float:
    """Return the same of A ⊗ G, by ``A' kron G' - A ⊗ G = A' kron (G' - G) + (A' - A) kron G``."""
    squares = []
    for (A1, G1), (A, G) in zip(estimate.layers, exact.layers, strict=True):
        dA, dG = A1 - A, G1 - G
        square = np.sum(A1**2) * np.sum(dG**2) + 2 * np.sum(A1 * dA) * np.sum(dG * G) + np.sum(dA**2) * np.sum(G**2)
        squares.append(square / (np.sum(A**2) * np.sum(G**2)))
    return float(np.sqrt(np.mean(squares)))


def expected_distances(at: kr.Point) -> tuple[float, float]:
    """Return the root of the expected squared `distance` of G: one target per example, or one random example.

    M targets divide the first by sqrt(M), n examples the second by sqrt(n). All outcomes are enumerated.
    """
    y, p = at.model.likelihood.outcomes(at.z)
    targets, cases = [], []
    for g in at.backward(at.model.likelihood.gradient(at.z, y)):
        given = np.einsum("kn,knp,knq->npq", p, g, g, optimize=True)            # E[g g^T | x]
        fourth = np.sum(p * np.sum(g**2, axis=2) ** 2, axis=0)                  # E[ ||g g^T||^2 | x ]
        norm = np.sum(given.mean(axis=0) ** 2)
        targets.append(np.mean(fourth - np.sum(given**2, axis=(1, 2))) / len(at) / norm)
        cases.append(np.mean(fourth) / norm - 1)
    return float(np.sqrt(np.mean(targets))), float(np.sqrt(np.mean(cases)))


def slope(x: np.ndarray, repeats: np.ndarray) -> tuple[float, float]:
    """Return the log-log slope of the root mean square over repeats (rows), and its standard error by the jackknife.

    The mean square falls exactly as 1/x. A mean of logarithms does not: longer tails pull it further down, and tails
    are longest at small x.
    """
    def fitted(rows: np.ndarray) -> float:
        return float(np.polyfit(np.log(x), np.log(np.mean(rows**2, axis=0)) / 2, 1)[0])

    R = len(repeats)
    without = np.array([fitted(np.delete(repeats, r, axis=0)) for r in range(R)])
    return fitted(repeats), float(np.sqrt((R - 1) / R * np.sum((without - without.mean()) ** 2)))


def sampling(at: kr.Point, draws: Sequence[int], cases: Sequence[int], repeats: int) -> dict[str, np.ndarray]:
    """Return the distances of sampled factors, one row per repeat, by draws per example and by number of examples."""
    rng, exact = np.random.default_rng(1), kr.kronecker_factors(at)
    by_draws = [[distance(kr.kronecker_factors(at, kr.sampled(at.sample(rng, M))), exact) for M in draws]
                for _ in range(repeats)]
    by_cases: dict[str, list[list[float]]] = {"G": [], "A ⊗ G": []}
    for _ in range(5 * repeats):                                # cheap, with longer tails
        parts = [at.take(rng.integers(0, len(at), n)) for n in cases]
        found = [kr.kronecker_factors(part, kr.sampled(part.sample(rng))) for part in parts]
        by_cases["G"].append([distance(f, exact) for f in found])
        by_cases["A ⊗ G"].append([product_distance(f, exact) for f in found])
    return {"G by draws": np.array(by_draws), **{f"{k} by cases": np.array(v) for k, v in by_cases.items()}}


def empirical_row(at: kr.Point, labels: np.ndarray, exact: kr.Factors) -> dict[str, float]:
    """Compare the empirical G with the exact G: distance, and means over layers of ratio of traces and cosine."""
    empirical = kr.kronecker_factors(at, kr.empirical(labels))
    pairs = _pairs(empirical, exact, "G")
    return {"empirical_distance": distance(empirical, exact),
            "empirical_trace_ratio": float(np.mean([np.trace(S) / np.trace(T) for S, T in pairs])),
            "empirical_cosine": float(np.mean([np.sum(S * T) / np.linalg.norm(S) / np.linalg.norm(T)
                                               for S, T in pairs]))}


def fresh(at: kr.Point, n: int, exact: kr.Factors, rng: np.random.Generator, repeats: int) -> float:
    """Return the median distance of G from n examples (drawn without replacement) with one target each."""
    parts = [at.take(rng.choice(len(at), n, replace=False)) for _ in range(repeats)]
    return float(np.median([distance(kr.kronecker_factors(part, kr.sampled(part.sample(rng))), exact)
                            for part in parts]))


def along_training(x: np.ndarray, labels: np.ndarray, steps: Sequence[int], repeats: int
                   ) -> tuple[list[dict[str, Any]], kr.Point]:
    """Train, and compare the estimates at each of `steps`, at the weights where the step starts.

    Returns the rows, and the point after `AFTER` steps (or the last).
    """
    model = classifier.untrained()
    opt = kr.optimizers.KFAC(model, **PAPER_RULE)
    state = opt.init(model.init(np.random.default_rng(0)), seed=0)
    rng, stale, rows = np.random.default_rng(2), kr.RunningAverage(), []
    for k in range(1, max(steps) + 1):
        detail = opt.explain(state, x, labels)
        at, moments = detail.at, second_moments(detail.at)
        exact, stale = as_factors(moments), stale.update(moments)
        if k <= AFTER + 1:
            point = at
        if k in steps:
            average = as_factors(detail.average.moments)
            part = len(range(len(x))[detail.rows1]) if isinstance(detail.rows1, slice) else len(detail.rows1)
            rows.append({
                "step": k, "train_error": at.error(labels), "loss": at.loss(labels), "lambda": state.lambda_,
                **empirical_row(at, labels, exact),
                "average": distance(average, exact),
                "average_A": distance(average, exact, "A"),
                "in_use": distance(detail.chosen.curvature.factors, exact),
                "average_of_exact": distance(as_factors(stale.moments), exact),
                "fresh_part_cases": part,
                "fresh_part": fresh(at, part, exact, rng, repeats),
                "fresh_all": fresh(at, len(at), exact, rng, repeats),
                "fresh_all_expected": expected_distances(at)[0],
            })
        state = detail.state
    return rows, point


def caption(numbers: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the caption."""
    n, first, last = numbers, rows[0], rows[-1]
    nearest = min(rows, key=lambda row: row["empirical_distance"])
    stalest = max(rows, key=lambda row: row["average_of_exact"])
    wins = sum(row["average"] < row["fresh_part"] for row in rows)
    return (f"Digits classifier, K-FAC on {n['cases']} cases, one run. Left (median and range of the repeats): slopes "
            f"of the rms, log-log, are {n['slope_draws']:.3f} ± {n['slope_draws_se']:.3f} against targets and "
            f"{n['slope_cases']:.3f} ± {n['slope_cases_se']:.3f} against cases (A ⊗ G: {n['slope_product']:.3f} ± "
            f"{n['slope_product_se']:.3f}); the rms is {n['measured_over_expected_draws']:.2f} and "
            f"{n['measured_over_expected_cases']:.2f} times the expected one. Middle: the trace of the empirical G is "
            f"{first['empirical_trace_ratio']:.2g} times the exact one at the start and "
            f"{last['empirical_trace_ratio']:.1g} times at step {last['step']}; its distance is never below "
            f"{nearest['empirical_distance']:.2f} (step {nearest['step']}, {100 * nearest['train_error']:.0f}% wrong). "
            f"Right: the running average is nearer to the exact G than a fresh sample of {first['fresh_part_cases']} "
            f"cases at {wins} of the {len(rows)} steps looked at. At step {stalest['step']} it is off by "
            f"{stalest['average']:.2g}, and by {stalest['average_of_exact']:.2g} if exact G are averaged; at step "
            f"{last['step']} by {last['average']:.2g} and {last['average_of_exact']:.2g}: the second is staleness "
            f"alone. A fresh sample of all cases is then off by {last['fresh_all']:.2f} (median), "
            f"{last['fresh_all_expected']:.2g} (rms). The averaged A is never off by more than "
            f"{max(row['average_A'] for row in rows):.2f}.")


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Measure all three, write picture and numbers to `out`; return 0."""
    data = kr.datasets.digits()
    N, repeats = (120, 3) if quick else (1500, 40)
    x, labels = data.x[:N], data.labels[:N]
    steps = sorted({int(k) for k in np.round(np.geomspace(1, 6 if quick else 200, 4 if quick else 30))})
    draws, cases = ([1, 2, 4], [20, 40, 80]) if quick else ([1, 2, 4, 8, 16, 32, 64], [25 * 2**k for k in range(7)])
    rows, at = along_training(x, labels, steps, repeats)
    found = sampling(at, draws, cases, repeats)
    one_target, one_case = expected_distances(at)
    expected = {"draws": one_target / np.sqrt(draws), "cases": one_case / np.sqrt(cases)}
    numbers: dict[str, Any] = {"cases": N, "after": min(AFTER, steps[-1] - 1), "repeats_draws": repeats,
                               "repeats_cases": 5 * repeats}
    for name, key, at_x in (("slope_draws", "G by draws", draws), ("slope_cases", "G by cases", cases),
                            ("slope_product", "A ⊗ G by cases", cases)):
        numbers[name], numbers[f"{name}_se"] = slope(np.array(at_x), found[key])
    for axis in ("draws", "cases"):
        ratio = np.sqrt(np.mean(found[f"G by {axis}"] ** 2, axis=0)) / expected[axis]
        numbers[f"measured_over_expected_{axis}"] = float(np.sqrt(np.mean(ratio**2)))
    column = {key: np.array([row[key] for row in rows], dtype=float) for key in rows[0]}
    stale = np.where(column["average_of_exact"] > 0, column["average_of_exact"], np.nan)    # exact at step 1
    k, share = column["step"], f"{rows[0]['fresh_part_cases']} of {N}"
    text = caption(numbers, rows)
    figure = plotting.side_by_side([
        plotting.Panel(f"sampled factors after {numbers['after']} steps", "targets a case, M; or cases, n",
                       "relative distance to the exact factor",
                       {f"G, M targets for each of {N} cases": (np.array(draws), found["G by draws"]),
                        "G, n cases, one target each": (np.array(cases), found["G by cases"]),
                        "A ⊗ G, n cases, one target each": (np.array(cases), found["A ⊗ G by cases"]),
                        "expected for M targets": (np.array(draws), expected["draws"]),
                        "expected for n cases": (np.array(cases), expected["cases"])}),
        plotting.Panel("empirical against exact G", "step", "relative to the exact G; rate of errors",
                       {"distance of the empirical G": (k, column["empirical_distance"]),
                        "trace of the empirical / of the exact G": (k, column["empirical_trace_ratio"]),
                        "cosine between the two": (k, column["empirical_cosine"]),
                        "training error (rate of wrong labels)": (k, column["train_error"])}, y_scale="linear"),
        plotting.Panel("averaged and stale against fresh and noisy", "step", "relative distance to the exact G",
                       {"running average (sampled, 1/8 of the cases a step)": (k, column["average"]),
                        "in use (the same, up to 20 steps old)": (k, column["in_use"]),
                        "running average of exact G: staleness alone": (k, stale),
                        f"fresh, {share} cases (median)": (k, column["fresh_part"]),
                        f"fresh, all {N} cases (median)": (k, column["fresh_all"]),
                        f"fresh, all {N} cases (expected rms)": (k, column["fresh_all_expected"])}),
    ], text)
    rms = {key: np.sqrt(np.mean(values**2, axis=0)) for key, values in found.items()}
    script.save(figure, {**numbers, "draws": draws, "n": cases, "rms": rms, "expected": expected,
                         "along_training": rows}, out / "estimators", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
