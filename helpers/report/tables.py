"""Tables as pure functions of records, in the paper's shapes, with their notes, and as files.

A cell is the mean over seeds; `helpers.report.runs_table` says which records share a cell.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from helpers.paths import replace_file
from helpers.report.beyond import beyond_tables
from helpers.report.labels import row_key
from helpers.report.layer_tables import layer_tables
from helpers.report.markdown import Table
from helpers.report.published import RATIO_CAPTION, ratio_table
from helpers.report.records import Records
from helpers.report.runs_table import (
    PRUNE_NOTEBOOK,
    SECONDS,
    by_model,
    by_target,
    by_windows,
    confidence_interval,
    of_notebook,
    perplexity_cells,
    runs_table,
    setting_sentences,
)
from helpers.report.zero_shot_tables import zero_shot_tables

# ------------------------------------------------------------------ the pruning notebook

PERPLEXITY_CAPTION = (
    "± is half of Student's 95 % interval over seeds of the calibration text, where there are "
    "several. The choice of evaluation windows is not in it: every cell has the same ones."
)


def perplexity_table(records: Records) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Perplexity, methods by sparsity and pattern, and half of its confidence interval.

    The dense model has the same number in every column. NaN: no run, or the interval of one seed.
    Variants, and runs on other windows than most, are left out.
    """
    cells = perplexity_cells(records)
    means, halves = by_target(cells, sorted(cells.index.unique("label"), key=row_key))
    dense = means.pop("dense") if "dense" in means else math.nan
    if not len(means.columns):
        means = means.reindex(columns=["0 %"])  # nothing but the dense model was run
    means = means.apply(lambda column: column.fillna(dense)).rename_axis("method")
    return means, halves.reindex(columns=means.columns)


COST_CAPTION = (
    "Medians over runs; the seconds of runs that were not timed alone are an order of magnitude: "
    "they may have shared the machine. Solve holds the checks of a layer and the measuring of its "
    "error, which is all of it for methods without an update; peak memory is the process's, "
    "evaluation included."
)


def cost_table(records: Records) -> pd.DataFrame:
    """The paper's overhead table: seconds of each part by method, and peak memory.

    Medians, since a run that shared the machine with something heavy is an outlier. "forward" holds
    the Gram matrices and the parity gate, "solve" the choice of the mask. Without variants.
    """
    groups = runs_table(records).query("not variant").groupby("label")
    table = groups[SECONDS].median()
    table = table.rename(columns=lambda name: name.replace("_seconds", " (s)"))
    table.insert(0, "runs", groups.size())
    table["peak memory (GB)"] = groups["memory"].max()
    return table.loc[sorted(table.index, key=row_key)].rename_axis("method")


VARIANTS_CAPTION = (
    "Other options beside the defaults, same cell and same calibration seeds. The change is the "
    "mean over seeds, and ± half of Student's 95 % interval of it."
)


def variant_table(records: Records) -> pd.DataFrame | None:
    """Perplexity with other options against the defaults on the same seeds, by variant and target.

    Several records of one run count once, with their mean. A variant whose cell has no run of the
    defaults is left out; None if there is no other. The interval of one seed is NaN.
    """
    runs = runs_table(records)
    runs["cell"] = [
        json.dumps(
            record["parameters"] | {"options": None, "device": None}, sort_keys=True
        )
        for record in runs["record"]
    ]
    keys = ["cell", "label", "target", "variant"]
    runs = runs.groupby(keys, sort=False, as_index=False)["perplexity"].mean()
    defaults = runs.query("not variant")[["cell", "perplexity"]]
    pairs = runs.query("variant").merge(defaults, on="cell", suffixes=("", "_default"))
    if pairs.empty:
        return None
    pairs["change"] = 100 * (pairs["perplexity"] / pairs["perplexity_default"] - 1)
    order = pairs["label"].map(row_key).argsort(kind="stable")
    groups = pairs.iloc[order].groupby(["label", "target"], sort=False)
    table = groups[["perplexity", "perplexity_default", "change"]].mean()
    table.columns = ["perplexity", "default", "change (%)"]
    table.insert(0, "seeds", groups.size())
    table["± (%)"] = groups["change"].agg(lambda some: confidence_interval(some)[1])
    return table.rename_axis(index=["variant", "at"]).reset_index("at")


def pruning_tables(records: Records) -> Iterator[tuple[str, Table]]:
    """The tables of the pruning notebook, by name, of the records of one model."""
    runs = of_notebook(records, PRUNE_NOTEBOOK)
    if not runs:
        return
    for number, group in enumerate(by_windows(runs)):
        table, spread = perplexity_table(group)
        note = f"{setting_sentences(group)} {PERPLEXITY_CAPTION}"
        if "dense" not in table.index:
            note += " The dense model was not run on these."
        about = f"other windows {number}" if number else ""
        yield "perplexity", Table(about, note, table, spread)
    setting = setting_sentences(runs)
    devices = "; ".join(sorted({run["device"] for run in runs}))
    timed = sum(run.get("timed", False) for run in runs)
    where = f"Device: {devices}. {timed} of {len(runs)} runs were timed alone."
    yield "cost", Table("", f"{setting} {where} {COST_CAPTION}", cost_table(runs))
    yield "variants", Table("", f"{setting} {VARIANTS_CAPTION}", variant_table(runs))
    yield "published_ratios", Table("", f"{setting} {RATIO_CAPTION}", ratio_table(runs))


# ------------------------------------------------------------------ all tables of a plan


def all_tables(records: Records) -> dict[str, list[Table]]:
    """Every table that the records allow, by name: a list, since each model has its own.

    `all_tables(records)["perplexity"][0].frame` is a DataFrame.
    """
    tables: dict[str, list[Table]] = defaultdict(list)
    for model, runs in by_model(records).items():
        for kind in (pruning_tables, zero_shot_tables, layer_tables, beyond_tables):
            for name, table in kind(runs):
                if table.frame is not None:
                    about = f"{model} {table.about}".strip()
                    tables[name].append(table._replace(about=about))
    return dict(tables)


def perplexity_markdown(records: Records) -> str:
    """The tables of perplexities in Markdown, "" without any."""
    tables = all_tables(records).get("perplexity", [])
    return "\n".join(table.markdown for table in tables)


def write_tables(records: Records, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table of `all_tables` as NAME.md and return the paths.

    Raises FileError if the folder cannot be written.
    """
    paths = []
    for name, tables in sorted(all_tables(records).items()):
        text = "\n".join(table.markdown for table in tables)
        paths.append(replace_file(Path(folder) / f"{name}.md", text))
    return paths
