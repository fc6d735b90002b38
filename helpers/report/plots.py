"""The figures of a plan as pure functions of its records and of the series that they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.paths import replace_file
from helpers.report import frame, style
from helpers.report.beyond import beyond_figure
from helpers.report.frame import Record
from helpers.report.pictures import errors_by_block
from helpers.report.study_plots import race_figure
from helpers.report.style import in_words, set_up, style_of
from helpers.report.tables import chances, zero_shot_table

# a method of the user's own in the perplexity figure
OWN_LOOK = {"marker": "*", "markersize": 15, "color": "black", "markerfacecolor": "white",
            "zorder": 5}  # fmt: skip
MASK_ONLY = ("magnitude", "wanda")  # methods that refit nothing
Cells = Mapping[str, tuple[dict[str, Any], pd.DataFrame]]  # by label: its look, cells by target


# ------------------------------------------------------------------ the story in one picture


def summary_figure(records: Sequence[Record]) -> Figure | None:
    """The paper's three steps: the error of one layer falls to its optimum while ADMM refits it on
    a fixed mask; a mask that grows leaves less error than one chosen at once; perplexity on a log
    scale against sparsity, a line for each method.

    From a record of notebook 02, one of 03 and the plain runs of 04; None if one is missing.
    """
    solved, grown = (frame.series_of(records, name) for name in ("convergence", "schedule"))
    table, dense = _perplexities(frame.prune_runs(records))
    if solved is None or grown is None or not table:
        return None
    figure, (left, right, story) = style.new_figure(
        "AB;CC", size=(7.0, 6.0), height_ratios=[1, 1.2]
    )
    # ADMM on a fixed mask, from no update to the optimum
    errors = solved["error"].get("ρ = 1") or next(iter(solved["error"].values()))
    before = max(solved["references"].values())
    steps = [0, *solved["iterations"]]
    left.plot(steps, [before, *errors], color=style.ADMM[0], linewidth=2.2, zorder=3, label="ADMM")
    lines = {name.partition(",")[0]: value for name, value in solved["references"].items()}
    style.draw_references(left, lines)
    set_up(left, whole=5, xlabel="iteration", ylabel="relative error of the layer",
           legend={"fontsize": 8.5}, xlim=(0, steps[-1]), ylim=(0, 2.2 * before))  # fmt: skip
    # the error of the gradual mask as a share of the one-shot mask's
    sparsity = grown["sparsity"]["one-shot"][-1]
    names = [frame.target_name(pattern, sparsity) for pattern in grown["ratio"]]
    shares = [100 * ratio["paper"] for ratio in grown["ratio"].values()]
    bars = right.bar(names, shares, color=style.GRADUAL[0], width=0.6)
    right.bar_label(bars, fmt="%.0f %%", label_type="center", color="white", fontsize=9)
    right.axhline(100, color=style.ONE_SHOT[0], linestyle="--", label="mask chosen once")
    set_up(right, ylabel="error (% of one-shot's)", ylim=(0, 130), legend=True)
    _draw_methods(story, table, dense)
    _name_ends(story)
    layer = in_words(solved["layer"])
    look = {"xycoords": "axes fraction", "fontsize": 9, "color": style.DENSE}
    for ax, title, text in (
        (left, "1  Refit the weights that stay", f"{layer} at {100 * solved['sparsity']:.0f} %"),
        (right, "2  Let the mask grow", "while refitting; layers of one block"),
        (story, "3  Prune the whole model", "block by block; a bar is the range over seeds"),
    ):
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=21)
        style.offset_text(ax, text, (0, 1), (0, 6), **look)
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


# ------------------------------------------------------------------ runs of the pruning notebook


def _perplexities(records: Iterable[Record], own: str = "") -> tuple[Cells, float | None]:
    """The cells of pruned models, and the dense perplexity."""
    cells = frame.perplexity_cells(records)
    is_dense = cells.index.get_level_values("target") == "dense"
    dense, pruned = cells[is_dense]["mean"], cells[~is_dense]
    table = {}
    for position, label in enumerate(sorted(pruned.index.unique("label"), key=frame.row_key)):
        is_own = label.partition(" (")[0] == own  # with whatever options
        look = style_of(label, position) | (OWN_LOOK if is_own else {})
        table[label] = (look, pruned.loc[label])
    return table, None if dense.empty else dense.iloc[0]


def _draw_methods(
    ax: Axes, table: Cells, dense: float | None, patterns: Sequence[str] = ()
) -> None:
    """Perplexity by sparsity, a line for each method, or a point for each at every pattern.

    The axis, a log one, ends above the methods that refit, so that they can be distinguished.
    """
    for label, (look, cells) in table.items():
        cells = cells[cells.index.isin(patterns) if patterns else cells.index.str.endswith(" %")]
        if cells.empty:
            continue
        if patterns:
            places, look = cells.index.map(patterns.index), look | {"linestyle": "none"}
        else:
            places = cells.index.str.rstrip(" %").astype(float)
        cells = cells.set_index(places).sort_index()
        ax.plot(cells.index, cells["mean"], label=in_words(label), **look)
        ax.vlines(cells.index, cells["min"], cells["max"], color=look["color"], alpha=0.5,
                  linewidth=2.5)  # fmt: skip
    most = {label: cells["max"].max() for label, (_, cells) in table.items()}
    refitting = [value for label, value in most.items() if label not in MASK_ONLY]
    top = 2.5 * max(refitting or most.values(), default=dense or 1)
    set_up(ax, log="y", plain=True, ylim=(None, top))
    if dense is not None:
        style.draw_dense(ax, dense)
    if patterns:
        ax.set(xlabel="pattern", xlim=(-0.5, len(patterns) - 0.5))
        ax.set_xticks(range(len(patterns)), patterns)
    else:
        ax.set(xlabel="weights set to zero (%)", ylabel="perplexity (log scale)")


def perplexity_figure(records: Iterable[Record], own: str = "") -> Figure | None:
    """Perplexity on a log scale, on the left against sparsity, a line for each method, on the
    right for N:M patterns; whiskers span the seeds, a dashed line is the dense model, and what
    leaves the scale is in the table.

    Points are means over seeds, as in the table, of the runs of notebook 04, which are of one
    model; None without any, and no right half without patterns. The method `own` stands out.
    """
    runs = frame.prune_runs(records)
    if not runs:
        return None
    table, dense = _perplexities(runs, own)
    targets = {target for _, cells in table.values() for target in cells.index}
    patterns = sorted((target for target in targets if ":" in target), key=frame.column_key)
    ratios = [3, 0.5 + 0.5 * len(patterns)][: 1 + bool(patterns)]
    figure, ((left, *others),) = style.new_figure(
        len(ratios), size=(7.0, 4.4), sharey=True, width_ratios=ratios, squeeze=False
    )
    _draw_methods(left, table, dense)
    for right in others:
        _draw_methods(right, table, dense, patterns)
    set_up(left, legend=True)
    return figure


def layer_error_figure(records: Iterable[Record]) -> Figure | None:
    """Mean relative error of a block's layers on a log scale against depth, a line for each method.

    Takes the unstructured runs at 60 %, or at the least sparsity if there are none, with the
    lowest seed. Methods that saw no calibration text have no errors and are left out.
    """
    curves: dict[float, dict[str, dict[int, float]]] = defaultdict(dict)  # by sparsity and label
    for run in frame.prune_frame(records).sort_values("seed", kind="stable").itertuples():
        layers = pd.DataFrame(run.record.get("layers"), columns=["block", "error"]).dropna()
        if run.pattern == "unstructured" and len(layers):
            errors = layers.groupby("block")["error"].mean().to_dict()
            curves[run.record["parameters"]["sparsity"]].setdefault(run.label, errors)
    if not curves:
        return None
    sparsity = 0.6 if 0.6 in curves else min(curves)
    shown = sorted(curves[sparsity].items(), key=lambda curve: frame.row_key(curve[0]))
    return errors_by_block(dict(shown), f"mean relative error of a block at {100 * sparsity:.0f} %")


# ------------------------------------------------------------------ zero-shot


def zero_shot_figure(records: Iterable[Record]) -> Figure | None:
    """Zero-shot accuracy on each task and their mean, a bar a model, ± one standard error; a line
    across the bars of a task is what guessing scores."""
    table = zero_shot_table(records)
    if table is None:
        return None
    accuracy, errors = table
    figure, ax = style.new_figure(size=(7.0, 4.2))
    width, middles = 0.8 / len(accuracy), np.arange(len(accuracy.columns))
    for position, label in enumerate(accuracy.index):
        look = {"color": style_of(label.partition(",")[0], position)["color"]}
        places = middles + (position - (len(accuracy) - 1) / 2) * width
        ax.bar(places, accuracy.loc[label], width * 0.92, yerr=errors.loc[label],
               label=in_words(label), **look)  # fmt: skip
    look = {"color": "black", "linestyle": "--", "linewidth": 1.5, "label": "chance"}
    ax.hlines(chances(accuracy), middles - 0.44, middles + 0.44, **look)
    ax.set_xticks(middles, accuracy.columns, rotation=30, ha="right", rotation_mode="anchor")
    place = {"ncols": 3, "loc": "lower center", "bbox_to_anchor": (0.5, 1)}
    set_up(ax, legend=place, ylabel="accuracy, ± one standard error")
    return figure


# ------------------------------------------------------------------ series of 01, 02 and 03


def spectrum_figure(series: Mapping[str, Any]) -> Figure:
    """Eigenvalues of XᵀX as a share of the largest, and the norm of each input as a multiple of the
    median, largest first, log axes, a line for each group of layers.

    Series "spectrum" of notebook 01: "eigenvalues" and "norms", each {layer: [largest first]}.
    """
    figure, (left, right) = style.new_figure(2, size=(7.0, 3.7))
    for position, (name, values) in enumerate(series["eigenvalues"].items()):
        norms = series["norms"][name]
        median = sorted(norms)[len(norms) // 2]
        for ax, sizes, unit in ((left, values, values[0]), (right, norms, median)):
            look = style_of(name.split()[0], position) | {"marker": "", "label": name}
            ax.plot(np.linspace(0, 100, len(sizes)), style.above_zero(sizes, unit), **look)
    set_up(left, "spectrum of XᵀX", log="y", xlabel="eigenvalue, largest first (%)",
           ylabel="eigenvalue / largest")  # fmt: skip
    set_up(right, "norm of each input", log="y", legend=True, xlabel="input, largest first (%)",
           ylabel="input norm / median")  # fmt: skip
    return figure


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
    style.legend_below(figure, left, columns=3)
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
        look = {"color": look["color"], "hatch": style.HATCHES[position % 4]}
        bars = right.bar(places, shares.loc[name], width * 0.95, edgecolor="white", **look)
        right.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    set_up(left, "the mask grows", whole=10, legend={"loc": "lower right"}, xlabel="iteration",
           ylabel="sparsity of the mask (%)", ylim=(0, None))  # fmt: skip
    right.set_xticks(range(len(shares.columns)), list(shares.columns))
    set_up(right, "and the error falls", ylabel="relative error (% of one-shot's)")
    return figure


# ------------------------------------------------------------------ all figures of a plan

# the first paragraph of a function's docstring is the figure's alternative text
FIGURES: dict[str, Callable[[list[Record]], Figure | None]] = {
    "summary": summary_figure,
    "perplexity": perplexity_figure,
    "layer_error": layer_error_figure,
    "weight_update_median": race_figure,
    "zero_shot": zero_shot_figure,
    "beyond": beyond_figure,
}
# drawn from the series of the same name
SERIES_FIGURES = {
    "spectrum": spectrum_figure,
    "convergence": convergence_figure,
    "schedule": schedule_figure,
}


def figures(records: Iterable[Record]) -> dict[str, Figure]:
    """Every figure that the records allow, by file name without its ending.

    Where there are several models, each has its own, with the model in their names.
    """
    models, drawn = frame.by_model(records), {}
    for model, runs in models.items():
        end = f"_{model.rsplit('/', 1)[-1].lower()}" if len(models) > 1 else ""
        for name, draw in FIGURES.items():
            drawn[name + end] = draw(runs)
        for name, draw in SERIES_FIGURES.items():
            if series := frame.series_of(runs, name):
                drawn[name + end] = draw(series)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def figure_alt(name: str) -> str:
    """The alternative text of a figure by its name in `figures`; "" for one that is not known."""
    known = FIGURES | SERIES_FIGURES
    kinds = [kind for kind in known if name == kind or name.startswith(f"{kind}_")]
    return frame.caption(known[max(kinds, key=len)]) if kinds else ""


def write_figures(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw every figure that the records allow into `folder`, as PNG (150 dpi) and SVG.

    Returns the paths written. Raises FileError when the folder cannot be written.
    """
    return [
        replace_file(Path(folder) / f"{name}.{kind}", render(figure))
        for name, figure in figures(records).items()
        for kind, render in (("png", style.to_png), ("svg", style.to_svg))
    ]
