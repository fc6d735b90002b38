"""Notebooks through papermill: a part of the plan smoke is run once, and its products are read."""

import json
import re
from contextlib import closing

import nbformat
import pytest
from test_exercises import NOTEBOOKS, Kernel

from book import executed
from helpers import load_model
from helpers.paths import TABLES_NOTEBOOK, cache_dir, notebooks_dir
from reproduction.__main__ import main
from reproduction.plan import read_plan
from reproduction.records import read_record

# the others are run cell by cell, here and in test_exercises, and all in a browser
ONLY = "0[46]*--[at]*"  # ADMM-Grad, tables
RUNS = read_plan("smoke", ONLY)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The results folder of a part of the plan smoke, run from nothing."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(folder))
        assert main(["run", "--plan", "smoke", "--only", ONLY]) == 0
    return folder / "smoke"


def outputs(smoke, run):
    """Cell id and output, for every output of an executed notebook."""
    book = json.loads((smoke / "runs" / f"{run.id}.ipynb").read_text("utf-8"))
    return [
        (cell["id"], item) for cell in book["cells"] for item in cell.get("outputs", [])
    ]


def record_here(folder, **parameters):
    """The record of notebook 04, run cell by cell."""
    path = folder / "04_prune_model--here.json"
    changed = {"record_path": str(path), **parameters}
    with closing(Kernel("04_prune_model", folder, **changed)) as kernel:
        kernel.run_cells("parameters")
    return read_record(path)


def test_the_plan_runs_every_notebook():
    assert {run.notebook for run in read_plan("smoke")} == set(NOTEBOOKS)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.id)
def test_executed_notebook(smoke, run):
    shown = outputs(smoke, run)
    pictures = {cell for cell, output in shown if "image/png" in output.get("data", {})}
    assert pictures == {"perplexity" if run.notebook == TABLES_NOTEBOOK else "depth"}
    assert not re.search(
        r"(Future|Deprecation)Warning: [^\"]*helpers", json.dumps(shown)
    )


def test_dense_and_pruned_rows(smoke, tmp_path):
    dense = record_here(tmp_path, method="dense", sparsity=0.0)
    admm = read_record(smoke / "records/04_prune_model--admm-grad-50.json")
    magnitude = record_here(tmp_path, method="magnitude")
    recipe = record_here(tmp_path, effort="fast", sequences=4)
    assert dense["layers"] == []
    assert dense["metrics"]["sparsity"]["value"] == 0
    assert "mean_layer_error" not in magnitude["metrics"]
    assert "calibration" not in magnitude["data"], "magnitude reads no text"
    assert len(admm["layers"]) == 2 * 7
    assert max(layer["error"] for layer in admm["layers"]) < 1
    assert recipe["series"]["repair"] == {"effort": "fast", "guide": 2}
    for record in (magnitude, admm, recipe):
        assert record["metrics"]["sparsity"]["value"] == pytest.approx(0.5, abs=1e-3)


def test_tables_notebook_writes_tables_and_figures(smoke):
    assert "No claim" in (smoke / "tables/claims.md").read_text("utf-8")
    for name in ("perplexity", "records", "cost"):
        text = (smoke / f"tables/{name}.md").read_text("utf-8")
        assert text.count("\n| ") > 2, f"{name} has no rows"
    assert (smoke / "figures/perplexity.png").exists()


def test_a_streamed_model_gives_the_same_record(tmp_path):
    for part in load_model("tiny"):
        part.save_pretrained(tmp_path / "tiny")
    parameters = {
        "model": str(tmp_path / "tiny"),
        "device": "cpu",
        "second_window": 128,
    }
    records = [record_here(tmp_path, **parameters, streamed=s) for s in (False, True)]
    for record in records:
        record["metrics"] = {
            name: metric["value"]
            for name, metric in record["metrics"].items()
            if metric["unit"] == "1"  # no seconds and no bytes
        }
        for layer in record["layers"] or []:
            del layer["seconds"]
    assert "perplexity_128" in records[0]["metrics"]
    for part in ("metrics", "layers", "series", "model", "data"):
        assert records[0][part] == records[1][part], part
    # it is deleted at the end
    assert not (cache_dir() / "pruned" / "04-here").exists()


# --- copies with outputs, made by `make accept` ------------------------------------------------


def check_copy(path, plan):
    """A copy has its notebook's cells, the values and outputs of a run, and links that hold."""
    page = nbformat.read(path, as_version=4)
    name = path.name.partition(".")[0]
    notebook = nbformat.read(notebooks_dir() / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.id != "colab-setup"]
    note = re.search(
        r"\*The \[notebook\]\(.*\) as it ran: (\S+), plan .*\*\n\n",
        page.cells[0].source,
    )
    (run,) = read_plan(plan, f"{name}/{note[1]}")
    assert page.metadata == notebook.metadata
    for copied, cell in zip(page.cells, cells, strict=True):
        assert (copied.id, copied.metadata) == (cell.id, cell.metadata)
        text = cell.source
        shown = copied.source
        if cell.cell_type == "markdown":
            if plan != "smoke":
                for link in re.findall(r"\]\(([^):#\s]+)\)", shown):
                    assert (path.parent / link).exists()
            text = re.sub(r"\[.*Open in Colab.*\n\n", "", text)
            shown = shown.replace(note[0], "").replace("](../../../", "](../")
            # a copy leads to the other copies
            text, shown = (
                cell.replace(".ran.ipynb", ".ipynb") for cell in (text, shown)
            )
        elif cell.id == "parameters":
            exec(shown, values := {})
            assert values.items() >= (run.defaults | run.parameters).items()
            text, shown = (re.sub(" = .*?  # ", "", cell) for cell in (text, shown))
        assert shown == text
    assert page.cells[-2].outputs == [], "the record's table"
    outputs = json.dumps([cell.get("outputs") for cell in page.cells])
    assert '"data"' in outputs
    assert "widget-view" not in outputs
    assert "stderr" not in outputs


def test_plan_leaves_copies(smoke, monkeypatch, tmp_path):
    monkeypatch.setattr(executed, "COPIED_PLAN", "smoke")
    monkeypatch.setattr(executed, "reference_dir", lambda _: tmp_path)
    monkeypatch.setenv("PRUNING_RESULTS", str(smoke.parent))
    assert executed.main() == 0
    made = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    names = [path.name for path in made]
    assert names == ["04_prune_model.ran.ipynb", f"{TABLES_NOTEBOOK}.ran.ipynb"]
    for path in made:
        check_copy(path, "smoke")
    assert b"as it ran: admm-grad-50," in made[tmp_path / names[0]]
    # where nothing was run, copies are made of copies; one of other code is left alone
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    made[path] = made[path].replace(b"open_run(", b"opened(")
    path.write_bytes(made[path])
    assert executed.main() == 0
    assert {path: path.read_bytes() for path in made} == made


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_committed_copy(notebook):
    """Where only text has changed since, `python -m book.executed` brings the copy up to date."""
    check_copy(path := executed.copy_path(notebook), "laptop")
    assert path.stat().st_size < 400_000
