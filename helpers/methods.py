"""Every layer method behind one signature, and the registry `METHODS`.

A method is a function

    method(weight, gram, *, sparsity, pattern, keep=None, **options) -> LayerResult

with weight (d_out, d_in) and gram (d_in, d_in) in float32 and a parsed pattern. `register` is the
door: what goes in is checked there once, and so is the answer (shape, finite, exact sparsity, zero
outside `keep`, weight and gram left alone); error and dead inputs are filled in. A method
therefore cannot misreport itself.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import runpy
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, reload
from pathlib import Path
from typing import Any

from torch import Tensor

from helpers import admm, sparsegpt
from helpers.device import all_finite, bit_sum, check_weight
from helpers.errors import (
    BadParameter,
    NonFinite,
    allowed,
    check_choice,
    check_switch,
    check_whole,
    first_line,
)
from helpers.finish import certify
from helpers.finish import finish as finish_layer
from helpers.gram import Gram, dead_inputs, relative_error
from helpers.masks import Pattern, check_divides, check_keep, check_target, select
from helpers.paths import own_method_file, own_methods_dir
from helpers.swap import swap as swap_layer


@dataclass(frozen=True)
class LayerResult:
    """What a method returns for one layer.

    weight: (d_out, d_in), zero outside keep. keep: bool, True where a weight stays.
    error: ‖XW − XŴ‖²/‖XW‖² on the calibration gram, None without a gram.
    damping: the ridge that was used, as a fraction of mean(diag), None if the method has none.
    dead_inputs: number of inputs that were zero on every calibration token.
    gap: what the damped objective exceeds its optimum on the mask by at most, relative to it, as
    `helpers.finish` proves it, before rounding to the model's type; None where nothing is proved.
    """

    weight: Tensor
    keep: Tensor
    error: float | None = None
    damping: float | None = None
    dead_inputs: int = 0
    gap: float | None = None


Method = Callable[..., LayerResult]

# Methods of the package that stand on more than this module may import: their names, and the module
# that registers each. It is imported when the method is asked for
ON_REQUEST = {"alps": "helpers.beyond.alps"}
# whole ways to prune a model, functions of that name, for `helpers.prune.prune_model`
RECIPES = {"best": "helpers.beyond.recipe"}


class _Methods(dict[str, Method]):
    """The registry: METHODS["alps"] imports that method; a list of names has what was imported."""

    def __missing__(self, name: str) -> Method:
        if name not in ON_REQUEST:
            raise KeyError(name)
        module = import_module(ON_REQUEST[name])
        if name not in self:  # imported before, and taken out since
            reload(module)
        return self[name]


METHODS: dict[str, Method] = _Methods()

# what every method is called with; its other parameters are its options
_COMMON = ("weight", "gram", "sparsity", "pattern", "keep")
_AFTER = ("finish", "swap")  # options of every method, which the door itself takes
DAMPING = 0.1  # of these two after a method that has none: the paper's


def register(
    name: str, *, needs_calibration: bool = True, shares_factor: bool = False
) -> Callable[[Method], Method]:
    """Add a method to `METHODS` under `name`; see the module's text for its signature.

    `needs_calibration=False` allows `gram=None`. With `shares_factor=True` the function gets the
    `helpers.gram.Gram` itself, which layers with the same input share, and can keep there what
    it derives from it; others get its matrix. A name can be registered again, which replaces
    the method, so that a notebook cell may be run twice.

    Every method takes two options more, which improve its answer: `swap`, at most so many times
    the best exchange of two weights in each output (`helpers.swap`; a given `keep` is where it
    begins), and then `finish`, True for the optimum on the mask (`helpers.finish`). Both need a
    gram, minimise the damped objective of `helpers.admm.damped_system` with the damping that the
    method used (`DAMPING` after one that has none), and report `gap`.

    Raises BadParameter for a function that cannot be called as a method, and for a name that is
    badly formed or one of the package's own.
    """

    def add(function: Method) -> Method:
        _check_registration(name, function)

        @functools.wraps(function)
        def method(
            weight: Tensor,
            gram: Tensor | Gram | None = None,
            *,
            sparsity: float | None = None,
            pattern: str | Pattern = "unstructured",
            keep: Tensor | None = None,
            finish: bool = False,
            swap: int = 0,
            **options: Any,
        ) -> LayerResult:
            check_options(name, {**options, "finish": finish, "swap": swap})
            pattern = Pattern.parse(pattern)
            sparsity = _check_layer(weight, sparsity, pattern, keep)
            gram = _checked_gram(name, gram, weight.shape[1])
            # float() does not copy a float32 weight: what is written there is in the model
            dense = weight.detach().float()
            matrix = None if gram is None else gram.matrix
            # sums over the bits find a change at a fraction of the cost of two copies
            before = _bit_sums(dense, matrix)
            result = function(
                dense,
                # q, k and v read one input: with the Gram itself they share one factorisation
                gram if shares_factor else matrix,
                sparsity=sparsity,
                pattern=pattern,
                keep=keep,
                **options,
            )
            _check_untouched(name, before, _bit_sums(dense, matrix))
            _check_answer(name, weight, sparsity, pattern, result)
            if swap or finish:
                result = _improved(name, dense, matrix, pattern, result, swap, finish)
                _check_answer(name, weight, sparsity, pattern, result)
            # rounded to the model's type first: the error is that of the weight the model will hold
            new = result.weight.to(weight.dtype)
            if matrix is None:
                return dataclasses.replace(result, weight=new)
            return dataclasses.replace(
                result,
                weight=new,
                error=relative_error(weight, new, matrix),
                dead_inputs=int(dead_inputs(matrix).sum()),
            )

        # an attribute of the function, so that the loop can ask before it runs the model
        method.needs_calibration = needs_calibration
        METHODS[name] = method
        return method

    return add


# --- the door: what goes in and what comes out ------------------------------------------------


def _check_registration(name: str, function: Method) -> None:
    """Raise BadParameter unless the function may be called that, and called as a method is."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise BadParameter(
            f"method name {name!r} is not allowed: use lower-case letters and digits, with single "
            "dashes between words, such as 'my-method'"
        )
    if name == "dense" or name in RECIPES:
        raise BadParameter(
            f"method name {name!r} is not allowed, since it stands for "
            f"{'the unpruned model' if name == 'dense' else 'a recipe'}: choose another name"
        )
    if not callable(function):
        raise BadParameter(
            f"method {name!r} is of type {type(function).__name__}: put @register({name!r}) above "
            "a function"
        )
    # one module may register its own name again: a module that is reloaded does
    if _is_ours(name) and _home(name) != getattr(function, "__module__", None):
        raise BadParameter(
            f"method {name!r} is one of the package's own, and tables and figures use that name "
            "for it: choose another name"
        )
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some functions written in C have none
        parameters = {}
    # **options takes whatever is passed by keyword; weight and gram are passed by position
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = [option for option in _AFTER if option in parameters]
    if taken:
        raise BadParameter(
            f"method {name!r} has a parameter {taken[0]!r}, which is an option of every method: "
            "give it another name"
        )
    missing = [wanted for wanted in _COMMON if wanted not in parameters]
    if missing and not (takes_any and not {"weight", "gram"} & set(missing)):
        raise BadParameter(
            f"method {name!r} lacks the parameters {allowed(missing)}: define it as "
            "(weight, gram, *, sparsity, pattern, keep=None, **options)"
        )


def _home(name: str) -> str:
    """The module that registers the method; empty if there is none."""
    return ON_REQUEST.get(name) or (METHODS[name].__module__ or "" if name in METHODS else "")


def _is_ours(name: str) -> bool:
    """Whether the package itself registers a method of that name."""
    return _home(name).startswith("helpers.")


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise BadParameter if the method takes no option of that name, or a bad finish or swap."""
    check_switch("finish", options.get("finish", False))
    check_whole("swap", options.get("swap", 0), least=0)
    # __wrapped__ is the function itself; the wrapper around it takes any option
    parameters = inspect.signature(get_method(name).__wrapped__).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [*(p.name for p in parameters if p.name not in _COMMON), *_AFTER]
    for option in options:
        if option not in known:
            raise BadParameter(
                f"method {name!r} has no option {option!r}: it takes {allowed(known)}"
            )


def _check_layer(
    weight: Tensor, sparsity: float | None, pattern: Pattern, keep: Tensor | None
) -> float:
    """Check a layer's weight and what is asked of it; return its final sparsity."""
    check_weight(weight)
    if keep is None:
        target = check_target(sparsity, pattern)
    else:
        target = check_keep(keep, weight.shape, sparsity, pattern)
    check_divides(pattern, weight.shape[1])
    return target


def _checked_gram(name: str, gram: Tensor | Gram | None, d_in: int) -> Gram | None:
    """The gram as a checked Gram; None only for a method that needs no calibration."""
    if gram is None:
        if METHODS[name].needs_calibration:
            raise BadParameter(
                f"method {name!r} needs calibration: give the gram of the layer's inputs"
            )
        return None
    return Gram.of(gram).checked(d_in)


def _bit_sums(weight: Tensor, gram: Tensor | None) -> dict[str, int]:
    """What changes when a method writes into what it was given."""
    return {"weight": bit_sum(weight)} | ({} if gram is None else {"gram": bit_sum(gram)})


def _check_untouched(name: str, before: dict[str, int], after: dict[str, int]) -> None:
    """Raise BadParameter if a method has changed its arguments.

    Its error would be measured against the changed weight, and be 0; and the layers that share
    the gram would get another one.
    """
    changed = [what for what in before if before[what] != after[what]]
    if changed:
        raise BadParameter(
            f"method {name!r} changed {' and '.join(changed)} in place: let it work on a copy, "
            f"such as {changed[0]}.clone(), and load the model again before it is used"
        )


def _check_answer(
    name: str, weight: Tensor, sparsity: float, pattern: Pattern, result: LayerResult
) -> None:
    """Raise unless a method's answer is what was asked of it."""
    if not isinstance(result, LayerResult):
        raise BadParameter(
            f"method {name!r} returned a {type(result).__name__}: return LayerResult(weight, keep)"
        )
    new, keep = result.weight, result.keep
    if new.shape != weight.shape:
        raise BadParameter(
            f"method {name!r} returned a weight of shape {tuple(new.shape)} for "
            f"{tuple(weight.shape)}: return (d_out, d_in)"
        )
    if not all_finite(new):
        raise NonFinite(
            f"method {name!r} returned NaN or infinity: look for a division "
            "by zero, or use more damping"
        )
    # without the sparsity, which is compared below with the rounding that a budget per output needs
    try:
        check_keep(keep, weight.shape, None, pattern)
    except BadParameter as error:
        raise BadParameter(f"method {name!r} returned a wrong mask: {error}") from error
    zeros = keep.numel() - int(keep.sum())
    # a budget per output rounds once for each
    if abs(zeros - sparsity * keep.numel()) > (weight.shape[0] + 1) / 2:
        raise BadParameter(
            f"method {name!r} returned sparsity {zeros / keep.numel():.6g} instead of "
            f"{sparsity:.6g}: select exactly, for example with select(score, sparsity, pattern)"
        )
    if ((new != 0) & ~keep).any():
        raise BadParameter(f"method {name!r} returned weights outside its mask: multiply by keep")


def _improved(
    name: str,
    weight: Tensor,
    gram: Tensor | None,
    pattern: Pattern,
    result: LayerResult,
    rounds: int,
    to_optimum: bool,
) -> LayerResult:
    """A method's answer after `rounds` of swaps and, if asked, at its mask's optimum; see `gap`."""
    if gram is None:
        raise BadParameter(
            f"method {name!r} is run without calibration, which finish and swap need: leave them "
            'out, give the gram, or start from another method, such as "wanda"'
        )
    start, keep = result.weight, result.keep
    damping = DAMPING if result.damping is None else result.damping
    if rounds:
        swapped = swap_layer(weight, gram, keep, rounds=rounds, pattern=pattern, damping=damping)
        start, keep, damping = swapped.weight, swapped.keep, swapped.damping
    if to_optimum:
        done = finish_layer(weight, gram, keep, start=start, damping=damping)
    else:
        done = certify(weight, gram, keep, start, damping=damping)
    return dataclasses.replace(result, weight=done.weight, keep=keep, damping=damping, gap=done.gap)


# --- a reader's methods -----------------------------------------------------------------------


def get_method(name: str) -> Method:
    """The method registered under `name`, or found in `helpers/own/`, a file named like it.

    Raises BadParameter, and BadParameter for a file that does not register its method.
    """
    known = set(METHODS) | set(ON_REQUEST)
    if name not in known:
        # file names have underscores, methods have dashes: my_method.py registers "my-method"
        files = {path.stem.replace("_", "-"): path for path in own_methods_dir().glob("*.py")}
        check_choice("method", name, set(files) | known, BadParameter)
        _load_own(name, files[name])
    elif _is_ours(name) and own_method_file(name).exists():
        raise BadParameter(
            f"helpers/own/{own_method_file(name).name} is named like the package's own method "
            f"{name!r} and would never be used: rename the file and what it registers"
        )
    return METHODS[name]


def _load_own(name: str, path: Path) -> None:
    """Run a reader's file, which registers its method; a file that fails registers nothing."""
    shown, wanted = f"helpers/own/{path.name}", own_method_file(name)
    if path != wanted:
        raise BadParameter(
            f"{shown} does not have the file name of its method: rename it to {wanted.name}"
        )
    # a file may register one method and fail at the next
    before = dict(METHODS)
    try:
        # run, not imported: an import would not read the file again after it was corrected
        runpy.run_path(str(path))
    except Exception as error:  # a reader's file may raise anything
        METHODS.clear()
        METHODS.update(before)
        line = error.lineno if isinstance(error, SyntaxError) else None
        # the last frame in the reader's own file: the error may have been raised deep inside torch
        for frame in traceback.extract_tb(error.__traceback__):
            line = frame.lineno if frame.filename == str(path) else line
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BadParameter(f"{shown}, line {line or 1}: {reason}; correct it") from error
    if name in METHODS:
        return
    others = [other for other in METHODS if METHODS[other] is not before.get(other)]
    METHODS.clear()
    METHODS.update(before)
    if not others:
        raise BadParameter(
            f"{shown} registers no method {name!r}: put @register({name!r}) above its function"
        )
    free = [own_method_file(other) for other in others]
    rename = " or ".join(file.name for file in free if not file.exists())
    raise BadParameter(
        f"{shown} registers {allowed(others)} and no method {name!r}: write @register({name!r})"
        + (f", or rename the file to {rename}" if rename else "")
    )


# --- the package's methods ---------------------------------------------------------------------


@register("magnitude", needs_calibration=False)
def magnitude(weight, gram, *, sparsity, pattern, keep=None, budget="matrix"):
    """Keep the largest |W|; weights are not updated (Han et al. 2015)."""
    if keep is None:
        # without ‖x‖: a weight on a large input counts for no more than another
        keep = select(weight.abs(), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("wanda")
def wanda(weight, gram, *, sparsity, pattern, keep=None, budget="output"):
    """Keep the largest |W|·‖x‖ in each output; weights are not updated (Sun et al. 2024)."""
    if keep is None:
        # gram_jj = ‖x_j‖²: the score's column j is multiplied by ‖x_j‖
        keep = select(weight.abs().mul_(gram.diagonal().sqrt()), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("admm1", shares_factor=True)
def admm1(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    rho=1.0,
    iterations=20,
    damping=0.1,
    budget="matrix",
    precondition=True,
):
    """One mask from |W|·‖x‖, then ADMM on it (the paper's ADMM1)."""
    if keep is None:
        # this is |W₀| of the solver, so the mask is that of ADMM-Grad with mask_steps=0
        norms = gram.matrix.diagonal().sqrt()
        keep = select(weight.abs().mul_(norms), sparsity, pattern, budget)
    options = dict(rho=rho, iterations=iterations, damping=damping, precondition=precondition)
    solved = admm.solve(weight, gram, keep=keep, **options)
    return LayerResult(solved.weight, keep, damping=solved.damping)


@register("admm-grad", shares_factor=True)
def admm_grad(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    schedule="paper",
    rho=1.0,
    iterations=20,
    mask_steps=15,
    damping=0.1,
    budget="matrix",
    precondition=True,
):
    """ADMM with a gradually growing mask (the paper's ADMM-Grad); with `keep`, on that mask."""
    solved = admm.solve(
        weight,
        gram,
        keep=keep,
        sparsity=sparsity,
        pattern=pattern,
        schedule=schedule,
        rho=rho,
        iterations=iterations,
        mask_steps=mask_steps,
        damping=damping,
        budget=budget,
        precondition=precondition,
    )
    return LayerResult(solved.weight, solved.keep, damping=solved.damping)


@register("sparsegpt")
def sparse_gpt(weight, gram, *, sparsity, pattern, keep=None, damping=0.01, block_size=128):
    """Column by column, later columns making up for earlier ones (Frantar & Alistarh 2023)."""
    options = dict(keep=keep, damping=damping, block_size=block_size)
    # mask and update are one pass: a column's mask depends on the updates of the columns before it
    new, keep, used = sparsegpt.solve(weight, gram, sparsity=sparsity, pattern=pattern, **options)
    return LayerResult(new, keep, damping=used)
