"""Optimizers: each has ``init(weights, seed) -> state`` and ``step(state, x, y) -> (state, record)``.

x is a batch, (N, d_0), and y its labels, (N,), or targets, (N, C). States are never changed; weights are copied.
"""

from .adam import Adam
from .kfac import KFAC
from .natural_gradient import NaturalGradient
from .sgd import SGD

__all__ = ["KFAC", "SGD", "Adam", "NaturalGradient"]
