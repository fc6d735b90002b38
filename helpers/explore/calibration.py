"""Explorer of the calibration text: which tokens carry the massive activations?"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd
from torch import Tensor, nn

from helpers.explore.controls import Explorer, View, Worker, slider
from helpers.models import find_blocks
from helpers.report import block_name, hidden_states_figure
from helpers.studies import stream_norms

TOP = 8  # tokens in the table
FULL = 10  # times the median norm, from which a token has the full colour
HINT = (
    "The calibration text: the larger the norm of a token's stream as it enters the block, the "
    "deeper its colour. Look at which tokens stand out, at which blocks that begins and ends, and "
    "whether these tokens mean anything."
)
LEGEND = (
    f"No colour: the median norm or less. Full colour: {FULL} times the median or more. The tokens "
    "in the table are bold, underlined and numbered. ␣ is a space on its own, ↵ the end of a line."
)
VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣"})
TEXT_STYLE = (
    "max-height: 22em; overflow: auto; line-height: 1.75; white-space: pre-wrap; padding: .5em; "
    "border: 1px solid rgba(128,128,128,.5); overflow-wrap: anywhere"
)


def calibration_explorer(
    model: nn.Module, tokenizer: Any, tokens: Tensor, *, block: int
) -> Explorer:
    """Read the calibration text sequence by sequence; see which tokens' streams are massive.

    A sequence's norms are computed when it is first chosen, by one forward pass, which can be
    stopped. `still` is the static twin.

    Args:
        model, tokenizer, tokens: a model, its tokenizer and calibration tokens (sequences, length).
        block: where the slider starts; the number of blocks stands for the stream after the last.
    """
    controls = {
        "sequence": slider("sequence", 0, 0, len(tokens) - 1),
        "block": slider("entering block", block, 0, len(find_blocks(model))),
    }

    @cache
    def read(worker: Worker, sequence: int) -> tuple[Tensor, list[str]]:
        norms = stream_norms(model, tokens[sequence : sequence + 1], worker.progress)[0]
        return norms, pieces_of(tokenizer, tokens[sequence].tolist())

    def draw(worker: Worker, *, sequence: int, block: int) -> View:
        norms, pieces = read(worker, sequence)
        here = norms[block]
        ratios = (here / here.median().clamp(min=1e-30)).tolist()
        largest = here.argsort(descending=True, stable=True)[:TOP].tolist()
        first = largest[0]
        caption = (
            f"Sequence {sequence}, {block_name(block, len(norms))}: the token with the largest "
            f"stream is {pieces[first].translate(VISIBLE)!r} at position {first}, with "
            f"{_number(ratios[first])} times the median norm. More than {FULL} times the median: "
            f"{sum(r > FULL for r in ratios)} of {len(ratios)} tokens."
        )
        text = text_html(pieces, ratios, largest)
        table = table_html(pieces, here.tolist(), ratios, largest)
        figure = hidden_states_figure(norms.numpy(), block, largest, sequence=sequence)
        return View(figure, caption, text + table)

    return Explorer(controls, draw, hint=HINT)


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the one before it; a part of a character shows as �.

    Decoded alone, a token may lose the space it begins with.
    """
    pairs = [
        ids[:1],
        *([before, here] for before, here in zip(ids, ids[1:], strict=False)),
    ]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    alone = tokenizer.batch_decode([[number] for number in ids], **options)
    both = tokenizer.batch_decode(pairs, **options)
    pieces = alone[:1]
    for before, single, pair in zip(alone, alone[1:], both[1:], strict=False):
        pieces.append(pair[len(before) :] if pair.startswith(before) else single)
    return pieces


def text_html(
    pieces: Sequence[str], ratios: Sequence[float], top: Sequence[int]
) -> str:
    """The text as HTML, a span for each token: the farther above the median, the deeper its
    colour; those of `top` are bold, underlined and carry their rank.

    The colour is half transparent under the page's own text colour, so it is legible on white
    and on black.
    """
    ranks = {position: rank for rank, position in enumerate(top, 1)}
    spans = []
    for position, (piece, ratio) in enumerate(zip(pieces, ratios, strict=True)):
        plain = piece.strip() and "\n" not in piece
        text = html.escape(piece if plain else piece.translate(VISIBLE)) or "∅"
        depth = 0.55 * min(1.0, max(0.0, math.log(max(ratio, 1e-30)) / math.log(FULL)))
        style = f"background: rgba(230,120,0,{depth:.2f})"
        if position in ranks:
            style += "; font-weight: bold; text-decoration: underline 2px"
            text += f"<sup>{ranks[position]}</sup>"
        title = f"position {position}: {_number(ratio)} × median"
        line_end = "\n" if "\n" in piece else ""
        spans.append(f'<span title="{title}" style="{style}">{text}</span>{line_end}')
    return (
        f'<p style="line-height: 1.4">{LEGEND}</p><div tabindex="0" role="region" '
        f'aria-label="calibration text" style="{TEXT_STYLE}">{"".join(spans)}</div>'
    )


def table_html(
    pieces: Sequence[str],
    norms: Sequence[float],
    ratios: Sequence[float],
    top: Sequence[int],
) -> str:
    """The largest tokens as an HTML table, with the text around each."""
    rows = [
        {
            "rank": rank,
            "position": at,
            "token": pieces[at].translate(VISIBLE),
            "norm": _number(norms[at]),
            "× median": _number(ratios[at]),
            "context": "".join(
                [
                    *pieces[max(0, at - 6) : at],
                    "[",
                    pieces[at],
                    "]",
                    *pieces[at + 1 : at + 5],
                ]
            ).replace("\n", "↵"),
        }
        for rank, at in enumerate(top, 1)
    ]
    with pd.option_context("display.max_colwidth", None):
        return pd.DataFrame(rows).to_html(index=False, border=0, justify="left")


def _number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
