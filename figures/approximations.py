"""Which approximation to use when: all of them on three networks at three stages, against the exact damped Fisher.

    python figures/approximations.py [--quick] [--pdf] [--out DIR]

Networks: the digits classifier 64-20-20-20-10 (tanh), the digits autoencoder 64-32-16-8-16-32-64 (logistic, Bernoulli)
and a classifier with relu units, 64-32-16-10. Stages: at the start, after 10 steps of K-FAC, and after 200. Each
approximation is used at its best damping. The numbers are the relative error of the matrix, the angle between its step
and the natural gradient, the decrease of the quadratic model by the rescaled step as a fraction of the natural
gradient's, the seconds to build the matrix and solve once, and the peak memory. The paper has no such figure; the
closest is its figure 7. Writes ``approximations.png``, ``approximations.json`` and the tables ``approximations.md``.
Takes five to six minutes, so ``make figures-paper`` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.experiments import autoencoder, classifier, family, script
from kfac_ref.experiments.settings import PAPER_RULE

HERE = Path(__file__).parent / "approximations"
#: lambda + eta of the quadratic model that judges all steps.
DAMPING = 1e-3


def networks(quick: bool) -> dict[str, kr.Model]:
    """Return the three models by name, or one small model."""
    if quick:
        return {"small classifier": kr.Model(kr.MLP((64, 6, 10), "tanh"), kr.Categorical(), weight_decay=1e-5)}
    relu = kr.Model(kr.MLP((64, 32, 16, 10), "relu"), kr.Categorical(), weight_decay=1e-5)
    return {"classifier (tanh)": classifier.untrained(), "autoencoder (logistic)": autoencoder.untrained(),
            "classifier (relu)": relu}


def study(models: dict[str, kr.Model], cases: int, steps: tuple[int, int]) -> dict[str, dict[str, list[family.Entry]]]:
    """Return the measurements of each network at each stage."""
    data = kr.datasets.digits()
    x, found = data.x[:cases], {}
    for name, model in models.items():
        y: Any = x if isinstance(model.likelihood, kr.Bernoulli) else data.labels[:cases]
        scheme = "glorot" if "relu" in name else "sparse"
        opt = kr.optimizers.KFAC(model, **PAPER_RULE)
        state = opt.init(model.init(np.random.default_rng(0), scheme))
        stages = {}
        for k in range(steps[1] + 1):
            if k in (0, *steps):
                at = model.at(state.weights, x)
                # The matrices of the autoencoder take 250 MB each, so their errors are not computed.
                dense = model.network.parameters < 3000
                stages["at the start" if k == 0 else f"after {k} steps"] = family.compare(
                    at, y, DAMPING, at.sample(np.random.default_rng(1)), dense=dense)
            state, _ = opt.step(state, x, y)
        found[name] = stages
    return found


def tables(found: dict[str, dict[str, list[family.Entry]]]) -> str:
    """Return one table per network, in Markdown."""
    text = []
    for network, stages in found.items():
        heads = [f"{stage}: error / angle / decrease" for stage in stages]
        lines = [f"### {network}", "", "| approximation | " + " | ".join(heads) + " | seconds | MiB |",
                 "|---|" + "---|" * (len(heads) + 2)]
        for k, first in enumerate(next(iter(stages.values()))):
            entries = [stage[k] for stage in stages.values()]
            cells = [f"{'-' if math.isnan(e.error) else format(e.error, '.2f')} / {e.judgement.angle:.0f}° / "
                     f"{100 * e.judgement.decrease:.0f}%" for e in entries]
            seconds = float(np.median([e.seconds for e in entries]))
            lines.append(f"| {first.name} | " + " | ".join(cells) + f" | {seconds:.3f} | {first.mebibytes:.1f} |")
        text.append("\n".join(lines))
    return "\n\n".join(text) + "\n"


def caption(found: dict[str, dict[str, list[family.Entry]]]) -> str:
    """Return the caption."""
    def mean(name: str) -> float:
        return 100 * float(np.mean([e.judgement.decrease for stages in found.values() for entries in stages.values()
                                    for e in entries if e.name == name]))

    names = [e.name for e in next(iter(next(iter(found.values())).values())) if e.name != "exact F"]
    told = sorted(names, key=mean, reverse=True)
    return ("Decrease of the quadratic model by the rescaled step, as a share of the natural gradient's, each "
            "approximation at its best damping. Mean over networks and stages: "
            + ", ".join(f"{n} {mean(n):.0f}%" for n in told) + ".")


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run the study and write its picture, numbers and tables to `out`; return 0."""
    found = study(networks(quick), 60 if quick else 500, (2, 4) if quick else (10, 200))
    values = {network: {stage: [100 * e.judgement.decrease for e in entries] for stage, entries in stages.items()}
              for network, stages in found.items()}
    figure = plotting.grouped_bars(values, tuple(family.FAMILY), "decrease of M (% of the natural gradient's)",
                                   caption(found))
    plain = {network: {stage: [asdict(e) for e in entries] for stage, entries in stages.items()}
             for network, stages in found.items()}
    script.save(figure, {"damping": DAMPING, "networks": plain}, out / "approximations", formats, force,
                {"md": tables(found)})
    print(tables(found))
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
