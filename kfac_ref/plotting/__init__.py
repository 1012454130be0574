"""The pictures: functions that take arrays and return a Matplotlib `Figure`, all in one style.

In all of them `text` is the caption, labels contain the unit, and mappings are drawn in their order. Colours are those
of Okabe and Ito, which colour-blind people can tell apart, and every line also has its own dash pattern or marker.
Matrices that are compared share one colour scale, and layer blocks are marked on it.
"""

from .bars import error_budget, grouped_bars
from .covariance import error_as_covariance
from .curves import Curve, batch_sizes, convergence, convergence_rows, cost, decreases, lines
from .frames import Picture, Player
from .matrices import block_structure, fisher_rows, matrix_rows, pooled
from .panels import Panel, side_by_side, with_one_legend
from .ranges import Rows, ranges
from .style import COLOURS, DASHES, LOOKS, MARKERS, STYLE, caption, style
from .training import run

__all__ = ["COLOURS", "DASHES", "LOOKS", "MARKERS", "STYLE", "Curve", "Panel", "Picture", "Player", "Rows",
           "batch_sizes", "block_structure", "caption", "convergence", "convergence_rows", "cost", "decreases",
           "error_as_covariance", "error_budget", "fisher_rows", "grouped_bars", "lines", "matrix_rows", "pooled",
           "ranges", "run", "side_by_side", "style", "with_one_legend"]
