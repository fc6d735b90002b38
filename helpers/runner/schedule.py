"""Execute the runs of a plan that are not done, side by side, and say how far it is.

By default two runs go side by side where there are two cores, 8 GB of memory and no GPU to share;
the cores are divided between them through OMP_NUM_THREADS and its relatives. With the address of a
Dask scheduler the runs go to its workers (docs/cluster.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from helpers.errors import FileError, RunError
from helpers.machine import cpus, ram
from helpers.paths import TABLES_NOTEBOOK, results_dir
from helpers.report import read_record
from helpers.runner.fingerprint import is_done
from helpers.runner.plan import SCRATCH, Run, read_plan
from helpers.runner.process import Process, environment, prepare, show_path

MEMORY_FOR_TWO = 7.5e9  # bytes; what a machine sold with 8 GB reports
POLL_SECONDS = 0.1
Failures = list[tuple[Run, str]]  # with the error of each in one line


def say(text: str, *, error: bool = False) -> None:
    """Write a line to standard output or error, at once."""
    sys.stdout.flush()  # so that lines and errors keep their order
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def format_seconds(seconds: float) -> str:
    """A duration for people: "41 s", "12 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def choose_jobs(wanted: str) -> int:
    """How many runs go side by side: a number, or "auto" (see the module's docstring).

    Raises RunError for anything else.
    """
    if wanted == "auto":
        large = len(cpus()) >= 2 and ram()[1] >= MEMORY_FOR_TWO
        return 2 if large and shutil.which("nvidia-smi") is None else 1
    if not wanted.isdecimal() or int(wanted) < 1:
        raise RunError(f'jobs = {wanted!r} is not possible: give "auto" or a number from 1')
    return int(wanted)


def _lock(plan: str) -> filelock.FileLock:
    """What a runner holds while it runs a plan; the system frees it when the runner is killed."""
    return filelock.FileLock(results_dir(plan) / ".lock")


def is_running(plan: str) -> bool:
    """Whether a runner holds the plan at this moment."""
    if not results_dir(plan).is_dir():  # the lock would make it
        return False
    try:
        with _lock(plan).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that cannot be written
        return False


@contextlib.contextmanager
def _holding(plan: str) -> Iterator[Path]:
    """Hold a plan, which one runner at a time can, and give it an empty scratch folder.

    Raises RunError if the folder cannot be written, another runner holds it, or files of it vanish.
    """
    folder, scratch = results_dir(plan), results_dir(plan) / SCRATCH
    try:
        for name in ("records", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        lock = _lock(plan).acquire(timeout=1)  # `is_running` takes it for a moment
    except filelock.Timeout as error:
        raise RunError(f"plan {plan} is being run already: wait, or stop that run") from error
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror}; make it writable or set PRUNING_RESULTS"
        ) from error
    with lock:
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            yield scratch
        except FileNotFoundError as error:
            gone = Path(error.filename or folder)
            if not gone.is_relative_to(folder):  # such as this Python
                raise
            raise RunError(
                f"{show_path(gone)} is gone: was {show_path(folder)} "
                "removed while the plan ran? The same command begins again with what is left"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def run_plan(
    plan: str, *, jobs: str = "auto", only: str | None = None, scheduler: str | None = None
) -> Failures:
    """Execute the runs of a plan that are not done, the tables notebook last; return failures.

    Records without a run are moved to `results/<plan>/stale/`, or tables would count them.

    Raises RunError for a wrong plan or run file, and for a cluster that cannot be used, before
    anything is started.
    """
    every_run, runs, slots = read_plan(plan), read_plan(plan, only), choose_jobs(jobs)
    if scheduler and jobs != "auto":
        raise RunError(
            f"jobs = {jobs!r} and scheduler = {scheduler!r} exclude each other: the workers of "
            "a cluster decide how many runs go side by side; leave JOBS out"
        )
    with _holding(plan) as scratch:
        stale, known = results_dir(plan) / "stale", {run.record_path for run in every_run}
        orphans = set((results_dir(plan) / "records").glob("*.json")) - known
        for path in orphans:
            stale.mkdir(exist_ok=True)
            path.replace(stale / path.name)
        if orphans:
            say(f"moved {len(orphans)} records without a run file to {show_path(stale)}")
        todo = [run for run in runs if not is_done(run)]
        if not todo:
            say(f"plan {plan}: nothing to run, {len(runs)} of {len(runs)} runs are up to date")
            return []
        # a changed record changes what the tables notebook shows
        last = [run for run in runs if run.notebook == TABLES_NOTEBOOK]
        first = [run for run in todo if run not in last]
        with _pool(scheduler, slots, scratch) as pool:
            runner = Runner(runs, first + last, pool)
            failures = runner.execute(first)
            return failures + runner.execute([run for run in last if not is_done(run)])


def _pool(
    scheduler: str | None, slots: int, scratch: Path
) -> contextlib.AbstractContextManager[Any]:
    """What executes runs: this machine, or the workers of a Dask cluster."""
    if not scheduler:
        return contextlib.nullcontext(LocalPool(slots, scratch))
    try:
        # only here: most people have no cluster, and need no Dask
        from helpers.runner import cluster
    except ModuleNotFoundError as error:
        raise RunError(
            f"scheduler = {scheduler!r} needs the package {error.name}, which is not installed: "
            "run .venv/bin/python -m pip install -c constraints.txt -e '.[cluster]'"
        ) from error
    return cluster.connect(scheduler, scratch, lambda text: say(text, error=True))


class LocalPool:
    """Executes runs on this machine, a fixed number side by side."""

    def __init__(self, slots: int, scratch: Path) -> None:
        self.slots = slots
        self._environment = environment(os.environ, max(1, len(cpus()) // slots), scratch)

    def start(self, run: Run, active: int) -> Process | None:
        """Start a run, unless too many are under way."""
        if active >= self.slots:
            return None
        prepare(run)
        return Process(run.job_path, run.log_path, self._environment)


class Runner:
    """Executes runs in a pool: a `LocalPool` or a `helpers.runner.cluster.Pool`.

    What a pool starts has `ended()`, `error()` and `stop()`, as `Process` has.
    """

    def __init__(self, runs: list[Run], todo: list[Run], pool: Any) -> None:
        self._numbers = {run.id: number for number, run in enumerate(runs, start=1)}
        self._pool = pool
        known = {run.id: seconds for run in todo if (seconds := reference_seconds(run))}
        # a run without a committed record counts like the mean of the others
        usual = sum(known.values()) / len(known) if known else 1.0
        self._left = {run.id: known.get(run.id, usual) for run in todo}  # expected seconds
        self._pace = float(bool(known))  # seconds here for an expected one; 0 is not known
        self._expected = self._took = 0.0  # seconds of the runs that have ended
        text = f"{len(todo)} of {len(runs)} runs to do, {min(pool.slots, len(todo))} at a time"
        say(f"plan {runs[0].plan}: {text}{self._time_left(', about {}')}")

    def execute(self, runs: list[Run]) -> Failures:
        """Execute the runs; return the failures in the plan's order. Ctrl-C stops them all."""
        waiting, failures = list(runs), []
        active: dict[str, tuple[Run, Any, float]] = {}  # process, time.monotonic() at start
        try:
            while waiting or active:
                for run in list(waiting):
                    # nothing else of the plan runs beside a timed run, here or on the cluster
                    others = [other for other, _, _ in active.values()]
                    if others and (run.timed or others[0].timed):
                        continue
                    if process := self._pool.start(run, len(active)):
                        active[run.id] = run, process, time.monotonic()
                        waiting.remove(run)
                        self._report(run, "…")
                for run, process, started in list(active.values()):
                    run.job_path.stat()  # gone with the results folder: `_holding` says so
                    if not process.ended():
                        continue
                    error, seconds = process.error(), time.monotonic() - started
                    del active[run.id]
                    run.job_path.unlink(missing_ok=True)
                    text = f"done in {format_seconds(seconds)}"
                    if error is not None:
                        text = f"FAILED: {error}"
                        failures.append((run, error))
                        run.record_path.unlink(missing_ok=True)  # a failed run has no record
                    self._expected += self._left.pop(run.id)
                    self._took += seconds
                    self._pace = self._took / self._expected
                    self._report(run, text + self._time_left("; about {} left"))
                time.sleep(POLL_SECONDS)
        except BaseException:
            for run, process, _ in active.values():
                process.stop()
                for path in (run.job_path, run.record_path, run.failed_path, run.log_path):
                    path.unlink(missing_ok=True)
            raise
        return sorted(failures, key=lambda failure: self._numbers[failure[0].id])

    def _report(self, run: Run, text: str) -> None:
        total = len(self._numbers)
        number = f"{self._numbers[run.id]:{len(str(total))}}"
        say(f"[{number}/{total}] {run.notebook} {run.name} {text}")

    def _time_left(self, text: str) -> str:
        """A text with the time left; "" where it is not known or nothing is left."""
        side_by_side = max(1, min(self._pool.slots, len(self._left)))
        left = self._pace * sum(self._left.values()) / side_by_side
        return text.format(format_seconds(left)) if left >= 1 else ""


def reference_seconds(run: Run) -> float | None:
    """How long the committed run took, if there is one."""
    try:
        record = read_record(run.reference_path)
    except FileError:
        return None
    return record.get("run_seconds", record["seconds"])
