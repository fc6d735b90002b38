"""Notebooks with the outputs of a run, to read without a kernel: `python -m book.executed`.

Text and code of such a page are today's; only its outputs, and the values in its parameters cell,
come from the run. A run of other code gives no page. The command, a part of `make accept`, writes
NAME.ran.ipynb into results/reference/notebooks: of each notebook the run of the plan laptop that is
nearest to its defaults. The book shows runs that were made here, and those copies of the other
notebooks.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from papermill.translators import PythonTranslator

from helpers.code_hashes import code_hash
from helpers.errors import HelpersError
from helpers.explore.controls import WIDGET
from helpers.paths import notebooks_dir, reference_dir, replace_file
from reproduction.fingerprint import is_done
from reproduction.plan import Run, read_plan

COPIED_PLAN = "laptop"
SETUP, PARAMETERS, INJECTED = "colab-setup", "parameters", "injected-parameters"
# outputs that are left out: a record's table with all digits, and the free memory of a machine
UNSHOWN = {"record", "hide-input"}
BADGE = re.compile(r"\[.*\]\(https://colab\.research[^)]*\)\n*")
# the random id of a table that pandas has styled
STYLED = re.compile(r"\bT_[0-9a-f]{5}(?![0-9a-f])")


def copy_path(notebook: str) -> Path:
    """Path of the committed copy of a notebook with the outputs of a run."""
    return reference_dir("notebooks") / f"{notebook}.ran.ipynb"


def nearness(run: Run) -> tuple[int, str]:
    """Sort key of a run: how many parameters differ from its notebook's defaults, then its name."""
    changed = [
        key for key, value in run.effective.items() if value != run.defaults[key]
    ]
    return len(changed), run.name


def as_it_ran(notebook: str, path: Path) -> NotebookNode | None:
    """Give a notebook the outputs in `path`: of an execution, of a copy, or none (its source).

    Returns None if there is no such file, or if its code, comments aside, is not today's.
    """
    if not path.is_file():
        return None
    page = nbformat.read(notebooks_dir() / f"{notebook}.ipynb", as_version=4)
    page.cells = [cell for cell in page.cells if SETUP not in tags(cell)]
    page.cells[0].source = BADGE.sub("", page.cells[0].source)
    ran = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    values: dict[str, Any] = {}
    for cell in ran.values():
        if {PARAMETERS, INJECTED} & tags(cell):
            values |= {
                name: ast.literal_eval(node)
                for name, node in literals(cell.source).items()
            }
    values["record_path"] = ""  # of the machine that it ran on
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        before = ran.get(cell.id)
        if (
            before
            and PARAMETERS in tags(cell)
            and literals(cell.source).keys() == values.keys()
        ):
            cell.source = with_values(cell.source, values)
        elif before is None or code_hash(before.source) != code_hash(cell.source):
            return None
        cell.outputs = [] if UNSHOWN & tags(cell) else still(before.outputs)
        cell.execution_count = number if before.execution_count else None
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    number_tables(page)
    return with_links(page, r"\]\(\.\./\.\./\.\./", "](../")  # in the outputs of a copy


def number_tables(page: NotebookNode) -> None:
    """Number a page's styled tables, so that two runs with the same numbers give the same page."""
    names: dict[str, str] = {}
    for cell in page.cells:
        for output in cell.get("outputs", []):
            if html := output.get("data", {}).get("text/html"):
                output.data["text/html"] = STYLED.sub(
                    lambda found: names.setdefault(found[0], f"T_{len(names):05d}"),
                    html,
                )


def still(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Keep what a page without a kernel can show: static twins of explorers, and no bars."""
    shown = []
    for output in outputs:
        data = output.get("data", {})
        widget = data.pop(WIDGET, None)
        if data.keys() - {"text/plain"}:
            data.pop("text/plain", None)  # often an address in memory
        elif widget is not None or output.get("name") == "stderr":
            continue
        shown.append(output)
    return shown


def tags(cell: NotebookNode) -> set[str]:
    """Tags of a cell."""
    return set(cell.metadata.get("tags", []))


def literals(source: str) -> dict[str, ast.expr]:
    """Parse a parameters cell: names, and the expressions of their values."""
    found = ast.parse(source).body
    return {(getattr(s, "target", None) or s.targets[0]).id: s.value for s in found}


def with_values(source: str, values: dict[str, Any]) -> str:
    """Change the values in a parameters cell; names, types and comments stay."""
    lines = source.splitlines()
    for name, node in literals(source).items():
        if ast.literal_eval(node) != values[name]:
            start, _, rest = lines[node.lineno - 1].partition(" = ")
            rest = rest.removeprefix(ast.get_source_segment(source, node))
            lines[node.lineno - 1] = (
                f"{start} = {PythonTranslator.translate(values[name])}{rest}"
            )
    return "\n".join(lines)


def with_links(page: NotebookNode, old: str, new: str) -> NotebookNode:
    """Replace a pattern in links, in a page's text and in its outputs."""
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(old, new, cell.source)
        for output in cell.get("outputs", []):
            if text := output.get("data", {}).get("text/markdown"):
                output.data["text/markdown"] = re.sub(old, new, text)
    return page


def annotate(page: NotebookNode, note: str) -> None:
    """Insert a line below the title of a page."""
    title, _, rest = page.cells[0].source.partition("\n")
    page.cells[0].source = f"{title}\n\n*{note}*\n{rest}"


def main() -> int:
    """Write a copy of each notebook, from its run here if that is up to date, else from its copy.

    So a copy follows the text of its notebook, and stays as it is once the code has changed.
    """
    runs = sorted(read_plan(COPIED_PLAN), key=nearness)
    for notebook in sorted({run.notebook for run in runs}):
        run = next(run for run in runs if run.notebook == notebook)
        target = copy_path(notebook)
        page = as_it_ran(notebook, run.executed_path if is_done(run) else target)
        if page is None:
            sys.stdout.write(
                f"{notebook}: {run.name} was not run here with today's code\n"
            )
            continue
        with_links(
            page, r"\]\(\.\./", "](../../../"
        )  # a copy lies deeper than its notebook
        with_links(
            page, r"(\]\(\d\d_\w+)\.ipynb", r"\1.ran.ipynb"
        )  # beside other copies
        source = f"[notebook](../../../notebooks/{notebook}.ipynb)"
        # notebook 06 shows the tables of another plan's records
        plan = run.effective.get("plan", COPIED_PLAN)
        annotate(page, f"The {source} as it ran: {run.name}, plan {plan}.")
        replace_file(target, nbformat.writes(page) + "\n")
    sys.stdout.write(f"notebooks with their outputs: {reference_dir('notebooks')}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (HelpersError, OSError) as error:
        sys.exit(f"the notebooks were not copied: {error}")
