"""Send the runs of a plan to a Dask cluster that is there: `--scheduler tcp://host:8786`.

Only `helpers.runner.schedule` imports this, and only when it is given a scheduler, because the
package distributed is optional. The runner itself picks the worker of each run, so that a run goes
to one worker once, and only to one that was checked: the project, its code and the results folder
must be the same there at the same path.

A worker does what the local pool does: it starts the process of the run and returns its error. Two
things end that process early: the runner no longer wants it, or its worker is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import psutil

from helpers.errors import RunError, first_line
from helpers.paths import notebooks_dir, replace_file, root
from helpers.runner.plan import TABLES_NOTEBOOK, Run, scratch_dir
from helpers.runner.process import THREAD_VARIABLES, cpus, environment, kill_family, start

CONNECT_SECONDS = 10  # to reach a scheduler
WAIT_SECONDS = 30  # for a worker that joins, answers, or comes back
REFRESH_SECONDS = 2  # between two looks at who is there
POLL_SECONDS = 0.1
GPU_PLANS = ("paper", "t4")  # in these "auto" means a GPU
FOLDER_VARIABLES = ("PRUNING_CACHE", "PRUNING_RESULTS", "PRUNING_RUNS")
NEEDED = ("papermill", "nbclient", "ipykernel", "torch")  # by the process of a run and its kernel
# what Dask raises for a connection that fails, for a wrong address and for a closed client
NO_ANSWER = (OSError, ValueError, LookupError, RuntimeError)  # TimeoutError is an OSError
GONE = "its worker {} died or was lost: was there enough memory?"


def wants_gpu(run: Run) -> bool:
    """Whether a run is for a GPU: it says so, or leaves it open in a plan that is for GPUs."""
    device = str(run.effective.get("device", ""))
    return device.startswith("cuda") or (device == "auto" and run.plan in GPU_PLANS)


def code_digest() -> str:
    """sha256 of all helpers and notebooks of this project. Raises OSError."""
    files = [*(root() / "helpers").rglob("*.py"), *notebooks_dir().glob("*.ipynb")]
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


# --- on a worker ---------------------------------------------------------------------------


def look(project: str, token: Path, dask_worker: Any) -> dict[str, Any]:
    """On a worker: what it has, and the reason why it cannot execute runs (None if it can).

    project: the caller's root. token: a file in the results folder with the digest of its code.
    """
    gpus = dask_worker.state.total_resources.get("GPU", 0)
    reason = _reason(project, token)
    if gpus > 1 and not reason:
        reason = f"it offers GPU={gpus:g}: start one worker for each GPU, with GPU=1"
    return {"reason": reason, "host": socket.gethostname(), "cpus": tuple(cpus()), "gpu": gpus > 0}


def _reason(project: str, token: Path) -> str | None:
    """Why runs cannot be executed here as they are at the caller; None if they can."""
    if str(root()) != project:
        return f"its project is {root()} and not {project}: start it in that folder"
    try:
        digest = token.read_text(encoding="utf-8")
    except OSError as error:
        return f"it cannot read {token} ({error.strerror}): share the results folder with it"
    if digest != code_digest():
        return f"helpers or notebooks in {root()} are other code there: update its copy"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"its Python {sys.executable} lacks {missing[0]}: start it with the project's .venv"
    return None


def execute(job: Path, log: Path, threads: int, carried: dict[str, str]) -> str | None:
    """On a worker: execute a run in a process of its own; its error, None after a success.

    The process is stopped when the caller takes the run back or is gone, and when the worker
    closes.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()
    try:
        job.with_suffix(".taken").touch(exist_ok=False)
    except FileExistsError:  # Dask gives the task of a worker that died to the next one
        return GONE.format(worker.address)
    # the worker's own numbers of threads do not count: Dask sets some of them to 1
    dropped = {*THREAD_VARIABLES, "PRUNING_RESULTS", "PRUNING_RUNS"}
    own = {name: value for name, value in os.environ.items() if name not in dropped}
    with tempfile.TemporaryDirectory(prefix="pruning-", ignore_cleanup_errors=True) as folder:
        process = start(job, log, environment(own | carried, threads, Path(folder)))
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
    """A worker that was checked; it executes one run at a time."""

    address: str
    host: str
    cpus: tuple[int, ...]
    gpu: bool
    busy: bool = False


@dataclass(frozen=True)
class Remote:
    """A run that is being executed by a worker: see `helpers.runner.process.Process`."""

    pool: Pool
    site: Site
    run: Run
    future: Any

    def ended(self) -> bool:
        """Whether the run has ended, or its worker is gone."""
        self.pool.refresh()
        return self.future.done() or self.site.address not in self.pool.sites

    def error(self) -> str | None:
        """The error of a run that has ended in one line; None after a success."""
        self.site.busy = False
        gone = GONE.format(self.site.address)
        if self.future.status == "finished":
            # the answer still lies at the worker, which can die before it is fetched
            with contextlib.suppress(OSError):
                return self.future.result(timeout=CONNECT_SECONDS)
        elif self.future.status == "error":
            problem = self.future.exception()
            if not isinstance(problem, distributed.KilledWorker):
                gone = f"its worker {self.site.address} failed: {_short(problem)}"
        self.future.cancel()
        self.run.log_path.unlink(missing_ok=True)
        return gone

    def stop(self) -> None:
        """Take the run back, and wait until its worker has stopped the process."""
        self.site.busy = False
        with contextlib.suppress(*NO_ANSWER):
            self.future.cancel()
            self.pool.ask(self.site.address, stop, self.run.job_path)


class Pool:
    """The workers of a cluster; offers what `helpers.runner.schedule.LocalPool` does."""

    def __init__(
        self, client: Any, token: Path, runs: list[Run], warn: Callable[[str], None]
    ) -> None:
        self._client, self._token, self._runs, self._warn = client, token, runs, warn
        self.sites: dict[str, Site] = {}
        self._refused: set[str] = set()
        self._looked = 0.0  # time.monotonic() of the last look at who is there
        self._stuck: float | None = None  # since when nothing runs and nothing can start

    @property
    def slots(self) -> int:
        """How many of the runs can go side by side now; the tables notebook goes alone."""
        gpu = all(wants_gpu(run) for run in self._runs if run.notebook != TABLES_NOTEBOOK)
        return sum(site.gpu for site in self.sites.values()) if gpu else len(self.sites)

    def open(self) -> None:
        """Wait for the first worker and check all that are there.

        Raises RunError if none joins, one does not pass, or none offers a GPU that a run wants.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while not (known := self._known()):
            if time.monotonic() > deadline:
                raise RunError(f"no worker has joined in {WAIT_SECONDS} s: {self._advice()}")
            time.sleep(POLL_SECONDS)
        for address in known:
            self._add(address)
        wanting = [run for run in self._runs if wants_gpu(run)]
        if wanting and not any(site.gpu for site in self.sites.values()):
            raise RunError(
                f"{len(wanting)} runs want a GPU, as {wanting[0].notebook} {wanting[0].name} does, "
                f"and no worker offers one: {self._advice()}"
            )

    def can_start(self, run: Run, active: int) -> bool:
        """Whether a worker can take a run now, while so many are under way.

        Raises RunError when none could for some time and nothing is under way.
        """
        self.refresh()
        now, site = time.monotonic(), self._site_for(run)
        if active or site is not None:
            self._stuck = None
        elif self._stuck is None:
            self._stuck = now
        elif now - self._stuck > WAIT_SECONDS:
            raise RunError(
                f"no worker is left for {run.notebook} {run.name}: {self._advice()}; "
                "the same command goes on with the runs that are missing"
            )
        return site is not None

    def start(self, run: Run) -> Remote:
        """Start a run on a worker that can take it."""
        site = self._site_for(run)
        # workers on one host that may use the same cores share them
        places = [(other.host, other.cpus) for other in self.sites.values()]
        threads = max(1, len(site.cpus) // places.count((site.host, site.cpus)))
        names = (*FOLDER_VARIABLES, *THREAD_VARIABLES)
        future = self._client.submit(
            execute,
            run.job_path,
            run.log_path,
            threads,
            {name: os.environ[name] for name in names if os.environ.get(name)},
            key=f"{run.id}-{uuid.uuid4().hex}",
            workers=[site.address],
            resources={"GPU": 1} if wants_gpu(run) else None,
            retries=0,
        )
        site.busy = True
        return Remote(self, site, run, future)

    def refresh(self) -> None:
        """Every few seconds: forget the workers that are gone, and check those that are new.

        Raises RunError if the scheduler does not answer.
        """
        if time.monotonic() - self._looked < REFRESH_SECONDS:
            return
        known = self._known()
        self.sites = {address: site for address, site in self.sites.items() if address in known}
        self._refused &= known  # one that comes back may have been repaired
        for address in known - set(self.sites) - self._refused:
            try:
                self._add(address)
            except RunError as error:
                self._refused.add(address)
                self._warn(f"{error}; the run goes on without it")

    def ask(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, or the error it raises, on a worker, however busy that is.

        Raises one of NO_ANSWER for a worker that does not answer.
        """
        answers = self._client.sync(
            self._client.run,
            function,
            *arguments,
            workers=[address],
            on_error="return",
            callback_timeout=WAIT_SECONDS,
        )
        return answers[address]

    def _known(self) -> set[str]:
        """The addresses of all workers. Raises RunError if the scheduler does not answer."""
        try:
            known = set(self._client.sync(self._client.nthreads, callback_timeout=WAIT_SECONDS))
        except NO_ANSWER as error:
            raise RunError(
                f"the scheduler is gone ({_short(error)}): start it and its workers, then the "
                "same command goes on with the runs that are missing"
            ) from error
        self._looked = time.monotonic()
        return known

    def _add(self, address: str) -> None:
        """Check a worker and use it from now on; RunError if it does not pass."""
        try:
            found = self.ask(address, look, str(root()), self._token)
        except NO_ANSWER as error:
            found = {"reason": f"it does not answer ({_short(error)}): stop it"}
        if isinstance(found, BaseException):  # for example because it has no such helpers
            advice = f"start it with the project's .venv in {root()}"
            found = {"reason": f"{_short(found)}; {advice}"}
        if reason := found.pop("reason"):
            raise RunError(f"worker {address} cannot be used: {reason}")
        self.sites[address] = Site(address, **found)

    def _site_for(self, run: Run) -> Site | None:
        """A free worker for a run: one without a GPU, if it can be, for a run that wants none."""
        gpu = wants_gpu(run)
        able = [site for site in self.sites.values() if not site.busy and (site.gpu or not gpu)]
        return min(able, key=lambda site: site.gpu, default=None)

    def _advice(self) -> str:
        """How a worker is started."""
        gpu = ' --resources "GPU=1"' if any(map(wants_gpu, self._runs)) else ""
        address = self._client.scheduler.address
        return f"start one with: dask worker {address} --nthreads 1{gpu}"


def _short(error: BaseException) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def address_of(scheduler: str) -> str:
    """The address of a scheduler, which a file of `dask scheduler --scheduler-file` may hold.

    Raises RunError for a file that does not hold one.
    """
    if not scheduler.endswith(".json"):
        return scheduler
    try:
        return json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"scheduler file {scheduler} cannot be used: {_short(error)}; give the file of "
            "dask scheduler --scheduler-file, or an address such as tcp://host:8786"
        ) from error


def _client(address: str) -> Any:
    """A connection to a scheduler; RunError if there is none after some seconds.

    It is made in a thread, because Dask waits for ever for one that accepts and never answers.
    """
    silent = TimeoutError(f"it accepts the connection and gives no answer in {CONNECT_SECONDS} s")
    answers: list[Any] = []

    def call() -> None:
        try:
            client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
            answers.append(client)
        except NO_ANSWER as error:
            answers.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS + 2)  # Dask's own error says more
    answer = (answers or [silent])[0]
    if isinstance(answer, BaseException):
        raise RunError(
            f"scheduler {address!r} cannot be reached: {_short(answer)}; start one with "
            "dask scheduler, which says its address, such as tcp://host:8786"
        )
    return answer


@contextlib.contextmanager
def connect(scheduler: str, runs: list[Run], warn: Callable[[str], None]) -> Iterator[Pool]:
    """A pool of the workers of a scheduler (an address or a scheduler file) for runs of one plan.

    Raises RunError if the scheduler cannot be reached, and as `Pool.open` does.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here
    with _client(address_of(scheduler)) as client:
        token = scratch_dir(runs[0].plan) / f"{uuid.uuid4().hex}.token"
        pool = Pool(client, replace_file(token, code_digest()), runs, warn)
        pool.open()
        yield pool
