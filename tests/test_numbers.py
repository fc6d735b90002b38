"""The numbers that the notebooks tell a reader to expect are those of the committed records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.paths import notebooks_dir, reference_dir
from helpers.records import read_record, read_records
from helpers.results import sections, write_tables
from helpers.runner.plan import read_plan


def value(notebook: str, name: str, metric: str, plan: str = "laptop") -> float:
    record = read_record(reference_dir(plan) / "records" / f"{notebook}--{name}.json")
    return record["metrics"][metric]["value"]


def perplexity(name: str, plan: str = "laptop") -> str:
    return f"{value('04_prune_model', name, 'perplexity', plan):.1f}"


def tour(metric: str) -> str:
    return f"{value('00_start_here', 'tour', metric, 'full'):.0f}"


def solve(metric: str) -> str:
    return f"{value('02_admm_layer_solve', 'default', metric):.3f}"


def accuracy(name: str, task: str) -> str:
    return f"{value('05_zero_shot', name, f'{task}_acc', 'full'):.{3 if task == 'mean' else 2}f}"


def schedule(metric: str) -> str:
    return f"{value('03_mask_schedule', 'default', metric):.0%}".replace("%", " %")


def captured() -> list[str]:
    """The damped condition of gate_proj, and how massive tokens are entering blocks 12 to 28."""
    record = read_record(reference_dir("laptop") / "records/01_calibration_capture--default.json")
    condition = record["metrics"]["condition_gate_proj"]["value"]
    first, others = (values[12:29] for values in record["series"]["massive"].values())
    return [f"{round(condition, -2):.0f}", f"{min(first):.0f}", f"{max(others):.1f}"]


def expected(notebook: str) -> list[str]:
    """The bold numbers of a notebook's "What to notice", in the order of its text."""
    if notebook == "00_start_here":
        return [tour(f"perplexity_{name}") for name in ("dense", "admm-grad", "magnitude")]
    if notebook == "01_calibration_capture":
        return captured()
    if notebook == "02_admm_layer_solve":
        errors = [solve(f"error_{name}") for name in ("no_update", "admm", "sparsegpt")]
        distance = value("02_admm_layer_solve", "default", "distance_to_optimum")
        return [*errors, f"{distance:.1%}".replace("%", " %")]
    if notebook == "03_mask_schedule":
        names = ("paper_unstructured", "released_unstructured", "paper_2:4", "paper_4:8")
        return [schedule(name) for name in names]
    if notebook == "04_prune_model":
        return [perplexity(n) for n in ("admm-grad-60", "sparsegpt-60", "wanda-60", "dense")]
    if notebook == "05_zero_shot":
        names = ("dense", "admm-grad-50", "sparsegpt-50", "wanda-50")
        means = [accuracy(name, "mean") for name in names]
        return means + [accuracy(n, t) for n in names[:2] for t in ("hellaswag", "arc_easy")]
    if notebook == "07_your_own_method":
        own = [value(notebook, "my-method-60", m) for m in ("perplexity", "mean_layer_error")]
        error = value("04_prune_model", "admm1-60", "mean_layer_error")
        rivals = [perplexity(name) for name in ("admm1-60", "admm-grad-60", "sparsegpt-60")]
        return [rivals[0], f"{own[0]:.1f}", f"{own[1]:.4f}", f"{error:.4f}", *rivals[1:]]
    names = ("admm-grad-50", "sparsegpt-50", "admm-grad-70", "sparsegpt-70")
    return [perplexity(n, "full") for n in (*names, "admm-grad-2of4", "admm-grad-50")]


def what_to_notice(notebook: str) -> str:
    book = json.loads((notebooks_dir() / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in book["cells"]]
    (text,) = [text for text in texts if "## What to notice" in text]
    return text


@pytest.mark.parametrize(
    "notebook",
    ["00_start_here", "01_calibration_capture", "02_admm_layer_solve", "03_mask_schedule",
     "04_prune_model", "05_zero_shot", "06_tables_and_plots",
     "07_your_own_method"],
)  # fmt: skip
def test_bold_numbers_are_those_of_the_records(notebook: str) -> None:
    bold = re.findall(r"\*\*([\d.,]+(?: %)?)\*\*", what_to_notice(notebook))
    assert bold == expected(notebook)


def test_admm_grad_is_best_in_every_column() -> None:
    # in the default plan too
    for target in ("50", "60", "70", "2of4"):
        others = [f"{m}-{target}" for m in ("magnitude", "wanda", "sparsegpt", "admm1")]
        best = value("04_prune_model", f"admm-grad-{target}", "perplexity")
        assert all(best < value("04_prune_model", name, "perplexity") for name in others)


def full(name: str, metric: str = "perplexity") -> float:
    return value("04_prune_model", name, metric, "full")


def test_layer_error_and_perplexity_disagree_where_06_says_so() -> None:
    pairs = [("admm1-70", "sparsegpt-70"), ("admm1-80", "sparsegpt-80")]
    for one, other in [*pairs, ("admm-grad-60", "admm-grad-60-budget-output")]:
        assert full(one, "mean_layer_error") < full(other, "mean_layer_error")
        assert full(one) > full(other)


def test_no_mean_accuracy_is_surely_another_as_05_says() -> None:
    (table,) = [s for s in sections(read_records(reference_dir("full") / "records"))["zero_shot"]
                if "paired" in s.about]  # fmt: skip
    assert not table.frame["mean"].str.contains("**", regex=False).any()


def test_what_readme_06_and_changes_say_of_the_full_table() -> None:
    targets = ("50", "60", "70", "80", "2of4", "4of8")
    for target in targets:
        others = ("magnitude", "wanda", "sparsegpt", "admm1")
        assert full(f"admm-grad-{target}") < min(full(f"{name}-{target}") for name in others)
    better = [t for t in targets if full(f"admm1-{t}") < full(f"sparsegpt-{t}")]
    assert better == ["50", "60", "2of4", "4of8"]


def test_no_number_is_left_open() -> None:
    for path in notebooks_dir().glob("*.ipynb"):
        assert "**NN**" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("plan", ["laptop", "full"])
def test_committed_tables_are_what_todays_code_makes_of_the_records(
    plan: str, tmp_path: Path
) -> None:
    for path in write_tables(read_records(reference_dir(plan) / "records"), tmp_path):
        committed = reference_dir(plan) / "tables" / path.name
        assert committed.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("plan", ["laptop", "full"])
def test_every_run_of_a_plan_has_its_record(plan: str) -> None:
    records = {path.stem for path in (reference_dir(plan) / "records").glob("*.json")}
    assert records == {run.id for run in read_plan(plan)}
