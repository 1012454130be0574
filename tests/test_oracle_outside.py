"""Wrong computations that no entry of the catalogue describes: none is explained by something with other values.

Each is plain NumPy on the quantities by hand of `test_oracle_entries`; what a program computes from a wrong A or G is
then wrong too. ``python -m tests.test_oracle_outside`` tries all of them.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from kfac_ref.oracle import check
from tests import composed
from tests.test_oracle_entries import DAMPING, Hand, N, problem, solved

Matrix = Any


def of_rows(u: Any) -> Matrix:
    """Return the mean over the examples of the outer products of rows (N, n), or of columns of rows (K, N, n)."""
    return u.reshape(-1, u.shape[-1]).T @ u.reshape(-1, u.shape[-1]) / N


def spectral(f: Callable[[Any], Any]) -> Callable[[Matrix], Matrix]:
    def mapped(S: Matrix) -> Matrix:
        values, Q = np.linalg.eigh(S)
        return Q * f(np.maximum(values, 0)) @ Q.T
    return mapped


def truncated(rank: int) -> Callable[[Matrix], Matrix]:
    return spectral(lambda values: np.where(np.arange(len(values)) >= len(values) - rank, values, 0))


def banded(S: Matrix) -> Matrix:
    return np.triu(np.tril(S, 1), -1)


def shrunk(S: Matrix) -> Matrix:
    return 0.7 * S + 0.3 * np.trace(S) / len(S) * np.eye(len(S))


def correlation(S: Matrix) -> Matrix:
    d = np.sqrt(np.diag(S))
    return S / np.outer(d, d)


#: What is done to each of the matrices A, or G, in place of nothing.
MATRICES: dict[str, Callable[[Matrix], Matrix]] = {
    "matrix root": spectral(np.sqrt), "logarithm of the eigenvalues": spectral(np.log1p),
    "largest two eigenvalues": truncated(2), "eigenvalues cut at their mean": spectral(
        lambda values: np.minimum(values, values.mean())), "root of each entry": lambda S: np.sqrt(np.abs(S)),
    "diagonal doubled": lambda S: S + np.diag(np.diag(S)), "unit trace": lambda S: S / np.trace(S),
    "correlations": correlation, "halved off the diagonal": lambda S: (S + np.diag(np.diag(S))) / 2,
    "shrunk": shrunk, "banded": banded, "in steps of a fiftieth": lambda S: np.round(50 * S) / 50,
    "absolute values": np.abs, "squared entries": np.square,
    "inverse": lambda S: np.linalg.inv(S + 1e-3 * np.eye(len(S)))}
#: What is done to the inputs of a layer, or to its gradients.
ROWS: dict[str, Callable[[Any], Any]] = {
    "signs": np.sign, "absolute rows": np.abs, "cubes": lambda u: u**3,
    "unit length": lambda u: u / np.linalg.norm(u, axis=-1, keepdims=True),
    "clipped": lambda u: np.clip(u, -0.1, 0.1),
    "half of the features dropped": lambda u: u * (np.arange(u.shape[-1]) % 2),
    "features reversed": lambda u: u[..., ::-1], "standardized": lambda u: u / (u.std(axis=-2, keepdims=True) + 0.1),
    "weighted by the row's number": lambda u: u * np.sqrt(np.arange(1, N + 1) / N)[:, None],
    "small entries dropped": lambda u: np.where(np.abs(u) < 0.3, 0, u)}


def with_slope(h: Hand, slope: Any) -> list[Matrix]:
    return [of_rows(h.root @ h.W[1][:, :-1] * slope), of_rows(h.root)]


#: Wrong backward passes and targets: the two matrices G.
BACKWARD: dict[str, Callable[[Hand], list[Matrix]]] = {
    "slope of relu": lambda h: with_slope(h, h.slope > 0.5),
    "slope not squared": lambda h: with_slope(h, 1 - h.a[1][:, :-1]),
    "root of the slope": lambda h: with_slope(h, np.sqrt(h.slope)),
    "signs of the weights": lambda h: [of_rows(h.root @ np.sign(h.W[1][:, :-1]) * h.slope), of_rows(h.root)],
    "weights before a step": lambda h: [of_rows(h.root @ (h.W[1] + h.gradient[1])[:, :-1] * h.slope), of_rows(h.root)],
    "column of the likeliest class": lambda h: [of_rows(u) for u in h.back(h.root[:1])],
    "focal loss": lambda h: [of_rows(u) for u in h.back((1 - h.p.max(axis=1, keepdims=True))**2 * h.root)],
    "misclassified examples": lambda h: [of_rows(u) for u in h.back(
        (h.p.argmax(axis=1) != h.y)[:, None] * h.root)],
    "squared probabilities": lambda h: [of_rows(u) for u in h.back(h.p**2 * h.root)]}


def by_layer(f: Callable[[Matrix, Matrix, Matrix], Matrix]) -> Callable[[Hand], list[Matrix]]:
    return lambda h: [-f(A, G, V) for A, G, V in zip(h.A, h.G, h.gradient, strict=True)]


def after(f: Callable[[Matrix], Matrix]) -> Callable[[Hand], list[Matrix]]:
    return lambda h: [f(D) for D in h.step()]


def in_eigenbases(f: Callable[[Any], Any]) -> Callable[[Matrix, Matrix, Matrix], Matrix]:
    """Return a solve that divides by a function of the eigenvalues of A ⊗ G."""
    def solve(A: Matrix, G: Matrix, V: Matrix) -> Matrix:
        (a, Q), (g, U) = np.linalg.eigh(A), np.linalg.eigh(G)
        return U @ (U.T @ V @ Q / f(np.abs(np.outer(g, a)))) @ Q.T
    return solve


def diagonal(A: Matrix, G: Matrix, V: Matrix) -> Matrix:
    return V / (np.outer(np.diag(G), np.diag(A)) + DAMPING)


def neumann(A: Matrix, G: Matrix, V: Matrix) -> Matrix:
    """Three terms of a Neumann series."""
    c = 1 / (np.linalg.norm(A, 2) * np.linalg.norm(G, 2) + DAMPING)
    X = c * V
    for _ in range(3):
        X = X + c * (V - G @ X @ A - DAMPING * X)
    return X


def conjugate_gradients(A: Matrix, G: Matrix, V: Matrix) -> Matrix:
    """Three steps of conjugate gradients."""
    X, R, P = 0 * V, V, V
    for _ in range(3):
        Q = G @ P @ A + DAMPING * P
        alpha = np.vdot(R, R) / np.vdot(P, Q)
        X, S = X + alpha * P, R - alpha * Q
        R, P = S, S + np.vdot(S, S) / np.vdot(R, R) * P
    return X


def damped_by_the_trace(A: Matrix, G: Matrix, V: Matrix) -> Matrix:
    return solved(np.kron(A, G) + DAMPING * np.trace(A) * np.trace(G) / V.size * np.eye(V.size), V)


def rooted(power: float) -> Callable[[Matrix, Matrix, Matrix], Matrix]:
    def solve(A: Matrix, G: Matrix, V: Matrix) -> Matrix:
        left, right = (scipy.linalg.fractional_matrix_power(S + math.sqrt(DAMPING) * np.eye(len(S)), power)
                       for S in (G, A))
        return left.real @ V @ right.real
    return solve


#: Wrong solves with the right A, G and gradient.
STEPS: dict[str, Callable[[Hand], list[Matrix]]] = {
    "signs of the step": after(np.sign), "clipped step": after(lambda D: np.clip(D, -0.05, 0.05)),
    "centred step": after(lambda D: D - D.mean(axis=1, keepdims=True)),
    "mean with the gradient": lambda h: [(D - V) / 2 for D, V in zip(h.step(), h.gradient, strict=True)],
    "trust ratio": lambda h: [D * np.linalg.norm(W) / np.linalg.norm(D) for D, W in zip(h.step(), h.W, strict=True)],
    "one decimal": after(lambda D: np.round(D, 1)), "diagonals": by_layer(diagonal),
    "Neumann series": by_layer(neumann), "conjugate gradients": by_layer(conjugate_gradients),
    "fourth roots": by_layer(rooted(-0.25)),
    "square roots": by_layer(rooted(-0.5)),
    "eigenvalues floored": by_layer(in_eigenbases(lambda s: np.maximum(s, DAMPING))),
    "root of the squares": by_layer(in_eigenbases(lambda s: np.sqrt(s**2 + DAMPING**2))),
    "small eigenvalues left": by_layer(in_eigenbases(lambda s: np.where(s > DAMPING, s, 1))),
    "cubed damping": by_layer(in_eigenbases(lambda s: s + DAMPING * s**0.3)),
    "median for the mean in pi": lambda h: h.step(h.damped(ratio=lambda A, G: math.sqrt(
        np.median(np.diag(A)) / np.median(np.diag(G))))),
    "determinants in pi": lambda h: h.step(h.damped(ratio=lambda A, G: (
        abs(np.linalg.det(A))**(1 / len(A)) / abs(np.linalg.det(G) + 1e-6)**(1 / len(G)))**0.5)),
    "damped by the trace": by_layer(damped_by_the_trace)}


@functools.cache
def hand() -> Hand:
    return Hand()


def computations() -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """Return each wrong computation by name: the quantity that is wrong first, and a function that gives all four."""
    def all_four(A: Any = None, G: Any = None, step: Any = None) -> dict[str, Any]:
        h = hand()
        return {"A": A or h.A, "G": G or h.G, "gradient": h.gradient, "step": step or h.step(h.damped(A, G))}

    found: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {}
    for name, f in MATRICES.items():
        found[f"A: {name}"] = "A", lambda f=f: all_four(A=[f(S) for S in hand().A])
        found[f"G: {name}"] = "G", lambda f=f: all_four(G=[f(S) for S in hand().G])
    for name, f in ROWS.items():
        found[f"A: {name}"] = "A", lambda f=f: all_four(A=[of_rows(f(a)) for a in hand().a])
        found[f"G: {name}"] = "G", lambda f=f: all_four(G=[of_rows(f(g)) for g in hand().back(hand().root)])
    for name, f in BACKWARD.items():
        found[f"G: {name}"] = "G", lambda f=f: all_four(G=f(hand()))
    for name, f in STEPS.items():
        found[f"step: {name}"] = "step", lambda f=f: all_four(step=f(hand()))
    return found


def judged(name: str) -> str:
    """Return "unexplained", "identical" (to what an explanation gives), or what is wrong with the report."""
    place, compute = computations()[name]
    theirs = {q: tuple(map(np.asarray, value)) for q, value in compute().items()}
    report = check(problem(), theirs)
    if report.ok:
        return "taken for right"
    for e in report.explanations:
        if not composed.same(composed.values(problem(), e.mistakes, theirs), theirs, 1e-6):
            return f"wrongly explained by {' with '.join(e.names)}"
    if report.explanations:
        return "identical"
    return "unexplained" if report.begins and report.begins[0] == place else f"said to begin in {report.begins}"


ALL = list(computations())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL[::26])
def test_what_no_entry_describes_is_not_explained(name: str) -> None:
    assert judged(name) in ("unexplained", "identical")


def test_they_are_sixty_and_each_is_wrong() -> None:
    assert len(ALL) >= 60
    right = {"A": hand().A, "G": hand().G, "step": hand().step()}
    for name in ALL:
        place, compute = computations()[name]
        theirs = compute()
        assert all(np.isfinite(X).all() for value in theirs.values() for X in value), name
        assert not composed.close(tuple(theirs[place]), tuple(right[place]), 1e-6), name


if __name__ == "__main__":
    verdicts = {name: judged(name) for name in ALL}
    for name, verdict in verdicts.items():
        print(f"{name:45}{verdict}")
    counts = {v: list(verdicts.values()).count(v) for v in ("unexplained", "identical")}
    bad = len(ALL) - sum(counts.values())
    print(f"{len(ALL)} computations: {counts['unexplained']} unexplained with the right place, {counts['identical']} "
          f"identical to their explanation, {bad} others")
    sys.exit(int(bad > 0))
