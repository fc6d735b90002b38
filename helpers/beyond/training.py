"""Training on a fixed sparsity pattern: which weights may change, and at what rate.

A pruned weight stays exactly zero: its gradient is masked, and the mask is applied again after each
step. Weights are kept in float32; only the products may be done in bfloat16, see `products` in
`helpers.device`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from helpers.errors import BadParameter
from helpers.model.models import check_in_memory, check_model, model_layers

PARTS = ("all", "norms")
# Adam's: the second moment is a mean over the last 50 steps, since there are few steps in all
DECAY = (0.9, 0.98)
WARM_UP = 0.15  # of all steps


def keep_masks(model: nn.Module) -> KeptZeros:
    """Keep the sparsity pattern fixed during training, for any torch optimiser.

        handle = keep_masks(model)     # until handle.remove()
        trainer.train()

        with keep_masks(model):        # until the end of the block
            trainer.train()

    The zeros of the pruned layers stay zeros, with the Trainer of transformers too, in this
    process. No parameter is replaced, so nothing has to be undone before the model is saved.
    Memory: 1 byte for each weight. Raises BadParameter if no weight is zero, or like `check_model`;
    UnsupportedModel like `check_in_memory`.
    """
    check_model(model)
    check_in_memory(model)
    weights = [layer.weight for layer in model_layers(model).values()]
    if all(weight.all() for weight in weights):
        raise BadParameter("no weight of this model's layers is zero: prune it first")
    return KeptZeros(weights)


class KeptZeros(contextlib.ExitStack):
    """Keeps the zeros of these weights at zero until `remove` is called or a `with` ends."""

    remove = contextlib.ExitStack.close  # as torch's own handles call it

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        # Weakly: all optimisers share a list of hooks, which must not keep a model in memory
        keeps = WeakTensorKeyDictionary()

        # else they would count in the norm to which gradients are clipped
        def mask_gradient(weight: nn.Parameter):
            # the model may be on another device since
            weight.grad.mul_(keeps[weight].to(weight.device))

        # Most optimisers leave a weight at 0 whose gradient is 0. One that mixes the entries of a
        # matrix, such as Muon, does not
        @torch.no_grad()
        def mask_weights(optimiser: torch.optim.Optimizer, *_: object):
            for group in optimiser.param_groups:
                for weight in group["params"]:
                    if weight in keeps:
                        weight.mul_(keeps[weight].to(weight.device))

        self.callback(register_optimizer_step_post_hook(mask_weights).remove)
        for weight in weights:
            keeps[weight] = weight.detach() != 0
            if weight.requires_grad:
                self.callback(
                    weight.register_post_accumulate_grad_hook(mask_gradient).remove
                )


@contextlib.contextmanager
def trained(
    model: nn.Module, parts: str = "all"
) -> Iterator[tuple[list[nn.Parameter], list[nn.Parameter]]]:
    """Context manager: make a model's pruned layers and vectors trainable, or the vectors alone.

    Yields the weights of the layers, as their modules store them, and the vectors: the parameters
    with one dimension (norms and biases). Everything else, such as the embedding, gets no gradient.
    Masks are read off the weights: what is zero stays zero. parts: one of PARTS. Raises
    BadParameter unless the weights are float32.
    """
    check_float32(model)
    layers = model_layers(model) if parts == "all" else {}
    weights = [layer.weight for layer in layers.values()]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    with gradients_of(model, [*weights, *vectors]), KeptZeros(weights):
        yield weights, vectors


def check_float32(model: nn.Module) -> None:
    """Raise BadParameter unless the weights that training may change are float32."""
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            raise BadParameter(
                f"weights are {parameter.dtype}, and small steps would round to nothing: load the "
                'model with dtype="float32"; products may still be bfloat16'
            )


@contextlib.contextmanager
def gradients_of(model: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Context manager: let these parameters of a model get gradients, and no others.

    The caller's gradients and flags are restored afterwards.
    """
    parameters = list(model.parameters())
    before = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    try:
        # a gradient of the caller's would be added to
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, (flag, gradient) in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def rate_at(step: int, steps: int) -> float:
    """The share of the full learning rate in step 1 … steps: a linear warm-up, then a cosine."""
    rising = max(1, round(WARM_UP * steps))
    if step <= rising:
        return step / rising
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising + 1))) / 2
