"""Gram matrices of the layers of a block, summed over calibration text batch by batch."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.device import products
from helpers.errors import BadParameter, OutOfMemory, UnsupportedModel, first_line
from helpers.model.blocks import (
    Call,
    advance,
    check_parity,
    embed,
    eval_mode,
    record_calls,
    run_block,
    watch_inputs,
)
from helpers.model.models import (
    check_in_memory,
    check_model,
    check_tokens,
    device_of,
    find_blocks,
    find_layers,
    read_weight,
)
from helpers.model.waiting_batches import one_pass
from helpers.options import check_choice, check_whole
from helpers.paper.gram import Gram, check_measured
from helpers.progress import Progress, as_progress

LOG = logging.getLogger(__name__)
# tokens in one forward pass: a CPU gains nothing from more, a GPU is filled by them
BEST_TOKENS = {"cpu": 512, "cuda": 16384}


def layer_grams(
    block: nn.Module,
    stream: Tensor,
    call: Call,
    batch: int,
    name: str = "block",
) -> dict[str, Gram]:
    """Run a block over the stream and return the gram of each of its layers' inputs.

    Layers that read the same input share one Gram: in Llama q, k and v, and gate and up, so four
    grams for seven layers. The stream is left as it is.
    Raises UnsupportedModel if a layer saw no input, NonFinite, naming the layer.
    """
    grams = sum_grams(block, stream, call, batch, name)
    for reader, gram in grams.items():
        check_measured(gram, name, reader)
    return grams


def sum_grams(
    block: nn.Module, stream: Tensor, call: Call, batch: int, name: str
) -> dict[str, Gram]:
    """`layer_grams` without its checks: an expert that this text does not reach has 0 tokens."""
    layers = find_layers(block, name)
    groups = call.groups(layers)
    grams = {
        groups[reader]: Gram(read_weight(layer).shape[1], layer.weight.device)
        for reader, layer in layers.items()
    }
    inputs_of = {}  # the input of each group in this batch

    def add(reader: str, inputs: Tensor):
        group = groups[reader]
        if reader == group[0]:
            grams[group].add(inputs)
            inputs_of[group] = inputs
        # a Gram that two layers share would otherwise miss, or count twice, one layer's rows
        elif inputs_of.get(group) is not inputs:
            raise UnsupportedModel(
                f"{name} {reader} shares its input with {group[0]} in some batches but not in "
                "others: this model is not supported, choose another"
            )

    with watch_inputs(layers, add):
        # views of the stream, of equal size, since the batch divides the number of sequences
        for rows in stream.split(batch):
            inputs_of.clear()  # frees the inputs of the batch before
            # the output is dropped: the block still has its dense weights
            run_block(block, rows.to(device_of(block)), call)
    return {reader: grams[groups[reader]] for reader in layers}


def layer_problems(
    model: nn.Module,
    tokens: Tensor,
    block: int,
    layers: Sequence[str],
    *,
    batch: int = 4,
    progress: Progress | bool = True,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layers of one block of the dense model, with their grams, from one pass over the text.

    Args:
        tokens: (sequences, length).
        block: from 0.
        layers: their names, such as ["self_attn.q_proj"].
        progress: True for a bar, False for none, or a function called after each block that the
            text has passed: progress(done, total, name).

    Returns {layer: (weight (d_out, d_in), gram (d_in, d_in))}; layers that read the same input
    share a gram. Where memory runs out the batch is halved, with a warning.
    Raises BadParameter if there is no such block or layer, or like `check_model`; UnsupportedModel
    like `check_in_memory`.
    """
    check_model(model)
    check_in_memory(model)
    blocks = find_blocks(model)
    if check_whole("block", block, least=0) >= len(blocks):
        raise BadParameter(
            f"block {block!r} does not exist: give 0 to {len(blocks) - 1}"
        )
    present = find_layers(blocks[block], f"block {block}")
    for layer in layers:
        check_choice("layer", layer, present)
    check_tokens(model, tokens)
    progress = as_progress(progress)
    replay = Replay(model, tokens, batch)
    with eval_mode(model):
        # no layer is pruned here: the stream is the dense model's
        stream = replay.embed()
        for index in range(block):
            replay.advance(index, stream)
            progress(index + 1, block + 1, f"block {index}")
        [grams] = replay.measure(block, stream)
        for layer in layers:
            check_measured(grams[layer], f"block {block}", layer)
        for where in replay.halved:
            LOG.warning(where)
        progress(block + 1, block + 1, f"block {block}")
    return {
        # a copy, so that what is done to it leaves the model alone
        layer: (read_weight(present[layer]).float().clone(), grams[layer].matrix)
        for layer in layers
    }


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`, so that all batches have one size.

    Raises BadParameter unless `limit` is a whole number of at least 1.
    """
    check_whole("batch", limit)
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)


def best_batch(device: torch.device, length: int) -> int:
    """How many sequences of `length` tokens a forward pass should take on a device."""
    return max(1, BEST_TOKENS.get(device.type, 512) // length)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the machine, ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch has no class of its own for the CPU, nor for the workspace of CUDA's libraries
    words = ("can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextlib.contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Re-raise an out-of-memory error as OutOfMemory, with where it happened and advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{what}: out of memory ({first_line(error)}): {advice}"
        ) from error


class Replay:
    """Run blocks over a stream in batches, with arguments recorded for batches of that size.

    Where memory runs out the batch is halved, the arguments are recorded again, and the work goes
    on with the rows that were not done; `halved` says where. Rounding may differ after that.
    passes: of the text through a block that is pruned, 1 or 2; see `measure`. precision: of the
    blocks' products, "float32" (the model's own) or "bfloat16".
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        batch: int,
        *,
        passes: int = 2,
        precision: str = "float32",
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.passes = passes
        self.precision = precision
        self.batch = largest_divisor(len(tokens), batch)
        if 2 * self.batch < min(batch, len(tokens)):
            LOG.warning(
                "%d sequences run %d at a time, since no larger batch up to %d divides their "
                "number: %d sequences would run faster",
                len(tokens),
                self.batch,
                batch,
                -(-len(tokens) // batch) * batch,
            )
        self.halved = []

    @functools.cached_property
    def calls(self) -> list[Call]:
        """The blocks' arguments for batches of the present size."""
        # recorded when first needed, and again after a halving, which forgets them
        return self._tried(
            "recording arguments",
            lambda: record_calls(self.model, self.tokens[: self.batch]),
        )

    def parity(self) -> float:
        """The parity gate: see `check_parity`."""
        # reversed text has the same shape, positions and mask but another content: it exposes
        # arguments that depend on the tokens
        return self._tried(
            "the parity gate",
            lambda: check_parity(
                self.model, self.calls, self.tokens[: self.batch].flip(1)
            ),
        )

    def embed(self) -> Tensor:
        """The stream of all tokens as it enters block 0."""
        return self._tried(
            "embedding", lambda: embed(self.model, self.tokens, self.batch)
        )

    def measure(self, index: int, stream: Tensor) -> Iterator[dict[str, Gram]]:
        """Yield a block's layers with their grams; prune those layers before taking the next.

        The grams are not checked yet. With two passes all layers come at once (see `sum_grams`),
        and the block has to run again to `advance`; with one they come one after the other, and at
        the end the stream has passed the block (see `one_pass`). Raises OutOfMemory if all the
        batches that wait in the block do not fit in memory.
        """
        block, name = find_blocks(self.model)[index], f"block {index}"
        if self.passes == 1:
            call = self.calls[index]
            with explain_out_of_memory(
                f"{name}, in which all text waits", "give passes=2"
            ):
                yield from one_pass(
                    block, stream, call, self.batch, name, self.precision
                )
            return

        def all_layers() -> dict[str, Gram]:
            call = self.calls[index]  # outside: recording is the model's own affair
            with products(self.precision, device_of(block)):
                return sum_grams(block, stream, call, self.batch, name)

        # a second attempt starts with empty grams, so no batch is counted twice
        yield self._tried(name, all_layers)

    def advance(self, index: int, stream: Tensor) -> None:
        """Replace the stream in place by its values after a block: see `advance`."""
        block, name = find_blocks(self.model)[index], f"block {index}"
        done = 0

        def one_batch() -> int:
            call = self.calls[index]  # first: recording it may halve the batch
            rows = stream[done : done + self.batch]
            with products(self.precision, device_of(block)):
                return len(advance(block, rows, call, self.batch, name))

        # Rows that are done are already overwritten in the stream and must not pass the block
        # twice, so each batch is tried on its own
        while done < len(stream):
            done += self._tried(name, one_batch)

    def _tried(self, where: str, work: Callable) -> Any:
        """Return work(), halving the batch as often as memory runs out.

        Raises OutOfMemory if one sequence at a time is too many.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = first_line(error)
            # out here, where the error no longer holds on to what was allocated
            if self.batch == 1:
                raise OutOfMemory(
                    f"{where}: one sequence of {self.tokens.shape[1]} tokens does not fit in "
                    f"memory ({reason}): give shorter sequences, a smaller dtype or a device with "
                    "more memory"
                )
            # a divisor of the batch before, so that rows not yet done make up whole batches
            smaller = largest_divisor(self.batch, self.batch // 2)
            self.halved.append(
                f"{where}: batch lowered from {self.batch} to {smaller}, out of memory"
            )
            self.batch = smaller
            vars(self).pop("calls", None)
