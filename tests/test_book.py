"""The book: built whole, without a warning; it needs no network, and its links lead somewhere."""

import base64
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_output

from book.conf import page_of
from helpers import __all__ as public_names
from helpers.paths import notebooks_dir, reference_dir, root

pytest.importorskip(
    "myst_nb", reason="the book's packages are not installed: make setup"
)

WIDGET = "application/vnd.jupyter.widget-view+json"


class Page(HTMLParser):
    """What a page loads and links to, the ids in it, and its images without words."""

    def __init__(self, path):
        super().__init__()
        self.loads = []
        self.links = []
        self.ids = set()
        self.silent = []
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids.add(found.get("id"))
        address = found.get("src") or found.get("href")
        if address:  # what is no link a browser fetches by itself
            (self.links if tag == "a" else self.loads).append(address)
        if tag == "img" and not found.get("alt"):
            self.silent.append(address)


def executed(text, path):
    """Write a notebook as a run leaves it: a table, a picture, a widget, and an explorer."""
    notebook = nbformat.read(notebooks_dir() / "04_prune_model.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.id == "prune")
    picture = base64.b64encode(
        (reference_dir("full") / "figures" / "perplexity.png").read_bytes()
    )
    for data in (
        {"text/markdown": f"| a |\n|---|\n| {text} |"},
        {"image/png": picture.decode()},
        {WIDGET: {"model_id": "x"}, "text/plain": "IntSlider"},
        {
            WIDGET: {"model_id": "y"},
            "text/html": '<p id="T_1f0a7_row0">the static twin</p>',
        },
    ):
        cell.outputs.append(new_output("display_data", data=data))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The book on a machine where a part of two plans was run, and a book was made before."""
    results = tmp_path_factory.mktemp("results")
    for plan, name in [
        ("laptop", "dense"),
        ("laptop", "admm-grad-60"),
        ("smoke", "dense"),
    ]:
        executed(
            f"{name} of {plan}",
            results / plan / "runs" / f"04_prune_model--{name}.ipynb",
        )
    executed("broken", results / "laptop" / "runs" / "05_zero_shot--dense.failed.ipynb")
    (results / "laptop" / "verdict.txt").write_text("6 of 7 runs\n\nx  1.0  1.1\n")
    (results / "book").mkdir()
    (results / "book" / "old.html").touch()
    where = dict(cwd=root(), env=os.environ | {"PRUNING_RESULTS": str(results)})
    command = [sys.executable, "-m", "book"]
    answer = subprocess.run(command, **where, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"the book: {results / 'book' / 'index.html'}\n"
    return results / "book"


def test_pages_load_nothing_from_the_network_and_links_hold(book):
    written = [path for path in book.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): Page(path) for path in written}
    assert len(pages) > 50
    for path, page in pages.items():
        assert page.silent == [], f"{path}: images without words"
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                assert address not in page.loads or parts.scheme == "data", (
                    f"{path}: {address}"
                )
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            assert target.is_file(), f"{path}: {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, (
                    f"{path}: {address}"
                )
    for path in book.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\W*(https?:)?//", path.read_text("utf-8"))


def test_notebooks_are_shown_as_they_ran_here(book):
    page = Page(book / "notebooks" / "04_prune_model.html").text
    assert "<p>admm-grad-60 of laptop</p>" in page
    assert "IntSlider" not in page
    assert '<p id="T_00000_row0">the static twin</p>' in page
    assert "6 of 7 runs</strong>" in Page(book / "index.html").text
    other = Page(book / "notebooks" / "05_zero_shot.html").text
    assert "This run came with the repository" in other


def test_the_code_is_documented(book):
    """Each module has a page, or is on that of its package."""
    for package in ("helpers", "reproduction"):
        for path in (root() / package).rglob("[!_.]*.py"):
            name = ".".join(path.relative_to(root()).with_suffix("").parts)
            if "own" not in path.parts and ".ipynb_checkpoints" not in path.parts:
                page = page_of(name)
                assert f"module-{page}" in Page(book / "api" / f"{page}.html").ids
    assert "helpers.large.prune_checkpoint" in Page(book / "api/helpers.large.html").ids
    linked = {link.rpartition(".")[2] for link in Page(book / "code.html").links}
    assert set(public_names) <= linked, "names that README shows"
