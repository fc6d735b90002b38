"""The set-up on Colab, with modules that stand for Colab's own; nothing here runs on Colab."""

from __future__ import annotations

import errno
import importlib.metadata
import re
import runpy
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.errors import FileError, RunError
from helpers.machine import colab, describe_colab, finish, prepare_kernel, use_drive
from helpers.machine.drive import DriveCopier
from helpers.machine.memory import Memory
from helpers.paths import notebooks_dir, replace_file, root
from helpers.runner.parameters import code_cells


class MessageError(Exception):
    """As Colab's own: an error of no known kind."""


class Drive(ModuleType):
    """What stands for `google.colab.drive`: a folder that appears when it is mounted."""

    error: Exception | None = None
    flushed = 0

    def mount(self, mount_point: str) -> None:
        if self.error is not None:
            raise self.error
        (Path(mount_point) / "MyDrive").mkdir(parents=True, exist_ok=True)

    def flush_and_unmount(self) -> None:
        if self.error is not None:
            raise self.error
        self.flushed += 1


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    """A kernel on Colab, with results in a folder of its own and a Drive."""
    names = ("google.colab", "google.colab.output", "google.colab._message")
    modules = {name: ModuleType(name) for name in names} | {"google.colab.drive": Drive("drive")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["google.colab._message"].MessageError = MessageError
    modules["google.colab.output"].enable_custom_widget_manager = lambda: None
    monkeypatch.setattr(colab, "MOUNT", tmp_path / "mnt")
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(DriveCopier, "start", lambda self: None)  # no threads
    return modules["google.colab.drive"]


def test_the_first_cell_clones_once_and_sets_up_on_colab_only(tmp_path: Path) -> None:
    """The cell's line in a shell whose git and python say what they are asked."""
    (tour, *_) = code_cells(notebooks_dir() / "00_start_here.ipynb")
    for name in ("git", "python"):
        program = replace_file(
            tmp_path / name, f'#!/bin/sh\necho {name} "$@"\n[ {name} = python ] || mkdir repo\n'
        )
        program.chmod(0o755)

    def run_cell(**variables: str) -> list[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
        options = dict(shell=True, env=environment, text=True, stderr=subprocess.STDOUT)
        line = tour[0].removeprefix("!").replace("/content", str(tmp_path))
        return subprocess.check_output(line, **options).splitlines()

    assert run_cell() == []  # elsewhere
    clone, *rest = run_cell(COLAB_RELEASE_TAG="r1")
    assert re.match(r"git clone -q https://github.com/[\w-]+/pruning-reproduction repo", clone)
    assert rest == run_cell(COLAB_RELEASE_TAG="r1") == ["python repo/colab_setup.py"]
    (tmp_path / "repo").rmdir()
    replace_file(tmp_path / "git", "#!/bin/sh\nexit 128\n").chmod(0o755)  # there is no such owner
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_cell(COLAB_RELEASE_TAG="r1")
    assert caught.value.output.startswith("Put your GitHub name into the address")
    assert "python" not in caught.value.output


def test_the_script_makes_the_package_visible_to_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command) or done)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for _ in range(2):  # in a second notebook too
        runpy.run_path(str(root() / "colab_setup.py"), run_name="__main__")
    assert asked[0][1:] == ["-m", "pip", "install", "-q", "-e", str(root())]
    assert (tmp_path / "helpers").resolve() == root() / "helpers"
    assert "Ready. This machine: no GPU" in capsys.readouterr().out
    done.returncode = 1
    with pytest.raises(SystemExit, match="pip's reason is above"):
        runpy.run_path(str(root() / "colab_setup.py"), run_name="__main__")


def test_the_set_up_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    t4 = Memory(11 * 10**9, 12_700_000_000, "Tesla T4", 15 * 10**9, 15_800_000_000)
    monkeypatch.setattr(colab, "free_memory", lambda: t4)
    for words in ("Tesla T4 with 15 GB of 16 GB free", "13 GB RAM", "TinyLlama", "use_drive()"):
        assert words in describe_colab()
    monkeypatch.setattr(colab, "free_memory", lambda: Memory(10**10, 10**10))
    assert "own parameters are for this machine" in describe_colab()


def test_a_package_replaced_under_a_running_kernel_is_found(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, one_line_error: Callable
) -> None:
    enabled, old = [], ModuleType("pandas")
    output = sys.modules["google.colab.output"]
    output.enable_custom_widget_manager = lambda: enabled.append("widgets")
    monkeypatch.setitem(sys.modules, "pandas", old)
    old.__version__ = "1.0"
    with one_line_error(RunError, "pandas 1.0 is loaded", "Restart session"):
        prepare_kernel()
    old.__version__ = importlib.metadata.version("pandas") + "+cu128"  # a build's own label
    prepare_kernel()
    assert enabled == ["widgets"]
    monkeypatch.delitem(sys.modules, "google.colab")
    old.__version__ = "1.0"
    prepare_kernel()  # elsewhere that is nobody's business


def test_what_colab_has_is_what_we_accept() -> None:
    """Then pip installs beside Colab's own packages, and replaces none."""
    text = (root() / "tests" / "colab-constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", text))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    declared = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, declared["dependencies"])}
    assert {"torch", "numpy", "pandas", "transformers", "datasets", "ipywidgets"} <= set(pins)
    for name in set(wanted) & set(pins):
        assert wanted[name].specifier.contains(pins[name]), f"{name} {pins[name]}"


def test_results_survive_the_machine(drive: Drive, tmp_path: Path, monkeypatch) -> None:
    here, copied = tmp_path / "results", tmp_path / "mnt" / "MyDrive" / colab.FOLDER
    replace_file(here / "t4" / "records" / "a.json", "1")
    assert "0 files brought back" in use_drive()
    assert (copied / "t4" / "records" / "a.json").read_text() == "1"  # at once, not in a minute
    use_drive()  # a second time is harmless
    replace_file(here / "t4" / "records" / "b.json", "2")
    assert finish() == 1 and drive.flushed == 1

    # a new machine
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "new"))
    assert "2 files brought back" in use_drive()
    assert (tmp_path / "new" / "t4" / "records" / "b.json").read_text() == "2"


@pytest.mark.parametrize("error", [ValueError("failed"), MessageError("denied"), OSError("gone")])
def test_a_drive_that_fails(drive: Drive, monkeypatch, one_line_error, error: Exception) -> None:
    """It is not mounted; is mounted without its folder; is full; does not upload."""
    drive.error = error
    with one_line_error(FileError, "not mounted", str(error), "allow access"):
        use_drive()
    drive.error = None
    with monkeypatch.context() as patched:
        patched.setattr(Drive, "mount", lambda self, mount_point: None)
        with one_line_error(FileError, "MyDrive is not there", "mount"):
            use_drive()

    def full(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with one_line_error(FileError, "No space left", "make space"):
            use_drive()
    use_drive()
    drive.error = error
    with one_line_error(FileError, "did not upload", "try again"):
        finish()
    monkeypatch.delitem(sys.modules, "google.colab")
    for work in (use_drive, finish):
        with one_line_error(FileError, "Colab only"):
            work()
