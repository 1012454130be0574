"""Entries of the catalogue against wrong values that are computed here, by hand, from the entries' words.

Nothing of the package computes them: the network, its derivatives, factors and solves are plain NumPy, and every solve
is with a dense Kronecker product. Of all single mistakes, exactly the named one (or those that are equal to it) gives
these values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kfac_ref.curvature import EKFAC
from kfac_ref.oracle import CATALOGUE, KLClip, Previous, Problem, Reference, check, vector
from kfac_ref.oracle.differences import error
from kfac_ref.oracle.search import Diagnosis
from kfac_ref.params import scale

SIZES, N, M = (4, 5, 3), 11, 2
ETA, DAMPING = 0.02, 0.07


@functools.cache
def problem() -> Problem:
    rng = np.random.default_rng(7)

    def square(n: int) -> Any:
        X = rng.standard_normal((9, n))
        return X.T @ X / 9
    weights = [rng.standard_normal((5, 5)), rng.standard_normal((3, 6))]
    return Problem(SIZES, ("tanh",), "categorical", weights, rng.standard_normal((N, 4)), rng.integers(0, 3, N),
                   DAMPING, ETA, targets=rng.integers(0, 3, (M, N)),
                   direction=[rng.standard_normal(W.shape) for W in weights],
                   previous=Previous(4, [square(5), square(6)], [square(5), square(3)]), kl_clip=KLClip(1e-3, 0.1))


class Hand:
    """The quantities of the problem in plain NumPy; arrays of columns are (K, N, m)."""

    def __init__(self) -> None:
        q = problem()
        self.W, self.y, self.targets, self.V = q.weights, np.asarray(q.y), np.asarray(q.targets), q.direction
        ones = np.ones((N, 1))
        hidden = np.tanh(np.hstack([q.x, ones]) @ self.W[0].T)
        self.slope, self.a = 1 - hidden**2, [np.hstack([q.x, ones]), np.hstack([hidden, ones])]
        z = self.a[1] @ self.W[1].T
        self.p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        self.one_hot = np.eye(3)
        self.root = np.array([np.sqrt(self.p[:, [k]]) * (self.one_hot[k] - self.p) for k in range(3)])
        self.at_labels, self.at_targets = self.p - self.one_hot[self.y], self.p - self.one_hot[self.targets]
        self.g, self.samples = self.back(self.at_labels), self.back(self.at_targets)
        self.loss_gradient = [g.T @ a / N for g, a in zip(self.g, self.a, strict=True)]
        self.gradient = [D + ETA * W for D, W in zip(self.loss_gradient, self.W, strict=True)]
        self.A = [a.T @ a / N for a in self.a]
        self.G = self.moments(self.back(self.root))

    def back(self, dz: Any) -> list[Any]:
        return [dz @ self.W[1][:, :-1] * self.slope, dz]

    def moments(self, g: Any, count: float = N) -> list[Any]:
        return [flat(u).T @ flat(u) / count for u in g]

    def rows(self, g: Any) -> Any:
        """The gradient of each example, vec stacking columns, layer after layer."""
        D = [np.einsum("...m,...n->...nm", u, np.broadcast_to(a, (*u.shape[:-1], a.shape[-1])))
             for u, a in zip(g, self.a, strict=True)]
        return np.concatenate([d.reshape(-1, d.shape[-1] * d.shape[-2]) for d in D], axis=1)

    @functools.cached_property
    def F(self) -> Any:
        R = self.rows(self.back(self.root))
        return R.T @ R / N

    def damped(self, A: Any = None, G: Any = None, ratio: Any = None) -> list[tuple[Any, Any]]:
        found = []
        for X, Y in zip(A or self.A, G or self.G, strict=True):
            pi = ratio(X, Y) if ratio else math.sqrt(np.trace(X) / len(X) / (np.trace(Y) / len(Y)))
            found.append((X + pi * math.sqrt(DAMPING) * np.eye(len(X)), Y + math.sqrt(DAMPING) / pi * np.eye(len(Y))))
        return found

    def step(self, factors: Any = None, V: Any = None, order: str = "F") -> list[Any]:
        return [-solved(np.kron(A, G), v, order)
                for (A, G), v in zip(factors or self.damped(), V or self.gradient, strict=True)]

    def exact_step(self, A: Any, V: Any, order: str = "F") -> list[Any]:
        return [-solved(np.kron(X, Y) + DAMPING * np.eye(v.size), v, order)
                for X, Y, v in zip(A, self.G, V, strict=True)]

    def natural(self, F: Any, V: Any = None, order: str = "F") -> list[Any]:
        V = V or self.gradient
        x = -np.linalg.solve(F + DAMPING * np.eye(len(F)), np.concatenate([v.ravel(order) for v in V]))
        return [part.reshape(v.shape, order=order) for part, v in zip(np.split(x, [25]), V, strict=True)]

    def bases(self, G: Any = None) -> list[tuple[Any, Any]]:
        return [(np.linalg.eigh(X)[1], np.linalg.eigh(Y)[1]) for X, Y in zip(self.A, G or self.G, strict=True)]

    def scales(self, g: Any, bases: Any = None, a: Any = None) -> list[Any]:
        """Each example's gradient, projected and squared, summed over columns and averaged over the examples."""
        return [np.einsum("knm,nj->mj", (u @ Q_G)**2, (v @ Q_A)**2) / N
                for u, v, (Q_A, Q_G) in zip(g, a or self.a, bases or self.bases(), strict=True)]

    def in_bases(self, divisor: Any, bases: Any = None) -> list[Any]:
        return [-Q_G @ (Q_G.T @ V @ Q_A / S) @ Q_A.T
                for V, S, (Q_A, Q_G) in zip(self.gradient, divisor, bases or self.bases(), strict=True)]


def solved(C: Any, V: Any, order: str = "F") -> Any:
    return np.linalg.solve(C, V.ravel(order)).reshape(V.shape, order=order)


def outer(v: Any) -> Any:
    return np.outer(v, v)


def cov(rows: Any, bias: bool) -> Any:
    return np.atleast_2d(np.cov(rows, rowvar=False, bias=bias))


def flat(u: Any) -> Any:
    return u.reshape(-1, u.shape[-1])


ENTRIES: dict[str, Callable[[Hand], dict[str, Any]]] = {}
#: Other entries that give the same values of these quantities.
EQUAL: dict[str, set[str]] = {}


def entry(name: str, *equal: str) -> Any:
    def keep(f: Callable[[Hand], dict[str, Any]]) -> None:
        assert name not in ENTRIES
        ENTRIES[name], EQUAL[name] = f, {name, *equal}
    return keep


# Part of the batch.

for _name, _rows in (("only the first half of the examples", slice(0, 5)),
                     ("only the second half of the examples", slice(5, N)), ("every second example", slice(0, N, 2))):
    @entry(_name)
    def _(h: Hand, rows: Any = _rows) -> dict[str, Any]:
        a, g = ([u[rows] for u in v] for v in (h.a, h.g))
        n = len(a[0])
        return {"A": [u.T @ u / n for u in a], "G_empirical": [u.T @ u / n for u in g],
                "gradient": [u.T @ v / n + ETA * W for u, v, W in zip(g, a, h.W, strict=True)]}


# Scales.

for _form, _c in (("of mean-loss gradients, summed", 1 / N), ("divided by N - 1", N / (N - 1))):
    @entry(f"Fisher {_form}")
    def _(h: Hand, c: float = _c) -> dict[str, Any]:
        return {"fisher": c * h.F, "natural_gradient": h.natural(c * h.F)}

for _form, _c in (("summed over the examples", N), ("of mean-loss gradients, summed", 1 / N),
                  ("of mean-loss gradients", N**-2), ("divided by N - 1", N / (N - 1))):
    @entry(f"EKFAC scales {_form}")
    def _(h: Hand, c: float = _c) -> dict[str, Any]:
        S = [c * s for s in h.scales(h.back(h.root))]
        return {"ekfac_scales": S, "ekfac_step": h.in_bases([s + DAMPING for s in S])}

@entry("gradient divided by N twice")
def _(h: Hand) -> dict[str, Any]:
    V = [D / N + ETA * W for D, W in zip(h.loss_gradient, h.W, strict=True)]
    return {"gradient": V, "step": h.step(V=V)}


# What is squared.

@entry("labels in place of the model's targets")
def _(h: Hand) -> dict[str, Any]:
    G = h.moments(h.g)
    b = h.bases(G)
    R, g = h.rows(h.g), [u[None] for u in h.g]
    return {"G": G, "G_cross": [h.g[0].T @ h.g[1] / N], "fisher": R.T @ R / N, "ekfac_scales": h.scales(g, b),
            "ekfac_step": h.in_bases([S + DAMPING for S in h.scales(g, b)], b), "step": h.step(h.damped(G=G))}

@entry("likeliest label in place of a sample")
def _(h: Hand) -> dict[str, Any]:
    g = h.back(h.p - h.one_hot[h.p.argmax(axis=1)])
    return {"G": h.moments(g), "G_sampled": h.moments(g), "fisher": h.rows(g).T @ h.rows(g) / N}

@entry("all columns in one backward pass")
def _(h: Hand) -> dict[str, Any]:
    g = h.back(h.root.sum(axis=0))
    return {"G": h.moments(g), "fisher": h.rows(g).T @ h.rows(g) / N}

@entry("sum of the outputs sent back")
def _(h: Hand) -> dict[str, Any]:
    return {"G": h.moments(h.back(np.ones((N, 3))))}

@entry("samples averaged before the square")
def _(h: Hand) -> dict[str, Any]:
    return {"G_sampled": h.moments([u.mean(axis=0) for u in h.samples])}

@entry("samples summed before the square")
def _(h: Hand) -> dict[str, Any]:
    return {"G_sampled": h.moments([u.sum(axis=0) for u in h.samples])}

@entry("class number in place of one-hot")
def _(h: Hand) -> dict[str, Any]:
    g, s = h.back(h.p - h.y[:, None]), h.back(h.p - h.targets[..., None])
    return {"g": g, "G_sampled": h.moments(s, N * M), "G_empirical": h.moments(g),
            "gradient": [u.T @ a / N + ETA * W for u, a, W in zip(g, h.a, h.W, strict=True)]}

@entry("square of the mean gradient")
def _(h: Hand) -> dict[str, Any]:
    return {"G_empirical": [outer(u.mean(axis=0)) for u in h.g], "fisher_empirical": outer(h.rows(h.g).mean(axis=0)),
            "G_sampled": [outer(flat(u).mean(axis=0)) for u in h.samples]}

@entry("square of the summed gradient")
def _(h: Hand) -> dict[str, Any]:
    return {"G_empirical": [outer(u.sum(axis=0)) for u in h.g], "fisher_empirical": outer(h.rows(h.g).sum(axis=0))}

for _words, _ends in (("two halves", (6,)), ("four parts", (3, 6, 9))):
    @entry(f"squares of the mean gradients of {_words}")
    def _(h: Hand, ends: Any = _ends) -> dict[str, Any]:
        return {"G_empirical": [np.mean([outer(part.mean(axis=0)) for part in np.split(u, ends)], axis=0) for u in h.g]}

for _form, _bias in (("{} centred", True), ("np.cov for {}", False)):
    @entry(_form.format("A"))
    def _(h: Hand, bias: bool = _bias) -> dict[str, Any]:
        return {"A": [cov(a, bias) for a in h.a]}

    @entry(_form.format("G"))
    def _(h: Hand, bias: bool = _bias) -> dict[str, Any]:
        return {"G_empirical": [cov(u, bias) for u in h.g], "G_sampled": [cov(flat(u), bias) for u in h.samples]}

    @entry(_form.format("Fisher"))
    def _(h: Hand, bias: bool = _bias) -> dict[str, Any]:
        return {"fisher_empirical": cov(h.rows(h.g), bias), "fisher_sampled": cov(h.rows(h.samples), bias)}


# EK-FAC.

@entry("EKFAC scales at the labels")
def _(h: Hand) -> dict[str, Any]:
    S = h.scales([u[None] for u in h.g])
    return {"G": h.G, "ekfac_scales": S, "ekfac_step": h.in_bases([s + DAMPING for s in S])}

@entry("EKFAC scales at the samples")
def _(h: Hand) -> dict[str, Any]:
    return {"ekfac_scales": [s / M for s in h.scales(h.samples)]}

@entry("EKFAC scales of the mean gradient")
def _(h: Hand) -> dict[str, Any]:
    return {"ekfac_scales": [(Q_G.T @ D @ Q_A)**2 for D, (Q_A, Q_G) in zip(h.loss_gradient, h.bases(), strict=True)]}

@entry("EKFAC scales as products of eigenvalues")
def _(h: Hand) -> dict[str, Any]:
    S = [np.outer(np.linalg.eigvalsh(Y), np.linalg.eigvalsh(X)) for X, Y in zip(h.A, h.G, strict=True)]
    return {"ekfac_scales": S, "ekfac_step": h.exact_step(h.A, h.gradient)}

@entry("EKFAC scales with the damping")
def _(h: Hand) -> dict[str, Any]:
    S = [s + DAMPING for s in h.scales(h.back(h.root))]
    return {"ekfac_scales": S, "ekfac_step": h.in_bases(S)}

@entry("eigenvectors taken as rows")
def _(h: Hand) -> dict[str, Any]:
    b = [(Q_A.T, Q_G.T) for Q_A, Q_G in h.bases()]
    S = h.scales(h.back(h.root), b)
    return {"A": h.A, "ekfac_scales": S, "ekfac_step": h.in_bases([s + DAMPING for s in S], b)}

@entry("eigenvectors in descending order")
def _(h: Hand) -> dict[str, Any]:
    b = [(Q_A[:, ::-1], Q_G[:, ::-1]) for Q_A, Q_G in h.bases()]
    S = [np.outer(np.linalg.eigvalsh(Y), np.linalg.eigvalsh(X)) + DAMPING for X, Y in zip(h.A, h.G, strict=True)]
    return {"ekfac_scales": h.scales(h.back(h.root), b), "step_exact_damping": h.in_bases(S, b)}

for _name, _f in (("divided by the root of the scales", lambda s: np.sqrt(np.maximum(s, 0)) + DAMPING),
                  ("divided by the root of the damped scales", lambda s: np.sqrt(s + DAMPING))):
    @entry(f"EKFAC {_name}")
    def _(h: Hand, f: Any = _f) -> dict[str, Any]:
        S = h.scales(h.back(h.root))
        return {"ekfac_scales": S, "ekfac_step": h.in_bases([f(s) for s in S])}


# The bias.

def bias_apart(h: Hand, solve: Any, exact: Any) -> dict[str, Any]:
    A = [X[:-1, :-1] for X in h.A]
    weights, biases = ([V[:, part] for V in h.gradient] for part in (slice(0, -1), slice(-1, None)))
    damped = h.damped(A)
    step = [solve(G, b) for (_, G), b in zip(damped, biases, strict=True)]
    exactly = [exact(G, b) for G, b in zip(h.G, biases, strict=True)]
    bases = [(np.linalg.eigh(X)[1], Q_G) for X, (_, Q_G) in zip(A, h.bases(), strict=True)]
    return {"A": A, "ekfac_scales": h.scales(h.back(h.root), bases, [a[:, :-1] for a in h.a]),
            "step": [*map(np.hstack, zip(h.step(damped, weights), step, strict=True))],
            "step_exact_damping": [*map(np.hstack, zip(h.exact_step(A, weights), exactly, strict=True))]}

@entry("bias left out of A")
def _(h: Hand) -> dict[str, Any]:
    return bias_apart(h, lambda G, b: -b, lambda G, b: -b)

@entry("bias preconditioned apart")
def _(h: Hand) -> dict[str, Any]:
    found = bias_apart(h, lambda G, b: -np.linalg.solve(G, b),
                       lambda G, b: -np.linalg.solve(G + DAMPING * np.eye(len(G)), b))
    return found | {"kfac_product": [np.hstack([G @ V[:, :-1] @ A, G @ V[:, -1:]])
                                     for A, G, V in zip(found["A"], h.G, h.V, strict=True)]}


# The order.

@entry("row-major vec with kron(A, G)")
def _(h: Hand) -> dict[str, Any]:
    return {"step": h.step(order="C"), "step_empirical": h.step(h.damped(G=h.moments(h.g)), order="C"),
            "step_exact_damping": h.exact_step(h.A, h.gradient, "C"),
            "kfac_product": [(np.kron(A, G) @ V.ravel()).reshape(V.shape) for A, G, V in zip(h.A, h.G, h.V,
                                                                                           strict=True)]}

@entry("row-major vec with a column-major Fisher")
def _(h: Hand) -> dict[str, Any]:
    V = np.concatenate([v.ravel() for v in h.V])
    return {"natural_gradient": h.natural(h.F, order="C"),
            "fisher_product": [part.reshape(v.shape) for part, v in zip(np.split(h.F @ V, [25]), h.V, strict=True)]}

def together(V: Any) -> Any:
    return np.concatenate([V[:, :-1].ravel(), V[:, -1]]).reshape(V.shape)

def apart(V: Any) -> Any:
    m = len(V)
    return np.hstack([V.ravel()[:-m].reshape(m, -1), V.ravel()[-m:][:, None]])

@entry("weight and bias flattened apart and reshaped together")
def _(h: Hand) -> dict[str, Any]:
    return {"step": [*map(apart, h.step(V=[*map(together, h.gradient)]))]}

@entry("biases behind the weights in [W b]")
def _(h: Hand) -> dict[str, Any]:
    return {"gradient": [*map(together, h.gradient)], "step": [*map(together, h.step())]}

for _form, _order in (("", "C"), (" in column order", "F")):
    @entry(f"all weights, then all biases{_form}")
    def _(h: Hand, order: Any = _order) -> dict[str, Any]:
        D = [np.einsum("knm,nj->knmj", u, a) for u, a in zip(h.back(h.root), h.a, strict=True)]
        R = np.array([np.concatenate([*(d[k, n][:, :-1].ravel(order) for d in D), *(d[k, n][:, -1] for d in D)])
                      for k in range(3) for n in range(N)])
        return {"fisher": R.T @ R / N}

for _form, _by in (("", "F"), ("row-major ", "C")):
    @entry(f"bias left out of the {_form}dense matrices")
    def _(h: Hand, order: Any = _by) -> dict[str, Any]:
        D = [np.einsum("knm,nj->knmj", u, a[:, :-1]) for u, a in zip(h.back(h.root), h.a, strict=True)]
        R = np.array([np.concatenate([d[k, n].ravel(order) for d in D]) for k in range(3) for n in range(N)])
        return {"fisher": R.T @ R / N}

@entry("only A inverted")
def _(h: Hand) -> dict[str, Any]:
    return {q: [-V @ np.linalg.inv(A) for (A, _), V in zip(h.damped(G=G), h.gradient, strict=True)]
            for q, G in (("step", h.G), ("step_empirical", h.moments(h.g)),
                         ("step_sampled", h.moments(h.samples, N * M)))}

@entry("only G inverted")
def _(h: Hand) -> dict[str, Any]:
    return {"step_empirical": [-np.linalg.solve(G, V) for (_, G), V in zip(
        h.damped(G=h.moments(h.g)), h.gradient, strict=True)]}

@entry("ascent in place of descent")
def _(h: Hand) -> dict[str, Any]:
    return {"step_empirical": [-V for V in h.step(h.damped(G=h.moments(h.g)))],
            "natural_gradient": [-V for V in h.natural(h.F)],
            "ekfac_step": [-V for V in h.in_bases([s + DAMPING for s in h.scales(h.back(h.root))])]}

@entry("multiplied in place of solved")
def _(h: Hand) -> dict[str, Any]:
    V = np.concatenate([v.ravel("F") for v in h.gradient])
    P = -(h.F @ V + DAMPING * V)
    return {"step": [-G @ V @ A for (A, G), V in zip(h.damped(), h.gradient, strict=True)],
            "step_exact_damping": [-(G @ V @ A + DAMPING * V) for A, G, V in zip(h.A, h.G, h.gradient, strict=True)],
            "natural_gradient": [part.reshape(v.shape, order="F") for part, v in zip(np.split(P, [25]), h.gradient,
                                                                                    strict=True)]}

@entry("damped factors as A and G")
def _(h: Hand) -> dict[str, Any]:
    A, G = zip(*h.damped(), strict=True)
    return {"A": A, "G": G}


# Damping, weight decay, averages, the clip.

@entry("pi of Frobenius norms without the dimensions")
def _(h: Hand) -> dict[str, Any]:
    factors = h.damped(ratio=lambda X, Y: math.sqrt(np.linalg.norm(X) / np.linalg.norm(Y)))
    return {"A_damped": [A for A, _ in factors], "step": h.step(factors)}

@entry("pi of the largest eigenvalues")
def _(h: Hand) -> dict[str, Any]:
    factors = h.damped(ratio=lambda X, Y: math.sqrt(np.linalg.eigvalsh(X)[-1] / np.linalg.eigvalsh(Y)[-1]))
    return {"G_damped": [G for _, G in factors], "step": h.step(factors)}

@entry("root of the damping on the whole matrix")
def _(h: Hand) -> dict[str, Any]:
    S, F = h.scales(h.back(h.root)), h.F + (math.sqrt(DAMPING) - DAMPING) * np.eye(len(h.F))
    return {"ekfac_step": h.in_bases([s + math.sqrt(DAMPING) for s in S]), "natural_gradient": h.natural(F)}

@entry("pseudo-inverse in place of damping")
def _(h: Hand) -> dict[str, Any]:
    return {"step": [-np.linalg.pinv(G, 1e-10) @ V @ np.linalg.pinv(A, 1e-10)
                     for A, G, V in zip(h.A, h.G, h.gradient, strict=True)]}

@entry("A from the gradient of the weights")
def _(h: Hand) -> dict[str, Any]:
    return {"A": [D.T @ D for D in h.gradient]}

@entry("decoupled weight decay")
def _(h: Hand) -> dict[str, Any]:
    return {"gradient": h.loss_gradient, "step": [
        D - ETA * W for D, W in zip(h.step(V=h.loss_gradient), h.W, strict=True)]}

@entry("weight decay in the gradient and in the step")
def _(h: Hand) -> dict[str, Any]:
    return {"gradient": h.gradient, "step": [D - ETA * W for D, W in zip(h.step(), h.W, strict=True)]}

@entry("stale factors")
def _(h: Hand) -> dict[str, Any]:
    old = problem().previous
    assert old is not None
    return {"A": h.A, "step": h.step(h.damped(old.A, old.G))}

def averaged(h: Hand, old_weight: float, new_weight: float) -> tuple[list[Any], list[Any]]:
    old = problem().previous
    assert old is not None
    A, G = ([old_weight * X + new_weight * Y for X, Y in zip(before, now, strict=True)]
            for before, now in ((old.A, h.A), (old.G, h.moments(h.samples, N * M))))
    return A, G

@entry("averaged factors in the solve")
def _(h: Hand) -> dict[str, Any]:
    return {"A": h.A, "step": h.step(h.damped(*averaged(h, 0.8, 0.2)))}

for _name, _weights, _others in (
    ("average not normalized", (0.95, 1.0), ()), ("new factors added in full", (0.8, 1.0), ()),
    ("first batch whole, then a constant decay", (0.95, 0.05),          # equal from the second batch on
     ("average not corrected for its start", "average starts at the identity")),
):
    @entry(_name, *_others)
    def _(h: Hand, weights: Any = _weights) -> dict[str, Any]:
        return dict(zip(("A_average", "G_average"), averaged(h, *weights), strict=True))

@entry("KL clip with the exact Fisher")
def _(h: Hand) -> dict[str, Any]:
    v = np.concatenate([V.ravel("F") for V in h.step()])
    return {"step": h.step(), "kl_clip": math.sqrt(1e-3 / (0.1**2 * (v @ h.F @ v)))}


@functools.cache
def hand() -> Hand:
    return Hand()


@functools.cache
def reference() -> Reference:
    return Reference(problem())


def by_hand(name: str) -> dict[str, Any]:
    return {q: tuple(v) if isinstance(v, list) else v for q, v in ENTRIES[name](hand()).items()}


def gives(name: str, theirs: dict[str, Any]) -> bool:
    wrong = reference().having(CATALOGUE[name])
    try:
        return all(error(wrong.shown(q), value) < 1e-8 for q, value in theirs.items())
    except ValueError:
        return False


def test_by_hand_the_right_values_are_those_of_the_reference() -> None:
    h, r = hand(), reference()
    S = h.scales(h.back(h.root))
    right = {"A": h.A, "G": h.G, "gradient": h.gradient, "step": h.step(), "natural_gradient": h.natural(h.F),
             "step_exact_damping": h.exact_step(h.A, h.gradient), "ekfac_scales": S,
             "ekfac_step": h.in_bases([s + DAMPING for s in S])}
    assert all(error(r[q], tuple(v)) < 1e-10 for q, v in right.items())
    assert error(r["fisher"], h.F) < 1e-12


@pytest.mark.parametrize("name", list(ENTRIES))
def test_the_values_that_the_words_give_are_those_of_one_entry(name: str) -> None:
    theirs = by_hand(name)
    assert not all(error(reference()[q], value) < 1e-6 for q, value in theirs.items())
    assert {other for other in CATALOGUE if gives(other, theirs)} == EQUAL[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENTRIES))
def test_the_oracle_names_the_entry(name: str) -> None:
    explanations = check(problem(), by_hand(name)).explanations
    assert {e.names[0] for e in explanations if len(e.names) == 1} == EQUAL[name]


def test_a_clip_above_1_is_named() -> None:
    r, h = Reference(problem().replace(kl_clip=KLClip(30.0, 0.1))), hand()
    slope = -sum(np.vdot(V, D) for V, D in zip(h.step(), h.gradient, strict=True))
    clip = math.sqrt(30 / (0.1**2 * slope))
    assert clip > 1
    assert error(r.having(CATALOGUE["KL clip without its limit"])["kl_clip"], clip) < 1e-8
    report = check(r.problem, {"step": h.step(), "kl_clip": clip})
    assert "KL clip without its limit" in [e.names[0] for e in report.explanations]


def test_a_trajectory_of_the_weights_before_each_step_is_named() -> None:
    v = vector("trajectory-gaussian")
    W = v.expected["trajectory_weights"]
    before = tuple(np.concatenate([first[None], X[:-1]]) for first, X in zip(v.problem.weights, W, strict=True))
    wrong = Reference(v.problem).having(CATALOGUE["weights before each step"])
    assert error(wrong["trajectory_weights"], before) < 1e-8
    assert error(wrong["trajectory_alpha"], v.expected["trajectory_alpha"]) < 1e-8


def test_the_step_of_ekfac_is_that_of_the_package() -> None:
    at, r = problem().at(), reference()
    ours = tuple(scale(-1.0, EKFAC(at, DAMPING).solve(r["gradient"])))
    assert error(ours, r["ekfac_step"]) < 1e-10


# Faults of released libraries, as their users would see them.


def test_an_ekfac_with_rows_for_eigenvectors_and_scrambled_biases_is_named() -> None:
    """dattri 0.3.0: it rotates with Q V Q^T, and reshapes the flat W and b, one after the other, to one matrix."""
    h, steps, scales = hand(), [], []
    for a, g, A, G, V in zip(h.a, h.back(h.root), h.A, h.G, h.gradient, strict=True):
        q_a, q_s = np.linalg.eigh(A)[1], np.linalg.eigh(G)[1]
        S = np.mean([sum((q_s @ np.outer(u[n], a[n]) @ q_a.T)**2 for u in g) for n in range(N)], axis=0)
        together = np.concatenate([V[:, :-1].ravel(), V[:, -1]]).reshape(V.shape)
        D = (q_s.T @ (q_s @ together @ q_a.T / (S + DAMPING)) @ q_a).ravel()
        scales.append(S)
        steps.append(-np.column_stack([D[:-len(V)].reshape(len(V), -1), D[-len(V):]]))
    theirs = {"A": h.A, "G": h.G, "gradient": h.gradient, "ekfac_scales": scales, "ekfac_step": steps}
    report = check(problem(), theirs)
    assert [set(e.names) for e in report.explanations] == [{
        "eigenvectors taken as rows", "weight and bias flattened apart and reshaped together"}], str(report)


def test_all_classes_in_one_backward_pass_are_named() -> None:
    """pyDVL 0.10.0: the gradient of sum_c sqrt(p_c) log p_c, with p_c held in the root, and its outer products."""
    h = hand()
    dz = sum(np.sqrt(h.p[:, [c]]) * (h.p - h.one_hot[c]) for c in range(3))
    G = [g.T @ g / N for g in h.back(dz)]
    report = check(problem(), {"A": h.A, "G": G, "step": h.step(h.damped(G=G))})
    assert [e.names for e in report.explanations] == [("all columns in one backward pass",)]


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_without_biases_no_mistake_of_biases_is_tried(likelihood: str) -> None:
    """The others show the A of layers without a 1, and are found."""
    rng, sizes = np.random.default_rng(0), (4, 5, 3)
    y = rng.integers(0, 3, 7) if likelihood == "categorical" else rng.standard_normal((7, 3))
    p = Problem(sizes, ("tanh",), likelihood, [rng.standard_normal((5, 4)), rng.standard_normal((3, 5))],
                rng.standard_normal((7, 4)), y, 0.3, 0.1, bias=False)
    for name in ("A of the layer's output", "A before the nonlinearity", "g after the nonlinearity",
                 "slope left out of the backward pass"):
        r = Reference(p).having(CATALOGUE[name])
        theirs = {n: r.shown(n) for n in ("A", "G", "gradient")}
        assert [len(S) for S in r["A"]] == ([5, 3] if name.endswith("output") else [4, 5])
        assert [e.names for e in check(p, theirs).explanations] == [(name,)]
    apart = {"step": tuple(-V for V in Reference(p)["gradient"])}
    assert not any(m.of_biases for e in check(p, apart).explanations for m in e.mistakes)
    assert not any(m.of_biases for m in Diagnosis(Reference(p), apart).candidates)
    assert any(m.of_biases for m in Diagnosis(Reference(problem()), {}).candidates)


def test_eigenvectors_are_compared_up_to_their_signs_and_where_they_are_determined() -> None:
    p = problem()
    r, rng = Reference(p), np.random.default_rng(0)
    for name, of in (("A_basis", "A"), ("G_basis", "G")):
        theirs = [np.linalg.eigh(S)[1] for S in r[of]]
        turned = [Q * rng.choice([-1.0, 1.0], len(Q)) for Q in theirs]
        assert check(p, {name: turned}).ok
        assert check(p, {name: [Q.astype(np.float32) for Q in turned]}).ok
        exchanged = [Q[:, [1, 0, *range(2, len(Q))]] for Q in turned]
        report = check(p, {name: exchanged}, diagnose=False)
        assert not report.ok
        assert "columns 0, 1" in report.rows[0].where
        assert [e.names for e in check(p, {name: [Q[:, ::-1] for Q in turned]}).explanations] == [
            ("eigenvectors in descending order",)]
        rows = check(p, {name: [Q.T for Q in theirs]}).explanations
        assert ("eigenvectors taken as rows",) in [e.names for e in rows]


def test_eigenvectors_of_one_eigenvalue_may_be_any_basis_of_their_space() -> None:
    """With fewer examples than inputs, A has a null space."""
    rng = np.random.default_rng(1)
    p = Problem((6, 3), (), "gaussian", [rng.standard_normal((3, 7))], rng.standard_normal((4, 6)),
                rng.standard_normal((4, 3)), 0.3)
    values, Q = np.linalg.eigh(Reference(p)["A"][0])
    null = values < 1e-12
    assert null.sum() == 3
    other = Q.copy()
    other[:, null] = Q[:, null] @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert check(p, {"A_basis": [other]}).ok
    other[:, ~null] = other[:, ~null][:, ::-1]
    assert not check(p, {"A_basis": [other]}, diagnose=False).ok
