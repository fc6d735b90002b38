"""In which precision a model's products are done: in float32, or in bfloat16 when asked for.

Weights stay in float32, and so do the stream, the grams and all that a method does.
"""

from __future__ import annotations

import contextlib

import torch

from helpers.errors import BadParameter
from helpers.options import check_choice

PRECISIONS = ("float32", "bfloat16")


def products(
    precision: str, device: torch.device
) -> contextlib.AbstractContextManager[torch.autocast]:
    """Inside, matrix products are done in a precision of PRECISIONS."""
    # without the cache, whose copies of the weights in bfloat16 would outlive a step: all later
    # steps would see the weights of the first
    lower = precision == "bfloat16"
    return torch.autocast(
        device.type, torch.bfloat16, enabled=lower, cache_enabled=False
    )


def check_precision(precision: str, dtype: torch.dtype) -> None:
    """Raise BadParameter unless a model whose weights have that type can have that precision."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "bfloat16" and dtype != torch.float32:
        raise BadParameter(
            f"precision 'bfloat16' is for a model in float32, and this one is {dtype}: leave it out"
        )


def exactly(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, products are done in the precision of their factors, whatever holds outside."""
    return torch.autocast(device.type, enabled=False)
