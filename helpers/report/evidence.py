"""What claims rest on: the results of one model, margins with half intervals, and one rule."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from helpers.report.beyond import pipeline_table
from helpers.report.records import Records
from helpers.report.runs_table import (
    NUMBERS,
    PRUNE_NOTEBOOK,
    ZERO_SHOT_NOTEBOOK,
    confidence_interval,
    runs_table,
    with_series,
)
from helpers.report.tables import DAMPING

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not decided here"
UNTESTED = "not tested here"
SEEDED = "60 %"  # the column that is run with several seeds
UNKNOWN = math.nan  # the half interval of what is too little to decide
# how far a value lies on the claim's side of its limit, and half of its interval
Margin = tuple[float, float]
Row = Mapping[str, Any]  # of a series
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived
# numbers of `layer_problems`: of ADMM, of SparseGPT, and of the search for ρ
PROBLEM_NUMBERS = [
    "excess",
    "error",
    "heldout",
    "iterations",
    "seconds",
    "sparsegpt_error",
    "sparsegpt_heldout",
    "scaled",
    "unscaled",
    "one_rho",
    "rhos",
]


# ------------------------------------------------------------------ the records of one model


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

    Columns: layer; timed, whether the run was timed alone; curves, all of them; the numbers of
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
            for ended in _matching(
                updates,
                solver="admm",
                damping=damping,
                iterations=20,
                precondition=True,
                rho=1.0,
            ):
                row |= ended
            for ended in _matching(updates, solver="sparsegpt"):
                row["sparsegpt_error"] = ended["error"]
                row["sparsegpt_heldout"] = ended["heldout"]
            rows.append(row)
    table = pd.DataFrame(rows, columns=["layer", "timed", "curves", *PROBLEM_NUMBERS])
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


# ------------------------------------------------------------------ margins and verdicts


class Evidence(NamedTuple):
    """The margins that must be above zero for a claim to hold, none if nothing was run.

    `numbers` says in words what they rest on; the part up to the first semicolon is what a table
    of claims shows.
    """

    margins: Sequence[Margin]
    numbers: str


class Claim(NamedTuple):
    """A claim as the page of claims prints it, and its test on the results of one model."""

    number: int
    sentence: str
    how: str  # it is tested
    table: str  # that shows the numbers
    test: Callable[[ModelResults], Evidence]


def decide(margins: Sequence[Margin]) -> str:
    """The verdict on a claim.

    It holds if every margin exceeds zero by its half interval, and fails if one is below zero by
    its half interval. Otherwise, and where an unknown (NaN) could change that, it is OPEN.
    """
    if not margins:
        return UNTESTED
    if any(margin + half < 0 for margin, half in margins):
        return FAILS
    if all(margin - half > 0 for margin, half in margins):
        return HOLDS
    return OPEN


def untested(needed: str) -> Evidence:
    """The evidence on a claim whose runs are missing."""
    return Evidence([], f"needs {needed}")


def from_seeds(
    margins: Sequence[Margin],
    numbers: Sequence[str],
    seeds: int,
    fewest: int,
    missing: Sequence[str] = (),
) -> Evidence:
    """Evidence from means over seeds, which decides nothing with fewer than `fewest` seeds.

    What is `missing` counts as a margin of which nothing is known.
    """
    amount = f"{seeds} seeds"
    if seeds < fewest:
        margins = [(margin, UNKNOWN) for margin, _ in margins]
        amount = f"{seeds} of {fewest} seeds"
    numbers = [*numbers, amount]
    if missing:
        margins = [*margins, (math.nan, UNKNOWN)]
        numbers.append(f"not run: {', '.join(missing)}")
    return Evidence(margins, "; ".join(numbers))


def seeded_intervals(
    columns: Mapping[str, Sequence[float]], scales: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    """The mean over seeds of each column, and half of its 95 % interval.

    A column with fewer seeds than SEEDED has too few for an interval of its own. It takes that of
    SEEDED, widened for its fewer seeds and in proportion to `scales`.
    """
    intervals = {}
    most = columns.get(SEEDED, ())
    for name, values in columns.items():
        mean, half = confidence_interval(values)
        if len(values) < len(most):
            half = confidence_interval(most)[1] * math.sqrt(len(most) / len(values))
            if scales:
                half *= scales[name] / scales[SEEDED]
        intervals[name] = (mean, half)
    return intervals


def with_error(value: float, half: float, digits: int = 0, sign: str = "") -> str:
    """A value with ± half of its interval, where that is known."""
    text = f"{value:{sign}.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"
