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
from types import SimpleNamespace

import families as fam
import kills
import pytest
import saved
import torch
import workers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from workers import TOKENS, WANDA

from helpers import apply_masks, check_masks, load_masks, load_model, masks_of, prune_model
from helpers.errors import (
    BadParameter,
    BadSparsity,
    CheckpointError,
    NonFinite,
    ResumeError,
    UnknownModel,
)
from helpers.large import checkpoint
from helpers.large.checkpoint import CheckpointReport, prune_checkpoint
from helpers.large.jobs import MANIFEST, Workspace
from helpers.large.shards import Checkpoint
from helpers.methods import METHODS, register

BLOCKS, LAYERS = 3, 7
SHARD = "model-00002-of-00004.safetensors"  # of the source


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: each of these runs syncs forty times to the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama") / "source", num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def expected(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The files of a run with WANDA, without interruption."""
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


def blocks_solved(source: Path, to: Path, **arguments: object) -> tuple[CheckpointReport, list]:
    """The report of a run, and the blocks that it has solved."""
    seen: list[int] = []
    report = prune_checkpoint(
        source, to, TOKENS, progress=lambda _d, _t, name: seen.append(int(name.split()[1])),
        **{**WANDA, **arguments},
    )  # fmt: skip
    assert [seen.count(block) for block in sorted(set(seen))] == [LAYERS] * len(set(seen))
    return report, sorted(set(seen))


def answer_of(folder: Path, target: Callable, *arguments: object) -> list:
    """What a process writes to the file that is its last argument."""
    process = workers.PROCESSES.Process(target=target, args=(*arguments, folder / "answer"))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "answer").read_text())


def nothing_left(to: Path) -> bool:
    """No workspace, and no unfinished file."""
    return not saved.workspace(to).exists() and not list(to.glob("*.tmp")) + list(to.glob(".*"))


# ---------------------------------------------------------------- the same weights


def check_same(
    source: Path, to: Path, *, dtype: str = "float32", activations: str = "memory", **more: object
) -> None:
    """prune_checkpoint and prune_model give the same bits, report and masks."""
    tokens = None if more["method"] == "magnitude" else TOKENS
    report = prune_checkpoint(source, to, tokens, dtype=dtype, activations=activations, **more)
    whole, _ = load_model(source, dtype=dtype)
    usual = prune_model(whole, tokens, **more)
    pruned = saved.loaded(to)
    assert str(pruned.dtype) == f"torch.{dtype}"
    assert pruned.state_dict().keys() == whole.state_dict().keys()
    assert fam.changed(pruned, fam.snapshot(whole)) == set()
    assert saved.timeless(report.to_dict()) == saved.timeless(
        usual.to_dict() | {"resumed": 0, "redone": []}
    )
    assert report.layers and report.folder == str(to) and nothing_left(to)
    masks = load_masks(to)
    check_masks(to)
    assert masks.keys() == masks_of(whole).keys()
    assert all(torch.equal(keep, masks[name]) for name, keep in masks_of(whole).items())
    apply_masks(pruned, masks)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma3", "mpt"])
def test_every_family_gets_the_weights_of_prune_model(family: str, tmp_path: Path) -> None:
    source = saved.save(tmp_path / "source", family, "20KB")
    check_same(source, tmp_path / "a", method="admm-grad", sparsity=0.5, batch=2)
    check_same(source, tmp_path / "b", dtype="bfloat16", method="wanda", pattern="2:4")


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_every_method_gives_the_weights_of_prune_model(method: str, tmp_path: Path) -> None:
    source = saved.save(tmp_path / "source", shards="1GB")  # a single file
    disk = dict(activations="disk", method=method)
    check_same(source, tmp_path / "a", sparsity=0.6, batch=1, **disk)
    check_same(source, tmp_path / "b", dtype="bfloat16", pattern="2:4", batch=4, **disk)


def test_a_checkpoint_of_the_bare_model(tmp_path: Path) -> None:
    fam.build("gpt2").transformer.save_pretrained(tmp_path / "source")
    saved.tokenizer(tmp_path / "source")
    assert "wte.weight" in Checkpoint(tmp_path / "source").files
    check_same(tmp_path / "source", tmp_path / "pruned", method="wanda", sparsity=0.5)


def test_tokenizer_and_configuration_come_along(llama: Path, to: Path) -> None:
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    prune_checkpoint(llama, to, TOKENS, dtype="bfloat16", **WANDA)
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    assert all((to / name).read_bytes() == before[name] for name in names)
    _, tokenizer = load_model(to)
    assert tokenizer("w5 w7")["input_ids"] == [5, 7]
    assert json.loads((to / "config.json").read_text())["dtype"] == "bfloat16"
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before


def test_a_pruned_checkpoint_can_be_pruned_again(llama: Path, tmp_path: Path) -> None:
    prune_checkpoint(llama, tmp_path / "half", TOKENS, **WANDA)
    check_same(tmp_path / "half", tmp_path / "less", method="wanda", sparsity=0.75)
    shutil.rmtree(tmp_path / "less")
    check_same(tmp_path / "half", tmp_path / "less", method="wanda", sparsity=0.75)


# ---------------------------------------------------------------- killed


def test_killed_at_random_moments_and_before_every_durable_operation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    fam.build("llama").save_pretrained(source, max_shard_size=saved.SHARDS)
    (source / "generation_config.json").unlink()  # each file more is a dozen kills more
    anytime, each, replace = answer_of(tmp_path, kills.kill, source, tmp_path)
    assert anytime["wrong"] == each["wrong"] == replace["wrong"] == []
    assert anytime["kills"] >= 12 and anytime["rounds"] >= 2
    assert each["kills"] == each["operations"] > 50 and set(each["finished"]) == {0, 1, 2}
    # a model lies at the destination but between the two renames
    assert replace["kills"] > 40 and replace["absent"] == 1


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("after", "activations"),
    [(1, "memory"), (LAYERS, "disk"), (LAYERS + 1, "memory"), (2 * LAYERS + 3, "disk")],
)
def test_a_rerun_goes_on_with_the_block_it_was_in(
    llama: Path, to: Path, expected: dict, after: int, activations: str
) -> None:
    interrupted(llama, to, after, activations=activations)
    whole = (after - 1) // LAYERS
    assert saved.finished_blocks(to) == set(range(whole)) and not to.exists()
    report, solved = blocks_solved(llama, to, activations=activations)
    assert (solved, report.resumed, report.redone) == (list(range(whole, BLOCKS)), whole, [])
    assert saved.contents(to) == expected and nothing_left(to)
    assert len(report.layers) == BLOCKS * LAYERS
    # where the stream lies changes no bit, so either way may go on
    again, solved = blocks_solved(llama, to)
    assert solved == [] and again.resumed == BLOCKS
    assert saved.timeless(again.to_dict()) == saved.timeless(report.to_dict() | {"resumed": BLOCKS})


@pytest.mark.parametrize("content", [None, b"", -1, -9])
def test_a_damaged_shard_is_done_again(
    llama: Path, to: Path, expected: dict, content: bytes | int | None
) -> None:
    interrupted(llama, to, 2 * LAYERS + 1)
    path = saved.workspace(to) / "run-1" / "model-00001-of-00004.safetensors"
    raw = path.read_bytes()
    path.unlink()
    if isinstance(content, int):  # the byte there is another
        content = raw[:content] + bytes([raw[content] ^ 4]) + raw[content:][1:]
    if content is not None:
        path.write_bytes(content)
    report, solved = blocks_solved(llama, to)
    assert (report.redone, report.resumed, solved) == ([0], 1, [0, 2])
    assert saved.contents(to) == expected


def test_a_complete_model_that_was_changed_is_left_alone(
    llama: Path, to: Path, expected: dict, one_line_error
) -> None:
    prune_checkpoint(llama, to, TOKENS, **WANDA)
    for name in ("model-00002-of-00004.safetensors", "model-00004-of-00004.safetensors"):
        path = to / name
        path.write_bytes(path.read_bytes()[:-1])
        with one_line_error(ResumeError, name, "resume=False"):
            prune_checkpoint(llama, to, TOKENS, **WANDA)
        assert len(path.read_bytes()) == len(expected[name]) - 1
        path.write_bytes(expected[name])
    prune_checkpoint(llama, to, TOKENS, **WANDA)
    (to / "model-00002-of-00004.safetensors").unlink()
    prune_checkpoint(llama, to, TOKENS, resume=False, **WANDA)
    assert saved.contents(to) == expected


def other_weights(source: Path) -> None:
    path = source / SHARD
    tensors = {name: 2 * tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def other_configuration(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(sparsity=0.6), ("sparsity 0.5, not 0.6",)),
        (dict(sparsity=None, pattern="2:4"), ("pattern unstructured, not 2:4",)),
        (dict(method="sparsegpt", damping=0.2), ("damping None, not 0.2", "method wanda")),
        (dict(batch=4), ("batch 2, not 4",)),
        (dict(dtype="bfloat16"), ("dtype float32, not bfloat16",)),
        (dict(tokens=TOKENS.flip(0)), ("calibration ",)),
        (dict(source=other_weights), (f"source.{SHARD} ",)),
        (dict(source=other_configuration), ("configuration ",)),
    ],
    ids=str,
)
def test_another_request_is_refused_and_named(
    source: Path, to: Path, change: dict, words: tuple, one_line_error
) -> None:
    complete = "sparsity" in change  # either way
    if complete:
        prune_checkpoint(source, to, TOKENS, **WANDA)
    else:
        interrupted(source, to, LAYERS + 1)
    before = saved.contents(to if complete else saved.workspace(to) / "run-1")
    arguments = WANDA | change
    arguments.pop("source", lambda _: None)(source)
    tokens = arguments.pop("tokens", TOKENS)
    with one_line_error(ResumeError, *words, "resume=False", "which deletes"):
        prune_checkpoint(source, to, tokens, **arguments)
    assert saved.contents(to if complete else saved.workspace(to) / "run-1") == before


def test_other_versions_and_other_code_are_refused(
    llama: Path, to: Path, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    def by_hand(first: int) -> None:
        METHODS.pop("by-hand", None)
        if first:

            @register("by-hand")
            def one(weight, gram, *, sparsity, pattern, keep=None):
                return METHODS["magnitude"](weight, gram, sparsity=sparsity, pattern=pattern)
        else:

            @register("by-hand")
            def two(weight, gram, *, sparsity, pattern, keep=None):
                return METHODS["magnitude"](weight, gram, sparsity=0.25, pattern=pattern)

    version, digest = importlib.metadata.version, checkpoint.sha256_file

    def other_version(name: str) -> str:
        return "0.1" if name == "numpy" else version(name)

    def other_file(path: Path) -> str:
        return "0" * 64 if path.parts[-2:] in (("helpers", "masks.py"), stated) else digest(path)

    stated = ("large", "checkpoint.py")
    by_hand(1)
    try:
        asked = dict(method="by-hand", sparsity=0.5)
        interrupted(llama, to, LAYERS + 1, **asked)
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", other_version)
            patch.setattr(checkpoint, "sha256_file", other_file)
            by_hand(0)
            words = ("versions.numpy", "not 0.1", "code.masks", "code.large/checkpoint")
            with one_line_error(ResumeError, *words, "not 000000000000", "method_code"):
                prune_checkpoint(llama, to, TOKENS, batch=2, **asked)
        by_hand(1)
        assert prune_checkpoint(llama, to, TOKENS, batch=2, **asked).resumed == 1
    finally:
        METHODS.pop("by-hand")


def test_starting_anew_keeps_the_old_model_until_the_new_is_complete(
    llama: Path, to: Path, expected: dict
) -> None:
    prune_checkpoint(llama, to, TOKENS, method="magnitude", sparsity=0.3)
    older = saved.contents(to)
    interrupted(llama, to, LAYERS + 1, resume=False)
    assert saved.contents(to) == older
    saved.loaded(to)
    # both may be gone on with
    report = prune_checkpoint(llama, to, TOKENS, method="magnitude", sparsity=0.3)
    assert report.resumed == BLOCKS and saved.finished_blocks(to) == {0}
    _, solved = blocks_solved(llama, to)
    assert solved == [1, 2] and saved.contents(to) == expected and nothing_left(to)


def test_starting_anew_leaves_an_interrupted_run_until_then(
    llama: Path, to: Path, expected: dict
) -> None:
    interrupted(llama, to, LAYERS + 1, sparsity=0.25)
    interrupted(llama, to, 2 * LAYERS + 1, resume=False)
    report, solved = blocks_solved(llama, to, sparsity=0.25)  # the one before
    assert solved == [1, 2] and report.sparsity == 0.25 and nothing_left(to)
    interrupted(llama, to, 1, resume=False)
    interrupted(llama, to, LAYERS + 1, resume=False)
    _, solved = blocks_solved(llama, to)
    assert solved == [1, 2] and saved.contents(to) == expected and nothing_left(to)


def test_a_manifest_that_cannot_be_read(
    llama: Path, to: Path, expected: dict, one_line_error
) -> None:
    interrupted(llama, to, LAYERS + 1)
    path = saved.workspace(to) / "run-1" / MANIFEST
    whole = path.read_text()
    manifest = json.loads(whole)
    damaged = [whole[:200], "", "[]", "{}", "3", json.dumps(manifest | {"blocks": [1]})]
    for entry in ({"file": "../x"}, {"layers": [{}]}, {"layers": 3}, {"sha256": 3}, {"file": None}):
        broken = {"0": manifest["blocks"]["0"] | entry}
        damaged.append(json.dumps(manifest | {"blocks": broken}))
    for more in ({"complete": True}, {"request": {}}, {"halved": None}):
        damaged.append(json.dumps(manifest | more))
    for text in damaged:
        path.write_text(text)
        with one_line_error(ResumeError, MANIFEST, "resume=False", "delete"):
            prune_checkpoint(llama, to, TOKENS, **WANDA)
        assert path.read_text() == text
    path.write_text(json.dumps(manifest | {"format": 99}))
    with one_line_error(ResumeError, "format 99", "resume=False"):
        prune_checkpoint(llama, to, TOKENS, **WANDA)
    _, solved = blocks_solved(llama, to, resume=False)
    assert solved == [0, 1, 2] and saved.contents(to) == expected and nothing_left(to)


# ---------------------------------------------------------------- folders


def test_a_folder_of_something_else_is_never_touched(llama: Path, to: Path, one_line_error) -> None:
    to.mkdir()
    (to / "thesis.txt").write_text("years of work")
    for resume in (True, False):
        with one_line_error(ResumeError, str(to), "choose another"):
            prune_checkpoint(llama, to, TOKENS, resume=resume, **WANDA)
        with one_line_error(ResumeError, "thesis.txt", "choose another"):
            prune_checkpoint(llama, to / "thesis.txt", TOKENS, resume=resume, **WANDA)
    assert [path.name for path in to.parent.iterdir()] == [to.name]
    assert [path.name for path in to.iterdir()] == ["thesis.txt"]
    assert (to / "thesis.txt").read_text() == "years of work"


def test_source_and_destination_must_lie_apart(tmp_path: Path, one_line_error) -> None:
    source = saved.save(tmp_path / "a" / "source")
    prune_checkpoint(source, tmp_path / "a" / "half", TOKENS, **WANDA)  # has a manifest
    half = tmp_path / "a" / "half"
    (tmp_path / "link").symlink_to(half)
    before = saved.contents(half)
    for to in (half, tmp_path / "link", half / "inside", tmp_path / "a", half / ".." / "half"):
        for resume in (True, False):
            with one_line_error(ResumeError, "overlap"):
                prune_checkpoint(half, to, TOKENS, resume=resume, **WANDA)
    assert saved.contents(half) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


def test_paths_may_be_written_in_many_ways(
    llama: Path, tmp_path: Path, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama, tmp_path / "home" / "source")
    for folder in ("home/empty", "disk/pruned", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "home" / "source")
    (tmp_path / "home" / "link").symlink_to(tmp_path / "disk" / "pruned")  # stays one
    ways = {"home/../home/deep/er/": "home/deep/er", "~/empty": "home/empty"}
    ways |= {"home/link": "disk/pruned"}
    for way, name in ways.items():
        report = prune_checkpoint(
            "~/source/" if way[0] == "~" else "linked", way, TOKENS,
            progress=lambda *_: os.chdir(tmp_path / "elsewhere"), **WANDA,
        )  # fmt: skip
        os.chdir(tmp_path)
        found = tmp_path / name
        assert report.folder == str(found) and saved.contents(found) == expected
        assert nothing_left(found)
    assert (tmp_path / "home" / "link").is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_cannot_be_written(llama: Path, tmp_path: Path, one_line_error) -> None:
    (tmp_path / "file").write_text("x")
    with one_line_error(CheckpointError, "file", "can be written"):
        prune_checkpoint(llama, tmp_path / "file" / "pruned", TOKENS, **WANDA)


def test_files_are_closed(llama: Path, tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no account of open files here")
    prune_checkpoint(llama, tmp_path / "0", TOKENS, activations="disk", **WANDA)
    before = count()
    for number in (1, 2):
        interrupted(llama, tmp_path / str(number), LAYERS + 1, activations="disk")
        prune_checkpoint(llama, tmp_path / str(number), TOKENS, activations="disk", **WANDA)
    assert count() == before


# ---------------------------------------------------------------- one run at a time


def test_a_second_run_is_refused_while_the_first_one_works(
    llama: Path, to: Path, expected: dict, one_line_error
) -> None:
    reached = workers.PROCESSES.Event()
    first = workers.PROCESSES.Process(target=workers.pause, args=(llama, to, reached))
    first.start()
    try:
        assert reached.wait(60)
        for resume in (True, False):
            with one_line_error(ResumeError, f"process {first.pid}", "wait for it"):
                prune_checkpoint(llama, to, TOKENS, resume=resume, **WANDA)
    finally:
        first.kill()
        first.join()
    _, solved = blocks_solved(llama, to)
    assert solved == [0, 1, 2] and saved.contents(to) == expected and nothing_left(to)


def test_a_run_inside_a_run_is_refused(llama: Path, to: Path, expected: dict) -> None:
    refused = []

    def again(done: int, *_: object) -> None:
        if done == 1:
            with pytest.raises(ResumeError) as caught:
                prune_checkpoint(llama, to, TOKENS, **WANDA)
            refused.append(str(caught.value))

    prune_checkpoint(llama, to, TOKENS, progress=again, **WANDA)
    assert f"process {os.getpid()}" in refused[0] and saved.contents(to) == expected


# ---------------------------------------------------------------- a full disk


def test_a_file_that_finds_no_disk_space(
    llama: Path, to: Path, expected: dict, tmp_path: Path
) -> None:
    # a real limit of the kernel: first nothing can be written, then not the manifest, not the
    # stream (8192 bytes) or a shard (38064 bytes), and at last everything
    cases = [("memory", 0), ("disk", 1000), ("memory", 8000), ("disk", 8000), ("disk", 30000)]
    *errors, last = answer_of(
        tmp_path, workers.with_full_disk, llama, to, [*cases, ("disk", 10**7)]
    )
    assert len(errors) == 5 and last == ""
    assert all("large" in text and "free some" in text and "\n" not in text for text in errors)
    assert ["activations" in text for text in errors] == [False, False, False, True, False]
    assert saved.contents(to) == expected and nothing_left(to)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that prune_checkpoint has made, as they were and are."""
    made: list[nn.Module] = []
    load = checkpoint.load_streamed

    def noting(*arguments: object, **named: object) -> tuple[nn.Module, object]:
        model, tokenizer = load(*arguments, **named)
        model.forwards = [vars(part).get("forward") for part in model.modules()]
        made.append(model)
        return model, tokenizer

    monkeypatch.setattr(checkpoint, "load_streamed", noting)
    return made


def intact(model: nn.Module, to: Path) -> None:
    """No hook, no other forward, no weight in memory, no file half written, no lock held."""
    assert fam.hook_count(model) == 0
    now = [vars(part).get("forward") for part in model.modules()]
    assert all(one is other for one, other in zip(now, model.forwards, strict=True))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not [path for path in saved.workspace(to).rglob("*") if path.name.endswith(".tmp")]
    with Workspace(Path("/nowhere"), to).locked():
        pass


@pytest.mark.parametrize("number", (1, 9, 17, 25, 30))
@pytest.mark.parametrize("how", ["full", "Ctrl-C"])
def test_a_write_that_breaks_off(
    llama: Path, to: Path, expected: dict, models: list, number: int, how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    count, fsync = iter(range(1000)), os.fsync

    def breaking(handle: int) -> None:
        if how == "full" and next(count) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how == "Ctrl-C" and next(count) == number:
            signal.raise_signal(signal.SIGINT)
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", breaking)
        with pytest.raises((CheckpointError, KeyboardInterrupt), match="No space left|^$"):
            prune_checkpoint(llama, to, TOKENS, **WANDA)
    intact(models[0], to)
    finished = saved.finished_blocks(to)
    _, solved = blocks_solved(llama, to)
    assert set(solved) == set(range(BLOCKS)) - finished
    assert saved.contents(to) == expected and nothing_left(to)


def test_a_disk_that_is_too_small_is_known_before_the_work(
    llama: Path, to: Path, expected: dict, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    # three blocks of 9248 weights, embedding, head and a norm; a bit for each weight; the stream
    weights = 3 * 9280 + 2 * 97 * 32 + 32
    free = 4 * weights + weights // 8 + 4 * 16 * 32 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))
    prune_checkpoint(llama, to.with_name("fits"), TOKENS, activations="disk", **WANDA)
    free -= 1
    with one_line_error(CheckpointError, "GB free", "free some"):
        prune_checkpoint(
            llama, to, TOKENS, activations="disk", progress=lambda *_: pytest.fail("work"), **WANDA
        )
    free = 10**9
    prune_checkpoint(llama, to, TOKENS, activations="disk", **WANDA)
    assert saved.contents(to) == expected


# ---------------------------------------------------------------- sources that are wrong


def test_a_source_that_changes_meanwhile(
    source: Path, to: Path, expected: dict, one_line_error
) -> None:
    path = Checkpoint(source).files["model.layers.2.mlp.down_proj.weight"]
    whole = path.read_bytes()

    def meddle(done: int, *_: object) -> None:
        if done == 2 * LAYERS - 1:
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))

    with one_line_error(CheckpointError, path.name, "has changed", "2 finished blocks are kept"):
        prune_checkpoint(source, to, TOKENS, progress=meddle, **WANDA)
    with one_line_error(ResumeError, f"source.{path.name}"):
        prune_checkpoint(source, to, TOKENS, **WANDA)
    path.write_bytes(whole)
    _, solved = blocks_solved(source, to)
    assert solved == [2] and saved.contents(to) == expected


def test_a_bad_number_in_the_weights(source: Path, to: Path, one_line_error) -> None:
    path = Checkpoint(source).files["model.layers.2.mlp.down_proj.weight"]
    whole, tensors = path.read_bytes(), load_file(path)
    tensors["model.layers.2.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    name = "model.layers.2.mlp.down_proj.weight"
    with one_line_error(NonFinite, name):  # in the parity gate
        prune_checkpoint(source, to, TOKENS, **WANDA)
    assert saved.finished_blocks(to) == set()
    magnitude = dict(method="magnitude", sparsity=0.5)  # which has no gate
    other = to.with_name("other")
    for _ in range(2):
        with one_line_error(NonFinite, name, "2 finished blocks are kept"):
            prune_checkpoint(source, other, **magnitude)
        assert saved.finished_blocks(other) == {0, 1}
    path.write_bytes(whole)
    with one_line_error(ResumeError, "source."):
        prune_checkpoint(source, other, **magnitude)


# 19 calls of blocks: 3 to record arguments, 6 in the gate, 6 for grams, 4 in the second pass
@pytest.mark.parametrize("call", (1, 8, 13, 17))
def test_ctrl_c_inside_a_block(
    llama: Path, to: Path, expected: dict, models: list, call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    count, forward = iter(range(10**6)), LlamaDecoderLayer.forward

    def pressing(*arguments: object, **named: object) -> object:
        if next(count) == call:
            signal.raise_signal(signal.SIGINT)
        return forward(*arguments, **named)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", pressing)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(llama, to, TOKENS, activations="disk", **WANDA)
    intact(models[0], to)
    blocks_solved(llama, to)
    assert saved.contents(to) == expected and nothing_left(to)


# ---------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (dict(activations="ram"), BadParameter, ("activations 'ram'", "disk, memory")),
        (dict(sparsity=1.5), BadSparsity, ("1.5",)),
        (dict(tokens=None), BadParameter, ("calibration",)),
        (dict(method="sparsegpt", damping=torch.ones(1)), BadParameter, ("damping",)),
        (dict(source="nowhere"), UnknownModel, ("nowhere", "config.json")),
    ],
    ids=str,
)
def test_a_bad_request_leaves_nothing(
    llama: Path, to: Path, change: dict, kind: type, words: tuple, one_line_error
) -> None:
    arguments = dict(WANDA, source=llama, tokens=TOKENS) | change
    with one_line_error(kind, *words):
        prune_checkpoint(destination=to, **arguments)
    assert not to.exists() and not saved.workspace(to).exists()
