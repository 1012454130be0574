"""Directions as vectors: flatten, unflatten, and the operations of a vector space."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from kfac_ref.checks import Array
from kfac_ref.params import add, flatten, inner, norm, scale, unflatten, zeros_like

from .problems import Problem, close, direction, problem, problems

V = [np.array([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]), np.array([[7.0, 8.0]])]
SHAPES = [(2, 3), (1, 2)]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def two(p: Problem) -> tuple[list[Array], list[Array]]:
    return direction(p, 1), direction(p, 2)


def typed(dtype: Any) -> list[Array]:
    return [v.astype(dtype) for v in V]


def test_flatten_stacks_columns_layer_after_layer() -> None:
    np.testing.assert_array_equal(flatten(V), [1, 2, 3, 4, 5, 6, 7, 8])


def test_stacking_rows_would_differ() -> None:
    rows = np.concatenate([v.ravel() for v in V])
    assert sorted(rows) == sorted(flatten(V))
    assert rows.tolist() != flatten(V).tolist()


def test_entry_j_k_of_a_layer_stands_at_j_plus_k_times_its_rows() -> None:
    p = problem(sizes=(3, 4, 2))
    theta, start = flatten(p.at.weights), 0
    for W in p.at.weights:
        m, n = W.shape
        for j, k in np.ndindex(m, n):
            assert theta[start + j + k * m] == W[j, k]
        start += m * n
    assert start == len(theta)


def test_flatten_does_not_depend_on_the_memory_layout() -> None:
    np.testing.assert_array_equal(flatten([np.asfortranarray(v) for v in V]), flatten(V))
    np.testing.assert_array_equal(flatten([v.T.copy().T for v in V]), flatten(V))


@given(problems())
def test_unflatten_is_the_inverse_of_flatten(p: Problem) -> None:
    weights = unflatten(flatten(p.at.weights), p.shapes)
    assert tuple(W.shape for W in weights) == p.shapes
    assert all((a == b).all() for a, b in zip(weights, p.at.weights, strict=True))
    theta = np.arange(float(p.model.network.parameters))
    np.testing.assert_array_equal(flatten(unflatten(theta, p.shapes)), theta)


def test_unflatten_returns_copies_that_leave_the_vector_alone() -> None:
    theta = np.arange(8.0)
    for part in unflatten(theta, SHAPES):
        part += 1
    np.testing.assert_array_equal(theta, np.arange(8.0))


def test_flatten_returns_a_copy() -> None:
    weights = [np.ones((1, 3))]
    flatten(weights)[:] = 0
    np.testing.assert_array_equal(weights[0], np.ones((1, 3)))


@pytest.mark.parametrize("theta", [np.zeros(7), np.zeros(9), np.zeros((8, 1)), np.zeros(())])
def test_unflatten_refuses_a_vector_of_another_size(theta: Array) -> None:
    with pytest.raises(ValueError, match=re.escape(f"theta must have shape (8,), got {theta.shape}")):
        unflatten(theta, SHAPES)


@given(problems())
def test_inner_and_norm_are_those_of_the_vectors(p: Problem) -> None:
    U, W = two(p)
    u, w = flatten(U), flatten(W)
    assert abs(inner(U, W) - u @ w) <= 1e-14 * (np.abs(u) @ np.abs(w))
    close(norm(U), np.linalg.norm(u), 1e-14)
    assert isinstance(inner(U, W), float)
    assert isinstance(norm(U), float)


def test_inner_does_not_depend_on_the_memory_layout() -> None:
    U = [np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]), np.array([[3.0, 30.0]])]
    assert inner([np.asfortranarray(u) for u in U], V) == inner(U, V) == flatten(U) @ flatten(V)


@given(problems())
def test_scale_add_and_zeros_are_those_of_the_vectors(p: Problem) -> None:
    U, W = two(p)
    np.testing.assert_array_equal(flatten(scale(-0.3, U)), -0.3 * flatten(U))
    np.testing.assert_array_equal(flatten(add(U, W)), flatten(U) + flatten(W))
    np.testing.assert_array_equal(flatten(zeros_like(U)), np.zeros(p.model.network.parameters))
    assert all(tuple(v.shape for v in R) == p.shapes for R in (scale(2.0, U), add(U, W), zeros_like(U)))


def test_nothing_passed_in_changes_nor_is_handed_back() -> None:
    before = flatten(V)
    for result in (scale(1.0, V), add(V, zeros_like(V)), zeros_like(V), unflatten(before, SHAPES)):
        for part in result:
            part -= 1
    inner(V, V), norm(V)
    np.testing.assert_array_equal(flatten(V), before)


@DTYPES
def test_the_dtype_is_kept(dtype: Any) -> None:
    U = typed(dtype)
    results = [scale(0.1, U), scale(np.float64(0.1), U), add(U, U), zeros_like(U), unflatten(flatten(U), SHAPES)]
    assert {part.dtype for result in results for part in result} == {np.dtype(dtype)}
    assert flatten(U).dtype == dtype


def test_directions_of_different_lengths_are_refused() -> None:
    for operation in (inner, add):
        with pytest.raises(ValueError, match="V must have the shapes of U"):
            operation(V, V[:1])
