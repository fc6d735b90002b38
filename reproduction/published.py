"""Published perplexities and their ratios, which can be compared across models, with ours.

`reproduction/papers/` holds two files with the same columns: published.csv, collected from other
papers and repositories, and paper.csv, for the paper's own tables; a test checks them.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from reproduction.cells import Ids, ids_by
from reproduction.labels import column_key, row_key, target_name
from reproduction.records import Record
from reproduction.runs import perplexity_runs

FILES = ("published.csv", "paper.csv")
# what a number is about, its value, and where it was read; "window" has the tokens of an evaluation
# window, or of a calibration sequence, and 0 for zero-shot and where the source does not say
TYPES = {
    "model": str,
    "method": str,
    "pattern": str,
    "sparsity": float,
    "metric": str,
    "window": int,
    "value": float,
    "source": str,
}
RATIOS = {f"/ {rival}": rival for rival in ("sparsegpt", "wanda")}
CELL = ["at", "model", "source"]
DRAW = [*CELL, "seed"]  # what a method and its rival must share
RATIO_CAPTION = (
    "Perplexity, and its ratio to SparseGPT's and Wanda's in the same cell (ours: on seeds that "
    "both have), here and as published: below 1 the method is better. **The models, texts, "
    "windows and calibration differ.** Ratios of small models are often further "
    "from 1, not always: nearest to ours in size is OPT-125M."
)


def read_published() -> pd.DataFrame:
    """The numbers of published.csv and paper.csv, in the order of the files."""
    folder = Path(__file__).with_name("papers")
    tables = [pd.read_csv(folder / name, dtype=TYPES) for name in FILES]
    return pd.concat(tables, ignore_index=True)


def ratio_table(records: Iterable[Record]) -> pd.DataFrame:
    """Perplexities over SparseGPT's and over Wanda's in the same cell: ours, and published ones.

    The records are those of one model; a cell of ours is a mean over seeds, and its ratio one of
    means over the seeds that the rival has too. A row is named by its column in our tables ("at")
    and has the method, the model with the window, the perplexity, the two ratios (NaN without the
    rival) and the source. Magnitude pruning, with ratios in the hundreds, is left out.
    """
    theirs = read_published().query("metric == 'wikitext2_ppl'")
    theirs = theirs.assign(
        at=list(map(target_name, theirs["pattern"], theirs["sparsity"])),
        model=theirs["model"]
        + ", window "
        + theirs["window"].replace(0, "not said").map(str),
        perplexity=theirs["value"],
        # without another name of the method, so that it is that of its rivals
        full=theirs["source"],
        source=theirs["source"].str.replace(r" \(as .+\)$", "", regex=True),
    )
    ours = perplexity_runs(records).drop(columns="method")
    ours = ours.rename(columns={"label": "method", "target": "at"})
    runs = pd.concat([ours.assign(model="here", source="here"), theirs.assign(seed=0)])
    draws = runs.pivot_table("perplexity", DRAW, "method", sort=False)

    def means(numbers: pd.DataFrame) -> pd.Series:
        """The mean over seeds of each cell and method."""
        return numbers.groupby(CELL, sort=False).mean().stack(future_stack=True)

    table = means(draws).to_frame("perplexity")
    for ratio, rival in RATIOS.items():
        own = draws.drop(columns=rival)[draws[rival].notna()]
        # the rival's number, where the method has one with the same seed
        other = own.where(own.isna(), draws[rival], axis=0)
        table[ratio] = means(own) / means(other)
    cells = table.reset_index()
    cells["group"] = cells.groupby(CELL, sort=False).ngroup()
    cells["order"] = [
        (column_key(cell.at), cell.group, row_key(cell.method))
        for cell in cells.itertuples()
    ]
    cells = cells.query("method not in ['dense', 'magnitude', 'sparsegpt']")
    cells = cells.dropna(subset=list(RATIOS), how="all")
    cells = cells[cells["at"].isin(cells.query("model == 'here'")["at"])]
    names = theirs.set_index([*CELL, "method"])["full"].to_dict()
    cells["source"] = [
        names.get((cell.at, cell.model, cell.source, cell.method), cell.source)
        for cell in cells.itertuples()
    ]
    table = cells.sort_values("order").set_index("at")
    return table[["method", "model", "perplexity", *RATIOS, "source"]]


def ratio_cells(records: Iterable[Record], table: pd.DataFrame) -> pd.DataFrame:
    """The records of each cell of a `ratio_table`: of a ratio on the seeds that both have."""
    runs = ids_by(perplexity_runs(records), "target", "label", "seed")

    def by_seed(at: str, method: str) -> dict[int, Ids]:
        return {key[2]: ids for key, ids in runs.items() if key[:2] == (at, method)}

    rows = []
    for at, method, model in zip(
        table.index, table["method"], table["model"], strict=True
    ):
        own = by_seed(at, method) if model == "here" else {}
        ratios = []
        for rival in RATIOS.values():
            theirs = by_seed(at, rival) if method != rival else {}
            shared = [seed for seed in own if seed in theirs]
            ratios.append(sum((own[seed] + theirs[seed] for seed in shared), ()))
        rows.append([(), (), sum(own.values(), ()), *ratios, ()])
    return pd.DataFrame(rows, table.index, table.columns)
