"""Train a whole block while the loop prunes it, so that it answers as the dense model does.

    refine = Refine(model, tokens)
    prune_model(model, tokens, method="admm-grad", sparsity=0.6,
                before_block=refine.before, after_block=refine.after)

A method of one layer answers for that layer's outputs alone. Two steps see the whole block, its
attention and its nonlinearity; each composes with every method that reads calibration text:

    Refine      after pruning: the kept weights learn to give, on the stream of the pruned blocks
                before, what the dense block gives on the dense stream (block-wise as in EBFT, Guo
                et al. 2024, arXiv 2402.12419; there on one stream)
    Compensate  before pruning: the still dense block learns the same, so that it makes up for the
                blocks before it, and is then pruned as usual (ICP, Luo et al. 2025)

Both at once share one dense stream:

    compensate = Compensate(model, tokens)
    refine = Refine(model, tokens, dense=compensate.dense)
    prune_model(..., before_block=compensate.before, after_block=refine.after)

With x a token's stream in the pruned model and d in the dense one, the loss is

    ‖pruned block(x) − dense block(d)‖² / ‖dense block(d)‖²,

the mean over tokens. It is relative because the few tokens with massive activations, a thousand
times the norm of the others, would otherwise be all that is learnt.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helpers.beyond.training import (
    DECAY,
    Trained,
    check_float32,
    rate_at,
    trained,
)
from helpers.capture import Call, advance, capture, check_tokens, eval_mode
from helpers.device import synchronise
from helpers.errors import BadParameter, NonFinite, check_real, check_whole
from helpers.models import check_model, device_of, find_blocks, find_layers
from helpers.precision import chosen_precision, products

# one sequence as (1, length, width): what enters the block, and what should leave it
Pair = tuple[Tensor, Tensor]

PROBE_STEPS = 8  # with each learning rate; the rate then holds for the whole block
TINY = torch.finfo(torch.float32).tiny  # a token whose dense stream is 0 has no relative error


class DenseStream:
    """The stream of the model as it was before pruning, followed block by block.

    stream: (sequences, length, width), after `advance` as it leaves that block. calls: the blocks'
    arguments for one sequence at a time; those that the loop hands over are for whole batches.

    Memory: as much as the loop's own stream. No copy of a block: the stream passes each block just
    before that is changed. Raises BadParameter, UnsupportedModel.
    """

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        check_model(model)
        check_tokens(model, tokens)
        self.model, self.blocks, self.shape = model, find_blocks(model), tokens.shape
        # they do not depend on the text, as the parity gate of prune_model proves
        with eval_mode(model):
            self.calls = capture(model, tokens[:1], head=False).calls
        self.stream: Tensor | None = None
        self.index = -1  # the block that the stream leaves

    def advance(self, index: int, block: nn.Module, stream: Tensor) -> None:
        """Take the dense stream through a block that is still dense.

        stream: the loop's, which enters the block; it is not changed. A second call for the same
        block, by another step that shares this, does nothing. Raises BadParameter, NonFinite.
        """
        if index == self.index:
            return
        if block is not self.blocks[index] or stream.shape[:2] != self.shape:
            raise BadParameter(
                "the step on blocks was made for another model or other tokens: give it those that "
                "prune_model gets"
            )
        # no block is pruned yet, so this is the dense stream too
        if index == 0:
            self.stream = stream.clone()
        advance(block, self.stream, self.calls[index], 1, f"block {index}")
        self.index = index


@dataclass(frozen=True)
class BlockReport:
    """What a step did to one block.

    loss_before, loss_after: on the held-out sequences, of the weights that the step was given and
    of those that it left. rate: the learning rate that the probe chose. improved: False where
    training did not lower the loss and the weights from before were put back.
    """

    block: int
    loss_before: float
    loss_after: float
    rate: float
    improved: bool
    seconds: float


class BlockStep:
    """What `Refine` and `Compensate` share: see there for what they do."""

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        *,
        passes: int = 1,
        rates: Sequence[float] = (1e-3, 3e-4, 1e-4),
        held_out: int = 4,
        precision: str = "auto",
        dense: DenseStream | None = None,
    ) -> None:
        """Check everything, before a weight changes, and run the model on one sequence.

        Args: tokens, int64 (sequences, length), those that `prune_model` gets; passes over them,
        one step of Adam for each sequence; rates, the learning rates that each block may choose
        from by a probe of a few steps; held_out, the last sequences, which judge and never train;
        precision of the products in training, see `products` (judging is in the model's own);
        dense, that of another step of the same `prune_model`.

        On a CPU the same call gives the same bits, with precision given: "auto" goes by a clock,
        and `precision` holds what it found.

        Memory beyond the model and the loop's, in bytes: the dense stream, sequences · length ·
        width · 4, until the last block is done; of one block, 17 for each weight (gradient, Adam's
        two moments, the weights from before, mask), and the activations of one sequence.

        Raises BadParameter, UnsupportedModel.
        """
        check_model(model)
        for index, block in enumerate(find_blocks(model)):
            # refuses half precision now, not after the first block is pruned
            check_float32(block, find_layers(block, f"block {index}"))
        check_tokens(model, tokens)
        self.passes = check_whole("passes", passes)
        if isinstance(rates, str) or not isinstance(rates, Sequence) or not rates:
            raise BadParameter(f"rates {rates!r} are not allowed: give a list of numbers above 0")
        self.rates = [check_real("rates", rate, above=0) for rate in rates]
        self.held_out = check_whole("held_out", held_out)
        if len(tokens) <= self.held_out:
            raise BadParameter(
                f"{len(tokens)} sequences leave none to train on when {held_out} are held out: "
                "give more text, or a smaller held_out"
            )
        # chosen once, so that all blocks are trained alike
        self.precision = chosen_precision(precision, device_of(model))
        if dense is not None and dense.model is not model:
            raise BadParameter("dense follows another model: make it from the one to be pruned")
        self.dense: DenseStream | None = dense or DenseStream(model, tokens)
        self.reports: list[BlockReport] = []

    def to_dict(self) -> dict[str, Any]:
        """What was asked for and what was done, as plain values for a record."""
        return {
            "passes": self.passes,
            "rates": list(self.rates),
            "held_out": self.held_out,
            "precision": self.precision,
            "seconds": sum(report.seconds for report in self.reports),
            "blocks": [dataclasses.asdict(report) for report in self.reports],
        }

    def fit(self, index: int, block: nn.Module, stream: Tensor) -> None:
        """Train the block to turn `stream` into the dense one, and add to `reports`."""
        started = time.perf_counter()
        # views, so this copies nothing
        pairs = list(zip(stream.split(1), self.dense.stream.split(1), strict=True))
        train, judge = pairs[: -self.held_out], pairs[-self.held_out :]
        with trained(block, find_layers(block, f"block {index}")) as weights:
            fit = BlockFit(
                f"block {index}", block, self.dense.calls[index], weights, self.precision
            )
            start = weights.snapshot()
            try:
                before = fit.judged(judge)
                if not math.isfinite(before):
                    raise NonFinite(f"the loss of {fit.name} is NaN or infinity: check its weights")
                rate = fit.best_rate(self.rates, start, train[:PROBE_STEPS], judge)
                fit.descend(train * self.passes, rate)
                after = fit.judged(judge)
                # not `after >= before`: NaN compares false either way, and must not stay
                improved = after < before
            except BaseException:
                # Ctrl-C too: no block is left half trained
                weights.restore(start)
                raise
            if not improved:
                weights.restore(start)
        synchronise(device_of(block))
        seconds, left = time.perf_counter() - started, after if improved else before
        self.reports.append(BlockReport(index, before, left, rate, improved, seconds))
        # the last reference to it, unless another step still reads it
        if index + 1 == len(self.dense.blocks):
            self.dense = None

    def follow(self, index: int, block: nn.Module, stream: Tensor) -> None:
        """Take the dense stream through the block, as long as it is dense."""
        # by a run that has ended, well or in an error
        if self.dense is None or (index == 0 and self.reports):
            raise BadParameter(f"this {type(self).__name__} has been used: make one for each model")
        self.dense.advance(index, block, stream)


class Refine(BlockStep):
    """Fit the kept weights, norms and biases of each pruned block; what is zero stays zero.

    Both hooks are needed, as only `before` sees the dense block; `Compensate.before` may stand for
    it if the two share their dense stream. A block whose held-out loss is not lowered keeps the
    weights that the method gave it.
    """

    def before(self, index: int, block: nn.Module, stream: Tensor, _call: Call) -> None:
        """Give this to `prune_model` as before_block."""
        self.follow(index, block, stream)

    def after(self, index: int, block: nn.Module, stream: Tensor, _call: Call) -> None:
        """Give this to `prune_model` as after_block. Raises NonFinite, naming the block."""
        if self.dense is None or self.dense.index != index:
            raise BadParameter(
                "Refine has not seen the dense block: give before_block=refine.before, or that of "
                "a Compensate whose dense it was made with"
            )
        self.fit(index, block, stream)


class Compensate(BlockStep):
    """Let each block, before it is pruned, make up for the errors of the pruned blocks before it.

    All its weights, norms and biases learn, and the method then treats them as the dense ones. The
    mask is the method's own. A block whose held-out loss is not lowered stays as it was. Block 0,
    whose stream is still the dense one, has nothing to make up for and no report.
    """

    def before(self, index: int, block: nn.Module, stream: Tensor, _call: Call) -> None:
        """Give this to `prune_model` as before_block. Raises NonFinite, naming the block."""
        self.follow(index, block, stream)
        if index > 0:
            self.fit(index, block, stream)


@dataclass(frozen=True)
class BlockFit:
    """One block in training, with its arguments for one sequence and what of it may change."""

    name: str
    block: nn.Module
    call: Call
    weights: Trained
    precision: str

    def loss(self, pair: Pair) -> Tensor:
        """The loss of one sequence: see the module's text."""
        rows, targets = (part.to(device_of(self.block)) for part in pair)
        # as in `run_block`, but with what a backward pass needs
        output = self.block(rows, *self.call.args, **self.call.kwargs)
        output = output[0] if isinstance(output, tuple) else output
        squares = (output.float() - targets).square().sum(-1)  # (1, length)
        return (squares / targets.square().sum(-1).clamp_min(TINY)).mean()

    @torch.no_grad()
    def judged(self, pairs: Sequence[Pair]) -> float:
        """The mean loss of some sequences, of equal length, in the precision of the model."""
        return sum(float(self.loss(pair)) for pair in pairs) / len(pairs)

    def descend(self, pairs: Sequence[Pair], rate: float) -> None:
        """One step of Adam for each sequence, its rate rising and falling. Raises NonFinite."""
        parameters = [*self.weights.weights.values(), *self.weights.vectors]
        adam = torch.optim.Adam(parameters, betas=DECAY)
        device = device_of(self.block)
        with torch.enable_grad(), products(self.precision, device):
            for step, pair in enumerate(pairs, 1):
                adam.param_groups[0]["lr"] = rate * rate_at(step, len(pairs))
                adam.zero_grad()
                loss = self.loss(pair)
                if not torch.isfinite(loss):
                    raise NonFinite(
                        f"training {self.name} at rate {rate:g} gave NaN or infinity in step "
                        f"{step}: give smaller rates"
                    )
                loss.backward()
                adam.step()

    def best_rate(
        self,
        rates: Sequence[float],
        start: list[Tensor],
        train: Sequence[Pair],
        judge: Sequence[Pair],
    ) -> float:
        """The rate whose few steps from `start` lower the held-out loss most.

        The block then has its weights of `start` again. Raises NonFinite if all rates diverge.
        """
        if len(rates) == 1:
            return rates[0]

        def after_probe(rate: float) -> float:
            # the whole rise and fall of the rate, in short: cut off at its height, a rate that is
            # fine by the end of its fall would look too large
            try:
                self.descend(train, rate)
                found = self.judged(judge)
            except NonFinite:
                return math.inf  # finding out is what a probe is for
            finally:
                self.weights.restore(start)
            return found if math.isfinite(found) else math.inf

        losses = [after_probe(rate) for rate in rates]
        if min(losses) == math.inf:
            raise NonFinite(f"{self.name} diverges at all of the rates {rates}: give smaller ones")
        return rates[losses.index(min(losses))]
