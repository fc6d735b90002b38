"""`prune_model`: all layers of a model, and everything that is checked before the first one.

The loop over blocks is in `helpers.loop`. Whatever can be refused is refused before a weight
changes, and a parity gate compares the replayed blocks with the model's own logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from helpers.capture import Progress, check_tokens, eval_mode
from helpers.device import all_finite
from helpers.errors import (
    BadParameter,
    HelpersError,
    UnsupportedModel,
    allowed,
    check_switch,
    check_whole,
    described,
)
from helpers.gram import gram_of
from helpers.loop import BlockHook, Loop, PruneReport, Sparsity, sparsity_of
from helpers.masks import Pattern, check_divides, check_target
from helpers.methods import RECIPES, check_options, get_method
from helpers.models import (
    PRUNED,
    STATE,
    check_model,
    check_weights,
    device_of,
    find_blocks,
    find_layers,
    layer_key,
    model_layers,
    read_weight,
)
from helpers.precision import precision_for

DENSE_ZEROS = 0.2  # a dense model's layers hold fewer exact zeros than that
TRIAL = 128  # outputs, and about as many inputs, of the layer on which options are tried


def prune_model(
    model: nn.Module,
    tokens: Tensor | None = None,
    *,
    method: str,
    sparsity: Sparsity = None,
    pattern: str | Pattern = "unstructured",
    passes: int | None = None,
    precision: str | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    before_block: BlockHook | None = None,
    after_block: BlockHook | None = None,
    importance: Mapping[str, Tensor] | None = None,
    allow_pruned: bool = False,
    **options: Any,
) -> PruneReport:
    """Prune all linear layers of the decoder blocks, in place: see the module's text for how.

    Method "best" is a recipe: a guide says where weights can be spared, ADMM-Grad prunes, and what
    is left is repaired as a whole; its option `budget` is "fast" (no repair), "balanced" or "long"
    (`helpers.beyond.recipe`).

    Args: tokens, int64 (sequences, length), which a method that needs no calibration never reads
    (its report then holds no errors); sparsity, a fraction, or one for each layer by its name
    (`helpers.beyond.allocate` makes them), to be left out with an N:M pattern; passes, of the text
    through each block: by default two as in the paper, and in a recipe one, which takes less time
    and more memory (`helpers.one_pass`; where that runs out, the rest is done in two, which the
    report says); precision, of the products with the text, for a model in float32: "float32", the
    default, "bfloat16", or "auto" for the faster of the two on this machine, the default of a
    recipe (grams and solvers are float32 always); batch, sequences in one forward pass, by default
    what suits the device (lowered to a divisor of `sequences`, and halved where memory runs out,
    which the report says); progress, called after each layer; before_block and after_block(index,
    block, stream, call), for steps on a whole block: called before its grams are summed, and before
    the pruned block runs again (so not with one pass); importance, a factor > 0 for each output of
    each layer, (d_out,) by the layer's name, by which its weights count as larger when a mask is
    chosen (not within a group of N:M, nor with a budget for each output); allow_pruned, True to
    prune a model that is pruned or half pruned already, which is refused otherwise, as the zeros of
    the first time would count as weights of the dense model; options, those of the method, and
    `finish` and `swap`, which improve any method's answer (`helpers.methods.register`).

    Memory beyond the model, in bytes: the stream, sequences · length · width · (size of dtype); the
    grams of one block, 4 · Σ d_in² over its different inputs (Llama: three of width², one of ff²),
    or with one pass those of one input and what the block holds between two layers for all text
    (Llama: sequences · length · (ff + 2 · width) numbers); the solver's, 24 · d_out · d_in + 4 ·
    d_in² for its largest layer (32 on a GPU); and one batch of activations, in the parity gate with
    its logits.

    Raises BadParameter,
    UnsupportedModel, NonFinite, NotPositiveDefinite, OutOfMemory.
    """
    arguments = dict(options, sparsity=sparsity, pattern=pattern)
    if method in RECIPES:
        whole = dict(batch=batch, progress=progress, allow_pruned=allow_pruned)
        # what is left out has the recipe's own default
        given = {"passes": passes, "precision": precision}
        whole |= {name: value for name, value in given.items() if value is not None}
        hooks = dict(before_block=before_block, after_block=after_block, importance=importance)
        recipe = getattr(import_module(RECIPES[method]), method)
        return recipe(model, tokens, **whole, **hooks, **arguments)
    passes = 2 if passes is None else passes
    precision = "float32" if precision is None else precision
    check_model(model, half_pruned=check_switch("allow_pruned", allow_pruned))
    check_dense(model, allow_pruned)
    hooks = {"before_block": before_block, "after_block": after_block}
    check_request(model, tokens, method, batch, arguments, hooks, passes)
    own = next(model.parameters()).dtype
    precision = precision_for(own, precision, device_of(model))
    if importance is not None:
        check_importance(importance, model)
    how = dict(progress=progress, importance=importance, passes=passes, precision=precision)
    loop = Loop(model, method, arguments, **how, **hooks)
    # dropout off: its random zeros would enter the grams
    with eval_mode(model), loop.damage_in_errors():
        report = loop.run(tokens, batch)
    setattr(model, STATE, PRUNED)
    return report


def check_dense(model: nn.Module, allow_pruned: bool) -> None:
    """Raise unless the layers' weights are in memory and, without `allow_pruned`, dense.

    Raises UnsupportedModel, BadParameter.
    """
    weights = [layer.weight for layer in model_layers(model).values()]
    # what is written to a weight that is read for each call is lost
    if any(weight.is_meta for weight in weights):
        raise UnsupportedModel(
            "the model's weights are not in memory, so they cannot be changed: load it with "
            "load_model, or use prune_checkpoint"
        )
    if allow_pruned:
        return
    again = "load the dense model again, or give allow_pruned=True to prune it further"
    if getattr(model, STATE, None) == PRUNED:
        raise BadParameter(f"prune_model has pruned this model before: {again}")
    # a model pruned elsewhere, or saved and loaded, has no mark
    check_zeros("the model's weights", weights, again)


def check_zeros(what: str, weights: Sequence[Tensor], advice: str) -> None:
    """Raise BadParameter if so many entries are zero that somebody must have pruned them."""
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    share = 1 - kept / sum(map(Tensor.numel, weights))
    if share >= DENSE_ZEROS:
        raise BadParameter(f"{100 * share:.0f} % of {what} are zero already: {advice}")


def check_request(
    model: nn.Module,
    tokens: Tensor | None,
    method: str,
    batch: int | None,
    arguments: dict[str, Any],
    hooks: Mapping[str, BlockHook | None] | None = None,
    passes: int = 2,
) -> None:
    """Raise for everything that can be refused before a weight changes.

    `arguments` are the method's. Of weights on the meta device only the shapes are looked at.
    """
    # All of this is asked before anything runs: an error in the last block would otherwise come
    # after hours and leave a model that is half pruned
    needs_calibration = get_method(method).needs_calibration
    if batch is not None:
        check_whole("batch", batch)
    check_passes(passes, after_block=bool(hooks and hooks.get("after_block")))
    if "keep" in arguments:
        raise BadParameter(
            "prune_model takes no keep=, which fits one layer: call METHODS[method](...) for that"
        )
    pattern = Pattern.parse(arguments["pattern"])
    options = {name: arguments[name] for name in arguments if name not in ("sparsity", "pattern")}
    check_options(method, options)
    if needs_calibration:
        if tokens is None:
            raise BadParameter(
                f"method {method!r} needs calibration tokens: give calibration_tokens(...), "
                'or use method "magnitude"'
            )
        check_tokens(model, tokens)
    for name, hook in (hooks or {}).items():
        if hook and not needs_calibration:
            raise BadParameter(
                f"method {method!r} runs no block, so {name} would never be called: leave it out"
            )
    shapes = {}  # of all layers: a pattern that does not fit the last one is refused here
    for index, block in enumerate(find_blocks(model)):
        for name, layer in find_layers(block, f"block {index}").items():
            check_divides(pattern, read_weight(layer).shape[1])
            # on the meta device there are shapes only; such a weight is checked when it is read
            if not layer.weight.is_meta:
                check_weights(f"block {index} {name}", layer)
            shapes[layer_key(index, name)] = read_weight(layer).shape
    check_sparsities(arguments["sparsity"], pattern, shapes)
    smallest = min(shapes, key=lambda key: math.prod(shapes[key]))
    trial = {**arguments, "sparsity": sparsity_of(arguments["sparsity"], smallest)}
    try_method(method, trial, shapes[smallest], device_of(model))


def check_passes(passes: int, *, after_block: bool) -> None:
    """Raise BadParameter unless passes is 1 or 2, and 2 with a step after each block."""
    if check_whole("passes", passes) > 2:
        raise BadParameter(f"passes {passes!r} is not allowed: give 1 or 2")
    if passes == 1 and after_block:
        raise BadParameter(
            "a step after a block, such as refine, needs the stream that enters it, which one pass "
            "has replaced by then: give passes=2"
        )


def check_sparsities(sparsity: Sparsity, pattern: Pattern, layers: Sequence[str]) -> None:
    """Raise unless there is an allowed sparsity for each of the model's layers, by their names.

    Raises BadParameter for a mapping that names other layers than the model has.
    """
    if not isinstance(sparsity, Mapping):
        check_target(sparsity, pattern)
        return
    check_names("sparsity", sparsity, layers)
    for name, value in sparsity.items():
        try:
            check_target(value, pattern)
        except HelpersError as error:
            raise type(error)(f"layer {name}: {error}") from error


def check_names(what: str, given: Mapping[str, object], layers: Sequence[str]) -> None:
    """Raise BadParameter unless a mapping has an entry for each layer, and no others."""
    missing, unknown = set(layers) - set(given), set(given) - set(layers)
    for how, names in (("lacks", missing), ("names the unknown", unknown)):
        if names:
            raise BadParameter(
                f"{what} {how} {allowed(sorted(map(str, names))[:3])}: give one value for all "
                f"layers, or one for each of the {len(layers)}, from {next(iter(layers))!r} on"
            )


def check_importance(importance: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise BadParameter unless there is a factor > 0 for each output of each layer."""
    layers = model_layers(model)
    check_names("importance", importance, list(layers))
    for name, factors in importance.items():
        rows = len(read_weight(layers[name]))
        fits = isinstance(factors, Tensor) and factors.shape == (rows,)
        # in float32, in which they are used: there the smallest numbers of float64 are 0
        numbers = factors.float() if fits else torch.zeros(1)
        if not all_finite(numbers) or not (numbers > 0).all():
            raise BadParameter(
                f"importance of layer {name} {described(factors)}: give {rows} numbers above 0, "
                "one for each output, for example from output_importance(...)"
            )


def try_method(
    method: str, arguments: dict[str, Any], shape: tuple[int, int], device: torch.device
) -> None:
    """Solve a random layer of that shape, or of TRIAL outputs and about as many inputs if it is
    larger, so that a bad value of an option is refused by the method now.
    """
    source = torch.Generator().manual_seed(0)
    rows, width = (min(size, TRIAL) for size in shape)
    if shape[1] > TRIAL and (m := Pattern.parse(arguments["pattern"]).m):
        width = max(1, TRIAL // m) * m  # whole groups
    inputs, weight = (torch.randn(count, width, generator=source) for count in (4 * width, rows))
    gram = gram_of(inputs).to(device) if get_method(method).needs_calibration else None
    # a method may draw random numbers, and the caller's must not depend on this trial
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        get_method(method)(weight.to(device), gram, **arguments)
