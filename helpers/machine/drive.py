"""Copies of results in a second folder, such as a mounted Google Drive, and back from there.

Nothing works in the second folder itself: a mounted drive has no locks and may lose what was just
written. Every file of this package appears whole under its name, so it can be copied at any moment.
Weights are copied before the manifests and records that name them: if that breaks off in between,
the hashes differ, and a block or a run is done again.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import fnmatch
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import StorageError

LOG = logging.getLogger(__name__)
COMMITTED = ("reference", "published", "families.md")  # at the top of a results folder
UNFINISHED = (".*", "lock", "*.lock", "*.log", "*.tmp", "*.failed.ipynb")


class DriveCopier:
    """Copies a folder's finished files to another folder, at once or every few seconds."""

    def __init__(self, source: Path, target: Path, seconds: float = 15.0) -> None:
        self.source, self.target, self.seconds = source, target, seconds
        self._copied: dict[Path, tuple[int, int]] = {}  # by relative path: its state
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def bring_back(self) -> int:
        """Copy back what the source lacks, and return how many files. Raises StorageError."""
        with storage_errors(self.target):
            for partial in self.target.rglob(".*.part"):  # left by a copy that was killed
                partial.unlink(missing_ok=True)
            absent = [n for n in _finished(self.target) if not (self.source / n).exists()]
            for name in absent:
                _copy(self.target / name, self.source / name)
                self._copied[name] = _state(self.source / name)
            return len(absent)

    def copy(self) -> int:
        """Copy what is new or has changed, and return how many files. Raises StorageError."""
        count = 0
        with storage_errors(self.target):
            # `prune_checkpoint` renames its folder when it is complete; the copy is renamed as well
            for work in list(self.target.rglob("*.pruning")):
                here, complete = self.source / work.relative_to(self.target), work.with_suffix("")
                if not here.exists() and (here.with_suffix("") / "pruning.json").is_file():
                    runs = sorted(work.glob("run-*"), key=lambda run: (len(run.name), run.name))
                    if runs and not complete.exists():
                        os.replace(runs[-1], complete)
                    shutil.rmtree(work)
            for name in _finished(self.source):
                here, there = self.source / name, self.target / name
                with contextlib.suppress(FileNotFoundError):  # replaced or deleted just now
                    state = _state(here)
                    if self._copied.get(name) == state:
                        continue
                    if not (there.is_file() and filecmp.cmp(here, there, shallow=False)):
                        _copy(here, there)
                        count += 1
                    self._copied[name] = state
        return count

    def start(self) -> None:
        """Copy from now on in a thread that ends with this process."""

        def repeat() -> None:
            failed = ""
            while not self._end.wait(self.seconds):
                try:
                    self.copy()
                except StorageError as error:
                    if str(error) != failed:  # once, not every few seconds
                        LOG.error("%s; until then nothing new is copied", error)
                    failed = str(error)
                else:
                    if failed:
                        LOG.warning("results are copied to %s again", self.target)
                    failed = ""

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
    """StorageError for what cannot be read or written, and where the drive is unmounted."""
    try:
        if not folder.is_dir():  # making it would put the copies on this machine's own disk
            raise StorageError(f"{folder} is not there: mount the drive again")
        yield
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be read or written ({error}): make space there, or mount the drive "
            "again"
        ) from error


def _finished(folder: Path) -> list[Path]:
    """The finished files below a folder, relative to it: weights first, JSON last."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder that went away meanwhile
            raise error

    names = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        skipped = UNFINISHED + (COMMITTED if Path(place) == folder else ())
        for group in (folders, files):
            group[:] = [n for n in group if not any(fnmatch.fnmatch(n, s) for s in skipped)]
        names += [Path(place, name).relative_to(folder) for name in files]
    rank = {".safetensors": 0, ".json": 2}
    return sorted(names, key=lambda name: (rank.get(name.suffix, 1), name))


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced: its size and time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source.open("rb") as stream, partial.open("wb") as sink:
            shutil.copyfileobj(stream, sink)
            written = stream.tell()
        if (size := partial.stat().st_size) != written:  # how a drive that is full may fail
            raise OSError(errno.EIO, f"of {written} bytes {size} were written", str(target))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
