"""Every layer method behind one signature, and the registry `METHODS`.

A method is a function

    method(weight, gram, *, sparsity, pattern, keep=None, **options) -> LayerResult

with weight (d_out, d_in) and gram (d_in, d_in) in float32. `register` wraps it: arguments are
checked before it runs, its answer is checked after (shape, finite, exact sparsity, zero outside
`keep`, weight and gram left alone), and error and dead inputs are filled in. A method therefore
cannot misreport itself.
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.admm import SCHEDULES, admm_grad, check_steps, refit
from helpers.device import all_finite, bit_sum
from helpers.errors import (
    BadMask,
    BadParameter,
    NonFinite,
    NotPositiveDefinite,
    UnknownMethod,
    allowed,
    check_choice,
    check_real,
    check_whole,
    first_line,
)
from helpers.gram import check_gram, damping_ladder, dead_inputs, factor, relative_error
from helpers.masks import (
    check_divides,
    check_keep,
    check_target,
    keep_largest,
    parse_pattern,
    select,
    top_nm,
)
from helpers.paths import own_method_file, own_methods_dir


@dataclass(frozen=True)
class LayerResult:
    """What a method returns for one layer.

    weight: (d_out, d_in), zero outside keep. keep: bool, True where a weight stays.
    error: ‖XW − XŴ‖²/‖XW‖² on the calibration gram, None without a gram.
    damping: the ridge that was used, as a fraction of mean(diag), None if the method has none.
    dead_inputs: number of inputs that were zero on every calibration token.
    """

    weight: Tensor
    keep: Tensor
    error: float | None = None
    damping: float | None = None
    dead_inputs: int = 0


Method = Callable[..., LayerResult]
METHODS: dict[str, Method] = {}

_COMMON = ("weight", "gram", "sparsity", "pattern", "keep")


def register(name: str, *, needs_calibration: bool = True) -> Callable[[Method], Method]:
    """Add a method to `METHODS` under `name`; see the module's text for its signature.

    `needs_calibration=False` allows `gram=None`. A name can be registered again, which replaces
    the method, so that a notebook cell may be run twice. Raises BadParameter for a function that
    cannot be called as a method, and for a name that is badly formed or one of the package's own.
    """

    def add(function: Method) -> Method:
        _check_name(name, function)
        _check_signature(name, function)

        @functools.wraps(function)
        def method(
            weight: Tensor,
            gram: Tensor | None = None,
            *,
            sparsity: float | None = None,
            pattern: str = "unstructured",
            keep: Tensor | None = None,
            **options: Any,
        ) -> LayerResult:
            check_options(name, options)
            sparsity = _check_layer(name, weight, gram, sparsity, pattern, keep)
            dense = weight.detach().float()
            gram = None if gram is None else gram.float()
            before = _bit_sums(dense, gram)
            result = function(dense, gram, sparsity=sparsity, pattern=pattern, keep=keep, **options)
            _check_untouched(name, before, _bit_sums(dense, gram))
            return _finish(name, weight, gram, sparsity, pattern, result)

        method.needs_calibration = needs_calibration
        METHODS[name] = method
        return method

    return add


def _check_name(name: str, function: Method) -> None:
    """Raise BadParameter unless the function may be called that."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise BadParameter(
            f"method name {name!r} is not allowed: lower-case letters and digits, with single "
            "dashes between words, such as 'my-method'"
        )
    if _is_ours(name) and METHODS[name].__module__ != function.__module__:
        raise BadParameter(
            f"method {name!r} is the package's own, and tables and figures mean that one by it: "
            "give yours another name"
        )


def _is_ours(name: str) -> bool:
    """Whether the package itself registers a method of that name."""
    return name in METHODS and METHODS[name].__module__.startswith("helpers.")


def _check_signature(name: str, function: Method) -> None:
    """Raise BadParameter unless the function can be called as a method is."""
    parameters = inspect.signature(function).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [wanted for wanted in _COMMON if wanted not in parameters]
    if missing and not (anything and not {"weight", "gram"} & set(missing)):
        raise BadParameter(
            f"method {name!r} takes no {allowed(missing)}: define it as "
            "(weight, gram, *, sparsity, pattern, keep=None, **options)"
        )


def get_method(name: str) -> Method:
    """The method registered under `name`, or found in `helpers/own/`, a file named like it.

    Raises UnknownMethod, and BadParameter for a file that does not register its method.
    """
    if name not in METHODS:
        files = {path.stem.replace("_", "-"): path for path in own_methods_dir().glob("*.py")}
        check_choice("method", name, set(files) | set(METHODS), UnknownMethod)
        _load_own(name, files[name])
    elif _is_ours(name) and own_method_file(name).exists():
        raise BadParameter(
            f"helpers/own/{own_method_file(name).name} is named like the package's own method "
            f"{name!r} and would never be used: rename the file and what it registers"
        )
    return METHODS[name]


def _load_own(name: str, path: Path) -> None:
    """Run a reader's file, which registers its method."""
    shown = f"helpers/own/{path.name}"
    if path != own_method_file(name):
        raise BadParameter(f"{shown} is not found by its name: rename it to {_file_name(name)}")
    before = dict(METHODS)
    try:
        runpy.run_path(str(path))
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BadParameter(f"{shown}, line {_line(error, path)}: {reason}; correct it") from error
    if name not in METHODS:
        others = [other for other in METHODS if METHODS[other] is not before.get(other)]
        raise BadParameter(f"{shown} registers {_advice(name, others)}")


def _file_name(name: str) -> str:
    """What the file of the reader's method `name` is called."""
    return own_method_file(name).name


def _line(error: Exception, path: Path) -> int:
    """The line of a reader's file where it failed."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(path)), None) or 1


def _advice(name: str, others: list[str]) -> str:
    """What is wrong with a file that registers `others` and not `name`, and what to do."""
    if not others:
        return f"no method {name!r}: put @register({name!r}) above its function"
    files = " or ".join(_file_name(other) for other in others)
    return (
        f"{allowed(others)} and no method {name!r}: write @register({name!r}), "
        f"or rename the file to {files}"
    )


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise BadParameter if the method takes no option of that name."""
    parameters = inspect.signature(get_method(name).__wrapped__).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.name not in _COMMON]
    for option in options:
        if option not in known:
            raise BadParameter(
                f"method {name!r} has no option {option!r}: it takes {allowed(known) or 'none'}"
            )


def _check_layer(
    name: str,
    weight: Tensor,
    gram: Tensor | None,
    sparsity: float | None,
    pattern: str,
    keep: Tensor | None,
) -> float:
    """Check a layer's arguments and return its final sparsity."""
    _check_matrix("weight", weight)
    if keep is None:
        target = check_target(sparsity, pattern)
    else:
        target = check_keep(keep, weight.shape, sparsity, pattern)
    check_divides(pattern, weight.shape[1])
    if not all_finite(weight):
        raise NonFinite("weight holds NaN or infinity: check the checkpoint it comes from")
    if gram is not None:
        _check_matrix("gram", gram)
        check_gram(gram, weight.shape[1])
    elif METHODS[name].needs_calibration:
        raise BadParameter(
            f"method {name!r} needs calibration: give the gram of the layer's inputs"
        )
    return target


def _bit_sums(weight: Tensor, gram: Tensor | None) -> dict[str, int]:
    """What changes when the method writes into what it was given."""
    return {"weight": bit_sum(weight)} | ({} if gram is None else {"gram": bit_sum(gram)})


def _check_untouched(name: str, before: dict[str, int], after: dict[str, int]) -> None:
    """Raise BadParameter if the method has changed its arguments.

    Its error would be measured against the changed weight, and would be 0; and the layers that
    share the gram would get another one.
    """
    changed = [what for what in before if before[what] != after[what]]
    if changed:
        raise BadParameter(
            f"method {name!r} changed {' and '.join(changed)} in place: let it work on a copy, "
            f"such as {changed[0]}.clone(), and load the model again before it is used"
        )


def _check_matrix(what: str, matrix: Tensor) -> None:
    is_matrix = isinstance(matrix, Tensor) and matrix.ndim == 2 and matrix.numel() > 0
    if not is_matrix or not matrix.is_floating_point():
        kind = getattr(matrix, "dtype", type(matrix).__name__)
        raise BadParameter(
            f"{what} is {kind} of shape {tuple(getattr(matrix, 'shape', ()))}: give a "
            "floating-point torch tensor, weight (d_out, d_in) and gram (d_in, d_in)"
        )


def _finish(
    name: str,
    weight: Tensor,
    gram: Tensor | None,
    sparsity: float,
    pattern: str,
    result: LayerResult,
) -> LayerResult:
    """Check a method's answer and complete it, with the weight in the type it came in."""
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
        raise NonFinite(f"method {name!r} returned NaN or infinity: check its damping")
    check_keep(keep, weight.shape, None, pattern)
    zeros = keep.numel() - int(keep.sum())
    # a budget per output rounds once for each
    if abs(zeros - sparsity * keep.numel()) > (weight.shape[0] + 1) / 2:
        raise BadMask(
            f"method {name!r} returned sparsity {zeros / keep.numel():.4f} instead of "
            f"{sparsity:.4f}: select exactly, for example with select(score, sparsity, pattern)"
        )
    if ((new != 0) & ~keep).any():
        raise BadMask(f"method {name!r} returned weights outside its mask: multiply by keep")
    new = new.to(weight.dtype)
    if gram is None:
        return dataclasses.replace(result, weight=new)
    return dataclasses.replace(
        result,
        weight=new,
        error=relative_error(weight, new, gram),
        dead_inputs=int(dead_inputs(gram).sum()),
    )


@register("magnitude", needs_calibration=False)
def magnitude(weight, gram, *, sparsity, pattern, keep=None, budget="matrix"):
    """Keep the largest |W|; weights are not updated (Han et al. 2015)."""
    if keep is None:
        keep = select(weight.abs(), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("wanda")
def wanda(weight, gram, *, sparsity, pattern, keep=None, budget="output"):
    """Keep the largest |W|·‖x‖ in each output; weights are not updated (Sun et al. 2024)."""
    if keep is None:
        keep = select(weight.abs().mul_(gram.diagonal().sqrt()), sparsity, pattern, budget)
    return LayerResult(weight * keep, keep)


@register("admm1")
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
        keep = select(weight.abs().mul_(gram.diagonal().sqrt()), sparsity, pattern, budget)
    common = dict(rho=rho, iterations=iterations, damping=damping, precondition=precondition)
    solved = refit(weight, gram, keep, **common)
    return LayerResult(solved.weight, keep, damping=solved.damping)


@register("admm-grad")
def admm_gradual(
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
    check_choice("schedule", schedule, SCHEDULES)
    check_steps(iterations, mask_steps)
    common = dict(rho=rho, iterations=iterations, damping=damping, precondition=precondition)
    if keep is not None:
        solved = refit(weight, gram, keep, **common)
    else:
        solved = admm_grad(
            weight,
            gram,
            sparsity=sparsity,
            pattern=pattern,
            schedule=schedule,
            mask_steps=mask_steps,
            budget=budget,
            **common,
        )
    return LayerResult(solved.weight, solved.keep, damping=solved.damping)


@register("sparsegpt")
def sparsegpt(weight, gram, *, sparsity, pattern, keep=None, damping=0.01, block_size=128):
    """Column-by-column optimal brain surgeon (Frantar & Alistarh 2023).

    The mask is chosen for `block_size` columns at a time (N:M: for each group of M) by
    w²/[H⁻¹]², from weights that already carry the updates of the columns before; then each
    pruned weight's error is spread over the columns after it.
    """
    _check_block_size(block_size, pattern)
    inverse, used = _inverse_factor(gram, damping)
    alive = ~dead_inputs(gram)
    rows = weight.shape[0]
    work, chosen = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, work.shape[1], block_size):
        columns = slice(start, min(start + block_size, work.shape[1]))
        given = None if keep is None else keep[:, columns]
        # counted from the left, so that rounding does not add up over the blocks
        zeros = round(sparsity * rows * columns.stop) - round(sparsity * rows * start)
        errors, chosen[:, columns] = _prune_columns(
            work[:, columns], inverse[columns, columns], alive[columns], zeros, pattern, given
        )
        work[:, columns.stop :] -= errors @ inverse[columns, columns.stop :]
    return LayerResult(work * chosen, chosen, damping=used)


def _prune_columns(
    work: Tensor,
    inverse: Tensor,
    alive: Tensor,
    zeros: int,
    pattern: str,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """SparseGPT on one block of columns, in place on the view `work` (d_out, block).

    `inverse` is the block of the upper factor of H⁻¹; `zeros` of the block's weights fall if the
    pattern is unstructured and no `keep` is given. Returns the scaled errors, which the
    caller spreads over the later blocks, and the mask.
    """
    diagonal = inverse.diagonal()
    groups = parse_pattern(pattern)
    adaptive = keep is None
    if adaptive and groups is None:
        score = ((work / diagonal) ** 2 * alive).reshape(1, -1)
        keep = keep_largest(score, zeros).view(work.shape)
    elif adaptive:
        keep = torch.ones_like(work, dtype=torch.bool)
    errors = torch.zeros_like(work)
    for j in range(work.shape[1]):
        if adaptive and groups and j % groups[1] == 0:
            group = slice(j, j + groups[1])
            keep[:, group] = top_nm((work[:, group] / diagonal[group]) ** 2 * alive[group], *groups)
        errors[:, j] = work[:, j] * ~keep[:, j] / diagonal[j]
        # column j itself becomes zero where it is pruned, and keeps its value elsewhere
        work[:, j:] -= errors[:, j : j + 1] * inverse[j, j:]
    return errors, keep


def _inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the damped gram's inverse, and the damping used.

    A dead input gets a unit diagonal before damping, so that it touches no other.
    """
    check_real("damping", damping)
    alive = gram.clone()
    alive.diagonal().add_(dead_inputs(gram).to(gram.dtype))
    for rung in damping_ladder(damping):
        lower, used = factor(alive, rung)
        # the inverse of a barely positive matrix need not be positive after rounding
        upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if info.item() == 0 and all_finite(upper):
            return upper, used
    raise NotPositiveDefinite(
        f"the gram's inverse cannot be factored with damping from {damping:g} up to {rung:g}: "
        "recompute the gram from the layer's inputs"
    )


def _check_block_size(block_size: int, pattern: str) -> None:
    check_whole("block_size", block_size)
    groups = parse_pattern(pattern)
    if groups and block_size % groups[1]:
        raise BadParameter(
            f"block_size {block_size!r} is not allowed with pattern {pattern!r}: give a multiple "
            f"of the group size, for example {16 * groups[1]}"
        )
