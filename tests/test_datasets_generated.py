"""The curves that are generated and the IDX files that the user has."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from kfac_ref.datasets import curves, mnist, resize


def idx(items: np.ndarray) -> bytes:
    """Return an IDX file of unsigned bytes, written out from the format's description."""
    head = bytes((0, 0, 8, items.ndim)) + b"".join(int(d).to_bytes(4, "big") for d in items.shape)
    return head + items.astype(np.uint8).tobytes()


def write(folder: Path, part: str = "t10k", n: int = 20, pack: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
    for items, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
        path = folder / f"{part}-{kind}-ubyte{'.gz' if pack else ''}"
        path.write_bytes(gzip.compress(idx(items)) if pack else idx(items))
    return images, labels


def test_curves_have_the_two_numbers_of_the_generator_that_they_follow() -> None:
    X = curves(6000, 3)
    deviations = X - X.mean(axis=0)
    spectrum = np.linalg.eigvalsh(deviations.T @ deviations / len(X))
    # 20.4 and 6.9 are told of 20,000 images; the spread between draws of 6000 is about one per cent.
    assert abs((deviations**2).sum(axis=1).mean() / 20.4 - 1) < 0.03
    assert abs(spectrum[:-18].sum() / 6.9 - 1) < 0.03


def test_a_curve_is_the_ink_of_a_parabola_through_three_points() -> None:
    controls = np.random.default_rng(5).uniform(5, 22, (2, 3, 2))[1]
    fit = np.polynomial.polynomial.polyfit([0, 0.5, 1], controls, 2)
    image = np.zeros((28, 28))
    for t in np.arange(60) / 59:
        x, y = np.clip(fit[0] + fit[1] * t + fit[2] * t * t, 0, 27)
        length = np.hypot(*(fit[1] + 2 * fit[2] * t)) / 59
        rows, columns = np.mgrid[:28, :28]
        image += length * np.exp(-((columns - x)**2 + (rows - y)**2) / (2 * 0.64)) / (0.8 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(curves(2, 5)[1].reshape(28, 28), np.minimum(image, 1), rtol=1e-10, atol=1e-12)


def test_curves_are_reproducible_and_do_not_depend_on_how_many_there_are() -> None:
    np.testing.assert_array_equal(curves(3, 1), curves(600, 1)[:3])
    assert np.abs(curves(3, 1) - curves(3, 2)).max() > 0.1
    assert curves(2, dtype=np.float32).dtype == np.float32
    assert curves(50).min() >= 0
    assert curves(50).max() == 1


@pytest.mark.parametrize(("arguments", "message"), [
    ((0,), "n must be an integer of at least 1"), ((2, -1), "seed must be an integer of at least 0"),
    ((2, 0, np.int64), "dtype must be float64 or float32")])
def test_bad_arguments_of_curves_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curves(*arguments)


@pytest.mark.parametrize("pack", [False, True])
def test_idx_files_are_read_plain_and_packed(tmp_path: Path, pack: bool) -> None:
    x, y = write(tmp_path, "train", 30, pack)
    x_test, y_test = write(tmp_path, "t10k", 20, pack)
    data = mnist(tmp_path)
    for mine, theirs in ((data.x, x), (data.x_test, x_test)):
        np.testing.assert_array_equal(mine, theirs.reshape(-1, 784) / 255)
    np.testing.assert_array_equal(data.labels, y)
    np.testing.assert_array_equal(data.labels_test, y_test)


def test_where_only_the_test_files_are_there_they_are_split(tmp_path: Path) -> None:
    x, _ = write(tmp_path, "t10k", 9100)
    data = mnist(tmp_path, np.float32)
    assert (len(data.x), len(data.x_test)) == (9000, 100)
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x_test, x[9000:].reshape(-1, 784).astype(np.float32) / 255)


def broken(name: str, change) -> object:
    def act(folder: Path) -> None:
        path = folder / f"t10k-{name}"
        path.write_bytes(change(path.read_bytes()))
    return act


@pytest.mark.parametrize(("act", "message"), [
    (broken("images-idx3-ubyte", lambda b: b[:-1]), "images-idx3-ubyte is truncated: 20 items take 15696 bytes"),
    (broken("images-idx3-ubyte", lambda b: b + b"0"), "images-idx3-ubyte is padded: 20 items take 15696 bytes"),
    (broken("images-idx3-ubyte", lambda b: b[:10]), "images-idx3-ubyte is truncated: its header takes 16 bytes"),
    (broken("labels-idx1-ubyte", lambda b: b"\0\0\x08\x03" + b[4:]), "magic number 00000801, got 00000803"),
    (broken("labels-idx1-ubyte", lambda b: b""), "magic number 00000801, got nothing"),
    (broken("labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a"), "must hold labels 0..9, got 10"),
    (broken("labels-idx1-ubyte", lambda b: idx(np.zeros(19))), "holds 20 t10k images and 19 labels"),
    (broken("images-idx3-ubyte", lambda b: idx(np.zeros((20, 8, 8)))), r"items of shape \(28, 28\), got \(8, 8\)"),
    (broken("images-idx3-ubyte", lambda b: idx(np.zeros((0, 28, 28)))), "is empty: its header gives 0 items"),
    (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "but not t10k-labels-idx1-ubyte"),
    (lambda folder: [path.unlink() for path in folder.iterdir()], "is offered under that name by")])
def test_a_damaged_folder_is_refused_by_what_is_wrong(tmp_path: Path, act, message: str) -> None:
    write(tmp_path)
    act(tmp_path)
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path)


@pytest.mark.parametrize("keep", [5, -4])
def test_a_damaged_archive_is_refused(tmp_path: Path, keep: int) -> None:
    write(tmp_path, pack=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz cannot be read"):
        mnist(tmp_path)


@pytest.mark.parametrize("side", [1, 5, 14, 16, 27, 28])
def test_resizing_averages_over_areas(side: int) -> None:
    images = np.random.default_rng(side).random((2, 28, 28))
    # The witness cuts every pixel into side x side equal ones and averages whole blocks of those.
    fine = np.repeat(np.repeat(images, side, axis=1), side, axis=2)
    blocks = fine.reshape(2, side, 28, side, 28).mean(axis=(2, 4))
    np.testing.assert_allclose(resize(images, side), blocks, rtol=1e-12)


def test_resizing_upwards_is_refused() -> None:
    with pytest.raises(ValueError, match="side must be at most 28, got 29"):
        resize(np.zeros((1, 28, 28)), 29)
