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


@pytest.fixture(scope="module")
def loaded() -> tuple[nn.Module, Any]:
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
def tries(loaded: tuple[nn.Module, Any]) -> Iterator[TryIt]:
    model, tokenizer = loaded
    other = lively(copy.deepcopy(model), 2)
    made = try_it({"dense": model, "other": other}, tokenizer, prompt=PROMPT, new_tokens=12)
    yield made
    made.worker.stop()
    made.worker.wait(60)


def generated(model: nn.Module, ids: list[int], count: int, **options: Any) -> list[int]:
    """What transformers writes itself."""
    asked = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 2} | options
    return model.generate(torch.tensor([ids]), **asked)[0, len(ids) :].tolist()


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_answers_are_generates(tries: TryIt, chat: bool) -> None:
    tries.controls["chat"].value = chat
    tries.still()
    ids = prompt_ids(tries.tokenizer, PROMPT, chat)
    for label, model in tries.models.items():
        assert tries.written[label] == generated(model, ids, 12)
        assert len(set(tries.written[label])) > 6
    assert tries.written["dense"] != tries.written["other"]
    text = tries.tokenizer.decode(ids)
    assert ("<|im_start|>user\nThe capital of France is<|im_end|>" in text) == chat


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
    first = dict(tries.written)
    torch.rand(3)  # the global state plays no part
    tries.written = {}
    tries.still()
    assert tries.written == first
    tries.controls["seed"].value = 7
    tries.still()
    assert all(tries.written[label] != first[label] for label in ("dense", "other"))


def test_answers_end_where_the_model_ends_them(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    usual = generated(model, prompt_ids(tokenizer, PROMPT, False), 12)
    model.generation_config.eos_token_id = [usual[3], 1]
    tries = try_it({"dense": model}, tokenizer, prompt=PROMPT, new_tokens=12)
    tries.still()
    assert tries.written["dense"] == usual[: usual.index(usual[3]) + 1]


@pytest.mark.parametrize("text", ["Grüße 🙂 日本語\n\n  two  spaces", " a", "é", "x <b> & y"])
def test_text_that_grows_ends_as_it_is(loaded: tuple[nn.Module, Any], text: str) -> None:
    tokenizer = loaded[1]
    ids, new = tokenizer("Say it:").input_ids, tokenizer(text, add_special_tokens=False).input_ids
    said = [answer_text(tokenizer, ids, ids + new[:n]) for n in range(len(new) + 1)]
    assert said[-1] == text
    assert all(later.startswith(earlier) for earlier, later in zip(said, said[1:], strict=False))
    assert not any("\ufffd" in part for part in said)


def test_what_is_shown_is_escaped(
    loaded: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.explore.generate.answer_text", lambda *_ids: "<u>said</u>")
    tries = try_it({"<i>": loaded[0]}, loaded[1], prompt="<b>bold</b> & <img src=x>", new_tokens=2)
    page = tries.still().data
    assert page == tries.columns["<i>"].value
    assert "<b>bold" not in page and "<img" not in page and "<i>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &lt;img" in page and "&lt;u&gt;said" in page


def test_stop_keeps_what_was_written(tries: TryIt) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        if len(tries.written["other"]) == 4:
            reached.set()
            go_on.wait(60)

    hook = tries.models["other"].register_forward_hook(pause)
    try:
        tries.button.click()
        assert reached.wait(60)
        tries.worker.button.click()
        go_on.set()
        tries.worker.wait(60)
    finally:
        hook.remove()
    assert not tries.worker.running and "stopped" in tries.worker.message.value
    assert [len(written) for written in tries.written.values()] == [12, 5]
    ids = prompt_ids(tries.tokenizer, PROMPT, False)
    text = answer_text(tries.tokenizer, ids, ids + tries.written["other"])
    assert text.split()[0] in tries.columns["other"].value
    tries.button.click()  # and it can go on
    tries.worker.wait(60)
    assert [len(written) for written in tries.written.values()] == [12, 12]


def refusal(tries: TryIt) -> str:
    """What the button says in red."""
    tries.button.click()
    tries.worker.wait(60)
    assert "color" in tries.worker.message.value
    return tries.worker.message.value


def test_what_cannot_be_answered_is_said(tries: TryIt, one_line_error: Any) -> None:
    tries.controls["prompt"].value = " \n"
    assert "prompt is empty" in refusal(tries)
    with one_line_error(BadParameter, "prompt is empty"):
        tries.still()
    tries.controls["prompt"].value = "word " * 3000
    assert "2048 in all" in refusal(tries)
    tries.controls["prompt"].value = PROMPT
    with torch.no_grad():
        find_layers(find_blocks(tries.models["other"])[0])["mlp.up_proj"].weight[0] = math.nan
    assert "other gives NaN" in refusal(tries)
    with one_line_error(NonFinite, "other", "float32"):
        tries.still()


def test_chat_needs_a_template(loaded: tuple[nn.Module, Any], one_line_error: Any) -> None:
    model, tokenizer = loaded[0], copy.deepcopy(loaded[1])
    tokenizer.chat_template = None
    assert try_it({"dense": model}, tokenizer).controls["chat"].disabled
    with one_line_error(BadParameter, "no template"):
        try_it({"dense": model}, tokenizer, chat=True)


def test_a_copy_is_pruned_and_the_model_stays(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = loaded
    before = copy.deepcopy(model.state_dict())
    tokens = torch.randint(0, 1000, (2, 16))
    tries = try_it({"dense": model}, tokenizer, tokens=tokens, new_tokens=3)
    tries.method.value, tries.target.value = "wanda", "2:4"
    tries.prune_button.click()
    tries.pruning.wait(120)
    assert list(tries.models) == ["dense", "wanda 2:4"] and tries.pruning.message.value == ""
    for name, layer in find_layers(find_blocks(tries.models["wanda 2:4"])[1]).items():
        groups = (layer.weight != 0).reshape(layer.weight.shape[0], -1, 4).sum(-1)
        assert groups.max() == 2, name
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "wanda 2:4" in tries.still().data and len(tries.answers.children) == 2


def test_a_copy_that_is_stopped_or_too_large(
    loaded: tuple[nn.Module, Any], one_line_error: Any, monkeypatch: pytest.MonkeyPatch
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


def test_what_is_no_model_is_refused(
    loaded: tuple[nn.Module, Any], one_line_error: Any, tmp_path: Any
) -> None:
    model, tokenizer = loaded
    with one_line_error(BadParameter, "empty"):
        try_it({}, tokenizer)
    with one_line_error(BadParameter, "dense", "load_model"):
        try_it({"dense": "embedded"}, tokenizer)
    with one_line_error(BadParameter, "temperature"):
        try_it({"dense": model}, tokenizer, temperature=-1.0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with one_line_error(BadParameter, "read block by block"):
        try_it({"dense": load_streamed(tmp_path)[0]}, tokenizer)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2))
    with one_line_error(BadParameter, "knows 60", "own tokenizer"):
        try_it({"small": small}, tokenizer).still(PROMPT)
