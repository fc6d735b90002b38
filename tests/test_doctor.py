"""What the doctor says: each trouble has its line and its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.machine import doctor
from helpers.paths import root


@pytest.mark.parametrize(
    ("check", "code", "said", "error", "state", "words"),
    [
        ("packages", 0, "No broken requirements found.", "", "ok", "no conflict"),
        (
            "packages",
            1,
            "transformers 5.0 has requirement tokenizers<1.",
            "",
            "note",
            "tokenizers",
        ),
        (
            "packages",
            1,
            "",
            "No module named pip",
            "note",
            "does not work: No module named pip",
        ),
        ("device", 0, "torch\nTesla T4\n", "", "ok", "Tesla T4"),
        ("device", 0, "torch\n\n", "", "note", "torch can use no GPU"),
        (
            "device",
            1,
            "numpy\ntorch\n",
            "x\nOSError: no libc",
            "fix",
            "torch does not load: OSE",
        ),
        (
            "device",
            -6,
            "numpy\ntorch\n",
            "",
            "fix",
            "torch does not load: it ended with code -6",
        ),
    ],
)
def test_what_programs_say(
    monkeypatch: pytest.MonkeyPatch, *, check, code, said, error, state, words
) -> None:
    done = subprocess.CompletedProcess((), code, said, error)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    monkeypatch.setattr(
        "shutil.which", lambda program: program
    )  # a driver is installed
    finding = getattr(doctor, f"check_{check}")()
    assert finding.state == state and words in finding.text


def test_the_probe_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, with torch; one that hangs has failed."""
    monkeypatch.setattr("shutil.which", lambda program: None)  # whatever GPU there is
    monkeypatch.setattr(doctor, "PACKAGES", ("json", "no_such_package"))
    assert (
        "no_such_package does not load: ModuleNotFound" in doctor.check_device().text
    )
    monkeypatch.setattr(doctor, "PACKAGES", ("json",))
    assert doctor.check_device().state == "ok"
    assert (
        "timed out" in doctor.run(sys.executable, "-c", "while 1: pass", seconds=0.2)[1]
    )


def test_without_any_package_it_says_what_to_do(tmp_path: Path) -> None:
    variables = {"PRUNING_CACHE": str(tmp_path), "PRUNING_RESULTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "helpers", "doctor"],  # -S: no site-packages
        **dict(cwd=root(), env=os.environ | variables | {"PYTHONPATH": ""}),
        **dict(capture_output=True, encoding="utf-8", check=False),
    )
    assert (
        done.stderr == ""
        and "without numpy" in done.stdout
        and "make setup" in done.stdout
    )
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
