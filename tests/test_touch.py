"""The slice of a layer that the computing picture holds, its widget, and its page's script."""

import base64
import hashlib
import re

import nbformat
import numpy as np
import pytest
import torch

from helpers.explore import touch, touch_admm
from helpers.paths import notebooks_dir, root

# of touch.json: what it holds may be another sum's rounding, but not another slice
SHA256 = "51203d4b723505a0c43af4d59a9c88c604b55f7bdd89d4666c055eabc63e2014"


def numbers(data, name):
    """A matrix of the slice, a row for each output or input."""
    floats = np.frombuffer(base64.b64decode(data[name]), "<f4")
    return torch.from_numpy(floats.reshape(-1, data["inputs"]).copy())


def test_the_slice_is_the_committed_one():
    content = touch.SLICE.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    assert len(content) < 50_000


def test_the_command_makes_the_slice_again():
    stored, made = touch_admm().data, touch.make_slice()
    assert made["title"] == stored["title"]
    assert torch.equal(numbers(made, "weight"), numbers(stored, "weight"))
    # a sum over tokens, which another processor rounds in its own way
    gram = numbers(stored, "gram")
    scale = gram.diagonal().sqrt()
    difference = (numbers(made, "gram") - gram) / torch.outer(scale, scale)
    assert difference.abs().max() < 1e-4
    assert gram.shape == (64, 64)
    assert torch.linalg.eigvalsh(gram.double())[0] > 0


def test_the_widget_has_all_and_the_page_needs_nothing_else():
    widget = touch_admm()
    script = touch.page_script()
    assert widget._esm in script
    assert widget.data["gram"] in script
    assert touch.PLACE in widget.still.data
    # inside of <script>, and with nothing to load
    assert not re.search(r"</script|<!--|\bimport\b *[({'\"]|\bfetch\(|https?:", script)


def test_the_page_of_notebook_02_has_the_place_though_it_was_not_run(tmp_path):
    pytest.importorskip("myst_nb", reason="the book's packages are not installed")
    from book.__main__ import Sources

    path = notebooks_dir() / "02_admm_layer_solve.ipynb"
    page = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in page.cells)
    Sources(tmp_path).notebook(page, "not run", f"notebooks/{path.name}")
    made = nbformat.read(tmp_path / "notebooks" / path.name, as_version=4)
    shown = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert [output.data["text/html"] for output in shown] == [touch.PLACE]


def test_the_books_page_holds_the_place_that_the_script_fills():
    assert touch.PLACE in (root() / "book" / "touch_it.md").read_text("utf-8")
