"""Which records each cell of a table is made of: the way back from a number to its runs.

A frame of cells has the rows and columns of a table, and in each cell a tuple of the ids of records
(`record_id`, the names of their files), () where no run made the cell. From these records alone the
cell is the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from helpers.explore.names import display_name
from reproduction.markdown import Table, format_number, text_table, with_half
from reproduction.records import record_id

Ids = tuple[str, ...]

OPENING = """\
Which records each number of these tables is made of. A record holds the parameters of one run, what
it measured, its processor, minutes and commit; all of them are in [records](../records), each under
its full name `<notebook>--<name>.json`. One run again:
`make reproduce PLAN={plan} ONLY='<notebook>--<name>'`. A perplexity is the mean of what stands
beside its records. [runs.csv](runs.csv) has all runs as one table, for pandas.
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


def records_page(
    tables: dict[str, list[Table]], perplexities: Mapping[str, float], plan: str
) -> str:
    """A page of Markdown that names the records of each cell, for the folder of the tables.

    A line is a row with its columns of the same records, or all of a table. Ratios to published
    numbers, made of the records of the perplexities, are left out. perplexities: of records by id,
    which stand beside them where a cell is their mean.
    """
    parts = [OPENING.format(plan=plan)]
    names = sorted(tables.keys() - {"published_ratios", "perplexity"})
    for name in ["perplexity", *names] if "perplexity" in tables else names:
        pages = defaultdict(list)  # tables of the same lines are shown once
        for number, table in enumerate(tables[name], 1):
            heads, lines = ["row", "column", "records"], _lines(table)
            if name == "perplexity":
                heads[2:] = ["perplexity", "records"]
                lines = _means(table, perplexities)
            pages[text_table(heads, lines)].append(number)
        for page, numbers in pages.items():
            which = ""
            if len(pages) > 1:
                which = f", table {' and '.join(map(str, numbers))}"
            parts.append(f"**[{name}]({name}.md)**{which}\n\n{page}")
    return "\n".join(parts)


def _means(table: Table, values: Mapping[str, float]) -> Iterator[list[str]]:
    """Row, column and number of each cell that is a mean of records, and these with their own."""
    for row, cells in table.records.iterrows():
        if len(set(cells)) == 1:  # the dense model, which has no sparsity
            cells = cells.iloc[:1]
        for column, ids in cells.items():
            if ids:
                number = with_half(
                    table.frame.at[row, column], table.spread.at[row, column]
                )
                links = (
                    f"{_link(each)} {format_number(values[each])}"
                    for each in dict.fromkeys(ids)
                )
                where = column if len(cells) == len(table.frame.T) else "all"
                yield [display_name(row), where, number, " · ".join(links)]


def _link(name: str) -> str:
    """A link to a record, with the name of its run."""
    return f"[{name.partition('--')[2]}](../records/{name}.json)"


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
        links = map(_link, dict.fromkeys(ids))
        yield [display_name(title), display_name(where), " · ".join(links)]
