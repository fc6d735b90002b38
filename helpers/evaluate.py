"""Perplexity over fixed windows, as the pruning papers measure it."""

from __future__ import annotations

import math

from torch import Tensor, nn

from helpers.capture import check_length, check_tokens, eval_mode, forward
from helpers.errors import CalibrationTooShort, NonFinite, check_whole

LARGEST = 700.0  # exp of a larger mean loss is no longer a float


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    length: int = 2048,
    limit: int | None = None,
    batch: int = 1,
) -> float:
    """exp of the mean negative log-likelihood of the next token, in windows that do not overlap.

    Each window of `length` tokens predicts its tokens 2 … length; the remainder of the text is
    left out. This is the papers' token perplexity, not lm-eval's word perplexity.

    Args: tokens, int64 (tokens,), see `evaluation_tokens`; length, tokens in a window; limit, use
    only the first `limit` windows, None for all; batch, windows in one forward pass.
    Raises BadParameter, CalibrationTooShort (less text than asked for), NonFinite.
    """
    windows = check_windows(model, tokens, length, limit)
    check_whole("batch", batch)
    with eval_mode(model):
        total = sum(_negative_log_likelihood(model, rows) for rows in windows.split(batch))
    mean = total / (windows.shape[0] * (length - 1))
    if not mean < LARGEST:
        raise NonFinite(
            f"the mean loss is {mean:g}, which has no perplexity: the model's logits are broken; "
            "evaluate in dtype float32"
        )
    return math.exp(mean)


def check_windows(model: nn.Module, tokens: Tensor, length: int, limit: int | None) -> Tensor:
    """The first `limit` windows (windows, length) of tokens (tokens,); None: all there are.

    Raises what `perplexity` raises for them, so that it can be known before a long pruning.
    """
    check_length(model, check_whole("length", length, least=2))
    if limit is not None:
        check_whole("limit", limit)
    check_tokens(model, tokens, dimensions=1)
    available = len(tokens) // length
    if available < (limit or 1):
        raise CalibrationTooShort(
            f"{len(tokens)} tokens hold {available} windows of {length}, not the {limit or 1} "
            "asked for: lower limit or length, or give more text"
        )
    wanted = limit or available
    return tokens[: wanted * length].view(wanted, length)


def _negative_log_likelihood(model: nn.Module, rows: Tensor) -> float:
    """Summed over the predicted tokens of rows (batch, length), in float32."""
    logits = forward(model, rows)[:, :-1].float()
    targets = rows[:, 1:].to(logits.device)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum"
    ).item()
