"""What a method has to do beyond an answer of the right form, tried out on a small layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.gram import gram_of
from helpers.masks import Pattern
from helpers.methods import get_method

TRIAL = 128  # outputs, and about as many inputs, of the layer on which `prune_model` tries options


def random_layer(outputs: int, inputs: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A weight (outputs, inputs), and correlated inputs (tokens, inputs): the same every time."""
    source = torch.Generator().manual_seed(0)
    # the second factor correlates the inputs, as real ones are
    given = torch.randn(tokens, inputs, generator=source) @ torch.randn(
        inputs, inputs, generator=source
    )
    return torch.randn(outputs, inputs, generator=source), given


def try_method(
    name: str, arguments: dict[str, Any], shape: tuple[int, int], device: torch.device
) -> None:
    """Solve a random layer of that shape, or of TRIAL outputs and about as many inputs if it is
    larger, so that a bad value of an option is refused by the method before a model changes.
    """
    rows, width = (min(size, TRIAL) for size in shape)
    if shape[1] > TRIAL and (m := Pattern.parse(arguments["pattern"]).m):
        width = max(1, TRIAL // m) * m  # whole groups
    weight, inputs = random_layer(rows, width, 4 * width)
    method = get_method(name)
    gram = gram_of(inputs).to(device) if method.needs_calibration else None
    # a method may draw random numbers, and the caller's must not depend on this trial
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        method(weight.to(device), gram, **arguments)
