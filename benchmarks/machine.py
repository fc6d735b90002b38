"""What a measurement was made on: processor, threads, load, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from helpers.device import describe_device
from helpers.paths import root

BUSY = 0.7  # load average per core above which other work disturbs a measurement
NO_GPU = "no GPU here"


def describe() -> dict[str, Any]:
    """The machine and its state before a measurement, as plain values; no host name."""
    cores, load = os.cpu_count() or 1, load_average()
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": describe_device("cuda") if torch.cuda.is_available() else NO_GPU,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": load,
        "warning": busy_warning(load, cores),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def busy_warning(load: float | None, cores: int) -> str | None:
    """A sentence if the load average leaves too little of the machine, else None."""
    if load is None or load <= BUSY * cores:
        return None
    return f"load average {load:.2f} on {cores} cores before the start: seconds are not to be used"


def load_average() -> float | None:
    """Processes that ran or waited over the last minute; None where the system keeps no count."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_model() -> str:
    """The processor's name."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit, with "+" if what is measured was changed since; None outside git."""
    found = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "helpers", "benchmarks")
    return f"{found}+" if found and changed else found


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root()), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
