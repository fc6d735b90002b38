"""The exercises of the notebooks: three each, and every solution runs where it stands."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import TABLES_NOTEBOOK, notebooks_dir
from helpers.runner.plan import read_plan

NOTEBOOKS = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def cells_of(notebook: str) -> list[dict]:
    path = notebooks_dir() / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def exercises(notebook: str) -> str:
    (cell,) = [cell for cell in cells_of(notebook) if cell["id"] == "exercises"]
    return cell["source"]


def run_cell(code: str, namespace: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_three_exercises_with_hidden_solutions(notebook: str) -> None:
    text = exercises(notebook)
    assert re.findall(r"(?m)^\*\*(\d)\. ", text) == ["1", "2", "3"]
    assert len(SOLUTION.findall(text)) == text.count("<details>") == text.count("</details>") == 3
    assert "```" not in SOLUTION.sub("", text), "code is part of the hidden solution"


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_solutions_run(
    notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """All code of the solutions, after the notebook's own with the smoke plan's parameters."""
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    parameters = next(run.parameters for run in read_plan("smoke") if run.notebook == notebook)
    if notebook == TABLES_NOTEBOOK:  # the smoke plan's own records may not be there
        parameters = {"plan": "laptop", "source": "reference"}
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells_of(notebook):
        tags = cell["metadata"].get("tags", [])
        # the explorers are slow, and not what is tested here
        if cell["cell_type"] == "code" and not {"colab-setup", "explorer"} & set(tags):
            run_cell(cell["source"], namespace)
        if "parameters" in tags:
            namespace.update(parameters)
        if cell["id"] == "exercises":
            capsys.readouterr()
            for code in CODE.findall(cell["source"]):
                shown = run_cell(code, namespace)
                assert shown is not None or capsys.readouterr().out, f"nothing to see: {code}"
