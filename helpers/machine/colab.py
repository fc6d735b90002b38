"""Google Colab: what its set-up says, what a kernel needs there, and results on Google Drive.

docs/colab.md is the page for readers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from helpers.errors import FileError, RunError, first_line
from helpers.machine.drive import DriveCopier, storage_errors
from helpers.machine.estimates import gigabytes
from helpers.machine.memory import free_memory
from helpers.machine.presets import preset_that_fits, read_preset
from helpers.paths import results_dir

MOUNT = Path("/content/drive")
FOLDER = "pruning-reproduction"  # in the reader's Drive
# may be loaded before the set-up: then a version that pip installs is not the one that runs
WATCHED = ("numpy", "pandas", "torch", "transformers", "ipywidgets", "matplotlib")

_copier = functools.cache(DriveCopier)  # one in a process, whose thread the next call can stop


def describe_colab() -> str:
    """What the set-up shows: what the machine has, what fits it, how to save results."""
    memory, gpu = free_memory(), "no GPU"
    if memory.gpu is not None:
        free = gigabytes(memory.gpu_free)
        gpu = f"{memory.gpu} with {free} of {gigabytes(memory.gpu_total)} free"
    advice = "The notebooks' own parameters are for this machine."
    if preset := preset_that_fits(memory):
        model = read_preset(preset)["04_prune_model"]["model"]
        advice = f'In the parameters cell, preset = "auto" takes a larger model, such as {model}.'
    return (
        f"Ready. This machine: {gpu}, {gigabytes(memory.ram_free)} of "
        f"{gigabytes(memory.ram_total)} RAM free. {advice}\n"
        "Results go when this machine goes. To copy them to your Google Drive, run in a cell: "
        "from helpers.machine import use_drive; use_drive()"
    )


def prepare_kernel() -> None:
    """On Colab, let widgets of other packages show; elsewhere nothing.

    Raises RunError if pip has replaced a package that this kernel had loaded already.
    """
    if "google.colab" not in sys.modules:
        return
    for name in WATCHED:
        loaded, installed = sys.modules.get(name), importlib.metadata.version(name)
        # the label of a build, as in 2.9.0+cu128, is not always in both
        if loaded and loaded.__version__.partition("+")[0] != installed.partition("+")[0]:
            raise RunError(
                f"{name} {loaded.__version__} is loaded and pip has installed {installed}: choose "
                "Runtime > Restart session, then run the notebook from its first cell"
            )
    from google.colab import output

    output.enable_custom_widget_manager()


def use_drive() -> str:
    """Bring back the results that are on Google Drive and copy new ones there from now on.

    Returns a line that says so. Raises FileError (not on Colab; Drive not allowed, or full).
    """
    with _drive("Google Drive was not mounted", "run the cell again and allow access") as drive:
        drive.mount(str(MOUNT))
    target = MOUNT / "MyDrive" / FOLDER
    with storage_errors(target.parent):
        target.mkdir(exist_ok=True)
        (target / ".probe").write_text("can this be written?", encoding="utf-8")
        (target / ".probe").unlink()
    copier = _copier(results_dir(""), target)
    copier.stop()  # of an earlier call
    count = copier.bring_back()
    copier.copy()
    copier.start()
    return (
        f"Results are copied to the folder {FOLDER} of your Drive ({count} files brought back): "
        "within a minute of a finished run, and Drive uploads them in its own time."
    )


def finish() -> int:
    """Copy what is left and wait until Drive has uploaded everything; call it before you leave.

    Returns how many files were copied. Drive is unmounted: `use_drive` mounts it again.
    Raises FileError.
    """
    with _drive("Drive did not upload everything", "leave this page open, try again") as drive:
        copier = _copier(results_dir(""), MOUNT / "MyDrive" / FOLDER)
        copier.stop()
        count = copier.copy()
        drive.flush_and_unmount()
    return count


@contextlib.contextmanager
def _drive(problem: str, todo: str) -> Iterator[ModuleType]:
    """Colab's module for Drive; its errors, which are not documented, become a FileError."""
    if "google.colab" not in sys.modules:
        raise FileError("Google Drive can be mounted on Colab only")
    from google.colab import drive

    # read from its source
    own = getattr(sys.modules.get("google.colab._message"), "MessageError", ValueError)
    waiting = getattr(sys.modules.get("pexpect.exceptions"), "ExceptionPexpect", ValueError)
    try:
        yield drive
    except (OSError, ValueError, RuntimeError, own, waiting) as error:
        raise FileError(f"{problem} ({first_line(error)}): {todo}") from error
