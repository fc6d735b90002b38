"""The figures of a plan as pure functions of its records and of the series that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.paths import replace_file
from helpers.report import frame, style
from helpers.report.frame import Record, in_words
from helpers.report.style import set_up, style_of

NEAR = (
    1.01  # an error at most so many times that of the optimum counts as having arrived
)
TIE = 1.03  # a perplexity at most so many times the lowest is not told from it: seeds move both
LABELS = {
    "one-shot": "one-shot mask",
    "released": "released code",
    "paper": "gradual mask (paper)",
}
ONCE = {
    "markevery": [0],
    "markersize": 11,
    "linewidth": 5,
    "linestyle": "-",
}  # below the others


def perplexity_figure(records: Iterable[Record]) -> Figure | None:
    """Perplexity on a log scale against sparsity, a line for each method, with its name at its end;
    a dashed line is the dense model. N:M patterns, and what leaves the scale, are in the table.

    Points are means over seeds, as in the table, of the runs of notebook 04, which are of one
    model; None without any. The axis ends above the methods that refit, so that they can be
    distinguished. The title names the method that is lowest everywhere, or those that nearly are.
    """
    cells = frame.perplexity_cells(records)["mean"].rename("perplexity").reset_index()
    if cells.empty:
        return None
    figure, ax = style.new_figure(size=(7.0, 4.4))
    shown = cells[cells["target"].str.endswith(" %")]
    shown = shown.assign(sparsity=shown["target"].str.rstrip(" %").astype(float))
    methods = dict(list(shown.sort_values("sparsity").groupby("label")))
    for position, label in enumerate(sorted(methods, key=frame.row_key)):
        line, look = methods[label], style_of(label, position)
        ax.plot(line["sparsity"], line["perplexity"], label=in_words(label), **look)
    refitting = cells[~cells["label"].isin(["dense", "magnitude", "wanda"])]
    top = (cells if refitting.empty else refitting)["perplexity"].max()
    dense = cells.loc[cells["target"] == "dense", "perplexity"].min()
    if pd.notna(dense):
        ax.axhline(
            dense, label=f"Dense {dense:.1f}", **style_of("dense") | {"marker": ""}
        )
    title = "Perplexity of the model after pruning"
    best = shown.groupby("target")["perplexity"].transform("min")
    near = shown[shown["perplexity"] <= TIE * best].groupby("target")["label"]
    lowest = {tuple(sorted(labels, key=frame.row_key)) for _, labels in near}
    if len(lowest) == 1 and len(names := lowest.pop()) < len(methods):
        names = f"{' and '.join(map(in_words, names))} {'has' if len(names) == 1 else 'have'}"
        title = f"{names} the lowest perplexity at every sparsity"
    set_up(ax, title, log="y", plain=True, xlabel="weights set to zero (%)",
           ylabel="perplexity (log scale, lower is better)", xticks=shown["sparsity"].unique(),
           ylim=(cells["perplexity"].min() / 1.3, 2.5 * top))  # fmt: skip
    style.name_ends(ax)
    return figure


# ------------------------------------------------------------------ series of 02 and 03


def convergence_figure(series: Mapping[str, Any]) -> Figure:
    """The relative error of a layer by iteration of ADMM on a fixed mask, log scale, a curve for
    each ρ with its name at its end; other solvers are horizontal lines.

    Series "convergence" of notebook 02: "iterations" [n], "error" {curve: [n]}, "references" {name:
    error}, "layer", "sparsity". ρ = 1, which the paper recommends, is named so; the title and a
    ring say when it has arrived at the exact optimum.
    """
    figure, ax = style.new_figure(size=(7.0, 4.0))
    for position, (name, values) in enumerate(series["error"].items()):
        label = f"ADMM, {name}{' (recommended)' if name == 'ρ = 1' else ''}"
        ax.plot(series["iterations"], values, label=label, **style_of(name, position))
    style.draw_references(ax, series["references"])
    optimum = next(
        (e for n, e in series["references"].items() if n.startswith("exact")), 0.0
    )
    steps = zip(series["iterations"], series["error"].get("ρ = 1", []), strict=False)
    arrived = next((point for point in steps if point[1] <= NEAR * optimum), None)
    title = "ADMM on one fixed mask, for several ρ"
    if arrived:
        title = f"ADMM (ρ = 1) is within 1 % of the optimum's error after {arrived[0]} iterations"
        ax.plot(*arrived, "o", **style.RING)
    where = f"{in_words(series['layer'])}, {100 * series['sparsity']:.0f} % set to zero"
    set_up(ax, title, log="y", plain=True, whole=10, xlabel=f"iteration ({where})",
           ylabel=style.RELATIVE_ERROR)  # fmt: skip
    style.name_ends(ax)
    return figure


def schedule_figure(series: Mapping[str, Any]) -> Figure:
    """Left, the sparsity of an unstructured mask at each iteration, a line for each schedule, with
    a marker where the mask is chosen; right, the error as a share of the one-shot mask's, a group
    of bars for each pattern.

    The share is averaged (geometrically) over layers. Series "schedule" of notebook 03: "sparsity"
    {schedule: [n]}, "ratio" {pattern: {schedule: ratio to one-shot}}, "mask_steps". The released
    code has its full sparsity from the first step on, so its markers lie on the one-shot line.
    """
    figure, (left, right) = style.new_figure(2, size=(8.4, 3.7))
    steps = series["mask_steps"]
    for name, values in series["sparsity"].items():
        look = style_of(name) | (
            ONCE if name == "one-shot" else {"markevery": slice(steps)}
        )
        left.plot(
            range(1, len(values) + 1),
            100 * np.asarray(values),
            label=LABELS[name],
            **look,
        )
    left.axvspan(0.5, steps + 0.5, color="#EEEEEE", zorder=0)
    shares = (100 * pd.DataFrame(series["ratio"])).drop(index="one-shot")
    width = 0.8 / len(shares)
    for position, (name, row) in enumerate(shares.iterrows()):
        places = np.arange(len(row)) + (position - (len(shares) - 1) / 2) * width
        bars = right.bar(places, row, width * 0.95, color=style_of(name)["color"])
        right.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    right.axhline(100, **style_of("one-shot") | ONCE | {"marker": ""})
    right.set_xticks(range(len(shares.columns)), list(shares.columns))
    set_up(left, "sparsity (%), marked where the mask is chosen", whole=10, ylim=(0, 100),
           xlabel=f"iteration of ADMM (grey: {steps} mask steps)")  # fmt: skip
    set_up(right, "error of a layer (one-shot mask: 100 %)", ylim=(0, 115))
    style.name_ends(left)
    low, high = shares.min(axis=None), shares.max(axis=None)
    title = f"A mask chosen in steps leaves {low:.0f} to {high:.0f} % of a one-shot mask's error"
    figure.suptitle(title, fontsize=11)
    return figure


# ------------------------------------------------------------------ all figures of a plan

# the first paragraph of a function's docstring is the figure's alternative text
FIGURES: dict[str, Callable[[Any], Figure | None]] = {
    "perplexity": perplexity_figure,
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
    known = (
        frame.caption(draw) for kind, draw in FIGURES.items() if name.startswith(kind)
    )
    return next(known, "")


def write_figures(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw every figure that the records allow into `folder`, as PNG (150 dpi).

    Returns the paths written. Raises FileError when the folder cannot be written.
    """
    return [
        replace_file(Path(folder) / f"{name}.png", style.to_png(figure))
        for name, figure in figures(records).items()
    ]
