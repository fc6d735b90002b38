"""Explorer of models: what it writes is what the model's own `generate` writes."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers import load_model, load_streamed
from helpers.errors import BadParameter, NonFinite, OutOfMemory, Stopped
from helpers.explore import TryIt, pruned_copy, try_it
from helpers.explore.generate import Writer, answer_text, greedy, prompt_ids
from helpers.models import find_blocks, find_layers

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def loaded() -> tuple[nn.Module, Any]:
    model, tokenizer = load_model("tiny")
    return lively(model, 1), tokenizer


def lively(model: nn.Module, seed: int, scale: float = 0.5) -> nn.Module:
    """The model with larger weights: as it is made it repeats the prompt's last token for ever."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
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


@pytest.mark.parametrize("mode", ["continue the text", "chat"])
def test_greedy_answers_are_generates(tries: TryIt, mode: str) -> None:
    tries.controls["mode"].value = mode
    tries.still()
    for writer in tries.writers:
        assert writer.new == generated(writer.model, writer.ids, 12)
        assert len(set(writer.new)) > 6
    assert tries.writers[0].new != tries.writers[1].new


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_other_families_write_as_generate_does(kind: str) -> None:
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2))
    else:
        model = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2))
    model.generation_config.eos_token_id = None
    writer = Writer(kind, lively(model.eval(), 0, 2.0), [3, 1, 4, 1, 5], greedy)
    for _ in range(10):
        writer.step()
    assert writer.new == generated(model, writer.ids, 10) and len(set(writer.new)) > 3


def test_a_model_without_a_cache_writes_the_same(loaded: tuple[nn.Module, Any]) -> None:
    model = loaded[0]
    writers = [Writer("kept", model, [9, 8, 7], greedy), Writer("forgot", model, [9, 8, 7], greedy)]
    for _ in range(8):
        writers[0].step()
        writers[1].step()
        writers[1]._kept = None  # as from a family that gives none
    assert writers[0].new == writers[1].new


def test_samples_are_generates_and_come_again(tries: TryIt) -> None:
    tries.controls["way"].value = "sampled"
    tries.controls["temperature"].value = 0.7
    tries.controls["seed"].value = 5
    tries.still()
    first, ids = tries.writers[0].new, tries.writers[0].ids
    torch.manual_seed(5)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    assert first == generated(tries.models["dense"], ids, 12, **options)
    torch.rand(3)  # the global state plays no part
    tries.still()
    assert tries.writers[0].new == first
    tries.controls["seed"].value = 6
    tries.still()
    assert tries.writers[0].new != first


def test_answers_end_where_the_model_ends_them(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    usual = generated(model, prompt_ids(tokenizer, PROMPT, False), 12)
    model.generation_config.eos_token_id = [usual[3], 1]
    tries = try_it({"dense": model}, tokenizer, prompt=PROMPT, new_tokens=12)
    tries.still()
    end = usual.index(usual[3]) + 1
    assert tries.writers[0].new == usual[:end] == generated(model, tries.writers[0].ids, 12)
    assert tries.writers[0].ended and "ended" in tries.columns["dense"].value


def test_perplexities_are_those_of_one_forward_pass(tries: TryIt) -> None:
    table = tries.still().data
    with torch.no_grad():
        for writer in tries.writers:
            for column, answer in (
                ("perplexity of its answer", writer.new),
                ("of dense's answer", tries.writers[0].new),
            ):
                ids = torch.tensor([[*writer.ids, *answer]])
                logits = writer.model(ids).logits[0, len(writer.ids) - 1 : -1]
                loss = nn.functional.cross_entropy(logits, torch.tensor(answer))
                assert table.loc[writer.label, column] == pytest.approx(loss.exp().item(), rel=1e-4)


@pytest.mark.parametrize("text", ["Grüße 🙂 日本語\n\n  two  spaces", " a", "é", "x <b> & y"])
def test_text_that_grows_ends_as_it_is(loaded: tuple[nn.Module, Any], text: str) -> None:
    tokenizer = loaded[1]
    ids, new = tokenizer("Say it:").input_ids, tokenizer(text, add_special_tokens=False).input_ids
    said = [answer_text(tokenizer, ids, new[:n], False) for n in range(len(new) + 1)]
    assert said[-1] == text == answer_text(tokenizer, ids, new, True)
    assert all(later.startswith(earlier) for earlier, later in zip(said, said[1:], strict=False))
    assert not any("\ufffd" in part for part in said)
    half = tokenizer("🙂", add_special_tokens=False).input_ids[:1]
    assert answer_text(tokenizer, ids, half, False) == ""
    assert answer_text(tokenizer, ids, half, True) == "\ufffd"


def test_what_is_shown_is_escaped(loaded: tuple[nn.Module, Any]) -> None:
    tries = try_it({"<i>": loaded[0]}, loaded[1], prompt="<b>bold</b> & <img src=x>", new_tokens=2)
    page = tries.still().to_html()
    for shown in (tries.columns["<i>"].value, page):
        assert "<b>bold" not in shown and "<img" not in shown and "<i>" not in shown
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &lt;img" in tries.columns["<i>"].value
    tries._text = lambda _writer: "<u>said</u>"
    tries._show("")
    assert "&lt;u&gt;said" in tries.columns["<i>"].value


def test_button_writes_in_a_thread_and_the_models_take_turns(tries: TryIt) -> None:
    order: list[str] = []
    for label, model in tries.models.items():
        model.register_forward_hook(lambda *_, label=label: order.append(label))
    try:
        tries.button.click()
        tries.worker.wait(60)
    finally:
        for model in tries.models.values():
            model._forward_hooks.clear()
    assert order[:24] == ["dense", "other"] * 12
    for writer in tries.writers:
        text = tries._text(writer).split()[0]
        assert text in tries.columns[writer.label].value
        assert "12 tokens" in tries.columns[writer.label].value


def test_stop_keeps_what_was_written(tries: TryIt) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        if len(tries.writers[1].new) == 4:
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
    assert [len(writer.new) for writer in tries.writers] == [5, 5]
    assert "5 tokens" in tries.columns["other"].value
    tries.button.click()  # and it can go on
    tries.worker.wait(60)
    assert [len(writer.new) for writer in tries.writers] == [12, 12]


def refusal(tries: TryIt) -> str:
    """What the button says in red."""
    tries.button.click()
    tries.worker.wait(60)
    assert "color" in tries.worker.message.value
    return tries.worker.message.value


def test_what_cannot_be_answered_is_said_in_red(tries: TryIt) -> None:
    tries.controls["prompt"].value = " \n"
    assert "prompt is empty" in refusal(tries)
    tries.controls["prompt"].value = "word " * 3000
    assert "2048 in all" in refusal(tries)
    tries.controls["prompt"].value = PROMPT
    with torch.no_grad():
        find_layers(find_blocks(tries.models["other"])[0])["mlp.up_proj"].weight[0] = math.nan
    assert "other gives NaN" in refusal(tries)


def test_errors_of_still_are_raised(tries: TryIt, one_line_error: Any) -> None:
    with one_line_error(BadParameter, "prompt is empty"):
        tries.still("")
    with torch.no_grad():
        find_layers(find_blocks(tries.models["other"])[0])["mlp.up_proj"].weight[0] = math.inf
    with one_line_error(NonFinite, "other", "float32"):
        tries.still()


def test_what_means_nothing_is_not_offered(
    loaded: tuple[nn.Module, Any], tries: TryIt, one_line_error: Any
) -> None:
    assert tries.controls["seed"].disabled and tries.controls["temperature"].disabled  # greedy
    tries.controls["way"].value = "sampled"
    assert not tries.controls["seed"].disabled and not tries.controls["temperature"].disabled
    text = loaded[1].decode(prompt_ids(loaded[1], "Who?", True))
    assert "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n" in text
    model, tokenizer = loaded[0], copy.deepcopy(loaded[1])
    tokenizer.chat_template = None
    without = try_it({"dense": model}, tokenizer)
    assert all(without.controls["mode"] not in getattr(w, "children", ()) for w in without.children)
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
    tries.still()
    assert "wanda 2:4" in tries.columns["wanda 2:4"].value
    tries.remove("wanda 2:4")
    assert len(tries.answers.children) == 1


def test_pruning_that_is_stopped_leaves_nothing(
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
    loaded: tuple[nn.Module, Any], tries: TryIt, one_line_error: Any, tmp_path: Any
) -> None:
    model, tokenizer = loaded
    with one_line_error(BadParameter, "empty"):
        try_it({}, tokenizer)
    with one_line_error(BadParameter, "dense", "load_model"):
        try_it({"dense": "embedded"}, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with one_line_error(BadParameter, "read block by block"):
        try_it({"dense": load_streamed(tmp_path)[0]}, tokenizer)
    with one_line_error(BadParameter, "temperature"):
        try_it({"dense": model}, tokenizer, temperature=0.0)
    with one_line_error(BadParameter, "'nobody'", "dense, other"):
        tries.remove("nobody")


def test_a_tokenizer_of_another_model_is_refused(
    loaded: tuple[nn.Module, Any], one_line_error: Any
) -> None:
    small = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2))
    with one_line_error(BadParameter, "knows 60", "own tokenizer"):
        try_it({"small": small}, loaded[1]).still(PROMPT)
