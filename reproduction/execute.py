"""Execute one run: its notebook through papermill, in a kernel that ends when its runner ends.

A thread of the runner calls `execute`, or a worker of a Dask cluster. A kernel that dies, as where
memory runs out, costs one run.

What papermill does not check is checked here. The working directory is the project's root, the
notebook executes into NAME.failed.ipynb, every cell must have run, and the record must be about the
parameters that were given. Only then is the notebook renamed, and the run's fingerprint added to
the record, which makes the run count as done.
"""

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from helpers.errors import HelpersError, RunError, first_line
from helpers.paths import cache_dir, results_dir, root, runs_dir
from reproduction.machine import THREAD_VARIABLES
from reproduction.plan import Run
from reproduction.records import read_record, write_record

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Pool:
    """Where runs are executed: in threads of the runner, or on a cluster."""

    submit: Callable[[Run, dict[str, str]], Future]  # a run with its fingerprint
    slots: Callable[[], int]  # how many runs can go at a time now
    stop: Callable[[], None]  # kills the kernels of all runs


def run_variables(threads: int) -> dict[str, str]:
    """The environment of a run: the runner's folders, and how many threads it may use.

    A number of threads that is set where the runner was started is kept.
    """
    variables = {
        "PRUNING_CACHE": str(cache_dir()),
        "PRUNING_RESULTS": str(results_dir("")),
        "PRUNING_RUNS": str(runs_dir("")),
        "MPLBACKEND": "",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name in THREAD_VARIABLES:
        variables[name] = os.environ.get(name) or str(threads)
    return variables


def execute(
    run: Run,
    code: dict[str, str],
    variables: dict[str, str],
    stopped: Callable[[], bool],
) -> str | None:
    """Execute a run, and return its error in one line; None if it is done.

    code: its fingerprint, which is not taken here: Python's parser is for one thread at a time.
    variables: of `run_variables`. stopped: the kernel is killed once this is True.
    """
    # here: papermill takes seconds to import, and most commands execute nothing
    from jupyter_client import AsyncKernelManager, kernelspec
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # ipykernel 6 (Colab) loads a debugger, which warns of frozen modules, here and in the kernel,
    # which inherits this
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    ended = threading.Event()

    class Kernel(AsyncKernelManager):
        """This Python, even where the user has another "python3" kernel, and without a profile."""

        def _kernel_spec_manager_default(self) -> kernelspec.KernelSpecManager:
            # without folders it finds only the kernel of the Python that runs this
            return kernelspec.KernelSpecManager(kernel_dirs=[])

        async def start_kernel(self, **options: Any) -> None:
            self.connection_file = f"{folder}/kernel.json"
            environment = os.environ | variables | {"IPYTHONDIR": folder}
            options |= dict(cwd=root(), env=environment, stdout=log, stderr=log)
            await super().start_kernel(**options)
            threading.Thread(
                target=kill_if_stopped,
                args=(self.provisioner.pid, stopped, ended),
                daemon=True,
            ).start()

    # what it has to say is in the error
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory(
            prefix="pruning-", ignore_cleanup_errors=True
        ) as folder,
        run.log_path.open("wb") as log,
    ):
        try:
            execute_notebook(run, code, Kernel)
        except PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}".splitlines()[0][:400]
        except DeadKernelError:
            return "the kernel died: was there enough memory?"
        except HelpersError as error:
            return first_line(error)[:400]
        finally:
            ended.set()
    run.log_path.unlink()
    return None


def execute_notebook(run: Run, code: dict[str, str], kernel: type) -> None:
    """Execute a run's notebook, check its cells and its record, and mark the run as done.

    kernel: a class of jupyter_client's kernel managers.
    """
    import papermill

    started = time.monotonic()
    for path in (run.record_path, run.executed_path, run.failed_path):
        path.unlink(missing_ok=True)  # an earlier run's could pass for new
    notebook = papermill.execute_notebook(
        run.source_path,
        run.failed_path,
        parameters=run.parameters | {"record_path": str(run.record_path)},
        kernel_name="python3",
        language="python",
        progress_bar=False,
        start_timeout=300,
        kernel_manager_class=kernel,
    )
    # papermill calls a run whose kernel was killed "completed" too
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        status = cell.metadata["papermill"]["status"]
        if cell.execution_count is None or status != "completed":
            raise RunError(
                f"cell {number} did not run to its end: was there enough memory?"
            )
    if not run.record_path.is_file():
        raise RunError(
            "the notebook wrote no record: end it with write_record(record_path, …)"
        )
    record = read_record(run.record_path)
    recorded = record["parameters"]
    for key, value in run.effective.items():
        if (key, value) not in recorded.items():
            raise RunError(
                f"the notebook recorded {key} = {recorded.get(key)!r} instead of {value!r}: fix "
                "the cell that writes its record"
            )
    record |= {
        "plan": run.plan,
        "notebook": run.notebook,
        "name": run.name,
        "fingerprint": code,
        "run_seconds": round(time.monotonic() - started, 1),
    }
    if run.timed:
        record["timed"] = True
    run.failed_path.replace(run.executed_path)
    # last: with a fingerprint the run counts as done
    write_record(run.record_path, record)


def kill_if_stopped(
    pid: int, stopped: Callable[[], bool], ended: threading.Event
) -> None:
    """Kill a kernel, and what it has started, if it is stopped before its run has ended."""
    while not ended.wait(POLL_SECONDS):
        if stopped():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
