"""Explorer of results: a picture with a point for every run, and the record of the chosen one."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from helpers.errors import FileError, check_choice
from helpers.explore.controls import Explorer, View, Worker, choice, label_of, row
from helpers.paths import reference_dir, results_dir
from helpers.report import (
    DENSE,
    PRUNE_NOTEBOOK,
    TASK_NAMES,
    ZERO_SHOT_NOTEBOOK,
    column_key,
    format_number,
    in_words,
    new_figure,
    read_records,
    record_id,
    row_key,
    run_frame,
    style_of,
)

Record = Mapping[str, Any]
COLUMNS = {"sparsity": "%", "N:M": ":", "both": "%:"}  # with a sign of the columns' names
FIRST = ("perplexity", "mean layer error")  # of the metrics
ZERO_SHOT = "zero-shot: "  # before the metrics of that notebook
NO_RUN = ("choose a run", "")
HINT = (
    "Each point is a run, and a line joins the means over seeds. Ctrl-click (⌘-click on a Mac) "
    "adds or removes a method. If you choose a run, its point is ringed and its record is shown."
)


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
    or "both". `figure` is the static twin. Raises FileError without records, BadParameter.
    """
    runs = runs_of(_records_of(records, source) if isinstance(records, str) else records)
    controls = _controls(runs, metric, targets)
    chooser = choice([NO_RUN], "", "run", width="440px")

    def shown(plan: str, metric: str, columns: str, methods: Sequence[str]) -> pd.DataFrame:
        able = runs[(runs["plan"] == plan) & runs[metric].notna()]
        asked = able["label"].isin(methods) & able["target"].str.contains(f"[{COLUMNS[columns]}]")
        return able[asked | (able["target"] == "dense")]

    def offer_runs(_change: Any = None) -> None:
        """List the runs shown; the chosen one stays if it is among them."""
        left = shown(**{name: control.value for name, control in controls.items()})
        before, values = chooser.value, left[controls["metric"].value].map(format_number)
        texts = [f"{name}: {value}" for name, value in zip(left["name"], values, strict=True)]
        chooser.options = [NO_RUN, *zip(texts, left["key"], strict=True)]
        chooser.value = before if before in list(left["key"]) else ""

    def draw(_worker: Worker, *, run: str, metric: str, **values: Any) -> View:
        left = shown(metric=metric, **values)
        caption, markup = f"{metric}: {len(left)} runs", ""
        for chosen in left[left["key"] == run].to_dict("records"):  # none or one
            caption += f"; ringed: {chosen['name']}"
            markup = record_html(chosen["name"], chosen["record"])
        return View(results_figure(left, metric, run), caption, markup)

    offer_runs()
    for control in controls.values():
        control.observe(offer_runs, names="value")
    plan, *first, methods = controls.values()
    rows = [row(*([plan] if len(plan.options) > 1 else []), *first), methods, chooser]
    return Explorer(controls | {"run": chooser}, draw, rows=rows, hint=HINT)


def _records_of(plan: str, source: str) -> list[Record]:
    """The records of a plan. Raises FileError if there are none, BadParameter for the source."""
    folders = {"reference": reference_dir, "results": results_dir}
    found = read_records(folders[check_choice("source", source, folders)](plan) / "records")
    if not found:
        raise FileError(
            f"no records of plan {plan!r} ({source}): run `make reproduce PLAN={plan}` and give "
            'source="results", or choose a plan with a committed reference: full, laptop'
        )
    return found


def runs_of(records: Iterable[Record]) -> pd.DataFrame:
    """The runs that prune, a row each: known methods first, variants last.

    Columns: plan (with the model), key (unique in a plan), name (for a reader), some of
    `run_frame`, and the metrics as `metrics_of` has them. Raises FileError if there are none.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["notebook"] in (PRUNE_NOTEBOOK, ZERO_SHOT_NOTEBOOK):
            parts = record.get("plan"), record["parameters"].get("model")
            plan = ", ".join(filter(None, parts)) or "unnamed"
            groups[plan, record["notebook"]].append(record)
    if not groups:
        raise FileError("no record of a run that prunes: give those of a plan such as full")
    rows: list[dict[str, Any]] = []
    columns = ["record", "label", "target", "seed", "variant"]
    for (plan, notebook), group in groups.items():
        for run in run_frame(group, notebook)[columns].to_dict("records"):
            cell = "" if run["target"] == "dense" else f", {run['target']}, seed {run['seed']}"
            names = {"key": record_id(run["record"]), "name": run["label"] + cell}
            rows.append({"plan": plan} | names | run | metrics_of(run["record"]))

    def order(run: Mapping[str, Any]) -> tuple[Any, ...]:
        return run["variant"], row_key(run["label"]), column_key(run["target"]), run["key"]

    return pd.DataFrame(sorted(rows, key=order))


def metrics_of(record: Record) -> dict[str, float]:
    """The metrics by titles such as "prune (s)" or "zero-shot: HellaSwag acc", bytes as GB."""
    found: dict[str, float] = {}
    prefix = ZERO_SHOT if record["notebook"] == ZERO_SHOT_NOTEBOOK else ""
    for name, metric in record["metrics"].items():
        value, unit = float(metric["value"]), metric["unit"]
        if unit == "bytes":
            value, unit = value / 1e9, "GB"
        task = next((task for task in TASK_NAMES if name.startswith(f"{task}_")), "")
        title = TASK_NAMES.get(task, "") + name.removeprefix(task).removesuffix("_seconds")
        suffix = "" if unit == "1" else f" ({unit})"
        found[prefix + title.replace("_", " ") + suffix] = value
    return found


def _controls(runs: pd.DataFrame, metric: str, targets: str) -> dict[str, ipywidgets.Widget]:
    """What chooses the runs: at first the methods without their variants."""
    names: dict[str, str] = {}  # of the metrics in the records, by title
    for record in runs["record"]:
        names |= dict(zip(metrics_of(record), record["metrics"], strict=True))
    titles = [title for title in names if not title.endswith(" stderr")]
    titles.sort(key=lambda title: (title.startswith(ZERO_SHOT), title not in FIRST))
    metric = next((title for title in titles if names[title] == metric), metric)
    variants = runs[runs["target"] != "dense"].groupby("label", sort=False)["variant"].last()
    plans = list(runs["plan"].unique())
    return {
        "plan": choice(plans, plans[0], "records"),
        "metric": choice(titles, check_choice("metric", metric, titles), "metric", width="440px"),
        "columns": choice(list(COLUMNS), check_choice("targets", targets, COLUMNS), "columns"),
        "methods": ipywidgets.SelectMultiple(
            options=list(variants.index),
            value=list(variants.index[~variants]),
            rows=min(8, len(variants)),
            **label_of("methods", "620px"),
        ),
    }


def results_figure(runs: pd.DataFrame, metric: str, chosen: str) -> Figure:
    """The runs' values of a metric by column, a colour for each label; the chosen run is ringed."""
    figure, ax = new_figure(size=(9.0, 4.4))
    ax.grid(False, axis="x")
    columns = sorted(runs["target"].unique(), key=column_key)
    labels = list(runs[runs["target"] != "dense"]["label"].unique())
    for label, group in runs.groupby("label", sort=False):
        y = group[metric]
        if label in labels:  # side by side, so that no label hides another
            position = labels.index(label)
            shift, look = 0.5 * (position + 0.5) / len(labels) - 0.25, style_of(label, position)
        else:
            shift, look = 0.0, {"color": DENSE, "marker": "o", "linestyle": "--"}
            ax.axhline(y.iloc[0], color=DENSE, linestyle="--", linewidth=1)
        x = group["target"].map(columns.index) + shift
        ax.plot(x, y, **look | {"linestyle": "none"}, label=in_words(label))
        means = y[~group["target"].str.contains(":")].groupby(x).mean()
        ax.plot(means.index, means, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
        ringed = group["key"] == chosen
        if ringed.any():
            look = {"markersize": 15, "fillstyle": "none", "color": "black"}
            ax.plot(x[ringed], y[ringed], "o", **look)
    if metric.startswith("perplexity"):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    ax.set_xticks(range(len(columns)), columns)
    ylabel = metric + (" (log scale)" if ax.get_yscale() == "log" else "")
    ax.set(xlim=(-0.5, len(columns) - 0.5), xlabel="sparsity or pattern", ylabel=ylabel)
    if len(runs):
        figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    else:
        ax.text(0.5, 0.5, "no runs to show", ha="center", transform=ax.transAxes, color=DENSE)
    return figure


def record_html(name: str, record: Record) -> str:
    """A run's record as two tables: its metrics with their units, and the rest."""
    metrics = {
        title.removeprefix(ZERO_SHOT): format_number(value)
        for title, value in metrics_of(record).items()
    }
    notebook = results_dir(record.get("plan") or "") / "runs" / f"{record_id(record)}.ipynb"
    found = {"executed notebook": notebook} if notebook.is_file() else {}
    parts = {key: value for key, value in record.items() if key != "metrics"}
    rest = pd.json_normalize(found | parts, sep=" ").iloc[0]
    rest = {title: str(value) for title, value in rest.items() if not isinstance(value, list)}
    with pd.option_context("display.max_colwidth", None):
        tables = [
            pd.Series(values, name=title, dtype=str).to_frame().to_html(border=0)
            for title, values in {"Metrics": metrics, "Record": rest}.items()
        ]
    flow = "display: flex; flex-wrap: wrap; gap: 4px 28px; align-items: flex-start"
    return f'<h3>{html.escape(name)}</h3><div style="{flow}">{"".join(tables)}</div>'
