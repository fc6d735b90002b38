"""Selection without a sort answers what a sort answers; test_admm.py compares the fused solver."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helpers.fast.selection import (
    SAMPLE,
    bisect,
    keep_largest,
    nth_smallest,
    scores_near,
    top_nm,
)
from helpers.masks import keep_largest_by_sorting

quick = settings(max_examples=60, deadline=None)
# few values, so that most scores have equals; and any float32 that is not NaN
some_scores = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0, math.inf]), st.floats(0, width=32, allow_nan=False)
)


def score_rows(columns):
    """Matrices of scores, (1 to 4, columns)."""
    shapes = st.tuples(st.integers(1, 4), columns)
    return shapes.flatmap(
        lambda shape: arrays.arrays("float32", shape, elements=some_scores)
    )


@quick
@given(rows=score_rows(st.integers(1, 40)), share=st.floats(0, 1))
def test_the_largest_without_a_sort(rows, share):
    rows, zeros = torch.from_numpy(rows), round(share * rows.shape[1])
    expected = keep_largest_by_sorting(rows, zeros)
    keep = keep_largest(rows, zeros)
    assert keep.dtype == expected.dtype == torch.bool
    assert torch.equal(keep, expected)
    out = torch.full_like(rows, 7)
    assert keep_largest(rows, zeros, out) is out
    assert torch.equal(out, expected.float())


@quick
@given(
    n=st.integers(1, 7),
    extra=st.integers(1, 5),
    groups=st.integers(1, 4),
    data=st.data(),
)
def test_groups_without_a_sort(n, extra, groups, data):
    m = n + extra
    score = torch.from_numpy(data.draw(score_rows(st.just(m * groups))))
    expected = keep_largest_by_sorting(score.reshape(-1, m), m - n).view(score.shape)
    assert torch.equal(top_nm(score, n, m), expected)


def awkward_scores():
    """Of the kinds on which a search for a threshold goes wrong."""
    size = 40_000
    generator = torch.Generator().manual_seed(5)
    plain = torch.rand(size, generator=generator)
    spread = torch.exp(
        20 * torch.randn(size, generator=generator)
    )  # over thirty decades
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
    size = len(scores["spread"])
    periodic = torch.zeros(size)
    periodic[:: size // SAMPLE | 1] = 1.0  # all that is sampled is large
    sorted_once = scores["spread"].sort().values
    odd = {"what is sampled is unlike the rest": periodic, "sorted": sorted_once}
    return (
        scores
        | odd
        | {"negative": -scores["spread"], "float64": scores["spread"].double()}
    )


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
    scores = (
        torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).abs().numpy()
    )
    for place in (90_000, 500_000, 600_000, 999_000):
        between, before = scores_near(scores, place)
        assert before <= place < before + len(between)
        assert len(between) < 5_000
