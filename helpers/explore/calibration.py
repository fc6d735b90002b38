"""Explorer of the calibration text: which tokens carry the massive activations?"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from torch import Tensor, nn

from helpers.capture import check_tokens, stream_norms
from helpers.errors import BadParameter, check_whole
from helpers.explore.controls import DPI, Explorer, Progress, Task, paragraph, row, slider, to_img
from helpers.explore.source import some_tokens
from helpers.models import find_blocks, load_model
from helpers.results import block_name, stream_figure, to_png

TOP = 8  # tokens in the table
FULL = 10  # times the median from which a token has the full colour
HINT = (
    "The text that the model was shown, coloured by the norm of each token's stream at the block. "
    "Look at: which tokens stand out, at which blocks they begin and cease to, and whether they "
    "mean anything."
)


def calibration_explorer(
    network: nn.Module | str = "embedded",
    tokenizer: Any = None,
    tokens: Tensor | None = None,
    *,
    window: int = 0,
    block: int | None = None,
    top: int = TOP,
) -> CalibrationExplorer:
    """Read the calibration text window by window; see which tokens' streams are massive.

    Args: a model, its tokenizer and calibration tokens (sequences, length), or the model's name,
    to have all loaded; window, block (the middle one) and top, how many tokens are listed. Block
    number "blocks" is behind the last one. A window's norms are computed when it is first chosen,
    by one forward pass, which can be stopped.
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
    blocks, windows = len(find_blocks(network)), len(tokens)
    kind, block = ipywidgets.IntSlider, blocks // 2 if block is None else block
    if check_whole("window", window, least=0) >= windows:
        raise BadParameter(f"window {window!r} does not exist: give 0 to {windows - 1}")
    controls = {
        "window": slider(kind, window, "window", min=0, max=max(1, windows - 1)),
        "block": slider(kind, block, "entering block", min=0, max=blocks),
    }
    controls["window"].max = windows - 1
    reader = Reader(network, tokenizer, tokens, check_whole("top", top))
    return CalibrationExplorer(reader, controls)


class CalibrationExplorer(Explorer):
    """The explorer of the text; `still` is what it shows as HTML for a page without a kernel."""

    def __init__(self, reader: Reader, controls: dict[str, ipywidgets.Widget]) -> None:
        self.text = ipywidgets.HTML()
        self._reader = reader
        task = Task(quiet=True)

        def draw(window: int, block: int) -> Figure:
            return reader.picture(window, block, task.progress)

        super().__init__(controls, draw, task=task, rows=[row(*controls.values())], hint=HINT)

    def below(self) -> list[ipywidgets.Widget]:
        """The picture, its summary, and the text with its table."""
        return [*super().below(), self.text]

    @property
    def still(self) -> Still:
        """Text, table and figure as they stand, to be shown by a notebook."""
        return Still(self.figure)

    def _show(self, drawn: Any) -> None:
        """The picture, and the text that belongs to it."""
        super()._show(drawn)
        self.text.value = self._figure.text


class Still:
    """What a calibration explorer shows, without controls."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure

    def _repr_html_(self) -> str:
        words = self._figure.caption
        picture = to_img(to_png(self._figure, dpi=DPI), words)
        return f"{picture}{paragraph(words)}{self._figure.text}"


class Reader:
    """Norms and pieces of text of each window, as they are asked for."""

    def __init__(self, model: nn.Module, tokenizer: Any, tokens: Tensor, top: int) -> None:
        self.model, self.tokenizer, self.tokens, self.top = model, tokenizer, tokens, top
        self._norms: dict[int, Tensor] = {}
        self._pieces: dict[int, list[str]] = {}

    def norms(self, window: int, progress: Progress) -> Tensor:
        """The norms of one window's stream, (blocks + 1, length)."""
        if window not in self._norms:
            self._norms[window] = stream_norms(
                self.model, self.tokens[window : window + 1], progress
            )[0]
        return self._norms[window]

    def pieces(self, window: int) -> list[str]:
        """The text of each token of a window."""
        if window not in self._pieces:
            self._pieces[window] = pieces_of(self.tokenizer, self.tokens[window].tolist())
        return self._pieces[window]

    def picture(self, window: int, block: int, progress: Progress) -> Figure:
        """The figure, with its summary as `caption`, and text and table as `text`."""
        norms, pieces = self.norms(window, progress), self.pieces(window)
        here = norms[block]
        ratios = (here / here.median().clamp(min=1e-30)).tolist()
        top = here.argsort(descending=True, stable=True)[: self.top].tolist()
        figure = stream_figure(norms.numpy(), block, top, window=window)
        figure.text = read_text(pieces, ratios, top) + top_table(pieces, here.tolist(), ratios, top)
        first = top[0]
        figure.caption = (
            f"Window {window}, {block_name(block, len(norms))}: the largest stream is that of "
            f"{visible(pieces[first])!r} at position {first}, {_number(ratios[first])} times the "
            f"median's norm; {sum(r > FULL for r in ratios)} of {len(ratios)} tokens have more "
            f"than {FULL} times the median."
        )
        return figure


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the one before it; a part of a character shows as �.

    Decoded alone, a token may lose the space it begins with.
    """
    pairs = [[ids[0]], *([before, here] for before, here in zip(ids, ids[1:], strict=False))]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    alone = tokenizer.batch_decode([[number] for number in ids], **options)
    both = tokenizer.batch_decode(pairs, **options)
    pieces = alone[:1]
    for before, single, pair in zip(alone, alone[1:], both[1:], strict=False):
        pieces.append(pair[len(before) :] if pair.startswith(before) else single)
    return pieces


def visible(piece: str) -> str:
    """A token's text with all white space to be seen."""
    for space, sign in (("\n", "↵"), ("\r", "␍"), ("\t", "⇥"), (" ", "␣")):
        piece = piece.replace(space, sign)
    return piece


def read_text(pieces: Sequence[str], ratios: Sequence[float], top: Sequence[int]) -> str:
    """The text as HTML, a token a span: the broader from the median, the deeper its colour; those
    of `top` are bold, underlined and carry their rank.

    The colour lies half transparent under the page's own text colour, so it can be read on white
    and on black.
    """
    ranks = {position: rank for rank, position in enumerate(top, 1)}
    spans = [
        _span(position, piece, ratio, ranks.get(position))
        for position, (piece, ratio) in enumerate(zip(pieces, ratios, strict=True))
    ]
    style = "max-height: 22em; overflow: auto; line-height: 1.75; white-space: pre-wrap; "
    style += "border: 1px solid rgba(128,128,128,.5); padding: .5em; overflow-wrap: anywhere"
    legend = (
        f'<p style="line-height: 1.4">Background: from none at the median norm to full at {FULL} '
        "times it; bold and underlined with a number: the tokens of the table. ␣ is a space that "
        "stands alone, ↵ the end of a line.</p>"
    )
    head = f'<div tabindex="0" role="region" aria-label="calibration text" style="{style}">'
    return legend + head + "".join(spans) + "</div>"


def _span(position: int, piece: str, ratio: float, rank: int | None) -> str:
    """One token."""
    bare = piece.strip()
    text = html.escape(piece) if bare and "\n" not in piece else html.escape(visible(piece))
    text = text or "∅"  # a token that adds nothing to be seen
    depth = 0.55 * min(1.0, max(0.0, math.log(max(ratio, 1e-30)) / math.log(FULL)))
    style = f"background: rgba(230,120,0,{depth:.2f})" if depth >= 0.02 else ""
    told = html.escape(f"position {position}: {_number(ratio)} × median", quote=True)
    line = "\n" if "\n" in piece else ""
    if rank is None:
        return f'<span title="{told}" style="{style}">{text}</span>{line}'
    style += "; font-weight: bold; text-decoration: underline 2px"
    return f'<span title="{told}" style="{style}">{text}<sup>{rank}</sup></span>{line}'


def _number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def top_table(
    pieces: Sequence[str], norms: Sequence[float], ratios: Sequence[float], top: Sequence[int]
) -> str:
    """The largest tokens as an HTML table, with what stands before and after them."""
    cell = 'style="padding: 2px 10px; text-align: {}"'
    head = "".join(
        f'<th scope="col" {cell.format("left")}>{name}</th>'
        for name in ("rank", "position", "token", "norm", "× median", "in its place")
    )
    rows = []
    for rank, at in enumerate(top, 1):
        before, after = "".join(pieces[max(0, at - 6) : at]), "".join(pieces[at + 1 : at + 5])
        size, ratio = _number(norms[at]), _number(ratios[at])
        numbers = [str(rank), str(at), visible(pieces[at]), size, ratio]
        cells = [f"<td {cell.format('left')}>{html.escape(value)}</td>" for value in numbers]
        place = [html.escape(text.replace("\n", "↵")) for text in (before, pieces[at], after)]
        cells.append(f"<td {cell.format('left')}>{place[0]}<b>{place[1]}</b>{place[2]}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = '<caption style="text-align: left">The largest tokens at this block</caption>'
    style = 'style="line-height: 1.4; margin-top: .5em"'
    return f"<table {style}>{caption}<tr>{head}</tr>{''.join(rows)}</table>"
