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
from helpers.models import find_blocks, find_layers

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
    other = lively(copy.deepcopy(model), 2)
    models = {"dense": model, "other": other}
    return TryIt(models, tokenizer, prompt=PROMPT, new_tokens=12)


def column_texts(tries):
    """The text in each column, with the prompt and without the label."""
    texts = [answer.value.partition("</b>")[2] for answer in tries.answers.values()]
    return [html.unescape(re.sub(r"<[^>]*>", "", text)) for text in texts]


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_answers_are_generates(tries, chat):
    tries.controls["chat"].value = chat
    tries.still  # noqa: B018 - waits for the answers
    ids = tries.tokenizer(PROMPT)["input_ids"]
    if chat:
        message = [{"role": "user", "content": PROMPT}]
        chat_ids = tries.tokenizer.apply_chat_template
        ids = chat_ids(message, add_generation_prompt=True)["input_ids"]
    for text, answer in zip(column_texts(tries), tries.answers.values(), strict=True):
        whole = answer.model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False
        )[0]
        new = whole[len(ids) :] if chat else whole
        assert text == tries.tokenizer.decode(new, skip_special_tokens=True).rstrip()
    assert len(set(column_texts(tries))) == 2


def test_samples_come_again_and_leave_the_kernels_random_numbers_alone(
    tries,
):
    answers = []
    for temperature, seed in ((0.0, 0), (1.0, 0), (1.0, 0), (1.0, 7)):
        tries.controls["temperature"].value, tries.controls["seed"].value = (
            temperature,
            seed,
        )
        before = torch.get_rng_state()
        tries.still  # noqa: B018
        assert torch.equal(torch.get_rng_state(), before)
        answers.append(column_texts(tries))
    greedy, first, again, other = answers
    assert first == again != greedy and other not in (first, greedy)


def test_what_is_shown_is_escaped(loaded):
    tries = TryIt(
        {"<i>": loaded[0]}, loaded[1], prompt="<b>bold</b> & <img src=x>", new_tokens=2
    )
    page = tries.still.data
    assert page == tries.answers["<i>"].value
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
    tries.worker.wait(60)
    hook.remove()
    assert not tries.worker.running and "stopped" in tries.worker.message.value
    assert len(calls) == 4
    dense, other = column_texts(tries)
    assert len(dense) > len(PROMPT)
    assert other == PROMPT
    assert tries.still.data.count(PROMPT) == 2, "it can go on"


def test_what_cannot_be_answered_is_said(tries):
    block = find_blocks(tries.answers["other"].model)[0]
    find_layers(block)["mlp.up_proj"].weight.data[0] = math.nan
    for prompt, kind, words in (
        (" \n", BadParameter, "prompt is empty"),
        ("word " * 3000, BadParameter, "2048 tokens"),
        (PROMPT, NonFinite, "NaN"),
    ):
        tries.controls["prompt"].value = prompt
        with pytest.raises(kind, match=words):
            tries.still  # noqa: B018
        assert (
            "color" in tries.worker.message.value
            and words in tries.worker.message.value
        )


def test_a_copy_is_pruned_and_the_model_stays(loaded, monkeypatch):
    model, tokenizer = loaded
    before = copy.deepcopy(model.state_dict())
    tokens = torch.randint(0, 1000, (2, 16))
    tries = TryIt({"dense": model}, tokenizer, tokens=tokens, new_tokens=3)
    tries.method.value = "wanda"
    tries.target.value = "2:4"
    tries.prune_button.click()
    tries.pruning.wait(120)
    assert tries.pruning.error is None
    assert list(tries.answers) == ["dense", "wanda at 2:4"]
    pruned = tries.answers["wanda at 2:4"].model
    for layer in find_layers(find_blocks(pruned)[1]).values():
        assert (layer.weight != 0).unflatten(1, (-1, 4)).sum(-1).max() == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor)
    tries.worker.wait(120)  # all answer again: the new column is not left empty
    assert len(tries.columns.children) == 2
    for text in column_texts(tries):
        assert len(text) > len(PROMPT)
    monkeypatch.setattr("helpers.explore.generate.ram", lambda: (1000, 2000))
    tries.prune_button.click()
    tries.pruning.wait(120)
    assert isinstance(tries.pruning.error, OutOfMemory)
