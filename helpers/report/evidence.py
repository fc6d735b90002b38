"""How a claim is decided: margins with half intervals, and one rule for all of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from helpers.report.model_results import ModelResults
from helpers.report.runs_table import confidence_interval

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not decided here"
UNTESTED = "not tested here"
SEEDED = "60 %"  # the column that is run with several seeds
UNKNOWN = math.nan  # the half interval of what is too little to decide
# how far a value lies on the claim's side of its limit, and half of its interval
Margin = tuple[float, float]


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
    margins = list(margins)
    numbers = list(numbers)
    if seeds < fewest:
        margins = [(margin, UNKNOWN) for margin, _ in margins]
        numbers.append(f"{seeds} of {fewest} seeds")
    else:
        numbers.append(f"{seeds} seeds")
    if missing:
        margins.append((math.nan, UNKNOWN))
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
