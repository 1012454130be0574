"""What goes wrong in implementations of K-FAC: one catalogue, by name.

An entry says in a sentence what was done, why it is wrong and how to mend it, and holds the transformation of the right
values into the wrong ones: a change of one or a few nodes of the `reference`, from which the rest follows. The
diagnosis takes the entries for hypotheses, the test suite for mutants, and the exercises for feedback.

A function of a change takes the reference and the function that makes the right value; it need not call that. The
entries stand in the order in which they are applied: that of the modules here, and of the lines in each.
"""

from . import data, scale, expectation, layout, damping, steps  # noqa: I001, F401  (each adds its entries: the order counts)
from .entry import CATALOGUE, FACTORS_G, STEPS, VISIBLE, Mistake, differ, error, times

__all__ = ["CATALOGUE", "FACTORS_G", "STEPS", "VISIBLE", "Mistake", "differ", "error", "times"]
