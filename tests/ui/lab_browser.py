"""A browser without a window whose pages make no request outside this machine."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from lab_page import WINDOW

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Playwright

FULL = os.environ.get("UI_FULL") == "1"
# run in full, a notebook takes about two minutes on two slow cores
NOTEBOOK_SECONDS = 900 if FULL else 240
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"),
    *("--no-first-run", "--disable-component-update", "--disable-sync"),
)
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
HOW = (
    "install chromium (Debian: apt-get install chromium), or run "
    "`.venv/bin/python -m playwright install chromium`, or set CHROMIUM to a Chromium or Chrome"
)
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"  # the only picture from outside


def launch(playwright: Playwright) -> Browser:
    """A browser; where none starts the test is skipped. One that CHROMIUM names must start."""
    from playwright.sync_api import Error

    given = os.environ.get("CHROMIUM")
    path = given or next(filter(None, map(shutil.which, BROWSERS)), None)  # None: playwright's own
    try:
        return playwright.chromium.launch(executable_path=path, args=QUIET)
    except Error as error:
        if given:
            raise
        pytest.skip(f"no browser starts ({str(error).strip().splitlines()[0]}): {HOW}")


class Watched:
    """A window of the browser that can reach this machine only, and what it asked for."""

    def __init__(self, browser: Browser) -> None:
        self.strayed: list[str] = []
        self.errors: list[str] = []
        self.context: BrowserContext = browser.new_context(viewport=WINDOW)
        self.context.route("**/*", self._answer)

    def page(self) -> Any:
        """A new tab."""
        page = self.context.new_page()
        page.on("websocket", lambda socket: self._outside(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def _answer(self, route: Any) -> None:
        if self._outside(route.request.url):
            route.abort()
        else:
            route.continue_()

    def _outside(self, url: str) -> bool:
        """Whether an address is outside; noted, but for the badge that notebooks begin with."""
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "localhost")
        outside = not local and parts.scheme not in ("blob", "data", "about")
        if outside and url != BADGE:
            self.strayed.append(url)
        return outside
