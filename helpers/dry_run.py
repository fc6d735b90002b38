"""Try a target on a small random layer before a model is pruned with it."""

import torch
from torch import Tensor

from helpers.gram import gram_of
from helpers.layer import Target
from helpers.methods import get_method

TRIAL = 128  # outputs of the largest layer that is tried, and about as many inputs


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
