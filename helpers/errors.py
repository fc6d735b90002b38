"""Errors a user can act on: one line that says what was given, what is allowed and what to do.

All derive from `HelpersError`, which separates "the user must change something" from a bug.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any


class HelpersError(Exception):
    """Base of every error that this package raises on purpose."""


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
    """What a message says of a value that is not the tensor it should be."""
    if not hasattr(value, "dtype"):
        return f"is of type {type(value).__name__}"
    text = f"has dtype {value.dtype} and shape {tuple(value.shape)}"
    if getattr(value, "is_meta", False):
        return f"{text}, without values on the meta device"
    layout = str(getattr(value, "layout", "torch.strided"))
    return text if layout == "torch.strided" else f"{text}, as {layout}"


def allowed(names: Iterable[object]) -> str:
    """The names in sorted order, joined for a message."""
    return ", ".join(sorted(str(name) for name in names))


def check_choice(
    what: str, value: object, choices: Iterable[str], error: type[HelpersError] = BadParameter
) -> str:
    """Return `value` if it is one of `choices`, else raise `error` with the nearest choice."""
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    # a typing mistake is the usual cause: "wnada" is answered with "wanda"
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise error(f"{what} {value!r} is unknown: choose one of {allowed(choices)}{hint}")


def check_whole(what: str, value: object, *, least: int = 1) -> int:
    """Return `value` if it is a whole number of at least `least`, else raise BadParameter."""
    # numbers.Integral takes NumPy's integers too; a bool is an int to Python and is refused
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and value >= least:
        return int(value)
    raise BadParameter(f"{what} {value!r} is not allowed: give a whole number, {least} or more")


def check_switch(what: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise BadParameter."""
    if isinstance(value, bool):
        return value
    raise BadParameter(f"{what} {value!r} is not allowed: give True or False")


def check_real(what: str, value: object, *, above: float | None = None) -> float:
    """Return `value` if it is finite and at least 0 (or above `above`), else raise BadParameter."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if real and math.isfinite(value) and (value >= 0 if above is None else value > above):
        return float(value)
    wanted = ", 0 or more" if above is None else f" above {above:g}"
    raise BadParameter(f"{what} {value!r} is not allowed: give a finite number{wanted}")


# --- options whose annotation says what they may be -------------------------------------------

Positive = Annotated[float, functools.partial(check_real, above=0)]
NotNegative = Annotated[float, check_real]
Count = Annotated[int, check_whole]
CountFromZero = Annotated[int, functools.partial(check_whole, least=0)]
Switch = Annotated[bool, check_switch]


def one_of(*choices: str) -> Any:
    """The annotation of an option that is one of these words."""
    return Annotated[str, functools.partial(check_choice, choices=choices)]


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise BadParameter for a value that the annotation of its parameter does not allow.

    Parameters without such an annotation may be anything.
    """
    annotations = inspect.get_annotations(function, eval_str=True)
    for name, value in options.items():
        for check in getattr(annotations.get(name), "__metadata__", ()):
            if callable(check):
                check(name, value)
