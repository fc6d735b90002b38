"""Sphinx's configuration of the book. `python -m book` gathers the pages and calls Sphinx."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

project = "Pruning a language model"
html_title = "Pruning a language model, and repairing what is left"
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["results/**/tables/*", "runs/*"]  # to be included, and to be downloaded
suppress_warnings = [
    "myst.header",  # a table's file, included below a heading, has none of its own
]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be loaded from the network
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "literal"  # `name` in a docstring is code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 70
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
}
html_static_path = ["static"]
html_css_files = ["book.css"]
html_context = {"default_mode": "auto"}  # dark where the reader's system is
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # summaries are fetched, which a page of the file system may not


def docstring_to_rst(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: outside `code` every sign is itself, indented lines are code.

    Ours are plain text, in which |W|, x_t or *args are no markup.
    """
    made: list[str] = []
    for line in lines:
        if line.startswith("    "):
            if not (made and made[-1].startswith("    ")):
                made += ["", ".. code-block:: text", ""]
            made.append(line)
            continue
        if made and made[-1].startswith("    "):
            made.append("")
        parts = re.split(r"(`[^`]+`)", line)
        parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
        made.append(re.sub(r"^(Args|Raises|Returns)\b:?", r"**\1:**", "".join(parts)))
    return made


def _process_docstring(app: Sphinx, kind: str, name: str, item: Any, opts: Any, lines: list[str]):
    lines[:] = docstring_to_rst(lines)


def _skip(app: Sphinx, kind: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a module only passes on from other packages."""
    return True if not getattr(item, "__module__", "helpers").startswith("helpers") else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("autodoc-skip-member", _skip)
