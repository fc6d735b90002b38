"""`make doctor`: look for what can stop a run, and say what to do.

It works before anything is installed: only the standard library is imported at the top, and torch
is loaded in another process.
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

from helpers.paths import cache_dir, results_dir, root
from reproduction.machine.nvidia import has_nvidia_driver

OLDEST_PYTHON = (3, 11)
PACKAGES = ("numpy", "pandas", "psutil", "torch", "transformers", "papermill")
# measured in GB: downloads and the model made from them; .venv with torch for CPUs, with CUDA
# (local_setup.py tells which); a run's results
CACHE_GB, CPU_GB, CUDA_GB, RESULTS_GB = 1.0, 2.5, 7.5, 0.3
PROBE = (
    "import torch; print(torch.cuda.is_available() and torch.cuda.get_device_name())"
)


class Finding(NamedTuple):
    """What a check has found, and what to do unless it is good."""

    subject: str
    text: str
    state: str = "ok"  # or "note" or "fix"
    advice: str = ""


def examine() -> int:
    """Print the findings; the exit code is 1 if something must be fixed."""
    findings = [check_python(), check_packages(), *check_disk()]
    if not missing_packages():
        findings.append(check_torch())
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.subject:<9} {finding.text}")
        if finding.advice:
            lines.append(f"{'':16}-> {finding.advice}")
    wrong = sum(finding.state == "fix" for finding in findings)
    lines.append(f"{wrong or 'nothing'} to fix; a note is for your information")
    # all at once, so that `head` breaks no pipe
    sys.stdout.write("\n".join(lines) + "\n")
    return min(wrong, 1)


def check_python() -> Finding:
    """Whether the version is new enough."""
    text = platform.python_version()
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding("python", text)
    text += ", and 3.11 or newer is needed"
    advice = "install one and name it: make setup PYTHON=python3.12"
    return Finding("python", text, "fix", advice)


def missing_packages() -> list[str]:
    """The packages that this Python does not find; they are not loaded."""
    return [name for name in PACKAGES if not importlib.util.find_spec(name)]


def check_packages() -> Finding:
    """Whether the packages are there, and what `pip check` says of them."""
    if missing := missing_packages():
        text = f"without {', '.join(missing)}"
        return Finding("packages", text, "fix", "run: make setup")
    good, lines = run("-m", "pip", "check")
    if good:
        return Finding("packages", "pip finds no conflict")
    # only a note: it may be about packages that the project does not use
    advice = "remove .venv/.installed and run: make setup"
    return Finding("packages", "; ".join(lines[-3:]), "note", advice)


def check_disk() -> Iterator[Finding]:
    """Space and rights where downloads, results and, before the set-up, the packages go."""
    cached = (cache_dir() / "models").exists()  # the last that is put there
    packages = CUDA_GB if has_nvidia_driver() else CPU_GB
    for folder, need, move in (
        (cache_dir(), 0 if cached else CACHE_GB, "set PRUNING_CACHE to"),
        (results_dir(""), RESULTS_GB, "set PRUNING_RESULTS to"),
        (root(), packages if missing_packages() else 0, "move the project to"),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free / 1e9
        text = f"{free:.1f} GB free in {folder}"
        writable = there.is_dir() and os.access(there, os.W_OK)
        if writable and free >= need:
            yield Finding("disk", text)
            continue
        text += f", {need} GB are needed" if writable else ", but it cannot be written"
        advice = f"make space or get the right to write, or {move} a folder elsewhere"
        yield Finding("disk", text, "fix", advice)


def check_torch() -> Finding:
    """Whether torch loads, and whether it can use a GPU that is there."""
    good, lines = run("-c", PROBE, seconds=60)
    state, text, advice = "ok", lines[-1], ""
    if not good:
        state = "fix"
        text = f"it does not load: {text}"
        advice = "remove .venv and run: make setup (under load, first try again)"
    elif text == "False" and has_nvidia_driver():
        state = "note"
        text = "an NVIDIA driver is here, and torch can use no GPU"
        advice = "install a torch for it, or update it; the CPU is used meanwhile"
    elif text == "False":
        text = "no GPU: fine, everything runs on the CPU"
    return Finding("torch", text, state, advice)


def run(*arguments: str, seconds: float = 30) -> tuple[bool, list[str]]:
    """Whether Python ends well in time, and what it prints: a line at least, errors first."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            timeout=seconds,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        return False, [str(error)]
    lines = (done.stderr + done.stdout).splitlines()
    return not done.returncode, lines or [f"it ended with code {done.returncode}"]
