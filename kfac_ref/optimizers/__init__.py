"""Optimizers: each has ``init(weights, seed)`` and ``step(state, x, y) -> (state, record)``; states never change."""

from .adam import Adam
from .kfac import KFAC
from .natural_gradient import NaturalGradient
from .sgd import SGD

__all__ = ["KFAC", "SGD", "Adam", "NaturalGradient"]
