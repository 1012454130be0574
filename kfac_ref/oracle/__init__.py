"""The oracle: exact expected values for any implementation of K-FAC, and the name of the convention that differs.

A `Problem` defines the values, `Reference` computes every quantity by name, and `check` compares your values with those
and diagnoses mismatches.

Examples
--------
>>> from kfac_ref import oracle
>>> problem = oracle.Problem((1, 1), (), "gaussian", [[[2.0, 0.0]]], [[1.0], [3.0]], [[0.0], [1.0]])
>>> report = oracle.check(problem, {"A": [[[10, 4], [4, 2]]]})
>>> report.ok, report.explanations[0].names
(False, ('A summed over the examples',))
"""

from . import published
from .check import check
from .checks import ProblemError
from .forms import read_quantities
from .graph import QUANTITIES, Reference
from .mistakes import CATALOGUE, Mistake
from .problem import KLClip, Previous, Problem, Trajectory
from .published import Vector, vector
from .report import Report

__all__ = ["CATALOGUE", "QUANTITIES", "KLClip", "Mistake", "Previous", "Problem", "ProblemError", "Reference", "Report",
           "Trajectory", "Vector", "check", "published", "read_quantities", "vector"]
