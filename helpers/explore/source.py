"""Where the explorers get a layer's weight and gram from: given, or collected in a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from helpers.admm import Solution, admm_grad
from helpers.capture import Progress, check_tokens, eval_mode
from helpers.data.corpora import calibration_tokens
from helpers.errors import BadParameter, NonFinite, check_whole
from helpers.explore.controls import choice
from helpers.gram import check_gram
from helpers.models import (
    WEIGHT_READER,
    device_of,
    find_blocks,
    find_layers,
    load_model,
    read_weight,
)
from helpers.replay import Replay, best_batch

# a layer is solved quickly enough to follow a slider up to 1152 outputs of 576 inputs; of a layer
# with more inputs, as many outputs as make a product of that cost
PRODUCT = 2 * 576**3
LEAST_OUTPUTS = 32
STREAM_BYTES = 1 << 29  # of streams entering blocks that are kept; the last one always is
SEQUENCES, LENGTH = 8, 512  # of calibration text where none is given
SCHEDULES = [
    ("one-shot mask (ADMM1)", "one-shot"),
    ("gradual mask, as in the paper", "paper"),
    ("gradual mask, as in the released code", "released"),
]


@dataclass(frozen=True)
class Solve:
    """A layer solved by ADMM, with error, mask and its sparsity after each iteration."""

    solution: Solution
    errors: list[float]
    keeps: list[Tensor]
    sparsities: list[float]


class LayerOutputs:
    """The outputs of a layer that an explorer solves, with the gram of the layer's inputs.

    weight: (outputs, d_in), float32; gram: (d_in, d_in); title: the layer's name, and how many of
    its outputs these are if not all. Only so many are taken as `outputs` says, by default as
    `PRODUCT` allows. They are solved as if they were the whole layer: a mask has one budget for
    all of a matrix, so the masks are not those of the whole layer.
    """

    def __init__(self, name: str, weight: Tensor, gram: Tensor, outputs: int | None) -> None:
        total, width = weight.shape
        if outputs is None:
            outputs = max(LEAST_OUTPUTS, PRODUCT // width**2)
        self.weight = weight[:outputs].detach().float().clone()
        self.gram = gram
        self.sizes = self._energy(self.weight)  # ‖Xw‖² of each output
        count = len(self.weight)
        part = f"first {count} of {total} outputs, solved alone" if count < total else ""
        self.title = ", ".join(filter(None, [name, part]))

    def solve(
        self, check: Callable[[], None], *, schedule: str, mask_steps: int, **settings: Any
    ) -> Solve:
        """ADMM with a schedule of `SCHEDULES`; "one-shot" takes no mask steps.

        check() is called after each iteration and may raise to stop; settings: of `admm_grad`.
        """
        errors: list[float] = []
        keeps: list[Tensor] = []
        sparsities: list[float] = []

        def trace(_iteration: int, weight: Tensor, keep: Tensor) -> None:
            check()
            errors.append(self.error(weight))
            keeps.append(keep.cpu())
            sparsities.append(1 - int(keep.sum()) / keep.numel())

        if schedule == "one-shot":
            settings["mask_steps"] = 0
        else:
            settings |= {"schedule": schedule, "mask_steps": mask_steps}
        solution = admm_grad(self.weight, self.gram, **settings, trace=trace)
        return Solve(solution, errors, keeps, sparsities)

    def errors(self, new: Tensor) -> Tensor:
        """‖Xw − Xŵ‖² / ‖Xw‖² of each output, (outputs,); 0 where the output is zero anyway."""
        lost = self._energy(self.weight - new)
        return torch.where(self.sizes > 0, lost / self.sizes, torch.zeros_like(lost))

    def error(self, new: Tensor) -> float:
        """The relative error of all outputs together, as `helpers.gram.relative_error`."""
        total, lost = self.sizes.sum().item(), self._energy(self.weight - new).sum().item()
        if not math.isfinite(total + lost):
            raise NonFinite("the layer's error overflows float32: its activations are too large")
        return lost / total if total > 0 else 0.0

    def _energy(self, rows: Tensor) -> Tensor:
        return (rows @ self.gram).mul_(rows).sum(1).clamp_(min=0)


class ModelLayers:
    """The layers of a model. The grams of a block are collected when it is asked for.

    Args: tokens (sequences, length), the calibration text; outputs, see `LayerOutputs`. The grams
    of the last block are kept, and the streams that enter the blocks, so that another block starts
    from the nearest. All are dropped once the weights have changed.
    The model is only read, and may be run meanwhile by another thread.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, outputs: int | None = None) -> None:
        if hasattr(model, WEIGHT_READER):
            raise BadParameter(
                "the model is read block by block and cannot be explored: load it by load_model"
            )
        check_tokens(model, tokens)
        self.model, self.tokens, self.outputs = model, tokens, outputs
        self._seen: tuple[int, ...] = ()  # the weights' versions, for which the rest is right
        self._replay: Replay
        self._streams: dict[int, Tensor] = {}  # by the block that they enter
        self._layers: dict[int, dict[str, LayerOutputs]] = {}  # of one block

    def controls(self, block: int | None, layer: str | None) -> dict[str, ipywidgets.Widget]:
        """Drop-down lists of blocks and layers, at the middle block's first layer by default.

        Raises BadParameter for a block or a layer that does not exist.
        """
        found = find_blocks(self.model)
        block = len(found) // 2 if block is None else check_whole("block", block, least=0)
        if block >= len(found):
            raise BadParameter(f"block {block} does not exist: give 0 to {len(found) - 1}")

        def names(index: int) -> list[str]:
            return list(find_layers(found[index], f"block {index}"))

        offered = names(block)
        blocks = choice(range(len(found)), block, "block", width="140px")
        layers = choice(offered, offered[0] if layer is None else layer, "layer", width="240px")

        def follow(change: dict[str, Any]) -> None:
            offered, chosen = names(change["new"]), layers.value
            if list(layers.options) != offered:  # the blocks of some families differ
                layers.options = offered
                layers.value = chosen if chosen in offered else offered[0]

        blocks.observe(follow, names="value")
        return {"block": blocks, "layer": layers}

    def get(self, progress: Progress, block: int, layer: str) -> LayerOutputs:
        """A layer with its gram; progress() is called at every step and may raise to stop."""
        # torch counts the writes to a tensor
        versions = tuple(parameter._version for parameter in self.model.parameters())
        if versions != self._seen:
            # modules of our own that share the weights: hooks on them see only what we run
            shared = [*self.model.parameters(), *self.model.buffers()]
            twin = copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})
            batch = best_batch(device_of(self.model), self.tokens.shape[1])
            self._replay = Replay(twin, self.tokens, batch)
            self._seen, self._streams, self._layers = versions, {}, {}
        if block not in self._layers:
            with eval_mode(self._replay.model):
                self._layers = {block: self._collect(block, progress)}
        return self._layers[block][layer]

    def _collect(self, block: int, progress: Progress) -> dict[str, LayerOutputs]:
        """Run the model up to the block, from the nearest stream, and sum up the block's grams."""
        replay, streams = self._replay, self._streams
        first = max((index for index in streams if index <= block), default=None)
        steps = block - (first or 0) + 2
        if first is None:
            progress(0, steps, "embedding the text")
            streams.clear()  # only deeper ones are left, where memory is short
            first, streams[0] = 0, replay.embed()
        for index in range(first, block):
            progress(index - first, steps, f"running block {index}")
            stream = streams[index].clone()
            replay.advance(index, stream)
            if stream.nbytes * (len(streams) + 1) > STREAM_BYTES:
                del streams[index]
            streams[index + 1] = stream
        progress(steps - 2, steps, f"grams of block {block}")
        grams, _ = next(replay.grams(block, streams[block]))
        progress(steps - 1, steps, "drawing the picture")
        layers = find_layers(find_blocks(replay.model)[block], f"block {block}")
        return {
            name: LayerOutputs(
                f"block {block} {name}", read_weight(layer), grams[name].matrix, self.outputs
            )
            for name, layer in layers.items()
        }


def choose_layer(
    network: nn.Module | Tensor | str,
    tokens: Tensor | None,
    outputs: int | None,
    block: int | None,
    layer: str | None,
) -> tuple[dict[str, ipywidgets.Widget], Callable[..., LayerOutputs]]:
    """Controls that choose a layer, and get(progress, block, layer), which gives it.

    A weight (d_out, d_in) with a gram (d_in, d_in) is one layer, without controls. Else network is
    a model or its name; for a name tokens may be left out. Raises BadParameter for anything else.
    """
    if outputs is not None:
        check_whole("outputs", outputs)
    if isinstance(network, Tensor) and isinstance(tokens, Tensor):
        if network.ndim != 2:
            raise BadParameter(f"weight has shape {tuple(network.shape)}: give (d_out, d_in)")
        check_gram(tokens, network.shape[1])
        given = LayerOutputs("", network, tokens, outputs)
        return {}, lambda *_: given
    network, _, tokens = loaded(network, None, tokens)
    if not isinstance(network, nn.Module):
        raise BadParameter(
            f"{type(network).__name__} and {type(tokens).__name__} cannot be explored: give a "
            "model and its calibration tokens, a model's name, or a layer's weight and gram"
        )
    if tokens is None:
        raise BadParameter(
            "tokens are missing: give the model's calibration tokens, for example "
            'calibration_tokens("embedded", tokenizer, sequences=8, length=512)'
        )
    source = ModelLayers(network, tokens, outputs)
    return source.controls(block, layer), source.get


def loaded(network: Any, tokenizer: Any, tokens: Tensor | None) -> tuple[Any, Any, Tensor | None]:
    """Load a model given by name; its tokens are a little embedded text unless some are given."""
    if isinstance(network, str):
        network, tokenizer = load_model(network)
        if tokens is None:
            tokens = calibration_tokens("embedded", tokenizer, sequences=SEQUENCES, length=LENGTH)
    return network, tokenizer, tokens
