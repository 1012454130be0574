"""Data: digits that come with the package, generated curves, and the user's own MNIST files.

The paper's CURVES (sec. 13; Hinton & Salakhutdinov 2006) is not available; `curves` generates similar data.

Images are rows of pixels in [0, 1], of dtype float64 or float32.
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
    """Inputs with their labels: a training part and a test part."""

    x: Array                #: Training inputs in [0, 1], (N, d).
    labels: Labels          #: Their classes, (N,).
    x_test: Array
    labels_test: Labels


def digits(dtype: DTypeLike = np.float64) -> Dataset:
    """Return the UCI optical digits: 1500 training and 297 test images of 8 x 8 pixels, with labels 0..9.

    Pixels are scaled from 0..16 to [0, 1]. The split is fixed: the first 1500 in the order of the file, and the rest.

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


#: For `curves`: image width, range of the control points, points along a curve, width of the pen (in pixels).
CURVES_SIDE, CURVES_SQUARE, CURVES_POINTS, CURVES_PEN = 28, (5.0, 22.0), 60, 0.8


def curves(n: int, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """Generate n images of smooth curves, (n, 784): a substitute for the paper's CURVES (sec. 13).

    Three points are drawn uniformly in the square [5, 22]^2 of a 28 x 28 image, and the parabola through them at t = 0,
    1/2, 1 is drawn with a Gaussian pen: each of 60 points along it adds the length of its segment times the profile of
    the pen, and values above 1 are set to 1. Image k depends on `seed`, but not on n.
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
    """Read MNIST from the user's IDX files, gzipped or plain.

    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", 1998.

    Parameters
    ----------
    folder : path
        Contains ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two ``t10k-`` files, with or without
        ``.gz``. If it contains the t10k files only, their first 9000 digits are the training part and the rest is the
        test part: mention this when you report results. Missing, damaged or inconsistent files raise ValueError.
    side : int
        Width of the images in pixels; fewer than 28 are area averages (see `resize`).
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
    """Return square images (n, s, s) with fewer pixels, (n, side, side), each the average over the area that it covers.

    The mean brightness does not change: an old pixel that overlaps two new ones is split between them.
    """
    s = images.shape[1]
    if side > s:
        raise ValueError(f"side must be at most {s}, got {side}")
    if side == s:
        return images
    # Row i of W holds the share of each old pixel in new pixel i, whose edges are at i s / side and (i + 1) s / side.
    edges = np.arange(side + 1) * s / side
    old = np.arange(s)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    W = (np.maximum(overlap, 0) * side / s).astype(images.dtype)
    return W @ images @ W.T


def _idx_pair(folder: Path, part: str) -> tuple[NDArray[np.uint8], Labels] | None:
    """Read images (n, 28, 28) and labels (n,) of one part, or return None if neither file exists."""
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
    """Read an IDX file of unsigned bytes, (n, *shape), and check it against its header."""
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
        raise ValueError(f"{path} is truncated: its header takes {head} bytes, it has {len(raw)}")
    n, *rest = (int.from_bytes(raw[4 * k:4 * k + 4], "big") for k in range(1, dimensions + 1))
    if tuple(rest) != shape:
        raise ValueError(f"{path} must hold items of shape {shape}, got {tuple(rest)}")
    expected = head + n * math.prod(shape)
    if len(raw) != expected:
        raise ValueError(f"{path} is {'truncated' if len(raw) < expected else 'padded'}: {n} items take {expected} "
                         f"bytes, it has {len(raw)}")
    if n == 0:
        raise ValueError(f"{path} is empty: its header gives 0 items")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(n, *shape)
