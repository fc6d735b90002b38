"""`prune_model`: prune all layers of a model in place.

All arguments are checked before a weight changes, and a parity gate compares the replayed blocks
with the model's own logits. The loop over blocks is in `helpers.block_loop`.
"""

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from helpers.block_loop import Loop, PruneReport, Request, explain_errors
from helpers.dry_run import try_target
from helpers.errors import BadParameter, described, join_names
from helpers.masks import Pattern, check_divides, target_sparsity
from helpers.methods import get_method
from helpers.model_state import state_of
from helpers.models import (
    check_in_memory,
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
from helpers.pruning_target import Sparsity, Target
from helpers.registry import check_method_options

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
    """Prune all linear layers of the decoder blocks, in place.

    Args:
        tokens: int64 (sequences, length). A method that needs no calibration never reads them; its
            report then holds no errors.
        method: a name in `METHODS`, or of a file in helpers/own.
        sparsity: the fraction of weights set to zero, or one for each layer by its name
            (`helpers.beyond.allocation` makes them); left out with an N:M pattern.
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
    check_model(model, half_pruned=check_switch("allow_pruned", allow_pruned))
    check_dense(model, allow_pruned)
    request = Request(
        tokens=tokens,
        target=Target(method, sparsity, Pattern.parse(pattern), options),
        passes=passes,
        precision=precision,
        batch=batch,
        progress=as_progress(progress),
        importance=importance,
        ignored=ignored_layers(model, ignore),
    )
    check_request(model, request)
    return Loop(model, request).run()


def check_dense(model: nn.Module, allow_pruned: bool) -> None:
    """Raise unless the layers' weights are in memory and, without `allow_pruned`, dense.

    Raises UnsupportedModel, BadParameter.
    """
    # what is written to a weight that is read for each call is lost
    check_in_memory(model)
    if allow_pruned:
        return
    again = "load the dense model again, or give allow_pruned=True to prune it further"
    if state_of(model).report is not None:
        raise BadParameter(f"prune_model has pruned this model before: {again}")
    # a model pruned elsewhere, or saved and loaded, has no mark
    weights = [layer.weight for layer in model_layers(model).values()]
    check_zeros("the model's weights", weights, again)


def check_zeros(what: str, weights: Sequence[Tensor], advice: str) -> None:
    """Raise BadParameter if the share of zeros shows that the model is already pruned."""
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    share = 1 - kept / sum(map(Tensor.numel, weights))
    if share >= DENSE_ZEROS:
        raise BadParameter(f"{100 * share:.0f} % of {what} are zero already: {advice}")


def ignored_layers(model: nn.Module, ignore: Collection[str]) -> list[str]:
    """The layers whose `layer_key` matches one of the shell patterns in `ignore`.

    Raises BadParameter for a pattern that matches none, and if they match all.
    """
    keys = model_layers(model)
    for pattern in ignore:
        if not fnmatch.filter(keys, pattern):
            raise BadParameter(
                f"ignore {pattern!r} matches no layer of this model: give a list of patterns of "
                f"names such as {next(iter(keys))!r}"
            )
    ignored = [
        key for key in keys if any(fnmatch.fnmatch(key, pattern) for pattern in ignore)
    ]
    if len(ignored) == len(keys):
        raise BadParameter(
            f"ignore {ignore!r} leaves no layer to prune: give fewer patterns"
        )
    return ignored


def check_request(model: nn.Module, request: Request) -> None:
    """Raise for everything that can be refused before a weight changes.

    Of weights on the meta device only the shapes are looked at.
    Raises BadParameter, UnsupportedModel, NonFinite, NotPositiveDefinite.
    """
    # Before anything runs: an error in the last block would otherwise come after hours and leave a
    # model that is half pruned
    target = request.target
    if "keep" in target.options:
        raise BadParameter(
            "prune_model takes no keep=, which fits one layer: call METHODS[method](...) for that"
        )
    check_method_options(target.method, target.options)
    if get_method(target.method).needs_calibration:
        if request.tokens is None:
            raise BadParameter(
                f"method {target.method!r} needs calibration tokens: give calibration_tokens(...), "
                'or use method "magnitude"'
            )
        check_tokens(model, request.tokens)
    layers = model_layers(model, request.ignored)
    # of all layers: a pattern that does not fit the last one is refused here
    shapes = {key: read_weight(layer).shape for key, layer in layers.items()}
    for key, layer in layers.items():
        check_divides(target.pattern, shapes[key][1])
        # on the meta device there are shapes only; such a weight is checked when it is read
        if not layer.weight.is_meta:
            check_weights(f"block {key.replace('.', ' ', 1)}", layer)
    check_sparsities(target, shapes)
    if request.batch is not None:
        check_whole("batch", request.batch)
    if check_whole("passes", request.passes) > 2:
        raise BadParameter(f"passes {request.passes!r} is not allowed: give 1 or 2")
    check_precision(request.precision, next(model.parameters()).dtype)
    if request.importance is not None:
        check_importance(request.importance, shapes)
    smallest = min(shapes, key=lambda key: math.prod(shapes[key]))
    try_target(target.of_layer(smallest), shapes[smallest], device_of(model))


def check_importance(
    importance: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Raise BadParameter unless each layer has a factor above 0 for each of its outputs.

    shapes: (d_out, d_in) of the layers by their names.
    """
    check_names("importance", importance, shapes)
    for name, factors in importance.items():
        rows = shapes[name][0]
        fits = isinstance(factors, Tensor) and factors.shape == (rows,)
        if fits:
            # in float32, in which they are used: there the smallest numbers of float64 are 0
            numbers = factors.float()
            fits = ((numbers > 0) & numbers.isfinite()).all()
        if not fits:
            raise BadParameter(
                f"importance of layer {name} {described(factors)}: give {rows} numbers above 0, "
                "one for each output"
            )


def check_sparsities(target: Target, layers: Collection[str]) -> None:
    """Raise BadParameter unless there is an allowed sparsity for each layer, by their names."""
    if not isinstance(target.sparsity, Mapping):
        target_sparsity(target.sparsity, target.pattern)
        return
    check_names("sparsity", target.sparsity, layers)
    for name, value in target.sparsity.items():
        with explain_errors(f"layer {name}"):
            target_sparsity(value, target.pattern)


def check_names(
    what: str, mapping: Mapping[str, object], layers: Collection[str]
) -> None:
    """Raise BadParameter unless a mapping has an entry for each layer, and no others."""
    unexpected = sorted(map(str, mapping.keys() - set(layers)))[:3]
    missing = sorted(set(layers) - mapping.keys())[:3]
    if unexpected or missing:
        raise BadParameter(
            f"{what} keys do not match the layers: unexpected [{join_names(unexpected)}], missing "
            f"[{join_names(missing)}]; give one value for all, or one for each of the "
            f"{len(layers)} layers, such as {next(iter(layers))!r}"
        )
