"""Where the explorers get a layer's weight and gram from: given, or collected in a model.

Grams of a block's layers are collected together, in one walk of the calibration tokens down to
that block, and kept. A walk starts at the nearest block above that an earlier one has come by, as
far as there is room to keep the stream there.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers.capture import Replay, best_batch, check_tokens, eval_mode
from helpers.corpora import calibration_tokens
from helpers.errors import BadParameter, NonFinite, check_choice, check_whole
from helpers.explore.controls import Progress
from helpers.gram import check_gram
from helpers.models import (
    WEIGHT_READER,
    device_of,
    find_blocks,
    find_layers,
    load_model,
    read_weight,
)

# of a layer as many outputs are solved as make up this many multiplications in a product: those of
# 1152 outputs with 576 inputs
WORK = 2 * 576**3
LEAST_OUTPUTS = 32
KEPT_BYTES = 1 << 30  # of weights and grams, and always those of the block asked for
STREAM_BYTES = 1 << 29  # of streams entering blocks, and always the last one
SEQUENCES, LENGTH = 8, 512  # of calibration text where none is given


@dataclass(frozen=True)
class Layer:
    """One linear layer: `weight` (d_out, d_in) and `gram` (d_in, d_in), both float32."""

    name: str
    weight: Tensor
    gram: Tensor


class GivenLayer:
    """A layer whose weight and gram are at hand; there is nothing to choose."""

    blocks = 0

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        if weight.ndim != 2:
            raise BadParameter(
                f"weight has shape {tuple(weight.shape)}: give a layer's, (d_out, d_in)"
            )
        check_gram(gram, weight.shape[1])
        self._layer = Layer("", weight.detach().float(), gram)

    def get(self, block: int | None, layer: str | None, progress: Progress) -> Layer:
        """The layer, whatever is asked for."""
        return self._layer


class ModelLayers:
    """All layers of a model; the grams of a block are collected when it is first asked for.

    Args: tokens (sequences, length), the calibration text. Memory: streams up to `STREAM_BYTES`,
    and weights and grams up to `kept_bytes`. The model is read, never changed, and may be used
    meanwhile: what is hooked is a copy of its modules that shares its weights.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, *, kept_bytes: int = KEPT_BYTES) -> None:
        check_tokens(model, tokens)
        self.model, self.tokens, self.kept_bytes = model, tokens, kept_bytes
        self.blocks = len(find_blocks(model))
        self._kept: OrderedDict[int, dict[str, Layer]] = OrderedDict()
        self._walk: _Walk | None = None
        self._seen = self._versions()

    def names(self, block: int) -> list[str]:
        """The names of a block's layers. Raises BadParameter if there is no such block."""
        if check_whole("block", block, least=0) >= self.blocks:
            raise BadParameter(f"block {block!r} does not exist: give 0 to {self.blocks - 1}")
        return list(find_layers(find_blocks(self.model)[block], f"block {block}"))

    def known(self, block: int) -> bool:
        """Whether a block's grams are here already."""
        return block in self._kept and self._seen == self._versions()

    def get(self, block: int, layer: str, progress: Progress) -> Layer:
        """A layer with its gram; `progress` is told of every step of a walk and may end it.

        Raises BadParameter for a block or layer that does not exist, and if the model was changed
        during the walk.
        """
        check_choice("layer", layer, self.names(block))
        if not self.known(block):
            self._collect(block, progress)
        self._kept.move_to_end(block)
        return self._kept[block][layer]

    def _collect(self, block: int, progress: Progress) -> None:
        """Walk to the block and keep its layers; whatever was known of a changed model is lost."""
        seen = self._versions()
        if seen != self._seen:
            self._kept.clear()
            self._walk, self._seen = None, seen
        self._walk = self._walk or _Walk(self.model, self.tokens)
        found = self._walk.collect(block, progress)
        if self._versions() != seen:
            self._walk = None
            raise BadParameter(
                "the model's weights changed while its grams were collected: choose the block again"
            )
        self._kept[block] = found
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self.kept_bytes:
            self._kept.popitem(last=False)

    def _versions(self) -> tuple[int, ...]:
        """A number for every parameter that grows when it is written to."""
        if hasattr(self.model, WEIGHT_READER):  # weights come and go; nobody writes to them
            return ()
        return tuple(parameter._version for parameter in self.model.parameters())


class _Walk:
    """The streams of all tokens entering the blocks that were passed so far."""

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self.model = _twin(model)
        batch = best_batch(device_of(model), tokens.shape[1])
        self._replay = Replay(self.model, tokens, batch)
        self._streams: dict[int, Tensor] = {}

    def collect(self, block: int, progress: Progress) -> dict[str, Layer]:
        """Go to a block and return its layers with their grams."""
        passed = [index for index in self._streams if index <= block]
        first = max(passed, default=0)
        steps = block - first + 2
        with eval_mode(self.model):
            if not passed:
                progress(0, steps, "steps: embedding the text")
                self._streams.clear()  # deeper ones, which were kept for want of room
                self._streams[0] = self._replay.embed()
            for index in range(first, block):
                progress(index - first, steps, f"steps: running block {index}")
                self._advance(index)
            progress(steps - 2, steps, f"steps: grams of block {block}")
            grams, _ = self._replay.grams(block, self._streams[block])
            progress(steps - 1, steps, "steps: the picture")
        layers = find_layers(find_blocks(self.model)[block], f"block {block}")
        return {
            name: Layer(
                f"block {block} {name}", read_weight(module).float().clone(), grams[name].matrix
            )
            for name, module in layers.items()
        }

    def _advance(self, index: int) -> None:
        """Run a block; the stream that enters it stays if there is room, else it is overwritten."""
        stream = self._streams[index]
        size = stream.numel() * stream.element_size()
        if size * (len(self._streams) + 1) <= STREAM_BYTES:
            stream = stream.clone()
        else:  # taken out first: an error leaves it half advanced
            del self._streams[index]
        self._replay.advance(index, stream)
        self._streams[index + 1] = stream


def _twin(model: nn.Module) -> nn.Module:
    """A model of the same weights with modules of its own.

    Hooks on it see only what is run through it, and its mode is its own, so another thread may
    run the model meanwhile. A model that reads its weights when it is called is returned itself.
    """
    if hasattr(model, WEIGHT_READER):
        return model
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _bytes(layers: dict[str, Layer]) -> int:
    """Memory of some layers; a gram that several share counts once."""
    tensors = [layer.weight for layer in layers.values()]
    tensors += {id(layer.gram): layer.gram for layer in layers.values()}.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Problem:
    """The outputs of a layer that an explorer solves, with their errors.

    count: the first so many, by default as many as a product of `WORK` multiplications has room
    for. On one mask outputs do not influence one another, but a mask's budget is the matrix's, so
    some of the outputs are a layer of their own.
    """

    def __init__(self, layer: Layer, count: int | None) -> None:
        total, width = layer.weight.shape
        if count is None:
            count = max(LEAST_OUTPUTS, WORK // width**2)
        self.count, self.total = min(check_whole("outputs", count), total), total
        self.layer, self.gram = layer, layer.gram
        self.rows = layer.weight[: self.count]
        self.sizes = self._energy(self.rows)

    def errors(self, new: Tensor) -> Tensor:
        """What each output loses, in the units of its own ‖XW‖², (count,); 0 for a zero output."""
        lost = self._energy(self.rows - new)
        return torch.where(self.sizes > 0, lost / self.sizes, torch.zeros_like(lost))

    def error(self, new: Tensor) -> float:
        """The relative error of all of them, as `helpers.gram.relative_error` has it."""
        total = self.sizes.sum().item()
        lost = self._energy(self.rows - new).sum().item()
        if not math.isfinite(total + lost):
            raise NonFinite("the layer's error overflows float32: its activations are too large")
        return lost / total if total > 0 else 0.0

    def told(self) -> str:
        """The layer's name, and how many of its outputs these are if not all."""
        part = f"first {self.count} of {self.total} outputs, solved alone"
        return ", ".join(filter(None, [self.layer.name, part if self.count < self.total else ""]))

    def _energy(self, rows: Tensor) -> Tensor:
        return (rows @ self.gram).mul_(rows).sum(1).clamp_(min=0)


class Problems:
    """The last few problems of some layers, so that nothing is summed up twice."""

    def __init__(self, outputs: int | None) -> None:
        self._outputs = None if outputs is None else check_whole("outputs", outputs)
        self._last: OrderedDict[int, Problem] = OrderedDict()

    def of(self, layer: Layer) -> Problem:
        """The problem of a layer."""
        key = id(layer)  # the problem holds the layer, so no other can get its id
        if key not in self._last:
            self._last[key] = Problem(layer, self._outputs)
        self._last.move_to_end(key)
        while len(self._last) > 4:
            self._last.popitem(last=False)
        return self._last[key]


def source_of(network: nn.Module | Tensor | str, tokens: Tensor | None) -> GivenLayer | ModelLayers:
    """The layers to explore: of a model (or its name) and calibration tokens, or one given layer.

    A weight (d_out, d_in) with a gram (d_in, d_in) is one layer. A model's name loads it; without
    tokens a little of the embedded calibration text is taken, which needs the name.
    Raises BadParameter for anything else.
    """
    if isinstance(network, nn.Module):
        if tokens is None:
            raise BadParameter(
                "tokens are missing: give the model's calibration tokens, for example from "
                'calibration_tokens("embedded", tokenizer, sequences=8, length=512)'
            )
        return ModelLayers(network, tokens)
    if isinstance(network, torch.Tensor) and isinstance(tokens, torch.Tensor):
        return GivenLayer(network, tokens)
    if isinstance(network, str):
        model, tokenizer = load_model(network)
        return ModelLayers(model, some_tokens(tokenizer) if tokens is None else tokens)
    raise BadParameter(
        f"{type(network).__name__} and {type(tokens).__name__} cannot be explored: give a model "
        "and its calibration tokens, a model's name, or a layer's weight and gram"
    )


def some_tokens(tokenizer: object) -> Tensor:
    """A little of the embedded calibration text, (sequences, length)."""
    return calibration_tokens("embedded", tokenizer, sequences=SEQUENCES, length=LENGTH)
