"""The pictures: functions that take arrays and return a Matplotlib `Figure`, all in one style.

Colours are those of Okabe and Ito, which the colour-blind tell apart, and every line has a dash pattern or marker of
its own as well. Matrices that are compared share one colour scale, and layer blocks are marked on it.
"""

from .bars import error_budget, grouped_bars
from .covariance import error_as_covariance
from .curves import Curve, convergence, cost, lines, run
from .matrices import block_structure, fisher_rows, matrix_rows, pooled
from .panels import Panel, side_by_side, with_one_legend
from .ranges import Rows, ranges
from .style import COLOURS, DASHES, MARKERS, STYLE, caption, style

__all__ = ["COLOURS", "DASHES", "MARKERS", "STYLE", "Curve", "Panel", "Rows", "block_structure", "caption",
           "convergence", "cost", "error_as_covariance", "error_budget", "fisher_rows", "grouped_bars", "lines",
           "matrix_rows", "pooled", "ranges", "run", "side_by_side", "style", "with_one_legend"]
