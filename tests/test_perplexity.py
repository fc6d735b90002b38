"""Perplexity against the models' own loss."""

import math

import families as fam
import pytest

from helpers import perplexity, window_losses
from helpers.errors import BadParameter, NonFinite
from helpers.model.perplexity import note_short_windows


def long_text(tokens=500, seed=4):
    return fam.random_tokens(1, tokens, seed)[0]


def own_loss_perplexity(model, tokens, length):
    """exp of the mean over windows of the model's own shifted loss (all windows are as long)."""
    windows = tokens.unfold(0, length, length)[:, None]
    losses = [model(window, labels=window).loss.item() for window in windows]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt", "bloom", "mpt"])
@pytest.mark.parametrize("length", [2, 17, 33, 34])
def test_perplexity_is_that_of_the_models_own_loss(family, length, monkeypatch):
    # 16 positions at a time: one part, exact multiples, and a last part of one position
    monkeypatch.setattr("helpers.model.perplexity.POSITIONS", 16)
    # some windows and a remainder; dropout is off, and the mode comes back
    model = fam.build(family)
    tokens = long_text(tokens=115)
    expected = own_loss_perplexity(model, tokens, length)
    found = perplexity(model.train(), tokens, length=length)
    assert found == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_limit_takes_the_first_windows_and_none_takes_all():
    model = fam.build()
    tokens = long_text()
    first = own_loss_perplexity(model, tokens[: 3 * 40], 40)
    found = perplexity(model, tokens, length=40, limit=3)
    assert found == pytest.approx(first, rel=1e-5)
    everything = perplexity(model, tokens, length=40)
    assert perplexity(model, tokens, length=40, limit=12) == everything != found


def test_each_window_has_the_models_own_loss():
    model = fam.build()
    tokens = long_text(tokens=150)
    windows = tokens.unfold(0, 40, 40)[:, None]
    own = [model(window, labels=window).loss.item() for window in windows]
    found = window_losses(model, tokens, length=40)
    assert found.means == pytest.approx(own, rel=1e-5)
    assert max(own) - min(own) > 1e-3  # so that a wrong order would be seen
    assert found.perplexity == perplexity(model, tokens, length=40)


@pytest.mark.parametrize(
    "tokens, wrong, word",
    [
        (500, {"length": 1}, "length 1"),
        (500, {"length": 129}, "128"),  # positions of the model
        (500, {"limit": 0}, "limit 0"),
        (39, {}, "39"),
        (100, {"limit": 3}, "100"),
    ],
)
def test_what_does_not_fit_is_one_line(tokens, wrong, word, one_line_error):
    model = fam.build("mpt")  # its config names the limit otherwise than others
    with one_line_error(BadParameter, word):
        perplexity(model, long_text(tokens), **{"length": 40} | wrong)


@pytest.mark.parametrize("value", [math.nan, 1e5])
def test_a_broken_model_has_no_perplexity(value, one_line_error):
    model = fam.build()
    # of 1e5: a mean loss above 709 overflows exp, which must not be an OverflowError
    model.model.norm.weight.data.mul_(value)
    with one_line_error(NonFinite):
        perplexity(model, long_text(), length=40)


def test_short_windows_are_noted_once(caplog):
    note_short_windows.cache_clear()
    model = fam.build()
    perplexity(model, long_text(), length=64)
    assert not caplog.text
    for _ in range(2):
        perplexity(model, long_text(), length=5)
    assert caplog.text.count("windows of 5 tokens") == 1
