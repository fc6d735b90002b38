"""The worker: one request at a time, stopped, failing, replaced; and the explorer around it."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets
import pytest
from matplotlib.figure import Figure

from helpers.errors import BadParameter, HelpersError
from helpers.explore import Explorer, View, Worker, progress_bar, twin
from helpers.explore.controls import WIDGET, slider

SOON = 10.0  # seconds after which a test has failed


@pytest.fixture
def worker() -> Worker:
    return Worker()


def run(worker: Worker, work: Callable[[], object]) -> None:
    worker.start(work)
    worker.wait(SOON)
    assert not worker.running


class Held:
    """Work that says when it has begun, and goes on when it may."""

    def __init__(self, worker: Worker, then: Callable[[], object] = lambda: None) -> None:
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), []
        self.worker, self.then = worker, then
        worker.start(self)
        assert self.begun.wait(SOON)

    def __call__(self) -> None:
        self.begun.set()
        assert self.go.wait(SOON)
        self.then()
        self.worker.progress(1, 2, "half")
        self.ended.append(True)

    def finish(self) -> None:
        self.go.set()
        self.worker.wait(SOON)
        assert not self.worker.running


def test_progress_is_shown_while_there_is_some(worker: Worker) -> None:
    seen, updates = [], []

    def look() -> None:
        state = worker.bar.value, worker.bar.max, worker.message.value
        seen.append((worker.busy.layout.visibility, *state))

    def work() -> None:
        look()
        worker.progress(3, 4, "block <3>")
        look()

    run(worker, work)
    look()
    assert seen[0][0] == seen[2][0] == "hidden" and seen[2][-1] == ""
    assert seen[1] == ("visible", 3, 4, "3 of 4: block &lt;3&gt;")
    worker.bar.observe(updates.append, names="value")
    run(worker, lambda: [worker.progress(step, 5000, "steps") for step in range(5001)])
    assert 1 <= len(updates) < 500 and worker.bar.value == 5000, "the browser must keep up"
    run(worker, lambda: worker.progress(0, 0, "layers"))
    assert worker.error is None


def test_stop_ends_the_work_at_its_next_step_and_drops_what_waits(worker: Worker) -> None:
    held, ran = Held(worker), []
    worker.start(lambda: ran.append(1))
    worker.button.click()
    assert "stopping" in worker.message.value
    held.finish()
    assert held.ended == ran == [] and "stopped" in worker.message.value
    assert "color" not in worker.message.value
    run(worker, lambda: ran.append(2))  # an old stop means nothing to new work
    assert ran == [2] and worker.message.value == ""


def test_of_many_requests_the_last_is_run_and_none_waits(worker: Worker) -> None:
    held, ran = Held(worker), []
    for number in range(20):
        worker.start(lambda n=number: ran.append(n))
    assert ran == [] and worker.running
    held.finish()
    assert ran == [19] and held.ended == [True], "quick work is finished although it is replaced"


def test_slow_work_that_is_replaced_is_given_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.explore.controls.PATIENCE", 0.0)
    held, ran = Held(worker), []
    worker.start(lambda: ran.append(1))
    held.finish()
    assert held.ended == [] and ran == [1] and worker.message.value == ""


def test_two_requests_never_run_at_once(worker: Worker) -> None:
    running, clashes = threading.Lock(), []

    def work() -> None:
        if not running.acquire(blocking=False):
            clashes.append(True)
            return
        time.sleep(0.002)
        running.release()

    for _ in range(100):
        worker.start(work)
        time.sleep(0.0005)
    worker.wait(SOON)
    assert clashes == [] and not worker.running


def test_errors_and_bugs_are_one_red_line_until_the_next_request(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise BadParameter("rho < 0 is not allowed")

    run(worker, refuse)
    assert "rho &lt; 0" in worker.message.value and "color" in worker.message.value
    assert isinstance(worker.error, BadParameter) and caplog.text == ""
    run(worker, lambda: {}["gone"])
    assert "gone" in worker.message.value and isinstance(worker.error, KeyError)
    assert "Traceback" in caplog.text
    held, ran = Held(worker, lambda: {}["gone"]), []
    worker.start(lambda: ran.append(1))
    held.finish()
    assert ran == [1] and worker.message.value == "" and worker.error is None


class Slow:
    """An explorer of one number whose pictures can be held up."""

    def __init__(self, number: int = 0) -> None:
        self.drawn: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.number = ipywidgets.IntSlider(value=number, max=1000)
        self.explorer = Explorer({"number": self.number}, self.draw, hint="look & see")
        self.explorer.wait(SOON)

    def draw(self, worker: Worker, number: int) -> View:
        self.begun.set()
        assert self.go.wait(SOON)
        worker.check()
        if number == 13:
            raise BadParameter("13 is not allowed: give another number")
        self.drawn.append(number)
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, str(number))
        return View(figure, f"the number is <{number}>", "<hr>")

    def choose(self, number: int) -> bytes:
        self.number.value = number
        self.explorer.wait(SOON)
        return self.explorer.png


def test_a_picture_stays_until_there_is_a_new_one() -> None:
    slow = Slow()
    explorer, before = slow.explorer, slow.explorer.png
    slow.begun.clear(), slow.go.clear()
    slow.number.value = 7
    assert slow.begun.wait(SOON)
    explorer.worker.stop()
    slow.go.set()
    explorer.wait(SOON)
    assert explorer.png == before and slow.drawn == [0] and "stopped" in explorer.message.value
    assert slow.choose(13) == before and "13 is not allowed" in explorer.message.value
    assert slow.choose(7) != before and explorer.message.value == "" and slow.drawn == [0, 7]
    with pytest.raises(BadParameter, match="13 is not allowed"):
        _ = Slow(13).explorer.figure  # there never was one


def test_a_view_is_shown_with_its_words_and_as_a_still() -> None:
    explorer = Slow().explorer
    assert "look &amp; see" in explorer.children[0].value
    assert "the number is &lt;0&gt;</div><hr>" in explorer.below.value
    markup = explorer.picture.value
    assert 'alt="the number is &lt;0&gt;" width="90" height="90"' in markup
    data = markup.partition("base64,")[2].partition('"')[0]
    assert base64.b64decode(data) == explorer.png and explorer.png.startswith(b"\x89PNG")
    assert explorer.still._repr_html_() == markup + explorer.below.value


def test_a_slider_refuses_what_it_would_clip(one_line_error: Callable) -> None:
    with one_line_error(HelpersError, "sparsity", "0.1 to 0.9"):
        slider("sparsity", 0.95, 0.1, 0.9, step=0.1)
    with one_line_error(HelpersError, "rho", "0.01 to 100"):
        slider("rho", 200.0, 0.01, 100, step=0.25, log=True)
    with one_line_error(HelpersError, "iterations", "whole"):
        slider("iterations", 2.5, 1, 60)
    assert slider("rho", 100, 0.01, 100, step=0.25, log=True).value == 100


class Page:
    """What a notebook shows of one output, first and after each update."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def display(self, output: Any, **_options: Any) -> Page:
        self.shown.append(output)
        return self

    update = display


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page()
    monkeypatch.setattr("helpers.explore.controls.display", page.display)
    return page


def test_a_bar_is_there_at_once_and_leaves_a_line(page: Page) -> None:
    with progress_bar("wanda") as bar:
        (line,) = page.shown
        title, _, text = line.children
        assert (title.value, text.value) == ("wanda", "loading …")
        assert all(isinstance(part, ipywidgets.Label) for part in (title, text)), "never wraps"
        bar.show(0, 1, "block 0 up")
        assert text.value == "0 of 1 layer: block 0 up"
        bar.show(3, 4, "block 0 down")
        assert (bar.bar.value, bar.bar.max) == (3, 4)
        assert re.fullmatch(r"3 of 4 layers, 0:0\d left: block 0 down", text.value)
    assert re.fullmatch("wanda: 4 layers in 0:0\\d", page.shown[-1]["text/plain"])
    assert line.comm is None, "the widget is gone"
    with progress_bar("dense"):
        pass
    assert page.shown[-1]["text/plain"].startswith("dense: done in 0:0")


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize(
    ("error", "text"), [(KeyboardInterrupt, "stopped"), (ValueError, "ended by an error")]
)
def test_no_bar_is_left_after_an_error(
    page: Page, done: int, error: type[BaseException], text: str
) -> None:
    with pytest.raises(error), progress_bar("scoring", "task") as bar:
        if done:
            bar.show(done, 7, "boolq")
        raise error
    text += " after 2 of 7 tasks" if done else ""
    assert page.shown[-1] == {"text/plain": f"scoring: {text}"}


@pytest.mark.parametrize("kind", ["image/png", "text/html"])
def test_a_twin_is_one_output_in_two_formats(page: Page, kind: str) -> None:
    explorer = Slow().explorer
    still = explorer.still if kind == "text/html" else explorer.figure
    for figure in (still, lambda: still):
        page.shown.clear()
        twin(explorer, figure)
        (last,) = page.shown  # a second one would be a second view, in which Play stops
        assert set(last) == {WIDGET, kind} and last[WIDGET]["model_id"] == explorer.model_id
        if kind == "text/html":
            assert last[kind] == still.data
        else:
            assert base64.b64decode(last[kind]) == explorer.png
