"""The middle layers of the paper's network: parts of whole matrices, damping, and errors block by block."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref.experiments import blocks
from kfac_ref.experiments import middle_layers as ml
from tests.figure_scripts import load

best_kronecker, bias_norm = (getattr(load("fisher_approximation"), name) for name in ("best_kronecker", "bias_norm"))
errors_by_offset = load("tridiagonal").errors_by_offset
GAMMA = 0.1


@pytest.fixture(scope="module")
def small():
    """A narrow network on a few digits after three steps: 4 middle layers of 4 x 5 weights."""
    _, at, data = ml.point(steps=3, width=4, examples=60)
    return at, data


@pytest.fixture(scope="module")
def matrices(small):
    at, _ = small
    fac = ml.middle_factors(at)
    return ml.sizes(at.model), fac, ml.middle_fisher(at), kr.curvature.Full(fac).dense()


def inner(at, M):
    """Cut the middle layers' rows and columns out of a matrix of all layers."""
    counts = [m * n for m, n in at.model.network.shapes]
    return M[counts[0]:-counts[-1], counts[0]:-counts[-1]]


# The network and its data


def test_the_network_is_the_papers():
    model = ml.untrained()
    assert model.network.sizes == (256, 20, 20, 20, 20, 20, 10)
    assert list(ml.middle(model)) == [1, 2, 3, 4]
    assert ml.sizes(model) == [420] * 4
    assert sum(ml.sizes(model)) == 1680


def test_doubled_images_are_kronecker_products_with_ones():
    x = np.random.default_rng(0).random((3, 16))
    for image, small in zip(ml.doubled(x).reshape(3, 8, 8), x.reshape(3, 4, 4), strict=True):
        np.testing.assert_array_equal(image, np.kron(small, np.ones((2, 2))))


def test_the_digits_of_the_package_are_taken_where_nothing_is_said(monkeypatch):
    monkeypatch.delenv(ml.MNIST_FOLDER, raising=False)
    name, data = ml.images(50)
    digits = kr.datasets.digits()
    assert "digits" in name
    assert data.x.shape == (50, 256)
    assert data.x_test.shape == (297, 256)
    np.testing.assert_allclose(data.x.mean(axis=1), digits.x[:50].mean(axis=1), rtol=1e-14)
    np.testing.assert_array_equal(data.labels, digits.labels[:50])


def test_mnist_is_taken_from_the_folder_that_the_environment_names(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9002, 28, 28), dtype=np.uint8)
    for kind, magic, array in (("images-idx3", b"\0\0\x08\x03", images),
                               ("labels-idx1", b"\0\0\x08\x01", np.full(9002, 7, np.uint8))):
        head = magic + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))
    monkeypatch.setenv(ml.MNIST_FOLDER, str(tmp_path))
    name, data = ml.images(5)
    assert "MNIST" in name
    assert data.x.shape == (5, 256)
    np.testing.assert_allclose(data.x.mean(axis=1), images[:5].mean(axis=(1, 2)) / 255, rtol=1e-12)
    assert data.labels.tolist() == [7] * 5
    monkeypatch.setenv(ml.MNIST_FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="does not hold t10k-images"):
        ml.images()


@pytest.mark.parametrize("scheme", ["sparse", "glorot"])
def test_training_is_the_optimizers_own_steps(scheme, monkeypatch):
    monkeypatch.delenv(ml.MNIST_FOLDER, raising=False)
    _, data = ml.images(40)
    model = ml.untrained(3)
    found = ml.trained(model, data, scheme, (0, 2, 3), seed=5)
    assert list(found) == [0, 2, 3]
    opt = kr.optimizers.KFAC(model, judged_on="same batch", T1=5)
    state = opt.init(model.init(np.random.default_rng(5), scheme), 5)
    for k in range(4):
        if k:
            state, _ = opt.step(state, data.x, data.labels)
        if k in found:
            for ours, theirs in zip(found[k], state.weights, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_gamma_is_still_1_after_seven_steps():
    """What the figures say of K-FAC's own gamma."""
    _, data = ml.images(40)
    model = ml.untrained(3)
    opt = kr.optimizers.KFAC(model, judged_on="same batch", T1=5)
    state = opt.init(model.init(np.random.default_rng(0)), 0)
    for _ in range(7):
        state, record = opt.step(state, data.x, data.labels)
    assert record.gamma == 1


# Parts of whole matrices


def test_the_middle_of_the_fisher_is_that_part_of_the_whole(small, matrices):
    at, _ = small
    *_, F, _ = matrices
    whole = inner(at, kr.fisher_matrix(at))
    np.testing.assert_allclose(F, whole, rtol=1e-11, atol=1e-14 * np.abs(whole).max())


def test_the_middle_of_F_tilde_is_that_part_of_the_whole(small, matrices):
    at, _ = small
    *_, F_tilde = matrices
    whole = kr.curvature.Full(kr.kronecker_factors(at, reach=math.inf)).dense()
    np.testing.assert_array_equal(F_tilde, inner(at, whole))


def test_the_whole_network_restricted_to_all_its_layers_is_itself(small):
    at, _ = small
    fac = kr.kronecker_factors(at, reach=math.inf)
    again = ml.restrict(fac, range(len(fac)))
    for i in range(len(fac)):
        for j in range(len(fac)):
            np.testing.assert_array_equal(again.A[i, j], fac.A[i, j])
            np.testing.assert_array_equal(again.G[i, j], fac.G[i, j])
    assert again.n == fac.n
    with pytest.raises(ValueError, match="factors hold nothing for layers 1 and 2"):
        ml.restrict(kr.kronecker_factors(at, reach=0), range(1, 3))


# Damping


def test_only_the_diagonal_blocks_are_damped_and_they_are_F_breve(matrices):
    sizes, fac, _, F_tilde = matrices
    damped = blocks.split(kr.curvature.Full(ml.damped(fac, GAMMA)).dense(), sizes)
    breve = blocks.split(kr.curvature.BlockDiagonal(fac, GAMMA**2).dense(), sizes)
    for i, row in enumerate(blocks.split(F_tilde, sizes)):
        for j, block in enumerate(row):
            np.testing.assert_allclose(damped[i][j], breve[i][i] if i == j else block, rtol=1e-14)


def test_the_damped_F_tilde_shares_its_tridiagonal_blocks_with_F_hat_and_no_others(matrices):
    sizes, fac, _, _ = matrices
    damped = kr.curvature.Full(ml.damped(fac, GAMMA))
    F_hat = kr.curvature.BlockTridiagonal(fac, GAMMA**2)
    near, beside, *far = errors_by_offset(F_hat.dense(), damped.dense(), sizes)
    assert max(near, beside) < 1e-12
    assert min(far) > 1e-3
    inverse = blocks.norms(F_hat.inverse_dense(), sizes)
    k = blocks.offsets(len(sizes))
    assert inverse[k > 1].max() < 1e-12 * inverse[k == 1].min()


def test_the_damped_F_tilde_is_positive_definite(matrices):
    _, fac, _, F_tilde = matrices
    added = kr.curvature.Full(ml.damped(fac, GAMMA)).dense() - F_tilde
    # The term that damping adds is at least gamma^2 I.
    assert np.linalg.eigvalsh(added)[0] >= GAMMA**2 * (1 - 1e-10)


# Errors block by block


def test_the_best_products_leave_what_the_nearest_ones_leave(matrices):
    sizes, fac, F, F_tilde = matrices
    least = best_kronecker(F, fac)
    for i, row in enumerate(blocks.split(F, sizes)):
        for j, block in enumerate(row):
            shapes = (len(fac.A[i]), len(fac.A[j])), (len(fac.G[i]), len(fac.G[j]))
            A, G, _ = kr.kronecker.nearest_product(block, *shapes)
            assert least[i, j] == pytest.approx(np.linalg.norm(block - np.kron(A, G)), rel=1e-9)
    assert (least <= blocks.norms(F_tilde - F, sizes)).all()
    assert least.min() > 1e-3 * np.linalg.norm(F) / len(sizes)


def test_F_tilde_is_where_the_best_products_leave_nothing(matrices):
    _, fac, _, F_tilde = matrices
    assert best_kronecker(F_tilde, fac).max() < 1e-13 * np.linalg.norm(F_tilde)


def test_F_tilde_is_exact_between_biases_and_nowhere_else(matrices):
    _, fac, F, F_tilde = matrices
    assert bias_norm(F_tilde - F, fac) < 1e-13 * bias_norm(F, fac)
    assert np.linalg.norm(F_tilde - F) > 1e-2 * np.linalg.norm(F)
    # 4 layers with 4 biases each, which are the last column of the weights: the last four of each twenty parameters.
    rows = np.flatnonzero(np.arange(80) % 20 >= 16)
    assert bias_norm(F, fac) == pytest.approx(np.linalg.norm(F[rows][:, rows]), rel=1e-14)


def test_norms_and_means_are_loops_over_blocks():
    M = np.random.default_rng(0).standard_normal((9, 9))
    ends = [0, 2, 5, 9]
    parts = [[M[a:b, c:d] for c, d in pairwise(ends)] for a, b in pairwise(ends)]
    np.testing.assert_allclose(blocks.norms(M, (2, 3, 4)), [[np.sqrt((B**2).sum()) for B in row] for row in parts])
    np.testing.assert_allclose(blocks.means(M, (2, 3, 4)), [[np.abs(B).mean() for B in row] for row in parts])
    assert np.linalg.norm(blocks.norms(M, (2, 3, 4))) == pytest.approx(np.linalg.norm(M), rel=1e-14)


def test_errors_by_offset_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    M, B = rng.standard_normal((2, 12, 12))
    sizes = (3, 2, 4, 3)
    k = blocks.offsets(4)
    norms = blocks.norms(M, sizes)
    squares = sum(e**2 * (norms[k == d]**2).sum() for d, e in enumerate(errors_by_offset(B, M, sizes)))
    assert squares == pytest.approx(np.linalg.norm(B - M)**2, rel=1e-13)
    np.testing.assert_allclose(errors_by_offset(0.75 * M, M, sizes), 0.25, rtol=1e-14)


def test_the_tridiagonal_ratio_of_a_matrix_that_decays_by_a_third_a_layer():
    M = np.kron(3.0 ** -blocks.offsets(4), np.random.default_rng(0).choice([-1.0, 1.0], (5, 5)))
    # Beside the diagonal 1/3; further off four blocks of 1/9 and two of 1/27.
    assert blocks.tridiagonal_ratio(M, (5,) * 4) == pytest.approx((1 / 3) / ((4 / 9 + 2 / 27) / 6), rel=1e-14)
    assert blocks.tridiagonal_ratio(np.ones((20, 20)), (5,) * 4) == 1
