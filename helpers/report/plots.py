"""The figures of a plan as pure functions of its records and of the series that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.paths import replace_file
from helpers.report import frame, style
from helpers.report.frame import Record
from helpers.report.pictures import lines_figure
from helpers.report.style import in_words, set_up, style_of

MASK_ONLY = ("magnitude", "wanda")  # methods that refit nothing


# ------------------------------------------------------------------ runs of the pruning notebook


def perplexity_figure(records: Iterable[Record]) -> Figure | None:
    """Perplexity on a log scale against sparsity, a line for each method, with its name at its end;
    bars span the seeds, and a dashed line is the dense model. N:M patterns, and what leaves the
    scale, are in the table.

    Points are means over seeds, as in the table, of the runs of notebook 04, which are of one
    model; None without any. The axis ends above the methods that refit, so that they can be
    distinguished.
    """
    cells = frame.perplexity_cells(records).reset_index()
    if cells.empty:
        return None
    figure, ax = style.new_figure(size=(7.0, 4.4))
    shown = cells[cells["target"].str.endswith(" %")]
    shown = shown.assign(sparsity=shown["target"].str.rstrip(" %").astype(float))
    methods = dict(list(shown.sort_values("sparsity").groupby("label")))
    for position, label in enumerate(sorted(methods, key=frame.row_key)):
        line, look = methods[label], style_of(label, position)
        ax.plot(line["sparsity"], line["mean"], label=in_words(label), **look)
        bars = {"color": look["color"], "alpha": 0.5, "linewidth": 2.5}
        ax.vlines(line["sparsity"], line["min"], line["max"], **bars)
    refitting = cells[~cells["label"].isin(["dense", *MASK_ONLY])]
    top = (cells if refitting.empty else refitting)["max"].max()
    dense = cells.loc[cells["target"] == "dense", "mean"].min()
    if pd.notna(dense):
        look = {"color": style.DENSE, "linestyle": (0, (4, 3)), "linewidth": 1.2}
        ax.axhline(dense, label=f"dense {dense:.1f}", **look)
    set_up(ax, log="y", plain=True, xlabel="weights set to zero (%)",
           ylabel="perplexity (log scale)",
           ylim=(cells["min"].min() / 1.3, 2.5 * top))  # fmt: skip
    _name_ends(ax)
    return figure


def _name_ends(ax: Axes) -> None:
    """The name of each line at its right end, above or below those that it would overlap."""
    (low, high), free = np.log(ax.get_ylim()), 0.0
    for line in sorted(ax.lines, key=lambda line: line.get_ydata()[-1]):
        place = (np.log(line.get_ydata()[-1]) - low) / (high - low)
        name = f"{'↑ ' if place > 1 else ''}{line.get_label()}"  # off the scale
        place = max(min(place, 0.9), free)
        free = place + 0.07
        look = {"color": line.get_color(), "fontsize": 9, "fontweight": "bold", "va": "center"}
        ax.annotate(name, (1.01, place), xycoords="axes fraction", **look)


def layer_error_figure(records: Iterable[Record]) -> Figure | None:
    """Mean relative error of a block's layers on a log scale against depth, a line for each method.

    Takes the unstructured runs at 60 %, or at the least sparsity if there are none, with the
    lowest seed. Methods that saw no calibration text have no errors and are left out.
    """
    runs = frame.prune_frame(records).query("pattern == 'unstructured'")
    runs = runs.dropna(subset="mean_layer_error").sort_values("seed", kind="stable")
    if runs.empty:
        return None
    target = "60 %" if "60 %" in set(runs["target"]) else min(runs["target"], key=frame.column_key)
    curves = {}
    for run in runs[runs["target"] == target].drop_duplicates("label").itertuples():
        layers = pd.DataFrame(run.record["layers"])
        curves[run.label] = layers.groupby("block")["error"].mean()
    curves = pd.DataFrame({label: curves[label] for label in sorted(curves, key=frame.row_key)})
    return lines_figure(curves, xlabel="block (0 is next to the embedding)",
                        ylabel=f"mean relative error of a block at {target}")  # fmt: skip


# ------------------------------------------------------------------ series of 02 and 03


def convergence_figure(series: Mapping[str, Any]) -> Figure:
    """ADMM on a fixed mask, a curve for each ρ, log axes: the relative error of a layer by
    iteration, with other solvers as horizontal lines, and the distance of the weights to the exact
    least-squares optimum.

    Series "convergence" of notebook 02: "iterations" [n], "error" and "distance" {curve: [n]},
    "references" {name: error}, "layer", "sparsity".
    """
    figure, (left, right) = style.new_figure(2, size=(7.0, 4.0))
    for ax, kind in ((left, "error"), (right, "distance")):
        for position, (name, values) in enumerate(series[kind].items()):
            ax.plot(series["iterations"], values, label=name, **style_of(name, position))
    style.draw_references(left, series["references"])
    title = f"{in_words(series['layer'])} at {100 * series['sparsity']:.0f} %"
    set_up(left, title, log="y", plain=True, whole=10, xlabel="iteration",
           ylabel=style.RELATIVE_ERROR)  # fmt: skip
    set_up(right, "distance to exact least squares", log="y", whole=10, xlabel="iteration",
           ylabel="‖Ŵ − Ŵ*‖ / ‖Ŵ*‖ (to the optimum)")  # fmt: skip
    with style.house_style():
        place = {"loc": "outside lower center", "ncols": 3}
        figure.legend(*left.get_legend_handles_labels(), **place)
    return figure


def schedule_figure(series: Mapping[str, Any]) -> Figure:
    """Sparsity of the mask at each iteration, a line for each schedule, and the relative error as a
    share of the one-shot mask's, a group of bars for each pattern.

    The share is averaged (geometrically) over layers. Series "schedule" of notebook 03: "sparsity"
    {schedule: [n]}, "ratio" {pattern: {schedule: ratio to one-shot}}.
    """
    figure, (left, right) = style.new_figure(2, size=(7.0, 3.7))
    shares = 100 * pd.DataFrame(series["ratio"])
    width = 0.8 / len(series["sparsity"])
    for position, (name, values) in enumerate(series["sparsity"].items()):
        look = style_of(name, position)
        if position == 0:  # a broad band, so that a curve on top of it does not hide it
            look |= {"marker": "", "linestyle": "-", "linewidth": 7, "alpha": 0.35}
        left.plot(range(1, len(values) + 1), 100 * np.asarray(values), label=name, **look)
        places = np.arange(len(shares.columns)) + (position - (len(shares) - 1) / 2) * width
        bars = right.bar(places, shares.loc[name], width * 0.95, color=look["color"])
        right.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    set_up(left, "the mask grows", whole=10, legend={"loc": "lower right"}, xlabel="iteration",
           ylabel="sparsity of the mask (%)", ylim=(0, None))  # fmt: skip
    right.set_xticks(range(len(shares.columns)), list(shares.columns))
    set_up(right, "and the error falls", ylabel="relative error (% of one-shot's)")
    return figure


# ------------------------------------------------------------------ all figures of a plan

# the first paragraph of a function's docstring is the figure's alternative text
FIGURES: dict[str, Callable[[Any], Figure | None]] = {
    "perplexity": perplexity_figure,
    "layer_error": layer_error_figure,
    "convergence": convergence_figure,
    "schedule": schedule_figure,
}
OF_SERIES = ("convergence", "schedule")  # drawn from the series of the same name


def figures(records: Iterable[Record]) -> dict[str, Figure]:
    """Every figure that the records allow, by file name without its ending.

    Where there are several models, each has its own, with the model in their names.
    """
    models, drawn = frame.by_model(records), {}
    for model, runs in models.items():
        end = f"_{model.rsplit('/', 1)[-1].lower()}" if len(models) > 1 else ""
        for name, draw in FIGURES.items():
            shown = frame.series_of(runs, name) if name in OF_SERIES else runs
            if shown and (figure := draw(shown)):
                drawn[name + end] = figure
    return drawn


def figure_alt(name: str) -> str:
    """The alternative text of a figure by its name in `figures`; "" for one that is not known."""
    known = (frame.caption(draw) for kind, draw in FIGURES.items() if name.startswith(kind))
    return next(known, "")


def write_figures(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw every figure that the records allow into `folder`, as PNG (150 dpi).

    Returns the paths written. Raises FileError when the folder cannot be written.
    """
    return [
        replace_file(Path(folder) / f"{name}.png", style.to_png(figure))
        for name, figure in figures(records).items()
    ]
