"""A notebook with long work in a worker and an endless loop, both to be stopped."""

from __future__ import annotations

import json
from pathlib import Path

NAME = "stop"
LONG = """import time
from helpers.explore import Worker

worker, steps = Worker(), []


def work():
    for step in range(6000):
        worker.progress(step, 6000, "steps")
        steps.append(step)
        time.sleep(0.01)


worker.start(work)
worker"""
ENDLESS = """while True:
    time.sleep(0.01)"""


def write_notebook(folder: Path) -> Path:
    """Write the notebook into a folder of notebooks."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Stop?"},
        {"cell_type": "code", "id": "long", "metadata": {}, "source": LONG, "outputs": []},
    ]
    cells[1]["execution_count"] = None
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path = folder / f"{NAME}.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    return path
