"""Run a plan: execute its runs that are not done, several at a time, and print the progress.

By default two runs go at a time where there are two cores, 8 GB of memory and no GPU to share; the
cores are divided between them through OMP_NUM_THREADS and its relatives. With the address of a Dask
scheduler the runs go to its workers instead (`helpers.runner.cluster`).

A run that ends is a line with its main number, the committed one beside it. On a terminal its start
is a line too.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import filelock

from helpers import report  # its names are loaded on use: pandas takes seconds
from helpers.errors import RunError
from helpers.machine import cpus, has_nvidia_driver, ram
from helpers.paths import TABLES_NOTEBOOK, replace_file, results_dir
from helpers.runner.cluster import dask_pool
from helpers.runner.execute import execute, run_variables
from helpers.runner.fingerprint import fingerprint, is_done
from helpers.runner.plan import Run, read_plan

Record = dict[str, Any]
MEMORY_FOR_TWO = 7.5e9  # bytes; what a machine sold with 8 GB reports
STOP_SECONDS = 15.0  # for runs to end after Ctrl-C


def run_plan(plan: str, only: str, jobs: str, scheduler: str | None) -> None:
    """Execute the runs of a plan that are not done, the tables notebook last.

    Records without a run are moved to `results/<plan>/stale/`, or tables would count them.

    Raises RunError for a wrong plan or run file and for a cluster that cannot be reached before any
    run is started, and at the end if a run has failed.
    """
    known = {run.record_path for run in read_plan(plan)}
    runs = read_plan(plan, only)
    number = number_of_jobs(jobs)
    with lock_plan(plan) as marker:
        for path in set((results_dir(plan) / "records").glob("*.json")) - known:
            moved = results_dir(plan) / "stale" / path.name
            moved.parent.mkdir(exist_ok=True)
            write_line(f"a record without a run file is now {path.replace(moved)}")
        todo = [run for run in runs if not is_done(run)]
        if todo:  # a new record changes what the tables notebook shows
            todo = [
                run for run in runs if run in todo or run.notebook == TABLES_NOTEBOOK
            ]
        pool = dask_pool(scheduler, marker) if scheduler else local_pool(number, marker)
        with pool as (submit, slots):
            failures = execute_runs(runs, todo, submit, slots, marker)
    for run, error in failures:
        sys.stderr.write(f"{run.id}: {error} [{run.failed_path}]\n")
    if failures:
        raise RunError(
            f"{len(failures)} failed: the same command repeats what is missing"
        )


def number_of_jobs(jobs: str) -> int:
    """How many runs go at a time: a number, or "auto" (see the module's docstring).

    Raises RunError for anything else.
    """
    if jobs == "auto":
        large = cpus() >= 2 and ram()[1] >= MEMORY_FOR_TWO
        return 1 + (large and not has_nvidia_driver())
    if not jobs.isdecimal() or int(jobs) < 1:
        raise RunError(
            f'jobs = {jobs!r} is not possible: give "auto" or a number from 1'
        )
    return int(jobs)


@contextlib.contextmanager
def lock_plan(plan: str) -> Iterator[Path]:
    """Lock a plan for one runner, and give a marker file: its runs stop when that is deleted.

    Raises RunError if another runner has locked it, and OSError if its folder cannot be written.
    """
    folder = results_dir(plan)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    try:
        # the system frees it when the runner is killed
        lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunError(
            f"plan {plan} is being run already: wait, or stop that run"
        ) from error
    with lock:
        marker = replace_file(folder / ".wanted", "")
        try:
            yield marker
        finally:
            marker.unlink(missing_ok=True)


@contextlib.contextmanager
def local_pool(jobs: int, marker: Path) -> Iterator[Any]:
    """What starts a run, given with its fingerprint, and how many runs can go at a time.

    A thread waits for each kernel. Dask's LocalCluster would do the same in two more processes, and
    needs eight seconds before the first run starts.
    """
    variables = run_variables(max(1, cpus() // jobs))

    def submit(run: Run, code: dict) -> Future:
        return threads.submit(execute, run, code, variables, marker.is_file)

    with ThreadPoolExecutor(jobs) as threads:
        yield submit, lambda: jobs


def execute_runs(
    runs: list[Run],
    todo: list[Run],
    submit: Callable[[Run, dict], Future],
    slots: Callable[[], int],
    marker: Path,
) -> list[tuple[Run, str]]:
    """Execute the runs in `todo`, and return those that failed with their errors.

    Timed runs come after the others and the tables notebook last, each of them alone. The timed
    ones go seed by seed, forth and back, so that those that are compared run in turns and none is
    always first. Ctrl-C stops them all.
    submit: starts a run, given with its fingerprint. slots: how many can go at a time now.
    """
    titles = {
        run.id: f"[{n}/{len(runs)}] {report.run_title(run.id, run.effective)}"
        for n, run in enumerate(runs, 1)
    }
    # expected seconds of each run that has not ended; the sum of those that have, which here took
    # `taken` seconds
    expected = {run.id: reference_seconds(run) for run in todo}
    taken = ended = 0.0
    waiting = [run for _, run in sorted(enumerate(todo), key=place_in_order)]
    alone = {run.id for run in todo if run.timed or run.notebook == TABLES_NOTEBOOK}
    active = {}  # future → (run, time.monotonic() at its start)
    failures = []

    def limit(key: str) -> int:
        return 1 if key in alone else slots()

    write_line(
        f"plan {runs[0].plan}: {len(todo)} of {len(runs)} runs to do, {slots()} at a time"
    )
    try:
        while waiting or active:
            while waiting and len(active) < limit(waiting[0].id):
                run = waiting.pop(0)
                if sys.stdout.isatty():
                    write_line(f"{titles[run.id]} …")
                active[submit(run, fingerprint(run))] = (run, time.monotonic())
            # a second at a time: Ctrl-C was seen to get lost, under load, in a wait without end
            while not (done := wait(active, 1.0, FIRST_COMPLETED).done):
                pass
            for future in done:
                error = error_of(future)
                run, started = active.pop(future)
                seconds = time.monotonic() - started
                usual = expected.pop(run.id)
                if usual > 0:  # NaN is not
                    taken += seconds
                    ended += usual
                text = f"FAILED: {error}"
                if error is None:
                    text = f"{outcome(run)}, {format_seconds(seconds)}"
                else:
                    failures.append((run, error))
                    run.record_path.unlink(missing_ok=True)  # it may be half written
                left = sum(
                    s / min(limit(key), len(expected)) for key, s in expected.items()
                )
                if ended and left > 0:  # nothing is said of what is unknown
                    text += f"; about {format_seconds(taken / ended * left)} left"
                write_line(f"{titles[run.id]}: {text}")
    finally:
        if active:
            marker.unlink(missing_ok=True)
            wait(active, STOP_SECONDS)
        for run, _ in active.values():
            for path in (run.record_path, run.failed_path, run.log_path):
                path.unlink(missing_ok=True)
    return failures


def place_in_order(numbered: tuple[int, Run]) -> tuple[bool, bool, int, int]:
    """Whether it is the tables notebook's, whether it is timed, its seed if so, and its number.

    Of timed runs with an odd seed, the last comes first.
    """
    number, run = numbered
    seed = run.effective.get("calibration_seed", 0) if run.timed else 0
    return (
        run.notebook == TABLES_NOTEBOOK,
        run.timed,
        seed,
        -number if seed % 2 else number,
    )


def error_of(future: Future) -> str | None:
    """The error of a run in one line; None if it is done. Raises RunError for a lost scheduler."""
    if future.cancelled():
        raise RunError("the scheduler is gone: start it again and repeat the command")
    if raised := future.exception():  # such as a worker that was lost
        return f"{type(raised).__name__}: {raised}"
    return future.result()


def outcome(run: Run) -> str:
    """The main number of a run that is done, the committed one beside it; "done" without one."""
    if not run.record_path.is_file():  # a cluster's shared folder may show it later
        return "done"
    main = report.main_number(report.read_record(run.record_path))
    if not main:
        return "done"
    name, value = main
    text = f"{name} {report.format_number(value)}"
    committed = committed_record(run)
    if ours := committed and report.main_number(committed):
        text += f" (ours {report.format_number(ours[1])})"
    return text


def committed_record(run: Run) -> Record | None:
    """The committed record of a run; None if there is none with the run's parameters."""
    if not run.reference_path.is_file():
        return None
    record = report.read_record(run.reference_path)
    today = {"notebook": run.notebook, "parameters": run.effective}
    return record if report.same_run(today, record, run.defaults) else None


def reference_seconds(run: Run) -> float:
    """How long the committed run took; NaN if there is none."""
    if record := committed_record(run):
        return record.get("run_seconds", record["seconds"])
    return math.nan


def format_seconds(seconds: float) -> str:
    """A duration such as "41 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def write_line(text: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
