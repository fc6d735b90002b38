"""Every layer method: hand examples, SparseGPT against direct OBS, dead inputs, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.admm import refit
from helpers.errors import (
    BadMask,
    BadParameter,
    BadPattern,
    BadSparsity,
    HelpersError,
    NonFinite,
    NotPositiveDefinite,
    UnknownMethod,
)
from helpers.gram import gram_of
from helpers.masks import top_k
from helpers.methods import METHODS, LayerResult, check_options, get_method, register

ALL = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
CALIBRATED = ALL[1:]
UPDATING = ALL[2:]
T, F = True, False


def layer(
    d_out: int = 12, d_in: int = 32, tokens: int = 150, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs (tokens, d_in) of unequal scale, and a weight (d_out, d_in)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=generator) / 4
    scales = torch.logspace(-0.5, 0.5, d_in)[torch.randperm(d_in, generator=generator)]
    inputs = torch.randn(tokens, d_in, generator=generator) @ (torch.eye(d_in) + mixing) * scales
    return inputs, torch.randn(d_out, d_in, generator=generator)


def zeros_of(result: LayerResult) -> int:
    return int((result.weight == 0).sum())


# ---------------------------------------------------------------- all methods alike


def test_the_five_methods_are_registered() -> None:
    assert set(ALL) <= set(METHODS)
    for name in ALL:
        assert get_method(name) is METHODS[name]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.625, 0.75])
def test_unstructured_sparsity_is_exact(name: str, sparsity: float) -> None:
    inputs, weight = layer()
    result = METHODS[name](weight, gram_of(inputs), sparsity=sparsity)
    assert zeros_of(result) == sparsity * weight.numel() == int((~result.keep).sum())
    assert result.keep.dtype == torch.bool and result.weight.shape == weight.shape
    assert not result.weight[~result.keep].any()


@pytest.mark.parametrize("name", ("magnitude", "sparsegpt", "admm1", "admm-grad"))
@pytest.mark.parametrize("sparsity", [0.1, 0.33, 0.7])
def test_the_count_is_round_of_sparsity_times_weights(name: str, sparsity: float) -> None:
    inputs, weight = layer(d_out=7, d_in=33)  # 231 weights: nothing divides evenly
    result = METHODS[name](weight, gram_of(inputs), sparsity=sparsity)
    assert int((~result.keep).sum()) == round(sparsity * 231)


@pytest.mark.parametrize("sparsity", [0.1, 0.45, 0.6, 0.7])
def test_sparsegpt_counts_exactly_over_many_blocks(sparsity: float) -> None:
    inputs, weight = layer(d_out=7, d_in=33)
    result = METHODS["sparsegpt"](weight, gram_of(inputs), sparsity=sparsity, block_size=5)
    assert abs(int((~result.keep).sum()) - sparsity * 231) <= 0.5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("5:8", 5, 8)]
)
def test_every_group_of_the_pattern_is_exact(name: str, pattern: str, n: int, m: int) -> None:
    inputs, weight = layer()
    for sparsity in (None, 1 - n / m):
        result = METHODS[name](weight, gram_of(inputs), sparsity=sparsity, pattern=pattern)
        groups = (result.weight != 0).reshape(12, -1, m).sum(-1)
        assert (groups == n).all()
        assert (result.keep.reshape(12, -1, m).sum(-1) == n).all()


@pytest.mark.parametrize("name", ALL)
def test_four_of_eight_is_not_made_of_two_of_four(name: str) -> None:
    inputs, weight = layer()
    keep = METHODS[name](weight, gram_of(inputs), pattern="4:8").keep
    assert (keep.reshape(12, -1, 4).sum(-1) != 2).any()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_ties_do_not_spoil_the_count(name: str, pattern: str) -> None:
    weight, gram = torch.ones(8, 16), 100 * torch.eye(16)
    result = METHODS[name](weight, gram, sparsity=0.5, pattern=pattern)
    assert int((~result.keep).sum()) == 64


@pytest.mark.parametrize("name", ALL)
def test_the_error_is_that_of_the_outputs(name: str) -> None:
    inputs, weight = layer()
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5)
    x = inputs.double()
    dense, new = x @ weight.double().T, x @ result.weight.double().T
    expected = ((dense - new).norm() ** 2 / dense.norm() ** 2).item()
    assert result.error == pytest.approx(expected, rel=1e-3)
    assert result.dead_inputs == 0


@pytest.mark.parametrize("name", ALL)
def test_same_input_same_bits_and_nothing_is_modified(name: str) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    before = weight.clone(), gram.clone()
    first = METHODS[name](weight, gram, sparsity=0.6)
    second = METHODS[name](weight, gram, sparsity=0.6)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.keep, second.keep)
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])


@pytest.mark.parametrize("name", ("wanda", "admm1", "admm-grad"))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_rescaling_an_input_channel_changes_nothing(name: str, pattern: str) -> None:
    # x → c·x, w → w/c leaves the function as it is. Magnitude has no such invariance, and
    # SparseGPT's damping, a multiple of the identity, has not either.
    inputs, weight = layer()
    factors = torch.ones(32)
    factors[5], factors[17] = 32.0, 1 / 16
    gram = gram_of(inputs)
    sparsity = 0.5
    plain = METHODS[name](weight, gram, sparsity=sparsity, pattern=pattern)
    scaled = METHODS[name](
        weight / factors, gram * factors * factors[:, None], sparsity=sparsity, pattern=pattern
    )
    assert torch.equal(plain.keep, scaled.keep)
    torch.testing.assert_close(scaled.weight * factors, plain.weight, rtol=1e-5, atol=1e-6)
    assert scaled.error == pytest.approx(plain.error, rel=1e-4)


def test_magnitude_does_depend_on_the_scale() -> None:
    # The test above must be able to fail: here it does.
    inputs, weight = layer()
    factors = torch.ones(32)
    factors[5] = 1 / 32
    plain = METHODS["magnitude"](weight, None, sparsity=0.5)
    assert not torch.equal(
        plain.keep, METHODS["magnitude"](weight * factors, None, sparsity=0.5).keep
    )


def test_updating_helps_and_in_the_order_of_the_paper() -> None:
    inputs, weight = layer(d_out=64, d_in=64, tokens=400)
    gram = gram_of(inputs)
    error = {name: METHODS[name](weight, gram, sparsity=0.6).error for name in ALL}
    assert error["admm-grad"] < error["admm1"] < error["wanda"] < error["magnitude"]
    assert error["sparsegpt"] < error["wanda"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_weight_comes_back_in_its_own_type(name: str, dtype: torch.dtype) -> None:
    inputs, weight = layer()
    result = METHODS[name](weight.to(dtype), gram_of(inputs), sparsity=0.5)
    assert result.weight.dtype == dtype
    assert not result.weight[~result.keep].any()


# ---------------------------------------------------------------- magnitude and wanda by hand


def test_magnitude_by_hand() -> None:
    # |W| sorted: 0.5, 1, 1.5, 2 | 3, 4, 5, 6; half of eight go, over the whole matrix.
    weight = torch.tensor([[-6.0, 0.5, 1.0, -1.5], [5.0, -4.0, 3.0, 2.0]])
    result = METHODS["magnitude"](weight, None, sparsity=0.5)
    expected = torch.tensor([[-6.0, 0.0, 0.0, 0.0], [5.0, -4.0, 3.0, 0.0]])
    assert torch.equal(result.weight, expected)
    assert result.error is None and result.damping is None
    by_output = METHODS["magnitude"](weight, None, sparsity=0.5, budget="output").weight
    assert torch.equal(by_output, torch.tensor([[-6.0, 0.0, 0.0, -1.5], [5.0, -4.0, 0.0, 0.0]]))


def test_wanda_by_hand() -> None:
    # Norms of the inputs are 1, 2, 3, 4 (diagonal 1, 4, 9, 16). Scores |W|·norm:
    #   row 0: 5, 2·2 = 4, 1·3 = 3, 0.5·4 = 2  -> keeps the first two
    #   row 1: 1, 2, 3, 4                      -> keeps the last two
    #   row 2: 5, 2.2, 3.6, 4                  -> keeps the first and the last
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0]))
    gram[0, 1] = gram[1, 0] = 0.7  # off the diagonal nothing matters
    weight = torch.tensor([[5.0, 2.0, 1.0, 0.5], [1.0, 1.0, -1.0, 1.0], [-5.0, 1.1, 1.2, 1.0]])
    result = METHODS["wanda"](weight, gram, sparsity=0.5)
    expected = torch.tensor([[5.0, 2.0, 0, 0], [0, 0, -1.0, 1.0], [-5.0, 0, 0, 1.0]])
    assert torch.equal(result.weight, expected)
    assert result.damping is None
    magnitude = METHODS["magnitude"](weight, None, sparsity=0.5).keep
    assert not torch.equal(result.keep, magnitude)


def test_wanda_counts_per_output_unless_told_otherwise() -> None:
    inputs, weight = layer()
    weight[0] *= 100
    gram = gram_of(inputs)
    per_output = METHODS["wanda"](weight, gram, sparsity=0.75).keep
    assert (per_output.sum(1) == 8).all()
    per_matrix = METHODS["wanda"](weight, gram, sparsity=0.75, budget="matrix").keep
    assert int(per_matrix[0].sum()) == 32 and int(per_matrix.sum()) == 96


def test_wanda_two_of_four_by_hand() -> None:
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0]))
    weight = torch.tensor([[5.0, 2.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    keep = METHODS["wanda"](weight, gram, pattern="2:4").keep
    assert torch.equal(keep, torch.tensor([[T, T, F, F], [F, F, T, T]]))


@pytest.mark.parametrize("name", ("magnitude", "wanda"))
def test_methods_that_only_select_keep_the_surviving_bits(name: str) -> None:
    inputs, weight = layer()
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5)
    assert torch.equal(result.weight[result.keep], weight[result.keep])


# ---------------------------------------------------------------- ADMM as a method


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_admm1_is_a_refit_on_wandas_mask(pattern: str) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    result = METHODS["admm1"](weight, gram, sparsity=0.5, pattern=pattern)
    wanda = METHODS["wanda"](weight, gram, sparsity=0.5, pattern=pattern, budget="matrix")
    assert torch.equal(result.keep, wanda.keep)
    torch.testing.assert_close(result.weight, refit(weight, gram, wanda.keep).weight)
    assert result.damping == 0.1


def test_admm1_takes_a_budget_per_output() -> None:
    inputs, weight = layer()
    weight[0] *= 100
    keep = METHODS["admm1"](weight, gram_of(inputs), sparsity=0.75, budget="output").keep
    assert (keep.sum(1) == 8).all()


def test_admm1_without_preconditioning_keeps_the_mask_and_solves_otherwise() -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    plain = METHODS["admm1"](weight, gram, sparsity=0.7)
    other = METHODS["admm1"](weight, gram, sparsity=0.7, precondition=False)
    assert torch.equal(plain.keep, other.keep)
    expected = refit(weight, gram, plain.keep, precondition=False).weight
    torch.testing.assert_close(other.weight, expected)
    assert not torch.allclose(other.weight, plain.weight, rtol=1e-2)
    given = METHODS["admm-grad"](weight, gram, keep=plain.keep, precondition=False)
    torch.testing.assert_close(given.weight, expected)


def test_options_reach_the_solver() -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    plain = METHODS["admm-grad"](weight, gram, sparsity=0.7)
    for option in (
        {"schedule": "released"}, {"rho": 3.0}, {"iterations": 16}, {"mask_steps": 5},
        {"damping": 0.5}, {"budget": "output"}, {"precondition": False},
    ):  # fmt: skip
        other = METHODS["admm-grad"](weight, gram, sparsity=0.7, **option)
        assert not torch.equal(other.weight, plain.weight), option
    assert METHODS["admm-grad"](weight, gram, sparsity=0.7, damping=0.5).damping == 0.5


# ---------------------------------------------------------------- SparseGPT against direct OBS


def damped_hessian(inputs: torch.Tensor, damping: float) -> np.ndarray:
    x = inputs.double().numpy()
    gram = x.T @ x
    return gram + damping * np.diag(gram).mean() * np.eye(len(gram))


def delete_weight(row: np.ndarray, hessian: np.ndarray, j: int) -> None:
    """Set row[j] to zero and let the weights after j make up for it as well as they can.

    With δ_j = −w_j the quadratic form δᵀHδ is least over the later δ_r at
    H_rr δ_r = −H_rj δ_j = H_rj w_j: a small linear system, no inverse and no factor.
    """
    later = np.arange(j + 1, len(row))
    if len(later):
        row[later] += np.linalg.solve(hessian[np.ix_(later, later)], hessian[later, j]) * row[j]
    row[j] = 0.0


def saliency(weight: np.ndarray, hessian: np.ndarray, j: int) -> np.ndarray:
    """Rise of the error when column j is deleted and later ones answer: w_j²/[H_{j:,j:}⁻¹]₀₀."""
    return weight[:, j] ** 2 / np.linalg.inv(hessian[j:, j:])[0, 0]


def direct_obs(
    weight: torch.Tensor,
    hessian: np.ndarray,
    *,
    keep: np.ndarray | None = None,
    sparsity: float = 0.5,
    block_size: int = 128,
    groups: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Column by column; the mask is given, or chosen at the start of each block or group."""
    work = weight.double().numpy().copy()
    adaptive = keep is None
    keep = np.ones(work.shape, dtype=bool) if adaptive else keep
    chunk = groups[1] if groups else block_size
    for j in range(work.shape[1]):
        if adaptive and j % chunk == 0:
            columns = range(j, min(j + chunk, work.shape[1]))
            score = np.stack([saliency(work, hessian, c) for c in columns], axis=1)
            keep[:, columns] = _highest(score, sparsity, groups)
        for row, stays in zip(work, keep, strict=True):
            if not stays[j]:
                delete_weight(row, hessian, j)
    return work, keep


def _highest(score: np.ndarray, sparsity: float, groups: tuple[int, int] | None) -> np.ndarray:
    keep = np.ones(score.shape, dtype=bool)
    if groups:
        losers = np.argsort(score, axis=1)[:, : groups[1] - groups[0]]
        np.put_along_axis(keep, losers, False, axis=1)
        return keep
    keep.reshape(-1)[np.argsort(score, axis=None)[: round(sparsity * score.size)]] = False
    return keep


@pytest.mark.parametrize("block_size", [4, 16, 128])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_sparsegpt_on_a_given_mask_is_direct_obs(block_size: int, damping: float) -> None:
    inputs, weight = layer(d_out=6, d_in=16)
    keep = torch.rand(6, 16) > 0.5
    expected, _ = direct_obs(weight, damped_hessian(inputs, damping), keep=keep.numpy())
    result = METHODS["sparsegpt"](
        weight, gram_of(inputs), keep=keep, damping=damping, block_size=block_size
    )
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(result.keep, keep) and result.damping == damping


@pytest.mark.parametrize("block_size", [4, 8, 16, 128])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_sparsegpt_chooses_its_mask_block_by_block(block_size: int, sparsity: float) -> None:
    inputs, weight = layer(d_out=6, d_in=16)
    hessian = damped_hessian(inputs, 0.01)
    expected, keep = direct_obs(weight, hessian, sparsity=sparsity, block_size=block_size)
    result = METHODS["sparsegpt"](weight, gram_of(inputs), sparsity=sparsity, block_size=block_size)
    assert np.array_equal(result.keep.numpy(), keep)
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("pattern", "groups"), [("2:4", (2, 4)), ("4:8", (4, 8)), ("1:4", (1, 4))])
@pytest.mark.parametrize("block_size", [8, 128])
def test_sparsegpt_chooses_each_group_when_it_gets_there(
    pattern: str, groups: tuple[int, int], block_size: int
) -> None:
    inputs, weight = layer(d_out=6, d_in=16)
    expected, keep = direct_obs(weight, damped_hessian(inputs, 0.01), groups=groups)
    result = METHODS["sparsegpt"](weight, gram_of(inputs), pattern=pattern, block_size=block_size)
    assert np.array_equal(result.keep.numpy(), keep)
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_block_size_matters_to_the_mask() -> None:
    # Guards the tests above: a block size that is ignored would go unseen if masks agreed.
    inputs, weight = layer(d_out=6, d_in=16)
    hessian = damped_hessian(inputs, 0.01)
    small, large = (direct_obs(weight, hessian, block_size=size)[1] for size in (4, 16))
    assert not np.array_equal(small, large)


@pytest.mark.parametrize("block_size", [0, -4, 2.5, "128", 6])
def test_bad_block_size(block_size: object, one_line_error) -> None:
    inputs, weight = layer()
    with one_line_error(BadParameter, "block_size"):
        METHODS["sparsegpt"](weight, gram_of(inputs), pattern="2:4", block_size=block_size)


@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf"), "0.01"])
def test_bad_damping_for_sparsegpt(damping: object, one_line_error) -> None:
    inputs, weight = layer()
    with one_line_error(BadParameter, "damping"):
        METHODS["sparsegpt"](weight, gram_of(inputs), sparsity=0.5, damping=damping)


# ---------------------------------------------------------------- masks given by the caller


@pytest.mark.parametrize("name", ALL)
def test_a_given_mask_is_obeyed(name: str) -> None:
    inputs, weight = layer()
    keep = top_k(torch.rand(weight.shape), 0.6)
    before = keep.clone()
    result = METHODS[name](weight, gram_of(inputs), keep=keep)
    assert torch.equal(result.keep, keep) and torch.equal(keep, before)
    assert not result.weight[~keep].any()
    agreed = METHODS[name](weight, gram_of(inputs), keep=keep, sparsity=0.6)
    assert torch.equal(agreed.weight, result.weight)


@pytest.mark.parametrize("name", ("admm1", "admm-grad"))
def test_admm_on_a_given_mask_is_a_refit(name: str) -> None:
    inputs, weight = layer()
    keep, gram = torch.rand(weight.shape) > 0.6, gram_of(inputs)
    solved = (
        METHODS[name](weight, gram, keep=keep, iterations=7, mask_steps=3)
        if (name == "admm-grad")
        else METHODS[name](weight, gram, keep=keep, iterations=7)
    )
    torch.testing.assert_close(solved.weight, refit(weight, gram, keep, iterations=7).weight)


@pytest.mark.parametrize("name", UPDATING)
def test_a_given_nm_mask(name: str) -> None:
    inputs, weight = layer()
    keep = METHODS["wanda"](weight, gram_of(inputs), pattern="2:4").keep
    result = METHODS[name](weight, gram_of(inputs), keep=keep, pattern="2:4")
    assert torch.equal(result.keep, keep)


@pytest.mark.parametrize("name", UPDATING)
def test_a_mask_that_contradicts_the_request(name: str, one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    half = top_k(torch.rand(weight.shape), 0.5)
    two_of_four = METHODS["wanda"](weight, gram, pattern="2:4").keep
    cases = [
        dict(keep=half, sparsity=0.6),
        dict(keep=half, pattern="2:4"),  # random: some group holds three or four
        dict(keep=two_of_four, pattern="1:4"),
        dict(keep=half[:, :-1], sparsity=0.5),
        dict(keep=half.T, sparsity=0.5),
        dict(keep=half.float(), sparsity=0.5),
        dict(keep=half.int(), sparsity=0.5),
        dict(keep=half.numpy(), sparsity=0.5),
        dict(keep="wanda", sparsity=0.5),
    ]
    for case in cases:
        with one_line_error(BadMask):
            METHODS[name](weight, gram, **case)


def test_mask_with_pattern_and_contradicting_sparsity(one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    keep = METHODS["wanda"](weight, gram, pattern="2:4").keep
    with one_line_error((BadMask, BadSparsity)):
        METHODS["admm1"](weight, gram, keep=keep, pattern="2:4", sparsity=0.7)
    with one_line_error((BadMask, BadSparsity)):
        METHODS["admm1"](weight, gram, keep=keep, sparsity=60)


# ---------------------------------------------------------------- dead inputs


def deaden(inputs: torch.Tensor, weight: torch.Tensor, *dead: int) -> None:
    """Zero inputs on every token, with weights so large that only their gram can prune them."""
    for column in dead:
        inputs[:, column] = 0
        weight[:, column] = 1e4 * torch.sign(weight[:, column])


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_dead_inputs_lose_their_weights_first(name: str, pattern: str) -> None:
    inputs, weight = layer()
    deaden(inputs, weight, 3, 8, 30)  # not two in one group of four
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5, pattern=pattern)
    assert result.dead_inputs == 3
    assert not result.weight[:, [3, 8, 30]].any()
    assert int((~result.keep).sum()) == weight.numel() // 2
    assert torch.isfinite(result.weight).all() and 0 <= result.error < 1


@pytest.mark.parametrize("name", CALIBRATED)
def test_when_dead_inputs_suffice_nothing_else_is_lost(name: str) -> None:
    # 6 of 32 inputs are dead (18.75 %); at 12.5 % only they may lose weights.
    inputs, weight = layer()
    dead = [0, 5, 9, 17, 18, 31]
    deaden(inputs, weight, *dead)
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.125)
    alive = [i for i in range(32) if i not in dead]
    assert result.keep[:, alive].all()
    assert int((~result.keep).sum()) == weight.numel() // 8
    torch.testing.assert_close(result.weight[:, alive], weight[:, alive], rtol=1e-3, atol=1e-3)
    assert result.error < 1e-4


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_layer_that_saw_only_zeros(name: str, pattern: str) -> None:
    _, weight = layer()
    result = METHODS[name](weight, torch.zeros(32, 32), sparsity=0.5, pattern=pattern)
    assert result.dead_inputs == 32 and result.error == 0
    assert int((~result.keep).sum()) == weight.numel() // 2
    assert torch.isfinite(result.weight).all()


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_that_are_zero_on_most_tokens_are_not_dead(name: str) -> None:
    inputs, weight = layer()
    inputs[1:, 4] = 0  # one token left
    inputs[::2, 5] = 0
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5)
    assert result.dead_inputs == 0 and torch.isfinite(result.weight).all()
    assert result.error < 1


@pytest.mark.parametrize("name", CALIBRATED)
def test_dead_inputs_do_not_disturb_the_live_ones(name: str) -> None:
    # On a given mask the answer for live inputs is that of the layer without the dead ones,
    # up to the damping, whose mean over the diagonal counts dead inputs as well.
    inputs, weight = layer()
    deaden(inputs, weight, 3, 8)
    alive = [i for i in range(32) if i not in (3, 8)]
    keep = torch.rand(weight.shape) > 0.5
    keep[:, [3, 8]] = False
    options = {} if name == "wanda" else {"damping": 1e-4}
    full = METHODS[name](weight, gram_of(inputs), keep=keep, **options)
    alone = METHODS[name](weight[:, alive], gram_of(inputs[:, alive]), keep=keep[:, alive])
    if options:
        alone = METHODS[name](
            weight[:, alive], gram_of(inputs[:, alive]), keep=keep[:, alive], **options
        )
    torch.testing.assert_close(full.weight[:, alive], alone.weight, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CALIBRATED)
def test_fewer_tokens_than_inputs(name: str) -> None:
    inputs, weight = layer(tokens=5)
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5)
    assert torch.isfinite(result.weight).all() and result.error < 1


def test_massive_inputs() -> None:
    # Real models have channels a thousand times the rest; nothing may overflow or give way.
    inputs, weight = layer()
    inputs[:, 7] *= 3000
    for name in CALIBRATED:
        result = METHODS[name](weight, gram_of(inputs), sparsity=0.5)
        assert torch.isfinite(result.weight).all() and result.error < 0.1, name


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_numbers_in_a_weight(name: str, value: float, one_line_error) -> None:
    inputs, weight = layer()
    weight[3, 5] = value
    with one_line_error(NonFinite, "weight"):
        METHODS[name](weight, gram_of(inputs), sparsity=0.5)


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(4, 4), (2, 9)])
def test_bad_numbers_in_a_gram(name: str, value: float, place: tuple, one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    gram[place] = gram[place[::-1]] = value
    with one_line_error(NonFinite, "gram"):
        METHODS[name](weight, gram, sparsity=0.5)


@pytest.mark.parametrize("name", UPDATING)
def test_a_gram_that_is_not_positive_definite(name: str, one_line_error) -> None:
    _, weight = layer()
    gram = 6 * torch.eye(32) - 5  # diagonal 1, smallest eigenvalue 6 − 160
    with one_line_error(NotPositiveDefinite, "damping"):
        METHODS[name](weight, gram, sparsity=0.5)


def test_a_gram_that_more_damping_mends_is_reported(one_line_error) -> None:
    # Diagonal 1 and smallest eigenvalue −0.05: SparseGPT's 0.01 is not enough, 0.1 is.
    _, weight = layer()
    gram = torch.eye(32)
    gram[0, 1] = gram[1, 0] = 1.05
    result = METHODS["sparsegpt"](weight, gram, sparsity=0.5)
    assert result.damping == pytest.approx(0.1)
    assert torch.isfinite(result.weight).all()


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_gram_that_is_no_gram(name: str, one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    lopsided = gram.clone()
    lopsided[0, 1] += gram.abs().max()
    for bad in (lopsided, gram[:-1, :-1], gram[:, :-1], torch.zeros(32), None):
        with one_line_error(BadParameter):
            METHODS[name](weight, bad, sparsity=0.5)


@pytest.mark.parametrize("name", ALL)
def test_a_weight_that_is_no_matrix(name: str, one_line_error) -> None:
    for bad in (torch.randn(32), torch.randn(4, 8, 32), torch.ones(4, 32, dtype=torch.int8)):
        with one_line_error(BadParameter, "weight"):
            METHODS[name](bad, torch.eye(32), sparsity=0.5)


@pytest.mark.parametrize("name", ALL)
def test_bad_targets(name: str, one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    for pattern in ("5:4", "2:0", "2-4", 3, None):
        with one_line_error(BadPattern):
            METHODS[name](weight, gram, sparsity=0.5, pattern=pattern)
    for sparsity in (1.0, -0.1, "half", 60, float("nan"), True, None):
        with one_line_error(BadSparsity):
            METHODS[name](weight, gram, sparsity=sparsity)
    with one_line_error(BadSparsity, "2:4"):
        METHODS[name](weight, gram, sparsity=0.6, pattern="2:4")
    with one_line_error(BadPattern, "32"):
        METHODS[name](weight, gram, pattern="2:5")


def test_magnitude_needs_no_gram_and_others_say_so(one_line_error) -> None:
    _, weight = layer()
    METHODS["magnitude"](weight, sparsity=0.5)
    for name in CALIBRATED:
        with one_line_error(BadParameter, name, "calibration"):
            METHODS[name](weight, None, sparsity=0.5)


def test_unknown_method(one_line_error) -> None:
    for name in ("admm_grad", "wnada", "", None, 3):
        with one_line_error(UnknownMethod, "admm-grad", "magnitude"):
            get_method(name)
    with one_line_error(UnknownMethod, "wnada", "wanda"):
        get_method("wnada")


@pytest.mark.parametrize(
    ("name", "option"),
    [("admm-grad", "itrations"), ("admm1", "schedule"), ("wanda", "damping"),
     ("magnitude", "rho"), ("sparsegpt", "iterations"), ("admm-grad", "trace"),
     ("admm-grad", "blocksize")],
)  # fmt: skip
def test_unknown_option(name: str, option: str, one_line_error) -> None:
    inputs, weight = layer()
    with one_line_error(BadParameter, name, option):
        check_options(name, {option: 1})
    with one_line_error(BadParameter, name, option):
        METHODS[name](weight, gram_of(inputs), sparsity=0.5, **{option: 1})


def test_an_unknown_option_lists_the_known_ones(one_line_error) -> None:
    with one_line_error(BadParameter, "iterations", "mask_steps", "rho", "damping", "schedule"):
        check_options("admm-grad", {"itrations": 30})


# ---------------------------------------------------------------- the registry


@pytest.fixture
def scratch_method():
    """A name that is taken out of the registry again."""
    name = "test-only"
    yield name
    METHODS.pop(name, None)


def test_a_method_is_added_in_a_few_lines(scratch_method: str) -> None:
    @register(scratch_method)
    def first_columns(weight, gram, *, sparsity, pattern, keep=None, side="left"):
        keep = torch.zeros_like(weight, dtype=torch.bool)
        count = round((1 - sparsity) * weight.shape[1])
        keep[:, :count] = True
        return LayerResult(weight * (keep if side == "left" else keep.flip(1)),
                           keep if side == "left" else keep.flip(1))  # fmt: skip

    inputs, weight = layer()
    result = METHODS[scratch_method](weight, gram_of(inputs), sparsity=0.5, side="right")
    assert not result.weight[:, :16].any() and torch.equal(result.weight[:, 16:], weight[:, 16:])
    assert 0 < result.error < 1
    check_options(scratch_method, {"side": "left"})


@pytest.mark.parametrize("fault", ["sparsity", "outside", "shape", "nan"])
def test_a_method_that_answers_wrongly_is_caught(
    scratch_method: str, fault: str, one_line_error
) -> None:
    @register(scratch_method)
    def wrong(weight, gram, *, sparsity, pattern, keep=None):
        keep = top_k(weight.abs(), 0.1 if fault == "sparsity" else sparsity)
        new = weight if fault == "outside" else weight * keep
        if fault == "shape":
            new = new.T
        return LayerResult(new * (float("nan") if fault == "nan" else 1), keep)

    inputs, weight = layer()
    with one_line_error(HelpersError, scratch_method):
        METHODS[scratch_method](weight, gram_of(inputs), sparsity=0.5)


# ---------------------------------------------------------------- what a new method may get wrong


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (lambda weight: weight, "LayerResult"),
        (lambda weight: LayerResult(weight, torch.ones_like(weight, dtype=torch.bool)), "sparsity"),
        (lambda weight: LayerResult(weight, top_k(weight.abs(), 0.5)), "outside its mask"),
        (lambda weight: LayerResult(weight[:1], top_k(weight.abs(), 0.5)), "shape"),
    ],
)
def test_a_method_cannot_misreport_itself(answer, word: str, one_line_error) -> None:
    inputs, weight = layer()

    @register("liar")
    def liar(weight, gram, *, sparsity, pattern, keep=None):
        return answer(weight)

    try:
        with one_line_error((BadMask, BadParameter), "liar", word):
            METHODS["liar"](weight, gram_of(inputs), sparsity=0.5)
    finally:
        del METHODS["liar"]


@pytest.mark.parametrize("damaged", ["weight", "gram", "weight and gram"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_method_that_works_in_place_is_refused(
    scratch_method: str, damaged: str, inference: bool, one_line_error
) -> None:
    """Its error would be measured against the weight that it has changed: 0."""

    @register(scratch_method)
    def in_place(weight, gram, *, sparsity, pattern, keep=None):
        keep = top_k(weight.abs(), sparsity)
        if "gram" in damaged:
            gram.diagonal().add_(1.0)
        return LayerResult(weight.mul_(keep) if "weight" in damaged else weight * keep, keep)

    with torch.inference_mode(inference):
        inputs, weight = layer()
        with one_line_error(BadParameter, scratch_method, f"changed {damaged} in place", "clone"):
            METHODS[scratch_method](weight, gram_of(inputs), sparsity=0.5)


def test_a_method_that_takes_no_keep_is_not_registered(one_line_error) -> None:
    with one_line_error(BadParameter, "keep"):
        register("short")(lambda weight, gram, *, sparsity, pattern: None)
    assert "short" not in METHODS


@pytest.mark.parametrize("options", [{"schedule": "papr"}, {"mask_steps": -3}])
def test_options_are_checked_with_a_given_mask_too(options: dict, one_line_error) -> None:
    inputs, weight = layer()
    keep = top_k(weight.abs(), 0.5)
    with one_line_error(BadParameter, next(iter(options))):
        METHODS["admm-grad"](weight, gram_of(inputs), keep=keep, **options)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "admm1", "admm-grad"])
def test_a_wrong_budget_with_groups(name: str, one_line_error) -> None:
    inputs, weight = layer()
    with one_line_error(BadParameter, "budget"):
        METHODS[name](weight, gram_of(inputs), pattern="2:4", budget="rowz")


def test_sparsegpt_climbs_the_ladder_and_never_leaves_by_another_door() -> None:
    # rank one plus rounding: undamped, either the gram or its inverse cannot be factored
    torch.manual_seed(0)
    for _ in range(200):
        inputs = torch.randn(1, 24).repeat(8, 1) * torch.logspace(-3, 3, 24)
        result = METHODS["sparsegpt"](
            torch.randn(6, 24), gram_of(inputs), sparsity=0.5, damping=0.0
        )
        assert torch.isfinite(result.weight).all() and result.damping > 0
