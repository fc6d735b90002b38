"""Executed notebooks as HTML pages that open offline, in the look of the report.

nbconvert makes the cells. Its own pages would load MathJax and RequireJS from the network, so only
its plainest template is used, inside a page of ours. Widgets, which live only beside a kernel,
become a note: the notebooks show the same numbers in static figures and tables. Formulas become
MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import latex2mathml.exceptions
import nbformat
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter
from nbformat import NotebookNode, ValidationError

from helpers.errors import first_line
from helpers.pages import document, escape
from helpers.paths import replace_file, results_dir

WIDGET = "application/vnd.jupyter.widget-view+json"
# what only scripts could show, and no script runs in these pages
SCRIPTED = (WIDGET, "application/javascript")
PROGRESS = re.compile(r"\[\d\d:\d\d[,<]")  # tqdm's times: [00:12<00:03, or [00:00, at the start
INSTEAD = "*(something to move or press: open the notebook itself for it)*"
# a link to the next notebook would lead nowhere from here
RELATIVE = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)[^)]*\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!data:|attachment:)[^)]*\)")
# formulas, and the code in which a $ is a $
FORMULA = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.S)
NOT_MATHS = tuple(
    kind
    for kind in vars(latex2mathml.exceptions).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)
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
    formulas = _take_formulas(notebook)
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    cells, _ = exporter.from_notebook_node(notebook)
    for token, formula in formulas.items():
        cells = cells.replace(token, formula)
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
        else:
            cell.outputs = [o for o in cell.get("outputs", []) if not _is_progress(o)]
    for output in _outputs(notebook):
        data = output.get("data", {})
        live = WIDGET in data
        for kind in SCRIPTED:
            data.pop(kind, None)
        if live:  # its plain text is a name of a class
            output["data"] = NotebookNode({"text/markdown": INSTEAD})


def _is_progress(output: NotebookNode) -> bool:
    """Whether an output is a progress bar, which says nothing once the work is done."""
    data = output.get("data", {})
    return WIDGET in data and PROGRESS.search(data.get("text/plain", "")) is not None


def _take_formulas(notebook: NotebookNode) -> dict[str, str]:
    """Put a token where Markdown has a formula; MathML by token.

    Markdown would take the signs of MathML for its own, so it goes in after the conversion.
    """
    found: dict[str, str] = {}

    def token_for(match: re.Match[str]) -> str:
        code, block, inline = match.groups()
        if code is not None:
            return code
        token = f"FORMULA{len(found)}x{id(found)}END"
        found[token] = _mathml(block or inline, "block" if block else "inline")
        return token

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(token_for, cell.source)
    for output in _outputs(notebook):
        data = output.get("data", {})
        if isinstance(data.get("text/markdown"), str):
            data["text/markdown"] = FORMULA.sub(token_for, data["text/markdown"])
    return found


def _mathml(latex: str, display: str) -> str:
    """A formula as MathML, or its own text as code where it is none."""
    try:
        made = to_mathml(latex.strip(), display=display)
    except NOT_MATHS:
        return f"<code>{escape(latex)}</code>"
    return made if display == "inline" else f'<span class="formula" tabindex="0">{made}</span>'


def _outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def _accessible(cells: str) -> str:
    """Boxes that scroll can be reached by keyboard, and a table's empty corner is no heading."""
    boxes = r'<div class="([^"]*\b(?:highlight|output_subarea)\b)'
    cells = re.sub(boxes, r'<div tabindex="0" class="\1', cells)
    cells = cells.replace("<pre><code", '<pre tabindex="0"><code')
    # a table of Markdown has no attributes; those of outputs have a box already
    cells = re.sub(
        r"(?s)<table>.*?</table>", r'<div class="scroll" tabindex="0">\g<0></div>', cells
    )
    return re.sub(r"<th\b([^>]*)>(?:\s|&nbsp;)*</th>", r"<td\1></td>", cells)
