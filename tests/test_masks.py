"""Masks worked out by hand, exact counts, and every way to ask for the wrong one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from helpers.errors import BadParameter, BadPattern, BadSparsity
from helpers.masks import (
    Pattern,
    check_target,
    cubic_schedule,
    select,
    top_k,
    top_nm,
)

T, F = True, False


# ---------------------------------------------------------------- unstructured, by hand


def test_matrix_budget_spends_zeros_where_scores_are_lowest() -> None:
    # Half of 8 is 4 zeros; the four lowest scores 1, 2, 3, 4 are the whole first row.
    score = torch.tensor([[1.0, 3.0, 2.0, 4.0], [8.0, 6.0, 5.0, 7.0]])
    expected = torch.tensor([[F, F, F, F], [T, T, T, T]])
    assert torch.equal(top_k(score, 0.5, budget="matrix"), expected)


def test_output_budget_spends_the_same_number_in_each_row() -> None:
    # Two zeros a row: 1 and 2 in the first, 5 and 6 in the second.
    score = torch.tensor([[1.0, 3.0, 2.0, 4.0], [8.0, 6.0, 5.0, 7.0]])
    expected = torch.tensor([[F, T, F, T], [T, F, F, T]])
    assert torch.equal(top_k(score, 0.5, budget="output"), expected)


def test_matrix_is_the_default_budget() -> None:
    score = torch.tensor([[1.0, 3.0, 2.0, 4.0], [8.0, 6.0, 5.0, 7.0]])
    assert torch.equal(top_k(score, 0.5), top_k(score, 0.5, budget="matrix"))


def test_sparsity_zero_keeps_everything() -> None:
    score = torch.zeros(3, 4)
    assert top_k(score, 0.0).all()
    assert top_k(score, 0.0, budget="output").all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 7), (6, 40), (33, 64)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.55, 0.6, 2 / 3, 0.7, 0.8, 0.99])
@pytest.mark.parametrize("ties", ["none", "many", "all"])
def test_unstructured_count_is_exact_with_and_without_ties(
    shape: tuple[int, int], sparsity: float, ties: str
) -> None:
    score = torch.rand(shape)
    score = {"none": score, "many": (score * 3).round(), "all": torch.ones(shape)}[ties]
    keep = top_k(score, sparsity)
    zeros = int((~keep).sum())
    assert abs(zeros - sparsity * score.numel()) <= 0.5 + 1e-9
    if 0 < zeros < keep.numel():
        assert score[keep].min() >= score[~keep].max()


@pytest.mark.parametrize("sparsity", [0.1, 0.45, 0.5, 0.6, 0.8])
def test_output_count_is_exact_in_every_row_under_ties(sparsity: float) -> None:
    score = (torch.rand(9, 20) * 3).round()
    keep = top_k(score, sparsity, budget="output")
    assert ((~keep).sum(1) == round(sparsity * 20)).all()
    for row, kept in zip(score, keep, strict=True):
        assert row[kept].min() >= row[~kept].max()


def test_large_matrix_counts_exactly() -> None:
    # Beyond 2^24 entries a float32 count would round; torch.quantile refuses such inputs too.
    score = torch.rand(4100, 4100)
    assert int((~top_k(score, 0.5)).sum()) == 4100 * 4100 // 2


def test_selection_does_not_touch_the_score() -> None:
    score = torch.rand(6, 8)
    before = score.clone()
    top_k(score, 0.5)
    top_nm(score, 2, 4)
    select(score, 0.25, "2:4")
    assert torch.equal(score, before)


# ---------------------------------------------------------------- N:M


def test_two_of_four_by_hand() -> None:
    # Group (3, 1, 4, 2) keeps 3 and 4; group (9, 9, 0, 1) keeps both nines.
    score = torch.tensor([[3.0, 1.0, 4.0, 2.0, 9.0, 9.0, 0.0, 1.0]])
    assert torch.equal(top_nm(score, 2, 4), torch.tensor([[T, F, T, F, T, T, F, F]]))


def test_four_of_eight_is_not_two_of_four() -> None:
    # The four largest of eight are the first four; 2:4 would have to keep two in each half.
    # (The published code's 4:8 mode silently gives 2:4.)
    score = torch.tensor([[8.0, 7.0, 6.0, 5.0, 1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(top_nm(score, 4, 8), torch.tensor([[T, T, T, T, F, F, F, F]]))
    assert torch.equal(top_nm(score, 2, 4), torch.tensor([[T, T, F, F, F, F, T, T]]))


def test_groups_run_along_the_input() -> None:
    # Down the columns every score is equal; only along the rows do they differ.
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).repeat(4, 1)
    assert torch.equal(top_nm(score, 2, 4), torch.tensor([[T, T, F, F]]).repeat(4, 1))


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (5, 8), (1, 2)])
@pytest.mark.parametrize("ties", ["none", "many", "all"])
def test_every_group_holds_exactly_n(n: int, m: int, ties: str) -> None:
    score = torch.rand(11, 48)
    score = {"none": score, "many": (score * 2).round(), "all": torch.zeros(11, 48)}[ties]
    for keep in (top_nm(score, n, m), select(score, 1 - n / m, f"{n}:{m}")):
        groups = keep.reshape(11, -1, m)
        assert (groups.sum(-1) == n).all()
        scores = score.reshape(11, -1, m)
        lowest_kept = scores.masked_fill(~groups, math.inf).amin(-1)
        highest_lost = scores.masked_fill(groups, -math.inf).amax(-1)
        assert (lowest_kept >= highest_lost).all()


def test_partial_nm_keeps_the_top_n_and_drops_the_rest_by_score() -> None:
    # 3/8 of 8 weights: three zeros. The protected top two are 4, 3 and 40, 30; the candidates
    # are 2, 1, 20, 10, of which 1, 2, 10 go. Without the protection 3 would have gone, not 10.
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0, 40.0, 30.0, 20.0, 10.0]])
    expected = torch.tensor([[T, T, F, F, T, T, T, F]])
    assert torch.equal(select(score, 3 / 8, "2:4"), expected)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_partial_nm_counts_exactly_and_protects_the_top_n(n: int, m: int, ties: bool) -> None:
    score = torch.rand(10, 40)
    score = (score * 3).round() if ties else score
    top = top_nm(score, n, m)
    final = 1 - n / m
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        keep = select(score, share * final, f"{n}:{m}")
        assert abs(int((~keep).sum()) - share * final * 400) <= 0.5 + 1e-9
        assert keep[top].all()


def test_select_unstructured_is_top_k() -> None:
    score = torch.rand(7, 9)
    assert torch.equal(select(score, 0.6, "unstructured"), top_k(score, 0.6))
    by_output = select(score, 0.6, "unstructured", budget="output")
    assert torch.equal(by_output, top_k(score, 0.6, budget="output"))


# ---------------------------------------------------------------- schedule


def test_cubic_schedule_by_hand() -> None:
    # s_t = s_f − s_f (1 − t/15)³ at s_f = 0.6, as exact fractions:
    #   t = 1: 1 − (14/15)³ = 631/3375;   t = 5: 1 − (2/3)³ = 19/27;   t = 10: 1 − 1/27 = 26/27.
    final = Fraction(6, 10)
    for step, share in ((1, Fraction(631, 3375)), (5, Fraction(19, 27)), (10, Fraction(26, 27))):
        assert cubic_schedule(0.6, step, 15) == pytest.approx(float(final * share), rel=1e-12)
    assert cubic_schedule(0.6, 0, 15) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("final", [0.1, 0.5, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("steps", [1, 7, 15])
def test_cubic_schedule_ends_exactly_and_never_falls(final: float, steps: int) -> None:
    values = [cubic_schedule(final, step, steps) for step in range(1, steps + 1)]
    assert values[-1] == final
    assert values == sorted(values)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "pattern",
    ["5:4", "2:0", "2-4", 3, None, "0:4", "", "2:4:8", "-2:4", "2:", ":4", "²:4", "2:4\n",
     "2.0:4", "Unstructured2", ("2", "4"), "a:b"],
)  # fmt: skip
def test_bad_pattern(pattern: object, one_line_error) -> None:
    with one_line_error(BadPattern, "unstructured"):
        Pattern.parse(pattern)
    with one_line_error(BadPattern):
        check_target(0.5, pattern)


@pytest.mark.parametrize(
    ("text", "n", "m"), [("unstructured", None, None), ("2:4", 2, 4), ("16:32", 16, 32)]
)
def test_good_patterns(text: str, n: int | None, m: int | None) -> None:
    pattern = Pattern.parse(text)
    assert (pattern.n, pattern.m, pattern.grouped) == (n, m, m is not None)
    assert str(pattern) == text and Pattern.parse(pattern) is pattern


@pytest.mark.parametrize(
    "sparsity",
    [1.0, -0.1, "half", 60, float("nan"), float("inf"), True, False, None, "0.5", [0.5], 1.5,
     0.5 + 0j],
)  # fmt: skip
def test_bad_sparsity(sparsity: object, one_line_error) -> None:
    with one_line_error(BadSparsity):
        check_target(sparsity, "unstructured")


def test_a_percentage_is_recognised(one_line_error) -> None:
    with one_line_error(BadSparsity, "60", "0.6"):
        check_target(60, "unstructured")


@pytest.mark.parametrize(
    ("sparsity", "pattern", "expected"),
    [(0.6, "unstructured", 0.6), (0, "unstructured", 0.0), (None, "2:4", 0.5),
     (0.5, "2:4", 0.5), (None, "1:4", 0.75), (0.375, "5:8", 0.375), (None, "4:8", 0.5),
     (1 / 3, "2:3", 1 / 3), (np.float64(0.5), "unstructured", 0.5),
     (np.float32(0.5), "4:8", 0.5)],
)  # fmt: skip
def test_target(sparsity: object, pattern: str, expected: float) -> None:
    target = check_target(sparsity, pattern)
    assert isinstance(target, float)
    assert target == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("sparsity", "pattern"), [(0.6, "2:4"), (0.25, "1:4"), (0.0, "2:4"), (0.5, "5:8")]
)
def test_sparsity_that_contradicts_the_pattern(
    sparsity: float, pattern: str, one_line_error
) -> None:
    with one_line_error(BadSparsity, pattern):
        check_target(sparsity, pattern)


def test_group_must_divide_the_inputs(one_line_error) -> None:
    with one_line_error(BadPattern, "4", "10"):
        select(torch.rand(3, 10), 0.5, "2:4")


def test_unknown_budget(one_line_error) -> None:
    with one_line_error(BadParameter, "matrix", "output"):
        top_k(torch.rand(3, 4), 0.5, budget="row")


def test_a_mask_is_written_as_ones_and_zeros() -> None:
    score = torch.rand(12, 16)
    for pattern, budget in (
        ("unstructured", "matrix"),
        ("unstructured", "output"),
        ("2:4", "matrix"),
    ):
        for sparsity in (0.0, 0.25, 0.5):
            out = torch.full_like(score, 7)
            assert select(score, sparsity, pattern, budget, out=out).data_ptr() == out.data_ptr()
            assert torch.equal(out, select(score, sparsity, pattern, budget).float())
