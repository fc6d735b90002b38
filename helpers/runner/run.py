"""Run a plan: every run file through papermill, then tables, figures and the verdict.

    python -m helpers.runner [reproduce] --plan laptop [--jobs 2] [--only '04*']
    python -m helpers.runner run | tables | verdict | report | accept | assets | list --plan laptop

Run files are checked by `helpers.runner.plan` before anything starts. Each run is a process of its own
(`helpers.runner.execute`), so a kernel that dies, or a machine that runs out of memory, costs one run.

By default two runs go side by side where there are two cores, 8 GB of memory and no GPU to share;
the cores are divided between them through OMP_NUM_THREADS and its relatives. With
`--scheduler tcp://host:8786` the runs go to the workers of a Dask cluster (docs/cluster.md).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import HelpersError, RecordError, RunError
from helpers.machine import ram, running_plans
from helpers.paths import reference_dir, replace_file, results_dir
from helpers.records import read_record, read_records, write_record
from helpers.results import judge, same_run, to_lines
from helpers.runner import plan as plans
from helpers.runner.child import (
    Child,
    Files,
    cores,
    environment,
    format_seconds,
    show_path,
    start,
)
from helpers.runner.plan import Run

MEMORY_FOR_TWO = 7.5e9  # bytes; what a machine sold with 8 GB reports
WRITERS = {
    "tables": "write_tables",
    "published": "write_published",
    "claims": "write_claims",
    "plots": "write_figures",
}
INTERRUPTED = 130  # the shell's code for Ctrl-C
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Failure:
    """A run that failed, with its error in one line."""

    run: Run
    error: str


@dataclass
class Active:
    """A run that is being executed."""

    run: Run
    child: Any  # helpers.runner.child.Child, or what stands for one on a worker
    started: float  # time.monotonic()
    log: Path


def say(text: str) -> None:
    """Write a line for the person who waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write an error line."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# --- the machine ---------------------------------------------------------------------------


def choose_jobs(wanted: str) -> int:
    """How many runs go side by side: a number, or "auto" (see the module's docstring).

    Raises RunError for anything else.
    """
    if wanted == "auto":
        roomy = cores() >= 2 and ram()[1] >= MEMORY_FOR_TWO
        return 2 if roomy and shutil.which("nvidia-smi") is None else 1
    if not wanted.isdecimal() or int(wanted) < 1:
        raise RunError(f'jobs = {wanted!r} is not possible: give "auto" or a number from 1')
    return int(wanted)


def _files(run: Run, scratch: Path) -> Files:
    """The files through which the runner and the process of a run speak."""
    return Files(
        job=run.job_path,
        outcome=scratch / f"{run.id}.error",
        log=run.executed_path.with_name(f"{run.id}.log"),
    )


@contextlib.contextmanager
def _workplace(plan: str) -> Iterator[Path]:
    """A scratch folder inside the plan's results, held by one runner at a time.

    Raises RunError if the results folder cannot be written or another runner holds it.
    """
    folder = results_dir(plan)
    scratch = plans.scratch_dir(plan)
    try:
        for name in ("records", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - held until the end of this function
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"cannot write to {folder}: {reason}; make it writable or set PRUNING_RESULTS"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"plan {plan} is being run already: wait, or stop that run") from error
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


# --- time left -----------------------------------------------------------------------------


class Clock:
    """Estimates the time left from the committed records, at this machine's own pace."""

    def __init__(self, runs: list[Run], jobs: int) -> None:
        self._jobs = jobs
        self._waiting = {run.id: run for run in runs}
        self._expected = {run.id: _reference_seconds(run) for run in runs}
        self._took: dict[str, float] = {}

    def finish(self, run: Run, seconds: float) -> None:
        """Note that a run has ended after some seconds."""
        self._took[run.id] = seconds
        self._waiting.pop(run.id)

    def left(self, elapsed: dict[str, float]) -> float | None:
        """Seconds left, given the seconds since the start of the runs under way; None: unknown."""
        known = [key for key in self._took if self._expected[key]]
        expected = sum(self._expected[key] for key in known)
        pace = sum(self._took[key] for key in known) / expected if expected else 1.0
        total = 0.0
        for key in self._waiting:
            guess = (self._expected[key] or 0) * pace or self._mean()
            if not guess:
                return None
            total += max(guess - elapsed.get(key, 0.0), 0.0)
        return total / max(1, min(self._jobs, len(self._waiting)))

    def _mean(self) -> float:
        """Mean seconds of the runs that have ended; 0 if there are none."""
        return sum(self._took.values()) / len(self._took) if self._took else 0.0


def _reference_seconds(run: Run) -> float | None:
    """How long the committed run took, if there is one."""
    try:
        record = read_record(reference_dir(run.plan) / "records" / f"{run.id}.json")
    except RecordError:
        return None
    return record.get("run_seconds", record["seconds"])


# --- running -------------------------------------------------------------------------------


class LocalPool:
    """Executes runs on this machine, a fixed number side by side."""

    def __init__(self, jobs: int, scratch: Path) -> None:
        self.slots = jobs
        self._environment = environment(os.environ, max(1, cores() // jobs), scratch)

    def has_room(self, run: Run, active: int) -> bool:
        """Whether a run can be started while so many are under way."""
        return active < self.slots

    def start(self, run: Run, files: Files) -> Child:
        """Start a run."""
        return start(files, self._environment)


class Runner:
    """Executes runs side by side in a pool and tells how far it is.

    The pool is a `LocalPool` or a `helpers.runner.cluster.Pool`; what it starts can be asked whether it
    has `ended()` and with which `error()`, and told to `stop()`.
    """

    def __init__(self, all_runs: list[Run], scratch: Path, pool: Any) -> None:
        self._places = {run.id: place for place, run in enumerate(all_runs, start=1)}
        self._scratch = scratch
        self._pool = pool
        self._active: list[Active] = []
        self._failures: list[Failure] = []

    def execute(self, runs: list[Run], clock: Clock) -> list[Failure]:
        """Execute the runs; return the failures in the plan's order. Ctrl-C stops them all."""
        waiting = list(runs)
        try:
            while waiting or self._active:
                for run in list(waiting):
                    if self._pool.has_room(run, len(self._active)):
                        waiting.remove(run)
                        self._start(run)
                self._collect(clock)
                time.sleep(POLL_SECONDS)
        except BaseException:
            for active in self._active:
                self._abandon(active)
            raise
        failures, self._failures = self._failures, []
        return sorted(failures, key=lambda failure: self._places[failure.run.id])

    def _start(self, run: Run) -> None:
        """Start a run; what an earlier one left is removed first, so it cannot pass for new."""
        for path in (run.record_path, run.executed_path, run.failed_path):
            path.unlink(missing_ok=True)
        files = _files(run, self._scratch)
        job = {
            "plan": run.plan,
            "notebook": run.notebook,
            "name": run.name,
            "source": str(run.source_path),
            "failed": str(run.failed_path),
            "executed": str(run.executed_path),
            "record": str(run.record_path),
            "given": run.parameters,
            "effective": run.effective,
            "fingerprint": plans.fingerprint(run),
            "outcome": str(files.outcome),
        }
        replace_file(files.job, json.dumps(job))
        child = self._pool.start(run, files)
        self._active.append(Active(run, child, time.monotonic(), files.log))
        self._tell(run, "…")

    def _tell(self, run: Run, text: str) -> None:
        """One progress line."""
        total = len(self._places)
        place = str(self._places[run.id]).rjust(len(str(total)))
        say(f"[{place}/{total}] {run.notebook} {run.name} {text}")

    def _collect(self, clock: Clock) -> None:
        """Take in the runs that have ended."""
        for active in [item for item in self._active if item.child.ended()]:
            self._active.remove(active)
            now = time.monotonic()
            seconds = now - active.started
            clock.finish(active.run, seconds)
            left = clock.left({item.run.id: now - item.started for item in self._active})
            error = self._finish(active)
            text = f"done in {format_seconds(seconds)}" if error is None else f"FAILED: {error}"
            if left is not None and left >= 1:
                text += f"; about {format_seconds(left)} left"
            self._tell(active.run, text)

    def _finish(self, active: Active) -> str | None:
        """Tidy up after a run that has ended, and return its error if it failed."""
        active.run.job_path.unlink(missing_ok=True)
        error = active.child.error()
        if error is None:
            return None
        active.run.record_path.unlink(missing_ok=True)  # a failed run has no record
        self._failures.append(Failure(active.run, error))
        return error

    def _abandon(self, active: Active) -> None:
        """Stop a run with its kernel and remove what it has half written."""
        active.child.stop()
        run = active.run
        for path in (run.job_path, run.record_path, run.failed_path, active.log):
            path.unlink(missing_ok=True)


def run_plan(
    plan: str, *, jobs: str = "auto", only: str | None = None, scheduler: str | None = None
) -> list[Failure]:
    """Execute the runs of a plan that are not done, the tables notebook last; return failures.

    With the address of a Dask scheduler they run on its workers, else here.

    Raises RunError for a wrong plan or run file, and for a cluster that cannot be used, before
    anything is started.
    """
    every_run = plans.read_plan(plan)
    runs = plans.read_plan(plan, only)
    count = choose_jobs(jobs)
    if scheduler and jobs != "auto":
        raise RunError(
            f"jobs = {jobs!r} and scheduler = {scheduler!r} exclude each other: the workers of "
            "a cluster decide how many runs go side by side; leave JOBS out"
        )
    with _workplace(plan) as scratch:
        _note_orphans(plan, every_run)
        todo = [run for run in runs if not plans.is_done(run)]
        # a changed record changes what the tables notebook shows
        last = [run for run in runs if run.notebook == plans.TABLES_NOTEBOOK]
        first = [run for run in todo if run not in last]
        todo = first + [run for run in last if run in todo or first]
        with _pool(scheduler if todo else None, count, todo, scratch) as pool:
            clock = Clock(todo, pool.slots)
            _announce(plan, len(runs), len(todo), pool.slots, clock.left({}))
            runner = Runner(runs, scratch, pool)
            failures = runner.execute(first, clock)
            return failures + runner.execute([run for run in last if not plans.is_done(run)], clock)


@contextlib.contextmanager
def _pool(scheduler: str | None, jobs: int, todo: list[Run], scratch: Path) -> Iterator[Any]:
    """Where runs are executed: here, or on the workers of a Dask cluster."""
    if not scheduler:
        yield LocalPool(jobs, scratch)
        return
    try:
        # loaded by name and only here: most people have no cluster, and need no Dask
        cluster = importlib.import_module("helpers.runner.cluster")
    except ModuleNotFoundError as error:
        raise RunError(
            f"scheduler = {scheduler!r} needs the package {error.name}, which is not installed: "
            "run .venv/bin/python -m pip install -c constraints.txt -e '.[cluster]'"
        ) from error
    with cluster.connect(scheduler, todo, scratch, complain) as pool:
        yield pool


def _note_orphans(plan: str, runs: list[Run]) -> None:
    """Move records without a run file aside, and say so."""
    moved = plans.move_orphans(plan, runs)
    if moved:
        where = show_path(results_dir(plan) / "stale")
        say(f"moved {len(moved)} records without a run file to {where}")


def _announce(plan: str, total: int, todo: int, jobs: int, left: float | None) -> None:
    """Say what is going to happen."""
    if not todo:
        say(f"plan {plan}: nothing to run, {total} of {total} runs are up to date")
        return
    time_left = "" if left is None else f", about {format_seconds(left)}"
    say(f"plan {plan}: {todo} of {total} runs to do, {min(jobs, todo)} at a time{time_left}")


# --- commands ------------------------------------------------------------------------------


def reproduce(options: argparse.Namespace) -> int:
    """Run the plan, write tables and figures, give the verdict; failures come last."""
    failures = _run_as_asked(options)
    if failures and not _record_files(options.plan):
        return _report(failures)  # nothing to make tables of, and that is not the news
    try:
        status = write_products(options) or give_verdict(options)
    except HelpersError as error:
        complain(str(error))
        status = 1
    return _report(failures) or status


def run_only(options: argparse.Namespace) -> int:
    """Run the plan and nothing else."""
    return _report(_run_as_asked(options))


def _run_as_asked(options: argparse.Namespace) -> list[Failure]:
    """Run the plan as the command line says."""
    return run_plan(options.plan, jobs=options.jobs, only=options.only, scheduler=options.scheduler)


def _report(failures: list[Failure]) -> int:
    """Name the failed runs, each with its error and its notebook; the exit code."""
    if not failures:
        return 0
    complain(f"{len(failures)} run{'s' if len(failures) > 1 else ''} failed; run again to repeat:")
    for failure in failures:
        run = failure.run
        place = f" [{show_path(run.failed_path)}]" if run.failed_path.is_file() else ""
        complain(f"  {run.notebook} {run.name}: {failure.error}{place}")
    return 1


def write_products(options: argparse.Namespace) -> int:
    """Write tables and figures from the records of a plan. No model is loaded."""
    folder = results_dir(options.plan)
    records = _records_here(options.plan)
    _draw(records, folder)
    say(f"tables and figures of {len(records)} records: {show_path(folder)}/tables, figures")
    missing = len(plans.read_plan(options.plan)) - len(records)
    if missing:
        without = "1 run has" if missing == 1 else f"{missing} runs have"
        say(f"{without} no record here{_beside(options.plan)}")
    return 0


def _beside(plan: str) -> str:
    """Where committed records are shown beside one's own, if the plan has any."""
    if not _reference_records(plan):
        return ""
    return f": make report PLAN={plan} sets the committed ones beside these"


def _records_here(plan: str) -> list[dict[str, Any]]:
    """The records of a plan's runs on this machine; RunError if there are none."""
    paths = _record_files(plan)
    if not paths:
        folder = show_path(results_dir(plan) / "records")
        raise RunError(f"no records in {folder}: run make reproduce PLAN={plan} first")
    return [read_record(path) for path in paths]


def _record_files(plan: str) -> list[Path]:
    """The files of the records of a plan's runs on this machine."""
    known = {run.record_path.name for run in plans.read_plan(plan)}
    paths = sorted((results_dir(plan) / "records").glob("*.json"))
    return [path for path in paths if path.name in known]


def give_verdict(options: argparse.Namespace) -> int:
    """Compare the records here with the committed ones of the same runs; 1 if one is apart."""
    found = judge(
        plans.read_plan(options.plan, options.only),
        _reference_records(options.plan),
        _reference_records("full"),
    )
    for line in to_lines(found.comparisons) if found.comparisons else ():
        say(line)
    if found.without:
        say(f"no reference for {found.without} runs")
    if found.compared:
        say(f"reproduced {found.reproduced} of {found.compared}")
    return int(found.reproduced < found.compared)


def write_report(options: argparse.Namespace) -> int:
    """Write results/report.html, a page on what was reproduced, with the executed notebooks."""
    report = importlib.import_module("helpers.report")  # loads pandas, matplotlib and nbconvert
    page = report.write_report(options.plan, say)
    say(f"the report: {show_path(page)}")
    return 0


def _reference_records(plan: str) -> list[dict[str, Any]]:
    """The committed records of a plan."""
    return read_records(reference_dir(plan) / "records")


def accept(options: argparse.Namespace) -> int:
    """Make the records that are up to date here the committed reference of their runs.

    Runs that were not done here keep the record they have, so that a long plan can be accepted in
    parts. Tables and figures are made again from all of them.
    """
    runs = plans.read_plan(options.plan, options.only)
    fresh = [read_record(run.record_path) for run in runs if plans.is_done(run)]
    if not fresh:
        raise RunError(
            f"no run of plan {options.plan} is up to date here: "
            f"run make reproduce PLAN={options.plan} first"
        )
    kept, without = _kept_records(options.plan, {plans.record_id(record) for record in fresh})
    target = reference_dir(options.plan)
    try:
        _replace_reference(target, sorted([*fresh, *kept], key=plans.record_id))
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
    unclean = sum((record["git"] or {"dirty": True})["dirty"] for record in fresh)
    if unclean:
        say(f"note: {unclean} of {len(fresh)} records come from code that was not committed")
    say(f"accepted {len(fresh)} records into {show_path(target)}, kept {len(kept)} of before")
    prints = {run.id: plans.fingerprint(run) for run in plans.read_plan(options.plan)}
    older = sum(record.get("fingerprint") != prints[plans.record_id(record)] for record in kept)
    if older:
        say(f"note: {older} of those kept were made by other code than today's")
    if without:
        say(f"{without} runs of the plan have no record yet")
    return 0


def _kept_records(plan: str, replaced: set[str]) -> tuple[list[dict[str, Any]], int]:
    """Committed records that still belong to a run file, and how many run files have none."""
    committed = {plans.record_id(record): record for record in _reference_records(plan)}
    kept, without = [], 0
    for run in plans.read_plan(plan):
        if run.id in replaced:
            continue
        record = committed.get(run.id)
        asked = {"notebook": run.notebook, "parameters": run.effective}
        if record is not None and same_run(asked, record, run.defaults):
            kept.append(record)
        else:
            without += 1
    return kept, without


def _replace_reference(target: Path, records: list[dict[str, Any]]) -> None:
    """Put records, and the tables and figures made of them, in the place of `target`."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for record in records:
            write_record(fresh / "records" / f"{plans.record_id(record)}.json", record)
        _draw(records, fresh)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _draw(records: list[dict[str, Any]], folder: Path) -> None:
    """Write the tables and figures of records into a folder. No model is loaded."""
    # loaded by name and only here: pandas and matplotlib take seconds
    for module, write in WRITERS.items():
        product = "figures" if module == "plots" else "tables"
        getattr(importlib.import_module(f"helpers.{module}"), write)(records, folder / product)


def fetch_assets(options: argparse.Namespace) -> int:
    """Download what the runs of a plan read, and nothing else."""
    names = plans.assets_needed(plans.read_plan(options.plan, options.only))
    return importlib.import_module("helpers.assets").main(names) if names else 0


def list_runs(options: argparse.Namespace) -> int:
    """Say what a plan holds: done, under way, failed or to do, and how long committed runs took.

    For a plan that was never run, here or for the reference, or with --machine: what each run
    would need, and what is missing here; nothing is downloaded for that.
    """
    runs = plans.read_plan(options.plan, options.only)
    under_way = plans.under_way(runs, running_plans())
    states = [_state(run, under_way) for run in runs]
    known = _reference_records(options.plan) or set(states) != {"to do"}
    if options.machine or not known:
        return _list_needs(runs, states.count("done"), options)
    for run, state in zip(runs, states, strict=True):
        seconds = _reference_seconds(run)
        cost = "" if seconds is None else f"  {format_seconds(seconds)}"
        say(f"{state:6}  {run.notebook}  {run.name}{cost}")
    return 0


def _state(run: Run, under_way: Collection[str]) -> str:
    """Whether a run is done, under way (one of these ids), failed or to do."""
    if plans.is_done(run):
        return "done"
    if run.id in under_way:
        return "runs"
    return "failed" if run.failed_path.is_file() else "to do"


def _list_needs(runs: list[Run], done: int, options: argparse.Namespace) -> int:
    """Memory, disk and hours of each run, and what is missing; `done` of them are done."""
    say(f"plan {options.plan}: {done} of {len(runs)} runs are done")
    estimate = importlib.import_module(
        "helpers.machine.estimate"
    )  # loads torch, which takes seconds
    machine = estimate.machine_named(options.machine) if options.machine else None
    for line in estimate.plan_lines(runs, machine):
        say(line)
    return 0


COMMANDS = {
    "reproduce": reproduce,
    "run": run_only,
    "tables": write_products,
    "verdict": give_verdict,
    "report": write_report,
    "accept": accept,
    "assets": fetch_assets,
    "list": list_runs,
}


def _options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.runner.run", description="Run a plan.")
    parser.add_argument("command", nargs="?", default="reproduce", choices=COMMANDS)
    parser.add_argument("--plan", default="laptop", help="a folder of runs/ (default: laptop)")
    parser.add_argument("--jobs", default="auto", help='runs side by side, or "auto"')
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on this Dask cluster instead")
    parser.add_argument("--only", metavar="GLOB", help="runs whose notebook or name matches")
    parser.add_argument("--machine", help="for list: what it would take on t4, a100-80g …")
    return parser.parse_args(arguments)


def _stop(signum: int, frame: object) -> None:
    """Treat being told to end like Ctrl-C, so that kernels are stopped too."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line each."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    handler = signal.signal(signal.SIGTERM, _stop)
    try:
        return COMMANDS[options.command](options)
    except HelpersError as error:
        complain(str(error))
        return 1
    except OSError as error:
        complain(f"{error.strerror or type(error).__name__}: {error.filename or error}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on with the runs that are missing")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, handler)
