"""Estimators of the factors A and G: each returns `Factors`, which the structures of `curvature` make use of."""

from .average import RunningAverage
from .base import Factors
from .expectations import empirical_factors, exact_factors, sampled_factors
from .kfra import kfra_factors
from .nearest import nearest_kronecker_factors
from .shampoo import shampoo_factors, shampoo_root_factors
from .tkfac import tkfac_factors

__all__ = ["Factors", "RunningAverage", "empirical_factors", "exact_factors", "kfra_factors",
           "nearest_kronecker_factors", "sampled_factors", "shampoo_factors", "shampoo_root_factors", "tkfac_factors"]
