"""The data: handwritten digits that come with the package, and how they become inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import DTypeLike

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
