"""`prune_checkpoint`: the weights of `prune_model`, and nothing finished is ever lost."""

import contextlib
import errno
import importlib.metadata
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import families as fam
import kills
import pytest
import saved
import workers
from workers import TOKENS, WANDA

from helpers import (
    METHODS,
    load_model,
    masks_of,
    prune_checkpoint,
    prune_model,
    register,
)
from helpers.code_hashes import LARGE
from helpers.errors import BadParameter, FileError
from helpers.large import file_to_file
from helpers.large.shards import Checkpoint
from helpers.model.models import model_layers

BLOCKS = 3
LAYERS = 7
DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def tmp_path():
    """A folder in memory where there is one: each of these runs syncs many times to the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(
        tmp_path_factory.mktemp("llama") / "source", num_hidden_layers=BLOCKS
    )


@pytest.fixture(scope="module")
def expected(llama, tmp_path_factory):
    """What a run with WANDA, without interruption, writes."""
    to = tmp_path_factory.mktemp("expected") / "pruned"
    prune_checkpoint(llama, to, TOKENS, **WANDA)
    return saved.contents(to)


@pytest.fixture
def to(tmp_path):
    """A destination that is not there yet."""
    return tmp_path / "pruned"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(source, to, *, stop=0, **arguments):
    """The blocks that a run prunes; an error ends it once `stop` layers are done."""
    seen = []

    def note(done, _total, name):
        seen.append(int(name.split()[1]))
        if done == stop:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        prune_checkpoint(source, to, TOKENS, progress=note, **WANDA | arguments)
    return sorted(set(seen))


# ---------------------------------------------------------------- the same weights


@pytest.mark.parametrize(
    "family, how",
    [
        ("llama-tied", dict(method="admm-grad", sparsity=0.5, batch=2)),
        ("llama-tied", dict(method="admm1", sparsity=0.6, passes=1)),
        ("llama", dict(method="wanda", sparsity=0.5, precision="bfloat16", batch=2)),
        ("gemma3", dict(method="wanda", pattern="2:4")),
        ("gpt2", dict(method="magnitude", pattern="2:4", ignore=["*.c_proj"])),
    ],
    ids=str,
)
def test_weights_and_report_are_those_of_prune_model(family, how, to, tmp_path):
    shards = "1GB" if family == "gpt2" else "20KB"
    source = saved.save(tmp_path / "source", family, shards)
    before = files(source)
    dtype = "bfloat16" if family in ("gpt2", "gemma3") else "float32"
    report = prune_checkpoint(source, to, TOKENS, dtype=dtype, **how)
    whole, _ = load_model(source, dtype=dtype)
    usual = prune_model(whole, TOKENS, **how)
    pruned = saved.loaded(to)
    assert str(pruned.dtype) == f"torch.{dtype}"
    assert pruned.state_dict().keys() == whole.state_dict().keys()
    assert not fam.changed(pruned, fam.snapshot(whole))
    described = usual.to_dict() | {"resumed": 0}
    assert saved.timeless(report.to_dict()) == saved.timeless(described)
    assert report.folder == str(to)
    saved.check_index(to)
    modes = {path.stat().st_mode for path in to.iterdir()}
    assert modes == {(source / "config.json").stat().st_mode}  # that of any new file
    assert files(source) == before
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (to / name).read_bytes() == before[name]
    assert json.loads((to / "config.json").read_text())["dtype"] == dtype
    # a zero is the mask
    kept = sum(keep.sum() for keep in masks_of(pruned).values())
    assert kept == fam.kept(pruned, family).sum()


def test_a_checkpoint_of_the_bare_model_with_a_sparsity_for_each_layer(tmp_path, to):
    # its names lack the first part; the blocks' shards have the model's names
    whole = fam.build("gpt2")
    source = tmp_path / "source"
    whole.transformer.save_pretrained(source)
    shares = {key: place / 10 for place, key in enumerate(model_layers(whole))}
    run(source, to, stop=len(shares) // 2 + 1, sparsity=shares)
    # another order of the same names is the same request
    assert run(source, to, sparsity=dict(reversed(shares.items()))) == [1]
    prune_model(whole, TOKENS, **WANDA | {"sparsity": shares})
    assert not fam.changed(saved.loaded(to), fam.snapshot(whole))


# ---------------------------------------------------------------- killed, and going on


def test_killed_before_every_durable_operation(tmp_path):
    source = tmp_path / "source"
    sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2)
    fam.build("llama", **sizes).save_pretrained(source)
    (source / "generation_config.json").unlink()  # each file more is several kills more
    workers.serve()
    with ProcessPoolExecutor(1, workers.PROCESSES) as pool:
        finished = pool.submit(kills.before_each_operation, source, tmp_path).result()
    assert len(finished) > 25
    assert set(finished) == {0, 1, 2}


@pytest.mark.parametrize("after", [1, LAYERS + 1])
def test_a_rerun_goes_on_with_the_block_it_was_in(llama, to, expected, after):
    run(llama, to, stop=after)
    whole = after // LAYERS
    assert saved.finished_blocks(to) == set(range(whole))
    # of killed writers
    for name in (".tmpUFiVIr", ".model-00002-of-00004.safetensors.77.tmp"):
        (to / name).write_bytes(b"half a shard")
    assert run(llama, to) == list(range(whole, BLOCKS))
    assert saved.contents(to) == expected
    again = prune_checkpoint(llama, to, TOKENS, **WANDA)
    assert again.resumed == BLOCKS
    # the times of all calls are in the report
    assert sum(layer.seconds > 0 for layer in again.layers) == BLOCKS * LAYERS
    for change in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        change(to / "model-00001-of-00004.safetensors")  # lost, or cut off
        assert run(llama, to) == [0]
        assert saved.contents(to) == expected


@pytest.mark.usefixtures("own_methods")
def test_another_request_is_refused(llama, to, tmp_path, monkeypatch, one_line_error):
    request = dict(method="by-hand", sparsity=0.5, batch=2)

    def refused(source=llama, tokens=TOKENS, **change):
        with one_line_error(FileError, str(to), "different run"):
            prune_checkpoint(source, to, tokens, **request | change)
        assert saved.contents(to) == before

    register("by-hand")(METHODS["wanda"].__wrapped__)
    run(llama, to, stop=LAYERS + 1, **request)
    before = saved.contents(to)
    refused(batch=4)
    refused(ignore=["*.down_proj"])
    refused(tokens=TOKENS.flip(0))
    for name in ("model-00002-of-00004.safetensors", "config.json"):
        path = Path(shutil.copytree(llama, tmp_path / name)) / name
        path.write_bytes(path.read_bytes().replace(b"1e-06", b"1e-03")[:-1] + b"\n")
        refused(path.parent)
    core = file_to_file.core_code()
    large = file_to_file.file_hashes(LARGE)
    assert "paper/fast/fused.py" in core and "large/file_to_file.py" in large
    for owner, name, value in (
        (importlib.metadata, "version", "0.1"),
        (file_to_file, "core_code", core | {"paper/masks.py": "0"}),
        (file_to_file, "file_hashes", large | {"large/shards.py": "0"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Mock(return_value=value))
            refused()
    register("by-hand")(METHODS["magnitude"].__wrapped__)
    refused()


# ---------------------------------------------------------------- folders


def test_a_folder_of_something_else_is_never_touched(llama, to):
    to.mkdir()
    (to / "thesis.txt").write_text("years of work")
    before = files(llama)
    for destination in (to, to / "thesis.txt", llama, llama.parent):
        with pytest.raises(FileError, match=str(destination)):
            prune_checkpoint(llama, destination, TOKENS, **WANDA)
    assert files(llama) == before
    assert files(to) == {"thesis.txt": b"years of work"}


def test_two_calls_at_once_never_mix(llama, to, expected):
    def meanwhile(done, *_):
        if done == 1:  # the same is welcome, another is not written over
            prune_checkpoint(llama, to, TOKENS, **WANDA)

    def both(**change):
        prune_checkpoint(llama, to, TOKENS, progress=meanwhile, **WANDA | change)

    both()
    assert saved.contents(to) == expected
    shutil.rmtree(to)
    with pytest.raises(FileError, match="different run"):
        both(sparsity=0.6)
    assert saved.contents(to) == expected


# ---------------------------------------------------------------- what ends a run


def test_a_write_that_breaks_off(llama, to, expected, monkeypatch):
    full = OSError(errno.ENOSPC, "disk full")
    for number, error, kind in (
        (0, full, FileError),
        (1, KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with monkeypatch.context() as patch, pytest.raises(kind, match="disk full|^$"):
            # the parent's entry; report and shard with their entries; and in the next shard
            patch.setattr(os, "fsync", Mock(side_effect=[None] * 7 + [error]))
            prune_checkpoint(llama, to, TOKENS, **WANDA)
        assert saved.finished_blocks(to) == set(range(number + 1))
        assert not list(to.glob(".*tmp*"))
    assert run(llama, to) == [2]
    assert saved.contents(to) == expected


def test_a_source_that_changes_meanwhile(llama, to, tmp_path):
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    path = Checkpoint(source).files[DOWN]

    def meddle(done, *_):
        if done == 2 * LAYERS - 1:
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(FileError, match=f"{path.name} has changed"):
        prune_checkpoint(source, to, TOKENS, progress=meddle, **WANDA)
    assert saved.finished_blocks(to) == {0, 1}


def test_a_bad_request_leaves_nothing(llama, to, tmp_path, one_line_error):
    once = tmp_path / "once"
    prune_checkpoint(llama, once, TOKENS, **WANDA)
    for change, word in [
        (dict(sparsity=1.5), "1.5"),
        (dict(tokens=None), "calibration"),
        (dict(method="sparsegpt", damping="much"), "much"),
        (dict(precision="half"), "half"),
        (dict(method="admm-grad", trace=print), "prune_model"),
        (dict(source=once), "allow_pruned=True"),
    ]:
        arguments = dict(WANDA, source=llama, destination=to, tokens=TOKENS) | change
        with one_line_error(BadParameter, word):
            prune_checkpoint(**arguments)
        assert not to.exists()
    assert prune_checkpoint(once, to, TOKENS, allow_pruned=True, **WANDA).error < 1e-6
