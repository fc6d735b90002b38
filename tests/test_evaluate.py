"""Perplexity against the models' own loss, and by hand."""

from __future__ import annotations

import math

import families as fam
import pytest
import torch

from helpers import perplexity
from helpers.errors import BadParameter, BadText, CalibrationTooShort, NonFinite


def long_text(tokens: int = 500, seed: int = 4) -> torch.Tensor:
    return fam.random_tokens(1, tokens, seed)[0]


def own_loss_perplexity(model: torch.nn.Module, tokens: torch.Tensor, length: int) -> float:
    """exp of the mean over windows of the model's own shifted loss (all windows are as long)."""
    losses = []
    for start in range(0, len(tokens) - length + 1, length):
        window = tokens[None, start : start + length]
        with torch.no_grad():
            losses.append(model(window, labels=window).loss.double().item())
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt", "bloom", "mpt"])
@pytest.mark.parametrize("length", [24, 37])
def test_perplexity_is_that_of_the_models_own_loss(family: str, length: int) -> None:
    model, tokens = fam.build(family), long_text()
    expected = own_loss_perplexity(model, tokens, length)
    assert perplexity(model, tokens, length=length) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    model = fam.build("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert perplexity(model, long_text(), length=50) == pytest.approx(fam.VOCABULARY, rel=1e-5)


def test_perplexity_by_hand() -> None:
    # Logits that do not depend on the text: log p of token i is b_i; two windows of three tokens
    # (7, 5, 6), (5, 8, 5) predict 5, 6 and 8, 5. With p(5) = 1/2, p(6) = 1/4, p(8) = 1/8:
    # (1/2 · 1/4 · 1/8 · 1/2)^(−1/4) = 128^(1/4).
    model = fam.build("phi")  # its head has a bias
    rest = (1 - 7 / 8) / (fam.VOCABULARY - 3)
    odds = torch.full((fam.VOCABULARY,), rest)
    odds[5], odds[6], odds[8] = 1 / 2, 1 / 4, 1 / 8
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(odds.log())
    tokens = torch.tensor([7, 5, 6, 5, 8, 5, 6])  # the seventh fits no window
    assert perplexity(model, tokens, length=3) == pytest.approx(128**0.25, rel=1e-5)


def test_limit_takes_the_first_windows() -> None:
    model, tokens = fam.build("llama"), long_text()
    expected = own_loss_perplexity(model, tokens[: 3 * 40], 40)
    assert perplexity(model, tokens, length=40, limit=3) == pytest.approx(expected, rel=1e-5)
    changed = torch.cat([tokens[: 3 * 40], tokens[3 * 40 :].flip(0)])
    assert perplexity(model, changed, length=40, limit=3) == perplexity(
        model, tokens, length=40, limit=3
    )
    everything = perplexity(model, tokens, length=40)
    assert perplexity(model, tokens, length=40, limit=12) == everything
    assert perplexity(model, tokens, length=40, limit=None) == everything


def test_windows_do_not_see_each_other() -> None:
    model, tokens = fam.build("llama"), long_text(80)
    first, second = (perplexity(model, tokens[i : i + 40], length=40) for i in (0, 40))
    assert perplexity(model, tokens, length=40) == pytest.approx(math.sqrt(first * second), 1e-5)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_batch_changes_nothing(family: str) -> None:
    model, tokens = fam.build(family), long_text()
    one, five = (perplexity(model, tokens, length=40, batch=batch) for batch in (1, 5))
    assert one == pytest.approx(five, rel=1e-5)


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model, tokens = fam.build("opt"), long_text()
    expected = perplexity(model, tokens, length=40)
    model.train()
    assert perplexity(model, tokens, length=40) == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_logits_are_summed_in_float32() -> None:
    model, tokens = fam.build("llama"), long_text()
    exact = perplexity(model, tokens, length=100)
    assert perplexity(model.half(), tokens, length=100) == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("length", [0, 1, -5, 129, "64", 40.0, None, True])
def test_bad_length(length: object, one_line_error) -> None:
    # tiny models take 128 positions
    with one_line_error(BadParameter, "length"):
        perplexity(fam.build("gpt2"), long_text(), length=length)


@pytest.mark.parametrize("family", ["gpt2", "opt", "mpt"])
def test_windows_longer_than_the_model_can_take(family: str, one_line_error) -> None:
    with one_line_error(BadParameter, "length", "128"):
        perplexity(fam.build(family), long_text(), length=129)


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3", True])
def test_bad_limit(limit: object, one_line_error) -> None:
    with one_line_error(BadParameter, "limit"):
        perplexity(fam.build("llama"), long_text(), length=40, limit=limit)


@pytest.mark.parametrize("batch", [0, -1, "2", 1.5, None])
def test_bad_batch(batch: object, one_line_error) -> None:
    with one_line_error(BadParameter, "batch"):
        perplexity(fam.build("llama"), long_text(), length=40, batch=batch)


def test_too_little_text(one_line_error) -> None:
    model = fam.build("llama")
    for tokens, limit in ((long_text(39), None), (long_text(100), 3), (long_text(5)[:0], None)):
        with one_line_error((CalibrationTooShort, BadText, BadParameter), "40"):
            perplexity(model, tokens, length=40, limit=limit)


def test_tokens_of_another_kind(one_line_error) -> None:
    model, tokens = fam.build("llama"), long_text()
    for bad in (tokens.view(1, -1), tokens.float(), tokens + 90, tokens - 50, tokens.tolist()):
        with one_line_error(BadParameter, "tokens"):
            perplexity(model, bad, length=40)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_has_no_perplexity(value: float, one_line_error) -> None:
    model = fam.build("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with one_line_error(NonFinite):
        perplexity(model, long_text(), length=40)


def test_a_perplexity_too_large_for_a_float_is_an_error(one_line_error) -> None:
    # A mean loss above 709 overflows exp: not an OverflowError, and not an infinite number.
    model = fam.build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    with one_line_error(NonFinite):
        perplexity(model, long_text(), length=40)
