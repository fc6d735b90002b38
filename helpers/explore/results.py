"""Explorer of results: a chart with a point for every run; a click shows the run's record.

The chart is a small widget of its own (SVG drawn by the script below, nothing is fetched), because
a picture made in the kernel cannot be clicked. All that it shows is computed in Python. A list of
the same runs stands below it, so that everything works without the script too.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anywidget
import ipywidgets
import traitlets
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from helpers.errors import RecordError, check_choice
from helpers.explore.controls import choice, row
from helpers.paths import notebooks_dir, reference_dir, results_dir
from helpers.records import read_records
from helpers.results import (
    COLOURS,
    DENSE,
    MARKERS,
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

NAMES = {
    "peak_memory": "peak memory",
    "mean_layer_error": "mean relative error of a layer",
    "sparsity": "sparsity reached",
    "mean_acc": "mean accuracy",
}
ENDINGS = {"_seconds": "", "_acc": " accuracy", "_acc_norm": " accuracy, by length"}
TARGETS = ("sparsity", "N:M", "both")
DASHES = {"-": [], "--": [7, 4], "-.": [8, 3, 2, 3], ":": [2, 3]}
SEED_STEP, SERIES_STEP = 9, 15  # pixels between the points of seeds, and of series, at one target
NO_RUN = "choose a run"
WIDTH = "440px"


# ------------------------------------------------------------------ what there is to show


@dataclass(frozen=True)
class Run:
    """A record with the names that it has in the tables."""

    key: str  # unique, such as "04_prune_model--admm-grad-60"
    label: str  # its row in the tables
    target: str  # its column, or "dense"
    variant: bool  # has options, while others of its method have none
    record: Record

    @property
    def seed(self) -> int:
        """The seed of the calibration text's windows."""
        return self.record["parameters"].get("calibration_seed", 0)


def runs_of(records: Sequence[Record]) -> list[Run]:
    """The runs of one model's pruning and zero-shot notebooks, in the order of the tables.

    Raises RecordError for two records of one name.
    """
    found: dict[str, Run] = {}
    for notebook in (PRUNE_NOTEBOOK, ZERO_SHOT_NOTEBOOK):
        group = [record for record in records if record["notebook"] == notebook]
        plain = plain_runs(group)
        labels = {id(record): label for record, label in labelled(group)}
        labels |= {id(record): label for record, label in labelled(plain)}
        usual = set(map(id, plain))
        for record in group:
            key = f"{notebook}--{record['name']}"
            if key in found:
                raise RecordError(f"two records are named {key}: give the records of one plan")
            target = column_of(record) or "dense"
            found[key] = Run(key, labels[id(record)], target, id(record) not in usual, record)
    return sorted(found.values(), key=_order)


def _order(run: Run) -> tuple[Any, ...]:
    """Known methods first, variants after all others, then by target and seed."""
    method = run.record["parameters"]["method"]
    known = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
    return run.variant, known, run.label, _target_order(run.target), run.seed, run.key


def _target_order(target: str) -> tuple[float, ...]:
    """Dense, then sparsities, then patterns by the size of their groups."""
    if ":" in target:
        kept, group = map(int, target.split(":"))
        return 2, group, kept
    return (0,) if target == "dense" else (1, float(target.split()[0]))


def metrics_of(runs: Iterable[Run]) -> dict[str, tuple[str, str]]:
    """What can be shown: (notebook, metric) by the name that a reader sees, perplexity first."""
    found: dict[str, tuple[str, str]] = {}
    for run in runs:
        notebook = run.record["notebook"]
        for name, metric in run.record["metrics"].items():
            if not name.endswith("_stderr"):
                found[metric_title(name, metric["unit"], notebook)] = notebook, name
    first = {name: place for place, name in enumerate(("perplexity", "mean_layer_error"))}
    order = {PRUNE_NOTEBOOK: 0, ZERO_SHOT_NOTEBOOK: 1}
    ranked = sorted(found.items(), key=lambda i: (order[i[1][0]], first.get(i[1][1], 9)))
    return dict(ranked)


def metric_title(name: str, unit: str, notebook: str = PRUNE_NOTEBOOK) -> str:
    """A metric's name for a reader, with its unit: "prune (s)"."""
    title = NAMES.get(name)
    for ending, text in ENDINGS.items():
        if title is None and name.endswith(ending):
            stem = name.removesuffix(ending)
            title = TASK_NAMES.get(stem, stem).replace("_", " ") + text
    title = title or name.replace("_", " ")
    shown = {"1": "", "bytes": " (GB)"}.get(unit, f" ({unit})")
    return f"{'zero-shot: ' if notebook == ZERO_SHOT_NOTEBOOK else ''}{title}{shown}"


def value_of(record: Record, name: str) -> float:
    """A metric's value in the unit that is shown: bytes as GB."""
    metric = record["metrics"][name]
    return metric["value"] / 1e9 if metric["unit"] == "bytes" else metric["value"]


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


# ------------------------------------------------------------------ the chart, as numbers


def chart_of(runs: Sequence[Run], metric: str, title: str) -> dict[str, Any]:
    """What the chart shows of a metric: axes, and for each label its points, line and ranges.

    Every run is a point; a line joins the means over seeds, a range spans the seeds.
    """
    places = _places({run.target for run in runs})
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    pruned = [label for label in groups if label != "dense"]
    several = len({run.seed for run in runs}) > 1
    series = []
    for label, group in groups.items():
        look = _look(label, group[0].variant, len(series))
        middle = pruned.index(label) - (len(pruned) - 1) / 2 if label in pruned else 0.0
        drawn = _series(group, metric, title, places, middle * SERIES_STEP, several)
        series.append({"label": label, **look, **drawn})
    values = [p[k] for s in series for p in s["points"] for k in ("y", "low", "high")]
    dense = [value_of(run.record, metric) for run in groups.get("dense", [])]
    return {
        "title": f"{title}: {len(runs)} runs",
        "x": _x_axis(places),
        "y": {"label": title, **_y_axis(values, log=metric.startswith("perplexity"))},
        "series": series,
        "reference": {"y": dense[0], "text": f"dense {format_number(dense[0])}"} if dense else {},
    }


def _look(label: str, variant: bool, place: int) -> dict[str, Any]:
    """Colour, marker and dash, in every chart the same for a method; variants are told apart."""
    if label == "dense":
        return {"colour": DENSE, "marker": "o", "dash": []}
    if variant:  # a colour that no method has, and a marker by its place
        return {"colour": COLOURS[5 + place % 3], "marker": MARKERS[place % 8], "dash": [2, 3]}
    look = style_of(label, place)
    return {"colour": look["color"], "marker": look["marker"], "dash": DASHES[look["linestyle"]]}


def _places(targets: set[str]) -> dict[str, float]:
    """Where each target stands: at its sparsity in %, dense before these, patterns after them."""
    ordered = sorted(targets, key=_target_order)
    numbers = {t: float(t.split()[0]) for t in ordered if t.endswith("%")}
    gaps = [b - a for a, b in zip(numbers.values(), list(numbers.values())[1:], strict=False)]
    step = min(gaps, default=10.0)
    low, high = min(numbers.values(), default=0.0), max(numbers.values(), default=-step)
    places = {"dense": low - step} if "dense" in targets else {}
    patterns = [t for t in ordered if ":" in t]
    return places | numbers | {t: high + step * (n + 1) for n, t in enumerate(patterns)}


def _series(
    group: Sequence[Run],
    metric: str,
    title: str,
    places: Mapping[str, float],
    shift: float,
    several: bool,
) -> dict[str, Any]:
    """Points of one label, the line through the means and the ranges over seeds."""
    points, line, ranges = [], [], []
    cells: dict[str, list[Run]] = {}
    for run in group:
        cells.setdefault(run.target, []).append(run)
    for target, runs in cells.items():
        values = [value_of(run.record, metric) for run in runs]
        mean = sum(values) / len(values)
        moved = ":" in target or error_of(runs[0].record, metric) is not None
        middle = shift if moved and target != "dense" else 0.0
        for place, (run, value) in enumerate(zip(runs, values, strict=True)):
            error = error_of(run.record, metric) or 0.0
            dx = middle + (place - (len(runs) - 1) / 2) * SEED_STEP
            spot = {"key": run.key, "x": places[target], "dx": dx, "y": value}
            name = f"{run_name(run, several)}, {title} {format_number(value)}"
            points.append(spot | {"low": value - error, "high": value + error, "name": name})
        if len(values) > 1:
            ranges.append([places[target], middle, min(values), max(values)])
        if target.endswith("%"):
            line.append([places[target], mean])
    return {"points": points, "line": line, "ranges": ranges}


def run_name(run: Run, seed: bool) -> str:
    """A run in words: "admm-grad, 60 %, seed 1"."""
    if run.target == "dense":
        return run.label
    return f"{run.label}, {run.target}" + (f", seed {run.seed}" if seed else "")


def _x_axis(places: Mapping[str, float]) -> dict[str, Any]:
    """Ticks, ends, and where sparsities end and patterns begin."""
    spots = sorted(places.values()) or [0.0]
    step = min((b - a for a, b in zip(spots, spots[1:], strict=False)), default=10.0)
    after = [x for t, x in places.items() if ":" in t]
    sparse = any(t.endswith("%") for t in places)
    label = ["sparsity of the pruned layers"] * sparse + ["N:M pattern"] * bool(after)
    return {
        "label": ", then ".join(label),
        "low": spots[0] - 0.6 * step,
        "high": spots[-1] + 0.6 * step,
        "ticks": [[x, text] for text, x in places.items()],
        "divider": min(after) - step / 2 if after and sparse else None,
    }


def _y_axis(values: Sequence[float], log: bool) -> dict[str, Any]:
    """Ends and ticks that hold all values; a log axis in round numbers."""
    log = log and bool(values) and min(values) > 0
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        room = max(high / low, 1.2) ** 0.06
        low, high = low / room, high * room
        ticks = log_ticks(low, high)
    else:
        room = 0.06 * (high - low or abs(high) or 1.0)
        low = 0.0 if 0 <= low < 0.6 * high or high == 0 else low - room
        high = high + room
        ticks = [t for t in MaxNLocator(6).tick_values(low, high) if low <= t <= high]
    return {"log": log, "low": low, "high": high, "ticks": [[t, _plain(t)] for t in ticks]}


def _plain(tick: float) -> str:
    return f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:.4g}"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high (both positive): four to nine of them where that can be."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]
    ticks: list[float] = []
    for digits in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], fine):
        ticks = [d * 10.0**n for n in decades for d in digits if low <= d * 10.0**n <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / 9)] if ticks else [low, high]


def results_figure(chart: Mapping[str, Any]) -> Figure:
    """A chart (see `chart_of`) as a picture, for readers without a kernel."""
    figure = Picture(figsize=(8.0, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, axis="y", color="#DDDDDD", linewidth=0.6)
    for series in chart["series"]:
        _draw_series(figure, ax, series)
    x, y = chart["x"], chart["y"]
    if y["log"]:
        ax.set_yscale("log")
    ax.set(xlim=(x["low"], x["high"]), ylim=(y["low"], y["high"]), xlabel=x["label"])
    ax.set_ylabel(y["label"] + (" (log scale)" if y["log"] else ""))
    ax.set_xticks(*zip(*x["ticks"], strict=True)) if x["ticks"] else ax.set_xticks([])
    texts = dict(map(tuple, y["ticks"]))
    ax.yaxis.set_major_locator(FixedLocator(list(texts)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: texts.get(value, "")))
    ax.yaxis.set_minor_locator(NullLocator())
    if x["divider"] is not None:
        ax.axvline(x["divider"], color="#BBBBBB", linewidth=0.8)
    if chart["reference"]:
        ax.axhline(chart["reference"]["y"], color=DENSE, linestyle=(0, (4, 3)), linewidth=1.2)
    if chart["series"]:
        figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    else:
        ax.text(0.5, 0.5, "no runs to show", ha="center", transform=ax.transAxes, color=DENSE)
    return figure


def _draw_series(figure: Figure, ax: Any, series: Mapping[str, Any]) -> None:
    """Line, ranges and points of one label."""
    colour = series["colour"]
    dash = (0, series["dash"]) if series["dash"] else "-"

    def moved(dx: float) -> Any:
        return ax.transData + ScaledTranslation(0.7 * dx / 72, 0, figure.dpi_scale_trans)

    if series["line"]:
        ax.plot(*zip(*series["line"], strict=True), color=colour, linestyle=dash, linewidth=1.4)
    for x, dx, low, high in series["ranges"]:
        ax.plot([x, x], [low, high], color=colour, linewidth=4, alpha=0.35, transform=moved(dx))
    for number, point in enumerate(series["points"]):
        place = {"color": colour, "transform": moved(point["dx"])}
        ax.plot([point["x"]] * 2, [point["low"], point["high"]], linewidth=1.1, **place)
        label = series["label"] if number == 0 else None
        ax.plot([point["x"]], [point["y"]], series["marker"], ms=5.5, label=label, **place)


# ------------------------------------------------------------------ a record, to be read


def record_html(run: Run) -> str:
    """A run's record as tables: parameters, metrics with units, and where it comes from."""
    record = run.record
    parts = [
        ("Metrics", _metric_rows(record)),
        ("Parameters", _rows(record["parameters"])),
        ("Made by", _origin(record)),
        ("Model and text", _identity(record)),
        ("Versions", _rows(record["versions"])),
    ]
    title = html.escape(run_name(run, seed=True))
    blocks = "".join(_block(name, rows) for name, rows in parts if rows)
    flow = "display:flex;flex-wrap:wrap;gap:4px 28px;align-items:flex-start"
    return f'<h3 style="margin:8px 0 4px">{title}</h3><div style="{flow}">{blocks}</div>'


def _block(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """One table of two columns under its heading."""
    left = "text-align:left;font-weight:normal;padding:1px 14px 1px 0;vertical-align:top"
    right = "text-align:left;padding:1px 0;overflow-wrap:anywhere;max-width:22em"
    lines = "".join(
        f'<tr><th scope="row" style="{left}">{html.escape(key)}</th>'
        f'<td style="{right}"><b>{html.escape(value)}</b></td></tr>'
        for key, value in rows
    )
    caption = "text-align:left;font-weight:bold;padding:6px 0 2px;opacity:0.75"
    head = f'<caption style="{caption}">{name}</caption>'
    return f'<table style="line-height:1.35">{head}{lines}</table>'


def _metric_rows(record: Record) -> list[tuple[str, str]]:
    """Each metric with its unit, and its standard error where there is one."""
    rows = []
    for name, metric in record["metrics"].items():
        if name.endswith("_stderr"):
            continue
        error = error_of(record, name)
        text = format_number(float(value_of(record, name)))
        text += f" ± {format_number(error)}" if error is not None else ""
        rows.append((metric_title(name, metric["unit"]), text))
    return rows


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; texts as they are, anything else as in JSON."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in values.items()
        if value not in ("", {})
    ]


def _origin(record: Record) -> list[tuple[str, str]]:
    """Seeds, device, seconds, commit and date."""
    rows = [(f"seed of {name}", str(seed)) for name, seed in record["seeds"].items()]
    rows += [("device", record["device"]), ("seconds", format_number(float(record["seconds"])))]
    rows.append(("peak memory", f"{format_number(record['peak_memory_bytes'] / 1e9)} GB"))
    machine = record["platform"]
    rows.append(("machine", f"{machine['system']} {machine['machine']}, {machine['cores']} cores"))
    git = record["git"]
    commit = "no git checkout" if git is None else git["commit"][:12]
    rows.append(("commit", commit + (", changed since" if git and git["dirty"] else "")))
    return [*rows, ("date", record["created"][:16].replace("T", " ") + " UTC")]


def _identity(record: Record) -> list[tuple[str, str]]:
    """Model and texts by name and hash."""
    rows = []
    for what, known in {"model": record["model"], **(record["data"] or {})}.items():
        for key, value in (known or {}).items():
            if value is not None:
                text = f"{value:,}" if isinstance(value, int) else str(value)
                rows.append((f"{what} {key}", text[:16] + "…" if key == "sha256" else text))
    return rows


def notebook_links(record: Record) -> str:
    """The executed notebook of a run on this machine as Markdown links, or how to make it.

    A link is relative to the notebook that shows it: JupyterLab opens it beside this notebook.
    """
    plan, run = record.get("plan"), f"{record['notebook']}--{record['name']}"
    if not plan:
        return "This run was made by hand, outside a plan: its notebook is the one you ran."
    kinds = {"runs": "ipynb", "html": "html"}
    found = [results_dir(plan) / folder / f"{run}.{end}" for folder, end in kinds.items()]
    found = [path for path in found if path.is_file()]
    if not found:
        took = record.get("run_seconds", record["seconds"])
        return (
            f"Its executed notebook is not on this machine. `make reproduce PLAN={plan} "
            f"ONLY='{run}'` makes it; that took {_duration(took)} on {record['device']}."
        )
    lines = [f"[Open the executed {_kind(path)}]({_link(path)}) `{_shown(path)}`" for path in found]
    return "\n\n".join(lines)


def _kind(path: Path) -> str:
    return "notebook" if path.suffix == ".ipynb" else "page (HTML)"


def _link(path: Path) -> str:
    """The way from the notebook that is open to a file, as a link."""
    # the server tells a kernel which notebook it belongs to
    session = os.environ.get("JPY_SESSION_NAME", "")
    here = Path(session).parent if session.endswith(".ipynb") else notebooks_dir()
    return quote(Path(os.path.relpath(path, here.absolute())).as_posix())


def _shown(path: Path) -> str:
    """A path as short as it can be: from the project's root where it lies inside."""
    top = notebooks_dir().parent
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else str(path)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


# ------------------------------------------------------------------ the widgets

_SCRIPT = r"""
const NS = "http://www.w3.org/2000/svg";
const MARKS = {
  o: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
  s: "M-4.5,-4.5h9v9h-9Z",
  "^": "M0,-6L5.5,4.5H-5.5Z",
  v: "M0,6L5.5,-4.5H-5.5Z",
  D: "M0,-6L6,0L0,6L-6,0Z",
  P: "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
  X: "M-6,-3L-3,-6L0,-3L3,-6L6,-3L3,0L6,3L3,6L0,3L-3,6L-6,3L-3,0Z",
  "*": "M0,-7L1.7,-2.2H6.8L2.7,0.9L4.2,5.8L0,2.8L-4.2,5.8L-2.7,0.9L-6.8,-2.2H-1.7Z",
};
const LEFT = 78, RIGHT = 22, TOP = 12, BOTTOM = 50, HEIGHT = 390, NEAR = 22;

function add(parent, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function block(parent, name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

// black is unseen on a dark theme: there the text's colour stands for it
function paint(colour) {
  const dark = { "#000000": "var(--run-text)", "#555555": "var(--run-soft)" };
  return dark[colour] || colour;
}

function scales(chart, width) {
  const { x, y } = chart;
  const f = y.log ? Math.log : (v) => v;
  const wide = width - LEFT - RIGHT, tall = HEIGHT - TOP - BOTTOM;
  return {
    x: (v) => LEFT + (wide * (v - x.low)) / (x.high - x.low),
    y: (v) => TOP + tall * (1 - (f(v) - f(y.low)) / (f(y.high) - f(y.low))),
  };
}

function drawAxes(svg, chart, at, width) {
  const end = HEIGHT - BOTTOM;
  for (const [value, text] of chart.y.ticks) {
    const y = at.y(value);
    add(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: "grid" });
    add(svg, "text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, text);
  }
  for (const [value, text] of chart.x.ticks) {
    add(svg, "line", { x1: at.x(value), x2: at.x(value), y1: end, y2: end + 5, class: "axis" });
    add(svg, "text", { x: at.x(value), y: end + 19, "text-anchor": "middle" }, text);
  }
  add(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: end, y2: end, class: "axis" });
  if (chart.x.divider !== null) {
    const x = at.x(chart.x.divider);
    add(svg, "line", { x1: x, x2: x, y1: TOP, y2: end, class: "axis" });
  }
  const middle = (LEFT + width - RIGHT) / 2;
  add(svg, "text", { x: middle, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x.label);
  const turn = `translate(16,${(TOP + end) / 2}) rotate(-90)`;
  const label = chart.y.label + (chart.y.log ? " (log scale)" : "");
  add(svg, "text", { transform: turn, "text-anchor": "middle" }, label);
  if (chart.reference.text) {
    const y = at.y(chart.reference.y);
    add(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: "reference" });
    add(svg, "text", { x: width - RIGHT, y: y - 5, "text-anchor": "end" }, chart.reference.text);
  }
}

function drawSeries(svg, series, at, points) {
  const colour = paint(series.colour);
  const line = series.line.map(([x, y]) => `${at.x(x)},${at.y(y)}`).join(" ");
  add(svg, "polyline", {
    points: line, fill: "none", style: `stroke:${colour}`, "stroke-width": 1.6,
    "stroke-dasharray": series.dash.join(" "),
  });
  for (const [x, dx, low, high] of series.ranges) {
    add(svg, "line", {
      x1: at.x(x) + dx, x2: at.x(x) + dx, y1: at.y(low), y2: at.y(high),
      style: `stroke:${colour}`, class: "range",
    });
  }
  for (const point of series.points) {
    const x = at.x(point.x) + point.dx, y = at.y(point.y);
    if (point.high > point.low) {
      const whisker = `M${x - 4},${at.y(point.high)}h8m-4,0V${at.y(point.low)}m-4,0h8`;
      add(svg, "path", { d: whisker, style: `stroke:${colour}`, class: "whisker" });
    }
    points.push({ ...point, series: series.label, left: x, top: y, colour, mark: series.marker });
  }
}

function drawPoint(svg, point) {
  const group = add(svg, "g", {
    transform: `translate(${point.left},${point.top})`, class: "point", role: "button",
    tabindex: -1, "aria-label": point.name, "aria-pressed": "false", "data-key": point.key,
  });
  add(group, "circle", { r: 11, class: "ring" });
  add(group, "path", { d: MARKS[point.mark], style: `fill:${point.colour}`, class: "mark" });
  return group;
}

function drawLegend(legend, chart) {
  legend.replaceChildren();
  for (const series of chart.series) {
    const entry = block(legend, "span", "entry");
    const svg = add(entry, "svg", { width: 30, height: 16, "aria-hidden": "true" });
    const colour = paint(series.colour);
    if (series.line.length)
      add(svg, "line", {
        x1: 0, x2: 30, y1: 8, y2: 8, style: `stroke:${colour}`, "stroke-width": 1.6,
        "stroke-dasharray": series.dash.join(" "),
      });
    const mark = { d: MARKS[series.marker], transform: "translate(15,8)", class: "mark" };
    add(svg, "path", { ...mark, style: `fill:${colour}` });
    block(entry, "span", "", series.label);
  }
}

function closest(points, distance) {
  let best = null, least = Infinity;
  for (const point of points) {
    const d = distance(point);
    if (d < least) [best, least] = [point, d];
  }
  return [best, least];
}

// left and right: along a series; up and down: the next point of another series
function step(points, from, key) {
  if (key === "Home" || key === "End") return points[key === "Home" ? 0 : points.length - 1];
  const [side, sign] = { ArrowLeft: ["left", -1], ArrowRight: ["left", 1],
    ArrowUp: ["top", -1], ArrowDown: ["top", 1] }[key];
  const along = side === "left";
  const fits = points.filter((p) => (p.series === from.series) === along &&
    (p[side] - from[side]) * sign > 0.01);
  const [best] = closest(fits, (p) => along ? Math.abs(p.left - from.left)
    : 5 * Math.abs(p.left - from.left) + Math.abs(p.top - from.top));
  return best || from;
}

function render({ model, el }) {
  const root = block(el, "div", "run-chart");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // Enter and arrows are ours here
  const legend = block(root, "div", "legend");
  const frame = block(root, "div", "frame");
  const tip = block(frame, "div", "tip");
  tip.setAttribute("aria-hidden", "true");
  const help = "Click a point, or press Tab until one has the focus: arrow keys move, Enter opens.";
  block(root, "div", "help", help);
  let points = [], nodes = {}, svg = null, current = "", drawnWidth = 0;

  function aim(point) {
    tip.style.display = point ? "block" : "none";
    for (const p of points) nodes[p.key].classList.toggle("aimed", p === point);
    if (!point) return;
    tip.textContent = point.name;
    const right = point.left > drawnWidth / 2;
    tip.style.left = right ? "auto" : `${point.left + 14}px`;
    tip.style.right = right ? `${frame.clientWidth - point.left + 14}px` : "auto";
    tip.style.top = `${Math.max(0, point.top - 34)}px`;
  }
  function mark() {
    const selected = model.get("selected");
    for (const p of points) nodes[p.key].setAttribute("aria-pressed", String(p.key === selected));
  }
  function rove(point) {
    current = point ? point.key : "";
    for (const p of points) nodes[p.key].setAttribute("tabindex", p === point ? 0 : -1);
  }
  function select(point) {
    rove(point);
    model.set("selected", point.key);
    model.save_changes();
  }
  function pointed(event) {
    const box = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const [point, distance] = closest(points, (p) => Math.hypot(p.left - x, p.top - y));
    return distance < NEAR ? point : null;
  }
  function named(target) {
    const group = target.closest && target.closest(".point");
    return group && points.find((p) => p.key === group.dataset.key);
  }
  function onKey(event) {
    const point = named(event.target);
    if (!point || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") select(point);
    else if (event.key === "Escape") aim(null);
    else if (/^(Arrow|Home|End)/.test(event.key)) {
      const next = step(points, point, event.key);
      rove(next);
      nodes[next.key].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
  function draw() {
    const chart = model.get("chart");
    const hadFocus = svg && svg.contains(document.activeElement);
    drawnWidth = Math.max(300, Math.min(frame.clientWidth || 720, 860));
    if (svg) svg.remove();
    const name = { role: "group", "aria-label": chart.title };
    svg = add(frame, "svg", { width: drawnWidth, height: HEIGHT, ...name });
    const at = scales(chart, drawnWidth);
    [points, nodes] = [[], {}];
    drawLegend(legend, chart);
    drawAxes(svg, chart, at, drawnWidth);
    for (const series of chart.series) drawSeries(svg, series, at, points);
    for (const point of points) nodes[point.key] = drawPoint(svg, point);
    if (!points.length) {
      const place = { x: drawnWidth / 2, y: HEIGHT / 2, "text-anchor": "middle" };
      add(svg, "text", place, "No runs to show: choose a method, or other targets.");
    }
    const known = (key) => points.find((p) => p.key === key);
    rove(known(current) || known(model.get("selected")) || points[0]);
    if (hadFocus && current) nodes[current].focus();
    mark();
    aim(null);
    svg.addEventListener("pointermove", (event) => aim(pointed(event)));
    svg.addEventListener("pointerleave", () => aim(null));
    svg.addEventListener("click", (event) => {
      // a screen reader's click has no place: it is the point's own
      const point = event.detail === 0 ? named(event.target) : pointed(event);
      if (point) select(point);
    });
    svg.addEventListener("focusin", (event) => {
      const point = named(event.target);
      if (point && event.target.matches(":focus-visible")) aim(point);
    });
    svg.addEventListener("focusout", () => aim(null));
    svg.addEventListener("keydown", onKey);
  }
  const observer = new ResizeObserver(() => {
    const width = Math.max(300, Math.min(frame.clientWidth || 720, 860));
    if (width !== drawnWidth) draw();
  });
  draw();
  observer.observe(frame);
  model.on("change:chart", draw);
  model.on("change:selected", mark);
  return () => observer.disconnect();
}
export default { render };
"""

_STYLE = """
.run-chart {
  --run-text: var(--jp-content-font-color0, CanvasText);
  --run-soft: var(--jp-content-font-color2, GrayText);
  --run-ground: var(--jp-layout-color0, Canvas);
  --run-line: var(--jp-border-color2, #dddddd);
  --run-focus: var(--jp-brand-color1, #1976d2);
  color: var(--run-text); max-width: 880px; font-size: 13px;
  font-family: var(--jp-ui-font-family, system-ui, sans-serif);
}
.run-chart .frame { position: relative; }
.run-chart svg { display: block; overflow: visible; }
.run-chart text { fill: var(--run-text); font-size: 12px; }
.run-chart .grid { stroke: var(--run-line); stroke-width: 1; }
.run-chart .axis { stroke: var(--run-soft); stroke-width: 1; }
.run-chart .reference { stroke: var(--run-soft); stroke-width: 1.3; stroke-dasharray: 4 3; }
.run-chart .range { stroke-width: 6; opacity: 0.35; stroke-linecap: round; }
.run-chart .whisker { fill: none; stroke-width: 1.3; }
.run-chart .mark { stroke: var(--run-text); stroke-width: 0.8; }
.run-chart .point { cursor: pointer; outline: none; }
.run-chart .ring { fill: transparent; stroke: none; }
.run-chart .aimed .ring { stroke: var(--run-soft); stroke-width: 1.5; }
.run-chart .point[aria-pressed="true"] .ring { stroke: var(--run-text); stroke-width: 2; }
.run-chart .point:focus-visible .ring { stroke: var(--run-focus); stroke-width: 3; }
.run-chart .legend { display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 4px 0 2px 78px; }
.run-chart .entry { display: inline-flex; align-items: center; gap: 5px; }
.run-chart .help { color: var(--run-soft); padding: 2px 0 6px 78px; }
.run-chart .tip {
  display: none; position: absolute; pointer-events: none; z-index: 2; padding: 3px 8px;
  white-space: nowrap; border-radius: 3px; background: var(--run-text); color: var(--run-ground);
}
"""


class RunChart(anywidget.AnyWidget):
    """A chart of runs (see `chart_of`); `selected` is the key of the point that was chosen."""

    _esm = _SCRIPT
    _css = _STYLE
    chart = traitlets.Dict().tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)


class ResultsExplorer(ipywidgets.VBox):
    """Controls, a chart with a point a run, the list of runs, and the record of the chosen one."""

    def __init__(self, records: Sequence[Record], metric: str, targets: str) -> None:
        self._models: dict[str, list[Run]] = {}
        for name in dict.fromkeys(str(r["parameters"].get("model", "")) for r in records):
            group = [r for r in records if str(r["parameters"].get("model", "")) == name]
            self._models[name] = runs_of(group)
        self._models = {name: runs for name, runs in self._models.items() if runs}
        if not self._models:
            raise RecordError(
                f"no record of {PRUNE_NOTEBOOK} or {ZERO_SHOT_NOTEBOOK} among {len(records)}: "
                "give the records of a plan that prunes, such as full"
            )
        self._busy = False
        self._shown: list[Run] = []
        self.boxes: dict[str, ipywidgets.Checkbox] = {}
        self._make_widgets(metric, targets)
        super().__init__(self._rows())
        self._change_model(check_choice("metric", self._title(metric), metrics_of(self.runs)))

    @property
    def figure(self) -> Figure:
        """The chart as it stands, as a picture."""
        return results_figure(self.chart.chart)

    @property
    def runs(self) -> list[Run]:
        """All runs of the chosen model."""
        return self._models[self.model.value]

    def _make_widgets(self, metric: str, targets: str) -> None:
        """The controls and the places of what they change."""
        self.model = choice(list(self._models), next(iter(self._models)), "model")
        self.metric = choice([metric], metric, "metric", width=WIDTH)
        self.targets = choice(TARGETS, check_choice("targets", targets, TARGETS), "targets")
        self._methods, self._variants = row(), row()
        self._more = ipywidgets.Accordion([self._variants], selected_index=None)
        self.chart = RunChart()
        self.run = choice([(NO_RUN, "")], "", "run", width=WIDTH)
        self.record = ipywidgets.HTML()
        self.link = ipywidgets.Output()
        self.model.observe(lambda _: self._change_model(self.metric.value), names="value")
        self.metric.observe(lambda _: self._refresh(), names="value")
        self.targets.observe(lambda _: self._refresh(), names="value")
        self.run.observe(lambda change: self._choose(change["new"]), names="value")
        self.chart.observe(lambda change: self._clicked(change["new"]), names="selected")

    def _rows(self) -> list[ipywidgets.Widget]:
        """The parts from top to bottom; no choice of models where there is one."""
        many = [self.model] if len(self._models) > 1 else []
        controls = [row(*many, self.metric, self.targets), self._methods, self._more]
        return [*controls, self.chart, self.run, self.link, self.record]

    def _title(self, metric: str) -> str:
        """A metric as it is shown, the pruning notebook's rather than the zero-shot one's."""
        found = reversed(metrics_of(self.runs).items())
        return {name: title for title, (_, name) in found}.get(metric, metric)

    def _change_model(self, wanted: str) -> None:
        """Offer the methods and metrics of the chosen model, the same metric if it has it."""
        metrics = metrics_of(self.runs)
        variants = {run.label: run.variant for run in self.runs}
        self.boxes = {label: self._box(label, not other) for label, other in variants.items()}
        self._methods.children = [b for label, b in self.boxes.items() if not variants[label]]
        self._variants.children = [b for label, b in self.boxes.items() if variants[label]]
        count = len(self._variants.children)
        self._more.set_title(0, f"runs with other options than the defaults ({count})")
        self._more.layout.display = None if count else "none"
        self._busy = True
        self.metric.options = list(metrics)
        self.metric.value = wanted if wanted in metrics else next(iter(metrics))
        self._busy = False
        self._refresh()

    def _box(self, label: str, ticked: bool) -> ipywidgets.Checkbox:
        """A tick box for one label."""
        layout = ipywidgets.Layout(width="auto", margin="0 14px 0 0")
        box = ipywidgets.Checkbox(value=ticked, description=label, indent=False, layout=layout)
        box.observe(lambda _: self._refresh(), names="value")
        return box

    def _refresh(self) -> None:
        """Show the runs that the controls ask for; the chosen one stays if it is among them."""
        if self._busy:
            return
        title = self.metric.value
        notebook, name = metrics_of(self.runs)[title]
        able = [r for r in self.runs if r.record["notebook"] == notebook]
        able = [r for r in able if name in r.record["metrics"]]
        for label, box in self.boxes.items():
            box.disabled = not any(run.label == label for run in able)
        able = [r for r in able if self.boxes[r.label].value]
        self._shown = [r for r in able if self._fits(r.target)]
        kept, self._busy = self.run.value, True
        self.run.options = self._options(name)
        self._busy = False
        self.chart.chart = chart_of(self._shown, name, title)
        self.select(kept if any(run.key == kept for run in self._shown) else "")

    def _fits(self, target: str) -> bool:
        """Whether a target is among those asked for; dense is always there, to compare with."""
        kind = "N:M" if ":" in target else "sparsity"
        return target == "dense" or self.targets.value in ("both", kind)

    def _options(self, metric: str) -> list[tuple[str, str]]:
        """The runs shown, by name and value, for the list."""
        several = len({run.seed for run in self._shown}) > 1
        named = [
            (f"{run_name(r, several)}: {format_number(float(value_of(r.record, metric)))}", r.key)
            for r in self._shown
        ]
        return [(f"{NO_RUN} ({len(named)})", ""), *named]

    def _clicked(self, key: str) -> None:
        """A point was chosen; one of a chart that has changed meanwhile does not count."""
        shown = any(run.key == key for run in self._shown)
        self.select(key if shown or not key else self.run.value)

    def select(self, key: str) -> None:
        """Choose a run by its key, such as "04_prune_model--admm-grad-60"; "" for none.

        Raises RecordError if it is not shown.
        """
        if key and key not in {run.key for run in self._shown}:
            raise RecordError(f"run {key!r} is not shown: tick its method and choose its target")
        self.run.value = key
        self._choose(key)

    def _choose(self, key: str | None) -> None:
        """Show the record of a run, and where its notebook is."""
        if self._busy:
            return
        self.chart.selected = key or ""
        found = [run for run in self._shown if run.key == key]
        self.record.value = record_html(found[0]) if found else ""
        self.link.outputs = _as_output(notebook_links(found[0].record)) if found else ()


def _as_output(text: str) -> tuple[dict[str, Any], ...]:
    """Markdown as an output: JupyterLab makes its links work, which it does not in a widget."""
    data = {"text/markdown": text, "text/plain": text}
    return ({"output_type": "display_data", "data": data, "metadata": {}},)


def results_explorer(
    records: str | Iterable[Record] = "full",
    *,
    source: str = "reference",
    metric: str = "perplexity",
    targets: str = "both",
) -> ResultsExplorer:
    """Choose metric, methods and targets; click a run, or press Enter on it, to see its record.

    Args: records, a plan's name or the records themselves (`read_records`); source, for a plan,
    "reference" (the committed results) or "results" (what was run on this machine); metric, a
    name in the records or as it is shown; targets, "sparsity", "N:M" or "both". Each point is one
    run; lines join means over seeds, wide bars span the seeds, whiskers are one standard error.
    `figure` is the static twin. Raises RecordError without records, BadParameter.
    """
    if isinstance(records, str):
        folders: dict[str, Callable[[str], Path]] = {
            "reference": reference_dir,
            "results": results_dir,
        }
        folder = folders[check_choice("source", source, folders)](records) / "records"
        found = read_records(folder)
        if not found:
            raise RecordError(
                f"no records of plan {records!r} ({source}): run `make reproduce PLAN={records}` "
                'and give source="results", or choose a plan with a committed reference: full, '
                "laptop"
            )
        records = found
    return ResultsExplorer(list(records), metric, targets)
