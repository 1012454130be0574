"""What ``figures/error_over_training.py`` computes: errors of the whole and of the blocks, as is and at best scale."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

import kfac_ref as kr
from kfac_ref.experiments import family
from tests.figure_scripts import load
from tests.problems import problem

script = load("error_over_training")
SIZES = (3, 2, 4)


def matrices():
    rng = np.random.default_rng(0)
    return rng.standard_normal((9, 9)), rng.standard_normal((9, 9))


def blocks_of(M):
    ends = np.cumsum([0, *SIZES])
    return scipy.linalg.block_diag(*(M[a:b, a:b] for a, b in pairwise(ends)))


def test_errors_are_those_of_the_whole_and_of_the_blocks():
    F, B = matrices()
    expected = [np.linalg.norm(Y - X) / np.linalg.norm(X) for X, Y in ((F, B), (blocks_of(F), blocks_of(B)))]
    np.testing.assert_allclose(script.errors(F, B, SIZES, scaled=False), expected, rtol=1e-13)
    assert script.errors(F, F, SIZES, scaled=False) == (0, 0)


def test_the_best_number_is_found():
    F, B = matrices()
    expected = []
    for X, Y in ((F, B), (blocks_of(F), blocks_of(B))):
        found = scipy.optimize.minimize_scalar(lambda c, X=X, Y=Y: np.sum((c * Y - X) ** 2))
        expected.append(np.sqrt(found.fun) / np.linalg.norm(X))
    np.testing.assert_allclose(script.errors(F, B, SIZES, scaled=True), expected, rtol=1e-7)
    np.testing.assert_allclose(script.errors(F, -7 * F, SIZES, scaled=True), 0, atol=1e-14)


@pytest.mark.parametrize("name", script.BLOCKS_KNOWN)
def test_the_blocks_that_are_not_drawn_are_known(name):
    p = problem("categorical", (3, 4, 3), N=9)
    sizes = [m * n for m, n in p.shapes]
    F, targets = kr.fisher_matrix(p.at), p.at.sample(np.random.default_rng(0))

    def blocks(name):
        return script.errors(F, family.FAMILY[name](p.at, script.DAMPING, targets).dense(), sizes, scaled=False)[1]

    expected = 0 if name == "exact blocks" else blocks("F̆ (factored damping)")
    assert blocks(name) == pytest.approx(expected, abs=1e-3)
    assert blocks("F̆ (factored damping)") > 0.05


def test_at_most_as_many_lines_as_there_are_markers():
    names = [name for name in family.FAMILY if name not in script.LEFT_OUT]
    assert len(names) <= 12
    assert {*script.LEFT_OUT, *script.BLOCKS_KNOWN, script.FOOF} <= set(family.FAMILY)
