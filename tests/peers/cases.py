"""The problems that the peers are run on, what we expect of them, and how far a peer is from it.

The problems are the published test vectors; where those are not installed, a small set of our own takes their place.
There the numbers of nodes, examples and outputs are different primes, so that no two scales agree by chance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kfac_ref as kr
from kfac_ref.oracle import Problem, Reference
from kfac_ref.oracle.dialects import DIALECTS
from tests.problems import LIKELIHOODS

VECTORS = Path(kr.__file__).parent / "vectors" / "v1"
#: Peers differentiate for themselves: at a kink two derivatives are right.
SMOOTH = {"identity", "tanh", "logistic"}
TOLERANCE = 1e-10


def own(likelihood: str, sizes: tuple[int, ...], hidden: tuple[str, ...], N: int, M: int = 3, seed: int = 0) -> Problem:
    """Make a problem."""
    rng = np.random.default_rng(seed)
    model = kr.Model(kr.MLP(sizes, hidden), LIKELIHOODS[likelihood])
    weights = tuple(rng.standard_normal(shape) / np.sqrt(shape[1] / 2) for shape in model.network.shapes)
    at = model.at(weights, rng.standard_normal((N, sizes[0])))
    y: Any = rng.integers(0, sizes[-1], N) if likelihood == "categorical" else rng.standard_normal((N, sizes[-1]))
    if likelihood == "bernoulli":
        y = (y > 0).astype(float)
    return Problem(sizes, hidden, likelihood, weights, at.x, y, 0.3, 0.02, np.stack([at.sample(rng) for _ in range(M)]),
                   name=f"own-{likelihood}-{'-'.join(map(str, sizes))}")


@functools.cache
def cases() -> tuple[Problem, ...]:
    """Return all problems with smooth nonlinearities."""
    found = [Problem.read(path) for path in sorted(VECTORS.glob("*.json"))] or [
        *(own(likelihood, (3, 7, 5), ("tanh",), 11) for likelihood in LIKELIHOODS),
        own("categorical", (2, 5, 3, 7), ("tanh", "logistic"), 13, seed=1)]
    return tuple(case for case in found if SMOOTH.issuperset(case.hidden))


def those(supports: Callable[[Problem], bool]) -> list[Problem]:
    """Return the problems that a peer can be run on."""
    return [case for case in cases() if supports(case)]


def case(likelihood: str) -> Problem:
    """Return the problem of our own on which deviations are measured."""
    return own(likelihood, (3, 7, 5), ("tanh",), 11)


@functools.cache
def reference(case: Problem) -> Reference:
    """Return the right numbers."""
    return Reference(case)


def differences(dialect: str, quantities: Mapping[str, Any], case: Problem) -> dict[str, float]:
    """Return how far each of a peer's numbers is from ours, through its dialect.

    The largest entry of the difference over the largest of ours, array by array; the worst layer counts.
    """
    theirs = DIALECTS[dialect].ours(quantities, case)
    found = {}
    for name, value in theirs.items():
        value, ours = (value, reference(case)[name]) if isinstance(value, list) else ([value], [reference(case)[name]])
        found[name] = max(distance(a, b) for a, b in zip(value, ours, strict=True))
    return found


def verdicts(dialect: str, quantities: Mapping[str, Any], case: Problem,
             known: Callable[[Problem, str], str | None]) -> dict[str, tuple[float, str]]:
    """Return each distance with a verdict: "agrees", "known: ..." (and it is indeed no agreement), or "DIFFERS".

    `known` says of a problem and a quantity why they differ, where that is known.
    """
    found = {}
    for name, d in differences(dialect, quantities, case).items():
        reason = known(case, name)
        verdict = ("agrees" if d < TOLERANCE else "DIFFERS") if reason is None else (
            f"known: {reason}" if d > TOLERANCE else "DIFFERS from what is known: it agrees")
        found[name] = (d, verdict)
    return found


def disagreements(*args: Any) -> dict[str, tuple[float, str]]:
    """Return the verdicts that nobody expected: none, if all is well."""
    return {name: (d, verdict) for name, (d, verdict) in verdicts(*args).items() if verdict.startswith("DIFFERS")}


def distance(a: Any, b: Any) -> float:
    """Return the largest difference over the largest entry of `b`; where `b` is 0 throughout, the difference."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"shape {a.shape}, ours {b.shape}"
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


def separate_step(A: Sequence[Any], G: Sequence[Any], gradient: Sequence[Any], damping: float) -> list[Any]:
    """Return the step of A without the bias: W by both damped factors, b by the damped G of the same pi."""
    steps = []
    for a, g, V in zip(A, G, gradient, strict=True):
        a = a[:-1, :-1]
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        U = np.linalg.solve(g + np.sqrt(damping) / pi * np.eye(len(g)), V)
        W = np.linalg.solve(a + pi * np.sqrt(damping) * np.eye(len(a)), U[:, :-1].T).T
        steps.append(-np.column_stack([W, U[:, -1]]))
    return steps


def network(case: Problem) -> Any:
    """Return the problem's network in PyTorch, in float64, as a Sequential with a Linear module a layer."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    phi = {"tanh": torch.nn.Tanh, "logistic": torch.nn.Sigmoid}
    layers: list[Any] = []
    for W, name in zip(case.weights, (*case.hidden, "identity"), strict=True):
        layer = torch.nn.Linear(W.shape[1] - 1, W.shape[0])
        with torch.no_grad():
            layer.weight[:], layer.bias[:] = torch.from_numpy(W[:, :-1]), torch.from_numpy(W[:, -1])
        layers += [layer, phi[name]()] if name in phi else [layer]
    return torch.nn.Sequential(*layers)


def linear_names(net: Any) -> list[str]:
    """Return the names of its Linear modules, in the order of the layers."""
    return [name for name, module in net.named_children() if hasattr(module, "weight")]


def torch_loss(case: Problem, reduction: str = "mean") -> Any:
    """Return the loss of torch that the likelihood stands for."""
    import torch

    name = {"categorical": "CrossEntropyLoss", "gaussian": "MSELoss", "bernoulli": "BCEWithLogitsLoss"}[case.likelihood]
    return getattr(torch.nn, name)(reduction=reduction)


def tensors(case: Problem) -> tuple[Any, Any]:
    """Return x and y."""
    import torch

    return torch.from_numpy(np.array(case.x)), torch.from_numpy(np.array(case.y))


def pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return W, b, W, b, ... as one pair a layer, in NumPy."""
    arrays = [v.detach().numpy() for v in values]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def torch_gradient(case: Problem, net: Any, scale: float) -> list[Any]:
    """Return the gradient of torch's loss, with the weight decay in the units of that loss."""
    import torch

    x, y = tensors(case)
    parameters = list(net.parameters())
    h = torch_loss(case)(net(x), y) + scale * case.weight_decay / 2 * sum((p**2).sum() for p in parameters)
    return list(torch.autograd.grad(h, parameters))
