"""A project of one tiny notebook and the plan "p", in a temporary folder; no model is loaded."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from helpers.paths import root
from reproduction import commands
from reproduction import plan as plans
from reproduction.__main__ import main

PARAMETERS = """\
rho = 1.0  # a float
steps = 3  # an int
pattern = "unstructured"
options = {}
limit: int | None = None
fast: bool = False
record_path = ""
"""
BODY = """\
import os, sys
from reproduction.records import make_record, write_record
if pattern == "fail":
    raise ValueError("rho is too sad\\nsecond line")
if pattern == "die":
    os.kill(os.getpid(), 9)
if pattern == "sleep":
    import time; time.sleep(600)
parameters = dict(rho=rho, steps=steps, options=options, limit=limit, fast=fast)
if pattern != "forget":
    parameters["pattern"] = pattern
metrics = {"value": {"value": rho * 10, "unit": "1"}}
seen = {"cwd": os.getcwd(), "python": sys.executable, "threads": os.environ["OMP_NUM_THREADS"],
    "inputs": In}
record = make_record(notebook="x", name="y", parameters=parameters, metrics=metrics, model=None,
    data=seen, seeds={}, seconds=0.1, device="cpu", peak_memory_bytes=1)
"""
WRITE = "if pattern != 'silent':\n    write_record(record_path, record)"


def write_notebook(
    folder: Path, name: str, cells: list[str], tags: list[list[str]]
) -> None:
    notebook = nbformat.v4.new_notebook()
    for source, labels in zip(cells, tags, strict=True):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": labels})
        notebook.cells.append(cell)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


class Project:
    """Writes notebooks and run files, and runs commands on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.plan = "p"
        self._capsys = capsys
        self.notebook(PARAMETERS)

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of the command line."""
        code = main([*arguments, "--plan", self.plan])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    def error(self, *arguments: str) -> str:
        """The one line that a command ends with."""
        code, _, err = self.call(*arguments)
        assert code == 1 and err.count("\n") == 1, (code, err)
        return err

    def notebook(
        self, parameters: str, body: str = BODY, name: str = "01_work"
    ) -> None:
        cells, tags = [parameters, body, WRITE], [["parameters"], [], []]
        write_notebook(self.folder / "notebooks", name, cells, tags)

    def run_file(self, name: str, text: str = "", notebook: str = "01_work") -> Path:
        path = self.folder / "runs" / self.plan / notebook / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def result(self, name: str) -> Path:
        return self.folder / "results" / self.plan / name

    def files(self) -> list[str]:
        # filelock 4 leaves the file of a lock, 3 deletes it
        paths = self.result("").rglob("[!.]*")
        return sorted(path.name for path in paths if path.is_file())


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(plans, "notebooks_dir", lambda: tmp_path / "notebooks")
    reference = tmp_path / "reference"
    for module in (commands, plans):
        monkeypatch.setattr(module, "reference_dir", lambda plan: reference / plan)
    return Project(tmp_path, capsys)


def runner_process(project: Project, *arguments: str) -> subprocess.Popen:
    """A runner in a process of its own, on a plan of one run that sleeps."""
    project.run_file("slow.yaml", "pattern: sleep")
    start = (
        "import pathlib, signal, sys; from reproduction.__main__ import main;"
        "from reproduction import plan;"
        # a shell starts background jobs with Ctrl-C ignored, and these tests may run in one
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"plan.notebooks_dir = lambda: pathlib.Path({str(project.folder / 'notebooks')!r});"
        f"sys.exit(main(['run', '--plan', 'p', *{arguments!r}]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start], cwd=root(), stderr=subprocess.PIPE, text=True
    )


def wait_for_kernel(*pids: int) -> list[psutil.Process]:
    """All descendants of processes, once a kernel is among them."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        family: list[psutil.Process] = []
        for pid in pids:
            family += psutil.Process(pid).children(recursive=True)
        for item in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
                if "ipykernel_launcher" in item.cmdline():
                    return family
        time.sleep(0.1)
    raise AssertionError("no kernel was started")
