"""The doctor: each trouble is found, and without any package too."""

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys

import pytest

from helpers.paths import root
from reproduction.machine import doctor, nvidia

EXAMINE = (
    "from sys import exit; from reproduction.machine import examine; code = examine()"
)


@pytest.mark.parametrize(
    "check, code, said, error, state, words",
    [
        ("packages", 0, "No broken requirements found.", "", "ok", ""),
        ("packages", 1, "a needs tokenizers<1.", "", "note", "tokenizers<1."),
        ("packages", 1, "", "No module named pip", "note", "No module named pip"),
        ("torch", 0, "Tesla T4\n", "", "ok", "Tesla T4"),
        ("torch", 0, "False\n", "", "note", "driver"),
        ("torch", 1, "", "x\nOSError: no libc", "fix", "no libc"),
        ("torch", -6, "", "", "fix", "-6"),
    ],
)
def test_what_programs_answer(monkeypatch, *, check, code, said, error, state, words):
    done = subprocess.CompletedProcess("", code, said, error)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    # a driver is installed, under WSL, whose programs may not be found
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(nvidia.Path, "exists", lambda path: "wsl" in path.parts)
    finding = getattr(doctor, f"check_{check}")()
    assert finding.state == state
    assert words in finding.text


def test_the_probe_runs_here(monkeypatch):
    """In a process of its own, with torch; one that hangs has failed."""
    monkeypatch.setattr(doctor, "has_nvidia_driver", lambda: False)
    assert doctor.check_torch().state == "ok"
    assert "timed out" in doctor.run("-c", "while 1: pass", seconds=0.2)[1][0]


def test_what_a_machine_lacks(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRUNING_CACHE", str(cache))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    assert doctor.check_python().state == "ok"
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (9, 0))
    assert doctor.check_python().state == "fix"
    usage = shutil.disk_usage(tmp_path)._replace(free=8 * 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    # downloads take 1 GB, results less, and the packages are there
    assert [finding.state for finding in doctor.check_disk()] == ["fix", "ok", "ok"]
    monkeypatch.setattr(doctor, "PACKAGES", ("json", "no_such_package"))
    assert "no_such_package" in doctor.check_packages().text
    assert [finding.state for finding in doctor.check_disk()] == ["fix", "ok", "fix"]
    cache.touch()  # a file, in which nothing can be put
    assert next(iter(doctor.check_disk())).state == "fix"


def test_it_runs_without_any_package(tmp_path):
    variables = {"PRUNING_CACHE": str(tmp_path), "PRUNING_RESULTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{EXAMINE}; exit(code)"],  # no site-packages
        cwd=root(),
        env=os.environ | variables | {"PYTHONPATH": ""},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "numpy" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_is_too_old_can_read_what_the_doctor_loads():
    code = f"import sys, reproduction.__main__; {EXAMINE}; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    output = subprocess.check_output(command, cwd=root(), encoding="utf-8")
    modules = [
        name
        for name in output.split()
        if name.startswith(("helpers.", "reproduction."))
    ]
    assert {"reproduction.__main__", "reproduction.machine.doctor"} <= set(modules)
    for name in modules:
        source = inspect.getsource(importlib.import_module(name))
        ast.parse(source, feature_version=(3, 9))
        assert "def " not in source or "from __future__ import annotations" in source
