"""Pictures in a notebook or on a page: one with its alternative text, or a sequence to step through.

Both are self-contained HTML that contains SVG, with the same bytes at every run: nothing is loaded from elsewhere. As
the last expression of a notebook's cell they show themselves; in a plain script they do nothing.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import matplotlib as mpl
from matplotlib.figure import Figure


def _shown(figure: Figure, text: str) -> str:
    # A fixed salt and no date: otherwise Matplotlib writes other identifiers at every run.
    with mpl.rc_context({"svg.hashsalt": "kfac_ref", "svg.fonttype": "path"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        data = base64.b64encode(file.getvalue()).decode()
    # The text is also below the picture; a screen reader reads it once.
    return (f'<figure style="margin: 0.5em 0"><img alt="{html.escape(text)}" src="data:image/svg+xml;base64,{data}" '
            'style="max-width: 100%; height: auto; background: white">'
            f'<figcaption aria-hidden="true">{html.escape(text)}</figcaption></figure>')


@dataclass(frozen=True)
class Picture:
    """A figure with a text below it, which is also its alternative text."""

    figure: Figure
    alt: str  #: For people who cannot see it: what is drawn, and its message in numbers; not empty.

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("alt: expected the picture's message in words, got an empty text")

    def _repr_html_(self) -> str:
        return _shown(self.figure, self.alt)


@dataclass(frozen=True)
class Player:
    """Frames to step through with buttons, a slider, or the keys left, right, Home and End.

    Without JavaScript all frames are shown one below the other.
    """

    frames: Sequence[Figure]  #: At least one.
    captions: Sequence[str]   #: A sentence per frame: shown below it, and its alternative text.
    title: str                #: What the frames show.

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("frames: expected at least one figure, got none")
        if len(self.captions) != len(self.frames):
            raise ValueError(f"captions: expected one for each of {len(self.frames)} frames, got {len(self.captions)}")
        if not all(text.strip() for text in (*self.captions, self.title)):
            raise ValueError("captions: expected words for every frame and the title, got an empty text")

    def _repr_html_(self) -> str:
        script = resources.files(__package__).joinpath("player.js").read_text()
        frames = "\n".join(_shown(figure, text) for figure, text in zip(self.frames, self.captions, strict=True))
        return (f'<div class="kfac-player" role="group" tabindex="0" aria-label="{html.escape(self.title)}">\n'
                f"{frames}\n</div>\n<script>\n{script}</script>")
