"""The memory that is free here, and a watch that stops work before the machine kills it.

Inside a container the machine's own figure is not the limit: a process that takes more than its
control group allows is killed without a word, which a notebook shows as a dead kernel.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import BadParameter, OutOfMemory, check_real

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# where each version of control groups stores its limit, its use, and how much of that is only a
# cache of files, which the kernel gives back when memory is short
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
WATCH_SECONDS = 0.2


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, free and in all: RAM, and of the first GPU (None without one)."""

    ram_free: int
    ram_total: int
    gpu: str | None = None
    gpu_free: int | None = None
    gpu_total: int | None = None


def free_memory() -> Memory:
    """What is free now, of RAM and on the first GPU; loads torch to ask for the latter."""
    import torch

    free, total = ram()
    if not torch.cuda.is_available():
        return Memory(free, total)
    gpu_free, gpu_total = torch.cuda.mem_get_info()
    return Memory(free, total, torch.cuda.get_device_name(), gpu_free, gpu_total)


def ram() -> tuple[int, int]:
    """(free, total) bytes of RAM that this process may use: the machine's or its container's."""
    import psutil  # here, since the doctor imports this module before anything is installed

    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for folder, (limit_file, used_file, cache) in _control_groups():
        try:
            limit = (folder / limit_file).read_text(encoding="ascii").strip()
            used = int((folder / used_file).read_text(encoding="ascii"))
            statistics = dict(line.split() for line in (folder / "memory.stat").open())
        except (OSError, ValueError):
            continue  # no such group, or one without accounting
        if limit.isdigit():  # else "max"
            used -= int(statistics.get(cache, 0))
            total, free = min(total, int(limit)), min(free, max(0, int(limit) - used))
    return free, total


def _control_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of this process's control groups and of those around them."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            base, names = GROUPS / "memory", _VERSION_1
        else:
            continue
        # inside a container the path may be the host's, which does not exist: try its parents
        folder = base / path.lstrip("/")
        for candidate in (folder, *folder.parents):
            if candidate.is_relative_to(base):
                yield candidate, names


@contextlib.contextmanager
def memory_watch(least: float = 0.5e9) -> Iterator[None]:
    """Inside, work is stopped with OutOfMemory when less than `least` bytes of RAM are free.

    Python is interrupted between two steps, so a single step that takes more than `least` at once
    can still be killed. RAM only, since a full GPU raises an error by itself.
    Raises BadParameter outside the main thread, the only one that can be interrupted.
    """
    check_real("least", least, above=0)
    if threading.current_thread() is not threading.main_thread():
        raise BadParameter("memory_watch works in the main thread only: put it around the cell")
    done, found = threading.Event(), []

    def look() -> None:
        while not done.wait(WATCH_SECONDS):
            free, total = ram()
            if free < least:
                found.append((free, total))
                # sent to the main thread, so that what it waits for is interrupted as well
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return

    watch = threading.Thread(target=look, daemon=True, name="memory watch")
    watch.start()
    try:
        try:
            yield
        finally:
            done.set()
            watch.join()
    except KeyboardInterrupt as error:
        if not found:  # a person interrupted
            raise
        free, total = found[0]
        raise OutOfMemory(
            f"stopped with {free / 1e9:.1f} GB of {total / 1e9:.1f} GB RAM free, before the kernel "
            "is killed: choose a smaller model or fewer sequences, or restart the kernel, which "
            "frees what earlier cells hold"
        ) from error
