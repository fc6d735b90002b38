"""`make doctor`: looks for what can stop a run, and says what to do.

It works before a set-up too: only the standard library is imported at the top, and the packages are
loaded in a process of their own. Of a token it says only whether one is set.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.errors import first_line
from helpers.machine.memory import ram
from helpers.paths import cache_dir, results_dir, root, sha256_file

OLDEST_PYTHON = (3, 11)
IMPORTS = ("numpy", "pandas", "psutil", "safetensors", "torch", "transformers", "matplotlib")
IMPORTS += ("ipywidgets", "papermill")
GB = 1e9
# measured: downloads and the model made from them 0.8 GB, .venv with torch for CPUs 2.2 GB
CACHE_BYTES, RESULTS_BYTES, SETUP_BYTES = 1 * GB, 0.3 * GB, 2.5 * GB
RUN_BYTES = 2 * GB  # of RAM, of one run with the embedded model, whose records say 1.7
PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    importlib.import_module(name)
import torch
cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
gpus = [torch.cuda.get_device_properties(n) for n in cuda]
gpus = [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus]
print(json.dumps(["; ".join(gpus), torch.version.cuda]))
"""


class Finding(NamedTuple):
    """What was found, how good that is, and what to do unless it is good."""

    state: str  # "ok", "note" or "fix"
    what: str
    found: str
    todo: str = ""


def lacking() -> list[str]:
    """The packages that this Python does not find; they are not loaded."""
    return [name for name in IMPORTS if importlib.util.find_spec(name) is None]


def check_python() -> Iterator[Finding]:
    """The version, and whether the packages are there."""
    found, venv = platform.python_version(), root() / ".venv"
    if sys.version_info[:2] < OLDEST_PYTHON:
        todo = "install one and name it: make setup PYTHON=python3.12"
        yield Finding("fix", "python", f"{found}, and 3.11 or newer is needed", todo)
    elif not lacking():
        yield Finding("ok", "python", f"{found}, with the packages")
    else:
        todo = "run: make setup"
        if venv.exists() and Path(sys.prefix).resolve() != venv.resolve():
            todo = f"use .venv/bin/python; if it does not start, remove .venv and {todo}"
        yield Finding("fix", "python", f"{found}, without {', '.join(lacking())}", todo)


def check_packages() -> Iterator[Finding]:
    """What `pip check` says of the packages that constraints.txt names."""

    def names(text: str) -> list[str]:  # the first word of each line, in pip's spelling
        return [re.sub(r"[-_.]+", "-", n).lower() for n in re.findall(r"(?m)^[\w.-]+", text)]

    used = {"pruning-reproduction", *names((root() / "constraints.txt").read_text("utf-8"))}
    lines, failure = run(sys.executable, "-m", "pip", "check")
    # a conflict among packages that the project does not use stops nothing
    ours = [line for line in lines if used & set(names(line))]
    if ours:
        todo = "make setup (if it does nothing, remove .venv/.installed first)"
        yield Finding("fix", "packages", "; ".join(ours[:3]), todo)
    elif failure and not lines:
        todo = "remove the folder .venv and run: make setup"
        yield Finding("fix", "packages", f"pip does not work: {failure}", todo)
    else:
        yield Finding("ok", "packages", "pip finds no conflict")


def check_device() -> Iterator[Finding]:
    """Whether the packages load, and whether torch can use a GPU that is there."""
    lines, failure = run(sys.executable, "-c", PROBE, *IMPORTS, seconds=60)
    if failure:
        name = lines[-1] if lines else "Python"  # the last one that was begun
        todo = "remove the folder .venv and run: make setup (under load, first try again)"
        yield Finding("fix", "imports", f"{name} does not load: {failure}", todo)
        return
    yield Finding("ok", "imports", "the packages load")
    gpus, cuda = json.loads(lines[-1])
    if gpus:
        yield Finding("ok", "device", f"{gpus}, CUDA {cuda}")
    elif not shutil.which("nvidia-smi"):
        yield Finding("ok", "device", "no GPU: fine, everything runs on the CPU")
    else:
        listed, _ = run("nvidia-smi", "-L")
        gpu = listed[0].partition(" (UUID")[0] if listed else "nvidia-smi gives no answer"
        build = f"CUDA {cuda}" if cuda else "CPUs"
        todo = "install a torch for its driver, or update the driver; the CPU is used meanwhile"
        yield Finding("note", "device", f"{gpu}; torch for {build} cannot use it", todo)


def check_memory() -> Iterator[Finding]:
    """RAM that is free, of the machine or its container."""
    free, total = ram()
    found, todo = f"{free / GB:.1f} of {total / GB:.1f} GB free", ""
    if free < RUN_BYTES:
        found += ": a run takes about 2 GB"
        todo = "close other programs, or try PLAN=smoke, which takes less"
    yield Finding("fix" if todo else "ok", "memory", found, todo)


def check_disk() -> Iterator[Finding]:
    """Space and rights where downloads, results and, before the set-up, the packages go."""
    cached = (cache_dir() / "models").exists()  # the last that is put there
    rows = [
        ("cache", cache_dir(), 0 if cached else CACHE_BYTES, "set PRUNING_CACHE to"),
        ("results", results_dir(""), RESULTS_BYTES, "set PRUNING_RESULTS to"),
        ("project", root(), SETUP_BYTES if lacking() else 0, "move the project to"),
    ]
    for what, folder, need, other in rows:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        found, todo = f"{free / GB:.1f} GB free in {folder}", ""
        if not (there.is_dir() and os.access(there, os.W_OK)):
            found, todo = f"{folder} cannot be written", "make it writable"
        elif free < need:
            found, todo = f"{found}, {need / GB:.1f} GB are needed", "make space"
        todo = todo and f"{todo}, or {other} a folder on another disk"
        yield Finding("fix" if todo else "ok", what, found, todo)


def check_downloads(deep: bool) -> Iterator[Finding]:
    """The pinned downloads: there, and if `deep` with the right hash."""
    # here, because it needs packages
    from helpers.data.assets import ASSETS, converted_folder, is_converted

    absent, damaged = [], []
    for asset in ASSETS.values():
        folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
        for path, sha256 in ((folder / name, sha256) for name, sha256 in asset.members.items()):
            if not path.is_file():
                absent.append(path.name)
            elif deep and sha256_file(path) != sha256:
                damaged.append(path.name)
    model = converted_folder()  # made from a download, and as large as all of them
    if deep and model.exists() and not is_converted(model):
        damaged.append(model.name)
    if damaged:
        todo = "run: make assets, which fetches them again"
        yield Finding("fix", "downloads", "damaged: " + ", ".join(damaged), todo)
    elif absent:
        todo = "run once with a network: make assets (make reproduce does it too)"
        yield Finding("note", "downloads", "not there yet: " + ", ".join(absent), todo)
    else:
        how = "with the right hashes" if deep else "there (DEEP=1 compares hashes)"
        yield Finding("ok", "downloads", f"all files {how}")


def check_hub(ask: bool) -> Iterator[Finding]:
    """The hub of models, which only the plans for GPUs need; asked only if `ask`."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    known = os.environ.get("HF_TOKEN") or (home / "token").is_file()
    token = "a token is set" if known else "no token is set"
    if not ask:
        found = f"not asked; {token}; only plans t4 and paper need it (HUB=1 asks)"
        yield Finding("ok", "hub", found)
        return
    problem = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else ""
    try:
        address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError, http.client.HTTPException) as error:
        problem = problem or first_line(error)
    if problem:
        todo = "nothing, unless you want plans t4 or paper: only they need it"
        yield Finding("note", "hub", f"no access ({problem}); {token}", todo)
    else:
        yield Finding("ok", "hub", f"it answers; {token}")


def run(*command: str, seconds: float = 30) -> tuple[list[str], str]:
    """The lines that a program prints, and why it failed or did not end in time ("" if not)."""
    options = dict(capture_output=True, text=True, errors="replace", check=False)
    try:
        done = subprocess.run(command, timeout=seconds, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], first_line(error)
    reasons = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
    return done.stdout.splitlines(), reasons[-1] if done.returncode else ""


def main(arguments: list[str] | None = None) -> int:
    """Show the findings; the exit code is 1 if something must be fixed."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="compare the hashes of downloads")
    parser.add_argument("--hub", action="store_true", help="ask the hub of models")
    options = parser.parse_args(arguments)
    checks = [check_python(), check_disk(), check_hub(options.hub)]
    if not lacking():  # the others need the packages
        checks += [check_packages(), check_device(), check_memory(), check_downloads(options.deep)]
    lines, wrong = [], 0
    for state, what, found, todo in itertools.chain.from_iterable(checks):
        lines += [f"{state:<4}  {what:<9} {found}", *([f"{'':16}-> {todo}"] if todo else [])]
        wrong += state == "fix"
    lines.append(f"{wrong or 'nothing'} to fix; a note is for your information")
    # all at once, so that a reader who has seen enough breaks no pipe
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
