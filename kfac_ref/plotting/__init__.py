"""The pictures: functions that take arrays and return a Matplotlib `Figure`, all in one style.

Colours are those of Okabe and Ito, which the colour-blind tell apart, and every line has a dash pattern or marker of
its own as well. Matrices that are compared share one colour scale, and layer blocks are marked on it.
"""

from .bars import error_budget, grouped_bars
from .curves import Curve, batch_sizes, convergence, cost, decreases, lines
from .matrices import fisher_rows, pooled
from .style import COLOURS, DASHES, MARKERS, STYLE, caption, style

__all__ = ["COLOURS", "DASHES", "MARKERS", "STYLE", "Curve", "batch_sizes", "caption", "convergence", "cost",
           "decreases", "error_budget", "fisher_rows", "grouped_bars", "lines", "pooled", "style"]
