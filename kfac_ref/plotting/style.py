"""The one style of all pictures, and their captions."""

from __future__ import annotations

import textwrap
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Matplotlib's settings for every picture.
STYLE: dict[str, Any] = {
    "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.6, "lines.linewidth": 1.8, "figure.dpi": 150,
    "image.interpolation": "nearest",
}
#: Those of Okabe and Ito, which colour-blind people can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#000000")
#: One per colour.
DASHES: tuple[Any, ...] = ("-", "--", (0, (1, 1)), "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (4, 1)), ":")
#: Pairs of a colour and a dash, for more lines than there are colours.
LOOKS = (*zip(COLOURS, DASHES, strict=True), *zip(COLOURS, (*DASHES[3:], *DASHES[:3]), strict=True))
#: One per point or line that is marked.
MARKERS = ("o", "s", "^", "v", "D", "x", "+", "*", "p", "h", "<", ">")


def style() -> AbstractContextManager[None]:
    """Return a context in which figures have the package's style."""
    return mpl.rc_context(STYLE)        # type: ignore[arg-type]


def caption(figure: Figure, text: str, width: int) -> None:
    """Write a caption under a figure, wrapped at `width` characters."""
    figure.supxlabel("\n".join(textwrap.wrap(text, width, break_on_hyphens=False)), x=0.01, ha="left", fontsize=9)


def plain_ticks(axes: Axes) -> None:
    """Label a logarithmic y axis with plain numbers, also between powers of ten if it spans less than two of them."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    near = low > 0 and high / low < 100
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if near and f"{value:.0e}"[0] in "2357" else "")
