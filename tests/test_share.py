"""A pruned model to keep and to share: loaded by others, and what it takes."""

import copy
import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import families as fam
import pytest
import saved
import torch
import yaml
from huggingface_hub import ModelCard
from torch import nn

from benchmarks import use
from helpers import load_model, prune_model, read_records
from helpers.errors import BadParameter, FileError, UnsupportedModel
from helpers.models import model_layers
from helpers.paths import reference_dir
from helpers.share import folder as module
from helpers.share import rounded_to_int8, save_pruned, storage_report


def pruned(folder: Path, family: str = "llama", **target: Any) -> tuple[nn.Module, Any]:
    """A pruned model with its tokenizer, loaded from a folder."""
    model, tokenizer = load_model(saved.save(folder / "source", family))
    prune_model(
        model, fam.random_tokens(), method="wanda", **target or {"sparsity": 0.6}
    )
    return model, tokenizer


@pytest.mark.parametrize(
    ("family", "shards"), [("llama-tied", "20KB"), ("gpt2", "1GB")]
)
def test_others_load_the_same_model(
    family: str, shards: str, tmp_path: Path, monkeypatch
) -> None:
    model, tokenizer = pruned(tmp_path, family, pattern="2:4")
    save = functools.partial(model.save_pretrained, max_shard_size=shards)
    monkeypatch.setattr(model, "save_pretrained", save)
    folder = save_pruned(model, tokenizer, tmp_path / "to")
    saved.check_index(folder)
    assert (len(list(folder.glob("*.safetensors"))) == 1) == (shards == "1GB")
    card = ModelCard.load(folder / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(code, loaded := {})
    assert not fam.changed(loaded["model"], fam.snapshot(model))
    tokens = fam.random_tokens()
    assert torch.equal(loaded["model"].eval()(tokens).logits, model(tokens).logits)
    assert loaded["tokenizer"].get_vocab() == tokenizer.get_vocab()
    assert card.data.library_name == "transformers" and card.data.base_model is None
    for row in ("| method | wanda |", "| pattern | 2:4 |", "| sparsity | 50.0 % |"):
        assert row in card.text.splitlines()


def test_the_card_of_the_embedded_model_names_the_4_bit_file(
    tmp_path: Path, monkeypatch
) -> None:
    model, tokenizer = pruned(tmp_path)
    monkeypatch.setattr(
        module, "model_identity", lambda _: {"name": "embedded", "revision": None}
    )
    card = ModelCard.load(save_pruned(model, tokenizer, tmp_path / "to") / "README.md")
    assert "4-bit file of HuggingFaceTB/SmolLM2-135M-Instruct (GGUF, Q4_1)" in card.text
    assert card.data.license == "apache-2.0"


def test_the_card_tells_what_the_record_says(tmp_path: Path, monkeypatch) -> None:
    model, tokenizer = pruned(tmp_path)
    identity = {"name": "owner/model", "revision": "0123abc"}  # of a model of the hub
    monkeypatch.setattr(module, "model_identity", lambda _: identity)
    record = copy.deepcopy(read_records(reference_dir("beyond") / "records")[-1])
    record["parameters"]["evaluation"] = (
        "it's $(touch x); `touch x`"  # what a shell would run
    )
    folder = save_pruned(model, tokenizer, tmp_path / "to", record=record)
    card = ModelCard.load(folder / "README.md")
    rows = {f"| perplexity | {record['metrics']['perplexity']['value']:.4g} |"}
    rows |= {
        f"| {name} | {record['parameters'][name]} |" for name in ("method", "pattern")
    }
    assert rows < set(card.text.splitlines())
    assert record["data"]["calibration"]["package"] in card.text
    assert card.data.base_model == "owner/model" and card.data.license is None
    assert record["parameters"]["method"] in card.data.tags
    # the command for it, as a shell reads it, gives the same parameters
    (line,) = [line for line in card.text.splitlines() if "papermill" in line]
    *command, parameters = shlex.split(line)
    assert command == [
        "papermill",
        f"notebooks/{record['notebook']}.ipynb",
        "again.ipynb",
        "-y",
    ]
    assert yaml.safe_load(parameters) == record["parameters"]
    assert json.loads((folder / "record.json").read_text()) == record


def test_what_is_refused_leaves_nothing(
    tmp_path: Path, monkeypatch, one_line_error
) -> None:
    model, tokenizer = pruned(tmp_path)
    to, used = tmp_path / "to", tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("keep")
    with one_line_error(BadParameter, str(used)):
        save_pruned(model, tokenizer, used)
    with one_line_error(BadParameter, "zero"):
        save_pruned(fam.build(), tokenizer, to)

    other = copy.deepcopy(model)
    other.lm_head.weight.data[0, 0] += 1
    with monkeypatch.context() as patch:
        patch.setattr(
            module.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: other
        )
        with one_line_error(UnsupportedModel, "lm_head.weight"):
            save_pruned(model, tokenizer, to)
    with monkeypatch.context() as patch:
        patch.setattr(
            tokenizer, "save_pretrained", lambda _: (used / "no" / "such").touch()
        )
        with one_line_error(FileError, str(to)):
            save_pruned(model, tokenizer, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "used"]
    assert [path.name for path in used.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])  # GPT-2 stores (d_in, d_out)
def test_sizes_by_hand(family: str) -> None:
    model = fam.build(family)
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    layers = [fam.matrix_of(layer) for layer in model_layers(model).values()]
    weights, outputs = sum(w.numel() for w in layers), sum(len(w) for w in layers)
    kept = sum(int((w != 0).sum()) for w in layers)
    other = 2 * (sum(p.numel() for p in model.parameters()) - weights)
    sizes = storage_report(model)["bytes"]
    assert sizes["float16"] == other + 2 * weights
    assert sizes["mask + float16"] == other + weights // 8 + 2 * kept
    assert sizes["int8"] == other + weights + 4 * outputs
    assert sizes["mask + int8"] == other + weights // 8 + kept + 4 * outputs
    for kind in ("float16", "int8"):
        assert sizes[f"{kind}, zstd"] < sizes[kind], "it finds the zeros"


def test_int8_keeps_the_zeros_and_rounds_to_the_nearest() -> None:
    model = fam.build("gpt2")
    prune_model(model, fam.random_tokens(), method="wanda", sparsity=0.5)
    rounded = rounded_to_int8(model)
    for name in fam.pruned_names("gpt2"):
        weight, int8 = (
            fam.matrix_of(m.get_submodule(name)).detach() for m in (model, rounded)
        )
        step = weight.abs().amax(1, keepdim=True) / 127
        assert (int8[weight == 0] == 0).all() and (
            (int8 - weight).abs() <= 0.5001 * step
        ).all()
        assert torch.unique((int8 / step).round()).numel() > 50, name


def test_the_benchmark_compares_the_answers_of_sparse_products(monkeypatch) -> None:
    """It is `make bench BENCH=use`, in small."""
    result = use.measure(quick=True)
    assert {"dense", "csr"} <= {row["products"] for row in result["speeds"]}
    monkeypatch.setattr(
        use.SparseLinear,
        "forward",
        lambda self, x: x.new_zeros(*x.shape[:-1], self.rows),
    )
    with pytest.raises(ValueError, match="differ"):
        use.measure(quick=True)
