"""Figures of the update study of notebook 02: solvers on one fixed mask."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from helpers.results import style
from helpers.results.frame import ENOUGH, USUAL, Record, Row, matching, with_series
from helpers.results.style import finish, style_of

# the solvers that have curves, in the order of legends
RACERS = {"admm": "ADMM", "cg": "CG", "adam": "Adam", "sgd": "SGD"}


def update_grid_figure(records: Iterable[Record]) -> Figure | None:
    """Relative error of solvers on one fixed mask against iterations and against seconds, log axes,
    a column for each layer: ADMM and its rivals, the exact optimum as a dashed line, SparseGPT as a
    star, other learning rates as thin lines.

    The layers are up to four of the middle block among the blocks studied, or of the block with
    most layers, at 60 % where all of them have it. None without records of the study.
    """
    studied = with_series(records, "curves")
    if not studied:
        return None
    blocks = Counter(record["parameters"]["block"] for record in studied)
    middle = sorted(blocks)[len(blocks) // 2]
    block = max(sorted(blocks), key=lambda b: (blocks[b], b == middle))
    chosen = [record for record in studied if record["parameters"]["block"] == block][:4]
    shared = set.intersection(*({row["sparsity"] for row in r["series"]["update"]} for r in chosen))
    sparsity = 0.6 if 0.6 in shared else min(shared)
    layers = [record["parameters"]["layer"] for record in chosen]
    parts = [(r["series"]["update"], r["series"]["curves"], sparsity) for r in chosen]
    if len(chosen) == 1:
        return update_figure(*parts[0], f"block {block} {layers[0]} at {100 * sparsity:.4g} %")
    figure, grid = style.new_figure(len(chosen), size=(3.1 * len(chosen) + 0.6, 5.6), rows=2)
    for axes, layer, part in zip(grid.T, layers, parts, strict=True):
        _draw_update(axes, *part)
        finish(axes[0], f"block {block} {layer.split('.')[-1]}")
    for ax in grid[:, 0]:
        ax.set_ylabel("relative error")
    _finish_update(figure, f"one fixed mask at {100 * sparsity:.4g} %", 4 if len(chosen) > 2 else 2)
    return figure


def update_figure(
    rows: Sequence[Row], curves: Sequence[Row], sparsity: float, title: str = ""
) -> Figure:
    """How fast each way of refitting gets to the optimum of one layer on a fixed mask.

    Relative error against iterations (left) and against seconds (right), log axes; the exact
    optimum is the floor; SparseGPT, which sweeps once over the columns, is a star, put at
    iteration 1. Adam and SGD are drawn at the rate that arrives first, their other rates as thin
    lines. Args: rows and curves as `helpers.study.update_study` returns them; sparsity, one that
    is in them.
    """
    figure, axes = style.new_figure(2, size=(9.5, 4.0), sharey=True)
    _draw_update(axes, rows, curves, sparsity)
    axes[0].set_ylabel(style.RELATIVE_ERROR)
    _finish_update(figure, title or f"one fixed mask at {100 * sparsity:.4g} %", 4)
    return figure


def _finish_update(figure: Figure, title: str, columns: int) -> None:
    """Title and one legend for the whole figure, under its panels."""
    figure.suptitle(f"{title}; thin lines: other learning rates", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 9}
    figure.legend(handles, labels, **place)


def _draw_update(
    axes: Sequence[Axes], rows: Sequence[Row], curves: Sequence[Row], sparsity: float
) -> None:
    """Error by iterations in the first of two axes, by seconds in the second."""
    rows, curves = matching(rows, sparsity=sparsity), matching(curves, sparsity=sparsity)
    errors = {row["solver"]: row["error"] for row in rows if row["error"] > 0}
    low, high = min(errors.values()), errors["none"]
    for ax, x in zip(axes, ("iterations", "seconds"), strict=True):
        for position, (label, best) in enumerate(_best_curves(curves).items()):
            look = style_of("", position) | {"markersize": 3}
            same = {key: best[key] for key in ("solver", "precondition", "damping")}
            for curve in matching(curves, **same):
                if curve["learning_rate"] != best["learning_rate"]:
                    thin = {"color": look["color"], "linewidth": 0.7, "alpha": 0.35}
                    ax.plot(curve[x], curve["error"], **thin)
            if label != "ADMM":
                look |= {"marker": "", "linewidth": 1.3}
            ax.plot(best[x], best["error"], label=label, **look)
        for row in matching(rows, solver="exact", damping=_study_damping(curves)):
            look = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1}
            ax.axhline(row["error"], label="optimum", **look)
        for row in matching(rows, solver="sparsegpt"):
            place = row["seconds"] if x == "seconds" else 1
            ax.plot(place, row["error"], "k*", markersize=9, label="SparseGPT (one sweep)")
        finish(ax, log="xy", xlabel="iteration" if x == "iterations" else x)
        style.plain_log(ax.xaxis)
        # what a reader compares lies between the optimum and "no update"
        ticks = [float(f"{value:.2g}") for value in np.geomspace(low, high, 5)]
        ax.set_ylim(low * 0.95, 1.15 * high)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_major_formatter("{x:.2g}")
        ax.yaxis.set_minor_locator(NullLocator())


def _best_curves(curves: Sequence[Row]) -> dict[str, Row]:
    """The curves worth a line: ADMM with and without preconditioning, and each rival's best.

    The best is the one that is first within 1 % of the optimum; the last error decides a tie.
    """

    def arrival(curve: Row) -> tuple[float, float]:
        points = zip(curve["iterations"], curve["excess"], strict=True)
        return min((step for step, e in points if e <= ENOUGH), default=np.inf), curve["error"][-1]

    groups: dict[str, list[Row]] = defaultdict(list)
    for solver, name in RACERS.items():
        usual = {"rho": USUAL["rho"], "damping": _study_damping(curves)} if name == "ADMM" else {}
        for curve in matching(curves, solver=solver, **usual):
            if curve["error"]:
                expected = curve["precondition"] == (solver in ("admm", "cg"))
                other = f", {'' if curve['precondition'] else 'not '}preconditioned"
                groups[name if expected else name + other].append(curve)
    return {label: min(found, key=arrival) for label, found in groups.items()}


def _study_damping(curves: Iterable[Row]) -> float | None:
    """The damping of a study: that of its gradient methods, which have no other."""
    return next((c["damping"] for c in curves if c["solver"] != "admm"), USUAL["damping"])


def update_median_figure(records: Iterable[Record]) -> Figure | None:
    """Excess over the optimum, median over all layers studied, log axes: ADMM and its rivals by
    iteration; the same by time, in units of 20 iterations of ADMM; ADMM for each ρ, dashed
    without preconditioning.

    Rivals count at the learning rate that arrives first on their problem. Time is relative because
    layers differ in size; an iteration takes the same time whatever ρ is.
    """
    rivals: dict[str, list[Row]] = defaultdict(list)
    settings: dict[tuple[bool, float], list[Row]] = defaultdict(list)
    for record in with_series(records, "curves"):
        curves = record["series"]["curves"]
        for sparsity in sorted({curve["sparsity"] for curve in curves}):
            best = _best_curves(matching(curves, sparsity=sparsity))
            ours = best["ADMM"]
            unit = ours["seconds"][ours["iterations"].index(20)]
            for label, curve in best.items():
                rivals[label].append(curve | {"time": np.asarray(curve["seconds"]) / unit})
        for curve in matching(curves, solver="admm", damping=_study_damping(curves)):
            settings[not curve["precondition"], curve["rho"]].append(curve)
    if not rivals:
        return None
    figure, (left, middle, right) = style.new_figure(3, size=(13.0, 4.4), sharey=True)
    for position, (label, found) in enumerate(rivals.items()):
        look = style_of("", position) | {"marker": ""}
        left.plot(_median_curve(found), label=label, **look)
        middle.plot(*_median_in_time(found), **look)
    rhos = sorted({rho for _, rho in settings})
    for (plain, rho), found in sorted(settings.items()):
        look = style_of("", rhos.index(rho)) | {"linestyle": "--" if plain else "-"}
        look |= {"markevery": 4, "markersize": 4, "label": None if plain else f"ρ = {rho:g}"}
        right.plot(_median_curve(found), **look)
    for ax in figure.axes:
        ax.axhline(ENOUGH, color=style.DENSE, linewidth=0.8, linestyle=(0, (1, 2)))
        finish(ax, log="xy", xlabel="iteration", ylim=(1e-9, None))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    problems = sum(map(len, rivals.values())) // len(rivals)
    amount = f"\n(median of {problems} problems)" if problems > 1 else ""
    ylabel = f"excess over the optimum{amount}"
    finish(left, "ADMM and its rivals; dotted: 1 %", legend=8.5, ylabel=ylabel)
    style.plain_log(middle.xaxis)
    finish(middle, "the same by time", xlabel="time (1: 20 iterations of ADMM)")
    finish(right, "ADMM; dashed: not preconditioned", legend=8.5)
    return figure


def _median_in_time(curves: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Relative times that all curves cover, and the median excess at each, between points."""
    first, last = max(c["time"][0] for c in curves), min(c["time"][-1] for c in curves)
    times = np.geomspace(first, max(first, last), 60)
    logs = [
        np.interp(np.log(times), np.log(c["time"]), np.log(np.maximum(c["excess"], 1e-12)))
        for c in curves
    ]
    return times, np.exp(np.median(logs, axis=0))


def _median_curve(curves: Sequence[Row]) -> pd.Series:
    """The median excess at each of the iterations that all curves have."""
    excess = pd.concat([pd.Series(c["excess"], c["iterations"]) for c in curves], axis=1)
    return excess.dropna().sort_index().median(axis=1)
