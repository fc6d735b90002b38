"""Autocast for forward passes: a model's matmuls in float32 or in bfloat16.

Weights stay in float32, and so do the hidden states between blocks, the grams and the solvers.
"""

import contextlib

import torch

from helpers.errors import BadParameter
from helpers.options import check_choice

PRECISIONS = ("float32", "bfloat16")


def products(
    precision: str, device: torch.device
) -> contextlib.AbstractContextManager[torch.autocast]:
    """Context manager: compute matmuls in one of PRECISIONS, even if the caller has set another.

    "float32" is the precision of the factors, without autocast.
    """
    # without the cache, whose copies of the weights in bfloat16 would outlive a step: all later
    # steps would see the weights of the first
    lower = precision == "bfloat16"
    return torch.autocast(
        device.type, torch.bfloat16, enabled=lower, cache_enabled=False
    )


def check_precision(precision: str, dtype: torch.dtype) -> None:
    """Raise BadParameter unless weights of this dtype can be used in this precision."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "bfloat16" and dtype != torch.float32:
        raise BadParameter(
            f"precision 'bfloat16' is for a model in float32, and this one is {dtype}: leave it out"
        )
