"""Selection without a sort in large rows; test_masks.py has small ones, test_admm.py the solver."""

import math

import pytest
import torch

from helpers.fast.selection import (
    SAMPLE,
    bisect,
    keep_largest,
    nth_smallest,
    scores_near,
)
from helpers.masks import keep_largest_by_sorting


def awkward_scores():
    """Of the kinds on which a search for a threshold goes wrong."""
    size = 40_000
    plain = torch.rand(size)
    spread = torch.exp(20 * torch.randn(size))  # over thirty decades
    return {
        "spread": spread,
        "few values": (plain * 5).round(),
        "one value": torch.full((size,), 0.25),
        "protected": torch.where(plain < 0.5, math.inf, plain),
        "subnormal": plain * 1e-40,
    }


@pytest.mark.parametrize("kind", awkward_scores())
def test_bisection_finds_what_a_sort_finds(kind):
    rows = awkward_scores()[kind].view(4, 10_000)
    ordered = rows.sort(dim=1).values
    for zeros in (1, 17, 5000, 9999, 10_000):
        assert torch.equal(bisect(rows, zeros), ordered[:, zeros - 1 : zeros])
    signed = torch.cat([rows, -rows], dim=1)
    assert torch.equal(bisect(signed, 3000), signed.sort(dim=1).values[:, 2999:3000])


def large_scores():
    """Rows so large that the threshold is looked for between bounds, and what misleads a sample."""
    scores = awkward_scores()
    periodic = torch.zeros(40_000)
    periodic[:: 40_000 // SAMPLE | 1] = 1.0  # all that is sampled is large
    spread = scores["spread"]
    return scores | {
        "what is sampled is unlike the rest": periodic,
        "sorted": spread.sort().values,
        "negative": -spread,
        "float64": spread.double(),
    }


@pytest.mark.parametrize("kind", large_scores())
def test_in_a_large_row_too_without_a_sort(kind):
    row = large_scores()[kind].view(1, -1)
    ordered = row.sort(dim=1).values[0]
    for zeros in (1, 2, 17, 3600, 20_000, 24_001, 39_990, 39_999, 40_000):
        found, tied = nth_smallest(row[0].numpy(), zeros - 1)
        assert found == ordered[zeros - 1]
        assert tied == (
            zeros < len(ordered) and bool(ordered[zeros] == ordered[zeros - 1])
        )
        assert torch.equal(
            keep_largest(row, zeros), keep_largest_by_sorting(row, zeros)
        )


def test_few_scores_are_left_to_select_from():
    """Else the search was for nothing: the sample alone leaves 60 thousand of a million."""
    scores = torch.randn(1_000_000).abs().numpy()
    for place in (90_000, 500_000, 600_000, 999_000):
        between, before = scores_near(scores, place)
        assert before <= place < before + len(between)
        assert len(between) < 5_000
