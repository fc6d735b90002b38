"""The method as the published code computes it, written plainly from the paper's description.

`prune_model` is compared with it. It is slow where the plain way is slow: a gram (Gram matrix) for
every layer even if q, k and v read one input, an inverse for every layer, a sort of the whole
matrix in each mask step, a new tensor for each intermediate result, and one sequence at a time.
Matrices are laid out as the paper writes them, (d_in, d_out).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from helpers.model.blocks import Call, embed, record_calls, run_block
from helpers.model.models import find_blocks, find_layers, read_weight, write_weight

DAMPING, RHO = 0.1, 1.0

# done(layer's name, weight before, weight after, gram); weights are (d_out, d_in)
Done = Callable[[str, Tensor, Tensor, Tensor], None]


def solve(
    weight: Tensor,
    gram: Tensor,
    sparsity: float,
    *,
    iterations: int = 20,
    mask_steps: int = 15,
) -> Tensor:
    """Prune one layer, from its weight (d_out, d_in) and XᵀX; the new weight (d_out, d_in).

    There must be no dead input.
    """
    norms = torch.sqrt(torch.diag(gram))
    scaled = gram / (norms[:, None] * norms[None, :])
    eye = torch.eye(len(gram), device=gram.device)
    scaled = scaled + DAMPING * torch.diag(scaled).mean() * eye
    inverse = torch.inverse(scaled + RHO * eye)
    W = weight.float().T * norms[:, None]
    target = scaled @ W
    U = torch.zeros_like(W)
    for iteration in range(1, iterations + 1):
        if iteration <= mask_steps:
            left = 1 - iteration / mask_steps
            mask = largest(W + U, sparsity - sparsity * left**3)
        Z = (W + U) * mask
        U = U + W - Z
        W = inverse @ (target + RHO * (Z - U))
    Z = (W + U) * mask
    return (Z / norms[:, None]).T


def largest(scores: Tensor, sparsity: float) -> Tensor:
    """Select by sorting: 1 where |score| is among the largest, 0 for round(sparsity · n) others."""
    sizes = torch.abs(scores)
    ordered = torch.sort(sizes.flatten())[0]
    zeros = round(sparsity * len(ordered))
    if zeros == 0:
        return torch.ones_like(sizes)
    return (sizes > ordered[zeros - 1]).float()


def prune(
    model: nn.Module, tokens: Tensor, sparsity: float, done: Done | None = None
) -> None:
    """Prune a model in place, block by block, with tokens (sequences, length).

    A block reads one sequence at a time: once to collect grams, and again when it is pruned.
    """
    calls = record_calls(model, tokens[:1])
    inputs = [embed(model, row[None], 1) for row in tokens]
    for index, (block, call) in enumerate(zip(find_blocks(model), calls, strict=True)):
        grams = collect(block, inputs, call)
        for name, layer in find_layers(block).items():
            weight = read_weight(layer)
            new = solve(weight, grams[name], sparsity)
            if done:
                done(f"block {index} {name}", weight.clone(), new, grams[name])
            write_weight(layer, new)
        inputs = [run_block(block, sequence, call) for sequence in inputs]


def collect(block: nn.Module, inputs: list[Tensor], call: Call) -> dict[str, Tensor]:
    """Collect XᵀX of each layer's inputs by hooks, while the block runs over the sequences."""
    grams: dict[str, Tensor] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1]).float()
            grams[name] = grams.get(name, 0) + rows.T @ rows

        return add

    layers = find_layers(block)
    handles = [
        layer.register_forward_pre_hook(hook_for(n)) for n, layer in layers.items()
    ]
    for sequence in inputs:
        run_block(block, sequence, call)
    for handle in handles:
        handle.remove()
    return grams
