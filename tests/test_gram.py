"""Grams against XᵀX in float64, their factors, and what is no gram."""

import math

import pytest
import torch
from layers import outputs_error

from helpers.errors import BadParameter, NonFinite, NotPositiveDefinite
from helpers.paper.gram import Gram, climb_damping, gram_of, relative_error


def exact_gram(inputs):
    rows = inputs.double().reshape(-1, inputs.shape[-1])
    return rows.T @ rows


@pytest.mark.parametrize("d_in", [1, 5, 101])
def test_gram_adds_up_over_batches_of_any_shape_also_after_it_was_read(d_in):
    inputs = torch.randn(5, 11, d_in)
    gram = Gram(d_in)
    for part in (inputs[:2], inputs[2], inputs[3:].reshape(-1, d_in)):
        gram.add(part)
        expected = exact_gram(inputs.reshape(-1, d_in)[: gram.tokens])
        torch.testing.assert_close(gram.matrix.double(), expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(gram.matrix, gram.matrix.T)
    assert gram.tokens == 55


def test_half_precision_inputs_are_summed_in_float32():
    # 4096 tokens of about 30² each: float16 would overflow at 65504.
    inputs = (30 * torch.ones(4096, 4) + torch.randn(4096, 4)).half().requires_grad_()
    gram = gram_of(inputs)
    assert not gram.requires_grad
    torch.testing.assert_close(
        gram, exact_gram(inputs.detach()).float(), rtol=1e-5, atol=0.0
    )


# ---------------------------------------------------------------- factors


@pytest.mark.parametrize(
    "start, rungs",
    [(0.0, [0, 1e-4, 1e-3, 1e-2, 1e-1, 1]), (0.03, [0.03, 0.3, 1]), (2.0, [2.0])],
)
def test_the_rungs_of_the_ladder(start, rungs, one_line_error):
    tried = []
    with one_line_error(NotPositiveDefinite, f"{start:g}", f"{rungs[-1]:g}"):
        climb_damping(start, tried.append)
    assert tried == pytest.approx(rungs)


# ---------------------------------------------------------------- the error of a layer


@pytest.mark.parametrize("size", [1 << 22, 12])  # all rows at once, or two
def test_relative_error_equals_the_norms_of_the_outputs(size, monkeypatch):
    monkeypatch.setattr("helpers.paper.gram.PRODUCT_SIZE", size)
    inputs = torch.randn(40, 6) + 3
    weight = torch.randn(5, 6)
    gram = gram_of(inputs)
    # the second is of the size that float32 differences lose
    for new, off in ((weight * (weight > 0), 1e-4), (0.999 * weight, 1e-2)):
        expected = outputs_error(inputs, weight, new)
        assert relative_error(weight, new, gram) == pytest.approx(expected, rel=off)
    assert relative_error(weight, new, 0 * gram) == 0  # no output to lose


@pytest.mark.parametrize(
    "left", [0.5, 0.999]
)  # the error overflows too, or the output only
def test_an_error_that_overflows_float32_is_not_reported_as_none(left, one_line_error):
    # Each entry is finite, their sum is not: 0 would be a lie.
    inputs = torch.randn(30, 8)
    weight = 30 * torch.randn(4, 8)
    with one_line_error(NonFinite, "overflows"):
        relative_error(weight, left * weight, 1e35 * gram_of(inputs))


# ---------------------------------------------------------------- what is no gram


def test_what_is_no_gram(one_line_error):
    good = gram_of(torch.randn(900, 1100) * 50)  # looked at some rows at a time
    good[0, 1] *= 1 + 1e-6  # rounding is no asymmetry
    assert Gram.of(good).checked(1100).matrix is good
    for place, value, error in (
        ((1090, 3), 1e5, BadParameter),
        ((700, 800), math.nan, NonFinite),
        ((2, 2), math.inf, NonFinite),
        ((9, 9), -1.0, NotPositiveDefinite),
    ):
        bad = good.clone()
        bad[place] = value
        with one_line_error(error, "gram"):
            Gram.of(bad).checked(1100)


def test_a_gram_is_checked_again_when_it_has_changed(one_line_error):
    gram = Gram.of(gram_of(torch.randn(9, 4)))
    assert gram.checked(4) is gram.checked(4) is Gram.of(gram)
    gram.add(torch.full((1, 4), math.inf))
    with one_line_error(NonFinite, "gram"):
        gram.checked(4)


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 4)])
def test_inputs_of_another_width_are_not_mixed_up(shape, one_line_error):
    # they hold a multiple of six numbers, and could be taken for rows of six
    with one_line_error(BadParameter, "inputs", str(shape)):
        Gram(6).add(torch.randn(shape))
