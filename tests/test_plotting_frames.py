"""Pictures in pages: the same bytes at every run, their words in them, and nothing that is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from kfac_ref import plotting


def figure(slope: float) -> Figure:
    drawn = Figure(figsize=(3, 2))
    drawn.subplots().plot([0, 1], [0, slope], label="slope")
    return drawn


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


ALT = 'a line that rises by 1, "steep" & <straight>'


def test_a_picture_is_an_svg_with_its_alternative_text() -> None:
    page = plotting.Picture(figure(1), ALT)._repr_html_()
    [image] = Tags(page).of("img")
    assert image["alt"] == ALT
    assert f">{html.escape(ALT)}</figcaption>" in page       # and is read by who sees the picture
    kind, data = str(image["src"]).split(",")
    assert kind == "data:image/svg+xml;base64"
    assert b"<svg" in base64.b64decode(data)
    assert b"<text" not in base64.b64decode(data)            # letters are drawn: the page needs no font


def test_two_runs_give_the_same_bytes_and_another_figure_others() -> None:
    one, two, other = (plotting.Picture(figure(slope), ALT)._repr_html_() for slope in (1, 1, 2))
    assert one == two != other


def test_a_player_has_every_frame_in_its_order_with_its_caption() -> None:
    page = plotting.Player([figure(1), figure(2)], ["It rises.", "It rises more."], "two slopes")._repr_html_()
    tags = Tags(page)
    assert [image["alt"] for image in tags.of("img")] == ["It rises.", "It rises more."]
    assert [image["src"] for image in tags.of("img")] == \
        [Tags(plotting.Picture(figure(s), "x")._repr_html_()).of("img")[0]["src"] for s in (1, 2)]
    [group] = tags.of("div")
    assert (group["class"], group["aria-label"], group["tabindex"]) == ("kfac-player", "two slopes", "0")
    assert ">It rises more.</figcaption>" in page
    assert not any("src" in script for script in tags.of("script"))
    assert not re.search(r"https?://", re.sub(r'src="data:[^"]*"', "", page))


@pytest.mark.parametrize(("frames", "captions", "title", "message"), [
    ([], [], "t", "frames: expected at least one"), ([1], [], "t", "one for each of 1 frames, got 0"),
    ([1], [" "], "t", "empty text"), ([1], ["a"], "", "empty text")])
def test_a_player_refuses_what_cannot_be_stepped_through_or_read(
        frames: list[float], captions: list[str], title: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plotting.Player([figure(s) for s in frames], captions, title)


def test_a_picture_refuses_to_have_no_words() -> None:
    with pytest.raises(ValueError, match="alt: expected"):
        plotting.Picture(figure(1), "  ")
