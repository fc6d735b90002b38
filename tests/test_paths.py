"""Folders, and the safe replacement of files."""

import hashlib
import os
import stat
from unittest.mock import Mock

import pytest

from helpers import paths
from helpers.errors import FileError


def test_replace_file_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    assert paths.replace_file(path, "één\n") == path
    assert path.read_bytes() == "één\n".encode()
    paths.replace_file(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert paths.sha256_file(path) == hashlib.sha256(b"\x00\x01").hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]
    # readable by others like any file made with open()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_the_mask_of_modes_is_not_touched(tmp_path, monkeypatch):
    """It belongs to the process: where two threads swap it, it can stay 0 for good."""
    private = tmp_path / "private"
    private.touch(0o600)
    (tmp_path / "usual").touch()
    monkeypatch.setattr(os, "umask", Mock(side_effect=AssertionError("swapped")))
    paths.set_default_mode(private)
    paths.replace_file(tmp_path / "new", "")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "operation, error, words",
    [
        ("replace", OSError(30, "read only"), "cannot write .*record.json.*read only"),
        ("fsync", KeyboardInterrupt(), "^$"),
    ],
)
def test_replace_file_keeps_the_old_file(
    monkeypatch, tmp_path, operation, error, words
):
    path = tmp_path / "record.json"
    path.write_text("old")
    monkeypatch.setattr(paths.os, operation, Mock(side_effect=error))
    with pytest.raises((FileError, KeyboardInterrupt), match=words):
        paths.replace_file(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]
