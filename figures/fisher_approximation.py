"""The exact Fisher and its Kronecker-factored approximation, early in training (the paper's figure 2).

    python figures/fisher_approximation.py [--quick] [--pdf] [--out DIR]

|F|, |F̃| and |F - F̃| for the middle four layers of a tanh classifier 256-20-20-20-20-20-10 after seven steps of K-FAC
from a sparse start, on one colour scale. The JSON has the error of the whole matrix and of each block, the smallest
error that one Kronecker product per block can have, and both during training from sparse starts and from Glorot's. The
data are the package's digits, enlarged to 16 x 16 pixels, or MNIST if KFAC_REF_MNIST names the folder of its IDX files.
Writes ``fisher_approximation.png`` and ``fisher_approximation.json``. Takes about
fifteen seconds (MNIST: two minutes).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.experiments import blocks, middle_layers, script

HERE = Path(__file__).parent / "fisher_approximation"
SHOWN = 7       # steps


def best_kronecker(F: np.ndarray, fac: kr.Factors) -> np.ndarray:
    """Return the error that no choice of one Kronecker product per block can avoid, block by block, (L, L).

    These are Frobenius norms: the root of the sum of squares of all but the first singular value of each rearranged
    block of the exact Fisher F. Of `fac` only the shapes are used.
    """
    L = len(fac)
    parts = blocks.split(F, [len(A) * len(G) for A, G in fac.layers])
    found = np.zeros((L, L))
    for i in range(L):
        for j in range(i, L):
            R = kr.kronecker.rearrange(parts[i][j], (len(fac.A[i]), len(fac.A[j])), (len(fac.G[i]), len(fac.G[j])))
            found[i, j] = found[j, i] = np.linalg.norm(scipy.linalg.svdvals(R)[1:])
    return found


def bias_norm(M: np.ndarray, fac: kr.Factors) -> float:
    """Return the Frobenius norm of the entries of M between two biases; of `fac` only the shapes are used.

    The input of a bias is always 1 and has no covariance with anything, so F̃ has these entries of F exactly.
    """
    ends = np.cumsum([len(A) * len(G) for A, G in fac.layers])
    biases = np.concatenate([np.arange(end - len(G), end) for end, (_, G) in zip(ends, fac.layers, strict=True)])
    return float(np.linalg.norm(M[np.ix_(biases, biases)]))


def errors(at: kr.Point) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return F, F̃ and the relative errors of F̃, for the whole matrix and by block."""
    sizes = middle_layers.sizes(at.model)
    F, fac = middle_layers.middle_fisher(at), middle_layers.middle_factors(at)
    F_tilde = kr.curvature.Full(fac).dense()
    norms = blocks.norms(F, sizes)
    wrong, least = blocks.norms(F_tilde - F, sizes), best_kronecker(F, fac)
    whole = np.linalg.norm(norms)
    bias = bias_norm(F_tilde - F, fac) / bias_norm(F, fac)
    return F, F_tilde, {
        "error": float(np.linalg.norm(wrong) / whole), "error_best_kronecker": float(np.linalg.norm(least) / whole),
        "bias_error": bias,
        "diagonal_errors": np.diag(wrong / norms).tolist(), "diagonal_errors_best": np.diag(least / norms).tolist(),
        "block_errors": (wrong / norms).tolist(), "block_errors_best": (least / norms).tolist()}


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Train, compare, and write picture and numbers to `out`; return 0."""
    data_name, data = middle_layers.images(200 if quick else None)
    model = middle_layers.untrained(5 if quick else 20)
    steps, seeds = (0, SHOWN) if quick else (0, SHOWN, 20, 100), (0,) if quick else (0, 1, 2)
    along: dict[str, dict[str, Any]] = {}
    for scheme in ("sparse", "glorot"):
        rows = []
        for seed in seeds:
            for k, weights in middle_layers.trained(model, data, scheme, steps, seed).items():
                at = model.at(weights, data.x)
                F, F_tilde, found = errors(at)
                rows.append((found["error"], found["error_best_kronecker"], at.error(data.labels)))
                if (scheme, seed, k) == ("sparse", 0, SHOWN):
                    picture, shown = (F, F_tilde), found
        # One row per seed, one column per number of steps.
        error, best, wrong = (np.reshape(column, (len(seeds), len(steps))) for column in zip(*rows, strict=True))
        along[scheme] = {"error": error, "error_best_kronecker": best, "wrong_labels": wrong,
                         "error_median": np.median(error, axis=0)}
    at_shown = along["sparse"]["error"][:, steps.index(SHOWN)]
    path = {scheme: ", ".join(f"{100 * e:.0f}%" for e in run["error_median"]) for scheme, run in along.items()}
    low, high = min(shown["diagonal_errors"]), max(shown["diagonal_errors"])
    low_best, high_best = min(shown["diagonal_errors_best"]), max(shown["diagonal_errors_best"])
    text = (f"The exact Fisher F of the middle layers of {'-'.join(map(str, model.network.sizes))} (tanh), "
            f"{data_name}, {SHOWN} full-batch steps of K-FAC after a sparse start; F̃ has a Kronecker product in each "
            f"block. In relative Frobenius norm F̃ is off by {100 * shown['error']:.0f}% here "
            f"(seeds {', '.join(map(str, seeds))}: {', '.join(f'{100 * e:.0f}%' for e in at_shown)}), its diagonal "
            f"blocks by {100 * low:.0f}% to {100 * high:.0f}%. With the nearest Kronecker product in each block it "
            f"would be {100 * shown['error_best_kronecker']:.0f}%, the diagonal blocks {100 * low_best:.0f}% to "
            f"{100 * high_best:.0f}%. Between two biases (the last cells of each block) F̃ is off by "
            f"{shown['bias_error']:.0e}: their inputs are constant. After {', '.join(map(str, steps))} steps the "
            f"median error of F̃ is {path['sparse']} from sparse starts, {path['glorot']} from Glorot's.")
    layers = list(middle_layers.middle(model))
    titles = ("|F|, exact", "|F̃|, Kronecker-factored", "|F - F̃|")
    figure = plotting.matrix_rows({f"after {SHOWN} steps": dict(zip(titles, (*picture, picture[0] - picture[1]),
                                                                    strict=True))},
                                  middle_layers.sizes(model), text, [str(i) for i in layers], decades=3)
    numbers = {"data": data_name, "cases": len(data.x), "network": model.network.sizes, "layers": layers,
               "start": "sparse", "steps": SHOWN, "seed": 0, **shown,
               "along_training": {"steps": steps, "seeds": seeds, **along}}
    script.save(figure, numbers, out / "fisher_approximation", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
