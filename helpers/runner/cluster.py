"""Send the runs of a plan to a Dask cluster that is there: `--scheduler tcp://host:8786`.

Only `helpers.runner.run` imports this, and only when it is given a scheduler, because the package
distributed is optional. The books are kept by the runner as for local runs. It picks the worker of
each run itself, so that a run goes to one worker once, and only to one that was checked: the
project, its code and the results folder must be the same there at the same path.

A worker does what the local pool does: it starts the child process of the run and returns its
error. Two things end that child early: the runner no longer wants it, or its worker is gone.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distributed
import psutil

from helpers.errors import RunError
from helpers.paths import replace_file, root
from helpers.runner.child import THREAD_VARIABLES, Files, cpus, environment, kill_family, start
from helpers.runner.plan import TABLES_NOTEBOOK, Run

CONNECT_SECONDS = 10  # to reach a scheduler
WAIT_SECONDS = 30  # for a worker that joins, answers, or comes back
REFRESH_SECONDS = 2  # between two looks at who is there
POLL_SECONDS = 0.1
GPU_PLANS = ("paper", "t4")  # in these "auto" means a GPU
FOLDER_VARIABLES = ("PRUNING_CACHE", "PRUNING_RESULTS", "PRUNING_RUNS")
NEEDED = ("papermill", "nbclient", "ipykernel", "torch")  # by the child process and its kernel
# what Dask raises for a comm that cannot be made or breaks, for a wrong address and a closed client
NO_ANSWER = (OSError, ValueError, LookupError, RuntimeError)  # TimeoutError is an OSError
GONE = "its worker {} died or was lost: was there enough memory?"


def wants_gpu(run: Run) -> bool:
    """Whether a run is for a GPU: it says so, or leaves it open in a plan that is for GPUs."""
    device = str(run.effective.get("device", ""))
    return device.startswith("cuda") or (device == "auto" and run.plan in GPU_PLANS)


def digest(paths: Iterable[Path]) -> str:
    """sha256 of what files hold, one after the other; a missing file counts as one that is empty.

    Raises OSError for a file that is there and cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes() if path.is_file() else b""
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


# --- on a worker ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What a worker must find at the same path as the caller."""

    root: str
    token: Path
    secret: str  # what the token file holds
    code: tuple[Path, ...]
    digest: str


def look(expected: Expected, dask_worker: Any) -> dict[str, Any]:
    """On a worker: whether it can execute runs ("reason": why not), and what it has."""
    return {
        "reason": _reason(expected, dask_worker.state.total_resources.get("GPU", 0)),
        "host": socket.gethostname(),
        "cpus": cpus(),
        "gpus": dask_worker.state.total_resources.get("GPU", 0),
    }


def _reason(expected: Expected, gpus: float) -> str | None:
    """Why this worker cannot execute runs; None if it can."""
    if str(root()) != expected.root:
        return f"its project is {root()} and not {expected.root}: start it in that folder"
    try:
        there = expected.token.read_text(encoding="utf-8") == expected.secret
        same = digest(expected.code) == expected.digest
    except OSError as error:
        return f"it cannot read {error.filename}: {error.strerror}"
    if not there:
        return f"it has another file {expected.token}: share the results folder with it"
    if not same:
        return f"helpers or notebooks in {root()} are other code there: update its copy"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"its Python {sys.executable} lacks {missing[0]}: start it with the project's .venv"
    if gpus > 1:
        return f"it offers GPU={gpus:g}: start one worker for each GPU, with GPU=1"
    return None


def execute(files: Files, threads: int, carried: dict[str, str]) -> str | None:
    """On a worker: execute a run in a child process; its error, None after a success.

    The child is stopped when the caller takes the run back or is gone, and when the worker closes.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()
    try:
        files.job.with_suffix(".taken").touch(exist_ok=False)
    except FileExistsError:  # Dask gives the task of a worker that died to the next one
        return GONE.format(worker.address)
    with tempfile.TemporaryDirectory(prefix="pruning-", ignore_cleanup_errors=True) as folder:
        variables = environment(_base(carried), threads, Path(folder))
        child = start(files, variables | {"PRUNING_PARENT": str(os.getpid())})
        try:
            while not child.ended():
                if not _wanted(worker, key):
                    return "it was taken back"
                time.sleep(POLL_SECONDS)
            return child.error()
        finally:
            if not child.ended():
                child.stop()


def _base(carried: dict[str, str]) -> dict[str, str]:
    """The worker's own environment with the caller's folders and threads.

    The worker's numbers of threads do not count: Dask sets some of them to 1, whatever is there.
    """
    dropped = {*THREAD_VARIABLES, "PRUNING_RESULTS", "PRUNING_RUNS"}
    own = {key: value for key, value in os.environ.items() if key not in dropped}
    return own | carried


def _wanted(worker: Any, key: str) -> bool:
    """Whether somebody still waits for the task that this worker executes."""
    task = worker.state.tasks.get(key)
    closing = worker.status in (distributed.Status.closing, distributed.Status.closed)
    return task is not None and task.state != "cancelled" and not closing


def stop(job: Path) -> None:
    """On a worker: kill the child that executes a job, so that it writes nothing more."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(job) in child.cmdline():
                kill_family(child.pid)


# --- at the caller -------------------------------------------------------------------------


@dataclass
class Site:
    """A worker that was checked, and what it executes."""

    address: str
    slots: int  # runs side by side: its threads in Dask's sense
    host: str
    cpus: tuple[int, ...]
    gpu: bool
    runs: dict[str, bool] = field(default_factory=dict)  # id, and whether it wants the GPU

    def takes(self, gpu: bool) -> bool:
        """Whether one more run can start here."""
        free = len(self.runs) < self.slots
        return free and (not gpu or (self.gpu and True not in self.runs.values()))


class Remote:
    """A run that is being executed by a worker."""

    def __init__(self, pool: Pool, site: Site, run: Run, files: Files, future: Any) -> None:
        self._pool, self._site, self._run = pool, site, run
        self._files, self._future = files, future
        site.runs[run.id] = wants_gpu(run)

    def ended(self) -> bool:
        """Whether the run has ended, or its worker is gone."""
        self._pool.refresh()
        return self._future.done() or not self._pool.has(self._site)

    def error(self) -> str | None:
        """The error of a run that has ended in one line; None after a success."""
        self._site.runs.pop(self._run.id, None)
        gone = GONE.format(self._site.address)
        if self._future.status == "finished":
            # the answer still lies at the worker, which can die before it is fetched
            with contextlib.suppress(OSError):  # TimeoutError is one
                return self._future.result(timeout=CONNECT_SECONDS)
        elif self._future.status == "error":
            problem = self._future.exception()
            if not isinstance(problem, distributed.KilledWorker):
                gone = f"its worker {self._site.address} failed: {_one_line(problem)}"
        self._future.cancel()
        self._files.log.unlink(missing_ok=True)
        return gone

    def stop(self) -> None:
        """Take the run back, and wait until its worker has stopped the child."""
        self._site.runs.pop(self._run.id, None)
        with contextlib.suppress(*NO_ANSWER):
            self._future.cancel()
            self._pool.ask(self._site.address, stop, self._files.job)


class Pool:
    """The workers of a cluster, in the part of `helpers.runner.run.LocalPool`."""

    def __init__(
        self, client: Any, expected: Expected, runs: list[Run], warn: Callable[[str], None]
    ) -> None:
        self._client, self._expected, self._warn = client, expected, warn
        self._runs = runs
        self._sites: dict[str, Site] = {}
        self._refused: set[str] = set()
        self._looked = 0.0  # time.monotonic() of the last look at who is there
        self._stuck: float | None = None  # since when nothing runs and nothing can start
        names = (*FOLDER_VARIABLES, *THREAD_VARIABLES)
        self._carried = {name: os.environ[name] for name in names if os.environ.get(name)}

    @property
    def slots(self) -> int:
        """How many of the runs can go side by side now; the tables notebook goes alone."""
        if all(wants_gpu(run) for run in self._runs if run.notebook != TABLES_NOTEBOOK):
            return sum(site.gpu for site in self._sites.values())
        return sum(site.slots for site in self._sites.values())

    def open(self) -> None:
        """Wait for the first worker and check all that are there.

        Raises RunError if none joins, one does not pass, or none offers a GPU that a run wants.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while not (known := self._known()):
            if time.monotonic() > deadline:
                raise RunError(f"no worker has joined in {WAIT_SECONDS} s: {self._advice()}")
            time.sleep(POLL_SECONDS)
        for address, threads in known.items():
            self._add(address, threads)
        wanting = [run for run in self._runs if wants_gpu(run)]
        if wanting and not any(site.gpu for site in self._sites.values()):
            raise RunError(
                f"{len(wanting)} runs want a GPU, as {wanting[0].notebook} {wanting[0].name} does, "
                f"and no worker offers one: {self._advice()}"
            )

    def has_room(self, run: Run, active: int) -> bool:
        """Whether a worker can take a run now, while so many are under way.

        Raises RunError when none could for some time and nothing is under way.
        """
        self.refresh()
        if active or self._site_for(run) is not None:
            self._stuck = None
        elif self._stuck is None:
            self._stuck = time.monotonic()
        elif time.monotonic() - self._stuck > WAIT_SECONDS:
            raise RunError(
                f"no worker is left for {run.notebook} {run.name}: {self._advice()}; "
                "the same command goes on with the runs that are missing"
            )
        return self._site_for(run) is not None

    def start(self, run: Run, files: Files) -> Remote:
        """Start a run on a worker that has room for it."""
        site = self._site_for(run)
        future = self._client.submit(
            execute,
            files,
            self._threads(site),
            self._carried,
            key=f"{run.id}-{uuid.uuid4().hex}",
            workers=[site.address],
            resources={"GPU": 1} if wants_gpu(run) else None,
            retries=0,
        )
        return Remote(self, site, run, files, future)

    def has(self, site: Site) -> bool:
        """Whether a worker is still there."""
        return site.address in self._sites

    def refresh(self) -> None:
        """Now and then: note which workers are gone, and check those that are new.

        Raises RunError if the scheduler does not answer.
        """
        if time.monotonic() - self._looked < REFRESH_SECONDS:
            return
        known = self._known()
        for address in set(self._sites) - set(known):
            del self._sites[address]
        self._refused &= set(known)  # one that comes back may have been mended
        for address in set(known) - set(self._sites) - self._refused:
            try:
                self._add(address, known[address])
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

    def _known(self) -> dict[str, int]:
        """The addresses of all workers with their threads in Dask's sense."""
        try:
            known = self._client.sync(self._client.nthreads, callback_timeout=WAIT_SECONDS)
        except NO_ANSWER as error:
            raise RunError(
                f"the scheduler is gone ({_one_line(error)}): start it and its workers, then the "
                "same command goes on with the runs that are missing"
            ) from error
        self._looked = time.monotonic()
        return known

    def _add(self, address: str, threads: int) -> None:
        """Check a worker and use it from now on; RunError if it does not pass."""
        try:
            found = self.ask(address, look, self._expected)
        except NO_ANSWER as error:
            found = {"reason": f"it does not answer ({_one_line(error)}): stop it"}
        if isinstance(found, BaseException):  # for example because it has no such helpers
            where = f"start it with the project's .venv in {self._expected.root}"
            found = {"reason": f"{_one_line(found)}; {where}"}
        if found["reason"]:
            raise RunError(f"worker {address} cannot be used: {found['reason']}")
        place = found["host"], tuple(found["cpus"])
        self._sites[address] = Site(address, threads, *place, gpu=found["gpus"] >= 1)

    def _site_for(self, run: Run) -> Site | None:
        """The worker for a run: the least busy, and one without a GPU for a run that wants none."""
        gpu = wants_gpu(run)
        able = [site for site in self._sites.values() if site.takes(gpu)]
        return min(able, key=lambda site: (site.gpu, len(site.runs)), default=None)

    def _threads(self, site: Site) -> int:
        """A run's share of the cores that its worker may use, perhaps with others on its host."""
        beside = [
            other.slots
            for other in self._sites.values()
            if (other.host, other.cpus) == (site.host, site.cpus)
        ]
        return max(1, len(site.cpus) // max(1, sum(beside)))

    def _advice(self) -> str:
        """How a worker is started."""
        address = self._client.scheduler.address
        gpu = ' --resources "GPU=1"' if any(map(wants_gpu, self._runs)) else ""
        return f"start one with: dask worker {address} --nthreads 1{gpu}"


def _one_line(error: BaseException) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


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
            f"scheduler file {scheduler} cannot be used: {_one_line(error)}; give the file of "
            "dask scheduler --scheduler-file, or an address such as tcp://host:8786"
        ) from error


def _expected(runs: list[Run], scratch: Path) -> Expected:
    """What workers must find; the token is written here."""
    secret = uuid.uuid4().hex
    token = replace_file(scratch / f"{secret}.token", secret)
    code = [*sorted((root() / "helpers").glob("*.py")), *sorted({run.source_path for run in runs})]
    return Expected(str(root()), token, secret, tuple(code), digest(code))


def _client(address: str) -> Any:
    """A connection to a scheduler; one of NO_ANSWER if there is none after some seconds.

    It is made in a thread, because Dask waits for ever for one that takes the call and is silent.
    """
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(
                distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
            )
        except NO_ANSWER as error:
            answers.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS + 2)  # Dask's own error says more
    if not answers:
        raise TimeoutError(f"it takes the call and is silent for {CONNECT_SECONDS} s")
    if isinstance(answers[0], BaseException):
        raise answers[0]
    return answers[0]


@contextlib.contextmanager
def connect(
    scheduler: str, runs: list[Run], scratch: Path, warn: Callable[[str], None]
) -> Iterator[Pool]:
    """A pool of the workers of a scheduler, checked for the runs of one plan.

    `scheduler` is an address or a scheduler file, `scratch` a folder that workers share.

    Raises RunError if the scheduler cannot be reached, and as `Pool.open` does.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here
    address = address_of(scheduler)
    try:
        client = _client(address)
    except NO_ANSWER as error:
        raise RunError(
            f"scheduler {address!r} cannot be reached: {_one_line(error)}; start one with "
            "dask scheduler, which says its address, such as tcp://host:8786"
        ) from error
    with client:
        pool = Pool(client, _expected(runs, scratch), runs, warn)
        pool.open()
        yield pool
