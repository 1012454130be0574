"""K-FAC by hand: a map of the package, which reads from top to bottom beside the paper.

Martens & Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv 1503.05671.

==========  ========================================  =================================================================
section     module                                    names
==========  ========================================  =================================================================
2.1         `params`, `network`                       `MLP`: forward, backward, tangent (R-operator)
2.1         `layers`                                  the contractions of g with a_bar, each written once
2.2         `likelihoods`, `model`                    `Gaussian`, `Categorical`, `Bernoulli`; `Model`, `Point`
2.2         `parts`                                   `Part`, `mean_over`: a data set in parts
2.2, 5      `expectations`                            `exact`, `sampled`, `empirical`, `one_draw`
2.2         `fisher`                                  `fisher_matrix`, `fisher_block`, `fisher_product`, `fisher_gram`
2.2         `hessian`                                 `hessian.hessian`, `hessian.hessian_product`
3           `kronecker`                               vec, products, solves, the rearrangement, the nearest product
3, 5        `factors`                                 `kronecker_factors`; nearest product, KFRA, TKFAC, Shampoo;
                                                      `Moments`, `Factors`, `RunningAverage`
4.2, 6.3    `curvature`                               `BlockDiagonal` (F̆), `EigenDamped`, `Full` (F̃);
                                                      `ExactBlockDiagonal`, `Exact`, `ExactDual`; `EKFAC`,
                                                      `InputOnly` (FOOF), `Diagonal`
4.3         `curvature`                               `BlockTridiagonal` (F̂)
-           `approximations`                          `Approximation`: an estimator with a structure; the table of all
3           `analysis`                                `covariance_error`, `error_spectrum`, `cumulant_terms`;
                                                      `judge`, `error_budget`
10          `analysis`                                `TransformedMLP`, `transform`, `whitening`, `centred_whitening`
6           `damping`                                 pi, factored Tikhonov, the rules of lambda and gamma
6.4, 7      `quadratic_model`                         M(delta), alpha and mu, rho
9           `optimizers`                              `KFAC` (`step`, `explain`), `NaturalGradient`, `SGD`, `Adam`
13          `datasets`, `training`                    `digits`, `curves`, `mnist`; `train`, batch schedules, averages
13          `plotting`, `experiments`, `cli`          figures, the demo; not imported here, because of Matplotlib
app. B      `kronecker`                               `solve_sum`
-           `oracle`                                  `Problem`, `Reference`, `check`: expected values for other
                                                      implementations, and a diagnosis of differences
-           `testing`                                 `assert_kfac`, `assert_kfac_factors`, for their test suites
-           `checkpoints`                             the whole state of a run in a file, resumed to the same bits
-           `checks`, `environment`, `files`          input validation; versions and threads; writing files
==========  ========================================  =================================================================
"""

from . import (
    analysis,
    approximations,
    checkpoints,
    checks,
    curvature,
    damping,
    datasets,
    environment,
    expectations,
    factors,
    files,
    fisher,
    hessian,
    kronecker,
    layers,
    likelihoods,
    model,
    network,
    optimizers,
    oracle,
    params,
    parts,
    quadratic_model,
    training,
)
from .approximations import Approximation
from .expectations import empirical, exact, one_draw, sampled
from .factors import Factors, Moments, RunningAverage, kronecker_factors
from .fisher import fisher_block, fisher_gram, fisher_matrix, fisher_product
from .likelihoods import Bernoulli, Categorical, Gaussian
from .model import Model, Point
from .network import MLP
from .parts import Part, mean_over

__version__ = "0.1.0"

__all__ = [
    "MLP", "Approximation", "Bernoulli", "Categorical", "Factors", "Gaussian", "Model", "Moments", "Part", "Point",
    "RunningAverage", "analysis", "approximations", "checkpoints", "checks", "curvature", "damping", "datasets",
    "empirical", "environment", "exact", "expectations", "factors", "files", "fisher", "fisher_block", "fisher_gram",
    "fisher_matrix", "fisher_product", "hessian", "kronecker", "kronecker_factors", "layers", "likelihoods",
    "mean_over", "model", "network", "one_draw", "optimizers", "oracle", "params", "parts", "quadratic_model",
    "sampled", "training",
]
