"""The README's examples print what it says, and its files and targets are there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", README, re.DOTALL)


def test_the_examples_print_what_the_readme_says() -> None:
    assert len(EXAMPLES) == README.count("```python") == 4
    names: dict[str, object] = {}                           # each goes on where the one before ended
    for code, expected in EXAMPLES:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        assert out.getvalue() == expected


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+\.(?:py|md|cff))`", README))))
def test_the_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "kfac_ref" / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", README))))
def test_its_pictures_are_there(path: tuple[str, str]) -> None:
    assert (ROOT / "".join(path)).read_bytes().startswith(b"\x89PNG")


def test_its_table_is_that_of_the_committed_run() -> None:
    runs = json.loads((ROOT / "figures/demo/summary.json").read_text())["autoencoder"]
    levels = [level.strip() for level in README.split("to an error of |")[1].split("\n")[0].split("|")[:-1]]
    rows = re.findall(r"^\| (K-FAC|SGD|Adam)[^|]*, m = (\d+)[^|]*\|(.*)\|$", README, re.MULTILINE)
    assert len(rows) == len(runs)
    for method, batch, cells in rows:
        for level, cell in zip(levels, cells.split("|"), strict=True):
            hits = [run["levels"][level] for run in runs[f"{method}, m = {batch}"]["runs"]]
            middle = [np.median([hit[key] if hit else np.inf for hit in hits]) for key in ("iterations", "seconds")]
            expected = f"{middle[0]:.0f} / {middle[1]:.2f}" if np.isfinite(middle[0]) else "-"
            assert cell.strip() == expected


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w+)  |`make (\w+)`", README))))
def test_its_targets_are_in_the_makefile(target: tuple[str, str]) -> None:
    assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_figure_is_in_the_gallery_with_its_command() -> None:
    for script in sorted((ROOT / "figures").glob("*.py")):
        assert script.stem == "demo" or f"`python figures/{script.name}`" in README


def test_the_findings_tell_medians_of_ratios_and_what_the_grids_hold() -> None:
    page = (ROOT / "docs" / "what_we_found.md").read_text()
    damping = json.loads((ROOT / "figures/damping/damping.json").read_text())
    for key, form in (("factored_gain_from_re_scaling", ".1f"), ("factored_gain_from_momentum", ".1f"),
                      ("factored_over_exact_no_re_scaling", ".2f"), ("factored_over_exact_re_scaling", ".2f")):
        early, late = (np.median([seed[key] for seed in damping[stage]["seeds"]])
                       for stage in ("after_20_steps", "after_300_steps"))
        assert f"{early:{form}} and {late:{form}} times" in page
    for name, method in json.loads((ROOT / "figures/convergence/digits.json").read_text())["methods"].items():
        row, = re.findall(rf"^\| {name} \| iterations \|.*\| (.*) \|$", page.split("### Digits")[1], re.MULTILINE)
        ((setting, values),) = method["grid"].items()
        chosen, = re.fullmatch(rf"{setting} = (\S+) \(of {len(values)}(?:, the (?:lowe|highe)st)?\)", row).groups()     # type: ignore[union-attr]
        assert float(chosen) in values


def test_the_findings_are_written_from_the_numbers_beside_the_figures() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "what_we_found.py"))["page"]
    assert (ROOT / "docs" / "what_we_found.md").read_text() == page()


def test_the_average_of_the_iterates_counts_where_it_is_better() -> None:
    folder = ROOT / "figures" / "convergence"
    row = json.loads((folder / "convergence.json").read_text())["ratios_of_the_better_iterate"]["mnist"]["2"]["seconds"]
    seconds = []
    for path in (folder / "mnist" / "results").glob("*.json"):
        run = json.loads(path.read_text())
        if run["method"] == row["baseline"] and run["seed"] in (0, 1, 2):
            seconds.append(next(e["seconds"] for e in run["evaluations"] if min(e["error"], e["averaged_error"]) <= 2))
    assert len(seconds) == 3
    assert sorted(seconds)[1] == row["baseline_value"]
