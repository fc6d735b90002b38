"""Choices scored from a context that is read once, against lm-eval's own model."""

import families as fam
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from helpers.model_state import set_state
from helpers.models import load_model
from helpers.scoring import ContextOnce


@pytest.fixture(scope="module")
def harness():
    """A model's harness of either kind; token ids are given, so any tokenizer does."""
    _, tokenizer = load_model("tiny", device="cpu")
    options = dict(tokenizer=tokenizer, batch_size=3, softmax_dtype=torch.float32)
    return lambda model, kind=ContextOnce: kind(pretrained=model, **options)


def some(length, seed):
    return fam.random_tokens(1, length, seed)[0].tolist()


def written(model, context):
    """The three tokens that the model would write."""
    tokens = list(context)
    for _ in range(3):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[-3:]


def requests(context, *choices):
    return [(("", ""), context, choice) for choice in choices]


def questions(model):
    """Choices of one to six tokens after contexts of one token to more than a window or a model."""
    items = []
    for place, length in enumerate((1, 5, 6, 6, 20, 21, 40, 41, 122)):
        context = some(length, seed=length + place)
        for i in range(3):
            choice = some(1 + (place + 2 * i) % 6, seed=100 * place + i)
            items += requests(context, choice)
        items += requests(context, written(model, context))
    # two choices that differ in the last token alone; one ending of two contexts; what is too long
    items += requests(some(9, 9), [7], [8])
    items += requests(some(12, 12), [4, 5]) + requests(some(13, 13), [4, 5])
    if hasattr(model.config, "max_position_embeddings"):  # 128, which lm-eval knows
        items += requests(some(140, 140), [3], [6])
        items += requests(some(127, 127), [3, 4, 5])
    # the choices of a context need not lie side by side
    return items[::2] + items[1::2]


@pytest.mark.parametrize("family", fam.FAMILIES)
def test_likelihoods_are_those_of_the_stock_model(family, harness):
    model = fam.build(family)
    items = questions(model)
    ours = harness(model)
    answers, greedy = zip(*ours._loglikelihood_tokens(items), strict=True)
    stock = harness(model, HFLM)._loglikelihood_tokens(items)
    expected, written = zip(*stock, strict=True)
    assert ours.cache
    assert 4 < sum(written) < len(items) / 2
    assert greedy == written
    assert answers == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["mamba", "lfm2", "llama"])
def test_what_cannot_be_shared_is_left_to_the_stock_model(family, harness):
    model = fam.build(family)
    if family == "llama":  # one that reads its weights from files
        set_state(model, reader=object())
    items = questions(model)
    ours = harness(model)
    stock = harness(model, HFLM)._loglikelihood_tokens(items)
    assert ours.cache is None
    assert ours._loglikelihood_tokens(items) == stock


def test_each_context_is_read_once(harness):
    model = fam.build("llama")
    passes = []
    ours = harness(model)
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: passes.append(tuple(args[0].shape))
    )
    choices = [[3, 4, 5], [6, 7, 8], [9, 9, 9], [2, 3, 4]]
    items = []
    for length in (60, 30, 58):
        items += requests(some(length, length), *choices)
    items += requests(some(45, 45), [3], [4]) + requests(some(12, 12), *choices[:2])
    ours._loglikelihood_tokens(items)
    # 57 tokens of two contexts, and what is left of each with two tokens of its choices; 29 of a
    # far shorter one; one text for two choices of a token; and two that are not worth a pass more
    assert passes[:4] == [(2, 57), (3, 5), (3, 5), (2, 3)]
    assert passes[4:] == [(1, 29), (3, 3), (1, 3), (1, 45), (2, 14)]
