"""The approximation, taken apart: its error as a covariance, the budget of an optimizer's errors, its invariance."""

from .budget import Judgement, error_budget, judge
from .covariance import Cumulants, covariance_error, cumulant_terms, error_spectrum
from .invariance import TransformedMLP, centred_whitening, transform, whitening

__all__ = ["Cumulants", "Judgement", "TransformedMLP", "centred_whitening", "covariance_error", "cumulant_terms",
           "error_budget", "error_spectrum", "judge", "transform", "whitening"]
