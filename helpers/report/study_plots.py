"""Figures of the update study of notebook 02: solvers on one fixed mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from helpers.report import style
from helpers.report.frame import ENOUGH, USUAL, Record, Row, cost_to_reach, matching, with_series
from helpers.report.style import set_up, style_of

# the solvers that have curves, in the order of legends
RACERS = {"admm": "ADMM", "cg": "CG", "adam": "Adam", "sgd": "SGD"}
ENDS = {"none": "no update", "sparsegpt": "sparsegpt (one sweep)", "exact": "optimum"}


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
    set_up(ax, title or f"one mask at {100 * sparsity:.4g} %", log="x", xlabel="iteration",
           ylabel=style.RELATIVE_ERROR, ylim=(1.12 * low - 0.12 * high, 1.12 * high - 0.12 * low),
           legend={"title": "within 1 % of the optimum after"})  # fmt: skip
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
    return f": {step:.3g} iterations, {seconds:.2g} s"


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
    iteration, and by time in units of 20 iterations of ADMM (of runs that may have shared the
    machine); dashed without preconditioning.

    Rivals count at the learning rate that arrives first on their problem. Time is relative because
    layers differ in size.
    """
    rivals: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for record in with_series(records, "curves"):
        curves = record["series"]["curves"]
        for sparsity in sorted({curve["sparsity"] for curve in curves}):
            best = _best_curves(matching(curves, sparsity=sparsity))
            ours = best["admm", True]
            unit = ours["seconds"][ours["iterations"].index(20)]
            for key, curve in best.items():
                rivals[key].append(curve | {"time": np.asarray(curve["seconds"]) / unit})
    if not rivals:
        return None
    figure, (steps, times) = style.new_figure(2, size=(7.0, 4.0), sharey=True)
    for (solver, precondition), curves in rivals.items():
        name = RACERS[solver] + ("" if precondition else ", not preconditioned")
        look = {"color": style_of(RACERS[solver])["color"], "label": name}
        look["linestyle"] = "-" if precondition else "--"
        for ax, unit in ((steps, "iterations"), (times, "time")):
            ax.plot(*_median_curve(curves, unit), **look)
    for ax, label in ((steps, "iteration"), (times, "time (1 = 20 iterations of ADMM)")):
        ax.axhline(ENOUGH, color=style.DENSE, linewidth=0.8, linestyle=":", label="1 %")
        set_up(ax, log="xy", xlabel=label, ylim=(1e-9, None))
        style.plain_log(ax.xaxis)
    problems = sum(map(len, rivals.values())) // len(rivals)
    set_up(steps, ylabel="excess over the optimum", legend={"loc": "lower left", "fontsize": 8.5})
    set_up(times, f"median of {problems} problems")
    return figure


def _median_curve(curves: Sequence[Row], unit: str) -> tuple[np.ndarray, np.ndarray]:
    """The costs that all curves cover, and the median excess at each, on straight lines between
    points in logarithms."""
    first, last = max(c[unit][0] for c in curves), min(c[unit][-1] for c in curves)
    costs = np.geomspace(first, max(first, last), 60)
    logs = [
        np.interp(np.log(costs), np.log(c[unit]), np.log(np.maximum(c["excess"], 1e-12)))
        for c in curves
    ]
    return costs, np.exp(np.median(logs, axis=0))
