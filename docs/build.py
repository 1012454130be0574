"""Build the site: collect its pages in a folder with the layout of the repository, and convert them to HTML by Sphinx.

    python docs/build.py [--out site]

Pages are written by hand (docs/*.md, docs/pages/*.md), copied from sections of README.md, run (tutorials/), or made
here: the gallery (from figures/README.md), the table of dialects, the pages of the reference. No page contains a date,
the version of a tool or a time measured in this build, so two builds give the same bytes.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import kfac_ref
from kfac_ref.oracle import dialects

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: Files of the repository that are pages or pictures of the site, at the same place.
TAKEN = ("tutorials/[0-9]*.py", "tutorials/answers/*.py", "figures/**/*.png", "docs/recipes/*.py")

#: The exercises: their manual, and the module that reads their questions.
EXERCISES = ROOT / "tutorials" / "exercises"
#: The meaning of the settings that the captions of the gallery name.
SETTINGS = ("Settings in the captions (tau2, T1, lambda_floor, ceiling, undo and so on) are those of "
            "{py:class}`KFAC <kfac_ref.optimizers.KFAC>`; the [notation](glossary.md) explains the symbols. A sparse "
            "start is the paper's initialization: each unit has 15 nonzero incoming weights (all, if it has fewer).\n")
#: Messages of the notebook kernels, which are not shown.
CHATTER = re.compile(r"IPKernelApp|INFO traitlets")


def main() -> None:
    """Read the options and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="where to write; an earlier site is replaced")
    out: Path = parser.parse_args().out
    if out.exists() and not (out / "index.html").exists():
        parser.error(f"{out} exists and is not a site; choose another folder")
    sys.exit(build(out))


def build(out: Path) -> int:
    """Write the site into a folder; return the exit status of Sphinx."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "html")
        gather(source)
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "-b", "html", "-j", "2",
                   "-c", str(ROOT / "docs"), "-d", str(Path(folder, "doctrees")), str(source), str(made)]
        # One hash seed, one BLAS thread and no display, so that no page depends on the process that made it.
        settings = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg",
                    "PYDEVD_DISABLE_FILE_VALIDATION": "1", "JUPYTER_PLATFORM_DIRS": "1"}
        done = subprocess.run(command, env=os.environ | settings, check=False, text=True, stderr=subprocess.PIPE)
        for line in done.stderr.splitlines():
            if line and not CHATTER.search(line):
                print(line, file=sys.stderr)
        if done.returncode == 0:
            finish(made)
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(made, out)
    return done.returncode


def finish(made: Path) -> None:
    """Remove the versions of the tools that made a page."""
    (made / ".buildinfo").unlink(missing_ok=True)
    for page in made.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r"<!-- Generated with .*? -->", "", text), encoding="utf-8")


def gather(source: Path) -> None:
    """Write all pages into a folder."""
    for path in (path for pattern in TAKEN for path in sorted(ROOT.glob(pattern))):
        _write(source / path.relative_to(ROOT), path.read_bytes())
    for path in (*sorted((ROOT / "docs").glob("*.md")), *(ROOT / "tutorials").glob("*.md")):
        # A link to a picture becomes a link to its place in the gallery, with its caption.
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"(?<!!)(\[[^\]]+\])\(\.\./figures/(\w+)/\w+\.png\)", r"\1(#figure-\2)", text)
        _write(source / path.relative_to(ROOT), text.encode())
    for path in sorted((ROOT / "docs" / "pages").glob("*.md")):
        _write(source / path.name, path.read_bytes())
    for path in sorted((ROOT / "figures").glob("*/**/*.md")):
        _write(source / path.relative_to(ROOT), table(path).encode())
    pages = {"start.md": start(), "gallery.md": gallery(), "dialects.md": dialect_table(), "recipes.md": recipes(),
             "tutorials/index.md": tutorials(), "exercises.md": exercises(), **reference()}
    for name, text in pages.items():
        _write(source / name, text.encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def section(title: str) -> str:
    """Return the text of a section of README.md, without its title."""
    # Strip newlines only: a section may begin with indented commands.
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0].strip("\n") + "\n"


def start() -> str:
    """Return the page of first steps, from sections of README.md."""
    parts = ("Start", "Use", "Train", "Trust")
    words = ("For readers who know K-FAC and want to use the package. The [notation](glossary.md) explains the "
             "symbols, and the [tutorials](tutorials/index.md) explain how everything works.")
    return f"# First steps\n\n{words}\n\n" + "\n".join(f"## {part}\n\n{section(part)}" for part in parts)


def tutorials() -> str:
    """Return the page that lists the tutorials and what each of them teaches."""
    rows = []
    for path in sorted((ROOT / "tutorials").glob("[0-9]*.py")):
        text = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        title = re.search(r"^# (.*)$", text, re.MULTILINE)
        learn = re.search(r"\*\*What you will learn\.\*\*(.*?)\n\n", text, re.DOTALL)
        if not title or not learn:
            raise ValueError(f"{path.name}: expected a title and a paragraph **What you will learn.**")
        rows.append(f"- **[{title[1]}]({path.name})** {' '.join(learn[1].split())}")
    return (ROOT / "docs/pages/tutorials.txt").read_text().replace("TUTORIALS", "\n".join(rows))


def exercises() -> str:
    """Return the page of the exercises: how to use them, and every question, without hints and solutions."""
    if not (EXERCISES / "source.py").exists():
        return "# Exercises\n\nEvery tutorial ends in questions to think about.\n"
    # The module that reads them is in their folder, not in the package.
    sys.path.insert(0, str(EXERCISES))
    source = importlib.import_module("source")
    text = [(EXERCISES / "README.md").read_text(encoding="utf-8"),
            "\n## The questions\n\nThis page has only the questions; the files to fill in and the grader are in "
            f"`{EXERCISES.relative_to(ROOT).as_posix()}/` of the repository.\n"]
    section = ""
    if (ROOT / "tutorials/TEACHING.md").exists():
        text.insert(1, "\n```{toctree}\n:hidden:\n\ntutorials/TEACHING\n```\n")
    for exercise in source.read():
        if exercise.section != section:
            section = exercise.section
            text.append(f"\n### {escape(section)}\n")
        text.append(f"```text\n{exercise.name}: {exercise.question}\n```\n")
    return "\n".join(text)


def table(path: Path) -> str:
    """Return a page of tables that a script of the figures wrote, with a title above its sections."""
    title = f"# Tables: {path.relative_to(ROOT / 'figures').parent}"
    return f"{title}\n\n{re.sub(r'^#+ ', '## ', path.read_text(encoding='utf-8'), flags=re.MULTILINE)}"


def captions() -> dict[str, str]:
    """Return the caption, with its numbers, of the picture of each script."""
    found = {}
    for path in sorted((ROOT / "figures").glob("*/*.json")):
        caption = json.loads(path.read_text(encoding="utf-8")).get("caption")
        if caption:
            found[path.parent.name] = caption
    return found


def gallery() -> str:
    """Return the page of all figures, from figures/README.md: each with its title, its caption and its command."""
    page = (ROOT / "figures" / "README.md").read_text(encoding="utf-8").replace("](../", "](")
    head, cells = page.replace("](demo/", "](figures/demo/").split("\n| | |\n")
    text = [head.replace("\n## The demo\n", f"\n{SETTINGS}\n(figure-demo)=\n## The demo\n")]
    cell = re.compile(r'<a href="([^"]+)"><img src="[^"]+" width="\d+" alt="([^"]+)"></a><br>(.*?): `(python [^`]+)`')
    numbers = captions()
    for name, words, title, command in cell.findall(cells):
        path = f"figures/{name}"
        text.append(f"\n(figure-{Path(path).stem})=\n### {title}\n")
        text.append(_figure(path, words, escape(numbers.get(Path(path).parent.name, "")), command))
        for more in sorted((ROOT / path).parent.glob("*/*.png")):
            text.append(_figure(str(more.relative_to(ROOT)), f"{words}: {more.parent.name}", "", command))
    return "\n".join(text)


def _figure(path: str, words: str, caption: str, command: str) -> str:
    picture = f"```{{image}} {path}\n:alt: {json.dumps(words, ensure_ascii=False)}\n```\n"
    # The picture contains its caption; the text is for readers who cannot read it there.
    caption = caption and f"<details><summary>The caption as text</summary>\n\n{caption}\n\n</details>\n"
    return f"{picture}\n{caption}\nDrawn by `{command}`; `{command} --pdf` writes a PDF to project or print.\n"


def escape(text: str) -> str:
    """Return plain text as Markdown."""
    return re.sub(r"([\\`*_\[\]<>|$~#&{}])", r"\\\1", text)


def dialect_table() -> str:
    """Return the page of what each implementation computes under the name K-FAC."""
    heads, *rows = dialects.table()
    short = ("name", "A / ours", "G / ours", "layout", "bias")
    columns = [heads.index(head) for head in short]
    text = [(ROOT / "docs/pages/dialects.txt").read_text(), "| " + " | ".join(short) + " |", "|---" * len(short) + "|"]
    for row in rows:
        text.append("| " + " | ".join(escape(row[column]) for column in columns) + " |")
    for row in rows:
        text.append(f"\n## {escape(row[0])}\n")
        for head, cell in zip(heads[1:], row[1:], strict=True):
            parts = cell.split("; ") if head == "know" else [cell]
            text += [f"- **{escape(head)}**: {escape(part)}" for part in parts]
    return "\n".join(text) + "\n"


def recipes() -> str:
    """Return the page of the recipes for other libraries."""
    text = ["# Recipes for five libraries\n",
            "Each recipe reads A and G from a network of its library and checks them. `make peers` runs all recipes.\n"]
    for path in sorted((ROOT / "docs" / "recipes").glob("*.py")):
        text.append(f"## {path.name}\n\n```{{literalinclude}} docs/recipes/{path.name}\n:language: python\n```\n")
    return "\n".join(text)


def public_modules() -> list[str]:
    """Return the modules that have a page: those of the package, and the public modules of its subpackages.

    They are in the order of the map in the package's docstring; modules that it does not name come last.
    """
    found = [f"kfac_ref.{module.name}" for module in pkgutil.iter_modules(kfac_ref.__path__)
             if not module.name.startswith("_")]
    place = {name: (kfac_ref.__doc__ or "").find(f"`{name.split('.')[1]}`") for name in found}
    found.sort(key=lambda name: (place[name] < 0, place[name], name))
    inside = [f"{name}.{part.name}" for name in found for part in pkgutil.iter_modules(
              getattr(importlib.import_module(name), "__path__", [])) if part.name in public_names(name, modules=True)]
    return ["kfac_ref", *found, *inside]


def public_names(module: str, modules: bool = False) -> list[str]:
    """Return the public names of a module: its `__all__`, else the names that it defines or documents."""
    content = importlib.import_module(module)
    commented = {name for _, name in ModuleAnalyzer.for_module(module).find_attr_docs()}
    names = getattr(content, "__all__", None) or [
        name for name, value in vars(content).items()
        if not name.startswith("_") and (name in commented or getattr(value, "__module__", None) == module)]
    return [name for name in names if (type(getattr(content, name)).__name__ == "module") == modules]


def parts(module: str) -> list[str]:
    """Return the modules in a subpackage; none for the whole package, whose modules have their own pages."""
    folder = [] if module == "kfac_ref" else getattr(importlib.import_module(module), "__path__", [])
    return [part.name for part in pkgutil.walk_packages(folder, f"{module}.")]


def further(module: str) -> str:
    """Return the names that are public in the modules of a subpackage but not in the subpackage itself."""
    text, content = "", importlib.import_module(module)
    shown = {content.__dict__[name].__name__ for name in public_names(module, modules=True)}
    for part in (part for part in parts(module) if part not in shown):
        names = [name for name in public_names(part)
                 if getattr(importlib.import_module(part), name) is not getattr(content, name, None)]
        if names:
            text += f"\nFurther names of ``{part}``\n{'-' * (len(part) + 21)}\n\n"
        for name in names:
            what = getattr(importlib.import_module(part), name)
            kind = "class" if isinstance(what, type) else "function" if inspect.isroutine(what) else "data"
            text += f".. auto{kind}:: {part}.{name}\n"
    return text


def constants(module: str) -> str:
    """Return the public constants of a subpackage, with the comments from the modules that define them."""
    content, comments = importlib.import_module(module), {}
    for part in parts(module):
        comments |= ModuleAnalyzer.for_module(part).find_attr_docs()
    names = [name for name in getattr(content, "__all__", []) if name in public_names(module)]
    return "\n.. py:currentmodule:: None\n" + "".join(
        f"\n.. py:data:: {module}.{name}\n\n   {' '.join(comments['', name])}\n" for name in names
        if not callable(getattr(content, name)))


def reference() -> dict[str, str]:
    """Return the pages of the reference: an index, and one page per module."""
    pages = {}
    modules = public_modules()
    for module in modules:
        title = f"``{module}``"
        text = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n"
        if module == "kfac_ref":
            names = ", ".join(f"`{name}`" for name in public_names(module))
            text = text + f"   :no-members:\n\nThe public names of the package itself: {names}.\n"
        pages[f"api/{module}.rst"] = text + constants(module) + further(module)
    pages["api/index.md"] = "\n".join([
        "# Reference\n", "The whole package, from its docstrings. [`kfac_ref`](kfac_ref.rst) maps the sections of the "
        "paper to the modules.\n", "```{toctree}", ":maxdepth: 1\n", *modules, "```\n"])
    return pages


if __name__ == "__main__":
    main()
