"""The digits against what the UCI file is known to hold, and the licence that has to travel with them."""

from __future__ import annotations

from importlib import metadata, resources

import numpy as np
import pytest

from kfac_ref import datasets

# The first image of the file, as the documentation of scikit-learn prints it.
FIRST = [[0, 0, 5, 13, 9, 1, 0, 0],
         [0, 0, 13, 15, 10, 15, 5, 0],
         [0, 3, 15, 2, 0, 11, 8, 0],
         [0, 4, 12, 0, 0, 8, 8, 0],
         [0, 5, 8, 0, 0, 9, 8, 0],
         [0, 4, 11, 0, 1, 12, 7, 0],
         [0, 2, 14, 5, 10, 12, 0, 0],
         [0, 0, 6, 13, 10, 0, 0, 0]]
# Cases of each class in the test part, from the table in the data set's own description (optdigits.names).
CASES = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.fixture(scope="module")
def data():
    return datasets.digits()


def whole(data):
    return np.concatenate([data.x, data.x_test]), np.concatenate([data.labels, data.labels_test])


def zero_pixels(x):
    return np.flatnonzero((x == 0).all(axis=0)).tolist()


def test_shapes_and_split(data):
    assert data.x.shape == (1500, 64)
    assert data.x_test.shape == (297, 64)
    assert data.labels.shape == (1500,)
    assert data.labels_test.shape == (297,)


def test_the_first_image_and_the_first_labels_are_those_of_the_file(data):
    np.testing.assert_array_equal(16 * data.x[0].reshape(8, 8), FIRST)
    # The file begins with each digit in turn, three times over.
    assert data.labels[:30].tolist() == list(range(10)) * 3


def test_every_class_has_as_many_cases_as_the_description_says(data):
    assert sum(CASES) == 1797
    assert np.bincount(whole(data)[1], minlength=10).tolist() == CASES
    assert set(data.labels.tolist()) == set(data.labels_test.tolist()) == set(range(10))
    assert data.labels.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pixels_are_sixteenths_in_the_dtype_that_was_asked_for(dtype):
    x, _ = whole(datasets.digits(dtype))
    assert x.dtype == dtype
    np.testing.assert_array_equal(16 * x, np.round(16 * x))
    assert (x.min(), x.max()) == (0, 1)
    assert set(np.unique(16 * x).tolist()) == set(range(17))


def test_single_precision_holds_the_same_numbers(data):
    single = datasets.digits(np.float32)
    np.testing.assert_array_equal(single.x, data.x)
    np.testing.assert_array_equal(single.x_test, data.x_test)
    np.testing.assert_array_equal(single.labels, data.labels)


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.complex128])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=f"dtype must be float64 or float32, got {np.dtype(dtype)}"):
        datasets.digits(dtype)


def test_three_pixels_are_always_zero(data):
    # Their rows and columns make A of the first layer singular, in the training part and in the whole.
    corners = [0, 8 * 4, 8 * 4 + 7]
    assert zero_pixels(data.x) == zero_pixels(whole(data)[0]) == corners
    assert np.linalg.matrix_rank(data.x) == 64 - 3
    assert set(zero_pixels(data.x_test)) > set(corners)


def test_arrays_are_fresh_at_each_call():
    one, kept = datasets.digits(), datasets.digits()
    for a in (one.x, one.labels, one.x_test, one.labels_test):
        a[...] = 7
    two = datasets.digits()
    for name in ("x", "labels", "x_test", "labels_test"):
        np.testing.assert_array_equal(getattr(two, name), getattr(kept, name))
        assert (getattr(two, name) != 7).any()


def test_the_parts_do_not_overlap_in_memory(data):
    assert not np.shares_memory(data.x, data.x_test)
    assert not np.shares_memory(data.labels, data.labels_test)


def test_the_licence_travels_with_the_data():
    folder = resources.files("kfac_ref") / "data"
    assert (folder / "digits.npz").is_file()
    note = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("CC BY 4.0", "Alpaydin", "Kaynak", "https://archive.ics.uci.edu/dataset/80", "unchanged"):
        assert word in note
    assert "CC BY 4.0" in datasets.digits.__doc__
    assert metadata.metadata("kfac_ref")["License-Expression"] == "MIT"           # of the code: the data has its own
