"""How often the test of a sampled G accuses right values, and how often it notices wrong ones.

    python tests/bench/power.py [--quick]

The networks, the draws and G are made here, in plain NumPy; only `judge` is the package's.

* False alarms: confident networks, in which another than the likeliest label has the probability q = 1e-2 to 1e-10.
* Power: of each mistake, the share of draws in which it is noticed, and in how many a wrong cause was named.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from kfac_ref.oracle import Problem
from kfac_ref.oracle.sampling import judge

#: The probabilities of another than the likeliest label, and the numbers of samples, of the false alarms.
RARE, SAMPLES = tuple(10.0**-np.arange(2, 11)), (1, 10, 100, 1000, 10_000)
#: Draws without a rare label are those of the likeliest label.
MODE = "likeliest label in place of a sample"
Array = np.ndarray[Any, Any]


@dataclass
class Net:
    """A softmax network with one hidden tanh layer, and its G from counts of labels."""

    problem: Problem
    p: Array            # (N, C)
    squares: list[Array]        # per layer (N C, m^2): g g^T of each example and label
    z: Array

    def G(self, counts: Array, M: int) -> Iterator[list[Array]]:
        """Yield G of each row of counts (R, N, C) of M labels per example."""
        flat = counts.reshape(len(counts), -1) / (len(self.p) * M)
        layers = [(flat @ s).reshape(len(flat), round(s.shape[1]**0.5), -1) for s in self.squares]
        yield from ([layer[r] for layer in layers] for r in range(len(flat)))


def net(sizes: tuple[int, int, int], N: int, seed: int, q: float | None = None, gain: float = 1.0) -> Net:
    """Return a random network; with q, one whose first label has about the probability 1 - q."""
    rng = np.random.default_rng(seed)
    d, m, C = sizes
    x = rng.standard_normal((N, d))
    W1 = rng.standard_normal((m, d + 1)) / np.sqrt(d)
    W2 = gain * rng.standard_normal((C, m + 1)) / np.sqrt(m)
    if q is not None:
        W2[0, -1] += np.log((1 - q) * (C - 1) / q)
    a = np.tanh(x @ W1[:, :-1].T + W1[:, -1])
    z = a @ W2[:, :-1].T + W2[:, -1]
    p = softmax(z)
    dz = np.repeat(p[:, None], C, axis=1)                       # (N, label, C): p - onehot(label)
    each = np.arange(C)
    dz[:, each, each] = 0
    dz[:, each, each] = -dz.sum(axis=2)
    g = [(dz @ W2[:, :-1]) * (1 - a**2)[:, None], dz]
    y = np.where(rng.random(N) < 0.7, z.argmax(axis=1), rng.integers(0, C, N))
    squares = [(h[..., :, None] * h[..., None, :]).reshape(N * C, -1) for h in g]
    return Net(Problem(sizes, ("tanh",), "categorical", [W1, W2], x, y), p, squares, z)


def softmax(z: Array) -> Array:
    """Return the probabilities of the labels."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def label_counts(rng: np.random.Generator, p: Array, M: int, R: int) -> Array:
    """Return how often each label occurs among M, (R, N, C): first how many are not the likeliest, then which."""
    leader = p.argmax(axis=1)
    rest = p.copy()
    rest[np.arange(len(p)), leader] = 0
    q = rest.sum(axis=1)
    others = rng.binomial(M, np.minimum(q, 1), (R, len(p)))
    counts = np.zeros((R, *p.shape))
    counts[:, np.arange(len(p)), leader] = M - others
    for n in range(len(p)):
        r = np.flatnonzero(others[:, n])
        if len(r):
            counts[r, n] += rng.multinomial(others[r, n], rest[n] / q[n])
    return counts


def false_alarms(draws: int, rare: Sequence[float] = RARE, samples: Sequence[int] = SAMPLES,
                 seed: int = 0) -> Iterator[tuple[float, int, int]]:
    """Yield q, M, and how many of the draws were accused; half of them are of each of two networks."""
    for i, q in enumerate(rare):
        for k, M in enumerate(samples):
            accused = 0
            for sizes, N in (((3, 5, 3), 12), ((6, 8, 10), 50)):
                made = net(sizes, N, 1000 * seed + 10 * i + k, q, 0.5)
                counts = label_counts(np.random.default_rng((seed, i, k, N)), made.p, M, draws // 2)
                accused += sum(not judge(made.problem, G, M).right for G in made.G(counts, M))
            yield q, M, accused


def mistakes(made: Net, M: int, R: int, seed: int = 0) -> Iterator[tuple[str, str | None, Iterator[list[Array]]]]:
    """Yield the mistake, the name of its explanation, and values of G that have it."""
    rng = np.random.default_rng((seed, M))
    N, C = made.p.shape

    def draw(p: Array, M: int = M) -> Iterator[list[Array]]:
        return made.G(label_counts(rng, p, M, R), M)

    def times(c: float) -> Iterator[list[Array]]:
        return ([c * S for S in G] for G in draw(made.p))

    yield "right", None, draw(made.p)
    yield "twice", "G twice too large", times(2)
    yield "half", "G half too small", times(0.5)
    yield "times N", "G summed over the examples", times(N)
    yield "labels", "labels in place of the model's targets", made.G(np.eye(C)[None, made.problem.y], 1)
    yield "uniform targets", "targets from a uniform distribution", draw(np.full((N, C), 1 / C))
    yield "temperature 2", None, draw(softmax(made.z / 2))
    yield "temperature 1/2", None, draw(softmax(2 * made.z))
    yield "any temperature", None, (G for T in np.exp(rng.uniform(-1.5, 1.5, R)) for G in made.G(
        label_counts(rng, softmax(made.z / T), M, 1), M))
    if M >= 10:
        yield "a tenth of M", None, draw(made.p, M // 10)
    yield "ten times M", None, draw(made.p, 10 * M)


NETS = {"3-4-3, N = 15": ((3, 4, 3), 15, 1.0, None), "6-10-10, N = 60": ((6, 10, 10), 60, 1.0, None),
        "20-16-10, N = 250": ((20, 16, 10), 250, 1.0, None), "6-10-10, N = 60, q = 1e-2": ((6, 10, 10), 60, 0.5, 1e-2)}


def print_power(draws: int) -> None:
    """Print how often each mistake is noticed."""
    columns = [mistake for mistake, *_ in mistakes(net((2, 2, 2), 1, 0), 10, 1)]
    print(f"Noticed, in %\n\n| network | M | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    named, judged = Counter[tuple[str, str]](), 0
    for name, (sizes, N, gain, q) in NETS.items():
        made = net(sizes, N, 1, q, gain)
        for M in (1, 10, 100, 1000):
            cells = dict.fromkeys(columns, "-")
            for mistake, cause, values in mistakes(made, M, draws):
                found = [judge(made.problem, G, M) for G in values]
                cells[mistake] = f"{100 * np.mean([not j.right for j in found]):.3g}"
                judged += len(found)
                named.update((mistake, m.name) for j in found for m in j.explanations if m.name not in (cause, MODE))
            print(f"| {name} | {M} | {' | '.join(cells.values())} |", flush=True)
    print(f"\nAnother cause was named in {named.total()} of {judged:,}: {dict(named)}")


def print_false_alarms(draws: int) -> None:
    """Print which of this many draws per q and M were accused."""
    print("\n| q | M | draws | accused |\n|---|---|---|---|")
    total = 0
    for q, M, accused in false_alarms(draws):
        total += accused
        if accused:
            print(f"| {q:.0e} | {M} | {draws} | {accused} |", flush=True)
    print(f"| all | | {len(RARE) * len(SAMPLES) * draws:,} | {total} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    quick = parser.parse_args().quick
    print_power(20 if quick else 200)
    print_false_alarms(44 if quick else 446)


if __name__ == "__main__":
    main()
