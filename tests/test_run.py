"""The runner: papermill's traps are guarded, failures are reported, and nothing runs twice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_project
from small_project import Project, runner_process, wait_for_kernel

from helpers.paths import replace_file, root
from helpers.report.records import make_record, read_record, write_record
from helpers.runner import plan as plans
from helpers.runner import run as command_line
from helpers.runner import schedule
from helpers.runner.fingerprint import fingerprint, is_done

project = small_project.project


# --- running (these start kernels) ---------------------------------------------------------


def test_failures_reruns_and_records(project: Project) -> None:
    project.run_file("bad.yaml", "pattern: fail")
    project.run_file("die.yaml", "pattern: die")
    project.run_file("good.yaml", "rho: 2.5")
    code, out, err = project.call("run", "--jobs", "3")
    assert code == 1
    lines = err.strip().splitlines()
    assert lines[0] == "2 runs failed; run again to repeat:"
    assert lines[1].startswith("  01_work bad: ValueError: rho is too sad [")
    assert lines[1].endswith("01_work--bad.failed.ipynb]")
    assert lines[2].startswith("  01_work die: the kernel died: was there enough memory?")
    assert "[1/3] 01_work bad" in out and "[3/3] 01_work good done in" in out
    assert project.files() == [
        ".lock",
        "01_work--bad.failed.ipynb",
        "01_work--die.failed.ipynb",
        "01_work--good.ipynb",
        "01_work--good.json",
    ]
    path = project.result("records/01_work--good.json")
    record = read_record(path)
    assert record["metrics"]["value"]["value"] == 25.0
    assert (record["notebook"], record["name"], record["plan"]) == ("01_work", "good", "p")
    assert record["parameters"]["steps"] == 3  # defaults are part of the record
    assert record["data"]["cwd"] == str(root())
    assert record["data"]["python"] == sys.executable
    assert record["data"]["threads"] == os.environ.get(
        "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 3))
    )

    # only what failed runs again, and a record without its run file is taken out of the way
    stamp = path.stat().st_mtime_ns
    (project.folder / "runs/p/01_work/die.yaml").unlink()
    project.run_file("bad.yaml", "pattern: silent")
    forget = project.run_file("forget.yaml", "pattern: forget")
    write_record(project.result("records/01_work--gone.json"), record)
    code, out, err = project.call("run")
    assert code == 1 and "2 of 3 runs to do" in out and "moved 1 records" in out
    assert "the notebook wrote no record" in err
    assert "the record does not hold pattern = 'forget'" in err
    assert project.result("stale/01_work--gone.json").is_file()

    forget.unlink()
    project.run_file("bad.yaml", "pattern: mended")
    code, out, err = project.call("run")
    assert (code, err) == (0, "") and "01_work bad done in" in out
    assert not project.result("runs/01_work--bad.failed.ipynb").exists()
    assert path.stat().st_mtime_ns == stamp

    code, out, err = project.call("run")
    assert (code, err) == (0, "") and out == "plan p: nothing to run, 2 of 2 runs are up to date\n"
    assert project.call("list")[1].split() == ["done", "01_work", "bad", "done", "01_work", "good"]


def started_runner(project: Project) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A runner in a process of its own, with the processes of a run that sleeps."""
    process = runner_process(project)
    return process, wait_for_kernel(process.pid)


def test_interrupt_stops_kernels_and_leaves_nothing_half_done(project: Project) -> None:
    process, others = started_runner(project)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted; the same command goes on with the runs that are missing\n"
    assert len(others) >= 2 and not psutil.wait_procs(others, timeout=10)[1]
    assert project.files() == [".lock"]


def test_a_killed_runner_frees_its_plan_and_its_runs_end(project: Project) -> None:
    process, others = started_runner(project)
    assert project.call("list")[1] == "runs    01_work  slow\n"
    assert "plan p is being run already" in project.error("run")
    process.kill()
    process.communicate(timeout=30)
    # the lock is free at once
    assert project.call("list")[1] == "failed  01_work  slow\n"
    assert len(others) >= 2 and not psutil.wait_procs(others, timeout=10)[1]


def test_results_removed_midway_give_a_sentence(project: Project) -> None:
    process, others = started_runner(project)
    shutil.rmtree(project.folder / "results")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and err.count("\n") == 1
    assert "removed while the plan ran" in err
    assert not psutil.wait_procs(others, timeout=10)[1]


# --- errors --------------------------------------------------------------------------------


def test_what_else_is_gone_is_not_blamed_on_the_results(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run_file("a.yaml")
    monkeypatch.setattr(sys, "executable", str(project.folder / "removed" / "python"))
    assert project.error("run").endswith(f": {sys.executable}\n")


def test_errors_before_a_run_is_started(project: Project) -> None:
    project.run_file("a.yaml")
    assert project.error("--jobs", "0").startswith("jobs = '0'")
    (project.folder / "results").write_text("in the way")
    err = project.error()
    assert "cannot write to" in err and "PRUNING_RESULTS" in err


def test_where_all_failed_nothing_is_said_of_records(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run_file("bad.yaml")
    (run,) = plans.read_plan("p")
    monkeypatch.setattr(command_line, "run_plan", lambda *_, **__: [(run, "ValueError: too sad")])
    code, _, err = project.call()
    expected = "1 run failed; run again to repeat:\n  01_work bad: ValueError: too sad\n"
    assert (code, err) == (1, expected)


def test_a_record_that_cannot_be_used(project: Project) -> None:
    project.run_file("a.yaml")
    assert "make reproduce PLAN=p" in project.error("tables"), "no record"
    path = project.result("records/01_work--a.json")
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "no')
    for command in ("verdict", "tables"):
        assert "is not JSON" in project.error(command)
    assert not is_done(plans.read_plan("p")[0])  # so the next run replaces it


# --- tables, verdict, accept, list ---------------------------------------------------------


def stamped(
    project: Project, name: str, value: float, reference: bool = False, **parameters: object
) -> None:
    """Write the record of a run, here or as the committed one."""
    (run,) = plans.read_plan(project.plan, f"01_work/{name}")
    measured = {"perplexity": (value, "1"), "sparsity": (0.5, "1"), "prune_seconds": (value, "s")}
    record = make_record(
        notebook=run.notebook,
        name=name,
        parameters=run.effective | parameters,
        metrics={key: {"value": x, "unit": unit} for key, (x, unit) in measured.items()},
        model=None,
        data=None,
        seeds={},
        seconds=1.0,
        device="cpu",
        peak_memory_bytes=1,
    )
    path = run.reference_path if reference else run.record_path
    write_record(path, record | {"fingerprint": fingerprint(run)})


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of tables and figures: of how many records they would be made."""
    made: list[int] = []
    monkeypatch.setattr(
        command_line, "write_tables_and_figures", lambda records, _: made.append(len(records))
    )
    return made


def test_verdict(project: Project) -> None:
    for name in ("a", "b", "c"):
        project.run_file(f"{name}.yaml")
    stamped(project, "a", 10.005)
    stamped(project, "b", 10.0)
    stamped(project, "a", 10.0, True)
    code, out, _ = project.call("verdict")
    path = project.result("verdict.txt")
    line = "1 of 1 runs reproduced, differences at most 0.05 % (same kind of machine)"
    assert code == 0 and out.splitlines()[0] == line and "+0.05 %" not in out
    assert "no reference for 1 run:" in out and out.endswith(f"every comparison: {path}\n")
    text = path.read_text()
    assert text.startswith(line) and "+0.05 %" in text and "prune_seconds" not in text

    # a missing record is not reproduced; a reference of other parameters is none; what is apart
    # is said
    stamped(project, "c", 10.0, True)
    stamped(project, "b", 10.6, True, rho=9.0)
    code, out, _ = project.call("verdict")
    assert code == 1 and "1 of 2 runs reproduced, 1 not run here" in out and "OUT" not in out
    stamped(project, "a", 10.1)
    code, out, _ = project.call("verdict")
    assert code == 1 and "0 of 2 runs reproduced" in out
    assert re.search(r"01_work a +perplexity .*\+1\.00 % .*OUT", out)

    # a reference from before a parameter was added meant its default
    stamped(project, "a", 10.0)
    (run,) = plans.read_plan("p", "a")
    record = read_record(run.reference_path)
    del record["parameters"]["steps"]
    write_record(run.reference_path, record)
    whole = path.read_text()
    out, part = project.call("verdict", "--only", "a")[1], project.result("verdict-part.txt")
    assert "1 of 1 runs reproduced" in out and out.endswith(f"every comparison: {part}\n")
    assert path.read_text() == whole and part.read_text().startswith("1 of 1 runs reproduced")
    project.run_file("a.yaml", "steps: 4")  # no longer what the reference can have meant
    stamped(project, "a", 10.0)
    out = project.call("verdict", "--only", "a")[1]
    assert "nothing to compare" in out and "no reference for 1 run:" in out


@pytest.mark.usefixtures("no_tables")
def test_what_a_run_ends_with(project: Project) -> None:
    for name in "ab":
        project.run_file(f"{name}.yaml")
        stamped(project, name, 10.0)
        stamped(project, name, 10.0, True)
    code, out, err = project.call("reproduce", "--only", "b")
    assert (code, err) == (0, "")
    numbers, verdict, _, following = out.splitlines()[-4:]
    assert numbers == "01_work b: perplexity 10.00, sparsity 0.500"
    assert verdict == "1 of 1 runs reproduced, differences at most 0.00 % (same kind of machine)"
    assert "make book" in following and "make lab" in following
    code, out, _ = project.call("reproduce")
    assert "2 of 2 runs reproduced" in out and "01_work a:" not in out


@pytest.mark.usefixtures("no_tables")
def test_a_report_during_a_run_says_so(project: Project) -> None:
    project.run_file("a.yaml")
    stamped(project, "a", 10.0)
    said = "a run of plan p is under way"
    assert said not in project.call("tables")[1]
    with schedule._lock("p"):
        assert said in project.call("tables")[1]
    assert said not in project.call("tables")[1]


def test_tables_of_a_part_say_what_is_missing(project: Project, no_tables: list[int]) -> None:
    for name in "ab":
        project.run_file(f"{name}.yaml")
    stamped(project, "a", 10.0)
    assert project.call("tables")[1].endswith("\n1 run of the plan without a record here\n")
    stamped(project, "b", 10.0)
    assert "without a record" not in project.call("tables")[1] and no_tables == [1, 2]


def test_accept_takes_what_is_there_and_keeps_the_rest(
    project: Project, no_tables: list[int]
) -> None:
    for name in "abc":
        project.run_file(f"{name}.yaml")
    assert "no run of plan p is up to date" in project.error("accept")
    assert "no records" in project.error("tables") and project.call("list")[0] == 0
    assert not project.result("").exists(), "who only asks makes no folder"
    stamped(project, "a", 10.0)
    stamped(project, "a", 3.0, True)
    stamped(project, "b", 4.0, True)
    stamped(project, "c", 5.0, True, rho=9.0)  # of another run than c.yaml asks for
    gone = project.run_file("gone.yaml")
    stamped(project, "gone", 6.0, True)
    gone.unlink()
    code, out, _ = project.call("accept")
    assert code == 0
    assert "accepted 1 records" in out and "kept 1 of before" in out
    assert "1 run of the plan without a record yet" in out
    folder = project.folder / "reference/p/records"
    values = {p.stem: read_record(p)["metrics"]["perplexity"]["value"] for p in folder.iterdir()}
    assert values == {"01_work--a": 10.0, "01_work--b": 4.0}
    assert no_tables == [2], "of all records"


def test_products_are_made_in_the_order_of_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # as `read_records` has them: the mean of several would differ in its last digit
    records = {"04--a": {"name": "a"}, "04--a-b": {"name": "a-b"}}
    for key in records:
        (tmp_path / f"{key}.json").touch()
    seen: list[Any] = []
    for name in ("write_tables", "write_published", "write_claims", "write_figures"):
        monkeypatch.setattr(command_line.results, name, lambda given, _: seen.append(given))
    command_line.write_tables_and_figures(records, tmp_path)
    assert seen == [[records[path.stem] for path in sorted(tmp_path.glob("*.json"))]] * 4


@pytest.mark.usefixtures("no_tables")
def test_accept_says_whether_the_records_of_full_stand(project: Project) -> None:
    project.plan = "laptop"
    for name in "ab":
        project.run_file(f"{name}.yaml")
        stamped(project, name, 10.0, True)

    def verdict(**values: float) -> str:
        for name, value in values.items():
            stamped(project, name, value)
        code, out, _ = project.call("accept")
        assert code == 0
        return out[out.index("accepted") :].partition("\n")[2].strip()

    # times and digits that no table prints may differ
    line = verdict(a=10.0 + 1e-9)
    assert line.startswith("1 run equal to the printed digits, 1 not compared: ")
    stand = "all 2 runs equal to the printed digits: the records of full stand"
    assert verdict(a=10.0, b=10.0 + 1e-9) == stand
    line, moved = verdict(b=10.1).splitlines()
    assert "make reproduce PLAN=full" in line and "01_work--b" in moved and "10.1" in moved
    assert verdict() == stand


def test_a_plan_that_was_never_run_lists_what_it_needs(project: Project) -> None:
    project.run_file("a.yaml")
    code, out, _ = project.call("list")
    assert code == 0 and "plan p: 0 of 1 runs are done" in out and "not estimated: 1 run" in out
    code, out, _ = project.call("list", "--machine", "t4")
    assert code == 0 and "On t4 (" in out and "not measured" in out
    assert "machine 't5' is unknown" in project.error("list", "--machine", "t5")
    stamped(project, "a", 10.0)
    assert project.call("list")[1] == "done    01_work  a\n"


class AtOnce:
    """A pool, and its runs, that take 20 s by a clock that nobody waits for."""

    slots, now = 2, 0.0

    def start(self, run: plans.Run, active: int) -> AtOnce | None:
        replace_file(run.job_path, "")
        return None if active else self

    def ended(self) -> bool:
        self.now += 20.0
        return True

    def error(self) -> None:
        return None


def test_time_left(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in "abc":
        project.run_file(f"{name}.yaml")
    pool, runs = AtOnce(), plans.read_plan("p")
    monkeypatch.setattr(schedule.time, "monotonic", lambda: pool.now)
    monkeypatch.setattr(schedule.time, "sleep", lambda _: None)

    def lines(**seconds: float) -> list[str]:
        monkeypatch.setattr(schedule, "reference_seconds", lambda run: seconds.get(run.name))
        schedule.Runner(runs, runs, pool).execute(runs)
        return [line.partition("about ")[2] for line in capsys.readouterr()[0].splitlines()]

    # two at a time, c like the mean of a and b; then half as fast as the committed runs
    assert lines(a=10.0, b=30.0) == ["30 s", "", "50 s left", "", "20 s left", "", ""]
    assert lines() == ["", "", "20 s left", "", "20 s left", "", ""]
    assert [schedule.format_seconds(x) for x in (41.4, 720, 9000)] == ["41 s", "12 min", "2.5 h"]
