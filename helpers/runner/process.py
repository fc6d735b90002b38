"""A run as a process of its own: `python -m helpers.runner.process RUN.job.json`.

`helpers.runner.schedule` starts such processes here and `helpers.runner.cluster` on the workers of
a Dask cluster, so a kernel that dies, or a machine that runs out of memory, costs one run. A job
is the file that says what the process is to do; the process leaves its error there.

papermill is guarded here. The working directory is the project's root, the notebook executes into
NAME.failed.ipynb, every cell must have run, and the record must be about the parameters that were
given. Only then is the notebook renamed and the record stamped with the run's fingerprint, which
is what makes a run count as done.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from helpers.errors import HelpersError, RunError, first_line
from helpers.machine import THREAD_VARIABLES
from helpers.paths import replace_file, root
from helpers.report import read_record, write_record
from helpers.runner.fingerprint import fingerprint
from helpers.runner.plan import Run

PARENT = "PRUNING_PARENT"  # the process that waits for the run


# --- starting ------------------------------------------------------------------------------


def show_path(path: Path) -> str:
    """A path, relative to the project's root if it is below it."""
    return str(path.relative_to(root()) if path.is_relative_to(root()) else path)


def prepare(run: Run) -> None:
    """Write what the process of a run is to do, and take away what an earlier one left."""
    for path in (run.record_path, run.executed_path, run.failed_path):
        path.unlink(missing_ok=True)  # it could pass for new
    names = {"plan": run.plan, "notebook": run.notebook, "name": run.name}
    job = {
        "stamp": names | {"fingerprint": fingerprint(run)} | ({"timed": True} if run.timed else {}),
        "source": str(run.source_path),
        "failed": str(run.failed_path),
        "executed": str(run.executed_path),
        "record": str(run.record_path),
        "given": run.parameters,
        "effective": run.effective,
    }
    replace_file(run.job_path, json.dumps(job))


def environment(base: Mapping[str, str], threads: int, folder: Path) -> dict[str, str]:
    """The environment of a run: its share of the threads, this Python as kernel, no user profile.

    A number of threads that is in `base` already is kept. Jupyter's files go into `folder`.
    JUPYTER_PATH comes before every other place, so a "python3" kernel that the user has installed
    for another Python cannot be picked up.
    """
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    jupyter = folder / "jupyter"
    replace_file(jupyter / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads)) | dict(base)
    variables.pop("MPLBACKEND", None)
    return variables | {
        PARENT: str(os.getpid()),
        "JUPYTER_PATH": os.pathsep.join(filter(None, [str(jupyter), base.get("JUPYTER_PATH")])),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Process:
    """The process of a run, on this machine, with the environment that it is to have."""

    def __init__(self, job: Path, log: Path, variables: Mapping[str, str]) -> None:
        self.job, self.log = job, log
        with open(log, "wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "helpers.runner.process", str(job)],
                cwd=root(),
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the runner, which stops its processes
            )

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.popen.poll() is not None

    def error(self) -> str | None:
        """The error of a process that has ended in one line; None after a success."""
        code = self.popen.returncode
        error = json.loads(self.job.read_text(encoding="utf-8")).get("error")
        if code == 0 or error:
            self.log.unlink(missing_ok=True)
            return error
        if code < 0:
            return f"its process was killed by signal {-code}: was there enough memory?"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else f'exit code {code}'} (log: {show_path(self.log)})"

    def stop(self) -> None:
        """Kill the process with its kernel."""
        kill_family(self.popen.pid)
        self.popen.wait()


def kill_family(pid: int) -> None:
    """Kill a process and all its descendants: a kernel lives in a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


# --- in the process ------------------------------------------------------------------------


def execute(path: Path) -> int:
    """Execute the notebook of a job and leave its error, if any, in one line; the exit code.

    An error that nobody expects ends the process: its traceback stays in the log.
    """
    # here, because who starts processes needs neither
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        _execute_notebook(job)
        return 0
    except PapermillExecutionError as error:
        text = f"{error.ename}: {error.evalue}".splitlines()[0]
    except DeadKernelError:
        text = "the kernel died: was there enough memory?"
    except HelpersError as error:
        text = first_line(error)
    replace_file(path, json.dumps(job | {"error": text[:400]}))
    return 1


def _execute_notebook(job: dict[str, Any]) -> None:
    """Execute the notebook, check what it left, and stamp its record as done."""
    import papermill

    started = time.monotonic()
    notebook = papermill.execute_notebook(
        job["source"],
        job["failed"],
        parameters={**job["given"], "record_path": job["record"]},
        kernel_name="python3",
        language="python",
        progress_bar=False,
        start_timeout=300,
        cwd=str(root()),
    )
    # papermill calls a run whose kernel was killed "completed" too
    for number, cell in enumerate(notebook.cells, start=1):
        status = cell.metadata.get("papermill", {}).get("status")
        is_code = cell.cell_type == "code" and cell.source.strip()
        if is_code and (cell.execution_count is None or status != "completed"):
            raise RunError(f"cell {number} did not run to its end: was there enough memory?")
    if not Path(job["record"]).is_file():
        raise RunError("the notebook wrote no record: end it with write_record(record_path, …)")
    record = read_record(job["record"])
    for key, value in job["effective"].items():
        if key not in record["parameters"] or record["parameters"][key] != value:
            raise RunError(f"the record does not hold {key} = {value!r}: correct its last cell")
    os.replace(job["failed"], job["executed"])
    # last: with a fingerprint the run counts as done
    took = round(time.monotonic() - started, 1)
    write_record(job["record"], record | job["stamp"] | {"run_seconds": took})


def _end_with(parent: int) -> None:
    """End this process and its kernel once the parent is gone: nobody waits for the run then."""
    while os.getppid() == parent:
        time.sleep(1)
    kill_family(os.getpid())


if __name__ == "__main__":
    if os.environ.get(PARENT):
        threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    sys.exit(execute(Path(sys.argv[1])))
