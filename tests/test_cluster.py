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
from small_project import Project, runner_process, wait_for, wait_for_kernel

import helpers.runner
from helpers.errors import RunError
from helpers.paths import root
from helpers.report.records import read_record
from helpers.runner import cluster
from helpers.runner import plan as plans
from helpers.runner.fingerprint import is_done
from helpers.runner.process import kill_family

distributed = pytest.importorskip("distributed")
project = small_project.project


def dask(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=root(), **quiet)


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
        worker_pids(file)
        yield file
    finally:
        for process in processes:
            kill_family(process.pid)
            process.wait()


def worker_pids(scheduler: str, count: int = 2) -> list[int]:
    """The processes of the workers, once all are there."""
    with distributed.Client(scheduler_file=scheduler, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)
        return list(client.run(os.getpid).values())


# --- running -------------------------------------------------------------------------------


def test_records_failures_and_lines_are_those_of_local_runs(
    scheduler: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # Dask sets it to 1 in its workers
    project.run_file("b.yaml", "pattern: fail")
    project.run_file("c.yaml", "rho: 2.5")
    answers, records, files = [], [], []
    for where in (["--jobs", "2"], ["--scheduler", scheduler]):
        results = project.folder / where[0].strip("-")
        monkeypatch.setenv("PRUNING_RESULTS", str(results))
        code, out, err = project.call("run", *where)
        lines = [re.sub(r"; about .*| [\d.]+ s(; .*)?$", "", line) for line in out.splitlines()]
        answers.append((code, sorted(lines), err.replace(str(results), "")))
        files.append(sorted(path.name for path in results.rglob("*.*")))
        (run,) = plans.read_plan("p", "c")
        assert is_done(run)
        records.append(read_record(run.record_path))
    assert answers[0] == answers[1] and files[0] == files[1]
    code, lines, err = answers[1]
    assert code == 1 and "  01_work b: ValueError: rho is too sad [" in err
    assert "plan p: 2 of 2 runs to do, 2 at a time" in lines
    seen = [record.pop("data") for record in records]
    for data in seen:
        assert (data["cwd"], data["python"], data["threads"]) == (str(root()), sys.executable, "7")
    assert seen[0]["parent"] == str(os.getpid())
    assert int(seen[1]["parent"]) in worker_pids(scheduler)
    moving = {"created", "seconds", "run_seconds"}
    here, there = ({k: v for k, v in record.items() if k not in moving} for record in records)
    assert here == there


def test_a_worker_that_dies_costs_its_run_and_no_more(scheduler: str, project: Project) -> None:
    project.run_file("a.yaml", "pattern: sleep")
    project.run_file("b.yaml")
    pids, family = worker_pids(scheduler), []

    def kill() -> None:
        wait_for(project.result("runs/01_work--a.failed.ipynb").is_file)
        for pid in pids:
            inner = psutil.Process(pid).children(recursive=True)
            if any("01_work--a.job.json" in " ".join(item.cmdline()) for item in inner):
                family.extend(inner)
                psutil.Process(pid).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    code, out, err = project.call("run", "--scheduler", scheduler)
    killer.join()
    assert code == 1 and err.splitlines()[0] == "1 run failed; run again to repeat:"
    assert re.search(r"01_work a: its worker tcp://127\.0\.0\.1:\d+ died or was lost", err)
    assert out.count("01_work a …") == 1 and "01_work b done in" in out
    _, alive = psutil.wait_procs(family, timeout=10)
    assert family and not alive, "the child or its kernel outlived the worker"
    assert not project.result("records/01_work--a.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_run_outlives_its_caller(number: int, scheduler: str, project: Project) -> None:
    pids = worker_pids(scheduler)
    process = runner_process(project, "--scheduler", scheduler)
    family = wait_for_kernel(*pids)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert err == "interrupted; the same command goes on with the runs that are missing\n"
        assert project.files() == [".lock"]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and sorted(worker_pids(scheduler)) == sorted(pids)


def test_a_scheduler_that_dies_gives_a_sentence(tmp_path: Path, project: Project) -> None:
    common = ["--scheduler-file", str(tmp_path / "s.json"), "--host", "127.0.0.1"]
    processes = [dask("scheduler", *common, "--port", "0"), dask("worker", *common, "--no-nanny")]
    try:
        pids = worker_pids(common[1], 1)
        process = runner_process(project, "--scheduler", common[1])
        wait_for_kernel(*pids)
        kill_family(processes[0].pid)
        _, err = process.communicate(timeout=90)
    finally:
        for process_ in processes:
            kill_family(process_.pid)
            process_.wait()
    assert process.returncode == 1 and err.count("\n") == 1, err
    assert err.startswith("the scheduler is gone (") and "goes on with the runs" in err


# --- what is refused -----------------------------------------------------------------------


def test_which_runs_want_a_gpu() -> None:
    def wants(plan: str, device: str) -> bool:
        return cluster.wants_gpu(plans.Run(plan, "01", "a", {"device": device}, {}))

    assert wants("laptop", "cuda") and wants("p", "cuda:1") and wants("t4", "auto")
    assert not wants("laptop", "auto") and not wants("paper", "cpu")
    named = {run.notebook for run in plans.read_plan("paper") if not cluster.wants_gpu(run)}
    assert named == {plans.TABLES_NOTEBOOK}


@pytest.fixture
def refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The last error line of a plan of which no run is started."""
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    project.run_file("a.yaml")

    def error(scheduler: str, *more: str, lines: int = 1) -> str:
        started = time.monotonic()
        code, out, err = project.call("run", "--scheduler", scheduler, *more)
        assert code == 1 and "…" not in out and err.count("\n") == lines, (out, err)
        assert time.monotonic() - started < 25, "nobody waits for ever"
        return err

    return error


def test_no_scheduler(project: Project, refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls and never answers
        mute = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert f"scheduler '{mute}' cannot be reached" in refused(mute)
    for wrong in (mute, "htp://127.0.0.1:1", "nonsense", str(project.folder / "none.json")):
        assert "cannot be reached" in refused(wrong)
    with socket.create_server(("127.0.0.1", 0)) as server:  # such as a web server

        def answer() -> None:
            call, _ = server.accept()
            with call:
                call.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                call.recv(1 << 16)

        threading.Thread(target=answer, daemon=True).start()
        assert "cannot be reached" in refused(f"127.0.0.1:{server.getsockname()[1]}")
    err = refused("tcp://127.0.0.1:1", "--jobs", "2")
    assert "jobs = '2'" in err and "leave JOBS out" in err


@pytest.mark.parametrize(
    ("workers", "device", "reason"),
    [
        ({"n_workers": 0}, "cpu", r"no worker .* joined .* --nthreads 1 and repeat"),
        ({"n_workers": 1}, "cuda", r'no worker .* 01_work a .* --nthreads 1 --resources "GPU=1"'),
        ({"n_workers": 1, "resources": {"GPU": 2}}, "cuda", r"it offers GPU=2: start one worker"),
    ],
    ids=["none", "no GPU", "two GPUs"],
)
def test_no_worker_that_can_take_a_run(
    workers: dict, device: str, reason: str, project: Project, refused: Callable[..., str]
) -> None:
    project.notebook(small_project.PARAMETERS + 'device = "cpu"\n')
    project.run_file("a.yaml", f"device: {device}")
    # its workers are threads of this process: quick, for what is refused
    quick = {"processes": False, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**quick, **workers) as local:
        err = refused(local.scheduler_address, lines=1 + ("resources" in workers))
    assert re.search(reason, err) and project.files() == [".lock"]


def test_a_worker_without_the_results_folder(
    scheduler: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token is written, so that the workers find none; the caller says that it has one."""
    here = cluster.identity(root()) | {"results folder": "shared"}
    monkeypatch.setattr(cluster, "replace_file", lambda path, text: path)
    monkeypatch.setattr(cluster, "identity", lambda _: here)
    err = refused(scheduler, lines=3)  # one for each worker
    wrong = r"worker tcp://127\.0\.0\.1:\d+ is not used: its results folder is another one"
    assert len(re.findall(wrong, err)) == 2


def test_code_that_differs_changes_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "root", lambda: tmp_path)
    monkeypatch.setattr(cluster, "notebooks_dir", lambda: tmp_path / "notebooks")
    seen = set()
    for name in ("helpers/fast/b.py", "notebooks/d.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True)
        for text in ("x = 1", "x = 2"):
            (tmp_path / name).write_text(text)
            seen.add(tuple(cluster.identity(tmp_path).values()))
    assert len(seen) == 4


def test_without_dask(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "helpers.runner.cluster")
    monkeypatch.delattr(helpers.runner, "cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    err = refused("tcp://127.0.0.1:1")
    assert "needs the package distributed, which is not installed" in err and "[cluster]" in err


# --- workers that come and go --------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at each call who is there, waits for nobody, and needs no notebook."""
    monkeypatch.setattr(cluster, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "prepare", lambda run: None)


class Client:
    """A scheduler's answers, without one. known: what each worker has, as `look` finds it."""

    scheduler = type("Scheduler", (), {"address": "tcp://s:1"})

    def __init__(self, **known: Any) -> None:
        self.known, self.sent = known, []

    def sync(self, function: Callable, *arguments: object, **options: Any) -> object:
        del options["callback_timeout"]
        return function(*arguments, **options)

    def nthreads(self) -> list[str]:
        if not self.known:
            raise OSError("connection refused")
        return list(self.known)

    def run(self, *_: object, workers: list[str], on_error: str) -> dict[str, Any]:
        return {workers[0]: self.known[workers[0]]}

    def submit(self, _: Callable, *arguments: Any, **options: Any) -> None:
        self.sent.append((*options["workers"], options["resources"], arguments[2]))


def worker(gpus: int = 0, cores: int = 4, host: str = "h", **other: str) -> tuple:
    return cluster.identity(Path()) | other, (host, *range(cores)), gpus


@pytest.mark.usefixtures("quick")
def test_a_run_goes_where_its_gpu_is_and_workers_of_a_host_share_its_cores() -> None:
    client = Client(a=worker(), b=worker(gpus=1), c=worker(host="i"), d=worker(cores=2))
    devices = {"w": "cpu", "x": "cuda", "y": "cpu", "z": "cpu"}
    runs = [plans.Run("p", "01", name, {"device": device}, {}) for name, device in devices.items()]
    pool = cluster.Pool(client, Path(), print)
    assert pool.slots == 4
    for run in runs:
        assert pool.start(run, 0)
    sent = {address: rest for address, *rest in client.sent}
    assert sent == {"a": [None, 2], "b": [{"GPU": 1}, 2], "c": [None, 4], "d": [None, 2]}
    assert client.sent[1][0] == "b" and not pool.start(runs[0], 4), "each worker has one"


@pytest.mark.usefixtures("quick")
def test_workers_that_join_late_leave_or_do_not_pass() -> None:
    client = Client(a=worker())
    run = plans.Run("p", "01", "a", {"device": "cuda"}, {})
    said: list[str] = []
    pool = cluster.Pool(client, Path(), said.append)
    assert not pool.start(run, 0)
    lost = ModuleNotFoundError("No module named 'helpers.runner.cluster'")
    client.known |= {"b": worker(gpus=1), "c": worker(Python="/usr"), "d": lost}
    assert [pool.slots for _ in range(3)] == [2, 2, 2] and pool.start(run, 0)
    c, d = sorted(said)  # each is reported once
    assert c.startswith("worker c is not used: its Python is /usr and not ")
    assert d.startswith("worker d is not used: ModuleNotFoundError") and "start it again" in d
    client.known = {"a": worker()}
    time.sleep(0.2)
    assert not pool.start(run, 1)  # something is under way
    time.sleep(0.2)
    with pytest.raises(RunError, match='no worker that can take 01 a .*"GPU=1"'):
        pool.start(run, 0)
    client.known = {}
    with pytest.raises(RunError, match="the scheduler is gone .*goes on"):
        pool.start(run, 0)
