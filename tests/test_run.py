"""The runner: papermill's traps are guarded, failures are reported, and nothing runs twice."""

import itertools
import os
import signal
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import psutil
import pytest
import small_project
from small_project import runner_process, wait_for_kernel

from helpers.paths import reference_dir, root
from reproduction import commands, notebook, schedule
from reproduction import plan as plans
from reproduction.__main__ import VERBS, main
from reproduction.compare import main_number
from reproduction.execute import Pool
from reproduction.fingerprint import fingerprint
from reproduction.labels import run_title
from reproduction.records import make_record, read_record, read_records, write_record

project = small_project.project


# --- running (these start kernels) ---------------------------------------------------------


def test_failures_reruns_and_records(project):
    project.run_file("bad.yaml", "pattern: fail")
    project.run_file("die.yaml", "pattern: die")
    project.run_file("good.yaml", "rho: 2.5\ntimed: true")
    code, out, err = project.call("run", "--jobs", "3")
    assert code == 1
    bad, die, _ = sorted(err.splitlines())
    assert "01_work--bad: ValueError: rho is too sad [" in bad
    assert "01_work--die: " in die and "memory" in die
    assert "(1 of 3 done) notebook 01, good: " in out
    files = "bad.failed.ipynb bad.log die.failed.ipynb die.log good.ipynb good.json"
    assert project.files() == [f"01_work--{f}" for f in files.split()]
    path = project.result("records/01_work--good.json")
    record = read_record(path)
    assert record["metrics"]["value"]["value"] == 25.0
    named = [record[key] for key in ("notebook", "name", "plan", "timed")]
    assert named == ["01_work", "good", "p", True]
    assert record["parameters"]["steps"] == 3  # defaults are part of the record
    # as papermill writes them into the notebook
    given = notebook.injected_names({"In": record["data"].pop("inputs")})
    assert given == ["rho", "record_path"]
    threads = max(1, schedule.cpus() // 3)
    assert record["data"] == {
        "cwd": str(root()),
        "python": sys.executable,
        "threads": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }

    # only what failed runs again, and a record without its run file is taken out of the way
    stamp = path.stat().st_mtime_ns
    (project.folder / "runs/p/01_work/die.yaml").unlink()
    project.run_file("bad.yaml", "pattern: silent")
    forget = project.run_file("forget.yaml", "pattern: forget")
    write_record(project.result("records/01_work--gone.json"), record)
    code, out, err = project.call("run")
    assert code == 1
    assert "2 of 3 runs to do" in out
    silent, other, _ = sorted(err.splitlines())
    assert "no record" in silent
    assert "pattern = None" in other and "'forget'" in other
    assert project.result("stale/01_work--gone.json").is_file()

    forget.unlink()
    project.run_file("bad.yaml", "pattern: mended")
    assert [project.call("run")[::2] for _ in range(2)] == [(0, ""), (0, "")]
    assert not project.result("runs/01_work--bad.failed.ipynb").exists()
    assert path.stat().st_mtime_ns == stamp
    listed = "done    01_work--bad\ndone    01_work--good\n"
    assert project.call("list")[1].startswith(listed)
    assert "p/records" in project.call("list")[1].splitlines()[-1]
    # a timed record does for a run that is not timed, and not the other way round
    project.run_file("good.yaml", "rho: 2.5")
    assert project.call("list")[1].startswith(listed)
    project.run_file("bad.yaml", "pattern: mended\ntimed: true")
    listed = "to do   01_work--bad\ndone    01_work--good\n"
    assert project.call("list")[1].startswith(listed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_kernel_outlives_its_runner(number, project):
    process = runner_process(project)
    kernels = wait_for_kernel(process.pid)
    assert "plan p is being run already" in project.error("run")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert not psutil.wait_procs(kernels, timeout=10)[1]
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert err.startswith("interrupted; ")
        assert err.count("\n") == 1
        assert project.files() == [], "nothing half done"
    with schedule.lock_plan("p"):  # the lock is free at once
        pass


def test_a_run_that_ends_is_a_line_with_its_number(project, monkeypatch, capsys):
    """Ten seconds each, where the committed run took one; `c` has no committed record."""
    for name in "abc":
        project.run_file(f"{name}.yaml")
        if name != "c":
            stamped(project, name, 10.0, True)
    clock = itertools.count(0, 10)
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=clock.__next__))

    def submit(run, _):
        stamped(project, run.name, 10.5)
        (future := Future()).set_result(None)
        return future

    def lines(*runs):
        schedule.execute_runs(runs, runs, Pool(submit, lambda: 1, None))
        return capsys.readouterr().out.splitlines()[1:]

    a, b, c = plans.read_plan("p")
    first, second, _ = lines(c, a, b)
    assert "10.50, 10 s" in first and "ours" not in first
    # in the order of their ends
    assert first.startswith("(1 of 3 done) notebook 01, c: ")
    assert second.startswith("(2 of 3 done) notebook 01, a: ")
    assert "10.50 (ours 10.00), 10 s; about 10 s left" in second
    # how long c takes is not known
    assert "left" not in "".join(lines(a, b, c))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert lines(c)[0] == "notebook 01, c …"


def test_every_notebook_has_a_main_number():
    for record in read_records(reference_dir("laptop") / "records"):
        name, value = main_number(record)
        assert name and value > 0


@pytest.mark.parametrize("plan", plans.plan_names())
def test_runs_are_called_by_what_they_prune(plan):
    runs = plans.read_plan(plan)
    titles = {run_title(run.id, run.effective) for run in runs}
    assert len(titles) == len(runs)
    some = {
        "full": {
            "ADMM-Grad at 60 %",
            "Wanda at 60 %, seed 1",
            "zero-shot, Dense, questions 2",
            "zero-shot, Wanda at 50 %, seed 1",
        },
        "laptop": {
            "recipe (08) at 60 %",
            "zero-shot, ADMM-Grad at 50 %",
            "notebook 02, default",
        },
        "beyond": {
            "recipe (08) in bfloat16 at 60 %, seed 1",
            "SparseGPT + recipe (08) at 60 %",
        },
    }
    assert some.get(plan, set()) <= titles


def test_order_without_notebooks(project, monkeypatch):
    """Two at a time, of which the older always ends first."""
    active = {}
    together = []

    def submit(run, _):
        future = Future()
        active[future] = run.name
        together.append("".join(active.values()))
        return future

    def wait(*_, **__):
        oldest = next(iter(active))
        del active[oldest]
        oldest.set_result(None)
        return SimpleNamespace(done={oldest})

    monkeypatch.setattr(schedule, "fingerprint", lambda _: "")
    monkeypatch.setattr(schedule, "wait", wait)
    runs = [plans.Run("p", plans.TABLES_NOTEBOOK, "t", {}, {})]
    for name in "aBceDEFg":
        seed = {"calibration_seed": 1} if name in "BEeg" else {}
        runs.append(plans.Run("p", "01", name, seed, {}, timed=name.isupper()))
    assert schedule.execute_runs(runs, runs, Pool(submit, lambda: 2, None)) == []
    # timed runs are alone; all go seed by seed, forth and back; tables come last
    assert together == ["a", "ac", "cg", "ge", "D", "F", "E", "B", "t"]


# --- errors --------------------------------------------------------------------------------


def test_errors_before_a_run_is_started(project):
    project.run_file("a.yaml")
    assert "jobs = '0'" in project.error("run", "--jobs", "0")
    for command in ("tables", "accept"):
        assert "make reproduce PLAN=p" in project.error(command), "no record"
    assert project.call("list")[0] == 0
    assert not project.result("").exists(), "nothing is written"
    (project.folder / "results").write_text("in the way")
    assert str(project.folder / "results") in project.error("run")


# --- tables, verdict, accept, list ---------------------------------------------------------


def stamped(project, name, value, reference=False, **parameters):
    """Write the record of a run, here or as the committed one."""
    (run,) = plans.read_plan(project.plan, f"01_work/{name}")
    record = make_record(
        notebook=run.notebook,
        name=name,
        parameters=run.effective | parameters,
        metrics={
            "perplexity": {"value": value, "unit": "1"},
            "prune_seconds": {"value": value, "unit": "s"},
        },
        model=None,
        data=None,
        seeds={},
        device="cpu",
        seconds=1.0,
        peak_memory_bytes=1,
    )
    path = run.reference_path if reference else run.record_path
    write_record(path, record | {"fingerprint": fingerprint(run)})


@pytest.fixture
def made(monkeypatch):
    """Instead of tables and figures: the perplexities of the records they would be made of."""
    seen = []

    def write_figures(records, _):
        seen.append([each["metrics"]["perplexity"]["value"] for each in records])

    for name in (
        "reproduction.tables.write_tables",
        "reproduction.claims_page.write_claims",
    ):
        monkeypatch.setattr(name, lambda records, _: None)
    monkeypatch.setattr("reproduction.figures.write_figures", write_figures)
    return seen


def test_what_the_verdict_counts(project):
    def counts():
        verdict = commands.write_verdict("p")
        return verdict.reproduced, verdict.compared

    for name in "abc":
        project.run_file(f"{name}.yaml")
    stamped(project, "a", 10.005)
    stamped(project, "b", 10.0)
    stamped(project, "a", 10.0, True)
    assert counts() == (1, 1), "b has no reference"
    # a missing record is not reproduced; a reference of other parameters is none
    stamped(project, "c", 10.0, True)
    stamped(project, "b", 10.6, True, rho=9.0)
    assert counts() == (1, 2)
    stamped(project, "a", 10.1)
    assert counts() == (0, 2)


def test_what_reproduce_ends_with(project, made):
    # named so that the order of files, in which sums are made, is not that of runs
    for name, value in {"a": 10.0, "a-b": 20.0}.items():
        project.run_file(f"{name}.yaml")
        stamped(project, name, value)
        stamped(project, name, value, True)
    code, out, err = project.call("reproduce", "--only", "a")
    assert (code, err) == (0, "")
    assert "\n1 run is done (0 s in this call): 1 kept from an earlier call\n" in out
    assert "\nYour run reproduces our record of it." in out
    assert "results/p/tables, figures, records\n" in out
    assert "results/p/verdict.txt" in out
    assert made == [[20.0, 10.0]]
    # tables are made of records of today's code alone, and say so
    made.clear()
    stamped(project, "a", 11.0)
    path = project.result("records/01_work--a-b.json")
    write_record(path, read_record(path) | {"fingerprint": "earlier"})
    code, out, _ = project.call("reproduce", "--only", "a")
    assert (code, made) == (1, [[11.0]])
    assert "\n1 of your 1 runs does NOT reproduce ours; none do.\n" in out
    assert "Further apart than is allowed: notebook 01, a: perplexity, " in out
    assert "1 of earlier code" in out
    # without any: what is missing, and the command
    project.result("records/01_work--a.json").unlink()
    for why in ("(1) are of earlier code", "no run of plan p"):
        error = project.error("tables")
        assert why in error and "make reproduce PLAN=p" in error
        path.unlink(missing_ok=True)


def test_accept_keeps_records_of_earlier_code_on_request(project, made):
    """And a note of them, until they are made again."""

    def accept(name, *more):
        project.run_file(f"{name}.yaml")
        stamped(project, name, 10.0)
        return "".join(map(str, project.call("accept", *more)))

    project.plan = "full"
    accept("a")
    project.result("records/01_work--a.json").unlink()
    path = project.folder / "reference/full/records/01_work--a.json"
    record = read_record(path) | {"fingerprint": "earlier"}
    write_record(path, record)
    note = project.folder / "reference/full/earlier.txt"
    assert "STALE=1" in accept("b")
    earlier = "1 of 2 records of full"
    assert earlier in accept("b", "--stale")
    assert earlier in note.read_text()
    first, second, *_ = project.call("list")[1].splitlines()
    assert first.startswith("to do   01_work--a  1 s  ") and "earlier" in first
    assert second == "done    01_work--b  1 s"
    accept("a")
    assert not note.exists()
    assert "2 of 2 " in project.call("list")[1].splitlines()[-2]


def test_accept_takes_what_is_there_and_keeps_the_rest(project, made):
    for name in "abc":
        project.run_file(f"{name}.yaml")
    stamped(project, "a", 10.0)
    stamped(project, "a", 3.0, True)
    stamped(project, "b", 4.0, True)
    stamped(project, "c", 5.0, True, rho=9.0)  # of another run than c.yaml stands for
    gone = project.run_file("gone.yaml")
    stamped(project, "gone", 6.0, True)
    gone.unlink()
    assert project.call("accept")[0] == 0
    folder = project.folder / "reference/p/records"
    values = {}
    for path in folder.iterdir():
        values[path.stem] = read_record(path)["metrics"]["perplexity"]["value"]
    assert values == {"01_work--a": 10.0, "01_work--b": 4.0}
    assert made == [[10.0, 4.0]]


# --- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_terminal(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--help"])
    out, error = capsys.readouterr()
    assert (end.value.code, error) == (0, "")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("line", ["", "lst", "list --jobs 2", "run --jbos 2"])
def test_wrong_arguments_are_one_line(line, capsys):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    out, error = capsys.readouterr()
    assert (end.value.code, out, error.count("\n")) == (2, "", 1)
