"""What all explorers are made of: controls above a picture, work that can be stopped, progress.

Plain ipywidgets (7.7 on Colab, 8 elsewhere): controls above a PNG that is redrawn in the kernel,
so no matplotlib widget backend is needed. Whatever takes time runs in a thread, so that the kernel
stays free. Each explorer has a `figure` that a notebook shows beside it, for readers without a
kernel.
"""

from __future__ import annotations

import base64
import html
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from helpers.capture import Progress
from helpers.errors import BadParameter, HelpersError, Stopped, check_real
from helpers.results import to_png

STOPPED = "stopped: nothing was lost, start again when you like"
BETWEEN = 0.05  # seconds between two updates of a bar, at least: a browser has to draw them
PATIENCE = 1.0  # seconds for which quick work is let finish though newer work waits
DPI = 90
# matplotlib shares caches between figures, so two threads do not draw at once
_DRAWING = threading.Lock()


@dataclass(eq=False)
class _Job:
    """A piece of work, whom to tell, and whether it should end."""

    work: Callable[[Progress], Any]
    done: Callable[[Any], None]
    failed: Callable[[BaseException], None] | None
    stop: threading.Event = field(default_factory=threading.Event)
    replaced: bool = False  # by work that was started later
    began: float = 0.0
    shown: float | None = None  # when its progress was last shown


class Task(ipywidgets.HBox):
    """Long work in a thread: a bar, a line of text and a Stop button; the kernel stays free.

    `work` is called with a function `progress(done, total, name)`, the one that `prune_model` and
    others take; once Stop was pressed its next call raises `Stopped`, which ends the work. What
    the work returns goes to `done`, in the same thread; a HelpersError is shown in red and ends
    it as well. One piece of work at a time: starting another stops the one under way and follows
    it; of several that wait only the last is done. No thread lives longer than there is work.

    With `quiet`, for work that is mostly quick, bar and button are shown only while there is
    progress to show, and work that is replaced within a second of its beginning is not stopped by
    `check()` but finished: a slider that is dragged shows a picture now and then, not only at the
    end.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.bar = ipywidgets.IntProgress(min=0, max=1, layout=ipywidgets.Layout(width="240px"))
        self.button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.message = ipywidgets.HTML()
        self._quiet = quiet
        self._lock = threading.RLock()  # held while a state or a widget of the task changes
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._job: _Job | None = None
        self._next: _Job | None = None
        super().__init__([self.bar, self.button, self.message])
        self._reveal(not quiet)
        self.button.on_click(lambda _button: self.stop())

    @property
    def running(self) -> bool:
        """Whether work is under way or waits for its turn."""
        return not self._idle.is_set()

    def start(
        self,
        work: Callable[[Progress], Any],
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Start the work and return; `done` gets its result unless it is stopped or fails.

        `failed` gets the error that ended it, a `Stopped` too, once that is shown. Neither is
        called for work that another start has replaced.
        """
        with self._lock:
            self._next = _Job(work, done, failed)
            if self._job is None:
                self._begin()
            else:
                self._job.replaced = True

    def stop(self) -> None:
        """Ask the work to end at its next step, and what waits not to begin."""
        with self._lock:
            for job in (self._job, self._next):
                if job is not None:
                    job.stop.set()
            if self._job is not None and (self._job.shown is not None or not self._quiet):
                self.message.value = "stopping at the next step"

    def wait(self, seconds: float | None = None) -> None:
        """Return when all work has ended, or after so many seconds."""
        thread = self._thread
        if thread is threading.current_thread():
            return  # the work itself asks: it cannot wait for its own end
        if self._idle.wait(seconds) and thread is not None:
            thread.join()  # nothing is left for it to do

    def progress(self, done: int, total: int, name: str) -> None:
        """Show how far the work is. Raises Stopped once it is asked to end."""
        with self._lock:
            job, now = self._job, time.monotonic()
            if job is None:
                return
            if job.stop.is_set() or job.replaced:
                raise Stopped(STOPPED)
            if job.shown is not None and now - job.shown < BETWEEN and done < total:
                return
            job.shown = now
            self._reveal(True)
            self.bar.max, self.bar.value = max(1, total), done
            self.message.value = html.escape(f"{done} of {total} {name}")

    def check(self) -> None:
        """Raise Stopped if the work under way is asked to end; shows nothing."""
        job = self._job
        if job is None:
            return
        spared = self._quiet and time.monotonic() - job.began < PATIENCE
        if job.stop.is_set() or (job.replaced and not spared):
            raise Stopped(STOPPED)

    def close(self) -> None:
        """Stop the work and take the widget away."""
        self.stop()
        super().close()

    def _begin(self) -> None:
        """Give what waits a thread. The lock is held."""
        self._job, self._next = self._next, None
        self._idle.clear()
        self._thread = threading.Thread(target=self._run, args=(self._job,), daemon=True)
        self._thread.start()

    def _run(self, job: _Job) -> None:
        """The thread: the work, and then what waits."""
        try:
            self._work(job)
        finally:
            with self._lock:
                self._job = None
                if self._next is None:
                    self._idle.set()
                else:
                    self._begin()

    def _work(self, job: _Job) -> None:
        """Do the work and tell whom it concerns."""
        with self._lock:
            job.began = time.monotonic()
            self.bar.value, self.bar.max, self.bar.bar_style = 0, 1, ""
            self.button.disabled = False
            if not self._quiet:
                self.message.value = "working"
        try:
            self.check()
            result = job.work(self.progress)
            self.check()  # a result that nobody wants any more is not handed on
            job.done(result)
        except HelpersError as error:
            self._end(job, error)
        except BaseException as error:  # a bug must be seen as well, and not only on a console
            self._end(job, error)
            raise
        else:
            self._end(job, None)

    def _end(self, job: _Job, error: BaseException | None) -> None:
        """Show how the work ended, unless other work follows, which shows its own progress."""
        with self._lock:
            self.button.disabled = True
            if job.replaced and isinstance(error, Stopped | None):
                return
            self._reveal(not self._quiet)
            if error is None:
                self.bar.value, self.message.value = self.bar.max, ""
            elif isinstance(error, Stopped):
                self.message.value = html.escape(str(error))
            else:
                self.bar.bar_style, self.message.value = "danger", failure(error)
        if error is not None and job.failed is not None and not job.replaced:
            job.failed(error)

    def _reveal(self, visible: bool) -> None:
        """Show or hide bar and button, in place: what lies below does not move."""
        for widget in (self.bar, self.button):
            widget.layout.visibility = "visible" if visible else "hidden"


class Explorer(ipywidgets.VBox):
    """Controls above a picture, redrawn in a thread whenever a control changes.

    `controls` maps a name to a widget with a value; `draw` takes their values by those names and
    returns a Figure. What `draw` refuses (a HelpersError) is shown in red, and the picture stays.
    When controls change faster than pictures are drawn, settings between are skipped and the last
    is drawn; a `draw` of more than a second that calls `check()` or `progress(...)` of the `task`
    on its way ends early then. If a person stops it, the controls go back to what the picture
    shows. `wait()` returns when the picture is up to date.

    `rows` are the widgets shown above the picture, the controls by default; `hint` is a sentence
    on what to look at. A figure with a `caption` has it below the picture, as plain text.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        draw: Callable[..., Figure],
        *,
        task: Task | None = None,
        rows: Sequence[ipywidgets.Widget] | None = None,
        hint: str = "",
    ) -> None:
        self.controls = dict(controls)
        self.draw = draw
        self.task = task or Task(quiet=True)
        self.message = self.task.message
        self.picture = ipywidgets.HTML()
        self.png = b""  # what the picture shows
        self.caption = ipywidgets.HTML()
        self._figure: Figure | None = None
        self._shown: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._settled = True  # False while controls are set to what the picture shows
        parts = [row(*self.controls.values())] if rows is None else rows
        hints = [ipywidgets.HTML(paragraph(hint))] if hint else []
        super().__init__([*hints, *parts, self.task, *self.below()])
        for control in self.controls.values():
            control.observe(self.refresh, names="value")
        self.refresh()

    def below(self) -> list[ipywidgets.Widget]:
        """The widgets below the controls."""
        return [self.picture, self.caption]

    @property
    def figure(self) -> Figure:
        """The picture as a Figure, once it is up to date.

        Raises the error that prevented it if there has never been one.
        """
        self.wait()
        if self._figure is None:
            raise self._error or Stopped(STOPPED)
        return self._figure

    def refresh(self, _change: Any = None) -> None:
        """Draw the picture for the controls' present values; does not wait for it."""
        if not self._settled:
            return
        values = {name: control.value for name, control in self.controls.items()}
        self.task.start(lambda _progress: self._drawn(values), self._show, self._failed)

    def wait(self, seconds: float | None = None) -> None:
        """Return when the picture is up to date, or after so many seconds."""
        self.task.wait(seconds)

    def close(self) -> None:
        """Stop what is under way and take the widgets away."""
        self.task.close()
        super().close()

    def _drawn(self, values: dict[str, Any]) -> tuple[dict[str, Any], Figure, bytes]:
        """What `draw` makes of the values, and its PNG."""
        figure = self.draw(**values)
        self.task.check()
        with _DRAWING:
            return values, figure, to_png(figure, dpi=DPI)

    def _show(self, drawn: tuple[dict[str, Any], Figure, bytes]) -> None:
        """Put the picture where the last one was."""
        self._shown, self._figure, self.png = drawn
        text = getattr(self._figure, "caption", "")
        # an Image widget has no words for a screen reader
        self.picture.value = to_img(self.png, text or "picture of the settings above")
        self.caption.value = paragraph(text)

    def _failed(self, error: BaseException) -> None:
        """Keep the error for `figure`; after Stop let the controls say what is shown."""
        self._error = error
        if isinstance(error, Stopped) and self._shown is not None:
            self._settled = False
            try:
                for name, value in self._shown.items():
                    self.controls[name].value = value
            finally:
                self._settled = True


def to_img(png: bytes, words: str) -> str:
    """A PNG as an HTML image with words for those who cannot see it.

    Its size is told and it is decoded at once, so that nothing jumps or flickers when it takes
    the place of another.
    """
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    return (
        f'<img alt="{html.escape(words, quote=True)}" width="{width}" height="{height}" '
        'decoding="sync" style="max-width: 100%; height: auto; display: block" '
        f'src="data:image/png;base64,{data}">'
    )


def paragraph(text: str) -> str:
    """Plain text as HTML whose lines are not far apart."""
    return f'<div style="line-height: 1.4">{html.escape(text)}</div>'


def failure(error: BaseException) -> str:
    """An error as red text, which a screen reader reads out."""
    # a red that can be read on white and on black; JupyterLab's own where there is one
    colour = "var(--jp-error-color1, #D9383F)"
    text = html.escape(str(error) or type(error).__name__)
    return f'<span role="alert" style="color:{colour}">{text}</span>'


def slider(
    kind: type, value: float, description: str, *, min: float, max: float, **limits: Any
) -> ipywidgets.Widget:
    """A slider whose label is never cut off.

    Raises BadParameter for a value that is out of its range, which a slider would change silently.
    """
    base = limits.get("base")
    low, high = (base**min, base**max) if base else (min, max)
    if not low * (1 - 1e-9) <= check_real(description, value) <= high * (1 + 1e-9):
        raise BadParameter(
            f"{description} {value!r} is outside what can be dragged: give {low:g} to {high:g}"
        )
    return kind(value=value, min=min, max=max, **_labelled(description, "290px"), **limits)


def choice(
    options: Sequence[Any], value: Any, description: str, *, width: str = "max-content"
) -> ipywidgets.Widget:
    """A drop-down list; an option is a value or a pair of label and value.

    Raises BadParameter for a value that is not among the options.
    """
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    if value not in values:
        raise BadParameter(f"{description} {value!r} is unknown: choose one of {values}")
    labelled = _labelled(description, width)
    return ipywidgets.Dropdown(options=list(options), value=value, **labelled)


def _labelled(description: str, width: str) -> dict[str, Any]:
    """A label as wide as its text, on a widget that is as wide as the page at most."""
    return {
        "description": description,
        "style": {"description_width": "initial"},
        "layout": ipywidgets.Layout(width=width, max_width="98%", margin="2px 12px 2px 2px"),
    }


def row(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Widgets side by side, on more than one line where the page is narrow."""
    layout = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
    return ipywidgets.Box(list(widgets), layout=layout)


class ProgressBar:
    """A tqdm bar for `prune_model(progress=bar.show)`."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(desc=title, unit="layer")

    def show(self, done: int, total: int, name: str) -> None:
        """`done` of `total` layers are finished; `name` was the last."""
        if self._bar.total is None:
            self._bar.reset(total)  # gives the bar its width as well
        self._bar.total = total
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def progress_bar(title: str) -> ProgressBar:
    """A bar named `title` that counts layers; its total is known at the first call."""
    return ProgressBar(title)
