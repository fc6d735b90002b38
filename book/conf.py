"""Sphinx's configuration of the book, which `python -m book` writes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import typing
from typing import Any

from sphinx.application import Sphinx

import helpers
from helpers.explore import touch

html_title = project = "Pruning a language model and refitting what is left"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
templates_path = ["templates"]
# pages include tables; templates make the pages of modules
exclude_patterns = ["**/tables/*", "templates"]
# the files of tables have no title of their own; a notebook's cell may hold a line with `!`
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be loaded from the network
nb_render_markdown_format = "myst"  # outputs have tables
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # `name` in a docstring is code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
python_maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_theme_options = {
    "footer_content_items": [],
    "navbar_persistent": [],  # the search field is in the sidebar
    "secondary_sidebar_items": {
        "**": ["page-toc.html"],
        "claims": [],  # its tables need the width
    },
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}  # dark where the reader's system is
html_static_path = ["static"]
html_css_files = ["book.css"]
smartquotes_action = (
    "De"  # dashes and dots: quotes in a command are to be copied as they are
)
# the tree of all pages would be drawn again for each of these, and take half of the build's time
html_sidebars = {
    pages: ["navbar-logo.html", "search-button-field.html", "short-nav.html"]
    for pages in ("runs/**", "_modules/**")
}
# a summary would be fetched, which a page from a file may not do
html_show_search_summary = False


PACKAGES = ("helpers.", "reproduction.")
# packages that have one page of what they offer; of the others each module has a page
WHOLE = (
    *("helpers.explore", "helpers.large"),
    *("reproduction.machine", "reproduction.proof", "reproduction.studies"),
)


def page_of(module: str) -> str:
    """The page that documents a module: its own, or that of its package."""
    package = ".".join(module.split(".")[:2])
    return package if package in WHOLE else module


@functools.cache
def public_names() -> dict[str, str]:
    """Map each public name to the place that documents it."""
    homes = {}
    for name in helpers.__all__:
        # METHODS is a dict, which does not know its module
        module = getattr(getattr(helpers, name), "__module__", "helpers.paper.methods")
        homes[name] = f"{page_of(module)}.{name}"
    return homes


def to_rst(
    app: Sphinx, kind: str, name: str, item: Any, options: Any, lines: list[str]
) -> None:
    """Make reStructuredText of a docstring: plain text, in which |W| and x_t are no markup.

    Indented lines are code, except below "Args:", which napoleon handles.
    """
    made: list[str] = []
    section = False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            section = line == "Args:"
        code = indented and not section
        if code != bool(made and made[-1].startswith("    ") and not section):
            made += ["", ".. code-block:: text", ""] if code else [""]
        if not code:
            start = re.match(r"(    \w+:)?", line).end()  # an argument's name
            parts = re.split(r"(`[^`]+`)", line[start:])
            parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
            parts[1::2] = [linked(part.strip("`")) for part in parts[1::2]]
            line = line[:start] + "".join(parts)
            line = re.sub(r"^((?:Args|Raises|Returns)\b:?)(?= )", r"**\1**", line)
        made.append(line)
    lines[:] = made


def linked(code: str) -> str:
    """Link code in a docstring to its documentation if it is a public or a full name."""
    home = public_names().get(code, code if code.startswith(PACKAGES) else None)
    return f":py:obj:`{code} <{home}>`" if home else f"`{code}`"


def skip(
    app: Sphinx, kind: str, name: str, item: Any, skipped: bool, options: Any
) -> bool | None:
    """Leave out names that a module imports from other packages."""
    if getattr(item, "__module__", "helpers.").startswith(PACKAGES):
        return None
    return True


def without_checks(app: Sphinx, item: Any, bound: bool) -> None:
    """Remove the checks of options, which their types carry, from a function's annotations."""
    # a name may be unknown where the function of a class was made by `dataclass`
    with contextlib.suppress(NameError):
        if inspect.isfunction(item):
            item.__annotations__ = typing.get_type_hints(item)


def add_touch(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Inline the picture that computes in a page that has a place for it."""
    # inlined, since a page that is opened from a file may load no module
    if touch.PLACE in context.get("body", ""):
        app.add_js_file(None, body=touch.page_script(), type="module")


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx, which calls this."""
    app.connect("html-page-context", add_touch)
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-before-process-signature", without_checks)
