"""Perplexity over fixed windows, as the pruning papers measure it."""

from __future__ import annotations

import math

from torch import Tensor, nn

from helpers.capture import forward
from helpers.errors import BadParameter, CalibrationTooShort, NonFinite


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
    windows = _windows(model, tokens, length, limit)
    training = model.training
    model.eval()
    try:
        total = sum(_negative_log_likelihood(model, rows) for rows in windows.split(batch))
    finally:
        model.train(training)
    mean = total / (windows.shape[0] * (length - 1))
    if not math.isfinite(mean):
        raise NonFinite("the model's logits hold NaN or infinity: evaluate in dtype float32")
    return math.exp(mean)


def _windows(model: nn.Module, tokens: Tensor, length: int, limit: int | None) -> Tensor:
    """The first `limit` windows, (windows, length)."""
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if length < 2 or (longest and length > longest):
        raise BadParameter(
            f"length {length!r} is not allowed: give a window of 2 to {longest or 'any number of'} "
            "tokens for this model"
        )
    if limit is not None and limit < 1:
        raise BadParameter(f"limit {limit!r} is not allowed: give 1 or more windows, None for all")
    if tokens.ndim != 1:
        raise BadParameter(
            f"evaluation tokens have shape {tuple(tokens.shape)}: give one long row (tokens,)"
        )
    available = len(tokens) // length
    wanted = available if limit is None else limit
    if available == 0 or wanted > available:
        raise CalibrationTooShort(
            f"{len(tokens)} tokens hold {available} windows of {length}, not the {limit or 1} asked "
            "for: lower limit or length, or give more text"
        )
    return tokens[: wanted * length].view(wanted, length)


def _negative_log_likelihood(model: nn.Module, rows: Tensor) -> float:
    """Summed over the predicted tokens of rows (batch, length), in float32."""
    logits = forward(model, rows)[:, :-1].float()
    targets = rows[:, 1:].to(logits.device)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum"
    ).item()
