"""The parts of an explorer: controls, a picture, and a thread that draws it and can be stopped.

Plain ipywidgets (7.7 on Colab, 8 elsewhere). The picture is a PNG that is drawn in the kernel, so
no matplotlib backend for widgets is needed. To write an explorer of your own: make some controls,
write a function that turns their values into a `View`, and give both to `Explorer`.
"""

import base64
import html
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
from IPython.display import HTML, display
from matplotlib.figure import Figure

from helpers.errors import HelpersError, Stopped, first_line
from helpers.explore.style import to_png
from helpers.progress import ProgressBar

STOPPED = "stopped: nothing is lost, start again whenever you like"
PATIENCE = 1.0  # seconds that work may go on although a newer request waits
DPI = 90
WIDGET = "application/vnd.jupyter.widget-view+json"
# JupyterLab's red where there is one, else one that is legible on white and on black
RED = "color: var(--jp-error-color1, #D9383F)"
_DRAWING = threading.Lock()  # matplotlib's caches are not meant for two threads at once


class Worker(ipywidgets.HBox):
    """Runs the latest request in a thread, with a progress bar, a Stop button and a line of text.

    `start(work)` returns at once; `work()` then runs in a thread, one request at a time. Of
    several requests that wait only the last is run. While it runs, the work calls
    `progress(done, total, name)` or `check()`. Both raise `Stopped` once Stop was pressed, or
    once a newer request waits and this one has run for a second. So a slider that is dragged
    shows a picture now and then, and slow work is given up for newer work. An error is shown in
    one red line and kept as `error`. Bar and button are visible once there is progress to show.
    """

    def __init__(self) -> None:
        self.bar = ipywidgets.IntProgress(layout={"width": "240px"})
        self.button = ipywidgets.Button(description="Stop", icon="stop")
        # hidden, it keeps its space, so that nothing below moves
        self.busy = ipywidgets.HBox(
            [self.bar, self.button], layout={"visibility": "hidden"}
        )
        self.message = ipywidgets.HTML()
        self.error = None  # that ended the last work
        self._lock = threading.RLock()
        self._idle = threading.Event()
        self._idle.set()
        self._waiting = None
        self._stopping = False
        self._began = 0.0
        super().__init__([self.busy, self.message])
        self.button.on_click(lambda _button: self.stop())

    @property
    def running(self) -> bool:
        """Whether work is running or waits."""
        return not self._idle.is_set()

    def start(self, work: Callable[[], None]) -> None:
        """Run the work in a thread, after the work that is running, instead of any that waits."""
        with self._lock:
            self._waiting = work
            if not self.running:
                self._idle.clear()
                threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """End the work at its next step, and drop the request that waits."""
        with self._lock:
            self._waiting = None
            if self.running:
                self._stopping = True
                self.message.value = "stopping at the next step"

    def wait(self, seconds: float | None = None) -> None:
        """Return when all work has ended, or after so many seconds."""
        self._idle.wait(seconds)

    def check(self) -> None:
        """Raise Stopped if the work that is running should end."""
        overdue = time.monotonic() - self._began > PATIENCE
        if self._stopping or (self._waiting and overdue):
            raise Stopped(STOPPED)

    def progress(self, done: int, total: int, name: str) -> None:
        """Show how far the work has come and what is under way; raise Stopped if it should end."""
        self.check()
        with self._lock:
            self.bar.max = max(1, total)
            self.bar.value = done
            self.busy.layout.visibility = "visible"
            self.message.value = html.escape(f"{done} of {total}: {name}")

    def _run(self) -> None:
        """The thread: one request after another, until none waits."""
        error = None
        while True:
            with self._lock:
                work = self._waiting
                self._waiting = None
                if work is None:
                    self.error = error
                    self.busy.layout.visibility = "hidden"
                    self.message.value = error_line(error) if error else ""
                    self._idle.set()
                    return
                self._stopping = False
                self._began = time.monotonic()
            error = None
            try:
                work()
            except HelpersError as caught:
                error = caught
            except Exception as caught:  # a bug: the log has the rest of it
                error = caught
                logging.getLogger(__name__).exception("an explorer failed")


def error_line(error: Exception) -> str:
    """An error as one line of HTML: red unless the user pressed Stop, read by screen readers."""
    if isinstance(error, Stopped):
        return STOPPED
    return f'<span role="alert" style="{RED}">{html.escape(first_line(error))}</span>'


class View(NamedTuple):
    """The output of an explorer for one setting of its controls.

    caption: the picture in words, plain text, which is also its alternative text.
    markup: HTML below it.
    """

    figure: Figure
    caption: str
    markup: str = ""


class Explorer(ipywidgets.VBox):
    """Controls above a picture, which is redrawn in a thread whenever a control changes.

    Args:
        controls: widgets with a value, by name.
        draw: draw(worker, **values) returns a View; it may call `worker.progress` and
            `worker.check` while it computes.
        rows: the widgets above the picture, by default the controls in a row.
        hint: a sentence on what to look at.

    If `draw` raises a HelpersError, or Stop is pressed, a line says so and the picture stays.
    `figure` and `still` are for pages without a kernel: see `twin`.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        draw: Callable[..., View],
        *,
        rows: Sequence[ipywidgets.Widget] | None = None,
        hint: str = "",
    ) -> None:
        self.controls = controls
        self.draw = draw
        self.worker = Worker()
        self.picture = ipywidgets.HTML()
        self.below = ipywidgets.HTML()
        self._view = None
        rows = rows or [row(*controls.values())]
        hint = ipywidgets.HTML(paragraph(hint))
        super().__init__([hint, *rows, self.worker, self.picture, self.below])
        for control in controls.values():
            control.observe(self.refresh, names="value")
        self.refresh()

    def refresh(self, _change: Any = None) -> None:
        """Start to draw the picture for the controls' present values."""
        values = {name: control.value for name, control in self.controls.items()}
        self.worker.start(lambda: self._redraw(values))

    @property
    def view(self) -> View:
        """The latest view, once no work runs. Raises what failed if there never was one."""
        self.worker.wait()
        if self._view is None:
            raise self.worker.error or Stopped(STOPPED)
        return self._view

    @property
    def figure(self) -> Figure:
        """The picture as a Figure."""
        return self.view.figure

    @property
    def still(self) -> HTML:
        """The picture with its caption and what is below."""
        self.view  # noqa: B018 - waits, and raises if there is none
        return HTML(self.picture.value + self.below.value)

    def _redraw(self, values: dict[str, Any]) -> None:
        """In the thread: draw the picture and show it."""
        view = self.draw(self.worker, **values)
        with _DRAWING:
            png = to_png(view.figure, dpi=DPI)
        self._view = view
        # not an Image, which has no words for those who cannot see it; its size is given and it is
        # decoded at once, so that nothing jumps when it is replaced
        width, height = DPI * view.figure.get_size_inches()
        self.picture.value = (
            f'<img alt="{html.escape(view.caption)}" width="{width:.0f}" height="{height:.0f}" '
            'decoding="sync" style="max-width: 100%; height: auto; display: block" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        )
        self.below.value = paragraph(view.caption) + view.markup


def paragraph(text: str) -> str:
    """Plain text as an HTML paragraph."""
    return f'<div style="line-height: 1.4">{html.escape(text)}</div>'


def slider(
    description: str,
    value: float,
    low: float,
    high: float,
    *,
    step: float = 1,
    log: bool = False,
) -> ipywidgets.Widget:
    """A slider of whole numbers, of real ones (step below 1), or of powers of ten (log).

    A value outside of its range widens it: ipywidgets would silently change the value.
    """
    low = min(low, value)
    high = max(high, value)
    kind = ipywidgets.FloatSlider if step < 1 else ipywidgets.IntSlider
    if log:
        kind = ipywidgets.FloatLogSlider
        low = math.log10(low)
        high = math.log10(high)
    return kind(
        value=value, min=low, max=high, step=step, **labelled(description, "290px")
    )


def choice(options: Iterable[Any], value: Any, description: str) -> ipywidgets.Widget:
    """A drop-down list; an option is a value or a pair of label and value."""
    return ipywidgets.Dropdown(
        options=list(options), value=value, **labelled(description, "max-content")
    )


def labelled(description: str, width: str) -> dict[str, Any]:
    """Arguments of a widget whose label is as wide as its text."""
    return {
        "description": description,
        "style": {"description_width": "initial"},
        "layout": {"width": width, "max_width": "98%", "margin": "2px 12px 2px 2px"},
    }


def row(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Widgets side by side, on several lines where the page is narrow."""
    layout = {"flex_flow": "row wrap", "align_items": "center"}
    return ipywidgets.Box(widgets, layout=layout)


def progress_bar(title: str, unit: str = "layer") -> ProgressBar:
    """A bar for a long cell, such as `prune_model(progress=bar.show)`; best in a `with` block."""
    # until `show` is called there is nothing to count
    return ProgressBar(desc=title, unit=f" {unit}", bar_format="{desc}: {elapsed}")


def twin(explorer: ipywidgets.Widget, figure: Figure | HTML) -> None:
    """Show an explorer and its static twin as one output, of which a page shows what it can.

    A notebook keeps an output in several formats. JupyterLab and Colab, which have a kernel, show
    the widget; the book and GitHub, which have none, show the figure.
    """
    formats = {WIDGET: explorer.get_view_spec()}
    if isinstance(figure, HTML):
        formats["text/html"] = figure.data
    else:
        formats["image/png"] = base64.b64encode(to_png(figure, dpi=DPI)).decode()
    # at once: an output that is updated is drawn again, and the Play button of a second view stops
    display(formats, raw=True)
