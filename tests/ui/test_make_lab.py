"""`make lab`, as it is typed: what it prints opens the first notebook."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import lab_server
import pytest

FIRST = "00_start_here.ipynb"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_the_printed_address_opens_the_first_notebook(
    watched: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # started elsewhere, on a path with spaces
    folder = tmp_path_factory.mktemp("make lab")
    project = lab_server.project_copy(folder / "a project with spaces", quick=True)
    environment = lab_server.private_environment(folder)
    arguments = "LAB_ARGS=--no-browser --allow-root --ServerApp.port=0"
    # the environment is ready: a second clone must not install itself into a shared .venv
    ready = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed"]
    command = ["make", "-C", str(project), *ready, "lab", arguments]
    with lab_server.running(command, folder, env=environment, cwd="/") as (server, log):
        assert Path(server["root_dir"]) == project
        address = re.compile(r"http://\S+?token=\w+")
        found = lambda: address.search(log.read_text(encoding="utf-8"))  # noqa: E731
        printed = lab_server.until(found, 20, f"no address was printed: see {log}")[0]
        assert f"/lab/tree/notebooks/{FIRST}?" in printed
        page = watched.page()
        page.goto(printed)
        page.wait_for_selector(".jp-NotebookPanel .jp-RenderedMarkdown h1")
        tabs = page.locator("#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current")
        tabs.filter(has_text=FIRST).first.wait_for()
        title = page.locator(".jp-NotebookPanel h1").first.inner_text()
        assert title.rstrip("¶").endswith("?")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        # beside it the other notebooks
        names = page.locator(".jp-DirListing-item").all_inner_texts()
        assert any(name.startswith("06_") for name in names)
