"""The memory that is free here, and a watch that stops work before the machine kills it.

Inside a container the machine's own figure is not the limit: a process that takes more than its
control group may is killed without a word, which a notebook shows as a dead kernel.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers.errors import BadParameter, OutOfMemory, check_real

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# where each version of control groups keeps its limit, its use, and how much of that is only a
# cache of files, which the kernel gives back when memory is short
_SECOND = ("memory.max", "memory.current", "inactive_file")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
WATCH_SECONDS = 0.2


@dataclass(frozen=True)
class Room:
    """Bytes of memory: of the machine or its container, and of the GPU (None without one)."""

    ram_free: int
    ram_total: int
    gpu: str | None = None
    gpu_free: int | None = None
    gpu_total: int | None = None


def room() -> Room:
    """What is free now, on this machine and on its first GPU; torch is loaded for that."""
    import torch  # here: a watch of RAM alone does not need it

    free, total = ram()
    if not torch.cuda.is_available():
        return Room(free, total)
    gpu_free, gpu_total = torch.cuda.mem_get_info()
    return Room(free, total, torch.cuda.get_device_name(), gpu_free, gpu_total)


def ram() -> tuple[int, int]:
    """(free, total) bytes of RAM that this process may use: the machine's or a container's."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for limit, used in _limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return free, total


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, use) in bytes of each control group that this process is in."""
    for folder, names in _groups():
        limit, used, cache = names
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            taken = int((folder / used).read_text(encoding="ascii"))
            numbers = dict(line.split() for line in (folder / "memory.stat").open())
        except (OSError, ValueError):
            continue  # there is no such group, or it tells nothing
        if most.isdigit():  # else "max"
            yield int(most), taken - int(numbers.get(cache, 0))


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of this process's control groups and of those around them."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = GROUPS, _SECOND
        elif "memory" in controllers.split(","):
            base, names = GROUPS / "memory", _FIRST
        else:
            continue
        folder = base / path.lstrip("/")
        # inside a container the path may be the host's, which is not there: its parents are tried
        for place in [folder, *folder.parents]:
            if place.is_relative_to(base):
                yield place, names


@contextlib.contextmanager
def memory_watch(least: float = 0.5e9) -> Iterator[None]:
    """Inside, work is stopped with OutOfMemory when less than `least` bytes of RAM are free.

    Python is interrupted between two steps, so a single step that takes more than `least` at once
    can still be killed. For the main thread; RAM only, since a full GPU raises an error by itself.
    Raises BadParameter from another thread.
    """
    check_real("least", least, above=0)
    if threading.current_thread() is not threading.main_thread():
        raise BadParameter("memory_watch works in the main thread only: put it around the cell")
    watch = _Watch(int(least))
    watch.start()
    try:
        try:
            yield
        finally:
            watch.end.set()
            watch.join()
    except KeyboardInterrupt as error:
        raise watch.finding() from error


class _Watch(threading.Thread):
    """Looks at the free RAM again and again, and interrupts the main thread once."""

    def __init__(self, least: int) -> None:
        super().__init__(daemon=True, name="memory watch")
        self.least, self.found, self.end = least, None, threading.Event()

    def run(self) -> None:
        """Look until told to end."""
        while not self.end.wait(WATCH_SECONDS):
            free, total = ram()
            if free < self.least:
                self.found = (free, total)
                # to that thread, so that what it waits for is interrupted as well
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return

    def finding(self) -> BaseException:
        """What to raise after an interruption: a person's stays what it is."""
        if self.found is None:
            return KeyboardInterrupt()
        free, total = self.found
        return OutOfMemory(
            f"stopped with {free / 1e9:.1f} GB of {total / 1e9:.1f} GB RAM free, before the kernel "
            "is killed: choose a smaller model or fewer sequences, or restart the kernel, which "
            "frees what earlier cells hold"
        )
