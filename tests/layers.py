"""Layers to solve, and what is known of them in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def layer(
    d_out: int = 12, d_in: int = 32, tokens: int = 150, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Correlated inputs (tokens, d_in) of unequal scale, and a weight (d_out, d_in)."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.eye(d_in) + torch.randn(d_in, d_in, generator=source) / math.sqrt(d_in)
    scales = torch.logspace(-0.5, 0.5, d_in)[torch.randperm(d_in, generator=source)]
    inputs = torch.randn(tokens, d_in, generator=source) @ mixing * scales
    return inputs, torch.randn(d_out, d_in, generator=source)


def random_keep(shape: torch.Size, sparsity: float = 0.5, seed: int = 3) -> Tensor:
    """A mask that keeps each weight with probability 1 − sparsity."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= sparsity


def outputs_error(inputs: Tensor, weight: Tensor, new: Tensor) -> float:
    """‖XW − XŴ‖²/‖XW‖² from the outputs themselves."""
    dense, pruned = (inputs.double() @ w.double().T for w in (weight, new))
    return ((pruned - dense).norm() ** 2 / dense.norm() ** 2).item()
