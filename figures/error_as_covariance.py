"""The error of the Kronecker approximation is a covariance: one layer's block, rearranged (not in the paper).

    python figures/error_as_covariance.py [--quick] [--pdf] [--out DIR]

With Alpha = a a^T for the inputs a of a layer (the 1 of the bias included) and Gamma = g g^T for its gradients, both
random over the examples and over y ~ model, and R the rearrangement of Van Loan and Pitsianis::

    R(F_ii) = E[vec(Gamma) vec(Alpha)^T]        R(A ⊗ G) = E[vec Gamma] E[vec Alpha]^T
    their difference = Cov(vec Gamma, vec Alpha)

The upper row shows these three matrices for one hidden layer of the digits classifier on one colour scale; the second
has rank one. Each pair of units is drawn once (both matrices are symmetric): squares first, then products, sorted by
their means. The lower row shows the singular values (no Kronecker product can reproduce those of R(F_ii) after the
first) and the error split into the cumulants of fourth and third order of the paper's sec. 3, eq. (3). The script
verifies, up to rounding, that the difference is the covariance and the sum of the cumulants; the residuals are printed
and stored. Writes ``error_as_covariance.png`` and ``error_as_covariance.json``. Takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.analysis import covariance_error, cumulant_terms
from kfac_ref.experiments import classifier, script
from kfac_ref.experiments.settings import PAPER_RULE

HERE = Path(__file__).parent / "error_as_covariance"


class Taken(NamedTuple):
    """A layer's block, rearranged and decomposed; norms are relative to that of F_ii, except where noted."""

    R_F: np.ndarray
    R_product: np.ndarray
    covariance: np.ndarray
    singular: np.ndarray                    # of R(F_ii)
    singular_error: np.ndarray              # of the covariance
    numbers: dict[str, float]


def take_apart(at: kr.Point, i: int) -> Taken:
    """Rearrange the block of layer i and verify both forms of its error."""
    m, n = at.model.network.shapes[i]
    A, G = kr.kronecker_factors(at).layers[i]
    F, product = kr.fisher_block(at, i, i), np.kron(A, G)       # formed only to verify the other form
    R_F, R_product = (kr.kronecker.rearrange(M, (n, n), (m, m)) for M in (F, product))
    covariance = covariance_error(at, i)
    terms = cumulant_terms(at, i)
    norm, error = np.linalg.norm(F), np.linalg.norm(covariance)
    singular, singular_error = scipy.linalg.svdvals(R_F), scipy.linalg.svdvals(covariance)
    # vec of a symmetric matrix has only as many distinct entries as its upper triangle; the later values are zero.
    rank = min(m * (m + 1), n * (n + 1)) // 2
    numbers = {
        "residual_of_the_covariance": np.linalg.norm(R_F - R_product - covariance) / norm,
        "residual_of_the_cumulants": np.linalg.norm(sum(terms) - (F - product)) / norm,
        "error_of_A_kron_G": error / norm,
        "error_of_the_best_product": np.linalg.norm(singular[1:]) / norm,
        "leading_singular_value": singular[0] / norm,
        # Columns of Alpha that are products with the 1 of the bias; the last is 1 * 1 and has no covariance.
        "share_of_bias_columns": float(np.sum(_with_bias(covariance, n) ** 2) / error**2),
    }
    for name, term in zip(terms._fields, terms, strict=True):
        numbers[f"norm_of_{name}"] = np.linalg.norm(term) / error
        numbers[f"share_of_{name}"] = np.sum(term * (F - product)) / error**2
    return Taken(R_F, R_product, covariance, singular[:rank] / norm, singular_error[:rank] / norm,
                 {key: float(value) for key, value in numbers.items()})


def _with_bias(R: np.ndarray, n: int) -> np.ndarray:
    columns = np.arange(n * n).reshape(n, n)
    return R[:, np.union1d(columns[-1], columns[:, -1])]


def groups(mean: np.ndarray, unit: str, bias: bool) -> dict[str, np.ndarray]:
    """Return positions in the vec of a symmetric matrix: each pair once, in groups, sorted by mean within a group."""
    n = len(mean)
    upper = [(p, q) for q in range(n) for p in range(q + 1)]
    units = range(n - 1 if bias else n)
    found = {f"{unit}²": [(p, q) for p, q in upper if p == q and p in units],
             f"{unit} {unit}′": [(p, q) for p, q in upper if p != q and q in units]}
    if bias:
        found = {f"{unit}·1": [(p, n - 1) for p in range(n)], **found}          # the last is 1 * 1, the bias squared
    return {name: np.array([q * n + p for p, q in sorted(pairs, key=lambda pq: mean[pq])], dtype=int)
            for name, pairs in found.items()}


def classifier_after(steps: int, cases: int | None) -> kr.Point:
    """Return the digits classifier at the training examples after some steps of K-FAC."""
    data = kr.datasets.digits()
    model = classifier.untrained()
    opt = kr.optimizers.KFAC(model, **PAPER_RULE)
    state = opt.init(model.init(np.random.default_rng(0)), seed=0)
    for _ in range(steps):
        state, _ = opt.step(state, data.x[:cases], data.labels[:cases])
    return model.at(state.weights, data.x[:cases])


def caption(numbers: dict[str, float], i: int, steps: int, cases: int) -> str:
    """Return the caption."""
    k = numbers
    third = k["share_of_first_mean"] + k["share_of_second_mean"]
    return ("A block of the exact Fisher and its approximation, rearranged: R(.) orders the entries of a block so that "
            "a row belongs to a pair of gradients g and a column to a pair of inputs a, and A ⊗ G has rank one. Each "
            "pair is drawn once, grouped as marked and sorted in a group by its mean (that is, by the entries of G and "
            f"A). Digits classifier 64-20-20-20-10 (tanh), layer {i} (20 x 21) after {steps} steps of K-FAC, {cases} "
            "cases. R(F_ii) - R(A ⊗ G) is the covariance of vec Gamma and vec Alpha (verified: residual "
            f"{k['residual_of_the_covariance']:.0e} of ||F_ii||). A ⊗ G is "
            f"off by {100 * k['error_of_A_kron_G']:.1f}% of ||F_ii||; the best Kronecker product, the leading singular "
            f"triple, leaves {100 * k['error_of_the_best_product']:.1f}%: that much no choice of A and G can remove. "
            f"By the paper's eq. (3) the fourth-order cumulant makes {100 * k['share_of_fourth']:.0f}% of the error, "
            f"the two third-order terms, which are there because inputs have a mean, {100 * third:.0f}% (shares: "
            "projections onto the error; verified: the three terms add up to the error, residual "
            f"{k['residual_of_the_cumulants']:.0e} of ||F_ii||). Products with the bias's 1, 41 of the 441 columns, "
            f"hold {100 * k['share_of_bias_columns']:.0f}% of the squared error.")


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Decompose one block, write picture and numbers (of all layers but the first, twice) to `out`; return 0."""
    i, shown, cases = 2, 10, 100 if quick else None
    numbers, drawn = {}, None
    for steps in (shown,) if quick else (shown, 200):
        at = classifier_after(steps, cases)
        for j in (i,) if quick else (1, 2, 3):                  # the first layer has 64 inputs and would take longest
            taken = take_apart(at, j)
            numbers[f"layer {j} after {steps} steps"] = taken.numbers
            if (j, steps) == (i, shown):
                drawn = taken, at
    taken, at = drawn
    A, G = kr.kronecker_factors(at).layers[i]
    rows, columns = groups(G, "g", bias=False), groups(A, "a", bias=True)
    order = np.ix_(np.concatenate(list(rows.values())), np.concatenate(list(columns.values())))
    k = taken.numbers
    text = caption(k, i, shown, len(at))
    figure = plotting.error_as_covariance(
        {"R(F_ii) = E[vec Gamma vec Alphaᵀ]": taken.R_F[order], "R(A ⊗ G) = E[vec Gamma] E[vec Alpha]ᵀ":
         taken.R_product[order], "difference = Cov(vec Gamma, vec Alpha)": taken.covariance[order]},
        {name: len(v) for name, v in rows.items()}, {name: len(v) for name, v in columns.items()},
        {"R(F_ii)": (taken.singular, f"the first is {k['leading_singular_value']:.3f},\nthe rest together "
                     f"{k['error_of_the_best_product']:.3f}: error of the best product"),
         "Cov(vec Gamma, vec Alpha)": (taken.singular_error,
                                       f"together\n{k['error_of_A_kron_G']:.3f}: error of A ⊗ G")},
        {"4th order:\nκ(a, a′, g, g′)": (k["norm_of_fourth"], k["share_of_fourth"]),
         "3rd order:\nE[a] κ(a′, g, g′)": (k["norm_of_first_mean"], k["share_of_first_mean"]),
         "3rd order:\nE[a′] κ(a, g, g′)": (k["norm_of_second_mean"], k["share_of_second_mean"])}, text)
    script.save(figure, {"layer": i, "steps": shown, "cases": len(at), "shown": k, "blocks": numbers},
                out / "error_as_covariance", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
