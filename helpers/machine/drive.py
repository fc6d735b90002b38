"""Copies of finished results in a second folder, such as a mounted Google Drive, and back from it.

Work stays in the first folder: a mounted drive has no locks and may lose what was just written.
Weights are copied before the manifests and records that name them. If that breaks off in between,
the hashes differ, and a block or a run is done again.
"""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import FileError

LOG = logging.getLogger(__name__)
COMMITTED = ("reference", "published", "families.md")  # at the top of a results folder
UNFINISHED = (".*", "lock", "*.log", "*.failed.ipynb")
ORDER = {".safetensors": 0, ".json": 2}  # by suffix; other files are copied in between


class DriveCopier:
    """Copies a folder's finished files to another folder, at once or every few seconds."""

    def __init__(self, source: Path, target: Path, seconds: float = 15.0) -> None:
        self.source, self.target, self.seconds = source, target, seconds
        self._copied: dict[Path, int] = {}  # relative path → time of the version that was copied
        self._end, self._thread = threading.Event(), None

    def bring_back(self) -> int:
        """Copy back what the source lacks, and return how many files. Raises FileError."""
        with storage_errors(self.target):
            absent = [n for n in _finished(self.target) if not (self.source / n).exists()]
            for name in absent:
                _copy(self.target / name, self.source / name)
                self._copied[name] = (self.source / name).stat().st_mtime_ns
            return len(absent)

    def copy(self) -> int:
        """Copy what is new or has changed, and return how many files. Raises FileError."""
        count = 0
        with storage_errors(self.target):
            for name in _finished(self.source):
                here, there = self.source / name, self.target / name
                try:
                    changed = here.stat().st_mtime_ns
                    if self._copied.get(name) == changed:
                        continue
                    if not (there.is_file() and filecmp.cmp(here, there, shallow=False)):
                        _copy(here, there)
                        count += 1
                    self._copied[name] = changed
                except FileNotFoundError:
                    if here.exists():  # else it was deleted or renamed just now
                        raise
            # `prune_checkpoint` renames its folder when it is complete: the old copy can go
            for work in list(self.target.rglob("*.pruning")):
                here, complete = self.source / work.relative_to(self.target), work.with_suffix("")
                if not here.exists() and (complete / "pruning.json").is_file():
                    shutil.rmtree(work)
        return count

    def start(self) -> None:
        """Copy from now on in a thread that ends with this process; an error is logged once."""

        def repeat() -> None:
            logged = ""
            while not self._end.wait(self.seconds):
                try:
                    self.copy()
                    logged = ""
                except FileError as error:
                    if str(error) != logged:
                        LOG.error("%s; until then nothing new is copied", error)
                    logged = str(error)

        self._end.clear()
        self._thread = threading.Thread(target=repeat, daemon=True, name="drive copier")
        self._thread.start()

    def stop(self) -> None:
        """Copy no more; a copy under way is waited for."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """FileError for what cannot be read or written, and where the drive is unmounted."""
    try:
        if not folder.is_dir():  # making it would put the copies on this machine's own disk
            raise FileError(f"{folder} is not there: mount the drive again")
        yield
    except OSError as error:
        todo = "make space there, or mount the drive again"
        raise FileError(f"{folder} cannot be read or written ({error}): {todo}") from error


def _finished(folder: Path) -> list[Path]:
    """The finished files below a folder, relative to it, in the order of copying."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder that was renamed meanwhile
            raise error

    names = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        skipped = shutil.ignore_patterns(*UNFINISHED, *(COMMITTED if Path(place) == folder else ()))
        for group in (folders, files):
            group[:] = set(group) - skipped(place, group)
        names += [Path(place, name).relative_to(folder) for name in files]
    return sorted(names, key=lambda name: (ORDER.get(name.suffix, 1), name))


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
