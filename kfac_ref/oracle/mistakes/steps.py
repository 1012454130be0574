"""Re-scaling, momentum, rho, lambda, the KL clip, and the scales of EKFAC."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ... import params
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

def _clip(form: Callable[[float, float, float], float], other: str = "gradient") -> Change:
    def change(r: Reference, right: Right) -> float:
        clip = r.problem.kl_clip
        assert clip is not None
        return min(1.0, form(clip.kappa, clip.learning_rate, abs(params.inner(r["step"], r[other]))))
    return change

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
    {"kl_clip": _clip(lambda kappa, lr, s: math.sqrt(kappa / (lr**2 * s)), "step")}, ("step",))

add("ekfac", "EKFAC scales as products of eigenvalues", "the scales are products of the eigenvalues, as in K-FAC",
    "EKFAC measures the second moments in the eigenbasis", "project the per-example gradients and square them",
    {"ekfac_scales": lambda r, right: tuple(np.outer(*map(np.linalg.eigvalsh, (G, A)))
                                            for A, G in zip(r["A"], r["G"], strict=True))}, ("A", "G"))
