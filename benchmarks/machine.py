"""The machine and code of a measurement: processor, threads, load, versions, commit, hashes."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from helpers.code_hashes import code_hash, file_hashes, hash_of
from helpers.device import describe_device
from helpers.paths import root
from reproduction.records import git_state, processor

BUSY = 0.7  # load average per core above which other work disturbs a measurement
NO_GPU = "no GPU here"
MEASURED = ("helpers", "reproduction", "benchmarks")
SHARED = ("problems", "timing")  # by all benchmarks
MODEL = tuple(
    f"helpers/{part}/**/*.py" for part in ("paper", "model", "data", "beyond")
) + ("helpers/[!_]*.py",)
# what each benchmark times, as files of the project
TIMED = {
    "solver": (
        "helpers/device.py",
        "helpers/paper/admm.py",
        "helpers/paper/gram.py",
        "helpers/paper/layer.py",
        "helpers/paper/masks.py",
        "helpers/paper/methods.py",
        "helpers/paper/fast/fused.py",
        "helpers/paper/fast/selection.py",
    ),
    "model": MODEL,
    "passes": MODEL,
    "repair": MODEL,
    "zero_shot": (
        "helpers/model/zero_shot.py",
        "helpers/data/tasks.py",
        "helpers/model/token_trees.py",
    ),
    "use": ("reproduction/studies/sizes.py",),
    "architecture": MODEL,
}


def describe() -> dict[str, Any]:
    """Describe the machine and its state before a measurement, in plain values; no host name.

    "commit" ends with "+" if what is measured was changed since.
    """
    cores = os.cpu_count() or 1
    git = git_state(MEASURED)
    # processes that ran or waited over the last minute
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "cpu": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": describe_device("cuda") if torch.cuda.is_available() else NO_GPU,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": load,
        "warning": busy_warning(load, cores),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git and git["commit"][:12] + "+" * git["dirty"],
    }


def timed_code(name: str, project: Path | None = None) -> str:
    """Hash the code that a benchmark times, and the code that times it.

    Code with equal results need not be equally fast, so `make same` does not cover this. project:
    the root of another checkout.
    """
    own = [
        (project or root()) / "benchmarks" / f"{module}.py"
        for module in (name, *SHARED)
    ]
    measuring = [
        code_hash(path.read_text(encoding="utf-8")) for path in own if path.is_file()
    ]
    timed = file_hashes(TIMED[name], project)
    return hash_of([timed, measuring])


def busy_warning(load: float | None, cores: int) -> str | None:
    """Warn, in a sentence, if other work keeps the machine busy; else None."""
    if load is None or load <= BUSY * cores:
        return None
    return f"load average {load:.2f} on {cores} cores before the start: seconds are not to be used"
