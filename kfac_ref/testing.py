"""Assertions for the test suites of other implementations; if values differ, the message is the diagnosis.

::

    from kfac_ref.oracle import Problem
    from kfac_ref.testing import assert_kfac_factors

    def test_my_factors():
        problem = Problem.from_arrays(weights, x, y, hidden=["tanh"], biases=biases)
        assert_kfac_factors(problem, my_A, my_G)

Both raise an AssertionError with a table of the values and, where they differ, what was done differently; unknown or
malformed quantities raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import checks
from .oracle import Problem, check

_G = {"exact": "G", "sampled": "G_sampled", "empirical": "G_empirical"}


def assert_kfac(problem: Problem, quantities: Mapping[str, Any], dialect: str | None = None, rtol: float | None = None,
                samples: int | None = None) -> None:
    """Fail with the diagnosis unless the quantities are those that the problem defines.

    Parameters
    ----------
    quantities : mapping
        Any of `oracle.QUANTITIES` by name: a number, an array, or a list with one array per layer.
    dialect : str, optional
        The name of the implementation whose conventions the values follow.
    rtol : float, optional
        The largest relative error that counts as rounding (default: what the precision of the values allows).
    samples : int, optional
        The number of targets behind a ``G_sampled`` whose targets are not in the problem.

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
    """Fail with the diagnosis unless A and G are the Kronecker factors of the problem.

    `A` (of the inputs with their ones) and `G` (of the outputs) hold one matrix per layer; `expectation` says whether G
    is exact, sampled or empirical. The other arguments are those of `assert_kfac`.
    """
    __tracebackhide__ = True
    assert_kfac(problem, {"A": A, checks.known("expectation", expectation, _G): G}, dialect, rtol, samples)
