"""`make doctor`: looks for what can stop a run, and says what to do.

It works before a set-up too: only the standard library is imported at the top, and the packages are
loaded in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from helpers.errors import first_line
from helpers.machine.memory import ram
from helpers.paths import cache_dir, results_dir, root

OLDEST_PYTHON = (3, 11)
IMPORTS = (
    "numpy",
    "pandas",
    "psutil",
    "safetensors",
    "torch",
    "transformers",
    "matplotlib",
)
IMPORTS += ("ipywidgets", "papermill")
GB = 1e9
# measured: downloads and the model made from them 0.8 GB, .venv with torch for CPUs 2.2 GB
CACHE_BYTES, RESULTS_BYTES, SETUP_BYTES = 1 * GB, 0.3 * GB, 2.5 * GB
RUN_BYTES = 2 * GB  # of RAM, of one run with the embedded model, whose records say 1.9
PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    importlib.import_module(name)
import torch
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")
"""


class Finding(NamedTuple):
    """The answer to a question, and what to do unless it is good."""

    state: str  # "ok", "note" or "fix"
    question: str
    answer: str
    todo: str = ""


def lacking() -> list[str]:
    """The packages that this Python does not find; they are not loaded."""
    return [name for name in IMPORTS if importlib.util.find_spec(name) is None]


def check_python() -> Finding:
    """Whether the version is new enough."""
    version = platform.python_version()
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding("ok", "python", version)
    todo = "install one and name it: make setup PYTHON=python3.12"
    return Finding("fix", "python", f"{version}, and 3.11 or newer is needed", todo)


def check_packages() -> Finding:
    """Whether the packages are there, and what `pip check` says of them."""
    if absent := lacking():
        return Finding(
            "fix", "packages", f"without {', '.join(absent)}", "run: make setup"
        )
    conflicts, failure = run(sys.executable, "-m", "pip", "check")
    if not failure:
        return Finding("ok", "packages", "pip finds no conflict")
    # a note: it may be about packages that the project does not use, and whether ours load is asked
    # below
    answer = "; ".join(conflicts[:3]) or f"pip does not work: {failure}"
    return Finding(
        "note", "packages", answer, "remove .venv/.installed and run: make setup"
    )


def check_device() -> Finding:
    """Whether the packages load, and whether torch can use a GPU that is there."""
    lines, failure = run(sys.executable, "-c", PROBE, *IMPORTS, seconds=60)
    if failure:
        name = lines[-1] if lines else "Python"  # the last one that was begun
        todo = (
            "remove the folder .venv and run: make setup (under load, first try again)"
        )
        return Finding("fix", "device", f"{name} does not load: {failure}", todo)
    if gpu := lines[-1]:
        return Finding("ok", "device", gpu)
    if not shutil.which("nvidia-smi"):
        return Finding("ok", "device", "no GPU: fine, everything runs on the CPU")
    todo = "install a torch for its driver, or update the driver; the CPU is used meanwhile"
    return Finding(
        "note", "device", "nvidia-smi is here, and torch can use no GPU", todo
    )


def check_memory() -> Finding:
    """RAM that is free, of the machine or its container."""
    free, total = ram()
    answer = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free >= RUN_BYTES:
        return Finding("ok", "memory", answer)
    todo = "close other programs, or try PLAN=smoke, which takes less"
    return Finding("fix", "memory", f"{answer}: a run takes about 2 GB", todo)


def check_disk() -> Iterator[Finding]:
    """Space and rights where downloads, results and, before the set-up, the packages go."""
    cached = (cache_dir() / "models").exists()  # the last that is put there
    for folder, need, other in (
        (cache_dir(), 0 if cached else CACHE_BYTES, "set PRUNING_CACHE to"),
        (results_dir(""), RESULTS_BYTES, "set PRUNING_RESULTS to"),
        (root(), SETUP_BYTES if lacking() else 0, "move the project to"),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        answer, todo = f"{free / GB:.1f} GB free in {folder}", ""
        if not (there.is_dir() and os.access(there, os.W_OK)):
            answer, todo = f"{folder} cannot be written", "make it writable"
        elif free < need:
            answer, todo = f"{answer}, {need / GB:.1f} GB are needed", "make space"
        todo = todo and f"{todo}, or {other} a folder on another disk"
        yield Finding("fix" if todo else "ok", "disk", answer, todo)


def check_downloads() -> Finding:
    """Whether the pinned downloads are there; `make assets` compares their hashes too."""
    from helpers.data.assets import ASSETS  # here, because it needs packages

    absent = []
    for asset in ASSETS.values():
        folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
        absent += [
            path for path, _ in asset.members.values() if not (folder / path).is_file()
        ]
    if not absent:
        return Finding(
            "ok", "downloads", "all files there (make assets compares hashes)"
        )
    todo = "run once with a network: make assets (make reproduce does it too)"
    return Finding("note", "downloads", "not there yet: " + ", ".join(absent), todo)


def run(*command: str, seconds: float = 30) -> tuple[list[str], str]:
    """The lines that a program prints, and why it failed or did not end in time ("" if not)."""
    options = dict(capture_output=True, text=True, errors="replace", check=False)
    try:
        done = subprocess.run(command, timeout=seconds, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], first_line(error)
    reasons = done.stderr.strip().splitlines() or [
        f"it ended with code {done.returncode}"
    ]
    return done.stdout.splitlines(), reasons[-1] if done.returncode else ""


def examine() -> int:
    """Show the findings; the exit code is 1 if something must be fixed."""
    findings = [check_python(), check_packages(), *check_disk()]
    if not lacking():  # the others need the packages
        findings += [check_device(), check_memory(), check_downloads()]
    lines = []
    for state, question, answer, todo in findings:
        lines += [
            f"{state:<4}  {question:<9} {answer}",
            *([f"{'':16}-> {todo}"] if todo else []),
        ]
    wrong = sum(finding.state == "fix" for finding in findings)
    lines.append(f"{wrong or 'nothing'} to fix; a note is for your information")
    # all at once, so that `head` breaks no pipe
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0
