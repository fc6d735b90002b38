"""Figures of the benchmarks: pure functions of a benchmark's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks import model, solver
from helpers.results import COLOURS, DASHES, MARKERS, to_png

Result = Mapping[str, Any]
Points = Mapping[str, Mapping[str, float] | None]  # label: summary


def to_figures(record: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG by name, for each benchmark that has a figure."""
    entries = record["benchmarks"]
    return {
        name: to_png(FIGURES[name](entries[name]["result"])) for name in FIGURES if name in entries
    }


def _axes(columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _points(ax: Axes, labels: list[str], found: Points, index: int, name: str) -> None:
    """Medians with whiskers from the smallest to the largest, a line of the axis for each label."""
    for label, values in found.items():
        if values is not None:
            middle = values["median"]
            whiskers = [[middle - values["min"]], [values["max"] - middle]]
            look = dict(color=COLOURS[index], marker=MARKERS[index], markersize=6, capsize=3)
            ax.errorbar(middle, labels.index(label), xerr=whiskers, linestyle="", **look)
    ax.plot([], [], color=COLOURS[index], marker=MARKERS[index], linestyle="", label=name)


def _finish_ratios(ax: Axes, labels: list[str], target: float, xlabel: str) -> None:
    ax.axvline(target, color="#555555", linestyle="--", linewidth=1, label=f"target {target:g}")
    ax.set_xscale("log", base=2)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0.9), max(high, 2.1))
    _plain(ax.xaxis)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2)


def _plain(axis: Any) -> None:
    """Plain numbers at the main ticks of a log axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _label(row: Result) -> str:
    where = row["device"]
    if where == "cpu" and row.get("threads"):
        where = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return row["case"] if where == "cpu" else f"{row['case']} ({where})"


def solver_figure(result: Result) -> Figure:
    """Time over the floor for each case, ours and the published path."""
    rows = result["rows"]
    labels = [_label(row) for row in rows]
    figure, (ax,) = _axes(1, (7, 1.6 + 0.4 * len(rows)))
    _points(ax, labels, {_label(row): row["ratio"] for row in rows}, 0, "ours")
    _points(ax, labels, {_label(row): row["published"] for row in rows}, 1, "published path")
    _finish_ratios(ax, labels, solver.TARGET, "time / floor (median, min to max)")
    return figure


def model_figure(result: Result) -> Figure:
    """Left: whole pruning over its floor; right: speed of forward passes by batch."""
    rows = result["rows"]
    labels = [_label(row) for row in rows]
    figure, (left, right) = _axes(2, (11, 2.6 + 0.5 * len(rows)))
    kinds = {"ratio": "prune_model / floor", "without grams and gate": "without grams and gate"}
    for index, (key, name) in enumerate(kinds.items()):
        _points(left, labels, {_label(row): row[key] for row in rows}, index, name)
    published = {_label(row): row["published"] for row in rows}
    _points(left, labels, published, 2, "published path / prune_model")
    _finish_ratios(left, labels, model.TARGET, "ratio (median, min to max)")
    for index, label in enumerate(labels):
        found = [row for row in result["forward"] if _label(row) == label]
        look = dict(color=COLOURS[index], marker=MARKERS[index], linestyle=DASHES[index % 4])
        speeds = [row["tokens a second"]["median"] for row in found]
        right.plot([row["batch"] for row in found], speeds, label=label, **look)
    right.set_xscale("log", base=2)
    _plain(right.xaxis)
    right.set_ylim(bottom=0)
    right.set_xlabel("batch (sequences)")
    right.set_ylabel("tokens a second, forward")
    right.legend(frameon=False, fontsize=8)
    return figure


def growth_figure(result: Result) -> Figure:
    """Each cost relative to its smallest size; thin lines: theory."""
    figure, (ax,) = _axes(1, (7, 5))
    for index, curve in enumerate(result["curves"]):
        sizes = [size / curve["sizes"][0] for size in curve["sizes"]]
        best = [found["min"] for found in curve["seconds"]]
        colour = COLOURS[index % len(COLOURS)]
        label = f"{curve['name']} by {curve['variable']}: {curve['fitted']:.2f} ({curve['theory']})"
        marker = MARKERS[index % len(MARKERS)]
        values = [seconds / best[0] for seconds in best]
        ax.plot(sizes, values, color=colour, marker=marker, markersize=5, label=label)
        theory = [size ** curve["theory"] for size in sizes]
        ax.plot(sizes, theory, color=colour, linewidth=0.7, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _plain(ax.xaxis)
    _plain(ax.yaxis)
    ax.set_xlabel("size / smallest size")
    ax.set_ylabel("seconds / seconds at the smallest size")
    ax.legend(frameon=False, fontsize=8, title="fitted exponent (theory, dotted)", title_fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "solver": solver_figure,
    "model": model_figure,
    "growth": growth_figure,
}
