"""Every notebook through papermill: the plan smoke is run once and its products are read."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import root
from helpers.records import read_record
from helpers.runner import plan as plans

RUNS = [(path.parent.name, path.stem) for path in sorted((root() / "runs/smoke").rglob("*.yaml"))]
IDS = ["--".join(run) for run in RUNS]
# what a cell shows, by notebook: cells that must end in something to look at
PICTURES = {
    "00_start_here": ["mask"],
    "01_calibration_capture": ["spectrum"],
    "02_admm_layer_solve": ["mask", "convergence", "study", "explorer-still"],
    "03_mask_schedule": ["schedule", "explorer-still"],
    "07_your_own_method": ["picture"],
    "06_tables_and_plots": ["perplexity", "cost", "update", "mask", "zero-shot", "rest"],
}
METRICS = {
    "00_start_here": {"perplexity_dense", "perplexity_magnitude", "perplexity_admm-grad"},
    "01_calibration_capture": {"tokens", "condition_down_proj", "largest_input_q_proj"},
    "02_admm_layer_solve": {"error_admm", "error_optimum", "distance_to_optimum"},
    "03_mask_schedule": {"paper_unstructured", "paper_2:4", "paper_4:8", "released_unstructured"},
    "04_prune_model": {
        "perplexity",
        "sparsity",
        "prune_seconds",
        "evaluate_seconds",
        "peak_memory",
    },
    "05_zero_shot": {"winogrande_acc", "openbookqa_acc_norm", "mean_acc", "prune_seconds"},
    "06_tables_and_plots": {"records"},
    "07_your_own_method": {"perplexity", "mean_layer_error", "prune_seconds"},
}


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the plan smoke, run from nothing."""
    folder = tmp_path_factory.mktemp("results")
    environment = os.environ | {"PRUNING_RESULTS": str(folder)}
    command = [sys.executable, "-m", "helpers.runner", "run", "--plan", "smoke"]
    done = subprocess.run(command, env=environment, cwd=root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "smoke"


def executed(folder: Path, notebook: str, name: str) -> dict:
    path = folder / "runs" / f"{notebook}--{name}.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(book: dict) -> Iterator[tuple[str, dict]]:
    """Cell id and output, for every output of a notebook."""
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            yield cell["id"], output


def test_the_plan_runs_every_notebook() -> None:
    notebooks = {path.stem for path in (root() / "notebooks").glob("*.ipynb")}
    assert {notebook for notebook, _ in RUNS} == notebooks
    methods = {name for notebook, name in RUNS if notebook == "04_prune_model"}
    assert {"dense", "magnitude-50", "admm-grad-50"} <= methods


@pytest.mark.parametrize(("notebook", "name"), RUNS, ids=IDS)
def test_record(smoke: Path, notebook: str, name: str) -> None:
    record = read_record(smoke / "records" / f"{notebook}--{name}.json")
    run = next(r for r in plans.read_plan("smoke") if (r.notebook, r.name) == (notebook, name))
    assert (record["notebook"], record["name"]) == (notebook, name)
    assert record["parameters"] == run.effective, "every parameter is in the record"
    assert set(record["metrics"]) >= METRICS[notebook]
    for metric in record["metrics"].values():
        assert metric["unit"] and math.isfinite(metric["value"])
    assert record["seconds"] > 0 and record["peak_memory_bytes"] > 1e6
    assert (record["model"] is None) == (notebook == "06_tables_and_plots")


@pytest.mark.parametrize(("notebook", "name"), RUNS, ids=IDS)
def test_executed_notebook(smoke: Path, notebook: str, name: str) -> None:
    book = executed(smoke, notebook, name)
    kinds = {kind for _, output in outputs(book) for kind in output.get("data", {})}
    assert "text/plain" in kinds
    assert not any(output["output_type"] == "error" for _, output in outputs(book))
    seen = {cell for cell, output in outputs(book) if "image/png" in output.get("data", {})}
    assert set(PICTURES.get(notebook, [])) <= seen
    text = json.dumps(book)
    assert not re.search(r"(Future|Deprecation)Warning: [^\"]*helpers", text)


def test_dense_and_pruned_rows(smoke: Path) -> None:
    def read(name: str) -> dict:
        return read_record(smoke / "records" / f"04_prune_model--{name}.json")

    dense, magnitude, admm = read("dense"), read("magnitude-50"), read("admm-grad-50")
    assert dense["layers"] == [] and dense["metrics"]["sparsity"]["value"] == 0
    assert "mean_layer_error" not in magnitude["metrics"]
    assert "calibration" not in magnitude["data"], "magnitude asks for no text"
    assert len(admm["layers"]) == 2 * 7 and all(layer["error"] < 1 for layer in admm["layers"])
    for record in (magnitude, admm):
        assert record["metrics"]["sparsity"]["value"] == pytest.approx(0.5, abs=1e-3)


def test_layer_solve_agrees_with_the_exact_optimum(smoke: Path) -> None:
    record = read_record(smoke / "records/02_admm_layer_solve--default.json")
    metrics = {name: metric["value"] for name, metric in record["metrics"].items()}
    assert metrics["error_floor"] <= metrics["error_optimum"] <= metrics["error_no_update"]
    assert metrics["error_admm"] == pytest.approx(metrics["error_optimum"], rel=0.05)
    curve = record["series"]["convergence"]["distance"]["ρ = 1"]
    assert curve[-1] == metrics["distance_to_optimum"] < 0.1 * curve[0]


def test_gradual_mask_is_better_than_one_shot(smoke: Path) -> None:
    record = read_record(smoke / "records/03_mask_schedule--default.json")
    assert all(0 < metric["value"] < 1 for metric in record["metrics"].values())
    growth = record["series"]["schedule"]["sparsity"]["paper"]
    assert growth == sorted(growth) and growth[-1] == pytest.approx(0.6)


def test_widgets_are_there_with_a_still_picture_beside_them(smoke: Path) -> None:
    for notebook in ("02_admm_layer_solve", "03_mask_schedule"):
        kinds = {
            cell: set(output["data"])
            for cell, output in outputs(executed(smoke, notebook, "default"))
            if "data" in output
        }
        assert "application/vnd.jupyter.widget-view+json" in kinds["explorer"]
        assert "image/png" in kinds["explorer-still"]


def test_tables_notebook_writes_tables_and_figures(smoke: Path) -> None:
    table = (smoke / "tables/perplexity.md").read_text(encoding="utf-8")
    assert "dense" in table and "admm-grad" in table and "50 %" in table
    claims = (smoke / "tables/claims.md").read_text(encoding="utf-8")
    assert "**not tested here**" in claims and "ADMM beats gradient methods" in claims
    for name in ("cost", "zero_shot", "weight_update", "mask"):
        assert (smoke / f"tables/{name}.md").read_text(encoding="utf-8").count("\n| ") > 2, name
    names = {path.name for path in (smoke / "figures").iterdir()}
    for name in (
        *("perplexity", "layer_error", "convergence", "schedule", "spectrum"),
        *("weight_update", "cost", "zero_shot"),
    ):
        assert {f"{name}.png", f"{name}.svg"} <= names
