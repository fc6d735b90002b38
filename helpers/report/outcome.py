"""What a claim is and how it is decided: verdicts, and values whose errors cross a bound or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

HOLDS, FAILS = "holds", "does not hold"
OPEN, UNTESTED = "not decided here", "not tested here"


class Outcome(NamedTuple):
    """A verdict (HOLDS, FAILS, OPEN or UNTESTED), and the numbers it rests on."""

    verdict: str
    numbers: str
    leans: str = ""  # the verdict without noise, and with enough records: HOLDS, FAILS or unknown
    condition: str = ""  # under which the sentence was tested, where another may turn it


class Claim(NamedTuple):
    """A sentence, the words of its test, and the test of `Findings` (helpers.report.claims)."""

    sentence: str
    test: str
    check: Callable[[Any], Outcome]


def untested(needed: str) -> Outcome:
    """The outcome of a claim that lacks its runs."""
    return Outcome(UNTESTED, f"needs {needed}")


def between(
    found: Iterable[tuple[float, float]], least: float = -math.inf, most: float = math.inf
) -> tuple[str, str]:
    """The verdict on values with errors: HOLDS if all are in these bounds, FAILS if one is outside.

    A value counts with its error on both sides; where that crosses a bound, or is NaN, the verdict
    is OPEN. The second verdict leaves the errors out.
    """
    values, ranges = zip(*((v, (v - error, v + error)) for v, error in found), strict=True)
    leans = HOLDS if all(least < value < most for value in values) else FAILS
    if any(high < least or low > most for low, high in ranges):
        return FAILS, leans
    return HOLDS if all(least < low and high < most for low, high in ranges) else OPEN, leans
