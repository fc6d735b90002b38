"""`prune_model`: prune all layers of a model in place.

All arguments are checked before a weight changes, and a parity gate compares the replayed blocks
with the model's own logits. The loop over blocks is in `helpers.model.block_loop`.
"""

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.device import check_precision
from helpers.errors import BadParameter, described, join_names
from helpers.model.block_loop import Loop, PruneReport, Team, explain_errors
from helpers.model.models import (
    check_in_memory,
    check_model,
    check_tokens,
    check_weights,
    device_of,
    model_layers,
    read_weight,
    state_of,
)
from helpers.options import check_switch, check_whole
from helpers.paper.gram import gram_of
from helpers.paper.layer import Sparsity, Target
from helpers.paper.masks import Pattern, check_divides, target_sparsity
from helpers.paper.methods import check_method_options, get_method
from helpers.progress import Progress, as_progress

TRIAL = 128  # outputs of the largest layer that is tried, and about as many inputs
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
            (`helpers.model.waiting_batches`).
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
    return checked_loop(
        model,
        tokens,
        method=method,
        options=options,
        sparsity=sparsity,
        pattern=pattern,
        passes=passes,
        precision=precision,
        batch=batch,
        progress=progress,
        importance=importance,
        ignore=ignore,
    ).run()


def checked_loop(
    model: nn.Module,
    tokens: Tensor | None,
    *,
    method: str,
    options: Mapping[str, Any],
    sparsity: Sparsity,
    pattern: str | Pattern,
    passes: int,
    precision: str,
    batch: int | None,
    progress: Progress | bool,
    ignore: Collection[str],
    importance: Mapping[str, Tensor] | None = None,
    team: Team | None = None,
) -> Loop:
    """The loop that prunes a model, for arguments of `prune_model`; nothing is changed yet.

    Raises for all that can be refused before a weight changes: an error in the last block would
    come after hours, and leave a model that is half pruned. Of weights on the meta device only the
    shapes are looked at.
    Raises BadParameter, UnsupportedModel, NonFinite, NotPositiveDefinite.
    """
    if "keep" in options:
        raise BadParameter(
            "prune_model takes no keep=, which fits one layer: call METHODS[method](...) for that"
        )
    check_method_options(method, options)
    if get_method(method).needs_calibration:
        if tokens is None:
            raise BadParameter(
                f"method {method!r} needs calibration tokens: give calibration_tokens(...), or use "
                'method "magnitude"'
            )
        check_tokens(model, tokens)
    pattern = Pattern.parse(pattern)
    ignored = ignored_layers(model, ignore)
    layers = model_layers(model, ignored)
    # of all layers: a pattern that does not fit the last one is refused here
    shapes = {key: read_weight(layer).shape for key, layer in layers.items()}
    for key, layer in layers.items():
        check_divides(pattern, shapes[key][1])
        # on the meta device there are shapes only; such a weight is checked when it is read
        if not layer.weight.is_meta:
            check_weights(f"block {key.replace('.', ' ', 1)}", layer)
    if batch is not None:
        check_whole("batch", batch)
    if check_whole("passes", passes) > 2:
        raise BadParameter(f"passes {passes!r} is not allowed: give 1 or 2")
    check_precision(precision, next(model.parameters()).dtype)
    if importance is not None:
        check_importance(importance, shapes)
    shares = sparsity_by_layer(sparsity, pattern, shapes)
    target = Target(method, shares, pattern, options)
    smallest = min(shapes, key=lambda key: math.prod(shapes[key]))
    try_target(target.of_layer(smallest), shapes[smallest], device_of(model))
    return Loop(
        model=model,
        tokens=tokens,
        target=target,
        ignored=ignored,
        passes=passes,
        precision=precision,
        batch=batch,
        progress=as_progress(progress),
        importance=importance,
        team=team or Team(),
    )


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


def sparsity_by_layer(
    sparsity: Sparsity, pattern: Pattern, layers: Collection[str]
) -> dict[str, float]:
    """The sparsity of each layer by its name, from one for all, one for each, or N:M alone.

    Raises BadParameter.
    """
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(layers, target_sparsity(sparsity, pattern))
    check_names("sparsity", sparsity, layers)
    shares = {}
    for name in layers:
        with explain_errors(f"layer {name}"):
            shares[name] = target_sparsity(sparsity[name], pattern)
    return shares


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


# --- the method is tried on a small random layer before a model is pruned with it ----------------


def random_layer(outputs: int, inputs: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A weight (outputs, inputs), and correlated inputs (tokens, inputs): the same every time."""
    source = torch.Generator().manual_seed(0)
    independent = torch.randn(tokens, inputs, generator=source)
    # real inputs are correlated, so these are mixed
    mixing = torch.randn(inputs, inputs, generator=source)
    weight = torch.randn(outputs, inputs, generator=source)
    return weight, independent @ mixing


def try_target(target: Target, shape: tuple[int, int], device: torch.device) -> None:
    """Solve a random layer with a target, so that the method itself refuses a bad option.

    shape: (d_out, d_in) of a layer; larger ones are tried with TRIAL outputs and about as many
    inputs. Raises what the method raises.
    """
    rows, width = (min(size, TRIAL) for size in shape)
    m = target.pattern.m
    if shape[1] > TRIAL and m:
        width = max(1, TRIAL // m) * m  # whole groups
    weight, inputs = random_layer(rows, width, 4 * width)
    method = get_method(target.method)
    gram = gram_of(inputs).to(device) if method.needs_calibration else None
    # a method may draw random numbers, and the caller's must not depend on this trial
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices):
        method(
            weight.to(device),
            gram,
            sparsity=target.sparsity,
            pattern=target.pattern,
            **target.options,
        )
