"""A pruned model to keep and to share: loaded by others, and what it takes."""

import copy
import json
from pathlib import Path
from typing import Any

import families as fam
import numpy as np
import pytest
import saved
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers import load_masks, load_model, prune_model, read_records
from helpers.errors import BadParameter, FileError, UnsupportedModel
from helpers.models import model_layers
from helpers.paths import reference_dir
from helpers.share import folder as module
from helpers.share import (
    load_gguf,
    model_card,
    possible_products,
    push,
    rounded_to_int8,
    save_gguf,
    save_pruned,
    storage_report,
    tokens_per_second,
    with_products,
)
from helpers.share.speed import SparseLinear, check_products
from helpers.share.upload import main


def pruned(folder: Path, family: str = "llama", **how: Any) -> tuple[nn.Module, Any]:
    """A pruned model with its tokenizer, loaded from a folder."""
    model, tokenizer = load_model(saved.save(folder / "source", family))
    prune_model(model, fam.random_tokens(), method="wanda", **how or {"sparsity": 0.6})
    return model, tokenizer


# ---------------------------------------------------------------- the folder


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_others_load_the_same_model(family: str, tmp_path: Path) -> None:
    model, tokenizer = pruned(tmp_path, family, pattern="2:4")
    folder = save_pruned(model, tokenizer, tmp_path / "to", pattern="2:4")
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert not fam.changed(again, fam.snapshot(model))
    tokens = fam.random_tokens()
    assert torch.equal(again.eval()(tokens).logits, model(tokens).logits)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    masks = load_masks(folder)
    assert len(masks) == len(fam.pruned_names(family))
    for name, keep in masks.items():
        assert torch.equal(again.get_parameter(name) != 0, keep)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and "50.0 % of the weights" in card.text
    assert "2:4 along the input" in card.text


def test_the_card_tells_what_the_record_says(tmp_path: Path) -> None:
    model, tokenizer = pruned(tmp_path)
    record = read_records(reference_dir("full") / "records")[-1]
    folder = save_pruned(model, tokenizer, tmp_path / "to", record=record)
    card = ModelCard.load(folder / "README.md")
    for words in (
        record["data"]["calibration"]["package"],
        f"{record['metrics']['perplexity']['value']:.4g}",
        f"torch {record['versions']['torch']}",
    ):
        assert words in card.text, words
    assert record["parameters"]["method"] in card.data.tags
    # the command for it gives the same parameters
    (line,) = [line for line in card.text.splitlines() if "papermill" in line]
    assert yaml.safe_load(line.split("-y ")[1].strip("'")) == record["parameters"]
    assert json.loads((folder / "record.json").read_text()) == record


def test_what_the_hub_calls_the_embedded_model() -> None:
    card = ModelCard(model_card("x", None, sparsity=0.5, base="a/b", license="apache-2.0"))
    assert (card.data.base_model, card.data.license) == ("a/b", "apache-2.0")
    assert module.ON_THE_HUB["embedded"][0].startswith("HuggingFaceTB/")


def test_what_is_refused_leaves_nothing(tmp_path: Path, monkeypatch, one_line_error) -> None:
    model, tokenizer = pruned(tmp_path)
    to, used = tmp_path / "to", tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("keep")
    with one_line_error(BadParameter, "is in use"):
        save_pruned(model, tokenizer, used)
    with one_line_error(BadParameter, "prune it first"):
        save_pruned(fam.build(), tokenizer, to)

    def other(*_args: object, **_kwargs: object) -> nn.Module:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.lm_head.weight[0, 0] += 1
        return changed

    with monkeypatch.context() as patch:
        patch.setattr(module.AutoModelForCausalLM, "from_pretrained", other)
        with one_line_error(UnsupportedModel, "lm_head.weight"):
            save_pruned(model, tokenizer, to)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_masks", lambda *_a, **_k: (used / "no" / "such").touch())
        with one_line_error(FileError, "cannot be written"):
            save_pruned(model, tokenizer, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "used"]
    assert [path.name for path in used.iterdir()] == ["mine.txt"]


# ---------------------------------------------------------------- the hub


def test_pushing_needs_an_account_and_a_sound_folder(
    tmp_path: Path, monkeypatch, capsys, one_line_error
) -> None:
    model, tokenizer = pruned(tmp_path)
    folder = save_pruned(model, tokenizer, tmp_path / "to")
    monkeypatch.setattr("helpers.share.upload.get_token", lambda: None)
    assert main([str(folder), "me/model"]) == 1
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setattr("helpers.share.upload.get_token", lambda: "hf_made_up")
    sent: dict[str, Any] = {}

    class Hub:
        def __init__(self, endpoint: str | None) -> None:
            pass

        def create_repo(self, name: str, **asked: Any) -> Any:
            sent["repository"] = (name, asked)
            return type("Repository", (), {"repo_id": name if "/" in name else f"me/{name}"})

        def upload_folder(self, **asked: Any) -> Any:
            sent["folder"] = asked
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr("helpers.share.upload.HfApi", Hub)
    assert main([str(folder), "me/model", "--public"]) == 0
    assert capsys.readouterr().out == "https://hub/commit\n"
    assert sent["repository"] == ("me/model", {"private": False, "exist_ok": True})
    assert sent["folder"] == {"repo_id": "me/model", "folder_path": folder}
    push(folder, "model")  # of the account's own
    assert sent["folder"]["repo_id"] == "me/model"

    def offline(*_args: Any, **_asked: Any) -> None:
        raise HTTPError("no route to host")

    monkeypatch.setattr(Hub, "create_repo", offline)
    with one_line_error(BadParameter, "no route to host", "the network"):
        push(folder, "me/model")
    (folder / "masks.safetensors").unlink()
    with one_line_error(FileError, "masks.safetensors"):
        push(folder, "me/model")


def test_a_name_that_the_hub_does_not_take(tmp_path: Path, monkeypatch, one_line_error) -> None:
    model, tokenizer = pruned(tmp_path)
    folder = save_pruned(model, tokenizer, tmp_path / "to")
    monkeypatch.setattr("helpers.share.upload.get_token", lambda: "hf_made_up")
    with one_line_error(BadParameter, "could not be sent", "a/b/c"):
        push(folder, "a/b/c")


# ---------------------------------------------------------------- one file


def tiny_llama() -> tuple[nn.Module, Any]:
    model, tokenizer = load_model("tiny")
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    return model, tokenizer


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gguf_file_is_read_back(dtype: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_llama()
    path = save_gguf(model, tokenizer, tmp_path / "model.gguf", dtype=dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    again, words = load_gguf(path)
    text = "The quick brown fox, in 1.5 seconds,\n jumps over naïve dogs."
    assert words(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert words.eos_token_id == tokenizer.eos_token_id
    for key, layer in model_layers(model).items():
        found = model_layers(again)[key].weight
        assert torch.equal(found != 0, layer.weight != 0), key
        kept = layer.weight if dtype == "float32" else layer.weight.half().float()
        assert torch.equal(found, kept), key
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-2, atol=1e-2)


def test_what_no_gguf_file_is_written_for(tmp_path: Path, one_line_error) -> None:
    model, tokenizer = tiny_llama()
    with one_line_error(UnsupportedModel, "gpt2", "Llama"):
        save_gguf(fam.build("gpt2"), tokenizer, tmp_path / "model.gguf")
    with one_line_error(BadParameter, "float16"):
        save_gguf(model, tokenizer, tmp_path / "model.gguf", dtype="int8")
    words, _ = saved.save(tmp_path / "source", "llama"), None
    with one_line_error(UnsupportedModel, "BPE"):
        save_gguf(model, AutoTokenizer.from_pretrained(words), tmp_path / "model.gguf")
    scaled, heads, longer = (copy.deepcopy(model) for _ in range(3))
    scaled.config.rope_parameters |= {"rope_type": "llama3"}
    heads.config.head_dim = 2 * heads.config.hidden_size // heads.config.num_attention_heads
    longer.resize_token_embeddings(len(tokenizer) + 3)
    for other, words in ((scaled, "llama3"), (heads, "unusual size"), (longer, "rows")):
        with one_line_error(UnsupportedModel, words):
            save_gguf(other, tokenizer, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])  # GPT-2 stores (d_in, d_out)
def test_sizes_by_hand(family: str) -> None:
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    layers = [fam.matrix_of(layer) for layer in model_layers(model).values()]
    weights, outputs = sum(w.numel() for w in layers), sum(len(w) for w in layers)
    kept = sum(int((w != 0).sum()) for w in layers)
    other = 2 * (sum(p.numel() for p in model.parameters()) - weights)
    found = storage_report(model)["bytes"]
    assert found["float16"] == other + 2 * weights
    assert found["mask + float16"] == other + weights // 8 + 2 * kept
    assert found["int8"] == other + weights + 4 * outputs
    assert found["mask + int8"] == other + weights // 8 + kept + 4 * outputs
    for way in ("float16", "int8"):
        assert found[f"{way}, zstd"] < found[way], "it finds the zeros"
    assert storage_report(model)["share"].iloc[0] == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_int8_keeps_the_zeros_and_rounds_to_the_nearest(family: str) -> None:
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    before = fam.snapshot(model)
    rounded = rounded_to_int8(model)
    assert not fam.changed(model, before)
    for name in fam.pruned_names(family):
        weight, found = (
            fam.matrix_of(m.get_submodule(name)).detach().numpy() for m in (model, rounded)
        )
        assert (found[weight == 0] == 0).all()
        step = np.abs(weight).max(1, keepdims=True) / 127
        assert (np.abs(found - weight) <= step * 0.5001).all(), name
        assert np.unique(np.round(found / step), axis=None).size > 50


# ---------------------------------------------------------------- speed


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_sparse_products_give_the_same_answers(family: str) -> None:
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.7)
    tokens, before = fam.random_tokens(2), fam.snapshot(model)
    sparse = with_products(model, "csr")
    assert not fam.changed(model, before)
    layers = [m for m in sparse.modules() if isinstance(m, SparseLinear)]
    assert len(layers) == len(fam.pruned_names(family))
    assert all(layer.weight.layout == torch.sparse_csr for layer in layers)
    with torch.no_grad():
        found, wanted = (m(tokens).logits for m in (sparse, model))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_products_of_two_of_four_are_for_such_weights(monkeypatch, one_line_error) -> None:
    monkeypatch.setattr("helpers.share.speed.has_semi_structured", lambda _device: True)
    model = fam.build()
    with one_line_error(BadParameter, "need float16"):
        check_products(model, "semi-structured")
    with one_line_error(BadParameter, "multiples of 32"):
        check_products(model.half(), "semi-structured")
    sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=2)
    whole = LlamaForCausalLM(LlamaConfig(vocab_size=99, num_hidden_layers=1, **sizes))
    prune_model(whole, method="magnitude", pattern="2:4")
    check_products(whole.half(), "semi-structured")
    with torch.no_grad():
        whole.model.layers[0].mlp.down_proj.weight[3, :3] = 1.0
    with one_line_error(BadParameter, "0.mlp.down_proj has more", "2:4"):
        check_products(whole, "semi-structured")


def test_speed_is_that_of_reading_and_writing(monkeypatch, one_line_error) -> None:
    model, tokens = fam.build(), fam.random_tokens(1, 20)
    now = iter(range(1000))
    monkeypatch.setattr("helpers.share.speed.time.perf_counter", lambda: next(now))
    # a second for each, so that the difference is nothing: only the first can be told
    assert tokens_per_second(model, tokens, new=3)["prefill"] == 20
    with one_line_error(BadParameter, "CUDA"):
        with_products(model, "semi-structured")
    with one_line_error(BadParameter, "csr"):
        with_products(model, "crs")
    with one_line_error(BadParameter, "float32"):
        with_products(copy.deepcopy(model).half(), "csr")
    assert possible_products(model) == ["dense", "csr"]
    assert possible_products(copy.deepcopy(model).half()) == ["dense"]
    with one_line_error(BadParameter, "new"):
        tokens_per_second(model, tokens, new=0)
