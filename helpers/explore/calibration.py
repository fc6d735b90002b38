"""Explorer of the calibration text: which tokens carry the massive activations?"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import ipywidgets
from torch import Tensor, nn

from helpers.capture import check_tokens, stream_norms
from helpers.errors import BadParameter, check_whole
from helpers.explore.controls import Explorer, View, Worker, slider
from helpers.explore.source import some_tokens
from helpers.models import find_blocks, load_model
from helpers.results import block_name, stream_figure

TOP = 8  # tokens in the table
FULL = 10  # times the median norm, from which a token has the full colour
HINT = (
    "The text that the model was shown, coloured by the norm of each token's stream at the block. "
    "Look at: which tokens stand out, at which blocks that begins and ends, and whether they "
    "mean anything."
)
LEGEND = (
    f'<p style="line-height: 1.4">Background: from none at the median norm to full at {FULL} times '
    "it; bold and underlined with a number: the tokens of the table. ␣ is a space that stands "
    "alone, ↵ the end of a line.</p>"
)
TEXT_STYLE = (
    "max-height: 22em; overflow: auto; line-height: 1.75; white-space: pre-wrap; padding: .5em; "
    "border: 1px solid rgba(128,128,128,.5); overflow-wrap: anywhere"
)


def calibration_explorer(
    network: nn.Module | str = "embedded",
    tokenizer: Any = None,
    tokens: Tensor | None = None,
    *,
    window: int = 0,
    block: int | None = None,
    top: int = TOP,
) -> Explorer:
    """Read the calibration text window by window; see which tokens' streams are massive.

    Args: a model, its tokenizer and calibration tokens (sequences, length), or the model's name,
    to have all loaded; window, block (the middle one) and top, how many tokens are listed. Block
    number "blocks" is after the last one. A window's norms are computed when it is first chosen,
    by one forward pass, which can be stopped. `still` is the static twin.
    Raises BadParameter, CalibrationTooShort.
    """
    if isinstance(network, str):
        network, tokenizer = load_model(network)
        tokens = some_tokens(tokenizer) if tokens is None else tokens
    if tokens is None or tokenizer is None:
        raise BadParameter(
            "tokenizer or tokens are missing: give a model, its tokenizer and calibration tokens, "
            "or a model's name alone"
        )
    check_tokens(network, tokens)
    blocks, windows, top = len(find_blocks(network)), len(tokens), check_whole("top", top)
    if check_whole("window", window, least=0) >= windows:
        raise BadParameter(f"window {window!r} does not exist: give 0 to {windows - 1}")
    whole, block = ipywidgets.IntSlider, blocks // 2 if block is None else block
    controls = {
        "window": slider(whole, window, "window", min=0, max=max(1, windows - 1)),
        "block": slider(whole, block, "entering block", min=0, max=blocks),
    }
    controls["window"].max = windows - 1  # of one window too, which is no range

    @cache
    def norms(worker: Worker, window: int) -> Tensor:
        return stream_norms(network, tokens[window : window + 1], worker.progress)[0]

    @cache
    def pieces(window: int) -> list[str]:
        return pieces_of(tokenizer, tokens[window].tolist())

    def draw(worker: Worker, *, window: int, block: int) -> View:
        return _view(norms(worker, window), pieces(window), window, block, top)

    return Explorer(controls, draw, hint=HINT)


def _view(norms: Tensor, pieces: Sequence[str], window: int, block: int, count: int) -> View:
    """The picture of a window at a block, its summary, and the text with its largest tokens.

    norms: (blocks + 1, tokens).
    """
    here = norms[block]
    ratios = (here / here.median().clamp(min=1e-30)).tolist()
    top = here.argsort(descending=True, stable=True)[:count].tolist()
    caption = (
        f"Window {window}, {block_name(block, len(norms))}: the largest stream is that of "
        f"{visible(pieces[top[0]])!r} at position {top[0]}, {_number(ratios[top[0]])} times the "
        f"median's norm; {sum(r > FULL for r in ratios)} of {len(ratios)} tokens have more "
        f"than {FULL} times the median."
    )
    markup = text_html(pieces, ratios, top) + table_html(pieces, here.tolist(), ratios, top)
    return View(stream_figure(norms.numpy(), block, top, window=window), caption, markup)


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the one before it; a part of a character shows as �.

    Decoded alone, a token may lose the space it begins with.
    """
    pairs = [ids[:1], *([before, here] for before, here in zip(ids, ids[1:], strict=False))]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    alone = tokenizer.batch_decode([[number] for number in ids], **options)
    both = tokenizer.batch_decode(pairs, **options)
    pieces = alone[:1]
    for before, single, pair in zip(alone, alone[1:], both[1:], strict=False):
        pieces.append(pair[len(before) :] if pair.startswith(before) else single)
    return pieces


def visible(piece: str) -> str:
    """A token's text with its white space made visible."""
    for space, sign in (("\n", "↵"), ("\r", "␍"), ("\t", "⇥"), (" ", "␣")):
        piece = piece.replace(space, sign)
    return piece


def text_html(pieces: Sequence[str], ratios: Sequence[float], top: Sequence[int]) -> str:
    """The text as HTML, a span for each token: the farther above the median, the deeper its
    colour; those of `top` are bold, underlined and carry their rank.

    The colour is half transparent under the page's own text colour, so it is legible on white
    and on black.
    """
    ranks = {position: rank for rank, position in enumerate(top, 1)}
    spans = []
    for position, (piece, ratio) in enumerate(zip(pieces, ratios, strict=True)):
        plain = piece.strip() and "\n" not in piece
        text = html.escape(piece if plain else visible(piece)) or "∅"  # a token without text
        depth = 0.55 * min(1.0, max(0.0, math.log(max(ratio, 1e-30)) / math.log(FULL)))
        style = f"background: rgba(230,120,0,{depth:.2f})" if depth >= 0.02 else ""
        if position in ranks:
            style += "; font-weight: bold; text-decoration: underline 2px"
            text += f"<sup>{ranks[position]}</sup>"
        title = html.escape(f"position {position}: {_number(ratio)} × median")
        spans.append(f'<span title="{title}" style="{style}">{text}</span>')
        spans.append("\n" if "\n" in piece else "")
    head = f'<div tabindex="0" role="region" aria-label="calibration text" style="{TEXT_STYLE}">'
    return f"{LEGEND}{head}{''.join(spans)}</div>"


def table_html(
    pieces: Sequence[str], norms: Sequence[float], ratios: Sequence[float], top: Sequence[int]
) -> str:
    """The largest tokens as an HTML table, with the text before and after each."""
    style = 'style="padding: 2px 10px; text-align: left"'
    names = ("rank", "position", "token", "norm", "× median", "context")
    lines = ["".join(f'<th scope="col" {style}>{name}</th>' for name in names)]
    for rank, at in enumerate(top, 1):
        numbers = (rank, at, visible(pieces[at]), _number(norms[at]), _number(ratios[at]))
        around = "".join(pieces[max(0, at - 6) : at]), pieces[at], "".join(pieces[at + 1 : at + 5])
        before, token, after = (html.escape(text.replace("\n", "↵")) for text in around)
        cells = [*(html.escape(str(cell)) for cell in numbers), f"{before}<b>{token}</b>{after}"]
        lines.append("".join(f"<td {style}>{cell}</td>" for cell in cells))
    caption = '<caption style="text-align: left">The largest tokens at this block</caption>'
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="line-height: 1.4; margin-top: .5em">{caption}{rows}</table>'


def _number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
