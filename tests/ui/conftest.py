"""Fixtures of the tests in the browser: a browser that stays on this machine, and a JupyterLab.

Fixtures live as long as a module: two modules may not hold playwright at the same time.
"""

import os
import shutil
from urllib.parse import urlsplit

import lab_server
import pytest
from lab_page import WINDOW, Book

from helpers.errors import first_line

FULL = os.environ.get("UI_FULL") == "1"
# run in full, a notebook takes about two minutes on two slow cores
NOTEBOOK_SECONDS = 900 if FULL else 240
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
HOW = (
    "install chromium (Debian: apt-get install chromium), or run "
    "`.venv/bin/python -m playwright install chromium`, or set CHROMIUM to a Chromium or Chrome"
)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; where none starts, the tests are skipped and say why.

    One that CHROMIUM names must start.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="run make test-ui")
    named = os.environ.get("CHROMIUM")
    installed = filter(None, map(shutil.which, BROWSERS))
    path = named or next(installed, None)  # None: playwright's own
    with playwright.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=path, args=QUIET)
        except playwright.Error as error:
            if named:
                raise
            pytest.skip(f"no browser starts ({first_line(error)}): {HOW}")
        yield chromium
        chromium.close()


class Watched:
    """A window of the browser that can reach this machine only.

    outside: the addresses of other machines that its pages requested; errors: of their scripts.
    """

    def __init__(self, browser):
        self.outside = []
        self.errors = []
        self.context = browser.new_context(viewport=WINDOW)
        self.context.route("**/*", self._answer)

    def page(self):
        """A new tab."""
        page = self.context.new_page()
        page.on("websocket", lambda socket: self._is_outside(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def _answer(self, route):
        if self._is_outside(route.request.url):
            route.abort()
        else:
            route.continue_()

    def _is_outside(self, url):
        """Whether an address is of another machine; keep it if it is."""
        parts = urlsplit(url)
        if parts.hostname in ("127.0.0.1", "localhost"):
            return False
        if parts.scheme in ("blob", "data", "about", "file"):
            return False
        self.outside.append(url)
        return True


@pytest.fixture(scope="module")
def watched(browser):
    """A window; the tests of a module fail if it requested anything of another machine."""
    window = Watched(browser)
    yield window
    window.context.close()
    assert window.outside == []


@pytest.fixture(scope="module")
def open_notebook(watched, tmp_path_factory):
    """`open_notebook(name)`: a notebook that was run from top to bottom; one is open at a time.

    In a JupyterLab on a copy of the project, with the parameters of the plan smoke.
    """
    books = {}
    with lab_server.lab(tmp_path_factory.mktemp("lab"), quick=not FULL) as lab:

        def run(name):
            if name not in books:
                if books:
                    books.popitem()[1].page.close()
                lab.end_kernels()
                books[name] = Book(watched.page(), lab, f"notebooks/{name}.ipynb")
                books[name].run_all(NOTEBOOK_SECONDS)
            return books[name]

        yield run
        lab.end_kernels()


def pytest_collection_modifyitems(items):
    """All tests of one notebook after one another, because it is opened and run once."""

    def place(item):
        cases = item.callspec.params if hasattr(item, "callspec") else {}
        return str(item.path), cases.get("notebook", "")

    items.sort(key=place)
