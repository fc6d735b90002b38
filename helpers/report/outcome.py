"""How a claim is decided: margins with half widths, and one rule for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from helpers.report.frame import interval

HOLDS, FAILS = "holds", "does not hold"
OPEN, UNTESTED = "not decided here", "not tested here"
SEEDED = "60 %"  # the column that is run with several seeds
UNKNOWN = math.nan  # the half width of what is too little to decide
Margin = tuple[
    float, float
]  # how far on the claim's side a value is, and half of its interval


class Evidence(NamedTuple):
    """The margins that a claim needs to be above zero, none if nothing was run, and in words.

    The first of the numbers, up to a semicolon, is the one that a table shows.
    """

    margins: Sequence[Margin]
    numbers: str


def decide(margins: Sequence[Margin]) -> str:
    """The verdict on a claim.

    It holds if every margin is above zero by its half width, and fails if one is below zero by its
    half width. Otherwise, and where an unknown (NaN) could turn it, the verdict is OPEN.
    """
    if not margins:
        return UNTESTED
    if any(margin + half < 0 for margin, half in margins):
        return FAILS
    return HOLDS if all(margin - half > 0 for margin, half in margins) else OPEN


def untested(needed: str) -> Evidence:
    """The evidence on a claim that lacks its runs."""
    return Evidence([], f"needs {needed}")


def from_seeds(
    margins: Sequence[Margin],
    shown: Sequence[str],
    seeds: int,
    fewest: int,
    missing: Sequence[str] = (),
) -> Evidence:
    """Evidence from means over seeds: it decides nothing with fewer than `fewest` of them.

    What is `missing` counts as a margin of which nothing is known.
    """
    numbers = [*shown, f"{seeds}{f' of {fewest}' if seeds < fewest else ''} seeds"]
    if seeds < fewest:
        margins = [(margin, UNKNOWN) for margin, _ in margins]
    if missing:
        margins = [*margins, (math.nan, UNKNOWN)]
        numbers.append(f"not run: {', '.join(missing)}")
    return Evidence(margins, "; ".join(numbers))


def seeded_intervals(
    columns: Mapping[str, Sequence[float]], scales: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    """The mean over seeds of each column, and half of its 95 % interval.

    A column with fewer seeds than SEEDED takes the interval of that, widened for its fewer seeds
    and in proportion to `scales`.
    """
    intervals = {}
    for name, values in columns.items():
        mean, half = interval(values)
        seeded = columns.get(SEEDED, ())
        if len(values) < len(seeded):
            half = interval(seeded)[1] * math.sqrt(len(seeded) / len(values))
            half *= scales[name] / scales[SEEDED] if scales else 1.0
        intervals[name] = mean, half
    return intervals


def with_error(value: float, half: float, digits: int = 0, sign: str = "") -> str:
    """A value with ± half, where that is known."""
    error = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{value:{sign}.{digits}f}{error}"
