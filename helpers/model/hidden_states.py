"""Norms of the hidden states (the stream) between the blocks of a model, for notebook 01."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from helpers.model.blocks import Captured, eval_mode, forward, own_thread, split_stream
from helpers.model.models import check_tokens, find_blocks
from helpers.progress import Progress, as_progress


def stream_norms(
    model: nn.Module, tokens: Tensor, progress: Progress | bool = True
) -> Tensor:
    """The norm of each token's hidden state entering each block, and leaving the last.

    One forward pass for each of tokens (sequences, length). Returns (sequences, blocks + 1,
    length), float32, on the CPU.

    progress: True for a bar, False for none, or a function called block by block, which may end
    the work by raising: progress(done, total, name).
    Raises BadParameter.
    """
    check_tokens(model, tokens)
    progress = as_progress(progress)
    blocks = find_blocks(model)
    norms = []

    def see(stream: Tensor):
        progress(len(norms), len(tokens) * (len(blocks) + 1), "blocks")
        # (1, length, width) → (length,). float32, as a sum of squares in float16 can overflow
        norms.append(stream[0].float().norm(dim=-1).cpu())

    @own_thread
    def entering(block: nn.Module, args: tuple, kwargs: dict):
        see(split_stream(block, args, kwargs)[0])

    @own_thread
    def leaving(_block: nn.Module, _args: Any, output: Any):
        see(output[0] if isinstance(output, tuple) else output)
        raise Captured

    with eval_mode(model), contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(
                block.register_forward_pre_hook(entering, with_kwargs=True)
            )
        stack.enter_context(blocks[-1].register_forward_hook(leaving))
        for sequence in tokens:
            with contextlib.suppress(Captured):
                forward(model, sequence[None])
    # (sequences · (blocks + 1), length), in the order in which the hooks were called
    return torch.stack(norms).unflatten(0, (len(tokens), len(blocks) + 1))
