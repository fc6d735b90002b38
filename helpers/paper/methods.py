"""The layer methods, `METHODS`, and the checks that each of them is called through.

A method is a function

    method(weight, gram, *, sparsity, pattern, keep=None, **options) -> LayerResult

with weight (d_out, d_in) and gram (d_in, d_in) in float32 and a parsed pattern; `keep` is the mask
to use, None if the method is to choose one. A method with a parameter `within=None` can also go on
from a mask: it then chooses one without weights outside `within`. Whoever calls a method gives
`keep` for both: alone it is the mask, and with a larger `sparsity` it is `within`. `register` wraps
it in checks of its arguments and of its result (shape, finite, sparsity up to the rounding of a
budget per output, zero outside `keep`, weight and gram unchanged). It also computes error and dead
inputs, so that a method cannot misreport them. The package's own methods come first; a user's are
files in helpers/own, found by their names.
"""

import contextlib
import functools
import inspect
import re
import runpy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from helpers.device import all_finite, bit_sum, holds_floats, products
from helpers.errors import BadParameter, NonFinite, described, first_line, join_names
from helpers.options import (
    Count,
    NotNegative,
    Positive,
    Switch,
    check_choice,
    check_options,
    did_you_mean,
    one_of,
)
from helpers.paper import sparsegpt
from helpers.paper.admm import FINISHES, admm_grad
from helpers.paper.alps import alps
from helpers.paper.gram import Gram, dead_inputs, relative_error
from helpers.paper.layer import Layer, LayerResult
from helpers.paper.masks import (
    BUDGETS,
    Pattern,
    check_keep,
    only_within,
    select,
    sparsity_of,
)
from helpers.paths import own_method_file, own_methods_dir

Method = Callable[..., LayerResult]

#: The methods by name, to be called as `METHODS["admm-grad"](weight, gram, sparsity=0.6)`.
METHODS: dict[str, Method] = {}
_OURS: frozenset[str] = frozenset()  # the names that this module itself registers

ROUNDING = 1e-3  # of a weight
Budget = one_of(*BUDGETS)
# what every method is called with; its other parameters are its options
_COMMON = ("weight", "gram", "sparsity", "pattern", "keep")
_WITHIN = "within"  # of a method that can go on from a mask


def register(
    name: str,
    *,
    needs_calibration: bool = True,
    shares_factor: bool = False,
    budget: str = "matrix",
) -> Callable[[Method], Method]:
    """Add a method to `METHODS` under `name`; see the module's text for its signature.

    Args:
        needs_calibration: False allows `gram=None`.
        shares_factor: True gives the function the `helpers.paper.gram.Gram` itself, which layers
            with the same input share, so that it can keep there what it derives from it; others
            get its matrix.
        budget: where a method that has no option of that name counts its zeros: over the whole
            "matrix", where half a weight is all that rounding explains, or in each "output".

    An option that is annotated, as in `rho: Positive = 1.0`, is checked before the method is
    called (`helpers.options`). A name can be registered again, which replaces the method, so that
    a notebook cell may be run twice.

    Raises BadParameter for a function that cannot be called as a method, and for a name that is
    badly formed or one of the package's own.
    """

    def add(function: Method) -> Method:
        _check_registration(name, function)
        parameters = inspect.signature(function).parameters
        option = parameters.get("budget")
        counted = option.default if option else check_choice("budget", budget, BUDGETS)

        @functools.wraps(function)
        def method(
            weight: Tensor,
            gram: Tensor | Gram | None = None,
            *,
            sparsity: float | None = None,
            pattern: str | Pattern = "unstructured",
            keep: Tensor | None = None,
            **options: Any,
        ) -> LayerResult:
            check_method_options(name, options)
            if gram is None and needs_calibration:
                raise BadParameter(
                    f"method {name!r} needs calibration: give the gram of the layer's inputs"
                )
            layer = Layer.of(weight, gram, keep, sparsity=sparsity, pattern=pattern)
            count = options.get("budget", counted)
            mask = {"keep": keep}
            if keep is not None and layer.sparsity > sparsity_of(keep):
                check_keep(keep, weight.shape, sparsity, pattern, count)
                if _WITHIN not in parameters:
                    raise BadParameter(
                        f"method {name!r} cannot go on from a mask to sparsity {sparsity!r}: leave "
                        'sparsity out to use keep as it is, or choose a method such as "admm-grad"'
                    )
                mask = {"keep": None, _WITHIN: keep}
            # float() does not copy a float32 weight: what is written there is in the model
            dense = weight.detach().float()
            matrix = None if gram is None else layer.gram.matrix
            with (
                products("exact", weight.device),
                _unchanged(name, weight=dense, gram=matrix),
            ):
                result = function(
                    dense,
                    # q, k and v read one input: with the Gram itself they share one factorisation
                    layer.gram if shares_factor else matrix,
                    sparsity=layer.sparsity,
                    pattern=layer.pattern,
                    **mask,
                    **options,
                )
            _check_answer(name, layer, result, count)
            if keep is not None and (result.keep & ~keep).any():
                raise BadParameter(
                    f"method {name!r} returned a mask with weights outside the keep it was given: "
                    "use that mask"
                )
            # rounded to the model's type first: the error is that of the weight the model will hold
            new = result.weight.to(weight.dtype)
            if matrix is None:
                return replace(result, weight=new)
            error = relative_error(weight, new, matrix)
            dead = int(dead_inputs(matrix).sum())
            return replace(result, weight=new, error=error, dead_inputs=dead)

        # attributes of the function, which the block loop reads before it runs the model
        method.needs_calibration = needs_calibration
        method.budget = counted
        METHODS[name] = method
        return method

    return add


def _check_registration(name: str, function: Method) -> None:
    """Raise BadParameter unless name and signature are those of a method."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise BadParameter(
            f"method name {name!r} is not allowed: use lower-case letters and digits, with single "
            "dashes between words, such as 'my-method'"
        )
    if name == "dense":
        raise BadParameter(
            "method name 'dense' stands for the unpruned model: choose another name"
        )
    if name in _OURS:
        raise BadParameter(
            f"method {name!r} is one of the package's own, and tables and figures use that name "
            "for it: choose another name"
        )
    parameters = inspect.signature(function).parameters
    # **options takes any keyword; weight and gram are passed by position
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = ("weight", "gram") if takes_any else _COMMON
    if missing := [parameter for parameter in wanted if parameter not in parameters]:
        raise BadParameter(
            f"method {name!r} lacks the parameters {join_names(missing)}: define it as "
            "(weight, gram, *, sparsity, pattern, keep=None, **options)"
        )


# --- the package's own methods ---------------------------------------------------------------


@register("magnitude", needs_calibration=False)
def magnitude(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    within=None,
    budget: Budget = "matrix",
):
    """Keep the largest |W|; weights are not updated (Han et al. 2015)."""
    if keep is None:
        # without ‖x‖: a weight on a large input counts for no more than another
        score = only_within(weight.abs(), within)
        keep = select(score, sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("wanda")
def wanda(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    within=None,
    budget: Budget = "output",
):
    """Keep the largest |W|·‖x‖ in each output; weights are not updated (Sun et al. 2024)."""
    if keep is None:
        # gram_jj = ‖x_j‖²: the score's column j is multiplied by ‖x_j‖
        score = weight.abs().mul_(gram.diagonal().sqrt())
        keep = select(only_within(score, within), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("admm1", shares_factor=True)
def admm1(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    within=None,
    rho: Positive = 1.0,
    iterations: Count = 20,
    damping: NotNegative = 0.1,
    budget: Budget = "matrix",
    precondition: Switch = True,
    finish: one_of(*FINISHES) = "admm",
):
    """One mask from |W|·‖x‖, then ADMM on it (the paper's ADMM1)."""
    # without mask steps the mask is chosen once, from |W₀|, which is Wanda's score
    return admm_grad(
        weight,
        gram,
        sparsity=sparsity,
        pattern=pattern,
        keep=keep,
        within=within,
        rho=rho,
        iterations=iterations,
        mask_steps=0,
        damping=damping,
        budget=budget,
        precondition=precondition,
        finish=finish,
    )


@register("sparsegpt")
def sparse_gpt(
    weight,
    gram,
    *,
    sparsity,
    pattern,
    keep=None,
    damping: NotNegative = 0.01,
    block_size: Count = 128,
):
    """Column by column, later columns making up for earlier ones (Frantar & Alistarh 2023)."""
    # mask and update are one pass: a column's mask depends on the updates of the columns before it
    new, keep, used = sparsegpt.solve(
        weight,
        gram,
        sparsity=sparsity,
        pattern=pattern,
        keep=keep,
        damping=damping,
        block_size=block_size,
    )
    return LayerResult(new, keep, damping=used)


register("admm-grad", shares_factor=True)(admm_grad)
# a baseline that is not in the paper
register("alps", shares_factor=True)(alps)


_OURS = frozenset(METHODS)


# --- checks of a call and of its result ------------------------------------------------------


def check_method_options(name: str, options: dict) -> None:
    """Raise BadParameter for an option that the method does not have, or a value it refuses."""
    # __wrapped__ is the function itself; the wrapper around it takes any option
    function = get_method(name).__wrapped__
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters if p.name not in (*_COMMON, _WITHIN)]
        for option in options:
            if option not in known:
                # a misspelt argument of the caller's arrives here too
                near = did_you_mean(option, [*known, *_COMMON])
                raise BadParameter(
                    f"method {name!r} has no option {option!r}: it takes {join_names(known)}{near}"
                )
    check_options(function, options)


@contextlib.contextmanager
def _unchanged(name: str, **arguments: Tensor | None) -> Iterator[None]:
    """Raise BadParameter if a method has changed one of these arguments in the `with` block.

    Its error would be measured against the changed weight, and be 0; and the layers that share
    the gram would get another one.
    """
    tensors = {what: one for what, one in arguments.items() if one is not None}
    # sums over the bits find a change at a fraction of the cost of two copies
    before = {what: bit_sum(tensor) for what, tensor in tensors.items()}
    yield
    changed = [what for what in tensors if bit_sum(tensors[what]) != before[what]]
    if changed:
        raise BadParameter(
            f"method {name!r} changed {' and '.join(changed)} in place: let it work on a copy, "
            f"such as {changed[0]}.clone(), and load the model again before it is used"
        )


def _check_answer(name: str, layer: Layer, result: LayerResult, budget: str) -> None:
    """Raise unless a method's result fits its layer. budget: where zeros are counted."""
    if not isinstance(result, LayerResult):
        raise BadParameter(
            f"method {name!r} returned a {type(result).__name__}: return LayerResult(weight, keep)"
        )
    shape = layer.weight.shape
    new = result.weight
    keep = result.keep
    if not holds_floats(new) or new.shape != shape:
        raise BadParameter(
            f"method {name!r} returned LayerResult(weight, keep) whose weight {described(new)}: "
            f"give a dense floating-point tensor of shape {tuple(shape)}"
        )
    if not all_finite(new):
        raise NonFinite(
            f"method {name!r} returned NaN or infinity: look for a division "
            "by zero, or use more damping"
        )
    # without the sparsity, which is compared below with the rounding that a budget per output needs
    try:
        check_keep(keep, shape, None, layer.pattern)
    except BadParameter as error:
        raise BadParameter(f"method {name!r} returned a wrong mask: {error}") from error
    zeros = keep.numel() - int(keep.sum())
    # each count rounds once, by half a weight at most; ROUNDING is that of the product
    wanted = layer.sparsity * keep.numel()
    counts = 1 if budget == "matrix" else shape[0]
    if abs(zeros - wanted) > counts / 2 + ROUNDING:
        hint = "" if budget == "output" else ', or register it with budget="output"'
        raise BadParameter(
            f"method {name!r} returned {zeros} zeros instead of {wanted:.0f}: select exactly, for "
            f"example with select(score, sparsity, pattern){hint}"
        )
    if ((new != 0) & ~keep).any():
        raise BadParameter(
            f"method {name!r} returned weights outside its mask: multiply by keep"
        )


# --- a user's own methods ---------------------------------------------------------------------


def get_method(name: str) -> Method:
    """The method registered under `name`, or found in `helpers/own/`, a file named like it.

    Raises BadParameter for a name that is neither, and for a file that does not register it.
    """
    if name not in METHODS:
        # file names have underscores, methods have dashes: my_method.py registers "my-method"
        own = {
            path.stem.replace("_", "-"): path for path in own_methods_dir().glob("*.py")
        }
        check_choice("method", name, {*own, *METHODS})
        _load_own(name, own[name])
    elif name in _OURS and own_method_file(name).exists():
        raise BadParameter(
            f"helpers/own/{own_method_file(name).name} is named like the package's own method "
            f"{name!r} and would never be used: rename the file and what it registers"
        )
    return METHODS[name]


def _load_own(name: str, path: Path) -> None:
    """Run a user's file, which registers its method; a file that fails registers nothing."""
    before = dict(METHODS)
    line = 1
    try:
        # run, not imported: an import would not read the file again after it was corrected
        runpy.run_path(str(path))
        if name not in METHODS:
            registered = join_names(set(METHODS) - set(before)) or "nothing"
            raise BadParameter(f"it registers {registered}: write @register({name!r})")
    except Exception as error:  # a user's file may raise anything
        METHODS.clear()
        METHODS.update(before)
        # the last frame in the user's own file: the error may have been raised deep inside torch
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == str(path):
                line = frame.lineno
        if isinstance(error, SyntaxError):
            line = error.lineno
        raise BadParameter(
            f"helpers/own/{path.name}, line {line}: {type(error).__name__}: {first_line(error)}; "
            "correct it"
        ) from error
