"""Pictures in a notebook or a page: one with its alternative text, or a sequence to be stepped through.

Both are self-contained HTML with SVG inside, the same bytes at every run: nothing is loaded from anywhere. As the last
expression of a notebook's cell they show themselves; in a plain script they do nothing.
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
    # A fixed salt and no date: matplotlib would else write other identifiers at every run.
    with mpl.rc_context({"svg.hashsalt": "kfac_ref", "svg.fonttype": "path"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        data = base64.b64encode(file.getvalue()).decode()
    # The words stand below the picture, too; who has them read aloud hears them once.
    return (f'<figure style="margin: 0.5em 0"><img alt="{html.escape(text)}" src="data:image/svg+xml;base64,{data}" '
            'style="max-width: 100%; height: auto; background: white">'
            f'<figcaption aria-hidden="true">{html.escape(text)}</figcaption></figure>')


@dataclass(frozen=True)
class Picture:
    """A figure with its words below it, which are its alternative text as well.

    Parameters
    ----------
    figure : Figure
        Any Matplotlib figure.
    alt : str
        What a person who cannot see it must know: what is drawn, and the message in numbers.

    Raises
    ------
    ValueError
        If `alt` is empty.
    """

    figure: Figure
    alt: str

    def __post_init__(self) -> None:
        """Refuse a picture without words."""
        if not self.alt.strip():
            raise ValueError("alt: expected the picture's message in words, got an empty text")

    def _repr_html_(self) -> str:
        return _shown(self.figure, self.alt)


@dataclass(frozen=True)
class Player:
    """Frames to be stepped through by buttons, a slider, or the keys left, right, Home and End.

    Without JavaScript all frames are shown one below the other.

    Parameters
    ----------
    frames : sequence of Figure
        At least one.
    captions : sequence of str
        A sentence for each frame: shown below it, and its alternative text.
    title : str
        What is stepped through.

    Raises
    ------
    ValueError
        If there is no frame, not one caption for each, or an empty text.
    """

    frames: Sequence[Figure]
    captions: Sequence[str]
    title: str

    def __post_init__(self) -> None:
        """Refuse what could not be stepped through or read aloud."""
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
