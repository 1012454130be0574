"""Every quantity of K-FAC straight from its definition: loops over examples and outcomes, dense systems, 100 digits.

This is an independent witness. It shares no line with the package and does nothing cleverly: an expectation over the
model's predictions lists every outcome with its probability, a Kronecker product is written out, a linear system is
solved as the dense matrix that it is, a second derivative is a difference of gradients.

A vector is a list of numbers, a matrix a list of rows, and what has one array a layer is a tuple. The probabilities of
saturated logits are of the order of 1e-35, and a hundred digits leave them sixty of their own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from mpmath import mp, mpf

DIGITS = 100
SPACING = "1e-30"               # of central differences: the error is of order 1e-60

Vector = list[Any]
Matrix = list[list[Any]]


# Linear algebra, written out


def dot(u: Vector, v: Vector) -> Any:
    return mp.fdot(zip(u, v, strict=True))


def transpose(A: Matrix) -> Matrix:
    return [list(column) for column in zip(*A, strict=True)]


def matmul(*factors: Matrix) -> Matrix:
    product, *rest = factors
    for B in rest:
        columns = transpose(B)
        product = [[dot(row, column) for column in columns] for row in product]
    return product


def combine(a: Any, A: Matrix, b: Any, B: Matrix) -> Matrix:
    """a A + b B."""
    return [[a * p + b * q for p, q in zip(r, s, strict=True)] for r, s in zip(A, B, strict=True)]


def outer(u: Vector, v: Vector) -> Matrix:
    return [[p * q for q in v] for p in u]


def zeros(rows: int, columns: int) -> Matrix:
    return [[mpf(0)] * columns for _ in range(rows)]


def identity(n: int) -> Matrix:
    return [[mpf(i == j) for j in range(n)] for i in range(n)]


def trace(A: Matrix) -> Any:
    return mp.fsum(A[i][i] for i in range(len(A)))


def add_to(total: Matrix, weight: Any, u: Vector, v: Vector) -> None:
    """total += weight u v^T, in place."""
    for row, p in zip(total, u, strict=True):
        if p:
            scaled = weight * p
            for j, q in enumerate(v):
                row[j] += scaled * q


def kron(A: Matrix, B: Matrix) -> Matrix:
    """A (x) B: the block (i, j) is A_ij B."""
    return [[a * b for a in row_a for b in row_b] for row_a in A for row_b in B]


def vec(V: Matrix) -> Vector:
    """The columns of V, one below the other."""
    return [row[j] for j in range(len(V[0])) for row in V]


def unvec(v: Vector, like: Matrix) -> Matrix:
    rows = len(like)
    return [[v[j * rows + i] for j in range(len(like[0]))] for i in range(rows)]


def flatten(layers: tuple) -> Vector:
    """theta = [vec W_0; vec W_1; ...]."""
    return [entry for V in layers for entry in vec(V)]


def unflatten(theta: Vector, like: tuple) -> tuple:
    out, start = [], 0
    for V in like:
        size = len(V) * len(V[0])
        out.append(unvec(theta[start:start + size], V))
        start += size
    return tuple(out)


def inverse(A: Matrix) -> Matrix:
    return mp.inverse(mp.matrix(A)).tolist()


def condition(A: Matrix, inverse_of_A: Matrix) -> Any:
    """The condition number in the norm of the largest column sum."""
    return mp.mnorm(mp.matrix(A), 1) * mp.mnorm(mp.matrix(inverse_of_A), 1)


def solve(A: Matrix, b: Vector) -> tuple[Vector, Any]:
    """A^{-1} b, and the condition number of A."""
    back = inverse(A)
    return [dot(row, b) for row in back], condition(A, back)


# The network and the likelihood, one example at a time

ACTIVATIONS = {
    "identity": (lambda s: s, lambda s: mpf(1)),
    "tanh": (mp.tanh, lambda s: 1 - mp.tanh(s)**2),
    "logistic": (lambda s: 1 / (1 + mp.exp(-s)), lambda s: mp.exp(-s) / (1 + mp.exp(-s))**2),
    "relu": (lambda s: max(s, mpf(0)), lambda s: mpf(s > 0)),
}


def forward(weights: tuple, hidden: list[str], x: Vector) -> tuple[list[Vector], list[Vector]]:
    """The inputs a_bar of every layer, with their trailing one, and its pre-activations s; the last are z."""
    a, a_bars, pre = x, [], []
    for W, name in zip(weights, [*hidden, "identity"], strict=True):
        a_bars.append([*a, mpf(1)])
        pre.append([dot(row, a_bars[-1]) for row in W])
        a = [ACTIVATIONS[name][0](s) for s in pre[-1]]
    return a_bars, pre


def backward(weights: tuple, hidden: list[str], pre: list[Vector], dz: Vector) -> list[Vector]:
    """g of every layer: the gradient with respect to its pre-activations, from that with respect to z."""
    g = [dz]
    for i in reversed(range(len(hidden))):
        W = transpose(weights[i + 1])[:-1]                       # no unit feeds the bias
        slope = ACTIVATIONS[hidden[i]][1]
        g.insert(0, [slope(s) * dot(column, g[0]) for s, column in zip(pre[i], W, strict=True)])
    return g


def probabilities(likelihood: str, z: Vector) -> Vector:
    if likelihood == "categorical":
        total = mp.fsum(mp.exp(t) for t in z)
        return [mp.exp(t) / total for t in z]
    return [1 / (1 + mp.exp(-t)) for t in z]


def outcomes(likelihood: str, z: Vector) -> list[tuple[Any, Any]]:
    """Every target with its probability; for the Gaussian 2 C points that have its mean and its covariance."""
    C = len(z)
    if likelihood == "categorical":
        return [(p, c) for c, p in enumerate(probabilities(likelihood, z))]
    if likelihood == "bernoulli":
        on = probabilities(likelihood, z)
        off = probabilities(likelihood, [-t for t in z])
        return [(mp.fprod(q[bit] for q, bit in zip(zip(off, on, strict=True), y, strict=True)), list(y))
                for y in itertools.product((0, 1), repeat=C)]
    far = mp.sqrt(C)
    return [(mpf(1) / (2 * C), [t + sign * far * (k == c) for k, t in enumerate(z)])
            for c in range(C) for sign in (1, -1)]


def negative_log(likelihood: str, z: Vector, y: Any) -> Any:
    """-log p(y | z); the Gaussian without its constant."""
    if likelihood == "categorical":
        return mp.log(mp.fsum(mp.exp(t) for t in z)) - z[y]
    if likelihood == "bernoulli":
        return mp.fsum(mp.log(1 + mp.exp(t)) - b * t for t, b in zip(z, y, strict=True))
    return mp.fsum((t - b)**2 for t, b in zip(z, y, strict=True)) / 2


def output_gradient(likelihood: str, z: Vector, y: Any) -> Vector:
    """d/dz of -log p(y | z)."""
    if likelihood == "categorical":
        return [p - (c == y) for c, p in enumerate(probabilities(likelihood, z))]
    mean = z if likelihood == "gaussian" else probabilities(likelihood, z)
    return [m - b for m, b in zip(mean, y, strict=True)]


# A point: a network, its weights, a batch


@dataclass(frozen=True)
class Point:
    """Weights and a batch, passed through the network once."""

    likelihood: str
    hidden: list[str]
    weights: tuple
    x: Matrix
    eta: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", [forward(self.weights, self.hidden, row) for row in self.x])

    @property
    def z(self) -> Matrix:
        return [pre[-1] for _, pre in self.passes]

    def at(self, weights: tuple) -> Point:
        return Point(self.likelihood, self.hidden, weights, self.x, self.eta)

    def take(self, rows: list[int]) -> Point:
        return Point(self.likelihood, self.hidden, self.weights, [self.x[n] for n in rows], self.eta)

    def loss(self, y: list) -> Any:
        return mp.fsum(negative_log(self.likelihood, z, t) for z, t in zip(self.z, y, strict=True)) / len(self.x)

    def objective(self, y: list) -> Any:
        theta = flatten(self.weights)
        return self.loss(y) + self.eta / 2 * dot(theta, theta)

    def g(self, n: int, target: Any) -> list[Vector]:
        """g of every layer for example n and one target."""
        pre = self.passes[n][1]
        return backward(self.weights, self.hidden, pre, output_gradient(self.likelihood, pre[-1], target))

    def exact(self) -> list:
        """Every example with every outcome: (weight, a_bar of every layer, g of every layer)."""
        N = len(self.x)
        return [(p / N, self.passes[n][0], self.g(n, y))
                for n in range(N) for p, y in outcomes(self.likelihood, self.z[n])]

    def drawn(self, draws: list) -> list:
        """Every example with each of its targets in `draws` (M, N, ...), all of the same weight."""
        N, M = len(self.x), len(draws)
        return [(mpf(1) / (N * M), self.passes[n][0], self.g(n, y[n])) for y in draws for n in range(N)]

    def gradient(self, y: list) -> tuple:
        total = [zeros(len(W), len(W[0])) for W in self.weights]
        for weight, a_bars, gs in self.drawn([y]):
            for i, (a_bar, g) in enumerate(zip(a_bars, gs, strict=True)):
                add_to(total[i], weight, g, a_bar)
        return tuple(combine(1, V, self.eta, W) for V, W in zip(total, self.weights, strict=True))


def central_differences(function: Any, theta: Vector) -> list[Vector]:
    """Row k: the slope of a vector function in coordinate k."""
    h, rows = mpf(SPACING), []
    for k in range(len(theta)):
        above, below = (function([t + sign * h * (j == k) for j, t in enumerate(theta)]) for sign in (1, -1))
        rows.append([(p - q) / (2 * h) for p, q in zip(above, below, strict=True)])
    return rows


def hessian(point: Point, y: list) -> Matrix:
    """Of the loss, without weight decay."""
    free = Point(point.likelihood, point.hidden, point.weights, point.x, mpf(0))
    return central_differences(lambda theta: flatten(free.at(unflatten(theta, point.weights)).gradient(y)),
                               flatten(point.weights))


def check_gradient(point: Point, y: list) -> None:
    """Assert that the gradient is the slope of the objective."""
    slopes = central_differences(lambda theta: [point.at(unflatten(theta, point.weights)).objective(y)],
                                 flatten(point.weights))
    gradient = flatten(point.gradient(y))
    size = max(1, *map(abs, gradient))
    assert all(abs(slope - entry) < size * mpf("1e-40") for [slope], entry in zip(slopes, gradient, strict=True))


# Expectations over (weight, a_bar, g)


def second_moments(weighted: list[tuple[Any, list[Vector]]], apart: int = 0) -> tuple:
    """The sum of weight u_i u_{i+apart}^T over (weight, u of every layer), for every layer i."""
    layers = weighted[0][1]
    out = tuple(zeros(len(u), len(v)) for u, v in zip(layers, layers[apart:], strict=False))
    for weight, us in weighted:
        for total, u, v in zip(out, us, us[apart:], strict=False):
            add_to(total, weight, u, v)
    return out


def input_factors(point: Point, apart: int = 0) -> tuple:
    """A (or, one apart, A_cross): divided last, since an exact tie between two float64 must stay one."""
    sums = second_moments([(1, a_bars) for a_bars, _ in point.passes], apart)
    return tuple([[entry / len(point.x) for entry in row] for row in total] for total in sums)


def output_factors(terms: list, apart: int = 0) -> tuple:
    """G (or, one apart, G_cross) of the expectation that the terms stand for."""
    return second_moments([(weight, gs) for weight, _, gs in terms], apart)


def score(a_bars: list[Vector], gs: list[Vector]) -> Vector:
    """vec(g a_bar^T) = a_bar (x) g of every layer, one below the other."""
    return [p * q for a_bar, g in zip(a_bars, gs, strict=True) for p in a_bar for q in g]


def fisher(terms: list) -> Matrix:
    """E[u u^T] over the scores u."""
    size = len(score(terms[0][1], terms[0][2]))
    total = zeros(size, size)
    for weight, a_bars, gs in terms:
        u = score(a_bars, gs)
        add_to(total, weight, u, u)
    return total


def fisher_product(terms: list, v: Vector) -> Vector:
    """E[u (u . v)]."""
    total = [mpf(0)] * len(v)
    for weight, a_bars, gs in terms:
        u = score(a_bars, gs)
        scaled = weight * dot(u, v)
        total = [t + scaled * entry for t, entry in zip(total, u, strict=True)]
    return total


def eigenvectors(A: Matrix) -> tuple[Vector, Matrix]:
    """Eigenvalues, ascending, and the eigenvectors as ROWS."""
    values, Q = mp.eigsy(mp.matrix(A))
    return list(values), transpose(Q.tolist())


def separation(values: Vector) -> Any:
    """The least gap between neighbours, relative to the largest; 0 of a zero matrix."""
    size = max(map(abs, values))
    gaps = [b - a for a, b in itertools.pairwise(values)]
    return min(gaps, default=size) / size if size else size


def ekfac_scales(terms: list, A: tuple, G: tuple) -> tuple[tuple, Any]:
    """E[(U_G^T g a_bar^T U_A)_ji^2] of every layer, and the least separation of the eigenvalues."""
    out, least = [], mpf(1)
    for i in range(len(A)):
        (values_a, U_A), (values_g, U_G) = eigenvectors(A[i]), eigenvectors(G[i])
        least = min(least, separation(values_a), separation(values_g))
        total = zeros(len(U_G), len(U_A))
        for weight, a_bars, gs in terms:
            a_hat, g_hat = ([dot(u, v)**2 for u in U] for U, v in ((U_A, a_bars[i]), (U_G, gs[i])))
            add_to(total, weight, g_hat, a_hat)
        out.append(total)
    return tuple(out), least


# Damping and the steps


def trace_norm_pi(A: Matrix, G: Matrix) -> Any:
    of_a, of_g = trace(A) / len(A), trace(G) / len(G)
    return mp.sqrt(of_a / of_g) if of_a and of_g else mpf(1)


def shifted(A: Matrix, shift: Any) -> Matrix:
    return combine(1, A, shift, identity(len(A)))


def damped(A: tuple, G: tuple, damping: Any) -> tuple[tuple, tuple]:
    """The factors with pi sqrt(damping) and sqrt(damping) / pi on their diagonals."""
    pis = [trace_norm_pi(*pair) for pair in zip(A, G, strict=True)]
    root = mp.sqrt(damping)
    return (tuple(shifted(of_a, pi * root) for of_a, pi in zip(A, pis, strict=True)),
            tuple(shifted(of_g, root / pi) for of_g, pi in zip(G, pis, strict=True)))


def blockwise_step(blocks: list[Matrix], gradient: tuple) -> tuple[tuple, Any]:
    """-(blocks)^{-1} gradient, layer by layer, and the largest condition number."""
    solved = [solve(block, vec(V)) for block, V in zip(blocks, gradient, strict=True)]
    step = tuple(unvec([-entry for entry in v], V) for (v, _), V in zip(solved, gradient, strict=True))
    return step, max(number for _, number in solved)


def step(A: tuple, G: tuple, damping: Any, gradient: tuple) -> tuple[tuple, Any]:
    """The block-diagonal step: minus the inverse of each written-out A_damped (x) G_damped, times the gradient."""
    return blockwise_step([kron(*pair) for pair in zip(*damped(A, G, damping), strict=True)], gradient)


def step_tridiagonal(A: tuple, G: tuple, A_cross: tuple, G_cross: tuple, damping: Any,
                     gradient: tuple) -> tuple[tuple, Any]:
    """Minus Xi^T Lambda Xi times the gradient, every matrix written out (Martens & Grosse 2015, sec. 4.3)."""
    A, G = damped(A, G, damping)
    L = len(A)
    sizes = [len(A[i]) * len(G[i]) for i in range(L)]
    starts = [sum(sizes[:i]) for i in range(L + 1)]
    Xi, Lambda = identity(starts[-1]), zeros(starts[-1], starts[-1])
    worst = mpf(1)
    for i in range(L):
        Sigma = kron(A[i], G[i])
        if i + 1 < L:
            Psi_A = matmul(A_cross[i], inverse(A[i + 1]))
            Psi_G = matmul(G_cross[i], inverse(G[i + 1]))
            Sigma = combine(1, Sigma, -1, kron(matmul(Psi_A, A[i + 1], transpose(Psi_A)),
                                               matmul(Psi_G, G[i + 1], transpose(Psi_G))))
            put(Xi, starts[i], starts[i + 1], kron(Psi_A, Psi_G), -1)
        back = inverse(Sigma)
        worst = max(worst, condition(Sigma, back), condition(kron(A[i], G[i]), inverse(kron(A[i], G[i]))))
        put(Lambda, starts[i], starts[i], back, 1)
    F_hat_inverse = matmul(transpose(Xi), Lambda, Xi)
    v = flatten(gradient)
    return unflatten([-dot(row, v) for row in F_hat_inverse], gradient), worst


def put(target: Matrix, top: int, left: int, block: Matrix, sign: int) -> None:
    for i, row in enumerate(block):
        for j, entry in enumerate(row):
            target[top + i][left + j] = sign * entry


# The quadratic model


@dataclass(frozen=True)
class Choice:
    """The best delta in the span of Delta and delta_0, and what the quadratic model says of it."""

    alpha: Any
    mu: Any
    M: Any
    delta: Vector
    condition: Any


def minimise(terms: list, gradient: Vector, damping: Any, Delta: Vector, delta_0: Vector | None) -> Choice:
    """Minimise grad . delta + 1/2 delta^T (F + damping I) delta over delta = alpha Delta + mu delta_0.

    The condition number is of the small system scaled to a unit diagonal, and of the slopes, which may cancel.
    """
    directions = [Delta, delta_0] if delta_0 is not None and any(delta_0) else [Delta]
    images = [[f + damping * d for f, d in zip(fisher_product(terms, v), v, strict=True)] for v in directions]
    B = [[dot(v, image) for image in images] for v in directions]
    slopes = [dot(gradient, v) for v in directions]
    c, _ = solve(B, [-slope for slope in slopes])
    lengths = [mp.sqrt(B[k][k]) for k in range(len(B))]
    unit = [[B[k][j] / (lengths[k] * lengths[j]) for j in range(len(B))] for k in range(len(B))]
    cancelled = max(mp.norm(gradient) * mp.norm(v) / abs(slope) for v, slope in zip(directions, slopes, strict=True))
    delta = [mp.fsum(ck * v[j] for ck, v in zip(c, directions, strict=True)) for j in range(len(Delta))]
    M = dot(c, slopes) + mp.fsum(c[k] * B[k][j] * c[j] for k in range(len(c)) for j in range(len(c))) / 2
    return Choice(c[0], c[1] if len(c) > 1 else mpf(0), M, delta, condition(unit, inverse(unit)) * cancelled)


def moved(weights: tuple, delta: Vector) -> tuple:
    return unflatten([t + d for t, d in zip(flatten(weights), delta, strict=True)], weights)
