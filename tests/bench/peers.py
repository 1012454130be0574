"""Time kfac_ref against curvlinops (PyTorch) and kfac-jax, as ratios in one run; what is not installed is skipped.

    python tests/bench/peers.py [--quick]

The same quantities of the same nets and batch, in the same precision and on the same number of threads
(OPENBLAS_NUM_THREADS, else one a core):

* curvlinops: the gradient, A and G from one sampled target for each case, the damped inverses, the preconditioned
  gradient. It has no optimizer.
* kfac-jax: one step of its optimizer with sampled targets, adaptive learning rate and momentum (so with exact-F
  products) and adaptive lambda every fifth step, with new inverses in every step, and between two of them.

Ratios above 1 say how many times longer the peer takes. Nothing here compares values; the peers' tests do.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from family import turns
from step import LARGE, SMALL, N

import kfac_ref as kr
from kfac_ref.environment import environment

DAMPING = 0.1
#: What a comparison is made of: its name, our function, the peer's.
Pair = tuple[str, Callable[[], Any], Callable[[], Any]]


def problem(model: kr.Model, dtype: Any) -> tuple[list[Any], Any, Any]:
    """Return weights, inputs and targets."""
    rng = np.random.default_rng(0)
    x = rng.random((N, model.network.sizes[0])).astype(dtype)
    y: Any = x if isinstance(model.likelihood, kr.Bernoulli) else rng.integers(0, model.network.sizes[-1], N)
    return model.init(rng, dtype=dtype), x, y


def names(model: kr.Model) -> tuple[str, ...]:
    """Return the names of the nonlinearities, the output's included."""
    hidden = model.network.hidden
    between = len(model.network.sizes) - 2
    return (*((hidden,) * between if isinstance(hidden, str) else hidden), "identity")


def curvlinops_pairs(model: kr.Model, dtype: Any) -> Iterator[Pair]:
    """Yield the comparison with curvlinops."""
    import torch
    from curvlinops import FisherType, KFACInverseLinearOperator, KFACLinearOperator

    torch.set_num_threads(int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1)))
    weights, x, y = problem(model, dtype)
    modules = {"tanh": torch.nn.Tanh, "logistic": torch.nn.Sigmoid, "identity": torch.nn.Identity}
    layers: list[Any] = []
    for W, name in zip(weights, names(model), strict=True):
        layer = torch.nn.Linear(W.shape[1] - 1, W.shape[0], dtype=torch.from_numpy(W).dtype)
        with torch.no_grad():
            layer.weight[:], layer.bias[:] = torch.from_numpy(W[:, :-1]), torch.from_numpy(W[:, -1])
        layers += [layer, modules[name]()]
    network = torch.nn.Sequential(*layers[:-1])
    loss = torch.nn.BCEWithLogitsLoss() if isinstance(model.likelihood, kr.Bernoulli) else torch.nn.CrossEntropyLoss()
    parameters, X, Y = list(network.parameters()), torch.from_numpy(x), torch.from_numpy(y)
    rng = np.random.default_rng(1)

    def ours() -> Any:
        at = model.at(weights, x)
        factors = kr.kronecker_factors(at, kr.sampled(at.sample(rng)))
        return kr.curvature.BlockDiagonal(factors, DAMPING).kept().solve(at.gradient(y))

    def theirs() -> Any:
        K = KFACLinearOperator(network, loss, parameters, [(X, Y)], check_deterministic=False,
                               fisher_type=FisherType.MC, separate_weight_and_bias=False)
        inverse = KFACInverseLinearOperator(K, damping=DAMPING, use_heuristic_damping=True)
        return inverse @ list(torch.autograd.grad(loss(network(X), Y), parameters))

    yield "preconditioned gradient, curvlinops", ours, theirs


def kfac_jax_pairs(model: kr.Model, dtype: Any) -> Iterator[Pair]:
    """Yield the comparisons with kfac-jax."""
    import jax
    import kfac_jax

    jax.config.update("jax_enable_x64", dtype == np.float64)
    weights, x, y = problem(model, dtype)
    phi = {"tanh": jax.numpy.tanh, "logistic": jax.nn.sigmoid, "identity": lambda s: s}
    activations = [phi[name] for name in names(model)]
    bits = isinstance(model.likelihood, kr.Bernoulli)

    def h(parameters: Any, batch: Any) -> Any:
        a, target = batch
        for (w, b), f in zip(parameters, activations, strict=True):
            a = f(a @ w + b)
        if bits:
            kfac_jax.register_multi_bernoulli_predictive_distribution(a, targets=target)
            return (jax.nn.softplus(a) - target * a).sum(axis=1).mean()
        kfac_jax.register_categorical_predictive_distribution(a, targets=target)
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(a), target[:, None], axis=1).mean()

    for period, name in ((1, "step with new inverses, kfac-jax"), (10**6, "step with kept inverses, kfac-jax")):
        optimizer = kfac_jax.Optimizer(
            jax.value_and_grad(h), l2_reg=model.weight_decay, use_adaptive_learning_rate=True,
            use_adaptive_momentum=True, use_adaptive_damping=True, initial_damping=1.0, min_damping=1e-4,
            num_burnin_steps=0, inverse_update_period=period, estimation_mode="fisher_gradients")
        batch = (jax.numpy.asarray(x), jax.numpy.asarray(y))
        parameters = [(jax.numpy.asarray(W[:, :-1].T), jax.numpy.asarray(W[:, -1])) for W in weights]
        key = jax.random.PRNGKey(0)
        theirs_at = [parameters, optimizer.init(parameters, key, batch)]
        opt = kr.optimizers.KFAC(model, tau1=1, T2=10**6, T3=1 if period == 1 else 10**6, judged_on="same batch", T1=5)
        ours_at = [opt.init(weights)]

        def ours(opt: Any = opt, at: list[Any] = ours_at, x: Any = x, y: Any = y) -> Any:
            at[0], record = opt.step(at[0], x, y)
            return record

        def theirs(optimizer: Any = optimizer, at: list[Any] = theirs_at, batch: Any = batch, key: Any = key) -> None:
            parameters, state, _ = optimizer.step(at[0], at[1], key, batch=batch)
            at[:] = jax.block_until_ready((parameters, state))

        for _ in range(6):                              # past what is compiled at first, and where lambda adapts
            ours()
            theirs()
        yield name, ours, theirs


PEERS = {"curvlinops": ("curvlinops-for-pytorch", curvlinops_pairs), "kfac_jax": ("kfac-jax", kfac_jax_pairs)}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    quick = parser.parse_args().quick
    installed = {}
    for module, (package, pairs) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            print(f"skipped: {package} is not installed")
        else:
            installed[f"{package} {version(package)}"] = pairs
    if not installed:
        return
    e = environment()
    print(f"{', '.join(installed)}; {e['cores']} cores, {e['machine']}, NumPy {e['numpy']}, batch {N}; "
          f"threads: {e['threads']}\n")
    print(f"{'peer / kfac_ref':80s} {'ours ms':>9s} {'peer ms':>9s} {'ratio':>6s}")
    for title, model, repeats in (("64-128-64-10", SMALL, 50), ("784-1000-500-250-30-...-784", LARGE, 10)):
        for dtype in (np.float32, np.float64):
            for pairs in installed.values():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")     # the peers' own deprecations
                    for name, ours, theirs in pairs(model, dtype):
                        mine, peer = turns(ours, theirs, 3 if quick else repeats)
                        print(f"{f'{name}, {title} {np.dtype(dtype).name}':80s} {1e3 * mine:9.2f} {1e3 * peer:9.2f} "
                              f"{peer / mine:6.2f}", flush=True)


if __name__ == "__main__":
    main()
