"""Execute the runs of a plan that are not done, side by side, and say how far it is.

By default two runs go side by side where there are two cores, 8 GB of memory and no GPU to share;
the cores are divided between them through OMP_NUM_THREADS and its relatives. With the address of a
Dask scheduler the same function goes to its workers instead (docs/cluster.md).
"""

import contextlib
import functools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import filelock

from helpers.errors import RunError, first_line
from helpers.machine import cpus, ram
from helpers.paths import TABLES_NOTEBOOK, replace_file, results_dir
from helpers.report import read_record
from helpers.runner.execute import execute, run_variables
from helpers.runner.fingerprint import fingerprint, is_done
from helpers.runner.plan import Run, read_plan

MEMORY_FOR_TWO = 7.5e9  # bytes; what a machine sold with 8 GB reports
USUAL_SECONDS = 60.0  # of a run without a committed record
STOP_SECONDS = 15.0  # for runs to end after Ctrl-C
WAIT_SECONDS = 30  # for a scheduler, and for its first worker


def say(text: str, *, error: bool = False) -> None:
    """Write a line to standard output or error, at once."""
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def format_seconds(seconds: float) -> str:
    """A duration for people: "41 s", "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def reference_seconds(run: Run) -> float | None:
    """How long the committed run took, if there is one."""
    record = read_record(run.reference_path) if run.reference_path.is_file() else {}
    return record.get("run_seconds", record.get("seconds"))


def choose_jobs(jobs: str) -> int:
    """How many runs go side by side: a number, or "auto" (see the module's docstring).

    Raises RunError for anything else.
    """
    if jobs == "auto":
        large = len(cpus()) >= 2 and ram()[1] >= MEMORY_FOR_TWO
        return 2 if large and shutil.which("nvidia-smi") is None else 1
    if not jobs.isdecimal() or int(jobs) < 1:
        raise RunError(
            f'jobs = {jobs!r} is not possible: give "auto" or a number from 1'
        )
    return int(jobs)


@contextlib.contextmanager
def _holding(plan: str) -> Iterator[Path]:
    """Lock a plan for one runner. Gives a marker file: its runs stop when that is deleted.

    Raises RunError if another runner holds it, and OSError if its folder cannot be written.
    """
    (results_dir(plan) / "runs").mkdir(parents=True, exist_ok=True)
    try:
        # the system frees it when the runner is killed
        lock = filelock.FileLock(results_dir(plan) / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunError(
            f"plan {plan} is being run already: wait, or stop that run"
        ) from error
    with lock:
        marker = replace_file(results_dir(plan) / ".wanted", "")
        try:
            yield marker
        finally:
            marker.unlink(missing_ok=True)


def run_plan(
    plan: str,
    *,
    jobs: str = "auto",
    only: str | None = None,
    scheduler: str | None = None,
) -> list[tuple[Run, str]]:
    """Execute the runs of a plan that are not done, the tables notebook last; return failures.

    Records without a run are moved to `results/<plan>/stale/`, or tables would count them.

    Raises RunError for a wrong plan or run file, and for a cluster that cannot be reached, before
    anything is started.
    """
    every_run, runs, slots = read_plan(plan), read_plan(plan, only), choose_jobs(jobs)
    with _holding(plan) as marker:
        stale, known = (
            results_dir(plan) / "stale",
            {run.record_path for run in every_run},
        )
        for path in set((results_dir(plan) / "records").glob("*.json")) - known:
            stale.mkdir(exist_ok=True)
            say(f"a record without a run file is now {path.replace(stale / path.name)}")
        todo = [run for run in runs if not is_done(run)]
        if todo:  # a new record changes what the tables notebook shows
            todo = [
                run for run in runs if run in todo or run.notebook == TABLES_NOTEBOOK
            ]
        with _pool(scheduler, slots, marker) as pool:
            return _execute(runs, todo, pool, marker)


@contextlib.contextmanager
def _pool(scheduler: str | None, jobs: int, marker: Path) -> Iterator[Any]:
    """Two functions: how many runs can go side by side now, and what starts one, here or on a Dask
    cluster, and gives its Future.

    What starts a run takes the run and its fingerprint.

    Here a thread waits for each kernel. Dask's LocalCluster would do the same in two more
    processes, and needs eight seconds before the first run starts.
    """
    if not scheduler:
        variables = run_variables(max(1, len(cpus()) // jobs))
        with ThreadPoolExecutor(jobs) as threads:
            start = functools.partial(threads.submit, execute)
            yield lambda: jobs, lambda *job: start(*job, variables, marker.is_file)
        return
    with connect(scheduler) as client:
        # one thread, as Dask gives its workers, unless the environment here says otherwise
        variables = run_variables(1)

        def submit(run: Run, code: dict) -> Future:
            resources = {"GPU": 1} if wants_gpu(run) else None
            executor = client.get_executor(pure=False, resources=resources)
            return executor.submit(execute_on_worker, run, code, variables, marker)

        yield lambda: max(1, len(client.nthreads())), submit


def _execute(
    runs: list[Run], todo: list[Run], pool: Any, marker: Path
) -> list[tuple[Run, str]]:
    """Execute those of the runs that are to do; return the failures. Ctrl-C stops them all.

    Runs that are timed come after the others, and the tables notebook last: each of them alone. The
    timed ones go seed by seed, so that those that are compared run in turns.
    """
    slots, submit = pool
    titles = {run.id: f"[{n}/{len(runs)}] {run.id}" for n, run in enumerate(runs, 1)}
    # expected seconds of each run that has not ended, and those of all that have, which here
    # took `took`
    expected = {run.id: reference_seconds(run) or USUAL_SECONDS for run in todo}
    took = ended = 0.0
    alone = {run.id: (run.notebook == TABLES_NOTEBOOK, run.timed) for run in todo}
    seeds = {
        run.id: run.timed and run.effective.get("calibration_seed", 0) for run in todo
    }
    waiting, failures = sorted(todo, key=lambda run: (alone[run.id], seeds[run.id])), []
    active: dict[Future, tuple[Run, float]] = {}  # with time.monotonic() at its start
    say(
        f"plan {runs[0].plan}: {len(todo)} of {len(runs)} runs to do, {slots()} at a time"
    )
    try:
        while waiting or active:
            while waiting and len(active) < (
                1 if any(alone[waiting[0].id]) else slots()
            ):
                run = waiting.pop(0)
                say(f"{titles[run.id]} …")
                active[submit(run, fingerprint(run))] = run, time.monotonic()
            for future in wait(active, return_when=FIRST_COMPLETED).done:
                if future.cancelled():
                    raise RunError(
                        "the scheduler is gone: start it again and repeat the command"
                    )
                raised = future.exception()  # such as a worker that was lost
                error = (
                    f"{type(raised).__name__}: {raised}" if raised else future.result()
                )
                run, started = active.pop(future)
                seconds = time.monotonic() - started
                took, ended = took + seconds, ended + expected.pop(run.id)
                text = f"done in {format_seconds(seconds)}"
                if error is not None:
                    text = f"FAILED: {error}"
                    failures.append((run, error))
                    run.record_path.unlink(
                        missing_ok=True
                    )  # a failed run has no record
                if expected:
                    beside = min(slots(), len(expected))
                    left = sum(
                        s if any(alone[key]) else s / beside
                        for key, s in expected.items()
                    )
                    text += f"; about {format_seconds(took / ended * left)} left"
                say(f"{titles[run.id]} {text}")
    finally:
        if active:
            marker.unlink(missing_ok=True)
            wait(active, STOP_SECONDS)
        for run, _ in active.values():
            for path in (run.record_path, run.failed_path, run.log_path):
                path.unlink(missing_ok=True)
    return failures


# --- on a Dask cluster: docs/cluster.md -----------------------------------------------------


def wants_gpu(run: Run) -> bool:
    """Whether a run is for a GPU: it says so, or leaves it open in a plan that is for GPUs."""
    device = str(run.effective.get("device", ""))
    return device.startswith("cuda") or (
        device == "auto" and run.plan in ("paper", "t4")
    )


def connect(scheduler: str) -> Any:
    """The `distributed.Client` of a scheduler that has a worker.

    scheduler: an address, or a file of `dask scheduler --scheduler-file`.
    Raises RunError if it cannot be reached, or no worker joins it.
    """
    import distributed  # here: most people have no cluster, and need no Dask

    try:
        where = {
            "scheduler_file" if scheduler.endswith(".json") else "address": scheduler
        }
        if "scheduler_file" in where:
            Path(scheduler).stat()  # Dask would wait for the file for ever
        client = distributed.Client(**where, timeout=WAIT_SECONDS, set_as_default=False)
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except (OSError, ValueError) as error:
        raise RunError(
            f"scheduler {scheduler!r} cannot be reached, or has no worker ({first_line(error)}): "
            "start them, and give the address, such as tcp://host:8786, or the --scheduler-file"
        ) from error
    return client


def execute_on_worker(
    run: Run, code: dict, variables: dict, marker: Path
) -> str | None:
    """On a worker: what `execute` does, for a runner that has the same code and results folder.

    code: the fingerprint that the runner computed. marker: its file in the results folder.
    """
    import distributed

    worker = distributed.get_worker()
    key = worker.get_current_task()
    os.environ.update(variables)  # it has one thread, so no other run
    if not marker.is_file() or fingerprint(run) != code:
        return f"worker {worker.address} has other code or another results folder than the runner"

    def wanted() -> bool:
        # if the runner was killed, Dask drops its tasks
        task = worker.state.tasks.get(key)
        return marker.is_file() and task is not None and task.state != "cancelled"

    return execute(run, code, variables, wanted)
