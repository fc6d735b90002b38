"""Run one decoder block with the arguments the model itself gave it.

Families and versions differ in what they hand to a block (masks, positions, caches, and in
some families something else for each block). So nothing is named here: the arguments of every
block are recorded once and replayed verbatim, and a parity check against the model's own logits
decides whether that is faithful.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helpers.device import all_finite
from helpers.errors import (
    BadParameter,
    CalibrationTooShort,
    NonFinite,
    OutOfMemory,
    ParityError,
    UnsupportedModel,
    check_choice,
    check_whole,
)
from helpers.gram import Gram
from helpers.models import device_of, find_blocks, find_layers, opened, read_weight

# relative to the largest logit; replay was exact on every supported family in float32
PARITY_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# tokens in one forward pass: a CPU gains nothing from more, a GPU is filled by them
BEST_TOKENS = {"cpu": 512, "cuda": 16384}

Allocate = Callable[..., Tensor]
# progress(steps done, steps in all, name of the one just done)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Call:
    """The arguments of one block, apart from the stream itself, and what it answers beside it.

    rest: the other outputs of a block that answers a tuple, None if it answers the stream alone.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Capture:
    """What one forward pass showed: the stream entering block 0, and each block's arguments."""

    stream: Tensor
    calls: list[Call]
    logits: Tensor | None


class _Captured(Exception):
    """Ends a forward pass when enough has been seen."""


def capture(model: nn.Module, tokens: Tensor, *, head: bool = True) -> Capture:
    """Run the model on tokens (batch, length) and record what its blocks were given.

    The arguments hold for every batch of that shape without padding. Without `head` the run ends
    after the last block, and there are no logits.
    """
    streams: list[Tensor] = []
    calls: list[Call] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream, call = _split(block, args, kwargs)
        if not streams:
            streams.append(stream)
        calls.append(call)

    def answered(block: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            calls[-1] = dataclasses.replace(calls[-1], rest=output[1:])
        if block is blocks[-1] and not head:
            raise _Captured

    blocks, logits = find_blocks(model), None
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block.register_forward_pre_hook(record, with_kwargs=True))
            stack.enter_context(block.register_forward_hook(answered))
        with contextlib.suppress(_Captured):
            logits = forward(model, tokens)
    if len(calls) != len(blocks):
        raise UnsupportedModel(
            f"{type(model).__name__} ran {len(calls)} blocks of {len(blocks)}: models that skip or "
            "share blocks are not supported"
        )
    return Capture(streams[0], calls, logits)


def _split(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Part the stream (a block's first argument, however it is passed) from the rest."""
    if args:
        return args[0], Call(tuple(args[1:]), dict(kwargs))
    first = next(iter(inspect.signature(block.forward).parameters))
    rest = {name: value for name, value in kwargs.items() if name != first}
    return kwargs[first], Call((), rest)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off; each module's mode is restored whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_tokens(model: nn.Module, tokens: Tensor, dimensions: int = 2) -> None:
    """Raise unless tokens are int64 ids of this model's vocabulary, (sequences, length) or
    (tokens,), and no sequence is longer than the model can take.

    Raises BadParameter, CalibrationTooShort (no sequence at all).
    """
    shape = "(sequences, length)" if dimensions == 2 else "(tokens,)"
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.ndim != dimensions:
        given = [getattr(tokens, "dtype", type(tokens).__name__), *getattr(tokens, "shape", ())]
        raise BadParameter(
            f"tokens are {given}: give int64 {shape}, for example from calibration_tokens(...)"
        )
    if dimensions == 2 and tokens.numel() == 0:
        raise CalibrationTooShort("tokens are empty: give at least one sequence of text")
    size = model.get_input_embeddings().weight.shape[0]
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= size):
        raise BadParameter(
            f"tokens lie in {int(tokens.min())} … {int(tokens.max())} but the model knows "
            f"0 … {size - 1}: use the model's own tokenizer"
        )
    if dimensions == 2:
        check_length(model, tokens.shape[1])


def check_length(model: nn.Module, length: int) -> None:
    """Raise BadParameter if the model cannot take a sequence of that length."""
    config = model.config.get_text_config(decoder=True)
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    longest = next((limit for limit in limits if limit is not None), None)
    if longest is not None and length > longest:
        raise BadParameter(
            f"length {length} is more than the {longest} tokens this model can take: lower it"
        )


def forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's logits (batch, length, vocabulary) for tokens (batch, length)."""
    with torch.no_grad():
        return model(input_ids=tokens.to(device_of(model)), use_cache=False).logits


def first_stream(model: nn.Module, tokens: Tensor) -> Tensor:
    """The stream (batch, length, width) entering block 0; no block is run."""
    found: list[Tensor] = []

    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_split(block, args, kwargs)[0])
        raise _Captured

    first = find_blocks(model)[0]
    with first.register_forward_pre_hook(stop, with_kwargs=True), contextlib.suppress(_Captured):
        forward(model, tokens)
    return found[0]


def embed(model: nn.Module, tokens: Tensor, batch: int, allocate: Allocate = torch.empty) -> Tensor:
    """The stream (sequences, length, width) of all tokens as it enters block 0, in new memory.

    allocate(*shape, dtype=, device=) gives that memory; by default it lies with the model.
    Raises NonFinite.
    """
    stream = None
    with opened(model, model.get_input_embeddings()):
        for start in range(0, len(tokens), batch):
            rows = first_stream(model, tokens[start : start + batch])
            check_stream(rows, "entering block 0")
            if stream is None:
                shape = (len(tokens), *rows.shape[1:])
                stream = allocate(*shape, dtype=rows.dtype, device=rows.device)
            stream[start : start + batch] = rows
    return stream


def run_block(block: nn.Module, stream: Tensor, call: Call) -> Tensor:
    """The stream after one block. Blocks return a tensor or, in some families, a tuple."""
    with torch.no_grad():
        output = block(stream, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


def advance(block: nn.Module, stream: Tensor, call: Call, batch: int, name: str) -> Tensor:
    """Replace stream (sequences, length, width) in place by its values after the block.

    The stream may be kept on another device than the block. Raises NonFinite, naming the block.
    """
    for rows in stream.split(batch):
        new = run_block(block, rows.to(device_of(block)), call)
        check_stream(new, f"after {name}")
        rows.copy_(new)
    return stream


def check_stream(stream: Tensor, where: str) -> None:
    """Raise NonFinite if the stream holds NaN or infinity."""
    if not all_finite(stream):
        raise NonFinite(
            f"activations {where} hold NaN or infinity: check the weights, or use dtype float32"
        )


def check_parity(model: nn.Module, calls: list[Call], tokens: Tensor) -> float:
    """Replay the blocks on tokens of the captured shape and compare with the model's logits.

    Give other tokens than those of the capture, so that an argument that depends on the text
    is caught too. Returns the largest difference relative to the largest logit.
    Raises ParityError, and NonFinite where the dense model itself breaks down.
    """
    logits, stream = _forward_and_replay(model, calls, tokens)
    check_stream(logits, "called logits")
    replayed = logits_of(model, tokens, stream, calls)
    # in place, as logits are the largest thing in memory
    difference = (replayed.sub_(logits).abs_().max() / logits.abs_().max()).item()
    limit = PARITY_TOLERANCE.get(logits.dtype, 1e-4)
    if not difference <= limit:
        raise ParityError(
            f"{type(model).__name__} replayed block by block differs from its own logits by "
            f"{difference:.2g} (allowed {limit:g}): nothing was pruned, choose another model"
        )
    return difference


def _forward_and_replay(
    model: nn.Module, calls: list[Call], tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's own logits, and the stream after a replay of its blocks.

    Each block is replayed right after the model has run it.
    """
    stream, replaying = first_stream(model, tokens), False
    check_stream(stream, "entering block 0")

    def follow(index: int) -> Any:
        def replay(block: nn.Module, _args: Any, _output: Any) -> None:
            nonlocal stream, replaying
            if replaying:  # the replay itself has come here
                return
            replaying = True
            stream = run_block(block, stream, calls[index])
            replaying = False
            check_stream(stream, f"after block {index}")

        return replay

    with contextlib.ExitStack() as stack:
        for index, block in enumerate(find_blocks(model)):
            stack.enter_context(block.register_forward_hook(follow(index)))
        logits = forward(model, tokens)
    return logits, stream


def logits_of(model: nn.Module, tokens: Tensor, stream: Tensor, calls: list[Call]) -> Tensor:
    """The model's logits for tokens (batch, length) whose stream after the last block is known.

    No block is run: each hands on the stream. `calls` are those of that shape of tokens.
    """
    with contextlib.ExitStack() as stack:
        for block, call in zip(find_blocks(model), calls, strict=True):
            stack.enter_context(_answering(block, stream, call))
        return forward(model, tokens)


@contextlib.contextmanager
def _answering(block: nn.Module, stream: Tensor, call: Call) -> Iterator[None]:
    """Let a block answer `stream` whatever it is given, without running it."""
    answer = stream if call.rest is None else (stream, *call.rest)
    before = vars(block).get("forward")
    block.forward = lambda *_args, **_kwargs: answer
    try:
        yield
    finally:
        del block.forward
        if before is not None:
            block.forward = before


class GramHooks:
    """Collects the grams of a block's layers while it runs; layers with one input share one.

    In Llama q, k and v read the same tensor, gate and up another: four grams for seven layers.
    `seconds` is the time spent on them.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.layers = layers
        self.grams: dict[str, Gram] = {}
        self.seconds = 0.0
        self._leader: dict[str, str] = {}
        self._seen: list[tuple[str, Tensor]] = []

    def __enter__(self) -> GramHooks:
        self._handles = [
            layer.register_forward_pre_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def new_batch(self) -> None:
        """Forget the inputs of the batch before: identity of tensors means nothing across."""
        self._seen.clear()

    def _hook(self, name: str) -> Any:
        def add(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            started = time.perf_counter()
            self._add(name, layer, args[0])
            self.seconds += time.perf_counter() - started

        return add

    def _add(self, name: str, layer: nn.Module, inputs: Tensor) -> None:
        """Add `inputs` unless they are the very tensor that another layer has just added."""
        twin = next((other for other, tensor in self._seen if tensor is inputs), None)
        self._seen.append((name, inputs))
        if name not in self._leader:
            self._leader[name] = twin or name
            width, device = read_weight(layer).shape[1], layer.weight.device
            self.grams[name] = self.grams[twin] if twin else Gram(width, device)
        leader = self._leader[name]
        if leader != (twin or name):
            raise UnsupportedModel(
                f"layer {name} shares its input with {leader} in some batches and not in others: "
                "this family is not supported"
            )
        if leader == name:
            self.grams[name].add(inputs)


def layer_grams(
    block: nn.Module, stream: Tensor, call: Call, batch: int, name: str = "block"
) -> tuple[dict[str, Gram], float]:
    """Run a block over the stream and return the gram of each of its layers' inputs.

    Layers that share an input share the object. Also returns the seconds spent on grams. The
    stream is left as it is.
    Raises UnsupportedModel if a layer saw no input, NonFinite, naming the layer.
    """
    layers = find_layers(block, name)
    with GramHooks(layers) as hooks:
        for rows in stream.split(batch):
            hooks.new_batch()
            run_block(block, rows.to(device_of(block)), call)
    for layer in layers:
        # an expert that was called with no rows is as unmeasured as one that was never called
        if layer not in hooks.grams or hooks.grams[layer].tokens == 0:
            raise UnsupportedModel(
                f"layer {name} {layer} saw no calibration token: if it is an expert, give more "
                "calibration text, otherwise choose another model"
            )
        if not all_finite(hooks.grams[layer].matrix):
            raise NonFinite(
                f"inputs of layer {name} {layer} hold NaN or infinity: check the weights before it"
            )
    return hooks.grams, hooks.seconds


def layer_gram(
    model: nn.Module, tokens: Tensor, block: int, layer: str, *, batch: int = 4
) -> tuple[Tensor, Tensor]:
    """One layer of the dense model: its weight (d_out, d_in) and its gram (d_in, d_in).

    Args: tokens (sequences, length); block, from 0; layer, such as "self_attn.q_proj".
    Raises BadParameter if there is no such block or layer.
    """
    return layer_problems(model, tokens, block, [layer], batch=batch)[layer]


def layer_problems(
    model: nn.Module, tokens: Tensor, block: int, layers: Sequence[str], *, batch: int = 4
) -> dict[str, tuple[Tensor, Tensor]]:
    """Several layers of one block as `layer_gram` gives each, from one pass over the text.

    Args: tokens (sequences, length); block, from 0; layers, such as ["self_attn.q_proj"].
    Returns {layer: (weight (d_out, d_in), gram (d_in, d_in))}; layers that read the same input
    share a gram. Raises BadParameter if there is no such block or layer.
    """
    blocks = find_blocks(model)
    if check_whole("block", block, least=0) >= len(blocks):
        raise BadParameter(f"block {block!r} does not exist: give 0 to {len(blocks) - 1}")
    found = find_layers(blocks[block], f"block {block}")
    for layer in layers:
        check_choice("layer", layer, found)
    check_tokens(model, tokens)
    batch = largest_divisor(len(tokens), batch)
    with eval_mode(model):
        calls = capture(model, tokens[:batch]).calls
        stream = embed(model, tokens, batch)
        for index in range(block):
            advance(blocks[index], stream, calls[index], batch, f"block {index}")
        grams, _ = layer_grams(blocks[block], stream, calls[block], batch, f"block {block}")
    weights = {layer: read_weight(found[layer]).float().clone() for layer in layers}
    return {layer: (weights[layer], grams[layer].matrix) for layer in layers}


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`: batches of one size replay one capture.

    Raises BadParameter unless `limit` is a whole number of at least 1.
    """
    check_whole("batch", limit)
    return next(d for d in range(max(1, min(limit, number)), 0, -1) if number % d == 0)


def best_batch(device: torch.device | str, length: int) -> int:
    """How many sequences of `length` tokens a forward pass should take on a device."""
    return max(1, BEST_TOKENS.get(torch.device(device).type, 512) // length)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the machine, was not enough."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch has no class of its own for the CPU, nor for the workspace of CUDA's libraries
    words = ("can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


class Replay:
    """Blocks run over a stream in batches, with arguments recorded for batches of that size.

    Where memory runs out the batch is halved, the arguments are recorded anew, and the work goes
    on with the rows that were not done; `halved` says where. Rounding may differ after that.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, batch: int) -> None:
        self.model, self.tokens = model, tokens
        self.batch = largest_divisor(len(tokens), batch)
        self.halved: list[str] = []
        self._calls: list[Call] | None = None

    @property
    def calls(self) -> list[Call]:
        """The blocks' arguments for batches of the present size."""
        if self._calls is None:
            self._calls = self._tried(
                "recording arguments",
                lambda: capture(self.model, self.tokens[: self.batch], head=False).calls,
            )
        return self._calls

    def parity(self) -> float:
        """The parity gate: see `check_parity`."""

        def check() -> float:
            # reversed text has the same shape and another content, which exposes arguments that
            # depend on the tokens
            return check_parity(self.model, self.calls, self.tokens[: self.batch].flip(1))

        return self._tried("the parity gate", check)

    def embed(self, allocate: Allocate = torch.empty) -> Tensor:
        """The stream of all tokens as it enters block 0."""
        return self._tried(
            "embedding", lambda: embed(self.model, self.tokens, self.batch, allocate)
        )

    def grams(self, index: int, stream: Tensor) -> tuple[dict[str, Gram], float]:
        """The grams of a block's layers: see `layer_grams`."""
        block, name = find_blocks(self.model)[index], f"block {index}"
        return self._tried(
            name, lambda: layer_grams(block, stream, self.calls[index], self.batch, name)
        )

    def advance(self, index: int, stream: Tensor) -> None:
        """Replace the stream in place by its values after a block: see `advance`."""
        block, name = find_blocks(self.model)[index], f"block {index}"
        done = 0

        def one_batch() -> int:
            call = self.calls[index]  # first: recording it may halve the batch
            return len(advance(block, stream[done : done + self.batch], call, self.batch, name))

        while done < len(stream):
            done += self._tried(name, one_batch)

    def _tried(self, where: str, work: Callable[[], Any]) -> Any:
        """The work's answer, with half the batch as often as memory runs out.

        Raises OutOfMemory if one sequence at a time is too many.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                # a MemoryError often says nothing
                reason = (str(error).splitlines() or [type(error).__name__])[0]
            # out here, where the error no longer holds on to what was allocated
            self._halve(where, reason)

    def _halve(self, where: str, reason: str) -> None:
        if self.batch == 1:
            raise OutOfMemory(
                f"{where}: one sequence of {self.tokens.shape[1]} tokens does not fit the memory "
                f"({reason}): give shorter sequences, another dtype or a larger machine"
            )
        # a divisor of the batch before, so that rows not yet done make up whole batches
        smaller = largest_divisor(self.batch, self.batch // 2)
        self.halved.append(f"{where}: batch {self.batch} to {smaller}, memory ran out")
        self.batch, self._calls = smaller, None


def stream_norms(
    model: nn.Module, tokens: Tensor, progress: Progress = lambda *_steps: None
) -> Tensor:
    """The norm of each token's stream entering each block, and leaving the last.

    Args: tokens (sequences, length). One forward pass a sequence; progress(done, total, name) is
    called block by block and may end it by raising. Returns (sequences, blocks + 1, length),
    float32, on the CPU.
    Raises BadParameter, CalibrationTooShort.
    """
    check_tokens(model, tokens)
    blocks, thread = find_blocks(model), threading.get_ident()
    norms: list[Tensor] = []

    def see(stream: Tensor) -> None:
        progress(len(norms), len(tokens) * (len(blocks) + 1), "blocks")
        norms.append(stream[0].float().norm(dim=-1).cpu())

    # another thread may run the same model meanwhile: its streams are not ours
    def entering(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            see(_split(block, args, kwargs)[0])

    def leaving(_block: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            see(output[0] if isinstance(output, tuple) else output)
            raise _Captured

    with eval_mode(model), contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block.register_forward_pre_hook(entering, with_kwargs=True))
        stack.enter_context(blocks[-1].register_forward_hook(leaving))
        for sequence in tokens:
            with contextlib.suppress(_Captured):
                forward(model, sequence[None])
    return torch.stack(norms).unflatten(0, (len(tokens), len(blocks) + 1))
