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

from helpers import load_model, perplexity
from helpers.errors import CheckpointError, NonFinite, UnknownModel, UnsupportedModel
from helpers.large.shards import Checkpoint, write_index, write_shard
from helpers.large.streaming import WeightReader, load_streamed
from helpers.models import device_of, find_blocks, opened

CPU = torch.device("cpu")
# transformers gives their weights other names in files than in the model
RENAMED = {"gpt-neox"}
ROUNDED = {"llama", "gpt2", "gemma3", "mpt", "bloom"}  # families tested in bfloat16


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama"), num_hidden_layers=3)


@pytest.fixture
def spoilt(llama: Path, tmp_path: Path) -> Path:
    """A copy of `llama` to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


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


@pytest.mark.parametrize("family", sorted(fam.FAMILIES.keys() - RENAMED))
def test_logits_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    saved.save(tmp_path, family, "30KB")
    tokens = fam.random_tokens(2, 12)
    for dtype in ("bfloat16",) if family in ROUNDED else ("float32",):
        (whole, _), (streamed, _) = (
            load(tmp_path, dtype=dtype) for load in (load_model, load_streamed)
        )
        assert torch.equal(logits(streamed, tokens), logits(whole, tokens))
        assert in_memory(streamed) == []
        # also after another text: nothing of the first call is left in the answer of the second
        other = tokens.flip(1)
        assert torch.equal(logits(streamed, other), logits(whole, other))


def test_a_family_with_other_names_in_files_is_refused(tmp_path: Path, one_line_error) -> None:
    saved.save(tmp_path, "gpt-neox")
    with one_line_error(UnknownModel, "lm_head.weight", "other names", "prune_model"):
        load_streamed(tmp_path)


def test_a_checkpoint_of_the_bare_model(tmp_path: Path) -> None:
    model = fam.build("gpt2")
    model.transformer.save_pretrained(tmp_path)  # names such as h.0.attn.c_attn.weight
    assert "wte.weight" in Checkpoint(tmp_path).files
    streamed, tokenizer = load_streamed(tmp_path)
    assert tokenizer is None
    tokens = fam.random_tokens()
    assert torch.equal(logits(streamed, tokens), logits(model, tokens))


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
    with one_line_error(UnknownModel, "differs", "tie_word_embeddings"):
        load_streamed(tmp_path)


@pytest.mark.parametrize("where", ["outside", "block 1", "weight of block 1"])
def test_a_block_that_shares_a_tensor_is_refused(
    where: str, tmp_path: Path, one_line_error
) -> None:
    # block 0's q_proj and a tensor elsewhere are one: reading one part would not fill the other
    model = fam.build("llama")
    model.save_pretrained(tmp_path)
    model.to("meta")
    shared, other = model.model.layers[0].self_attn.q_proj, model.model.layers[1].self_attn
    if where == "outside":
        model.model.extra = shared
    elif where == "block 1":
        other.q_proj = shared
    else:
        other.q_proj.weight = shared.weight
    with one_line_error(UnsupportedModel, "layers.0.self_attn.q_proj", "prune_model"):
        WeightReader(model, Checkpoint(tmp_path), CPU, torch.float32)


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


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each tensor has been read."""
    counted: Counter = Counter()
    read = Checkpoint.read

    def counting(self: Checkpoint, name: str, *rest: object) -> Tensor:
        counted[name] += 1
        return read(self, name, *rest)

    monkeypatch.setattr(Checkpoint, "read", counting)
    return counted


# ---------------------------------------------------------------- nothing stays


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[nn.Module], None]]:
    """Functions called with each Llama block whenever one runs, after it has been read."""
    called: list[Callable[[nn.Module], None]] = []
    forward = LlamaDecoderLayer.forward

    def looking(self: nn.Module, *args: object, **kwargs: object) -> object:
        for function in called:
            function(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", looking)
    return called


def test_a_call_holds_one_block_at_a_time(llama: Path, look: list) -> None:
    streamed, _ = load_streamed(llama)
    held = []
    look.append(lambda _: held.append([bool(in_memory(b)) for b in find_blocks(streamed)]))
    logits(streamed, fam.random_tokens())
    assert held == [[True, False, False], [False, True, False], [False, False, True]]
    assert in_memory(streamed) == []


def test_nothing_stays_after_an_error_in_a_block(llama: Path, look: list) -> None:
    streamed, _ = load_streamed(llama)
    expected = logits(streamed, fam.random_tokens())

    def fail(block: nn.Module) -> None:
        if block is find_blocks(streamed)[1]:
            raise KeyboardInterrupt

    look.append(fail)
    with pytest.raises(KeyboardInterrupt):
        logits(streamed, fam.random_tokens())
    assert in_memory(streamed) == []
    look.clear()
    assert torch.equal(logits(streamed, fam.random_tokens()), expected)


def test_nothing_stays_after_an_error_while_reading(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed, _ = load_streamed(llama)
    count, read = iter(range(10**6)), Checkpoint.read

    def interrupted(self: Checkpoint, *arguments: object) -> Tensor:
        if next(count) == 10:  # in block 0
            raise KeyboardInterrupt
        return read(self, *arguments)

    monkeypatch.setattr(Checkpoint, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        logits(streamed, fam.random_tokens())
    assert in_memory(streamed) == []


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


def test_the_memory_of_a_block_is_given_back(llama: Path, look: list) -> None:
    streamed, _ = load_streamed(llama)
    held: list = []
    look.append(lambda block: held.append(weakref.ref(block.mlp.up_proj.weight)))
    logits(streamed, fam.random_tokens())
    gc.collect()
    assert len(held) == 3 and not any(reference() is not None for reference in held)


def test_a_linked_folder_of_links_is_only_read(llama: Path, tmp_path: Path) -> None:
    # as the hub's cache keeps models
    folder = tmp_path / "links"
    folder.mkdir()
    for path in llama.iterdir():
        (folder / path.name).symlink_to(path)
    (tmp_path / "linked").symlink_to(folder)
    before = {path.name: path.stat().st_mtime_ns for path in llama.iterdir()}
    folder.chmod(0o555)
    streamed, _ = load_streamed(tmp_path / "linked", device="cpu", dtype="bfloat16")
    whole, tokens = load_model(llama, dtype="bfloat16")[0], fam.random_tokens()
    assert torch.equal(logits(streamed, tokens), logits(whole, tokens))
    folder.chmod(0o755)
    assert {path.name: path.stat().st_mtime_ns for path in llama.iterdir()} == before
    assert device_of(streamed) == CPU and not streamed.training


# ---------------------------------------------------------------- files that are wrong


@pytest.mark.parametrize(
    ("name", "value"),
    [("model.layers.1.mlp.down_proj.weight", float("nan")),
     ("model.embed_tokens.weight", float("inf"))],
)  # fmt: skip
def test_a_bad_number_is_named(spoilt: Path, name: str, value: float, one_line_error) -> None:
    rewrite(spoilt, name, lambda tensor: tensor.index_fill(0, torch.tensor([2]), value))
    streamed, _ = load_streamed(spoilt)
    with one_line_error(NonFinite, name):
        logits(streamed, fam.random_tokens())
    assert in_memory(streamed) == []


def test_a_missing_weight_and_one_of_another_shape(spoilt: Path, one_line_error) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(spoilt, name, lambda tensor: tensor[:, :-1].contiguous())
    with one_line_error(UnknownModel, name, "lacks 1 weights"):
        load_streamed(spoilt)
    index = spoilt / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    del found["weight_map"][name]
    index.write_text(json.dumps(found))
    with one_line_error(UnknownModel, name, "incomplete"):
        load_streamed(spoilt)


@pytest.mark.parametrize("length", [0, 500, -1, None])
def test_a_shard_that_is_cut_off_or_missing(
    spoilt: Path, length: int | None, one_line_error
) -> None:
    path = Checkpoint(spoilt).files["model.layers.1.mlp.down_proj.weight"]
    if length is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:length])
    with one_line_error(CheckpointError, path.name, "missing, cut off"):
        load_streamed(spoilt)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}']
)
def test_an_index_that_is_damaged(spoilt: Path, text: str, one_line_error) -> None:
    (spoilt / "model.safetensors.index.json").write_text(text)
    with one_line_error(CheckpointError, "index.json"):
        load_streamed(spoilt)


def test_a_file_that_changes_after_loading(spoilt: Path, one_line_error) -> None:
    streamed, _ = load_streamed(spoilt)
    path = rewrite(spoilt, "model.layers.1.mlp.down_proj.weight", lambda tensor: tensor + 1)
    with one_line_error(CheckpointError, path.name, "has changed"):
        logits(streamed, fam.random_tokens())
    path.unlink()
    with one_line_error(CheckpointError, path.name):
        logits(streamed, fam.random_tokens())
    assert in_memory(streamed) == []


def test_what_is_no_model(tmp_path: Path, one_line_error) -> None:
    with one_line_error(UnknownModel, "config.json", "save_pretrained"):
        load_streamed(tmp_path)
    with one_line_error(UnknownModel, "config.json"):
        load_streamed(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with one_line_error(CheckpointError, "model.safetensors"):
        load_streamed(tmp_path)
    fam.build("llama").save_pretrained(tmp_path)
    for text in ("{", '{"model_type": "no-such-family"}'):
        (tmp_path / "config.json").write_text(text)
        with one_line_error(UnknownModel, "cannot be built"):
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


@pytest.mark.parametrize(
    ("where", "code"),
    [("os.fsync", errno.EIO), ("os.replace", errno.EROFS),
     ("helpers.large.shards.save_file", errno.ENOSPC)],
)  # fmt: skip
def test_a_shard_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int, one_line_error
) -> None:
    path = tmp_path / "x.safetensors"
    write_shard(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def fails(*arguments: object, **_: object) -> None:
        if where.endswith("save_file"):
            arguments[1].write_bytes(b"half a file")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(where, fails)
    with one_line_error(CheckpointError, "x.safetensors", os.strerror(code), "free some"):
        write_shard(path, {"a": torch.zeros(3)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_quantised_weights_are_refused(tmp_path: Path, one_line_error) -> None:
    # read without their scales they would give another model, and the gate compares it with itself
    model = fam.build("llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with one_line_error(UnsupportedModel, "quantised"):
        load_streamed(tmp_path)
