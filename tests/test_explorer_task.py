"""Work in a thread: one piece at a time, stopped, failing, replaced; and the explorer around it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable

import ipywidgets
import pytest
from matplotlib.figure import Figure

from helpers.errors import BadParameter, HelpersError, Stopped
from helpers.explore.controls import Explorer, Task, failure, slider

SOON = 10.0  # seconds after which a test has failed


class Gate:
    """Work that says it has begun, and goes on when it is let."""

    def __init__(self, result: object = None) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.result = result

    def __call__(self, progress: Callable[[int, int, str], None]) -> object:
        self.begun.set()
        assert self.open.wait(SOON)
        progress(1, 2, "half")
        return self.result


@pytest.fixture
def task() -> Task:
    return Task()


def test_the_result_goes_to_done(task: Task) -> None:
    found, threads = [], []

    def work(progress: Callable[[int, int, str], None]) -> int:
        threads.append(threading.current_thread())
        progress(3, 4, "block <3>")
        found.append((task.bar.value, task.bar.max, task.message.value, task.button.disabled))
        return 42

    task.start(work, found.append)
    task.wait(SOON)
    assert found == [(3, 4, "3 of 4 block &lt;3&gt;", False), 42]
    assert threads[0] is not threading.current_thread() and not threads[0].is_alive()
    assert not task.running and task.button.disabled
    assert task.bar.value == task.bar.max and task.message.value == ""


def test_stop_ends_the_work_at_its_next_step(task: Task) -> None:
    gate, done, failed = Gate(), [], []
    task.start(gate, done.append, failed.append)
    assert gate.begun.wait(SOON) and task.running
    task.button.click()
    assert "stopping" in task.message.value
    gate.open.set()
    task.wait(SOON)
    assert not task.running and done == [] and isinstance(failed[0], Stopped)
    assert "stopped" in task.message.value and task.bar.bar_style == ""


def test_stop_before_the_work_takes_a_step_or_begins(task: Task) -> None:
    gate, done, began = Gate(), [], []
    task.start(gate, done.append)
    assert gate.begun.wait(SOON)
    task.start(lambda _progress: began.append(1), done.append)  # waits for the first
    task.stop()
    gate.open.set()
    task.wait(SOON)
    assert began == done == [] and not task.running
    task.start(lambda _progress: 1, done.append)  # an old stop says nothing of new work
    task.wait(SOON)
    assert done == [1]


def test_a_result_that_nobody_wants_is_not_handed_on(task: Task) -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def deaf(_progress: object) -> str:  # takes no step after it was stopped
        begun.set()
        go.wait(SOON)
        return "late"

    task.start(deaf, done.append)
    assert begun.wait(SOON)
    task.stop()
    go.set()
    task.wait(SOON)
    assert done == [] and "stopped" in task.message.value


def test_starting_again_does_not_wait_and_the_last_wins(task: Task) -> None:
    first, ran, done, failed = Gate("first"), [], [], []
    task.start(first, done.append, failed.append)
    assert first.begun.wait(SOON)
    started = time.monotonic()
    for number in range(20):
        task.start(lambda _p, n=number: ran.append(n) or n, done.append, failed.append)
    assert time.monotonic() - started < 1 and task.running and ran == []
    first.open.set()
    task.wait(SOON)
    assert ran == done == [19] and failed == [] and task.message.value == ""


def test_two_pieces_never_run_at_once(task: Task) -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def work(progress: Callable[[int, int, str], None]) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            for step in range(5):
                time.sleep(0.001)
                progress(step, 5, "step")
        finally:
            with lock:
                inside[0] -= 1

    def many() -> None:
        for _ in range(30):
            task.start(work, lambda _result: None)
            time.sleep(0.0005)

    starters = [threading.Thread(target=many) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    task.wait(SOON)
    assert most == [1] and inside == [0] and not task.running


@pytest.mark.parametrize("where", ["work", "done"])
def test_an_error_is_shown_in_red(task: Task, where: str) -> None:
    def fail(_: object) -> None:
        raise BadParameter("rho < 0 is not allowed")

    failed: list[BaseException] = []
    steps = (fail, print) if where == "work" else (lambda _progress: 1, fail)
    task.start(*steps, failed.append)
    task.wait(SOON)
    assert "rho &lt; 0" in task.message.value and "color" in task.message.value
    assert task.bar.bar_style == "danger" and task.button.disabled and not task.running
    assert isinstance(failed[0], BadParameter)
    task.start(lambda _progress: 1, lambda _result: None)
    task.wait(SOON)
    assert task.message.value == "" and task.bar.bar_style == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_is_shown_and_raised_and_what_waits_goes_on(task: Task) -> None:
    gate, done = Gate(), []
    task.start(lambda progress: gate(progress) or {}["gone"], done.append)
    assert gate.begun.wait(SOON)
    gate.open.set()
    task.wait(SOON)
    assert "gone" in task.message.value and task.bar.bar_style == "danger" and not task.running

    deaf, go = threading.Event(), threading.Event()

    def broken(_progress: object) -> None:
        deaf.set()
        go.wait(SOON)
        raise ZeroDivisionError("a bug")

    task.start(broken, done.append)
    assert deaf.wait(SOON)
    task.start(lambda _progress: "next", done.append)
    go.set()
    task.wait(SOON)
    assert done == ["next"]


def test_a_total_of_nothing_and_steps_beyond_the_total(task: Task) -> None:
    seen = []

    def work(progress: Callable[[int, int, str], None]) -> None:
        progress(0, 0, "layers")
        seen.append((task.bar.value, task.bar.max))
        progress(7, 5, "layers")
        seen.append((task.bar.value, task.bar.max))

    task.start(work, lambda _result: None)
    task.wait(SOON)
    assert seen == [(0, 1), (5, 5)] and task.message.value == ""


def test_many_steps_are_few_updates(task: Task) -> None:
    updates = []
    task.bar.observe(updates.append, names="value")

    def work(progress: Callable[[int, int, str], None]) -> None:
        for step in range(5000):
            progress(step, 5000, "steps")

    task.start(work, lambda _result: None)
    task.wait(SOON)
    assert 1 <= len(updates) < 500 and task.bar.value == 5000


def test_waiting_a_while_and_from_within(task: Task) -> None:
    gate, done = Gate(), []
    task.start(gate, lambda _result: (task.wait(), done.append("did not hang")))
    assert gate.begun.wait(SOON)
    started = time.monotonic()
    task.wait(0.05)
    assert task.running and 0.04 < time.monotonic() - started < 5
    gate.open.set()
    task.wait(SOON)
    assert done == ["did not hang"]
    task.wait()  # nothing under way


def test_done_may_start_more_work(task: Task) -> None:
    done: list[int] = []

    def more(number: int) -> None:
        done.append(number)
        if number < 3:
            task.start(lambda _progress: number + 1, more)

    task.start(lambda _progress: 0, more)
    task.wait(SOON)
    assert done == [0, 1, 2, 3]


def test_closing_leaves_no_thread(task: Task) -> None:
    before = threading.active_count()
    gate = Gate()
    task.start(gate, lambda _result: None)
    assert gate.begun.wait(SOON)
    task.close()
    gate.open.set()
    task.wait(SOON)
    assert threading.active_count() == before


def test_a_quiet_task_shows_itself_with_its_first_step() -> None:
    task, seen = Task(quiet=True), []

    def look() -> str:
        return task.bar.layout.visibility

    def work(progress: Callable[[int, int, str], None]) -> None:
        seen.append(look())
        task.check()
        seen.append(look())
        progress(0, 2, "blocks")
        seen.append(look())

    task.start(work, lambda _result: None)
    task.wait(SOON)
    assert seen == ["hidden", "hidden", "visible"] and look() == "hidden"


# --- an explorer around it -----------------------------------------------------------------


class Slow:
    """An explorer of one number whose pictures can be held up."""

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.begun, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.task = Task(quiet=True)
        self.number = ipywidgets.IntSlider(value=0, max=1000)
        self.explorer = Explorer({"number": self.number}, self.draw, task=self.task)
        self.explorer.wait(SOON)

    def hold(self, number: int) -> None:
        """Choose a number whose picture is begun, and not finished before `open` is set."""
        self.begun.clear()
        self.open.clear()
        self.number.value = number
        assert self.begun.wait(SOON)

    def draw(self, number: int) -> Figure:
        self.begun.set()
        assert self.open.wait(SOON)
        self.task.check()
        if number == 13:
            raise BadParameter("13 is not allowed: give another number")
        self.drawn.append(number)
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, str(number))
        return figure


def test_a_dragged_slider_queues_nothing() -> None:
    slow = Slow()
    slow.hold(1)
    before = slow.explorer.png
    for value in range(2, 200):
        slow.number.value = value
    assert slow.explorer.png == before, "the old picture stays"
    slow.open.set()
    figure = slow.explorer.figure
    assert slow.drawn == [0, 1, 199] and figure.texts[0].get_text() == "199"
    assert slow.explorer.png not in (b"", before)


def test_a_slow_picture_that_nobody_waits_for_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("helpers.explore.controls.PATIENCE", 0.0)
    slow = Slow()
    slow.hold(1)
    slow.number.value = 2
    slow.open.set()
    slow.explorer.wait(SOON)
    assert slow.drawn == [0, 2]


def test_stop_puts_the_controls_back() -> None:
    slow = Slow()
    slow.hold(7)
    before = slow.explorer.png
    slow.task.stop()
    slow.open.set()
    slow.explorer.wait(SOON)
    assert slow.number.value == 0 and slow.explorer.png == before
    assert "stopped" in slow.explorer.message.value and slow.drawn == [0]


def test_what_is_refused_is_said_and_the_picture_stays() -> None:
    slow = Slow()
    before = slow.explorer.png
    slow.number.value = 13
    slow.explorer.wait(SOON)
    assert "13 is not allowed" in slow.explorer.message.value
    assert slow.explorer.png == before and slow.explorer.figure is not None
    slow.number.value = 14
    slow.explorer.wait(SOON)
    assert slow.explorer.message.value == "" and slow.explorer.png != before


def test_a_figure_that_never_was_raises_what_prevented_it() -> None:
    def refuse(number: int) -> Figure:
        raise BadParameter(f"{number} is not allowed: give another number")

    explorer = Explorer({"number": ipywidgets.IntSlider(value=5)}, refuse)
    with pytest.raises(BadParameter, match="5 is not allowed"):
        _ = explorer.figure


def test_closing_an_explorer_stops_it() -> None:
    slow = Slow()
    slow.hold(3)
    slow.explorer.close()
    slow.open.set()
    slow.task.wait(SOON)
    assert slow.drawn == [0] and not slow.task.running


def test_the_picture_has_words() -> None:
    def draw(number: int) -> Figure:
        figure = Figure(figsize=(1, 1))
        figure.caption = f"the number is <{number}>"
        return figure

    explorer = Explorer({"number": ipywidgets.IntSlider(value=5)}, draw, hint="look & see")
    explorer.wait(SOON)
    assert "the number is &lt;5&gt;" in explorer.caption.value
    assert "look &amp; see" in explorer.children[0].value
    markup = explorer.picture.value
    assert 'alt="the number is &lt;5&gt;" width="90" height="90"' in markup
    data = markup.partition("base64,")[2].partition('"')[0]
    assert base64.b64decode(data) == explorer.png and explorer.png.startswith(b"\x89PNG")


def test_a_slider_refuses_what_it_would_clip(one_line_error: Callable) -> None:
    with one_line_error(HelpersError, "sparsity", "0.1 to 0.9"):
        slider(ipywidgets.FloatSlider, 0.95, "sparsity", min=0.1, max=0.9)
    with one_line_error(HelpersError, "rho", "0.01 to 100"):
        slider(ipywidgets.FloatLogSlider, 200.0, "rho", base=10, min=-2, max=2)
    assert slider(ipywidgets.FloatLogSlider, 100, "ρ", base=10, min=-2, max=2).value == 100
    assert "&lt;b&gt;" in failure(ValueError("<b>"))
