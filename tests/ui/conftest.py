"""What the tests in the browser share: a browser that stays on this machine, and a JupyterLab.

Fixtures live as long as a module: two modules may not hold playwright at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import lab_server
import pytest
from lab_browser import FULL, NOTEBOOK_SECONDS, Watched, launch
from lab_page import Book

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; where there is none, the tests are skipped and say why."""
    playwright = pytest.importorskip("playwright.sync_api", reason="run make test-ui")
    with playwright.sync_playwright() as driver:
        found = launch(driver)
        yield found
        found.close()


@pytest.fixture(scope="module")
def watched(browser: Browser) -> Iterator[Watched]:
    """A window; the tests of a module fail if it asked for anything outside of this machine."""
    window = Watched(browser)
    yield window
    window.context.close()
    assert window.strayed == [], "the pages asked for something outside of this machine"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab_server.Lab]:
    """JupyterLab on a copy of the project, with the parameters of the plan smoke."""
    with lab_server.lab(tmp_path_factory.mktemp("lab"), quick=not FULL) as server:
        yield server


@pytest.fixture(scope="module")
def opened(watched: Watched, lab: lab_server.Lab) -> Iterator[Callable[[str], Book]]:
    """`opened(name)`: a notebook that has been run from top to bottom; one is open at a time."""
    books: dict[str, Book] = {}

    def open_book(name: str) -> Book:
        if name not in books:
            if books:
                books.popitem()[1].page.close()
            lab.end_kernels()
            books[name] = Book(watched.page(), lab, f"notebooks/{name}.ipynb")
            books[name].run_all(NOTEBOOK_SECONDS)
        return books[name]

    yield open_book
    lab.end_kernels()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one notebook after one another, because it is opened and run once."""

    def place(item: pytest.Item) -> tuple[str, str]:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("notebook") if callspec else ""
        return (str(item.path), name if isinstance(name, str) else "")

    items.sort(key=place)
