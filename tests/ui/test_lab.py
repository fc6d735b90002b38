"""Every notebook in JupyterLab and a real browser: run from top to bottom, and operated.

The notebooks are copies with the parameters of the plan smoke; UI_FULL=1 leaves their defaults.
Pictures of them go to results/ui. A new explorer needs an entry in EXPLORERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from controls import ENDLESS, NAME
from lab_browser import ARTEFACTS, Watched
from lab_page import (
    Book,
    arrow,
    choose,
    drag,
    named,
    option,
    press,
    push,
    settled,
    shown,
    wait_changed,
)
from lab_server import Lab

from helpers.paths import root

NOTEBOOKS = sorted(path.stem for path in (root() / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS)
Opened = Callable[[str], Book]


@dataclass(frozen=True)
class Explorer:
    """The controls of an explorer by their labels; toggles with an option that is not chosen."""

    notebook: str
    cell: str = "explorer"
    sliders: tuple[str, ...] = ()
    toggles: dict[str, str] = field(default_factory=dict)
    dropdowns: tuple[str, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)  # what to type into a text area
    buttons: tuple[str, ...] = ()  # each changes what is shown
    focusable: str = ""  # a CSS selector of points in a drawing that Enter chooses


EXPLORERS = (
    Explorer("00_start_here", texts={"prompt": "Once upon a time"}, buttons=("Generate",)),
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
    Explorer("06_tables_and_plots", dropdowns=("metric", "targets"), focusable="svg [role=button]"),
    # one control of every kind: the ways to operate them must work before they judge anything
    Explorer(
        NAME,
        sliders=("slider",),
        toggles={"toggle": "two"},
        dropdowns=("dropdown",),
        texts={"area": "other words"},
        buttons=("Count",),
    ),
)


def controls(kind: str) -> pytest.MarkDecorator:
    """A test for every control of a kind, by mouse and by keyboard."""
    rows = [
        pytest.param(
            explorer.notebook,
            explorer.cell,
            name,
            keyboard,
            id=f"{explorer.notebook}-{name}-{'keyboard' if keyboard else 'mouse'}",
        )
        for explorer in EXPLORERS
        for name in getattr(explorer, kind)
        for keyboard in (False, True)
    ]
    return pytest.mark.parametrize(("notebook", "cell", "name", "keyboard"), rows)


def declared(notebook: str, cell: str) -> Explorer:
    """The explorer in a cell."""
    return next(item for item in EXPLORERS if (item.notebook, item.cell) == (notebook, cell))


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
def test_slider(notebook: str, cell: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output(cell)
    before = settled(area)
    (arrow if keyboard else drag)(area, name)
    wait_changed(area, before)


@controls("toggles")
def test_toggle(notebook: str, cell: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output(cell)
    first = option(area, name).inner_text()
    wanted = declared(notebook, cell).toggles[name]
    before = settled(area)
    push(option(area, name, wanted), keyboard)
    changed = wait_changed(area, before)
    assert option(area, name).inner_text() == wanted
    push(option(area, name, first), keyboard)
    back = wait_changed(area, changed)
    push(option(area, name, wanted), keyboard)
    assert wait_changed(area, back) == changed, "the same choice shows the same"
    push(option(area, name, first), keyboard)
    wait_changed(area, changed)


@controls("dropdowns")
def test_dropdown(notebook: str, cell: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output(cell)
    before = settled(area)
    choose(area, name, keyboard=keyboard)
    wait_changed(area, before)


@controls("buttons")
def test_button(notebook: str, cell: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output(cell)
    before = settled(area)
    press(area, name, keyboard=keyboard)
    wait_changed(area, before, seconds=120)


@controls("texts")
def test_text(notebook: str, cell: str, name: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output(cell)
    before = settled(area)
    field = named(area, ".widget-textarea", name).locator("textarea")
    text = declared(notebook, cell).texts[name] + (" by keyboard" if keyboard else "")
    if keyboard:
        field.focus()
        field.press("Control+a")
        area.page.keyboard.type(text)
    else:
        field.fill(text)
    field.blur()
    if not declared(notebook, cell).buttons:
        wait_changed(area, before)
    assert field.input_value() == text


@pytest.mark.parametrize("keyboard", [False, True], ids=["mouse", "keyboard"])
@pytest.mark.parametrize(
    ("notebook", "cell", "selector"),
    [(item.notebook, item.cell, item.focusable) for item in EXPLORERS if item.focusable],
)
def test_point(notebook: str, cell: str, selector: str, keyboard: bool, opened: Opened) -> None:
    area = opened(notebook).output(cell)
    before = settled(area)
    points = area.locator(selector)
    push(points.first if keyboard else points.last, keyboard)  # the last lies above the others
    wait_changed(area, before)


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
    if keyboard:  # the mouse has stopped it
        assert book.run_cell("task.start(work, print) or task.running") == "True"
    area = book.output("long")
    assert book.run_cell("1 + 1") == "2", "the kernel is free while the work runs"
    assert book.run_cell("task.running") == "True"
    press(area, "Stop", keyboard=keyboard)
    area.get_by_text("stopped").wait_for()
    assert area.locator("button").is_disabled()
    assert book.run_cell("1 + 2") == "3"
    assert book.run_cell("task.running, 0 < len(steps) < 6000") == "(False, True)"


@pytest.mark.parametrize("notebook", [NAME])
def test_a_cell_is_interrupted_and_the_kernel_stays(notebook: str, opened: Opened) -> None:
    book = opened(notebook)
    book.start_cell(ENDLESS)
    book.menu("Kernel", "kernelmenu:interrupt")
    assert "KeyboardInterrupt" in book.last_output()
    assert book.run_cell("len(counted) >= 0") == "True", "what the kernel held is still there"
