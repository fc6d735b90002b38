"""Copies of results in a second folder, such as a mounted Google Drive, and back from there.

Nothing works in the second folder itself: a mounted drive promises neither locks nor that what was
written is on the disk. Every file of this package appears whole under its name, so any moment is a
good one to copy. Weights are copied before the manifests and records that name them; where that
broke off in between, the hashes say so, and a block or a run is done again.
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
import time
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import StorageError

LOG = logging.getLogger(__name__)
COMMITTED = ("reference", "published", "families.md")  # at the top of a results folder
UNFINISHED = (".*", "lock", "*.lock", "*.log", "*.tmp", "*.failed.ipynb")
SMALL = 1 << 20  # bytes up to which two files of one size are compared by content


class DriveCopier:
    """Copies a folder's finished files to another folder, at once or every few seconds.

    error: what the last copy failed with, None if it did not.
    """

    def __init__(self, source: Path, target: Path, seconds: float = 15.0) -> None:
        self.source, self.target, self.seconds = source, target, seconds
        self.error: StorageError | None = None
        self._copied: dict[Path, tuple[int, int]] = {}  # by relative path: size and time
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def bring_back(self) -> int:
        """Copy back what the source lacks, and return how many files; none is overwritten.

        Raises StorageError; called again, it goes on.
        """
        with _storage_errors(self.target):
            for partial in self.target.rglob(".*.part"):  # of a copy that was killed
                if time.time() - partial.stat().st_mtime > 86_400:  # else it may be under way
                    partial.unlink()
            lacking = [n for n in _finished(self.target) if not (self.source / n).exists()]
            for name in lacking:
                _copy(self.target / name, self.source / name)
            return len(lacking)

    def copy(self) -> int:
        """Copy what is new or has changed, and return how many files. Raises StorageError."""
        count = 0
        with _storage_errors(self.target):
            self._rename_finished()
            for name in _finished(self.source):
                here, there = self.source / name, self.target / name
                with contextlib.suppress(FileNotFoundError):  # replaced or deleted just now
                    state = here.stat().st_size, here.stat().st_mtime_ns
                    if self._copied.get(name) == state:
                        continue
                    same = there.is_file() and there.stat().st_size == state[0]
                    if not (same and (state[0] > SMALL or filecmp.cmp(here, there, shallow=False))):
                        _copy(here, there)
                        count += 1
                    self._copied[name] = state
        return count

    def _rename_finished(self) -> None:
        """Rename the copy of a checkpoint as `prune_checkpoint` renamed it once it was complete."""
        for work in list(self.target.rglob("*.pruning")):
            here, finished = self.source / work.relative_to(self.target), work.with_suffix("")
            if not here.exists() and (here.with_suffix("") / "pruning.json").is_file():
                runs = sorted(work.glob("run-*"), key=lambda run: (len(run.name), run.name))
                if runs and not finished.exists():
                    os.replace(runs[-1], finished)  # the newest; the others were given up
                shutil.rmtree(work)

    def start(self) -> None:
        """Copy from now on in a thread that ends with this process."""
        self._end.clear()
        self._thread = threading.Thread(target=self._repeat, daemon=True, name="drive copier")
        self._thread.start()

    def stop(self) -> None:
        """Copy no more; a copy under way is waited for."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _repeat(self) -> None:
        while not self._end.wait(self.seconds):
            try:
                self.copy()
            except StorageError as error:
                if str(error) != str(self.error):  # said once, not every few seconds
                    LOG.error("%s; until then nothing new is copied", error)
                self.error = error
            else:
                if self.error is not None:
                    LOG.warning("results are copied to %s again", self.target)
                self.error = None


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """StorageError for what cannot be read or written, and where the drive is unmounted."""
    try:
        if not folder.is_dir():  # making it would put the copies on this machine's own disk
            raise StorageError(f"{folder} is not there any more: mount the drive again")
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}): "
            "make space there, or mount the drive again"
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


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears whole or not at all. Raises OSError that names the target."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # a drive may report that it is full only when the file is closed
        with partial.open("wb") as sink, source.open("rb") as stream:
            shutil.copyfileobj(stream, sink, 1 << 20)
            written = stream.tell()
        size = partial.stat().st_size
        if size != written:
            raise OSError(errno.EIO, f"{written} bytes were written, {size} are there")
        os.replace(partial, target)
    except FileNotFoundError:
        raise  # the source was deleted just now
    except OSError as error:
        error.filename = target
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
