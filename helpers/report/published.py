"""Published perplexities beside ours, and their ratios, which compare across models.

`helpers/report/papers/` holds two files with the same columns: published.csv, collected from other
papers and repositories, and paper.csv, for the paper's own tables; a test checks them. Perplexities
stand beside ours in the same cell, with their ratios to SparseGPT's and to Wanda's, which can be
compared across models.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from helpers.report import frame
from helpers.report.frame import Record

FILES = ("published.csv", "paper.csv")
# what a number is about, its value, and where it was read; "window" has the tokens of an evaluation
# window, or of a calibration sequence, and 0 for zero-shot
TYPES = {"model": str, "method": str, "pattern": str, "sparsity": float, "metric": str,
         "window": int, "value": float, "source": str}  # fmt: skip
RIVALS = ("sparsegpt", "wanda")
CELL = ["at", "model", "source"]  # of a ratio
DIFFERENT = (
    "Perplexity, and its ratio to SparseGPT's and Wanda's in the same cell, here and as published: "
    "below 1 the method is better. **The models, texts and windows differ.** Pruning hurts a "
    "small model more, which moves its ratios away from 1."
)


def read_published() -> pd.DataFrame:
    """The numbers of published.csv and paper.csv, in the order of the files."""
    folder = Path(__file__).with_name("papers")
    return pd.concat(
        [pd.read_csv(folder / name, dtype=TYPES) for name in FILES], ignore_index=True
    )


def ratio_table(records: Iterable[Record]) -> pd.DataFrame | None:
    """Perplexities over SparseGPT's and over Wanda's in the same cell: ours, and published ones.

    The records are those of one model; a cell of ours is a mean over seeds. A row has the cell
    ("at", its name), the method, the model with the window, the perplexity, the two ratios (NaN
    without the rival) and the source. Magnitude pruning, with ratios in the hundreds, is left
    out. None without a rival of ours.
    """
    theirs = read_published()
    theirs = theirs[theirs["metric"] == "wikitext2_ppl"]
    at = list(map(frame.target_name, theirs["pattern"], theirs["sparsity"]))
    model = theirs["model"] + ", window " + theirs["window"].map(str)
    source = theirs["source"].str.replace(
        r" \(as .+\)$", "", regex=True
    )  # another name
    theirs = theirs.assign(at=at, model=model, source=source)
    ours = (
        frame.perplexity_cells(records)["mean"]
        .rename("value")
        .rename_axis(["method", "at"])
    )
    cells = pd.concat([ours.reset_index().assign(model="here", source="here"), theirs])
    ratios = [f"/ {rival}" for rival in RIVALS]
    for rival, ratio in zip(RIVALS, ratios, strict=True):
        values = cells["value"].where(cells["method"] == rival)
        rivals = values.groupby([cells[name] for name in CELL]).transform("first")
        cells[ratio] = (cells["value"] / rivals).where(cells["method"] != rival)
    cells["cell"] = cells.groupby(CELL, sort=False).ngroup()
    rows = cells[~cells["method"].isin(["dense", "magnitude", "sparsegpt"])]
    rows = rows.dropna(subset=ratios, how="all")
    rows = rows[rows["at"].isin(rows.loc[rows["model"] == "here", "at"])]
    places = (
        rows["at"].map(frame.column_key),
        rows["cell"],
        rows["method"].map(frame.row_key),
    )
    rows = rows.assign(order=list(zip(*places, strict=True))).sort_values("order")
    rows = rows.rename(columns={"value": "perplexity"}).set_index("at")
    return (
        None
        if rows.empty
        else rows[["method", "model", "perplexity", *ratios, "source"]]
    )
