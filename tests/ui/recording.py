"""`make recording`: docs/recording.gif, an explorer while somebody drags its sliders; no sound."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import lab_server
from lab_browser import NOTEBOOK_SECONDS, Watched, launch
from lab_page import Book, choose, settled, slide
from PIL import Image
from playwright.sync_api import sync_playwright

from helpers.paths import replace_file, root

NOTEBOOK = "notebooks/02_admm_layer_solve.ipynb"
WIDTH = 800  # pixels
FRAME_MS, LAST_MS = 500, 2500
# what is operated, and how often; a slider moves a step each time
STEPS = ((slide, "sparsity", 4), (slide, "ρ", 4), (choose, "schedule", 1))


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        lab_server.lab(Path(folder), quick=False) as lab,
        sync_playwright() as driver,
    ):
        # a comparison that the recording does not show
        lab_server.set_parameters(lab.project / NOTEBOOK, {"gradient_iterations": 20})
        book = Book(Watched(launch(driver)).page(), lab, NOTEBOOK)
        book.run_all(NOTEBOOK_SECONDS)
        area = book.output("explorer")
        settled(area)
        shots = [area.screenshot()]
        for operate, label, times in STEPS:
            for _ in range(times):
                operate(area, label, keyboard=True)
                book.pause(1)  # the explorer waits for the slider to rest
                settled(area)
                shots.append(area.screenshot())
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    height = max(image.height for image in images) * WIDTH // images[0].width
    frames = []
    for image in images:
        frame = Image.new("RGB", (WIDTH, height), "white")
        frame.paste(image.resize((WIDTH, image.height * WIDTH // image.width)))
        frames.append(frame.quantize(64, dither=Image.Dither.NONE))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    target = io.BytesIO()
    options = dict(append_images=frames[1:], duration=durations, loop=0, optimize=True)
    frames[0].save(target, "GIF", save_all=True, **options)
    replace_file(root() / "docs" / "recording.gif", target.getvalue())


if __name__ == "__main__":
    main()
