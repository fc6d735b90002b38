"""Looks for what can stop a run, and says what to do: `make doctor`.

Works before and without a set-up, which is when one needs it: at its top only the standard library
is imported, and packages are tried in a process of their own. Findings can be shown to anybody:
they name no secrets, no address, and of a path only what lies in the project or the home folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.machine.memory import ram
from helpers.paths import cache_dir, results_dir, root

PACKAGE = "pruning-reproduction"
OLDEST_PYTHON = (3, 11)
PROBE_SECONDS, ASK_SECONDS = 60, 10
GB = 1e9
# measured: .venv with torch for CPUs 2.2 GB, downloads and the model made from them 0.8 GB
SETUP_BYTES, CACHE_BYTES, RESULTS_BYTES = 2.5 * GB, 1 * GB, 0.3 * GB
RUN_BYTES = 2 * GB  # of RAM, of one run with the embedded model, whose records say 1.7
IMPORTS = ("numpy", "safetensors", "torch", "transformers", "pandas", "matplotlib", "ipywidgets")
MARKS = {"ok": "\u2713 ok  ", "note": "\u00b7 note", "fix": "\u2717 fix "}
PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    importlib.import_module(name)
import torch
cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
gpus = [torch.cuda.get_device_properties(n) for n in cuda]
gpus = [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus]
print(json.dumps({"cuda": torch.version.cuda, "gpus": gpus}))
"""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing, how good that is, and what to do unless it is good."""

    state: str  # "ok", "note" or "fix"
    what: str
    found: str
    todo: str = ""

    def line(self) -> str:
        """The finding as one line, or two where there is something to do."""
        text = f"{MARKS[self.state]}  {self.what:<9} {self.found}"
        return f"{text}\n{'':18}-> {self.todo}" if self.todo else text


def installed(package: str = PACKAGE) -> str | None:
    """The version of a package that this Python has."""
    # setup leaves metadata in the project's folder too, which any Python started there finds
    path = [entry for entry in sys.path if Path(entry).resolve() != root()]
    found = next(iter(importlib.metadata.distributions(name=package, path=path)), None)
    return found and found.version


def check_python() -> Iterator[Finding]:
    """The version, and whether the project is installed in it."""
    version, venv = ".".join(map(str, sys.version_info[:3])), root() / ".venv"
    if sys.version_info[:2] < OLDEST_PYTHON:
        todo = "install one and name it: make setup PYTHON=python3.12"
        yield Finding("fix", "python", f"{version}, and 3.11 or newer is needed", todo)
    elif installed():
        yield Finding("ok", "python", f"{version}, with the project installed")
    elif not venv.exists() or Path(sys.prefix).resolve() == venv.resolve():
        found = f"{version}, in which the project is not installed"
        yield Finding("fix", "python", found, "run: make setup")
    elif _run(str(venv / "bin" / "python"), "-c", "").returncode == 0:
        todo = "nothing with make; elsewhere use .venv/bin/python"
        yield Finding("note", "python", f"{version}, which is not that of .venv", todo)
    else:
        todo = "remove the folder .venv and run: make setup"
        yield Finding("fix", "python", "the Python in .venv does not start", todo)


def check_packages() -> Iterator[Finding]:
    """What `pip check` says, and which versions are not those of constraints.txt."""
    if not installed():
        return  # said of Python
    text = (root() / "constraints.txt").read_text(encoding="utf-8")
    pins = {_normal(name): pin for name, pin in re.findall(r"(?m)^([\w.-]+)==(\S+)$", text)}
    done = _run(sys.executable, "-m", "pip", "check")
    lines = done.stdout.splitlines() if done.returncode else []
    # a conflict among packages that the project does not use stops nothing
    ours = [line for line in lines if _normal(line.split()[0]) in {*pins, "torch", PACKAGE}]
    if ours:
        more = f" and {len(ours) - 3} more" if len(ours) > 3 else ""
        todo = "make setup (if it does nothing, remove .venv/.installed first)"
        yield Finding("fix", "packages", "; ".join(ours[:3]) + more, todo)
    elif done.returncode and not lines:
        todo = "remove the folder .venv and run: make setup"
        yield Finding("fix", "packages", f"pip does not work: {_reason(done)}", todo)
    else:
        yield Finding("ok", "packages", "pip finds no conflict")
    needed = importlib.metadata.requires(PACKAGE) or []
    names = sorted({_normal(re.split(r"[^\w.-]", line)[0]) for line in needed} & set(pins))
    versions = {name: installed(name) or "none" for name in names}
    others = [f"{name} {v} for {pins[name]}" for name, v in versions.items() if v != pins[name]]
    if others:
        todo = "nothing, unless digits differ: the committed results were made with the latter"
        yield Finding("note", "packages", "not the pinned versions: " + ", ".join(others), todo)


def check_device() -> Iterator[Finding]:
    """Whether the packages load, and whether torch can use a GPU that is there."""
    if not installed():
        return
    done = _run(sys.executable, "-c", PROBE, *IMPORTS, seconds=PROBE_SECONDS)
    last = (done.stdout.splitlines() or ["Python"])[-1]
    if done.returncode:  # the last name that was printed is the package that failed
        todo = "remove the folder .venv and run: make setup (under load, first try again)"
        yield Finding("fix", "imports", f"{last} does not load: {_reason(done)}", todo)
        return
    yield Finding("ok", "imports", "the packages load")
    torch = json.loads(last)
    driver = ""
    if shutil.which("nvidia-smi"):
        listed = _run("nvidia-smi", "-L").stdout.partition(" (UUID")[0]
        driver = listed or "nvidia-smi gives no answer"
    if torch["gpus"]:
        yield Finding("ok", "device", f"{'; '.join(torch['gpus'])}, CUDA {torch['cuda']}")
    elif not driver:
        yield Finding("ok", "device", "no GPU: fine, everything runs on the CPU")
    else:
        build = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPUs"
        todo = "install a torch for its driver, or renew that; the CPU is used meanwhile"
        yield Finding("note", "device", f"{driver}; torch for {build} cannot use it", todo)


def check_memory() -> Iterator[Finding]:
    """RAM that is free, of the machine or its container."""
    try:
        free, total = ram()
    except ImportError:
        yield Finding("note", "memory", "not known before the set-up", "2 GB of RAM are needed")
        return
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < RUN_BYTES:
        todo = "close other programs, or try PLAN=smoke, which takes less"
        yield Finding("fix", "memory", f"{found}: a run takes about 2 GB", todo)
    else:
        yield Finding("ok", "memory", found)


def check_disk() -> Iterator[Finding]:
    """Space and rights where downloads and results go, and before the set-up the packages."""
    rows = [
        ("cache", cache_dir(), CACHE_BYTES, "PRUNING_CACHE"),
        ("results", results_dir(""), RESULTS_BYTES, "PRUNING_RESULTS"),
    ]
    if not installed():
        rows.append(("set-up", root(), SETUP_BYTES, ""))
    for what, folder, need, variable in rows:
        name = f"the folder that {variable} names" if os.environ.get(variable) else _home(folder)
        other = f"set {variable} to a folder on another disk" if variable else "use another disk"
        if what == "cache" and (folder / "models").exists():
            need = 0  # everything is there, the model made of the downloads last
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / GB:.1f} GB free in {name}"
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            problem = f"{name}: cannot be written ({error.strerror})"
            yield Finding("fix", what, problem, f"make it writable, or {other}")
        else:
            if free < need:
                found += f", {need / GB:.1f} GB are needed"
                yield Finding("fix", what, found, f"make space, or {other}")
            else:
                yield Finding("ok", what, found)


def check_downloads(deep: bool) -> Iterator[Finding]:
    """The pinned downloads and the model made of one: there, and if `deep` with the right hash."""
    try:
        from helpers.assets import ASSETS
    except ImportError:
        return  # it needs a package that is not installed, which is said elsewhere
    hashes = {}
    for asset in ASSETS.values():
        folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
        hashes |= {folder / member: sha256 for member, sha256 in asset.members.items()}
    absent, damaged = [path.name for path in hashes if not path.is_file()], []
    for manifest in (cache_dir() / "models").glob("*/sha256.json"):
        try:
            files = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            files = {manifest.name: ""}
        damaged += [name for name in files if not (manifest.parent / name).is_file()]
        hashes |= {manifest.parent / name: sha256 for name, sha256 in files.items()}
    for path, sha256 in hashes.items():
        if path.is_file() and (deep or not sha256):
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                    damaged.append(path.name)
    if damaged:
        todo = "run: make assets, which fetches them again"
        yield Finding("fix", "downloads", "damaged: " + ", ".join(damaged), todo)
    if absent:
        todo = "run once with a network: make assets (make reproduce does it too)"
        yield Finding("note", "downloads", "not there yet: " + ", ".join(absent), todo)
    if not damaged and not absent:
        how = "with the right hashes" if deep else "there (DEEP=1 compares hashes)"
        yield Finding("ok", "downloads", f"{len(hashes)} files {how}")


def check_hub(ask: bool) -> Iterator[Finding]:
    """The hub of models, which only the plans for GPUs need; asked only if `ask`."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    set_here = os.environ.get("HF_TOKEN") or (home / "token").is_file()  # it is not read
    token = "a token is set" if set_here else "no token is set"
    if not ask:
        found = f"not asked; {token}; only plans t4 and paper need it (HUB=1 asks)"
        yield Finding("ok", "hub", found)
        return
    problem = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else ""
    try:
        address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        urllib.request.urlopen(address, timeout=ASK_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        problem = problem or _shorten(str(getattr(error, "reason", error)))
    if problem:
        todo = "nothing, unless you want plans t4 or paper: only they need it"
        yield Finding("note", "hub", f"no access ({problem}); {token}", todo)
    else:
        yield Finding("ok", "hub", f"it answers; {token}")


def _run(*command: str, seconds: float = ASK_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a program; one that does not start or is too slow has failed."""
    options = dict(capture_output=True, text=True, errors="replace", check=False)
    try:
        return subprocess.run(command, timeout=seconds, **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {seconds} seconds")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error.strerror))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a program failed: the last line of what it says, or its exit code."""
    lines = done.stderr.strip().splitlines()
    return _shorten(lines[-1]) if lines else f"it ended with code {done.returncode}"


def _normal(name: str) -> str:
    """A package's name in pip's spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _shorten(text: str) -> str:
    """An error's text without addresses and paths, which may hold names and passwords."""
    text = re.sub(r"\b\w+://\S+", "an address", text)
    return re.sub(r"(?<![\w.])(?:/[\w.+@-]+){2,}", "a file", text)[:120]


def _home(path: Path) -> str:
    """A path from the project's folder, or from the home folder; of others only the last part."""
    if path == root():
        return "the project's folder"
    for base, prefix in ((root(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return path.name


def main(arguments: list[str] | None = None) -> int:
    """Show the findings; the exit code is 1 if something must be fixed."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="compare the hashes of downloads")
    parser.add_argument("--hub", action="store_true", help="ask the hub of models")
    options = parser.parse_args(arguments)
    checks = [check_python(), check_packages(), check_device(), check_memory(), check_disk()]
    checks += [check_downloads(options.deep), check_hub(options.hub)]
    findings = [finding for check in checks for finding in check]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    wrong = sum(finding.state == "fix" for finding in findings)
    last = f"{wrong or 'nothing'} to fix; a note is for your information"
    # all at once, so that a reader who has seen enough breaks no pipe
    sys.stdout.write("\n".join([*(finding.line() for finding in findings), last]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
