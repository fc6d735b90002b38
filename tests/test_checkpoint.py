"""`prune_checkpoint`: the weights of `prune_model`, and nothing finished is ever lost."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import families as fam
import kills
import pytest
import saved
import torch
import workers
from safetensors.torch import load_file, save_file
from workers import TOKENS, WANDA

from helpers import METHODS, load_model, masks_of, prune_checkpoint, prune_model, register
from helpers.errors import BadParameter, FileError
from helpers.large import checkpoint
from helpers.large.shards import Checkpoint

BLOCKS, LAYERS = 3, 7
DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: each of these runs syncs many times to the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama") / "source", num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def expected(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run with WANDA, without interruption, writes."""
    to = tmp_path_factory.mktemp("expected") / "pruned"
    prune_checkpoint(llama, to, TOKENS, **WANDA)
    return saved.contents(to)


@pytest.fixture
def source(llama: Path, tmp_path: Path) -> Path:
    """A copy of `llama` to be changed."""
    return Path(shutil.copytree(llama, tmp_path / "source"))


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """A destination that is not there yet."""
    return tmp_path / "pruned"


def interrupted(source: Path, to: Path, after: int, **arguments: object) -> None:
    """A run that ends with an error once `after` layers are done."""

    def stop(done: int, _total: int, _name: str) -> None:
        if done == after:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prune_checkpoint(source, to, TOKENS, progress=stop, **{**WANDA, **arguments})


def blocks_solved(source: Path, to: Path, **arguments: object) -> tuple[object, list[int]]:
    """The report of a run, and the blocks that it has solved."""
    seen: list[int] = []
    report = prune_checkpoint(
        source, to, TOKENS, progress=lambda _d, _t, name: seen.append(int(name.split()[1])),
        **{**WANDA, **arguments},
    )  # fmt: skip
    assert seen == sorted(list(set(seen)) * LAYERS)
    return report, sorted(set(seen))


# ---------------------------------------------------------------- the same weights


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("llama-tied", dict(method="admm-grad", sparsity=0.5, batch=2)),
        ("llama-tied", dict(method="admm1", sparsity=0.6, passes=1)),
        ("llama", dict(method="wanda", sparsity=0.5, precision="bfloat16", batch=2)),
        ("gemma3", dict(method="wanda", pattern="2:4", dtype="bfloat16")),
        ("gpt2", dict(method="sparsegpt", sparsity=0.6, batch=1)),
        ("gpt2", dict(method="magnitude", pattern="2:4", dtype="bfloat16")),
    ],
    ids=str,
)
def test_weights_and_report_are_those_of_prune_model(
    family: str, how: dict, to: Path, tmp_path: Path
) -> None:
    source = saved.save(tmp_path / "source", family, "1GB" if family == "gpt2" else "20KB")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    report = prune_checkpoint(source, to, TOKENS, **how)
    dtype = how.pop("dtype", "float32")
    whole, _ = load_model(source, dtype=dtype)
    usual = prune_model(whole, TOKENS, **how)
    pruned = saved.loaded(to)
    assert str(pruned.dtype) == f"torch.{dtype}"
    assert pruned.state_dict().keys() == whole.state_dict().keys()
    assert fam.changed(pruned, fam.snapshot(whole)) == set()
    assert saved.timeless(report.to_dict()) == saved.timeless(usual.to_dict() | {"resumed": 0})
    assert report.layers and report.folder == str(to)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (to / name).read_bytes() == before[name]
    assert json.loads((to / "config.json").read_text())["dtype"] == dtype
    # a zero is the mask
    zeros = sum(int((~keep).sum()) for keep in masks_of(pruned).values())
    assert zeros == sum(round(row.sparsity * row.shape[0] * row.shape[1]) for row in report.layers)


def test_a_checkpoint_of_the_bare_model_resumed(tmp_path: Path, to: Path) -> None:
    # its names lack the first part; the blocks' shards have the model's names
    fam.build("gpt2").transformer.save_pretrained(tmp_path / "source")
    interrupted(tmp_path / "source", to, 5)
    prune_checkpoint(tmp_path / "source", to, TOKENS, **WANDA)
    whole = fam.build("gpt2")
    prune_model(whole, TOKENS, **WANDA)
    assert fam.changed(saved.loaded(to), fam.snapshot(whole)) == set()


def test_a_sparsity_for_each_layer_is_part_of_the_request(source: Path, to: Path) -> None:
    names = (*fam.QKVO, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    asked = {f"{i}.{name}": (i + n) / 10 for i in range(BLOCKS) for n, name in enumerate(names)}
    interrupted(source, to, 10, sparsity=asked)
    with pytest.raises(FileError):
        prune_checkpoint(source, to, TOKENS, **{**WANDA, "sparsity": asked | {DOWN[13:-7]: 0.25}})
    # another order of the same names is the same request
    report, blocks = blocks_solved(source, to, sparsity=dict(reversed(asked.items())))
    assert report.resumed == 1 and blocks == [1, 2]
    model, _ = load_model(source)
    prune_model(model, TOKENS, **{**WANDA, "sparsity": asked})
    assert not fam.changed(load_model(to)[0], fam.snapshot(model))


# ---------------------------------------------------------------- killed, and going on


def test_killed_at_random_moments_and_before_every_durable_operation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=97)
    fam.build("llama", **sizes).save_pretrained(source)
    (source / "generation_config.json").unlink()  # each file more is several kills more
    anytime, finished = workers.answer_of(kills.kill, source, tmp_path)
    assert anytime >= 6
    assert len(finished) > 25 and set(finished) == {0, 1, 2}


@pytest.mark.parametrize("after", [1, LAYERS + 1])
def test_a_rerun_goes_on_with_the_block_it_was_in(
    llama: Path, to: Path, expected: dict, after: int
) -> None:
    interrupted(llama, to, after)
    whole = after // LAYERS
    assert saved.finished_blocks(to) == set(range(whole))
    for name in (".tmpUFiVIr", ".model-00002-of-00004.safetensors.77.tmp"):  # of killed writers
        (to / name).write_bytes(b"half a shard")
    report, solved = blocks_solved(llama, to)
    assert (solved, report.resumed) == (list(range(whole, BLOCKS)), whole)
    assert saved.contents(to) == expected and len(report.layers) == BLOCKS * LAYERS
    again, solved = blocks_solved(llama, to)
    assert solved == [] and again.resumed == BLOCKS and saved.contents(to) == expected
    assert again.to_dict() == report.to_dict() | {"resumed": BLOCKS}


@pytest.mark.parametrize("missing", [True, False])
def test_a_shard_that_is_lost_or_cut_off_is_done_again(
    llama: Path, to: Path, expected: dict, missing: bool
) -> None:
    prune_checkpoint(llama, to, TOKENS, **WANDA)
    path = to / "model-00001-of-00004.safetensors"
    raw = path.read_bytes()
    path.unlink() if missing else path.write_bytes(raw[:-1])
    report, solved = blocks_solved(llama, to)
    assert (report.resumed, solved) == (2, [0]) and saved.contents(to) == expected


def other_weights(source: Path) -> None:
    path = source / "model-00002-of-00004.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def other_configuration(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))


@pytest.mark.parametrize(
    "change",
    [
        dict(sparsity=0.6),
        dict(method="sparsegpt"),
        dict(dtype="bfloat16"),
        dict(batch=4),
        dict(tokens=TOKENS.flip(0)),
        dict(source=other_weights),
        dict(source=other_configuration),
    ],
    ids=str,
)
def test_another_request_is_refused(
    source: Path, to: Path, change: dict, one_line_error: Callable
) -> None:
    if "sparsity" in change:  # either way
        prune_checkpoint(source, to, TOKENS, **WANDA)
    else:
        interrupted(source, to, LAYERS + 1)
    before = saved.contents(to)
    arguments = WANDA | change
    arguments.pop("source", lambda _: None)(source)
    tokens = arguments.pop("tokens", TOKENS)
    with one_line_error(FileError, str(to), "another call", "delete that folder"):
        prune_checkpoint(source, to, tokens, **arguments)
    assert saved.contents(to) == before


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("change", ["version", "code", "method"])
def test_other_versions_and_other_code_are_refused(
    change: str, llama: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(weight, gram, *, sparsity, pattern, keep=None):
        return METHODS["magnitude"](weight, gram, sparsity=sparsity, pattern=pattern)

    def two(weight, gram, *, sparsity, pattern, keep=None):
        return METHODS["wanda"](weight, gram, sparsity=sparsity, pattern=pattern)

    version, code = importlib.metadata.version, checkpoint.core_code(wings=["large"])
    assert {"masks.py", "fast/fused.py", "large/checkpoint.py"} < set(code)
    asked = dict(method="by-hand", sparsity=0.5)
    register("by-hand")(one)
    interrupted(llama, to, LAYERS + 1, **asked)
    if change == "version":
        other = lambda name: "0.1" if name == "numpy" else version(name)  # noqa: E731
        monkeypatch.setattr(importlib.metadata, "version", other)
    elif change == "code":
        monkeypatch.setattr(checkpoint, "core_code", lambda **_: code | {"masks.py": "0" * 64})
    else:
        register("by-hand")(two)
    with pytest.raises(FileError, match="versions or code differ"):
        prune_checkpoint(llama, to, TOKENS, batch=2, **asked)


# ---------------------------------------------------------------- folders


def test_a_pruned_source_is_refused_unless_asked_for(llama: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    prune_checkpoint(llama, once, TOKENS, **WANDA)
    with pytest.raises(BadParameter, match="once are zero already: .* allow_pruned=True"):
        prune_checkpoint(once, twice, TOKENS, **WANDA)
    assert not twice.exists()
    assert prune_checkpoint(once, twice, TOKENS, allow_pruned=True, **WANDA).error < 1e-6


def test_a_folder_of_something_else_is_never_touched(
    source: Path, to: Path, one_line_error: Callable
) -> None:
    to.mkdir()
    (to / "thesis.txt").write_text("years of work")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for destination in (to, to / "thesis.txt", source, source.parent):
        with one_line_error(FileError, str(destination)):
            prune_checkpoint(source, destination, TOKENS, **WANDA)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert [path.read_text() for path in to.iterdir()] == ["years of work"]
    assert sorted(source.parent.iterdir()) == [to, source]


def test_a_relative_path_and_a_link_as_destination(
    llama: Path, tmp_path: Path, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("disk", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(llama)
    (tmp_path / "link").symlink_to(tmp_path / "disk")  # stays one
    prune_checkpoint(
        "linked", "link", TOKENS, progress=lambda *_: os.chdir(tmp_path / "elsewhere"), **WANDA
    )
    assert saved.contents(tmp_path / "disk") == expected and (tmp_path / "link").is_symlink()


def test_two_calls_at_once_never_mix(llama: Path, to: Path, expected: dict) -> None:
    def meanwhile(done: int, *_: object) -> None:
        if done == 1:  # the same is welcome, another leaves no model
            prune_checkpoint(llama, to, TOKENS, **WANDA)

    prune_checkpoint(llama, to, TOKENS, progress=meanwhile, **WANDA)
    assert saved.contents(to) == expected
    shutil.rmtree(to)
    with pytest.raises(FileError, match="another call"):
        prune_checkpoint(llama, to, TOKENS, progress=meanwhile, **WANDA | {"sparsity": 0.6})


# ---------------------------------------------------------------- what ends a run


def test_a_file_that_finds_no_disk_space(llama: Path, to: Path, expected: dict) -> None:
    # a real limit of the kernel: first nothing can be written, then no shard, at last everything
    *errors, last = workers.answer_of(workers.with_full_disk, llama, to, [0, 30000, 10**7])
    assert len(errors) == 2 and last == ""
    assert all("large" in text and "free some" in text and "\n" not in text for text in errors)
    assert saved.contents(to) == expected


@pytest.mark.parametrize(("number", "how"), [(1, "full"), (5, "full"), (12, "full"), (9, "^C")])
def test_a_write_that_breaks_off(
    llama: Path, to: Path, expected: dict, number: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, fsync = iter(range(1000)), os.fsync

    def breaking(handle: int) -> None:
        if how == "full" and next(count) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how == "^C" and next(count) == number:
            signal.raise_signal(signal.SIGINT)
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", breaking)
        with pytest.raises((FileError, KeyboardInterrupt), match="No space left|^$"):
            prune_checkpoint(llama, to, TOKENS, **WANDA)
    assert not list(to.glob("*.tmp"))
    finished = saved.finished_blocks(to)
    _, solved = blocks_solved(llama, to)
    assert set(solved) == set(range(BLOCKS)) - finished and saved.contents(to) == expected


def test_a_source_that_changes_meanwhile(
    source: Path, to: Path, expected: dict, one_line_error: Callable
) -> None:
    path = Checkpoint(source).files[DOWN]
    whole = path.read_bytes()

    def meddle(done: int, *_: object) -> None:
        if done == 2 * LAYERS - 1:
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))

    with one_line_error(FileError, path.name, "has changed"):
        prune_checkpoint(source, to, TOKENS, progress=meddle, **WANDA)
    path.write_bytes(whole)
    _, solved = blocks_solved(source, to)
    assert solved == [2] and saved.contents(to) == expected


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (dict(sparsity=1.5), BadParameter, ("1.5",)),
        (dict(tokens=None), BadParameter, ("calibration",)),
        (dict(method="sparsegpt", damping=torch.ones(1)), BadParameter, ("damping",)),
        (dict(source="nowhere"), BadParameter, ("nowhere", "config.json")),
        (dict(precision="half"), BadParameter, ("precision", "half")),
    ],
    ids=str,
)
def test_a_bad_request_leaves_nothing(
    llama: Path, to: Path, change: dict, kind: type, words: tuple, one_line_error: Callable
) -> None:
    arguments = dict(WANDA, source=llama, destination=to, tokens=TOKENS) | change
    with one_line_error(kind, *words):
        prune_checkpoint(**arguments)
    assert not to.exists()
