"""Where the explorers get a layer's weight and gram from: they are collected in a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from helpers.block_grams import Replay, best_batch
from helpers.blocks import eval_mode
from helpers.explore.controls import choice
from helpers.gram import Gram
from helpers.layer import LayerResult
from helpers.methods import METHODS
from helpers.models import device_of, find_blocks, find_layers, read_weight
from helpers.progress import Progress

# a layer is solved quickly enough to follow a slider up to 1152 outputs of 576 inputs; of a layer
# with more inputs, as many outputs as make a product of that cost
PRODUCT = 2 * 576**3
LEAST_OUTPUTS = 32
SCHEDULES = [
    ("one-shot mask (ADMM1)", "one-shot"),
    ("gradual mask, as in the paper", "paper"),
    ("gradual mask, as in the released code", "released"),
]


@dataclass(frozen=True)
class Solve:
    """A layer solved by ADMM, with error and mask after each iteration."""

    result: LayerResult
    errors: list[float]
    keeps: list[Tensor]


class LayerOutputs:
    """The outputs of a layer that an explorer solves, with the gram of the layer's inputs.

    weight: (outputs, d_in), float32; gram: of its d_in inputs; title: the layer's name, and how
    many of its outputs these are if not all. Only as many are taken as `PRODUCT` allows. They are
    solved as if they were the whole layer: a mask has one budget for all of a matrix, so the masks
    are not those of the whole layer.
    """

    def __init__(self, name: str, weight: Tensor, gram: Gram) -> None:
        total, width = weight.shape
        count = min(total, max(LEAST_OUTPUTS, PRODUCT // width**2))
        self.weight = weight[:count].detach().float().clone()
        self.gram = gram
        self.sizes = self._energy(self.weight)  # ‖Xw‖² of each output
        self.title = name
        if count < total:
            self.title += f", first {count} of {total} outputs, solved alone"

    def solve(
        self,
        check: Callable[[], None],
        *,
        schedule: str,
        mask_steps: int,
        **settings: Any,
    ) -> Solve:
        """ADMM with a schedule of `SCHEDULES`; "one-shot" takes no mask steps.

        check() is called after each iteration and may raise to stop; settings: of "admm-grad".
        """
        errors: list[float] = []
        keeps: list[Tensor] = []

        def trace(_iteration: int, weight: Tensor, keep: Tensor) -> None:
            check()
            errors.append(self.error(weight))
            keeps.append(keep.cpu())

        if schedule == "one-shot":
            settings["mask_steps"] = 0
        else:
            settings |= {"schedule": schedule, "mask_steps": mask_steps}
        result = METHODS["admm-grad"](self.weight, self.gram, **settings, trace=trace)
        return Solve(result, errors, keeps)

    def errors(self, new: Tensor) -> Tensor:
        """‖Xw − Xŵ‖² / ‖Xw‖² of each output, (outputs,); 0 where the output is zero anyway."""
        lost = self._energy(self.weight - new)
        return torch.where(self.sizes > 0, lost / self.sizes, torch.zeros_like(lost))

    def error(self, new: Tensor) -> float:
        """The relative error of all outputs together, as `helpers.gram.relative_error`."""
        total, lost = (
            self.sizes.sum().item(),
            self._energy(self.weight - new).sum().item(),
        )
        return lost / total if total > 0 else 0.0

    def _energy(self, rows: Tensor) -> Tensor:
        return (rows @ self.gram.matrix).mul_(rows).sum(1).clamp_(min=0)


class ModelLayers:
    """The layers of a model. The grams of a block are collected when it is chosen.

    Kept are the grams of the last block and the stream that enters it, from which a later block
    starts; an earlier one starts from the text. Both are dropped once the weights have changed.
    The model is only read, and may be run meanwhile by another thread.
    """

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self._seen: tuple[
            int, ...
        ] = ()  # the weights' versions, for which the rest is right
        self._replay: Replay
        self._stream: tuple[int, Tensor] | None = None  # with the block that it enters
        self._layers: dict[int, dict[str, LayerOutputs]] = {}  # of one block

    def controls(
        self, block: int | None, layer: str | None
    ) -> dict[str, ipywidgets.Widget]:
        """Drop-down lists of blocks and layers, at the middle block's first layer by default."""
        blocks = find_blocks(self.model)
        block = len(blocks) // 2 if block is None else block

        def names(index: int) -> list[str]:
            return list(find_layers(blocks[index]))

        offered = names(block)
        block_list = choice(range(len(blocks)), block, "block", width="140px")
        layer_list = choice(offered, layer or offered[0], "layer", width="240px")

        def follow(change: dict[str, Any]) -> None:
            offered, chosen = names(change["new"]), layer_list.value
            if (
                list(layer_list.options) != offered
            ):  # the blocks of some families differ
                layer_list.options = offered
                layer_list.value = chosen if chosen in offered else offered[0]

        block_list.observe(follow, names="value")
        return {"block": block_list, "layer": layer_list}

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
            self._seen, self._stream, self._layers = versions, None, {}
        if block not in self._layers:
            with eval_mode(self._replay.model):
                self._layers = {block: self._collect(block, progress)}
        return self._layers[block][layer]

    def _collect(self, block: int, progress: Progress) -> dict[str, LayerOutputs]:
        """Run the model up to the block, and sum up the grams of its layers."""
        replay = self._replay
        if self._stream is None or self._stream[0] > block:
            progress(0, block + 1, "embedding the text")
            self._stream = (0, replay.embed())
        first, stream = self._stream
        steps = block - first + 1
        for index in range(first, block):
            progress(index - first, steps, f"running block {index}")
            self._stream = (
                None  # should this fail, a part of the stream is of the next block
            )
            replay.advance(index, stream)
            self._stream = (index + 1, stream)
        progress(steps - 1, steps, f"grams of block {block}")
        grams = next(replay.grams(block, stream))
        layers = find_layers(find_blocks(replay.model)[block])
        return {
            name: LayerOutputs(f"block {block} {name}", read_weight(layer), grams[name])
            for name, layer in layers.items()
        }
