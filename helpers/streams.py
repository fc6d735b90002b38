"""How large the stream of every token is, on its way through the model."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from helpers.capture import Progress, check_tokens, eval_mode, forward
from helpers.models import find_blocks


class _Seen(Exception):
    """Ends a forward pass behind the last block."""


def stream_norms(
    model: nn.Module, tokens: Tensor, progress: Progress = lambda *_steps: None
) -> Tensor:
    """The norm of each token's stream entering each block, and leaving the last.

    Args: tokens (sequences, length). One forward pass a sequence, which `progress(done, total,
    name)` is told of block by block and may end by raising. Returns (sequences, blocks + 1,
    length), float32, on the CPU.
    Raises BadParameter, CalibrationTooShort.
    """
    check_tokens(model, tokens)
    blocks = len(find_blocks(model))
    found: list[Tensor] = []

    def see(stream: Tensor) -> None:
        progress(len(found), len(tokens) * (blocks + 1), "blocks")
        found.append(stream[0].float().norm(dim=-1).cpu())

    with eval_mode(model), _watched(model, see):
        for sequence in tokens:
            with contextlib.suppress(_Seen):
                forward(model, sequence[None])
    return torch.stack(found).unflatten(0, (len(tokens), blocks + 1))


@contextlib.contextmanager
def _watched(model: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Show `see` every stream that this thread runs through the model; end behind the blocks."""
    blocks, thread = find_blocks(model), threading.get_ident()

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            first = next(iter(inspect.signature(block.forward).parameters))
            see(args[0] if args else kwargs[first])

    def after(_block: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            see(output[0] if isinstance(output, tuple) else output)
            raise _Seen

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
