"""The race of the update study of notebook 02: solvers on one fixed mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from helpers.report import style
from helpers.report.frame import ENOUGH, USUAL, Record, Row, cost_to_reach, matching, with_series

# the solvers that have curves, in the order of legends
RACERS = {"admm": "ADMM", "cg": "CG", "adam": "Adam", "sgd": "SGD"}


def race_figure(records: Iterable[Record]) -> Figure | None:
    """Excess over the optimum, median over all layers studied, log axes: ADMM and its rivals by
    iteration, and by time in units of 20 iterations of ADMM (of runs that may have shared the
    machine); dashed without preconditioning.

    Rivals count at the learning rate that arrives first on their problem. Time is relative because
    layers differ in size. From the series "curves" of `helpers.study.update_study`.
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
        look = {"color": style.style_of(RACERS[solver])["color"], "label": name}
        look["linestyle"] = "-" if precondition else "--"
        for ax, unit in ((steps, "iterations"), (times, "time")):
            ax.plot(*_median_curve(curves, unit), **look)
    problems = sum(map(len, rivals.values())) // len(rivals)
    style.set_up(times, f"median of {problems} problems" if problems > 1 else "")
    for ax, label in ((steps, "iteration"), (times, "time (1 = 20 iterations of ADMM)")):
        ax.axhline(ENOUGH, color=style.DENSE, linewidth=0.8, linestyle=":", label="1 %")
        style.set_up(ax, log="xy", xlabel=label, ylim=(1e-9, None))
        style.plain_log(ax.xaxis)
    steps.set_ylabel("excess over the optimum")
    style.legend_below(figure, steps, columns=3)
    return figure


def _best_curves(curves: Sequence[Row]) -> dict[tuple[str, bool], Row]:
    """The curve that arrives first of each solver, with preconditioning and without; of ADMM with
    its usual ρ, so that only gradient methods have a choice, their learning rate."""

    def arrival(curve: Row) -> tuple[float, float]:  # the last error decides a tie
        return cost_to_reach([curve], ENOUGH, "iterations"), curve["error"][-1]

    # the damping of a study is that of its gradient methods, which have no other
    damping = next((c["damping"] for c in curves if c["solver"] != "admm"), USUAL["damping"])
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for solver in RACERS:
        usual = {"rho": USUAL["rho"], "damping": damping} if solver == "admm" else {}
        for curve in matching(curves, solver=solver, **usual):
            if curve["error"]:  # one that diverged at once has no points
                groups[solver, curve["precondition"]].append(curve)
    return {key: min(some, key=arrival) for key, some in groups.items()}


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
