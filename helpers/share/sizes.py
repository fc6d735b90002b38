"""What storing a pruned model takes, with formats that use its zeros and formats that do not."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pyarrow
import torch
from torch import Tensor, nn

from helpers.models import check_model, model_layers, read_weight, write_weight

LEVELS = 127  # of int8 on either side of zero


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (d_out, d_in) as int8 and a scale for each output, float32 (d_out, 1).

    The nearest multiples of the scale, which makes the largest of a row 127; zeros stay zeros.
    """
    scale = (
        weight.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo().tiny)
        / LEVELS
    )
    return (weight.float() / scale).round().to(torch.int8), scale


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

    Layers are stored as the row's name says; whatever is not a layer in float16 always. "zstd" is
    what that compressor makes of the bytes; a mask takes a bit for each weight, and then only the
    kept values are stored. int8 has a float32 scale for each output.
    """
    check_model(model)
    layers = {
        layer.weight: read_weight(layer) for layer in model_layers(model).values()
    }
    formats = ("float16", "mask + float16", "int8", "mask + int8")
    sizes = {name: 0 for kind in formats for name in (kind, f"{kind}, zstd")}
    for (
        parameter
    ) in model.parameters():  # each once, though a head may be the embedding
        half = parameter.detach().half().cpu()
        parts = {kind: [half] for kind in formats}
        if parameter in layers:
            half = (
                layers[parameter].detach().half().cpu()
            )  # (d_out, d_in), however it is stored
            keep = half != 0
            mask = torch.from_numpy(np.packbits(keep.numpy()))
            integers, scale = to_int8(half)
            parts = {
                "float16": [half],
                "mask + float16": [mask, half[keep]],
                "int8": [integers, scale],
                "mask + int8": [mask, integers[keep], scale],
            }
        for kind, tensors in parts.items():
            for tensor in tensors:
                raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                sizes[kind] += len(raw)
                sizes[f"{kind}, zstd"] += len(
                    pyarrow.compress(raw, codec="zstd", asbytes=True)
                )
    table = pd.DataFrame({"bytes": sizes})
    return table.assign(share=table["bytes"] / table["bytes"].iloc[0])
