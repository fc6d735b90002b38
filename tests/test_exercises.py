"""The exercises of the notebooks: three each, and every solution runs where it is asked for."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from helpers.paths import notebooks_dir, root
from helpers.runner.plan import read_plan

NOTEBOOKS = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def book_of(notebook: str) -> nbformat.NotebookNode:
    return nbformat.read(notebooks_dir() / f"{notebook}.ipynb", as_version=4)


def exercises(notebook: str) -> str:
    (text,) = [c.source for c in book_of(notebook).cells if c.source.startswith("## Try it your")]
    return text


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_three_exercises_with_hidden_solutions(notebook: str) -> None:
    text = exercises(notebook)
    assert re.findall(r"(?m)^\*\*(\d)\. ", text) == ["1", "2", "3"]
    assert len(SOLUTION.findall(text)) == text.count("<details>") == text.count("</details>") == 3
    asked = SOLUTION.sub("", text)
    assert "```" not in asked, "code stays hidden until it is asked for"


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if CODE.search(exercises(n))])
def test_solutions_run(notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code of the solutions, in its place in the notebook, with the smoke plan's parameters."""
    book = book_of(notebook)
    place = next(i for i, c in enumerate(book.cells) if c.source.startswith("## Try it yourself"))
    added = [nbformat.v4.new_code_cell(code) for code in CODE.findall(exercises(notebook))]
    for cell in added:
        cell.metadata["tags"] = ["solution"]
    book.cells = [*book.cells[: place + 1], *added]
    nbformat.write(book, tmp_path / "book.ipynb")
    run = next(r for r in read_plan("smoke") if r.notebook == notebook)
    asked = dict(run.parameters)
    if notebook == "06_tables_and_plots":  # the smoke plan's own records may not be there
        asked = {"plan": "full", "source": "reference"}
    monkeypatch.setitem(os.environ, "PRUNING_RESULTS", str(tmp_path))
    done = papermill.execute_notebook(
        tmp_path / "book.ipynb",
        tmp_path / "done.ipynb",
        parameters=asked,
        kernel_name="python3",
        progress_bar=False,
        cwd=str(root()),
    )
    shown = [cell for cell in done.cells if "solution" in cell.metadata.get("tags", [])]
    assert len(shown) == len(added)
    for cell in shown:
        assert cell.outputs, cell.source
        assert not any(output.output_type == "error" for output in cell.outputs)
