"""What the steps that train a pruned model share: which weights may move, and at what rate.

A pruned weight stays exactly zero: its gradient is masked, and the mask is applied again after each
step. Weights are kept in float32; only the products may be done in bfloat16, and only where a probe
finds that this machine does them faster.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers.device import synchronise
from helpers.errors import BadParameter, check_choice
from helpers.models import model_layers

PRECISIONS = ("auto", "float32", "bfloat16")
PARTS = ("all", "norms")
# Adam's: the second moment is a mean over the last 50 steps, since there are few steps in all
DECAY = (0.9, 0.98)
WARM_UP = 0.15  # of all steps
PROBE = (512, 576, 1536)  # a product (tokens, d_in) x (d_in, d_out), timed in both precisions
PROBE_REPEATS = 8


@contextlib.contextmanager
def keep_masks(model: nn.Module) -> Iterator[None]:
    """Inside, the zeros of a pruned model's layers stay zeros, whatever trains it.

        with keep_masks(model):
            trainer.train()

    For any optimiser of torch, and so for the Trainer of transformers, in this process. Weights,
    gradients and parameters stay where they were: nothing has to be undone before the model is
    saved. Memory: 1 byte for each weight. Raises UnsupportedModel.
    """
    with zeros_kept([layer.weight for layer in model_layers(model).values()]):
        yield


@contextlib.contextmanager
def zeros_kept(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, what is zero in these weights stays zero."""
    keeps = {weight: weight.detach() != 0 for weight in weights}

    # else they would count in the norm to which gradients are clipped
    def mask_gradient(weight: nn.Parameter) -> None:
        weight.grad.mul_(keeps[weight])

    # Most optimisers leave a weight at 0 whose gradient is 0. One that mixes the entries of a
    # matrix, such as Muon, does not
    @torch.no_grad()
    def mask_weights(optimiser: torch.optim.Optimizer, *_: object) -> None:
        for group in optimiser.param_groups:
            for weight in group["params"]:
                if weight in keeps:
                    weight.mul_(keeps[weight])

    with contextlib.ExitStack() as stack:
        for weight in keeps:
            if weight.requires_grad:
                hook = weight.register_post_accumulate_grad_hook(mask_gradient)
                stack.callback(hook.remove)
        stack.callback(register_optimizer_step_post_hook(mask_weights).remove)
        yield


@dataclass
class Trained:
    """The parameters that training may change.

    weights: those of pruned layers by name, as their modules store them; vectors: the parameters
    with one dimension (norms and biases).
    """

    weights: dict[str, nn.Parameter]
    vectors: list[nn.Parameter]

    def snapshot(self) -> list[Tensor]:
        """A copy of the values, for `restore`."""
        return [p.detach().clone() for p in (*self.weights.values(), *self.vectors)]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        """Put the values of a snapshot back."""
        for parameter, value in zip((*self.weights.values(), *self.vectors), snapshot, strict=True):
            parameter.copy_(value)


@contextlib.contextmanager
def trained(part: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[Trained]:
    """Inside, `layers` and the vectors of `part`, a block or a model, can be trained.

    Everything else, such as the embedding, gets no gradient. Masks are read off the weights: what
    is zero stays zero. Raises BadParameter unless the weights are float32.
    """
    # by identity: a parameter may be shared by two modules
    chosen = {name: layer.weight for name, layer in layers.items()}
    vectors = [p for p in part.parameters() if p.ndim == 1]
    check_float32(part, layers)
    weights = list(chosen.values())
    with gradients_of(part, [*weights, *vectors]), zeros_kept(weights):
        yield Trained(chosen, vectors)


def check_float32(part: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise BadParameter unless what `trained` may change is float32."""
    vectors = (p for p in part.parameters() if p.ndim == 1)
    for parameter in (*(layer.weight for layer in layers.values()), *vectors):
        if parameter.dtype != torch.float32:
            raise BadParameter(
                f"weights are {parameter.dtype}, and small steps would round to nothing: load the "
                'model with dtype="float32"; products may still be bfloat16'
            )


@contextlib.contextmanager
def gradients_of(part: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters of a module get gradients and no others.

    What the caller has set, gradients too, is there again afterwards.
    """
    parameters = list(part.parameters())
    before = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            # a gradient of the caller's would be added to
            parameter.grad = None
            parameter.requires_grad_(False)
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


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[str]:
    """Inside, matrix products are done in a precision of PRECISIONS; yields the one chosen.

    Raises BadParameter.
    """
    precision = chosen_precision(precision, device)
    lower = precision == "bfloat16"
    # without the cache, whose copies of the weights in bfloat16 would outlive a step: all later
    # steps would see the weights of the first
    with torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False):
        yield precision


def chosen_precision(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16": the one given, or for "auto" the faster of the two on a device.

    Raises BadParameter.
    """
    if check_choice("precision", precision, PRECISIONS) == "auto":
        return "bfloat16" if bfloat16_is_faster(device) else "float32"
    return precision


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
