"""Execute runs on the workers of a Dask cluster: see docs/cluster.md."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from helpers.errors import RunError, first_line
from helpers.paths import results_dir
from reproduction.execute import Pool, execute, run_variables
from reproduction.fingerprint import fingerprint
from reproduction.plan import Run

WAIT_SECONDS = 30  # for a scheduler, and for its first worker


@contextlib.contextmanager
def dask_pool(scheduler: str, plan: str) -> Iterator[Pool]:
    """Run a plan on the workers of a cluster; scheduler, and what is raised: see `connect`.

    As long as the runner is there, so is a file of its own in the plan's results folder, which the
    runner has locked. It tells workers that they share that folder, and to go on.
    """
    for left in results_dir(plan).glob(".runner-*"):  # by one that was killed
        left.unlink(missing_ok=True)
    # one thread, as Dask gives its workers, unless the environment here says otherwise
    variables = run_variables(1)
    with (
        connect(scheduler) as client,
        tempfile.NamedTemporaryFile(dir=results_dir(plan), prefix=".runner-") as file,
    ):

        def submit(run: Run, code: dict[str, str]) -> Future:
            resources = {"GPU": 1} if wants_gpu(run) else None
            executor = client.get_executor(pure=False, resources=resources)
            there = Path(file.name)
            return executor.submit(execute_on_worker, run, code, variables, there)

        # a file that is closed is deleted
        yield Pool(submit, lambda: max(1, len(client.nthreads())), stop=file.close)


def connect(scheduler: str) -> Any:
    """The `distributed.Client` of a scheduler that has a worker.

    scheduler: an address, or a file of `dask scheduler --scheduler-file`.
    Raises RunError if it cannot be reached, or no worker joins it.
    """
    import distributed  # here: most people have no cluster, and need no Dask

    kind = "address"
    try:
        if scheduler.endswith(".json"):
            kind = "scheduler_file"
            Path(scheduler).stat()  # Dask would wait for the file for ever
        client = distributed.Client(
            **{kind: scheduler}, timeout=WAIT_SECONDS, set_as_default=False
        )
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except (OSError, ValueError) as error:
        raise RunError(
            f"scheduler {scheduler!r} cannot be reached, or has no worker ({first_line(error)}): "
            "start them, and give the address, such as tcp://host:8786, or the --scheduler-file"
        ) from error
    return client


def wants_gpu(run: Run) -> bool:
    """Whether a run needs a GPU: it says so, or leaves it open in a plan that is for GPUs."""
    device = run.effective.get("device", "")
    if device == "auto":
        return run.plan in ("paper", "t4")
    return device.startswith("cuda")


def execute_on_worker(
    run: Run, code: dict[str, str], variables: dict[str, str], file: Path
) -> str | None:
    """Call `execute` on a worker, which must have the runner's code and results folder.

    code: the fingerprint that the runner computed. file: see `dask_pool`.
    """
    import distributed

    worker = distributed.get_worker()
    key = worker.get_current_task()
    os.environ.update(variables)  # it has one thread, so no other run
    if not file.is_file() or fingerprint(run) != code:
        return f"worker {worker.address} has other code or another results folder than the runner"

    def stopped() -> bool:
        # if the runner was killed its file may stay, but Dask drops its tasks
        task = worker.state.tasks.get(key)
        return not file.is_file() or task is None or task.state == "cancelled"

    return execute(run, code, variables, stopped)
