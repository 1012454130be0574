"""The data: digits that come with the package, curves that are generated, and MNIST files that the user has.

The paper's CURVES (sec. 13; Hinton & Salakhutdinov 2006) is not available; `curves` is a stand-in of the same kind.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import checks
from .checks import Array, Labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs with their labels, one part to train on and one held out.

    Attributes
    ----------
    x : (N, d) array
        Training inputs in [0, 1], one example a row.
    labels : (N,) int array
        Their classes.
    x_test, labels_test : arrays
        The part that is held out.
    """

    x: Array
    labels: Labels
    x_test: Array
    labels_test: Labels


def digits(dtype: DTypeLike = np.float64) -> Dataset:
    """Return the UCI optical digits: 8 x 8 images, 1500 to train on and 297 held out.

    Parameters
    ----------
    dtype : {numpy.float64, numpy.float32}
        Of the images.

    Returns
    -------
    Dataset
        Images of 64 pixels, scaled from 0..16 to [0, 1], and labels 0..9. The split is fixed: the first 1500 in the
        file's order, and the rest.

    Notes
    -----
    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, CC BY 4.0; its test part. See ``kfac_ref/data/README.md``.

    Examples
    --------
    >>> data = digits()
    >>> data.x.shape, data.x_test.shape, data.labels[:5].tolist()
    ((1500, 64), (297, 64), [0, 1, 2, 3, 4])
    """
    dtype = checks.precision("dtype", dtype)
    with resources.as_file(resources.files(__package__) / "data" / "digits.npz") as path, \
            np.load(path, allow_pickle=False) as file:
        images = file["images"].reshape(-1, 64).astype(dtype) / 16
        labels = file["labels"].astype(np.int64)
    return Dataset(images[:1500], labels[:1500], images[1500:], labels[1500:])


#: Of `curves`: pixels a side, the square of the control points, points along a curve, width of the pen in pixels.
CURVES_SIDE, CURVES_SQUARE, CURVES_POINTS, CURVES_PEN = 28, (5.0, 22.0), 60, 0.8


def curves(n: int, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """Generate images of smooth curves: a stand-in for the paper's CURVES.

    Three points are drawn uniformly in the square [5, 22]^2 of a 28 x 28 image, and the parabola through them at t = 0,
    1/2, 1 is inked with a Gaussian pen: each of 60 points along it adds the length of its segment times the profile of
    the pen, and what comes to more than 1 is 1.

    Parameters
    ----------
    n : int
        The number of images.
    seed : int
        Of the control points; image k does not depend on n.
    dtype : {numpy.float64, numpy.float32}
        Of the images.

    Returns
    -------
    (n, 784) array
        Images in [0, 1], one a row, rows of pixels in order.

    Raises
    ------
    ValueError
        For a number below 1, a negative seed, another dtype.

    Notes
    -----
    After Hinton & Salakhutdinov 2006, as used in Martens & Grosse 2015, sec. 13.
    """
    checks.count("n", n)
    checks.count("seed", seed, 0)
    dtype = checks.precision("dtype", dtype)
    controls = np.random.default_rng(seed).uniform(*CURVES_SQUARE, (n, 3, 2))
    images = np.empty((n, CURVES_SIDE**2), dtype=dtype)
    for start in range(0, n, 500):                          # a few hundred images at a time: bounded memory
        part = slice(start, start + 500)
        images[part] = _ink(controls[part]).reshape(-1, CURVES_SIDE**2)
    return images


def _ink(controls: Array) -> Array:
    """Return the images (n, 28, 28) of the parabolas through three points each, (n, 3, 2)."""
    t = np.linspace(0, 1, CURVES_POINTS)
    # The parabola through p0, p1, p2 at t = 0, 1/2, 1, by Lagrange's polynomials, and its derivative.
    basis = np.stack([2 * (t - 0.5) * (t - 1), -4 * t * (t - 1), 2 * t * (t - 0.5)], axis=1)
    slope = np.stack([4 * t - 3, 4 - 8 * t, 4 * t - 1], axis=1)
    points = np.clip(basis @ controls, 0, CURVES_SIDE - 1)
    lengths = np.linalg.norm(slope @ controls, axis=2) / (CURVES_POINTS - 1)
    pen = np.exp(-((np.arange(CURVES_SIDE) - points[..., None]) ** 2) / (2 * CURVES_PEN**2))    # (n, points, 2, pixels)
    weights = lengths / (CURVES_PEN * math.sqrt(2 * math.pi))
    image = np.matmul((pen[:, :, 1] * weights[..., None]).transpose(0, 2, 1), pen[:, :, 0])
    return np.minimum(image, 1)


def mnist(folder: str | os.PathLike[str], dtype: DTypeLike = np.float64, side: int = 28) -> Dataset:
    """Read MNIST from the IDX files that the user has, gzipped or plain.

    Parameters
    ----------
    folder : path
        Where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two ``t10k-`` files lie, with or without
        ``.gz``. Where only the t10k files are there, their first 9000 digits are the training part and the rest is held
        out: say so where results are told.
    dtype : {numpy.float64, numpy.float32}
        Of the images.
    side : int
        Pixels a side; fewer than 28 are area averages (see `resize`).

    Returns
    -------
    Dataset
        Images in [0, 1] of ``side**2`` pixels, and labels 0..9.

    Raises
    ------
    ValueError
        Where the files are not there (saying where to get them), or are not what their names say: magic number, counts,
        a truncated or padded file, a damaged archive, labels out of range.

    Notes
    -----
    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", 1998.
    """
    dtype = checks.precision("dtype", dtype)
    checks.count("side", side)
    folder = Path(folder)
    test = _idx_pair(folder, "t10k")
    if test is None:
        raise ValueError(f"folder {folder} does not hold t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or "
                         "with .gz; MNIST is offered under that name by the site of its authors (Y. LeCun, C. Cortes, "
                         "C. Burges) and by many mirrors")
    train = _idx_pair(folder, "train")
    (x, y), (x_test, y_test) = (train, test) if train else ((test[0][:9000], test[1][:9000]),
                                                            (test[0][9000:], test[1][9000:]))
    pixels = [resize(images.astype(dtype) / 255, side).reshape(len(images), -1) for images in (x, x_test)]
    return Dataset(pixels[0], y, pixels[1], y_test)


def resize(images: Array, side: int) -> Array:
    """Return images of fewer pixels, each the average over the area that it covers.

    Parameters
    ----------
    images : (n, s, s) array
        Square images.
    side : int
        Pixels a side of the result, at most s.

    Returns
    -------
    (n, side, side) array
        The same mean brightness; pixels that two new ones share are split between them.

    Raises
    ------
    ValueError
        For more pixels than there are.
    """
    s = images.shape[1]
    if side > s:
        raise ValueError(f"side must be at most {s}, got {side}")
    if side == s:
        return images
    # Row i of W holds the share of each old pixel in new pixel i, whose edges stand at i s / side.
    edges = np.arange(side + 1) * s / side
    old = np.arange(s)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    W = (np.maximum(overlap, 0) * side / s).astype(images.dtype)
    return W @ images @ W.T


def _idx_pair(folder: Path, part: str) -> tuple[NDArray[np.uint8], Labels] | None:
    """Read images (n, 28, 28) and labels (n,) of one part, or return None where neither file is there."""
    found = [_find(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if found == [None, None]:
        return None
    for path, kind in zip(found, ("images-idx3-ubyte", "labels-idx1-ubyte"), strict=True):
        if path is None:
            raise ValueError(f"folder {folder} holds one of the two {part} files, but not {part}-{kind}, plain or with "
                             ".gz")
    assert found[0] is not None
    assert found[1] is not None
    images, labels = _idx(found[0], (28, 28)), _idx(found[1], ())
    if len(images) != len(labels):
        raise ValueError(f"folder {folder} holds {len(images)} {part} images and {len(labels)} labels")
    if labels.size and labels.max() > 9:
        raise ValueError(f"{found[1]} must hold labels 0..9, got {labels.max()}")
    return images, labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, (n, *shape), and check all that its head says."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    dimensions = len(shape) + 1
    head = 4 * (dimensions + 1)
    magic = bytes((0, 0, 8, dimensions))
    if raw[:4] != magic:
        raise ValueError(f"{path} must start with the magic number {magic.hex()}, got {raw[:4].hex() or 'nothing'}")
    if len(raw) < head:
        raise ValueError(f"{path} is truncated: its head takes {head} bytes, it has {len(raw)}")
    n, *rest = (int.from_bytes(raw[4 * k:4 * k + 4], "big") for k in range(1, dimensions + 1))
    if tuple(rest) != shape:
        raise ValueError(f"{path} must hold items of shape {shape}, got {tuple(rest)}")
    expected = head + n * math.prod(shape)
    if len(raw) != expected:
        raise ValueError(f"{path} is {'truncated' if len(raw) < expected else 'padded'}: {n} items take {expected} "
                         f"bytes, it has {len(raw)}")
    if n == 0:
        raise ValueError(f"{path} is empty: it says that it holds 0 items")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(n, *shape)
