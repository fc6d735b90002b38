"""Copies of results: what goes there, what comes back, and that work resumes from them."""

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

from helpers.errors import FileError
from helpers.large import prune_checkpoint
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


def test_finished_files_are_copied_once_weights_first_and_json_last(
    copier: DriveCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"laptop/a.json": "1", "laptop/b.safetensors": "2", "laptop/runs/c.ipynb": "3"}
    fill(copier.source, files)
    names = ["reference/full/a.json", "published/a.md", "families.md", "x/.runner/a.json"]
    names += ["x/runs/a.failed.ipynb", "x/runs/a.log", "m.pruning/lock", "m.pruning/run-1/.a.tmp"]
    fill(copier.source, dict.fromkeys(names, "committed or unfinished"))
    order, whole = [], shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: (order.append(a.suffix), whole(a, b)))
    assert copier.copy() == 3 and held(copier.target) == files
    assert order == [".safetensors", ".ipynb", ".json"]
    assert copier.copy() == 0
    fill(copier.source, {"laptop/a.json": "4"})  # same size
    assert copier.copy() == 1 and held(copier.target)["laptop/a.json"] == "4"


def test_a_new_machine_gets_what_it_lacks_and_keeps_what_it_has(copier: DriveCopier) -> None:
    fill(copier.target, {"t4/a.json": "old", "t4/b.json": "b", "t4/.c.part": "of a killed copy"})
    fill(copier.source, {"t4/a.json": "newer"})
    assert copier.bring_back() == 1
    assert held(copier.source) == {"t4/a.json": "newer", "t4/b.json": "b"}
    assert copier.copy() == 1  # only what is newer here
    assert held(copier.target)["t4/a.json"] == "newer"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOENT])
def test_a_copy_that_breaks_off_leaves_the_older_one(
    copier: DriveCopier, monkeypatch: pytest.MonkeyPatch, one_line_error: Callable, code: int
) -> None:
    """The drive is full, or is unmounted just now."""
    fill(copier.source, {"a/b.json": "first"})
    copier.copy()
    fill(copier.source, {"a/b.json": "second"})

    def partly(source: Path, target: Path) -> None:
        target.write_text("sec")
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", partly)
        with one_line_error(FileError, os.strerror(code), "make space"):
            copier.copy()
    assert held(copier.target) == {"a/b.json": "first"}
    assert copier.copy() == 1 and held(copier.target) == {"a/b.json": "second"}


def test_an_unmounted_drive_is_not_made_anew(copier: DriveCopier, one_line_error: Callable) -> None:
    fill(copier.source, {"a.json": "1"})
    copier.target.rmdir()
    for work in (copier.copy, copier.bring_back):
        with one_line_error(FileError, "mount"):
            work()
    assert not copier.target.exists()


def test_the_thread_copies_and_says_once_that_it_cannot(
    copier: DriveCopier, caplog: pytest.LogCaptureFixture
) -> None:
    def wait_for(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    copier.start()
    fill(copier.source, {"a.json": "1"})
    wait_for((copier.target / "a.json").exists)
    away = copier.target.rename(copier.target.with_name("away"))
    wait_for(lambda: caplog.records)
    time.sleep(0.2)  # ten attempts
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    away.rename(copier.target)
    fill(copier.source, {"b.json": "2"})
    wait_for((copier.target / "b.json").exists)
    copier.stop()
    fill(copier.source, {"c.json": "3"})
    time.sleep(0.1)
    assert not (copier.target / "c.json").exists()


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
def test_a_checkpoint_resumes_from_the_copies(tmp_path: Path, lost_shard: bool) -> None:
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

    copier = DriveCopier(tmp_path / "second", drive_folder)
    assert copier.bring_back() > 0
    report = pruned(source, tmp_path / "second" / "model")
    assert (report.resumed, report.redone) == ((0, [0]) if lost_shard else (1, []))
    copier.copy()
    same = saved.contents(tmp_path / "uninterrupted" / "model")
    for folder in (tmp_path / "second", drive_folder):
        assert saved.contents(folder / "model") == same
    assert not list(drive_folder.rglob("*.pruning"))  # no block lies there twice
