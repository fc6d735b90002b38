"""The worker: one request at a time, stopped, failing, replaced; and the explorer around it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable

import ipywidgets
import pytest
from matplotlib.figure import Figure

from helpers.errors import BadParameter, HelpersError
from helpers.explore import Explorer, View, Worker, progress_bar
from helpers.explore.controls import slider

SOON = 10.0  # seconds after which a test has failed


@pytest.fixture
def worker() -> Worker:
    return Worker()


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
    seen = []

    def look() -> None:
        state = worker.bar.value, worker.bar.max, worker.message.value
        seen.append((worker.busy.layout.visibility, *state))

    def work() -> None:
        look()
        worker.progress(3, 4, "block <3>")
        look()

    worker.start(work)
    worker.wait(SOON)
    look()
    assert seen[0][0] == seen[2][0] == "hidden" and seen[2][-1] == ""
    assert seen[1] == ("visible", 3, 4, "3 of 4 block &lt;3&gt;")


def test_many_steps_are_few_updates_and_no_total_is_no_error(worker: Worker) -> None:
    updates: list[object] = []
    worker.bar.observe(updates.append, names="value")
    worker.start(lambda: [worker.progress(step, 5000, "steps") for step in range(5001)])
    worker.wait(SOON)
    assert 1 <= len(updates) < 500 and worker.bar.value == 5000
    worker.start(lambda: worker.progress(0, 0, "layers"))
    worker.wait(SOON)
    assert worker.error is None


def test_stop_ends_the_work_at_its_next_step_and_drops_what_waits(worker: Worker) -> None:
    held, ran = Held(worker), []
    worker.start(lambda: ran.append(1))
    worker.button.click()
    assert "stopping" in worker.message.value
    held.finish()
    assert held.ended == ran == [] and "stopped" in worker.message.value
    assert "color" not in worker.message.value
    worker.start(lambda: ran.append(2))  # an old stop means nothing to new work
    worker.wait(SOON)
    assert ran == [2] and worker.message.value == ""


def test_of_many_requests_the_last_is_run_and_none_waits(worker: Worker) -> None:
    held, ran = Held(worker), []
    started = time.monotonic()
    for number in range(20):
        worker.start(lambda n=number: ran.append(n))
    assert time.monotonic() - started < 1 and ran == [] and worker.running
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
    inside, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        with lock:
            inside[0] -= 1

    for _ in range(100):
        worker.start(work)
        time.sleep(0.0005)
    worker.wait(SOON)
    assert most == [1] and inside == [0] and not worker.running


def test_an_error_is_one_red_line_until_the_next_request(worker: Worker) -> None:
    def fail() -> None:
        raise BadParameter("rho < 0 is not allowed")

    worker.start(fail)
    worker.wait(SOON)
    assert "rho &lt; 0" in worker.message.value and "color" in worker.message.value
    assert isinstance(worker.error, BadParameter)
    worker.start(lambda: None)
    worker.wait(SOON)
    assert worker.message.value == "" and worker.error is None


def test_a_bug_is_shown_and_logged_and_what_waits_is_run(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    Held(worker, lambda: {}["gone"]).finish()
    assert "gone" in worker.message.value and isinstance(worker.error, KeyError)
    assert "Traceback" in caplog.text
    held, ran = Held(worker, lambda: {}["gone"]), []
    worker.start(lambda: ran.append(1))
    held.finish()
    assert ran == [1]


class Slow:
    """An explorer of one number whose pictures can be held up."""

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.number = ipywidgets.IntSlider(value=0, max=1000)
        self.explorer = Explorer({"number": self.number}, self.draw, hint="look & see")
        self.explorer.wait(SOON)

    def hold(self, number: int) -> None:
        """Choose a number whose picture is begun, and not finished before `go` is set."""
        self.begun.clear(), self.go.clear()
        self.number.value = number
        assert self.begun.wait(SOON)

    def release(self) -> None:
        self.go.set()
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


def test_stop_leaves_the_picture() -> None:
    slow = Slow()
    slow.hold(7)
    before = slow.explorer.png
    slow.explorer.worker.stop()
    slow.release()
    assert slow.explorer.png == before and slow.drawn == [0]
    assert "stopped" in slow.explorer.message.value
    slow.explorer.refresh()
    slow.explorer.wait(SOON)
    assert slow.drawn == [0, 7]


def test_what_is_refused_is_said_and_the_picture_stays() -> None:
    slow = Slow()
    before = slow.explorer.png
    slow.number.value = 13
    slow.explorer.wait(SOON)
    assert "13 is not allowed" in slow.explorer.message.value
    assert slow.explorer.png == before and slow.number.value == 13
    slow.number.value = 14
    slow.explorer.wait(SOON)
    assert slow.explorer.message.value == "" and slow.explorer.png != before


def test_a_figure_that_never_was_raises_what_prevented_it() -> None:
    def refuse(_worker: Worker, number: int) -> View:
        raise BadParameter(f"{number} is not allowed: give another number")

    explorer = Explorer({"number": ipywidgets.IntSlider(value=5)}, refuse)
    with pytest.raises(BadParameter, match="5 is not allowed"):
        _ = explorer.figure


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
        slider(ipywidgets.FloatSlider, 0.95, "sparsity", min=0.1, max=0.9)
    with one_line_error(HelpersError, "rho", "0.01 to 100"):
        slider(ipywidgets.FloatLogSlider, 200.0, "rho", base=10, min=-2, max=2)
    assert slider(ipywidgets.FloatLogSlider, 100, "ρ", base=10, min=-2, max=2).value == 100


def test_progress_bar_counts_layers(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar("wanda")
    for done in range(1, 4):
        bar.show(done, 3, f"block 0 layer {done}")
    assert bar.n == bar.total == 3
    bar.close()
    assert "wanda" in capsys.readouterr().err
