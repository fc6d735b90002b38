"""The records of one model as the tests of claims need them."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from helpers.report.beyond import pipeline_table
from helpers.report.layer_tables import DAMPING
from helpers.report.records import Records
from helpers.report.runs_table import (
    NUMBERS,
    PRUNE_NOTEBOOK,
    ZERO_SHOT_NOTEBOOK,
    runs_table,
    with_series,
)

Row = Mapping[str, Any]  # of a series
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived
# numbers of `layer_problems`
ADMM_NUMBERS = ("excess", "error", "heldout", "iterations", "seconds")
PROBLEM_NUMBERS = (
    *ADMM_NUMBERS,
    *("sparsegpt_error", "sparsegpt_heldout"),
    *("scaled", "unscaled", "one_rho", "rhos"),
)


class ModelResults:
    """Pruning runs, zero-shot runs, layer problems and pipelines, in the most frequent setting."""

    def __init__(self, records: Records) -> None:
        self.records = list(records)
        self.pruned = runs_table(self.records, PRUNE_NOTEBOOK).query("usual")
        self.scored = runs_table(self.records, ZERO_SHOT_NOTEBOOK).query("usual")
        self.problems = layer_problems(self.records)
        self.pipelines = pipeline_table(self.records).query("usual")
        self.dense = self.pruned.query("method == 'dense'")["perplexity"].mean()

    def paired(
        self, target: str, other: str, timed: bool = False, **options: Any
    ) -> pd.DataFrame:
        """ADMM-Grad with options and another method at a target, a row for each seed of both.

        The columns of the other end in "_". Records of one seed, be they copies or different in
        rounding (another machine, other threads), are one sample of the calibration text: their
        mean counts, and the first is the row's record. timed: only runs that were timed alone.
        """
        runs = self.pruned.query("target == @target")
        if timed:
            runs = runs.query("timed")
        ours = _by_seed(runs, "admm-grad", json.dumps(options))
        theirs = _by_seed(runs, other, "{}")
        return ours.merge(theirs, on="seed", suffixes=("", "_"))


def _by_seed(runs: pd.DataFrame, method: str, options: str) -> pd.DataFrame:
    """Means over the records of each seed of a method with these options, and the first record."""
    runs = runs.query("method == @method and options == @options")
    seeds = runs.groupby("seed")
    return seeds[NUMBERS].mean().join(seeds["record"].first())


def layer_problems(records: Records) -> pd.DataFrame:
    """A row for each layer and sparsity of the update study; what was not run is NaN.

    Columns: layer; timed, whether the run was timed alone; curves, all of them; ADMM_NUMBERS, of
    ADMM with its defaults after 20 iterations; errors of SparseGPT; the iterations of ADMM to
    within 1 % of the optimum at the best ρ, with (scaled) and without preconditioning (unscaled),
    and at ρ = 1 (one_rho); how many ρ were tried (rhos). ADMM counts with the study's damping.
    """
    rows = []
    for record in with_series(records, "update"):
        parameters = record["parameters"]
        damping = parameters.get("damping", DAMPING)
        series = record["series"]
        for sparsity in sorted({row["sparsity"] for row in series["update"]}):
            updates = _matching(series["update"], sparsity=sparsity)
            curves = _matching(series["curves"], sparsity=sparsity)
            admm = _matching(curves, solver="admm", damping=damping)
            scaled = _matching(admm, precondition=True)
            unscaled = _matching(admm, precondition=False)
            row = {
                "layer": (parameters.get("block"), parameters["layer"]),
                "timed": record.get("timed", False),
                "curves": curves,
                "scaled": _iterations_to_optimum(scaled),
                "unscaled": _iterations_to_optimum(unscaled),
                "one_rho": _iterations_to_optimum(_matching(scaled, rho=1.0)),
                "rhos": len({curve["rho"] for curve in scaled}),
            }
            admm = _matching(updates, solver="admm", damping=damping, iterations=20)
            for ended in _matching(admm, precondition=True, rho=1.0):
                row |= {name: ended[name] for name in ADMM_NUMBERS}
            for ended in _matching(updates, solver="sparsegpt"):
                row["sparsegpt_error"] = ended["error"]
                row["sparsegpt_heldout"] = ended["heldout"]
            rows.append(row)
    columns = ["layer", "timed", "curves", *PROBLEM_NUMBERS]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(PROBLEM_NUMBERS, float))


def _matching(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows of a series that have these values."""
    return [row for row in rows if values.items() <= row.items()]


def _iterations_to_optimum(curves: list[Row]) -> float:
    """The least iterations to within 1 % of the optimum: inf if none is, NaN if not run."""
    return cost_to_reach(curves, ENOUGH, "iterations") if curves else math.nan


def cost_to_reach(curves: Iterable[Row], excess: float, unit: str) -> float:
    """The least iterations or seconds in which any of the curves gets to an excess, or inf.

    Between two points the logarithm of the excess is taken as straight, so that a curve with few
    points is not charged up to its next one.
    """
    least = math.inf
    for curve in curves:
        before = None
        for cost, reached in zip(curve[unit], curve["excess"], strict=True):
            if reached <= excess:
                if before and min(excess, reached) > 0:
                    start, high = before
                    share = math.log(high / excess)
                    share /= math.log(high / reached)
                    cost = start + share * (cost - start)
                least = min(least, cost)
                break
            before = (cost, reached)
    return least
