"""`prune_model`: the only loop over blocks.

The statistics of a block come from the stream that the already pruned blocks before it give; all
layers of a block are measured in one pass; then the block runs again with its new weights.
Everything that can be checked is checked before the first weight changes, and a parity gate
compares the replayed blocks with the model's own logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from helpers.admm import shared_systems
from helpers.capture import (
    Call,
    advance,
    capture,
    check_parity,
    check_tokens,
    embed,
    eval_mode,
    largest_divisor,
    layer_grams,
)
from helpers.device import synchronise
from helpers.errors import BadParameter, HelpersError, check_whole
from helpers.gram import Gram
from helpers.masks import check_divides, check_target, selection_clock
from helpers.methods import check_options, get_method
from helpers.models import check_weights, find_blocks, find_layers, read_weight, write_weight

# progress(layers done, layers in all, name of the layer just done)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer. `error` and `damping` are None where a method has none."""

    block: int
    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    damping: float | None
    dead_inputs: int
    seconds: float


@dataclass
class PruneReport:
    """What `prune_model` did, layer by layer and in all.

    `seconds` holds "total" and its parts: "forward" and "solve", and on a CPU apart from these
    two "gram" and "selection" (of masks).
    """

    method: str
    pattern: str
    layers: list[LayerReport] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    parity: float | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned layers together."""
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(s * layer.sparsity for s, layer in zip(sizes, self.layers, strict=True))
        return zeros / sum(sizes)

    @property
    def error(self) -> float | None:
        """Mean relative error ‖XW − XŴ‖²/‖XW‖² over layers, None without calibration."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def dead_inputs(self) -> int:
        """Inputs that were zero on every calibration token, summed over layers."""
        return sum(layer.dead_inputs for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        return {
            "method": self.method,
            "pattern": self.pattern,
            "sparsity": self.sparsity,
            "error": self.error,
            "dead_inputs": self.dead_inputs,
            "parity": self.parity,
            "seconds": dict(self.seconds),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }


def prune_model(
    model: nn.Module,
    tokens: Tensor | None = None,
    *,
    method: str,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    batch: int = 1,
    progress: Progress | None = None,
    after_block: Callable[[int, nn.Module, Tensor, Call], None] | None = None,
    **options: Any,
) -> PruneReport:
    """Prune all linear layers of the decoder blocks, in place: see the module's text for how.

    Args: tokens, int64 (sequences, length), which a method that needs no calibration never reads
    (its report then holds no errors); sparsity, a fraction, to be left out with an N:M pattern;
    batch, sequences in one forward pass (lowered to a divisor of `sequences`); progress, called
    after each layer; after_block(index, block, stream, call), called before a pruned block runs
    again, for a step on the whole block; options, those of the method.

    Memory beyond the model, in bytes: the stream, sequences · length · width · (size of dtype);
    the grams of one block, 4 · Σ d_in² over its different inputs (Llama: three of width², one of
    ff²); the solver's, 28 · d_out · d_in + 12 · d_in² for its largest layer; and one batch of
    activations, in the parity gate with its logits.

    Raises UnknownMethod, BadParameter, BadPattern, BadSparsity, CalibrationTooShort,
    UnsupportedModel, ParityError, NonFinite, NotPositiveDefinite.
    """
    started = time.perf_counter()
    report = PruneReport(method, pattern)
    check_whole("batch", batch)
    _check_request(model, tokens, method, sparsity, pattern, after_block, options)
    loop = _Loop(model, report, method, dict(options, sparsity=sparsity, pattern=pattern), progress)
    with eval_mode(model), loop.told():
        if tokens is None or not get_method(method).needs_calibration:
            loop.run_uncalibrated()
        else:
            loop.run(tokens, largest_divisor(len(tokens), batch), after_block)
    report.seconds = {"total": time.perf_counter() - started, **loop.seconds}
    return report


def _check_request(
    model: nn.Module,
    tokens: Tensor | None,
    method: str,
    sparsity: float | None,
    pattern: str,
    after_block: Callable[..., None] | None,
    options: dict[str, Any],
) -> None:
    """Everything that can be refused before a weight changes."""
    needed = get_method(method).needs_calibration
    check_options(method, options)
    if "keep" in options:
        raise BadParameter(
            "prune_model takes no keep=, which fits one layer: call METHODS[method](...) for that"
        )
    check_target(sparsity, pattern)
    if needed and tokens is None:
        raise BadParameter(
            f"method {method!r} needs calibration tokens: give calibration_tokens(...), "
            'or use method "magnitude"'
        )
    if needed:
        check_tokens(model, tokens)
    elif after_block:
        raise BadParameter(
            f"method {method!r} runs no block, so after_block would never be called: leave it out"
        )
    for index, block in enumerate(find_blocks(model)):
        for name, layer in find_layers(block, f"block {index}").items():
            check_divides(pattern, read_weight(layer).shape[1])
            check_weights(f"block {index} {name}", layer)


class _Loop:
    """One run over a model's blocks: where the time goes, and the report as it grows."""

    def __init__(
        self,
        model: nn.Module,
        report: PruneReport,
        method: str,
        arguments: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self.model, self.report, self.arguments = model, report, arguments
        self.method = get_method(method)
        self.progress = progress
        self.blocks = find_blocks(model)
        self.total = sum(len(find_layers(block)) for block in self.blocks)
        self.seconds = {"forward": 0.0, "solve": 0.0}
        self.device = next(model.parameters()).device
        # a GPU works on after a call has returned, so parts of a block cannot be told apart there
        self.parts = self.device.type == "cpu"
        if self.parts:
            self.seconds |= {"gram": 0.0, "selection": 0.0}

    def run_uncalibrated(self) -> None:
        """Prune from the weights alone: the model is never run."""
        for index in range(len(self.blocks)):
            self.prune_block(index, None)

    def run(self, tokens: Tensor, batch: int, after_block: Callable[..., None] | None) -> None:
        """Prune from the stream that the pruned blocks give."""
        with self.timed("forward"):
            calls, stream = self.start(tokens, batch)
        for index, (block, call) in enumerate(zip(self.blocks, calls, strict=True)):
            name = f"block {index}"
            with self.timed("forward"):
                grams, gram_seconds = layer_grams(block, stream, call, batch, name)
            if self.parts:
                self.seconds["forward"] -= gram_seconds
                self.seconds["gram"] += gram_seconds
            self.prune_block(index, grams)
            if after_block:
                after_block(index, block, stream, call)
            if index + 1 < len(self.blocks):
                with self.timed("forward"):
                    advance(block, stream, call, batch, name)

    def start(self, tokens: Tensor, batch: int) -> tuple[list[Call], Tensor]:
        """Record the blocks' arguments, pass the parity gate, and embed the calibration."""
        calls = capture(self.model, tokens[:batch]).calls
        # reversed text has the same shape and another content, which exposes arguments that
        # depend on the tokens
        self.report.parity = check_parity(self.model, calls, tokens[:batch].flip(1))
        return calls, embed(self.model, tokens, batch)

    def prune_block(self, index: int, grams: dict[str, Gram] | None) -> None:
        """Solve and overwrite each layer of one block."""
        layers = find_layers(self.blocks[index], f"block {index}")
        with shared_systems():
            for name, layer in layers.items():
                with self.timed("solve"), selection_clock() as choosing:
                    self.prune_layer(index, name, layer, grams and grams[name].matrix)
                if self.parts:
                    self.seconds["selection"] += choosing.seconds
                    self.seconds["solve"] -= choosing.seconds
                if self.progress:
                    self.progress(len(self.report.layers), self.total, f"block {index} {name}")

    def prune_layer(self, index: int, name: str, layer: nn.Module, gram: Tensor | None) -> None:
        """Solve and overwrite one layer, and add its line to the report."""
        started = time.perf_counter()
        weight = read_weight(layer)
        try:
            result = self.method(weight, gram, **self.arguments)
        except HelpersError as error:
            raise type(error)(f"block {index} {name}: {error}") from error
        write_weight(layer, result.weight)
        self.report.layers.append(
            LayerReport(
                block=index,
                name=name,
                shape=tuple(weight.shape),
                sparsity=1 - int(result.keep.sum()) / result.keep.numel(),
                error=result.error,
                damping=result.damping,
                dead_inputs=result.dead_inputs,
                seconds=time.perf_counter() - started,
            )
        )

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Add to an error how much of the model has been changed by then."""
        try:
            yield
        except HelpersError as error:
            count = len(self.report.layers)
            if not count:
                raise
            done = f"{count} layers before it are already pruned, reload the model"
            raise type(error)(f"{error}; {done}") from error

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds spent inside to self.seconds[what]."""
        started = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[what] += time.perf_counter() - started
