"""Assertions for the test suites of other implementations: where numbers differ, the message is the diagnosis.

::

    from kfac_ref.oracle import Problem
    from kfac_ref.testing import assert_kfac_factors

    def test_my_factors():
        problem = Problem.from_arrays(weights, x, y, hidden=["tanh"], biases=biases)
        assert_kfac_factors(problem, my_A, my_G)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import checks
from .oracle import Problem, check

_G = {"exact": "G", "sampled": "G_sampled", "empirical": "G_empirical"}


def assert_kfac(problem: Problem, quantities: Mapping[str, Any], dialect: str | None = None, rtol: float | None = None,
                samples: int | None = None) -> None:
    """Fail with the diagnosis unless quantities are those that a problem defines.

    Parameters
    ----------
    problem : Problem
        What defines them.
    quantities : mapping
        Any of `oracle.QUANTITIES` by name: a number, an array, or a list with one array a layer.
    dialect : str, optional
        In whose conventions they are.
    rtol : float, optional
        The largest relative error that counts as rounding, in place of what the precision allows.
    samples : int, optional
        The number of targets behind a ``G_sampled`` whose targets are not in the problem.

    Raises
    ------
    AssertionError
        With the table and what was done where they differ.
    ValueError
        For quantities that are unknown or malformed.

    Examples
    --------
    >>> from kfac_ref import oracle
    >>> v = oracle.vector("categorical-tanh")
    >>> assert_kfac(v.problem, {"A": v.expected["A"], "step": v.expected["step"]})
    """
    __tracebackhide__ = True                                # pytest shows the caller's line, not this one
    report = check(problem, quantities, dialect, rtol, samples)
    if not report.ok:
        raise AssertionError(f"K-FAC differs from the reference\n{report}")


def assert_kfac_factors(problem: Problem, A: Sequence[Any], G: Sequence[Any], expectation: str = "exact",
                        dialect: str | None = None, rtol: float | None = None, samples: int | None = None) -> None:
    """Fail with the diagnosis unless A and G are the Kronecker factors of a problem.

    Parameters
    ----------
    problem : Problem
        What defines them.
    A : sequence of (n, n) arrays
        One a layer, of the inputs with their ones.
    G : sequence of (m, m) arrays
        One a layer, of the outputs.
    expectation : {"exact", "sampled", "empirical"}
        Which G it is.
    dialect, rtol, samples : optional
        As in `assert_kfac`.

    Raises
    ------
    AssertionError
        With the table and what was done where they differ.
    ValueError
        For an unknown expectation, or malformed matrices.
    """
    __tracebackhide__ = True
    assert_kfac(problem, {"A": A, checks.known("expectation", expectation, _G): G}, dialect, rtol, samples)
