"""The bytes of a pruned model on disk, in formats that use its zeros and formats that do not."""

import copy
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow
import torch
from torch import Tensor, nn

from helpers.model.models import check_model, model_layers, read_weight, write_weight

FORMATS = ("float16", "mask + float16", "int8", "mask + int8")
LEVELS = 127  # of int8 on either side of zero


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (d_out, d_in) as int8 and a scale for each output, float32 (d_out, 1).

    The nearest multiples of the scale, which makes the largest of a row 127; zeros stay zeros.
    """
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo().tiny) / LEVELS
    return (weight / scale).round().to(torch.int8), scale


def rounded_to_int8(model: nn.Module) -> nn.Module:
    """A copy of a model whose layers hold what int8 leaves of their weights, to be evaluated."""
    check_model(model)
    rounded = copy.deepcopy(model)
    for layer in model_layers(rounded).values():
        integers, scale = to_int8(read_weight(layer))
        write_weight(layer, integers * scale)
    return rounded


def storage_report(model: nn.Module) -> pd.DataFrame:
    """The bytes that a model takes in several formats, and their share of dense float16.

    Layers are stored as the row's name says, all else in float16. "zstd" is what that compressor
    makes of the bytes; a mask takes a bit for each weight, and then only the kept values are
    stored. int8 has a float32 scale for each output.
    """
    check_model(model)
    layers = {
        layer.weight: read_weight(layer) for layer in model_layers(model).values()
    }
    sizes = Counter()
    # each parameter once, though a head may be the embedding
    for parameter in model.parameters():
        half = layers.get(parameter, parameter).detach().half().cpu()
        parts = dict.fromkeys(FORMATS, [half])
        if parameter in layers:
            parts = _formats(half)
        for kind, tensors in parts.items():
            for tensor in tensors:
                raw = tensor.numpy().tobytes()
                compressed = pyarrow.compress(raw, codec="zstd", asbytes=True)
                sizes[kind] += len(raw)
                sizes[f"{kind}, zstd"] += len(compressed)
    table = pd.DataFrame({"bytes": sizes})
    table["share"] = table["bytes"] / sizes["float16"]
    return table


def _formats(weight: Tensor) -> dict[str, list[Tensor]]:
    """The tensors that each format stores of a weight (d_out, d_in) in float16."""
    keep = weight != 0
    mask = torch.from_numpy(np.packbits(keep.numpy()))
    integers, scale = to_int8(weight)
    return {
        "float16": [weight],
        "mask + float16": [mask, weight[keep]],
        "int8": [integers, scale],
        "mask + int8": [mask, integers[keep], scale],
    }
