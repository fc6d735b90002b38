"""Choices scored from a context that is read once, against lm-eval's own model."""

import families as fam
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from helpers.models import WEIGHT_READER, load_model
from helpers.scoring import ContextOnce

Requests = list[tuple[tuple[str, str], list[int], list[int]]]


@pytest.fixture(scope="module")
def harness():
    """A model's harness of either kind; token ids are given, so any tokenizer does."""
    _, tokenizer = load_model("tiny", device="cpu")
    options = dict(tokenizer=tokenizer, batch_size=3, softmax_dtype=torch.float32)
    return lambda kind, model: kind(pretrained=model, **options)


def some(length, seed):
    return fam.random_tokens(1, length, seed)[0].tolist()


def written(model, context):
    """The three tokens that the model would write."""
    tokens = list(context)
    for _ in range(3):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[-3:]


def questions(model):
    """Choices of one to six tokens after contexts of one token to more than a window or a model."""
    asked = []
    for place, length in enumerate((1, 5, 6, 6, 20, 21, 40, 41, 122)):
        context = some(length, seed=length + place)
        choices = [
            some(1 + (place + 2 * i) % 6, seed=100 * place + i) for i in range(3)
        ]
        asked += [
            (("", ""), context, choice)
            for choice in [*choices, written(model, context)]
        ]
    # two choices that differ in the last token alone; one ending of two contexts; what is too long
    few = [(9, [7]), (9, [8]), (12, [4, 5]), (13, [4, 5])]
    if hasattr(model.config, "max_position_embeddings"):  # 128, which lm-eval knows
        few += [(140, [3]), (140, [6]), (127, [3, 4, 5])]
    for context, choice in few:
        asked.append((("", ""), some(context, seed=context), choice))
    return (
        asked[::2] + asked[1::2]
    )  # the choices of a context need not lie side by side


@pytest.mark.parametrize("family", fam.FAMILIES)
def test_likelihoods_are_those_of_the_stock_model(family, harness):
    model = fam.build(family)
    asked = questions(model)
    ours, stock = (harness(kind, model) for kind in (ContextOnce, HFLM))
    answers, expected = (lm._loglikelihood_tokens(asked) for lm in (ours, stock))
    assert ours.cache and 4 < sum(greedy for _, greedy in expected) < len(asked) / 2
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    values = [value for value, _ in expected]
    assert [value for value, _ in answers] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("family", ["mamba", "lfm2", "llama"])
def test_what_cannot_be_shared_is_left_to_the_stock_model(family, harness):
    model = fam.build(family)
    if family == "llama":  # one that reads its weights from files
        setattr(model, WEIGHT_READER, object())
    asked = questions(model)
    ours, stock = (harness(kind, model) for kind in (ContextOnce, HFLM))
    assert ours.cache is None
    assert ours._loglikelihood_tokens(asked) == stock._loglikelihood_tokens(asked)


def test_each_context_is_read_once(harness):
    model, passes = fam.build("llama"), []
    ours = harness(ContextOnce, model)
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: passes.append(tuple(args[0].shape))
    )
    first, second, far, alone, short = (
        some(length, length) for length in (60, 58, 30, 45, 12)
    )
    choices = [[3, 4, 5], [6, 7, 8], [9, 9, 9], [2, 3, 4]]
    asked = [
        (("", ""), context, tokens)
        for context in (first, far, second)
        for tokens in choices
    ]
    asked += [(("", ""), alone, [token]) for token in (3, 4)]
    asked += [(("", ""), short, tokens) for tokens in choices[:2]]
    ours._loglikelihood_tokens(asked)
    # 57 tokens of two contexts, and what is left of each with two tokens of its choices; 29 of a
    # far shorter one; one text for two choices of a token; and two that are not worth a pass more
    assert passes[:4] == [(2, 57), (3, 5), (3, 5), (2, 3)]
    assert passes[4:] == [(1, 29), (3, 3), (1, 3), (1, 45), (2, 14)]
