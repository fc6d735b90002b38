"""What claims rest on: the results of one model, margins with half intervals, and one rule."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.paths import ZERO_SHOT_NOTEBOOK
from helpers.report.beyond import pipeline_table
from helpers.report.records import Records
from helpers.report.runs_table import (
    FEWEST,
    NUMBERS,
    PRUNE_NOTEBOOK,
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
LEVEL = 0.05  # of errors: of one interval, and with Holm's correction of a whole page
TINY = 1e-300  # half of an interval that is none
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
        self,
        target: str,
        other: str,
        timed: bool = False,
        method: str = "admm-grad",
        **options: Any,
    ) -> pd.DataFrame:
        """A method with options and another one at a target, a row for each seed of both.

        The columns of the other end in "_". Records of one seed, be they copies or different in
        rounding (another machine, other threads), are one sample of the calibration text: their
        mean counts, and the first is the row's record. timed: only runs that were timed alone.
        """
        runs = self.pruned.query("target == @target and timed >= @timed")
        ours = _by_seed(runs, method, json.dumps(options))
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
        # the rows of a study of one layer may not name it
        update, traces = (
            [{"layer": parameters["layer"]} | row for row in record["series"][name]]
            for name in ("update", "curves")
        )
        for layer, sparsity in sorted(
            {(row["layer"], row["sparsity"]) for row in update}
        ):
            updates = _matching(update, layer=layer, sparsity=sparsity)
            curves = _matching(traces, layer=layer, sparsity=sparsity)
            admm = _matching(curves, solver="admm", damping=damping)
            scaled = _matching(admm, precondition=True)
            unscaled = _matching(admm, precondition=False)
            row = {
                "layer": (parameters.get("block"), layer),
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
                row = ended | row
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


class Margin(NamedTuple):
    """A mean of draws, or how far it lies on the claim's side of its limit, with its interval."""

    mean: float
    half: float = UNKNOWN  # of the 95 % interval
    freedom: float = math.nan  # degrees of freedom of the interval; NaN for a count
    draws: int = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Margin":
        """The mean of draws and Student's interval."""
        return cls(*confidence_interval(values), len(values) - 1, len(values))

    def beyond(self, limit: float, side: int = 1) -> "Margin":
        """The margin of a mean that must be above a limit, or with side −1 below it."""
        return self._replace(mean=side * (self.mean - limit))

    def text(self, digits: int = 0, sign: str = "", scale: float = 1.0) -> str:
        """The mean times `scale`, with ± where its own draws give one."""
        text = f"{scale * self.mean:{sign}.{digits}f}"
        if self.draws < FEWEST:
            return text
        return f"{text} ± {scale * self.half:.{digits}f}"


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
    if any(value + half < 0 for value, half, *_ in margins):
        return FAILS
    if all(value - half > 0 for value, half, *_ in margins):
        return HOLDS
    return OPEN


def p_value(margins: Sequence[Margin]) -> float:
    """The chance of such margins if the truth lies at the limit; NaN if no interval is known.

    A claim holds if all margins are above zero, so the largest of their chances counts (an
    intersection-union test). It fails if one is below zero, so the smallest of those counts, times
    the number of margins (Bonferroni's correction).
    """
    known = [
        margin[:3] for margin in margins if margin.half >= 0 and margin.freedom > 0
    ]
    if not known:
        return math.nan
    mean, half, freedom = np.transpose(known)
    quantiles = stats.t.ppf(1 - LEVEL / 2, freedom)  # in half an interval
    chances = 2 * stats.t.sf(abs(mean) / np.maximum(half, TINY) * quantiles, freedom)
    if all(mean > 0):
        return max(chances)
    return min(1.0, len(known) * min(chances[mean <= 0]))


def holm(chances: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's correction of p-values for their number, by key; those that are NaN are left out."""
    ordered = sorted((p, key) for key, p in chances.items() if p >= 0)
    most = len(ordered)
    steps = (min(1.0, p * (most - place)) for place, (p, _) in enumerate(ordered))
    keys = (key for _, key in ordered)
    return dict(zip(keys, itertools.accumulate(steps, max), strict=True))


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
        margins = [Margin(margin.mean) for margin in margins]
        amount = f"{seeds} of {fewest} seeds"
    numbers = [*numbers, amount]
    if missing:
        margins = [*margins, Margin(math.nan)]
        numbers.append(f"not run: {', '.join(missing)}")
    return Evidence(margins, "; ".join(numbers))


def seeded_intervals(
    columns: Mapping[str, Sequence[float]], scales: Mapping[str, float] | None = None
) -> dict[str, Margin]:
    """The mean over seeds of each column, with its interval.

    A column with one or two seeds has too few for an interval of its own. It takes that of SEEDED,
    widened for its fewer seeds and in proportion to `scales`.
    """
    intervals = {name: Margin.of(values) for name, values in columns.items()}
    if most := intervals.get(SEEDED):
        for name, own in intervals.items():
            if own.draws < min(FEWEST, most.draws):
                half = most.half * math.sqrt(most.draws / own.draws)
                if scales:
                    half *= scales[name] / scales[SEEDED]
                intervals[name] = own._replace(half=half, freedom=most.freedom)
    return intervals
