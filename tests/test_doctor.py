"""The doctor: each trouble is found, and without any package too."""

import ast
import importlib
import inspect
import os
import subprocess
import sys

import pytest

from helpers.machine import doctor, nvidia
from helpers.paths import root


@pytest.mark.parametrize(
    "check, code, said, error, state, words",
    [
        ("packages", 0, "No broken requirements found.", "", "ok", ""),
        ("packages", 1, "a needs tokenizers<1.", "", "note", "tokenizers<1."),
        ("packages", 1, "", "No module named pip", "note", "No module named pip"),
        ("device", 0, "torch\nTesla T4\n", "", "ok", "Tesla T4"),
        ("device", 0, "torch\n\n", "", "note", "an NVIDIA driver is"),
        ("device", 1, "numpy\ntorch\n", "x\nOSError: no libc", "fix", "torch"),
        ("device", -6, "numpy\ntorch\n", "", "fix", "-6"),
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
    monkeypatch.setattr(doctor, "PACKAGES", ("json", "no_such_package"))
    assert "no_such_package" in doctor.check_device().text
    monkeypatch.setattr(doctor, "PACKAGES", ("json",))
    assert doctor.check_device().state == "ok"
    endless = (sys.executable, "-c", "while 1: pass")
    assert "timed out" in doctor.run(*endless, seconds=0.2)[1]


def test_it_runs_without_any_package(tmp_path):
    variables = {"PRUNING_CACHE": str(tmp_path), "PRUNING_RESULTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "helpers", "doctor"],  # -S: no site-packages
        cwd=root(),
        env=os.environ | variables | {"PYTHONPATH": ""},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "numpy" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_is_too_old_can_read_what_the_doctor_loads():
    code = "import sys; from helpers.cli import main; main(['doctor']); print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    output = subprocess.check_output(command, cwd=root(), encoding="utf-8")
    modules = [name for name in output.split() if name.startswith("helpers.")]
    assert {"helpers.cli.parser", "helpers.machine.doctor"} <= set(modules)
    for name in modules:
        source = inspect.getsource(importlib.import_module(name))
        ast.parse(source, feature_version=(3, 9))
        assert "def " not in source or "from __future__ import annotations" in source
