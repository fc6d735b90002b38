"""The cores that this process may use, and how many threads of torch they can take."""

from __future__ import annotations

import functools
import os
import time

THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
LOOK_SECONDS = 0.5


def cpus() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def leave_busy_cores() -> str:
    """Give torch its usual share of the cores that nothing else uses now; say how many threads.

    With a thread on a core that is busy every step waits for that thread, and a notebook crawls.
    A number that the environment gives is kept, and so is torch's own where nothing else runs.
    """
    import torch  # here, and psutil too: who only wants `cpus` needs neither

    usual = _usual_threads()
    if any(os.environ.get(name) for name in THREAD_VARIABLES[:2]):  # those that torch reads
        return f"{torch.get_num_threads()}, as the environment says"
    import psutil

    # Not the load average: for a minute it counts what this kernel itself, or the one before a
    # restart, has computed. Nor does it count what threads of this kernel compute during the look
    own, ours = time.process_time(), cpus()
    busy = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    own = 100 * (time.process_time() - own) / LOOK_SECONDS
    busy = sum(share for core, share in enumerate(busy) if core in ours) - own  # % of a core
    others = max(0, round(busy / 100))
    # a share and not a difference: where a core counts as two, torch takes half of what is counted
    free = max(0, len(ours) - others) / len(ours)
    torch.set_num_threads(max(1, round(min(usual, len(ours)) * free)))
    threads = torch.get_num_threads()
    return f"{threads} of {usual}" + (f": other programs keep {others} busy" if others else "")


@functools.cache
def _usual_threads() -> int:
    """torch's own number of threads, before it was changed here."""
    import torch

    return torch.get_num_threads()
