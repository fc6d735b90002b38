"""Figures of the benchmarks: pure functions of a benchmark's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import model, solver
from helpers.report import DENSE, finish, new_figure, plain_log, style_of, to_png

Result = Mapping[str, Any]
Points = Mapping[str, Mapping[str, float] | None]  # label: summary


def to_figures(record: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG by name, for each benchmark that has a figure."""
    entries = record["benchmarks"]
    return {
        name: to_png(FIGURES[name](entries[name]["result"])) for name in FIGURES if name in entries
    }


def _points(ax: Axes, labels: list[str], found: Points, index: int, name: str) -> None:
    """Medians with whiskers from the smallest to the largest, a line of the axis for each label."""
    look = style_of("", index) | {"linestyle": "", "markersize": 6}
    ax.plot([], [], label=name, **look)
    for label, values in found.items():
        if values is not None:
            middle = values["median"]
            whiskers = [[middle - values["min"]], [values["max"] - middle]]
            ax.errorbar(middle, labels.index(label), xerr=whiskers, capsize=3, **look)


def _finish_ratios(ax: Axes, labels: list[str], target: float, xlabel: str) -> None:
    ax.axvline(target, color=DENSE, linestyle="--", linewidth=1, label=f"target {target:g}")
    ax.set_xscale("log", base=2)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0.9), max(high, 2.1))
    ax.xaxis.set_major_formatter("{x:.3g}")
    ax.set_yticks(range(len(labels)), labels)
    place = {"fontsize": 9, "loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2}
    finish(ax, ylim=(len(labels) - 0.5, -0.5), xlabel=xlabel, legend=place)


def _label(row: Result) -> str:
    where = row["device"]
    if where == "cpu" and row.get("threads"):
        where = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return row["case"] if where == "cpu" else f"{row['case']} ({where})"


def solver_figure(result: Result) -> Figure:
    """Time over the floor for each case, ours and the published path."""
    rows = result["rows"]
    labels = [_label(row) for row in rows]
    figure, ax = new_figure(size=(7.0, 1.6 + 0.3 * len(rows)))
    _points(ax, labels, {_label(row): row["ratio"] for row in rows}, 0, "this package")
    _points(ax, labels, {_label(row): row["published"] for row in rows}, 1, "published path")
    _finish_ratios(ax, labels, solver.TARGET, "seconds over the floor (median, min to max)")
    return figure


def model_figure(result: Result) -> Figure:
    """Above: whole pruning over its floor; below: speed of forward passes by batch."""
    rows = result["rows"]
    labels = [_label(row) for row in rows]
    heights = [1.2 + 0.4 * len(rows), 2.6]
    figure, (above, below) = new_figure(
        rows=2, size=(7.0, sum(heights) + 0.4), height_ratios=heights
    )
    kinds = {"ratio": "whole model, over the floor",
             "without grams and gate": "the same without grams and gate",
             "published": "published path over this package"}  # fmt: skip
    for index, (key, name) in enumerate(kinds.items()):
        _points(above, labels, {_label(row): row[key] for row in rows}, index, name)
    _finish_ratios(above, labels, model.TARGET, "ratio of seconds (median, min to max)")
    for index, label in enumerate(labels):
        found = [row for row in result["forward"] if _label(row) == label]
        speeds = [row["tokens a second"]["median"] for row in found]
        look = style_of("", index) | {"label": label}
        below.plot([row["batch"] for row in found], speeds, **look)
    below.set_xscale("log", base=2)
    below.xaxis.set_major_formatter("{x:.3g}")
    finish(below, legend=9, ylim=(0, None), xlabel="batch (sequences)",
           ylabel="tokens a second, forward")  # fmt: skip
    return figure


def growth_figure(result: Result) -> Figure:
    """Each cost relative to its smallest size; thin lines: theory."""
    figure, ax = new_figure(size=(7.0, 5.6))
    for index, curve in enumerate(result["curves"]):
        sizes = [size / curve["sizes"][0] for size in curve["sizes"]]
        best = [found["min"] for found in curve["seconds"]]
        cost = curve["name"].replace("prune_model", "whole model")
        label = f"{cost} by {curve['variable']}: {curve['fitted']:.2f} ({curve['theory']})"
        look = style_of("", index) | {"label": label}
        ax.plot(sizes, [seconds / best[0] for seconds in best], **look)
        theory = [size ** curve["theory"] for size in sizes]
        ax.plot(sizes, theory, color=look["color"], linewidth=0.7, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.3g}")
    place = {"fontsize": 9, "title": "fitted exponent (theory, dotted)", "title_fontsize": 9,
             "loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left"}  # fmt: skip
    finish(ax, log="y", legend=place, xlabel="size / smallest size",
           ylabel="seconds / seconds at the smallest size")  # fmt: skip
    plain_log(ax.yaxis)
    return figure


STORED = ("float16, zstd", "mask + float16", "int8, zstd", "mask + int8")


def use_figure(result: Result) -> Figure:
    """Left, bytes over those of dense float16; then tokens a second over dense products.

    Each against sparsity; what is above the line of the dense model at the right has gained.
    """
    figure, axes = new_figure(3, size=(7.0, 3.4))
    bytes_, *speeds = axes
    sizes = result["sizes"]
    percent = [100 * row["sparsity"] for row in sizes]
    for index, way in enumerate(STORED):
        look = style_of("", index) | {"label": way}
        bytes_.plot(percent, [row["share"][way] for row in sizes], **look)
    found = [row for row in result["speeds"] if "2:4" not in row["products"]]
    kinds = dict.fromkeys(row["products"] for row in found if row["products"] != "dense")
    for ax, what in zip(speeds, ("prefill", "generation"), strict=True):
        dense = {row["sparsity"]: row[what] for row in found if row["products"] == "dense"}
        for index, kind in enumerate(kinds):
            rows = [row for row in found if row["products"] == kind]
            look = style_of("", index) | {"label": "CSR" if kind == "csr" else kind}
            ax.plot([100 * row["sparsity"] for row in rows],
                    [row[what] / dense[row["sparsity"]] for row in rows], **look)  # fmt: skip
    ylabels = ("bytes / dense float16", "prefill / dense float32", "generation / dense float32")
    place = {"fontsize": 8, "loc": "lower left", "bbox_to_anchor": (0, 1)}
    for ax, ylabel in zip(axes, ylabels, strict=True):
        ax.axhline(1, color=DENSE, linestyle="--", linewidth=1)
        legend = place if ax is not speeds[1] else 0
        finish(ax, xlabel="sparsity (%)", ylabel=ylabel, ylim=(0, None), legend=legend)
    return figure


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "solver": solver_figure,
    "model": model_figure,
    "growth": growth_figure,
    "use": use_figure,
}
