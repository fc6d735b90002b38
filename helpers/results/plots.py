"""The figures of a plan as pure functions of its records (and of the series that a record holds).

`FIGURES` holds every figure of a plan: what it is drawn from, and its alternative text.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from helpers.paths import replace_file
from helpers.results.frame import (
    PRUNE_PARTS,
    USUAL,
    Record,
    by_model,
    column_of,
    prune_frame,
    prune_runs,
    row_key,
    series_of,
    target_name,
)
from helpers.results.pictures import finish_depth
from helpers.results.style import (
    COLOURS,
    DENSE,
    HATCHES,
    RELATIVE_ERROR,
    above_zero,
    draw_references,
    name_line,
    new_figure,
    note,
    offset_text,
    plain_log,
    style_of,
    to_png,
    to_svg,
    whole_numbers,
    widen,
)
from helpers.results.tables import cost_table, variant_table, zero_shot_table

# a method of the reader's own in the perplexity figure
OWN_LOOK = {"marker": "*", "markersize": 15, "color": "black", "markerfacecolor": "gold",
            "zorder": 5}  # fmt: skip
# the solvers that have curves, in the order of legends
RACERS = {"admm": "ADMM", "cg": "CG", "adam": "Adam", "sgd": "SGD"}
ARRIVED = 0.01  # the excess within which a solver counts as being at the optimum
LONG_DASH = {"color": DENSE, "linestyle": (0, (4, 3))}


class Drawing(NamedTuple):
    """A figure of a plan: how it is drawn from records (None if they lack it), and in words."""

    draw: Callable[[list[Record]], Figure | None]
    alt: str


FIGURES: dict[str, Drawing] = {}
PER_MODEL = ("perplexity", "layer_error")


def _figure(name: str, alt: str, *, series: bool = False) -> Callable[[Callable], Callable]:
    """Register a function that draws from all records, or from the series of the same name."""

    def register(draw: Callable) -> Callable:
        def draw_series(records: list[Record]) -> Figure | None:
            found = series_of(records, name)
            return None if found is None else draw(found)

        FIGURES[name] = Drawing(draw_series if series else draw, alt)
        return draw

    return register


def figures(records: Iterable[Record]) -> dict[str, Figure]:
    """Every figure that the records allow, by file name without its ending.

    Where there are several models, the figures of PER_MODEL carry the model in their name.
    """
    records = list(records)
    models = by_model(prune_runs(records))
    drawn = {}
    for name, drawing in FIGURES.items():
        if name in PER_MODEL and len(models) > 1:
            for model, runs in models.items():
                drawn[f"{name}_{model.rsplit('/', 1)[-1].lower()}"] = drawing.draw(runs)
        else:
            drawn[name] = drawing.draw(records)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def figure_alt(name: str) -> str:
    """The alternative text of a figure by its name in `figures`; "" for one that is not known."""
    kinds = [kind for kind in FIGURES if name == kind or name.startswith(f"{kind}_")]
    return FIGURES[max(kinds, key=len)].alt if kinds else ""


def write_figures(records: Iterable[Record], folder: str | Path) -> list[Path]:
    """Draw every figure that the records allow into `folder`, as PNG (150 dpi) and SVG.

    Returns the paths written. A figure whose records are missing is not drawn.
    Raises RecordError when the folder cannot be written.
    """
    return [
        replace_file(Path(folder) / f"{name}.{kind}", render(figure))
        for name, figure in figures(records).items()
        for kind, render in (("png", to_png), ("svg", to_svg))
    ]


# ------------------------------------------------------------------ the story in one picture


@_figure(
    "summary",
    "Three panels: the error of one layer falls to its optimum while ADMM refits it on a fixed "
    "mask; a mask that grows leaves less error than one chosen at once; perplexity on a log scale "
    "against sparsity, a line for each method.",
)
def summary_figure(records: Sequence[Record]) -> Figure | None:
    """The paper's three steps side by side: refit a layer, let its mask grow, prune the model.

    From a record of notebook 02, one of 03 and the plain runs of 04 on one model; None if one of
    the three is missing.
    """
    solved, grown = series_of(records, "convergence"), series_of(records, "schedule")
    models = by_model(prune_runs(records))
    if solved is None or grown is None or not models:
        return None
    figure, (left, middle, right) = new_figure(3, size=(12.0, 4.0), width_ratios=[1.15, 0.75, 1.3])
    _draw_refit(left, solved)
    _draw_growth_gain(middle, grown)
    _draw_story(right, *_perplexities(next(iter(models.values()))))
    headlines = (
        (
            "1  Refit the weights that stay",
            _where(solved).replace("self_attn.", "").replace("mlp.", ""),
        ),
        ("2  Let the mask grow", "while refitting; layers of one block"),
        ("3  Prune the whole model", "block by block; a bar is the range over seeds"),
    )
    for ax, (title, text) in zip((left, middle, right), headlines, strict=True):
        ax.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
        offset_text(ax, text, (0, 1), (0, 6), xycoords="axes fraction", fontsize=9, color=DENSE)
    return figure


def _where(series: Mapping[str, Any]) -> str:
    return f"{series['layer']} at {100 * series['sparsity']:.0f} %"


def _draw_refit(ax: Axes, series: Mapping[str, Any]) -> None:
    """ADMM on a fixed mask, from no update to the optimum, each line with its name on it."""
    errors = series["error"].get("ρ = 1") or next(iter(series["error"].values()))
    before, optimum = (limit(series["references"].values()) for limit in (max, min))
    steps = [0, *series["iterations"]]
    colour = style_of("admm-grad")["color"]
    ax.plot(steps, [before, *errors], color=colour, linewidth=2.2, zorder=3)
    for name, value in series["references"].items():
        ax.axhline(value, linewidth=1, **LONG_DASH)
        name_line(ax, name.partition(",")[0], value, below=value == optimum)
    offset_text(ax, "ADMM", (2, errors[1]), (6, 6), color=colour, fontweight="bold")
    ax.set(xlabel="iteration", ylabel="relative error of the layer", xlim=(0, steps[-1]))
    ax.set_ylim(0, 1.12 * before)
    whole_numbers(ax)


def _draw_growth_gain(ax: Axes, series: Mapping[str, Any]) -> None:
    """The error of the gradual mask as a share of the one-shot mask's, by pattern."""
    target = target_name("unstructured", series["sparsity"]["one-shot"][-1])
    shares = {
        target if pattern == "unstructured" else pattern: 100 * ratio["paper"]
        for pattern, ratio in series["ratio"].items()
        if "paper" in ratio
    }
    bars = ax.bar(
        list(shares), list(shares.values()), color=style_of("admm-grad")["color"], width=0.6
    )
    ax.bar_label(bars, [f"{share:.0f} %" for share in shares.values()], padding=2, fontsize=9)
    ax.axhline(100, linewidth=1, **LONG_DASH)
    name_line(ax, "mask chosen once", 100)
    ax.set(ylim=(0, 118), ylabel="error, % of the one-shot mask's")


def _draw_story(ax: Axes, table: Mapping[str, pd.DataFrame], dense: float | None) -> None:
    """Perplexity by sparsity, one line for a method, named at its end."""
    _draw_sparsities(ax, table)
    lines = list(ax.lines)
    if dense is not None:
        ax.axhline(dense, linewidth=1, **LONG_DASH)
        name_line(ax, f"dense {dense:.1f}", dense, below=True)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    # magnitude pruning leaves the chart, so that the others can be told apart
    most = {label: cells["max"].max() for label, cells in table.items()}
    others = [value for label, value in most.items() if label != "magnitude"]
    ax.set_ylim(ax.get_ylim()[0] / 1.5, 2 * max(others or most.values()))
    _name_curves(ax, lines)
    ax.set(xlabel="weights set to zero", ylabel="perplexity (log scale, lower is better)")


def _name_curves(ax: Axes, lines: Sequence[Line2D]) -> None:
    """The names of curves at their ends, kept apart; beside the first point of one that leaves."""
    low, high = map(math.log, ax.get_ylim())
    ends = sorted((math.log(line.get_ydata()[-1]), line.get_label(), line) for line in lines)
    free = 0.0  # where the next name may stand, as a fraction of the axis
    for end, name, line in ends:
        look = {"color": line.get_color(), "fontsize": 9, "fontweight": "bold"}
        if end > high:
            offset_text(ax, name, (line.get_xdata()[0], line.get_ydata()[0]), (8, 2), va="top",
                        **look)  # fmt: skip
        else:
            height = max((end - low) / (high - low), free)
            ax.annotate(name, (1.01, height), xycoords="axes fraction", va="center", **look)
            free = height + 0.055


# ------------------------------------------------------------------ runs of the pruning notebook


def _perplexities(records: Iterable[Record]) -> tuple[dict[str, pd.DataFrame], float | None]:
    """For each label mean, min and max of perplexity by target, and the dense perplexity."""
    runs = prune_frame(records)
    dense = runs.loc[runs["target"] == "dense", "perplexity"]
    runs = runs[runs["target"] != "dense"]
    table = {
        label: found.groupby("target", sort=False)["perplexity"].agg(["mean", "min", "max"])
        for label, found in runs.groupby("label")
    }
    ordered = {label: table[label] for label in sorted(table, key=row_key)}
    return ordered, None if dense.empty else dense.iloc[0]


def _draw_sparsities(
    ax: Axes,
    table: Mapping[str, pd.DataFrame],
    looks: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Perplexity against sparsity, a line for each method that has unstructured runs."""
    shown = set()
    for position, (label, cells) in enumerate(table.items()):
        cells = cells[cells.index.str.endswith(" %")]
        cells = cells.set_index(cells.index.str.rstrip(" %").astype(float)).sort_index()
        if len(cells):
            look = style_of(label, position) | (looks or {}).get(label, {})
            _draw_cells(ax, cells.index, cells, look, label)
            shown.update(cells.index)
    ax.set_yscale("log")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} %"))
    ax.set_xticks(sorted(shown))


def _draw_cells(
    ax: Axes, x: Sequence[float], cells: pd.DataFrame, look: Mapping[str, Any], label: str | None
) -> None:
    """Points at the means over seeds, whiskers from the lowest to the highest seed."""
    ax.plot(x, cells["mean"], **look, label=label)
    ax.vlines(x, cells["min"], cells["max"], color=look["color"], linewidth=2.5, alpha=0.5)


@_figure(
    "perplexity",
    "Perplexity on a log scale: on the left against sparsity, a line for each method; on the "
    "right for N:M patterns. Whiskers span the seeds, and a dashed line is the dense model.",
)
def perplexity_figure(records: Iterable[Record], own: str = "") -> Figure | None:
    """Perplexity against sparsity, and of the N:M patterns, on a log axis with the dense line.

    Points are means over seeds, as in the table; a whisker spans the seeds. Only the
    records of `04_prune_model` count, of one model; None without any.
    The method `own` stands out from the others, with its numbers beside it.
    """
    runs = prune_runs(records)
    if not runs:
        return None
    table, dense = _perplexities(runs)
    looks = {label: OWN_LOOK for label in table if own and label.partition(" (")[0] == own}
    patterns = sorted(
        {target for cells in table.values() for target in cells.index if ":" in target},
        key=lambda pattern: int(pattern.split(":")[1]),
    )
    ratios = [3, 0.5 + 0.5 * max(1, len(patterns))]
    figure, (left, right) = new_figure(2, size=(8.0, 4.2), sharey=True, width_ratios=ratios)
    _draw_sparsities(left, table, looks)
    for position, (label, cells) in enumerate(table.items()):
        cells = cells.reindex(patterns).dropna()
        look = style_of(label, position) | looks.get(label, {}) | {"linestyle": "none"}
        if len(cells):
            shift = 0.12 * (position - (len(table) - 1) / 2)
            x = [patterns.index(pattern) + shift for pattern in cells.index]
            _draw_cells(right, x, cells, look, None)
    for ax in (left, right):
        for line in ax.lines:
            if line.get_markerfacecolor() == OWN_LOOK["markerfacecolor"]:
                for x, y in zip(*line.get_data(), strict=True):
                    look = {"va": "top", "fontweight": "bold", "zorder": OWN_LOOK["zorder"]}
                    offset_text(ax, f"{y:.1f}", (x, y), (9, -3), **look)
        if dense is not None:
            ax.axhline(dense, linewidth=1.2, **LONG_DASH)
    left.set(xlabel="sparsity (% of the pruned layers' weights)", ylabel="perplexity (log scale)")
    plain = FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}")
    left.yaxis.set_major_formatter(plain)
    right.set(xlabel="pattern", xlim=(-0.5, max(1, len(patterns)) - 0.5))
    right.set_xticks(range(len(patterns)), patterns)
    right.tick_params(axis="y", labelleft=False)
    if not patterns:
        note(right, "no N:M\nruns")
    if dense is not None:
        name_line(right, f"dense {dense:.1f}", dense, inset=0, va="baseline")
    if left.get_legend_handles_labels()[1]:
        left.legend(frameon=False, fontsize=8.5, labelspacing=0.35)
    return figure


@_figure(
    "layer_error",
    "Mean relative error of a block's layers on a log scale against depth, a line for each method.",
)
def layer_error_figure(records: Iterable[Record]) -> Figure | None:
    """Mean relative error of a block's layers by depth, one curve per method, log axis.

    Takes the unstructured runs at 60 %, or at the least sparsity if there are none, with the
    lowest seed. Methods that saw no calibration text have no errors and are left out.
    """
    curves = defaultdict(dict)  # by sparsity and label
    for run in prune_frame(records).sort_values("seed", kind="stable").itertuples():
        asked = run.record["parameters"]
        layers = pd.DataFrame(run.record.get("layers") or [], columns=["block", "error"]).dropna()
        if asked["pattern"] == "unstructured" and len(layers):
            errors = layers.groupby("block")["error"].mean()
            curves[asked["sparsity"]].setdefault(run.label, errors)
    if not curves:
        return None
    sparsity = 0.6 if 0.6 in curves else min(curves)
    figure, ax = new_figure(size=(7.0, 4.0))
    for position, label in enumerate(sorted(curves[sparsity], key=row_key)):
        errors = curves[sparsity][label]
        ax.plot(errors.index, errors, label=label, **style_of(label, position))
    finish_depth(ax, f"mean relative error of a block at {100 * sparsity:.0f} %")
    return figure


# ------------------------------------------------------------------ the update study

Curve = Mapping[str, Any]


@_figure(
    "weight_update",
    "Relative error of solvers on one fixed mask against iterations and against seconds, log "
    "axes, a column for each layer: ADMM and its rivals, the exact optimum as a dashed line, "
    "SparseGPT as a star, other learning rates as thin lines.",
)
def update_grid_figure(records: Iterable[Record]) -> Figure | None:
    """`update_figure` for up to four layers: one column a record of notebook 02.

    They are those of the middle block among the blocks studied, or of the block with most layers,
    at 60 % where all of them have it. None without such records.
    """
    studied = _studied(records)
    if not studied:
        return None
    blocks = [record["parameters"]["block"] for record in studied]
    middle = sorted(set(blocks))[len(set(blocks)) // 2]
    block = max(sorted(set(blocks)), key=lambda b: (blocks.count(b), b == middle))
    chosen = [record for record in studied if record["parameters"]["block"] == block][:4]
    shared = set.intersection(*({row["sparsity"] for row in r["series"]["update"]} for r in chosen))
    sparsity = 0.6 if 0.6 in shared else min(shared)
    layers = [record["parameters"]["layer"] for record in chosen]
    parts = [(r["series"]["update"], r["series"]["curves"]) for r in chosen]
    if len(chosen) == 1:
        return update_figure(
            *parts[0], sparsity, f"block {block} {layers[0]} at {100 * sparsity:.4g} %"
        )
    figure, grid = new_figure(len(chosen), size=(3.1 * len(chosen) + 0.6, 5.6), rows=2)
    for axes, layer, part in zip(grid.T, layers, parts, strict=True):
        _draw_update(axes, *part, sparsity)
        axes[0].set_title(f"block {block} {layer.split('.')[-1]}", fontsize=10)
    for ax in grid[:, 0]:
        ax.set_ylabel("relative error")
    _finish_update(figure, f"one fixed mask at {100 * sparsity:.4g} %", 4 if len(chosen) > 2 else 2)
    return figure


def update_figure(
    rows: Sequence[Mapping[str, Any]], curves: Sequence[Curve], sparsity: float, title: str = ""
) -> Figure:
    """How fast each way of refitting gets to the optimum of one layer on a fixed mask.

    Relative error against iterations (left) and against seconds (right), log axes; the exact
    optimum is the floor; SparseGPT, which sweeps once over the columns, is a star, put at
    iteration 1. Adam and SGD are drawn at the rate that arrives first, their other rates as thin
    lines. Args: rows and curves as `helpers.study.update_study` returns them; sparsity, one that
    is in them.
    """
    figure, axes = new_figure(2, size=(9.5, 4.0), sharey=True)
    _draw_update(axes, rows, curves, sparsity)
    axes[0].set_ylabel(RELATIVE_ERROR)
    _finish_update(figure, title or f"one fixed mask at {100 * sparsity:.4g} %", 4)
    return figure


def _finish_update(figure: Figure, title: str, columns: int) -> None:
    """Title and one legend for the whole figure, under its panels."""
    figure.suptitle(f"{title}; thin lines: other learning rates", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 9}
    figure.legend(unique.values(), unique.keys(), **place)


def _draw_update(
    axes: Sequence[Axes],
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Curve],
    sparsity: float,
) -> None:
    """Error by iterations in the first of two axes, by seconds in the second."""
    rows = [row for row in rows if row["sparsity"] == sparsity]
    curves = [curve for curve in curves if curve["sparsity"] == sparsity]
    damping = _study_damping(curves)
    errors = {row["solver"]: row["error"] for row in rows if row["error"] > 0}
    for ax, x in zip(axes, ("iterations", "seconds"), strict=True):
        for position, (label, best) in enumerate(_best_curves(curves).items()):
            look = style_of("", position) | {"markersize": 3}
            for curve in curves:
                same = all(curve[k] == best[k] for k in ("solver", "precondition", "damping"))
                if same and curve["learning_rate"] != best["learning_rate"]:
                    thin = {"color": look["color"], "linewidth": 0.7, "alpha": 0.35}
                    ax.plot(curve[x], curve["error"], **thin)
            if label != "ADMM":
                look |= {"marker": "", "linewidth": 1.3}
            ax.plot(best[x], best["error"], label=label, **look)
        for row in rows:
            if row["solver"] == "exact" and row["damping"] == damping:
                look = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1}
                ax.axhline(row["error"], label="optimum", **look)
        for row in rows:
            if row["solver"] == "sparsegpt":
                place = row["seconds"] if x == "seconds" else 1
                ax.plot(place, row["error"], "k*", markersize=9, label="SparseGPT (one sweep)")
        ax.set(xscale="log", yscale="log", xlabel={"iterations": "iteration"}.get(x, x))
        plain_log(ax.xaxis)
        if errors:  # what a reader compares lies between the optimum and "no update"
            low, high = min(errors.values()), errors.get("none", max(errors.values()))
            ticks = [float(f"{value:.2g}") for value in np.geomspace(low, high, 5)]
            ax.set_ylim(low * 0.95, 1.15 * high)
            ax.yaxis.set_major_locator(FixedLocator(ticks))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
            ax.yaxis.set_minor_locator(NullLocator())


def _best_curves(curves: Sequence[Curve]) -> dict[str, Curve]:
    """The curves worth a line: ADMM with and without preconditioning, and each rival's best.

    The best is the one that is first within 1 % of the optimum; the last error decides a tie.
    """

    def arrival(curve: Curve) -> tuple[float, float]:
        points = zip(curve["iterations"], curve["excess"], strict=True)
        return min((step for step, e in points if e <= ARRIVED), default=np.inf), curve["error"][-1]

    found: dict[str, Curve] = {}
    usual = (USUAL["rho"], _study_damping(curves))
    for solver, name in RACERS.items():
        for curve in curves:
            is_admm = solver == "admm"
            if curve["solver"] != solver or not curve["error"]:
                continue
            if is_admm and (curve["rho"], curve["damping"]) != usual:
                continue
            scaled, label = curve["precondition"], name
            if scaled != (solver in ("admm", "cg")):
                label += f", {'' if scaled else 'not '}preconditioned"
            if label not in found or arrival(curve) < arrival(found[label]):
                found[label] = curve
    return found


def _study_damping(curves: Iterable[Curve]) -> float | None:
    """The damping of a study: that of its gradient methods, which have no other."""
    return next((c["damping"] for c in curves if c["solver"] != "admm"), USUAL["damping"])


def _studied(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if "curves" in (record.get("series") or {})]


@_figure(
    "weight_update_median",
    "Excess over the optimum, median over all layers studied, log axes: ADMM and its rivals by "
    "iteration; the same by time, in units of 20 iterations of ADMM; ADMM for each ρ, dashed "
    "without preconditioning.",
)
def update_median_figure(records: Iterable[Record]) -> Figure | None:
    """Excess over the optimum: the median over all layers and sparsities studied.

    Left: ADMM beside its rivals by iteration, each at the learning rate that arrives first on its
    problem. Middle: the same by time, in units of what 20 iterations of ADMM take on the problem,
    because layers differ in size. Right: ADMM at every ρ by iteration (an iteration takes the same
    time whatever ρ is), with preconditioning (solid) and without (dashed).
    """
    rivals: dict[str, list[tuple[Curve, list[float]]]] = defaultdict(list)
    settings: dict[tuple[bool, float], list[Curve]] = defaultdict(list)
    for record in _studied(records):
        curves = record["series"]["curves"]
        for sparsity in sorted({curve["sparsity"] for curve in curves}):
            best = _best_curves([c for c in curves if c["sparsity"] == sparsity])
            for label, curve in best.items():
                rivals[label].append((curve, _in_units_of(best.get("ADMM"), curve)))
        for curve in curves:
            if curve["solver"] == "admm" and curve["damping"] == _study_damping(curves):
                settings[not curve["precondition"], curve["rho"]].append(curve)
    if not rivals:
        return None
    figure, (left, middle, right) = new_figure(3, size=(13.0, 4.4), sharey=True)
    for position, (label, found) in enumerate(rivals.items()):
        look = style_of("", position) | {"marker": ""}
        left.plot(*_median_curve([curve for curve, _ in found]), label=label, **look)
        middle.plot(*_median_in_time(found), **look)
    rhos = sorted({rho for _, rho in settings})
    for (plain, rho), found in sorted(settings.items()):
        look = style_of("", rhos.index(rho)) | {"linestyle": "--" if plain else "-"}
        look |= {"markevery": 4, "markersize": 4}
        right.plot(*_median_curve(found), label=None if plain else f"ρ = {rho:g}", **look)
    for ax in figure.axes:
        ax.axhline(ARRIVED, color=DENSE, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.set(xscale="log", yscale="log", xlabel="iteration", ylim=(1e-9, None))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    left.legend(frameon=False, fontsize=8.5)
    right.legend(frameon=False, fontsize=8.5)
    problems = sum(map(len, rivals.values())) // len(rivals)
    amount = f"\n(median of {problems} problems)" if problems > 1 else ""
    left.set_ylabel(f"excess over the optimum{amount}")
    left.set_title("ADMM and its rivals; dotted: 1 %", fontsize=10)
    plain_log(middle.xaxis)
    middle.set_xlabel("time (1: 20 iterations of ADMM)")
    middle.set_title("the same by time", fontsize=10)
    right.set_title("ADMM; dashed: not preconditioned", fontsize=10)
    return figure


def _in_units_of(ours: Curve | None, curve: Curve) -> list[float]:
    """The seconds of a curve as multiples of ADMM's after 20 iterations; [] without that."""
    if ours is None or 20 not in ours["iterations"]:
        return []
    unit = ours["seconds"][ours["iterations"].index(20)]
    return [seconds / unit for seconds in curve["seconds"]]


def _median_in_time(found: Sequence[tuple[Curve, list[float]]]) -> tuple[Any, Any]:
    """Relative times that all curves cover, and the median excess at each, between points."""
    timed = [(relative, curve["excess"]) for curve, relative in found if relative]
    first = max((relative[0] for relative, _ in timed), default=1.0)
    last = min((relative[-1] for relative, _ in timed), default=1.0)
    if first >= last:
        return [], []
    times = np.geomspace(first, last, 60)
    logs = [
        np.interp(np.log(times), np.log(relative), np.log(np.maximum(excess, 1e-12)))
        for relative, excess in timed
    ]
    return times, np.exp(np.median(logs, axis=0))


def _median_curve(curves: Sequence[Curve]) -> tuple[Any, Any]:
    """Iterations that all curves have, and the median excess at each."""
    excess = pd.concat([pd.Series(c["excess"], c["iterations"]) for c in curves], axis=1)
    excess = excess.dropna().sort_index()
    return excess.index, excess.median(axis=1)


# ------------------------------------------------------------------ cost, variants, zero-shot


@_figure(
    "cost",
    "Seconds to prune the whole model, a bar for each method, in parts: forward passes, grams, "
    "solving, choosing the mask.",
)
def cost_figure(records: Iterable[Record]) -> Figure | None:
    """Where the seconds of pruning go, a bar a method; None where they were not timed in parts."""
    table = cost_table(records)
    if table is None or table["forward (s)"].isna().all():
        return None
    table = table.drop(index="dense", errors="ignore")
    figure, ax = new_figure(size=(7.5, 1.4 + 0.42 * len(table)))
    left = np.zeros(len(table))
    for part, colour, hatch in zip(PRUNE_PARTS, COLOURS, HATCHES, strict=False):
        seconds = table[f"{part} (s)"]
        if seconds.isna().all():  # on a GPU it is not timed apart
            continue
        within = {"forward": "gram", "solve": "selection"}.get(part)
        alone = within is None or table[f"{within} (s)"].notna().any()
        look = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        look["label"] = part if alone else f"{part} and {within}"
        ax.barh(list(table.index), seconds.fillna(0), left=left, **look)
        left += seconds.fillna(0)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_xlabel("seconds to prune the whole model")
    ax.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


@_figure(
    "variants",
    "Change of perplexity against the defaults in percent, a bar for each changed option with one "
    "standard error over seeds; to the left is better.",
)
def variant_figure(records: Iterable[Record]) -> Figure | None:
    """What each changed option does to perplexity, in percent of the defaults' (a bar each).

    The line on a bar is one standard error of the mean over seeds. None without variants.
    """
    table = variant_table(records)
    if table is None:
        return None
    table = table[::-1]
    figure, ax = new_figure(size=(7.0, 1.2 + 0.34 * len(table)))
    names = [
        name.removeprefix("admm-grad ").strip("()") + (" (one seed)" if seeds == 1 else "")
        for name, seeds in zip(table.index, table["seeds"], strict=True)
    ]
    changes, errors = table["change (%)"], table["± (%)"].fillna(0)
    colours = [COLOURS[1] if change > 0 else COLOURS[2] for change in changes]
    ax.barh(range(len(names)), changes, xerr=errors, color=colours, ecolor=DENSE)
    for place, (change, error) in enumerate(zip(changes, errors, strict=True)):
        side, sign = ("left", 1) if change >= 0 else ("right", -1)
        end = (change + sign * error, place)
        offset_text(ax, f"{change:+.1f} %", end, (3 * sign, 0), ha=side, va="center", fontsize=8.5)
    ax.axvline(0, color=DENSE, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.grid(False, axis="y")
    ax.margins(x=0.15)
    ax.set_xlabel("change of perplexity against the defaults (%); to the left is better")
    return figure


@_figure(
    "zero_shot",
    "Zero-shot accuracy on each task and their mean, a bar for each model, ± one standard error.",
)
def zero_shot_figure(records: Iterable[Record]) -> Figure | None:
    """Accuracy of each model on each task with one standard error; None without such records."""
    table = zero_shot_table(records)
    if table is None:
        return None
    frame, spread = table
    figure, ax = new_figure(size=(9.0, 4.0))
    width = 0.8 / len(frame)
    for position, label in enumerate(frame.index):
        look = style_of(label.partition(",")[0], position)
        places = np.arange(len(frame.columns)) + (position - (len(frame) - 1) / 2) * width
        colour = DENSE if label == "dense" else look["color"]
        errors = {"yerr": spread.loc[label], "error_kw": {"linewidth": 0.9}}
        ax.bar(places, frame.loc[label], width * 0.92, color=colour, label=label, **errors)
    ax.set_xticks(range(len(frame.columns)), list(frame.columns))
    ax.set_ylabel("accuracy, ± one standard error")
    ax.grid(False, axis="x")
    ax.legend(frameon=False, ncols=4, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    return figure


# ------------------------------------------------------------------ series of 01, 02 and 03


@_figure(
    "spectrum",
    "Eigenvalues of XᵀX as a share of the largest, and the norm of each input as a multiple of "
    "the median, largest first, log axes, a line for each group of layers.",
    series=True,
)
def spectrum_figure(series: Mapping[str, Any]) -> Figure:
    """What a gram looks like (series "spectrum" of notebook 01).

    Left: eigenvalues of the gram, largest first, as a share of the largest. Right: the norm of
    every input over the calibration text, largest first, as a multiple of the median.
    Series: "eigenvalues" and "norms", each {layer: [values, largest first]}.
    """
    figure, (left, right) = new_figure(2, size=(9.0, 3.9))
    for position, (name, values) in enumerate(series["eigenvalues"].items()):
        norms = series["norms"][name]
        median = sorted(norms)[len(norms) // 2]
        for ax, found, unit in ((left, values, values[0]), (right, norms, median)):
            percent = [100 * index / max(1, len(found) - 1) for index in range(len(found))]
            look = style_of("", position) | {"marker": ""}
            ax.plot(percent, above_zero(found, unit), label=name, **look)
    left.set(xlabel="eigenvalue, largest first (%)", ylabel="eigenvalue / largest", yscale="log")
    right.set(xlabel="input, largest first (%)", ylabel="input norm / median", yscale="log")
    left.set_title("spectrum of XᵀX", fontsize=10)
    right.set_title("norm of each input", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    return figure


@_figure(
    "convergence",
    "ADMM on a fixed mask, a curve for each ρ, log axes: the relative error of a layer by "
    "iteration with other solvers as horizontal lines, and the distance of the weights to the "
    "exact least-squares optimum.",
    series=True,
)
def convergence_figure(series: Mapping[str, Any]) -> Figure:
    """How ADMM on a fixed mask approaches the optimum (series "convergence" of notebook 02).

    Left: relative error after each iteration, with the other solvers as lines. Right: distance
    of the weights to the exact least-squares optimum on the same mask, log axis.
    Series: "iterations" [n], "error" and "distance" {curve: [n]}, "references" {name: error},
    "layer", "sparsity".
    """
    figure, (left, right) = new_figure(2, size=(9.0, 3.9))
    for position, (name, errors) in enumerate(series["error"].items()):
        look = style_of("", position)
        left.plot(series["iterations"], errors, label=name, **look)
        right.plot(series["iterations"], series["distance"][name], label=name, **look)
    draw_references(left, series["references"])
    left.set(xlabel="iteration", ylabel=RELATIVE_ERROR, yscale="log")
    right.set(xlabel="iteration", ylabel="‖Ŵ − Ŵ*‖ / ‖Ŵ*‖ (to the optimum)", yscale="log")
    left.set_title(_where(series), fontsize=10)
    right.set_title("distance to exact least squares", fontsize=10)
    widen(left)
    plain_log(left.yaxis)
    whole_numbers(left)
    whole_numbers(right)
    right.legend(frameon=False, fontsize=9)
    return figure


@_figure(
    "schedule",
    "Sparsity of the mask at each iteration, a line for each schedule, and the relative error as a "
    "share of the one-shot mask's, a group of bars for each pattern.",
    series=True,
)
def schedule_figure(series: Mapping[str, Any]) -> Figure:
    """What growing the mask gradually buys (series "schedule" of notebook 03).

    Left: the sparsity of the mask at each iteration. Right: relative error by pattern, as a
    share of the one-shot mask's, averaged (geometrically) over the layers.
    Series: "sparsity" {schedule: [n]}, "ratio" {pattern: {schedule: ratio to one-shot}}.
    """
    figure, (left, right) = new_figure(2, size=(9.0, 3.9))
    width = 0.8 / max(1, len(series["sparsity"]))
    for position, (name, values) in enumerate(series["sparsity"].items()):
        look = style_of("", position) | {"markersize": 4}
        if position == 0:  # a broad band, so that a curve on top of it does not hide it
            look |= {"marker": "", "linestyle": "-", "linewidth": 7, "alpha": 0.35}
        percent = [100 * value for value in values]
        left.plot(range(1, len(values) + 1), percent, label=name, **look)
        shift = (position - (len(series["sparsity"]) - 1) / 2) * width
        look = {"color": COLOURS[position], "hatch": HATCHES[position % 4], "edgecolor": "white"}
        for group, ratios in enumerate(series["ratio"].values()):
            if name in ratios:
                share = 100 * ratios[name]
                ax_x = group + shift
                right.bar(ax_x, share, width * 0.95, **look)
                offset_text(right, f"{share:.0f}", (ax_x, share), (0, 2), ha="center", fontsize=8)
    left.set(xlabel="iteration", ylabel="sparsity of the mask (%)", ylim=(0, None))
    left.set_title("the mask grows", fontsize=10)
    whole_numbers(left)
    left.legend(frameon=False, fontsize=9, loc="lower right")
    right.set_xticks(range(len(series["ratio"])), list(series["ratio"]))
    right.grid(False, axis="x")
    right.set(ylabel="relative error (% of one-shot's)")
    right.set_title("and the error falls", fontsize=10)
    return figure
