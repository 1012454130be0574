"""The digits classifier: the exact Fisher against its Kronecker-factored approximations.

64-20-20-20-10, tanh, Categorical, at three points of a training: F against F̃ (all blocks Kronecker-factored), F̆
(only the diagonal ones) and the rest of the family, as a whole; layer by layer against A ⊗ G and the best Kronecker
product; and the error budget of a step of K-FAC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from matplotlib.figure import Figure

from .. import curvature, factors, kronecker, plotting
from ..analysis import Judgement, error_budget
from ..checks import Array, Direction
from ..datasets import Dataset
from ..fisher import fisher_matrix
from ..likelihoods import Categorical
from ..model import Model
from ..network import MLP
from ..optimizers import KFAC
from .family import FAMILY, frobenius_errors
from .settings import PAPER_RULE


def untrained() -> Model:
    """Return the digits classifier 64-20-20-20-10."""
    return Model(MLP((64, 20, 20, 20, 10), "tanh"), Categorical(), weight_decay=1e-5)


@dataclass(frozen=True, eq=False)
class Stage:
    """The exact Fisher of the classifier and its approximations at one point of the training."""

    name: str                   # when
    F: Array                    # exact, (P, P)
    F_tilde: Array              # all blocks Kronecker-factored
    F_breve: Array              # only the diagonal ones
    #: ``whole``: relative Frobenius errors of F̃ and F̆. ``blocks``: for each layer, that of A ⊗ G and the best
    #: that any Kronecker product could reach. ``family``: relative errors of the whole family. ``train_error``: the
    #: rate of wrong labels.
    errors: dict[str, Any]


def stage(name: str, model: Model, weights: Direction, data: Dataset, examples: int | None = None) -> Stage:
    """Compare the exact Fisher at some weights with F̃ and F̆, undamped, over the training examples (default: all)."""
    at = model.at(weights, data.x[:examples])
    fac = factors.kronecker_factors(at, reach=math.inf)
    F = fisher_matrix(at)
    F_tilde, F_breve = (structure(fac).dense() for structure in (curvature.Full, curvature.BlockDiagonal))
    blocks, start = [], 0
    for m, n in model.network.shapes:
        rows = slice(start, start := start + m * n)
        best = kronecker.rearrange(F[rows, rows], (n, n), (m, m))
        singular = scipy.linalg.svdvals(best)
        blocks.append({"kronecker_factored": relative_error(F_tilde[rows, rows], F[rows, rows]),
                       "best_kronecker": float(np.linalg.norm(singular[1:]) / np.linalg.norm(singular))})
    whole = {"F_tilde": relative_error(F_tilde, F), "F_breve": relative_error(F_breve, F)}
    names = [name for name in FAMILY if name != "exact F"]
    errors = {"whole": whole, "blocks": blocks, "train_error": at.error(data.labels[:examples]),
              "family": frobenius_errors(at, at.sample(np.random.default_rng(0)), F, names)}
    return Stage(name, F, F_tilde, F_breve, errors)


def relative_error(B: Array, F: Array) -> float:
    """Return ``||B - F|| / ||F||`` in the Frobenius norm."""
    return float(np.linalg.norm(B - F) / np.linalg.norm(F))


def stages(data: Dataset, seed: int = 0, steps: tuple[int, int] = (10, 200),
           examples: int | None = None) -> list[Stage]:
    """Train the classifier with K-FAC on all examples and compare at the start, after a few steps, and at the end."""
    model = untrained()
    opt = KFAC(model, **PAPER_RULE)
    state = opt.init(model.init(np.random.default_rng(seed)), seed)
    found = [stage("at the start", model, state.weights, data, examples)]
    for k in range(1, steps[1] + 1):
        state, _ = opt.step(state, data.x, data.labels)
        if k in steps:
            found.append(stage(f"after {k} steps", model, state.weights, data, examples))
    return found


class Budget(NamedTuple):
    """The error budget of one step of K-FAC: which step, lambda + eta and gamma there, and the judgements."""

    step: int
    damping: float
    gamma: float
    judgements: list[Judgement]


def budget(data: Dataset, seed: int = 0, step: int = 58, examples: int | None = None) -> Budget:
    """Return the error budget of one step of K-FAC, with the averaged and stale factors that it really uses.

    At step 58, with the usual periods, gamma has been adapted twice and the inverses are 18 steps old. `examples`
    limits the training set (default: all).
    """
    model = untrained()
    opt = KFAC(model, **PAPER_RULE)
    state = opt.init(model.init(np.random.default_rng(seed)), seed)
    x, y = data.x[:examples], data.labels[:examples]
    for _ in range(step - 1):
        state, _ = opt.step(state, x, y)
    detail = opt.explain(state, x, y)
    in_use = detail.chosen.curvature
    assert isinstance(in_use, curvature.BlockDiagonal)
    targets = detail.at.sample(np.random.default_rng(seed))
    damping, gamma = detail.record.lambda_ + model.weight_decay, detail.chosen.gamma
    return Budget(step, damping, gamma, error_budget(detail.at, y, damping, targets, in_use.factors, gamma))


def fisher_table(found: Sequence[Stage]) -> list[list[str]]:
    """Return the rows of the second table: relative Frobenius errors of the family, and of A ⊗ G block by block."""
    rows = [["relative error against the exact Fisher", *(s.name for s in found)]]
    rows += [[name, *(f"{s.errors['family'][name]:.3f}" for s in found)] for name in found[0].errors["family"]]
    for i in range(len(found[0].errors["blocks"])):
        blocks = [s.errors["blocks"][i] for s in found]
        rows.append([f"block of layer {i}: A ⊗ G (best)",
                     *(f"{b['kronecker_factored']:.3f} ({b['best_kronecker']:.3f})" for b in blocks)])
    return [*rows, ["wrong labels", *(f"{100 * s.errors['train_error']:.1f}%" for s in found)]]


def budget_table(found: Budget) -> list[list[str]]:
    """Return the rows of the third table: the error budget."""
    head = ["error budget of a step", "error", "change", "angle", "length", "decrease of M"]
    return [head, *([j.name, f"{j.error:.3f}", "" if math.isnan(j.change) else f"{j.change:.3f}",
                     f"{j.angle:.1f} deg", f"{j.length:.2f}", f"{100 * j.decrease:.1f}%"] for j in found.judgements)]


def budget_figure(found: Budget) -> Figure:
    """Draw the error budget, with the costliest step in the caption."""
    judgements = found.judgements
    losses = {j.name: before.decrease - j.decrease for before, j in pairwise(judgements)}
    worst = max(losses, key=lambda name: losses[name])
    last = judgements[-1]
    text = (f"Digits classifier, step {found.step} of K-FAC (lambda + eta = {found.damping:.2g}, gamma = "
            f"{found.gamma:.2g}): from the exact damped Fisher to the matrix that the optimizer solves with, one "
            "approximation on top of the other. At the end the matrix is off by "
            f"{100 * last.error:.0f}% and the step by {last.angle:.0f} degrees, yet rescaled it gives "
            f"{100 * last.decrease:.0f}% of the decrease of the natural gradient; the costliest single step is "
            f"'{worst}', with {100 * losses[worst]:.0f} points.")
    return plotting.error_budget([j.name for j in judgements], [j.error for j in judgements],
                                 [j.angle for j in judgements], [j.decrease for j in judgements], text)


def fisher_figure(found: Sequence[Stage]) -> Figure:
    """Draw ``|F|``, ``|F̃|`` and their difference at each stage, with the errors in the caption."""
    sizes = [m * n for m, n in untrained().network.shapes]
    parts = [f"{s.name} F̃ is off by {100 * s.errors['whole']['F_tilde']:.0f}%, and by "
             f"{100 * s.errors['whole']['F_breve']:.0f}% if only its diagonal blocks are kept" for s in found]
    text = ("Digits classifier 64-20-20-20-10 (tanh): the exact Fisher and its Kronecker-factored approximation, layer "
            "blocks marked, one colour scale per row (dark stripes: pixels that are nearly always 0). In relative "
            f"Frobenius norm, {'; '.join(parts)}.")
    return plotting.fisher_rows({s.name: (s.F, s.F_tilde) for s in found}, sizes, text)
