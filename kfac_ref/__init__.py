"""kfac_ref: the reference implementation of K-FAC, written by hand in NumPy, beside an exact Fisher."""

from . import (
    checks,
    curvature,
    damping,
    factors,
    fisher,
    kronecker,
    likelihoods,
    network,
    optimizers,
    params,
    quadratic_model,
)
from .factors import Factors, RunningAverage, empirical_factors, exact_factors, sampled_factors
from .fisher import empirical_fisher, exact_fisher, fisher_block, fisher_gram, fisher_product, sampled_fisher
from .likelihoods import Bernoulli, Categorical, Gaussian
from .model import Model, Point
from .network import MLP

__version__ = "0.1.0"
