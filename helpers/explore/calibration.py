"""Explorer of the calibration text: which tokens carry the massive activations?"""

import html
import math
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pandas as pd
from torch import Tensor, nn

from helpers.explore.controls import Explorer, View, Worker, slider
from helpers.explore.figures import block_name, hidden_states_figure
from helpers.model.hidden_states import stream_norms
from helpers.model.models import find_blocks

TABLE_ROWS = 8
FULL_COLOUR = 10  # times the median norm
HINT = (
    "The calibration text: the larger the norm of a token's hidden state as it enters the block, "
    "the deeper its colour. Look at which tokens stand out, at which blocks that begins and ends, "
    "and whether these tokens mean anything."
)
LEGEND = (
    f"No colour: the median norm or less. Full colour: {FULL_COLOUR} times the median or more. The "
    "tokens in the table are bold, underlined and numbered. ␣ is a space on its own, ↵ the end of "
    "a line."
)
VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣"})
TEXT_STYLE = (
    "max-height: 22em; overflow: auto; line-height: 1.75; white-space: pre-wrap; padding: .5em; "
    "border: 1px solid rgba(128,128,128,.5); overflow-wrap: anywhere"
)


def calibration_explorer(
    model: nn.Module, tokenizer: Any, tokens: Tensor, *, block: int
) -> Explorer:
    """Read the calibration text by sequence; see which tokens have massive hidden states.

    A sequence's norms are computed when it is first chosen, by one forward pass, which can be
    stopped. `still` is the static twin.

    Args:
        model, tokenizer, tokens: a model, its tokenizer and calibration tokens (sequences, length).
        block: where the slider starts; the number of blocks stands for the hidden states after
            the last.
    """
    controls = {
        "sequence": slider("sequence", 0, 0, len(tokens) - 1),
        "block": slider("entering block", block, 0, len(find_blocks(model))),
    }

    @cache
    def read(worker: Worker, sequence: int) -> tuple[Tensor, list[str]]:
        norms = stream_norms(model, tokens[[sequence]], worker.progress)[0]
        return norms, token_texts(tokenizer, tokens[sequence].tolist())

    def draw(worker: Worker, *, sequence: int, block: int) -> View:
        norms, texts = read(worker, sequence)
        here = norms[block]
        ratios = (here / here.median().clamp(min=1e-30)).tolist()
        largest = here.argsort(descending=True, stable=True)[:TABLE_ROWS].tolist()
        first = largest[0]
        caption = (
            f"Sequence {sequence}, {block_name(block, len(norms))}: the token with the largest "
            f"hidden state is {texts[first].translate(VISIBLE)!r} at position {first}, with "
            f"{_number(ratios[first])} times the median norm. More than {FULL_COLOUR} times the "
            f"median: {sum(r > FULL_COLOUR for r in ratios)} of {len(ratios)} tokens."
        )
        table = table_html(texts, here.tolist(), ratios, largest)
        return View(
            hidden_states_figure(norms.numpy(), block, largest, sequence=sequence),
            caption,
            text_html(texts, ratios, largest) + table,
        )

    return Explorer(controls, draw, hint=HINT)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the one before it; a part of a character shows as �.

    Decoded alone, a token may lose the space it begins with.
    """
    decode = partial(tokenizer.batch_decode, clean_up_tokenization_spaces=False)
    alone = decode([[number] for number in ids])
    pairs = decode([list(pair) for pair in pairwise(ids)])
    texts = alone[:1]
    for before, single, pair in zip(alone, alone[1:], pairs, strict=False):
        texts.append(pair[len(before) :] if pair.startswith(before) else single)
    return texts


def text_html(texts: Sequence[str], ratios: Sequence[float], top: Sequence[int]) -> str:
    """The text as HTML, each token the deeper in colour the farther its norm is above the median.

    Those of `top` are bold, underlined and carry their rank. The colour is half transparent under
    the page's own text colour, so it is legible on white and on black.
    """
    ranks = {position: rank for rank, position in enumerate(top, 1)}
    spans = []
    for position, (text, ratio) in enumerate(zip(texts, ratios, strict=True)):
        visible = text
        if not text.strip() or "\n" in text:
            visible = text.translate(VISIBLE)
        label = html.escape(visible) or "∅"
        depth = math.log(max(ratio, 1), FULL_COLOUR)
        style = f"background: rgba(230,120,0,{0.55 * min(1, depth):.2f})"
        if position in ranks:
            style += "; font-weight: bold; text-decoration: underline 2px"
            label += f"<sup>{ranks[position]}</sup>"
        title = f"position {position}: {_number(ratio)} × median"
        spans.append(f'<span title="{title}" style="{style}">{label}</span>')
        if "\n" in text:
            spans.append("\n")
    return (
        f'<p style="line-height: 1.4">{LEGEND}</p><div tabindex="0" role="region" '
        f'aria-label="calibration text" style="{TEXT_STYLE}">{"".join(spans)}</div>'
    )


def table_html(
    texts: Sequence[str],
    norms: Sequence[float],
    ratios: Sequence[float],
    top: Sequence[int],
) -> str:
    """The largest tokens as an HTML table, with the text around each."""
    rows = []
    for rank, position in enumerate(top, 1):
        before = "".join(texts[max(0, position - 6) : position])
        after = "".join(texts[position + 1 : position + 5])
        context = f"{before}[{texts[position]}]{after}"
        rows.append(
            {
                "rank": rank,
                "position": position,
                "token": texts[position].translate(VISIBLE),
                "norm": _number(norms[position]),
                "× median": _number(ratios[position]),
                "context": context.replace("\n", "↵"),
            }
        )
    with pd.option_context("display.max_colwidth", None):
        return pd.DataFrame(rows).to_html(index=False, border=0, justify="left")


def _number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
