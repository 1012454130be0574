"""Mistakes with a number: the value of one wrong constant, solved for from the given quantities.

A family maps a number c to the changes of nodes; `right` is the value at which it changes nothing. The number that
fits is found by Gauss-Newton steps on a given quantity, from a few starting points, and then verified on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import damping, params
from ...likelihoods import Categorical
from ..differences import arrays, as_powers
from ..graph import FAILS, Reference
from .entry import STEPS, Change, Mistake, times

_EVERY_STEP = (*STEPS, "step_sampled", "step_empirical")


@dataclass(frozen=True)
class Family:
    """One wrong constant: its name and words (with ``{c}`` for the number), and the changes of nodes that it makes."""

    name: str
    what: str
    why: str
    remedy: str
    changes: Callable[[Any], Mapping[str, Change]]
    right: Callable[[Reference], float]
    #: The quantities that show it best; the number is solved for from the first one that is given and differs.
    shown_by: tuple[str, ...]
    positive: bool = True               # solved for as its logarithm
    per_layer: bool = False
    alone: bool = False                 # not tried beside a mistake
    reads: tuple[str, ...] = ()         # as in `Mistake`
    defined: Callable[[Reference], bool] = lambda r: True

    def at(self, c: Any, words: str = "") -> Mistake:
        """Return the mistake with this number, or one number per layer."""
        text = words or ", ".join(f"{v:.17g}" for v in np.atleast_1d(c))
        return Mistake(self.name.format(c=text), self.what.format(c=text), self.why, self.remedy, self.changes(c),
                       self.reads, group="number")


def _damping(c: float) -> dict[str, Change]:
    return {"damping": lambda r, right: c}

def _damping_of_layers(c: Sequence[float]) -> dict[str, Change]:
    return {"damped": lambda r, right: tuple(map(damping.factored_tikhonov, r["A_solve"], r["G_solve"], c, r["pi"]))}

def _loss(c: float) -> dict[str, Change]:
    return dict.fromkeys(("loss", "dz", "dz_sampled"), lambda r, right: c * right()) | {
        "dz_exact": lambda r, right: math.sqrt(c) * right()}

def _smoothed(c: float) -> dict[str, Change]:
    """Smooth labels: (1 - c) one-hot + c / C."""
    def dz(r: Reference, right: Any) -> Any:
        """Return p minus the smoothed label."""
        C = r["z"].shape[1]
        return right() + c * (np.eye(C)[r["y"]] - 1 / C)
    def loss(r: Reference, right: Any) -> float:
        """Return the cross-entropy with the smoothed labels."""
        z, C = r["z"], r["z"].shape[1]
        labels = np.repeat(np.arange(C)[:, None], len(z), axis=1)
        every = np.mean([r["model"].likelihood.nll(z, y) for y in labels])
        return float((1 - c) * right() + c * every)
    return {"dz": dz, "loss": loss}

def _temperature(c: float) -> dict[str, Change]:
    """Divide z by a temperature before the softmax (or logistic)."""
    def dz(targets: str, root: bool = False) -> Change:
        def change(r: Reference, right: Any) -> Any:
            likelihood, z = r["model"].likelihood, r["z"] / c
            if root:
                return likelihood.fisher_root(z).transpose(2, 0, 1) / c
            if r[targets] is None:
                raise ValueError("the problem has no targets")
            return likelihood.gradient(z, r[targets]) / (c * (1 if targets == "y" else math.sqrt(len(r[targets]))))
        return change
    return {"loss": lambda r, right: float(np.mean(r["model"].likelihood.nll(r["z"] / c, r["y"]))),
            "dz": dz("y"), "dz_sampled": dz("targets"), "dz_exact": dz("", root=True)}

def _momentum(c: float) -> dict[str, Change]:
    return dict.fromkeys(STEPS, lambda r, right: tuple(params.add(right(), params.scale(c, r.problem.delta_0))))

def _times(names: Sequence[str], c: float) -> dict[str, Change]:
    return {name: lambda r, right: times(c, right()) for name in names}

_SOLVES = ("A_damped", "G_damped", *_EVERY_STEP, "ekfac_step", "kl_clip", "alpha", "M")
_ROOT = "the number under the root is lambda + eta, as the problem states it"
FAMILIES = (
    Family("damping {c}", "the damping was {c}", _ROOT, "use the problem's damping, once", _damping,
           lambda r: r["damping"], _SOLVES),
    Family("loss times {c}", "the loss was multiplied by {c}: loss, gradient and G (at the model's targets) have this "
           "factor, G at the labels its square (a noise variance, a weight, or loss scaling)",
           "-log p of an example is the loss that defines the Fisher", "divide the loss by the factor", _loss,
           lambda r: 1.0, ("gradient", "G_empirical", "G", "loss", "fisher_empirical", "fisher", "g", "G_sampled")),
    Family("step times {c}", "the step is {c} times what it should be (a learning rate?)",
           "Delta is the step before alpha or a learning rate multiplies it", "give the step before it is multiplied",
           lambda c: _times(STEPS, c), lambda r: 1.0, _EVERY_STEP, positive=False),
    Family("gradient times {c}", "the gradient is {c} times what it should be (a learning rate?)",
           "grad h is the gradient of the mean loss plus weight decay, without a factor",
           "give the gradient before it is multiplied", lambda c: _times(("gradient",), c), lambda r: 1.0,
           ("gradient",), positive=False),
    Family("weight {c} of the old factors", "the old factors were weighted by {c}, the new ones by one minus that",
           "eps = min(1 - 1/k, 0.95) for batch k, so that the first batches count equally",
           "let the weight of the old factors grow as 1 - 1/k", lambda c: {"epsilon": lambda r, right: c},
           lambda r: r["epsilon"], ("A_average", "G_average"), positive=False,
           defined=lambda r: r.problem.previous is not None),
    Family("momentum {c} in the step", "{c} times the last step delta_0 was added to the step",
           "Delta is the step before momentum", "give the step without the momentum", _momentum, lambda r: 0.0,
           _EVERY_STEP, positive=False, alone=True, defined=lambda r: r.problem.delta_0 is not None),
    Family("label smoothing {c}", "the labels were smoothed by {c}", "the loss is -log p of the label itself",
           "turn label smoothing off", _smoothed, lambda r: 0.0,
           ("gradient", "G_empirical", "g", "loss"), positive=False,
           alone=True, reads=("z", "y"), defined=lambda r: isinstance(r["model"].likelihood, Categorical)),
    Family("temperature {c}", "the outputs were divided by a temperature of {c}", "z itself is the logit",
           "leave the temperature out", _temperature, lambda r: 1.0,
           ("G", "gradient", "G_empirical", "loss", "fisher", "G_sampled"), alone=True,
           reads=("z", "y", "targets", "model"), defined=lambda r: r.problem.likelihood != "gaussian"),
    Family("damping {c} of the layers", "the dampings of the layers were {c}", _ROOT, "use the same damping in all "
           "layers", _damping_of_layers, lambda r: r["damping"], ("step", "A_damped", "G_damped"), per_layer=True,
           alone=True, reads=("A_solve", "G_solve", "pi")),
)


def solved(family: Family, r: Reference, name: str, theirs: Any, quick: bool = False,
           late: Callable[[], bool] | None = None) -> Any:
    """Return the number with which a quantity comes closest to the given value; from one start if `quick`.

    Raises a ValueError if there is none, or when `late` returns true.
    """
    def f(u: Any) -> Any:
        """Return the quantity with the number of u, which is its logarithm if it is positive."""
        c = np.exp(u) if family.positive else u
        return r.having(*r.mistakes, family.at(c if family.per_layer else float(c))).shown(name)

    def gap(value: Any) -> Any:
        """Return what is missing to the given arrays."""
        return [np.nan_to_num(np.asarray(b, dtype=float) - np.asarray(v, dtype=float)) for v, b in
                zip(arrays(value), arrays(theirs), strict=True)]

    def total(parts: Any) -> Any:
        """Return one sum, or one number per layer."""
        return np.array(parts) if family.per_layer else sum(parts)

    right = family.right(r)
    ones = np.ones(len(r["weights"])) if family.per_layer else 1.0
    base = max(abs(right), 1e-8)
    starts = [math.log(base * 10.0**k) for k in (-4, -2, -1, 0.5, 1, 2, 4)] if family.positive else [right + 0.5]
    found = []
    for start in starts[3:4] if quick and family.positive else starts:
        u, last = start * ones, math.inf
        try:
            for k in range(12 if quick else 30):
                if late is not None and late():
                    raise ValueError("no time is left")
                value = f(u)
                off = gap(value)
                if quick and k == 4 and _square(off) > 1e-2 * _square(arrays(theirs)):
                    raise ValueError("no number fits")
                step = 1e-6 * np.maximum(1.0, np.abs(u)) * ones
                slope = [(np.asarray(b, dtype=float) - np.asarray(a, dtype=float)) for a, b in
                         zip(arrays(value), arrays(f(u + step)), strict=True)]
                square = total([float(np.vdot(s, s)) for s in slope])
                move = step * total([float(np.vdot(s, o)) for s, o in zip(slope, off, strict=True)]) / np.where(
                    square > 0, square, np.inf)
                if family.positive:
                    move = np.clip(move, -3, 3)
                u = u + move
                size = float(np.max(np.abs(move) / np.maximum(np.abs(u), 1)))
                if size < 1e-14 or size >= 0.9 * last < 1e-10:
                    break
                last = size
            found.append((_square(gap(f(u))), np.exp(u) if family.positive else u))
            if found[-1][0] < 1e-12 * _square(arrays(theirs)):
                break
        except FAILS:
            continue
    return min(found, key=lambda pair: pair[0])[1]


def _square(arrays: Any) -> float:
    return sum(float(np.vdot(a, a)) for a in map(np.nan_to_num, arrays))


def simplest(family: Family, r: Reference, c: Any) -> Iterator[Mistake]:
    """Yield the mistake with numbers near c: a known multiple of the right one, then with ever more digits."""
    if family.per_layer:
        yield family.at(c, ", ".join(f"{v:.6g}" for v in c))
        return
    c, right = float(c), family.right(r)
    counts = {"N": len(r.problem.x), "C": r.problem.sizes[-1],
              "M": 1 if r.problem.targets is None else len(r.problem.targets)}
    times, text = as_powers(c / right, counts, 1e-6) if right and family.positive else (1.0, "")
    if text not in ("", "1"):
        plain = f"{right * times:.6g}"
        yield family.at(right * times, plain if right == 1 and text == plain else
                        f"{plain} = {text}" if right == 1 else f"{plain} ({text} times the right {right:.6g})")
    if abs(c) < 1e-12 and not family.positive:
        yield family.at(0.0, "0")
    for digits in range(1, 13):
        rounded = float(f"{c:.{digits}g}")
        if abs(rounded - c) <= 1e-3 * abs(c):
            yield family.at(rounded, f"{rounded:.12g}")
        if family.positive and right == 1:
            inverse = float(f"{1 / c:.{digits}g}")
            if digits < 6 and abs(inverse * c - 1) < 1e-6:
                yield family.at(1 / inverse, f"{1 / inverse:.6g} = 1/{inverse:g}")
    yield family.at(c, f"{c:.12g}")


def digits_of(m: Mistake) -> float:
    """Return the digits of evidence that the number of a mistake uses up."""
    text = m.name.split(" = ")[0].split(" (")[0]
    return sum(character.isdigit() for character in text.split("e")[0]) if " = " not in m.name and " (" not in m.name \
        else 2.0
