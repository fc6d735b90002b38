"""The runner: papermill's traps are guarded, failures are told, and nothing runs twice.

Tiny notebooks in a temporary project stand in for the real ones; no model is loaded.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest

from helpers.errors import RunError
from helpers.paths import root
from helpers.records import make_record, read_record, write_record
from helpers.results import verdict
from helpers.runner import plan as plans
from helpers.runner import run as runner

PARAMETERS = """\
rho = 1.0  # a float
steps = 3  # an int
pattern = "unstructured"
options = {}
limit = None
fast: bool = False
record_path = ""
"""
BODY = """\
import os, sys
from helpers.records import make_record, write_record
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
seen = {"cwd": os.getcwd(), "python": sys.executable, "threads": os.environ["OMP_NUM_THREADS"]}
record = make_record(notebook="x", name="y", parameters=parameters, metrics=metrics, model=None,
    data=seen, seeds={}, seconds=0.1, device="cpu", peak_memory_bytes=1)
"""
WRITE = "if pattern != 'silent':\n    write_record(record_path, record)"


def write_notebook(folder: Path, name: str, cells: list[str], tags: list[list[str]]) -> None:
    notebook = nbformat.v4.new_notebook()
    for source, labels in zip(cells, tags, strict=True):
        notebook.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": labels}))
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


class Project:
    """A temporary project with one notebook and the plan "p"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notebook(PARAMETERS)

    def notebook(self, parameters: str, body: str = BODY, name: str = "01_work") -> None:
        cells, tags = [parameters, body, WRITE], [["parameters"], [], []]
        write_notebook(self.folder / "notebooks", name, cells, tags)

    def run_file(self, name: str, text: str, notebook: str = "01_work") -> Path:
        path = self.folder / "runs" / "p" / notebook / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def result(self, name: str) -> Path:
        return self.folder / "results" / "p" / name


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(plans, "notebooks_dir", lambda: tmp_path / "notebooks")
    monkeypatch.setattr(runner, "reference_dir", lambda plan: tmp_path / "reference" / plan)
    return Project(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = runner.main([*arguments, "--plan", "p"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


# --- run files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("roh: 0.5", "did you mean 'rho'"),
        ("zzz: 0.5", "choose one of fast, limit"),
        ("rho: 1e-3", "write 1.0e-3"),
        ("rho: high", "give float"),
        ("rho: true", "bool"),
        ("steps: 2.5", "give int"),
        ("fast: 1", "give bool"),
        ("pattern: 2:4", "quotes"),
        ("pattern: null", "give str"),
        ("options: {damping: 1e-3}", "with a point"),
        ("limit: 2026-01-01", "give None or float or int or str"),
        ("options: {day: 2026-01-01}", "put the text in quotes"),
        ("record_path: x.json", "set by the runner"),
        ("preset: auto", "name the parameters themselves"),
        ("rho: 1.0\nrho: 2.0", "given twice"),
        ("rho: [1", "line"),
        ("- 1", "not a mapping"),
        ("rho: !!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_wrong_run_file_is_one_line(
    text: str, reason: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", text)
    code, out, err = call(capsys)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert reason in err and "p/01_work/a.yaml" in err
    assert not project.result("").exists()


def test_good_run_files_are_accepted(project: Project) -> None:
    project.run_file("b.yaml", "rho: 2\noptions: {damping: 1.0e-3}\nlimit: 5\npattern: '2:4'")
    project.run_file("a.yaml", "# all defaults\n")
    first, second = plans.read_plan("p")
    assert (first.name, first.parameters) == ("a", {})
    assert second.parameters == {
        "rho": 2,
        "options": {"damping": 0.001},
        "limit": 5,
        "pattern": "2:4",
    }
    assert second.effective["steps"] == 3 and "record_path" not in second.effective


def test_every_wrong_run_file_is_counted(project: Project) -> None:
    project.run_file("a.yaml", "roh: 1.0")
    project.run_file("b.yaml", "roh: 1.0")
    with pytest.raises(RunError, match="a.yaml.*and 1 more"):
        plans.read_plan("p")


def test_files_out_of_place(project: Project) -> None:
    path = project.run_file("a.yml", "rho: 1.0")
    with pytest.raises(RunError, match="out of place"):
        plans.read_plan("p")
    path.unlink()
    project.run_file("a.yaml", "rho: 1.0", notebook="01_wrok")
    with pytest.raises(RunError, match="did you mean '01_work'"):
        plans.read_plan("p")


def test_unknown_plan_empty_plan_and_no_match(project: Project) -> None:
    (project.folder / "runs" / "empty").mkdir(parents=True)
    with pytest.raises(RunError, match="did you mean 'empty'"):
        plans.read_plan("emptyy")
    with pytest.raises(RunError, match="plan empty has no run files"):
        plans.read_plan("empty")
    project.run_file("a.yaml", "")
    with pytest.raises(RunError, match="matches 'zzz'.*01_work/a"):
        plans.read_plan("p", "zzz")
    assert len(plans.read_plan("p", "01_work/*")) == 1
    project.run_file("my-method-60.yaml", "")
    with pytest.raises(RunError, match="did you mean 'my-method-60'"):
        plans.read_plan("p", "01*my-metod-60*")
    with pytest.raises(RunError, match="did you mean 'my-method-60'"):
        plans.read_plan("p", "01_work/my-metod-60")
    with pytest.raises(RunError, match="any letters$"):  # no hint at the half that was right
        plans.read_plan("p", "01_work*absent*")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("total = 2 * rho", "derived"),
        ("path = Path('x')", "derived"),
        ("name = f'{rho}'", "derived"),
        ("sizes = (1, 2)", "use a list"),
        ("import os", "not 'name = value'"),
        ("a = b = 1", "not 'name = value'"),
        ("a =", "not Python"),
    ],
)
def test_parameters_cell_holds_literals_only(line: str, reason: str, project: Project) -> None:
    project.notebook(PARAMETERS + line)
    project.run_file("a.yaml", "")
    with pytest.raises(RunError, match=reason):
        plans.read_plan("p")


def test_notebooks_papermill_would_misread(project: Project) -> None:
    project.run_file("a.yaml", "")
    folder = project.folder / "notebooks"
    write_notebook(folder, "01_work", ["a = 1", "b = 1"], [["parameters"], ["parameters"]])
    with pytest.raises(RunError, match="2 parameters cells"):
        plans.read_plan("p")
    write_notebook(folder, "01_work", ["record_path = ''", "1/0"], [["parameters"], []])
    assert len(plans.read_plan("p")) == 1
    tags = [["parameters"], ["raises-exception"]]
    write_notebook(folder, "01_work", ["record_path = ''", "1/0"], tags)
    with pytest.raises(RunError, match="raises-exception"):
        plans.read_plan("p")
    write_notebook(folder, "01_work", ["a = 1"], [["parameters"]])
    with pytest.raises(RunError, match="no record_path"):
        plans.read_plan("p")


def test_plan_parameter_must_be_the_plan(project: Project) -> None:
    project.notebook(PARAMETERS + 'plan = "laptop"\n', name="06_tables_and_plots")
    project.run_file("a.yaml", "plan: q", notebook="06_tables_and_plots")
    with pytest.raises(RunError, match="plan = 'q'"):
        plans.read_plan("p")


def test_tables_notebook_is_last(project: Project) -> None:
    for name in ("06_tables_and_plots", "10_late"):
        project.notebook(PARAMETERS, name=name)
        project.run_file("a.yaml", "", notebook=name)
    assert [run.notebook for run in plans.read_plan("p")] == ["10_late", "06_tables_and_plots"]


# --- fingerprints --------------------------------------------------------------------------


def test_fingerprint_follows_what_decides_a_number(project: Project) -> None:
    project.run_file("a.yaml", "rho: 2.0")
    (run,) = plans.read_plan("p")
    before = plans.fingerprint(run)
    assert before == plans.fingerprint(replace(run, name="other"))
    assert before != plans.fingerprint(replace(run, parameters={"rho": 3.0}))
    project.notebook(PARAMETERS, body="# a comment\n" + BODY)
    assert plans.fingerprint(run) == before
    project.notebook(PARAMETERS, body=BODY + "more = 1\n")
    assert plans.fingerprint(run) != before
    text = project.folder / "own.txt"
    named = replace(run, parameters={"pattern": str(text)})
    text.write_text("one")
    first = plans.fingerprint(named)
    text.write_text("two")
    assert plans.fingerprint(named) != first


def test_magic_lines_and_docstrings_do_not_count() -> None:
    one = 'def f():\n    """Old."""\n    return 1\n\nif f():\n    %cd x\n    !pip install y\n'
    two = 'def f():\n    """New."""\n    return 1  # why\nif f():\n    %cd z\n    !pip install w\n'
    assert plans._normalised(one) == plans._normalised(two)
    assert plans._normalised(one) != plans._normalised(one.replace("return 1", "return 2"))


# --- running (these start kernels) ---------------------------------------------------------


def test_failures_reruns_and_records(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run_file("bad.yaml", "pattern: fail")
    project.run_file("die.yaml", "pattern: die")
    project.run_file("good.yaml", "rho: 2.5")
    code, out, err = call(capsys, "run", "--jobs", "3")

    assert code == 1
    lines = err.strip().splitlines()
    assert lines[0] == "2 runs failed; run again to repeat:"
    assert lines[1].startswith("  01_work bad: ValueError: rho is too sad [")
    assert lines[1].endswith("01_work--bad.failed.ipynb]")
    assert lines[2].startswith("  01_work die: the kernel died: was there enough memory?")
    assert "[1/3] 01_work bad" in out and "[3/3] 01_work good done in" in out
    left = sorted(path.name for path in project.result("").rglob("*") if path.is_file())
    assert left == [
        ".lock",
        "01_work--bad.failed.ipynb",
        "01_work--die.failed.ipynb",
        "01_work--good.ipynb",
        "01_work--good.json",
    ]
    record = read_record(project.result("records/01_work--good.json"))
    assert record["metrics"]["value"]["value"] == 25.0
    assert (record["notebook"], record["name"], record["plan"]) == ("01_work", "good", "p")
    assert record["parameters"]["steps"] == 3  # defaults are part of the record
    assert record["data"]["cwd"] == str(root())
    assert record["data"]["python"] == sys.executable
    assert record["data"]["threads"] == os.environ.get(
        "OMP_NUM_THREADS", str(max(1, runner.cores() // 3))
    )

    # only what failed runs again, and a record without its run file is taken out of the way
    stamp = project.result("records/01_work--good.json").stat().st_mtime_ns
    (project.folder / "runs/p/01_work/die.yaml").unlink()
    project.run_file("bad.yaml", "pattern: silent")
    write_record(project.result("records/01_work--gone.json"), record)
    code, out, err = call(capsys, "run")
    assert code == 1 and "1 of 2 runs to do" in out and "moved 1 records" in out
    assert "the notebook wrote no record" in err
    assert project.result("stale/01_work--gone.json").is_file()

    project.run_file("bad.yaml", "pattern: forget")
    code, out, err = call(capsys, "run")
    assert code == 1 and "the record lacks the run's pattern = 'forget'" in err

    project.run_file("bad.yaml", "pattern: mended")
    code, out, err = call(capsys, "run")
    assert (code, err) == (0, "") and "01_work bad done in" in out
    assert not project.result("runs/01_work--bad.failed.ipynb").exists()
    assert project.result("records/01_work--good.json").stat().st_mtime_ns == stamp

    code, out, err = call(capsys, "run")
    assert (code, err) == (0, "") and out == "plan p: nothing to run, 2 of 2 runs are up to date\n"
    assert call(capsys, "list")[1].split() == ["done", "01_work", "bad", "done", "01_work", "good"]


def test_interrupt_stops_kernels_and_leaves_nothing_half_done(project: Project) -> None:
    project.run_file("slow.yaml", "pattern: sleep")
    start = (
        "import pathlib, signal, sys; from helpers import plan, run;"
        # a shell starts background jobs with Ctrl-C ignored, and these tests may run in one
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"plan.notebooks_dir = lambda: pathlib.Path({str(project.folder / 'notebooks')!r});"
        "sys.exit(run.main(['run', '--plan', 'p']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=root(), stderr=subprocess.PIPE, text=True
    )
    failed = project.result("runs/01_work--slow.failed.ipynb")
    deadline = time.monotonic() + 60
    while not failed.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # papermill and the kernel
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "interrupted; the same command goes on with the runs that are missing"
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert [path.name for path in project.result("").rglob("*") if path.is_file()] == [".lock"]


# --- results folder ------------------------------------------------------------------------


def test_results_folder_that_cannot_be_written(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    (project.folder / "results").write_text("in the way")
    code, out, err = call(capsys)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "cannot write to" in err and "PRUNING_RESULTS" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_results_folder(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run_file("a.yaml", "")
    (project.folder / "results").mkdir(mode=0o555)
    code, _, err = call(capsys)
    assert code == 1 and "Permission denied" in err and err.count("\n") == 1


def test_two_runners_do_not_share_a_plan(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    with runner._workplace("p"):
        code, _, err = call(capsys)
    assert code == 1 and "is being run already" in err


def test_a_run_under_way_is_not_called_failed(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    project.run_file("b.yaml", "")
    for run in plans.read_plan("p"):
        run.failed_path.parent.mkdir(parents=True, exist_ok=True)
        run.failed_path.write_text("{}")  # where papermill executes it

    def states() -> list[str]:
        return [line.split()[0] for line in call(capsys, "list")[1].splitlines()]

    with runner._workplace("p") as scratch:
        scratch.mkdir()
        (scratch / "01_work--a.job.json").write_text("{}")
        assert states() == ["runs", "failed"]
    assert states() == ["failed", "failed"], "killed with its runner"


def test_a_run_that_has_ended_is_no_longer_under_way(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    for name in ("die", "fail", "good"):
        project.run_file(f"{name}.yaml", f"pattern: {name}")
    tell = runner.Runner._tell
    monkeypatch.setattr(
        runner.Runner,
        "_tell",
        lambda self, run, text: (
            seen.update({(run.name, text.split()[0].rstrip(":")): run.job_path.exists()}),
            tell(self, run, text),
        ),
    )
    call(capsys, "run")
    assert seen == {
        **{(name, "…"): True for name in ("die", "fail", "good")},
        **{("die", "FAILED"): False, ("fail", "FAILED"): False, ("good", "done"): False},
    }


def test_where_all_failed_nothing_is_said_of_records(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("bad.yaml", "pattern: fail")
    code, _, err = call(capsys)
    assert code == 1 and "ValueError: rho is too sad" in err and "no records" not in err


def test_wrong_jobs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run_file("a.yaml", "")
    code, _, err = call(capsys, "--jobs", "0")
    assert code == 1 and err.startswith("jobs = '0'")
    assert runner.choose_jobs("3") == 3 and runner.choose_jobs("auto") in (1, 2)


# --- tables, verdict, accept ---------------------------------------------------------------


def stamped(
    project: Project, name: str, value: float, folder: str = "results/p", **parameters: object
) -> None:
    run = next(run for run in plans.read_plan("p") if run.name == name)
    record = make_record(
        notebook=run.notebook,
        name=name,
        parameters=run.effective | parameters,
        metrics={
            "perplexity": {"value": value, "unit": "1"},
            "sparsity": {"value": 0.5, "unit": "1"},
            "prune_seconds": {"value": 100 * value, "unit": "s"},
        },
        model=None,
        data=None,
        seeds={},
        seconds=1.0,
        device="cpu",
        peak_memory_bytes=1,
    )
    record["fingerprint"] = plans.fingerprint(run)
    write_record(project.folder / folder / "records" / f"{run.id}.json", record)


def test_verdict(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        project.run_file(f"{name}.yaml", "")
    stamped(project, "a", 10.1)
    stamped(project, "b", 10.0)
    stamped(project, "a", 10.0, "reference/p")
    code, out, _ = call(capsys, "verdict")
    assert code == 0 and out.splitlines()[-2:] == ["no reference for 2 runs", "reproduced 1 of 1"]
    assert "+1.00 %" in out and "prune_seconds" not in out

    stamped(project, "b", 10.6, "reference/p")
    code, out, _ = call(capsys, "verdict")
    assert code == 1 and out.splitlines()[-1] == "reproduced 1 of 2"
    assert [line.split()[-1] for line in out.splitlines() if "-5.66 %" in line] == ["OUT"]

    # a missing record is not reproduced; a reference of other parameters is none
    stamped(project, "c", 10.0, "reference/p")
    stamped(project, "b", 10.6, "reference/p", rho=9.0)
    code, out, _ = call(capsys, "verdict")
    assert code == 1 and out.splitlines()[-2:] == ["no reference for 1 runs", "reproduced 1 of 2"]


def test_verdict_and_tables_with_a_corrupted_record(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    stamped(project, "a", 10.0, "reference/p")
    path = project.result("records/01_work--a.json")
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "no')
    for command in ("verdict", "tables"):
        code, _, err = call(capsys, command)
        assert code == 1 and "is not JSON" in err and err.count("\n") == 1
    assert not plans.is_done(plans.read_plan("p")[0])  # so the next run replaces it


def test_tables_of_a_part_say_what_is_missing(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_draw", lambda *_: None)
    for name in "abc":
        project.run_file(f"{name}.yaml", "")
    stamped(project, "a", 10.0)
    assert call(capsys, "tables")[1].endswith("\n2 runs have no record here\n")
    stamped(project, "b", 10.0)
    stamped(project, "a", 10.0, "reference/p")
    said = call(capsys, "tables")[1]
    assert "\n1 run has no record here: make report PLAN=p sets the committed" in said
    stamped(project, "c", 10.0)
    assert "no record here" not in call(capsys, "tables")[1]


def test_tables_without_records(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run_file("a.yaml", "")
    code, _, err = call(capsys, "tables")
    assert code == 1 and "make reproduce PLAN=p" in err and err.count("\n") == 1


def test_accept_takes_what_is_there_and_keeps_the_rest(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        project.run_file(f"{name}.yaml", "")
    code, _, err = call(capsys, "accept")
    assert code == 1 and "no run of plan p is up to date" in err and err.count("\n") == 1
    stamped(project, "a", 10.0)
    stamped(project, "a", 3.0, "reference/p")
    stamped(project, "b", 4.0, "reference/p")
    stamped(project, "c", 5.0, "reference/p", rho=9.0)  # of another run than c.yaml asks for
    project.run_file("gone.yaml", "")
    stamped(project, "gone", 6.0, "reference/p")
    (project.folder / "runs/p/01_work/gone.yaml").unlink()
    code, out, _ = call(capsys, "accept")
    assert code == 0
    assert "accepted 1 records" in out and "kept 1 of before" in out
    assert "1 runs of the plan have no record yet" in out
    folder = project.folder / "reference/p/records"
    values = {p.stem: read_record(p)["metrics"]["perplexity"]["value"] for p in folder.iterdir()}
    assert values == {"01_work--a": 10.0, "01_work--b": 4.0}


def test_accept_draws_tables_of_all_records(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(runner, "_draw", lambda records, _: drawn.append(len(records)))
    project.run_file("a.yaml", "")
    project.run_file("b.yaml", "")
    stamped(project, "a", 10.0)
    stamped(project, "b", 4.0, "reference/p")
    assert call(capsys, "accept", "--only", "*a")[0] == 0
    assert drawn == [2]


def test_a_reference_from_before_a_parameter_was_added(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    stamped(project, "a", 10.0)
    stamped(project, "a", 10.0, "reference/p")
    path = project.folder / "reference/p/records/01_work--a.json"
    record = read_record(path)
    del record["parameters"]["steps"]
    write_record(path, record)
    assert "reproduced 1 of 1" in call(capsys, "verdict")[1]
    project.run_file("a.yaml", "steps: 4")  # no longer what the reference can have meant
    assert "no reference for 1 runs" in call(capsys, "verdict")[1]


def test_a_run_depends_only_on_the_helpers_it_uses(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run_file("a.yaml", "")
    (run,) = plans.read_plan("p")
    before = plans.fingerprint(run)
    changed: set[str] = set()
    real = plans._module_source

    def source(name: str) -> str:
        return real(name) + ("\nextra = 1\n" if name in changed else "")

    monkeypatch.setattr(plans, "_module_source", source)
    changed.add("corpora")  # the notebook imports records, which imports errors and paths
    assert plans.fingerprint(run) == before
    changed.add("paths")
    assert plans.fingerprint(run) != before


def test_a_plan_that_was_never_run_lists_what_it_needs(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    code, out, _ = call(capsys, "list")
    assert code == 0 and "plan p: 0 of 1 runs are done" in out and "not estimated: 1 run" in out
    code, out, _ = call(capsys, "list", "--machine", "t4")
    assert code == 0 and "On t4 (" in out and "not measured" in out
    code, _, err = call(capsys, "list", "--machine", "t5")
    assert code == 1 and "machine 't5' is unknown" in err and err.count("\n") == 1
    stamped(project, "a", 10.0)
    assert call(capsys, "list")[1] == "done    01_work  a\n"


def test_what_a_plan_downloads() -> None:
    def needs(**asked: object) -> list[str]:
        return plans.assets_needed([plans.Run("p", "01", "a", {}, asked)])

    assert needs(model="embedded", calibration="c4", evaluation="wikitext2") == ["model"]
    assert needs(model="tiny", calibration="embedded") == ["model", "c4"]
    assert needs(model="owner/name", calibration="c4", tasks=[], source="hub") == []
    assert needs(tasks=["rte"], source="embedded") == ["tasks"]
    assert needs(plan="laptop", source="reference") == []


def row(value: float, seed: int = 0, method: str = "wanda", **metric: object) -> dict:
    return {
        "notebook": "04",
        "name": f"{method}-{seed}",
        "parameters": {"method": method, "sparsity": 0.5, "calibration_seed": seed},
        "metrics": {"perplexity": {"value": value, "unit": "1", **metric}},
    }


def test_tolerance_comes_from_the_seeds() -> None:
    spread = verdict.Tolerances(
        [row(10.0), row(11.0, 1), row(20.0, method="a"), row(20.1, 1, "a"), row(7.0, method="lone")]
    )
    assert spread.of(row(9.0), "perplexity") == pytest.approx(1 / 10.5)
    assert spread.of(row(9.0, method="a"), "perplexity") == verdict.FLOOR
    assert spread.of(row(9.0, method="new"), "perplexity") == pytest.approx(1 / 10.5)
    assert spread.of(row(9.0, tolerance=0.3), "perplexity") == 0.3
    assert verdict.Tolerances([row(1.0)]).of(row(1.0), "perplexity") == verdict.UNKNOWN
    assert verdict.Tolerances([row(1.0), row(9.0, 1)]).of(row(1.0), "perplexity") == verdict.CEILING


def test_tolerance_of_a_perplexity_grows_with_the_damage() -> None:
    dense, near = row(10.0, method="dense"), row(10.2, method="near")
    seeds = [row(20.0), row(21.0, 1)]
    spread = verdict.Tolerances([dense, *seeds])
    share = math.log(21 / 20) / (math.log(420 / 100) / 2)  # of the mean damage, ln 2 and ln 2.1
    assert spread.of(row(20.0), "perplexity") == pytest.approx(2**share - 1)
    assert spread.of(row(40.0, method="new"), "perplexity") == pytest.approx(4**share - 1)
    assert spread.of(near, "perplexity") == spread.of(dense, "perplexity") == verdict.FLOOR
    # a dense model that was measured on other text, or seeds with hardly any damage: relative
    close = verdict.Tolerances([dense, row(10.1), row(10.6, 1)])
    assert close.of(row(40.0), "perplexity") == pytest.approx(0.5 / 10.35)
    dense["parameters"]["windows"] = 3
    other = verdict.Tolerances([dense, *seeds])
    assert other.of(row(40.0, method="new"), "perplexity") == pytest.approx(1 / 20.5)


def test_exact_metrics_must_be_equal() -> None:
    reference = row(1.0)
    reference["metrics"] = {
        "sparsity": {"value": 0.5, "unit": "1"},
        "tokens": {"value": 7, "unit": "1"},
    }
    here = json.loads(json.dumps(reference))
    none = verdict.Tolerances([])
    assert all(item.within for item in verdict.compare(here, reference, none))
    here["metrics"]["sparsity"]["value"] = 0.5001
    here["metrics"]["tokens"]["value"] = 8
    assert not any(item.within for item in verdict.compare(here, reference, none))


def test_time_left() -> None:
    runs = [plans.Run("p", "01", name, {}, {}) for name in "abc"]
    clock = runner.Clock(runs, jobs=1)
    assert clock.left({}) is None  # nothing is known yet
    clock.finish(runs[0], 10.0)
    assert clock.left({}) == 20.0
    assert clock.left({"01--b": 4.0}) == 16.0
    assert [runner.format_seconds(x) for x in (41.4, 720, 9000)] == ["41 s", "12 min", "2.5 h"]
