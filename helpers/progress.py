"""Progress of long work: a bar, or a function that the caller gives."""

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from helpers.errors import BadParameter

# progress(steps done, steps in all, name of the one just done)
Progress = Callable[[int, int, str], None]


class ProgressBar(tqdm):
    """A progress bar whose `show` is what the functions of this package call as `progress`.

    In a `with` block it is full at the end, unless the block raises.
    """

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        """Close the bar: a notebook's is green if it is full, else red."""
        if kind is None and self.total:
            self.update(self.total - self.n)
        super().__exit__(kind, *details)

    def show(self, done: int, total: int, name: str) -> None:
        """`done` of `total` are finished; `name` is the last of them, or what is under way."""
        if self.total != total:
            self.bar_format = None
            # the notebook's bar is displayed here, and only while it has a delay
            self.reset(total)
            self.delay = 0
        self.set_postfix_str(name, refresh=False)
        self.update(done - self.n)
        if done == total and hasattr(
            self, "container"
        ):  # a notebook's, which may stay open
            self.display(bar_style="success")


def as_progress(progress: Progress | bool) -> Progress:
    """Resolve the argument `progress`: a bar for True, a function that does nothing for False.

    True is the default of all functions that a user calls. The bar is drawn in a notebook, and in a
    terminal that shows what is written to stderr. A function is returned as it is.
    Raises BadParameter for anything else.
    """
    if progress is True:
        # disable=None is how tqdm says that; with a delay, what is refused at once leaves no bar
        return ProgressBar(disable=None, delay=0.001).show
    if progress is not False and not callable(progress):
        raise BadParameter(
            f"progress {progress!r} is not allowed: give True, False or a function"
        )
    return progress or (lambda *_step: None)
