"""The inverse of the approximate Fisher is almost block-tridiagonal, the matrix itself is not (the paper's figure 3).

    python figures/inverse_structure.py [--quick] [--pdf] [--out DIR]

F̃, its inverse and the mean absolute entry of each block of the inverse, for the middle four layers of the network of
``fisher_approximation.py``, at two dampings. The damping is factored (sec. 6.3) and only in the diagonal factors; the
inverse is that of the part of F̃ that belongs to these layers. The JSON has, for a range of dampings, the mean |entry|
at each distance from the diagonal, for F̃, its inverse, and the inverse of the exact Fisher with the same term added.
Writes ``inverse_structure.png`` and ``inverse_structure.json``. Takes about ten seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.experiments import blocks, middle_layers, script
from kfac_ref.kronecker import Cholesky

HERE = Path(__file__).parent / "inverse_structure"
#: gamma in the picture and in the JSON; it is 1 at this step of the run.
SHOWN, GAMMAS = (1.0, 0.01), (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def by_offset(M: np.ndarray, sizes: Sequence[int]) -> list[float]:
    """Return the mean |entry| of the blocks at each distance from the diagonal, relative to that on the diagonal."""
    means, k = blocks.means(M, sizes), blocks.offsets(len(sizes))
    return [float(means[k == d].mean() / means[k == 0].mean()) for d in range(len(sizes))]


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Train, invert, and write picture and numbers to `out`; return 0."""
    data_name, at, _ = middle_layers.point(width=5 if quick else 20, examples=200 if quick else None)
    sizes, fac = middle_layers.sizes(at.model), middle_layers.middle_factors(at)
    F, undamped = middle_layers.middle_fisher(at), kr.curvature.Full(fac).dense()
    rows, sweep = {}, []
    others: list[dict[str, float]] = []
    for gamma in SHOWN if quick else GAMMAS:
        F_tilde = kr.curvature.Full(middle_layers.damped(fac, gamma)).dense()
        inverse = Cholesky.factor(F_tilde).inverse()
        exact_inverse = Cholesky.factor(F + (F_tilde - undamped)).inverse()
        sweep.append({"gamma": gamma, "tridiagonal_ratio": blocks.tridiagonal_ratio(inverse, sizes),
                      "tridiagonal_ratio_F_tilde": blocks.tridiagonal_ratio(F_tilde, sizes),
                      "tridiagonal_ratio_exact": blocks.tridiagonal_ratio(exact_inverse, sizes),
                      "by_offset": by_offset(inverse, sizes), "by_offset_F_tilde": by_offset(F_tilde, sizes),
                      "by_offset_exact": by_offset(exact_inverse, sizes),
                      "block_means": blocks.means(inverse, sizes)})
        if gamma in SHOWN:
            rows[f"gamma = {gamma:g}"] = (F_tilde, inverse, sweep[-1]["block_means"])
    for seed in () if quick else (1, 2):
        at_seed = middle_layers.point(seed=seed)[1]
        factors = middle_layers.middle_factors(at_seed)
        for gamma in SHOWN:
            full = kr.curvature.Full(middle_layers.damped(factors, gamma))
            others.append({"seed": seed, "gamma": gamma,
                           "tridiagonal_ratio": blocks.tridiagonal_ratio(full.inverse_dense(), sizes),
                           "tridiagonal_ratio_F_tilde": blocks.tridiagonal_ratio(full.dense(), sizes)})
    ratios = [next(row for row in sweep if row["gamma"] == gamma) for gamma in SHOWN]
    told = [f"at gamma = {row['gamma']:g}: {row['tridiagonal_ratio_F_tilde']:.2f} in F̃, "
            f"{row['tridiagonal_ratio']:.2f} in its inverse ({row['tridiagonal_ratio_exact']:.2f} in that of the exact "
            "F with the same term added)" for row in ratios]
    elsewhere = [f"{row['tridiagonal_ratio_F_tilde']:.2f} and {row['tridiagonal_ratio']:.2f}" for row in others
                 if row["gamma"] == SHOWN[-1]]
    text = (f"F̃ of the middle layers of {'-'.join(map(str, at.model.network.sizes))} (tanh), {data_name}, 7 "
            "full-batch steps of K-FAC after a sparse start, with factored Tikhonov damping of its diagonal factors, "
            "and its inverse. Mean |entry| of the blocks beside the diagonal over that of the blocks further off (1: "
            f"no sign of a tridiagonal pattern), {'; '.join(told)}. Over dampings from {sweep[0]['gamma']:g} to "
            f"{sweep[-1]['gamma']:g} the ratio in the inverse is between "
            f"{min(row['tridiagonal_ratio'] for row in sweep):.2f} and "
            f"{max(row['tridiagonal_ratio'] for row in sweep):.2f}"
            + (f"; F̃ and inverse with two other seeds at gamma = {SHOWN[-1]:g}: {', '.join(elsewhere)}." if others
               else "."))
    layers = list(middle_layers.middle(at.model))
    # A cell is 20 x 20 entries: the outgoing weights of two units.
    figure = plotting.block_structure(rows, sizes, text, [str(i) for i in layers], cells=84)
    numbers: dict[str, Any] = {"data": data_name, "cases": len(at), "network": at.model.network.sizes, "layers": layers,
               "start": "sparse", "steps": 7, "seed": 0, "sweep": sweep, "other_seeds": others}
    for row in ratios:
        numbers[f"tridiagonal_ratio_at_{row['gamma']:g}"] = row["tridiagonal_ratio"]
    script.save(figure, numbers, out / "inverse_structure", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
