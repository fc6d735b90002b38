"""Errors a user can act on: one line that says what was given, what is allowed and what to do.

All derive from `HelpersError`, which separates "the user must change something" from a bug.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable


class HelpersError(Exception):
    """Base of every error that `helpers` and `reproduction` raise on purpose.

    In a notebook it shows as its message; `%xmode Verbose` brings the whole traceback back.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message and the line of the cell, or all of it in a log.

        A log is a run of papermill, whose messages to the kernel say that nobody can be asked.
        """
        from IPython import get_ipython

        shell = get_ipython()
        # an IPython in a terminal has no messages, and somebody before it
        message = shell.get_parent() if hasattr(shell, "get_parent") else {}
        attended = message.get("content", {}).get("allow_stdin", True)
        if not attended or shell.InteractiveTB.mode == "Verbose":
            return shell.InteractiveTB.structured_traceback(
                type(self), self, self.__traceback__
            )
        shown = [f"{type(self).__name__}: {self}"]
        # IPython's own frame comes before those of the cell
        frames = traceback.extract_tb(self.__traceback__)[1:]
        own = [each for each in frames if each.filename == frames[0].filename]
        if len(own) < len(frames):  # raised by what the cell calls
            shown.append(f"in line {own[-1].lineno} of this cell: {own[-1].line}")
        return shown


class BadParameter(HelpersError):
    """A parameter, mask or text is unknown, of the wrong type, out of range or too short."""


class UnsupportedModel(HelpersError):
    """The model has a part that the block loop cannot prune faithfully."""


class NonFinite(HelpersError):
    """NaN or infinity in a weight, a gram or an activation."""


class NotPositiveDefinite(HelpersError):
    """A gram cannot be factored, even at the top of the damping ladder."""


class OutOfMemory(HelpersError):
    """Not even one sequence at a time fits the memory."""


class FileError(HelpersError):
    """A download, record or saved model is missing, damaged, changed, or cannot be written."""


class RunError(HelpersError):
    """A run file or a plan is wrong, or a run or one of its processes failed."""


class Stopped(HelpersError):
    """The user pressed Stop; nothing is wrong."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or the name of its class if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def described(value: object) -> str:
    """Describe a value that is not the tensor it should be, for a message."""
    if not hasattr(value, "dtype"):
        return f"is of type {type(value).__name__}"
    text = f"has dtype {value.dtype} and shape {tuple(value.shape)}"
    if getattr(value, "is_meta", False):
        return f"{text}, without values on the meta device"
    layout = str(getattr(value, "layout", "torch.strided"))
    return text if layout == "torch.strided" else f"{text}, as {layout}"


def join_names(names: Iterable[object]) -> str:
    """Join names in sorted order, for a message."""
    return ", ".join(sorted(map(str, names)))
