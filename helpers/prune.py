"""`prune_model`: all layers of a model, and everything that is checked before the first one.

The loop over blocks is in `helpers.loop`. Whatever can be refused is refused before a weight
changes, and a parity gate compares the replayed blocks with the model's own logits.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.errors import BadParameter, UnsupportedModel, described, join_names
from helpers.loop import Loop, PruneReport, RunSettings, Sparsity, sparsity_of
from helpers.masks import Pattern, check_divides, check_target
from helpers.methods import get_method
from helpers.models import (
    STATE,
    check_model,
    check_tokens,
    check_weights,
    device_of,
    model_layers,
    read_weight,
)
from helpers.options import check_switch, check_whole
from helpers.precision import check_precision
from helpers.progress import Progress, as_progress
from helpers.registry import check_method_options
from helpers.tensors import all_finite
from helpers.trial import try_method

DENSE_ZEROS = 0.2  # a dense model's layers hold fewer exact zeros than that


def prune_model(
    model: nn.Module,
    tokens: Tensor | None = None,
    *,
    method: str,
    sparsity: Sparsity = None,
    pattern: str | Pattern = "unstructured",
    passes: int = 2,
    precision: str = "float32",
    batch: int | None = None,
    progress: Progress | bool = True,
    importance: Mapping[str, Tensor] | None = None,
    ignore: Collection[str] = (),
    allow_pruned: bool = False,
    **options: Any,
) -> PruneReport:
    """Prune all linear layers of the decoder blocks, in place: see the module's text for how.

    Args:
        tokens: int64 (sequences, length). A method that needs no calibration never reads them; its
            report then holds no errors.
        method: a name in `METHODS`, or of a file in helpers/own.
        sparsity: a fraction, or one for each layer by its name (`helpers.beyond` makes them); left
            out with an N:M pattern.
        passes: of the text through each block. 2 as in the paper; 1 takes less time and more memory
            (`helpers.waiting_batches`).
        precision: of the products with the text, for a model in float32: "float32" or "bfloat16".
            Grams and solvers are float32 always.
        batch: sequences in one forward pass, by default what suits the device. It is lowered to a
            divisor of `sequences`, and halved where memory runs out, which the report says.
        progress: True for a bar in a terminal or a notebook, False for none, or a function that is
            called after each layer: progress(done, total, name).
        importance: a factor > 0 for each output of each layer, (d_out,) by the layer's name, by
            which its weights count as larger when a mask is chosen (not within a group of N:M, nor
            with a mask budget for each output).
        ignore: layers that stay dense, as patterns of names such as "3.self_attn.q_proj" (layer
            q_proj of block 3): "*.down_proj" or "0.*". `sparsity` is that of the others, and a
            sparsity or an importance by name is given for the others only; the report's sparsity is
            that of all layers.
        allow_pruned: True to prune a model that is pruned already, or half pruned. That is refused
            otherwise, as the zeros of the first time would count as weights of the dense model.
        options: those of the method.

    Memory beyond the model, in bytes: the stream, sequences · length · width · (size of dtype); the
    grams of one block, 4 · Σ d_in² over its different inputs (Llama: three of width², one of ff²),
    or with one pass those of one input and what the block holds between two layers for all text
    (Llama: sequences · length · (ff + 2 · width) numbers); the solver's, 24 · d_out · d_in + 4 ·
    d_in² for its largest layer (32 on a GPU); and one batch of activations, in the parity gate with
    its logits.

    Raises BadParameter, UnsupportedModel, NonFinite, NotPositiveDefinite, OutOfMemory.
    """
    arguments = dict(options, sparsity=sparsity, pattern=pattern)
    check_model(model, half_pruned=check_switch("allow_pruned", allow_pruned))
    check_dense(model, allow_pruned)
    ignored = ignored_layers(model, ignore)
    settings = RunSettings(
        passes, precision, batch, as_progress(progress), importance, ignored
    )
    check_request(model, tokens, method, arguments, settings)
    return Loop(model, method, arguments, settings).run(tokens)


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
    if isinstance(getattr(model, STATE, None), PruneReport):
        raise BadParameter(f"prune_model has pruned this model before: {again}")
    # a model pruned elsewhere, or saved and loaded, has no mark
    check_zeros("the model's weights", weights, again)


def check_zeros(what: str, weights: Sequence[Tensor], advice: str) -> None:
    """Raise BadParameter if so many entries are zero that somebody must have pruned them."""
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    share = 1 - kept / sum(map(Tensor.numel, weights))
    if share >= DENSE_ZEROS:
        raise BadParameter(f"{100 * share:.0f} % of {what} are zero already: {advice}")


def ignored_layers(model: nn.Module, ignore: Collection[str]) -> list[str]:
    """The layers that a pattern fits (as in a shell), by their `layer_key`.

    Raises BadParameter for a pattern that fits none, and if they fit all.
    """
    keys = model_layers(model)
    for pattern in ignore:
        if not fnmatch.filter(keys, pattern):
            raise BadParameter(
                f"ignore {pattern!r} fits no layer of this model: give a list of patterns of names "
                f"such as {next(iter(keys))!r}"
            )
    ignored = [
        key for key in keys if any(fnmatch.fnmatch(key, pattern) for pattern in ignore)
    ]
    if len(ignored) == len(keys):
        raise BadParameter(
            f"ignore {ignore!r} leaves no layer to prune: give fewer patterns"
        )
    return ignored


def check_request(
    model: nn.Module,
    tokens: Tensor | None,
    method: str,
    arguments: dict[str, Any],
    settings: RunSettings,
) -> None:
    """Raise for everything that can be refused before a weight changes.

    `arguments` are the method's. Of weights on the meta device only the shapes are looked at.
    """
    # All of this is asked before anything runs: an error in the last block would otherwise come
    # after hours and leave a model that is half pruned
    if "keep" in arguments:
        raise BadParameter(
            "prune_model takes no keep=, which fits one layer: call METHODS[method](...) for that"
        )
    pattern = Pattern.parse(arguments["pattern"])
    options = {
        name: arguments[name]
        for name in arguments
        if name not in ("sparsity", "pattern")
    }
    check_method_options(method, options)
    if get_method(method).needs_calibration:
        if tokens is None:
            raise BadParameter(
                f"method {method!r} needs calibration tokens: give calibration_tokens(...), "
                'or use method "magnitude"'
            )
        check_tokens(model, tokens)
    layers = model_layers(model, settings.ignored)
    # of all layers: a pattern that does not fit the last one is refused here
    shapes = {key: tuple(read_weight(layer).shape) for key, layer in layers.items()}
    for key, layer in layers.items():
        check_divides(pattern, shapes[key][1])
        # on the meta device there are shapes only; such a weight is checked when it is read
        if not layer.weight.is_meta:
            index, _, name = key.partition(".")
            check_weights(f"block {index} {name}", layer)
    check_sparsities(arguments["sparsity"], pattern, shapes)
    check_settings(model, settings, shapes)
    smallest = min(shapes, key=lambda key: math.prod(shapes[key]))
    trial = {**arguments, "sparsity": sparsity_of(arguments["sparsity"], smallest)}
    try_method(method, trial, shapes[smallest], device_of(model))


def check_settings(
    model: nn.Module, settings: RunSettings, shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Raise BadParameter for a setting that is not allowed. shapes: of the layers by their names.

    Importance is a factor > 0 for each output of each layer.
    """
    if settings.batch is not None:
        check_whole("batch", settings.batch)
    if check_whole("passes", settings.passes) > 2:
        raise BadParameter(f"passes {settings.passes!r} is not allowed: give 1 or 2")
    check_precision(settings.precision, next(model.parameters()).dtype)
    if settings.importance is None:
        return
    check_names("importance", settings.importance, shapes)
    for name, factors in settings.importance.items():
        rows = shapes[name][0]
        fits = isinstance(factors, Tensor) and factors.shape == (rows,)
        # in float32, in which they are used: there the smallest numbers of float64 are 0
        numbers = factors.float() if fits else torch.zeros(1)
        if not all_finite(numbers) or not (numbers > 0).all():
            raise BadParameter(
                f"importance of layer {name} {described(factors)}: give {rows} numbers above 0, "
                "one for each output"
            )


def check_sparsities(
    sparsity: Sparsity, pattern: Pattern, layers: Collection[str]
) -> None:
    """Raise BadParameter unless there is an allowed sparsity for each layer, by their names."""
    if not isinstance(sparsity, Mapping):
        check_target(sparsity, pattern)
        return
    check_names("sparsity", sparsity, layers)
    for name, value in sparsity.items():
        try:
            check_target(value, pattern)
        except BadParameter as error:
            raise BadParameter(f"layer {name}: {error}") from error


def check_names(
    what: str, given: Mapping[str, object], layers: Collection[str]
) -> None:
    """Raise BadParameter unless a mapping has an entry for each layer, and no others."""
    if different := given.keys() ^ set(layers):
        raise BadParameter(
            f"{what} has, or lacks, {join_names(sorted(map(str, different))[:3])}: give one value "
            f"for all layers, or one for each of the {len(layers)}, from {next(iter(layers))!r} on"
        )
