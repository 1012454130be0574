"""The site opens offline: no dead link, formulas drawn, frames that step, nothing wider than a narrow window.

The pages are those of `make docs` in the folder site/, if they are newer than their sources. Else these tests are
skipped, or, where ``KFAC_REF_REQUIRE=browser`` asks for them, the site is built in a temporary folder.
"""

from __future__ import annotations

import base64
import html
import importlib
import importlib.util
import inspect
import os
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from matplotlib.figure import Figure

import kfac_ref
from kfac_ref import plotting
from tests import browser, require

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]
ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
SOURCES = ("docs/**/*", "tutorials/**/*", "kfac_ref/**/*.py", "kfac_ref/**/*.js", "figures/*/*.png", "figures/**/*.md",
           "README.md")


def is_fresh() -> bool:
    """Return whether the site is there and newer than all that it is made of."""
    if not (SITE / "index.html").exists():
        return False
    made = (SITE / "index.html").stat().st_mtime
    return all(path.stat().st_mtime <= made for pattern in SOURCES for path in ROOT.glob(pattern)
               if path.is_file() and "__pycache__" not in path.parts)


def build(out: Path) -> None:
    """Build the site."""
    if importlib.util.find_spec("myst_nb") is None:
        require.missing("browser", "the docs extra is not installed (make docs installs it)")
    subprocess.run([sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(out)], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if is_fresh():
        return SITE
    if "browser" not in os.environ.get("KFAC_REF_REQUIRE", "").split(","):
        pytest.skip("no site that is newer than its sources (make docs builds it)")
    out = tmp_path_factory.mktemp("site") / "html"
    build(out)
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    program = browser.program()
    if program is None:
        require.missing("browser", "no chromium is installed")
    assert program
    with browser.Browser(program) as running:
        yield running


class Content(HTMLParser):
    """What a page names, links to, loads and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: dict[str, str] = {}                     # a link, and the text in it
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {str(values[key]) for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self._inside = str(values["href"])
            self.links.append(self._inside)
        if tag == "img":
            self.images.append(values)
        address = values.get("src") or (values.get("href") if tag == "link" else None)
        if address:
            self.loads.append(address)

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.words[data.strip()] = self._inside


@cache
def contents(site: Path) -> dict[Path, Content]:
    return {path: Content(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).scheme or urlsplit(address).netloc)


def dead(site: Path) -> list[str]:
    """Return the links of all pages that lead nowhere."""
    pages, found = contents(site), []
    for path, page in pages.items():
        for address in (a for a in page.links + page.loads if not is_elsewhere(a)):
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{path.name}: no file {address}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids | {"", "top"}:
                found.append(f"{path.name}: no place {address}")
    return found


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert len(contents(site)) > 40
    assert dead(site.resolve()) == []
    for path, page in contents(site.resolve()).items():
        assert [a for a in page.loads if is_elsewhere(a) and not a.startswith("data:image/svg+xml")] == [], path
        assert [a for a in page.links if urlsplit(a).scheme not in ("", "https", "mailto")] == [], path


def test_a_dead_link_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html">b</a><a href="#c">c</a><p id="d"><a href="a.html#d">d</a>')
    assert dead(tmp_path.resolve()) == ["a.html: no file b.html", "a.html: no place #c"]


def test_every_picture_has_words(site: Path) -> None:
    for path, page in contents(site.resolve()).items():
        for image in page.images:
            assert (image.get("alt") or "").strip(), f"{path.name}: {str(image.get('src'))[:60]}"
            assert image["alt"] not in str(image["src"]), "the name of the file is not a text"


def test_every_tutorial_every_figure_and_every_hand_written_page_is_there(site: Path) -> None:
    for path in (ROOT / "tutorials").glob("[0-9]*.py"):
        assert (site / "tutorials" / f"{path.stem}.html").exists()
        assert f"{path.stem}.html" in (site / "tutorials" / "index.html").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / f"{path.stem}.html").exists()
    gallery = (site / "gallery.html").read_text()
    for path in (ROOT / "figures").glob("*.py"):
        assert path.stem == "demo" or f"python figures/{path.name}</span>" in gallery \
            or re.search(rf"python</span> <span[^>]*>figures/{path.name}", gallery), path.name
    shown = {image["src"] for image in contents(site.resolve())[site.resolve() / "gallery.html"].images}
    pictures = [*(ROOT / "figures").glob("*/*.png"), *(ROOT / "figures").glob("*/*/*.png")]
    assert len(shown) == len(pictures)


def test_the_commands_of_the_first_steps_can_be_copied(site: Path) -> None:
    page = (site / "start.html").read_text()
    blocks = [html.unescape(re.sub("<.*?>", "", block)) for block in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    shown = {line.strip() for block in blocks for line in block.splitlines()}
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^    (make (?:demo|test) .*|\.venv/bin/kfac-ref (?:demo|train) .*)$", readme, re.MULTILINE)
    assert len(commands) > 5
    assert [command for command in commands if command not in shown] == []


def public(module: types.ModuleType) -> list[str]:
    """Return the public names of a module that are no modules."""
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if not name.startswith("_")
        and (inspect.isroutine(value) or inspect.isclass(value)) and value.__module__ == module.__name__]
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def test_no_public_name_is_missing_from_the_reference(site: Path) -> None:
    pages = contents(site.resolve())
    places = {place for page in pages.values() for place in page.ids}
    modules = [importlib.import_module(f"kfac_ref.{path.stem}") for path in Path(kfac_ref.__file__).parent.iterdir()
               if not path.stem.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())]
    assert len(modules) > 20
    names = [f"{module.__name__}.{name}" for module in modules for name in public(module)]
    assert [name for name in names if name not in places] == []
    first = pages[site.resolve() / "api" / "kfac_ref.html"].words
    for name in kfac_ref.__all__:
        assert first.get(name, "").endswith(f".{name}"), name


def test_what_the_notation_calls_a_name_is_one() -> None:
    text = (ROOT / "docs" / "pages" / "glossary.md").read_text()
    found = re.findall(r"\{py:(?:func|class|meth|attr)\}`(?:[^`<]*<)?([\w.]+)>?`", text)
    assert len(found) > 25
    for name in found:
        parts = name.split(".")
        value = importlib.import_module(".".join(parts[:2]))
        for part in parts[2:]:
            value = getattr(value, part)


def test_the_works_that_docstrings_cite_are_in_the_bibliography() -> None:
    bibliography = (ROOT / "docs" / "pages" / "bibliography.md").read_text()
    cited = set()
    for path in (ROOT / "kfac_ref").rglob("*.py"):
        for author, year in re.findall(r"([A-Z][a-z]+)(?: et al\.| (?:&|and) [A-Z][\w ]+)?,? \(?((?:19|20)\d\d)\)?",
                                       path.read_text()):
            cited.add((author, year))
    assert ("Martens", "2015") in cited
    for author, year in cited:
        assert re.search(rf"{author}\b[^(]*\({year}\)", bibliography), (author, year)


# What is wider than the window, and in no box of the text that scrolls; the theme's drawers wait outside of it.
WIDE = """(() => {
  const width = document.documentElement.clientWidth;
  const boxed = (e) => e && e.tagName !== "ARTICLE" && (["auto", "scroll"].includes(getComputedStyle(e).overflowX)
                       || boxed(e.parentElement));
  return [document.documentElement.scrollWidth > width ? ["the page"] : []].concat(
    [...document.querySelectorAll("article *")].filter((e) => e.getBoundingClientRect().right > width + 1
      && getComputedStyle(e).display !== "none" && !boxed(e.parentElement)).map((e) => e.outerHTML)).flat();
})()"""


def kinds(site: Path) -> list[Path]:
    """Return the pages with something of their own to look at: all but most of the reference."""
    api = {"index.html", "kfac_ref.html", "kfac_ref.optimizers.html", "kfac_ref.oracle.html"}
    return [path for path in sorted(site.rglob("*.html")) if path.parent.name != "api" or path.name in api]


def test_every_page_is_whole_in_a_narrow_window_without_a_network(site: Path, chromium: browser.Browser) -> None:
    formulas = 0
    for path in kinds(site):
        page = chromium.open(path.as_uri(), width=320, height=640)
        assert page.complaints() == [], path.name
        assert page.run(WIDE) == [], path.name
        drawn = page.run("document.querySelectorAll('mjx-container > svg').length")
        assert drawn == page.run("document.querySelectorAll('.math').length"), path.name
        assert page.run("document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0, path.name
        assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), path.name
        formulas += drawn
        page.close()
    assert formulas > 100


def test_dark_pages_are_dark_and_their_pictures_white(site: Path, chromium: browser.Browser) -> None:
    light = "(c => (c[0] * 299 + c[1] * 587 + c[2] * 114) / 255000)(getComputedStyle({}).{}.match(/[0-9.]+/g))"
    for path in kinds(site):
        if path.name in ("genindex.html", "search.html"):
            continue
        page = chromium.open(path.as_uri(), dark=True)
        assert page.run(light.format("document.body", "backgroundColor")) < 0.2
        assert page.run(light.format("document.querySelector('article h1')", "color")) > 0.6
        assert page.run("[...document.querySelectorAll('article img')].every(i => "
                        "getComputedStyle(i).backgroundColor === 'rgb(255, 255, 255)')"), path.name
        assert page.complaints() == [], path.name
        page.close()


def shown(page: browser.Page, player: int) -> list[int]:
    """Return which frames of a player can be seen."""
    return page.run(f"[...document.querySelectorAll('.kfac-player')[{player}].querySelectorAll('figure')]"
                    ".map((f, i) => f.getBoundingClientRect().height > 0 ? i : -1).filter(i => i >= 0)")


def step_through(page: browser.Page, player: int) -> None:
    """Go through the frames of a player by keys and by buttons, and see one at a time."""
    one = f"document.querySelectorAll('.kfac-player')[{player}]"
    last = page.run(f"{one}.querySelectorAll('figure').length") - 1
    assert last >= 1
    assert shown(page, player) == [0]
    page.run(f"{one}.focus({{preventScroll: true}})")
    for key, frame in (("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", 0), ("End", last), ("ArrowRight", last),
                       ("Home", 0)):
        page.press(key)
        assert shown(page, player) == [frame], key
    for button, frame in ((1, 1), (0, 0)):
        page.click(f"{one}.querySelectorAll('button')[{button}]")
        assert shown(page, player) == [frame]
    page.click(f"{one}.querySelector('input')")             # the middle of the slider; it has the focus then
    middle, = shown(page, player)
    assert abs(middle - last / 2) <= 0.5
    page.press("ArrowRight")
    assert shown(page, player) == [min(middle + 1, last)]   # one frame, not one by the slider and one by the player
    assert page.run(f"{one}.querySelector('span').textContent") == f"{min(middle + 1, last) + 1} / {last + 1}"


def player(frames: int = 3) -> str:
    """Return a player of lines that become steeper."""
    figures = [Figure(figsize=(6, 2)) for _ in range(frames)]
    for slope, figure in enumerate(figures, 1):
        figure.subplots().plot([0, 1], [0, slope])
    return plotting.Player(figures, [f"It rises by {k}." for k in range(1, frames + 1)], "slopes")._repr_html_()


def test_players_step_by_key_button_and_slider_and_leave_each_other_alone(
        tmp_path: Path, chromium: browser.Browser) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>t</title>{player()}{player(5)}{player(1)}")
    page = chromium.open(path.as_uri(), width=360)
    step_through(page, 0)
    assert shown(page, 1) == [0]
    step_through(page, 1)
    assert shown(page, 2) == [0]
    assert page.run("document.querySelectorAll('.kfac-player')[2].querySelectorAll('button, input').length") == 0
    assert page.run(WIDE) == []
    assert page.complaints() == []


def test_a_key_that_is_held_with_another_is_the_browsers_own(tmp_path: Path, chromium: browser.Browser) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>t</title>{player()}")
    page = chromium.open(path.as_uri())
    page.run("document.querySelector('.kfac-player').focus()")
    for modifier in (1, 2, 4, 8):                           # Alt, Ctrl, Meta, Shift
        page.press("End", modifier)
        assert shown(page, 0) == [0]
    page.press("End")
    assert shown(page, 0) == [2]


def test_without_scripts_all_frames_are_shown(tmp_path: Path, chromium: browser.Browser) -> None:
    path = tmp_path / "page.html"
    frames = player().split("<script>")[0]
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>t</title>{frames}")
    assert shown(chromium.open(path.as_uri()), 0) == [0, 1, 2]


def test_the_players_of_the_tutorials_step(site: Path, chromium: browser.Browser) -> None:
    for path in sorted((site / "tutorials").glob("[0-9]*.html")):
        if 'class="kfac-player"' not in path.read_text():
            continue
        page = chromium.open(path.as_uri(), width=400)
        for player in range(page.run("document.querySelectorAll('.kfac-player').length")):
            step_through(page, player)
        assert page.complaints() == [], path.name
        page.close()


def test_the_browser_notices_what_is_wrong(tmp_path: Path, chromium: browser.Browser) -> None:
    picture = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' width='900' height='9'/>").decode()
    (tmp_path / "bad.html").write_text(
        "<!doctype html><title>t</title><article><div style='overflow: auto'><p style='width: 800px'>boxed</p></div>"
        f"<img alt='wide' src='data:image/svg+xml;base64,{picture}'></article>"
        "<script src='http://example.org/a.js'></script><script src='none.js'></script><script>throw 1</script>")
    page = chromium.open((tmp_path / "bad.html").as_uri(), width=320)
    complaints = " ".join(page.complaints())
    for word in ("asks for http://example.org", "ERR_NAME_NOT_RESOLVED", "ERR_FILE_NOT_FOUND", "exception"):
        assert word in complaints
    assert [wide[:4] for wide in page.run(WIDE)] == ["the ", "<img"]


def test_what_a_cell_prints_is_put_together_wherever_it_was_cut() -> None:
    if importlib.util.find_spec("myst_nb") is None:
        require.missing("browser", "the docs extra is not installed (make docs installs it)")
    whole = runpy.run_path(str(ROOT / "docs" / "conf.py"))["whole_streams"]
    text, picture = "one line\n\nanother", {"output_type": "display_data", "data": {}}
    for cut in range(len(text)):
        pieces = [{"output_type": "stream", "name": "stdout", "text": part} for part in (text[:cut], text[cut:])]
        first, shown = whole([pieces[0], picture, pieces[1]])
        assert first["text"] == text
        assert shown is picture
