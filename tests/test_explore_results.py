"""Explorer of results: every point is a run, named and drawn as in the tables."""

from __future__ import annotations

import copy
import html
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import BadParameter, FileError
from helpers.explore import Explorer, results_explorer
from helpers.explore.results import metrics_of
from helpers.paths import reference_dir
from helpers.report import PRUNE_NOTEBOOK, in_words, style_of
from helpers.report.records import read_records

SIXTY = "04_prune_model--admm-grad-60"
Points = dict[str, list[float]]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return read_records(reference_dir("full") / "records")


@pytest.fixture(scope="module")
def explorer(records: list[dict[str, Any]]) -> Explorer:
    return results_explorer(records)


@pytest.fixture(autouse=True)
def as_at_first(explorer: Explorer) -> None:
    """The explorer's controls where they start: making one for each test takes time."""
    plain = [name for name in explorer.controls["methods"].options if "=" not in name]
    first = {"metric": "perplexity", "columns": "both", "methods": plain, "run": ""}
    for name, value in first.items():
        explorer.controls[name].value = value


def points(explorer: Explorer) -> Points:
    """The values of the points that the picture shows, by the label that the legend words."""
    explorer.wait()
    assert explorer.message.value == ""
    names = {in_words(name): name for name in ("dense", *explorer.controls["methods"].options)}
    drawn = zip(*explorer.figure.axes[0].get_legend_handles_labels(), strict=True)
    return {names[words]: sorted(line.get_ydata()) for line, words in drawn}


def test_every_plain_run_is_a_point_and_a_line_joins_the_means(
    explorer: Explorer, records: list[dict[str, Any]]
) -> None:
    plain: Points = {}
    means: dict[float, list[float]] = {}
    for record in records:
        asked = record["parameters"]
        if record["notebook"] == PRUNE_NOTEBOOK and not asked["options"]:
            value = record["metrics"]["perplexity"]["value"]
            plain.setdefault(asked["method"], []).append(value)
            if (asked["method"], asked["pattern"]) == ("admm-grad", "unstructured"):
                means.setdefault(asked["sparsity"], []).append(value)
    assert points(explorer) == {method: sorted(values) for method, values in plain.items()}
    ax = explorer.figure.axes[0]
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        *("dense", "50 %", "60 %", "70 %", "80 %", "2:4", "4:8")
    ]
    colour = style_of("admm-grad")["color"]
    (line,) = (o for o in ax.get_lines() if o.get_color() == colour and o.get_linewidth() == 1.2)
    expected = [sum(values) / len(values) for _, values in sorted(means.items())]
    assert list(line.get_ydata()) == pytest.approx(expected)


def test_columns_and_methods_choose_the_points(explorer: Explorer) -> None:
    methods = explorer.controls["methods"]
    variants = {name for name in methods.options if "=" in name}
    assert variants and not variants & set(methods.value)
    methods.value = methods.options
    assert variants < set(points(explorer))
    lines, _ = explorer.figure.axes[0].get_legend_handles_labels()
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines), "two labels look the same"
    explorer.controls["columns"].value = "N:M"
    methods.value = ["wanda", "admm-grad"]
    counts = {label: len(found) for label, found in points(explorer).items()}
    assert counts == {"dense": 1, "wanda": 2, "admm-grad": 2}
    methods.value = []
    assert list(points(explorer)) == ["dense"] and len(explorer.controls["run"].options) == 2


def test_the_chosen_run_is_ringed_and_stays_while_it_is_shown(
    explorer: Explorer, records: list[dict[str, Any]]
) -> None:
    explorer.controls["run"].value = SIXTY
    explorer.wait()
    record = next(r for r in records if f"{r['notebook']}--{r['name']}" == SIXTY)
    ring = next(line for line in explorer.figure.axes[0].get_lines() if line.get_markersize() == 15)
    assert list(ring.get_ydata()) == [record["metrics"]["perplexity"]["value"]]
    explorer.controls["metric"].value = "prune (s)"
    assert explorer.controls["run"].value == SIXTY
    explorer.controls["columns"].value = "N:M"
    assert explorer.controls["run"].value == "" and explorer.view.markup == ""


def test_the_record_is_readable_and_escaped(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    record = copy.deepcopy(next(r for r in records if r["name"] == "admm-grad-60"))
    record["device"] = "<script>alert(1)</script>"
    explorer = results_explorer([record])
    explorer.controls["run"].value = SIXTY
    markup = explorer.view.markup
    assert "<script" not in markup and "executed notebook" not in markup
    cells = dict(re.findall(r"<th>([^<]*)</th>\s*<td>([^<]*)</td>", markup))
    assert cells["prune (s)"] == f"{record['metrics']['prune_seconds']['value']:.1f}"
    assert cells["peak memory (GB)"] == f"{record['peak_memory_bytes'] / 1e9:.2f}"
    assert cells["run_seconds"] == str(record["run_seconds"])
    assert cells["git commit"] == record["git"]["commit"]
    assert cells["versions torch"] == record["versions"]["torch"]
    assert (cells["seeds calibration"], cells["parameters method"]) == ("0", "admm-grad")
    assert html.unescape(cells["device"]) == record["device"]
    runs = tmp_path / "results" / "full" / "runs"
    runs.mkdir(parents=True)
    (runs / f"{SIXTY}.ipynb").write_text("{}")
    explorer.refresh()
    assert f"{runs / SIXTY}.ipynb" in explorer.view.markup


def test_other_metrics_can_be_drawn(explorer: Explorer) -> None:
    for title in explorer.controls["metric"].options[::4]:
        explorer.controls["metric"].value = title
        low, high = explorer.figure.axes[0].get_ylim()
        assert all(low < min(found) <= max(found) < high for found in points(explorer).values())


def test_plans_and_models_are_shown_apart(
    explorer: Explorer, records: list[dict[str, Any]]
) -> None:
    laptop = read_records(reference_dir("laptop") / "records")
    both = results_explorer([*records, *laptop])
    assert both.controls["plan"].options == ("full, embedded", "laptop, embedded")
    assert points(both) == points(explorer)
    both.controls["plan"].value = "laptop, embedded"
    assert points(both) == points(results_explorer("laptop"))
    both.controls["metric"].value = "zero-shot: HellaSwag acc"
    assert set(points(both)) == {"dense", "admm-grad"}


def test_what_is_missing_or_unknown_is_said(
    one_line_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    with one_line_error(FileError, "laptop", "make reproduce PLAN=laptop"):
        results_explorer("laptop", source="results")
    with one_line_error(FileError, "prunes", "full"):
        results_explorer([])
    with one_line_error(BadParameter, "perplexiti", "perplexity"):
        results_explorer("laptop", metric="perplexiti")
    with one_line_error(BadParameter, "targets", "both"):
        results_explorer("laptop", targets="all")


def test_metrics_have_titles_and_units() -> None:
    values = {"prune_seconds": (3, "s"), "peak_memory": (2e9, "bytes"), "perplexity": (17, "1")}
    record = {"notebook": PRUNE_NOTEBOOK}
    record["metrics"] = {name: {"value": v, "unit": unit} for name, (v, unit) in values.items()}
    assert metrics_of(record) == {"prune (s)": 3, "peak memory (GB)": 2, "perplexity": 17}
    record["metrics"] = {"arc_easy_acc_norm": {"value": 0.5, "unit": "1"}}
    record["notebook"] = "05_zero_shot"
    assert metrics_of(record) == {"zero-shot: ARC-e acc norm": 0.5}
