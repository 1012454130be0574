"""The oracle: exact expected values for any implementation of K-FAC, and the name of the convention that differs.

A `Problem` defines the values, `Reference` computes every quantity by name, and `check` compares your values with those
and diagnoses mismatches.

Examples
--------
>>> from kfac_ref import oracle
>>> problem = oracle.Problem((1, 1), (), "gaussian", [[[2.0, 0.0]]], [[1.0], [3.0]], [[0.0], [1.0]])
>>> report = oracle.check(problem, {"G": [[[2.0]]]})
>>> report.ok, "G summed over the examples" in [e.names[0] for e in report.explanations]
(False, True)
"""

from . import published
from .check import Report, check
from .checks import ProblemError
from .forms import read_quantities
from .graph import QUANTITIES, Reference
from .mistakes import CATALOGUE, Mistake
from .problem import KLClip, Previous, Problem, Trajectory
from .published import Vector, vector

__all__ = ["CATALOGUE", "QUANTITIES", "KLClip", "Mistake", "Previous", "Problem", "ProblemError", "Reference", "Report",
           "Trajectory", "Vector", "check", "published", "read_quantities", "vector"]
