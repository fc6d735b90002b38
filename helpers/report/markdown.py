"""Tables with their notes, and how numbers are printed in Markdown."""

from numbers import Integral
from typing import NamedTuple

import pandas as pd

from helpers.report.labels import display_name


def format_number(value: float | str) -> str:
    """Text and counts as they are, NaN as "–", else two decimals (1 to 100) or three digits."""
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
    return f"{value:,.0f}" if size < 1e6 else f"{value:.1e}"


def to_markdown(table: pd.DataFrame, spread: pd.DataFrame | None = None) -> str:
    """The table in Markdown, with display names, numbers to the right, and "± spread" if any."""
    cells = table.map(format_number)
    if spread is not None:
        spread = spread.reindex(cells.index)  # rows such as chance have none
        cells += spread.map(_plus_minus)
    width = len(table.columns)
    rows = [[table.index.name or "", *table.columns], [":--", *["--:"] * width]]
    rows += cells.itertuples(name=None)
    lines = [display_name(" | ".join(map(str, row))) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _plus_minus(half: float) -> str:
    return "" if pd.isna(half) else f" ± {format_number(half)}"


class Table(NamedTuple):
    """A table with a note in front of it; its frame is None where the records do not allow it.

    `about` tells the tables of one name apart.
    """

    about: str
    note: str
    frame: pd.DataFrame | None
    spread: pd.DataFrame | None = None

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"
