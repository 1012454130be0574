"""Build the site: gather its pages in a folder, where they lie as in the repository, and have Sphinx make HTML of it.

    python docs/build.py [--out site]

Pages are written by hand (docs/*.md, docs/pages/*.md), taken from README.md by section, run (tutorials/), or made here:
the gallery, the table of dialects, the pages of the reference. None of them holds a date, a version of a tool or
a measured time of this build, so that two builds give the same bytes.
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

#: The exercises, where they are: how they are used, and what reads their questions.
EXERCISES = ROOT / "tutorials" / "exercises"
#: What the captions of the gallery do not say of settings.
SETTINGS = ("\nSettings that captions name (tau2, T1, lambda_floor, ceiling, undo and so on) are those of "
            "{py:class}`KFAC <kfac_ref.optimizers.KFAC>`; symbols are in the [notation](glossary.md). A sparse start "
            "is the paper's: of the incoming weights of a unit 15 are not zero (all, where there are fewer).\n")
#: What the notebook's kernels say of themselves.
CHATTER = re.compile(r"IPKernelApp|INFO traitlets")


def main() -> None:
    """Read the options and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="where the site goes; what is there is removed")
    out: Path = parser.parse_args().out
    if out.exists() and not (out / "index.html").exists():
        parser.error(f"{out} is there and is not a site; choose another folder")
    sys.exit(build(out))


def build(out: Path) -> int:
    """Write the site into a folder; return the exit status of Sphinx."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "html")
        gather(source)
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "-b", "html", "-j", "2",
                   "-c", str(ROOT / "docs"), "-d", str(Path(folder, "doctrees")), str(source), str(made)]
        # One hash seed, one BLAS thread and no display: nothing of a page depends on the process that made it.
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
    """Take out what says by which versions of the tools a page was made."""
    (made / ".buildinfo").unlink(missing_ok=True)
    for page in made.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r"<!-- Generated with .*? -->", "", text), encoding="utf-8")


def gather(source: Path) -> None:
    """Write all pages into a folder."""
    for path in (path for pattern in TAKEN for path in sorted(ROOT.glob(pattern))):
        _write(source / path.relative_to(ROOT), path.read_bytes())
    for path in (*sorted((ROOT / "docs").glob("*.md")), *(ROOT / "tutorials").glob("*.md")):
        # A link to a picture becomes one to its place in the gallery, where its caption stands.
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"(?<!!)(\[[^\]]+\])\(\.\./figures/(\w+)/\w+\.png\)", r"\1(#figure-\2)", text)
        _write(source / path.relative_to(ROOT), text.encode())
    for path in sorted((ROOT / "docs" / "pages").glob("*.md")):
        _write(source / path.name, path.read_bytes())
    for path in sorted((ROOT / "figures").glob("**/*.md")):
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
    # Of lines alone: a section may begin with commands, which their indent makes a block.
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0].strip("\n") + "\n"


def start() -> str:
    """Return the page of first steps: what README.md says of them."""
    parts = ("Two commands", "In twelve lines", "Train something of your own", "How far it can be trusted")
    words = ("For those who know K-FAC and want to use the package. What the symbols mean stands in the "
             "[notation](glossary.md), and how it all works in the [tutorials](tutorials/index.md).")
    return f"# First steps\n\n{words}\n\n" + "\n".join(f"## {part}\n\n{section(part)}" for part in parts)


def tutorials() -> str:
    """Return the page that lists the tutorials, with what each says that one learns."""
    rows = []
    for path in sorted((ROOT / "tutorials").glob("[0-9]*.py")):
        text = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        title = re.search(r"^# (.*)$", text, re.MULTILINE)
        learn = re.search(r"\*\*What you will learn\.\*\*(.*?)\n\n", text, re.DOTALL)
        if not title or not learn:
            raise ValueError(f"{path.name}: expected a title and what one will learn")
        rows.append(f"- **[{title[1]}]({path.name})** {' '.join(learn[1].split())}")
    return (ROOT / "docs/pages/tutorials.txt").read_text().replace("TUTORIALS", "\n".join(rows))


def exercises() -> str:
    """Return the page of the exercises: how they are used, and every question, without hints and solutions."""
    if not (EXERCISES / "source.py").exists():
        return "# Exercises\n\nEvery tutorial ends in questions to think about.\n"
    # Their reader stands beside them, and is no part of the package.
    sys.path.insert(0, str(EXERCISES))
    source = importlib.import_module("source")
    text = [(EXERCISES / "README.md").read_text(encoding="utf-8"),
            "\n## The questions\n\nThese pages hold the questions alone; the files to fill in and to grade with are in "
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
    """Return a page of tables that a script of the figures wrote, with a title and its parts below it."""
    title = f"# Tables: {path.relative_to(ROOT / 'figures').parent}"
    return f"{title}\n\n{re.sub(r'^#+ ', '## ', path.read_text(encoding='utf-8'), flags=re.MULTILINE)}"


def captions() -> dict[str, str]:
    """Return what stands under the picture of each script, with its numbers."""
    found = {}
    for path in sorted((ROOT / "figures").glob("*/*.json")):
        caption = json.loads(path.read_text(encoding="utf-8")).get("caption")
        if caption:
            found[path.parent.name] = caption
    return found


def gallery() -> str:
    """Return the page of all figures: those of README.md, each with its words, its command and its numbers."""
    text = ["# Gallery\n", section("Gallery").split("\n| | |")[0], SETTINGS, "\n(figure-demo)=\n## The demo\n"]
    for words, path in re.findall(r"!\[([^\]]*)\]\((figures/demo/[^)]+)\)", README):
        text.append(_figure(path, words, "", "kfac-ref demo"))
    cell = re.compile(r'<a href="([^"]+)"><img src="[^"]+" width="\d+" alt="([^"]+)"></a><br>(.*?): `(python [^`]+)`')
    numbers = captions()
    for path, words, title, command in cell.findall(README):
        text.append(f"\n(figure-{Path(path).stem})=\n## {title}\n")
        text.append(_figure(path, words, escape(numbers.get(Path(path).parent.name, "")), command))
        for more in sorted((ROOT / path).parent.glob("*/*.png")):
            text.append(_figure(str(more.relative_to(ROOT)), f"{words}: {more.parent.name}", "", command))
    return "\n".join(text)


def _figure(path: str, words: str, caption: str, command: str) -> str:
    pdf = f"; `{command} --pdf` for one to project or print" if command.startswith("python") else ""
    picture = f"```{{image}} {path}\n:alt: {json.dumps(words, ensure_ascii=False)}\n```\n"
    # The picture holds its caption; as text it is for those who cannot read it there.
    caption = caption and f"<details><summary>The caption as text</summary>\n\n{caption}\n\n</details>\n"
    return f"{picture}\n{caption}\nMade by `{command}`{pdf}.\n"


def escape(text: str) -> str:
    """Return plain text as Markdown."""
    return re.sub(r"([\\`*_\[\]<>|$~#&{}])", r"\\\1", text)


def dialect_table() -> str:
    """Return the page of who computes what under the name K-FAC."""
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
    text = ["# Recipes for five libraries\n", "Each takes A and G out of a network of that library and checks them. "
            "They are run with the libraries by `make peers`.\n"]
    for path in sorted((ROOT / "docs" / "recipes").glob("*.py")):
        text.append(f"## {path.name}\n\n```{{literalinclude}} docs/recipes/{path.name}\n:language: python\n```\n")
    return "\n".join(text)


def public_modules() -> list[str]:
    """Return the modules that have a page: those of the package, and what a subpackage names as its modules.

    In the order in which the map of the package names them; what it does not name comes last.
    """
    found = [f"kfac_ref.{module.name}" for module in pkgutil.iter_modules(kfac_ref.__path__)
             if not module.name.startswith("_")]
    place = {name: (kfac_ref.__doc__ or "").find(f"`{name.split('.')[1]}`") for name in found}
    found.sort(key=lambda name: (place[name] < 0, place[name], name))
    inside = [f"{name}.{part.name}" for name in found for part in pkgutil.iter_modules(
              getattr(importlib.import_module(name), "__path__", [])) if part.name in public_names(name, modules=True)]
    return ["kfac_ref", *found, *inside]


def public_names(module: str, modules: bool = False) -> list[str]:
    """Return what a module makes public: its `__all__`, else what it defines and has words for."""
    content = importlib.import_module(module)
    commented = {name for _, name in ModuleAnalyzer.for_module(module).find_attr_docs()}
    names = getattr(content, "__all__", None) or [
        name for name, value in vars(content).items()
        if not name.startswith("_") and (name in commented or getattr(value, "__module__", None) == module)]
    return [name for name in names if (type(getattr(content, name)).__name__ == "module") == modules]


def parts(module: str) -> list[str]:
    """Return the modules in a package; none for the whole package, whose modules have pages of their own."""
    folder = [] if module == "kfac_ref" else getattr(importlib.import_module(module), "__path__", [])
    return [part.name for part in pkgutil.walk_packages(folder, f"{module}.")]


def further(module: str) -> str:
    """Return what is public in the parts of a package and not made public by the package itself."""
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
    """Return the constants that a package makes public; the comments above them stand in its parts."""
    content, comments = importlib.import_module(module), {}
    for part in parts(module):
        comments |= ModuleAnalyzer.for_module(part).find_attr_docs()
    names = [name for name in getattr(content, "__all__", []) if name in public_names(module)]
    return "\n.. py:currentmodule:: None\n" + "".join(
        f"\n.. py:data:: {module}.{name}\n\n   {' '.join(comments['', name])}\n" for name in names
        if not callable(getattr(content, name)))


def reference() -> dict[str, str]:
    """Return the pages of the reference: the map, and one for each module."""
    pages = {}
    modules = public_modules()
    for module in modules:
        title = f"``{module}``"
        text = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n"
        if module == "kfac_ref":
            names = ", ".join(f"`{name}`" for name in public_names(module))
            text = text + f"   :no-members:\n\nThe names that it makes public itself: {names}.\n"
        pages[f"api/{module}.rst"] = text + constants(module) + further(module)
    # A file of the package leads to its module's page.
    where = re.sub(r"`(\w+)(/[\w.]*|\.py|\.\w+)`", lambda m: f"[{m[0]}](kfac_ref.{m[1]}.rst)",
                   section("From the paper to the code"))
    pages["api/index.md"] = "\n".join([
        "# Reference\n", "The whole package, from its docstrings. The paper's sections and where they stand:\n",
        where, "```{toctree}", ":maxdepth: 1\n", *modules, "```\n"])
    return pages


if __name__ == "__main__":
    main()
