"""What the doctor says: each trouble has its line and its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.data.assets import ASSETS
from helpers.machine import doctor
from helpers.paths import replace_file, root

GB = 10**9


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what every program answers."""

    def set_answer(code: int, out: str, err: str = "") -> None:
        done = subprocess.CompletedProcess((), code, out, err)
        monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)

    return set_answer


def test_python_and_packages(answers: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().state == "ok"
    for code, said, why, state, words in (
        (0, "No broken requirements found.", "", "ok", "no conflict"),
        (1, "transformers 5.0 has requirement tokenizers<1, but you have 2.", "", "note", "token"),
        (1, "", "No module named pip", "note", "pip does not work: No module named pip"),
    ):
        answers(code, said, why)
        finding = doctor.check_packages()
        assert finding.state == state and words in finding.answer
    monkeypatch.setattr(doctor, "IMPORTS", ("json", "no_such_package"))
    absent = doctor.check_packages()
    assert absent[2:] == ("without no_such_package", "run: make setup")
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert "PYTHON=python3.12" in doctor.check_python().todo


@pytest.mark.parametrize(
    ("code", "said", "why", "smi", "state", "words"),
    [
        (0, "torch\n\n", "", None, "ok", "no GPU"),
        (0, "torch\nTesla T4\n", "", "nvidia-smi", "ok", "Tesla T4"),
        (0, "torch\n\n", "", "nvidia-smi", "note", "torch can use no GPU"),
        (1, "numpy\ntorch\n", "x\nOSError: no libc10.so", None, "fix", "torch does not load: OSE"),
        (-6, "numpy\ntorch\n", "", None, "fix", "ended with code -6"),
    ],
)
def test_device(
    answers: Callable, monkeypatch: pytest.MonkeyPatch, *, code, said, why, smi, state, words
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: smi)
    answers(code, said, why)
    finding = doctor.check_device()
    assert finding.state == state and words in finding.answer


def test_the_probe_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, with torch; one that hangs or is not there has failed."""
    monkeypatch.setattr("shutil.which", lambda program: None)  # whatever GPU there is
    monkeypatch.setattr(doctor, "IMPORTS", ("json",))
    assert doctor.check_device().state == "ok"
    monkeypatch.setattr(doctor, "IMPORTS", ("json", "no_such_package"))
    assert "no_such_package does not load: ModuleNotFound" in doctor.check_device().answer
    assert "timed out" in doctor.run(sys.executable, "-c", "while 1: pass", seconds=0.2)[1]
    assert "No such file" in doctor.run("/no/such/program")[1]


def test_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, state in ((GB, "fix"), (3 * GB, "ok")):
        monkeypatch.setattr(doctor, "ram", lambda free=free: (free, 8 * GB))
        finding = doctor.check_memory()
        assert finding.state == state and f"{free / GB:.1f} of 8.0 GB free" in finding.answer
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "file" / "results"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0.5 * GB))
    monkeypatch.setattr(doctor, "lacking", lambda: ["torch"])
    cache, results, project = doctor.check_disk()
    assert f"0.5 GB free in {tmp_path}/not/yet, 1.0 GB are needed" in cache.answer
    assert "cannot be written" in results.answer and "PRUNING_RESULTS" in results.todo
    assert "2.5 GB are needed" in project.answer and project.state == "fix"
    (tmp_path / "not" / "yet" / "models").mkdir(parents=True)  # downloaded already
    assert next(doctor.check_disk()).state == "ok"


def test_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    absent = doctor.check_downloads()
    assert absent.state == "note" and "c4.utf8" in absent.answer and "make assets" in absent.todo
    for asset in ASSETS.values():
        for member in asset.members:
            folder = tmp_path / "assets" / f"{asset.package}-{asset.version}"
            replace_file(folder / member, "")
    assert doctor.check_downloads().state == "ok"


def test_without_any_package_it_says_what_to_do(tmp_path: Path) -> None:
    variables = {"PRUNING_CACHE": str(tmp_path), "PRUNING_RESULTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "helpers.machine.doctor"],  # -S: no site-packages
        **dict(cwd=root(), env=os.environ | variables | {"PYTHONPATH": ""}),
        **dict(capture_output=True, encoding="utf-8", check=False),
    )
    assert done.stderr == "" and "without numpy" in done.stdout and "make setup" in done.stdout
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
