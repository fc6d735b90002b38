"""Explorer of models: what it shows is what the model's own `generate` writes."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers import load_model, load_streamed
from helpers.errors import BadParameter, NonFinite, OutOfMemory, Stopped
from helpers.explore import TryIt, pruned_copy, try_it
from helpers.explore.generate import Picker, answer_text, prompt_ids
from helpers.models import find_blocks, find_layers

PROMPT = "The capital of France is"
Loaded = tuple[nn.Module, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    model, tokenizer = load_model("tiny")
    return lively(model, 1), tokenizer


def lively(model: nn.Module, seed: int) -> nn.Module:
    """The model with larger weights: as it is made it repeats the prompt's last token for ever."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def tries(loaded: Loaded) -> Iterator[TryIt]:
    model, tokenizer = loaded
    other = lively(copy.deepcopy(model), 2)
    made = try_it({"dense": model, "other": other}, tokenizer, prompt=PROMPT, new_tokens=12)
    yield made
    made.worker.stop()
    made.worker.wait(60)


def written(tries: TryIt) -> list[list[int]]:
    """The tokens that the models have written."""
    return [answer.written for answer in tries.answers.values()]


def generated(model: nn.Module, ids: list[int], count: int) -> list[int]:
    """What transformers writes itself."""
    asked = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 2}
    return model.generate(torch.tensor([ids]), **asked)[0, len(ids) :].tolist()


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_answers_are_generates(tries: TryIt, chat: bool) -> None:
    tries.controls["chat"].value = chat
    tries.still()
    ids = prompt_ids(tries.tokenizer, PROMPT, chat)
    text = tries.tokenizer.decode(ids)
    assert ("<|im_start|>user\nThe capital of France is<|im_end|>" in text) == chat
    first, second = written(tries)
    assert len(set(first)) > 6 and first != second
    assert [first, second] == [generated(a.model, ids, 12) for a in tries.answers.values()]


def test_samples_follow_the_logits() -> None:
    logits = torch.tensor([[0.5, 1.0, -1.0, 0.0]])
    picker = Picker(lambda _ids: None, "dense", 0.5, seed=0)
    ids, rounds = torch.tensor([[1]]), 4000
    drawn = [int(picker(ids, logits).argmax()) for _ in range(rounds)]
    shares = torch.tensor(drawn).bincount(minlength=4) / rounds
    torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(-1), rtol=0, atol=0.03)


def test_samples_come_again(tries: TryIt) -> None:
    tries.controls["temperature"].value = 1.0
    tries.still()
    first = written(tries)
    torch.rand(3)  # the global state plays no part
    tries.still()
    assert written(tries) == first
    tries.controls["seed"].value = 7
    tries.still()
    assert all(new != old for new, old in zip(written(tries), first, strict=True))


def test_answers_end_where_the_model_ends_them(loaded: Loaded) -> None:
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    usual = generated(model, prompt_ids(tokenizer, PROMPT, False), 12)
    model.generation_config.eos_token_id = [usual[3], 1]
    tries = try_it({"dense": model}, tokenizer, prompt=PROMPT, new_tokens=12)
    tries.still()
    assert written(tries) == [usual[: usual.index(usual[3]) + 1]]


@pytest.mark.parametrize("text", ["Grüße 🙂 日本語\n\n  two  spaces", " a", "é", "x <b> & y"])
def test_text_that_grows_ends_as_it_is(loaded: Loaded, text: str) -> None:
    tokenizer = loaded[1]
    ids, new = tokenizer("Say it:").input_ids, tokenizer(text, add_special_tokens=False).input_ids
    said = [answer_text(tokenizer, ids, ids + new[:n]) for n in range(len(new) + 1)]
    assert said[-1] == text
    assert all(later.startswith(earlier) for earlier, later in zip(said, said[1:], strict=False))
    assert not any("\ufffd" in part for part in said)


def test_what_is_shown_is_escaped(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.explore.generate.answer_text", lambda *_ids: "<u>said</u>")
    tries = try_it({"<i>": loaded[0]}, loaded[1], prompt="<b>bold</b> & <img src=x>", new_tokens=2)
    page = tries.still().data
    assert page == tries.answers["<i>"].value
    assert "<b>bold" not in page and "<img" not in page and "<i>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &lt;img" in page and "&lt;u&gt;said" in page


def test_stop_keeps_what_was_written(tries: TryIt) -> None:
    reached, go_on, other = threading.Event(), threading.Event(), tries.answers["other"]

    def pause(*_: Any) -> None:
        if len(other.written) == 4:
            reached.set()
            go_on.wait(60)

    hook = other.model.register_forward_hook(pause)
    tries.button.click()
    assert reached.wait(60)
    tries.worker.button.click()
    go_on.set()
    tries.worker.wait(60)
    hook.remove()
    assert not tries.worker.running and "stopped" in tries.worker.message.value
    assert list(map(len, written(tries))) == [12, 5]
    ids = prompt_ids(tries.tokenizer, PROMPT, False)
    text = answer_text(tries.tokenizer, ids, ids + other.written)
    assert text.split()[0] in other.value
    tries.button.click()  # and it can go on
    tries.worker.wait(60)
    assert list(map(len, written(tries))) == [12, 12]


def test_what_cannot_be_answered_is_said(tries: TryIt, one_line_error: Any) -> None:
    with torch.no_grad():
        block = find_blocks(tries.answers["other"].model)[0]
        find_layers(block)["mlp.up_proj"].weight[0] = math.nan
    for prompt, kind, *words in (
        (" \n", BadParameter, "prompt is empty"),
        ("word " * 3000, BadParameter, "dense", "2048 tokens"),
        (PROMPT, NonFinite, "other gives NaN", "float32"),
    ):
        tries.controls["prompt"].value = prompt
        with one_line_error(kind, *words):
            tries.still()
        tries.button.click()
        tries.worker.wait(60)
        shown = tries.worker.message.value
        assert "color" in shown and all(word in shown for word in words)


def test_a_copy_is_pruned_and_the_model_stays(loaded: Loaded) -> None:
    model, tokenizer = loaded
    before = copy.deepcopy(model.state_dict())
    tokens = torch.randint(0, 1000, (2, 16))
    tries = try_it({"dense": model}, tokenizer, tokens=tokens, new_tokens=3)
    tries.method.value, tries.target.value = "wanda", "2:4"
    tries.prune_button.click()
    tries.pruning.wait(120)
    assert list(tries.answers) == ["dense", "wanda 2:4"] and tries.pruning.message.value == ""
    for layer in find_layers(find_blocks(tries.answers["wanda 2:4"].model)[1]).values():
        assert (layer.weight != 0).unflatten(1, (-1, 4)).sum(-1).max() == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "wanda 2:4" in tries.still().data and len(tries.columns.children) == 2


def test_a_copy_that_is_stopped_or_too_large(
    loaded: Loaded, one_line_error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_done: int, _total: int, _name: str) -> None:
        raise Stopped("stopped: nothing was lost")

    tokens = torch.randint(0, 1000, (2, 16))
    with one_line_error(Stopped, "the unfinished copy is gone"):
        pruned_copy(loaded[0], tokens, progress=stop, method="magnitude", sparsity=0.5)
    memory = type("Memory", (), {"available": 1000, "total": 2000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with one_line_error(OutOfMemory, "free"):
        pruned_copy(loaded[0], tokens, method="magnitude", sparsity=0.5)


def test_what_is_no_model_is_refused(loaded: Loaded, one_line_error: Any, tmp_path: Any) -> None:
    model, tokenizer = loaded
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mute = copy.deepcopy(tokenizer)
    mute.chat_template = None
    assert try_it({"dense": model}, mute).controls["chat"].disabled
    for models, reader, options, *words in (
        ({}, tokenizer, {}, "empty"),
        ({"dense": "embedded"}, tokenizer, {}, "dense", "load_model"),
        ({"dense": load_streamed(tmp_path)[0]}, tokenizer, {}, "read block by block"),
        ({"dense": model}, tokenizer, {"temperature": -1.0}, "temperature"),
        ({"dense": model}, mute, {"chat": True}, "no template"),
    ):
        with one_line_error(BadParameter, *words):
            try_it(models, reader, **options)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2))
    with one_line_error(BadParameter, "small", "0 to 59", "own tokenizer"):
        try_it({"small": small}, tokenizer).still(PROMPT)
