"""A run as a process of its own on this machine: its environment, its end and its error.

`helpers.runner.run` starts such processes here, and `helpers.runner.cluster` on the workers of a Dask cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers.paths import replace_file, root

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def cpus() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may use."""
    return len(cpus())


def show_path(path: Path) -> str:
    """A path relative to the project's root where it lies in there."""
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)


def format_seconds(seconds: float) -> str:
    """A duration for people: "41 s", "12 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def environment(base: Mapping[str, str], threads: int, folder: Path) -> dict[str, str]:
    """The environment of a run: its share of the threads, this Python as kernel, no user profile.

    A number of threads that is in `base` already is kept. Jupyter's files go into `folder`.
    JUPYTER_PATH comes before every other place, so a "python3" kernel that the user has installed
    for another Python cannot be picked up.
    """
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    replace_file(folder / "jupyter" / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    variables = {key: value for key, value in base.items() if key != "MPLBACKEND"}
    for variable in THREAD_VARIABLES:
        variables.setdefault(variable, str(threads))
    variables.update(
        JUPYTER_PATH=os.pathsep.join(
            filter(None, [str(folder / "jupyter"), base.get("JUPYTER_PATH")])
        ),
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
        IPYTHONDIR=str(folder / "ipython"),
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        PYTHONHASHSEED="0",
        TOKENIZERS_PARALLELISM="false",
    )
    return variables


@dataclass(frozen=True)
class Files:
    """The files between a run and those who started it."""

    job: Path  # what to do
    outcome: Path  # the child writes its error here
    log: Path  # what it prints


@dataclass(frozen=True)
class Child:
    """A run that is being executed on this machine."""

    process: subprocess.Popen[bytes]
    files: Files

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def error(self) -> str | None:
        """Tidy up after a process that has ended; its error in one line, None after a success."""
        if self.process.returncode == 0:
            self.files.log.unlink(missing_ok=True)
            return None
        if self.files.outcome.is_file():
            text = self.files.outcome.read_text(encoding="utf-8")
            self.files.log.unlink(missing_ok=True)
            return text
        return self._died()

    def _died(self) -> str:
        """The error of a run whose process ended without leaving one."""
        code = self.process.returncode
        if code < 0:
            return f"its process was killed by signal {-code}: was there enough memory?"
        log = self.files.log
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else f'exit code {code}'} (log: {show_path(log)})"

    def stop(self) -> None:
        """Kill the process with its kernel."""
        kill_family(self.process.pid)
        self.process.wait()


def start(files: Files, variables: Mapping[str, str]) -> Child:
    """Start the process of a run with the environment that it is to have."""
    with open(files.log, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.runner.execute", str(files.job)],
            cwd=root(),
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to the starter alone, who stops the others
        )
    return Child(process, files)


def kill_family(pid: int) -> None:
    """Kill a process and all its descendants: a kernel lives in a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
