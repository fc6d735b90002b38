"""Pieces of HTML pages that open from a file, ask no server for anything, and read well.

Whatever comes from a record or a notebook is data: it is escaped here. The look is in report.css,
what happens on a click in report.js; without JavaScript a page holds all that it says.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import mistune
import pandas as pd

from helpers.describe import Words
from helpers.tables import format_number

MISSING = "–"
# a number as our tables write it, with what may stand behind it
NUMBER = re.compile(
    r"(?P<number>[+−-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?:%|s|GB)?\s*(?:±.*)?", re.I
)
PIXELS = 4 / 3  # of a point
# a figure narrower than this share of its size could not be read: its box scrolls instead
LEAST_SCALE = 0.75
SHORT = 32  # characters of a cell that stay on one line


# ------------------------------------------------------------------ text


def escape(value: object) -> str:
    """Any value as text that HTML takes literally, also inside an attribute."""
    return html.escape(str(value), quote=True)


def _together(text: str) -> str:
    """Text in which "60 %" and "ρ = 1" stay on one line."""
    space = "\N{NO-BREAK SPACE}"
    return text.replace(" %", f"{space}%").replace("ρ = ", f"ρ{space}={space}")


def prose(text: str) -> str:
    """Text of a sentence as HTML."""
    return escape(_together(text))


class _Renderer(mistune.HTMLRenderer):
    """Markdown to HTML that loads nothing: the words of an image instead of the image."""

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """The words of an image."""
        return text


def markdown(text: str) -> str:
    """Markdown within a paragraph as HTML: `code`, **bold** and links; tags are shown as text."""
    block = mistune.BlockParser()
    block.rules = ["blank_line"]  # "1. " or "- " at the start of a number begins no list
    render = mistune.Markdown(_Renderer(escape=True), block=block)
    made = str(render(_together(text))).strip()
    return re.sub(r"^<p>(.*)</p>$", r"\1", made, flags=re.S).replace("</p>\n<p>", "<br>")


def slug(name: str) -> str:
    """A name as part of an id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"


# ------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Cell:
    """The HTML of a table cell and what it is sorted by: a number, "" if missing, None as text."""

    html: str
    key: float | str | None = None


def number_in(text: str) -> float | None:
    """The number that a cell says, before any unit or "± …"; None if it says something else."""
    found = NUMBER.fullmatch(text.replace("**", "").strip())
    if not found:
        return None
    return float(found["number"].replace(",", "").replace("−", "-"))


def cell_of(value: Any, spread: Any = None) -> Cell:
    """A value as a table cell: text is Markdown, a number has its "± spread" where there is one."""
    if isinstance(value, str):
        return Cell(markdown(value), "" if value in ("", MISSING) else number_in(value))
    if pd.isna(value):
        return Cell(MISSING, "")
    shown = escape(format_number(value))
    if spread is not None and not pd.isna(spread):
        shown += f' <span class="spread">± {escape(format_number(spread))}</span>'
    return Cell(shown, float(value) if isinstance(value, Real) else number_in(str(value)))


def frame_table(
    frame: pd.DataFrame,
    spread: pd.DataFrame | None = None,
    *,
    best: bool = False,
    **about: Any,
) -> str:
    """A data frame as a table, its index as the first column; `about` goes to `table`.

    With `best` the lowest number of each column is bold, not counting the dense model's.
    """
    names = list(map(str, frame.index))
    lowest = {}
    if best:
        pruned = frame.loc[[name != "dense" for name in names]]
        lowest = {column: pruned[column].min() for column in frame.columns}
    rows = []
    for place, name in enumerate(names):  # by place, because labels may repeat
        row = [Cell(escape(name))]
        for column in frame.columns:
            value = frame[column].iloc[place]
            cell = cell_of(value, None if spread is None else spread[column].iloc[place])
            if name != "dense" and not isinstance(value, str) and value == lowest.get(column):
                cell = Cell(f"<strong>{cell.html}</strong>", cell.key)
            row.append(cell)
        rows.append(row)
    return table([frame.index.name or "", *map(str, frame.columns)], rows, **about)


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], *, ident: str, caption: str, note: str = ""
) -> str:
    """A table in a box that scrolls by itself; the first cell of a row is its heading.

    `note` is the id of the text that explains it.
    """
    numeric = [_is_numeric([row[column] for row in rows]) for column in range(len(head))]
    heads = "".join(
        f'<th scope="col"{_number_class(number)}>{escape(name) or "<span>&nbsp;</span>"}</th>'
        for name, number in zip(head, numeric, strict=True)
    )
    lines = "\n".join(_table_row(row, numeric) for row in rows)
    described = f' aria-describedby="{note}"' if note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{ident}-caption">\n'
        f'<table class="sortable" id="{ident}"{described}>\n'
        f'<caption id="{ident}-caption">{escape(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>\n"
    )


def _is_numeric(cells: Sequence[Cell]) -> bool:
    """Whether most of a column's cells that are there are numbers."""
    there = [cell for cell in cells if cell.key != ""]
    return 2 * sum(isinstance(cell.key, float) for cell in there) > len(there)


def _number_class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _table_row(row: Sequence[Cell], numeric: Sequence[bool]) -> str:
    """One row: its heading, then its cells."""
    first, *rest = row
    cells = [f'<th scope="row"{_short(first)}{_key(first)}>{first.html}</th>']
    for cell, number in zip(rest, numeric[1:], strict=True):
        kind = _number_class(True) if number else _short(cell)
        cells.append(f"<td{kind}{_key(cell)}>{cell.html}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _short(cell: Cell) -> str:
    """The class of a cell that stays on one line."""
    return ' class="short"' if len(html.unescape(cell.html)) <= SHORT else ""


def _key(cell: Cell) -> str:
    """What a cell is sorted by; without it, its text."""
    return "" if cell.key is None else f' data-key="{cell.key}"'


# ------------------------------------------------------------------ figures


def figure(svg: str, ident: str, words: Words) -> str:
    """A figure of matplotlib's SVG with its words, in a box that scrolls by itself."""
    return (
        f'<figure id="{ident}">\n<div class="scroll picture" role="region" tabindex="0" '
        f'aria-label="Figure: {escape(words.title)}">\n{inline_svg(svg, ident, words)}\n</div>\n'
        f"<figcaption><strong>{prose(words.title)}.</strong> {prose(words.finding)} "
        f'<span class="reading">{prose(words.reading)}</span></figcaption>\n</figure>\n'
    )


def inline_svg(svg: str, ident: str, words: Words) -> str:
    """matplotlib's SVG as part of a page: ids of its own, colours of the page, a name and a text.

    Its colours become variables of report.css, so that a dark page has a dark figure. Raises
    ValueError for text that is not matplotlib's SVG.
    """
    found = re.search(r'<svg\b[^>]*\bviewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>(.*)</svg>', svg, re.S)
    if not found:
        raise ValueError("no SVG of matplotlib: it has no viewBox")
    width, height = (float(found[place]) for place in (1, 2))
    body = re.sub(
        r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", found[3], flags=re.S
    )
    body = re.sub(r'\bid="([^"]+)"', rf'id="{ident}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{ident}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{ident}-\1)", body)
    body = re.sub(r"(?<=: )#([0-9a-f]{6})\b", r"var(--svg-\1, #\1)", body)
    body = re.sub(r"\n\s*", "\n", body.replace("xlink:href", "href"))
    shown = PIXELS * width
    return (
        f'<svg class="chart" role="img" aria-labelledby="{ident}-title {ident}-text" '
        f'viewBox="0 0 {width:g} {height:g}" width="{shown:.0f}" '
        f'height="{PIXELS * height:.0f}" style="min-width: {LEAST_SCALE * shown:.0f}px">\n'
        f'<title id="{ident}-title">{escape(words.title)}</title>\n'
        f'<desc id="{ident}-text">{escape(words.reading)} {escape(words.finding)}</desc>\n'
        f"{body.strip()}\n</svg>"
    )


# ------------------------------------------------------------------ pages


@lru_cache(maxsize=8)
def asset(name: str) -> str:
    """The text of a file beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def policy(script: str = "") -> str:
    """A Content-Security-Policy that allows this one script and forbids every request."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    scripts = f"'sha256-{digest}'" if script else "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def document(title: str, body: str, *, script: str = "", kind: str = "report") -> str:
    """A whole page; `body` is everything in it, `kind` a class that report.css knows."""
    ending = f"<script>{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(script))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('report.css')}</style>\n</head>\n"
        f'<body class="{kind}">\n<a class="skip" href="#main">Skip to the content</a>\n'
        f"{body}\n{ending}</body>\n</html>\n"
    )


def facts(pairs: Mapping[str, str]) -> str:
    """Names with their HTML as a list of descriptions."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>\n" for k, v in pairs.items())
    return f'<dl class="facts">\n{items}</dl>\n'


def command(text: str) -> str:
    """A command line; report.js adds the button that copies it."""
    return f'<span class="command"><code>{escape(text)}</code></span>'


def contents(entries: Iterable[tuple[str, str]]) -> str:
    """The list of contents: (id, title) of each section."""
    links = "\n".join(f'<li><a href="#{i}">{escape(title)}</a></li>' for i, title in entries)
    return f'<nav aria-label="Contents">\n<ol>\n{links}\n</ol>\n</nav>\n'
