"""F̃ compared with F̆ (block-diagonal) and F̂ (block-tridiagonal inverse): the paper's figures 5 and 6.

    python figures/tridiagonal.py [--quick] [--pdf] [--out DIR]

The two approximations that K-FAC can invert, beside the matrix that they approximate, for the middle four layers of the
network of ``fisher_approximation.py``. All three have the same factored damping of their diagonal factors and use only
the factors of these layers. So F̆ has the diagonal blocks of F̃, F̂ its tridiagonal blocks, and an inverse is
that of a matrix of these layers (not a part of the inverse of a larger matrix). The upper row is the paper's figure 5,
the lower row its figure 6. The JSON has, for several dampings, the relative Frobenius errors of the matrices and of
their inverses, in total and at each distance from the diagonal; the range of the eigenvalues of C^-1 F̃ for each C
(all are 1 if C is exact; they judge the matrix and its inverse alike); and the angle between C^-1 grad h and
F̃^-1 grad h. Writes ``tridiagonal.png`` and ``tridiagonal.json``. Takes about fifteen seconds.
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

HERE = Path(__file__).parent / "tridiagonal"
#: gamma in the picture, and in the JSON; it is 1 at this step of the run.
SHOWN, GAMMAS = 0.01, (1.0, 0.1, 0.01, 0.001)
STRUCTURES = {"F_breve": kr.curvature.BlockDiagonal, "F_hat": kr.curvature.BlockTridiagonal}


def errors_by_offset(B: np.ndarray, M: np.ndarray, block_sizes: Sequence[int]) -> list[float]:
    """Return the relative error of B for M, separately for the blocks at each distance ``|i - j|``."""
    wrong, right, k = blocks.norms(B - M, block_sizes), blocks.norms(M, block_sizes), blocks.offsets(len(block_sizes))
    return [float(np.linalg.norm(wrong[k == d]) / np.linalg.norm(right[k == d])) for d in range(len(block_sizes))]


def compare(C: np.ndarray, C_inverse: np.ndarray, F_tilde: np.ndarray, inverse: np.ndarray, grad: np.ndarray,
            sizes: Sequence[int]) -> dict[str, Any]:
    """Compare a matrix C and its inverse with F̃ and its inverse."""
    eigenvalues = scipy.linalg.eigh(F_tilde, C, eigvals_only=True)
    step, wanted = C_inverse @ grad, inverse @ grad
    cosine = float(step @ wanted / (np.linalg.norm(step) * np.linalg.norm(wanted)))
    return {"error": float(np.linalg.norm(C - F_tilde) / np.linalg.norm(F_tilde)),
            "error_by_offset": errors_by_offset(C, F_tilde, sizes),
            "inverse_error": float(np.linalg.norm(C_inverse - inverse) / np.linalg.norm(inverse)),
            "inverse_error_by_offset": errors_by_offset(C_inverse, inverse, sizes),
            "least_eigenvalue": float(eigenvalues[0]), "largest_eigenvalue": float(eigenvalues[-1]),
            "step_degrees": float(np.degrees(np.arccos(min(cosine, 1.0))))}


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Train, build the three matrices and their inverses, and write picture and numbers to `out`; return 0."""
    data_name, at, data = middle_layers.point(width=5 if quick else 20, examples=200 if quick else None)
    sizes, fac = middle_layers.sizes(at.model), middle_layers.middle_factors(at)
    layers = list(middle_layers.middle(at.model))
    grad = kr.params.flatten(at.gradient(data.labels)[layers[0]:layers[-1] + 1])
    sweep = []
    for gamma in (SHOWN,) if quick else GAMMAS:
        full = kr.curvature.Full(middle_layers.damped(fac, gamma))
        F_tilde, inverse = full.dense(), full.inverse_dense()
        dense, inverses = {}, {}
        for name, structure in STRUCTURES.items():
            C = structure(fac, gamma**2)
            dense[name], inverses[name] = C.dense(), C.inverse_dense()
        norms = blocks.norms(inverse, sizes)
        sweep.append({"gamma": gamma,
                      "inverse_off_diagonal_share": float(np.linalg.norm(norms - np.diag(np.diag(norms)))
                                                          / np.linalg.norm(norms)),
                      **{name: compare(dense[name], inverses[name], F_tilde, inverse, grad, sizes) for name in dense}})
        if gamma == SHOWN:
            rows = {"matrix": panels("{}", F_tilde, dense), "inverse": panels("{}^-1", inverse, inverses)}
            shown = sweep[-1]
    breve, hat = shown["F_breve"], shown["F_hat"]
    far = [(row["gamma"], row["F_hat"]["error_by_offset"][2:]) for row in sweep if row["gamma"] != SHOWN]
    at_others = "".join(f"; {', '.join(f'{100 * e:.0f}%' for e in errors)} at gamma = {gamma:g}"
                        for gamma, errors in far)
    text = ("Above F̃, F̆ (its diagonal blocks alone) and F̂ (its diagonal blocks and those beside them; what "
            "is further off is such that the inverse is block-tridiagonal), below their inverses. Middle layers of "
            f"{'-'.join(map(str, at.model.network.sizes))} (tanh), {data_name}, 7 full-batch steps of K-FAC after a "
            f"sparse start, factored damping gamma = {SHOWN:g}. In relative Frobenius norm F̆ is off by "
            f"{100 * breve['error']:.0f}% and its inverse by {100 * breve['inverse_error']:.0f}%; F̂ by "
            f"{100 * hat['error']:.0f}% ({', '.join(f'{100 * e:.0f}%' for e in hat['error_by_offset'][2:])} in the "
            f"blocks at distance 2 and 3 from the diagonal{at_others}) and its inverse "
            f"by {100 * hat['inverse_error']:.0f}%. That norm sees little but the large eigenvalues (the blocks off "
            f"the diagonal hold {100 * shown['inverse_off_diagonal_share']:.0f}% of the inverse's). The eigenvalues of "
            f"F̆^-1 F̃ run from {breve['least_eigenvalue']:.2g} to {breve['largest_eigenvalue']:.2g}, of "
            f"F̂^-1 F̃ from {hat['least_eigenvalue']:.2g} to {hat['largest_eigenvalue']:.2g} (exact: 1). From "
            f"F̃^-1 grad h, the steps of the two are {breve['step_degrees']:.0f} and {hat['step_degrees']:.0f} degrees "
            "away. Darkest: below a ten-thousandth of the largest.")
    # A cell is 20 x 20 entries: the outgoing weights of two units.
    figure = plotting.matrix_rows(rows, sizes, text, [str(i) for i in layers], cells=84)
    numbers = {"data": data_name, "cases": len(at), "network": at.model.network.sizes, "layers": layers,
               "start": "sparse", "steps": 7, "seed": 0, "gamma": SHOWN,
               **{f"{name}_{key}": value for name in STRUCTURES for key, value in shown[name].items()}, "sweep": sweep}
    script.save(figure, numbers, out / "tridiagonal", formats, force)
    print(text)
    return 0


def panels(form: str, M: np.ndarray, others: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the matrices of one row by title: F̃, and each of the others with its difference from F̃."""
    wanted, breve, hat = (form.format(name) for name in ("F̃", "F̆", "F̂"))
    return {f"|{wanted}|": M, f"|{breve}|": others["F_breve"], f"|{wanted} - {breve}|": M - others["F_breve"],
            f"|{hat}|": others["F_hat"], f"|{wanted} - {hat}|": M - others["F_hat"]}


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
