"""What implementations compute under the name K-FAC: one entry for each implementation that was run.

A scale is theirs over ours, for a loss that is a mean over examples (see `loss`). tests/peers measured the facts on the
date given, in float64; "measured elsewhere" means by hand, without a test here. Facts that were only read in source
code are left out.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from .dialect import ONE, Dialect, Scale, scales
from .problem import LIKELIHOODS

RAN = "2026-11-25"
ELSEWHERE = "measured elsewhere"

INVERSE_N = Scale("1/N", lambda N, C, M: 1 / N)
INVERSE_N_SQUARED = Scale("1/N^2", lambda N, C, M: N**-2)
FOUR_OVER_N = Scale("4/N", lambda N, C, M: 4 / N)
INVERSE_C = Scale("1/C", lambda N, C, M: 1 / C)
TWO_OVER_C = Scale("2/C", lambda N, C, M: 2 / C)
FOUR_OVER_C = Scale("4/C", lambda N, C, M: 4 / C)
TWO = Scale("2", lambda N, C, M: 2.0)
FOUR = Scale("4", lambda N, C, M: 4.0)
INVERSE_M = Scale("1/M", lambda N, C, M: 1 / M)
ROOT_C = Scale("sqrt(C)", lambda N, C, M: C**0.5)
ROOT_C_1 = Scale("sqrt(C-1)", lambda N, C, M: (C - 1)**0.5)
ROOT_M = Scale("sqrt(M)", lambda N, C, M: M**0.5)
INVERSE_ROOT_C = Scale("1/sqrt(C)", lambda N, C, M: C**-0.5)
INVERSE_ROOT_C_1 = Scale("1/sqrt(C-1)", lambda N, C, M: (C - 1)**-0.5)
INVERSE_ROOT_M = Scale("1/sqrt(M)", lambda N, C, M: M**-0.5)

#: The losses of torch, and what they average over.
TORCH = {"categorical": "CrossEntropyLoss: -log p, mean over examples",
         "gaussian": "MSELoss: |z - y|^2, mean over examples and outputs",
         "bernoulli": "BCEWithLogitsLoss: -log p, mean over examples and outputs"}
TORCH_SCALES = scales(categorical=ONE, gaussian=TWO_OVER_C, bernoulli=INVERSE_C)
PI = "A + pi sqrt(damping) I and G + sqrt(damping)/pi I, pi by traces as in the paper"

_CURVLINOPS = Dialect(
    name="curvlinops", version="3.0.1", ran=RAN, loss=TORCH,
    fisher="mc, one sample (default); type-2 (exact), empirical; forward-only (G = I)",
    where="op.state_dict()['input_covariances'][module name], ['gradient_covariances'][module name]; with "
          "check_deterministic=False after op.compute_kronecker_factors()",
    scale={"A": scales(categorical=ONE, gaussian=ONE, bernoulli=ONE), "G": TORCH_SCALES, "G_sampled": TORCH_SCALES,
           "gradient": TORCH_SCALES, "G_empirical": scales(categorical=ONE, gaussian=FOUR_OVER_C, bernoulli=INVERSE_C)},
    bias="joint-last", vec="rows of W, then b", average="none: a sum over the data set",
    damping=f"use_heuristic_damping=True: {PI}, each at least min_damping 1e-8; use_exact_damping=True: "
            "A (x) G + damping I; else damping on each factor",
    deviations=(
        "with separate_weight_and_bias=False, which is not the default",
        "the empirical G of MSELoss has twice the scale of the exact one: the labels enter gradients of |z - y|^2, as "
        "samples of a Gaussian of variance 1/2; 'empirical' needs the name of the likelihood",
        "the default check_deterministic=True already computes the factors: compute_kronecker_factors() adds them "
        "again, so A and G are doubled",
        "reduction='sum' multiplies G and the gradient by N (by N C if the mean is also over outputs), but not A",
        "the dictionary of gradient covariances is in the order of the backward pass: index it by name",
        "BCEWithLogitsLoss: type-2 raises NotImplementedError unless all targets are 0 or 1",
        "samples of a saturated softmax: the gradient p - 1 loses all digits if p rounds to 1"))

_RUN = (
    _CURVLINOPS,
    replace(
        _CURVLINOPS, name="curvlinops-separate", bias="separate",
        damping=f"use_heuristic_damping=True: {PI}, from A without the bias, and the same damped G for the bias; "
                "use_exact_damping=True: A (x) G + damping I, and G + damping I for the bias",
        deviations=("the default: W and b are two blocks, A (x) G and G, so the step differs from that of the joint "
                    "block", *_CURVLINOPS.deviations[1:])),
    Dialect(
        name="backpack", version="1.7.1", ran=RAN, loss={k: TORCH[k] for k in ("categorical", "gaussian")},
        fisher="KFLR: exact; KFAC: samples of the model, one by default; KFRA: its recursion",
        where="layer.weight.kflr (kfac, kfra) = [G, A]; layer.bias.kflr = [G]",
        scale={"A": scales(categorical=ONE, gaussian=ONE),
               **dict.fromkeys(("G", "G_sampled", "gradient"), scales(categorical=ONE, gaussian=TWO_OVER_C))},
        bias="separate", average="none", damping="left to the user, like the step",
        deviations=("BCEWithLogitsLoss with more than one output raises NotImplementedError",
                    "reduction='sum' multiplies G by N (N C for MSELoss), but not A", "no empirical G")),
    Dialect(
        name="nngeometry", version="0.4", ran=RAN,
        loss={"categorical": "FIM(variant='classif_logits'): -log p; the user computes the gradient (CrossEntropyLoss)",
              "gaussian": "FIM(variant='regression'): 1/2 |z - y|^2; the user computes the gradient (MSELoss)"},
        fisher="FIM: exact; FIM_MonteCarlo: samples of the model (classification only)",
        where="(A, G) = FIM(...).data[layer id], whose ids are the names of the modules",
        scale={"A": scales(categorical=ROOT_C_1, gaussian=ROOT_C),
               "G": scales(categorical=INVERSE_ROOT_C_1, gaussian=INVERSE_ROOT_C),
               "A_sampled": scales(categorical=ROOT_M), "G_sampled": scales(categorical=INVERSE_ROOT_M),
               "gradient": scales(categorical=ONE, gaussian=TWO_OVER_C)},
        bias="joint-last", vec="rows of W, then b", average="none", damping=f"regul: {PI}",
        deviations=("A is larger and G smaller by the root of the number of outputs sent backward (C; C - 1 for a "
                    "softmax; M samples): only their product is right",
                    "float64 needs torch.set_default_dtype(torch.float64), or FIM of a classifier raises RuntimeError",
                    "a saturated softmax: G loses all digits if 1 - the cumulative probabilities rounds to 0",
                    "to_torch(split_weight_bias=False) has the rows of [W b] instead")),
    Dialect(
        name="asdl", version="0.1a5", ran=RAN,
        loss={"categorical": "CrossEntropyLoss, whose reduction is overridden: sum over examples / data_size",
              "gaussian": "MSELoss, whose reduction is overridden: sum over examples and outputs / data_size"},
        fisher="fisher_mc (default), fisher_exact, fisher_emp",
        where="module.fisher.kron.A, module.fisher.kron.B (G); with inverses: A_inv, B_inv instead",
        scale={"A": scales(categorical=ONE, gaussian=ONE), "G": scales(categorical=ONE, gaussian=ONE),
               "G_sampled": scales(categorical=INVERSE_M, gaussian=INVERSE_M),
               "G_empirical": scales(categorical=ONE, gaussian=FOUR),
               "gradient": scales(categorical=ONE, gaussian=TWO)}, bias="separate",
        average="ema_decay multiplies the new term, 1 - ema_decay the old one; starts at 0, without correction",
        damping=f"{PI}, from A without the bias, each at least 1e-7; the same damped G for the bias",
        deviations=("with M > 1 samples G is M times too small: the loss is divided by M before squaring",
                    "MSELoss: the exact and sampled G belong to 1/2 |z - y|^2, the empirical G and the gradient to "
                    "|z - y|^2",
                    "with a running average KfacGradientMaker raises RuntimeError on a torch without CUDA (nvtx)",
                    "W and b are two blocks, so the step differs from that of the joint block")),
    Dialect(
        name="kfac-jax", version="0.0.8", ran=RAN,
        loss={"categorical": "register_softmax_cross_entropy_loss: -log p, mean over examples",
              "gaussian": "register_squared_error_loss: |z - y|^2, mean over examples",
              "bernoulli": "register_multi_bernoulli_predictive_distribution: -log p, mean over examples"},
        fisher="ggn_curvature_prop (random signs; the default), fisher_exact, fisher_gradients (samples), "
               "fisher_empirical",
        where="state.blocks_states[i].factors[0].value (A), .factors[1].value (G), of the state of an estimator or of "
              "optimizer_state.estimator_state",
        scale={"A": scales(categorical=ONE, gaussian=ONE, bernoulli=ONE),
               **dict.fromkeys(("G", "G_sampled", "gradient"), scales(categorical=ONE, gaussian=TWO, bernoulli=ONE)),
               "G_empirical": scales(categorical=INVERSE_N, gaussian=FOUR_OVER_N, bernoulli=INVERSE_N)},
        layout="in,out", bias="joint-last", vec="columns of [W b]",
        average="sum of decay^k X / sum of decay^k: without bias; factors[i].weight is the denominator",
        damping=f"product of {PI}; the single factors are A_damped / pi and pi G_damped; exact_power=True: "
                "A (x) G + damping I",
        deviations=("the empirical G is N times too small",
                    "register_squared_error_loss(weight=0.5) and register_normal_predictive_distribution(variance=1.0) "
                    "have our scales: 1, and 1/N for the empirical G",
                    "a factor of size 1 is not damped; the other one gets the whole damping",
                    "a dense block has the parameters in the order of the pytree: b before w in a dictionary",
                    "works with jax 0.9.0, not with 0.10")),
)

_CE = scales(categorical=ONE)
#: The values below are those of most of them.
_elsewhere = functools.partial(
    Dialect, version=ELSEWHERE, ran="", where="", fisher="the labels, as measured",
    loss={"categorical": TORCH["categorical"]}, scale={"A": _CE, "G_empirical": _CE})
_MEASURED_ELSEWHERE = (
    _elsewhere(
        name="kfs", fisher="exact and empirical, as measured", loss={k: TORCH[k] for k in ("categorical", "gaussian")},
        scale={"A": scales(categorical=ONE, gaussian=TWO_OVER_C),
               **dict.fromkeys(("G", "G_empirical"), scales(categorical=ONE, gaussian=ONE))},
        deviations=("the reduction of the loss is in A, not in G",
                    "the empirical Fisher of MSELoss is half that of curvlinops: it uses gradients of 1/2 |z - y|^2")),
    _elsewhere(name="singd"),
    _elsewhere(
        name="kfac-pytorch (gpauloski)", where="preconditioner.state_dict()['layers'][name]['A'], ['G']",
        scale={"A": _CE, "G_empirical": scales(categorical=INVERSE_N_SQUARED)},
        deviations=("with a mean loss G is N^2 times too small; with a sum it is right",)),
    _elsewhere(name="KFAC-Pytorch (alecwangcq)",
               deviations=("with batch_averaged=True, for a mean loss; False is for a sum",)),
    _elsewhere(
        name="kfac (n-gao)",
        where="kfac.blocks[i].activation_covariance, .sensitivity_covariance (kfac.covariances: before normalization)",
        deviations=("wrong with a summed loss: gradients are multiplied by N for any reduction",
                    "momentum_type='adam' preconditions the raw gradient")),
    _elsewhere(name="K-FAC (Thrandis)", where="opt.state[weight]['xxt'], ['ggt']",
               deviations=("measured only with a mean loss",)),
)

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (*_RUN, *_MEASURED_ELSEWHERE)}


def table() -> list[tuple[str, ...]]:
    """Return the headings and the dialects as rows of text; a cell may be "not measured" or, if there is none, "-"."""
    rows = [_row(dialect) for dialect in DIALECTS.values()]
    return [tuple(rows[0]), *(tuple(row.values()) for row in rows)]


def _row(d: Dialect) -> dict[str, str]:
    blank = "not measured"
    scale = {f"{name} / ours": _by_likelihood(d, name) for name in ("A", "G", "G_sampled", "G_empirical", "gradient")}
    return {"name": d.name, "version": d.version, "ran": d.ran or "-", **scale, "layout": d.layout, "bias": d.bias,
            "dense order": d.vec or blank, "A and G in": d.where or blank, "targets": d.fisher,
            "average": d.average or blank, "damping": d.damping or blank,
            "loss": "; ".join(f"{name}: {d.loss[name]}" for name in LIKELIHOODS if name in d.loss),
            "know": "; ".join(d.deviations) or "-"}


def _by_likelihood(d: Dialect, quantity: str) -> str:
    """Return one expression if all likelihoods share it, else one per likelihood."""
    found = {name: scale.text for name, scale in d.scale.get(quantity, {}).items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{text} ({name})" for name, text in found.items()) or "-"
