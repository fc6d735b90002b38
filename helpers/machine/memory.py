"""The memory that is free here.

In a container the machine's own figure is not the limit: a process that takes more than its control
group allows is killed without a message, which a notebook shows as a dead kernel.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# by controller, which is a folder ("" in version 2): the files that hold a group's limit and
# what is used, and the statistic of file cache in that, which the kernel gives back
FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, free and in all: RAM, and of the first GPU (None without one)."""

    ram_free: int
    ram_total: int
    gpu: str | None = None
    gpu_free: int | None = None
    gpu_total: int | None = None


def free_memory() -> Memory:
    """RAM and memory of the first GPU that are free now; loads torch to ask for the latter."""
    import torch

    if not torch.cuda.is_available():
        return Memory(*ram())
    return Memory(*ram(), torch.cuda.get_device_name(), *torch.cuda.mem_get_info())


def ram() -> tuple[int, int]:
    """(free, total) bytes of RAM that this process may use: the machine's or its container's."""
    import psutil  # here, since the doctor imports this module before anything is installed

    machine = psutil.virtual_memory()
    free = machine.available
    total = machine.total
    if not OWN_GROUPS.exists():
        return free, total
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in FILES.keys() & set(controllers.split(",")):
            limit_file, used_file, cache = FILES[controller]
            # in a container the path may be the host's, which does not exist here; a parent does
            group = GROUPS / controller / path.lstrip("/")
            for folder in (group, *group.parents):
                # no group; a limit of "max"
                with contextlib.suppress(OSError, ValueError):
                    limit = int((folder / limit_file).read_text())
                    used = int((folder / used_file).read_text())
                    rows = (folder / "memory.stat").read_text().splitlines()
                    used -= int(dict(row.split() for row in rows).get(cache, 0))
                    total = min(total, limit)
                    free = min(free, max(0, limit - used))
    return free, total
