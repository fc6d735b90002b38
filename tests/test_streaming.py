"""Models read block by block, and the files they are read from."""

import json
import shutil
from collections import Counter
from pathlib import Path

import families as fam
import pytest
import saved
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from helpers import (
    keep_masks,
    layer_problems,
    load_model,
    load_streamed,
    model_identity,
    perplexity,
    prune_model,
    save_pruned,
)
from helpers.errors import BadParameter, FileError, NonFinite, UnsupportedModel
from helpers.large import streaming
from helpers.large.shards import Checkpoint
from helpers.model.models import find_blocks, weights_in_memory

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama"), num_hidden_layers=3)


@pytest.fixture
def spoilt(llama, tmp_path):
    """A copy of `llama` to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.fixture
def reads(monkeypatch):
    """How often each tensor has been read."""
    counted, read = Counter(), Checkpoint.read

    def counting(self, name, *rest):
        counted[name] += 1
        return read(self, name, *rest)

    monkeypatch.setattr(Checkpoint, "read", counting)
    return counted


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def in_memory(model):
    """Parameters that hold values."""
    return [
        name for name, parameter in model.named_parameters() if not parameter.is_meta
    ]


# ---------------------------------------------------------------- the same model


# buffers in the file and a transposed layout; embedding scaled by a buffer; linears outside blocks
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "opt"])
def test_logits_are_those_of_the_loaded_model(family, tmp_path):
    saved.save(tmp_path, family, "30KB")
    tokens = fam.random_tokens(2, 12)
    whole, _ = load_model(tmp_path, dtype="bfloat16")
    streamed, _ = load_streamed(tmp_path, dtype="bfloat16")
    # nothing of the first call is left in the second
    for text in (tokens, tokens.flip(1)):
        assert torch.equal(logits(streamed, text), logits(whole, text))
    assert in_memory(streamed) == []
    assert model_identity(streamed) == model_identity(whole)
    assert not streamed.training


def test_a_tied_head_under_its_own_name_but_not_twice_with_other_values(
    tmp_path, one_line_error
):
    model = fam.build("llama-tied")
    tokens = fam.random_tokens()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    own, usual = "lm_head.weight", "model.embed_tokens.weight"
    tensors[own] = tensors[usual].clone()
    alone = {name: value for name, value in tensors.items() if name != usual}
    for stored in (alone, tensors):
        save_file(stored, path, metadata={"format": "pt"})
        streamed, _ = load_streamed(tmp_path)
        assert torch.equal(logits(streamed, tokens), logits(model, tokens))
    tensors[own][3, 3] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with one_line_error(BadParameter, "tie_word_embeddings"):
        load_streamed(tmp_path)


def test_a_block_that_shares_a_tensor_is_refused(tmp_path, one_line_error):
    model = fam.build()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    layer = model.model.layers[0].self_attn.q_proj
    # outside the blocks, and in another block
    for holder in (model.model, model.model.layers[1]):
        holder.extra = layer
        with one_line_error(UnsupportedModel, "layers.0.self_attn.q_proj"):
            streaming.WeightReader(model, checkpoint, "cpu", torch.float32)
        del holder.extra
    streaming.WeightReader(model, checkpoint, "cpu", torch.float32)


def test_perplexity_is_that_of_the_loaded_model_in_few_reads(llama, reads):
    whole, _ = load_model(llama)
    streamed, _ = load_streamed(llama)
    text = fam.random_tokens(1, 7 * 16 + 5)[0]
    assert perplexity(streamed, text, length=16) == perplexity(whole, text, length=16)
    assert set(reads) == set(Checkpoint(llama).files)
    few = Counter(reads)
    reads.clear()
    perplexity(streamed, text.repeat(4), length=16)
    assert reads == few, "reads must not grow with the text"


@pytest.mark.parametrize(
    "use",
    [
        keep_masks,
        lambda model: save_pruned(model, None, "pruned"),
        lambda model: layer_problems(model, fam.random_tokens(), 1, ["mlp.up_proj"]),
        lambda model: prune_model(model, method="magnitude", sparsity=0.5),
    ],
)
def test_what_needs_all_weights_in_memory_says_so(use, llama, one_line_error):
    streamed, _ = load_streamed(llama)
    with one_line_error(UnsupportedModel, "load_model"):
        use(streamed)


# ---------------------------------------------------------------- nothing stays


def test_a_call_holds_one_block_at_a_time_and_an_error_none(llama, reads, monkeypatch):
    held = []
    fails = False
    forward = LlamaDecoderLayer.forward

    def looking(self, *args, **kwargs):
        held.append([bool(in_memory(block)) for block in find_blocks(streamed)])
        if fails and held[-1][1]:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", looking)
    streamed, _ = load_streamed(llama)
    expected = logits(streamed, fam.random_tokens())
    assert held == [[True, False, False], [False, True, False], [False, False, True]]
    assert in_memory(streamed) == []
    fails = True
    with pytest.raises(KeyboardInterrupt):
        logits(streamed, fam.random_tokens())
    fails = False
    assert in_memory(streamed) == []
    reads.clear()
    with weights_in_memory(streamed, 1):  # a block that is kept is read once
        for _ in range(2):
            assert torch.equal(logits(streamed, fam.random_tokens()), expected)
    assert reads[DOWN] == 1
    assert reads[DOWN.replace(".1.", ".2.")] == 2


# ---------------------------------------------------------------- files that are wrong


def test_a_bad_number_and_another_shape_are_named(spoilt, one_line_error):
    path = Checkpoint(spoilt).files[DOWN]
    tensors = load_file(path)
    tensors[DOWN][0] = float("inf")
    save_file(tensors, path, metadata={"format": "pt"})
    streamed, _ = load_streamed(spoilt)
    with one_line_error(NonFinite, DOWN):
        logits(streamed, fam.random_tokens())
    assert in_memory(streamed) == []
    tensors[DOWN] = tensors[DOWN][:, :-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with one_line_error(BadParameter, DOWN):
        load_streamed(spoilt)


def test_files_that_are_damaged_or_missing(spoilt, one_line_error):
    shard = Checkpoint(spoilt).files[DOWN]
    index = spoilt / "model.safetensors.index.json"
    outside = shutil.copy(shard, spoilt.parent / "b.safetensors")  # which is never read
    index_outside = json.dumps({"weight_map": {"a": f"../{outside.name}"}})
    for path, text in [
        (index, "{"),
        (index, index_outside),
        (shard, "cut off"),
        (shard, None),
    ]:
        whole = path.read_bytes()
        path.unlink()
        if text is not None:
            path.write_text(text)
        with one_line_error(FileError, str(spoilt)):
            load_streamed(spoilt)
        path.write_bytes(whole)


# ---------------------------------------------------------------- the hub


def test_a_hub_model_is_fetched_at_its_commit_without_pickles(
    llama, tmp_path, monkeypatch, one_line_error
):
    cached = Path(shutil.copytree(llama, tmp_path / "snapshots" / ("c" * 40)))

    def download(name, *, revision, allow_patterns):
        if name == "owner/none":
            raise OSError("404")
        assert (name, revision) == ("owner/name", "main")
        assert "*.safetensors" in allow_patterns[0]
        for pattern in allow_patterns:
            assert "bin" not in pattern and ".py" not in pattern
        return str(cached)

    monkeypatch.setattr(streaming, "snapshot_download", download)
    streamed, tokenizer = load_streamed("owner/name", revision="main")
    identity = model_identity(streamed)
    assert identity["name"] == "owner/name"
    assert identity["revision"] == "c" * 40
    assert tokenizer
    with one_line_error(FileError, "404"):
        load_streamed("owner/none", revision="main")
