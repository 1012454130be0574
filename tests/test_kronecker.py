"""Kronecker algebra against the same thing formed by brute force, on shapes that hypothesis draws."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given

from kfac_ref import kronecker
from kfac_ref.kronecker import Cholesky, Eigen, Inverse, unvec, vec
from tests.problems import close, relative

sizes = st.integers(1, 4)
rngs = st.integers(0, 2**16).map(np.random.default_rng)


def spd(rng, n):
    """Return a matrix with eigenvalues of at least 1."""
    X = rng.standard_normal((n, n))
    return X @ X.T / n + np.eye(n)


def psd(rng, n):
    """Return a matrix that lacks one rank (unless it is 1 x 1)."""
    X = rng.standard_normal((n, max(1, n - 1)))
    return X @ X.T


# vec and products


@given(rngs, sizes, sizes)
def test_vec_stacks_columns_and_unvec_undoes_it(rng, m, n):
    V = rng.standard_normal((m, n))
    assert vec(V).tolist() == [V[j, i] for i in range(n) for j in range(m)]
    np.testing.assert_array_equal(unvec(vec(V), m, n), V)


@given(rngs, sizes, sizes, sizes, sizes)
def test_product_is_the_kronecker_product_in_both_vec_orders(rng, p, n, q, m):
    A, G, V = rng.standard_normal((p, n)), rng.standard_normal((q, m)), rng.standard_normal((m, n))
    U = kronecker.product(A, G, V)
    assert U.shape == (q, p)
    close(vec(U), np.kron(A, G) @ vec(V), rtol=1e-12)
    close(U.ravel(), np.kron(G, A) @ V.ravel(), rtol=1e-12)         # rows stacked: the factors change places


def test_the_two_vec_orders_differ():
    rng = np.random.default_rng(0)
    A, G, V = rng.standard_normal((3, 3)), rng.standard_normal((2, 2)), rng.standard_normal((2, 3))
    assert relative(np.kron(A, G) @ V.ravel(), vec(kronecker.product(A, G, V))) > 0.1
    assert relative(np.kron(G, A) @ vec(V), vec(kronecker.product(A, G, V))) > 0.1


@given(rngs, sizes, sizes, st.sampled_from([Cholesky, Inverse]), st.sampled_from([Cholesky, Inverse]))
def test_solve_is_the_dense_solve(rng, m, n, kind_A, kind_G):
    A, G, V = spd(rng, n), spd(rng, m), rng.standard_normal((m, n))
    X = kronecker.solve(kind_A.factor(A), kind_G.factor(G), V)
    close(vec(X), np.linalg.solve(np.kron(A, G), vec(V)), rtol=1e-12)


# Cholesky, Inverse, Eigen


@given(rngs, st.integers(1, 6), sizes)
def test_cholesky_and_inverse_agree(rng, n, k):
    S, B = spd(rng, n), rng.standard_normal((n, k))
    C, inverse = Cholesky.factor(S), Inverse.factor(S)
    close(C.solve(B), np.linalg.solve(S, B), rtol=1e-12)
    close(inverse.solve(B), C.solve(B), rtol=1e-12)
    close(C.inverse() @ S, np.eye(n), rtol=1e-12)
    np.testing.assert_array_equal(C.inverse(), C.inverse().T)
    np.testing.assert_array_equal(inverse.inverse(), C.inverse())


@pytest.mark.parametrize("kind", [Cholesky, Inverse])
def test_a_matrix_is_given_by_its_lower_triangle_and_left_alone(kind):
    S = spd(np.random.default_rng(0), 4)
    lower = np.tril(S)
    before = lower.copy()
    close(kind.factor(lower).inverse() @ S, np.eye(4), rtol=1e-12)
    np.testing.assert_array_equal(lower, before)
    close(Eigen.factor(lower).values, np.linalg.eigvalsh(S), rtol=1e-12)


@pytest.mark.parametrize("kind", [Cholesky, Inverse])
def test_float32_stays_float32(kind):
    rng = np.random.default_rng(0)
    S, B = spd(rng, 4).astype(np.float32), rng.standard_normal((4, 2)).astype(np.float32)
    C = kind.factor(S)
    assert C.solve(B).dtype == C.inverse().dtype == np.float32
    close(C.solve(B), np.linalg.solve(S.astype(float), B), rtol=1e-5)       # float32 has 7 digits


@pytest.mark.parametrize("kind", [Cholesky, Inverse])
@pytest.mark.parametrize(("S", "smallest"), [
    (np.zeros((1, 1)), 0), (np.ones((3, 3)), 0), (np.diag([1.0, 0.0]), 0), (np.diag([2.0, -0.5]), -0.5)])
def test_a_singular_matrix_is_refused_by_name_eigenvalue_and_remedy(kind, S, smallest):
    with pytest.raises(ValueError, match="is singular to rounding") as error:
        kind.factor(S, "factor G of layer 3", "give a larger damping")
    message = str(error.value)
    assert message.startswith(f"factor G of layer 3 ({len(S)} x {len(S)}) ")
    assert message.endswith("; give a larger damping")
    # The message prints three digits.
    assert float(message.split("eigenvalue is ")[1].split(";")[0]) == pytest.approx(smallest, rel=1e-3, abs=1e-14)
    assert isinstance(error.value, np.linalg.LinAlgError)


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_a_matrix_that_lapack_factors_although_it_is_singular_to_rounding_is_refused(n):
    rng = np.random.default_rng(0)
    for _ in range(20):
        L = np.tril(rng.integers(-2, 3, (n, n)), -1) + np.diag([1.0] * (n - 1) + [0])
        L[-1, 0] = 1
        S = L @ L.T
        S[-1, -1] += np.spacing(S[-1, -1])
        # Whole numbers and pivots of 1: nothing is rounded on any machine, and the last pivot is what was added.
        assert scipy.linalg.get_lapack_funcs("potrf", (S,))(S, lower=1)[1] == 0
        with pytest.raises(np.linalg.LinAlgError, match="singular to rounding: its smallest eigenvalue is"):
            Cholesky.factor(S)


@pytest.mark.parametrize("n", [3, 6, 12])
def test_integer_matrices_of_lower_rank_are_refused_however_they_round(n):
    rng = np.random.default_rng(0)
    for _ in range(40):
        B = rng.integers(-3, 4, (n, n - 1)).astype(float)
        with pytest.raises(np.linalg.LinAlgError, match="singular to rounding"):
            Cholesky.factor(B @ B.T)                                # exact in integers, hence exactly singular


@given(rngs, st.integers(1, 5), st.integers(-100, 100))
def test_a_matrix_that_is_merely_small_or_ill_conditioned_is_taken(rng, n, exponent):
    S = 10.0**exponent * (psd(rng, n) + 1e-10 * np.eye(n))
    L = Cholesky.factor(S).lower
    close(L @ L.T, S, rtol=1e-12)


def test_a_matrix_with_nan_is_refused_as_such():
    S = np.eye(3)
    S[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"the matrix must be finite: 1 of 9 entries .* the first at \(2, 1\)"):
        Cholesky.factor(S)


@given(rngs, sizes, sizes)
def test_the_eigenbasis_of_a_kronecker_product(rng, m, n):
    A, G, V, scales = spd(rng, n), spd(rng, m), rng.standard_normal((m, n)), rng.standard_normal((m, n))
    a, g = Eigen.factor(A), Eigen.factor(G)
    close(a.Q * a.values @ a.Q.T, A, rtol=1e-12)
    assert (np.diff(a.values) >= 0).all()
    Q = np.kron(a.Q, g.Q)
    close(Q * vec(kronecker.spectrum(a, g)) @ Q.T, np.kron(A, G), rtol=1e-12)
    close(vec(kronecker.apply_in_eigenbasis(a, g, scales, V)), Q @ np.diag(vec(scales)) @ Q.T @ vec(V), rtol=1e-12)
    close(kronecker.apply_in_eigenbasis(a, g, kronecker.spectrum(a, g), V), kronecker.product(A, G, V), rtol=1e-12)


# The rearrangement


def unrearranged(R, A_shape, G_shape):
    """Invert `kronecker.rearrange`: (m_1 m_2, n_1 n_2) back to (n_1 m_1, n_2 m_2)."""
    (n1, n2), (m1, m2) = A_shape, G_shape
    return R.reshape(m2, m1, n2, n1).transpose(3, 1, 2, 0).reshape(n1 * m1, n2 * m2)


@st.composite
def matrices(draw):
    """Draw any matrix of the shape of a Kronecker product, with the shapes of the two factors."""
    A_shape, G_shape = draw(st.tuples(sizes, sizes)), draw(st.tuples(sizes, sizes))
    B = draw(rngs).standard_normal((A_shape[0] * G_shape[0], A_shape[1] * G_shape[1]))
    return B, A_shape, G_shape


@given(matrices())
def test_rearranging_and_undoing_it(drawn):
    B, A_shape, G_shape = drawn
    R = kronecker.rearrange(B, A_shape, G_shape)
    assert R.shape == (np.prod(G_shape), np.prod(A_shape))
    np.testing.assert_array_equal(unrearranged(R, A_shape, G_shape), B)
    again = kronecker.rearrange(unrearranged(R, A_shape, G_shape), A_shape, G_shape)
    np.testing.assert_array_equal(again, R)


@given(matrices())
def test_columns_of_the_rearrangement_are_the_blocks(drawn):
    B, A_shape, G_shape = drawn
    (n1, n2), (m1, m2) = A_shape, G_shape
    blocks = [B[i * m1:(i + 1) * m1, j * m2:(j + 1) * m2] for j in range(n2) for i in range(n1)]
    np.testing.assert_array_equal(kronecker.rearrange(B, A_shape, G_shape), np.stack([vec(b) for b in blocks], axis=1))


@given(rngs, sizes, sizes, sizes, sizes)
def test_kronecker_products_become_rank_one(rng, p, n, q, m):
    A, G = rng.standard_normal((p, n)), rng.standard_normal((q, m))
    close(kronecker.rearrange(np.kron(A, G), A.shape, G.shape), np.outer(vec(G), vec(A)), rtol=1e-14)
    close(unrearranged(np.outer(vec(G), vec(A)), A.shape, G.shape), np.kron(A, G), rtol=1e-14)


# The nearest Kronecker product


def best_G(B, A, G_shape):
    """Return the G that brings A ⊗ G nearest to B: least squares, block by block of B."""
    (n1, n2), (m1, m2) = A.shape, G_shape
    blocks = [A[i, j] * B[i * m1:(i + 1) * m1, j * m2:(j + 1) * m2] for i in range(n1) for j in range(n2)]
    return sum(blocks) / np.sum(A**2)


def best_A(B, G, A_shape):
    """Return the A that brings A ⊗ G nearest to B."""
    (n1, n2), (m1, m2) = A_shape, G.shape
    return np.array([[np.sum(B[i * m1:(i + 1) * m1, j * m2:(j + 1) * m2] * G) for j in range(n2)]
                     for i in range(n1)]) / np.sum(G**2)


def rivals(B, A, G, rng):
    """Yield random products, perturbed ones, and what alternating least squares comes to."""
    for _ in range(5):
        A0 = rng.standard_normal(A.shape)
        yield A0, best_G(B, A0, G.shape)
    for step in (1e-1, 1e-3, 1e-5):
        yield A + step * rng.standard_normal(A.shape), G
        yield A, G + step * rng.standard_normal(G.shape)
        yield A + step * rng.standard_normal(A.shape), G + step * rng.standard_normal(G.shape)
    for _ in range(10):
        G0 = best_G(B, A0, G.shape)
        A0 = best_A(B, G0, A.shape)
        yield A0, G0


@given(matrices(), rngs)
def test_no_kronecker_product_comes_nearer(drawn, rng):
    B, A_shape, G_shape = drawn
    A, G, singular = kronecker.nearest_product(B, A_shape, G_shape)
    assert (A.shape, G.shape) == (A_shape, G_shape)
    error = np.linalg.norm(B - np.kron(A, G))
    assert abs(error - np.sqrt(np.sum(singular[1:]**2))) < 1e-13 * singular[0]
    for A0, G0 in rivals(B, A, G, rng):
        assert np.linalg.norm(B - np.kron(A0, G0)) >= error - 1e-12 * singular[0]


@given(matrices())
def test_the_spectrum_is_that_of_the_rearrangement_and_the_factors_are_balanced(drawn):
    B, A_shape, G_shape = drawn
    A, G, singular = kronecker.nearest_product(B, A_shape, G_shape)
    close(np.sum(singular**2), np.sum(B**2), rtol=1e-12)            # a rearrangement keeps the Frobenius norm
    close(np.linalg.norm(A), np.linalg.norm(G), rtol=1e-12)
    close(np.linalg.norm(A) * np.linalg.norm(G), singular[0], rtol=1e-12)
    assert len(singular) == min(A.size, G.size)
    assert (np.diff(singular) <= 0).all()
    assert np.trace(A) >= 0


@given(rngs, sizes, sizes, sizes, sizes)
def test_a_kronecker_product_is_its_own_nearest(rng, p, n, q, m):
    A, G = rng.standard_normal((p, n)), rng.standard_normal((q, m))
    A1, G1, singular = kronecker.nearest_product(np.kron(A, G), A.shape, G.shape)
    close(np.kron(A1, G1), np.kron(A, G), rtol=1e-12)
    assert singular[1:].max(initial=0) < 1e-12 * singular[0]


@given(rngs, sizes, sizes)
def test_factors_of_a_positive_semi_definite_matrix_are_so_too(rng, m, n):
    B = psd(rng, m * n)
    for S in kronecker.nearest_product(B, (n, n), (m, m))[:2]:
        close(S, S.T, rtol=1e-11)                                   # singular vectors: conditioned by a gap
        assert np.linalg.eigvalsh(S)[0] > -1e-11 * np.abs(S).max()


# Appendix B


def scaled_below(C, A):
    """Return C times a number that puts the eigenvalues of A^{-1} C at .9 and below."""
    return C * (0.9 / scipy.linalg.eigh(C, A, eigvals_only=True)[-1])


@given(rngs, sizes, sizes, st.sampled_from([1, -1]))
def test_solve_sum_is_the_dense_solve(rng, m, n, sign):
    A, B = spd(rng, n), spd(rng, m)
    C, D, V = scaled_below(psd(rng, n), A), scaled_below(psd(rng, m), B), rng.standard_normal((m, n))
    X = kronecker.solve_sum(A, B, C, D, V, sign)
    close(vec(X), np.linalg.solve(np.kron(A, B) + sign * np.kron(C, D), vec(V)), rtol=1e-11)


def test_the_sign_matters_and_an_indefinite_difference_is_solved_too():
    rng = np.random.default_rng(3)
    A, B, C, D, V = spd(rng, 3), spd(rng, 2), 2 * spd(rng, 3), 2 * spd(rng, 2), rng.standard_normal((2, 3))
    difference = np.kron(A, B) - np.kron(C, D)
    assert np.linalg.eigvalsh(difference)[0] < -1
    X = kronecker.solve_sum(A, B, C, D, V, -1)
    close(vec(X), np.linalg.solve(difference, vec(V)), rtol=1e-11)
    assert relative(kronecker.solve_sum(A, B, C, D, V), X) > 0.1


@given(rngs, sizes, sizes, st.floats(1e-3, 1e3))
def test_solve_sum_does_exact_tikhonov(rng, m, n, damping):
    A, G, V = spd(rng, n), spd(rng, m), rng.standard_normal((m, n))
    root = np.sqrt(damping)
    X = kronecker.solve_sum(A, G, root * np.eye(n), root * np.eye(m), V)
    close(vec(X), np.linalg.solve(np.kron(A, G) + damping * np.eye(m * n), vec(V)), rtol=1e-11)


@pytest.mark.parametrize("A", [np.eye(2), spd(np.random.default_rng(0), 2)], ids=["exact", "rounded"])
@pytest.mark.parametrize("s", [1.0, 0.5], ids=["zero", "of lower rank"])
def test_a_singular_difference_is_refused(A, s):
    B, D = np.eye(3), np.diag([1.0, s, s])
    assert abs(np.linalg.eigvalsh(np.kron(A, B) - np.kron(A, D))[0]) < 1e-14
    with pytest.raises(np.linalg.LinAlgError, match=r"Sigma of layer 2 is singular to rounding: .* add damping"):
        kronecker.solve_sum(A, B, A, D, np.ones((3, 2)), -1, "Sigma of layer 2")


@pytest.mark.parametrize(("A", "B", "which"), [
    (np.ones((2, 2)), np.eye(3), "first"), (np.eye(2), np.ones((3, 3)), "second")])
def test_a_singular_factor_of_the_sum_is_refused_by_name(A, B, which):
    with pytest.raises(np.linalg.LinAlgError, match=f"the {which} factor of Sigma .*smallest eigenvalue"):
        kronecker.solve_sum(A, B, np.eye(2), np.eye(3), np.ones((3, 2)), 1, "Sigma")


@pytest.mark.parametrize("sign", [0, 2, -1.5, "+"])
def test_a_sign_that_is_none_is_refused(sign):
    with pytest.raises(ValueError, match="sign must be 1 or -1, got"):
        kronecker.solve_sum(np.eye(2), np.eye(3), np.eye(2), np.eye(3), np.ones((3, 2)), sign)
