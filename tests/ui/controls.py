"""A notebook with one control of every kind, so that the ways to operate them are tested too."""

from __future__ import annotations

import json
from pathlib import Path

NAME = "controls"
WIDGETS = """import time
import ipywidgets
from helpers.explore.controls import Task

shown = ipywidgets.HTML("nothing yet")


def show(change):
    shown.value = f"{type(change['owner']).__name__} is at {change['new']}"


slider = ipywidgets.IntSlider(description="slider", value=3)
toggle = ipywidgets.ToggleButtons(description="toggle", options=["one", "two"])
dropdown = ipywidgets.Dropdown(description="dropdown", options=["a", "b", "c"])
area = ipywidgets.Textarea(description="area", value="words")
for control in (slider, toggle, dropdown, area):
    control.observe(show, names="value")
button = ipywidgets.Button(description="Count")
counted = []
button.on_click(lambda _: (counted.append(1), setattr(shown, "value", f"{len(counted)} times")))
ipywidgets.VBox([slider, toggle, dropdown, area, button, shown])"""
LONG = """task = Task()
steps = []


def work(progress):
    for step in range(6000):
        progress(step, 6000, "steps")
        steps.append(step)
        time.sleep(0.01)


task.start(work, print)
task"""
ENDLESS = """while True:
    time.sleep(0.01)"""


def write_notebook(folder: Path) -> Path:
    """Write the notebook into a folder of notebooks."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Controls?"}]
    for name, code in (("explorer", WIDGETS), ("long", LONG)):
        cell = {"cell_type": "code", "id": name, "metadata": {}, "source": code}
        cells.append(cell | {"outputs": [], "execution_count": None})
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path = folder / f"{NAME}.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    return path
