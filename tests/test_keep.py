"""Copies of results: what goes there, what comes back, and that work goes on from them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from pathlib import Path

import families as fam
import pytest
import saved

import helpers.machine.drive
from helpers.errors import BadParameter, StorageError
from helpers.large.checkpoint import prune_checkpoint
from helpers.machine.drive import Keeper
from helpers.paths import replace_file
from helpers.records import make_record, write_record
from helpers.runner import plan as plans


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """From one empty folder to another."""
    for name in ("here", "drive"):
        (tmp_path / name).mkdir()
    return Keeper(tmp_path / "here", tmp_path / "drive", seconds=0.02)


def fill(folder: Path, **files: str) -> None:
    """Write files; a double underscore stands for a slash."""
    for name, text in files.items():
        replace_file(folder / name.replace("__", "/").replace("_", "."), text)


def held(folder: Path) -> dict[str, str]:
    """The files of a folder by relative path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_finished_files_are_copied_once(keeper: Keeper) -> None:
    fill(keeper.source, laptop__records__a_json="1", laptop__runs__a_ipynb="2")
    assert keeper.copy() == 2
    assert held(keeper.target) == {"laptop/records/a.json": "1", "laptop/runs/a.ipynb": "2"}
    assert keeper.copy() == 0
    fill(keeper.source, laptop__records__a_json="3")  # same size
    assert keeper.copy() == 1
    assert held(keeper.target)["laptop/records/a.json"] == "3"


@pytest.mark.parametrize(
    "name",
    ["reference/full/a.json", "published/a.md", "families.md", "x/.runner/a.json", "x/.lock"]
    + ["x/runs/a.failed.ipynb", "x/runs/a.log", "m.pruning/lock", "m.pruning/run-1/.a.tmp"],
)
def test_what_is_committed_or_unfinished_stays(keeper: Keeper, name: str) -> None:
    replace_file(keeper.source / name, "x")
    assert keeper.copy() == 0 and held(keeper.target) == {}


def test_a_new_machine_gets_what_it_lacks_and_keeps_what_it_has(keeper: Keeper) -> None:
    fill(keeper.target, t4__records__a_json="old", t4__records__b_json="b")
    fill(keeper.source, t4__records__a_json="newer")
    assert keeper.bring_back() == 1
    assert held(keeper.source) == {"t4/records/a.json": "newer", "t4/records/b.json": "b"}
    assert keeper.copy() == 1  # only what is newer here
    assert held(keeper.target) == held(keeper.source)


def test_weights_come_before_what_speaks_of_them(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(keeper.source, m__a_json="manifest", m__b_safetensors="weights", m__c_txt="text")
    order = []
    whole = helpers.machine.drive._copy
    monkeypatch.setattr(
        helpers.machine.drive, "_copy", lambda a, b: (order.append(Path(b).suffix), whole(a, b))
    )
    keeper.copy()
    assert order == [".safetensors", ".txt", ".json"]


def test_a_copy_that_breaks_off_leaves_the_older_one(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    fill(keeper.source, a__b_json="first")
    keeper.copy()
    fill(keeper.source, a__b_json="second")

    def full(source: object, sink: object, size: int) -> None:
        sink.write(b"sec")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        with one_line_error(StorageError, "b.json", "No space left", "make room"):
            keeper.copy()
    assert held(keeper.target) == {"a/b.json": "first"}
    assert keeper.copy() == 1 and held(keeper.target) == {"a/b.json": "second"}


def test_a_drive_that_keeps_less_than_was_written_is_found(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    fill(keeper.source, a_json="whole")
    whole = shutil.copyfileobj

    def short(source: object, sink: object, size: int) -> None:
        whole(source, sink, size)
        sink.seek(2)
        sink.truncate()

    monkeypatch.setattr(shutil, "copyfileobj", short)
    with one_line_error(StorageError, "5 bytes", "2"):
        keeper.copy()
    assert held(keeper.target) == {}


def test_an_unmounted_drive_is_not_made_anew(keeper: Keeper, one_line_error) -> None:
    fill(keeper.source, a_json="1")
    keeper.target.rmdir()
    with one_line_error(StorageError, "mount"):
        keeper.copy()
    assert not keeper.target.exists()
    with one_line_error(StorageError, "mount"):
        keeper.bring_back()


def wait_for(condition: object) -> None:
    """Until something is so, 5 seconds at most."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_thread_copies_and_says_once_that_it_cannot(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    keeper.start()
    keeper.start()
    fill(keeper.source, a_json="1")
    wait_for(lambda: held(keeper.target) == {"a.json": "1"})
    away = keeper.target.rename(keeper.target.with_name("away"))
    wait_for(lambda: keeper.error is not None)
    time.sleep(0.2)  # ten looks
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    away.rename(keeper.target)
    wait_for(lambda: keeper.error is None)
    assert "again" in caplog.records[-1].message
    keeper.stop()
    fill(keeper.source, b_json="2")
    time.sleep(0.1)
    assert "b.json" not in held(keeper.target)


def test_what_a_killed_copy_left_is_swept_later(keeper: Keeper) -> None:
    old, new = keeper.target / ".a.json.1.part", keeper.target / ".b.json.2.part"
    for path in (old, new):
        path.write_text("par")
    os.utime(old, (0, 0))
    keeper.bring_back()
    assert not old.exists() and new.exists() and held(keeper.source) == {}


def test_seconds_are_checked(tmp_path: Path, one_line_error) -> None:
    with one_line_error(BadParameter, "seconds"):
        Keeper(tmp_path, tmp_path, seconds=0)


# --- work goes on from the copies -----------------------------------------------------------


def test_runs_that_were_done_are_done_on_a_new_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same fingerprint, so `make reproduce` goes on with the others."""
    drive = tmp_path / "drive"
    drive.mkdir()
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "first"))
    first, second = plans.read_plan("smoke", "04*")[:2]
    record = make_record(
        notebook=first.notebook,
        name=first.name,
        parameters=first.effective,
        metrics={},
        model={"name": "tiny"},
        data={},
        seeds={},
        seconds=1.0,
        device="cpu",
        peak_memory_bytes=1,
    )
    write_record(first.record_path, record | {"fingerprint": plans.fingerprint(first)})
    assert plans.is_done(first) and not plans.is_done(second)
    Keeper(tmp_path / "first", drive).copy()
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "second"))
    assert not plans.is_done(first)
    Keeper(tmp_path / "second", drive).bring_back()
    assert plans.is_done(first) and not plans.is_done(second)


class Disconnected(Exception):
    """What stands for the end of a machine."""


METHOD = dict(method="sparsegpt", sparsity=0.5, batch=2)


def pruned(source: Path, to: Path, after: int | None = None) -> object:
    """Prune a checkpoint; the machine goes after some layers."""

    def progress(done: int, total: int, name: str) -> None:
        if done == after:
            raise Disconnected

    return prune_checkpoint(source, to, fam.random_tokens(4, 16), progress=progress, **METHOD)


def test_a_checkpoint_goes_on_from_the_copies(tmp_path: Path) -> None:
    source = saved.save(tmp_path / "source")
    drive = tmp_path / "drive"
    drive.mkdir()
    expected = pruned(source, tmp_path / "uninterrupted" / "model")
    half = expected.to_dict()["layers"]
    per_block = len(half) // 2

    with pytest.raises(Disconnected):
        pruned(source, tmp_path / "first" / "model", after=per_block + 2)
    Keeper(tmp_path / "first", drive).copy()
    shutil.rmtree(tmp_path / "first")  # what Colab does

    (tmp_path / "second").mkdir()
    keeper = Keeper(tmp_path / "second", drive)
    assert keeper.bring_back() > 0
    report = pruned(source, tmp_path / "second" / "model")
    assert report.resumed == 1 and report.redone == []
    keeper.copy()
    same = saved.contents(tmp_path / "uninterrupted" / "model")
    assert saved.contents(tmp_path / "second" / "model") == same
    # the copy has moved with it, and no block lies there twice
    assert saved.contents(drive / "model") == same
    assert not saved.workspace(drive / "model").exists()


def test_a_shard_that_did_not_reach_the_copies_is_done_again(tmp_path: Path) -> None:
    source = saved.save(tmp_path / "source")
    drive = tmp_path / "drive"
    drive.mkdir()
    expected = pruned(source, tmp_path / "uninterrupted" / "model")
    per_block = len(expected.to_dict()["layers"]) // 2
    with pytest.raises(Disconnected):
        pruned(source, tmp_path / "first" / "model", after=per_block + 2)
    Keeper(tmp_path / "first", drive).copy()
    next(drive.rglob("model-00001*.safetensors")).unlink()
    (tmp_path / "second").mkdir()
    Keeper(tmp_path / "second", drive).bring_back()
    report = pruned(source, tmp_path / "second" / "model")
    assert report.resumed == 0 and report.redone == [0]
    same = saved.contents(tmp_path / "uninterrupted" / "model")
    assert saved.contents(tmp_path / "second" / "model") == same
