"""Types of options, and checks of what a user gives.

An annotation such as `rho: Positive = 1.0` says what values an option may have; `check_options`
reads it. The checks return the value or raise BadParameter with what is allowed.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeVar

from helpers.errors import BadParameter, HelpersError, join_names


def check_choice(
    what: str,
    value: object,
    choices: Collection[str],
    error: type[HelpersError] = BadParameter,
) -> str:
    """Return `value` if it is one of `choices`, else raise `error` with the nearest choice."""
    if isinstance(value, str) and value in choices:
        return value
    raise error(
        f"{what} {value!r} is unknown: choose one of {join_names(choices)}"
        f"{did_you_mean(value, choices)}"
    )


def did_you_mean(value: object, choices: Collection[str]) -> str:
    """The end of a message: the choice that is spelt most like a value, "" if none is."""
    # a typing mistake is the usual cause: for "wnada" the message suggests "wanda"
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_whole(what: str, value: object, *, least: int = 1) -> int:
    """Return `value` if it is a whole number of at least `least`, else raise BadParameter."""
    # numbers.Integral takes NumPy's integers too; a bool is an int to Python and is refused
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and value >= least:
        return int(value)
    raise BadParameter(
        f"{what} {value!r} is not allowed: give a whole number, {least} or more"
    )


def check_switch(what: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise BadParameter."""
    if isinstance(value, bool):
        return value
    raise BadParameter(f"{what} {value!r} is not allowed: give True or False")


def check_real(what: str, value: object, *, above: float | None = None) -> float:
    """Return `value` if it is finite and at least 0 (or above `above`), else raise BadParameter."""
    # a bool is a number to Python and is refused; NaN compares false with everything
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    large_enough = real and (value >= 0 if above is None else value > above)
    if large_enough and math.isfinite(value):
        return float(value)
    wanted = ", 0 or more" if above is None else f" above {above:g}"
    raise BadParameter(f"{what} {value!r} is not allowed: give a finite number{wanted}")


# --- options whose annotation says what they may be -------------------------------------------

Function = TypeVar("Function", bound=Callable)

Positive = Annotated[float, functools.partial(check_real, above=0)]
NotNegative = Annotated[float, check_real]
Count = Annotated[int, check_whole]
CountFromZero = Annotated[int, functools.partial(check_whole, least=0)]
Switch = Annotated[bool, check_switch]


def one_of(*choices: str) -> Any:
    """The annotation of an option that is one of these words."""
    return Annotated[str, functools.partial(check_choice, choices=choices)]


def validated(function: Function) -> Function:
    """Decorator: each call's keyword arguments are checked, see `check_options`."""

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        check_options(function, options)
        return function(*arguments, **options)

    return checked


def check_options(function: Callable, options: Mapping[str, Any]) -> None:
    """Raise BadParameter for a value that the annotation of its parameter does not allow.

    Parameters without such an annotation may be anything.
    """
    # eval_str: a module may keep its annotations as text (from __future__ import annotations)
    annotations = inspect.get_annotations(function, eval_str=True)
    for name, value in options.items():
        # Annotated[float, check] holds the check in __metadata__; a plain type has none
        for check in getattr(annotations.get(name), "__metadata__", ()):
            if callable(check):
                check(name, value)
