"""Re-scaling, momentum, rho, lambda, the KL clip, and the scales of EKFAC."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ... import params
from ...checks import Array
from ...fisher import gram
from ...kronecker import Eigen
from ...quadratic_model import SmallModel
from ..graph import Reference
from .entry import Change, Right, add

add("rescaling", "M without damping", "the quadratic model has no (lambda + eta) I", "M(delta) = grad^T delta + 1/2 "
    "delta^T (F + (lambda + eta) I) delta", "add the damping to the exact F", {"model_damping": lambda r, right: 0.0})
add("rescaling", "weight decay left out of the system", "the quadratic model has lambda I instead of (lambda + eta) "
    "I", "h contains the weight decay, so its quadratic model contains eta I", "add eta",
    {"model_damping": lambda r, right: max(right() - r["eta"], 0.0)}, ("eta",))
add("rescaling", "F of the labels in M", "the quadratic model uses the empirical Fisher", "M uses the exact F: "
    "J^T F_R J", "use products with F_R", {"g_F": lambda r, right: tuple(g[None] for g in r["g"])}, ("g",))
add("rescaling", "M without its half", "the quadratic term lacks its 1/2", "M = grad^T delta + 1/2 delta^T C delta",
    "insert the 1/2",
    {"system": lambda r, right: (lambda s: SmallModel(2 * s.Q, 2 * s.inner, s.slope, s.damping))(right())})
add("rescaling", "no re-scaling", "alpha is 1", "Delta of damped factors has the wrong length; the exact F corrects it",
    "minimize M(alpha Delta + mu delta_0)",
    {"alpha": lambda r, right: 1.0,
     "M": lambda r, right: r["system"].value([1.0, r["mu"]][:len(r["system"].slope)])}, ("system", "mu"))
add("rescaling", "last step never kept", "the last step is zero, so there is no momentum", "delta_0 is the last "
    "step, and mu its coefficient", "store delta after each step", {"last_step": lambda r, right: None})
add("rescaling", "momentum kept without its own part", "the stored step is alpha Delta, without mu delta_0",
    "delta_0 is the whole last step", "store delta, not alpha Delta",
    {"kept_step": lambda r, right: tuple(params.scale(r["alpha"], r["Delta"]))}, ("alpha", "Delta"))
add("rescaling", "rho without the weight decay", "rho compares the change of the loss with M",
    "M is the model of h, which contains the weight decay", "use h in both",
    {"actual": lambda r, right: r["moved"]["loss"] - r["loss"]}, ("moved", "loss"))
add("rescaling", "rho upside down", "rho is predicted over actual", "rho = actual / predicted", "invert it",
    {"rho": lambda r, right: 1 / right()})
add("rescaling", "lambda moves the wrong way", "lambda rises if rho > 3/4 and falls if rho < 1/4",
    "a model that predicts well needs less damping", "exchange the two",
    {"lambda_after": lambda r, right: (lambda b, a: b * b / a)(r["lambda_before"], right())}, ("lambda_before",))
add("rescaling", "lambda not adapted", "lambda is constant", "rho above 3/4 or below 1/4 changes lambda",
    "adapt it every T1 steps", {"lambda_after": lambda r, right: r["lambda_before"]}, ("lambda_before",))

def _clip(form: Callable[[float, float, float], float], size: Callable[[Reference], float] = lambda r: abs(
        params.inner(r["step"], r["gradient"])), most: float = 1.0) -> Change:
    def change(r: Reference, right: Right) -> float:
        clip = r.problem.kl_clip
        assert clip is not None
        return min(most, form(clip.kappa, clip.learning_rate, size(r)))
    return change

def _root(kappa: float, lr: float, s: float) -> float:
    return math.sqrt(kappa / (lr**2 * s))

_CLIP = "lr^2 v^T F v is twice the KL divergence of the step, and v^T F v = v^T grad for v = F^-1 grad; nu scales v"
for _name, _what, _remedy, _form in (
    ("KL clip without the root", "nu is kappa / (lr^2 v^T grad), without the square root", "take the square root",
     lambda kappa, lr, s: kappa / (lr**2 * s)),
    ("KL clip with lr in place of its square", "the learning rate is not squared", "square it",
     lambda kappa, lr, s: math.sqrt(kappa / (lr * s))),
    ("KL clip without the learning rate", "the learning rate is left out", "multiply by lr^2",
     lambda kappa, lr, s: math.sqrt(kappa / s)),
):
    add("rescaling", _name, _what, _CLIP, _remedy, {"kl_clip": _clip(_form)}, ("step", "gradient"))
add("rescaling", "KL clip with the norm of the step", "v^T v is used instead of v^T grad", _CLIP, "use v^T grad",
    {"kl_clip": _clip(_root, lambda r: params.inner(r["step"], r["step"]))}, ("step",))
add("rescaling", "KL clip with the exact Fisher", "v^T F v with the exact F, undamped, is used instead of v^T grad",
    _CLIP, "use v^T grad: no Fisher product is needed", {"kl_clip": _clip(_root, lambda r: float(gram(
        r["g_F"], r["a_bar_F"], [r["step"]])[0, 0]))}, ("step", "g_F", "a_bar_F"))
add("rescaling", "KL clip without its limit", "the minimum with 1 was left out: nu may be above 1", "the clip only "
    "ever shortens a step: nu = min(1, ...)", "take the minimum of nu and 1", {"kl_clip": _clip(_root, most=math.inf)},
    ("step", "gradient"))
add("rescaling", "weights before each step", "row t of the weights is from before the step: one row late", "a "
    "trajectory lists the weights after each step", "record the weights after the update",
    {"recorded": lambda r, right: tuple(r["weights"])}, ("weights",))

_SQUARE = "S is the mean of the squares of each example's gradient g a_bar^T in the eigenbasis"
_BASES = "the columns of Q are the eigenvectors of A = Q diag(a) Q^T"
_OWN = "EKFAC takes the second moments under the model's own prediction, as K-FAC its G"

def _of_bases(f: Callable[[Array], Eigen]) -> Change:
    """Decompose A and G in another way."""
    return lambda r, right: tuple((f(A), f(G)) for A, G in zip(r["A_solve"], r["G_solve"], strict=True))

def _rows(S: Array) -> Eigen:
    values, Q = np.linalg.eigh(S)           # the signs of the columns matter here: those that NumPy returns
    return Eigen(values, Q.T)

def _reversed(S: Array) -> Eigen:
    return Eigen(np.linalg.eigvalsh(S), Eigen.factor(S).Q[:, ::-1])

for _name, _what, _why, _remedy, _changes, _reads in (
    ("EKFAC scales as products of eigenvalues", "the scales are products of the eigenvalues, as in K-FAC", "EKFAC "
     "measures the second moments in the eigenbasis", "project the per-example gradients and square them",
     {"ekfac_scales": lambda r, right: r["spectra"]}, ("spectra",)),
    ("EKFAC scales at the labels", "the scales are those of the gradients at the training labels (of the empirical "
     "Fisher); the bases are not", _OWN, "use the same targets for the bases and the scales",
     {"g_ekfac": lambda r, right: tuple(g[None] for g in r["g"])}, ("g",)),
    ("EKFAC scales at the samples", "the scales are those of the sampled targets; the bases are of the exact G",
     "these are the exact expectations", "use the same targets for the bases and the scales",
     {"g_ekfac": lambda r, right: r["g_sampled"]}, ("g_sampled",)),
    ("EKFAC scales of the mean gradient", "the mean gradient was squared in the eigenbasis: the gradients were "
     "averaged over the examples before they were squared", _SQUARE, "project and square the gradient of each example",
     {"ekfac_scales": lambda r, right: tuple(np.square(G.Q.T @ (D - d) @ A.Q) for D, d, (A, G) in zip(
         r["gradient"], r["decay"], r["bases"], strict=True))}, ("gradient", "decay", "bases")),
    ("eigenvectors taken as rows", "the rows of the eigenvector matrices were used as eigenvectors: U g U^T in place "
     "of U^T g U (transposed; the signs are those of numpy.linalg.eigh)", _BASES, "project with U^T g U",
     {"bases": _of_bases(_rows)}, ("A_solve", "G_solve")),
    ("eigenvectors in descending order", "the eigenvectors were sorted by descending eigenvalues, the eigenvalues "
     "ascending", _BASES + ", in the order of the eigenvalues", "sort both in one order",
     {"bases": _of_bases(_reversed)}, ("A_solve", "G_solve")),
    ("EKFAC divided by the root of the scales", "the gradient was divided by sqrt(S) + damping, as in Adam, not by S + "
     "damping", "F^-1 has the inverse of S, not of its root", "leave out the square root", {"ekfac_damped":
         lambda r, right: tuple(np.sqrt(S) + r["damping"] for S in r["ekfac_scales"])}, ("ekfac_scales", "damping")),
    ("EKFAC divided by the root of the damped scales", "the gradient was divided by sqrt(S + damping), not by S + "
     "damping", "F^-1 has the inverse of S, not of its root", "leave out the square root",
     {"ekfac_damped": lambda r, right: tuple(map(np.sqrt, right()))}, ()),
):
    add("ekfac", _name, _what, _why, _remedy, _changes, _reads)
add("ekfac", "EKFAC scales with the damping", "the scales were shown with the damping added", "S is undamped; the "
    "damping belongs to the solve", "give S without damping", {}, ("ekfac_damped",),
    shows={"ekfac_scales": lambda r, S: r["ekfac_damped"]})
