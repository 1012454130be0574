"""Estimators of the factors A and G, one idea per file: moments, and a function that finishes them into `Factors`."""

from .average import RunningAverage
from .base import Factors, Moments, as_factors
from .kfra import kfra_factors, recursion, slope_moments
from .kronecker import kronecker_factors, second_moments
from .nearest import nearest_kronecker_factors
from .shampoo import gradient_moments, shampoo_factors, shampoo_root_factors, square_roots, trace_preserving
from .tkfac import tkfac_factors

__all__ = ["Factors", "Moments", "RunningAverage", "as_factors", "gradient_moments", "kfra_factors",
           "kronecker_factors", "nearest_kronecker_factors", "recursion", "second_moments", "shampoo_factors",
           "shampoo_root_factors", "slope_moments", "square_roots", "tkfac_factors", "trace_preserving"]
