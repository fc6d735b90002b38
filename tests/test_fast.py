"""The quick forms against the plain ones: selection without a sort, and XᵀX in panels.

test_masks.py has whole masks, test_admm.py the solver.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helpers.paper.fast import panels
from helpers.paper.fast.selection import (
    SAMPLE,
    bisect,
    flip_negative,
    keep_largest,
    nth_smallest,
    scores_near,
)
from helpers.paper.masks import keep_largest_by_sorting

quick = settings(max_examples=100, deadline=None)

# ---------------------------------------------------------------- any scores, in small rows

# few values, so that most scores have equals; and any other, infinite ones too, but not NaN
SCORES = st.sampled_from([-1.0, 0.0, 0.5]) | st.floats(width=32, allow_nan=False)


@st.composite
def rows_and_zeros(draw):
    """Scores (rows, n), and how many of each row are to be pruned."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    rows = draw(arrays.arrays("float32", shape, elements=SCORES))
    # a negative zero is equal to zero, and a sort may leave either first
    return torch.from_numpy(rows + 0.0), draw(st.integers(0, shape[1]))


@quick
@given(rows_and_zeros())
def test_what_is_kept_is_what_a_sort_leaves(drawn):
    rows, zeros = drawn
    expected = keep_largest_by_sorting(rows, zeros)
    assert torch.equal(keep_largest(rows, zeros), expected)
    if zeros:
        threshold = rows.sort(dim=1).values[:, zeros - 1 : zeros]
        assert torch.equal(bisect(rows, zeros), threshold)


@quick
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_bits_of_floats_are_in_the_order_of_the_floats(numbers):
    bits = torch.tensor(numbers, dtype=torch.int32)
    assert torch.equal(flip_negative(flip_negative(bits)), bits)
    floats = bits.view(torch.float32)
    floats = floats[~floats.isnan()] + 0.0  # without negative zeros
    order = flip_negative(floats.view(torch.int32))
    assert torch.equal(floats[order.argsort()], floats.sort().values)


# ---------------------------------------------------------------- large rows


def large_scores():
    """Kinds of scores on which a search for a threshold between bounds may go wrong."""
    plain = torch.rand(40_000)
    spread = torch.exp(20 * torch.randn(40_000))  # over thirty decades
    periodic = torch.zeros(40_000)
    periodic[:: 40_000 // SAMPLE | 1] = 1.0  # all that is sampled is large
    return {
        "few values": (plain * 5).round(),
        "one value": 0 * plain,
        "protected": torch.where(plain < 0.5, math.inf, plain),
        "subnormal": plain * 1e-40,
        "what is sampled is unlike the rest": periodic,
        "sorted": spread.sort().values,
        "negative": -spread,
        "float64": spread.double(),
    }


@pytest.mark.parametrize("kind", large_scores())
def test_in_a_large_row_too_without_a_sort(kind):
    row = large_scores()[kind].view(1, -1)
    ordered = row[0].sort().values
    for zeros in (1, 2, 17, 3600, 20_000, 24_001, 39_999, 40_000):
        last, *after = ordered[zeros - 1 : zeros + 1]
        found, tied = nth_smallest(row[0].numpy(), zeros - 1)
        assert (found, tied) == (last, after == [last])
        expected = keep_largest_by_sorting(row, zeros)
        assert torch.equal(keep_largest(row, zeros), expected)
        if kind != "float64":
            assert bisect(row, zeros) == last


def test_few_scores_are_left_to_select_from():
    """Else the search was for nothing: the sample alone leaves 60 thousand of a million."""
    scores = torch.randn(1_000_000).abs().numpy()
    for place in (90_000, 500_000, 600_000, 999_000):
        between, before = scores_near(scores, place)
        assert before <= place < before + len(between)
        assert len(between) < 5_000


# ---------------------------------------------------------------- panels


@quick
@given(tokens=st.integers(1, 5), d_in=st.integers(1, 13))
def test_panels_add_up_to_the_whole_product(tokens, d_in):
    # whole numbers, whose products are exact in any order
    rows = np.arange(tokens * d_in, dtype="float32").reshape(tokens, d_in) % 7 - 3
    total = torch.zeros(d_in, d_in)
    for _ in range(2):
        panels.add_upper(total, torch.from_numpy(rows))
    panels.mirror(total)
    assert np.array_equal(total.numpy(), 2 * rows.T @ rows)
