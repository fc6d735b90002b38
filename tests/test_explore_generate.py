"""Explorer of models: what it shows is what the model's own `generate` writes."""

import copy
import html
import math
import re
import threading

import pytest
import torch

from helpers import load_model
from helpers.errors import BadParameter, NonFinite, OutOfMemory
from helpers.explore import TryIt
from helpers.model.models import find_blocks, find_layers

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = load_model("tiny", device="cpu")
    return lively(model, 1), tokenizer


def lively(model, seed):
    """The model with larger weights: as it is made it repeats the prompt's last token for ever."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def tries(loaded):
    model, tokenizer = loaded
    models = {"dense": model, "<i>": lively(copy.deepcopy(model), 2)}
    return TryIt(models, tokenizer, prompt=PROMPT, new_tokens=12)


def column_texts(tries):
    """The text in each column, with the prompt and without the label."""
    tries.worker.wait(120)
    texts = [answer.value.partition("</b>")[2] for answer in tries.answers.values()]
    return [html.unescape(re.sub(r"<[^>]*>", "", text)) for text in texts]


def answers(tries, **controls):
    """What is written once these controls are set."""
    for name, value in controls.items():
        tries.controls[name].value = value
    _ = tries.still  # waits for it
    return column_texts(tries)


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_answers_are_generates(tries, chat):
    texts = answers(tries, chat=chat)
    ids = tries.tokenizer(PROMPT)["input_ids"]
    if chat:
        message = [{"role": "user", "content": PROMPT}]
        template = tries.tokenizer.apply_chat_template
        ids = template(message, add_generation_prompt=True)["input_ids"]
    given = torch.tensor([ids])
    for text, answer in zip(texts, tries.answers.values(), strict=True):
        (new,) = answer.model.generate(given, max_new_tokens=12, do_sample=False)
        if chat:
            new = new[len(ids) :]
        assert text == tries.tokenizer.decode(new, skip_special_tokens=True).rstrip()
    assert len(set(texts)) == 2


def test_samples_come_again_and_leave_the_kernels_random_numbers_alone(tries):
    before = torch.get_rng_state()
    greedy = answers(tries, temperature=0.0, seed=0)
    first, again, other = (
        answers(tries, temperature=1.0, seed=seed) for seed in (0, 0, 7)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != greedy and other not in (first, greedy)


def test_what_is_shown_is_escaped(tries):
    answers(tries, prompt="<b>bold</b> & <img src=x>")
    page = tries.still.data
    assert "<b>bold" not in page and "<img" not in page and "<i>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &lt;img src=x&gt;" in page


def test_stop_keeps_what_was_written(tries):
    reached, go_on, calls = threading.Event(), threading.Event(), []

    def pause(*_):
        calls.append(1)
        if len(calls) == 4:
            reached.set()
            go_on.wait(60)

    hook = tries.answers["dense"].model.register_forward_hook(pause)
    tries.button.click()
    assert reached.wait(60)
    tries.worker.button.click()
    go_on.set()
    dense, other = column_texts(tries)
    hook.remove()
    assert not tries.worker.running
    assert len(calls) == 4
    assert len(dense) > len(PROMPT)
    assert other == PROMPT
    assert tries.still.data.count(PROMPT) == 2, "it can go on"


def test_what_cannot_be_answered_is_said(tries):
    block = find_blocks(tries.answers["<i>"].model)[0]
    find_layers(block)["mlp.up_proj"].weight.data[0] = math.nan
    for prompt, kind, word in (
        (" \n", BadParameter, "empty"),
        ("word " * 3000, BadParameter, "2048"),
        (PROMPT, NonFinite, "NaN"),
    ):
        with pytest.raises(kind, match=word):
            answers(tries, prompt=prompt)
        assert word in tries.worker.message.value


def test_a_copy_is_pruned_and_the_model_stays(loaded, monkeypatch):
    model, tokenizer = loaded
    before = copy.deepcopy(model.state_dict())
    tokens = torch.randint(0, 1000, (2, 16))
    tries = TryIt({"dense": model}, tokenizer, tokens=tokens, new_tokens=3)

    def prune():
        tries.prune_button.click()
        tries.pruning.wait(120)
        return tries.pruning.error

    tries.method.value = "wanda"
    tries.target.value = "2:4"
    assert prune() is None
    assert list(tries.answers) == ["dense", "wanda at 2:4"]
    blocks = find_blocks(tries.answers["wanda at 2:4"].model)
    for layer in find_layers(blocks[1]).values():
        assert (layer.weight != 0).unflatten(1, (-1, 4)).sum(-1).max() == 2
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    # all answer again: the new column is not left empty
    assert all(len(text) > len(PROMPT) for text in column_texts(tries))
    assert len(tries.columns.children) == 2
    monkeypatch.setattr("helpers.explore.generate.ram", lambda: (1000, 2000))
    assert isinstance(prune(), OutOfMemory)
