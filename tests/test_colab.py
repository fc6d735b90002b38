"""The set-up on Colab, with modules that stand for Colab's own; nothing here runs on Colab."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.errors import RunError, StorageError
from helpers.machine import colab
from helpers.machine.colab import PACKAGE, check_installed, finish, prepare
from helpers.machine.drive import Keeper
from helpers.machine.estimate import SHAPES, machine_named
from helpers.machine.memory import Room
from helpers.machine.presets import needs_of
from helpers.paths import replace_file, root

T4 = Room(11 * 10**9, 12_700_000_000, "Tesla T4", 15 * 10**9, 15_800_000_000)


class MessageError(Exception):
    """As Colab's own: an error of no known kind."""


class Drive:
    """What stands for `google.colab.drive`: a folder that appears when it is mounted."""

    def __init__(self, mount: Path) -> None:
        self.place, self.error, self.flushed, self.mounts = mount, None, 0, 0

    def mount(self, place: str) -> None:
        self.mounts += 1
        if self.error is not None:
            raise self.error
        assert place == str(self.place)
        (self.place / "MyDrive").mkdir(parents=True, exist_ok=True)

    def flush_and_unmount(self) -> None:
        if self.error is not None:
            raise self.error
        self.flushed += 1


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    """A kernel on Colab with a T4, results in a folder of its own, and a Drive."""
    found = Drive(tmp_path / "mnt")
    shown = SimpleNamespace(enabled=0)
    output = ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: setattr(shown, "enabled", shown.enabled + 1)
    message = ModuleType("google.colab._message")
    message.MessageError = MessageError
    package = ModuleType("google.colab")
    for name, part in (("", package), (".drive", found), (".output", output)):
        monkeypatch.setitem(sys.modules, f"google.colab{name}", part)
    monkeypatch.setitem(sys.modules, "google.colab._message", message)
    monkeypatch.setattr(colab, "MOUNT", found.place)
    monkeypatch.setattr(colab, "this_machine", lambda: machine_named("t4"))
    monkeypatch.setattr(colab, "room", lambda: T4)
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    keepers = []

    def remembered(*folders: Path) -> Keeper:
        keepers.append(Keeper(*folders))
        return keepers[-1]

    monkeypatch.setattr(colab, "Keeper", remembered)
    found.shown = shown
    before = Path.cwd()
    yield found
    os.chdir(before)
    for keeper in keepers:
        keeper.stop()


# --- the first cell ---------------------------------------------------------------------------


def test_prepare_goes_to_the_project_and_names_what_fits(drive: Drive, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    prepared = prepare()
    assert Path.cwd() == root() and drive.shown.enabled == 1 and drive.mounts == 0
    text = str(prepared)
    for words in ("Tesla T4 with 15.0 of 15.8 GB free", "12.7 GB RAM", "estimates", "TinyLlama"):
        assert words in text
    assert "go when this machine goes" in text  # results are not kept
    page = prepared._repr_html_()
    assert page.count("<tr>") == 1 + len(prepared.rows) and "04_prune_model" in page
    prepare()  # a second time, or in a second notebook


def test_outside_colab_it_says_the_same_without_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colab, "this_machine", lambda: machine_named("laptop"))
    before = Path.cwd()
    try:
        text = str(prepare())
    finally:
        os.chdir(before)
    assert "own parameters are for this machine" in text and "drive" not in text


def test_the_script_of_the_first_cell(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a kernel that started before the package was installed, and so cannot import it."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".") != root()])
    os.chdir(tmp_path)
    runpy.run_path(str(root() / "colab_setup.py"), {"drive": True})
    assert sys.path[0] == str(root()) and Path.cwd() == root()
    assert drive.mounts == 1 and "are kept" in str(shown[0])
    runpy.run_path(str(root() / "colab_setup.py"))
    assert drive.mounts == 1 and sys.path.count(str(root())) == 1


# --- installation -----------------------------------------------------------------------------


def test_an_installation_that_pip_gave_up_is_found(
    monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    check_installed()
    wanted = ["numpy>=2.0", "no-such-package>=1", 'distributed>=1; extra == "cluster"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    with one_line_error(RunError, "no-such-package is missing", "again"):
        check_installed()

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    with one_line_error(RunError, PACKAGE, "not installed"):
        check_installed()


def test_a_package_replaced_under_a_running_kernel_is_found(
    monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    old = ModuleType("pandas")
    old.__version__ = "1.0"
    monkeypatch.setitem(sys.modules, "pandas", old)
    with one_line_error(RunError, "pandas 1.0 is loaded", "Restart session"):
        check_installed()
    old.__version__ = importlib.metadata.version("pandas") + "+cu128"  # a build's own label
    check_installed()


def test_what_colab_has_is_what_we_accept() -> None:
    """Then pip installs beside Colab's own packages, and replaces none."""
    text = (root() / "tests" / "colab-constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    declared = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, declared["dependencies"])}
    assert {"torch", "numpy", "pandas", "transformers", "datasets", "ipywidgets"} <= set(pins)
    for name in set(wanted) & set(pins):
        assert wanted[name].specifier.contains(pins[name]), f"{name} {pins[name]}"


def test_the_page_gives_the_estimates_of_the_code() -> None:
    page = (root() / "docs" / "colab.md").read_text(encoding="utf-8")
    asked = {"sequences": 64, "length": 2048, "window": 2048, "windows": 40}
    machine = machine_named("t4")
    rows = re.findall(r"^\| (\S+) \| (float\d+) \| (.+) \|$", page, flags=re.MULTILINE)
    models = {name.split("/")[-1]: name for name in SHAPES}
    assert len(rows) == 4
    for name, dtype, figures in rows:
        parameters = asked | {"model": models[name], "dtype": dtype}
        needs = needs_of("04_prune_model", parameters, machine)
        sizes = [f"{size / 1e9:.1f} GB" for size in (needs.memory, needs.host, needs.disk)]
        minutes = f"{max(1, round(needs.seconds / 60))} min"
        assert figures.split(" | ") == [*sizes, minutes], name


# --- Drive ------------------------------------------------------------------------------------


def test_results_survive_the_machine(drive: Drive, tmp_path: Path, monkeypatch) -> None:
    here = tmp_path / "results"
    replace_file(here / "t4" / "records" / "a.json", "1")
    prepared = prepare(drive=True)
    kept = drive.place / "MyDrive" / colab.FOLDER
    assert (kept / "t4" / "records" / "a.json").read_text() == "1"  # at once, not in a minute
    assert "0 files brought back" in str(prepared)
    assert prepare(drive=True).keeper is prepared.keeper
    replace_file(here / "t4" / "records" / "b.json", "2")
    assert finish() == 1 and drive.flushed == 1

    # a new machine
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "new"))
    again = prepare(drive=True)
    assert "2 files brought back" in str(again)
    assert (tmp_path / "new" / "t4" / "records" / "b.json").read_text() == "2"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mount failed"),
        MessageError("Error: credential propagation was unsuccessful"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
    ],
    ids=["failed", "denied", "gone"],
)
def test_a_drive_that_cannot_be_mounted(drive: Drive, error: Exception, one_line_error) -> None:
    drive.error = error
    with one_line_error(StorageError, "not mounted", str(error), "drive=False"):
        prepare(drive=True)


def test_a_drive_without_its_folder(drive: Drive, monkeypatch, one_line_error) -> None:
    monkeypatch.setattr(Drive, "mount", lambda self, place: None)
    with one_line_error(StorageError, "MyDrive", "run the cell again"):
        prepare(drive=True)


def test_a_drive_that_is_full(drive: Drive, monkeypatch, one_line_error) -> None:
    def full(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with one_line_error(StorageError, "No space left", "make room", "drive=False"):
        prepare(drive=True)


def test_a_drive_that_forgets_what_is_written(drive: Drive, monkeypatch, one_line_error) -> None:
    whole = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **o: "" if self.name == ".probe" else whole(self, **o)
    )
    with one_line_error(StorageError, "does not give back"):
        prepare(drive=True)


def test_an_upload_that_fails_is_not_taken_for_done(drive: Drive, one_line_error) -> None:
    prepare(drive=True)
    drive.error = ValueError("flush_and_unmount failed")
    with one_line_error(StorageError, "did not upload", "try again"):
        finish()


def test_drive_is_for_colab_only(one_line_error) -> None:
    with one_line_error(StorageError, "Colab only", "drive=False"):
        prepare(drive=True)
    with one_line_error(StorageError, "Colab only"):
        finish()
