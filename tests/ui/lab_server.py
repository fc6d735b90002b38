"""A JupyterLab for the tests: on loopback, on copies, with no request outside this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import root
from helpers.runner import plan as plans

SECONDS = 60  # in which a server must have started
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

    def address(self, path: str, workspace: str = "") -> str:
        """The address that opens a file of the project; a workspace has no other tabs in it."""
        place = f"lab/workspaces/{workspace}" if workspace else "lab"
        return f"{self.url}{place}/tree/{path}?token={self.token}"

    def end_kernels(self) -> None:
        """Shut down every kernel, so that memory is free for the next notebook."""
        for session in self._ask("GET", "api/sessions"):
            self._ask("DELETE", f"api/sessions/{session['id']}")

    def holds(self, path: str) -> bool:
        """Whether the server shows a file at this path, as it stands in an address."""
        try:
            self._ask("GET", f"api/contents/{path}?content=0")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    def _ask(self, method: str, path: str) -> list[dict]:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}{path}", method=method, headers=headers)
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
    for run in reversed(plans.read_plan("smoke") if quick else []):
        if run.notebook != "06_tables_and_plots":  # it shows the committed records anyway
            set_parameters(folder / "notebooks" / f"{run.notebook}.ipynb", run.parameters)
    return folder


def set_parameters(path: Path, values: dict) -> None:
    """Set a copied notebook's parameters, in lines at the end of its parameters cell."""
    book = json.loads(path.read_text(encoding="utf-8"))
    original = json.loads((root() / "notebooks" / path.name).read_text(encoding="utf-8"))
    for cell, before in zip(book["cells"], original["cells"], strict=True):
        if "parameters" in cell["metadata"].get("tags", []):
            lines = [f"{name} = {value!r}" for name, value in values.items()]
            cell["source"] = "".join(before["source"]) + "\n# for a quick look\n" + "\n".join(lines)
    path.write_text(json.dumps(book, indent=1), encoding="utf-8")


def private_environment(folder: Path) -> dict[str, str]:
    """An environment in which Jupyter and the runs write into `folder` and nowhere else."""
    variables = {key: value for key, value in os.environ.items() if key != "JUPYTER_TOKEN"}
    for variable, name in JUPYTER_FOLDERS.items():
        (folder / name).mkdir(parents=True)
        variables[variable] = str(folder / name)
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    variables |= {"PRUNING_RESULTS": str(folder / "results"), "HF_HUB_OFFLINE": "1"}
    if not _installed_here():  # a second clone that shares the first one's .venv
        variables["PYTHONPATH"] = str(root())
    return variables


def _installed_here() -> bool:
    """Whether `import helpers` finds this project from any folder, as after `make setup`."""
    code = "import helpers; print(helpers.__file__)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() == str(root() / "helpers" / "__init__.py")


@contextlib.contextmanager
def running(command: list[str], folder: Path, **options: object) -> Iterator[Path]:
    """A server started by a command for as long as the block lasts; yields its log."""
    log = folder / "server.log"
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
        try:
            yield log
        finally:
            for server in _servers(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server["pid"], 15)
            process.terminate()
            process.wait(SECONDS)


def _servers(folder: Path) -> list[dict]:
    """What servers say of themselves in their runtime folder."""
    return [json.loads(path.read_text()) for path in folder.glob("runtime/jpserver-*.json")]


def wait_for_server(folder: Path, log: Path) -> dict:
    """What the server that was started says of itself: url, token, root_dir."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        # half written, or not listening yet
        with contextlib.suppress(ValueError, urllib.error.URLError):
            for server in _servers(folder):
                urllib.request.urlopen(f"{server['url']}api", timeout=10).close()
                return server
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start:\n" + log.read_text(encoding="utf-8")[-2000:])


@contextlib.contextmanager
def lab(folder: Path, *, quick: bool) -> Iterator[Lab]:
    """JupyterLab on a copy of the project, below a folder whose name has spaces."""
    project = project_copy(folder / "a project with spaces", quick=quick)
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    options += [f"--ServerApp.root_dir={project}", "--LabApp.extension_manager=readonly"]
    command = [sys.executable, "-m", "jupyter", "lab", *options]
    environment = private_environment(folder)
    with running(command, folder, env=environment, cwd=folder) as log:
        server = wait_for_server(folder, log)
        yield Lab(server["url"], server["token"], project)
