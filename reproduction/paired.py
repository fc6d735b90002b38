"""How far two models are apart that have answered the same items."""

from collections.abc import Sequence

from helpers.data.tasks import mean_and_error


def paired_difference(
    one: Sequence[float], other: Sequence[float]
) -> tuple[float, float]:
    """Mean of one − other over the same items, two or more, and its standard error."""
    # var(a − b) = var(a) + var(b) − 2 cov(a, b): two models mostly fail on the same, hard items, so
    # their scores vary together and the difference is known far better than either accuracy
    pairs = zip(one, other, strict=True)
    return mean_and_error([first - second for first, second in pairs])
