"""The only loop over blocks: what `prune_model` and `prune_checkpoint` run.

The grams of a block come from the stream that the already pruned blocks before it give. With two
passes, as in the paper, all layers of a block are measured in one pass over the calibration text
and then solved; the block runs a second time, with its new weights, to give the stream that enters
the next one. With one pass the text waits inside the block while its layers are solved in turn
(`helpers.waiting_batches`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from helpers.block_grams import Replay, best_batch, explain_out_of_memory
from helpers.blocks import eval_mode
from helpers.device import synchronise
from helpers.errors import HelpersError
from helpers.gram import Gram, check_measured, relative_error
from helpers.layer import LayerResult
from helpers.masks import Pattern, mask_hash
from helpers.methods import get_method
from helpers.models import (
    INTERRUPTED,
    STATE,
    device_of,
    find_blocks,
    find_layers,
    layer_key,
    read_weight,
    weights_in_memory,
    write_weight,
)
from helpers.progress import Progress

# a fraction for all layers, one for each by its `layer_key`, or None where N:M implies it
Sparsity = float | Mapping[str, float] | None


def sparsity_of(sparsity: Sparsity, key: str) -> float | None:
    """The sparsity of one layer."""
    return sparsity[key] if isinstance(sparsity, Mapping) else sparsity


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer. `error` and `damping` are None where a method has none.

    mask: see `mask_hash`. dead_inputs is 0 too where no gram was read.
    """

    block: int
    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    damping: float | None
    dead_inputs: int
    seconds: float
    mask: str


@dataclass(frozen=True)
class RunSettings:
    """How the layers of a model are pruned, whatever the method; see `prune_model` for each.

    ignored: the layers that stay dense, by their `layer_key`.
    """

    passes: int = 2
    precision: str = "float32"
    batch: int | None = None
    progress: Progress | None = None
    importance: Mapping[str, Tensor] | None = None
    ignored: Sequence[str] = ()


@dataclass
class PruneReport:
    """What `prune_model` did, layer by layer and in all.

    `seconds` holds "total" and its parts, "forward" (of the text, with its grams) and "solve".
    `batch` is the sequences in one forward pass at the end, and `halved` says where it had to be
    halved because memory ran out. `precision` is that of the products with the text. `repair` says
    what a recipe did after the layers. `parity` is the largest relative difference between
    replayed and own logits, before pruning. `ignored` names the layers that were to stay dense;
    they have a row too, with sparsity 0 and no error.
    """

    method: str
    pattern: str
    layers: list[LayerReport] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    parity: float | None = None
    batch: int | None = None
    halved: list[str] = field(default_factory=list)
    precision: str = "float32"
    repair: dict[str, Any] | None = None
    ignored: list[str] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """Fraction of pruned weights over all layers together, ignored ones included."""
        # weighted by size: a large layer counts for more than a small one
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(
            s * layer.sparsity for s, layer in zip(sizes, self.layers, strict=True)
        )
        return zeros / sum(sizes)

    @property
    def error(self) -> float | None:
        """Mean relative error ‖XW − XŴ‖²/‖XW‖² over pruned layers, None without calibration."""
        # not weighted: each error is already relative to the output of its own layer
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def details(self) -> dict[str, Any]:
        """How the pruning went, for the series of a record: what no parameter says, and what a
        recipe did.
        """
        details = {
            "batch": self.batch,
            "halved": list(self.halved),
            "precision": self.precision,
        }
        special = {"repair": self.repair, "ignored": self.ignored}
        return details | {name: value for name, value in special.items() if value}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        return dataclasses.asdict(self) | {
            "sparsity": self.sparsity,
            "error": self.error,
        }


# The loop must not import helpers.large, so what that package adds is handed to it: a Store that
# saves pruned blocks and resumes, and a Team of processes. These two classes are the plain case
class Store:
    """Where pruned blocks go. This one leaves them in the model."""

    def saved(self, index: int) -> list[LayerReport] | None:
        """The layers of a block that an earlier run has pruned and saved, else None.

        The model then holds that block's pruned weights.
        """
        return None

    def save(self, index: int, layers: list[LayerReport], halved: list[str]) -> None:
        """Save a pruned block, whose weights are open, with the reports of its layers.

        halved: where the batch had to be halved so far.
        """


class Team:
    """Processes that prune one model together. This one has a single member.

    rank: the number of this process, from 0, which is the one that writes; size: how many.
    """

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process; all wait for one another."""
        return [value]

    def part(self, tokens: Tensor) -> Tensor:
        """The calibration sequences of this process."""
        return tokens

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes."""

    def solve(
        self, layers: dict[str, nn.Module], prune: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Prune the layers of a block, each by some process, and give their reports in turn."""
        for name in layers:
            yield prune(name)


class Loop:
    """One run over a model's blocks, with the clock of its parts and the report as it grows."""

    def __init__(
        self,
        model: nn.Module,
        method: str,
        arguments: dict[str, Any],
        settings: RunSettings = RunSettings(),
        *,
        store: Store | None = None,
        team: Team | None = None,
    ) -> None:
        pattern = Pattern.parse(arguments["pattern"])
        # the pattern is parsed once, here, and not for every layer
        self.model, self.arguments = model, {**arguments, "pattern": pattern}
        self.method, self.settings = get_method(method), settings
        self.report = PruneReport(method, str(pattern), precision=settings.precision)
        self.report.ignored += settings.ignored
        self.store, self.team = store or Store(), team or Team()
        self.blocks = find_blocks(model)
        self.total = sum(len(find_layers(block)) for block in self.blocks)
        self.device = device_of(model)
        self.seconds = {"forward": 0.0, "solve": 0.0}

    def run(self, tokens: Tensor | None) -> PruneReport:
        """Prune every block that is not saved; the model runs if the method reads tokens."""
        # dropout off: its random zeros would enter the grams
        with eval_mode(self.model):
            self.every_block(tokens)
        setattr(self.model, STATE, self.report)
        return self.report

    def every_block(self, tokens: Tensor | None) -> None:
        """Measure the stream's start, and take block by block."""
        started = time.perf_counter()
        replay = stream = None
        if self.method.needs_calibration:
            # each process runs its own part of the text through the whole model
            tokens = self.team.part(tokens)
            with self.timed("forward"):
                batch = self.settings.batch or best_batch(self.device, tokens.shape[1])
                how = {
                    "passes": self.settings.passes,
                    "precision": self.settings.precision,
                }
                replay = Replay(self.model, tokens, batch, **how)
                # before a weight changes: replayed logits are compared with the model's own
                self.report.parity = max(self.team.gather(replay.parity()))
                # One stream for the whole loop, overwritten block by block: (sequences, length,
                # width). Keeping every block's would take as many times that as there are blocks
                stream = replay.embed()
        for index in range(len(self.blocks)):
            # a model that is read block by block holds this block's weights only inside
            with weights_in_memory(self.model, index):
                self.one_block(index, replay, stream)
        if replay:
            self.report.batch, self.report.halved = replay.batch, self.halved(replay)
        self.report.seconds = {"total": time.perf_counter() - started, **self.seconds}

    def one_block(
        self, index: int, replay: Replay | None, stream: Tensor | None
    ) -> None:
        """Measure and prune a block unless it is saved, and take the stream through it."""
        saved = self.store.saved(index)
        # a resumed run: the weights are pruned already, but the stream has still to pass them
        if saved is not None:
            self.report.layers += saved
        else:
            before = len(self.report.layers)
            if replay:
                # closed after an error too: batches of text may be waiting inside the block
                with contextlib.closing(self.measure(index, replay, stream)) as stages:
                    for grams in stages:
                        self.prune_block(index, grams)
            else:
                self.prune_block(index, None)
            halved = self.halved(replay) if replay else []
            self.store.save(index, self.report.layers[before:], halved)
        # With the pruned weights, so later layers are fitted to inputs they will really get. One
        # pass has done that already, and nothing reads the stream after the last block
        behind = saved is not None or self.settings.passes == 2
        if replay and behind and index + 1 < len(self.blocks):
            with self.timed("forward"):
                replay.advance(index, stream)

    def halved(self, replay: Replay) -> list[str]:
        """Where some process had to halve its batch so far: each halves its own."""
        return [where for places in self.team.gather(replay.halved) for where in places]

    def measure(
        self, index: int, replay: Replay, stream: Tensor
    ) -> Iterator[dict[str, Gram]]:
        """The grams of a block's layers over all calibration text, as `Replay.grams` gives them."""
        source = replay.grams(index, stream)
        while True:
            with self.timed("forward"):
                if (grams := next(source, None)) is not None:
                    # a gram is a sum over tokens, so the processes' sums add up to that of all text
                    self.team.sum(grams)
                    # only now: the text of one process may have missed an expert
                    for name, gram in grams.items():
                        check_measured(gram, f"block {index}", name)
            if grams is None:
                return
            yield grams

    def prune_block(self, index: int, grams: dict[str, Gram] | None) -> None:
        """Solve and overwrite the layers of a block that have a gram, or without grams all."""
        # by name, in the order of the block's definition: layers that share a gram come together
        layers = find_layers(self.blocks[index], f"block {index}")
        if grams is not None:
            layers = {name: layer for name, layer in layers.items() if name in grams}

        def prune(name: str) -> LayerReport:
            # popped, so that a gram and its factor are freed with the last layer that reads them
            gram = grams.pop(name) if grams else None
            with self.timed("solve"):
                return self.prune_layer(index, name, layers[name], gram)

        # a generator: each layer is solved, reported and freed before the next is taken up
        for layer_report in self.team.solve(layers, prune):
            self.report.layers.append(layer_report)
            if self.settings.progress:
                done = len(self.report.layers)
                self.settings.progress(
                    done, self.total, f"block {index} {layer_report.name}"
                )

    def prune_layer(
        self, index: int, name: str, layer: nn.Module, gram: Gram | None
    ) -> LayerReport:
        """Solve and overwrite one layer."""
        started = time.perf_counter()
        # (d_out, d_in), the layer's own memory: the registry refuses a method that writes there
        weight = read_weight(layer)
        advice = "use a device with more memory, or prune_checkpoint, which holds one block at a time"
        try:
            with explain_out_of_memory("solving this layer", advice):
                result = self.solve(layer_key(index, name), weight, gram)
        except HelpersError as error:
            # the same class, so that a caller can catch it as before, and now with the layer's name
            raise type(error)(f"block {index} {name}: {error}") from error
        # from here on the model is neither dense nor pruned, whatever ends the loop
        setattr(self.model, STATE, INTERRUPTED)
        # in place: the module stays the one that the model, its hooks and tied weights refer to
        write_weight(layer, result.weight)
        return LayerReport(
            block=index,
            name=name,
            shape=tuple(weight.shape),
            # from the mask, not the zeros of the weight: a kept weight may happen to be 0
            sparsity=1 - int(result.keep.sum()) / result.keep.numel(),
            error=result.error,
            damping=result.damping,
            dead_inputs=result.dead_inputs or 0,
            mask=mask_hash(result.keep),
            seconds=time.perf_counter() - started,
        )

    def solve(self, key: str, weight: Tensor, gram: Gram | None) -> LayerResult:
        """The method's answer for a layer, its outputs weighted by their importance if it is given.

        No output's problem depends on another's, and the answer for c·w is c times that for w. So a
        factor on an output, taken off afterwards, changes the mask alone: in which outputs weights
        count as large. That is true of all the package's methods, so none has to know of it.

        A layer that is ignored stays as it is.
        """
        if key in self.settings.ignored:
            return LayerResult(weight, torch.ones_like(weight, dtype=torch.bool))
        arguments = {
            **self.arguments,
            "sparsity": sparsity_of(self.arguments["sparsity"], key),
        }
        if self.settings.importance is None:
            return self.method(weight, gram, **arguments)
        factor = self.settings.importance[key].to(weight.device, torch.float32)[:, None]
        result = self.method(weight.float() * factor, gram, **arguments)
        new = (result.weight / factor).to(weight.dtype)
        # measured for the weighted outputs: measured again for the outputs as they are
        error = None if gram is None else relative_error(weight, new, gram.matrix)
        return dataclasses.replace(result, weight=new, error=error)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds spent inside to self.seconds[what]."""
        started = time.perf_counter()
        # no `finally`: an error ends the run, and nobody reads its seconds
        yield
        synchronise(self.device)
        self.seconds[what] += time.perf_counter() - started
