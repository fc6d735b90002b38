"""Execute one notebook in a process of its own: `python -m helpers.runner.execute JOB.json`.

`helpers.runner.run` starts this here, and `helpers.runner.cluster` on a worker. papermill is guarded here: the
working directory is the project's root, the notebook executes into NAME.failed.ipynb, every cell
must have run, the record must be about the parameters that were given, and only then is the
notebook renamed and the record stamped with the run's fingerprint, which is what makes a run count
as done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillException, PapermillExecutionError

from helpers.errors import HelpersError, RunError
from helpers.paths import replace_file, root
from helpers.records import read_record, write_record

_ABSENT = object()


def execute_job(path: Path) -> int:
    """Execute one notebook as a job file says, and leave its error, if any, in one line."""
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        _execute(job)
    except PapermillExecutionError as error:
        text = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        text = "the kernel died: was there enough memory?"
    except HelpersError as error:
        text = str(error)
    except (PapermillException, RuntimeError, OSError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
    else:
        return 0
    replace_file(job["outcome"], _first_line(text))
    return 1


def _first_line(text: str) -> str:
    """The first line of an error without the colours that IPython adds."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return lines[0][:400] if lines else "no message"


def _execute(job: dict[str, Any]) -> None:
    """Execute the notebook, check what it left, and stamp its record as done."""
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
    _check_complete(notebook)
    record = _check_record(job)
    os.replace(job["failed"], job["executed"])
    # last: with a fingerprint the run counts as done
    stamp = {key: job[key] for key in ("plan", "notebook", "name", "fingerprint")}
    write_record(
        job["record"], record | stamp | {"run_seconds": round(time.monotonic() - started, 1)}
    )


def _check_complete(notebook: Any) -> None:
    """Raise RunError unless every code cell ran: papermill says "completed" of a dead one too."""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        status = cell.metadata.get("papermill", {})
        if cell.execution_count is None or status.get("status") != "completed":
            raise RunError(f"cell {number} did not run to its end: was there enough memory?")


def _check_record(job: dict[str, Any]) -> dict[str, Any]:
    """The record that the notebook wrote, if it is about the run that was asked for."""
    if not Path(job["record"]).is_file():
        raise RunError("the notebook wrote no record: end it with write_record(record_path, …)")
    record = read_record(job["record"])
    for key, value in job["effective"].items():
        used = record["parameters"].get(key, _ABSENT)
        if used != value:
            said = "lacks" if used is _ABSENT else f"has {key} = {used!r} instead of"
            raise RunError(f"the record {said} the run's {key} = {value!r}: mend its record cell")
    return record


def watch_parent() -> None:
    """End with the process that PRUNING_PARENT names, if any: then nobody waits for the run.

    A worker of a cluster can be killed alone, and would leave this process and its kernel behind.
    """
    parent = os.environ.get("PRUNING_PARENT", "")
    if parent:
        threading.Thread(target=_end_after, args=(int(parent),), daemon=True).start()


def _end_after(parent: int) -> None:
    """Kill the kernel and this process once the parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


if __name__ == "__main__":
    watch_parent()
    sys.exit(execute_job(Path(sys.argv[1])))
