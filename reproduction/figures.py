"""The figures of a plan as pure functions of its records and of the series that they hold."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.explore.names import METHOD_NAMES, display_name, short_layer
from helpers.explore.style import (
    LOOKS,
    OWN,
    RELATIVE_ERROR,
    draw_references,
    draw_ring,
    label_line_ends,
    line_style,
    new_figure,
    set_up_axes,
    to_png,
)
from helpers.paths import replace_file
from reproduction.pipelines import BASE, GUIDED, REPAIRED, pipeline_table
from reproduction.pipelines import perplexity_table as pipeline_perplexities
from reproduction.records import Record
from reproduction.runs import by_model, over_seeds, perplexity_runs, with_series

# an error at most so many times that of the optimum counts as having arrived
NEAR = 1.01
# a perplexity at most so many times the lowest is not told from it: seeds move both
TIE = 1.03
SCHEDULE_LABELS = {
    "one-shot": "one-shot mask",
    "released": "released code",
    "paper": "gradual mask (paper)",
}
ALTERNATIVE_TEXTS = {
    "perplexity": (
        "Perplexity on a log scale against sparsity, a line for each method, with its name at its "
        "end; a dashed line is the dense model. N:M patterns, and what leaves the scale, are in "
        "the table."
    ),
    "convergence": (
        "The relative error of a layer by iteration of ADMM on a fixed mask, log scale, a curve "
        "for each ρ with its name at its end; other solvers are horizontal lines."
    ),
    "schedule": (
        "Left, the sparsity of an unstructured mask at each iteration, a line for each schedule, "
        "with a marker where the mask is chosen; right, the error as a share of the one-shot "
        "mask's, a group of bars for each pattern."
    ),
    "beyond": (
        "Bars of the perplexity after ADMM-Grad, with a guide, and with a repair too, each lower "
        "than the one before; a dashed line is the dense model."
    ),
}
STEPS = {  # of the recipe, by the pipelines that end with them
    "ADMM-Grad": BASE,
    "+ guide": GUIDED,
    "+ guide + repair": REPAIRED,
}


def perplexity_figure(records: Iterable[Record]) -> Figure | None:
    """Perplexity on a log scale against sparsity, a line for each method of notebook 04.

    The records are of one model; None without any. Points are means over seeds, and bars their 95 %
    intervals where there are three or more, as in the table.
    The axis ends above the methods that refit, so that they can be distinguished. The title names
    the method that is lowest everywhere, or those that nearly are. Methods that this package does
    not have, a user's own, are drawn last and strongest.
    """
    means, halves = over_seeds(perplexity_runs(records), "label", "perplexity")
    if means.empty:
        return None
    figure, ax = new_figure(size=(7.0, 4.4))
    lines = means.filter(like=" %").dropna(how="all")
    lines = lines.rename(columns=lambda target: float(target.rstrip(" %")))
    own = [label for label in lines.index if is_own(label)]
    for position, label in enumerate([*lines.index.difference(own, sort=False), *own]):
        line = lines.loc[label].dropna()
        look = line_style(label, position) | (OWN if label in own else {})
        bars = halves.loc[label].reindex([f"{at:g} %" for at in line.index])
        bars = bars.where(bars.values < line.values)  # one that reaches 0 has no log
        ax.errorbar(line.index, line, bars, fmt="none", ecolor=look["color"], capsize=3)
        ax.plot(line.index, line, label=display_name(label), **look)
    refitting = means.drop(index=["dense", "magnitude", "wanda"], errors="ignore")
    top = (means if refitting.empty else refitting).max(axis=None)
    if "dense" in means:
        dense = means["dense"].min()
        look = line_style("dense") | {"marker": ""}
        ax.axhline(dense, label=f"Dense {dense:.1f}", **look)
    set_up_axes(
        ax,
        _perplexity_title(lines),
        log=True,
        xlabel="weights of linear layers set to zero (%)",
        ylabel="perplexity (log scale, lower is better)",
        xticks=lines.columns,
        ylim=(means.min(axis=None) / 1.3, 2.5 * top),
    )
    label_line_ends(ax)
    return figure


def beyond_figure(records: Iterable[Record], target: str = "60 %") -> Figure | None:
    """Perplexity after each step of the recipe of notebook 08, a bar for each, with its interval.

    The records are of one model; None if they lack a step.
    """
    pipelines = pipeline_table(records)
    own = pipelines[pipelines["target"] == target]
    if not set(STEPS.values()) <= set(own["pipeline"]):
        return None
    means, halves = pipeline_perplexities(own, "perplexity")
    values, bars = (each[target].reindex(STEPS.values()) for each in (means, halves))
    figure, ax = new_figure(size=(7.0, 2.4))
    colour = line_style(BASE)["color"]
    drawn = ax.barh(list(STEPS), values, xerr=bars.fillna(0), color=colour, capsize=3)
    ax.bar_label(drawn, fmt="%.1f", padding=4)
    dense = means.loc["dense", target]
    look = {key: line_style("dense")[key] for key in ("color", "linestyle")}
    ax.axvline(dense, **look)
    ax.text(dense + 0.5, -0.65, f"Dense {dense:.1f}", color=look["color"])
    top = (
        f"Perplexity, {target} of the linear layers' weights at zero (lower is better)"
    )
    widest = 1.15 * (values + bars.fillna(0)).max()
    set_up_axes(ax, "", xlabel=top, xlim=(0, widest), ylim=(len(STEPS) - 0.5, -1))
    return figure


def is_own(label: str) -> bool:
    """Whether the method of a row, "my-method" or "my-method, sequences=4", is a user's own."""
    method = re.match(r"[\w-]*", label)[0]
    return method not in {*LOOKS, *METHOD_NAMES}


def _perplexity_title(lines: pd.DataFrame) -> str:
    """Which methods have the lowest perplexity, if they are the same at every sparsity."""
    near = lines <= TIE * lines.min()
    lowest = {tuple(lines.index[near[sparsity]]) for sparsity in lines}
    if len(lowest) == 1:
        (names,) = lowest
        if len(names) < len(lines):
            verb = "has" if len(names) == 1 else "have"
            text = " and ".join(map(display_name, names))
            return f"{text} {verb} the lowest perplexity of these methods at every sparsity"
    return "Perplexity of the model after pruning"


# ------------------------------------------------------------------ series of 02 and 03


def convergence_figure(series: Mapping[str, Any]) -> Figure:
    """The relative error of a layer by iteration of ADMM on a fixed mask, a curve for each ρ.

    Series "convergence" of notebook 02: "iterations" [n], "error" {curve: [n]}, "references" {name:
    error}, "layer", "sparsity". ρ = 1, which the paper recommends, is named so; the title and a
    ring say when it has arrived at the exact optimum.
    """
    figure, ax = new_figure(size=(7.0, 4.0))
    iterations = series["iterations"]
    for position, (name, values) in enumerate(series["error"].items()):
        label = f"ADMM, {name}"
        if name == "ρ = 1":
            label += " (recommended)"
        ax.plot(iterations, values, label=label, **line_style(name, position))
    references = series["references"]
    draw_references(ax, references)
    exact = (error for name, error in references.items() if name.startswith("exact"))
    optimum = next(exact, 0.0)
    title = "ADMM on one fixed mask, for several ρ"
    recommended = series["error"].get("ρ = 1", [])
    for after, error in zip(iterations, recommended, strict=False):
        if error <= NEAR * optimum:
            title = f"ADMM (ρ = 1) is within 1 % of the optimum's error after {after} iterations"
            draw_ring(ax, after, error)
            break
    set_up_axes(
        ax,
        title,
        log=True,
        whole=10,
        xlabel=(
            f"iteration ({short_layer(series['layer'])}, {100 * series['sparsity']:.0f} % set to "
            "zero)"
        ),
        ylabel=RELATIVE_ERROR,
    )
    label_line_ends(ax)
    return figure


def schedule_figure(series: Mapping[str, Any]) -> Figure:
    """The sparsity of a mask at each iteration, and the error of each schedule by pattern.

    Series "schedule" of notebook 03: "sparsity" {schedule: [n]}, "ratio" {pattern: {schedule: ratio
    to one-shot, averaged (geometrically) over layers}}, "mask_steps". The released code has its
    full sparsity from the first step on, so its markers lie on the one-shot line.
    """
    figure, (left, right) = new_figure(2, size=(8.4, 3.7))
    steps = series["mask_steps"]
    for name, values in series["sparsity"].items():
        (line,) = left.plot(
            range(1, len(values) + 1),
            100 * np.asarray(values),
            label=SCHEDULE_LABELS[name],
            markevery=slice(steps),
            **line_style(name),
        )
        if name == "one-shot":  # drawn wide, since others lie on it
            line.set(markevery=[0], markersize=11, linewidth=5, linestyle="-")
    left.axvspan(0.5, steps + 0.5, color="#EEEEEE", zorder=0)
    set_up_axes(
        left,
        "sparsity (%), marked where the mask is chosen",
        whole=10,
        ylim=(0, 100),
        xlabel=f"iteration of ADMM (grey: {steps} mask steps)",
    )
    label_line_ends(left)
    shares = (100 * pd.DataFrame(series["ratio"])).drop(index="one-shot")
    width = 0.8 / len(shares)
    for position, (name, row) in enumerate(shares.iterrows()):
        places = np.arange(len(row)) + (position - (len(shares) - 1) / 2) * width
        bars = right.bar(places, row, width * 0.95, color=line_style(name)["color"])
        right.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    right.axhline(100, color=line_style("one-shot")["color"], linewidth=5)
    right.set_xticks(range(len(shares.columns)), shares.columns)
    set_up_axes(right, "error of a layer (one-shot mask: 100 %)", ylim=(0, 115))
    figure.suptitle(
        f"A mask chosen in steps leaves {shares.min(axis=None):.0f} to {shares.max(axis=None):.0f} "
        "% of a one-shot mask's error",
        fontsize=11,
    )
    return figure


# ------------------------------------------------------------------ all figures of a plan


MODEL_FIGURES = {"perplexity": perplexity_figure, "beyond": beyond_figure}
SERIES_FIGURES = {"convergence": convergence_figure, "schedule": schedule_figure}


def all_figures(records: Iterable[Record]) -> dict[str, Figure]:
    """Every figure that the records allow, by file name without its ending.

    A series is that of the record "default" if it has one, else of the first that has.

    Where there are several models, each has its own, with the model in their names.
    `all_figures(records)["perplexity"].savefig("perplexity.svg")` writes one as a file.
    """
    models = by_model(records)
    figures = {}
    for model, runs in models.items():
        end = f"_{model.rpartition('/')[2].lower()}" if len(models) > 1 else ""
        for name, draw in MODEL_FIGURES.items():
            if figure := draw(runs):
                figures[f"{name}{end}"] = figure
        for name, draw in SERIES_FIGURES.items():
            having = with_series(runs, name)
            if having:
                usual = min(having, key=lambda record: record.get("name") != "default")
                figures[f"{name}{end}"] = draw(usual["series"][name])
    return figures


def figure_alt(name: str) -> str:
    """The alternative text of a figure by its name in `all_figures`; "" for an unknown one."""
    return ALTERNATIVE_TEXTS.get(name.partition("_")[0], "")


def write_figures(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw every figure that the records allow into `folder`, as PNG (150 dpi).

    Returns the paths written. Raises FileError when the folder cannot be written.
    """
    return [
        replace_file(Path(folder) / f"{name}.png", to_png(figure))
        for name, figure in all_figures(records).items()
    ]
