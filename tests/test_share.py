"""A pruned model to keep and to share: loaded by others, and what it takes."""

import copy
import functools
import json
import re
import shlex
from unittest.mock import Mock

import families as fam
import pytest
import saved
import torch
import yaml
from huggingface_hub import ModelCard

from benchmarks import use
from helpers import load_model, prune_model, share
from helpers.data.assets import MODELS
from helpers.errors import BadParameter, FileError, UnsupportedModel
from helpers.paths import reference_dir
from helpers.share import save_pruned
from reproduction.records import read_records
from reproduction.studies import rounded_to_int8, storage_report


def pruned(folder, family="llama"):
    """A model pruned to 2:4, with its tokenizer, loaded from a folder."""
    model, tokenizer = load_model(saved.save(folder / "source", family))
    prune_model(model, fam.random_tokens(), method="wanda", pattern="2:4")
    return model, tokenizer


def as_if(monkeypatch, name, revision=None, **more):
    """Let models look as if they were loaded by this name."""
    identity = {"name": name, "revision": revision, **more}
    monkeypatch.setattr(share, "model_identity", lambda _model: identity)


@pytest.mark.parametrize("family, shards", [("llama-tied", "20KB"), ("gpt2", "1GB")])
def test_others_load_the_same_model(family, shards, tmp_path, monkeypatch):
    model, tokenizer = pruned(tmp_path, family)
    save = functools.partial(model.save_pretrained, max_shard_size=shards)
    monkeypatch.setattr(model, "save_pretrained", save)
    folder = save_pruned(model, tokenizer, tmp_path / "to")
    saved.check_index(folder)
    assert (len([*folder.glob("*.safetensors")]) == 1) == (shards == "1GB")
    card = ModelCard.load(folder / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(code, loaded := {})
    assert not fam.changed(loaded["model"], fam.snapshot(model))
    tokens = fam.random_tokens()
    found = loaded["model"].eval()(tokens)
    assert torch.equal(found.logits, model(tokens).logits)
    assert loaded["tokenizer"].get_vocab() == tokenizer.get_vocab()
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None
    for row in ("| method | wanda |", "| pattern | 2:4 |", "| sparsity | 50.0 % |"):
        assert row in card.text


def test_the_card_of_the_embedded_model_says_where_it_is_from(tmp_path, monkeypatch):
    model, tokenizer = pruned(tmp_path)
    as_if(monkeypatch, "embedded", sha256=MODELS["embedded"].sha256)
    folder = save_pruned(model, tokenizer, tmp_path / "to")
    card = ModelCard.load(folder / "README.md")
    assert "Q4_1" in card.text  # made from a file of 4-bit weights
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"


def test_a_folder_that_is_named_like_an_embedded_model_is_not_that_one(tmp_path):
    source = saved.save(tmp_path / "embedded")
    model, tokenizer = load_model(source)
    prune_model(model, method="magnitude", sparsity=0.5)
    card = ModelCard.load(save_pruned(model, tokenizer, tmp_path / "to") / "README.md")
    assert card.data.base_model is None
    assert "GGUF" not in card.text


def test_what_is_shared_has_no_path_of_this_machine(tmp_path):
    model, tokenizer = pruned(tmp_path)
    record = read_records(reference_dir("beyond") / "records")[-1]
    text = tmp_path / "text.txt"
    text.write_text("words")
    changed = {"model": str(tmp_path / "source"), "evaluation": str(text)}
    record["parameters"] |= changed
    folder = save_pruned(model, tokenizer, tmp_path / "to", record=record)
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    kept = json.loads((folder / "record.json").read_text())["parameters"]
    assert kept == record["parameters"] | {"model": "source", "evaluation": "text.txt"}
    assert record["parameters"]["model"] == changed["model"], (
        "the caller's is as it was"
    )


def test_the_card_tells_what_the_record_says(tmp_path, monkeypatch):
    model, tokenizer = pruned(tmp_path)
    as_if(monkeypatch, "owner/model", revision="0123abc")
    record = read_records(reference_dir("beyond") / "records")[-1]
    parameters = record["parameters"]
    # what a shell would run
    parameters["evaluation"] = "it's $(touch x); `touch x`"
    folder = save_pruned(model, tokenizer, tmp_path / "to", record=record)
    card = ModelCard.load(folder / "README.md")
    shown = {name: parameters[name] for name in ("method", "pattern")}
    shown["perplexity"] = f"{record['metrics']['perplexity']['value']:.4g}"
    for row in shown.items():
        assert "| {} | {} |".format(*row) in card.text
    assert record["data"]["calibration"]["package"] in card.text
    assert card.data.base_model == "owner/model"
    assert card.data.license is None
    assert parameters["method"] in card.data.tags
    # the command for it, as a shell reads it, gives the same parameters
    (line,) = [line for line in card.text.splitlines() if "papermill" in line]
    *command, yaml_text = shlex.split(line)
    notebook = f"notebooks/{record['notebook']}.ipynb"
    assert command == ["papermill", notebook, "again.ipynb", "-y"]
    assert yaml.safe_load(yaml_text) == parameters
    assert json.loads((folder / "record.json").read_text()) == record


def test_what_is_refused_leaves_nothing(tmp_path, monkeypatch, one_line_error):
    model, tokenizer = pruned(tmp_path)
    to, used = tmp_path / "to", tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("keep")

    def refused(error, word, network=model, folder=to, **record):
        with one_line_error(error, word):
            save_pruned(network, tokenizer, folder, **record)
        assert {path.name for path in tmp_path.iterdir()} == {"source", "used"}
        assert [path.name for path in used.iterdir()] == ["mine.txt"]

    refused(BadParameter, str(used), folder=used)
    refused(BadParameter, "zero", fam.build())
    refused(BadParameter, "metrics", record={"parameters": {}, "data": None})
    other = copy.deepcopy(model)
    other.lm_head.weight.data[0, 0] += 1
    load = Mock(return_value=other)
    monkeypatch.setattr(share.AutoModelForCausalLM, "from_pretrained", load)
    refused(UnsupportedModel, "lm_head.weight")
    monkeypatch.setattr(tokenizer, "save_pretrained", Mock(side_effect=OSError))
    refused(FileError, str(to))


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])  # GPT-2 stores (d_in, d_out)
def test_sizes_by_hand(family):
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    keep = fam.kept(model, family)
    weights, kept = keep.numel(), int(keep.sum())
    layers = map(model.get_submodule, fam.pruned_names(family))
    scales = 4 * sum(len(fam.matrix_of(layer)) for layer in layers)
    other = 2 * (sum(parameter.numel() for parameter in model.parameters()) - weights)
    sizes = storage_report(model)["bytes"]
    assert sizes["float16"] == other + 2 * weights
    assert sizes["mask + float16"] == other + weights // 8 + 2 * kept
    assert sizes["int8"] == other + weights + scales
    assert sizes["mask + int8"] == other + weights // 8 + kept + scales
    for kind in ("float16", "int8"):
        assert sizes[f"{kind}, zstd"] < sizes[kind], "it finds the zeros"


def test_int8_keeps_the_zeros_and_rounds_to_the_nearest():
    model = fam.build("gpt2")
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    rounded = rounded_to_int8(model)
    for name in fam.pruned_names("gpt2"):
        weight, int8 = (
            fam.matrix_of(each.get_submodule(name)).detach()
            for each in (model, rounded)
        )
        step = weight.abs().amax(1, keepdim=True) / 127
        assert (int8[weight == 0] == 0).all()
        assert ((int8 - weight).abs() <= 0.5001 * step).all()
        assert len(torch.unique((int8 / step).round())) > 50, name


def test_the_benchmark_compares_the_answers_of_sparse_products(monkeypatch):
    """It is `make bench BENCH=use`, in small."""
    result = use.measure(quick=True)
    assert {"dense", "csr"} <= {row["products"] for row in result["speeds"]}

    def zeros(layer, inputs):
        return inputs.new_zeros(*inputs.shape[:-1], layer.rows)

    monkeypatch.setattr(use.SparseLinear, "forward", zeros)
    with pytest.raises(ValueError, match="differ"):
        use.measure(quick=True)
