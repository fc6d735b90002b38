"""What every explorer is made of: controls, one picture, and one thread that can be stopped.

Plain ipywidgets (7.7 on Colab, 8 elsewhere). The picture is a PNG that is drawn in the kernel, so
no matplotlib backend for widgets is needed. To write an explorer of your own: make some controls,
write a function that turns their values into a `View`, and give both to `Explorer`.
"""

from __future__ import annotations

import base64
import html
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
from IPython.display import HTML
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from helpers.errors import BadParameter, HelpersError, Stopped, check_real
from helpers.results import to_png

STOPPED = "stopped: nothing was lost, start again when you like"
BETWEEN = 0.05  # seconds between two updates of the bar: the browser has to draw each
PATIENCE = 1.0  # seconds that work may go on although a newer request waits
DPI = 90
_DRAWING = threading.Lock()  # matplotlib's caches are not meant for two threads at once


class Worker(ipywidgets.HBox):
    """Runs the latest request in a thread, with a progress bar, a line of text and a Stop button.

    `start(work)` returns at once; `work()` then runs in a thread, one request at a time. Of
    several requests that wait only the last is run. While it runs, the work calls
    `progress(done, total, name)` or `check()`. Both raise `Stopped` once Stop was pressed, or
    once a newer request waits and this one has run for a second. So a slider that is dragged
    shows a picture now and then, and slow work is given up for newer work. An error is shown in
    one red line and kept as `error`. The bar and the button are visible only while there is
    progress to show.
    """

    def __init__(self) -> None:
        self.bar = ipywidgets.IntProgress(min=0, max=1, layout=ipywidgets.Layout(width="240px"))
        self.button = ipywidgets.Button(description="Stop", icon="stop")
        self.message = ipywidgets.HTML()
        self.error: BaseException | None = None  # that ended the last work
        self._lock = threading.RLock()
        self._idle = threading.Event()
        self._idle.set()
        self._waiting: Callable[[], None] | None = None
        self._stopping = False
        self._began = self._updated = 0.0
        super().__init__([self.bar, self.button, self.message])
        self._show_bar(False)
        self.button.on_click(lambda _button: self.stop())

    @property
    def running(self) -> bool:
        """Whether work is running or waits."""
        return not self._idle.is_set()

    @property
    def replaced(self) -> bool:
        """Whether a newer request waits for the work that is running to end."""
        return self._waiting is not None

    def start(self, work: Callable[[], None]) -> None:
        """Run the work in a thread, after the work that is running, instead of any that waits."""
        with self._lock:
            self._waiting = work
            if self._idle.is_set():
                self._idle.clear()
                self._begin()

    def stop(self) -> None:
        """Ask the work to end at its next step, and drop the request that waits."""
        with self._lock:
            self._waiting = None
            self._stopping = self.running
            if self.running:
                self.message.value = "stopping at the next step"

    def wait(self, seconds: float | None = None) -> None:
        """Return when all work has ended, or after so many seconds."""
        self._idle.wait(seconds)

    def check(self) -> None:
        """Raise Stopped if the work that is running should end."""
        overdue = time.monotonic() - self._began > PATIENCE
        if self._stopping or (self.replaced and overdue):
            raise Stopped(STOPPED)

    def progress(self, done: int, total: int, name: str) -> None:
        """Show how far the work is. Raises Stopped if it should end."""
        self.check()
        now = time.monotonic()
        if done < total and now - self._updated < BETWEEN:
            return
        self._updated = now
        with self._lock:
            self._show_bar(True)
            self.bar.max, self.bar.value = max(1, total), done
            if not self._stopping:
                self.message.value = html.escape(f"{done} of {total} {name}")

    def close(self) -> None:
        """Stop the work and remove the widgets."""
        self.stop()
        super().close()

    def _begin(self) -> None:
        """Give the request that waits a thread. The lock is held."""
        work, self._waiting = self._waiting, None
        self._stopping, self._began, self._updated = False, time.monotonic(), 0.0
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        """The thread: do the work, show how it ended, begin what waits."""
        error: BaseException | None = None
        try:
            work()
        except HelpersError as caught:
            error = caught
        except BaseException as caught:  # a bug: the reader sees one line, the log the traceback
            error = caught
            raise
        finally:
            with self._lock:
                self.error = error
                if self.replaced:
                    self._begin()
                else:
                    self._show_bar(False)
                    self.message.value = failure(error) if error else ""
                    self._idle.set()

    def _show_bar(self, visible: bool) -> None:
        """Show or hide bar and button; they keep their space, so that nothing below moves."""
        for widget in (self.bar, self.button):
            widget.layout.visibility = "visible" if visible else "hidden"


@dataclass(frozen=True)
class View:
    """What an explorer shows for one setting of its controls.

    caption: the picture in words, plain text, which is also its alternative text; markup: HTML
    below it; link: Markdown below that, which JupyterLab turns into links to files.
    """

    figure: Figure
    caption: str = ""
    markup: str = ""
    link: str = ""


class Explorer(ipywidgets.VBox):
    """Controls above a picture, which is redrawn in a thread whenever a control changes.

    Args: controls, widgets with a value by name; draw(worker, **values), which returns a View and
    may call `worker.progress` and `worker.check` on its way; rows, the widgets above the picture
    if they are not just the controls; hint, a sentence on what to look at.

    If `draw` raises a HelpersError, the error is shown and the picture stays. If Stop is pressed,
    the controls go back to what the picture shows. `figure` and `still` are for a static copy.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        draw: Callable[..., View],
        *,
        rows: Sequence[ipywidgets.Widget] | None = None,
        hint: str = "",
    ) -> None:
        self.controls, self.draw = dict(controls), draw
        self.worker = Worker()
        self.message = self.worker.message
        self.picture, self.below = ipywidgets.HTML(), ipywidgets.HTML()
        self.link = ipywidgets.Output()
        self.png = b""  # the picture's bytes
        self._view: View | None = None
        self._values: dict[str, Any] = {}  # of the controls, for which the view was drawn
        self._restoring = False
        rows = [row(*self.controls.values())] if rows is None else rows
        hints = [ipywidgets.HTML(paragraph(hint))] if hint else []
        super().__init__([*hints, *rows, self.worker, self.picture, self.below, self.link])
        for control in self.controls.values():
            control.observe(self.refresh, names="value")
        self.refresh()

    def refresh(self, _change: Any = None) -> None:
        """Start to draw the picture for the controls' present values."""
        if not self._restoring:
            values = {name: control.value for name, control in self.controls.items()}
            self.worker.start(lambda: self._redraw(values))

    def wait(self, seconds: float | None = None) -> None:
        """Return when the picture is up to date, or after so many seconds."""
        self.worker.wait(seconds)

    @property
    def view(self) -> View:
        """What is shown, once it is up to date. If there never was a picture, raises why."""
        self.wait()
        if self._view is None:
            raise self.worker.error or Stopped(STOPPED)
        return self._view

    @property
    def figure(self) -> Figure:
        """The picture as a Figure, for readers without a kernel."""
        return self.view.figure

    @property
    def still(self) -> HTML:
        """Picture, caption and what is below them, for readers without a kernel."""
        view = self.view
        return HTML(to_img(view.figure, self.png, view.caption) + _text_of(view))

    def close(self) -> None:
        """Stop the work and remove the widgets."""
        self.worker.close()
        super().close()

    def _redraw(self, values: dict[str, Any]) -> None:
        """In the thread: draw the picture and show it."""
        try:
            view = self.draw(self.worker, **values)
            with _DRAWING:
                png = to_png(view.figure, dpi=DPI)
            self.worker.check()
        except Stopped:
            if self._view and not self.worker.replaced:
                self._restore()
            raise
        self._view, self._values, self.png = view, values, png
        self.picture.value = to_img(view.figure, png, view.caption)
        self.below.value = _text_of(view)
        data = {"text/markdown": view.link, "text/plain": view.link}
        output = {"output_type": "display_data", "data": data, "metadata": {}}
        self.link.outputs = (output,) if view.link else ()

    def _restore(self) -> None:
        """Set the controls to what the picture shows."""
        self._restoring = True
        try:
            for name, value in self._values.items():
                self.controls[name].value = value
        finally:
            self._restoring = False


def _text_of(view: View) -> str:
    return (paragraph(view.caption) if view.caption else "") + view.markup


def to_img(figure: Figure, png: bytes, words: str) -> str:
    """A figure's PNG as an HTML image; `words` are for those who cannot see it.

    Its size is given and it is decoded at once, so that nothing jumps when it is replaced.
    """
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    return (
        f'<img alt="{html.escape(words or "picture")}" width="{width}" height="{height}" '
        'decoding="sync" style="max-width: 100%; height: auto; display: block" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def paragraph(text: str) -> str:
    """Plain text as an HTML paragraph."""
    return f'<div style="line-height: 1.4">{html.escape(text)}</div>'


def failure(error: BaseException) -> str:
    """An error as one line of HTML: red unless a person pressed Stop, read by screen readers."""
    text = html.escape(str(error) or type(error).__name__)
    if isinstance(error, Stopped):
        return text
    # JupyterLab's red where there is one, else one that is legible on white and on black
    return f'<span role="alert" style="color:var(--jp-error-color1, #D9383F)">{text}</span>'


def slider(
    kind: type, value: float, description: str, *, min: float, max: float, **limits: Any
) -> ipywidgets.Widget:
    """A slider of a kind of ipywidgets, whose label is not cut off.

    Raises BadParameter for a value out of its range, which ipywidgets would change silently.
    """
    base = limits.get("base")
    low, high = (base**min, base**max) if base else (min, max)
    if not low * (1 - 1e-9) <= check_real(description, value) <= high * (1 + 1e-9):
        raise BadParameter(
            f"{description} {value!r} is outside the slider's range: give {low:g} to {high:g}"
        )
    return kind(value=value, min=min, max=max, **limits, **_label(description, "290px"))


def choice(
    options: Sequence[Any], value: Any, description: str, *, width: str = "max-content"
) -> ipywidgets.Widget:
    """A drop-down list; an option is a value or a pair of label and value.

    Raises BadParameter for a value that is not among the options.
    """
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    if value not in values:
        raise BadParameter(f"{description} {value!r} is unknown: choose one of {values}")
    return ipywidgets.Dropdown(options=list(options), value=value, **_label(description, width))


def _label(description: str, width: str) -> dict[str, Any]:
    """Arguments of a widget whose label is as wide as its text."""
    layout = ipywidgets.Layout(width=width, max_width="98%", margin="2px 12px 2px 2px")
    style = {"description_width": "initial"}
    return {"description": description, "style": style, "layout": layout}


def row(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Widgets side by side, on several lines where the page is narrow."""
    layout = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
    return ipywidgets.Box(list(widgets), layout=layout)


class ProgressBar(tqdm):
    """A tqdm bar that counts layers: `prune_model(progress=bar.show)`."""

    def show(self, done: int, total: int, name: str) -> None:
        """`done` of `total` layers are finished; `name` was the last."""
        if self.total is None:
            self.reset(total)  # in a notebook this also gives the bar its width
        self.set_postfix_str(name, refresh=False)
        self.update(done - self.n)


def progress_bar(title: str) -> ProgressBar:
    """A bar for `prune_model(progress=bar.show)`; call `bar.close()` at the end."""
    return ProgressBar(desc=title, unit="layer")
