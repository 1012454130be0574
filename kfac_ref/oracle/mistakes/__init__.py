"""The catalogue of mistakes in implementations of K-FAC.

An entry says what was done, why it is wrong and how to correct it, and transforms the right values into the wrong ones:
it changes one or a few nodes of the `reference`, and the rest follows. The diagnosis uses the entries as hypotheses,
the test suite as mutants, and the exercises as feedback. A change takes the reference and a function that makes the
right value. Entries are applied in the order of the modules imported here, and of the lines in each.
"""

from . import data, scale, expectation, layout, damping, steps  # noqa: I001, F401  (each adds its entries: the order counts)
from .entry import CATALOGUE, FACTORS_G, STEPS, Mistake, times

__all__ = ["CATALOGUE", "FACTORS_G", "STEPS", "Mistake", "times"]
