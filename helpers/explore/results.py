"""Explorer of results: a picture with a point for every run, and the record of the chosen one."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from helpers.errors import RecordError, check_choice
from helpers.explore.controls import Explorer, View, Worker, choice, label_of, row
from helpers.paths import reference_dir, results_dir
from helpers.records import read_records
from helpers.results import (
    DENSE,
    METHOD_ORDER,
    PRUNE_NOTEBOOK,
    TASK_NAMES,
    ZERO_SHOT_NOTEBOOK,
    Picture,
    column_of,
    format_number,
    labelled,
    plain_runs,
    style_of,
)

Record = Mapping[str, Any]
COLUMNS = {"sparsity": "%", "N:M": ":", "both": "%:"}  # with a sign of the columns' names
NO_RUN = ("choose a run", "")
HINT = (
    "Each point is one run, a line joins the means over seeds. Ctrl or ⌘ and a click adds or "
    "removes a method. Choose a run to ring its point and read its record."
)


@dataclass(frozen=True)
class Run:
    """A record with the names that it has in the tables."""

    group: str  # plan and model
    label: str  # its row
    column: str  # "60 %", "2:4", or "dense"
    variant: bool  # has options, while others of its method have none
    record: Record

    @property
    def key(self) -> str:
        """Unique in a group, such as "04_prune_model--admm-grad-60"."""
        return f"{self.record['notebook']}--{self.record['name']}"

    @property
    def dense(self) -> bool:
        """Whether nothing was pruned."""
        return self.column == "dense"

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """(notebook, metric) of what was measured, without standard errors."""
        names = self.record["metrics"]
        return [(self.record["notebook"], n) for n in names if not n.endswith("_stderr")]

    @property
    def name(self) -> str:
        """The run in words: "admm-grad, 60 %, seed 1"."""
        if self.dense:
            return self.label
        seed = self.record["parameters"].get("calibration_seed", 0)
        return f"{self.label}, {self.column}, seed {seed}"


def results_explorer(
    records: str | Iterable[Record] = "full",
    *,
    source: str = "reference",
    metric: str = "perplexity",
    targets: str = "both",
) -> Explorer:
    """Choose plan, metric, columns and methods; choose a run to see its record.

    Args: records, a plan's name or the records themselves (`read_records`); source, for a plan,
    "reference" (the committed results) or "results" (what was run on this machine); metric, a
    name in the records or as it is shown; targets, the columns to begin with: "sparsity", "N:M"
    or "both". `figure` is the static twin. Raises RecordError without records, BadParameter.
    """
    if isinstance(records, str):
        records = _records_of(records, source)
    everything = runs_of(records)
    groups, metrics = list(dict.fromkeys(run.group for run in everything)), metrics_of(everything)
    wanted = next((title for title, (_, name) in metrics.items() if name == metric), metric)
    variants = {run.label: run.variant for run in everything if not run.dense}
    controls = {
        "plan": choice(groups, groups[0], "records"),
        "metric": choice(
            list(metrics), check_choice("metric", wanted, metrics), "metric", width="440px"
        ),
        "columns": choice(list(COLUMNS), check_choice("targets", targets, COLUMNS), "columns"),
        "methods": ipywidgets.SelectMultiple(
            options=list(variants),
            value=[label for label, variant in variants.items() if not variant],
            rows=min(8, len(variants)),
            **label_of("methods", "620px"),
        ),
    }
    chooser = choice([NO_RUN], "", "run", width="440px")

    def shown(plan: str, metric: str, columns: str, methods: Sequence[str]) -> list[Run]:
        able = [r for r in everything if r.group == plan and metrics[metric] in r.metrics]
        signs = set(COLUMNS[columns])
        return [r for r in able if r.dense or (r.label in methods and signs & set(r.column))]

    def offer_runs(_change: Any = None) -> None:
        """List the runs shown; the chosen one stays if it is among them."""
        left = shown(**{name: control.value for name, control in controls.items()})
        before, name = chooser.value, metrics[controls["metric"].value][1]
        texts = {r.key: f"{r.name}: {format_number(value_of(r.record, name))}" for r in left}
        chooser.options = [NO_RUN, *((text, key) for key, text in texts.items())]
        chooser.value = before if before in texts else ""

    def draw(_worker: Worker, *, run: str, metric: str, **values: Any) -> View:
        left = shown(metric=metric, **values)
        chosen = next((r for r in left if r.key == run), None)
        caption = f"{metric}: {len(left)} runs" + (f"; ringed: {chosen.name}" if chosen else "")
        figure = results_figure(left, metrics[metric][1], metric, chosen)
        return View(figure, caption, record_html(chosen) if chosen else "")

    offer_runs()
    for control in controls.values():
        control.observe(offer_runs, names="value")
    plan, *first, methods = controls.values()
    rows = [row(*([plan] if len(groups) > 1 else []), *first), methods, chooser]
    return Explorer(controls | {"run": chooser}, draw, rows=rows, hint=HINT)


def _records_of(plan: str, source: str) -> list[Record]:
    """The records of a plan. Raises RecordError if there are none, BadParameter for the source."""
    folders = {"reference": reference_dir, "results": results_dir}
    found = read_records(folders[check_choice("source", source, folders)](plan) / "records")
    if not found:
        raise RecordError(
            f"no records of plan {plan!r} ({source}): run `make reproduce PLAN={plan}` and give "
            'source="results", or choose a plan with a committed reference: full, laptop'
        )
    return found


def runs_of(records: Iterable[Record]) -> list[Run]:
    """The runs that prune, by plan and model: known methods first, variants last.

    Raises RecordError if there are none.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["notebook"] in (PRUNE_NOTEBOOK, ZERO_SHOT_NOTEBOOK):
            parts = record.get("plan"), record["parameters"].get("model")
            name = ", ".join(filter(None, parts)) or "unnamed"
            groups.setdefault((name, record["notebook"]), []).append(record)
    if not groups:
        raise RecordError("no record of a run that prunes: give those of a plan such as full")
    found: list[Run] = []
    for (name, _), group in groups.items():
        plain = plain_runs(group)
        usual = set(map(id, plain))
        others = [pair for pair in labelled(group) if id(pair[0]) not in usual]
        for variant, pairs in ((False, labelled(plain)), (True, others)):
            for record, label in pairs:
                found.append(Run(name, label, column_of(record) or "dense", variant, record))
    ranks = {method: rank for rank, method in enumerate(METHOD_ORDER)}

    def order(run: Run) -> tuple[Any, ...]:
        rank = ranks.get(run.record["parameters"]["method"], len(ranks))
        return run.variant, rank, run.label, _column_order(run.column), run.key

    return sorted(found, key=order)


def _column_order(column: str) -> tuple[float, ...]:
    """Dense, then sparsities, then patterns by the size of their groups."""
    if ":" in column:
        kept, group = map(int, column.split(":"))
        return 2, group, kept
    return (0,) if column == "dense" else (1, float(column.split()[0]))


def metrics_of(runs: Iterable[Run]) -> dict[str, tuple[str, str]]:
    """What can be shown: (notebook, metric) by its title, perplexity and layer error first."""
    found: dict[str, tuple[str, str]] = {}
    for run in runs:
        for notebook, name in run.metrics:
            unit = run.record["metrics"][name]["unit"]
            found[metric_title(name, unit, notebook)] = notebook, name
    first = ("perplexity", "mean_layer_error")
    ranked = sorted(found.items(), key=lambda item: (item[1][0], item[1][1] not in first))
    return dict(ranked)


def metric_title(name: str, unit: str, notebook: str = PRUNE_NOTEBOOK) -> str:
    """A metric's name for a reader, with its unit: "prune (s)", "zero-shot: HellaSwag acc"."""
    task = next((task for task in TASK_NAMES if name.startswith(f"{task}_")), "")
    title = TASK_NAMES.get(task, "") + name.removeprefix(task).removesuffix("_seconds")
    shown = {"1": "", "bytes": " (GB)"}.get(unit, f" ({unit})")
    prefix = "zero-shot: " if notebook == ZERO_SHOT_NOTEBOOK else ""
    return prefix + title.replace("_", " ") + shown


def value_of(record: Record, name: str) -> float:
    """A metric's value in the unit that is shown: bytes as GB."""
    metric = record["metrics"][name]
    return float(metric["value"] / 1e9 if metric["unit"] == "bytes" else metric["value"])


def results_figure(runs: Sequence[Run], name: str, title: str, chosen: Run | None) -> Figure:
    """The runs' values of a metric by column, a colour for each label; `chosen` is ringed."""
    figure = Picture(figsize=(9.0, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, axis="y", color="#DDDDDD", linewidth=0.6)
    columns = sorted({run.column for run in runs}, key=_column_order)
    labels = list(dict.fromkeys(run.label for run in runs if not run.dense))
    for label in dict.fromkeys(run.label for run in runs):
        group = [run for run in runs if run.label == label]
        y = [value_of(run.record, name) for run in group]
        if label in labels:  # side by side, so that no label hides another
            position = labels.index(label)
            shift, look = 0.5 * (position + 0.5) / len(labels) - 0.25, style_of(label, position)
            if group[0].variant:  # whose colour another may have
                look["marker"] = style_of("", position)["marker"]
        else:
            shift, look = 0.0, {"color": DENSE, "marker": "o", "linestyle": "--"}
            ax.axhline(y[0], color=DENSE, linestyle="--", linewidth=1)
        x = [columns.index(run.column) + shift for run in group]
        ax.plot(x, y, **look | {"linestyle": "none"}, label=label)
        sparse = [":" not in run.column for run in group]
        means = pd.Series(y, index=x)[sparse].groupby(level=0).mean()
        ax.plot(means.index, means, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
        if chosen in group:
            place = group.index(chosen)
            ax.plot(x[place], y[place], "o", markersize=15, fillstyle="none", color="black")
    if name.startswith("perplexity"):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        title += " (log scale)"
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ax.set_xticks(range(len(columns)), columns)
    ax.set(xlim=(-0.5, len(columns) - 0.5), xlabel="sparsity or pattern", ylabel=title)
    if runs:
        figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    else:
        ax.text(0.5, 0.5, "no runs to show", ha="center", transform=ax.transAxes, color=DENSE)
    return figure


def record_html(run: Run) -> str:
    """A run's record as two tables: its metrics with their units, and the rest."""
    record = dict(run.record)
    metrics = {
        metric_title(name, metric["unit"]): format_number(value_of(run.record, name))
        for name, metric in record.pop("metrics").items()
    }
    notebook = results_dir(record.get("plan") or "") / "runs" / f"{run.key}.ipynb"
    if notebook.is_file():
        record = {"executed notebook": notebook} | record
    rest = pd.json_normalize(record, sep=" ").iloc[0]
    rest = {name: str(value) for name, value in rest.items() if not isinstance(value, list)}
    with pd.option_context("display.max_colwidth", None):
        tables = [
            pd.Series(values, name=title, dtype=str).to_frame().to_html(border=0)
            for title, values in {"Metrics": metrics, "Record": rest}.items()
        ]
    flow = "display: flex; flex-wrap: wrap; gap: 4px 28px; align-items: flex-start"
    return f'<h3>{html.escape(run.name)}</h3><div style="{flow}">{"".join(tables)}</div>'
