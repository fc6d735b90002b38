"""Runs on a Dask cluster: a scheduler and workers on this machine, and tiny notebooks.

One worker offers a GPU that it does not have: only who gets what is tested.
"""

import contextlib
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
import small_project
from small_project import runner_process, wait_for_kernel

from helpers.paths import root
from reproduction import cluster, schedule
from reproduction import plan as plans
from reproduction.records import read_record

distributed = pytest.importorskip("distributed")
project = small_project.project

# the workers, too, are to find the notebooks of a project
PRELOAD = """
import os, pathlib
from reproduction import plan
plan.notebooks_dir = lambda: pathlib.Path(os.environ["PRUNING_RUNS"]).parent / "notebooks"
"""


def dask(arguments):
    command = [sys.executable, "-m", "dask", *arguments.split(), "--no-dashboard"]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=root(), stdout=null, stderr=null)


def end(*processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
            for member in (*children, process):
                member.kill()
        process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The file of a scheduler with two workers, "gpu" and "cpu". The last test ends it."""
    folder = tmp_path_factory.mktemp("dask")
    file = f"{folder}/scheduler.json"
    preload = folder / "preload.py"
    preload.write_text(PRELOAD)
    common = f"--scheduler-file {file} --host 127.0.0.1"
    worker = (
        f"worker {common} --nthreads 1 --local-directory {folder} --preload {preload}"
    )
    processes = [
        dask(f"scheduler {common} --port 0"),
        dask(f"{worker} --name gpu --resources GPU=1"),
        dask(f"{worker} --name cpu"),
    ]
    try:
        worker_pids(file)
        yield file
    finally:
        end(*processes)


def worker_pids(scheduler):
    """The processes of the two workers by their names, once both are there."""
    with distributed.Client(scheduler_file=scheduler, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        answers = client.run(lambda dask_worker: (dask_worker.name, os.getpid()))
        return dict(answers.values())


def test_records_and_failures_are_those_of_local_runs(scheduler, project, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # Dask sets it to 1 in its workers
    project.run_file("b.yaml", "pattern: fail")
    project.run_file("c.yaml", "rho: 2.5")
    records = []
    for where in (["--only", "c"], ["--scheduler", scheduler]):
        monkeypatch.setenv("PRUNING_RESULTS", str(project.folder / where[0]))
        code, out, err = project.call("run", *where)
        records.append(read_record(plans.read_plan("p", "c")[0].record_path))
    assert code == 1
    assert "2 at a time" in out
    assert "01_work--b: ValueError" in err
    for record in records:
        del record["created"], record["seconds"], record["run_seconds"]
        del record["data"]["inputs"]
    assert records[0] == records[1]
    assert records[0]["data"]["threads"] == "7"


def test_which_runs_want_a_gpu():
    def wants(plan, device):
        return cluster.wants_gpu(plans.Run(plan, "01", "a", {"device": device}, {}))

    assert wants("laptop", "cuda")
    assert wants("p", "cuda:1")
    assert wants("t4", "auto")
    assert not wants("laptop", "auto")
    assert not wants("paper", "cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_kernel_outlives_its_runner_and_a_gpu_has_its_worker(
    number, scheduler, project
):
    project.notebook(small_project.PARAMETERS + 'device = "cuda"\n')
    pids = worker_pids(scheduler)
    process = runner_process(project, "--scheduler", scheduler)
    kernels = wait_for_kernel(pids["gpu"])
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "interrupted" in err
        assert project.files() == []
    assert not psutil.wait_procs(kernels, timeout=10)[1]
    assert worker_pids(scheduler) == pids


@pytest.mark.parametrize("change", ["code", "results"])
def test_a_worker_without_the_runners_code_or_results(
    change, scheduler, project, monkeypatch
):
    project.run_file("a.yaml")
    if change == "code":
        monkeypatch.setattr(schedule, "fingerprint", lambda _: "of other code")
    else:
        unseen = SimpleNamespace(name=project.result("unseen"), close=None)
        made = SimpleNamespace(NamedTemporaryFile=lambda **_: nullcontext(unseen))
        monkeypatch.setattr(cluster, "tempfile", made)
    code, _, err = project.call("run", "--scheduler", scheduler)
    assert code == 1
    assert "other code or another results folder" in err
    assert not project.result("records/01_work--a.json").exists()


def test_no_scheduler_no_worker_and_no_dask(project, monkeypatch):
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    project.run_file("a.yaml", "pattern: sleep")
    missing = str(project.folder / "none.json")
    for wrong in ("tcp://127.0.0.1:1", "htp://127.0.0.1:1", missing):
        error = project.error("run", "--scheduler", wrong)
        assert f"scheduler '{wrong}' cannot be reached" in error
    with distributed.LocalCluster(
        n_workers=0, processes=False, threads_per_worker=1, dashboard_address=":0"
    ) as local:
        _, _, err = project.call("run", "--scheduler", local.scheduler_address)
        assert "has no worker" in err
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    assert "distributed" in project.error("run", "--scheduler", "tcp://127.0.0.1:1")


def test_a_scheduler_that_dies_gives_a_sentence(scheduler, project):
    process = runner_process(project, "--scheduler", scheduler)
    kernels = wait_for_kernel(*worker_pids(scheduler).values())
    for child in psutil.Process().children():
        if {"scheduler", scheduler} <= set(child.cmdline()):
            end(child)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "the scheduler is gone" in err
    assert not psutil.wait_procs(kernels, timeout=10)[1]
