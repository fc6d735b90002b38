"""Record docs/recording.gif, an explorer while its controls are moved: `make recording`.

JupyterLab and the browser are those of tests/ui. The picture is taken when the explorer has come to
rest after each step.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import lab_server
from lab_page import WINDOW, Book, choose, settled, slide
from PIL import Image
from playwright.sync_api import sync_playwright

from helpers.paths import replace_file, root

NOTEBOOK = "notebooks/02_admm_layer_solve.ipynb"
SECONDS = 900  # in which the notebook must have run
WIDTH = 800  # pixels
FRAME, LAST = 500, 2500  # milliseconds
# what is operated, and how often; a slider moves a step each time
STEPS = ((slide, "sparsity", 4), (slide, "ρ", 4), (choose, "schedule", 1))


def screenshots() -> list[bytes]:
    """Run the notebook in JupyterLab, and take the explorer's picture after each step."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        lab_server.lab(Path(folder), quick=False) as lab,
        sync_playwright() as driver,
    ):
        # a comparison that the recording does not show
        lab_server.set_parameters(lab.project / NOTEBOOK, {"gradient_iterations": 20})
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_context(viewport=WINDOW).new_page()
        notebook = Book(page, lab, NOTEBOOK)
        notebook.run_all(SECONDS)
        notebook.save()
        area = notebook.output("explorer")
        content = settled(area)
        shots = [area.screenshot()]
        for operate, label, times in STEPS:
            for _ in range(times):
                operate(area, label)
                content = settled(area, other=content)
                shots.append(area.screenshot())
        browser.close()
    return shots


def main() -> None:
    """Write the pictures as one that moves."""
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in screenshots()]
    height = max(image.height for image in images) * WIDTH // images[0].width
    frames = []
    for image in images:
        frame = Image.new("RGB", (WIDTH, height), "white")
        frame.paste(image.resize((WIDTH, image.height * WIDTH // image.width)))
        frames.append(frame.quantize(64, dither=Image.Dither.NONE))
    durations = [FRAME] * (len(frames) - 1) + [LAST]
    target = io.BytesIO()
    frames[0].save(
        target,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )
    replace_file(root() / "docs" / "recording.gif", target.getvalue())


if __name__ == "__main__":
    main()
