"""Record what a model gives its decoder blocks, run a block alone, compare with the model.

Families and versions differ in what they hand to a block (masks, positions, caches, and in
some families something else for each block). So nothing is named here: the arguments of every
block are recorded once and replayed verbatim, and a parity check against the model's own logits
decides whether that is faithful.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from helpers.device import all_finite
from helpers.errors import NonFinite, UnsupportedModel
from helpers.model.models import device_of, find_blocks, find_layers, weights_in_memory

# relative to the largest logit; replay was exact on every supported family in float32
PARITY_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # in others 1e-4


@dataclass(frozen=True)
class Call:
    """The recorded arguments and outputs of one block, without the stream (the hidden states).

    rest: the other outputs of a block that returns a tuple, None if it returns the stream alone.
    inputs: the layers in the order in which they run, those together that read the same input; in
    Llama q, k and v, then o, then gate and up, then down.
    """

    args: tuple
    kwargs: dict
    rest: tuple | None = None
    inputs: tuple[tuple[str, ...], ...] = ()

    def groups(self, layers: Collection[str]) -> dict[str, tuple[str, ...]]:
        """For each of these layers, all of them that read the same input, itself included."""
        # an expert that the recorded batch has not reached is a group of its own
        groups = {layer: (layer,) for layer in layers}
        for group in self.inputs:
            some = tuple(layer for layer in group if layer in groups)
            groups |= dict.fromkeys(some, some)
        return groups


def own_thread(hook: Callable) -> Callable:
    """A hook that hears nothing of other threads.

    One may run the same model meanwhile, as an explorer does. Its inputs must not be counted here,
    and its pass must not be ended.
    """
    thread = threading.get_ident()

    @functools.wraps(hook)
    def heard(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == thread else None

    return heard


# A hook cannot return from the model's forward; an exception is the only way out of it
class Captured(Exception):
    """Raised by a hook to end a forward pass early."""


def record_calls(model: nn.Module, tokens: Tensor) -> list[Call]:
    """Run the model on tokens (batch, length) and record what its blocks were given.

    The arguments hold for every batch of that shape without padding. The run ends after the last
    block.
    """
    calls = []
    read = []  # (layer, input) of the running block

    # every block, because families may alternate masks (full and sliding window) or positions
    @own_thread
    def record(block: nn.Module, args: tuple, kwargs: dict, output: Any):
        _, call = split_stream(block, args, kwargs)
        # attention weights, a position bias or a cache, by family
        rest = output[1:] if isinstance(output, tuple) else None
        calls.append(replace(call, rest=rest, inputs=_shared(read)))
        read.clear()
        # the head's logits, (batch, length, vocabulary), would be the largest tensor of all
        if block is blocks[-1]:
            raise Captured

    blocks = find_blocks(model)
    with contextlib.ExitStack() as stack:
        for block in blocks:
            # the hooks are removed when the stack closes, after an error too
            stack.enter_context(block.register_forward_hook(record, with_kwargs=True))
            stack.enter_context(
                watch_inputs(find_layers(block), lambda *item: read.append(item))
            )
        with contextlib.suppress(Captured):
            forward(model, tokens)
    # a block that is skipped at random or run twice would get another one's arguments
    if len(calls) != len(blocks):
        raise UnsupportedModel(
            f"{type(model).__name__} has {len(blocks)} blocks but ran {len(calls)}: models that "
            "skip or repeat blocks are not supported, choose another model"
        )
    return calls


@contextlib.contextmanager
def watch_inputs(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Context manager: call see(name, inputs) each time that this thread runs one of the layers."""
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            hook = lambda _layer, args, name=name: see(name, args[0])  # noqa: E731
            stack.enter_context(layer.register_forward_pre_hook(own_thread(hook)))
        yield


def _shared(read: Sequence[tuple[str, Tensor]]) -> tuple[tuple[str, ...], ...]:
    """Group layer names by the tensor that they read, in the order of each first name."""
    groups = {}
    for name, tensor in read:
        # The very same tensor, in any family's names. Its address says so, since all
        # of them are still in memory
        groups.setdefault(id(tensor), []).append(name)
    return tuple(map(tuple, groups.values()))


def split_stream(block: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Call]:
    """Separate the stream (a block's first argument, positional or not) from the rest."""
    if args:
        return args[0], Call(args[1:], kwargs)
    # called by keyword: the name of the stream differs by family, its position does not
    first = next(iter(inspect.signature(block.forward).parameters))
    rest = {name: value for name, value in kwargs.items() if name != first}
    return kwargs[first], Call((), rest)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and restore each module's mode, after an error too."""
    # one by one: model.train() at the end would also switch on modules that the caller had in eval
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's logits (batch, length, vocabulary) for tokens (batch, length)."""
    with torch.no_grad():
        # use_cache=False: else the recorded arguments would hold a cache of keys and values, to
        # which each replay would append its own. no_grad: else all activations would be kept for a
        # backward pass
        return model(input_ids=tokens.to(device_of(model)), use_cache=False).logits


def first_stream(model: nn.Module, tokens: Tensor) -> Tensor:
    """The stream (batch, length, width) entering block 0; no block is run."""
    streams = []

    @own_thread
    def stop(block: nn.Module, args: tuple, kwargs: dict):
        streams.append(split_stream(block, args, kwargs)[0])
        raise Captured

    # the hook ends the pass before the first block runs: only the embedding is paid for
    first = find_blocks(model)[0]
    with (
        first.register_forward_pre_hook(stop, with_kwargs=True),
        contextlib.suppress(Captured),
    ):
        forward(model, tokens)
    return streams[0]


def embed(model: nn.Module, tokens: Tensor, batch: int) -> Tensor:
    """The stream (sequences, length, width) of all tokens as it enters block 0.

    Raises NonFinite.
    """
    stream = None
    with weights_in_memory(model, model.get_input_embeddings()):
        for start in range(0, len(tokens), batch):
            rows = first_stream(model, tokens[start : start + batch])
            check_finite("activations entering block 0", rows)
            # only now are width and dtype known; one tensor for all rows, since a list of batches
            # and their concatenation would hold the stream twice
            if stream is None:
                stream = rows.new_empty(len(tokens), *rows.shape[1:])
            stream[start : start + batch] = rows
    return stream


def run_block(block: nn.Module, stream: Tensor, call: Call) -> Tensor:
    """The stream after one block. Blocks return a tensor or, in some families, a tuple."""
    with torch.no_grad():
        # the block is called, not its forward, so that hooks on its layers see their inputs
        output = block(stream, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


def advance(
    block: nn.Module, stream: Tensor, call: Call, batch: int, name: str
) -> Tensor:
    """Replace stream (sequences, length, width) in place by its values after the block.

    The stream may be kept on another device than the block. Raises NonFinite, naming the block.
    """
    # `split` gives views: copy_ overwrites the stream, and at no time are there two of them
    for rows in stream.split(batch):
        new = run_block(block, rows.to(device_of(block)), call)
        check_finite(f"activations after {name}", new)
        rows.copy_(new)
    return stream


def check_finite(what: str, numbers: Tensor) -> None:
    """Raise NonFinite if numbers of the running model hold NaN or infinity."""
    if not all_finite(numbers):
        raise NonFinite(
            f"{what} hold NaN or infinity: check the weights, or use dtype float32"
        )


def check_parity(model: nn.Module, calls: list[Call], tokens: Tensor) -> float:
    """Replay the blocks on tokens of the recorded shape and compare with the model's logits.

    Give other tokens than those of the recording, so that an argument that depends on the text
    is caught too. Returns the largest difference relative to the largest logit.
    Raises UnsupportedModel, and NonFinite where the dense model itself breaks down.
    """
    logits, stream = _forward_and_replay(model, calls, tokens)
    check_finite("the model's logits", logits)
    replayed = logits_of(model, tokens, stream, calls)
    # In place, as logits are the largest thing in memory. An exact replay gives the same bits and
    # so 0; the largest logit is the scale of rounding
    difference = (replayed.sub_(logits).abs_().max() / logits.abs_().max()).item()
    limit = PARITY_TOLERANCE.get(logits.dtype, 1e-4)
    # not `>`: NaN compares false either way, and must not pass
    if not difference <= limit:
        raise UnsupportedModel(
            f"{type(model).__name__} replayed block by block differs from its own logits by "
            f"{difference:.2g} of the largest (allowed {limit:g}): nothing was pruned, choose "
            "another model"
        )
    return difference


def _forward_and_replay(
    model: nn.Module, calls: list[Call], tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's own logits, and the stream after a replay of its blocks.

    Each block is replayed right after the model has run it.
    """
    # A stream of its own, which never sees the model's: a block's difference is carried on to the
    # logits. The hooks return None, so that the model's own pass is not changed
    stream, replaying = first_stream(model, tokens), False
    check_finite("activations entering block 0", stream)

    @own_thread
    def replay(index: int, block: nn.Module, _args: Any, _output: Any):
        nonlocal stream, replaying
        # run_block calls the block, and so this hook a second time
        if replaying:
            return
        replaying = True
        stream = run_block(block, stream, calls[index])
        replaying = False
        check_finite(f"activations after block {index}", stream)

    with contextlib.ExitStack() as stack:
        for index, block in enumerate(find_blocks(model)):
            hook = functools.partial(replay, index)
            stack.enter_context(block.register_forward_hook(hook))
        logits = forward(model, tokens)
    return logits, stream


def logits_of(
    model: nn.Module, tokens: Tensor, stream: Tensor, calls: list[Call]
) -> Tensor:
    """The model's logits for tokens (batch, length) whose stream after the last block is known.

    No block is run: each hands on the stream. `calls` are those of that shape of tokens.
    """
    with contextlib.ExitStack() as stack:
        for block, call in zip(find_blocks(model), calls, strict=True):
            # the model then adds what is outside the blocks: final norm, head, and what a family
            # scales them by
            stack.enter_context(_answering(block, stream, call))
        return forward(model, tokens)


@contextlib.contextmanager
def _answering(block: nn.Module, stream: Tensor, call: Call) -> Iterator[None]:
    """Replace a block's forward by one that returns `stream` without running the block."""
    # a model that unpacks a tuple must get one
    answer = stream if call.rest is None else (stream, *call.rest)
    # nn.Module calls self.forward, and an attribute of the instance hides the class's method. Some
    # libraries (accelerate) have set one already, which has to be put back
    before = vars(block).get("forward")
    thread = threading.get_ident()
    whole = block.forward

    def answering(*args: Any, **kwargs: Any) -> Any:
        # another thread that runs the model gets the block itself
        own = threading.get_ident() == thread
        return answer if own else whole(*args, **kwargs)

    block.forward = answering
    try:
        yield
    finally:
        del block.forward
        if before is not None:
            block.forward = before
