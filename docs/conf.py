"""The settings of Sphinx for the site. `python docs/build.py` collects the pages and runs Sphinx."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core import render
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.inspect import stringify_signature

project = "kfac_ref"
author = "The kfac_ref authors"
html_title = "kfac_ref"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["docs/recipes"]                 # included by the page of recipes, not pages themselves

# The tutorials are run and shown with their output; the build stops if one fails.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600                             # for a busy machine; all take about a minute
nb_execution_show_tb = True
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# Signatures are written as in the source (see `signature`), with links; shapes in docstrings are prose.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 80
add_module_names = False

nitpicky = True
# The site is built without a network, so there are no inventories of the names of other projects.
nitpick_ignore_regex = [("py:.*", r"(np|numpy|scipy|matplotlib|collections|argparse|pathlib|random|os)\..*"),
                        ("py:.*", r"(Any|Path|Axes|DTypeLike|AbstractContextManager|Callable|Figure|Sequence|Mapping|"
                         r"Iterator|NDArray|dtype|slice|TypeVar|Layers|Value|Change|Bases|Mistakes)")]

# One file draws all formulas; nothing is loaded from another host.
MATHJAX = next(file for file in files("sphinx-mathjax-offline") or () if file.name == "tex-svg.js")
mathjax_path = "tex-svg.js"
# No menu: it would load files that are not in the site.
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}

SECTIONS = Config(napoleon_use_param=False, napoleon_use_rtype=False, napoleon_use_ivar=True,
                  napoleon_custom_sections=[("Attributes", "params_style")])

html_theme = "furo"
html_theme_options = {"sidebar_hide_name": False}
html_static_path = [str(Path(__file__).parent / "_static"), str(MATHJAX.locate())]
html_css_files = ["site.css"]
html_domain_indices = False                            # the reference lists the modules
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_last_updated_fmt = None
highlight_language = "none"                             # most blocks are equations or commands
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

# In docstrings `this` marks names and arguments: a name that the site documents becomes a link, others are code.
default_role = "py:obj"


def sections(app: Sphinx, kind: str, name: str, what: Any, options: Any, lines: list[str]) -> None:
    """Parse the numpydoc sections of a docstring; the comment on a constant has none."""
    if kind not in ("attribute", "data", "property"):
        lines[:] = NumpyDocstring(lines, SECTIONS, app, kind, name, what, options).lines()


@dataclass(frozen=True)
class Default:
    """The default of an argument, shown by its name if Python would show an address."""

    name: str

    @staticmethod
    def of(argument: inspect.Parameter) -> Any:
        """Return the default, or an object whose repr is its name."""
        value = argument.default
        if value is inspect.Parameter.empty or not repr(value).startswith("<"):
            return value
        return Default(getattr(value, "__name__", "..."))

    def __repr__(self) -> str:
        return self.name


def signature(app: Sphinx, kind: str, name: str, what: Any, options: Any, shown: str | None, returned: str | None,
              ) -> tuple[str, str] | None:
    """Write a signature as in the source: `Array`, not its expansion by NumPy."""
    if not shown:
        return None
    names = vars(sys.modules[what.__module__])

    def full(name: re.Match[str]) -> str:
        # Each optimizer's module has its own class `State`.
        meant = names.get(name[0])
        own = isinstance(meant, type) and meant.__module__.startswith("kfac_ref")
        return f"~{meant.__module__}.{meant.__qualname__}" if own else name[0]

    def types(annotation: Any) -> Any:
        text = getattr(annotation, "__forward_arg__", annotation)
        return re.sub(r"(?<![\w.'\"])[A-Za-z_]\w*(?![\w.'\"])", full, text) if isinstance(text, str) else text

    found = inspect.signature(what)
    arguments = [argument.replace(annotation=types(argument.annotation), default=Default.of(argument))
                 for argument in found.parameters.values() if argument.name not in ("self", "cls")]
    text = stringify_signature(found.replace(parameters=arguments, return_annotation=types(found.return_annotation)))
    arguments_shown, _, result = text.partition(" -> ")
    return arguments_shown, "" if kind == "class" else result


def whole_streams(outputs: list[Any]) -> list[Any]:
    """Join the output of a cell, which arrives in pieces of any length.

    Replaces MyST-NB's function, which ends every piece with a line break: the pieces depend on timing.
    """
    merged: dict[str, Any] = {}
    for output in (output for output in outputs if output["output_type"] == "stream"):
        first = merged.setdefault(output["name"], output)
        if first is not output:
            first["text"] += output["text"]
    return [output for output in outputs if output["output_type"] != "stream" or output is merged[output["name"]]]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Node | None:
    """Find the documentation of an abbreviated name; `kfac_ref` itself takes precedence over its modules."""
    if node.get("refdomain") != "py":
        return None
    domain, target = env.domains.python_domain, node["reftarget"].removeprefix("kr.")
    if node["reftype"] == "obj" and not re.search(r"[._A-Z]", target) and node["refdoc"] != "api/kfac_ref":
        return shown                                        # `damping` is an argument more often than a module
    found = [name for name, entry in domain.objects.items()
             if f".{name}".endswith(f".{target}") and not entry.aliased]
    if found:
        entry = domain.objects[min(found, key=lambda name: (name.count("."), name))]
        return _link(app, node, entry.docname, entry.node_id, shown)
    return shown if node["reftype"] == "obj" else None


def _link(app: Sphinx, node: pending_xref, page: str, anchor: str, shown: nodes.Element) -> nodes.reference:
    uri = app.builder.get_relative_uri(node["refdoc"], page) + (f"#{anchor}" if anchor else "")
    return nodes.reference("", "", shown, internal=True, refuri=uri)


def without_versions(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.Node | None) -> None:
    """Remove the names and versions of the tools from a page, so that the same sources give the same bytes."""
    context["metatags"] = ""


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    render.coalesce_streams = whole_streams
    app.connect("autodoc-process-docstring", sections)
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", resolve)
    app.connect("html-page-context", without_versions)
