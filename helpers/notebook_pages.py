"""Executed notebooks as HTML pages that open offline, in the look of the report.

nbconvert makes the cells. Its own pages would load MathJax and RequireJS from the network, so only
its plainest template is used, inside a page of ours. Widgets, which live only beside a kernel,
become a note: the notebooks show the same numbers in static figures and tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode, ValidationError

from helpers.errors import first_line
from helpers.pages import document, escape
from helpers.paths import replace_file, results_dir

WIDGET = "application/vnd.jupyter.widget-view+json"
# what only scripts could show, and no script runs in these pages
SCRIPTED = (WIDGET, "application/javascript")
INSTEAD = "*(something to move or press: open the notebook itself for it)*"
# a link to the next notebook would lead nowhere from here
RELATIVE = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)[^)]*\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!data:|attachment:)[^)]*\)")
BROKEN = (OSError, ValueError, LookupError, AttributeError, TypeError, ValidationError)


def convert_notebooks(plan: str, say: Callable[[str], None]) -> list[str]:
    """Write results/PLAN/html/NAME.html for every executed notebook of a plan that has none.

    A page that is newer than its notebook, and than the code that makes it, is left; one whose
    notebook has gone is removed. `say` is told each notebook, because a plan may have seventy, and
    those that cannot be converted. Returns what it was told of these.
    Raises RecordError if the folder cannot be written.
    """
    folder = results_dir(plan)
    sources = {path.stem: path for path in sorted((folder / "runs").glob("*.ipynb"))}
    for page in (folder / "html").glob("*.html"):
        if page.stem not in sources:
            page.unlink(missing_ok=True)
    pages = {name: folder / "html" / f"{name}.html" for name in sources}
    todo = [name for name in sources if not _is_fresh(pages[name], sources[name])]
    problems = []
    for place, name in enumerate(todo, start=1):
        say(f"[{place}/{len(todo)}] {name}.ipynb as HTML")
        try:
            text = notebook_page(sources[name])
        except BROKEN as error:
            pages[name].unlink(missing_ok=True)
            problems.append(
                f"cannot convert {name}.ipynb: {type(error).__name__}: {first_line(error):.200}; "
                "delete its record and run it again"
            )
            say(problems[-1])
            continue
        replace_file(pages[name], text)
    return problems


def _is_fresh(page: Path, source: Path) -> bool:
    """Whether a page is newer than its notebook and than what makes pages."""
    if not page.is_file():
        return False
    here = Path(__file__)
    made_of = [source, here, here.with_name("pages.py"), here.with_name("report.css")]
    return page.stat().st_mtime > max(path.stat().st_mtime for path in made_of)


def notebook_page(path: Path) -> str:
    """An executed notebook as a whole page. Raises one of BROKEN for a file that is none."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    _make_static(notebook)
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    cells, _ = exporter.from_notebook_node(notebook)
    title = _title(notebook) or path.stem
    body = (
        '<header class="bar"><nav aria-label="Report">'
        f'<a href="../../report.html#run-{escape(path.stem.removesuffix(".failed"))}">'
        f"← the report</a></nav><p>{escape(path.name)}</p></header>\n"
        f'<main id="main">\n{_accessible(cells)}\n</main>'
    )
    return document(f"{title} ({path.stem})", body, kind="notebook")


def _title(notebook: NotebookNode) -> str:
    """The first heading of a notebook."""
    for cell in notebook.cells:
        found = re.search(r"(?m)^# (.+)$", cell.source) if cell.cell_type == "markdown" else None
        if found:
            return found[1].strip()
    return ""


def _make_static(notebook: NotebookNode) -> None:
    """Leave out of a notebook what scripts would show, or what the network would be asked for."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            without = PICTURE.sub(r"\1", cell.source)  # the badge of Colab is an image
            cell.source = RELATIVE.sub(r"\1", without)
    for output in _outputs(notebook):
        data = output.get("data", {})
        live = WIDGET in data
        for kind in SCRIPTED:
            data.pop(kind, None)
        if live:  # its plain text is a name of a class
            output["data"] = NotebookNode({"text/markdown": INSTEAD})


def _outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def _accessible(cells: str) -> str:
    """Boxes that scroll can be reached by keyboard, and a table's empty corner is no heading."""
    boxes = r'<div class="([^"]*\b(?:highlight|output_subarea)\b)'
    cells = re.sub(boxes, r'<div tabindex="0" class="\1', cells)
    return re.sub(r"<th></th>", "<td></td>", cells)
