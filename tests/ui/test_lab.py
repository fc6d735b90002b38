"""Every notebook in JupyterLab and a real browser: run from top to bottom, and operated.

The notebooks are copies with the parameters of the plan smoke; UI_FULL=1 leaves their defaults.
Pictures of them go to results/ui. A new explorer needs an entry in EXPLORERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from controls import ENDLESS, NAME
from lab_browser import ARTEFACTS, Watched
from lab_page import (
    Book,
    arrow,
    choose,
    drag,
    named,
    press,
    push,
    settled,
    shown,
    tick,
    wait_changed,
)
from lab_server import Lab

from helpers.paths import root

NOTEBOOKS = sorted(path.stem for path in (root() / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS)
Opened = Callable[[str], Book]


@dataclass(frozen=True)
class Explorer:
    """The controls of a notebook's explorer, by their labels."""

    notebook: str
    sliders: tuple[str, ...] = ()
    dropdowns: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    buttons: tuple[str, ...] = ()  # each changes what is shown


EXPLORERS = (
    Explorer("00_start_here", texts=("prompt",), buttons=("Generate",)),
    Explorer("01_calibration_capture", sliders=("window", "entering block")),
    Explorer(
        "02_admm_layer_solve",
        sliders=("ρ", "iterations", "sparsity"),
        dropdowns=("block", "layer", "schedule"),
    ),
    Explorer(
        "03_mask_schedule",
        sliders=("sparsity", "mask steps", "iteration"),
        dropdowns=("layer", "schedule", "pattern"),
    ),
    Explorer(
        "06_tables_and_plots",
        dropdowns=("metric", "columns", "run"),
        boxes=("magnitude", "admm-grad"),
    ),
)


def controls(kind: str) -> pytest.MarkDecorator:
    """A test for every control of a kind, by mouse and by keyboard."""
    rows = [
        pytest.param(explorer.notebook, name, keyboard, id=f"{explorer.notebook}-{name}-{how}")
        for explorer in EXPLORERS
        for name in getattr(explorer, kind)
        for keyboard, how in ((False, "mouse"), (True, "keyboard"))
    ]
    return pytest.mark.parametrize(("notebook", "name", "keyboard"), rows)


# --- every notebook ------------------------------------------------------------------------


def outputs(book: dict) -> Iterator[tuple[str, dict]]:
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            yield cell["id"], output


@every_notebook
def test_runs_from_top_to_bottom(notebook: str, opened: Opened, watched: Watched) -> None:
    watched.errors.clear()
    book = opened(notebook)
    saved = book.save()
    book.photograph(ARTEFACTS, notebook)
    if any(explorer.notebook == notebook for explorer in EXPLORERS):
        book.output("explorer").screenshot(path=ARTEFACTS / f"{notebook}-explorer.png")
    errors = [
        f"{cell}: {output['ename']}: {output['evalue']}"
        for cell, output in outputs(saved)
        if output["output_type"] == "error"
    ]
    assert errors == []
    code = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code if cell["execution_count"] is None] == []
    assert watched.errors == [], "JavaScript errors in the page"


@every_notebook
def test_everything_is_drawn(notebook: str, opened: Opened) -> None:
    """No widget and no picture stayed blank, and nothing but progress went to the error stream."""
    book = opened(notebook)
    text = book.page.locator(".jp-Notebook").inner_text()
    for failure in ("Error displaying widget", "Error creating widget", "Loading widget", "[*]"):
        assert failure not in text
    blank = """nodes => nodes.filter(node => node.naturalWidth === 0).map(node => node.alt)"""
    pictures = book.page.locator(".jp-Notebook .jp-OutputArea img")
    assert pictures.evaluate_all(blank) == []
    for cell, output in outputs(book.read()):
        if output.get("name") == "stderr":
            said = "".join(output["text"])
            assert re.fullmatch(r"(\s*\r?[^\n]*\|[^\n]*\[[^\n]*\]\s*)+", said), (cell, said)


@every_notebook
def test_links_lead_somewhere(notebook: str, opened: Opened, lab: Lab) -> None:
    book = opened(notebook)
    # the paths that Lab has made of them, which it would open
    read = (
        "nodes => nodes.map(node => new URL(node.href)).map(link => [link.origin, link.pathname])"
    )
    links = book.page.locator(".jp-RenderedMarkdown a[href]").evaluate_all(read)
    paths = {path for origin, path in links if lab.url.startswith(origin)}
    files = sorted(path.removeprefix("/files/") for path in paths if path.startswith("/files/"))
    assert files, "every notebook leads on to another"
    assert [file for file in files if not lab.holds(file)] == []


# --- explorers -----------------------------------------------------------------------------


@controls("sliders")
def test_slider(notebook: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output("explorer")
    before = settled(area)
    (arrow if keyboard else drag)(area, name)
    wait_changed(area, before)


@controls("dropdowns")
def test_dropdown(notebook: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output("explorer")
    before = settled(area)
    choose(area, name, keyboard=keyboard)
    wait_changed(area, before)


@controls("boxes")
def test_box(notebook: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output("explorer")
    before = settled(area)
    tick(area, name, keyboard=keyboard)
    wait_changed(area, before)


@controls("buttons")
def test_button(notebook: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output("explorer")
    before = settled(area)
    press(area, name, keyboard=keyboard)
    wait_changed(area, before, seconds=120)


@controls("texts")
def test_text(notebook: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output("explorer")
    field = named(area, ".widget-textarea", name).locator("textarea")
    if keyboard:
        field.focus()
        field.press("Control+a")
        area.page.keyboard.type("Once upon a time")
    else:
        field.fill("Once upon a day")
    field.blur()
    before = settled(area)
    press(area, "Generate", keyboard=keyboard)
    assert "Once upon a" in wait_changed(area, before, seconds=120)


@pytest.mark.parametrize("keyboard", [False, True], ids=["mouse", "keyboard"])
def test_the_mask_grows_while_it_plays(keyboard: bool, opened: Opened) -> None:
    area = opened("03_mask_schedule").output("explorer")
    seen = {settled(area)}
    play, stop = area.locator(".jupyter-widget-play button, .widget-play button").all()[:2]
    push(play, keyboard)
    for _ in range(100):
        seen.add(shown(area))
        if len(seen) > 3:
            break
        area.page.wait_for_timeout(100)
    push(stop, keyboard)
    assert len(seen) > 3, "one mask after another"
    settled(area)


# --- long work -----------------------------------------------------------------------------


@pytest.mark.parametrize("keyboard", [False, True], ids=["mouse", "keyboard"])
@pytest.mark.parametrize("notebook", [NAME])
def test_stop_ends_the_work_and_not_the_kernel(
    notebook: str, keyboard: bool, opened: Opened
) -> None:
    book = opened(notebook)
    assert book.run_cell("worker.start(work) or worker.running") == "True"
    assert book.run_cell("1 + 1") == "2", "the kernel is free while the work runs"
    area = book.output("long")
    press(area, "Stop", keyboard=keyboard)
    area.get_by_text("stopped").wait_for()
    assert book.run_cell("worker.running, 0 < len(steps) < 6000") == "(False, True)"


@pytest.mark.parametrize("notebook", [NAME])
def test_a_cell_is_interrupted_and_the_kernel_stays(notebook: str, opened: Opened) -> None:
    book = opened(notebook)
    book.start_cell(ENDLESS)
    book.menu("Kernel", "kernelmenu:interrupt")
    assert "KeyboardInterrupt" in book.last_output()
    assert book.run_cell("1 + 2") == "3"
