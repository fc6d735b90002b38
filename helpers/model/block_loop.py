"""The only loop over blocks: what `prune_model` and `prune_checkpoint` run.

The grams of a block come from the stream that the already pruned blocks before it give. With two
passes, as in the paper, all layers of a block are measured in one pass over the calibration text
and then solved; the block runs a second time, with its new weights, to give the stream that enters
the next one. With one pass the text waits inside the block while its layers are solved in turn
(`helpers.model.waiting_batches`).
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from helpers.device import check_precision, synchronise
from helpers.errors import BadParameter
from helpers.model.block_grams import Replay, best_batch
from helpers.model.blocks import eval_mode
from helpers.model.checks import (
    check_importance,
    check_layers,
    check_masks,
    explain_errors,
    ignored_layers,
    sparsity_by_layer,
    try_target,
)
from helpers.model.models import (
    as_matrix,
    check_tokens,
    device_of,
    find_blocks,
    find_layers,
    layer_key,
    model_layers,
    read_weight,
    set_state,
    weight_names,
    weights_in_memory,
    write_weight,
)
from helpers.options import check_whole
from helpers.paper.gram import Gram, check_measured, relative_error
from helpers.paper.layer import LayerResult, Sparsity, Target
from helpers.paper.masks import Pattern, mask_hash
from helpers.paper.methods import check_method_options, get_method
from helpers.progress import Progress, as_progress


@dataclass(frozen=True)
class LayerReport:
    """The result of one layer. `error` and `damping` are None where a method has none.

    dead_inputs: None where no gram was read. mask: see `mask_hash`.
    """

    block: int
    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    damping: float | None
    dead_inputs: int | None
    seconds: float
    mask: str


@dataclass
class PruneReport:
    """The result of `prune_model`, layer by layer and in total.

    `seconds` holds "total" and its parts, "forward" (of the text, with its grams) and "solve".
    `batch` is the sequences in one forward pass at the end, and `halved` says where it had to be
    halved because memory ran out. `precision` is that of the products with the text. `repair` says
    what a recipe did after the layers. `parity` is the largest relative difference between
    replayed and own logits, before pruning. `ignored` names the layers that stay dense; they have a
    row too, with sparsity 0 and no error. `keep` is a hash of the masks that were given.
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
    keep: str | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of pruned weights over all layers together, ignored ones included."""
        # whole numbers, to which a fraction of a layer's weights rounds: their sum is exact
        zeros = sum(
            round(math.prod(layer.shape) * layer.sparsity) for layer in self.layers
        )
        return zeros / sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def error(self) -> float | None:
        """Mean relative error ‖XW − XŴ‖²/‖XW‖² over pruned layers, None without calibration."""
        # not weighted: each error is already relative to the output of its own layer
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def details(self) -> dict[str, Any]:
        """Run details for a record that are not parameters, and what a recipe did."""
        details = {
            "batch": self.batch,
            "halved": self.halved,
            "precision": self.precision,
        }
        if self.repair:
            details["repair"] = self.repair
        if self.ignored:
            details["ignored"] = self.ignored
        if self.keep:
            details["keep"] = self.keep
        return details

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        return asdict(self) | {
            "sparsity": self.sparsity,
            "error": self.error,
        }


# The loop must not import helpers.large, so what that package adds is passed in: a Store that saves
# pruned blocks and resumes, and a Team of processes. These two classes do neither
class Store:
    """Destination of pruned blocks. This default leaves them in the model."""

    def saved(self, index: int) -> list[LayerReport] | None:
        """The layers of a block that an earlier run has pruned and saved, else None.

        The model then holds that block's pruned weights.
        """
        return None

    def save(self, index: int, layers: list[LayerReport], halved: list[str]) -> None:
        """Save a pruned block, whose weights are in memory, with the reports of its layers.

        halved: where the batch had to be halved so far.
        """


class Team:
    """Processes that prune one model together; this default is a single process.

    rank: the number of this process, from 0, which is the one that writes; size: how many.
    """

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process; all wait for one another."""
        return [value]

    def collect(self, values: list) -> list:
        """The entries of all processes' lists."""
        return sum(self.gather(values), [])

    def part(self, tokens: Tensor) -> Tensor:
        """The calibration sequences of this process."""
        return tokens

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes."""

    def solve(
        self, layers: dict[str, nn.Module], prune: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Prune the layers of a block, each in one of the processes; yield reports in order."""
        for name in layers:  # each is reported before the next is solved
            yield prune(name)


class Loop:
    """Prunes a model block by block, and collects the report and the seconds of its parts.

    Making one checks all that can be refused before a weight changes, and changes nothing: see
    `helpers.model.checks`. Of weights on the meta device only the shapes are looked at.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor | None = None,
        *,
        method: str,
        options: Mapping[str, Any],
        sparsity: Sparsity = None,
        pattern: str | Pattern = "unstructured",
        keep: Mapping[str, Tensor] | None = None,
        passes: int = 2,
        precision: str = "float32",
        batch: int | None = None,
        progress: Progress | bool = True,
        importance: Mapping[str, Tensor] | None = None,
        ignore: Collection[str] = (),
        team: Team | None = None,
    ) -> None:
        """Arguments as for `prune_model`; team: several processes.

        Raises BadParameter, UnsupportedModel, NonFinite, NotPositiveDefinite.
        """
        check_method_options(method, options)
        self.method = get_method(method)
        if self.method.needs_calibration:
            if tokens is None:
                raise BadParameter(
                    f"method {method!r} needs calibration tokens: give calibration_tokens(...), or "
                    'use method "magnitude"'
                )
            check_tokens(model, tokens)
        pattern = Pattern.parse(pattern)
        self.ignored = ignored_layers(model, ignore)
        # of all layers: a pattern that does not fit the last one is refused here
        shapes = check_layers(model_layers(model, self.ignored), pattern)
        if batch is not None:
            check_whole("batch", batch)
        if check_whole("passes", passes) > 2:
            raise BadParameter(f"passes {passes!r} is not allowed: give 1 or 2")
        check_precision(precision, next(model.parameters()).dtype)
        if importance is not None:
            check_importance(importance, shapes)
        # the target has a sparsity for each layer that is not ignored
        self.target = Target(method, sparsity, pattern, options)
        masks = None
        if keep is None:
            shares = sparsity_by_layer(sparsity, pattern, shapes)
        else:
            shares, masks = check_masks(keep, self.target, model, self.ignored)
        self.target = replace(self.target, sparsity=shares)
        self.device = device_of(model)
        try_target(self.target, shapes, self.device, masked=keep is not None)
        self.model = model
        self.tokens = tokens
        self.keep = keep
        self.passes = passes
        self.precision = precision
        self.batch = batch
        self.progress = as_progress(progress)
        self.importance = importance
        self.team = team or Team()
        self.store = Store()  # whoever saves blocks puts another one here
        self.report = PruneReport(
            method=method,
            pattern=str(pattern),
            precision=precision,
            ignored=self.ignored,
            keep=masks,
        )
        self.blocks = find_blocks(model)
        self.names = weight_names(model)
        self.total = len(self.names)
        self.seconds = {"forward": 0.0, "solve": 0.0}

    def run(self) -> PruneReport:
        """Prune every block that is not saved; the model runs if the method reads tokens."""
        started = time.perf_counter()
        replay = stream = None
        # dropout off: its random zeros would enter the grams
        with eval_mode(self.model):
            if self.method.needs_calibration:
                with self.timed("forward"):
                    replay = self.replay()
                    # One stream for the whole loop, overwritten block by block: (sequences,
                    # length, width). Keeping every block's would take as many times that as there
                    # are blocks
                    stream = replay.embed()
            for index in range(len(self.blocks)):
                # a model that is read block by block holds this block's weights only here
                with weights_in_memory(self.model, index):
                    self.prune_block(index, replay, stream)
        if replay:
            self.report.batch = replay.batch
            self.report.halved = self.team.collect(replay.halved)
        self.report.seconds = {"total": time.perf_counter() - started, **self.seconds}
        set_state(self.model, interrupted=False, report=self.report)
        return self.report

    def replay(self) -> Replay:
        """Set up the replay of the blocks on the calibration text, and check its parity."""
        # each process runs its own part of the text through the whole model
        tokens = self.team.part(self.tokens)
        replay = Replay(
            self.model,
            tokens,
            self.batch or best_batch(self.device, tokens.shape[1]),
            passes=self.passes,
            precision=self.precision,
        )
        self.report.parity = max(self.team.gather(replay.parity()))
        return replay

    def prune_block(
        self, index: int, replay: Replay | None, stream: Tensor | None
    ) -> None:
        """Prune the layers of a block unless it is saved, and take the stream through it."""
        # a resumed run: the weights are pruned already, but the stream has still to pass them
        saved = self.store.saved(index)
        if saved is not None:
            self.report.layers += saved
        else:
            before = len(self.report.layers)
            # closed after an error too: batches of text may be waiting inside the block
            with contextlib.closing(self.stages(index, replay, stream)) as stages:
                for grams in stages:
                    self.prune_layers(index, grams)
            halved = self.team.collect(replay.halved) if replay else []
            self.store.save(index, self.report.layers[before:], halved)
        # With the pruned weights, so later layers are fitted to inputs they will really get. One
        # pass has done that already, and nothing reads the stream after the last block
        behind = saved is not None or self.passes == 2
        if replay and behind and index + 1 < len(self.blocks):
            with self.timed("forward"):
                replay.advance(index, stream)

    def stages(
        self, index: int, replay: Replay | None, stream: Tensor | None
    ) -> Iterator[dict[str, Gram | None]]:
        """The layers of a block that can be pruned next, with their grams, until all are pruned.

        The grams are of all calibration text, and None for a method that reads none.
        """
        if replay is None:
            yield dict.fromkeys(find_layers(self.blocks[index]))
            return
        measuring = replay.measure(index, stream)
        while True:
            with self.timed("forward"):
                grams = next(measuring, None)
                if grams is None:
                    return
                # a gram is a sum over tokens, so the processes' sums add up to that of all text
                self.team.sum(grams)
                # only now: the text of one process may have missed an expert
                for name, gram in grams.items():
                    check_measured(gram, f"block {index}", name)
            yield grams

    def prune_layers(self, index: int, grams: dict[str, Gram | None]) -> None:
        """Prune the layers of a block that have a gram; each gram is taken out when it is used."""
        block = find_layers(self.blocks[index], f"block {index}")
        # in the order of the block's definition
        layers = {name: block[name] for name in block if name in grams}

        def prune(name: str) -> LayerReport:
            layer_report = self.prune_layer(index, name, layers[name], grams[name])
            # a gram and its factor are freed with the last layer that reads them
            del grams[name]
            return layer_report

        for layer_report in self.team.solve(layers, prune):
            self.report.layers.append(layer_report)
            name = f"block {index} {layer_report.name}"
            self.progress(len(self.report.layers), self.total, name)

    def prune_layer(
        self, index: int, name: str, layer: nn.Module, gram: Gram | None
    ) -> LayerReport:
        """Solve a layer, and overwrite its weight."""
        started = time.perf_counter()
        # (d_out, d_in), the layer's own memory: a method that writes there is refused
        weight = read_weight(layer)
        with self.timed("solve"), explain_errors(f"block {index} {name}"):
            key = layer_key(index, name)
            keep = None
            if self.keep is not None and key not in self.ignored:
                keep = as_matrix(layer, self.keep[self.names[key]]).to(weight.device)
            result = self.solve(key, weight, gram, keep)
            # from here on the model is neither dense nor pruned, if an error ends the loop
            set_state(self.model, interrupted=True)
            # in place: the module stays the one that the model, its hooks and tied weights refer to
            write_weight(layer, result.weight)
        return LayerReport(
            block=index,
            name=name,
            shape=tuple(weight.shape),
            # from the mask, not the zeros of the weight: a kept weight may happen to be 0
            sparsity=int((~result.keep).sum()) / result.keep.numel(),
            error=result.error,
            damping=result.damping,
            dead_inputs=result.dead_inputs,
            mask=mask_hash(result.keep),
            seconds=time.perf_counter() - started,
        )

    def solve(
        self, key: str, weight: Tensor, gram: Gram | None, keep: Tensor | None
    ) -> LayerResult:
        """The method's answer for a layer, its outputs weighted by their importance if it is given.

        No output's problem depends on another's, and the answer for c·w is c times that for w. So a
        factor on an output, taken off afterwards, changes the mask alone: in which outputs weights
        count as large. That is true of all the package's methods, so none has to know of it.

        A layer that is ignored stays as it is.
        """
        if key in self.ignored:
            return LayerResult(weight, torch.ones_like(weight, dtype=torch.bool))
        target = self.target.of_layer(key)
        problem = dict(
            sparsity=target.sparsity,
            pattern=target.pattern,
            keep=keep,
            **target.options,
        )
        if self.importance is None:
            return self.method(weight, gram, **problem)
        factor = self.importance[key].to(weight.device, torch.float32)[:, None]
        result = self.method(weight.float() * factor, gram, **problem)
        new = (result.weight / factor).to(weight.dtype)
        # measured for the weighted outputs: measured again for the outputs as they are
        error = None if gram is None else relative_error(weight, new, gram.matrix)
        return replace(result, weight=new, error=error)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that the block of the `with` takes to self.seconds[what]."""
        started = time.perf_counter()
        # no `finally`: an error ends the run, and nobody reads its seconds
        yield
        synchronise(self.device)
        self.seconds[what] += time.perf_counter() - started
