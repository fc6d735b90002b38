"""Masks by hand and against numpy, exact counts, and targets that contradict themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from layers import drawn, groups_of, layer, masked

from helpers.errors import BadParameter, NonFinite
from helpers.paper.masks import Pattern, check_keep, choose_mask, select, top_k, top_nm

UNSTRUCTURED = "unstructured"

# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    "scores, sparsity, pattern, budget, expected",
    [
        # half of 8 is 4 zeros; the four lowest scores 1, 2, 3, 4 are the whole first row
        ("1324 8657", 0.5, UNSTRUCTURED, "matrix", ".... xxxx"),
        # two zeros a row: 1 and 2 in the first, 5 and 6 in the second
        ("1324 8657", 0.5, UNSTRUCTURED, "output", ".x.x x..x"),
        # of equal scores the earlier stay
        ("1111 1111", 0.5, UNSTRUCTURED, "matrix", "xxxx ...."),
        # the four largest of eight are the first four; 2:4 has to keep two in each half
        # (the published code's 4:8 mode silently gives 2:4)
        ("87651234", 0.5, "4:8", "matrix", "xxxx...."),
        ("87651234", 0.5, "2:4", "matrix", "xx....xx"),
        # groups run along the inputs: down the columns every score is equal
        ("4321 4321 4321 4321", 0.5, "2:4", "matrix", "xx.. xx.. xx.. xx.."),
        # on the way to 2:4, three zeros of eight: the top two of each group, 4, 3 and 8, 7, are
        # protected; of the others 1, 2 and 5 go. Without protection 3 would have gone, not 5
        ("43218765", 3 / 8, "2:4", "matrix", "xx..xxx."),
    ],
)
def test_by_hand(scores, sparsity, pattern, budget, expected):
    rows = [[float(digit) for digit in row] for row in scores.split()]
    assert drawn(select(torch.tensor(rows), sparsity, pattern, budget)) == expected


# ---------------------------------------------------------------- against sorting in numpy


# few values, so that most scores have equals; and any that is finite
SCORES = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 2.0**100, width=32)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    pattern=st.sampled_from([UNSTRUCTURED, "1:2", "2:4", "2:3", "4:8", "5:8", "7:12"]),
    share=st.floats(0, 1),
    budget=st.sampled_from(["matrix", "output"]),
    data=st.data(),
)
def test_select_is_exact(rows, groups, pattern, share, budget, data):
    n, m = groups_of(pattern) or (0, 7)
    # infinite is the mark of what an N:M pattern protects on the way
    elements = SCORES if n else SCORES | st.just(math.inf)
    scores = arrays.arrays("float32", (rows, groups * m), elements=elements)
    score = torch.from_numpy(data.draw(scores))
    before = score.clone()
    sparsity = share * min(1 - n / m, 0.99)
    keep = select(score, sparsity, pattern, budget)
    expected = masked(score.numpy(), sparsity, pattern, budget)
    assert keep.dtype == torch.bool
    assert np.array_equal(keep.numpy(), expected)
    out = torch.full_like(score, 7)
    target = Pattern.parse(pattern)
    found = choose_mask(score, sparsity, target, budget, out=out)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(out, keep.float())
    assert torch.equal(score, before)
    if n:  # which are never pruned on the way
        assert keep[top_nm(score, n, m)].all()


def test_large_matrices_count_exactly():
    # Beyond 2^24 entries a float32 count would round; torch.quantile refuses such inputs too.
    score = torch.rand(4100, 4100)
    assert int((~top_k(score, 0.5)).sum()) == 4100 * 4100 // 2


@pytest.mark.parametrize(
    "budget, pattern", [("matrix", UNSTRUCTURED), ("output", "2:4")]
)
def test_a_score_that_is_nan_is_not_ranked(budget, pattern, one_line_error):
    score = torch.rand(3, 8)
    score[1, 2] = (
        math.nan
    )  # larger and smaller than nothing: another number would be kept
    with one_line_error(NonFinite, "NaN"):
        select(score, 0.5, pattern, budget)


# ---------------------------------------------------------------- sparsity and pattern


def test_a_mask_that_is_given(one_line_error):
    score = layer()[1]
    half = top_k(score, 0.5)
    assert check_keep(half, score.shape, 0.5) == 0.5
    more = 0.5 + 1 / half.numel()  # a weight more is to be chosen within it
    assert check_keep(half, score.shape, more) == more
    # fewer than N in a group are allowed
    sparser = top_nm(score, 2, 4) & (torch.arange(32) > 3)
    assert check_keep(sparser, score.shape, None, "2:4") == pytest.approx(0.5 + 2 / 32)
    for keep, sparsity, pattern in (
        (half, 0.5 - 1 / half.numel(), UNSTRUCTURED),  # one weight too many
        (half, None, "2:4"),  # some group holds three or four
        (sparser, 0.5, "2:4"),
    ):
        with one_line_error(BadParameter, "keep"):
            check_keep(keep, score.shape, sparsity, pattern)
