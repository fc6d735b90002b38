"""Perplexity over fixed windows of text."""

import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from helpers.data.corpora import with_start
from helpers.errors import BadParameter, NonFinite
from helpers.model.block_grams import Replay
from helpers.model.blocks import eval_mode, forward, logits_of
from helpers.model.models import (
    check_length,
    check_model,
    check_tokens,
    find_blocks,
    state_of,
    weights_in_memory,
)
from helpers.options import check_whole
from helpers.progress import Progress, as_progress

LOG = logging.getLogger(__name__)
SHORT = 64  # tokens, below which a window is too short to be compared with others' perplexities
POSITIONS = 128  # of a window, whose losses are computed together
LARGEST = 700.0  # exp of a larger mean loss is no longer a float


@dataclass(frozen=True)
class WindowLosses:
    """How well a model predicts windows of text: losses of each window, and their perplexity."""

    sums: list[float]  # nats, over the predicted tokens of a window
    predictions: int  # predicted tokens of a window

    @property
    def means(self) -> list[float]:
        """The mean loss of each window, nats per predicted token.

        Differences of two models on the same windows say how much rests on the choice of windows.
        """
        return [total / self.predictions for total in self.sums]

    @property
    def perplexity(self) -> float:
        """exp of the mean loss over all predicted tokens. Raises NonFinite."""
        total = 0.0
        for each in self.sums:  # sum() rounds otherwise from Python 3.12 on
            total += each
        mean = total / (len(self.sums) * self.predictions)
        # exp(mean of −log p) is the geometric mean of 1/p: a perplexity of 20 is the uncertainty of
        # a fair choice among 20 tokens
        if not mean < LARGEST:  # NaN is not below anything
            raise NonFinite(
                f"the mean loss is {mean:g}, so the perplexity is not a finite number: check the "
                "model's weights, or evaluate in dtype float32"
            )
        return math.exp(mean)


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    length: int = 2048,
    limit: int | None = None,
    progress: Progress | bool = True,
) -> float:
    """exp of the mean negative log-likelihood of the next token, in windows that do not overlap.

    This is the papers' token perplexity, not lm-eval's word perplexity. Arguments and errors are
    those of `window_losses`, which also gives the loss of each window.
    """
    losses = window_losses(model, tokens, length=length, limit=limit, progress=progress)
    return losses.perplexity


def window_losses(
    model: nn.Module,
    tokens: Tensor,
    *,
    length: int = 2048,
    limit: int | None = None,
    progress: Progress | bool = True,
) -> WindowLosses:
    """Negative log-likelihoods of the next token, in windows that do not overlap.

    A window of `length` tokens predicts its tokens 2 … length; text after the last whole window is
    not used. Windows begin with the start token (BOS) where the text does (`helpers.data.corpora`).

    A model whose blocks are read one at a time (`load_streamed`) runs each block on all windows; it
    holds their activations, windows · length · width · (size of dtype) bytes.

    Args:
        tokens: int64 (tokens,), see `evaluation_tokens`; or windows (windows, length), as
            `check_windows` gives them, which are taken as they are.
        limit: use only the first `limit` windows; None for all.
        progress: True for a bar, False for none, or a function called after each window:
            progress(done, total, name).

    Raises BadParameter (less text than `limit` windows); its perplexity raises NonFinite.
    """
    windows = check_windows(model, tokens, length, limit)
    progress = as_progress(progress)
    with eval_mode(model):
        if state_of(model).reader is not None:
            pairs = _streamed_logits(model, windows)
        else:
            pairs = ((window, forward(model, window)) for window in windows.split(1))
        sums = []
        for done, (window, logits) in enumerate(pairs, start=1):
            sums.append(_negative_log_likelihood(logits, window))
            progress(done, len(windows), "windows")
    # a window of n tokens has n − 1 predictions: nothing comes before its first token
    return WindowLosses(sums, windows.shape[1] - 1)


def check_windows(
    model: nn.Module,
    tokens: Tensor,
    length: int,
    limit: int | None,
    start_token: bool | str = "auto",
) -> Tensor:
    """Cut tokens (tokens,) into the first `limit` windows (windows, length), or all for None.

    start_token: "auto", windows begin with the model's start token (BOS) where the tokens do; True,
    the same or BadParameter; False, windows as cut. Raises what `perplexity` raises for them, so
    that a notebook finds out before a long pruning.
    """
    check_model(model)
    if isinstance(tokens, Tensor) and tokens.ndim == 2:
        # windows that are cut already, and begin as they are to begin
        length = tokens.shape[1]
        tokens = tokens.flatten()
        start_token = False
    check_length(model, check_whole("length", length, least=2))
    note_short_windows(length)
    if limit is not None:
        check_whole("limit", limit)
    check_tokens(model, tokens, dimensions=1)
    available = len(tokens) // length
    if available < (limit or 1):
        raise BadParameter(
            f"{len(tokens)} tokens hold {available} windows of {length}, and {limit or 1} are "
            "wanted: lower limit or length, or give more text"
        )
    # Windows do not overlap, so each token is scored once. Overlapping ones would give the scored
    # tokens more context and a lower perplexity, which could not be compared with the papers'.
    wanted = limit or available
    windows = tokens[: wanted * length].view(wanted, length)
    # the tokenizer has put it before the text, if it begins texts with one
    start = getattr(model.config.get_text_config(decoder=True), "bos_token_id", None)
    return with_start(windows, start if tokens[0] == start else None, start_token)


@functools.cache  # once in a process, since a notebook cuts the same windows several times
def note_short_windows(length: int) -> None:
    """Warn of windows (of so many tokens) whose perplexity says more about them than the model."""
    if length < SHORT:
        LOG.warning(
            "perplexity in windows of %d tokens: most have hardly any text before them; %d or more "
            "are better",
            length,
            SHORT,
        )


def _streamed_logits(
    model: nn.Module, windows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each window (1, length) with its logits; each block is read once for all windows."""
    replay = Replay(model, windows, 1)
    stream = replay.embed()
    for index in range(len(find_blocks(model))):
        with weights_in_memory(model, index):
            replay.advance(index, stream)
    with weights_in_memory(model):  # the final norm and the head
        for window, states in zip(windows.split(1), stream.split(1), strict=True):
            yield window, logits_of(model, window, states, replay.calls)


def _negative_log_likelihood(logits: Tensor, rows: Tensor) -> float:
    """Summed over the predicted tokens of rows (batch, length); logits: (batch, length, words)."""
    # the logits at a position predict the token after it
    parts = logits[:, :-1].split(POSITIONS, dim=1)
    targets = rows[:, 1:].to(logits.device).split(POSITIONS, dim=1)
    total = 0.0  # a float64: 10⁵ losses added up in float32 would lose the last digits
    # a few positions at a time: a float32 copy of all logits would be the largest tensor in memory
    for part, wanted in zip(parts, targets, strict=True):
        # log-softmax needs float32, because half precision has about three digits for sums over
        # tens of thousands of words
        loss = nn.functional.cross_entropy(
            part.float().flatten(0, 1), wanted.flatten(), reduction="sum"
        )
        total += loss.item()
    return total
