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
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import test_run
from test_run import BODY, PARAMETERS, Project, call

from helpers.errors import RunError
from helpers.paths import root
from helpers.records import read_record
from helpers.runner import child, cluster
from helpers.runner import plan as plans
from helpers.runner import run as runner

distributed = pytest.importorskip("distributed")
project = test_run.project
WORKER = BODY.replace('seen = {"cwd"', 'seen = {"worker": os.environ.get("PRUNING_PARENT"), "cwd"')
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
            child.kill_family(process.pid)
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
    for notebook in ("01_work", plans.TABLES_NOTEBOOK):
        project.notebook(PARAMETERS, WORKER, notebook)
    project.run_file("b.yaml", "pattern: fail")
    project.run_file("c.yaml", "rho: 2.5")
    project.run_file("all.yaml", "", plans.TABLES_NOTEBOOK)
    answers, records = [], []
    for where in (["--jobs", "2"], ["--scheduler", scheduler]):
        monkeypatch.setenv("PRUNING_RESULTS", str(project.folder / where[0].strip("-")))
        answers.append(call(capsys, "run", *where))
        runs = [run for run in plans.read_plan("p") if run.name != "b"]
        records.append([read_record(run.record_path) for run in runs])
        assert all(plans.is_done(run) for run in runs)

    here, there = records
    assert [fixed(record) for record in there] == [fixed(record) for record in here]
    for record in here + there:
        seen = record["data"]
        assert (seen["cwd"], seen["python"], seen["threads"]) == (str(root()), sys.executable, "7")
    assert {record["data"]["worker"] for record in here} == {None}
    pids = {str(pid) for pid in worker_pids(scheduler).values()}
    assert {record["data"]["worker"] for record in there} <= pids

    (code_here, out_here, err_here), (code, out, err) = answers
    assert (code, err.replace("/scheduler/", "/jobs/")) == (code_here, err_here)
    assert "  01_work b: ValueError: rho is too sad [" in err and code == 1
    assert sorted(shape(out)) == sorted(shape(out_here))
    assert shape(out)[0] == "plan p: 3 of 3 runs to do, 2 at a time"
    assert shape(out)[-1] == "[3/3] 06_tables_and_plots all done in"
    files = sorted(path.name for path in (project.folder / "scheduler").rglob("*.*"))
    assert files == sorted(path.name for path in (project.folder / "jobs").rglob("*.*"))

    code, out, err = call(capsys, "run", "--scheduler", scheduler, "--only", "c")
    assert (code, out) == (0, "plan p: nothing to run, 1 of 1 runs are up to date\n")


def shape(out: str) -> list[str]:
    """Lines without durations."""
    return [re.sub(r"; about .*| [\d.]+ s(; .*)?$", "", line) for line in out.splitlines()]


def test_a_run_that_wants_a_gpu_goes_where_one_is_offered(
    scheduler: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.notebook(DEVICE, WORKER.replace("fast=fast)", "fast=fast, device=device)"))
    for name, device in {"a": "cuda", "b": "cpu"}.items():
        project.run_file(f"{name}.yaml", f"device: {device}")
    code, out, err = call(capsys, "run", "--scheduler", scheduler)
    assert (code, err) == (0, "")
    pids = worker_pids(scheduler)
    used = {name: data_of(project, name)["worker"] for name in "ab"}
    assert used == {"a": str(pids["gpu"]), "b": str(pids["cpu"])}


def test_a_gpu_takes_one_run() -> None:
    site = cluster.Site("a", 2, "h", (0,), gpu=True)
    site.runs["x"] = True
    assert site.takes(gpu=False) and not site.takes(gpu=True)
    site.runs["y"] = False
    assert not site.takes(gpu=False)
    assert not cluster.Site("a", 2, "h", (0,), gpu=False).takes(gpu=True)


def test_a_worker_that_dies_costs_its_run_and_no_more(
    scheduler: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.notebook(PARAMETERS, WORKER)
    project.run_file("a.yaml", "pattern: sleep")
    project.run_file("b.yaml", "")
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
        "import pathlib, sys; from helpers import plan, run;"
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
        left = [path.name for path in project.result("").rglob("*") if path.is_file()]
        assert left == [".lock"]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert worker_pids(scheduler) == pids


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_job_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Dask would give the task of a worker that died to the one that comes in its place
    class Worker:
        address = "tcp://here:1"

        def get_current_task(self) -> str:
            return "key"

    monkeypatch.setattr(distributed, "get_worker", Worker)
    files = child.Files(tmp_path / "a.job.json", tmp_path / "a.error", tmp_path / "a.log")
    (tmp_path / "a.job.taken").touch()
    assert cluster.execute(files, 1, {}).startswith("its worker tcp://here:1 died")


def test_threads_are_divided_among_the_workers_of_a_host() -> None:
    def sites(*many: tuple[int, str, tuple[int, ...]]) -> list[int]:
        found = [cluster.Site(str(i), *item, gpu=False) for i, item in enumerate(many)]
        pool._sites = {site.address: site for site in found}
        return [pool._threads(site) for site in found]

    pool = cluster.Pool(None, None, [], print)
    four, other = (0, 1, 2, 3), (4, 5)
    assert sites((1, "a", four)) == [4]
    assert sites((1, "a", four), (1, "a", four), (1, "b", four)) == [2, 2, 4]
    assert sites((1, "a", four), (1, "a", other)) == [4, 2]  # bound to cores of their own
    assert sites((8, "a", four)) == [1]


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
    assert time.monotonic() - started < 10
    return err


def test_no_scheduler_and_no_worker(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    project.run_file("a.yaml", "")
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
    assert [path.name for path in project.result("").rglob("*") if path.is_file()] == [".lock"]


def test_a_worker_that_is_not_the_same(
    scheduler: str,
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project.run_file("a.yaml", "")
    real = cluster._expected

    def expect(**changes: object) -> None:
        monkeypatch.setattr(cluster, "_expected", lambda *a: replace(real(*a), **changes))

    for changes, reason in [
        ({"root": "elsewhere"}, f"its project is {root()} and not elsewhere"),
        ({"secret": "other"}, "it has another file"),
        ({"token": project.folder / "none"}, f"it cannot read {project.folder / 'none'}: No such"),
        ({"digest": "0"}, "other code there"),
    ]:
        expect(**changes)
        err = refused(project, capsys, scheduler)
        assert re.match(r"worker tcp://127\.0\.0\.1:\d+ cannot be used: ", err) and reason in err


def test_code_that_differs_or_is_missing_changes_the_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("a")
    before = cluster.digest([one, two])
    two.write_text("b")
    both = cluster.digest([one, two])
    one.write_text("c")
    assert len({before, both, cluster.digest([one, two])}) == 3
    expected = cluster._expected(plans.read_plan("smoke"), tmp_path)
    names = {path.name for path in expected.code}
    assert {"cluster.py", "prune.py", "04_prune_model.ipynb"} <= names


def test_jobs_and_scheduler_exclude_each_other(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run_file("a.yaml", "")
    err = refused(project, capsys, "tcp://127.0.0.1:1", "--jobs", "2")
    assert "jobs = '2'" in err and "leave JOBS out" in err


def test_without_dask(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "helpers.runner.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    project.run_file("a.yaml", "")
    err = refused(project, capsys, "tcp://127.0.0.1:1")
    assert "needs the package distributed, which is not installed" in err and "[cluster]" in err


# --- workers that come and go --------------------------------------------------------------


class Client:
    """A scheduler's answers, without one."""

    def __init__(self, known: dict[str, int]) -> None:
        self.known = known
        self.scheduler = type("Scheduler", (), {"address": "tcp://s:1"})

    def sync(self, function: Callable, *arguments: object, callback_timeout: float) -> object:
        return function(*arguments)

    def nthreads(self) -> dict[str, int]:
        if not self.known:
            raise OSError("connection refused")
        return self.known


def test_workers_that_join_late_leave_or_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    client, said = Client({"a": 1}), []
    run = plans.Run("p", "01", "a", {"device": "cuda"}, {})
    pool = cluster.Pool(client, cluster.Expected("/r", Path(), "", (), ""), [run], said.append)
    found = {"reason": None, "host": "h", "cpus": [0], "gpus": 0}
    answers = {"a": found, "b": found | {"gpus": 1}, "c": found | {"reason": "too old"}}
    answers["d"] = ModuleNotFoundError("No module named 'helpers.runner.cluster'")
    monkeypatch.setattr(pool, "ask", lambda address, *rest: answers[address])
    monkeypatch.setattr(cluster, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 0.1)
    with pytest.raises(RunError, match="no worker offers one"):
        pool.open()
    assert not pool.has_room(run, 0)
    client.known = {"a": 1, "b": 1, "c": 1, "d": 1}
    for _ in range(3):
        assert pool.has_room(run, 0)
    assert pool.slots == 1
    assert sorted(said) == [
        "worker c cannot be used: too old; the run goes on without it",
        "worker d cannot be used: ModuleNotFoundError: No module named 'helpers.runner.cluster'; start "
        "it with the project's .venv in /r; the run goes on without it",
    ]
    client.known = {"a": 1}
    assert not pool.has_room(run, 0)
    time.sleep(0.2)
    assert not pool.has_room(run, 1)  # something is under way, so there is hope
    assert not pool.has_room(run, 0)
    time.sleep(0.2)
    with pytest.raises(RunError, match='no worker is left for 01 a: .*"GPU=1"'):
        pool.has_room(run, 0)
    client.known = {}
    with pytest.raises(RunError, match="the scheduler is gone .*goes on"):
        pool.has_room(run, 0)


def test_make_passes_the_scheduler_on() -> None:
    text = (root() / "Makefile").read_text(encoding="utf-8")
    assert "--jobs $(JOBS) $(if $(SCHEDULER),--scheduler '$(SCHEDULER)')" in text
    assert runner._options(["--scheduler", "tcp://h:1"]).scheduler == "tcp://h:1"
