"""What the first cell of a notebook does on Google Colab, and what a student can ask for there.

`prepare` checks that what was installed is what runs, lets explorers show, tells what the machine
has room for, and with `drive=True` keeps results on Google Drive: a new machine after a disconnect
has them again, and `make reproduce` or `prune_checkpoint` goes on with what is missing.
"""

from __future__ import annotations

import functools
import html
import importlib
import importlib.metadata
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from helpers.errors import RunError, StorageError
from helpers.machine.drive import Keeper
from helpers.machine.estimate import Machine, this_machine
from helpers.machine.memory import Room, room
from helpers.machine.presets import suggestions
from helpers.paths import results_dir, root

PACKAGE = "pruning-reproduction"
MOUNT = Path("/content/drive")
FOLDER = "pruning-reproduction"  # in the student's Drive
# imported before the set-up cell, where a new version on the disk would not be the one that runs
WATCHED = ("numpy", "pandas", "torch", "transformers", "ipywidgets", "matplotlib")


def on_colab() -> bool:
    """Whether this is a kernel of Google Colab."""
    return "google.colab" in sys.modules


@dataclass
class Prepared:
    """What `prepare` found and did; shown as text, and in a notebook as a table."""

    machine: Machine
    free: Room
    rows: list[dict[str, str]]
    lines: list[str] = field(default_factory=list)
    keeper: Keeper | None = None

    def __str__(self) -> str:
        """Lines of text."""
        rows = [" | ".join(row.values()) for row in self.rows]
        return "\n".join([*self.lines, " | ".join(self.rows[0]), *rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.rows[0])
        rows = [
            "".join(
                f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row.values()
            )
            for row in self.rows
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"{lines}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def prepare(*, drive: bool = False) -> Prepared:
    """Make a kernel ready; calling it again is harmless.

    Args: drive, keep results in the folder `pruning-reproduction` of your Google Drive, after
    bringing back those that are there.

    Raises RunError (the installation is not complete, or the kernel must be restarted) and
    StorageError (not on Colab, Drive not allowed, full, or not there).
    """
    check_installed()
    os.chdir(root())
    found, free = this_machine(), room()
    prepared = Prepared(found, free, suggestions(found), [_machine_line(found, free)])
    if on_colab():
        # explorers made with anywidget need it
        importlib.import_module("google.colab.output").enable_custom_widget_manager()
    if drive:
        prepared.keeper, line = keep_on_drive()
        prepared.lines.append(line)
    elif on_colab():
        prepared.lines.append(
            'Results go when this machine goes: "drive": True in this cell keeps them.'
        )
    prepared.lines.append(_advice_line(prepared.rows))
    return prepared


def _machine_line(machine: Machine, free: Room) -> str:
    """What the machine has."""
    gpu = "no GPU"
    if free.gpu is not None:
        gpu = f"{free.gpu} with {free.gpu_free / 1e9:.1f} of {free.gpu_total / 1e9:.1f} GB free"
    ram = f"{free.ram_free / 1e9:.1f} of {free.ram_total / 1e9:.1f} GB RAM free"
    return f"This machine: {gpu}, {ram}. Times and memory below are estimates ({machine.note})."


def _advice_line(rows: list[dict[str, str]]) -> str:
    """What a reader can do with the table."""
    if all("(as it is)" in row["model"] for row in rows):
        return "The notebooks' own parameters are for this machine."
    return "It has room for a larger model than the notebooks' own: " + HOW_TO_TAKE


HOW_TO_TAKE = 'in the parameters cell, preset = "auto" takes what the table names.'


# --- installation --------------------------------------------------------------------------


def check_installed() -> None:
    """Raise RunError unless what the package needs is there, and is what this kernel has loaded."""
    try:
        wanted = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise RunError(
            f"{PACKAGE} is not installed: see what pip said above, and run the set-up cell again"
        ) from error
    lacking = [line for line in map(_lacks, wanted) if line]
    if lacking:
        raise RunError(
            f"the installation is not complete ({'; '.join(lacking)}): see what pip said above, "
            "and run the set-up cell again"
        )
    stale = [line for line in map(_stale, WATCHED) if line]
    if stale:
        raise RunError(
            f"pip has replaced what this kernel had loaded ({'; '.join(stale)}): choose Runtime > "
            "Restart session, then run the notebook from its first cell"
        )


def _lacks(line: str) -> str | None:
    """What is missing of one requirement; pip installs all of them in their ranges, or none."""
    if "extra ==" in line:
        return None
    name = re.match(r"[A-Za-z0-9._-]+", line)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return None


def _stale(name: str) -> str | None:
    """Which loaded module is not the version on the disk, None if it is or is not loaded."""
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if loaded is None:
        return None
    installed = importlib.metadata.version(name)
    # torch's metadata may leave out the label of its build
    same = str(loaded).partition("+")[0] == installed.partition("+")[0]
    return None if same else f"{name} {loaded} is loaded, {installed} installed"


# --- Google Drive --------------------------------------------------------------------------


def keep_on_drive() -> tuple[Keeper, str]:
    """Mount Drive, bring back the results that are there, keep new ones; a line that says so.

    Raises StorageError.
    """
    target = _mounted() / FOLDER
    _probe(target)
    keeper = _keeper(results_dir(""), target)
    count = keeper.bring_back()
    keeper.copy()
    keeper.start()
    return keeper, (
        f"Results are kept in the folder {FOLDER} of your Drive ({count} files brought back): a "
        "copy follows each finished run within a minute, and Drive uploads it in its own time."
    )


@functools.lru_cache(maxsize=4)
def _keeper(source: Path, target: Path) -> Keeper:
    """One keeper for two folders in a process, however often it is asked for."""
    return Keeper(source, target)


def _mounted() -> Path:
    """The student's Drive as a folder. Raises StorageError."""
    if not on_colab():
        raise StorageError("Google Drive can be mounted on Colab only: use drive=False here")
    try:
        importlib.import_module("google.colab.drive").mount(str(MOUNT))
    except _drive_errors() as error:
        raise StorageError(
            f"Google Drive was not mounted ({type(error).__name__}: {error}): run the cell again "
            "and allow access for the account that you use in Colab, or use drive=False"
        ) from error
    folder = MOUNT / "MyDrive"
    if not folder.is_dir():
        raise StorageError(f"{folder} is not there after mounting: run the cell again")
    return folder


def _drive_errors() -> tuple[type[Exception], ...]:
    """What Colab's drive module raises; that is not documented, so this is read from its source."""
    own = getattr(sys.modules.get("google.colab._message"), "MessageError", ValueError)
    waiting = getattr(sys.modules.get("pexpect.exceptions"), "ExceptionPexpect", ValueError)
    return OSError, ValueError, RuntimeError, own, waiting


def _probe(folder: Path) -> None:
    """Raise StorageError unless a file can be written there and read again."""
    probe = folder / ".probe"
    try:
        folder.mkdir(exist_ok=True)
        probe.write_text("kept", encoding="utf-8")
        whole = probe.read_text(encoding="utf-8") == "kept"
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror or error}): make room in your Drive, or "
            "use drive=False"
        ) from error
    if not whole:
        raise StorageError(f"{folder} does not give back what is written: make room in your Drive")


def finish() -> int:
    """Copy what is left and wait until Drive has uploaded everything; call it before you leave.

    Returns how many files were copied. Drive is unmounted: `prepare(drive=True)` mounts it again.
    Raises StorageError.
    """
    if not on_colab():
        raise StorageError("Google Drive is mounted on Colab only: there is nothing to finish")
    keeper = _keeper(results_dir(""), MOUNT / "MyDrive" / FOLDER)
    keeper.stop()
    count = keeper.copy()
    try:
        importlib.import_module("google.colab.drive").flush_and_unmount()
    except _drive_errors() as error:
        raise StorageError(
            f"Drive did not upload everything ({error}): leave this notebook open and try again"
        ) from error
    return count
