"""Explorer of results: a picture with a point for every run, and the record of the chosen one."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from helpers.errors import RecordError, check_choice
from helpers.explore.controls import Explorer, View, Worker, choice, row
from helpers.paths import notebooks_dir, reference_dir, results_dir
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
    mean_of_tasks,
    plain_runs,
    style_of,
)

Record = Mapping[str, Any]
NOTEBOOKS = (PRUNE_NOTEBOOK, ZERO_SHOT_NOTEBOOK)
COLUMNS = ("sparsity", "N:M", "both")
NO_RUN = ("choose a run", "")
LOG_FROM = 3.0  # a perplexity axis is logarithmic if the largest is this many times the smallest
HINT = (
    "Each point is one run, a line joins the means over seeds, a whisker is one standard error. "
    "Choose a run to ring its point and read its record."
)


@dataclass(frozen=True)
class Run:
    """A record with the names that it has in the tables."""

    key: str  # unique in a plan, such as "04_prune_model--admm-grad-60"
    label: str  # its row
    column: str  # "60 %", "2:4", or "dense"
    variant: bool  # has options, while others of its method have none
    record: Record

    @property
    def name(self) -> str:
        """The run in words: "admm-grad, 60 %, seed 1"."""
        if self.column == "dense":
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
    """Choose plan, metric, columns and methods; choose a run to see its record and its notebook.

    Args: records, a plan's name or the records themselves (`read_records`); source, for a plan,
    "reference" (the committed results) or "results" (what was run on this machine); metric, a
    name in the records or as it is shown; targets, the columns to begin with: "sparsity", "N:M"
    or "both". `figure` is the static twin. Raises RecordError without records, BadParameter.
    """
    if isinstance(records, str):
        records = _records_of(records, source)
    groups = _groups(list(records))
    everything = [run for runs in groups.values() for run in runs]
    metrics = metrics_of(everything)
    wanted = next((title for title, (_, name) in metrics.items() if name == metric), metric)
    controls = {
        "plan": choice(list(groups), next(iter(groups)), "records"),
        "metric": choice(
            list(metrics), check_choice("metric", wanted, metrics), "metric", width="440px"
        ),
        "columns": choice(COLUMNS, check_choice("targets", targets, COLUMNS), "columns"),
    }
    variants = {r.label: r.variant for r in everything if r.column != "dense"}
    boxes = {label: _box(label, not variant) for label, variant in variants.items()}
    runs = choice([NO_RUN], "", "run", width="440px")

    def shown(plan: str, metric: str, columns: str, **ticked: bool) -> list[Run]:
        return _shown(groups[plan], *metrics[metric], columns, ticked)

    def offer_runs(_change: Any = None) -> None:
        """List the runs shown; the chosen one stays if it is among them."""
        left = shown(**{name: control.value for name, control in (controls | boxes).items()})
        before, name = runs.value, metrics[controls["metric"].value][1]
        texts = {r.key: f"{r.name}: {format_number(value_of(r.record, name))}" for r in left}
        runs.options = [NO_RUN, *((text, key) for key, text in texts.items())]
        runs.value = before if before in texts else ""

    def draw(_worker: Worker, *, run: str, metric: str, **values: Any) -> View:
        left, name = shown(metric=metric, **values), metrics[metric][1]
        chosen = next((r for r in left if r.key == run), None)
        caption = f"{metric}: {len(left)} runs" + (f"; ringed: {chosen.name}" if chosen else "")
        figure = results_figure(left, name, metric, chosen)
        if chosen is None:
            return View(figure, caption)
        return View(figure, caption, record_html(chosen), notebook_link(chosen.record))

    offer_runs()
    for control in (controls | boxes).values():
        control.observe(offer_runs, names="value")
    more = ipywidgets.Accordion([row(*(b for n, b in boxes.items() if variants[n]))])
    more.set_title(0, "runs with other options than the defaults")
    more.selected_index = None
    first = [control for control in controls.values() if len(control.options) > 1]
    rows = [row(*first), row(*(b for n, b in boxes.items() if not variants[n])), more, runs]
    return Explorer(controls | boxes | {"run": runs}, draw, rows=rows, hint=HINT)


def _shown(
    runs: Sequence[Run], notebook: str, metric: str, columns: str, ticked: Mapping[str, bool]
) -> list[Run]:
    """The runs that the controls leave; dense is always among them."""
    signs = {"sparsity": "%", "N:M": ":", "both": "%:"}[columns]
    able = [r for r in runs if r.record["notebook"] == notebook and metric in r.record["metrics"]]
    fits = [ticked.get(r.label) and set(signs) & set(r.column) for r in able]
    return [r for r, fit in zip(able, fits, strict=True) if fit or r.column == "dense"]


def _box(label: str, ticked: bool) -> ipywidgets.Checkbox:
    layout = ipywidgets.Layout(width="auto", margin="0 14px 0 0")
    return ipywidgets.Checkbox(ticked, description=label, indent=False, layout=layout)


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


def _groups(records: Sequence[Record]) -> dict[str, list[Run]]:
    """The runs of each plan and model, by a name for both."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["notebook"] in NOTEBOOKS:
            parts = record.get("plan"), record["parameters"].get("model")
            groups.setdefault(", ".join(filter(None, parts)) or "unnamed", []).append(record)
    if not groups:
        raise RecordError(
            f"no record of {' or '.join(NOTEBOOKS)} among {len(records)}: give the records of a "
            "plan that prunes, such as full"
        )
    return {name: runs_of(group) for name, group in groups.items()}


def runs_of(records: Sequence[Record]) -> list[Run]:
    """The runs of one model, variants last. Raises RecordError for two records of one name."""
    found: dict[str, Run] = {}
    for notebook in NOTEBOOKS:
        group = [record for record in records if record["notebook"] == notebook]
        plain = plain_runs(group)
        labels = {id(record): label for record, label in [*labelled(group), *labelled(plain)]}
        usual = set(map(id, plain))
        for record in group:
            key = f"{notebook}--{record['name']}"
            if key in found:
                raise RecordError(f"two records are named {key}: give the records of one plan")
            column, variant = column_of(record) or "dense", id(record) not in usual
            found[key] = Run(key, labels[id(record)], column, variant, record)
    return sorted(found.values(), key=_order)


def _order(run: Run) -> tuple[Any, ...]:
    """Known methods first, variants last, then by column."""
    method = run.record["parameters"]["method"]
    known = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
    return run.variant, known, run.label, _column_order(run.column), run.key


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
        notebook = run.record["notebook"]
        for name, metric in run.record["metrics"].items():
            if not name.endswith("_stderr"):
                found[metric_title(name, metric["unit"], notebook)] = notebook, name
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


def error_of(record: Record, name: str) -> float | None:
    """The standard error of an accuracy, if the record holds what is needed."""
    metrics = record["metrics"]
    if f"{name}_stderr" in metrics:
        return metrics[f"{name}_stderr"]["value"]
    tasks = [t for t in TASK_NAMES if {f"{t}_acc", f"{t}_acc_stderr"} <= set(metrics)]
    if name != "mean_acc" or not tasks:
        return None
    pairs = [(metrics[f"{t}_acc"]["value"], metrics[f"{t}_acc_stderr"]["value"]) for t in tasks]
    return mean_of_tasks(pairs)[1]


def results_figure(runs: Sequence[Run], name: str, title: str, chosen: Run | None) -> Figure:
    """The runs' values of a metric by column, a colour for each label; `chosen` is ringed."""
    figure = Picture(figsize=(9.0, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, axis="y", color="#DDDDDD", linewidth=0.6)
    columns = sorted({run.column for run in runs}, key=_column_order)
    labels = list(dict.fromkeys(run.label for run in runs if run.column != "dense"))
    values = [value_of(run.record, name) for run in runs]
    for label in dict.fromkeys(run.label for run in runs):
        group = [run for run in runs if run.label == label]
        y = [value_of(run.record, name) for run in group]
        if label in labels:  # side by side, so that no label hides another
            position = labels.index(label)
            shift, look = 0.5 * (position + 0.5) / len(labels) - 0.25, _look(group[0], position)
        else:
            shift, look = 0.0, {"color": DENSE, "marker": "o", "linestyle": "--"}
            ax.axhline(y[0], color=DENSE, linestyle="--", linewidth=1)
        x = [columns.index(run.column) + shift for run in group]
        errors = [error_of(run.record, name) or 0.0 for run in group]
        ax.errorbar(x, y, yerr=errors, **look | {"linestyle": "none"}, label=label)
        sparse = [":" not in run.column for run in group]
        means = pd.Series(y, index=x)[sparse].groupby(level=0).mean()
        ax.plot(means.index, means, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
        if chosen in group:
            place = group.index(chosen)
            ax.plot(x[place], y[place], "o", markersize=15, fillstyle="none", color="black")
    if name.startswith("perplexity") and values and max(values) > LOG_FROM * min(values) > 0:
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


def _look(run: Run, position: int) -> dict[str, Any]:
    """A method's look in all figures; variants have colours that no method has."""
    if not run.variant:
        return style_of(run.label, position)
    return style_of("", 5 + position % 3) | {"marker": style_of("", position)["marker"]}


def record_html(run: Run) -> str:
    """A run's record as tables: metrics with units, parameters, and where it comes from."""
    record, metrics = run.record, {}
    for name, metric in record["metrics"].items():
        if not name.endswith("_stderr"):
            error, text = error_of(record, name), format_number(value_of(record, name))
            text += "" if error is None else f" ± {format_number(error)}"
            metrics[metric_title(name, metric["unit"])] = text
    git, machine = record["git"], record["platform"]
    commit = "no git checkout" if git is None else git["commit"][:12]
    origin = {f"seed of {name}": seed for name, seed in record["seeds"].items()} | {
        "device": record["device"],
        "seconds": format_number(float(record["seconds"])),
        "peak memory": f"{record['peak_memory_bytes'] / 1e9:.2f} GB",
        "machine": f"{machine['system']} {machine['machine']}, {machine['cores']} cores",
        "commit": commit + (", changed since" if git and git["dirty"] else ""),
        "date": record["created"][:16].replace("T", " ") + " UTC",
    }
    identity = {
        f"{what} {key}": value
        for what, known in {"model": record["model"], **(record["data"] or {})}.items()
        for key, value in (known or {}).items()
    }
    tables = {"Metrics": metrics, "Parameters": record["parameters"], "Made by": origin}
    tables |= {"Model and text": identity, "Versions": record["versions"]}
    blocks = []
    for title, values in tables.items():
        given = {key: str(value) for key, value in values.items() if value not in ("", {}, None)}
        blocks.append(pd.Series(given, name=title, dtype=str).to_frame().to_html(border=0))
    flow = "display:flex;flex-wrap:wrap;gap:4px 28px;align-items:flex-start"
    return f'<h3>{html.escape(run.name)}</h3><div style="{flow}">{"".join(blocks)}</div>'


def notebook_link(record: Record) -> str:
    """Markdown: a link to the executed notebook of a run on this machine, or how to make it.

    It is relative to the notebook that shows it, so that JupyterLab opens it beside that.
    """
    plan, run = record.get("plan"), f"{record['notebook']}--{record['name']}"
    if not plan:
        return "This run was made by hand, outside a plan: its notebook is the one you ran."
    path = results_dir(plan) / "runs" / f"{run}.ipynb"
    if not path.is_file():
        minutes = record.get("run_seconds", record["seconds"]) / 60
        return (
            f"Its executed notebook is not on this machine. `make reproduce PLAN={plan} "
            f"ONLY='{run}'` makes it; that took {minutes:.1f} minutes on {record['device']}."
        )
    # the server tells a kernel which notebook it belongs to
    session = os.environ.get("JPY_SESSION_NAME", "")
    here = Path(session).parent if session.endswith(".ipynb") else notebooks_dir()
    link = quote(Path(os.path.relpath(path, here.absolute())).as_posix())
    return f"[Open the executed notebook]({link}) `{path.name}`"
