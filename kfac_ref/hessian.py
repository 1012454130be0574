"""The Hessian of the mean loss, by differentiating the backward pass: the Fisher and what it leaves out.

With R the derivative in the direction V of the weights (Pearlmutter 1994; see `network`), F_R the Hessian of nll with
respect to z (z is natural), and g_i the gradients of the mean loss with respect to s_i::

    R g_{L-1} = F_R (J V) / N
    (H V)_i   = R g_i^T a_bar_i + g_i^T R a_bar_i                      R a_bar_i = [R a_i, 0]

H = F + E[ sum_c (d nll / d z_c) (second derivative of z_c) ]. The second term is 0 where all d nll / d z are, and for a
network of one layer. Its mean over targets drawn from the model is 0, so the mean of H over y ~ p(y | z) is F, for
every network. Weight decay is not part of H, as it is not part of a Fisher.

`at` is a `Point` of an `MLP`; y holds one label or target per example. The second derivative of relu is taken to be 0
everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .checks import Array, Direction
from .layers import adjoint
from .model import Point, as_point
from .network import MLP
from .params import flatten, unflatten


def hessian_product(at: Point, y: Any, V: Direction) -> list[Array]:
    """Return the direction ``H v`` for direction V, by an R-forward and an R-backward pass."""
    at = as_point(at)
    V = checks.direction("V", V, at.model.network.shapes, at.z.dtype)
    likelihood, N = at.model.likelihood, len(at)
    g = at.backward(at.output_gradient(y) / N)
    if not isinstance(at.model.network, MLP):
        raise ValueError(f"the Hessian requires an MLP, got {type(at.model.network).__name__}")
    Rg, Ra_bar = at.model.network.tangent_backward(at.weights, at.forward, V, g,
                                                   lambda Rz: likelihood.fisher_product(at.z, Rz) / N)
    return [adjoint(Rg[i], at.a_bar[i]) + adjoint(g[i], Ra_bar[i]) for i in range(len(g))]


def hessian(at: Point, y: Any, max_bytes: int | None = None) -> Array:
    """Return the Hessian of the mean loss, dense, (P, P), by one product per parameter; for small networks.

    It is symmetric up to rounding. A matrix of more than `max_bytes` (default: 4 GiB) raises ValueError.
    """
    at = as_point(at)
    P, shapes = at.model.network.parameters, at.model.network.shapes
    checks.dense_size("the Hessian", P, P, at.z.itemsize, max_bytes)
    return np.stack([flatten(hessian_product(at, y, unflatten(e, shapes))) for e in np.eye(P, dtype=at.z.dtype)],
                    axis=1)
