"""Grams against XᵀX in float64, their factors, and what is refused."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

from helpers.errors import BadParameter, NonFinite, NotPositiveDefinite
from helpers.gram import (
    Gram,
    check_gram,
    cholesky,
    climb_damping,
    damp,
    dead_inputs,
    gram_of,
    normalise,
    relative_error,
)


def exact_gram(inputs: torch.Tensor) -> torch.Tensor:
    rows = inputs.double().reshape(-1, inputs.shape[-1])
    return rows.T @ rows


def test_gram_sums_over_tokens_and_does_not_average() -> None:
    # Two tokens (1, 2) and (3, 4): XᵀX = [[1 + 9, 2 + 12], [14, 4 + 16]].
    gram = gram_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(gram, torch.tensor([[10.0, 14.0], [14.0, 20.0]]))


def test_gram_adds_up_over_batches_and_leading_shapes() -> None:
    inputs = torch.randn(5, 11, 8)
    gram = Gram(8, torch.device("cpu"))
    for part in (inputs[:2], inputs[2:3], inputs[3:].reshape(-1, 8)):
        gram.add(part)
    assert gram.tokens == 55
    assert gram.matrix.dtype == torch.float32
    torch.testing.assert_close(gram.matrix.double(), exact_gram(inputs), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    # 4096 tokens of about 30² each: float16 would overflow at 65504.
    inputs = (30 * torch.ones(4096, 4) + torch.randn(4096, 4)).to(dtype)
    gram = gram_of(inputs)
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram.double(), exact_gram(inputs), rtol=1e-5, atol=0.0)


def test_adding_leaves_the_inputs_alone_and_keeps_no_graph() -> None:
    inputs = torch.randn(6, 4, requires_grad=True)
    before = inputs.detach().clone()
    assert not gram_of(inputs).requires_grad
    assert torch.equal(inputs, before)


def test_normalised_gram_has_a_unit_diagonal_and_scales_back() -> None:
    inputs = torch.randn(50, 6) * torch.tensor([1e-3, 1.0, 10.0, 100.0, 5.0, 0.2])
    gram = gram_of(inputs)
    scaled, norms = normalise(gram)
    torch.testing.assert_close(scaled.diagonal(), torch.ones(6))
    torch.testing.assert_close(norms, inputs.norm(dim=0), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(scaled * norms[:, None] * norms, gram, rtol=1e-5, atol=1e-6)


def test_dead_inputs_have_scale_one_and_nothing_becomes_nan() -> None:
    inputs = torch.randn(20, 5)
    inputs[:, [1, 4]] = 0
    inputs[:10, 2] = 0  # partly zero is not dead
    gram = gram_of(inputs)
    assert dead_inputs(gram).tolist() == [False, True, False, False, True]
    scaled, norms = normalise(gram)
    assert torch.isfinite(scaled).all()
    assert norms[1] == norms[4] == 1
    assert not scaled[1].any() and not scaled[:, 4].any()


def factor(matrix: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """The factor of the damped matrix with the damping used, as every solver asks for it."""

    def attempt(rung: float) -> tuple[torch.Tensor, float] | None:
        lower = cholesky(damp(matrix, rung))
        return None if lower is None else (lower, rung)

    return climb_damping(damping, attempt)


def test_the_factor_is_that_of_the_damped_matrix() -> None:
    matrix = gram_of(torch.randn(60, 7) * 3)
    lower, used = factor(matrix, 0.25)
    assert used == 0.25
    expected = matrix.double() + 0.25 * matrix.double().diagonal().mean() * torch.eye(7)
    torch.testing.assert_close((lower @ lower.T).double(), expected, rtol=1e-5, atol=1e-3)


def test_the_ladder_is_climbed_and_the_rung_is_reported() -> None:
    # Diagonal mean 1 and smallest eigenvalue 1 − 1.05 = −0.05: damping 0.01 fails, 0.1 is enough.
    matrix = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    lower, used = factor(matrix, 0.01)
    assert used == pytest.approx(0.1)
    torch.testing.assert_close(lower @ lower.T, matrix + 0.1 * torch.eye(2))


def test_the_rungs_of_the_ladder() -> None:
    tried: list[float] = []
    for start in (0.0, 0.03, 2.0):
        tried.clear()
        with pytest.raises(NotPositiveDefinite):
            climb_damping(start, tried.append)
        expected = {0.0: [0, 1e-4, 1e-3, 1e-2, 1e-1, 1], 0.03: [0.03, 0.3, 1], 2.0: [2.0]}[start]
        assert tried == pytest.approx(expected)


def test_the_top_of_the_ladder_is_an_error(one_line_error) -> None:
    matrix = torch.tensor([[1.0, 5.0], [5.0, 1.0]])  # smallest eigenvalue −4
    with one_line_error(NotPositiveDefinite, "damping"):
        factor(matrix, 0.01)


def test_relative_error_equals_the_norms_of_the_outputs() -> None:
    inputs, weight = torch.randn(40, 6), torch.randn(5, 6)
    pruned = weight * (torch.rand(5, 6) > 0.5)
    dense_out, new_out = (inputs.double() @ w.double().T for w in (weight, pruned))
    expected = ((dense_out - new_out).norm() ** 2 / dense_out.norm() ** 2).item()
    assert relative_error(weight, pruned, gram_of(inputs)) == pytest.approx(expected, rel=1e-4)
    assert relative_error(weight, weight, gram_of(inputs)) == 0
    assert relative_error(weight, 0 * weight, gram_of(inputs)) == pytest.approx(1.0, rel=1e-5)


def test_relative_error_without_any_output_is_zero() -> None:
    weight = torch.randn(3, 4)
    assert relative_error(weight, 0 * weight, torch.zeros(4, 4)) == 0


def test_a_small_error_is_not_lost_to_rounding() -> None:
    # Ŵ = 0.999·W: the error is exactly 1e-6, of the size that float32 differences lose.
    inputs, weight = torch.randn(300, 32) + 3, torch.randn(16, 32)
    error = relative_error(weight.double(), 0.999 * weight.double(), gram_of(inputs))
    assert error == pytest.approx(1e-6, rel=1e-2)


def test_an_error_that_overflows_float32_is_not_reported_as_none() -> None:
    # Each entry is finite, their sum is not: 0 would be a lie, the ratio is what it was.
    inputs, weight = torch.randn(30, 8), torch.randn(4, 8)
    pruned, gram = weight * (torch.rand(4, 8) > 0.5), gram_of(inputs)
    expected = relative_error(weight, pruned, gram)
    with contextlib.suppress(NonFinite):  # saying so is as good
        assert relative_error(weight, pruned, 1e36 * gram) == pytest.approx(expected, rel=1e-3)


def test_check_gram(one_line_error) -> None:
    good = gram_of(torch.randn(30, 4))
    check_gram(good, 4)
    check_gram(torch.zeros(4, 4), 4)
    for bad in (torch.zeros(4, 5), torch.zeros(5, 5), torch.zeros(4)):
        with one_line_error(BadParameter, "4"):
            check_gram(bad, 4)
    lopsided = good.clone()
    lopsided[0, 1] += 5
    with one_line_error(BadParameter, "symmetric"):
        check_gram(lopsided, 4)
    for value in (float("nan"), float("inf")):
        broken = good.clone()
        broken[2, 2] = value
        with one_line_error(NonFinite):
            check_gram(broken, 4)


def test_a_negative_diagonal_is_no_gram(one_line_error) -> None:
    with one_line_error((NotPositiveDefinite, BadParameter)):
        check_gram(torch.diag(torch.tensor([1.0, -1.0])), 2)


def test_rounding_asymmetry_is_tolerated() -> None:
    gram = gram_of(torch.randn(2000, 16) * 50)
    gram[0, 1] *= 1 + 1e-6
    check_gram(gram, 16)


def test_the_panels_of_a_gram_are_the_whole_product() -> None:
    for d_in in (1, 2, 3, 5, 64, 101):
        inputs = torch.randn(3, 40, d_in)
        gram = Gram(d_in)
        for part in inputs:
            gram.add(part)
        rows = inputs.reshape(-1, d_in).double()
        torch.testing.assert_close(gram.matrix.double(), rows.T @ rows, rtol=1e-4, atol=1e-4)
        assert torch.equal(gram.matrix, gram.matrix.T)
        gram.add(inputs[0])  # also after it has been read
        rows = torch.cat([rows, inputs[0].double()])
        torch.testing.assert_close(gram.matrix.double(), rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_a_large_gram_is_checked_everywhere() -> None:
    gram = gram_of(torch.randn(900, 1100))
    check_gram(gram, 1100)
    lopsided, broken = gram.clone(), gram.clone()
    lopsided[1090, 3] += 1000
    broken[700, 800] = math.nan
    with pytest.raises(BadParameter, match="symmetric"):
        check_gram(lopsided, 1100)
    with pytest.raises(NonFinite):
        check_gram(broken, 1100)
