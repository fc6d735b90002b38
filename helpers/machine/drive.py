"""Copies of results in a second folder, such as a mounted Google Drive, and back from there.

Work is done in the folder on this machine's disk; what is finished there is copied. Nothing works
in the second folder itself, because a mounted drive promises neither locks nor that what was
synced or renamed is on the disk, and is slow with many small writes.

Every file that this package writes appears whole under its name, so that any moment is a good one
to copy. Weights are copied before the manifests and records that speak of them; a copy that broke
off in between is found by their hashes, and a block or a run is done again.
"""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import StorageError, check_real

LOG = logging.getLogger(__name__)
SECONDS = 15.0  # between two looks
# of a results folder what is committed, and so need not be kept
COMMITTED = ("reference", "published", "families.md")
# files that are written to again and again while a run is under way
UNFINISHED = (".failed.ipynb", ".log", ".tmp")
PART = ".part"  # ends the name of a copy that is not whole yet
STALE_SECONDS = 86_400
WORK, MANIFEST = ".pruning", "pruning.json"  # of prune_checkpoint
SMALL = 1 << 20  # bytes up to which two files are compared by content, not by size


class Keeper:
    """Keeps copies of a folder's finished files in another folder.

    `bring_back` first, then `start`; `error` is what the last look failed with, None if it did not.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        seconds: float = SECONDS,
    ) -> None:
        """Files go from `source` to `target`, every so many seconds once it is started."""
        self.source, self.target = Path(source), Path(target)
        self.seconds = check_real("seconds", seconds, above=0)
        self.error: StorageError | None = None
        self._copied: dict[Path, tuple[int, int]] = {}  # by relative path: size and time
        self._looking = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def bring_back(self) -> int:
        """Copy back what the source lacks, and return how many files; none is overwritten.

        Raises StorageError; called again, it goes on.
        """
        count = 0
        with self._looking:
            self._check_target()
            _sweep(self.target)
            for name in _in_order(self.target):
                here = self.source / name
                if not here.exists():
                    _copy(self.target / name, here)
                    self._copied[name] = _stamp(here)
                    count += 1
        return count

    def copy(self) -> int:
        """Copy what is new or has changed, and return how many files. Raises StorageError."""
        with self._looking:
            self._check_target()
            self._follow()
            count = 0
            for name in _in_order(self.source):
                with contextlib.suppress(FileNotFoundError):  # replaced or deleted just now
                    stamp = _stamp(self.source / name)
                    if self._copied.get(name) == stamp:
                        continue
                    if not _same(self.source / name, self.target / name):
                        _copy(self.source / name, self.target / name)
                        count += 1
                    self._copied[name] = stamp
            return count

    def _check_target(self) -> None:
        """Raise StorageError if the second folder is gone, as after a drive was unmounted."""
        with _named(self.target):
            there = self.target.is_dir()
        if not there:  # making it would put the copies on this machine's own disk
            raise StorageError(f"{self.target} is not there any more: mount the drive again")

    def _follow(self) -> None:
        """Let the copy of a checkpoint move where the checkpoint has gone once it was complete."""
        for place in sorted(self.target.rglob(f"*{WORK}")):
            name = place.relative_to(self.target)
            here = self.source / name
            finished = here.with_name(here.name.removesuffix(WORK)) / MANIFEST
            if here.exists() or not finished.is_file():
                continue
            with _named(place):
                destination = place.with_name(place.name.removesuffix(WORK))
                for run in sorted(place.glob("run-*"), reverse=True):
                    if not destination.exists():  # the newest run; the others were given up
                        os.replace(run, destination)
                shutil.rmtree(place)

    def start(self) -> None:
        """Look from now on in a thread that ends with this process. Starting twice is once."""
        if self._thread is None or not self._thread.is_alive():
            self._end.clear()
            self._thread = threading.Thread(target=self._look, daemon=True, name="keeper")
            self._thread.start()

    def stop(self) -> None:
        """Look no more; a look under way is waited for."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(self.seconds):
            try:
                self.copy()
            except StorageError as error:
                if str(error) != str(self.error):  # said once, not at every look
                    LOG.error("%s; until then nothing new is kept", error)
                self.error = error
            else:
                if self.error is not None:
                    LOG.warning("results are kept in %s again", self.target)
                self.error = None


def _in_order(folder: Path) -> list[Path]:
    """The finished files below a folder, relative to it: weights first, JSON last."""
    names = [path.relative_to(folder) for path in _files(folder)]
    rank = {".safetensors": 0, ".json": 2}
    return sorted(names, key=lambda name: (rank.get(name.suffix, 1), name))


def _files(folder: Path) -> Iterator[Path]:
    """The files that are worth keeping. Raises StorageError."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder that went away meanwhile
            raise error

    with _named(folder):
        for place, folders, names in os.walk(folder, onerror=refuse):
            top = Path(place) == folder
            folders[:] = [name for name in folders if _wanted(name, top)]
            for name in names:
                in_work = place.endswith(WORK)  # its lock
                if _wanted(name, top) and not in_work and not name.endswith(UNFINISHED):
                    yield Path(place, name)


def _wanted(name: str, top: bool) -> bool:
    """Whether a file or folder belongs to the results made here; hidden ones do not."""
    return not name.startswith(".") and not (top and name in COMMITTED)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same; large ones of the same size are taken to."""
    with _named(other):
        if not other.is_file() or one.stat().st_size != other.stat().st_size:
            return False
        return one.stat().st_size > SMALL or filecmp.cmp(one, other, shallow=False)


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears whole or not at all. Raises StorageError."""
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PART}")
        try:
            # a drive may report that it is full only when the file is closed
            with partial.open("wb") as sink, source.open("rb") as stream:
                shutil.copyfileobj(stream, sink, 1 << 20)
                written = stream.tell()
            kept = partial.stat().st_size
            if kept != written:
                raise OSError(f"{written} bytes were written, {kept} are there")
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def _sweep(folder: Path) -> None:
    """Delete what a copy that was killed has left. Raises StorageError."""
    with _named(folder):
        for partial in folder.rglob(f".*{PART}"):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:  # else it may be under way
                partial.unlink()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What cannot be read or written, as StorageError; a file that is gone stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read or written ({error.strerror or error}): make room there, or "
            "mount the drive again"
        ) from error
