"""The error of each approximation against the exact Fisher during one training run.

    python figures/error_over_training.py [--quick] [--pdf] [--out DIR]

The digits classifier 64-20-20-20-10, trained by K-FAC on all 1500 training examples, one seed. From the start to step
200: the relative Frobenius error of each approximation against the exact Fisher over the same 1500 examples, nearly
undamped (1e-8), for the whole matrix and for its diagonal blocks only. (The error of the diagonal blocks is relative to
these blocks, so the blocks between layers, which most approximations drop, do not count.) "A ⊗ G (exact damping)" is
left out because without damping it is F̆. FOOF has G = I, so its scale has no meaning; it is multiplied by the
number that brings it closest to F. The paper has no such figure; its figures 2 and 5 show these matrices at one point
of training. Writes
``error_over_training.png`` and ``error_over_training.json``. Takes about half a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.experiments import classifier, family, script
from kfac_ref.experiments.settings import PAPER_RULE

HERE = Path(__file__).parent / "error_over_training"
STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200)
LEFT_OUT = ("exact F", "A ⊗ G (exact damping)")
FOOF = "FOOF (A alone)"
#: Their diagonal blocks are exact, or equal to those of F̆: F̂ has the tridiagonal blocks of F̃.
BLOCKS_KNOWN = ("exact blocks", "F̃ (all blocks A ⊗ G)", "F̂ (tridiagonal inverse)")
DAMPING = 1e-8


def errors(F: np.ndarray, B: np.ndarray, sizes: Sequence[int], scaled: bool) -> tuple[float, float]:
    """Return ``||B - F|| / ||F||`` of the whole matrices, and of their diagonal blocks.

    With `scaled`, B is first multiplied by the number that brings it closest to F, separately for matrix and blocks.
    """
    ends = np.cumsum([0, *sizes])
    blocks = [(slice(a, b), slice(a, b)) for a, b in pairwise(ends)]

    def error(places: Sequence[Any]) -> float:
        FF, BB, FB = (sum(float(np.vdot(X[p], Y[p])) for p in places) for X, Y in ((F, F), (B, B), (F, B)))
        c = FB / BB if scaled else 1.0
        return float(np.sqrt(sum(float(np.sum((c * B[p] - F[p]) ** 2)) for p in places) / FF))

    return error([...]), error(blocks)


def measure(data: kr.datasets.Dataset, steps: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Train, and return the errors by name at each of `steps`, with the state of training."""
    model = classifier.untrained()
    sizes = [m * n for m, n in model.network.shapes]
    opt = kr.optimizers.KFAC(model, **PAPER_RULE)
    state = opt.init(model.init(np.random.default_rng(0)), seed=0)
    found: dict[str, Any] = {"whole": {n: [] for n in names}, "blocks": {n: [] for n in names}, "FOOF as it is": [],
                             "train_error": [], "train_loss": [], "norm_of_F": []}
    for k in range(max(steps) + 1):
        if k in steps:
            at = model.at(state.weights, data.x)
            F, targets = kr.fisher_matrix(at), at.sample(np.random.default_rng(k))
            for name in names:
                B = family.FAMILY[name](at, DAMPING, targets).dense()
                whole, blocks = errors(F, B, sizes, scaled=name == FOOF)
                found["whole"][name].append(whole)
                found["blocks"][name].append(blocks)
                if name == FOOF:
                    found["FOOF as it is"].append(errors(F, B, sizes, scaled=False)[0])
            found["train_error"].append(at.error(data.labels))
            found["train_loss"].append(float(np.mean(model.likelihood.nll(at.z, data.labels))))
            found["norm_of_F"].append(float(np.linalg.norm(F)))
        if k < max(steps):
            state, _ = opt.step(state, data.x, data.labels)
    return found


def caption(found: dict[str, Any], steps: Sequence[int], cases: int) -> str:
    """Return the caption."""
    def course(part: str, name: str) -> str:
        values = found[part][name]
        return f"{values[0]:.2f} at the start, {values[-1]:.2f} after {steps[-1]} steps"

    blocks = {name: values for name, values in found["blocks"].items() if name not in BLOCKS_KNOWN}
    mean = {name: float(np.mean(values)) for name, values in blocks.items()}
    ranked = ", ".join(f"{name} {mean[name]:.2f}" for name in sorted(mean, key=lambda name: mean[name]))
    sampled = [v / w for v, w in zip(blocks["A ⊗ G, sampled"], blocks["F̆ (factored damping)"], strict=True)]
    k = int(np.argmax(sampled))
    return (f"Relative Frobenius error against the exact Fisher along one K-FAC run, over {cases} cases. F̃ is off by "
            f"{course('whole', 'F̃ (all blocks A ⊗ G)')}; the exact diagonal blocks without the rest by "
            f"{course('whole', 'exact blocks')}; F̆ by {course('whole', 'F̆ (factored damping)')}. On the "
            f"blocks alone A ⊗ G is off by {course('blocks', 'F̆ (factored damping)')}; means over the run: "
            f"{ranked}. One sampled target a case (a single draw) costs most after {steps[k]} steps: there "
            f"{sampled[k]:.1f} times the error of A ⊗ G. Wrong labels at the end: "
            f"{100 * found['train_error'][-1]:.1f}%.")


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Train and measure, write picture and numbers to `out`; return 0."""
    data = kr.datasets.digits()
    steps = (0, 1) if quick else STEPS
    names = [name for name in family.FAMILY if name not in LEFT_OUT]
    if quick:
        data = kr.datasets.Dataset(data.x[:50], data.labels[:50], data.x_test, data.labels_test)
        names = [name for name in names if name not in ("Shampoo (roots)", "F̂ (tridiagonal inverse)", "EKFAC")]
    found = measure(data, steps, names)
    x, text = np.array(steps, dtype=float), caption(found, steps, len(data.x))
    label = {name: f"{name}, times the best number" if name == FOOF else name for name in names}
    error = "relative Frobenius error"
    figure = plotting.with_one_legend([
        plotting.Panel("the whole matrix", "steps of K-FAC", error,
                       {label[name]: (x, np.array(found["whole"][name])) for name in names}, "symlog", "log"),
        plotting.Panel("its diagonal blocks alone", "steps of K-FAC", error,
                       {label[name]: (x, np.array(found["blocks"][name])) for name in names
                        if name not in BLOCKS_KNOWN}, "symlog", "log")],
        plotting.Panel("", "steps of K-FAC", "training: error and loss",
                       {"rate of wrong labels": (x, np.array(found["train_error"])),
                        "loss (nats a case)": (x, np.array(found["train_loss"]))}, "symlog", "linear"), text)
    for axes in figure.axes[:3]:
        axes.set_xticks(steps, [str(k) for k in steps])
        axes.minorticks_off()
    script.save(figure, {"cases": len(data.x), "damping": DAMPING, "steps": steps, **found},
                out / "error_over_training", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
