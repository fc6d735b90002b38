"""Figures of the update study of notebook 02: solvers on one fixed mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.report import style
from helpers.report.frame import ENOUGH, USUAL, Record, Row, cost_to_reach, matching, with_series
from helpers.report.style import finish, style_of

# the solvers that have curves, in the order of legends
RACERS = {"admm": "ADMM", "cg": "CG", "adam": "Adam", "sgd": "SGD"}
ENDS = {"none": "no update", "sparsegpt": "sparsegpt (one sweep)", "exact": "optimum"}


def weight_update_figure(records: Iterable[Record]) -> Figure | None:
    """Relative error of one layer on a fixed mask against iterations: ADMM and conjugate gradients
    reach the exact optimum in a few, the best gradient method needs more, SparseGPT's one sweep
    ends above it; all other solvers, rates and ρ are grey.

    Of the record "default" if it has the study, else of the first that has it, at 60 % if that was
    studied. None without records of the study.
    """
    studied = with_series(records, "curves")
    if not studied:
        return None
    record = min(studied, key=lambda r: r.get("name") != "default")
    rows, curves = record["series"]["update"], record["series"]["curves"]
    found = {row["sparsity"] for row in rows}
    sparsity = 0.6 if 0.6 in found else min(found)
    layer = style.in_words("block {block} {layer}".format(**record["parameters"]))
    figure = update_figure(rows, curves, sparsity, f"{layer}, one mask at {100 * sparsity:.4g} %")
    style.note_shared(figure, [record])
    return figure


def update_figure(
    rows: Sequence[Row], curves: Sequence[Row], sparsity: float, title: str = ""
) -> Figure:
    """How fast ways of refitting get to the optimum of one layer on a fixed mask.

    Relative error against iterations (log axis): ADMM, conjugate gradients and the gradient method
    that arrives first; the exact optimum, SparseGPT (one sweep over the columns) and no update are
    lines across; all other curves are grey. Args: rows and curves as `helpers.study.update_study`
    returns them; sparsity, one that is in them.
    """
    rows, curves = matching(rows, sparsity=sparsity), matching(curves, sparsity=sparsity)
    figure, ax = style.new_figure(size=(7.0, 4.4))
    best = _best_curves(curves)
    gradient = sorted((best[key] for key in best if key[0] in ("adam", "sgd")), key=_arrival)[:1]
    for curve in (best["admm", True], best["cg", True], *gradient):  # none if all diverged
        name = RACERS[curve["solver"]]
        look = style_of(name) | {"marker": "", "linewidth": 2, "zorder": 3 + (name == "ADMM")}
        if curve in gradient:
            name = f"best gradient method ({name})"
        ax.plot(curve["iterations"], curve["error"], label=name + _when(curve), **look)
    behind = {"color": style.BEHIND, "linewidth": 0.8, "zorder": 1}
    for curve in curves:
        ax.plot(curve["iterations"], curve["error"], **behind)
    ax.plot([], [], label="other rates, ρ, preconditioning", **behind)
    damping = _study_damping(curves)
    ends = (row for row in rows if row["solver"] != "exact" or row["damping"] == damping)
    errors = {ENDS[row["solver"]]: row["error"] for row in ends if row["solver"] in ENDS}
    style.draw_references(ax, errors)
    low, high = errors["optimum"], errors["no update"]
    finish(ax, title or f"one mask at {100 * sparsity:.4g} %", log="x", xlabel="iteration",
           ylabel=style.RELATIVE_ERROR, ylim=(1.12 * low - 0.12 * high, 1.12 * high - 0.12 * low),
           legend={"fontsize": 9, "loc": "upper right", "bbox_to_anchor": (1, 0.88),
                   "frameon": True, "edgecolor": "none",
                   "title": "within 1 % of the optimum after", "alignment": "left"})  # fmt: skip
    style.plain_log(ax.xaxis)
    return figure


def _arrival(curve: Row) -> tuple[float, float]:
    """The iterations to within 1 % of the optimum, as claims count them; the last error decides a
    tie."""
    return cost_to_reach([curve], ENOUGH, "iterations"), curve["error"][-1]


def _when(curve: Row) -> str:
    """When a curve arrives, as text."""
    step, _ = _arrival(curve)
    if step == np.inf:
        return ": never"
    seconds = cost_to_reach([curve], ENOUGH, "seconds")
    return f": {step:.3g} iteration{'s' * (step != 1)}, {seconds:.2g} s"


def _best_curves(curves: Sequence[Row]) -> dict[tuple[str, bool], Row]:
    """The curve that arrives first of each solver, with preconditioning and without; of ADMM with
    its usual ρ, so that only gradient methods have a choice, their learning rate."""
    usual = {"rho": USUAL["rho"], "damping": _study_damping(curves)}
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for solver in RACERS:
        for curve in matching(curves, solver=solver, **usual if solver == "admm" else {}):
            if curve["error"]:
                groups[solver, curve["precondition"]].append(curve)
    return {key: min(found, key=_arrival) for key, found in groups.items()}


def _study_damping(curves: Iterable[Row]) -> float | None:
    """The damping of a study: that of its gradient methods, which have no other."""
    return next((c["damping"] for c in curves if c["solver"] != "admm"), USUAL["damping"])


def update_median_figure(records: Iterable[Record]) -> Figure | None:
    """Excess over the optimum, median over all layers studied, log axes: ADMM and its rivals by
    iteration; the same by time, in units of 20 iterations of ADMM; ADMM for each ρ; dashed without
    preconditioning.

    Rivals count at the learning rate that arrives first on their problem. Time is relative because
    layers differ in size; an iteration takes the same time whatever ρ is.
    """
    rivals: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    settings: dict[tuple[float, bool], list[Row]] = defaultdict(list)
    studied = with_series(records, "curves")
    for record in studied:
        curves = record["series"]["curves"]
        for sparsity in sorted({curve["sparsity"] for curve in curves}):
            best = _best_curves(matching(curves, sparsity=sparsity))
            ours = best["admm", True]
            unit = ours["seconds"][ours["iterations"].index(20)]
            for key, curve in best.items():
                rivals[key].append(curve | {"time": np.asarray(curve["seconds"]) / unit})
        for curve in matching(curves, solver="admm", damping=_study_damping(curves)):
            settings[curve["rho"], curve["precondition"]].append(curve)
    if not rivals:
        return None
    figure, grid = style.new_figure(2, size=(7.0, 6.4), rows=2, sharey=True)
    style.note_shared(figure, studied)
    (steps, times), (rhos, corner) = grid
    for (solver, precondition), found in rivals.items():
        look = _plain_look(RACERS[solver], precondition)
        steps.plot(_median_curve(found), **look)
        times.plot(*_median_in_time(found), **look)
    for (rho, precondition), found in sorted(settings.items()):
        rhos.plot(_median_curve(found), **_plain_look(f"ρ = {rho:g}", precondition))
    for ax in (steps, times, rhos):
        ax.axhline(ENOUGH, color=style.DENSE, linewidth=0.8, linestyle=(0, (1, 2)))
        style.name_line(ax, "1 %", ENOUGH)
        finish(ax, log="xy", xlabel="iteration", ylim=(1e-9, None))
        style.plain_log(ax.xaxis)
    problems = sum(map(len, rivals.values())) // len(rivals)
    finish(steps, "ADMM and its rivals", ylabel="excess over the optimum")
    finish(times, "the same by time", xlabel="time (1 = 20 iterations of ADMM)")
    finish(rhos, "ADMM with other ρ", ylabel="excess over the optimum")
    names = [RACERS[solver] for solver in dict.fromkeys(solver for solver, _ in rivals)]
    names += [f"ρ = {rho:g}" for rho in sorted({rho for rho, _ in settings})]
    for name in names:
        corner.plot([], [], label=name, **_plain_look(name, True))
    for dash, name in (("-", "preconditioned"), ("--", "not preconditioned")):
        corner.plot([], [], color="black", linestyle=dash, label=name)
    corner.axis("off")
    amount = f"median of {problems} problems" if problems > 1 else None
    corner.legend(title=amount, loc="center", frameon=False, fontsize=9)
    return figure


def _plain_look(name: str, precondition: bool) -> dict[str, Any]:
    """The colour of a solver or of a ρ, dashed without preconditioning."""
    return {"color": style_of(name)["color"], "linestyle": "-" if precondition else "--"}


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
