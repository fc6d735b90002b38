"""Looks at a machine before, during or after set-up, and says what to do: `make doctor`.

Works when packages are missing or broken, which is when one needs it: at its top only the standard
library is imported, and torch and the others are tried in a process of their own. `look` collects
facts; every check turns facts into findings and asks nothing itself, so a test can give it any
machine. Findings name no secrets, and paths are shortened to ~.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import locale
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.paths import cache_dir, results_dir, root

OLDEST_PYTHON = (3, 11)
PROBE_SECONDS = 9  # for importing packages; all of them take 2 to 5 on two slow cores
ASK_SECONDS = 4  # for programs, and for the hub
GB = 1e9
# measured: .venv with torch for CPUs 2.2 GB, downloads and the model made from them 0.8 GB
SETUP_BYTES, CACHE_BYTES, RESULTS_BYTES = 2.5 * GB, 1 * GB, 0.3 * GB
RUN_BYTES = 2 * GB  # of one run with the embedded model, whose records say 1.7
PAIR_BYTES = 7.5 * GB  # of a machine on which `make reproduce` starts two runs side by side
IMPORTS = ("numpy", "safetensors", "torch", "transformers", "pandas", "matplotlib", "ipywidgets")
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
LAB_PARTS = ("@jupyter-widgets/jupyterlab-manager", "anywidget")
MARKS = {"ok": "\u2713 ok  ", "note": "\u00b7 note", "fix": "\u2717 fix "}
PROBE = """
import importlib, json, sys
found = {"failed": {}}
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        lines = str(error).strip().splitlines() or [""]
        found["failed"][name] = f"{type(error).__name__}: {lines[0]}"
if "torch" not in found["failed"]:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda
    found["threads"] = torch.get_num_threads()
    found["gpus"] = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            shape = torch.cuda.get_device_properties(number)
            found["gpus"].append([shape.name, shape.total_memory])
print(json.dumps(found))
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
        text = f"{MARKS[self.state]}  {self.what:<11} {self.found}"
        return f"{text}\n{'':20}-> {self.todo}" if self.todo else text


@dataclass(frozen=True)
class Folder:
    """A folder that is written to: bytes free there, and why it cannot be written, if so."""

    name: str
    free: int
    problem: str = ""


@dataclass(frozen=True)
class Facts:
    """What `look` has seen. None: not there, or it gave no answer."""

    python: tuple[int, ...] = (3, 11, 0)
    in_venv: bool = True  # this Python is that of .venv, or of an environment of conda or Colab
    venv: str = "there"  # "there", "missing" or "broken"
    outdated: bool = False  # what is to be installed has changed since it was
    wanted: dict[str, str] = field(default_factory=dict)  # package -> range
    pins: dict[str, str] = field(default_factory=dict)  # package -> exact version
    installed: dict[str, str] = field(default_factory=dict)  # package -> version
    probe: dict[str, Any] | None = None  # see PROBE
    probe_problem: str = ""
    smi: list[str] = field(default_factory=list)  # GPUs by nvidia-smi: name, memory, driver
    memory: int = 0  # bytes
    available: int | None = None  # bytes
    cores: int = 1
    threads: dict[str, str] = field(default_factory=dict)  # variables that limit threads
    cache: Folder = Folder("cache", 0)
    results: Folder = Folder("results", 0)
    project: Folder = Folder("the project's folder", 0)  # where .venv is made
    downloads: dict[str, str] = field(default_factory=dict)  # name -> "ok", "missing", "damaged"
    downloads_problem: str = ""
    deep: bool = False
    hub: str | None = None  # None: not asked; "" answered; otherwise why not
    token: bool = False
    browser: str | None = None
    playwright: bool = False
    git: str | None = None
    lab_parts: dict[str, str] = field(default_factory=dict)  # front-end -> version
    failed: list[str] = field(default_factory=list)  # PLAN/NOTEBOOK--NAME
    running: list[str] = field(default_factory=list)  # plans
    encoding: str = "utf-8"
    root_user: bool = False


# --- the checks ----------------------------------------------------------------------------


def check_python(facts: Facts) -> Iterator[Finding]:
    """The version, and whether it is the environment's."""
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < OLDEST_PYTHON:
        yield Finding(
            "fix",
            "python",
            f"{version}, and 3.11 or newer is needed",
            "install one and name it: make setup PYTHON=python3.12",
        )
    elif facts.in_venv:
        yield Finding("ok", "python", f"{version}, the environment's own")
    elif facts.venv == "there":
        todo = "make does: use make TARGET, or .venv/bin/python"
        yield Finding("note", "python", f"{version}, which is not that of .venv", todo)
    elif facts.venv == "broken":
        todo = "remove the folder .venv and run: make setup"
        yield Finding("fix", "python", "the Python in .venv does not start", todo)
    elif not missing(facts):
        yield Finding("ok", "python", f"{version}, with the packages and without .venv")
    else:
        yield Finding("fix", "python", f"{version}, and there is no .venv", "run: make setup")


def check_packages(facts: Facts) -> Iterator[Finding]:
    """Versions against the ranges of pyproject.toml, and against the pinned ones."""
    lacking = missing(facts)
    if unknown(facts):
        return
    if lacking:
        shown = ", ".join(lacking[:6]) + (" and more" if len(lacking) > 6 else "")
        yield Finding("fix", "packages", f"missing: {shown}", again("make setup"))
    outside = [
        f"{name} {facts.installed[name]} (needs {bounds})"
        for name, bounds in facts.wanted.items()
        if name in facts.installed and not satisfies(facts.installed[name], bounds)
    ]
    if outside:
        yield Finding("fix", "packages", "; ".join(outside), again("make setup"))
    if lacking or outside:
        return
    yield Finding("ok", "packages", f"{len(facts.wanted)} in their ranges")
    if facts.outdated:
        todo = "nothing: the next make installs it"
        yield Finding("note", "packages", "what is to be installed has changed since", todo)
    others = sorted(
        f"{name} {facts.installed[name]} for {pin}"
        for name, pin in facts.pins.items()
        if name in facts.wanted and facts.installed.get(name, pin).split("+")[0] != pin
    )
    if others:
        todo = "nothing, unless digits differ: the committed results were made with the latter"
        yield Finding("note", "packages", "other than the pinned: " + ", ".join(others), todo)


def check_imports(facts: Facts) -> Iterator[Finding]:
    """Packages that are there and still do not load."""
    if unknown(facts):
        return
    if facts.probe is None:
        slow = "seconds" in facts.probe_problem
        todo = "run make doctor again: the first time, or under load, it takes longer"
        todo = todo if slow else "remove the folder .venv and run: make setup"
        yield Finding("note" if slow else "fix", "imports", facts.probe_problem, todo)
        return
    for name, reason in facts.probe["failed"].items():
        if name in facts.installed:
            todo = f"reinstall it: .venv/bin/python -m pip install --force-reinstall {name}"
            yield Finding("fix", "imports", f"{name} does not load ({shorten(reason)})", todo)
    if not facts.probe["failed"]:
        yield Finding("ok", "imports", "the packages load")


def check_gpu(facts: Facts) -> Iterator[Finding]:
    """A GPU, and whether torch can use it."""
    probe = facts.probe or {}
    if probe.get("gpus"):
        for name, size in probe["gpus"]:
            yield Finding("ok", "gpu", f"{name}, {size / GB:.0f} GB, CUDA {probe['cuda']}")
    elif not facts.smi:
        yield Finding("ok", "gpu", "none: fine, everything runs on the CPU")
    elif "torch" not in probe:
        yield Finding("note", "gpu", f"{facts.smi[0]}; torch does not load", "see above")
    elif probe["cuda"] is None:
        todo = "to use it, install torch with CUDA into .venv; all runs on the CPU meanwhile"
        yield Finding("note", "gpu", f"{facts.smi[0]}; torch is built for CPUs", todo)
    else:
        found = f"{facts.smi[0]}; torch (CUDA {probe['cuda']}) cannot use it"
        todo = "renew its driver, or install a torch for an older CUDA; the CPU is used meanwhile"
        yield Finding("note", "gpu", found, todo)


def check_memory(facts: Facts) -> Iterator[Finding]:
    """Memory for the plan laptop, whose runs take about 2 GB each."""
    size = f"{facts.memory / GB:.1f} GB"
    if facts.available is not None:
        size += f", {facts.available / GB:.1f} GB of it free"
    room = facts.memory if facts.available is None else facts.available
    if room < RUN_BYTES:
        todo = "close other programs, or try PLAN=smoke, which takes less"
        yield Finding("fix", "memory", f"{size}: a run takes about 2 GB", todo)
    elif facts.memory >= PAIR_BYTES and room < 2 * RUN_BYTES:
        todo = "close other programs, or run: make reproduce JOBS=1"
        yield Finding("note", "memory", f"{size}: two runs side by side take 4 GB", todo)
    elif facts.memory < PAIR_BYTES:
        yield Finding("ok", "memory", f"{size}: one run at a time")
    else:
        yield Finding("ok", "memory", f"{size}: two runs of about 2 GB fit side by side")


def check_cores(facts: Facts) -> Iterator[Finding]:
    """Cores, and variables that keep torch from using them."""
    limits = ", ".join(f"{name}={value}" for name, value in sorted(facts.threads.items()))
    found = f"{facts.cores} for this process" + (f"; {limits}" if limits else "")
    numbers = [int(value) for value in facts.threads.values() if value.isdecimal()]
    if numbers and min(numbers) < facts.cores // 2:
        todo = "unset it to use all of them; runs keep what it says"
        yield Finding("note", "cores", found, todo)
    else:
        yield Finding("ok", "cores", found)


def check_disk(facts: Facts) -> Iterator[Finding]:
    """Room where downloads and results go; before set-up for the packages as well."""
    present = facts.downloads and all(state == "ok" for state in facts.downloads.values())
    move = "set {} to a folder on another disk"
    rows = [
        ("cache", facts.cache, 0 if present else CACHE_BYTES, move.format("PRUNING_CACHE")),
        ("results", facts.results, RESULTS_BYTES, move.format("PRUNING_RESULTS")),
    ]
    if missing(facts):
        rows.append(("set-up", facts.project, SETUP_BYTES, "put the project on another disk"))
    for what, folder, need, other in rows:
        free = f"{folder.free / GB:.1f} GB free in {folder.name}"
        if folder.problem:
            todo = f"make it writable, or {other}"
            yield Finding("fix", what, f"{folder.name}: {folder.problem}", todo)
        elif folder.free < need:
            todo = f"make room, or {other}"
            yield Finding("fix", what, f"{free}, {need / GB:.1f} GB are needed", todo)
        else:
            yield Finding("ok", what, f"{free}, writable")


def check_downloads(facts: Facts) -> Iterator[Finding]:
    """The pinned downloads: there, and with the right size or hash."""
    if facts.downloads_problem:
        if not unknown(facts):
            yield Finding("note", "downloads", facts.downloads_problem, "see above")
        return
    damaged = [name for name, state in facts.downloads.items() if state == "damaged"]
    absent = [name for name, state in facts.downloads.items() if state == "missing"]
    if damaged:
        todo = "run: make assets, which fetches them again"
        yield Finding("fix", "downloads", "damaged: " + ", ".join(damaged), todo)
    if absent:
        todo = "run once with a network: make assets (make reproduce does it too)"
        yield Finding("note", "downloads", "not there yet: " + ", ".join(absent), todo)
    if not damaged and not absent:
        how = "hashes are right" if facts.deep else "sizes are right (DEEP=1 compares hashes)"
        yield Finding("ok", "downloads", f"{', '.join(facts.downloads)}: {how}")


def check_hub(facts: Facts) -> Iterator[Finding]:
    """The hub of models, which only the plans for GPUs need."""
    token = "a token is set" if facts.token else "no token is set"
    if facts.hub is None:
        found = f"not asked; {token}; only plans t4 and paper need it (HUB=1 asks)"
        yield Finding("ok", "hub", found)
    elif facts.hub == "":
        yield Finding("ok", "hub", f"it answers; {token}")
    else:
        found = f"no access ({shorten(facts.hub)}); {token}"
        todo = "nothing, unless you want plans t4 or paper: only they need it"
        yield Finding("note", "hub", found, todo)


def check_tools(facts: Facts) -> Iterator[Finding]:
    """git, and a browser for the tests in one."""
    if facts.git:
        yield Finding("ok", "git", facts.git)
    else:
        todo = "install git; without it records do not say which commit made them"
        yield Finding("note", "git", "not found, or no answer", todo)
    if facts.browser:
        more = "" if facts.playwright else "; make test-ui installs playwright"
        yield Finding("ok", "browser", f"{facts.browser}{more}")
    else:
        todo = "only for make test-ui: install chromium, or set CHROMIUM to a Chromium or Chrome"
        yield Finding("note", "browser", "no Chromium found", todo)


def check_lab(facts: Facts) -> Iterator[Finding]:
    """JupyterLab, and the front-ends without which explorers stay blank."""
    have = facts.installed
    if "jupyterlab" not in have or "ipywidgets" not in have:
        return  # said under packages
    problems = []
    for part, package in zip(LAB_PARTS, ("jupyterlab_widgets", "anywidget")):  # noqa: B905 - 3.9
        version = facts.lab_parts.get(part)
        if version is None:
            problems.append((f"the front-end of {package} is missing", package))
        elif part == "anywidget" and version != have.get(package, version):
            problems.append((f"anywidget {have[package]} has front-end {version}", package))
    manager = facts.lab_parts.get(LAB_PARTS[0], "")
    fits = {"7": "3", "8": "5"}.get(have["ipywidgets"].split(".")[0])
    if manager and fits and manager.split(".")[0] != fits:
        found = f"ipywidgets {have['ipywidgets']} has front-end {manager}"
        problems.append((found, "ipywidgets jupyterlab_widgets"))
    for found, package in problems:
        todo = f".venv/bin/python -m pip install --force-reinstall {package}"
        yield Finding("fix", "jupyterlab", f"{found}: explorers stay blank", todo)
    if problems:
        return
    found = f"{have['jupyterlab']}, ipywidgets {have['ipywidgets']}, front-ends there"
    if facts.root_user:
        todo = "as root Lab wants: make lab LAB_ARGS=--allow-root"
        yield Finding("note", "jupyterlab", found, todo)
    else:
        yield Finding("ok", "jupyterlab", found)


def check_runs(facts: Facts) -> Iterator[Finding]:
    """Runs under way, and those that failed or were killed."""
    for plan in facts.running:
        yield Finding("note", "runs", f"plan {plan} is being run now", "wait, or stop it")
    failed = [name for name in facts.failed if name.split("/")[0] not in facts.running]
    if failed:
        shown = ", ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
        plan = failed[0].split("/")[0]
        todo = f"look into results/{plan}/runs/*.failed.ipynb; make reproduce PLAN={plan} goes on"
        yield Finding("note", "runs", f"failed or killed: {shown}", todo)
    if not failed and not facts.running:
        yield Finding("ok", "runs", "none failed, none under way")


def check_text(facts: Facts) -> Iterator[Finding]:
    """Whether the terminal can show what tables and messages hold."""
    if facts.encoding.lower().replace("-", "") == "utf8":
        yield Finding("ok", "text", "UTF-8")
    else:
        todo = "export LC_ALL=C.UTF-8 (or PYTHONUTF8=1), or signs such as ± and ρ cannot be shown"
        yield Finding("fix", "text", f"{facts.encoding}, not UTF-8", todo)


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    *(check_python, check_packages, check_imports, check_gpu, check_memory, check_cores),
    *(check_disk, check_downloads, check_hub, check_tools, check_lab, check_runs, check_text),
)


def examine(facts: Facts) -> list[Finding]:
    """All findings about these facts, in the order in which they are shown."""
    return [finding for check in CHECKS for finding in check(facts)]


def missing(facts: Facts) -> list[str]:
    """Wanted packages that are not installed."""
    return sorted(name for name in facts.wanted if name not in facts.installed)


def unknown(facts: Facts) -> bool:
    """Whether nothing can be said of packages: no environment, which is said once."""
    return not facts.wanted or (bool(missing(facts)) and not facts.in_venv)


def again(command: str) -> str:
    """What to do where make believes that it is done already."""
    return f"{command} (if it does nothing, remove .venv/.installed first)"


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version lies in a range such as ">=5.15,<5.25"; only >= and < are known."""
    for bound in filter(None, bounds.split(",")):
        sign, limit = re.match(r"\s*(>=|<)\s*(\S+)", bound).groups()
        if (release(version) < release(limit)) == (sign == ">="):
            return False
    return True


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, without zeros at the end."""
    numbers = [int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def shorten(text: str) -> str:
    """An error's text without paths and addresses, which may hold names and passwords."""
    text = re.sub(r"\b\w+://\S+", "an address", text)
    text = re.sub(r"(?<![\w.])(?:/[\w.+@-]+){2,}", "a file", text)
    return text[:120]


# --- looking -------------------------------------------------------------------------------


def look(*, deep: bool = False, hub: bool = False) -> Facts:
    """The facts of this machine; asks the hub only if told so, and hashes downloads only if `deep`.

    Packages are tried while the rest is looked at.
    """
    child = _start_probe()
    wanted, pins = _wanted()
    downloads, downloads_problem = _downloads(deep)
    facts = {
        **{"python": tuple(sys.version_info[:3]), "in_venv": _in_venv(), "venv": _venv()},
        **{"outdated": _outdated(), "wanted": wanted, "pins": pins, "installed": _installed()},
        **{"smi": _smi(), "memory": _memory(), "available": _available(), "cores": _cores()},
        "threads": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
        "cache": _folder(cache_dir(), "PRUNING_CACHE"),
        "results": _folder(results_dir(""), "PRUNING_RESULTS"),
        "project": _folder(root(), ""),
        **{"downloads": downloads, "downloads_problem": downloads_problem, "deep": deep},
        **{"hub": _hub() if hub else None, "token": _token(), "browser": _browser()},
        **{"git": _git(), "lab_parts": _lab_parts()},
        **{"failed": _failed(), "running": running_plans()},
        "encoding": _encoding(),
        "root_user": hasattr(os, "geteuid") and os.geteuid() == 0,
    }
    facts["playwright"] = "playwright" in facts["installed"]
    facts["probe"], facts["probe_problem"] = _end_probe(child)
    return Facts(**facts)


def _start_probe() -> subprocess.Popen[str]:
    """Import the packages in a process of its own: one that crashes or hangs does no harm."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROBE, *IMPORTS]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace")


def _end_probe(child: subprocess.Popen[str]) -> tuple[dict[str, Any] | None, str]:
    """What the probe found, or why it found nothing."""
    try:
        said, _ = child.communicate(timeout=PROBE_SECONDS)
        problem = f"Python ended with code {child.returncode} while it loaded"
    except subprocess.TimeoutExpired:
        child.kill()
        said, _ = child.communicate()
        problem = f"not done within {PROBE_SECONDS} seconds, when Python loaded"
    last = (said.strip().splitlines() or ["packages"])[-1]
    try:
        return json.loads(last), ""
    except ValueError:  # the name of the package that it was at
        return None, f"{problem} {last}"


def _in_venv() -> bool:
    """Whether this is the Python of .venv."""
    return Path(sys.prefix).resolve() == (root() / ".venv").resolve() or _conda()


def _conda() -> bool:
    """Whether this is the Python of an environment of conda that was made for this project."""
    return os.environ.get("CONDA_DEFAULT_ENV") == "pruning-reproduction"


def _venv() -> str:
    """The state of .venv: there, missing or broken."""
    folder = root() / ".venv"
    if not folder.exists():
        return "missing"
    if Path(sys.prefix).resolve() == folder.resolve():
        return "there"
    return "there" if _ask(str(folder / "bin" / "python"), "-c", "print(1)") == "1" else "broken"


def _outdated() -> bool:
    """Whether make would install again."""
    with contextlib.suppress(OSError):
        stamp = (root() / ".venv" / ".installed").stat().st_mtime
        files = ("pyproject.toml", "constraints.txt")
        return any((root() / name).stat().st_mtime > stamp for name in files)
    return False


def _wanted() -> tuple[dict[str, str], dict[str, str]]:
    """Ranges of pyproject.toml, those for the tests among them, and the versions pinned."""
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", _read("constraints.txt")))
    try:
        import tomllib
    except ImportError:  # Python 3.10 and older, which is said elsewhere
        return {}, _normal(pins)
    with contextlib.suppress(ValueError, KeyError):
        project = tomllib.loads(_read("pyproject.toml"))["project"]
        lines = project["dependencies"] + project["optional-dependencies"]["dev"]
        return _normal(dict(re.findall(r"^([\w.-]+)\s*(.*)$", line)[0] for line in lines)), _normal(
            pins
        )
    return {}, _normal(pins)


def _read(name: str) -> str:
    """A file of the project, or nothing."""
    with contextlib.suppress(OSError):
        return (root() / name).read_text(encoding="utf-8")
    return ""


def _normal(values: dict[str, str]) -> dict[str, str]:
    """The same by names in one spelling."""
    return {re.sub(r"[-_.]+", "-", name).lower(): value for name, value in values.items()}


def _installed() -> dict[str, str]:
    """The packages that this Python has, with their versions."""
    found = {}
    for package in importlib.metadata.distributions():
        name, version = package.metadata["Name"], package.metadata["Version"]
        if name and version:  # an installation that broke off has neither
            found.setdefault(name, version)
    return _normal(found)


def _ask(*command: str) -> str | None:
    """The first line that a program prints, or None if it gives no answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def _smi() -> list[str]:
    """GPUs by the driver's own program."""
    if shutil.which("nvidia-smi") is None:
        return []
    line = _ask(
        "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"
    )
    if line is None:
        return ["nvidia-smi is here and gives no answer"]
    name, memory, driver = (line.split(", ") + ["?", "?"])[:3]
    return [f"{name}, {memory}, driver {driver}"]


def _git() -> str | None:
    """git's version."""
    return (_ask("git", "--version") or "").replace("git version ", "") or None


def _memory() -> int:
    """Bytes of memory, or what a container may use of it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
        return size
    return 0


def _available() -> int | None:
    """Bytes of memory that are free or can be freed; only Linux says."""
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found = re.search(r"MemAvailable:\s+(\d+) kB", text)
        return min(int(found[1]) * 1024, _memory()) if found else None
    return None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(path: Path, variable: str) -> Folder:
    """Room and rights where a folder is, or will be made."""
    name = f"the folder that {variable} names"
    if not os.environ.get(variable, "").strip():
        name = _home(path)
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        return Folder(name, shutil.disk_usage(place).free)
    except OSError as error:
        return Folder(name, 0, f"cannot be written ({error.strerror})")


def _home(path: Path) -> str:
    """A path from the project's root, or from the home folder; of others only the last part."""
    if path == root():
        return "the project's folder"
    for base, prefix in ((root(), ""), (Path.home(), "~/")):
        with contextlib.suppress(ValueError):
            return prefix + path.relative_to(base).as_posix()
    return path.name


def _downloads(deep: bool) -> tuple[dict[str, str], str]:
    """The state of each pinned download and of the model made of one, or why it is not known."""
    try:
        from helpers.assets import ASSETS
    except ImportError as error:  # it needs safetensors
        return {}, f"not looked at ({shorten(str(error))})"
    found = {}
    for name, asset in ASSETS.items():
        folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
        sizes = _sizes(cache_dir() / "downloads" / asset.wheel)
        states = [
            _state(folder / member, sha256 if deep else None, sizes.get(member))
            for member, sha256 in asset.members.items()
        ]
        found[name] = _worst(states)
    ((member, sha256),) = ASSETS["model"].members.items()
    folder = cache_dir() / "models" / f"{Path(member).stem}-{sha256[:12]}-float32"
    found["model as float32"] = _converted(folder, deep)
    return found, ""


def _worst(states: list[str]) -> str:
    """The worst of some states."""
    return next((state for state in ("damaged", "missing") if state in states), "ok")


def _sizes(wheel: Path) -> dict[str, int]:
    """Sizes of the files in a wheel that was downloaded; empty where it is not there."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {member.filename: member.file_size for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile):
        return {}


def _state(path: Path, sha256: str | None, size: int | None) -> str:
    """Whether a file is there with this size and hash; what is None is not compared."""
    try:
        found = path.stat().st_size
        if found == 0 or (size is not None and found != size):
            return "damaged"
        return "damaged" if sha256 is not None and _digest(path) != sha256 else "ok"
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "damaged"


def _converted(folder: Path, deep: bool) -> str:
    """The state of the model that was made from the download."""
    if not folder.exists():
        return "missing"
    weights = folder / "model.safetensors"
    try:
        hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        with weights.open("rb") as stream:  # the file says how long it is
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, 1 << 24)))
        ends = [value["data_offsets"][1] for name, value in header.items() if name[0] != "_"]
        sizes = {weights.name: 8 + length + max(ends)}
        states = [
            _state(folder / name, sha256 if deep else None, sizes.get(name))
            for name, sha256 in hashes.items()
        ]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return "damaged"
    return "damaged" if _worst(states) != "ok" else "ok"


def _digest(path: Path) -> str:
    """The sha256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def _hub() -> str:
    """Why the hub does not answer, or nothing if it does."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    try:
        from huggingface_hub.constants import ENDPOINT
    except ImportError:
        return "huggingface_hub does not load"
    try:
        request = urllib.request.Request(ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=ASK_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""  # it does not like the question, and answers
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _token() -> bool:
    """Whether a token for the hub is set; it is not read."""
    if any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")):
        return True
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").is_file()


def _browser() -> str | None:
    """A browser for the tests in one: its name."""
    if given := os.environ.get("CHROMIUM"):
        return "the one that CHROMIUM names" if shutil.which(given) else None
    for name in BROWSERS:
        if shutil.which(name):
            return name
    own = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    return "playwright's own" if any(own.glob("chromium*")) else None


def _lab_parts() -> dict[str, str]:
    """Versions of the front-ends that JupyterLab will load."""
    found = {}
    for part in LAB_PARTS:
        path = Path(sys.prefix) / "share" / "jupyter" / "labextensions" / part / "package.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            found[part] = json.loads(path.read_text(encoding="utf-8"))["version"]
    return found


def _failed() -> list[str]:
    """Runs whose notebook was left as it failed, or as it was killed: PLAN/NOTEBOOK--NAME."""
    with contextlib.suppress(OSError):
        paths = results_dir("").glob("*/runs/*.failed.ipynb")
        return sorted(
            f"{path.parent.parent.name}/{path.name[: -len('.failed.ipynb')]}" for path in paths
        )
    return []


def running_plans() -> list[str]:
    """Plans that a runner holds at this moment."""
    try:
        import fcntl
    except ImportError:  # Windows
        return []
    held = []
    for path in results_dir("").glob("*/.lock"):
        with contextlib.suppress(OSError), path.open(encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.parent.name)
    return sorted(held)


def _encoding() -> str:
    """The encoding of what is printed, if it is not that of files."""
    printed = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printed if "utf" not in printed.lower() else locale.getpreferredencoding(False)


# --- showing -------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Show the findings; the exit code is 1 if something must be mended."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="compare the hashes of downloads")
    parser.add_argument("--hub", action="store_true", help="ask the hub of models")
    options = parser.parse_args(arguments)
    findings = examine(look(deep=options.deep, hub=options.hub))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    wrong = sum(finding.state == "fix" for finding in findings)
    last = f"{wrong or 'nothing'} to fix; a note is for your information"
    # at once, so that a reader who has seen enough breaks no pipe
    sys.stdout.write("\n".join([*(finding.line() for finding in findings), last]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
