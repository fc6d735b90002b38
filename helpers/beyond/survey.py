"""What `helpers.beyond.allocate` asks of a dense model, which is left bit for bit as it was.

The norms of all layers' inputs, the divergence of the model with some layers pruned for a moment,
and the gradients of layers one at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from helpers.beyond.training import gradients_of
from helpers.capture import Progress, capture
from helpers.device import all_finite
from helpers.errors import NonFinite, UnsupportedModel
from helpers.masks import top_k
from helpers.models import (
    check_weights,
    device_of,
    find_blocks,
    layer_key,
    model_layers,
    read_weight,
    write_weight,
)
from helpers.replay import best_batch


def layers_of(model: nn.Module) -> tuple[dict[str, nn.Module], list[list[str]]]:
    """The model's layers by `layer_key`, and the keys of each block.

    Raises UnsupportedModel, NonFinite.
    """
    layers = model_layers(model)
    blocks: list[list[str]] = [[] for _ in find_blocks(model)]
    for key, layer in layers.items():
        index, _, name = key.partition(".")
        check_weights(f"block {index} {name}", layer)
        blocks[int(index)].append(key)
    return layers, blocks


@dataclass(frozen=True)
class Survey:
    """What a pass of the dense model over the text shows of its layers, by `layer_key`.

    blocks: the keys of each block. norms: ‖x_j‖ of a layer's inputs over all tokens, float32
    (d_in,). inputs: which input of its block a layer reads, from 0 in the order in which they are
    first read; in Llama 0 for q, k and v, 1 for o, 2 for gate and up, 3 for down. slopes: squared,
    of the loss by each output, float32 (d_out,), where a rule has asked for gradients.
    """

    model: nn.Module
    tokens: Tensor
    layers: dict[str, nn.Module]
    blocks: list[list[str]]
    norms: dict[str, Tensor]
    inputs: dict[str, int]
    progress: Progress
    slopes: dict[str, Tensor] = field(default_factory=dict)

    def score(self, key: str) -> Tensor:
        """|W|·‖x‖, float32 (d_out, d_in): where the methods' first mask comes from."""
        return read_weight(self.layers[key]).float().abs() * self.norms[key]

    def size(self, keys: Sequence[str]) -> int:
        """The number of weights in some layers."""
        return sum(self.layers[key].weight.numel() for key in keys)


def survey(
    model: nn.Module,
    tokens: Tensor,
    layers: dict[str, nn.Module],
    blocks: list[list[str]],
    progress: Progress,
) -> Survey:
    """Run the model over the text, and see what its layers are given."""
    squares: dict[str, Tensor] = {}
    inputs: dict[str, int] = {}

    def see(key: str, given: Tensor) -> None:
        # float32 first: in float16 the square of 256 is infinite already
        if not given.numel():  # an expert that no token of this batch has reached
            return
        added = given.detach().flatten(0, -2).float().square().sum(0)
        squares[key] = squares[key] + added if key in squares else added

    batches = tokens.split(best_batch(device_of(model), tokens.shape[1]))
    with watched_inputs(layers, see):
        for done, rows in enumerate(batches, 1):
            # ends after the last block: the logits are not needed
            for index, call in enumerate(capture(model, rows, head=False).calls):
                for number, group in enumerate(call.inputs):
                    for name in group:
                        inputs.setdefault(layer_key(index, name), number)
            progress(done, len(batches), "calibration text")
    for key in layers:
        if key not in squares:
            raise UnsupportedModel(
                f"layer {key} saw no calibration tokens: if it is an expert, give more calibration "
                "text; otherwise choose another model"
            )
        if not all_finite(squares[key]):
            raise NonFinite(
                f"the inputs of layer {key} hold NaN or infinity: check the weights of the layers "
                "before it, or use dtype float32"
            )
    norms = {key: squares[key].sqrt() for key in layers}
    return Survey(model, tokens, layers, blocks, norms, inputs, progress)


@contextlib.contextmanager
def watched_inputs(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, a layer that runs calls see(key, its input) first."""
    with contextlib.ExitStack() as stack:
        for key, layer in layers.items():
            look = lambda _layer, args, key=key: see(key, args[0])  # noqa: E731
            stack.enter_context(layer.register_forward_pre_hook(look))
        yield


@contextlib.contextmanager
def pruned_meanwhile(seen: Survey, keys: Sequence[str], sparsity: float) -> Iterator[None]:
    """Inside, some layers lack the weights of smallest score; afterwards every bit is as before."""
    before = {key: read_weight(seen.layers[key]).clone() for key in keys}
    try:
        for key in keys:
            write_weight(seen.layers[key], before[key] * top_k(seen.score(key), sparsity))
        yield
    finally:
        for key in keys:
            write_weight(seen.layers[key], before[key])


@contextlib.contextmanager
def gradients(
    model: nn.Module, weights: dict[str, nn.Parameter], add: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, a backward pass calls add(key, parameter) as soon as a weight's gradient is there.

    No other parameter gets one. What the caller has set, gradients too, is there again afterwards.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(gradients_of(model, list(weights.values())))
        for key, weight in weights.items():
            hook = lambda parameter, key=key: add(key, parameter)  # noqa: E731
            stack.enter_context(weight.register_post_accumulate_grad_hook(hook))
        stack.enter_context(torch.enable_grad())
        yield
