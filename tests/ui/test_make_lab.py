"""`make lab`, as it is typed: what it prints opens the first notebook, and links lead on."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab_server
import pytest
from lab_browser import Watched

FIRST = "00_start_here.ipynb"
TAB = ".jp-NotebookPanel, .jp-MarkdownViewer"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `make lab` prints: started elsewhere, on a path with spaces."""
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
        yield lab_server.until(found, 20, f"no address was printed: see {log}")[0]


@pytest.fixture
def start(watched: Watched, printed: str) -> Iterator[Any]:
    """A page with what the address opens, when it is drawn."""
    page = watched.page()
    page.goto(printed)
    page.wait_for_selector(".jp-NotebookPanel .jp-RenderedMarkdown h1")
    yield page
    page.close()


def current_tab(page: Any, title: str) -> None:
    """Wait until the tab in front has this title."""
    tabs = page.locator("#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current")
    tabs.filter(has_text=re.compile(f"^{re.escape(title)}$")).first.wait_for()


def test_the_printed_address_opens_the_first_notebook(start: Any, printed: str) -> None:
    assert f"/lab/tree/notebooks/{FIRST}?" in printed
    current_tab(start, FIRST)
    assert start.locator(".jp-NotebookPanel h1").first.inner_text().rstrip("¶").endswith("?")
    start.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    # beside it the other notebooks
    names = start.locator(".jp-DirListing-item").all_inner_texts()
    assert any(name.startswith("06_") for name in names)


def follow(page: Any, text: str) -> None:
    """Click the first link that reads so, scrolling there by the wheel as a reader does.

    JupyterLab may draw only the cells that are in view, so that a link exists only near there.
    """
    link = page.locator(f'.jp-RenderedMarkdown:visible a:text-is("{text}")').first
    page.locator(".jp-NotebookPanel:visible .jp-RenderedMarkdown h1").first.hover()

    def scroll(seconds: float) -> None:
        page.mouse.wheel(0, 300)
        page.wait_for_timeout(1000 * seconds)

    lab_server.until(link.is_visible, 60, f"no link {text!r} is in sight", scroll)
    link.click()


def test_a_link_opens_a_committed_table(start: Any) -> None:
    follow(start, "01_calibration_capture")
    current_tab(start, "01_calibration_capture.ipynb")
    follow(start, "claims.md")
    current_tab(start, "claims.md")
    assert start.locator(".jp-Dialog").count() == 0
