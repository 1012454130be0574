"""Estimators of the factors A and G: each returns `Factors`, which the structures of `curvature` make use of."""

from .average import RunningAverage
from .base import Factors
from .expectations import empirical_factors, exact_factors, sampled_factors

__all__ = ["Factors", "RunningAverage", "empirical_factors", "exact_factors", "sampled_factors"]
