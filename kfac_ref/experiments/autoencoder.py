"""The digits autoencoder: K-FAC against tuned baselines, in iterations and in seconds.

64-32-16-8-16-32-64, logistic units, a linear code layer, Bernoulli likelihood. K-FAC against SGD with Nesterov's
momentum and against Adam, both with large and with small batches. The settings come from the grids of `METHODS`,
which give every method the same number of trials; `comparison.tune` runs them again, on seeds of their own. The
iterations of the methods are chosen so that all take about as long. K-FAC judges its steps as in the paper.
"""

from __future__ import annotations

from .. import training
from ..datasets import Dataset
from ..model import Model
from . import comparison
from .comparison import Comparison, Method
from .settings import PAPER_RULE, Settings

#: The errors (mean over examples of the sum of squared differences) to which iterations and seconds are counted.
LEVELS = (3.0, 2.0, 1.5, 1.0, 0.8, 0.7, 0.6)
SEEDS = (0, 1, 2)
TUNING_SEEDS = (100, 101)

_KFAC_GRID = {"lambda_0": (0.001, 0.01, 0.1, 1), "tau1": (1 / 8, 1 / 4), "T3": (5, 20),
              **{name: (value,) for name, value in PAPER_RULE.items()}}
_SGD_GRID = {"learning_rate": (0.03, 0.05, 0.08, 0.12), "mu_max": (0.995, 0.999), "period": (5, 10)}
_ADAM_GRID = {"learning_rate": (0.01, 0.02, 0.03, 0.05), "beta1": (0.8, 0.9), "beta2": (0.98, 0.99)}

#: Their `settings` are what `tune` chose out of the grid.
METHODS: dict[str, Method] = {
    "K-FAC, m = 500": Method("kfac", "500", 900, {"lambda_0": 0.01, "tau1": 1 / 4, "T3": 5, **PAPER_RULE}, _KFAC_GRID),
    "SGD, m = 500": Method("sgd", "500", 2400, {"learning_rate": 0.08, "mu_max": 0.995, "period": 10}, _SGD_GRID),
    "SGD, m = 100": Method("sgd", "100", 6600, {"learning_rate": 0.05, "mu_max": 0.995, "period": 10}, _SGD_GRID),
    "Adam, m = 500": Method("adam", "500", 2300, {"learning_rate": 0.03, "beta1": 0.9, "beta2": 0.98}, _ADAM_GRID),
    "Adam, m = 100": Method("adam", "100", 6400, {"learning_rate": 0.03, "beta1": 0.8, "beta2": 0.98}, _ADAM_GRID),
}


def untrained() -> Model:
    """Return the digits autoencoder 64-32-16-8-16-32-64."""
    return Settings(net="digits").model()


def compared(seed: int = 0) -> Comparison:
    """Return the comparison as it is reported; `seed` is the first of three consecutive ones."""
    return Comparison("Digits autoencoder 64-32-16-8-16-32-64", Settings(), METHODS, LEVELS,
                      tuple(seed + s for s in SEEDS), tuple(seed + s for s in TUNING_SEEDS))


def convergence(data: Dataset, seed: int = 0, shorten: int = 1) -> dict[str, list[training.History]]:
    """Train the autoencoder with every method on three seeds from `seed` on; iterations are divided by `shorten`."""
    of = compared(seed)
    return {name: [comparison.run(of, method, method.settings, s, data, max(1, method.iterations // shorten),
                                  f"{name}, seed {s}") for s in of.seeds] for name, method in METHODS.items()}
