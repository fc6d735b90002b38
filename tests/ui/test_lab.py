"""Every notebook in JupyterLab and a real browser: run from top to bottom, and operated.

The notebooks are copies with the parameters of the plan smoke; UI_FULL=1 leaves their defaults.
A new explorer needs its controls in SLIDERS and DROPDOWNS.
"""

import pytest
from lab_page import Book, choose, content, named, settled, slide
from lab_server import AUTOSAVE

from helpers.paths import notebooks_dir

NOTEBOOKS = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS)

# the controls of each explorer, by their labels
SLIDERS = {
    "01_calibration_capture": ("sequence", "entering block"),
    "02_admm_layer_solve": ("ρ", "iterations", "sparsity"),
    "03_mask_schedule": ("sparsity", "mask steps", "iteration"),
}
DROPDOWNS = {
    "02_admm_layer_solve": ("layer", "schedule"),
    "03_mask_schedule": ("layer", "schedule", "pattern"),
}
CONTROLS = [
    (notebook, operate, label)
    for operate, names in ((slide, SLIDERS), (choose, DROPDOWNS))
    for notebook, labels in names.items()
    for label in labels
]


# --- every notebook ------------------------------------------------------------------------


@every_notebook
def test_runs_from_top_to_bottom_and_draws_everything(notebook, open_notebook, watched):
    """No widget and no picture stayed blank, and nothing went to the error stream."""
    watched.errors.clear()
    book = open_notebook(notebook)
    saved = book.save()
    for cell in saved["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is not None, cell["id"]
            for output in cell["outputs"]:
                assert output["output_type"] != "error", output
                assert output.get("name") != "stderr", output
    assert watched.errors == []
    text = book.page.locator(".jp-Notebook").inner_text()
    for failure in ("Error displaying", "Error creating", "Loading widget", "[*]"):
        assert failure not in text
    blank = """nodes => nodes.filter(node => node.naturalWidth === 0).map(node => node.alt)"""
    pictures = book.page.locator(".jp-Notebook .jp-OutputArea img")
    assert pictures.evaluate_all(blank) == []
    # a bar is red where its work has failed
    assert book.page.locator(".jp-Notebook .progress-bar-danger").count() == 0


@pytest.mark.parametrize("notebook", ["06_tables_and_plots"])
def test_looking_at_a_committed_copy_keeps_it(notebook, open_notebook, watched):
    """JupyterLab saves by itself what has changed, but not into the copies with outputs."""
    book = open_notebook(notebook)
    path = f"results/reference/notebooks/{notebook}.ran.ipynb"
    both = [book, Book(watched.page(), book.lab, path)]
    before = [each.file.read_bytes() for each in both]
    for each in both:
        each.menu("Edit", "editmenu:clear-all")
    book.pause(3 * AUTOSAVE)
    saved = [each.file.read_bytes() for each in both]
    assert saved[0] != before[0], "a notebook to work in is saved"
    assert saved[1] == before[1]


# --- explorers -----------------------------------------------------------------------------


@pytest.mark.parametrize("notebook, operate, label", CONTROLS)
def test_control(notebook, operate, label, open_notebook):
    area = open_notebook(notebook).output("explorer")
    before = settled(area)
    operate(area, label)
    settled(area, other=before)


@pytest.mark.parametrize("notebook", ["00_start_here"])
def test_models_answer(notebook, open_notebook):
    area = open_notebook(notebook).output("explorer")
    before = settled(area)
    field = named(area, ".widget-textarea", "prompt").locator("textarea")
    field.focus()
    field.press("Control+a")
    area.page.keyboard.type("Once upon a time")
    field.blur()
    # on a busy machine the browser sends what was typed after a press that follows at once
    area.page.wait_for_timeout(2000)
    area.get_by_role("button", name="Generate").click()
    assert "Once upon a time" in settled(area, 120, before)


@pytest.mark.parametrize("notebook", ["03_mask_schedule"])
def test_the_mask_grows_while_it_plays(notebook, open_notebook):
    area = open_notebook(notebook).output("explorer")
    seen = {settled(area)}
    buttons = area.locator(".jupyter-widget-play button, .widget-play button").all()
    play, stop = buttons[:2]
    play.click()
    for _ in range(100):
        seen.add(content(area))
        if len(seen) > 3:
            break
        area.page.wait_for_timeout(100)
    stop.click()
    assert len(seen) > 3, "one mask after another"
    settled(area)


@pytest.mark.parametrize("notebook", ["02_admm_layer_solve"])
def test_admm_computes_in_the_page(notebook, open_notebook):
    """Its numbers are tested in test_touch_page.py; here, that Lab leaves the keys to it."""
    area = open_notebook(notebook).output("explorer-touch")
    seen = area.locator(".seen")
    assert seen.inner_text().startswith("Iteration 0: error 5.63 %, 60.0 % zeros.")
    iteration = area.locator("[name=t]")
    iteration.focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft"):
        iteration.press(key)
    assert seen.inner_text().startswith("Iteration 1:")
    area.locator(".panels div").first.click(position={"x": 1, "y": 1})
    area.page.keyboard.press("ArrowRight")
    assert (
        area.locator(".charts figcaption")
        .last.inner_text()
        .startswith("input 0 → output 1:")
    )
