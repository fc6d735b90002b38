"""Send the runs of a plan to a Dask cluster that is there: `--scheduler tcp://host:8786`.

Only `helpers.runner.schedule` imports this, and only when it is given a scheduler, because the
package distributed is optional. The runner picks the worker of each run itself: one that was
checked, is free, and has a GPU if the run wants one. Project, Python, code and results folder must
be the same there at the same path.

A worker does what the local pool does: it starts the process of the run and returns its error. Two
things end that process early: the runner no longer wants it, or its worker is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import psutil

from helpers.errors import RunError, first_line
from helpers.machine import THREAD_VARIABLES, cpus
from helpers.paths import notebooks_dir, replace_file, root
from helpers.runner.plan import Run
from helpers.runner.process import Process, environment, kill_family, prepare

CONNECT_SECONDS = 10  # to reach a scheduler
WAIT_SECONDS = 30  # for a worker that joins, answers, or comes back
REFRESH_SECONDS = 2  # between two looks at who is there
POLL_SECONDS = 0.1
GPU_PLANS = ("paper", "t4")  # in these "auto" means a GPU
FOLDER_VARIABLES = ("PRUNING_CACHE", "PRUNING_RESULTS", "PRUNING_RUNS")
# what Dask raises for a connection that fails, for a wrong address and for a closed client
NO_ANSWER = (OSError, ValueError, LookupError, RuntimeError)  # TimeoutError is an OSError
# and for somebody who answers but is no scheduler: the first bytes are read as a length
NO_SCHEDULER = (*NO_ANSWER, TypeError, AttributeError, EOFError, MemoryError)


def wants_gpu(run: Run) -> bool:
    """Whether a run is for a GPU: it says so, or leaves it open in a plan that is for GPUs."""
    device = str(run.effective.get("device", ""))
    return device.startswith("cuda") or (device == "auto" and run.plan in GPU_PLANS)


# --- on a worker ---------------------------------------------------------------------------


def identity(token: Path) -> dict[str, str]:
    """What has to be the same for the runner and a worker. token: a file in the results folder."""
    files = [*(root() / "helpers").rglob("*.py"), *notebooks_dir().glob("*.ipynb")]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    shared = token.is_file()
    return {
        "project folder": str(root()),
        "Python": str(Path(sys.prefix).resolve()),
        "code (helpers and notebooks)": code.hexdigest()[:12],
        "results folder": "shared" if shared else f"another one, without {token}",
    }


def look(token: Path, dask_worker: Any) -> tuple[dict[str, str], tuple[Any, ...], float]:
    """On a worker: its identity, its host with the cores that it may use, the GPUs it offers."""
    cores = (socket.gethostname(), *cpus())
    return identity(token), cores, dask_worker.state.total_resources.get("GPU", 0)


def execute(job: Path, log: Path, threads: int, carried: dict[str, str]) -> str | None:
    """On a worker: execute a run in a process of its own; its error, None after a success.

    The process is stopped when the caller takes the run back or is gone, and when the worker
    closes.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()
    # the worker's own numbers of threads do not count: Dask sets some of them to 1
    dropped = {*THREAD_VARIABLES, *FOLDER_VARIABLES[1:]}
    own = {name: value for name, value in os.environ.items() if name not in dropped}
    with tempfile.TemporaryDirectory(prefix="pruning-", ignore_cleanup_errors=True) as folder:
        process = Process(job, log, environment(own | carried, threads, Path(folder)))
        try:
            while not process.ended():
                task = worker.state.tasks.get(key)
                closing = worker.status in (distributed.Status.closing, distributed.Status.closed)
                if task is None or task.state == "cancelled" or closing:
                    return "it was taken back"
                time.sleep(POLL_SECONDS)
            return process.error()
        finally:
            if not process.ended():
                process.stop()


def stop(job: Path) -> None:
    """On a worker: kill the process that executes a job, so that it writes nothing more."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(job) in child.cmdline():
                kill_family(child.pid)


# --- at the caller -------------------------------------------------------------------------


@dataclass
class Site:
    """A worker that was checked, and the one run that it executes, if any.

    Offers what `helpers.runner.process.Process` does.
    """

    pool: Pool
    address: str
    cores: tuple[Any, ...]  # its host and their numbers
    gpu: bool
    run: Run | None = None
    future: Any = None

    def ended(self) -> bool:
        """Whether the run has ended, or its worker is gone."""
        # where the scheduler is gone every future is cancelled, and no worker is to blame
        self.pool.refresh(now=self.future.status in ("cancelled", "lost"))
        return self.future.done() or self.address not in self.pool.sites

    def error(self) -> str | None:
        """The error of a run that has ended in one line; None after a success."""
        run, self.run = self.run, None
        reason = "died or was lost: was there enough memory?"
        if self.future.status == "finished":
            # the answer is still on the worker, which can die before it is fetched
            with contextlib.suppress(OSError):
                return self.future.result(timeout=CONNECT_SECONDS)
        elif self.future.status == "error":
            reason = f"failed: {_short(self.future.exception())}"
        self.future.cancel()
        run.log_path.unlink(missing_ok=True)
        return f"its worker {self.address} {reason}"

    def stop(self) -> None:
        """Take the run back, and wait until its worker has stopped the process."""
        with contextlib.suppress(*NO_ANSWER):
            self.future.cancel()
        self.pool.ask(self.address, stop, self.run.job_path)


class Pool:
    """The workers of a cluster; offers what `helpers.runner.schedule.LocalPool` does."""

    def __init__(self, client: Any, token: Path, warn: Callable[[str], None]) -> None:
        self._client, self._token, self._warn = client, token, warn
        self.sites: dict[str, Site] = {}
        self._seen: set[str] = set()  # every worker of the last look, used or not
        self._looked = float("-inf")  # time.monotonic() of the last look at who is there
        self._usable = time.monotonic()  # when a run last could be started or was under way

    @property
    def slots(self) -> int:
        """How many runs can go side by side now."""
        self.refresh()
        return len(self.sites)

    def start(self, run: Run, active: int) -> Site | None:
        """Start a run on a worker that can take it now, while so many are under way.

        Raises RunError when none could for some time and nothing is under way.
        """
        self.refresh()
        gpu, now = wants_gpu(run), time.monotonic()
        able = [site for site in self.sites.values() if not site.run and (site.gpu or not gpu)]
        if active or able:
            self._usable = now
        elif now - self._usable > WAIT_SECONDS:
            more = ' --resources "GPU=1"' if gpu else ""
            raise RunError(
                f"no worker that can take {run.notebook} {run.name} has joined in {WAIT_SECONDS} "
                f"s: start one with dask worker {self._client.scheduler.address} --nthreads 1"
                f"{more} and repeat the command, which continues with the runs that are missing"
            )
        if not able:
            return None
        prepare(run)
        site = min(able, key=lambda site: site.gpu)  # leaves GPUs to runs that want one
        # workers that may use the same cores of a host share them
        sharing = sum(other.cores == site.cores for other in self.sites.values())
        names = (*FOLDER_VARIABLES, *THREAD_VARIABLES)
        site.run = run
        site.future = self._client.submit(
            execute,
            run.job_path,
            run.log_path,
            max(1, (len(site.cores) - 1) // sharing),
            {name: os.environ[name] for name in names if os.environ.get(name)},
            key=f"{run.id}-{uuid.uuid4().hex}",
            workers=[site.address],
            resources={"GPU": 1} if gpu else None,
        )
        return site

    def refresh(self, now: bool = False) -> None:
        """Every few seconds, or now: forget the workers that are gone, check those that are new.

        A worker that does not pass is named once and not used. Raises RunError if the scheduler
        does not answer.
        """
        if not now and time.monotonic() - self._looked < REFRESH_SECONDS:
            return
        try:
            known = set(self._client.sync(self._client.nthreads, callback_timeout=WAIT_SECONDS))
        except NO_ANSWER as error:
            raise RunError(
                f"the scheduler is gone ({_short(error)}): start it and its workers again, then "
                "the same command goes on with the runs that are missing"
            ) from error
        self._looked = time.monotonic()
        self.sites = {address: site for address, site in self.sites.items() if address in known}
        for address in known - self._seen:
            if reason := self._add(address):
                self._warn(f"worker {address} is not used: {reason}")
        self._seen = known  # without those that left: one that comes back may have been repaired

    def _add(self, address: str) -> str | None:
        """Use a worker from now on, or return the reason why it cannot be used."""
        found = self.ask(address, look, self._token)
        again = f"start it again with this .venv in {root()} (docs/cluster.md)"
        if isinstance(found, BaseException):  # for example because it has no such helpers
            return f"{_short(found)}: {again}"
        theirs, cores, gpus = found
        for what, here in identity(self._token).items():
            if theirs[what] != here:
                return f"its {what} is {theirs[what]} and not {here}: {again}"
        if gpus > 1:
            return f"it offers GPU={gpus:g}: start one worker for each GPU"
        self.sites[address] = Site(self, address, cores, gpus > 0)
        return None

    def ask(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns on a worker, however busy that is, or the error it ends with."""
        options = {"workers": [address], "on_error": "return", "callback_timeout": WAIT_SECONDS}
        try:
            return self._client.sync(self._client.run, function, *arguments, **options)[address]
        except NO_ANSWER as error:
            return error


def _short(error: BaseException) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]


async def _call(address: str) -> None:
    """Ask a scheduler who it is: a Client waits for ever for one that never answers."""
    security = distributed.Security().get_connection_args("client")
    async with distributed.rpc(address, CONNECT_SECONDS, connection_args=security) as scheduler:
        await asyncio.wait_for(scheduler.identity(), CONNECT_SECONDS)


@contextlib.contextmanager
def connect(scheduler: str, scratch: Path, warn: Callable[[str], None]) -> Iterator[Pool]:
    """A pool of the workers of a scheduler.

    scheduler: an address, or a file of `dask scheduler --scheduler-file`. scratch: a folder in the
    results folder. Raises RunError if the scheduler cannot be reached.
    """
    for name in ["distributed", *logging.root.manager.loggerDict]:  # what matters is said here
        if name.partition(".")[0] == "distributed":  # some have a level of their own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        address = scheduler
        if scheduler.endswith(".json"):
            address = json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"]
        asyncio.run(_call(address))
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except NO_SCHEDULER as error:
        raise RunError(
            f"scheduler {scheduler!r} cannot be reached: {_short(error)}; start one with dask "
            "scheduler and give its address, such as tcp://host:8786, or its --scheduler-file"
        ) from error
    with client:
        token = replace_file(scratch / f"{uuid.uuid4().hex}.token", "")
        pool = Pool(client, token, warn)
        with contextlib.suppress(TimeoutError):  # the first run then says what is missing
            client.wait_for_workers(1, timeout=WAIT_SECONDS)
        yield pool
