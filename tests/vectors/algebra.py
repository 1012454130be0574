"""Linear algebra written out, in numbers of many digits: a vector is a list, a matrix a list of rows.

What has one array a layer is a tuple; `flatten` makes it one vector.
"""

from __future__ import annotations

from typing import Any

from mpmath import mp, mpf

Vector = list[Any]
Matrix = list[list[Any]]


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
