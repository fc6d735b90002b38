"""`make lab`, as it is typed: what it prints opens the first notebook."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import lab_server
import pytest

FIRST = "00_start_here.ipynb"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_the_printed_address_opens_the_first_notebook(watched: Any, tmp_path: Path) -> None:
    """Started elsewhere, on a path with spaces."""
    project = lab_server.project_copy(tmp_path / "a project with spaces", quick=True)
    environment = lab_server.private_environment(tmp_path)
    arguments = "LAB_ARGS=--no-browser --allow-root --ServerApp.port=0"
    # the environment is ready: a second clone must not install itself into a shared .venv
    ready = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.installed"]
    command = ["make", "-C", str(project), *ready, "lab", arguments]
    with lab_server.running(command, tmp_path, env=environment, cwd="/") as (server, log):
        assert Path(server["root_dir"]) == project
        address = re.compile(rf"http://\S+?/lab/tree/notebooks/{FIRST}\?token=\w+")
        printed = lambda: address.search(log.read_text(encoding="utf-8"))  # noqa: E731
        page = watched.page()
        page.goto(lab_server.until(printed, 20, f"no address was printed: see {log}")[0])
        page.wait_for_selector(".jp-NotebookPanel .jp-RenderedMarkdown h1")
        tabs = page.locator("#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current")
        tabs.filter(has_text=FIRST).first.wait_for()
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        # beside it the other notebooks
        names = page.locator(".jp-DirListing-item").all_inner_texts()
        assert any(name.startswith("06_") for name in names)
        page.close()
