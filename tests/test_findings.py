"""Every number of ``docs/what_we_found.md`` is found in the JSON beside the figures, in the order of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from kfac_ref import training
from kfac_ref.experiments import results, tables

from .figure_scripts import load

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
PAGE = (ROOT / "docs" / "what_we_found.md").read_text(encoding="utf-8")
PROBLEMS = {"MNIST": "mnist", "curves": "curves", "digits": "digits"}

# Values from the JSON files


def numbers(figure: str) -> Any:
    return json.loads((FIGURES / figure / f"{figure}.json").read_text())


def matrices() -> dict[str, list[float]]:
    fisher, inverse, tridiagonal = (numbers(n) for n in ("fisher_approximation", "inverse_structure", "tridiagonal"))
    covariance, over = numbers("error_as_covariance"), numbers("error_over_training")
    residuals = [block["residual_of_the_cumulants"] for block in covariance["blocks"].values()]
    whole = over["whole"]["F̃ (all blocks A ⊗ G)"]
    strong, weak = ({s["gamma"]: s for s in inverse["sweep"]}[gamma] for gamma in (0.01, 1))
    far = {s["gamma"]: s["F_hat"]["error_by_offset"][2:] for s in tridiagonal["sweep"]}
    return {
        r"$\tilde F$ captures the coarse structure of the exact $F$": [
            fisher["error"], fisher["steps"], min(fisher["diagonal_errors"]), max(fisher["diagonal_errors"]),
            fisher["error_best_kronecker"]],
        "The error of an entry is the sum of a fourth-order cumulant and two terms with third-order ones": [
            len(residuals), max(residuals), covariance["shown"]["share_of_fourth"]],
        "The approximation keeps its quality during training": [whole[0], whole[-1], over["steps"][-1]],
        r"The inverse of $\tilde F$ is nearly block-tridiagonal, $\tilde F$ itself is not": [
            strong["tridiagonal_ratio"], strong["tridiagonal_ratio_F_tilde"], 0.01, weak["tridiagonal_ratio"], 1],
        r"$\hat F$ is also accurate outside the tridiagonal blocks": [
            min(far[0.01]), max(far[0.01]), 0.01, min(far[1]), max(far[1]), 1],
        r"The inverse of $\breve F$ is a fair approximation although $\breve F$ is a poor one": [
            tridiagonal["F_breve_inverse_error"], tridiagonal["F_breve_error"],
            tridiagonal["F_breve_least_eigenvalue"]]}


def updates() -> dict[str, list[float]]:
    estimators, damping = numbers("estimators"), numbers("damping")
    first, last = (estimators["along_training"][i] for i in (0, -1))
    stages = [damping[f"after_{steps}_steps"] for steps in (20, 300)]

    def both(key: str) -> list[float]:
        return [stage["summary"][key]["median"] for stage in stages]

    return {
        "$G$ is estimated from targets drawn from the model; one per example is enough": [
            estimators["slope_draws"], estimators["slope_draws_se"], estimators["cases"],
            first["fresh_all_expected"], last["step"], last["fresh_all_expected"]],
        "The next three": [len(stages[0]["seeds"]), 20, 300],
        "Re-scaling by the exact $F$ allows a much smaller damping, and a larger decrease": [
            *both("factored_gain_from_re_scaling"), *both("factored_re_scaling_best_damping"),
            *both("factored_no_re_scaling_best_damping")],
        "Plain Tikhonov damping of the approximation is not competitive with factored damping": [
            *both("factored_over_exact_no_re_scaling"), *both("factored_over_exact_re_scaling")],
        "Momentum adds to the decrease": both("factored_gain_from_momentum")}


def invariance_and_batches() -> dict[str, list[float]]:
    distances, levels = numbers("invariance")["distances"], numbers("batch_size")["levels"]
    exact = [distances[f"{name}, undamped"][-1] for name in ("F̆", "F̂")]
    return {
        "Undamped updates do not depend on the parameterization": [
            max(exact), 0.0001, distances["F̆, damping 0.0001"][-1], distances["gradient descent"][-1]],
        "K-FAC's progress per iteration grows more than linearly with $m$, the baseline's hardly at all": [
            1, 100, 1500, *(levels[name]["1"]["exponent"]["100-1500"] for name in ("K-FAC", "SGD"))]}


Histories = dict[str, list[training.History]]
BASELINES = ("SGD", "Adam")


def best(histories: Histories, kind: str | tuple[str, ...], level: float, what: int) -> tuple[float, str] | None:
    """Return the least median of iterations (0) or seconds (1) to a level with the first method that has it, if any."""
    hits = [(hit[what], name) for name, runs in histories.items()
            if name.startswith(kind) and (hit := tables.medians(runs, level))]
    return min(hits, key=lambda hit: hit[0], default=None)


def reached(histories: Histories, levels: list[float], *kinds: str | tuple[str, ...]) -> list[float]:
    """Return the levels that a method of each kind reaches."""
    return [level for level in levels if all(best(histories, kind, level, 0) for kind in kinds)]


def value(histories: Histories, kind: str, level: float, what: int) -> list[Any]:
    """Return the least median, with the mark that the page gives to the tridiagonal inverse."""
    found = best(histories, kind, level, what)
    assert found is not None
    return [found[0], "(tridiagonal)"] if kind == "K-FAC" and "tridiagonal" in found[1] else [found[0]]


def compared(histories: Histories, level: float, what: int, kind: str = "K-FAC") -> list[Any]:
    """Return the values of K-FAC and of the best baseline, and their ratio."""
    ours, theirs = value(histories, kind, level, what), best(histories, BASELINES, level, what)
    assert theirs is not None
    assert theirs[1] == "SGD, m = 100"                      # as the page says of all tables
    return [*ours, theirs[0], theirs[0] / ours[0]]


def convergence(title: str, name: str) -> dict[str, list[Any]]:
    """Return the row of a problem in each table on iterations and seconds."""
    histories = results.read(FIGURES / "convergence" / name / "results.json")
    levels = json.loads((FIGURES / "convergence" / f"{name}.json").read_text())["levels"]
    better_iterate = load("convergence").better_iterate
    better = {method: [better_iterate(h) for h in runs] for method, runs in histories.items()}
    level, averaged = (reached(of, levels, "K-FAC", BASELINES)[-1] for of in (histories, better))
    seconds, quickest = compared(histories, level, 1), best(histories, "K-FAC", level, 1)
    assert quickest is not None
    fewer = compared(histories, level, 0, quickest[1])[-1]
    both = reached(histories, levels, "K-FAC, ", "K-FAC tridiagonal")
    iterations, time = ([value(histories, "K-FAC, ", at, what)[0] / value(histories, "K-FAC tridiagonal", at, what)[0]
                         for at in both] for what in (0, 1))
    without = reached(histories, levels, "K-FAC without", BASELINES)[-1]
    rows: dict[str, list[Any]] = {
        "Orders of magnitude fewer iterations than the baseline": [level, *compared(histories, level, 0)],
        "Faster in seconds": [level, *seconds, fewer, fewer / seconds[-1]],
        "The same for the better of the iterate and the averaged iterate, for every method": [
            averaged, *compared(better, averaged, 0), *compared(better, averaged, 1)],
        "The tridiagonal inverse makes 25 to 40% more progress per iteration, little more per second": [
            len(both), min(iterations), max(iterations), iterations[-1], both[-1], min(time), max(time), time[-1]],
        "Without momentum K-FAC is not much faster than the baseline": [
            without, *compared(histories, without, 0, "K-FAC without")]}
    if alone := [at for at in reached(histories, levels, "K-FAC") if not best(histories, BASELINES, at, 0)]:
        longest = max(median(h.evaluations[-1].seconds for h in runs)
                      for method, runs in histories.items() if method.startswith(BASELINES))
        rows["K-FAC reaches errors that no baseline reaches"] = [
            alone[-1], *value(histories, "K-FAC", alone[-1], 0), *value(histories, "K-FAC", alone[-1], 1), longest]
    return {f"{statement}: {title}": values for statement, values in rows.items()}


def setup() -> dict[str, list[float]]:
    """Return what the page says of all comparisons, after a check of what it says of their grids."""
    contents = {name: json.loads((FIGURES / "convergence" / name / "results.json").read_text())
                for name in PROBLEMS.values()}
    for name in contents:
        for method, content in contents[name]["methods"].items():
            setting = "lambda_0" if method.startswith("K-FAC") else "learning_rate"
            chosen, grid = content["settings"][setting], {trial["settings"][setting] for trial in content["trials"]}
            assert chosen == min(grid) if (name, setting) == ("curves", "lambda_0") else min(grid) < chosen < max(grid)
            assert len(content["trials"]) == {"mnist": 4, "curves": 5, "digits": 4}[name]
            assert len(content["runs"]) == 3
            if setting == "lambda_0":
                assert content["batch"] == ("500" if name == "digits" else "1000")
    lambda_0 = contents["curves"]["methods"]["K-FAC, m = 1000"]["settings"]["lambda_0"]
    images = int(contents["mnist"]["title"].partition("(")[2].split()[0])
    return {"Three autoencoders: MNIST,": [3, 4, 5, lambda_0, 1000, 500, 100], "The paper's FACES": [images],
            "Which statements of": [2015]}                  # the year of the paper


def settings() -> dict[str, list[float]]:
    safeguards, plateau = numbers("safeguards"), numbers("plateau")
    found = {"Each row changes": [safeguards["base"][key] for key in ("lambda_0", "tau1", "T3", "T1")],
             "The plateau of the curves": [plateau["mean_image_error"], plateau["level"] / plateau["mean_image_error"]]}
    for size in ("large", "small"):
        table = f"{size.capitalize()} batches"
        found[table] = [safeguards["batch"][size], safeguards["iterations"][size], safeguards["seeds"]]
        for name, row in safeguards["settings"][size].items():
            worst = [] if row["broke_off"] else [row["error_largest"]]
            found[f"{table}: {name}"] = [
                row["error_median"], row["error_least"], *worst, row["ratio_to_full_median"],
                row["runs_where_h_doubled"], sum(row["undone"]),
                *(row[f"{end}_{what}"] for what in ("lambda", "gamma") for end in ("smallest", "largest"))]
    return found | {f"The plateau of the curves: {name}": [*(k for k in left if k), plateau["iterations"][name]]
                    for name, left in plateau["left_plateau_at"].items()}


# Numbers on the page


def written() -> dict[str, list[str]]:
    """Return the numbers of the page, by statement (its bold words), and by statement and row in a table.

    A paragraph that does not begin with bold words goes by its first three. What the statement itself says, sections
    and links are left out.
    """
    found, statement = {}, ""
    for block in re.split(r"\n\n|\n(?=\|)", PAGE):
        text = " ".join(block.split())
        if text.startswith("|"):
            key, text = f"{statement}: {text.split('|')[1].strip()}", text.split("|", 2)[2]
        elif bold := re.match(r"\*\*(.+?)\*\*", text):
            key = statement = bold[1]
            text = text[bold.end():]
        else:
            key = " ".join(text.split()[:3])
        text = re.sub(r"\(sections? [^)]*\)|\[[^\]]*\]\([^)]*\)", "", text)
        if digits := re.findall(r"\(tridiagonal\)|(?<![\w.^{_-])-?\d+(?:\.\d+)?(?:e-?\d+)?%?(?!\w)", text):
            found[key] = digits
    return found


def as_written(value: Any, text: str) -> str:
    """Write a value with as many digits as `text` has."""
    if isinstance(value, str):
        return value
    if text.endswith("%"):
        return f"{100 * value:.0f}%"
    return f"{value:.0e}" if "e" in text else f"{value:.{len(text.partition('.')[2])}f}"


def test_every_number_of_the_page_is_that_of_a_figure() -> None:
    found = written()
    expected = matrices() | updates() | invariance_and_batches() | settings() | setup()
    for title, name in PROBLEMS.items():
        expected |= convergence(title, name)
    assert set(found) == set(expected)
    for key, values in expected.items():
        assert len(values) == len(found[key]), key
        assert [as_written(*pair) for pair in zip(values, found[key], strict=True)] == found[key], key


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE))))
def test_its_links_lead_to_files(path: str) -> None:
    assert (ROOT / "docs" / path).is_file()


def test_the_average_of_the_iterates_counts_where_it_is_better() -> None:
    row = numbers("convergence")["ratios_of_the_better_iterate"]["mnist"]["2"]["seconds"]
    content = json.loads((FIGURES / "convergence" / "mnist" / "results.json").read_text())
    seconds = []
    for run in content["methods"][row["baseline"]]["runs"]:
        columns = run["evaluations"]
        hits = zip(columns["seconds"], columns["error"], columns["averaged_error"], strict=True)
        seconds.append(next(s for s, error, averaged in hits if min(error, averaged) <= 2))
    assert median(seconds) == row["baseline_value"]
