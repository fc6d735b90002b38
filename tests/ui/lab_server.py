"""A JupyterLab for the tests: on loopback, on copies, with no request outside this machine."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.paths import root
from reproduction import plan as plans

SECONDS = 60  # in which a server must have started
AUTOSAVE = 5  # seconds
JUPYTER_FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
}
SETTINGS = {
    # every cell in the page, not only those in view
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    # a save that a busy machine delays is no change by another program
    "docmanager-extension/plugin": {
        "autosaveInterval": AUTOSAVE,
        "lastModifiedCheckMargin": 9000,
    },
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}


@dataclass(frozen=True)
class Lab:
    """A running server: where it listens, what opens it, and the copy of the project it shows."""

    url: str
    token: str
    project: Path

    def address(self, path: str, workspace: str) -> str:
        """The address that opens a file of the project; a workspace has no other tabs in it."""
        return f"{self.url}lab/workspaces/{workspace}/tree/{path}?token={self.token}"

    def end_kernels(self) -> None:
        """Shut down every kernel, so that memory is free for the next notebook."""
        for session in self._ask("GET", "api/sessions"):
            self._ask("DELETE", f"api/sessions/{session['id']}")

    def _ask(self, method: str, path: str) -> list[dict]:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(
            f"{self.url}{path}", method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"[]")


def project_copy(folder: Path, *, quick: bool) -> Path:
    """A project whose notebooks are copies and whose other parts are links to this one's.

    `quick` gives each copy the parameters of its first run of the plan smoke.
    """
    folder.mkdir(parents=True)
    for part in root().iterdir():
        if part.name != "notebooks" and part.name != ".git":
            (folder / part.name).symlink_to(part)
    ignore = shutil.ignore_patterns(".ipynb_checkpoints")
    shutil.copytree(root() / "notebooks", folder / "notebooks", ignore=ignore)
    runs = reversed(plans.read_plan("smoke") if quick else [])
    for name, values in {run.notebook: run.parameters for run in runs}.items():
        if name != "06_tables_and_plots":  # it shows the committed records anyway
            set_parameters(folder / "notebooks" / f"{name}.ipynb", values)
    return folder


def set_parameters(path: Path, values: dict) -> None:
    """Set a notebook's parameters, in lines at the end of its parameters cell."""
    book = json.loads(path.read_text("utf-8"))
    for cell in book["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            lines = [f"\n{name} = {value!r}" for name, value in values.items()]
            cell["source"] = "".join([*cell["source"], "\n# for a quick look", *lines])
    path.write_text(json.dumps(book, indent=1), "utf-8")


def private_environment(folder: Path) -> dict[str, str]:
    """An environment in which Jupyter and the runs write into `folder` and nowhere else."""
    variables = dict(os.environ)
    variables.pop("JUPYTER_TOKEN", None)
    for variable, name in JUPYTER_FOLDERS.items():
        (folder / name).mkdir(parents=True)
        variables[variable] = str(folder / name)
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), "utf-8")
    variables["JUPYTER_CONFIG_PATH"] = str(root() / "book" / "lab")  # as make lab does
    variables["PRUNING_RESULTS"] = str(folder / "results")
    variables["PYTHONPATH"] = str(root())  # where .venv is another clone's
    variables["HF_HUB_OFFLINE"] = "1"
    return variables


def until(
    ready: Callable[[], Any],
    seconds: float,
    failure: str,
    pause: Callable[..., None] = time.sleep,
) -> Any:
    """What `ready` returns, as soon as that is true; called ten times a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        pause(0.1)
    raise AssertionError(failure)


@contextlib.contextmanager
def running(command: list[str], folder: Path, **options: Any) -> Iterator[dict]:
    """A server started by a command, until the block ends: what it says of itself."""
    log = folder / "server.log"

    def servers() -> list[dict]:
        files = folder.glob("runtime/jpserver-*.json")
        return [json.loads(path.read_text()) for path in files]

    def answering() -> dict | None:
        # half written, or not listening yet
        with contextlib.suppress(ValueError, urllib.error.URLError):
            for server in servers():
                urllib.request.urlopen(f"{server['url']}api", timeout=10).close()
                return server
        return None

    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        try:
            yield until(answering, SECONDS, f"JupyterLab did not start: see {log}")
        finally:
            for server in servers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server["pid"], 15)
            process.terminate()
            process.wait(SECONDS)


@contextlib.contextmanager
def lab(folder: Path, *, quick: bool) -> Iterator[Lab]:
    """JupyterLab on a copy of the project, below a folder whose name has spaces."""
    project = project_copy(folder / "a project with spaces", quick=quick)
    command = [
        *(sys.executable, "-m", "jupyter", "lab"),
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        f"--ServerApp.root_dir={project}",
        "--LabApp.extension_manager=readonly",
    ]
    environment = private_environment(folder)
    with running(command, folder, env=environment, cwd=folder) as server:
        yield Lab(server["url"], server["token"], project)
