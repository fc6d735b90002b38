"""Explorer of results: every point is a run, named and drawn as in the tables."""

from __future__ import annotations

import copy
import html
import math
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import BadParameter, RecordError
from helpers.explore import ResultsExplorer, results_explorer
from helpers.explore.results import log_ticks, metric_title
from helpers.paths import reference_dir
from helpers.records import read_records
from helpers.results.style import COLOURS, METHOD_LOOK
from helpers.results.tables import perplexity_spread, perplexity_table, variant_table

SIXTY = "04_prune_model--admm-grad-60"


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return read_records(reference_dir("full") / "records")


@pytest.fixture
def explorer(records: list[dict[str, Any]]) -> ResultsExplorer:
    return results_explorer(records)


def series(explorer: ResultsExplorer) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in explorer.chart.chart["series"]}


def points(explorer: ResultsExplorer) -> dict[str, dict[str, Any]]:
    return {p["key"]: p for row in explorer.chart.chart["series"] for p in row["points"]}


def test_every_plain_run_is_a_point_with_its_own_value(
    explorer: ResultsExplorer, records: list[dict[str, Any]]
) -> None:
    runs = [r for r in records if r["notebook"] == "04_prune_model"]
    plain = {
        f"04_prune_model--{r['name']}": r["metrics"]["perplexity"]["value"]
        for r in runs
        if not r["parameters"]["options"]
    }
    assert {key: point["y"] for key, point in points(explorer).items()} == plain


def test_lines_and_ranges_are_the_tables_means_and_spreads(
    explorer: ResultsExplorer, records: list[dict[str, Any]]
) -> None:
    table, spread = perplexity_table(records), perplexity_spread(records)
    drawn = series(explorer)
    assert set(drawn) == set(table.index)
    for label in set(drawn) - {"dense"}:
        line = {f"{x:.4g} %": y for x, y in drawn[label]["line"]}
        assert line == pytest.approx(table.loc[label, list(line)].to_dict())
        assert set(line) == {column for column in table.columns if "%" in column}
        ranges = {f"{x:.4g} %": (high - low) / 2 for x, _, low, high in drawn[label]["ranges"]}
        assert ranges == pytest.approx(spread.loc[label].dropna().to_dict())
    assert explorer.chart.chart["reference"]["y"] == table.loc["dense", "60 %"]


def test_a_method_has_its_look_of_every_figure(explorer: ResultsExplorer) -> None:
    for label, place in METHOD_LOOK.items():
        assert series(explorer)[label]["colour"] == COLOURS[place]


def test_targets_and_methods_choose_the_points(explorer: ResultsExplorer) -> None:
    explorer.targets.value = "N:M"
    explorer.boxes["magnitude"].value = False
    targets = {key.rpartition("-")[2] for key in points(explorer)}
    assert targets == {"2of4", "4of8", "dense"}
    assert not any("magnitude" in key for key in points(explorer))
    assert not any(row["line"] for row in series(explorer).values())
    explorer.targets.value = "sparsity"
    assert not any("of4" in key for key in points(explorer))
    for box in explorer.boxes.values():
        box.value = False
    assert explorer.chart.chart["series"] == [] and explorer.figure is not None


def test_variants_are_chosen_by_themselves(
    explorer: ResultsExplorer, records: list[dict[str, Any]]
) -> None:
    table = variant_table(records)
    variants = [label for label in explorer.boxes if "=" in label]
    assert set(variants) == set(table.index)
    assert not any(explorer.boxes[label].value for label in variants)
    for label in variants:
        explorer.boxes[label].value = True
    drawn = series(explorer)
    looks = {(drawn[label]["colour"], drawn[label]["marker"]) for label in drawn}
    assert len(looks) == len(drawn), "two labels look the same"
    for label in variants:
        values = [point["y"] for point in drawn[label]["points"]]
        assert len(values) == table.loc[label, "seeds"]
        assert sum(values) / len(values) == pytest.approx(table.loc[label, "perplexity"])


def test_a_click_the_list_and_select_are_one_choice(explorer: ResultsExplorer) -> None:
    explorer.chart.selected = SIXTY  # what the script sets on a click
    assert explorer.run.value == SIXTY and "admm-grad, 60 %" in explorer.record.value
    other = "04_prune_model--wanda-2of4"
    explorer.run.value = other
    assert explorer.chart.selected == other and "wanda, 2:4" in explorer.record.value
    explorer.metric.value = "prune (s)"  # another metric, the same run
    assert explorer.chart.selected == explorer.run.value == other
    explorer.targets.value = "sparsity"  # where this run is not shown
    assert explorer.chart.selected == explorer.run.value == "" == explorer.record.value


def test_select_refuses_what_is_not_shown(explorer: ResultsExplorer, one_line_error: Any) -> None:
    with one_line_error(RecordError, "no-such-run", "tick its method"):
        explorer.select("no-such-run")


def test_a_click_on_a_chart_that_has_changed_is_none(explorer: ResultsExplorer) -> None:
    explorer.select(SIXTY)
    explorer.chart.selected = "04_prune_model--gone"
    assert explorer.chart.selected == explorer.run.value == SIXTY


def test_the_record_is_readable(explorer: ResultsExplorer, records: list[dict[str, Any]]) -> None:
    explorer.select(SIXTY)
    record = next(r for r in records if f"{r['notebook']}--{r['name']}" == SIXTY)
    cells = re.findall(r"<(?:td|th)[^>]*>(?:<b>)?([^<]*)", explorer.record.value)
    shown = dict(zip(cells[::2], map(html.unescape, cells[1::2]), strict=True))
    assert shown["prune (s)"] == f"{record['metrics']['prune_seconds']['value']:.1f}"
    assert shown["peak memory (GB)"] == f"{record['peak_memory_bytes'] / 1e9:.2f}"
    assert shown["commit"] == record["git"]["commit"][:12]
    assert shown["torch"] == record["versions"]["torch"]
    assert (shown["seed of calibration"], shown["device"]) == ("0", record["device"])
    assert "{" not in explorer.record.value


def test_what_a_record_says_is_escaped(records: list[dict[str, Any]]) -> None:
    bad = copy.deepcopy(next(r for r in records if r["name"] == "dense"))
    bad["device"] = "<script>alert(1)</script>"
    explorer = results_explorer([bad])
    explorer.select("04_prune_model--dense")
    assert "<script" not in explorer.record.value and "&lt;script" in explorer.record.value


def test_accuracies_have_whiskers_of_one_standard_error(
    explorer: ResultsExplorer, records: list[dict[str, Any]]
) -> None:
    record = next(
        r for r in records if r["notebook"] == "05_zero_shot" and r["name"] == "admm-grad-50"
    )
    metrics = record["metrics"]
    explorer.metric.value = "zero-shot: HellaSwag accuracy"
    point = points(explorer)["05_zero_shot--admm-grad-50"]
    assert point["high"] - point["y"] == pytest.approx(metrics["hellaswag_acc_stderr"]["value"])
    explorer.metric.value = "zero-shot: mean accuracy"
    point = points(explorer)["05_zero_shot--admm-grad-50"]
    errors = [m["value"] for name, m in metrics.items() if name.endswith("_acc_stderr")]
    wanted = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    assert len(errors) == 7 and point["y"] - point["low"] == pytest.approx(wanted)
    assert explorer.boxes["magnitude"].disabled  # no zero-shot run of it


def test_seconds_of_the_two_notebooks_are_not_mixed(explorer: ResultsExplorer) -> None:
    for metric, notebook in {"prune (s)": "04", "zero-shot: prune (s)": "05"}.items():
        explorer.metric.value = metric
        assert {key[:2] for key in points(explorer)} == {notebook}


def test_every_metric_can_be_shown_and_drawn(explorer: ResultsExplorer) -> None:
    for metric in explorer.metric.options:
        explorer.metric.value = metric
        chart = explorer.chart.chart
        low, high = chart["y"]["low"], chart["y"]["high"]
        spots = [p[k] for p in points(explorer).values() for k in ("y", "low", "high")]
        assert spots and low <= min(spots) and max(spots) <= high, metric
        assert chart["y"]["ticks"] and all(low <= t <= high for t, _ in chart["y"]["ticks"])
        assert all(
            chart["x"]["low"] < p["x"] < chart["x"]["high"] for p in points(explorer).values()
        )


def test_the_picture_shows_the_same_points(explorer: ResultsExplorer) -> None:
    explorer.targets.value = "sparsity"
    ax = explorer.figure.axes[0]
    drawn = sorted(
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in ax.get_lines()
        if len(line.get_xdata()) == 1
    )
    assert drawn == sorted((p["x"], p["y"]) for p in points(explorer).values())
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize(("low", "high"), [(14, 5e6), (36, 90), (18.1, 18.9), (1, 10), (30, 700)])
def test_ticks_of_a_log_axis_are_few_and_round(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(ticks)
    assert all(low <= tick <= high for tick in ticks)


def test_link_to_an_executed_notebook(
    explorer: ResultsExplorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    explorer.select(SIXTY)
    said = explorer.link.outputs[0]["data"]["text/markdown"]
    assert f"`make reproduce PLAN=full ONLY='{SIXTY}'`" in said and "](" not in said
    runs = tmp_path / "results" / "full" / "runs"
    runs.mkdir(parents=True)
    (runs / f"{SIXTY}.ipynb").write_text("{}")
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "notebooks" / "06 tables.ipynb"))
    explorer.select("")
    explorer.select(SIXTY)
    said = explorer.link.outputs[0]["data"]["text/markdown"]
    assert f"](../results/full/runs/{SIXTY}.ipynb)" in said and "make" not in said


def test_a_plan_by_its_name_and_what_is_missing(
    one_line_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(results_explorer("laptop").runs) < len(results_explorer("full").runs)
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    with one_line_error(RecordError, "laptop", "make reproduce PLAN=laptop"):
        results_explorer("laptop", source="results")
    with one_line_error(RecordError, "0", "give the records of a plan"):
        results_explorer([])
    with one_line_error(BadParameter, "perplexiti", "perplexity"):
        results_explorer("laptop", metric="perplexiti")
    with one_line_error(BadParameter, "targets", "both"):
        results_explorer("laptop", targets="all")


def test_two_records_of_one_name_are_refused(
    records: list[dict[str, Any]], one_line_error: Any
) -> None:
    with one_line_error(RecordError, "04_prune_model--dense", "one plan"):
        results_explorer([r for r in records if r["name"] == "dense"] * 2)


def test_models_are_shown_apart(records: list[dict[str, Any]]) -> None:
    other = copy.deepcopy([r for r in records if r["name"] in ("dense", "wanda-50")])
    for record in other:
        record["parameters"]["model"] = "another"
        record["name"] += "-another"
    explorer = results_explorer([*records, *other])
    count = len(points(explorer))
    explorer.model.value = "another"
    assert set(points(explorer)) == {
        "04_prune_model--dense-another",
        "04_prune_model--wanda-50-another",
    }
    explorer.model.value = "embedded"
    assert len(points(explorer)) == count


def test_metric_titles_have_units() -> None:
    assert metric_title("prune_seconds", "s") == "prune (s)"
    assert metric_title("peak_memory", "bytes") == "peak memory (GB)"
    assert metric_title("arc_easy_acc_norm", "1", "05_zero_shot").startswith("zero-shot: ARC-e")
    assert metric_title("perplexity", "1") == "perplexity"
