"""A notebook in the browser: open it, run it, read it, operate its controls."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lab_server import until

if TYPE_CHECKING:
    from lab_server import Lab
    from playwright.sync_api import Locator, Page

KERNEL_SECONDS = 60
WINDOW = {"width": 1280, "height": 1000}
# what an explorer shows apart from its controls: text, and pictures, whose bytes are in the page
CONTENT = """area => {
  const rest = area.cloneNode(true);
  const controls = '.widget-slider, .widget-dropdown, .widget-checkbox, .widget-textarea,' +
    '.widget-text, .jupyter-button, .widget-hprogress, .widget-play';
  rest.querySelectorAll(controls).forEach(node => node.remove());
  return rest.innerHTML;
}"""
STATE = """() => {
  const kernel = document.querySelector('.jp-Notebook-ExecutionIndicator');
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
  return [kernel && kernel.dataset.status, ...prompts.map(prompt => prompt.textContent)];
}"""


class Book:
    """A notebook that is open in a page of JupyterLab."""

    def __init__(self, page: Page, lab: Lab, path: str) -> None:
        self.page = page
        self.lab = lab
        self.file = lab.project / path
        # JupyterLab opens nothing in a workspace whose name has a dot
        page.goto(lab.address(path, workspace=Path(path).stem.replace(".", "-")))
        page.wait_for_selector(".jp-Notebook .jp-RenderedMarkdown h1")
        self.wait_idle(KERNEL_SECONDS, beats=3)

    def read(self) -> dict:
        """The notebook as it was last saved, whole: JupyterLab saves by itself at any moment."""
        failure = f"{self.file.name} stays half written"
        return until(self._whole, 10, failure, self.pause)

    def _whole(self) -> dict | None:
        with contextlib.suppress(ValueError):
            return json.loads(self.file.read_text("utf-8"))
        return None

    def menu(self, menu: str, command: str) -> None:
        """Choose an entry of a menu, by its command."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(f'.lm-Menu-item[data-command="{command}"]').click()

    def run_all(self, seconds: float) -> None:
        """Run > Run All Cells; return when the kernel is idle again and no cell waits."""
        self.menu("Run", "runmenu:run-all")
        self.page.wait_for_timeout(500)
        self.wait_idle(seconds, beats=5)

    def wait_idle(self, seconds: float, *, beats: int) -> None:
        """Wait until kernel and cells have been at rest for some beats of 0.3 seconds."""
        end = time.monotonic() + seconds
        quiet = 0
        state = []
        while time.monotonic() < end:
            state = self.page.evaluate(STATE)
            busy = state[0] != "idle" or any("*" in prompt for prompt in state[1:])
            quiet = 0 if busy else quiet + 1
            if quiet == beats:
                return
            self.page.wait_for_timeout(300)
        raise AssertionError(
            f"{self.file.name} was not done in {seconds:.0f} s: {state}"
        )

    def save(self) -> dict:
        """Save the notebook, outputs and all, and return it."""
        before = self.file.stat().st_mtime_ns
        self.page.keyboard.press("Escape")
        self.menu("File", "docmanager:save")

        def saved() -> dict | None:
            return self._whole() if self.file.stat().st_mtime_ns != before else None

        return until(saved, 10, f"{self.file.name} was not saved", self.pause)

    def pause(self, seconds: float) -> None:
        """Wait while the page goes on."""
        self.page.wait_for_timeout(1000 * seconds)

    def output(self, name: str) -> Locator:
        """The output area of the cell with this id."""
        names = [cell["id"] for cell in self.read()["cells"]]
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(names.index(name))
        return cell.locator(".jp-Cell-outputArea")


# --- controls ------------------------------------------------------------------------------


def named(area: Locator, kind: str, label: str) -> Locator:
    """The control of a kind whose label reads so."""
    whole = re.compile(rf"^\s*{re.escape(label)}\s*$")
    text = area.page.locator(".widget-label", has_text=whole)
    return area.locator(kind).filter(has=text).first


def slide(area: Locator, label: str) -> None:
    """Move a slider (of ipywidgets 8 or 7) by one step of the keyboard."""
    slider = named(area, ".widget-slider", label)
    handle = slider.locator(".noUi-handle, .ui-slider-handle")
    handle.scroll_into_view_if_needed()
    now = float(handle.get_attribute("aria-valuenow") or 0)
    top = float(handle.get_attribute("aria-valuemax") or 0)
    handle.focus()
    area.page.keyboard.press("ArrowLeft" if now >= top else "ArrowRight")


def choose(area: Locator, label: str) -> None:
    """Choose the next entry of a dropdown by the keyboard, or at its end the one before."""
    select = named(area, ".widget-dropdown", label).locator("select")
    at_end = select.evaluate("node => node.selectedIndex === node.options.length - 1")
    select.focus()
    # Space opens the list; without that Lab takes an arrow as "go to the next cell"
    for key in ("Space", "ArrowUp" if at_end else "ArrowDown", "Enter"):
        area.page.keyboard.press(key)


def content(area: Locator) -> str:
    """What an explorer shows apart from its controls, as text that can be compared."""
    return area.evaluate(CONTENT)


def settled(area: Locator, seconds: float = 60, other: str | None = None) -> str:
    """An explorer's content once it has stayed the same for half a second and no work runs.

    With `other`, once it is also something else than that.
    """
    end = time.monotonic() + seconds
    last = content(area)
    while time.monotonic() < end:
        area.page.wait_for_timeout(500)
        before = last
        last = content(area)
        working = area.locator(".jupyter-button:visible", has_text="Stop").count()
        if last == before != other and not working:
            return last
    raise AssertionError(f"nothing new came to rest in {seconds:.0f} s")
