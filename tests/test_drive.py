"""Copies of results: what goes there, what comes back, and that work goes on from them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import families as fam
import pytest
import saved

from helpers.errors import StorageError
from helpers.large import prune_checkpoint
from helpers.machine import drive
from helpers.machine.drive import DriveCopier
from helpers.paths import replace_file


@pytest.fixture
def copier(tmp_path: Path) -> DriveCopier:
    """From one empty folder to another."""
    for name in ("here", "drive"):
        (tmp_path / name).mkdir()
    return DriveCopier(tmp_path / "here", tmp_path / "drive", seconds=0.02)


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        replace_file(folder / name, text)


def held(folder: Path) -> dict[str, str]:
    """The files of a folder by relative path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_finished_files_are_copied_once(copier: DriveCopier) -> None:
    files = {"laptop/records/a.json": "1", "laptop/runs/a.ipynb": "2"}
    fill(copier.source, files)
    assert copier.copy() == 2 and held(copier.target) == files
    assert copier.copy() == 0
    fill(copier.source, {"laptop/records/a.json": "3"})  # same size
    assert copier.copy() == 1 and held(copier.target)["laptop/records/a.json"] == "3"


@pytest.mark.parametrize(
    "name",
    ["reference/full/a.json", "published/a.md", "families.md", "x/.runner/a.json", "x/.lock"]
    + ["x/runs/a.failed.ipynb", "x/runs/a.log", "m.pruning/lock", "m.pruning/run-1/.a.tmp"],
)
def test_what_is_committed_or_unfinished_stays(copier: DriveCopier, name: str) -> None:
    fill(copier.source, {name: "x"})
    assert copier.copy() == 0 and held(copier.target) == {}


def test_a_new_machine_gets_what_it_lacks_and_keeps_what_it_has(copier: DriveCopier) -> None:
    fill(copier.target, {"t4/a.json": "old", "t4/b.json": "b"})
    fill(copier.source, {"t4/a.json": "newer"})
    assert copier.bring_back() == 1
    assert held(copier.source) == {"t4/a.json": "newer", "t4/b.json": "b"}
    assert copier.copy() == 1  # only what is newer here
    assert held(copier.target) == held(copier.source)


def test_weights_come_before_what_names_them(
    copier: DriveCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(copier.source, {"m/a.json": "manifest", "m/b.safetensors": "weights", "m/c.txt": "text"})
    order = []
    monkeypatch.setattr(drive, "_copy", lambda here, there: order.append(there.suffix))
    copier.copy()
    assert order == [".safetensors", ".txt", ".json"]


def test_a_copy_that_breaks_off_leaves_the_older_one(
    copier: DriveCopier, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    fill(copier.source, {"a/b.json": "first"})
    copier.copy()
    fill(copier.source, {"a/b.json": "second"})

    def full(source: object, sink: object, size: int) -> None:
        sink.write(b"sec")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        with one_line_error(StorageError, "b.json", "No space left", "make space"):
            copier.copy()
    assert held(copier.target) == {"a/b.json": "first"}
    assert copier.copy() == 1 and held(copier.target) == {"a/b.json": "second"}


def test_a_drive_that_keeps_less_than_was_written_is_found(
    copier: DriveCopier, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    fill(copier.source, {"a.json": "whole"})
    whole = shutil.copyfileobj

    def short(source: object, sink: object, size: int) -> None:
        whole(source, sink, size)
        sink.seek(2)
        sink.truncate()

    monkeypatch.setattr(shutil, "copyfileobj", short)
    with one_line_error(StorageError, "a.json", "5 bytes", "2"):
        copier.copy()
    assert held(copier.target) == {}


def test_an_unmounted_drive_is_not_made_anew(copier: DriveCopier, one_line_error) -> None:
    fill(copier.source, {"a.json": "1"})
    copier.target.rmdir()
    for work in (copier.copy, copier.bring_back):
        with one_line_error(StorageError, "mount"):
            work()
    assert not copier.target.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    """Until something is so, 5 seconds at most."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_thread_copies_and_says_once_that_it_cannot(
    copier: DriveCopier, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    copier.start()
    fill(copier.source, {"a.json": "1"})
    wait_for(lambda: held(copier.target) == {"a.json": "1"})
    away = copier.target.rename(copier.target.with_name("away"))
    wait_for(lambda: copier.error is not None)
    time.sleep(0.2)  # ten attempts
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    away.rename(copier.target)
    wait_for(lambda: copier.error is None)
    assert "again" in caplog.records[-1].message
    copier.stop()
    fill(copier.source, {"b.json": "2"})
    time.sleep(0.1)
    assert "b.json" not in held(copier.target)


def test_what_a_killed_copy_left_is_deleted_later(copier: DriveCopier) -> None:
    old, new = copier.target / ".a.json.1.part", copier.target / ".b.json.2.part"
    for path in (old, new):
        path.write_text("par")
    os.utime(old, (0, 0))
    copier.bring_back()
    assert not old.exists() and new.exists() and held(copier.source) == {}


# --- work goes on from the copies -----------------------------------------------------------


class Disconnected(Exception):
    """What stands for the end of a machine."""


def pruned(source: Path, to: Path, after: int | None = None) -> object:
    """Prune a checkpoint; the machine goes after some layers."""

    def progress(done: int, total: int, name: str) -> None:
        if done == after:
            raise Disconnected

    text, options = fam.random_tokens(4, 16), dict(method="sparsegpt", sparsity=0.5, batch=2)
    return prune_checkpoint(source, to, text, progress=progress, **options)


@pytest.mark.parametrize("lost_shard", [False, True])
def test_a_checkpoint_goes_on_from_the_copies(tmp_path: Path, lost_shard: bool) -> None:
    """Also from a shard that did not reach the copies: its block is done again."""
    source, drive_folder = saved.save(tmp_path / "source"), tmp_path / "drive"
    drive_folder.mkdir()
    expected = pruned(source, tmp_path / "uninterrupted" / "model")
    per_block = len(expected.to_dict()["layers"]) // 2
    with pytest.raises(Disconnected):
        pruned(source, tmp_path / "first" / "model", after=per_block + 2)
    DriveCopier(tmp_path / "first", drive_folder).copy()
    shutil.rmtree(tmp_path / "first")  # what Colab does
    if lost_shard:
        next(drive_folder.rglob("model-00001*.safetensors")).unlink()

    (tmp_path / "second").mkdir()
    copier = DriveCopier(tmp_path / "second", drive_folder)
    assert copier.bring_back() > 0
    report = pruned(source, tmp_path / "second" / "model")
    assert (report.resumed, report.redone) == ((0, [0]) if lost_shard else (1, []))
    copier.copy()
    same = saved.contents(tmp_path / "uninterrupted" / "model")
    assert saved.contents(tmp_path / "second" / "model") == same
    # the copy has been renamed too, and no block lies there twice
    assert saved.contents(drive_folder / "model") == same
    assert not list(drive_folder.rglob("*.pruning"))
