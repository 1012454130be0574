"""Another parameterization: undamped K-FAC does not depend on it, gradient descent does (the paper's sec. 10).

    python figures/invariance.py [--quick] [--pdf] [--out DIR]

A small network is re-parameterized at random. Both parameterizations of the same function are trained by the same
method with a fixed step size, and the figure shows the distance between the two functions: for undamped F̆ and
F̂ (zero up to rounding), for F̆ at three dampings, and for gradient descent. The paper has no such figure; the
subject is its Theorem 1. Writes ``invariance.png`` and ``invariance.json``. Takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import kfac_ref as kr
from kfac_ref import plotting
from kfac_ref.analysis import TransformedMLP, transform
from kfac_ref.experiments import script

HERE = Path(__file__).parent / "invariance"
Step = Callable[[kr.Point, object], list[np.ndarray]]


def methods() -> dict[str, tuple[Step, float]]:
    """Return (direction, step size) by name."""
    def kfac(row: kr.Approximation, damping: float) -> Step:
        return lambda at, y: row.at(at, damping).solve(at.gradient(y))

    F_breve, F_hat = kr.approximations.BLOCK_DIAGONAL, kr.approximations.BLOCK_TRIDIAGONAL
    return {"F̆, undamped": (kfac(F_breve, 0.0), 0.2), "F̂, undamped": (kfac(F_hat, 0.0), 0.2),
            **{f"F̆, damping {d:g}": (kfac(F_breve, d), 0.2) for d in (1e-12, 1e-8, 1e-4)},
            "gradient descent": (lambda at, y: at.gradient(y), 0.002)}


def distances(steps: int) -> dict[str, list[float]]:
    """Return the distance between the two functions after each step, relative to the distance moved, per method."""
    rng = np.random.default_rng(0)
    network = kr.MLP((5, 6, 6, 4), "tanh")
    x, y = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
    # Random maps of condition 10: far from the identity, but conditioned well enough for agreement to many digits.
    def well_conditioned(n: int) -> np.ndarray:
        Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
        return Q * np.logspace(-0.5, 0.5, n)

    Omega, Phi = ([well_conditioned(shape[j]) for shape in network.shapes] for j in (1, 0))
    plain, other = (kr.Model(net, kr.Gaussian()) for net in (network, TransformedMLP(network, Omega, Phi)))
    start = plain.init(rng, "glorot")
    z0 = plain.at(start, x).z
    found = {}
    for name, (direction, size) in methods().items():
        weights, theirs = start, transform(start, Omega, Phi)
        found[name] = []
        for _ in range(steps):
            at, there = plain.at(weights, x), other.at(theirs, x)
            weights = kr.params.add(weights, kr.params.scale(-size, direction(at, y)))
            theirs = kr.params.add(theirs, kr.params.scale(-size, direction(there, y)))
            z, z_there = plain.at(weights, x).z, other.at(theirs, x).z
            found[name].append(float(np.linalg.norm(z - z_there) / np.linalg.norm(z - z0)))
    return found


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run all methods in both parameterizations and write picture and numbers to `out`; return 0."""
    found = distances(3 if quick else 30)
    last = {name: values[-1] for name, values in found.items()}
    text = ("Two descriptions of one network, trained by the same method: distance of the two functions on 60 cases, "
            "relative to how far they have moved, after each step. At the end: "
            + "; ".join(f"{name}: {value:.1g}" for name, value in last.items()) + ".")
    figure = plotting.lines(np.arange(1, len(next(iter(found.values()))) + 1), found, "steps",
                   "distance of the two functions\n(relative)", text, log_x=False)
    script.save(figure, {"distances": found}, out / "invariance", formats, force)
    print(text)
    return 0


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
