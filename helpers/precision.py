"""In which precision a model's products are done: in float32, or faster in bfloat16 where they are.

Weights stay in float32, and so do the stream, the grams and all that a method does.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator

import torch

from helpers.device import synchronise
from helpers.errors import BadParameter, check_choice

PRECISIONS = ("auto", "float32", "bfloat16")
PROBE = (512, 576, 1536)  # a product (tokens, d_in) x (d_in, d_out), timed in both precisions
PROBE_REPEATS = 8


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, matrix products are done in a precision of PRECISIONS.

    Raises BadParameter.
    """
    lower = chosen_precision(precision, device) == "bfloat16"
    # without the cache, whose copies of the weights in bfloat16 would outlive a step: all later
    # steps would see the weights of the first
    with torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False):
        yield


def chosen_precision(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16": the one given, or for "auto" the faster of the two on a device.

    Raises BadParameter.
    """
    if check_choice("precision", precision, PRECISIONS) == "auto":
        return "bfloat16" if bfloat16_is_faster(device) else "float32"
    return precision


def precision_for(own: torch.dtype, precision: str, device: torch.device) -> str:
    """`chosen_precision` for a model whose weights are of the type `own`.

    In half precision it has its own already, "float32" then stands for it, and BadParameter is
    raised for "bfloat16".
    """
    if own == torch.float32:
        return chosen_precision(precision, device)
    if check_choice("precision", precision, PRECISIONS) == "bfloat16":
        raise BadParameter(
            f"precision 'bfloat16' is for a model in float32, and this one is {own}: leave it out"
        )
    return "float32"


@functools.cache  # so that all steps of a process take the same
def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether products in bfloat16 take less than 0.8 of the time of float32 here.

    Timed and not looked up: of two processors that both list avx512_bf16, one was 1.6 times faster
    with it and the other 1.6 times slower.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    rows, width, outputs = PROBE

    def seconds(dtype: torch.dtype) -> float:
        inputs = torch.ones(rows, width, dtype=dtype, device=device)
        weight = torch.ones(outputs, width, dtype=dtype, device=device)
        best = math.inf
        for _ in range(PROBE_REPEATS):  # the first also pays for what is set up once
            started = time.perf_counter()
            inputs @ weight.T
            synchronise(device)
            best = min(best, time.perf_counter() - started)
        return best

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


def exactly(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, products are done in the precision of their factors, whatever holds outside."""
    return torch.autocast(device.type, enabled=False)
