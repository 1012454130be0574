"""The same function in other parameters: K-FAC is invariant to the change, gradient descent is not (sec. 10).

With invertible Omega_i (n, n) for the inputs of layer i and Phi_i (m, m) for its outputs, i = 0..L-1, the network::

    a'_0 = Omega_0 a_bar_0        s'_i = W'_i a'_i        a'_{i+1} = Omega_{i+1} [phi_i(Phi_i s'_i); 1]
    z = Phi_{L-1} s'_{L-1}

computes the same function as the original one if ``W_i = Phi_i W'_i Omega_i``. Its quantities are::

    grad'_i = Phi_i^T grad_i Omega_i^T        A'_i = Omega_i A_i Omega_i^T        G'_i = Phi_i^T G_i Phi_i

so that ``G'^{-1} grad' A'^{-1}`` maps to the original step: undamped K-FAC takes the same path in function space
(Theorem 1). With Omega = A^{-1/2} and Phi = G^{-1/2} it is plain gradient descent in the new parameters, which are
white (Corollary 3). a' has no trailing 1, so the transformed network is not an MLP and has forward and backward passes
of its own. Source: Martens & Grosse 2015, sec. 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import DTypeLike

from .. import checks
from ..checks import Array, Direction
from ..factors import Factors
from ..kronecker import Eigen
from ..network import MLP, Activation, Pass


@dataclass(frozen=True, eq=False)
class TransformedPass(Pass):
    """A pass of the transformed network: ``a_bar`` holds a'_i and ``s`` holds s'_i."""

    inner: Pass  #: The original network's pass, for its slopes and its output.

    @property
    def x(self) -> Array:
        """The inputs of the original network."""
        return self.inner.x

    @cached_property
    def slopes(self) -> tuple[Array, ...]:
        """Not available: what multiplies slopes by weights needs an `MLP`."""
        raise ValueError("the Hessian and KFRA require an MLP; got TransformedMLP")

    @property
    def z(self) -> Array:
        """The output of the original network."""
        return self.inner.z

    def take(self, rows: checks.Rows) -> TransformedPass:
        """Return the pass of some of the examples."""
        inner = self.inner.take(rows)
        return TransformedPass(self.activations, inner.a, tuple(a[rows] for a in self.a_bar),
                               tuple(s[rows] for s in self.s), inner)


@dataclass(frozen=True, eq=False)
class TransformedMLP:
    """A network re-parameterized by Omega and Phi; it takes the place of an `MLP` with biases in a `Model`."""

    network: MLP            #: The original network.
    Omega: Sequence[Array]  #: L arrays (d_i + 1, d_i + 1), for the inputs of the layers.
    Phi: Sequence[Array]    #: L arrays (d_{i+1}, d_{i+1}), for their outputs.

    def __post_init__(self) -> None:
        if not all(self.network.bias):
            raise ValueError(f"network must have a bias in every layer, got {self.network!r}")
        shapes = self.network.shapes
        for name, sizes in (("Omega", [(n, n) for _, n in shapes]), ("Phi", [(m, m) for m, _ in shapes])):
            object.__setattr__(self, name, checks.direction(name, getattr(self, name), sizes, np.float64))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of the original network."""
        return self.network.sizes

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the weights, the same as those of the original network."""
        return self.network.shapes

    @property
    def parameters(self) -> int:
        """The number P of weights and biases."""
        return self.network.parameters

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The nonlinearities of the original network."""
        return self.network.activations

    def init(self, rng: np.random.Generator, scheme: str = "sparse", dtype: DTypeLike = np.float64) -> list[Array]:
        """Draw weights of the original network and return them transformed; parameters as in `MLP.init`."""
        return transform(self.network.init(rng, scheme, dtype), self.Omega, self.Phi)

    def to_original(self, weights: Direction) -> list[Array]:
        """Return ``W_i = Phi_i W'_i Omega_i``; a step is mapped in the same way."""
        weights = checks.weights("weights", weights, self.shapes)
        return [Phi @ W @ Omega for W, Omega, Phi in zip(weights, *self._maps(weights[0].dtype), strict=True)]

    def forward(self, weights: Direction, x: Array) -> TransformedPass:
        """Run the transformed network on x, (N, d_0), and keep every intermediate."""
        inputs, a, s, a_bar, s_inner = [], [], [], [], []
        now = x
        for W, Omega, Phi, f in zip(weights, *self._maps(x.dtype), self.activations, strict=True):
            inputs.append(now)
            a_bar.append(np.column_stack([now, np.ones(len(x), dtype=x.dtype)]))
            a.append(a_bar[-1] @ Omega.T)
            s.append(a[-1] @ W.T)
            s_inner.append(s[-1] @ Phi.T)
            now = f.phi(s_inner[-1])
        inner = Pass(self.activations, tuple(inputs), tuple(a_bar), tuple(s_inner))
        return TransformedPass(self.activations, inner.a, tuple(a), tuple(s), inner)

    def backward(self, weights: Direction, forward: TransformedPass, dz: Array) -> list[Array]:
        """Send gradients with respect to z, (N, d_L) or (K, N, d_L), back; ``g[i]`` is with respect to s'_i."""
        Omega, Phi = self._maps(dz.dtype)
        g: list[Array] = [dz @ Phi[-1]]
        for i in reversed(range(1, len(weights))):
            da_bar = g[-1] @ weights[i] @ Omega[i]
            g.append((da_bar[..., :-1] * forward.inner.slopes[i - 1]) @ Phi[i - 1])
        return g[::-1]

    def tangent(self, weights: Direction, forward: TransformedPass, V: Direction) -> Array:
        """Return the change of z in a direction V of W'."""
        ds = forward.a_bar[0] @ V[0].T
        Omega, Phi = self._maps(ds.dtype)
        for i in range(1, len(weights)):
            da = forward.inner.slopes[i - 1] * (ds @ Phi[i - 1].T)
            ds = forward.a_bar[i] @ V[i].T + da @ Omega[i][:, :-1].T @ weights[i].T
        return ds @ Phi[-1].T

    def _maps(self, dtype: DTypeLike) -> tuple[list[Array], list[Array]]:
        """Return Omega and Phi in the precision of the arrays that they multiply."""
        return [Om.astype(dtype, copy=False) for Om in self.Omega], [Ph.astype(dtype, copy=False) for Ph in self.Phi]


def transform(weights: Direction, Omega: Sequence[Array], Phi: Sequence[Array]) -> list[Array]:
    """Return ``W'_i = Phi_i^{-1} W_i Omega_i^{-1}``, with which `TransformedMLP` computes the same function."""
    weights = checks.weights("weights", weights, [np.shape(W) for W in weights])
    dtype = weights[0].dtype
    Omega = checks.direction("Omega", Omega, [(W.shape[1], W.shape[1]) for W in weights], dtype)
    Phi = checks.direction("Phi", Phi, [(W.shape[0], W.shape[0]) for W in weights], dtype)
    for name, maps in (("Omega", Omega), ("Phi", Phi)):
        for i, M in enumerate(maps):
            if np.linalg.cond(M) > 1 / np.finfo(dtype).eps:
                raise np.linalg.LinAlgError(f"{name}[{i}] must be invertible, and is singular to rounding")
    return [np.linalg.solve(Om.T, np.linalg.solve(Ph, W).T).T for W, Om, Ph in zip(weights, Omega, Phi, strict=True)]


def whitening(factors: Factors) -> tuple[list[Array], list[Array]]:
    """Return the symmetric roots ``Omega_i = A_i^{-1/2}`` and ``Phi_i = G_i^{-1/2}`` of Corollary 3.

    They make ``A' = G' = I``; the activations keep a mean. The factors must be invertible.
    """
    Omega = [_inverse_root(A, f"factor A of layer {i}") for i, (A, _) in enumerate(factors.layers)]
    return Omega, _output_roots(factors)


def centred_whitening(factors: Factors) -> tuple[list[Array], list[Array]]:
    """Return the affine roots of A, which make the activations white *and* centred, and ``Phi_i = G_i^{-1/2}``.

    ``Omega = [C^{-1/2}, -C^{-1/2} m; 0, 1]`` with mean m and covariance C of the activations, which A contains.
    """
    Omega = []
    for i, (A, _) in enumerate(factors.layers):
        mean = A[:-1, -1]
        root = _inverse_root(A[:-1, :-1] - np.outer(mean, mean), f"the covariance in factor A of layer {i}")
        Omega.append(scipy.linalg.block_diag(root, np.ones((1, 1), dtype=root.dtype)))
        Omega[-1][:-1, -1] = -root @ mean
    return Omega, _output_roots(factors)


def _output_roots(factors: Factors) -> list[Array]:
    return [_inverse_root(G, f"factor G of layer {i}") for i, (_, G) in enumerate(factors.layers)]


def _inverse_root(S: Array, name: str) -> Array:
    E = Eigen.factor(S, name)
    if E.values[0] <= len(S) * np.finfo(S.dtype).eps * E.values[-1]:
        raise np.linalg.LinAlgError(f"{name} ({len(S)} x {len(S)}) is singular to rounding: its smallest eigenvalue is "
                                    f"{E.values[0]:.3g}; choose a network and a batch whose factors are invertible")
    return (E.Q / np.sqrt(E.values)) @ E.Q.T
