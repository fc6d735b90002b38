"""What all explorers are made of: controls above a picture, work that can be stopped, progress.

Plain ipywidgets (7.7 on Colab, 8 elsewhere): controls above a PNG that is redrawn in the kernel,
so no matplotlib widget backend is needed. Each explorer has a `figure` that a notebook shows
beside it, for readers without a kernel.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from helpers.errors import HelpersError, Stopped
from helpers.plots import to_png

Progress = Callable[[int, int, str], None]


class Explorer(ipywidgets.VBox):
    """Controls above a picture, redrawn whenever a control changes.

    `controls` maps a name to a widget with a value; `draw` takes their values by those names and
    returns a Figure. What `draw` refuses (a HelpersError) is shown in red, and the picture stays.
    """

    def __init__(self, controls: dict[str, ipywidgets.Widget], draw: Callable[..., Figure]) -> None:
        self.controls = controls
        self.draw = draw
        self.figure: Figure | None = None
        self.message = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png")
        rows = ipywidgets.VBox(list(controls.values()))
        super().__init__([rows, self.message, self.picture])
        for control in controls.values():
            control.observe(self.refresh, names="value")
        self.refresh()

    def refresh(self, _change: Any = None) -> None:
        """Draw the picture for the controls' present values."""
        values = {name: control.value for name, control in self.controls.items()}
        try:
            self.figure = self.draw(**values)
        except HelpersError as error:
            self.message.value = failure(error)
            return
        self.message.value = ""
        self.picture.value = to_png(self.figure, dpi=90)


class Task(ipywidgets.HBox):
    """Long work in a thread: a bar, a line of text and a Stop button; the kernel stays free.

    `work` is called with a function `progress(done, total, name)`, the one that `prune_model` and
    others take; once Stop was pressed its next call raises `Stopped`, which ends the work. What
    the work returns goes to `done`, in the same thread; a HelpersError is shown in red and ends
    it as well. One piece of work at a time: starting another stops the one under way.
    """

    def __init__(self) -> None:
        self.bar = ipywidgets.IntProgress(min=0, max=1, layout=ipywidgets.Layout(width="240px"))
        self.button = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.message = ipywidgets.HTML()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        super().__init__([self.bar, self.button, self.message])
        self.button.on_click(lambda _button: self.stop())

    @property
    def running(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[Progress], Any], done: Callable[[Any], None]) -> None:
        """Start the work; `done` gets its result unless it is stopped or fails."""
        self.stop()
        self.wait()
        self._stop = threading.Event()
        self.button.disabled = False
        self.bar.value, self.bar.max, self.bar.bar_style = 0, 1, ""
        self.message.value = "working"
        self._thread = threading.Thread(target=self._run, args=(work, done), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the work to end at its next step."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Return when the work has ended, or after so many seconds."""
        if self.running and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def progress(self, done: int, total: int, name: str) -> None:
        """Show how far the work is. Raises Stopped once it is asked to end."""
        if self._stop.is_set():
            raise Stopped("stopped: nothing was lost, start again when you like")
        self.bar.max, self.bar.value = total, done
        self.message.value = html.escape(f"{done} of {total} {name}")

    def _run(self, work: Callable[[Progress], Any], done: Callable[[Any], None]) -> None:
        """The thread."""
        try:
            done(work(self.progress))
        except Stopped as stopped:
            self.message.value = html.escape(str(stopped))
        except HelpersError as error:
            self.bar.bar_style = "danger"
            self.message.value = failure(error)
        except BaseException as error:  # a bug must be seen as well, and not only on a console
            self.bar.bar_style = "danger"
            self.message.value = failure(error)
            raise
        else:
            self.bar.value = self.bar.max
            self.message.value = ""
        finally:
            self.button.disabled = True


def failure(error: BaseException) -> str:
    """An error as red text."""
    return f'<span style="color:#B00020">{html.escape(str(error))}</span>'


class ProgressBar:
    """A tqdm bar for `prune_model(progress=bar.show)`."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(desc=title, unit="layer")

    def show(self, done: int, total: int, name: str) -> None:
        """`done` of `total` layers are finished; `name` was the last."""
        self._bar.total = total
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def progress_bar(title: str) -> ProgressBar:
    """A bar named `title` that counts layers; its total is known at the first call."""
    return ProgressBar(title)
