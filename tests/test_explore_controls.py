"""The worker: one request at a time, stopped, failing, replaced; and the explorer around it."""

import threading
import time

import ipywidgets
import pytest
import tqdm.notebook
from matplotlib.figure import Figure

from helpers.errors import BadParameter
from helpers.explore import Explorer, View, Worker, progress_bar, twin
from helpers.explore.controls import WIDGET
from helpers.progress import ProgressBar

SOON = 10.0  # seconds after which a test has failed


@pytest.fixture
def worker():
    return Worker()


def run(worker, work):
    worker.start(work)
    worker.wait(SOON)
    assert not worker.running


def held(worker):
    """Start work that goes on when the function returned is called; the list says if it ended."""
    begun, go, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        assert go.wait(SOON)
        worker.progress(1, 2, "half")
        ended.append(True)

    worker.start(work)
    assert begun.wait(SOON)
    return lambda: (go.set(), worker.wait(SOON)), ended


def test_stop_ends_the_work_at_its_next_step_and_drops_what_waits(worker):
    (go_on, ended), ran = held(worker), []
    worker.start(lambda: ran.append(1))
    worker.button.click()
    go_on()
    assert ended == ran == []
    run(worker, lambda: ran.append(2))  # an old stop means nothing to new work
    assert ran == [2] and worker.message.value == ""


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_of_many_requests_the_last_is_run(worker, patience, monkeypatch):
    monkeypatch.setattr("helpers.explore.controls.PATIENCE", patience)
    (go_on, ended), ran = held(worker), []
    for number in range(20):
        worker.start(lambda n=number: ran.append(n))
    assert ran == [] and worker.running
    go_on()
    # quick work is finished although it is replaced, slow work is given up
    assert ran == [19] and ended == [True] * (patience > 0) and worker.error is None


def test_errors_and_bugs_are_one_line_until_the_next_request(worker, caplog):
    def refuse():
        raise BadParameter("rho < 0 is not allowed")

    run(worker, refuse)
    assert "rho &lt; 0" in worker.message.value and caplog.text == ""
    run(worker, lambda: {}["gone"])
    assert "gone" in worker.message.value and "Traceback" in caplog.text
    run(worker, lambda: None)
    assert worker.message.value == "" and worker.error is None


def numbers(number=0):
    """An explorer of one number, which cannot show 13."""

    def draw(_worker, number):
        if number == 13:
            raise BadParameter("13 is not allowed: give another number")
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, str(number))
        return View(figure, f"the number is <{number}>", "<hr>")

    return Explorer({"number": ipywidgets.IntSlider(value=number, max=1000)}, draw)


def test_a_picture_stays_until_there_is_a_new_one():
    explorer, pictures = numbers(), []
    for number in (0, 13, 7):
        explorer.controls["number"].value = number
        explorer.worker.wait(SOON)
        pictures.append(explorer.picture.value)
        assert ("13 is not" in explorer.worker.message.value) == (number == 13)
    assert pictures[0] == pictures[1] != pictures[2]
    with pytest.raises(BadParameter, match="13"):
        _ = numbers(13).figure  # there never was one


def test_a_twin_is_one_output_in_two_formats(monkeypatch):
    displayed = []
    monkeypatch.setattr(
        "helpers.explore.controls.display", lambda data, raw: displayed.append(data)
    )
    explorer = numbers()
    twin(explorer, explorer.figure)
    twin(explorer, explorer.still)
    # one each: a second one would be a second view, in which Play stops
    for data, kind in zip(displayed, ("image/png", "text/html"), strict=True):
        assert set(data) == {WIDGET, kind}
        assert data[WIDGET]["model_id"] == explorer.model_id
    assert displayed[0]["image/png"] in explorer.picture.value
    html = displayed[1]["text/html"]
    assert 'alt="the number is &lt;0&gt;"' in html and "</div><hr>" in html


def test_a_notebook_shows_the_bar_of_a_function_that_got_true(monkeypatch):
    """It waits with a delay, which must not end before the bar is displayed."""
    shown = []
    monkeypatch.setattr("tqdm.notebook.display", shown.append)
    bar = tqdm.notebook.tqdm(disable=None, delay=0.001)
    assert not shown
    time.sleep(0.01)
    ProgressBar.show(bar, 1, 4, "block 0")
    assert shown == [bar.container]
    assert (bar.n, bar.total) == (1, 4)
    _, inner, _ = bar.container.children
    assert inner.bar_style == ""
    ProgressBar.show(bar, 4, 4, "block 3")  # nobody closes it
    assert inner.bar_style == "success"
    ProgressBar.show(bar, 0, 2, "another stage")
    assert inner.bar_style == ""


def test_a_bar_is_full_after_its_block_unless_that_raises():
    with progress_bar("methods") as bar:
        bar.show(1, 2, "said before the second")
    assert (bar.n, bar.total) == (2, 2)
    with pytest.raises(ZeroDivisionError), progress_bar("methods") as bar:
        bar.show(1, 2, "said before the second")
        raise ZeroDivisionError
    assert bar.n == 1
