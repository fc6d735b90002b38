"""Layers to solve, their error in float64, and masks by sorting in numpy."""

import math

import numpy as np
import torch
from torch import Tensor


def layer(
    d_out: int = 12, d_in: int = 32, tokens: int = 150, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Correlated inputs (tokens, d_in) of unequal scale, and a weight (d_out, d_in)."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.eye(d_in) + torch.randn(d_in, d_in, generator=source) / math.sqrt(
        d_in
    )
    scales = torch.logspace(-0.5, 0.5, d_in)[torch.randperm(d_in, generator=source)]
    inputs = torch.randn(tokens, d_in, generator=source) @ mixing * scales
    return inputs, torch.randn(d_out, d_in, generator=source)


def random_keep(shape: torch.Size, sparsity: float = 0.5, seed: int = 3) -> Tensor:
    """A mask that keeps each weight with probability 1 − sparsity."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= sparsity


def drawn(keep: Tensor) -> str:
    """A mask as text, "x" where it keeps, a word for each output."""
    return " ".join("".join(".x"[kept] for kept in row) for row in keep.int())


def outputs_error(inputs: Tensor, weight: Tensor, new: Tensor) -> float:
    """‖XW − XŴ‖²/‖XW‖² from the outputs themselves."""
    dense, pruned = (inputs.double() @ w.double().T for w in (weight, new))
    return ((pruned - dense).norm() ** 2 / dense.norm() ** 2).item()


def objective(
    weight: Tensor, new: Tensor, gram: Tensor, damping: float = 0.0
) -> Tensor:
    """‖X(W − Ŵ)‖² + damping·‖n ⊙ (W − Ŵ)‖² in float64, from a gram without dead inputs."""
    gram = gram.double()
    change = weight.double() - new.double()
    return torch.trace(
        change @ (gram + damping * torch.diag(gram.diagonal())) @ change.T
    )


def relative_objective(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """The objective as a share of that of no weights at all."""
    return (objective(weight, new, gram) / objective(weight, 0 * weight, gram)).item()


def largest(score: np.ndarray, sparsity: float) -> np.ndarray:
    """The mask without the smallest scores; of equal ones the earlier stay."""
    order = np.argsort(-score, axis=None, kind="stable")
    keep = np.zeros(score.size, dtype=bool)
    keep[order[: score.size - round(sparsity * score.size)]] = True
    return keep.reshape(score.shape)


def groups_of(pattern: str) -> tuple[int, int] | None:
    """N and M of "N:M", None of "unstructured"."""
    return tuple(map(int, pattern.split(":"))) if ":" in pattern else None


def masked(
    score: np.ndarray, sparsity: float, pattern: str, budget: str = "matrix"
) -> np.ndarray:
    """The mask of scores (d_out, d_in) on the way to N of M neighbours, or unstructured."""
    if groups := groups_of(pattern):
        n, m = groups
        members = score.copy().reshape(-1, m)
        top = np.argsort(-members, axis=1, kind="stable")[:, :n]
        np.put_along_axis(members, top, np.inf, axis=1)
        score = members.reshape(score.shape)
    if budget == "output":
        return np.stack([largest(row, sparsity) for row in score])
    return largest(score, sparsity)
