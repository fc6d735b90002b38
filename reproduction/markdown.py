"""Numbers and tables as text: three or four digits, value ± half, Markdown."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import NamedTuple

import pandas as pd

from helpers.explore.names import display_name

NO_SPREAD = pd.DataFrame()


def format_number(value: float | str) -> str:
    """Text and counts as they are, NaN as "–", else three digits below 1 and four from there on."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(value)
    if 0 < size < 0.0995:
        return f"{value:.3g}"
    if 0 < size < 1:
        return f"{value:.3f}"
    if size < 100:
        return f"{value:.2f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{float(f'{value:.4g}'):,.0f}"


def with_half(value: float | str, half: float) -> str:
    """Value ± half rounded alike, at most two digits of half; no ± where half is NaN or 0.

    The decimals are never more than those of the value alone.
    """
    text = format_number(value)
    if not half > 0:
        return text
    exponent = int(f"{half:.1e}".partition("e")[2])
    decimals = min(len(text.partition(".")[2]), 1 - exponent)
    value, half = (round(float(number), decimals) + 0.0 for number in (value, half))
    return f"{value:,.{max(0, decimals)}f} ± {half:,.{max(0, decimals)}f}"


def signed(change: float, half: float) -> str:
    """A change in percent with its sign: "−5.1", "+1.9 ± 0.8"."""
    change = round(float(change), 1) + 0.0  # "−0.0" is 0
    text = f"{change:+.1f}" + (f" ± {half:.1f}" if half > 0 else "")
    return text.replace("-", "−")


def to_markdown(table: pd.DataFrame, spread: pd.DataFrame = NO_SPREAD) -> str:
    """The table in Markdown, with display names, numbers to the right, and "± spread" if any."""
    spread = spread.reindex_like(table)  # rows such as chance have none
    cells = [
        map(
            signed if str(name).startswith("change") else with_half,
            table[name],
            spread[name],
        )
        for name in table
    ]
    rows = [[table.index.name or "", *table.columns], [":--", *["--:"] * len(cells)]]
    rows += zip(table.index, *cells, strict=True)
    lines = (" | ".join(display_name(str(cell)) for cell in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def unbroken(text: str) -> str:
    """A text whose numbers stay with their ± and % where a line is broken."""
    return text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")


def listed(words: Sequence[str]) -> str:
    """Words in a row: "50 %, 70 % and 2:4"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts in Markdown."""
    lines = (" | ".join(row) for row in [heads, [":--"] * len(heads), *rows])
    return "".join(f"| {line} |\n" for line in lines)


def beside(table: "Table", ours: "Table") -> pd.DataFrame:
    """The cells of a table as text, with ours in brackets where its digits differ, "–" for none."""
    texts, own = (
        each.frame.combine(each.spread.reindex_like(each.frame), _with_halves)
        for each in (table, ours)
    )
    own = own.reindex_like(texts).fillna("–")
    return texts.where(texts == own, texts + " (" + own + ")")


def _with_halves(values: pd.Series, halves: pd.Series) -> pd.Series:
    """`with_half` of each."""
    return pd.Series(list(map(with_half, values, halves)), values.index, dtype=object)


class Table(NamedTuple):
    """A table with a note in front of it; spread has what stands behind ±.

    records, with the same rows and columns, has the ids of the records that a cell is made of.
    """

    note: str
    frame: pd.DataFrame  # empty where the records do not allow it
    spread: pd.DataFrame = NO_SPREAD
    records: pd.DataFrame = NO_SPREAD

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"
