"""What opens a notebook's run and writes its record, on notebooks of a few parameters."""

import json
from pathlib import Path
from typing import Any

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from small_project import write_notebook

from helpers.errors import BadParameter, OutOfMemory, RunError
from helpers.paths import results_dir, root
from helpers.report.records import read_record
from helpers.runner import notebook, open_run

CELL = """\
preset = ""
model = "tiny"
sparsity: float | None = 0.5
options = {"iterations": 20}
sequences = 8
device = "cpu"
record_path = ""
"""


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook "book" with a parameters cell, whose memory and presets are not looked up."""
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": CELL}
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(notebook, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setattr(notebook, "check_memory", lambda name, parameters: {"needs": "1 GB"})
    monkeypatch.setattr(notebook, "choose", lambda *_: {})
    monkeypatch.setattr(notebook, "leave_busy_cores", lambda: "1 of 2")


def parameters(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    exec(CELL, values)
    return values | changes


def test_a_record_holds_every_parameter_of_the_cell() -> None:
    run = open_run("book", parameters(sparsity=None, extra=1))
    contents = {
        "model": {"name": "tiny"},
        "seeds": {"calibration": 3},
        "layers": [{"layer": "q"}],
        "series": {"curve": [1, 2]},
    }
    metrics = {"perplexity": (7.5, "1"), "acc": (0.5, "1", 0.1), "old": {"value": 2, "unit": "s"}}
    shown = run.write(metrics, name="by-hand", **contents)
    record = read_record(results_dir("scratch") / "records/book--by-hand.json")
    assert record["parameters"] == {
        "model": "tiny",
        "sparsity": None,
        "options": {"iterations": 20},
        "sequences": 8,
        "device": "cpu",
    }
    assert record["metrics"] == {
        "perplexity": {"value": 7.5, "unit": "1"},
        "acc": {"value": 0.5, "unit": "1", "tolerance": 0.1},
        "old": {"value": 2, "unit": "s"},
    }
    assert (record["notebook"], record["name"]) == ("book", "by-hand")
    assert {key: record[key] for key in contents} == contents and record["data"] is None
    assert record["device"].startswith("cpu")
    assert record["seconds"] > 0 and record["peak_memory_bytes"] > 1e6
    assert shown.loc["perplexity", "value"] == 7.5 and shown.index.name == "book--by-hand.json"
    assert run.needs["this machine"].to_dict() == {"needs": "1 GB", "threads": "1 of 2"}


def test_the_runner_names_the_record(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere/book--admm-grad-50.json"
    run = open_run("book", parameters(record_path=str(path)))
    assert run.record({"x": (1, "1")})["name"] == "admm-grad-50" and not path.exists()
    run.write({"x": (1, "1")}, name="by-hand")
    assert read_record(path)["name"] == "admm-grad-50"


def test_a_preset_sets_the_notebooks_variables_before_memory_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def choose(preset: str, name: str, given: dict, defaults: dict) -> dict[str, Any]:
        assert (preset, name, given["sequences"], defaults["sequences"]) == ("auto", "book", 9, 8)
        return {"model": "larger", "sequences": 64}

    monkeypatch.setattr(notebook, "choose", choose)
    values = parameters(preset="auto", sequences=9)
    run = open_run("book", values)
    assert (values["model"], values["sequences"]) == ("larger", 64)
    assert (run.parameters["model"], run.parameters["sequences"]) == ("larger", 64)

    def refuse(name: str, parameters: dict[str, Any]) -> None:
        raise OutOfMemory(f"{parameters['model']} needs more")

    monkeypatch.setattr(notebook, "check_memory", refuse)
    with pytest.raises(OutOfMemory, match="larger needs more"):
        open_run("book", parameters(preset="auto", sequences=9))


def test_without_a_model_neither_memory_nor_busy_cores_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook(tmp_path, "book", [CELL.replace('model = "tiny"', "")], [["parameters"]])
    for name in ("check_memory", "leave_busy_cores"):
        monkeypatch.setattr(notebook, name, None)
    assert open_run("book", parameters()).needs is None


def test_a_wrong_value_a_missing_one_and_a_notebook_that_is_not_there(one_line_error: Any) -> None:
    for changes, words in [
        ({"sequences": "8"}, ("sequences = '8'", "give int", "without quotes")),
        ({"device": "gpu"}, ("device 'gpu'", '"cuda"')),
    ]:
        with one_line_error(BadParameter, *words):
            open_run("book", parameters(**changes))
    values = parameters()
    del values["sequences"]
    with one_line_error(BadParameter, "sequences is not set", "run the parameters cell"):
        open_run("book", values)
    with one_line_error(RunError, "other.ipynb"):
        open_run("other", values)


def test_a_misspelt_name_given_to_papermill_stops_the_notebook(tmp_path: Path) -> None:
    patched = f"""
from pathlib import Path
from helpers.runner import notebook, open_run
notebook.notebooks_dir = lambda: Path({str(tmp_path)!r})
run = open_run("book", globals())
"""
    cells = [CELL.replace('"tiny"', '""'), patched]
    write_notebook(tmp_path, "book", cells, [["parameters"], []])
    with pytest.raises(PapermillExecutionError, match="'sparsty' is unknown.*mean 'sparsity'"):
        papermill.execute_notebook(
            tmp_path / "book.ipynb", None, {"sequences": 9, "sparsty": 0.7}, kernel_name="python3",
            language="python", progress_bar=False, cwd=root(),
        )  # fmt: skip
    # with the right name, after a first try in the same kernel, and with what --inject-paths adds
    cells = ["", "# Parameters\nsparsty = 0.7\n"]
    with pytest.raises(BadParameter, match="sparsty"):
        open_run("book", parameters(In=cells))
    cells.append('# Parameters\nsparsity = 0.7\nPAPERMILL_OUTPUT_PATH = "a.ipynb"\n')
    assert open_run("book", parameters(In=cells, sparsity=0.7)).parameters["sparsity"] == 0.7


def test_a_parameter_that_changes_meanwhile_stops_the_record(one_line_error: Any) -> None:
    values = parameters()
    run = open_run("book", values)
    values["sparsity"] = 0.7
    with one_line_error(BadParameter, "sparsity is 0.7 and was 0.5", "parameters cell"):
        run.write({"x": (1, "1")})
    values["sparsity"] = 0.5
    values["options"]["iterations"] = 40  # in place
    with one_line_error(BadParameter, "options"):
        run.write({"x": (1, "1")})
    assert not results_dir("scratch").exists()
