"""`prune_checkpoint`: the weights of `prune_model`, and nothing finished is ever lost."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import families as fam
import kills
import pytest
import saved
import torch
import workers
from safetensors.torch import load_file, save_file
from workers import TOKENS, WANDA

from helpers import check_masks, load_masks, load_model, masks_of, prune_checkpoint, prune_model
from helpers.errors import BadParameter, FileError
from helpers.large import checkpoint
from helpers.large.jobs import MANIFEST
from helpers.large.shards import Checkpoint
from helpers.methods import METHODS, register

BLOCKS, LAYERS = 3, 7
SHARD = "model-00002-of-00004.safetensors"  # of the source
DOWN = "model.layers.2.mlp.down_proj.weight"


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


def blocks_solved(source: Path, to: Path, **arguments: object) -> tuple[object, list[int]]:
    """The report of a run, and the blocks that it has solved."""
    seen: list[int] = []
    report = prune_checkpoint(
        source, to, TOKENS, progress=lambda _d, _t, name: seen.append(int(name.split()[1])),
        **{**WANDA, **arguments},
    )  # fmt: skip
    assert seen == sorted(list(set(seen)) * LAYERS)
    return report, sorted(set(seen))


def complete(to: Path, expected: dict[str, object]) -> bool:
    """The destination is bit for bit as expected, and no workspace and no lock are left."""
    return saved.contents(to) == expected and not saved.workspace(to).exists()


# ---------------------------------------------------------------- the same weights


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("llama-tied", dict(method="admm-grad", sparsity=0.5, batch=2)),
        ("llama-tied", dict(method="admm1", sparsity=0.6, passes=1, activations="disk")),
        ("llama", dict(method="wanda", sparsity=0.5, precision="bfloat16", batch=2)),
        ("gemma3", dict(method="wanda", pattern="2:4", dtype="bfloat16")),
        ("gpt2", dict(method="sparsegpt", sparsity=0.6, batch=1, activations="disk")),
        ("gpt2", dict(method="magnitude", pattern="2:4", dtype="bfloat16")),
    ],
    ids=str,
)
def test_weights_report_and_masks_are_those_of_prune_model(
    family: str, how: dict, to: Path, tmp_path: Path
) -> None:
    source = saved.save(tmp_path / "source", family, "1GB" if family == "gpt2" else "20KB")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    report = prune_checkpoint(source, to, TOKENS, **how)
    how.pop("activations", None)
    dtype = how.pop("dtype", "float32")
    whole, _ = load_model(source, dtype=dtype)
    usual = prune_model(whole, TOKENS, **how)
    pruned = saved.loaded(to)
    assert str(pruned.dtype) == f"torch.{dtype}"
    assert pruned.state_dict().keys() == whole.state_dict().keys()
    assert fam.changed(pruned, fam.snapshot(whole)) == set()
    assert saved.timeless(report.to_dict()) == saved.timeless(
        usual.to_dict() | {"resumed": 0, "redone": []}
    )
    assert report.layers and report.folder == str(to) and not saved.workspace(to).exists()
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (to / name).read_bytes() == before[name]
    assert json.loads((to / "config.json").read_text())["dtype"] == dtype
    masks = load_masks(to)
    check_masks(to)
    assert masks.keys() == masks_of(whole).keys()
    assert all(torch.equal(keep, masks[name]) for name, keep in masks_of(whole).items())


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
    for other in (0.5, asked | {"2.mlp.up_proj": 0.25}):
        with pytest.raises(FileError):
            prune_checkpoint(source, to, TOKENS, **{**WANDA, "sparsity": other})
    # another order of the same names is the same request
    again = dict(reversed(asked.items()))
    report, blocks = blocks_solved(source, to, sparsity=again)
    assert report.resumed == 1 and blocks == [1, 2]
    model, _ = load_model(source, dtype=WANDA.get("dtype", "float32"))
    prune_model(model, TOKENS, **{**WANDA, "sparsity": asked})
    pruned, _ = load_model(to)
    assert not fam.changed(pruned, fam.snapshot(model))


# ---------------------------------------------------------------- killed, and going on


def test_killed_at_random_moments_and_before_every_durable_operation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=97)
    fam.build("llama", **sizes).save_pretrained(source)
    (source / "generation_config.json").unlink()  # each file more is a dozen kills more
    anytime, finished, absent = workers.answer_of(kills.kill, source, tmp_path)
    assert anytime >= 6
    assert len(finished) > 40 and set(finished) == {0, 1, 2}
    assert absent == 1  # a model lies at the destination but between the two renames


@pytest.mark.parametrize(("after", "activations"), [(1, "memory"), (LAYERS + 1, "disk")])
def test_a_rerun_goes_on_with_the_block_it_was_in(
    llama: Path, to: Path, expected: dict, after: int, activations: str
) -> None:
    interrupted(llama, to, after, activations=activations)
    whole = after // LAYERS
    assert saved.finished_blocks(to) == set(range(whole)) and not to.exists()
    report, solved = blocks_solved(llama, to, activations=activations)
    assert (solved, report.resumed, report.redone) == (list(range(whole, BLOCKS)), whole, [])
    assert complete(to, expected) and len(report.layers) == BLOCKS * LAYERS
    # where the stream lies changes no bit, so either way may go on
    again, solved = blocks_solved(llama, to)
    assert solved == [] and again.resumed == BLOCKS
    assert saved.timeless(again.to_dict()) == saved.timeless(report.to_dict() | {"resumed": BLOCKS})


def test_what_a_killed_writer_has_left_is_deleted(llama: Path, to: Path, expected: dict) -> None:
    interrupted(llama, to, LAYERS + 1)
    for name in (".tmpUFiVIr", ".model-00002-of-00004.safetensors.tmp"):  # safetensors', and ours
        (saved.workspace(to) / "run-1" / name).write_bytes(b"half a shard")
    blocks_solved(llama, to)
    assert complete(to, expected) and not list(to.glob(".*tmp*"))


@pytest.mark.parametrize("missing", [True, False])
def test_a_damaged_shard_is_done_again(
    llama: Path, to: Path, expected: dict, missing: bool
) -> None:
    interrupted(llama, to, 2 * LAYERS + 1)
    path = saved.workspace(to) / "run-1" / "model-00001-of-00004.safetensors"
    raw = path.read_bytes()
    path.unlink()
    if not missing:
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 4]))
    report, solved = blocks_solved(llama, to)
    assert (report.redone, report.resumed, solved) == ([0], 1, [0, 2])
    assert complete(to, expected)


def test_a_complete_model_that_was_changed_is_left_alone(
    llama: Path, to: Path, expected: dict, one_line_error
) -> None:
    prune_checkpoint(llama, to, TOKENS, **WANDA)
    for path in sorted(to.iterdir()):  # weights, masks, configuration, index, tokenizer
        whole = path.read_bytes()
        for changed in [whole[:-1] + bytes([whole[-1] ^ 4]), None] if path.name != MANIFEST else []:
            path.unlink() if changed is None else path.write_bytes(changed)
            with one_line_error(FileError, path.name, "resume=False"):
                prune_checkpoint(llama, to, TOKENS, **WANDA)
            assert path.exists() == (changed is not None)
        path.write_bytes(whole)
    (to / SHARD).unlink()
    prune_checkpoint(llama, to, TOKENS, resume=False, **WANDA)
    assert complete(to, expected)


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
        (dict(method="sparsegpt", damping=0.2), ("damping None, not 0.2", "method wanda")),
        (dict(dtype="bfloat16", batch=4), ("dtype float32, not bfloat16", "batch 2, not 4")),
        (dict(tokens=TOKENS.flip(0)), ("calibration ",)),
        (dict(source=other_weights), (f"source.{SHARD} ",)),
        (dict(source=other_configuration), ("configuration ",)),
    ],
    ids=str,
)
def test_another_request_is_refused_and_named(
    source: Path, to: Path, change: dict, words: tuple, one_line_error
) -> None:
    if "sparsity" in change:  # either way
        prune_checkpoint(source, to, TOKENS, **WANDA)
    else:
        interrupted(source, to, LAYERS + 1)
    kept = to if to.exists() else saved.workspace(to) / "run-1"
    before = saved.contents(kept)
    arguments = WANDA | change
    arguments.pop("source", lambda _: None)(source)
    tokens = arguments.pop("tokens", TOKENS)
    with one_line_error(FileError, *words, "resume=False", "replaces"):
        prune_checkpoint(source, to, tokens, **arguments)
    assert saved.contents(kept) == before


@pytest.mark.usefixtures("registry")
def test_other_versions_and_other_code_are_refused(
    llama: Path, to: Path, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    def one(weight, gram, *, sparsity, pattern, keep=None):
        return METHODS["magnitude"](weight, gram, sparsity=sparsity, pattern=pattern)

    def two(weight, gram, *, sparsity, pattern, keep=None):
        return METHODS["wanda"](weight, gram, sparsity=sparsity, pattern=pattern)

    version = importlib.metadata.version
    code = checkpoint.core_code(wings=["large"])
    assert {"masks.py", "fast/fused.py", "large/checkpoint.py"} < set(code)
    other = code | dict.fromkeys(["masks.py", "large/checkpoint.py"], "0" * 64)
    asked = dict(method="by-hand", sparsity=0.5)
    register("by-hand")(one)
    interrupted(llama, to, LAYERS + 1, **asked)
    register("by-hand")(two)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "numpy" else version(name)
    )
    monkeypatch.setattr(checkpoint, "core_code", lambda **_: other)
    words = ("versions.numpy", "not 0.1", "code.masks.py", "code.large/checkpoint.py")
    with one_line_error(FileError, *words, "not 000000000000", "method_code"):
        prune_checkpoint(llama, to, TOKENS, batch=2, **asked)


def test_starting_anew_keeps_the_old_model_until_the_new_is_complete(
    llama: Path, to: Path, expected: dict
) -> None:
    prune_checkpoint(llama, to, TOKENS, method="magnitude", sparsity=0.3)
    older = saved.contents(to)
    interrupted(llama, to, LAYERS + 1, resume=False, sparsity=0.25)
    interrupted(llama, to, LAYERS + 1, resume=False)
    assert saved.contents(to) == older
    # either may be gone on with
    report = prune_checkpoint(llama, to, TOKENS, method="magnitude", sparsity=0.3)
    assert report.resumed == BLOCKS and saved.finished_blocks(to) == {0}
    _, solved = blocks_solved(llama, to)
    assert solved == [1, 2] and complete(to, expected)


def test_a_manifest_that_cannot_be_used(
    llama: Path, to: Path, expected: dict, one_line_error
) -> None:
    interrupted(llama, to, LAYERS + 1)
    path = saved.workspace(to) / "run-1" / MANIFEST
    whole = path.read_text()
    manifest = json.loads(whole)
    first = manifest["blocks"]["0"]
    broken = [{"0": first | {"layers": [{}]}}, {"0": {"layers": []}}, {"x": first}, {"7": first}]
    broken += [{"0": first | {"file": ["../source/config.json", "0"]}}]
    damaged = [whole[:200], "[]", "{}", "[" * 100_000]
    damaged += [json.dumps(manifest | {"blocks": blocks}) for blocks in broken]

    def refused(path: Path, text: str) -> None:
        path.write_text(text)
        with one_line_error(FileError, MANIFEST, "resume=False", "delete"):
            prune_checkpoint(llama, to, TOKENS, **WANDA)
        assert path.read_text() == text

    for text in [*damaged, json.dumps(manifest | {"format": 99})]:
        refused(path, text)
    _, solved = blocks_solved(llama, to, resume=False)
    assert solved == [0, 1, 2] and complete(to, expected)
    # and one that calls the model complete
    whole = (to / MANIFEST).read_text()
    del (fewer := json.loads(whole)["blocks"])["1"]
    for change in ({"blocks": fewer}, {"files": []}, {"report": {}}):
        refused(to / MANIFEST, json.dumps(json.loads(whole) | change))
    (to / MANIFEST).write_text(whole)
    assert blocks_solved(llama, to)[1] == []


# ---------------------------------------------------------------- folders


def test_a_pruned_source_is_refused_unless_asked_for(llama: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    prune_checkpoint(llama, once, TOKENS, **WANDA)
    with pytest.raises(
        BadParameter, match="first block of .*once are zero already: .* allow_pruned=True"
    ):
        prune_checkpoint(once, twice, TOKENS, **WANDA)
    assert not twice.exists()
    assert prune_checkpoint(once, twice, TOKENS, allow_pruned=True, **WANDA).error < 1e-6


def test_a_folder_of_something_else_is_never_touched(llama: Path, to: Path, one_line_error) -> None:
    to.mkdir()
    (to / "thesis.txt").write_text("years of work")
    for destination in (to, to / "thesis.txt"):
        with one_line_error(FileError, str(destination), "choose another"):
            prune_checkpoint(llama, destination, TOKENS, resume=False, **WANDA)
    with one_line_error(FileError, "thesis.txt", "can be written"):
        prune_checkpoint(llama, to / "thesis.txt" / "pruned", TOKENS, **WANDA)
    assert [path.name for path in to.parent.iterdir()] == [to.name]
    assert [path.name for path in to.iterdir()] == ["thesis.txt"]
    assert (to / "thesis.txt").read_text() == "years of work"


def test_source_and_destination_must_lie_apart(tmp_path: Path, one_line_error) -> None:
    half = tmp_path / "a" / "half"
    prune_checkpoint(saved.save(tmp_path / "a" / "source"), half, TOKENS, **WANDA)
    (tmp_path / "link").symlink_to(half)
    before = saved.contents(half)
    for to in (half, tmp_path / "link", half / "inside", tmp_path / "a", half / ".." / "half"):
        with one_line_error(FileError, "overlap"):
            prune_checkpoint(half, to, TOKENS, resume=False, **WANDA)
    assert saved.contents(half) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


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
    assert complete(tmp_path / "disk", expected) and (tmp_path / "link").is_symlink()


def test_a_run_inside_a_run_is_refused(
    llama: Path, to: Path, expected: dict, one_line_error
) -> None:
    def again(done: int, *_: object) -> None:
        for resume in (True, False) if done == 1 else ():
            with one_line_error(FileError, f"process {os.getpid()}", "wait for it"):
                prune_checkpoint(llama, to, TOKENS, resume=resume, **WANDA)

    prune_checkpoint(llama, to, TOKENS, progress=again, **WANDA)
    assert complete(to, expected)


# ---------------------------------------------------------------- what ends a run


def test_a_file_that_finds_no_disk_space(llama: Path, to: Path, expected: dict) -> None:
    # a real limit of the kernel: first nothing can be written, then not the stream (8192 bytes)
    # or a shard (38064 bytes), and at last everything
    cases = [("memory", 0), ("disk", 8000), ("disk", 30000), ("disk", 10**7)]
    *errors, last = workers.answer_of(workers.with_full_disk, llama, to, cases)
    assert len(errors) == 3 and last == ""
    assert all("large" in text and "free some" in text and "\n" not in text for text in errors)
    assert complete(to, expected)


@pytest.mark.parametrize(("number", "how"), [(1, "full"), (17, "full"), (30, "full"), (25, "^C")])
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
    assert not list(saved.workspace(to).rglob("*.tmp"))
    finished = saved.finished_blocks(to)
    _, solved = blocks_solved(llama, to)
    assert set(solved) == set(range(BLOCKS)) - finished and complete(to, expected)


def test_a_source_that_changes_meanwhile(
    source: Path, to: Path, expected: dict, one_line_error
) -> None:
    path = Checkpoint(source).files[DOWN]
    whole = path.read_bytes()

    def meddle(done: int, *_: object) -> None:
        if done == 2 * LAYERS - 1:
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))

    with one_line_error(FileError, path.name, "has changed", "2 finished blocks are kept"):
        prune_checkpoint(source, to, TOKENS, progress=meddle, **WANDA)
    path.write_bytes(whole)
    _, solved = blocks_solved(source, to)
    assert solved == [2] and complete(to, expected)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (dict(activations="ram"), BadParameter, ("activations 'ram'", "disk, memory")),
        (dict(sparsity=1.5), BadParameter, ("1.5",)),
        (dict(tokens=None), BadParameter, ("calibration",)),
        (dict(method="sparsegpt", damping=torch.ones(1)), BadParameter, ("damping",)),
        (dict(source="nowhere"), BadParameter, ("nowhere", "config.json")),
        (dict(source="a\0b"), FileError, ("NUL",)),
        (dict(destination="a\0b"), FileError, ("NUL",)),
    ],
    ids=str,
)
def test_a_bad_request_leaves_nothing(
    llama: Path, to: Path, change: dict, kind: type, words: tuple, one_line_error
) -> None:
    arguments = dict(WANDA, source=llama, destination=to, tokens=TOKENS) | change
    with one_line_error(kind, *words):
        prune_checkpoint(**arguments)
    assert not to.exists() and not saved.workspace(to).exists()
