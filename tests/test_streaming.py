"""Models read block by block, and the files they are read from and written to."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import families as fam
import pytest
import saved
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from helpers import load_model, load_streamed, model_identity, perplexity
from helpers.errors import BadParameter, FileError, NonFinite, UnsupportedModel
from helpers.large.shards import Checkpoint, write_index, write_shard
from helpers.large.streaming import WeightReader
from helpers.models import find_blocks, opened


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama"), num_hidden_layers=3)


@pytest.fixture
def spoilt(llama: Path, tmp_path: Path) -> Path:
    """A copy of `llama` to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each tensor has been read."""
    counted, read = Counter(), Checkpoint.read

    def counting(self: Checkpoint, name: str, *rest: object) -> Tensor:
        counted[name] += 1
        return read(self, name, *rest)

    monkeypatch.setattr(Checkpoint, "read", counting)
    return counted


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def in_memory(model: nn.Module) -> list[str]:
    """Parameters that hold values."""
    return [name for name, parameter in model.named_parameters() if not parameter.is_meta]


def rewrite(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    """Change one tensor of a saved model; return its file."""
    path = Checkpoint(folder).files[name]
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    return path


# ---------------------------------------------------------------- the same model


# buffers in the file and a transposed layout; embedding scaled by a buffer; linears outside blocks
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "opt"])
def test_logits_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    saved.save(tmp_path, family, "30KB")
    tokens = fam.random_tokens(2, 12)
    whole, streamed = (load(tmp_path, dtype="bfloat16")[0] for load in (load_model, load_streamed))
    for text in (tokens, tokens.flip(1)):  # nothing of the first call is left in the second
        assert torch.equal(logits(streamed, text), logits(whole, text))
    assert in_memory(streamed) == [] and model_identity(streamed) == model_identity(whole)
    assert not streamed.training


def test_a_family_with_other_names_in_files_is_refused(tmp_path: Path, one_line_error) -> None:
    saved.save(tmp_path, "gpt-neox")
    with one_line_error(BadParameter, "lm_head.weight", "differently in files", "prune_model"):
        load_streamed(tmp_path)


def test_a_tied_head_may_be_stored_under_its_own_name_but_not_twice_with_other_values(
    tmp_path: Path, one_line_error
) -> None:
    model, tokens = fam.build("llama-tied"), fam.random_tokens()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    head = tensors.pop("model.embed_tokens.weight")
    for names in (["lm_head.weight"], ["lm_head.weight", "model.embed_tokens.weight"]):
        copies = {name: head.clone() for name in names}
        save_file(tensors | copies, path, metadata={"format": "pt"})
        assert torch.equal(logits(load_streamed(tmp_path)[0], tokens), logits(model, tokens))
    copies["lm_head.weight"][3, 3] += 1
    save_file(tensors | copies, path, metadata={"format": "pt"})
    with one_line_error(BadParameter, "differ", "tie_word_embeddings"):
        load_streamed(tmp_path)


def test_a_block_that_shares_a_tensor_is_refused(tmp_path: Path, one_line_error) -> None:
    model = fam.build("llama")
    model.save_pretrained(tmp_path)
    for other in (model.model, model.model.layers[1]):
        other.extra = model.model.layers[0].self_attn.q_proj
        with one_line_error(UnsupportedModel, "layers.0.self_attn.q_proj", "prune_model"):
            WeightReader(model, Checkpoint(tmp_path), torch.device("cpu"), torch.float32)
        del other.extra


def test_perplexity_is_that_of_the_loaded_model_in_few_reads(llama: Path, reads: Counter) -> None:
    (whole, _), (streamed, _) = load_model(llama), load_streamed(llama)
    text = fam.random_tokens(1, 7 * 16 + 5)[0]
    for batch in (1, 2):  # with 2 a batch of one window is left over
        reads.clear()
        assert perplexity(streamed, text, length=16, batch=batch) == perplexity(
            whole, text, length=16, batch=batch
        )
        assert set(reads) == set(Checkpoint(llama).files)
        parts = 1 if batch == 1 else 2
        for name, count in reads.items():
            # arguments, then the text; outside the blocks also embedding and logits
            assert count <= parts * (2 if ".layers." in name else 5), name
    few = Counter(reads)
    reads.clear()
    perplexity(streamed, text.repeat(4), length=16, batch=2)
    assert reads == few, "reads must not grow with the text"


# ---------------------------------------------------------------- nothing stays


def test_a_call_holds_one_block_at_a_time_and_an_error_none(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, weights, fails, forward = [], [], False, LlamaDecoderLayer.forward

    def looking(self: nn.Module, *args: object, **kwargs: object) -> object:
        held.append([bool(in_memory(block)) for block in find_blocks(streamed)])
        weights.append(weakref.ref(self.mlp.up_proj.weight))
        if fails and held[-1][1]:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", looking)
    streamed, _ = load_streamed(llama)
    expected = logits(streamed, fam.random_tokens())
    assert held == [[True, False, False], [False, True, False], [False, False, True]]
    gc.collect()
    assert in_memory(streamed) == [] and not any(weight() is not None for weight in weights)
    fails = True
    with pytest.raises(KeyboardInterrupt):
        logits(streamed, fam.random_tokens())
    fails = False
    assert in_memory(streamed) == []
    assert torch.equal(logits(streamed, fam.random_tokens()), expected)


def test_a_block_that_is_open_is_read_once(llama: Path, reads: Counter) -> None:
    streamed, _ = load_streamed(llama)
    with opened(streamed, 1):
        logits(streamed, fam.random_tokens())
        logits(streamed, fam.random_tokens())
        assert all(in_memory(find_blocks(streamed)[1]))
    assert in_memory(streamed) == []
    by_block = Counter()
    for name, count in reads.items():
        by_block[name.split(".")[2] if ".layers." in name else "rest"] = count
    assert by_block == {"0": 2, "1": 1, "2": 2, "rest": 2}


# ---------------------------------------------------------------- files that are wrong


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_bad_number_is_named(spoilt: Path, name: str, one_line_error) -> None:
    rewrite(spoilt, name, lambda tensor: tensor.index_fill(0, torch.tensor([2]), float("inf")))
    streamed, _ = load_streamed(spoilt)
    with one_line_error(NonFinite, name):
        logits(streamed, fam.random_tokens())
    assert in_memory(streamed) == []


def test_a_missing_weight_and_one_of_another_shape(spoilt: Path, one_line_error) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    path = rewrite(spoilt, name, lambda tensor: tensor[:, :-1].contiguous())
    with one_line_error(BadParameter, name, "lacks 1 weights", "incomplete"):
        load_streamed(spoilt)
    index = spoilt / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(name, "other"))
    path.write_bytes(path.read_bytes().replace(name.encode(), "other".ljust(len(name)).encode()))
    with one_line_error(FileError, path.name):  # the index and the file disagree
        load_streamed(spoilt)


@pytest.mark.parametrize("length", [500, -1, None])
def test_a_shard_that_is_cut_off_or_missing(
    spoilt: Path, length: int | None, one_line_error
) -> None:
    path = Checkpoint(spoilt).files["model.layers.1.mlp.down_proj.weight"]
    if length is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:length])
    with one_line_error(FileError, path.name, "missing, cut off"):
        load_streamed(spoilt)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}']
)
def test_an_index_that_is_damaged(spoilt: Path, text: str, one_line_error) -> None:
    (spoilt / "model.safetensors.index.json").write_text(text)
    for path in spoilt.glob("*.safetensors"):  # a file outside the folder is never read
        path.rename(spoilt.parent / "b.safetensors")
    with one_line_error(FileError, str(spoilt), "save"):
        load_streamed(spoilt)


def test_what_is_no_model(tmp_path: Path, one_line_error) -> None:
    with one_line_error(BadParameter, "config.json", "save_pretrained"):
        load_streamed(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with one_line_error(FileError, "model.safetensors"):
        load_streamed(tmp_path)
    fam.build("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for text in ("{", "[" * 100_000, '{"model_type": "no-such-family"}'):
        (tmp_path / "config.json").write_text(text)
        with one_line_error(BadParameter, "cannot be built"):
            load_streamed(tmp_path)
    # read without their scales they would give another model, which the gate compares with itself
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8"}})
    )
    with one_line_error(UnsupportedModel, "quantised"):
        load_streamed(tmp_path)


# ---------------------------------------------------------------- writing


def test_a_shard_is_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(3, dtype=torch.bfloat16)}
        digest = write_shard(tmp_path / "x.safetensors", tensors)
        write_index(tmp_path, {"b": "x.safetensors", "a": "x.safetensors"}, 30)
    finally:
        os.umask(before)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "model.safetensors.index.json",
        "x.safetensors",
    ]
    # others may read it as far as the user lets them
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    path = tmp_path / "x.safetensors"
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "pt") as stream:
        assert stream.metadata() == {"format": "pt"}
        assert all(torch.equal(stream.get_tensor(name), tensors[name]) for name in "ab")
    assert dict(Checkpoint(tmp_path).tensors()).keys() == {"a", "b"}


def test_a_shard_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    path = tmp_path / "x.safetensors"
    write_shard(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def fails(_tensors: dict, half: Path, **_: object) -> None:
        half.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("helpers.large.shards.save_file", fails)
    with one_line_error(FileError, "x.safetensors", "No space left", "free some"):
        write_shard(path, {"a": torch.zeros(3)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
