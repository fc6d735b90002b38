"""Runs on a Dask cluster: a scheduler and workers on this machine, and tiny notebooks.

One worker of the shared cluster offers a GPU that it does not have: only who gets what is tested.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_project
from small_project import PARAMETERS, Project, call

import helpers.runner
from helpers.errors import RunError
from helpers.paths import root
from helpers.records import read_record
from helpers.runner import cluster
from helpers.runner import plan as plans
from helpers.runner.fingerprint import is_done
from helpers.runner.process import kill_family

distributed = pytest.importorskip("distributed")
project = small_project.project
DEVICE = PARAMETERS + 'device = "cpu"\n'


def dask(*arguments: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=root(), **quiet, **options)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The file of a scheduler with two workers, "gpu" and "cpu"."""
    folder = tmp_path_factory.mktemp("dask")
    file = str(folder / "scheduler.json")
    common = ["--scheduler-file", file, "--host", "127.0.0.1"]
    processes = [dask("scheduler", *common, "--port", "0")]
    common += ["--nthreads", "1", "--local-directory", str(folder), "--name"]
    processes.append(dask("worker", *common, "gpu", "--resources", "GPU=1"))
    processes.append(dask("worker", *common, "cpu"))
    try:
        with distributed.Client(scheduler_file=file, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield file
    finally:
        for process in processes:
            kill_family(process.pid)
            process.wait()


def worker_pids(scheduler: str) -> dict[str, int]:
    """The process of each worker by its name."""

    def name(dask_worker: object) -> tuple[str, int]:
        return dask_worker.name, os.getpid()

    with distributed.Client(cluster.address_of(scheduler), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=30)
        return dict(client.run(name).values())


def in_process(**options: object) -> distributed.LocalCluster:
    """A cluster whose workers are threads of this process: quick, for what is refused."""
    common = {"processes": False, "threads_per_worker": 1, "dashboard_address": ":0"}
    return distributed.LocalCluster(**common, **options)


def data_of(project: Project, name: str, notebook: str = "01_work") -> dict:
    return read_record(project.result(f"records/{notebook}--{name}.json"))["data"]


def fixed(record: dict) -> dict:
    """What does not depend on when and by which process a record was made."""
    moving = {"created", "seconds", "run_seconds", "data", "git", "fingerprint"}
    return {key: value for key, value in record.items() if key not in moving}


# --- running -------------------------------------------------------------------------------


def test_records_failures_and_lines_are_those_of_local_runs(
    scheduler: str,
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # Dask sets it to 1 in its workers
    project.run_file("b.yaml", "pattern: fail")
    project.run_file("c.yaml", "rho: 2.5")
    answers, records = [], []
    for where in (["--jobs", "2"], ["--scheduler", scheduler]):
        monkeypatch.setenv("PRUNING_RESULTS", str(project.folder / where[0].strip("-")))
        answers.append(call(capsys, "run", *where))
        runs = [run for run in plans.read_plan("p") if run.name != "b"]
        records.append([read_record(run.record_path) for run in runs])
        assert all(is_done(run) for run in runs)

    here, there = records
    assert [fixed(record) for record in there] == [fixed(record) for record in here]
    for record in here + there:
        seen = record["data"]
        assert (seen["cwd"], seen["python"], seen["threads"]) == (str(root()), sys.executable, "7")
    assert {record["data"]["parent"] for record in here} == {str(os.getpid())}
    pids = {str(pid) for pid in worker_pids(scheduler).values()}
    assert {record["data"]["parent"] for record in there} <= pids

    (code_here, out_here, err_here), (code, out, err) = answers
    assert (code, err.replace("/scheduler/", "/jobs/")) == (code_here, err_here)
    assert "  01_work b: ValueError: rho is too sad [" in err and code == 1
    assert sorted(shape(out)) == sorted(shape(out_here))
    assert shape(out)[0] == "plan p: 2 of 2 runs to do, 2 at a time"
    files = sorted(path.name for path in (project.folder / "scheduler").rglob("*.*"))
    assert files == sorted(path.name for path in (project.folder / "jobs").rglob("*.*"))

    code, out, err = call(capsys, "run", "--scheduler", scheduler, "--only", "c")
    assert (code, out) == (0, "plan p: nothing to run, 1 of 1 runs are up to date\n")


def shape(out: str) -> list[str]:
    """Lines without durations."""
    return [re.sub(r"; about .*| [\d.]+ s(; .*)?$", "", line) for line in out.splitlines()]


def test_a_worker_that_dies_costs_its_run_and_no_more(
    scheduler: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "pattern: sleep")
    project.run_file("b.yaml")
    before = worker_pids(scheduler)
    family: list[psutil.Process] = []

    def kill() -> None:
        await_file(project.result("runs/01_work--a.failed.ipynb"))
        for pid in before.values():
            inner = psutil.Process(pid).children(recursive=True)
            if any("01_work--a.job.json" in " ".join(item.cmdline()) for item in inner):
                family.extend(inner)
                psutil.Process(pid).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    code, out, err = call(capsys, "run", "--scheduler", scheduler)
    killer.join()
    assert code == 1 and err.splitlines()[0] == "1 run failed; run again to repeat:"
    assert re.search(r"01_work a: its worker tcp://127\.0\.0\.1:\d+ died or was lost", err)
    assert out.count("01_work a …") == 1 and "01_work b done in" in out
    _, alive = psutil.wait_procs(family, timeout=10)
    assert family and not alive, "the child or its kernel outlived the worker"
    assert not project.result("records/01_work--a.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_run_outlives_its_caller(number: int, scheduler: str, project: Project) -> None:
    project.run_file("slow.yaml", "pattern: sleep")
    start = (
        "import pathlib, sys; from helpers.runner import plan, run;"
        f"plan.notebooks_dir = lambda: pathlib.Path({str(project.folder / 'notebooks')!r});"
        f"sys.exit(run.main(['run', '--plan', 'p', '--scheduler', {scheduler!r}]))"
    )
    pids = worker_pids(scheduler)
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=root(), stderr=subprocess.PIPE, text=True
    )
    await_file(project.result("runs/01_work--slow.failed.ipynb"))
    time.sleep(0.5)
    family = [item for pid in pids.values() for item in psutil.Process(pid).children(True)]
    assert any("ipykernel" in " ".join(item.cmdline()) for item in family)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert err == "interrupted; the same command goes on with the runs that are missing\n"
        assert project.files() == [".lock"]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert worker_pids(scheduler) == pids


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_job_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Dask would give the task of a worker that died to the next one
    class Worker:
        address = "tcp://here:1"

        def get_current_task(self) -> str:
            return "key"

    monkeypatch.setattr(distributed, "get_worker", Worker)
    (tmp_path / "a.job.taken").touch()
    found = cluster.execute(tmp_path / "a.job.json", tmp_path / "a.log", 1, {})
    assert found.startswith("its worker tcp://here:1 died")


def test_threads_are_divided_among_the_workers_of_a_host() -> None:
    def threads(*places: tuple[str, tuple[int, ...]]) -> list[int]:
        client = Client({})
        pool = cluster.Pool(client, Path(), [], print)
        sites = [cluster.Site(str(i), *place, gpu=False) for i, place in enumerate(places)]
        pool.sites = {site.address: site for site in sites}
        for i in range(len(sites)):
            pool.start(plans.Run("p", "01", str(i), {}, {}))
        return client.threads

    four, other = (0, 1, 2, 3), (4, 5)
    assert threads(("a", four)) == [4]
    assert threads(("a", four), ("a", four), ("b", four)) == [2, 2, 4]
    assert threads(("a", four), ("a", other)) == [4, 2]  # bound to cores of their own
    assert threads(*[("a", four)] * 8) == [1] * 8


# --- what is refused -----------------------------------------------------------------------


def test_which_runs_want_a_gpu() -> None:
    def wants(plan: str, **asked: object) -> bool:
        return cluster.wants_gpu(plans.Run(plan, "01", "a", asked, {}))

    assert wants("laptop", device="cuda") and wants("p", device="cuda:1")
    assert wants("t4", device="auto") and wants("paper", device="auto")
    assert not wants("laptop", device="auto") and not wants("paper", device="cpu")
    assert not wants("paper")
    named = {run.notebook for run in plans.read_plan("paper") if not cluster.wants_gpu(run)}
    assert named == {plans.TABLES_NOTEBOOK}


def refused(
    project: Project, capsys: pytest.CaptureFixture[str], scheduler: str, *more: str
) -> str:
    """The error line of a plan that is refused before anything starts."""
    started = time.monotonic()
    code, out, err = call(capsys, "run", "--scheduler", scheduler, *more)
    assert (code, out, err.count("\n")) == (1, "", 1), (out, err)
    assert time.monotonic() - started < 25, "nobody waits for ever"
    return err


def test_no_scheduler_and_no_worker(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    project.run_file("a.yaml")
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls and never answers
        mute = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert f"scheduler '{mute}' cannot be reached" in refused(project, capsys, mute)
    assert "dask scheduler" in refused(project, capsys, mute)  # nobody listens there now
    assert "cannot be reached" in refused(project, capsys, "htp://127.0.0.1:1")
    assert "cannot be reached" in refused(project, capsys, "nonsense")
    lost = str(project.folder / "none.json")
    assert "scheduler file" in refused(project, capsys, lost)
    with in_process(n_workers=0) as empty:
        address = empty.scheduler_address
        err = refused(project, capsys, address)
        assert "no worker has joined in 1 s" in err
        assert f"dask worker {address} --nthreads 1\n" in err


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        ({}, "2 runs want a GPU, as 01_work a does, and no worker offers one: start one with: "),
        ({"GPU": 2}, "it offers GPU=2: start one worker for each GPU"),
    ],
    ids=["none", "two"],
)
def test_workers_without_the_gpu(
    resources: dict, reason: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.notebook(DEVICE)
    for name in "ab":
        project.run_file(f"{name}.yaml", "device: cuda")
    with in_process(n_workers=1, resources=resources) as local:
        assert re.search(reason, refused(project, capsys, local.scheduler_address))
    assert project.files() == [".lock"]


def test_a_worker_that_is_not_the_same(
    scheduler: str,
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker reads the token; what the caller says of itself is made up here."""
    project.run_file("a.yaml")
    for name, made_up, reason in [
        ("code_digest", lambda: "0", "other code there"),
        ("replace_file", lambda path, text: path, "it cannot read"),  # another results folder
        ("root", lambda: "elsewhere", f"its project is {root()} and not elsewhere"),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(cluster, name, made_up)
            if name == "root":
                patched.setattr(cluster, "code_digest", lambda: "0")
            err = refused(project, capsys, scheduler)
        assert re.match(r"worker tcp://127\.0\.0\.1:\d+ cannot be used: ", err) and reason in err


def test_code_that_differs_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("helpers/fast", "helpers/own", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(cluster, "root", lambda: tmp_path)
    monkeypatch.setattr(cluster, "notebooks_dir", lambda: tmp_path / "notebooks")
    digests = {cluster.code_digest()}
    for name in ("helpers/a.py", "helpers/fast/b.py", "helpers/own/c.py", "notebooks/d.ipynb"):
        (tmp_path / name).write_text("x = 1")
        digests.add(cluster.code_digest())
    (tmp_path / "helpers/a.py").write_text("x = 2")
    digests.add(cluster.code_digest())
    assert len(digests) == 6


def test_jobs_and_scheduler_exclude_each_other(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml")
    err = refused(project, capsys, "tcp://127.0.0.1:1", "--jobs", "2")
    assert "jobs = '2'" in err and "leave JOBS out" in err


def test_without_dask(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "helpers.runner.cluster")
    monkeypatch.delattr(helpers.runner, "cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    project.run_file("a.yaml")
    err = refused(project, capsys, "tcp://127.0.0.1:1")
    assert "needs the package distributed, which is not installed" in err and "[cluster]" in err


# --- workers that come and go --------------------------------------------------------------


class Client:
    """A scheduler's answers, without one."""

    def __init__(self, known: dict[str, int]) -> None:
        self.known, self.sent, self.threads = known, [], []
        self.scheduler = type("Scheduler", (), {"address": "tcp://s:1"})

    def sync(self, function: Callable, *arguments: object, callback_timeout: float) -> object:
        return function(*arguments)

    def nthreads(self) -> dict[str, int]:
        if not self.known:
            raise OSError("connection refused")
        return self.known

    def submit(self, function: Callable, *arguments: object, **options: Any) -> None:
        self.sent.append((options["workers"], options["resources"]))
        self.threads.append(arguments[2])


def test_a_run_that_wants_a_gpu_goes_where_one_is_offered() -> None:
    client = Client({})
    pool = cluster.Pool(client, Path(), [], print)
    pool._looked = time.monotonic()  # these workers are not asked for again
    pool.sites = {name: cluster.Site(name, "h", (0,), gpu=name == "b") for name in "abc"}
    for name, device in {"x": "cpu", "y": "cuda", "z": "cpu"}.items():
        run = plans.Run("p", "01", name, {"device": device}, {})
        assert pool.can_start(run, 0)
        pool.start(run)
    assert client.sent == [(["a"], None), (["b"], {"GPU": 1}), (["c"], None)]
    assert not pool.can_start(run, 3), "each worker has one"


def test_workers_that_join_late_leave_or_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    client, said = Client({"a": 1}), []
    run = plans.Run("p", "01", "a", {"device": "cuda"}, {})
    pool = cluster.Pool(client, Path(), [run], said.append)
    found = {"reason": None, "host": "h", "cpus": (0,), "gpu": False}
    answers = {"a": found, "b": found | {"gpu": True}, "c": found | {"reason": "too old"}}
    answers["d"] = ModuleNotFoundError("No module named 'helpers.runner.cluster'")
    monkeypatch.setattr(
        pool,
        "ask",
        lambda address, *rest: dict(answers[address]) if address != "d" else answers["d"],
    )
    monkeypatch.setattr(cluster, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 0.1)
    with pytest.raises(RunError, match="no worker offers one"):
        pool.open()
    assert not pool.can_start(run, 0)
    client.known = {"a": 1, "b": 1, "c": 1, "d": 1}
    for _ in range(3):
        assert pool.can_start(run, 0)
    assert pool.slots == 1
    assert len(said) == 2, "each is reported once"
    assert "worker c cannot be used: too old; the run goes on without it" in said
    start = f"start it with the project's .venv in {root()}; the run goes on without it"
    assert any(line.startswith("worker d") and line.endswith(start) for line in said)
    client.known = {"a": 1}
    assert not pool.can_start(run, 0)
    time.sleep(0.2)
    assert not pool.can_start(run, 1)  # something is under way, so there is hope
    assert not pool.can_start(run, 0)
    time.sleep(0.2)
    with pytest.raises(RunError, match='no worker is left for 01 a: .*"GPU=1"'):
        pool.can_start(run, 0)
    client.known = {}
    with pytest.raises(RunError, match="the scheduler is gone .*goes on"):
        pool.can_start(run, 0)


def test_make_passes_the_scheduler_on() -> None:
    text = (root() / "Makefile").read_text(encoding="utf-8")
    assert "--jobs $(JOBS) $(if $(SCHEDULER),--scheduler '$(SCHEDULER)')" in text
