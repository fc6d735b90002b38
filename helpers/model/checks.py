"""What is checked before a model is pruned: an error in its last block would come after hours.

Names and shapes are enough for most of it, so weights may be on the meta device. At last the method
itself is tried on a small random layer, since only it knows which options it refuses.
"""

import contextlib
import fnmatch
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from helpers.errors import BadParameter, HelpersError, described, join_names
from helpers.model.block_grams import explain_out_of_memory
from helpers.model.models import (
    as_matrix,
    check_weights,
    model_layers,
    read_weight,
    weight_names,
)
from helpers.paper.gram import gram_of
from helpers.paper.layer import Sparsity, Target
from helpers.paper.masks import (
    Pattern,
    check_divides,
    check_keep,
    mask_hash,
    select,
    sparsity_of,
    target_sparsity,
)
from helpers.paper.methods import get_method

TRIAL = 128  # outputs of the largest layer that is tried, and about as many inputs


@contextlib.contextmanager
def explain_errors(where: str) -> Iterator[None]:
    """Put the name of a layer in front of an error that solving it raises.

    An error of memory becomes OutOfMemory, with advice.
    """
    advice = "use a device with more memory, or prune_checkpoint, which holds one block at a time"
    try:
        with explain_out_of_memory("solving this layer", advice):
            yield
    except HelpersError as error:
        # the same class, so that a caller can catch it as before
        raise type(error)(f"{where}: {error}") from error


def check_names(
    what: str, mapping: Mapping[str, object], layers: Collection[str]
) -> None:
    """Raise BadParameter unless a mapping has an entry for each layer, and no others."""
    unexpected = sorted(map(str, mapping.keys() - set(layers)))[:3]
    missing = sorted(set(layers) - mapping.keys())[:3]
    if unexpected or missing:
        raise BadParameter(
            f"{what} keys do not match the layers: unexpected [{join_names(unexpected)}], missing "
            f"[{join_names(missing)}]; give one for each of the {len(layers)} layers, such as "
            f"{next(iter(layers))!r}"
        )


def ignored_layers(model: nn.Module, ignore: Collection[str]) -> list[str]:
    """The layers whose `layer_key` matches one of the shell patterns in `ignore`.

    Raises BadParameter for a pattern that matches none, and if they match all.
    """
    if isinstance(ignore, str):  # each letter of which would be a pattern
        raise BadParameter(
            f"ignore {ignore!r} is text: give a list of patterns, such as [{ignore!r}]"
        )
    keys = model_layers(model)
    for pattern in ignore:
        if not fnmatch.filter(keys, pattern):
            part = f"*{pattern}*"
            hint = f"; did you mean {part!r}?" if fnmatch.filter(keys, part) else ""
            raise BadParameter(
                f"ignore {pattern!r} matches no layer of this model: give a list of patterns of "
                f"names such as {next(iter(keys))!r}{hint}"
            )
    ignored = [
        key for key in keys if any(fnmatch.fnmatch(key, pattern) for pattern in ignore)
    ]
    if len(ignored) == len(keys):
        raise BadParameter(
            f"ignore {ignore!r} leaves no layer to prune: give fewer patterns"
        )
    return ignored


def check_layers(layers: Mapping[str, nn.Module], pattern: Pattern) -> dict[str, tuple]:
    """The shape (d_out, d_in) of each layer by its name, once a pattern fits all of them.

    Raises BadParameter, and NonFinite for a weight in memory.
    """
    shapes = {key: read_weight(layer).shape for key, layer in layers.items()}
    for key, layer in layers.items():
        check_divides(pattern, shapes[key][1])
        # on the meta device there are shapes only; such a weight is checked when it is read
        if not layer.weight.is_meta:
            check_weights(f"block {key.replace('.', ' ', 1)}", layer)
    return shapes


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


# --- sparsity and masks ---------------------------------------------------------------------------


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


def check_masks(
    keep: Mapping[str, Tensor], target: Target, model: nn.Module, ignored: list[str]
) -> tuple[dict[str, float | None], str]:
    """The sparsity that each layer is to reach from its mask, and a hash of all masks.

    The sparsity is None where the mask is used as it is. keep: as for `prune_model`.
    Raises BadParameter, naming the layer.
    """
    if not isinstance(keep, Mapping):
        raise BadParameter(
            f"keep {described(keep)}: give a mask for each layer by the name of its weight, such "
            "as masks_of(model) does"
        )
    names = weight_names(model)
    layers = model_layers(model, ignored)
    # the masks of layers that stay dense may be there, and are not read
    spare = [names[key] for key in ignored if names[key] in keep]
    check_names("keep", keep, [*(names[key] for key in layers), *spare])
    shares = target.sparsity
    if not isinstance(shares, Mapping):
        shares = dict.fromkeys(layers, shares)
    check_names("sparsity", shares, layers)
    budget = target.options.get("budget", get_method(target.method).budget)
    found = {}
    hashes = {}
    for key, layer in layers.items():
        with explain_errors(f"layer {key}"):
            mask = keep[names[key]]
            if isinstance(mask, Tensor) and mask.ndim == 2:
                mask = as_matrix(layer, mask)
            shape = read_weight(layer).shape
            share = check_keep(mask, shape, shares[key], target.pattern, budget)
            found[key] = share if share > sparsity_of(mask) else None
            hashes[key] = mask_hash(mask)
    return found, hash_of_masks(hashes)


def hash_of_masks(hashes: Mapping[str, str]) -> str:
    """A hash of the masks of a model, from the `mask_hash` of each layer in its order."""
    lines = [f"{key} {each}\n" for key, each in hashes.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


# --- the method is tried on a small random layer before a model is pruned with it ----------------


def random_layer(outputs: int, inputs: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A weight (outputs, inputs), and correlated inputs (tokens, inputs): the same every time."""
    source = torch.Generator().manual_seed(0)
    independent = torch.randn(tokens, inputs, generator=source)
    # real inputs are correlated, so these are mixed
    mixing = torch.randn(inputs, inputs, generator=source)
    weight = torch.randn(outputs, inputs, generator=source)
    return weight, independent @ mixing


def try_target(
    target: Target,
    shapes: Mapping[str, tuple[int, int]],
    device: torch.device,
    *,
    masked: bool = False,
) -> None:
    """Solve a random layer with a target, so that the method itself refuses a bad option.

    shapes: (d_out, d_in) of the layers by their names. The smallest is tried, if it is large with
    TRIAL outputs and about as many inputs. masked: with a mask; where some layers are to reach more
    zeros than their masks have, the smallest of these. Raises what the method raises.
    """
    growing = [key for key in shapes if masked and target.sparsity[key] is not None]
    smallest = min(growing or shapes, key=lambda key: math.prod(shapes[key]))
    shape = shapes[smallest]
    target = target.of_layer(smallest)
    rows, width = (min(size, TRIAL) for size in shape)
    m = target.pattern.m
    if shape[1] > TRIAL and m:
        width = max(1, TRIAL // m) * m  # whole groups
    weight, inputs = random_layer(rows, width, 4 * width)
    keep = None
    score = weight.abs().flip(0)  # of a mask that no method would choose by itself
    if growing:
        # in each output, so that it leaves room for any budget
        keep = select(score, target.sparsity / 2, "unstructured", "output")
    elif masked:
        share = target_sparsity(None if m else 0.5, target.pattern)
        keep = select(score, share, target.pattern)
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
            keep=None if keep is None else keep.to(device),
            **target.options,
        )
