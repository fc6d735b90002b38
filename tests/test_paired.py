"""The difference of two models on the same items."""

import math

import pytest

from reproduction.paired import paired_difference


def test_paired_difference_by_hand():
    # differences 0, 1, 0, 1: mean 1/2, sum of squares 4 · 1/4, deviation sqrt(1/3), over sqrt(4)
    difference, error = paired_difference([1, 1, 0, 1], [1, 0, 0, 0])
    assert (difference, error) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert paired_difference([1, 0, 0, 0], [1, 1, 0, 1]) == (-0.5, pytest.approx(error))
    # one item in 100 apart: each accuracy alone has an error of 0.05, the pair of 0.01
    one = [1] * 51 + [0] * 49
    other = [1] * 50 + [0] * 50
    assert paired_difference(one, other) == (pytest.approx(0.01), pytest.approx(0.01))
