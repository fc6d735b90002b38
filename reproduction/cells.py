"""Which records each cell of a table is made of: the way back from a number to its runs.

A frame of cells has the rows and columns of a table, and in each cell a tuple of the ids of records
(`record_id`, the names of their files), () where no run made the cell. From these records alone the
cell is the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from helpers.explore.names import display_name
from reproduction.markdown import Table, text_table
from reproduction.records import record_id

Ids = tuple[str, ...]

OPENING = """\
Which records each number of these tables is made of. A record holds the parameters of one run, what
it measured, its processor, minutes and commit; all of them are in [records](../records), each under
its full name `<notebook>--<name>.json`. One run again:
`make reproduce PLAN=<plan> ONLY='<notebook>--<name>'`.
"""


def ids_by(runs: pd.DataFrame, *columns: str) -> dict[tuple, Ids]:
    """The ids of the records of those runs that share the values of these columns, seed by seed."""
    ids = defaultdict(tuple)
    runs = runs.sort_values("seed", kind="stable")  # files have "-seed1" before seed 0
    for *key, record in runs[[*columns, "record"]].itertuples(index=False):
        ids[tuple(key)] += (record_id(record),)
    return ids


def cells_like(frame: pd.DataFrame, ids: Callable[[Any, str], Ids]) -> pd.DataFrame:
    """The cells of a table by a function of row and column, which are labels of the frame.

    A number that is NaN has no records.
    """
    cells = [
        [
            ids(row, column) if known else ()
            for column, known in zip(frame, values, strict=True)
        ]
        for row, *values in frame.notna().itertuples()
    ]
    return pd.DataFrame(cells, frame.index, frame.columns)


def records_page(tables: dict[str, list[Table]]) -> str:
    """A page of Markdown that names the records of each cell, for the folder of the tables.

    A line is a row with its columns of the same records, or all of a table. Ratios to published
    numbers, made of the records of the perplexities, are left out.
    """
    parts = [OPENING]
    names = sorted(tables.keys() - {"published_ratios", "perplexity"})
    for name in ["perplexity", *names] if "perplexity" in tables else names:
        pages = defaultdict(list)  # tables of the same lines are shown once
        for number, table in enumerate(tables[name], 1):
            pages[text_table(["row", "column", "records"], _lines(table))].append(
                number
            )
        for page, numbers in pages.items():
            which = ""
            if len(pages) > 1:
                which = f", table {' and '.join(map(str, numbers))}"
            parts.append(f"**[{name}]({name}.md)**{which}\n\n{page}")
    return "\n".join(parts)


def _lines(table: Table) -> Iterator[list[str]]:
    """Row, columns and links of the lines of a table on the page."""
    lines = []
    rows = zip(table.frame.itertuples(), table.records.itertuples(), strict=True)
    for (label, *values), (_, *cells) in rows:
        columns = defaultdict(list)
        for column, ids in zip(table.records, cells, strict=True):
            columns[ids].append(column)
        empty = columns.pop((), [])
        # a text, such as a target, tells rows of one label apart
        texts = [values[table.frame.columns.get_loc(column)] for column in empty]
        texts = [text for text in texts if isinstance(text, str)]
        for ids, own in columns.items():
            where = "; ".join(own)
            if len(columns) == 1 and len(texts) == len(empty):
                where = "all"
            lines.append((", ".join([label, *texts]), where, ids))
    if len(lines) == len(table.frame) and len({ids for *_, ids in lines}) == 1:
        lines = [("all", "all", lines[0][2])]
    for title, where, ids in lines:
        links = (
            f"[{each.partition('--')[2]}](../records/{each}.json)"
            for each in dict.fromkeys(ids)
        )
        yield [display_name(title), display_name(where), " · ".join(links)]
