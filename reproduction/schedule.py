"""Run a plan: execute its runs that are not done, several at a time, and print the progress.

By default two runs go at a time where there are two cores, 8 GB of memory and no GPU to share; the
cores are divided between them through OMP_NUM_THREADS and its relatives. With the address of a Dask
scheduler the runs go to its workers instead (`reproduction.cluster`).

A run that ends is a line with its main number, the committed one beside it. On a terminal its start
is a line too.
"""

import contextlib
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import filelock

from helpers.errors import RunError
from helpers.memory import ram
from helpers.paths import TABLES_NOTEBOOK, results_dir
from reproduction.cluster import dask_pool
from reproduction.execute import Pool, execute, run_variables
from reproduction.fingerprint import fingerprint, is_done
from reproduction.labels import run_title
from reproduction.machine import cpus, has_nvidia_driver
from reproduction.plan import Run, read_plan
from reproduction.records import read_record, run_seconds

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
    with lock_plan(plan):
        for path in set((results_dir(plan) / "records").glob("*.json")) - known:
            moved = results_dir(plan) / "stale" / path.name
            moved.parent.mkdir(exist_ok=True)
            write_line(f"a record without a run file is now {path.replace(moved)}")
        todo = [run for run in runs if not is_done(run)]
        if todo:  # a new record changes what the tables notebook shows
            todo = [
                run for run in runs if run in todo or run.notebook == TABLES_NOTEBOOK
            ]
        pool = dask_pool(scheduler, plan) if scheduler else local_pool(number)
        with pool as workers:
            failures = execute_runs(runs, todo, workers)
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
        if cpus() < 2 or ram()[1] < MEMORY_FOR_TWO or has_nvidia_driver():
            return 1
        return 2
    if not jobs.isdecimal() or int(jobs) < 1:
        raise RunError(
            f'jobs = {jobs!r} is not possible: give "auto" or a number from 1'
        )
    return int(jobs)


@contextlib.contextmanager
def lock_plan(plan: str) -> Iterator[None]:
    """Lock a plan for one runner, and make the folders that it writes to.

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
        yield


@contextlib.contextmanager
def local_pool(jobs: int) -> Iterator[Pool]:
    """Run on this machine, `jobs` at a time: a thread waits for each kernel.

    Dask's LocalCluster would do the same in two more processes, and needs eight seconds before the
    first run starts.
    """
    variables = run_variables(max(1, cpus() // jobs))
    stopped = threading.Event()

    def submit(run: Run, code: dict[str, str]) -> Future:
        return threads.submit(execute, run, code, variables, stopped.is_set)

    with ThreadPoolExecutor(jobs) as threads:
        yield Pool(submit, slots=lambda: jobs, stop=stopped.set)


# --- order and progress -----------------------------------------------------------------------


class Progress:
    """A line for each run that ends, with the time that is left; on a terminal one at its start.

    What is left is what the committed runs took, in proportion to how long those that have ended
    took here. Nothing is said while a run is left that has no committed record.
    """

    def __init__(self, runs: list[Run], todo: list[Run], pool: Pool) -> None:
        self._titles = {run.id: run_title(run.id, run.effective) for run in runs}
        self._done = len(runs) - len(todo)
        # what each run took, and whether it is alone
        self._left = {run.id: (reference_seconds(run), is_alone(run)) for run in todo}
        self._slots = pool.slots
        self._started: dict[str, float] = {}
        # of runs that have ended and have a committed record: seconds here, and there
        self._here = self._there = 0.0

    def start(self, run: Run) -> None:
        """Note that a run starts."""
        if sys.stdout.isatty():
            write_line(f"{self._titles[run.id]} …")
        self._started[run.id] = time.monotonic()

    def end(self, run: Run, error: str | None) -> None:
        """Print how a run has ended: its main number and seconds, or its error."""
        seconds = time.monotonic() - self._started[run.id]
        committed, _ = self._left.pop(run.id)
        if committed > 0:  # NaN is not
            self._here += seconds
            self._there += committed
        text = f"FAILED: {error}"
        if error is None:
            self._done += 1
            text = f"{outcome(run)}, {format_seconds(seconds)}"
        slots = min(self._slots(), len(self._left))
        left = sum(
            usual / (1 if alone else slots) for usual, alone in self._left.values()
        )
        if self._there and left > 0:
            text += f"; about {format_seconds(self._here / self._there * left)} left"
        done = f"({self._done} of {len(self._titles)} done)"
        write_line(f"{done} {self._titles[run.id]}: {text}")


def execute_runs(runs: list[Run], todo: list[Run], pool: Pool) -> list[tuple[Run, str]]:
    """Execute the runs in `todo`, and return those that failed with their errors.

    As many go at a time as the pool has slots; timed runs come after the others and the tables
    notebook last, each of them alone. If it is interrupted, it stops them and leaves nothing of
    those that had not ended.
    """
    write_line(
        f"plan {runs[0].plan}: {len(todo)} of {len(runs)} runs to do, "
        f"{pool.slots()} at a time"
    )
    waiting = sorted(
        in_turns(todo), key=lambda run: (is_alone(run), run.notebook == TABLES_NOTEBOOK)
    )
    progress = Progress(runs, todo, pool)
    active: dict[Future, Run] = {}
    failures = []
    try:
        while waiting or active:
            # what comes after a run that is alone is alone too
            while waiting and len(active) < (
                1 if is_alone(waiting[0]) else pool.slots()
            ):
                run = waiting.pop(0)
                progress.start(run)
                active[pool.submit(run, fingerprint(run))] = run
            # a second at a time: Ctrl-C was seen to get lost, under load, in a wait without end
            while not (done := wait(active, 1.0, FIRST_COMPLETED).done):
                pass
            for future in done:
                error = error_of(future)
                run = active.pop(future)
                if error is not None:
                    failures.append((run, error))
                    run.record_path.unlink(missing_ok=True)  # it may be half written
                progress.end(run, error)
    except BaseException:
        pool.stop()
        wait(active, STOP_SECONDS)
        for run in active.values():
            for path in (run.record_path, run.failed_path, run.log_path):
                path.unlink(missing_ok=True)
        raise
    return failures


def is_alone(run: Run) -> bool:
    """Whether no other run of the plan goes at the same time."""
    return run.timed or run.notebook == TABLES_NOTEBOOK


def in_turns(runs: list[Run]) -> list[Run]:
    """Runs seed by seed, forth for an even seed and back for an odd one.

    Those of one seed are compared with each other. So they run soon after each other, on the same
    machine if the plan is finished on another, and none is always the first, while the processor is
    still cool.
    """
    by_seed = defaultdict(list)
    for run in runs:
        by_seed[run.effective.get("calibration_seed", 0)].append(run)
    ordered = []
    for seed in sorted(by_seed):
        ordered += by_seed[seed][::-1] if seed % 2 else by_seed[seed]
    return ordered


# --- records and lines ------------------------------------------------------------------------


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
    # here: pandas takes a second
    from reproduction.compare import main_number
    from reproduction.markdown import format_number

    main = main_number(read_record(run.record_path))
    if not main:
        return "done"
    name, value = main
    text = f"{name} {format_number(value)}"
    committed = committed_record(run)
    if ours := committed and main_number(committed):
        text += f" (ours {format_number(ours[1])})"
    return text


def committed_record(run: Run) -> dict[str, Any] | None:
    """The committed record of a run; None if there is none with the run's parameters."""
    if not run.reference_path.is_file():
        return None
    from reproduction.compare import same_run  # here: pandas takes a second

    record = read_record(run.reference_path)
    today = {"notebook": run.notebook, "parameters": run.effective}
    return record if same_run(today, record, run.defaults) else None


def reference_seconds(run: Run) -> float:
    """How long the committed run took; NaN if there is none."""
    if record := committed_record(run):
        return run_seconds(record)
    return math.nan


def format_seconds(seconds: float) -> str:
    """A duration such as "41 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def write_line(text: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
